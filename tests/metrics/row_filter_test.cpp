#include <sae/metrics/row_filter.hpp>

#include <array>
#include <cmath>
#include <limits>

#include "catch_compat.hpp"

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double nan = std::numeric_limits<double>::quiet_NaN();

TEST_CASE("row norms are taken in float64", "[metrics]") {
  const std::array<float, 2> row{3, -4}, large{3e30f, 4e30f}, broken{1, std::numeric_limits<float>::quiet_NaN()};
  CHECK(sae::row_norm(row.data(), 2) == 5);
  CHECK(sae::row_norm(large.data(), 2) == Approx(5e30));  // its square is no float
  CHECK(std::isnan(sae::row_norm(broken.data(), 2)));
  CHECK(sae::row_norm(row.data(), 0) == 0);
}

TEST_CASE("the limit is a multiple of the lower median", "[metrics]") {
  CHECK(sae::norm_limit({5, 1, 3}, 10) == 30);
  CHECK(sae::norm_limit({4, 1, 3, 2}, 10) == 20);
  CHECK(sae::norm_limit({7}, 2) == 14);
  CHECK(sae::norm_limit({}, 10) == infinity);
  CHECK(sae::norm_limit({0, 0, 5}, 10) == infinity);
}

TEST_CASE("a filter keeps what is not above its limit", "[metrics]") {
  sae::RowNormFilter filter(2);
  CHECK(filter.wants_more());
  for (const double norm : {1.0, 9.0, nan, 3.0, infinity}) filter.observe(norm);  // the finite ones: 1, 3, 9
  filter.fix();
  CHECK_FALSE(filter.wants_more());
  CHECK(filter.limit() == 6);
  CHECK(filter.keeps(6));
  CHECK_FALSE(filter.keeps(std::nextafter(6.0, 7.0)));
  CHECK_FALSE(filter.keeps(nan));
  filter.observe(1000);
  filter.fix();
  CHECK(filter.limit() == 6);
}

TEST_CASE("the median is that of the first 4096 norms", "[metrics]") {
  sae::RowNormFilter filter(1);
  for (int i = 0; i < 4096; ++i) {
    REQUIRE(filter.wants_more());
    filter.observe(i < 2048 ? 1 : 2);
  }
  CHECK_FALSE(filter.wants_more());
  for (int i = 0; i < 10; ++i) filter.observe(2);
  filter.fix();
  CHECK(filter.limit() == 1);
}

TEST_CASE("a filter of 0 medians leaves nothing out", "[metrics]") {
  const sae::RowNormFilter filter;
  CHECK_FALSE(filter.wants_more());
  CHECK(filter.keeps(1e300));
  CHECK(filter.keeps(infinity));
  CHECK_THROWS_AS(sae::RowNormFilter(-1), sae::ValueError);
  CHECK_THROWS_AS(sae::RowNormFilter(nan), sae::ValueError);
  CHECK_THROWS_AS(sae::RowNormFilter(infinity), sae::ValueError);
}

}  // namespace
