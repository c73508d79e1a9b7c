// Loops over numbers of 16 bits, of every route against the formulas of core/half.hpp, to the last bit.
#include <sae/core/random.hpp>
#include <sae/kernels/half_kernels.hpp>

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "catch_compat.hpp"
#include "routes.hpp"

namespace {

using sae::bfloat16, sae::float16, sae::Index, sae::Rounding;
using sae_test::bits;
using sae_test::on_every_route;
namespace kernels = sae::kernels;

const std::vector<Index> sizes{0, 1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 100, 577};

/// Every kind of number: all exponents, infinities, NaN of several payloads, both zeros, what lies at the edges of float16.
std::vector<float> all_kinds(Index n, std::uint64_t seed) {
  const float edges[] = {0.0F,
                         -0.0F,
                         0x1p-24F,
                         0x1p-25F,
                         -0x1.8p-25F,
                         0x1p-14F,
                         std::nextafter(0x1p-14F, 0.0F),
                         65504.0F,
                         65520.0F,
                         -65535.99F,
                         65536.0F,
                         0x1p-41F,
                         std::numeric_limits<float>::infinity(),
                         -std::numeric_limits<float>::infinity(),
                         std::numeric_limits<float>::max(),
                         std::numeric_limits<float>::denorm_min(),
                         std::bit_cast<float>(0x7fc00000U),
                         std::bit_cast<float>(0xffffffffU),
                         std::bit_cast<float>(0x7f800001U)};
  sae::Random random(seed);
  std::vector<float> out(static_cast<std::size_t>(n));
  for (float& x : out) {
    const std::uint32_t kind = random.bits() % 4;
    x = kind == 0   ? edges[random.bits() % std::size(edges)]
        : kind == 1 ? std::bit_cast<float>(random.bits())
                    : std::ldexp(static_cast<float>(random.normal()), static_cast<int>(random.bits() % 40) - 30);
  }
  return out;
}

}  // namespace

TEST_CASE("widening numbers of 16 bits is exact on every route", "[kernels][half]") {
  std::vector<bfloat16> brain(65536 + 3);
  std::vector<float16> half(brain.size());
  for (std::size_t j = 0; j < brain.size(); ++j) brain[j].bits = half[j].bits = static_cast<std::uint16_t>(j);
  on_every_route([&] {
    std::vector<float> wide(brain.size());
    const auto n = static_cast<Index>(brain.size());
    int wrong = 0;
    kernels::widen(brain.data(), wide.data(), n);
    for (std::size_t j = 0; j < wide.size(); ++j) wrong += bits(wide[j]) == bits(static_cast<float>(brain[j])) ? 0 : 1;
    kernels::widen(half.data(), wide.data(), n);
    for (std::size_t j = 0; j < wide.size(); ++j) wrong += bits(wide[j]) == bits(static_cast<float>(half[j])) ? 0 : 1;
    CHECK(wrong == 0);
  });
  for (const Index n : sizes)
    on_every_route([&] {
      CAPTURE(n);
      std::vector<float> wide(static_cast<std::size_t>(n) + 1, -7.0F);
      kernels::widen(brain.data() + 0x3f01, wide.data(), n);
      for (std::size_t j = 0; j < static_cast<std::size_t>(n); ++j)
        REQUIRE(wide[j] == sae::bfloat16_to_float(static_cast<std::uint16_t>(0x3f01 + j)));
      REQUIRE(wide.back() == -7.0F);
    });
}

TEST_CASE("stochastic rounding is one formula on every route, whatever stands beside a number", "[kernels][half]") {
  for (const Index n : sizes)
    for (const bool high : {false, true})
      for (const std::uint32_t position : {0U, 5U, 0xfffffff0U}) {
        const Rounding at{.key = 0x12345678U, .position = position, .high = high};
        const auto x = all_kinds(n, 3 + static_cast<std::uint64_t>(n));
        on_every_route([&] {
          CAPTURE(n, high, position);
          std::vector<bfloat16> brain(x.size() + 1);
          std::vector<float16> half(x.size() + 1);
          brain.back().bits = half.back().bits = 7;
          kernels::narrow(x.data(), brain.data(), n, at);
          kernels::narrow(x.data(), half.data(), n, at);
          for (std::size_t j = 0; j < x.size(); ++j) {
            const Rounding alone{.key = at.key, .position = position + static_cast<std::uint32_t>(j)};
            const std::uint32_t random = high ? alone.word(0) >> 16 : alone.word(0) & 0xffffU;
            CAPTURE(j, x[j], bits(x[j]));
            REQUIRE(brain[j].bits == sae::round_to_bfloat16(x[j], random));
            REQUIRE(half[j].bits == sae::round_to_half(x[j], random));
          }
          REQUIRE(brain.back().bits == 7);
          REQUIRE(half.back().bits == 7);
        });
      }
}

