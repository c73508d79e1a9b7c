#pragma once
#include <sae/kernels/route.hpp>

#include <bit>
#include <cstdint>
#include <string>

#include "catch_compat.hpp"

namespace sae_test {

/// Runs with each route that the machine has, then takes its own again.
template <class Body>
void on_every_route(const Body& body) {
  using sae::kernels::Route;
  struct Own {
    Route route = sae::kernels::route();
    ~Own() { sae::kernels::set_route(route); }
  };
  const Own own;
  for (const Route route : sae::kernels::all_routes) {
    if (!sae::kernels::has(route)) continue;
    CAPTURE(std::string(sae::kernels::to_string(route)));
    sae::kernels::set_route(route);
    body();
  }
}

inline std::uint32_t bits(float x) { return std::bit_cast<std::uint32_t>(x); }

}  // namespace sae_test
