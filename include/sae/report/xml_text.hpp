#pragma once
#include <sae/interpret/context_text.hpp>

#include <string>
#include <string_view>

namespace sae::inline SAE_ABI {

/// A text as XML and HTML take it, between tags and in quoted attributes: & < > " ' by their names; bytes that are no UTF-8, and
/// characters that XML 1.0 cannot hold (controls but tab and line breaks, U+FFFE, U+FFFF), as U+FFFD.
inline std::string xml_text(std::string_view text) {
  constexpr std::string_view replacement = "\xEF\xBF\xBD";
  std::string out;
  for (std::string_view rest = text; !rest.empty();) {
    const std::size_t length = detail::utf8_length(rest);
    const std::string_view character = rest.substr(0, length == 0 ? 1 : length);
    rest.remove_prefix(character.size());
    const auto code = length == 0 ? 0xFFFDU : detail::utf8_code_point(character);
    if (code == '&')
      out += "&amp;";
    else if (code == '<')
      out += "&lt;";
    else if (code == '>')
      out += "&gt;";
    else if (code == '"')
      out += "&quot;";
    else if (code == '\'')
      out += "&#39;";
    else if (length == 0 || (code < 0x20 && code != '\t' && code != '\n' && code != '\r') || code == 0xFFFE || code == 0xFFFF)
      out += replacement;
    else
      out += character;
  }
  return out;
}

}  // namespace sae::inline SAE_ABI
