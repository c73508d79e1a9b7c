#pragma once
#include <sae/core/random.hpp>
#include <sae/interpret/separation.hpp>

#include <Eigen/Cholesky>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace sae::inline SAE_ABI {

/// A logistic regression: p(positive | x) = 1 / (1 + exp(-(w . x + b))).
struct LogisticModel {
  std::vector<double> weights;  ///< w [k]
  double bias = 0;              ///< b
  Index iterations = 0;         ///< Newton steps that the fit took
  bool converged = false;
};

namespace detail {
/// log(1 + exp(z)) without overflow.
inline double softplus(double z) { return std::max(z, 0.0) + std::log1p(std::exp(-std::abs(z))); }

/// sum_i log(1 + exp(-y_i s_i)) + l2/2 |w|^2 with s = x w + b, y = +-1; theta = (w, b) [k + 1]. With `gradient` and `hessian` their values, too:
///   dL/dtheta = X^T (p - (y + 1)/2) + l2 (w, 0),   H = X^T diag(p (1 - p)) X + l2 diag(1, .., 1, 0),   X = (x, 1), p = 1 / (1 + exp(-s))
inline double logistic_loss(const Batch<double>& x, std::span<const std::uint8_t> positive, double l2,
                            const Eigen::VectorXd& theta, Eigen::VectorXd* gradient = nullptr,
                            Eigen::MatrixXd* hessian = nullptr) {
  const Index k = x.cols();
  double loss = l2 / 2 * theta.head(k).squaredNorm();
  if (gradient != nullptr) {
    *gradient = l2 * theta;
    (*gradient)[k] = 0;
  }
  if (hessian != nullptr) {
    *hessian = l2 * Eigen::MatrixXd::Identity(k + 1, k + 1);
    (*hessian)(k, k) = 0;
  }
  Eigen::VectorXd row(k + 1);
  row[k] = 1;
  for (Index i = 0; i < x.rows(); ++i) {
    row.head(k) = Eigen::Map<const Eigen::VectorXd>(x.row(i), k);
    const double s = row.dot(theta);
    const bool is_positive = positive[static_cast<std::size_t>(i)] != 0;
    loss += softplus(is_positive ? -s : s);
    const double p = 1 / (1 + std::exp(-s));
    if (gradient != nullptr) *gradient += (p - (is_positive ? 1.0 : 0.0)) * row;
    if (hessian != nullptr) *hessian += p / (1 + std::exp(s)) * row * row.transpose();
  }
  return loss;
}
}  // namespace detail

/// The minimum of sum_i log(1 + exp(-y_i (w . x_i + b))) + l2/2 |w|^2, by Newton's method with halved steps (IRLS) from 0, in float64. The bias
/// is not regularised. scikit-learn's LogisticRegression with C = 1 / l2 minimises the same. Where a plane separates the classes l2 keeps the
/// minimum finite.
///
/// \param x         [n x k]; k may be 0: the bias alone
/// \param positive  [n] 1 for a positive item, 0 for a negative one; both occur
/// \param l2        > 0
/// Cost: n k^2 a step, some ten steps. `converged` is false where 100 did not do.
/// \throws ValueError  x is not finite, one class alone, l2 out of its range. ShapeError: not one label for each row.
inline LogisticModel fit_logistic(const Batch<double>& x, std::span<const std::uint8_t> positive, double l2 = 1) {
  require_positive("fit_logistic: l2", l2);
  if (static_cast<Index>(positive.size()) != x.rows())
    throw_shape("fit_logistic: ", x.rows(), " items with ", positive.size(), " labels");
  const auto of_positive = x.rows() - std::count(positive.begin(), positive.end(), std::uint8_t{0});
  if (of_positive == 0 || of_positive == x.rows())
    throw_value("fit_logistic: ", of_positive, " of ", x.rows(), " items are positive; each class needs one");
  if (!x.map().allFinite()) throw_value("fit_logistic: an item holds a number that is not finite");
  const Index k = x.cols();
  Eigen::VectorXd theta = Eigen::VectorXd::Zero(k + 1), gradient;
  Eigen::MatrixXd hessian;
  LogisticModel out;
  for (double loss = detail::logistic_loss(x, positive, l2, theta, &gradient, &hessian); !out.converged && out.iterations < 100;
       ++out.iterations) {
    const Eigen::VectorXd step = hessian.ldlt().solve(gradient);
    const double decrement = gradient.dot(step);  // twice what a quadratic would lose
    if (!(decrement >= 0)) break;
    // A step this small is as good as the last one: the error squares itself, and the loss no longer tells two points apart.
    out.converged = decrement < 1e-12 * (1 + loss);
    double size = 1;
    if (!out.converged)
      while (size > 1e-12 && !(detail::logistic_loss(x, positive, l2, theta - size * step) <= loss - 1e-4 * size * decrement))
        size /= 2;
    theta -= size * step;
    loss = detail::logistic_loss(x, positive, l2, theta, &gradient, &hessian);
  }
  out.weights.assign(theta.data(), theta.data() + k);
  out.bias = theta[k];
  return out;
}

