// Losses over prefixes of the dictionary or of the selection: a hand computation, the sum of as many separate losses, central
// differences, sparse and dense.
#include <sae/activations/abs_topk.hpp>
#include <sae/activations/batch_topk.hpp>
#include <sae/activations/jump_relu.hpp>
#include <sae/activations/relu.hpp>
#include <sae/activations/topk.hpp>
#include <sae/models/matryoshka.hpp>
#include <sae/models/sparse_autoencoder.hpp>
#include <sae/models/transcoder.hpp>
#include <sae/training/any_objective.hpp>
#include <sae/training/l0_penalty.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "catch_compat.hpp"
#include "gradient_check.hpp"

namespace {

using sae::HierarchicalTopK;
using sae::Index;
using sae::Matryoshka;
using namespace sae_test;

template <class Activation>
using Model = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, Activation, double>;

constexpr Index width = 6, latents = 70, rows = 9;

template <class Activation>
Model<Activation> make(Activation activation, double bias = 0, bool subtract = true) {
  Model<Activation> model(width, latents, activation, {.subtract_decoder_bias = subtract});
  randomise(model, 15, bias);
  return model;
}

/// The first n columns of the codes, the others 0.
Dense first_columns(Dense f, Index n) {
  f.rightCols(f.cols() - n).setZero();
  return f;
}
/// scale sum_m weight_m mean_b |x'^(m) - x|^2, one separate loss a level.
struct Prefixes {
  Dense x;
  Mask active;
  std::vector<Index> widths;
  std::vector<double> weights;
  double scale = 1;
  double operator()(const NaiveModel& m) const {
    const Dense f = naive_codes(naive_pre_activations(m, x), active);
    double sum = 0;
    for (std::size_t l = 0; l < widths.size(); ++l)
      sum += weights[l] * naive_mean_square(naive_decode(m, first_columns(f, widths[l])) - x);
    return scale * sum;
  }
};
/// mean_j mean_b |x' from the j largest of |f| - x|^2.
struct Ranks {
  Dense x;
  Mask active;
  std::vector<Index> prefixes;
  std::vector<double> norms;   // of the ranking
  std::vector<Mask> chosen{};  // by each prefix, at the model
  void freeze(const NaiveModel& m) {
    const Dense f = naive_codes(naive_pre_activations(m, x), active);
    for (const Index j : prefixes) chosen.push_back(naive_largest(f.cwiseAbs(), j, norms));
  }
  double operator()(const NaiveModel& m) const {
    const Dense z = naive_pre_activations(m, x);
    double sum = 0;
    for (const Mask& c : chosen) sum += naive_mean_square(naive_decode(m, naive_codes(z, c)) - x);
    return sum / static_cast<double>(chosen.size());
  }
};

template <class A, class B>
void check_same(const A& a, const B& b, double bound) {
  A::visit(
      [&](std::string_view name, const auto& x, const auto& y) {
        CAPTURE(name);
        CHECK(relative_error(x.map(), y.map()) <= bound);
      },
      a, b);
}

}  // namespace

TEST_CASE("Matryoshka by hand", "[models][matryoshka]") {
  // x = (3, 1), f = (2, 1, 4), W_dec = (1 0), (0 1), (0.5 -0.5), b_dec = (0, 1); target x
  Model<sae::ReLU> model(2, 3, {}, {.subtract_decoder_bias = false});
  auto& p = model.parameters();
  p.W_enc.set_zero();
  p.b_enc.map() << 2, 1, 4;
  p.W_dec.map() << 1, 0, 0, 1, 0.5, -0.5;
  p.b_dec.map() << 0, 1;
  const Dense x = (Dense(1, 2) << 3, 1).finished();
  // x'^(1) = (2, 1): error (-1, 0); x'^(2) = (2, 2): (-1, 1); x'^(3) = (4, 0): (1, -1)
  const auto got = model.gradient(x, sae::Objective{Matryoshka{.widths = {1, 2}, .weights = {1, 0.5, 2}, .scale = 3}});
  CHECK(got.loss.total == Approx(3 * (1 * 1 + 0.5 * 2 + 2 * 2)));
  CHECK(got.loss.reconstruction == Approx(2));
  REQUIRE(got.loss.terms.size() == 1);
  CHECK(got.loss.terms[0].first == "matryoshka");
  // G^(m) = 6 w_m error: (-6, 0), (-3, 3), (12, -12); suffix sums (3, -9), (9, -9), (12, -12)
  CHECK(largest_difference(got.parameters.W_dec.map(), (Dense(3, 2) << 2 * 3, 2 * -9, 9, -9, 4 * 12, 4 * -12).finished()) <=
        1e-12);
  CHECK(largest_difference(got.parameters.b_enc.map(), (Dense(1, 3) << 3, -9, 12).finished()) <= 1e-12);
  CHECK(largest_difference(got.parameters.b_dec.map(), (Dense(1, 2) << 3, -9).finished()) <= 1e-12);
}

