#pragma once
#include <sae/core/random.hpp>
#include <sae/models/reconstruction_loss.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace sae::inline SAE_ABI {

namespace detail {

/// Reconstructions of the same codes that each use more of them, and the sum of their errors.
///
///   x'^(m) = b_dec + x W_skip^T + sum over the entries of levels 0 .. m        m = 0 .. M-1
///   L = sum_m weight_m scale sum_b w_b |x'^(m)_b - y_b|^2 / normaliser
///
/// An entry of level j acts in x'^(j), x'^(j+1), ...: its cotangent is the suffix sum G_j = sum_{m >= j} dL/dx'^(m). One forward sweep
/// and one backward over what one sparse decode reads, and no product more. Memory: M B D_out numbers.
///
/// \param level  called as level(b, order): appends (level in [0, M), entry) for every entry of row b
template <class Step, class Level>
double prefix_errors(Step& step, const std::vector<double>& weights, ErrorNormaliser normaliser, double scale,
                     const Level& level, Threads& threads) {
  using Scalar = typename Step::Scalar;
  const auto levels = static_cast<Index>(weights.size());
  const Index rows = step.rows(), width = step.output_width();
  const auto& codes = step.main.entries.codes;
  load_decoder_bias(*step.decoder_bias, step.skip, step.raw, rows, step.residual, threads);
  std::vector<double> factors, loss(static_cast<std::size_t>(rows), 0.0);
  error_factors(step, normaliser, factors);
  if (step.level_cotangent.rows() != levels * rows || step.level_cotangent.cols() != width)
    step.level_cotangent.resize(levels * rows, width);
  step.main.cotangent_rows.resize(static_cast<std::size_t>(codes.size()));
  step.row_loss.assign(static_cast<std::size_t>(rows), 0.0);

  threads.for_blocks(rows, 32, [&](Index begin, Index end, Index) {
    std::vector<std::pair<Index, Index>> order;  // (level, entry)
    for (Index b = begin; b < end; ++b) {
      const auto row = static_cast<std::size_t>(b);
      order.clear();
      level(b, order);
      std::sort(order.begin(), order.end());
      Scalar* const residual = step.residual.row(b);
      const Scalar* const target = step.target.row(b);
      for (Index j = 0; j < width; ++j) residual[j] -= target[j];
      auto next = order.begin();
      for (Index m = 0; m < levels; ++m) {
        for (; next != order.end() && next->first == m; ++next) {
          const Index e = next->second;
          kernels::add_scaled(residual, codes.value(e), step.decoder->row(codes.latent(e)), width);
          step.main.cotangent_rows[static_cast<std::size_t>(e)] = static_cast<int>(m * rows + b);
        }
        const double factor = weights[static_cast<std::size_t>(m)] * scale * factors[row];
        const auto square = static_cast<double>(kernels::squared_norm(residual, width));
        loss[row] += factor * square;
        if (m == levels - 1)
          step.row_loss[row] = square * (step.row_weight.empty() ? 1.0 : static_cast<double>(step.row_weight[row]));
        Scalar* const cotangent = step.level_cotangent.row(m * rows + b);
        const auto slope = static_cast<Scalar>(2 * factor);
        for (Index j = 0; j < width; ++j) cotangent[j] = slope * residual[j];
      }
      for (Index m = levels - 2; m >= 0; --m)
        kernels::add_scaled(step.level_cotangent.row(m * rows + b), Scalar(1), step.level_cotangent.row((m + 1) * rows + b),
                            width);
      std::copy_n(step.level_cotangent.row(b), width, step.cotangent.row(b));  // b_dec acts in every prefix
    }
  });
  return std::accumulate(loss.begin(), loss.end(), 0.0);
}

}  // namespace detail

