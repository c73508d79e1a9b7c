// Ten training steps of the TopK family in SAELens and dictionary_learning, gone again by our Trainer in double through their
// recipes: loss, gradient, every parameter, and BatchTopK's running threshold.
#include <cmath>

#include "peer_replay.hpp"

using namespace sae_test;

TEST_CASE("ten steps of SAELens: AbsTopK ranked by decoder norm, AuxK by magnitude", "[training][peers]") {
  replay("saelens_abstopk", saelens, peer_recipe("saelens", {.activation = "abstopk", .k = 6}));
}

TEST_CASE("ten steps of SAELens: BatchTopK with k = 5.5 and its threshold", "[training][peers]") {
  auto recipe = peer_recipe("saelens", {.activation = "batchtopk", .k = 5.5});
  recipe.activation.get<sae::BatchTopK>()->threshold_rate = 0.05;
  replay("saelens_batchtopk", saelens, recipe, [](const auto& trainer, const auto& want) {
    const double threshold = want.at("topk_threshold_after").template get<double>();
    REQUIRE(std::abs(running_threshold(trainer.model()) - threshold) <= 1e-9 * threshold);
  });
}

TEST_CASE("ten steps of dictionary_learning: TopKTrainer with warm-up and decay", "[training][peers]") {
  auto recipe = peer_recipe("dictionary_learning", {.activation = "topk", .k = 6});
  recipe.config.schedule = {.warmup = 3, .warmup_shape = sae::WarmupShape::from_zero, .decay = 4};
  recipe.objective.find<sae::AuxK>()->coefficient = 0.5;
  replay("dl_topk_warm", dl_topk, recipe);
}

TEST_CASE("ten steps of dictionary_learning: BatchTopKTrainer and its threshold", "[training][peers]") {
  auto recipe = peer_recipe("dictionary_learning", {.activation = "batchtopk", .k = 6});
  recipe.activation.get<sae::BatchTopK>()->threshold_rate = 0.1;
  recipe.activation.get<sae::BatchTopK>()->threshold_from = 4;
  Index told = 0;
  replay("dl_batch_topk", dl_topk, recipe, [&](const auto& trainer, const auto& want) {
    const double threshold = want.at("threshold_after").template get<double>();
    const double got = running_threshold(trainer.model());
    if (threshold < 0) {
      REQUIRE(std::isnan(got));  // the peer's -1: not seen yet
    } else {
      REQUIRE(std::abs(got - threshold) <= 1e-6);  // a float32 number of the peer's
      ++told;
    }
  });
  REQUIRE(told == 6);
}
