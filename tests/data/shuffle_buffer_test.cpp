#include <sae/data/indexed_source.hpp>
#include <sae/data/shuffle_buffer.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "catch_compat.hpp"

namespace {

using sae::Index;
using Source = sae::MatrixSource<float>;
using Shuffled = sae::ShuffleBuffer<Source>;

// Rows 0, 1, ... in order, as a language model would give them; row i holds i and -i.
Source in_order(Index rows) {
  sae::Matrix<float> x(rows, 2);
  for (Index i = 0; i < rows; ++i) x.row(i) << static_cast<float>(i), -static_cast<float>(i);
  return Source(x, {.shuffle = false, .epochs = 1});
}
template <class S>
std::vector<Index> read(S& source, Index batch, Index count) {
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
void require_each_once(std::vector<Index> rows, Index n) {
  std::sort(rows.begin(), rows.end());
  REQUIRE(static_cast<Index>(rows.size()) == n);
  for (Index i = 0; i < n; ++i) REQUIRE(rows[static_cast<std::size_t>(i)] == i);
}

TEST_CASE("a shuffle buffer gives each row once, whatever its size", "[data]") {
  for (const Index capacity : {2, 3, 64, 999, 1000, 5000})
    for (const double keep : {0.0, 0.5, 0.9}) {
      CAPTURE(capacity, keep);
      Shuffled source(in_order(1000), {.capacity = capacity, .keep = keep, .seed = 2});
      require_each_once(read(source, 37, 10000), 1000);
      sae::Tensor<float> batch(5, 2);
      REQUIRE(source.next(batch) == 0);
    }
  Shuffled large(in_order(5000), {.capacity = 3000});  // refilled in several pieces
  require_each_once(read(large, 100, 10000), 5000);
}

TEST_CASE("a batch is full until the source runs out", "[data]") {
  Shuffled source(in_order(100), {.capacity = 10, .keep = 0.5});
  sae::Tensor<float> batch(30, 2);
  CHECK(source.next(batch) == 30);
  CHECK(source.next(batch) == 30);
  CHECK(source.next(batch) == 30);
  CHECK(source.next(batch) == 10);
  CHECK(source.next(batch) == 0);
}

TEST_CASE("rows are mixed, near and far", "[data]") {
  Shuffled source(in_order(20000), {.capacity = 1000, .keep = 0.5, .seed = 3});
  const auto rows = read(source, 100, 20000);
  // The correlation of a row's number with its place within each batch of 100 is that of chance.
  double same = 0, mean_distance = 0;
  Index neighbours = 0, late = 0;
  for (std::size_t i = 0; i + 1 < rows.size(); ++i) {
    neighbours += rows[i + 1] == rows[i] + 1;
    const double distance = static_cast<double>(i) - static_cast<double>(rows[i]);
    mean_distance += std::abs(distance);
    same += distance == 0;
    late += distance > 1000;  // waited for longer than one filling
  }
  CHECK(neighbours <= 80);  // about 20000 / 1000 by chance
  CHECK(same <= 80);
  CHECK(mean_distance / 20000 > 200);
  CHECK(late > 100);
  CHECK(*std::max_element(rows.begin(), rows.begin() + 100) <= 999);  // nothing that was not read yet
}

TEST_CASE("without keeping rows each filling is a shuffled piece of the source", "[data]") {
  Shuffled source(in_order(40), {.capacity = 10, .keep = 0, .seed = 1});
  for (Index piece = 0; piece < 4; ++piece) {
    auto rows = read(source, 10, 10);
    for (Index& r : rows) r -= 10 * piece;
    require_each_once(rows, 10);
  }
}

TEST_CASE("every order of three rows is equally likely", "[data]") {
  std::vector<Index> count(27, 0);
  for (std::uint64_t seed = 0; seed < 6000; ++seed) {
    Shuffled source(in_order(3), {.capacity = 3, .keep = 0, .seed = seed});
    const auto rows = read(source, 3, 3);
    ++count[static_cast<std::size_t>(9 * rows[0] + 3 * rows[1] + rows[2])];
  }
  Index orders = 0;
  for (const Index c : count) {
    if (c == 0) continue;
    ++orders;
    CHECK(std::abs(static_cast<double>(c) - 1000) <= 5 * std::sqrt(6000.0 * (1.0 / 6) * (5.0 / 6)));
  }
  CHECK(orders == 6);
}

TEST_CASE("a shuffle buffer's order is fixed by the seed, whatever the batches", "[data]") {
  const auto order = [](std::uint64_t seed, Index batch) {
    Shuffled source(in_order(500), {.capacity = 64, .seed = seed});
    return read(source, batch, 1000);
  };
  CHECK(order(1, 10) == order(1, 10));
  CHECK(order(1, 10) == order(1, 77));
  CHECK(order(1, 10) != order(2, 10));
}

TEST_CASE("a restored buffer gives the rows that would have come", "[data]") {
  for (const Index before : {0, 1, 40, 333, 960, 1000}) {
    CAPTURE(before);
    Shuffled source(in_order(1000), {.capacity = 100, .seed = 4});
    if (before > 0) REQUIRE(static_cast<Index>(read(source, before, before).size()) == before);
    const sae::SourceState state = source.state();
    const auto rest = read(source, 17, 10000);
    REQUIRE(static_cast<Index>(rest.size()) == 1000 - before);
    Shuffled other(in_order(1000), {.capacity = 100, .seed = 4});
    read(other, 7, 21);  // wherever it stands
    other.restore(state);
    REQUIRE(other.state().counters == state.counters);
    REQUIRE(other.state().rows == state.rows);
    REQUIRE(read(other, 23, 10000) == rest);
  }
}

TEST_CASE("rows in double that no float holds survive a restore", "[data]") {
  sae::Matrix<double> x(6, 1);
  for (Index i = 0; i < 6; ++i) x(i, 0) = 1.0 / static_cast<double>(i + 3);
  const auto make = [&] {
    return sae::ShuffleBuffer<sae::MatrixSource<double>, double>(sae::MatrixSource<double>(x, {.shuffle = false, .epochs = 1}),
                                                                 {.capacity = 4, .seed = 1});
  };
  auto source = make(), other = make();
  sae::Tensor<double> one(1, 1), rest(5, 1), again(5, 1);
  source.next(one);
  other.restore(source.state());
  REQUIRE(source.next(rest) == 5);
  REQUIRE(other.next(again) == 5);
  CHECK(rest == again);
}

TEST_CASE("settings and states that do not fit are refused", "[data]") {
  CHECK_THROWS_AS(Shuffled(in_order(5), {.capacity = 1}), sae::ValueError);
  CHECK_THROWS_AS(Shuffled(in_order(5), {.keep = 1}), sae::ValueError);
  CHECK_THROWS_AS(Shuffled(in_order(5), {.keep = -0.1}), sae::ValueError);
  CHECK_THROWS_AS(Shuffled(in_order(5), {.keep = std::nan("")}), sae::ValueError);
  Shuffled source(in_order(50), {.capacity = 10});
  sae::SourceState state = source.state();
  state.rows.resize(11, 2);
  CHECK_THROWS_AS(source.restore(state), sae::ValueError);
  state.rows.resize(4, 3);
  CHECK_THROWS_AS(source.restore(state), sae::ValueError);
  state.rows.resize(0, 0);
  state.inner.clear();
  CHECK_THROWS_AS(source.restore(state), sae::ValueError);
  static_assert(sae::RowSource<Shuffled, float>);
}

}  // namespace
