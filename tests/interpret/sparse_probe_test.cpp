// Logistic probes: the fit against a hand computation and its own gradient, the probes against planted latents.
#include <sae/interpret/sparse_probe.hpp>

#include <cmath>
#include <limits>
#include <vector>

#include "catch_compat.hpp"

using namespace sae;
using Catch::Matchers::ContainsSubstring;

namespace {

Matrix<double> noise(Index rows, Index cols, std::uint64_t seed) {
  Random random(seed);
  Matrix<double> out(rows, cols);
  for (Index i = 0; i < out.size(); ++i) out.data()[i] = random.normal();
  return out;
}
Matrix<double> column(const std::vector<double>& numbers) {
  Matrix<double> out(static_cast<Index>(numbers.size()), 1);
  for (std::size_t i = 0; i < numbers.size(); ++i) out(static_cast<Index>(i), 0) = numbers[i];
  return out;
}
std::vector<std::uint8_t> noisy_labels(const Matrix<double>& x, std::uint64_t seed) {
  Random random(seed);
  std::vector<std::uint8_t> out;
  for (Index i = 0; i < x.rows(); ++i) out.push_back(x.row(i).sum() + random.normal() > 0.3 ? 1 : 0);
  return out;
}
/// The loss as it is written.
double loss_of(const Matrix<double>& x, const std::vector<std::uint8_t>& labels, double l2, const Eigen::VectorXd& theta) {
  double loss = 0;
  for (Index j = 0; j < x.cols(); ++j) loss += l2 / 2 * theta[j] * theta[j];
  for (Index i = 0; i < x.rows(); ++i) {
    double s = theta[x.cols()];
    for (Index j = 0; j < x.cols(); ++j) s += x(i, j) * theta[j];
    loss += std::log(1 + std::exp(labels[static_cast<std::size_t>(i)] != 0 ? -s : s));
  }
  return loss;
}
Eigen::VectorXd theta_of(const LogisticModel& model) {
  Eigen::VectorXd out(static_cast<Index>(model.weights.size()) + 1);
  for (std::size_t n = 0; n < model.weights.size(); ++n) out[static_cast<Index>(n)] = model.weights[n];
  out[out.size() - 1] = model.bias;
  return out;
}
Codes<float> codes_of(const Matrix<float>& dense) { return Codes<float>::from_dense(dense); }

}  // namespace

TEST_CASE("gradient and Hessian of the logistic loss are those of finite differences", "[interpret][probe]") {
  const auto x = noise(20, 3, 1);
  const auto labels = noisy_labels(x, 2);
  const Eigen::VectorXd theta = (Eigen::VectorXd(4) << 0.7, -1.2, 2.1, 0.4).finished();
  Eigen::VectorXd gradient;
  Eigen::MatrixXd hessian;
  CHECK(detail::logistic_loss(x, labels, 0.5, theta, &gradient, &hessian) == Approx(loss_of(x, labels, 0.5, theta)));
  const double h = 1e-5;
  for (Index j = 0; j < 4; ++j) {
    Eigen::VectorXd up = theta, down = theta, up_gradient, down_gradient;
    up[j] += h;
    down[j] -= h;
    CHECK(gradient[j] == Approx((loss_of(x, labels, 0.5, up) - loss_of(x, labels, 0.5, down)) / (2 * h)).margin(1e-8));
    detail::logistic_loss(x, labels, 0.5, up, &up_gradient);
    detail::logistic_loss(x, labels, 0.5, down, &down_gradient);
    for (Index i = 0; i < 4; ++i) CHECK(hessian(i, j) == Approx((up_gradient[i] - down_gradient[i]) / (2 * h)).margin(1e-7));
  }
  // Far out nothing overflows.
  CHECK(std::isfinite(detail::logistic_loss(x, labels, 0.5, 1e6 * theta, &gradient, &hessian)));
  CHECK(gradient.allFinite());
  CHECK(hessian.allFinite());
}

TEST_CASE("logistic regression by hand", "[interpret][probe]") {
  // Items +1 (positive) and -1 (negative): by symmetry b = 0, and 2 log(1 + exp(-w)) + l2/2 w^2 is least where l2 w = 2 / (1 + exp(w)).
  const Matrix<double> x = column({1, -1});
  const std::vector<std::uint8_t> labels = {1, 0};
  for (const double w : {0.25, 1.0, 3.0}) {
    const LogisticModel model = fit_logistic(x, labels, 2 / (w * (1 + std::exp(w))));
    CHECK(model.converged);
    CHECK(model.weights[0] == Approx(w).epsilon(1e-10));
    CHECK(model.bias == Approx(0).margin(1e-10));
  }
  // Without columns the bias is the log odds.
  const Matrix<double> nothing(4, 0);
  const LogisticModel alone = fit_logistic(nothing, std::vector<std::uint8_t>{1, 1, 1, 0});
  CHECK(alone.weights.empty());
  CHECK(alone.bias == Approx(std::log(3.0)));
}

