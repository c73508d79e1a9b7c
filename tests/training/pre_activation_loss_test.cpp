// PreActivationLoss over sizes beside those of tests/activations/jump_relu_test.cpp: several blocks of rows and words of bits.
#include <sae/activations/jump_relu.hpp>
#include <sae/models/sparse_autoencoder.hpp>
#include <sae/training/pre_activation_loss.hpp>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "allocations.hpp"
#include "catch_compat.hpp"
#include "reference.hpp"
#include "routes.hpp"

namespace {

using sae::Index, sae::PreActivationLoss;
using namespace sae_test;

template <class Scalar>
using Model = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::JumpReLU, Scalar>;

template <class Scalar>
Model<Scalar> make(Index width, Index latents) {
  Model<Scalar> model(width, latents, {.threshold = 0.2, .bandwidth = 0.1});
  randomise(model, 5);
  auto& theta = model.parameters().activation.threshold;
  for (Index i = 0; i < latents; ++i) theta[i] = static_cast<Scalar>(0.05 * static_cast<double>(i % 30) + 0.01);
  return model;
}
std::vector<std::uint8_t> every(Index latents, Index apart) {
  std::vector<std::uint8_t> dead(static_cast<std::size_t>(latents), 0);
  for (Index i = 1; i < latents; i += apart) dead[static_cast<std::size_t>(i)] = 1;
  return dead;
}

}  // namespace

TEMPLATE_TEST_CASE("PreActivationLoss and its gradient by the formula", "[training][pre_activation]", float, double) {
  using Scalar = TestType;
  constexpr Index width = 19;
  for (const Index latents : {70, 450})
    for (const Index rows : {1, 33, 300})
      for (const Index apart : {1, 3, 40}) {
        const bool dead_only = apart > 1;
        CAPTURE(latents, rows, apart);
        const auto model = make<Scalar>(width, latents);
        const NaiveModel twin = naive(model);
        const sae::Matrix<Scalar> x = random_rows(rows, width, 3).cast<Scalar>();
        const Dense given = x.template cast<double>(), z = naive_pre_activations(twin, given);
        const auto dead = every(latents, apart);
        const std::vector<double> norms = naive_norms(twin.W_dec);
        const auto& theta = model.parameters().activation.threshold;
        const double c = 4.0 / static_cast<double>(rows);
        Dense dz = Dense::Zero(rows, latents), theta_gradient = Dense::Zero(1, latents), decoder = Dense::Zero(latents, width);
        double value = 0;
        for (Index b = 0; b < rows; ++b)
          for (Index i = 0; i < latents; ++i) {
            const double gap = static_cast<double>(theta[i]) - z(b, i), norm = norms[static_cast<std::size_t>(i)];
            if ((dead_only && dead[static_cast<std::size_t>(i)] == 0) || !(gap > 0)) continue;
            value += c * gap * norm;
            dz(b, i) = -c * norm;
            theta_gradient(0, i) += c * norm;
            decoder.row(i) += c * gap / norm * twin.W_dec.row(i);
          }

        const sae::Objective objective{PreActivationLoss{.coefficient = 4, .dead_only = dead_only}};
        typename Model<Scalar>::template Workspace<sae::Objective<PreActivationLoss>> workspace, other;
        workspace.step.dead = other.step.dead = dead;
        sae::Threads one(1), three(3);
        const auto got = model.gradient(x, objective, workspace, one), without = model.gradient(x);
        const double bound = 400 * static_cast<double>(std::numeric_limits<Scalar>::epsilon());
        CHECK(got.loss.terms[0].second == Approx(value).epsilon(bound));
        const auto check = [&](const auto& with, const auto& alone, const Dense& want) {
          const Dense own = with.map().template cast<double>() - alone.map().template cast<double>();
          CHECK(largest_difference(own, want) <= bound * std::fmax(largest_magnitude(with.map()), largest_magnitude(want)));
        };
        check(got.parameters.W_enc, without.parameters.W_enc, dz.transpose() * (given - twin.b_dec.replicate(rows, 1)));
        check(got.parameters.b_enc, without.parameters.b_enc, dz.colwise().sum());
        check(got.parameters.W_dec, without.parameters.W_dec, decoder);
        check(got.parameters.activation.threshold, without.parameters.activation.threshold, theta_gradient);
        const auto again = model.gradient(x, objective, other, three);
        CHECK(again.loss.total == got.loss.total);
        CHECK(again.parameters.W_enc == got.parameters.W_enc);
        CHECK(again.parameters.activation.threshold == got.parameters.activation.threshold);
      }
}

TEST_CASE("PreActivationLoss has the same bytes on every route, and those of a float32 model where weights have 16 bits",
          "[training][pre_activation]") {
  constexpr Index width = 40, latents = 200, rows = 140;
  const auto narrow = sae::with_weights<sae::bfloat16>(make<float>(width, latents));
  const auto wide = sae::with_weights<float>(narrow);
  const sae::Matrix<float> x = random_rows(rows, width, 3).cast<float>();
  for (const bool dead_only : {false, true}) {
    const sae::Objective objective{PreActivationLoss{.coefficient = 4, .dead_only = dead_only}};
    const auto dead = every(latents, 2);
    const auto gradient_of = [&](const auto& model) {
      typename std::remove_cvref_t<decltype(model)>::template Workspace<sae::Objective<PreActivationLoss>> workspace;
      workspace.step.dead = dead;
      return model.gradient(x, objective, workspace);
    };
    const auto want = gradient_of(wide);
    on_every_route([&] {
      CHECK(gradient_of(wide).parameters.W_enc == want.parameters.W_enc);
      CHECK(gradient_of(wide).loss.total == want.loss.total);
      CHECK(gradient_of(narrow).parameters.W_enc == want.parameters.W_enc);
      CHECK(gradient_of(narrow).parameters.b_dec == want.parameters.b_dec);
    });
  }
}

#if SAE_COUNTS_ALLOCATIONS
TEST_CASE("PreActivationLoss takes much less memory than a number for each row and latent",
          "[training][pre_activation][memory]") {
  constexpr Index width = 16, latents = 2000, rows = 1024;
  const auto model = make<float>(width, latents);
  const sae::Matrix<float> x = random_rows(rows, width, 3).cast<float>();
  const sae::Objective objective{PreActivationLoss{.coefficient = 4, .dead_only = false}};
  auto own = model;
  own.parameters().activation.threshold.map().setConstant(1e6F);  // nothing fires, all lies below
  Model<float>::Workspace<sae::Objective<PreActivationLoss>> workspace;
  const CountAllocations allocated;
  const auto got = own.gradient(x, objective, workspace);
  CHECK(got.loss.terms[0].second > 0);
  CHECK(allocated.largest() < rows * latents * 4 / 4);
}
#endif
