#pragma once
#include <sae/core/types.hpp>

#include <concepts>
#include <cstdint>
#include <vector>

namespace sae::inline SAE_ABI {

/// Where a source stands: enough to go on from there and yield the same rows, in the same order, to the last bit.
struct SourceState {
  std::vector<std::uint64_t> counters;  ///< positions, epochs, random-number counters: the source's own meaning
  Tensor<float> rows;                   ///< rows that are buffered and cannot be read again cheaply; often empty
  std::vector<SourceState> inner;       ///< the states of the sources that this one draws from
};

/// A source of rows: the activations that an SAE is trained and measured on.
///
///   width()         D
///   next(batch)     fills the first rows of `batch` [B x D] (the caller sets its shape), returns how many; 0: exhausted
///   state()         where it stands; restore(state) goes back there, also in another process on the same data
template <class T, class Scalar>
concept RowSource = requires(T& source, const T& constant, Tensor<Scalar>& batch, const SourceState& state) {
  { constant.width() } -> std::convertible_to<Index>;
  { source.next(batch) } -> std::convertible_to<Index>;
  { constant.state() } -> std::convertible_to<SourceState>;
  source.restore(state);
};

}  // namespace sae::inline SAE_ABI
