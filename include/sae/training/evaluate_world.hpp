#pragma once
#include <sae/data/synthetic.hpp>
#include <sae/metrics/ground_truth.hpp>
#include <sae/metrics/reconstruction.hpp>
#include <sae/models/sparse_autoencoder.hpp>

#include <algorithm>

namespace sae::inline SAE_ABI {

struct WorldEvaluationOptions {
  Index rows = 102'400;    ///< rows that are drawn, >= 1
  std::uint64_t seed = 0;  ///< of the rows: another one than the training's
  Index first = 0;         ///< number of the first row, >= 0
  /// Rows at a time, >= 1. Figures change by rounding alone, unless an activation selects over a whole batch.
  Index block = 1024;
};

/// What `evaluate_on_world` finds: how well rows were rewritten (`explained_variance`, `l0`, `dead_latents`, `shrinkage`, ...),
/// and whether by the features that made them.
struct GroundTruthReport : ReconstructionFigures {
  GroundTruthFigures truth;           ///< MCC, uniqueness, precision, recall, F1, accuracy, true L0
  DictionarySimilarity max_cosine{};  ///< mean max |cosine|: a_to_b of latents among features, b_to_a of features among latents
};

/// Measures a model on rows of a world whose features are known.
///
///   const auto report = sae::evaluate_on_world(model, world, {.rows = 100'000, .seed = 2});
///   report.truth.directions.mcc, report.truth.f1, report.explained_variance
///
/// Results do not depend on threads. Cost: drawing the rows (about n normal numbers a row), encoding and decoding them, and one
/// F x n comparison of directions. Errors: ShapeError where the world's width is not the model's; ValueError for options out of
/// range, and for a model whose decoder is not finite.
/// Source: SAELens 6.54 synthetic/evals.py (eval_sae_on_synthetic_data).
template <class Model>
GroundTruthReport evaluate_on_world(const Model& model, const SyntheticWorld& world, const WorldEvaluationOptions& options = {},
                                    Threads& threads = Threads::shared()) {
  using Scalar = typename Model::Scalar;
  if (options.rows < 1) throw_value("evaluate_on_world: rows = ", options.rows, " is below 1");
  if (options.block < 1) throw_value("evaluate_on_world: block = ", options.block, " is below 1 row");
  if (world.width() != model.d_in())
    throw_shape("evaluate_on_world: the world's rows have ", world.width(), " columns, the model reads ", model.d_in());
  const Matrix<Scalar> features = world.directions.map().template cast<Scalar>();
  GroundTruthMetrics truth(model.W_dec(), features, threads);
  ReconstructionMetrics reconstruction(model.d_in(), model.latents());
  SyntheticSource<Scalar> source(world, {.seed = options.seed, .first = options.first, .rows = options.rows}, threads);

  Tensor<Scalar> batch((std::min)(options.block, options.rows), model.d_in()), output;
  Codes<Scalar> active;
  typename Model::template Workspace<> workspace;
  workspace.keep_weights();
  ScratchPool<Scalar> scratch;
  for (Index got = 0; (got = source.next(batch, active)) > 0;) {
    const typename Model::Rows x(batch.data(), got, model.d_in(), batch.cols());
    const Codes<Scalar>& codes = model.encode_into(x, workspace, threads);
    model.decode_into(codes, x, output, scratch, threads);
    reconstruction.add(Batch<Scalar>(batch.data(), got, batch.cols()), output, codes, {}, threads);
    truth.add(codes, active);
  }
  GroundTruthReport out;
  static_cast<ReconstructionFigures&>(out) = reconstruction.figures();
  out.truth = truth.figures();
  out.max_cosine = mean_max_cosine(model.W_dec(), features, CosineSign::ignored, threads);
  return out;
}

}  // namespace sae::inline SAE_ABI
