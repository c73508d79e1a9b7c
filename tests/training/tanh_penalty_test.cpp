// The tanh penalty, linear and with its quadratic part: a hand computation, central differences, the window of a threshold.
#include <sae/activations/jump_relu.hpp>
#include <sae/activations/relu.hpp>
#include <sae/models/sparse_autoencoder.hpp>
#include <sae/training/tanh_penalty.hpp>

#include <cmath>
#include <string>

#include "catch_compat.hpp"
#include "gradient_check.hpp"

namespace {

using sae::Index;
using sae::TanhPenalty;
using namespace sae_test;

template <class Activation>
using Model = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, Activation, double>;
constexpr Index width = 6, latents = 40, rows = 9;

/// q_i = mean_b tanh(scale f n); sum_i q_i (1 + q_i / c), or sum_i q_i where c is 0.
double naive_penalty(const NaiveModel& m, const Dense& f, const TanhPenalty& term) {
  const auto norms = naive_norms(m.W_dec);
  double sum = 0;
  for (Index i = 0; i < f.cols(); ++i) {
    double q = 0;
    for (Index b = 0; b < f.rows(); ++b)
      q += std::tanh(term.scale * f(b, i) * norms[static_cast<std::size_t>(i)]) / static_cast<double>(f.rows());
    sum += q + (term.frequency_scale > 0 ? q * q / term.frequency_scale : 0.0);
  }
  return term.coefficient * sum;
}

}  // namespace

TEST_CASE("tanh-quad by hand", "[training][tanh]") {
  // Two rows, two latents of norm 1: f = (1, 0), (1, 2); c = 0.5, scale 1.
  Model<sae::ReLU> model(2, 2, {}, {.subtract_decoder_bias = false});
  auto& p = model.parameters();
  p.W_enc.map() << 0, 0, 1, 0;
  p.b_enc.map() << 1, 0;
  p.W_dec.map() << 1, 0, 0, 1;
  p.b_dec.set_zero();
  Dense x(2, 2);
  x << -1, 0, 2, 0;
  const double q0 = std::tanh(1.0), q1 = std::tanh(2.0) / 2;
  const auto value = [&](double c) {
    return model.loss(x, sae::Objective{TanhPenalty{.coefficient = 3, .scale = 1, .frequency_scale = c}}).terms[0].second;
  };
  CHECK(value(0) == Approx(3 * (q0 + q1)).epsilon(1e-14));
  CHECK(value(0.5) == Approx(3 * (q0 * (1 + q0 / 0.5) + q1 * (1 + q1 / 0.5))).epsilon(1e-14));
}

TEST_CASE("gradients of the tanh penalty with and without its quadratic part", "[training][tanh][gradient]") {
  const Dense x = random_rows(rows, width, 1);
  for (const double bias : {-1.0, 1.0})
    for (const double c : {0.0, 0.01, 0.3}) {
      CAPTURE(bias, c);
      Model<sae::ReLU> model(width, latents, {});
      randomise(model, 3, bias);
      const NaiveModel twin = naive(model);
      const Mask active = naive_positive(naive_pre_activations(twin, x));
      const TanhPenalty term{.coefficient = 0.7, .scale = 0.8, .frequency_scale = c};
      Model<sae::ReLU>::Workspace<sae::Objective<TanhPenalty>> workspace;
      workspace.step.sparsity_scale = 0.5;
      const auto got = model.gradient(x, sae::Objective{term}, workspace);
      const auto penalty = [&](const NaiveModel& m) {
        return 0.5 * naive_penalty(m, naive_codes(naive_pre_activations(m, x), active), term);
      };
      check_gradient(twin, got.parameters, [&](const NaiveModel& m) {
        return penalty(m) + naive_mean_square(naive_decode(m, naive_codes(naive_pre_activations(m, x), active)) - x);
      });
      CHECK(got.loss.terms[0].second == Approx(penalty(twin)).epsilon(1e-12));
    }
}

TEST_CASE("tanh-quad reaches thresholds through the whole window", "[training][tanh]") {
  // dL/dtheta_i = -theta_i / epsilon sum_b K dA,  dA = G . d_i + (1 + 2 q_i / c) coefficient scale n_i / B T
  Model<sae::JumpReLU> model(width, latents, {.threshold = 0.5, .bandwidth = 0.8});
  randomise(model, 3);
  const Dense x = random_rows(rows, width, 1), z = model.pre_activations(x), f = model.encode_dense(x);
  const TanhPenalty term{.coefficient = 0.7, .scale = 0.8, .frequency_scale = 0.1};
  const Dense through = 2.0 / static_cast<double>(rows) * (model.reconstruct(x) - x) * model.W_dec().transpose();
  const auto norms = naive_norms(model.W_dec());
  Dense want = Dense::Zero(1, latents);
  Index below = 0;
  for (Index i = 0; i < latents; ++i) {
    const double n = norms[static_cast<std::size_t>(i)];
    double q = 0;
    for (Index b = 0; b < rows; ++b) q += std::tanh(0.8 * f(b, i) * n) / static_cast<double>(rows);
    for (Index b = 0; b < rows; ++b) {
      if (!(std::abs(z(b, i) - 0.5) < 0.4)) continue;
      below += z(b, i) < 0.5 ? 1 : 0;
      const double t = std::tanh(0.8 * f(b, i) * n);
      want(0, i) -= 0.5 / 0.8 * (through(b, i) + (1 + 2 * q / 0.1) * 0.7 * 0.8 * n / static_cast<double>(rows) * (1 - t * t));
    }
  }
  REQUIRE(below > 10);
  CHECK(relative_error(model.gradient(x, sae::Objective{term}).parameters.activation.threshold.map(), want) <= 1e-12);
}

TEST_CASE("TanhPenalty refuses bad settings and lists them", "[training][tanh]") {
  CHECK_THROWS_WITH((TanhPenalty{.frequency_scale = -1}.check(4, 8)),
                    "TanhPenalty: frequency_scale = -1 is not in [0, infinity)");
  CHECK_THROWS_WITH((TanhPenalty{.scale = 0}.check(4, 8)), "TanhPenalty: scale = 0 is not in (0, infinity)");
  std::string seen;
  TanhPenalty{}.visit_settings(
      [&](std::string_view name, const auto& value) { seen += sae::detail::concat(name, "=", value, ";"); });
  CHECK(seen == "coefficient=1;scale=4;frequency_scale=0;");
}