TEST_CASE("logistic regression ends where the gradient is zero", "[interpret][probe]") {
  for (const Index k : {1, 2, 5}) {
    for (const double l2 : {1e-3, 1.0, 100.0}) {
      CAPTURE(k, l2);
      const auto x = noise(60, k, static_cast<std::uint64_t>(k));
      const auto labels = noisy_labels(x, 4);
      const LogisticModel model = fit_logistic(x, labels, l2);
      CHECK(model.converged);
      const Eigen::VectorXd theta = theta_of(model);
      const double least = loss_of(x, labels, l2, theta);
      for (Index j = 0; j <= k; ++j) {
        Eigen::VectorXd up = theta, down = theta;
        up[j] += 1e-4;
        down[j] -= 1e-4;
        CHECK(loss_of(x, labels, l2, up) > least);
        CHECK(loss_of(x, labels, l2, down) > least);
        CHECK(loss_of(x, labels, l2, up) - loss_of(x, labels, l2, down) == Approx(0).margin(1e-11));
      }
      const LogisticModel again = fit_logistic(x, labels, l2);
      CHECK(again.weights == model.weights);
    }
  }
}

TEST_CASE("separable and badly scaled items have a finite fit", "[interpret][probe]") {
  const Matrix<double> x = column({100, 120, 90, -80, -300, -100});
  const std::vector<std::uint8_t> labels = {1, 1, 1, 0, 0, 0};
  for (const double l2 : {1e-6, 1.0}) {
    const LogisticModel model = fit_logistic(x, labels, l2);
    CHECK(model.converged);
    CHECK(std::isfinite(model.weights[0]));
    for (Index i = 0; i < 6; ++i)
      CHECK((model.weights[0] * x(i, 0) + model.bias > 0) == (labels[static_cast<std::size_t>(i)] != 0));
  }
  // One positive item of a thousand.
  std::vector<std::uint8_t> rare(1000, 0);
  rare[7] = 1;
  const LogisticModel model = fit_logistic(noise(1000, 2, 9), rare);
  CHECK(model.converged);
  CHECK(model.bias < -4);
}

TEST_CASE("a fit that whole Newton steps would miss", "[interpret][probe]") {
  Matrix<double> x(12, 3);
  x << -42.2, -29.5, -6.1, 10.9, 9.7, 1038.5, 3.9, 1.1, -3.5, 18.7, -14.3, 31.3, -82.8, -28.1, -39.6, -6.7, 8.9, -5.5, 8.7,
      -38.7, 12.8, 1.1, -4.0, 1350.9, -2.7, -104.7, 9.4, 8.7, 88.9, -2.1, -20.1, -13.2, 0.2, 36.4, -2.8, -3.9;
  std::vector<std::uint8_t> labels(12, 0);
  labels[11] = 1;
  const LogisticModel model = fit_logistic(x, labels, 1e-4);
  CHECK(model.converged);
  Eigen::VectorXd gradient;
  detail::logistic_loss(x, labels, 1e-4, theta_of(model), &gradient);
  CHECK(gradient.norm() < 1e-6);
}

TEST_CASE("logistic regression refuses what has no minimum", "[interpret][probe]") {
  const Matrix<double> x = noise(3, 1, 1);
  CHECK_THROWS_WITH(fit_logistic(x, std::vector<std::uint8_t>{1, 1, 1}), ContainsSubstring("3 of 3 items are positive"));
  CHECK_THROWS_WITH(fit_logistic(x, std::vector<std::uint8_t>{0, 0, 0}), ContainsSubstring("0 of 3 items are positive"));
  CHECK_THROWS_WITH(fit_logistic(x, std::vector<std::uint8_t>{1, 0, 1}, 0), ContainsSubstring("l2 = 0"));
  CHECK_THROWS_WITH(fit_logistic(x, std::vector<std::uint8_t>{1, 0}), ContainsSubstring("3 items with 2 labels"));
  Matrix<double> broken = x;
  broken(1, 0) = std::nan("");
  CHECK_THROWS_WITH(fit_logistic(broken, std::vector<std::uint8_t>{1, 0, 1}), ContainsSubstring("not finite"));
}

