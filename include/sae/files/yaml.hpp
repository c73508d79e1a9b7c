#pragma once
#include <sae/files/json.hpp>

#include <cmath>
#include <optional>

namespace sae::inline SAE_ABI {

namespace detail {

inline constexpr int yaml_depth_cap = 64;

/// The subset of YAML that `parse_yaml` describes, line by line.
class YamlReader {
 public:
  YamlReader(std::string_view text, std::string_view file) : file_(file) { split(text); }

  nlohmann::json read() {
    if (lines_.empty()) return nullptr;
    const bool flow = lines_[0].text[0] == '[' || lines_[0].text[0] == '{';
    nlohmann::json value = flow ? block_or_value(lines_[0].indent, 0) : block(lines_[0].indent, 0);
    if (at_ < lines_.size()) fail("does not belong to the list or map before it");
    return value;
  }

 private:
  struct Line {
    std::size_t number, indent;
    std::string_view text;  ///< from its first letter on, not empty
  };

  template <class... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    throw_file(file_, ": line ", line_, " ", parts...);
  }

  static bool is_comment(std::string_view text) { return text.empty() || text[0] == '#'; }
  static std::string_view trimmed(std::string_view text) {
    while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
    while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
    return text;
  }

  /// Lines that hold something; "---" before all of them and "..." behind them are left out.
  void split(std::string_view text) {
    if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);
    bool started = false, ended = false;
    for (line_ = 1; !text.empty(); ++line_) {
      const std::size_t end = std::min(text.find('\n'), text.size());
      std::string_view line = text.substr(0, end);
      text.remove_prefix(std::min(end + 1, text.size()));
      if (line.ends_with('\r')) line.remove_suffix(1);
      for (const char c : line)
        if ((static_cast<unsigned char>(c) < 0x20 && c != '\t') || c == 0x7f) fail("holds a control character");
      const std::size_t indent = std::min(line.find_first_not_of(' '), line.size());
      if (is_comment(trimmed(line))) continue;
      if (line[indent] == '\t') fail("is indented by a tab; YAML takes spaces");
      line = trimmed(line.substr(indent));
      if (ended) fail("stands behind the end of the document; one document a file is read");
      if (indent == 0 && line[0] == '%') fail("is a directive, which is not read");
      if (indent == 0 && line.starts_with("---") && is_comment(trimmed(line.substr(3)))) {
        if (started || !lines_.empty()) fail("begins a second document; one document a file is read");
        started = true;
      } else if (indent == 0 && line == "...") {
        ended = true;
      } else {
        lines_.push_back({line_, indent, line});
      }
    }
    if (!lines_.empty()) line_ = lines_[0].number;
  }

  const Line* current() {
    if (at_ == lines_.size()) return nullptr;
    line_ = lines_[at_].number;
    return &lines_[at_];
  }
  static bool is_item(std::string_view text) {
    return text[0] == '-' && (text.size() == 1 || text[1] == ' ' || text[1] == '\t');
  }

