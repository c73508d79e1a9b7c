#pragma once
#include <sae/core/types.hpp>
#include <sae/kernels/route.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#if SAE_X86
#include <immintrin.h>
#endif

// The innermost loops over float32 numbers, for every route. The order of additions is part of what each computes, and every product
// that is added to something is added by a fused multiply-add: then all routes give the same bytes.
namespace sae::inline SAE_ABI::kernels::detail {

/// fma(a, b, c), rounded once.
inline float fused(float a, float b, float c) {
#if defined(FP_FAST_FMAF) || defined(__FP_FAST_FMAF)
  return std::fma(a, b, c);
#else
  // a b is exact in double. The sum is rounded to odd: its last bit tells that something was lost, and the second rounding, to
  // 29 bits fewer, is then that of the exact sum (Boldo and Melquiond 2008, "Emulation of a FMA").
  const double product = static_cast<double>(a) * static_cast<double>(b), addend = static_cast<double>(c);
  double sum = product + addend;
  const double part = sum - product;
  const double lost = (product - (sum - part)) + (addend - part);
  const auto bits = std::bit_cast<std::uint64_t>(sum);
  if ((lost < 0 || lost > 0) && (bits & 1) == 0)  // not where infinities made it NaN
    sum = std::bit_cast<double>((lost > 0) == (sum > 0) ? bits + 1 : bits - 1);
  return static_cast<float>(sum);
#endif
}

inline constexpr Index dot_lanes = 64, rows_at_once = 8;

/// See Adam::Update.
struct AdamConstants {
  float beta1, rest1, beta2, rest2, rate, root, epsilon;
};
/// m is null where there is no first moment: then it is g.
inline void adam_number(const AdamConstants& k, float* w, float g, float* m, float* v) {
  float first = g;
  if (m != nullptr) first = *m = fused(k.beta1, *m, k.rest1 * g);
  *v = fused(k.beta2, *v, k.rest2 * g * g);
  *w -= k.rate * first / fused(std::sqrt(*v), k.root, k.epsilon);
}

/// One route.
struct FloatKernels {
  /// a . b: lane l < 64 takes a chain of the products at l, l + 64, ..; then lanes 32, 16, .., 1 apart are added.
  float (*dot)(const float* a, const float* b, Index n);
  /// y <- fma(c, x, y)
  void (*add_scaled)(float* y, float c, const float* x, Index n);
  /// y <- fma(c_t, x_t, y) for t = 0 .. count - 1; a few rows at a time, `rows_at_once`
  void (*add_rows)(float* y, const float* c, const float* const* x, Index count, Index n);
  void (*scale)(float* y, float c, Index n);
  /// The first j in [from, n) with x[j] > bound, else n.
  Index (*next_above)(const float* x, Index from, Index n, float bound);
  /// How many x[j] > bound.
  Index (*count_above)(const float* x, Index n, float bound);
  /// `adam_number` of n numbers.
  void (*adam)(const AdamConstants& constants, float* w, const float* g, float* m, float* v, Index n);

