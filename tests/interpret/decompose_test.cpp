// Directions as sums of latents: planted ones, against the published gradient pursuit and against the exact non-negative fit.
#include <sae/core/random.hpp>
#include <sae/interpret/decompose.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <vector>

#include "catch_compat.hpp"

using namespace sae;
using Catch::Matchers::ContainsSubstring;

namespace {

Matrix<float> noise(Index rows, Index cols, std::uint64_t seed) {
  Random random(seed);
  Matrix<float> out(rows, cols);
  for (Index i = 0; i < out.size(); ++i) out.data()[i] = static_cast<float>(random.normal());
  return out;
}
std::span<const float> numbers(const RowVector<float>& v) { return {v.data(), static_cast<std::size_t>(v.size())}; }
Eigen::RowVectorXd sum_of(const Decomposition& of, const Matrix<float>& rows) {
  Eigen::RowVectorXd out = Eigen::RowVectorXd::Zero(rows.cols());
  for (std::size_t n = 0; n < of.latents.size(); ++n) out += of.coefficients[n] * rows.row(of.latents[n]).cast<double>();
  return out;
}

/// dictionary_learning's grad_pursuit: rounds of one update, coefficients clipped at 0; |r|^2 / |v|^2 at the end.
double published_residual(const RowVector<float>& v, const Matrix<float>& rows, Index rounds) {
  Eigen::MatrixXd d = rows.cast<double>();
  for (Index i = 0; i < d.rows(); ++i) d.row(i).normalize();
  const Eigen::VectorXd signal = v.cast<double>().transpose();
  Eigen::VectorXd weights = Eigen::VectorXd::Zero(d.rows()), chosen = weights;
  for (Index round = 0; round < rounds; ++round) {
    const Eigen::VectorXd residual = signal - d.transpose() * weights, products = d * residual;
    Index best = 0;
    products.maxCoeff(&best);
    chosen[best] = 1;
    const Eigen::VectorXd gradient = chosen.cwiseProduct(products), c = d.transpose() * gradient;
    weights = (weights + c.dot(residual) / c.squaredNorm() * gradient).cwiseMax(0);
  }
  return (signal - d.transpose() * weights).squaredNorm() / signal.squaredNorm();
}

}  // namespace

TEST_CASE("decomposition by hand", "[interpret][decompose]") {
  // v = (4, 3, 0) among e1, 2 e2, -e3, 0: |v|^2 = 25. Rows need no norm of 1.
  Matrix<float> rows(4, 3);
  rows << 1, 0, 0, 0, 2, 0, 0, 0, -1, 0, 0, 0;
  const RowVector<float> v{{4, 3, 0}};
  const Decomposition of = decompose(numbers(v), rows, {.k = 3});
  CHECK(of.latents == std::vector<Index>{0, 1});
  REQUIRE(of.coefficients.size() == 2);
  CHECK(of.coefficients[0] == Approx(4));
  CHECK(of.coefficients[1] == Approx(1.5));
  REQUIRE(of.steps.size() == 2);  // nothing is left for a third
  CHECK(of.steps[0].latent == 0);
  CHECK(of.steps[0].residual_share == Approx(9.0 / 25));
  CHECK(of.steps[0].cosine == Approx(0.8));
  CHECK(of.steps[1].residual_share == Approx(0).margin(1e-9));
  CHECK(of.steps[1].cosine == Approx(1));

  const Decomposition away = decompose(numbers(RowVector<float>(-v)), rows, {.k = 2});
  CHECK(away.latents.empty());  // only negative coefficients would do
  CHECK(away.steps.empty());
}

