// A screen may leave too much, never too little: every latent among the k largest is a candidate, and what is computed of a
// candidate is what the product makes of it.
#include <sae/activations/any_activation.hpp>
#include <sae/core/random.hpp>
#include <sae/kernels/product.hpp>
#include <sae/models/screen.hpp>
#include <sae/models/sparse_autoencoder.hpp>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "catch_compat.hpp"
#include "routes.hpp"
#include "tile_model.hpp"

namespace {

using sae::Index;
using sae_test::bits;
using sae_test::on_every_route;

struct Problem {
  Index rows, width, latents;
  std::vector<float> x, w, b;
  Problem(Index m, Index d, Index f, std::uint64_t seed) : rows(m), width(d), latents(f) {
    sae::Random random(seed);
    const auto noise = [&](Index n) {
      std::vector<float> out(static_cast<std::size_t>(n));
      for (float& value : out) value = static_cast<float>(random.normal());
      return out;
    };
    x = noise(m * d);
    w = noise(f * d);
    b = noise(f);
  }
  float* row(Index i) { return x.data() + i * width; }
  float* latent(Index i) { return w.data() + i * width; }
  std::vector<float> pre_activations() const {
    std::vector<float> z;
    for (Index i = 0; i < rows; ++i) z.insert(z.end(), b.begin(), b.end());
    sae::kernels::add_product_nt(z.data(), latents, x.data(), width, w.data(), width, rows, latents, width);
    return z;
  }
};

/// Mean candidates of a row; negative where the screen gave up. \param whole  rows that it may leave to be computed whole
double check(const Problem& p, Index k, const std::vector<Index>& whole = {}, float level = 0,
             const sae::kernels::detail::ScreenKernels& kernels = sae::kernels::detail::screen_kernels()) {
  sae::Threads threads(2);
  sae::detail::ScreenWeights weights;
  weights.see(p.x, p.width);
  weights.build(p.w.data(), p.b.data(), p.latents, p.width, {.k = k}, threads, kernels);
  sae::detail::Screen screen;
  if (!weights.finite() || !screen.find(weights, p.x.data(), p.rows, {.k = k}, level)) return -1;
  for (const Index row : screen.whole_rows()) {
    CAPTURE(row);
    REQUIRE(std::find(whole.begin(), whole.end(), row) != whole.end());
    REQUIRE(screen.candidates(row).empty());
  }
  const std::vector<float> z = p.pre_activations();
  std::vector<std::map<Index, float>> found(static_cast<std::size_t>(p.rows));
  screen.for_each_value(p.x.data(), p.w.data(), p.b.data(), p.width, {.k = k},
                        [&](Index row, std::span<const int> latents, std::span<const float> values) {
                          REQUIRE(latents.size() == values.size());
                          auto& of = found[static_cast<std::size_t>(row)];
                          for (std::size_t n = 0; n < latents.size(); ++n) {
                            REQUIRE((of.empty() || of.rbegin()->first < latents[n]));
                            of[latents[n]] = values[n];
                          }
                        });
  std::size_t candidates = 0;
  for (Index i = 0; i < p.rows; ++i) {
    const auto left = screen.whole_rows();
    if (std::find(left.begin(), left.end(), i) != left.end()) continue;
    const float* const of = z.data() + i * p.latents;
    auto& seen = found[static_cast<std::size_t>(i)];
    candidates += screen.candidates(i).size();
    for (const auto& [latent, value] : seen) REQUIRE(bits(value) == bits(of[latent]));
    std::vector<float> sorted(of, of + p.latents);
    std::nth_element(sorted.begin(), sorted.begin() + (k - 1), sorted.end(), std::greater<>());
    const float least = sorted[static_cast<std::size_t>(k - 1)];
    for (Index j = 0; j < p.latents; ++j) {
      CAPTURE(i, j, of[j], least);
      if (of[j] > 0 && of[j] >= least) REQUIRE(seen.contains(j));
    }
  }
  return static_cast<double>(candidates) / static_cast<double>(p.rows);
}

/// A problem of which a few latents fit each row, as those of a trained encoder do.
Problem fitted(Index m, Index d, Index f, std::uint64_t seed) {
  Problem p(m, d, f, seed);
  for (Index i = 0; i < m; ++i)
    for (Index n = 0; n < 12; ++n) {
      const float* const from = p.latent((i * 37 + n * 101) % f);
      for (Index j = 0; j < d; ++j) p.row(i)[j] += 0.4F * from[j];
    }
  return p;
}

}  // namespace

