#pragma once
#include <sae/core/types.hpp>

namespace sae::inline SAE_ABI {

/// A map that makes rows uncorrelated, each direction with variance 1, and its inverse.
///
///   y = (x - mean) A,   x = y A^-1 + mean,       A = C^-1/2 = E diag(l')^-1/2 E^T,   A^-1 = E diag(l')^1/2 E^T
///
/// C = E diag(l) E^T is the covariance of the rows, and l' = max(l, floor mean l): directions in which the rows hardly vary are not
/// blown up. Rows that do not vary at all: A = 1. A is symmetric, the map that whitens and moves rows least. float64 throughout.
struct Whitening {
  Tensor<double> mean;             ///< [1 x D]
  Tensor<double> matrix, inverse;  ///< A and its inverse [D x D]

  Whitening() = default;
  /// The map that changes nothing.
  explicit Whitening(Index width) : mean(1, width), matrix(width, width), inverse(width, width) {
    matrix.map().setIdentity();
    inverse.map().setIdentity();
  }
};

}  // namespace sae::inline SAE_ABI
