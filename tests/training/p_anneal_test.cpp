// p-annealing: the schedule and the coefficient by hand, through the trainer, and through a checkpoint.
#include <sae/data/indexed_source.hpp>
#include <sae/formats/checkpoint.hpp>
#include <sae/training/p_anneal.hpp>
#include <sae/training/trainer.hpp>

#include <cmath>
#include <limits>
#include <vector>

#include "catch_compat.hpp"
#include "gradient_check.hpp"
#include "temp_folder.hpp"

namespace {

using sae::Index;
using sae::LpForm;
using sae::PAnneal;
using sae_test::Dense;
using Model = sae::SparseAutoencoder<2, 2, sae::ReLU, double>;
using Workspace = Model::Workspace<sae::Objective<PAnneal>>;

// f = x: the codes of a step are what the test says.
Model identity() {
  Model model({}, {.subtract_decoder_bias = false});
  model.W_enc().setIdentity();
  model.W_dec() << 2, 0, 0, 1;
  return model;
}
void step_with(const Model& model, PAnneal& term, Workspace& workspace, double a, double b) {
  Dense x(1, 2);
  x << a, b;
  model.gradient(x, sae::Objective{term}, workspace);
  term.advance(std::as_const(workspace.step));
}

}  // namespace

TEST_CASE("PAnneal by hand: when p changes, and what the coefficient becomes", "[training][p_anneal]") {
  const Model model = identity();
  PAnneal term{.coefficient = 3, .p_start = 1, .p_end = 0.25, .updates = 4, .anneal_start = 1, .anneal_end = 8, .window = 2};
  term.check(2, 2);
  Workspace workspace;
  // Changes after steps 1, 1 + 7/3 = 3, 1 + 14/3 = 5, 8; p = 1, 0.75, 0.5, 0.25.
  const double p[] = {1, 1, 1, 1, 0.75, 0.75, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25};
  const auto power = [](double a, double b, double q) { return std::pow(a, q) + std::pow(b, q); };
  std::vector<double> alpha;
  double expected = 3;
  for (int t = 0; t < 12; ++t) {
    CAPTURE(t);
    CHECK(term.p() == Approx(p[t]).epsilon(1e-15));
    alpha.push_back(term.alpha());
    const double a = 1 + t, b = 0.5 * t;
    step_with(model, term, workspace, a, b);
    CHECK(workspace.step.loss.terms[0].second == Approx(alpha.back() * power(a, b, p[t])).epsilon(1e-14));
    if (t == 3) expected *= (power(3, 1, 1) + power(4, 1.5, 1)) / (power(3, 1, 0.75) + power(4, 1.5, 0.75));
    if (t == 5) expected *= (power(5, 2, 0.75) + power(6, 2.5, 0.75)) / (power(5, 2, 0.5) + power(6, 2.5, 0.5));
    if (t == 8) expected *= (power(8, 3.5, 0.5) + power(9, 4, 0.5)) / (power(8, 3.5, 0.25) + power(9, 4, 0.25));
    CHECK(term.alpha() == Approx(expected).epsilon(1e-14));
  }
  CHECK(expected > 3);
}

TEST_CASE("PAnneal: norm form, decoder norms, a window that holds fewer steps than it may", "[training][p_anneal]") {
  const Model model = identity();
  PAnneal term{.coefficient = 1,
               .form = LpForm::norm,
               .weighted_by_decoder_norm = true,
               .p_start = 2,
               .p_end = 0.5,
               .updates = 2,
               .anneal_end = 1,
               .window = 10};
  Workspace workspace;
  step_with(model, term, workspace, 1.5, 4);  // u = 3, 4
  CHECK(workspace.step.loss.terms[0].second == Approx(5));
  step_with(model, term, workspace, 4.5, 16);  // u = 9, 16: (9 + 16, (3 + 4)^2); before step 0 was past nothing is remembered
  CHECK(term.alpha() == Approx(std::sqrt(81.0 + 256) / 49));
  CHECK(term.p() == 0.5);
}

