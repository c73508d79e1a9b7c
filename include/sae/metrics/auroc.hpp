#pragma once
#include <sae/core/types.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace sae::inline SAE_ABI {

/// Area under the ROC curve of scores that shall be higher for positive items than for negative ones:
///
///   AUROC = (pairs with s+ > s-  +  1/2 pairs with s+ = s-) / (n+ n-)        (s+, s-) over all pairs of a positive and a negative item
///
/// 1: a threshold tells the classes apart, 1/2: the scores say nothing, 0: they are the wrong way round. Equals the Mann-Whitney U / (n+ n-).
/// Pairs are counted in integers, so the result is exact but for one division.
///
/// \param zeros_positive, zeros_negative  further items of either class whose score is 0 (of a sparse code: not listed), >= 0
/// Ties count one half, infinities are scores like others. Cost: a sort of the scores.
/// \throws ValueError  a class has no item, or a score is NaN.
/// Source: Hanley and McNeil 1982, "The meaning and use of the area under a receiver operating characteristic (ROC) curve".
inline double auroc(std::vector<double> positive, std::vector<double> negative, Index zeros_positive = 0,
                    Index zeros_negative = 0) {
  require_non_negative("auroc: zeros_positive", zeros_positive);
  require_non_negative("auroc: zeros_negative", zeros_negative);
  const std::int64_t of_positive = static_cast<Index>(positive.size()) + zeros_positive;
  const std::int64_t of_negative = static_cast<Index>(negative.size()) + zeros_negative;
  if (of_positive == 0 || of_negative == 0)
    throw_value("auroc: ", of_positive, " positive and ", of_negative, " negative items; each class needs one");
  for (const auto* const scores : {&positive, &negative})
    if (std::any_of(scores->begin(), scores->end(), [](double s) { return std::isnan(s); }))
      throw_value("auroc: a score is NaN");
  std::sort(positive.begin(), positive.end());
  std::sort(negative.begin(), negative.end());

  auto p = positive.begin(), n = negative.begin();
  bool zeros = zeros_positive + zeros_negative > 0;
  std::int64_t below = 0, twice = 0;  // negative items with a lower score; 2 U
  while (p != positive.end() || n != negative.end() || zeros) {
    double score = std::numeric_limits<double>::infinity();
    if (p != positive.end()) score = std::min(score, *p);
    if (n != negative.end()) score = std::min(score, *n);
    if (zeros) score = std::min(score, 0.0);
    std::int64_t won = 0, tied = 0;
    for (; p != positive.end() && *p == score; ++p) ++won;
    for (; n != negative.end() && *n == score; ++n) ++tied;
    if (zeros && score == 0) {
      won += zeros_positive;
      tied += zeros_negative;
      zeros = false;
    }
    twice += won * (2 * below + tied);
    below += tied;
  }
  return static_cast<double>(twice) / (2 * static_cast<double>(of_positive) * static_cast<double>(of_negative));
}

}  // namespace sae::inline SAE_ABI
