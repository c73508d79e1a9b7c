#pragma once
#include <sae/core/threads.hpp>
#include <sae/core/types.hpp>

#include <cmath>
#include <string_view>

namespace sae::inline SAE_ABI {

/// What a model does to each row before it reads it, and undoes in its reconstruction. It needs the row's own numbers and so stays in
/// the model: no weights can express it.
///
///   constant_norm   u = x / m,                  x' = m u',            m = |x| / sqrt(D)
///   layer_norm      u = (x - mu) / (s + 1e-5),  x' = s u' + mu,       mu the mean, s the standard deviation with D - 1 (D >= 2)
///
/// The 1e-5 is not undone. Where m or s is 0, u = 0 and x' = x, whatever the codes are. b_dec, codes and directions are in units of u.
/// mu, m and s are summed in float64, in order.
/// Source: SAELens saes/sae.py (`constant_norm_rescale`, `layer_norm`); openai/sparse_autoencoder model.py (LN).
enum class InputNormalisation { none, constant_norm, layer_norm };

/// Where the error of a model with an InputNormalisation is measured, with its spread m or s as above:
///   raw         |x'_b - x_b|^2 = spread_b^2 |u'_b - (x_b - mu_b) / spread_b|^2: long rows count more (SAELens)
///   normalised  |u'_b - u_b|^2: all rows count alike (OpenAI); rows with a spread of 0 do not count in either
enum class LossSpace { raw, normalised };

namespace detail {

inline constexpr double layer_norm_epsilon = 1e-5;

inline std::string_view to_string(InputNormalisation kind) {
  constexpr std::string_view names[] = {"none", "constant_norm", "layer_norm"};
  return names[static_cast<int>(kind)];
}

/// u = (x - offset) / divisor and x' = spread u' + offset of every row.
template <class Scalar>
struct RowScales {
  Buffer<Scalar> offset, spread, divisor;  ///< [B]

  template <class View>
  void measure(InputNormalisation kind, const View& x, Threads& threads) {
    const auto rows = static_cast<std::size_t>(x.rows);
    offset.resize(rows);
    spread.resize(rows);
    divisor.resize(rows);
    const auto width = static_cast<double>(x.cols);
    threads.for_blocks(x.rows, 64, [&](Index begin, Index end, Index) {
      for (Index b = begin; b < end; ++b) {
        const Scalar* const row = x.row(b);
        double mean = 0, squares = 0;
        if (kind == InputNormalisation::layer_norm) {
          for (Index j = 0; j < x.cols; ++j) mean += static_cast<double>(row[j]);
          mean /= width;
        }
        for (Index j = 0; j < x.cols; ++j) {
          const double d = static_cast<double>(row[j]) - mean;
          squares += d * d;
        }
        const bool centred = kind == InputNormalisation::layer_norm;
        const double size = std::sqrt(squares / (centred ? width - 1 : width));
        const auto at = static_cast<std::size_t>(b);
        offset[at] = static_cast<Scalar>(mean);
        spread[at] = static_cast<Scalar>(size);
        divisor[at] = static_cast<Scalar>(centred ? size + layer_norm_epsilon : size);
      }
    });
  }
  Scalar normalised(Index row, Scalar x) const {
    const auto at = static_cast<std::size_t>(row);
    return spread[at] > Scalar(0) ? (x - offset[at]) / divisor[at] : Scalar(0);
  }
  /// out <- spread out + offset, row by row.
  void undo(Tensor<Scalar>& out, Threads& threads) const {
    threads.for_blocks(out.rows(), 64, [&](Index begin, Index end, Index) {
      for (Index b = begin; b < end; ++b) {
        const auto at = static_cast<std::size_t>(b);
        for (Index j = 0; j < out.cols(); ++j) out.row(b)[j] = spread[at] * out.row(b)[j] + offset[at];
      }
    });
  }
};

/// What a model does to its rows; a model that says nothing does nothing.
template <class Model>
InputNormalisation input_normalisation_of(const Model& model) {
  if constexpr (requires { model.input_normalisation(); })
    return model.input_normalisation();
  else
    return InputNormalisation::none;
}

}  // namespace detail

}  // namespace sae::inline SAE_ABI
