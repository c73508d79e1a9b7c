#pragma once
#include <sae/core/mapped.hpp>
#include <sae/files/array_view.hpp>
#include <sae/kernels/half_kernels.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace sae::inline SAE_ABI::detail {

/// Refuses a number of a tensor that is NaN or infinite.
/// \param position  where it stands in the file, "[3, 5]"
[[noreturn]] inline void throw_not_finite(double number, const std::string& position, std::string_view name,
                                          std::string_view file) {
  throw_file(file, ": tensor ", name, ": the number at ", position, " is ",
             std::isnan(number) ? "NaN"
             : number > 0       ? "infinite"
                                : "minus infinite",
             "; weights must be finite");
}

/// Number j of each row i of a matrix in a file, times `scale`, in float32, of any floating kind and in either order. NaN and infinities are
/// refused where a row is read first.
class ArrayRows final : public RowReader {
 public:
  /// \param array  [rows x cols], or its transpose where `transposed`
  /// \param keep   holds the bytes
  ArrayRows(const ArrayView& array, bool transposed, double scale, bool check_finite, std::shared_ptr<const void> keep,
            std::string file, std::string name)
      : RowReader(array.shape[transposed ? 1 : 0], array.shape[transposed ? 0 : 1]),
        data_(array.data),
        dtype_(array.dtype),
        down_(array.stride(transposed ? 1 : 0)),
        right_(array.stride(transposed ? 0 : 1)),
        transposed_(transposed),
        scale_(scale),
        keep_(std::move(keep)),
        file_(std::move(file)),
        name_(std::move(name)),
        checked_(check_finite ? static_cast<std::size_t>(rows()) : 0) {}

  bool by_columns() const override { return down_ < right_; }
  /// \throws FileError  a number is not finite.
  void read(Index first, Index count, float* out) const override {
    if (by_columns()) {
      read_columns(first, count, out);
    } else {
      for (Index r = 0; r < count; ++r) read_line(at(first + r, 0), cols(), right_, out + r * cols());
    }
    if (scale_ != 1)
      for (Index n = 0; n < count * cols(); ++n) out[n] = static_cast<float>(static_cast<double>(out[n]) * scale_);
    if (!checked_.empty()) check(first, count, out);
  }

 private:
  const std::byte* at(Index row, Index col) const { return data_ + (row * down_ + col * right_) * item_size(dtype_); }
  void read_line(const std::byte* from, Index n, Index stride, float* out) const {
    const bool aligned = reinterpret_cast<std::uintptr_t>(from) % 2 == 0;
    if (stride == 1 && aligned && dtype_ == Dtype::bfloat16) {
      kernels::widen(reinterpret_cast<const bfloat16*>(from), out, n);
    } else if (stride == 1 && aligned && dtype_ == Dtype::float16) {
      kernels::widen(reinterpret_cast<const float16*>(from), out, n);
    } else {
      convert_strided(dtype_, from, n, stride, out);
    }
  }
  /// Numbers of a column lie together: some columns of some rows at a time, which stay in the first cache.
  void read_columns(Index first, Index count, float* out) const {
    constexpr Index tile_rows = 48, tile_cols = 16;
    std::array<float, static_cast<std::size_t>(tile_rows * tile_cols)> tile;
    for (Index r = 0; r < count; r += tile_rows) {
      const Index some = std::min(tile_rows, count - r);
      for (Index j = 0; j < cols(); j += tile_cols) {
        const Index n = std::min(tile_cols, cols() - j);
        for (Index c = 0; c < n; ++c) read_line(at(first + r, j + c), some, down_, tile.data() + c * tile_rows);
        for (Index i = 0; i < some; ++i)
          for (Index c = 0; c < n; ++c) out[(r + i) * cols() + j + c] = tile[static_cast<std::size_t>(c * tile_rows + i)];
      }
    }
  }
  void check(Index first, Index count, const float* rows) const {
    for (Index r = 0; r < count; ++r, rows += cols()) {
      std::atomic<bool>& checked = checked_[static_cast<std::size_t>(first + r)];
      if (checked.load(std::memory_order_relaxed)) continue;
      const float* const bad = std::find_if(rows, rows + cols(), [](float x) { return !std::isfinite(x); });
      if (bad != rows + cols()) {
        const Index row = first + r, col = bad - rows;
        throw_not_finite(static_cast<double>(*bad),
                         transposed_ ? concat("[", col, ", ", row, "]") : concat("[", row, ", ", col, "]"), name_, file_);
      }
      checked.store(true, std::memory_order_relaxed);
    }
  }

  const std::byte* data_;
  Dtype dtype_;
  Index down_, right_;  ///< from row to row of ours, from number to number of one, in numbers
  bool transposed_;
  double scale_;
  std::shared_ptr<const void> keep_;
  std::string file_, name_;
  mutable std::vector<std::atomic<bool>> checked_;  ///< of each row; empty: none is asked for
};

}  // namespace sae::inline SAE_ABI::detail
