// A pursuit that looks for its matches by bounds finds those of a pursuit that computes every product.
#include <sae/core/random.hpp>
#include <sae/models/matches.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "catch_compat.hpp"
#include "routes.hpp"

namespace {

using sae::Index;
using sae::Tensor;
using sae::detail::MatchRule;
using Choices = std::vector<std::vector<std::pair<int, std::uint32_t>>>;  // latents, and the bits of their values

struct Problem {
  Tensor<float> x, w;
  Problem(Index rows, Index width, Index latents, std::uint64_t seed) : x(rows, width), w(latents, width) {
    sae::Random random(seed);
    for (Index j = 0; j < x.size(); ++j) x[j] = static_cast<float>(random.normal());
    const double norm = std::sqrt(static_cast<double>(width));
    for (Index j = 0; j < w.size(); ++j) w[j] = static_cast<float>(random.normal() / norm);
  }
};

/// What a round does to the residual; the rows end by themselves after some of them.
auto choose_into(Choices& out, const Tensor<float>& w, const MatchRule& rule) {
  return [&out, &w, rule](Index b, int latent, float* residual) {
    const float v = sae::kernels::dot(residual, w.row(latent), w.cols());
    if (rule.steps_along ? !(v > 0) : v == 0) return 0.0F;
    auto& row = out[static_cast<std::size_t>(b)];
    row.emplace_back(latent, sae_test::bits(v));
    sae::kernels::add_scaled(residual, -v, w.row(latent), w.cols());
    return static_cast<Index>(row.size()) > 8 + b % 50 ? 0.0F : v;
  };
}
Choices pursued(sae::detail::Matches<float>& matches, const Problem& p, const MatchRule& rule, int threads_count) {
  Choices out(static_cast<std::size_t>(p.x.rows()));
  sae::Threads threads(threads_count);
  sae::ScratchPool<float> scratch;
  matches.pursue(p.w, p.x, rule, false, scratch, threads, choose_into(out, p.w, rule));
  return out;
}
Choices whole(const Problem& p, const MatchRule& rule) {
  Choices out(static_cast<std::size_t>(p.x.rows()));
  const auto choose = choose_into(out, p.w, rule);
  std::vector<float> residual, scratch(static_cast<std::size_t>(sae::kernels::match_tile + 1));
  for (Index b = 0; b < p.x.rows(); ++b) {
    residual.assign(p.x.row(b), p.x.row(b) + p.x.cols());
    for (Index round = 0; round < rule.rounds; ++round) {
      int best[1];
      sae::kernels::best_matches(residual.data(), 1, p.w.cols(), p.w.data(), p.w.rows(), rule.by_magnitude, scratch.data(),
                                 std::span<int>(best));
      if (best[0] < 0 || choose(b, best[0], residual.data()) == 0) break;
    }
  }
  return out;
}
/// \param follows  whether bounds are followed where the rule lets them
void check(const Problem& p, Index rounds, bool follows = true) {
  for (const MatchRule rule : {MatchRule{.rounds = rounds, .steps_along = true}, MatchRule{.rounds = rounds},
                               MatchRule{.rounds = rounds, .by_magnitude = true}}) {
    CAPTURE(rule.by_magnitude, rule.steps_along);
    const Choices want = whole(p, rule);
    for (const int threads : {1, 3}) {
      sae::detail::Matches<float> matches;
      REQUIRE(pursued(matches, p, rule, threads) == want);
      CHECK(matches.follows() == (follows && rule.steps_along));
      REQUIRE(pursued(matches, p, rule, threads) == want);  // with what the first left behind
    }
  }
}
template <class Body>
void on_screening_routes(const Body& body) {
  sae_test::on_every_route([&] {
    if (sae::kernels::detail::has_fast_screen()) body();
  });
}
void scale(float* row, float by, Index n) {
  for (Index j = 0; j < n; ++j) row[j] *= by;
}

}  // namespace

TEST_CASE("matches by bounds are those of all products", "[models][matches]") {
  on_screening_routes([] {
    check(Problem(101, 64, 1600, 1), 40);
    check(Problem(130, 131, 1787, 2), 30);
    check(Problem(20, 70, 1999, 3), 25, false);  // too few to bound all pairs of latents
    check(Problem(2, 70, 1999, 3), 25, false);   // too few to screen
    check(Problem(200, 20, 1600, 4), 15, false);
  });
}

