// What an optimizer keeps in 16 bits: the float32 update between widening and stochastic rounding, and nothing else.
#include <sae/data/indexed_source.hpp>
#include <sae/data/synthetic.hpp>
#include <sae/training/evaluate.hpp>
#include <sae/training/trainer.hpp>

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "catch_compat.hpp"
#include "reference.hpp"
#include "routes.hpp"

namespace {

using sae::bfloat16, sae::Index, sae::Precision;
using Model = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::TopK>;

struct Case {
  std::string name;
  sae::Optimizer optimizer;
  double rate;      // for the world below
  Index slots = 1;  // of F D numbers
};
std::vector<Case> cases() {
  return {{"adam", sae::Adam{}, 3e-3, 2},
          {"adam without beta1", sae::Adam{.beta1 = 0}, 3e-3},
          {"adamw", sae::AdamW{.weight_decay = 0.3}, 3e-3, 2},
          {"sgd with momentum", sae::Sgd{.momentum = 0.9}, 0.3},
          {"nesterov", sae::Sgd{.momentum = 0.9, .nesterov = true}, 0.3},
          {"signum", sae::SignSgd{.momentum = 0.9}, 1e-3}};
}
sae::Tensor<float> noise(Index rows, Index cols, std::uint64_t seed) {
  sae::Tensor<float> out(rows, cols);
  sae::Random random(seed);
  for (Index i = 0; i < out.size(); ++i) out[i] = static_cast<float>(random.normal());
  return out;
}

}  // namespace

TEST_CASE("a step with moments of 16 bits is the float32 step between widening and rounding", "[training][moments]") {
  constexpr Index rows = 3, cols = 700;  // longer than a piece of the buffer
  sae::Threads threads(2);
  for (const Case& one : cases())
    sae_test::on_every_route([&] {
      CAPTURE(one.name);
      sae::OptimizerState<float> state(one.optimizer, Precision::bfloat16), twin(one.optimizer);
      state.add("first", 2, 2);
      twin.add("first", 2, 2);
      state.add("w", rows, cols);
      twin.add("w", rows, cols);
      sae::Tensor<float> w = noise(rows, cols, 1), want = w;
      REQUIRE(static_cast<Index>(state.slots("w").half.size()) == one.slots);
      REQUIRE(state.slots("w").full.empty());
      for (Index t = 1; t <= 3; ++t) {
        sae::Tensor<float> g = noise(rows, cols, 10 + static_cast<std::uint64_t>(t)), same = g;
        state.begin_step(t, 0.01);
        twin.begin_step(t, 0.01);
        // Whole, and row by row: a number is rounded by where it stands.
        if (t == 2) {
          for (const Index i : {2, 0, 1}) state.update_rows(state.slots("w"), i * cols, w.row(i), g.row(i), cols);
        } else {
          state.update(state.slots("w"), w, g, threads);
        }
        twin.update(twin.slots("w"), want, same, threads);
        for (std::size_t s = 0; s < state.slots("w").half.size(); ++s) {
          auto& kept = twin.slots("w").full[s];
          const sae::Rounding at{.key = state.slots("w").key, .high = s == 1};
          for (Index i = 0; i < kept.size(); ++i) {
            const std::uint16_t rounded = sae::round_to_bfloat16(kept[i], at.bits(static_cast<std::uint32_t>(i)));
            REQUIRE(state.slots("w").half[s][i].bits == rounded);
            kept[i] = sae::bfloat16_to_float(rounded);
          }
        }
        REQUIRE(w == want);
        REQUIRE(state.slots("w").key != state.slots("first").key);
      }
    });
}

TEST_CASE("a second moment of 16 bits follows in the mean where rounding to nearest stands still", "[training][moments]") {
  constexpr Index rows = 16, cols = 128, steps = 1000;
  sae::OptimizerState<float> state(sae::Adam{.beta1 = 0}, Precision::bfloat16);
  state.add("w", rows, cols);
  sae::Tensor<float> w(rows, cols), g(rows, cols);
  for (Index i = 0; i < g.size(); ++i) g[i] = 1;
  sae::Threads threads(1);
  float nearest = 0;
  for (Index t = 1; t <= steps; ++t) {
    state.begin_step(t, 1e-3);
    state.update(state.slots("w"), w, g, threads);
    nearest = static_cast<float>(bfloat16(0.999F * nearest + 0.001F));
  }
  const double exact = 1 - std::pow(0.999, static_cast<double>(steps));  // 0.632
  double mean = 0, spread = 0;
  for (Index i = 0; i < w.size(); ++i) {
    const auto v = static_cast<double>(static_cast<float>(state.slots("w").half[0][i]));
    mean += v;
    spread += (v - exact) * (v - exact);
  }
  mean /= static_cast<double>(w.size());
  spread = std::sqrt(spread / static_cast<double>(w.size()));
  // A rounding has a deviation of half a distance of neighbours, 2^-9 below 1/2 and 2^-8 above, at most; a step forgets 0.001 of it.
  const double bound = 0x1p-8 / 2 * std::sqrt(1 / (1 - 0.999 * 0.999));
  CAPTURE(mean, spread, nearest);
  CHECK(spread <= bound);
  CHECK(std::fabs(mean - exact) <= 5 * bound / std::sqrt(static_cast<double>(w.size())));
  CHECK(static_cast<double>(nearest) < 0.55 * exact);
}

