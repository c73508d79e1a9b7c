#pragma once
#include <sae/training/lp.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string_view>
#include <vector>

namespace sae::inline SAE_ABI {

/// p-annealing: an Lp penalty (training/lp.hpp) whose p falls during the training from convex L1 towards a count of the active
/// latents, and whose coefficient follows, so that the penalty keeps its weight in the loss.
///
///   L = alpha_t s(t) S_p,       S_p = mean_b sum_i u^p, or mean_b (sum_i u^p)^(1/p)           alpha_0 = coefficient
///
/// After the step number t_k = anneal_start + floor(k (anneal_end - anneal_start) / (updates - 1)), k = 0 .. updates - 1 (steps count
/// from 0), p becomes p_k = p_start + k (p_end - p_start) / (updates - 1), and for k > 0
///
///   alpha <- alpha mean(S_p) / mean(S_{p_k})        over the last `window` steps, this one included, that followed step t_0
///
/// as every step left S_p, p being that of its own loss, and S of the p that was to be next (windows longer than the time between two
/// changes reach back over them, as in dictionary_learning). alpha stays where a mean is 0 or not finite.
///
/// p must stay above 0: u^0 is 1 whether or not a latent is active, so the sum form has no gradient, and the norm divides by p
/// (dictionary_learning's default runs from 1 to 0 and stops with a division by zero where the schedule reaches 0; what it trains with
/// p_end = 0 and n updates up to the end of the run is `updates` = n - 1 with its last p above 0 as `p_end`).
/// The trainer calls `advance` after each step and keeps `state` in checkpoints.
/// Cost   two powers an active entry, four while p falls.
/// Source Karvonen et al. 2024, "Measuring progress in dictionary learning for language model interpretability with board game models",
///        arXiv:2408.00113; dictionary_learning trainers/p_anneal.py.
struct PAnneal {
  double coefficient = 0.1;  ///< alpha_0 >= 0
  LpForm form = LpForm::sum;
  bool weighted_by_decoder_norm = false;
  double p_start = 1;      ///< > 0
  double p_end = 0.2;      ///< in (0, p_start]
  Index updates = 10;      ///< values that p takes, both ends included, >= 2
  Index anneal_start = 0;  ///< t_0 >= 0
  Index anneal_end =
      0;              ///< the last t_k, >= anneal_start + updates - 1; to be given: the term does not know how long the run is
  Index window = 10;  ///< steps, >= 1

  /// What the training has come to; no setting.
  struct State {
    Index steps = 0;        ///< steps seen
    double rescale = 1;     ///< alpha / coefficient
    Tensor<double> recent;  ///< [2 x window] S_p and S of the next p of the last steps, the oldest first
  } state{};

  static constexpr std::string_view name = "p_anneal";
  template <class Visitor>
  void visit_settings(Visitor&& visitor) const {
    visitor("coefficient", coefficient);
    visitor("form", std::string_view(form == LpForm::sum ? "sum" : "norm"));
    visitor("weighted_by_decoder_norm", weighted_by_decoder_norm);
    visitor("p_start", p_start);
    visitor("p_end", p_end);
    visitor("updates", updates);
    visitor("anneal_start", anneal_start);
    visitor("anneal_end", anneal_end);
    visitor("window", window);
  }
  void check(Index, Index) const {
    require_non_negative("PAnneal: coefficient", coefficient);
    if (!(p_start > 0 && std::isfinite(p_start))) throw_value("PAnneal: p_start = ", p_start, " is not in (0, infinity)");
    if (!(p_end > 0 && p_end <= p_start))
      throw_value("PAnneal: p_end = ", p_end, " is not in (0, ", p_start,
                  "]; p = 0 counts every latent, active or not, and the norm divides by p");
    if (updates < 2) throw_value("PAnneal: updates = ", updates, " are fewer than 2");
    require_non_negative("PAnneal: anneal_start", anneal_start);
    if (anneal_end - anneal_start < updates - 1)
      throw_value("PAnneal: anneal_end = ", anneal_end, " is below anneal_start + updates - 1 = ", anneal_start + updates - 1,
                  "; each change of p takes a step of its own");
    if (window < 1) throw_value("PAnneal: window = ", window, " is below 1 step");
  }
  bool needs_decoder_norms() const { return weighted_by_decoder_norm; }

  /// p and alpha of the next step's loss.
  double p() const { return p_of(std::max<Index>(changes() - 1, 0)); }
  double alpha() const { return coefficient * state.rescale; }

  template <class Step>
  double apply(Step& step, NoSelection& none, Threads& threads) const {
    return penalty(alpha(), p()).apply(step, none, threads);
  }
  /// After a training step, before the next one.
  template <class Step>
  void advance(const Step& step) {
    const Index done = changes();
    if (done > 0 && done < updates) {
      remember(penalty(1, p()).mean(step), penalty(1, p_of(done)).mean(step));
      if (state.steps == step_of(done)) {
        double now = 0, next = 0;
        for (Index n = 0; n < remembered(); ++n) {
          now += state.recent.row(0)[n];
          next += state.recent.row(1)[n];
        }
        const double ratio = now / next;
        if (ratio > 0 && std::isfinite(ratio)) state.rescale *= ratio;
      }
    }
    ++state.steps;
  }
  template <class Visitor>
  void visit_state(Visitor&& visitor) {
    fit_window();
    std::vector<std::int64_t> counters{state.steps};
    visitor.integers("p_anneal.counters", counters);
    visitor.number("p_anneal.rescale", state.rescale);
    visitor.tensor("p_anneal.recent", state.recent);
    state.steps = counters.at(0);
  }

 private:
  Lp penalty(double factor, double power) const {
    return {.coefficient = factor, .p = power, .form = form, .weighted_by_decoder_norm = weighted_by_decoder_norm};
  }
  double p_of(Index k) const {
    return p_start + static_cast<double>(k) * ((p_end - p_start) / static_cast<double>(updates - 1));
  }
  Index step_of(Index k) const { return anneal_start + k * (anneal_end - anneal_start) / (updates - 1); }
  /// How many t_k lie behind.
  Index changes() const {
    Index k = 0;
    while (k < updates && step_of(k) < state.steps) ++k;
    return k;
  }
  /// How many steps `recent` holds: those after t_0, up to now.
  Index remembered() const { return std::clamp<Index>(state.steps - anneal_start, 0, window); }
  void fit_window() {
    if (state.recent.rows() != 2 || state.recent.cols() != window) state.recent.resize(2, window);
  }
  void remember(double now, double next) {
    fit_window();
    const Index count = std::clamp<Index>(state.steps - anneal_start - 1, 0, window);
    for (const auto& [row, value] : {std::pair<Index, double>{0, now}, {1, next}}) {
      double* const kept = state.recent.row(row);
      if (count == window) std::copy(kept + 1, kept + window, kept);
      kept[std::min(count, window - 1)] = value;
    }
  }
};

}  // namespace sae::inline SAE_ABI