TEST_CASE("matches by bounds are those of all products where numbers are odd", "[models][matches]") {
  on_screening_routes([] {
    constexpr Index width = 96, latents = 1601;
    Problem p(150, width, latents, 5);
    constexpr float infinity = std::numeric_limits<float>::infinity();
    std::fill_n(p.x.row(0), width, 0.0F);
    scale(p.x.row(1), 1e30F, width);
    scale(p.x.row(2), 1e-30F, width);
    scale(p.x.row(3), 1e-41F, width);
    p.x.row(4)[7] = std::numeric_limits<float>::quiet_NaN();
    p.x.row(5)[7] = infinity;
    p.x.row(6)[7] = -infinity;
    scale(p.x.row(7), 1e37F, width);
    for (Index b = 0; b < 150; ++b) p.x.row(b)[9] += 3.0F * (b > 10);  // an offset that all rows share
    // Equal latents, and some that nearly are.
    for (Index i = 100; i < 140; ++i) std::copy_n(p.w.row(99), width, p.w.row(i));
    for (Index i = 140; i < 160; ++i) p.w.row(i)[3] = std::nextafter(p.w.row(99)[3], 1.0F);
    for (Index i = 140; i < 160; ++i)
      std::copy_n(p.w.row(99), 3, p.w.row(i)), std::copy_n(p.w.row(99) + 4, width - 4, p.w.row(i) + 4);
    for (Index b = 20; b < 40; ++b) std::copy_n(p.w.row(99), width, p.x.row(b));
    for (Index b = 40; b < 60; ++b)  // sums of a few latents, the first of two equal ones among them
      for (Index j = 0; j < width; ++j) p.x.row(b)[j] = 2 * p.w.row(b)[j] + p.w.row(1500)[j] + 0.5F * p.w.row(130)[j];
    std::fill_n(p.w.row(300), width, 0.0F);
    scale(p.w.row(301), 1e-38F, width);
    check(p, 40);
    scale(p.w.row(302), 1e3F, width);  // a residual grows by what it takes
    check(p, 40);
    scale(p.w.row(302), 1e3F, width);
    check(p, 40);
    p.w.row(303)[5] = infinity;
    check(p, 10, false);
  });
}

TEST_CASE("matches by bounds are those of all products when little is left to match", "[models][matches]") {
  on_screening_routes([] {
    // Latents of a plane of few dimensions, rows that lie in it: residuals shrink to what rounding leaves of them.
    constexpr Index width = 80, latents = 1650, rows = 100, directions = 6;
    Problem p(rows, width, latents, 6);
    const Problem basis(1, width, directions, 7);
    sae::Random random(8);
    const auto project = [&](float* row) {
      std::fill_n(row, width, 0.0F);
      for (Index n = 0; n < directions; ++n)
        sae::kernels::add_scaled(row, static_cast<float>(random.normal()), basis.w.row(n), width);
    };
    for (Index b = 0; b < rows; ++b) project(p.x.row(b));
    for (Index i = 0; i < latents; ++i) {
      project(p.w.row(i));
      scale(p.w.row(i), 1 / std::sqrt(sae::kernels::squared_norm(p.w.row(i), width)), width);
    }
    check(p, 60);
  });
}

TEST_CASE("bytes are rounded down, and added", "[models][matches]") {
  sae_test::on_every_route([] {
    const auto& loops = sae::kernels::detail::screen_kernels();
    for (const Index n : {1, 7, 8, 9, 16, 31, 100}) {
      sae::Random random(static_cast<std::uint64_t>(n));
      std::vector<float> x(static_cast<std::size_t>(n)), y = x;
      for (std::size_t j = 0; j < x.size(); ++j) {
        x[j] = j % 5 == 3 ? 0.0F : static_cast<float>(2 * random.uniform() - 1);
        y[j] = static_cast<float>(random.normal());
      }
      x[0] = n % 2 == 0 ? 1.0F : -1.0F;  // the largest number
      const float step = 1.00001F / 127;
      std::vector<std::int8_t> q(x.size() + 1, 77);
      loops.round_down(x.data(), n, step, q.data());
      CHECK(q.back() == 77);
      std::vector<float> sum = y;
      const float most = loops.add_bytes(sum.data(), -0.3F, q.data(), n);
      CHECK(most == *std::max_element(sum.begin(), sum.end()));
      for (std::size_t j = 0; j < x.size(); ++j) {
        CAPTURE(n, j, x[j]);
        const double bound = static_cast<double>(step) * q[j];
        CHECK(bound <= static_cast<double>(x[j]));
        CHECK(bound >= static_cast<double>(x[j]) - 1.001 * static_cast<double>(step));
        CHECK(std::abs(static_cast<double>(sum[j]) - (static_cast<double>(y[j]) - static_cast<double>(0.3F) * q[j])) <= 5e-6);
      }
    }
  });
}