struct SparseProbeOptions {
  std::vector<Index> sizes = {1, 2, 5};  ///< k of each probe, >= 1
  double held_out = 0.3;  ///< share of each class that no probe sees, in (0, 1); rounded, at least an item stays on either side
  double l2 = 1;          ///< > 0, see fit_logistic; latents are scaled to deviation 1 before
  std::uint64_t seed = 0;  ///< of the split

  void check() const {
    for (const Index k : sizes)
      if (k < 1) throw_value("SparseProbeOptions: a probe of ", k, " latents is none; k >= 1");
    if (!(held_out > 0 && held_out < 1)) throw_value("SparseProbeOptions: held_out = ", held_out, " is not in (0, 1)");
    require_positive("SparseProbeOptions: l2", l2);
  }
};

/// How well a probe does on some items.
struct ProbeScore {
  Index items = 0;
  double accuracy = 0;  ///< share of the items on the right side of w . f + b > 0
  double auroc = 0;     ///< of w . f + b
};
/// A logistic regression of few latents: p(positive) = 1 / (1 + exp(-(sum weights[n] f_latents[n] + bias))).
struct SparseProbe {
  std::vector<Index> latents;   ///< largest mean difference first
  std::vector<double> weights;  ///< in units of f, not of the scaled latents
  double bias = 0;
  ProbeScore train, held_out;
};

