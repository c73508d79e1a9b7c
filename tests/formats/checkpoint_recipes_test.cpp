// Every recipe and every activation that it trains: stopped and gone on with, it ends with the bytes of a run that never stopped.
#include <sae/training/recipes.hpp>

#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "catch_compat.hpp"
#include "small_training.hpp"
#include "temp_folder.hpp"

using namespace small_training;

TEST_CASE("checkpoint: every recipe resumes to the last bit", "[formats][checkpoint][recipes]") {
  using R = Run<sae::AnyActivation, float, sae::AnyObjective, sae::MatrixSource<float>>;
  std::vector<std::pair<std::string, std::string>> all;
  for (const auto name : sae::recipe_names()) all.emplace_back(name, "");
  for (const char* activation :
       {"batchtopk", "matryoshka", "abstopk", "groupmax", "relu", "jumprelu", "gated", "matching_pursuit"})
    all.emplace_back("default", activation);
  for (const char* activation : {"batchtopk", "matryoshka", "abstopk", "relu", "jumprelu", "gated", "matching_pursuit"})
    all.emplace_back("saelens", activation);
  for (const char* activation : {"batchtopk", "matryoshka", "relu", "jumprelu", "gated"})
    all.emplace_back("dictionary_learning", activation);

  const TempFolder folder;
  for (const auto& [name, activation] : all) {
    CAPTURE(name, activation);
    sae::RecipeProblem problem{.d_in = width, .latents = latents, .steps = 24, .batch = 32, .activation = activation};
    if (activation != "relu" && activation != "jumprelu" && activation != "gated") problem.k = 2;
    const sae::Recipe recipe = sae::recipe(name, problem);
    sae::TrainerConfig config = recipe.config;
    config.learning_rate = 1e-2;
    config.dead.window = 64;
    config.dead.unit = sae::DeadUnit::tokens;
    const auto make = [&](int threads) {
      return std::make_unique<R>(threads, recipe.activation, recipe.objective, config,
                                 R::Source(some_rows<float>(150), {.seed = 5}), latents,
                                 sae::ModelOptions{.subtract_decoder_bias = recipe.subtract_decoder_bias,
                                                   .initialization = {.decoder_norm = recipe.initial_decoder_norm, .seed = 3}});
    };
    const auto straight = make(1);
    REQUIRE(straight->trainer.fit(straight->source) == sae::FitStatus::finished);
    const auto path = folder / (name + activation);
    const auto cut = make(2);
    REQUIRE_THROWS_AS(cut->trainer.fit(cut->source,
                                       [&](auto& trainer, const sae::StepReport& report) {
                                         if (report.step != 11) return;
                                         sae::save_checkpoint(trainer, path);
                                         throw Killed();
                                       }),
                      Killed);
    const auto resumed = make(1);
    sae::load_checkpoint(resumed->trainer, path);
    REQUIRE(resumed->trainer.step() == 11);
    REQUIRE(resumed->trainer.fit(resumed->source) == sae::FitStatus::finished);
    CHECK((bytes_of(resumed->model) == bytes_of(straight->model)));
  }
}
