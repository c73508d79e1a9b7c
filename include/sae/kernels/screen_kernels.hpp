#pragma once
#include <sae/kernels/float_kernels.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

// The loops of a screen (screen.hpp): numbers of 8 or 16 bits, their product, and which of its results can matter.
namespace sae::inline SAE_ABI::kernels::detail {

inline constexpr Index screen_panel = 32;  ///< latents of a panel
inline constexpr Index screen_group = 32;  ///< rows of the largest group of any kernels

/// What the screen knows of the latents of a panel [screen_panel]: z is about scale s_b q_b . q_i + bias.
struct ScreenPanel {
  const std::uint8_t* codes;  ///< [units][screen_panel][4]
  const float *scale, *bias, *error, *norm, *slack;
};
/// What it knows of a row.
struct ScreenRow {
  float scale, alpha, beta;
  std::int32_t offset;  ///< `ScreenKernels::added` times the sum of its codes
  std::int32_t bits;    ///< of z that count: all, or all but the sign where |z| is looked at
};
/// Where candidates of a row go: latents and bounds of z.
struct ScreenList {
  int* latents;
  float *lower, *upper;
};
/// The rows of a group: what is looked for in each, and lists of candidates, `capacity` apart in those of the first row.
struct ScreenGroup {
  Index rows;
  const ScreenRow* row;
  const float* bound;
  Index* counts;  ///< candidates so far; a row that has less than 0 is left out
  ScreenList lists;
  Index capacity;
  ScreenList end(Index r) const {
    const Index at = r * capacity + counts[r];
    return {lists.latents + at, lists.lower + at, lists.upper + at};
  }
};

/// Codes stand in units of four bytes: four of eight bits, or two of sixteen. What is lacking at a row's end is 0.
///
/// Rows are multiplied in groups: as many of the first as there are, then of the second. Groups of the third take what is left; what
/// stands in rows that the last of them lacks does not matter.
struct ScreenKernels {
  Index numbers;       ///< of a unit
  Index together = 1;  ///< units of a row of x that lie together
  std::array<Index, 3> groups = {12, 4, 1};
  int added;  ///< to the codes of a panel: 128 where the machine multiplies signed by unsigned numbers of eight bits, else 0

  /// max |x_j g_j|, 0 where n = 0. NaN is passed over.
  float (*largest)(const float* x, const float* g, Index n);
  /// q_j = x_j g_j / step to the nearest, 0 where that is none; the sums of (x_j g_j)^2, of the squares of the error x_j g_j - step q_j,
  /// and of q_j.
  struct Sums {
    float squares, errors;
    std::int32_t codes;
  };
  Sums (*quantise)(const float* x, const float* g, Index n, float step, std::uint8_t* q);
  /// A thread calls them before its products and after the last: tiles must be configured, and not stay so. A callee may change them, by
  /// the ABI: between the two lie the loops of a screen alone, and allocations.
  void (*begin)() = [] {};
  void (*end)() = [] {};
  /// out [rows x screen_panel] = the products of rows x [units / together][rows][together][4] with a panel; one for each of `groups`.
  void (*products[3])(const std::uint8_t* x, const std::uint8_t* codes, Index units, std::int32_t* out);
  /// Appends the latents of a panel that may have z >= bound, or |z|, to the list of each row; products [rows x screen_panel], `first` is the
  /// number of its first latent. Writes up to screen_panel numbers of each list.
  void (*keep)(const std::int32_t* products, const ScreenPanel& panel, int first, const ScreenGroup& group);
  /// Where keys[j] >= bound, j < n, ascending; returns how many. `places` has room for n + 15.
  Index (*at_least)(const float* keys, Index n, float bound, int* places);
  /// q_j = the largest whole number that is surely at most x_j / step, |x_j| <= 127 step.
  void (*round_down)(const float* x, Index n, float step, std::int8_t* q);
  /// y <- y + c q, rounded somehow, over n >= 1 numbers; returns the largest y.
  float (*add_bytes)(float* y, float c, const std::int8_t* q, Index n);

