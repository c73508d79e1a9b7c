#pragma once
#include <sae/core/error.hpp>

#include <string_view>

namespace sae::inline SAE_ABI::kernels {

/// The instructions that kernels use. One binary has them all and takes the widest that the machine has, so that a consumer needs no
/// flags; all give the same bytes, in which order and how numbers are added is written down in each kernel.
enum class Route { portable, avx2, avx512 };

inline std::string_view to_string(Route route) {
  return route == Route::avx512 ? "avx512" : route == Route::avx2 ? "avx2" : "portable";
}

/// Whether this machine has them.
inline bool has(Route route) {
#if SAE_X86
  __builtin_cpu_init();
  if (route == Route::avx512) return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl");
  if (route == Route::avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return route == Route::portable;
}

namespace detail {
inline Route& chosen_route() {
  static Route route = has(Route::avx512) ? Route::avx512 : has(Route::avx2) ? Route::avx2 : Route::portable;
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
