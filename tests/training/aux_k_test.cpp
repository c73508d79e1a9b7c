// What AuxK's options and its level-by-level form add to tests/models/gradient_test.cpp: naive twins, central differences.
#include <sae/activations/topk.hpp>
#include <sae/models/sparse_autoencoder.hpp>
#include <sae/training/aux_k.hpp>
#include <sae/training/matryoshka_aux_k.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <string>
#include <type_traits>
#include <vector>

#include "catch_compat.hpp"
#include "gradient_check.hpp"
#include "routes.hpp"

namespace {

using sae::AuxK;
using sae::AuxKNormaliser;
using sae::Index;
using sae::MatryoshkaAuxK;
using namespace sae_test;

using Model = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::TopK, double>;
constexpr Index width = 6, latents = 70, rows = 9;

Model make(Index k = 4) {
  Model model(width, latents, {.k = k});
  randomise(model, 5);
  return model;
}
std::vector<std::uint8_t> every_second_dead(Index n) {
  std::vector<std::uint8_t> dead(static_cast<std::size_t>(latents), 0);
  for (Index i = 0; i < n; ++i) dead[static_cast<std::size_t>(latents - 1 - 2 * i)] = 1;
  return dead;
}
template <class Terms>
Model::Gradient gradient_of(const Model& model, const Dense& x, const Terms& objective, const std::vector<std::uint8_t>& dead) {
  Model::Workspace<Terms> workspace;
  workspace.step.dead = dead;
  return model.gradient(x, objective, workspace);
}
template <class Terms>
Model::Parameters told_late(const Model& model, const Dense& x, const Terms& objective, const std::vector<std::uint8_t>& dead) {
  Model::Workspace<Terms> late;
  late.step.wants_gradient = true;
  const sae::Batch<double> same(x);
  sae::detail::run_step(model, sae::detail::StepRows<double>{same, same}, objective, late, sae::Threads::shared(),
                        [&](auto& step) { step.dead = dead; });
  Model::Parameters out(width, latents);
  sae::detail::materialise_gradient(model, late.step, out, sae::Threads::shared());
  return out;
}
Dense first_columns(Dense f, Index n) {
  f.rightCols(f.cols() - n).setZero();
  return f;
}

}  // namespace

TEST_CASE("AuxK over the target's variance, through a residual that moves, through b_dec", "[training][aux_k][gradient]") {
  const auto model = make();
  const NaiveModel twin = naive(model);
  const Dense x = random_rows(rows, width, 3), z = naive_pre_activations(twin, x);
  const auto dead = every_second_dead(20);
  const Mask active = naive_largest(z, 4), chosen = naive_largest(z, 5, {}, 0, dead);
  const auto reconstruction = [&](const NaiveModel& m) {
    return naive_decode(m, naive_codes(naive_pre_activations(m, x), active));
  };
  const auto auxiliary = [&](const NaiveModel& m, bool bias) {
    return naive_decode(m, naive_codes(naive_pre_activations(m, x), chosen), bias);
  };
  const Dense residual = x - reconstruction(twin);
  const auto main = [&](const NaiveModel& m) { return naive_mean_square(reconstruction(m) - x); };
  const auto check = [&](const AuxK& term, const auto& value) {
    const auto got = gradient_of(model, x, sae::Objective{term}, dead);
    check_gradient(twin, got.parameters, [&](const NaiveModel& m) { return main(m) + value(m); });
    CHECK(got.loss.terms[0].second == Approx(value(twin)).epsilon(1e-12));
  };
  check({.coefficient = 0.5, .k = 5, .normaliser = AuxKNormaliser::target_variance},
        [&](const NaiveModel& m) { return 0.5 / naive_row_variance(x) * naive_mean_square(auxiliary(m, false) - residual); });
  check({.coefficient = 0.5, .k = 5, .detach_residual = false},
        [&](const NaiveModel& m) { return 0.5 * naive_mean_square(auxiliary(m, false) - x + reconstruction(m)); });
  const double variance = naive_row_variance(residual);  // held constant, also where the residual is not
  check({.coefficient = 0.5, .k = 5, .normaliser = AuxKNormaliser::residual_variance, .detach_residual = false},
        [&](const NaiveModel& m) { return 0.5 / variance * naive_mean_square(auxiliary(m, false) - x + reconstruction(m)); });
  check({.coefficient = 0.5, .k = 5, .normaliser = AuxKNormaliser::residual_variance, .through_decoder_bias = true},
        [&](const NaiveModel& m) {
          return 0.5 / variance * naive_mean_square(auxiliary(m, true) - residual - twin.b_dec.replicate(rows, 1));
        });

  {  // with a loss of levels the moving residual is that of the last one, which every latent acts in
    const sae::Objective objective{sae::Matryoshka{.widths = {20, 45}},
                                   AuxK{.coefficient = 0.5, .k = 5, .detach_residual = false}};
    check_gradient(twin, gradient_of(model, x, objective, dead).parameters, [&](const NaiveModel& m) {
      const Dense f = naive_codes(naive_pre_activations(m, x), active);
      return main(m) + naive_mean_square(naive_decode(m, first_columns(f, 20)) - x) +
             naive_mean_square(naive_decode(m, first_columns(f, 45)) - x) +
             0.5 * naive_mean_square(auxiliary(m, false) - x + reconstruction(m));
    });
  }
}

