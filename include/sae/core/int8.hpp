#pragma once
#include <sae/core/error.hpp>
#include <sae/core/types.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace sae::inline SAE_ABI {

namespace detail {
/// What points to the rows of a Tensor<std::int8_t>, as a `const float*` does to those of a Tensor<float>. It goes on by whole rows.
struct Int8Rows {
  const std::int8_t* codes = nullptr;
  const float* scales = nullptr;  ///< of each row from here on
  Index width = 0;

  Int8Rows operator+(Index numbers) const { return {codes + numbers, width == 0 ? scales : scales + numbers / width, width}; }
  float operator[](Index number) const { return scales[number / width] * static_cast<float>(codes[number]); }
  operator const void*() const { return codes; }  // NOLINT: as any pointer
};
}  // namespace detail

/// Weights in 8 bits, to compute with: number j of row i is scale[i] code[i, j], in float32, codes in [-127, 127]. A quarter of float32's
/// memory, and a number for each row.
template <>
class Tensor<std::int8_t> {
 public:
  Tensor() = default;
  Tensor(Index rows, Index cols) { resize(rows, cols); }

  /// Sets the shape; all numbers become 0.
  void resize(Index rows, Index cols) {
    rows_ = rows;
    cols_ = cols;
    codes_.assign(static_cast<std::size_t>(rows * cols), 0);
    scales_.assign(static_cast<std::size_t>(rows), 0.0F);
  }
  /// Row i <- the n = cols() numbers w, rounded to nearest: scale = max |w_j| / 127. The error of a number is at most half a scale.
  /// \throws ValueError  a number is not finite.
  void set_row(Index i, const float* w) {
    float largest = 0;
    for (Index j = 0; j < cols_; ++j) {
      if (!std::isfinite(w[j])) throw_value("weights of 8 bits: number ", j, " of row ", i, " is not finite");
      largest = std::max(largest, std::abs(w[j]));
    }
    // Below that the quotients would not be good to half a code.
    float scale = largest < 0x1p-110F ? 0.0F : largest / 127;
    if (!std::isfinite(127 * scale)) scale = std::nextafter(scale, 0.0F);
    scales_[static_cast<std::size_t>(i)] = scale;
    std::int8_t* const code = codes_.data() + i * cols_;
    for (Index j = 0; j < cols_; ++j)
      code[j] = scale == 0 ? std::int8_t{0} : static_cast<std::int8_t>(std::lround(w[j] / scale));
  }

  Index rows() const { return rows_; }
  Index cols() const { return cols_; }
  Index size() const { return rows_ * cols_; }
  detail::Int8Rows data() const { return {codes_.data(), scales_.data(), cols_}; }
  detail::Int8Rows row(Index i) const { return data() + i * cols_; }
  float operator[](Index number) const { return data()[number]; }
  bool operator==(const Tensor&) const = default;

 private:
  Index rows_ = 0, cols_ = 0;
  Buffer<std::int8_t> codes_;
  Buffer<float> scales_;
};

}  // namespace sae::inline SAE_ABI
