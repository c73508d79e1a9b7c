// Resampling of an autoencoder: its draws, its formulas step by step, what it keeps and refuses.
#include <sae/training/p_anneal.hpp>
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
  CHECK(message({.form = form, .times = -1}) == "Resampling: times = -1 is not in [0, infinity)");
  CHECK(message({.form = form, .every = 10, .window = 11}) == "Resampling: window = 11 is not in [1, 10] (every)");
  CHECK(message({.form = form, .every = 10, .window = 10, .rows = 0}) == "Resampling: rows = 0 is not in [1, 10] (every)");
  CHECK(message({.form = form, .dead_share = 1}) == "Resampling: dead_share = 1 is not in [0, 1)");
  CHECK(message({.form = form, .encoder_scale = 0}) == "Resampling: encoder_scale = 0 is not in (0, infinity)");
  CHECK(message({.every = 0}).empty());  // off
  CHECK(message({.form = form}, {.decoder = true}) ==
        "Trainer: resampling gives latents new encoder and decoder rows and biases, and frozen holds them");
}
