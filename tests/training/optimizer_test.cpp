#include <sae/data/indexed_source.hpp>
#include <sae/training/optimizer.hpp>
#include <sae/training/trainer.hpp>

#include <Eigen/SVD>
#include <array>
#include <cmath>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "catch_compat.hpp"
#include "gradient_check.hpp"

namespace {

using sae::Index;
using namespace sae_test;

template <class Scalar = double>
using TopKModel = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::TopK, Scalar>;
constexpr Index width = 6, latents = 70;

sae::Tensor<double> tensor(const Dense& values) {
  sae::Tensor<double> out(values.rows(), values.cols());
  out.map() = values;
  return out;
}
// w after each of some steps of one number with the rate 0.1.
std::vector<double> walk(const sae::Optimizer& optimizer, const std::vector<double>& gradients, double start = 1) {
  sae::OptimizerState<double> state(optimizer);
  state.add("w", 1, 1);
  std::vector<double> out;
  double w = start;
  for (const double g : gradients) {
    state.begin_step(static_cast<Index>(out.size()) + 1, 0.1);
    state.update_rows(state.slots("w"), 0, &w, &g, 1);
    out.push_back(w);
  }
  return out;
}
void check_walk(const sae::Optimizer& optimizer, const std::vector<double>& expected) {
  const auto got = walk(optimizer, {2, -4, 0});
  for (std::size_t t = 0; t < expected.size(); ++t) {
    CAPTURE(t);
    CHECK(got[t] == Approx(expected[t]).epsilon(1e-14));
  }
}

// An optimizer as a formula: w, g, what was kept, t from 1, the rate.
using Formula = std::function<void(Dense& w, const Dense& g, std::vector<Dense>& kept, double t, double rate)>;
Dense& kept_like(std::vector<Dense>& kept, std::size_t at, const Dense& w) {
  if (kept.size() <= at) kept.resize(at + 1);
  if (kept[at].size() == 0) kept[at] = Dense::Zero(w.rows(), w.cols());
  return kept[at];
}
Formula adam(double beta1, double beta2, double epsilon, double decay = 0) {
  return [=](Dense& w, const Dense& g, std::vector<Dense>& kept, double t, double rate) {
    kept_like(kept, 1, w);
    kept_like(kept, 0, w);
    for (Index i = 0; i < w.rows(); ++i)
      for (Index j = 0; j < w.cols(); ++j) {
        double &m = kept[0](i, j), &v = kept[1](i, j);
        m = beta1 * m + (1 - beta1) * g(i, j);
        v = beta2 * v + (1 - beta2) * g(i, j) * g(i, j);
        w(i, j) -= rate * decay * w(i, j);
        w(i, j) -= rate * (m / (1 - std::pow(beta1, t))) / (std::sqrt(v / (1 - std::pow(beta2, t))) + epsilon);
      }
  };
}
Formula sgd(double momentum, bool nesterov) {
  return [=](Dense& w, const Dense& g, std::vector<Dense>& kept, double, double rate) {
    Dense& m = kept_like(kept, 0, w);
    for (Index i = 0; i < w.rows(); ++i)
      for (Index j = 0; j < w.cols(); ++j) {
        m(i, j) = momentum * m(i, j) + g(i, j);
        w(i, j) -= rate * (nesterov ? g(i, j) + momentum * m(i, j) : m(i, j));
      }
  };
}
Formula signum(double momentum) {
  return [=](Dense& w, const Dense& g, std::vector<Dense>& kept, double, double rate) {
    Dense& m = kept_like(kept, 0, w);
    for (Index i = 0; i < w.rows(); ++i)
      for (Index j = 0; j < w.cols(); ++j) {
        m(i, j) = momentum * m(i, j) + (1 - momentum) * g(i, j);
        if (m(i, j) != 0) w(i, j) -= m(i, j) > 0 ? rate : -rate;
      }
  };
}
Formula muon(double momentum, bool nesterov, int iterations, double decay, double (*scale)(double, double), Formula vectors) {
  return [=](Dense& w, const Dense& g, std::vector<Dense>& kept, double t, double rate) {
    if (w.rows() == 1) return vectors(w, g, kept, t, rate);
    Dense& m = kept_like(kept, 0, w);
    m = momentum * m + (1 - momentum) * g;
    Dense x = nesterov ? Dense((1 - momentum) * g + momentum * m) : m;
    x /= x.norm() + 1e-7;
    for (int k = 0; k < iterations; ++k) {
      const Dense a = x * x.transpose();
      x = (3.4445 * x - 4.7750 * a * x + 2.0315 * a * (a * x)).eval();
    }
    w = (w * (1 - rate * decay) - rate * scale(static_cast<double>(w.rows()), static_cast<double>(w.cols())) * x).eval();
  };
}
Formula adafactor(double decay, double clip, double least) {  // least > 0: relative
  return [=](Dense& w, const Dense& g, std::vector<Dense>& kept, double t, double rate) {
    const double beta = 1 - std::pow(t, -decay), n = static_cast<double>(w.size());
    if (least > 0) rate *= std::fmax(least, std::sqrt(w.squaredNorm() / n));
    Dense u(w.rows(), w.cols());
    if (w.rows() == 1) {
      Dense& v = kept_like(kept, 0, w);
      for (Index j = 0; j < w.cols(); ++j) {
        v(0, j) = beta * v(0, j) + (1 - beta) * (g(0, j) * g(0, j) + 1e-30);
        u(0, j) = g(0, j) / std::sqrt(v(0, j));
      }
    } else {
      kept_like(kept, 1, Dense(1, w.cols()));
      kept_like(kept, 0, Dense(w.rows(), 1));
      Dense &r = kept[0], &c = kept[1];
      for (Index i = 0; i < w.rows(); ++i) {
        double sum = 0;
        for (Index j = 0; j < w.cols(); ++j) sum += g(i, j) * g(i, j) + 1e-30;
        r(i, 0) = beta * r(i, 0) + (1 - beta) * sum;
      }
      for (Index j = 0; j < w.cols(); ++j) {
        double sum = 0;
        for (Index i = 0; i < w.rows(); ++i) sum += g(i, j) * g(i, j) + 1e-30;
        c(0, j) = beta * c(0, j) + (1 - beta) * sum;
      }
      for (Index i = 0; i < w.rows(); ++i)
        for (Index j = 0; j < w.cols(); ++j) u(i, j) = g(i, j) / std::sqrt(r(i, 0) * c(0, j) / r.sum());
    }
    w -= rate / std::fmax(1.0, std::sqrt(u.squaredNorm() / n) / clip) * u;
  };
}

// z and x by their definition, x from y = w before the step, which may have been brought to norm 1 since the last one.
Formula schedule_free(double momentum, bool sign) {
  return [=](Dense& w, const Dense& g, std::vector<Dense>& kept, double t, double rate) {
    if (t == 1) kept = {w, Dense::Zero(1, 2)};
    Dense &z = kept[0], &rates = kept[1];
    Dense x = (w - (1 - momentum) * z) / momentum;
    rates(0, 0) = std::fmax(rates(0, 0), rate);
    rates(0, 1) += rates(0, 0) * rates(0, 0);
    z -= rate * (sign ? Dense(g.array().sign()) : g);
    const double c = rates(0, 0) * rates(0, 0) / rates(0, 1);
    x = ((1 - c) * x + c * z).eval();
    w = (1 - momentum) * z + momentum * x;
  };
}

Formula half_rate(Formula formula) {
  return [=](Dense& w, const Dense& g, std::vector<Dense>& kept, double t, double rate) { formula(w, g, kept, t, 0.5 * rate); };
}
double aspect(double rows, double cols) { return std::sqrt(std::fmax(1.0, rows / cols)); }
double rms(double rows, double cols) { return 0.2 * std::sqrt(std::fmax(rows, cols)); }

struct Case {
  std::string name;
  sae::Optimizer optimizer;
  Formula formula;
  Index numbers;  // of state
};
std::vector<Case> cases() {
  constexpr Index matrices = 2 * latents * width, vectors = latents + width;
  return {
      {"adam", sae::Adam{.beta1 = 0.8, .beta2 = 0.9, .epsilon = 1e-4}, adam(0.8, 0.9, 1e-4), 2 * (matrices + vectors)},
      {"adam without beta1", sae::Adam{.beta1 = 0, .beta2 = 0.9}, adam(0, 0.9, 1e-8), matrices + vectors},
      {"adamw", sae::AdamW{.beta2 = 0.9, .weight_decay = 0.3}, adam(0.9, 0.9, 1e-8, 0.3), 2 * (matrices + vectors)},
      {"adamw without beta1", sae::AdamW{.beta1 = 0, .weight_decay = 0.3}, adam(0, 0.999, 1e-8, 0.3), matrices + vectors},
      {"sgd", sae::Sgd{}, sgd(0, false), 0},
      {"sgd with momentum", sae::Sgd{.momentum = 0.7}, sgd(0.7, false), matrices + vectors},
      {"nesterov", sae::Sgd{.momentum = 0.7, .nesterov = true}, sgd(0.7, true), matrices + vectors},
      {"signsgd", sae::SignSgd{}, signum(0), 0},
      {"signum", sae::SignSgd{.momentum = 0.6}, signum(0.6), matrices + vectors},
      {"schedule-free sign-SGD", sae::ScheduleFree{}, schedule_free(0.95, true), matrices + vectors},
      {"schedule-free SGD", sae::ScheduleFree{.momentum = 0.5, .sign = false}, schedule_free(0.5, false), matrices + vectors},
      {"muon", sae::Muon{}, muon(0.95, true, 5, 0, aspect, adam(0.9, 0.999, 1e-8)), matrices + 2 * vectors},
      {"muon of sparsify", sae::Muon{.scale = sae::MuonScale::rms, .weight_decay = 0.1},
       muon(0.95, true, 5, 0.1, rms, adam(0.9, 0.999, 1e-8)), matrices + 2 * vectors},
      {"muon, plain momentum",
       sae::Muon{
           .momentum = 0.5, .nesterov = false, .iterations = 3, .vector_rate = 0.5, .vectors = {.beta1 = 0, .beta2 = 0.9}},
       muon(0.5, false, 3, 0, aspect, half_rate(adam(0, 0.9, 1e-8))), matrices + vectors},
      {"adafactor", sae::Adafactor{}, adafactor(0.8, 1, 0), 2 * (latents + width) + vectors},
      {"adafactor, relative", sae::Adafactor{.decay = 0.5, .clip = 0.5, .relative = true}, adafactor(0.5, 0.5, 1e-3),
       2 * (latents + width) + vectors},
  };
}

}  // namespace

