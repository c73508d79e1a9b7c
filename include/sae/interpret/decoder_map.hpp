#pragma once
#include <sae/core/random.hpp>
#include <sae/metrics/dictionary.hpp>

#include <Eigen/Eigenvalues>
#include <Eigen/QR>
#include <algorithm>
#include <array>
#include <cmath>

namespace sae::inline SAE_ABI {

/// Directions as points of a plane.
struct DecoderMap {
  Matrix<double> points;          ///< [F x 2]
  std::array<double, 2> share{};  ///< of the variance of the directions that lies along each axis
};

/// The first two principal components of the rows of a decoder [F x D], each brought to norm 1 (a row of zeros stays) and their mean taken away:
/// those two axes along which the directions differ most. An axis points where its entry of largest magnitude is positive; points are 0 along
/// an axis that does not exist (one row, D = 1, all rows equal).
///
/// By subspace iteration on the covariance, in float64, from fixed numbers: the same at every call, within 1e-6 of the exact axes where the second
/// and ninth eigenvalue are well apart. Cost: F D^2, and at most 500 times 16 D^2.
/// \throws ValueError  a number is NaN or infinite.
inline DecoderMap decoder_map(const Batch<float>& directions) {
  const Index rows = directions.rows(), width = directions.cols(), block = 1024;
  DecoderMap out{.points = Matrix<double>::Zero(rows, 2)};
  if (rows < 2 || width < 1) return out;
  if (!directions.map().allFinite()) throw_value("decoder_map: a direction holds NaN or infinity");
  const Tensor<float> unit = detail::unit_rows<float>(directions.map());
  using Dense = Eigen::MatrixXd;
  Eigen::RowVectorXd mean = Eigen::RowVectorXd::Zero(width);
  for (Index i = 0; i < rows; ++i) mean += unit.map().row(i).cast<double>();
  mean /= static_cast<double>(rows);
  Dense covariance = Dense::Zero(width, width);
  for (Index first = 0; first < rows; first += block) {
    const Index n = (std::min)(block, rows - first);
    const Dense part = unit.map().middleRows(first, n).cast<double>().rowwise() - mean;
    covariance.noalias() += part.transpose() * part;
  }
  covariance /= static_cast<double>(rows);
  const double all = covariance.trace();
  if (!(all > 1e-12)) return out;  // rounding of equal rows

  const Index axes = (std::min)(width, Index{8});
  Random random(0);
  Dense space(width, axes);
  for (Index i = 0; i < space.size(); ++i) space.data()[i] = random.normal();
  Eigen::VectorXd before = Eigen::VectorXd::Zero(axes);
  for (int round = 0; round < 500; ++round) {
    const Dense grown = covariance * space;
    space = Eigen::HouseholderQR<Dense>(grown).householderQ() * Dense::Identity(width, axes);
    const Eigen::SelfAdjointEigenSolver<Dense> ritz(space.transpose() * covariance * space);
    space = space * ritz.eigenvectors().rowwise().reverse();
    const Eigen::VectorXd values = ritz.eigenvalues().reverse();
    const bool still = (values - before).head((std::min)(axes, Index{2})).cwiseAbs().maxCoeff() <= 1e-14 * all;
    before = values;
    if (still) break;
  }
  for (Index axis = 0; axis < (std::min)(axes, Index{2}); ++axis) {
    if (!(before[axis] > 1e-12 * all)) continue;
    Index largest = 0;
    space.col(axis).cwiseAbs().maxCoeff(&largest);
    if (space(largest, axis) < 0) space.col(axis) *= -1;
    out.share[static_cast<std::size_t>(axis)] = before[axis] / all;
    for (Index i = 0; i < rows; ++i)
      out.points(i, axis) = (unit.map().row(i).cast<double>() - mean).dot(space.col(axis).transpose());
  }
  return out;
}

}  // namespace sae::inline SAE_ABI
