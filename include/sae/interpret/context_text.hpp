#pragma once
#include <sae/core/types.hpp>

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace sae::inline SAE_ABI {

namespace detail {

/// Bytes of the UTF-8 character at the front of `text`: 1 to 4, 0 where the bytes are none. Source: Unicode 15, table 3-7.
inline std::size_t utf8_length(std::string_view text) {
  const auto byte = [&](std::size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0U; };
  const unsigned first = byte(0);
  if (first < 0x80) return 1;
  const std::size_t length = first >= 0xC2 && first <= 0xDF   ? 2
                             : first >= 0xE0 && first <= 0xEF ? 3
                             : first >= 0xF0 && first <= 0xF4 ? 4
                                                              : 0;
  for (std::size_t i = 1; i < length; ++i)
    if ((byte(i) & 0xC0U) != 0x80) return 0;
  // Overlong forms, surrogates, beyond U+10FFFF.
  const unsigned second = byte(1);
  if ((first == 0xE0 && second < 0xA0) || (first == 0xED && second > 0x9F) || (first == 0xF0 && second < 0x90) ||
      (first == 0xF4 && second > 0x8F))
    return 0;
  return length;
}
inline std::uint32_t utf8_code_point(std::string_view character) {
  if (character.size() == 1) return static_cast<unsigned char>(character[0]);
  std::uint32_t code = static_cast<unsigned char>(character[0]) & (0x7FU >> character.size());
  for (std::size_t i = 1; i < character.size(); ++i) code = code << 6 | (static_cast<unsigned char>(character[i]) & 0x3FU);
  return code;
}
/// Moves the cursor, breaks the line or turns the direction of writing: nothing a terminal should get from a text.
inline bool is_unprintable(std::uint32_t code) {
  return code < 0x20 || (code >= 0x7F && code < 0xA0) || code == 0x061C || (code >= 0x200B && code <= 0x200F) ||
         (code >= 0x2028 && code <= 0x202E) || (code >= 0x2060 && code <= 0x206F) || code == 0xFEFF;
}

}  // namespace detail

/// A text on one line: line breaks and control characters as \n, \t, \r, \u{1b}; bytes that are no UTF-8 as \xNN; a backslash
/// as \\. The result is UTF-8, and can be read back.
inline std::string visible_text(std::string_view text) {
  constexpr std::string_view digits = "0123456789abcdef";
  std::string out;
  while (!text.empty()) {
    const std::size_t length = detail::utf8_length(text);
    if (length == 0) {
      const auto byte = static_cast<unsigned char>(text[0]);
      out += {'\\', 'x', digits[byte >> 4], digits[byte & 15U]};
      text.remove_prefix(1);
      continue;
    }
    const std::string_view character = text.substr(0, length);
    const std::uint32_t code = detail::utf8_code_point(character);
    if (code == '\n') {
      out += "\\n";
    } else if (code == '\t') {
      out += "\\t";
    } else if (code == '\r') {
      out += "\\r";
    } else if (code == '\\') {
      out += "\\\\";
    } else if (detail::is_unprintable(code)) {
      std::string hex;
      for (std::uint32_t rest = code; rest != 0 || hex.empty(); rest >>= 4) hex.insert(hex.begin(), digits[rest & 15U]);
      out += "\\u{" + hex + "}";
    } else {
      out += character;
    }
    text.remove_prefix(length);
  }
  return out;
}

/// The text with every byte that is no UTF-8 replaced by U+FFFD: what JSON can hold.
inline std::string utf8_text(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const std::size_t length = detail::utf8_length(text);
    out += length == 0 ? std::string_view("\xEF\xBF\xBD") : text.substr(0, length);
    text.remove_prefix(length == 0 ? 1 : length);
  }
  return out;
}

/// How a context is shown.
struct ContextStyle {
  std::string_view open = "[[", close = "]]";  ///< around the token in question
};

/// The tokens of a context as one line, with the token at `active` marked: "the old [[ captain]] said\n". `pieces` are the tokens'
/// bytes, joined before they are read as UTF-8, but that the marked token stands for itself. Errors: ValueError for an `active`
/// that is not there.
inline std::string context_text(std::span<const std::string> pieces, Index active, const ContextStyle& style = {}) {
  if (active < 0 || active >= static_cast<Index>(pieces.size()))
    throw_value("context_text: token ", active, " is not in [0, ", pieces.size(), ")");
  const auto join = [](std::span<const std::string> part) {
    std::string text;
    for (const std::string& piece : part) text += piece;
    return visible_text(text);
  };
  const auto at = static_cast<std::size_t>(active);
  std::string out = join(pieces.first(at));
  out += style.open;
  out += visible_text(pieces[at]);
  out += style.close;
  return out + join(pieces.subspan(at + 1));
}

}  // namespace sae::inline SAE_ABI
