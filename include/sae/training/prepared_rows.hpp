#pragma once
#include <sae/data/source.hpp>
#include <sae/models/sparse_autoencoder.hpp>
#include <sae/training/statistics.hpp>
#include <sae/training/trainer_config.hpp>
#include <sae/training/whitening.hpp>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

namespace sae::inline SAE_ABI::detail {

/// What rows of this width are multiplied by. 1 where they are all 0, or the normalisation is no scale.
inline double row_scale(Normalisation normalisation, const RowStatistics& rows, Index width) {
  if (normalisation == Normalisation::mean_square && rows.mean_squared_norm() > 0)
    return 1 / std::sqrt(rows.mean_squared_norm());
  if (normalisation == Normalisation::sqrt_d && rows.mean_norm() > 0)
    return std::sqrt(static_cast<double>(width)) / rows.mean_norm();
  return 1;
}

/// \param number  of the row in the stream, to name it.
/// \throws ValueError  the row holds a number that is not finite.
template <class Scalar>
void check_finite(const Scalar* row, Index width, Index number) {
  if (std::isfinite(kernels::squared_norm(row, width))) return;
  for (Index j = 0; j < width; ++j)  // squares of finite numbers may be too large
    if (!std::isfinite(row[j]))
      throw_value("Trainer: row ", number, " of the stream holds a number that is not finite (NaN or infinity)");
}

/// What stands between the rows of a source and those that a model is trained on, there and back:
///
///   x -> scale x, or (x - mean) A where rows are whitened;      y -> target_scale y of a transcoder's targets
///
/// found from rows read ahead, applied batch by batch, folded into the model when the training ends. A trainer owns one; model and
/// config outlive it.
template <class Model>
class PreparedRows {
 public:
  using Scalar = typename Model::Scalar;
  /// A transcoder's rows hold its input and, behind it, its target.
  static constexpr bool predicts = requires { typename Model::Targets; };

  PreparedRows(Model& model, const TrainerConfig& config, Threads& threads)
      : model_(model), config_(config), threads_(threads) {}

  const Tensor<Scalar>& rows() const { return rows_; }                          ///< [B x D_in] of the batch that was loaded
  const Tensor<Scalar>& target() const { return predicts ? targets_ : rows_; }  ///< [B x D_out]
  double scale() const { return scale_; }
  /// Width of the rows of a source: D_in, of a transcoder D_in + D_out.
  Index row_width() const {
    if constexpr (predicts)
      return model_.d_in() + model_.d_out();
    else
      return model_.d_in();
  }
  /// What a source must yield, in words.
  std::string needs() const {
    return predicts ? detail::concat("the model needs inputs of ", model_.d_in(), " and targets of ",
                                     row_width() - model_.d_in(), " side by side, ", row_width())
                    : detail::concat("the model reads ", model_.d_in());
  }

  /// \throws ValueError  config and model do not go together; readies the map of whitened rows.
  void check() {
    if (config_.loss_space == LossSpace::normalised && !normalises())
      throw_value("Trainer: loss_space = normalised is for a model with an InputNormalisation; this one has none");
    if (whitens() && predicts)
      throw_value("Trainer: normalisation = whitening is for autoencoders; a transcoder has two kinds of rows");
    if (whitens() && (normalises() || model_.parameters().tied()))
      throw_value("Trainer: normalisation = whitening does not go with ",
                  normalises() ? "an InputNormalisation, which whitens nothing and comes first"
                               : "tied weights, which cannot take it up at the end");
    if (whitens() && model_.parameters().b_enc.size() == 0 && !model_.subtracts_decoder_bias())
      throw_value("Trainer: normalisation = whitening needs a model with b_enc or with subtract_decoder_bias = true");
    if (detail::input_normalisation_of(model_) == InputNormalisation::layer_norm &&
        config_.normalisation != Normalisation::none)
      throw_value(
          "Trainer: the model has layer_norm, whose rows need no scale and cannot have one; normalisation = none is legal");
    if (whitens() && (config_.frozen.encoder || config_.frozen.decoder))
      throw_value("Trainer: normalisation = whitening does not go with a frozen encoder or decoder: its fold changes both");
    if (whitens()) whitening_ = Whitening(model_.d_in());
  }
  /// Reads `statistics_rows` rows ahead, finds scale, whitening and the start of b_dec, and puts the source back.
  template <class Source>
  void measure(Source& source) {
    const bool wants_center = config_.center == Center::mean || config_.center == Center::geometric_median;
    if (wants_center || config_.normalisation != Normalisation::none) {
      const SourceState start = source.state();
      const Index wanted = std::min(config_.statistics_rows, config_.total_steps() * config_.batch);
      const bool keep = config_.center == Center::geometric_median || whitens() || normalises();
      RowStatistics inputs, targets;
      const Index in = model_.d_in(), out = row_width() - in;
      Tensor<Scalar> piece(keep ? wanted : std::min<Index>(wanted, 512), row_width());
      while (inputs.rows() < wanted) {
        const Index got = std::min(fill_batch(source, piece), wanted - inputs.rows());
        for (Index b = 0; b < got; ++b) {
          check_finite(piece.row(b), piece.cols(), inputs.rows());
          inputs.add(piece.row(b), in);
          if (predicts) targets.add(piece.row(b) + in, out);
        }
        if (got == 0 || keep) break;
      }
      if (inputs.rows() == 0) throw_value("Trainer: the source has no rows");
      source.restore(start);
      scale_ = row_scale(config_.normalisation, inputs, in);
      target_scale_ = predicts ? row_scale(config_.normalisation, targets, out) : scale_;
      if (config_.reads_raw_rows) {
        fold_scales(1 / scale_, 1 / target_scale_);
        if constexpr (predicts)  // which left decoder rows with target_scale / scale of their norm
          if (config_.decoder == DecoderNorm::unit)
            scale_codes(model_.activation(), model_.parameters(), static_cast<Scalar>(target_scale_ / scale_));
      }
      RowStatistics seen = predicts ? targets : inputs;
      Tensor<Scalar> rows;
      if (keep) {
        rows.resize(seen.rows(), model_.parameters().output_width());
        for (Index b = 0; b < rows.rows(); ++b) std::copy_n(piece.row(b) + (predicts ? in : 0), rows.cols(), rows.row(b));
      }
      if (whitens()) {
        Tensor<double> precise(rows.rows(), rows.cols());
        precise.map() = rows.map().template cast<double>();
        set_whitening(config_.whitening(precise, config_.whitening_floor));
      }
      if (whitens() || normalises()) {  // b_dec is in the units of what the model reads
        rows = as_model_reads(std::move(rows));
        seen = {};
        for (Index b = 0; b < rows.rows(); ++b) seen.add(rows.row(b), rows.cols());
      }
      const double unit = normalises() ? 1.0 : target_scale_;
      if (config_.center == Center::mean) set_decoder_bias(seen.mean(), unit);
      if (config_.center == Center::geometric_median) set_decoder_bias(geometric_median(rows), unit);
    }
  }
  /// Where the first batch says where b_dec starts (Center::first_batch_geometric_median).
  void center_on_batch() { set_decoder_bias(geometric_median(normalised(target())), 1.0); }