  // Products (float_product.hpp): columns of a panel, rows of a group; each tile adds a [k][rows] b [k][panel] to c.
  Index panel;
  Index groups[3];  ///< descending, the last is 1
  void (*tiles[3])(const float* a, const float* b, Index k, float* c, Index ld);
  /// to[p panel + j] = from[j ld + p] for j < 8, p < k.
  void (*transpose_eight)(const float* from, Index ld, Index k, float* to, Index panel);
};
inline constexpr Index widest_panel = 32, largest_group = 12;

namespace portable {

inline float dot(const float* a, const float* b, Index n) {
  float sum[dot_lanes] = {};
  for (Index j = 0; j < n; j += dot_lanes)
    for (Index l = 0; l < std::min(dot_lanes, n - j); ++l) sum[l] = fused(a[j + l], b[j + l], sum[l]);
  for (Index width = dot_lanes / 2; width > 0; width /= 2)
    for (Index l = 0; l < width; ++l) sum[l] += sum[l + width];
  return sum[0];
}
inline void add_scaled(float* y, float c, const float* x, Index n) {
  for (Index j = 0; j < n; ++j) y[j] = fused(c, x[j], y[j]);
}
inline void add_rows(float* y, const float* c, const float* const* x, Index count, Index n) {
  for (Index t = 0; t < count; ++t) add_scaled(y, c[t], x[t], n);
}
inline void scale(float* y, float c, Index n) {
  for (Index j = 0; j < n; ++j) y[j] *= c;
}
inline Index next_above(const float* x, Index from, Index n, float bound) {
  while (from < n && !(x[from] > bound)) ++from;
  return from;
}
inline Index count_above(const float* x, Index n, float bound) {
  return std::count_if(x, x + n, [=](float value) { return value > bound; });
}
inline void adam(const AdamConstants& constants, float* w, const float* g, float* m, float* v, Index n) {
  for (Index j = 0; j < n; ++j) adam_number(constants, w + j, g[j], m == nullptr ? nullptr : m + j, v + j);
}
inline constexpr Index panel = 8;
template <Index rows>
void product_tile(const float* a, const float* b, Index k, float* c, Index ld) {
  float sum[static_cast<std::size_t>(rows)][panel];
  for (Index r = 0; r < rows; ++r) std::copy_n(c + r * ld, panel, sum[r]);
  for (Index p = 0; p < k; ++p)
    for (Index r = 0; r < rows; ++r)
      for (Index j = 0; j < panel; ++j) sum[r][j] = fused(a[p * rows + r], b[p * panel + j], sum[r][j]);
  for (Index r = 0; r < rows; ++r) std::copy_n(sum[r], panel, c + r * ld);
}
inline void transpose_eight(const float* from, Index ld, Index k, float* to, Index width) {
  for (Index p = 0; p < k; ++p)
    for (Index j = 0; j < 8; ++j) to[p * width + j] = from[j * ld + p];
}
inline constexpr FloatKernels kernels{.dot = dot,
                                      .add_scaled = add_scaled,
                                      .add_rows = add_rows,
                                      .scale = scale,
                                      .next_above = next_above,
                                      .count_above = count_above,
                                      .adam = adam,
                                      .panel = panel,
                                      .groups = {4, 2, 1},
                                      .tiles = {product_tile<4>, product_tile<2>, product_tile<1>},
                                      .transpose_eight = transpose_eight};

}  // namespace portable

#if SAE_X86
SAE_TARGET("avx2,fma")
inline void transpose_eight(const float* from, Index ld, Index k, float* to, Index panel) {
  Index p = 0;
  for (; p + 8 <= k; p += 8) {
    __m256 r[8], s[8];
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) r[j] = _mm256_loadu_ps(from + j * ld + p);
#pragma GCC unroll 4
    for (int j = 0; j < 8; j += 2) {
      s[j] = _mm256_unpacklo_ps(r[j], r[j + 1]);
      s[j + 1] = _mm256_unpackhi_ps(r[j], r[j + 1]);
    }
#pragma GCC unroll 2
    for (int j = 0; j < 8; j += 4) {
      r[j] = _mm256_shuffle_ps(s[j], s[j + 2], 0x44);
      r[j + 1] = _mm256_shuffle_ps(s[j], s[j + 2], 0xEE);
      r[j + 2] = _mm256_shuffle_ps(s[j + 1], s[j + 3], 0x44);
      r[j + 3] = _mm256_shuffle_ps(s[j + 1], s[j + 3], 0xEE);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      _mm256_storeu_ps(to + (p + j) * panel, _mm256_permute2f128_ps(r[j], r[j + 4], 0x20));
      _mm256_storeu_ps(to + (p + j + 4) * panel, _mm256_permute2f128_ps(r[j], r[j + 4], 0x31));
    }
  }
  portable::transpose_eight(from + p, ld, k - p, to + p * panel, panel);
}

namespace avx2 {
#define SAE_V __m256
#define SAE_LANES 8
#define SAE_FEATURES "avx2,fma,popcnt"
#define SAE_OP(name) _mm256_##name
#define SAE_GROUP 6
#include <sae/kernels/float_x86.inc>
#undef SAE_V
#undef SAE_LANES
#undef SAE_FEATURES
#undef SAE_OP
#undef SAE_GROUP
}  // namespace avx2
namespace avx512 {
#define SAE_V __m512
#define SAE_LANES 16
#define SAE_FEATURES "avx512f,avx512vl,avx2,fma,popcnt"
#define SAE_OP(name) _mm512_##name
#define SAE_GROUP 12
#include <sae/kernels/float_x86.inc>
#undef SAE_V
#undef SAE_LANES
#undef SAE_FEATURES
#undef SAE_OP
#undef SAE_GROUP
}  // namespace avx512
#endif

/// Those of the route that is taken.
inline const FloatKernels& float_kernels() {
#if SAE_X86
  if (route() == Route::avx512) return avx512::kernels;
  if (route() == Route::avx2) return avx2::kernels;
#endif
  return portable::kernels;
}

}  // namespace sae::inline SAE_ABI::kernels::detail
