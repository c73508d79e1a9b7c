#pragma once
#include <sae/kernels/float_kernels.hpp>

#include <algorithm>
#include <vector>

// Products of float32 matrices, of two kinds; in both nothing depends on how the work is cut, so blocks, routes and threads give the
// same bytes.
//
// C [m x n] += A B, B by rows: every c[i,j] is one chain of fused multiply-adds, c <- fma(a[i,p], b[p,j], c) for p = 0 .. k-1. A is
// packed once in groups of rows, [p][row] in each; B panel by panel, a panel being as many columns as two registers hold,
// [p][column], while it is used; a tile of one group and one panel stays in registers over a stretch of p
// (Goto and van de Geijn 2008, "Anatomy of high-performance matrix multiplication").
//
// C [m x n] += X W^T, both by rows: c <- c + x . w as FloatKernels::inner defines it, eight lanes along the rows. W needs no packing,
// and one number costs the same alone as among others: what is screened by a cheaper product can be computed again to the last bit.
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
inline void pack_panel(const float* b, Index ld, Index k, Index n, Index panel, float* to) {
  if (n < panel) std::fill_n(to, k * panel, 0.0F);
  for (Index p = 0; p < k; ++p) std::copy_n(b + p * ld, n, to + p * panel);
}

/// C [m x n] += A B for packed A [m x k].
/// \param panel  room for `panel_room` numbers
inline void add_packed_product(float* c, Index ld, const float* packed, Index m, Index k, const float* b, Index ld_b, Index n,
                               const FloatKernels& kernels, float* panel) {
  for (Index j = 0; j < n; j += kernels.panel) {
    const Index columns = std::min(kernels.panel, n - j);
    for (Index p = 0; p < k; p += stretch) {
      const Index depth = std::min(stretch, k - p);
      pack_panel(b + p * ld_b + j, ld_b, depth, columns, kernels.panel, panel);
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

/// Numbers that packed rows X [m x d] take.
inline Index packed_rows_room(Index m, Index d) { return (m + 1) * ((d + 7) / 8 * 8); }

/// Calls visit(tiles, first row, rows) for every group of rows.
template <class Visit>
void visit_row_groups(const FloatKernels& kernels, Index m, const Visit& visit) {
  Index i = 0;
  for (; i + kernels.inner[0].rows <= m; i += kernels.inner[0].rows) visit(kernels.inner[0], i, kernels.inner[0].rows);
  for (; i < m; i += kernels.inner[1].rows) visit(kernels.inner[1], i, std::min(kernels.inner[1].rows, m - i));
}
/// X in groups of rows, each eight numbers by eight; rows are continued by 0 to a multiple of eight, groups by rows of 0.
inline void pack_inner_rows(const float* x, Index ld, Index m, Index d, const FloatKernels& kernels, float* to) {
  visit_row_groups(kernels, m, [&](const InnerTiles& tiles, Index first, Index rows) {
    for (Index j = 0; j < d; j += 8)
      for (Index r = 0; r < tiles.rows; ++r, to += 8) {
        const Index count = r < rows ? std::min<Index>(8, d - j) : 0;
        std::copy_n(x + (first + r) * ld + j, count, to);
        std::fill_n(to + count, 8 - count, 0.0F);
      }
  });
}
inline constexpr Index inner_stretch =
    1024;  ///< numbers of a row after which a tile's lanes are put aside: its rows fit the caches
/// Numbers that the lanes which are put aside take.
inline Index kept_lanes_room(Index m, Index d) { return d <= inner_stretch ? 0 : (m + 1) * lanes_of_row; }

/// Z [m x n] += X W^T for packed X [m x d], W [n x d].
/// \param kept  room for the lanes that are put aside
inline void add_inner_products(float* z, Index ld_z, const float* packed, Index m, Index d, const float* w, Index ld_w, Index n,
                               const FloatKernels& kernels, float* kept) {
  const Index padded = (d + 7) / 8 * 8;
  for (Index part = 0; part < 2; ++part) {  // tiles of one kind after the other: the rows of w that they read stay in the cache
    const InnerTiles& tiles = kernels.inner[part];
    for (Index i = 0, count = 0; i < n; i += count) {
      count = n - i >= tiles.latents ? tiles.latents : 1;
      for (Index j = 0; j < d; j += inner_stretch) {
        const float* x = packed;
        visit_row_groups(kernels, m, [&](const InnerTiles& own, Index first, Index rows) {
          if (&own == &tiles)
            (count == 1 ? own.one : own.many)({.x = x + j * own.rows,
                                               .w = w + i * ld_w + j,
                                               .ld_w = ld_w,
                                               .d = std::min(inner_stretch, d - j),
                                               .z = z + first * ld_z + i,
                                               .ld_z = ld_z,
                                               .rows = rows,
                                               .kept = kept + first * lanes_of_row,
                                               .starts = j == 0,
                                               .ends = j + inner_stretch >= d});
          x += own.rows * padded;
        });
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

inline constexpr Index most_rows = 256;  ///< packed at a time

/// C [m x n] += A [m x k] B [k x n], B by rows.
inline void add_float_product(float* c, Index ld, const FloatView& a, const float* b, Index ld_b, Index m, Index n, Index k) {
  constexpr Index most_depth = 4096;  // packed at a time
  const FloatKernels& kernels = float_kernels();
  const Index rows = std::min(m, most_rows), depth = std::min(k, most_depth);
  float* const packed = product_room(rows * depth + panel_room);
  float* const panel = packed + rows * depth;
  for (Index i = 0; i < m; i += most_rows)
    for (Index p = 0; p < k; p += most_depth) {
      const Index block = std::min(most_rows, m - i), part = std::min(most_depth, k - p);
      pack_rows(a.from(i, p), block, part, kernels, packed);
      add_packed_product(c + i * ld, ld, packed, block, part, b + p * ld_b, ld_b, n, kernels, panel);
    }
}

/// C [m x n] += X [m x d] W^T, W [n x d].
inline void add_float_inner_products(float* c, Index ld, const float* x, Index ld_x, const float* w, Index ld_w, Index m,
                                     Index n, Index d) {
  const FloatKernels& kernels = float_kernels();
  const Index rows = std::min(m, most_rows), packed = packed_rows_room(rows, d);
  float* const room = product_room(packed + kept_lanes_room(rows, d));
  for (Index i = 0; i < m; i += most_rows) {
    const Index block = std::min(most_rows, m - i);
    pack_inner_rows(x + i * ld_x, ld_x, block, d, kernels, room);
    add_inner_products(c + i * ld, ld, room, block, d, w, ld_w, n, kernels, room + packed);
  }
}

}  // namespace sae::inline SAE_ABI::kernels::detail
