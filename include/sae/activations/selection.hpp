#pragma once
#include <sae/activations/screen_rule.hpp>
#include <sae/core/codes.hpp>

#include <algorithm>
#include <optional>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

// The seam between an activation and everything else. An activation is one struct (relu.hpp, topk.hpp) that answers four
// questions: is the config legal (`check`), which trainable parameters are mine (`Parameters`), what is active (`Selector`),
// and what flows back through me (`backward`). Nothing else in the library asks an activation anything.
//
//   static constexpr std::string_view name;
//   void check(Index latents) const;                    throws where the config is not legal
//   bool needs_decoder_norms() const;                   true: the selector is given |W_dec[i]|
//   bool rank_by_decoder_norm;                          a field of those that rank entries against one another, and of no other
//   static constexpr bool has_row_k = true;             its field k is the number of latents a row keeps, and any number will do
//                                                       (what a training may anneal); of those alone for which that is so
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
//
// It may have, besides:
//   std::optional<ScreenRule> Selector::screened() const; void Selector::offer(Index row, Index latent, Scalar z);
//   static bool Selector::screen_holds(std::span<const Selector> blocks);
//                                                       see SelectorBlocks; of float32 alone, `screened` after `begin` and `link`
//   bool encoder_bias() const;                          false: the model has no b_enc
//   bool tied_weights() const;                          true: latents read along W_dec, there is no W_enc
//   bool shared_decoder_bias() const;                   true: b_dec is added to x' only where it is subtracted from x
//   void Parameters::resize(Index latents, Index d_in);  in the place of resize(latents), for tensors [F x D_in]
//   void observe(std::span<const Selector<Scalar>> blocks, Parameters<Scalar>& state) const;   after each forward of a training
//   static void Parameters::visit_state(visitor, sets&...);   as visit, for untrained tensors that a resumed training needs
//   bool pursue(model parameters, step, threads) const; bool pursue_backward(step, threads) const;
//                                                       an encoder that is not one product (matching_pursuit.hpp): the first
//                                                       fills step.main.entries, the second main.dz from main.df, which holds
//                                                       dL/df, and adds paths of its own; false: the ordinary way is gone
//   EncoderGate<Scalar> gate(Parameters<Scalar>) const;  a second product that scales the first (glu.hpp)
namespace sae::inline SAE_ABI {

/// One choice of a pursuit.
template <class Scalar>
struct Choice {
  int latent;
  Scalar value;
};

/// A second encoder, whose sigmoid scales the pre-activations of the first.
template <class Scalar>
struct EncoderGate {
  const Scalar* weights = nullptr;  ///< [F x D_in]
  const Scalar* bias = nullptr;     ///< [F]
};

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
  /// Puts the rows of others behind its own.
  void append(const Entries& more) {
    codes.append(more.codes);
    z.insert(z.end(), more.z.begin(), more.z.end());
  }
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
template <class Scalar_>
struct NoParameters {
  using Scalar = Scalar_;
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

/// The selectors of the blocks of one batch. An activation that is chosen at run time has its own version (any_activation.hpp).
template <class Activation, class Scalar>
class SelectorBlocks {
 public:
  using Selector = typename Activation::template Selector<Scalar>;
  using Parameters = typename Activation::template Parameters<Scalar>;

  /// Starts a batch of `rows`, in blocks of `block_rows`.
  void begin(const Activation& activation, const Parameters& parameters, std::span<const Scalar> decoder_norms, Index rows,
             Index block_rows) {
    count_ = static_cast<std::size_t>((rows + block_rows - 1) / block_rows);
    if (blocks_.size() < count_) blocks_.resize(count_);
    for (std::size_t block = 0; block < count_; ++block) {
      blocks_[block].begin(activation, parameters, decoder_norms,
                           std::min(block_rows, rows - static_cast<Index>(block) * block_rows));
    }
    if constexpr (requires(std::span<Selector> all) { Selector::link(all); })
      Selector::link(std::span<Selector>(blocks_.data(), count_));
  }
  void take(Index block, Index row, Index first, std::span<const Scalar> z) {
    blocks_[static_cast<std::size_t>(block)].take(row, first, z);
  }
  /// What of the float32 pre-activations of this batch can be selected, where a screen may find it; else nothing.
  std::optional<ScreenRule> screened() const {
    if constexpr (requires(const Selector& selector) { selector.screened(); })
      if (count_ > 0) return blocks_[0].screened();
    return std::nullopt;
  }
  /// Some pre-activations in the place of `take`; latents of a row ascend.
  void offer(Index block, Index row, std::span<const int> latents, std::span<const Scalar> z) {
    if constexpr (requires(Selector & selector) { selector.offer(row, Index{}, Scalar{}); })
      for (std::size_t n = 0; n < z.size(); ++n) blocks_[static_cast<std::size_t>(block)].offer(row, latents[n], z[n]);
  }
  /// After all were offered: whether the rule was one that holds for this batch. Else it is to begin again and see everything.
  bool screen_holds() const {
    if constexpr (requires(std::span<const Selector> all) { Selector::screen_holds(all); })
      return Selector::screen_holds(std::span<const Selector>(blocks_.data(), count_));
    else
      return true;
  }
  void merge() { Selector::merge(std::span<Selector>(blocks_.data(), count_)); }
  void emit(Index block, Index row, Entries<Scalar>& active, Entries<Scalar>& band) {
    blocks_[static_cast<std::size_t>(block)].emit(row, active, band);
  }
  /// Shows the batch to untrained state of the activation, where it has some.
  void observe(const Activation& activation, Parameters& state) const {
    const std::span<const Selector> blocks(blocks_.data(), count_);
    if constexpr (requires { activation.observe(blocks, state); }) activation.observe(blocks, state);
  }

