#pragma once
#include <sae/core/types.hpp>
#include <sae/kernels/route.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#if SAE_X86
#include <immintrin.h>
#elif SAE_NEON
#include <arm_neon.h>
#endif

// The innermost loops over float32 numbers, for every route. The order of additions is part of what each computes, and every product
// that is added to something is added by a fused multiply-add: then all routes give the same bytes.
namespace sae::inline SAE_ABI::kernels::detail {

/// fma(a, b, c), rounded once.
inline float fused(float a, float b, float c) {
#if defined(FP_FAST_FMAF) || defined(__FP_FAST_FMAF) || SAE_NEON
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

/// 1 / (1 + e^-x), within 3 units in the last place: e^-|x| is 2^n e^r with |r| <= ln(2) / 2, n by adding what leaves no fraction, and
/// e^r a polynomial (Moshier's Cephes, expf). Below -104 it is 0; NaN stays.
struct SigmoidConstants {
  float least = -104, log2_e = 1.44269504F, whole = 12582912, ln2_high = 0.693359375F, ln2_low = -2.12194440e-4F;
  float p[6] = {1.9875691500e-4F, 1.3981999507e-3F, 8.3334519073e-3F, 4.1665795894e-2F, 1.6666665459e-1F, 5.0000001201e-1F};
};
inline constexpr SigmoidConstants sigmoid_constants;
inline float sigmoid_number(float x) {
  constexpr SigmoidConstants k = sigmoid_constants;
  const float t = -std::abs(x), bounded = k.least > t ? k.least : t;
  const float shifted = fused(bounded, k.log2_e, k.whole), n = shifted - k.whole;
  const float r = fused(-k.ln2_low, n, fused(-k.ln2_high, n, bounded));
  float y = k.p[0];
  for (int i = 1; i < 6; ++i) y = fused(y, r, k.p[i]);
  y = fused(y, r * r, r) + 1.0F;
  // 2^n in two halves, the first of which leaves a normal number.
  const std::int32_t power =
      static_cast<std::int32_t>(std::bit_cast<std::uint32_t>(shifted) - std::bit_cast<std::uint32_t>(k.whole));
  const auto two_to = [](std::int32_t m) { return std::bit_cast<float>((static_cast<std::uint32_t>(m) + 127U) << 23); };
  const float e = y * two_to(power >> 1) * two_to(power - (power >> 1));
  return (x < 0.0F ? e : 1.0F) / (1.0F + e);
}

/// Lanes 4, 2 and 1 apart are added.
inline float sum_of_eight(const float* lane) {
  return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

/// A tile of inner products: rows of x against rows of w, over a stretch of d numbers.
struct InnerTile {
  const float* x;  ///< packed: eight numbers of each row, the next eight, ..; continued by 0
  const float* w;  ///< [latents x ld_w]
  Index ld_w, d;
  float* z;  ///< [rows x ld_z]
  Index ld_z, rows;
  float* kept;        ///< the tile's lanes between stretches
  bool starts, ends;  ///< the first stretch, the last: then z += the sums
};
/// Tiles of so many rows and latents, and of one latent.
struct InnerTiles {
  Index rows, latents;
  void (*many)(const InnerTile&);
  void (*one)(const InnerTile&);
};

/// An entry of a sparse matrix that is multiplied by a tile: its number, and where in the tile the row begins that it takes.
struct TileEntry {
  float value;
  int at;
};

/// One route.
struct FloatKernels {
  /// a . b: lane l < 64 takes a chain of the products at l, l + 64, ..; then lanes 32, 16, .., 1 apart are added.
  float (*dot)(const float* a, const float* b, Index n);
  /// y <- fma(c, x, y)
  void (*add_scaled)(float* y, float c, const float* x, Index n);
  /// y <- fma(c_t, x_t, y) for t = 0 .. count - 1; a few rows at a time, `rows_at_once`
  void (*add_rows)(float* y, const float* c, const float* const* x, Index count, Index n);
  /// The same for some rows y [rows x n], ld apart, of which row r takes the entries ends[r - 1] .. ends[r] - 1: y_r <- fma(value, x + at, y_r).
  void (*add_entries)(float* y, Index ld, const TileEntry* entries, const int* ends, Index rows, const float* x, Index n);
  void (*scale)(float* y, float c, Index n);
  /// The first j in [from, n) with x[j] > bound, else n.
  Index (*next_above)(const float* x, Index from, Index n, float bound);
  /// How many x[j] > bound.
  Index (*count_above)(const float* x, Index n, float bound);
  /// The least and the largest of n >= 1 numbers, none NaN.
  void (*range)(const float* x, Index n, float* least, float* most);
  /// `adam_number` of n numbers.
  void (*adam)(const AdamConstants& constants, float* w, const float* g, float* m, float* v, Index n);
  /// y <- y sigmoid(x), see `sigmoid_number`
  void (*gate)(float* y, const float* x, Index n);

  // Products (float_product.hpp): columns of a panel, rows of a group; each tile adds a [k][rows] b [k][panel] to c.
  Index panel;
  Index groups[3];  ///< descending, the last is 1
  void (*tiles[3])(const float* a, const float* b, Index k, float* c, Index ld);

  /// Larger tiles, then those for the rows that remain. z <- z + x . w: lane l < 8 takes a chain of the products at l, l + 8, ..,
  /// both rows continued by 0 to a multiple of eight; then lanes 4, 2, 1 apart are added.
  InnerTiles inner[2];
  /// The same of one row x [d] against rows of w [.. x ld_w] that are named: z[n] <- z[n] + x . w[latents[n]].
  void (*inner_of)(const float* x, const float* w, Index ld_w, Index d, const int* latents, Index count, float* z);
};
inline constexpr Index lanes_of_row = 64;  ///< of a tile's at most eight latents
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
inline void add_entries(float* y, Index ld, const TileEntry* entries, const int* ends, Index rows, const float* x, Index n) {
  int t = 0;
  for (Index r = 0; r < rows; ++r)
    for (; t < ends[r]; ++t) add_scaled(y + r * ld, entries[t].value, x + entries[t].at, n);
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
inline void range(const float* x, Index n, float* least, float* most) {
  const auto [low, high] = std::minmax_element(x, x + n);
  *least = *low;
  *most = *high;
}
inline void adam(const AdamConstants& constants, float* w, const float* g, float* m, float* v, Index n) {
  for (Index j = 0; j < n; ++j) adam_number(constants, w + j, g[j], m == nullptr ? nullptr : m + j, v + j);
}
inline void gate(float* y, const float* x, Index n) {
  for (Index j = 0; j < n; ++j) y[j] *= sigmoid_number(x[j]);
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
template <Index rows>
void inner_tile(const InnerTile& at) {
  float sum[static_cast<std::size_t>(rows)][8] = {};
  if (!at.starts)
    for (Index r = 0; r < rows; ++r) std::copy_n(at.kept + 8 * r, 8, sum[r]);
  for (Index j = 0; j < at.d; j += 8)
    for (Index r = 0; r < rows; ++r)
      for (Index l = 0; l < 8; ++l) sum[r][l] = fused(at.x[j * rows + 8 * r + l], j + l < at.d ? at.w[j + l] : 0.0F, sum[r][l]);
  for (Index r = 0; r < rows; ++r) {
    if (!at.ends) {
      std::copy_n(sum[r], 8, at.kept + 8 * r);
    } else if (r < at.rows) {
      at.z[r * at.ld_z] += sum_of_eight(sum[r]);
    }
  }
}

inline void inner_of(const float* x, const float* w, Index ld_w, Index d, const int* latents, Index count, float* z) {
  for (Index n = 0; n < count; ++n) {
    float sum[8] = {};
    for (Index j = 0; j < d; j += 8)
      for (Index l = 0; l < 8; ++l)
        sum[l] = fused(j + l < d ? x[j + l] : 0.0F, j + l < d ? w[latents[n] * ld_w + j + l] : 0.0F, sum[l]);
    z[n] += sum_of_eight(sum);
  }
}

inline constexpr FloatKernels kernels{.dot = dot,
                                      .add_scaled = add_scaled,
                                      .add_rows = add_rows,
                                      .add_entries = add_entries,
                                      .scale = scale,
                                      .next_above = next_above,
                                      .count_above = count_above,
                                      .range = range,
                                      .adam = adam,
                                      .gate = gate,
                                      .panel = panel,
                                      .groups = {4, 2, 1},
                                      .tiles = {product_tile<4>, product_tile<2>, product_tile<1>},
                                      .inner = {{4, 1, inner_tile<4>, inner_tile<4>}, {1, 1, inner_tile<1>, inner_tile<1>}},
                                      .inner_of = inner_of};

}  // namespace portable

#if SAE_X86
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

#if SAE_NEON
namespace neon {
#include <sae/kernels/float_neon.inc>
}
#endif

/// Those of the route that is taken.
inline const FloatKernels& float_kernels() {
  [[maybe_unused]] const Route base = base_of(route());
#if SAE_X86
  if (base == Route::avx512) return avx512::kernels;
  if (base == Route::avx2) return avx2::kernels;
#elif SAE_NEON
  if (base == Route::neon) return neon::kernels;
#endif
  return portable::kernels;
}

}  // namespace sae::inline SAE_ABI::kernels::detail
