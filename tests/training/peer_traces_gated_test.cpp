// Ten training steps of SAELens and dictionary_learning, gone again by our Trainer in double through their recipes: Gated,
// the Lp family, p-annealing. Loss, gradient and every parameter. What rests on a defect of a peer is reproduced by a term of this file.
#include <cmath>
#include <string>

#include "catch_compat.hpp"
#include "peer_replay.hpp"

namespace {

using sae::Index;
using namespace sae_test;

// coefficient mean_b sum_i f |d_i|^2: what dictionary_learning's April trainer charges an AutoEncoderNew, whose codes are multiplied
// by the decoder norms already when its loss multiplies by them.
struct NormsTwice {
  double coefficient = 1;
  static constexpr std::string_view name = "norms_twice";
  void check(Index, Index) const {}
  bool needs_decoder_norms() const { return true; }
  template <class Step>
  double apply(Step& step, sae::NoSelection&, sae::Threads&) const {
    const double scale = coefficient / static_cast<double>(step.rows());
    const auto& codes = step.main.entries.codes;
    double sum = 0;
    for (Index e = 0; e < codes.size(); ++e) {
      const Index i = codes.latent(e);
      const double norm = step.decoder_norms[i];
      sum += scale * codes.value(e) * norm * norm;
      if (!step.wants_gradient) continue;
      step.main.df[static_cast<std::size_t>(e)] += scale * norm * norm;
      step.norm_gradient()[static_cast<std::size_t>(i)] += scale * codes.value(e) * 2 * norm;
    }
    return sum;
  }
};

}  // namespace

TEST_CASE("ten steps of SAELens: Gated, second reconstruction through the decoder, L1 weighted", "[training][peers]") {
  auto recipe = peer_recipe("saelens", {.activation = "gated", .sparsity = 0.8});
  // SAELens' defect: its second reconstruction trains the decoder, which the paper holds still there, with rows of norm 1.
  auto* const term = recipe.objective.find<sae::GatedAux>();
  REQUIRE(term != nullptr);
  CHECK(term->detach_decoder);
  CHECK(recipe.config.decoder == sae::DecoderNorm::unit);
  term->detach_decoder = false;
  term->weighted_by_decoder_norm = true;
  recipe.config.decoder = sae::DecoderNorm::free;
  replay("saelens_gated", saelens_gated, recipe);
}

TEST_CASE("ten steps of dictionary_learning: Gated, second reconstruction detached", "[training][peers]") {
  replay("dl_gated", dl_gated, peer_recipe("dictionary_learning", {.activation = "gated", .sparsity = 0.6}));
}

TEST_CASE("ten steps of SAELens: standard, the p-norm with p = 0.7, b_dec not subtracted", "[training][peers]") {
  auto recipe = peer_recipe("saelens", {.activation = "relu"});
  recipe.objective = sae::AnyObjective{sae::Lp{.coefficient = 0.05, .p = 0.7, .form = sae::LpForm::norm}};
  recipe.subtract_decoder_bias = false;
  replay("saelens_standard_lp", saelens, recipe);
}

TEST_CASE("ten steps of SAELens: standard, Lp with p = 1", "[training][peers]") {
  auto recipe = peer_recipe("saelens", {.activation = "relu"});
  recipe.objective = sae::AnyObjective{sae::Lp{.coefficient = 1.5}};
  replay("saelens_standard_l1_constant", saelens, recipe);
}

TEST_CASE("ten steps of dictionary_learning: StandardTrainerAprilUpdate with AutoEncoderNew, norms counted twice",
          "[training][peers]") {
  const auto config = peer_recipe("anthropic-2024-april", {}).config;
  replay("dl_standard_april_new", dl_autoencoder_new, sae::ReLU{}, config, sae::Objective{NormsTwice{0.6}},
         sae::ModelOptions{.subtract_decoder_bias = false});

  // What L1 makes of the same model and batch: the norms once.
  const sae_test::PeerRun run("dl_standard_april_new");
  PeerModel<sae::ReLU> model(run.d_in, run.latents, {}, sae::ModelOptions{.subtract_decoder_bias = false});
  load_peer(run, dl_autoencoder_new, "init", model.parameters());
  const sae::Matrix<double> x = run.x.topRows(run.rows);
  const sae::Matrix<double> f = ((x * model.W_enc().transpose()).rowwise() + model.b_enc().row(0)).cwiseMax(0.0);
  const double once = (f * model.W_dec().rowwise().norm()).sum() / static_cast<double>(run.rows);
  const double twice = (f * model.W_dec().rowwise().squaredNorm()).sum() / static_cast<double>(run.rows);
  CHECK(model.loss(x, sae::Objective{sae::L1{.coefficient = 0.6}}).terms[0].second == Approx(0.6 * once).epsilon(1e-12));
  CHECK(run.expected.at("trace")[0].at("losses").at("sparsity_loss").get<double>() == Approx(twice).epsilon(1e-12));
  CHECK(std::abs(once - twice) > 0.1 * once);
}

TEST_CASE("ten steps of dictionary_learning: PAnnealTrainer, sum and norm", "[training][peers]") {
  const auto follow = [](const std::string& name, sae::PAnneal term) {
    auto recipe = peer_recipe("dictionary_learning", {.activation = "relu"});
    recipe.objective = sae::AnyObjective{term};
    replay(name, dl_autoencoder, recipe, [&](const auto& trainer, const auto& want) {
      const sae::PAnneal& got = *trainer.objective().terms.at(0).template get<sae::PAnneal>();
      REQUIRE(std::abs(got.p() - want.at("p_after").template get<double>()) <= 1e-15);
      const double alpha = want.at("sparsity_coeff_after").template get<double>();
      REQUIRE(std::abs(got.alpha() - alpha) <= 1e-12 * alpha);
    });
  };
  // The peer's p_end is 0, at a step after the last: what is trained with ends at 0.25.
  follow("dl_p_anneal_lpp", {.coefficient = 0.3,
                             .form = sae::LpForm::sum,
                             .p_end = 0.25,
                             .updates = 4,
                             .anneal_start = 2,
                             .anneal_end = 8,
                             .window = 3});
  follow("dl_p_anneal_lp", {.coefficient = 0.01,
                            .form = sae::LpForm::norm,
                            .p_end = 0.5,
                            .updates = 5,
                            .anneal_start = 2,
                            .anneal_end = 10,
                            .window = 3});
}
