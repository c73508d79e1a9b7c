#pragma once
#include <sae/core/types.hpp>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string_view>

namespace sae::inline SAE_ABI {

/// How a schedule goes from 1 to a final fraction e, p in [0, 1] being the way that is done.
enum class ScheduleShape {
  constant,         ///< 1, e is not used
  linear,           ///< 1 - (1 - e) p
  cosine,           ///< e + (1 - e) (1 + cos(pi p)) / 2
  cosine_restarts,  ///< the cosine, `cycles` times
  exponential,      ///< e^p
};

enum class WarmupShape {
  linear,     ///< (t + 1) / W (SAELens)
  from_zero,  ///< t / W: the first step moves nothing (dictionary_learning, sparsify)
  smooth,     ///< llamascopium: linear for the first half and then a parabola with slope 0 at W
};

/// Learning rate over a run of T steps, as a factor of the peak rate at step t = 0 .. T-1: warm-up, main part, decay tail.
///
///   warm-up  t < W        `warmup_shape`; smooth: 4 (t + 1) / (3 W) for t < W / 2, then 1 - 4/3 (t / W - 1)^2
///   main     t < T - Dc   `shape` from 1 to `final_fraction`, p = (t - W) / M, M = T - W - Dc. Restarts: p = ((t - W) mod C) / C,
///                         C = floor(M / cycles); a rest of M beyond the cycles begins another one
///   decay    the last Dc  the main part's end (`final_fraction`, or 1 of `constant`) times `decay_shape` from 1 to
///                         `decay_fraction`, p = j / Dc, j = 0 .. Dc-1: p = 1 is never reached, so the rate is never 0
///
///   warm-up again         with `warmup_every` = R > 0: where t mod R < W (t >= R), the main part and the decay are multiplied by the
///                         warm-up at t mod R: after each resampling (training/resample.hpp)
///
/// A step after the last has the last one's factor. In these words:
///
///   SAELens               warmup_shape linear; constant, cosine, cosine_restarts to 1/10; decay linear: (Dc - j) / Dc
///   dictionary_learning   warmup_shape from_zero, constant, decay linear: (T - t) / (T - decay_start), the same thing;
///                         with resample_steps: warmup_every = resample_steps and no decay
///   sparsify              warmup_shape from_zero, shape linear, final_fraction 0
///   llamascopium          smooth and decay_shape cosine over 1.5 W to 0; linear and decay_shape linear to lr_end_ratio; and
///                         cosine, linear, exponential after a linear warm-up
/// Source: SAELens training/optim.py; dictionary_learning trainers/trainer.py; sparsify trainer.py; llamascopium optim.py.
struct Schedule {
  Index warmup = 0;  ///< W steps
  WarmupShape warmup_shape = WarmupShape::linear;
  Index warmup_every = 0;  ///< R steps, >= W; 0: the run warms up once
  ScheduleShape shape = ScheduleShape::constant;
  double final_fraction = 0.1;                        ///< where the main part ends, in [0, 1]; above 0 for exponential
  Index cycles = 1;                                   ///< of cosine_restarts, >= 1, at least a step each
  Index decay = 0;                                    ///< Dc steps
  ScheduleShape decay_shape = ScheduleShape::linear;  ///< linear, cosine or exponential
  double decay_fraction = 0;                          ///< in [0, 1]; above 0 for exponential

  template <class Visitor>
  void visit_settings(Visitor&& visitor) const {
    constexpr std::string_view shapes[] = {"constant", "linear", "cosine", "cosine_restarts", "exponential"};
    constexpr std::string_view warmups[] = {"linear", "from_zero", "smooth"};
    visitor("warmup", warmup);
    visitor("warmup_shape", warmups[static_cast<int>(warmup_shape)]);
    visitor("warmup_every", warmup_every);
    visitor("shape", shapes[static_cast<int>(shape)]);
    visitor("final_fraction", final_fraction);
    visitor("cycles", cycles);
    visitor("decay", decay);
    visitor("decay_shape", shapes[static_cast<int>(decay_shape)]);
    visitor("decay_fraction", decay_fraction);
  }
  void check(Index steps) const {
    if (warmup < 0 || decay < 0 || warmup + decay > steps)
      throw_value("Schedule: warmup = ", warmup, " and decay = ", decay, " steps do not fit into ", steps, " steps");
    if (warmup_every != 0 && (warmup_every < 1 || warmup_every < warmup))
      throw_value("Schedule: warmup_every = ", warmup_every, " is neither 0 nor at least the ", warmup, " steps of warmup");
    check_fraction("final_fraction", final_fraction, shape);
    check_fraction("decay_fraction", decay_fraction, decay_shape);
    if (cycles < 1 || (shape == ScheduleShape::cosine_restarts && cycles > steps - warmup - decay))
      throw_value("Schedule: cycles = ", cycles, " is not in [1, ", steps - warmup - decay, "] (the steps of the main part)");
    if (decay_shape == ScheduleShape::constant || decay_shape == ScheduleShape::cosine_restarts)
      throw_value("Schedule: decay_shape is neither linear nor cosine nor exponential");
  }
  double factor(Index t, Index steps) const {
    t = std::min(t, steps - 1);
    if (t < warmup) return warmup_factor(static_cast<double>(t), static_cast<double>(warmup));
    const Index again = warmup_every > 0 ? t % warmup_every : warmup;
    return after_warmup(t, steps) *
           (again < warmup ? warmup_factor(static_cast<double>(again), static_cast<double>(warmup)) : 1.0);
  }

