#pragma once
#include <sae/activations/any_activation.hpp>
#include <sae/data/source.hpp>
#include <sae/models/sparse_autoencoder.hpp>
#include <sae/training/any_objective.hpp>
#include <sae/training/statistics.hpp>
#include <sae/training/trainer_config.hpp>

#include <algorithm>
#include <cmath>
#include <concepts>
#include <functional>
#include <limits>
#include <optional>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace sae::inline SAE_ABI {

/// The terms that go with an activation where none are given: AuxK for TopK, L1 for ReLU, a penalty on L0 for JumpReLU, GatedAux
/// for Gated.
template <class Activation>
struct DefaultObjective {
  using type = Objective<>;
  static type make(const Activation&) { return {}; }
};
template <>
struct DefaultObjective<ReLU> {
  using type = Objective<L1>;
  static type make(const ReLU&) { return Objective{L1{.coefficient = 1e-3, .weighted_by_decoder_norm = false}}; }
};
template <>
struct DefaultObjective<JumpReLU> {
  using type = Objective<L0Penalty>;
  static type make(const JumpReLU&) { return Objective{L0Penalty{.coefficient = 1e-3}}; }
};
template <>
struct DefaultObjective<Gated> {
  using type = Objective<GatedAux>;
  static type make(const Gated&) { return Objective{GatedAux{.coefficient = 1e-3}}; }
};
template <>
struct DefaultObjective<TopK> {
  using type = Objective<AuxK>;
  static type make(const TopK& topk) { return Objective{AuxK{.rank_by_decoder_norm = topk.rank_by_decoder_norm}}; }
};
template <>
struct DefaultObjective<BatchTopK> {
  using type = Objective<AuxK>;
  static type make(const BatchTopK& topk) { return Objective{AuxK{.rank_by_decoder_norm = topk.rank_by_decoder_norm}}; }
};
template <>
struct DefaultObjective<AbsTopK> {
  using type = Objective<AuxK>;
  static type make(const AbsTopK& topk) {
    return Objective{AuxK{.raw_values = true, .rank_by_decoder_norm = topk.rank_by_decoder_norm, .by_magnitude = true}};
  }
};
template <>
struct DefaultObjective<GroupMax> {
  using type = Objective<AuxK>;
  static type make(const GroupMax&) { return Objective{AuxK{}}; }
};
template <>
struct DefaultObjective<AnyActivation> {
  using type = AnyObjective;
  static type make(const AnyActivation& any) {
    return any.visit([]<class Activation>(const Activation& activation) -> AnyObjective {
      return DefaultObjective<Activation>::make(activation);
    });
  }
};

/// Trains a model on a source of rows.
///
///   sae::Trainer trainer(model, {.tokens = 2'000'000, .learning_rate = 1e-3});
///   trainer.fit(source, sae::progress_bar(std::cerr));
///
/// One step: rows -> normalise -> encode and select (the one dense product) -> decode and residual -> terms of the loss -> code
/// gradient -> per latent, in one pass over its rows: weight gradient, projection, optimizer, unit norm. With `clip_norm`, or an
/// optimizer that is not row-local, all gradients are needed first and take memory of their own (2 F D numbers).
/// Average: with `ema` = beta > 0 each step ends with a <- beta a + (1 - beta) w, for every weight w, a from 0. When `fit` ends,
/// early or not, a / (1 - beta^t) takes the place of w; decoder rows are then brought back to norm 1 where `decoder` is `unit`, as
/// a mean of unit vectors is shorter. Until then callbacks see w. It takes 2 F D numbers. Source: openai/sparse_autoencoder
/// train.py, EmaModel, which averages before a step and does not renormalise.
/// Results are the same bytes for any number of threads; `visit_state` with the source's state resumes to the last bit.
/// The trainer keeps a reference to the model, which must outlive it.
template <class Model, class Terms = typename DefaultObjective<typename Model::Activation>::type>
class Trainer {
  static_assert(detail::is_objective<Terms>, "sae: give the terms of the loss as an objective: sae::Objective{sae::AuxK{}}");

