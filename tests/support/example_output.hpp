// What the tests of the examples share: an example's output by lines, and the numbers in them.
#pragma once
#include <cctype>
#include <cmath>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "run_program.hpp"

namespace sae_test {

inline std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> out;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = text.find('\n', at);
    out.push_back(text.substr(at, end - at));
    at = end == std::string::npos ? text.size() : end + 1;
  }
  return out;
}

/// A line taken apart: its words with every number as '#' and every run of spaces as one, and the numbers.
/// A digit inside a word ("Q4") belongs to the word.
struct TakenApart {
  std::string words;
  std::vector<double> numbers;
  explicit TakenApart(std::string_view line) {
    const std::string text(line);
    for (std::size_t i = 0; i < text.size();) {
      const auto is_digit = [&](std::size_t j) {
        return j < text.size() && std::isdigit(static_cast<unsigned char>(text[j])) != 0;
      };
      const bool in_word =
          !words.empty() && (std::isalnum(static_cast<unsigned char>(words.back())) != 0 || words.back() == '_');
      if (!in_word && (is_digit(i) || (text[i] == '-' && is_digit(i + 1)))) {
        char* end = nullptr;
        numbers.push_back(std::strtod(text.c_str() + i, &end));
        i = static_cast<std::size_t>(end - text.c_str());
        words += '#';
      } else {
        if (text[i] != ' ' || (!words.empty() && words.back() != ' ')) words += text[i];
        ++i;
      }
    }
    while (!words.empty() && words.back() == ' ') words.pop_back();
  }
};

/// Output of an example that ended well.
class ExampleOutput {
 public:
  explicit ExampleOutput(const Finished& run) : text_(run.out), lines_(lines_of(run.out)) {
    if (run.code != 0) throw std::runtime_error("the example ended with code " + std::to_string(run.code) + ": " + run.err);
  }
  const std::string& text() const { return text_; }
  const std::vector<std::string>& lines() const { return lines_; }
  /// Numbers of the one line that holds `phrase`.
  std::vector<double> numbers(const std::string& phrase) const { return TakenApart(line(phrase)).numbers; }
  const std::string& line(const std::string& phrase) const {
    const std::string* found = nullptr;
    for (const std::string& line : lines_) {
      if (line.find(phrase) == std::string::npos) continue;
      if (found != nullptr) throw std::runtime_error("two lines say '" + phrase + "' in:\n" + text_);
      found = &line;
    }
    if (found == nullptr) throw std::runtime_error("no line says '" + phrase + "' in:\n" + text_);
    return *found;
  }
  /// Numbers of the lines behind the one that holds `phrase`, as long as they begin with `start`.
  std::vector<std::vector<double>> table(const std::string& phrase, const std::string& start) const {
    std::vector<std::vector<double>> out;
    for (std::size_t i = static_cast<std::size_t>(&line(phrase) - lines_.data()) + 1;
         i < lines_.size() && lines_[i].starts_with(start); ++i)
      out.push_back(TakenApart(lines_[i]).numbers);
    return out;
  }

 private:
  std::string text_;
  std::vector<std::string> lines_;
};

#ifdef SAE_TEST_EXAMPLES
inline ExampleOutput run_example(const std::string& name, const std::vector<std::string>& words = {}) {
  return ExampleOutput(run_program(SAE_TEST_EXAMPLES "/" + name, words));
}
#endif

}  // namespace sae_test
