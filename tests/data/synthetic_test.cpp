#include <sae/data/synthetic.hpp>
#include <sae/files/safetensors.hpp>
#include <sae/metrics/dictionary.hpp>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <numbers>

#include "catch_compat.hpp"

namespace {

using sae::Index;
using sae::SyntheticConfig;
using sae::SyntheticSource;
using sae::SyntheticWorld;

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

struct Drawn {
  sae::Tensor<float> x;
  sae::Matrix<float> a;
};
Drawn draw(const SyntheticWorld& world, Index rows, std::uint64_t seed = 1) {
  SyntheticSource source(world, {.seed = seed});
  Drawn out{sae::Tensor<float>(rows, world.width()), {}};
  sae::Codes<float> truth;
  REQUIRE(source.next(out.x, truth) == rows);
  out.a = truth.dense();
  return out;
}
// A count of n draws of probability p is within five standard deviations of n p.
void require_rate(Index count, Index n, double p) {
  CAPTURE(count, n, p);
  const auto total = static_cast<double>(n);
  REQUIRE(std::abs(static_cast<double>(count) - total * p) <= 5 * std::sqrt(total * p * (1 - p)) + 1e-9);
}

TEST_CASE("upper quantiles of a normal", "[synthetic]") {
  const auto quantile = [](double p) { return sae::detail::upper_normal_quantile(p); };
  CHECK(std::abs(quantile(0.5)) <= 1e-15);
  CHECK(quantile(0.025) == Approx(1.959963984540054).epsilon(1e-14));
  CHECK(quantile(0.975) == Approx(-1.959963984540054).epsilon(1e-13));
  CHECK(quantile(0.001) == Approx(3.090232306167813).epsilon(1e-14));
  CHECK(quantile(1e-10) == Approx(6.361340902404056).epsilon(1e-13));
  CHECK(quantile(1) == -std::numeric_limits<double>::infinity());
  CHECK(quantile(0) == std::numeric_limits<double>::infinity());
  for (double p = 1e-6; p < 1; p += 0.00973)
    REQUIRE(0.5 * std::erfc(quantile(p) / std::numbers::sqrt2) == Approx(p).epsilon(1e-13));
}

TEST_CASE("firing probabilities by hand", "[synthetic]") {
  const auto of = [](sae::FiringProbability p, Index n) {
    return SyntheticWorld({.num_features = n, .hidden_dim = 2, .firing_probability = p}).probabilities;
  };
  // q = 1, 1/2, 1/3: (q_1 - q_2) / (q_0 - q_2) = 1/4
  const auto zipf = of(sae::ZipfianFiring{.exponent = 1, .max_prob = 0.5, .min_prob = 0.1}, 3);
  CHECK(zipf[0] == 0.5);
  CHECK(zipf[1] == Approx(0.2).epsilon(1e-15));
  CHECK(zipf[2] == 0.1);
  CHECK(of(sae::ZipfianFiring{}, 1) == std::vector<double>{0.3});
  const auto linear = of(sae::LinearFiring{.max_prob = 0.5, .min_prob = 0.1}, 5);
  CHECK(linear[0] == 0.5);
  CHECK(linear[1] == Approx(0.4).epsilon(1e-15));
  CHECK(linear[4] == Approx(0.1).epsilon(1e-15));
  CHECK(of(sae::ConstantFiring{.probability = 0.25}, 2) == std::vector<double>{0.25, 0.25});
  const auto random = of(sae::RandomFiring{.max_prob = 0.5, .min_prob = 0.4}, 1000);
  double sum = 0;
  for (const double p : random) {
    REQUIRE((p >= 0.4 && p < 0.5));
    sum += p;
  }
  CHECK(std::abs(sum / 1000 - 0.45) <= 5 * 0.1 / std::sqrt(12.0 * 1000));
}

TEST_CASE("magnitudes by hand", "[synthetic]") {
  const auto means = [](sae::FiringMagnitude m, Index n) {
    return SyntheticWorld({.num_features = n, .hidden_dim = 2, .mean_firing_magnitudes = m}).means;
  };
  CHECK(means(sae::ConstantMagnitude{.value = 3}, 2) == std::vector<double>{3, 3});
  CHECK(means(sae::LinearMagnitude{.start = 5, .end = 4}, 3) == std::vector<double>{5, 4.5, 4});
  const auto exponential = means(sae::ExponentialMagnitude{.start = 1, .end = 16}, 3);
  CHECK(exponential[1] == Approx(4).epsilon(1e-15));
  const auto folded = means(sae::FoldedNormalMagnitude{.mean = 0, .std = 1}, 20000);
  double sum = 0;
  for (const double m : folded) {
    REQUIRE(m >= 0);
    sum += m;
  }
  CHECK(std::abs(sum / 20000 - std::sqrt(2 / std::numbers::pi)) <= 5 * 0.6028 / std::sqrt(20000.0));
  for (const double m : means(sae::FoldedNormalMagnitude{.mean = 0, .std = 1, .min_value = 0.5, .max_value = 1}, 100))
    REQUIRE((m >= 0.5 && m <= 1));
}

TEST_CASE("directions are unit rows, the bias has its norm, rows are their sum", "[synthetic]") {
  const SyntheticWorld world({.num_features = 40,
                              .hidden_dim = 16,
                              .firing_probability = sae::ConstantFiring{.probability = 0.1},
                              .std_firing_magnitudes = sae::ConstantMagnitude{.value = 0.5},
                              .mean_firing_magnitudes = sae::LinearMagnitude{.start = 3, .end = 1},
                              .bias = 2.5});
  for (Index i = 0; i < 40; ++i) REQUIRE(world.directions.map().row(i).norm() == Approx(1).epsilon(1e-6));
  CHECK(world.bias.map().norm() == Approx(2.5).epsilon(1e-6));
  const auto [x, a] = draw(world, 4000);
  const sae::Matrix<float> want = (a * world.directions.map()).rowwise() + world.bias.map().row(0);
  CHECK((x.map() - want).cwiseAbs().maxCoeff<Eigen::PropagateNaN>() <= 1e-5f);
  for (Index i = 0; i < 40; ++i) {
    Index count = 0;
    double sum = 0;
    for (Index b = 0; b < 4000; ++b) {
      REQUIRE(a(b, i) >= 0);
      count += a(b, i) != 0;
      sum += static_cast<double>(a(b, i));
    }
    require_rate(count, 4000, 0.1);
    const double mean = 3 - 2.0 * static_cast<double>(i) / 39;
    CHECK(std::abs(sum / static_cast<double>(count) - mean) <= 0.15);  // 5 x 0.5 / sqrt(400) and what is cut off at 0
  }
  CHECK(SyntheticWorld({.num_features = 2, .hidden_dim = 3, .bias = 0}).bias.map().norm() == 0);
}

SyntheticConfig tree_config() {
  return {.num_features = 14,
          .hidden_dim = 8,
          .firing_probability = sae::LinearFiring{.max_prob = 0.6, .min_prob = 0.1},
          .hierarchy = sae::HierarchyConfig{.total_root_nodes = 2, .branching_factor = 2, .max_depth = 2}};
}

TEST_CASE("trees are numbered breadth-first until the numbers run out", "[synthetic]") {
  SyntheticConfig config = tree_config();
  const SyntheticWorld whole(config);
  CHECK(whole.parents == std::vector<Index>{-1, -1, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5});
  CHECK(whole.levels == std::vector<std::vector<Index>>{{0, 1}, {2, 3, 4, 5}, {6, 7, 8, 9, 10, 11, 12, 13}});
  config.num_features = 9;  // the last parent gets one child
  CHECK(SyntheticWorld(config).parents == std::vector<Index>{-1, -1, 0, 0, 1, 1, 2, 2, 3});
  config.num_features = 20;  // the rest is free
  const SyntheticWorld free(config);
  CHECK(free.parents[13] == 5);
  for (Index i = 14; i < 20; ++i) CHECK(free.parents[at(i)] == -1);
}

TEST_CASE("a range of branching factors: each parent draws its number of children", "[synthetic]") {
  SyntheticConfig config = tree_config();
  config.num_features = 2000;
  config.hierarchy =
      sae::HierarchyConfig{.total_root_nodes = 300, .branching_factor = 2, .branching_factor_max = 4, .max_depth = 1};
  const SyntheticWorld world(config);
  std::vector<Index> children(300, 0);
  for (const Index parent : world.parents)
    if (parent >= 0) ++children[at(parent)];
  for (const Index wanted : {2, 3, 4}) require_rate(std::count(children.begin(), children.end(), wanted), 300, 1.0 / 3);
  CHECK(std::is_sorted(world.levels[1].begin(), world.levels[1].end()));
  CHECK(world.levels[1].front() == 300);
}

TEST_CASE("a group without a parent is exclusive in every row", "[synthetic]") {
  SyntheticWorld world({.num_features = 3, .hidden_dim = 2, .firing_probability = sae::ConstantFiring{.probability = 0.5}});
  world.levels = {{}, {0, 1}};
  world.groups = {{{-1, {0, 1}}}, {}};
  const auto a = draw(world, 4000).a;
  Index both = 0, first = 0, other = 0;
  for (Index b = 0; b < 4000; ++b) {
    both += a(b, 0) != 0 && a(b, 1) != 0;
    first += a(b, 0) != 0;
    other += a(b, 2) != 0;
  }
  CHECK(both == 0);
  require_rate(first, 4000, 0.25 + 0.25 / 2);
  require_rate(other, 4000, 0.5);
}

TEST_CASE("exclusive groups: which parents, how many", "[synthetic]") {
  SyntheticConfig config = tree_config();
  const auto count = [&](double portion, Index min_depth, std::optional<Index> max_depth) {
    config.hierarchy->mutually_exclusive_portion = portion;
    config.hierarchy->mutually_exclusive_min_depth = min_depth;
    config.hierarchy->mutually_exclusive_max_depth = max_depth;
    std::vector<std::size_t> out;
    for (const auto& level : SyntheticWorld(config).groups) out.push_back(level.size());
    return out;
  };
  CHECK(count(1, 0, std::nullopt) == std::vector<std::size_t>{2, 4, 0});
  CHECK(count(1, 1, std::nullopt) == std::vector<std::size_t>{0, 4, 0});
  CHECK(count(1, 0, 0) == std::vector<std::size_t>{2, 0, 0});
  CHECK(count(0, 0, std::nullopt) == std::vector<std::size_t>{0, 0, 0});
  const auto half = count(0.6, 0, std::nullopt);  // floor(0.6 * 6)
  CHECK(half[0] + half[1] == 3);
  config.num_features = 9;  // parent 3 has one child: not eligible
  CHECK(count(1, 0, std::nullopt) == std::vector<std::size_t>{2, 1, 0});
}

TEST_CASE("compensated probabilities by hand", "[synthetic]") {
  SyntheticConfig config = tree_config();
  config.hierarchy->compensate_probabilities = true;
  const SyntheticWorld gated(config);
  const auto& p = gated.base_probabilities;
  CHECK(gated.probabilities[0] == p[0]);
  CHECK(gated.probabilities[2] == Approx(p[2] / p[0]).epsilon(1e-15));
  CHECK(gated.probabilities[11] == Approx(p[11] / p[4]).epsilon(1e-15));
  config.hierarchy->mutually_exclusive_portion = 1;
  const SyntheticWorld exclusive(config);
  CHECK(exclusive.probabilities[10] == Approx(p[10] / p[4] * (1 + p[11] / p[4])).epsilon(1e-15));
  CHECK(exclusive.probabilities[2] == 1);  // p_2 / p_0 (1 + p_3 / p_0) is above 1
}

TEST_CASE("no child without its parent, one child of an exclusive group, magnitudes scaled along the path", "[synthetic]") {
  SyntheticConfig config = tree_config();
  config.std_firing_magnitudes = sae::ConstantMagnitude{.value = 0.5};
  config.mean_firing_magnitudes = sae::LinearMagnitude{.start = 5, .end = 4};
  SECTION("gated") {
    const SyntheticWorld world(config);
    const auto a = draw(world, 4000).a;
    Index together = 0;
    for (Index b = 0; b < 4000; ++b) {
      for (Index i = 2; i < 14; ++i)
        if (a(b, i) != 0) REQUIRE(a(b, world.parents[at(i)]) != 0);
      together += a(b, 2) != 0 && a(b, 3) != 0;
    }
    const auto& p = world.base_probabilities;
    require_rate(together, 4000, p[0] * p[2] * p[3]);
  }
  SECTION("exclusive") {
    config.hierarchy->mutually_exclusive_portion = 1;
    const SyntheticWorld world(config);
    const auto a = draw(world, 20000).a;
    std::vector<Index> active(14, 0);
    for (Index b = 0; b < 20000; ++b) {
      for (Index i = 2; i < 14; i += 2) REQUIRE_FALSE((a(b, i) != 0 && a(b, i + 1) != 0));
      for (Index i = 0; i < 14; ++i) active[at(i)] += a(b, i) != 0;
      for (Index i = 2; i < 14; ++i)
        if (a(b, i) != 0) REQUIRE(a(b, world.parents[at(i)]) != 0);
    }
    const auto& p = world.base_probabilities;
    // A child stays where its sibling is no candidate, and in half of the rows where both are.
    for (const Index i : {2, 3, 4, 5}) {
      const Index sibling = i % 2 == 0 ? i + 1 : i - 1, parent = world.parents[at(i)];
      require_rate(active[at(i)], 20000, p[at(parent)] * p[at(i)] * (1 - p[at(sibling)] / 2));
    }
  }
  SECTION("scaled") {
    config.hierarchy->scale_children_by_parent = true;
    SyntheticWorld world(config);
    for (const Index i : {6, 2}) world.spreads[at(i)] = 0;  // path 0 -> 2 -> 6: only the root varies
    const auto a = draw(world, 4000).a;
    Index seen = 0;
    for (Index b = 0; b < 4000; ++b) {
      const double root = static_cast<double>(a(b, 0)) / world.means[0];
      if (a(b, 2) != 0) REQUIRE(static_cast<double>(a(b, 2)) == Approx(world.means[2] * root).epsilon(1e-6));
      if (a(b, 6) != 0) REQUIRE(static_cast<double>(a(b, 6)) == Approx(world.means[6] * root).epsilon(1e-6));
      seen += a(b, 6) != 0 && std::abs(root - 1) > 0.01;
    }
    CHECK(seen > 100);
  }
}

TEST_CASE("correlated features keep their rates and fire together as the normal says", "[synthetic]") {
  SyntheticConfig config{.num_features = 4,
                         .hidden_dim = 2,
                         .firing_probability = sae::ConstantFiring{.probability = 0.5},
                         .correlation = sae::LowRankCorrelationConfig{.rank = 3, .correlation_scale = 0.3}};
  SyntheticWorld world(config);
  for (Index i = 0; i < 4; ++i)
    CHECK(world.correlation_diag[at(i)] == Approx(1 - world.correlation_factor.map().row(i).squaredNorm()).epsilon(1e-14));
  // Features 0 and 1 share 0.9 of their variance, 2 has it reversed, 3 stands alone.
  const double shared = std::sqrt(0.9);
  world.correlation_factor.set_zero();
  world.correlation_factor.row(0)[0] = world.correlation_factor.row(1)[0] = shared;
  world.correlation_factor.row(2)[0] = -shared;
  world.correlation_diag = {1 - 0.9, 1 - 0.9, 1 - 0.9, 1};
  const auto a = draw(world, 20000).a;
  const auto count = [&](const auto& where) {
    Index n = 0;
    for (Index b = 0; b < 20000; ++b) n += where(b);
    return n;
  };
  for (Index i = 0; i < 4; ++i) require_rate(count([&](Index b) { return a(b, i) != 0; }), 20000, 0.5);
  const double quadrant = 0.25 + std::asin(0.9) / (2 * std::numbers::pi);  // Sheppard
  require_rate(count([&](Index b) { return a(b, 0) != 0 && a(b, 1) != 0; }), 20000, quadrant);
  require_rate(count([&](Index b) { return a(b, 0) != 0 && a(b, 2) != 0; }), 20000, 0.5 - quadrant);
  require_rate(count([&](Index b) { return a(b, 0) != 0 && a(b, 3) != 0; }), 20000, 0.25);

  config.correlation->correlation_scale = 5;  // rows are shortened to leave delta = 0.01
  const SyntheticWorld tight(config);
  for (Index i = 0; i < 4; ++i) {
    CHECK(tight.correlation_diag[at(i)] == 0.01);
    CHECK(tight.correlation_factor.map().row(i).squaredNorm() == Approx(0.99).epsilon(1e-14));
  }
}

TEST_CASE("spreading the directions follows its gradient and makes them orthogonal where there is room", "[synthetic]") {
  SyntheticConfig config{.num_features = 70, .hidden_dim = 5};
  // Adam written out in double; the rows leave the unit sphere after the first step, so that both terms pull.
  sae::Matrix<double> e = SyntheticWorld(config).directions.map().cast<double>();
  sae::Matrix<double> m = sae::Matrix<double>::Zero(70, 5), v = m;
  for (int step = 1; step <= 20; ++step) {
    sae::Matrix<double> products = e * e.transpose();
    products.diagonal().array() = 70 * (products.diagonal().array() - 1);
    const sae::Matrix<double> gradient = 4 * products * e;
    m = 0.9 * m + 0.1 * gradient;
    v = 0.999 * v + 0.001 * gradient.cwiseAbs2();
    const double c1 = 1 - std::pow(0.9, step), c2 = 1 - std::pow(0.999, step);
    e.array() -= 0.01 * (m.array() / c1) / ((v.array() / c2).sqrt() + 1e-8);
  }
  e.rowwise().normalize();
  config.orthogonalization = sae::OrthogonalizationConfig{.num_steps = 20, .lr = 0.01};
  CHECK((SyntheticWorld(config).directions.map().cast<double>() - e).cwiseAbs().maxCoeff<Eigen::PropagateNaN>() <= 1e-5);
  config = {.num_features = 6, .hidden_dim = 6};
  config.orthogonalization = sae::OrthogonalizationConfig{.num_steps = 2000, .lr = 0.01};
  const SyntheticWorld spread(config);
  const sae::Matrix<float> cosines = spread.directions.map() * spread.directions.map().transpose();
  CHECK((cosines - sae::Matrix<float>::Identity(6, 6)).cwiseAbs().maxCoeff<Eigen::PropagateNaN>() <= 1e-3f);
}

TEST_CASE("parts of a world have random numbers of their own", "[synthetic]") {
  SyntheticConfig config = tree_config();
  config.std_firing_magnitudes = sae::FoldedNormalMagnitude{.mean = 0.5, .std = 0.5};
  const SyntheticWorld plain(config), again(config);
  CHECK(plain.directions == again.directions);
  CHECK(plain.spreads == again.spreads);
  config.correlation = sae::LowRankCorrelationConfig{};
  config.hierarchy.reset();
  const SyntheticWorld other(config);
  CHECK(other.directions == plain.directions);
  CHECK(other.spreads == plain.spreads);
  config.correlation->seed = 9;
  const SyntheticWorld reseeded(config);
  CHECK_FALSE(reseeded.correlation_factor == other.correlation_factor);
  CHECK(reseeded.directions == plain.directions);
  config.seed = 1;
  const SyntheticWorld seeded(config);
  CHECK(seeded.correlation_factor == reseeded.correlation_factor);
  CHECK_FALSE(seeded.directions == plain.directions);
}

TEST_CASE("row i depends on the seed and i alone", "[synthetic]") {
  SyntheticConfig config = tree_config();
  config.hierarchy->mutually_exclusive_portion = 1;
  config.std_firing_magnitudes = sae::ConstantMagnitude{.value = 0.5};
  config.correlation = sae::LowRankCorrelationConfig{.rank = 2, .correlation_scale = 0.4};
  const SyntheticWorld world(config);
  const auto all = draw(world, 100, 7);
  sae::Threads three(3);
  SyntheticSource pieces(world, {.seed = 7}, three);
  Index done = 0;
  for (const Index rows : {1, 7, 40, 52}) {
    sae::Tensor<float> batch(rows, 8);
    sae::Codes<float> truth;
    REQUIRE(pieces.next(batch, truth) == rows);
    REQUIRE(batch.map() == all.x.map().middleRows(done, rows));
    REQUIRE(truth.dense() == all.a.middleRows(done, rows));
    done += rows;
  }
  SyntheticSource tail(world, {.seed = 7, .first = 90, .rows = 10});
  sae::Tensor<float> batch(64, 8);
  REQUIRE(tail.next(batch) == 10);
  CHECK(batch.map().topRows(10) == all.x.map().bottomRows(10));
  CHECK(tail.next(batch) == 0);
  CHECK_FALSE(draw(world, 100, 8).x == all.x);
  // Double rows are the same numbers.
  sae::SyntheticSource<double> exact(world, {.seed = 7});
  sae::Tensor<double> wide(100, 8);
  REQUIRE(exact.next(wide) == 100);
  CHECK(wide.map().cast<float>() == all.x.map());
}

TEST_CASE("a synthetic source goes on where its state was taken", "[synthetic]") {
  const SyntheticWorld world({.num_features = 20, .hidden_dim = 8});
  SyntheticSource source(world, {.seed = 3, .rows = 50});
  sae::Tensor<float> skipped(17, 8), next(40, 8), again(40, 8);
  source.next(skipped);
  const auto state = source.state();
  REQUIRE(source.next(next) == 33);
  SyntheticSource other(world, {.seed = 3, .rows = 50});
  other.restore(state);
  REQUIRE(other.next(again) == 33);
  CHECK(next == again);
  CHECK(other.next(again) == 0);
  CHECK_THROWS_AS(other.restore({{51}, {}, {}}), sae::ValueError);
  CHECK_THROWS_AS(other.restore({{1, 2}, {}, {}}), sae::ValueError);
}

TEST_CASE("settings out of range are refused with their key", "[synthetic]") {
  using Catch::Matchers::ContainsSubstring;
  const auto refuse = [](SyntheticConfig config, const char* key) {
    CAPTURE(key);
    CHECK_THROWS_AS(SyntheticWorld(config), sae::ValueError);
    CHECK_THROWS_WITH(SyntheticWorld(config), ContainsSubstring(key));
  };
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const SyntheticConfig good{.num_features = 4, .hidden_dim = 4};
  const auto with = [&](auto change) {
    SyntheticConfig config = good;
    change(config);
    return config;
  };
  refuse({}, "num_features");
  refuse({.num_features = 4}, "hidden_dim");
  refuse({.num_features = Index{1} << 40, .hidden_dim = 1 << 20}, "2^30");
  refuse(with([](auto& c) { c.firing_probability = sae::ZipfianFiring{.exponent = 0}; }), "exponent");
  refuse(with([](auto& c) { c.firing_probability = sae::ZipfianFiring{.max_prob = 1.5}; }), "max_prob");
  refuse(with([](auto& c) { c.firing_probability = sae::LinearFiring{.max_prob = 0.1, .min_prob = 0.2}; }), "min_prob");
  refuse(with([](auto& c) { c.firing_probability = sae::RandomFiring{.min_prob = 0}; }), "min_prob");
  refuse(with([](auto& c) { c.firing_probability = sae::ConstantFiring{.probability = 0}; }), "probability");
  refuse(with([&](auto& c) { c.firing_probability = sae::ConstantFiring{.probability = nan}; }), "probability");
  refuse(with([](auto& c) { c.mean_firing_magnitudes = sae::LinearMagnitude{.start = 0, .end = 1}; }),
         "mean_firing_magnitudes");
  refuse(with([](auto& c) { c.std_firing_magnitudes = sae::ConstantMagnitude{.value = -1}; }), "std_firing_magnitudes");
  refuse(with([](auto& c) { c.std_firing_magnitudes = sae::FoldedNormalMagnitude{.std = 0}; }), "std");
  refuse(with([](auto& c) { c.std_firing_magnitudes = sae::FoldedNormalMagnitude{.min_value = 2, .max_value = 1}; }),
         "min_value");
  refuse(with([](auto& c) { c.bias = -1; }), "bias");
  refuse(with([&](auto& c) { c.bias = nan; }), "bias");
  refuse(with([](auto& c) { c.hierarchy = sae::HierarchyConfig{.total_root_nodes = 0}; }), "total_root_nodes");
  refuse(with([](auto& c) { c.hierarchy = sae::HierarchyConfig{.branching_factor = 1}; }), "branching_factor");
  refuse(with([](auto& c) { c.hierarchy = sae::HierarchyConfig{.branching_factor = 4, .branching_factor_max = 3}; }),
         "branching_factor = [4, 3]");
  refuse(with([](auto& c) { c.hierarchy = sae::HierarchyConfig{.max_depth = -1}; }), "max_depth");
  refuse(with([](auto& c) { c.hierarchy = sae::HierarchyConfig{.mutually_exclusive_portion = 1.5}; }), "portion");
  refuse(with([](auto& c) {
           c.hierarchy = sae::HierarchyConfig{.mutually_exclusive_min_depth = 2, .mutually_exclusive_max_depth = 1};
         }),
         "mutually_exclusive_min_depth");
  refuse(with([](auto& c) {
           c.hierarchy = sae::HierarchyConfig{.scale_children_by_parent = true};
           c.mean_firing_magnitudes = sae::ConstantMagnitude{.value = 0};
         }),
         "scale_children_by_parent");
  refuse(with([](auto& c) { c.orthogonalization = sae::OrthogonalizationConfig{.lr = 0}; }), "lr");
  refuse(with([](auto& c) { c.correlation = sae::LowRankCorrelationConfig{.rank = 0}; }), "rank");
  refuse(with([&](auto& c) { c.correlation = sae::LowRankCorrelationConfig{.correlation_scale = nan}; }), "correlation_scale");
  const SyntheticWorld world(good);
  CHECK_THROWS_AS(SyntheticSource(world, {.first = -1}), sae::ValueError);
  CHECK_THROWS_AS(SyntheticSource(world, {.rows = -1}), sae::ValueError);
  sae::Tensor<float> narrow(2, 3);
  SyntheticSource source(world);
  CHECK_THROWS_AS(source.next(narrow), sae::ShapeError);
}

// ---- against the world that SAELens made (a data folder outside the repository)

SyntheticConfig mini_config() {
  return {.num_features = 1024,
          .hidden_dim = 128,
          .firing_probability = sae::ZipfianFiring{.exponent = 0.5, .max_prob = 0.5, .min_prob = 0.0005},
          .hierarchy = sae::HierarchyConfig{.total_root_nodes = 32,
                                            .branching_factor = 4,
                                            .max_depth = 2,
                                            .mutually_exclusive_portion = 1,
                                            .compensate_probabilities = true,
                                            .scale_children_by_parent = true},
          .orthogonalization = sae::OrthogonalizationConfig{},
          .correlation = sae::LowRankCorrelationConfig{.rank = 25, .correlation_scale = 0.1},
          .std_firing_magnitudes = sae::FoldedNormalMagnitude{.mean = 0.5, .std = 0.5},
          .mean_firing_magnitudes = sae::LinearMagnitude{.start = 5, .end = 4},
          .bias = 0.5,
          .seed = 42};
}
// L0, total variance and mean norm of rows.
struct Facts {
  double l0 = 0, variance = 0, norm = 0;
};
Facts facts(const SyntheticWorld& world, Index rows) {
  const auto [x, a] = draw(world, rows);
  const sae::Matrix<double> wide = x.map().cast<double>();
  const Eigen::RowVectorXd mean = wide.colwise().mean();
  const auto n = static_cast<double>(rows);
  return {static_cast<double>((a.array() != 0).count()) / n, (wide.rowwise() - mean).squaredNorm() / n,
          wide.rowwise().norm().mean()};
}

TEST_CASE("the published settings give a world of the published facts", "[synthetic][slow]") {
  const SyntheticWorld world(mini_config());
  const auto own = facts(world, 8000);
  CHECK(own.l0 == Approx(13.43).epsilon(0.05));  // another draw of the same world
  CHECK(own.variance == Approx(299.5).epsilon(0.05));
  CHECK(own.norm == Approx(17.55).epsilon(0.05));
  const sae::Matrix<float> cosines = world.directions.map() * world.directions.map().transpose();
  const double off_diagonal = std::sqrt((static_cast<double>(cosines.squaredNorm()) - 1024) / (1024.0 * 1023));
  CHECK(off_diagonal == Approx(0.083).epsilon(0.01));
}

TEST_CASE("SAELens' own world gives its facts", "[synthetic][shared]") {
  const char* const shared = std::getenv("SAE_SHARED_DATA");
  const std::filesystem::path folder = std::filesystem::path(shared == nullptr ? "" : shared) / "synth_mini";
  if (shared == nullptr || !std::filesystem::exists(folder / "synthetic_model.safetensors"))
    SAE_SKIP_TEST("SAE_SHARED_DATA names no folder with synth_mini");
  SyntheticConfig config = mini_config();
  config.orthogonalization.reset();
  SyntheticWorld world(config);
  const sae::SafetensorsFile file(folder / "synthetic_model.safetensors");
  const auto probabilities = file.values<double>("firing_probabilities");
  for (std::size_t i = 0; i < probabilities.size(); ++i) REQUIRE(std::abs(world.probabilities[i] - probabilities[i]) <= 3e-7);
  world.directions = file.read<float>("feature_vectors");
  world.bias = file.read<float>("bias");
  world.correlation_factor = file.read<double>("correlation_factor");
  const auto diag = file.values<double>("correlation_diag");
  world.correlation_diag.assign(diag.begin(), diag.end());
  std::vector<float> spreads(1024);
  std::ifstream(folder / "std_magnitudes.f32", std::ios::binary)
      .read(reinterpret_cast<char*>(spreads.data()), static_cast<std::streamsize>(spreads.size() * sizeof(float)));
  world.spreads.assign(spreads.begin(), spreads.end());
  // Of 102,400 rows of the peer: 13.43, 299.5, 17.55. Twenty thousand rows of ours have standard errors of about
  // 0.03, 1.1 and 0.05.
  const auto got = facts(world, 20000);
  CHECK(std::abs(got.l0 - 13.43) <= 0.15);
  CHECK(std::abs(got.variance - 299.5) <= 6);
  CHECK(std::abs(got.norm - 17.55) <= 0.25);
}

}  // namespace
