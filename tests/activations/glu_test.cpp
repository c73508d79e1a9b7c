// The gated linear encoder: by hand, by central differences, folded, and as llamascopium has it.
#include <sae/activations/glu.hpp>
#include <sae/activations/topk.hpp>
#include <sae/data/indexed_source.hpp>
#include <sae/files/npy.hpp>
#include <sae/files/safetensors.hpp>
#include <sae/formats/saelens_glu.hpp>
#include <sae/training/aux_k.hpp>
#include <sae/training/trainer.hpp>

#include <cmath>
#include <filesystem>
#include <vector>

#include "catch_compat.hpp"
#include "gradient_check.hpp"
#include "temp_folder.hpp"

namespace {

using sae::Glu;
using sae::Index;
using sae::ReLU;
using sae::TopK;
using namespace sae_test;
template <class Inner>
using Model = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, Glu<Inner>, double>;

constexpr Index width = 6, latents = 70, rows = 9;

template <class Inner>
Model<Inner> some_model(Inner inner, bool subtract) {
  Model<Inner> model(width, latents, {.inner = inner}, {.subtract_decoder_bias = subtract});
  randomise(model, 5, -0.2);
  model.parameters().activation.W_glu.map() = random_rows(latents, width, 31, 0.5);
  model.parameters().activation.b_glu.map() = random_rows(1, latents, 32, 0.5);
  return model;
}

struct Naive {
  NaiveModel linear;
  Dense W_glu, b_glu;

  Dense z(const Dense& x) const {
    Dense out = naive_pre_activations(linear, x);
    for (Index b = 0; b < x.rows(); ++b)
      for (Index i = 0; i < out.cols(); ++i) {
        double q = b_glu(0, i);
        for (Index j = 0; j < x.cols(); ++j)
          q += (x(b, j) - (linear.subtract_decoder_bias ? linear.b_dec(0, j) : 0.0)) * W_glu(i, j);
        out(b, i) *= 1 / (1 + std::exp(-q));
      }
    return out;
  }
};
template <class M>
Naive naive_of(const M& model) {
  return {naive(model), model.parameters().activation.W_glu.map(), model.parameters().activation.b_glu.map()};
}
Mask selected(ReLU, const Dense& z) { return naive_positive(z); }
Mask selected(const TopK& topk, const Dense& z) { return naive_largest(z, topk.k); }

template <class Inner>
void check_gradients(Inner inner) {
  for (const bool subtract : {true, false}) {
    CAPTURE(subtract);
    const auto model = some_model(inner, subtract);
    const Dense x = random_rows(rows, width, 2);
    Naive twin = naive_of(model);
    CHECK(largest_difference(model.pre_activations(x), twin.z(x)) <= 1e-13);
    const Mask active = selected(inner, twin.z(x));
    REQUIRE(mask_of(model.encode(x)) == active);
    const auto loss = [&] { return naive_mean_square(naive_decode(twin.linear, naive_codes(twin.z(x), active)) - x); };
    const auto got = model.gradient(x);
    CHECK(got.loss.total == Approx(loss()).epsilon(1e-12));
    const auto& g = got.parameters;
    CHECK(relative_error(g.W_enc.map(), central_differences(twin.linear.W_enc, loss)) <= 1e-6);
    CHECK(relative_error(g.b_enc.map(), central_differences(twin.linear.b_enc, loss)) <= 1e-6);
    CHECK(relative_error(g.W_dec.map(), central_differences(twin.linear.W_dec, loss)) <= 1e-6);
    CHECK(relative_error(g.b_dec.map(), central_differences(twin.linear.b_dec, loss)) <= 1e-6);
    CHECK(relative_error(g.activation.W_glu.map(), central_differences(twin.W_glu, loss)) <= 1e-6);
    CHECK(relative_error(g.activation.b_glu.map(), central_differences(twin.b_glu, loss)) <= 1e-6);
  }
}

}  // namespace

TEST_CASE("Glu by hand", "[activations][glu]") {
  Model<ReLU> model(2, 2, {}, {.subtract_decoder_bias = false});
  CHECK(model.pre_activations(Dense::Ones(1, 2))(0, 0) ==
        Approx(0.5 * model.W_enc().row(0).sum()));  // a fresh gate is half open
  model.W_enc() << 1, 2, -1, 1;
  model.parameters().activation.W_glu.map() << 0, std::log(3.0), 1, 1;
  model.parameters().activation.b_glu.map() << 0, -1e4;
  Dense x(1, 2), want(1, 2);
  x << 2, 1;
  want << 3, 0;  // 4 * 3/4; the other is not positive
  CHECK(largest_difference(model.encode_dense(x), want) <= 1e-14);
  x << -2, 1;
  CHECK(model.pre_activations(x)(0, 1) == 0);  // 3 times a gate that is shut, and no NaN
}

TEST_CASE("gradients of Glu in front of ReLU and TopK", "[activations][glu][gradient]") {
  check_gradients(ReLU{});
  check_gradients(TopK{.k = 4});
  check_gradients(TopK{.k = latents});
}