TEST_CASE("sparse probes find the latents that were planted, on items held out too", "[interpret][probe]") {
  // Latent 4 tells the classes apart, 11 nearly, the others are noise.
  Random random(6);
  const auto draw = [&](Index items, bool is_positive) {
    Matrix<float> out = Matrix<float>::Zero(items, 40);
    for (Index b = 0; b < items; ++b) {
      for (Index n = 0; n < 5; ++n) out(b, static_cast<Index>(random.below(40))) = static_cast<float>(random.uniform());
      out(b, 4) = is_positive ? 5 + static_cast<float>(random.uniform()) : 0;
      out(b, 11) = static_cast<float>(is_positive ? 1 + random.normal() : random.normal() - 1);
    }
    return codes_of(out);
  };
  const Codes<float> positive = draw(50, true), negative = draw(30, false);
  const auto probes = sparse_probes(positive, negative);
  REQUIRE(probes.size() == 3);
  CHECK(probes[0].latents == std::vector<Index>{4});
  CHECK(probes[1].latents == std::vector<Index>{4, 11});
  CHECK(probes[2].latents.size() == 5);
  for (const SparseProbe& probe : probes) {
    CHECK(probe.train.items == 56);  // 35 and 21 of the two
    CHECK(probe.held_out.items == 24);
    CHECK(probe.train.accuracy == 1);
    CHECK(probe.held_out.accuracy == 1);
    CHECK(probe.held_out.auroc == 1);
    CHECK(probe.weights.size() == probe.latents.size());
    CHECK(probe.weights[0] > 0);
  }
  // Of the latent that is no more than a hint alone. The weights are those of f itself.
  SparseProbeOptions options{.sizes = {1}, .held_out = 0.5, .l2 = 1e-9, .seed = 4};
  Matrix<float> dense_positive = positive.dense(), dense_negative = negative.dense();
  dense_positive.col(4).setZero();
  dense_negative.col(4).setZero();
  const SparseProbe hint = sparse_probes(codes_of(dense_positive), codes_of(dense_negative), options)[0];
  CHECK(hint.latents == std::vector<Index>{11});
  CHECK(hint.weights[0] == Approx(2).margin(1.2));  // of normal classes 2 apart with deviation 1
  CHECK(hint.held_out.accuracy > 0.7);
  CHECK(hint.held_out.accuracy < 1);
  CHECK(hint.held_out.auroc > hint.held_out.accuracy);
  CHECK(hint.held_out.items == 40);

  // Of a latent that is 8 times as active the weight is an eighth, and the probe the same.
  const SparseProbe louder = sparse_probes(codes_of(8 * dense_positive), codes_of(8 * dense_negative), options)[0];
  CHECK(8 * louder.weights[0] == Approx(hint.weights[0]).epsilon(1e-9));
  CHECK(louder.bias == Approx(hint.bias).epsilon(1e-9));

  options.seed = 5;
  CHECK(sparse_probes(codes_of(dense_positive), codes_of(dense_negative), options)[0].bias != hint.bias);
  Threads one(1), three(3);
  CHECK(sparse_probes(positive, negative, {}, one)[2].weights == sparse_probes(positive, negative, {}, three)[2].weights);
}

TEST_CASE("what says nothing about the class does not do so on items held out", "[interpret][probe]") {
  // 2000 latents of noise and 20 items a class: some latent fits the items to train on, and none the others.
  Random random(7);
  const auto draw = [&] {
    Matrix<float> out(20, 2000);
    for (Index i = 0; i < out.size(); ++i) out.data()[i] = static_cast<float>(random.normal());
    return codes_of(out);
  };
  const Codes<float> positive = draw(), negative = draw();
  CHECK(strongest(separate(positive, negative), 1)[0].auroc != Approx(0.5).margin(0.25));
  double train = 0, held_out = 0;
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    const SparseProbe probe = sparse_probes(positive, negative, {.sizes = {5}, .held_out = 0.5, .seed = seed})[0];
    train += probe.train.accuracy / 20;
    held_out += probe.held_out.accuracy / 20;
  }
  CHECK(train > 0.9);
  CHECK(held_out == Approx(0.5).margin(0.15));
}

TEST_CASE("sparse probes of few items and few latents", "[interpret][probe]") {
  const Codes<float> two = codes_of((Matrix<float>(2, 3) << 2, 0, 0, 2, 0, 0).finished()),
                     other = codes_of((Matrix<float>(2, 3) << 0, 0, 0, 0, 0, 0).finished()),
                     one = codes_of(Matrix<float>::Ones(1, 3));
  const auto probes = sparse_probes(two, other);
  CHECK(probes[2].latents == std::vector<Index>{0});  // no other is active
  CHECK(probes[2].train.items == 2);
  CHECK(probes[2].held_out.items == 2);
  CHECK(probes[2].held_out.accuracy == 1);
  CHECK_THROWS_WITH(sparse_probes(two, one), ContainsSubstring("2 positive and 1 negative items"));
  // Where no latent is active the bias is all there is.
  const SparseProbe silent = sparse_probes(other, codes_of(Matrix<float>::Zero(6, 3)))[0];
  CHECK(silent.latents.empty());
  CHECK(silent.bias == Approx(std::log(1.0 / 4)));  // to train on are 1 and 4
  CHECK(silent.held_out.items == 3);
  CHECK(silent.held_out.accuracy == Approx(2.0 / 3));
  CHECK(silent.held_out.auroc == 0.5);
  CHECK_THROWS_WITH(sparse_probes(two, other, {.sizes = {1, 0}}), ContainsSubstring("a probe of 0 latents"));
  CHECK_THROWS_WITH(sparse_probes(two, other, {.held_out = 1}), ContainsSubstring("held_out = 1 is not in (0, 1)"));
  CHECK_THROWS_WITH(sparse_probes(two, other, {.l2 = 0}), ContainsSubstring("l2 = 0"));
  Matrix<float> broken = Matrix<float>::Ones(2, 3);
  broken(0, 1) = broken(1, 1) = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_WITH(sparse_probes(two, codes_of(broken)), ContainsSubstring("not finite"));
}
