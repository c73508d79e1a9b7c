// Training of weights that are stored in 16 bits: a float32 step from the same numbers, rounded stochastically.
#include <sae/data/indexed_source.hpp>
#include <sae/data/synthetic.hpp>
#include <sae/training/aux_k.hpp>
#include <sae/training/evaluate.hpp>
#include <sae/training/l0_penalty.hpp>
#include <sae/training/trainer.hpp>

#include <cmath>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "allocations.hpp"
#include "catch_compat.hpp"
#include "reference.hpp"
#include "routes.hpp"

namespace {

using sae::bfloat16, sae::float16, sae::Dynamic, sae::Index, sae::Matrix;

template <class Activation, class Stored>
using Model = sae::SparseAutoencoder<Dynamic, Dynamic, Activation, float, Stored>;

Matrix<float> rows_of(Index rows, Index width, std::uint64_t seed) {
  return sae_test::random_rows(rows, width, seed).cast<float>();
}
std::uint16_t rounded(float x, std::uint32_t random, bfloat16) { return sae::round_to_bfloat16(x, random); }
std::uint16_t rounded(float x, std::uint32_t random, float16) { return sae::round_to_half(x, random); }

template <class Parameters>
std::string bytes_of(const Parameters& parameters) {
  std::string out;
  Parameters::visit(
      [&](std::string_view, const auto& tensor) {
        out.append(reinterpret_cast<const char*>(tensor.data()),
                   static_cast<std::size_t>(tensor.size()) * sizeof(*tensor.data()));
      },
      parameters);
  return out;
}

/// A model of the tests' world after some steps, and how well it does.
template <class Stored, class Activation, class Terms>
double explained(const Activation& activation, const Terms& terms, sae::TrainerConfig config) {
  const sae::SyntheticWorld world({.num_features = 64, .hidden_dim = 24, .firing_probability = sae::ConstantFiring{0.04}});
  sae::SyntheticSource<float> source(world, {.seed = 1}), held_out(world, {.seed = 2});
  Model<Activation, Stored> model(24, 96, activation);
  config.steps = 400;
  config.batch = 256;
  config.learning_rate = 3e-3;
  sae::Trainer trainer(model, config, terms);
  trainer.fit(source);
  return sae::evaluate(model, held_out, {.rows = 4096}).explained_variance;
}

}  // namespace

TEMPLATE_TEST_CASE("a step of weights of 16 bits is the float32 step, rounded by step and place", "[training][half]", bfloat16,
                   float16) {
  constexpr Index width = 20, latents = 130;
  const Matrix<float> x = rows_of(3 * 64, width, 4);
  struct Norms {
    sae::DecoderNorm decoder;
    bool before;  // the norm is brought back before the update
  };
  for (const double clip : {0.0, 0.5})
    for (const auto [decoder, before] :
         {Norms{sae::DecoderNorm::unit, false}, {sae::DecoderNorm::unit, true}, {sae::DecoderNorm::free, false}})
      for (const auto moments : {sae::Precision::full, sae::Precision::bfloat16})
        sae_test::on_every_route([&, decoder = decoder, before = before] {
          CAPTURE(clip, static_cast<int>(decoder), before, static_cast<int>(moments));
          const sae::TrainerConfig config{.steps = 9,
                                          .batch = 64,
                                          .learning_rate = 0.01,
                                          .moments = moments,
                                          .clip_norm = clip,
                                          .decoder = decoder,
                                          .normalise_before_update = before,
                                          .center = sae::Center::none,
                                          .normalisation = sae::Normalisation::none};
          Model<sae::TopK, TestType> model(width, latents, {.k = 4});
          auto twin = sae::with_weights<float>(model);
          sae::Threads threads(2);
          sae::Trainer trainer(model, config, sae::Objective<>{}, threads);
          sae::Trainer wide(twin, config, sae::Objective<>{}, threads);
          for (Index t = 1; t <= 3; ++t) {
            const sae::Batch<float> batch(x.middleRows((t - 1) * 64, 64));
            REQUIRE(trainer.train_step(batch).loss == wide.train_step(batch).loss);
            std::uint32_t number = 0;  // of the tensor
            sae::AutoencoderParameters<sae::TopK, float>::visit(
                [&](std::string_view name, auto& want, auto& got) {
                  CAPTURE(t, name);
                  const std::uint32_t key = sae::philox({static_cast<std::uint32_t>(t), 0, number++, 0}, {})[1];
                  if constexpr (std::is_same_v<std::remove_cvref_t<decltype(got[0])>, TestType>) {
                    const sae::Rounding at{.key = key};
                    for (Index i = 0; i < want.size(); ++i) {
                      REQUIRE(got[i].bits == rounded(want[i], at.bits(static_cast<std::uint32_t>(i)), TestType()));
                      want[i] = static_cast<float>(got[i]);
                    }
                  } else {
                    REQUIRE(got == want);
                  }
                },
                twin.parameters(), model.parameters());
          }
        });
}

