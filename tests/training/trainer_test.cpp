#include <sae/data/indexed_source.hpp>
#include <sae/training/callbacks.hpp>
#include <sae/training/trainer.hpp>

#include <cmath>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "catch_compat.hpp"
#include "gradient_check.hpp"
#include "plain_training.hpp"

namespace {

using sae::Index;
using namespace sae_test;
using namespace plain_training;

constexpr double nan_value = std::numeric_limits<double>::quiet_NaN();

// What a source without ends of epochs gives as step t's batch.
Dense batch_of(const Dense& rows, Index step, Index batch) {
  Dense out(batch, rows.cols());
  for (Index b = 0; b < batch; ++b) out.row(b) = rows.row((step * batch + b) % rows.rows());
  return out;
}
}  // namespace

// The whole update gone by hand from the library's own gradients, which are checked elsewhere.
TEST_CASE("steps by hand: projection, clipping, Adam, unit norm", "[training][trainer]") {
  for (const auto decoder : {sae::DecoderNorm::unit, sae::DecoderNorm::free})
    for (const double clip : {0.0, 0.4}) {
      CAPTURE(static_cast<int>(decoder), clip);
      TopKModel model(width, 70, {.k = 5});
      randomise(model, 1);
      TopKModel twin = model;
      const Dense rows = data(70);
      sae::TrainerConfig config = plain(5, 20);
      config.learning_rate = 0.02;
      config.schedule = {.warmup = 2, .decay = 2};
      config.clip_norm = clip;
      config.decoder = decoder;
      config.dead.window = 1000;
      sae::Trainer trainer(model, config);
      auto source = in_order(rows);
      std::vector<double> norms;
      trainer.fit(source, [&](const sae::StepReport& report) { norms.push_back(report.gradient_norm); });

      TopKModel::Parameters m(width, 70), v(width, 70);
      for (Index t = 0; t < 5; ++t) {
        auto gradient = twin.gradient(batch_of(rows, t, 20)).parameters;
        auto& p = twin.parameters();
        if (decoder == sae::DecoderNorm::unit)
          for (Index i = 0; i < 70; ++i) {
            auto d = p.W_dec.map().row(i);
            auto g = gradient.W_dec.map().row(i);
            g = (g - g.dot(d) / d.squaredNorm() * d).eval();
          }
        if (clip > 0) {
          double squares = 0;
          TopKModel::Parameters::visit([&](std::string_view, const auto& g) { squares += g.map().squaredNorm(); }, gradient);
          CHECK(norms[static_cast<std::size_t>(t)] == Approx(std::sqrt(squares)).epsilon(1e-10));
          REQUIRE(std::sqrt(squares) > clip);
          const double factor = clip / (std::sqrt(squares) + 1e-6);
          TopKModel::Parameters::visit([&](std::string_view, auto& g) { g.map() *= factor; }, gradient);
        } else {
          CHECK(std::isnan(norms[static_cast<std::size_t>(t)]));
        }
        const double rate = 0.02 * std::vector<double>{0.5, 1, 1, 1, 0.5}[static_cast<std::size_t>(t)];
        const double steps = static_cast<double>(t + 1);
        TopKModel::Parameters::visit(
            [&](std::string_view, auto& w, const auto& g, auto& first, auto& second) {
              for (Index i = 0; i < w.size(); ++i) {
                first[i] = 0.9 * first[i] + 0.1 * g[i];
                second[i] = 0.999 * second[i] + 0.001 * g[i] * g[i];
                w[i] -= rate * (first[i] / (1 - std::pow(0.9, steps))) /
                        (std::sqrt(second[i] / (1 - std::pow(0.999, steps))) + 1e-8);
              }
            },
            p, gradient, m, v);
        if (decoder == sae::DecoderNorm::unit)
          for (Index i = 0; i < 70; ++i) p.W_dec.map().row(i).normalize();
      }
      TopKModel::Parameters::visit(
          [](std::string_view name, const auto& got, const auto& want) {
            CAPTURE(name);
            CHECK(relative_error(got.map(), want.map()) <= 1e-8);
          },
          model.parameters(), twin.parameters());
    }
}