TEST_CASE("a screen finds all that can be among the k largest", "[models][screen]") {
  on_every_route([] {
    std::vector<Index> all(17);
    std::iota(all.begin(), all.end(), Index{0});
    for (const Index d : {1, 3, 4, 7, 64, 130, 576})
      for (const Index f : {1500, 1999, 3000}) {
        CAPTURE(d, f);
        check(Problem(17, d, f, 1), 8, all);  // hardly anything to prune: only what it claims must hold
        const double left = check(fitted(17, d, f, 2), 8, d < 64 ? all : std::vector<Index>());
        if (d >= 64) {
          CHECK(left >= 8);
          CHECK(left < 0.2 * static_cast<double>(f));
        }
      }
    check(fitted(3, 5000, 1200, 3), 4, {0, 1, 2});
  });
}

TEST_CASE("a screen holds where numbers are odd", "[models][screen]") {
  on_every_route([] {
    Problem p = fitted(20, 96, 2000, 5);
    for (Index i = 0; i < p.rows; ++i) p.row(i)[7] *= 300;  // outlier dimensions, large in x and small in w
    for (Index i = 0; i < p.latents; ++i) p.latent(i)[7] *= 0.01F;
    std::fill_n(p.row(0), p.width, 0.0F);                                               // nothing
    for (Index j = 0; j < p.width; ++j) p.row(1)[j] *= 1e4F;                            // a sink
    for (Index j = 0; j < p.width; ++j) p.row(2)[j] *= 1e-30F;                          // squares that vanish
    for (Index j = 0; j < p.width; ++j) p.row(3)[j] *= 1e-41F;                          // not normal
    for (Index i = 100; i < 160; ++i) std::copy_n(p.latent(99), p.width, p.latent(i));  // equal latents
    for (Index i = 100; i < 160; ++i) p.b[static_cast<std::size_t>(i)] = p.b[99];
    std::copy_n(p.latent(99), p.width, p.row(4));
    std::fill_n(p.latent(300), p.width, 0.0F);
    for (Index j = 0; j < p.width; ++j) p.latent(301)[j] *= 1e-38F;
    for (Index i = 400; i < 500; ++i) p.b[static_cast<std::size_t>(i)] = -1000;
    std::vector<Index> all(20);
    std::iota(all.begin(), all.end(), Index{0});
    CHECK(check(p, 10, all) > 0);  // most are told apart
  });
}

// Cauchy and Schwarz are far from equality on random numbers. Here rounding errors of one side all point along the other, and the bulk of
// the latents leaves nothing to balance.
TEST_CASE("a screen's bounds hold where they are reached", "[models][screen]") {
  constexpr Index width = 64, latents = 1500, best = 700;
  const auto sign = [](Index j) { return j * 7 % 3 == 0 ? -1.0F : 1.0F; };
  Problem of_w(3, width, latents, 1), of_x(3, width, latents, 1);
  std::fill(of_w.b.begin(), of_w.b.end(), 0.0F);
  std::fill(of_x.b.begin(), of_x.b.end(), 0.0F);
  for (Index j = 0; j < width; ++j) {
    // x = +-1 exactly; codes of w count 1, its first is 127. The best loses 0.49 a number, 30.9 in all; others, without loss, seem 25
    // above it and are 5.9 below.
    for (Index b = 0; b < 3; ++b) of_w.row(b)[j] = sign(j) * (b == 2 ? 0.5F : 1.0F);
    for (Index i = 0; i < latents; ++i)
      of_w.latent(i)[j] = sign(j) * (j == 0 ? 127.0F : i == best ? 10.49F : i % 300 == 1 ? (j <= 25 ? 11.0F : 10.0F) : -127.0F);
    // Codes of x count 1. Half of x is 127, the other half loses 0.49 a number along the best, w = 1: 15.7 in all. Others read the first
    // half, without loss and with a small norm, and are 0.2 below it.
    const bool large = j < width / 2;
    for (Index b = 0; b < 3; ++b) of_x.row(b)[j] = sign(j) * (large ? 127.0F : 10.49F);
    for (Index i = 0; i < latents; ++i)
      of_x.latent(i)[j] = sign(j) * (i == best      ? (large ? 0.0F : 1.0F)
                                     : i % 300 == 1 ? (large ? 335.5F / (127 * 32) : 0.0F)
                                                    : (large ? -12.1F : -1.0F));
  }
  on_every_route([&] {
    CHECK(check(of_w, 1) >= 1);
    CHECK(check(of_x, 1) >= 1);
  });
}