TEST_CASE("three steps of gradient descent, by hand", "[training][optimizer]") {
  check_walk(sae::Sgd{}, {0.8, 1.2, 1.2});
  check_walk(sae::Sgd{.momentum = 0.5}, {0.8, 1.1, 1.25});                      // m = 2, -3, -1.5
  check_walk(sae::Sgd{.momentum = 0.5, .nesterov = true}, {0.7, 1.25, 1.325});  // g + m / 2 = 3, -5.5, -0.75
  check_walk(sae::SignSgd{}, {0.9, 1.0, 1.0});
  check_walk(sae::SignSgd{.momentum = 0.5}, {0.9, 1.0, 1.1});  // m = 1, -1.5, -0.75
  CHECK(walk(sae::SignSgd{.momentum = 0.5}, {0, 0}) == std::vector<double>{1, 1});
  CHECK(std::isnan(walk(sae::SignSgd{}, {std::nan("")})[0]));
  CHECK(std::isnan(walk(sae::SignSgd{.momentum = 0.5}, {std::nan("")})[0]));
}

TEST_CASE("schedule-free by hand", "[training][optimizer]") {
  // z = 0.8, 1.2, 1.2; x = 0.8, 1, 16/15; y = (z + 3 x) / 4.
  const sae::ScheduleFree optimizer{.momentum = 0.75, .sign = false};
  check_walk(optimizer, {0.8, 1.05, 1.1});
  check_walk(sae::ScheduleFree{.momentum = 0.75}, {0.9, 0.9625, 0.975});  // z = 0.9, 1, 1; x = 0.9, 0.95, 29/30
  CHECK(std::isnan(walk(sae::ScheduleFree{}, {std::nan("")})[0]));
  sae::OptimizerState<double> state(optimizer);
  state.add("w", 1, 1);
  auto w = tensor(Dense::Ones(1, 1)), g = tensor(Dense::Ones(1, 1));
  sae::Threads threads(1);
  for (Index t = 1; t <= 3; ++t) {
    g[0] = t == 1 ? 2 : t == 2 ? -4 : 0;
    state.begin_step(t, 0.1);
    state.update(state.slots("w"), w, g, threads);
  }
  auto x = w;
  state.average("w", x);
  CHECK(x[0] == Approx(16 / 15.0).epsilon(1e-14));
  // A rate that grows: c = 1, 4/5; a rate of 0 moves nothing, and the first above it is all of the average.
  sae::OptimizerState<double> warm(optimizer);
  warm.add("w", 1, 1);
  w[0] = 1;
  const double rates[] = {0, 0.1, 0.2}, wanted[] = {1, 0.9, 0.74};
  for (Index t = 1; t <= 3; ++t) {
    g[0] = 1;
    warm.begin_step(t, rates[t - 1]);
    warm.update(warm.slots("w"), w, g, threads);
    auto mean = w;
    warm.average("w", mean);
    CHECK(mean[0] == Approx(wanted[t - 1]).epsilon(1e-14));
  }
  // As if it had started where it is now.
  w[0] = 5;
  warm.reset_number("w", w, 0);
  auto mean = w;
  warm.average("w", mean);
  CHECK(mean[0] == 5);
}