TEST_CASE("Adam with moments of 16 bits is Adam and two roundings on every route", "[kernels][half]") {
  const kernels::detail::AdamConstants k{0.9F, 0.1F, 0.999F, 0.001F, 0.01F, 1.5F, 1e-8F};
  for (const Index n : sizes)
    for (const bool has_first : {true, false}) {
      sae::Random random(7);
      std::vector<float> w(static_cast<std::size_t>(n)), g(w.size());
      std::vector<bfloat16> m(w.size()), v(w.size());
      for (std::size_t j = 0; j < w.size(); ++j) {
        w[j] = static_cast<float>(random.normal());
        g[j] = std::ldexp(static_cast<float>(random.normal()), -static_cast<int>(random.bits() % 60));
        m[j] = bfloat16(static_cast<float>(random.normal()));
        v[j] = bfloat16(static_cast<float>(std::fabs(random.normal())));
      }
      if (n > 2) g[1] = std::numeric_limits<float>::quiet_NaN();
      const Rounding at{.key = 0xdeadbeefU, .position = 1000};
      std::vector<float> wide_m(w.size()), wide_v(w.size()), want_w = w;
      auto want_m = m, want_v = v;
      for (std::size_t j = 0; j < w.size(); ++j) {
        wide_m[j] = static_cast<float>(m[j]);
        wide_v[j] = static_cast<float>(v[j]);
        kernels::detail::adam_number(k, &want_w[j], g[j], has_first ? &wide_m[j] : nullptr, &wide_v[j]);
        const std::uint32_t word = at.word(static_cast<std::uint32_t>(j));
        if (has_first) want_m[j].bits = sae::round_to_bfloat16(wide_m[j], word & 0xffffU);
        want_v[j].bits = sae::round_to_bfloat16(wide_v[j], has_first ? word >> 16 : word & 0xffffU);
      }
      on_every_route([&] {
        CAPTURE(n, has_first);
        auto got_w = w;
        auto got_m = m, got_v = v;
        kernels::detail::half_kernels().adam_bfloat16(k, got_w.data(), g.data(), has_first ? got_m.data() : nullptr,
                                                      got_v.data(), n, at);
        for (std::size_t j = 0; j < w.size(); ++j) {
          CAPTURE(j);
          REQUIRE(std::isnan(got_w[j]) == std::isnan(want_w[j]));
          if (!std::isnan(want_w[j])) REQUIRE(bits(got_w[j]) == bits(want_w[j]));
          if (!std::isnan(want_w[j])) REQUIRE(got_m[j] == want_m[j]);
          if (!std::isnan(want_w[j])) REQUIRE(got_v[j] == want_v[j]);
        }
      });
    }
}

TEST_CASE("widening numbers of 8 bits multiplies them by their row's scale on every route", "[kernels][int8]") {
  std::vector<std::int8_t> codes(100 + 4 * 64);
  for (std::size_t j = 0; j < codes.size(); ++j) codes[j] = static_cast<std::int8_t>(j);
  const float scales[] = {0.3F, 1e-20F, 3e36F, 0.0F};
  for (const Index width : {1, 2, 7, 8, 9, 16, 17, 33, 64})
    on_every_route([&] {
      CAPTURE(width);
      std::vector<float> wide(static_cast<std::size_t>(4 * width) + 1, -7.0F);
      kernels::widen(sae::detail::Int8Rows{codes.data() + 100, scales, width}, wide.data(), 4 * width);
      for (std::size_t j = 0; j + 1 < wide.size(); ++j)
        REQUIRE(bits(wide[j]) == bits(scales[j / static_cast<std::size_t>(width)] * static_cast<float>(codes[100 + j])));
      REQUIRE(wide.back() == -7.0F);
    });
}
