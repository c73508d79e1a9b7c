#include <sae/activations/relu.hpp>
#include <sae/activations/topk.hpp>
#include <sae/models/sparse_autoencoder.hpp>
#include <sae/training/any_objective.hpp>
#include <sae/training/ghost_gradients.hpp>

#include <cmath>
#include <string>
#include <vector>

#include "catch_compat.hpp"
#include "gradient_check.hpp"

namespace {

using sae::Index;
using namespace sae_test;
template <class Activation, class Scalar = double>
using Model = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, Activation, Scalar>;

std::vector<std::uint8_t> mask(Index latents, const std::vector<Index>& dead) {
  std::vector<std::uint8_t> out(static_cast<std::size_t>(latents), 0);
  for (const Index i : dead) out[static_cast<std::size_t>(i)] = 1;
  return out;
}

// What the term holds constant, by the formula.
struct Constants {
  Dense residual, weight;     // r, w
  std::vector<double> scale;  // s
};
Dense ghost(const NaiveModel& m, const Dense& x, const std::vector<std::uint8_t>& dead) {
  const Dense z = naive_pre_activations(m, x);
  Dense e = Dense::Zero(z.rows(), z.cols());
  for (Index b = 0; b < z.rows(); ++b)
    for (Index i = 0; i < z.cols(); ++i)
      if (dead[static_cast<std::size_t>(i)] != 0) e(b, i) = std::exp(z(b, i));
  return naive_decode(m, e, false);
}
Constants constants_of(const Dense& residual, const Dense& ghosts) {
  Constants out{residual, residual, {}};
  for (Index b = 0; b < residual.rows(); ++b) {
    out.scale.push_back(residual.row(b).norm() / (1e-6 + 2 * ghosts.row(b).norm()));
    for (Index j = 0; j < residual.cols(); ++j) {
      const double gap = out.scale.back() * ghosts(b, j) - residual(b, j);
      out.weight(b, j) = residual(b, j) * residual(b, j) / (gap * gap + 1e-6);
    }
  }
  return out;
}
double ghost_loss(const Constants& constant, const Dense& ghosts) {
  double sum = 0;
  for (Index b = 0; b < ghosts.rows(); ++b)
    for (Index j = 0; j < ghosts.cols(); ++j) {
      const double gap = constant.scale[static_cast<std::size_t>(b)] * ghosts(b, j) - constant.residual(b, j);
      sum += constant.weight(b, j) * gap * gap;
    }
  return sum / static_cast<double>(ghosts.size());
}

}  // namespace

TEST_CASE("ghost gradients by hand", "[training][ghost]") {
  // x = (3, 4), nothing active: x' = 0, r = (3, 4). The dead latent has z = 0, e^z = 1, d = (1, 0): |G| = 1, s = 5 / 2.000001.
  Model<sae::ReLU> model(2, 2, {}, {.subtract_decoder_bias = false});
  auto& p = model.parameters();
  p.W_enc.set_zero();
  p.W_dec.map() << 1, 0, 0, 1;
  Model<sae::ReLU>::Workspace<sae::Objective<sae::GhostGradients>> workspace;
  const auto dead = mask(2, {0});
  workspace.step.dead = dead;
  Dense x(1, 2);
  x << 3, 4;
  const auto got = model.gradient(x, sae::Objective{sae::GhostGradients{.coefficient = 2}}, workspace);
  // g = (2.5, 0): l = (0.25, 16), w = (9 / 0.25, 16 / 16): mean of w l = (9 + 16) / 2, as |x' - x|^2 / D.
  CHECK(got.loss.terms[0].first == "ghost_gradients");
  CHECK(got.loss.terms[0].second == Approx(25).epsilon(1e-4));
  // C = 2 * 2 / 2 * w (g - r) = (2 * 36 * -0.5, ...) = (-36, -8); dz = (C . d) s e^z = -36 * 2.5; dL/dd = 2.5 C.
  CHECK(got.parameters.b_enc[0] == Approx(-90).epsilon(1e-4));
  CHECK(got.parameters.W_enc.map().row(0).isApprox(-90 * x, 1e-4));
  CHECK(got.parameters.W_dec.map()(0, 0) == Approx(-90).epsilon(1e-4));
  CHECK(got.parameters.W_dec.map()(0, 1) == Approx(-20).epsilon(1e-4));
  CHECK(got.parameters.b_enc[1] == 0);
}

