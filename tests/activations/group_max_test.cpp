#include <sae/activations/group_max.hpp>
#include <sae/files/npy.hpp>
#include <sae/files/safetensors.hpp>
#include <sae/models/sparse_autoencoder.hpp>

#include <filesystem>
#include <limits>
#include <vector>

#include "catch_compat.hpp"
#include "gradient_check.hpp"
#include "peer_fixture.hpp"
#include "select_blocks.hpp"

namespace {

using sae::GroupMax;
using sae::Index;
using namespace sae_test;

using Model = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, GroupMax, double>;

}  // namespace

TEST_CASE("GroupMax by hand: one of each group, where it is positive", "[activations][group_max]") {
  Dense z(3, 6);
  z << 1, 3, 2, 5, 5, 4,  // the lower of equals
      -1, 0, -2, 0, 0, 0.5, std::numeric_limits<double>::quiet_NaN(), 2, 1, -1, -1, -1;
  Dense want(3, 6);
  want << 0, 3, 0, 5, 0, 0,  //
      0, 0, 0, 0, 0, 0.5,    //
      0, 2, 0, 0, 0, 0;
  const auto got = select_blocks(GroupMax{.k = 2}, z);
  CHECK(same(got.codes.dense(), want));
  CHECK(got.codes.size() == 4);
  const auto by_norm = select_blocks(GroupMax{.k = 2, .rank_by_decoder_norm = true}, z, {}, {4, 1, 1, 0, 1, 2});
  want.row(0) << 1, 0, 0, 0, 0, 4;
  CHECK(same(by_norm.codes.dense(), want));
  // sparsify: an empty group's first latent is chosen, with the value 0
  const auto zeros = select_blocks(GroupMax{.k = 2, .gradient_where_zero = true}, z);
  CHECK(zeros.codes.size() == 6);
  CHECK(zeros.codes.row_latents(1)[0] == 0);
  CHECK(zeros.codes.row_values(1)[0] == 0);
  CHECK(zeros.z[2] == -1);
  CHECK(zeros.codes.row_latents(2)[1] == 3);
}

TEST_CASE("GroupMax is its naive twin over sizes, blocks and tiles, ranked by z or by z times the norm",
          "[activations][group_max]") {
  std::vector<GroupMax::Selector<double>> selectors;
  for (const Index latents : {1, 2, 16, 60, 130})
    for (const Index rows : {0, 1, 2, 19})
      for (const Index k : {Index{1}, Index{2}, Index{10}, latents})
        for (const Cut& cut : {Cut{}, Cut{.block_rows = 1, .tile = 1}, Cut{.block_rows = 7, .tile = 33}})
          for (const bool by_norm : {false, true}) {
            if (latents % k != 0) continue;
            CAPTURE(latents, rows, k, cut.block_rows, cut.tile, by_norm);
            const Dense z = awkward_rows(rows, latents, 3);
            const auto norms = by_norm ? awkward_norms(latents, 4) : std::vector<double>();
            const auto got = select_blocks(GroupMax{.k = k, .rank_by_decoder_norm = by_norm}, z, cut, norms, selectors);
            const Mask want = naive_group_max(z, k, norms);
            REQUIRE(mask_of(got.codes) == want);
            REQUIRE(same(got.codes.dense(), naive_codes(z, want)));
          }
}

TEST_CASE("GroupMax's groups are checked against the latents", "[activations][group_max]") {
  CHECK_NOTHROW((GroupMax{.k = 4}.check(8)));
  CHECK_THROWS_WITH((GroupMax{.k = 3}.check(8)), "GroupMax: k = 3 does not divide the number of latents, 8");
  CHECK_THROWS_WITH((GroupMax{.k = 0}.check(8)), "GroupMax: k = 0 is not in [1, 8] (the number of latents)");
  CHECK_THROWS_WITH((GroupMax{.k = 16}.check(8)), "GroupMax: k = 16 is not in [1, 8] (the number of latents)");
  CHECK(GroupMax{.rank_by_decoder_norm = true}.needs_decoder_norms());
  CHECK_FALSE(GroupMax{}.needs_decoder_norms());
}

