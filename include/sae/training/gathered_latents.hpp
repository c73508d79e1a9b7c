#pragma once
#include <sae/models/forward.hpp>

#include <algorithm>
#include <span>
#include <vector>

namespace sae::inline SAE_ABI::detail {

/// A few latents of a model, whose pre-activations are computed alone: a dense product [B x D] [D x n] in the place of all F.
template <class Scalar>
class GatheredLatents {
 public:
  /// The latents that count as dead in this step, ascending.
  template <class Step>
  static void list_dead(const Step& step, std::vector<Index>& out) {
    out.clear();
    for (std::size_t i = 0; i < step.dead.size(); ++i)
      if (step.dead[i] != 0) out.push_back(static_cast<Index>(i));
  }

  /// Calls take(block, row in block, n, z) for z[b,i] of every row b and i = latents[n], latents[n + 1], .. in tiles; n ascends within a
  /// row. Blocks of `encode_block_rows` rows run in parallel, the calls of one block in order.
  template <class Step, class Take>
  void for_each(Step& step, std::span<const Index> latents, Threads& threads, const Take& take) {
    const auto visit = [&](const auto* weights, const Scalar* bias) {
      for_each_pre_activation(step.input.data(), step.rows(), step.input_width(), weights, bias,
                              static_cast<Index>(latents.size()), step.scratch, threads, take);
    };
    if (static_cast<Index>(latents.size()) == step.encoder->rows())
      return visit(step.encoder->data(), step.encoder_bias->size() > 0 ? step.encoder_bias->data() : nullptr);
    gather(step, latents, threads);
    visit(weights_.data(), bias_.data());
  }

  /// Calls take(block, row in block, z [n]) for whole rows, otherwise alike. Takes room for a block of them.
  template <class Step, class Take>
  void for_each_row(Step& step, std::span<const Index> latents, Threads& threads, const Take& take) {
    gather(step, latents, threads);
    const Index count = weights_.rows(), width = step.input_width();
    threads.for_blocks(step.rows(), encode_block_rows(step.rows()), [&](Index begin, Index end, Index block) {
      const Index rows = end - begin;
      auto loan = step.scratch.borrow(rows * count + kernels::ProductRows<Scalar>::room(rows, width));
      Scalar* const z = loan.data();
      const kernels::ProductRows<Scalar> ready(step.input.row(begin), width, rows, width, z + rows * count);
      for (Index r = 0; r < rows; ++r) std::copy_n(bias_.data(), count, z + r * count);
      ready.add_product_nt(z, count, weights_.data(), width, count);
      for (Index r = 0; r < rows; ++r) take(block, r, std::span<const Scalar>(z + r * count, static_cast<std::size_t>(count)));
    });
  }

 private:
  template <class Step>
  void gather(const Step& step, std::span<const Index> latents, Threads& threads) {
    gather_rows(*step.encoder, latents, weights_, threads);
    bias_.resize(1, weights_.rows());
    if (step.encoder_bias->size() > 0)
      for (Index n = 0; n < bias_.size(); ++n) bias_[n] = (*step.encoder_bias)[latents[static_cast<std::size_t>(n)]];
  }

  Tensor<Scalar> weights_, bias_;
};

}  // namespace sae::inline SAE_ABI::detail