TEST_CASE("OpenAI's live zeros change nothing where values are relu'd", "[training][aux_k]") {
  // There every latent competes, a live one with 0; what is then above 0 are the same dead latents.
  const auto model = make();
  const NaiveModel twin = naive(model);
  const Dense x = random_rows(rows, width, 3), z = naive_pre_activations(twin, x);
  const auto dead = every_second_dead(20);
  Dense masked = z;
  for (Index i = 0; i < latents; ++i)
    if (dead[static_cast<std::size_t>(i)] == 0) masked.col(i).setZero();
  const Mask theirs = naive_largest(masked, 12, {}, -1e300), ours = naive_largest(z, 12, {}, 0, dead);
  REQUIRE(theirs != ours);
  CHECK(naive_codes(masked, theirs).cwiseMax(0) == naive_codes(z, ours));
}

TEST_CASE("MatryoshkaAuxK by hand", "[training][aux_k]") {
  // f = (2, 0, 0): only latent 0 is kept; latents 1 (level 0) and 2 (level 1) are dead, z = 1 and 0.5. Both levels leave
  // r = (3, 1) - (2, 0) = (1, 1). Level 0: r' = 1 (0, 1), error (-1, 0); level 1: r' = 0.5 (2, 2), error (0, 0).
  Model model(2, 3, {.k = 1}, {.subtract_decoder_bias = false});
  auto& p = model.parameters();
  p.W_enc.set_zero();
  p.b_enc.map() << 2, 1, 0.5;
  p.W_dec.map() << 1, 0, 0, 1, 2, 2;
  p.b_dec.set_zero();
  const Dense x = (Dense(1, 2) << 3, 1).finished();
  const sae::Objective objective{MatryoshkaAuxK{.widths = {2}, .level = {.coefficient = 3}}};
  const auto got = gradient_of(model, x, objective, {0, 1, 1});
  CHECK(got.loss.terms[0].first == "matryoshka_aux_k");
  CHECK(got.loss.terms[0].second == Approx(3));
  CHECK(largest_difference(got.parameters.W_dec.map().row(1), (Dense(1, 2) << -6, 0).finished()) <= 1e-12);
  CHECK(largest_difference(got.parameters.W_dec.map().row(2), (Dense(1, 2) << 0, 0).finished()) <= 1e-12);
}

TEST_CASE("gradients of AuxK level by level", "[training][aux_k][gradient]") {
  for (const Index k : {Index{4}, Index{40}})  // sparse and dense codes
    for (const bool raw : {false, true}) {
      CAPTURE(k, raw);
      const auto model = make(k);
      const NaiveModel twin = naive(model);
      const Dense x = random_rows(rows, width, 3), z = naive_pre_activations(twin, x);
      auto dead = every_second_dead(24);  // 69, 67, ..., 23
      dead[3] = 1;                        // one in the first level, none in [20, 23)
      const std::vector<Index> ends{20, 23, 45, latents};
      const Mask active = naive_largest(z, k);
      const Dense f = naive_codes(z, active);
      struct Level {
        Mask chosen;
        Dense residual;
        double factor;
      };
      std::vector<Level> levels;
      for (std::size_t m = 0; m < ends.size(); ++m) {
        auto own = dead;
        double count = 0;
        for (Index i = 0; i < latents; ++i) {
          if (i < (m > 0 ? ends[m - 1] : 0) || i >= ends[m]) own[static_cast<std::size_t>(i)] = 0;
          count += own[static_cast<std::size_t>(i)];
        }
        levels.push_back({naive_largest(z, 3, {}, raw ? -1e300 : 0, own), x - naive_decode(twin, first_columns(f, ends[m])),
                          0.8 * std::min(count / 3, 1.0)});
      }
      const auto auxiliary = [&](const NaiveModel& m) {
        double sum = 0;
        for (const Level& level : levels)
          sum +=
              level.factor * naive_mean_square(naive_decode(m, naive_codes(naive_pre_activations(m, x), level.chosen), false) -
                                               level.residual);
        return sum;
      };
      REQUIRE(levels[1].factor == 0);
      const sae::Objective objective{MatryoshkaAuxK{.widths = {20, 23, 45}, .level = {.coefficient = 0.8, .raw_values = raw}}};
      const auto got = gradient_of(model, x, objective, dead);
      check_gradient(twin, got.parameters, [&](const NaiveModel& m) {
        return naive_mean_square(naive_decode(m, naive_codes(naive_pre_activations(m, x), active)) - x) + auxiliary(m);
      });
      CHECK(got.loss.terms[0].second == Approx(auxiliary(twin)).epsilon(1e-12));
      const auto late = told_late(model, x, objective, dead);
      Model::Parameters::visit(
          [](std::string_view, const auto& a, const auto& b) { CHECK(relative_error(a.map(), b.map()) <= 1e-13); }, late,
          got.parameters);
    }
}

