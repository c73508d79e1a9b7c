#include <sae/data/indexed_source.hpp>
#include <sae/files/npy.hpp>
#include <sae/files/safetensors.hpp>
#include <sae/models/jump_relu_conversion.hpp>
#include <sae/training/trainer.hpp>

#include <cmath>
#include <filesystem>
#include <string>

#include "catch_compat.hpp"
#include "reference.hpp"

namespace {

using sae::BatchTopK;
using sae::Index;
using namespace sae_test;
namespace fs = std::filesystem;

template <class Scalar = double>
using Model = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, BatchTopK, Scalar>;

const fs::path peers = fs::path(SAE_TEST_DATA) / "peers" / "inference";

template <class Model>
void set_threshold(Model& model, double threshold) {
  auto& state = model.parameters().activation.threshold_state;
  state[0] = threshold;
  state[1] = 1;
}
double threshold_of(const Model<>& model) { return model.activation().threshold(model.parameters().activation); }

}  // namespace

// ---- from BatchTopK

TEST_CASE("BatchTopK as JumpReLU: active where the key is above the threshold", "[models][conversion]") {
  for (const bool by_norm : {false, true})
    for (const bool subtract : {true, false}) {
      CAPTURE(by_norm, subtract);
      Model<> model(6, 70, {.k = 4, .rank_by_decoder_norm = by_norm}, {.subtract_decoder_bias = subtract});
      randomise(model, 3);
      set_threshold(model, 0.8);
      const Dense x = random_rows(50, 6, 4);
      const NaiveModel twin = naive(model);
      const Dense z = naive_pre_activations(twin, x);
      const auto norms = naive_norms(twin.W_dec);
      Mask active = Mask::Zero(50, 70);
      for (Index b = 0; b < 50; ++b)
        for (Index i = 0; i < 70; ++i)
          active(b, i) = z(b, i) * (by_norm ? norms[static_cast<std::size_t>(i)] : 1.0) > 0.8 ? 1 : 0;
      REQUIRE(active.cast<int>().sum() > 20);
      const auto converted = sae::to_jump_relu(model);
      CHECK(converted.subtracts_decoder_bias() == subtract);
      CHECK(mask_of(converted.encode(x)) == active);
      CHECK(largest_difference(converted.reconstruct(x), naive_decode(twin, naive_codes(z, active))) <= 1e-13);
      if (by_norm) CHECK(largest_difference(converted.W_dec().rowwise().norm(), Dense::Ones(70, 1)) <= 1e-14);
    }
}

TEST_CASE("BatchTopK as JumpReLU: refused before a batch was counted", "[models][conversion]") {
  Model<> model(3, 5, {.k = 2});
  CHECK_THROWS_WITH(sae::to_jump_relu(model),
                    "to_jump_relu: the running threshold of the BatchTopK is nan, not in [0, infinity): no batch of a training "
                    "was counted yet");
  set_threshold(model, -1);
  CHECK_THROWS_AS(sae::to_jump_relu(model), sae::ValueError);
  set_threshold(model, 0);
  CHECK_NOTHROW(sae::to_jump_relu(model));
}

TEST_CASE("BatchTopK as JumpReLU: fixed sizes stay fixed, in float", "[models][conversion]") {
  sae::SparseAutoencoder<4, 9, BatchTopK> model({.k = 2});
  set_threshold(model, 0.25);
  const sae::SparseAutoencoder<4, 9, sae::JumpReLU> converted = sae::to_jump_relu(model);
  CHECK(converted.parameters().activation.threshold.map() == sae::Matrix<float>::Constant(1, 9, 0.25f));
  CHECK(converted.parameters().W_enc == model.parameters().W_enc);
}

TEST_CASE("a trained BatchTopK has k latents per row as JumpReLU, in the units of raw rows", "[models][conversion]") {
  for (const bool by_norm : {false, true}) {
    Model<> model(8, 64, {.k = 6, .rank_by_decoder_norm = by_norm, .threshold_rate = 0.1});
    const Dense rows = random_rows(4000, 8, 3, 7);  // rows 7 times as long as the scale that is trained on
    sae::Trainer trainer(model, {.steps = 60, .batch = 100, .learning_rate = 1e-3, .normalisation = sae::Normalisation::sqrt_d},
                         sae::Objective<>{});
    sae::MatrixSource<double> source(rows);
    REQUIRE(trainer.fit(source) == sae::FitStatus::finished);
    const Dense x = random_rows(1000, 8, 4, 7);
    const auto l0 = [&](const auto& m) { return static_cast<double>(m.encode(x).size()) / 1000; };
    CHECK(l0(model) == 6);
    CHECK(std::abs(l0(sae::to_jump_relu(model)) - 6) < 0.5);
    auto forgotten = model;
    set_threshold(forgotten, 7 * threshold_of(model));  // a threshold in the units of the scaled rows
    CHECK(l0(sae::to_jump_relu(forgotten)) < 3);
  }
}

