#pragma once
#include <sae/core/types.hpp>
#include <sae/kernels/float_product.hpp>

#include <type_traits>

// The only place that spells a dense product: float32 by kernels of our own (float_product.hpp), other numbers by Eigen's. Everything
// is row-major with a leading dimension (stride between rows); one call runs in one thread. Callers cut their work into blocks by the
// data alone, so that results do not depend on threads.
namespace sae::inline SAE_ABI::kernels {

namespace detail {
template <class Scalar>
using Strided = Eigen::Map<Matrix<Scalar>, 0, Eigen::OuterStride<>>;
template <class Scalar>
using ConstStrided = Eigen::Map<const Matrix<Scalar>, 0, Eigen::OuterStride<>>;

/// While it lives, Eigen's products of this thread run in this thread alone. Where a program is compiled with -fopenmp Eigen would
/// share each one among OpenMP's threads, beside ours, and add in an order that depends on how many there are.
/// (Eigen::setNbThreads(n) with n > 1 overrules it for the whole program: results then depend on n.)
struct SerialProduct {
#ifdef EIGEN_HAS_OPENMP
  SerialProduct() { omp_set_num_threads(1); }
  ~SerialProduct() { omp_set_num_threads(before); }
  SerialProduct(const SerialProduct&) = delete;
  SerialProduct& operator=(const SerialProduct&) = delete;
  int before = omp_get_max_threads();
#endif
};
}  // namespace detail

/// z [m x n] += x [m x d] w^T, w [n x d]: pre-activations from rows and encoder rows; code gradients from cotangents and decoder rows.
template <class Scalar>
SAE_NOINLINE void add_product_nt(Scalar* z, Index ld_z, const Scalar* x, Index ld_x, const Scalar* w, Index ld_w, Index m,
                                 Index n, Index d) {
  if constexpr (std::is_same_v<Scalar, float>) return detail::add_float_inner_products(z, ld_z, x, ld_x, w, ld_w, m, n, d);
  [[maybe_unused]] const detail::SerialProduct serial;
  detail::Strided<Scalar>(z, m, n, Eigen::OuterStride<>(ld_z)).noalias() +=
      detail::ConstStrided<Scalar>(x, m, d, Eigen::OuterStride<>(ld_x)) *
      detail::ConstStrided<Scalar>(w, n, d, Eigen::OuterStride<>(ld_w)).transpose();
}

/// Rows x [m x d] that will be multiplied by many weights, made ready for it once.
template <class Scalar>
class ProductRows {
 public:
  /// Numbers of room that it takes.
  static Index room(Index m, Index d) {
    return std::is_same_v<Scalar, float> ? detail::packed_rows_room(m, d) + detail::kept_lanes_room(m, d) : 0;
  }
  /// Both x and the room are viewed.
  ProductRows(const Scalar* x, Index ld_x, Index m, Index d, Scalar* room) : x_(x), ld_x_(ld_x), m_(m), d_(d), room_(room) {
    if constexpr (std::is_same_v<Scalar, float>) detail::pack_inner_rows(x, ld_x, m, d, detail::float_kernels(), room);
  }
  /// z [m x n] += x w^T, w [n x d]: the numbers of `add_product_nt`.
  void add_product_nt(Scalar* z, Index ld_z, const Scalar* w, Index ld_w, Index n) const {
    if constexpr (std::is_same_v<Scalar, float>) {
      detail::add_inner_products(z, ld_z, room_, m_, d_, w, ld_w, n, detail::float_kernels(),
                                 room_ + detail::packed_rows_room(m_, d_));
    } else {
      kernels::add_product_nt(z, ld_z, x_, ld_x_, w, ld_w, m_, n, d_);
    }
  }

 private:
  const Scalar* x_;
  Index ld_x_, m_, d_;
  Scalar* room_;
};

/// y [m x d] += a [m x n] w, w [n x d]: the decoder on dense codes; weight gradients from dense entries [latents x rows].
template <class Scalar>
SAE_NOINLINE void add_product_nn(Scalar* y, Index ld_y, const Scalar* a, Index ld_a, const Scalar* w, Index ld_w, Index m,
                                 Index n, Index d) {
  if constexpr (std::is_same_v<Scalar, float>) return detail::add_float_product(y, ld_y, {a, ld_a, 1}, w, ld_w, m, d, n);
  [[maybe_unused]] const detail::SerialProduct serial;
  detail::Strided<Scalar>(y, m, d, Eigen::OuterStride<>(ld_y)).noalias() +=
      detail::ConstStrided<Scalar>(a, m, n, Eigen::OuterStride<>(ld_a)) *
      detail::ConstStrided<Scalar>(w, n, d, Eigen::OuterStride<>(ld_w));
}

/// y [m x d] += a^T w, a [n x m], w [n x d]: Gram matrices of columns.
template <class Scalar>
SAE_NOINLINE void add_product_tn(Scalar* y, Index ld_y, const Scalar* a, Index ld_a, const Scalar* w, Index ld_w, Index m,
                                 Index n, Index d) {
  if constexpr (std::is_same_v<Scalar, float>) return detail::add_float_product(y, ld_y, {a, 1, ld_a}, w, ld_w, m, d, n);
  [[maybe_unused]] const detail::SerialProduct serial;
  detail::Strided<Scalar>(y, m, d, Eigen::OuterStride<>(ld_y)).noalias() +=
      detail::ConstStrided<Scalar>(a, n, m, Eigen::OuterStride<>(ld_a)).transpose() *
      detail::ConstStrided<Scalar>(w, n, d, Eigen::OuterStride<>(ld_w));
}

}  // namespace sae::inline SAE_ABI::kernels
