#pragma once
#include <sae/models/objective.hpp>

#include <cmath>
#include <span>
#include <string_view>
#include <vector>

namespace sae::inline SAE_ABI {

/// A penalty that counts strong activations once each:
///
///   L = coefficient s(t) mean_b sum_i tanh(scale f[b,i] n_i),      n_i = |d_i|
///
/// With T = 1 - tanh^2(scale f n): dL/df = coefficient s scale / B T n_i, at active entries and at those in the window of a
/// straight-through estimator (T = 1 where f = 0); dL/dn_i = coefficient s scale / B sum_b f T.
///
/// With a frequency scale c > 0 (tanh-quad) latents that are active in more than a share of about c of the rows pay more:
///
///   L = coefficient s(t) sum_i q_i (1 + q_i / c),      q_i = mean_b tanh(scale f[b,i] n_i)
///
/// whose derivatives are those above times 1 + 2 q_i / c.
/// Source: transformer-circuits.pub/2025/january-update; SAELens saes/jumprelu_sae.py ("tanh"); llamascopium
/// models/sparse_dictionary.py ("tanh-quad", c = 0.01).
struct TanhPenalty {
  double coefficient = 1;      ///< lambda >= 0
  double scale = 4;            ///< > 0
  double frequency_scale = 0;  ///< c > 0; 0: without the quadratic part

  static constexpr std::string_view name = "tanh";
  template <class Visitor>
  void visit_settings(Visitor&& visitor) const {
    visitor("coefficient", coefficient);
    visitor("scale", scale);
    visitor("frequency_scale", frequency_scale);
  }
  void check(Index, Index) const {
    require_non_negative("TanhPenalty: coefficient", coefficient);
    require_positive("TanhPenalty: scale", scale);
    require_non_negative("TanhPenalty: frequency_scale", frequency_scale);
  }
  bool needs_decoder_norms() const { return true; }

  template <class Scalar>
  class Selection : public KeptMemory<Scalar> {
    friend struct TanhPenalty;
    std::vector<double> weight_;  ///< 1 + 2 q_i / c
  };

  template <class Step>
  double apply(Step& step, Selection<typename Step::Scalar>& selection, Threads&) const {
    using Scalar = typename Step::Scalar;
    const double factor = coefficient * step.sparsity_scale / static_cast<double>(step.rows());
    double sum = 0;
    std::vector<double>& weight = selection.weight_;
    weight.clear();
    if (frequency_scale > 0) {
      weight.assign(static_cast<std::size_t>(step.latents()), 0.0);
      const auto& codes = step.main.entries.codes;
      for (Index e = 0; e < codes.size(); ++e) {
        const Index i = codes.latent(e);
        weight[static_cast<std::size_t>(i)] +=
            std::tanh(scale * static_cast<double>(codes.value(e)) * static_cast<double>(step.decoder_norms[i]));
      }
      for (double& w : weight) {
        const double frequency = w / static_cast<double>(step.rows());
        sum += w * frequency / frequency_scale;
        w = 1 + 2 * frequency / frequency_scale;
      }
    }
    std::span<Scalar> norm_gradient;
    if (step.wants_gradient) norm_gradient = step.norm_gradient();
    const auto visit = [&](Path<Scalar>& path, bool decodes) {
      const auto& codes = path.entries.codes;
      for (Index e = 0; e < codes.size(); ++e) {
        const Index i = codes.latent(e);
        const auto f = static_cast<double>(codes.value(e)), norm = static_cast<double>(step.decoder_norms[i]);
        const double tanh = std::tanh(scale * f * norm), each = weight.empty() ? 1.0 : weight[static_cast<std::size_t>(i)];
        const double slope = factor * scale * (1 - tanh * tanh) * each;
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
