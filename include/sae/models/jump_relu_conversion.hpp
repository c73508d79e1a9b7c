#pragma once
#include <sae/activations/batch_topk.hpp>
#include <sae/activations/gated.hpp>
#include <sae/activations/jump_relu.hpp>
#include <sae/models/sparse_autoencoder.hpp>

#include <cmath>
#include <utility>

// Models whose codes of a row are those of a JumpReLU, as a JumpReLU.
namespace sae::inline SAE_ABI {

/// The JumpReLU that computes what a Gated autoencoder does. With m = P e^r_mag + b_mag as its pre-activation, P + b_gate > 0 is
/// m > b_mag - e^r_mag b_gate, and relu(m) > 0 is m > 0:
///
///   W_enc[i] <- e^r_i W_enc[i],   b_enc <- b_mag,   theta_i = max(0, b_mag,i - e^r_i b_gate,i),   W_dec and b_dec as they are
///
/// The same codes and reconstructions but for rounding, which can move an entry only where pi is within rounding of 0. The bandwidth,
/// which only training reads, is the default one. Cost: a copy of the parameters.
/// Source: Rajamanoharan et al. 2024, arXiv:2404.16014, appendix on the equivalence with JumpReLU.
template <int D, int F, class Scalar>
SparseAutoencoder<D, F, JumpReLU, Scalar> to_jump_relu(const SparseAutoencoder<D, F, Gated, Scalar>& gated) {
  SparseAutoencoder<D, F, JumpReLU, Scalar> out(gated.d_in(), gated.latents(), JumpReLU{},
                                                {.subtract_decoder_bias = gated.subtracts_decoder_bias()});
  const auto& from = gated.parameters();
  auto& to = out.parameters();
  to.W_enc = from.W_enc;
  to.b_enc = from.activation.b_mag;
  to.W_dec = from.W_dec;
  to.b_dec = from.b_dec;
  for (Index i = 0; i < gated.latents(); ++i) {
    const Scalar scale = std::exp(from.activation.r_mag[i]);
    kernels::scale(to.W_enc.row(i), scale, gated.d_in());
    const Scalar theta = from.activation.b_mag[i] - scale * from.activation.b_gate[i];
    to.activation.threshold[i] = theta < Scalar(0) ? Scalar(0) : theta;
  }
  return out;
}

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
