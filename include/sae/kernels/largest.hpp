#pragma once
#include <sae/core/types.hpp>
#include <sae/kernels/float_kernels.hpp>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <type_traits>
#include <vector>

namespace sae::inline SAE_ABI::kernels {

/// Calls offer(j), j ascending, where keys[j] > bound(); the bound may rise from offer to offer. NaN is above nothing.
template <class Scalar, class Bound, class Offer>
void visit_above(std::span<const Scalar> keys, const Bound& bound, const Offer& offer) {
  const Scalar* const key = keys.data();
  const auto n = static_cast<Index>(keys.size());
  if constexpr (std::is_same_v<Scalar, float>) {
    const auto next = detail::float_kernels().next_above;
    for (Index j = next(key, 0, n, bound()); j < n; j = next(key, j + 1, n, bound())) offer(j);
  } else {
    for (Index j = 0; j < n; ++j)
      if (key[j] > bound()) offer(j);
  }
}
/// The same of keys that are computed: offer(j, key(j)) for j < n.
template <class Scalar, class Key, class Bound, class Offer>
void visit_keys_above(Index n, const Key& key, const Bound& bound, const Offer& offer) {
  constexpr Index step = 64;
  Scalar keys[step];
  for (Index first = 0; first < n; first += step) {
    const Index count = std::min(step, n - first);
    for (Index l = 0; l < count; ++l) keys[l] = key(first + l);
    visit_above(std::span<const Scalar>(keys, static_cast<std::size_t>(count)), bound,
                [&](Index l) { offer(first + l, keys[l]); });
  }
}

/// One latent that may be selected: what it is ranked by, its pre-activation, its number.
template <class Scalar>
struct Candidate {
  Scalar key, z;
  int latent;
};

/// Something between `from` and the k-th largest of n keys, 1 <= k <= n, none NaN, nearer to it with each halving; `from` where that is
/// no less. After 32 it is the k-th largest.
inline float toward_kth_largest(const float* keys, Index n, Index k, float from, int halvings) {
  // The least t that fewer than k keys are above, found by halving the numbers between; as integers floats ascend in their order.
  const auto ordered = [](float x) {
    const auto bits = std::bit_cast<std::int32_t>(x);
    return bits < 0 ? bits ^ 0x7FFFFFFF : bits;
  };
  const auto value = [](std::int32_t x) { return std::bit_cast<float>(x < 0 ? x ^ 0x7FFFFFFF : x); };
  const auto& kernels = detail::float_kernels();
  float least, most;
  kernels.range(keys, n, &least, &most);
  std::int64_t low = ordered(std::max(from, least)), high = ordered(most);
  for (; low < high && halvings > 0; --halvings) {
    const std::int64_t middle = low + (high - low) / 2;
    if (kernels.count_above(keys, n, value(static_cast<std::int32_t>(middle))) < k) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return value(static_cast<std::int32_t>(low));
}

/// The k-th largest of n keys, 1 <= k <= n, none NaN.
template <class Scalar>
Scalar kth_largest(const Scalar* keys, Index n, Index k) {
  if constexpr (std::is_same_v<Scalar, float>) {
    return toward_kth_largest(keys, n, k, -std::numeric_limits<float>::infinity(), 32);
  } else {
    std::vector<Scalar> copy(keys, keys + n);
    std::nth_element(copy.begin(), copy.begin() + (k - 1), copy.end(), std::greater<>());
    return copy[static_cast<std::size_t>(k - 1)];
  }
}

/// Room of `visit_largest`, kept from call to call.
template <class Scalar>
struct LargestRoom {
  std::vector<Scalar> keys;
  std::vector<int> places;
};
/// Calls take(j), j ascending, for the k largest of those keys that lie above the floor; of equal ones the first come in. NaN is above
/// nothing. Cost: one pass, and some 20 over the keys above the floor where they are more than k.
template <class Scalar, class Take>
void visit_largest(std::span<const Scalar> keys, Index k, Scalar floor, LargestRoom<Scalar>& room, const Take& take) {
  if (room.keys.size() < keys.size()) {
    room.keys.resize(keys.size());
    room.places.resize(keys.size());
  }
  Scalar* const above = room.keys.data();
  int* const places = room.places.data();
  Index count = 0;  // without branches: which keys stay is a matter of chance
  for (std::size_t j = 0; j < keys.size(); ++j) {
    above[count] = keys[j];
    places[count] = static_cast<int>(j);
    count += keys[j] > floor;
  }
  if (k <= 0) return;
  if (count > k) {
    const Scalar bound = kth_largest(above, count, k);
    Index equal = k;  // how many of those that equal the bound have a place
    for (Index n = 0; n < count; ++n) equal -= above[n] > bound;
    Index kept = 0;
    for (Index n = 0; n < count; ++n) {
      places[kept] = places[n];
      const bool ties = above[n] == bound;
      kept += above[n] > bound || (ties && equal > 0);
      equal -= ties;
    }
    count = kept;
  }
  for (Index n = 0; n < count; ++n) take(Index{places[n]});
}

/// The k largest keys of each row of a block, found while the row is shown in pieces with ascending latents.
///
/// A row keeps up to 2k + 64 candidates above its bound; when they are full, the k best stay and the bound rises to the k-th
/// key. Ties go to the lower latent: a later entry equal to the bound is refused, and of equal candidates the first stay.
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
    const auto room = static_cast<std::size_t>(rows * capacity_);
    keys_.resize(room);
    values_.resize(room);
    latents_.resize(room);
  }
  /// Entries of the row at or below it cannot matter any more.
  Scalar bound(Index row) const { return bound_[static_cast<std::size_t>(row)]; }

