#pragma once
#include <sae/core/codes.hpp>
#include <sae/core/error.hpp>
#include <sae/core/threads.hpp>
#include <sae/metrics/auroc.hpp>
#include <sae/models/step.hpp>

#include <algorithm>
#include <cmath>
#include <string_view>
#include <utility>
#include <vector>

namespace sae::inline SAE_ABI {

namespace detail {
/// \throws ValueError  a value is NaN or infinite. `row` is what a row of the codes is.
template <class Scalar>
void require_finite_codes(std::string_view who, const Codes<Scalar>& codes, std::string_view row) {
  for (Index b = 0; b < codes.rows(); ++b)
    for (Index e = codes.begin(b); e < codes.end(b); ++e)
      if (!std::isfinite(codes.value(e))) throw_value(who, ": latent ", codes.latent(e), " is not finite in ", row, " ", b);
}
}  // namespace detail

/// How the codes of an item's rows (a text's tokens) become one row of codes.
enum class Pooling {
  max,   ///< the largest f of each latent; a row in which it is not active counts as 0
  mean,  ///< the mean f over all rows
};

/// Appends to `out` one row: the codes of one item, a row for each of its tokens, pooled latent by latent. What pools to 0 gets no entry.
/// Sums are float64, in the order of the rows. Cost: a sort of the item's entries; nothing grows with F.
/// \throws ValueError  the item has no rows, or a value is not finite. ShapeError: `out` is of other latents.
template <class Scalar>
void pool_rows(const Codes<Scalar>& codes, Pooling how, Codes<Scalar>& out) {
  if (out.latents() != codes.latents())
    throw_shape("pool_rows: codes of ", codes.latents(), " latents, those before have ", out.latents());
  if (codes.rows() == 0) throw_value("pool_rows: an item without rows has no codes");
  detail::require_finite_codes("pool_rows", codes, "row");
  std::vector<std::pair<Index, double>> entries;
  for (Index e = 0; e < codes.size(); ++e) entries.emplace_back(codes.latent(e), static_cast<double>(codes.value(e)));
  std::stable_sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  for (std::size_t first = 0, last = 0; first < entries.size(); first = last) {
    double sum = 0, largest = entries[first].second;
    for (; last < entries.size() && entries[last].first == entries[first].first; ++last) {
      sum += entries[last].second;
      largest = std::max(largest, entries[last].second);
    }
    if (static_cast<Index>(last - first) < codes.rows()) largest = std::max(largest, 0.0);
    const double pooled = how == Pooling::max ? largest : sum / static_cast<double>(codes.rows());
    if (const auto value = static_cast<Scalar>(pooled); value != Scalar(0)) out.push(entries[first].first, value);
  }
  out.finish_row();
}

/// How well one latent tells two classes of items apart.
struct LatentSeparation {
  Index latent = 0;
  double auroc = 0.5;          ///< with its f as the score; below 1/2: it is more active in the negative items
  double mean_difference = 0;  ///< mean f of the positive items - that of the negative ones
  double active_positive = 0,  ///< share of the items in which f != 0
      active_negative = 0;
  bool operator==(const LatentSeparation&) const = default;
};

/// The separation of every latent that is active in some item, by latent; of all others AUROC is 1/2 and the difference 0.
///
/// \param positive, negative  [n+ x F], [n- x F], an item a row (`pool_rows`)
/// Ties as `auroc` counts them, exactly; means are float64, over the items in order. An AUROC is of the items at hand: the best of many
/// latents is better on them than it will be on others (`sparse_probes` holds items out).
/// Memory: proportional to the entries and F. Cost: a sort of each latent's entries; results do not depend on threads.
/// \throws ValueError  a class has no item, or a value is not finite. ShapeError: F differs.
template <class Scalar>
std::vector<LatentSeparation> separate(const Codes<Scalar>& positive, const Codes<Scalar>& negative,
                                       Threads& threads = Threads::shared()) {
  if (positive.latents() != negative.latents())
    throw_shape("separate: codes of ", positive.latents(), " and of ", negative.latents(), " latents");
  if (positive.rows() == 0 || negative.rows() == 0)
    throw_value("separate: ", positive.rows(), " positive and ", negative.rows(), " negative items; each class needs one");
  detail::require_finite_codes("separate", positive, "positive item");
  detail::require_finite_codes("separate", negative, "negative item");
  struct Side {
    std::vector<double> values;  // those that are not 0
    Index zeros = 0;
    double mean = 0, active = 0;
  };
  const auto side_of = [](const Codes<Scalar>& codes, const ByLatent& by_latent, Index latent) {
    Side out;
    const auto i = static_cast<std::size_t>(latent);
    for (int n = by_latent.offsets[i]; n < by_latent.offsets[i + 1]; ++n) {
      const auto f = static_cast<double>(codes.value(by_latent.entries[static_cast<std::size_t>(n)]));
      if (f == 0) continue;
      out.values.push_back(f);
      out.mean += f;
    }
    const auto active = static_cast<Index>(out.values.size());
    out.zeros = codes.rows() - active;
    out.mean /= static_cast<double>(codes.rows());
    out.active = static_cast<double>(active) / static_cast<double>(codes.rows());
    return out;
  };
  ByLatent of_positive, of_negative;
  of_positive.build(positive);
  of_negative.build(negative);
  std::vector<LatentSeparation> all(static_cast<std::size_t>(positive.latents()));
  threads.for_blocks(positive.latents(), 256, [&](Index begin, Index end, Index) {
    for (Index i = begin; i < end; ++i) {
      Side p = side_of(positive, of_positive, i), n = side_of(negative, of_negative, i);
      all[static_cast<std::size_t>(i)] = {.latent = i,
                                          .auroc = auroc(std::move(p.values), std::move(n.values), p.zeros, n.zeros),
                                          .mean_difference = p.mean - n.mean,
                                          .active_positive = p.active,
                                          .active_negative = n.active};
    }
  });
  std::erase_if(all, [](const LatentSeparation& of) { return of.active_positive == 0 && of.active_negative == 0; });
  return all;
}

/// By what latents are ranked: how far their AUROC lies from 1/2, or how large their mean difference is, in either direction.
enum class SeparationOrder { auroc, mean_difference };

/// The `count` latents that separate best, best first; of equals by AUROC the larger mean difference, then the lower latent.
inline std::vector<LatentSeparation> strongest(std::vector<LatentSeparation> of, Index count,
                                               SeparationOrder by = SeparationOrder::auroc) {
  const auto before = [by](const LatentSeparation& a, const LatentSeparation& b) {
    const double far_a = std::abs(a.auroc - 0.5), far_b = std::abs(b.auroc - 0.5);
    if (by == SeparationOrder::auroc && far_a != far_b) return far_a > far_b;
    const double large_a = std::abs(a.mean_difference), large_b = std::abs(b.mean_difference);
    return large_a != large_b ? large_a > large_b : a.latent < b.latent;
  };
  const auto end = of.begin() + std::min(std::max<Index>(count, 0), static_cast<Index>(of.size()));
  std::partial_sort(of.begin(), end, of.end(), before);
  of.erase(end, of.end());
  return of;
}

}  // namespace sae::inline SAE_ABI
