// What is written in the layouts of others is read back as the same SAE; scripts/interop.sh lets their own libraries read it.
#include <sae/formats/save_as.hpp>

#include <string>
#include <vector>

#include "catch_compat.hpp"
#include "peer_codes.hpp"
#include "temp_folder.hpp"

using Catch::Matchers::ContainsSubstring;
using sae::Index, sae::SaeLayout;
using sae_test::peers, sae_test::rows_of, sae_test::require_close;

namespace {

struct Case {
  SaeLayout layout;
  const char* folder;        // of a peer's fixture
  const char* architecture;  // as it is read back
};

}  // namespace

TEST_CASE("save_as: each layout holds what it is said to, with the peer's codes", "[formats][save_as]") {
  const Case c = GENERATE(
      Case{SaeLayout::saelens, "sparsify_topk", "topk"}, Case{SaeLayout::saelens, "dl_gated", "gated"},
      Case{SaeLayout::saelens, "llama_scope_transcoder", "jumprelu_transcoder"},
      Case{SaeLayout::dictionary_learning, "saelens_standard", "standard"},
      Case{SaeLayout::dictionary_learning, "saelens_standard_no_bdec_input", "standard"},
      Case{SaeLayout::dictionary_learning, "saelens_jumprelu", "jumprelu"},
      Case{SaeLayout::dictionary_learning, "gemma_scope_1_stored", "jumprelu"},
      Case{SaeLayout::dictionary_learning, "saelens_gated", "gated"},
      Case{SaeLayout::dictionary_learning, "saelens_topk", "topk"},
      Case{SaeLayout::dictionary_learning, "saelens_topk_rescale", "topk"}, Case{SaeLayout::sparsify, "saelens_topk", "topk"},
      Case{SaeLayout::sparsify, "dl_topk", "topk"}, Case{SaeLayout::sparsify, "sparsify_groupmax", "groupmax"},
      Case{SaeLayout::sparsify, "sparsify_transcode_skip", "topk_skip_transcoder"},
      Case{SaeLayout::sparsify, "sparsify_skip_sae", "topk_skip_transcoder"},
      Case{SaeLayout::gemma_scope, "saelens_jumprelu", "jumprelu"},
      Case{SaeLayout::gemma_scope, "saelens_standard", "jumprelu"}, Case{SaeLayout::gemma_scope, "gemma_scope_2", "jumprelu"});
  CAPTURE(c.folder, c.architecture, sae::to_string(c.layout));
  const sae::AnySae from = sae::load(peers / c.folder);
  TempFolder temp;
  sae::save_as(from, c.layout, temp / "sae");
  const sae::AnySae back = sae::load(temp / "sae");
  CHECK(back.layout == sae::to_string(c.layout));
  CHECK(back.architecture() == c.architecture);
  CHECK(back.warnings.empty());
  const auto x = rows_of(peers / c.folder / "x.npy");
  require_close(back.encode(x).dense(), rows_of(peers / c.folder / "codes.npy"), 1e-5, true);
  require_close(back.reconstruct(x), rows_of(peers / c.folder / "recon.npy"), 1e-5, false);
  // In 16 bits the matrices are rounded once.
  if (c.layout == SaeLayout::gemma_scope) {
    CHECK_THROWS_WITH(sae::save_as(from, c.layout, temp / "half", {.dtype = sae::Dtype::float16}),
                      "gemma_scope is written in float32 or float64, not in float16");
    return;
  }
  sae::save_as(from, c.layout, temp / "half", {.dtype = sae::Dtype::bfloat16});
  const sae::AnySae half = sae::load(temp / "half");
  CHECK(half.dtype == "bfloat16");
  for (Index i = 0; i < half.latents(); ++i)
    for (Index j = 0; j < half.d_out(); ++j)
      REQUIRE(half.W_dec()(i, j) == static_cast<float>(sae::bfloat16(back.W_dec()(i, j))));
}

TEST_CASE("save_as: subtracting b_dec or not is what a layout does, codes stay", "[formats][save_as]") {
  int written = 0;
  for (const bool subtract : {false, true}) {
    for (const auto& activation : {sae::AnyActivation(sae::TopK{.k = 4}), sae::AnyActivation(sae::Gated{}),
                                   sae::AnyActivation(sae::JumpReLU{}), sae::AnyActivation(sae::ReLU{})}) {
      sae::AnyModel model(12, 40, activation, {.subtract_decoder_bias = subtract, .initialization = {.seed = 4}});
      sae::Random random(3);
      sae::AnyModel::Parameters::visit(
          [&](std::string_view name, auto& tensor) {
            for (Index i = 0; i < tensor.size(); ++i)
              tensor[i] += static_cast<float>(name == "threshold" ? 0.1 : 0.3 * random.normal());
          },
          model.parameters());
      const sae::AnySae any(model);
      const sae::Matrix<float> x = 0.7F * sae::Matrix<float>::Random(30, 12);
      sae::Tensor<float> codes(30, 40), rows(30, 12);
      codes.map() = any.encode(x).dense();
      rows.map() = any.reconstruct(x);
      TempFolder temp;
      for (const SaeLayout layout : {SaeLayout::dictionary_learning, SaeLayout::sparsify, SaeLayout::gemma_scope}) {
        CAPTURE(subtract, activation.name, sae::to_string(layout));
        try {
          sae::save_as(any, layout, temp / "sae", {.overwrite = true});
        } catch (const sae::ValueError& error) {
          CHECK_THAT(error.what(), ContainsSubstring("is not written as"));
          continue;
        }
        ++written;
        const sae::AnySae back = sae::load(temp / "sae");
        require_close(back.encode(x).dense(), codes, 1e-5, false);
        require_close(back.reconstruct(x), rows, 1e-5, false);
        std::filesystem::remove_all(temp / "sae");
      }
    }
  }
  CHECK(written == 14);  // topk 2, gated 1, jumprelu 2, relu 2, either way
}

