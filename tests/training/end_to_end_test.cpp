// Steps by a loss of the caller's own: Trainer::forward, backward and train_step with dL/dx'.
#include <sae/data/indexed_source.hpp>
#include <sae/models/matryoshka.hpp>
#include <sae/training/covariance_whitening.hpp>
#include <sae/training/trainer.hpp>

#include <cmath>
#include <limits>
#include <vector>

#include "catch_compat.hpp"
#include "gradient_check.hpp"

namespace {

using sae::Index;
using namespace sae_test;
template <class Activation>
using Model = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, Activation, double>;

constexpr Index width = 6, latents = 40, batch = 20;

// Without momentum and at rate 1 a step moves a weight by its gradient.
sae::TrainerConfig descent() {
  return {.steps = 10,
          .batch = batch,
          .learning_rate = 1,
          .optimizer = sae::Sgd{.momentum = 0},
          .decoder = sae::DecoderNorm::free,
          .center = sae::Center::none,
          .normalisation = sae::Normalisation::none};
}
// The caller's loss: sum_b c . sin(x'_b).
Dense outer_gradient(const Dense& reconstruction) {
  Dense out = reconstruction.array().cos().matrix();
  for (Index j = 0; j < out.cols(); ++j) out.col(j) *= 0.1 * static_cast<double>(j + 1);
  return out;
}
double outer_loss(const Dense& reconstruction) {
  double sum = 0;
  for (Index b = 0; b < reconstruction.rows(); ++b)
    for (Index j = 0; j < reconstruction.cols(); ++j) sum += 0.1 * static_cast<double>(j + 1) * std::sin(reconstruction(b, j));
  return sum;
}
template <class Parameters>
void check_moved(const Parameters& from, const Parameters& to, const Parameters& gradient, double bound) {
  Parameters::visit(
      [&](std::string_view name, const auto& a, const auto& b, const auto& g) {
        CAPTURE(name);
        CHECK(relative_error(Dense(a.map() - b.map()), Dense(g.map())) <= bound);
      },
      from, to, gradient);
}

}  // namespace

TEST_CASE("a step by dL/dx' alone is a step by the model's gradient of it", "[training][end_to_end]") {
  const Dense rows = random_rows(batch, width, 3, 1);
  Model<sae::TopK> model(width, latents, {.k = 4});
  randomise(model, 2);
  const auto before = model;
  sae::Trainer trainer(model, descent(), sae::Objective<>{});
  const Dense reconstruction = trainer.forward(rows).map();
  CHECK(largest_difference(reconstruction, before.reconstruct(rows)) <= 1e-14);
  const auto& report = trainer.backward(outer_gradient(reconstruction));
  CHECK(report.loss == 0);
  CHECK(report.step == 1);
  CHECK(report.reconstruction == Approx(naive_mean_square(reconstruction - rows)));
  check_moved(before.parameters(), model.parameters(), before.gradient(rows, outer_gradient(reconstruction)).parameters, 1e-12);
  // In one call.
  auto other = before;
  sae::Trainer at_once(other, descent(), sae::Objective<>{});
  at_once.train_step(rows, outer_gradient(reconstruction));
  CHECK(other.W_enc() == model.W_enc());
  CHECK(other.W_dec() == model.W_dec());
}

TEST_CASE("the caller's loss, the reconstruction loss and the terms add up", "[training][end_to_end]") {
  const Dense rows = random_rows(batch, width, 3, 1);
  const auto check = [&](auto objective, auto alone) {
    for (const double weight : {0.0, 0.3, 1.0}) {
      CAPTURE(weight);
      Model<sae::ReLU> model(width, latents);
      randomise(model, 2, -0.5);
      const auto before = model;
      sae::Trainer trainer(model, descent(), objective);
      const Dense outer = outer_gradient(trainer.forward(rows).map());
      const auto report = trainer.backward(outer, weight);
      // Gradients are linear in the losses: terms = all - reconstruction.
      const auto all = before.gradient(rows, objective), reconstruction = before.gradient(rows, alone);
      auto want = before.gradient(rows, outer).parameters;
      Model<sae::ReLU>::Parameters::visit(
          [&](std::string_view, auto& sum, const auto& a, const auto& r) { sum.map() += a.map() - r.map() + weight * r.map(); },
          want, all.parameters, reconstruction.parameters);
      check_moved(before.parameters(), model.parameters(), want, 1e-9);
      CHECK(report.loss ==
            Approx(all.loss.total - reconstruction.loss.total + weight * reconstruction.loss.total).epsilon(1e-12));
    }
  };
  const sae::L1 l1{.coefficient = 0.2};
  check(sae::Objective{l1}, sae::Objective<>{});
  const sae::Matryoshka levels{.widths = {10, 40}};
  check(sae::Objective{levels, l1}, sae::Objective{levels});
}

