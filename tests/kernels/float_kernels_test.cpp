// The float32 kernels of every route against their definitions, to the last bit.
#include <sae/core/random.hpp>
#include <sae/kernels/float_kernels.hpp>
#include <sae/kernels/largest.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "catch_compat.hpp"
#include "routes.hpp"

namespace {

using sae::Index;
using sae_test::bits;
using sae_test::on_every_route;
namespace kernels = sae::kernels::detail;

constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();

std::vector<float> noise(Index n, std::uint64_t seed) {
  sae::Random random(seed);
  std::vector<float> out(static_cast<std::size_t>(n));
  for (float& x : out) x = static_cast<float>(random.normal());
  return out;
}
const std::vector<Index> sizes{0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 100, 127, 128, 129, 191, 320, 576, 577};

void require_same(const std::vector<float>& got, const std::vector<float>& want) {
  REQUIRE(got.size() == want.size());
  for (std::size_t j = 0; j < got.size(); ++j) REQUIRE(bits(got[j]) == bits(want[j]));
}

}  // namespace

TEST_CASE("dot of float32: 64 chains, added lanes 32, 16, .. apart", "[kernels][float]") {
  for (const Index n : sizes) {
    const auto a = noise(n, 1), b = noise(n, 2);
    std::vector<float> lanes(64, 0.0F);
    for (std::size_t j = 0; j < a.size(); ++j) lanes[j % 64] = std::fma(a[j], b[j], lanes[j % 64]);
    for (std::size_t width = 32; width > 0; width /= 2)
      for (std::size_t l = 0; l < width; ++l) lanes[l] += lanes[l + width];
    on_every_route([&] {
      CAPTURE(n);
      REQUIRE(bits(kernels::float_kernels().dot(a.data(), b.data(), n)) == bits(lanes[0]));
    });
  }
}

TEST_CASE("add_scaled, add_rows and scale of float32 are one fused multiply-add after the other", "[kernels][float]") {
  for (const Index n : sizes) {
    const auto start = noise(n + 1, 3);
    std::vector<std::vector<float>> rows;
    std::vector<const float*> pointers;
    for (Index t = 0; t < kernels::rows_at_once; ++t) rows.push_back(noise(n, 10 + static_cast<std::uint64_t>(t)));
    for (const auto& row : rows) pointers.push_back(row.data());
    const auto c = noise(kernels::rows_at_once, 4);
    for (Index count = 0; count <= kernels::rows_at_once; ++count) {
      auto want = start;
      for (std::size_t t = 0; t < static_cast<std::size_t>(count); ++t)
        for (std::size_t j = 0; j < static_cast<std::size_t>(n); ++j) want[j] = std::fma(c[t], rows[t][j], want[j]);
      auto scaled = start;
      for (std::size_t j = 0; j < static_cast<std::size_t>(n); ++j) scaled[j] *= c[0];
      on_every_route([&] {
        CAPTURE(n, count);
        const auto& run = kernels::float_kernels();
        auto y = start;
        run.add_rows(y.data(), c.data(), pointers.data(), count, n);
        require_same(y, want);
        y = start;
        run.scale(y.data(), c[0], n);
        require_same(y, scaled);
        y = start;
        for (std::size_t t = 0; t < static_cast<std::size_t>(count); ++t) run.add_scaled(y.data(), c[t], pointers[t], n);
        require_same(y, want);
      });
    }
  }
}

TEST_CASE("next_above and count_above look at every number once, and NaN is above nothing", "[kernels][float]") {
  for (const Index n : sizes)
    for (const float bound : {-infinity, -0.5F, 0.0F, 1.5F, infinity, not_a_number}) {
      auto x = noise(n, 5);
      for (std::size_t j = 0; j < x.size(); j += 5) x[j] = j % 2 == 0 ? not_a_number : bound;
      on_every_route([&] {
        CAPTURE(n, bound);
        const auto& run = kernels::float_kernels();
        Index count = 0;
        for (Index from = 0; from <= n; ++from) {
          Index want = from;
          while (want < n && !(x[static_cast<std::size_t>(want)] > bound)) ++want;
          REQUIRE(run.next_above(x.data(), from, n, bound) == want);
          count += from < n && x[static_cast<std::size_t>(from)] > bound;
        }
        REQUIRE(run.count_above(x.data(), n, bound) == count);
      });
    }
}

TEST_CASE("kth_largest is what sorting finds", "[kernels][float]") {
  for (const Index n : {1, 2, 5, 17, 64, 129, 300})
    for (const std::uint64_t seed : {1U, 2U, 3U}) {
      auto x = noise(n, seed);
      if (seed == 2)
        for (float& value : x) value = std::round(value);  // ties, and 0 of either sign
      if (seed == 3 && n > 4) {
        x[0] = infinity;
        x[1] = -infinity;
        x[2] = std::numeric_limits<float>::denorm_min();
        x[3] = -0.0F;
      }
      auto sorted = x;
      std::sort(sorted.begin(), sorted.end(), std::greater<>());
      on_every_route([&] {
        for (Index k = 1; k <= n; ++k) {
          CAPTURE(n, k, seed);
          REQUIRE(sae::kernels::kth_largest(x.data(), n, k) == sorted[static_cast<std::size_t>(k - 1)]);
        }
      });
    }
}

