#pragma once
#include <sae/activations/any_activation.hpp>
#include <sae/data/source.hpp>
#include <sae/models/sparse_autoencoder.hpp>
#include <sae/training/default_objective.hpp>
#include <sae/training/fit_loop.hpp>
#include <sae/training/prepared_rows.hpp>
#include <sae/training/trainer_config.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string_view>
#include <utility>
#include <vector>

namespace sae::inline SAE_ABI {

/// Trains a model on a source of rows.
///
///   sae::Trainer trainer(model, {.tokens = 2'000'000, .learning_rate = 1e-3});
///   trainer.fit(source, sae::progress_bar(std::cerr));
///
/// One step: rows -> normalise -> encode and select (the one dense product) -> decode and residual -> terms of the loss -> code
/// gradient -> per latent, in one pass over its rows: weight gradient, projection, optimizer, unit norm. With `clip_norm`, or an
/// optimizer that is not row-local, all gradients are needed first and take memory of their own (2 F D numbers).
/// Average: with `ema` = beta > 0 each step ends with a <- beta a + (1 - beta) w, for every weight w, a from 0. When `fit` ends,
/// early or not, a / (1 - beta^t) takes the place of w; decoder rows are then brought back to their norm where `decoder` is `unit`, as
/// a mean of unit vectors is shorter. Until then callbacks see w. It takes 2 F D numbers. Source: openai/sparse_autoencoder
/// train.py, EmaModel, which averages before a step and does not renormalise. The optimizer ScheduleFree averages by itself: what it ends
/// with takes the place of the weights in the same way.
/// Weights that are stored in 16 bits (SparseAutoencoder's Stored): a step widens a row, updates it, brings it to its norm and rounds it
/// stochastically by the step and the place of each number, so that small steps move it in the mean. Unit rows then have their norm within
/// that rounding. Without `ema`, whitening, ScheduleFree, Muon and Adafactor, which need weights of float.
/// Results are the same bytes for any number of threads; `visit_state` with the source's state resumes to the last bit.
/// The trainer keeps a reference to the model, which must outlive it.
template <class Model, class Terms = typename DefaultObjective<typename Model::Activation>::type>
class Trainer {
  static_assert(detail::is_objective<Terms>, "sae: give the terms of the loss as an objective: sae::Objective{sae::AuxK{}}");
  static_assert(!std::is_same_v<typename Model::Parameters::Stored, std::int8_t> &&
                    !std::is_same_v<typename Model::Parameters::Stored, Mapped>,
                "sae: weights of 8 bits, and those in files, are not trained; with_weights<float>(model) can be");

 public:
  static constexpr std::string_view kind = "Trainer";  ///< what a checkpoint names
  using Scalar = typename Model::Scalar;
  using Parameters = typename Model::Parameters;
  using Stored = typename Parameters::Stored;
  static constexpr bool narrow_weights = !std::is_same_v<Stored, Scalar>;  ///< they are stored in 16 bits

  Trainer(Model& model, TrainerConfig config, Terms objective, Threads& threads = Threads::shared())
      : model_(model),
        config_(std::move(config)),
        objective_(std::move(objective)),
        threads_(threads),
        rows_(model_, config_, threads_) {
    config_.check();
    if (config_.decoder == DecoderNorm::automatic) config_.decoder = predicts ? DecoderNorm::free : DecoderNorm::unit;
    objective_.check(model.d_in(), model.latents());
    check_fit();
    rows_.check();
    const Tensor<Stored>& decoder = model.parameters().W_dec;
    const auto is_zero = [](const Stored& w) { return detail::number(w) == Scalar(0); };
    if (model.activation().needs_decoder_norms() && std::all_of(decoder.data(), decoder.data() + decoder.size(), is_zero))
      throw_value("Trainer: W_dec is 0, and ", std::string_view(model.activation().name),
                  " ranks by its norms: no latent would ever be active (TranscoderOptions::decoder_norm starts it elsewhere)");
    moments_ = OptimizerState<Scalar>(config_.optimizer, config_.moments);
    Parameters::visit(
        [&](std::string_view name, const auto& w) {
          if (!config_.frozen.holds(name)) moments_.add(name, w.rows(), w.cols());
        },
        model.parameters());
    if (config_.ema > 0) average_.resize_like(model.parameters());
    shared_gradient_.activation = model.parameters().activation;
    detail::resize_own(shared_gradient_.activation, model.latents(), model.d_in());
    shared_gradient_.b_dec.resize(1, model.parameters().output_width());
    shared_gradient_.W_skip.resize(model.parameters().W_skip.rows(), model.parameters().W_skip.cols());
    dead_.reset(model.latents());
    resampler_.reset(config_.resampling, {.latents = model.latents(),
                                          .d_in = model.d_in(),
                                          .d_out = row_width() - model.d_in(),
                                          .rows = config_.total_steps() * config_.batch,
                                          .decoder_norm = unit_decoder() ? config_.decoder_norm : 0,
                                          .loss_space = config_.loss_space});
    config_.choose_dead_window();
  }
  Trainer(Model& model, TrainerConfig config, Threads& threads = Threads::shared())
      : Trainer(model, config, default_terms(model, config), threads) {}
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;

