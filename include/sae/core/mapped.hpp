#pragma once
#include <sae/core/error.hpp>
#include <sae/core/types.hpp>

#include <memory>
#include <utility>

namespace sae::inline SAE_ABI {

/// Rows of float32 [rows x cols] that lie elsewhere, in a mapped file for one, in whatever form: they are read when they are used.
class RowReader {
 public:
  RowReader(Index rows, Index cols) : rows_(rows), cols_(cols) {}
  RowReader(const RowReader&) = delete;
  RowReader& operator=(const RowReader&) = delete;
  virtual ~RowReader() = default;

  Index rows() const { return rows_; }
  Index cols() const { return cols_; }
  /// out [count x cols] = the rows first, first + 1, ...; may be called from several threads at once.
  virtual void read(Index first, Index count, float* out) const = 0;
  /// Whether numbers of one column, and not of one row, lie side by side: one row then costs about as much as sixteen.
  virtual bool by_columns() const { return false; }

 private:
  Index rows_, cols_;
};

/// What a model stores its weights as where they stay outside of it: SparseAutoencoder<D, F, JumpReLU, float, Mapped>.
struct Mapped {};

namespace detail {
/// What points to the rows of a Tensor<Mapped>, as a `const float*` does to those of a Tensor<float>. It goes on by whole rows.
struct MappedRows {
  const RowReader* reader = nullptr;
  Index first = 0;

  MappedRows operator+(Index numbers) const { return {reader, numbers == 0 ? first : first + numbers / reader->cols()}; }
  operator const void*() const { return reader; }  // NOLINT: as any pointer
};
}  // namespace detail

/// Weights that are read where they lie, to compute with; copies share them. Empty: [0 x 0].
template <>
class Tensor<Mapped> {
 public:
  Tensor() = default;
  explicit Tensor(std::shared_ptr<const RowReader> reader) : reader_(std::move(reader)) {}

  Index rows() const { return reader_ == nullptr ? 0 : reader_->rows(); }
  Index cols() const { return reader_ == nullptr ? 0 : reader_->cols(); }
  Index size() const { return rows() * cols(); }
  bool by_columns() const { return reader_ != nullptr && reader_->by_columns(); }
  detail::MappedRows data() const { return {reader_.get(), 0}; }
  detail::MappedRows row(Index i) const { return {reader_.get(), i}; }
  /// out [count x cols] = the rows first, first + 1, ...
  void read(Index first, Index count, float* out) const { reader_->read(first, count, out); }
  bool operator==(const Tensor&) const = default;

 private:
  std::shared_ptr<const RowReader> reader_;
};

namespace detail {
/// Whether single rows cost far more than many at a time.
template <class Stored>
bool by_columns(const Tensor<Stored>& w) {
  if constexpr (std::is_same_v<Stored, Mapped>) return w.by_columns();
  return false;
}
}  // namespace detail

}  // namespace sae::inline SAE_ABI
