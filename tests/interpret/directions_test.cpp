// What directions write into logits, and which latents lie near, against sorting everything.
#include <sae/core/random.hpp>
#include <sae/interpret/directions.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "catch_compat.hpp"
#include "routes.hpp"

using namespace sae;
using Catch::Matchers::ContainsSubstring;

namespace {

Matrix<float> noise(Index rows, Index cols, std::uint64_t seed) {
  Random random(seed);
  Matrix<float> out(rows, cols);
  for (Index i = 0; i < out.size(); ++i) out.data()[i] = static_cast<float>(random.normal());
  return out;
}
/// Indices of the numbers, the largest first, of equals the lower one.
std::vector<Index> order_of(const Eigen::VectorXd& numbers) {
  std::vector<Index> out(static_cast<std::size_t>(numbers.size()));
  std::iota(out.begin(), out.end(), Index{0});
  std::stable_sort(out.begin(), out.end(), [&](Index a, Index b) { return numbers[a] > numbers[b]; });
  return out;
}

}  // namespace

TEST_CASE("direct logit attribution is W_dec W_U, its ends and its moments", "[interpret][directions]") {
  const Index vocabulary = 903, width = 24;
  const auto directions = noise(70, width, 1), unembedding = noise(vocabulary, width, 2);
  sae_test::on_every_route([&] {
    for (const Index n : {1, 70}) {
      const auto found = attribute_logits(directions.topRows(n), unembedding, 7);
      REQUIRE(found.size() == static_cast<std::size_t>(n));
      for (Index row = 0; row < n; ++row) {
        CAPTURE(row);
        const Eigen::VectorXd logits = unembedding.cast<double>() * directions.row(row).transpose().cast<double>();
        const auto order = order_of(logits), reverse = order_of(-logits);
        const LogitAttribution& of = found[static_cast<std::size_t>(row)];
        REQUIRE(of.top.size() == 7);
        REQUIRE(of.bottom.size() == 7);
        for (std::size_t k = 0; k < 7; ++k) {
          CHECK(of.top[k].token == static_cast<Token>(order[k]));
          CHECK(of.top[k].logit == Approx(logits[order[k]]).margin(1e-5));
          CHECK(of.bottom[k].token == static_cast<Token>(reverse[k]));
          CHECK(of.bottom[k].logit == Approx(logits[reverse[k]]).margin(1e-5));
        }
        const Eigen::ArrayXd centred = logits.array() - logits.mean();
        const double deviation = std::sqrt(centred.square().mean());
        CHECK(of.moments.mean == Approx(logits.mean()).margin(1e-5));
        CHECK(of.moments.deviation == Approx(deviation).epsilon(1e-5));
        CHECK(of.moments.skewness == Approx((centred / deviation).cube().mean()).margin(1e-4));
        CHECK(of.moments.kurtosis == Approx((centred / deviation).pow(4).mean()).epsilon(1e-4));
      }
    }
  });
}

TEST_CASE("logits that are equal: the lower token first, no shape", "[interpret][directions]") {
  const Matrix<float> one = Matrix<float>::Ones(1, 3), same = Matrix<float>::Constant(5, 3, 2.0F);
  const LogitAttribution of = attribute_logits(one, same, 2)[0];
  CHECK(of.top == std::vector<TokenLogit>{{0, 6.0}, {1, 6.0}});
  CHECK(of.bottom == std::vector<TokenLogit>{{0, 6.0}, {1, 6.0}});
  CHECK(of.moments.mean == 6.0);
  CHECK(of.moments.deviation == 0.0);
  CHECK(of.moments.kurtosis == 0.0);
}

TEST_CASE("the nearest latents are those of all cosines", "[interpret][directions]") {
  const auto a = noise(90, 12, 3);
  auto b = noise(800, 12, 4);
  b.row(5) = 3 * a.row(2);    // the same direction
  b.row(700) = 2 * a.row(2);  // and once more
  b.row(11).setZero();
  const auto unit = [](const Matrix<float>& rows) {
    Eigen::MatrixXd out = rows.cast<double>();
    for (Index i = 0; i < out.rows(); ++i)
      if (const double norm = out.row(i).norm(); norm > 0) out.row(i) /= norm;
    return out;
  };
  const Eigen::MatrixXd all = unit(a) * unit(b).transpose();
  const auto found = nearest_latents(a, b, 6);
  REQUIRE(found.size() == 90);
  for (Index row = 0; row < 90; ++row) {
    const auto& of = found[static_cast<std::size_t>(row)];
    const Eigen::VectorXd cosines = all.row(row);
    const auto order = order_of(cosines);
    REQUIRE(of.size() == 6);
    for (std::size_t k = 0; k < 6; ++k) {
      const auto twin = [](Index latent) { return latent == 700 ? 5 : latent; };  // some rounding apart
      CHECK(twin(of[k].latent) == twin(order[k]));
      CHECK(of[k].cosine == Approx(cosines[order[k]]).margin(1e-6));
    }
  }
  CHECK(std::min(found[2][0].latent, found[2][1].latent) == 5);
  CHECK(std::max(found[2][0].latent, found[2][1].latent) == 700);
  CHECK(found[2][1].cosine == Approx(1).margin(1e-6));

  const auto within = nearest_latents(b, 2);
  CHECK(within[5][0].latent == 700);
  CHECK(within[700][0].latent == 5);
  CHECK(within[11] == std::vector<NearLatent>{{0, 0.0}, {1, 0.0}});
  for (std::size_t row = 0; row < within.size(); ++row)
    for (const NearLatent& near : within[row]) CHECK(near.latent != static_cast<Index>(row));
}

TEST_CASE("directions: what does not fit is refused", "[interpret][directions]") {
  const auto a = noise(3, 4, 1), b = noise(5, 4, 2), wide = noise(5, 6, 3);
  CHECK_THROWS_AS(attribute_logits(a, wide, 1), ShapeError);
  CHECK_THROWS_WITH(attribute_logits(a, b, 6), ContainsSubstring("count = 6 is not in [1, 5]"));
  CHECK_THROWS_WITH(attribute_logits(a, b, 0), ContainsSubstring("count = 0"));
  CHECK_THROWS_AS(nearest_latents(a, wide, 1), ShapeError);
  CHECK_THROWS_WITH(nearest_latents(a, b, 6), ContainsSubstring("count = 6 is not in [1, 5]"));
  CHECK_THROWS_WITH(nearest_latents(a, 3), ContainsSubstring("count = 3 is not in [1, 2]"));
  auto broken = b;
  broken(2, 1) = std::numeric_limits<float>::quiet_NaN();
  const auto near = nearest_latents(a, broken, 5);
  for (const auto& row : near) {
    CHECK(row.size() == 4);
    CHECK(std::none_of(row.begin(), row.end(), [](const NearLatent& of) { return of.latent == 2; }));
  }
}