  const TrainerConfig& config() const { return config_; }
  const Model& model() const { return model_; }
  const Terms& objective() const { return objective_; }
  Index step() const { return step_; }                         ///< steps done
  Index tokens() const { return tokens_; }                     ///< rows seen
  double scale() const { return rows_.scale(); }               ///< what rows are multiplied by
  Index optimizer_numbers() const { return moments_.size(); }  ///< numbers that the optimizer keeps from step to step
  Index optimizer_bytes() const { return moments_.bytes(); }   ///< bytes that they take
  static constexpr bool predicts = detail::PreparedRows<Model>::predicts;  ///< a transcoder
  /// Width of the rows that a source yields: D_in, of a transcoder D_in + D_out, x before y.
  Index row_width() const { return rows_.row_width(); }
  DeadLatents& dead_latents() { return dead_; }
  const DeadLatents& dead_latents() const { return dead_; }

  /// Runs to the end of the schedule, the end of the source, or until a callback returns true; then folds the scale into the
  /// model, which from there on reads raw rows. One run a trainer.
  ///
  /// A callback is any callable taking `(const StepReport&)` or `(Trainer&, const StepReport&)`, every `report_every` steps and
  /// at the last one; returning void, or bool: true asks to stop.
  /// \throws ValueError     a row holds a number that is not finite; the source has another width than the model.
  /// \throws DivergedError  the loss is not finite any more, or at the end a weight.
  /// After an exception (this one, the source's, a callback's) the model still reads rows multiplied by `scale()`; the steps done
  /// stand, and `fit` may be called again to go on with the rows that the source then gives: a batch behind the one that failed where
  /// that was being read already, as it is in steps that call no callback.
  template <class Source, class... Callbacks>
    requires(RowSource<Source, Scalar>)
  FitStatus fit(Source& source, Callbacks&&... callbacks) {
    if (folded_) throw_value("Trainer: fit was run to its end already; make a new trainer to go on");
    if (source.width() != row_width())
      throw_shape("Trainer: the source yields rows of width ", source.width(), ", ", rows_.needs());
    if (!loop_.restore(source) && !prepared_) rows_.measure(source);
    prepared_ = true;
    const FitStatus status = loop_.run(*this, source, callbacks...);
    finish();
    return status;
  }
  /// What `fit` does before the first step, for those who call `train_step` themselves: reads `statistics_rows` rows ahead, finds the
  /// scale and the centre, and puts the source back. Before the first step.
  /// \throws ValueError  a step was done already; the source has no rows or one that is not finite.
  template <class Source>
    requires(RowSource<Source, Scalar>)
  void prepare(Source& source) {
    if (step_ > 0 || prepared_) throw_value("Trainer: prepare comes before the first step, ", step_, " are done");
    rows_.measure(source);
    prepared_ = true;
  }
  /// The same without a source: takes over what another trainer found, before its first step. False, and nothing is done, where the
  /// settings would have found something else.
  bool prepare_like(const Trainer& other) {
    if (step_ > 0 || prepared_) throw_value("Trainer: prepare comes before the first step, ", step_, " are done");
    if (!other.prepared_ || other.step_ > 0 || !rows_.measures_like(other.rows_)) return false;
    rows_.share(other.rows_);
    return prepared_ = true;
  }
  /// What `fit` does at its end: the average of the weights takes their place where there is one (`averaged`), the input scale is
  /// folded into the model, which from there on reads raw rows.
  /// \throws ValueError     it was done already.
  /// \throws DivergedError  a weight is not finite.
  void finish() {
    if (folded_) throw_value("Trainer: the run has ended already");
    check_weights();
    if constexpr (!narrow_weights)
      if (averages() && step_ > 0) model_.parameters() = averaged();
    folded_ = true;
    model_.parameters().activation.constrain();
    rows_.fold();
  }
  /// \throws DivergedError  a weight is not finite.
  void check_weights() const { detail::check_weights(model_.parameters(), step_); }
  /// Whether the training ends with an average of the weights: `ema` is on, or the optimizer averages.
  bool averages() const { return config_.ema > 0 || moments_.averages(); }
  /// The average of the weights as `fit` leaves it in the model, but in the units of the scaled rows.
  /// \throws ValueError  there is none, or no step was done.
  Parameters averaged() const requires(!narrow_weights) {
    if (!averages() || step_ == 0) throw_value("Trainer: no average of weights: ema = ", config_.ema, ", ", step_, " steps");
    Parameters out = model_.parameters();
    if (config_.ema > 0) {
      const auto factor = static_cast<Scalar>(1 / (1 - std::pow(config_.ema, static_cast<double>(step_))));
      Parameters::visit(
          [&](std::string_view name, auto& w, const auto& a) {
            if (config_.frozen.holds(name)) return;
            w = a;
            kernels::scale(w.data(), factor, w.size());
          },
          out, average_);
    } else {
      Parameters::visit(
          [&](std::string_view name, auto& w) {
            if (!config_.frozen.holds(name)) moments_.average(name, w);
          },
          out);
    }
    if (unit_decoder())
      for (Index i = 0; i < out.latents(); ++i) normalise(out.W_dec.row(i));
    return out;
  }

