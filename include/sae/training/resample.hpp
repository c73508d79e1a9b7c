#pragma once
#include <sae/core/random.hpp>
#include <sae/models/backward.hpp>
#include <sae/training/dead_latents.hpp>
#include <sae/training/optimizer.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

namespace sae::inline SAE_ABI {

enum class ResamplingForm {
  off,
  loss_squared,  ///< Anthropic 2023, as AS implements it
  residual,      ///< dictionary_learning
};

/// Resampling: now and then dead latents are given the directions of inputs that are reconstructed badly.
///
///                       loss_squared                                  residual
///   when                every `every` rows, `times` times at most     after steps 1, R + 1, 2 R + 1, ..., R = `every` steps
///   dead                active in at most floor(dead_share n) of      not active for more than R / 2 steps
///                       the last n = `window` rows
///   inputs x            the last `rows` rows before it                this batch
///   p(x)                |y' - y|^4 (the loss of x, squared)           |y' - y|
///   d_i                 c y / |y|                                     c y / |y|
///   W_enc[i]            encoder_scale m x / |x|                       encoder_scale m x
///
/// y is what is reconstructed: x in an autoencoder, the target of x in a transcoder. One input for each dead latent, without
/// replacement, by the reconstruction of the model as it is then. m is the mean |W_enc[i]| of the latents that are alive
/// (active at all in the window; where none is: of all), c the norm of unit decoder rows (`TrainerConfig::decoder_norm`), or
/// the mean |W_dec[i]| of the same latents where decoder rows are free. b_enc[i] becomes 0, the activation's own numbers of the
/// latent what they start as, its optimizer state 0 (Adam's moments; Adafactor's column averages stay), its count of silent
/// rows 0. Where fewer inputs can be drawn (those whose x, y or error is 0 cannot) than latents are dead, the lower latents are
/// resampled (dictionary_learning; AS ends the run).
/// Both peers take x as it is, with the mean of the data in it. With `subtract_decoder_bias` x is x - b_dec, what the encoder
/// reads; in a transcoder, whose encoder reads x, y is y - b_dec - x W_skip^T, what the latents are to write.
///   tied weights          d_i is what the latent reads, too; encoder_scale means nothing
///   InputNormalisation    x is the row as normalised, in the units of directions; losses are those of `TrainerConfig::loss_space`
/// The counters start afresh after each loss_squared resampling, those of the other form never do.
/// In dictionary_learning a resampling goes with a warm-up of the learning rate: `Schedule::warmup_every` = R.
/// Deterministic for `seed`.
/// Cost   loss_squared keeps [rows x D] numbers, of a transcoder [rows x (D_in + D_out)], and reconstructs them each time.
/// Source: Bricken et al. 2023, "Towards Monosemanticity", neuron resampling; ai-safety-foundation/sparse_autoencoder
/// activation_resampler.py (AS), which draws from the next rows of its store instead of the last; dictionary_learning
/// trainers/standard.py. All three are of autoencoders with unit decoder rows and no tied weights; what is said of others is ours.
struct Resampling {
  ResamplingForm form = ResamplingForm::off;
  Index every = 200'000'000;   ///< rows (loss_squared) or steps (residual), >= 1
  Index times = 4;             ///< resamplings at most, >= 0; of loss_squared
  Index window = 100'000'000;  ///< rows in which activity is counted, in [1, every]; of loss_squared
  Index rows = 819'200;        ///< in [1, every]; of loss_squared
  double dead_share = 0;       ///< in [0, 1); of loss_squared
  double encoder_scale = 0.2;  ///< > 0
  bool subtract_decoder_bias = false;
  std::uint64_t seed = 0;

