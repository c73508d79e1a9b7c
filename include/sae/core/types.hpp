#pragma once
#include <sae/core/error.hpp>

#include <Eigen/Core>
#include <cstddef>
#include <cstdint>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

namespace sae::inline SAE_ABI {

using Index = Eigen::Index;                     ///< every size and position: signed, 64 bit
inline constexpr int Dynamic = Eigen::Dynamic;  ///< a size known at run time

/// Row-major dense matrix; a batch is [B x D], one activation vector a row.
template <class Scalar>
using Matrix = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
template <class Scalar>
using RowVector = Eigen::Matrix<Scalar, 1, Eigen::Dynamic>;
/// View of contiguous rows that somebody else owns.
template <class Scalar>
using MatrixMap = Eigen::Map<Matrix<Scalar>>;
template <class Scalar>
using ConstMatrixMap = Eigen::Map<const Matrix<Scalar>>;

namespace detail {
/// Allocates on 64-byte lines whatever flags a translation unit was compiled with (Eigen's own allocator changes with them).
template <class T>
struct CacheLineAllocator {
  using value_type = T;
  static constexpr std::align_val_t line{64};
  CacheLineAllocator() = default;
  template <class U>
  CacheLineAllocator(const CacheLineAllocator<U>&) {}
  T* allocate(std::size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), line)); }
  void deallocate(T* p, std::size_t) noexcept { ::operator delete(p, line); }
  template <class U>
  bool operator==(const CacheLineAllocator<U>&) const {
    return true;
  }
};
}  // namespace detail

/// Heap array of numbers, 64-byte aligned; its layout does not depend on compiler flags.
template <class T>
using Buffer = std::vector<T, detail::CacheLineAllocator<T>>;

/// Owned row-major matrix [rows x cols] (a vector has one row): what models, optimizers and checkpoints keep.
template <class Scalar>
class Tensor {
 public:
  Tensor() = default;
  Tensor(Index rows, Index cols) { resize(rows, cols); }
  Tensor(const Tensor&) = default;
  Tensor& operator=(const Tensor&) = default;
  /// What was moved from is empty, [0 x 0].
  Tensor(Tensor&& other) noexcept
      : rows_(std::exchange(other.rows_, 0)), cols_(std::exchange(other.cols_, 0)), data_(std::move(other.data_)) {}
  Tensor& operator=(Tensor&& other) noexcept {
    Tensor taken(std::move(other));
    std::swap(rows_, taken.rows_);
    std::swap(cols_, taken.cols_);
    data_.swap(taken.data_);
    return *this;
  }

  /// Sets the shape; all entries become 0.
  void resize(Index rows, Index cols) {
    rows_ = rows;
    cols_ = cols;
    data_.assign(static_cast<std::size_t>(rows * cols), Scalar(0));
  }
  void set_zero() { data_.assign(data_.size(), Scalar(0)); }

  Index rows() const { return rows_; }
  Index cols() const { return cols_; }
  Index size() const { return rows_ * cols_; }
  Scalar* data() { return data_.data(); }
  const Scalar* data() const { return data_.data(); }
  Scalar* row(Index i) { return data_.data() + i * cols_; }
  const Scalar* row(Index i) const { return data_.data() + i * cols_; }
  Scalar& operator[](Index i) { return data_[static_cast<std::size_t>(i)]; }
  const Scalar& operator[](Index i) const { return data_[static_cast<std::size_t>(i)]; }
  MatrixMap<Scalar> map() { return {data(), rows_, cols_}; }
  ConstMatrixMap<Scalar> map() const { return {data(), rows_, cols_}; }
  bool operator==(const Tensor&) const = default;

 private:
  Index rows_ = 0, cols_ = 0;
  Buffer<Scalar> data_;
};

/// Weights of 8 bits (core/int8.hpp).
template <>
class Tensor<std::int8_t>;
/// Weights that are read where they lie (core/mapped.hpp).
struct Mapped;
template <>
class Tensor<Mapped>;

/// Rows of activations as an argument: converts from any Eigen expression, matrix, array, block or `Map` of [B x D], and from a
/// single vector (one row). Row-major data with unit inner stride is viewed, everything else is evaluated once. A type for
/// arguments, not for variables: a view of a temporary matrix is good until the end of the call.
///
/// \tparam D  width if known at compile time; another fixed width is refused by the compiler.
template <class Scalar, int D = Dynamic>
class Batch {
 public:
  template <class Derived>
  Batch(const Eigen::MatrixBase<Derived>& x) {  // NOLINT: an implicit conversion is the point
    static_assert(std::is_same_v<typename Derived::Scalar, Scalar>,
                  "sae: the rows have another scalar type than the model; convert them: x.template cast<float>()");
    constexpr bool column = Derived::ColsAtCompileTime == 1 && D != 1;
    constexpr int width = column ? Derived::RowsAtCompileTime : Derived::ColsAtCompileTime;
    static_assert(D == Dynamic || width == Dynamic || width == D, "sae: the rows have another width than the model's D");
    constexpr bool direct = (Derived::Flags & Eigen::DirectAccessBit) != 0;
    rows_ = column ? 1 : x.rows();
    cols_ = column ? x.rows() : x.cols();
    if constexpr (direct) {
      constexpr bool vector = column || Derived::RowsAtCompileTime == 1;
      if ((vector || Derived::IsRowMajor) && x.derived().innerStride() == 1) {
        data_ = x.derived().data();
        stride_ = vector ? cols_ : x.derived().outerStride();
        return;
      }
    }
    owned_.resize(rows_, cols_);
    if constexpr (column) {
      owned_.map() = x.transpose();
    } else {
      owned_.map() = x;
    }
    data_ = owned_.data();
    stride_ = cols_;
  }
  template <class Derived>
  Batch(const Eigen::ArrayBase<Derived>& x) : Batch(x.matrix()) {}  // NOLINT
  Batch(const Scalar* data, Index rows, Index cols, Index stride) : data_(data), rows_(rows), cols_(cols), stride_(stride) {}
  Batch(const Scalar* data, Index rows, Index cols) : Batch(data, rows, cols, cols) {}
  Batch(const Tensor<Scalar>& x) : Batch(x.data(), x.rows(), x.cols()) {}  // NOLINT
  Batch(const Batch&) = delete;
  Batch& operator=(const Batch&) = delete;

  Index rows() const { return rows_; }
  Index cols() const { return cols_; }
  const Scalar* row(Index b) const { return data_ + b * stride_; }
  Index stride() const { return stride_; }
  auto map() const {
    return Eigen::Map<const Matrix<Scalar>, 0, Eigen::OuterStride<>>(data_, rows_, cols_, Eigen::OuterStride<>(stride_));
  }

 private:
  const Scalar* data_ = nullptr;
  Index rows_ = 0, cols_ = 0, stride_ = 0;
  Tensor<Scalar> owned_;
};

}  // namespace sae::inline SAE_ABI
