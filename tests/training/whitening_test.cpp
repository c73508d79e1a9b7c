// Whitening: the map by its definition, a training on whitened rows and what it leaves in the units of the rows.
#include <sae/training/covariance_whitening.hpp>

#include <cmath>
#include <string>
#include <vector>

#include "reference.hpp"
#include "small_training.hpp"
#include "temp_folder.hpp"

namespace {

using sae::Index;
using sae_test::Dense;
using sae_test::largest_difference;
using sae_test::mask_of;
using sae_test::random_rows;

template <class Activation>
using Model = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, Activation, double>;

constexpr Index width = 6;

// Correlated rows far from 0.
Dense some_rows(Index rows, std::uint64_t seed) {
  return ((random_rows(rows, width, seed) * random_rows(width, width, 1)).rowwise() + random_rows(1, width, 2, 4).row(0))
      .eval();
}
sae::Tensor<double> tensor_of(const Dense& x) {
  sae::Tensor<double> out(x.rows(), x.cols());
  out.map() = x;
  return out;
}
Dense covariance(const Dense& x) {
  const Dense centred = x.rowwise() - x.colwise().mean();
  return centred.transpose() * centred / static_cast<double>(x.rows() - 1);
}
sae::TrainerConfig config_of(Index steps) {
  return {.steps = steps,
          .batch = 32,
          .learning_rate = 3e-3,
          .normalisation = sae::Normalisation::whitening,
          .whitening = sae::covariance_whitening,
          .statistics_rows = 200};
}

}  // namespace

TEST_CASE("whitened rows have covariance 1, by hand and by numbers", "[training][whitening]") {
  Dense x(4, 2);  // variances 4 * 9 / 3 = 12 and 4 / 3, uncorrelated
  x << 4, 1, -2, 1, 4, -1, -2, -1;
  const sae::Whitening by_hand = sae::whitening_of(tensor_of(x), 1e-6);
  CHECK(by_hand.mean[0] == 1);
  CHECK(by_hand.mean[1] == 0);
  Dense matrix(2, 2);
  matrix << 1 / std::sqrt(12.0), 0, 0, std::sqrt(0.75);
  CHECK(largest_difference(by_hand.matrix.map(), matrix) <= 1e-15);
  CHECK(largest_difference(by_hand.inverse.map(), matrix.inverse()) <= 1e-14);
  // floor 1: no direction below the mean variance (12 + 4/3) / 2
  const sae::Whitening floored = sae::whitening_of(tensor_of(x), 1);
  CHECK(floored.matrix.row(0)[0] == Approx(1 / std::sqrt(12.0)).epsilon(1e-14));
  CHECK(floored.matrix.row(1)[1] == Approx(std::sqrt(3 / 20.0)).epsilon(1e-14));
  CHECK(floored.inverse.row(1)[1] == Approx(std::sqrt(20 / 3.0)).epsilon(1e-14));

  const Dense rows = some_rows(500, 3);
  const sae::Whitening w = sae::whitening_of(tensor_of(rows), 1e-9);
  const Dense white = (rows.rowwise() - w.mean.map().row(0)) * w.matrix.map();
  CHECK(largest_difference(covariance(white), Dense::Identity(width, width)) <= 1e-9);
  CHECK(white.colwise().mean().cwiseAbs().maxCoeff() <= 1e-12);
  CHECK(largest_difference(w.matrix.map(), w.matrix.map().transpose()) <= 1e-12);
  CHECK(largest_difference(w.matrix.map() * w.inverse.map(), Dense::Identity(width, width)) <= 1e-10);

  Dense flat = rows;  // a direction without variance is not blown up
  flat.col(2).setConstant(3);
  const sae::Whitening safe = sae::whitening_of(tensor_of(flat), 1e-3);
  CHECK(safe.matrix.map().allFinite());
  CHECK(safe.matrix.map().cwiseAbs().maxCoeff() <= 1 / std::sqrt(1e-3 * covariance(flat).trace() / width) + 1e-9);
  const sae::Whitening constant = sae::whitening_of(tensor_of(Dense::Constant(5, 3, 2.0)), 1e-3);
  CHECK(constant.matrix.map().isIdentity(0));
  CHECK(constant.inverse.map().isIdentity(0));
  CHECK(sae::whitening_of(tensor_of(Dense::Constant(1, 3, 2.0)), 1e-3).mean[1] == 2);
  CHECK_THROWS_WITH(sae::whitening_of(tensor_of(rows), 0), "whitening: floor = 0 is not in (0, infinity)");
  CHECK_THROWS_WITH(sae::whitening_of(sae::Tensor<double>(0, 3), 1e-3), "whitening: there are no rows");
}