TEST_CASE("HierarchicalTopK by hand", "[models][matryoshka]") {
  Model<sae::TopK> model(2, 3, {.k = 2}, {.subtract_decoder_bias = false});
  auto& p = model.parameters();
  p.W_enc.set_zero();
  p.b_enc.map() << 1, 2, -4;
  p.W_dec.map() << 1, 0, 0, 1, 5, 5;
  p.b_dec.set_zero();
  const Dense x = (Dense(1, 2) << 3, 1).finished();
  // the largest alone: (0, 2), error (-3, 1); both: (1, 2), error (-2, 1)
  const auto got = model.gradient(x, sae::Objective{HierarchicalTopK{.k = 2}});
  CHECK(got.loss.total == Approx((10 + 5) / 2.0));
  CHECK(got.loss.reconstruction == Approx(5));
  // G = error of each / 1 (2 / 2): latent 1 acts in both, latent 0 in the second alone
  CHECK(largest_difference(got.parameters.W_dec.map(), (Dense(3, 2) << -2, 1, 2 * -5, 2 * 2, 0, 0).finished()) <= 1e-12);
  CHECK(largest_difference(got.parameters.b_enc.map(), (Dense(1, 3) << -2, 2, 0).finished()) <= 1e-12);
  CHECK(largest_difference(got.parameters.b_dec.map(), (Dense(1, 2) << -5, 2).finished()) <= 1e-12);
}

TEST_CASE("gradients of Matryoshka with every kind of activation", "[models][matryoshka][gradient]") {
  sae::Threads threads(2);
  const Dense x = random_rows(rows, width, 1);
  const auto check = [&](const auto& model, const Mask& active, double least, double most) {
    const NaiveModel twin = naive(model);
    const double share = active.cast<double>().mean();
    REQUIRE((share >= least && share <= most));
    struct Setting {
      std::vector<Index> widths, all;
      std::vector<double> weights;
      double scale;
    };
    for (const Setting& s : {Setting{{latents}, {latents}, {}, 1}, Setting{{5, 33}, {5, 33, latents}, {}, 1},
                             Setting{{1, 64, 65, latents}, {1, 64, 65, latents}, {0.5, 2, 0, 1}, 0.25}}) {
      CAPTURE(share, s.widths, s.scale);
      const Prefixes loss{x, active, s.all, s.weights.empty() ? std::vector<double>(s.all.size(), 1.0) : s.weights, s.scale};
      const auto got =
          model.gradient(x, sae::Objective{Matryoshka{.widths = s.widths, .weights = s.weights, .scale = s.scale}}, threads);
      check_gradient(twin, got.parameters, loss);
      CHECK(got.loss.total == Approx(loss(twin)).epsilon(1e-12));
      CHECK(got.loss.reconstruction ==
            Approx(naive_mean_square(naive_decode(twin, naive_codes(naive_pre_activations(twin, x), active)) - x))
                .epsilon(1e-12));
    }
  };
  for (const bool subtract : {true, false})
    for (const double bias : {-1.5, 0.0, 2.0}) {
      const auto model = make(sae::ReLU{}, bias, subtract);
      check(model, naive_positive(naive_pre_activations(naive(model), x)),
            bias > 0   ? 0.8
            : bias < 0 ? 0.0
                       : 0.3,
            bias > 0   ? 1.0
            : bias < 0 ? 0.15
                       : 0.7);
    }
  {  // dense in the first latents, empty in the last ones, and the other way round
    for (const bool first : {true, false}) {
      auto model = make(sae::ReLU{}, 0);
      for (Index i = 0; i < latents; ++i) model.parameters().b_enc[i] += (i < 40) == first ? 2.5 : -2.5;
      check(model, naive_positive(naive_pre_activations(naive(model), x)), 0.3, 0.8);
    }
  }
  for (const Index k : {Index{1}, Index{4}, Index{30}}) {
    const auto model = make(sae::TopK{.k = k});
    check(model, naive_largest(naive_pre_activations(naive(model), x), k), 0, 1);
    const auto batch = make(sae::BatchTopK{.k = static_cast<double>(k)});
    check(batch, naive_largest_of_batch(naive_pre_activations(naive(batch), x), k * rows), 0, 1);
    const auto magnitude = make(sae::AbsTopK{.k = k});
    check(magnitude, naive_largest(naive_pre_activations(naive(magnitude), x).cwiseAbs(), k), 0, 1);
  }
}

