// The Trainer on transcoders: rows hold x and, behind it, y.
#include <sae/activations/glu.hpp>
#include <sae/data/indexed_source.hpp>
#include <sae/formats/checkpoint.hpp>
#include <sae/models/transcoder.hpp>
#include <sae/training/data_initialization.hpp>
#include <sae/training/trainer.hpp>

#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "catch_compat.hpp"
#include "parameter_gradient.hpp"
#include "temp_folder.hpp"

namespace {

using sae::Dynamic;
using sae::Index;
using namespace sae_test;

template <class Activation, class Scalar = double>
using Model = sae::Transcoder<Dynamic, Dynamic, Dynamic, Activation, Scalar>;

constexpr Index in = 5, out = 7, latents = 70;

// y = a few rectified directions of x, plus a linear part, around a mean; x of another size.
Dense data(Index rows) {
  const Dense x = random_rows(rows, in, 1, 3), read = random_rows(in, 12, 2), write = random_rows(12, out, 3, 0.1),
              straight = random_rows(in, out, 4, 0.1);
  Dense all(rows, in + out);
  all.leftCols(in) = x.array() + 1.5;
  all.rightCols(out) = ((x * read).cwiseMax(0.0) * write + x * straight).array() + 2;
  return all;
}
sae::MatrixSource<double> in_order(const Dense& rows) { return sae::MatrixSource<double>(rows, {.shuffle = false}); }
sae::TrainerConfig plain(Index steps, Index batch) {
  return {.steps = steps, .batch = batch, .center = sae::Center::none, .normalisation = sae::Normalisation::none};
}
template <class Parameters>
double largest_gap(const Parameters& a, const Parameters& b) {
  double worst = 0;
  Parameters::visit(
      [&](std::string_view, const auto& s, const auto& t) {
        const double gap = largest_difference(s.map(), t.map());
        if (!(gap <= worst)) worst = gap;
      },
      a, b);
  return worst;
}

}  // namespace

TEST_CASE("steps of a transcoder are its gradients through the optimizer", "[training][transcoder]") {
  const Dense all = data(32);
  for (const bool unit : {false, true})
    for (const double clip : {0.0, 1e9}) {
      CAPTURE(unit, clip);
      Model<sae::ReLU> model(in, out, latents, {}, {.skip = true, .decoder_norm = 1});
      randomise_everything(model, 9);
      auto twin = model;
      auto config = plain(4, 8);
      config.optimizer = sae::Sgd{};
      config.learning_rate = 1e-4;
      config.clip_norm = clip;
      config.decoder = unit ? sae::DecoderNorm::unit : sae::DecoderNorm::free;
      const sae::Objective objective{sae::L1{.coefficient = 0.1}};
      sae::Trainer trainer(model, config, objective);
      auto source = in_order(all);
      trainer.fit(source);
      for (Index step = 0; step < 4; ++step) {
        const Dense batch = all.middleRows(8 * step, 8);
        auto g = twin.gradient(Dense(batch.leftCols(in)), Dense(batch.rightCols(out)), objective).parameters;
        auto& p = twin.parameters();
        if (unit)
          for (Index i = 0; i < latents; ++i) {
            const Dense d = p.W_dec.map().row(i).normalized();
            const double along = g.W_dec.map().row(i).dot(d.row(0));
            g.W_dec.map().row(i) -= along * d.row(0);
          }
        decltype(g)::visit([](std::string_view, auto& w, const auto& dw) { w.map() -= 1e-4 * dw.map(); }, p, g);
        if (unit)
          for (Index i = 0; i < latents; ++i) p.W_dec.map().row(i).normalize();
      }
      CHECK(largest_gap(model.parameters(), twin.parameters()) <= 1e-12);
    }
}

TEST_CASE("a trained transcoder goes on by scaled rows as it was, with unit decoder rows, too", "[training][transcoder]") {
  const Dense all = data(64), x = all.leftCols(in), y = all.rightCols(out);
  const auto check = [&]<class Activation>(Model<Activation> model) {
    randomise_everything(model, 9);
    auto& p = model.parameters();
    p.W_dec.map().rowwise().normalize();
    p.activation.constrain();
    const Dense before = model.predict(x);
    auto config = plain(1, 64);
    config.learning_rate = 1e-15;
    config.normalisation = sae::Normalisation::mean_square;
    config.decoder = sae::DecoderNorm::unit;
    config.reads_raw_rows = true;
    sae::Trainer trainer(model, config, sae::Objective<>{});
    auto source = in_order(all);
    trainer.prepare(source);
    CHECK(largest_difference(p.W_dec.map().rowwise().norm(), Dense::Ones(latents, 1)) <= 1e-12);
    trainer.train_step(all);
    trainer.finish();
    CHECK(relative_error(model.predict(x), before) <= 1e-10);
  };
  check(Model<sae::TopK>(in, out, latents, {.k = 3}, {.skip = true}));
  check(Model<sae::TopK>(in, out, latents, {.k = 3, .rank_by_decoder_norm = true}, {.decoder_norm = 1}));
  check(Model<sae::JumpReLU>(in, out, latents));
  check(Model<sae::Glu<sae::JumpReLU>>(in, out, latents, {}, {.skip = true}));
}