TEST_CASE("Adafactor by hand: the update is cut to a root mean square of 1", "[training][optimizer]") {
  // Squares 9, 0; 0, 16: v = (81, 144; 144, 256) / 25, u = 5/3, 0; 0, 5/4 with rms 25/24.
  sae::OptimizerState<double> state(sae::Adafactor{});
  state.add("w", 2, 2);
  sae::Threads threads(1);
  auto w = tensor(Dense::Zero(2, 2)), g = tensor((Dense(2, 2) << 3, 0, 0, -4).finished());
  state.begin_step(1, 0.5);
  state.update(state.slots("w"), w, g, threads);
  CHECK(w[0] == Approx(-0.8));  // -0.5 5/3 24/25
  CHECK(w[1] == 0);
  CHECK(w[2] == 0);
  CHECK(w[3] == Approx(0.6));
  // A matrix of rank 1 is factored exactly: v = g^2 at the first step, u = +-1.
  sae::OptimizerState<double> other(sae::Adafactor{});
  other.add("w", 2, 3);
  auto x = tensor(Dense::Ones(2, 3)), h = tensor((Dense(2, 3) << 1, -2, 3, -2, 4, -6).finished());
  other.begin_step(1, 0.25);
  other.update(other.slots("w"), x, h, threads);
  for (Index i = 0; i < 6; ++i) CHECK(x[i] == Approx(i == 0 || i == 2 || i == 4 ? 0.75 : 1.25));
  CHECK(other.size() == 5);
}

