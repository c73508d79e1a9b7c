#pragma once
#include <sae/core/random.hpp>
#include <sae/models/sparse_autoencoder.hpp>
#include <sae/models/transcoder.hpp>
#include <sae/training/statistics.hpp>

#include <Eigen/Eigenvalues>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string_view>
#include <vector>

// Starts that look at data: free functions on a model, to be called before its Trainer is made. Rows are in the units in which the
// model will read them: a Trainer with a Normalisation multiplies its rows first, so multiply these, too (RowStatistics has the
// norms). All of them run in one order that does not depend on threads.
namespace sae::inline SAE_ABI {

namespace detail {
/// Mean row and its count; refuses what no start can be made of.
template <class Scalar>
std::vector<double> mean_row(const char* who, const Batch<Scalar>& rows, Index width) {
  if (rows.cols() != width) throw_shape(who, ": rows have ", rows.cols(), " columns, the model reads ", width);
  if (rows.rows() == 0) throw_value(who, ": there are no rows");
  RowStatistics statistics;
  for (Index b = 0; b < rows.rows(); ++b) {
    for (Index j = 0; j < width; ++j)
      if (!std::isfinite(rows.row(b)[j])) throw_value(who, ": row ", b, " holds a number that is not finite (NaN or infinity)");
    statistics.add(rows.row(b), width);
  }
  return statistics.mean();
}
/// w <- w norm / |w|; a row of zeros stays.
template <class Scalar>
void set_norm(Scalar* w, double norm, Index n) {
  const auto now = std::sqrt(static_cast<double>(kernels::squared_norm(w, n)));
  if (now > 0) kernels::scale(w, static_cast<Scalar>(norm / now), n);
}
}  // namespace detail

/// Settings of `initialize_from_data`.
struct DataInitialization {
  double share = 0.8;       ///< p of the data, in [0, 1]; 0.4 for crosscoders that see little of their target
  double decoder_norm = 1;  ///< > 0
  std::uint64_t seed = 0;
};

/// Each latent starts as a row of the data, blended with noise:
///
///   W_dec[i] = p (x - mean x) + (1 - p) u,  brought to norm `decoder_norm`        W_enc = W_dec, b_enc = 0
///
/// u is Kaiming-uniform, U(-sqrt(6/D), sqrt(6/D)), of norm about sqrt 2: p weighs as it says where rows have norms of that order
/// (Normalisation::mean_square). Rows x are drawn without repetition, and again from the start where there are more latents than rows.
/// A blend that is 0 becomes u. b_dec stays.
/// \throws ValueError  share or decoder_norm is out of range, there are no rows, or one holds a number that is not finite.
/// Source: Anthropic, Circuits Updates of October 2025, "datapoint initialization"; saev.
template <class Model>
void initialize_from_data(Model& model, const Batch<typename Model::Scalar>& rows, const DataInitialization& options = {}) {
  using Scalar = typename Model::Scalar;
  auto& p = model.parameters();
  const Index width = model.d_in();
  detail::require_one_width("initialize_from_data", p);
  if (!(options.share >= 0 && options.share <= 1))
    throw_value("initialize_from_data: share = ", options.share, " is not in [0, 1]");
  require_positive("initialize_from_data: decoder_norm", options.decoder_norm);
  const std::vector<double> mean = detail::mean_row("initialize_from_data", rows, width);
  const auto count = static_cast<std::uint64_t>(rows.rows());
  const Permutation order(count, options.seed, detail::initialization_stream);
  Random random(options.seed, detail::initialization_stream);
  std::vector<double> noise(mean.size()), blend(mean.size());
  for (Index i = 0; i < model.latents(); ++i) {
    detail::fill_uniform(random, detail::kaiming_bound(width), noise.data(), width);
    const Scalar* const x = rows.row(static_cast<Index>(order(static_cast<std::uint64_t>(i) % count)));
    for (std::size_t j = 0; j < blend.size(); ++j)
      blend[j] = options.share * (static_cast<double>(x[j]) - mean[j]) + (1 - options.share) * noise[j];
    if (!(kernels::squared_norm(blend.data(), width) > 0)) blend = noise;
    detail::set_norm(blend.data(), options.decoder_norm, width);
    for (Index j = 0; j < width; ++j) p.W_dec.row(i)[j] = static_cast<Scalar>(blend[static_cast<std::size_t>(j)]);
  }
  if (!p.tied()) p.W_enc = p.W_dec;
  p.b_enc.set_zero();
}

/// b_enc <- b_enc - mean over the rows of z: every latent's pre-activation has mean 0. As z is linear in x that is
/// b_enc[i] = -W_enc[i] . mean u, u = x - b_dec or x.
/// \throws ValueError  the model has no b_enc; there are no rows, or one holds a number that is not finite.
/// Source: llamascopium models/sae.py, init_encoder_bias_with_mean_hidden_pre.
template <class Model>
void center_pre_activations(Model& model, const Batch<typename Model::Scalar>& rows) {
  using Scalar = typename Model::Scalar;
  auto& p = model.parameters();
  if (p.b_enc.size() == 0)
    throw_value("center_pre_activations: the activation ", std::string_view(model.activation().name),
                " leaves the model no b_enc");
  std::vector<double> mean = detail::mean_row("center_pre_activations", rows, model.d_in());
  if (model.subtracts_decoder_bias())
    for (std::size_t j = 0; j < mean.size(); ++j) mean[j] -= static_cast<double>(p.b_dec[static_cast<Index>(j)]);
  for (Index i = 0; i < model.latents(); ++i) {
    double along = 0;
    for (std::size_t j = 0; j < mean.size(); ++j) along += static_cast<double>(p.encoder().row(i)[j]) * mean[j];
    p.b_enc[i] = static_cast<Scalar>(-along);
  }
}

/// A transcoder starts at the means of inputs x and targets y: b_dec = mean y, so that it first predicts the mean, and b_enc =
/// -W_enc mean x, so that every pre-activation has mean 0. With `Center::mean` the Trainer does the first half itself.
/// \throws ValueError  there are no rows, one holds a number that is not finite, or the activation leaves no b_enc.
/// Source: sparsify trainer.py (b_dec and encoder.bias of `transcode`; there W_enc is torch's default for a linear layer, of rows with
/// a norm of about sqrt(1/3): TranscoderOptions::encoder_norm).
template <int D_in, int D_out, int F, class Activation, class Scalar>
void initialize_from_means(Transcoder<D_in, D_out, F, Activation, Scalar>& model, const Batch<Scalar>& x,
                           const Batch<Scalar>& y) {
  const std::vector<double> mean = detail::mean_row("initialize_from_means", y, model.d_out());
  center_pre_activations(model, x);
  for (std::size_t j = 0; j < mean.size(); ++j) model.parameters().b_dec[static_cast<Index>(j)] = static_cast<Scalar>(mean[j]);
}

/// W_enc <- W_enc / mean |x' - b_dec| over `count` rows x = b_dec + a random unit vector: reconstructions of unit vectors then have
/// norms of about 1. Returns that mean; where it is 0 (nothing is active) W_enc stays.
/// \throws ValueError  count < 1; encoder and decoder are tied.
/// Source: openai/sparse_autoencoder train.py, init_from_data_ (which found no clear evidence that it helps).
template <class Model>
double scale_encoder_to_unit_reconstruction(Model& model, std::uint64_t seed = 0, Index count = 256,
                                            Threads& threads = Threads::shared()) {
  using Scalar = typename Model::Scalar;
  if (count < 1) throw_value("scale_encoder_to_unit_reconstruction: count = ", count, " is below 1 row");
  auto& p = model.parameters();
  if (p.tied()) throw_value("scale_encoder_to_unit_reconstruction: encoder and decoder of the model are tied");
  const Index width = model.d_in();
  Random random(seed, detail::initialization_stream + 1);
  Matrix<Scalar> x(count, width);
  std::vector<double> direction(static_cast<std::size_t>(width));
  for (Index b = 0; b < count; ++b) {
    for (double& number : direction) number = random.normal();
    detail::set_norm(direction.data(), 1.0, width);
    for (Index j = 0; j < width; ++j)
      x(b, j) = static_cast<Scalar>(direction[static_cast<std::size_t>(j)] + static_cast<double>(p.b_dec[j]));
  }
  const Matrix<Scalar> reconstruction = model.reconstruct(x, threads);
  double mean = 0;
  for (Index b = 0; b < count; ++b) {
    double squares = 0;
    for (Index j = 0; j < width; ++j) {
      const double d = static_cast<double>(reconstruction(b, j)) - static_cast<double>(p.b_dec[j]);
      squares += d * d;
    }
    mean += std::sqrt(squares) / static_cast<double>(count);
  }
  if (mean > 0) kernels::scale(p.W_enc.data(), static_cast<Scalar>(1 / mean), p.W_enc.size());
  return mean;
}

/// Settings of `search_decoder_norm`.
struct DecoderNormSearch {
  bool tie_encoder = true;    ///< W_enc = encoder_factor W_dec at each norm; else W_enc stays
  double encoder_factor = 1;  ///< > 0
  bool center = false;        ///< `center_pre_activations` at each norm
};

/// Brings all decoder rows to the one norm with the least squared error on the rows, and returns it: of 0.1, 0.2, ... 5.0, then of 20
/// norms from 0.09 below to 0.1 above the best of these. Of equal errors the smaller norm. Directions stay.
/// For a training with DecoderNorm::free. Cost: 70 forwards.
/// \throws ValueError  encoder_factor is not positive, there are no rows, or one holds a number that is not finite.
/// Source: llamascopium initializer.py, grid_search_best_init_norm.
template <class Model>
double search_decoder_norm(Model& model, const Batch<typename Model::Scalar>& rows, const DecoderNormSearch& options = {},
                           Threads& threads = Threads::shared()) {
  using Scalar = typename Model::Scalar;
  require_positive("search_decoder_norm: encoder_factor", options.encoder_factor);
  detail::mean_row("search_decoder_norm", rows, model.d_in());
  auto& p = model.parameters();
  const Tensor<Scalar> start = p.W_dec;
  const auto set = [&](double norm) {
    p.W_dec = start;
    for (Index i = 0; i < model.latents(); ++i) detail::set_norm(p.W_dec.row(i), norm, model.d_in());
    if (options.tie_encoder && !p.tied()) {
      p.W_enc = p.W_dec;
      kernels::scale(p.W_enc.data(), static_cast<Scalar>(options.encoder_factor), p.W_enc.size());
    }
    if (options.center) center_pre_activations(model, rows);
  };
  const typename Model::Rows x(rows.row(0), rows.rows(), rows.cols(), rows.stride());
  const auto best_of = [&](double first, double last, int count) {
    double best = first, least = std::numeric_limits<double>::infinity();
    for (int n = 0; n < count; ++n) {
      const double norm = first + (last - first) * n / (count - 1);
      set(norm);
      const double error = model.loss(x, Objective<>{}, threads).reconstruction;
      if (error < least) {
        least = error;
        best = norm;
      }
    }
    return best;
  };
  const double coarse = best_of(0.1, 5.0, 50), best = best_of(coarse - 0.09, coarse + 0.1, 20);
  set(best);
  return best;
}

/// Decoder rows are projected onto the `dimensions` principal directions of the rows (eigenvectors of their covariance with the
/// largest eigenvalues) and brought back to the norms that they had; W_enc = W_dec with `tie_encoder`. For data that fill a part
/// of the space (outputs of attention): latents outside it would be dead. A row whose projection is 0 becomes 0. float64 inside.
/// Cost: rows D^2 + about 10 D^3.
/// \throws ValueError  dimensions is not in [1, D], there are no rows, or one holds a number that is not finite.
/// Source: llamascopium models/sae.py, init_W_D_with_active_subspace, which takes the first `dimensions` numbers of the random row as
/// its coordinates in place of the projection's: for random rows as good.
template <class Model>
void project_decoder_on_active_subspace(Model& model, const Batch<typename Model::Scalar>& rows, Index dimensions,
                                        bool tie_encoder = true) {
  using Scalar = typename Model::Scalar;
  auto& p = model.parameters();
  const Index width = model.d_in(), count = rows.rows();
  detail::require_one_width("project_decoder_on_active_subspace", model.parameters());
  if (dimensions < 1 || dimensions > width)
    throw_value("project_decoder_on_active_subspace: dimensions = ", dimensions, " is not in [1, ", width,
                "] (the width of a row)");
  const std::vector<double> mean = detail::mean_row("project_decoder_on_active_subspace", rows, width);
  Tensor<double> centred(count, width);
  for (Index b = 0; b < count; ++b)
    for (Index j = 0; j < width; ++j)
      centred.row(b)[j] = static_cast<double>(rows.row(b)[j]) - mean[static_cast<std::size_t>(j)];
  Matrix<double> covariance = Matrix<double>::Zero(width, width);
  kernels::add_product_tn(covariance.data(), width, centred.data(), width, centred.data(), width, width, count, width);
  const Eigen::SelfAdjointEigenSolver<Matrix<double>> solver(covariance);  // eigenvalues ascend
  const Matrix<double> directions = solver.eigenvectors().rightCols(dimensions).transpose();
  std::vector<double> projected(static_cast<std::size_t>(width)), row(projected.size());
  for (Index i = 0; i < model.latents(); ++i) {
    Scalar* const w = p.W_dec.row(i);
    std::copy_n(w, width, row.begin());
    std::fill(projected.begin(), projected.end(), 0.0);
    for (Index k = 0; k < dimensions; ++k) {
      const double* const direction = directions.data() + k * width;
      kernels::add_scaled(projected.data(), kernels::dot(row.data(), direction, width), direction, width);
    }
    detail::set_norm(projected.data(), std::sqrt(kernels::squared_norm(row.data(), width)), width);
    for (Index j = 0; j < width; ++j) w[j] = static_cast<Scalar>(projected[static_cast<std::size_t>(j)]);
  }
  if (tie_encoder && !p.tied()) p.W_enc = p.W_dec;
}

}  // namespace sae::inline SAE_ABI