  /// A list or a map whose lines are indented by exactly `indent`.
  nlohmann::json block(std::size_t indent, int depth) {
    if (depth == yaml_depth_cap) fail("is nested deeper than ", yaml_depth_cap, " levels");
    nlohmann::json out = is_item(current()->text) ? list(indent, depth) : map(indent, depth);
    if (const Line* const line = current(); line != nullptr && line->indent > indent)
      fail("is indented deeper than its list or map; texts over several lines are not read, quote them in one");
    return out;
  }
  nlohmann::json list(std::size_t indent, int depth) {
    nlohmann::json out = nlohmann::json::array();
    for (const Line* line = current(); line != nullptr && line->indent == indent && is_item(line->text); line = current()) {
      const std::string_view rest = trimmed(line->text.substr(1));
      if (is_comment(rest)) {
        ++at_;
        out.push_back(nested(indent, depth, false));
      } else if (is_item(rest) || key_of(rest)) {
        // "- key: value": a list or map that begins in the middle of this line.
        const std::size_t inner = indent + static_cast<std::size_t>(rest.data() - line->text.data());
        lines_[at_].indent = inner;
        lines_[at_].text = rest;
        out.push_back(block(inner, depth + 1));
      } else {
        out.push_back(value(rest, depth));
        ++at_;
      }
    }
    return out;
  }
  nlohmann::json map(std::size_t indent, int depth) {
    nlohmann::json out = nlohmann::json::object();
    for (const Line* line = current(); line != nullptr && line->indent == indent; line = current()) {
      if (is_item(line->text)) fail("is an item of a list where a key is needed");
      std::optional<Key> key = key_of(line->text);
      if (!key) fail("is no \"key: value\" (texts over several lines are not read, quote them in one)");
      if (out.contains(key->name)) fail("has the key ", printable(key->name), " a second time");
      nlohmann::json& to = out[key->name];
      if (is_comment(key->rest)) {
        ++at_;
        to = nested(indent, depth, true);
      } else {
        to = value(key->rest, depth);
        ++at_;
      }
    }
    return out;
  }
  /// What belongs to a key or an item without a value on its line: a deeper block, of a key also a list that is not deeper; or null.
  nlohmann::json nested(std::size_t indent, int depth, bool of_key) {
    const Line* const line = current();
    if (line == nullptr) return nullptr;
    if (line->indent > indent || (of_key && line->indent == indent && is_item(line->text)))
      return block_or_value(line->indent, depth);
    return nullptr;
  }
  nlohmann::json block_or_value(std::size_t indent, int depth) {
    const std::string_view text = current()->text;
    if (is_item(text) || key_of(text)) return block(indent, depth + 1);
    nlohmann::json out = value(text, depth);  // a value on a line of its own
    ++at_;
    if (const Line* const line = current(); line != nullptr && line->indent >= indent)
      fail("goes on with the line before it; texts over several lines are not read, quote them in one");
    return out;
  }

  struct Key {
    std::string name;
    std::string_view rest;
  };
  /// "key: rest", or nothing where the text is no such thing.
  std::optional<Key> key_of(std::string_view text) const {
    std::string_view rest = text;
    Key out;
    if (text[0] == '"' || text[0] == '\'') {
      out.name = quoted(rest);
      rest = trimmed(rest);
      if (rest.empty() || rest[0] != ':' || !(rest.size() == 1 || rest[1] == ' ' || rest[1] == '\t')) return {};
      out.rest = trimmed(rest.substr(1));
      return out;
    }
    if (text[0] == '[' || text[0] == '{') return {};
    const std::size_t end = plain_end(text, false);
    if (end == text.size() || text[end] != ':') return {};
    const std::string_view name = trimmed(text.substr(0, end));
    require_plain(name);
    if (name == "<<") fail("merges another map, which is not read");
    out.name = name;
    out.rest = trimmed(text.substr(end + 1));
    return out;
  }