  template <class Visitor>
  void visit_settings(Visitor&& visitor) const {
    constexpr std::string_view forms[] = {"off", "loss_squared", "residual"};
    visitor("form", forms[static_cast<int>(form)]);
    visitor("every", every);
    visitor("times", times);
    visitor("window", window);
    visitor("rows", rows);
    visitor("dead_share", dead_share);
    visitor("encoder_scale", encoder_scale);
    visitor("subtract_decoder_bias", subtract_decoder_bias);
    visitor("seed", seed);
  }
  void check() const {
    if (form == ResamplingForm::off) return;
    if (every < 1) throw_value("Resampling: every = ", every, " is below 1");
    require_positive("Resampling: encoder_scale", encoder_scale);
    if (form == ResamplingForm::residual) return;
    require_non_negative("Resampling: times", times);
    if (window < 1 || window > every) throw_value("Resampling: window = ", window, " is not in [1, ", every, "] (every)");
    if (rows < 1 || rows > every) throw_value("Resampling: rows = ", rows, " is not in [1, ", every, "] (every)");
    if (!(dead_share >= 0 && dead_share < 1)) throw_value("Resampling: dead_share = ", dead_share, " is not in [0, 1)");
  }
};

/// Probabilities of rows with these losses |y' - y|^2 to be drawn first: loss^2 / sum loss^2, or sqrt(loss) / sum sqrt(loss). All 0
/// where no loss is positive. Losses 1, 2, 3 give 1/14, 4/14, 9/14 = 0.07, 0.29, 0.64 by loss_squared.
inline std::vector<double> resampling_probabilities(std::span<const double> losses, ResamplingForm form) {
  std::vector<double> out(losses.begin(), losses.end());
  for (double& p : out) p = !(p > 0) ? 0.0 : form == ResamplingForm::residual ? std::sqrt(p) : p * p;
  const double sum = std::accumulate(out.begin(), out.end(), 0.0);
  for (double& p : out) p = sum > 0 ? p / sum : 0.0;
  return out;
}

/// n different positions, one after the other, each with a probability proportional to its weight among those left; fewer where fewer
/// weights are positive. In the order of the draw.
/// Source: Efraimidis and Spirakis 2006: the n smallest of exponential times of rate w; torch.multinomial draws the same way.
inline std::vector<Index> draw_without_replacement(std::span<const double> weights, Index n, Random& random) {
  std::vector<std::pair<double, Index>> times;
  for (std::size_t b = 0; b < weights.size(); ++b) {
    const double wait = -std::log1p(-random.uniform());
    if (weights[b] > 0) times.emplace_back(wait / weights[b], static_cast<Index>(b));
  }
  const auto count = std::min(static_cast<std::size_t>(n), times.size());
  std::partial_sort(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(count), times.end());
  std::vector<Index> out;
  for (std::size_t t = 0; t < count; ++t) out.push_back(times[t].second);
  return out;
}

/// Resampling at work: what it counts and keeps from step to step.
template <class Scalar>
class Resampler {
 public:
  /// What is fixed for a run.
  struct Run {
    Index latents = 0, d_in = 0;
    Index d_out = 0;          ///< of a transcoder; 0: an autoencoder
    Index rows = 0;           ///< of the run: where it ends before the first resampling, none are kept
    double decoder_norm = 0;  ///< of unit decoder rows; 0: they are free
    LossSpace loss_space = LossSpace::raw;
  };
  void reset(const Resampling& settings, const Run& run) {
    settings_ = settings;
    run_ = run;
    counters_ = {};
    activity_.assign(settings.form == ResamplingForm::off ? 0 : static_cast<std::size_t>(run.latents), 0);
    const bool keeps = settings.form == ResamplingForm::loss_squared && settings.times > 0 && run.rows >= settings.every;
    kept_.resize(keeps ? settings.rows : 0, keeps ? run.d_in : 0);
    kept_targets_.resize(keeps && run.d_out > 0 ? settings.rows : 0, keeps ? run.d_out : 0);
  }
  /// After a step on this batch, in the units of the model; whether latents are to be resampled now.
  bool count(const Codes<Scalar>& codes, double least_value, const detail::StepRows<Scalar>& batch) {
    if (settings_.form == ResamplingForm::residual) {
      for (auto& silent : activity_) ++silent;
      for (Index e = 0; e < codes.size(); ++e)
        if (detail::is_active(codes.value(e), least_value)) activity_[static_cast<std::size_t>(codes.latent(e))] = 0;
      return counters_.seen++ % settings_.every == 0;
    }
    if (settings_.form == ResamplingForm::off || counters_.times >= settings_.times) return false;
    counters_.seen += codes.rows();
    if (counters_.seen >= settings_.every - settings_.window) {
      for (Index e = 0; e < codes.size(); ++e)
        if (detail::is_active(codes.value(e), least_value)) ++activity_[static_cast<std::size_t>(codes.latent(e))];
      counters_.counted += codes.rows();
    }
    if (kept_.rows() > 0 && counters_.seen > settings_.every - settings_.rows)
      for (Index b = 0; b < batch.x.rows; ++b) {
        std::copy_n(batch.x.row(b), run_.d_in, kept_.row(counters_.next));
        if (run_.d_out > 0) std::copy_n(batch.target.row(b), run_.d_out, kept_targets_.row(counters_.next));
        counters_.next = (counters_.next + 1) % kept_.rows();
        counters_.filled = std::min(counters_.filled + 1, kept_.rows());
      }
    return counters_.seen >= settings_.every;
  }
  /// Resamples the dead latents of the model, which takes rows like those of `batch`; returns how many.
  template <class Model>
  Index resample(Model& model, const detail::StepRows<Scalar>& batch, OptimizerState<Scalar>& optimizer, DeadLatents& dead,
                 Threads& threads) {
    const bool residual = settings_.form == ResamplingForm::residual;
    auto& p = model.parameters();
    std::vector<Index> lost, alive;
    const auto most = static_cast<std::int64_t>(settings_.dead_share * static_cast<double>(counters_.counted));
    for (Index i = 0; i < p.latents(); ++i) {
      const std::int64_t activity = activity_[static_cast<std::size_t>(i)];
      const bool is_dead = residual ? 2 * activity > settings_.every : activity <= most;
      if (is_dead) lost.push_back(i);
      if (residual ? !is_dead : activity > 0) alive.push_back(i);
    }
    if (alive.empty()) alive = lost;
    const auto mean_norm = [&](const auto& w) {
      double sum = 0;
      for (const Index i : alive) sum += norm_of(w, i);
      return sum / static_cast<double>(alive.size());
    };

    const detail::StepRows<Scalar> rows = residual ? batch : kept();
    std::vector<Index> drawn;
    if (!lost.empty()) {
      typename Model::template Workspace<> workspace;
      workspace.step.loss_space = run_.loss_space;
      Tensor<Scalar> target;
      std::vector<double> losses;
      for (Index from = 0; from < rows.x.rows; from += batch.x.rows) {
        const auto piece = rows_from(rows, from, std::min(batch.x.rows, rows.x.rows - from));
        detail::run_forward(model, piece, Objective<>{}, workspace, threads);
        losses.insert(losses.end(), workspace.step.row_loss.begin(), workspace.step.row_loss.end());
        const auto [x, y] = directions(model, piece, workspace.step, target, threads);
        for (Index b = 0; b < x.rows(); ++b)
          if (!(norm_of(x, b) > 0 && norm_of(y, b) > 0)) losses[static_cast<std::size_t>(from + b)] = 0;
      }
      const std::vector<double> probabilities = resampling_probabilities(losses, settings_.form);
      Random random(settings_.seed, stream + static_cast<std::uint64_t>(counters_.times));
      drawn = draw_without_replacement(probabilities, static_cast<Index>(lost.size()), random);

      const double reads = settings_.encoder_scale * mean_norm(p.encoder());
      const double writes = run_.decoder_norm > 0 ? run_.decoder_norm : mean_norm(p.W_dec);
      auto start = p.activation;
      detail::resize_own(start, p.latents(), p.width());
      start.initialize(model.activation());
      for (std::size_t n = 0; n < drawn.size(); ++n) {
        const Index i = lost[n];
        const auto [x, y] = directions(model, rows_from(rows, drawn[n], 1), workspace.step, target, threads);
        const auto give = [&]<class Stored>(std::string_view name, Tensor<Stored>& w, const Tensor<Scalar>& row,
                                            double factor) {
          for (Index j = 0; j < w.cols(); ++j) w.row(i)[j] = Stored(static_cast<Scalar>(factor * static_cast<double>(row[j])));
          optimizer.reset_row(name, w, i);
        };
        give("W_dec", p.W_dec, y, writes / norm_of(y, 0));
        if (!p.tied()) give("W_enc", p.W_enc, x, residual ? reads : reads / norm_of(x, 0));
        if (p.b_enc.size() > 0) {
          p.b_enc[i] = Scalar(0);
          optimizer.reset_number("b_enc", p.b_enc, i);
        }
        decltype(start)::visit(
            [&](std::string_view name, auto& own, const auto& first) {
              if (own.rows() == p.latents()) {
                std::copy_n(first.row(i), own.cols(), own.row(i));
                optimizer.reset_row(name, own, i);
              } else {
                own[i] = first[i];
                optimizer.reset_number(name, own, i);
              }
            },
            p.activation, start);
        dead.silent()[static_cast<std::size_t>(i)] = 0;
      }
    }
    ++counters_.times;
    if (!residual) {
      counters_ = {.times = counters_.times};
      std::fill(activity_.begin(), activity_.end(), 0);
    }
    return static_cast<Index>(drawn.size());
  }

