#pragma once
#include <sae/core/types.hpp>

#include <limits>

namespace sae::inline SAE_ABI {

/// Share of a language model's loss that a reconstruction keeps, from three mean cross-entropies (nats per token, or any one
/// unit): the model as it is, with the reconstruction spliced in, and with the site ablated.
///
///   (ce_ablated - ce_sae) / (ce_ablated - ce_clean)
///
/// 1: as good as the model, 0: as bad as the ablation. It is not clamped: below 0 the splice is worse than the ablation, above 1
/// better than the model. Averaged first, then divided; a mean of the batches' ratios (dictionary_learning) is another number.
/// NaN where the ablation costs nothing (ce_ablated <= ce_clean), since there is nothing to recover, or an argument is NaN.
/// Zero ablation flatters: for a residual stream with a large mean it costs far more than the mean row does, so that the same
/// SAE scores higher against it. Always say against which; `LossRecovered` has both.
/// Source: dictionary_learning evaluation.py `frac_recovered`, SAELens evals.py `ce_loss_score` (both against zero).
inline double loss_recovered(double ce_clean, double ce_sae, double ce_ablated) {
  const double cost = ce_ablated - ce_clean;
  return cost > 0 ? (ce_ablated - ce_sae) / cost : std::numeric_limits<double>::quiet_NaN();
}

/// Cross-entropies of one model on one text, the site in four conditions.
struct SpliceLosses {
  double clean = 0;  ///< x as it is
  double sae = 0;    ///< x' in the place of x
  double zero = 0;   ///< 0 in the place of x
  double mean = 0;   ///< the mean row in the place of x
};
struct LossRecovered {
  double zero = 0;  ///< against zero ablation
  double mean = 0;  ///< against mean ablation
};
inline LossRecovered loss_recovered(const SpliceLosses& ce) {
  return {loss_recovered(ce.clean, ce.sae, ce.zero), loss_recovered(ce.clean, ce.sae, ce.mean)};
}

}  // namespace sae::inline SAE_ABI
