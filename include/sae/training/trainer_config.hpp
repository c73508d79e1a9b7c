#pragma once
#include <sae/core/types.hpp>
#include <sae/models/input_normalisation.hpp>
#include <sae/training/dead_latents.hpp>
#include <sae/training/optimizer.hpp>
#include <sae/training/resample.hpp>
#include <sae/training/schedule.hpp>
#include <sae/training/whitening.hpp>

#include <algorithm>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace sae::inline SAE_ABI {

/// What b_dec starts as.
enum class Center {
  none,                          ///< what the model holds
  mean,                          ///< mean row: keeps latents alive where the mean is large against the spread
  geometric_median,              ///< of `statistics_rows` rows
  first_batch_geometric_median,  ///< of the first batch, at step 0 (dictionary_learning's TopK trainers)
};

/// What is done to the rows while training; folded into the model at the end of `fit`.
enum class Normalisation {
  none,
  mean_square,  ///< 1 / sqrt(mean |x|^2): mean squared norm 1 (dictionary_learning, Gemma Scope)
  sqrt_d,       ///< sqrt(D) / mean |x|: mean norm sqrt(D) (SAELens `expected_average_only_in`)
  /// (x - mean) C^-1/2: uncorrelated, mean squared norm D (Whitening); losses are in these units, too (SAELens
  /// `covariance_whitening`). Folded exactly: codes stay. Where the activation ranks by the decoder norm, that is folded first.
  whitening,
};

enum class DecoderNorm {
  /// Gradient projected, rows brought to the norm `decoder_norm` after every step: of all sites together where a row has several. A row of zeros stays until
  /// its gradient moves it, and has that norm from then on.
  unit,
  free,
  automatic,  ///< unit; free for a transcoder, whose decoder starts at 0 (as sparsify does)
};

/// k that a row keeps, on its way from `from` to the activation's own k: `annealed_k` at each of the first `steps` steps. For TopK,
/// BatchTopK and AbsTopK. The model has its own k again after each step, so that callbacks evaluate what the training ends with.
///
///   dictionary_learning   from = D, linear      sparsify   from = min(F, 10 D), linear      llamascopium   exponential
struct KAnnealing {
  Index from = 0;  ///< latents kept at the first step, in [1, F]; 0: off
  Index steps = 0;
  AnnealShape shape = AnnealShape::linear;

  template <class Visitor>
  void visit_settings(Visitor&& visitor) const {
    visitor("from", from);
    visitor("steps", steps);
    visitor("shape", std::string_view(shape == AnnealShape::linear ? "linear" : "exponential"));
  }
};

/// Tensors that a training leaves as they are to the last bit: fine-tuning of the decoder alone, or of the encoder. They have no
/// optimizer state, count nothing in the norm that `clip_norm` looks at, and rows of a frozen decoder are not brought to norm 1. The
/// fold of the input scale when `fit` ends still changes the units of biases.
struct Frozen {
  bool encoder = false;  ///< W_enc
  bool decoder = false;  ///< W_dec, and W_enc where the two are tied
  bool b_enc = false;
  bool b_dec = false;       ///< not set to `center` either
  bool skip = false;        ///< W_skip
  bool activation = false;  ///< the activation's own trained tensors

  /// Whether a tensor is, by its name in `Parameters::visit`.
  bool holds(std::string_view name) const {
    return name == "W_enc"    ? encoder
           : name == "W_dec"  ? decoder
           : name == "b_enc"  ? b_enc
           : name == "b_dec"  ? b_dec
           : name == "W_skip" ? skip
                              : activation;
  }
  template <class Visitor>
  void visit_settings(Visitor&& visitor) const {
    visitor("encoder", encoder);
    visitor("decoder", decoder);
    visitor("b_enc", b_enc);
    visitor("b_dec", b_dec);
    visitor("skip", skip);
    visitor("activation", activation);
  }
};

/// The loss or a weight of a training is no longer finite; the message names the step.
struct DivergedError : ValueError {
  DivergedError(Index at, std::string what)
      : ValueError(detail::concat("Trainer: training diverged: at step ", at, " ", what, "; a lower learning_rate may help")),
        step(at),
        finding(std::move(what)) {}
  Index step;           ///< steps done, the one that failed included
  std::string finding;  ///< "the loss is nan"
};