TEST_CASE("Glu folds scales and norms, keeps TopK's refusals", "[activations][glu]") {
  const Dense x = random_rows(30, width, 2);
  auto model = some_model(ReLU{}, true);
  const Dense before = model.encode_dense(2.5 * x), reconstruction = model.reconstruct(2.5 * x);
  model.fold_input_scale(2.5);
  CHECK(largest_difference(model.encode_dense(x), before / 2.5) <= 1e-13);
  model.fold_decoder_norms();
  CHECK(largest_difference(model.reconstruct(x), reconstruction / 2.5) <= 1e-13);
  auto topk = some_model(TopK{.k = 4}, true);
  CHECK_THROWS_AS(topk.fold_decoder_norms(), sae::ValueError);
  CHECK_THROWS_WITH(Model<TopK>(width, latents, {.inner = {.k = 0}}), "TopK: k = 0 is not in [1, 70] (the number of latents)");
  std::vector<std::uint8_t> dead(static_cast<std::size_t>(latents), 1);
  Model<TopK>::Workspace<sae::Objective<sae::AuxK>> workspace;
  workspace.step.dead = dead;
  CHECK_THROWS_WITH(topk.gradient(x, sae::Objective{sae::AuxK{}}, workspace),
                    "a term of the objective reads pre-activations (AuxK does), and glu has none that are one product");
}

TEST_CASE("Glu trains the same on any number of threads, its gate too", "[activations][glu]") {
  const Dense x = random_rows(256, 12, 6);
  for (const double clip : {0.0, 0.5}) {
    std::vector<Dense> gates;
    for (const int count : {1, 3}) {
      sae::Threads threads(count);
      sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, Glu<TopK>, double> model(12, 40, {.inner = {.k = 3}});
      const double before = model.loss(x).total;
      sae::TrainerConfig config{.learning_rate = 1e-2, .clip_norm = clip};
      config.steps = 60;
      config.batch = 64;
      sae::Trainer trainer(model, config, sae::Objective<>{}, threads);
      sae::MatrixSource<double> source(x, {.seed = 1});
      trainer.fit(source);
      CHECK(model.loss(x).total < 0.8 * before);
      gates.push_back(model.parameters().activation.W_glu.map());
    }
    CHECK_FALSE(gates[0].isZero());
    CHECK(gates[0] == gates[1]);
  }
}

TEST_CASE("Glu encodes as llamascopium does", "[activations][glu][peers]") {
  const auto folder = std::filesystem::path(SAE_TEST_DATA) / "peers" / "inference" / "llamascopium_relu_glu_no_bias";
  const sae::SafetensorsFile file(folder / "sae_weights.safetensors");
  Model<ReLU> model(24, 56, {}, {.subtract_decoder_bias = false});
  auto& p = model.parameters();
  p.W_enc.map() = file.read<double>("W_E", {24, 56}).map().transpose();
  p.b_enc = file.read<double>("b_E", {56});
  p.activation.W_glu.map() = file.read<double>("W_E_glu", {24, 56}).map().transpose();
  p.activation.b_glu = file.read<double>("b_E_glu", {56});
  p.W_dec = file.read<double>("W_D", {56, 24});
  const auto x = sae::load_npy<double>(folder / "x.npy"), codes = sae::load_npy<double>(folder / "codes.npy"),
             recon = sae::load_npy<double>(folder / "recon.npy");
  REQUIRE(codes.maxCoeff() > 0);
  CHECK(largest_difference(model.encode_dense(x), codes) <= 1e-5 * largest_magnitude(codes));
  CHECK(largest_difference(model.reconstruct(x), recon) <= 1e-5 * largest_magnitude(recon));
}

TEST_CASE("GLU encoders are saved and loaded to the last bit", "[activations][glu][formats]") {
  const TempFolder folder;
  const auto round_trip = [&](auto model, const std::string& architecture) {
    using Loaded = decltype(model);
    CAPTURE(architecture);
    sae::save_saelens(model, folder / architecture);
    CHECK(sae::read_saelens_config(folder / architecture).architecture == architecture);
    const auto loaded = sae::load_saelens<Loaded>(folder / architecture);
    Loaded::Parameters::visit(
        [](std::string_view name, const auto& a, const auto& b) {
          CAPTURE(name);
          CHECK(a == b);
        },
        model.parameters(), loaded.parameters());
    const Dense x = random_rows(rows, width, 8);
    CHECK(loaded.encode(x) == model.encode(x));
    return loaded;
  };
  round_trip(some_model(ReLU{}, true), "glu_standard");
  CHECK(round_trip(some_model(TopK{.k = 7}, false), "glu_topk").activation().inner.k == 7);

  // Ranked by decoder norm: folded as it is written, so that codes are z |d|.
  const auto ranked = some_model(TopK{.k = 7, .rank_by_decoder_norm = true}, true);
  sae::save_saelens(ranked, folder / "ranked");
  const auto folded = sae::load_saelens<Model<TopK>>(folder / "ranked");
  CHECK_FALSE(folded.activation().inner.rank_by_decoder_norm);
  const Dense x = random_rows(rows, width, 8);
  CHECK(mask_of(folded.encode(x)) == mask_of(ranked.encode(x)));
  CHECK(largest_difference(folded.reconstruct(x), ranked.reconstruct(x)) <= 1e-13 * largest_magnitude(x));

  CHECK_THROWS_WITH(sae::load_saelens<Model<ReLU>>(folder / "glu_topk"),
                    Catch::Matchers::ContainsSubstring("does not fit the model it is loaded into, which is \"glu_standard\""));
  CHECK_THROWS_AS((sae::load_saelens<sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, TopK, double>>(folder / "glu_topk")),
                  sae::FileError);
}
