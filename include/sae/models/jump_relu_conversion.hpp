#pragma once
#include <sae/activations/batch_topk.hpp>
#include <sae/activations/gated.hpp>
#include <sae/activations/jump_relu.hpp>
#include <sae/models/sparse_autoencoder.hpp>
#include <sae/models/transcoder.hpp>

#include <cmath>
#include <utility>

// Models whose codes of a row are those of a JumpReLU, as a JumpReLU.
namespace sae::inline SAE_ABI {

namespace detail {

/// A model of the same kind, sizes and options with another activation, at its start.
template <class Activation, int D, int F, class Other, class Scalar>
SparseAutoencoder<D, F, Activation, Scalar> same_model_with(const SparseAutoencoder<D, F, Other, Scalar>& model,
                                                            Activation activation) {
  return {model.d_in(), model.latents(), std::move(activation), model.options()};
}
template <class Activation, int D_in, int D_out, int F, class Other, class Scalar>
Transcoder<D_in, D_out, F, Activation, Scalar> same_model_with(const Transcoder<D_in, D_out, F, Other, Scalar>& model,
                                                               Activation activation) {
  return {model.d_in(), model.d_out(), model.latents(), std::move(activation), model.options()};
}
template <class To, class From>
void copy_tensors(const From& from, To& to) {
  to.W_enc = from.W_enc;
  to.b_enc = from.b_enc;
  to.W_dec = from.W_dec;
  to.b_dec = from.b_dec;
  to.W_skip = from.W_skip;
}

template <class Model>
auto gated_to_jump_relu(const Model& gated) {
  using Scalar = typename Model::Scalar;
  auto out = same_model_with(gated, JumpReLU{});
  const auto& from = gated.parameters();
  auto& to = out.parameters();
  copy_tensors(from, to);
  if (to.tied()) to.W_enc = to.W_dec;
  to.b_enc = from.activation.b_mag;
  for (Index i = 0; i < gated.latents(); ++i) {
    const Scalar scale = std::exp(from.activation.r_mag[i]);
    kernels::scale(to.W_enc.row(i), scale, gated.d_in());
    const Scalar theta = from.activation.b_mag[i] - scale * from.activation.b_gate[i];
    to.activation.threshold[i] = theta < Scalar(0) ? Scalar(0) : theta;
  }
  return out;
}
template <class Model>
auto batch_topk_to_jump_relu(const Model& model) {
  const double threshold = model.activation().threshold(model.parameters().activation);
  if (!(threshold >= 0 && std::isfinite(threshold)))
    throw_value("to_jump_relu: the running threshold of the BatchTopK is ", threshold,
                ", not in [0, infinity): no batch of a training was counted yet");
  Model folded = model;
  if (folded.parameters().tied()) folded.parameters().W_enc = folded.parameters().W_dec;
  if (model.activation().rank_by_decoder_norm) folded.fold_decoder_norms();
  auto out = same_model_with(model, JumpReLU{.threshold = threshold});
  copy_tensors(folded.parameters(), out.parameters());
  return out;
}

}  // namespace detail

/// The JumpReLU that computes what a Gated autoencoder or transcoder does. With m = P e^r_mag + b_mag as its pre-activation,
/// P + b_gate > 0 is m > b_mag - e^r_mag b_gate, and relu(m) > 0 is m > 0:
///
///   W_enc[i] <- e^r_i W_enc[i],   b_enc <- b_mag,   theta_i = max(0, b_mag,i - e^r_i b_gate,i),   all else as it is
///
/// The same codes and reconstructions but for rounding, which can move an entry only where pi is within rounding of 0. The bandwidth,
/// which only training reads, is the default one. Cost: a copy of the parameters.
/// Source: Rajamanoharan et al. 2024, arXiv:2404.16014, appendix on the equivalence with JumpReLU.
template <int D, int F, class Scalar>
SparseAutoencoder<D, F, JumpReLU, Scalar> to_jump_relu(const SparseAutoencoder<D, F, Gated, Scalar>& gated) {
  return detail::gated_to_jump_relu(gated);
}
template <int D_in, int D_out, int F, class Scalar>
Transcoder<D_in, D_out, F, JumpReLU, Scalar> to_jump_relu(const Transcoder<D_in, D_out, F, Gated, Scalar>& gated) {
  return detail::gated_to_jump_relu(gated);
}

/// The model that reads one row at a time where BatchTopK ranks a batch: a latent is active where its key is above the threshold
/// that the training has learnt, the same for all latents. Where keys are z |W_dec[i]| the decoder norms are folded first, so
/// that a key is a pre-activation. Mean L0 is k up to how far batches differ; no single batch is selected the same way.
/// An input scale may be folded before or after: the threshold goes along.
/// \throws ValueError  the training has not yet counted a batch (`BatchTopK::observe`).
/// Source SAELens 6.54 saes/batchtopk_sae.py, saes/topk_sae.py.
template <int D, int F, class Scalar>
SparseAutoencoder<D, F, JumpReLU, Scalar> to_jump_relu(const SparseAutoencoder<D, F, BatchTopK, Scalar>& model) {
  return detail::batch_topk_to_jump_relu(model);
}
template <int D_in, int D_out, int F, class Scalar>
Transcoder<D_in, D_out, F, JumpReLU, Scalar> to_jump_relu(const Transcoder<D_in, D_out, F, BatchTopK, Scalar>& model) {
  return detail::batch_topk_to_jump_relu(model);
}

}  // namespace sae::inline SAE_ABI
