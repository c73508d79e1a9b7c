#include <sae/models/transcoder.hpp>
#include <sae/training/p_anneal.hpp>
#include <sae/training/resample.hpp>

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "catch_compat.hpp"
#include "gradient_check.hpp"
#include "parameter_gradient.hpp"
#include "small_training.hpp"
#include "temp_folder.hpp"

namespace {

using sae::Index;
using sae::Resampling;
using sae::ResamplingForm;
using namespace sae_test;
using Model = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::ReLU, double>;

constexpr Index width = 6, latents = 40, batch = 20;

sae::TrainerConfig config_with(const Resampling& resampling, Index steps) {
  return {.steps = steps,
          .batch = batch,
          .learning_rate = 0.01,
          .center = sae::Center::none,
          .normalisation = sae::Normalisation::none,
          .dead = {.window = 1'000'000},
          .resampling = resampling};
}
// Latents 30 to 39 never fire, 20 to 29 seldom.
Model start() {
  Model model(width, latents);
  randomise(model, 5);
  for (Index i = 20; i < latents; ++i) model.parameters().b_enc[i] = i < 30 ? -1.2 : -50;
  return model;
}
Dense batch_of(const Dense& rows, Index step) { return rows.middleRows(step * batch, batch); }

// Everything that a trainer keeps, by name.
struct Kept {
  std::map<std::string, Dense> tensors;
  std::map<std::string, std::vector<std::int64_t>> counts;
  void tensor(std::string_view name, const sae::Tensor<double>& t) { tensors[std::string(name)] = t.map(); }
  void integers(std::string_view name, const std::vector<std::int64_t>& values) { counts[std::string(name)] = values; }
  void number(std::string_view, double) {}
  void source(const sae::SourceState&) {}
};
template <class Trainer>
Kept kept_by(Trainer& trainer) {
  Kept out;
  trainer.visit_state(out);
  return out;
}

// What a resampling makes of the parameters, by the formulas: latents read along rows of x and write along rows of y.
template <class Parameters>
void resample_by_hand(Parameters& p, const std::vector<Index>& dead, const std::vector<Index>& alive, const Dense& x,
                      const Dense& y, const std::vector<Index>& drawn, double scale, bool unit_encoder, double decoder_norm) {
  double mean = 0;
  for (const Index i : alive) mean += p.encoder().map().row(i).norm() / static_cast<double>(alive.size());
  for (std::size_t n = 0; n < drawn.size(); ++n) {
    const Index i = dead[n];
    const Dense read = x.row(drawn[n]), write = y.row(drawn[n]);
    p.W_dec.map().row(i) = write * (decoder_norm / write.norm());
    if (!p.tied()) p.W_enc.map().row(i) = read * (scale * mean / (unit_encoder ? read.norm() : 1.0));
    p.b_enc[i] = 0;
  }
}
template <class Parameters>
void check_same(const Parameters& got, const Parameters& want) {
  Parameters::visit(
      [](std::string_view name, const auto& a, const auto& b) {
        CAPTURE(name);
        CHECK(relative_error(a.map(), b.map()) <= 1e-12);
      },
      got, want);
}

// What a model makes of rows, for a resampling by hand.
struct Seen {
  std::vector<double> losses;
  Dense x, y;  // what new latents would read and write
};
std::vector<double> row_squares(const Dense& error) {
  std::vector<double> out;
  for (Index b = 0; b < error.rows(); ++b) out.push_back(error.row(b).squaredNorm());
  return out;
}

// Five batches of `rows` (a transcoder's: its target behind x) beside a training without resampling, then a resampling over all of
// them; `see(model)` tells what it should have seen, `decoder_norm(model, alive)` how long its decoder rows are.
template <class Model, class See, class Norm>
void check_by_hand(const Model& first, const sae::TrainerConfig& config, const Dense& rows, const See& see,
                   const Norm& decoder_norm) {
  Model model = first, plain = first;
  auto without = config;
  without.resampling = {};
  sae::Trainer trainer(model, config, sae::Objective<>{}), twin(plain, without, sae::Objective<>{});
  std::vector<Index> last(latents, 0);  // step in which a latent was last active, from 1
  Index resampled = 0;
  const bool residual = config.resampling.form == ResamplingForm::residual;
  for (Index t = 0; t < config.total_steps(); ++t) {
    CHECK(resampled == 0);
    const Dense batch_rows = batch_of(rows, t);
    const auto codes = plain.encode(batch_rows.leftCols(model.d_in()));
    for (const int i : codes.indices()) last[static_cast<std::size_t>(i)] = t + 1;
    twin.train_step(batch_rows);
    resampled = trainer.train_step(batch_rows).resampled;
  }
  std::vector<Index> dead, alive;
  for (Index i = 0; i < latents; ++i) {
    const Index silent = config.total_steps() - last[static_cast<std::size_t>(i)];
    ((residual ? 2 * silent > config.resampling.every : silent == config.total_steps()) ? dead : alive).push_back(i);
  }
  REQUIRE(dead.size() >= 10);
  REQUIRE(alive.size() >= 10);
  const Seen seen = see(plain);
  dead.resize(std::min(dead.size(), seen.losses.size()));  // one input each
  CHECK(resampled == static_cast<Index>(dead.size()));
  sae::Random random(config.resampling.seed, (std::uint64_t{1} << 40) + (residual ? 1 : 0));
  const auto drawn = sae::draw_without_replacement(sae::resampling_probabilities(seen.losses, config.resampling.form),
                                                   static_cast<Index>(dead.size()), random);
  auto want = plain.parameters();
  resample_by_hand(want, dead, alive, seen.x, seen.y, drawn, config.resampling.encoder_scale, !residual,
                   decoder_norm(plain, alive));
  check_same(model.parameters(), want);
  const Kept before = kept_by(twin), after = kept_by(trainer);
  for (const auto& [name, tensor] : before.tensors) {
    if (name.find("moment") != 0) continue;
    CAPTURE(name);
    Dense expected = tensor;
    for (const Index i : dead) {
      if (tensor.rows() == latents) expected.row(i).setZero();
      if (tensor.cols() == latents) expected.col(i).setZero();
    }
    CHECK(after.tensors.at(name) == expected);
  }
}
// Every row of five batches, each of which is looked at.
Resampling over_everything(std::uint64_t seed, bool subtract = false) {
  return {.form = ResamplingForm::loss_squared,
          .every = 5 * batch,
          .window = 5 * batch,
          .rows = 5 * batch,
          .encoder_scale = 0.3,
          .subtract_decoder_bias = subtract,
          .seed = seed};
}
// The same for the residual of the fourth batch.
Resampling over_the_last(std::uint64_t seed, bool subtract = false) {
  return {.form = ResamplingForm::residual, .every = 3, .subtract_decoder_bias = subtract, .seed = seed};
}
template <class Model>
double mean_decoder_norm(const Model& model, const std::vector<Index>& alive) {
  double sum = 0;
  for (const Index i : alive) sum += model.W_dec().row(i).norm();
  return sum / static_cast<double>(alive.size());
}
// Latents that never fire once a resampling is over; the rows hold x first.
template <class Model>
Index never_active(const Model& model, const Dense& rows) {
  const Dense f = model.encode(rows.leftCols(model.d_in())).dense();
  Index dead = 0;
  for (Index i = 0; i < latents; ++i) dead += (f.col(i).array() == 0).all() ? 1 : 0;
  return dead;
}

using Transcoder = sae::Transcoder<sae::Dynamic, sae::Dynamic, sae::Dynamic, sae::ReLU, double>;
constexpr Index target_width = 4;
Transcoder transcoder(bool skip) {
  Transcoder model(width, target_width, latents, {}, {.skip = skip});
  randomise_everything(model, 5);
  for (Index i = 30; i < latents; ++i) model.parameters().b_enc[i] = -50;
  return model;
}
// x and, behind it, what rectified directions of it write.
Dense pairs(Index rows) {
  Dense out(rows, width + target_width);
  out.leftCols(width) = random_rows(rows, width, 3, 1);
  const Dense read = random_rows(width, 12, 7), write = random_rows(12, target_width, 8, 0.5);
  out.rightCols(target_width) = ((out.leftCols(width) * read).cwiseMax(0.0) * write).array() + 1;
  return out;
}

}  // namespace

