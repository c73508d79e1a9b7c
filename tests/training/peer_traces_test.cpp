// Ten training steps of SAELens and dictionary_learning, gone again by our Trainer in double: loss, gradient and every
// parameter. The peers differ in schedules, epsilons, dead-latent counting and AuxK; each difference is a switch of ours.
#include <sae/training/pre_activation_loss.hpp>
#include <sae/training/tanh_penalty.hpp>

#include "peer_replay.hpp"

using namespace sae_test;

TEST_CASE("ten steps of SAELens: standard, L1 weighted by decoder norms, warm-ups and decay", "[training][peers]") {
  auto config = saelens_config();
  config.schedule = {.warmup = 3, .decay = 3};
  config.sparsity_warmup = 4;
  replay("saelens_standard_l1", saelens, sae::ReLU{}, config, sae::Objective{sae::L1{.coefficient = 1.5}});
}

TEST_CASE("ten steps of SAELens: TopK ranked by decoder norm, few dead latents", "[training][peers]") {
  auto config = saelens_config();
  replay("saelens_topk_auxk_few_dead", saelens, sae::TopK{.k = 6, .rank_by_decoder_norm = true}, config,
         sae::Objective{sae::AuxK{.coefficient = 1, .raw_values = true, .rank_by_decoder_norm = true}});
}

TEST_CASE("ten steps of SAELens: TopK, more dead latents than AuxK takes", "[training][peers]") {
  auto config = saelens_config();
  config.schedule = {.warmup = 4};
  replay("saelens_topk_auxk_many_dead", saelens, sae::TopK{.k = 6}, config,
         sae::Objective{sae::AuxK{.coefficient = 0.5, .raw_values = true}});
}

TEST_CASE("ten steps of SAELens: JumpReLU, every form of its penalty", "[training][peers]") {
  const auto config = saelens_config();
  const sae::PreActivationLoss dead_up{.coefficient = 0.05};
  auto warm = config;
  warm.sparsity_warmup = 3;
  replay("saelens_jumprelu_step", saelens, sae::JumpReLU{.bandwidth = 0.4}, warm,
         sae::Objective{sae::L0Penalty{.coefficient = 0.3}, dead_up});
  replay("saelens_jumprelu_step_constant", saelens, sae::JumpReLU{.bandwidth = 0.4}, config,
         sae::Objective{sae::L0Penalty{.coefficient = 0.3}, dead_up});
  replay("saelens_jumprelu_quadratic", saelens, sae::JumpReLU{.bandwidth = 0.4}, config,
         sae::Objective{sae::L0Penalty{.coefficient = 0.05, .form = sae::L0Form::quadratic, .target = 8}});
  replay("saelens_jumprelu_tanh", saelens, sae::JumpReLU{.bandwidth = 1}, config,
         sae::Objective{sae::TanhPenalty{.coefficient = 0.5, .scale = 2}, dead_up});
  replay("saelens_jumprelu_step_ste_input", saelens, sae::JumpReLU{.bandwidth = 0.4, .gradient_to_input = true}, config,
         sae::Objective{sae::L0Penalty{.coefficient = 0.3}});
  replay("saelens_jumprelu_tanh_ste_input", saelens, sae::JumpReLU{.bandwidth = 1, .gradient_to_input = true}, config,
         sae::Objective{sae::TanhPenalty{.coefficient = 0.5, .scale = 2}});
}

TEST_CASE("ten steps of dictionary_learning: StandardTrainer, unit norm by projection", "[training][peers]") {
  sae::TrainerConfig config{.learning_rate = 0.01, .center = sae::Center::none};
  config.schedule = {.warmup = 3, .warmup_shape = sae::WarmupShape::from_zero, .decay = 3};
  config.sparsity_warmup = 4;
  replay("dl_standard", dl_autoencoder, sae::ReLU{}, config,
         sae::Objective{sae::L1{.coefficient = 0.6, .weighted_by_decoder_norm = false}});
}

TEST_CASE("ten steps of dictionary_learning: StandardTrainerAprilUpdate, free decoder", "[training][peers]") {
  replay("dl_standard_april", dl_autoencoder, sae::ReLU{}, saelens_config(), sae::Objective{sae::L1{.coefficient = 0.6}});
}

TEST_CASE("ten steps of dictionary_learning: TopKTrainer, geometric median, AuxK after counting", "[training][peers]") {
  sae::TrainerConfig config{.learning_rate = 0.01,
                            .clip_norm = 1.0,
                            .projection_epsilon = 1e-6,
                            .unit_norm_epsilon = std::numeric_limits<double>::epsilon(),
                            .center = sae::Center::first_batch_geometric_median};
  config.dead = {.window = 10'000'000, .after_counting = true};
  replay("dl_topk", dl_topk, sae::TopK{.k = 6}, config,
         sae::Objective{sae::AuxK{.scale_by_dead = false, .normaliser = sae::AuxKNormaliser::residual_variance}});
}
