#pragma once
#include <sae/activations/batch_topk.hpp>
#include <sae/activations/jump_relu.hpp>
#include <sae/models/sparse_autoencoder.hpp>

#include <cmath>
#include <utility>

// Models whose codes of a row are those of a JumpReLU, as a JumpReLU.
namespace sae::inline SAE_ABI {

// From BatchTopK.

/// The model that reads one row at a time where BatchTopK ranks a batch: a latent is active where its key is above the threshold
/// that the training has learnt, the same for all latents. Where keys are z |W_dec[i]| the decoder norms are folded first, so
/// that a key is a pre-activation. Mean L0 is k up to how far batches differ; no single batch is selected the same way.
/// An input scale may be folded before or after: the threshold goes along.
/// \throws ValueError  the training has not yet counted a batch (`BatchTopK::observe`).
/// Source SAELens 6.54 saes/batchtopk_sae.py, saes/topk_sae.py.
template <int D, int F, class Scalar>
SparseAutoencoder<D, F, JumpReLU, Scalar> to_jump_relu(const SparseAutoencoder<D, F, BatchTopK, Scalar>& model) {
  const double threshold = model.activation().threshold(model.parameters().activation);
  if (!(threshold >= 0 && std::isfinite(threshold)))
    throw_value("to_jump_relu: the running threshold of the BatchTopK is ", threshold,
                ", not in [0, infinity): no batch of a training was counted yet");
  SparseAutoencoder<D, F, BatchTopK, Scalar> folded = model;
  if (model.activation().rank_by_decoder_norm) folded.fold_decoder_norms();
  SparseAutoencoder<D, F, JumpReLU, Scalar> out(model.d_in(), model.latents(), JumpReLU{.threshold = threshold},
                                                {.subtract_decoder_bias = model.subtracts_decoder_bias()});
  auto& to = out.parameters();
  auto& from = folded.parameters();
  to.W_enc = std::move(from.W_enc);
  to.b_enc = std::move(from.b_enc);
  to.W_dec = std::move(from.W_dec);
  to.b_dec = std::move(from.b_dec);
  return out;
}

}  // namespace sae::inline SAE_ABI
