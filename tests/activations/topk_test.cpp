#include <sae/activations/relu.hpp>
#include <sae/activations/topk.hpp>

#include <limits>
#include <vector>

#include "catch_compat.hpp"
#include "reference.hpp"

namespace {

using sae::Index;
using namespace sae_test;

// A block of rows shown to a selector in tiles of `tile` latents, as a model shows it.
template <class Activation>
sae::Entries<double> select(const Activation& activation, const Dense& z, Index tile, const std::vector<double>& norms = {}) {
  typename Activation::template Selector<double> selector;
  const typename Activation::template Parameters<double> none;
  for (int round = 0; round < 2; ++round) {  // reused: the second block knows nothing of the first
    selector.begin(activation, none, norms, z.rows());
    for (Index first = 0; first < z.cols(); first += tile)
      for (Index b = 0; b < z.rows(); ++b) {
        const double bound = selector.bound(b);
        selector.take(b, first, {z.data() + b * z.cols() + first, static_cast<std::size_t>(std::min(tile, z.cols() - first))});
        REQUIRE(selector.bound(b) >= bound);
      }
  }
  Activation::template Selector<double>::merge({&selector, 1});
  sae::Entries<double> active, band;
  active.reset(z.cols());
  band.reset(z.cols());
  for (Index b = 0; b < z.rows(); ++b) {
    selector.emit(b, active, band);
    active.finish_row();
    band.finish_row();
  }
  CHECK(band.size() == 0);
  for (Index e = 0; e < active.size(); ++e) REQUIRE(active.codes.value(e) == active.z[static_cast<std::size_t>(e)]);
  return active;
}

const double nan_value = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();

Dense sample() {
  Dense z = random_rows(9, 130, 1);
  z.row(1).setConstant(-1);
  z.row(2).setConstant(0);
  z.row(3).setConstant(2);  // ties
  z.row(4).setConstant(nan_value);
  z(5, 60) = nan_value;
  z(6, 17) = infinity;
  z(7, 90) = -infinity;
  z.row(8).tail(120).setConstant(-0.5);  // fewer positive than k
  return z;
}

}  // namespace

TEST_CASE("ReLU selects what is positive", "[activations][relu]") {
  const Dense z = sample();
  for (const Index tile : {1, 7, 64, 130, 512}) {
    const auto got = select(sae::ReLU{}, z, tile);
    CHECK(mask_of(got.codes) == naive_positive(z));
    CHECK(got.codes.dense() == naive_codes(z, naive_positive(z)));
  }
  CHECK_FALSE(sae::ReLU{}.needs_decoder_norms());
  CHECK_NOTHROW(sae::ReLU{}.check(1));
}

TEST_CASE("TopK selects the k largest positive of each row, ties to the lower latent", "[activations][topk]") {
  const Dense z = sample();
  for (const Index k : {1, 3, 20, 130})
    for (const Index tile : {1, 7, 64, 130, 512}) {
      CAPTURE(k, tile);
      const auto got = select(sae::TopK{.k = k}, z, tile);
      CHECK(mask_of(got.codes) == naive_largest(z, k));
      CHECK(got.codes.row_latents(1).empty());
      CHECK(got.codes.row_latents(2).empty());
      CHECK(got.codes.row_latents(4).empty());
      CHECK(got.codes.row_latents(3).back() == k - 1);
      CHECK(static_cast<Index>(got.codes.row_latents(8).size()) <= 10);
    }
}

TEST_CASE("TopK ranked by the decoder norm selects by z n and gives z", "[activations][topk]") {
  const Dense z = sample();
  std::vector<double> norms;
  sae::Random random(4);
  for (int i = 0; i < 130; ++i) norms.push_back(i % 11 == 0 ? 0.0 : random.uniform(0.1, 4));
  Dense finite = z;
  finite(6, 17) = 1;
  for (const Index k : {1, 5, 60}) {
    const auto got = select(sae::TopK{.k = k, .rank_by_decoder_norm = true}, finite, 64, norms);
    CHECK(mask_of(got.codes) == naive_largest(finite, k, norms));
    CHECK(mask_of(got.codes) != naive_largest(finite, k));
    CHECK(got.codes.dense() == naive_codes(finite, mask_of(got.codes)));
  }
  CHECK((sae::TopK{.rank_by_decoder_norm = true}.needs_decoder_norms()));
  CHECK_FALSE(sae::TopK{}.needs_decoder_norms());
}

TEST_CASE("TopK's k is checked against the latents", "[activations][topk]") {
  CHECK_NOTHROW((sae::TopK{.k = 8}.check(8)));
  CHECK_THROWS_WITH((sae::TopK{.k = 9}.check(8)), "TopK: k = 9 is not in [1, 8] (the number of latents)");
  CHECK_THROWS_WITH((sae::TopK{.k = 0}.check(8)), "TopK: k = 0 is not in [1, 8] (the number of latents)");
  CHECK_THROWS_AS((sae::TopK{.k = -3}.check(8)), sae::ValueError);
}