TEST_CASE("Muon by hand: a diagonal matrix", "[training][optimizer]") {
  sae::OptimizerState<double> state(sae::Muon{.momentum = 0, .nesterov = false, .iterations = 1});
  state.add("w", 2, 2);
  sae::Threads threads(1);
  auto w = tensor(Dense::Zero(2, 2)), g = tensor((Dense(2, 2) << 3, 0, 0, -4).finished());
  state.begin_step(1, 0.1);
  state.update(state.slots("w"), w, g, threads);
  CHECK(w[0] == Approx(-0.1 * (3.4445 * 0.6 - 4.775 * 0.216 + 2.0315 * 0.07776)).epsilon(1e-6));
  CHECK(w[3] == Approx(0.1 * (3.4445 * 0.8 - 4.775 * 0.512 + 2.0315 * 0.32768)).epsilon(1e-6));
  CHECK(w[1] == 0);
  CHECK(sae::Muon{}.factor(400, 100) == 2);
  CHECK(sae::Muon{}.factor(100, 400) == 1);
  CHECK((sae::Muon{.scale = sae::MuonScale::rms}.factor(100, 400)) == Approx(4));
}

TEMPLATE_TEST_CASE("orthogonalise keeps the singular vectors and brings the values near 1", "[training][optimizer]", float,
                   double) {
  using Values = sae::Matrix<TestType>;
  const double bound = std::is_same_v<TestType, float> ? 1e-3 : 1e-10;
  sae::Threads threads(2);
  for (const auto& [rows, cols] :
       std::vector<std::pair<Index, Index>>{{2, 2}, {5, 3}, {3, 5}, {200, 24}, {24, 200}, {70, 70}}) {
    CAPTURE(rows, cols);
    const Dense start = random_rows(rows, cols, 3, 1);
    sae::Tensor<TestType> x(rows, cols);
    x.map() = Values(start.cast<TestType>());
    sae::orthogonalise(x, 5, threads);
    const Eigen::JacobiSVD<Eigen::MatrixXd> before(start, Eigen::ComputeThinU | Eigen::ComputeThinV),
        after(Eigen::MatrixXd(x.map().template cast<double>()));
    const Dense inside = before.matrixU().transpose() * x.map().template cast<double>() * before.matrixV();
    for (Index k = 0; k < before.singularValues().size(); ++k) {
      double s = before.singularValues()(k) / (start.norm() + 1e-7);
      const double first = s;
      for (int t = 0; t < 5; ++t) s = 3.4445 * s - 4.7750 * s * s * s + 2.0315 * s * s * s * s * s;
      for (Index l = 0; l < inside.cols(); ++l) REQUIRE(std::abs(inside(k, l) - (k == l ? s : 0.0)) <= bound);
      if (first > 0.002) {
        REQUIRE(inside(k, k) > 0.68);
        REQUIRE(inside(k, k) < 1.21);
      }
    }
    if (rows != cols) {
      REQUIRE(after.singularValues().minCoeff() > 0.68);
      REQUIRE(after.singularValues().maxCoeff() < 1.21);
    }
  }
  sae::Tensor<TestType> zero(4, 3), bad(4, 3);
  sae::orthogonalise(zero, 5, threads);
  CHECK(zero == sae::Tensor<TestType>(4, 3));
  bad[5] = std::numeric_limits<TestType>::quiet_NaN();
  sae::orthogonalise(bad, 5, threads);
  for (Index i = 0; i < 12; ++i) CHECK(std::isnan(bad[i]));
}

