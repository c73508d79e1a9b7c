// The two pursuits: by hand, against a naive twin, by central differences over frozen choices, and as SAELens has them.
#include <sae/activations/matching_pursuit.hpp>
#include <sae/files/npy.hpp>
#include <sae/formats/load.hpp>
#include <sae/training/aux_k.hpp>
#include <sae/training/l1.hpp>

#include <limits>
#include <vector>

#include <Eigen/Cholesky>

#include "catch_compat.hpp"
#include "gradient_check.hpp"
#include "peer_replay.hpp"
#include "temp_folder.hpp"

namespace {

using sae::Index;
using sae::MatchingPursuit;
using sae::OrthogonalMatchingPursuit;
using namespace sae_test;
template <class Activation>
using Model = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, Activation, double>;

using Chosen = std::vector<std::vector<Index>>;  // for each row its latents in the order of their choice

// argmax_i r . d_i (or |r . d_i|) above 0, by loops; -1: none.
Index naive_best(const Dense& W, const Dense& r, bool by_magnitude) {
  Index best = -1;
  double high = 0;
  for (Index i = 0; i < W.rows(); ++i) {
    double z = 0;
    for (Index j = 0; j < W.cols(); ++j) z += W(i, j) * r(0, j);
    if (const double key = by_magnitude ? std::abs(z) : z; key > high) {
      high = key;
      best = i;
    }
  }
  return best;
}
// The fit of u by the rows `of` of W.
Dense naive_fit(const Dense& W, const Dense& u, const std::vector<Index>& of) {
  const auto n = static_cast<Index>(of.size());
  Dense D(n, W.cols());
  for (Index t = 0; t < n; ++t) D.row(t) = W.row(of[static_cast<std::size_t>(t)]);
  return Eigen::LDLT<Dense>(Dense(D * D.transpose())).solve(Dense(D * u.transpose())).transpose();
}

Chosen naive_choices(const MatchingPursuit& a, const Dense& W, const Dense& u) {
  Chosen out(static_cast<std::size_t>(u.rows()));
  for (Index b = 0; b < u.rows(); ++b) {
    auto& row = out[static_cast<std::size_t>(b)];
    Dense r = u.row(b);
    for (Index t = 0; t < (a.max_iterations > 0 ? a.max_iterations : u.cols()); ++t) {
      const Index i = naive_best(W, r, false);
      if (i < 0) break;
      const bool again = std::count(row.begin(), row.end(), i) > 0;
      row.push_back(i);
      r -= r.row(0).dot(W.row(i)) * W.row(i);
      if ((again && a.stop_on_duplicate_support) || r.norm() < a.residual_threshold) break;
    }
  }
  return out;
}
Chosen naive_choices(const OrthogonalMatchingPursuit& a, const Dense& W, const Dense& u) {
  Chosen out(static_cast<std::size_t>(u.rows()));
  for (Index b = 0; b < u.rows(); ++b) {
    auto& row = out[static_cast<std::size_t>(b)];
    Dense r = u.row(b);
    while (static_cast<Index>(row.size()) < a.k) {
      const Index i = naive_best(W, r, a.by_magnitude);
      if (i < 0 || std::count(row.begin(), row.end(), i) > 0 || static_cast<Index>(row.size()) == W.cols()) break;
      row.push_back(i);
      const Dense f = naive_fit(W, u.row(b), row);
      r = u.row(b);
      for (std::size_t t = 0; t < row.size(); ++t) r -= f(0, static_cast<Index>(t)) * W.row(row[t]);
      if (r.norm() < a.residual_threshold) break;
    }
  }
  return out;
}

// Codes of given choices.
Dense naive_codes_of(const MatchingPursuit&, const Dense& W, const Dense& u, const Chosen& chosen) {
  Dense f = Dense::Zero(u.rows(), W.rows());
  for (Index b = 0; b < u.rows(); ++b) {
    Dense r = u.row(b);
    for (const Index i : chosen[static_cast<std::size_t>(b)]) {
      const double v = r.row(0).dot(W.row(i));
      f(b, i) += v;
      r -= v * W.row(i);
    }
  }
  return f;
}
Dense naive_codes_of(const OrthogonalMatchingPursuit&, const Dense& W, const Dense& u, const Chosen& chosen) {
  Dense f = Dense::Zero(u.rows(), W.rows());
  for (Index b = 0; b < u.rows(); ++b) {
    const auto& row = chosen[static_cast<std::size_t>(b)];
    if (row.empty()) continue;
    const Dense fit = naive_fit(W, u.row(b), row);
    for (std::size_t t = 0; t < row.size(); ++t) f(b, row[t]) = fit(0, static_cast<Index>(t));
  }
  return f;
}

Dense minus(const Dense& x, const Dense& bias, bool subtract) { return subtract ? Dense(x.rowwise() - bias.row(0)) : x; }

// Rows of norms around 1 in random directions, so that a residual shrinks but for a latent that comes again.
template <class Activation>
Model<Activation> some_model(Index width, Index latents, Activation activation, bool subtract) {
  Model<Activation> model(width, latents, activation, {.subtract_decoder_bias = subtract, .initialization = {.seed = 3}});
  const Dense stretch = random_rows(1, latents, 9, 0.15);
  for (Index i = 0; i < latents; ++i) model.W_dec().row(i) *= 1 + stretch(0, i);
  model.parameters().b_dec.map() = random_rows(1, width, 4, 0.5);
  return model;
}

}  // namespace