TEST_CASE("probabilities of inputs: loss squared, or the residual", "[training][resample]") {
  const std::vector<double> losses{1, 2, 3};
  const auto squared = sae::resampling_probabilities(losses, ResamplingForm::loss_squared);
  CHECK(squared[0] == Approx(1.0 / 14));  // 0.07, 0.29, 0.64
  CHECK(squared[1] == Approx(4.0 / 14));
  CHECK(squared[2] == Approx(9.0 / 14));
  const auto residual = sae::resampling_probabilities(std::vector<double>{1, 4, 0, 9}, ResamplingForm::residual);
  CHECK(residual[0] == Approx(1.0 / 6));
  CHECK(residual[1] == Approx(2.0 / 6));
  CHECK(residual[2] == 0);
  CHECK(residual[3] == Approx(3.0 / 6));
  CHECK(sae::resampling_probabilities(std::vector<double>{0, 0}, ResamplingForm::residual) == std::vector<double>{0, 0});
}

TEST_CASE("draws without replacement have the probabilities of draws one by one", "[training][resample]") {
  const std::vector<double> weights{1, 0, 4, 9};
  sae::Random random(1);
  std::map<std::vector<Index>, int> seen;
  constexpr int trials = 40'000;
  for (int t = 0; t < trials; ++t) ++seen[sae::draw_without_replacement(weights, 2, random)];
  CHECK(seen.size() == 6);
  for (const Index a : {0, 2, 3})
    for (const Index b : {0, 2, 3}) {
      if (a == b) continue;
      const double wa = weights[static_cast<std::size_t>(a)], wb = weights[static_cast<std::size_t>(b)];
      const double p = wa / 14 * wb / (14 - wa);
      CHECK(std::abs(seen[{a, b}] - trials * p) < 5 * std::sqrt(trials * p));
    }
  CHECK(sae::draw_without_replacement(weights, 9, random).size() == 3);
  CHECK(sae::draw_without_replacement(std::vector<double>{0, 0}, 2, random).empty());
  sae::Random same(7), again(7);
  CHECK(sae::draw_without_replacement(weights, 3, same) == sae::draw_without_replacement(weights, 3, again));
}