TEST_CASE("an input scale is folded before or after the conversion, as SAELens folds it now", "[models][conversion][peers]") {
  const fs::path folder = peers / "saelens_fold_batchtopk";
  const double scale = 1.75;
  const auto load = [&](const std::string& name) {
    const sae::SafetensorsFile file(folder / name / "sae_weights.safetensors");
    Model<> model(24, 56, {.k = 6, .rank_by_decoder_norm = true});
    auto& p = model.parameters();
    p.W_enc.map() = file.read<double>("W_enc", {24, 56}).map().transpose();
    p.b_enc = file.read<double>("b_enc", {56});
    p.W_dec = file.read<double>("W_dec", {56, 24});
    p.b_dec = file.read<double>("b_dec", {24});
    set_threshold(model, file.values<double>("topk_threshold")[0]);
    return model;
  };
  const auto x = sae::load_npy<double>(folder / "x.npy");
  const Dense scaled = scale * x;
  const Model<> before = load("before");
  Model<> ours = before, peer = load("scale_folded");
  ours.fold_input_scale(scale);

  // The peer's own outputs. It divides W_dec by s where we divide biases and codes: codes z |d| are the same.
  const auto keys = [](const Model<>& m, const Dense& rows) {
    const Dense norms = m.W_dec().rowwise().norm().transpose();
    return Dense(m.encode_dense(rows).array().rowwise() * norms.row(0).array());
  };
  CHECK(largest_difference(keys(before, scaled), sae::load_npy<double>(folder / "codes.npy")) <= 1e-5);
  CHECK(largest_difference(keys(ours, x), sae::load_npy<double>(folder / "codes_scale_folded.npy")) <= 1e-5);
  CHECK(largest_difference(ours.reconstruct(x), sae::load_npy<double>(folder / "recon_scale_folded.npy")) <= 1e-5);
  CHECK(threshold_of(before) > 0.1);
  CHECK(threshold_of(ours) == Approx(threshold_of(peer)).epsilon(1e-6));
  CHECK(threshold_of(ours) == Approx(threshold_of(before) / scale).epsilon(1e-12));

  const auto want = sae::to_jump_relu(before);
  auto after = want;
  after.fold_input_scale(scale);
  const Mask active = mask_of(want.encode(scaled));
  REQUIRE(active.cast<int>().sum() > 0);
  CHECK(mask_of(sae::to_jump_relu(ours).encode(x)) == active);
  CHECK(mask_of(after.encode(x)) == active);
  CHECK(mask_of(sae::to_jump_relu(peer).encode(x)) == active);
  CHECK(largest_difference(sae::to_jump_relu(ours).reconstruct(x), want.reconstruct(scaled) / scale) <= 1e-12);

  set_threshold(ours, threshold_of(before));  // the factor s that SAELens once forgot
  CHECK(mask_of(sae::to_jump_relu(ours).encode(x)) != active);
}

TEST_CASE("BatchTopK as JumpReLU is what SAELens saves for inference", "[models][conversion][peers]") {
  const fs::path folder = peers / "saelens_batchtopk_inference";
  const sae::SafetensorsFile file(folder / "sae_weights.safetensors");
  const auto vector = [&](const char* name) {
    const sae::NpyArray array(folder / name);
    const auto values = array.values<double>();
    return Dense(sae::ConstMatrixMap<double>(values.data(), 1, static_cast<Index>(values.size())));
  };
  Model<> model(24, 56, {.k = 6, .rank_by_decoder_norm = true});
  auto& p = model.parameters();
  p.W_enc.map() = sae::load_npy<double>(folder / "train.W_enc.npy").transpose();
  p.b_enc.map() = vector("train.b_enc.npy");
  p.W_dec.map() = sae::load_npy<double>(folder / "train.W_dec.npy");
  p.b_dec.map() = vector("train.b_dec.npy");
  const auto thresholds = file.read<double>("threshold", {56});
  set_threshold(model, thresholds[0]);
  const auto got = sae::to_jump_relu(model);
  const auto& q = got.parameters();
  CHECK(largest_difference(Dense(q.W_enc.map().transpose()), file.read<double>("W_enc", {24, 56}).map()) <= 1e-6);
  CHECK(largest_difference(q.b_enc.map(), file.read<double>("b_enc", {56}).map()) <= 1e-6);
  CHECK(largest_difference(q.W_dec.map(), file.read<double>("W_dec", {56, 24}).map()) <= 1e-6);
  CHECK(q.activation.threshold == thresholds);
  const auto x = sae::load_npy<double>(folder / "x.npy");
  const auto codes = sae::load_npy<double>(folder / "codes.npy");
  REQUIRE((codes.array() != 0).count() > 10);
  CHECK(largest_difference(got.encode_dense(x), codes) <= 1e-5);
  CHECK(largest_difference(got.reconstruct(x), sae::load_npy<double>(folder / "recon.npy")) <= 1e-5);
}
