#include <sae/data/indexed_source.hpp>
#include <sae/training/recipes.hpp>

#include <cmath>
#include <string>
#include <vector>

#include "catch_compat.hpp"
#include "reference.hpp"

namespace {

using sae::Index;
using sae::RecipeProblem;

RecipeProblem problem(std::string activation = {}) {
  return {.d_in = 12, .latents = 48, .steps = 40, .batch = 64, .activation = std::move(activation), .k = 4, .sparsity = 1e-3};
}

}  // namespace

TEST_CASE("recipes: every activation of every name trains, lowers its loss and gives the same bytes again",
          "[training][recipes]") {
  const sae::Matrix<float> rows = sae_test::random_rows(640, 12, 3).cast<float>();
  const auto check = [&](std::string_view name, std::string_view activation) {
    CAPTURE(std::string(name), std::string(activation));
    const sae::Recipe recipe = sae::recipe(name, problem(std::string(activation)));
    CHECK(recipe.name == name);
    CHECK_FALSE(recipe.source.empty());
    const auto train = [&](int threads) {
      sae::Threads workers(threads);
      auto model = sae::make_model(recipe, 12, 48, 7);
      sae::TrainerConfig config = recipe.config;
      config.learning_rate = 3e-3;  // defaults of long runs move little in forty steps
      sae::Trainer trainer(model, config, recipe.objective, workers);
      sae::MatrixSource<float> source(rows, {.seed = 5});
      std::vector<double> losses;
      trainer.fit(source, [&](const sae::StepReport& report) { losses.push_back(report.reconstruction); });
      CHECK(losses.size() == 40);
      CHECK(losses.back() < 0.9 * losses.front());
      return model;
    };
    const auto one = train(1), two = train(2);
    CHECK(one.parameters().W_dec == two.parameters().W_dec);
    CHECK(one.parameters().W_enc == two.parameters().W_enc);
  };
  for (const auto name : sae::recipe_names()) {
    const auto activations = sae::recipe_activations(name);
    REQUIRE_FALSE(activations.empty());
    for (const auto activation : activations) check(name, activation);
    CHECK(sae::recipe(name, problem()).activation.index() ==
          sae::recipe(name, problem(std::string(activations[0]))).activation.index());
  }
  CHECK(sae::recipe_activations("sparsify") == std::vector<std::string_view>{"topk", "groupmax"});
  CHECK_THROWS_WITH(sae::recipe_activations("sealens"), Catch::Contains("there is no recipe \"sealens\"; these are: default"));
}

TEST_CASE("recipes: the settings that their sources name", "[training][recipes]") {
  const sae::Recipe saelens = sae::recipe("saelens", problem("batchtopk"));
  CHECK(saelens.config.learning_rate == 3e-4);
  CHECK(saelens.config.clip_norm == 1);
  CHECK(saelens.config.decoder == sae::DecoderNorm::free);
  CHECK(saelens.initial_decoder_norm == 0.1);
  REQUIRE(saelens.activation.get<sae::BatchTopK>() != nullptr);
  CHECK(saelens.activation.get<sae::BatchTopK>()->threshold_average == sae::ThresholdAverage::from_zero);
  CHECK(saelens.activation.get<sae::BatchTopK>()->rank_by_decoder_norm);

  sae::Recipe levels = sae::recipe("dictionary_learning", problem("matryoshka"));
  auto* const matryoshka = levels.objective.find<sae::Matryoshka>();
  REQUIRE(matryoshka != nullptr);
  CHECK(matryoshka->widths == std::vector<Index>{1, 4, 10, 22, 48});  // fractions 1/32, 1/16, 1/8, 1/4, 17/32, added up
  CHECK(matryoshka->scale == Approx(1.0 / 5));                        // a mean over levels
  CHECK(levels.config.learning_rate == Approx(2e-4 / std::sqrt(48.0 / 16384)));
  CHECK(sae::recipe("saelens", problem("matryoshka")).objective.find<sae::Matryoshka>()->scale == 1);

  // dictionary_learning's AutoEncoder starts at norm 0.1 on both sides, and has a unit decoder after the first step.
  const sae::Recipe standard = sae::recipe("dictionary_learning", problem("relu"));
  CHECK(standard.initial_decoder_norm == 0.1);
  CHECK(standard.encoder_scale == 1);
  CHECK(standard.config.decoder == sae::DecoderNorm::automatic);

  // A latent of OpenAI's code fires above 1e-3, and counts as dead after 10 million rows.
  const sae::Recipe openai = sae::recipe("openai", problem());
  CHECK(openai.config.dead.least_value == 1e-3);
  CHECK(openai.config.dead.window == 10'000'000);

  // L1 summed over the batch: B times the mean's coefficient.
  sae::Recipe textbook = sae::recipe("textbook", {.d_in = 12, .latents = 48, .steps = 40, .batch = 64, .sparsity = 0.5});
  REQUIRE(textbook.objective.find<sae::L1>() != nullptr);
  CHECK(textbook.objective.find<sae::L1>()->coefficient == 32);
  CHECK_FALSE(textbook.subtract_decoder_bias);

  const sae::Recipe fractional =
      sae::recipe("saelens", {.d_in = 12, .latents = 48, .steps = 40, .activation = "batchtopk", .k = 4.5});
  CHECK(fractional.activation.get<sae::BatchTopK>()->k == 4.5);
}

TEST_CASE("recipes: what they refuse, in a sentence", "[training][recipes]") {
  CHECK_THROWS_WITH(sae::recipe("sealens", problem()),
                    Catch::Contains("there is no recipe \"sealens\"; these are: default, saelens, dictionary_learning"));
  CHECK_THROWS_WITH(sae::recipe("openai", problem("gated")),
                    Catch::Contains("recipe openai: activation \"gated\" is none of its own; these are: topk"));
  CHECK_THROWS_WITH(sae::recipe("saelens", {.d_in = 12, .latents = 48, .steps = 40, .activation = "topk", .k = 4.5}),
                    Catch::Contains("recipe saelens: k = 4.5 is not a whole number"));
  CHECK_THROWS_WITH(sae::recipe("saelens", {.d_in = 12, .latents = 48, .steps = 40, .activation = "topk", .k = 49}),
                    Catch::Contains("TopK: k = 49 is not in [1, 48]"));
  CHECK_THROWS_WITH(sae::recipe("saelens", {.d_in = 12, .latents = 48, .steps = 0}), Catch::Contains("must all be positive"));
  CHECK_THROWS_WITH(
      sae::recipe("saelens", {.d_in = 12, .latents = 48, .steps = 40, .activation = "matryoshka", .k = 4, .widths = {8, 8}}),
      Catch::Contains("widths increase strictly"));
}