TEST_CASE("resampling by loss squared, step by step", "[training][resample]") {
  const Dense rows = random_rows(300, width, 3, 1);
  for (const bool centred : {false, true})
    for (const double share : {0.0, 0.2}) {
      CAPTURE(centred, share);
      const Resampling resampling{.form = ResamplingForm::loss_squared,
                                  .every = 100,
                                  .times = 2,
                                  .window = 50,
                                  .rows = 50,
                                  .dead_share = share,
                                  .encoder_scale = 0.3,
                                  .subtract_decoder_bias = centred,
                                  .seed = 9};
      Model model = start(), plain = start();
      sae::Trainer trainer(model, config_with(resampling, 15), sae::Objective<>{});
      sae::Trainer twin(plain, config_with({}, 15), sae::Objective<>{});
      std::vector<Index> fires(latents, 0);
      Index resampled = 0;
      for (Index t = 0; t < 5; ++t) {
        const Dense x = batch_of(rows, t);
        const auto codes = plain.encode(x);
        if (t >= 2)  // the window: batches that end at row 60, 80 and 100
          for (const int i : codes.indices()) ++fires[static_cast<std::size_t>(i)];
        twin.train_step(x);
        resampled = trainer.train_step(x).resampled;
        if (t < 4) CHECK(resampled == 0);
        if (t < 4) CHECK(model.W_enc() == plain.W_enc());
      }
      std::vector<Index> dead, alive;
      for (Index i = 0; i < latents; ++i) {
        const Index count = fires[static_cast<std::size_t>(i)];
        if (static_cast<double>(count) <= std::floor(share * 60)) dead.push_back(i);
        if (count > 0) alive.push_back(i);
      }
      REQUIRE(dead.size() >= 10);
      REQUIRE(dead.size() < 30);
      if (share > 0) REQUIRE(dead.size() + alive.size() > static_cast<std::size_t>(latents));
      // Rows 50 to 99 in a ring that was begun at row 40.
      Dense inputs(50, width);
      inputs << rows.middleRows(90, 10), rows.middleRows(50, 40);
      const Dense residual = inputs - plain.reconstruct(inputs);
      std::vector<double> losses;
      for (Index b = 0; b < 50; ++b) losses.push_back(residual.row(b).squaredNorm());
      if (centred) inputs.rowwise() -= plain.b_dec();
      sae::Random random(9, std::uint64_t{1} << 40);
      const auto drawn = sae::draw_without_replacement(sae::resampling_probabilities(losses, ResamplingForm::loss_squared),
                                                       static_cast<Index>(dead.size()), random);
      CHECK(resampled == static_cast<Index>(dead.size()));
      const Kept before = kept_by(twin);
      Kept after = kept_by(trainer);
      auto want = plain.parameters();
      resample_by_hand(want, dead, alive, inputs, inputs, drawn, 0.3, true, 1);
      check_same(model.parameters(), want);
      for (const std::string moment : {"moment0.", "moment1."}) {
        for (Index i = 0; i < latents; ++i) {
          const bool is_dead = std::find(dead.begin(), dead.end(), i) != dead.end();
          for (const std::string name : {"W_enc", "W_dec"}) {
            if (is_dead) CHECK(largest_magnitude(after.tensors.at(moment + name).row(i)) == 0);
            if (!is_dead) CHECK(after.tensors.at(moment + name).row(i) == before.tensors.at(moment + name).row(i));
          }
          CHECK(after.tensors.at(moment + "b_enc")(0, i) == (is_dead ? 0 : before.tensors.at(moment + "b_enc")(0, i)));
        }
        CHECK(after.tensors.at(moment + "b_dec") == before.tensors.at(moment + "b_dec"));
      }
      CHECK(after.counts.at("resampling.counters") == std::vector<std::int64_t>{0, 0, 1, 0, 0});
      CHECK(after.counts.at("silent")[static_cast<std::size_t>(dead.back())] == 0);
      for (Index t = 5; t < 15; ++t) trainer.train_step(batch_of(rows, t));
      after = kept_by(trainer);
      CHECK(after.counts.at("resampling.counters") == std::vector<std::int64_t>{0, 0, 2, 0, 0});  // and no third time
    }
}

