// Weights that are stored in 16 or 8 bits: everything that is computed is what a float32 model with the same numbers computes.
#include <sae/activations/abs_topk.hpp>
#include <sae/activations/batch_topk.hpp>
#include <sae/activations/gated.hpp>
#include <sae/activations/glu.hpp>
#include <sae/activations/group_max.hpp>
#include <sae/activations/jump_relu.hpp>
#include <sae/activations/relu.hpp>
#include <sae/activations/topk.hpp>
#include <sae/models/crosscoder.hpp>
#include <sae/models/matryoshka.hpp>
#include <sae/models/sparse_autoencoder.hpp>
#include <sae/training/aux_k.hpp>
#include <sae/training/l1.hpp>

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <utility>

#include "catch_compat.hpp"
#include "reference.hpp"
#include "routes.hpp"

namespace {

using sae::bfloat16, sae::float16, sae::Dynamic, sae::Index, sae::Matrix;
using sae_test::on_every_route;

template <class Activation, class Stored>
using Model = sae::SparseAutoencoder<Dynamic, Dynamic, Activation, float, Stored>;

void require_same(const sae::Codes<float>& a, const sae::Codes<float>& b) {
  REQUIRE(a.size() == b.size());
  REQUIRE(a.size() > 0);
  REQUIRE(std::equal(a.indices().begin(), a.indices().end(), b.indices().begin()));
  REQUIRE(std::memcmp(a.values().data(), b.values().data(), static_cast<std::size_t>(a.size()) * sizeof(float)) == 0);
}
Matrix<float> rows_of(Index rows, Index width, std::uint64_t seed) {
  return sae_test::random_rows(rows, width, seed).cast<float>();
}
/// A model with weights of its own, where W_enc is not W_dec.
template <class Stored, class Activation>
Model<Activation, Stored> narrow_model(Index width, Index latents, const Activation& activation,
                                       sae::ModelOptions options = {}) {
  Model<Activation, float> start(width, latents, activation, std::move(options));
  auto& p = start.parameters();
  sae::Random random(5);
  for (auto* const tensor : {&p.W_enc, &p.W_dec, &p.b_enc, &p.b_dec})
    for (Index i = 0; i < tensor->size(); ++i) (*tensor)[i] += static_cast<float>(0.05 * random.normal());
  return sae::with_weights<Stored>(start);
}

/// \param terms  of the loss
template <class Stored, class Activation, class Terms = sae::Objective<>>
void check_same(Index width, Index latents, Index rows, const Activation& activation, const Terms& terms = {},
                sae::ModelOptions options = {}) {
  const auto narrow = narrow_model<Stored>(width, latents, activation, std::move(options));
  const auto wide = sae::with_weights<float>(narrow);
  const Matrix<float> x = rows_of(rows, width, 3);
  sae::Threads threads(2);
  const auto codes = narrow.encode(x, threads);
  require_same(codes, wide.encode(x, threads));
  REQUIRE(narrow.decode(codes, threads) == wide.decode(codes, threads));
  REQUIRE(narrow.pre_activations(x, threads) == wide.pre_activations(x, threads));
  // One row, by what is kept from call to call.
  typename Model<Activation, Stored>::template Workspace<> kept;
  typename Model<Activation, float>::template Workspace<> wide_kept;
  kept.keep_weights();
  wide_kept.keep_weights();
  for (Index b = 0; b < 4; ++b)
    require_same(narrow.encode_into(Matrix<float>(x.row(b)), kept, threads),
                 wide.encode_into(Matrix<float>(x.row(b)), wide_kept, threads));

  typename Model<Activation, Stored>::template Workspace<Terms> workspace;
  typename Model<Activation, float>::template Workspace<Terms> wide_workspace;
  std::vector<std::uint8_t> dead(static_cast<std::size_t>(latents));
  for (std::size_t i = 0; i < dead.size(); ++i) dead[i] = i % 3 == 0;
  workspace.step.dead = wide_workspace.step.dead = dead;
  const auto got = narrow.gradient(x, terms, workspace, threads);
  const auto want = wide.gradient(x, terms, wide_workspace, threads);
  REQUIRE(got.loss.total == want.loss.total);
  sae::AutoencoderParameters<Activation, float>::visit(
      [&](std::string_view name, const auto& a, const auto& b) {
        CAPTURE(name);
        REQUIRE(a == b);
        if (name.starts_with("W_")) REQUIRE_FALSE(a == std::remove_cvref_t<decltype(a)>(a.rows(), a.cols()));
      },
      got.parameters, want.parameters);
}

}  // namespace

