#pragma once
#include <sae/core/error.hpp>

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <string_view>

#if SAE_X86
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
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
  amx,  ///< AVX-512 with VNNI, and tiles of eight bits (Intel's server CPUs since Sapphire Rapids), on Linux
  neon,
  neon_dot  ///< NEON, and its products of eight bits (ARMv8.2 dotprod: Cortex-A76, Neoverse, Apple M1 and later)
};

inline std::string_view to_string(Route route) {
  constexpr std::string_view names[] = {"portable", "avx2", "avx_vnni", "avx512", "avx512_vnni", "amx", "neon", "neon_dot"};
  return names[static_cast<std::size_t>(route)];
}
/// All of them, the widest of a machine last.
inline constexpr Route all_routes[] = {Route::portable,    Route::avx2, Route::avx_vnni, Route::avx512,
                                       Route::avx512_vnni, Route::amx,  Route::neon,     Route::neon_dot};

/// The route without its products of small integers, which a screen alone takes: whose loops over float32 and 16 bits it has.
constexpr Route base_of(Route route) {
  switch (route) {  // every one is named, so that the compiler asks for a new one
    case Route::avx2:
    case Route::avx_vnni: return Route::avx2;
    case Route::avx512:
    case Route::avx512_vnni:
    case Route::amx: return Route::avx512;
    case Route::neon:
    case Route::neon_dot: return Route::neon;
    case Route::portable: break;
  }
  return Route::portable;
}

namespace detail {
/// Whether a CPU that has AVX-512 has AMX for eight bits, too, and the system lets this process use it, which it must be asked for once
/// (Linux 5.16, Documentation/arch/x86/xstate.rst): from then on alternate signal stacks must hold 8 KiB more.
inline bool may_use_tiles() {
#if SAE_X86 && defined(__linux__)
  static const bool may = [] {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0 || (edx >> 24 & 3) != 3) return false;  // AMX-TILE, AMX-INT8
    __asm__ volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
    if ((eax >> 17 & 3) != 3) return false;  // the state of tiles is kept
    constexpr long request_permission = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
  }();
  return may;
#else
  return false;
#endif
}
}  // namespace detail

/// Whether this machine has them.
inline bool has(Route route) {
#if SAE_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl");
  const bool avx512_vnni = avx512 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vnni");
  switch (route) {
    case Route::avx2: return avx2;
    case Route::avx_vnni: {
      unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;  // clang 14 does not know it by name
      return avx2 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax >> 4 & 1) != 0;
    }
    case Route::avx512: return avx512;
    case Route::avx512_vnni: return avx512_vnni;
    case Route::amx: return avx512_vnni && detail::may_use_tiles();
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
