#include <sae/core/half.hpp>
#include <sae/core/random.hpp>

#include <bit>
#include <cmath>
#include <limits>
#include <random>

#include "catch_compat.hpp"

namespace {

/// The value of float16 bits by the definition of the format.
double half_value(unsigned bits) {
  const int exponent = static_cast<int>(bits >> 10 & 31u), fraction = static_cast<int>(bits & 1023u);
  const double size = exponent == 0    ? std::ldexp(fraction, -24)
                      : exponent == 31 ? (fraction == 0 ? std::numeric_limits<double>::infinity() : std::nan(""))
                                       : std::ldexp(1024 + fraction, exponent - 25);
  return (bits >> 15) != 0 ? -size : size;
}

std::uint16_t u16(unsigned bits) { return static_cast<std::uint16_t>(bits); }

}  // namespace

TEST_CASE("float16: every bit pattern has the value of the format and comes back", "[core][half]") {
  int wrong_values = 0, wrong_bits = 0, wrong_bits_from_double = 0;
  for (unsigned bits = 0; bits < 65536; ++bits) {
    const float value = sae::half_to_float(u16(bits));
    const double expected = half_value(bits);
    const bool same = std::isnan(expected)
                          ? std::isnan(value)
                          : static_cast<double>(value) == expected && std::signbit(value) == std::signbit(expected);
    wrong_values += same ? 0 : 1;
    wrong_bits += sae::float_to_half(value) == bits ? 0 : 1;
    if (!std::isnan(value)) wrong_bits_from_double += sae::double_to_half(static_cast<double>(value)) == bits ? 0 : 1;
  }
  CHECK(wrong_values == 0);
  CHECK(wrong_bits == 0);
  CHECK(wrong_bits_from_double == 0);
}

TEST_CASE("float16: between two neighbours the nearer one is taken, and the even one in the middle", "[core][half]") {
  int wrong = 0, wrong_double = 0;
  for (unsigned low = 0; low < 0x7bff; ++low) {  // both finite
    const double a = half_value(low), b = half_value(low + 1), middle = (a + b) / 2;
    const unsigned even = low % 2 == 0 ? low : low + 1;
    for (const unsigned sign : {0u, 0x8000u}) {
      const auto signed_value = [&](double v) { return sign != 0 ? -v : v; };
      const float tie = static_cast<float>(signed_value(middle));  // exact: 11 bits and one more
      const float below = std::nextafter(tie, 0.0f), above = std::nextafter(tie, sign != 0 ? -1e9f : 1e9f);
      wrong += sae::float_to_half(tie) == (even | sign) ? 0 : 1;
      wrong += sae::float_to_half(below) == (low | sign) ? 0 : 1;
      wrong += sae::float_to_half(above) == ((low + 1) | sign) ? 0 : 1;
      // Nearer to the middle than float resolves: rounding twice would land on the tie.
      wrong_double += sae::double_to_half(signed_value(std::nextafter(middle, 0.0))) == (low | sign) ? 0 : 1;
      wrong_double += sae::double_to_half(signed_value(std::nextafter(middle, 1e9))) == ((low + 1) | sign) ? 0 : 1;
    }
  }
  CHECK(wrong == 0);
  CHECK(wrong_double == 0);
}

TEST_CASE("float16: the edges", "[core][half]") {
  constexpr float inf = std::numeric_limits<float>::infinity();
  CHECK(sae::float_to_half(65504.0f) == 0x7bff);
  CHECK(sae::float_to_half(65519.996f) == 0x7bff);
  CHECK(sae::float_to_half(65520.0f) == 0x7c00);
  CHECK(sae::float_to_half(-65520.0f) == 0xfc00);
  CHECK(sae::float_to_half(3.4e38f) == 0x7c00);
  CHECK(sae::float_to_half(inf) == 0x7c00);
  CHECK(sae::float_to_half(-0.0f) == 0x8000);
  CHECK(sae::float_to_half(0x1p-24f) == 1);
  CHECK(sae::float_to_half(0x1p-25f) == 0);
  CHECK(sae::float_to_half(std::nextafter(0x1p-25f, 1.0f)) == 1);
  CHECK(sae::float_to_half(std::numeric_limits<float>::denorm_min()) == 0);
  CHECK(std::isnan(sae::half_to_float(sae::float_to_half(std::nanf("")))));
  CHECK(std::isnan(sae::half_to_float(sae::float_to_half(std::bit_cast<float>(0x7f800001u)))));  // payload below 10 bits
  CHECK(sae::double_to_half(1e300) == 0x7c00);
  CHECK(sae::double_to_half(-1e-300) == 0x8000);
  CHECK(std::isnan(sae::half_to_float(sae::double_to_half(std::nan("")))));
}

