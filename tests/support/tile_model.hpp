// The instructions of Intel AMX that a screen uses (kernels/screen_tiles.inc), by the pseudo-code of Intel's manual (SDM, volume 2:
// LDTILECFG, TILERELEASE, TILEZERO, TILELOADD, TILESTORED, TDPBSSD). What would be an exception of the CPU is one of C++.
#pragma once
#include <sae/kernels/screen_kernels.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

namespace sae_test {

struct TileFault : std::logic_error {
  using std::logic_error::logic_error;
};

class TileModel {
 public:
  using Config = sae::kernels::detail::amx::TileConfig;
  static_assert(sizeof(Config) == 64 && offsetof(Config, row_bytes) == 16 && offsetof(Config, rows) == 48);

  static void configure(const Config& config) {
    unsigned char bytes[64];
    std::memcpy(bytes, &config, 64);
    State next;
    next.palette = bytes[0];
    if (next.palette == 0) return release();
    check(next.palette == 1, "LDTILECFG: an unknown palette");
    check(bytes[1] == 0,
          "LDTILECFG: begins at a row");  // legal, to go on where a load was interrupted; not for a program to ask
    for (std::size_t n = 2; n < 16; ++n) check(bytes[n] == 0, "LDTILECFG: reserved bytes are set");
    for (std::size_t n = 32; n < 48; ++n) check(bytes[n] == 0, "LDTILECFG: reserved bytes are set");
    for (std::size_t n = 56; n < 64; ++n) check(bytes[n] == 0, "LDTILECFG: reserved bytes are set");
    for (std::size_t t = 0; t < tiles; ++t) {
      Tile& tile = next.tile[t];
      tile.row_bytes = static_cast<std::size_t>(bytes[16 + 2 * t] | bytes[17 + 2 * t] << 8);
      tile.rows = bytes[48 + t];
      check(tile.row_bytes <= most_bytes, "LDTILECFG: rows of more than 64 bytes");
      check(tile.rows <= most_rows, "LDTILECFG: more than 16 rows");
      check((tile.rows == 0) == (tile.row_bytes == 0), "LDTILECFG: a tile that is empty by half");
    }
    state() = next;
  }
  static void release() { state() = State(); }
  static bool configured() { return state().palette != 0; }

  template <int number>
  static void zero() {
    Tile& tile = valid<number>();
    std::memset(tile.data, 0, sizeof tile.data);
  }
  template <int number>
  static void load(const void* from, std::ptrdiff_t stride) {
    Tile& tile = valid<number>();
    std::memset(tile.data, 0, sizeof tile.data);
    for (std::size_t row = 0; row < tile.rows; ++row)
      std::memcpy(tile.data[row], static_cast<const char*>(from) + static_cast<std::ptrdiff_t>(row) * stride, tile.row_bytes);
  }
  template <int number>
  static void store(void* to, std::ptrdiff_t stride) {
    const Tile& tile = valid<number>();
    for (std::size_t row = 0; row < tile.rows; ++row)
      std::memcpy(static_cast<char*>(to) + static_cast<std::ptrdiff_t>(row) * stride, tile.data[row], tile.row_bytes);
  }
  template <int sum, int left, int right>
  static void add_products() {
    check(sum != left && sum != right && left != right, "TDPBSSD: one tile twice");
    Tile &c = valid<sum>(), &a = valid<left>(), &b = valid<right>();
    check(c.row_bytes == b.row_bytes, "TDPBSSD: columns of the sums are not those of the right");
    check(c.rows == a.rows, "TDPBSSD: rows of the sums are not those of the left");
    check(a.row_bytes == 4 * b.rows, "TDPBSSD: columns of the left are not rows of the right");
    for (std::size_t m = 0; m < c.rows; ++m)
      for (std::size_t k = 0; k < b.rows; ++k)
        for (std::size_t n = 0; n < c.row_bytes / 4; ++n) {
          std::uint32_t total;  // what does not fit is lost
          std::memcpy(&total, c.data[m] + 4 * n, 4);
          for (std::size_t l = 0; l < 4; ++l)
            total += static_cast<std::uint32_t>(static_cast<std::int8_t>(a.data[m][4 * k + l]) *
                                                static_cast<std::int8_t>(b.data[k][4 * n + l]));
          std::memcpy(c.data[m] + 4 * n, &total, 4);
        }
    for (std::size_t m = c.rows; m < most_rows; ++m) std::memset(c.data[m], 0, most_bytes);
    for (std::size_t m = 0; m < c.rows; ++m) std::memset(c.data[m] + c.row_bytes, 0, most_bytes - c.row_bytes);
  }

 private:
  static constexpr std::size_t tiles = 8, most_rows = 16, most_bytes = 64;
  struct Tile {
    std::size_t rows = 0, row_bytes = 0;
    unsigned char data[most_rows][most_bytes] = {};
  };
  struct State {
    int palette = 0;
    Tile tile[tiles];
  };
  /// Each thread has tiles of its own.
  static State& state() {
    thread_local State of_thread;
    return of_thread;
  }
  static void check(bool holds, const char* fault) {
    if (!holds) throw TileFault(fault);
  }
  template <int number>
  static Tile& valid() {
    static_assert(number >= 0 && number < static_cast<int>(tiles));
    check(state().palette != 0, "tiles are not configured");
    Tile& tile = state().tile[number];
    check(tile.rows != 0, "a tile that is not configured");
    check(tile.row_bytes % 4 == 0, "rows that are not of units");
    return tile;
  }
};

/// The kernels of the route `amx`, but plain C++ with the model.
inline constexpr sae::kernels::detail::ScreenKernels modelled_tiles =
    sae::kernels::detail::amx::with_tiles<TileModel>(sae::kernels::detail::portable::screen_kernels);

}  // namespace sae_test
