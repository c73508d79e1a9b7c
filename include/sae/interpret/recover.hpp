#pragma once
#include <sae/host/activation_source.hpp>
#include <sae/host/cross_entropy.hpp>
#include <sae/interpret/interventions.hpp>
#include <sae/metrics/loss_recovered.hpp>
#include <sae/metrics/reconstruction.hpp>

#include <algorithm>
#include <functional>
#include <span>
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
/// with 0 and with a mean row in the place of x, at every position of every window (but BOS, see the options). Of several SAEs of the
/// site at once, in their order: what they share (the model as it is, 0 and the mean row) is run once, and each has the figures that it
/// has alone, to rounding where another one reads sequences.
///
/// Two passes: the first reads the site's rows (mean row, explained variance, L0), the second runs the conditions window by
/// window. float64 sums in window order. Memory: the logits of one window. `progress(done)` counts to 2 windows.count(). A SAE that reads
/// sequences (TemporalSae) is shown each window whole, BOS first, whatever rows are replaced and measured.
/// Errors: ShapeError where an SAE's width is not the model's; ValueError for options out of range, where no row is kept or there is no SAE.
template <LanguageModel M, LatentModel Model>
std::vector<RecoverReport> recover_each(M& model, const Windows& windows, const Site& site, std::span<const Model> saes,
                                        const RecoverOptions& options = {}, const std::function<void(Index)>& progress = {},
                                        Threads& threads = Threads::shared()) {
  using Scalar = detail::ScalarOf<Model>;
  const Index width = model.shape().width;
  if (saes.empty()) throw_value("recover: there is no SAE");
  for (const Model& sae : saes)
    if (sae.d_in() != width) throw_shape("recover: the SAE is of width ", sae.d_in(), ", the model of width ", width);
  if (options.mean_row.size() != 0 && options.mean_row.size() != width)
    throw_shape("recover: the mean row is of width ", options.mean_row.size(), ", the model of width ", width);

  std::vector<ReconstructionMetrics> metrics;
  for (const Model& sae : saes) metrics.emplace_back(width, sae.latents());
  Eigen::RowVectorXd sum = Eigen::RowVectorXd::Zero(width);
  const bool any_sequences =
      std::any_of(saes.begin(), saes.end(), [](const Model& sae) { return detail::reads_sequences(sae); });
  const auto measure = [&](const CollectedRows& rows, Index first, Index count) {
    const Matrix<Scalar> x = rows.sites[0].middleRows(first, count).template cast<Scalar>();
    const auto kept = rows.kept.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count));
    for (Index b = 0; b < count; ++b)
      if (kept[static_cast<std::size_t>(b)] != 0) sum += x.row(b).template cast<double>();
    for (std::size_t i = 0; i < saes.size(); ++i) {
      const Codes<Scalar> codes = saes[i].encode(x, threads);
      metrics[i].template add<Scalar>(x, detail::decode_rows(saes[i], codes, x, threads), codes, kept, threads);
    }
  };
  const CollectReport read = collect(model, windows, std::span(&site, 1),
                                     [&](const CollectedRows& rows, Index windows_done) {
                                       if (any_sequences) {
                                         for_each_window(rows, [&](Index first, Index count) { measure(rows, first, count); });
                                       } else if (!rows.origins.empty()) {
                                         measure(rows, 0, static_cast<Index>(rows.origins.size()));
                                       }
                                       if (progress) progress(windows_done);
                                     },
                                     {.keep_bos = false, .max_norm = options.max_norm, .hand_out_all = any_sequences});
  if (read.counts.kept == 0) throw_value("recover: no row is left to measure: all were BOS, too large or not finite");

  RecoverReport shared;
  shared.replaces_bos = options.replace_bos || !windows.has_bos();
  shared.rows = read.counts;
  shared.mean_row = options.mean_row.size() != 0
                        ? options.mean_row
                        : RowVector<float>((sum / static_cast<double>(read.counts.kept)).template cast<float>());

  const EditedRows edited = shared.replaces_bos ? EditedRows::all() : EditedRows::after_first();
  std::vector<Condition> conditions = {
      {"clean", {}}, {"zero", {replace_by_zero(site, edited)}}, {"mean", {replace_by_row(site, shared.mean_row, edited)}}};
  for (const Model& sae : saes) conditions.push_back({"sae", {replace_by_reconstruction(site, sae, edited, threads)}});
  const std::vector<ConditionResult> results = compare_conditions(
      model, windows, std::span<const Condition>(conditions),
      [&](Index done) {
        if (progress) progress(windows.count() + done);
      },
      threads);
  shared.tokens = results[0].tokens;
  std::vector<RecoverReport> out(saes.size(), shared);
  for (std::size_t i = 0; i < saes.size(); ++i) {
    const ConditionResult& with_sae = results[3 + i];
    out[i].figures = metrics[i].figures();
    out[i].cross_entropy = {results[0].cross_entropy, with_sae.cross_entropy, results[1].cross_entropy,
                            results[2].cross_entropy};
    out[i].loss_recovered = loss_recovered(out[i].cross_entropy);
    out[i].kl = with_sae.kl;
  }
  return out;
}

/// The same of one SAE.
template <LanguageModel M, LatentModel Model>
RecoverReport recover(M& model, const Windows& windows, const Site& site, const Model& sae, const RecoverOptions& options = {},
                      const std::function<void(Index)>& progress = {}, Threads& threads = Threads::shared()) {
  return recover_each(model, windows, site, std::span(&sae, 1), options, progress, threads).front();
}

}  // namespace sae::inline SAE_ABI
