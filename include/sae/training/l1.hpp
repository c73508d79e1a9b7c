#pragma once
#include <sae/models/objective.hpp>

#include <string_view>

namespace sae::inline SAE_ABI {

/// L1 sparsity penalty, the term that makes a ReLU autoencoder sparse.
///
///   L1 = coefficient s(t) mean_b sum_i f[b,i] |d_i|       (weighted by the decoder norm: for a free decoder)
///   L1 = coefficient s(t) mean_b sum_i |f[b,i]|           (not weighted: for a unit-norm decoder)
///
/// s(t) is the sparsity warm-up. Gradients: dL/df = coefficient s / B n_i at active entries, dL/dn_i = coefficient s / B sum_b f[b,i].
/// Source: SAELens saes/standard_sae.py (weighted); Bricken et al. 2023 (unit norm).
struct L1 {
  double coefficient = 1;  ///< lambda >= 0; its scale follows the reconstruction error, a sum over D
  bool weighted_by_decoder_norm = true;

  static constexpr std::string_view name = "l1";
  template <class Visitor>
  void visit_settings(Visitor&& visitor) const {
    visitor("coefficient", coefficient);
    visitor("weighted_by_decoder_norm", weighted_by_decoder_norm);
  }
  void check(Index, Index) const { require_non_negative("L1: coefficient", coefficient); }
  bool needs_decoder_norms() const { return weighted_by_decoder_norm; }

  template <class Step>
  double apply(Step& step, NoSelection&, Threads&) const {
    using Scalar = typename Step::Scalar;
    const double scale = coefficient * step.sparsity_scale / static_cast<double>(step.rows());
    const auto unit = static_cast<Scalar>(scale);
    const auto& codes = step.main.entries.codes;
    std::span<Scalar> norm_gradient;
    if (weighted_by_decoder_norm && step.wants_gradient) norm_gradient = step.norm_gradient();
    double sum = 0;
    for (Index e = 0; e < codes.size(); ++e) {
      const Index i = codes.latent(e);
      const Scalar f = codes.value(e);
      const Scalar norm = weighted_by_decoder_norm ? step.decoder_norms[i] : Scalar(1);
      sum += static_cast<double>(f < Scalar(0) ? -f : f) * static_cast<double>(norm);
      if (!step.wants_gradient || f == Scalar(0)) continue;
      step.main.df[static_cast<std::size_t>(e)] += f < Scalar(0) ? -unit * norm : unit * norm;
      if (weighted_by_decoder_norm) norm_gradient[static_cast<std::size_t>(i)] += unit * (f < Scalar(0) ? -f : f);
    }
    return scale * sum;
  }
};

}  // namespace sae::inline SAE_ABI