  /// One step on one batch of raw rows (what `fit` repeats, without preparing or folding).
  /// \throws ValueError     a row holds a number that is not finite.
  /// \throws DivergedError  the loss is not finite; the weights are those before the step.
  const StepReport& train_step(const Batch<Scalar>& rows, bool report = true) {
    run_forward(rows);
    return finish_step(report, nullptr);
  }
  /// One step on a loss of the caller's own (end-to-end training: how far a network's answer moves when x' takes the place of x):
  ///
  ///   L = caller's loss + reconstruction_weight reconstruction loss + terms of the objective
  ///
  /// The first is told by its derivative dL/dx' [B x D_out] at the reconstruction of these rows; both in units of the raw rows. The
  /// others are in units of the normalised rows, as always; the report's `loss` is their sum, without the caller's.
  const StepReport& train_step(const Batch<Scalar>& rows, const Batch<Scalar>& reconstruction_gradient,
                               double reconstruction_weight = 0, bool report = true) {
    forward(rows);
    return backward(reconstruction_gradient, reconstruction_weight, report);
  }
  /// The same in two halves: the reconstruction x' [B x D_out] of raw rows, in their units, then the step by dL/dx'. The rows need not
  /// live on in between. A `forward` whose `backward` never comes leaves no trace but for a `Center::first_batch_geometric_median`.
  ///
  ///   const auto& reconstruction = trainer.forward(rows);
  ///   trainer.backward(network.gradient_of_kl(reconstruction.map()));
  ///
  /// \throws ValueError  reconstruction_weight is negative; backward without forward.
  const Tensor<Scalar>& forward(const Batch<Scalar>& rows) {
    run_forward(rows);
    auto& step = workspace_.step;
    const Index width = step.output_width();
    if (outer_.rows() != step.rows() || outer_.cols() != width) outer_.resize(step.rows(), width);
    threads_.for_blocks(step.rows(), row_block, [&](Index begin, Index end, Index) {
      for (Index b = begin; b < end; ++b)
        for (Index j = 0; j < width; ++j) outer_.row(b)[j] = step.residual.row(b)[j] + step.target.row(b)[j];
    });
    rows_.to_source(outer_, step.row_scales);
    pending_ = true;
    return outer_;
  }
  const StepReport& backward(const Batch<Scalar>& reconstruction_gradient, double reconstruction_weight = 0,
                             bool report = true) {
    if (!pending_) throw_value("Trainer: backward without a forward before it");
    require_non_negative("Trainer: reconstruction_weight", reconstruction_weight);
    const RowsView<Scalar> given(reconstruction_gradient);
    if (given.rows != outer_.rows() || given.cols != outer_.cols())
      throw_shape("Trainer: dL/dx' is [", given.rows, " x ", given.cols, "], the reconstruction is [", outer_.rows(), " x ",
                  outer_.cols(), "]");
    for (Index b = 0; b < given.rows; ++b)
      for (Index j = 0; j < given.cols; ++j) {
        if (!std::isfinite(given.row(b)[j]))
          throw_value("Trainer: row ", b, " of dL/dx' at step ", step_ + 1, " holds a number that is not finite");
        outer_.row(b)[j] = given.row(b)[j];
      }
    rows_.gradient_from_source(outer_);
    const detail::OuterLoss<Scalar> outer{
        .gradient = RowsView<Scalar>(outer_), .alone = false, .reconstruction_weight = reconstruction_weight};
    return finish_step(report, &outer);
  }

