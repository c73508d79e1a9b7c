#pragma once
#include <sae/kernels/float_kernels.hpp>

#include <algorithm>
#include <vector>

// Products of float32 matrices: C [m x n] += A [m x k] B [k x n].
//
// Order: every c[i,j] is one chain of fused multiply-adds, c <- fma(a[i,p], b[p,j], c) for p = 0 .. k-1. Nothing else depends on how
// the work is cut, so blocks, routes and threads give the same bytes.
//
// Shape of the work (Goto and van de Geijn 2008, "Anatomy of high-performance matrix multiplication"): A is packed once in groups of
// rows, [p][row] in each; B panel by panel, a panel being as many columns as two registers hold, [p][column], while it is used; a
// tile of one group and one panel stays in registers over a stretch of p.
namespace sae::inline SAE_ABI::kernels::detail {

inline constexpr Index stretch = 256;  ///< of p over which a tile stays in registers: a panel of B then fits the first cache
inline constexpr Index panel_room = stretch * widest_panel;

/// A matrix by its strides: element (i, j) stands at data[i * row + j * column].
struct FloatView {
  const float* data;
  Index row, column;
  FloatView from(Index i, Index j) const { return {data + i * row + j * column, row, column}; }
};

/// A [m x k] in groups of rows, stretch by stretch of p; m k numbers.
inline void pack_rows(const FloatView& a, Index m, Index k, const FloatKernels& kernels, float* to) {
  for (Index p0 = 0; p0 < k; p0 += stretch) {
    const Index n = std::min(stretch, k - p0);
    Index i = 0;
    for (const Index size : kernels.groups)
      for (; i + size <= m; i += size)
        for (Index p = p0; p < p0 + n; ++p)
          for (Index r = 0; r < size; ++r) *to++ = a.data[(i + r) * a.row + p * a.column];
  }
}

/// Columns 0 .. n-1 of B [k x n] as one panel, n <= panel; the columns that are lacking become 0.
inline void pack_panel(const FloatView& b, Index k, Index n, const FloatKernels& kernels, float* to) {
  const Index panel = kernels.panel;
  if (n < panel) std::fill_n(to, k * panel, 0.0F);
  if (b.column == 1) {
    for (Index p = 0; p < k; ++p) std::copy_n(b.data + p * b.row, n, to + p * panel);
    return;
  }
  Index j = 0;
  if (b.row == 1)
    for (; j + 8 <= n; j += 8) kernels.transpose_eight(b.data + j * b.column, b.column, k, to + j, panel);
  for (; j < n; ++j)
    for (Index p = 0; p < k; ++p) to[p * panel + j] = b.data[p * b.row + j * b.column];
}

/// C [m x n] += A B for packed A [m x k].
/// \param panel  room for `panel_room` numbers
inline void add_packed_product(float* c, Index ld, const float* packed, Index m, Index k, const FloatView& b, Index n,
                               const FloatKernels& kernels, float* panel) {
  for (Index j = 0; j < n; j += kernels.panel) {
    const Index columns = std::min(kernels.panel, n - j);
    for (Index p = 0; p < k; p += stretch) {
      const Index depth = std::min(stretch, k - p);
      pack_panel(b.from(p, j), depth, columns, kernels, panel);
      const float* a = packed + p * m;
      Index i = 0;
      for (std::size_t g = 0; g < 3; ++g) {
        const Index size = kernels.groups[g];
        for (; i + size <= m; i += size, a += size * depth) {
          if (columns == kernels.panel) {
            kernels.tiles[g](a, panel, depth, c + i * ld + j, ld);
            continue;
          }
          float whole[largest_group * widest_panel] = {};
          for (Index r = 0; r < size; ++r) std::copy_n(c + (i + r) * ld + j, columns, whole + r * kernels.panel);
          kernels.tiles[g](a, panel, depth, whole, kernels.panel);
          for (Index r = 0; r < size; ++r) std::copy_n(whole + r * kernels.panel, columns, c + (i + r) * ld + j);
        }
      }
    }
  }
}

/// This thread's room for packed numbers; kept from call to call.
inline float* product_room(Index numbers) {
  thread_local std::vector<float> room;
  if (room.size() < static_cast<std::size_t>(numbers)) room.resize(static_cast<std::size_t>(numbers));
  return room.data();
}

/// C [m x n] += A [m x k] B [k x n].
inline void add_float_product(float* c, Index ld, const FloatView& a, const FloatView& b, Index m, Index n, Index k) {
  constexpr Index most_rows = 256, most_depth = 4096;  // packed at a time
  const FloatKernels& kernels = float_kernels();
  const Index rows = std::min(m, most_rows), depth = std::min(k, most_depth);
  float* const packed = product_room(rows * depth + panel_room);
  float* const panel = packed + rows * depth;
  for (Index i = 0; i < m; i += most_rows)
    for (Index p = 0; p < k; p += most_depth) {
      const Index block = std::min(most_rows, m - i), part = std::min(most_depth, k - p);
      pack_rows(a.from(i, p), block, part, kernels, packed);
      add_packed_product(c + i * ld, ld, packed, block, part, b.from(p, 0), n, kernels, panel);
    }
}

}  // namespace sae::inline SAE_ABI::kernels::detail
