#include <sae/activations/batch_topk.hpp>
#include <sae/data/indexed_source.hpp>
#include <sae/formats/checkpoint.hpp>
#include <sae/models/sparse_autoencoder.hpp>
#include <sae/training/aux_k.hpp>
#include <sae/training/trainer.hpp>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "catch_compat.hpp"
#include "gradient_check.hpp"
#include "select_blocks.hpp"
#include "temp_folder.hpp"

namespace {

using sae::BatchTopK;
using sae::Index;
using sae::ThresholdAverage;
using namespace sae_test;

template <class Scalar = double>
using Model = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, BatchTopK, Scalar>;
using Selector = BatchTopK::Selector<double>;
using State = BatchTopK::Parameters<double>;

constexpr Index width = 6, latents = 70;

State fresh_state() {
  State state;
  state.resize(5);
  return state;
}
// A batch whose smallest kept key is `smallest`; none is kept where it is not positive.
void observe(const BatchTopK& activation, State& state, double smallest) {
  Dense z(1, 3);
  z << smallest + 1, smallest, -1;
  if (smallest <= 0) z.setConstant(-1);
  std::vector<Selector> selectors;
  (void)select_blocks(activation, z, {}, {}, selectors);
  activation.observe(std::span<const Selector>(selectors), state);
}
double smallest_key(const Dense& z, const Mask& kept, const std::vector<double>& norms) {
  double smallest = std::numeric_limits<double>::infinity();
  for (Index b = 0; b < z.rows(); ++b)
    for (Index i = 0; i < z.cols(); ++i)
      if (kept(b, i) != 0) smallest = std::min(smallest, z(b, i) * (norms.empty() ? 1.0 : norms[static_cast<std::size_t>(i)]));
  return smallest;
}

struct Trained {
  Model<float> model;
  std::vector<double> thresholds;  // after each step
};
Trained trained(double clip, int thread_count) {
  Trained out{Model<float>(8, 200, {.k = 5.3, .rank_by_decoder_norm = true}), {}};
  sae::Threads threads(thread_count);
  sae::Trainer trainer(out.model, {.steps = 10, .batch = 150, .learning_rate = 3e-3, .clip_norm = clip, .report_every = 1},
                       sae::Objective{sae::AuxK{}}, threads);
  sae::MatrixSource<float> source(sae::Matrix<float>(random_rows(600, 8, 3).cast<float>()));
  CHECK(trainer.fit(source, [&](const sae::StepReport&) {
    out.thresholds.push_back(out.model.activation().threshold(out.model.parameters().activation));
  }) == sae::FitStatus::finished);
  return out;
}
template <class Scalar>
bool same_bytes(const Model<Scalar>& a, const Model<Scalar>& b) {
  bool same = a.parameters().activation.threshold_state == b.parameters().activation.threshold_state;
  Model<Scalar>::Parameters::visit([&](std::string_view, const auto& x, const auto& y) { same = same && x == y; },
                                   a.parameters(), b.parameters());
  return same;
}

}  // namespace

TEST_CASE("BatchTopK by hand: the batch's largest, equals by row, then latent", "[activations][batch_topk]") {
  Dense z(3, 3), want(3, 3);
  z << 3, -1, 2, 0.5, 4, 2, -1, 0, 2;
  want << 3, 0, 2, 0, 4, 2, 0, 0, 0;
  std::vector<Selector> selectors;
  const auto got = select_blocks(BatchTopK{.k = 1.4}, z, {.block_rows = 2}, {}, selectors);  // floor(4.2) = 4
  CHECK(same(got.codes.dense(), want));
  CHECK(selectors[0].smallest_key() == 2);
  const auto by_norm = select_blocks(BatchTopK{.k = 1.4, .rank_by_decoder_norm = true}, z, {}, {1, 0, 4});
  want << 3, 0, 2, 0, 0, 2, 0, 0, 2;
  CHECK(same(by_norm.codes.dense(), want));
  // Less than one entry for the whole batch.
  CHECK(select_blocks(BatchTopK{.k = 0.3}, z).codes.size() == 0);
  CHECK(select_blocks(BatchTopK{.k = 0.34}, z).codes.size() == 1);
}