/// Matryoshka: the first latents alone must reconstruct, too, so that they become the general features and later ones the details.
///
///   L = scale sum_m weight_m mean_b |x'^(m)_b - y_b|^2,      x'^(m) = sum_{i < width_m} f[b,i] W_dec[i] + b_dec
///
/// The codes are those of the model's activation, selected once over all F latents (BatchTopK in the paper; the TopK family and ReLU
/// work alike). dL/df[b,i] = G_j . d_i with the suffix sum G_j of the levels that latent i acts in, so that M levels cost one sparse
/// decode and no product more.
///
/// Replaces the squared error in an objective. With one width, F, it is the squared error. Source: Bussmann et al. 2025,
/// arXiv:2503.17547, eq. 3; SAELens saes/matryoshka_batchtopk_sae.py (weights 1); dictionary_learning
/// trainers/matryoshka_batch_top_k.py (mean over levels of weighted errors: scale 1 / M).
struct Matryoshka {
  std::vector<Index> widths;      ///< latents of each prefix, strictly increasing in [1, F]; F is appended where it is missing
  std::vector<double> weights{};  ///< of each level, >= 0; empty: 1 each
  double scale = 1;               ///< > 0
  /// Draw this many prefixes anew for every step instead of `widths` (which stays empty), the last of them F: lengths with a
  /// density falling as 1 / length, so that short prefixes are as often met as long ones. Source: noanabeshima/matryoshka-saes.
  Index random_levels = 0;
  std::uint64_t seed = 0;

  static constexpr std::string_view name = "matryoshka";
  static constexpr bool reconstructs = true;

  template <class Visitor>
  void visit_settings(Visitor&& visitor) const {
    std::string text;
    for (const Index w : widths) text += detail::concat(text.empty() ? "" : ",", w);
    visitor("widths", text);
    text.clear();
    for (const double w : weights) text += detail::concat(text.empty() ? "" : ",", w);
    visitor("weights", text);
    visitor("scale", scale);
    visitor("random_levels", random_levels);
    visitor("seed", seed);
  }
  void check(Index, Index latents) const {
    if (random_levels < 0 || random_levels > latents)
      throw_value("Matryoshka: random_levels = ", random_levels, " is not in [0, ", latents, "] (the number of latents)");
    if ((random_levels > 0) == !widths.empty())
      throw_value("Matryoshka: give either widths (", widths.size(), " of them) or random_levels (", random_levels, ")");
    Index before = 0;
    for (const Index w : widths) {
      if (w <= before || w > latents)
        throw_value("Matryoshka: width ", w, " after ", before, ": widths increase strictly within [1, ", latents,
                    "] (the number of latents)");
      before = w;
    }
    const std::size_t levels = random_levels > 0 ? static_cast<std::size_t>(random_levels) : all_widths(latents).size();
    if (!weights.empty() && weights.size() != levels)
      throw_value("Matryoshka: ", weights.size(), " weights for ", levels, " levels");
    for (const double w : weights)
      if (!(w >= 0)) throw_value("Matryoshka: weight ", w, " is negative");
    if (!(scale > 0)) throw_value("Matryoshka: scale = ", scale, " is not positive");
  }
  bool needs_decoder_norms() const { return false; }

  /// The prefixes of step `number`, ascending, the last one F.
  std::vector<Index> prefixes(Index latents, Index number) const {
    if (random_levels == 0) return all_widths(latents);
    Random random(seed, (std::uint64_t{0x4d61} << 40) + static_cast<std::uint64_t>(number));
    std::vector<Index> out{latents};
    while (static_cast<Index>(out.size()) < random_levels) {
      const double length = std::exp(random.uniform(0.0, std::log(static_cast<double>(latents))));
      const Index drawn = std::clamp<Index>(static_cast<Index>(length), 1, latents);
      if (std::find(out.begin(), out.end(), drawn) == out.end()) out.push_back(drawn);
    }
    std::sort(out.begin(), out.end());
    return out;
  }

  template <class Step>
  double reconstruct(Step& step, Threads& threads) const {
    const std::vector<Index> ends = prefixes(step.latents(), step.number);
    const std::vector<double> each = weights.empty() ? std::vector<double>(ends.size(), 1.0) : weights;
    const auto& codes = step.main.entries.codes;
    return detail::prefix_errors(
        step, each, ErrorNormaliser::rows, scale,
        [&](Index b, std::vector<std::pair<Index, Index>>& order) {
          for (Index e = codes.begin(b); e < codes.end(b); ++e)
            order.emplace_back(std::upper_bound(ends.begin(), ends.end(), codes.latent(e)) - ends.begin(), e);
        },
        threads);
  }