TEST_CASE("resampling by the residual, step by step", "[training][resample]") {
  const Dense rows = random_rows(300, width, 3, 1);
  const Resampling resampling{.form = ResamplingForm::residual, .every = 3, .seed = 4};
  Model model = start(), plain = start();
  sae::Trainer trainer(model, config_with(resampling, 9), sae::Objective<>{});
  sae::Trainer twin(plain, config_with({}, 9), sae::Objective<>{});
  std::vector<Index> silent(latents, 0);
  for (Index t = 0; t < 4; ++t) {
    const Dense x = batch_of(rows, t);
    for (Index& s : silent) ++s;
    const auto codes = plain.encode(x);
    for (const int i : codes.indices()) silent[static_cast<std::size_t>(i)] = 0;
    twin.train_step(x);
    const Index resampled = trainer.train_step(x).resampled;
    if (t < 3) {
      CHECK(resampled == 0);  // after the first step nobody is dead yet
      CHECK(model.W_enc() == plain.W_enc());
      continue;
    }
    std::vector<Index> dead, alive;
    for (Index i = 0; i < latents; ++i) (silent[static_cast<std::size_t>(i)] >= 2 ? dead : alive).push_back(i);
    REQUIRE(dead.size() >= 10);
    CHECK(resampled == static_cast<Index>(dead.size()));
    const Dense residual = x - plain.reconstruct(x);
    std::vector<double> losses;
    for (Index b = 0; b < batch; ++b) losses.push_back(residual.row(b).squaredNorm());
    sae::Random random(4, (std::uint64_t{1} << 40) + 1);
    const auto drawn = sae::draw_without_replacement(sae::resampling_probabilities(losses, ResamplingForm::residual),
                                                     static_cast<Index>(dead.size()), random);
    auto want = plain.parameters();
    resample_by_hand(want, dead, alive, x, x, drawn, 0.2, false, 1);
    check_same(model.parameters(), want);
  }
  Index more = 0;
  for (Index t = 4; t < 9; ++t) {
    const Index resampled = trainer.train_step(batch_of(rows, t)).resampled;
    if (t != 6) CHECK(resampled == 0);
    more += resampled;
  }
  CHECK(kept_by(trainer).counts.at("resampling.counters") == std::vector<std::int64_t>{9, 0, 3, 0, 0});
  CHECK(more < 10);  // those that were given an input are alive now
}

