#pragma once
#include <sae/activations/jump_relu.hpp>
#include <sae/models/objective.hpp>
#include <sae/training/gathered_latents.hpp>

#include <string_view>
#include <vector>

namespace sae::inline SAE_ABI {

/// Pulls the pre-activations of latents that do not fire up to their thresholds, so that dead latents come back to life; for
/// activations with a threshold (JumpReLU):
///
///   L = coefficient mean_b sum_{i in S} relu(theta_i - z[b,i]) n_i         n_i = |d_i|
///
/// S are the dead latents (SAELens), or all (`dead_only` off: Anthropic, January 2025). With Q = 1[z < theta]:
/// dz = -coefficient / B Q n_i, dL/dtheta_i = coefficient / B n_i sum_b Q, dL/dn_i = coefficient / B sum_b relu(theta_i - z).
/// The sparsity warm-up does not scale it.
/// Cost   a dense product [B x D] [D x #S] and an entry for each pre-activation below its threshold.
/// Source: transformer-circuits.pub/2025/january-update; SAELens 6.54 saes/jumprelu_sae.py.
struct PreActivationLoss {
  double coefficient = 3e-6;  ///< >= 0
  bool dead_only = true;

  static constexpr std::string_view name = "pre_activation";
  template <class Visitor>
  void visit_settings(Visitor&& visitor) const {
    visitor("coefficient", coefficient);
    visitor("dead_only", dead_only);
  }
  void check(Index, Index) const { require_non_negative("PreActivationLoss: coefficient", coefficient); }
  bool needs_decoder_norms() const { return true; }

  template <class Step>
  double apply(Step& step, NoSelection&, Threads& threads) const {
    using Scalar = typename Step::Scalar;
    std::vector<Index> chosen;
    for (Index i = 0; i < step.latents(); ++i)
      if (!dead_only || (!step.dead.empty() && step.dead[static_cast<std::size_t>(i)] != 0)) chosen.push_back(i);
    if (chosen.empty() || coefficient == 0) return 0;
    const auto* const own = detail::own_parameters<JumpReLU>(*step.activation);
    if (own == nullptr) throw_value("PreActivationLoss: the model has no thresholds; it goes with JumpReLU");
    const Tensor<Scalar>& theta = own->threshold;
    auto* const gradient = step.wants_gradient ? detail::own_parameters<JumpReLU>(*step.activation_gradient) : nullptr;
    const Index block_rows = detail::encode_block_rows(step.rows()), blocks = (step.rows() + block_rows - 1) / block_rows;
    struct Below {
      Index latent;
      Scalar z;
    };
    std::vector<std::vector<std::vector<Below>>> below(static_cast<std::size_t>(blocks),
                                                       std::vector<std::vector<Below>>(static_cast<std::size_t>(block_rows)));
    detail::GatheredLatents<Scalar>().for_each(
        step, chosen, threads, [&](Index block, Index row, Index first, std::span<const Scalar> tile) {
          for (std::size_t j = 0; j < tile.size(); ++j)
            if (const Index latent = chosen[static_cast<std::size_t>(first) + j]; tile[j] < theta[latent])
              below[static_cast<std::size_t>(block)][static_cast<std::size_t>(row)].push_back({latent, tile[j]});
        });

    const double factor = coefficient / static_cast<double>(step.rows());
    double sum = 0;
    Path<Scalar>* path = nullptr;
    std::span<Scalar> norm_gradient;
    if (step.wants_gradient) {
      path = &step.add_path();  // no cotangent: these entries feed no reconstruction
      path->entries.reset(step.latents());
      path->dz.clear();
      norm_gradient = step.norm_gradient();
    }
    for (Index b = 0; b < step.rows(); ++b) {
      for (const Below& e : below[static_cast<std::size_t>(b / block_rows)][static_cast<std::size_t>(b % block_rows)]) {
        const auto norm = static_cast<double>(step.decoder_norms[e.latent]);
        const double gap = static_cast<double>(theta[e.latent]) - static_cast<double>(e.z);
        sum += gap * norm;
        if (path == nullptr) continue;
        path->entries.push(e.latent, Scalar(0), e.z);
        path->dz.push_back(static_cast<Scalar>(-factor * norm));
        gradient->threshold[e.latent] += static_cast<Scalar>(factor * norm);
        norm_gradient[static_cast<std::size_t>(e.latent)] += static_cast<Scalar>(factor * gap);
      }
      if (path != nullptr) path->entries.finish_row();
    }
    return factor * sum;
  }
};

}  // namespace sae::inline SAE_ABI
