#pragma once
#include <sae/files/yaml.hpp>

#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>

/// Whatever the text, it is refused with a FileError or becomes a value whose JSON, which is YAML as well, means the same again.
/// \return whether the text was taken
inline bool yaml_fuzz(std::span<const std::uint8_t> input) {
  const std::string text(input.begin(), input.end());
  nlohmann::json value;
  try {
    value = sae::parse_yaml(text, "input");
  } catch (const sae::FileError&) {
    return false;
  }
  const std::string json = value.dump();
  // An infinity has no JSON; a DEL that was escaped stands there as it is.
  const bool plain = text.find(".i") == text.npos && text.find(".I") == text.npos && text.find(".n") == text.npos &&
                     text.find(".N") == text.npos && json.find('\x7f') == json.npos;
  if ((value.is_object() || value.is_array()) && plain) {
    try {
      if (sae::parse_yaml(json, "input") != value) std::abort();
    } catch (const sae::FileError& error) {
      if (std::string_view(error.what()).find("nested deeper") == std::string_view::npos) std::abort();
    }
  }
  return true;
}
