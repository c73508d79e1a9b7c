#pragma once
#include <sae/activations/gated.hpp>
#include <sae/activations/jump_relu.hpp>
#include <sae/models/sparse_autoencoder.hpp>

#include <cmath>

// Models that are a JumpReLU in another form.
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

}  // namespace sae::inline SAE_ABI
