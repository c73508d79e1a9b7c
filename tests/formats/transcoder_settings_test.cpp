// Transcoders of mwhanna and of circuit-tracer: what the YAML beside their weights says, by hand.
#include <sae/formats/load.hpp>

#include <fstream>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "catch_compat.hpp"
#include "reference.hpp"
#include "temp_folder.hpp"

namespace {

using Catch::Matchers::ContainsSubstring;
using sae::Index;
namespace fs = std::filesystem;

constexpr Index F = 9, D = 5, B = 20;

/// A transcoder's numbers, in the files of a folder that has the rest as a test writes it.
struct Transcoder {
  std::map<std::string, sae::Tensor<float>> tensors;
  sae::Matrix<float> x = sae_test::random_rows(B, D, 4).cast<float>();

  explicit Transcoder(Index latents = F) {
    sae::Random random(8);
    const auto add = [&](const char* name, Index rows, Index cols) {
      sae::Tensor<float> tensor(rows, cols);
      for (Index i = 0; i < tensor.size(); ++i) tensor[i] = static_cast<float>(random.normal());
      tensors[name] = std::move(tensor);
    };
    add("W_enc", latents, D);
    add("W_dec", latents, D);
    add("b_enc", 1, latents);
    add("b_dec", 1, D);
  }
  fs::path save(const fs::path& path, std::int64_t k = 0) const {
    fs::create_directories(path.parent_path());
    sae::SafetensorsWriter out;
    for (const auto& [name, tensor] : tensors)
      out.add(name, tensor.rows() == 1 ? std::vector<Index>{tensor.cols()} : std::vector<Index>{tensor.rows(), tensor.cols()},
              tensor);
    const std::vector<std::int64_t> ks{k};
    if (k != 0) out.add("k", {}, std::span<const std::int64_t>(ks));
    out.save(path, {.overwrite = true});
    return path;
  }
  sae::Matrix<float> pre_activations() const {
    return (x * tensors.at("W_enc").map().transpose()).rowwise() + tensors.at("b_enc").map().row(0);
  }
  sae::Matrix<float> predictions(const sae::Matrix<float>& f) const {
    return (f * tensors.at("W_dec").map()).rowwise() + tensors.at("b_dec").map().row(0);
  }
};
void write(const fs::path& path, const std::string& text) { std::ofstream(path) << text; }
void require_same(const sae::Matrix<float>& is, const sae::Matrix<float>& want) {
  REQUIRE(is.rows() == want.rows());
  REQUIRE(is.cols() == want.cols());
  CHECK((is - want).cwiseAbs().maxCoeff() <= 1e-5F * want.cwiseAbs().maxCoeff());
}
std::string refused(const fs::path& path) {
  try {
    (void)sae::load(path);
  } catch (const sae::FileError& error) {
    CHECK(std::string(error.what()).find('\n') == std::string::npos);
    return error.what();
  }
  return "nothing was refused";
}

const char* const config =
    "# of the whole set\nmodel_name: \"Qwen/Qwen3-4B\"\nmodel_kind: \"transcoder_set\"\nfeature_input_hook: \"ln2.hook_in\"\n"
    "feature_output_hook: \"mlp.hook_out\"\nscan: [a, b]\n";
const char* const training =
    "wandb_version: 1\n\n_wandb:\n    desc: null\n    value:\n        python_version: 3.11.9\n        t:\n            1:\n"
    "            - 1\n            - 5\nact_fn:\n    desc: null\n    value: relu\nd_model:\n    desc: null\n    value: 5\n"
    "d_feature:\n    value: 9\nbatch_size:\n    value: 1024\n";

}  // namespace

