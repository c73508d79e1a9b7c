// Weights that are stored in 16 bits: everything that is computed is what a float32 model with the same numbers computes.
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

#include <cstring>
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

TEMPLATE_TEST_CASE("weights of 16 bits: codes, reconstruction and gradients of the same numbers in float32", "[models][half]",
                   bfloat16, float16) {
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

TEMPLATE_TEST_CASE("weights of 16 bits: what a screen leaves out is the same", "[models][half]", bfloat16, float16) {
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
                    "fold_input_scale: weights of 16 bits would be rounded again; fold the scale into the activations");
}
