#pragma once
#include <sae/activations/selection.hpp>
#include <sae/kernels/largest.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string_view>
#include <vector>

namespace sae::inline SAE_ABI {

/// GroupMax: the latents stand in k groups of F / k neighbours, and of each group the largest pre-activation stays.
///
///   f[b,i] = relu(z[b,i])  if z[b,i] is the largest of its group in row b, else 0         group(i) = floor(i k / F)
///
/// As TopK with the competition cut in k, so that no rank is needed; L0 <= k by construction.
///
/// Ties   the lower latent.
/// NaN    never active.
/// Cost   one comparison a pre-activation; k candidates a row.
/// Source sparsify 1.3.3, fused_encoder.py ("groupmax").
struct GroupMax {
  Index k = 32;  ///< groups, 1 <= k <= F, and k divides F
  /// Rank by z |W_dec[i]| instead of z, as TopK::rank_by_decoder_norm.
  bool rank_by_decoder_norm = false;
  /// A defect of sparsify, to reproduce its gradients and for nothing else: it takes the largest relu(z) of each group, and in a
  /// group without a positive one the first latent gets dL/dz = dL/df, as if relu had passed it.
  bool gradient_where_zero = false;

  static constexpr std::string_view name = "group_max";

  template <class Visitor>
  void visit_settings(Visitor&& visitor) const {
    visitor("k", k);
    visitor("rank_by_decoder_norm", rank_by_decoder_norm);
    visitor("gradient_where_zero", gradient_where_zero);
  }
  void check(Index latents) const {
    if (k < 1 || k > latents) throw_value("GroupMax: k = ", k, " is not in [1, ", latents, "] (the number of latents)");
    if (latents % k != 0) throw_value("GroupMax: k = ", k, " does not divide the number of latents, ", latents);
  }
  bool needs_decoder_norms() const { return rank_by_decoder_norm; }

  /// No trainable tensors; knows the number of latents.
  template <class Scalar>
  struct Parameters : NoParameters<Scalar> {
    Index latents = 0;
    void resize(Index count) { latents = count; }
  };

  template <class Scalar>
  class Selector {
   public:
    void begin(const GroupMax& config, const Parameters<Scalar>& parameters, std::span<const Scalar> decoder_norms,
               Index rows) {
      norms_ = config.rank_by_decoder_norm ? decoder_norms : std::span<const Scalar>();
      groups_ = config.k;
      size_ = parameters.latents / config.k;
      zeros_ = config.gradient_where_zero;
      best_.assign(static_cast<std::size_t>(rows * groups_), {Scalar(0), Scalar(0), -1});
    }
    Scalar bound(Index /*row*/) const { return zeros_ ? -std::numeric_limits<Scalar>::infinity() : Scalar(0); }
    void take(Index row, Index first, std::span<const Scalar> z) {
      const Index last = first + static_cast<Index>(z.size());
      for (Index i = first; i < last;) {
        const Index group = i / size_, end = std::min(last, (group + 1) * size_);
        auto& best = best_[static_cast<std::size_t>(row * groups_ + group)];
        if (zeros_ && i == group * size_ && z[static_cast<std::size_t>(i - first)] <= Scalar(0))
          best = {Scalar(0), z[static_cast<std::size_t>(i - first)], static_cast<int>(i)};
        for (; i < end; ++i) {
          const Scalar value = z[static_cast<std::size_t>(i - first)];
          const Scalar key = norms_.empty() ? value : value * norms_[static_cast<std::size_t>(i)];
          if (key > best.key) best = {key, value, static_cast<int>(i)};
        }
      }
    }
    static void merge(std::span<Selector> /*blocks*/) {}
    void emit(Index row, Entries<Scalar>& active, Entries<Scalar>& /*band*/) {
      for (Index group = 0; group < groups_; ++group) {
        const auto& best = best_[static_cast<std::size_t>(row * groups_ + group)];
        if (best.latent >= 0) active.push(best.latent, std::max(best.z, Scalar(0)), best.z);
      }
    }

   private:
    std::span<const Scalar> norms_;
    Index groups_ = 0, size_ = 1;
    bool zeros_ = false;
    std::vector<kernels::Candidate<Scalar>> best_;
  };

  /// The selection is a constant, relu passes where f > 0 (every entry that was emitted, but for `gradient_where_zero`).
  template <class Scalar>
  void backward(const Backward<Scalar>& at, const Parameters<Scalar>&, Parameters<Scalar>& /*gradient*/) const {
    for (std::size_t e = 0; e < at.dz.size(); ++e) at.dz[e] = at.df[e];
  }
};

}  // namespace sae::inline SAE_ABI
