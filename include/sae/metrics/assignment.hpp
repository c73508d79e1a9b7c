#pragma once
#include <sae/core/types.hpp>

#include <cmath>
#include <cstddef>
#include <limits>
#include <utility>
#include <vector>

namespace sae::inline SAE_ABI {

/// Pairs of rows and columns in which each row and each column stands once at most, and the proof that no other choice has a
/// larger total: prices with
///
///   row_prices[i] + column_prices[j] >= score(i, j)   everywhere, equal for the pairs;   sum of all prices = total
///
/// On the longer side prices are at least 0, and 0 for what stays alone. All up to rounding.
struct Assignment {
  std::vector<Index> column_of_row;   ///< [n] -1: the row stays alone
  std::vector<Index> row_of_column;   ///< [m] -1: the column stays alone
  double total = 0;                   ///< sum of the pairs' scores, in the order of the rows
  std::vector<double> row_prices;     ///< [n]
  std::vector<double> column_prices;  ///< [m]

  Index pairs() const {
    return static_cast<Index>(column_of_row.size() < row_of_column.size() ? column_of_row.size() : row_of_column.size());
  }
};

/// The one-to-one assignment of min(n, m) pairs with the largest sum of scores [n x m] (maximum-weight matching; "Hungarian").
///
///   const auto pairs = sae::best_assignment(cosines);      // pairs.total / pairs.pairs(): mean cosine of the best pairs
///
/// Rows (of the shorter side) enter one by one, each along the path of least cost to a column that is free; prices keep every
/// cost at or above 0, so that Dijkstra's search is exact.
/// Ties   of equally good columns a free one is taken first, then the lower one: equal scores give equal pairs, a constant matrix
///        the identity. Which of several assignments of equal total is found is not promised otherwise.
/// Errors ValueError: a score that is not finite (NaN or infinity).
/// Cost   O(min(n,m)^2 max(n,m)) at worst, float64, serial; a copy of the scores.
/// Source Jonker, Volgenant 1987, "A shortest augmenting path algorithm for dense and sparse linear assignment problems", as
///        formulated by Crouse 2016, "On implementing 2D rectangular assignment algorithms".
template <class Derived>
Assignment best_assignment(const Eigen::MatrixBase<Derived>& scores) {
  const auto at = [](Index i) { return static_cast<std::size_t>(i); };
  constexpr double infinity = std::numeric_limits<double>::infinity();
  const bool turned = scores.rows() > scores.cols();
  const Index n = turned ? scores.cols() : scores.rows(), m = turned ? scores.rows() : scores.cols();
  Tensor<double> cost(n, m);
  if (turned) {
    cost.map() = -scores.transpose().template cast<double>();
  } else {
    cost.map() = -scores.template cast<double>();
  }
  for (Index i = 0; i < n; ++i)
    for (Index j = 0; j < m; ++j)
      if (!std::isfinite(cost.row(i)[j]))
        throw_value("best_assignment: the score of row ", turned ? j : i, " and column ", turned ? i : j,
                    " is not finite (NaN or infinity)");

  // Row and column prices u, v of the costs: c_ij - u_i - v_j >= 0, 0 for pairs.
  std::vector<double> u(at(n), 0.0), v(at(m), 0.0), distance(at(m));
  std::vector<Index> partner(at(n), -1), owner(at(m), -1),
      from(at(m));  // of a row, of a column; row before a column on its path
  std::vector<Index> open, rows_seen, columns_seen;
  for (Index start = 0; start < n; ++start) {
    open.resize(at(m));
    for (Index j = 0; j < m; ++j) open[at(j)] = j;
    distance.assign(at(m), infinity);
    rows_seen.clear();
    columns_seen.clear();
    Index i = start, sink = -1;
    double reached = 0;
    while (sink < 0) {
      rows_seen.push_back(i);
      const double* const row = cost.row(i);
      const double base = reached - u[at(i)];
      double least = infinity;
      std::size_t chosen = 0;
      bool free = false;
      for (std::size_t k = 0; k < open.size(); ++k) {
        const std::size_t j = at(open[k]);
        const double d = base + row[j] - v[j];
        if (d < distance[j]) {
          distance[j] = d;
          from[j] = i;
        }
        if (distance[j] < least || (distance[j] == least && !free && owner[j] < 0)) {
          least = distance[j];
          chosen = k;
          free = owner[j] < 0;
        }
      }
      const Index column = open[chosen];
      reached = least;
      open.erase(open.begin() + static_cast<std::ptrdiff_t>(chosen));  // in order, so that the lower of equals comes first
      columns_seen.push_back(column);
      if (owner[at(column)] < 0) {
        sink = column;
      } else {
        i = owner[at(column)];
      }
    }
    u[at(start)] += reached;
    for (const Index r : rows_seen)
      if (r != start) u[at(r)] += reached - distance[at(partner[at(r)])];
    for (const Index j : columns_seen) v[at(j)] -= reached - distance[at(j)];
    for (Index j = sink;;) {  // the pairs of the path change hands
      const Index r = from[at(j)];
      owner[at(j)] = r;
      std::swap(partner[at(r)], j);
      if (r == start) break;
    }
  }

  Assignment out;
  for (double& price : u) price = -price;
  for (double& price : v) price = price == 0 ? 0.0 : -price;
  out.column_of_row = turned ? std::move(owner) : std::move(partner);
  out.row_of_column = turned ? std::move(partner) : std::move(owner);
  out.row_prices = turned ? std::move(v) : std::move(u);
  out.column_prices = turned ? std::move(u) : std::move(v);
  for (Index i = 0; i < scores.rows(); ++i)
    if (const Index j = out.column_of_row[at(i)]; j >= 0) out.total -= turned ? cost.row(j)[i] : cost.row(i)[j];
  return out;
}

}  // namespace sae::inline SAE_ABI