TEST_CASE("a screen may begin at a level, and leaves rows that have less", "[models][screen]") {
  on_every_route([] {
    const Problem p = fitted(40, 128, 2000, 3);
    std::vector<Index> all(40);
    std::iota(all.begin(), all.end(), Index{0});
    sae::Threads threads(2);
    sae::detail::ScreenWeights weights;
    weights.see(p.x, p.width);
    weights.build(p.w.data(), p.b.data(), p.latents, p.width, {.k = 8}, threads);
    sae::detail::Screen screen;
    REQUIRE(screen.find(weights, p.x.data(), p.rows, {.k = 8}));
    std::vector<float> levels;
    for (Index b = 0; b < p.rows; ++b) levels.push_back(screen.level(b));
    std::sort(levels.begin(), levels.end());
    REQUIRE(levels.front() > 0);
    const double plain = check(p, 8);
    CHECK(check(p, 8, {}, 0.9F * levels.front()) == plain);  // no row has less
    const float low = 0.5F * (levels[4] + levels[5]);
    REQUIRE(screen.find(weights, p.x.data(), p.rows, {.k = 8}, low));
    CHECK(screen.whole_rows().size() == 5);
    check(p, 8, all, low);
    CHECK(check(p, 8, all, 2 * levels.back()) == -1);  // too many have
  });
}

TEST_CASE("a screen gives up on what is not finite, and where it prunes too little", "[models][screen]") {
  on_every_route([] {
    for (const float odd : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 1e30F}) {
      Problem row = fitted(5, 64, 1500, 1), weight = fitted(5, 64, 1500, 1);
      row.row(3)[10] = odd;
      weight.latent(77)[10] = odd;
      CHECK(check(row, 4, {3}) > 0);
      CHECK(check(weight, 4) == -1);
    }
    CHECK(check(Problem(5, 64, 500, 1), 4) == -1);  // fewer latents than it would keep
    Problem flat(5, 256, 4000, 1);                  // all alike: nothing can be told apart
    for (Index i = 1; i < flat.latents; ++i) std::copy_n(flat.latent(0), flat.width, flat.latent(i));
    std::fill(flat.b.begin(), flat.b.end(), 100.0F);
    CHECK(check(flat, 4) == -1);
  });
}

namespace {

/// Codes of some batches, one after the other, as a training sees them; how often a screen did the work.
template <class Activation>
std::pair<std::vector<sae::Codes<float>>, int> codes_of(const Problem& p, const Activation& activation,
                                                        sae::kernels::Route route) {
  const auto own = sae::kernels::route();
  sae::kernels::set_route(route);
  sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, Activation, float> model(p.width, p.latents, activation);
  std::copy(p.w.begin(), p.w.end(), model.parameters().W_enc.data());
  for (Index i = 0; i < p.latents; ++i)  // norms that change who is among the largest
    for (Index j = 0; j < p.width; ++j) model.parameters().W_dec.row(i)[j] *= 0.25F + 0.03F * static_cast<float>(i % 97);
  if (model.parameters().b_enc.size() > 0) std::copy(p.b.begin(), p.b.end(), model.parameters().b_enc.data());
  Activation::template Parameters<float>::visit(
      [&](std::string_view name, auto& tensor) {
        for (Index i = 0; i < tensor.size(); ++i) {
          const float b = p.b[static_cast<std::size_t>(i)];
          tensor[i] += name == "b_gate" ? b : name == "threshold" ? 0.1F * (b + 45) : 0.01F * (b + 45);
        }
      },
      model.parameters().activation);
  model.parameters().activation.constrain();
  sae::Threads threads(3);
  typename decltype(model)::template Workspace<> workspace;
  std::pair<std::vector<sae::Codes<float>>, int> out;
  const Index batch = p.rows / 3;
  for (Index n = 0; n < 3; ++n) {
    out.first.push_back(
        model.encode_into(sae::Batch<float>(p.x.data() + n * batch * p.width, batch, p.width), workspace, threads));
    out.second += workspace.step.screen.latents() > 0 && workspace.step.screen_pause == 0;
  }
  sae::kernels::set_route(own);
  return out;
}

void require_same(const std::vector<sae::Codes<float>>& got, const std::vector<sae::Codes<float>>& want) {
  REQUIRE(got.size() == want.size());
  for (std::size_t n = 0; n < got.size(); ++n) {
    REQUIRE(got[n].size() == want[n].size());
    for (Index e = 0; e < want[n].size(); ++e) {
      REQUIRE(got[n].latent(e) == want[n].latent(e));
      REQUIRE(bits(got[n].value(e)) == bits(want[n].value(e)));
    }
  }
}

}  // namespace