TEST_CASE("a training on whitened rows ends with a model that reads rows as they are", "[training][whitening]") {
  const Dense x = some_rows(400, 4), test = some_rows(50, 5);
  const auto check = [&](auto activation, bool subtract) {
    CAPTURE(activation.name, subtract);
    using M = Model<decltype(activation)>;
    M model(width, 40, activation, {.subtract_decoder_bias = subtract});
    M last = model;
    sae::Threads threads(2);
    sae::Trainer trainer(model, config_of(30), sae::Objective<>{}, threads);
    sae::MatrixSource<double> source(x, {.seed = 1});
    double first_loss = 0, last_loss = 0, variance = 0;
    trainer.fit(source, [&](const sae::StepReport& report) {
      (report.step == 1 ? first_loss : last_loss) = report.reconstruction;
      if (report.step == 1) variance = report.reconstruction / (1 - report.explained_variance);
      last.parameters() = model.parameters();
    });
    CHECK(last_loss < first_loss);
    CHECK(variance == Approx(width).epsilon(0.4));  // rows of mean squared norm D
    sae::MatrixSource<double> again(x, {.seed = 1});
    sae::Tensor<double> seen(200, width);
    REQUIRE(again.next(seen) == 200);
    const sae::Whitening w = sae::whitening_of(seen, 1e-3);
    const Dense white = (test.rowwise() - w.mean.map().row(0)) * w.matrix.map();
    CHECK(mask_of(model.encode(test)) == mask_of(last.encode(white)));
    Dense codes = last.encode_dense(white);
    const bool* const by_norm = sae::detail::rank_by_norm(last.activation());
    if (by_norm != nullptr && *by_norm)
      for (Index i = 0; i < codes.cols(); ++i) codes.col(i) *= last.W_dec().row(i).norm();
    CHECK(largest_difference(model.encode_dense(test), codes) <= 1e-9);
    const Dense want = (last.reconstruct(white) * w.inverse.map()).rowwise() + w.mean.map().row(0);
    CHECK(largest_difference(model.reconstruct(test), want) <= 1e-9);
  };
  for (const bool subtract : {true, false}) {
    check(sae::ReLU{}, subtract);
    check(sae::TopK{.k = 4}, subtract);
    check(sae::TopK{.k = 4, .rank_by_decoder_norm = true}, subtract);
    check(sae::JumpReLU{}, subtract);
  }
}

TEST_CASE("a first batch that says where b_dec starts is whitened once", "[training][whitening]") {
  const Dense x = some_rows(400, 4);
  Model<sae::TopK> model(width, 40, {.k = 4});
  auto config = config_of(30);
  config.center = sae::Center::first_batch_geometric_median;
  config.learning_rate = 1e-300;
  sae::Trainer trainer(model, config, sae::Objective<>{});
  sae::MatrixSource<double> source(x, {.shuffle = false});
  trainer.prepare(source);
  trainer.train_step(x.topRows(32));
  const sae::Whitening w = sae::whitening_of(tensor_of(x.topRows(200)), 1e-3);
  const Dense white = (x.topRows(32).rowwise() - w.mean.map().row(0)) * w.matrix.map();
  const std::vector<double> median = sae::geometric_median(tensor_of(white));
  REQUIRE(std::abs(median[0]) > 1e-3);
  for (Index j = 0; j < width; ++j) CHECK(model.b_dec()(0, j) == Approx(median[static_cast<std::size_t>(j)]).margin(1e-9));
}

TEST_CASE("a trained model is brought to whitened rows and back", "[training][whitening]") {
  const Dense x = some_rows(400, 4);
  Model<sae::TopK> model(width, 40, {.k = 4});
  sae_test::randomise(model, 3);
  const Dense before = model.reconstruct(x);
  auto config = config_of(1);
  config.reads_raw_rows = true;
  config.center = sae::Center::none;
  config.learning_rate = 1e-300;
  config.decoder = sae::DecoderNorm::free;
  sae::Trainer trainer(model, config, sae::Objective<>{});
  sae::MatrixSource<double> source(x);
  trainer.fit(source);
  CHECK(largest_difference(model.reconstruct(x), before) <= 1e-9);
}

