#pragma once
#include <sae/core/types.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

namespace sae::inline SAE_ABI {

/// Mean row and mean squared norm of rows that arrive in batches; float64 inside.
class RowStatistics {
 public:
  template <class Scalar>
  void add(const Scalar* row, Index width) {
    if (sum_.empty()) sum_.assign(static_cast<std::size_t>(width), 0.0);
    double squares = 0;
    for (Index j = 0; j < width; ++j) {
      const auto x = static_cast<double>(row[j]);
      sum_[static_cast<std::size_t>(j)] += x;
      squares += x * x;
    }
    squares_ += squares;
    norms_ += std::sqrt(squares);
    ++rows_;
  }
  /// As if the rows of `other` had been added after one's own, but for the rounding of another order of additions.
  void merge(const RowStatistics& other) {
    if (sum_.empty()) sum_.assign(other.sum_.size(), 0.0);
    for (std::size_t j = 0; j < other.sum_.size(); ++j) sum_[j] += other.sum_[j];
    squares_ += other.squares_;
    norms_ += other.norms_;
    rows_ += other.rows_;
  }
  /// As new, with its memory.
  void clear() {
    std::fill(sum_.begin(), sum_.end(), 0.0);
    squares_ = norms_ = 0;
    rows_ = 0;
  }
  Index rows() const { return rows_; }
  std::vector<double> mean() const {
    std::vector<double> out = sum_;
    for (double& x : out) x /= static_cast<double>(rows_);
    return out;
  }
  double mean_squared_norm() const { return squares_ / static_cast<double>(rows_); }
  /// mean |x - mean x|^2
  double variance() const {
    double squared_mean = 0;
    for (const double x : sum_) squared_mean += (x / static_cast<double>(rows_)) * (x / static_cast<double>(rows_));
    return mean_squared_norm() - squared_mean;
  }
  double mean_norm() const { return norms_ / static_cast<double>(rows_); }

 private:
  std::vector<double> sum_;
  double squares_ = 0, norms_ = 0;
  Index rows_ = 0;
};

/// Geometric median of the rows of x [N x D]: the point with the least sum of distances, by Weiszfeld's iteration from the mean,
/// until a move is below `tolerance` or after `rounds`. Rows at the estimate itself, m of them, hold it back: with R the length of
/// the sum of the unit vectors to all other rows, it goes the share max(0, 1 - m / R) of the way. float64 inside.
/// Cost: rounds x N x D. Source: Vardi and Zhang 2000, "The multivariate L1-median and associated data depth"; tolerance and rounds
/// of dictionary_learning trainers/top_k.py, which divides by 0 there.
template <class Scalar>
std::vector<double> geometric_median(const Tensor<Scalar>& x, double tolerance = 1e-5, int rounds = 100) {
  const auto width = static_cast<std::size_t>(x.cols());
  RowStatistics start;
  for (Index b = 0; b < x.rows(); ++b) start.add(x.row(b), x.cols());
  std::vector<double> guess = start.mean(), next(width);
  for (int round = 0; round < rounds; ++round) {
    std::fill(next.begin(), next.end(), 0.0);
    double weights = 0, here = 0;
    for (Index b = 0; b < x.rows(); ++b) {
      double squares = 0;
      for (std::size_t j = 0; j < width; ++j) {
        const double d = static_cast<double>(x.row(b)[j]) - guess[j];
        squares += d * d;
      }
      if (squares == 0) {
        ++here;
        continue;
      }
      const double weight = 1 / std::sqrt(squares);
      weights += weight;
      for (std::size_t j = 0; j < width; ++j) next[j] += weight * static_cast<double>(x.row(b)[j]);
    }
    if (weights == 0) break;  // every row is at the estimate
    double move = 0;
    for (std::size_t j = 0; j < width; ++j) {
      next[j] /= weights;
      move += (next[j] - guess[j]) * (next[j] - guess[j]);
    }
    move = std::sqrt(move);
    if (here > 0) {
      const double way = std::fmax(0.0, 1 - here / (weights * move));
      for (std::size_t j = 0; j < width; ++j) next[j] = guess[j] + way * (next[j] - guess[j]);
      move *= way;
    }
    guess = next;
    if (move < tolerance) break;
  }
  return guess;
}

}  // namespace sae::inline SAE_ABI
