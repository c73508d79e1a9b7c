#pragma once
#include <sae/models/objective.hpp>

#include <string_view>

namespace sae::inline SAE_ABI {

/// How the number of active latents enters the loss.
enum class L0Form {
  linear,     ///< mean_b L0_b (Rajamanoharan et al. 2024; SAELens "step")
  quadratic,  ///< mean_b 2/T (L0_b - T)^2: every row towards T active latents (Gemma Scope 2; SAELens "quadratic")
  target,     ///< (mean_b L0_b / T - 1)^2: the mean towards T (dictionary_learning)
};

/// A penalty on L0 itself, for activations that learn when a latent is active (JumpReLU):
///
///   L = coefficient s(t) form(L0),    L0_b = number of active latents of row b,    T = target
///
/// The derivative by L0 goes to `Step::gate_gradient`, which the activation's straight-through estimator turns into a gradient of
/// its thresholds: linear c/B, quadratic c 4/(T B) (L0_b - T), target c 2/(T B) (mean L0 / T - 1), c = coefficient s(t).
/// Source: arXiv:2407.14435 eq. 9; SAELens saes/jumprelu_sae.py; dictionary_learning trainers/jumprelu.py, whose gradient sees only
/// the half of the window above the threshold (its issue 55): not copied.
struct L0Penalty {
  double coefficient = 1;  ///< lambda >= 0
  L0Form form = L0Form::linear;
  double target = 0;  ///< T > 0; not for `linear`

  static constexpr std::string_view name = "l0";
  template <class Visitor>
  void visit_settings(Visitor&& visitor) const {
    constexpr std::string_view forms[] = {"linear", "quadratic", "target"};
    visitor("coefficient", coefficient);
    visitor("form", forms[static_cast<int>(form)]);
    visitor("target", target);
  }
  void check(Index, Index) const {
    require_non_negative("L0Penalty: coefficient", coefficient);
    if (form != L0Form::linear) require_positive("L0Penalty: target", target);
  }
  bool needs_decoder_norms() const { return false; }

  template <class Step>
  double apply(Step& step, NoSelection&, Threads&) const {
    using Scalar = typename Step::Scalar;
    const auto& codes = step.main.entries.codes;
    const auto rows = static_cast<double>(step.rows());
    const double scale = coefficient * step.sparsity_scale;
    const double excess = static_cast<double>(codes.size()) / rows / target - 1;  // of the mean
    double sum = 0;
    for (Index b = 0; b < step.rows(); ++b) {
      const auto l0 = static_cast<double>(codes.end(b) - codes.begin(b));
      const double d = l0 - target;
      sum += form == L0Form::linear ? l0 : form == L0Form::quadratic ? 2 / target * d * d : 0;
      if (!step.wants_gradient) continue;
      const double slope = form == L0Form::linear ? 1 : form == L0Form::quadratic ? 4 / target * d : 2 / target * excess;
      step.gate_gradient()[static_cast<std::size_t>(b)] += static_cast<Scalar>(scale / rows * slope);
    }
    return form == L0Form::target ? scale * excess * excess : scale * sum / rows;
  }
};

}  // namespace sae::inline SAE_ABI