TEST_CASE("resampling: fewer inputs than dead latents, inputs without a direction, nobody alive", "[training][resample]") {
  Dense rows = random_rows(100, width, 3, 1);
  rows.bottomRows(2).setZero();
  const auto trained = [&](double bias) {
    Model model = start();
    model.parameters().b_enc.map().array() += bias;
    const Resampling resampling{.form = ResamplingForm::loss_squared, .every = 100, .window = 100, .rows = 5};
    sae::Trainer trainer(model, config_with(resampling, 5), sae::Objective<>{});
    Index resampled = 0;
    for (Index t = 0; t < 5; ++t) resampled = trainer.train_step(batch_of(rows, t)).resampled;
    CHECK(resampled == 3);
    return model;
  };
  const Model few = trained(0), all = trained(-1000);
  Index reset = 0;
  for (Index i = 0; i < latents; ++i) reset += few.b_enc()(0, i) == 0 ? 1 : 0;
  CHECK(reset == 3);
  CHECK(few.b_enc()(0, latents - 1) == -50);  // the lower ones first
  const double mean = start().W_enc().rowwise().norm().mean();
  for (Index i = 0; i < 3; ++i) CHECK(all.W_enc().row(i).norm() == Approx(0.2 * mean).epsilon(1e-12));
  CHECK(all.W_enc().row(3) == start().W_enc().row(3));
}

TEST_CASE("a resampled latent's threshold starts afresh", "[training][resample]") {
  const Dense rows = random_rows(100, width, 3, 1);
  sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::AnyActivation, double> model(width, latents,
                                                                                       sae::JumpReLU{.threshold = 0.25});
  randomise(model, 5);
  auto& thresholds = sae::detail::own_parameters<sae::JumpReLU>(model.parameters().activation)->threshold;
  for (Index i = 0; i < latents; ++i) thresholds[i] = i < 30 ? 0.5 : 100;
  auto config = config_with({.form = ResamplingForm::loss_squared, .every = 100, .window = 100, .rows = 60}, 5);
  config.optimizer = sae::Adafactor{};
  sae::Trainer trainer(model, config, sae::AnyObjective{sae::L0Penalty{.coefficient = 1e-3}});
  Index resampled = 0;
  for (Index t = 0; t < 5; ++t) resampled = trainer.train_step(batch_of(rows, t)).resampled;
  CHECK(resampled >= 10);
  for (Index i = 30; i < latents; ++i) CHECK(thresholds[i] == 0.25);
  const Kept kept = kept_by(trainer);
  CHECK(kept.tensors.at("moment0.W_enc").size() == latents);
  CHECK(largest_magnitude(kept.tensors.at("moment0.W_enc").rightCols(10)) == 0);
  CHECK(largest_magnitude(kept.tensors.at("moment1.W_enc")) > 0);
  CHECK(model.parameters().W_enc.map().allFinite());
  CHECK_NOTHROW(trainer.train_step(batch_of(rows, 0)));
  CHECK(model.parameters().W_enc.map().allFinite());
}

