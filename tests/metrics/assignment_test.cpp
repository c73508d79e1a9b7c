#include <sae/core/random.hpp>
#include <sae/metrics/assignment.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <numeric>

#include "catch_compat.hpp"

namespace {

using sae::Assignment;
using sae::Index;
using Matrix = sae::Matrix<double>;

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

Matrix random_scores(Index n, Index m, std::uint64_t seed, Index levels = 0) {
  sae::Random random(seed, static_cast<std::uint64_t>(n * 1000 + m));
  Matrix out(n, m);
  for (Index i = 0; i < n; ++i)
    for (Index j = 0; j < m; ++j)
      out(i, j) = levels > 0 ? static_cast<double>(random.below(static_cast<std::uint64_t>(levels))) : random.uniform(-1, 1);
  return out;
}

// The best of all ways to give each row of the shorter side a column of its own.
double best_by_trying_all(const Matrix& scores) {
  const Matrix s = scores.rows() <= scores.cols() ? scores : Matrix(scores.transpose());
  std::vector<Index> order(at(s.cols()));
  std::iota(order.begin(), order.end(), Index{0});
  double best = s.rows() == 0 ? 0 : -std::numeric_limits<double>::infinity();
  do {
    double sum = 0;
    for (Index i = 0; i < s.rows(); ++i) sum += s(i, order[at(i)]);
    best = std::max(best, sum);
  } while (std::next_permutation(order.begin(), order.end()));
  return best;
}

// Each row and column once, all of the shorter side, and prices that prove the total.
void require_proven(const Assignment& got, const Matrix& s) {
  const double bound = 1e-12 * static_cast<double>(s.rows() + s.cols());
  REQUIRE(static_cast<Index>(got.column_of_row.size()) == s.rows());
  REQUIRE(static_cast<Index>(got.row_of_column.size()) == s.cols());
  Index pairs = 0;
  double total = 0, prices = 0;
  for (Index i = 0; i < s.rows(); ++i) {
    const Index j = got.column_of_row[at(i)];
    prices += got.row_prices[at(i)];
    if (j < 0) {
      REQUIRE(got.row_prices[at(i)] == 0);
      continue;
    }
    REQUIRE(got.row_of_column[at(j)] == i);
    total += s(i, j);
    ++pairs;
  }
  for (Index j = 0; j < s.cols(); ++j) {
    prices += got.column_prices[at(j)];
    if (got.row_of_column[at(j)] < 0) REQUIRE(got.column_prices[at(j)] == 0);
  }
  REQUIRE(pairs == std::min(s.rows(), s.cols()));
  REQUIRE(got.pairs() == pairs);
  REQUIRE(got.total == total);
  REQUIRE(std::abs(prices - total) <= bound);
  Index broken = 0;
  for (Index i = 0; i < s.rows(); ++i)
    for (Index j = 0; j < s.cols(); ++j) broken += !(got.row_prices[at(i)] + got.column_prices[at(j)] >= s(i, j) - bound);
  REQUIRE(broken == 0);
  for (const double price : s.rows() > s.cols() ? got.row_prices : got.column_prices) REQUIRE(price >= -bound);
}

TEST_CASE("assignment by hand", "[metrics]") {
  Matrix s(2, 2);
  s << 5, 4, 4, 1;  // 4 + 4 beats the greedy 5 + 1
  const auto got = sae::best_assignment(s);
  CHECK(got.column_of_row == std::vector<Index>{1, 0});
  CHECK(got.total == 8);
  Matrix wide(2, 3);
  wide << 1, 9, 8, 2, 9, 1;
  CHECK(sae::best_assignment(wide).column_of_row == std::vector<Index>{2, 1});
  const auto tall = sae::best_assignment(wide.transpose());
  CHECK(tall.column_of_row == std::vector<Index>{-1, 1, 0});
  CHECK(tall.row_of_column == std::vector<Index>{2, 1});
  CHECK(tall.total == 17);
  CHECK(sae::best_assignment(Matrix(0, 3)).pairs() == 0);
  CHECK(sae::best_assignment(Matrix(3, 0)).column_of_row == std::vector<Index>{-1, -1, -1});
  CHECK(sae::best_assignment(Matrix::Constant(1, 1, -2.5)).total == -2.5);
}

TEST_CASE("assignment: no other choice is better", "[metrics]") {
  for (Index n = 1; n <= 6; ++n)
    for (Index m = 1; m <= 7; ++m)
      for (std::uint64_t seed = 0; seed < 6; ++seed) {
        CAPTURE(n, m, seed);
        const Matrix s = random_scores(n, m, seed, seed % 2 == 0 ? 0 : 3);  // three levels: many ties
        const auto got = sae::best_assignment(s);
        require_proven(got, s);
        REQUIRE(std::abs(got.total - best_by_trying_all(s)) <= 1e-14 * 7);
      }
}

TEST_CASE("assignment: ties go to the free column, then to the lower one", "[metrics]") {
  const auto identity = [](const std::vector<Index>& columns) {
    for (std::size_t i = 0; i < columns.size(); ++i)
      if (columns[i] != static_cast<Index>(i)) return false;
    return true;
  };
  CHECK(identity(sae::best_assignment(Matrix::Zero(5, 5)).column_of_row));
  CHECK(identity(sae::best_assignment(Matrix::Constant(4, 9, 0.3)).column_of_row));
  CHECK(identity(sae::best_assignment(Matrix::Constant(9, 4, 0.3)).row_of_column));
  Matrix s(2, 4);
  s << 0, 7, 7, 7, 0, 7, 7, 7;
  CHECK(sae::best_assignment(s).column_of_row == std::vector<Index>{1, 2});
}

TEST_CASE("assignment: scores of float, views and large offsets", "[metrics]") {
  const Matrix s = random_scores(30, 20, 1);
  const auto plain = sae::best_assignment(s);
  CHECK(sae::best_assignment(s.cast<float>()).column_of_row == plain.column_of_row);
  CHECK(sae::best_assignment(s.array().cube().matrix().cwiseProduct(Matrix::Ones(30, 20))).pairs() == 20);
  const auto moved = sae::best_assignment(Matrix(s.array() + 1000));
  CHECK(moved.column_of_row == plain.column_of_row);
  CHECK(moved.total == Approx(plain.total + 20000).epsilon(1e-13));
}

TEST_CASE("assignment: a score that is not finite is refused by its place", "[metrics]") {
  using Catch::Matchers::ContainsSubstring;
  for (const double bad : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity(),
                           -std::numeric_limits<double>::infinity()}) {
    Matrix s = random_scores(3, 5, 0);
    s(2, 4) = bad;
    CHECK_THROWS_AS(sae::best_assignment(s), sae::ValueError);
    CHECK_THROWS_WITH(sae::best_assignment(s), ContainsSubstring("row 2 and column 4"));
    CHECK_THROWS_WITH(sae::best_assignment(s.transpose()), ContainsSubstring("row 4 and column 2"));
  }
}

TEST_CASE("assignment: a thousand by a thousand", "[metrics][slow]") {
  // Cosines of random directions, as they are matched in practice, and scores with many ties.
  const Matrix a = random_scores(1024, 32, 1), b = random_scores(1024, 32, 2);
  const Matrix cosines = (a.rowwise().normalized() * b.rowwise().normalized().transpose()).cwiseAbs();
  const auto begin = std::chrono::steady_clock::now();
  const auto got = sae::best_assignment(cosines);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  INFO("seconds: " << seconds.count());
  CHECK(seconds.count() < 60);  // cubic, not worse: about a second where it is optimised
  require_proven(got, cosines);
  const Matrix tied = random_scores(1024, 1024, 3, 20);
  require_proven(sae::best_assignment(tied), tied);
  // Planted pairs are found again.
  Matrix planted = random_scores(500, 700, 4) * 0.1;
  for (Index i = 0; i < 500; ++i) planted(i, (i * 37) % 700) += 1;
  const auto found = sae::best_assignment(planted);
  Index right = 0;
  for (Index i = 0; i < 500; ++i) right += found.column_of_row[at(i)] == (i * 37) % 700;
  CHECK(right == 500);
}

}  // namespace
