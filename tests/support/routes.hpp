#pragma once
#include <sae/kernels/route.hpp>

#include <bit>
#include <cstdint>
#include <string>

#include "catch_compat.hpp"

namespace sae_test {

/// Takes the route of its beginning again at its end.
struct KeepsRoute {
  sae::kernels::Route route = sae::kernels::route();
  ~KeepsRoute() { sae::kernels::set_route(route); }
};
/// Runs with each route that the machine has, then takes its own again.
template <class Body>
void on_every_route(const Body& body) {
  using sae::kernels::Route;
  const KeepsRoute own;
  for (const Route route : sae::kernels::all_routes) {
    if (!sae::kernels::has(route)) continue;
    CAPTURE(std::string(sae::kernels::to_string(route)));
    sae::kernels::set_route(route);
    body();
  }
}
template <class Body>
void on_portable_route(const Body& body) {
  const KeepsRoute own;
  sae::kernels::set_route(sae::kernels::Route::portable);
  body();
}

inline std::uint32_t bits(float x) { return std::bit_cast<std::uint32_t>(x); }

}  // namespace sae_test
