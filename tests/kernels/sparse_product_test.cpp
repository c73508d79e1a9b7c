// Sums of rows in tiles, and inner products with named rows, against what goes one row at a time: the same bytes.
#include <sae/core/random.hpp>
#include <sae/kernels/half_kernels.hpp>
#include <sae/kernels/product.hpp>
#include <sae/kernels/sparse_product.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

#include "catch_compat.hpp"
#include "routes.hpp"

namespace {

using sae::Index;
using sae_test::bits;
using sae_test::on_every_route;
namespace kernels = sae::kernels;

std::vector<float> noise(Index n, std::uint64_t seed) {
  sae::Random random(seed);
  std::vector<float> out(static_cast<std::size_t>(n));
  for (float& x : out) x = static_cast<float>(random.normal());
  return out;
}
void require_same(const std::vector<float>& got, const std::vector<float>& want) {
  REQUIRE(std::equal(got.begin(), got.end(), want.begin(), want.end(), [](float x, float y) { return bits(x) == bits(y); }));
}

}  // namespace

TEST_CASE("a crowded product is one chain of fused multiply-adds a number", "[kernels][sparse_product]") {
  for (const Index n : {1, 7, 16, 63, 64, 65, 130, 145})
    for (const Index k : {1, 95, 96, 97, 300})
      for (const double density : {0.0, 0.05, 0.5, 1.0}) {
        CAPTURE(n, k, density);
        constexpr Index m = 9;
        const Index ld_y = n + 3, ld_x = n + 2;
        sae::Random random(4);
        std::vector<int> columns, offsets{0};
        for (Index r = 0; r < m; ++r) {
          for (Index p = 0; p < k; ++p)
            if (r != 4 && random.uniform() < density) columns.push_back(static_cast<int>(p));
          offsets.push_back(static_cast<int>(columns.size()));
        }
        const auto values = noise(static_cast<Index>(columns.size()), 1), x = noise(k * ld_x, 2), start = noise(m * ld_y, 3);
        auto want = start;
        for (Index r = 0; r < m; ++r)
          for (auto e = static_cast<std::size_t>(offsets[static_cast<std::size_t>(r)]);
               e < static_cast<std::size_t>(offsets[static_cast<std::size_t>(r) + 1]); ++e)
            for (Index j = 0; j < n; ++j) {
              float& y = want[static_cast<std::size_t>(r * ld_y + j)];
              y = std::fma(values[e], x[static_cast<std::size_t>(columns[e] * ld_x + j)], y);
            }
        on_every_route([&] {
          auto y = start;
          kernels::add_crowded_product(
              y.data(), ld_y, m, x.data(), ld_x, k, n, [&](Index r) { return Index{offsets[static_cast<std::size_t>(r)]}; },
              [&](Index r) { return Index{offsets[static_cast<std::size_t>(r) + 1]}; },
              [&](Index e) { return values[static_cast<std::size_t>(e)]; },
              [&](Index e) { return Index{columns[static_cast<std::size_t>(e)]}; });
          require_same(y, want);
        });
      }
}

TEST_CASE("inner products with named rows are numbers of the dense product", "[kernels][sparse_product]") {
  constexpr Index rows = 40;
  for (const Index n : {1, 8, 33, 576, 1100}) {
    const auto a = noise(n, 1), w = noise(rows * n, 2);
    std::vector<sae::bfloat16> narrow(w.size());
    std::vector<float> widened(w.size());
    kernels::narrow(w.data(), narrow.data(), rows * n, {.key = 1, .position = 0});
    kernels::widen(narrow.data(), widened.data(), rows * n);
    std::vector<float> room(static_cast<std::size_t>(kernels::dots_room<const sae::bfloat16*, float>(n)));
    for (const std::vector<int>& named :
         {std::vector<int>{}, {3}, {0, 1, 5, 7, 8, 9, 20, 39}, {39, 2, 2, 17, 4, 30, 21, 0, 11, 12}}) {
      const auto start = noise(static_cast<Index>(named.size()), 5);
      on_every_route([&] {
        CAPTURE(n, named.size());
        const auto product = [&](const std::vector<float>& of) {
          std::vector<float> want = start;
          for (std::size_t t = 0; t < named.size(); ++t) {
            std::vector<float> all(static_cast<std::size_t>(rows), start[t]);
            kernels::add_product_nt(all.data(), rows, a.data(), n, of.data(), n, 1, rows, n);
            want[t] = all[static_cast<std::size_t>(named[t])];
          }
          return want;
        };
        auto got = start;
        kernels::add_dots(a.data(), w.data(), n, named, got.data(), room.data());
        require_same(got, product(w));
        got = start;
        kernels::add_dots(a.data(), narrow.data(), n, named, got.data(), room.data());
        require_same(got, product(widened));
      });
    }
  }
  const std::vector<double> a{1, 2}, w{3, 4, 5, 6};
  std::vector<double> out{0.5, 0};
  const std::vector<int> named{1, 0};
  kernels::add_dots(a.data(), w.data(), 2, named, out.data(), out.data());
  CHECK(out == std::vector<double>{17.5, 11});
}