  /// Turns a unit of codes into one of a panel, by exclusive or.
  std::uint32_t flip() const { return added == 128 ? 0x80808080 : 0; }
  /// Of a row, a multiple of `together`.
  Index units(Index width) const { return (width + numbers * together - 1) / (numbers * together) * together; }
  /// Of m rows, with those that the last group lacks.
  Index padded_rows(Index m) const { return (m + groups[2] - 1) / groups[2] * groups[2]; }
  /// Whether the rows that are left give a group.
  bool takes(std::size_t group, Index left) const { return left >= (group == 2 ? 1 : groups[group]); }
  /// Puts the units of row r where a group of `rows` has them.
  void pack(const std::uint8_t* units_of_row, Index units, Index r, Index rows, std::uint8_t* group) const {
    for (Index u = 0; u < units; u += together)
      for (Index v = 0; v < together; ++v)
        std::memcpy(group + (u * rows + r * together + v) * 4, units_of_row + (u + v) * 4, 4);
  }
  /// Codes of rows of this width lie between -it and it: a product of two rows fits 32 bits.
  int largest_code(Index width) const {
    return numbers == 4 ? 127 : static_cast<int>(std::min(32767.0, std::sqrt(0x7FFFFFFF / static_cast<double>(width))));
  }
};

/// The time between `begin` and `end`.
class ScreenProducts {
 public:
  explicit ScreenProducts(const ScreenKernels& kernels) : kernels_(kernels) { kernels_.begin(); }
  ~ScreenProducts() { kernels_.end(); }
  ScreenProducts(const ScreenProducts&) = delete;
  ScreenProducts& operator=(const ScreenProducts&) = delete;