  /// The value of a whole text, behind which only a comment may stand.
  nlohmann::json value(std::string_view text, int depth) const {
    const nlohmann::json out = node(text, depth, false);
    if (const std::string_view rest = trimmed(text); !is_comment(rest))
      fail("has \"", printable(rest), "\" behind a value; a text with \": \" or \" #\" in it is quoted");
    return out;
  }
  /// One value, of which `text` moves behind. In a flow list or map plain texts end at , ] } as well.
  nlohmann::json node(std::string_view& text, int depth, bool flow) const {
    if (text[0] == '[' || text[0] == '{') return flow_node(text, depth + 1);
    if (text[0] == '"' || text[0] == '\'') return quoted(text);
    const std::size_t end = plain_end(text, flow);
    const std::string_view plain = trimmed(text.substr(0, end));
    require_plain(plain);
    text.remove_prefix(end);
    return scalar(plain);
  }
  nlohmann::json flow_node(std::string_view& text, int depth) const {
    if (depth >= yaml_depth_cap) fail("is nested deeper than ", yaml_depth_cap, " levels");
    const bool is_map = text[0] == '{';
    const char close = is_map ? '}' : ']';
    nlohmann::json out = is_map ? nlohmann::json::object() : nlohmann::json::array();
    const auto next = [&] {
      text = trimmed(text);
      if (is_comment(text))
        fail("opens a ", is_map ? "{" : "[", " that it does not close; lists over several lines are written with dashes");
      return text[0];
    };
    text.remove_prefix(1);
    while (next() != close) {
      if (is_map) {
        if (text[0] == '[' || text[0] == '{') fail("has a list or map as a key");
        const bool in_quotes = text[0] == '"' || text[0] == '\'';
        std::string key;
        if (in_quotes) {
          key = quoted(text);
        } else {
          const std::size_t end = plain_end(text, true);
          const std::string_view name = trimmed(text.substr(0, end));
          require_plain(name);
          key = name;
          text.remove_prefix(end);
        }
        if (next() != ':') fail("has no : behind the key ", printable(key));
        text.remove_prefix(1);
        if (out.contains(key)) fail("has the key ", printable(key), " a second time");
        nlohmann::json& to = out[key];
        if (const char c = next(); c != ',' && c != close) to = node(text, depth, true);
      } else {
        out.push_back(node(text, depth, true));
      }
      if (next() == ',') {
        text.remove_prefix(1);
      } else if (text[0] != close) {
        fail("has \"", printable(text), "\" where , or ", close, " is needed");
      }
    }
    text.remove_prefix(1);
    return out;
  }

  /// Where a plain text ends: at ": ", at " #", at the end; in a flow list or map also at , [ ] { }.
  static std::size_t plain_end(std::string_view text, bool flow) {
    for (std::size_t i = 0; i < text.size(); ++i) {
      const char c = text[i], after = i + 1 < text.size() ? text[i + 1] : ' ';
      const bool ends =
          after == ' ' || after == '\t' || (flow && std::string_view(",[]{}").find(after) != std::string_view::npos);
      if (c == ':' && ends) return i;
      if (c == '#' && i > 0 && (text[i - 1] == ' ' || text[i - 1] == '\t')) return i;
      if (flow && std::string_view(",[]{}").find(c) != std::string_view::npos) return i;
    }
    return text.size();
  }
  /// What a plain text may begin with: nothing that means something in YAML.
  void require_plain(std::string_view text) const {
    if (text.empty()) fail("has nothing where a key or value is needed");
    switch (text[0]) {
      case '&':
      case '*': fail("has an anchor or alias (", printable(text), "), which is not read");
      case '!': fail("has a tag (", printable(text), "), which is not read");
      case '|':
      case '>': fail("begins a text of several lines (", printable(text), "), which is not read; quote it in one");
      case '?':
      case '-':
        if (text.size() == 1 || text[1] == ' ') fail("has \"", text.substr(0, 1), " \" where a key or value is needed");
        break;
      case '%':
      case '@':
      case '`':
      case ',':
      case ']':
      case '}':
      case '"':
      case '\'':
      case '#': fail("has \"", printable(text), "\", which has to be quoted");
      default: break;
    }
  }

  /// A text in quotes, of which `text` moves behind.
  std::string quoted(std::string_view& text) const {
    const char quote = text[0];
    std::string out;
    for (std::size_t i = 1; i < text.size(); ++i) {
      const char c = text[i];
      if (c == quote) {
        if (quote == '"' || i + 1 == text.size() || text[i + 1] != quote) {
          text.remove_prefix(i + 1);
          return out;
        }
        ++i;  // '' is one '
      }
      if (c == '\\' && quote == '"') {
        out += escaped(text, i);
      } else {
        out += c;
      }
    }
    fail("has a quote that it does not close; texts over several lines are not read");
  }
  /// The letter that text[i] = \ begins; i moves to its last character.
  std::string escaped(std::string_view text, std::size_t& i) const {
    constexpr std::string_view names = "0abtnvfre\"/\\ ", meanings("\0\a\b\t\n\v\f\r\x1b\"/\\ ", 13);
    const char c = ++i < text.size() ? text[i] : '\0';
    if (const std::size_t known = names.find(c); known != std::string_view::npos) return {meanings[known]};
    const std::size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    std::uint32_t code = 0;
    const char* const first = text.data() + i + 1;
    if (digits == 0 || text.size() - i - 1 < digits || std::from_chars(first, first + digits, code, 16).ptr != first + digits ||
        code > 0x10ffff || (code >= 0xd800 && code < 0xe000))
      fail("has an escape that is not read: ", printable(text.substr(i - 1, 2 + digits)));
    i += digits;
    const auto byte = [](std::uint32_t value) { return static_cast<char>(static_cast<unsigned char>(value)); };
    const auto later = [&](int shift) { return byte(0x80 | (code >> shift & 0x3f)); };
    if (code < 0x80) return {byte(code)};
    if (code < 0x800) return {byte(0xc0 | code >> 6), later(0)};
    if (code < 0x10000) return {byte(0xe0 | code >> 12), later(6), later(0)};
    return {byte(0xf0 | code >> 18), later(12), later(6), later(0)};
  }