TEST_CASE("central differences of the caller's loss in raw units, whatever the scale", "[training][end_to_end]") {
  const Dense rows = random_rows(100, width, 3, 4);
  const Dense x = rows.topRows(batch);
  Model<sae::TopK> model(width, latents, {.k = 4});
  randomise(model, 2);
  auto config = descent();
  config.learning_rate = 1e-3;
  config.normalisation = sae::Normalisation::mean_square;
  sae::Trainer trainer(model, config, sae::Objective<>{});
  sae::MatrixSource<double> source(rows, {.shuffle = false});
  trainer.prepare(source);
  const double scale = trainer.scale();
  REQUIRE(scale < 0.2);
  const auto before = model;
  const Dense reconstruction = trainer.forward(x).map();
  CHECK(largest_difference(reconstruction, before.reconstruct(scale * x) / scale) <= 1e-12);
  trainer.backward(outer_gradient(reconstruction));
  // W_dec moved by -rate dL/dW_dec, L a function of the model that reads scaled rows.
  const Mask active = mask_of(before.encode(scale * x));
  NaiveModel twin = naive(before);
  const auto loss = [&] {
    return outer_loss(naive_decode(twin, naive_codes(naive_pre_activations(twin, scale * x), active)) / scale);
  };
  const Dense want = central_differences(twin.W_dec, loss);
  CHECK(relative_error(Dense((before.W_dec() - model.W_dec()) / 1e-3), want) <= 1e-6);
  const Dense encoder = central_differences(twin.W_enc, loss);
  CHECK(relative_error(Dense((before.W_enc() - model.W_enc()) / 1e-3), encoder) <= 1e-6);
  // At the end the model reads raw rows.
  const Dense trained = model.reconstruct(scale * x) / scale;
  trainer.finish();
  CHECK(trainer.scale() == 1);
  CHECK(largest_difference(model.reconstruct(x), trained) <= 1e-12);
}

TEST_CASE("central differences of the caller's loss through whitening and through norms of rows", "[training][end_to_end]") {
  const Dense rows = random_rows(200, width, 3, 4);
  const Dense x = rows.topRows(batch);
  const auto check = [&](sae::InputNormalisation kind, sae::Normalisation normalisation) {
    CAPTURE(static_cast<int>(kind), static_cast<int>(normalisation));
    Model<sae::TopK> model(width, latents, {.k = 4}, {.input_normalisation = kind});
    randomise(model, 2);
    auto config = descent();
    config.learning_rate = 1e-3;
    config.normalisation = normalisation;
    config.whitening = sae::covariance_whitening;
    sae::Trainer trainer(model, config, sae::Objective<>{});
    sae::MatrixSource<double> source(rows, {.shuffle = false});
    trainer.prepare(source);
    // What the caller sees is x' in units of the rows, whatever lies in between.
    auto& p = model.parameters();
    const auto loss = [&] { return outer_loss(trainer.forward(x).map()); };
    std::vector<Dense> want;
    for (auto* const tensor : {&p.W_enc, &p.W_dec, &p.b_dec}) {
      Dense slope(tensor->rows(), tensor->cols());
      for (Index i = 0; i < tensor->size(); ++i) {
        const double kept = (*tensor)[i], h = 1e-6;
        (*tensor)[i] = kept + h;
        const double above = loss();
        (*tensor)[i] = kept - h;
        slope.data()[i] = (above - loss()) / (2 * h);
        (*tensor)[i] = kept;
      }
      want.push_back(slope);
    }
    const auto before = p;
    trainer.backward(outer_gradient(trainer.forward(x).map()));
    CHECK(relative_error(Dense((before.W_enc.map() - p.W_enc.map()) / 1e-3), want[0]) <= 1e-6);
    CHECK(relative_error(Dense((before.W_dec.map() - p.W_dec.map()) / 1e-3), want[1]) <= 1e-6);
    CHECK(relative_error(Dense((before.b_dec.map() - p.b_dec.map()) / 1e-3), want[2]) <= 1e-6);
  };
  check(sae::InputNormalisation::none, sae::Normalisation::whitening);
  check(sae::InputNormalisation::layer_norm, sae::Normalisation::none);
  check(sae::InputNormalisation::constant_norm, sae::Normalisation::none);
  check(sae::InputNormalisation::constant_norm, sae::Normalisation::sqrt_d);
}

TEST_CASE("forward and backward: order, shapes, numbers", "[training][end_to_end]") {
  const Dense rows = random_rows(batch, width, 3, 1);
  Model<sae::TopK> model(width, latents, {.k = 4}), plain = model;
  sae::Trainer trainer(model, descent()), other(plain, descent());
  const Dense zero = Dense::Zero(batch, width);
  CHECK_THROWS_WITH(trainer.backward(zero), "Trainer: backward without a forward before it");
  trainer.forward(rows);
  CHECK_THROWS_WITH(trainer.backward(Dense(Dense::Zero(batch, 5))),
                    "Trainer: dL/dx' is [20 x 5], the reconstruction is [20 x 6]");
  CHECK_THROWS_WITH(trainer.backward(zero, -1), "Trainer: reconstruction_weight = -1 is not in [0, infinity)");
  Dense bad = zero;
  bad(3, 1) = std::numeric_limits<double>::quiet_NaN();
  CHECK_THROWS_WITH(trainer.backward(bad), "Trainer: row 3 of dL/dx' at step 1 holds a number that is not finite");
  CHECK(trainer.step() == 0);
  // Forwards that come to nothing leave no trace: weight 1 and nothing of the caller's is a plain step.
  trainer.forward(random_rows(batch, width, 9, 1));
  trainer.train_step(rows, zero, 1);
  other.train_step(rows);
  CHECK(model.W_enc() == plain.W_enc());
  CHECK(model.W_dec() == plain.W_dec());
  CHECK(trainer.dead_latents().silent() == other.dead_latents().silent());
  CHECK_THROWS_WITH(trainer.backward(zero), "Trainer: backward without a forward before it");
  sae::MatrixSource<double> source(rows, {});
  CHECK_THROWS_WITH(trainer.prepare(source), "Trainer: prepare comes before the first step, 1 are done");
  trainer.finish();
  CHECK_THROWS_WITH(trainer.finish(), "Trainer: the run has ended already");
}
