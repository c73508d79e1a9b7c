// The area under the ROC curve against all pairs.
#include <sae/core/random.hpp>
#include <sae/metrics/auroc.hpp>

#include <cmath>
#include <limits>
#include <vector>

#include "catch_compat.hpp"

using namespace sae;
using Catch::Matchers::ContainsSubstring;

namespace {

double by_pairs(std::vector<double> positive, std::vector<double> negative, Index zeros_positive, Index zeros_negative) {
  positive.resize(positive.size() + static_cast<std::size_t>(zeros_positive), 0.0);
  negative.resize(negative.size() + static_cast<std::size_t>(zeros_negative), 0.0);
  double won = 0;
  for (const double p : positive)
    for (const double n : negative) won += p > n ? 1 : p == n ? 0.5 : 0;
  return won / static_cast<double>(positive.size() * negative.size());
}

}  // namespace

TEST_CASE("AUROC by hand", "[metrics][auroc]") {
  CHECK(auroc({2, 3}, {0, 1}) == 1.0);
  CHECK(auroc({0, 1}, {2, 3}) == 0.0);
  CHECK(auroc({1}, {1}) == 0.5);
  CHECK(auroc({1, 3}, {2, 0}) == 0.75);  // (1,2) is lost
  CHECK(auroc({1, 2}, {1}) == 0.75);     // (1,1) is a tie
  CHECK(auroc({}, {}, 3, 2) == 0.5);
  CHECK(auroc({5}, {}, 1, 2) == 0.75);        // 5 wins twice, 0 ties twice
  CHECK(auroc({-1}, {}, 0, 4) == 0.0);        // below all zeros
  CHECK(auroc({}, {-1, 0.0}, 1, 0) == 0.75);  // a zero that is listed is one like the others
  const double infinity = std::numeric_limits<double>::infinity();
  CHECK(auroc({infinity}, {1, infinity}) == 0.75);
  CHECK(auroc({1}, {-infinity}) == 1.0);
}

TEST_CASE("AUROC is the share of pairs, ties and unlisted zeros included", "[metrics][auroc]") {
  Random random(3);
  for (int trial = 0; trial < 200; ++trial) {
    CAPTURE(trial);
    const auto scores = [&] {
      std::vector<double> out(random.below(12));
      for (double& s : out) s = static_cast<double>(random.below(5)) - 1;  // -1 .. 3
      return out;
    };
    const auto positive = scores(), negative = scores();
    const auto zeros_positive = static_cast<Index>(random.below(4)), zeros_negative = static_cast<Index>(random.below(4));
    if (positive.empty() && zeros_positive == 0) continue;
    if (negative.empty() && zeros_negative == 0) continue;
    CHECK(auroc(positive, negative, zeros_positive, zeros_negative) ==
          Approx(by_pairs(positive, negative, zeros_positive, zeros_negative)).epsilon(1e-15));
  }
}

TEST_CASE("AUROC refuses a class without items and NaN", "[metrics][auroc]") {
  CHECK_THROWS_WITH(auroc({}, {1}), ContainsSubstring("0 positive and 1 negative items"));
  CHECK_THROWS_WITH(auroc({1, 2}, {}), ContainsSubstring("2 positive and 0 negative items"));
  CHECK_THROWS_WITH(auroc({std::nan("")}, {1}), ContainsSubstring("NaN"));
  CHECK_THROWS_WITH(auroc({1}, {2, std::nan("")}), ContainsSubstring("NaN"));
  CHECK_THROWS_WITH(auroc({1}, {1}, -1, 0), ContainsSubstring("zeros_positive = -1"));
}