TEST_CASE("resampling: same bytes for any threads and after a resume", "[training][resample][checkpoint]") {
  using Terms = sae::Objective<sae::AuxK>;
  using Run = small_training::Run<sae::TopK, float, Terms, sae::ShuffleBuffer<sae::MatrixSource<float>>>;
  for (const auto form : {ResamplingForm::loss_squared, ResamplingForm::residual}) {
    CAPTURE(static_cast<int>(form));
    const auto make = [&](int threads) {
      sae::TrainerConfig config{.steps = 20, .batch = 32, .learning_rate = 0.01};
      config.resampling = {.form = form, .every = 160, .times = 3, .window = 96, .rows = 70, .seed = 5};
      if (form == ResamplingForm::residual) config.resampling.every = 5;
      Run::Source source(sae::MatrixSource<float>(small_training::some_rows<float>(150)), {.capacity = 64});
      return std::make_unique<Run>(threads, sae::TopK{.k = 1}, Terms(sae::AuxK{}), config, std::move(source));
    };
    const auto straight = make(1), threaded = make(3), killed = make(1), resumed = make(1);
    Index resampled = 0, late = 0;
    straight->trainer.fit(straight->source, [&](const sae::StepReport& r) {
      resampled += r.resampled;
      if (r.step > 8) late += r.resampled;
    });
    CHECK(resampled > 0);
    CHECK(late > 0);
    threaded->trainer.fit(threaded->source);
    CHECK(small_training::bytes_of(straight->model) == small_training::bytes_of(threaded->model));
    const TempFolder folder;
    const auto path = folder / "checkpoint.safetensors";
    const auto kill = [&](auto& trainer, const sae::StepReport& report) {
      if (report.step != 8) return;
      sae::save_checkpoint(trainer, path);
      throw small_training::Killed();
    };
    REQUIRE_THROWS_AS(killed->trainer.fit(killed->source, kill), small_training::Killed);
    sae::load_checkpoint(resumed->trainer, path);
    resumed->trainer.fit(resumed->source);
    CHECK(small_training::bytes_of(straight->model) == small_training::bytes_of(resumed->model));
  }
}

TEST_CASE("resampling of tied weights, step by step", "[training][resample]") {
  const Dense rows = random_rows(100, width, 3, 1);
  Model model(width, latents, {}, {.tied = true});
  model.parameters().W_dec.map() = start().parameters().W_dec.map();
  for (Index i = 30; i < latents; ++i) model.parameters().b_enc[i] = -50;
  for (const bool unit : {false, true})
    for (const bool centred : {false, true}) {
      CAPTURE(unit, centred);
      const auto see = [&](const Dense& x, const Model& plain) {
        const Dense read = centred ? Dense(x.rowwise() - plain.b_dec()) : x;
        return Seen{row_squares(x - plain.reconstruct(x)), read, read};
      };
      const auto norm = [&](const Model& plain, const std::vector<Index>& alive) {
        return unit ? 0.7 : mean_decoder_norm(plain, alive);
      };
      auto config = config_with(over_everything(2, centred), 5);
      config.decoder = unit ? sae::DecoderNorm::unit : sae::DecoderNorm::free;
      config.decoder_norm = 0.7;
      check_by_hand(
          model, config, rows, [&](const Model& plain) { return see(rows, plain); }, norm);
      config.steps = 4;
      config.resampling = over_the_last(2, centred);
      check_by_hand(
          model, config, rows, [&](const Model& plain) { return see(batch_of(rows, 3), plain); }, norm);
    }
}

TEST_CASE("resampling of transcoders, step by step", "[training][resample][transcoder]") {
  const Dense rows = pairs(100);
  for (const bool skip : {false, true})
    for (const bool unit : {false, true})
      for (const bool centred : {false, true}) {
        CAPTURE(skip, unit, centred);
        const auto see = [&](const Dense& both, const Transcoder& plain) {
          const Dense x = both.leftCols(width), y = both.rightCols(target_width);
          Dense write = y;
          if (centred) write.rowwise() -= Dense(plain.parameters().b_dec.map()).row(0);
          if (centred && skip) write -= x * plain.W_skip().transpose();
          return Seen{row_squares(y - plain.predict(x)), x, write};
        };
        const auto norm = [&](const Transcoder& plain, const std::vector<Index>& alive) {
          return unit ? 1.0 : mean_decoder_norm(plain, alive);
        };
        auto config = config_with(over_everything(2, centred), 5);
        if (unit) config.decoder = sae::DecoderNorm::unit;
        check_by_hand(
            transcoder(skip), config, rows, [&](const Transcoder& plain) { return see(rows, plain); }, norm);
        config.steps = 4;
        config.resampling = over_the_last(2, centred);
        check_by_hand(
            transcoder(skip), config, rows, [&](const Transcoder& plain) { return see(batch_of(rows, 3), plain); }, norm);
      }
}