 private:
  const ScreenKernels& kernels_;
};

/// ScreenKernels::keep by what keeps of one row and returns how many.
template <Index (*keep)(const std::int32_t* product, const ScreenPanel& panel, const ScreenRow& row, float bound, int first,
                        const ScreenList& to)>
void keep_of_each(const std::int32_t* products, const ScreenPanel& panel, int first, const ScreenGroup& group) {
  for (Index r = 0; r < group.rows; ++r)
    if (group.counts[r] >= 0)
      group.counts[r] += keep(products + r * screen_panel, panel, group.row[r], group.bound[r], first, group.end(r));
}

namespace portable {

inline float largest(const float* x, const float* g, Index n) {
  float out = 0;
  for (Index j = 0; j < n; ++j) out = std::max(out, std::abs(x[j] * g[j]));
  return out;
}
inline ScreenKernels::Sums quantise(const float* x, const float* g, Index n, float step, std::uint8_t* q) {
  ScreenKernels::Sums out{0, 0, 0};
  const float inverse = 1 / step;
  for (Index j = 0; j < n; ++j) {
    const float value = x[j] * g[j], code = std::nearbyint(value * inverse);
    const float error = fused(-step, code, value);
    const int number = std::abs(code) <= 127 ? static_cast<int>(code) : 0;  // NaN makes the sums NaN
    q[j] = static_cast<std::uint8_t>(number);
    out.squares += value * value;
    out.errors += error * error;
    out.codes += number;
  }
  return out;
}
template <Index rows>
void screen_products(const std::uint8_t* x, const std::uint8_t* codes, Index units, std::int32_t* out) {
  std::fill_n(out, rows * screen_panel, 0);
  for (Index u = 0; u < units; ++u)
    for (Index r = 0; r < rows; ++r)
      for (Index i = 0; i < screen_panel; ++i)
        for (Index l = 0; l < 4; ++l)
          out[r * screen_panel + i] += std::int32_t{static_cast<std::int8_t>(x[(u * rows + r) * 4 + l])} *
                                       std::int32_t{codes[(u * screen_panel + i) * 4 + l]};
}
inline Index keep(const std::int32_t* product, const ScreenPanel& of, const ScreenRow& row, float bound, int first,
                  const ScreenList& to) {
  Index count = 0;
  for (Index i = 0; i < screen_panel; ++i) {
    const float about = static_cast<float>(product[i] - row.offset) * (of.scale[i] * row.scale) + of.bias[i];
    const auto z = std::bit_cast<float>(std::bit_cast<std::int32_t>(about) & row.bits);
    const float error = row.alpha * of.error[i] + row.beta * of.norm[i] + of.slack[i];
    if (!(z + error >= bound)) continue;
    to.latents[count] = first + static_cast<int>(i);
    to.lower[count] = z - error;
    to.upper[count++] = z + error;
  }
  return count;
}
inline Index at_least(const float* keys, Index n, float bound, int* places) {
  Index count = 0;
  for (Index j = 0; j < n; ++j) {
    places[count] = static_cast<int>(j);
    count += keys[j] >= bound;
  }
  return count;
}
/// What is lost in x_j / step is less than the margin.
inline constexpr float margin = 1e-4F;
inline void round_down(const float* x, Index n, float step, std::int8_t* q) {
  const float inverse = 1 / step;
  for (Index j = 0; j < n; ++j) q[j] = static_cast<std::int8_t>(std::floor(x[j] * inverse - margin));
}
inline float add_bytes(float* y, float c, const std::int8_t* q, Index n) {
  float out = -std::numeric_limits<float>::infinity();
  for (Index j = 0; j < n; ++j) {
    y[j] += c * static_cast<float>(q[j]);
    out = std::max(out, y[j]);
  }
  return out;
}
inline constexpr ScreenKernels screen_kernels{.numbers = 4,
                                              .added = 128,
                                              .largest = largest,
                                              .quantise = quantise,
                                              .products = {screen_products<12>, screen_products<4>, screen_products<1>},
                                              .keep = keep_of_each<keep>,
                                              .at_least = at_least,
                                              .round_down = round_down,
                                              .add_bytes = add_bytes};

}  // namespace portable

#if SAE_X86
namespace avx512_vnni {
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
SAE_VNNI inline ScreenKernels::Sums quantise(const float* x, const float* g, Index n, float step, std::uint8_t* q) {
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
SAE_VNNI void products(const std::uint8_t* x, const std::uint8_t* codes, Index units, std::int32_t* out) {
  __m512i total[static_cast<std::size_t>(rows)][2];
#pragma GCC unroll 16
  for (Index r = 0; r < rows; ++r) total[r][0] = total[r][1] = _mm512_setzero_si512();
  for (Index u = 0; u < units; ++u, x += 4 * rows, codes += 4 * screen_panel) {
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
SAE_VNNI inline void keep(const std::int32_t* products, const ScreenPanel& of, int first, const ScreenGroup& group) {
  for (Index i = 0; i < screen_panel; i += 16) {  // what is known of 16 latents stays in registers
    const __m512 scale = _mm512_loadu_ps(of.scale + i), bias = _mm512_loadu_ps(of.bias + i),
                 errors = _mm512_loadu_ps(of.error + i), norm = _mm512_loadu_ps(of.norm + i),
                 slack = _mm512_loadu_ps(of.slack + i);
    const __m512i number = _mm512_add_epi32(_mm512_set1_epi32(first + static_cast<int>(i)),
                                            _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    for (Index r = 0; r < group.rows; ++r) {
      if (group.counts[r] < 0) continue;
      const ScreenRow& row = group.row[r];
      const __m512i product = _mm512_loadu_si512(products + r * screen_panel + i);
      const __m512 about = _mm512_maskz_cvtepi32_ps(0xFFFF, _mm512_sub_epi32(product, _mm512_set1_epi32(row.offset)));
      const __m512 sum = _mm512_fmadd_ps(about, _mm512_mul_ps(scale, _mm512_set1_ps(row.scale)), bias);
      const __m512 z = _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(sum), _mm512_set1_epi32(row.bits)));
      const __m512 error =
          _mm512_fmadd_ps(_mm512_set1_ps(row.alpha), errors, _mm512_fmadd_ps(_mm512_set1_ps(row.beta), norm, slack));
      const __m512 upper = _mm512_add_ps(z, error);
      const __mmask16 stays = _mm512_cmp_ps_mask(upper, _mm512_set1_ps(group.bound[r]), _CMP_GE_OQ);
      if (stays == 0) continue;
      const ScreenList to = group.end(r);
      _mm512_storeu_si512(to.latents, _mm512_maskz_compress_epi32(stays, number));
      _mm512_storeu_ps(to.lower, _mm512_maskz_compress_ps(stays, _mm512_sub_ps(z, error)));
      _mm512_storeu_ps(to.upper, _mm512_maskz_compress_ps(stays, upper));
      group.counts[r] += std::popcount(static_cast<unsigned>(stays));
    }
  }
}
SAE_VNNI inline Index at_least(const float* keys, Index n, float bound, int* places) {
  const __m512 least = _mm512_set1_ps(bound);
  __m512i number = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  Index count = 0;
  for (Index j = 0; j < n; j += 16, number = _mm512_add_epi32(number, _mm512_set1_epi32(16))) {
    const auto there = static_cast<__mmask16>((1U << std::min<Index>(n - j, 16)) - 1);
    const __mmask16 stays = _mm512_mask_cmp_ps_mask(there, _mm512_maskz_loadu_ps(there, keys + j), least, _CMP_GE_OQ);
    _mm512_storeu_si512(places + count, _mm512_maskz_compress_epi32(stays, number));
    count += std::popcount(static_cast<unsigned>(stays));
  }
  return count;
}
SAE_VNNI inline void round_down(const float* x, Index n, float step, std::int8_t* q) {
  const __m512 inverse = _mm512_set1_ps(1 / step), less = _mm512_set1_ps(portable::margin);
  for (Index j = 0; j < n; j += 16) {
    const __m512 down = _mm512_floor_ps(_mm512_fmsub_ps(first(x + j, n - j), inverse, less));
    _mm512_mask_cvtsepi32_storeu_epi8(q + j, static_cast<__mmask16>((1U << std::min<Index>(n - j, 16)) - 1),
                                      _mm512_maskz_cvtps_epi32(0xFFFF, down));
  }
}
SAE_VNNI inline float add_bytes(float* y, float c, const std::int8_t* q, Index n) {
  const __m512 all = _mm512_set1_ps(c);
  __m512 most = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  Index j = 0;
  for (; j + 16 <= n; j += 16) {
    const __m512i bytes = _mm512_maskz_cvtepi8_epi32(0xFFFF, _mm_loadu_si128(reinterpret_cast<const __m128i*>(q + j)));
    const __m512 sum = _mm512_fmadd_ps(all, _mm512_maskz_cvtepi32_ps(0xFFFF, bytes), _mm512_loadu_ps(y + j));
    _mm512_storeu_ps(y + j, sum);
    most = _mm512_maskz_max_ps(0xFFFF, sum, most);
  }
  float lanes[16];
  _mm512_storeu_ps(lanes, most);
  const float out = *std::max_element(lanes, lanes + 16);
  return j < n ? std::max(out, portable::add_bytes(y + j, c, q + j, n - j)) : out;
}
inline constexpr ScreenKernels screen_kernels{.numbers = 4,
                                              .added = 128,
                                              .largest = largest,
                                              .quantise = quantise,
                                              .products = {products<12>, products<4>, products<1>},
                                              .keep = keep,
                                              .at_least = at_least,
                                              .round_down = round_down,
                                              .add_bytes = add_bytes};

#undef SAE_VNNI
}  // namespace avx512_vnni

namespace avx2 {
#define SAE_AVX2 SAE_TARGET("avx2,fma,popcnt")

SAE_AVX2 inline float sum(__m256 a) {
  float lanes[8], out = 0;
  _mm256_storeu_ps(lanes, a);
  for (const float x : lanes) out += x;
  return out;
}
SAE_AVX2 inline __m256 magnitude(__m256 a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0F), a); }
SAE_AVX2 inline float largest(const float* x, const float* g, Index n) {
  __m256 out = _mm256_setzero_ps();
  for (Index j = 0; j < n; j += 8)
    out = _mm256_max_ps(magnitude(_mm256_mul_ps(load_first(x + j, n - j), load_first(g + j, n - j))), out);
  float lanes[8];
  _mm256_storeu_ps(lanes, out);
  return *std::max_element(lanes, lanes + 8);
}
template <class Code>
SAE_AVX2 ScreenKernels::Sums quantise(const float* x, const float* g, Index n, float step, std::uint8_t* q) {
  __m256 squares = _mm256_setzero_ps(), errors = squares;
  __m256i codes = _mm256_setzero_si256();
  const __m256 by = _mm256_set1_ps(step), inverse = _mm256_set1_ps(1 / step);
  for (Index j = 0; j < n; j += 8) {
    const __m256 value = _mm256_mul_ps(load_first(x + j, n - j), load_first(g + j, n - j));
    const __m256 exact = _mm256_mul_ps(value, inverse);
    const __m256 number = _mm256_cmp_ps(exact, exact, _CMP_ORD_Q);
    const __m256i code =
        _mm256_and_si256(_mm256_cvtps_epi32(exact), _mm256_castps_si256(number));  // of NaN 0: the sums are NaN
    const __m256 error = _mm256_fnmadd_ps(by, _mm256_cvtepi32_ps(code), value);
    squares = _mm256_fmadd_ps(value, value, squares);
    errors = _mm256_fmadd_ps(error, error, errors);
    codes = _mm256_add_epi32(codes, code);
    __m128i packed = _mm_packs_epi32(_mm256_castsi256_si128(code), _mm256_extracti128_si256(code, 1));
    if constexpr (sizeof(Code) == 1) packed = _mm_packs_epi16(packed, packed);
    std::uint8_t eight[16];
    _mm_storeu_si128(reinterpret_cast<__m128i*>(eight), packed);
    constexpr auto size = static_cast<Index>(sizeof(Code));
    if (n - j >= 8) {
      std::memcpy(q + j * size, eight, 8 * sizeof(Code));
    } else {
      std::memcpy(q + j * size, eight, static_cast<std::size_t>((n - j) * size));
    }
  }
  std::int32_t lanes[8], total = 0;
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), codes);
  for (const std::int32_t lane : lanes) total += lane;
  return {sum(squares), sum(errors), total};
}
SAE_AVX2 inline __m256i add_products(__m256i sum, __m256i left, __m256i right) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(left, right));
}
#define SAE_LOOPS SAE_AVX2
#include <sae/kernels/screen_products_avx2.inc>
#undef SAE_LOOPS
/// The lanes that are set in a mask, ascending, eight bits each.
struct LanesOfMask {
  std::uint64_t of[256] = {};
  constexpr LanesOfMask() {
    for (unsigned mask = 0; mask < 256; ++mask)
      for (unsigned lane = 0, count = 0; lane < 8; ++lane)
        if ((mask >> lane & 1) != 0) of[mask] |= std::uint64_t{lane} << (8 * count++);
  }
};
inline constexpr LanesOfMask lanes_of;
SAE_AVX2 inline Index keep(const std::int32_t* product, const ScreenPanel& of, const ScreenRow& row, float bound, int first,
                           const ScreenList& to) {
  const __m256 scale = _mm256_set1_ps(row.scale), alpha = _mm256_set1_ps(row.alpha), beta = _mm256_set1_ps(row.beta),
               least = _mm256_set1_ps(bound);
  const __m256i offset = _mm256_set1_epi32(row.offset);
  const __m256 bits = _mm256_castsi256_ps(_mm256_set1_epi32(row.bits));
  Index count = 0;
#pragma GCC unroll 4
  for (Index i = 0; i < screen_panel; i += 8) {
    const __m256 about =
        _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(product + i)), offset));
    const __m256 sum =
        _mm256_fmadd_ps(about, _mm256_mul_ps(_mm256_loadu_ps(of.scale + i), scale), _mm256_loadu_ps(of.bias + i));
    const __m256 z = _mm256_and_ps(sum, bits);
    const __m256 error = _mm256_fmadd_ps(alpha, _mm256_loadu_ps(of.error + i),
                                         _mm256_fmadd_ps(beta, _mm256_loadu_ps(of.norm + i), _mm256_loadu_ps(of.slack + i)));
    const __m256 upper = _mm256_add_ps(z, error);
    const auto stays = static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(upper, least, _CMP_GE_OQ)));
    if (stays == 0) continue;
    const __m256i order = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(lanes_of.of + stays)));
    const __m256i number = _mm256_add_epi32(_mm256_set1_epi32(first + static_cast<int>(i)), order);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to.latents + count), number);
    _mm256_storeu_ps(to.lower + count, _mm256_permutevar8x32_ps(_mm256_sub_ps(z, error), order));
    _mm256_storeu_ps(to.upper + count, _mm256_permutevar8x32_ps(upper, order));
    count += std::popcount(stays);
  }
  return count;
}
SAE_AVX2 inline Index at_least(const float* keys, Index n, float bound, int* places) {
  const __m256 least = _mm256_set1_ps(bound);
  Index count = 0, j = 0;
  for (; j + 8 <= n; j += 8) {
    const auto stays = static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(keys + j), least, _CMP_GE_OQ)));
    const __m256i order = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(lanes_of.of + stays)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(places + count),
                        _mm256_add_epi32(_mm256_set1_epi32(static_cast<int>(j)), order));
    count += std::popcount(stays);
  }
  for (; j < n; ++j) {
    places[count] = static_cast<int>(j);
    count += keys[j] >= bound;
  }
  return count;
}
SAE_AVX2 inline void round_down(const float* x, Index n, float step, std::int8_t* q) {
  const __m256 inverse = _mm256_set1_ps(1 / step), less = _mm256_set1_ps(portable::margin);
  Index j = 0;
  for (; j + 8 <= n; j += 8) {
    const __m256i down = _mm256_cvtps_epi32(_mm256_floor_ps(_mm256_fmsub_ps(_mm256_loadu_ps(x + j), inverse, less)));
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(down), _mm256_extracti128_si256(down, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(q + j), _mm_packs_epi16(words, words));
  }
  portable::round_down(x + j, n - j, step, q + j);
}
SAE_AVX2 inline float add_bytes(float* y, float c, const std::int8_t* q, Index n) {
  const __m256 all = _mm256_set1_ps(c);
  __m256 most = _mm256_set1_ps(-std::numeric_limits<float>::infinity());
  Index j = 0;
  for (; j + 8 <= n; j += 8) {
    const __m256i bytes = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(q + j)));
    const __m256 sum = _mm256_fmadd_ps(all, _mm256_cvtepi32_ps(bytes), _mm256_loadu_ps(y + j));
    _mm256_storeu_ps(y + j, sum);
    most = _mm256_max_ps(sum, most);
  }
  float lanes[8];
  _mm256_storeu_ps(lanes, most);
  const float out = *std::max_element(lanes, lanes + 8);
  return j < n ? std::max(out, portable::add_bytes(y + j, c, q + j, n - j)) : out;
}
inline constexpr ScreenKernels screen_kernels{.numbers = 2,
                                              .added = 0,
                                              .largest = largest,
                                              .quantise = quantise<std::int16_t>,
                                              .products = {products<12>, products<4>, products<1>},
                                              .keep = keep_of_each<keep>,
                                              .at_least = at_least,
                                              .round_down = round_down,
                                              .add_bytes = add_bytes};

