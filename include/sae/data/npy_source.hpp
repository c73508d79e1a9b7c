#pragma once
#include <sae/data/indexed_source.hpp>
#include <sae/files/npy.hpp>

#include <utility>

namespace sae::inline SAE_ABI {

/// A row of a file holds NaN or an infinity: nothing can be trained or measured on it. The message names file and row.
struct NonFiniteRow : FileError {
  using FileError::FileError;
};

/// Rows of .npy files, each checked as it is read. Rows are counted over all files; a message counts within the file.
class FiniteNpyRows {
 public:
  explicit FiniteNpyRows(NpyFolder folder) : folder_(std::move(folder)) {}
  Index rows() const { return folder_.rows(); }
  Index width() const { return folder_.width(); }
  const NpyFolder& folder() const { return folder_; }

  /// \throws NonFiniteRow
  template <class Scalar>
  void read_rows(Index first, Index count, Scalar* out) const {
    folder_.read_rows(first, count, out, width());
    for (Index r = 0; r < count; ++r) check(first + r, out + r * width());
  }
  template <class Scalar>
  void read_row(Index row, Scalar* out) const {
    read_rows(row, 1, out);
  }

 private:
  template <class Scalar>
  void check(Index row, const Scalar* numbers) const {
    Scalar sum = 0;  // x - x is 0 for a finite x and NaN for NaN and infinity
    for (Index j = 0; j < width(); ++j) sum += numbers[j] - numbers[j];
    if (sum == Scalar(0)) return;
    for (const NpyRows& part : folder_.parts()) {
      if (row < part.rows())
        throw NonFiniteRow(detail::concat(part.name(), ": row ", row, " holds a number that is not finite (NaN or infinity)"));
      row -= part.rows();
    }
  }
  NpyFolder folder_;
};

/// A .npy file [N, D] or a folder of them as a source, mapped and not loaded, so that it may be larger than memory:
///   sae::NpySource<float> source(sae::NpyFolder("rows"), {.seed = 1});
template <class Scalar>
class NpySource : public IndexedSource<FiniteNpyRows, Scalar> {
 public:
  explicit NpySource(NpyFolder folder, IndexedOptions options = {})
      : IndexedSource<FiniteNpyRows, Scalar>(FiniteNpyRows(std::move(folder)), options) {}
};

}  // namespace sae::inline SAE_ABI
