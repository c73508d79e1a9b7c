#include <sae/activations/abs_topk.hpp>
#include <sae/files/npy.hpp>
#include <sae/files/safetensors.hpp>
#include <sae/models/sparse_autoencoder.hpp>

#include <filesystem>
#include <limits>
#include <vector>

#include "catch_compat.hpp"
#include "gradient_check.hpp"
#include "select_blocks.hpp"

namespace {

using sae::AbsTopK;
using sae::Index;
using namespace sae_test;

using Model = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, AbsTopK, double>;

}  // namespace

TEST_CASE("AbsTopK by hand: magnitude decides, the sign stays, zero is never active", "[activations][abs_topk]") {
  Dense z(4, 4);
  z << 1, -3, 2, -2,   // |2| twice: the lower latent
      0, 0, -0.5, 0,   //
      -1, -2, -3, -4,  //
      std::numeric_limits<double>::quiet_NaN(), -1, 0, 7;
  Dense want(4, 4);
  want << 0, -3, 2, 0,  //
      0, 0, -0.5, 0,    //
      0, 0, -3, -4,     //
      0, -1, 0, 7;
  const auto got = select_blocks(AbsTopK{.k = 2}, z);
  CHECK(same(got.codes.dense(), want));
  CHECK(got.codes.size() == 7);
  for (Index e = 0; e < got.size(); ++e) CHECK(got.codes.value(e) == got.z[static_cast<std::size_t>(e)]);
}

TEST_CASE("AbsTopK is its naive twin over sizes, blocks and tiles, ranked by magnitude or magnitude times norm",
          "[activations][abs_topk]") {
  std::vector<AbsTopK::Selector<double>> selectors;  // reused throughout: no batch knows of an earlier one
  for (const Index latents : {1, 2, 15, 16, 17, 130})
    for (const Index rows : {0, 1, 2, 19})
      for (const Index k : {Index{1}, Index{3}, latents})
        for (const Cut& cut : {Cut{}, Cut{.block_rows = 1, .tile = 1}, Cut{.block_rows = 7, .tile = 33}})
          for (const bool by_norm : {false, true}) {
            if (k > latents) continue;
            CAPTURE(latents, rows, k, cut.block_rows, cut.tile, by_norm);
            const Dense z = awkward_rows(rows, latents, 3);
            const auto norms = by_norm ? awkward_norms(latents, 4) : std::vector<double>();
            const auto got = select_blocks(AbsTopK{.k = k, .rank_by_decoder_norm = by_norm}, z, cut, norms, selectors);
            const Mask want = naive_largest(z.cwiseAbs(), k, norms);
            REQUIRE(mask_of(got.codes) == want);
            REQUIRE(same(got.codes.dense(), naive_codes(z, want)));
          }
}

TEST_CASE("AbsTopK's k is checked against the latents", "[activations][abs_topk]") {
  CHECK_NOTHROW((AbsTopK{.k = 8}.check(8)));
  CHECK_THROWS_WITH((AbsTopK{.k = 9}.check(8)), "AbsTopK: k = 9 is not in [1, 8] (the number of latents)");
  CHECK_THROWS_WITH((AbsTopK{.k = 0}.check(8)), "AbsTopK: k = 0 is not in [1, 8] (the number of latents)");
  CHECK(AbsTopK{.rank_by_decoder_norm = true}.needs_decoder_norms());
  CHECK_FALSE(AbsTopK{}.needs_decoder_norms());
}

TEST_CASE("gradients of AbsTopK", "[activations][abs_topk][gradient]") {
  constexpr Index width = 6, latents = 70, rows = 9;
  for (const bool subtract : {true, false})
    for (const Index k : {Index{1}, Index{5}, Index{40}, latents})
      for (const bool by_norm : {false, true}) {
        CAPTURE(subtract, k, by_norm);
        Model model(width, latents, {.k = k, .rank_by_decoder_norm = by_norm}, {.subtract_decoder_bias = subtract});
        randomise(model, 5);
        const Dense x = random_rows(rows, width, 2);
        const NaiveModel twin = naive(model);
        const Dense z = naive_pre_activations(twin, x);
        const Mask active = naive_largest(z.cwiseAbs(), k, by_norm ? naive_norms(twin.W_dec) : std::vector<double>());
        if (k == 5) REQUIRE((naive_largest(z.cwiseAbs(), k) != active) == by_norm);
        const auto codes = model.encode(x);
        REQUIRE(mask_of(codes) == active);
        REQUIRE(codes.dense().minCoeff() < 0);
        const auto loss = [&](const NaiveModel& m) {
          return naive_mean_square(naive_decode(m, naive_codes(naive_pre_activations(m, x), active)) - x);
        };
        const auto got = model.gradient(x);
        check_gradient(twin, got.parameters, loss);
        CHECK(got.loss.total == Approx(loss(twin)).epsilon(1e-12));
      }
}

TEST_CASE("AbsTopK folds decoder norms where they rank, and is refused where they do not", "[activations][abs_topk]") {
  Model by_norm(6, 70, {.k = 5, .rank_by_decoder_norm = true}), plain(6, 70, {.k = 5});
  randomise(by_norm, 8);
  plain.parameters() = by_norm.parameters();
  by_norm.W_dec().row(4).setZero();
  by_norm.parameters().b_enc[4] = -9;
  const Dense x = random_rows(40, 6, 2), reconstruction = by_norm.reconstruct(x);
  const Mask active = mask_of(by_norm.encode(x));
  by_norm.fold_decoder_norms();
  CHECK(mask_of(by_norm.encode(x)) == active);
  CHECK(largest_difference(by_norm.reconstruct(x), reconstruction) <= 1e-13);
  CHECK_THROWS_AS(plain.fold_decoder_norms(), sae::ValueError);
  auto scaled = by_norm;
  scaled.fold_input_scale(0.25);
  CHECK(largest_difference(scaled.reconstruct(4 * x), 4 * reconstruction) <= 1e-12);
}

TEST_CASE("AbsTopK encodes as SAELens does", "[activations][abs_topk][peers]") {
  const auto folder = std::filesystem::path(SAE_TEST_DATA) / "peers" / "inference" / "saelens_abstopk_rescale";
  const sae::SafetensorsFile file(folder / "sae_weights.safetensors");
  const auto x = sae::load_npy<double>(folder / "x.npy");
  Model model(24, 56, {.k = 6, .rank_by_decoder_norm = true});
  auto& p = model.parameters();
  p.W_enc.map() = file.read<double>("W_enc", {24, 56}).map().transpose();
  p.b_enc = file.read<double>("b_enc", {56});
  p.W_dec = file.read<double>("W_dec", {56, 24});
  p.b_dec = file.read<double>("b_dec", {24});
  const auto want = sae::load_npy<double>(folder / "codes.npy");  // z |d|
  const Dense norms = p.W_dec.map().rowwise().norm().transpose();
  const Dense codes = model.encode_dense(x).array().rowwise() * norms.row(0).array();
  REQUIRE(want.minCoeff() < -0.1);
  REQUIRE((want.array() != 0).count() == 6 * x.rows());
  CHECK(largest_difference(codes, want) <= 1e-5);
  CHECK(largest_difference(model.reconstruct(x), sae::load_npy<double>(folder / "recon.npy")) <= 1e-5);
}
