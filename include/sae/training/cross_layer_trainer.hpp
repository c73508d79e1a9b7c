#pragma once
#include <sae/data/source.hpp>
#include <sae/models/cross_layer_transcoder.hpp>
#include <sae/training/dead_latents.hpp>
#include <sae/training/fit_loop.hpp>
#include <sae/training/prepared_rows.hpp>
#include <sae/training/statistics.hpp>
#include <sae/training/trainer_config.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace sae::inline SAE_ABI {

/// The training loop of a CrossLayerTranscoder.
///
///   CrossLayerTranscoder<TopK> model(12, 768, 16384, {.k = 16});
///   CrossLayerTrainer trainer(model, {.steps = 20'000, .learning_rate = 1e-3});
///   trainer.fit(source, progress_bar(std::cerr));
///
/// Rows of a source hold the inputs of all layers and, behind them, the targets of all layers: x^0 .. x^{L-1}, y^0 .. y^{L-1}, of
/// width 2 L D. Residual streams grow from layer to layer, so every layer has scales of its own, one for its inputs and one for its
/// targets, found from `statistics_rows` rows read ahead and folded into the model when `fit` ends: it then reads and predicts rows as
/// they are, with the codes that it was trained with. b_dec starts at the mean target (Center::mean).
///
/// Of TrainerConfig it takes steps or tokens, batch, rate and schedule, sparsity_warmup, optimizer, moments, clipping (the norm is that of all
/// layers together), `center` none or mean, `normalisation` none, mean_square or sqrt_d (each layer's own), dead latents (counted layer
/// by layer), report_every; the decoder is free. What else is set to something is refused by name.
///
/// Dead latents of layer l are counted in `dead_latents(l)`; a report's `dead` and `l0` are sums over the layers.
/// Checkpoints and exact resume are as Trainer's (formats/checkpoint.hpp). The model must outlive the trainer.
/// Cost     a step is CrossLayerTranscoder::gradient (all gradients, L (L + 3) / 2 F D numbers) and the optimizer.
/// Threads  results do not depend on them.
/// Source   Ameisen et al. 2025, "Circuit tracing", transformer-circuits.pub/2025/attribution-graphs/methods.html (inputs and outputs
///          normalised layer by layer); llamascopium trainer.py.
template <class Model, class Terms = Objective<>>
class CrossLayerTrainer {
 public:
  static constexpr std::string_view kind = "CrossLayerTrainer";  ///< what a checkpoint names
  using Scalar = typename Model::Scalar;
  using Parameters = typename Model::Parameters;

  /// \throws ValueError  a setting is out of range, or is not for this model.
  CrossLayerTrainer(Model& model, TrainerConfig config, Terms objective = {}, Threads& threads = Threads::shared())
      : model_(model), config_(std::move(config)), objective_(std::move(objective)), threads_(threads) {
    config_.check();
    if (config_.decoder == DecoderNorm::automatic) config_.decoder = DecoderNorm::free;
    check_config();
    objective_.check(model.d_in(), model.latents());
    using LayerStep = std::remove_cvref_t<decltype(workspace_.layers[0].step)>;
    objective_.for_each([]<class Term>(const Term&) {
      if constexpr (requires(Term & term, LayerStep & step) { term.advance(step); })
        throw_value("CrossLayerTrainer: ", Term::name, " follows the codes of one model, not those of several layers");
    });
    config_.choose_dead_window();
    moments_ = OptimizerState<Scalar>(config_.optimizer, config_.moments);
    Parameters::visit([&](std::string_view name, const auto& w) { moments_.add(name, w.rows(), w.cols()); },
                      model.parameters());
    const auto layers = static_cast<std::size_t>(model.layers());
    workspace_.layers.resize(layers);
    dead_.resize(layers);
    for (DeadLatents& dead : dead_) dead.reset(model.latents());
    input_scales_.assign(layers, 1.0);
    target_scales_.assign(layers, 1.0);
  }
  CrossLayerTrainer(const CrossLayerTrainer&) = delete;
  CrossLayerTrainer& operator=(const CrossLayerTrainer&) = delete;

