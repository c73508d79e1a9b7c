#pragma once
#include <sae/training/trainer.hpp>

#include <algorithm>
#include <cmath>

namespace sae::inline SAE_ABI {

/// Settings for somebody who knows the sizes of the problem and nothing else; `sae train` starts from them.
///
///   TrainerConfig config = recommended(576, 4608, 571'392);
///   config.learning_rate = 1e-3;                             // and change what you know better
///
/// Rows centred on their mean and scaled to mean squared norm 1, unit-norm decoder, no clipping. The rate rises over 2 % of the run,
/// stays, and falls linearly over the last 80 %; its peak falls with the root of the number of latents, as each of them then sees
/// fewer rows. Adam forgets fast where a run is short: beta2 = 1 - 28 / steps, in [0.95, 0.999]. A latent is dead after F rows
/// without activity, at least four batches: in a short run those that AuxK should bring back must be found early.
///
/// Chosen on residual streams of SmolLM2-135M at 558 steps (docs/architectures.md has the figures): in that order of weight the
/// long decay with twice the rate, beta2, and the window.
/// \param tokens  length of the run in rows, >= batch
inline TrainerConfig recommended(Index d_in, Index latents, Index tokens, Index batch = 1024) {
  if (d_in < 1 || latents < 1) throw_value("recommended: sizes d_in = ", d_in, ", latents = ", latents, " are not positive");
  if (batch < 1 || tokens < batch)
    throw_value("recommended: tokens = ", tokens, " are fewer than one batch of ", batch, ", or the batch is below 1 row");
  TrainerConfig config;
  config.steps = tokens / batch;
  config.batch = batch;
  config.learning_rate = std::clamp(4.2e-3 * std::sqrt(4608.0 / static_cast<double>(latents)), 3e-4, 5e-3);
  config.schedule.warmup = config.steps / 50;
  config.schedule.decay = config.steps - config.steps / 5;
  config.sparsity_warmup = config.steps / 20;
  config.optimizer = Adam{.beta1 = 0.7, .beta2 = 1 - std::clamp(28.0 / static_cast<double>(config.steps), 1e-3, 0.05)};
  config.dead.window = std::max(4 * batch, latents);
  return config;
}

/// How long to train on so many rows: four passes, but no more than two million rows where one pass is shorter than that, one pass
/// over more rows, and never fewer than 500 batches.
inline Index recommended_tokens(Index rows, Index batch = 1024) {
  return std::max({rows, std::min<Index>(4 * rows, 2'000'000), 500 * batch});
}

/// Coefficient of AuxK for rows of mean squared norm 1.
inline constexpr double recommended_aux_k = 0.5;
/// L1 coefficient for rows of mean squared norm 1 and unit decoder rows.
inline constexpr double recommended_l1 = 0.1;
/// Coefficient of L0Penalty for such rows.
inline constexpr double recommended_l0 = 1e-3;

}  // namespace sae::inline SAE_ABI