TEST_CASE("MatchingPursuit by hand", "[activations][pursuit]") {
  Model<MatchingPursuit> model(2, 3, {}, {.subtract_decoder_bias = false});
  model.W_dec() << 1, 0, 0, 1, 0.6, 0.8;
  Dense x(5, 2), want(5, 3);
  x << 3, 4, 2, 2, 1, 0, -1, -1, std::numeric_limits<double>::quiet_NaN(), 1;
  want << 0, 0, 5,   //
      0.32, 0, 2.8,  // r = (0.32, -0.24) after latent 2, (0, -0.24) after latent 0
      1, 0, 0,       //
      0, 0, 0,       // nothing points its way
      0, 0, 0;
  CHECK(largest_difference(model.encode_dense(x), want) <= 1e-15);
  CHECK(model.encode(x).size() == 4);

  // One latent of norm 1/sqrt 2: r = 1, 1/2, 1/4 ... of x along it.
  Dense w(3, 2), along(1, 2);
  w << 0.5, 0.5, 0.5, 0.5, -1, -1;
  along << 1, 1;
  const auto code = [&](MatchingPursuit pursuit) {
    Model<MatchingPursuit> short_rows(2, 3, pursuit, {.subtract_decoder_bias = false});
    short_rows.W_dec() = w;
    const auto codes = short_rows.encode(along);
    REQUIRE(codes.size() == 1);
    REQUIRE(codes.latent(0) == 0);  // the lower of two equals
    return codes.value(0);
  };
  CHECK(code({.max_iterations = 1}) == 1);
  CHECK(code({}) == 1.5);  // the step that comes back to an active latent is the last one
  CHECK(code({.max_iterations = 3, .stop_on_duplicate_support = false}) == 1.75);
  CHECK(code({.residual_threshold = 1, .stop_on_duplicate_support = false}) == 1);      // |r| = 0.707
  CHECK(code({.residual_threshold = 0.7, .stop_on_duplicate_support = false}) == 1.5);  // then 0.354
}

TEST_CASE("OrthogonalMatchingPursuit by hand", "[activations][pursuit]") {
  Model<OrthogonalMatchingPursuit> model(2, 3, {.k = 2}, {.subtract_decoder_bias = false});
  model.W_dec() << 1, 0, 0, 1, 0.6, 0.8;
  Dense x(3, 2), want(3, 3);
  x << 2, 2, 1, 0, -1, -1;
  want << 0.5, 0, 2.5,  // 2.5 (0.6, 0.8) + 0.5 (1, 0)
      1, 0, 0,          //
      0, 0, 0;
  CHECK(largest_difference(model.encode_dense(x), want) <= 1e-14);
  Model<OrthogonalMatchingPursuit> signs(2, 3, {.k = 2, .by_magnitude = true}, {.subtract_decoder_bias = false});
  signs.W_dec() = model.W_dec();
  want.row(2) << -0.25, 0, -1.25;
  CHECK(largest_difference(signs.encode_dense(x), want) <= 1e-14);
  // Three of four rows of the plane are one too many.
  Model<OrthogonalMatchingPursuit> more(2, 3, {.k = 3}, {.subtract_decoder_bias = false});
  more.W_dec() = model.W_dec();
  CHECK(more.encode(random_rows(50, 2, 3)).size() <= 100);
  CHECK(largest_difference(more.encode_dense(x.topRows(1)), want.topRows(1).cwiseAbs()) <= 1.0);
}