TEST_CASE("resampling of models that normalise their rows, step by step", "[training][resample]") {
  using sae::InputNormalisation;
  using sae::LossSpace;
  Dense rows = random_rows(100, width, 3, 1);
  for (Index b = 0; b < rows.rows(); ++b) rows.row(b) = (rows.row(b).array() + 2) * static_cast<double>(1 + b % 5);
  for (const auto kind : {InputNormalisation::constant_norm, InputNormalisation::layer_norm})
    for (const auto space : {LossSpace::raw, LossSpace::normalised})
      for (const bool centred : {false, true}) {
        CAPTURE(static_cast<int>(kind), static_cast<int>(space), centred);
        Model model(width, latents, {}, {.input_normalisation = kind});
        model.parameters() = start().parameters();
        const auto see = [&](const Dense& x, const Model& plain) {
          Dense error = x - plain.reconstruct(x), u = x;
          for (Index b = 0; b < x.rows(); ++b) {
            const bool centres = kind == InputNormalisation::layer_norm;
            const double mean = centres ? x.row(b).mean() : 0.0;
            const double spread = std::sqrt((x.row(b).array() - mean).square().sum() / (centres ? width - 1 : width));
            u.row(b) = (x.row(b).array() - mean) / (spread + (centres ? 1e-5 : 0.0));
            // u' = (x' - mean) / spread
            if (space == LossSpace::normalised)
              error.row(b) = u.row(b).array() - (x.row(b).array() - error.row(b).array() - mean) / spread;
          }
          const Dense read = centred ? Dense(u.rowwise() - plain.b_dec()) : u;
          return Seen{row_squares(error), read, read};
        };
        const auto norm = [](const Model&, const std::vector<Index>&) { return 1.0; };
        auto config = config_with(over_everything(2, centred), 5);
        config.loss_space = space;
        check_by_hand(
            model, config, rows, [&](const Model& plain) { return see(rows, plain); }, norm);
        config.steps = 4;
        config.resampling = over_the_last(2, centred);
        check_by_hand(
            model, config, rows, [&](const Model& plain) { return see(batch_of(rows, 3), plain); }, norm);
      }
}

TEST_CASE("resampling of transcoders: same bytes for any threads and after a resume", "[training][resample][checkpoint]") {
  const Dense rows = pairs(150);
  for (const auto form : {ResamplingForm::loss_squared, ResamplingForm::residual}) {
    CAPTURE(static_cast<int>(form));
    auto config = config_with({.form = form, .every = 100, .times = 3, .window = 60, .rows = 100, .seed = 5}, 20);
    if (form == ResamplingForm::residual) config.resampling.every = 9;
    config.normalisation = sae::Normalisation::mean_square;
    // Trains to the end, from `from` where there is one; or to step 3, which it leaves in `to`.
    const auto trained = [&](int thread_count, const std::string& from, const std::string& to) {
      sae::Threads threads(thread_count);
      Transcoder model = transcoder(true);
      sae::Trainer trainer(model, config, sae::Objective<>{}, threads);
      sae::MatrixSource<double> source(rows, {});
      if (!from.empty()) sae::load_checkpoint(trainer, from);
      Index resampled = 0;
      const auto callback = [&](auto& self, const sae::StepReport& report) {
        resampled += report.step == (form == ResamplingForm::residual ? 10 : 5) ? report.resampled : 0;
        if (report.step != 3 || to.empty()) return;
        sae::save_checkpoint(self, to);
        throw small_training::Killed();
      };
      if (!to.empty()) {
        REQUIRE_THROWS_AS(trainer.fit(source, callback), small_training::Killed);
      } else {
        trainer.fit(source, callback);
        CHECK(resampled > 0);
      }
      return small_training::bytes_of(model);
    };
    const TempFolder folder;
    const std::string path = (folder / "checkpoint.safetensors").string(), straight = trained(1, "", "");
    CHECK(straight == trained(3, "", ""));
    trained(1, "", path);
    CHECK(straight == trained(1, path, ""));
  }
}