  const Model& model() const { return model_; }
  const TrainerConfig& config() const { return config_; }
  const Terms& objective() const { return objective_; }
  Index step() const { return step_; }      ///< steps done
  Index tokens() const { return tokens_; }  ///< rows seen
  Index row_width() const { return 2 * model_.width(); }
  const DeadLatents& dead_latents(Index layer) const { return dead_.at(static_cast<std::size_t>(layer)); }
  /// What the inputs and the targets of each layer are multiplied by; 1 once they are folded.
  const std::vector<double>& input_scales() const { return input_scales_; }
  const std::vector<double>& target_scales() const { return target_scales_; }

  /// As Trainer::fit: to the end of the schedule, the end of the source, or until a callback (`(const StepReport&)` or
  /// `(CrossLayerTrainer&, const StepReport&)`, returning void, or bool: true stops) asks to; then folds the scales. After an
  /// exception the model still reads scaled rows, and `fit` may be called again to go on. One run a trainer.
  /// \throws ShapeError     the source has another width than `row_width`.
  /// \throws ValueError     a row holds a number that is not finite; the run has ended already.
  /// \throws DivergedError  the loss is not finite (the weights are those before the step), or at the end a weight.
  template <class Source, class... Callbacks>
    requires(RowSource<Source, Scalar>)
  FitStatus fit(Source& source, Callbacks&&... callbacks) {
    if (folded_) throw_value("CrossLayerTrainer: fit was run to its end already; make a new trainer to go on");
    if (source.width() != row_width())
      throw_shape("CrossLayerTrainer: the source yields rows of width ", source.width(),
                  ", the model needs inputs and targets of ", model_.layers(), " layers of ", model_.d_in(), " side by side, ",
                  row_width());
    if (!loop_.restore(source) && !prepared_) measure(source);
    prepared_ = true;
    const FitStatus status = loop_.run(*this, source, callbacks...);
    finish();
    return status;
  }
  /// As Trainer::prepare, for those who call `train_step` themselves.
  /// \throws ValueError  a step was done already; the source has no rows or one that is not finite.
  template <class Source>
    requires(RowSource<Source, Scalar>)
  void prepare(Source& source) {
    if (step_ > 0 || prepared_) throw_value("CrossLayerTrainer: prepare comes before the first step, ", step_, " are done");
    measure(source);
    prepared_ = true;
  }
  /// What `fit` does at its end: the scales are folded into the model, which from there on reads raw rows.
  /// \throws ValueError     it was done already.
  /// \throws DivergedError  a weight is not finite.
  void finish() {
    if (folded_) throw_value("CrossLayerTrainer: the run has ended already");
    check_weights();
    if (moments_.averages() && step_ > 0) {
      Parameters::visit([&](std::string_view name, auto& w) { moments_.average(name, w); }, model_.parameters());
      model_.parameters().constrain();
    }
    model_.fold_scales(input_scales_, target_scales_);
    folded_ = true;
    std::fill(input_scales_.begin(), input_scales_.end(), 1.0);
    std::fill(target_scales_.begin(), target_scales_.end(), 1.0);
  }
  /// \throws DivergedError  a weight is not finite.
  void check_weights() const { detail::check_weights(model_.parameters(), step_); }

