// The average of the weights that a training ends with (TrainerConfig::ema).
#include <sae/data/indexed_source.hpp>
#include <sae/training/trainer.hpp>

#include <cmath>
#include <string>
#include <vector>

#include "catch_compat.hpp"
#include "gradient_check.hpp"

namespace {

using sae::Index;
using namespace sae_test;
template <class Activation>
using Model = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, Activation, double>;

sae::TrainerConfig settings(double ema, sae::DecoderNorm decoder) {
  return {.steps = 5,
          .batch = 20,
          .learning_rate = 0.05,
          .ema = ema,
          .decoder = decoder,
          .center = sae::Center::none,
          .normalisation = sae::Normalisation::mean_square};
}

}  // namespace

TEST_CASE("the average of weights is theirs, step by step", "[training][average]") {
  const Dense rows = random_rows(100, 6, 1, 1);
  const auto check = [&](auto activation, sae::DecoderNorm decoder, Index stop) {
    using M = Model<decltype(activation)>;
    CAPTURE(static_cast<int>(decoder), stop);
    M plain(6, 30, activation), model = plain;
    // Without an average: the weights after each step, sum_s (1 - b) b^(t - s) w_s / (1 - b^t).
    std::vector<typename M::Parameters> after;
    sae::Trainer without(plain, settings(0, decoder));
    sae::MatrixSource<double> source(rows, {.shuffle = false}), same(rows, {.shuffle = false});
    without.fit(source, [&](auto& trainer, const sae::StepReport& report) {
      after.push_back(trainer.model().parameters());
      return report.step == stop;
    });
    sae::Trainer with(model, settings(0.75, decoder));
    with.fit(same, [&](auto& trainer, const sae::StepReport& report) {
      bool equal = true;  // callbacks see the weights themselves
      M::Parameters::visit([&](std::string_view, const auto& a, const auto& b) { equal = equal && a == b; },
                           trainer.model().parameters(), after[static_cast<std::size_t>(report.step) - 1]);
      CHECK(equal);
      return report.step == stop;
    });
    REQUIRE(static_cast<Index>(after.size()) == stop);
    const double scale = [&] {
      double squares = 0;
      for (Index b = 0; b < 100; ++b) squares += rows.row(b).squaredNorm();
      return 1 / std::sqrt(squares / 100);
    }();
    const auto mean = [&](const auto& tensor_of) {
      Dense sum = Dense::Zero(tensor_of(after[0]).rows(), tensor_of(after[0]).cols());
      double weights = 0;
      for (Index s = 1; s <= stop; ++s) {
        const double weight = 0.25 * std::pow(0.75, static_cast<double>(stop - s));
        sum += weight * tensor_of(after[static_cast<std::size_t>(s) - 1]).map();
        weights += weight;
      }
      return Dense(sum / weights);
    };
    Dense W_dec = mean([](const auto& p) -> const auto& { return p.W_dec; });
    if (decoder == sae::DecoderNorm::unit) {
      if (stop > 1) CHECK(W_dec.row(0).norm() < 1 - 1e-4);
      for (Index i = 0; i < 30; ++i) W_dec.row(i).normalize();
    }
    const auto& got = model.parameters();
    CHECK(relative_error(got.W_dec.map(), W_dec) <= 1e-12);
    CHECK(relative_error(got.W_enc.map(), mean([](const auto& p) -> const auto& { return p.W_enc; })) <= 1e-12);
    CHECK(relative_error(got.b_enc.map(), Dense(mean([](const auto& p) -> const auto& { return p.b_enc; }) / scale)) <= 1e-12);
    CHECK(relative_error(got.b_dec.map(), Dense(mean([](const auto& p) -> const auto& { return p.b_dec; }) / scale)) <= 1e-12);
    if (stop > 1) CHECK(relative_error(got.W_enc.map(), after.back().W_enc.map()) > 1e-3);
  };
  for (const auto decoder : {sae::DecoderNorm::unit, sae::DecoderNorm::free})
    for (const Index stop : {5, 3, 1}) check(sae::TopK{.k = 4}, decoder, stop);
}

