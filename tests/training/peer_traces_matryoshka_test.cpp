// Ten training steps of Matryoshka in SAELens and dictionary_learning, gone again by our Trainer in double: loss, gradient, every
// parameter and the running threshold.
#include <sae/activations/batch_topk.hpp>
#include <sae/training/any_objective.hpp>

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
const sae::AuxK saelens_aux{.coefficient = 1, .raw_values = true, .rank_by_decoder_norm = true};

}  // namespace

TEST_CASE("ten steps of SAELens: Matryoshka, AuxK of the whole or level by level", "[training][peers]") {
  const auto follow = [](const std::string& name, double rate, const sae::AnyTerm& aux) {
    const sae::BatchTopK activation{
        .k = 6, .rank_by_decoder_norm = true, .threshold_rate = rate, .threshold_average = sae::ThresholdAverage::from_zero};
    replay(name, saelens, activation, saelens_config(), sae::AnyObjective{sae::Matryoshka{.widths = {14, 28}}, aux},
           [&](const auto& trainer, const auto& want) {
             const double threshold = want.at("topk_threshold_after").template get<double>();
             REQUIRE(std::abs(activation.threshold(trainer.model().parameters().activation) - threshold) <= 1e-9 * threshold);
           });
  };
  follow("saelens_matryoshka", 0.05, saelens_aux);
  follow("saelens_matryoshka_level_aux", 0.01, sae::MatryoshkaAuxK{.widths = {14, 28}, .level = saelens_aux});
}

TEST_CASE("ten steps of dictionary_learning: Matryoshka, errors weighted twice", "[training][peers]") {
  const sae::BatchTopK activation{.k = 6};
  const auto config = dictionary_learning_config();
  const double third = 1.0 / 3;
  replay("dl_matryoshka", saelens, activation, config,
         sae::AnyObjective{sae::Matryoshka{.widths = {14, 28}, .weights = {third, third, third}, .scale = third},
                           sae::AuxK{.scale_by_dead = false, .normaliser = sae::AuxKNormaliser::residual_variance}});
  replay("dl_matryoshka_weights", saelens, activation, config,
         sae::AnyObjective{sae::Matryoshka{.widths = {14, 28}, .weights = {1, 2, 3}, .scale = third}});
}
