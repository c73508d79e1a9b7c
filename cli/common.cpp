#include "common.hpp"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <iostream>

namespace sae::cli {

namespace {
double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }
}  // namespace

bool stderr_is_terminal() { return ::isatty(STDERR_FILENO) == 1; }

std::string rounded(double x) {
  if (std::isnan(x)) return "undefined";
  char text[40];
  std::snprintf(text, sizeof text, "%.4g", x);
  return text;
}

void print_json(const Json& object) {
  // Names of files need not be UTF-8; what is not becomes U+FFFD.
  std::cout << object.dump(2, ' ', false, Json::error_handler_t::replace) << "\n";
}

void print_table(const std::vector<std::pair<std::string, std::string>>& rows) {
  std::size_t width = 0;
  for (const auto& row : rows) width = (std::max)(width, row.first.size());
  for (const auto& [name, value] : rows) {
    std::string line = name + std::string(width - name.size() + 2, ' ') + value;
    line.erase(line.find_last_not_of(' ') + 1);
    std::cout << line << "\n";
  }
}

Progress::Progress(const Common& options, std::string what, Index total)
    : what_(std::move(what)),
      total_(total),
      shown_(!options.quiet && total > 0),
      bar_(stderr_is_terminal()),
      next_(now() + 1) {}
Progress::~Progress() {
  if (drawn_) std::fputs("\n", stderr);
}
void Progress::at(Index done) {
  if (!shown_) return;
  const double time = now();
  const Index tenth = done * 10 / total_;
  // Nothing in the first second: short work needs no progress.
  if (time < next_ || (!bar_ && tenth == tenth_)) return;
  tenth_ = tenth;
  if (bar_) {
    next_ = time + 0.1;
    drawn_ = true;
    const auto filled = static_cast<std::size_t>(done * 30 / total_);
    std::fprintf(stderr, "\r%s [%s%s] %3d %%", what_.c_str(), std::string(filled, '=').c_str(),
                 std::string(30 - (std::min)(filled, std::size_t{30}), ' ').c_str(), static_cast<int>(done * 100 / total_));
  } else {
    std::fprintf(stderr, "%s %s of %s\n", what_.c_str(), std::to_string(done).c_str(), std::to_string(total_).c_str());
  }
}

}  // namespace sae::cli
