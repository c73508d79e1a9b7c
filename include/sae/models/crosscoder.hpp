#pragma once
#include <sae/models/sparse_autoencoder.hpp>

#include <cmath>
#include <utility>
#include <vector>

// A crosscoder reads and writes several sites at once (layers of a model, or the same layer of several models): it is the
// SparseAutoencoder of rows that hold the sites side by side, x = (x^1, ..., x^S) [B x (D_1 + ... + D_S)],
//
//   z = sum_s x^s W_enc^s^T + b_enc          f = activation(z)          x'^s = f W_dec^s + b_dec^s
//
// whose decoder norm n_i, wherever a penalty or a rank asks for it, is the sum over the sites of |W_dec^s[i]|, not the norm of the
// whole row: a latent then pays for each site that it writes to, and drops those it does not need.
//
//   SparseAutoencoder model(3 * 64, 4096, ReLU{}, crosscoder({64, 64, 64}));
//   Trainer trainer(model, {.tokens = 2'000'000, .decoder = DecoderNorm::free}, Objective{L1{.coefficient = 5}});
//
// DecoderNorm::unit brings the whole row to norm 1, sqrt(sum_s |W_dec^s[i]|^2) = 1: sites share it as the gradient says. The Trainer
// normalises rows as wholes; sites of very different size are better scaled before, and `fold_site_scales` undoes that. SAELens'
// files have no place for the sites: a crosscoder is saved there as the SparseAutoencoder that computes the same.
// Source: Lindsey et al. 2024, "Sparse crosscoders for cross-layer features and model diffing",
// transformer-circuits.pub/2024/crosscoders; llamascopium models/crosscoder.py (norms per head, b_dec not subtracted).
namespace sae::inline SAE_ABI {

/// Options of a crosscoder over sites of these widths; b_dec is not subtracted from its input.
inline ModelOptions crosscoder(std::vector<Index> sites, TiedInitialization initialization = {}) {
  return {.subtract_decoder_bias = false, .initialization = initialization, .sites = std::move(sites)};
}

/// |W_dec^s[i]| [F x S]. A latent's share of a site, norm / row sum, tells whose feature it is: of one site, or of several.
template <int D, int F, class Activation, class Scalar>
Matrix<Scalar> site_norms(const SparseAutoencoder<D, F, Activation, Scalar>& model) {
  const std::vector<Index> whole{model.d_in()};
  const auto sites = model.sites().empty() ? std::span<const Index>(whole) : model.sites();
  Matrix<Scalar> out(model.latents(), static_cast<Index>(sites.size()));
  for (Index i = 0; i < model.latents(); ++i) {
    const Scalar* row = model.parameters().W_dec.row(i);
    for (std::size_t s = 0; s < sites.size(); ++s) {
      out(i, static_cast<Index>(s)) = std::sqrt(kernels::squared_norm(row, sites[s]));
      row += sites[s];
    }
  }
  return out;
}

/// The model was trained on rows (c_1 x^1, ..., c_S x^S); afterwards it reads x. At each site W_enc is multiplied by c_s, W_dec and
/// b_dec are divided by it; codes and reconstruction (in its own units) stay. Where a rank by the decoder norm must stay, too, fold
/// the norms first (`fold_decoder_norms`), as these change.
/// \throws ValueError  there is not one scale for each site, one is not a positive finite number, encoder and decoder are tied, or
///                     the activation ranks by the decoder norm.
template <int D, int F, class Activation, class Scalar>
void fold_site_scales(SparseAutoencoder<D, F, Activation, Scalar>& model, const std::vector<double>& scales) {
  auto& p = model.parameters();
  if (scales.size() != model.sites().size())
    throw_value("fold_site_scales: ", scales.size(), " scales for ", model.sites().size(), " sites");
  for (const double c : scales)
    if (!(c > 0 && std::isfinite(c))) throw_value("fold_site_scales: scale ", c, " is not a positive finite number");
  if (p.tied()) throw_value("fold_site_scales: encoder and decoder are tied, and would need different scales");
  if (const bool* const by_norm = detail::rank_by_norm(model.activation()); by_norm != nullptr && *by_norm)
    throw_value("fold_site_scales: the activation ranks by the decoder norm, which would change; fold_decoder_norms first");
  Index first = 0;
  for (std::size_t s = 0; s < scales.size(); ++s) {
    const Index width = model.sites()[s];
    p.W_enc.map().middleCols(first, width) *= static_cast<Scalar>(scales[s]);
    p.W_dec.map().middleCols(first, width) *= static_cast<Scalar>(1 / scales[s]);
    p.b_dec.map().middleCols(first, width) *= static_cast<Scalar>(1 / scales[s]);
    first += width;
  }
}

}  // namespace sae::inline SAE_ABI
