// CrossLayerTrainer: its steps are the model's gradients through the optimizer, its scales fold away, it learns, it refuses.
#include <sae/activations/any_activation.hpp>
#include <sae/activations/glu.hpp>
#include <sae/data/indexed_source.hpp>
#include <sae/training/any_objective.hpp>
#include <sae/training/cross_layer_trainer.hpp>

#include <cmath>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "catch_compat.hpp"
#include "reference.hpp"

namespace {

using sae::Index;
using namespace sae_test;
template <class Activation>
using Model = sae::CrossLayerTranscoder<Activation, double>;

constexpr Index L = 3, d = 4, F = 20;

/// Inputs whose size grows from layer to layer, and targets that read the layers up to their own.
Dense data(Index rows) {
  Dense inputs = random_rows(rows, L * d, 5), causal = random_rows(L * d, L * d, 6, 0.3);
  for (Index l = 0; l < L; ++l) {
    for (Index m = 0; m < l; ++m) causal.block(l * d, m * d, d, d).setZero();
    inputs.middleCols(l * d, d) *= std::pow(5.0, static_cast<double>(l));
    causal.middleRows(l * d, d) /= std::pow(5.0, static_cast<double>(l));
  }
  Dense out(rows, 2 * L * d);
  out.leftCols(L * d) = inputs;
  out.rightCols(L * d) = ((inputs * causal).cwiseMax(0.0)).array() + 1;
  for (Index l = 0; l < L; ++l) out.middleCols((L + l) * d, d) *= std::pow(3.0, static_cast<double>(l));
  return out;
}
sae::TrainerConfig plain(Index steps, Index batch) {
  return {.steps = steps,
          .batch = batch,
          .learning_rate = 0.01,
          .center = sae::Center::none,
          .normalisation = sae::Normalisation::none};
}

}  // namespace

TEST_CASE("steps of a cross-layer transcoder are its gradients through the optimizer", "[training][cross_layer]") {
  const Dense rows = data(48);
  const sae::Objective objective{sae::L1{.coefficient = 0.02}};
  for (const auto& [clip, averages] : {std::pair{0.0, false}, std::pair{0.5, false}, std::pair{0.0, true}}) {
    CAPTURE(clip, averages);
    Model<sae::ReLU> model(L, d, F, {}, {.skip = averages, .decoder_norm = 0.3, .seed = 2}), twin = model;
    auto config = plain(3, 16);
    config.schedule.decay = 2;
    config.sparsity_warmup = 3;
    config.clip_norm = clip;
    if (averages) config.optimizer = sae::ScheduleFree{.sign = false};
    sae::Threads threads(2);
    sae::CrossLayerTrainer trainer(model, config, objective, threads);
    sae::MatrixSource<double> source(rows, {.shuffle = false});
    std::vector<sae::StepReport> reports;
    REQUIRE(trainer.fit(source, [&](const sae::StepReport& report) { reports.push_back(report); }) == sae::FitStatus::finished);
    REQUIRE(reports.size() == 3);

    sae::OptimizerState<double> state(config.optimizer);
    Model<sae::ReLU>::Parameters::visit([&](auto name, const auto& w) { state.add(name, w.rows(), w.cols()); },
                                        twin.parameters());
    for (Index t = 0; t < 3; ++t) {
      CAPTURE(t);
      const Dense x = rows.middleRows(16 * t, 16).leftCols(L * d), y = rows.middleRows(16 * t, 16).rightCols(L * d);
      Model<sae::ReLU>::Workspace<sae::Objective<sae::L1>> workspace;
      workspace.layers.resize(L);
      for (auto& layer : workspace.layers) layer.step.sparsity_scale = sae::sparsity_warmup_factor(t, 3);
      auto gradient = twin.gradient(x, y, objective, workspace, threads);
      const auto& report = reports[static_cast<std::size_t>(t)];
      CHECK(report.loss == Approx(gradient.loss.total).epsilon(1e-12));
      const Dense centred = y.rowwise() - y.colwise().mean();
      CHECK(report.explained_variance ==
            Approx(1 - gradient.loss.reconstruction / (centred.squaredNorm() / 16)).epsilon(1e-10));
      double squares = 0;
      Model<sae::ReLU>::Parameters::visit([&](auto, const auto& g) { squares += g.map().squaredNorm(); }, gradient.parameters);
      const double factor = clip > 0 ? std::min(1.0, clip / (std::sqrt(squares) + 1e-6)) : 1.0;
      if (clip > 0) CHECK(report.gradient_norm == Approx(std::sqrt(squares)).epsilon(1e-12));
      state.begin_step(t + 1, 0.01 * config.schedule.factor(t, 3));
      Model<sae::ReLU>::Parameters::visit(
          [&](auto name, auto& w, auto& g) {
            g.map() *= factor;
            state.update(state.slots(name), w, g, threads);
          },
          twin.parameters(), gradient.parameters);
    }
    if (averages)  // what a training ends with
      Model<sae::ReLU>::Parameters::visit([&](auto name, auto& w) { state.average(name, w); }, twin.parameters());
    Model<sae::ReLU>::Parameters::visit(
        [](std::string_view name, const auto& a, const auto& b) {
          CAPTURE(name);
          CHECK(largest_difference(a.map(), b.map()) <= 1e-12);
        },
        model.parameters(), twin.parameters());
  }
}

