#pragma once
#include <sae/host/cross_entropy.hpp>
#include <sae/interpret/directions.hpp>
#include <sae/interpret/interventions.hpp>

#include <span>
#include <string>
#include <utility>
#include <vector>

namespace sae::inline SAE_ABI {

/// What the next token would be without a latent.
struct AblationEffect {
  double kl = 0;  ///< KL(with the latent || without), nats
  std::vector<TokenLogit> up,
      down;  ///< tokens that ablating makes likelier, and less likely: change of log p in nats, the largest first; of equals the lower token
};

/// Ablates a latent (f' = 0, the error term kept) and compares the prediction behind `position` with that of the model as it is: what the latent
/// does where it is active, through all layers above it. (attribute_logits tells what it writes by itself.)
///
/// \param tokens    [T], as the model reads them, BOS first where it has one
/// \param position  row of the logits that is compared, in [0, T)
/// \param edited    rows in which the latent is ablated; `EditedRows::at({position})`: there alone
/// \param count     tokens of each end, in [1, V]
/// Cost: two forward passes.
/// \throws ValueError  a latent, position or count that is not there. ShapeError: an SAE of another width.
/// Source: Bricken et al. 2023, "Towards monosemanticity" (feature ablation effects on the next token).
template <LanguageModel M, LatentModel Model>
AblationEffect ablation_effect(M& model, std::span<const Token> tokens, Index position, const Site& site, const Model& sae,
                               Index latent, const EditedRows& edited, Index count = 10, Threads& threads = Threads::shared()) {
  detail::require_latent(sae, latent);
  if (position < 0 || position >= static_cast<Index>(tokens.size()))
    throw_value("ablation_effect: position ", position, " is not in [0, ", tokens.size(), ") (the tokens)");
  const auto row = [&](const std::vector<Tap>& taps) {
    const ConstMatrixMap<float> logits = model.run(tokens, taps, {.logits = Logits::all});
    const float* const at = logits.data() + position * logits.cols();
    return std::vector<float>(at, at + logits.cols());
  };
  const std::vector<float> with = row({});
  const std::vector<float> without = row({edit_latents(site, sae, {ablate_latent(latent)}, edited, ErrorTerm::keep, threads)});
  if (count < 1 || count > static_cast<Index>(with.size()))
    throw_value("ablation_effect: count = ", count, " is not in [1, ", with.size(), "] (the vocabulary)");
  const double shift = log_sum_exp(with) - log_sum_exp(without);
  detail::LargestOf up(count), down(count);
  for (std::size_t v = 0; v < with.size(); ++v) {
    const double change = static_cast<double>(without[v]) - static_cast<double>(with[v]) + shift;
    up.offer(static_cast<Index>(v), change);
    down.offer(static_cast<Index>(v), -change);
  }
  AblationEffect out{.kl = kl_divergence(with, without), .up = {}, .down = {}};
  for (const auto& found : up.sorted()) out.up.push_back({static_cast<Token>(found.index), found.value});
  for (const auto& found : down.sorted()) out.down.push_back({static_cast<Token>(found.index), -found.value});
  return out;
}

}  // namespace sae::inline SAE_ABI
