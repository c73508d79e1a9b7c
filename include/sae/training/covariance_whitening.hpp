#pragma once
#include <sae/kernels/product.hpp>
#include <sae/training/whitening.hpp>

#include <Eigen/Eigenvalues>
#include <algorithm>
#include <cmath>

namespace sae::inline SAE_ABI {

/// Of the rows x [N x D], N >= 1; C is divided by N - 1 (by 1 where N is 1). Cost: N D^2 + about 10 D^3, one thread; memory N D + 5 D^2.
/// \throws ValueError  floor is not positive: C may be singular.
/// Source: SAELens training/activation_scaler.py (estimate_whitening: E diag(l + eps)^-1/2, which is this map but for a rotation of y,
/// with a floor in the units of the rows); arXiv:2511.13981.
template <class Scalar>
Whitening whitening_of(const Tensor<Scalar>& x, double floor) {
  require_positive("whitening: floor", floor);
  if (x.rows() == 0) throw_value("whitening: there are no rows");
  const Index width = x.cols(), rows = x.rows();
  Whitening out(width);
  for (Index b = 0; b < rows; ++b)
    for (Index j = 0; j < width; ++j) out.mean[j] += static_cast<double>(x.row(b)[j]);
  out.mean.map() /= static_cast<double>(rows);
  Tensor<double> centred(rows, width);
  for (Index b = 0; b < rows; ++b)
    for (Index j = 0; j < width; ++j) centred.row(b)[j] = static_cast<double>(x.row(b)[j]) - out.mean[j];
  Matrix<double> covariance = Matrix<double>::Zero(width, width);
  kernels::add_product_tn(covariance.data(), width, centred.data(), width, centred.data(), width, width, rows, width);
  covariance /= static_cast<double>((std::max)(rows - 1, Index{1}));
  const double mean_variance = covariance.trace() / static_cast<double>(width);
  if (!(mean_variance > 0)) return out;
  const Eigen::SelfAdjointEigenSolver<Matrix<double>> solver(covariance);
  Matrix<double> scaled(width, width);
  const auto write = [&](Tensor<double>& to, double power) {  // E diag(l'^power) E^T
    for (Index j = 0; j < width; ++j)
      scaled.col(j) =
          solver.eigenvectors().col(j) * std::pow((std::max)(solver.eigenvalues()[j], floor * mean_variance), power);
    const Matrix<double> directions = solver.eigenvectors();
    to.set_zero();
    kernels::add_product_nt(to.data(), width, scaled.data(), width, directions.data(), width, width, width, width);
  };
  write(out.matrix, -0.5);
  write(out.inverse, 0.5);
  return out;
}

/// `whitening_of` as `TrainerConfig::whitening` takes it. A template, and in a header of its own, so that the eigenvectors, which take
/// seconds to compile, are compiled where somebody names it and nowhere else.
template <class Scalar>
Whitening covariance_whitening(const Tensor<Scalar>& x, double floor) {
  return whitening_of(x, floor);
}

}  // namespace sae::inline SAE_ABI
