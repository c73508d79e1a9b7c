// Ten training steps of Matryoshka in SAELens and dictionary_learning, gone again by our Trainer in double through their recipes:
// loss, gradient, every parameter and the running threshold.
#include "peer_replay.hpp"

using namespace sae_test;

TEST_CASE("ten steps of SAELens: Matryoshka, AuxK of the whole or level by level", "[training][peers]") {
  auto recipe = peer_recipe("saelens", {.activation = "matryoshka", .k = 6, .widths = {14, 28}});
  const auto follow = [&](const std::string& name, double rate) {
    recipe.activation.get<sae::BatchTopK>()->threshold_rate = rate;
    replay(name, saelens, recipe, [](const auto& trainer, const auto& want) {
      const double threshold = want.at("topk_threshold_after").template get<double>();
      REQUIRE(std::abs(running_threshold(trainer.model()) - threshold) <= 1e-9 * threshold);
    });
  };
  follow("saelens_matryoshka", 0.05);
  const sae::AuxK whole = *recipe.objective.find<sae::AuxK>();
  REQUIRE(recipe.objective.terms.at(1).get<sae::AuxK>() != nullptr);
  recipe.objective.terms.at(1) = sae::MatryoshkaAuxK{.widths = {14, 28}, .level = whole};
  follow("saelens_matryoshka_level_aux", 0.01);
}

TEST_CASE("ten steps of dictionary_learning: Matryoshka, errors weighted twice", "[training][peers]") {
  auto recipe = peer_recipe("dictionary_learning", {.activation = "matryoshka", .k = 6, .widths = {14, 28}});
  // Ours is the mean of the three errors. The peer weighs each by 1/3 and takes the mean of that.
  const PeerRun run("dl_matryoshka");
  PeerModel<sae::AnyActivation> model(run.d_in, run.latents, recipe.activation);
  load_peer(run, saelens, "init", model.parameters());
  const sae::Matrix<double> x = run.x.topRows(run.rows), f = model.encode_dense(x);
  double mean = 0;
  for (const Index width : {14, 28, 56})
    mean += ((f.leftCols(width) * model.W_dec().topRows(width)).rowwise() + model.b_dec().row(0) - x).squaredNorm() /
            static_cast<double>(3 * run.rows);
  CHECK(model.loss(x, recipe.objective).total == Approx(mean).epsilon(1e-12));
  recipe.objective.find<sae::Matryoshka>()->scale = 1.0 / 9;
  CHECK(model.loss(x, recipe.objective).total == Approx(mean / 3).epsilon(1e-12));
  replay("dl_matryoshka", saelens, recipe);
  *recipe.objective.find<sae::Matryoshka>() = {.widths = {14, 28}, .weights = {1, 2, 3}, .scale = 1.0 / 3};
  recipe.objective.find<sae::AuxK>()->coefficient = 0;
  replay("dl_matryoshka_weights", saelens, recipe);
}
