#pragma once
// Central differences of every tensor of a model's parameters, whatever they are called, against the library's gradient.
#include <set>
#include <string>
#include <string_view>

#include "catch_compat.hpp"
#include "gradient_check.hpp"

namespace sae_test {

/// loss(parameters) is a naive loss that holds every selection and every detached quantity as it is at `model`. Tensors in `skip`
/// have a gradient that is no derivative (a straight-through estimator) and are left out.
template <class Parameters, class Loss>
void check_every_gradient(const Parameters& parameters, const Parameters& gradient, const Loss& loss,
                          const std::set<std::string>& skip = {}, double bound = 1e-6) {
  Parameters moved = parameters;
  int tensors = 0;
  Parameters::visit(
      [&](std::string_view name, auto& w, const auto& g) {
        if (skip.contains(std::string(name))) return;
        ++tensors;
        CAPTURE(name);
        Dense want(w.rows(), w.cols());
        constexpr double h = 1e-5;
        for (Index i = 0; i < w.size(); ++i) {
          const double before = w[i];
          w[i] = before + h;
          const double above = loss(static_cast<const Parameters&>(moved));
          w[i] = before - h;
          const double below = loss(static_cast<const Parameters&>(moved));
          w[i] = before;
          want.data()[i] = (above - below) / (2 * h);
        }
        CHECK(largest_magnitude(want) > 0);
        CHECK(relative_error(g.map(), want) <= bound);
      },
      moved, gradient);
  CHECK(tensors > 0);
}

/// Every number of every tensor N(0, scale^2); W_skip and the activation's own tensors too.
template <class Model>
void randomise_everything(Model& model, std::uint64_t seed, double scale = 0.4) {
  using Scalar = typename Model::Scalar;
  sae::Random random(seed, 78);
  Model::Parameters::visit(
      [&](std::string_view, auto& w) {
        for (Index i = 0; i < w.size(); ++i) w[i] = static_cast<Scalar>(scale * random.normal());
      },
      model.parameters());
}

}  // namespace sae_test
