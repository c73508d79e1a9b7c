#pragma once
#include <sae/core/config.hpp>

#include <charconv>
#include <concepts>
#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>

namespace sae::inline SAE_ABI {

/// A value that the caller chose is not legal; the message holds the violated inequality with its numbers.
struct ValueError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};
/// Two shapes do not fit; the message names both.
struct ShapeError : ValueError {
  using ValueError::ValueError;
};
/// A file is missing, unreadable, malformed or cannot be written; the message is one sentence: file, field, what would be right.
struct FileError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
/// The host (a language model) refused or failed; the message is one sentence.
struct HostError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

namespace detail {
inline void append(std::string& out, std::string_view text) { out += text; }
inline void append(std::string& out, char c) { out += c; }
template <class T>
  requires(std::integral<T> || std::floating_point<T>)
&&(!std::same_as<T, char>)void append(std::string& out, T value) {
  if constexpr (std::same_as<T, bool>) {
    out += value ? "true" : "false";
  } else {
    char digits[64];
    const auto [end, error] = std::to_chars(digits, digits + sizeof digits, value);
    if (error == std::errc()) out.append(digits, end);
  }
}

/// One string of texts and numbers (shortest form that reads back exactly).
template <class... Parts>
std::string concat(const Parts&... parts) {
  std::string out;
  (append(out, parts), ...);
  return out;
}
}  // namespace detail

// Out of line, so that the text never weighs on the code that checks.
template <class... Parts>
[[noreturn]] SAE_NOINLINE void throw_value(const Parts&... parts) {
  throw ValueError(detail::concat(parts...));
}
template <class... Parts>
[[noreturn]] SAE_NOINLINE void throw_shape(const Parts&... parts) {
  throw ShapeError(detail::concat(parts...));
}
template <class... Parts>
[[noreturn]] SAE_NOINLINE void throw_file(const Parts&... parts) {
  throw FileError(detail::concat(parts...));
}
template <class... Parts>
[[noreturn]] SAE_NOINLINE void throw_host(const Parts&... parts) {
  throw HostError(detail::concat(parts...));
}

/// \throws ValueError  value is not in [0, infinity); a NaN is not. `setting` names it: "L1: coefficient".
template <class T>
void require_non_negative(std::string_view setting, T value) {
  if (!(value >= 0 && value <= std::numeric_limits<T>::max())) throw_value(setting, " = ", value, " is not in [0, infinity)");
}
/// \throws ValueError  value is not in (0, infinity); a NaN is not.
template <class T>
void require_positive(std::string_view setting, T value) {
  if (!(value > 0 && value <= std::numeric_limits<T>::max())) throw_value(setting, " = ", value, " is not in (0, infinity)");
}

}  // namespace sae::inline SAE_ABI