TEST_CASE("small steps move weights of 16 bits in the mean, where rounding to nearest loses them", "[training][half]") {
  constexpr Index width = 32, latents = 256, steps = 100;
  const Matrix<float> x = rows_of(256, width, 4);
  const sae::TrainerConfig config{.steps = steps,
                                  .learning_rate = 1e-5,  // neighbours of a weight of 0.18 are 0.001 apart
                                  .decoder = sae::DecoderNorm::free,
                                  .center = sae::Center::none,
                                  .normalisation = sae::Normalisation::none};
  Model<sae::ReLU, bfloat16> model(width, latents);
  auto twin = sae::with_weights<float>(model);
  const auto start = twin.parameters().W_enc;
  sae::Trainer trainer(model, config, sae::Objective<>{});
  sae::Trainer wide(twin, config, sae::Objective<>{});
  Index lost = 0, moved = 0;
  for (Index t = 0; t < steps; ++t) {
    const auto before = twin.parameters().W_enc;
    trainer.train_step(x);
    wide.train_step(x);
    if (t > 0) continue;
    for (Index i = 0; i < before.size(); ++i) {
      if (twin.parameters().W_enc[i] == before[i]) continue;
      ++moved;
      lost += static_cast<float>(bfloat16(twin.parameters().W_enc[i])) == start[i];
    }
  }
  CHECK(moved > start.size() / 2);
  CHECK(static_cast<double>(lost) > 0.95 * static_cast<double>(moved));
  // How far along the float32 path the weights went. Each rounding of a step of 1e-5 where neighbours are 2^-9 apart at most has a
  // variance of 1e-5 2^-9 at most.
  double along = 0, squares = 0;
  for (Index i = 0; i < start.size(); ++i) {
    const auto path = static_cast<double>(twin.parameters().W_enc[i]) - static_cast<double>(start[i]);
    along += path * (static_cast<double>(static_cast<float>(model.parameters().W_enc[i])) - static_cast<double>(start[i]));
    squares += path * path;
  }
  const double deviation = std::sqrt(static_cast<double>(steps) * 1e-5 * 0x1p-9 / squares);
  CAPTURE(along / squares, deviation);
  CHECK(deviation < 0.05);
  CHECK(std::fabs(along / squares - 1) <= 5 * deviation);
}

TEST_CASE("weights of 16 bits train as well as those of float32", "[training][half]") {
  const auto check = [](const char* name, const auto& activation, const auto& terms, double slack,
                        const sae::TrainerConfig& config = {}) {
    const double full = explained<float>(activation, terms, config), brain = explained<bfloat16>(activation, terms, config),
                 half = explained<float16>(activation, terms, config);
    CAPTURE(name, full, brain, half);
    CHECK(full > 0.5);
    CHECK(std::fabs(brain - full) < slack);
    CHECK(std::fabs(half - full) < slack);
  };
  check("topk", sae::TopK{.k = 3}, sae::Objective{sae::AuxK{}}, 0.02);
  check("topk, moments of 16 bits, clipped", sae::TopK{.k = 3}, sae::Objective<>{}, 0.02,
        {.moments = sae::Precision::bfloat16, .clip_norm = 1});
  check("batchtopk", sae::BatchTopK{.k = 3}, sae::Objective{sae::AuxK{}}, 0.02);
  check("relu", sae::ReLU{}, sae::Objective{sae::L1{.coefficient = 0.05}}, 0.02);
  check("jumprelu", sae::JumpReLU{.threshold = 0.05, .bandwidth = 0.1}, sae::Objective{sae::L0Penalty{.coefficient = 0.01}},
        0.02);
}