TEMPLATE_TEST_CASE("pursuits are their naive twins over sizes and threads", "[activations][pursuit]", MatchingPursuit,
                   OrthogonalMatchingPursuit) {
  sae::Threads one(1), three(3);
  Index again = 0;
  for (const Index width : {2, 7, 33})
    for (const Index latents : {1, 5, 70, 600})
      for (const Index rows : {1, 2, 67})
        for (const bool subtract : {true, false})
          for (int variant = 0; variant < 3; ++variant) {
            TestType activation;
            if constexpr (std::is_same_v<TestType, MatchingPursuit>) {
              activation.max_iterations = std::vector<Index>{0, 4, 9}[static_cast<std::size_t>(variant)];
              activation.residual_threshold = std::vector<double>{0.5, 0, 1.5}[static_cast<std::size_t>(variant)];
              activation.stop_on_duplicate_support = variant != 2;
            } else {
              activation.k = std::min(latents, std::vector<Index>{1, 4, 9}[static_cast<std::size_t>(variant)]);
              activation.residual_threshold = variant == 1 ? 0.8 : 1e-3;
              activation.by_magnitude = variant == 2;
            }
            CAPTURE(width, latents, rows, subtract, variant);
            const auto model = some_model(width, latents, activation, subtract);
            const Dense x = random_rows(rows, width, 2, 1.5), W = model.W_dec();
            const Dense u = minus(x, model.b_dec(), subtract);
            const Chosen chosen = naive_choices(activation, W, u);
            const Dense want = naive_codes_of(activation, W, u, chosen);
            const auto codes = model.encode(x, one);
            REQUIRE(largest_difference(codes.dense(), want) <= 1e-9 * (1 + largest_magnitude(want)));
            REQUIRE(model.encode(x, three).dense() == codes.dense());
            Dense reconstruction = want * W;
            if (subtract) reconstruction.rowwise() += model.b_dec().row(0);
            REQUIRE(largest_difference(model.decode(codes), reconstruction) <= 1e-9 * (1 + largest_magnitude(want)));
            for (const auto& row : chosen)
              for (const Index i : row) again += std::count(row.begin(), row.end(), i) - 1;
          }
  if (std::is_same_v<TestType, MatchingPursuit>) REQUIRE(again > 0);
}

TEMPLATE_TEST_CASE("gradients of pursuits, the choices frozen", "[activations][pursuit][gradient]", MatchingPursuit,
                   OrthogonalMatchingPursuit) {
  constexpr Index width = 6, latents = 70, rows = 9;
  for (const bool subtract : {true, false})
    for (const bool penalty : {false, true})
      for (int variant = 0; variant < 2; ++variant) {
        TestType activation;
        if constexpr (std::is_same_v<TestType, MatchingPursuit>) {
          activation = variant == 0 ? MatchingPursuit{.residual_threshold = 0.3}
                                    : MatchingPursuit{.max_iterations = 12, .stop_on_duplicate_support = false};
        } else {
          activation = {.k = variant == 0 ? 3 : 5, .by_magnitude = variant == 1};
        }
        CAPTURE(subtract, penalty, variant);
        const auto model = some_model(width, latents, activation, subtract);
        const Dense x = random_rows(rows, width, 2, 1.5);
        Dense W = model.W_dec(), b_dec = model.b_dec();
        const Chosen chosen = naive_choices(activation, W, minus(x, b_dec, subtract));
        const Dense signs = naive_codes_of(activation, W, minus(x, b_dec, subtract), chosen).cwiseSign();
        const auto loss = [&] {
          const Dense f = naive_codes_of(activation, W, minus(x, b_dec, subtract), chosen);
          double out = naive_mean_square(f * W - minus(x, b_dec, subtract));
          if (penalty)
            for (Index b = 0; b < rows; ++b)
              for (Index i = 0; i < latents; ++i)
                out += 0.7 / static_cast<double>(rows) * f(b, i) * (signs(b, i) < 0 ? -1 : 1) * W.row(i).norm();
          return out;
        };
        const sae::Objective terms{sae::L1{.coefficient = penalty ? 0.7 : 0.0}};
        if (penalty && signs.minCoeff() < 0) continue;  // L1 is for codes that are not negative
        const auto got = model.gradient(x, terms);
        CHECK(got.loss.total == Approx(loss()).epsilon(1e-12));
        CHECK(got.parameters.W_enc.size() == 0);
        CHECK(relative_error(got.parameters.W_dec.map(), central_differences(W, loss)) <= 1e-6);
        const Dense bias = central_differences(b_dec, loss);
        CHECK((bias.isZero(1e-9)) == !subtract);
        CHECK(largest_difference(got.parameters.b_dec.map(), bias) <= 1e-6 * (1 + largest_magnitude(bias)));
      }
}

