#include <sae/host/cross_entropy.hpp>

#include <cmath>
#include <limits>

#include "catch_compat.hpp"
#include "naive_llama.hpp"

using namespace sae;
using Catch::Matchers::ContainsSubstring;

namespace {
std::span<const float> view(const std::vector<float>& v) { return v; }
/// The definition, without care for range.
double plain_kl(const std::vector<float>& p, const std::vector<float>& q) {
  double zp = 0, zq = 0, sum = 0;
  for (std::size_t j = 0; j < p.size(); ++j) zp += std::exp(double(p[j])), zq += std::exp(double(q[j]));
  for (std::size_t j = 0; j < p.size(); ++j)
    sum += std::exp(double(p[j])) / zp * std::log(std::exp(double(p[j])) / zp / (std::exp(double(q[j])) / zq));
  return sum;
}
}  // namespace

TEST_CASE("log-sum-exp keeps its digits far from zero", "[host][cross_entropy]") {
  CHECK(log_sum_exp(view({0, 0, 0, 0})) == Approx(std::log(4.0)).epsilon(1e-15));
  CHECK(log_sum_exp(view({1000, 1000})) == Approx(1000 + std::log(2.0)).epsilon(1e-15));
  CHECK(log_sum_exp(view({-1000, -1001})) == Approx(-1000 + std::log1p(std::exp(-1.0))).epsilon(1e-15));
  CHECK(std::isnan(log_sum_exp(view({0, std::numeric_limits<float>::quiet_NaN(), 1}))));
}

TEST_CASE("KL is its definition, 0 for equal logits and infinite where q excludes what p allows", "[host][cross_entropy]") {
  const std::vector<float> p = {0.5F, -1.25F, 2, 0.125F}, q = {-0.5F, 3, 0.25F, 1};
  CHECK(kl_divergence(p, q) == Approx(plain_kl(p, q)).epsilon(1e-13));
  CHECK(kl_divergence(p, p) == 0);
  const float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  CHECK(kl_divergence(view({0, 0}), view({0, -infinity})) == std::numeric_limits<double>::infinity());
  CHECK(kl_divergence(view({0, -infinity}), view({0, 0})) == Approx(std::log(2.0)));
  CHECK(std::isnan(kl_divergence(view({0, nan}), view({0, 0}))));
  CHECK(std::isnan(kl_divergence(view({0, 0}), view({nan, 0}))));
  CHECK(std::isnan(kl_divergence(view({0, infinity}), view({0, 0}))));
  CHECK_THROWS_AS(kl_divergence(view({0, 0}), view({0, 0, 0})), ShapeError);
}

TEST_CASE("a row of logits is judged by the next token", "[host][cross_entropy]") {
  Matrix<float> logits = Matrix<float>::Zero(3, 4);
  logits(0, 2) = 5;
  const std::vector<Token> tokens = {0, 2, 3};
  const std::vector<double> losses = next_token_losses({logits.data(), 3, 4}, tokens);
  REQUIRE(losses.size() == 2);
  CHECK(losses[0] == Approx(std::log(std::exp(5.0) + 3) - 5).epsilon(1e-14));
  CHECK(losses[1] == Approx(std::log(4.0)).epsilon(1e-14));
  CHECK_THROWS_AS(next_token_losses({logits.data(), 2, 4}, tokens), ShapeError);
  CHECK_THROWS_AS(next_token_losses({logits.data(), 3, 3}, tokens), ValueError);
  Threads one(1), four(4);
  CHECK(next_token_losses({logits.data(), 3, 4}, tokens, one) == next_token_losses({logits.data(), 3, 4}, tokens, four));
}

TEST_CASE("conditions are compared over the same predictions", "[host][cross_entropy]") {
  sae_test::NaiveLlama model(sae_test::make_tiny_llama());
  const Windows windows = cut_windows(model, "the dog and the cat in the house on the hill", {.context = 12, .tokens = 0});
  REQUIRE(windows.count() == 4);
  const Site site{1, SiteKind::residual};
  const Tap same{site, [](MatrixMap<float>, Index) {}, true};
  const Tap zero{site, [](MatrixMap<float> x, Index) { x.setZero(); }, true};
  const Tap half{site,
                 [](MatrixMap<float> x, Index) {
                   x *= 0.5F;
                   x.col(0).array() += 1.0F;
                 },
                 true};
  const std::vector<Condition> conditions = {{"clean", {}}, {"same", {same}}, {"zero", {zero}}, {"half", {half}}};
  std::vector<Index> progress;
  const auto results =
      compare_conditions(model, windows, std::span<const Condition>(conditions), [&](Index done) { progress.push_back(done); });
  REQUIRE(results.size() == 4);
  CHECK(progress == std::vector<Index>{1, 2, 3, 4});
  CHECK(results[3].name == "half");
  for (const ConditionResult& result : results) CHECK(result.tokens == 4 * 11);

  double clean = 0, kl = 0;  // the same by hand, window by window
  for (Index w = 0; w < windows.count(); ++w) {
    const Matrix<float> p = model.run(windows[w], {}, {.logits = Logits::all});
    const Matrix<float> q = model.run(windows[w], std::span(&half, 1), {.logits = Logits::all});
    for (Index t = 0; t + 1 < p.rows(); ++t) {
      const std::vector<float> pt(p.row(t).begin(), p.row(t).end()), qt(q.row(t).begin(), q.row(t).end());
      double norm = 0;
      for (const float z : pt) norm += std::exp(double(z));
      clean += std::log(norm) - pt[static_cast<std::size_t>(windows[w][static_cast<std::size_t>(t) + 1])];
      kl += plain_kl(pt, qt);
    }
  }
  CHECK(results[0].cross_entropy == Approx(clean / 44).epsilon(1e-12));
  CHECK(results[0].kl == 0);
  CHECK(results[1].cross_entropy == results[0].cross_entropy);
  CHECK(results[1].kl == 0);
  CHECK(results[2].cross_entropy == Approx(std::log(static_cast<double>(model.shape().vocabulary))).epsilon(1e-12));
  CHECK(results[3].kl == Approx(kl / 44).epsilon(1e-9));
  CHECK(results[3].kl > 0.01);

  CHECK_THROWS_AS(compare_conditions(model, windows, {}), ValueError);
  CHECK_THROWS_WITH(compare_conditions(model, windows, std::span<const Condition>(conditions),
                                       [](Index) { throw std::runtime_error("enough"); }),
                    "enough");
}