TEST_CASE("a cross-layer transcoder learns on layers of any size and reads them as they are", "[training][cross_layer]") {
  const Dense rows = data(512);
  const Dense x = rows.leftCols(L * d), y = rows.rightCols(L * d);
  const Dense centred = y.rowwise() - y.colwise().mean();
  for (const auto normalisation : {sae::Normalisation::mean_square, sae::Normalisation::sqrt_d}) {
    std::vector<Dense> results;
    for (const int count : {1, 3}) {
      sae::Threads threads(count);
      Model<sae::AnyActivation> model(L, d, F, sae::TopK{.k = 6}, {.seed = 4});
      auto config = plain(400, 64);
      config.center = sae::Center::mean;
      config.normalisation = normalisation;
      config.dead.window = 256;
      sae::CrossLayerTrainer trainer(model, config, sae::AnyObjective{sae::AuxK{}}, threads);
      sae::MatrixSource<double> source(rows, {.seed = 1});
      sae::StepReport first, last;
      trainer.fit(source, [&](const sae::StepReport& report) { (report.step == 1 ? first : last) = report; });
      CHECK(last.explained_variance > 0.8);
      CHECK(last.l0 <= 6 * L);
      CHECK(last.l0 > L);
      // In units of the rows, every layer is predicted, the smallest as well as the largest.
      const Dense error = model.predict(x) - y;
      for (Index l = 0; l < L; ++l) {
        CAPTURE(l);
        CHECK(error.middleCols(l * d, d).squaredNorm() < 0.35 * centred.middleCols(l * d, d).squaredNorm());
      }
      for (const double scale : trainer.input_scales()) CHECK(scale == 1);
      results.push_back(model.predict(x));
    }
    CHECK(results[0] == results[1]);
  }
}

TEST_CASE("the scales of a cross-layer transcoder fold away, codes and all", "[training][cross_layer]") {
  const Dense x = random_rows(9, L * d, 9);
  const std::vector<double> in{2, 0.5, 4}, out{0.25, 3, 0.1};
  const auto check = [&](auto model) {
    CAPTURE(std::string(model.activation().name));
    model.parameters().b_dec().map() = random_rows(1, L * d, 8);
    Dense scaled = x;
    for (Index l = 0; l < L; ++l) scaled.middleCols(l * d, d) *= in[static_cast<std::size_t>(l)];
    const auto codes = model.encode(scaled);
    Dense want = model.predict(scaled);
    for (Index l = 0; l < L; ++l) want.middleCols(l * d, d) /= out[static_cast<std::size_t>(l)];
    model.fold_scales(in, out);
    CHECK(largest_difference(model.predict(x), want) <= 1e-13 * largest_magnitude(want));
    const auto folded = model.encode(x);
    for (std::size_t l = 0; l < L; ++l) {
      REQUIRE(codes[l].size() > 0);
      CHECK(mask_of(folded[l]) == mask_of(codes[l]));
      CHECK(largest_difference(folded[l].dense(), codes[l].dense()) <= 1e-13);
    }
  };
  Model<sae::JumpReLU> model(L, d, F, {.threshold = 0.3}, {.decoder_norm = 0.5, .seed = 3});
  check(model);
  Model<sae::Glu<sae::TopK>> gated(L, d, F, {.inner = {.k = 3}}, {.decoder_norm = 0.5, .seed = 3});
  for (auto& layer : gated.parameters().layers) layer.activation.W_glu.map() = random_rows(F, d, 10);
  check(gated);
  CHECK_THROWS_WITH(model.fold_scales(std::vector<double>{1, 1}, out), Catch::Contains("the model has 3 layers"));
  CHECK_THROWS_WITH(model.fold_scales(std::vector<double>{1, 0, 1}, out),
                    Catch::Contains("the scale 0 is not a positive finite number"));
  Model<sae::TopK> ranked(L, d, F, {.k = 2, .rank_by_decoder_norm = true}, {.decoder_norm = 1});
  CHECK_THROWS_WITH(ranked.fold_scales(in, out), Catch::Contains("ranks by the norms of decoder rows"));
}

