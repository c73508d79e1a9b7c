#pragma once
#include <sae/core/codes.hpp>
#include <sae/core/threads.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

namespace sae::inline SAE_ABI {

/// How well and how sparsely rows were rewritten. x: a row, x' its reconstruction, e = x - x', f its codes; means are over rows.
/// With no row every mean is NaN.
struct ReconstructionFigures {
  Index rows = 0;
  double l0 = 0;   ///< mean number of latents with f != 0
  double l1 = 0;   ///< mean sum over latents of |f|
  double mse = 0;  ///< mean |e|^2: summed over the D coordinates, not divided by D
  /// 1 - mean |e|^2 / (mean |x|^2 - |mean x|^2), over all rows whatever the batches: 1 is perfect, 0 what the mean row alone
  /// would reach, negative is worse than that. NaN where the rows do not differ (spread below 1e-12 of the mean row).
  double explained_variance = 0;
  /// mean x.x' / (|x| |x'|). A pair in which one of the two is 0 counts as 0, a pair of zeros as 1.
  double cosine = 0;
  /// mean |x'| / |x|, with |x| < 1e-4 replaced by 1. Below 1: outputs shrink. Source: SAELens evals.py.
  double l2_ratio = 0;
  /// mean |x'|^2 / mean x.x': the factor by which reconstructions are too long along their own direction; below 1 is shrinkage.
  /// Over all rows at once, where SAELens, dictionary_learning and SAEBench average the ratio of each batch: theirs then depends
  /// on the batch size. NaN where mean x.x' is 0. Source: Rajamanoharan et al. 2024, arXiv:2404.16014, eq. 10.
  double relative_reconstruction_bias = 0;
  double error_norm = 0;   ///< mean |e|, not squared (dictionary_learning `l2_loss`)
  double input_norm = 0;   ///< mean |x| (SAELens `l2_norm_in`)
  double output_norm = 0;  ///< mean |x'| (SAELens `l2_norm_out`)
  /// mean |x'| / |x| over the rows with |x| > 1e-6. Source: SAELens synthetic/evals.py.
  double shrinkage = 0;
  /// 1 - (mean |e|^2 - |mean e|^2) / (mean |x|^2 - |mean x|^2): a constant offset of the reconstructions costs nothing. NaN as
  /// above. Over all rows; dictionary_learning (`frac_variance_explained`) averages that of each batch.
  double centred_explained_variance = 0;
  /// mean of 1 - |e|^2 / |x - mean x|^2 row by row, the mean row being that of the rows added together, so that it depends on
  /// the batches: a figure of older papers (SAELens `explained_variance_legacy`, SAEBench), ruled by rows near the mean.
  double row_explained_variance = 0;
  double relative_error =
      0;                   ///< mean |e|^2 / |x|^2 (OpenAI `normalized_mean_squared_error`); infinite or NaN with a row of zeros
  double relative_l1 = 0;  ///< mean of the sum over latents of |f|, / |x| (OpenAI `normalized_L1_loss`)
  Index dead_latents = 0;  ///< latents that were 0 in every row: of these rows, so state `rows` with it
  Index dense_latents = 0;        ///< latents that were active in more than 10 % of the rows
  std::vector<double> densities;  ///< [F] share of the rows in which each latent was active
};

/// Streaming reconstruction and sparsity figures: give it batches, then ask for `figures()`.
///
/// float64 inside. The spread of x is kept as a mean row and the sum of squares about it, batch by batch and joined by Chan's
/// formula: subtracting |mean x|^2 from mean |x|^2 would lose every digit where the mean is large against the spread.
/// How the rows are cut into batches changes figures by rounding alone; threads change nothing. Memory: 2 D + F numbers.
/// Source of the update: Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance".
class ReconstructionMetrics {
 public:
  /// Width D of the rows and number of latents F.
  ReconstructionMetrics(Index width, Index latents)
      : width_(width), mean_(at(width), 0.0), error_sum_(at(width), 0.0), active_(at(latents), std::int64_t{0}) {}

  Index width() const { return width_; }
  Index latents() const { return static_cast<Index>(active_.size()); }
  Index rows() const { return rows_; }

