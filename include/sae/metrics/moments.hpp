#pragma once
#include <sae/core/version.hpp>

#include <cmath>
#include <span>

namespace sae::inline SAE_ABI {

/// Mean, deviation and shape of some numbers x.
struct Moments {
  double mean = 0, mean_square = 0;
  double deviation = 0;               ///< sqrt(E[(x - mean)^2])
  double skewness = 0, kurtosis = 0;  ///< E[((x - mean) / deviation)^3], ^4 (3 of a normal one); 0 where all x are equal
};

/// Out of the sums of x, x^2, x^3, x^4 of `count` > 0 numbers. The sums may be merged by addition; a deviation below 1e-6 of the size of the
/// numbers is lost in their last bits and taken for 0.
inline Moments moments_of_sums(std::span<const double, 4> sums, double count) {
  const double mean = sums[0] / count, square = sums[1] / count, cube = sums[2] / count, fourth = sums[3] / count;
  Moments out{.mean = mean, .mean_square = square};
  const double variance = square - mean * mean;
  if (!(variance > 1e-12 * square)) return out;
  out.deviation = std::sqrt(variance);
  out.skewness = (cube - 3 * mean * square + 2 * mean * mean * mean) / (variance * out.deviation);
  out.kurtosis = (fourth - 4 * mean * cube + 6 * mean * mean * square - 3 * mean * mean * mean * mean) / (variance * variance);
  return out;
}

}  // namespace sae::inline SAE_ABI