TEST_CASE("save_as: what a layout lacks is refused by name, and nothing appears", "[formats][save_as]") {
  TempFolder temp;
  const auto refused = [&](const char* folder, SaeLayout layout) -> std::string {
    try {
      sae::save_as(sae::load(peers / folder), layout, temp / "sae");
    } catch (const sae::ValueError& error) {
      return error.what();
    }
    return "";
  };
  CHECK(refused("saelens_abstopk_rescale", SaeLayout::sparsify) ==
        "a SAE of abs_topk (abstopk) is not written as sparsify, which has TopK and groupmax, and transcoders of them onto "
        "rows of "
        "the same width");
  CHECK_THAT(refused("saelens_transcoder", SaeLayout::dictionary_learning),
             ContainsSubstring("that is a transcoder (transcoder)"));
  CHECK_THAT(refused("llamascopium_relu_glu_no_bias", SaeLayout::gemma_scope), ContainsSubstring("with a GLU encoder"));
  CHECK_THAT(refused("saelens_standard_layer_norm", SaeLayout::gemma_scope),
             ContainsSubstring("that normalises its rows, layer_norm"));
  CHECK_THAT(refused("saelens_matching_pursuit", SaeLayout::dictionary_learning), ContainsSubstring("AutoEncoderNew"));
  CHECK_THAT(refused("gemma_scope_2_transcoder_affine", SaeLayout::sparsify), ContainsSubstring("jumprelu"));
  CHECK(temp.names().empty());
  CHECK_THROWS_WITH(sae::parse_layout("safetensors"),
                    "layout \"safetensors\" is not written; saelens, dictionary_learning, sparsify and gemma_scope are");
  sae::save_as(sae::load(peers / "saelens_topk"), SaeLayout::sparsify, temp / "sae");
  CHECK_THROWS_AS(sae::save_as(sae::load(peers / "saelens_topk"), SaeLayout::sparsify, temp / "sae"), sae::FileError);
  sae::save_as(sae::load(peers / "saelens_topk"), SaeLayout::sparsify, temp / "sae", {.overwrite = true});
}

TEST_CASE("save_as: weights in shards are read as one file is", "[formats][save_as][shards]") {
  const sae::AnySae from = sae::load(peers / "saelens_topk");
  for (const auto& [layout, stem] : {std::pair{SaeLayout::saelens, "sae_weights"}, std::pair{SaeLayout::sparsify, "sae"}}) {
    CAPTURE(stem);
    TempFolder temp;
    const std::string file = std::string(stem) + ".safetensors";
    sae::save_as(from, layout, temp / "one", {.shard_bytes = 1 << 20});
    sae::save_as(from, layout, temp / "many", {.shard_bytes = 1000});
    CHECK(std::filesystem::exists(temp / "one" / file));
    CHECK_FALSE(std::filesystem::exists(temp / "many" / file));
    const sae::AnySae one = sae::load(temp / "one"), many = sae::load(temp / "many");
    CHECK(many.layout == one.layout);
    CHECK(many.W_enc() == one.W_enc());
    CHECK(many.W_dec() == one.W_dec());
    CHECK(many.b_enc() == one.b_enc());
    CHECK(many.warnings.empty());
    // The index, or a file that it names, or the config stands for all.
    const std::string index = file + ".index.json";
    const std::string shard = sae::read_json(temp / "many" / index).at("weight_map").at("W_dec");
    for (const std::string& name : {index, shard, std::string("cfg.json")}) {
      CAPTURE(name);
      CHECK(sae::load(temp / "many" / name).W_dec() == one.W_dec());
    }
    using Model = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::TopK>;
    CHECK(sae::load<Model>(temp / "many").parameters().W_dec.map() == one.W_dec());
    sae::save_as(from, layout, temp / "many", {.overwrite = true});
    CHECK(std::filesystem::exists(temp / "many" / file));
    CHECK_FALSE(std::filesystem::exists(temp / "many" / (file + ".index.json")));
  }
  TempFolder temp;
  CHECK_THROWS_WITH(sae::save_as(from, SaeLayout::dictionary_learning, temp / "sae", {.shard_bytes = 1000}),
                    "dictionary_learning is written as one file; shards are of saelens and sparsify");
  // Of a name that nobody gave before.
  sae::SafetensorsWriter writer;
  const std::vector<float> w(6, 1), b_enc(3), b_dec(2);
  writer.add("W_enc", {3, 2}, w);
  writer.add("W_dec", {3, 2}, w);
  writer.add("b_enc", {3}, b_enc);
  writer.add("b_dec", {2}, b_dec);
  writer.save_sharded(temp / "layer_4.safetensors", 30);
  CHECK(sae::load(temp.path()).layout == "mwhanna");
  writer.save(temp / "layer_5.safetensors");
  CHECK_THROWS_WITH(sae::load(temp.path()), ContainsSubstring("holds 2 files of weights (layer_4.safetensors.index.json, "
                                                              "layer_5.safetensors)"));
}