 private:
  double after_warmup(Index t, Index steps) const {
    const Index main = steps - warmup - decay, into = t - warmup, into_decay = into - main;
    if (into_decay >= 0)
      return (shape == ScheduleShape::constant || main == 0 ? 1.0 : final_fraction) *
             between(decay_shape, decay_fraction, share(into_decay, decay));
    const Index cycle = shape == ScheduleShape::cosine_restarts ? main / cycles : main;
    return between(shape, final_fraction, share(into % cycle, cycle));
  }
  static double share(Index part, Index whole) { return static_cast<double>(part) / static_cast<double>(whole); }
  static void check_fraction(std::string_view field, double fraction, ScheduleShape shape) {
    if (!(fraction >= 0 && fraction <= 1)) throw_value("Schedule: ", field, " = ", fraction, " is not in [0, 1]");
    if (shape == ScheduleShape::exponential && fraction == 0)
      throw_value("Schedule: ", field, " = 0 is not in (0, 1], where an exponential can end");
  }
  static double between(ScheduleShape shape, double end, double p) {
    switch (shape) {
      case ScheduleShape::constant: return 1;
      case ScheduleShape::linear: return 1 - (1 - end) * p;
      case ScheduleShape::cosine:
      case ScheduleShape::cosine_restarts: return end + (1 - end) * 0.5 * (1 + std::cos(std::numbers::pi * p));
      case ScheduleShape::exponential: return std::pow(end, p);
    }
    return 1;
  }
  double warmup_factor(double t, double length) const {
    if (warmup_shape == WarmupShape::linear) return (t + 1) / length;
    if (warmup_shape == WarmupShape::from_zero) return t / length;
    const double left = t / length - 1;
    return t < 0.5 * length ? 4 * (t + 1) / (3 * length) : 1 - 4 * left * left / 3;
  }
};

/// Sparsity warm-up s(t) = min(t / W, 1), 1 where W = 0.
inline double sparsity_warmup_factor(Index t, Index warmup) {
  return warmup > 0 ? std::min(static_cast<double>(t) / static_cast<double>(warmup), 1.0) : 1.0;
}

/// A peak learning rate that fits the number of latents F: base / sqrt(F / 2^14).
/// base 2e-4 for Adam (dictionary_learning's TopK family, sparsify), 5e-3 for signs (sparsify's signum). Muon's does not depend on F
/// (sparsify: 2e-3).
/// \throws ValueError  latents < 1, or base is not positive.
inline double auto_learning_rate(Index latents, double base = 2e-4) {
  if (latents < 1) throw_value("auto_learning_rate: latents = ", latents, " is below 1");
  require_positive("auto_learning_rate: base", base);
  return base / std::sqrt(static_cast<double>(latents) / 16384.0);
}

enum class AnnealShape {
  linear,       ///< from + (to - from) p, rounded to the nearest whole number, halves to the even one (sparsify)
  exponential,  ///< from + (to - from) (1 - e^-3p) / (1 - e^-3), rounded up (llamascopium, which rounds its linear form up, too)
};

/// Number of latents that TopK keeps at step t, p = min(t / steps, 1) of the way from `from` to `to`; `to` where steps = 0.
/// dictionary_learning's linear form drops the fraction.
/// \throws ValueError  t or steps is negative, from or to is below 1.
/// Source: dictionary_learning trainers/top_k.py; sparsify trainer.py; llamascopium trainer.py.
inline Index annealed_k(Index t, Index steps, Index from, Index to, AnnealShape shape = AnnealShape::linear) {
  require_non_negative("annealed_k: t", t);
  require_non_negative("annealed_k: steps", steps);
  if (from < 1 || to < 1) throw_value("annealed_k: from = ", from, " or to = ", to, " is below 1");
  if (t >= steps) return to;
  const double p = static_cast<double>(t) / static_cast<double>(steps);
  const auto start = static_cast<double>(from), way = static_cast<double>(to) - start;
  if (shape == AnnealShape::linear) return static_cast<Index>(std::nearbyint(start * (1 - p) + static_cast<double>(to) * p));
  return static_cast<Index>(std::ceil(start + way * (std::expm1(-3 * p) / std::expm1(-3.0))));
}

}  // namespace sae::inline SAE_ABI
