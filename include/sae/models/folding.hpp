#pragma once
#include <sae/core/threads.hpp>
#include <sae/models/forward.hpp>

#include <algorithm>
#include <span>
#include <string_view>

namespace sae::inline SAE_ABI::detail {

/// W_dec[i] /= n_i, W_enc[i] *= n_i, b_enc[i] *= n_i with the n_i of `decoder_norms`; the activation then ranks by z. See
/// SparseAutoencoder::fold_decoder_norms.
template <class Activation, class Parameters>
void fold_decoder_norms(Activation& activation, Parameters& p, std::span<const Index> sites) {
  using Scalar = typename Parameters::Scalar;
  if (p.tied()) throw_value("fold_decoder_norms: encoder and decoder are tied, a fold would change what is read");
  bool* const by_norm = rank_by_norm(activation);
  if (by_norm != nullptr && !*by_norm)
    throw_value(
        "fold_decoder_norms: a TopK that ranks by z would select other latents; only rank_by_decoder_norm can be folded");
  const bool ranked_by_norm = by_norm != nullptr;
  if (ranked_by_norm) *by_norm = false;
  const bool has_bias = p.b_enc.size() > 0;
  const Index in = p.width();
  Tensor<Scalar> norms;
  ScratchPool<Scalar> scratch;
  decoder_norms(p.W_dec, sites, norms, scratch, Threads::shared());
  for (Index i = 0; i < p.latents(); ++i) {
    const Scalar norm = norms[i];
    if (norm == Scalar(0) && ranked_by_norm) {
      std::fill_n(p.W_enc.row(i), in, Scalar(0));
      if (has_bias) p.b_enc[i] = Scalar(0);
    }
    if (!(norm > Scalar(0))) continue;
    kernels::scale(p.W_dec.row(i), Scalar(1) / norm, p.output_width());
    kernels::scale(p.W_enc.row(i), norm, in);
    if (has_bias) p.b_enc[i] *= norm;
    p.activation.rescale_latent(i, norm);
  }
}

/// Codes become `factor` f, and what the model writes stays: W_enc, b_enc and what the activation compares with z are multiplied by
/// it, W_dec is divided by it. Exact for positively homogeneous activations, whatever they rank by. For models that are not tied.
template <class Activation, class Parameters>
void scale_codes(const Activation& activation, Parameters& p, typename Parameters::Scalar factor) {
  kernels::scale(p.W_enc.data(), factor, p.W_enc.size());
  kernels::scale(p.b_enc.data(), factor, p.b_enc.size());
  kernels::scale(p.W_dec.data(), 1 / factor, p.W_dec.size());
  const bool* const by_norm = rank_by_norm(activation);
  if (by_norm != nullptr && *by_norm) return;  // z |W_dec[i]| stays
  if constexpr (requires { p.activation.inner.rescale(factor); }) {
    p.activation.inner.rescale(factor);  // a gate in front of it reads what it read
  } else {
    p.activation.rescale(factor);
  }
}

}  // namespace sae::inline SAE_ABI::detail
