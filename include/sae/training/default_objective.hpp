#pragma once
#include <sae/activations/any_activation.hpp>
#include <sae/training/any_objective.hpp>

namespace sae::inline SAE_ABI {

/// The terms that go with an activation where none are given: AuxK for TopK, L1 for ReLU, a penalty on L0 for JumpReLU, GatedAux
/// for Gated.
template <class Activation>
struct DefaultObjective {
  using type = Objective<>;
  static type make(const Activation&) { return {}; }
};
template <>
struct DefaultObjective<ReLU> {
  using type = Objective<L1>;
  static type make(const ReLU&) { return Objective{L1{.coefficient = 1e-3, .weighted_by_decoder_norm = false}}; }
};
template <>
struct DefaultObjective<JumpReLU> {
  using type = Objective<L0Penalty>;
  static type make(const JumpReLU&) { return Objective{L0Penalty{.coefficient = 1e-3}}; }
};
template <>
struct DefaultObjective<Gated> {
  using type = Objective<GatedAux>;
  static type make(const Gated&) { return Objective{GatedAux{.coefficient = 1e-3}}; }
};
template <>
struct DefaultObjective<TopK> {
  using type = Objective<AuxK>;
  static type make(const TopK& topk) { return Objective{AuxK{.rank_by_decoder_norm = topk.rank_by_decoder_norm}}; }
};
template <>
struct DefaultObjective<BatchTopK> {
  using type = Objective<AuxK>;
  static type make(const BatchTopK& topk) { return Objective{AuxK{.rank_by_decoder_norm = topk.rank_by_decoder_norm}}; }
};
template <>
struct DefaultObjective<AbsTopK> {
  using type = Objective<AuxK>;
  static type make(const AbsTopK& topk) {
    return Objective{AuxK{.raw_values = true, .rank_by_decoder_norm = topk.rank_by_decoder_norm, .by_magnitude = true}};
  }
};
template <>
struct DefaultObjective<GroupMax> {
  using type = Objective<AuxK>;
  static type make(const GroupMax&) { return Objective{AuxK{}}; }
};
template <>
struct DefaultObjective<AnyActivation> {
  using type = AnyObjective;
  static type make(const AnyActivation& any) {
    return any.visit([]<class Activation>(const Activation& activation) -> AnyObjective {
      return DefaultObjective<Activation>::make(activation);
    });
  }
};

}  // namespace sae::inline SAE_ABI