TEST_CASE("moments of 16 bits: memory, resets and what stays in full", "[training][moments]") {
  Model model(12, 40, {.k = 3});
  constexpr Index matrices = 2 * 12 * 40, vectors = 12 + 40;
  for (const Case& one : cases()) {
    CAPTURE(one.name);
    sae::Trainer full(model, {.steps = 1, .optimizer = one.optimizer}, sae::Objective<>{});
    sae::Trainer half(model, {.steps = 1, .optimizer = one.optimizer, .moments = Precision::bfloat16}, sae::Objective<>{});
    CHECK(full.optimizer_bytes() == 4 * one.slots * (matrices + vectors));
    CHECK(half.optimizer_bytes() == one.slots * (2 * matrices + 4 * vectors));
    CHECK(half.optimizer_numbers() == full.optimizer_numbers());

    sae::OptimizerState<float> state(one.optimizer, Precision::bfloat16);
    state.add("w", 4, 5);
    sae::Tensor<float> w = noise(4, 5, 2), g = noise(4, 5, 3);
    sae::Threads threads(1);
    state.begin_step(1, 0.1);
    state.update(state.slots("w"), w, g, threads);
    const auto before = state.slots("w").half[0];
    state.reset_row("w", w, 2);
    const auto& after = state.slots("w").half[0];
    for (Index j = 0; j < 5; ++j) {
      CHECK(after.row(1)[j] == before.row(1)[j]);
      CHECK(after.row(3)[j] == before.row(3)[j]);
      CHECK(after.row(2)[j] == (state.averages() ? bfloat16(w.row(2)[j]) : bfloat16()));
      CHECK_FALSE(before.row(2)[j] == bfloat16());
    }
  }
}

TEST_CASE("moments of 16 bits: the same bytes for any number of threads", "[training][moments][threads]") {
  const auto trained = [](const Case& one, int count, double clip) {
    Model model(20, 300, {.k = 4});
    sae::Threads threads(count);
    sae::Trainer trainer(model,
                         {.steps = 4,
                          .batch = 100,
                          .learning_rate = 0.01,
                          .optimizer = one.optimizer,
                          .moments = Precision::bfloat16,
                          .clip_norm = clip},
                         sae::Objective<>{}, threads);
    sae::MatrixSource<float> source(sae::Matrix<float>(sae_test::random_rows(400, 20, 1).cast<float>()));
    trainer.fit(source);
    return std::make_pair(model.parameters().W_enc, model.parameters().W_dec);
  };
  for (const Case& one : cases()) {
    CAPTURE(one.name);
    for (const double clip : {0.0, 1e9}) {
      const auto alone = trained(one, 1, clip);
      for (const int count : {2, 3, 8}) CHECK(trained(one, count, clip) == alone);
    }
  }
}

TEST_CASE("moments of 16 bits train as well as those of float32", "[training][moments]") {
  const sae::SyntheticWorld world({.num_features = 64, .hidden_dim = 24, .firing_probability = sae::ConstantFiring{0.04}});
  const auto explained = [&](const Case& one, Precision moments) {
    sae::SyntheticSource<float> source(world, {.seed = 1}), held_out(world, {.seed = 2});
    Model model(24, 96, {.k = 3});
    sae::Trainer trainer(
        model, {.steps = 400, .batch = 256, .learning_rate = one.rate, .optimizer = one.optimizer, .moments = moments});
    trainer.fit(source);
    return sae::evaluate(model, held_out, {.rows = 4096}).explained_variance;
  };
  for (const Case& one : cases()) {
    const double full = explained(one, Precision::full), half = explained(one, Precision::bfloat16);
    CAPTURE(one.name, full, half);
    CHECK(half > 0.5);
    CHECK(std::fabs(half - full) < 0.02);
  }
}

TEST_CASE("moments of 16 bits are refused where they cannot be kept", "[training][moments]") {
  Model model(4, 8, {.k = 2});
  for (const auto& [name, optimizer] :
       std::vector<std::pair<std::string, sae::Optimizer>>{{"muon", sae::Muon{}}, {"adafactor", sae::Adafactor{}}})
    CHECK_THROWS_WITH(sae::Trainer(model, {.steps = 1, .optimizer = optimizer, .moments = Precision::bfloat16}),
                      "Trainer: moments = bfloat16 is for optimizers that update row by row, which " + name +
                          " does not; moments = full is legal");
  CHECK_THROWS_WITH(sae::Trainer(model, {.steps = 1, .optimizer = sae::ScheduleFree{}, .moments = Precision::bfloat16}),
                    Catch::Matchers::Contains("a second set of weights, in which every rounding would stay"));
  sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::TopK, double> wide(4, 8, {.k = 2});
  CHECK_THROWS_WITH(sae::Trainer(wide, {.steps = 1, .moments = Precision::bfloat16}),
                    "Trainer: moments = bfloat16 is for models of float, this one is of double; moments = full is legal");
}
