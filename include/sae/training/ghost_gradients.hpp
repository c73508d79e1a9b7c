#pragma once
#include <sae/models/objective.hpp>
#include <sae/training/gathered_latents.hpp>

#include <algorithm>
#include <cmath>
#include <span>
#include <string_view>
#include <vector>

namespace sae::inline SAE_ABI {

/// Ghost gradients: the dead latents, with exp in the place of their activation, point at what the live ones left over.
///
///   r = x - x',   G[b] = sum_{i dead} e^{z[b,i]} d_i,   s[b] = |r[b]| / (1e-6 + 2 |G[b]|),   g = s G
///   l[b,j] = (g[b,j] - r[b,j])^2,   w[b,j] = (x'[b,j] - x[b,j])^2 / (l[b,j] + 1e-6)
///   L = coefficient 1/(B D) sum_{b,j} w[b,j] l[b,j]
///
/// Where rows have weights in the loss (a model with an InputNormalisation), so have their shares of this sum.
/// r, s and w are held constant; the value is about that of the mean squared error per number. With C = 2 coefficient / (B D) w (g - r):
/// dz[b,i] = (C[b] . d_i) s[b] e^{z[b,i]}, dL/dd_i = sum_b s[b] e^{z[b,i]} C[b]. Nothing reaches live latents.
/// The exponentials are taken from each row's largest z on, so that none overflows. Where no latent is dead: 0.
/// Cost   dense in the dead latents: a product [B x D] [D x #dead] and an entry (about 50 bytes) for each row and dead latent.
/// Threads: results do not depend on them.
/// Source: Anthropic's January 2024 update (transformer-circuits.pub/2024/jan-update); SAELens 5 training/training_sae.py,
/// calculate_ghost_grad_loss.
struct GhostGradients {
  double coefficient = 1;  ///< >= 0

  static constexpr std::string_view name = "ghost_gradients";
  static constexpr double epsilon = 1e-6;  ///< in s and in w
  template <class Visitor>
  void visit_settings(Visitor&& visitor) const {
    visitor("coefficient", coefficient);
  }
  void check(Index, Index) const { require_non_negative("GhostGradients: coefficient", coefficient); }
  bool needs_decoder_norms() const { return false; }

  template <class Scalar>
  class Selection : public KeptMemory<Scalar> {
    friend struct GhostGradients;
    std::vector<Index> dead_;
    detail::GatheredLatents<Scalar> gathered_;
    Tensor<Scalar> decoder_;                ///< rows of the dead
    std::vector<double> shift_, row_loss_;  ///< of each row
  };

  template <class Step>
  double apply(Step& step, Selection<typename Step::Scalar>& selection, Threads& threads) const {
    using Scalar = typename Step::Scalar;
    std::vector<Index>& dead = selection.dead_;
    detail::GatheredLatents<Scalar>::list_dead(step, dead);
    if (dead.empty() || coefficient == 0) return 0;
    const Index rows = step.rows(), width = step.output_width(), block_rows = detail::encode_block_rows(rows);
    Path<Scalar>& path = step.add_path();
    auto& entries = path.entries;
    path.own_latents = dead;
    const auto count = static_cast<Index>(dead.size());
    entries.reset(count);
    for (Index b = 0; b < rows; ++b) {
      for (Index n = 0; n < count; ++n) entries.push(n, Scalar(0), Scalar(0));
      entries.finish_row();
    }
    selection.gathered_.for_each(step, dead, threads, [&](Index block, Index row, Index first, std::span<const Scalar> z) {
      std::copy(z.begin(), z.end(), entries.z.begin() + (block * block_rows + row) * static_cast<Index>(dead.size()) + first);
    });

    // f = e^(z - m) with m = max(z, 0): then s e^z = |r| f / (1e-6 e^-m + 2 |sum f d|).
    const auto f = entries.codes.values();
    std::vector<double>& shift = selection.shift_;
    shift.resize(static_cast<std::size_t>(rows));
    for (std::size_t b = 0; b < shift.size(); ++b) {
      const auto* const z = entries.z.data() + b * dead.size();
      const Scalar m = std::max(*std::max_element(z, z + dead.size()), Scalar(0));
      shift[b] = static_cast<double>(m);
      for (std::size_t n = 0; n < dead.size(); ++n) f[b * dead.size() + n] = std::exp(z[n] - m);
    }
    Tensor<Scalar>& ghost = path.own_cotangent;
    if (ghost.rows() != rows || ghost.cols() != width) ghost.resize(rows, width);
    ghost.set_zero();
    detail::gather_rows(*step.decoder, std::span<const Index>(dead), selection.decoder_, threads);
    detail::add_decoded(entries.codes, selection.decoder_, ghost, step.scratch, threads);

    const double each = coefficient / (static_cast<double>(rows) * static_cast<double>(width));
    std::vector<double>& row_loss = selection.row_loss_;
    row_loss.resize(static_cast<std::size_t>(rows));
    threads.for_blocks(rows, 64, [&](Index begin, Index end, Index) {
      for (Index b = begin; b < end; ++b) {
        const auto at = static_cast<std::size_t>(b);
        Scalar* const g = ghost.row(b);
        const Scalar* const residual = step.residual.row(b);  // x' - x = -r
        const auto norm = [&](const Scalar* v) { return std::sqrt(static_cast<double>(kernels::squared_norm(v, width))); };
        const double share = each * (step.row_weight.empty() ? 1.0 : static_cast<double>(step.row_weight[at]));
        const double s = norm(residual) / (epsilon * std::exp(-shift[at]) + 2 * norm(g));
        double sum = 0;
        for (Index j = 0; j < width; ++j) {
          const auto e = static_cast<double>(residual[j]);
          const double gap = s * static_cast<double>(g[j]) + e, w = e * e / (gap * gap + epsilon);
          sum += w * gap * gap;
          g[j] = static_cast<Scalar>(2 * share * w * gap);
        }
        row_loss[at] = share * sum;
        for (std::size_t n = 0; n < dead.size(); ++n) f[at * dead.size() + n] *= static_cast<Scalar>(s);
      }
    });
    double value = 0;
    for (const double loss : row_loss) value += loss;
    if (!step.wants_gradient) return value;
    path.cotangent = &path.own_cotangent;
    path.df.assign(static_cast<std::size_t>(entries.size()), Scalar(0));
    detail::add_code_gradient(entries.codes, ghost, selection.decoder_, path.df, step.scratch, threads);
    path.dz = path.df;
    for (std::size_t e = 0; e < path.dz.size(); ++e) path.dz[e] *= f[e];
    return value;
  }
};

}  // namespace sae::inline SAE_ABI