TEST_CASE("Matryoshka of a dictionary of several tiles", "[models][matryoshka]") {
  // More latents than a tile has, levels that end inside tiles and blocks; B of several blocks.
  const Index many = 1200, batch = 300;
  for (const double bias : {-1.2, 1.0}) {
    Model<sae::ReLU> model(width, many, {});
    randomise(model, 3, bias);
    const Dense x = random_rows(batch, width, 2);
    const std::vector<Index> widths{7, 500, 530, 1100, many};
    const auto got = model.gradient(x, sae::Objective{Matryoshka{.widths = widths}});
    const Dense f = model.encode_dense(x);
    Dense suffix = Dense::Zero(batch, width), d_dec(many, width), df(batch, many);
    double loss = 0;
    for (std::size_t m = widths.size(); m-- > 0;) {
      const Dense error = (f.leftCols(widths[m]) * model.W_dec().topRows(widths[m])).rowwise() + model.b_dec().row(0);
      loss += (error - x).squaredNorm() / static_cast<double>(batch);
      suffix += 2.0 / static_cast<double>(batch) * (error - x);
      const Index first = m > 0 ? widths[m - 1] : 0, n = widths[m] - first;
      d_dec.middleRows(first, n) = f.middleCols(first, n).transpose() * suffix;
      df.middleCols(first, n) = suffix * model.W_dec().middleRows(first, n).transpose();
    }
    const Dense dz = (f.array() > 0).select(df, 0.0);
    CHECK(got.loss.total == Approx(loss).epsilon(1e-12));
    CHECK(relative_error(got.parameters.W_dec.map(), d_dec) <= 1e-12);
    CHECK(relative_error(got.parameters.b_enc.map(), Dense(dz.colwise().sum())) <= 1e-12);
    CHECK(relative_error(got.parameters.W_enc.map(), Dense(dz.transpose() * (x.rowwise() - model.b_dec().row(0)))) <= 1e-12);
  }
}

TEST_CASE("Matryoshka: a straight-through window reads the error of its latent's level", "[models][matryoshka][gradient]") {
  // dL/dtheta_i = -theta_i / epsilon sum_b K G_level(i) . d_i, over entries below the threshold, too.
  auto model = make(sae::JumpReLU{.threshold = 0.4, .bandwidth = 0.9});
  const Dense x = random_rows(rows, width, 1), z = model.pre_activations(x), f = model.encode_dense(x);
  const std::vector<Index> widths{20, 50, latents};
  const auto got = model.gradient(x, sae::Objective{Matryoshka{.widths = widths}});
  Dense suffix = Dense::Zero(rows, width), want = Dense::Zero(1, latents);
  Index below = 0;
  for (std::size_t m = widths.size(); m-- > 0;) {
    suffix += 2.0 / static_cast<double>(rows) * (naive_decode(naive(model), first_columns(f, widths[m])) - x);
    for (Index i = m > 0 ? widths[m - 1] : 0; i < widths[m]; ++i)
      for (Index b = 0; b < rows; ++b)
        if (std::abs(z(b, i) - 0.4) < 0.45) {
          want(0, i) -= 0.4 / 0.9 * suffix.row(b).dot(model.W_dec().row(i));
          below += z(b, i) <= 0.4 ? 1 : 0;
        }
  }
  REQUIRE(below > 20);
  CHECK(relative_error(got.parameters.activation.threshold.map(), want) <= 1e-12);
}

