#pragma once
#include <sae/models/objective.hpp>

#include <cmath>
#include <string_view>

namespace sae::inline SAE_ABI {

/// A penalty that counts strong activations once each:
///
///   L = coefficient s(t) mean_b sum_i tanh(scale f[b,i] n_i),      n_i = |d_i|
///
/// With T = 1 - tanh^2(scale f n): dL/df = coefficient s scale / B T n_i, at active entries and at those in the window of a
/// straight-through estimator (T = 1 where f = 0); dL/dn_i = coefficient s scale / B sum_b f T.
/// Source: transformer-circuits.pub/2025/january-update; SAELens saes/jumprelu_sae.py ("tanh").
struct TanhPenalty {
  double coefficient = 1;  ///< lambda >= 0
  double scale = 4;        ///< > 0

  static constexpr std::string_view name = "tanh";
  template <class Visitor>
  void visit_settings(Visitor&& visitor) const {
    visitor("coefficient", coefficient);
    visitor("scale", scale);
  }
  void check(Index, Index) const {
    if (!(coefficient >= 0)) throw_value("TanhPenalty: coefficient = ", coefficient, " is negative");
    if (!(scale > 0)) throw_value("TanhPenalty: scale = ", scale, " is not positive");
  }
  bool needs_decoder_norms() const { return true; }

  template <class Step>
  double apply(Step& step, NoSelection&, Threads&) const {
    using Scalar = typename Step::Scalar;
    const double factor = coefficient * step.sparsity_scale / static_cast<double>(step.rows());
    double sum = 0;
    std::span<Scalar> norm_gradient;
    if (step.wants_gradient) norm_gradient = step.norm_gradient();
    const auto visit = [&](Path<Scalar>& path, bool decodes) {
      const auto& codes = path.entries.codes;
      for (Index e = 0; e < codes.size(); ++e) {
        const Index i = codes.latent(e);
        const auto f = static_cast<double>(codes.value(e)), norm = static_cast<double>(step.decoder_norms[i]);
        const double tanh = std::tanh(scale * f * norm), slope = factor * scale * (1 - tanh * tanh);
        if (decodes) sum += tanh;
        if (!step.wants_gradient) continue;
        path.df[static_cast<std::size_t>(e)] += static_cast<Scalar>(slope * norm);
        if (decodes) norm_gradient[static_cast<std::size_t>(i)] += static_cast<Scalar>(slope * f);
      }
    };
    visit(step.main, true);
    if (step.wants_gradient) visit(step.band, false);
    return factor * sum;
  }
};

}  // namespace sae::inline SAE_ABI