TEST_CASE("a screen's products are exact, at the ends of what codes can be too", "[models][screen]") {
  namespace kernels = sae::kernels::detail;
  on_every_route([] {
    const auto& run = kernels::screen_kernels();
    for (const Index width : {1, 2, 3, 4, 5, 9, 64, 577, 4001}) {
      const Index units = run.units(width), largest = run.largest_code(width);
      CAPTURE(width, largest);
      const auto code_of = [&](Index row, Index j) {  // rows 0 to 2 are all of one sign
        return static_cast<std::int32_t>(row == 0   ? largest
                                         : row == 1 ? -largest
                                         : row == 2 ? (j % 2 == 0 ? largest : -largest)
                                                    : (row * 7919 + j * 104729) % (2 * largest + 1) - largest);
      };
      // `quantise` writes them: x = code, of which one counts 1.
      const std::vector<float> ones(static_cast<std::size_t>(width), 1.0F);
      const auto units_of = [&](Index row) {
        std::vector<float> x(static_cast<std::size_t>(width));
        std::int32_t sum = 0;
        for (Index j = 0; j < width; ++j) {
          sum += code_of(row, j);
          x[static_cast<std::size_t>(j)] = static_cast<float>(code_of(row, j)) + (j % 3 == 0 ? 0.25F : 0.0F);
        }
        std::vector<std::uint8_t> out(static_cast<std::size_t>(4 * units), 0);
        const auto sums = run.quantise(x.data(), ones.data(), width, 1.0F, out.data());
        REQUIRE(sums.codes == sum);
        REQUIRE(sums.errors == Approx(static_cast<double>((width + 2) / 3) / 16).epsilon(1e-5));
        return out;
      };
      std::vector<std::uint8_t> panel(static_cast<std::size_t>(4 * units * kernels::screen_panel));
      for (Index i = 0; i < kernels::screen_panel; ++i) {
        const auto of = units_of(i);
        for (Index u = 0; u < units; ++u) {
          std::uint32_t unit;
          std::memcpy(&unit, of.data() + 4 * u, 4);
          unit ^= run.flip();
          std::memcpy(panel.data() + (u * kernels::screen_panel + i) * 4, &unit, 4);
        }
      }
      const kernels::ScreenProducts begun(run);
      for (std::size_t group = 0; group < 3; ++group) {
        const Index rows = run.groups[group];
        std::vector<std::uint8_t> x(static_cast<std::size_t>(4 * units * rows));
        for (Index r = 0; r < rows; ++r) {
          const auto of = units_of(r);
          run.pack(of.data(), units, r, rows, x.data());
        }
        std::vector<std::int32_t> got(static_cast<std::size_t>(rows * kernels::screen_panel), -1);
        run.products[group](x.data(), panel.data(), units, got.data());
        for (Index r = 0; r < rows; ++r)
          for (Index i = 0; i < kernels::screen_panel; ++i) {
            std::int64_t want = 0;
            for (Index j = 0; j < width; ++j) want += std::int64_t{code_of(r, j)} * (std::int64_t{code_of(i, j)} + run.added);
            CAPTURE(r, i);
            REQUIRE(got[static_cast<std::size_t>(r * kernels::screen_panel + i)] == want);
          }
      }
    }
  });
}

