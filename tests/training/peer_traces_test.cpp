// Ten training steps of SAELens and dictionary_learning, gone again by our Trainer in double through their recipes: loss, gradient
// and every parameter. A test changes what its fixture was made with.
#include "peer_replay.hpp"

using namespace sae_test;

TEST_CASE("ten steps of SAELens: standard, L1 weighted by decoder norms, warm-ups and decay", "[training][peers]") {
  auto recipe = peer_recipe("saelens", {.activation = "relu", .sparsity = 1.5});
  replay("saelens_standard_l1_constant", saelens, recipe);
  recipe.config.schedule = {.warmup = 3, .decay = 3};
  recipe.config.sparsity_warmup = 4;
  replay("saelens_standard_l1", saelens, recipe);
}

TEST_CASE("ten steps of SAELens: TopK ranked by decoder norm, few dead latents", "[training][peers]") {
  replay("saelens_topk_auxk_few_dead", saelens, peer_recipe("saelens", {.activation = "topk", .k = 6}));
}

TEST_CASE("ten steps of SAELens: TopK, more dead latents than AuxK takes", "[training][peers]") {
  auto recipe = peer_recipe("saelens", {.activation = "topk", .k = 6});
  recipe.activation.get<sae::TopK>()->rank_by_decoder_norm = false;
  recipe.objective.find<sae::AuxK>()->rank_by_decoder_norm = false;
  recipe.objective.find<sae::AuxK>()->coefficient = 0.5;
  recipe.config.schedule = {.warmup = 4};
  replay("saelens_topk_auxk_many_dead", saelens, recipe);
}

TEST_CASE("ten steps of SAELens: JumpReLU, every form of its penalty", "[training][peers]") {
  const auto with = [](sae::JumpReLU activation, sae::AnyTerm penalty, double dead_up) {
    auto recipe = peer_recipe("saelens", {.activation = "jumprelu"});
    recipe.activation = activation;
    recipe.objective.terms.at(0) = penalty;
    recipe.objective.find<sae::PreActivationLoss>()->coefficient = dead_up;
    return recipe;
  };
  auto step = peer_recipe("saelens", {.activation = "jumprelu", .sparsity = 0.3});
  step.activation.get<sae::JumpReLU>()->bandwidth = 0.4;
  step.objective.find<sae::PreActivationLoss>()->coefficient = 0.05;
  replay("saelens_jumprelu_step_constant", saelens, step);
  step.config.sparsity_warmup = 3;
  replay("saelens_jumprelu_step", saelens, step);
  auto quadratic = peer_recipe("saelens", {.activation = "jumprelu", .sparsity = 0.05, .target_l0 = 8});
  quadratic.activation.get<sae::JumpReLU>()->bandwidth = 0.4;
  quadratic.objective.find<sae::PreActivationLoss>()->coefficient = 0;
  replay("saelens_jumprelu_quadratic", saelens, quadratic);
  replay("saelens_jumprelu_tanh", saelens, with({.bandwidth = 1}, sae::TanhPenalty{.coefficient = 0.5, .scale = 2}, 0.05));
  replay("saelens_jumprelu_step_ste_input", saelens,
         with({.bandwidth = 0.4, .gradient_to_input = true}, sae::L0Penalty{.coefficient = 0.3}, 0));
  replay("saelens_jumprelu_tanh_ste_input", saelens,
         with({.bandwidth = 1, .gradient_to_input = true}, sae::TanhPenalty{.coefficient = 0.5, .scale = 2}, 0));
}

TEST_CASE("ten steps of dictionary_learning: StandardTrainer, unit norm by projection", "[training][peers]") {
  auto recipe = peer_recipe("dictionary_learning", {.activation = "relu", .sparsity = 0.6});
  replay("dl_standard_constant", dl_autoencoder, recipe);
  recipe.config.schedule = {.warmup = 3, .warmup_shape = sae::WarmupShape::from_zero, .decay = 3};
  recipe.config.sparsity_warmup = 4;
  replay("dl_standard", dl_autoencoder, recipe);
}

TEST_CASE("ten steps of dictionary_learning: StandardTrainerAprilUpdate, free decoder", "[training][peers]") {
  auto recipe = peer_recipe("anthropic-2024-april", {.sparsity = 0.6});
  recipe.subtract_decoder_bias = true;  // its AutoEncoder, not the post's
  replay("dl_standard_april", dl_autoencoder, recipe);
}

TEST_CASE("ten steps of dictionary_learning: TopKTrainer, geometric median, AuxK after counting", "[training][peers]") {
  replay("dl_topk", dl_topk, peer_recipe("dictionary_learning", {.activation = "topk", .k = 6}));
}