TEST_CASE("Adam of float32 is one formula on every route, with and without a first moment", "[kernels][float]") {
  const kernels::AdamConstants k{0.9F, 0.1F, 0.999F, 0.001F, 0.01F, 1.5F, 1e-8F};
  for (const Index n : sizes)
    for (const bool first : {true, false}) {
      const auto g = noise(n, 1), w = noise(n, 2), m = noise(n, 3);
      auto v = noise(n, 4);
      for (float& x : v) x *= x;
      auto want_w = w, want_m = m, want_v = v;
      for (std::size_t j = 0; j < w.size(); ++j) {
        const float moment = first ? std::fma(k.beta1, m[j], k.rest1 * g[j]) : g[j];
        if (first) want_m[j] = moment;
        want_v[j] = std::fma(k.beta2, v[j], k.rest2 * g[j] * g[j]);
        want_w[j] -= k.rate * moment / std::fma(std::sqrt(want_v[j]), k.root, k.epsilon);
      }
      on_every_route([&] {
        CAPTURE(n, first);
        auto got_w = w, got_m = m, got_v = v;
        kernels::float_kernels().adam(k, got_w.data(), g.data(), first ? got_m.data() : nullptr, got_v.data(), n);
        require_same(got_w, want_w);
        require_same(got_m, want_m);
        require_same(got_v, want_v);
      });
    }
}

TEST_CASE("the sigmoid of float32 is near that of float64, for all that float32 holds", "[kernels][float]") {
  constexpr std::size_t block = 4096;
  std::vector<float> x(block);
  double worst = 0;
  std::uint64_t next = 0;
  const auto check = [&] {
    std::vector<float> first;
    on_every_route([&] {
      std::vector<float> got(block, 1.0F);
      kernels::float_kernels().gate(got.data(), x.data(), static_cast<Index>(block));
      if (first.empty()) first = got;
      require_same(got, first);
    });
    for (std::size_t j = 0; j < block; ++j) {
      const double of = static_cast<double>(x[j]);
      const double want = of < 0 ? std::exp(of) / (1 + std::exp(of)) : 1 / (1 + std::exp(-of));
      const double unit = std::max(std::ldexp(1.0, std::ilogb(std::max(want, 0x1p-149)) - 23), 0x1p-149);
      const double error = std::abs(static_cast<double>(first[j]) - want) / unit;
      if (!(error <= worst)) worst = error;  // NaN, too
    }
  };
  constexpr std::uint64_t apart = 4001;  // of 2^32 patterns
  while (next < (std::uint64_t{1} << 32)) {
    for (float& value : x) {
      value = std::bit_cast<float>(static_cast<std::uint32_t>(next));
      if (std::isnan(value)) value = 0;
      next += apart;
    }
    check();
  }
  for (std::size_t j = 0; j < block; ++j) x[j] = static_cast<float>(j) * 0.06F - 125;  // where sigmoids change
  check();
  for (std::size_t j = 0; j < block; ++j) x[j] = -87 - static_cast<float>(j) * 0.005F;  // and become too small
  check();
  CHECK(worst <= 3);
}

TEST_CASE("a gate of float32 is one formula on every route", "[kernels][float]") {
  for (const Index n : sizes) {
    auto x = noise(n, 1), y = noise(n, 2);
    for (std::size_t j = 0; j < x.size(); ++j) x[j] *= 20;
    auto want = y;
    for (std::size_t j = 0; j < x.size(); ++j) want[j] *= kernels::sigmoid_number(x[j]);
    on_every_route([&] {
      CAPTURE(n);
      auto got = y;
      kernels::float_kernels().gate(got.data(), x.data(), n);
      require_same(got, want);
    });
  }
  const std::vector<float> x = {
      -infinity, infinity, not_a_number, -0.0F, 0.0F, -104, -1e30F, 1e30F, std::numeric_limits<float>::lowest()};
  for (const std::size_t copies : {1U, 4U}) {  // alone, and as whole registers
    std::vector<float> many;
    for (std::size_t n = 0; n < copies; ++n) many.insert(many.end(), x.begin(), x.end());
    on_every_route([&] {
      std::vector<float> got(many.size(), 2.0F);
      kernels::float_kernels().gate(got.data(), many.data(), static_cast<Index>(many.size()));
      for (std::size_t j = 0; j < got.size(); ++j) {
        const float want[] = {0, 2, not_a_number, 1, 1, 0, 0, 2, 0};
        CAPTURE(j, got[j]);
        if (std::isnan(want[j % 9])) {
          CHECK(std::isnan(got[j]));
        } else {
          CHECK(got[j] == want[j % 9]);
        }
      }
    });
  }
}
