#pragma once
#include <sae/core/types.hpp>

#include <bit>
#include <cstdint>
#include <type_traits>

namespace sae::inline SAE_ABI {

// 16-bit floating-point numbers as they are stored; all arithmetic is in float or double.
//   float16   1 sign, 5 exponent, 10 fraction bits: largest 65504, smallest normal 2^-14, smallest 2^-24
//   bfloat16  1 sign, 8 exponent,  7 fraction bits: the upper half of a float
// To 16 bits is round to nearest, ties to even; what rounds beyond the largest finite number becomes infinity. From 16 bits is
// exact. A NaN stays a NaN and keeps the leading bits of its payload. -0 stays -0. Serial, a few integer operations a number.

/// The float with the bits of a float16.
inline float half_to_float(std::uint16_t half) {
  const std::uint32_t sign = (half & 0x8000u) << 16, rest = half & 0x7fffu;
  const std::uint32_t rebias = rest >= 0x7c00u ? 224u << 23 : 112u << 23;  // infinity and NaN: up to exponent 255
  const std::uint32_t normal = (rest << 13) + rebias;
  const std::uint32_t subnormal = std::bit_cast<std::uint32_t>(static_cast<float>(rest) * 0x1p-24f);
  return std::bit_cast<float>(sign | (rest < 0x0400u ? subnormal : normal));
}

/// The float16 nearest to a float.
inline std::uint16_t float_to_half(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
  std::uint32_t half = 0;
  if (rest > 0x7f800000u) {  // NaN
    const std::uint32_t payload = rest >> 13 & 0x3ffu;
    half = 0x7c00u | (payload != 0 ? payload : 0x200u);
  } else if (rest >= 0x47800000u) {  // from 2^16 on
    half = 0x7c00u;
  } else if (rest >= 0x38800000u) {  // normal: from 2^-14 on; a carry may reach the exponent, and infinity from 65520 on
    half = (rest - (112u << 23) + 0xfffu + (rest >> 13 & 1u)) >> 13;
  } else if (rest > 0x33000000u) {  // subnormal: above 2^-25, which is a tie with the even 0
    const std::uint32_t shift = 126u - (rest >> 23), fraction = (rest & 0x7fffffu) | 0x800000u;
    half = fraction >> shift;
    const std::uint32_t lost = fraction & ((1u << shift) - 1u), tie = 1u << (shift - 1u);
    half += lost > tie || (lost == tie && (half & 1u) != 0) ? 1u : 0u;
  }
  return static_cast<std::uint16_t>(sign | half);
}

/// The float with the bits of a bfloat16.
inline float bfloat16_to_float(std::uint16_t value) { return std::bit_cast<float>(static_cast<std::uint32_t>(value) << 16); }

/// The bfloat16 nearest to a float.
inline std::uint16_t float_to_bfloat16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u)
    return static_cast<std::uint16_t>(bits >> 16 | ((bits >> 16 & 0x7fu) != 0 ? 0u : 0x40u));
  return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

namespace detail {
/// A float between which and the double no 16-bit number and no tie of two lies (round to odd), so that rounding it again
/// gives what rounding the double once would give. (Boldo & Melquiond 2008, "Emulation of a FMA and correctly rounded sums".)
inline float round_to_odd(double value) {
  const float near = static_cast<float>(value);
  const double back = static_cast<double>(near);
  if (back == value || value != value) return near;
  std::uint32_t bits = std::bit_cast<std::uint32_t>(near);
  if ((bits & 1u) != 0) return near;
  const bool too_far = (value < 0 ? -back : back) > (value < 0 ? -value : value);
  bits += too_far ? -1u : 1u;  // the odd neighbour on the other side of the value; also from infinity, and from 0
  return std::bit_cast<float>(bits);
}
}  // namespace detail

inline std::uint16_t double_to_half(double value) { return float_to_half(detail::round_to_odd(value)); }
inline std::uint16_t double_to_bfloat16(double value) { return float_to_bfloat16(detail::round_to_odd(value)); }