TEST_CASE("the update in one pass is the update in two", "[training][trainer]") {
  const auto trained = [](auto activation, auto objective, double clip, sae::DecoderNorm decoder) {
    Model<decltype(activation)> model(width, 150, activation);
    sae::TrainerConfig config{.steps = 10, .batch = 60, .learning_rate = 0.01, .clip_norm = clip, .decoder = decoder};
    config.dead = {.window = 2, .unit = sae::DeadUnit::steps};
    sae::Trainer trainer(model, config, objective);
    auto source = in_order(data(300));
    CHECK(trainer.fit(source) == sae::FitStatus::finished);
    return model;
  };
  const auto check = [&](auto activation, auto objective) {
    for (const auto decoder : {sae::DecoderNorm::unit, sae::DecoderNorm::free}) {
      const auto one = trained(activation, objective, 0, decoder), two = trained(activation, objective, 1e12, decoder);
      std::decay_t<decltype(one)>::Parameters::visit(
          [](std::string_view name, const auto& a, const auto& b) {
            CAPTURE(name);
            CHECK(relative_error(a.map(), b.map()) <= 1e-9);
          },
          one.parameters(), two.parameters());
    }
  };
  check(sae::TopK{.k = 4}, sae::Objective{sae::AuxK{.coefficient = 0.5}});
  check(sae::ReLU{}, sae::Objective{sae::L1{.coefficient = 0.01}});
}

TEST_CASE("a run gives the same bytes for any number of threads", "[training][trainer][threads]") {
  const auto trained = [](auto activation, auto objective, double clip, int count) {
    Model<decltype(activation), float> model(width, 300, activation);
    sae::Threads threads(count);
    sae::TrainerConfig config{.steps = 10, .batch = 100, .learning_rate = 0.01, .clip_norm = clip};
    config.dead = {.window = 2, .unit = sae::DeadUnit::steps};
    sae::Trainer trainer(model, config, objective, threads);
    sae::MatrixSource<float> source(sae::Matrix<float>(data(500).cast<float>()));
    std::vector<double> told;
    trainer.fit(source, [&](const sae::StepReport& r) { told.insert(told.end(), {r.loss, r.l0, r.explained_variance}); });
    return std::make_pair(model.parameters(), told);
  };
  const auto check = [&](auto activation, auto objective) {
    for (const double clip : {0.0, 0.1}) {
      const auto one = trained(activation, objective, clip, 1);
      for (const int count : {2, 3, 8}) {
        CAPTURE(clip, count);
        const auto many = trained(activation, objective, clip, count);
        CHECK(same_bytes(many.first, one.first));
        CHECK(many.second == one.second);
      }
    }
  };
  check(sae::TopK{.k = 4}, sae::Objective{sae::AuxK{.coefficient = 0.5}});
  check(sae::ReLU{}, sae::Objective{sae::L1{.coefficient = 0.01}});
}

TEST_CASE("what a report says", "[training][trainer]") {
  const Dense rows = data(40);
  Model<sae::ReLU> model(width, 30);
  randomise(model, 2);
  const NaiveModel twin = naive(model);
  sae::TrainerConfig config = plain(3, 40);
  config.learning_rate = 0.5;
  config.schedule = {.warmup = 4 - 2};
  config.sparsity_warmup = 4;
  sae::Trainer trainer(model, config, sae::Objective{sae::L1{.coefficient = 2, .weighted_by_decoder_norm = false}});
  auto source = in_order(rows);
  std::vector<sae::StepReport> reports;
  trainer.fit(source, [&](const sae::StepReport& report) { reports.push_back(report); });
  REQUIRE(reports.size() == 3);
  const auto& first = reports.front();
  const Dense f = naive_codes(naive_pre_activations(twin, rows), naive_positive(naive_pre_activations(twin, rows)));
  const double reconstruction = naive_mean_square(naive_decode(twin, f) - rows);
  CHECK(first.step == 1);
  CHECK(first.steps == 3);
  CHECK(first.tokens == 40);
  CHECK(first.reconstruction == Approx(reconstruction));
  REQUIRE(first.terms.size() == 1);
  CHECK(first.terms[0].first == "l1");
  CHECK(first.terms[0].second == 0);  // s(0) = 0
  CHECK(first.loss == Approx(reconstruction));
  CHECK(first.l0 == Approx((f.array() > 0).cast<double>().sum() / 40));
  CHECK(first.explained_variance == Approx(1 - reconstruction / naive_row_variance(rows)));
  CHECK(first.learning_rate == 0.25);
  CHECK(first.sparsity_scale == 0);
  CHECK(std::isnan(first.gradient_norm));
  CHECK(reports[1].sparsity_scale == 0.25);
  CHECK(reports[1].loss == Approx(reports[1].reconstruction + reports[1].terms[0].second));
  CHECK(reports[1].terms[0].second > 0);
  CHECK(reports[2].tokens == 120);
  CHECK(reports[2].learning_rate == 0.5);
  CHECK(trainer.step() == 3);
  CHECK(trainer.tokens() == 120);
}