TEST_CASE("a latent that others make superfluous leaves", "[interpret][decompose]") {
  // d_0 is nearest to v, which is a sum of d_1 and d_2 alone.
  Matrix<float> rows(3, 3);
  rows << 1, 1, 0.2F, 1, 0, 0, 0, 1, 0;
  const RowVector<float> v{{1, 1, 0}};
  const Decomposition of = decompose(numbers(v), rows, {.k = 3, .updates = 10'000});
  REQUIRE(of.steps.size() == 3);
  CHECK(of.steps[0].latent == 0);
  CHECK(of.steps[2].residual_share < 1e-6);
  CHECK((sum_of(of, rows) - v.cast<double>()).norm() < 1e-3);
  // The third number of d_0 has the wrong sign once the others are there.
  const RowVector<float> w{{1, 1, -0.05F}};
  const Decomposition gone = decompose(numbers(w), rows, {.k = 3, .updates = 10'000});
  CHECK(gone.steps[0].latent == 0);
  CHECK(gone.latents == std::vector<Index>{1, 2});
  CHECK(gone.coefficients[0] == Approx(1).epsilon(1e-6));
}

TEST_CASE("planted sums of few latents are found again", "[interpret][decompose]") {
  for (const Index k : {1, 2, 5, 8}) {
    CAPTURE(k);
    auto rows = noise(400, 128, static_cast<std::uint64_t>(10 + k));
    for (Index i = 0; i < rows.rows(); ++i) rows.row(i) *= 0.2F + 0.01F * static_cast<float>(i);
    Random random(3);
    std::map<Index, double> planted;
    RowVector<float> v = RowVector<float>::Zero(128);
    while (static_cast<Index>(planted.size()) < k) {
      const auto latent = static_cast<Index>(random.below(400));
      if (planted.contains(latent)) continue;
      const double norm = rows.row(latent).cast<double>().norm();
      planted[latent] = (1 + random.uniform()) / norm;
      v += static_cast<float>(planted[latent]) * rows.row(latent);
    }
    const Decomposition of = decompose(numbers(v), rows, {.k = k});
    REQUIRE(static_cast<Index>(of.latents.size()) == k);
    for (std::size_t n = 0; n < of.latents.size(); ++n) {
      REQUIRE(planted.contains(of.latents[n]));
      CHECK(of.coefficients[n] == Approx(planted[of.latents[n]]).epsilon(1e-4));
    }
    CHECK(of.steps.back().cosine == Approx(1).epsilon(1e-9));
  }
}

TEST_CASE("residuals never grow, and the fit is the non-negative one", "[interpret][decompose]") {
  for (std::uint64_t seed = 0; seed < 12; ++seed) {
    CAPTURE(seed);
    const auto rows = noise(60, 12, seed);  // many latents that lie near one another
    const RowVector<float> v = 1e4F * noise(1, 12, 100 + seed);
    for (const Index updates : {Index{1}, Index{200}, Index{20'000}}) {
      const Decomposition of = decompose(numbers(v), rows, {.k = 10, .updates = updates});
      CAPTURE(updates, of.steps.size());
      double share = 1, cosine = 0;
      for (const DecompositionStep& step : of.steps) {
        CHECK(step.residual_share <= share + 1e-14);
        if (updates > 1) CHECK(step.cosine >= cosine - 1e-9);
        share = step.residual_share;
        cosine = step.cosine;
      }
      CHECK(of.latents.size() <= 10);
      for (const double coefficient : of.coefficients) CHECK(coefficient >= 0);
      const Eigen::RowVectorXd residual = v.cast<double>() - sum_of(of, rows);
      CHECK(residual.squaredNorm() / v.cast<double>().squaredNorm() == Approx(share).margin(1e-6));
      CHECK(sum_of(of, rows).dot(v.cast<double>()) / (sum_of(of, rows).norm() * v.cast<double>().norm()) ==
            Approx(cosine).margin(1e-6));
      if (updates < 20'000) continue;
      // The best of its latents: no gradient along those that are there.
      for (const Index latent : of.latents)
        CHECK(rows.row(latent).cast<double>().normalized().dot(residual) / v.cast<double>().norm() == Approx(0).margin(1e-5));
      CHECK(share <= published_residual(v, rows, 10) + 1e-9);
    }
  }
}

TEST_CASE("the result does not depend on how long rows and direction are", "[interpret][decompose]") {
  const auto rows = noise(50, 16, 4);
  const RowVector<float> v = noise(1, 16, 5);
  const Decomposition of = decompose(numbers(v), rows, {.k = 4});
  Matrix<float> scaled = rows;
  for (Index i = 0; i < 50; ++i) scaled.row(i) *= std::ldexp(1.0F, static_cast<int>(i % 5) - 2);
  const Decomposition other = decompose(numbers(RowVector<float>(8 * v)), scaled, {.k = 4});
  CHECK(other.latents == of.latents);
  for (std::size_t n = 0; n < of.latents.size(); ++n)
    CHECK(other.coefficients[n] == Approx(8 * of.coefficients[n] / std::ldexp(1.0, static_cast<int>(of.latents[n] % 5) - 2)));
  CHECK(other.steps.back().residual_share == Approx(of.steps.back().residual_share));
}

TEST_CASE("decomposition of zeros, of NaN, and of what does not fit", "[interpret][decompose]") {
  auto rows = noise(6, 4, 1);
  const RowVector<float> zero = RowVector<float>::Zero(4);
  CHECK(decompose(numbers(zero), rows, {.k = 2}).steps.empty());
  CHECK(decompose(numbers(zero), rows, {.k = 2}).latents.empty());
  RowVector<float> v = RowVector<float>::Ones(4);
  CHECK_THROWS_WITH(decompose(numbers(v), rows, {.k = 7}), ContainsSubstring("k = 7 is not in [1, 6]"));
  CHECK_THROWS_WITH(decompose(numbers(v), rows, {.k = 0}), ContainsSubstring("k = 0"));
  CHECK_THROWS_WITH(decompose(numbers(v), rows, {.k = 1, .updates = 0}), ContainsSubstring("updates = 0"));
  CHECK_THROWS_AS(decompose(numbers(RowVector<float>::Ones(5)), rows, {.k = 1}), ShapeError);
  CHECK(decompose(numbers(v), rows, {.k = 6}).latents.size() <= 6);
  rows.row(2) = v;
  rows(2, 1) = std::numeric_limits<float>::quiet_NaN();
  const Decomposition of = decompose(numbers(v), rows, {.k = 6});
  CHECK(std::find(of.latents.begin(), of.latents.end(), 2) == of.latents.end());
  v[3] = std::numeric_limits<float>::infinity();
  CHECK_THROWS_WITH(decompose(numbers(v), rows, {.k = 1}), ContainsSubstring("number 3 of the direction is not finite"));
}