TEST_CASE("Matryoshka with one width is the squared error", "[models][matryoshka]") {
  for (const double bias : {-1.5, 2.0}) {
    const auto model = make(sae::ReLU{}, bias);
    const Dense x = random_rows(rows, width, 4);
    const auto plain = model.gradient(x), got = model.gradient(x, sae::Objective{Matryoshka{.widths = {latents}}});
    CHECK(got.loss.total == Approx(plain.loss.total).epsilon(1e-13));
    check_same(got.parameters, plain.parameters, 1e-13);
  }
}

TEST_CASE("gradients of HierarchicalTopK", "[models][matryoshka][gradient]") {
  const Dense x = random_rows(rows, width, 6);
  for (const Index k : {Index{1}, Index{5}, Index{24}})
    for (const bool by_norm : {false, true}) {
      const auto model = make(sae::TopK{.k = k, .rank_by_decoder_norm = by_norm});
      const NaiveModel twin = naive(model);
      const std::vector<double> norms = by_norm ? naive_norms(twin.W_dec) : std::vector<double>();
      std::vector<Index> all(static_cast<std::size_t>(k));
      for (Index j = 0; j < k; ++j) all[static_cast<std::size_t>(j)] = j + 1;
      std::vector<std::vector<Index>> choices{{}};
      if (k == 5) choices.push_back({2, 5});
      for (const auto& choice : choices) {
        CAPTURE(k, by_norm, choice);
        Ranks loss{x, naive_largest(naive_pre_activations(twin, x), k, norms), choice.empty() ? all : choice, norms};
        loss.freeze(twin);
        const auto got =
            model.gradient(x, sae::Objective{HierarchicalTopK{.k = k, .prefixes = choice, .by_decoder_norm = by_norm}});
        check_gradient(twin, got.parameters, loss);
        CHECK(got.loss.total == Approx(loss(twin)).epsilon(1e-12));
      }
    }
  {  // by magnitude
    const auto model = make(sae::AbsTopK{.k = 4});
    const NaiveModel twin = naive(model);
    Ranks loss{x, naive_largest(naive_pre_activations(twin, x).cwiseAbs(), 4), {1, 2, 3, 4}, {}};
    loss.freeze(twin);
    check_gradient(twin, model.gradient(x, sae::Objective{HierarchicalTopK{.k = 4}}).parameters, loss);
  }
  {  // rows with fewer active latents than k
    const auto model = make(sae::TopK{.k = 12}, -2.2);
    const NaiveModel twin = naive(model);
    Ranks loss{x, naive_largest(naive_pre_activations(twin, x), 12), {3, 12}, {}};
    REQUIRE(loss.active.cast<Index>().sum() < 8 * rows);
    loss.freeze(twin);
    const auto got = model.gradient(x, sae::Objective{HierarchicalTopK{.k = 12, .prefixes = {3, 12}}});
    check_gradient(twin, got.parameters, loss);
    CHECK(got.loss.total == Approx(loss(twin)).epsilon(1e-12));
  }
}