  /// Everything that a resumed training needs, by name: visitor.tensor(name, Tensor&), visitor.integers(name, std::vector<int64>&),
  /// visitor.number(name, double&), visitor.source(SourceState&). Reading and writing walk the same list. Integers are counts,
  /// 0 or more; numbers are positive. A trainer that ran to its end has no such state: its scale was folded into the model.
  template <class Visitor>
  void visit_state(Visitor&& visitor) {
    if (folded_) throw_value("Trainer: the run has ended and its scale was folded into the model; there is nothing to resume");
    std::vector<std::int64_t> counters{step_, tokens_};
    Parameters::visit([&](std::string_view name, auto& tensor) { visitor.tensor(name, tensor); }, model_.parameters());
    moments_.visit([&](std::string_view name, auto& tensor) { visitor.tensor(name, tensor); });
    if (config_.ema > 0)
      Parameters::visit([&](std::string_view name, auto& tensor) { visitor.tensor(detail::concat("average.", name), tensor); },
                        average_);
    Parameters::visit_state([&](std::string_view name, auto& tensor) { visitor.tensor(name, tensor); }, model_.parameters());
    objective_.for_each([&](auto& term) {
      if constexpr (requires { term.visit_state(visitor); }) term.visit_state(visitor);
    });
    resampler_.visit_state(visitor);
    visitor.integers("silent", dead_.silent());
    visitor.integers("counters", counters);
    rows_.visit_state(visitor);
    loop_.visit_state(visitor);
    if (counters.size() != 2 || static_cast<Index>(dead_.silent().size()) != model_.latents())
      throw_value("the saved state does not belong to a model of ", model_.latents(), " latents");
    step_ = counters[0];
    tokens_ = counters[1];
  }
  /// Whether `fit` is running, in one of whose callbacks one is: only then the source can be asked where it stands.
  bool fitting() const { return loop_.running(); }
  /// After a state was read through `visit_state`: the next `fit` goes on from there.
  void resume() { loop_.resume(); }

 private:
  static constexpr Index row_block = 64;  ///< rows that a thread takes at a time

