#pragma once
#include <sae/core/types.hpp>

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

}  // namespace sae::inline SAE_ABI