/// Every setting of a training run. Steps, tokens and rows: one token is one row.
/// A field more is a line more in `visit_settings`, unless the result does not depend on it.
struct TrainerConfig {
  Index tokens = 0;  ///< length of the run: either tokens >= batch
  Index steps = 0;   ///< or steps >= 1
  Index batch = 1024;
  double learning_rate = 1e-3;  ///< peak, > 0
  Schedule schedule{};
  Index sparsity_warmup = 0;  ///< steps over which the sparsity terms grow from 0
  Optimizer optimizer = Adam{};
  Precision moments = Precision::full;  ///< of what the optimizer keeps
  double ema = 0;  ///< decay of an average of the weights, which the model ends with, in [0, 1); 0: off (Trainer, "average")
  double clip_norm = 0;  ///< > 0: global gradient norm is clipped to it (needs all gradients first: slower); 0: off
  double clip_epsilon = 1e-6;
  DecoderNorm decoder = DecoderNorm::automatic;  ///< Trainer::config() has what was chosen
  double decoder_norm = 1;                       ///< > 0: norm of the decoder rows where `decoder` is `unit`, before any fold
  double projection_epsilon = 0;                 ///< gradient projected on d / (|d| + epsilon)
  double unit_norm_epsilon = 0;                  ///< rows divided by |d| + epsilon
  /// Rows are brought to `decoder_norm` between gradient and projection, not after the update (OpenAI's train.py): the next forward
  /// reads them as the update left them, and so does who reads the model at the end.
  bool normalise_before_update = false;
  Center center = Center::mean;
  Normalisation normalisation = Normalisation::mean_square;
  /// Finds the map of Normalisation::whitening from rows [N x D]: sae::covariance_whitening (training/covariance_whitening.hpp).
  Whitening (*whitening)(const Tensor<double>& rows, double floor) = nullptr;
  double whitening_floor = 1e-3;          ///< > 0: least variance of a direction, in units of the mean one (Whitening)
  LossSpace loss_space = LossSpace::raw;  ///< of a model with an InputNormalisation
  Index statistics_rows = 8192;           ///< rows read ahead for `center` and `normalisation`
  /// The model was trained before and reads rows as they are: its biases are brought to the scale of the normalised rows first, those
  /// weights of a transcoder, too, that stand between inputs and targets: decoder rows keep their norm where they are unit vectors.
  bool reads_raw_rows = false;
  DeadLatentOptions dead{};
  Resampling resampling{};
  KAnnealing k_annealing{};
  Frozen frozen{};
  Index report_every = 1;  ///< steps between reports to callbacks

