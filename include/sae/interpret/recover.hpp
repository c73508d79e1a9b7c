#pragma once
#include <sae/host/activation_source.hpp>
#include <sae/host/cross_entropy.hpp>
#include <sae/interpret/interventions.hpp>
#include <sae/metrics/loss_recovered.hpp>
#include <sae/metrics/reconstruction.hpp>

#include <functional>
#include <utility>
#include <vector>

namespace sae::inline SAE_ABI {

struct RecoverOptions {
  /// Replace BOS rows too, in all three edited conditions. Off: position 0 of every window stays as the model made it. With it
  /// on, an all-zero residual stream predicts every token alike and zero ablation costs exactly ln V; with it off zero ablation
  /// can cost more than that, and a share recovered of it flatters.
  bool replace_bos = false;
  /// Row [D] that mean ablation puts in the place of x; most often the mean of the rows the SAE was trained on. Empty: the mean
  /// of the kept rows of the windows at hand, which needs no other data and makes the ablation a little better informed.
  RowVector<float> mean_row{};
  /// The figures and the mean leave out BOS rows and rows with a norm above so many medians; 0: BOS rows alone. What is spliced
  /// into the model is not touched by this.
  double max_norm = 10;
};

struct RecoverReport {
  Index tokens = 0;  ///< predictions: every next token of every window
  bool replaces_bos = false;
  SpliceLosses cross_entropy;     ///< nats per token
  LossRecovered loss_recovered;   ///< against zero and against the mean row
  double kl = 0;                  ///< mean KL(clean || with the SAE), nats per token
  ReconstructionFigures figures;  ///< of the SAE on the kept rows
  CollectCounts rows;             ///< kept for the figures and the mean, and left out
  RowVector<float> mean_row;      ///< that was used
};

/// What a language model loses when an SAE stands in the place of a site: mean cross-entropy as it is, with x' = decode(encode(x)),
/// with 0 and with a mean row in the place of x, at every position of every window (but BOS, see the options).
///
/// Two passes: the first reads the site's rows (mean row, explained variance, L0), the second runs the four conditions window by
/// window. float64 sums in window order. Memory: the logits of one window. `progress(done)` counts to 2 windows.count(). A SAE that reads
/// sequences (TemporalSae) is shown each window whole, BOS first, whatever rows are replaced and measured.
/// Errors: ShapeError where the SAE's width is not the model's; ValueError for options out of range or where no row is kept.
template <LanguageModel M, LatentModel Model>
RecoverReport recover(M& model, const Windows& windows, const Site& site, const Model& sae, const RecoverOptions& options = {},
                      const std::function<void(Index)>& progress = {}, Threads& threads = Threads::shared()) {
  using Scalar = detail::ScalarOf<Model>;
  const Index width = model.shape().width;
  if (sae.d_in() != width) throw_shape("recover: the SAE is of width ", sae.d_in(), ", the model of width ", width);
  if (options.mean_row.size() != 0 && options.mean_row.size() != width)
    throw_shape("recover: the mean row is of width ", options.mean_row.size(), ", the model of width ", width);

  ReconstructionMetrics metrics(width, sae.latents());
  Eigen::RowVectorXd sum = Eigen::RowVectorXd::Zero(width);
  const bool sequences = detail::reads_sequences(sae);
  const auto measure = [&](const CollectedRows& rows, Index first, Index count) {
    const Matrix<Scalar> x = rows.sites[0].middleRows(first, count).template cast<Scalar>();
    const auto kept = rows.kept.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count));
    for (Index b = 0; b < count; ++b)
      if (kept[static_cast<std::size_t>(b)] != 0) sum += x.row(b).template cast<double>();
    const Codes<Scalar> codes = sae.encode(x, threads);
    metrics.add<Scalar>(x, detail::decode_rows(sae, codes, x, threads), codes, kept, threads);
  };
  const CollectReport read = collect(model, windows, std::span(&site, 1),
                                     [&](const CollectedRows& rows, Index windows_done) {
                                       if (sequences) {
                                         for_each_window(rows, [&](Index first, Index count) { measure(rows, first, count); });
                                       } else if (!rows.origins.empty()) {
                                         measure(rows, 0, static_cast<Index>(rows.origins.size()));
                                       }
                                       if (progress) progress(windows_done);
                                     },
                                     {.keep_bos = false, .max_norm = options.max_norm, .hand_out_all = sequences});
  if (read.counts.kept == 0) throw_value("recover: no row is left to measure: all were BOS, too large or not finite");

  RecoverReport out;
  out.replaces_bos = options.replace_bos || !windows.has_bos();
  out.rows = read.counts;
  out.figures = metrics.figures();
  out.mean_row = options.mean_row.size() != 0
                     ? options.mean_row
                     : RowVector<float>((sum / static_cast<double>(read.counts.kept)).template cast<float>());

  const EditedRows edited = out.replaces_bos ? EditedRows::all() : EditedRows::after_first();
  const std::vector<Condition> conditions = {{"clean", {}},
                                             {"sae", {replace_by_reconstruction(site, sae, edited, threads)}},
                                             {"zero", {replace_by_zero(site, edited)}},
                                             {"mean", {replace_by_row(site, out.mean_row, edited)}}};
  const std::vector<ConditionResult> results = compare_conditions(
      model, windows, std::span<const Condition>(conditions),
      [&](Index done) {
        if (progress) progress(windows.count() + done);
      },
      threads);
  out.tokens = results[0].tokens;
  out.cross_entropy = {results[0].cross_entropy, results[1].cross_entropy, results[2].cross_entropy, results[3].cross_entropy};
  out.loss_recovered = loss_recovered(out.cross_entropy);
  out.kl = results[1].kl;
  return out;
}

}  // namespace sae::inline SAE_ABI
