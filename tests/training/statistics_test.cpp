#include <sae/training/statistics.hpp>

#include <cmath>
#include <vector>

#include "catch_compat.hpp"
#include "reference.hpp"

namespace {

using sae::Index;

template <class Scalar = double>
sae::Tensor<Scalar> rows(std::initializer_list<std::initializer_list<Scalar>> values) {
  sae::Tensor<Scalar> out(static_cast<Index>(values.size()), static_cast<Index>(values.begin()->size()));
  Index at = 0;
  for (const auto& row : values)
    for (const Scalar x : row) out[at++] = x;
  return out;
}
double distance_sum(const sae::Tensor<double>& x, const std::vector<double>& point) {
  double sum = 0;
  for (Index b = 0; b < x.rows(); ++b) {
    double squares = 0;
    for (Index j = 0; j < x.cols(); ++j) {
      const double d = x.row(b)[j] - point[static_cast<std::size_t>(j)];
      squares += d * d;
    }
    sum += std::sqrt(squares);
  }
  return sum;
}

}  // namespace

TEST_CASE("mean row, mean norm and mean squared norm", "[training][statistics]") {
  sae::RowStatistics statistics;
  const float a[] = {3, 4}, b[] = {0, -1};
  statistics.add(a, 2);
  statistics.add(b, 2);
  CHECK(statistics.rows() == 2);
  CHECK(statistics.mean() == std::vector<double>{1.5, 1.5});
  CHECK(statistics.mean_squared_norm() == 13);
  CHECK(statistics.mean_norm() == 3);
}

TEST_CASE("geometric median by hand", "[training][statistics]") {
  // Four corners: the crossing of the diagonals.
  const auto square = sae::geometric_median(rows({{0., 0.}, {2., 0.}, {2., 2.}, {0., 2.}}));
  CHECK(square[0] == Approx(1));
  CHECK(square[1] == Approx(1));
  // On a line, odd number: the middle point, which is itself a row; one far row does not matter.
  const auto line = sae::geometric_median(rows({{1.}, {2.}, {3.}, {4.}, {1000.}}), 1e-9, 20000);
  CHECK(line[0] == Approx(3).epsilon(1e-4));
  // A triangle with angles below 120 degrees: the Fermat point sees each side under 120 degrees.
  const auto fermat = sae::geometric_median(rows({{0., 0.}, {4., 0.}, {2., 2 * std::sqrt(3.)}}), 1e-12, 1000);
  CHECK(fermat[0] == Approx(2));
  CHECK(fermat[1] == Approx(2 / std::sqrt(3.)));
  // One corner with an angle above 120 degrees is the median itself.
  const auto corner = sae::geometric_median(rows({{0., 0.}, {5., 0.5}, {-5., 0.5}}), 1e-12, 100000);
  CHECK(std::abs(corner[0]) < 1e-3);
  CHECK(std::abs(corner[1]) < 1e-3);
}

TEST_CASE("geometric median minimises the sum of distances", "[training][statistics]") {
  sae::Tensor<double> x(40, 5);
  x.map() = sae_test::random_rows(40, 5, 1);
  x.row(7)[2] = 50;
  const auto median = sae::geometric_median(x, 1e-10, 1000);
  const double least = distance_sum(x, median);
  sae::Random random(2);
  for (int i = 0; i < 100; ++i) {
    auto other = median;
    for (double& p : other) p += 1e-3 * random.normal();
    REQUIRE(distance_sum(x, other) >= least);
  }
  sae::Tensor<float> narrow(40, 5);
  narrow.map() = x.map().cast<float>();
  const auto same = sae::geometric_median(narrow, 1e-10, 1000);
  for (std::size_t j = 0; j < 5; ++j) CHECK(same[j] == Approx(median[j]).epsilon(1e-5));
}

TEST_CASE("geometric median of rows that coincide with the estimate", "[training][statistics]") {
  // All rows equal: the mean is every row.
  CHECK(sae::geometric_median(rows({{7., -300.}, {7., -300.}, {7., -300.}, {7., -300.}, {7., -300.}})) ==
        std::vector<double>{7, -300});
  CHECK(sae::geometric_median(rows({{5., 6.}})) == std::vector<double>{5, 6});
  // The mean is a row, and the median too.
  CHECK(sae::geometric_median(rows({{0., 0.}, {1., 0.}, {-1., 0.}})) == std::vector<double>{0, 0});
  // Three rows at the mean hold it against the pull of the others, 1 - 1 - 1; one alone does not.
  CHECK(sae::geometric_median(rows({{0.}, {0.}, {0.}, {3.}, {-1.}, {-2.}})) == std::vector<double>{0});
  CHECK(sae::geometric_median(rows({{0.}, {8.}, {-1.}, {-2.}, {-5.}}), 1e-9, 100000)[0] == Approx(-1).epsilon(1e-3));
  // The mean is a row, the median is another one: it must get away from it.
  const auto x = rows({{0.}, {-4.}, {-4.}, {-4.}, {12.}});
  CHECK(sae::geometric_median(x, 1e-9, 100000)[0] == Approx(-4).epsilon(1e-3));
}