  Index total_steps() const { return steps > 0 ? steps : tokens / batch; }
  /// dead.window where it was left at 0: a tenth of the run.
  void choose_dead_window() {
    if (dead.window > 0) return;
    const bool by_tokens = dead.unit == DeadUnit::tokens;
    dead.window = std::clamp<Index>(total_steps() * (by_tokens ? batch : 1) / 10, 1, by_tokens ? 10'000'000 : 10'000);
  }
  /// Calls visitor(name, value) for every setting that the result depends on: numbers, bools, texts, and structs with settings of
  /// their own. A resumed training must have the same ones.
  template <class Visitor>
  void visit_settings(Visitor&& visitor) const {
    constexpr std::string_view decoders[] = {"unit", "free", "automatic"};
    constexpr std::string_view centers[] = {"none", "mean", "geometric_median", "first_batch_geometric_median"};
    constexpr std::string_view normalisations[] = {"none", "mean_square", "sqrt_d", "whitening"};
    constexpr std::string_view spaces[] = {"raw", "normalised"};
    visitor("tokens", tokens);
    visitor("steps", steps);
    visitor("batch", batch);
    visitor("learning_rate", learning_rate);
    visitor("schedule", schedule);
    visitor("sparsity_warmup", sparsity_warmup);
    visitor("optimizer", detail::OptimizerSettings{optimizer});
    visitor("moments", std::string_view(moments == Precision::full ? "full" : "bfloat16"));
    visitor("ema", ema);
    visitor("clip_norm", clip_norm);
    visitor("clip_epsilon", clip_epsilon);
    visitor("decoder", decoders[static_cast<int>(decoder)]);
    visitor("decoder_norm", decoder_norm);
    visitor("projection_epsilon", projection_epsilon);
    visitor("unit_norm_epsilon", unit_norm_epsilon);
    visitor("normalise_before_update", normalise_before_update);
    visitor("center", centers[static_cast<int>(center)]);
    visitor("normalisation", normalisations[static_cast<int>(normalisation)]);
    visitor("whitening_floor", whitening_floor);
    visitor("loss_space", spaces[static_cast<int>(loss_space)]);
    visitor("statistics_rows", statistics_rows);
    visitor("reads_raw_rows", reads_raw_rows);
    visitor("dead", dead);
    visitor("resampling", resampling);
    visitor("k_annealing", k_annealing);
    visitor("frozen", frozen);
  }
  void check() const {
    if (batch < 1) throw_value("Trainer: batch = ", batch, " is below 1 row");
    if ((tokens > 0) == (steps > 0)) throw_value("Trainer: give either tokens (", tokens, ") or steps (", steps, ")");
    if (total_steps() < 1) throw_value("Trainer: tokens = ", tokens, " are fewer than one batch of ", batch);
    require_positive("Trainer: learning_rate", learning_rate);
    schedule.check(total_steps());
    sae::check(optimizer, moments);
    if (!(ema >= 0 && ema < 1)) throw_value("Trainer: ema = ", ema, " is not in [0, 1)");
    if (ema > 0 && std::holds_alternative<ScheduleFree>(optimizer))
      throw_value("Trainer: ema = ", ema, ", and the optimizer schedule_free averages the weights itself: ema = 0 is legal");
    require_non_negative("Trainer: sparsity_warmup", sparsity_warmup);
    require_non_negative("Trainer: clip_norm", clip_norm);
    require_non_negative("Trainer: clip_epsilon", clip_epsilon);
    require_positive("Trainer: decoder_norm", decoder_norm);
    if (normalisation == Normalisation::whitening && whitening == nullptr)
      throw_value(
          "Trainer: normalisation = whitening needs whitening = sae::covariance_whitening "
          "(include sae/training/covariance_whitening.hpp)");
    require_positive("Trainer: whitening_floor", whitening_floor);
    require_non_negative("Trainer: projection_epsilon", projection_epsilon);
    require_non_negative("Trainer: unit_norm_epsilon", unit_norm_epsilon);
    if (statistics_rows < 1) throw_value("Trainer: statistics_rows = ", statistics_rows, " is below 1");
    require_non_negative("Trainer: dead.window", dead.window);
    require_non_negative("Trainer: dead.least_value", dead.least_value);
    resampling.check();
    if (resampling.form != ResamplingForm::off && (frozen.encoder || frozen.decoder || frozen.b_enc || frozen.activation))
      throw_value("Trainer: resampling gives latents new encoder and decoder rows and biases, and frozen holds them");
    require_non_negative("Trainer: k_annealing.from", k_annealing.from);
    if (k_annealing.from > 0 && (k_annealing.steps < 1 || k_annealing.steps > total_steps()))
      throw_value("Trainer: k_annealing.steps = ", k_annealing.steps, " is not in [1, ", total_steps(),
                  "] (the steps of the run)");
    if (report_every < 1) throw_value("Trainer: report_every = ", report_every, " is below 1");
  }
};

/// What a callback is told about one step. Losses are in the units of the normalised rows.
struct StepReport {
  Index step = 0;  ///< steps done, from 1
  Index steps = 0;
  Index tokens = 0;  ///< rows seen
  double loss = 0, reconstruction = 0;
  std::vector<std::pair<std::string_view, double>> terms;
  double l0 = 0;                  ///< mean active latents a row
  double explained_variance = 0;  ///< of this batch: 1 - sum |e|^2 / sum |x - mean x|^2
  Index dead = 0;                 ///< latents that count as dead
  Index resampled = 0;            ///< latents that were resampled after this step
  double learning_rate = 0, sparsity_scale = 1;
  double gradient_norm = std::numeric_limits<double>::quiet_NaN();  ///< before clipping; NaN where it was not computed
};

enum class FitStatus { finished, stopped, exhausted };

}  // namespace sae::inline SAE_ABI