TEST_CASE("bfloat16: every bit pattern comes back, neighbours round to nearest even", "[core][half]") {
  int wrong = 0;
  for (unsigned bits = 0; bits < 65536; ++bits) {
    const float value = sae::bfloat16_to_float(u16(bits));
    wrong += std::bit_cast<std::uint32_t>(value) == bits << 16 ? 0 : 1;
    wrong += sae::float_to_bfloat16(value) == bits ? 0 : 1;
    if (std::isnan(value)) continue;
    wrong += sae::double_to_bfloat16(static_cast<double>(value)) == bits ? 0 : 1;
    if (std::isinf(value) || (bits & 0x7fff) == 0x7f7f) continue;  // the neighbour is infinite
    const float tie = std::bit_cast<float>(bits << 16 | 0x8000u);
    const double middle = static_cast<double>(tie);
    const unsigned even = bits % 2 == 0 ? bits : bits + 1;
    wrong += sae::float_to_bfloat16(tie) == even ? 0 : 1;
    wrong += sae::float_to_bfloat16(std::bit_cast<float>(bits << 16 | 0x7fffu)) == bits ? 0 : 1;
    wrong += sae::float_to_bfloat16(std::bit_cast<float>(bits << 16 | 0x8001u)) == bits + 1 ? 0 : 1;
    wrong += sae::double_to_bfloat16(std::nextafter(middle, 0.0)) == bits ? 0 : 1;
    wrong += sae::double_to_bfloat16(std::nextafter(middle, middle < 0 ? -1e39 : 1e39)) == bits + 1 ? 0 : 1;
  }
  CHECK(wrong == 0);
  CHECK(std::isnan(sae::bfloat16_to_float(sae::float_to_bfloat16(std::bit_cast<float>(0x7f800001u)))));
  CHECK(sae::float_to_bfloat16(std::numeric_limits<float>::max()) == 0x7f80);
  CHECK(sae::double_to_bfloat16(1e300) == 0x7f80);
}

TEST_CASE("16-bit rounding agrees with Eigen's on random bit patterns", "[core][half]") {
  std::mt19937 random(1);
  int wrong = 0;
  for (int i = 0; i < 500000; ++i) {
    const float value = std::bit_cast<float>(static_cast<std::uint32_t>(random()));
    if (std::isnan(value)) continue;
    wrong += sae::float_to_half(value) == Eigen::numext::bit_cast<Eigen::numext::uint16_t>(Eigen::half(value)) ? 0 : 1;
    wrong += sae::float_to_bfloat16(value) == Eigen::numext::bit_cast<Eigen::numext::uint16_t>(Eigen::bfloat16(value)) ? 0 : 1;
  }
  CHECK(wrong == 0);
}

namespace {

/// Mean of many roundings of a value, by the words of random keys.
template <class Half, class Round>
double mean_rounded(float value, const Round& round, int count) {
  sae::Random random(5);
  double sum = 0;
  for (int t = 0; t < count; ++t) {
    Half half;
    half.bits = round(value, sae::Rounding{.key = random.bits()}.bits(3));
    sum += static_cast<double>(static_cast<float>(half));
  }
  return sum / count;
}
template <class Half, class Round>
void check_unbiased(float value, float below, float above, const Round& round) {
  constexpr int count = 20000;
  CAPTURE(value, below, above);
  const double step = std::fabs(static_cast<double>(above) - static_cast<double>(below));
  // Five standard deviations of a mean of `count` numbers that are 0 or one step.
  CHECK(std::fabs(mean_rounded<Half>(value, round, count) - static_cast<double>(value)) <= 5 * 0.5 * step / std::sqrt(count));
  CHECK(round(value, 0) == Half(below).bits);
  CHECK(round(value, 0xffff) == Half(above).bits);
}

}  // namespace

