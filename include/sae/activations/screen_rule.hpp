#pragma once
#include <sae/core/types.hpp>

#include <algorithm>

namespace sae::inline SAE_ABI {

/// By what an activation selects from the pre-activations z of a row, where that lets a screen (models/screen.hpp) leave most of them
/// uncomputed.
struct ScreenRule {
  Index k = 0;  ///< > 0: latents that may be among the k largest positive z norms_i of their row
  /// k = 0: latents that may have z norms_i + sign shift_i >= bound.
  float bound = 0;
  const float* norms = nullptr;  ///< [F], each >= 0; null: 1
  const float* shift = nullptr;  ///< [F]; null: 0
  float sign = 1;
  bool magnitude = false;  ///< |z| in the place of z
  /// Candidates of a row at most: more of them would cost as much as the product.
  Index capacity(Index latents) const { return k > 0 ? 12 * k + 768 : std::min(latents / 4, 1024 + latents / 32); }
};

}  // namespace sae::inline SAE_ABI
