// A screen may leave too much, never too little: every latent among the k largest is a candidate, and what is computed of a
// candidate is what the product makes of it.
#include <sae/activations/topk.hpp>
#include <sae/core/random.hpp>
#include <sae/kernels/product.hpp>
#include <sae/kernels/screen.hpp>
#include <sae/models/sparse_autoencoder.hpp>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "catch_compat.hpp"
#include "routes.hpp"

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

/// Mean candidates of a row; negative where the screen gave up.
double check(const Problem& p, Index k) {
  sae::Threads threads(2);
  sae::kernels::ScreenWeights weights;
  weights.build(p.w.data(), p.b.data(), p.latents, p.width, p.x, threads);
  sae::kernels::Screen screen;
  if (!weights.finite() || !screen.find(weights, p.x.data(), p.rows, k)) return -1;
  const std::vector<float> z = p.pre_activations();
  std::vector<std::map<Index, float>> found(static_cast<std::size_t>(p.rows));
  screen.for_each_value(p.x.data(), p.w.data(), p.b.data(), p.width, [&](Index row, Index latent, float value) {
    auto& of = found[static_cast<std::size_t>(row)];
    REQUIRE((of.empty() || of.rbegin()->first < latent));
    of[latent] = value;
  });
  std::size_t candidates = 0;
  for (Index i = 0; i < p.rows; ++i) {
    const float* const of = z.data() + i * p.latents;
    auto& seen = found[static_cast<std::size_t>(i)];
    candidates += seen.size();
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

TEST_CASE("a screen finds all that can be among the k largest", "[kernels][screen]") {
  on_every_route([] {
    for (const Index d : {1, 3, 4, 7, 64, 130, 576})
      for (const Index f : {1500, 1999, 3000}) {
        CAPTURE(d, f);
        check(Problem(17, d, f, 1), 8);  // hardly anything to prune: only what it claims must hold
        const double left = check(fitted(17, d, f, 2), 8);
        if (d >= 64) {
          CHECK(left >= 8);
          CHECK(left < 0.2 * static_cast<double>(f));
        }
      }
    check(fitted(3, 5000, 1200, 3), 4);
  });
}

TEST_CASE("a screen holds where numbers are odd", "[kernels][screen]") {
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
    const double left = check(p, 10);
    CHECK(left != 0);
  });
}

TEST_CASE("a screen gives up on what is not finite, and where it prunes too little", "[kernels][screen]") {
  on_every_route([] {
    for (const float odd : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 1e30F}) {
      Problem row = fitted(5, 64, 1500, 1), weight = fitted(5, 64, 1500, 1);
      row.row(3)[10] = odd;
      weight.latent(77)[10] = odd;
      CHECK(check(row, 4) == -1);
      CHECK(check(weight, 4) == -1);
    }
    CHECK(check(Problem(5, 64, 500, 1), 4) == -1);  // fewer latents than it would keep
    Problem flat(5, 256, 4000, 1);                  // all alike: nothing can be told apart
    for (Index i = 1; i < flat.latents; ++i) std::copy_n(flat.latent(0), flat.width, flat.latent(i));
    std::fill(flat.b.begin(), flat.b.end(), 100.0F);
    CHECK(check(flat, 4) == -1);
  });
}

TEST_CASE("codes are the same bytes with a screen and without", "[kernels][screen]") {
  if (!sae::kernels::detail::has_fast_screen()) SAE_SKIP_TEST("this machine has no fast products of eight bits");
  const Index d = 128, f = 3000;
  Problem p = fitted(700, d, f, 9);
  sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::TopK, float> model(d, f, {.k = 16});
  std::copy(p.w.begin(), p.w.end(), model.parameters().W_enc.data());
  std::copy(p.b.begin(), p.b.end(), model.parameters().b_enc.data());
  for (Index j = 0; j < d; ++j) p.row(650)[j] *= 1e30F;  // its block is computed whole
  const sae::Batch<float> rows(p.x.data(), 700, d);
  sae::Threads threads(3);
  REQUIRE(sae::kernels::screen_pays(700, d, f, 16));
  const auto screened = model.encode(rows, threads);
  const auto own = sae::kernels::route();
  sae::kernels::set_route(sae::kernels::Route::avx2);
  const auto whole = model.encode(rows, threads);
  sae::kernels::set_route(own);
  REQUIRE(screened.size() == whole.size());
  REQUIRE(screened.size() > 700 * 10);
  for (Index e = 0; e < whole.size(); ++e) {
    REQUIRE(screened.latent(e) == whole.latent(e));
    REQUIRE(bits(screened.value(e)) == bits(whole.value(e)));
  }
}
