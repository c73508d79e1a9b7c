#pragma once
#include <sae/models/forward.hpp>

#include <cmath>
#include <numeric>
#include <string_view>
#include <vector>

namespace sae::inline SAE_ABI {

/// What the squared error of a batch is divided by.
enum class ErrorNormaliser {
  rows,             ///< B: the mean over rows of the sum over D (SAELens, dictionary_learning)
  target_variance,  ///< sum_b |y_b - mean y|^2: the fraction of variance unexplained (sparsify)
  row_norms,        ///< B |y_b|^2, each row by its own norm (OpenAI's normalised MSE); rows of norm 0 do not count
};

namespace detail {

inline std::string_view name_of(ErrorNormaliser normaliser) {
  constexpr std::string_view names[] = {"rows", "target_variance", "row_norms"};
  return names[static_cast<int>(normaliser)];
}

/// mean_b |y_b - mean y|^2 (sum over D) in double. \param mean  takes mean y
template <class Scalar>
double row_variance(const RowsView<Scalar>& y, std::vector<double>& mean) {
  mean.assign(static_cast<std::size_t>(y.cols), 0.0);
  for (Index b = 0; b < y.rows; ++b)
    for (Index j = 0; j < y.cols; ++j) mean[static_cast<std::size_t>(j)] += static_cast<double>(y.row(b)[j]);
  for (double& m : mean) m /= static_cast<double>(y.rows);
  double sum = 0;
  for (Index b = 0; b < y.rows; ++b)
    for (Index j = 0; j < y.cols; ++j) {
      const double d = static_cast<double>(y.row(b)[j]) - mean[static_cast<std::size_t>(j)];
      sum += d * d;
    }
  return sum / static_cast<double>(y.rows);
}

/// What the squared error of each row is multiplied by in the loss: row weight / normaliser [B].
template <class Step>
void error_factors(const Step& step, ErrorNormaliser normaliser, std::vector<double>& out) {
  const auto rows = static_cast<double>(step.rows());
  double all = 1 / rows;
  if (normaliser == ErrorNormaliser::target_variance) {
    const double variance = row_variance(step.measured_target, out);
    all = variance > 0 ? 1 / (rows * variance) : 0.0;
  }
  out.assign(static_cast<std::size_t>(step.rows()), all);
  for (std::size_t b = 0; b < out.size(); ++b) {
    if (!step.row_weight.empty()) out[b] *= static_cast<double>(step.row_weight[b]);
    if (normaliser != ErrorNormaliser::row_norms) continue;
    const auto norm =
        static_cast<double>(kernels::squared_norm(step.measured_target.row(static_cast<Index>(b)), step.target.cols));
    out[b] = norm > 0 ? out[b] / norm : 0.0;
  }
}

/// Multiplies row b by row_weight[b], or by its square root.
template <class Step>
void weigh_rows(const Step& step, Tensor<typename Step::Scalar>& rows, bool by_root = false) {
  if (step.row_weight.empty()) return;
  for (Index b = 0; b < rows.rows(); ++b) {
    const auto weight = step.row_weight[static_cast<std::size_t>(b)];
    kernels::scale(rows.row(b), by_root ? std::sqrt(weight) : weight, rows.cols());
  }
}
/// mean_b w_b |e_b|^2 of errors e [B x D_out], the rows in order.
template <class Step>
double mean_square_error(const Step& step, const Tensor<typename Step::Scalar>& error, std::vector<double>& row_loss,
                         Threads& threads) {
  row_loss.resize(static_cast<std::size_t>(error.rows()));
  threads.for_blocks(error.rows(), 64, [&](Index begin, Index end, Index) {
    for (Index b = begin; b < end; ++b) {
      const auto at = static_cast<std::size_t>(b);
      row_loss[at] = static_cast<double>(kernels::squared_norm(error.row(b), error.cols()));
      if (!step.row_weight.empty()) row_loss[at] *= static_cast<double>(step.row_weight[at]);
    }
  });
  double sum = 0;
  for (const double loss : row_loss) sum += loss;
  return sum / static_cast<double>(error.rows());
}

/// residual = x' - y and row_loss = weight |x'_b - y_b|^2 of the whole reconstruction, which stands in step.residual.
template <class Step>
void finish_residual(Step& step, Threads& threads) {
  const Index width = step.output_width();
  step.row_loss.resize(static_cast<std::size_t>(step.rows()));
  threads.for_blocks(step.rows(), 64, [&](Index begin, Index end, Index) {
    for (Index b = begin; b < end; ++b) {
      auto* const residual = step.residual.row(b);
      const auto* const target = step.target.row(b);
      for (Index j = 0; j < width; ++j) residual[j] -= target[j];
      const auto row = static_cast<std::size_t>(b);
      step.row_loss[row] = static_cast<double>(kernels::squared_norm(residual, width));
      if (!step.row_weight.empty()) step.row_loss[row] *= static_cast<double>(step.row_weight[row]);
    }
  });
}

}  // namespace detail

/// The reconstruction error: what an objective trains where it holds no other element that `reconstructs`.
///
///   L = scale sum_b w_b |x'_b - y_b|^2 / normaliser          |.|^2 sums over D; w_b = 1 unless the model weighs its rows
///   dL/dx'_b = 2 scale w_b (x'_b - y_b) / normaliser
///
/// y is the target: x itself in an autoencoder. The normaliser is held constant. Cost: one sparse decode.
/// Source: sae_lens saes/sae.py (rows); sparsify sparse_coder.py (target_variance); openai loss.py (row_norms).
struct SquaredError {
  double scale = 1;  ///< > 0
  ErrorNormaliser normaliser = ErrorNormaliser::rows;

