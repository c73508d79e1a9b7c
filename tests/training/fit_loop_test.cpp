// The loop of `fit`: who is called when, and how the source is read.
#include <sae/training/fit_loop.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <string_view>
#include <thread>
#include <vector>

#include "catch_compat.hpp"
#include "plain_training.hpp"

namespace {

using sae::Index;
using namespace sae_test;
using namespace plain_training;

}  // namespace

TEST_CASE("callbacks: one or two arguments, void or bool, every so many steps and at the last", "[training][fit]") {
  TopKModel model(width, 20, {.k = 3});
  sae::TrainerConfig config = plain(10, 8);
  config.report_every = 4;
  sae::Trainer trainer(model, config);
  auto source = in_order(data(50));
  std::vector<Index> one, two;
  struct Counting {
    int calls = 0;
    void operator()(const sae::StepReport&) { ++calls; }
  } counting;
  const auto status = trainer.fit(
      source, [&](const sae::StepReport& r) { one.push_back(r.step); },
      [&](auto& t, const sae::StepReport& r) {
        CHECK(t.step() == r.step);
        two.push_back(t.tokens());
        return false;
      },
      counting);
  CHECK(status == sae::FitStatus::finished);
  CHECK(one == std::vector<Index>{4, 8, 10});
  CHECK(two == std::vector<Index>{32, 64, 80});
  CHECK(counting.calls == 3);
}

TEST_CASE("a callback that returns true stops the run, the others still hear of it", "[training][fit]") {
  TopKModel model(width, 20, {.k = 3});
  sae::Trainer trainer(model, plain(10, 8));
  auto source = in_order(data(50));
  Index heard = 0;
  CHECK(trainer.fit(
            source, [](const sae::StepReport& r) { return r.step == 4; }, [&](const sae::StepReport& r) { heard = r.step; }) ==
        sae::FitStatus::stopped);
  CHECK(heard == 4);
  CHECK(trainer.step() == 4);
  CHECK_THROWS_WITH(trainer.fit(source), "Trainer: fit was run to its end already; make a new trainer to go on");

  TopKModel other(width, 20, {.k = 3});
  sae::Trainer to_the_end(other, plain(4, 8));  // asked to stop at the last step: it had finished
  CHECK(to_the_end.fit(source, [](const sae::StepReport& r) { return r.step == 4; }) == sae::FitStatus::finished);
}

TEST_CASE("a source that ends: whole batches only", "[training][fit]") {
  TopKModel model(width, 20, {.k = 3}), short_model = model;
  sae::Trainer trainer(model, plain(10, 8));
  auto source = in_order(data(20), 1);  // two batches and a half
  Index reports = 0;
  CHECK(trainer.fit(source, [&](const sae::StepReport&) { ++reports; }) == sae::FitStatus::exhausted);
  CHECK(trainer.step() == 2);
  CHECK(trainer.tokens() == 16);
  CHECK(reports == 2);

  const auto before = short_model;
  sae::Trainer none(short_model, {.steps = 3, .batch = 8});
  auto too_short = in_order(data(5), 1);
  CHECK(none.fit(too_short) == sae::FitStatus::exhausted);
  CHECK(none.step() == 0);
  CHECK(short_model.W_enc() == before.W_enc());
  CHECK(largest_difference(short_model.b_dec(), Dense(data(5).colwise().mean())) <= 1e-13);  // in raw units again
}

// A source may give what it has at hand: pieces of 7 rows are the same stream.
TEST_CASE("batches are filled from a source that gives fewer rows at a time", "[training][fit]") {
  struct Pieces {
    sae::MatrixSource<double> rows;
    Index width() const { return rows.width(); }
    Index next(sae::Tensor<double>& batch) {
      sae::Tensor<double> piece(std::min<Index>(batch.rows(), 7), batch.cols());
      const Index got = rows.next(piece);
      std::copy_n(piece.data(), got * batch.cols(), batch.data());
      return got;
    }
    sae::SourceState state() const { return rows.state(); }
    void restore(const sae::SourceState& state) { rows.restore(state); }
  };
  const Dense rows = data(300);
  for (const auto center : {sae::Center::mean, sae::Center::geometric_median}) {
    TopKModel whole(width, 20, {.k = 3}), pieced = whole;
    const sae::TrainerConfig config{.steps = 14, .batch = 20, .center = center};
    sae::Trainer straight(whole, config), in_pieces(pieced, config);
    auto source = in_order(rows, 1);
    Pieces pieces{in_order(rows, 1)};
    CHECK(straight.fit(source) == sae::FitStatus::finished);
    CHECK(in_pieces.fit(pieces) == sae::FitStatus::finished);
    CHECK(same_bytes(whole.parameters(), pieced.parameters()));
  }
}

namespace {

/// How many batches the source was asked for, and a term that waits until it is asked for the one behind its own.
struct Asked {
  std::atomic<Index> batches = 0, overlapped = 0;
};
struct CountedSource {
  sae::MatrixSource<double>& inner;
  Asked& asked;
  Index width() const { return inner.width(); }
  Index next(sae::Tensor<double>& batch) { return ++asked.batches, inner.next(batch); }
  sae::SourceState state() const { return inner.state(); }
  void restore(const sae::SourceState& state) { inner.restore(state); }
};
struct WaitsForTheNext {
  Asked* asked;
  static constexpr std::string_view name = "waits";
  void visit_settings(auto&&) const {}
  void check(Index, Index) const {}
  bool needs_decoder_norms() const { return false; }
  template <class Step>
  double apply(Step& step, sae::NoSelection&, sae::Threads&) const {
    for (int wait = 0; wait < 100 && asked->batches < step.number + 2; ++wait)
      std::this_thread::sleep_for(std::chrono::milliseconds(step.number % 3 == 2 ? 1 : 100));
    asked->overlapped += asked->batches >= step.number + 2;
    return 0;
  }
};

}  // namespace

TEST_CASE("the source is read while a step works, but not ahead of a callback", "[training][fit][threads]") {
  const Dense rows = data(70);
  TopKModel model(width, 40, {.k = 3});
  sae::TrainerConfig config = plain(9, 20);
  config.report_every = 3;
  Asked asked;
  auto inner = in_order(rows);
  CountedSource source{inner, asked};
  sae::Trainer trainer(model, config, sae::Objective{WaitsForTheNext{&asked}});
  std::vector<Index> before;
  trainer.fit(source, [&](const sae::StepReport&) { before.push_back(asked.batches); });
  CHECK(before == std::vector<Index>{3, 6, 9});
  CHECK(asked.overlapped == 6);
}

TEST_CASE("after an exception fit goes on where it was", "[training][fit]") {
  const Dense rows = data(400);
  const auto config = [] { return sae::TrainerConfig{.steps = 12, .batch = 20, .learning_rate = 0.01}; };
  TopKModel whole(width, 20, {.k = 3}), broken = whole;
  sae::Trainer straight(whole, config()), interrupted(broken, config());
  auto source = in_order(rows), other = in_order(rows);
  straight.fit(source);
  CHECK_THROWS_AS(interrupted.fit(other,
                                  [](const sae::StepReport& r) {
                                    if (r.step == 5) sae::throw_value("disk full");
                                  }),
                  sae::ValueError);
  CHECK(interrupted.step() == 5);
  CHECK(interrupted.scale() != 1);  // not folded
  CHECK(interrupted.fit(other) == sae::FitStatus::finished);
  CHECK(same_bytes(broken.parameters(), whole.parameters()));
}