/// Numbers of 16 bits in memory: from a float rounded to nearest, to a float exact, both said aloud. Equal where their bits are.
struct bfloat16 {  // NOLINT(readability-identifier-naming): as the language names its numbers
  std::uint16_t bits = 0;
  bfloat16() = default;
  explicit bfloat16(float value) : bits(float_to_bfloat16(value)) {}
  explicit operator float() const { return bfloat16_to_float(bits); }
  bool operator==(const bfloat16&) const = default;
};
struct float16 {  // NOLINT(readability-identifier-naming)
  std::uint16_t bits = 0;
  float16() = default;
  explicit float16(float value) : bits(float_to_half(value)) {}
  explicit operator float() const { return half_to_float(bits); }
  bool operator==(const float16&) const = default;
};

namespace detail {
template <class T>
inline constexpr bool is_half = std::is_same_v<T, bfloat16> || std::is_same_v<T, float16>;
/// Weights that are widened to compute with, or read where they lie.
template <class T>
inline constexpr bool is_narrow = is_half<T> || std::is_same_v<T, std::int8_t> || std::is_same_v<T, Mapped>;
/// What is computed with in the place of a stored number.
template <class T>
auto number(T stored) {
  if constexpr (is_half<T>) {
    return static_cast<float>(stored);
  } else {
    return stored;
  }
}
/// A number as it is stored, rounded once, to nearest.
template <class T, class Number>
T stored_as(Number value) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    T out;
    out.bits = double_to_bfloat16(static_cast<double>(value));
    return out;
  } else if constexpr (std::is_same_v<T, float16>) {
    T out;
    out.bits = double_to_half(static_cast<double>(value));
    return out;
  } else {
    return static_cast<T>(value);
  }
}
}  // namespace detail

// Stochastic rounding: of the two neighbours a <= x <= b of a float x the upper one with the probability (x - a) / (b - a), so that the
// mean of the result is x, and a sum of steps far below the distance of neighbours moves as far as in float32. What is exact stays, so do
// -0 and the infinities; a NaN stays one, quiet, with the leading bits of its payload. Above the largest finite number b is the infinity,
// in the place of the next power of two. float16 looks at multiples of 2^-40: what is smaller becomes 0.
// Source: Gupta et al. 2015, "Deep learning with limited numerical precision".

/// \param random  uniform in [0, 2^16)
inline std::uint16_t round_to_bfloat16(float value, std::uint32_t random) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  return static_cast<std::uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? bits >> 16 | 0x40u : (bits + random) >> 16);
}
inline std::uint16_t round_to_half(float value, std::uint32_t random) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value), sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
  std::uint32_t half = 0x7c00u;  // from 2^16 on
  if (rest > 0x7f800000u) {      // NaN
    half = 0x7e00u | (rest >> 13 & 0x3ffu);
  } else if (rest < 0x38800000u) {  // below 2^-14: a multiple of 2^-24
    half = (static_cast<std::uint32_t>(std::bit_cast<float>(rest) * 0x1p40f) + random) >> 16;
  } else if (rest < 0x47800000u) {
    half = (rest - (112u << 23) + (random >> 3)) >> 13;
  }
  return static_cast<std::uint16_t>(sign | half);
}

/// The random bits of one stochastic rounding of many numbers, a hash of a key and of where a number stands: they depend on nothing
/// else, neither threads nor the width of registers. Keys must be random from rounding to rounding: one number's bits in two of them
/// are as independent as the keys are. Positions 2^32 apart have the same bits.
struct Rounding {
  std::uint32_t key = 0;
  std::uint32_t position = 0;  ///< of the first number
  bool high = false;           ///< takes the upper 16 bits of each word: for a second number beside a first at one position

  static constexpr std::uint32_t stride = 0x9e3779b9u, multiplier = 0x846ca68bu;  // 2^32 over the golden ratio; Wellons 2018
  /// 32 bits for number j.
  std::uint32_t word(std::uint32_t j) const {
    std::uint32_t x = key + (position + j) * stride;
    x = (x ^ x >> 15) * multiplier;
    return x ^ x >> 16;
  }
  /// The 16 of them that are taken.
  std::uint32_t bits(std::uint32_t j) const { return high ? word(j) >> 16 : word(j) & 0xffffu; }
};

}  // namespace sae::inline SAE_ABI
