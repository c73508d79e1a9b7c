#pragma once
#include <sae/core/types.hpp>

#include <algorithm>
#include <limits>
#include <span>
#include <vector>

namespace sae::inline SAE_ABI::kernels {

/// Calls offer(j), j < n ascending, at least where key(j) > bound(). Sixteen keys a look without a branch, so that the common case
/// "none of them" is a few vector instructions. The bound may rise from offer to offer; the offers before its last rise are
/// the callee's to refuse, and so is what stands beside a key above the bound.
template <class Key, class Bound, class Offer>
void visit_above(Index n, const Key& key, const Bound& bound, const Offer& offer) {
  constexpr Index step = 16;
  for (Index j = 0; j < n; j += step) {
    const Index count = std::min(step, n - j);
    if (count == step) {
      const auto above = bound();
      int hits = 0;
      for (Index l = 0; l < step; ++l) hits += key(j + l) > above;
      if (hits == 0) continue;
    }
    for (Index l = 0; l < count; ++l) offer(j + l);
  }
}

/// One latent that may be selected: what it is ranked by, its pre-activation, its number.
template <class Scalar>
struct Candidate {
  Scalar key, z;
  int latent;
};

/// The k largest keys of each row of a block, found while the row is shown in pieces with ascending latents.
///
/// A row keeps up to 2k + 64 candidates above its bound; when they are full, the k best stay and the bound rises to the k-th
/// key. Ties go to the lower latent: a later entry equal to the bound is refused, and a compaction ranks by (key, lower latent).
/// NaN is never above a bound and never kept. Cost: one comparison an entry, plus compactions of 2k + 64 candidates: about log(n / k)
/// of them in random order, n / (k + 64) at worst.
template <class Scalar>
class LargestPerRow {
 public:
  /// Starts a block of `rows`; only keys strictly above `floor` count. Storage of earlier blocks is reused.
  void begin(Index rows, Index k, Scalar floor) {
    k_ = k;
    capacity_ = 2 * k + 64;
    bound_.assign(static_cast<std::size_t>(rows), floor);
    count_.assign(static_cast<std::size_t>(rows), 0);
    kept_.resize(static_cast<std::size_t>(rows * capacity_));
  }
  /// Entries of the row at or below it cannot matter any more.
  Scalar bound(Index row) const { return bound_[static_cast<std::size_t>(row)]; }

  void offer(Index row, Scalar key, Scalar z, Index latent) {
    if (!(key > bound(row))) return;
    Index& count = count_[static_cast<std::size_t>(row)];
    if (count == capacity_) compact(row);
    if (!(key > bound(row))) return;
    at(row)[count++] = {key, z, static_cast<int>(latent)};
  }

  /// Shows the pre-activations z of the latents first .. first + z.size() - 1, ranked by key(j), j < z.size().
  template <class Key>
  void take(Index row, Index first, std::span<const Scalar> z, const Key& key) {
    const Scalar* const values = z.data();
    visit_above(
        static_cast<Index>(z.size()), key, [&] { return bound(row); },
        [&](Index j) { offer(row, key(j), values[j], first + j); });
  }
  /// The same, ranked by z itself.
  void take(Index row, Index first, std::span<const Scalar> z) {
    take(row, first, z, [values = z.data()](Index j) { return values[j]; });
  }

  /// The row's selection, at most k, by ascending latent. Valid until the next call that changes the row.
  std::span<const Candidate<Scalar>> finish(Index row) {
    Index& count = count_[static_cast<std::size_t>(row)];
    if (count > k_) compact(row);
    std::sort(at(row), at(row) + count, [](const auto& a, const auto& b) { return a.latent < b.latent; });
    return {at(row), static_cast<std::size_t>(count)};
  }

 private:
  Candidate<Scalar>* at(Index row) { return kept_.data() + row * capacity_; }
  void compact(Index row) {
    Index& count = count_[static_cast<std::size_t>(row)];
    Candidate<Scalar>* const first = at(row);
    std::nth_element(first, first + (k_ - 1), first + count,
                     [](const auto& a, const auto& b) { return a.key > b.key || (a.key == b.key && a.latent < b.latent); });
    count = k_;
    bound_[static_cast<std::size_t>(row)] = first[k_ - 1].key;
  }

  Index k_ = 0, capacity_ = 0;
  std::vector<Scalar> bound_;
  std::vector<Index> count_;
  std::vector<Candidate<Scalar>> kept_;
};

}  // namespace sae::inline SAE_ABI::kernels