  /// A plain text as YAML 1.2's core schema means it, octal and hexadecimal numbers excepted (they stay texts).
  static nlohmann::json scalar(std::string_view text) {
    const auto one_of = [&](std::initializer_list<std::string_view> words) {
      return std::find(words.begin(), words.end(), text) != words.end();
    };
    if (one_of({"null", "Null", "NULL", "~"})) return nullptr;
    if (one_of({"true", "True", "TRUE"})) return true;
    if (one_of({"false", "False", "FALSE"})) return false;
    const bool sign = text[0] == '+' || text[0] == '-';
    const std::string_view size = text.substr(sign ? 1 : 0), digits = text.substr(text[0] == '+' ? 1 : 0);
    if (size == ".inf" || size == ".Inf" || size == ".INF")
      return text[0] == '-' ? -std::numeric_limits<double>::infinity() : std::numeric_limits<double>::infinity();
    if (one_of({".nan", ".NaN", ".NAN"})) return std::numeric_limits<double>::quiet_NaN();
    const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
    const bool numeric = !size.empty() && (is_digit(size[0]) || (size[0] == '.' && size.size() > 1 && is_digit(size[1])));
    const bool padded = size.size() > 1 && size[0] == '0' && is_digit(size[1]);  // 007: octal to some
    if (numeric && !padded) {
      if (std::int64_t value = 0; whole(digits, value)) return value;
      if (std::uint64_t value = 0; whole(digits, value)) return value;
      if (double value = 0; whole(digits, value)) return value;
    }
    return std::string(text);
  }
  template <class T>
  static bool whole(std::string_view digits, T& value) {
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    return error == std::errc() && end == digits.data() + digits.size();
  }

  std::string_view file_;
  std::vector<Line> lines_;
  std::size_t at_ = 0, line_ = 0;
};

}  // namespace detail

/// YAML text as a JSON value, as far as the settings beside published models need it: maps and lists by indentation ("- " also at the
/// indentation of its key, "- key: value"), [a, b] and {a: b} on one line, plain and quoted texts on one line, comments, one document.
/// Plain null, ~, true, false (three spellings), decimal numbers, .inf and .nan are what YAML 1.2 says; yes, on, 0x10, 007 and
/// dates are texts. Keys are texts, "1" of 1. Everything else is refused: anchors, tags, directives, merges, texts over several lines,
/// keys twice in their map, more than 64 levels, tabs as indentation.
/// Source: https://yaml.org/spec/1.2.2, chapters 7, 8, 10.3.
/// \throws FileError  one sentence with `file` and the line.
inline nlohmann::json parse_yaml(std::string_view text, const std::filesystem::path& file) {
  try {
    static_cast<void>(nlohmann::json(text).dump());
  } catch (const nlohmann::json::exception&) {
    throw_file(file.string(), ": is not valid YAML: it is not UTF-8");
  }
  return detail::YamlReader(text, file.string()).read();
}

/// A YAML file, at most `cap` bytes.
inline nlohmann::json read_yaml(const std::filesystem::path& path, std::size_t cap = std::size_t{1} << 20) {
  return parse_yaml(detail::read_regular_file(path, cap), path);
}

}  // namespace sae::inline SAE_ABI