TEST_CASE("what is at least a bound is found in order, NaN is not", "[models][screen]") {
  on_every_route([] {
    const auto& run = sae::kernels::detail::screen_kernels();
    for (const Index n : {0, 1, 5, 8, 15, 16, 17, 33, 200})
      for (const float bound : {-1.0F, 0.25F, 2.0F}) {
        CAPTURE(n, bound);
        std::vector<float> keys(static_cast<std::size_t>(n));
        std::vector<int> want, got(static_cast<std::size_t>(n + 15), -1);
        for (Index j = 0; j < n; ++j) {
          const auto at = static_cast<std::size_t>(j);
          keys[at] = j % 11 == 3 ? std::numeric_limits<float>::quiet_NaN() : static_cast<float>((j * 5) % 8) / 8 - 0.25F;
          if (keys[at] >= bound) want.push_back(static_cast<int>(j));
        }
        const Index count = run.at_least(keys.data(), n, bound, got.data());
        got.resize(static_cast<std::size_t>(count));
        REQUIRE(got == want);
      }
  });
}

TEST_CASE("of the k largest, the best known exclude half of the other candidates", "[models][screen]") {
  on_every_route([] {
    constexpr Index rows = 32, width = 256, latents = 4096, k = 16;
    const Problem p = fitted(rows, width, latents, 21);
    sae::Threads threads(1);
    sae::detail::ScreenWeights weights;
    weights.see(p.x, width);
    weights.build(p.w.data(), p.b.data(), latents, width, {.k = k}, threads);
    sae::detail::Screen screen;
    REQUIRE(screen.find(weights, p.x.data(), rows, {.k = k}));
    Index candidates = 0, shown = 0;
    for (Index i = 0; i < rows; ++i) candidates += static_cast<Index>(screen.candidates(i).size());
    screen.for_each_value(
        p.x.data(), p.w.data(), p.b.data(), width, {.k = k},
        [&](Index, std::span<const int> of, std::span<const float>) { shown += static_cast<Index>(of.size()); });
    CHECK(screen.computed() >= rows * k);
    if (weights.loops().numbers == 4) CHECK(4 * screen.computed() < 3 * candidates);  // 16 bits leave few
    CHECK(shown >= rows * k);
    CHECK(shown <= rows * (k + 2));
  });
}

// What a screen finds on Intel AMX, by a model of its tiles: the integers are the same, and with them the candidates.
TEST_CASE("a screen on tiles finds what one on plain loops finds", "[models][screen]") {
  using sae_test::modelled_tiles;
  using sae_test::TileModel;
  const auto& plain = sae::kernels::detail::portable::screen_kernels;
  sae_test::on_portable_route([&] {
    for (const Index rows : {1, 15, 16, 17, 31, 32, 33, 48, 70})
      for (const Index width : {64, 130}) {
        CAPTURE(rows, width);
        const Problem p = fitted(rows, width, 1511, 4);
        CHECK(check(p, 6, {}, 0, modelled_tiles) > 0);
        sae::Threads threads(3);
        sae::detail::ScreenWeights tiled, whole;
        for (const auto& [weights, kernels] : {std::pair(&tiled, &modelled_tiles), std::pair(&whole, &plain)}) {
          weights->see(p.x, p.width);
          weights->build(p.w.data(), p.b.data(), p.latents, p.width, {.k = 6}, threads, *kernels);
        }
        // In blocks, each on some thread.
        constexpr Index block_rows = 20;
        std::atomic<Index> same = 0;
        std::atomic<bool> released = true;
        threads.for_blocks(rows, block_rows, [&](Index begin, Index end, Index) {
          sae::detail::Screen got, want;
          const float* const x = p.x.data() + begin * width;
          if (!got.find(tiled, x, end - begin, {.k = 6}) || !want.find(whole, x, end - begin, {.k = 6})) return;
          if (TileModel::configured()) released = false;
          for (Index b = 0; b < end - begin; ++b)
            same += !want.candidates(b).empty() && std::ranges::equal(got.candidates(b), want.candidates(b));
        });
        CHECK(same == rows);
        CHECK(released);
      }
    Problem flat(5, 96, 2000, 1);  // given up while tiles are in use
    for (Index i = 1; i < flat.latents; ++i) std::copy_n(flat.latent(0), flat.width, flat.latent(i));
    std::fill(flat.b.begin(), flat.b.end(), 100.0F);
    CHECK(check(flat, 4, {}, 0, modelled_tiles) == -1);
    CHECK_FALSE(TileModel::configured());
  });
}

