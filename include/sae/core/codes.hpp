#pragma once
#include <sae/core/types.hpp>

#include <Eigen/SparseCore>
#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

namespace sae::inline SAE_ABI {

/// Sparse codes of a batch: for each row its active latents, ascending, and their values.
///
/// The layout is that of a compressed row-major sparse matrix [rows x latents] with 32-bit positions, so that `sparse()`
/// views it as an Eigen matrix without a copy. An entry may hold the value 0 (a selected latent that relu zeroed).
template <class Scalar>
class Codes {
 public:
  using Position = int;  ///< Eigen's default StorageIndex; at most 2^31 - 1 entries a batch
  using Sparse = Eigen::SparseMatrix<Scalar, Eigen::RowMajor>;

  Codes() = default;
  explicit Codes(Index latents) : latents_(latents) {}

  // What was moved from has no offsets, and no rows.
  Index rows() const { return offsets_.empty() ? 0 : static_cast<Index>(offsets_.size()) - 1; }
  Index latents() const { return latents_; }                             ///< F
  Index size() const { return offsets_.empty() ? 0 : offsets_.back(); }  ///< entries in all
  Index begin(Index row) const { return offsets_[static_cast<std::size_t>(row)]; }
  Index end(Index row) const { return offsets_[static_cast<std::size_t>(row) + 1]; }
  Index latent(Index entry) const { return indices_[static_cast<std::size_t>(entry)]; }
  Scalar value(Index entry) const { return values_[static_cast<std::size_t>(entry)]; }

  std::span<const Position> offsets() const { return offsets_; }
  std::span<const Position> indices() const { return indices_; }
  std::span<const Scalar> values() const { return values_; }
  std::span<Scalar> values() { return values_; }

  std::span<const Position> row_latents(Index row) const {
    return indices().subspan(at(begin(row)), at(end(row) - begin(row)));
  }
  std::span<const Scalar> row_values(Index row) const { return values().subspan(at(begin(row)), at(end(row) - begin(row))); }
  /// Value of one latent in one row, 0 where it is not active. Cost: log(active latents of the row).
  Scalar coefficient(Index row, Index latent) const {
    const auto active = row_latents(row);
    const auto found = std::lower_bound(active.begin(), active.end(), static_cast<Position>(latent));
    return found != active.end() && *found == latent ? row_values(row)[static_cast<std::size_t>(found - active.begin())]
                                                     : Scalar(0);
  }

  /// Empties the codes; keeps the storage.
  void reset(Index latents) {
    latents_ = latents;
    offsets_.assign(1, 0);
    indices_.clear();
    values_.clear();
  }
  /// Adds an entry to the row under construction; latents must ascend within it.
  void push(Index latent, Scalar value) {
    indices_.push_back(static_cast<Position>(latent));
    values_.push_back(value);
  }
  void finish_row() {
    if (indices_.size() > static_cast<std::size_t>((std::numeric_limits<Position>::max)()))
      throw_value("Codes: more than 2^31 - 1 active entries in one batch; use smaller batches");
    offsets_.push_back(static_cast<Position>(indices_.size()));
  }
  /// Puts the rows of others behind its own.
  void append(const Codes& more) {
    const std::size_t before = indices_.size();
    if (before + more.indices_.size() > static_cast<std::size_t>((std::numeric_limits<Position>::max)()))
      throw_value("Codes: more than 2^31 - 1 active entries in one batch; use smaller batches");
    indices_.insert(indices_.end(), more.indices_.begin(), more.indices_.end());
    values_.insert(values_.end(), more.values_.begin(), more.values_.end());
    for (Index b = 0; b < more.rows(); ++b) offsets_.push_back(static_cast<Position>(before + at(more.end(b))));
  }
  /// Sets the shape at once: `offsets` [rows + 1]; latents and values are then filled through `mutable_*`.
  void resize(Index latents, std::span<const Position> offsets) {
    latents_ = latents;
    offsets_.assign(offsets.begin(), offsets.end());
    indices_.resize(at(offsets_.back()));
    values_.resize(at(offsets_.back()));
  }
  Position* mutable_indices() { return indices_.data(); }
  Scalar* mutable_values() { return values_.data(); }

  /// View as Eigen::SparseMatrix<Scalar, RowMajor> [rows x latents], no copy; valid while the codes live.
  Eigen::Map<const Sparse> sparse() const {
    return {rows(), latents_, size(), offsets_.data(), indices_.data(), values_.data()};
  }
  /// Dense copy [rows x latents].
  Matrix<Scalar> dense() const {
    Matrix<Scalar> out = Matrix<Scalar>::Zero(rows(), latents_);
    for (Index b = 0; b < rows(); ++b)
      for (Index e = begin(b); e < end(b); ++e) out(b, latent(e)) = value(e);
    return out;
  }
  /// The entries of a dense matrix [rows x latents] that are not 0 (a NaN is one).
  static Codes from_dense(const Batch<Scalar>& dense) {
    Codes out(dense.cols());
    for (Index b = 0; b < dense.rows(); ++b) {
      for (Index i = 0; i < dense.cols(); ++i)
        if (dense.row(b)[i] != Scalar(0)) out.push(i, dense.row(b)[i]);
      out.finish_row();
    }
    return out;
  }
  bool operator==(const Codes&) const = default;

 private:
  static std::size_t at(Index i) { return static_cast<std::size_t>(i); }

  Index latents_ = 0;
  Buffer<Position> offsets_ = Buffer<Position>(1, 0);
  Buffer<Position> indices_;
  Buffer<Scalar> values_;
};

}  // namespace sae::inline SAE_ABI
