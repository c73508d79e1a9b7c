// Recipes whose source is a paper: the loss that its equations give, written out in dense matrices, and what one step leaves of the
// weights. Recipes of libraries are held to the libraries' own traces (peer_traces_*_test.cpp).
#include <sae/data/indexed_source.hpp>
#include <sae/training/recipes.hpp>

#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "catch_compat.hpp"
#include "gradient_check.hpp"

namespace {

using sae::Index;
using namespace sae_test;

constexpr Index width = 6, latents = 40, rows = 24;
using Model = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::AnyActivation, double>;

/// A recipe, a model of it somewhere, a batch, and what the equations are written in.
struct Case {
  explicit Case(const std::string& name, sae::RecipeProblem problem = {}) {
    problem.d_in = width;
    problem.latents = latents;
    problem.steps = 1000;
    problem.batch = rows;
    recipe = sae::recipe(name, problem);
    model.emplace(sae::make_model<double>(recipe, width, latents, 3));
    randomise(*model, 5, -0.3);
    x = random_rows(rows, width, 1, 2.0);
    at = naive(*model);
    z = naive_pre_activations(at, x);
    for (Index i = 0; i < latents; ++i) norms.push_back(at.W_dec.row(i).norm());
  }
  double loss() const { return model->loss(x, recipe.objective).total; }
  double error(const Dense& f) const { return naive_mean_square(naive_decode(at, f) - x); }
  /// mean_b sum_i g(b, i)
  template <class G>
  double mean_sum(const G& g) const {
    double sum = 0;
    for (Index b = 0; b < rows; ++b)
      for (Index i = 0; i < latents; ++i) sum += g(b, i);
    return sum / static_cast<double>(rows);
  }
  double norm(Index i) const { return norms[static_cast<std::size_t>(i)]; }

  sae::Recipe recipe;
  std::optional<Model> model;
  Dense x, z;
  NaiveModel at;
  std::vector<double> norms;
};
Dense relu(const Dense& z) { return z.cwiseMax(0.0); }

}  // namespace

TEST_CASE("anthropic-2023 by hand: |x - x'|^2 + lambda |f|_1, unit decoder rows", "[training][recipes]") {
  const Case c("anthropic-2023", {.sparsity = 0.07});
  CHECK(c.recipe.subtract_decoder_bias);
  const Dense f = relu(c.z);
  CHECK(c.loss() == Approx(c.error(f) + 0.07 * f.sum() / rows).epsilon(1e-12));
  // Four resamplings, an eighth of the run apart, over the rows of half of that.
  CHECK(c.recipe.config.resampling.every == 125 * rows);
  CHECK(c.recipe.config.resampling.times == 4);
  CHECK(c.recipe.config.resampling.window == 125 * rows / 2);
  CHECK(c.recipe.config.center == sae::Center::geometric_median);
}

TEST_CASE("anthropic-2024-april by hand: lambda sum f |d|, raw input, free decoder, rows of norm sqrt(D)",
          "[training][recipes]") {
  const Case c("anthropic-2024-april");
  CHECK_FALSE(c.recipe.subtract_decoder_bias);
  const Dense f = relu(c.z);
  CHECK(c.loss() == Approx(c.error(f) + 5 * c.mean_sum([&](Index b, Index i) { return f(b, i) * c.norm(i); })).epsilon(1e-12));
  CHECK(c.recipe.config.decoder == sae::DecoderNorm::free);
  CHECK(c.recipe.config.normalisation == sae::Normalisation::sqrt_d);
  CHECK(c.recipe.config.clip_norm == 1);
  CHECK(c.recipe.config.sparsity_warmup == 50);  // 5 %
  CHECK(c.recipe.config.schedule.decay == 200);  // the last fifth
  CHECK(c.recipe.initial_decoder_norm == 0.1);
}

TEST_CASE("anthropic-2025-january by hand: tanh(4 f |d|) and the pre-activation loss on all latents", "[training][recipes]") {
  Case c("anthropic-2025-january", {.sparsity = 0.9});
  c.recipe.objective.find<sae::PreActivationLoss>()->coefficient = 0.02;  // the paper's 3e-6 would not show
  auto& theta = c.model->parameters().activation.get<sae::JumpReLU>()->threshold;
  for (Index i = 0; i < latents; ++i) theta[i] = 0.05 + 0.01 * static_cast<double>(i);
  Dense f = c.z;
  for (Index b = 0; b < rows; ++b)
    for (Index i = 0; i < latents; ++i) f(b, i) = c.z(b, i) > theta[i] ? c.z(b, i) : 0;
  const double sparsity = c.mean_sum([&](Index b, Index i) { return std::tanh(4 * f(b, i) * c.norm(i)); });
  const double up = c.mean_sum([&](Index b, Index i) { return std::max(theta[i] - c.z(b, i), 0.0) * c.norm(i); });
  CHECK(c.loss() == Approx(c.error(f) + 0.9 * sparsity + 0.02 * up).epsilon(1e-12));
  CHECK(c.recipe.activation.get<sae::JumpReLU>()->threshold == 0.1);
  CHECK(c.recipe.activation.get<sae::JumpReLU>()->bandwidth == 2);
  CHECK(c.recipe.activation.get<sae::JumpReLU>()->gradient_to_input);
  CHECK(c.recipe.config.sparsity_warmup == 1000);  // the whole run
}