  /// One step on rows [B x 2 L D] in the units of the source (what `fit` repeats, without preparing or folding). Without `report`
  /// the explained variance is that of an earlier one.
  /// \throws ValueError     a row holds a number that is not finite.
  /// \throws DivergedError  the loss is not finite; the weights are those before the step.
  const StepReport& train_step(const Batch<Scalar>& rows, bool report = true) {
    load(rows);
    const Index steps = config_.total_steps();
    const double rate = config_.learning_rate * config_.schedule.factor(step_, steps);
    const double sparsity = sparsity_warmup_factor(step_, config_.sparsity_warmup);
    Index dead = 0;
    for (std::size_t l = 0; l < dead_.size(); ++l) {
      auto& step = workspace_.layers[l].step;
      step.number = step_;
      step.sparsity_scale = sparsity;
      const Index here = dead_[l].mark(config_.dead.window);
      step.dead = here > 0 ? dead_[l].mask() : std::span<const std::uint8_t>();
      dead += here;
    }
    auto gradient = model_.gradient(Batch<Scalar>(inputs_), Batch<Scalar>(targets_), objective_, workspace_, threads_);
    if (!std::isfinite(gradient.loss.total))
      throw DivergedError(step_ + 1, detail::concat("the loss is ", gradient.loss.total));
    model_.observe(workspace_);
    Index active = 0;
    for (std::size_t l = 0; l < dead_.size(); ++l) {
      const Codes<Scalar>& codes = workspace_.layers[l].step.main.entries.codes;
      dead_[l].count(codes, config_.dead.unit == DeadUnit::tokens ? codes.rows() : 1, config_.dead.least_value);
      active += codes.size() - static_cast<Index>(std::count(codes.values().begin(), codes.values().end(), Scalar(0)));
    }

    double squares = 0;
    if (config_.clip_norm > 0) {
      Parameters::visit(
          [&](std::string_view, const auto& g) { squares += static_cast<double>(kernels::squared_norm(g.data(), g.size())); },
          gradient.parameters);
      report_.gradient_norm = std::sqrt(squares);
      const double clip = std::min(1.0, config_.clip_norm / (report_.gradient_norm + config_.clip_epsilon));
      Parameters::visit([&](std::string_view, auto& g) { kernels::scale(g.data(), static_cast<Scalar>(clip), g.size()); },
                        gradient.parameters);
    }
    moments_.begin_step(step_ + 1, rate);
    Parameters::visit([&](std::string_view name, auto& w, auto& g) { moments_.update(moments_.slots(name), w, g, threads_); },
                      model_.parameters(), gradient.parameters);
    model_.parameters().constrain();

    ++step_;
    tokens_ += rows.rows();
    report_.step = step_;
    report_.steps = steps;
    report_.tokens = tokens_;
    report_.loss = gradient.loss.total;
    report_.reconstruction = gradient.loss.reconstruction;
    report_.terms = gradient.loss.terms;
    report_.l0 = static_cast<double>(active) / static_cast<double>(rows.rows());
    if (report) report_.explained_variance = 1 - gradient.loss.reconstruction / target_variance();
    report_.dead = dead;
    report_.learning_rate = rate;
    report_.sparsity_scale = sparsity;
    return report_;
  }

  /// As Trainer::visit_state: tensors "layer0.W_enc", for each layer besides how long its latents have been silent and its scales.
  template <class Visitor>
  void visit_state(Visitor&& visitor) {
    if (folded_)
      throw_value("CrossLayerTrainer: the run has ended and its scales were folded into the model; there is nothing to resume");
    const auto tensor = [&](std::string_view name, auto& values) { visitor.tensor(name, values); };
    std::vector<std::int64_t> counters{step_, tokens_};
    Parameters::visit(tensor, model_.parameters());
    moments_.visit(tensor);
    Parameters::visit_state(tensor, model_.parameters());
    for (std::size_t l = 0; l < dead_.size(); ++l) {
      visitor.integers(detail::concat("layer", l, ".silent"), dead_[l].silent());
      visitor.number(detail::concat("layer", l, ".input_scale"), input_scales_[l]);
      visitor.number(detail::concat("layer", l, ".target_scale"), target_scales_[l]);
    }
    visitor.integers("counters", counters);
    loop_.visit_state(visitor);
    const auto fits = [&](const DeadLatents& dead) { return static_cast<Index>(dead.silent().size()) == model_.latents(); };
    if (counters.size() != 2 || !std::all_of(dead_.begin(), dead_.end(), fits))
      throw_value("the saved state does not belong to layers of ", model_.latents(), " latents");
    step_ = counters[0];
    tokens_ = counters[1];
  }
  /// As Trainer::fitting.
  bool fitting() const { return loop_.running(); }
  /// As Trainer::resume.
  void resume() { loop_.resume(); }

