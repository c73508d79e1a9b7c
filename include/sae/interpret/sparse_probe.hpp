#pragma once
#include <sae/core/random.hpp>
#include <sae/interpret/separation.hpp>

#include <Eigen/Cholesky>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
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

/// Whether few latents tell two classes apart: k-sparse logistic probes, one for each of `options.sizes`.
///
/// A fixed random part of each class is held out. On the rest the k latents of largest |mean difference| are chosen (fewer where fewer are
/// active; of equals the lower), scaled to mean 0 and deviation 1, and fitted by `fit_logistic`.
///
/// \param positive, negative  [n+ x F], [n- x F], an item a row (`pool_rows`)
/// The split depends on the seed and the number of items alone; results do not depend on threads.
/// \throws ValueError  a class has less than two items, no latent is active in the items to train on, a value is not finite; see
///         SparseProbeOptions::check. ShapeError: F differs.
/// Source: Gurnee et al. 2023, "Finding neurons in a haystack" (k-sparse probes, maximum mean difference); SAEBench
///         sparse_probing, k = 1, 2, 5.
template <class Scalar>
std::vector<SparseProbe> sparse_probes(const Codes<Scalar>& positive, const Codes<Scalar>& negative,
                                       const SparseProbeOptions& options = {}, Threads& threads = Threads::shared()) {
  options.check();
  if (positive.rows() < 2 || negative.rows() < 2)
    throw_value("sparse_probes: ", positive.rows(), " positive and ", negative.rows(),
                " negative items; each class needs two, to train and to hold out");
  struct Part {
    Codes<Scalar> of[2];  // positive, negative
    Index items() const { return of[0].rows() + of[1].rows(); }
  };
  Part train, held_out;
  for (const bool is_negative : {false, true}) {
    const Codes<Scalar>& codes = is_negative ? negative : positive;
    const Index items = codes.rows();
    const Index out =
        std::clamp(static_cast<Index>(std::lround(options.held_out * static_cast<double>(items))), Index{1}, items - 1);
    const Permutation order(static_cast<std::uint64_t>(items), options.seed, is_negative ? 1 : 0);
    std::vector<std::uint8_t> is_out(static_cast<std::size_t>(items), 0);
    for (Index n = 0; n < out; ++n) is_out[order(static_cast<std::uint64_t>(n))] = 1;
    train.of[is_negative] = held_out.of[is_negative] = Codes<Scalar>(codes.latents());
    for (Index b = 0; b < items; ++b) {
      Codes<Scalar>& to = (is_out[static_cast<std::size_t>(b)] != 0 ? held_out : train).of[is_negative];
      for (Index e = codes.begin(b); e < codes.end(b); ++e) to.push(codes.latent(e), codes.value(e));
      to.finish_row();
    }
  }
  const std::vector<LatentSeparation> all = separate(train.of[0], train.of[1], threads);
  detail::require_finite_codes("sparse_probes", held_out.of[0], "held-out positive item");
  detail::require_finite_codes("sparse_probes", held_out.of[1], "held-out negative item");
  if (all.empty()) throw_value("sparse_probes: no latent is active in any of the ", train.items(), " items to train on");

  std::vector<SparseProbe> probes;
  for (const Index k : options.sizes) {
    SparseProbe& probe = probes.emplace_back();
    for (const LatentSeparation& chosen : strongest(all, k, SeparationOrder::mean_difference))
      probe.latents.push_back(chosen.latent);
    const auto columns = static_cast<Index>(probe.latents.size());
    const auto values_of = [&](const Part& part) {
      Matrix<double> out(part.items(), columns);
      for (Index i = 0; i < out.rows(); ++i)
        for (Index n = 0; n < columns; ++n) {
          const Index positives = part.of[0].rows(), latent = probe.latents[static_cast<std::size_t>(n)];
          out(i, n) = static_cast<double>(i < positives ? part.of[0].coefficient(i, latent)
                                                        : part.of[1].coefficient(i - positives, latent));
        }
      return out;
    };
    Matrix<double> x = values_of(train);
    const RowVector<double> mean = x.colwise().mean();
    x.rowwise() -= mean;
    RowVector<double> deviation = (x.colwise().squaredNorm() / static_cast<double>(x.rows())).cwiseSqrt();
    for (Index n = 0; n < columns; ++n)
      if (deviation[n] == 0) deviation[n] = 1;
    x.array().rowwise() /= deviation.array();
    std::vector<std::uint8_t> labels(static_cast<std::size_t>(x.rows()), 0);
    std::fill_n(labels.begin(), train.of[0].rows(), std::uint8_t{1});
    const LogisticModel fitted = fit_logistic(x, labels, options.l2);
    probe.bias = fitted.bias;
    for (Index n = 0; n < columns; ++n) {
      probe.weights.push_back(fitted.weights[static_cast<std::size_t>(n)] / deviation[n]);
      probe.bias -= probe.weights.back() * mean[n];
    }
    const auto score = [&](const Part& part) {
      const Matrix<double> of = values_of(part);
      std::vector<double> scores[2];
      Index right = 0;
      for (Index i = 0; i < of.rows(); ++i) {
        double s = probe.bias;
        for (Index n = 0; n < columns; ++n) s += probe.weights[static_cast<std::size_t>(n)] * of(i, n);
        const bool is_positive = i < part.of[0].rows();
        right += (s > 0) == is_positive;
        scores[is_positive ? 0 : 1].push_back(s);
      }
      return ProbeScore{of.rows(), static_cast<double>(right) / static_cast<double>(of.rows()),
                        auroc(std::move(scores[0]), std::move(scores[1]))};
    };
    probe.train = score(train);
    probe.held_out = score(held_out);
  }
  return probes;
}

}  // namespace sae::inline SAE_ABI
