#pragma once
#include <sae/core/random.hpp>
#include <sae/data/source.hpp>

#include <algorithm>
#include <utility>

namespace sae::inline SAE_ABI {

/// How a source walks over rows that can be read by number.
struct IndexedOptions {
  bool shuffle = true;     ///< a new random order every epoch; false: as they stand
  std::uint64_t seed = 0;  ///< of the order
  Index first = 0;         ///< first row that is used
  Index count = -1;        ///< rows that are used; -1: all from `first`
  Index epochs = 0;        ///< times each row is given; 0: without end
};

/// A source over rows that can be read by number: `rows()`, `width()`, `read_row(i, Scalar* out)`. The random order of an epoch
/// is a permutation that is computed, not stored, so that its size does not depend on the number of rows.
template <class Rows, class Scalar = float>
class IndexedSource {
 public:
  IndexedSource(Rows rows, IndexedOptions options = {}) : rows_(std::move(rows)), options_(options) {
    const Index all = rows_.rows();
    if (options_.first < 0 || options_.first > all)
      throw_value("rows: the first row ", options_.first, " is not in [0, ", all, "] (the number of rows)");
    if (options_.count < 0) options_.count = all - options_.first;
    if (options_.count == 0 || options_.count > all - options_.first)
      throw_value("rows: ", options_.count, " rows from row ", options_.first, " on are not in the data, which has ", all,
                  " rows");
  }
  Index width() const { return rows_.width(); }
  Index rows() const { return options_.count; }  ///< of one epoch
  const Rows& data() const { return rows_; }
  bool endless() const { return options_.epochs == 0; }

  Index next(Tensor<Scalar>& batch) {
    Index filled = 0;
    while (filled < batch.rows()) {
      if (position_ == options_.count) {
        if (options_.epochs > 0 && epoch_ + 1 >= options_.epochs) break;
        position_ = 0;
        ++epoch_;
      }
      const Permutation order(static_cast<std::uint64_t>(options_.count), options_.seed, static_cast<std::uint64_t>(epoch_));
      for (; filled < batch.rows() && position_ < options_.count; ++filled, ++position_) {
        const Index i = options_.shuffle ? static_cast<Index>(order(static_cast<std::uint64_t>(position_))) : position_;
        rows_.read_row(options_.first + i, batch.row(filled));
      }
    }
    return filled;
  }
  SourceState state() const { return {{static_cast<std::uint64_t>(epoch_), static_cast<std::uint64_t>(position_)}, {}, {}}; }
  void restore(const SourceState& state) {
    if (state.counters.size() != 2 || state.counters[0] >> 62 != 0 ||
        state.counters[1] > static_cast<std::uint64_t>(options_.count))
      throw_value("the saved position does not belong to a source of ", options_.count, " rows");
    epoch_ = static_cast<Index>(state.counters[0]);
    position_ = static_cast<Index>(state.counters[1]);
  }

 private:
  Rows rows_;
  IndexedOptions options_;
  Index epoch_ = 0, position_ = 0;
};

/// Rows of a matrix in memory.
template <class Scalar>
class MatrixRows {
 public:
  explicit MatrixRows(Matrix<Scalar> rows) : rows_(std::move(rows)) {}
  Index rows() const { return rows_.rows(); }
  Index width() const { return rows_.cols(); }
  void read_row(Index i, Scalar* out) const { std::copy_n(rows_.data() + i * rows_.cols(), rows_.cols(), out); }

 private:
  Matrix<Scalar> rows_;
};

/// A matrix [N x D] as a source: sae::MatrixSource<float> source(rows);
template <class Scalar>
class MatrixSource : public IndexedSource<MatrixRows<Scalar>, Scalar> {
 public:
  explicit MatrixSource(Matrix<Scalar> rows, IndexedOptions options = {})
      : IndexedSource<MatrixRows<Scalar>, Scalar>(MatrixRows<Scalar>(std::move(rows)), options) {}
};
template <class Derived>
MatrixSource(const Eigen::MatrixBase<Derived>&) -> MatrixSource<typename Derived::Scalar>;
template <class Derived>
MatrixSource(const Eigen::MatrixBase<Derived>&, IndexedOptions) -> MatrixSource<typename Derived::Scalar>;

}  // namespace sae::inline SAE_ABI