  /// What config and model must agree on.
  void check_fit() const {
    const KAnnealing& annealing = config_.k_annealing;
    if (annealing.from > 0 && detail::row_k(model_.activation()) == 0)
      throw_value("Trainer: k_annealing.from = ", annealing.from, ", and the activation ",
                  std::string_view(model_.activation().name), " has no k to anneal (topk, batch_topk and abs_topk have)");
    if (annealing.from > model_.latents())
      throw_value("Trainer: k_annealing.from = ", annealing.from, " is not in [1, ", model_.latents(), "] (the latents)");
    if (model_.parameters().tied() && config_.frozen.encoder != config_.frozen.decoder)
      throw_value("Trainer: frozen.encoder and frozen.decoder differ, and ", std::string_view(model_.activation().name),
                  " ties the two");
    const auto refuse = [](bool set, std::string_view what) {
      if (set && narrow_weights) throw_value("Trainer: ", what, " needs weights of float, and these are stored in 16 bits");
    };
    refuse(config_.ema > 0, "ema, which keeps an average of them in float,");
    refuse(config_.normalisation == Normalisation::whitening, "normalisation = whitening, which is folded into them,");
    std::visit(
        [&]<class Kind>(const Kind& optimizer) {
          refuse(!Kind::row_local || std::is_same_v<Kind, ScheduleFree>, detail::concat("the optimizer ", optimizer.name));
        },
        config_.optimizer);
  }
  /// Whether decoder rows are kept at norm 1.
  bool unit_decoder() const { return config_.decoder == DecoderNorm::unit && !config_.frozen.decoder; }
  bool normalises_after() const { return unit_decoder() && !config_.normalise_before_update; }

  /// The model has the k of step `step_` while it lives.
  class AnnealedK {
   public:
    AnnealedK(Model& model, const KAnnealing& annealing, Index t) : model_(model), own_(detail::row_k(model.activation())) {
      if (annealing.from == 0 || t >= annealing.steps) return;
      const auto to = std::max<Index>(1, static_cast<Index>(std::llround(own_)));
      model_.set_k(static_cast<double>(annealed_k(t, annealing.steps, annealing.from, to, annealing.shape)));
      changed_ = true;
    }
    ~AnnealedK() {
      if (changed_) model_.set_k(own_);
    }
    AnnealedK(const AnnealedK&) = delete;
    AnnealedK& operator=(const AnnealedK&) = delete;

   private:
    Model& model_;
    double own_;
    bool changed_ = false;
  };

  detail::StepRows<Scalar> step_rows() const { return {rows_.rows(), rows_.target()}; }
  /// First half of a step: codes, reconstruction.
  void run_forward(const Batch<Scalar>& rows) {
    pending_ = false;
    rows_.load(rows, tokens_);
    model_.parameters().activation.constrain();
    if (step_ == 0 && config_.center == Center::first_batch_geometric_median) rows_.center_on_batch();
    auto& step = workspace_.step;
    step.number = step_;
    step.loss_space = config_.loss_space;
    step.sparsity_scale = sparsity_warmup_factor(step_, config_.sparsity_warmup);
    step.wants_gradient = true;
    step.dead = {};
    marked_dead_ = 0;
    if (!config_.dead.after_counting) mark_dead();
    const AnnealedK annealed(model_, config_.k_annealing, step_);
    detail::run_forward(model_, step_rows(), objective_, workspace_, threads_);
  }
  /// Second half: terms, gradients, update.
  const StepReport& finish_step(bool report, const detail::OuterLoss<Scalar>* outer) {
    pending_ = false;
    auto& step = workspace_.step;
    const Index steps = config_.total_steps();
    const double rate = config_.learning_rate * config_.schedule.factor(step_, steps);
    dead_.count(step.main.entries.codes, config_.dead.unit == DeadUnit::tokens ? step.rows() : 1, config_.dead.least_value);
    if (config_.dead.after_counting) mark_dead();
    zero_activation_gradient();
    detail::run_backward(model_, objective_, workspace_, threads_, &shared_gradient_, outer);
    if (!std::isfinite(step.loss.total)) throw DivergedError(step_ + 1, detail::concat("the loss is ", step.loss.total));

    step.selectors.observe(model_.activation(), model_.parameters().activation);
    objective_.for_each([&](auto& term) {
      if constexpr (requires { term.advance(step); }) term.advance(step);
    });

    report_.gradient_norm = std::numeric_limits<double>::quiet_NaN();
    moments_.begin_step(step_ + 1, rate);
    if (config_.clip_norm > 0 || !moments_.row_local()) {
      update_from_all_gradients();
    } else {
      update_latent_by_latent();
    }
    if constexpr (!narrow_weights)
      if (config_.ema > 0) update_average();
    report_.resampled = 0;
    if (const auto batch = step_rows(); resampler_.count(step.main.entries.codes, config_.dead.least_value, batch))
      report_.resampled = resampler_.resample(model_, batch, moments_, dead_, threads_);
    ++step_;
    tokens_ += step.rows();
    report_.step = step_;
    report_.steps = steps;
    report_.tokens = tokens_;
    report_.dead = marked_dead_;
    report_.learning_rate = rate;
    report_.sparsity_scale = step.sparsity_scale;
    if (report) {
      report_.loss = step.loss.total;
      report_.reconstruction = step.loss.reconstruction;
      report_.terms = step.loss.terms;
      report_.l0 = static_cast<double>(active_entries(step.main.entries.codes)) / static_cast<double>(step.rows());
      report_.explained_variance = 1 - step.loss.reconstruction / batch_variance();
    }
    return report_;
  }