TEST_CASE("gradients of ghost gradients, their constants frozen", "[training][ghost]") {
  constexpr Index width = 6, latents = 70, rows = 9;
  const auto check = [&](auto activation, bool subtract, const std::vector<Index>& list, double scale) {
    CAPTURE(subtract, list.size(), scale);
    Model<decltype(activation)> model(width, latents, activation, {.subtract_decoder_bias = subtract});
    randomise(model, 5);
    for (const Index i : list) model.parameters().W_enc.map().row(i) *= scale;
    const Dense x = random_rows(rows, width, 3);
    const NaiveModel twin = naive(model);
    const auto dead = mask(latents, list);
    typename Model<decltype(activation)>::template Workspace<sae::AnyObjective> workspace;
    workspace.step.dead = dead;
    const auto got = model.gradient(x, sae::AnyObjective{sae::GhostGradients{.coefficient = 0.7}}, workspace);

    const Mask active = mask_of(model.encode(x));
    const auto decoded = [&](const NaiveModel& m) { return naive_decode(m, naive_codes(naive_pre_activations(m, x), active)); };
    const Constants constant = constants_of(x - decoded(twin), ghost(twin, x, dead));
    const auto loss = [&](const NaiveModel& m) {
      return naive_mean_square(decoded(m) - x) + 0.7 * ghost_loss(constant, ghost(m, x, dead));
    };
    CHECK(got.loss.terms[0].second == Approx(0.7 * ghost_loss(constant, ghost(twin, x, dead))).epsilon(1e-10));
    CHECK(got.loss.total == Approx(loss(twin)).epsilon(1e-10));
    check_gradient(twin, got.parameters, loss);
    CHECK(largest_magnitude(got.parameters.W_enc.map().row(list[0])) > 0);
  };
  std::vector<Index> most;
  for (Index i = 3; i < latents; ++i) most.push_back(i);
  for (const bool subtract : {true, false}) {
    check(sae::TopK{.k = 4}, subtract, {1, 5, 64, 69}, 1);
    check(sae::ReLU{}, subtract, {1, 5, 64, 69}, 1);
    check(sae::TopK{.k = 4}, subtract, most, 1);  // the dense route
    check(sae::TopK{.k = 4}, subtract, {69}, 3);
  }
}

TEST_CASE("ghost gradients: no dead latent, large exponents, threads", "[training][ghost]") {
  constexpr Index width = 6, latents = 150, rows = 300;
  Model<sae::TopK, float> model(width, latents, {.k = 4});
  randomise(model, 5);
  const sae::Matrix<float> x = random_rows(rows, width, 3).cast<float>();
  const sae::Objective objective{sae::GhostGradients{}};
  CHECK(model.loss(x, objective).terms[0].second == 0);
  // A dead latent with z = 200, beyond the exponents of float, has the gradient of one with its share in double.
  model.parameters().b_enc[7] = 200;
  const auto dead = mask(latents, {7, 8, 100});
  const auto run = [&](int count) {
    sae::Threads threads(count);
    Model<sae::TopK, float>::Workspace<sae::Objective<sae::GhostGradients>> workspace;
    workspace.step.dead = dead;
    return model.gradient(x, objective, workspace, threads);
  };
  const auto one = run(1), three = run(3);
  CHECK(one.parameters.W_enc == three.parameters.W_enc);
  CHECK(one.parameters.W_dec == three.parameters.W_dec);
  CHECK(one.loss.total == three.loss.total);
  CHECK(std::isfinite(one.loss.total));
  CHECK(one.parameters.W_enc.map().allFinite());
  // In the ghost row b then has the direction of d_7, at half the length of r: what double finds, too.
  const NaiveModel twin = naive(model);
  const Dense rows_of = x.cast<double>(), residual = rows_of - naive_decode(twin, model.encode(x).dense().cast<double>());
  const Constants constant = constants_of(residual, ghost(twin, rows_of, dead));
  CHECK(one.loss.terms[0].second == Approx(ghost_loss(constant, ghost(twin, rows_of, dead))).epsilon(1e-3));
  CHECK_THROWS_WITH(sae::GhostGradients{.coefficient = -1}.check(2, 2),
                    "GhostGradients: coefficient = -1 is not in [0, infinity)");
}