TEST_CASE("load: settings of a set of transcoders stand in the YAML beside them", "[formats][load]") {
  const Transcoder by;
  const sae::Matrix<float> want = by.predictions(by.pre_activations().cwiseMax(0.0F));
  for (const char* const name : {"wandb-config.yaml", "wanb-config.yaml"}) {
    TempFolder temp;
    const fs::path file = by.save(temp / "layer_7.safetensors");
    write(temp / "config.yaml", config);
    write(temp / name, training);
    for (const fs::path& path : {file, temp.path(), temp / "config.yaml"}) {
      const sae::AnySae sae = sae::load(path);
      CHECK(sae.layout == "mwhanna");
      CHECK(sae.architecture() == "transcoder");
      CHECK(sae.metadata.model_name == "Qwen/Qwen3-4B");
      CHECK(sae.metadata.hook_name == "blocks.7.ln2.hook_in");
      CHECK(sae.metadata.other.at("hook_name_out") == "blocks.7.mlp.hook_out");
      CHECK(sae.config.at("scan").size() == 2);
      CHECK(sae.warnings.empty());
      require_same(sae.reconstruct(by.x), want);
    }
    write(temp / name, "d_model: {value: 6}\n");
    CHECK_THAT(refused(file), ContainsSubstring(std::string(name) + ": d_model = 6 is not that of the tensors, 5"));
    write(temp / name, "d_feature: 9000000000000000000\n");
    CHECK_THAT(refused(file), ContainsSubstring("d_feature = 9000000000000000000 is not that of the tensors, 9"));
    write(temp / name, "act_fn: {value: gelu}\n");
    CHECK_THAT(refused(file), ContainsSubstring("act_fn = \"gelu\" is not \"relu\" or \"topk\", as there are no thresholds"));
    write(temp / name, "notes: |\n  several\n  lines\n");  // a training writes what it likes
    const sae::AnySae sae = sae::load(file);
    REQUIRE(sae.warnings.size() == 1);
    CHECK_THAT(sae.warnings[0], ContainsSubstring("line 1 begins a text of several lines"));
    CHECK_THAT(sae.warnings[0], ContainsSubstring("; what it says is passed over"));
  }
}

TEST_CASE("load: what a set of transcoders says wrongly is refused in one sentence", "[formats][load]") {
  TempFolder temp;
  Transcoder by;
  const fs::path file = by.save(temp / "layer_0.safetensors");
  const auto says = [&](const std::string& yaml) {
    write(temp / "config.yaml", yaml);
    return refused(file);
  };
  CHECK(says(config) == "nothing was refused");
  CHECK_THAT(says("model_kind: cross_layer_transcoder\n"), ContainsSubstring("model_kind = \"cross_layer_transcoder\" is not"));
  CHECK_THAT(says("- 1\n"), ContainsSubstring("config.yaml: is no map of settings"));
  CHECK_THAT(says("model_name: 3\n"), ContainsSubstring("config.yaml: model_name = 3 is not"));
  CHECK_THAT(says("feature_input_hook: [1]\n"), ContainsSubstring("config.yaml: feature_input_hook = [1] is not"));
  CHECK_THAT(says("activation: swish\n"), ContainsSubstring("activation = \"swish\" is not \"relu\" or \"topk\""));
  CHECK_THAT(says("activation: topk\n"),
             ContainsSubstring("config.yaml: activation is topk and nothing says its k; write \"k: <number>\""));
  CHECK_THAT(says("activation: topk\nk: 10\n"), ContainsSubstring("k = 10 is not an integer in [1, 9]"));
  CHECK_THAT(says("activation: topk\nk: 99999999999999999999\n"), ContainsSubstring("k = 1e+20 is not an integer in [1, 9]"));
  write(temp / "wandb-config.yaml", "act_fn: {value: topk}\n");
  CHECK_THAT(says("activation: relu\n"), ContainsSubstring("act_fn = \"topk\" is not \"relu\", as config.yaml says"));
  fs::remove(temp / "wandb-config.yaml");
  by.save(file, 4);
  CHECK_THAT(says("activation: topk\nk: 3\n"), ContainsSubstring("tensor k should be one integer and 3, as config.yaml says"));
  CHECK(says("activation: topk\nk: 4\n") == "nothing was refused");
  by.save(file, -1);
  CHECK_THAT(says("activation: topk\n"), ContainsSubstring("tensor k should be one integer in [1, 9]"));
  by.tensors["activation_function.threshold"] = sae::Tensor<float>(1, F);
  by.save(file);
  CHECK_THAT(says("activation: topk\nk: 4\n"),
             ContainsSubstring("activation = \"topk\" is not \"jump_relu\", as there are thresholds"));
  by.tensors["activation_function.threshold"][2] = -1;
  by.save(file);
  CHECK_THAT(says(config),
             ContainsSubstring("tensor activation_function.threshold: the number at [2] is -1; a threshold below 0"));

  // Several layers: how to name one.
  by.save(temp / "layer_1.safetensors");
  CHECK_THAT(refused(temp.path()),
             ContainsSubstring(
                 "holds 2 files of weights (layer_0.safetensors, layer_1.safetensors); name the one that is meant, as in " +
                 file.string()));
  TempFolder elsewhere;
  write(elsewhere / "config.yaml",
        "model_kind: transcoder_set\ntranscoders:\n- id: a\n  layer: 0\n  filepath: "
        "\"hf://google/gemma-scope/layer_0/params.npz?revision=x\"\n"
        "- hf://google/gemma-scope/layer_1/params.npz\n");
  CHECK_THAT(refused(elsewhere.path()),
             ContainsSubstring("config.yaml: lists 2 transcoders, one a layer, that lie elsewhere; name the "
                               "one that is meant: google/gemma-scope/layer_0/params.npz"));
  CHECK(refused(elsewhere / "config.yaml") == refused(elsewhere.path()));
}

