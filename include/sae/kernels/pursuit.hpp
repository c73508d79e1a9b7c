#pragma once
#include <sae/kernels/product.hpp>
#include <sae/kernels/vector.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

namespace sae::inline SAE_ABI::kernels {

inline constexpr Index match_tile = 512;  ///< latents that `best_matches` looks at in one product

/// best[b] = argmax_i r_b . w_i, or of |r_b . w_i| with `by_magnitude`, where it is above 0; else -1. Ties go to the lower i; NaN is
/// above nothing. r [n x width], w [latents x width], scratch [n x (match_tile + 1)]. Cost: the dense product n x latents x width.
template <class Scalar>
void best_matches(const Scalar* r, Index n, Index width, const Scalar* w, Index latents, bool by_magnitude, Scalar* scratch,
                  std::span<int> best) {
  Scalar* const highest = scratch + n * match_tile;
  std::fill_n(highest, n, Scalar(0));
  std::fill_n(best.begin(), n, -1);
  for (Index first = 0; first < latents; first += match_tile) {
    const Index count = std::min(match_tile, latents - first);
    for (Index b = 0; b < n; ++b) std::fill_n(scratch + b * match_tile, count, Scalar(0));
    add_product_nt(scratch, match_tile, r, width, w + first * width, width, n, count, width);
    for (Index b = 0; b < n; ++b) {
      const Scalar* const z = scratch + b * match_tile;
      Scalar high = highest[b];
      for (Index j = 0; j < count; ++j) {
        const Scalar key = by_magnitude ? std::abs(z[j]) : z[j];
        if (!(key > high)) continue;
        high = key;
        best[static_cast<std::size_t>(b)] = static_cast<int>(first + j);
      }
      highest[b] = high;
    }
  }
}

/// The Cholesky factor L of a symmetric positive definite matrix that grows by a row and a column at a time, in float64.
class GrowingCholesky {
 public:
  void clear() { size_ = 0; }
  Index size() const { return size_; }
  /// Appends the column (a_1 .. a_n, a_nn). False, and nothing happens, where the pivot a_nn - |L^-1 a|^2 is at most
  /// `tolerance` a_nn or not a number: the column depends on those before it.
  bool add(std::span<const double> column, double diagonal, double tolerance) {
    const Index n = size_;
    rows_.resize(static_cast<std::size_t>(n * (n + 1) / 2 + n + 1));
    double* const row = at(n);
    double pivot = diagonal;
    for (Index i = 0; i < n; ++i) {
      double x = column[static_cast<std::size_t>(i)];
      for (Index j = 0; j < i; ++j) x -= at(i)[j] * row[j];
      row[i] = x / at(i)[i];
      pivot -= row[i] * row[i];
    }
    if (!(pivot > tolerance * diagonal)) return false;
    row[n] = std::sqrt(pivot);
    ++size_;
    return true;
  }
  /// b <- (L L^T)^-1 b.
  void solve(std::span<double> b) {
    for (Index i = 0; i < size_; ++i) {
      for (Index j = 0; j < i; ++j) b[static_cast<std::size_t>(i)] -= at(i)[j] * b[static_cast<std::size_t>(j)];
      b[static_cast<std::size_t>(i)] /= at(i)[i];
    }
    for (Index i = size_ - 1; i >= 0; --i) {
      b[static_cast<std::size_t>(i)] /= at(i)[i];
      for (Index j = 0; j < i; ++j) b[static_cast<std::size_t>(j)] -= at(i)[j] * b[static_cast<std::size_t>(i)];
    }
  }

 private:
  double* at(Index row) { return rows_.data() + row * (row + 1) / 2; }

  Index size_ = 0;
  std::vector<double> rows_;  ///< the lower triangle, row behind row
};
/// A fit by rows d_i, one after the other, and what it needs room for.
struct GrowingFit {
  GrowingCholesky gram;                       ///< of the d_i
  std::vector<double> column, along, values;  ///< d_i . d_j of the newest, d_i . u; solutions

  void clear() {
    gram.clear();
    along.clear();
  }
};

}  // namespace sae::inline SAE_ABI::kernels