TEST_CASE("MatryoshkaAuxK: one level is AuxK, none dead is nothing, any threads", "[training][aux_k]") {
  const auto model = make();
  const Dense x = random_rows(rows, width, 3);
  const AuxK term{.coefficient = 0.5, .normaliser = AuxKNormaliser::residual_variance};
  const sae::Objective one_level{MatryoshkaAuxK{.widths = {latents}, .level = term}};
  const auto dead = every_second_dead(20);
  const auto a = gradient_of(model, x, one_level, dead), b = gradient_of(model, x, sae::Objective{term}, dead);
  CHECK(a.loss.total == Approx(b.loss.total).epsilon(1e-13));
  CHECK(relative_error(a.parameters.W_enc.map(), b.parameters.W_enc.map()) <= 1e-12);
  CHECK(relative_error(a.parameters.W_dec.map(), b.parameters.W_dec.map()) <= 1e-12);
  const auto none = gradient_of(model, x, one_level, every_second_dead(0));
  CHECK(none.loss.terms[0].second == 0);
  CHECK(none.parameters.W_dec == model.gradient(x).parameters.W_dec);

  sae::Threads one(1), three(3);
  const sae::Objective levels{MatryoshkaAuxK{.widths = {20, 45}, .level = term}};
  Model::Workspace<sae::Objective<MatryoshkaAuxK>> first, second;
  first.step.dead = second.step.dead = dead;
  const Dense many = random_rows(300, width, 4);
  const auto c = model.gradient(many, levels, first, one), d = model.gradient(many, levels, second, three);
  CHECK(c.loss.total == d.loss.total);
  CHECK(c.parameters.W_enc == d.parameters.W_enc);
  CHECK(c.parameters.W_dec == d.parameters.W_dec);
}

TEMPLATE_TEST_CASE("AuxK of few dead and many, by entries, tiles and products, is that of the formula", "[training][aux_k]",
                   float, double) {
  using Scalar = TestType;
  constexpr Index wide = 22, many = 1300, batch = 130;
  sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::TopK, Scalar> model(wide, many, {.k = 6});
  randomise(model, 8);
  const NaiveModel twin = naive(model);
  const sae::Matrix<Scalar> x = random_rows(batch, wide, 3).template cast<Scalar>();
  const Dense rows_given = x.template cast<double>(), z = naive_pre_activations(twin, rows_given);
  const Dense residual = naive_decode(twin, naive_codes(z, naive_largest(z, 6))) - rows_given;
  const auto without = model.gradient(x);
  std::set<sae::detail::SumsBy> seen;
  for (const Index dead_count : {1, 5, 90, 600, 1300})
    for (const Index k : {2, 60, 1300})
      for (const bool raw : {false, true}) {
        CAPTURE(dead_count, k, raw);
        std::vector<std::uint8_t> dead(static_cast<std::size_t>(many), 0);
        for (Index n = 0; n < dead_count; ++n) dead[static_cast<std::size_t>(n * many / dead_count)] = 1;
        const AuxK term{.coefficient = 20, .k = k, .raw_values = raw, .scale_by_dead = false};
        const Mask chosen = naive_largest(z, std::min(k, dead_count), {}, raw ? -1e300 : 0, dead);
        const Dense v = naive_codes(z, chosen), error = naive_decode(twin, v, false) + residual;
        const Dense g = error * (2 * 20.0 / static_cast<double>(batch));
        Dense dz = g * twin.W_dec.transpose();
        for (Index i = 0; i < dz.size(); ++i)
          if (chosen.data()[i] == 0) dz.data()[i] = 0;
        seen.insert(sae::detail::sums_by<Scalar>(static_cast<Index>(chosen.template cast<int>().sum()), batch * dead_count));

        typename decltype(model)::template Workspace<sae::Objective<AuxK>> workspace, same;
        workspace.step.dead = same.step.dead = dead;
        sae::Threads one(1), three(3);
        const auto got = model.gradient(x, sae::Objective{term}, workspace, one);
        const double bound = 400 * static_cast<double>(std::numeric_limits<Scalar>::epsilon());
        CHECK(got.loss.terms[0].second == Approx(20 * naive_mean_square(error)).epsilon(bound));
        const auto check = [&](const auto& with, const auto& alone, const Dense& want) {
          const Dense own = with.map().template cast<double>() - alone.map().template cast<double>();
          const double size = std::fmax(largest_magnitude(with.map()), largest_magnitude(want));
          CHECK(largest_difference(own, want) <= bound * size);
        };
        check(got.parameters.W_dec, without.parameters.W_dec, v.transpose() * g);
        check(got.parameters.W_enc, without.parameters.W_enc, dz.transpose() * (rows_given - twin.b_dec.replicate(batch, 1)));
        check(got.parameters.b_enc, without.parameters.b_enc, dz.colwise().sum());
        const auto again = model.gradient(x, sae::Objective{term}, same, three);
        CHECK(again.parameters.W_enc == got.parameters.W_enc);
        CHECK(again.parameters.W_dec == got.parameters.W_dec);
        CHECK(again.loss.total == got.loss.total);
      }
  CHECK(seen.size() == (std::is_same_v<Scalar, float> ? 3 : 2));
}