  /// Whether `measure` would find the same as it found there.
  bool measures_like(const PreparedRows& other) const {
    const auto wanted = [](const PreparedRows& rows) {
      return std::min(rows.config_.statistics_rows, rows.config_.total_steps() * rows.config_.batch);
    };
    return config_.normalisation == other.config_.normalisation && config_.center == other.config_.center &&
           wanted(*this) == wanted(other) && config_.whitening == other.config_.whitening &&
           config_.whitening_floor == other.config_.whitening_floor && !config_.reads_raw_rows &&
           !other.config_.reads_raw_rows && row_width() == other.row_width() &&
           input_normalisation_of(model_) == input_normalisation_of(other.model_) && !other.config_.frozen.b_dec;
  }
  /// Takes over what `measure` found there, where it would find the same.
  void share(const PreparedRows& other) {
    scale_ = other.scale_;
    target_scale_ = other.target_scale_;
    whitening_ = other.whitening_;
    set_decoder_bias(other.center_, 1.0);
  }

  /// Takes a batch of the source over. \param first  number of its first row in the stream, to name one.
  void load(const Batch<Scalar>& rows, Index first) {
    const Index in = model_.d_in(), out = row_width() - in;
    if (rows.cols() != row_width()) throw_shape("Trainer: rows have ", rows.cols(), " columns, ", needs());
    if (rows_.rows() != rows.rows() || rows_.cols() != in) rows_.resize(rows.rows(), in);
    if (predicts && (targets_.rows() != rows.rows() || targets_.cols() != out)) targets_.resize(rows.rows(), out);
    const auto factor = static_cast<Scalar>(scale_), target_factor = static_cast<Scalar>(target_scale_);
    threads_.for_blocks(rows.rows(), row_block, [&](Index begin, Index end, Index) {
      for (Index b = begin; b < end; ++b) {
        check_finite(rows.row(b), rows.cols(), first + b);
        for (Index j = 0; j < in; ++j) rows_.row(b)[j] = factor * rows.row(b)[j];
        for (Index j = 0; j < out; ++j) targets_.row(b)[j] = target_factor * rows.row(b)[in + j];
      }
    });
    if (whitens()) whiten(rows_);
  }
  /// Reconstructions [B x D_out] of the batch, from the units of the training to those of the source.
  void to_source(Tensor<Scalar>& reconstruction, const RowScales<Scalar>& scales) {
    if (normalises()) scales.undo(reconstruction, threads_);
    if (whitens()) map_rows(reconstruction, nullptr, whitening_.inverse, &whitening_.mean);
    kernels::scale(reconstruction.data(), static_cast<Scalar>(1 / output_scale()), reconstruction.size());
  }
  /// dL/dx' [B x D_out] in units of the source to dL/d(what `to_source` was given), but for the model's own InputNormalisation.
  void gradient_from_source(Tensor<Scalar>& gradient) {
    kernels::scale(gradient.data(), static_cast<Scalar>(1 / output_scale()), gradient.size());
    if (whitens()) map_rows(gradient, nullptr, whitening_.inverse, nullptr);  // it is symmetric
  }

