// A training takes what memory it needs in its first steps: later ones allocate nothing.
#include <sae/training/recipes.hpp>
#include <sae/training/trainer.hpp>

#include <string>
#include <string_view>
#include <vector>

#include "allocations.hpp"
#include "catch_compat.hpp"
#include "routes.hpp"

#if SAE_COUNTS_ALLOCATIONS

namespace {

using sae::Index;

constexpr Index rows = 256, width = 64, latents = 2048;
constexpr int most = 30;

/// Trains on one batch, with weights that hardly move, so that no count grows; latents count as dead after four batches. How many
/// steps allocated before four came that did not. (What blocks of work borrow is there as often as blocks ever ran at once: with
/// several threads that is a matter of chance.)
int steps_that_allocate(sae::Recipe recipe, int threads_count) {
  recipe.config.learning_rate = 1e-30;
  recipe.config.dead.window = 4 * rows;
  auto model = sae::make_model(recipe, width, latents, 1);
  sae::Threads threads(threads_count);
  sae::Trainer trainer(model, recipe.config, recipe.objective, threads);
  sae::Random random(7);
  sae::Tensor<float> x(rows, width);
  for (Index j = 0; j < x.size(); ++j) x[j] = static_cast<float>(random.normal());
  for (int step = 0; step < 8; ++step) trainer.train_step(x);  // latents are dead by then
  int allocating = 0;
  for (int quiet = 0; quiet < 4 && allocating < most; ++quiet) {
    const sae_test::CountAllocations allocated;
    trainer.train_step(x);
    if (allocated.count() == 0) continue;
    ++allocating;
    quiet = -1;
  }
  return allocating;
}
sae::Recipe recipe_of(std::string_view activation, std::string_view name = "default") {
  sae::RecipeProblem problem{.d_in = width, .latents = latents, .steps = 100, .batch = rows};
  problem.activation = activation;
  if (activation != "relu" && activation != "gated" && activation != "jumprelu") problem.k = 8;
  return sae::recipe(name, problem);
}

}  // namespace

TEST_CASE("a counted allocation is counted", "[training][memory]") {
  const sae_test::CountAllocations allocated;
  const std::vector<int> some(100);
  CHECK(allocated.count() >= 1);
}

TEST_CASE("a step allocates nothing, whatever the activation", "[training][memory]") {
  sae_test::on_every_route([] {
    for (const auto activation : sae::recipe_activations("default"))
      for (const int threads : {1, 3}) {
        CAPTURE(std::string(activation), threads);
        CHECK(steps_that_allocate(recipe_of(activation), threads) < (threads == 1 ? 1 : most));
      }
  });
}

TEST_CASE("a step of a pursuit allocates nothing", "[training][memory]") {
  sae_test::on_every_route([] {
    if (sae::kernels::route() == sae::kernels::Route::portable) return;  // slow, and the loops are those of avx512
    sae::Recipe recipe = recipe_of("matching_pursuit");
    for (const sae::AnyActivation& activation :
         {sae::AnyActivation(sae::MatchingPursuit{.max_iterations = 24}),  // enough rounds to bound all pairs of latents
          sae::AnyActivation(sae::OrthogonalMatchingPursuit{.k = 8})})
      for (const int threads : {1, 3}) {
        recipe.activation = activation;
        CAPTURE(std::string(activation.name), threads);
        CHECK(steps_that_allocate(recipe, threads) < (threads == 1 ? 1 : most));
      }
  });
}

TEST_CASE("a step allocates nothing, whatever the optimizer", "[training][memory]") {
  for (const sae::Optimizer& optimizer :
       {sae::Optimizer(sae::Adam{.beta1 = 0}), sae::Optimizer(sae::AdamW{}), sae::Optimizer(sae::Sgd{}),
        sae::Optimizer(sae::SignSgd{}), sae::Optimizer(sae::ScheduleFree{})}) {
    sae::Recipe recipe = recipe_of("topk");
    recipe.config.optimizer = optimizer;
    CAPTURE(optimizer.index());
    CHECK(steps_that_allocate(recipe, 2) < most);
    recipe.config.clip_norm = 1;
    CHECK(steps_that_allocate(recipe, 2) < most);
  }
}

TEST_CASE("a step allocates nothing, whatever is added to the loss", "[training][memory]") {
  CHECK(steps_that_allocate(recipe_of("relu", "saelens"), 2) < most);
  CHECK(steps_that_allocate(recipe_of("gated", "saelens"), 2) < most);
  CHECK(steps_that_allocate(recipe_of("jumprelu", "saelens"), 2) < most);
  CHECK(steps_that_allocate(recipe_of("topk", "openai"), 2) < most);
  const auto check = [](std::string_view activation, const auto&... terms) {
    sae::Recipe recipe = recipe_of(activation);
    recipe.objective = sae::AnyObjective{terms...};
    CAPTURE(std::string(activation), recipe.objective.terms.size());
    CHECK(steps_that_allocate(recipe, 1) < 1);
    CHECK(steps_that_allocate(recipe, 3) < most);
  };
  check("topk", sae::AuxK{.raw_values = true, .normaliser = sae::AuxKNormaliser::residual_variance});
  check("topk", sae::AuxK{.k = 4, .rank_by_decoder_norm = true});
  check("topk", sae::MatryoshkaAuxK{.widths = {latents / 4}});
  check("topk", sae::GhostGradients{});
  check("topk", sae::HierarchicalTopK{.k = 8});
  check("topk", sae::Reanimation{});
  check("jumprelu", sae::TanhPenalty{.frequency_scale = 0.01}, sae::PreActivationLoss{.dead_only = false});
  check("jumprelu", sae::PreActivationLoss{});
}

#endif