 private:
  void check_config() const {
    const auto refuse = [](bool set, std::string_view what) {
      if (set) throw_value("CrossLayerTrainer: ", what, " is not for a cross-layer transcoder");
    };
    refuse(config_.decoder != DecoderNorm::free, "decoder = unit");
    refuse(config_.ema > 0, "ema");
    refuse(config_.k_annealing.from > 0, "k_annealing");
    refuse(config_.resampling.form != ResamplingForm::off, "resampling");
    refuse(config_.reads_raw_rows, "reads_raw_rows");
    refuse(config_.loss_space != LossSpace::raw, "loss_space = normalised");
    refuse(config_.normalisation == Normalisation::whitening, "normalisation = whitening");
    refuse(config_.center != Center::none && config_.center != Center::mean, "a center other than none and mean");
    refuse(config_.dead.after_counting, "dead.after_counting");
    const Frozen& f = config_.frozen;
    refuse(f.encoder || f.decoder || f.b_enc || f.b_dec || f.skip || f.activation, "frozen");
    if (config_.normalisation != Normalisation::none && model_.activation().needs_decoder_norms())
      throw_value(
          "CrossLayerTrainer: ", std::string_view(model_.activation().name),
          " ranks by decoder norms, which the fold of a scale for each layer would change; normalisation = none is legal");
  }

  /// Scales of each layer and the mean target, from rows read ahead.
  template <class Source>
  void measure(Source& source) {
    if (config_.center == Center::none && config_.normalisation == Normalisation::none) return;
    const SourceState start = source.state();
    const Index wanted = std::min(config_.statistics_rows, config_.total_steps() * config_.batch), D = model_.d_in();
    const std::size_t layers = dead_.size();
    std::vector<RowStatistics> inputs(layers), targets(layers);
    Tensor<Scalar> piece(std::min<Index>(wanted, 512), row_width());
    while (inputs[0].rows() < wanted) {
      const Index got = std::min(fill_batch(source, piece), wanted - inputs[0].rows());
      if (got == 0) break;
      for (Index b = 0; b < got; ++b) {
        detail::check_finite(piece.row(b), piece.cols(), inputs[0].rows());
        for (std::size_t l = 0; l < layers; ++l) {
          const Scalar* const x = piece.row(b) + static_cast<Index>(l) * D;
          inputs[l].add(x, D);
          targets[l].add(x + model_.width(), D);
        }
      }
    }
    if (inputs[0].rows() == 0) throw_value("CrossLayerTrainer: the source has no rows");
    source.restore(start);
    for (std::size_t l = 0; l < layers; ++l) {
      input_scales_[l] = detail::row_scale(config_.normalisation, inputs[l], D);
      target_scales_[l] = detail::row_scale(config_.normalisation, targets[l], D);
      if (config_.center != Center::mean) continue;
      const std::vector<double> mean = targets[l].mean();
      for (Index j = 0; j < D; ++j)
        model_.parameters().b_dec()[static_cast<Index>(l) * D + j] =
            static_cast<Scalar>(target_scales_[l] * mean[static_cast<std::size_t>(j)]);
    }
  }
  void load(const Batch<Scalar>& rows) {
    if (rows.cols() != row_width())
      throw_shape("CrossLayerTrainer: rows have ", rows.cols(), " columns, the model needs ", row_width());
    const Index width = model_.width(), D = model_.d_in();
    if (inputs_.rows() != rows.rows()) {
      inputs_.resize(rows.rows(), width);
      targets_.resize(rows.rows(), width);
    }
    for (Index b = 0; b < rows.rows(); ++b) {
      detail::check_finite(rows.row(b), rows.cols(), tokens_ + b);
      for (Index j = 0; j < width; ++j) {
        const auto l = static_cast<std::size_t>(j / D);
        inputs_.row(b)[j] = static_cast<Scalar>(input_scales_[l]) * rows.row(b)[j];
        targets_.row(b)[j] = static_cast<Scalar>(target_scales_[l]) * rows.row(b)[width + j];
      }
    }
  }
  double target_variance() const {
    RowStatistics statistics;
    for (Index b = 0; b < targets_.rows(); ++b) statistics.add(targets_.row(b), targets_.cols());
    return statistics.variance();
  }

  Model& model_;
  TrainerConfig config_;
  Terms objective_;
  Threads& threads_;
  OptimizerState<Scalar> moments_;
  std::vector<DeadLatents> dead_;
  std::vector<double> input_scales_, target_scales_;
  typename Model::template Workspace<Terms> workspace_;
  Tensor<Scalar> inputs_, targets_;  // [B x L D] of the batch, scaled
  Index step_ = 0, tokens_ = 0;
  detail::FitLoop loop_;
  bool prepared_ = false, folded_ = false;
  StepReport report_;
};

}  // namespace sae::inline SAE_ABI