TEST_CASE("whitening goes through a checkpoint to the last bit", "[training][whitening]") {
  const TempFolder folder;
  const auto path = folder / "checkpoint.safetensors";
  sae::TrainerConfig config;
  config.normalisation = sae::Normalisation::whitening;
  config.whitening = sae::covariance_whitening;
  const auto whole = small_training::make_small(20, {.k = 2}, config);
  whole->trainer.fit(whole->source);
  const auto cut = small_training::make_small(20, {.k = 2}, config);
  REQUIRE_THROWS_AS(cut->trainer.fit(cut->source,
                                     [&](auto& trainer, const sae::StepReport& report) {
                                       if (report.step != 7) return;
                                       sae::save_checkpoint(trainer, path);
                                       throw small_training::Killed();
                                     }),
                    small_training::Killed);
  const auto rest = small_training::make_small(20, {.k = 2}, config);
  sae::load_checkpoint(rest->trainer, path);
  rest->trainer.fit(rest->source);
  CHECK((small_training::bytes_of(rest->model) == small_training::bytes_of(whole->model)));
  auto other = config;
  other.whitening_floor = 0.5;
  const auto wrong = small_training::make_small(20, {.k = 2}, other);
  CHECK_THAT(small_training::load_error(*wrong, path), Catch::Matchers::ContainsSubstring("trainer.whitening_floor"));
}

TEST_CASE("whitening and row norms that do not go together are refused", "[training][whitening]") {
  using Catch::Matchers::ContainsSubstring;
  Model<sae::ReLU> plain(width, 8);
  Model<sae::ReLU> constant(width, 8, {}, {.input_normalisation = sae::InputNormalisation::constant_norm});
  Model<sae::ReLU> layer(width, 8, {}, {.input_normalisation = sae::InputNormalisation::layer_norm});
  const sae::Objective<> none;
  CHECK_THROWS_WITH(sae::Trainer(constant, config_of(1), none), ContainsSubstring("does not go with an InputNormalisation"));
  sae::TrainerConfig config{.steps = 1, .loss_space = sae::LossSpace::normalised};
  CHECK_THROWS_WITH(sae::Trainer(plain, config, none), ContainsSubstring("loss_space = normalised is for a model with"));
  CHECK_NOTHROW(sae::Trainer(constant, config, none));
  CHECK_THROWS_WITH(sae::Trainer(layer, config, none), ContainsSubstring("normalisation = none is legal"));
  config.normalisation = sae::Normalisation::none;
  CHECK_NOTHROW(sae::Trainer(layer, config, none));
  config = config_of(1);
  config.whitening_floor = 0;
  CHECK_THROWS_WITH(sae::Trainer(plain, config, none), "Trainer: whitening_floor = 0 is not in (0, infinity)");
  config = config_of(1);
  config.decoder_norm = 0;
  CHECK_THROWS_WITH(sae::Trainer(plain, config, none), "Trainer: decoder_norm = 0 is not in (0, infinity)");
}

TEST_CASE("normalised rows: where b_dec starts, what a report says, decoder rows of a fixed norm", "[training][whitening]") {
  const Dense x = some_rows(64, 4);
  for (const auto kind : {sae::InputNormalisation::constant_norm, sae::InputNormalisation::layer_norm}) {
    Model<sae::ReLU> model(width, 8, {}, {.input_normalisation = kind});
    model.parameters().W_dec.set_zero();
    Dense u = x;
    for (Index b = 0; b < x.rows(); ++b) {
      if (kind == sae::InputNormalisation::constant_norm) {
        u.row(b) *= std::sqrt(static_cast<double>(width)) / x.row(b).norm();
      } else {
        u.row(b).array() -= x.row(b).mean();
        u.row(b) /= u.row(b).norm() / std::sqrt(width - 1.0) + 1e-5;
      }
    }
    sae::Trainer trainer(model,
                         {.steps = 1,
                          .batch = 64,
                          .learning_rate = 1e-300,
                          .normalisation = sae::Normalisation::none,
                          .loss_space = sae::LossSpace::normalised},
                         sae::Objective<>{});
    sae::MatrixSource<double> source(x, {.shuffle = false});
    trainer.fit(source, [&](const sae::StepReport& report) {
      CHECK(report.reconstruction == Approx(sae_test::naive_row_variance(u)).epsilon(1e-9));
      CHECK(std::abs(report.explained_variance) <= 1e-9);
    });
    CHECK(largest_difference(model.b_dec(), u.colwise().mean()) <= 1e-12);
  }
  for (const double clip : {0.0, 1.0}) {  // both routes of an update
    Model<sae::ReLU> model(width, 8);
    sae::Trainer trainer(model, {.steps = 5, .batch = 32, .clip_norm = clip, .decoder_norm = 0.3}, sae::Objective<>{});
    sae::MatrixSource<double> source(x);
    trainer.fit(source);
    for (Index i = 0; i < 8; ++i) CHECK(model.W_dec().row(i).norm() == Approx(0.3).epsilon(1e-12));
  }
}
