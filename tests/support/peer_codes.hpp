#pragma once
// What a peer computed of a fixture in tests/data/peers/inference, and how near ours must be to it.
#include <sae/files/npy.hpp>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "catch_compat.hpp"

namespace sae_test {

inline const std::filesystem::path peers = std::filesystem::path(SAE_TEST_DATA) / "peers" / "inference";

inline sae::Tensor<float> rows_of(const std::filesystem::path& file) {
  const sae::NpyArray array(file);
  sae::Tensor<float> out(array.shape()[0], array.shape()[1]);
  const auto values = array.values<float>();
  std::copy(values.begin(), values.end(), out.data());
  return out;
}

/// Every number is within `bound` of the peer's, relative to the largest one; with `same_support` the same ones are 0.
template <class Got>
void require_close(const Got& got, const sae::Tensor<float>& want, double bound, bool same_support) {
  REQUIRE(got.rows() == want.rows());
  REQUIRE(got.cols() == want.cols());
  const double unit = static_cast<double>(want.map().cwiseAbs().maxCoeff<Eigen::PropagateNaN>());
  REQUIRE(unit > 0);
  for (sae::Index b = 0; b < want.rows(); ++b)
    for (sae::Index i = 0; i < want.cols(); ++i) {
      const auto a = static_cast<double>(got(b, i)), e = static_cast<double>(want.row(b)[i]);
      CAPTURE(b, i, a, e);
      if (same_support) REQUIRE((a != 0) == (e != 0));
      REQUIRE(std::fabs(a - e) <= bound * unit);
    }
}

}  // namespace sae_test
