#pragma once
#include <sae/core/threads.hpp>
#include <sae/host/windows.hpp>

#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <string>
#include <vector>

namespace sae::inline SAE_ABI {

/// log sum_j exp(z_j) in double, from the largest z on; NaN where a z is NaN.
inline double log_sum_exp(std::span<const float> z) {
  double largest = -std::numeric_limits<double>::infinity();
  for (const float v : z) largest = v > largest || std::isnan(v) ? v : largest;
  if (!std::isfinite(largest)) return largest;
  double sum = 0;
  for (const float v : z) sum += std::exp(v - largest);
  return largest + std::log(sum);
}

/// KL(p || q) in nats of the two next-token distributions p = softmax(p_logits), q = softmax(q_logits):
///   sum_j p_j (log p_j - log q_j)
/// At least 0 up to rounding, 0 for equal logits; NaN where a logit is NaN or +inf. A p_j that underflows to 0 adds 0.
inline double kl_divergence(std::span<const float> p_logits, std::span<const float> q_logits) {
  if (p_logits.size() != q_logits.size())
    throw_shape("kl_divergence: ", p_logits.size(), " and ", q_logits.size(), " logits; both need the vocabulary's size");
  const double p_norm = log_sum_exp(p_logits), q_norm = log_sum_exp(q_logits);
  double sum = std::isnan(p_norm + q_norm) ? p_norm + q_norm : 0.0;
  for (std::size_t j = 0; j < p_logits.size(); ++j) {
    const double log_p = p_logits[j] - p_norm, p = std::exp(log_p);
    if (p != 0) sum += p * (log_p - (q_logits[j] - q_norm));
  }
  return sum;
}

/// Loss in nats of each next token: loss[t] = -log softmax(logits row t)[tokens[t + 1]], t = 0 .. T-2.
/// logits [T x V], tokens [T]. Each row's sum has one order: threads do not change a bit.
inline std::vector<double> next_token_losses(const ConstMatrixMap<float>& logits, std::span<const Token> tokens,
                                             Threads& threads = Threads::shared()) {
  if (logits.rows() != static_cast<Index>(tokens.size()))
    throw_shape("next_token_losses: logits of ", logits.rows(), " positions and ", tokens.size(), " tokens");
  if (tokens.empty()) return {};
  for (const Token token : tokens)
    if (token < 0 || token >= logits.cols())
      throw_value("next_token_losses: token ", token, " is not in [0, ", logits.cols(), ") (the vocabulary)");
  std::vector<double> losses(tokens.size() - 1);
  threads.run(static_cast<Index>(losses.size()), [&](Index t) {
    const std::span<const float> row(logits.data() + t * logits.cols(), static_cast<std::size_t>(logits.cols()));
    const auto at = static_cast<std::size_t>(t);
    losses[at] = log_sum_exp(row) - row[static_cast<std::size_t>(tokens[at + 1])];
  });
  return losses;
}

/// A way to run a model, by name: with these taps. No taps: the model as it is.
struct Condition {
  std::string name;
  std::vector<Tap> taps;
};
struct ConditionResult {
  std::string name;
  double cross_entropy = 0;  ///< mean over all predictions, nats per token
  double kl = 0;             ///< mean KL(condition 0 || this) over the same predictions, nats per token
  Index tokens = 0;          ///< predictions: windows x (context - 1)
};

/// Runs every window under every condition, window by window, and compares what the model then predicts.
///
/// Condition 0 is the reference (most often: no taps). Every next token of a window counts, the first text token after BOS
/// too. Sums are double, in window order. Memory: the logits of one window [context x V]. A condition's visitors are called
/// once a window with first_position 0 and see BOS in row 0: whether they spare it is their affair.
/// `progress(windows done)` is called after each window; an exception of its own ends the comparison.
template <LanguageModel M>
std::vector<ConditionResult> compare_conditions(M& model, const Windows& windows, std::span<const Condition> conditions,
                                                const std::function<void(Index)>& progress = {},
                                                Threads& threads = Threads::shared()) {
  if (conditions.empty()) throw_value("compare_conditions: there is no condition");
  if (windows.count() == 0) throw_value("compare_conditions: there is no window");
  std::vector<ConditionResult> results;
  for (const Condition& condition : conditions) results.push_back({condition.name});
  Buffer<float> reference;
  std::vector<double> kl(static_cast<std::size_t>(windows.context() - 1));
  for (Index w = 0; w < windows.count(); ++w) {
    const std::span<const Token> tokens = windows[w];
    for (std::size_t c = 0; c < conditions.size(); ++c) {
      const ConstMatrixMap<float> logits = model.run(tokens, std::span<const Tap>(conditions[c].taps), {.logits = Logits::all});
      ConditionResult& result = results[c];
      for (const double loss : next_token_losses(logits, tokens, threads)) result.cross_entropy += loss;
      result.tokens += static_cast<Index>(tokens.size()) - 1;
      const auto vocabulary = static_cast<std::size_t>(logits.cols());
      if (c == 0) {
        if (conditions.size() > 1) reference.assign(logits.data(), logits.data() + logits.size());
        continue;
      }
      threads.run(static_cast<Index>(kl.size()), [&](Index t) {
        const auto row = static_cast<std::size_t>(t);
        kl[row] = kl_divergence(
            std::span(reference).subspan(row * vocabulary, vocabulary),
            std::span(logits.data(), static_cast<std::size_t>(logits.size())).subspan(row * vocabulary, vocabulary));
      });
      for (const double value : kl) result.kl += value;
    }
    if (progress) progress(w + 1);
  }
  for (ConditionResult& result : results) {
    result.cross_entropy /= static_cast<double>(result.tokens);
    result.kl /= static_cast<double>(result.tokens);
  }
  return results;
}

}  // namespace sae::inline SAE_ABI
