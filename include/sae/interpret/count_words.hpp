#pragma once
#include <sae/core/error.hpp>
#include <sae/core/types.hpp>

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

namespace sae::inline SAE_ABI {

/// How often the words of a list occur in a text, letters of ASCII in either case. A word is found where no letter or digit continues it:
/// "mar" is not in "market". A `*` at its end or front stands for any letters and digits ("*ed", "happ*"). Occurrences of one word do not
/// overlap; those of two words both count.
/// Cost: text x words.
/// \throws ValueError  a word is empty, or a `*` alone.
inline Index count_words(std::string_view text, std::span<const std::string> words) {
  // Bytes of other scripts count as letters: a word of theirs is not found inside of another one.
  const auto is_letter = [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || static_cast<unsigned char>(c) >= 0x80;
  };
  const auto lower = [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; };
  Index count = 0;
  for (std::string_view word : words) {
    const bool open_front = word.starts_with('*');
    if (open_front) word.remove_prefix(1);
    const bool open_end = word.ends_with('*');
    if (open_end) word.remove_suffix(1);
    if (word.empty()) throw_value("count_words: a word has no letters");
    for (std::size_t at = 0; at + word.size() <= text.size();) {
      std::size_t same = 0;
      while (same < word.size() && lower(text[at + same]) == lower(word[same])) ++same;
      const std::size_t end = at + word.size();
      const bool found = same == word.size() &&
                         (open_front || at == 0 || !is_letter(word.front()) || !is_letter(text[at - 1])) &&
                         (open_end || end == text.size() || !is_letter(word.back()) || !is_letter(text[end]));
      count += found ? 1 : 0;
      at += found ? word.size() : 1;
    }
  }
  return count;
}

}  // namespace sae::inline SAE_ABI
