#include <sae/activations/relu.hpp>
#include <sae/activations/topk.hpp>
#include <sae/training/evaluate.hpp>
#include <sae/training/evaluate_world.hpp>

#include "catch_compat.hpp"

namespace {

using sae::Index;

sae::SyntheticWorld small_world(double bias = 0) {
  return sae::SyntheticWorld({.num_features = 6,
                              .hidden_dim = 6,
                              .firing_probability = sae::ConstantFiring{.probability = 0.3},
                              .orthogonalization = sae::OrthogonalizationConfig{.num_steps = 3000, .lr = 0.01},
                              .mean_firing_magnitudes = sae::ConstantMagnitude{.value = 2},
                              .bias = bias});
}
// Reads and writes the features themselves; b_enc keeps what else little there is from firing.
auto perfect_model(const sae::SyntheticWorld& world) {
  sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::ReLU> model(6, 6);
  model.W_enc() = world.directions.map();
  model.W_dec() = world.directions.map();
  model.parameters().b_dec = world.bias;
  for (Index i = 0; i < 6; ++i) model.parameters().b_enc[i] = -0.05F;
  return model;
}

TEST_CASE("a model made of the world's own features scores 1", "[evaluate][synthetic]") {
  const auto world = small_world(1.5);
  const auto report = sae::evaluate_on_world(perfect_model(world), world, {.rows = 3000, .seed = 4});
  CHECK(report.rows == 3000);
  CHECK(report.truth.rows == 3000);
  CHECK(report.truth.directions.mcc == Approx(1).epsilon(1e-6));
  CHECK(report.truth.directions.uniqueness == 1);
  CHECK(report.truth.directions.assigned == std::vector<Index>{0, 1, 2, 3, 4, 5});
  CHECK(report.truth.f1 == 1);
  CHECK(report.truth.accuracy == 1);
  CHECK(report.max_cosine.a_to_b == Approx(1).epsilon(1e-6));
  CHECK(report.max_cosine.b_to_a == Approx(1).epsilon(1e-6));
  CHECK(report.explained_variance > 0.99);
  CHECK(report.l0 == report.truth.true_l0);
  CHECK(std::abs(report.truth.true_l0 - 1.8) <= 5 * std::sqrt(6 * 0.3 * 0.7 / 3000));
  CHECK(report.dead_latents == 0);

  // Half of the features: the others are missed, with their means.
  auto half = perfect_model(world);
  half.W_enc().bottomRows(3).setZero();
  half.W_dec().bottomRows(3) = half.W_dec().topRows(3);
  const auto missed = sae::evaluate_on_world(half, world, {.rows = 3000, .seed = 4});
  CHECK(missed.truth.directions.mcc == Approx(0.5).margin(2e-3));
  CHECK(missed.truth.directions.uniqueness == 0.5);
  CHECK(missed.truth.f1 == 0.5);
  CHECK(missed.truth.recall == 0.5);
  CHECK(missed.dead_latents == 3);
  CHECK(missed.explained_variance == Approx(1 - 3.6 / 5.04).margin(0.05));  // 3 x 0.3 x 2^2 of 6 x 0.3 x 0.7 x 2^2
  CHECK(missed.max_cosine.b_to_a == Approx(0.5).margin(2e-3));
}

TEST_CASE("an untrained model is measured as evaluate measures it, whatever the blocks and threads", "[evaluate][synthetic]") {
  const auto world = small_world(1);
  sae::SparseAutoencoder model(6, 9, sae::TopK{.k = 2});
  sae::Tensor<float> rows(700, 6);
  sae::SyntheticSource source(world, {.seed = 5, .first = 30});
  REQUIRE(source.next(rows) == 700);
  const auto plain = sae::evaluate(model, rows.map());
  sae::Threads one(1), three(3);
  const auto got = sae::evaluate_on_world(model, world, {.rows = 700, .seed = 5, .first = 30, .block = 1000}, one);
  CHECK(got.mse == plain.mse);
  CHECK(got.l0 == plain.l0);
  CHECK(got.explained_variance == plain.explained_variance);
  CHECK(got.shrinkage == plain.shrinkage);
  for (const Index block : {64, 700}) {
    const auto again = sae::evaluate_on_world(model, world, {.rows = 700, .seed = 5, .first = 30, .block = block}, three);
    CHECK(again.explained_variance == Approx(got.explained_variance).epsilon(1e-12));
    CHECK(again.truth.counts == got.truth.counts);
    CHECK(again.truth.f1 == got.truth.f1);
    CHECK(again.truth.directions.mcc == got.truth.directions.mcc);
  }
}

TEST_CASE("evaluate_on_world refuses what does not fit", "[evaluate][synthetic]") {
  using Catch::Matchers::ContainsSubstring;
  const auto world = small_world();
  auto model = perfect_model(world);
  CHECK_THROWS_WITH(sae::evaluate_on_world(model, world, {.rows = 0}), ContainsSubstring("rows = 0"));
  CHECK_THROWS_WITH(sae::evaluate_on_world(model, world, {.rows = 9, .block = 0}), ContainsSubstring("block = 0"));
  const sae::SparseAutoencoder narrow(5, 6, sae::TopK{.k = 1});
  CHECK_THROWS_AS(sae::evaluate_on_world(narrow, world, {.rows = 9}), sae::ShapeError);
  model.W_dec()(2, 3) = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_WITH(sae::evaluate_on_world(model, world, {.rows = 9}), ContainsSubstring("not finite"));
}

}  // namespace
