// Ten training steps of the TopK family in SAELens and dictionary_learning, gone again by our Trainer in double: loss, gradient,
// every parameter, and BatchTopK's running threshold.
#include <sae/activations/abs_topk.hpp>
#include <sae/activations/batch_topk.hpp>

#include <limits>

#include "peer_replay.hpp"

using namespace sae_test;

namespace {

sae::TrainerConfig dictionary_learning_config() {
  return {.learning_rate = 0.01,
          .clip_norm = 1.0,
          .projection_epsilon = 1e-6,
          .unit_norm_epsilon = std::numeric_limits<double>::epsilon(),
          .center = sae::Center::first_batch_geometric_median,
          .dead = {.window = 10'000'000, .after_counting = true}};
}
sae::AuxK dictionary_learning_aux(double coefficient) {
  return {.coefficient = coefficient, .scale_by_dead = false, .normaliser = sae::AuxKNormaliser::residual_variance};
}

}  // namespace

TEST_CASE("ten steps of SAELens: AbsTopK ranked by decoder norm, AuxK by magnitude", "[training][peers]") {
  replay("saelens_abstopk", saelens, sae::AbsTopK{.k = 6, .rank_by_decoder_norm = true}, saelens_config(),
         sae::Objective{sae::AuxK{.coefficient = 1, .raw_values = true, .rank_by_decoder_norm = true, .by_magnitude = true}});
}

TEST_CASE("ten steps of SAELens: BatchTopK with k = 5.5 and its threshold", "[training][peers]") {
  const sae::BatchTopK activation{
      .k = 5.5, .rank_by_decoder_norm = true, .threshold_rate = 0.05, .threshold_average = sae::ThresholdAverage::from_zero};
  replay("saelens_batchtopk", saelens, activation, saelens_config(),
         sae::Objective{sae::AuxK{.coefficient = 1, .raw_values = true, .rank_by_decoder_norm = true}},
         [&](const auto& trainer, const auto& want) {
           const double threshold = want.at("topk_threshold_after").template get<double>();
           REQUIRE(std::abs(activation.threshold(trainer.model().parameters().activation) - threshold) <= 1e-9 * threshold);
         });
}

TEST_CASE("ten steps of dictionary_learning: TopKTrainer with warm-up and decay", "[training][peers]") {
  auto config = dictionary_learning_config();
  config.schedule = {.warmup = 3, .warmup_shape = sae::WarmupShape::from_zero, .decay = 4};
  replay("dl_topk_warm", dl_topk, sae::TopK{.k = 6}, config, sae::Objective{dictionary_learning_aux(0.5)});
}

TEST_CASE("ten steps of dictionary_learning: BatchTopKTrainer and its threshold", "[training][peers]") {
  const sae::BatchTopK activation{
      .k = 6, .threshold_rate = 0.1, .threshold_from = 4, .threshold_average = sae::ThresholdAverage::from_first};
  Index told = 0;
  replay("dl_batch_topk", dl_topk, activation, dictionary_learning_config(), sae::Objective{dictionary_learning_aux(1.0 / 32)},
         [&](const auto& trainer, const auto& want) {
           const double threshold = want.at("threshold_after").template get<double>();
           const double got = activation.threshold(trainer.model().parameters().activation);
           if (threshold < 0) {
             REQUIRE(std::isnan(got));  // the peer's -1: not seen yet
           } else {
             REQUIRE(std::abs(got - threshold) <= 1e-6);  // a float32 number of the peer's
             ++told;
           }
         });
  REQUIRE(told == 6);
}