TEST_CASE("random prefixes: distinct, ascending, F last, another draw each step, short ones often", "[models][matryoshka]") {
  const Matryoshka term{.random_levels = 4, .seed = 5};
  Index halves = 0, changed = 0;
  std::vector<Index> before;
  for (Index t = 0; t < 400; ++t) {
    const auto ends = term.prefixes(1000, t);
    REQUIRE(ends.size() == 4);
    REQUIRE(ends.back() == 1000);
    REQUIRE(ends.front() >= 1);
    REQUIRE(std::is_sorted(ends.begin(), ends.end()));
    REQUIRE(std::adjacent_find(ends.begin(), ends.end()) == ends.end());
    REQUIRE(ends == term.prefixes(1000, t));
    changed += ends != before ? 1 : 0;
    before = ends;
    for (std::size_t m = 0; m + 1 < ends.size(); ++m) halves += ends[m] < 32 ? 1 : 0;  // log 32 = log 1000 / 2
  }
  CHECK(changed == 400);
  CHECK(halves > 500);
  CHECK(halves < 700);  // of 1200; uniform lengths would give 40
  CHECK(Matryoshka{.random_levels = 4, .seed = 6}.prefixes(1000, 0) != term.prefixes(1000, 0));
  CHECK(Matryoshka{.random_levels = 3}.prefixes(3, 0) == std::vector<Index>{1, 2, 3});
  CHECK(Matryoshka{.random_levels = 1}.prefixes(1, 0) == std::vector<Index>{1});

  // The step's number draws them.
  const auto model = make(sae::TopK{.k = 5});
  const Dense x = random_rows(rows, width, 7);
  const NaiveModel twin = naive(model);
  const sae::Objective objective{Matryoshka{.weights = {1, 0.5, 2}, .random_levels = 3, .seed = 5}};
  Model<sae::TopK>::Workspace<sae::Objective<Matryoshka>> workspace;
  for (const Index t : {Index{0}, Index{17}}) {
    workspace.step.number = t;
    const Prefixes loss{x,
                        naive_largest(naive_pre_activations(twin, x), 5),
                        Matryoshka{.random_levels = 3, .seed = 5}.prefixes(latents, t),
                        {1, 0.5, 2}};
    const auto got = model.gradient(x, objective, workspace);
    check_gradient(twin, got.parameters, loss);
    CHECK(got.loss.total == Approx(loss(twin)).epsilon(1e-12));
  }
}

TEST_CASE("prefix losses: a workspace goes from loss to loss and from batch to batch", "[models][matryoshka]") {
  const auto model = make(sae::TopK{.k = 5});
  const Dense x = random_rows(rows, width, 7), fewer = x.topRows(4), weight = random_rows(rows, width, 8);
  Model<sae::TopK>::Workspace<sae::AnyObjective> workspace;
  const auto at = [&](const Dense& batch, const auto& term) {
    return model.gradient(batch, sae::AnyObjective{term}, workspace);
  };
  for (int round = 0; round < 2; ++round) {
    for (const Dense& batch : {x, fewer, x}) {
      check_same(at(batch, Matryoshka{.widths = {9, 40}}).parameters,
                 model.gradient(batch, sae::Objective{Matryoshka{.widths = {9, 40}}}).parameters, 0);
      check_same(at(batch, sae::SquaredError{}).parameters, model.gradient(batch).parameters, 0);
      check_same(at(batch, HierarchicalTopK{.k = 5}).parameters,
                 model.gradient(batch, sae::Objective{HierarchicalTopK{.k = 5}}).parameters, 0);
      check_same(at(batch, Matryoshka{.widths = {12}}).parameters,
                 model.gradient(batch, sae::Objective{Matryoshka{.widths = {12}}}).parameters, 0);
    }
  }
}

TEST_CASE("prefix losses give the same bytes for any number of threads", "[models][matryoshka]") {
  for (const double bias : {-1.5, 1.0}) {
    sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::ReLU, float> model(16, 700, {});
    randomise(model, 4, bias);
    const sae::Matrix<float> x = random_rows(300, 16, 1).cast<float>();
    const sae::Objective objective{Matryoshka{.widths = {30, 400}}};
    sae::Threads one(1), three(3);
    const auto a = model.gradient(x, objective, one), b = model.gradient(x, objective, three);
    CHECK(a.loss.total == b.loss.total);
    check_same(a.parameters, b.parameters, 0);
  }
  sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::TopK, float> model(16, 700, {.k = 9});
  randomise(model, 4);
  const sae::Matrix<float> x = random_rows(300, 16, 1).cast<float>();
  sae::Threads one(1), three(3);
  const auto a = model.gradient(x, sae::Objective{HierarchicalTopK{.k = 9}}, one),
             b = model.gradient(x, sae::Objective{HierarchicalTopK{.k = 9}}, three);
  CHECK(a.loss.total == b.loss.total);
  check_same(a.parameters, b.parameters, 0);
}

