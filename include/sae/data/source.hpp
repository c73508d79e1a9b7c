#pragma once
#include <sae/core/types.hpp>

#include <algorithm>
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
///   next(batch)     fills the first rows of `batch` [B x D] (the caller sets its shape), returns how many; 0: exhausted.
///                   Fewer than B rows are no end: `fill_batch` asks until a batch is full.
///                   While a step works, `fit` may call it from another thread, never twice at once
///   state()         where it stands; restore(state) goes back there, also in another process on the same data
///   endless()       optional: true where `next` never returns 0
template <class T, class Scalar>
concept RowSource = requires(T& source, const T& constant, Tensor<Scalar>& batch, const SourceState& state) {
  { constant.width() } -> std::convertible_to<Index>;
  { source.next(batch) } -> std::convertible_to<Index>;
  { constant.state() } -> std::convertible_to<SourceState>;
  source.restore(state);
};

/// Fills a whole batch [B x D]; returns how many rows, fewer than B only where the source is exhausted.
template <class Scalar, RowSource<Scalar> Source>
Index fill_batch(Source& source, Tensor<Scalar>& batch) {
  auto filled = static_cast<Index>(source.next(batch));
  Tensor<Scalar> piece;
  while (filled > 0 && filled < batch.rows()) {
    piece.resize(batch.rows() - filled, batch.cols());
    const auto got = static_cast<Index>(source.next(piece));
    if (got == 0) break;
    std::copy_n(piece.data(), got * batch.cols(), batch.row(filled));
    filled += got;
  }
  return filled;
}

/// Whether a source says that it never ends.
template <class Source>
bool is_endless(const Source& source) {
  if constexpr (requires { source.endless(); }) {
    return source.endless();
  } else {
    return false;
  }
}

}  // namespace sae::inline SAE_ABI
