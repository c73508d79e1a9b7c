#pragma once
#include <sae/core/types.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <utility>
#include <vector>

namespace sae::inline SAE_ABI {

/// |row| of n numbers, float64 inside; NaN or infinity where the row holds one.
template <class Scalar>
double row_norm(const Scalar* row, Index n) {
  double sum = 0;
  for (Index j = 0; j < n; ++j) sum += static_cast<double>(row[j]) * static_cast<double>(row[j]);
  return std::sqrt(sum);
}

/// Largest norm that is kept, `multiple` x median of `norms`: of an even number the lower middle one. Infinity where there is no
/// norm or the median is 0. Reorders nothing outside: the norms are a copy.
inline double norm_limit(std::vector<double> norms, double multiple) {
  if (norms.empty()) return std::numeric_limits<double>::infinity();
  const auto middle = norms.begin() + static_cast<std::ptrdiff_t>((norms.size() - 1) / 2);
  std::nth_element(norms.begin(), middle, norms.end());
  return *middle > 0 ? multiple * *middle : std::numeric_limits<double>::infinity();
}

/// Leaves out rows with a norm above `max_norm` medians.
///
/// Attention sinks (BOS, and now and then a row behind it) have norms a hundred times the others': a handful of rows then carry
/// most of the variance, and every figure that divides by it is about them. The median is that of the first 4,096 rows that are
/// observed and does not change afterwards, so that what is kept depends on the data alone, not on how it is cut into batches.
class RowNormFilter {
 public:
  static constexpr Index median_rows = 4096;

  /// `max_norm` in medians, finite and >= 0; 0 leaves nothing out. Errors: ValueError.
  explicit RowNormFilter(double max_norm = 0) : max_norm_(max_norm), fixed_(max_norm == 0) {
    if (!(max_norm >= 0 && std::isfinite(max_norm)))
      throw_value("RowNormFilter: max_norm = ", max_norm, " is not a number from 0 on (0 leaves nothing out)");
  }
  /// True while the median wants more rows.
  bool wants_more() const { return !fixed_ && static_cast<Index>(sample_.size()) < median_rows; }
  /// Takes the norm of a row into the median; a norm that is not finite does not count.
  void observe(double norm) {
    if (wants_more() && std::isfinite(norm)) sample_.push_back(norm);
  }
  /// Fixes the limit by what was observed.
  void fix() {
    if (fixed_) return;
    limit_ = norm_limit(std::move(sample_), max_norm_);
    sample_.clear();
    fixed_ = true;
  }
  /// Largest norm that is kept; infinity where none is left out. Known after `fix`.
  double limit() const { return limit_; }
  /// False for NaN.
  bool keeps(double norm) const { return norm <= limit_; }

 private:
  double max_norm_;
  bool fixed_;
  double limit_ = std::numeric_limits<double>::infinity();
  std::vector<double> sample_;
};

}  // namespace sae::inline SAE_ABI
