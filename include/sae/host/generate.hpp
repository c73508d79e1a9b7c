#pragma once
#include <sae/core/random.hpp>
#include <sae/host/language_model.hpp>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <span>
#include <vector>

namespace sae::inline SAE_ABI {

struct SampleOptions {
  double temperature = 0;  ///< tokens drawn from softmax(logits / temperature); 0: always the most likely one
  Index top_k = 0;         ///< drawn from the k most likely tokens only; 0: from all
};

/// One token from logits [V]. `uniform` in [0, 1) decides the draw: the token in whose share of [0, 1) it falls, shares laid out
/// in ascending token order. Ties: the lower token is the more likely one. Errors: HostError where a logit is NaN or +inf, or all
/// are -inf. Cost: V.
inline Token sample_token(std::span<const float> logits, const SampleOptions& options, double uniform) {
  std::size_t best = 0;
  for (std::size_t j = 0; j < logits.size(); ++j) {
    if (!(logits[j] < std::numeric_limits<float>::infinity()))
      throw_host("sample_token: the logit of token ", j, " is not finite");
    if (logits[j] > logits[best]) best = j;
  }
  if (logits.empty() || !std::isfinite(logits[best])) throw_host("sample_token: no token has a finite logit");
  if (options.temperature <= 0) return static_cast<Token>(best);

  std::vector<Token> candidates(logits.size());
  std::iota(candidates.begin(), candidates.end(), 0);
  const auto logit = [&](Token j) { return logits[static_cast<std::size_t>(j)]; };
  if (options.top_k > 0 && options.top_k < static_cast<Index>(logits.size())) {
    const auto likelier = [&](Token a, Token b) { return logit(a) != logit(b) ? logit(a) > logit(b) : a < b; };
    std::nth_element(candidates.begin(), candidates.begin() + (options.top_k - 1), candidates.end(), likelier);
    candidates.resize(static_cast<std::size_t>(options.top_k));
    std::sort(candidates.begin(), candidates.end());
  }
  std::vector<double> until;  // running sum of the weights
  until.reserve(candidates.size());
  double sum = 0;
  for (const Token j : candidates) {
    sum += std::exp((static_cast<double>(logit(j)) - logits[best]) / options.temperature);
    until.push_back(sum);
  }
  const auto drawn = std::upper_bound(until.begin(), until.end(), uniform * sum);
  return candidates[static_cast<std::size_t>((std::min)(drawn, until.end() - 1) - until.begin())];
}

struct GenerateOptions {
  Index tokens = 64;        ///< new tokens at most, 1 <= tokens; prompt and new tokens fit in the context
  double temperature = 0;   ///< see SampleOptions
  Index top_k = 0;          ///< see SampleOptions
  std::uint64_t seed = 0;   ///< fixes every draw
  bool bos = true;          ///< begin with BOS where the model has one and the prompt does not
  bool stop_at_end = true;  ///< end with a token for which the host's `is_end(token)` holds (it is returned, too)
};

/// Continues a prompt, with taps on: the new tokens, without the prompt.
///
/// Taps see the prompt's rows at once (first_position 0, BOS in row 0), then one row a token with its position; what they edit
/// shapes the text that follows. Token n is drawn by number n of `Random(seed)`. `on_token(token)` hears of each as it comes;
/// false ends the text. A host that cannot go on after its last run (`continues` is false) runs the whole sequence for each
/// token instead, at quadratic cost, and taps see all its rows each time.
/// Errors: ValueError for options out of range and a prompt without a token; HostError of the model.
template <LanguageModel M>
std::vector<Token> generate(M& model, std::span<const Token> prompt, const GenerateOptions& options = {},
                            std::span<const Tap> taps = {}, const std::function<bool(Token)>& on_token = {}) {
  constexpr bool continues = [] {
    if constexpr (requires { M::continues; })
      return static_cast<bool>(M::continues);
    else
      return true;
  }();
  if (options.tokens < 1) throw_value("generate: tokens = ", options.tokens, " is below 1");
  if (options.top_k < 0) throw_value("generate: top_k = ", options.top_k, " is negative (0 takes all tokens)");
  if (!(options.temperature >= 0 && std::isfinite(options.temperature)))
    throw_value("generate: temperature = ", options.temperature, " is not a number from 0 on");
  std::vector<Token> sequence(prompt.begin(), prompt.end());
  const Token bos = model.bos();
  if (options.bos && bos != no_token && (sequence.empty() || sequence.front() != bos)) sequence.insert(sequence.begin(), bos);
  if (sequence.empty()) throw_value("generate: the prompt has no token, and none is put before it");
  const std::size_t start = sequence.size();
  const ModelShape shape = model.shape();
  if (options.tokens > shape.context - static_cast<Index>(start))
    throw_value("generate: a prompt of ", start, " tokens and ", options.tokens, " new ones exceed the context of ",
                shape.context);

  Random random(options.seed);
  std::size_t done = 0;  // tokens that the model has read
  for (Index n = 0; n < options.tokens; ++n) {
    RunOptions run;
    run.logits = Logits::last;
    if (continues) run.first_position = static_cast<Index>(done);
    const ConstMatrixMap<float> logits = model.run(std::span<const Token>(sequence).subspan(continues ? done : 0), taps, run);
    done = sequence.size();
    const std::span<const float> row(logits.data(), static_cast<std::size_t>(logits.cols()));
    const Token token = sample_token(row, {options.temperature, options.top_k}, random.uniform());
    sequence.push_back(token);
    if (on_token && !on_token(token)) break;
    if constexpr (requires { model.is_end(token); })
      if (options.stop_at_end && model.is_end(token)) break;
  }
  return {sequence.begin() + static_cast<std::ptrdiff_t>(start), sequence.end()};
}

}  // namespace sae::inline SAE_ABI
