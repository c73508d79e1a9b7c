#pragma once
#include <sae/core/threads.hpp>
#include <sae/kernels/half_kernels.hpp>
#include <sae/kernels/product.hpp>
#include <sae/kernels/vector.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <type_traits>
#include <vector>

namespace sae::inline SAE_ABI {

/// Median of numbers; of an even number the mean of the two middle ones. NaN where there are none or one of them is NaN.
inline double median(std::vector<double> values) {
  if (values.empty() || std::any_of(values.begin(), values.end(), [](double v) { return std::isnan(v); }))
    return std::numeric_limits<double>::quiet_NaN();
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  if (values.size() % 2 == 1) return *middle;
  return (*std::max_element(values.begin(), middle) + *middle) / 2;
}

/// Cosine of row i of a with row i of b, both [F x D]: with W_enc and W_dec, how far each latent reads along what it writes
/// (about 0.5 in trained models; 1 at a tied start). 0 where a row is 0. float64 inside. Errors: ShapeError.
template <class A, class B>
std::vector<double> row_cosines(const Eigen::MatrixBase<A>& a, const Eigen::MatrixBase<B>& b) {
  using Scalar = typename A::Scalar;
  const Batch<Scalar> left(a), right(b);
  if (left.rows() != right.rows() || left.cols() != right.cols())
    throw_shape("row_cosines: [", left.rows(), " x ", left.cols(), "] and [", right.rows(), " x ", right.cols(),
                "] have different shapes");
  std::vector<double> out(static_cast<std::size_t>(left.rows()), 0.0);
  for (Index i = 0; i < left.rows(); ++i) {
    double aa = 0, bb = 0, ab = 0;
    for (Index j = 0; j < left.cols(); ++j) {
      const auto x = static_cast<double>(left.row(i)[j]), y = static_cast<double>(right.row(i)[j]);
      aa += x * x;
      bb += y * y;
      ab += x * y;
    }
    if (!(aa == 0 || bb == 0)) out[static_cast<std::size_t>(i)] = ab / (std::sqrt(aa) * std::sqrt(bb));
  }
  return out;
}
/// Encoder-decoder cosine of every latent of a model.
template <class Model>
std::vector<double> encoder_decoder_cosines(const Model& model) {
  if constexpr (requires { model.W_enc(); }) {
    return row_cosines(model.W_enc(), model.W_dec());
  } else {  // stored in 16 bits: row by row
    const auto &reads = model.parameters().encoder(), &writes = model.parameters().W_dec;
    RowVector<float> left(reads.cols()), right(writes.cols());
    std::vector<double> out;
    for (Index i = 0; i < reads.rows(); ++i) {
      kernels::widen(reads.row(i), left.data(), left.size());
      kernels::widen(writes.row(i), right.data(), right.size());
      out.push_back(row_cosines(left, right)[0]);
    }
    return out;
  }
}

/// Whether a direction and its negative count as the same.
enum class CosineSign { matters, ignored };

/// For each row of one dictionary its nearest row in another.
struct NearestDirections {
  std::vector<double> cosine;  ///< largest cosine (of its absolute value where the sign is ignored)
  std::vector<Index> nearest;  ///< row of the other one; the lower of equals

