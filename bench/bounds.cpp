#include "bounds.hpp"

#include <sae/kernels/route.hpp>
#include <sae/kernels/screen_kernels.hpp>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#if SAE_X86
#include <immintrin.h>
#endif

namespace sae_bench {
namespace {

// One route's loops, and how many numbers a register holds.
struct Loops {
  Index lanes;
  void (*multiply_add)(Index rounds);
  void (*read)(const float* p, Index n);
  void (*update)(float* a, float* b, float* c, Index n);
};

namespace portable {
void multiply_add(Index rounds) {
  float sum[12] = {};
  for (Index n = 0; n < rounds; ++n) {
    for (float& s : sum) s = s * 0.999F + 1e-3F;
    benchmark::ClobberMemory();
  }
  benchmark::DoNotOptimize(sum);
}
void read(const float* p, Index n) {
  float sum[8] = {};
  for (Index j = 0; j + 8 <= n; j += 8)
    for (Index l = 0; l < 8; ++l) sum[l] += p[j + l];
  benchmark::DoNotOptimize(sum);
}
void update(float* a, float* b, float* c, Index n) {
  for (Index j = 0; j < n; ++j)
    for (float* const p : {a, b, c}) p[j] *= 0.999F;
}
}  // namespace portable

#if SAE_X86
namespace avx2 {
#define SAE_V __m256
#define SAE_LANES 8
#define SAE_FEATURES "avx2,fma"
#define SAE_OP(name) _mm256_##name
#include "bounds_x86.inc"
#undef SAE_V
#undef SAE_LANES
#undef SAE_FEATURES
#undef SAE_OP
}  // namespace avx2
namespace avx512 {
#define SAE_V __m512
#define SAE_LANES 16
#define SAE_FEATURES "avx512f"
#define SAE_OP(name) _mm512_##name
#include "bounds_x86.inc"
#undef SAE_V
#undef SAE_LANES
#undef SAE_FEATURES
#undef SAE_OP
}  // namespace avx512

SAE_TARGET("avx512f,avx512vnni") void eight_bit(Index rounds) {
  constexpr int chains = 12;
  const __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(-2);
  __m512i sum[chains];
#pragma GCC unroll 16
  for (int c = 0; c < chains; ++c) sum[c] = _mm512_set1_epi32(c);  // or equal ones would be computed once
  for (Index n = 0; n < rounds; ++n) {
#pragma GCC unroll 16
    for (__m512i& s : sum) s = _mm512_dpbusd_epi32(s, a, b);
    benchmark::ClobberMemory();
  }
  std::int32_t out[16 * chains];
#pragma GCC unroll 16
  for (int c = 0; c < chains; ++c) _mm512_storeu_si512(out + 16 * c, sum[c]);
  benchmark::DoNotOptimize(out);
}
void eight_bit_tiles(Index rounds) {
  namespace amx = sae::kernels::detail::amx;
  amx::Instructions::configure(amx::tile_config);  // all numbers are 0
  for (Index n = 0; n < rounds; ++n) {
    amx::Instructions::add_products<0, 4, 6>();
    amx::Instructions::add_products<1, 4, 7>();
    amx::Instructions::add_products<2, 5, 6>();
    amx::Instructions::add_products<3, 5, 7>();
  }
  amx::Instructions::release();
}
#endif

Loops loops() {
#if SAE_X86
  using sae::kernels::Route;
  const Route base = sae::kernels::base_of(sae::kernels::route());
  if (base == Route::avx512) return {16, avx512::multiply_add, avx512::read, avx512::update};
  if (base == Route::avx2) return {8, avx2::multiply_add, avx2::read, avx2::update};
#endif
  return {1, portable::multiply_add, portable::read, portable::update};
}

constexpr Index rounds = 1'000'000, chains = 12;
constexpr Index bytes_at_least = Index{1} << 26;  // of a run, so that it takes milliseconds

}  // namespace

Bound multiply_add_bound() {
  const Loops of = loops();
  return {static_cast<double>(2 * chains * of.lanes * rounds), [of] { of.multiply_add(rounds); }};
}
Bound integer_bound() {
#if SAE_X86
  if (sae::kernels::route() == sae::kernels::Route::amx)
    return {2.0 * 4 * 16 * 16 * 64 * static_cast<double>(rounds / 10), [] { eight_bit_tiles(rounds / 10); }};
  if (sae::kernels::route() == sae::kernels::Route::avx512_vnni)
    return {static_cast<double>(2 * chains * 64 * rounds), [] { eight_bit(rounds); }};
#endif
  Bound out = multiply_add_bound();
  out.amount *= static_cast<double>(sae::kernels::detail::screen_kernels().numbers);
  return out;
}
Bound read_bound(Index bytes) {
  const Index n = bytes / 4, times = std::max<Index>(1, bytes_at_least / bytes);
  const auto data = std::make_shared<std::vector<float>>(static_cast<std::size_t>(n), 1.0F);
  return {static_cast<double>(4 * n * times), [data, n, times, read = loops().read] {
            for (Index t = 0; t < times; ++t) read(data->data(), n);
          }};
}
Bound update_bound(Index n) {
  const auto data = std::make_shared<std::vector<float>>(static_cast<std::size_t>(3 * n), 1.0F);
  return {static_cast<double>(24 * n),
          [data, n, update = loops().update] { update(data->data(), data->data() + n, data->data() + 2 * n, n); }};
}

}  // namespace sae_bench
