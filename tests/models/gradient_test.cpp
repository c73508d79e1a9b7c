// Every gradient against central differences of a naive loss in double. What the definition holds constant (which entries are
// active, AuxK's residual and its factor) is computed once at the model and held constant in the naive loss, too.
#include <sae/activations/relu.hpp>
#include <sae/activations/topk.hpp>
#include <sae/models/sparse_autoencoder.hpp>
#include <sae/training/aux_k.hpp>
#include <sae/training/l1.hpp>

#include <limits>
#include <string>
#include <vector>

#include "catch_compat.hpp"
#include "gradient_check.hpp"

namespace {

using sae::Index;
using namespace sae_test;

template <class Activation>
using Model = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, Activation, double>;

constexpr Index width = 6, latents = 70, rows = 9;  // two blocks of latents, the second one short

// b_enc such that few, half or most latents of a ReLU are active, or few in one block of latents and most in the other.
enum class Density { sparse, half, dense, first_block_dense, last_block_dense };
template <class Activation>
Model<Activation> make(Activation activation, bool subtract, Density density = Density::half) {
  Model<Activation> model(width, latents, activation, {.subtract_decoder_bias = subtract});
  randomise(model, 5);
  for (Index i = 0; i < latents; ++i) {
    const bool first = i < 64;
    const bool lower = density == Density::sparse || (density == Density::first_block_dense && !first) ||
                       (density == Density::last_block_dense && first);
    model.parameters().b_enc[i] += density == Density::half ? 0.0 : lower ? -2.2 : 1.5;
  }
  return model;
}
double share(const Mask& m) { return m.cast<double>().mean(); }

struct Frozen {
  Dense x;
  Mask active;
  double operator()(const NaiveModel& m) const { return naive_mean_square(decoded(m) - x); }
  Dense codes(const NaiveModel& m) const { return naive_codes(naive_pre_activations(m, x), active); }
  Dense decoded(const NaiveModel& m) const { return naive_decode(m, codes(m)); }
};

}  // namespace

TEST_CASE("relative_error fails on NaN and on shapes", "[models][gradient]") {
  Dense a = Dense::Constant(2, 2, 1.0), b = a;
  CHECK(relative_error(a, b) == 0);
  a(1, 0) = std::numeric_limits<double>::quiet_NaN();
  CHECK_FALSE(relative_error(a, b) <= 1e30);
  CHECK_FALSE(relative_error(b, a) <= 1e30);
  a(1, 0) = 2;
  CHECK(relative_error(a, b) == 1);
  CHECK_FALSE(relative_error(b, Dense::Zero(2, 2)) <= 1e30);
  CHECK_FALSE(relative_error(Dense::Zero(2, 1), b) <= 1e30);
}

TEST_CASE("gradients of ReLU with L1, sparse and dense", "[models][gradient]") {
  sae::Threads threads(2);
  for (const bool subtract : {true, false})
    for (const Density density :
         {Density::sparse, Density::half, Density::dense, Density::first_block_dense, Density::last_block_dense})
      for (const bool weighted : {true, false}) {
        const auto model = make(sae::ReLU{}, subtract, density);
        const Dense x = random_rows(rows, width, 1);
        const NaiveModel twin = naive(model);
        const Frozen frozen{x, naive_positive(naive_pre_activations(twin, x))};
        CAPTURE(subtract, static_cast<int>(density), weighted, share(frozen.active));
        if (density == Density::sparse) REQUIRE(share(frozen.active) < 0.12);  // both sides of the switch-over to dense
        if (density == Density::dense) REQUIRE(share(frozen.active) > 0.8);

        const sae::Objective objective{sae::L1{.coefficient = 0.7, .weighted_by_decoder_norm = weighted}};
        Model<sae::ReLU>::Workspace<sae::Objective<sae::L1>> workspace;
        workspace.step.sparsity_scale = 0.25;
        const auto got = model.gradient(x, objective, workspace, threads);
        const auto penalty = [&](const NaiveModel& m) { return 0.25 * 0.7 * naive_l1(m, frozen.codes(m), weighted); };
        check_gradient(twin, got.parameters, [&](const NaiveModel& m) { return frozen(m) + penalty(m); });
        CHECK(got.loss.reconstruction == Approx(frozen(twin)).epsilon(1e-12));
        REQUIRE(got.loss.terms.size() == 1);
        CHECK(got.loss.terms[0].first == "l1");
        CHECK(got.loss.terms[0].second == Approx(penalty(twin)).epsilon(1e-12));
        CHECK(got.loss.total == Approx(frozen(twin) + penalty(twin)).epsilon(1e-12));
      }
}

TEST_CASE("a decoder row of norm 0 has a gradient, and the norm's is 0", "[models][gradient]") {
  auto model = make(sae::ReLU{}, true);
  model.W_dec().row(3).setZero();
  const Dense x = random_rows(rows, width, 1);
  const NaiveModel twin = naive(model);
  const Frozen frozen{x, naive_positive(naive_pre_activations(twin, x))};
  REQUIRE(frozen.active.col(3).cast<int>().sum() > 0);
  const auto got = model.gradient(x, sae::Objective{sae::L1{.coefficient = 2}});
  check_gradient(twin, got.parameters, [&](const NaiveModel& m) { return frozen(m) + 2 * naive_l1(m, frozen.codes(m), true); });
}