TEST_CASE("stochastic rounding takes one of the two neighbours, and their mean is the value", "[core][half]") {
  for (const float sign : {1.0F, -1.0F}) {
    const float b = 0x1p-7F, h = 0x1p-10F;  // distances of neighbours at 1
    for (const float part : {0.01F, 0.25F, 0.5F, 0.9F}) {
      check_unbiased<sae::bfloat16>(sign * (1 + part * b), sign, sign * (1 + b), sae::round_to_bfloat16);
      check_unbiased<sae::float16>(sign * (1 + part * h), sign, sign * (1 + h), sae::round_to_half);
      // Subnormal ones.
      check_unbiased<sae::float16>(sign * (5 + part) * 0x1p-24F, sign * 5 * 0x1p-24F, sign * 6 * 0x1p-24F, sae::round_to_half);
      check_unbiased<sae::float16>(sign * part * 0x1p-24F, sign * 0.0F, sign * 0x1p-24F, sae::round_to_half);
      check_unbiased<sae::bfloat16>(sign * part * 0x1p-133F, sign * 0.0F, sign * 0x1p-133F, sae::round_to_bfloat16);
    }
  }
  CHECK(sae::round_to_half(0x1.8p-41F, 0xffff) == 0);  // finer than it looks
  CHECK(sae::round_to_half(0x1p-40F, 0xffff) == 1);
}

TEST_CASE("stochastic rounding leaves what is exact, and the largest numbers reach infinity", "[core][half]") {
  int wrong = 0;
  for (unsigned bits = 0; bits < 65536; ++bits)
    for (const std::uint32_t random : {0U, 1U, 0x8000U, 0xffffU}) {
      const float brain = sae::bfloat16_to_float(u16(bits)), half = sae::half_to_float(u16(bits));
      const unsigned quiet_brain = std::isnan(brain) ? bits | 0x40U : bits,
                     quiet_half = std::isnan(half) ? bits | 0x200U : bits;
      wrong += sae::round_to_bfloat16(brain, random) == quiet_brain ? 0 : 1;
      wrong += sae::round_to_half(half, random) == quiet_half ? 0 : 1;
    }
  CHECK(wrong == 0);
  CHECK(sae::round_to_bfloat16(std::numeric_limits<float>::max(), 0) == 0x7f7f);
  CHECK(sae::round_to_bfloat16(std::numeric_limits<float>::max(), 0xffff) == 0x7f80);
  CHECK(sae::round_to_half(65520.0f, 0x7fff) == 0x7bff);
  CHECK(sae::round_to_half(65520.0f, 0x8000) == 0x7c00);
  CHECK(sae::round_to_half(-65536.0f, 0) == 0xfc00);
  CHECK(sae::round_to_half(3e38f, 0) == 0x7c00);
}

TEST_CASE("words of a rounding are even and independent in both halves", "[core][half]") {
  constexpr std::uint32_t n = 1 << 20;
  const sae::Rounding at{.key = 1, .position = 12345}, next{.key = 0x89abcdefU, .position = 12345};
  double low = 0, high = 0, product = 0, neighbours = 0, steps = 0;
  const auto centred = [](std::uint32_t half) { return static_cast<double>(half) / 65536 - 0.5 + 0.5 / 65536; };
  for (std::uint32_t j = 0; j < n; ++j) {
    const double a = centred(at.word(j) & 0xffffU), b = centred(at.word(j) >> 16);
    low += a;
    high += b;
    product += a * b;
    neighbours += a * centred(at.word(j + 1) & 0xffffU);
    steps += a * centred(next.word(j) & 0xffffU);
  }
  // Five standard deviations: sqrt(n / 12) of the sums, sqrt(n) / 12 of the products.
  CHECK(std::fabs(low) <= 5 * std::sqrt(n / 12.0));
  CHECK(std::fabs(high) <= 5 * std::sqrt(n / 12.0));
  for (const double sum : {product, neighbours, steps}) CHECK(std::fabs(sum) <= 5 * std::sqrt(n) / 12);
}