  static constexpr std::string_view name = "squared_error";
  static constexpr bool reconstructs = true;
  template <class Visitor>
  void visit_settings(Visitor&& visitor) const {
    visitor("scale", scale);
    visitor("normaliser", detail::name_of(normaliser));
  }
  void check(Index, Index) const { require_positive("SquaredError: scale", scale); }
  bool needs_decoder_norms() const { return false; }

  template <class Step>
  double reconstruct(Step& step, Threads& threads) const {
    using Scalar = typename Step::Scalar;
    detail::load_decoder_bias(*step.decoder_bias, step.skip, step.raw, step.rows(), step.residual, threads);
    detail::add_decoded(step.main.entries.codes, *step.decoder, step.residual, step.scratch, threads);
    detail::finish_residual(step, threads);
    const Index width = step.output_width();
    if (normaliser == ErrorNormaliser::rows && step.row_weight.empty()) {
      const auto factor = static_cast<Scalar>(2 * scale / static_cast<double>(step.rows()));
      threads.for_blocks(step.rows(), 64, [&](Index begin, Index end, Index) {
        for (Index b = begin; b < end; ++b)
          for (Index j = 0; j < width; ++j) step.cotangent.row(b)[j] = factor * step.residual.row(b)[j];
      });
      double sum = 0;
      for (const double loss : step.row_loss) sum += loss;
      return scale * (sum / static_cast<double>(step.rows()));
    }
    std::vector<double>& factors = step.row_factors;
    detail::error_factors(step, normaliser, factors);
    threads.for_blocks(step.rows(), 64, [&](Index begin, Index end, Index) {
      for (Index b = begin; b < end; ++b) {
        double& factor = factors[static_cast<std::size_t>(b)];
        const auto slope = static_cast<Scalar>(2 * scale * factor);
        for (Index j = 0; j < width; ++j) step.cotangent.row(b)[j] = slope * step.residual.row(b)[j];
        factor *= static_cast<double>(kernels::squared_norm(step.residual.row(b), width));
      }
    });
    return scale * std::accumulate(factors.begin(), factors.end(), 0.0);
  }
};

}  // namespace sae::inline SAE_ABI