TEST_CASE("weights of 16 bits: the same bytes on every route and for any number of threads", "[training][half][threads]") {
  const auto trained = [](int count) {
    Model<sae::TopK, bfloat16> model(20, 300, {.k = 4});
    sae::Threads threads(count);
    sae::Trainer trainer(model, {.steps = 6, .batch = 100, .learning_rate = 0.01, .dead = {.window = 200}}, threads);
    sae::MatrixSource<float> source(rows_of(400, 20, 1));
    trainer.fit(source);
    return bytes_of(model.parameters());
  };
  const std::string alone = trained(1);
  sae_test::on_every_route([&] {
    for (const int count : {1, 3}) CHECK((trained(count) == alone));
  });
}

TEST_CASE("weights of 16 bits: dead latents are resampled", "[training][half]") {
  Model<sae::TopK, bfloat16> model(20, 300, {.k = 2});
  sae::Trainer trainer(model, {.steps = 20, .batch = 50, .resampling = {.form = sae::ResamplingForm::residual, .every = 8}},
                       sae::Objective<>{});
  sae::MatrixSource<float> source(rows_of(400, 20, 1));
  Index resampled = 0;
  trainer.fit(source, [&](const sae::StepReport& report) { resampled += report.resampled; });
  CHECK(resampled > 0);
}

#if SAE_COUNTS_ALLOCATIONS
TEST_CASE("weights of 16 bits: nothing as large as a float32 copy of them is ever allocated", "[training][half][memory]") {
  constexpr Index width = 256, latents = 4096;
  const auto largest = [&]<class Stored>(Stored) {
    const Matrix<float> x = rows_of(256, width, 1);
    sae::Threads threads(2);
    const sae_test::CountAllocations allocated;
    Model<sae::TopK, Stored> model(width, latents, {.k = 8});
    sae::Trainer trainer(model, {.steps = 4, .batch = 256, .moments = sae::Precision::bfloat16, .dead = {.window = 256}},
                         threads);
    for (int t = 0; t < 4; ++t) trainer.train_step(x);
    const auto codes = model.encode(x, threads);
    CHECK(model.decode(codes, threads).rows() == 256);
    return allocated.largest();
  };
  CHECK(largest(float()) == 4 * width * latents);
  CHECK(largest(bfloat16()) == 2 * width * latents);
}

TEST_CASE("weights of 16 bits: a step allocates nothing after the first ones", "[training][half][memory]") {
  Model<sae::TopK, bfloat16> model(64, 2048, {.k = 8});
  sae::Threads threads(1);
  sae::Trainer trainer(model, {.steps = 100, .batch = 256, .learning_rate = 1e-30, .dead = {.window = 1024}}, threads);
  const sae::Tensor<float> x = [] {
    sae::Tensor<float> out(256, 64);
    out.map() = rows_of(256, 64, 7);
    return out;
  }();
  int quiet = 0;
  for (int step = 0; step < 60 && quiet < 4; ++step) {
    const sae_test::CountAllocations allocated;
    trainer.train_step(x);
    quiet = allocated.count() == 0 ? quiet + 1 : 0;
  }
  CHECK(quiet == 4);
}
#endif

TEST_CASE("weights of 16 bits are refused where they would have to be of float", "[training][half]") {
  Model<sae::TopK, bfloat16> model(8, 24, {.k = 2});
  const auto refused = [&](sae::TrainerConfig config, const std::string& message) {
    config.steps = 4;
    CHECK_THROWS_WITH(sae::Trainer(model, config),
                      "Trainer: " + message + " needs weights of float, and these are stored in 16 bits");
  };
  refused({.ema = 0.9}, "ema, which keeps an average of them in float,");
  refused({.optimizer = sae::Muon{}}, "the optimizer muon");
  refused({.optimizer = sae::Adafactor{}}, "the optimizer adafactor");
  refused({.optimizer = sae::ScheduleFree{}}, "the optimizer schedule_free");
  refused({.normalisation = sae::Normalisation::whitening,
           .whitening = [](const sae::Tensor<double>&, double) { return sae::Whitening(8); }},
          "normalisation = whitening, which is folded into them,");
}
