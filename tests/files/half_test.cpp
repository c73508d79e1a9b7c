#include <sae/files/half.hpp>

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

TEST_CASE("float16: every bit pattern has the value of the format and comes back", "[files][half]") {
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

TEST_CASE("float16: between two neighbours the nearer one is taken, and the even one in the middle", "[files][half]") {
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

TEST_CASE("float16: the edges", "[files][half]") {
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

TEST_CASE("bfloat16: every bit pattern comes back, neighbours round to nearest even", "[files][half]") {
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

TEST_CASE("16-bit rounding agrees with Eigen's on random bit patterns", "[files][half]") {
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