TEST_CASE("gradients of TopK, sparse and dense, ranked by z or by z times the norm", "[models][gradient]") {
  for (const bool subtract : {true, false})
    for (const Index k : {Index{1}, Index{3}, Index{25}, latents})
      for (const bool by_norm : {false, true}) {
        const auto model = make(sae::TopK{.k = k, .rank_by_decoder_norm = by_norm}, subtract);
        const Dense x = random_rows(rows, width, 2);
        const NaiveModel twin = naive(model);
        const Dense z = naive_pre_activations(twin, x);
        const Frozen frozen{x, naive_largest(z, k, by_norm ? naive_norms(twin.W_dec) : std::vector<double>())};
        if (k == 3) REQUIRE((naive_largest(z, k) != frozen.active) == by_norm);  // the norm does decide
        CAPTURE(subtract, k, by_norm, share(frozen.active));
        const auto got = model.gradient(x);
        check_gradient(twin, got.parameters, frozen);
        CHECK(got.loss.total == Approx(frozen(twin)).epsilon(1e-12));
      }
}

TEST_CASE("gradients of AuxK in every variant", "[models][gradient]") {
  struct Variant {
    std::string name;
    sae::AuxK term;
    Index dead;  // every second latent from the last one on
  };
  const std::vector<Variant> variants{
      {"as it comes", {}, 20},
      {"fewer dead than D / 2", {.coefficient = 0.8}, 2},
      {"one dead", {.coefficient = 0.8, .scale_by_dead = false}, 1},
      {"raw values", {.coefficient = 1, .raw_values = true}, 20},
      {"raw values of all dead", {.coefficient = 1, .k = 40, .raw_values = true}, 15},
      {"normalised", {.coefficient = 1.0 / 32, .normaliser = sae::AuxKNormaliser::residual_variance}, 20},
      {"k given", {.coefficient = 0.5, .k = 11}, 25},
      {"k given, scaled by dead", {.coefficient = 0.5, .k = 11}, 4},
      {"ranked by norm", {.coefficient = 0.5, .rank_by_decoder_norm = true}, 25},
      {"ranked by norm, raw", {.coefficient = 0.5, .raw_values = true, .rank_by_decoder_norm = true}, 25},
      {"by magnitude", {.coefficient = 0.5, .k = 5, .raw_values = true, .by_magnitude = true}, 25},
      {"by magnitude times norm",
       {.coefficient = 0.5, .raw_values = true, .rank_by_decoder_norm = true, .by_magnitude = true},
       25},
  };
  for (const Variant& variant : variants)
    for (const bool subtract : {true, false}) {
      CAPTURE(variant.name, subtract);
      const auto& term = variant.term;
      const auto model = make(sae::TopK{.k = 4}, subtract);
      const Dense x = random_rows(rows, width, 3);
      const NaiveModel twin = naive(model);
      std::vector<std::uint8_t> dead(static_cast<std::size_t>(latents), 0);
      for (Index n = 0; n < variant.dead; ++n) dead[static_cast<std::size_t>(latents - 1 - 2 * n)] = 1;

      const Dense z = naive_pre_activations(twin, x);
      const Frozen frozen{x, naive_largest(z, 4)};
      const Index wanted = term.k > 0 ? term.k : width / 2;
      const Mask chosen = naive_largest(term.by_magnitude ? Dense(z.cwiseAbs()) : z, wanted,
                                        term.rank_by_decoder_norm ? naive_norms(twin.W_dec) : std::vector<double>(),
                                        term.raw_values ? -std::numeric_limits<double>::infinity() : 0.0, dead);
      if (term.by_magnitude) REQUIRE(naive_codes(z, chosen).minCoeff() < 0);
      const Dense residual = x - frozen.decoded(twin);
      double factor = term.coefficient;
      if (term.scale_by_dead) factor *= std::min(static_cast<double>(variant.dead) / static_cast<double>(wanted), 1.0);
      if (term.normaliser == sae::AuxKNormaliser::residual_variance) factor /= naive_row_variance(residual);
      const auto auxiliary = [&](const NaiveModel& m) {
        const Dense v = naive_codes(naive_pre_activations(m, x), chosen);
        return factor * naive_mean_square(naive_decode(m, v, false) - residual);
      };
      const double value = auxiliary(twin);

      Model<sae::TopK>::Workspace<sae::Objective<sae::AuxK>> workspace;
      workspace.step.dead = dead;
      const auto got = model.gradient(x, sae::Objective{term}, workspace);
      check_gradient(twin, got.parameters, [&](const NaiveModel& m) { return frozen(m) + auxiliary(m); });
      REQUIRE(got.loss.terms.size() == 1);
      CHECK(got.loss.terms[0].first == "aux_k");
      CHECK(got.loss.terms[0].second == Approx(value).epsilon(1e-12));
      CHECK(got.loss.total == Approx(frozen(twin) + value).epsilon(1e-12));

      // The dead told only after the codes are known: another way to the same pre-activations.
      Model<sae::TopK>::Workspace<sae::Objective<sae::AuxK>> late;
      late.step.wants_gradient = true;
      const sae::Batch<double> same(x);
      sae::detail::run_step(model, sae::detail::StepRows<double>{same, same}, sae::Objective{term}, late,
                            sae::Threads::shared(), [&](auto& step) { step.dead = dead; });
      Model<sae::TopK>::Parameters again(width, latents);
      sae::detail::materialise_gradient(model, late.step, again, sae::Threads::shared());
      Model<sae::TopK>::Parameters::visit(
          [](std::string_view name, const auto& a, const auto& b) {
            CAPTURE(name);
            CHECK(relative_error(a.map(), b.map()) <= 1e-13);
          },
          again, got.parameters);
    }
}

