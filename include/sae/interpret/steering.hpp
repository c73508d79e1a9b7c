#pragma once
#include <sae/host/cross_entropy.hpp>
#include <sae/host/generate.hpp>

#include <cmath>
#include <cstddef>
#include <functional>
#include <span>
#include <utility>
#include <vector>

namespace sae::inline SAE_ABI {

/// What a model writes under edits of one strength.
struct SteeringPoint {
  double strength = 0;
  double effect = 0;         ///< mean of what was measured over the texts
  double share = 0;          ///< of the texts in which it was above 0
  double cross_entropy = 0;  ///< nats a token of what was written, to the model without edits: how unlikely it finds it
  Index tokens = 0;          ///< written, over all texts
  std::vector<std::vector<Token>> texts{};  ///< one for each prompt, without it
};

/// How an edit is judged: what it does to texts against what it costs in fluency, over a row of strengths.
///
/// For each strength s every prompt is continued under taps_of(s); effect(continuation) says how much of a concept there is in it. Then the
/// model without edits reads prompt and continuation; cross_entropy is its loss on the continuation's tokens. An edit that helps raises the
/// effect before it raises the loss. Draws are those of `generate`, prompt n by seed + n, the same for every strength: texts differ by the
/// edit alone. (At temperature 0 a model that repeats itself is likely to itself, so that a broken text may have a low loss; draw, for a
/// figure, at temperature 1.)
///
/// \param prompts  tokens without BOS (`generate` puts it before them)
/// \param progress  progress(texts done), of prompts x strengths
/// Cost: a generated text and a pass over it for each prompt and strength.
/// \throws ValueError  no prompt, no strength, one that is not finite; what `generate` refuses.
/// Source: Durmus et al. 2024 (feature steering, capability against strength); sae_vis' steering samples.
template <LanguageModel M>
std::vector<SteeringPoint> steering_curve(M& model, std::span<const std::vector<Token>> prompts,
                                          std::span<const double> strengths,
                                          const std::function<std::vector<Tap>(double)>& taps_of,
                                          const std::function<double(std::span<const Token>)>& effect,
                                          const GenerateOptions& how = {}, const std::function<void(Index)>& progress = {},
                                          Threads& threads = Threads::shared()) {
  if (prompts.empty()) throw_value("steering_curve: there is no prompt");
  if (strengths.empty()) throw_value("steering_curve: there is no strength");
  for (const double strength : strengths)
    if (!std::isfinite(strength)) throw_value("steering_curve: a strength of ", strength, " is not a finite number");
  const bool bos = how.bos && model.bos() != no_token;
  std::vector<SteeringPoint> out;
  Index done = 0;
  for (const double strength : strengths) {
    SteeringPoint& point = out.emplace_back();
    point.strength = strength;
    const std::vector<Tap> taps = taps_of(strength);
    double loss = 0;
    for (std::size_t n = 0; n < prompts.size(); ++n) {
      GenerateOptions one = how;
      one.seed += n;
      std::vector<Token> text = generate(model, prompts[n], one, taps);
      std::vector<Token> whole;
      if (bos && (prompts[n].empty() || prompts[n].front() != model.bos())) whole.push_back(model.bos());
      whole.insert(whole.end(), prompts[n].begin(), prompts[n].end());
      const std::size_t start = whole.size();
      whole.insert(whole.end(), text.begin(), text.end());
      const std::vector<double> losses = next_token_losses(model.run(whole, {}, {.logits = Logits::all}), whole, threads);
      for (std::size_t t = start; t < whole.size(); ++t) loss += losses[t - 1];
      const double found = effect(text);
      point.effect += found;
      point.share += found > 0 ? 1 : 0;
      point.tokens += static_cast<Index>(text.size());
      point.texts.push_back(std::move(text));
      if (progress) progress(++done);
    }
    point.effect /= static_cast<double>(prompts.size());
    point.share /= static_cast<double>(prompts.size());
    point.cross_entropy = loss / static_cast<double>(point.tokens);
  }
  return out;
}

}  // namespace sae::inline SAE_ABI