TEST_CASE("a transcoder learns with every normalisation and centre, and reads raw rows afterwards", "[training][transcoder]") {
  const Dense all = data(512);
  const Dense x = all.leftCols(in), y = all.rightCols(out);
  const double spread = naive_row_variance(y);
  using N = sae::Normalisation;
  using C = sae::Center;
  for (const auto& [normalisation, center] : {std::pair{N::none, C::none},
                                              {N::mean_square, C::mean},
                                              {N::sqrt_d, C::geometric_median},
                                              {N::mean_square, C::first_batch_geometric_median},
                                              {N::sqrt_d, C::none}}) {
    CAPTURE(static_cast<int>(normalisation), static_cast<int>(center));
    Model<sae::TopK> model(in, out, latents, {.k = 8}, {.skip = true});
    auto config = plain(250, 64);
    config.learning_rate = 0.01;
    config.normalisation = normalisation;
    config.center = center;
    sae::Trainer trainer(model, config);
    CHECK(trainer.config().decoder == sae::DecoderNorm::free);
    auto source = in_order(all);
    double explained = 0;
    trainer.fit(source, [&](const sae::StepReport& report) { explained = report.explained_variance; });
    const double left = naive_mean_square(model.predict(x) - y) / spread;
    CHECK(left < 0.1);
    CHECK(explained > 0.9);
    CHECK(std::abs(1 - explained - left) < 0.05);  // of the last batch; in any units the same share
  }
}

TEST_CASE("the centre of a transcoder is its targets', in their scale", "[training][transcoder]") {
  const Dense all = data(64);
  Model<sae::ReLU> model(in, out, latents);
  auto config = plain(1, 64);
  config.center = sae::Center::mean;
  config.normalisation = sae::Normalisation::mean_square;
  config.optimizer = sae::Sgd{};
  config.learning_rate = 1e-300;
  sae::Trainer trainer(model, config);
  auto source = in_order(all);
  trainer.fit(source);
  const Dense mean = all.rightCols(out).colwise().mean();
  CHECK(largest_difference(model.parameters().b_dec.map(), mean) <= 1e-12);
}

TEST_CASE("a fixed transcoder and one in float train the same way", "[training][transcoder]") {
  const Dense all = data(128);
  auto config = plain(12, 32);
  config.normalisation = sae::Normalisation::mean_square;
  Model<sae::TopK> dynamic(in, out, latents, {.k = 4}, {.skip = true});
  sae::Transcoder<in, out, latents, sae::TopK, double> fixed({.k = 4}, {.skip = true});
  sae::Threads one(1), three(3);
  sae::Trainer a(dynamic, config, one);
  sae::Trainer b(fixed, config, three);
  auto source = in_order(all), again = in_order(all);
  a.fit(source);
  b.fit(again);
  CHECK(dynamic.parameters().W_enc == fixed.parameters().W_enc);
  CHECK(dynamic.parameters().W_dec == fixed.parameters().W_dec);
  CHECK(dynamic.parameters().W_skip == fixed.parameters().W_skip);

  Model<sae::TopK, float> single(in, out, latents, {.k = 4}, {.skip = true});
  sae::MatrixSource<float> floats(sae::Matrix<float>(all.cast<float>()), {.shuffle = false});
  sae::Trainer c(single, config);
  c.fit(floats);
  CHECK(relative_error(single.predict(all.leftCols(in).cast<float>()), dynamic.predict(Dense(all.leftCols(in)))) <= 1e-2);
}

TEST_CASE("clipping that does not clip is the one-pass step, to the last bit", "[training][transcoder]") {
  const Dense all = data(128);
  const auto trained = [&](double clip) {
    Model<sae::JumpReLU> model(in, out, latents, {}, {.skip = true});
    auto config = plain(10, 32);
    config.clip_norm = clip;
    sae::Trainer trainer(model, config);
    auto source = in_order(all);
    trainer.fit(source);
    return model.parameters();
  };
  CHECK(largest_gap(trained(0), trained(1e12)) == 0);
}

