#pragma once
#include <sae/core/config.hpp>

#include <algorithm>
#include <string>
#include <string_view>

namespace sae::inline SAE_ABI::detail {

/// Text out of a file as a message may show it: control characters as '?', at most 80 bytes.
inline std::string printable(std::string_view text) {
  std::string out(text.substr(0, 80));
  std::replace_if(
      out.begin(), out.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }, '?');
  return text.size() > 80 ? out + "..." : out;
}

/// "; it holds W_dec, W_enc, ...": the first names of a map, for a message about one that is missing.
template <class Map>
std::string held_names(const Map& map) {
  std::string text;
  int listed = 0;
  for (const auto& [name, value] : map) {
    if (++listed > 12) return text + ", ...";
    text += (text.empty() ? "; it holds " : ", ") + printable(name);
  }
  return text;
}

}  // namespace sae::inline SAE_ABI::detail
