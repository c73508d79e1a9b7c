#include <sae/files/npy.hpp>
#include <sae/metrics/consistency.hpp>

#include <cmath>
#include <filesystem>

#include "catch_compat.hpp"

namespace {

using sae::Index;

TEST_CASE("rows of a window in which a latent is active, by hand", "[metrics]") {
  sae::Matrix<double> f(6, 4);  // two windows of three rows
  f << 1, 0, 2, 0,              //
      1, 0, 0, 0,               //
      1, -3, 0, 0,              //
      0, 1, 0, 0,               //
      0, 1, 0, 0,               //
      4, 0, 0, 0;
  const auto codes = sae::Codes<double>::from_dense(f);
  const auto got = sae::consistent_activation(codes, 3);
  REQUIRE(got.size() == 4);
  CHECK(got[0] == 2);    // 3 and 1
  CHECK(got[1] == 1.5);  // 1 and 2
  CHECK(got[2] == 1);
  CHECK(std::isnan(got[3]));
  CHECK(sae::consistent_activation(codes, 6)[0] == 4);
  CHECK(sae::consistent_activation(codes, 1)[0] == 1);
  sae::Codes<float> zero(1);  // a selected latent of value 0
  zero.push(0, 0.0F);
  zero.finish_row();
  CHECK(std::isnan(sae::consistent_activation(zero, 1)[0]));
  CHECK_THROWS_WITH(sae::consistent_activation(codes, 0), "consistent_activation: window_rows = 0 is below 1");
  CHECK_THROWS_WITH(sae::consistent_activation(codes, 4), "consistent_activation: 6 rows are not whole windows of 4");
}

TEST_CASE("SAELens' consistent_activation_heuristic", "[metrics][peers]") {
  const auto folder = std::filesystem::path(SAE_TEST_DATA) / "peers" / "metrics" / "reconstruction_and_sparsity";
  const auto codes = sae::Codes<float>::from_dense(sae::load_npy<float>(folder / "codes.npy"));
  const auto want = sae::load_npy<double>(folder / "saelens_consistent_activation_heuristic.npy");
  const auto got = sae::consistent_activation(codes, 16);  // 32 prompts of 16 rows
  REQUIRE(static_cast<Index>(got.size()) == want.size());
  Index never = 0;
  for (Index i = 0; i < want.size(); ++i) {
    CAPTURE(i);
    if (want.data()[i] < 0) {  // the peer's 0 / 0
      CHECK(std::isnan(got[static_cast<std::size_t>(i)]));
      ++never;
    } else {
      CHECK(std::abs(got[static_cast<std::size_t>(i)] - want.data()[i]) <= 1e-6 * want.data()[i]);
    }
  }
  CHECK(never == 3);
}

}  // namespace
