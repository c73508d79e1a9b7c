#pragma once
#include <sae/kernels/float_kernels.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

// The loops of a screen (screen.hpp): numbers of eight bits, their product, and which of its results can matter.
namespace sae::inline SAE_ABI::kernels::detail {

inline constexpr Index screen_panel = 32;  ///< latents of a panel
inline constexpr Index screen_groups[] = {12, 4, 1};

/// What the screen knows of the latents of a panel [screen_panel]: z is about scale s_b q_b . q_i + bias.
struct ScreenPanel {
  const std::uint8_t* codes;  ///< [quads][screen_panel][4], 128 added
  const float *scale, *bias, *error, *norm, *slack;
};
/// What it knows of a row.
struct ScreenRow {
  float scale, alpha, beta;
  std::int32_t offset;  ///< 128 times the sum of its codes
};
/// Where candidates of a row go: latents and bounds of z.
struct ScreenList {
  int* latents;
  float *lower, *upper;
};

struct ScreenKernels {
  /// max |x_j g_j|, 0 where n = 0. NaN is passed over.
  float (*largest)(const float* x, const float* g, Index n);
  /// q_j = x_j g_j / step to the nearest; the sums of (x_j g_j)^2, of the squares of the error x_j g_j - step q_j, and of q_j.
  struct Sums {
    float squares, errors;
    std::int32_t codes;
  };
  Sums (*quantise)(const float* x, const float* g, Index n, float step, std::int8_t* q);
  /// out [rows x screen_panel] = the products of rows x [quads][rows][4] with a panel; one for each of screen_groups.
  void (*products[3])(const std::int8_t* x, const std::uint8_t* codes, Index quads, std::int32_t* out);
  /// Appends the latents of a panel that may have z >= bound; `first` is the number of its first latent. Returns how many.
  Index (*keep)(const std::int32_t* product, const ScreenPanel& panel, const ScreenRow& row, float bound, int first,
                const ScreenList& to);
};

namespace portable {

inline float largest(const float* x, const float* g, Index n) {
  float out = 0;
  for (Index j = 0; j < n; ++j) out = std::max(out, std::abs(x[j] * g[j]));
  return out;
}
inline ScreenKernels::Sums quantise(const float* x, const float* g, Index n, float step, std::int8_t* q) {
  ScreenKernels::Sums out{0, 0, 0};
  const float inverse = 1 / step;
  for (Index j = 0; j < n; ++j) {
    const float value = x[j] * g[j], code = std::nearbyint(value * inverse);
    const float error = fused(-step, code, value);
    q[j] = std::abs(code) <= 127 ? static_cast<std::int8_t>(code) : std::int8_t{0};  // NaN makes the sums NaN
    out.squares += value * value;
    out.errors += error * error;
    out.codes += q[j];
  }
  return out;
}
template <Index rows>
void screen_products(const std::int8_t* x, const std::uint8_t* codes, Index quads, std::int32_t* out) {
  std::fill_n(out, rows * screen_panel, 0);
  for (Index q = 0; q < quads; ++q)
    for (Index r = 0; r < rows; ++r)
      for (Index i = 0; i < screen_panel; ++i)
        for (Index l = 0; l < 4; ++l)
          out[r * screen_panel + i] +=
              std::int32_t{x[(q * rows + r) * 4 + l]} * std::int32_t{codes[(q * screen_panel + i) * 4 + l]};
}
inline Index keep(const std::int32_t* product, const ScreenPanel& of, const ScreenRow& row, float bound, int first,
                  const ScreenList& to) {
  Index count = 0;
  for (Index i = 0; i < screen_panel; ++i) {
    const float z = static_cast<float>(product[i] - row.offset) * (of.scale[i] * row.scale) + of.bias[i];
    const float error = row.alpha * of.error[i] + row.beta * of.norm[i] + of.slack[i];
    if (!(z + error >= bound)) continue;
    to.latents[count] = first + static_cast<int>(i);
    to.lower[count] = z - error;
    to.upper[count++] = z + error;
  }
  return count;
}
inline constexpr ScreenKernels screen_kernels{.largest = largest,
                                              .quantise = quantise,
                                              .products = {screen_products<12>, screen_products<4>, screen_products<1>},
                                              .keep = keep};

}  // namespace portable

#if SAE_X86
namespace vnni {
#define SAE_VNNI SAE_TARGET("avx512f,avx512bw,avx512vl,avx512vnni")

SAE_VNNI inline __m512 first(const float* p, Index count) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1U << std::min<Index>(count, 16)) - 1), p);
}
SAE_VNNI inline float sum(__m512 a) {
  float lanes[16], out = 0;
  _mm512_storeu_ps(lanes, a);
  for (const float x : lanes) out += x;
  return out;
}
SAE_VNNI inline float largest(const float* x, const float* g, Index n) {
  __m512 out = _mm512_setzero_ps();
  for (Index j = 0; j < n; j += 16)
    out = _mm512_maskz_max_ps(0xFFFF, _mm512_abs_ps(_mm512_mul_ps(first(x + j, n - j), first(g + j, n - j))), out);
  float lanes[16];
  _mm512_storeu_ps(lanes, out);
  return *std::max_element(lanes, lanes + 16);
}
SAE_VNNI inline ScreenKernels::Sums quantise(const float* x, const float* g, Index n, float step, std::int8_t* q) {
  __m512 squares = _mm512_setzero_ps(), errors = squares;
  __m512i codes = _mm512_setzero_si512();
  const __m512 by = _mm512_set1_ps(step), inverse = _mm512_set1_ps(1 / step);
  for (Index j = 0; j < n; j += 16) {
    const __m512 value = _mm512_mul_ps(first(x + j, n - j), first(g + j, n - j));
    const __m512 exact = _mm512_mul_ps(value, inverse);
    const __mmask16 number = _mm512_cmp_ps_mask(_mm512_abs_ps(exact), _mm512_set1_ps(127.5F), _CMP_LT_OQ);
    const __m512i code = _mm512_maskz_cvtps_epi32(number, exact);  // of NaN 0: the sums are NaN
    const __m512 error = _mm512_fnmadd_ps(by, _mm512_maskz_cvtepi32_ps(0xFFFF, code), value);
    squares = _mm512_fmadd_ps(value, value, squares);
    errors = _mm512_fmadd_ps(error, error, errors);
    codes = _mm512_add_epi32(codes, code);
    _mm512_mask_cvtepi32_storeu_epi8(q + j, static_cast<__mmask16>((1U << std::min<Index>(n - j, 16)) - 1), code);
  }
  std::int32_t lanes[16], total = 0;
  _mm512_storeu_si512(lanes, codes);
  for (const std::int32_t lane : lanes) total += lane;
  return {sum(squares), sum(errors), total};
}
template <Index rows>
SAE_VNNI void products(const std::int8_t* x, const std::uint8_t* codes, Index quads, std::int32_t* out) {
  __m512i total[static_cast<std::size_t>(rows)][2];
#pragma GCC unroll 16
  for (Index r = 0; r < rows; ++r) total[r][0] = total[r][1] = _mm512_setzero_si512();
  for (Index q = 0; q < quads; ++q, x += 4 * rows, codes += 4 * screen_panel) {
    const __m512i left = _mm512_loadu_si512(codes), right = _mm512_loadu_si512(codes + 64);
#pragma GCC unroll 16
    for (Index r = 0; r < rows; ++r) {
      std::int32_t four;
      std::memcpy(&four, x + 4 * r, 4);
      const __m512i all = _mm512_set1_epi32(four);
      total[r][0] = _mm512_dpbusd_epi32(total[r][0], left, all);
      total[r][1] = _mm512_dpbusd_epi32(total[r][1], right, all);
    }
  }
#pragma GCC unroll 16
  for (Index r = 0; r < rows; ++r) {
    _mm512_storeu_si512(out + r * screen_panel, total[r][0]);
    _mm512_storeu_si512(out + r * screen_panel + 16, total[r][1]);
  }
}
SAE_VNNI inline Index keep(const std::int32_t* product, const ScreenPanel& of, const ScreenRow& row, float bound, int first,
                           const ScreenList& to) {
  const __m512 scale = _mm512_set1_ps(row.scale), alpha = _mm512_set1_ps(row.alpha), beta = _mm512_set1_ps(row.beta),
               least = _mm512_set1_ps(bound);
  const __m512i offset = _mm512_set1_epi32(row.offset);
  Index count = 0;
#pragma GCC unroll 2
  for (Index i = 0; i < screen_panel; i += 16) {
    const __m512 about = _mm512_maskz_cvtepi32_ps(0xFFFF, _mm512_sub_epi32(_mm512_loadu_si512(product + i), offset));
    const __m512 z = _mm512_fmadd_ps(about, _mm512_mul_ps(_mm512_loadu_ps(of.scale + i), scale), _mm512_loadu_ps(of.bias + i));
    const __m512 error = _mm512_fmadd_ps(alpha, _mm512_loadu_ps(of.error + i),
                                         _mm512_fmadd_ps(beta, _mm512_loadu_ps(of.norm + i), _mm512_loadu_ps(of.slack + i)));
    const __m512 upper = _mm512_add_ps(z, error);
    const __mmask16 stays = _mm512_cmp_ps_mask(upper, least, _CMP_GE_OQ);
    if (stays == 0) continue;
    const __m512i number = _mm512_add_epi32(_mm512_set1_epi32(first + static_cast<int>(i)),
                                            _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    _mm512_storeu_si512(to.latents + count, _mm512_maskz_compress_epi32(stays, number));
    _mm512_storeu_ps(to.lower + count, _mm512_maskz_compress_ps(stays, _mm512_sub_ps(z, error)));
    _mm512_storeu_ps(to.upper + count, _mm512_maskz_compress_ps(stays, upper));
    count += std::popcount(static_cast<unsigned>(stays));
  }
  return count;
}
inline constexpr ScreenKernels screen_kernels{
    .largest = largest, .quantise = quantise, .products = {products<12>, products<4>, products<1>}, .keep = keep};

#undef SAE_VNNI
}  // namespace vnni
#endif

/// Whether the machine multiplies numbers of eight bits faster than it does others.
inline bool has_fast_screen() {
#if SAE_X86
  static const bool fast = __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw");
  return fast && route() == Route::avx512;
#else
  return false;
#endif
}
inline const ScreenKernels& screen_kernels() {
#if SAE_X86
  if (has_fast_screen()) return vnni::screen_kernels;
#endif
  return portable::screen_kernels;
}

}  // namespace sae::inline SAE_ABI::kernels::detail
