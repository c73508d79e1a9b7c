#include <sae/data/indexed_source.hpp>
#include <sae/data/paired_rows.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "catch_compat.hpp"

namespace {

using sae::Index;
using sae::IndexedOptions;
using sae::MatrixSource;

// Row i holds i and -i, so that a batch shows where its rows come from.
sae::Matrix<float> numbered(Index rows) {
  sae::Matrix<float> out(rows, 2);
  for (Index i = 0; i < rows; ++i) out.row(i) << static_cast<float>(i), -static_cast<float>(i);
  return out;
}
// Numbers of the rows that a source gives, in batches of `batch`, until it has given `count` or is exhausted.
template <class Source>
std::vector<Index> read(Source& source, Index batch, Index count) {
  std::vector<Index> out;
  sae::Tensor<float> rows(batch, 2);
  while (static_cast<Index>(out.size()) < count) {
    const Index got = source.next(rows);
    if (got == 0) break;
    for (Index b = 0; b < got; ++b) {
      REQUIRE(rows.row(b)[0] == -rows.row(b)[1]);
      out.push_back(static_cast<Index>(rows.row(b)[0]));
    }
  }
  return out;
}
std::vector<Index> range(Index first, Index last) {
  std::vector<Index> out;
  for (Index i = first; i < last; ++i) out.push_back(i);
  return out;
}
std::vector<Index> sorted(std::vector<Index> v) {
  std::sort(v.begin(), v.end());
  return v;
}
std::vector<Index> part(const std::vector<Index>& v, Index first, Index count) {
  return {v.begin() + first, v.begin() + first + count};
}

TEST_CASE("unshuffled rows come as they stand, over and over", "[data]") {
  MatrixSource<float> source(numbered(5), {.shuffle = false});
  CHECK(source.width() == 2);
  CHECK(source.rows() == 5);
  CHECK(read(source, 3, 12) == std::vector<Index>{0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1});
}

TEST_CASE("every epoch gives each row once, each in an order of its own", "[data]") {
  for (const Index n : {1, 2, 7, 64, 100, 1000}) {
    CAPTURE(n);
    MatrixSource<float> source(numbered(n), {.seed = 5, .epochs = 3});
    const auto rows = read(source, 13, 10 * n);
    REQUIRE(static_cast<Index>(rows.size()) == 3 * n);
    for (Index epoch = 0; epoch < 3; ++epoch) REQUIRE(sorted(part(rows, epoch * n, n)) == range(0, n));
    if (n < 64) continue;
    CHECK(part(rows, 0, n) != range(0, n));
    CHECK(part(rows, 0, n) != part(rows, n, n));
    CHECK(part(rows, n, n) != part(rows, 2 * n, n));
  }
}

TEST_CASE("the order is fixed by the seed, whatever the batches", "[data]") {
  const auto order = [](std::uint64_t seed, Index batch) {
    MatrixSource<float> source(numbered(100), {.seed = seed, .epochs = 2});
    return read(source, batch, 1000);
  };
  CHECK(order(1, 10) == order(1, 10));
  CHECK(order(1, 10) == order(1, 33));
  CHECK(order(1, 10) == order(1, 500));
  CHECK(order(1, 10) != order(2, 10));
}

TEST_CASE("a random order puts every row anywhere", "[data]") {
  // First element of 6000 epochs of 4 rows: each row a quarter of them.
  MatrixSource<float> source(numbered(4), {.epochs = 6000});
  const auto rows = read(source, 400, 24000);
  for (Index place = 0; place < 4; ++place) {
    std::vector<Index> count(4, 0);
    for (std::size_t i = static_cast<std::size_t>(place); i < rows.size(); i += 4) ++count[static_cast<std::size_t>(rows[i])];
    for (const Index c : count) CHECK(std::abs(static_cast<double>(c) - 1500) <= 5 * std::sqrt(6000 * 0.25 * 0.75));
  }
}

TEST_CASE("a batch spans the end of an epoch, the last one is short", "[data]") {
  MatrixSource<float> source(numbered(5), {.shuffle = false, .epochs = 2});
  sae::Tensor<float> batch(4, 2);
  CHECK(source.next(batch) == 4);
  CHECK(source.next(batch) == 4);
  CHECK(batch.row(0)[0] == 4);
  CHECK(batch.row(1)[0] == 0);
  CHECK(source.next(batch) == 2);
  CHECK(source.next(batch) == 0);
  CHECK(source.next(batch) == 0);
}

TEST_CASE("a part of the rows", "[data]") {
  MatrixSource<float> held_out(numbered(100), {.seed = 1, .first = 90, .epochs = 1});
  CHECK(held_out.rows() == 10);
  CHECK(sorted(read(held_out, 64, 100)) == range(90, 100));
  MatrixSource<float> middle(numbered(100), {.shuffle = false, .first = 10, .count = 5, .epochs = 1});
  CHECK(read(middle, 64, 100) == range(10, 15));
  CHECK_THROWS_AS(MatrixSource<float>(numbered(5), {.first = 6}), sae::ValueError);
  CHECK_THROWS_AS(MatrixSource<float>(numbered(5), {.first = -1}), sae::ValueError);
  CHECK_THROWS_AS(MatrixSource<float>(numbered(5), {.first = 2, .count = 4}), sae::ValueError);
  CHECK_THROWS_AS(MatrixSource<float>(numbered(5), {.first = 5}), sae::ValueError);
  CHECK_THROWS_AS(MatrixSource<float>(numbered(0)), sae::ValueError);
}

TEST_CASE("a restored source gives the rows that would have come", "[data]") {
  for (const Index before : {0, 1, 49, 50, 51, 130}) {
    CAPTURE(before);
    MatrixSource<float> source(numbered(50), {.seed = 3, .epochs = 4});
    if (before > 0) REQUIRE(static_cast<Index>(read(source, before, before).size()) == before);
    const sae::SourceState state = source.state();
    const auto rest = read(source, 17, 1000);
    REQUIRE(static_cast<Index>(rest.size()) == 200 - before);
    MatrixSource<float> other(numbered(50), {.seed = 3, .epochs = 4});
    read(other, 7, 21);  // wherever it stands
    other.restore(state);
    REQUIRE(read(other, 23, 1000) == rest);
    source.restore(state);  // an exhausted one goes back, too
    REQUIRE(read(source, 1, 1000) == rest);
  }
  MatrixSource<float> source(numbered(50));
  CHECK_THROWS_AS(source.restore({{0, 51}, {}, {}}), sae::ValueError);
  CHECK_THROWS_AS(source.restore({{0}, {}, {}}), sae::ValueError);
}

TEST_CASE("a source takes any expression as its rows", "[data]") {
  const Eigen::MatrixXf columns = numbered(10);  // column-major
  MatrixSource source(columns.topRows(4) * 2.0f, IndexedOptions{.shuffle = false, .epochs = 1});
  static_assert(sae::RowSource<decltype(source), float>);
  CHECK(read(source, 3, 10) == std::vector<Index>{0, 2, 4, 6});
}

TEST_CASE("two kinds of rows side by side", "[data]") {
  const sae::Matrix<float> inputs = numbered(20), targets = 3 * numbered(20);
  sae::PairedRows pairs{sae::MatrixRows<float>(inputs), sae::MatrixRows<float>(targets)};
  CHECK(pairs.rows() == 20);
  CHECK(pairs.width() == 4);
  sae::IndexedSource<decltype(pairs), float> source(std::move(pairs), {.seed = 5, .epochs = 1});
  MatrixSource<float> alone(inputs, {.seed = 5, .epochs = 1});
  sae::Tensor<float> both(20, 4), one(20, 2);
  REQUIRE(source.next(both) == 20);
  REQUIRE(alone.next(one) == 20);
  for (Index b = 0; b < 20; ++b) {
    CHECK(both.row(b)[0] == one.row(b)[0]);
    CHECK(both.row(b)[2] == 3 * one.row(b)[0]);
    CHECK(both.row(b)[3] == 3 * one.row(b)[1]);
  }
  const auto short_of_one = [&] {
    sae::PairedRows{sae::MatrixRows<float>(inputs), sae::MatrixRows<float>(sae::Matrix<float>(targets.topRows(19)))};
  };
  CHECK_THROWS_AS(short_of_one(), sae::ShapeError);
}

}  // namespace
