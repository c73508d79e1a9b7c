#pragma once
#include <sae/training/l1.hpp>

#include <cmath>
#include <string_view>

namespace sae::inline SAE_ABI {

/// What becomes of sum_i u^p.
enum class LpForm {
  sum,   ///< it stays: "Lp^p"
  norm,  ///< (sum_i u^p)^(1/p): the p-norm of the codes (SAELens `lp_norm`)
};

/// The family of sparsity penalties of which L1 is the case p = 1: the smaller p, the more it prefers few strong codes.
///
///   L = coefficient s(t) mean_b w_b N_b         N_b = sum_i u[b,i]^p, or (sum_i u[b,i]^p)^(1/p)       u = |f[b,i]| n_i
///
/// n_i = |d_i| where weighted, else 1. w_b = 1 / |x_b| with `divide_by_input_norm`, x_b being the row that was given, else 1: with p = 1
/// and no weights that is OpenAI's normalised L1. A row of norm 0 has w_b = 0: it has no direction that its codes could explain
/// (OpenAI divides by 0 there). With c = coefficient s / B w_b, over the entries with u > 0:
///
///   t = c p u^(p-1)  (sum),   t = c (u / N_b)^(p-1)  (norm);       dL/df = t n_i sign f,    dL/dn_i = sum_b t |f|
///
/// p = 1 gives L1 to the last bit. For p < 1 the derivative has no bound as u falls to 0; where u = 0 it is taken as 0. The norm of
/// k equal codes is k^(1/p) times one of them: choose the coefficient for the p.
/// Cost   two powers an active entry.
/// Source SAELens saes/standard_sae.py (norm, weighted); openai/sparse_autoencoder loss.py (`normalized_L1_loss`); dictionary_learning
///        trainers/p_anneal.py (both forms, not weighted).
struct Lp {
  double coefficient = 1;  ///< lambda >= 0
  double p = 1;            ///< in (0, infinity)
  LpForm form = LpForm::norm;
  bool weighted_by_decoder_norm = true;
  bool divide_by_input_norm = false;

  static constexpr std::string_view name = "lp";
  template <class Visitor>
  void visit_settings(Visitor&& visitor) const {
    visitor("coefficient", coefficient);
    visitor("p", p);
    visitor("form", std::string_view(form == LpForm::sum ? "sum" : "norm"));
    visitor("weighted_by_decoder_norm", weighted_by_decoder_norm);
    visitor("divide_by_input_norm", divide_by_input_norm);
  }
  void check(Index, Index) const {
    require_non_negative("Lp: coefficient", coefficient);
    if (!(p > 0 && std::isfinite(p))) throw_value("Lp: p = ", p, " is not in (0, infinity)");
  }
  bool needs_decoder_norms() const { return weighted_by_decoder_norm; }

  /// mean_b w_b N_b of the codes of a step, without coefficient and warm-up.
  template <class Step>
  double mean(const Step& step) const {
    double sum = 0;
    for (Index b = 0; b < step.rows(); ++b) sum += row_weight(step, b) * row_penalty(step, b);
    return sum / static_cast<double>(step.rows());
  }

  template <class Step>
  double apply(Step& step, NoSelection& none, Threads& threads) const {
    using Scalar = typename Step::Scalar;
    if (p == 1 && !divide_by_input_norm)
      return L1{.coefficient = coefficient, .weighted_by_decoder_norm = weighted_by_decoder_norm}.apply(step, none, threads);
    const double scale = coefficient * step.sparsity_scale / static_cast<double>(step.rows());
    const auto& codes = step.main.entries.codes;
    std::span<Scalar> norm_gradient;
    if (weighted_by_decoder_norm && step.wants_gradient) norm_gradient = step.norm_gradient();
    double sum = 0;
    for (Index b = 0; b < step.rows(); ++b) {
      const double weight = row_weight(step, b), penalty = row_penalty(step, b);
      sum += weight * penalty;
      if (!step.wants_gradient || !(penalty > 0)) continue;
      for (Index e = codes.begin(b); e < codes.end(b); ++e) {
        const Index i = codes.latent(e);
        const auto f = static_cast<double>(codes.value(e));
        const double n = norm(step, i), u = std::abs(f) * n;
        if (!(u > 0)) continue;
        const double slope = scale * weight * (form == LpForm::sum ? p * std::pow(u, p - 1) : std::pow(u / penalty, p - 1));
        step.main.df[static_cast<std::size_t>(e)] += static_cast<Scalar>(f < 0 ? -slope * n : slope * n);
        if (weighted_by_decoder_norm) norm_gradient[static_cast<std::size_t>(i)] += static_cast<Scalar>(slope * std::abs(f));
      }
    }
    return scale * sum;
  }

 private:
  template <class Step>
  double norm(const Step& step, Index i) const {
    return weighted_by_decoder_norm ? static_cast<double>(step.decoder_norms[i]) : 1.0;
  }
  template <class Step>
  double row_weight(const Step& step, Index b) const {
    if (!divide_by_input_norm) return 1;
    const auto length = std::sqrt(static_cast<double>(kernels::squared_norm(step.raw.row(b), step.input.cols())));
    return length > 0 ? 1 / length : 0;
  }
  template <class Step>
  double row_penalty(const Step& step, Index b) const {
    const auto& codes = step.main.entries.codes;
    double sum = 0;
    for (Index e = codes.begin(b); e < codes.end(b); ++e)
      sum += std::pow(std::abs(static_cast<double>(codes.value(e))) * norm(step, codes.latent(e)), p);
    return form == LpForm::sum ? sum : std::pow(sum, 1 / p);
  }
};

}  // namespace sae::inline SAE_ABI