TEST_CASE("BatchTopK is its naive twin over sizes, blocks, tiles and orders of blocks", "[activations][batch_topk]") {
  std::vector<Selector> selectors;  // reused throughout: no batch knows of an earlier one
  for (const Index columns : {1, 2, 16, 17, 130})
    for (const Index rows : {0, 1, 2, 23})
      for (const double k : {0.3, 1.0, 2.7, 0.5 * static_cast<double>(columns), static_cast<double>(columns)})
        for (const Cut& cut : {Cut{}, Cut{.block_rows = 1, .tile = 1}, Cut{.block_rows = 7, .tile = 33, .seed = 5},
                               Cut{.block_rows = 7, .tile = 33, .link = false}})
          for (const bool by_norm : {false, true}) {
            if (k > static_cast<double>(columns)) continue;
            CAPTURE(columns, rows, k, cut.block_rows, cut.tile, by_norm);
            const Dense z = awkward_rows(rows, columns, 3);
            const auto norms = by_norm ? awkward_norms(columns, 4) : std::vector<double>();
            const auto got = select_blocks(BatchTopK{.k = k, .rank_by_decoder_norm = by_norm}, z, cut, norms, selectors);
            const Mask want = naive_largest_of_batch(z, static_cast<Index>(std::floor(k * static_cast<double>(rows))), norms);
            REQUIRE(mask_of(got.codes) == want);
            REQUIRE(same(got.codes.dense(), naive_codes(z, want)));
            for (Index e = 0; e < got.size(); ++e) REQUIRE(got.codes.value(e) == got.z[static_cast<std::size_t>(e)]);
          }
}

TEST_CASE("BatchTopK keeps few of a large batch and no wrong one, in whatever order the blocks run",
          "[activations][batch_topk]") {
  // 200 rows of 300 latents with many ties: several fills of the blocks' own lists and of the list that they share.
  for (const bool ties : {false, true})
    for (const bool by_norm : {false, true})
      for (const double k : {0.1, 1.5, 4.0}) {
        Dense z = random_rows(200, 300, 8);
        z.row(170) *= 20;  // what comes last may push out what came first
        if (ties) z = (4 * z).array().round() / 4;
        auto norms = by_norm ? awkward_norms(300, 4) : std::vector<double>();
        if (ties)
          for (double& n : norms) n = std::round(n);
        const Mask want = naive_largest_of_batch(z, static_cast<Index>(std::floor(200 * k)), norms);
        for (const std::uint64_t seed : {1u, 2u, 3u, 4u})
          for (const Index block_rows : {32, 64, 200}) {
            CAPTURE(ties, by_norm, k, seed, block_rows);
            std::vector<Selector> selectors;
            const BatchTopK activation{.k = k, .rank_by_decoder_norm = by_norm};
            const auto got =
                select_blocks(activation, z, {.block_rows = block_rows, .tile = 50, .seed = seed}, norms, selectors);
            REQUIRE(mask_of(got.codes) == want);
            const double smallest = smallest_key(z, want, norms);
            REQUIRE(selectors[0].smallest_key() == smallest);
            for (Selector& block : selectors) REQUIRE(block.bound(0) < smallest);  // a bound never refuses what was to be kept
            REQUIRE(selectors[0].bound(0) > 0.5);                                  // and it did rise
          }
      }
}

TEST_CASE("BatchTopK: everything equal, the lowest rows win", "[activations][batch_topk]") {
  for (const std::uint64_t seed : {1u, 2u, 3u})
    for (const double k : {1.0, 30.0, 250.0}) {
      CAPTURE(seed, k);
      const Dense z = Dense::Constant(90, 300, 1.5);
      const auto got = select_blocks(BatchTopK{.k = k}, z, {.block_rows = 32, .tile = 64, .seed = seed});
      REQUIRE(mask_of(got.codes) == naive_largest_of_batch(z, static_cast<Index>(90 * k)));
    }
}