TEST_CASE("a gradient of many choices is that of few at a time", "[activations][pursuit][gradient]") {
  constexpr Index width = 8, latents = 90, rows = 400, part = 50;
  const auto model =
      some_model(width, latents, MatchingPursuit{.max_iterations = 12, .stop_on_duplicate_support = false}, true);
  const Dense x = random_rows(rows, width, 2, 1.5);
  const auto all = model.gradient(x, sae::Objective<>{});
  REQUIRE(model.encode(x).size() > 2048);  // more than are kept at once
  Dense W = Dense::Zero(latents, width), b_dec = Dense::Zero(1, width);
  for (Index first = 0; first < rows; first += part) {
    const auto some = model.gradient(Dense(x.middleRows(first, part)), sae::Objective<>{});
    W += some.parameters.W_dec.map() * (static_cast<double>(part) / rows);
    b_dec += some.parameters.b_dec.map() * (static_cast<double>(part) / rows);
  }
  CHECK(relative_error(all.parameters.W_dec.map(), W) <= 1e-12);
  CHECK(relative_error(all.parameters.b_dec.map(), b_dec) <= 1e-12);
}

TEST_CASE("settings of pursuits are checked", "[activations][pursuit]") {
  CHECK_NOTHROW((MatchingPursuit{.residual_threshold = 0, .max_iterations = 3}.check(2)));
  CHECK_THROWS_WITH((MatchingPursuit{.residual_threshold = -1}.check(2)),
                    "MatchingPursuit: residual_threshold = -1 is not in [0, infinity)");
  CHECK_THROWS_WITH((MatchingPursuit{.max_iterations = -2}.check(2)),
                    "MatchingPursuit: max_iterations = -2 is negative; 0 takes D");
  CHECK_THROWS_WITH((OrthogonalMatchingPursuit{.k = 3}.check(2)),
                    "OrthogonalMatchingPursuit: k = 3 is not in [1, 2] (the number of latents)");
  CHECK_THROWS_WITH((OrthogonalMatchingPursuit{.k = 1, .residual_threshold = -1}.check(2)),
                    "OrthogonalMatchingPursuit: residual_threshold = -1 is not in [0, infinity)");
}

TEST_CASE("a pursuit folds an input scale into its threshold, and refuses what needs an encoder", "[activations][pursuit]") {
  auto model = some_model(8, 40, MatchingPursuit{.residual_threshold = 1.1}, true);
  const Dense x = random_rows(30, 8, 2, 1.5);
  const Dense codes = model.encode_dense(2.5 * x);
  model.fold_input_scale(2.5);
  CHECK(model.parameters().activation.residual_threshold[0] == Approx(0.44).epsilon(1e-14));
  CHECK(largest_difference(model.encode_dense(x), codes / 2.5) <= 1e-13);
  CHECK_THROWS_AS(model.fold_decoder_norms(), sae::ValueError);
  CHECK_THROWS_AS(model.b_enc(), sae::ValueError);
  std::vector<std::uint8_t> dead(40, 1);
  Model<MatchingPursuit>::Workspace<sae::Objective<sae::AuxK>> workspace;
  workspace.step.dead = dead;
  CHECK_THROWS_WITH(
      model.gradient(x, sae::Objective{sae::AuxK{}}, workspace),
      "a term of the objective reads pre-activations (AuxK does), and matching_pursuit has none that are one product");
}

TEMPLATE_TEST_CASE("a pursuit trains the same on any number of threads, in one pass and with clipping",
                   "[activations][pursuit]", MatchingPursuit, OrthogonalMatchingPursuit) {
  const Dense x = random_rows(256, 12, 6);
  TestType activation;
  if constexpr (std::is_same_v<TestType, MatchingPursuit>)
    activation.max_iterations = 3;
  else
    activation.k = 3;
  for (const double clip : {0.0, 0.5}) {
    CAPTURE(clip);
    std::vector<Dense> results;
    for (const int count : {1, 3}) {
      sae::Threads threads(count);
      Model<TestType> model(12, 40, activation);
      const double before = model.loss(x).total;
      sae::TrainerConfig config{.learning_rate = 1e-2, .clip_norm = clip, .decoder = sae::DecoderNorm::free};
      config.steps = 60;
      config.batch = 64;
      sae::Trainer trainer(model, config, sae::Objective<>{}, threads);
      sae::MatrixSource<double> source(x, {.seed = 1});
      trainer.fit(source);
      CHECK(model.loss(x).total < 0.9 * before);
      CHECK(model.parameters().tied());
      results.push_back(model.W_dec());
    }
    CHECK(results[0] == results[1]);
  }
}