 private:
  std::vector<Index> all_widths(Index latents) const {
    std::vector<Index> out = widths;
    if (out.empty() || out.back() != latents) out.push_back(latents);
    return out;
  }
};

/// HierarchicalTopK: every prefix of the selection, from its largest code on, reconstructs: one model for all k.
///
///   L = mean_{j = 1..J} mean_b |b_dec + sum of the j largest of f[b,.] W_dec - y_b|^2
///
/// J is the model's k. `prefixes` keeps a choice of the j alone, for less time and memory (J B D numbers otherwise). A row with fewer
/// than j active latents reconstructs with what it has. Order: by descending |f|; equal ones by ascending latent.
/// Source: Balagansky et al. 2025, arXiv:2505.24473 ("Train One Sparse Autoencoder Across Multiple Sparsity Budgets"); t-tech/flex-sae.
struct HierarchicalTopK {
  Index k = 32;                   ///< J >= 1: k of the model's TopK
  std::vector<Index> prefixes{};  ///< j that count, strictly increasing, the last one k; empty: 1 .. k
  bool by_decoder_norm = false;   ///< order by |f| |W_dec[i]|, as TopK::rank_by_decoder_norm

  static constexpr std::string_view name = "hierarchical_topk";
  static constexpr bool reconstructs = true;

  template <class Visitor>
  void visit_settings(Visitor&& visitor) const {
    std::string text;
    for (const Index j : prefixes) text += detail::concat(text.empty() ? "" : ",", j);
    visitor("k", k);
    visitor("prefixes", text);
    visitor("by_decoder_norm", by_decoder_norm);
  }
  void check(Index, Index latents) const {
    if (k < 1 || k > latents) throw_value("HierarchicalTopK: k = ", k, " is not in [1, ", latents, "] (the number of latents)");
    Index before = 0;
    for (const Index j : prefixes) {
      if (j <= before || j > k)
        throw_value("HierarchicalTopK: prefix ", j, " after ", before, ": prefixes increase strictly within [1, ", k, "] (k)");
      before = j;
    }
    if (!prefixes.empty() && before != k) throw_value("HierarchicalTopK: the last prefix is ", before, " and not k = ", k);
  }
  bool needs_decoder_norms() const { return by_decoder_norm; }

  template <class Step>
  double reconstruct(Step& step, Threads& threads) const {
    std::vector<Index> ends = prefixes;
    if (ends.empty()) {
      ends.resize(static_cast<std::size_t>(k));
      std::iota(ends.begin(), ends.end(), Index{1});
    }
    const std::vector<double> weights(ends.size(), 1 / static_cast<double>(ends.size()));
    const auto& codes = step.main.entries.codes;
    return detail::prefix_errors(
        step, weights, ErrorNormaliser::rows, 1.0,
        [&](Index b, std::vector<std::pair<Index, Index>>& order) {
          std::vector<std::pair<double, Index>> ranked;  // (-key, entry): the entries of a row have ascending latents
          for (Index e = codes.begin(b); e < codes.end(b); ++e) {
            double key = std::fabs(static_cast<double>(codes.value(e)));
            if (by_decoder_norm) key *= static_cast<double>(step.decoder_norms[codes.latent(e)]);
            ranked.emplace_back(-key, e);
          }
          if (static_cast<Index>(ranked.size()) > k)
            throw_value("HierarchicalTopK: a row has ", ranked.size(), " active latents and k = ", k, "; give the model's k");
          std::sort(ranked.begin(), ranked.end());
          for (std::size_t rank = 0; rank < ranked.size(); ++rank)
            order.emplace_back(std::upper_bound(ends.begin(), ends.end(), static_cast<Index>(rank)) - ends.begin(),
                               ranked[rank].second);
        },
        threads);
  }
};

}  // namespace sae::inline SAE_ABI
