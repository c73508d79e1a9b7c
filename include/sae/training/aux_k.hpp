#pragma once
#include <sae/kernels/largest.hpp>
#include <sae/models/backward.hpp>
#include <sae/training/gathered_latents.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <span>
#include <string_view>
#include <vector>

namespace sae::inline SAE_ABI {

/// What AuxK divides its error by.
enum class AuxKNormaliser {
  none,               ///< 1 (SAELens, llamascopium)
  residual_variance,  ///< mean_b |r_b - mean r|^2 of the residual (dictionary_learning, OpenAI); the term is 0 where that is 0
  target_variance,    ///< mean_b |y_b - mean y|^2 of the target (sparsify); the term is 0 where that is 0
};

/// AuxK: the k_aux dead latents that would fire most reconstruct what the live ones left over, so that they come back to life.
///
///   r = x - x'  (held constant),   D_b = the k_aux dead latents with the largest z[b,i],   r' = sum_{i in D_b} v[b,i] d_i
///   AuxK = coefficient min(#dead / k, 1) mean_b |r' - r|^2 / normaliser         v = relu(z), or z with `raw_values`
///
/// k_aux = min(k, #dead), k = D/2 unless given (D of what is reconstructed: D_out of a transcoder, as in sparsify). No bias in r'. The
/// gradient reaches encoder and decoder rows of the dead latents.
/// Where rows have weights w_b in the loss (a model with an InputNormalisation), so have their errors here, and the residuals of the
/// normaliser are sqrt(w_b) r_b: both are then in the units of the rows.
/// Which latents are dead is the trainer's to say (`DeadLatents`). The selection runs over the same tiles as the codes' own.
///
/// The residual need not be constant: with `detach_residual` false, AuxK is the loss of the live and the dead latents together, and
/// G = dL/dr' is added to dL/dx', too (the normaliser stays constant). OpenAI's is {.k = 256, .scale_by_dead = false,
/// .normaliser = residual_variance, .through_decoder_bias = true}. (There live latents compete with a value of 0: that replaces
/// dead ones below 0 alone, which relu makes 0 anyway.)
/// Ties   lower latent first. Cost: B x k_aux x D, or products [B x D] [D x #dead] where that is dense, and one of them for the
/// pre-activations. Memory: copies of the rows of the dead, of half of all at most, and their gradients. Threads: results do not depend on them.
/// Source Gao et al. 2024, arXiv:2406.04093, A.2; SAELens saes/topk_sae.py; dictionary_learning trainers/top_k.py; sparsify
///        sparse_coder.py; openai train.py; llamascopium sparse_dictionary.py (`detach_residual` false).
struct AuxK {
  double coefficient = 1.0 / 32;  ///< >= 0
  Index k = 0;                    ///< latents per row; 0: D / 2
  bool raw_values = false;        ///< v = z, which may be negative (SAELens), instead of relu(z)
  bool scale_by_dead = true;      ///< the factor min(#dead / k, 1); dictionary_learning has none
  AuxKNormaliser normaliser = AuxKNormaliser::none;
  bool rank_by_decoder_norm = false;  ///< rank by z |d_i|, as TopK::rank_by_decoder_norm
  bool by_magnitude = false;          ///< rank by |z| (or |z| |d_i|), as AbsTopK; for `raw_values` alone
  bool detach_residual = true;        ///< hold r constant
  /// b_dec stands in r' and, held constant, in r: the value is the same, and dL/db_dec += sum_b G_b (OpenAI).
  bool through_decoder_bias = false;

  static constexpr std::string_view name = "aux_k";
  template <class Visitor>
  void visit_settings(Visitor&& visitor) const {
    visitor("coefficient", coefficient);
    visitor("k", k);
    visitor("raw_values", raw_values);
    visitor("scale_by_dead", scale_by_dead);
    constexpr std::string_view normalisers[] = {"none", "residual_variance", "target_variance"};
    visitor("normaliser", normalisers[static_cast<int>(normaliser)]);
    visitor("rank_by_decoder_norm", rank_by_decoder_norm);
    visitor("by_magnitude", by_magnitude);
    visitor("detach_residual", detach_residual);
    visitor("through_decoder_bias", through_decoder_bias);
  }
  void check(Index, Index latents) const {
    require_non_negative("AuxK: coefficient", coefficient);
    if (k < 0 || k > latents)
      throw_value("AuxK: k = ", k, " is not in [0, ", latents, "] (the number of latents; 0 takes D / 2)");
    if (by_magnitude && !raw_values)
      throw_value("AuxK: by_magnitude = true is for raw_values = true alone: relu would make zeros of half of what it chose");
    if (through_decoder_bias && !detach_residual)
      throw_value("AuxK: through_decoder_bias = true with detach_residual = false would count b_dec twice");
  }
  bool needs_decoder_norms() const { return rank_by_decoder_norm; }
  Index wanted(Index width) const { return k > 0 ? k : std::max<Index>(width / 2, 1); }

