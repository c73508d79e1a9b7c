#pragma once
#include <sae/core/types.hpp>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string_view>

namespace sae::inline SAE_ABI {

enum class ScheduleShape { constant, cosine };

/// Learning rate over a run, as a factor of the peak rate at step t = 0 .. T-1: warm-up, main part, decay tail.
///
///   warm-up  t < W           (t + 1) / W, or t / W with `warmup_from_zero` (dictionary_learning: its first step moves nothing)
///   main     constant 1, or cosine from 1 to `final_fraction`
///   decay    the last Dc steps, linear: (Dc - j) / Dc times the main part's end, j = 0 .. Dc-1; never 0
/// A step after the last has the last one's factor. Source: SAELens training/optim.py; dictionary_learning trainers/trainer.py.
struct Schedule {
  Index warmup = 0;  ///< W steps
  bool warmup_from_zero = false;
  ScheduleShape shape = ScheduleShape::constant;
  double final_fraction = 0.1;  ///< where the cosine ends, in [0, 1]
  Index decay = 0;              ///< Dc steps

  template <class Visitor>
  void visit_settings(Visitor&& visitor) const {
    visitor("warmup", warmup);
    visitor("warmup_from_zero", warmup_from_zero);
    visitor("shape", std::string_view(shape == ScheduleShape::cosine ? "cosine" : "constant"));
    visitor("final_fraction", final_fraction);
    visitor("decay", decay);
  }
  void check(Index steps) const {
    if (warmup < 0 || decay < 0 || warmup + decay > steps)
      throw_value("Schedule: warmup = ", warmup, " and decay = ", decay, " steps do not fit into ", steps, " steps");
    if (!(final_fraction >= 0 && final_fraction <= 1))
      throw_value("Schedule: final_fraction = ", final_fraction, " is not in [0, 1]");
  }
  double factor(Index t, Index steps) const {
    t = std::min(t, steps - 1);
    if (t < warmup) return static_cast<double>(warmup_from_zero ? t : t + 1) / static_cast<double>(warmup);
    const Index main = steps - warmup - decay;
    double level = 1;
    if (shape == ScheduleShape::cosine && main > 0) {
      const double way = static_cast<double>(std::min(t - warmup, main)) / static_cast<double>(main);
      level = final_fraction + (1 - final_fraction) * 0.5 * (1 + std::cos(std::numbers::pi * way));
    }
    const Index into_decay = t - (steps - decay);
    if (into_decay >= 0 && decay > 0) level *= static_cast<double>(decay - into_decay) / static_cast<double>(decay);
    return level;
  }
};

/// Sparsity warm-up s(t) = min(t / W, 1), 1 where W = 0.
inline double sparsity_warmup_factor(Index t, Index warmup) {
  return warmup > 0 ? std::min(static_cast<double>(t) / static_cast<double>(warmup), 1.0) : 1.0;
}

}  // namespace sae::inline SAE_ABI