  /// Visitor of `Trainer::visit_state`. \throws ValueError  what was read does not fit.
  template <class Visitor>
  void visit_state(Visitor&& visitor) {
    if (settings_.form == ResamplingForm::off) return;
    std::vector<std::int64_t> counters{counters_.seen, counters_.counted, counters_.times, counters_.filled, counters_.next};
    visitor.integers("resampling.activity", activity_);
    visitor.integers("resampling.counters", counters);
    if (kept_.rows() > 0) visitor.tensor("resampling.rows", kept_);
    if (kept_targets_.rows() > 0) visitor.tensor("resampling.targets", kept_targets_);
    counters_ = {counters[0], counters[1], counters[2], counters[3], counters[4]};
    if (counters_.filled > kept_.rows() || (counters_.next != 0 && counters_.next >= kept_.rows()))
      throw_value("the saved state's resampling.counters do not fit ", kept_.rows(), " rows");
  }

 private:
  static constexpr std::uint64_t stream = std::uint64_t{1} << 40;  ///< of random numbers; one more for each resampling

  struct Counters {
    Index seen = 0;              ///< rows since the last resampling (loss_squared), or steps
    Index counted = 0;           ///< rows in the window so far
    Index times = 0;             ///< resamplings
    Index filled = 0, next = 0;  ///< rows kept, and where the next one goes
  };

