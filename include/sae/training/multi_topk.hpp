#pragma once
#include <sae/kernels/largest.hpp>
#include <sae/models/backward.hpp>

#include <algorithm>
#include <numeric>
#include <string_view>
#include <vector>

namespace sae::inline SAE_ABI {

/// Multi-TopK: a second reconstruction, with more latents than the model keeps, so that codes stay useful at other k than the
/// one that is trained.
///
///   x'' = sum over the factor k latents with the largest z[b,i] of relu(z[b,i]) d_i + b_dec [+ x W_skip^T]
///   L = coefficient sum_b w_b |x''_b - y_b|^2 / normaliser             w_b = 1 unless the model weighs its rows
///
/// It trains encoder, decoder, b_dec and W_skip as the reconstruction itself does. The normaliser is held constant. sparsify leaves
/// W_skip out of x'', and the encoder out of the gradient; neither is copied.
/// Ties   lower latent first. Cost: sparse, B x factor k x D. Threads: results do not depend on them.
/// Source Gao et al. 2024, arXiv:2406.04093, 5.2 ("Multi-TopK"); sparsify sparse_coder.py (`multi_topk`), trainer.py (weight 1 / 8).
struct MultiTopK {
  Index k = 32;                  ///< latents per row of the model's TopK, >= 1
  Index factor = 4;              ///< >= 1; factor k <= F
  double coefficient = 1.0 / 8;  ///< >= 0
  ErrorNormaliser normaliser = ErrorNormaliser::target_variance;
  bool rank_by_decoder_norm = false;  ///< rank by z |d_i|, as TopK::rank_by_decoder_norm

  static constexpr std::string_view name = "multi_topk";
  template <class Visitor>
  void visit_settings(Visitor&& visitor) const {
    visitor("k", k);
    visitor("factor", factor);
    visitor("coefficient", coefficient);
    visitor("normaliser", detail::name_of(normaliser));
    visitor("rank_by_decoder_norm", rank_by_decoder_norm);
  }
  void check(Index, Index latents) const {
    if (k < 1 || factor < 1 || k > latents / factor)
      throw_value("MultiTopK: factor k = ", factor, " x ", k, " is not in [1, ", latents, "] (the number of latents)");
    require_non_negative("MultiTopK: coefficient", coefficient);
  }
  bool needs_decoder_norms() const { return rank_by_decoder_norm; }

  template <class Scalar>
  class Selection {
   public:
    template <class Step>
    bool begin(const MultiTopK& term, const Step& step, Index blocks, Index block_rows) {
      block_rows_ = block_rows;
      norms_ = term.rank_by_decoder_norm ? step.decoder_norms.data() : nullptr;
      if (blocks_.size() < static_cast<std::size_t>(blocks)) blocks_.resize(static_cast<std::size_t>(blocks));
      for (Index block = 0; block < blocks; ++block)
        blocks_[static_cast<std::size_t>(block)].begin(std::min(block_rows, step.rows() - block * block_rows),
                                                       term.factor * term.k, Scalar(0));
      return true;
    }
    void take(Index block, Index row, Index first, std::span<const Scalar> z) {
      auto& largest = blocks_[static_cast<std::size_t>(block)];
      if (norms_ == nullptr) return largest.take(row, first, z);
      const Scalar *const values = z.data(), *const norms = norms_ + first;
      largest.take(row, first, z, [&](Index j) { return values[j] * norms[j]; });
    }

   private:
    friend struct MultiTopK;
    Index block_rows_ = 0;
    const Scalar* norms_ = nullptr;
    std::vector<kernels::LargestPerRow<Scalar>> blocks_;
    std::vector<double> factors_;
  };

  template <class Step>
  double apply(Step& step, Selection<typename Step::Scalar>& selection, Threads& threads) const {
    using Scalar = typename Step::Scalar;
    const Index rows = step.rows(), width = step.output_width();
    Path<Scalar>& path = step.add_path();
    path.entries.reset(step.latents());
    for (Index b = 0; b < rows; ++b) {
      auto& block = selection.blocks_[static_cast<std::size_t>(b / selection.block_rows_)];
      for (const auto& e : block.finish(b % selection.block_rows_)) path.entries.push(e.latent, e.z, e.z);
      path.entries.finish_row();
    }
    Tensor<Scalar>& error = path.own_cotangent;  // x'' - y, then dL/dx''
    detail::load_decoder_bias(*step.decoder_bias, step.skip, step.raw, rows, error, threads);
    detail::add_decoded(path.entries.codes, *step.decoder, error, step.scratch, threads);
    detail::error_factors(step, normaliser, selection.factors_);
    threads.for_blocks(rows, 64, [&](Index begin, Index end, Index) {
      for (Index b = begin; b < end; ++b) {
        double& value = selection.factors_[static_cast<std::size_t>(b)];
        kernels::add_scaled(error.row(b), Scalar(-1), step.target.row(b), width);
        const auto square = static_cast<double>(kernels::squared_norm(error.row(b), width));
        kernels::scale(error.row(b), static_cast<Scalar>(2 * coefficient * value), width);
        value *= square;
      }
    });
    const double value = coefficient * std::accumulate(selection.factors_.begin(), selection.factors_.end(), 0.0);
    if (!step.wants_gradient) return value;

    path.cotangent = &path.own_cotangent;
    path.df.assign(static_cast<std::size_t>(path.entries.size()), Scalar(0));
    detail::add_code_gradient(path.entries.codes, error, *step.decoder, path.df, step.scratch, threads);
    path.dz = path.df;  // what was kept is positive
    detail::add_column_sums(error, step.decoder_bias_gradient().data(), step.column_sums, threads);
    step.skip_cotangents.push_back(&error);
    return value;
  }
};

}  // namespace sae::inline SAE_ABI
