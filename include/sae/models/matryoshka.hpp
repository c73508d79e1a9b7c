#pragma once
#include <sae/core/random.hpp>
#include <sae/models/reconstruction_loss.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <span>
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
/// \param decoder  decoder(begin, end): of the rows begin <= b < end, a function that adds the entries of level m to step.residual,
///                 called with m = 0, 1, ..., M-1
template <class Step, class Decoder>
double prefix_errors(Step& step, std::span<const double> weights, ErrorNormaliser normaliser, double scale, Index block_rows,
                     const Decoder& decoder, Threads& threads) {
  using Scalar = typename Step::Scalar;
  const auto levels = static_cast<Index>(weights.size());
  const Index rows = step.rows(), width = step.output_width();
  load_decoder_bias(*step.decoder_bias, step.skip, step.raw, rows, step.residual, threads);
  std::vector<double>&factors = step.row_factors, &loss = step.level_loss;
  loss.assign(static_cast<std::size_t>(rows), 0.0);
  error_factors(step, normaliser, factors);
  step.has_levels = true;
  if (step.level_cotangent.rows() != levels * rows || step.level_cotangent.cols() != width)
    step.level_cotangent.resize(levels * rows, width);
  step.row_loss.resize(static_cast<std::size_t>(rows));

  threads.for_blocks(rows, block_rows, [&](Index begin, Index end, Index) {
    for (Index b = begin; b < end; ++b) kernels::add_scaled(step.residual.row(b), Scalar(-1), step.target.row(b), width);
    auto add_level = decoder(begin, end);
    for (Index m = 0; m < levels; ++m) {
      add_level(m);
      for (Index b = begin; b < end; ++b) {
        const auto row = static_cast<std::size_t>(b);
        const Scalar* const residual = step.residual.row(b);
        const double factor = weights[static_cast<std::size_t>(m)] * scale * factors[row];
        const auto square = static_cast<double>(kernels::squared_norm(residual, width));
        loss[row] += factor * square;
        if (m == levels - 1)
          step.row_loss[row] = square * (step.row_weight.empty() ? 1.0 : static_cast<double>(step.row_weight[row]));
        Scalar* const cotangent = step.level_cotangent.row(m * rows + b);
        const auto slope = static_cast<Scalar>(2 * factor);
        for (Index j = 0; j < width; ++j) cotangent[j] = slope * residual[j];
      }
    }
    for (Index b = begin; b < end; ++b) {
      for (Index m = levels - 2; m >= 0; --m)
        kernels::add_scaled(step.level_cotangent.row(m * rows + b), Scalar(1), step.level_cotangent.row((m + 1) * rows + b),
                            width);
      std::copy_n(step.level_cotangent.row(b), width, step.cotangent.row(b));  // b_dec acts in every prefix
    }
  });
  return std::accumulate(loss.begin(), loss.end(), 0.0);
}

/// Throws unless `widths` are the prefixes of a dictionary of `latents`: strictly increasing in [1, latents].
inline void check_widths(std::string_view who, const std::vector<Index>& widths, Index latents) {
  Index before = 0;
  for (const Index w : widths) {
    if (w <= before || w > latents)
      throw_value(who, ": width ", w, " after ", before, ": widths increase strictly within [1, ", latents,
                  "] (the number of latents)");
    before = w;
  }
}
/// The widths, and F behind them where it is missing.
inline void put_with_last(const std::vector<Index>& widths, Index latents, std::vector<Index>& out) {
  out = widths;
  if (out.empty() || out.back() != latents) out.push_back(latents);
}
template <class Number>
std::string joined(const std::vector<Number>& list) {
  std::string text;
  for (const Number& n : list) text += concat(text.empty() ? "" : ",", n);
  return text;
}

}  // namespace detail