  double mean() const {
    double sum = 0;
    for (const double c : cosine) sum += c;
    return sum / static_cast<double>(cosine.size());
  }
  /// Rows with a cosine of at least `least`.
  Index found(double least) const {
    return static_cast<Index>(std::count_if(cosine.begin(), cosine.end(), [&](double c) { return c >= least; }));
  }
};

namespace detail {

/// Rows [n x D] divided by their norms (taken in float64); rows of zeros stay.
template <class To, class Rows>
Tensor<To> unit_rows(const Eigen::MatrixBase<Rows>& rows) {
  Tensor<To> out(rows.rows(), rows.cols());
  out.map() = rows.template cast<To>();
  for (Index i = 0; i < out.rows(); ++i) {
    double squares = 0;
    for (Index j = 0; j < out.cols(); ++j) squares += static_cast<double>(out.row(i)[j]) * static_cast<double>(out.row(i)[j]);
    if (squares != 0) kernels::scale(out.row(i), static_cast<To>(1 / std::sqrt(squares)), out.cols());
  }
  return out;
}

/// `but_itself`: row i of `from` is not compared with row i of `among`.
template <class A, class B>
NearestDirections nearest_of(const Eigen::MatrixBase<A>& from, const Eigen::MatrixBase<B>& among, CosineSign sign,
                             bool but_itself, Threads& threads) {
  using Scalar = typename A::Scalar;
  constexpr Index block = 64, tile = 256;
  const Index width = from.cols();
  const Tensor<Scalar> a = unit_rows<Scalar>(from), b = unit_rows<Scalar>(among);
  NearestDirections out;
  out.cosine.assign(static_cast<std::size_t>(a.rows()), -std::numeric_limits<double>::infinity());
  out.nearest.assign(out.cosine.size(), 0);
  threads.for_blocks(a.rows(), block, [&](Index begin, Index end, Index) {
    std::vector<Scalar> products(static_cast<std::size_t>(block * tile));
    for (Index first = 0; first < b.rows(); first += tile) {
      const Index n = (std::min)(tile, b.rows() - first);
      std::fill(products.begin(), products.end(), Scalar(0));
      kernels::add_product_nt(products.data(), tile, a.row(begin), width, b.row(first), width, end - begin, n, width);
      for (Index i = begin; i < end; ++i) {
        double& best = out.cosine[static_cast<std::size_t>(i)];
        for (Index k = 0; k < n; ++k) {
          if (but_itself && first + k == i) continue;
          auto c = static_cast<double>(products[static_cast<std::size_t>((i - begin) * tile + k)]);
          if (sign == CosineSign::ignored) c = std::abs(c);
          if (!(c > best || std::isnan(c)) || std::isnan(best)) continue;
          best = c;
          out.nearest[static_cast<std::size_t>(i)] = first + k;
        }
      }
    }
  });
  return out;
}

}  // namespace detail

/// For each row of `from` [n x D] the row of `among` [m x D] of largest cosine.
///
///   auto truth = sae::nearest_directions(world.directions.map(), model.W_dec());
///   truth.found(0.9)                                  // ground-truth directions that some latent points along
///
/// A row of zeros has cosine 0 with everything; a row with NaN has cosine NaN. Products in Scalar, in blocks of rows: no n x m
/// matrix. Cost: 2 n m D operations. Results do not depend on threads. Errors: ShapeError for different D, ValueError where
/// one of the two has no row.
template <class A, class B>
NearestDirections nearest_directions(const Eigen::MatrixBase<A>& from, const Eigen::MatrixBase<B>& among,
                                     CosineSign sign = CosineSign::matters, Threads& threads = Threads::shared()) {
  static_assert(std::is_same_v<typename A::Scalar, typename B::Scalar>, "sae: both dictionaries need one scalar type");
  if (from.cols() != among.cols())
    throw_shape("nearest_directions: rows of width ", from.cols(), " and ", among.cols(), " cannot be compared");
  if (from.rows() == 0 || among.rows() == 0) throw_value("nearest_directions: a dictionary without rows");
  return detail::nearest_of(from, among, sign, false, threads);
}

/// For each row of one dictionary [n x D] the other row of it of largest cosine: how far latents repeat each other (SAEBench's
/// largest decoder cosine per latent). As `nearest_directions` otherwise. Errors: ValueError for fewer than two rows.
template <class A>
NearestDirections nearest_others(const Eigen::MatrixBase<A>& rows, CosineSign sign = CosineSign::matters,
                                 Threads& threads = Threads::shared()) {
  if (rows.rows() < 2) throw_value("nearest_others: ", rows.rows(), " rows; two are needed to compare one with another");
  return detail::nearest_of(rows, rows, sign, true, threads);
}

/// Cosine of every row of a [n x D] with every row of b [m x D], float64 [n x m]; 0 where a row is 0, NaN where it holds NaN.
/// Memory n m numbers, cost 2 n m D operations. Results do not depend on threads. Errors: ShapeError.
template <class A, class B>
Tensor<double> cosines(const Eigen::MatrixBase<A>& a, const Eigen::MatrixBase<B>& b, Threads& threads = Threads::shared()) {
  if (a.cols() != b.cols()) throw_shape("cosines: rows of width ", a.cols(), " and ", b.cols(), " cannot be compared");
  const Tensor<double> left = detail::unit_rows<double>(a), right = detail::unit_rows<double>(b);
  Tensor<double> out(left.rows(), right.rows());
  threads.for_blocks(left.rows(), 64, [&](Index begin, Index end, Index) {
    kernels::add_product_nt(out.row(begin), out.cols(), left.row(begin), left.cols(), right.data(), right.cols(), end - begin,
                            right.rows(), right.cols());
  });
  return out;
}

/// Mean of |cosine| over all pairs of different rows of a dictionary [n x D]; 0: orthogonal. NaN for fewer than two rows.
template <class A>
double mean_absolute_cosine(const Eigen::MatrixBase<A>& rows, Threads& threads = Threads::shared()) {
  const Tensor<double> all = cosines(rows, rows, threads);
  double sum = 0;
  for (Index i = 0; i < all.rows(); ++i)
    for (Index j = 0; j < all.cols(); ++j)
      if (i != j) sum += std::abs(all.row(i)[j]);
  const auto n = static_cast<double>(all.rows());
  return n < 2 ? std::numeric_limits<double>::quiet_NaN() : sum / (n * (n - 1));
}

/// Mean max cosine similarity of two dictionaries. It is not symmetric: a small dictionary may lie within a large one.
struct DictionarySimilarity {
  double a_to_b = 0;  ///< mean over rows of a of the largest cosine with a row of b
  double b_to_a = 0;
};
template <class A, class B>
DictionarySimilarity mean_max_cosine(const Eigen::MatrixBase<A>& a, const Eigen::MatrixBase<B>& b,
                                     CosineSign sign = CosineSign::matters, Threads& threads = Threads::shared()) {
  return {nearest_directions(a, b, sign, threads).mean(), nearest_directions(b, a, sign, threads).mean()};
}

}  // namespace sae::inline SAE_ABI