TEST_CASE("AuxK without dead latents is nothing, its workspace forgets", "[models][gradient]") {
  const auto model = make(sae::TopK{.k = 4}, true);
  const Dense x = random_rows(rows, width, 3);
  const sae::Objective objective{sae::AuxK{.coefficient = 1}};
  std::vector<std::uint8_t> dead(static_cast<std::size_t>(latents), 0);
  Model<sae::TopK>::Workspace<sae::Objective<sae::AuxK>> workspace;
  const auto plain = model.gradient(x);
  workspace.step.dead = dead;  // none
  CHECK(model.gradient(x, objective, workspace).parameters.W_enc == plain.parameters.W_enc);
  dead[2] = 1;
  const auto with_dead = model.gradient(x, objective, workspace);
  CHECK_FALSE(with_dead.parameters.W_enc == plain.parameters.W_enc);
  workspace.step.dead = {};
  const auto after = model.gradient(x, objective, workspace);
  CHECK(after.parameters.W_enc == plain.parameters.W_enc);
  CHECK(after.loss.terms[0].second == 0);
}

TEST_CASE("AuxK by magnitude is for raw values alone", "[models][gradient]") {
  CHECK_NOTHROW((sae::AuxK{.raw_values = true, .by_magnitude = true}.check(4, 8)));
  CHECK_THROWS_WITH((sae::AuxK{.by_magnitude = true}.check(4, 8)),
                    "AuxK: by_magnitude = true is for raw_values = true alone: relu would make zeros of half of what it chose");
}

TEST_CASE("a gradient from outside, dL/dx'", "[models][gradient]") {
  for (const bool subtract : {true, false})
    for (const Index k : {Index{3}, Index{30}}) {
      CAPTURE(subtract, k);
      const auto model = make(sae::TopK{.k = k}, subtract);
      const Dense x = random_rows(rows, width, 4), weight = random_rows(rows, width, 5);
      const NaiveModel twin = naive(model);
      const Frozen frozen{x, naive_largest(naive_pre_activations(twin, x), k)};
      const auto got = model.gradient(x, weight);
      check_gradient(twin, got.parameters, [&](const NaiveModel& m) { return frozen.decoded(m).cwiseProduct(weight).sum(); });
      CHECK(got.loss.total == 0);
      // The library's own loss, told from outside.
      const Dense own = 2.0 / static_cast<double>(rows) * (model.reconstruct(x) - x);
      const auto same = model.gradient(x, own), plain = model.gradient(x);
      CHECK(relative_error(same.parameters.W_dec.map(), plain.parameters.W_dec.map()) <= 1e-13);
      CHECK(relative_error(same.parameters.W_enc.map(), plain.parameters.W_enc.map()) <= 1e-13);
      CHECK(relative_error(same.parameters.b_dec.map(), plain.parameters.b_dec.map()) <= 1e-13);
    }
  const auto model = make(sae::TopK{.k = 3}, true);
  const Dense x = random_rows(rows, width, 4);
  CHECK_THROWS_WITH(model.gradient(x, Dense(x.topRows(3))), "dL/dx' is [3 x 6], the reconstruction is [9 x 6]");
  CHECK_THROWS_AS(model.gradient(x, Dense(x.leftCols(5))), sae::ShapeError);
}

TEST_CASE("gradients of one row and of latents that never fire", "[models][gradient]") {
  auto model = make(sae::ReLU{}, true, Density::sparse);
  model.parameters().b_enc[7] = -100;
  const Dense x = random_rows(1, width, 6);
  const NaiveModel twin = naive(model);
  const Frozen frozen{x, naive_positive(naive_pre_activations(twin, x))};
  const auto got = model.gradient(x);
  check_gradient(twin, got.parameters, frozen);
  CHECK(got.parameters.W_enc.map().row(7).isZero(0));
  CHECK(got.parameters.W_dec.map().row(7).isZero(0));
  CHECK(got.parameters.b_enc[7] == 0);
}
