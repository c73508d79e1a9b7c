#pragma once
#include <sae/core/error.hpp>
#include <sae/core/half.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <span>
#include <string_view>

namespace sae::inline SAE_ABI {

static_assert(std::endian::native == std::endian::little, "sae/files maps little-endian numbers as they are");

/// The kinds of numbers that files hold, little-endian.
enum class Dtype { float64, float32, float16, bfloat16, int64, int32, int16, int8, uint64, uint32, uint16, uint8, boolean };

inline constexpr std::array<Dtype, 13> all_dtypes{
    Dtype::float64, Dtype::float32, Dtype::float16, Dtype::bfloat16, Dtype::int64, Dtype::int32,  Dtype::int16,
    Dtype::int8,    Dtype::uint64,  Dtype::uint32,  Dtype::uint16,   Dtype::uint8, Dtype::boolean};

/// Bytes of one number.
constexpr Index item_size(Dtype dtype) {
  constexpr Index sizes[] = {8, 4, 2, 2, 8, 4, 2, 1, 8, 4, 2, 1, 1};
  return sizes[static_cast<std::size_t>(dtype)];
}
constexpr std::string_view to_string(Dtype dtype) {
  constexpr std::string_view names[] = {"float64", "float32", "float16", "bfloat16", "int64", "int32",  "int16",
                                        "int8",    "uint64",  "uint32",  "uint16",   "uint8", "boolean"};
  return names[static_cast<std::size_t>(dtype)];
}
constexpr bool is_floating(Dtype dtype) { return dtype <= Dtype::bfloat16; }

/// The kind that a C++ type is in a file.
template <class T>
constexpr Dtype dtype_of() {
  if constexpr (detail::is_half<T>) {
    return std::is_same_v<T, bfloat16> ? Dtype::bfloat16 : Dtype::float16;
  } else if constexpr (std::is_floating_point_v<T>) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "sae: float or double");
    return sizeof(T) == 8 ? Dtype::float64 : Dtype::float32;
  } else if constexpr (std::is_same_v<T, bool>) {
    return Dtype::boolean;
  } else {
    static_assert(std::is_integral_v<T>, "sae: files hold float, double and integers");
    constexpr int log2_size = std::countr_zero(sizeof(T));
    constexpr Dtype kinds[2][4] = {{Dtype::uint8, Dtype::uint16, Dtype::uint32, Dtype::uint64},
                                   {Dtype::int8, Dtype::int16, Dtype::int32, Dtype::int64}};
    return kinds[std::is_signed_v<T> ? 1 : 0][log2_size];
  }
}

/// Whether numbers of this kind may be read as T: floating kinds as float, double or in 16 bits (rounded to nearest), integer
/// kinds as integers that hold all their values, booleans as any integer (0 or 1).
template <class T>
constexpr bool readable_as(Dtype dtype) {
  if (std::is_floating_point_v<T> || detail::is_half<T>) return is_floating(dtype);
  if (is_floating(dtype)) return false;
  if (dtype == Dtype::boolean) return true;
  if (std::is_same_v<T, bool>) return false;
  const bool is_signed = dtype >= Dtype::int64 && dtype <= Dtype::int8;
  const Index size = static_cast<Index>(sizeof(T));
  if (is_signed) return std::is_signed_v<T> && item_size(dtype) <= size;
  return std::is_signed_v<T> ? item_size(dtype) < size : item_size(dtype) <= size;
}

namespace detail {

template <class Stored, class T, class Convert>
void convert_each(const std::byte* from, Index count, T* out, const Convert& convert) {
  for (Index i = 0; i < count; ++i) {
    Stored value;
    std::memcpy(&value, from + static_cast<std::size_t>(i) * sizeof(Stored), sizeof(Stored));
    out[i] = stored_as<T>(convert(value));
  }
}

/// out[i] = number i of `from` (any alignment), 0 <= i < count, where `readable_as<T>(dtype)`.
template <class T>
void convert(Dtype dtype, const std::byte* from, Index count, T* out) {
  if (count == 0) return;
  if (dtype == dtype_of<T>() && dtype != Dtype::boolean) {
    std::memcpy(out, from, static_cast<std::size_t>(count) * sizeof(T));
    return;
  }
  const auto same = [](auto value) { return value; };
  switch (dtype) {
    case Dtype::float64: return convert_each<double>(from, count, out, same);
    case Dtype::float32: return convert_each<float>(from, count, out, same);
    case Dtype::float16: return convert_each<std::uint16_t>(from, count, out, half_to_float);
    case Dtype::bfloat16: return convert_each<std::uint16_t>(from, count, out, bfloat16_to_float);
    case Dtype::int64: return convert_each<std::int64_t>(from, count, out, same);
    case Dtype::int32: return convert_each<std::int32_t>(from, count, out, same);
    case Dtype::int16: return convert_each<std::int16_t>(from, count, out, same);
    case Dtype::int8: return convert_each<std::int8_t>(from, count, out, same);
    case Dtype::uint64: return convert_each<std::uint64_t>(from, count, out, same);
    case Dtype::uint32: return convert_each<std::uint32_t>(from, count, out, same);
    case Dtype::uint16: return convert_each<std::uint16_t>(from, count, out, same);
    case Dtype::uint8: return convert_each<std::uint8_t>(from, count, out, same);
    case Dtype::boolean:
      return convert_each<std::uint8_t>(from, count, out, [](std::uint8_t value) { return value != 0 ? 1 : 0; });
  }
}

/// Calls body(T()) with the floating type of that name.
/// \throws ValueError  it is none.
template <class Body>
void with_floating(Dtype dtype, const Body& body) {
  if (dtype == Dtype::float64) return body(double{});
  if (dtype == Dtype::float32) return body(float{});
  if (dtype == Dtype::bfloat16) return body(bfloat16{});
  if (dtype == Dtype::float16) return body(float16{});
  throw_value("dtype ", to_string(dtype), " is not written; float32, float64, bfloat16 and float16 are");
}

/// Product of a shape's sizes, all >= 0, times the item size: the bytes of an array. False where it does not fit in 63 bits.
inline bool byte_count(std::span<const Index> shape, Dtype dtype, Index& elements, Index& bytes) {
  constexpr Index largest = (std::numeric_limits<Index>::max)();
  elements = 1;
  for (const Index size : shape) {
    if (size != 0 && elements > largest / size) return false;
    elements *= size;
  }
  if (elements > largest / item_size(dtype)) return false;
  bytes = elements * item_size(dtype);
  return true;
}

/// "[16, 24]"
inline std::string shape_text(std::span<const Index> shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (i != 0) text += ", ";
    append(text, shape[i]);
  }
  return text += "]";
}

}  // namespace detail
}  // namespace sae::inline SAE_ABI
