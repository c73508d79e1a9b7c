#include <sae/core/random.hpp>
#include <sae/kernels/vector.hpp>

#include <cmath>
#include <limits>
#include <vector>

#include "catch_compat.hpp"

namespace {

using sae::Index;

template <class Scalar>
std::vector<Scalar> noise(Index n, std::uint64_t seed) {
  sae::Random random(seed);
  std::vector<Scalar> out(static_cast<std::size_t>(n));
  for (Scalar& x : out) x = static_cast<Scalar>(random.normal());
  return out;
}
// 0, 1, 2 and all around the lanes (32 floats, 16 doubles) and their multiples.
std::vector<Index> sizes() {
  std::vector<Index> out{0, 1, 2, 3, 5, 7, 8};
  for (const Index lanes : {16, 32, 64, 128, 320})
    for (const Index n : {lanes - 1, lanes, lanes + 1}) out.push_back(n);
  return out;
}

}  // namespace

TEMPLATE_TEST_CASE("dot is the sum of products", "[kernels][vector]", float, double) {
  using Scalar = TestType;
  for (const Index n : sizes())
    for (const std::size_t shift : {std::size_t{0}, std::size_t{1}, std::size_t{3}}) {  // any alignment
      const auto a = noise<Scalar>(n + 3, 1), b = noise<Scalar>(n + 3, 2);
      double sum = 0, magnitude = 0;
      for (std::size_t j = 0; j < static_cast<std::size_t>(n); ++j) {
        const double product = static_cast<double>(a[shift + j]) * static_cast<double>(b[j]);
        sum += product;
        magnitude += std::abs(product);
      }
      const Scalar got = sae::kernels::dot(a.data() + shift, b.data(), n);
      CAPTURE(n, shift, got, sum);
      const double epsilon = std::numeric_limits<Scalar>::epsilon();
      REQUIRE(std::abs(static_cast<double>(got) - sum) <= (static_cast<double>(n) / 16 + 8) * epsilon * magnitude);
      REQUIRE(sae::kernels::squared_norm(a.data(), n) == sae::kernels::dot(a.data(), a.data(), n));
    }
}

TEMPLATE_TEST_CASE("dot has one order of additions whatever the alignment", "[kernels][vector]", float, double) {
  using Scalar = TestType;
  const auto a = noise<Scalar>(200, 1), b = noise<Scalar>(200, 2);
  for (const Index n : {1, 31, 33, 100, 190}) {
    const Scalar expected = sae::kernels::dot(a.data(), b.data(), n);
    for (std::size_t shift = 1; shift < 8; ++shift) {
      std::vector<Scalar> moved_a(shift), moved_b(shift + 1);
      moved_a.insert(moved_a.end(), a.begin(), a.end());
      moved_b.insert(moved_b.end(), b.begin(), b.end());
      REQUIRE(sae::kernels::dot(moved_a.data() + shift, moved_b.data() + shift + 1, n) == expected);
    }
  }
}

TEST_CASE("dot carries NaN and infinity from every lane", "[kernels][vector]") {
  for (std::size_t at = 0; at < 70; ++at) {
    std::vector<float> a(70, 1.f), b(70, 1.f);
    a[at] = std::numeric_limits<float>::quiet_NaN();
    REQUIRE(std::isnan(sae::kernels::dot(a.data(), b.data(), 70)));
    a[at] = std::numeric_limits<float>::infinity();
    REQUIRE(std::isinf(sae::kernels::dot(a.data(), b.data(), 70)));
  }
}

TEMPLATE_TEST_CASE("add_weighted_rows adds one row at a time, in order", "[kernels][vector]", float, double) {
  using Scalar = TestType;
  for (const Index n : sizes())
    for (const Index count : {0, 1, 2, 3, 4, 5, 7, 8, 11}) {
      const Index stride = n + 5;
      const auto rows = noise<Scalar>(stride * count, 3), weights = noise<Scalar>(count, 4);
      auto y = noise<Scalar>(n + 1, 5);
      auto expected = y;
      for (std::size_t t = 0; t < static_cast<std::size_t>(count); ++t)
        for (std::size_t j = 0; j < static_cast<std::size_t>(n); ++j)
          expected[j] += weights[t] * rows[t * static_cast<std::size_t>(stride) + j];
      sae::kernels::add_weighted_rows(
          y.data(), n, count, [&](Index t) { return weights[static_cast<std::size_t>(t)]; },
          [&](Index t) { return rows.data() + t * stride; });
      CAPTURE(n, count);
      // The same additions; a compiler may fuse a multiplication with one of them.
      for (std::size_t j = 0; j < static_cast<std::size_t>(n); ++j)
        REQUIRE(std::abs(static_cast<double>(y[j] - expected[j])) <=
                4 * (static_cast<double>(count) + 1) * static_cast<double>(std::numeric_limits<Scalar>::epsilon()) * 4);
      REQUIRE(y.back() == expected.back());  // nothing behind the end
    }
}

TEST_CASE("add_scaled and scale", "[kernels][vector]") {
  for (const Index n : sizes()) {
    auto y = noise<double>(n + 1, 6);
    const auto x = noise<double>(n + 1, 7), before = y;
    sae::kernels::add_scaled(y.data(), 0.5, x.data(), n);  // a power of two: exact but for the addition
    for (std::size_t j = 0; j < static_cast<std::size_t>(n); ++j) REQUIRE(y[j] == before[j] + 0.5 * x[j]);
    sae::kernels::scale(y.data(), -2.0, n);
    for (std::size_t j = 0; j < static_cast<std::size_t>(n); ++j) REQUIRE(y[j] == -2 * (before[j] + 0.5 * x[j]));
    REQUIRE(y.back() == before.back());
  }
}
