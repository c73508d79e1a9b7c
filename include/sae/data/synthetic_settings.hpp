#pragma once
#include <sae/core/random.hpp>
#include <sae/core/types.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numbers>
#include <optional>
#include <string_view>
#include <variant>
#include <vector>

// Rows with known features: x = sum_i a_i e_i + bias, with few of the n features active in a row and more features than
// dimensions. The members of the settings are the keys of a `synthetic_model` configuration of SAELens, `generator_name` names
// the alternatives. The same distributions as SAELens 6.54 `sae_lens.synthetic`; the random numbers are our own.
namespace sae::inline SAE_ABI {

// How often features fire: each makes p_i, i = 0 .. n-1, all in (0, 1].

/// p_i = min + (max - min) (q_i - q_{n-1}) / (q_0 - q_{n-1}), q_i = (i + 1)^-exponent: from max_prob down to min_prob.
struct ZipfianFiring {
  static constexpr std::string_view generator_name = "zipfian";
  double exponent = 1;    ///< > 0
  double max_prob = 0.3;  ///< 0 < min_prob < max_prob <= 1
  double min_prob = 0.01;
};
/// Linear from max_prob down to min_prob.
struct LinearFiring {
  static constexpr std::string_view generator_name = "linear";
  double max_prob = 0.3, min_prob = 0.01;
};
/// Uniform in [min_prob, max_prob), drawn once per feature.
struct RandomFiring {
  static constexpr std::string_view generator_name = "random";
  double max_prob = 0.5, min_prob = 0.01;
};
struct ConstantFiring {
  static constexpr std::string_view generator_name = "constant";
  double probability = 0.1;
};
using FiringProbability = std::variant<ZipfianFiring, LinearFiring, RandomFiring, ConstantFiring>;

// One number per feature: the mean, or the spread, of its magnitude where it is active.

struct ConstantMagnitude {
  static constexpr std::string_view generator_name = "constant";
  double value = 1;  ///< >= 0
};
/// start + (end - start) i / (n - 1); both > 0.
struct LinearMagnitude {
  static constexpr std::string_view generator_name = "linear";
  double start = 1, end = 1;
};
/// start (end / start)^(i / (n - 1)); both > 0.
struct ExponentialMagnitude {
  static constexpr std::string_view generator_name = "exponential";
  double start = 1, end = 1;
};
/// |mean + std N|, drawn once per feature, then clamped to [min_value, max_value] where given; std > 0.
struct FoldedNormalMagnitude {
  static constexpr std::string_view generator_name = "folded_normal";
  double mean = 0, std = 0.1;
  std::optional<double> min_value = std::nullopt, max_value = std::nullopt;
};
using FiringMagnitude = std::variant<ConstantMagnitude, LinearMagnitude, ExponentialMagnitude, FoldedNormalMagnitude>;

/// Trees of features: a child is active only where its parent is. Numbers are given out breadth-first (roots first, then the
/// children of each parent in order) until they run out; features that are not reached are free.
struct HierarchyConfig {
  Index total_root_nodes = 100;    ///< >= 1
  Index branching_factor = 100;    ///< children of each parent, >= 2
  Index branching_factor_max = 0;  ///< > branching_factor: their number is drawn for each parent from [it, this one]; 0: it
  Index max_depth = 2;             ///< depth of the leaves (roots have 0), >= 0
  double mutually_exclusive_portion = 0;  ///< share of the eligible parents with at most one active child, in [0, 1]
  Index mutually_exclusive_min_depth = 0;
  std::optional<Index> mutually_exclusive_max_depth = std::nullopt;  ///< of the parents that are eligible
  bool compensate_probabilities = false;                             ///< raise p_i for what gating and exclusion take away
  bool scale_children_by_parent = false;  ///< a child's magnitude is multiplied by its parent's over the parent's mean
};
/// Adam steps that spread the directions: on sum over ordered pairs of (e_i.e_j)^2 + n sum_i (|e_i|^2 - 1)^2.
struct OrthogonalizationConfig {
  Index num_steps = 100;  ///< >= 0
  double lr = 3e-4;       ///< > 0
};
/// Features fire together: g = L epsilon + sqrt(delta) eta with L [n x rank] = correlation_scale * N; feature i fires where g_i
/// is above the upper p_i quantile of a normal.
struct LowRankCorrelationConfig {
  Index rank = 32;                                   ///< >= 1
  double correlation_scale = 0.1;                    ///< >= 0
  std::optional<std::uint64_t> seed = std::nullopt;  ///< of L; the world's where absent
};

struct SyntheticConfig {
  Index num_features = 0;  ///< n >= 1
  Index hidden_dim = 0;    ///< D >= 1
  FiringProbability firing_probability = ZipfianFiring{};
  std::optional<HierarchyConfig> hierarchy = std::nullopt;
  std::optional<OrthogonalizationConfig> orthogonalization = std::nullopt;
  std::optional<LowRankCorrelationConfig> correlation = std::nullopt;
  FiringMagnitude std_firing_magnitudes = ConstantMagnitude{.value = 0};
  FiringMagnitude mean_firing_magnitudes = ConstantMagnitude{.value = 1};
  double bias = 1;  ///< norm of the row that is added to all, >= 0
  std::uint64_t seed = 0;

