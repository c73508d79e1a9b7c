#pragma once
#include <sae/core/error.hpp>
#include <sae/core/types.hpp>
#include <sae/files/dtype.hpp>

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

namespace sae::inline SAE_ABI {

/// An array that lies in a file, or in what was unpacked of one: a view, good as long as its file is. Readers make it such that every number
/// lies inside of their bytes.
struct ArrayView {
  Dtype dtype = Dtype::float32;
  std::vector<Index> shape;         ///< [] of a single number
  std::vector<Index> strides;       ///< of each axis, in numbers, >= 0; empty: C order
  const std::byte* data = nullptr;  ///< the first number, at any alignment

  Index elements() const { return std::accumulate(shape.begin(), shape.end(), Index{1}, std::multiplies<>()); }
  /// From one number of axis a to the next, in numbers.
  Index stride(std::size_t axis) const {
    if (!strides.empty()) return strides[axis];
    Index out = 1;
    for (std::size_t later = axis + 1; later < shape.size(); ++later) out *= shape[later];
    return out;
  }
  /// Numbers follow one another in C order.
  bool contiguous() const {
    if (strides.empty()) return true;
    Index next = 1;
    for (std::size_t axis = shape.size(); axis-- > 0; next *= shape[axis])
      if (shape[axis] != 1 && strides[axis] != next) return false;
    return true;
  }
};

namespace detail {
/// out[i] = number i of n, `stride` numbers apart, where `readable_as<T>(dtype)`.
template <class T>
void convert_strided(Dtype dtype, const std::byte* from, Index n, Index stride, T* out) {
  if (stride == 1) return convert(dtype, from, n, out);
  for (Index i = 0; i < n; ++i) convert(dtype, from + i * stride * item_size(dtype), 1, out + i);
}
}  // namespace detail

/// An array of two axes at most as a matrix: [rows, cols] as it is, [n] as one row, a single number as 1 x 1; or, of [rows, cols], its
/// transpose. Of any floating kind as float or double, rounded to nearest; integers as integers that hold all their values.
/// Cost   one pass; transposing goes by tiles.
/// \param file, name  for what is said where it is refused
/// \throws FileError  it has more axes; its kind is not readable as T.
template <class T>
Tensor<T> read_matrix(const ArrayView& array, std::string_view file, std::string_view name, bool transposed = false) {
  if (!readable_as<T>(array.dtype))
    throw_file(file, ": tensor ", name, " holds ", to_string(array.dtype), ", which is not read as ", to_string(dtype_of<T>()));
  if (array.shape.size() > 2)
    throw_file(file, ": tensor ", name, " has shape ", detail::shape_text(array.shape), "; two axes are the most here");
  const bool two = array.shape.size() == 2;
  const Index rows = two ? array.shape[0] : 1, cols = array.shape.empty() ? 1 : array.shape.back();
  const Index down = two ? array.stride(0) : 0, right = array.shape.empty() ? 0 : array.stride(array.shape.size() - 1);
  const auto at = [&](Index row, Index col) { return array.data + (row * down + col * right) * item_size(array.dtype); };
  Tensor<T> out(transposed ? cols : rows, transposed ? rows : cols);
  if (out.size() == 0) return out;  // of 2^60 rows, perhaps
  // Along what lies together in the file, so that each of its lines is met once or stays near.
  constexpr Index tile = 64;
  Buffer<T> part(static_cast<std::size_t>(tile));
  const bool along_rows = right <= down || rows == 1;
  const Index lines = along_rows ? rows : cols, length = along_rows ? cols : rows, step = along_rows ? right : down;
  const bool straight = along_rows != transposed;  // a line of the file is a row of the result
  if (straight) {
    for (Index line = 0; line < lines; ++line)
      detail::convert_strided(array.dtype, along_rows ? at(line, 0) : at(0, line), length, step, out.row(line));
    return out;
  }
  for (Index first = 0; first < length; first += tile)
    for (Index line = 0; line < lines; ++line) {
      const Index n = std::min(tile, length - first);
      detail::convert_strided(array.dtype, along_rows ? at(line, first) : at(first, line), n, step, part.data());
      for (Index i = 0; i < n; ++i) out.row(first + i)[line] = part[static_cast<std::size_t>(i)];
    }
  return out;
}

}  // namespace sae::inline SAE_ABI