TEST_CASE("what a cross-layer transcoder cannot be trained with is refused by name", "[training][cross_layer]") {
  Model<sae::ReLU> model(L, d, F);
  const auto refused = [&](const sae::TrainerConfig& config, const std::string& text) {
    CAPTURE(text);
    CHECK_THROWS_WITH(sae::CrossLayerTrainer(model, config), Catch::Contains(text));
  };
  auto config = plain(5, 8);
  config.ema = 0.9;
  refused(config, "CrossLayerTrainer: ema is not for a cross-layer transcoder");
  config = plain(5, 8);
  config.decoder = sae::DecoderNorm::unit;
  refused(config, "decoder = unit");
  config = plain(5, 8);
  config.frozen.encoder = true;
  refused(config, "frozen");
  config = plain(5, 8);
  config.center = sae::Center::geometric_median;
  refused(config, "a center other than none and mean");
  config = plain(5, 0);
  refused(config, "batch = 0");
  CHECK_THROWS_WITH(sae::CrossLayerTrainer(model, plain(5, 8),
                                           sae::Objective{sae::PAnneal{.updates = 2, .anneal_start = 1, .anneal_end = 4}}),
                    Catch::Contains("follows the codes of one model"));
  Model<sae::TopK> ranked(L, d, F, {.k = 2, .rank_by_decoder_norm = true}, {.decoder_norm = 1});
  auto scaled = plain(5, 8);
  scaled.normalisation = sae::Normalisation::mean_square;
  CHECK_THROWS_WITH(sae::CrossLayerTrainer(ranked, scaled), Catch::Contains("normalisation = none is legal"));

  sae::CrossLayerTrainer trainer(model, plain(5, 8));
  sae::MatrixSource<double> narrow(Dense::Ones(20, 2 * L * d - 1));
  CHECK_THROWS_WITH(trainer.fit(narrow),
                    Catch::Contains("the model needs inputs and targets of 3 layers of 4 side by side, 24"));
  Dense bad = data(20);
  bad(11, 2) = std::numeric_limits<double>::quiet_NaN();
  sae::MatrixSource<double> broken(bad, {.shuffle = false});
  CHECK_THROWS_WITH(trainer.fit(broken), Catch::Contains("row 11 of the stream holds a number that is not finite"));
  auto wild = plain(50, 8);
  wild.learning_rate = 1e200;
  Model<sae::ReLU> other(L, d, F, {}, {.decoder_norm = 1});
  sae::CrossLayerTrainer diverging(other, wild);
  sae::MatrixSource<double> source(data(64));
  CHECK_THROWS_AS(diverging.fit(source), sae::DivergedError);
}

namespace {

sae::TrainerConfig scaled(Index steps, Index batch) {
  auto config = plain(steps, batch);
  config.center = sae::Center::mean;
  config.normalisation = sae::Normalisation::mean_square;
  return config;
}
Dense parameters_of(const Model<sae::TopK>& model) {
  Dense out(1, 0);
  Model<sae::TopK>::Parameters::visit(
      [&](std::string_view, const auto& w) {
        out.conservativeResize(1, out.cols() + w.size());
        out.rightCols(w.size()) = Eigen::Map<const Dense>(w.data(), 1, w.size());
      },
      model.parameters());
  return out;
}

}  // namespace