TEST_CASE("AuxK chooses the same beside a screen, beside a full product, and told late", "[training][aux_k]") {
  constexpr Index wide = 64, many = 2048, batch = 260;
  sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::TopK> model(wide, many, {.k = 8});
  randomise(model, 9);
  const sae::Matrix<float> x = random_rows(batch, wide, 3).cast<float>();
  const AuxK plain{.coefficient = 0.5},
      ranked{.coefficient = 0.5, .k = 40, .raw_values = true, .rank_by_decoder_norm = true, .by_magnitude = true};
  sae_test::on_every_route([&] {
    for (const AuxK& term : {plain, ranked})
      for (const Index dead_count : {30, 900, 1700}) {
        CAPTURE(dead_count, term.raw_values);
        std::vector<std::uint8_t> dead(static_cast<std::size_t>(many), 0);
        for (Index n = 0; n < dead_count; ++n) dead[static_cast<std::size_t>(n * many / dead_count)] = 1;
        typename decltype(model)::template Workspace<sae::Objective<AuxK>> workspace;
        workspace.step.dead = dead;
        const auto first = model.gradient(x, sae::Objective{term}, workspace);  // no rule of a batch before: it watches
        const auto second = model.gradient(x, sae::Objective{term}, workspace);
        CHECK(first.loss.total == second.loss.total);
        CHECK(first.parameters.W_enc == second.parameters.W_enc);
        CHECK(first.parameters.W_dec == second.parameters.W_dec);
        typename decltype(model)::template Workspace<sae::Objective<AuxK>> late;
        late.step.wants_gradient = true;
        const sae::Batch<float> same(x);
        sae::detail::run_step(model, sae::detail::StepRows<float>{same, same}, sae::Objective{term}, late,
                              sae::Threads::shared(), [&](auto& step) { step.dead = dead; });
        CHECK(late.step.loss.total == first.loss.total);
        sae::AutoencoderParameters<sae::TopK, float> out(wide, many);
        sae::detail::materialise_gradient(model, late.step, out, sae::Threads::shared());
        CHECK(out.W_enc == first.parameters.W_enc);
        CHECK(out.W_dec == first.parameters.W_dec);
      }
  });
}

TEST_CASE("AuxK and MatryoshkaAuxK refuse bad settings in a sentence", "[training][aux_k]") {
  CHECK_THROWS_WITH((AuxK{.detach_residual = false, .through_decoder_bias = true}.check(4, 8)),
                    "AuxK: through_decoder_bias = true with detach_residual = false would count b_dec twice");
  CHECK_THROWS_WITH((MatryoshkaAuxK{}.check(4, 8)), "MatryoshkaAuxK: widths are empty; give those of Matryoshka");
  CHECK_THROWS_WITH((MatryoshkaAuxK{.widths = {3, 3}}.check(4, 8)),
                    "MatryoshkaAuxK: width 3 after 3: widths increase strictly within [1, 8] (the number of latents)");
  CHECK_THROWS_WITH((MatryoshkaAuxK{.widths = {3}, .level = {.detach_residual = false}}.check(4, 8)),
                    "MatryoshkaAuxK: level.detach_residual = false: the residual of a prefix is held constant");
  CHECK_THROWS_WITH((MatryoshkaAuxK{.widths = {3}, .level = {.coefficient = -1}}.check(4, 8)),
                    "AuxK: coefficient = -1 is not in [0, infinity)");
}
