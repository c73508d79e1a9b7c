// Resampling of what is not a plain autoencoder: tied weights, transcoders, models that normalise their rows.
#include <sae/data/indexed_source.hpp>
#include <sae/models/transcoder.hpp>
#include <sae/training/resample.hpp>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "catch_compat.hpp"
#include "resampling.hpp"
#include "small_training.hpp"
#include "temp_folder.hpp"

namespace {

using namespace sae_test;
using namespace sae_test::resampling;

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
/// By both forms: see(rows, model) is what a model makes of rows.
template <class Model, class See, class Norm>
void check_both_forms(const Model& first, sae::TrainerConfig config, const Dense& rows, bool centred, const See& see,
                      const Norm& decoder_norm) {
  config.steps = 5;
  config.resampling = over_everything(2, centred);
  check_by_hand(
      first, config, rows, [&](const Model& plain) { return see(rows, plain); }, decoder_norm);
  config.steps = 4;
  config.resampling = over_the_last(2, centred);
  check_by_hand(
      first, config, rows, [&](const Model& plain) { return see(batch_of(rows, 3), plain); }, decoder_norm);
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
      auto config = config_with({}, 5);
      config.decoder = unit ? sae::DecoderNorm::unit : sae::DecoderNorm::free;
      config.decoder_norm = 0.7;
      check_both_forms(model, config, rows, centred, see, norm);
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
        auto config = config_with({}, 5);
        if (unit) config.decoder = sae::DecoderNorm::unit;
        check_both_forms(transcoder(skip), config, rows, centred, see, norm);
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
        auto config = config_with({}, 5);
        config.loss_space = space;
        check_both_forms(model, config, rows, centred, see, norm);
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
