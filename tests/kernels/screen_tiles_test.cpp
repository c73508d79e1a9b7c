// The products of a screen on Intel AMX, on a model of its instructions.
#include <sae/kernels/screen_kernels.hpp>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "catch_compat.hpp"
#include "tile_model.hpp"

namespace {

using sae::Index;
using sae_test::modelled_tiles;
using sae_test::TileFault;
using sae_test::TileModel;
namespace kernels = sae::kernels::detail;

/// Codes of rows [n x width], the first two at the ends of what a byte holds.
struct Bytes {
  Index rows, width;
  std::vector<std::int8_t> of;
  Bytes(Index n, Index d, Index seed) : rows(n), width(d) {
    for (Index r = 0; r < n; ++r)
      for (Index j = 0; j < d; ++j)
        of.push_back(static_cast<std::int8_t>(r == 0   ? -128
                                              : r == 1 ? (j % 2 == 0 ? 127 : -128)
                                                       : (r * 7919 + j * 104729 + (r * j) % 11 + seed) % 256 - 128));
  }
  std::vector<std::uint8_t> units(Index row, Index count) const {
    std::vector<std::uint8_t> out(static_cast<std::size_t>(4 * count), 0);
    std::memcpy(out.data(), of.data() + row * width, static_cast<std::size_t>(width));
    return out;
  }
};

/// Products [rows x screen_panel] of x with a panel of latents, in groups as a screen has them.
std::vector<std::int32_t> products(const kernels::ScreenKernels& run, const Bytes& x, const Bytes& latents) {
  const Index units = run.units(x.width);
  std::vector<std::uint8_t> panel(static_cast<std::size_t>(4 * units * kernels::screen_panel));
  for (Index i = 0; i < kernels::screen_panel; ++i) {
    const auto of = latents.units(i, units);
    for (Index u = 0; u < units; ++u) {
      std::uint32_t unit;
      std::memcpy(&unit, of.data() + 4 * u, 4);
      unit ^= run.flip();
      std::memcpy(panel.data() + (u * kernels::screen_panel + i) * 4, &unit, 4);
    }
  }
  const kernels::ScreenProducts begun(run);
  std::vector<std::int32_t> out;
  for (std::size_t group = 0; group < 3; ++group) {
    const Index rows = run.groups[group];
    for (Index b; b = static_cast<Index>(out.size()) / kernels::screen_panel, run.takes(group, x.rows - b);) {
      std::vector<std::uint8_t> codes(static_cast<std::size_t>(4 * units * rows), 0xA5);
      const Index there = std::min(rows, x.rows - b);
      for (Index r = 0; r < there; ++r) run.pack(x.units(b + r, units).data(), units, r, rows, codes.data());
      std::vector<std::int32_t> of_group(static_cast<std::size_t>(rows * kernels::screen_panel), -1);
      run.products[group](codes.data(), panel.data(), units, of_group.data());
      out.insert(out.end(), of_group.begin(), of_group.begin() + there * kernels::screen_panel);
    }
  }
  return out;
}

void check(Index rows, Index width) {
  CAPTURE(rows, width);
  const Bytes x(rows, width, 3), latents(kernels::screen_panel, width, 5);
  const auto got = products(modelled_tiles, x, latents);
  auto want = products(kernels::portable::screen_kernels, x, latents);
  REQUIRE(got.size() == static_cast<std::size_t>(rows * kernels::screen_panel));
  REQUIRE(want.size() == got.size());
  for (std::size_t n = 0; n < want.size(); ++n) {
    const auto row = static_cast<Index>(n) / kernels::screen_panel;
    for (Index j = 0; j < width; ++j)
      want[n] -= kernels::portable::screen_kernels.added * x.of[static_cast<std::size_t>(row * width + j)];
  }
  REQUIRE(got == want);
}

}  // namespace

