#include <sae/metrics/loss_recovered.hpp>

#include <cmath>
#include <limits>

#include "catch_compat.hpp"

namespace {

TEST_CASE("loss recovered by hand, against both ablations", "[metrics]") {
  // clean 3, spliced 3.5, zero 7, mean 5: 3.5 of 4 and 1.5 of 2 come back.
  CHECK(sae::loss_recovered(3, 3.5, 7) == 0.875);
  const sae::LossRecovered both = sae::loss_recovered({.clean = 3, .sae = 3.5, .zero = 7, .mean = 5});
  CHECK(both.zero == 0.875);
  CHECK(both.mean == 0.75);
}

TEST_CASE("loss recovered is not clamped", "[metrics]") {
  CHECK(sae::loss_recovered(3, 3, 7) == 1);
  CHECK(sae::loss_recovered(3, 7, 7) == 0);
  CHECK(sae::loss_recovered(3, 2, 7) == 1.25);
  CHECK(sae::loss_recovered(3, 9, 7) == -0.5);
}

TEST_CASE("an ablation that costs nothing leaves nothing to recover", "[metrics]") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  CHECK(std::isnan(sae::loss_recovered(3, 3.5, 3)));
  CHECK(std::isnan(sae::loss_recovered(3, 3.5, 2.5)));
  CHECK(std::isnan(sae::loss_recovered(nan, 3.5, 7)));
  CHECK(std::isnan(sae::loss_recovered(3, nan, 7)));
  CHECK(std::isnan(sae::loss_recovered(3, 3.5, nan)));
  const sae::LossRecovered both = sae::loss_recovered({.clean = 3, .sae = 3.5, .zero = 7, .mean = 3});
  CHECK(both.zero == 0.875);
  CHECK(std::isnan(both.mean));
}

}  // namespace