  /// Adds rows x [B x D] (what was to be reconstructed), their reconstructions [B x D] and codes [B x F]. `counts` [B]: 0 leaves
  /// a row out; empty: all count. Errors: ShapeError. A NaN stays visible in the figures.
  template <class Scalar>
  void add(const std::type_identity_t<Batch<Scalar>>& x, const std::type_identity_t<Batch<Scalar>>& reconstruction,
           const Codes<Scalar>& codes, std::span<const std::uint8_t> counts = {}, Threads& threads = Threads::shared()) {
    if (x.cols() != width_ || reconstruction.cols() != width_ || reconstruction.rows() != x.rows())
      throw_shape("metrics: rows [", x.rows(), " x ", x.cols(), "] and reconstructions [", reconstruction.rows(), " x ",
                  reconstruction.cols(), "] must both be [B x ", width_, "]");
    if (codes.rows() != x.rows() || codes.latents() != latents())
      throw_shape("metrics: codes [", codes.rows(), " x ", codes.latents(), "] must be [", x.rows(), " x ", latents(), "]");
    if (!counts.empty() && static_cast<Index>(counts.size()) != x.rows())
      throw_shape("metrics: a mask of ", counts.size(), " rows for ", x.rows());

    std::vector<Index> chosen;
    chosen.reserve(at(x.rows()));
    for (Index b = 0; b < x.rows(); ++b)
      if (counts.empty() || counts[at(b)] != 0) chosen.push_back(b);
    const Index n = static_cast<Index>(chosen.size()), blocks = (n + block_rows - 1) / block_rows;
    if (n == 0) return;

    std::vector<RowSums> sums(at(n));
    std::vector<double> column_sums(at(blocks * width_), 0.0), error_sums(at(blocks * width_), 0.0);
    threads.for_blocks(n, block_rows, [&](Index begin, Index end, Index block) {
      double* const columns = column_sums.data() + block * width_;
      double* const errors = error_sums.data() + block * width_;
      for (Index i = begin; i < end; ++i) {
        const Scalar* const row = x.row(chosen[at(i)]);
        const Scalar* const output = reconstruction.row(chosen[at(i)]);
        sums[at(i)] = row_sums(row, output, width_);
        for (Index j = 0; j < width_; ++j) {
          const auto v = static_cast<double>(row[j]);
          columns[j] += v;
          errors[j] += v - static_cast<double>(output[j]);
        }
      }
    });
    std::vector<double> mean(at(width_), 0.0);
    for (Index block = 0; block < blocks; ++block)
      for (Index j = 0; j < width_; ++j) {
        mean[at(j)] += column_sums[at(block * width_ + j)];
        error_sum_[at(j)] += error_sums[at(block * width_ + j)];
      }
    for (double& m : mean) m /= static_cast<double>(n);

    std::vector<double> about_mean(at(n));
    threads.for_blocks(n, block_rows, [&](Index begin, Index end, Index) {
      for (Index i = begin; i < end; ++i) about_mean[at(i)] = squared_distance(x.row(chosen[at(i)]), mean.data(), width_);
    });
    double spread = 0;
    for (const double square : about_mean) spread += square;
    join_spread(n, mean, spread);
    rows_ += n;

    for (Index i = 0; i < n; ++i) {
      add_row(sums[at(i)]);
      row_explained_ += 1 - sums[at(i)].error / about_mean[at(i)];
      double absolute = 0;
      const Index b = chosen[at(i)];
      for (Index e = codes.begin(b); e < codes.end(b); ++e) {
        const auto value = static_cast<double>(codes.value(e));
        if (value == 0) continue;
        ++active_[at(codes.latent(e))];
        ++active_entries_;
        absolute += std::abs(value);
      }
      absolute_codes_ += absolute;
      relative_l1_ += absolute / std::sqrt(sums[at(i)].input);
    }
  }

  /// Takes in the rows of another one of the same widths (other rows, other threads, other machines).
  void merge(const ReconstructionMetrics& other) {
    if (other.width_ != width_ || other.latents() != latents())
      throw_shape("metrics: [", other.width_, " -> ", other.latents(), "] cannot be merged into [", width_, " -> ", latents(),
                  "]");
    if (other.rows_ == 0) return;
    join_spread(other.rows_, other.mean_, other.spread_);
    rows_ += other.rows_;
    active_entries_ += other.active_entries_;
    absolute_codes_ += other.absolute_codes_;
    squared_error_ += other.squared_error_;
    squared_output_ += other.squared_output_;
    inner_ += other.inner_;
    cosines_ += other.cosines_;
    ratios_ += other.ratios_;
    shrinkage_ += other.shrinkage_;
    shrinkage_rows_ += other.shrinkage_rows_;
    error_norms_ += other.error_norms_;
    input_norms_ += other.input_norms_;
    output_norms_ += other.output_norms_;
    row_explained_ += other.row_explained_;
    relative_errors_ += other.relative_errors_;
    relative_l1_ += other.relative_l1_;
    for (std::size_t j = 0; j < error_sum_.size(); ++j) error_sum_[j] += other.error_sum_[j];
    for (std::size_t i = 0; i < active_.size(); ++i) active_[i] += other.active_[i];
  }