// The whole update gone by the formulas from the library's own gradients, which are checked elsewhere.
TEST_CASE("every optimizer in a training is its formula", "[training][optimizer]") {
  Dense rows = random_rows(70, width, 1, 3);
  rows.rowwise() += Eigen::RowVectorXd::LinSpaced(width, -2, 3);
  const auto run = [&](const Case& one, sae::DecoderNorm decoder, double clip, double bound) {
    CAPTURE(one.name, static_cast<int>(decoder), clip);
    TopKModel<> model(width, latents, {.k = 5});
    TopKModel<> twin = model;
    sae::TrainerConfig config{.steps = 6,
                              .batch = 20,
                              .learning_rate = 0.01,
                              .schedule = {.warmup = 2},
                              .optimizer = one.optimizer,
                              .clip_norm = clip,
                              .decoder = decoder,
                              .center = sae::Center::none,
                              .normalisation = sae::Normalisation::none};
    sae::Trainer trainer(model, config, sae::Objective<>{});
    CHECK(trainer.optimizer_numbers() == one.numbers);
    std::map<std::string, std::vector<Dense>, std::less<>> kept;
    for (Index t = 0; t < config.steps; ++t) {
      Dense batch(20, width);
      for (Index b = 0; b < 20; ++b) batch.row(b) = rows.row((t * 20 + b) % 70);
      const auto& report = trainer.train_step(batch);
      auto gradient = twin.gradient(batch).parameters;
      auto& p = twin.parameters();
      if (decoder == sae::DecoderNorm::unit)
        for (Index i = 0; i < latents; ++i) {
          auto d = p.W_dec.map().row(i);
          auto g = gradient.W_dec.map().row(i);
          g = (g - g.dot(d) / d.squaredNorm() * d).eval();
        }
      double squares = 0;
      TopKModel<>::Parameters::visit([&](std::string_view, const auto& g) { squares += g.map().squaredNorm(); }, gradient);
      const bool all = clip > 0 || one.name.starts_with("muon") || one.name.starts_with("adafactor");
      if (all) {
        CHECK(report.gradient_norm == Approx(std::sqrt(squares)).epsilon(1e-9));
      } else {
        CHECK(std::isnan(report.gradient_norm));
      }
      const double factor = clip > 0 ? std::fmin(1.0, clip / (std::sqrt(squares) + 1e-6)) : 1.0;
      TopKModel<>::Parameters::visit(
          [&](std::string_view name, auto& w, const auto& g) {
            Dense now = w.map();
            one.formula(now, Dense(factor * g.map()), kept[std::string(name)], static_cast<double>(t + 1),
                        t == 0 ? 0.005 : 0.01);
            w.map() = now;
          },
          p, gradient);
      if (decoder == sae::DecoderNorm::unit)
        for (Index i = 0; i < latents; ++i) p.W_dec.map().row(i).normalize();
    }
    TopKModel<>::Parameters::visit(
        [&](std::string_view name, const auto& got, const auto& want, const auto& start) {
          CAPTURE(name);
          CHECK(relative_error(got.map(), want.map()) <= bound);
          CHECK(largest_difference(got.map(), start.map()) > 1e-5);
        },
        model.parameters(), twin.parameters(), TopKModel<>(width, latents, {.k = 5}).parameters());
  };
  for (const Case& one : cases()) {
    run(one, sae::DecoderNorm::unit, 0, 1e-8);
    run(one, sae::DecoderNorm::free, 0, 1e-8);
    run(one, sae::DecoderNorm::free, 0.4, 1e-8);
  }
}

