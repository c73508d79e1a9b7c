#pragma once
#include <sae/data/source.hpp>
#include <sae/metrics/dictionary.hpp>
#include <sae/metrics/reconstruction.hpp>
#include <sae/metrics/row_filter.hpp>
#include <sae/models/sparse_autoencoder.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

namespace sae::inline SAE_ABI {

struct EvaluationOptions {
  /// Rows with a norm above `max_norm` medians (RowNormFilter) are left out of the figures and measured in `all_rows`; 0: none
  /// is left out.
  double max_norm = 0;
  Index rows = -1;  ///< rows that are measured, before any is left out; -1: all (of a source: until it is exhausted)
  /// Rows at a time, >= 1. Figures change by rounding alone, unless an activation selects over a whole batch. To a TemporalSae what is read
  /// at a time is one sequence: of a matrix `block` rows, of a source what its `next` gives when asked for that many.
  Index block = 1024;
};

/// What `evaluate` finds: the figures of the rows that were kept.
struct EvaluationReport : ReconstructionFigures {
  Index rows_dropped = 0;                                       ///< by `max_norm`
  double norm_limit = std::numeric_limits<double>::infinity();  ///< largest norm that was kept
  std::optional<ReconstructionFigures> all_rows;                ///< figures with no row left out, where `max_norm` was given
  std::vector<double> encoder_decoder_cosines;                  ///< [F] cos(W_enc[i], W_dec[i]); of a transcoder empty
  double median_encoder_decoder_cosine = 0;                     ///< of a transcoder NaN
};

namespace detail {

/// Encodes, decodes and measures blocks of rows.
template <class Model>
class Evaluation {
 public:
  using Scalar = typename Model::Scalar;
  /// A transcoder: what it is measured against is not what it reads.
  static constexpr bool predicts = requires { typename Model::Targets; };
  static Index output_width(const Model& model) {
    if constexpr (predicts)
      return model.d_out();
    else
      return model.d_in();
  }

  Evaluation(const Model& model, const EvaluationOptions& options, Threads& threads)
      : model_(model),
        options_(options),
        threads_(threads),
        filter_(options.max_norm),
        kept_(output_width(model), model.latents()),
        dropped_(output_width(model), model.latents()) {
    workspace_.keep_weights();
    if (options.block < 1) throw_value("evaluate: block = ", options.block, " is below 1 row");
    if (options.rows < -1 || options.rows == 0)
      throw_value("evaluate: rows = ", options.rows, " is neither positive nor -1 (all rows)");
  }
  RowNormFilter& filter() { return filter_; }
  /// Rows that are still to be measured.
  Index left() const {
    const Index all = (std::numeric_limits<Index>::max)();
    return (options_.rows < 0 ? all : options_.rows) - seen_;
  }

  /// \param targets  [rows x D_out]: of an autoencoder the rows themselves
  void measure(const Scalar* data, Index stride, const Scalar* targets, Index target_stride, Index rows) {
    counts_.assign(static_cast<std::size_t>(rows), 1);
    norms_.resize(counts_.size());
    threads_.for_blocks(rows, 64, [&](Index begin, Index end, Index) {
      for (Index b = begin; b < end; ++b) norms_[static_cast<std::size_t>(b)] = row_norm(data + b * stride, model_.d_in());
    });
    Index out = 0;
    for (Index b = 0; b < rows; ++b) {
      const double norm = norms_[static_cast<std::size_t>(b)];
      const bool finite =
          std::isfinite(norm) && (!predicts || std::isfinite(row_norm(targets + b * target_stride, output_width(model_))));
      if (!finite)
        throw_value("evaluate: row ", seen_ + b, " holds a number that is not finite (NaN or infinity), or its norm overflows");
      if (filter_.keeps(norm)) continue;
      counts_[static_cast<std::size_t>(b)] = 0;
      ++out;
    }
    const typename Model::Rows x(data, rows, model_.d_in(), stride);
    const Codes<Scalar>& codes = reconstruct(x);
    const Batch<Scalar> target(targets, rows, output_width(model_), target_stride);
    kept_.add(target, reconstruction_, codes, counts_, threads_);
    if (out > 0) {
      for (std::uint8_t& count : counts_) count = static_cast<std::uint8_t>(1 - count);
      dropped_.add(target, reconstruction_, codes, counts_, threads_);
    }
    seen_ += rows;
  }

  EvaluationReport report() {
    if (seen_ == 0) throw_value("evaluate: there are no rows");
    if (kept_.rows() == 0)
      throw_value("evaluate: all ", seen_, " rows have a norm above max_norm = ", options_.max_norm, " medians (",
                  filter_.limit(), ")");
    EvaluationReport out;
    static_cast<ReconstructionFigures&>(out) = kept_.figures();
    out.rows_dropped = dropped_.rows();
    out.norm_limit = filter_.limit();
    if (options_.max_norm > 0) {
      kept_.merge(dropped_);
      out.all_rows = kept_.figures();
    }
    if constexpr (predicts) {
      out.median_encoder_decoder_cosine = std::numeric_limits<double>::quiet_NaN();
    } else {
      out.encoder_decoder_cosines = encoder_decoder_cosines(model_);
      out.median_encoder_decoder_cosine = median(out.encoder_decoder_cosines);
    }
    return out;
  }