  ReconstructionFigures figures() const {
    ReconstructionFigures out;
    const auto n = static_cast<double>(rows_);
    const double undefined = std::numeric_limits<double>::quiet_NaN();
    out.rows = rows_;
    out.l0 = static_cast<double>(active_entries_) / n;
    out.l1 = absolute_codes_ / n;
    out.mse = squared_error_ / n;
    double squared_mean = 0;
    for (const double m : mean_) squared_mean += m * m;
    const double variance = spread_ / n;
    out.explained_variance = variance <= 1e-24 * squared_mean ? undefined : 1 - out.mse / variance;
    out.cosine = cosines_ / n;
    out.l2_ratio = ratios_ / n;
    out.relative_reconstruction_bias = inner_ == 0 ? undefined : squared_output_ / inner_;
    out.error_norm = error_norms_ / n;
    out.input_norm = input_norms_ / n;
    out.output_norm = output_norms_ / n;
    out.shrinkage = shrinkage_ / static_cast<double>(shrinkage_rows_);
    double offset = 0;
    for (const double sum : error_sum_) offset += (sum / n) * (sum / n);
    out.centred_explained_variance = variance <= 1e-24 * squared_mean ? undefined : 1 - (out.mse - offset) / variance;
    out.row_explained_variance = row_explained_ / n;
    out.relative_error = relative_errors_ / n;
    out.relative_l1 = relative_l1_ / n;
    out.densities.reserve(active_.size());
    for (const std::int64_t count : active_) {
      out.dead_latents += count == 0;
      out.dense_latents += count * 10 > rows_;
      out.densities.push_back(static_cast<double>(count) / n);
    }
    return out;
  }

 private:
  static constexpr Index block_rows = 64;
  struct RowSums {
    double input = 0, output = 0, inner = 0, error = 0;  ///< |x|^2, |x'|^2, x.x', |e|^2
  };
  static std::size_t at(Index i) { return static_cast<std::size_t>(i); }

  // Sums run in four lanes: one order on every machine, and no chain of additions as long as the row.
  template <class Scalar>
  static RowSums row_sums(const Scalar* x, const Scalar* y, Index n) {
    constexpr Index lanes = 4;
    double input[lanes] = {}, output[lanes] = {}, inner[lanes] = {}, error[lanes] = {};
    const auto take = [&](Index j, Index l) {
      const auto a = static_cast<double>(x[j]), b = static_cast<double>(y[j]);
      input[l] += a * a;
      output[l] += b * b;
      inner[l] += a * b;
      error[l] += (a - b) * (a - b);
    };
    Index j = 0;
    for (; j + lanes <= n; j += lanes)
      for (Index l = 0; l < lanes; ++l) take(j + l, l);
    for (Index l = 0; j < n; ++j, ++l) take(j, l);
    const auto total = [](const double* s) { return (s[0] + s[2]) + (s[1] + s[3]); };
    return {total(input), total(output), total(inner), total(error)};
  }
  template <class Scalar>
  static double squared_distance(const Scalar* x, const double* mean, Index n) {
    constexpr Index lanes = 4;
    double sum[lanes] = {};
    const auto take = [&](Index j, Index l) {
      const double d = static_cast<double>(x[j]) - mean[j];
      sum[l] += d * d;
    };
    Index j = 0;
    for (; j + lanes <= n; j += lanes)
      for (Index l = 0; l < lanes; ++l) take(j + l, l);
    for (Index l = 0; j < n; ++j, ++l) take(j, l);
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
  }
  void add_row(const RowSums& row) {
    squared_error_ += row.error;
    squared_output_ += row.output;
    inner_ += row.inner;
    const double input = std::sqrt(row.input), output = std::sqrt(row.output);
    if (input == 0 && output == 0) {
      cosines_ += 1;
    } else if (!(input == 0 || output == 0)) {
      cosines_ += row.inner / (input * output);
    }
    ratios_ += output / (input < 1e-4 ? 1.0 : input);
    if (!(input <= 1e-6)) {
      shrinkage_ += output / input;
      ++shrinkage_rows_;
    }
    error_norms_ += std::sqrt(row.error);
    input_norms_ += input;
    output_norms_ += output;
    relative_errors_ += row.error / row.input;
  }
  /// Joins n rows of the given mean and sum of squares about it to the rows_ rows so far.
  ///   S = S_a + S_b + |mean_b - mean_a|^2 n_a n_b / (n_a + n_b)
  void join_spread(Index n, const std::vector<double>& mean, double spread) {
    const auto a = static_cast<double>(rows_), b = static_cast<double>(n);
    double distance = 0;
    for (std::size_t j = 0; j < mean.size(); ++j) {
      const double d = mean[j] - mean_[j];
      distance += d * d;
      mean_[j] = rows_ == 0 ? mean[j] : mean_[j] + d * (b / (a + b));
    }
    spread_ += spread + (rows_ == 0 ? 0.0 : distance * (a * b / (a + b)));
  }

  Index width_ = 0, rows_ = 0;
  std::int64_t active_entries_ = 0;
  double absolute_codes_ = 0, squared_error_ = 0, squared_output_ = 0, inner_ = 0, cosines_ = 0, ratios_ = 0;
  double shrinkage_ = 0, error_norms_ = 0, input_norms_ = 0, output_norms_ = 0;
  double row_explained_ = 0, relative_errors_ = 0, relative_l1_ = 0;
  Index shrinkage_rows_ = 0;       ///< rows with |x| > 1e-6
  std::vector<double> mean_;       ///< mean row
  std::vector<double> error_sum_;  ///< sum over rows of e
  double spread_ = 0;              ///< sum over rows of |x - mean row|^2
  std::vector<std::int64_t> active_;
};

}  // namespace sae::inline SAE_ABI
