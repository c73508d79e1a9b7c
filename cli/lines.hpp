#pragma once
#include <sae/files/output.hpp>

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

namespace sae::cli {

/// A text of a file that has one on each line.
struct Line {
  std::string text;
  Index number = 0;  // from 1
};
/// The lines of a file that are not blank. \throws ValueError  all are.
inline std::vector<Line> read_lines(const std::string& path) {
  const std::string all = read_file(path, std::size_t{1} << 31);
  std::vector<Line> out;
  std::string_view rest = all;
  for (Index number = 1; !rest.empty(); ++number) {
    const std::size_t end = (std::min)(rest.find('\n'), rest.size());
    const std::string_view line = rest.substr(0, end);
    if (line.find_first_not_of(" \t\r") != std::string_view::npos) {
      const std::size_t length = line.back() == '\r' ? line.size() - 1 : line.size();
      out.push_back({std::string(line.substr(0, length)), number});
    }
    rest.remove_prefix((std::min)(end + 1, rest.size()));
  }
  if (out.empty()) throw_value(path, ": has no text (a line is a text; all lines are blank)");
  return out;
}

}  // namespace sae::cli
