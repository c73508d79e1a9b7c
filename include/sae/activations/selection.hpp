#pragma once
#include <sae/core/codes.hpp>

#include <span>

// The seam between an activation and everything else. An activation is one struct (relu.hpp, topk.hpp) that answers four
// questions: is the config legal (`check`), which trainable parameters are mine (`Parameters`), what is active (`Selector`),
// and what flows back through me (`backward`). Nothing else in the library asks an activation anything.
namespace sae::inline SAE_ABI {

/// Selected entries of a batch: codes f and, beside each, the pre-activation z that it came from.
template <class Scalar>
struct Entries {
  Codes<Scalar> codes;
  Buffer<Scalar> z;

  void reset(Index latents) {
    codes.reset(latents);
    z.clear();
  }
  /// Latents ascend within a row.
  void push(Index latent, Scalar f, Scalar pre_activation) {
    codes.push(latent, f);
    z.push_back(pre_activation);
  }
  void finish_row() { codes.finish_row(); }
  Index size() const { return codes.size(); }
};

/// What `Activation::backward` sees. `active` are the entries that decode; `band` the entries, active or not, that a
/// straight-through estimator needs (empty for most activations).
///
///   df    dL/df of each entry: through the reconstruction, G_b . d_i with G = dL/dx' [B x D], plus the terms of the loss
///   dgate dL/dH of row b [B], H = 1 where an entry is active: what an L0 penalty asks for; empty where no term asks
///   dz    to be written: dL/dz of each entry
template <class Scalar>
struct Backward {
  const Entries<Scalar>& active;
  std::span<const Scalar> df;
  std::span<Scalar> dz;
  const Entries<Scalar>& band;
  std::span<const Scalar> band_df;
  std::span<Scalar> band_dz;
  std::span<const Scalar> dgate;
};

/// Own trainable parameters: none. The base of activations that have none.
template <class Scalar>
struct NoParameters {
  void resize(Index /*latents*/) {}
  /// Calls visitor("name", tensor of each set ...) for every own tensor, all [1 x F] or [F x n].
  template <class Visitor, class... Sets>
  static void visit(Visitor&&, Sets&...) {}
  /// Every pre-activation is multiplied by `factor` from now on (an input scale was folded): adapt what is measured in its units.
  void rescale(Scalar /*factor*/) {}
};

}  // namespace sae::inline SAE_ABI
