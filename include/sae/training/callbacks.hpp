#pragma once
#include <sae/training/trainer.hpp>

#include <chrono>
#include <cmath>
#include <limits>
#include <ostream>
#include <string>

namespace sae::inline SAE_ABI {

/// Rows a second since it was made (or since `resume_at` rows).
class Pace {
 public:
  explicit Pace(Index tokens = 0) : first_(tokens) {}
  double tokens_per_second(Index tokens) const {
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start_;
    return static_cast<double>(tokens - first_) / std::fmax(seconds.count(), 1e-9);
  }

 private:
  Index first_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// Callback of `fit`: a line that is drawn again and again (`redraw`, for a terminal), or a plain line every tenth of
/// the run; at most ten redraws a second. The last step always ends with a line; a run that ended before leaves the cursor on a new
/// one, too.
class ProgressBar {
 public:
  ProgressBar(std::ostream& out, bool redraw) : out_(out), redraw_(redraw) {}
  ~ProgressBar() {
    if (open_line_) out_ << std::endl;
  }
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  void operator()(const StepReport& report) {
    if (first_ < 0) {
      first_ = report.tokens;
      pace_ = Pace(first_);
    }
    const bool last = report.step == report.steps;
    const auto now = std::chrono::steady_clock::now();
    const Index tenth = report.step * 10 / report.steps;
    if (!last && (redraw_ ? now - drawn_ < std::chrono::milliseconds(100) : tenth == tenth_)) return;
    drawn_ = now;
    tenth_ = tenth;
    out_ << (redraw_ ? "\r" : "") << "step " << report.step << "/" << report.steps << "  loss " << rounded(report.loss)
         << "  L0 " << rounded(report.l0) << "  explained variance " << rounded(report.explained_variance) << "  dead "
         << report.dead;
    if (report.tokens > first_) out_ << "  " << static_cast<Index>(pace_.tokens_per_second(report.tokens)) << " tokens/s";
    out_ << (redraw_ ? "   " : "") << (!redraw_ || last ? "\n" : "") << std::flush;
    open_line_ = redraw_ && !last;
  }

 private:
  static double rounded(double x) {
    if (x == 0 || !std::isfinite(x)) return x;
    const double unit = std::pow(10.0, 3 - std::floor(std::log10(std::fabs(x))));
    return std::round(x * unit) / unit;
  }
  std::ostream& out_;
  bool redraw_, open_line_ = false;
  Index first_ = -1, tenth_ = -1;
  Pace pace_;
  std::chrono::steady_clock::time_point drawn_{};
};

/// Progress on a stream, e.g. sae::progress_bar(std::cerr); `redraw` where the stream is a terminal.
inline ProgressBar progress_bar(std::ostream& out, bool redraw = false) { return {out, redraw}; }

/// Callback: one JSON object a report and line, numbers in full precision, what is not finite as null:
///   {"step": 1, "tokens": 1024, "loss": ..., "reconstruction": ..., "<term>": ..., "l0": ..., "explained_variance": ...,
///    "dead_latents": ..., "learning_rate": ..., "sparsity_scale": ..., "gradient_norm": null, "tokens_per_second": ...}
class JsonLinesLog {
 public:
  explicit JsonLinesLog(std::ostream& out) : out_(out) {}
  void operator()(const StepReport& report) {
    if (first_ < 0) {
      first_ = report.tokens;
      pace_ = Pace(first_);
    }
    line_.clear();
    line_ += detail::concat("{\"step\": ", report.step, ", \"tokens\": ", report.tokens);
    number("loss", report.loss);
    number("reconstruction", report.reconstruction);
    for (const auto& [name, value] : report.terms) number(name, value);
    number("l0", report.l0);
    number("explained_variance", report.explained_variance);
    line_ += detail::concat(", \"dead_latents\": ", report.dead);
    number("learning_rate", report.learning_rate);
    number("sparsity_scale", report.sparsity_scale);
    number("gradient_norm", report.gradient_norm);
    number("tokens_per_second",
           report.tokens > first_ ? pace_.tokens_per_second(report.tokens) : std::numeric_limits<double>::quiet_NaN());
    line_ += "}\n";
    out_ << line_ << std::flush;
  }

 private:
  void number(std::string_view name, double value) {
    line_ += detail::concat(", \"", name, "\": ");
    line_ += std::isfinite(value) ? detail::concat(value) : std::string("null");
  }
  std::ostream& out_;
  std::string line_;
  Index first_ = -1;
  Pace pace_;
};
inline JsonLinesLog json_lines_log(std::ostream& out) { return JsonLinesLog(out); }

/// Callback that stops a run when the loss has not fallen by `relative` of its best value for `patience` reports. A loss that is
/// not a number has not fallen.
class EarlyStop {
 public:
  explicit EarlyStop(Index patience, double relative = 1e-3) : patience_(patience), relative_(relative) {
    if (patience < 1) throw_value("EarlyStop: patience = ", patience, " is below 1 report");
    if (!(relative >= 0 && relative < 1)) throw_value("EarlyStop: relative = ", relative, " is not in [0, 1)");
  }
  bool operator()(const StepReport& report) {
    if (report.loss < best_ * (1 - relative_)) {
      best_ = report.loss;
      waited_ = 0;
      return false;
    }
    return ++waited_ >= patience_;
  }

 private:
  Index patience_;
  double relative_;
  double best_ = std::numeric_limits<double>::infinity();
  Index waited_ = 0;
};

}  // namespace sae::inline SAE_ABI
