#pragma once
#include <sae/core/codes.hpp>

#include <span>

// The seam between an activation and everything else. An activation is one struct (relu.hpp, topk.hpp) that answers four
// questions: is the config legal (`check`), which trainable parameters are mine (`Parameters`), what is active (`Selector`),
// and what flows back through me (`backward`). Nothing else in the library asks an activation anything.
//
//   static constexpr std::string_view name;
//   void check(Index latents) const;                    throws where the config is not legal
//   bool needs_decoder_norms() const;                   true: the selector is given |W_dec[i]|
//   bool rank_by_decoder_norm;                          a field of those that rank entries against one another, and of no other
//   template <class Scalar> struct Parameters;          its trainable tensors, with the members of `NoParameters`
//   template <class Scalar> class Selector {            one a block of rows, reused from batch to batch
//     void begin(const Activation&, const Parameters<Scalar>&, std::span<const Scalar> decoder_norms, Index rows);
//     static void link(std::span<Selector> blocks);     optional: once, in one thread, when all have begun; in block order
//     Scalar bound(Index row) const;                    keys of the row at or below it cannot matter any more
//     void take(Index row, Index first, std::span<const Scalar> z);    tile by tile, the latents of a row ascend
//     static void merge(std::span<Selector> blocks);    once, in one thread, when all have seen everything; in block order
//     void emit(Index row, Entries<Scalar>& active, Entries<Scalar>& band);    each row once, in order
//   };
//   template <class Scalar>                             optional: what a training learns from the batch that was just selected
//   void observe(std::span<const Selector<Scalar>> blocks, Parameters<Scalar>& state) const;
//   template <class Scalar>                             writes at.dz and at.band_dz, adds to the gradient of its parameters
//   void backward(const Backward<Scalar>& at, const Parameters<Scalar>&, Parameters<Scalar>& gradient) const;
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
///   dz    to be written (0 before): dL/dz of each entry; of an entry that is active and in the band the two are added
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

/// Own trainable parameters: none. What an activation with tensors of its own gives in its place has the same members.
template <class Scalar>
struct NoParameters {
  /// Sets the shapes; all numbers become 0 (the same struct holds gradients and moments).
  void resize(Index /*latents*/) {}
  /// The numbers that training starts from.
  template <class Activation>
  void initialize(const Activation&) {}
  /// Calls visitor("name", tensor of each set ...) for every own tensor, all [1 x F] or [F x n].
  template <class Visitor, class... Sets>
  static void visit(Visitor&&, Sets&...) {}
  /// Every pre-activation is multiplied by `factor` from now on (an input scale was folded): adapt what is measured in its units.
  void rescale(Scalar /*factor*/) {}
  /// The pre-activations of one latent are (its decoder norm was folded).
  void rescale_latent(Index /*latent*/, Scalar /*factor*/) {}
  /// Brings numbers that a step of the optimizer took out of their range back to it; before every forward of a training.
  void constrain() {}
};

}  // namespace sae::inline SAE_ABI