TEST_CASE("callbacks of a cross-layer training see the report, or the trainer and the report", "[training][cross_layer]") {
  Model<sae::TopK> model(L, d, F, {.k = 3});
  sae::CrossLayerTrainer trainer(model, plain(10, 8));
  sae::MatrixSource<double> source(data(100));
  std::string order;
  const auto with_trainer = [&](auto& self, const sae::StepReport& report) {
    CHECK(&self == &trainer);
    CHECK(self.fitting());
    CHECK(self.step() == report.step);
    order += 't';
    return report.step == 3;
  };
  const auto alone = [&](const sae::StepReport&) { order += 'a'; };
  CHECK_FALSE(trainer.fitting());
  CHECK(trainer.fit(source, with_trainer, alone) == sae::FitStatus::stopped);
  CHECK(order == "tatata");  // all of them, also behind the one that asks to stop
  CHECK(trainer.step() == 3);
  CHECK_FALSE(trainer.fitting());
}

TEST_CASE("a cross-layer training that an exception ended goes on where it was", "[training][cross_layer]") {
  const Dense rows = data(300);
  const auto train = [&](Index fails_at) {
    Model<sae::TopK> model(L, d, F, {.k = 3}, {.seed = 4});
    sae::CrossLayerTrainer trainer(model, scaled(20, 16));
    sae::MatrixSource<double> source(rows, {.seed = 1});
    struct Failed {};
    const auto fail = [&](const sae::StepReport& report) {
      if (report.step == fails_at) throw Failed();
    };
    if (fails_at > 0) {
      CHECK_THROWS_AS(trainer.fit(source, fail), Failed);
      CHECK(trainer.step() == fails_at);
      for (const double scale : trainer.target_scales()) CHECK(scale != 1);  // not folded yet
    }
    CHECK(trainer.fit(source) == sae::FitStatus::finished);
    CHECK(trainer.step() == 20);
    CHECK_THROWS_WITH(trainer.fit(source), Catch::Contains("fit was run to its end already"));
    CHECK_THROWS_WITH(trainer.finish(), Catch::Contains("the run has ended already"));
    return parameters_of(model);
  };
  const Dense want = train(0);
  for (const Index fails_at : {1, 7, 20}) CHECK(train(fails_at) == want);
}

TEST_CASE("a cross-layer training of one's own steps ends as fit does", "[training][cross_layer]") {
  const Dense rows = data(64);
  Model<sae::TopK> model(L, d, F, {.k = 3}, {.seed = 4}), twin = model;
  sae::MatrixSource<double> source(rows, {.shuffle = false}), again(rows, {.shuffle = false});
  sae::CrossLayerTrainer fitted(model, scaled(4, 16)), stepped(twin, scaled(4, 16));
  fitted.fit(source);
  stepped.prepare(again);
  for (Index t = 0; t < 4; ++t) stepped.train_step(rows.middleRows(16 * t, 16));
  CHECK_THROWS_WITH(stepped.prepare(again), Catch::Contains("prepare comes before the first step, 4 are done"));
  stepped.finish();
  CHECK(parameters_of(twin) == parameters_of(model));
}

TEST_CASE("a weight that is not finite ends a cross-layer training before its scales are folded", "[training][cross_layer]") {
  Model<sae::TopK> model(L, d, F, {.k = 3}, {.seed = 4});
  sae::CrossLayerTrainer trainer(model, scaled(5, 16));
  sae::MatrixSource<double> source(data(100));
  double kept = 0;
  const auto spoil = [&](const sae::StepReport& report) {
    if (report.step < 5) return;
    kept = std::exchange(model.parameters().layers[1].W_dec[3], std::numeric_limits<double>::infinity());
  };
  CHECK_THROWS_WITH(trainer.fit(source, spoil), Catch::Contains("at step 5 layer1.W_dec holds a number that is not finite"));
  for (const double scale : trainer.target_scales()) CHECK(scale != 1);
  model.parameters().layers[1].W_dec[3] = kept;
  trainer.finish();
  for (const double scale : trainer.target_scales()) CHECK(scale == 1);
}