TEST_CASE("gradients of GroupMax", "[activations][group_max][gradient]") {
  constexpr Index width = 6, latents = 70, rows = 9;
  for (const bool subtract : {true, false})
    for (const Index k : {Index{1}, Index{10}, Index{35}, latents})
      for (const bool by_norm : {false, true}) {
        CAPTURE(subtract, k, by_norm);
        Model model(width, latents, {.k = k, .rank_by_decoder_norm = by_norm}, {.subtract_decoder_bias = subtract});
        randomise(model, 5);
        const Dense x = random_rows(rows, width, 2);
        const NaiveModel twin = naive(model);
        const Dense z = naive_pre_activations(twin, x);
        const Mask active = naive_group_max(z, k, by_norm ? naive_norms(twin.W_dec) : std::vector<double>());
        if (k == 10) REQUIRE((naive_group_max(z, k) != active) == by_norm);
        REQUIRE(mask_of(model.encode(x)) == active);
        const auto loss = [&](const NaiveModel& m) {
          return naive_mean_square(naive_decode(m, naive_codes(naive_pre_activations(m, x), active)) - x);
        };
        const auto got = model.gradient(x);
        check_gradient(twin, got.parameters, loss);
        CHECK(got.loss.total == Approx(loss(twin)).epsilon(1e-12));
      }
}

TEST_CASE("GroupMax folds decoder norms where they rank, and is refused where they do not", "[activations][group_max]") {
  Model by_norm(6, 70, {.k = 10, .rank_by_decoder_norm = true}), plain(6, 70, {.k = 10});
  randomise(by_norm, 8);
  plain.parameters() = by_norm.parameters();
  const Dense x = random_rows(40, 6, 2), reconstruction = by_norm.reconstruct(x);
  by_norm.fold_decoder_norms();
  CHECK(largest_difference(by_norm.reconstruct(x), reconstruction) <= 1e-13);
  CHECK_THROWS_AS(plain.fold_decoder_norms(), sae::ValueError);
}

TEST_CASE("GroupMax encodes as sparsify does", "[activations][group_max][peers]") {
  const auto folder = std::filesystem::path(SAE_TEST_DATA) / "peers" / "inference" / "sparsify_groupmax";
  const sae::SafetensorsFile file(folder / "sae.safetensors");
  const auto x = sae::load_npy<double>(folder / "x.npy");
  Model model(24, 56, {.k = 8});
  auto& p = model.parameters();
  p.W_enc = file.read<double>("encoder.weight", {56, 24});
  p.b_enc = file.read<double>("encoder.bias", {56});
  p.W_dec = file.read<double>("W_dec", {56, 24});
  p.b_dec = file.read<double>("b_dec", {24});
  const auto want = sae::load_npy<double>(folder / "codes.npy");
  REQUIRE((want.array() != 0).count() > 7 * x.rows());
  CHECK(largest_difference(model.encode_dense(x), want) <= 1e-5);
  CHECK(largest_difference(model.reconstruct(x), sae::load_npy<double>(folder / "recon.npy")) <= 1e-5);
}

TEST_CASE("GroupMax has sparsify's gradients, with its defect where asked", "[activations][group_max][peers]") {
  // A transcoder with a skip: its error is told from outside.
  const PeerRun run("sparsify_groupmax_transcode_skip");
  const sae::NpyArray file(run.folder / "y.npy");
  const auto values = file.values<double>();
  const Dense y = sae::ConstMatrixMap<double>(values.data(), run.rows, 24);
  const Dense x = run.x.topRows(run.rows), W_skip = run.tensor("init", "W_skip", false).map();
  Index empty_groups = 0;
  for (const bool defect : {true, false}) {
    Model model(24, 56, {.k = 8, .gradient_where_zero = defect}, {.subtract_decoder_bias = false});
    auto& p = model.parameters();
    p.W_enc = run.tensor("init", "encoder.weight", false);
    p.b_enc = run.tensor("init", "encoder.bias", false);
    p.W_dec = run.tensor("init", "W_dec", false);
    p.b_dec = run.tensor("init", "b_dec", false);
    const Dense error = model.reconstruct(x) + x * W_skip.transpose() - y;
    const double variance = (y.rowwise() - y.colwise().mean()).squaredNorm();
    CHECK(error.squaredNorm() / variance == Approx(run.expected.at("trace")[0].at("loss").get<double>()).epsilon(1e-9));
    const auto got = model.gradient(x, Dense(2 / variance * error));
    const auto close = [&](const auto& tensor, const char* name) {
      return relative_error(tensor.map(), run.tensor("grad", name, false).map()) <= 1e-9;
    };
    CHECK(close(got.parameters.W_dec, "W_dec"));
    CHECK(close(got.parameters.b_dec, "b_dec"));
    CHECK(close(got.parameters.W_enc, "encoder.weight") == defect);
    CHECK(close(got.parameters.b_enc, "encoder.bias") == defect);
    const auto codes = model.encode(x);
    for (const double f : codes.values()) empty_groups += f == 0 ? 1 : 0;
  }
  CHECK(empty_groups > 0);
}