TEST_CASE("BatchTopK refuses settings that are none", "[activations][batch_topk]") {
  CHECK_NOTHROW((BatchTopK{.k = 8}.check(8)));
  CHECK_NOTHROW((BatchTopK{.k = 0.01, .threshold_rate = 1}.check(8)));
  CHECK_THROWS_WITH((BatchTopK{.k = 8.5}.check(8)), "BatchTopK: k = 8.5 is not in (0, 8] (the number of latents)");
  CHECK_THROWS_WITH((BatchTopK{.k = 0}.check(8)), "BatchTopK: k = 0 is not in (0, 8] (the number of latents)");
  CHECK_THROWS_AS((BatchTopK{.k = -1}.check(8)), sae::ValueError);
  CHECK_THROWS_AS((BatchTopK{.k = std::numeric_limits<double>::quiet_NaN()}.check(8)), sae::ValueError);
  CHECK_THROWS_WITH((BatchTopK{.k = 2, .threshold_rate = 0}.check(8)), "BatchTopK: threshold_rate = 0 is not in (0, 1]");
  CHECK_THROWS_WITH((BatchTopK{.k = 2, .threshold_rate = 1.5}.check(8)), "BatchTopK: threshold_rate = 1.5 is not in (0, 1]");
  CHECK_THROWS_WITH((BatchTopK{.k = 2, .threshold_from = -2}.check(8)),
                    "BatchTopK: threshold_from = -2 is not in [0, infinity)");
  CHECK(BatchTopK{.rank_by_decoder_norm = true}.needs_decoder_norms());
  CHECK_FALSE(BatchTopK{}.needs_decoder_norms());
}

TEST_CASE("the running threshold of BatchTopK by hand, in three ways of starting", "[activations][batch_topk][threshold]") {
  // rate 1/4, values 2, 6, 4
  const auto run = [](ThresholdAverage average) {
    const BatchTopK activation{.k = 2, .threshold_rate = 0.25, .threshold_average = average};
    State state = fresh_state();
    std::vector<double> out{activation.threshold(state)};
    for (const double value : {2.0, 6.0, 4.0}) {
      observe(activation, state, value);
      out.push_back(activation.threshold(state));
    }
    return out;
  };
  const auto zero = run(ThresholdAverage::from_zero), corrected = run(ThresholdAverage::bias_corrected),
             first = run(ThresholdAverage::from_first);
  for (const auto& values : {zero, corrected, first}) CHECK(std::isnan(values[0]));
  CHECK(std::vector<double>(zero.begin() + 1, zero.end()) == std::vector<double>{0.5, 1.875, 2.40625});
  CHECK(std::vector<double>(first.begin() + 1, first.end()) == std::vector<double>{2, 3, 3.25});
  CHECK(corrected[1] == 2);
  CHECK(corrected[2] == Approx(1.875 / 0.4375).epsilon(1e-15));
  CHECK(corrected[3] == Approx(2.40625 / (1 - 0.75 * 0.75 * 0.75)).epsilon(1e-15));
}

TEST_CASE("the running threshold counts from a batch on, and only batches that kept something",
          "[activations][batch_topk][threshold]") {
  const BatchTopK activation{.k = 2, .threshold_rate = 0.5, .threshold_from = 2};
  State state = fresh_state();
  observe(activation, state, 100);
  observe(activation, state, -1);
  CHECK(std::isnan(activation.threshold(state)));
  observe(activation, state, -1);  // counts from here on, but keeps nothing
  CHECK(std::isnan(activation.threshold(state)));
  observe(activation, state, 3);
  CHECK(activation.threshold(state) == 3);
  observe(activation, state, -1);
  CHECK(activation.threshold(state) == 3);
  CHECK(state.threshold_state[2] == 5);
  CHECK(std::isnan(activation.threshold(State())));
}

