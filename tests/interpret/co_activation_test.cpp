// Latents beside latents and neurons, against dense matrices.
#include <sae/core/random.hpp>
#include <sae/interpret/co_activation.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "catch_compat.hpp"
#include "rows_of_codes.hpp"

using namespace sae;
using Catch::Matchers::ContainsSubstring;

namespace {

constexpr Index rows = 300, latents = 8, width = 5;

struct Data {
  Codes<float> codes{latents};
  Matrix<float> x{rows, width};
  Eigen::MatrixXd dense = Eigen::MatrixXd::Zero(rows, latents);
};
/// Latent 0 is never active, latent 1 in every row by the same value, latent 3 is twice latent 2, latent 4 excludes 2; neuron 4 is constant.
Data some_data() {
  Data out;
  Random random(5);
  for (Index b = 0; b < rows; ++b) {
    const auto push = [&](Index i, double value) {
      out.codes.push(i, static_cast<float>(value));
      if (value > 0) out.dense(b, i) = static_cast<double>(static_cast<float>(value));
    };
    push(1, 1.5);
    const bool both = random.uniform() < 0.3;
    const double strength = 0.5 + random.uniform();
    if (both) {
      push(2, strength);
      push(3, 2 * strength);
    } else {
      push(4, 0.25 + random.uniform());
    }
    push(5, -1.0);  // does not count
    if (random.uniform() < 0.5) push(6, random.uniform() + 0.1);
    if (b == 7) push(7, std::numeric_limits<double>::quiet_NaN());
    out.codes.finish_row();
    for (Index d = 0; d < width; ++d)
      out.x(b, d) = static_cast<float>(d == 4 ? 3.0 : random.normal() + (both && d == 1 ? 4 : 0));
  }
  return out;
}
double correlation(const Eigen::VectorXd& a, const Eigen::VectorXd& b) {
  const Eigen::ArrayXd u = a.array() - a.mean(), v = b.array() - b.mean();
  const double both = std::sqrt((u * u).sum() * (v * v).sum());
  return both > 1e-9 ? (u * v).sum() / both : 0;
}
double cosine(const Eigen::VectorXd& a, const Eigen::VectorXd& b) {
  const double both = a.norm() * b.norm();
  return both > 0 ? a.dot(b) / both : 0;
}
void require_like_dense(const CoActivation& got, const Data& data) {
  CHECK(got.rows() == rows);
  for (const Index latent : got.chosen()) {
    const auto others = got.with_latents(latent);
    REQUIRE(others.size() == static_cast<std::size_t>(latents));
    const Eigen::VectorXd own = data.dense.col(latent);
    for (Index j = 0; j < latents; ++j) {
      CAPTURE(latent, j);
      const Association& of = others[static_cast<std::size_t>(j)];
      CHECK(of.index == j);
      CHECK(of.correlation == Approx(correlation(own, data.dense.col(j))).margin(1e-9));
      CHECK(of.cosine == Approx(cosine(own, data.dense.col(j))).margin(1e-12));
      CHECK(of.rows_together == ((own.array() > 0) && (data.dense.col(j).array() > 0)).count());
    }
    const auto neurons = got.with_neurons(latent);
    REQUIRE(neurons.size() == static_cast<std::size_t>(got.width()));
    for (Index d = 0; d < got.width(); ++d) {
      CAPTURE(latent, d);
      const Eigen::VectorXd of = data.x.col(d).cast<double>();
      CHECK(neurons[static_cast<std::size_t>(d)].correlation == Approx(correlation(own, of)).margin(1e-9));
      CHECK(neurons[static_cast<std::size_t>(d)].cosine == Approx(cosine(own, of)).margin(1e-12));
    }
  }
}

}  // namespace

TEST_CASE("latents beside latents and neurons are as in dense matrices, in parts too", "[interpret][co_activation]") {
  const Data data = some_data();
  const std::vector<Index> chosen{6, 0, 2, 1, 7};
  CoActivation whole(latents, chosen, width), first(latents, chosen, width), second(latents, chosen, width);
  whole.add(data.codes, Batch<float>(data.x));
  require_like_dense(whole, data);
  second.add(sae_test::rows_of_codes(data.codes, 90, rows), Batch<float>(data.x.bottomRows(rows - 90)));
  first.add(sae_test::rows_of_codes(data.codes, 0, 90), Batch<float>(data.x.topRows(90)));
  second.merge(first);
  require_like_dense(second, data);
  CoActivation alone(latents, chosen);
  alone.add(data.codes);
  require_like_dense(alone, data);

  const auto partners = strongest(whole.with_latents(2), 2, &Association::correlation, 2);
  REQUIRE(partners.size() == 2);
  CHECK(partners[0].index == 3);
  CHECK(partners[0].correlation == Approx(1).epsilon(1e-9));
  CHECK(strongest(whole.with_neurons(2), 1)[0].index == 1);
  CHECK(strongest(whole.with_latents(2), 100, &Association::cosine).size() == static_cast<std::size_t>(latents));
  CHECK(strongest(whole.with_latents(0), 3, &Association::cosine)[0].index == 0);  // all 0: the lower ones
}

TEST_CASE("co-activation: what does not fit is refused", "[interpret][co_activation]") {
  CHECK_THROWS_WITH(CoActivation(0, {}), ContainsSubstring("latents = 0 is below 1"));
  CHECK_THROWS_WITH(CoActivation(3, {}, -1), ContainsSubstring("width = -1 is negative"));
  CHECK_THROWS_WITH(CoActivation(3, {3}), ContainsSubstring("latent 3 is not in [0, 3)"));
  CHECK_THROWS_WITH(CoActivation(3, {1, 2, 1}), ContainsSubstring("latent 1 is named twice"));
  CoActivation of(3, {1}, 2);
  Codes<float> codes(3);
  codes.finish_row();
  CHECK_THROWS_WITH(of.add(codes), ContainsSubstring("rows are needed"));
  CHECK_THROWS_AS(of.add(codes, Batch<float>(Matrix<float>::Zero(1, 3))), ShapeError);
  CHECK_THROWS_AS(of.add(codes, Batch<float>(Matrix<float>::Zero(2, 2))), ShapeError);
  CHECK_THROWS_AS(of.add(Codes<float>(4), Batch<float>(Matrix<float>::Zero(0, 2))), ShapeError);
  CHECK_THROWS_WITH(of.with_latents(0), ContainsSubstring("latent 0 was not chosen"));
  CHECK_THROWS_WITH(of.with_neurons(7), ContainsSubstring("latent 7 is not in [0, 3)"));
  CHECK_THROWS_AS(of.merge(CoActivation(3, {2}, 2)), ShapeError);
  CHECK(of.with_latents(1)[1].correlation == 0);  // before any row
}