  /// Latents of a row ascend.
  void offer(Index row, Scalar key, Scalar z, Index latent) {
    if (!(key > bound(row))) return;
    Index& count = count_[static_cast<std::size_t>(row)];
    if (count == capacity_) compact(row);
    if (!(key > bound(row))) return;
    const auto at = static_cast<std::size_t>(row * capacity_ + count++);
    keys_[at] = key;
    values_[at] = z;
    latents_[at] = static_cast<int>(latent);
  }

  /// Shows the pre-activations z of the latents first .. first + z.size() - 1, ranked by key(j), j < z.size().
  template <class Key>
  void take(Index row, Index first, std::span<const Scalar> z, const Key& key) {
    visit_keys_above<Scalar>(
        static_cast<Index>(z.size()), key, [&] { return bound(row); },
        [&](Index j, Scalar above) { offer(row, above, z[static_cast<std::size_t>(j)], first + j); });
  }
  /// The same, ranked by z itself.
  void take(Index row, Index first, std::span<const Scalar> z) {
    visit_above(
        z, [&] { return bound(row); },
        [&](Index j) {
          const Scalar value = z[static_cast<std::size_t>(j)];
          offer(row, value, value, first + j);
        });
  }

  /// The row's selection, at most k, by ascending latent. Valid until the next call.
  std::span<const Candidate<Scalar>> finish(Index row) {
    Index& count = count_[static_cast<std::size_t>(row)];
    if (count > k_) compact(row);
    selection_.clear();
    for (auto at = static_cast<std::size_t>(row * capacity_), end = at + static_cast<std::size_t>(count); at < end; ++at)
      selection_.push_back({keys_[at], values_[at], latents_[at]});
    return selection_;
  }

 private:
  void compact(Index row) {
    Index& count = count_[static_cast<std::size_t>(row)];
    const auto first = static_cast<std::size_t>(row * capacity_), last = first + static_cast<std::size_t>(count);
    const Scalar bound = kth_largest(keys_.data() + first, count, k_);
    Index equal = k_;  // how many of those that equal the bound have a place
    for (std::size_t at = first; at < last; ++at) equal -= keys_[at] > bound;
    std::size_t to = first;
    for (std::size_t at = first; at < last; ++at) {
      const bool stays = keys_[at] > bound || (keys_[at] == bound && equal-- > 0);
      keys_[to] = keys_[at];
      values_[to] = values_[at];
      latents_[to] = latents_[at];
      to += stays;
    }
    count = static_cast<Index>(to - first);
    bound_[static_cast<std::size_t>(row)] = bound;
  }

  Index k_ = 0, capacity_ = 0;
  std::vector<Scalar> bound_;
  std::vector<Index> count_;
  std::vector<Scalar> keys_, values_;  ///< candidates of a row, by ascending latent: [rows x capacity]
  std::vector<int> latents_;
  std::vector<Candidate<Scalar>> selection_;
};

}  // namespace sae::inline SAE_ABI::kernels