TEST_CASE("products by tiles are those of plain loops", "[kernels][screen]") {
  for (Index width = 1; width <= 200; ++width) check(width % 3 + 16 * (width % 2) + 1, width);
  for (const Index width : {1, 63, 64, 65, 130})
    for (Index rows = 1; rows <= 40; ++rows) check(rows, width);
  for (const Index width : {576, 1023, 2048, 5000}) check(70, width);
  CHECK_FALSE(TileModel::configured());
}

TEST_CASE("kernels on tiles have their codes in whole tiles", "[kernels][screen]") {
  CHECK(modelled_tiles.units(1) == 16);
  CHECK(modelled_tiles.units(64) == 16);
  CHECK(modelled_tiles.units(65) == 32);
  CHECK(modelled_tiles.padded_rows(1) == 16);
  CHECK(modelled_tiles.padded_rows(32) == 32);
  CHECK(modelled_tiles.padded_rows(33) == 48);
  CHECK(kernels::portable::screen_kernels.units(65) == 17);
  CHECK(kernels::portable::screen_kernels.padded_rows(33) == 33);
  for (const Index rows : modelled_tiles.groups) CHECK(rows <= kernels::screen_group);
}

TEST_CASE("the model of tiles refuses what a CPU refuses", "[kernels][screen]") {
  alignas(64) unsigned char data[16][64] = {};
  const auto refuses = [](const auto& change) {
    TileModel::Config config;
    change(config);
    CHECK_THROWS_AS(TileModel::configure(config), TileFault);
    CHECK_FALSE(TileModel::configured());
  };
  refuses([](auto& config) { config.palette = 2; });
  refuses([](auto& config) { config.reserved_1[13] = 1; });
  refuses([](auto& config) { config.reserved_2[0] = 1; });
  refuses([](auto& config) { config.reserved_3[7] = 1; });
  refuses([](auto& config) { config.rows[3] = 17; });
  refuses([](auto& config) { config.row_bytes[7] = 65; });
  refuses([](auto& config) { config.rows[0] = 0; });
  CHECK_THROWS_AS(TileModel::zero<0>(), TileFault);
  CHECK_THROWS_AS(TileModel::load<0>(data, 64), TileFault);
  CHECK_THROWS_AS(TileModel::store<0>(data, 64), TileFault);
  CHECK_THROWS_AS((TileModel::add_products<0, 1, 2>()), TileFault);

  TileModel::Config config;  // 3 rows of 5 units by 5 units of 16 latents
  config.rows[0] = config.rows[1] = 3;
  config.row_bytes[1] = 20;
  config.rows[2] = 5;
  config.rows[4] = 0;
  config.row_bytes[4] = 0;
  config.row_bytes[5] = 6;
  TileModel::configure(config);
  CHECK_NOTHROW(TileModel::add_products<0, 1, 2>());
  CHECK_THROWS_AS((TileModel::add_products<0, 1, 1>()), TileFault);
  CHECK_THROWS_AS((TileModel::add_products<0, 1, 3>()), TileFault);  // 16 units
  CHECK_THROWS_AS((TileModel::add_products<3, 1, 2>()), TileFault);  // 16 rows
  CHECK_THROWS_AS((TileModel::add_products<1, 0, 3>()), TileFault);  // 20 bytes
  CHECK_THROWS_AS(TileModel::zero<4>(), TileFault);
  CHECK_THROWS_AS(TileModel::zero<5>(), TileFault);
  for (auto& row : data) std::memset(row, 9, sizeof row);
  TileModel::load<1>(data, 64);
  TileModel::load<2>(data, 64);
  TileModel::add_products<0, 1, 2>();
  std::int32_t out[4][16] = {};
  TileModel::store<0>(out, 64);
  CHECK(out[2][15] == 5 * 4 * 81);
  CHECK(out[3][0] == 0);
  TileModel::release();
  CHECK_THROWS_AS(TileModel::zero<0>(), TileFault);
}