  /// A penalty on codes alone would be met by longer rows of a transcoder's free decoder: there it weighs by their norms.
  static Terms default_terms(const Model& model, const TrainerConfig& config) {
    Terms out = DefaultObjective<typename Model::Activation>::make(model.activation());
    if (predicts && config.decoder != DecoderNorm::unit)
      out.for_each([](auto& term) {
        if constexpr (requires { term.weighted_by_decoder_norm; }) term.weighted_by_decoder_norm = true;
      });
    return out;
  }

  void mark_dead() {
    marked_dead_ = dead_.mark(config_.dead.window);
    if (marked_dead_ > 0) workspace_.step.dead = dead_.mask();
  }
  void zero_activation_gradient() {
    Parameters::visit_activation([](std::string_view, auto& tensor) { tensor.set_zero(); }, shared_gradient_);
  }

  /// g -= (g . d^) d^ with d^ = d / (|d| + epsilon), d brought to its norm first where that comes before the update.
  void constrain_row(Scalar* direction, Scalar* gradient) const {
    if (config_.normalise_before_update) normalise(direction);
    const Index width = model_.parameters().output_width();
    const Scalar norm = std::sqrt(kernels::squared_norm(direction, width)) + static_cast<Scalar>(config_.projection_epsilon);
    if (!(norm > Scalar(0))) return;
    const Scalar along = kernels::dot(gradient, direction, width) / (norm * norm);
    kernels::add_scaled(gradient, -along, direction, width);
  }
  void normalise(Scalar* direction) const {
    const Index width = model_.parameters().output_width();
    const Scalar norm = std::sqrt(kernels::squared_norm(direction, width)) + static_cast<Scalar>(config_.unit_norm_epsilon);
    if (norm > Scalar(0)) kernels::scale(direction, static_cast<Scalar>(config_.decoder_norm) / norm, width);
  }