#undef SAE_AVX2
}  // namespace avx2

namespace avx_vnni {
#define SAE_AVX_VNNI SAE_TARGET("avx2,avxvnni,fma")

SAE_AVX_VNNI inline __m256i add_products(__m256i sum, __m256i left, __m256i right) {
  return _mm256_dpbusd_avx_epi32(sum, left, right);
}
#define SAE_LOOPS SAE_AVX_VNNI
#include <sae/kernels/screen_products_avx2.inc>
#undef SAE_LOOPS
inline constexpr ScreenKernels screen_kernels{.numbers = 4,
                                              .added = 128,
                                              .largest = avx2::largest,
                                              .quantise = avx2::quantise<std::int8_t>,
                                              .products = {products<12>, products<4>, products<1>},
                                              .keep = keep_of_each<avx2::keep>,
                                              .at_least = avx2::at_least,
                                              .round_down = avx2::round_down,
                                              .add_bytes = avx2::add_bytes};

#undef SAE_AVX_VNNI
}  // namespace avx_vnni
#endif

namespace amx {
#include <sae/kernels/screen_tiles.inc>
}

#if SAE_NEON
namespace neon {
#include <sae/kernels/screen_neon.inc>
}
#endif

/// Those of the route that is taken; null where it multiplies small integers no faster than float32.
inline const ScreenKernels* fast_screen_kernels() {
#if SAE_X86
  if (route() == Route::amx) return &amx::screen_kernels;
  if (route() == Route::avx512_vnni) return &avx512_vnni::screen_kernels;
  if (route() == Route::avx_vnni) return &avx_vnni::screen_kernels;
  if (route() == Route::avx2) return &avx2::screen_kernels;
#elif SAE_NEON
  if (route() == Route::neon_dot) return &neon::screen_kernels;
#endif
  return nullptr;
}
inline bool has_fast_screen() { return fast_screen_kernels() != nullptr; }
inline const ScreenKernels& screen_kernels() {
  const ScreenKernels* const fast = fast_screen_kernels();
  return fast != nullptr ? *fast : portable::screen_kernels;
}

}  // namespace sae::inline SAE_ABI::kernels::detail
