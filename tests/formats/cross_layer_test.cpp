// Cross-layer transcoders in files: round trips to the last bit, and what is refused.
#include <sae/activations/any_activation.hpp>
#include <sae/formats/cross_layer.hpp>

#include <fstream>
#include <limits>
#include <string>

#include "catch_compat.hpp"
#include "reference.hpp"
#include "temp_folder.hpp"

namespace {

using namespace sae_test;
using Catch::Matchers::ContainsSubstring;
using nlohmann::json;
template <class Activation, class Scalar = double>
using Model = sae::CrossLayerTranscoder<Activation, Scalar>;
constexpr sae::Index L = 3, d = 4, F = 10;

template <class M>
void fill(M& model) {
  std::uint64_t seed = 1;
  M::Parameters::visit(
      [&](std::string_view, auto& tensor) {
        tensor.map() = random_rows(tensor.rows(), tensor.cols(), seed++, 0.5).template cast<typename M::Scalar>();
      },
      model.parameters());
  model.parameters().constrain();
}
template <class M>
void require_same(const M& a, const M& b) {
  M::Parameters::visit(
      [](std::string_view name, const auto& s, const auto& t) {
        CAPTURE(name);
        CHECK(s == t);
      },
      a.parameters(), b.parameters());
}

}  // namespace

TEST_CASE("a cross-layer transcoder is saved and loaded to the last bit", "[formats][cross_layer]") {
  const TempFolder folder;
  const auto round_trip = [&](auto model, const std::string& name) {
    using M = decltype(model);
    CAPTURE(name);
    fill(model);
    sae::save_cross_layer(model, folder / name, {.model_name = "toy"});
    const auto loaded = sae::load_cross_layer<M>(folder / name / "cfg.json");
    require_same(loaded, model);
    const auto x = random_rows(7, L * d, 99).template cast<typename M::Scalar>().eval();
    CHECK(loaded.predict(x) == model.predict(x));
    return loaded;
  };
  CHECK(round_trip(Model<sae::TopK>(L, d, F, {.k = 3}), "topk").activation().k == 3);
  round_trip(Model<sae::JumpReLU, float>(L, d, F), "jumprelu");
  round_trip(Model<sae::Gated>(L, d, F), "gated");
  round_trip(Model<sae::AnyActivation>(L, d, F, sae::ReLU{}), "relu");
  CHECK(round_trip(Model<sae::TopK>(L, d, F, {.k = 2, .rank_by_decoder_norm = true}, {.decoder_norm = 1}), "ranked")
            .activation()
            .rank_by_decoder_norm);
  std::ifstream in(folder / "topk" / "cfg.json");
  const json config = json::parse(in);
  CHECK(config.at("architecture") == "topk_cross_layer_transcoder");
  CHECK(config.at("n_layers") == 3);
  CHECK(config.at("metadata").at("model_name") == "toy");
  // In float what was in double, whatever activation it has.
  const auto any = sae::load_cross_layer<Model<sae::AnyActivation, float>>(folder / "topk");
  CHECK(any.activation().get<sae::TopK>()->k == 3);
}

TEST_CASE("a cross-layer transcoder of many bytes is saved in several files", "[formats][cross_layer][shards]") {
  const TempFolder folder;
  Model<sae::TopK> model(L, d, F, {.k = 3});
  fill(model);
  sae::save_cross_layer(model, folder / "clt", {}, {}, 1000);
  const auto index = folder / "clt" / "sae_weights.safetensors.index.json";
  REQUIRE(sae::read_json(index).at("weight_map").size() == 10);
  for (const auto& path : {folder / "clt", index, folder / "clt" / "cfg.json"})
    require_same(sae::load_cross_layer<Model<sae::TopK>>(path), model);
}

TEST_CASE("what is no cross-layer transcoder is refused in one sentence", "[formats][cross_layer]") {
  const TempFolder folder;
  Model<sae::TopK> model(L, d, F, {.k = 3});
  fill(model);
  sae::save_cross_layer(model, folder / "t");
  CHECK_THROWS_AS(sae::save_cross_layer(model, folder / "t"), sae::FileError);
  CHECK_NOTHROW(sae::save_cross_layer(model, folder / "t", {}, {.overwrite = true}));
  const auto refused = [&](const std::string& text) {
    CAPTURE(text);
    CHECK_THROWS_WITH(sae::load_cross_layer<Model<sae::TopK>>(folder / "t"), ContainsSubstring(text));
  };
  CHECK_THROWS_WITH(sae::load_cross_layer<Model<sae::ReLU>>(folder / "t"),
                    ContainsSubstring("does not fit the model it is loaded into, which is \"standard\""));
  const auto path = folder / "t" / "cfg.json";
  std::ifstream in(path);
  const json whole = json::parse(in);
  const auto with = [&](const std::string& field, const json& value) {
    json changed = whole;
    changed[field] = value;
    std::ofstream(path) << changed;
  };
  with("architecture", "topk");
  refused("is no cross-layer transcoder");
  with("n_layers", 0);
  refused("n_layers");
  with("n_layers", 1'000'000);
  refused("layer999999.W_dec");
  with("n_layers", 2);
  refused("layer1.W_dec");
  with("d_sae", 11);
  refused("W_dec");
  with("k", 11);
  refused("k");
  with("architecture", 7);
  refused("architecture");

  model.parameters().layers[1].W_enc[3] = std::numeric_limits<double>::infinity();
  CHECK_THROWS_WITH(sae::save_cross_layer(model, folder / "bad"),
                    ContainsSubstring("layer1.W_enc holds numbers that are not finite"));
  CHECK_FALSE(std::filesystem::exists(folder / "bad"));
  const Model<sae::AnyActivation> training(L, d, F, sae::BatchTopK{.k = 2});
  CHECK_THROWS_WITH(sae::save_cross_layer(training, folder / "bad"), ContainsSubstring("is not written as it is"));
}