 private:
  std::vector<Selector> blocks_;
  std::size_t count_ = 0;
};

namespace detail {

template <class Activation>
bool has_encoder_bias(const Activation& activation) {
  if constexpr (requires { activation.encoder_bias(); })
    return activation.encoder_bias();
  else
    return true;
}
template <class Activation>
bool has_tied_weights(const Activation& activation) {
  if constexpr (requires { activation.tied_weights(); })
    return activation.tied_weights();
  else
    return false;
}
template <class Activation>
bool shares_decoder_bias(const Activation& activation) {
  if constexpr (requires { activation.shared_decoder_bias(); })
    return activation.shared_decoder_bias();
  else
    return false;
}
/// Sets the shapes of an activation's own tensors.
template <class Parameters>
void resize_own(Parameters& own, Index latents, Index d_in) {
  if constexpr (requires { own.resize(latents, d_in); })
    own.resize(latents, d_in);
  else
    own.resize(latents);
}
/// The field `rank_by_decoder_norm` of an activation that has it, else null.
template <class Activation>
auto* rank_by_norm(Activation& activation) {
  if constexpr (requires { activation.rank_by_decoder_norm; }) {
    return &activation.rank_by_decoder_norm;
  } else if constexpr (requires { activation.inner; }) {
    return rank_by_norm(activation.inner);
  } else if constexpr (requires { activation.index(); }) {
    using Bool = std::conditional_t<std::is_const_v<Activation>, const bool, bool>;
    return activation.visit([](auto& inner) -> Bool* { return rank_by_norm(inner); });
  } else {
    return static_cast<std::conditional_t<std::is_const_v<Activation>, const bool, bool>*>(nullptr);
  }
}
/// Calls f(activation) with the activation, or the one inside a choice at run time, where its field k may be set freely; else returns
/// false.
template <class Activation, class F>
bool with_row_k(Activation& activation, const F& f) {
  if constexpr (requires { activation.has_row_k; }) {
    f(activation);
    return true;
  } else if constexpr (requires { activation.index(); }) {
    return activation.visit([&](auto& inner) { return with_row_k(inner, f); });
  } else {
    return false;
  }
}
/// Number of latents that a row keeps, or 0 where the activation has no such setting.
template <class Activation>
double row_k(const Activation& activation) {
  double out = 0;
  with_row_k(activation, [&](const auto& inner) { out = static_cast<double>(inner.k); });
  return out;
}
template <class Activation>
void set_k(Activation& activation, double k, Index latents) {
  const bool known = with_row_k(activation, [&](auto& inner) {
    auto changed = inner;
    changed.k = static_cast<decltype(changed.k)>(k);
    changed.check(latents);
    inner.k = changed.k;
  });
  if (!known)
    throw_value("set_k: the activation ", std::string_view(activation.name), " has no k that may be set (topk, batch_topk and ",
                "abs_topk have)");
}
/// The own tensors of `Activation` where `parameters` are its, also inside a choice at run time, else null.
template <class Activation, class Parameters>
auto* own_parameters(Parameters& parameters) {
  if constexpr (requires { parameters.template get<Activation>(); }) {
    return parameters.template get<Activation>();
  } else {
    using Own = typename Activation::template Parameters<typename Parameters::Scalar>;
    using Result = std::conditional_t<std::is_const_v<Parameters>, const Own, Own>;
    if constexpr (std::is_same_v<std::remove_const_t<Parameters>, Own>)
      return static_cast<Result*>(&parameters);
    else
      return static_cast<Result*>(nullptr);
  }
}

}  // namespace detail

}  // namespace sae::inline SAE_ABI