TEST_CASE("codes are the same bytes with a screen and without", "[models][screen]") {
  using sae::kernels::Route;
  Problem p = fitted(900, 128, 3000, 9);
  for (float& bias : p.b) bias -= 45;  // few are positive
  Route whole = Route::portable;       // one without a screen, the widest
  on_every_route([&] {
    if (!sae::kernels::detail::has_fast_screen()) whole = sae::kernels::route();
  });
  int fast = 0;
  const auto check_all = [&](const auto& activation, int least_screened) {
    const auto all = codes_of(p, activation, whole);
    REQUIRE(all.second == 0);
    on_every_route([&] {
      if (!sae::kernels::detail::has_fast_screen()) return;
      ++fast;
      const auto [screened, times] = codes_of(p, activation, sae::kernels::route());
      CAPTURE(std::string(activation.name), times);
      CHECK(times >= least_screened);
      REQUIRE(screened[1].size() > 900);
      require_same(screened, all.first);
    });
  };
  check_all(sae::TopK{.k = 16}, 3);
  check_all(sae::TopK{.k = 16, .rank_by_decoder_norm = true}, 3);
  if (fast == 0) SAE_SKIP_TEST("this machine has no fast screen");
  check_all(sae::AbsTopK{.k = 16}, 3);
  check_all(sae::AbsTopK{.k = 16, .rank_by_decoder_norm = true}, 3);
  check_all(sae::BatchTopK{.k = 12}, 2);  // the first batch has nothing to guess by
  check_all(sae::BatchTopK{.k = 12, .rank_by_decoder_norm = true}, 2);
  check_all(sae::ReLU{}, 3);
  check_all(sae::JumpReLU{.threshold = 3, .bandwidth = 2}, 3);
  check_all(sae::Gated{}, 3);
  check_all(sae::AnyActivation(sae::BatchTopK{.k = 12}), 2);
  check_all(sae::AnyActivation(sae::GroupMax{.k = 12}), 0);
  for (Index j = 0; j < p.width; ++j) p.row(650)[j] *= 1e30F;  // its block is computed whole
  check_all(sae::TopK{.k = 16}, 2);
  check_all(sae::ReLU{}, 2);
  check_all(sae::BatchTopK{.k = 12}, 1);
}

TEST_CASE("codes of few rows are those of many, with weights that stay and without, for any number of threads",
          "[models][screen]") {
  Problem p = fitted(150, 256, 4500, 9);
  for (float& bias : p.b) bias -= 45;
  for (Index j = 0; j < p.width; ++j) p.row(40)[j] *= 1e30F;  // nothing can be said of it
  const auto check = [&](const auto& activation) {
    using Activation = std::decay_t<decltype(activation)>;
    CAPTURE(std::string(activation.name));
    sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, Activation, float> model(p.width, p.latents, activation);
    std::copy(p.w.begin(), p.w.end(), model.parameters().W_enc.data());
    std::copy(p.b.begin(), p.b.end(), model.parameters().b_enc.data());
    typename decltype(model)::template Workspace<> kept, fresh;
    kept.keep_weights();
    sae::Threads one(1), three(3);
    std::vector<sae::Codes<float>> got, again, want;
    Index first = 0;
    for (const Index rows : {1, 1, 2, 7, 1, 32, 33, 1, 70}) {
      const sae::Batch<float> x(p.x.data() + first * p.width, rows, p.width);
      got.push_back(model.encode_into(x, kept, three));
      again.push_back(model.encode_into(x, fresh, three));
      sae_test::on_portable_route([&] { want.push_back(model.encode(x, one)); });
      first += rows;
    }
    require_same(got, want);
    require_same(again, want);
    CHECK((kept.step.screen.latents() > 0) == sae::kernels::detail::has_fast_screen());
    CHECK(fresh.step.screen.latents() == 0);
  };
  check(sae::TopK{.k = 16});
  check(sae::TopK{.k = 16, .rank_by_decoder_norm = true});
  check(sae::ReLU{});
}
