#pragma once
#include <sae/activations/selection.hpp>
#include <sae/kernels/largest.hpp>

#include <cmath>
#include <optional>
#include <string_view>
#include <type_traits>

namespace sae::inline SAE_ABI {

/// AbsTopK: of each row's pre-activations the k largest in magnitude stay, with their sign.
///
///   f[b,i] = z[b,i]  if |z[b,i]| is among the k largest of row b, else 0                 z = (x - b_dec) W_enc^T + b_enc
///
/// A latent writes along its direction or against it, so that one latent can stand for both ends of an axis. With AuxK the dead
/// latents compete by magnitude, too (AuxK::by_magnitude).
///
/// Ties   equal magnitudes stay in ascending latent order. z = 0 is never active.
/// NaN    never active.
/// Cost   as TopK.
/// Source SAELens 6.54 saes/abstopk_sae.py.
struct AbsTopK {
  Index k = 32;  ///< latents kept per row, 1 <= k <= F
  /// Rank by |z| |W_dec[i]| instead of |z|, as TopK::rank_by_decoder_norm.
  bool rank_by_decoder_norm = false;

  static constexpr std::string_view name = "abs_topk";
  static constexpr bool has_row_k = true;

  template <class Visitor>
  void visit_settings(Visitor&& visitor) const {
    visitor("k", k);
    visitor("rank_by_decoder_norm", rank_by_decoder_norm);
  }
  void check(Index latents) const {
    if (k < 1 || k > latents) throw_value("AbsTopK: k = ", k, " is not in [1, ", latents, "] (the number of latents)");
  }
  bool needs_decoder_norms() const { return rank_by_decoder_norm; }

  template <class Scalar>
  using Parameters = NoParameters<Scalar>;

  template <class Scalar>
  class Selector {
   public:
    void begin(const AbsTopK& config, const Parameters<Scalar>&, std::span<const Scalar> decoder_norms, Index rows) {
      norms_ = config.rank_by_decoder_norm ? decoder_norms : std::span<const Scalar>();
      k_ = config.k;
      largest_.begin(rows, config.k, Scalar(0));
    }
    Scalar bound(Index row) const { return largest_.bound(row); }
    void take(Index row, Index first, std::span<const Scalar> z) {
      const Scalar* const values = z.data();
      if (norms_.empty()) return largest_.take(row, first, z, [&](Index j) { return std::abs(values[j]); });
      const Scalar* const norms = norms_.data() + first;
      largest_.take(row, first, z, [&](Index j) { return std::abs(values[j]) * norms[j]; });
    }
    std::optional<ScreenRule> screened() const requires(std::is_same_v<Scalar, float>) {
      return ScreenRule{.k = k_, .norms = norms_.empty() ? nullptr : norms_.data(), .magnitude = true};
    }
    void offer(Index row, Index latent, Scalar z) {
      largest_.offer(row, norms_.empty() ? std::abs(z) : std::abs(z) * norms_[static_cast<std::size_t>(latent)], z, latent);
    }
    static void merge(std::span<Selector> /*blocks*/) {}
    void emit(Index row, Entries<Scalar>& active, Entries<Scalar>& /*band*/) {
      for (const auto& e : largest_.finish(row)) active.push(e.latent, e.z, e.z);
    }

   private:
    Index k_ = 0;
    kernels::LargestPerRow<Scalar> largest_;
    std::span<const Scalar> norms_;
  };

  /// The selection is a constant, f = z where it is active.
  template <class Scalar>
  void backward(const Backward<Scalar>& at, const Parameters<Scalar>&, Parameters<Scalar>& /*gradient*/) const {
    for (std::size_t e = 0; e < at.dz.size(); ++e) at.dz[e] = at.df[e];
  }
};

}  // namespace sae::inline SAE_ABI