TEST_CASE("the trainer's batches make the threshold: keys of the weights before each step",
          "[activations][batch_topk][threshold]") {
  for (const bool by_norm : {false, true}) {
    const BatchTopK activation{.k = 2.5, .rank_by_decoder_norm = by_norm, .threshold_rate = 0.3};
    Model<> model(width, latents, activation);
    randomise(model, 7);
    const Dense rows = random_rows(3 * 70, width, 4);
    sae::Trainer trainer(model,
                         {.steps = 3,
                          .batch = 70,
                          .learning_rate = 0.05,
                          .decoder = sae::DecoderNorm::free,
                          .center = sae::Center::none,
                          .normalisation = sae::Normalisation::none},
                         sae::Objective<>{});
    double mean = 0, weight = 0;
    for (Index t = 0; t < 3; ++t) {
      const NaiveModel twin = naive(model);
      const Dense x = rows.middleRows(70 * t, 70), z = naive_pre_activations(twin, x);
      const auto norms = by_norm ? naive_norms(twin.W_dec) : std::vector<double>();
      const double smallest = smallest_key(z, naive_largest_of_batch(z, 175, norms), norms);
      mean = 0.7 * mean + 0.3 * smallest;
      weight = 0.7 * weight + 0.3;
      trainer.train_step(x);
      CHECK(activation.threshold(model.parameters().activation) == Approx(mean / weight).epsilon(1e-12));
    }
    const auto state = model.parameters().activation.threshold_state;
    (void)model.encode(rows);  // looking is not training
    (void)model.gradient(rows);
    CHECK(model.parameters().activation.threshold_state == state);
  }
}

TEST_CASE("the folds carry BatchTopK's threshold along", "[activations][batch_topk][threshold]") {
  Model<> model(width, latents, {.k = 3, .rank_by_decoder_norm = true});
  randomise(model, 8);
  auto& state = model.parameters().activation.threshold_state;
  state[0] = 0.6;
  state[1] = 0.5;
  auto folded = model;
  folded.fold_decoder_norms();
  CHECK(folded.activation().threshold(folded.parameters().activation) == 1.2);
  auto scaled = model;
  scaled.fold_input_scale(4);
  CHECK(scaled.activation().threshold(scaled.parameters().activation) == 0.3);
  // The smallest key of a batch in both units.
  const Dense x = random_rows(40, width, 2);
  const auto smallest = [&](const Model<>& m, const Dense& rows) {
    const NaiveModel twin = naive(m);
    const Dense z = naive_pre_activations(twin, rows);
    const auto norms = m.activation().rank_by_decoder_norm ? naive_norms(twin.W_dec) : std::vector<double>();
    return smallest_key(z, naive_largest_of_batch(z, 120, norms), norms);
  };
  CHECK(smallest(scaled, x / 4) == Approx(smallest(model, x) / 4).epsilon(1e-12));
  CHECK(smallest(folded, x) == Approx(smallest(model, x)).epsilon(1e-12));
}

TEST_CASE("BatchTopK in a model: selection and gradients", "[activations][batch_topk][gradient]") {
  for (const Index rows : {1, 11, 140})  // one block of rows and several
    for (const double k : {2.0, 3.7, 20.0})
      for (const bool by_norm : {false, true})
        for (const bool subtract : {true, false}) {
          CAPTURE(rows, k, by_norm, subtract);
          Model<> model(width, latents, {.k = k, .rank_by_decoder_norm = by_norm}, {.subtract_decoder_bias = subtract});
          randomise(model, 7);
          const Dense x = random_rows(rows, width, 1);
          const NaiveModel twin = naive(model);
          const Dense z = naive_pre_activations(twin, x);
          const auto wanted = static_cast<Index>(std::floor(k * static_cast<double>(rows)));
          const Mask active = naive_largest_of_batch(z, wanted, by_norm ? naive_norms(twin.W_dec) : std::vector<double>());
          const auto codes = model.encode(x);
          CHECK(mask_of(codes) == active);
          CHECK(codes.size() == wanted);
          if (rows == 11) REQUIRE((naive_largest_of_batch(z, wanted) != active) == by_norm);
          if (rows == 140) continue;
          const auto loss = [&](const NaiveModel& m) {
            return naive_mean_square(naive_decode(m, naive_codes(naive_pre_activations(m, x), active)) - x);
          };
          const auto got = model.gradient(x);
          check_gradient(twin, got.parameters, loss);
          CHECK(got.loss.total == Approx(loss(twin)).epsilon(1e-12));
        }
}