  /// One pass: nothing but two gradient rows of each thread's current latent ever exists.
  void update_latent_by_latent() {
    auto& step = workspace_.step;
    Parameters& p = model_.parameters();
    const Index in = p.width(), out = p.output_width(), latents = p.latents();
    const bool unit = unit_decoder(), renorm = normalises_after(),
               subtracts = model_.subtracts_decoder_bias() && !config_.frozen.b_dec;
    const bool has_bias = p.b_enc.size() > 0 && !config_.frozen.b_enc;
    const bool reads = !p.tied() && !config_.frozen.encoder, writes = !config_.frozen.decoder;
    auto* const dec = writes ? &moments_.slots("W_dec") : nullptr;
    auto* const enc = reads ? &moments_.slots("W_enc") : nullptr;
    auto* const bias = has_bias ? &moments_.slots("b_enc") : nullptr;
    const Index size = detail::gradient_block(step), blocks = (latents + size - 1) / size;
    Tensor<Scalar>& partial = step.read_sums;
    if (subtracts && (partial.rows() != blocks || partial.cols() != in)) partial.resize(blocks, in);
    threads_.for_blocks(latents, size, [&](Index begin, Index end, Index block) {
      if (subtracts) std::fill_n(partial.row(block), in, Scalar(0));
      detail::WideRows<Scalar, Stored> wide(step.scratch, std::max(in, out));
      detail::visit_latent_gradients(step, begin, end, [&](Index i, Scalar* g_enc, Scalar g_bias, Scalar* g_dec) {
        // What lies in six arrays comes from memory while the next latent's gradient is summed.
        if (i + 1 < end) {
          if (reads) moments_.prefetch_rows(*enc, (i + 1) * in, p.W_enc.row(i + 1), in);
          if (writes) moments_.prefetch_rows(*dec, (i + 1) * out, p.W_dec.row(i + 1), out);
        }
        // The gradient of b_dec reads W_enc before it moves.
        if (subtracts) kernels::add_scaled(partial.row(block), g_bias, wide(p.encoder().row(i), in), in);
        if (reads)
          wide.change(p.W_enc, i, enc->weight_key, [&](Scalar* w) { moments_.update_rows(*enc, i * in, w, g_enc, in); });
        if (writes)
          wide.change(p.W_dec, i, dec->weight_key, [&](Scalar* w) {
            if (unit) constrain_row(w, g_dec);
            moments_.update_rows(*dec, i * out, w, g_dec, out);
            if (renorm) normalise(w);
          });
        if (has_bias) moments_.update_rows(*bias, i, &p.b_enc[i], &g_bias, 1);
      });
    });
    detail::shared_gradients(step, subtracts ? &step.read_sums : nullptr, shared_gradient_, threads_);
    const auto update = [&](std::string_view name, auto& w, auto& g) {
      if (w.size() > 0 && !config_.frozen.holds(name)) moments_.update(moments_.slots(name), w, g, threads_);
    };
    update("b_dec", p.b_dec, shared_gradient_.b_dec);
    update("W_skip", p.W_skip, shared_gradient_.W_skip);
    Parameters::visit_activation(update, p, shared_gradient_);
  }

  /// Two passes: all gradients, their norm in a fixed order, then the update.
  void update_from_all_gradients() {
    Parameters& p = model_.parameters();
    if (gradient_.latents() != p.latents()) gradient_.resize_like(p);
    detail::materialise_gradient(model_, workspace_.step, gradient_, threads_);
    Parameters::visit_activation([](std::string_view, auto& to, const auto& from) { to = from; }, gradient_, shared_gradient_);
    if (unit_decoder())
      threads_.for_blocks(p.latents(), row_block, [&](Index begin, Index end, Index) {
        if constexpr (narrow_weights) {  // of a copy: rows are rounded once a step, when they are updated
          auto loan = workspace_.step.scratch.borrow(p.output_width());
          for (Index i = begin; i < end; ++i) {
            kernels::widen(p.W_dec.row(i), loan.data(), p.output_width());
            constrain_row(loan.data(), gradient_.W_dec.row(i));
          }
        } else {
          for (Index i = begin; i < end; ++i) constrain_row(p.W_dec.row(i), gradient_.W_dec.row(i));
        }
      });
    double squares = 0;
    std::vector<double>& row_squares = row_squares_;
    Parameters::visit(
        [&](std::string_view name, const auto& g) {
          if (config_.frozen.holds(name)) return;
          row_squares.assign(static_cast<std::size_t>(g.rows()), 0.0);
          threads_.for_blocks(g.rows(), row_block, [&](Index begin, Index end, Index) {
            for (Index i = begin; i < end; ++i)
              row_squares[static_cast<std::size_t>(i)] = static_cast<double>(kernels::squared_norm(g.row(i), g.cols()));
          });
          for (const double s : row_squares) squares += s;
        },
        gradient_);
    report_.gradient_norm = std::sqrt(squares);
    const double clip = config_.clip_norm > 0 ? config_.clip_norm / (report_.gradient_norm + config_.clip_epsilon) : 1.0;
    const auto factor = static_cast<Scalar>(std::min(1.0, clip));
    Parameters::visit(
        [&](std::string_view name, auto& w, auto& g) {
          if (config_.frozen.holds(name)) return;
          threads_.for_blocks(g.rows(), row_block, [&](Index begin, Index end, Index) {
            kernels::scale(g.row(begin), factor, (end - begin) * g.cols());
          });
          if constexpr (detail::is_half<std::remove_cvref_t<decltype(w[0])>>) {
            auto& slots = moments_.slots(name);
            threads_.for_blocks(w.rows(), row_block, [&](Index begin, Index end, Index) {
              detail::WideRows<Scalar, Stored> wide(workspace_.step.scratch, w.cols());
              for (Index i = begin; i < end; ++i)
                wide.change(w, i, slots.weight_key, [&](Scalar* row) {
                  if (&w == &p.W_dec && unit_decoder() && config_.normalise_before_update) normalise(row);
                  moments_.update_rows(slots, i * w.cols(), row, g.row(i), w.cols());
                  if (&w == &p.W_dec && normalises_after()) normalise(row);
                });
            });
          } else {
            moments_.update(moments_.slots(name), w, g, threads_);
          }
        },
        p, gradient_);
    if constexpr (!narrow_weights)
      if (normalises_after())
        threads_.for_blocks(p.latents(), row_block, [&](Index begin, Index end, Index) {
          for (Index i = begin; i < end; ++i) normalise(p.W_dec.row(i));
        });
  }