TEST_CASE("load: transcoders of circuit-tracer with thresholds, a k, or a transposed decoder", "[formats][load]") {
  TempFolder temp;
  {
    Transcoder by;
    sae::Tensor<float>& theta = by.tensors["activation_function.threshold"] = sae::Tensor<float>(1, F);
    for (Index i = 0; i < F; ++i) theta[i] = 0.1F * static_cast<float>(i);
    const sae::AnySae sae = sae::load(by.save(temp / "jumps" / "layer_2.safetensors"));
    CHECK(sae.architecture() == "jumprelu_transcoder");
    CHECK(sae.metadata.hook_name == "blocks.2.mlp.hook_in");
    sae::Matrix<float> f = by.pre_activations();
    for (Index b = 0; b < B; ++b)
      for (Index i = 0; i < F; ++i)
        if (f(b, i) <= theta[i]) f(b, i) = 0;
    require_same(sae.encode(by.x).dense(), f);
    require_same(sae.reconstruct(by.x), by.predictions(f));
  }
  const Transcoder by;
  const fs::path file = by.save(temp / "top" / "layer_2.safetensors", 3);
  write(temp / "top" / "config.yaml", "activation: topk\n");
  const sae::AnySae top = sae::load(file);
  CHECK(top.activation() == "topk, k = 3");
  CHECK(top.warnings.empty());
  by.save(file);
  write(temp / "top" / "config.yaml", "model_name: x\n");
  write(temp / "top" / "wandb-config.yaml", "act_fn: topk\n");
  CHECK_THAT(refused(file), ContainsSubstring("nothing says its k"));
  write(temp / "top" / "config.yaml", "k: 4\n");
  CHECK(sae::load(file).activation() == "topk, k = 4");

  // The one set that was published without its k.
  const fs::path crv = Transcoder(130).save(temp / "crv-8b-instruct-transcoders" / "layer_0.safetensors");
  write(temp / "crv-8b-instruct-transcoders" / "config.yaml", "activation: \"topk\"\n");
  CHECK(sae::load(crv).activation() == "topk, k = 128");

  // Before 2025-07 the decoder was the transpose.
  Transcoder old;
  sae::Tensor<float> turned(D, F);
  turned.map() = old.tensors["W_dec"].map().transpose();
  const sae::Matrix<float> want = old.predictions(old.pre_activations().cwiseMax(0.0F));
  old.tensors["W_dec"] = std::move(turned);
  require_same(sae::load(old.save(temp / "qwen3-14b-transcoders" / "layer_3.safetensors")).reconstruct(old.x), want);
  CHECK(sae::load(temp / "qwen3-14b-transcoders").metadata.model_name == "Qwen/Qwen3-14B");
}
