#pragma once
#include <sae/activations/selection.hpp>
#include <sae/kernels/largest.hpp>

#include <limits>
#include <optional>
#include <string_view>
#include <vector>

namespace sae::inline SAE_ABI {

/// ReLU: every positive pre-activation is active.
///
///   f[b,i] = max(z[b,i], 0)                                z = (x - b_dec) W_enc^T + b_enc
///
/// Nothing makes it sparse by itself: train it with an L1 penalty (training/l1.hpp).
/// NaN    a NaN is not positive, hence not active; a row with NaN selects nothing.
/// Source Bricken et al. 2023, "Towards Monosemanticity".
struct ReLU {
  static constexpr std::string_view name = "relu";

  void check(Index /*latents*/) const {}
  bool needs_decoder_norms() const { return false; }

  template <class Scalar>
  using Parameters = NoParameters<Scalar>;

  template <class Scalar>
  class Selector {
   public:
    void begin(const ReLU&, const Parameters<Scalar>&, std::span<const Scalar> /*decoder_norms*/, Index rows) {
      if (static_cast<Index>(rows_.size()) < rows) rows_.resize(static_cast<std::size_t>(rows));
      for (auto& row : rows_) row.clear();
    }
    Scalar bound(Index /*row*/) const { return Scalar(0); }
    void take(Index row, Index first, std::span<const Scalar> z) {
      auto& kept = rows_[static_cast<std::size_t>(row)];
      kernels::visit_above(
          z, [] { return Scalar(0); },
          [&](Index j) {
            kept.push_back({static_cast<int>(first + j), z[static_cast<std::size_t>(j)]});
          });
    }
    std::optional<ScreenRule> screened() const { return ScreenRule{.bound = std::numeric_limits<float>::denorm_min()}; }
    void offer(Index row, Index latent, Scalar z) {
      if (z > Scalar(0)) rows_[static_cast<std::size_t>(row)].push_back({static_cast<int>(latent), z});
    }
    static void merge(std::span<Selector> /*blocks*/) {}
    void emit(Index row, Entries<Scalar>& active, Entries<Scalar>& /*band*/) {
      for (const Kept& e : rows_[static_cast<std::size_t>(row)]) active.push(e.latent, e.z, e.z);
    }

   private:
    struct Kept {
      int latent;
      Scalar z;
    };
    std::vector<std::vector<Kept>> rows_;
  };

  template <class Scalar>
  void backward(const Backward<Scalar>& at, const Parameters<Scalar>&, Parameters<Scalar>& /*gradient*/) const {
    for (std::size_t e = 0; e < at.dz.size(); ++e) at.dz[e] = at.df[e];  // active means z > 0
  }
};

}  // namespace sae::inline SAE_ABI