  /// Scale and whitening go into the model, which from there on reads rows of the source.
  void fold() {
    fold_scales(scale_, target_scale_);
    if constexpr (!predicts && requires { model_.fold_decoder_norms(); }) {
      if (whitens()) {
        const bool* const by_norm = detail::rank_by_norm(model_.activation());
        if (by_norm != nullptr && *by_norm) model_.fold_decoder_norms();
        model_.fold_input_map(whitening_.mean, whitening_.matrix, whitening_.inverse, threads_);
      }
    }
    scale_ = target_scale_ = 1;
  }

  /// As Trainer::visit_state.
  template <class Visitor>
  void visit_state(Visitor&& visitor) {
    visitor.number("scale", scale_);
    if (whitens()) {
      visitor.tensor("whitening.mean", whitening_.mean);
      visitor.tensor("whitening.matrix", whitening_.matrix);
      visitor.tensor("whitening.inverse", whitening_.inverse);
    }
    if (predicts) visitor.number("target_scale", target_scale_);
  }

 private:
  static constexpr Index row_block = 64;  ///< rows that a thread takes at a time

  bool whitens() const { return config_.normalisation == Normalisation::whitening; }
  bool normalises() const { return detail::input_normalisation_of(model_) != InputNormalisation::none; }
  double output_scale() const { return predicts ? target_scale_ : scale_; }
  void set_whitening(Whitening whitening) {
    whitening_ = std::move(whitening);
    if constexpr (!predicts && requires { model_.fold_decoder_norms(); }) {
      if (!config_.reads_raw_rows) return;
      Tensor<double> mean(1, model_.d_in());  // x = (y + mean A) A^-1
      kernels::add_product_nn(mean.data(), mean.cols(), whitening_.mean.data(), mean.cols(), whitening_.matrix.data(),
                              mean.cols(), 1, mean.cols(), mean.cols());
      mean.map() *= -1;
      model_.fold_input_map(mean, whitening_.inverse, whitening_.matrix, threads_);
    }
  }
  /// Rows as the model reads them, but for a scale: whitened, or normalised one by one.
  Tensor<Scalar> as_model_reads(Tensor<Scalar> rows) {
    if (whitens()) whiten(rows);
    return normalised(std::move(rows));
  }
  /// Rows as the model's InputNormalisation leaves them.
  Tensor<Scalar> normalised(Tensor<Scalar> rows) {
    if (normalises()) {
      detail::RowScales<Scalar> scales;
      scales.measure(detail::input_normalisation_of(model_), RowsView<Scalar>(rows), threads_);
      for (Index b = 0; b < rows.rows(); ++b)
        for (Index j = 0; j < rows.cols(); ++j) rows.row(b)[j] = scales.normalised(b, rows.row(b)[j]);
    }
    return rows;
  }
  /// x <- (x - mean) A, in float64.
  void whiten(Tensor<Scalar>& rows) { map_rows(rows, &whitening_.mean, whitening_.matrix, nullptr); }
  /// x <- (x - before) M + after; a null is 0.
  void map_rows(Tensor<Scalar>& rows, const Tensor<double>* before, const Tensor<double>& matrix, const Tensor<double>* after) {
    const Index width = rows.cols();
    threads_.for_blocks(rows.rows(), row_block, [&](Index begin, Index end, Index) {
      Tensor<double> from(end - begin, width), to(end - begin, width);
      for (Index i = 0; i < from.size(); ++i)
        from[i] = static_cast<double>(rows.row(begin)[i]) - (before != nullptr ? (*before)[i % width] : 0.0);
      kernels::add_product_nn(to.data(), width, from.data(), width, matrix.data(), width, end - begin, width, width);
      for (Index i = 0; i < to.size(); ++i)
        rows.row(begin)[i] = static_cast<Scalar>(to[i] + (after != nullptr ? (*after)[i % width] : 0.0));
    });
  }
  void set_decoder_bias(const std::vector<double>& center, double factor) {
    if (config_.frozen.b_dec) return;
    center_ = center;
    for (std::size_t j = 0; j < center.size(); ++j) {
      center_[j] *= factor;
      model_.parameters().b_dec[static_cast<Index>(j)] = static_cast<Scalar>(center_[j]);
    }
  }

  /// The model was trained on (in * x, out * y).
  void fold_scales(double in, [[maybe_unused]] double out) {
    if constexpr (predicts) {
      model_.fold_scales(in, out);
    } else {
      model_.fold_input_scale(in);
    }
  }

  Model& model_;
  const TrainerConfig& config_;
  Threads& threads_;
  double scale_ = 1, target_scale_ = 1;  ///< target_scale_: of a transcoder's targets
  Whitening whitening_;                  ///< empty where rows are not whitened
  std::vector<double> center_;           ///< where b_dec started, in units of the training
  Tensor<Scalar> rows_, targets_;
};

}  // namespace sae::inline SAE_ABI::detail
