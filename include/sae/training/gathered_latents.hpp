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

  /// Calls take(block, row in block, n, z) for z[b,i] of every row b and every latent i = latents[n]; n ascends within a row. Blocks
  /// of `encode_block_rows` rows run in parallel, the calls of one block in order.
  template <class Step, class Take>
  void for_each(Step& step, std::span<const Index> latents, Threads& threads, const Take& take) {
    const Index count = static_cast<Index>(latents.size()), width = step.input_width();
    weights_.resize(count, width);
    bias_.resize(1, count);
    WideRows<Scalar, typename Step::Stored> wide(step.scratch, width);
    for (Index n = 0; n < count; ++n) {
      const Index i = latents[static_cast<std::size_t>(n)];
      std::copy_n(wide(step.encoder->row(i), width), width, weights_.row(n));
      bias_[n] = step.encoder_bias->size() > 0 ? (*step.encoder_bias)[i] : Scalar(0);
    }
    for_each_pre_activation(step.input.data(), step.rows(), width, weights_.data(), bias_.data(), count, step.scratch, threads,
                            [&](Index block, Index row, Index first, std::span<const Scalar> z) {
                              for (std::size_t j = 0; j < z.size(); ++j)
                                take(block, row, static_cast<std::size_t>(first) + j, z[j]);
                            });
  }

 private:
  Tensor<Scalar> weights_, bias_;
};

}  // namespace sae::inline SAE_ABI::detail
