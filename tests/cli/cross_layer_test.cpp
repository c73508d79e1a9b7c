// sae inspect of cross-layer transcoders, whole and by a layer; other verbs take a layer as any transcoder.
#include <sae/files/npy.hpp>
#include <sae/files/safetensors.hpp>

#include <limits>
#include <span>

#include "catch_compat.hpp"
#include "cli_test.hpp"

#ifdef SAE_TEST_PROGRAM
using Catch::Matchers::ContainsSubstring;
using namespace sae_test;

namespace {

constexpr sae::Index F = 6, D = 3;

/// Two layers as circuit-tracer keeps them.
void write_layers(const Workplace& work, const std::string& folder, float bias = 0.5F) {
  std::filesystem::create_directory(work.at(folder));
  for (sae::Index l = 0; l < 2; ++l) {
    const std::string n = std::to_string(l);
    const std::vector<float> W_enc(F * D, 0.25F), b(F, bias), W_dec(static_cast<std::size_t>(F * (2 - l) * D), 1.0F);
    sae::SafetensorsWriter encoder, decoder;
    encoder.add("W_enc_" + n, {F, D}, std::span<const float>(W_enc));
    encoder.add("b_enc_" + n, {F}, std::span<const float>(b));
    encoder.add("b_dec_" + n, {D}, std::span<const float>(b.data(), D));
    encoder.save(work.at(folder + "/W_enc_" + n + ".safetensors"));
    decoder.add("W_dec_" + n, {F, 2 - l, D}, std::span<const float>(W_dec));
    decoder.save(work.at(folder + "/W_dec_" + n + ".safetensors"));
  }
  write_text(work.at(folder + "/config.yaml"),
             "model_name: m\nmodel_kind: cross_layer_transcoder\nfeature_input_hook: hook_resid_mid\n");
}

}  // namespace

TEST_CASE("sae inspect: a cross-layer transcoder and one layer of it", "[cli][cross_layer]") {
  const Workplace work;
  write_layers(work, "clt");
  const auto run = run_sae({"inspect", work.at("clt"), "--json", "--check"});
  REQUIRE(run.code == 0);
  const auto found = nlohmann::ordered_json::parse(run.out);
  CHECK(keys_of(found) ==
        Words{"layout", "architecture", "d_in", "d_out", "latents", "layers", "dtype", "tensors", "config", "warnings"});
  CHECK(found.at("layout") == "circuit_tracer");
  CHECK(found.at("architecture") == "standard_cross_layer_transcoder");
  CHECK(found.at("layers") == 2);
  CHECK(found.at("d_in") == D);
  CHECK(found.at("latents") == F);
  CHECK(found.at("tensors").at("W_dec_0.safetensors: W_dec_0") == nlohmann::json{F, 2, D});
  CHECK(found.at("config").at("model_name") == "m");
  const auto table = run_sae({"inspect", work.at("clt"), "--check"});
  CHECK_THAT(table.out, ContainsSubstring("standard_cross_layer_transcoder (relu)"));
  CHECK_THAT(table.out, ContainsSubstring("all finite"));

  const auto layer = json_of(run_sae({"inspect", work.at("clt/W_enc_0.safetensors"), "--json", "--check"}));
  CHECK(layer.at("architecture") == "transcoder");
  CHECK(layer.at("d_out") == 2 * D);
  REQUIRE(layer.at("warnings").size() == 1);
  CHECK_THAT(layer.at("warnings")[0].get<std::string>(), ContainsSubstring("layer 0 of a cross-layer transcoder of 2"));

  sae::save_npy(work.at("x.npy"), sae::Matrix<float>(sae::Matrix<float>::Ones(4, D)));
  const Words encode{"encode", "--data", work.at("x.npy"), "--force", "--out", work.at("codes.npy"), "--sae"};
  CHECK(run_sae(with(encode, {work.at("clt/W_enc_1.safetensors")})).code == 0);
  const auto refused = run_sae(with(encode, {work.at("clt")}));
  CHECK(refused.code == 1);
  CHECK_THAT(refused.error(), ContainsSubstring("is a cross-layer transcoder, which load_cross_layer"));

  write_layers(work, "nan", std::numeric_limits<float>::quiet_NaN());
  CHECK(run_sae({"inspect", work.at("nan")}).code == 0);
  CHECK_THAT(run_sae({"inspect", work.at("nan"), "--check"}).error(),
             ContainsSubstring("tensor b_enc_0: the number at [0] is NaN"));
}
#endif
