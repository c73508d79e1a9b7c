#pragma once
#include <sae/activations/jump_relu.hpp>
#include <sae/models/objective.hpp>
#include <sae/training/gathered_latents.hpp>

#include <cstdint>
#include <span>
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
/// Cost   a dense product [B x D] [D x #S], and a sum of the rows below its threshold for each latent. Memory: a bit for each row and
/// latent of S, and the encoder rows of S where that is not all. Threads: results do not depend on them.
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

  template <class Scalar>
  class Selection : public KeptMemory<Scalar> {
    friend struct PreActivationLoss;
    std::vector<Index> chosen_;  ///< S
    Buffer<Scalar> theta_;       ///< of S
    detail::GatheredLatents<Scalar> gathered_;
    std::vector<double> gaps_;  ///< sum of theta - z over the rows of a block where it is positive, and how many there are
    std::vector<Index> counts_;
  };

  template <class Step>
  double apply(Step& step, Selection<typename Step::Scalar>& selection, Threads& threads) const {
    using Scalar = typename Step::Scalar;
    auto& chosen = selection.chosen_;
    auto& theta = selection.theta_;
    auto& gaps = selection.gaps_;
    auto& counts = selection.counts_;
    chosen.clear();
    for (Index i = 0; i < step.latents(); ++i)
      if (!dead_only || (!step.dead.empty() && step.dead[static_cast<std::size_t>(i)] != 0)) chosen.push_back(i);
    if (chosen.empty() || coefficient == 0) return 0;
    const auto* const own = detail::own_parameters<JumpReLU>(*step.activation);
    if (own == nullptr) throw_value("PreActivationLoss: the model has no thresholds; it goes with JumpReLU");
    const auto size = chosen.size();
    theta.resize(size);
    for (std::size_t n = 0; n < size; ++n) theta[n] = own->threshold[chosen[n]];
    const Index rows = step.rows(), block_rows = detail::encode_block_rows(rows), blocks = (rows + block_rows - 1) / block_rows;
    gaps.assign(static_cast<std::size_t>(blocks) * size, 0.0);
    counts.assign(gaps.size(), 0);

    Path<Scalar>* path = nullptr;
    if (step.wants_gradient) {
      path = &step.add_path();  // no cotangent: these entries feed no reconstruction
      path->entries.reset(static_cast<Index>(size));
      if (static_cast<Index>(size) < step.latents()) path->own_latents = chosen;
      path->row_bits.assign(static_cast<std::size_t>(rows * path->words_of_row()), 0);
    }
    selection.gathered_.for_each(step, chosen, threads, [&](Index block, Index row, Index first, std::span<const Scalar> z) {
      const Scalar* const level = theta.data() + first;
      double* const gap = gaps.data() + block * static_cast<Index>(size) + first;
      Index* const count = counts.data() + block * static_cast<Index>(size) + first;
      for (std::size_t j = 0; j < z.size(); ++j) {
        const bool below = z[j] < level[j];
        gap[j] += below ? static_cast<double>(level[j]) - static_cast<double>(z[j]) : 0.0;
        count[j] += below;
      }
      if (path == nullptr) return;
      // Tiles begin at whole words.
      std::uint64_t* const words = path->row_bits.data() + (block * block_rows + row) * path->words_of_row() + first / 64;
      for (std::size_t j = 0; j < z.size(); ++j) words[j / 64] |= std::uint64_t{z[j] < level[j]} << j % 64;
    });

    const double factor = coefficient / static_cast<double>(rows);
    auto* const gradient = path == nullptr ? nullptr : detail::own_parameters<JumpReLU>(*step.activation_gradient);
    std::span<Scalar> norm_gradient;
    if (path != nullptr) {
      path->dz.resize(size);
      norm_gradient = step.norm_gradient();
    }
    double sum = 0;
    for (std::size_t n = 0; n < size; ++n) {
      double gap = 0, count = 0;
      for (std::size_t at = n; at < gaps.size(); at += size) {
        gap += gaps[at];
        count += static_cast<double>(counts[at]);
      }
      const auto norm = static_cast<double>(step.decoder_norms[chosen[n]]);
      sum += gap * norm;
      if (path == nullptr) continue;
      path->dz[n] = static_cast<Scalar>(-factor * norm);
      gradient->threshold[chosen[n]] += static_cast<Scalar>(factor * norm * count);
      norm_gradient[static_cast<std::size_t>(chosen[n])] += static_cast<Scalar>(factor * gap);
    }
    return factor * sum;
  }
};

}  // namespace sae::inline SAE_ABI