TEST_CASE("rows of zeros of a unit decoder stay until they move", "[training][transcoder]") {
  const Dense all = data(64);
  Model<sae::ReLU> model(in, out, latents);
  for (Index i = 0; i < 10; ++i) model.parameters().b_enc[i] = -1e6;  // never active: no gradient
  auto config = plain(2, 32);
  config.decoder = sae::DecoderNorm::unit;
  sae::Trainer trainer(model, config, sae::Objective{sae::L1{.coefficient = 1e-3, .weighted_by_decoder_norm = false}});
  auto source = in_order(all);
  trainer.fit(source);
  for (Index i = 0; i < 10; ++i) CHECK(model.W_dec().row(i).norm() == 0);
  Index unit = 0;
  for (Index i = 10; i < latents; ++i) {
    const double n = model.W_dec().row(i).norm();
    CHECK((n == 0 || std::abs(n - 1) < 1e-12));
    unit += n > 0 ? 1 : 0;
  }
  CHECK(unit > 40);
}

TEST_CASE("the default terms of a transcoder weigh by the free decoder's norms", "[training][transcoder]") {
  Model<sae::ReLU> model(in, out, latents);
  sae::SparseAutoencoder<Dynamic, Dynamic, sae::ReLU, double> autoencoder(in, latents);
  CHECK(std::get<0>(sae::Trainer(model, plain(1, 8)).objective().terms).weighted_by_decoder_norm);
  CHECK_FALSE(std::get<0>(sae::Trainer(autoencoder, plain(1, 8)).objective().terms).weighted_by_decoder_norm);
  auto unit = plain(1, 8);
  unit.decoder = sae::DecoderNorm::unit;
  CHECK_FALSE(std::get<0>(sae::Trainer(model, unit).objective().terms).weighted_by_decoder_norm);
}

TEST_CASE("a transcoder's training resumes to the last bit", "[training][transcoder]") {
  const Dense all = data(150);
  struct Killed {};
  struct Run {
    explicit Run(const Dense& rows)
        : model(in, out, latents, {.k = 3}, {.skip = true, .decoder_norm = 0.1}),
          trainer(model, config()),
          source(rows, {.seed = 4}) {}
    static sae::TrainerConfig config() {
      sae::TrainerConfig c{.steps = 12, .batch = 32, .ema = 0.5};
      c.dead.window = 64;
      return c;
    }
    Model<sae::BatchTopK> model;
    sae::Trainer<Model<sae::BatchTopK>> trainer;
    sae::MatrixSource<double> source;
  };
  TempFolder folder;
  const auto file = folder / "checkpoint";
  Run whole(all), stopped(all), resumed(all);
  whole.trainer.fit(whole.source);
  const auto kill = [&](auto& trainer, const sae::StepReport& report) {
    if (report.step != 5) return;
    sae::save_checkpoint(trainer, file);
    throw Killed();
  };
  REQUIRE_THROWS_AS(stopped.trainer.fit(stopped.source, kill), Killed);
  sae::load_checkpoint(resumed.trainer, file);
  resumed.trainer.fit(resumed.source);
  CHECK(largest_gap(resumed.model.parameters(), whole.model.parameters()) == 0);
  CHECK(resumed.model.parameters().activation.threshold_state == whole.model.parameters().activation.threshold_state);

  Model<sae::BatchTopK> without(in, out, latents, {.k = 3}, {.decoder_norm = 0.1});
  sae::Trainer other(without, Run::config());
  CHECK_THROWS_AS(sae::load_checkpoint(other, file), sae::FileError);
}

TEST_CASE("what a transcoder cannot be trained on is refused in one sentence", "[training][transcoder]") {
  Dense all = data(32);
  Model<sae::ReLU> model(in, out, latents);
  sae::Trainer trainer(model, plain(2, 16));
  auto narrow = in_order(Dense(all.leftCols(11)));
  CHECK_THROWS_WITH(
      trainer.fit(narrow),
      "Trainer: the source yields rows of width 11, the model needs inputs of 5 and targets of 7 side by side, 12");
  CHECK_THROWS_WITH(trainer.train_step(Dense(all.leftCols(5))),
                    "Trainer: rows have 5 columns, the model needs inputs of 5 and targets of 7 side by side, 12");
  all(20, 11) = std::numeric_limits<double>::quiet_NaN();  // of a target
  auto source = in_order(all);
  CHECK_THROWS_WITH(trainer.fit(source), "Trainer: row 20 of the stream holds a number that is not finite (NaN or infinity)");
  sae::Trainer prepares(model, {.steps = 2, .batch = 16});
  auto again = in_order(all);
  CHECK_THROWS_AS(prepares.fit(again), sae::ValueError);

  Model<sae::TopK> ranked(in, out, latents, {.k = 3, .rank_by_decoder_norm = true});
  CHECK_THROWS_WITH(sae::Trainer(ranked, plain(1, 8)),
                    "Trainer: W_dec is 0, and topk ranks by its norms: no latent would ever be active "
                    "(TranscoderOptions::decoder_norm starts it elsewhere)");
  Model<sae::TopK> started(in, out, latents, {.k = 3, .rank_by_decoder_norm = true}, {.decoder_norm = 0.1});
  CHECK_NOTHROW(sae::Trainer(started, plain(1, 8)));
}