TEST_CASE("rows that are not finite are refused by their number", "[training][trainer]") {
  for (const double bad : {nan_value, std::numeric_limits<double>::infinity(), -std::numeric_limits<double>::infinity()}) {
    Dense rows = data(2000);
    rows(1234, 5) = bad;
    const std::string message = "Trainer: row 1234 of the stream holds a number that is not finite (NaN or infinity)";
    TopKModel model(width, 20, {.k = 3});
    sae::Trainer trainer(model, plain(100, 100));
    auto source = in_order(rows);
    CHECK_THROWS_WITH(trainer.fit(source), message);
    CHECK(trainer.step() == 12);
    CHECK(std::isfinite(model.W_enc().sum()));
    // Seen while the statistics are made, in a later piece.
    sae::Trainer with_statistics(model, {.steps = 100, .batch = 100});
    auto again = in_order(rows);
    CHECK_THROWS_WITH(with_statistics.fit(again), message);
    CHECK(with_statistics.step() == 0);
    sae::TrainerConfig median{.steps = 100, .batch = 100, .center = sae::Center::geometric_median};
    sae::Trainer with_median(model, median);
    auto third = in_order(rows);
    CHECK_THROWS_WITH(with_median.fit(third), message);
  }
}

TEST_CASE("numbers whose squares overflow are finite, the loss is not", "[training][trainer]") {
  Dense rows = data(40);
  rows(7, 2) = 1e200;
  TopKModel model(width, 20, {.k = 3});
  sae::Trainer trainer(model, plain(2, 20));
  auto source = in_order(rows);
  CHECK_THROWS_WITH(trainer.fit(source),
                    "Trainer: training diverged: at step 1 the loss is inf; a lower learning_rate may help");
}

TEST_CASE("normalisation, and the model reads raw rows at the end", "[training][trainer]") {
  const Dense rows = data(64);
  double squares = 0, norms = 0;
  for (Index b = 0; b < 64; ++b) {
    squares += rows.row(b).squaredNorm() / 64;
    norms += rows.row(b).norm() / 64;
  }
  const std::vector<std::pair<sae::Normalisation, double>> modes{
      {sae::Normalisation::none, 1.0},
      {sae::Normalisation::mean_square, 1 / std::sqrt(squares)},
      {sae::Normalisation::sqrt_d, std::sqrt(static_cast<double>(width)) / norms}};
  for (const auto& [mode, expected] : modes) {
    TopKModel model(width, 40, {.k = 4});
    sae::TrainerConfig config{.steps = 30, .batch = 32, .learning_rate = 0.01, .normalisation = mode, .statistics_rows = 64};
    sae::Trainer trainer(model, config);
    auto source = in_order(rows);
    double scale = 0;
    Dense before_fold;
    trainer.fit(source, [&](auto& t, const sae::StepReport& r) {
      scale = t.scale();
      if (r.step == r.steps) before_fold = t.model().reconstruct(scale * rows) / scale;
    });
    CAPTURE(static_cast<int>(mode));
    CHECK(scale == Approx(expected).epsilon(1e-14));
    CHECK(trainer.scale() == 1);
    CHECK(largest_difference(model.reconstruct(rows), before_fold) <= 1e-12);
    const double unexplained = naive_mean_square(model.reconstruct(rows) - rows) / naive_row_variance(rows);
    CHECK(unexplained < 0.5);  // it learns raw rows, whose variance is about 54
  }
}