TEMPLATE_TEST_CASE("narrow weights: codes, reconstruction and gradients of the same numbers in float32", "[models][half]",
                   bfloat16, float16, std::int8_t) {
  on_every_route([] {
    check_same<TestType>(20, 96, 70, sae::TopK{.k = 5}, sae::Objective{sae::AuxK{.k = 4}});
    check_same<TestType>(20, 96, 70, sae::TopK{.k = 5, .rank_by_decoder_norm = true});
    check_same<TestType>(20, 96, 70, sae::TopK{.k = 5}, sae::Objective{sae::HierarchicalTopK{.k = 5}});
    check_same<TestType>(20, 96, 70, sae::BatchTopK{.k = 5}, sae::Objective{sae::Matryoshka{.widths = {16, 48, 96}}});
    check_same<TestType>(20, 96, 70, sae::AbsTopK{.k = 5});
    check_same<TestType>(20, 96, 70, sae::GroupMax{.k = 8});
    check_same<TestType>(20, 96, 300, sae::ReLU{}, sae::Objective{sae::L1{.weighted_by_decoder_norm = true}});  // dense
    check_same<TestType>(20, 500, 70, sae::JumpReLU{.threshold = 0.4, .bandwidth = 0.1});
    check_same<TestType>(7, 33, 40, sae::Gated{});
    check_same<TestType>(20, 96, 70, sae::Glu<sae::TopK>{.inner = {.k = 5}});
    check_same<TestType>(20, 96, 70, sae::TopK{.k = 5, .rank_by_decoder_norm = true}, sae::Objective<>{},
                         sae::crosscoder({8, 12}));
    check_same<TestType>(20, 96, 70, sae::TopK{.k = 5}, sae::Objective<>{}, {.subtract_decoder_bias = false});
    check_same<TestType>(20, 96, 70, sae::TopK{.k = 5}, sae::Objective<>{}, {.tied = true});
  });
}

TEMPLATE_TEST_CASE("narrow weights: what a screen leaves out is the same", "[models][half]", bfloat16, float16, std::int8_t) {
  on_every_route([] {
    if (!sae::kernels::detail::has_fast_screen()) return;
    check_same<TestType>(96, 1800, 256, sae::TopK{.k = 16});
    check_same<TestType>(96, 1800, 256, sae::TopK{.k = 16, .rank_by_decoder_norm = true});
    check_same<TestType>(96, 1800, 256, sae::BatchTopK{.k = 16});
    check_same<TestType>(96, 1800, 256, sae::JumpReLU{.threshold = 1.5, .bandwidth = 0.2});
  });
}

TEMPLATE_TEST_CASE("with_weights rounds to nearest, and back is exact", "[models][half]", bfloat16, float16) {
  const Model<sae::TopK, float> start(12, 40, {.k = 3}, {.initialization = {.decoder_norm = 0.7, .seed = 9}});
  const auto narrow = sae::with_weights<TestType>(start);
  const auto wide = sae::with_weights<float>(narrow);
  for (Index i = 0; i < start.parameters().W_dec.size(); ++i) {
    REQUIRE(narrow.parameters().W_dec[i] == TestType(start.parameters().W_dec[i]));
    REQUIRE(wide.parameters().W_enc[i] == static_cast<float>(narrow.parameters().W_enc[i]));
  }
  // A model starts as the rounded start of a float32 one.
  const Model<sae::TopK, TestType> fresh(12, 40, {.k = 3}, {.initialization = {.decoder_norm = 0.7, .seed = 9}});
  CHECK(fresh.parameters().W_dec == narrow.parameters().W_dec);
  CHECK(fresh.parameters().W_enc == narrow.parameters().W_enc);
  CHECK(fresh.parameters().b_enc == start.parameters().b_enc);
  // Folds that change codes alone are there, others are not.
  auto folded = narrow;
  folded.fold_input_scale(2);
  CHECK(folded.parameters().W_dec == narrow.parameters().W_dec);
  CHECK_THROWS_WITH(folded.fold_input_scale(2, sae::ScaleFold::weights),
                    "fold_input_scale: narrow weights would be rounded again; fold the scale into the activations");
}

