// Options of a training beside its loss and optimizer: k that anneals, tensors that are frozen, runs that diverge.
#include <sae/data/indexed_source.hpp>
#include <sae/training/trainer.hpp>

#include <cmath>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "catch_compat.hpp"
#include "gradient_check.hpp"
#include "small_training.hpp"
#include "temp_folder.hpp"

namespace {

using sae::Index;
using namespace sae_test;
template <class Activation>
using Model = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, Activation, double>;

constexpr Index width = 6, latents = 40;

sae::TrainerConfig plain(Index steps, Index batch = 20) {
  return {.steps = steps,
          .batch = batch,
          .learning_rate = 0.01,
          .center = sae::Center::none,
          .normalisation = sae::Normalisation::none};
}
template <class F>
std::string message(const F& f) {
  try {
    f();
  } catch (const sae::ValueError& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("k anneals to the activation's own", "[training][k_annealing]") {
  const Dense rows = random_rows(200, width, 3, 1);
  const std::vector<double> want{11, 9, 7, 5, 3, 3};
  const auto check = [&](auto activation) {
    using Activation = decltype(activation);
    sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, Activation, double> model(width, latents, activation);
    for (Index i = 0; i < latents; ++i) model.parameters().b_enc[i] = 5;  // all positive
    auto config = plain(6);
    config.learning_rate = 1e-9;
    config.k_annealing = {.from = 11, .steps = 4};
    sae::Trainer trainer(model, config, sae::AnyObjective{});
    for (std::size_t t = 0; t < want.size(); ++t) {
      const double l0 = trainer.train_step(rows.topRows(20)).l0;
      CAPTURE(t);
      CHECK(l0 == want[t]);
      CHECK(sae::detail::row_k(model.activation()) == 3);  // callbacks see its own
      CHECK(model.encode(rows).size() == 3 * 200);
    }
  };
  check(sae::TopK{.k = 3});
  check(sae::AbsTopK{.k = 3});
  check(sae::BatchTopK{.k = 3});
  check(sae::AnyActivation(sae::TopK{.k = 3}));
}

TEST_CASE("an annealing step is a step with that k", "[training][k_annealing]") {
  const Dense rows = random_rows(60, width, 3, 1);
  Model<sae::TopK> model(width, latents, {.k = 2}), wide(width, latents, {.k = 10});
  randomise(model, 3);
  randomise(wide, 3);
  auto config = plain(5);
  sae::Trainer other(wide, config, sae::Objective<>{});
  config.k_annealing = {.from = 10, .steps = 5};
  sae::Trainer trainer(model, config, sae::Objective<>{});
  trainer.train_step(rows.topRows(20));
  other.train_step(rows.topRows(20));
  CHECK(model.W_enc() == wide.W_enc());
  CHECK(model.W_dec() == wide.W_dec());
  trainer.train_step(rows.topRows(20));  // k = 8
  other.train_step(rows.topRows(20));
  CHECK(model.W_dec() != wide.W_dec());
}

TEST_CASE("k annealing refuses what it cannot do", "[training][k_annealing]") {
  const auto made = [](auto activation, sae::KAnnealing annealing) {
    Model<decltype(activation)> model(width, latents, activation);
    auto config = plain(8);
    config.k_annealing = annealing;
    return message([&] { sae::Trainer(model, config, sae::Objective<>{}); });
  };
  CHECK(made(sae::TopK{.k = 3}, {.from = 40, .steps = 8}).empty());
  CHECK(made(sae::ReLU{}, {}).empty());
  CHECK(made(sae::ReLU{}, {.from = 5, .steps = 3}) ==
        "Trainer: k_annealing.from = 5, and the activation relu has no k to anneal (topk, batch_topk and abs_topk have)");
  CHECK(made(sae::GroupMax{.k = 4}, {.from = 5, .steps = 3}) ==
        "Trainer: k_annealing.from = 5, and the activation group_max has no k to anneal (topk, batch_topk and abs_topk have)");
  CHECK(made(sae::TopK{.k = 3}, {.from = 41, .steps = 3}) == "Trainer: k_annealing.from = 41 is not in [1, 40] (the latents)");
  CHECK(made(sae::TopK{.k = 3}, {.from = -1}) == "Trainer: k_annealing.from = -1 is not in [0, infinity)");
  CHECK(made(sae::TopK{.k = 3}, {.from = 5, .steps = 9}) ==
        "Trainer: k_annealing.steps = 9 is not in [1, 8] (the steps of the run)");
  Model<sae::TopK> model(width, latents, {.k = 3});
  model.set_k(7);
  CHECK(model.activation().k == 7);
  CHECK(message([&] { model.set_k(41); }) == "TopK: k = 41 is not in [1, 40] (the number of latents)");
  CHECK(model.activation().k == 7);
  Model<sae::ReLU> relu(width, latents);
  CHECK(message([&] { relu.set_k(3); }) ==
        "set_k: the activation relu has no k that may be set (topk, batch_topk and abs_topk have)");
}

TEST_CASE("k annealing: a resumed run ends with the same bytes", "[training][k_annealing][checkpoint]") {
  sae::TrainerConfig config;
  config.k_annealing = {.from = 9, .steps = 10, .shape = sae::AnnealShape::exponential};
  const auto make = [&] { return small_training::make_small(14, {.k = 2}, config); };
  const auto straight = make(), killed = make(), resumed = make();
  straight->trainer.fit(straight->source);
  const TempFolder folder;
  const auto path = folder / "checkpoint.safetensors";
  REQUIRE_THROWS_AS(killed->trainer.fit(killed->source,
                                        [&](auto& trainer, const sae::StepReport& report) {
                                          if (report.step != 4) return;
                                          sae::save_checkpoint(trainer, path);
                                          throw small_training::Killed();
                                        }),
                    small_training::Killed);
  sae::load_checkpoint(resumed->trainer, path);
  resumed->trainer.fit(resumed->source);
  CHECK(small_training::bytes_of(straight->model) == small_training::bytes_of(resumed->model));
}

TEST_CASE("decoder rows are brought to their norm before the update where that is asked for", "[training][decoder]") {
  const Dense x = random_rows(20, width, 3, 1);
  const sae::AnyObjective objective{sae::AuxK{}};
  for (const double clip : {0.0, 1e9}) {  // both routes
    Model<sae::TopK> model(width, latents, sae::TopK{.k = 4});
    for (Index i = 0; i < latents; ++i) model.parameters().W_dec.map().row(i) *= 1 + 0.1 * static_cast<double>(i);
    const auto g = model.gradient(x, objective).parameters;  // of rows as they are
    const Dense norms = model.parameters().W_dec.map().rowwise().norm();
    const Dense unit = model.parameters().W_dec.map().array().colwise() / norms.col(0).array();
    const Dense along = (g.W_dec.map().array() * unit.array()).rowwise().sum();
    const Dense want = unit - 0.01 * (g.W_dec.map() - (unit.array().colwise() * along.col(0).array()).matrix());
    auto config = plain(2);
    config.optimizer = sae::Sgd{.momentum = 0};
    config.normalise_before_update = true;
    config.clip_norm = clip;
    sae::Trainer trainer(model, config, objective);
    trainer.train_step(x);
    CHECK((model.parameters().W_dec.map() - want).cwiseAbs().maxCoeff() < 1e-14);
    CHECK((want.rowwise().norm().array() - 1).abs().maxCoeff() > 1e-9);  // the update left them so
  }
}

TEST_CASE("frozen tensors stay, the others move as they would", "[training][frozen]") {
  const Dense rows = random_rows(200, width, 3, 1);
  const std::vector<std::string> names{"W_enc", "W_dec", "b_enc", "b_dec", "threshold"};
  const auto frozen_of = [](const std::string& name) {
    return sae::Frozen{.encoder = name == "W_enc",
                       .decoder = name == "W_dec",
                       .b_enc = name == "b_enc",
                       .b_dec = name == "b_dec",
                       .activation = name == "threshold"};
  };
  for (const bool two_passes : {false, true})
    for (const double ema : {0.0, 0.9})
      for (const std::string& name : names) {
        CAPTURE(two_passes, ema, name);
        Model<sae::JumpReLU> start(width, latents, {.threshold = 0.3, .bandwidth = 2});
        randomise(start, 4);
        auto config = plain(4);
        config.clip_norm = two_passes ? 1e9 : 0;
        config.ema = ema;
        config.center = sae::Center::mean;
        config.optimizer = sae::AdamW{.weight_decay = 0.1};
        const auto trained = [&](const sae::Frozen& frozen, Index steps) {
          auto model = start;
          config.steps = steps;
          config.frozen = frozen;
          sae::Trainer trainer(model, config, sae::Objective{sae::L0Penalty{.coefficient = 0.1}});
          sae::MatrixSource<double> source(rows, {.shuffle = false});
          trainer.fit(source);
          return std::make_pair(model.parameters(), trainer.optimizer_numbers());
        };
        const auto [held, numbers] = trained(frozen_of(name), 4);
        using Parameters = Model<sae::JumpReLU>::Parameters;
        Index frozen_size = 0;
        Parameters::visit(
            [&](std::string_view tensor, const auto& got, const auto& before) {
              CAPTURE(tensor);
              if (tensor == name) {
                CHECK(got == before);
                frozen_size = got.size();
              } else {
                CHECK(got != before);
              }
            },
            held, start.parameters());
        CHECK(numbers == trained({}, 1).second - 2 * frozen_size);
        // The first step of the others does not depend on what is frozen.
        if (name == "b_dec") continue;
        const auto one = trained(frozen_of(name), 1).first, free = trained({}, 1).first;
        Parameters::visit(
            [&](std::string_view tensor, const auto& a, const auto& b) {
              CAPTURE(tensor);
              if (tensor != name) CHECK(relative_error(a.map(), b.map()) <= 1e-12);
            },
            one, free);
      }
}

TEST_CASE("the clipped norm is that of what moves", "[training][frozen]") {
  const Dense rows = random_rows(20, width, 3, 1);
  Model<sae::TopK> model(width, latents, {.k = 4});
  randomise(model, 4);
  const auto gradient = model.gradient(rows).parameters;
  auto config = plain(1);
  config.decoder = sae::DecoderNorm::free;
  config.clip_norm = 1;
  config.frozen = {.encoder = true, .b_enc = true};
  sae::Trainer trainer(model, config, sae::Objective<>{});
  CHECK(trainer.train_step(rows).gradient_norm ==
        Approx(std::sqrt(gradient.W_dec.map().squaredNorm() + gradient.b_dec.map().squaredNorm())).epsilon(1e-12));
}

TEST_CASE("everything frozen: nothing moves, nothing is kept", "[training][frozen]") {
  const Dense rows = random_rows(20, width, 3, 1);
  for (const auto& optimizer : {sae::Optimizer(sae::Adam{}), sae::Optimizer(sae::Muon{})}) {
    Model<sae::TopK> model(width, latents, {.k = 4});
    randomise(model, 4);
    const auto before = model.parameters();
    auto config = plain(1);
    config.optimizer = optimizer;
    config.frozen = {.encoder = true, .decoder = true, .b_enc = true, .b_dec = true};
    sae::Trainer trainer(model, config);
    CHECK(trainer.train_step(rows).loss > 0);
    CHECK(trainer.optimizer_numbers() == 0);
    Model<sae::TopK>::Parameters::visit([](std::string_view, const auto& a, const auto& b) { CHECK(a == b); }, before,
                                        model.parameters());
  }
}

TEST_CASE("a run that diverges says so and keeps its last good checkpoint", "[training][diverged]") {
  const TempFolder folder;
  const auto path = folder / "checkpoint.safetensors";
  sae::TrainerConfig config;
  config.learning_rate = 1e30;
  config.decoder = sae::DecoderNorm::free;
  const auto run = small_training::make_small(50, {.k = 2}, config);
  Index last = 0;
  try {
    run->trainer.fit(run->source, sae::checkpoint_every(path, 1), [&](const sae::StepReport& r) { last = r.step; });
    FAIL("it did not diverge");
  } catch (const sae::DivergedError& error) {
    CAPTURE(error.what());
    CHECK(error.step >= last);
    CHECK(error.step <= last + 1);
    CHECK_THAT(error.what(), Catch::Matchers::ContainsSubstring("Trainer: training diverged: at step"));
  }
  REQUIRE(last < 50);
  REQUIRE(last >= 1);
  const auto again = small_training::make_small(50, {.k = 2}, config);
  sae::load_checkpoint(again->trainer, path);
  CHECK(again->trainer.step() >= 1);
  CHECK(again->trainer.step() <= last);
  CHECK_NOTHROW(again->trainer.check_weights());
}

TEST_CASE("weights that are not finite: no checkpoint, no end", "[training][diverged][checkpoint]") {
  const TempFolder folder;
  const auto path = folder / "checkpoint.safetensors";
  const auto run = small_training::make_small(4);
  // A latent whose bias is NaN is never selected: the loss does not tell.
  const auto spoil = [&](auto& trainer, const sae::StepReport& report) {
    if (report.step == 1) sae::save_checkpoint(trainer, path);
    if (report.step == 1) run->model.parameters().b_enc[5] = std::numeric_limits<float>::quiet_NaN();
    if (report.step == 2)
      CHECK(message([&] { sae::save_checkpoint(trainer, path); }) ==
            "Trainer: training diverged: at step 2 b_enc holds a number that is not finite; a lower learning_rate may help");
  };
  CHECK_THROWS_AS(run->trainer.fit(run->source, spoil), sae::DivergedError);
  CHECK(run->trainer.step() == 4);
  const auto again = small_training::make_small(4);
  sae::load_checkpoint(again->trainer, path);
  CHECK(again->trainer.step() == 1);
}