TEST_CASE("resampling brings dead latents back", "[training][resample]") {
  const auto dead_after = [](auto model, const Dense& rows, const Resampling& resampling) {
    sae::MatrixSource<double> source(rows, {});
    sae::Trainer trainer(model, config_with(resampling, 100), sae::Objective{sae::L1{.coefficient = 0.01}});
    trainer.fit(source);
    return never_active(model, rows);
  };
  const Dense rows = random_rows(2000, width, 3, 1), targets = pairs(2000);
  Model tied(width, latents, {}, {.tied = true});
  for (Index i = 30; i < latents; ++i) tied.parameters().b_enc[i] = -50;
  Model normalises(width, latents, {}, {.input_normalisation = sae::InputNormalisation::layer_norm});
  normalises.parameters() = start().parameters();
  const auto check = [&](const auto& model, const Dense& data) {
    CHECK(dead_after(model, data, {}) >= 10);
    CHECK(dead_after(model, data, {.form = ResamplingForm::loss_squared, .every = 500, .window = 200, .rows = 400}) <= 2);
    CHECK(dead_after(model, data, {.form = ResamplingForm::residual, .every = 25}) <= 2);
  };
  check(start(), rows);
  check(tied, rows);
  check(normalises, rows);
  check(transcoder(true), targets);
}

// dictionary_learning's PAnnealTrainer writes its new rows into a copy (weight[deads][:n] = ...) and leaves the model as it was.
TEST_CASE("resampling reaches the weights under p-annealing, too", "[training][resample]") {
  Model model = start();
  const sae::PAnneal term{.coefficient = 0.01, .updates = 2, .anneal_start = 1, .anneal_end = 4};
  sae::Trainer trainer(model, config_with({.form = ResamplingForm::residual, .every = 3}, 4), sae::Objective{term});
  const Dense rows = random_rows(80, width, 3, 1);
  for (Index t = 0; t < 3; ++t) trainer.train_step(batch_of(rows, t));
  const auto before = model.parameters();
  REQUIRE(trainer.train_step(batch_of(rows, 3)).resampled >= 10);
  for (Index i = 30; i < latents; ++i) {
    CAPTURE(i);
    CHECK((model.W_dec().row(i) - before.W_dec.map().row(i)).norm() > 0.1);
    CHECK((model.W_enc().row(i) - before.W_enc.map().row(i)).norm() > 0.1);
    CHECK(model.b_enc()(i) == 0);
  }
}

TEST_CASE("resampling refuses what it cannot do", "[training][resample]") {
  Model model = start();
  const auto message = [&](Resampling resampling, sae::Frozen frozen = {}) -> std::string {
    auto config = config_with(resampling, 5);
    config.frozen = frozen;
    try {
      sae::Trainer(model, config, sae::Objective<>{});
    } catch (const sae::ValueError& error) {
      return error.what();
    }
    return "";
  };
  const auto form = ResamplingForm::loss_squared;
  CHECK(message({.form = form}).empty());
  CHECK(message({.form = form, .every = 0}) == "Resampling: every = 0 is below 1");
  CHECK(message({.form = form, .times = -1}) == "Resampling: times = -1 is negative");
  CHECK(message({.form = form, .every = 10, .window = 11}) == "Resampling: window = 11 is not in [1, 10] (every)");
  CHECK(message({.form = form, .every = 10, .window = 10, .rows = 0}) == "Resampling: rows = 0 is not in [1, 10] (every)");
  CHECK(message({.form = form, .dead_share = 1}) == "Resampling: dead_share = 1 is not in [0, 1)");
  CHECK(message({.form = form, .encoder_scale = 0}) == "Resampling: encoder_scale = 0 is not positive");
  CHECK(message({.every = 0}).empty());  // off
  CHECK(message({.form = form}, {.decoder = true}) ==
        "Trainer: resampling gives latents new encoder and decoder rows and biases, and frozen holds them");
}
