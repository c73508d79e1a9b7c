#pragma once
#include <sae/core/codes.hpp>
#include <sae/core/error.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace sae::inline SAE_ABI {

/// One activation of a latent: how strong, and in which row of the data.
struct TopActivation {
  double value = 0;
  Index row = 0;
  bool operator==(const TopActivation&) const = default;
};

/// The strongest activations of every latent, or of chosen ones, in one pass over the codes of a stream of rows.
///
/// An activation counts where f > 0 (so NaN never does). Order: larger first, of equals the earlier row; the result is that of
/// sorting everything, however the rows are cut into batches. Memory: 16 bytes x count for each latent that is watched, and 16
/// bytes for every latent. Cost: an entry that does not enter costs one comparison.
class TopActivations {
 public:
  /// Watches all latents. Errors: ValueError for count < 1.
  TopActivations(Index latents, Index count) : TopActivations(latents, count, {}, true) {}
  /// Watches these latents, in any order, each once. Errors: ValueError for one that is not in [0, latents).
  TopActivations(Index latents, Index count, const std::vector<Index>& chosen)
      : TopActivations(latents, count, chosen, false) {}

  Index latents() const { return static_cast<Index>(active_.size()); }
  Index count() const { return count_; }
  Index rows() const { return rows_; }  ///< seen so far
  bool watches(Index latent) const { return slot_[checked(latent)] >= 0; }

  /// Takes the codes of the next rows, the first of which is row `rows()` of the data.
  template <class Scalar>
  void add(const Codes<Scalar>& codes) {
    add(codes, rows_);
  }
  /// The same with rows numbered from `first_row` on (parts of the data that are later merged).
  template <class Scalar>
  void add(const Codes<Scalar>& codes, Index first_row) {
    if (codes.latents() != latents()) throw_shape("TopActivations: codes of ", codes.latents(), " latents, not ", latents());
    for (Index b = 0; b < codes.rows(); ++b)
      for (Index e = codes.begin(b); e < codes.end(b); ++e) {
        const auto value = static_cast<double>(codes.value(e));
        if (!(value > 0)) continue;
        const auto latent = static_cast<std::size_t>(codes.latent(e));
        ++active_[latent];
        if (slot_[latent] >= 0) offer(heaps_[static_cast<std::size_t>(slot_[latent])], {value, first_row + b});
      }
    rows_ += codes.rows();
  }
  /// Takes in what another one saw of other rows of the same data. Errors: ShapeError for other latents or another count.
  void merge(const TopActivations& other) {
    if (other.latents() != latents() || other.count_ != count_ || other.slot_ != slot_)
      throw_shape("TopActivations: another one of ", other.latents(), " latents, ", other.count_,
                  " activations each, does not watch the same as this one");
    rows_ += other.rows_;
    for (std::size_t i = 0; i < active_.size(); ++i) active_[i] += other.active_[i];
    for (std::size_t h = 0; h < heaps_.size(); ++h)
      for (const TopActivation& activation : other.heaps_[h]) offer(heaps_[h], activation);
  }

  /// The strongest activations of a watched latent, strongest first; fewer than `count` where it was active in fewer rows.
  /// Errors: ValueError for a latent that is not watched.
  std::vector<TopActivation> top(Index latent) const {
    std::vector<TopActivation> out = heap(latent);
    std::sort(out.begin(), out.end(), stronger);
    return out;
  }
  /// Largest activation of a watched latent; 0 where it was never active.
  double max(Index latent) const {
    double largest = 0;
    for (const TopActivation& activation : heap(latent)) largest = (std::max)(largest, activation.value);
    return largest;
  }
  Index active_rows(Index latent) const { return active_[checked(latent)]; }
  /// Share of the rows in which a latent was active; 0 before the first row.
  double density(Index latent) const {
    return rows_ == 0 ? 0.0 : static_cast<double>(active_rows(latent)) / static_cast<double>(rows_);
  }

 private:
  using Heap = std::vector<TopActivation>;  // the weakest in front

  TopActivations(Index latents, Index count, const std::vector<Index>& chosen, bool all) : count_(count) {
    if (latents < 1) throw_value("TopActivations: latents = ", latents, " is below 1");
    if (count < 1) throw_value("TopActivations: count = ", count, " is below 1");
    active_.resize(static_cast<std::size_t>(latents));
    slot_.assign(static_cast<std::size_t>(latents), -1);
    if (all) {
      for (std::size_t i = 0; i < slot_.size(); ++i) slot_[i] = static_cast<Index>(i);
      heaps_.resize(slot_.size());
      return;
    }
    for (const Index latent : chosen) {
      if (slot_[checked(latent)] >= 0) throw_value("TopActivations: latent ", latent, " is named twice");
      slot_[checked(latent)] = static_cast<Index>(heaps_.size());
      heaps_.emplace_back();
    }
  }

  std::size_t checked(Index latent) const {
    if (latent < 0 || latent >= latents())
      throw_value("latent ", latent, " is not in [0, ", latents(), ") (the number of latents)");
    return static_cast<std::size_t>(latent);
  }
  const Heap& heap(Index latent) const {
    const Index slot = slot_[checked(latent)];
    if (slot < 0) throw_value("TopActivations: latent ", latent, " is not watched");
    return heaps_[static_cast<std::size_t>(slot)];
  }
  static bool stronger(const TopActivation& a, const TopActivation& b) {
    return a.value != b.value ? a.value > b.value : a.row < b.row;
  }
  void offer(Heap& heap, const TopActivation& activation) const {
    if (static_cast<Index>(heap.size()) == count_) {
      if (!stronger(activation, heap.front())) return;
      std::pop_heap(heap.begin(), heap.end(), stronger);
      heap.pop_back();
    }
    heap.push_back(activation);
    std::push_heap(heap.begin(), heap.end(), stronger);
  }

  Index count_ = 0, rows_ = 0;
  std::vector<std::int64_t> active_;  ///< rows in which each latent was active
  std::vector<Index> slot_;           ///< heap of each latent; -1: not watched
  std::vector<Heap> heaps_;
};

}  // namespace sae::inline SAE_ABI