TEST_CASE("BatchTopK ranked by the decoder norm can be folded, ranked by z it is refused", "[activations][batch_topk]") {
  Model<> by_norm(width, latents, {.k = 5, .rank_by_decoder_norm = true}), plain(width, latents, {.k = 5});
  randomise(by_norm, 8);
  plain.parameters() = by_norm.parameters();
  by_norm.W_dec().row(4).setZero();
  by_norm.parameters().b_enc[4] = 9;
  const Dense x = random_rows(90, width, 2), reconstruction = by_norm.reconstruct(x);
  const Mask active = mask_of(by_norm.encode(x));
  CHECK(active != mask_of(plain.encode(x)));
  by_norm.fold_decoder_norms();
  CHECK(mask_of(by_norm.encode(x)) == active);
  CHECK(largest_difference(by_norm.reconstruct(x), reconstruction) <= 1e-13);
  CHECK_THROWS_AS(plain.fold_decoder_norms(), sae::ValueError);
}

TEST_CASE("BatchTopK selects the same for any number of threads", "[activations][batch_topk]") {
  Model<float> model(16, 1200, {.k = 7.5});
  randomise(model, 3);
  const sae::Matrix<float> x = random_rows(700, 16, 5).cast<float>();
  sae::Threads one(1);
  const auto want = model.encode(x, one);
  REQUIRE(want.size() == 5250);
  for (const int count : {2, 3, 7}) {
    sae::Threads threads(count);
    for (int round = 0; round < 5; ++round) REQUIRE(model.encode(x, threads) == want);
  }
}

TEST_CASE("BatchTopK trains with AuxK, the same bytes for any number of threads", "[activations][batch_topk]") {
  const auto one = trained(0, 1), clipped = trained(0.1, 1);
  REQUIRE(one.thresholds.size() == 10);
  for (const double threshold : one.thresholds) CHECK(threshold > 0);
  for (const int count : {2, 3}) {
    const auto other = trained(0, count);
    CHECK(same_bytes(other.model, one.model));
    CHECK(other.thresholds == one.thresholds);
  }
  CHECK(same_bytes(trained(0.1, 3).model, clipped.model));
  CHECK_FALSE(same_bytes(one.model, clipped.model));
}

TEST_CASE("a checkpoint keeps BatchTopK's threshold", "[activations][batch_topk][threshold]") {
  const TempFolder folder;
  const auto path = folder.path() / "checkpoint.safetensors";
  const sae::Matrix<float> rows = random_rows(600, 8, 3).cast<float>();
  const auto run = [&](Index stop_at, bool resume) {
    Model<float> model(8, 60, {.k = 5, .threshold_rate = 0.2, .threshold_from = 3});
    sae::Trainer trainer(model, {.steps = 10, .batch = 50, .learning_rate = 3e-3, .report_every = 1}, sae::Objective<>{});
    sae::MatrixSource<float> source(rows);
    if (resume) sae::load_checkpoint(trainer, path);
    (void)trainer.fit(source, [&](auto& t, const sae::StepReport& report) {
      if (report.step != stop_at) return false;
      sae::save_checkpoint(t, path);
      return true;
    });
    return model;
  };
  const auto whole = run(-1, false);
  (void)run(5, false);
  const auto resumed = run(-1, true);
  CHECK(whole.activation().threshold(whole.parameters().activation) > 0);
  CHECK(whole.parameters().activation.threshold_state[2] == 10);
  CHECK(same_bytes(whole, resumed));
}