  /// a <- ema a + (1 - ema) w, of weights as the next step reads them.
  void update_average() requires(!narrow_weights) {
    const auto keep = static_cast<Scalar>(config_.ema), rest = static_cast<Scalar>(1 - config_.ema);
    model_.parameters().activation.constrain();
    Parameters::visit(
        [&](std::string_view, const auto& w, auto& a) {
          threads_.for_blocks(w.rows(), row_block, [&](Index begin, Index end, Index) {
            for (Index i = begin * w.cols(); i < end * w.cols(); ++i) a[i] = keep * a[i] + rest * w[i];
          });
        },
        model_.parameters(), average_);
  }

  static Index active_entries(const Codes<Scalar>& codes) {
    return codes.size() - static_cast<Index>(std::count(codes.values().begin(), codes.values().end(), Scalar(0)));
  }
  double batch_variance() {
    const RowsView<Scalar> rows = workspace_.step.measured_target;
    std::vector<RowStatistics>& blocks = batch_statistics_;  // the last one of all
    blocks.resize(static_cast<std::size_t>((rows.rows + row_block - 1) / row_block) + 1);
    for (RowStatistics& block : blocks) block.clear();
    threads_.for_blocks(rows.rows, row_block, [&](Index begin, Index end, Index block) {
      for (Index b = begin; b < end; ++b) blocks[static_cast<std::size_t>(block)].add(rows.row(b), rows.cols);
    });
    for (std::size_t block = 0; block + 1 < blocks.size(); ++block) blocks.back().merge(blocks[block]);
    return blocks.back().variance();
  }
  Model& model_;
  TrainerConfig config_;
  Terms objective_;
  Threads& threads_;
  detail::PreparedRows<Model> rows_;

  OptimizerState<Scalar> moments_;
  typename Parameters::Gradients average_;  ///< of the weights, not yet divided by 1 - ema^t; empty while `ema` is 0
  DeadLatents dead_;
  Resampler<Scalar> resampler_;
  Index step_ = 0, tokens_ = 0;
  detail::FitLoop loop_;
  bool prepared_ = false, folded_ = false;
  bool pending_ = false;   ///< between `forward` and `backward`
  Index marked_dead_ = 0;  ///< as of this step

  StepReport report_;
  typename Model::template Workspace<Terms> workspace_;
  typename Parameters::Gradients shared_gradient_;  ///< of b_dec, W_skip and the activation's own tensors; the others are empty
  typename Parameters::Gradients gradient_;         ///< all gradients; empty where none needs them
  std::vector<RowStatistics> batch_statistics_;
  std::vector<double> row_squares_;
  Tensor<Scalar> outer_;  ///< x' of `forward`, then dL/dx'
};

template <class Model>
Trainer(Model&, TrainerConfig) -> Trainer<Model>;
template <class Model>
Trainer(Model&, TrainerConfig, Threads&) -> Trainer<Model>;
template <class Model, class... Terms>
Trainer(Model&, TrainerConfig, Objective<Terms...>) -> Trainer<Model, Objective<Terms...>>;
template <class Model, class... Terms>
Trainer(Model&, TrainerConfig, Objective<Terms...>, Threads&) -> Trainer<Model, Objective<Terms...>>;

}  // namespace sae::inline SAE_ABI