TEST_CASE("where b_dec starts", "[training][trainer]") {
  const Dense rows = data(200);
  const auto start = [&](sae::Center center, sae::Normalisation normalisation, Index statistics_rows) {
    TopKModel model(width, 20, {.k = 3});
    model.parameters().b_dec.map().setConstant(0.125);
    sae::TrainerConfig config{.steps = 4, .batch = 50, .learning_rate = 1e-300, .center = center};
    config.normalisation = normalisation;
    config.statistics_rows = statistics_rows;
    sae::Trainer trainer(model, config);
    auto source = in_order(rows);
    trainer.fit(source);
    return Dense(model.b_dec());
  };
  const auto median_of = [&](Index count) {
    sae::Tensor<double> seen(count, width);
    seen.map() = rows.topRows(count);
    const auto median = sae::geometric_median(seen);
    return Dense(Eigen::Map<const Eigen::RowVectorXd>(median.data(), width));
  };
  for (const auto normalisation : {sae::Normalisation::none, sae::Normalisation::mean_square}) {
    CHECK(largest_difference(start(sae::Center::mean, normalisation, 200), Dense(rows.colwise().mean())) <= 1e-13);
    CHECK(largest_difference(start(sae::Center::mean, normalisation, 100), Dense(rows.topRows(100).colwise().mean())) <= 1e-13);
    CHECK(largest_difference(start(sae::Center::geometric_median, normalisation, 120), median_of(120)) <= 1e-13);
    // Weiszfeld stops at an absolute move: in scaled rows a little earlier or later.
    CHECK(largest_difference(start(sae::Center::first_batch_geometric_median, normalisation, 200), median_of(50)) <= 1e-3);
    // More rows asked for than the run has: those of the run.
    CHECK(largest_difference(start(sae::Center::mean, normalisation, 1'000'000), Dense(rows.colwise().mean())) <= 1e-13);
  }
  CHECK(start(sae::Center::none, sae::Normalisation::none, 200) == Dense::Constant(1, width, 0.125));
}

TEST_CASE("statistics of a source with fewer rows than asked, it starts again from its first row", "[training][trainer]") {
  for (const auto center : {sae::Center::mean, sae::Center::geometric_median}) {
    const Dense rows = data(30);
    TopKModel model(width, 20, {.k = 3});
    sae::Trainer trainer(model, {.steps = 100, .batch = 10, .learning_rate = 1e-300, .center = center});
    auto source = in_order(rows, 1);
    CHECK(trainer.fit(source) == sae::FitStatus::exhausted);
    CHECK(trainer.tokens() == 30);
    CHECK(std::abs(model.b_dec()(0, 0) + 2) < 3);
    if (center == sae::Center::mean) CHECK(largest_difference(model.b_dec(), Dense(rows.colwise().mean())) <= 1e-13);
  }
  struct Nothing {
    Index width() const { return 6; }
    Index next(sae::Tensor<double>&) { return 0; }
    sae::SourceState state() const { return {}; }
    void restore(const sae::SourceState&) {}
  } nothing;
  TopKModel model(width, 20, {.k = 3});
  sae::Trainer trainer(model, {.steps = 1, .batch = 10});
  CHECK_THROWS_WITH(trainer.fit(nothing), "Trainer: the source has no rows");
}

TEST_CASE("rows that are all zero have no scale and train to nothing", "[training][trainer]") {
  TopKModel model(width, 20, {.k = 3});
  sae::Trainer trainer(model, {.steps = 3, .batch = 10});
  auto source = in_order(Dense::Zero(50, width));
  std::vector<double> variance;
  CHECK(trainer.fit(source, [&](const sae::StepReport& r) {
    CHECK(r.loss == 0);
    variance.push_back(r.explained_variance);
  }) == sae::FitStatus::finished);
  CHECK(std::isnan(variance.front()));  // 0 / 0, and a log writes null
  CHECK(std::isfinite(model.W_enc().sum()));
}

