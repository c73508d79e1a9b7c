// The squared error with each normaliser: a hand computation, central differences with and without row weights.
#include <sae/activations/relu.hpp>
#include <sae/activations/topk.hpp>
#include <sae/models/reconstruction_loss.hpp>
#include <sae/models/sparse_autoencoder.hpp>
#include <sae/models/transcoder.hpp>
#include <sae/training/any_objective.hpp>

#include <string>
#include <vector>

#include "catch_compat.hpp"
#include "gradient_check.hpp"

namespace {

using sae::ErrorNormaliser;
using sae::Index;
using sae::SquaredError;
using namespace sae_test;

template <class Activation>
using Model = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, Activation, double>;
constexpr Index width = 6, latents = 40, rows = 9;
constexpr ErrorNormaliser all[] = {ErrorNormaliser::rows, ErrorNormaliser::target_variance, ErrorNormaliser::row_norms};

/// scale sum_b w_b |e_b|^2 / normaliser, written out.
double naive_error(const Dense& e, const Dense& y, const SquaredError& term, const std::vector<double>& weight) {
  const auto n = static_cast<double>(e.rows());
  double sum = 0;
  for (Index b = 0; b < e.rows(); ++b) {
    double square = 0, norm = 0;
    for (Index j = 0; j < e.cols(); ++j) {
      square += e(b, j) * e(b, j);
      norm += y(b, j) * y(b, j);
    }
    const double w = weight.empty() ? 1.0 : weight[static_cast<std::size_t>(b)];
    const double divisor = term.normaliser == ErrorNormaliser::rows              ? n
                           : term.normaliser == ErrorNormaliser::target_variance ? n * naive_row_variance(y)
                                                                                 : n * norm;
    if (divisor > 0) sum += term.scale * w * square / divisor;
  }
  return sum;
}

template <class Model, class Terms>
struct Ran {
  typename Model::template Workspace<Terms> workspace;
  typename Model::Parameters gradient;
};
template <class Model, class Terms>
Ran<Model, Terms> run(const Model& model, const Dense& x, const Dense& y, const std::vector<double>& weight,
                      const Terms& objective, sae::Threads& threads) {
  Ran<Model, Terms> out;
  out.gradient.resize_like(model.parameters());
  out.workspace.step.wants_gradient = true;
  const sae::Batch<double> input(x), target(y);
  sae::detail::run_step(
      model, sae::detail::StepRows<double>{input, target, weight}, objective, out.workspace, threads, [](auto&) {},
      &out.gradient);
  sae::detail::materialise_gradient(model, out.workspace.step, out.gradient, threads);
  return out;
}

}  // namespace

TEST_CASE("the squared error by hand, every normaliser", "[models][squared_error]") {
  // Two rows, codes 1 and 2 of one latent with direction (1, 1): errors (1, 1) - (0, 3) = (1, -2), (2, 2) - (4, 1) = (-2, 1).
  Model<sae::ReLU> model(2, 1, {}, {.subtract_decoder_bias = false});
  auto& p = model.parameters();
  p.W_enc.map() << 0.5, 0;
  p.b_enc.map() << 1;
  p.W_dec.map() << 1, 1;
  p.b_dec.set_zero();
  Dense x(2, 2);
  x << 0, 3, 4, 1;
  p.W_enc.map() << 0.25, 0;
  const auto got = [&](const SquaredError& term) { return model.gradient(x, sae::Objective{term}); };
  const auto rows_of = got({});
  CHECK(rows_of.loss.total == Approx(5));  // (5 + 5) / 2
  CHECK(largest_difference(rows_of.parameters.b_dec.map(), (Dense(1, 2) << -1, -1).finished()) <= 1e-12);
  REQUIRE(rows_of.loss.terms.size() == 1);
  CHECK(rows_of.loss.terms[0].first == "squared_error");
  // mean (2, 2): |y - mean|^2 = 4 + 1 + 4 + 1 = 10
  const auto variance = got({.scale = 3, .normaliser = ErrorNormaliser::target_variance});
  CHECK(variance.loss.total == Approx(3));
  CHECK(variance.loss.reconstruction == Approx(5));
  CHECK(largest_difference(variance.parameters.b_dec.map(), (Dense(1, 2) << -0.6, -0.6).finished()) <= 1e-12);
  // |y|^2 = 9, 17
  const auto norms = got({.normaliser = ErrorNormaliser::row_norms});
  CHECK(norms.loss.total == Approx((5.0 / 9 + 5.0 / 17) / 2));
  CHECK(largest_difference(norms.parameters.b_dec.map(), (Dense(1, 2) << 1.0 / 9 - 2.0 / 17, -2.0 / 9 + 1.0 / 17).finished()) <=
        1e-12);
}