 public:
  using Scalar = typename Model::Scalar;
  using Parameters = typename Model::Parameters;

  Trainer(Model& model, TrainerConfig config, Terms objective, Threads& threads = Threads::shared())
      : model_(model), config_(std::move(config)), objective_(std::move(objective)), threads_(threads) {
    config_.check();
    if (config_.decoder == DecoderNorm::automatic) config_.decoder = predicts ? DecoderNorm::free : DecoderNorm::unit;
    objective_.check(model.d_in(), model.latents());
    if (model.activation().needs_decoder_norms() && model.parameters().W_dec.map().isZero(0))
      throw_value("Trainer: W_dec is 0, and ", std::string_view(model.activation().name),
                  " ranks by its norms: no latent would ever be active (TranscoderOptions::decoder_norm starts it elsewhere)");
    moments_ = OptimizerState<Scalar>(config_.optimizer);
    Parameters::visit([&](std::string_view name, const auto& w) { moments_.add(name, w.rows(), w.cols()); },
                      model.parameters());
    if (config_.ema > 0) average_.resize_like(model.parameters());
    shared_gradient_.activation = model.parameters().activation;
    shared_gradient_.activation.resize(model.latents());
    shared_gradient_.b_dec.resize(1, model.parameters().output_width());
    shared_gradient_.W_skip.resize(model.parameters().W_skip.rows(), model.parameters().W_skip.cols());
    dead_.reset(model.latents());
    if (config_.dead.window == 0) {
      const Index run = config_.total_steps() * (config_.dead.unit == DeadUnit::tokens ? config_.batch : 1);
      config_.dead.window = std::clamp<Index>(run / 10, 1, config_.dead.unit == DeadUnit::tokens ? 10'000'000 : 10'000);
    }
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
  double scale() const { return scale_; }                      ///< what rows are multiplied by
  Index optimizer_numbers() const { return moments_.size(); }  ///< numbers that the optimizer keeps from step to step
  DeadLatents& dead_latents() { return dead_; }
  const DeadLatents& dead_latents() const { return dead_; }

  /// Runs to the end of the schedule, the end of the source, or until a callback returns true; then folds the scale into the
  /// model, which from there on reads raw rows. One run a trainer.
  ///
  /// A callback is any callable taking `(const StepReport&)` or `(Trainer&, const StepReport&)`, every `report_every` steps and
  /// at the last one; returning void, or bool: true asks to stop.
  /// \throws ValueError  a row holds a number that is not finite; the source has another width than the model.
  /// After an exception (this one, the source's, a callback's) the model still reads rows multiplied by `scale()`; the steps done
  /// stand, and `fit` may be called again to go on with the rows that the source then gives.
  template <class Source, class... Callbacks>
    requires(RowSource<Source, Scalar>)
  FitStatus fit(Source& source, Callbacks&&... callbacks) {
    if (folded_) throw_value("Trainer: fit was run to its end already; make a new trainer to go on");
    if (source.width() != row_width()) throw_shape("Trainer: the source yields rows of width ", source.width(), ", ", needs());
    if (restored_) {
      source.restore(source_state_);
      source_state_ = {};
    } else if (!prepared_) {
      prepare(source);
    }
    restored_ = false;
    prepared_ = true;
    ask_source_ = [&source] { return source.state(); };
    const Asking asking{*this};
    FitStatus status = FitStatus::finished;
    Tensor<Scalar> batch(config_.batch, row_width());
    const Index steps = config_.total_steps();
    while (step_ < steps && status == FitStatus::finished) {
      if (fill_batch(source, batch) < config_.batch) {
        status = FitStatus::exhausted;
        break;
      }
      const bool report = (step_ + 1) % config_.report_every == 0 || step_ + 1 == steps;
      train_step(batch, report);
      bool stop = false;
      if (report) ((stop = call(callbacks) || stop), ...);  // all of them, in order
      source_state_ = {};  // of a checkpoint that one of them made: a shuffle buffer's is large
      if (stop && step_ < steps) status = FitStatus::stopped;
    }
    if (config_.ema > 0 && step_ > 0) model_.parameters() = averaged();
    fold();
    return status;
  }
  /// The average of the weights as `fit` leaves it in the model, but in the units of the scaled rows.
  /// \throws ValueError  `ema` is 0, or no step was done.
  Parameters averaged() const {
    if (!(config_.ema > 0) || step_ == 0)
      throw_value("Trainer: no average of weights: ema = ", config_.ema, ", ", step_, " steps");
    Parameters out = model_.parameters();
    const auto factor = static_cast<Scalar>(1 / (1 - std::pow(config_.ema, static_cast<double>(step_))));
    Parameters::visit(
        [&](std::string_view, auto& w, const auto& a) {
          w = a;
          kernels::scale(w.data(), factor, w.size());
        },
        out, average_);
    if (config_.decoder == DecoderNorm::unit)
      for (Index i = 0; i < out.latents(); ++i) normalise(out.W_dec.row(i));
    return out;
  }

  /// One step on one batch of raw rows (what `fit` repeats, without preparing or folding).
  const StepReport& train_step(const Batch<Scalar>& rows, bool report = true) {
    load(rows);
    model_.parameters().activation.constrain();
    auto& step = workspace_.step;
    const Index steps = config_.total_steps();
    const double rate = config_.learning_rate * config_.schedule.factor(step_, steps);
    if (step_ == 0 && config_.center == Center::first_batch_geometric_median) set_decoder_bias(geometric_median(target()), 1.0);
    step.number = step_;
    step.sparsity_scale = sparsity_warmup_factor(step_, config_.sparsity_warmup);
    step.wants_gradient = true;
    Index dead = 0;
    step.dead = {};
    if (!config_.dead.after_counting) mark_dead(step, dead);
    zero_activation_gradient();
    detail::run_step(
        model_, detail::StepRows<Scalar>{rows_, target()}, objective_, workspace_, threads_,
        [&](auto& s) {
          dead_.count(s.main.entries.codes, config_.dead.unit == DeadUnit::tokens ? s.rows() : 1);
          if (config_.dead.after_counting) mark_dead(s, dead);
        },
        &shared_gradient_);

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
    if (config_.ema > 0) update_average();
    ++step_;
    tokens_ += rows.rows();
    report_.step = step_;
    report_.steps = steps;
    report_.tokens = tokens_;
    report_.dead = dead;
    report_.learning_rate = rate;
    report_.sparsity_scale = step.sparsity_scale;
    if (report) {
      report_.loss = step.loss.total;
      report_.reconstruction = step.loss.reconstruction;
      report_.terms = step.loss.terms;
      report_.l0 = static_cast<double>(active_entries(step.main.entries.codes)) / static_cast<double>(rows.rows());
      report_.explained_variance = 1 - step.loss.reconstruction / batch_variance();
    }
    return report_;
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
    const auto untrained = [&](std::string_view name, auto& tensor) { visitor.tensor(name, tensor); };
    if constexpr (requires { model_.parameters().activation.visit_state(untrained, model_.parameters().activation); })
      model_.parameters().activation.visit_state(untrained, model_.parameters().activation);
    objective_.for_each([&](auto& term) {
      if constexpr (requires { term.visit_state(visitor); }) term.visit_state(visitor);
    });
    visitor.integers("silent", dead_.silent());
    visitor.integers("counters", counters);
    visitor.number("scale", scale_);
    if (predicts) visitor.number("target_scale", target_scale_);
    if (ask_source_) source_state_ = ask_source_();
    visitor.source(source_state_);
    if (counters.size() != 2 || static_cast<Index>(dead_.silent().size()) != model_.latents())
      throw_value("the saved state does not belong to a model of ", model_.latents(), " latents");
    step_ = counters[0];
    tokens_ = counters[1];
  }
  /// Whether `fit` is running, in one of whose callbacks one is: only then the source can be asked where it stands.
  bool fitting() const { return static_cast<bool>(ask_source_); }
  /// After a state was read through `visit_state`: the next `fit` goes on from there.
  void resume() { restored_ = true; }

 private:
  static constexpr Index row_block = 64;  ///< rows that a thread takes at a time

  /// A penalty on codes alone would be met by longer rows of a transcoder's free decoder: there it weighs by their norms.
  static Terms default_terms(const Model& model, const TrainerConfig& config) {
    Terms out = DefaultObjective<typename Model::Activation>::make(model.activation());
    if (predicts && config.decoder != DecoderNorm::unit)
      out.for_each([](auto& term) {
        if constexpr (requires { term.weighted_by_decoder_norm; }) term.weighted_by_decoder_norm = true;
      });
    return out;
  }

  /// The source may be asked where it stands only while `fit` runs.
  struct Asking {
    Trainer& trainer;
    ~Asking() { trainer.ask_source_ = nullptr; }
  };

  template <class Source>
  void prepare(Source& source) {
    const bool wants_center = config_.center == Center::mean || config_.center == Center::geometric_median;
    if (wants_center || config_.normalisation != Normalisation::none) {
      const SourceState start = source.state();
      const Index wanted = std::min(config_.statistics_rows, config_.total_steps() * config_.batch);
      const bool keep = config_.center == Center::geometric_median;
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
      scale_ = scale_of(inputs, in);
      target_scale_ = predicts ? scale_of(targets, out) : scale_;
      if (config_.reads_raw_rows) fold_scales(1 / scale_, 1 / target_scale_);
      const RowStatistics& seen = predicts ? targets : inputs;
      if (config_.center == Center::mean) set_decoder_bias(seen.mean(), target_scale_);
      if (keep) {
        Tensor<Scalar> rows(seen.rows(), model_.parameters().output_width());
        for (Index b = 0; b < rows.rows(); ++b) std::copy_n(piece.row(b) + (predicts ? in : 0), rows.cols(), rows.row(b));
        set_decoder_bias(geometric_median(rows), target_scale_);
      }
    }
  }
  double scale_of(const RowStatistics& rows, Index width) const {
    if (config_.normalisation == Normalisation::mean_square && rows.mean_squared_norm() > 0)
      return 1 / std::sqrt(rows.mean_squared_norm());
    if (config_.normalisation == Normalisation::sqrt_d && rows.mean_norm() > 0)
      return std::sqrt(static_cast<double>(width)) / rows.mean_norm();
    return 1;
  }
  void set_decoder_bias(const std::vector<double>& center, double factor) {
    for (std::size_t j = 0; j < center.size(); ++j)
      model_.parameters().b_dec[static_cast<Index>(j)] = static_cast<Scalar>(factor * center[j]);
  }

  /// A transcoder's rows hold its input and, behind it, its target.
  static constexpr bool predicts = requires { typename Model::Targets; };
  Index row_width() const {
    if constexpr (predicts)
      return model_.d_in() + model_.d_out();
    else
      return model_.d_in();
  }
  std::string needs() const {
    return predicts ? detail::concat("the model needs inputs of ", model_.d_in(), " and targets of ",
                                     row_width() - model_.d_in(), " side by side, ", row_width())
                    : detail::concat("the model reads ", model_.d_in());
  }
  const Tensor<Scalar>& target() const { return predicts ? targets_ : rows_; }

  void load(const Batch<Scalar>& rows) {
    const Index in = model_.d_in(), out = row_width() - in;
    if (rows.cols() != row_width()) throw_shape("Trainer: rows have ", rows.cols(), " columns, ", needs());
    if (rows_.rows() != rows.rows() || rows_.cols() != in) rows_.resize(rows.rows(), in);
    if (predicts && (targets_.rows() != rows.rows() || targets_.cols() != out)) targets_.resize(rows.rows(), out);
    const auto factor = static_cast<Scalar>(scale_), target_factor = static_cast<Scalar>(target_scale_);
    threads_.for_blocks(rows.rows(), row_block, [&](Index begin, Index end, Index) {
      for (Index b = begin; b < end; ++b) {
        check_finite(rows.row(b), rows.cols(), tokens_ + b);
        for (Index j = 0; j < in; ++j) rows_.row(b)[j] = factor * rows.row(b)[j];
        for (Index j = 0; j < out; ++j) targets_.row(b)[j] = target_factor * rows.row(b)[in + j];
      }
    });
  }
  /// \param number  of the row in the stream, to name it.
  static void check_finite(const Scalar* row, Index width, Index number) {
    if (std::isfinite(kernels::squared_norm(row, width))) return;
    for (Index j = 0; j < width; ++j)  // squares of finite numbers may be too large
      if (!std::isfinite(row[j]))
        throw_value("Trainer: row ", number, " of the stream holds a number that is not finite (NaN or infinity)");
  }
  template <class Step>
  void mark_dead(Step& step, Index& dead) {
    dead = dead_.mark(config_.dead.window);
    if (dead > 0) step.dead = dead_.mask();
  }
  void zero_activation_gradient() {
    Parameters::visit_activation([](std::string_view, auto& tensor) { tensor.set_zero(); }, shared_gradient_);
  }

  /// g -= (g . d^) d^ with d^ = d / (|d| + epsilon).
  void project(const Scalar* direction, Scalar* gradient) const {
    const Index width = model_.parameters().output_width();
    const Scalar norm = std::sqrt(kernels::squared_norm(direction, width)) + static_cast<Scalar>(config_.projection_epsilon);
    if (!(norm > Scalar(0))) return;
    const Scalar along = kernels::dot(gradient, direction, width) / (norm * norm);
    kernels::add_scaled(gradient, -along, direction, width);
  }
  void normalise(Scalar* direction) const {
    const Index width = model_.parameters().output_width();
    const Scalar norm = std::sqrt(kernels::squared_norm(direction, width)) + static_cast<Scalar>(config_.unit_norm_epsilon);
    if (norm > Scalar(0)) kernels::scale(direction, Scalar(1) / norm, width);
  }

  /// One pass: nothing but two gradient rows of each thread's current latent ever exists.
  void update_latent_by_latent() {
    auto& step = workspace_.step;
    Parameters& p = model_.parameters();
    const Index in = p.width(), out = p.output_width(), latents = p.latents();
    const bool unit = config_.decoder == DecoderNorm::unit, subtracts = model_.subtracts_decoder_bias();
    const bool has_bias = p.b_enc.size() > 0, tied = p.tied();
    auto& dec = moments_.slots("W_dec");
    auto& enc = tied ? dec : moments_.slots("W_enc");
    auto& bias = has_bias ? moments_.slots("b_enc") : dec;
    const Index blocks = (latents + detail::gradient_block_latents - 1) / detail::gradient_block_latents;
    if (subtracts && (partial_.rows() != blocks || partial_.cols() != in)) partial_.resize(blocks, in);
    threads_.for_blocks(latents, detail::gradient_block_latents, [&](Index begin, Index end, Index block) {
      if (subtracts) std::fill_n(partial_.row(block), in, Scalar(0));
      detail::visit_latent_gradients(step, begin, end, [&](Index i, Scalar* g_enc, Scalar g_bias, Scalar* g_dec) {
        // The gradient of b_dec reads W_enc before it moves.
        if (subtracts) kernels::add_scaled(partial_.row(block), g_bias, p.encoder().row(i), in);
        if (unit) project(p.W_dec.row(i), g_dec);
        if (g_enc != nullptr) moments_.update_rows(enc, i * in, p.W_enc.row(i), g_enc, in);
        moments_.update_rows(dec, i * out, p.W_dec.row(i), g_dec, out);
        if (has_bias) moments_.update_rows(bias, i, &p.b_enc[i], &g_bias, 1);
        if (unit) normalise(p.W_dec.row(i));
      });
    });
    detail::shared_gradients(step, subtracts ? &partial_ : nullptr, shared_gradient_, column_sums_, threads_);
    moments_.update(moments_.slots("b_dec"), p.b_dec, shared_gradient_.b_dec, threads_);
    if (p.W_skip.size() > 0) moments_.update(moments_.slots("W_skip"), p.W_skip, shared_gradient_.W_skip, threads_);
    Parameters::visit_activation(
        [&](std::string_view name, auto& w, auto& g) { moments_.update(moments_.slots(name), w, g, threads_); }, p,
        shared_gradient_);
  }

  /// Two passes: all gradients, their norm in a fixed order, then the update.
  void update_from_all_gradients() {
    Parameters& p = model_.parameters();
    if (gradient_.latents() != p.latents()) gradient_.resize_like(p);
    detail::materialise_gradient(model_, workspace_.step, gradient_, threads_);
    Parameters::visit_activation([](std::string_view, auto& to, const auto& from) { to = from; }, gradient_, shared_gradient_);
    const bool unit = config_.decoder == DecoderNorm::unit;
    if (unit)
      threads_.for_blocks(p.latents(), row_block, [&](Index begin, Index end, Index) {
        for (Index i = begin; i < end; ++i) project(p.W_dec.row(i), gradient_.W_dec.row(i));
      });
    double squares = 0;
    std::vector<double> row_squares;
    Parameters::visit(
        [&](std::string_view, const auto& g) {
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
          threads_.for_blocks(g.rows(), row_block, [&](Index begin, Index end, Index) {
            kernels::scale(g.row(begin), factor, (end - begin) * g.cols());
          });
          moments_.update(moments_.slots(name), w, g, threads_);
        },
        p, gradient_);
    if (unit)
      threads_.for_blocks(p.latents(), row_block, [&](Index begin, Index end, Index) {
        for (Index i = begin; i < end; ++i) normalise(p.W_dec.row(i));
      });
  }

  /// a <- ema a + (1 - ema) w, of weights as the next step reads them.
  void update_average() {
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
  double batch_variance() const {
    const Tensor<Scalar>& rows = target();
    std::vector<RowStatistics> blocks(static_cast<std::size_t>((rows.rows() + row_block - 1) / row_block));
    threads_.for_blocks(rows.rows(), row_block, [&](Index begin, Index end, Index block) {
      for (Index b = begin; b < end; ++b) blocks[static_cast<std::size_t>(block)].add(rows.row(b), rows.cols());
    });
    RowStatistics statistics;
    for (const RowStatistics& block : blocks) statistics.merge(block);
    double squared_mean = 0;
    for (const double x : statistics.mean()) squared_mean += x * x;
    return statistics.mean_squared_norm() - squared_mean;
  }
  template <class Callback>
  bool call(Callback& callback) {
    const auto ask = [&](auto&&... arguments) {
      if constexpr (std::is_void_v<decltype(callback(arguments...))>) {
        callback(arguments...);
        return false;
      } else {
        return static_cast<bool>(callback(arguments...));
      }
    };
    if constexpr (std::is_invocable_v<Callback&, Trainer&, const StepReport&>) {
      return ask(*this, std::as_const(report_));
    } else {
      static_assert(std::is_invocable_v<Callback&, const StepReport&>,
                    "sae: a callback of Trainer::fit takes (const StepReport&) or (Trainer&, const StepReport&)");
      return ask(std::as_const(report_));
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
  void fold() {
    folded_ = true;
    model_.parameters().activation.constrain();
    fold_scales(scale_, target_scale_);
    scale_ = target_scale_ = 1;
  }

  Model& model_;
  TrainerConfig config_;
  Terms objective_;
  Threads& threads_;

  OptimizerState<Scalar> moments_;
  Parameters average_;  ///< of the weights, not yet divided by 1 - ema^t; empty while `ema` is 0
  DeadLatents dead_;
  Index step_ = 0, tokens_ = 0;
  double scale_ = 1, target_scale_ = 1;  // target_scale_: of a transcoder's targets
  SourceState source_state_;
  std::function<SourceState()> ask_source_;  ///< while `fit` runs
  bool restored_ = false, prepared_ = false, folded_ = false;

  StepReport report_;
  typename Model::template Workspace<Terms> workspace_;
  Parameters shared_gradient_;  ///< of b_dec, W_skip and the activation's own tensors; the others are empty
  Parameters gradient_;         ///< all gradients; empty where none needs them
  Tensor<Scalar> rows_, targets_, partial_, column_sums_;
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