TEST_CASE("Matryoshka of a transcoder with a skip, rows weighted", "[models][matryoshka][gradient]") {
  using Coder = sae::Transcoder<sae::Dynamic, sae::Dynamic, sae::Dynamic, sae::TopK, double>;
  const Index out = 4;
  Coder model(width, out, 30, sae::TopK{.k = 6}, {.skip = true});
  auto& p = model.parameters();
  p.W_dec.map() = random_rows(30, out, 1, 0.5);
  p.b_enc.map() = random_rows(1, 30, 2, 0.3);
  p.b_dec.map() = random_rows(1, out, 3);
  p.W_skip.map() = random_rows(out, width, 4, 0.4);
  const Dense x = random_rows(rows, width, 5), y = random_rows(rows, out, 6);
  std::vector<double> weight(static_cast<std::size_t>(rows), 1.0);
  weight[2] = 0;
  weight[5] = 2.5;
  const Matryoshka term{.widths = {7, 18}, .weights = {1, 2, 0.5}};
  const sae::Objective objective{term};
  const auto active = mask_of(model.encode(x));

  Coder::Workspace<sae::Objective<Matryoshka>> workspace;
  workspace.step.wants_gradient = true;
  Coder::Parameters got;
  got.resize_like(p);
  const sae::Batch<double> input(x), target(y);
  sae::detail::run_step(
      model, sae::detail::StepRows<double>{input, target, weight}, objective, workspace, sae::Threads::shared(), [](auto&) {},
      &got);
  sae::detail::materialise_gradient(model, workspace.step, got, sae::Threads::shared());

  Coder::Parameters moved = p;
  const auto loss = [&] {
    const Dense z = (x * moved.W_enc.map().transpose()).rowwise() + moved.b_enc.map().row(0);
    const Dense f = naive_codes(z, active);
    double sum = 0;
    for (const auto& [n, w] : {std::pair<Index, double>{7, 1.0}, {18, 2.0}, {30, 0.5}}) {
      const Dense error = ((first_columns(f, n) * moved.W_dec.map() + x * moved.W_skip.map().transpose()).rowwise() +
                           moved.b_dec.map().row(0)) -
                          y;
      for (Index b = 0; b < rows; ++b)
        sum += w * weight[static_cast<std::size_t>(b)] * error.row(b).squaredNorm() / static_cast<double>(rows);
    }
    return sum;
  };
  CHECK(workspace.step.loss.total == Approx(loss()).epsilon(1e-12));
  Coder::Parameters::visit(
      [&](std::string_view name, const auto& gradient, auto& tensor) {
        CAPTURE(name);
        Dense numbers = tensor.map();
        const Dense want = central_differences(numbers, [&] {
          tensor.map() = numbers;
          return loss();
        });
        tensor.map() = numbers;
        CHECK(relative_error(gradient.map(), want) <= 1e-6);
      },
      got, moved);
}