TEST_CASE("settings that make no sense are refused in a sentence", "[training][trainer]") {
  TopKModel model(width, 20, {.k = 3});
  const auto refused = [&](sae::TrainerConfig config, const std::string& message) {
    CHECK_THROWS_WITH(sae::Trainer(model, config), message);
  };
  const auto good = [] { return sae::TrainerConfig{.steps = 10, .batch = 4}; };
  CHECK_NOTHROW(sae::Trainer(model, good()));
  refused({}, "Trainer: give either tokens (0) or steps (0)");
  refused({.tokens = 100, .steps = 10}, "Trainer: give either tokens (100) or steps (10)");
  refused({.tokens = 100}, "Trainer: tokens = 100 are fewer than one batch of 1024");
  const auto with = [&](const auto& change, const std::string& message) {
    auto config = good();
    change(config);
    refused(config, message);
  };
  with([](auto& c) { c.batch = 0; }, "Trainer: batch = 0 is below 1 row");
  with([](auto& c) { c.learning_rate = 0; }, "Trainer: learning_rate = 0 is not in (0, infinity)");
  with([](auto& c) { c.learning_rate = std::numeric_limits<double>::infinity(); },
       "Trainer: learning_rate = inf is not in (0, infinity)");
  with([](auto& c) { c.learning_rate = nan_value; }, "Trainer: learning_rate = nan is not in (0, infinity)");
  with([](auto& c) { c.schedule.warmup = 11; }, "Schedule: warmup = 11 and decay = 0 steps do not fit into 10 steps");
  with([](auto& c) { c.optimizer = sae::Adam{.beta1 = 1}; }, "Adam: beta1 = 1 is not in [0, 1)");
  with([](auto& c) { c.sparsity_warmup = -1; }, "Trainer: sparsity_warmup = -1 is not in [0, infinity)");
  with([](auto& c) { c.clip_norm = -1; }, "Trainer: clip_norm = -1 is not in [0, infinity)");
  with([](auto& c) { c.clip_norm = nan_value; }, "Trainer: clip_norm = nan is not in [0, infinity)");
  with([](auto& c) { c.clip_epsilon = -1; }, "Trainer: clip_epsilon = -1 is not in [0, infinity)");
  with([](auto& c) { c.projection_epsilon = -1; }, "Trainer: projection_epsilon = -1 is not in [0, infinity)");
  with([](auto& c) { c.unit_norm_epsilon = -1; }, "Trainer: unit_norm_epsilon = -1 is not in [0, infinity)");
  with([](auto& c) { c.statistics_rows = 0; }, "Trainer: statistics_rows = 0 is below 1");
  with([](auto& c) { c.dead.window = -1; }, "Trainer: dead.window = -1 is not in [0, infinity)");
  with([](auto& c) { c.report_every = 0; }, "Trainer: report_every = 0 is below 1");
  CHECK_THROWS_WITH(sae::Trainer(model, good(), sae::Objective{sae::AuxK{.k = 21}}),
                    "AuxK: k = 21 is not in [0, 20] (the number of latents; 0 takes D / 2)");
  CHECK_THROWS_WITH(sae::Trainer(model, good(), sae::Objective{sae::L1{.coefficient = -1}}),
                    "L1: coefficient = -1 is not in [0, infinity)");

  sae::Trainer trainer(model, good());
  sae::MatrixSource<double> narrow(Dense(Dense::Ones(10, 5)));
  CHECK_THROWS_WITH(trainer.fit(narrow), "Trainer: the source yields rows of width 5, the model reads 6");
  CHECK_THROWS_WITH(trainer.train_step(Dense(Dense::Ones(2, 5))), "Trainer: rows have 5 columns, the model reads 6");
  CHECK_THROWS_AS(trainer.train_step(Dense(0, 6)), sae::ValueError);
}

