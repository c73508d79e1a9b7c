#pragma once
#include <sae/core/types.hpp>
#include <sae/kernels/half_kernels.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <utility>
#include <vector>

namespace sae::inline SAE_ABI {

/// Shapes [rows x cols] of the tensors that an optimizer keeps beside one parameter tensor.
using SlotShapes = std::vector<std::pair<Index, Index>>;

/// Where the slots of a row-local optimizer stand beside a stretch of a parameter; those that it does not have are null.
inline constexpr std::size_t most_row_slots = 2;
template <class Scalar>
using SlotRows = std::array<Scalar*, most_row_slots>;

namespace detail {
/// An update of n numbers w by their gradients g whose slots are stored in 16 bits: slot 0 is rounded by the lower half of `at`'s words,
/// slot 1 by the upper one. What the update can do itself (Adam) is done in one pass.
template <class Update>
void update_narrow(const Update& update, float* w, const float* g, const SlotRows<bfloat16>& state, Index n, Rounding at) {
  if constexpr (requires { update(w, g, state, n, at); }) {
    update(w, g, state, n, at);
  } else {
    constexpr Index piece = 512;
    float wide[most_row_slots][piece];
    for (Index from = 0; from < n; from += piece) {
      const Index some = std::min(piece, n - from);
      SlotRows<float> rows{};
      for (std::size_t s = 0; s < most_row_slots; ++s) {
        if (state[s] == nullptr) continue;
        rows[s] = wide[s];
        kernels::widen(state[s] + from, wide[s], some);
      }
      update(w + from, g + from, rows, some);
      for (std::size_t s = 0; s < most_row_slots; ++s)
        if (state[s] != nullptr)
          kernels::narrow(wide[s], state[s] + from, some, {at.key, at.position + static_cast<std::uint32_t>(from), s == 1});
    }
  }
}
}  // namespace detail

}  // namespace sae::inline SAE_ABI