TEST_CASE("an average of thresholds is one of those that the model reads", "[training][average]") {
  const Dense rows = random_rows(100, 6, 1, 1);
  Model<sae::JumpReLU> model(6, 30, {.threshold = 0.01, .bandwidth = 2});
  auto config = settings(0.5, sae::DecoderNorm::unit);
  config.normalisation = sae::Normalisation::none;
  sae::Trainer trainer(model, config, sae::Objective<>{});
  std::vector<Dense> after;
  for (Index t = 0; t < 3; ++t) {
    trainer.train_step(rows.middleRows(20 * t, 20));
    after.push_back(model.parameters().activation.threshold.map().cwiseMax(0));
  }
  const Dense want = (0.125 * after[0] + 0.25 * after[1] + 0.5 * after[2]) / 0.875;
  CHECK(relative_error(trainer.averaged().activation.threshold.map(), want) <= 1e-13);
  CHECK((after[2].array() == 0).any());  // some were held at 0
}

TEST_CASE("averages: none without steps, settings in range", "[training][average]") {
  Model<sae::TopK> model(6, 30, {.k = 4});
  const Model<sae::TopK> start = model;
  sae::Trainer trainer(model, settings(0.9, sae::DecoderNorm::unit));
  CHECK_THROWS_WITH(trainer.averaged(), "Trainer: no average of weights: ema = 0.9, 0 steps");
  sae::MatrixSource<double> few(Dense(random_rows(10, 6, 1, 1)), {.epochs = 1});
  CHECK(trainer.fit(few) == sae::FitStatus::exhausted);
  CHECK(model.W_dec() == start.W_dec());

  sae::Trainer off(model, settings(0, sae::DecoderNorm::unit));
  off.train_step(random_rows(20, 6, 1, 1));
  CHECK_THROWS_WITH(off.averaged(), "Trainer: no average of weights: ema = 0, 1 steps");
  for (const auto& [ema, message] :
       std::vector<std::pair<double, std::string>>{{1, "Trainer: ema = 1 is not in [0, 1)"},
                                                   {-0.1, "Trainer: ema = -0.1 is not in [0, 1)"},
                                                   {std::nan(""), "Trainer: ema = nan is not in [0, 1)"}})
    CHECK_THROWS_WITH(sae::Trainer(model, settings(ema, sae::DecoderNorm::unit)), message);
}

TEST_CASE("a schedule-free training ends with its average", "[training][average]") {
  const Dense rows = random_rows(100, 6, 1, 1);
  for (const auto decoder : {sae::DecoderNorm::unit, sae::DecoderNorm::free})
    for (const Index stop : {5, 3}) {
      auto config = settings(0, decoder);
      config.optimizer = sae::ScheduleFree{.momentum = 0.75};
      config.learning_rate = 0.01;
      config.normalisation = sae::Normalisation::none;
      config.frozen.b_enc = true;
      Model<sae::TopK> model(6, 30, {.k = 4});
      const auto start = model.parameters();
      sae::Trainer trainer(model, config, sae::Objective<>{});
      sae::MatrixSource<double> source(rows, {.shuffle = false});
      // z = (y - momentum x) / (1 - momentum), x the mean of z_1 .. z_t.
      Dense z_sum = Dense::Zero(30, 6), x = start.W_enc.map();
      typename Model<sae::TopK>::Parameters last, averaged;
      trainer.fit(source, [&](auto& self, const sae::StepReport& report) {
        last = self.model().parameters();
        averaged = self.averaged();
        const auto t = static_cast<double>(report.step);
        // y = (1 - m) z + m ((1 - 1/t) x + z / t)
        const Dense z = (last.W_enc.map() - 0.75 * (1 - 1 / t) * x) / (0.25 + 0.75 / t);
        z_sum += z;
        x = z_sum / t;
        return report.step == stop;
      });
      CHECK(relative_error(model.parameters().W_enc.map(), x) <= 1e-12);
      CHECK(relative_error(last.W_enc.map(), x) > 1e-4);
      CHECK(model.parameters().W_dec == averaged.W_dec);
      CHECK(model.parameters().b_enc == start.b_enc);
      for (Index i = 0; i < 30 && decoder == sae::DecoderNorm::unit; ++i)
        CHECK(model.parameters().W_dec.map().row(i).norm() == Approx(1).epsilon(1e-14));
    }
  Model<sae::TopK> model(6, 30, {.k = 4});
  auto both = settings(0.5, sae::DecoderNorm::unit);
  both.optimizer = sae::ScheduleFree{};
  CHECK_THROWS_WITH(sae::Trainer(model, both),
                    "Trainer: ema = 0.5, and the optimizer schedule_free averages the weights itself: ema = 0 is legal");
}
