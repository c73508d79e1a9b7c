#include <sae/interpret/decoder_map.hpp>

#include "catch_compat.hpp"

using namespace sae;

namespace {

Matrix<float> random_rows(Index rows, Index width, std::uint64_t seed) {
  Random random(seed);
  Matrix<float> out(rows, width);
  for (Index i = 0; i < out.size(); ++i)
    out.data()[i] = static_cast<float>(random.normal() * (i % width == 0 ? 3 : i % width == 1 ? 2 : 1));
  return out;
}

}  // namespace

TEST_CASE("the map of a decoder is that of the exact principal components", "[decoder_map]") {
  for (const auto& [rows, width] : {std::pair<Index, Index>{300, 40}, {2500, 12}, {3, 20}, {10, 2}}) {
    CAPTURE(rows, width);
    const Matrix<float> directions = random_rows(rows, width, 7);
    const DecoderMap map = decoder_map(directions);
    Matrix<double> x = directions.cast<double>();
    for (Index i = 0; i < rows; ++i) x.row(i) /= x.row(i).norm();
    x.rowwise() -= x.colwise().mean().eval();
    const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> exact(x.transpose() * x);
    const double all = exact.eigenvalues().sum();
    for (Index axis = 0; axis < 2; ++axis) {
      CAPTURE(axis);
      Eigen::VectorXd direction = exact.eigenvectors().col(width - 1 - axis);
      Index largest = 0;
      direction.cwiseAbs().maxCoeff(&largest);
      if (direction[largest] < 0) direction *= -1;
      const Eigen::VectorXd expected = x * direction;
      CHECK((map.points.col(axis) - expected).cwiseAbs().maxCoeff() < 1e-5);
      CHECK(std::abs(map.share[static_cast<std::size_t>(axis)] - exact.eigenvalues()[width - 1 - axis] / all) < 1e-7);
    }
  }
}

TEST_CASE("a decoder without two axes has points of 0 there", "[decoder_map]") {
  const Matrix<float> same = Matrix<float>::Constant(5, 3, 2), one = random_rows(1, 4, 1);
  CHECK(decoder_map(same).points.isZero());
  CHECK(decoder_map(one).points.isZero());
  CHECK(decoder_map(Matrix<float>(0, 4)).points.rows() == 0);
  Matrix<float> line(4, 1);
  line << 1, -2, 3, 0;
  const DecoderMap map = decoder_map(line);  // 1, -1, 1, 0 with the mean 1/4
  CHECK(map.points(0, 0) == 0.75);
  CHECK(map.points(1, 0) == -1.25);
  CHECK(map.points.col(1).isZero());
  CHECK(std::abs(map.share[0] - 1) < 1e-12);
  CHECK(map.share[1] == 0);
}

TEST_CASE("lengths of directions do not matter, NaN is refused", "[decoder_map]") {
  Matrix<float> directions = random_rows(30, 6, 2);
  const DecoderMap map = decoder_map(directions);
  directions.row(4) *= 8;
  CHECK(decoder_map(directions).points.isApprox(map.points, 1e-6));
  directions(3, 3) = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_AS(decoder_map(directions), ValueError);
}