TEST_CASE("optimizers that need all gradients give the same bytes for any number of threads",
          "[training][optimizer][threads]") {
  const auto trained = [](const sae::Optimizer& optimizer, int count) {
    TopKModel<float> model(20, 300, {.k = 4});
    sae::Threads threads(count);
    const bool own = std::holds_alternative<sae::ScheduleFree>(optimizer);  // an average of its own
    sae::Trainer trainer(model, {.steps = 4, .batch = 100, .learning_rate = 0.01, .optimizer = optimizer, .ema = own ? 0 : 0.5},
                         sae::Objective<>{}, threads);
    sae::MatrixSource<float> source(sae::Matrix<float>(random_rows(400, 20, 1, 1).cast<float>()));
    trainer.fit(source);
    return std::make_pair(sae::Tensor<float>(model.parameters().W_enc), sae::Tensor<float>(model.parameters().W_dec));
  };
  for (const Case& one : cases()) {
    CAPTURE(one.name);
    const auto alone = trained(one.optimizer, 1);
    for (const int count : {2, 3, 8}) CHECK(trained(one.optimizer, count) == alone);
  }
}

TEST_CASE("settings of optimizers are checked", "[training][optimizer]") {
  for (const Case& one : cases()) CHECK_NOTHROW(sae::check(one.optimizer));
  const auto refused = [](const sae::Optimizer& optimizer, const std::string& message) {
    CHECK_THROWS_WITH(sae::check(optimizer), message);
    TopKModel<> model(4, 8, {.k = 2});
    CHECK_THROWS_WITH(sae::Trainer(model, {.steps = 1, .optimizer = optimizer}), message);
  };
  const double nan = std::nan("");
  refused(sae::AdamW{.beta2 = 1}, "AdamW: beta2 = 1 is not in [0, 1)");
  refused(sae::AdamW{.weight_decay = -1}, "AdamW: weight_decay = -1 is not in [0, infinity)");
  refused(sae::Sgd{.momentum = 1}, "Sgd: momentum = 1 is not in [0, 1)");
  refused(sae::Sgd{.momentum = nan}, "Sgd: momentum = nan is not in [0, 1)");
  refused(sae::Sgd{.nesterov = true}, "Sgd: nesterov needs a momentum above 0, it is 0");
  refused(sae::SignSgd{.momentum = -0.5}, "SignSgd: momentum = -0.5 is not in [0, 1)");
  refused(sae::ScheduleFree{.momentum = 0}, "ScheduleFree: momentum = 0 is not in (0, 1)");
  refused(sae::ScheduleFree{.momentum = 1}, "ScheduleFree: momentum = 1 is not in (0, 1)");
  refused(sae::Muon{.momentum = 1}, "Muon: momentum = 1 is not in [0, 1)");
  refused(sae::Muon{.iterations = 0}, "Muon: iterations = 0 is below 1");
  refused(sae::Muon{.weight_decay = -0.1}, "Muon: weight_decay = -0.1 is not in [0, infinity)");
  refused(sae::Muon{.vector_rate = 0}, "Muon: vector_rate = 0 is not in (0, infinity)");
  refused(sae::Muon{.vectors = {.beta1 = 1}}, "Muon: vectors: beta1 = 1 is not in [0, 1)");
  refused(sae::Adafactor{.decay = 0}, "Adafactor: decay = 0 is not in (0, 1]");
  refused(sae::Adafactor{.decay = 1.5}, "Adafactor: decay = 1.5 is not in (0, 1]");
  refused(sae::Adafactor{.epsilon = 0}, "Adafactor: epsilon = 0 is not in (0, infinity)");
  refused(sae::Adafactor{.clip = nan}, "Adafactor: clip = nan is not in (0, infinity)");
  refused(sae::Adafactor{.least_scale = 0}, "Adafactor: least_scale = 0 is not in (0, infinity)");
  sae::OptimizerState<double> state(sae::Adam{});
  state.add("w", 2, 3);
  CHECK(state.size() == 12);
  CHECK_THROWS_WITH(state.slots("v"), "the optimizer knows no tensor v");
}