namespace detail {
/// Items of both classes, an item a row.
template <class Scalar>
struct ClassItems {
  Codes<Scalar> positive, negative;
  Index items() const { return positive.rows() + negative.rows(); }
  /// f of these latents [items x k], the positive items first.
  Matrix<double> values(const std::vector<Index>& latents) const {
    Matrix<double> out(items(), static_cast<Index>(latents.size()));
    for (Index i = 0; i < out.rows(); ++i)
      for (Index n = 0; n < out.cols(); ++n) {
        const Index latent = latents[static_cast<std::size_t>(n)], behind = i - positive.rows();
        out(i, n) = static_cast<double>(behind < 0 ? positive.coefficient(i, latent) : negative.coefficient(behind, latent));
      }
    return out;
  }
};

/// Gives each row of a class to the items held out or to those to train on.
template <class Scalar>
void split_items(const Codes<Scalar>& codes, const SparseProbeOptions& options, std::uint64_t stream, Codes<Scalar>& train,
                 Codes<Scalar>& held_out) {
  const Index items = codes.rows();
  const auto out =
      std::clamp(static_cast<Index>(std::lround(options.held_out * static_cast<double>(items))), Index{1}, items - 1);
  const Permutation order(static_cast<std::uint64_t>(items), options.seed, stream);
  std::vector<std::uint8_t> is_out(static_cast<std::size_t>(items), 0);
  for (Index n = 0; n < out; ++n) is_out[order(static_cast<std::uint64_t>(n))] = 1;
  train.reset(codes.latents());
  held_out.reset(codes.latents());
  for (Index b = 0; b < items; ++b) {
    Codes<Scalar>& to = is_out[static_cast<std::size_t>(b)] != 0 ? held_out : train;
    for (Index e = codes.begin(b); e < codes.end(b); ++e) to.push(codes.latent(e), codes.value(e));
    to.finish_row();
  }
}

/// Fits weights and bias of the probe's latents.
template <class Scalar>
void fit_probe(SparseProbe& probe, const ClassItems<Scalar>& items, double l2) {
  Matrix<double> x = items.values(probe.latents);
  std::vector<double> means, deviations;
  for (Index n = 0; n < x.cols(); ++n) {
    auto column = x.col(n).array();
    means.push_back(column.mean());
    column -= means.back();
    const double deviation = std::sqrt(column.square().mean());
    deviations.push_back(deviation > 0 ? deviation : 1.0);
    column /= deviations.back();
  }
  std::vector<std::uint8_t> labels(static_cast<std::size_t>(x.rows()), 0);
  std::fill_n(labels.begin(), items.positive.rows(), std::uint8_t{1});
  const LogisticModel fitted = fit_logistic(x, labels, l2);
  probe.bias = fitted.bias;
  for (std::size_t n = 0; n < means.size(); ++n) {
    probe.weights.push_back(fitted.weights[n] / deviations[n]);
    probe.bias -= probe.weights.back() * means[n];
  }
}

template <class Scalar>
ProbeScore score_probe(const SparseProbe& probe, const ClassItems<Scalar>& items) {
  const Matrix<double> values = items.values(probe.latents);
  std::vector<double> positive, negative;
  Index right = 0;
  for (Index i = 0; i < values.rows(); ++i) {
    double score = probe.bias;
    for (Index n = 0; n < values.cols(); ++n) score += probe.weights[static_cast<std::size_t>(n)] * values(i, n);
    const bool is_positive = i < items.positive.rows();
    (is_positive ? positive : negative).push_back(score);
    if ((score > 0) == is_positive) ++right;
  }
  return {values.rows(), static_cast<double>(right) / static_cast<double>(values.rows()),
          auroc(std::move(positive), std::move(negative))};
}
}  // namespace detail

/// Whether few latents tell two classes apart: k-sparse logistic probes, one for each of `options.sizes`.
///
/// A fixed random part of each class is held out. On the rest the k latents of largest |mean difference| are chosen (fewer where fewer are
/// active, perhaps none: the bias alone; of equals the lower), scaled to mean 0 and deviation 1, and fitted by `fit_logistic`.
///
/// \param positive, negative  [n+ x F], [n- x F], an item a row (`pool_rows`)
/// The split depends on the seed and the number of items alone; results do not depend on threads.
/// \throws ValueError  a class has less than two items, a value is not finite; see SparseProbeOptions::check. ShapeError: F differs.
/// Source: Gurnee et al. 2023, "Finding neurons in a haystack" (k-sparse probes, maximum mean difference); SAEBench sparse_probing, k = 1, 2, 5.
template <class Scalar>
std::vector<SparseProbe> sparse_probes(const Codes<Scalar>& positive, const Codes<Scalar>& negative,
                                       const SparseProbeOptions& options = {}, Threads& threads = Threads::shared()) {
  options.check();
  if (positive.rows() < 2 || negative.rows() < 2)
    throw_value("sparse_probes: ", positive.rows(), " positive and ", negative.rows(),
                " negative items; each class needs two, to train and to hold out");
  detail::require_finite_codes("sparse_probes", positive, "positive item");
  detail::require_finite_codes("sparse_probes", negative, "negative item");
  detail::ClassItems<Scalar> train, held_out;
  detail::split_items(positive, options, 0, train.positive, held_out.positive);
  detail::split_items(negative, options, 1, train.negative, held_out.negative);
  const std::vector<LatentSeparation> all = separate(train.positive, train.negative, threads);
  std::vector<SparseProbe> probes;
  for (const Index k : options.sizes) {
    SparseProbe& probe = probes.emplace_back();
    for (const LatentSeparation& chosen : strongest(all, k, SeparationOrder::mean_difference))
      probe.latents.push_back(chosen.latent);
    detail::fit_probe(probe, train, options.l2);
    probe.train = detail::score_probe(probe, train);
    probe.held_out = detail::score_probe(probe, held_out);
  }
  return probes;
}

}  // namespace sae::inline SAE_ABI
