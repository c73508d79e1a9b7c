#pragma once
#include <sae/files/output.hpp>
#include <sae/files/printable.hpp>

#include <algorithm>
#include <initializer_list>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace sae::inline SAE_ABI {

namespace detail {

/// "line 3, column 7" of byte `at` (from 1, as the parser counts).
inline std::string position_in(std::string_view text, std::size_t at) {
  const std::string_view before = text.substr(0, at > 0 ? at - 1 : 0);
  const std::size_t last = before.rfind('\n');
  return concat("line ", 1 + std::count(before.begin(), before.end(), '\n'), ", column ",
                before.size() - (last == std::string_view::npos ? 0 : last + 1) + 1);
}

inline constexpr int json_depth_cap = 200;

}  // namespace detail

/// JSON text as a value. Strict: UTF-8, no comments, nothing after the value, every name once in its object, at most 200 levels.
/// \throws FileError  one sentence with `file` and the position.
inline nlohmann::json parse_json(std::string_view text, const std::filesystem::path& file) {
  using nlohmann::json;
  std::vector<std::set<std::string>> names;  // of the objects that are open
  const auto check = [&](int depth, json::parse_event_t event, json& parsed) {
    const bool opens = event == json::parse_event_t::object_start || event == json::parse_event_t::array_start;
    if (opens && depth >= detail::json_depth_cap)
      throw_file(file.string(), ": JSON is nested deeper than ", detail::json_depth_cap, " levels");
    if (event == json::parse_event_t::object_start) names.emplace_back();
    if (event == json::parse_event_t::object_end) names.pop_back();
    if (event == json::parse_event_t::key && !names.back().insert(parsed.get_ref<const std::string&>()).second)
      throw_file(file.string(), ": JSON name ", detail::printable(parsed.get_ref<const std::string&>()),
                 " stands twice in one object");
    return true;
  };
  // The parser takes a zero byte for the end of the text.
  if (const std::size_t zero = text.find('\0'); zero != std::string_view::npos)
    throw_file(file.string(), ": is not valid JSON at ", detail::position_in(text, zero + 1));
  try {
    return json::parse(text.begin(), text.end(), check);
  } catch (const json::parse_error& error) {
    throw_file(file.string(), ": is not valid JSON at ", detail::position_in(text, error.byte));
  } catch (const json::exception&) {
    throw_file(file.string(), ": is not valid JSON (a number is too large)");
  }
}

namespace detail {
/// `read_file` of what is a file: of a pipe one would wait for ever.
inline std::string read_regular_file(const std::filesystem::path& path, std::size_t cap) {
  std::error_code error;
  if (const auto status = std::filesystem::status(path, error);
      std::filesystem::exists(status) && !std::filesystem::is_regular_file(status))
    throw_file(path.string(), ": is not a regular file");
  return read_file(path, cap);
}
}  // namespace detail

/// A JSON file, at most `cap` bytes.
inline nlohmann::json read_json(const std::filesystem::path& path, std::size_t cap = std::size_t{64} << 20) {
  return parse_json(detail::read_regular_file(path, cap), path);
}

/// Writes a JSON file whole or not at all, indented by 2, names in alphabetical order (use `nlohmann::ordered_json` for another).
/// NaN and infinities have no JSON form and become null.
template <class Json>
void save_json(const std::filesystem::path& path, const Json& value, OutputOptions options = {}) {
  std::string text;
  try {
    text = value.dump(2) + "\n";
  } catch (const nlohmann::json::exception&) {
    throw_file(path.string(), ": cannot be written as JSON: a text in it is not UTF-8");
  }
  atomic_write_text(path, text, options);
}