  template <class Scalar>
  class Selection {
   public:
    /// False where none of the latents in [first, last) is dead (yet): nothing is watched. Nor where a screen makes a full product
    /// needless and is not dearer, with the product of the dead alone: `predict` then looks at their rows, which gives the same numbers.
    template <class Step>
    bool begin(const AuxK& term, const Step& step, Index blocks, Index block_rows, Index first = 0,
               Index last = std::numeric_limits<Index>::max()) {
      watching_ = false;
      first_ = first;
      last_ = last;
      list_dead(step);
      if (dead_.empty() || cheaper_beside_a_screen(step)) return false;
      rank(term, step);
      block_rows_ = block_rows;
      if (blocks_.size() < static_cast<std::size_t>(blocks)) blocks_.resize(static_cast<std::size_t>(blocks));
      for (Index block = 0; block < blocks; ++block)
        blocks_[static_cast<std::size_t>(block)].begin(std::min(block_rows, step.rows() - block * block_rows), kept_, floor_);
      return watching_ = true;
    }
    void take(Index block, Index row, Index first, std::span<const Scalar> z) {
      if (!watching_) return;
      auto& largest = blocks_[static_cast<std::size_t>(block)];
      const Index last = first + static_cast<Index>(z.size());
      const auto begin = std::lower_bound(dead_.begin(), dead_.end(), first);
      const Index name = begin - dead_.begin();
      constexpr std::size_t most = 64;
      std::array<Scalar, most> of_dead;
      for (auto i = begin; i != dead_.end() && *i < last;) {
        const Index at = name + (i - begin);
        std::size_t count = 0;
        for (; count < most && i != dead_.end() && *i < last; ++i) of_dead[count++] = z[static_cast<std::size_t>(*i - first)];
        const std::span<const Scalar> values(of_dead.data(), count);
        if (ranks_by_z()) {
          largest.take(row, at, values);
        } else {
          largest.take(row, at, values, [&](Index j) { return key(values[static_cast<std::size_t>(j)], at + j); });
        }
      }
    }

   private:
    friend struct AuxK;
    template <class Step>
    bool cheaper_beside_a_screen(const Step& step) const {
      return 2 * static_cast<Index>(dead_.size()) <= step.encoder->rows() && detail::screen_is_ready(step);
    }
    template <class Step>
    void list_dead(const Step& step) {
      detail::GatheredLatents<Scalar>::list_dead(step, dead_);
      std::erase_if(dead_, [&](Index i) { return i < first_ || i >= last_; });
    }
    template <class Step>
    void rank(const AuxK& term, const Step& step) {
      norms_ = term.rank_by_decoder_norm ? step.decoder_norms.data() : nullptr;
      by_magnitude_ = term.by_magnitude;
      kept_ = std::min(term.wanted(step.output_width()), static_cast<Index>(dead_.size()));
      floor_ = term.raw_values ? -std::numeric_limits<Scalar>::infinity() : Scalar(0);
    }
    bool ranks_by_z() const { return norms_ == nullptr && !by_magnitude_; }
    /// \param n  position among the dead
    Scalar key(Scalar z, Index n) const {
      const Scalar value = by_magnitude_ ? std::abs(z) : z;
      return norms_ == nullptr ? value : value * norms_[dead_[static_cast<std::size_t>(n)]];
    }
    /// What the entries call the n-th of the dead: its position where the dead stand apart, in a path of their own latents.
    Index name(Index n) const { return apart_ ? n : dead_[static_cast<std::size_t>(n)]; }
    /// Entries of what was watched.
    void emit_watched(Index rows, Index names, Entries<Scalar>& out) {
      out.reset(names);
      for (Index b = 0; b < rows; ++b) {
        for (const auto& e : blocks_[static_cast<std::size_t>(b / block_rows_)].finish(b % block_rows_))
          out.push(name(e.latent), e.z, e.z);
        out.finish_row();
      }
    }
    /// The same from a product of the dead alone.
    template <class Step>
    void emit_gathered(Step& step, Index names, Entries<Scalar>& out, Threads& threads) {
      const Index block_rows = detail::encode_block_rows(step.rows()), blocks = (step.rows() + block_rows - 1) / block_rows;
      const auto count = static_cast<Index>(dead_.size());
      if (chosen_.size() < static_cast<std::size_t>(blocks)) chosen_.resize(static_cast<std::size_t>(blocks));
      for (auto& block : chosen_) block.reset(names);
      gathered_.for_each_row(step, dead_, threads, [&](Index block, Index, std::span<const Scalar> z) {
        auto& entries = chosen_[static_cast<std::size_t>(block)];
        auto room = rooms_.borrow();
        std::span<const Scalar> keys = z;
        if (!ranks_by_z()) {
          room->ranked.resize(z.size());
          for (Index n = 0; n < count; ++n) room->ranked[static_cast<std::size_t>(n)] = key(z[static_cast<std::size_t>(n)], n);
          keys = room->ranked;
        }
        kernels::visit_largest(keys, kept_, floor_, room->largest, [&](Index n) {
          const Scalar value = z[static_cast<std::size_t>(n)];
          entries.push(name(n), value, value);
        });
        entries.finish_row();
      });
      detail::concatenate<Scalar>(std::span<const Entries<Scalar>>(chosen_.data(), static_cast<std::size_t>(blocks)), names,
                                  out);
    }