/// Matryoshka: the first latents alone must reconstruct, too, so that they become the general features and later ones the details.
///
///   L = scale sum_m weight_m mean_b |x'^(m)_b - y_b|^2,      x'^(m) = sum_{i < width_m} f[b,i] W_dec[i] + b_dec
///
/// The codes are those of the model's activation, selected once over all F latents (BatchTopK in the paper; the TopK family, ReLU
/// and JumpReLU work alike). dL/df[b,i] = G_j . d_i with the suffix sum G_j of the levels that latent i acts in, so that M levels
/// cost one sparse decode and no product more.
///
/// Replaces the squared error in an objective. With one width, F, it is the squared error. Source: Bussmann et al. 2025,
/// arXiv:2503.17547, eq. 3; SAELens saes/matryoshka_batchtopk_sae.py (weights 1); dictionary_learning
/// trainers/matryoshka_batch_top_k.py (mean over levels of weighted errors: scale 1 / M).
struct Matryoshka {
  std::vector<Index> widths{};    ///< latents of each prefix, strictly increasing in [1, F]; F is appended where it is missing
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
    visitor("widths", detail::joined(widths));
    visitor("weights", detail::joined(weights));
    visitor("scale", scale);
    visitor("random_levels", random_levels);
    visitor("seed", seed);
  }
  void check(Index, Index latents) const {
    if (random_levels < 0 || random_levels > latents)
      throw_value("Matryoshka: random_levels = ", random_levels, " is not in [0, ", latents, "] (the number of latents)");
    if ((random_levels > 0) == !widths.empty())
      throw_value("Matryoshka: give either widths (", widths.size(), " of them) or random_levels (", random_levels, ")");
    detail::check_widths("Matryoshka", widths, latents);
    if (!weights.empty() && weights.size() != levels(latents))
      throw_value("Matryoshka: ", weights.size(), " weights for ", levels(latents), " levels");
    for (const double w : weights) require_non_negative("Matryoshka: weight", w);
    require_positive("Matryoshka: scale", scale);
  }
  bool needs_decoder_norms() const { return false; }

  /// The prefixes of step `number`, ascending, the last one F.
  std::vector<Index> prefixes(Index latents, Index number) const {
    std::vector<Index> out;
    put_prefixes(latents, number, out);
    return out;
  }

  template <class Step>
  double reconstruct(Step& step, Threads& threads) const {
    const auto& codes = step.main.entries.codes;
    auto& ends = step.main.level_ends;
    put_prefixes(step.latents(), step.number, ends);
    step.band.level_ends = ends;
    step.level_weights = weights;
    if (weights.empty()) step.level_weights.assign(ends.size(), 1.0);
    const bool dense = detail::is_dense(codes.size(), codes.rows() * codes.latents());
    return detail::prefix_errors(
        step, step.level_weights, ErrorNormaliser::rows, scale, dense ? detail::dense_block_rows : detail::sparse_block_rows,
        [&](Index begin, Index end) {
          std::array<Index, detail::dense_block_rows> next;
          for (Index b = begin; b < end; ++b) next[static_cast<std::size_t>(b - begin)] = codes.begin(b);
          return [&, begin, end, next](Index m) mutable {
            const auto level = static_cast<std::size_t>(m);
            detail::add_decoded_range(codes, *step.decoder, step.residual, begin, end, m > 0 ? ends[level - 1] : 0, ends[level],
                                      next.data(), dense, step.scratch);
          };
        },
        threads);
  }

 private:
  void put_prefixes(Index latents, Index number, std::vector<Index>& out) const {
    if (random_levels == 0) return detail::put_with_last(widths, latents, out);
    Random random(seed, (std::uint64_t{0x4d61} << 40) + static_cast<std::uint64_t>(number));
    out.assign(1, latents);
    while (static_cast<Index>(out.size()) < random_levels) {
      const double length = std::exp(random.uniform(0.0, std::log(static_cast<double>(latents))));
      const Index drawn = std::clamp<Index>(static_cast<Index>(length), 1, latents);
      if (std::find(out.begin(), out.end(), drawn) == out.end()) out.push_back(drawn);
    }
    std::sort(out.begin(), out.end());
  }
  std::size_t levels(Index latents) const {
    return random_levels > 0 ? static_cast<std::size_t>(random_levels)
                             : widths.size() + (widths.empty() || widths.back() != latents ? 1 : 0);
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
    visitor("k", k);
    visitor("prefixes", detail::joined(prefixes));
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
    std::vector<Index>& ends = step.rank_ends;
    ends = prefixes;
    if (ends.empty()) {
      ends.resize(static_cast<std::size_t>(k));
      std::iota(ends.begin(), ends.end(), Index{1});
    }
    step.level_weights.assign(ends.size(), 1 / static_cast<double>(ends.size()));
    const auto& codes = step.main.entries.codes;
    auto& main = step.main;
    if (step.band.entries.size() > 0)
      throw_value(
          "HierarchicalTopK: the model has thresholds (a band of a straight-through estimator); it goes with the TopK family");
    main.cotangent_rows.resize(static_cast<std::size_t>(codes.size()));
    auto& ranked = step.ranked;
    ranked.resize(main.cotangent_rows.size());
    return detail::prefix_errors(
        step, step.level_weights, ErrorNormaliser::rows, 1.0, 32,
        [&](Index begin, Index end) {
          for (Index b = begin; b < end; ++b) {
            if (codes.end(b) - codes.begin(b) > k)
              throw_value("HierarchicalTopK: a row has ", codes.end(b) - codes.begin(b), " active latents and k = ", k,
                          "; give the model's k");
            for (Index e = codes.begin(b); e < codes.end(b); ++e) {
              double key = std::fabs(static_cast<double>(codes.value(e)));
              if (by_decoder_norm) key *= static_cast<double>(step.decoder_norms[codes.latent(e)]);
              ranked[static_cast<std::size_t>(e)] = {-key, e};  // entries of a row have ascending latents
            }
            std::sort(ranked.begin() + codes.begin(b), ranked.begin() + codes.end(b));
          }
          return [&, begin, end](Index m) {
            const auto level = static_cast<std::size_t>(m);
            detail::WideRows<typename Step::Scalar, typename Step::Stored> wide(step.scratch, step.output_width());
            for (Index b = begin; b < end; ++b) {
              const Index last = std::min(ends[level], codes.end(b) - codes.begin(b));
              for (Index rank = m > 0 ? ends[level - 1] : 0; rank < last; ++rank) {
                const Index e = ranked[static_cast<std::size_t>(codes.begin(b) + rank)].second;
                kernels::add_scaled(step.residual.row(b), codes.value(e),
                                    wide(step.decoder->row(codes.latent(e)), step.output_width()), step.output_width());
                main.cotangent_rows[static_cast<std::size_t>(e)] = static_cast<int>(m * step.rows() + b);
              }
            }
          };
        },
        threads);
  }
};

}  // namespace sae::inline SAE_ABI