  template <class Stored>
  static double norm_of(const Tensor<Stored>& w, Index row) {
    Buffer<Scalar> room(static_cast<std::size_t>(kernels::wide_room<Stored>(w.cols())));
    return std::sqrt(static_cast<double>(kernels::squared_norm(kernels::wide(w.row(row), w.cols(), room.data()), w.cols())));
  }
  static detail::StepRows<Scalar> rows_from(detail::StepRows<Scalar> rows, Index first, Index count) {
    for (RowsView<Scalar>* const view : {&rows.x, &rows.target}) {
      view->data = view->row(first);
      view->rows = count;
    }
    return rows;
  }
  detail::StepRows<Scalar> kept() const {
    return rows_from({kept_, run_.d_out > 0 ? kept_targets_ : kept_}, 0, counters_.filled);
  }
  /// x and y of the formulas; they live in step.input and `target`.
  template <class Model, class Step>
  std::pair<const Tensor<Scalar>&, const Tensor<Scalar>&> directions(const Model& model, const detail::StepRows<Scalar>& rows,
                                                                     Step& step, Tensor<Scalar>& target,
                                                                     Threads& threads) const {
    const auto& p = model.parameters();
    const bool predicts = run_.d_out > 0, subtract = settings_.subtract_decoder_bias;
    detail::load_input(p, subtract && !predicts, rows.x, step, threads, detail::input_normalisation_of(model));
    if (!predicts) return {step.input, step.input};
    if (subtract) {
      detail::load_decoder_bias(p.b_dec, &p.W_skip, rows.x, rows.x.rows, target, threads);
    } else {
      target.resize(rows.x.rows, run_.d_out);
    }
    for (Index b = 0; b < target.rows(); ++b)
      for (Index j = 0; j < target.cols(); ++j) target.row(b)[j] = rows.target.row(b)[j] - target.row(b)[j];
    return {step.input, target};
  }

  Resampling settings_;
  Run run_;
  Counters counters_;
  std::vector<std::int64_t> activity_;  ///< [F] rows of the window in which a latent was active, or steps since it was
  Tensor<Scalar> kept_;                 ///< [rows x D_in] a ring
  Tensor<Scalar> kept_targets_;         ///< [rows x D_out] beside it, of a transcoder
};

}  // namespace sae::inline SAE_ABI