 private:
  /// Fills reconstruction_; returns the codes, good until the next call.
  const Codes<Scalar>& reconstruct(const typename Model::Rows& x) {
    if constexpr (requires { model_.reconstruct_into(x, workspace_, reconstruction_, threads_); }) {
      return model_.reconstruct_into(x, workspace_, reconstruction_, threads_);
    } else {
      const Codes<Scalar>& codes = model_.encode_into(x, workspace_, threads_);
      model_.decode_into(codes, x, reconstruction_, scratch_, threads_);
      return codes;
    }
  }

  const Model& model_;
  EvaluationOptions options_;
  Threads& threads_;
  RowNormFilter filter_;
  ReconstructionMetrics kept_, dropped_;
  Index seen_ = 0;
  std::vector<std::uint8_t> counts_;
  std::vector<double> norms_;
  typename Model::template Workspace<> workspace_;
  Tensor<Scalar> reconstruction_;
  ScratchPool<Scalar> scratch_;
};

template <class Model>
EvaluationReport evaluate_rows(const Model& model, const typename Model::Rows& x, const auto& y,
                               const EvaluationOptions& options, Threads& threads) {
  if (x.cols() != model.d_in()) throw_shape("evaluate: rows have ", x.cols(), " columns, the model reads ", model.d_in());
  Evaluation<Model> evaluation(model, options, threads);
  const Index all = (std::min)(x.rows(), evaluation.left());
  for (Index b = 0; b < all && evaluation.filter().wants_more(); ++b) evaluation.filter().observe(row_norm(x.row(b), x.cols()));
  evaluation.filter().fix();
  for (Index first = 0; first < all; first += options.block)
    evaluation.measure(x.row(first), x.stride(), y.row(first), y.stride(), (std::min)(options.block, all - first));
  return evaluation.report();
}

}  // namespace detail

/// Measures a model on rows x [N x D]: any Eigen expression or Map.
///
///   auto report = sae::evaluate(model, held_out);          // report.l0, report.explained_variance, ...
///
/// Memory beyond the rows: one block of them. Results do not depend on threads. Errors: ShapeError where widths differ,
/// ValueError for no rows, a row that is not finite, or options out of range.
template <class Model>
EvaluationReport evaluate(const Model& model, const typename Model::Rows& rows, const EvaluationOptions& options = {},
                          Threads& threads = Threads::shared()) {
  return detail::evaluate_rows(model, rows, rows, options, threads);
}

/// A transcoder: how well it predicts y [N x D_out] from x [N x D_in]. `max_norm` looks at x. Every figure of the "rows" is one of y
/// and its prediction; L0, L1 and densities are those of the codes.
template <class Model>
EvaluationReport evaluate(const Model& model, const typename Model::Rows& x, const typename Model::Targets& y,
                          const EvaluationOptions& options = {}, Threads& threads = Threads::shared()) {
  if (y.cols() != model.d_out() || y.rows() != x.rows())
    throw_shape("evaluate: targets are [", y.rows(), " x ", y.cols(), "], the model predicts [", x.rows(), " x ", model.d_out(),
                "]");
  return detail::evaluate_rows(model, x, y, options, threads);
}

/// The same on a source: until it is exhausted, or for `options.rows` rows. A source without end needs `options.rows`
/// (ValueError without, where the source says that it is one). A transcoder's source holds inputs and targets side by side, as its
/// Trainer's. The median of `max_norm` is read ahead; the source is then put back where it stood, and left behind the last row measured.
template <class Model, class Source>
  requires RowSource < std::remove_reference_t<Source>,
typename Model::Scalar > EvaluationReport evaluate(const Model& model, Source&& source, const EvaluationOptions& options = {},
                                                   Threads& threads = Threads::shared()) {
  using Scalar = typename Model::Scalar;
  constexpr bool predicts = detail::Evaluation<Model>::predicts;
  const Index in = model.d_in(), width = in + (predicts ? detail::Evaluation<Model>::output_width(model) : 0);
  if (source.width() != width)
    throw_shape("evaluate: rows have ", source.width(), " columns, the model reads ", in,
                predicts ? detail::concat(" and predicts ", width - in, ", side by side ", width) : std::string());
  if (options.rows < 0 && is_endless(source))
    throw_value("evaluate: the source never ends; say how many rows are measured (rows), or how often it gives each (epochs)");
  detail::Evaluation<Model> evaluation(model, options, threads);
  Tensor<Scalar> batch;
  // Calls use(rows in batch) until `limit` rows were read or there are none.
  const auto read = [&](Index limit, const auto& use) {
    while (limit > 0) {
      const Index wanted = (std::min)(options.block, limit);
      if (batch.rows() != wanted) batch.resize(wanted, source.width());
      const Index got = static_cast<Index>(source.next(batch));
      if (got == 0) return;
      use(got);
      limit -= got;
    }
  };
  if (evaluation.filter().wants_more()) {
    const SourceState start = source.state();
    read((std::min)(evaluation.left(), RowNormFilter::median_rows), [&](Index rows) {
      for (Index b = 0; b < rows; ++b) evaluation.filter().observe(row_norm(batch.row(b), in));
    });
    source.restore(start);
  }
  evaluation.filter().fix();
  read(evaluation.left(),
       [&](Index rows) { evaluation.measure(batch.data(), width, batch.data() + (predicts ? in : 0), width, rows); });
  return evaluation.report();
}

}  // namespace sae::inline SAE_ABI
