#pragma once
#include <sae/core/half.hpp>
#include <sae/core/int8.hpp>
#include <sae/core/mapped.hpp>
#include <sae/kernels/vector.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <span>
#include <type_traits>

// Loops over numbers that are stored in 16 bits (core/half.hpp) or 8 (core/int8.hpp), for every route. All is integers but for what float16
// does below 2^-14, which is exact, and a product for each number of 8 bits, so all routes give the same bytes. F16C and the CPU's own bfloat16 are not needed: memory is what these loops wait for.
namespace sae::inline SAE_ABI::kernels {

namespace detail {

/// One route.
struct HalfKernels {
  /// y[j] <- x[j], exact.
  void (*widen_bfloat16)(const bfloat16* x, float* y, Index n);
  void (*widen_float16)(const float16* x, float* y, Index n);
  /// y[j] <- scale x[j].
  void (*widen_int8)(const std::int8_t* x, float scale, float* y, Index n);
  /// y[j] <- x[j], rounded by at.bits(j).
  void (*narrow_bfloat16)(const float* x, bfloat16* y, Index n, const Rounding& at);
  void (*narrow_float16)(const float* x, float16* y, Index n, const Rounding& at);
  /// `adam_number` of n numbers, whose moments are then rounded, m by the lower half of at.word(j) and v by the upper one; without m v by
  /// the lower one.
  void (*adam_bfloat16)(const AdamConstants& constants, float* w, const float* g, bfloat16* m, bfloat16* v, Index n,
                        const Rounding& at);
};

inline void adam_number(const AdamConstants& k, float* w, float g, bfloat16* m, bfloat16* v, std::uint32_t random) {
  float first = m == nullptr ? 0.0F : static_cast<float>(*m), second = static_cast<float>(*v);
  adam_number(k, w, g, m == nullptr ? nullptr : &first, &second);
  v->bits = round_to_bfloat16(second, m == nullptr ? random & 0xffffU : random >> 16);
  if (m != nullptr) m->bits = round_to_bfloat16(first, random & 0xffffU);
}

namespace portable {

template <class Half>
void widen(const Half* x, float* y, Index n) {
  for (Index j = 0; j < n; ++j) y[j] = static_cast<float>(x[j]);
}
inline void widen_int8(const std::int8_t* x, float scale, float* y, Index n) {
  for (Index j = 0; j < n; ++j) y[j] = scale * static_cast<float>(x[j]);
}
inline void narrow_bfloat16(const float* x, bfloat16* y, Index n, const Rounding& at) {
  for (Index j = 0; j < n; ++j) y[j].bits = round_to_bfloat16(x[j], at.bits(static_cast<std::uint32_t>(j)));
}
inline void narrow_float16(const float* x, float16* y, Index n, const Rounding& at) {
  for (Index j = 0; j < n; ++j) y[j].bits = round_to_half(x[j], at.bits(static_cast<std::uint32_t>(j)));
}
inline void adam_bfloat16(const AdamConstants& constants, float* w, const float* g, bfloat16* m, bfloat16* v, Index n,
                          const Rounding& at) {
  for (Index j = 0; j < n; ++j)
    adam_number(constants, w + j, g[j], m == nullptr ? nullptr : m + j, v + j, at.word(static_cast<std::uint32_t>(j)));
}
inline constexpr HalfKernels half_kernels{widen<bfloat16>, widen<float16>, widen_int8,
                                          narrow_bfloat16, narrow_float16, adam_bfloat16};

}  // namespace portable

#if SAE_X86
namespace avx2 {
#define SAE_V __m256
#define SAE_I __m256i
#define SAE_LANES 8
#define SAE_FEATURES "avx2,fma,popcnt"
#define SAE_OP(name) _mm256_##name
#define SAE_BITS(name) _mm256_##name##_si256
#include <sae/kernels/half_x86.inc>
#undef SAE_V
#undef SAE_I
#undef SAE_LANES
#undef SAE_FEATURES
#undef SAE_OP
#undef SAE_BITS
}  // namespace avx2
namespace avx512 {
#define SAE_V __m512
#define SAE_I __m512i
#define SAE_LANES 16
#define SAE_FEATURES "avx512f,avx512vl,avx2,fma,popcnt"
#define SAE_OP(name) _mm512_##name
#define SAE_BITS(name) _mm512_##name##_si512
#include <sae/kernels/half_x86.inc>
#undef SAE_V
#undef SAE_I
#undef SAE_LANES
#undef SAE_FEATURES
#undef SAE_OP
#undef SAE_BITS
}  // namespace avx512
#endif

#if SAE_NEON
namespace neon {
#include <sae/kernels/half_neon.inc>
}
#endif

/// Those of the route that is taken.
inline const HalfKernels& half_kernels() {
  [[maybe_unused]] const Route base = base_of(route());
#if SAE_X86
  if (base == Route::avx512) return avx512::half_kernels;
  if (base == Route::avx2) return avx2::half_kernels;
#elif SAE_NEON
  if (base == Route::neon) return neon::half_kernels;
#endif
  return portable::half_kernels;
}

}  // namespace detail

/// y[j] <- x[j] of n numbers, exact.
template <class Half>
void widen(const Half* x, float* y, Index n) {
  if constexpr (std::is_same_v<Half, bfloat16>) {
    detail::half_kernels().widen_bfloat16(x, y, n);
  } else {
    detail::half_kernels().widen_float16(x, y, n);
  }
}
/// Of 8 bits: n numbers from the start of a row on, in float32.
inline void widen(const sae::detail::Int8Rows& x, float* y, Index n) {
  const auto& kernels = detail::half_kernels();
  for (Index at = 0; at < n; at += x.width) {
    const sae::detail::Int8Rows row = x + at;
    kernels.widen_int8(row.codes, *row.scales, y + at, std::min(x.width, n - at));
  }
}
inline void prefetch(const sae::detail::Int8Rows& x, Index n) { prefetch(x.codes, n); }
/// Of weights that lie elsewhere: n / cols() whole rows.
inline void widen(const sae::detail::MappedRows& x, float* y, Index n) { x.reader->read(x.first, n / x.reader->cols(), y); }
inline void prefetch(const sae::detail::MappedRows&, Index) {}
/// Whether what points to numbers points to those to compute with.
template <class Rows, class Scalar>
inline constexpr bool is_wide = std::is_convertible_v<Rows, const Scalar*>;
/// n numbers to compute with: x itself, or, of 16 or 8 bits or where they lie elsewhere, widened into `room`, which takes wide_room<Stored>(n) numbers.
template <class Stored>
constexpr Index wide_room(Index n) {
  return sae::detail::is_narrow<Stored> ? n : 0;
}
template <class Scalar, class Rows>
const Scalar* wide(const Rows& x, [[maybe_unused]] Index n, [[maybe_unused]] Scalar* room) {
  if constexpr (is_wide<Rows, Scalar>) {
    return x;
  } else {
    widen(x, room, n);
    return room;
  }
}
/// Numbers of room that `add_dots` takes for rows of n.
template <class Rows, class Scalar>
constexpr Index dots_room(Index n) {
  return is_wide<Rows, Scalar> ? 0 : detail::rows_at_once * n;
}
/// out[t] += a . (row rows[t] of w), rows of n numbers one behind the other. Of float32 these are the numbers of `add_product_nt`: one
/// order of additions, alone or in a tile.
template <class Scalar, class Rows>
void add_dots(const Scalar* a, const Rows& w, Index n, std::span<const int> rows, Scalar* out, [[maybe_unused]] Scalar* room) {
  if constexpr (!is_wide<Rows, Scalar>) {
    constexpr std::array<int, static_cast<std::size_t>(detail::rows_at_once)> named{0, 1, 2, 3, 4, 5, 6, 7};
    for (std::size_t at = 0; at < rows.size(); at += named.size()) {
      const std::size_t some = std::min(named.size(), rows.size() - at);
      for (std::size_t t = 0; t < some; ++t) widen(w + rows[at + t] * n, room + static_cast<Index>(t) * n, n);
      add_dots(a, static_cast<const Scalar*>(room), n, std::span<const int>(named).first(some), out + at, room);
    }
  } else if constexpr (std::is_same_v<Scalar, float>) {
    detail::float_kernels().inner_of(a, w, n, n, rows.data(), static_cast<Index>(rows.size()), out);
  } else {
    for (std::size_t t = 0; t < rows.size(); ++t) out[t] += dot(a, w + rows[t] * n, n);
  }
}
/// y[j] <- x[j] of n numbers, stochastically rounded by at.bits(j).
template <class Half>
void narrow(const float* x, Half* y, Index n, const Rounding& at) {
  if constexpr (std::is_same_v<Half, bfloat16>) {
    detail::half_kernels().narrow_bfloat16(x, y, n, at);
  } else {
    detail::half_kernels().narrow_float16(x, y, n, at);
  }
}

}  // namespace sae::inline SAE_ABI::kernels
