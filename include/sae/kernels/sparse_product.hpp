#pragma once
#include <sae/kernels/float_kernels.hpp>

#include <algorithm>
#include <cstddef>
#include <vector>

// Y [m x n] += A X in float32, A sparse and given by rows, for rows that have many entries. The additions are those of
// `add_weighted_rows`: one chain a number, in the order of A's entries, so what is cut into tiles has the same bytes as what is not.
namespace sae::inline SAE_ABI::kernels {

namespace detail {
inline constexpr Index tile_rows = 96, tile_columns = 64;  ///< of X: a tile stays in the first cache

/// This thread's room for the entries of a tile; kept from call to call.
struct TileRoom {
  std::vector<TileEntry> entries;
  std::vector<Index> next;
  std::vector<int> ends;
};
inline TileRoom& tile_room() {
  thread_local TileRoom room;
  return room;
}
}  // namespace detail

/// Whether a row of A has so many entries in a tile that tiles pay.
inline bool is_crowded(Index entries, Index cells) { return 24 * entries > cells; }

/// Y [m x n] += A X, X [k x n]. Row r of A has the entries begin(r) <= e < end(r), with value(e) in column(e), columns ascending.
template <class Begin, class End, class Value, class Column>
void add_crowded_product(float* y, Index ld_y, Index m, const float* x, Index ld_x, Index k, Index n, const Begin& begin,
                         const End& end, const Value& value, const Column& column) {
  const auto add_entries = detail::float_kernels().add_entries;
  auto& [entries, next, ends] = detail::tile_room();
  next.resize(static_cast<std::size_t>(m));
  ends.resize(static_cast<std::size_t>(m));
  for (Index r = 0; r < m; ++r) next[static_cast<std::size_t>(r)] = begin(r);
  for (Index first = 0; first < k; first += detail::tile_rows) {
    entries.resize(static_cast<std::size_t>(m * std::min(detail::tile_rows, k - first)));
    int count = 0;
    for (Index r = 0; r < m; ++r) {
      Index e = next[static_cast<std::size_t>(r)];
      for (const Index last = end(r); e < last && column(e) < first + detail::tile_rows; ++e)
        entries[static_cast<std::size_t>(count++)] = {value(e), static_cast<int>((column(e) - first) * ld_x)};
      next[static_cast<std::size_t>(r)] = e;
      ends[static_cast<std::size_t>(r)] = count;
    }
    for (Index j = 0; j < n; j += detail::tile_columns)
      add_entries(y + j, ld_y, entries.data(), ends.data(), m, x + first * ld_x + j, std::min(detail::tile_columns, n - j));
  }
}

}  // namespace sae::inline SAE_ABI::kernels