TEST_CASE("a pursuit that is chosen at run time trains as the one in the type", "[activations][pursuit]") {
  const Dense x = random_rows(64, 12, 6);
  const auto trained = [&](auto activation) {
    Model<decltype(activation)> model(12, 40, activation);
    sae::TrainerConfig config{.learning_rate = 1e-2, .decoder = sae::DecoderNorm::free};
    config.steps = 5;
    config.batch = 32;
    sae::Trainer trainer(model, config, sae::Objective<>{});
    sae::MatrixSource<double> source(x, {.seed = 1});
    trainer.fit(source);
    return Dense(model.W_dec());
  };
  CHECK(trained(sae::AnyActivation(MatchingPursuit{.max_iterations = 3})) == trained(MatchingPursuit{.max_iterations = 3}));
}

TEST_CASE("MatchingPursuit trains as SAELens does", "[activations][pursuit][peers]") {
  auto recipe = peer_recipe("saelens", {.activation = "matching_pursuit", .k = 7});
  recipe.config.learning_rate = 0.003;
  recipe.activation.get<MatchingPursuit>()->residual_threshold = 1.2;
  replay("saelens_matching_pursuit", saelens_tied, recipe);
}

TEST_CASE("SAELens' matching pursuits are read, encode as there, and are written as they were", "[formats][saelens][pursuit]") {
  for (const std::string name : {"saelens_matching_pursuit", "saelens_matching_pursuit_no_bdec"}) {
    CAPTURE(name);
    const auto folder = std::filesystem::path(SAE_TEST_DATA) / "peers" / "inference" / name;
    const sae::AnySae any = sae::load(folder);
    CHECK(any.warnings.empty());
    CHECK(any.architecture() == "matching_pursuit");
    const auto x = sae::load_npy<float>(folder / "x.npy");
    const auto codes = sae::load_npy<double>(folder / "codes.npy"), recon = sae::load_npy<double>(folder / "recon.npy");
    REQUIRE((codes.array() != 0).count() > x.rows());
    CHECK(mask_of(any.encode(x)) == mask_of(sae::Codes<double>::from_dense(codes)));
    CHECK(largest_difference(any.encode(x).dense(), codes) <= 1e-5 * largest_magnitude(codes));
    CHECK(largest_difference(any.reconstruct(x), recon) <= 1e-5 * largest_magnitude(recon));

    const TempFolder out;
    sae::save_saelens(any, out / "sae");
    const auto config = sae::read_json(out / "sae" / "cfg.json");
    for (const char* field : {"residual_threshold", "max_iterations", "stop_on_duplicate_support", "apply_b_dec_to_input"})
      CHECK(config.at(field) == any.config.at(field));
    const sae::SafetensorsFile file(out / "sae" / "sae_weights.safetensors");
    CHECK(file.tensors().size() == 2);
    CHECK(sae::load(out / "sae").encode(x).dense() == any.encode(x).dense());
  }
  const TempFolder out;
  const auto model =
      some_model(6, 20, OrthogonalMatchingPursuit{.k = 3, .residual_threshold = 0.25, .by_magnitude = true}, true);
  sae::save_saelens(model, out / "sae");
  const auto back = sae::load_saelens<Model<OrthogonalMatchingPursuit>>(out / "sae");
  CHECK(back.activation().by_magnitude);
  CHECK(back.parameters().activation.residual_threshold[0] == 0.25);
  CHECK(back.encode_dense(random_rows(9, 6, 3)) == model.encode_dense(random_rows(9, 6, 3)));
  auto config = sae::read_json(out / "sae" / "cfg.json");
  config["residual_threshold"] = -1;
  sae::save_json(out / "sae" / "cfg.json", config, {.overwrite = true});
  CHECK_THROWS_AS(sae::load_saelens<Model<OrthogonalMatchingPursuit>>(out / "sae"), sae::FileError);
}