TEST_CASE("prefix losses refuse bad settings in a sentence", "[models][matryoshka]") {
  const auto matryoshka = [](const Matryoshka& term) { term.check(4, 16); };
  CHECK_NOTHROW(matryoshka({.widths = {4, 16}, .weights = {1, 0}}));
  CHECK_NOTHROW(matryoshka({.widths = {4}, .weights = {1, 0}}));
  CHECK_NOTHROW(matryoshka({.weights = {1, 2}, .random_levels = 2}));
  CHECK_THROWS_WITH(matryoshka({.widths = {4, 4}}),
                    "Matryoshka: width 4 after 4: widths increase strictly within [1, 16] (the number of latents)");
  CHECK_THROWS_WITH(matryoshka({.widths = {0}}),
                    "Matryoshka: width 0 after 0: widths increase strictly within [1, 16] (the number of latents)");
  CHECK_THROWS_WITH(matryoshka({.widths = {4, 17}}),
                    "Matryoshka: width 17 after 4: widths increase strictly within [1, 16] (the number of latents)");
  CHECK_THROWS_WITH(matryoshka({.widths = {4}, .weights = {1}}), "Matryoshka: 1 weights for 2 levels");
  CHECK_THROWS_WITH(matryoshka({.weights = {1}, .random_levels = 2}), "Matryoshka: 1 weights for 2 levels");
  CHECK_THROWS_WITH(matryoshka({.widths = {4}, .weights = {1, -2}}), "Matryoshka: weight = -2 is not in [0, infinity)");
  CHECK_THROWS_AS(matryoshka({.widths = {4}, .weights = {1, std::numeric_limits<double>::quiet_NaN()}}), sae::ValueError);
  CHECK_THROWS_WITH(matryoshka({.widths = {4}, .scale = 0}), "Matryoshka: scale = 0 is not in (0, infinity)");
  CHECK_THROWS_WITH(matryoshka({}), "Matryoshka: give either widths (0 of them) or random_levels (0)");
  CHECK_THROWS_WITH(matryoshka({.widths = {4}, .random_levels = 2}),
                    "Matryoshka: give either widths (1 of them) or random_levels (2)");
  CHECK_THROWS_WITH(matryoshka({.random_levels = 17}),
                    "Matryoshka: random_levels = 17 is not in [0, 16] (the number of latents)");

  const auto hierarchical = [](const HierarchicalTopK& term) { term.check(4, 16); };
  CHECK_NOTHROW(hierarchical({.k = 16, .prefixes = {1, 16}}));
  CHECK_THROWS_WITH(hierarchical({.k = 0}), "HierarchicalTopK: k = 0 is not in [1, 16] (the number of latents)");
  CHECK_THROWS_WITH(hierarchical({.k = 17}), "HierarchicalTopK: k = 17 is not in [1, 16] (the number of latents)");
  CHECK_THROWS_WITH(hierarchical({.k = 4, .prefixes = {2, 2}}),
                    "HierarchicalTopK: prefix 2 after 2: prefixes increase strictly within [1, 4] (k)");
  CHECK_THROWS_WITH(hierarchical({.k = 4, .prefixes = {2, 5}}),
                    "HierarchicalTopK: prefix 5 after 2: prefixes increase strictly within [1, 4] (k)");
  CHECK_THROWS_WITH(hierarchical({.k = 4, .prefixes = {2, 3}}), "HierarchicalTopK: the last prefix is 3 and not k = 4");

  // What only the codes can tell.
  const Dense x = random_rows(rows, width, 7);
  CHECK_THROWS_WITH(make(sae::TopK{.k = 6}).gradient(x, sae::Objective{HierarchicalTopK{.k = 5}}),
                    "HierarchicalTopK: a row has 6 active latents and k = 5; give the model's k");
  CHECK_THROWS_WITH(
      make(sae::JumpReLU{.bandwidth = 1}).gradient(x, sae::Objective{HierarchicalTopK{.k = latents}}),
      "HierarchicalTopK: the model has thresholds (a band of a straight-through estimator); it goes with the TopK "
      "family");
  CHECK_THROWS_WITH((sae::AnyObjective{Matryoshka{.widths = {4}}, sae::SquaredError{}}.check(4, 16)),
                    "objective: both matryoshka and squared_error are reconstruction losses; it holds at most one");
}

TEST_CASE("prefix losses list their settings", "[models][matryoshka]") {
  std::vector<std::string> seen;
  const auto see = [&](std::string_view name, const auto& value) { seen.push_back(sae::detail::concat(name, "=", value)); };
  Matryoshka{.widths = {4, 16}, .weights = {1, 0.5}, .scale = 2}.visit_settings(see);
  CHECK(seen == std::vector<std::string>{"widths=4,16", "weights=1,0.5", "scale=2", "random_levels=0", "seed=0"});
  seen.clear();
  HierarchicalTopK{.k = 4, .prefixes = {1, 4}}.visit_settings(see);
  CHECK(seen == std::vector<std::string>{"k=4", "prefixes=1,4", "by_decoder_norm=false"});
}