TEST_CASE("deepmind-gated by hand: eq. 8, gates and magnitudes that share directions", "[training][recipes]") {
  Case c("deepmind-gated", {.sparsity = 0.4});
  auto& own = *c.model->parameters().activation.get<sae::Gated>();
  own.b_gate.map() = random_rows(1, latents, 11, 0.3);
  own.b_mag.map() = random_rows(1, latents, 12, 0.3);
  own.r_mag.map() = random_rows(1, latents, 13, 0.3);
  Dense f(rows, latents), gate(rows, latents);
  for (Index b = 0; b < rows; ++b)
    for (Index i = 0; i < latents; ++i) {
      const double pi = c.z(b, i) + own.b_gate[i], magnitude = c.z(b, i) * std::exp(own.r_mag[i]) + own.b_mag[i];
      gate(b, i) = std::max(pi, 0.0);
      f(b, i) = pi > 0 ? std::max(magnitude, 0.0) : 0;
    }
  CHECK(c.loss() == Approx(c.error(f) + 0.4 * gate.sum() / rows + c.error(gate)).epsilon(1e-12));
  CHECK(std::get<sae::Adam>(c.recipe.config.optimizer).beta1 == 0);
  // The decoder of the second reconstruction is held constant: it tells W_dec nothing.
  const auto with = c.model->gradient(c.x, c.recipe.objective).parameters.W_dec;
  const auto without = c.model->gradient(c.x).parameters.W_dec;
  CHECK(largest_difference(with.map(), without.map()) <= 1e-13 * largest_magnitude(Dense(without.map())));
}

TEST_CASE("deepmind-jumprelu by hand: eq. 9, lambda |f|_0", "[training][recipes]") {
  Case c("deepmind-jumprelu", {.sparsity = 0.3});
  auto& theta = c.model->parameters().activation.get<sae::JumpReLU>()->threshold;
  for (Index i = 0; i < latents; ++i) theta[i] = 0.02 * static_cast<double>(i % 9);
  Dense f = c.z;
  for (Index b = 0; b < rows; ++b)
    for (Index i = 0; i < latents; ++i) f(b, i) = c.z(b, i) > theta[i] ? c.z(b, i) : 0;
  const double l0 = c.mean_sum([&](Index b, Index i) { return c.z(b, i) > theta[i] ? 1.0 : 0.0; });
  REQUIRE(l0 > 1);
  CHECK(c.loss() == Approx(c.error(f) + 0.3 * l0).epsilon(1e-12));
  // With a target: lambda (mean L0 / target - 1)^2.
  Case t("deepmind-jumprelu", {.sparsity = 0.3, .target_l0 = 4});
  t.model->parameters().activation.get<sae::JumpReLU>()->threshold = theta;
  CHECK(t.loss() == Approx(t.error(f) + 0.3 * (l0 / 4 - 1) * (l0 / 4 - 1)).epsilon(1e-12));
}

TEST_CASE("textbook by hand: L1 summed over the batch, b_dec nowhere on the input", "[training][recipes]") {
  const Case c("textbook", {.sparsity = 0.01});
  CHECK_FALSE(c.recipe.subtract_decoder_bias);
  const Dense f = relu(c.z);
  CHECK(c.loss() == Approx(c.error(f) + 0.01 * f.sum()).epsilon(1e-12));
}

TEST_CASE("openai and sparsify by hand: errors over the variance of the batch", "[training][recipes]") {
  for (const std::string name : {"openai", "sparsify"}) {
    CAPTURE(name);
    const Case c(name, {.k = 5});
    const Dense f = naive_codes(c.z, naive_largest(c.z, 5));
    const Dense centred = c.x.rowwise() - c.x.colwise().mean();
    CHECK(c.loss() == Approx(c.error(f) / (centred.squaredNorm() / rows)).epsilon(1e-12));
  }
  const Case c("openai");
  CHECK(std::get<sae::Adam>(c.recipe.config.optimizer).epsilon == 6.25e-10);
  CHECK(c.recipe.config.ema == 0.999);
  const Case s("sparsify", {.k = 5});
  CHECK(std::get<sae::ScheduleFree>(s.recipe.config.optimizer).momentum == 0.95);
  CHECK(std::get<sae::ScheduleFree>(s.recipe.config.optimizer).sign);
  CHECK(s.recipe.config.schedule.factor(0, 100) == 1);
  CHECK(s.recipe.config.schedule.factor(99, 100) == 1);
}

TEST_CASE("openai: each step takes the gradient of its own batch, where train.py adds up those of all", "[training][recipes]") {
  const Case c("openai", {.k = 5});
  auto model = *c.model;
  sae::TrainerConfig config = c.recipe.config;
  config.learning_rate = 1e-30;  // nothing moves
  config.decoder = sae::DecoderNorm::free;
  config.center = sae::Center::none;
  config.normalisation = sae::Normalisation::none;
  config.clip_norm = 1e9;  // the report has the norm of the gradient
  sae::Trainer trainer(model, config, c.recipe.objective);
  const Dense other = random_rows(rows, width, 2, 2.0);
  const auto first = c.model->gradient(c.x, c.recipe.objective).parameters;
  const auto second = c.model->gradient(other, c.recipe.objective).parameters;
  double own = 0, sum = 0;
  Model::Parameters::visit(
      [&](std::string_view, const auto& a, const auto& b) {
        own += b.map().squaredNorm();
        sum += (a.map() + b.map()).squaredNorm();
      },
      first, second);
  trainer.train_step(c.x);
  CHECK(trainer.train_step(other).gradient_norm == Approx(std::sqrt(own)).epsilon(1e-12));
  CHECK(std::abs(std::sqrt(sum) - std::sqrt(own)) > 0.1 * std::sqrt(own));
}
