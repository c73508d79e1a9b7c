#pragma once
#include <sae/files/safetensors_index.hpp>

#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>

/// Whatever the text, an index of shards is refused with a FileError or names tensors and files that lie beside it.
/// \return whether the text was taken
inline bool index_fuzz(std::span<const std::uint8_t> input) {
  const std::string text(input.begin(), input.end());
  try {
    const auto files = sae::parse_safetensors_index(text, "folder/input");
    if (files.empty()) std::abort();
    for (const auto& [name, file] : files) {
      const std::filesystem::path path = std::filesystem::path("folder") / file;
      if (path.parent_path() != "folder" || path.filename() != file || path.lexically_normal() != path) std::abort();
    }
  } catch (const sae::FileError&) {
    return false;
  }
  return true;
}