TEST_CASE("weights of 8 bits are the nearest integers of a scale for each row", "[models][int8]") {
  Model<sae::TopK, float> start(12, 40, {.k = 3});
  auto& w = start.parameters().W_dec;
  std::fill_n(w.row(0), 12, 0.0F);                               // no scale
  std::fill_n(w.row(1), 12, std::numeric_limits<float>::max());  // the largest one
  std::fill_n(w.row(2), 12, 0x1p-120F);                          // too small for one
  for (Index j = 0; j < 12; ++j) w.row(3)[j] = j == 0 ? -12.7F : 0.1F * (static_cast<float>(j) + 0.4F);
  const auto narrow = sae::with_weights<std::int8_t>(start);
  const auto& codes = narrow.parameters().W_dec;
  CHECK(codes.row(0)[5] == 0);
  CHECK(codes.row(1)[5] == Approx(std::numeric_limits<float>::max()).epsilon(1e-6));
  CHECK(codes.row(2)[5] == 0);
  CHECK(codes.row(3)[0] == Approx(-12.7F).epsilon(1e-6));
  for (Index j = 1; j < 12; ++j) CHECK(codes.row(3)[j] == Approx(0.1 * static_cast<double>(j)).epsilon(1e-6));
  for (Index i = 3; i < 40; ++i) {
    const float largest =
        *std::max_element(w.row(i), w.row(i) + 12, [](float a, float b) { return std::abs(a) < std::abs(b); });
    for (Index j = 0; j < 12; ++j) CHECK(std::abs(codes.row(i)[j] - w.row(i)[j]) <= std::abs(largest) / 254 * 1.0001F);
  }
  // To float32 is exact, and once more to 8 bits finds the same integers.
  const auto wide = sae::with_weights<float>(narrow);
  for (Index i = 0; i < w.size(); ++i) REQUIRE(wide.parameters().W_dec[i] == codes[i]);
  CHECK(wide.parameters().b_enc == start.parameters().b_enc);
  const auto again = sae::with_weights<std::int8_t>(wide);
  for (Index i = 0; i < w.size(); ++i) CHECK(again.parameters().W_dec[i] == Approx(codes[i]).epsilon(1e-6));

  w.row(7)[3] = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_WITH(sae::with_weights<std::int8_t>(start), "weights of 8 bits: number 3 of row 7 is not finite");
}

TEST_CASE("a model of given parameters checks their shapes", "[models]") {
  using Plain = Model<sae::TopK, float>;
  const Plain start(12, 40, {.k = 3});
  const Plain same(Plain::Parameters(start.parameters()), {.k = 3});
  const Matrix<float> x = rows_of(9, 12, 4);
  require_same(same.encode(x), start.encode(x));
  const auto refused = [&](const auto& change) {
    auto parameters = start.parameters();
    change(parameters);
    CHECK_THROWS_WITH(Plain(std::move(parameters), {.k = 3}),
                      "SparseAutoencoder: the parameters are not those of a model [12 -> 40] with topk");
  };
  refused([](auto& p) { p.W_enc.resize(39, 12); });
  refused([](auto& p) { p.b_enc.resize(0, 0); });
  refused([](auto& p) { p.b_dec.resize(1, 11); });
  refused([](auto& p) { p.W_skip.resize(12, 12); });
  CHECK_THROWS_WITH(Plain(Plain::Parameters(start.parameters()), {.k = 41}), Catch::Matchers::Contains("k = 41"));
}