TEST_CASE("PAnneal: without active latents the coefficient stays", "[training][p_anneal]") {
  const Model model = identity();
  PAnneal term{.coefficient = 1, .updates = 2, .anneal_end = 1};
  Workspace workspace;
  step_with(model, term, workspace, -1, -1);
  step_with(model, term, workspace, -1, -1);
  CHECK(term.alpha() == 1);
  CHECK(term.p() == Approx(0.2));
}

TEST_CASE("PAnneal: a training that was cut off and resumed ends with the same bytes", "[training][p_anneal]") {
  using Sae = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::ReLU, float>;
  const sae::Matrix<float> x = sae_test::random_rows(320, 6, 3).cast<float>();
  const TempFolder folder;
  const auto file = folder / "checkpoint.safetensors";
  const PAnneal term{.coefficient = 0.05, .updates = 3, .anneal_start = 3, .anneal_end = 15, .window = 4};
  const auto run = [&](Index stop, bool resume) {
    Sae model(6, 24);
    sae::MatrixSource<float> source(x, {});
    sae::Trainer trainer(model, {.steps = 20, .batch = 16}, sae::Objective{term});
    if (resume) sae::load_checkpoint(trainer, file);
    std::vector<double> alphas;
    struct Cut {};
    try {
      trainer.fit(source, [&](auto& t, const sae::StepReport& report) {
        alphas.push_back(std::get<0>(t.objective().terms).alpha());
        if (report.step != stop) return;
        sae::save_checkpoint(t, file);
        throw Cut();
      });
    } catch (const Cut&) {}
    return std::pair{std::move(model), alphas};
  };
  const auto [whole, alphas] = run(0, false);
  CHECK(alphas.front() == 0.05);
  CHECK(alphas[9] != 0.05);
  CHECK(alphas[15] != alphas[9]);
  for (const Index stop : {2, 7, 11}) {  // before anything, within a window, between two changes
    CAPTURE(stop);
    run(stop, false);
    const auto [resumed, later] = run(0, true);
    CHECK(later == std::vector<double>(alphas.begin() + stop, alphas.end()));
    CHECK(resumed.parameters().W_dec == whole.parameters().W_dec);
    CHECK(resumed.parameters().W_enc == whole.parameters().W_enc);
  }
}

TEST_CASE("PAnneal: settings that cannot be are refused", "[training][p_anneal]") {
  const PAnneal good{.updates = 3, .anneal_start = 10, .anneal_end = 12};
  CHECK_NOTHROW(good.check(4, 8));
  const auto with = [&](auto change) {
    PAnneal term = good;
    change(term);
    return term;
  };
  CHECK_THROWS_WITH(with([](PAnneal& t) { t.p_end = 0; }).check(4, 8),
                    "PAnneal: p_end = 0 is not in (0, 1]; p = 0 counts every latent, active or not, and the norm divides by p");
  CHECK_THROWS_AS(with([](PAnneal& t) { t.p_end = 1.1; }).check(4, 8), sae::ValueError);
  CHECK_THROWS_WITH(with([](PAnneal& t) { t.coefficient = -1; }).check(4, 8),
                    "PAnneal: coefficient = -1 is not in [0, infinity)");
  CHECK_THROWS_WITH(with([](PAnneal& t) { t.p_start = 0; }).check(4, 8), "PAnneal: p_start = 0 is not in (0, infinity)");
  CHECK_THROWS_WITH(with([](PAnneal& t) { t.updates = 1; }).check(4, 8), "PAnneal: updates = 1 are fewer than 2");
  CHECK_THROWS_WITH(with([](PAnneal& t) { t.anneal_start = -1; }).check(4, 8),
                    "PAnneal: anneal_start = -1 is not in [0, infinity)");
  CHECK_THROWS_WITH(
      with([](PAnneal& t) { t.anneal_end = 11; }).check(4, 8),
      "PAnneal: anneal_end = 11 is below anneal_start + updates - 1 = 12; each change of p takes a step of its own");
  CHECK_THROWS_WITH(with([](PAnneal& t) { t.window = 0; }).check(4, 8), "PAnneal: window = 0 is below 1 step");
}