    struct Room {
      kernels::LargestRoom<Scalar> largest;
      std::vector<Scalar> ranked;
    };

    bool watching_ = false, by_magnitude_ = false, apart_ = false;
    Index first_ = 0, last_ = 0;
    Index block_rows_ = 0, kept_ = 0;
    Scalar floor_ = 0;
    const Scalar* norms_ = nullptr;
    std::vector<Index> dead_;  ///< ascending
    std::vector<kernels::LargestPerRow<Scalar>> blocks_;
    std::vector<Entries<Scalar>> chosen_;
    Pool<Room> rooms_;
    detail::GatheredLatents<Scalar> gathered_;
    Tensor<Scalar> decoder_;   ///< rows of the dead
    Tensor<Scalar> weighted_;  ///< the residual, where rows have weights
    std::vector<double> row_loss_;
  };

  template <class Step>
  double apply(Step& step, Selection<typename Step::Scalar>& selection, Threads& threads) const {
    return predict(step, step.residual, selection, threads);
  }
  /// The term for any residual -r [B x D_out] instead of the whole reconstruction's.
  template <class Step>
  double predict(Step& step, const Tensor<typename Step::Scalar>& residual, Selection<typename Step::Scalar>& selection,
                 Threads& threads) const {
    using Scalar = typename Step::Scalar;
    if (!selection.watching_) {
      // Or the dead were told after the forward, as they depend on what fired in this very batch.
      selection.list_dead(step);
      if (selection.dead_.empty()) return 0;
      selection.rank(*this, step);
    }
    const Index rows = step.rows(), width = step.output_width(), dead = static_cast<Index>(selection.dead_.size());

    Path<Scalar>& path = step.add_path();
    // More than half of all would hardly be denser apart, and their rows and gradients take memory.
    const bool apart = selection.apart_ = 2 * dead <= step.latents();
    if (apart) path.own_latents = selection.dead_;
    const Index names = apart ? dead : step.latents();
    if (selection.watching_) {
      selection.emit_watched(rows, names, path.entries);
    } else {
      selection.emit_gathered(step, names, path.entries, threads);
    }
    if (apart) detail::gather_rows(*step.decoder, std::span<const Index>(selection.dead_), selection.decoder_, threads);
    const auto with_decoder = [&](const auto& f) { apart ? f(selection.decoder_) : f(*step.decoder); };
    Tensor<Scalar>& error = path.own_cotangent;  // r' - r = r' + (x' - x)
    error = residual;
    with_decoder([&](const auto& w) { detail::add_decoded(path.entries.codes, w, error, step.scratch, threads); });
    const double square = detail::mean_square_error(step, error, selection.row_loss_, threads);

    double factor = coefficient;
    if (scale_by_dead) factor *= std::min(static_cast<double>(dead) / static_cast<double>(wanted(width)), 1.0);
    if (normaliser != AuxKNormaliser::none) {
      Tensor<Scalar>& weighted = selection.weighted_;
      if (!step.row_weight.empty()) detail::weigh_rows(step, weighted = residual, true);
      const double variance = detail::row_variance(normaliser == AuxKNormaliser::target_variance ? step.measured_target
                                                   : step.row_weight.empty()                     ? RowsView<Scalar>(residual)
                                                                                                 : RowsView<Scalar>(weighted),
                                                   step.row_factors);
      factor = variance > 0 ? factor / variance : 0.0;
    }
    const double value = factor * square;
    if (!step.wants_gradient) return value;

    kernels::scale(error.data(), static_cast<Scalar>(2 * factor / static_cast<double>(rows)), error.size());
    detail::weigh_rows(step, error);
    path.cotangent = &path.own_cotangent;
    path.df.assign(static_cast<std::size_t>(path.entries.size()), Scalar(0));
    with_decoder(
        [&](const auto& w) { detail::add_code_gradient(path.entries.codes, error, w, path.df, step.scratch, threads); });
    path.dz = path.df;  // relu'd values are positive where they were kept
    if (!detach_residual) step.add_to_cotangent(Scalar(1), error);
    if (through_decoder_bias) detail::add_column_sums(error, step.decoder_bias_gradient().data(), step.column_sums, threads);
    return value;
  }
};

}  // namespace sae::inline SAE_ABI
