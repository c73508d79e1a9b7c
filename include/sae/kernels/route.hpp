#pragma once
#include <sae/core/error.hpp>

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <string_view>

#if SAE_X86
#include <cpuid.h>
#elif SAE_NEON && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace sae::inline SAE_ABI::kernels {

/// The instructions that kernels use. One binary has them all and takes the widest that the machine has, so that a consumer needs no
/// flags; all give the same bytes, in which order and how numbers are added is written down in each kernel.
enum class Route {
  portable,
  avx2,
  avx_vnni,  ///< AVX2, and its products of eight bits (Intel's client CPUs since Alder Lake)
  avx512,
  avx512_vnni,
  neon,
  neon_dot  ///< NEON, and its products of eight bits (ARMv8.2 dotprod: Cortex-A76, Neoverse, Apple M1 and later)
};

inline std::string_view to_string(Route route) {
  constexpr std::string_view names[] = {"portable", "avx2", "avx_vnni", "avx512", "avx512_vnni", "neon", "neon_dot"};
  return names[static_cast<std::size_t>(route)];
}
/// All of them, the widest of a machine last.
inline constexpr Route all_routes[] = {Route::portable,    Route::avx2, Route::avx_vnni, Route::avx512,
                                       Route::avx512_vnni, Route::neon, Route::neon_dot};

/// Whether this machine has them.
inline bool has(Route route) {
#if SAE_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl");
  switch (route) {
    case Route::avx2: return avx2;
    case Route::avx_vnni: {
      unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;  // clang 14 does not know it by name
      return avx2 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax >> 4 & 1) != 0;
    }
    case Route::avx512: return avx512;
    case Route::avx512_vnni: return avx512 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vnni");
    default: break;
  }
#elif SAE_NEON
  if (route == Route::neon) return true;
#if defined(__ARM_FEATURE_DOTPROD) || defined(__APPLE__)
  if (route == Route::neon_dot) return true;
#elif defined(__linux__)
  constexpr unsigned long dot_products = 1UL << 20;  // HWCAP_ASIMDDP
  if (route == Route::neon_dot) return (getauxval(AT_HWCAP) & dot_products) != 0;
#endif
#endif
  return route == Route::portable;
}

namespace detail {
inline Route& chosen_route() {
  static Route route = *std::find_if(std::rbegin(all_routes), std::rend(all_routes), has);
  return route;
}
}  // namespace detail

/// What kernels use now.
inline Route route() { return detail::chosen_route(); }
/// Makes them use something else: for tests and measurements, while no kernel runs.
/// \throws ValueError  the machine lacks it.
inline void set_route(Route route) {
  if (!has(route)) throw_value("set_route: this machine has no ", to_string(route));
  detail::chosen_route() = route;
}

}  // namespace sae::inline SAE_ABI::kernels