  /// Errors: ValueError naming the key.
  void check() const;
};

namespace detail {

/// The z with P(N > z) = p; -inf for p = 1, +inf for p = 0. Acklam's rational approximation and one step of Halley's method on
/// erfc: relative error about 1e-15.
inline double upper_normal_quantile(double p) {
  if (p <= 0) return std::numeric_limits<double>::infinity();
  if (p >= 1) return -std::numeric_limits<double>::infinity();
  if (p > 0.5) return -upper_normal_quantile(1 - p);
  double z = 0;
  if (p < 0.02425) {
    const double q = std::sqrt(-2 * std::log(p));
    z = -(((((-7.784894002430293e-03 * q - 3.223964580411365e-01) * q - 2.400758277161838e+00) * q - 2.549732539343734e+00) *
               q +
           4.374664141464968e+00) *
              q +
          2.938163982698783e+00) /
        ((((7.784695709041462e-03 * q + 3.224671290700398e-01) * q + 2.445134137142996e+00) * q + 3.754408661907416e+00) * q +
         1);
  } else {
    const double q = 0.5 - p, r = q * q;
    z = (((((-3.969683028665376e+01 * r + 2.209460984245205e+02) * r - 2.759285104469687e+02) * r + 1.383577518672690e+02) * r -
          3.066479806614716e+01) *
             r +
         2.506628277459239e+00) *
        q /
        (((((-5.447609879822406e+01 * r + 1.615858368580409e+02) * r - 1.556989798598866e+02) * r + 6.680131188771972e+01) * r -
          1.328068155288572e+01) *
             r +
         1);
  }
  const double error = p - 0.5 * std::erfc(z / std::numbers::sqrt2);
  const double u = error * std::sqrt(2 * std::numbers::pi) * std::exp(z * z / 2);
  return z - u / (1 - z * u / 2);
}

inline void check_range(double min_prob, double max_prob) {
  if (!(0 < min_prob && min_prob < max_prob && max_prob <= 1))
    throw_value("synthetic firing_probability: 0 < min_prob = ", min_prob, " < max_prob = ", max_prob, " <= 1 does not hold");
}
inline double interpolate(double from, double to, Index i, Index n) {
  return n == 1 ? from : from + (to - from) * (static_cast<double>(i) / static_cast<double>(n - 1));
}

struct MakeProbability {
  Index n;
  Random& random;
  template <class P>
  std::vector<double> each(const P& p) const {
    std::vector<double> out;
    for (Index i = 0; i < n; ++i) out.push_back(p(i));
    return out;
  }
  std::vector<double> operator()(const ZipfianFiring& c) const {
    const auto q = [&](Index i) { return std::pow(static_cast<double>(i) + 1, -c.exponent); };
    const double span = q(0) - q(n - 1);
    return each(
        [&](Index i) { return span > 0 ? c.min_prob + (c.max_prob - c.min_prob) * ((q(i) - q(n - 1)) / span) : c.max_prob; });
  }
  std::vector<double> operator()(const LinearFiring& c) const {
    return each([&](Index i) { return interpolate(c.max_prob, c.min_prob, i, n); });
  }
  std::vector<double> operator()(const RandomFiring& c) const {
    return each([&](Index) { return random.uniform(c.min_prob, c.max_prob); });
  }
  std::vector<double> operator()(const ConstantFiring& c) const {
    return each([&](Index) { return c.probability; });
  }
};
struct CheckProbability {
  void operator()(const ZipfianFiring& c) const {
    require_positive("synthetic firing_probability: exponent", c.exponent);
    check_range(c.min_prob, c.max_prob);
  }
  void operator()(const LinearFiring& c) const { check_range(c.min_prob, c.max_prob); }
  void operator()(const RandomFiring& c) const { check_range(c.min_prob, c.max_prob); }
  void operator()(const ConstantFiring& c) const {
    if (!(c.probability > 0 && c.probability <= 1))
      throw_value("synthetic firing_probability: probability = ", c.probability, " is not in (0, 1]");
  }
};

struct MakeMagnitude {
  Index n;
  Random& random;
  std::vector<double> operator()(const ConstantMagnitude& c) const {
    return std::vector<double>(static_cast<std::size_t>(n), c.value);
  }
  std::vector<double> operator()(const LinearMagnitude& c) const {
    std::vector<double> out;
    for (Index i = 0; i < n; ++i) out.push_back(interpolate(c.start, c.end, i, n));
    return out;
  }
  std::vector<double> operator()(const ExponentialMagnitude& c) const {
    std::vector<double> out;
    for (Index i = 0; i < n; ++i) out.push_back(c.start * std::pow(c.end / c.start, interpolate(0, 1, i, n)));
    return out;
  }
  std::vector<double> operator()(const FoldedNormalMagnitude& c) const {
    std::vector<double> out;
    for (Index i = 0; i < n; ++i) {
      double m = std::abs(c.mean + c.std * random.normal());
      if (c.min_value) m = std::fmax(m, *c.min_value);
      if (c.max_value) m = std::fmin(m, *c.max_value);
      out.push_back(m);
    }
    return out;
  }
};
struct CheckMagnitude {
  std::string_view key;
  void operator()(const ConstantMagnitude& c) const {
    require_non_negative(detail::concat("synthetic ", key, ": value"), c.value);
  }
  void operator()(const LinearMagnitude& c) const { check_ends(c.start, c.end); }
  void operator()(const ExponentialMagnitude& c) const { check_ends(c.start, c.end); }
  void operator()(const FoldedNormalMagnitude& c) const {
    if (!(c.std > 0 && std::isfinite(c.std) && std::isfinite(c.mean)))
      throw_value("synthetic ", key, ": mean = ", c.mean, ", std = ", c.std, " need finite numbers and std > 0");
    const double low = c.min_value.value_or(0), high = c.max_value.value_or(std::numeric_limits<double>::infinity());
    if (!(low >= 0 && high > 0 && low <= high))
      throw_value("synthetic ", key, ": 0 <= min_value = ", low, " <= max_value = ", high, " does not hold");
  }
  void check_ends(double start, double end) const {
    if (!(start > 0 && end > 0 && std::isfinite(start) && std::isfinite(end)))
      throw_value("synthetic ", key, ": start = ", start, " and end = ", end, " must be positive");
  }
};

}  // namespace detail

inline void SyntheticConfig::check() const {
  if (num_features < 1 || hidden_dim < 1)
    throw_value("synthetic: num_features = ", num_features, ", hidden_dim = ", hidden_dim, " are not positive");
  if (num_features > (Index{1} << 30) / hidden_dim)
    throw_value("synthetic: num_features = ", num_features, " times hidden_dim = ", hidden_dim, " is above 2^30");
  std::visit(detail::CheckProbability{}, firing_probability);
  std::visit(detail::CheckMagnitude{"std_firing_magnitudes"}, std_firing_magnitudes);
  std::visit(detail::CheckMagnitude{"mean_firing_magnitudes"}, mean_firing_magnitudes);
  require_non_negative("synthetic: bias", bias);
  if (hierarchy) {
    const HierarchyConfig& h = *hierarchy;
    require_positive("synthetic hierarchy: total_root_nodes", h.total_root_nodes);
    if (h.branching_factor < 2) throw_value("synthetic hierarchy: branching_factor = ", h.branching_factor, " is below 2");
    if (h.branching_factor_max != 0 && h.branching_factor_max < h.branching_factor)
      throw_value("synthetic hierarchy: branching_factor = [", h.branching_factor, ", ", h.branching_factor_max,
                  "] does not ascend");
    require_non_negative("synthetic hierarchy: max_depth", h.max_depth);
    if (!(h.mutually_exclusive_portion >= 0 && h.mutually_exclusive_portion <= 1))
      throw_value("synthetic hierarchy: mutually_exclusive_portion = ", h.mutually_exclusive_portion, " is not in [0, 1]");
    if (h.mutually_exclusive_min_depth < 0 ||
        (h.mutually_exclusive_max_depth && *h.mutually_exclusive_max_depth < h.mutually_exclusive_min_depth))
      throw_value("synthetic hierarchy: mutually_exclusive_min_depth = ", h.mutually_exclusive_min_depth,
                  " is negative or above mutually_exclusive_max_depth");
    const auto* const constant = std::get_if<ConstantMagnitude>(&mean_firing_magnitudes);
    if (h.scale_children_by_parent && constant != nullptr && !(constant->value > 0))
      throw_value("synthetic hierarchy: scale_children_by_parent divides by mean_firing_magnitudes, which are 0");
  }
  if (orthogonalization && (orthogonalization->num_steps < 0 || !(orthogonalization->lr > 0)))
    throw_value("synthetic orthogonalization: num_steps = ", orthogonalization->num_steps, ", lr = ", orthogonalization->lr,
                "; steps from 0 on and a positive lr are possible");
  if (correlation && (correlation->rank < 1 || correlation->rank > 4096 ||
                      !(correlation->correlation_scale >= 0 && std::isfinite(correlation->correlation_scale))))
    throw_value("synthetic correlation: rank = ", correlation->rank, ", correlation_scale = ", correlation->correlation_scale,
                "; a rank in [1, 4096] and a scale from 0 on are possible");
}

}  // namespace sae::inline SAE_ABI