TEST_CASE("tokens and steps, the window of dead latents where none is given", "[training][trainer]") {
  TopKModel model(width, 20, {.k = 3});
  CHECK((sae::TrainerConfig{.tokens = 1000, .batch = 96}.total_steps()) == 10);
  CHECK((sae::TrainerConfig{.steps = 7, .batch = 96}.total_steps()) == 7);
  const auto window = [&](sae::TrainerConfig config) { return sae::Trainer(model, config).config().dead.window; };
  CHECK(window({.tokens = 100'000, .batch = 100}) == 10'000);
  CHECK(window({.tokens = 1'000'000'000, .batch = 100}) == 10'000'000);
  CHECK(window({.steps = 5, .batch = 1}) == 1);
  CHECK(window({.steps = 1000, .batch = 100, .dead = {.unit = sae::DeadUnit::steps}}) == 100);
  CHECK(window({.steps = 1000, .batch = 100, .dead = {.window = 3}}) == 3);
}

TEST_CASE("dead latents are told to the report, before or after this batch is counted", "[training][trainer]") {
  for (const bool after : {false, true}) {
    TopKModel model(width, 20, {.k = 1});
    for (Index i = 1; i < 20; ++i) model.parameters().b_enc[i] = -1000;  // one latent alone can fire
    model.parameters().b_enc[0] = 1000;
    sae::TrainerConfig config = plain(4, 10);
    config.learning_rate = 1e-12;
    config.dead = {.window = 20, .after_counting = after};
    sae::Trainer trainer(model, config);
    auto source = in_order(data(50));
    std::vector<Index> dead;
    trainer.fit(source, [&](const sae::StepReport& r) { dead.push_back(r.dead); });
    CHECK(dead == (after ? std::vector<Index>{0, 19, 19, 19} : std::vector<Index>{0, 0, 19, 19}));
    CHECK(trainer.dead_latents().silent()[0] == 0);
    CHECK(trainer.dead_latents().silent()[1] == 40);
  }
}

TEST_CASE("AuxK brings dead latents back", "[training][trainer]") {
  // Rows made of 3 of 60 directions each, 48 latents for them: all are needed. Half of them start too weak to ever win.
  sae::Matrix<float> directions = random_rows(60, 24, 1).cast<float>();
  directions.rowwise().normalize();
  sae::Matrix<float> rows = sae::Matrix<float>::Zero(2000, 24);
  sae::Random random(3);
  for (Index b = 0; b < rows.rows(); ++b)
    for (int n = 0; n < 3; ++n)
      rows.row(b) += static_cast<float>(random.uniform(0.5, 1.5)) * directions.row(static_cast<Index>(random.below(60)));
  const auto at_end = [&](double coefficient) {
    Model<sae::TopK, float> model(24, 48, {.k = 3});
    model.W_enc().bottomRows(24) *= 0.02f;
    sae::TrainerConfig config{.steps = 400, .batch = 128, .learning_rate = 5e-3};
    config.dead = {.window = 10, .unit = sae::DeadUnit::steps};
    sae::Trainer trainer(model, config, sae::Objective{sae::AuxK{.coefficient = coefficient}});
    sae::MatrixSource<float> source(rows);
    sae::StepReport last;
    trainer.fit(source, [&](const sae::StepReport& r) { last = r; });
    return last;
  };
  const auto without = at_end(0), with = at_end(1.0 / 32);
  CHECK(without.dead >= 18);
  CHECK(with.dead <= 4);
  CHECK(with.explained_variance > without.explained_variance + 0.1);
}

TEST_CASE("training by hand, one batch after the other", "[training][trainer]") {
  TopKModel model(width, 20, {.k = 3});
  sae::Trainer trainer(model, plain(5, 8));
  const Dense rows = data(30);
  CHECK(trainer.train_step(rows).tokens == 30);
  CHECK(trainer.train_step(Dense(rows.topRows(1))).tokens == 31);
  CHECK(trainer.train_step(rows.leftCols(6)).step == 3);
  CHECK(trainer.step() == 3);
}

TEST_CASE("a trained model is trained on in raw units", "[training][trainer]") {
  const Dense rows = data(64);
  TopKModel model(width, 40, {.k = 4});
  sae::Trainer first(model, {.steps = 100, .batch = 64, .learning_rate = 0.01});
  auto source = in_order(rows);
  first.fit(source);
  const auto raw_loss = [&] { return naive_mean_square(model.reconstruct(rows) - rows); };
  const double before = raw_loss();
  sae::TrainerConfig config{.steps = 1, .batch = 64, .learning_rate = 1e-12, .center = sae::Center::none};
  config.reads_raw_rows = true;
  sae::Trainer second(model, config);
  double told = 0, scale = 0;
  auto again = in_order(rows);
  second.fit(again, [&](auto& t, const sae::StepReport& r) {
    told = r.reconstruction;
    scale = t.scale();
  });
  REQUIRE(scale < 0.2);
  CHECK(told == Approx(before * scale * scale).epsilon(1e-9));
  CHECK(raw_loss() == Approx(before).epsilon(1e-6));
}

TEST_CASE("the terms that come with an activation", "[training][trainer]") {
  TopKModel topk(width, 20, {.k = 3, .rank_by_decoder_norm = true});
  sae::Trainer trainer(topk, {.steps = 1});
  CHECK(std::get<0>(trainer.objective().terms).rank_by_decoder_norm);
  CHECK(std::get<0>(trainer.objective().terms).coefficient == 1.0 / 32);
  Model<sae::ReLU> relu(width, 20);
  sae::Trainer other(relu, {.steps = 1});
  CHECK(std::get<0>(other.objective().terms).coefficient == 1e-3);
  CHECK_FALSE(std::get<0>(other.objective().terms).weighted_by_decoder_norm);
}