TEST_CASE("gradients of the squared error, every normaliser, weights, densities", "[models][squared_error][gradient]") {
  sae::Threads threads(2);
  const Dense x = random_rows(rows, width, 1);
  std::vector<double> weight;
  for (Index b = 0; b < rows; ++b) weight.push_back(0.5 * static_cast<double>(b % 4));
  for (const auto normaliser : all)
    for (const bool weighted : {false, true})
      for (const double bias : {-1.5, 1.5}) {
        CAPTURE(static_cast<int>(normaliser), weighted, bias);
        Model<sae::ReLU> model(width, latents, {});
        randomise(model, 3, bias);
        const NaiveModel twin = naive(model);
        const Mask active = naive_positive(naive_pre_activations(twin, x));
        const SquaredError term{.scale = 0.7, .normaliser = normaliser};
        const auto loss = [&](const NaiveModel& m) {
          return naive_error(naive_decode(m, naive_codes(naive_pre_activations(m, x), active)) - x, x, term,
                             weighted ? weight : std::vector<double>());
        };
        const auto got = run(model, x, x, weighted ? weight : std::vector<double>(), sae::Objective{term}, threads);
        check_gradient(twin, got.gradient, loss);
        CHECK(got.workspace.step.loss.total == Approx(loss(twin)).epsilon(1e-12));
        const SquaredError plain{};
        CHECK(got.workspace.step.loss.reconstruction ==
              Approx(naive_error(naive_decode(twin, naive_codes(naive_pre_activations(twin, x), active)) - x, x, plain,
                                 weighted ? weight : std::vector<double>()))
                  .epsilon(1e-12));
      }
}

TEST_CASE("SquaredError{} is what an objective without it trains", "[models][squared_error]") {
  Model<sae::TopK> model(width, latents, {.k = 4});
  randomise(model, 3);
  const Dense x = random_rows(rows, width, 1);
  const auto plain = model.gradient(x), named = model.gradient(x, sae::Objective{SquaredError{}});
  CHECK(named.loss.total == plain.loss.total);
  CHECK(plain.loss.terms.empty());
  CHECK(named.parameters.W_enc == plain.parameters.W_enc);
  CHECK(named.parameters.W_dec == plain.parameters.W_dec);
  CHECK(named.parameters.b_dec == plain.parameters.b_dec);
  // Weights of 1 are no weights.
  sae::Threads threads(2);
  const auto ones =
      run(model, x, x, std::vector<double>(static_cast<std::size_t>(rows), 1.0), sae::Objective{SquaredError{}}, threads);
  CHECK(relative_error(ones.gradient.W_enc.map(), plain.parameters.W_enc.map()) <= 1e-14);
}

TEST_CASE("targets without variance or without norm", "[models][squared_error]") {
  Model<sae::TopK> model(width, latents, {.k = 4});
  randomise(model, 3);
  Dense same(rows, width);
  for (Index b = 0; b < rows; ++b) same.row(b).setConstant(2);
  const auto flat = model.gradient(same, sae::Objective{SquaredError{.normaliser = ErrorNormaliser::target_variance}});
  CHECK(flat.loss.total == 0);
  CHECK(flat.loss.reconstruction > 0);
  CHECK(flat.parameters.W_enc.map().isZero(0));
  Dense x = random_rows(rows, width, 1);
  x.row(3).setZero();
  const auto got = model.gradient(x, sae::Objective{SquaredError{.normaliser = ErrorNormaliser::row_norms}});
  const Dense e = model.reconstruct(x) - x;
  CHECK(got.loss.total == Approx(naive_error(e, x, {.normaliser = ErrorNormaliser::row_norms}, {})).epsilon(1e-12));
}

TEST_CASE("the normaliser is the target's, also of a transcoder", "[models][squared_error]") {
  using Coder = sae::Transcoder<sae::Dynamic, sae::Dynamic, sae::Dynamic, sae::TopK, double>;
  Coder model(width, 4, 30, sae::TopK{.k = 6}, {.skip = true});
  model.parameters().W_dec.map() = random_rows(30, 4, 1, 0.5);
  model.parameters().W_skip.map() = random_rows(4, width, 2, 0.5);
  const Dense x = random_rows(rows, width, 5), y = random_rows(rows, 4, 6, 3);
  for (const auto normaliser : all) {
    const SquaredError term{.scale = 2, .normaliser = normaliser};
    CHECK(model.loss(x, y, sae::Objective{term}).total ==
          Approx(naive_error(model.predict(x) - y, y, term, {})).epsilon(1e-12));
  }
}

TEST_CASE("the squared error: any threads, fixed or chosen at run time, the same bytes", "[models][squared_error]") {
  sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::TopK, float> model(16, 200, {.k = 9});
  randomise(model, 4);
  const sae::Matrix<float> x = random_rows(300, 16, 1).cast<float>();
  sae::Threads one(1), three(3);
  for (const auto normaliser : all) {
    const SquaredError term{.scale = 0.3, .normaliser = normaliser};
    const auto a = model.gradient(x, sae::Objective{term}, one), b = model.gradient(x, sae::Objective{term}, three),
               c = model.gradient(x, sae::AnyObjective{term}, three);
    CHECK(a.loss.total == b.loss.total);
    CHECK(a.parameters.W_enc == b.parameters.W_enc);
    CHECK(a.parameters.W_dec == b.parameters.W_dec);
    CHECK(a.loss.total == c.loss.total);
    CHECK(a.parameters.W_enc == c.parameters.W_enc);
    CHECK(a.parameters.b_dec == c.parameters.b_dec);
  }
}

TEST_CASE("SquaredError refuses bad settings and lists them", "[models][squared_error]") {
  CHECK_THROWS_WITH((SquaredError{.scale = 0}.check(4, 8)), "SquaredError: scale = 0 is not in (0, infinity)");
  CHECK_THROWS_WITH((SquaredError{.scale = -1}.check(4, 8)), "SquaredError: scale = -1 is not in (0, infinity)");
  std::string seen;
  SquaredError{.scale = 2, .normaliser = ErrorNormaliser::row_norms}.visit_settings(
      [&](std::string_view name, const auto& value) { seen += sae::detail::concat(name, "=", value, ";"); });
  CHECK(seen == "scale=2;normaliser=row_norms;");
}
