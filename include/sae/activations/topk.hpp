#pragma once
#include <sae/activations/selection.hpp>
#include <sae/kernels/largest.hpp>

#include <optional>
#include <string_view>
#include <type_traits>

namespace sae::inline SAE_ABI {

/// TopK: of each row's pre-activations the k largest stay, the rest become zero.
///
///   f[b,i] = relu(z[b,i])  if z[b,i] is among the k largest of row b, else 0        z = (x - b_dec) W_enc^T + b_enc
///
/// Sparsity is a constraint and not a term of the loss: no coefficient to tune, L0 <= k by construction (a row with fewer than
/// k positive pre-activations has fewer active latents). Latents that win nowhere get no gradient; train with AuxK
/// (training/aux_k.hpp) or expect dead latents at large F.
///
/// Ties   equal values stay in ascending latent order, so that a result never depends on tiles or threads.
/// NaN    a row with NaN selects nothing; the trainer refuses such rows.
/// Cost   one comparison a pre-activation, a few compactions of at most 2k + 64 candidates a row.
/// Source Gao et al. 2024, "Scaling and evaluating sparse autoencoders", arXiv:2406.04093, eq. 4.
struct TopK {
  Index k = 32;  ///< latents kept per row, 1 <= k <= F
  /// Rank by z * |W_dec[i]| (what the latent adds to the reconstruction) instead of z. f stays relu(z): the norm decides which
  /// entries are kept and nothing else. For free decoders; SAELens' `rescale_acts_by_decoder_norm`.
  bool rank_by_decoder_norm = false;

  static constexpr std::string_view name = "topk";
  static constexpr bool has_row_k = true;

  template <class Visitor>
  void visit_settings(Visitor&& visitor) const {
    visitor("k", k);
    visitor("rank_by_decoder_norm", rank_by_decoder_norm);
  }
  void check(Index latents) const {
    if (k < 1 || k > latents) throw_value("TopK: k = ", k, " is not in [1, ", latents, "] (the number of latents)");
  }
  bool needs_decoder_norms() const { return rank_by_decoder_norm; }

  template <class Scalar>
  using Parameters = NoParameters<Scalar>;

  /// Sees a block of rows' pre-activations tile by tile, latents ascending, and keeps what may be active; the [B x F] matrix
  /// never exists.
  template <class Scalar>
  class Selector {
   public:
    /// decoder_norms: [F] where `needs_decoder_norms`, else empty.
    void begin(const TopK& config, const Parameters<Scalar>&, std::span<const Scalar> decoder_norms, Index rows) {
      norms_ = config.rank_by_decoder_norm ? decoder_norms : std::span<const Scalar>();
      k_ = config.k;
      largest_.begin(rows, config.k, Scalar(0));  // relu: what is not positive cannot be active
    }
    /// Entries of the row at or below it cannot matter any more.
    Scalar bound(Index row) const { return largest_.bound(row); }
    void take(Index row, Index first, std::span<const Scalar> z) {
      if (norms_.empty()) return largest_.take(row, first, z);
      const Scalar *const values = z.data(), *const norms = norms_.data() + first;
      largest_.take(row, first, z, [&](Index j) { return values[j] * norms[j]; });
    }
    std::optional<ScreenRule> screened() const requires(std::is_same_v<Scalar, float>) {
      return ScreenRule{.k = k_, .norms = norms_.empty() ? nullptr : norms_.data()};
    }
    void offer(Index row, Index latent, Scalar z) {
      largest_.offer(row, norms_.empty() ? z : z * norms_[static_cast<std::size_t>(latent)], z, latent);
    }
    /// Called once when all blocks have seen everything; a rank over the whole batch (BatchTopK) works here.
    static void merge(std::span<Selector> /*blocks*/) {}
    void emit(Index row, Entries<Scalar>& active, Entries<Scalar>& /*band*/) {
      for (const auto& e : largest_.finish(row)) active.push(e.latent, e.z, e.z);
    }

   private:
    Index k_ = 0;
    kernels::LargestPerRow<Scalar> largest_;
    std::span<const Scalar> norms_;
  };

  /// The selection is a constant, relu passes where f > 0 (every entry that was emitted).
  template <class Scalar>
  void backward(const Backward<Scalar>& at, const Parameters<Scalar>&, Parameters<Scalar>& /*gradient*/) const {
    for (std::size_t e = 0; e < at.dz.size(); ++e) at.dz[e] = at.df[e];
  }
};

}  // namespace sae::inline SAE_ABI