namespace detail {

/// The value of a name, nullptr where it is absent or null (Python's None).
inline const nlohmann::json* json_find(const nlohmann::json& object, std::string_view name, const std::filesystem::path& file) {
  if (!object.is_object()) throw_file(file.string(), ": a JSON object is needed where ", name, " is looked for");
  const auto found = object.find(std::string(name));
  return found == object.end() || found->is_null() ? nullptr : &*found;
}
inline const nlohmann::json& json_require(const nlohmann::json& object, std::string_view name,
                                          const std::filesystem::path& file) {
  const nlohmann::json* const value = json_find(object, name, file);
  if (value == nullptr) throw_file(file.string(), ": ", name, " is missing");
  return *value;
}
[[noreturn]] inline void throw_field(const std::filesystem::path& file, std::string_view name, const nlohmann::json& value,
                                     std::string_view wanted) {
  const std::string shown = value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  throw_file(file.string(), ": ", name, " = ", printable(shown), " is not ", wanted);
}

inline Index integer_of(const nlohmann::json& value, std::string_view name, const std::filesystem::path& file, Index lo,
                        Index hi) {
  constexpr Index largest = (std::numeric_limits<Index>::max)(), smallest = (std::numeric_limits<Index>::min)();
  const bool in_range = value.is_number_unsigned()
                            ? value.get<std::uint64_t>() <= static_cast<std::uint64_t>(largest) && value.get<Index>() >= lo &&
                                  value.get<Index>() <= hi
                            : value.is_number_integer() && value.get<Index>() >= lo && value.get<Index>() <= hi;
  if (in_range) return value.get<Index>();
  throw_field(file, name, value,
              lo == smallest && hi == largest ? std::string("an integer")
              : hi == largest                 ? concat("an integer of at least ", lo)
                                              : concat("an integer in [", lo, ", ", hi, "]"));
}
inline double number_of(const nlohmann::json& value, std::string_view name, const std::filesystem::path& file, double lo,
                        double hi) {
  if (value.is_number() && value.get<double>() >= lo && value.get<double>() <= hi) return value.get<double>();
  const bool free = lo == -std::numeric_limits<double>::infinity() && hi == std::numeric_limits<double>::infinity();
  throw_field(file, name, value, free ? std::string("a number") : concat("a number in [", lo, ", ", hi, "]"));
}

}  // namespace detail

// Typed fields of a JSON object; errors name file, field, what it is and what would be right. The `_or` forms take the fallback
// where the field is absent or null, and are as strict as the others where it is there. Numbers in quotes are texts, 1.0 is no
// integer, true is no number.

inline Index json_integer(const nlohmann::json& object, std::string_view name, const std::filesystem::path& file,
                          Index lo = (std::numeric_limits<Index>::min)(), Index hi = (std::numeric_limits<Index>::max)()) {
  return detail::integer_of(detail::json_require(object, name, file), name, file, lo, hi);
}
inline Index json_integer_or(const nlohmann::json& object, std::string_view name, Index fallback,
                             const std::filesystem::path& file, Index lo = (std::numeric_limits<Index>::min)(),
                             Index hi = (std::numeric_limits<Index>::max)()) {
  const nlohmann::json* const value = detail::json_find(object, name, file);
  return value == nullptr ? fallback : detail::integer_of(*value, name, file, lo, hi);
}

inline double json_number(const nlohmann::json& object, std::string_view name, const std::filesystem::path& file,
                          double lo = -std::numeric_limits<double>::infinity(),
                          double hi = std::numeric_limits<double>::infinity()) {
  return detail::number_of(detail::json_require(object, name, file), name, file, lo, hi);
}
inline double json_number_or(const nlohmann::json& object, std::string_view name, double fallback,
                             const std::filesystem::path& file, double lo = -std::numeric_limits<double>::infinity(),
                             double hi = std::numeric_limits<double>::infinity()) {
  const nlohmann::json* const value = detail::json_find(object, name, file);
  return value == nullptr ? fallback : detail::number_of(*value, name, file, lo, hi);
}

inline std::string json_string(const nlohmann::json& object, std::string_view name, const std::filesystem::path& file) {
  const nlohmann::json& value = detail::json_require(object, name, file);
  if (!value.is_string()) detail::throw_field(file, name, value, "a text");
  return value.get<std::string>();
}
inline std::string json_string_or(const nlohmann::json& object, std::string_view name, std::string_view fallback,
                                  const std::filesystem::path& file) {
  return detail::json_find(object, name, file) == nullptr ? std::string(fallback) : json_string(object, name, file);
}

inline bool json_bool(const nlohmann::json& object, std::string_view name, const std::filesystem::path& file) {
  const nlohmann::json& value = detail::json_require(object, name, file);
  if (!value.is_boolean()) detail::throw_field(file, name, value, "true or false");
  return value.get<bool>();
}
inline bool json_bool_or(const nlohmann::json& object, std::string_view name, bool fallback,
                         const std::filesystem::path& file) {
  return detail::json_find(object, name, file) == nullptr ? fallback : json_bool(object, name, file);
}

/// Refuses an object that has other names than these.
inline void json_only(const nlohmann::json& object, std::initializer_list<std::string_view> names,
                      const std::filesystem::path& file) {
  if (!object.is_object()) throw_file(file.string(), ": a JSON object is needed");
  for (const auto& field : object.items()) {
    if (std::find(names.begin(), names.end(), field.key()) != names.end()) continue;
    std::string known;
    for (const std::string_view name : names) known += (known.empty() ? "" : ", ") + std::string(name);
    throw_file(file.string(), ": ", detail::printable(field.key()), " is not a known field; the fields are ", known);
  }
}

}  // namespace sae::inline SAE_ABI
