// Temporal SAEs in files: SAELens' layout and their authors' own, written and refused.
#include <sae/formats/load.hpp>
#include <sae/formats/save_as.hpp>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "catch_compat.hpp"
#include "peer_codes.hpp"
#include "temp_folder.hpp"

namespace {

namespace fs = std::filesystem;
using Catch::Matchers::ContainsSubstring;
using sae::Index;
using sae_test::peers, sae_test::rows_of, sae_test::require_close;
using Temporal = sae::TemporalSae<float>;

const fs::path fixture = peers / "saelens_temporal";
constexpr Index sequence = 8;

/// compute(sequence) of each sequence of the fixture, one below the other.
template <class Compute>
sae::Matrix<float> by_sequences(const Compute& compute) {
  const auto x = rows_of(fixture / "x.npy");
  sae::Matrix<float> out;
  for (Index first = 0; first < x.rows(); first += sequence) {
    const sae::Matrix<float> part = compute(sae::Batch<float>(x.row(first), sequence, x.cols()));
    if (first == 0) out.resize(x.rows(), part.cols());
    out.middleRows(first, sequence) = part;
  }
  return out;
}
void require_like_peer(const sae::AnySae& sae) {
  require_close(by_sequences([&](const auto& x) { return sae.encode(x).dense(); }), rows_of(fixture / "codes.npy"), 1e-5, true);
  require_close(by_sequences([&](const auto& x) { return sae.reconstruct(x); }), rows_of(fixture / "recon.npy"), 1e-5, false);
}
std::string says(const fs::path& path) {
  try {
    (void)sae::load(path);
  } catch (const sae::FileError& error) {
    CHECK(std::string(error.what()).find('\n') == std::string::npos);
    return error.what();
  }
  return "";
}

const std::string conf = R"(seed: 42
data:
  context_length: 8
  dtype: "bfloat16"
  hf_name: "a/corpus"
llm:
  model_hf_name: "a/model"
  dimin: 24
sae:
  sae_type: 'temporal'
  sae_diff_type: 'topk' # or relu
  tied_weights: False
  exp_factor: 2.34
  kval_topk: 5
  n_heads: 2
  n_attn_layers: 2
  bottleneck_factor: 4
  scaling_factor: 0.7
)";

/// The fixture as its authors publish such a SAE. \param tied  without E
fs::path publish(const fs::path& folder, const std::string& text, bool tied = false) {
  fs::create_directories(folder);
  std::ofstream(folder / "conf.yaml") << text;
  const sae::SafetensorsFile from(fixture / "sae_weights.safetensors");
  sae::SafetensorsWriter out;
  std::vector<sae::Tensor<float>> kept;
  for (const auto& [name, tensor] : from.tensors()) {
    if (tied && name == "W_enc") continue;
    std::vector<Index> shape = tensor.shape;
    if (name == "b_dec") shape = {1, shape[0]};  // as torch has it there
    out.add(name == "W_dec"   ? "D"
            : name == "W_enc" ? "E"
            : name == "b_dec" ? "b"
                              : name,
            shape, kept.emplace_back(from.read<float>(name, tensor.shape)));
  }
  out.save(folder / "latest_ckpt.safetensors");
  return folder;
}
std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const std::size_t at = text.find(from);
  REQUIRE(at != std::string::npos);
  return text.replace(at, from.size(), to);
}

}  // namespace

TEST_CASE("load: SAELens' temporal SAE computes what the peer does, sequence by sequence", "[formats][temporal]") {
  const sae::AnySae sae = sae::load(fixture);
  require_like_peer(sae);
  CHECK(sae.warnings.empty());
  CHECK(sae.layout == "saelens");
  CHECK(sae.architecture() == "temporal");
  CHECK(sae.activation() == "topk, k = 5");
  CHECK(sae.reads_sequences());
  CHECK(sae.metadata.context_size == sequence);
  CHECK(sae.b_enc().size() == 0);
  CHECK(sae.W_enc().rows() == 56);
  CHECK(sae.parameters().at("attn_layers.1.k_ctx.weight") == std::vector<Index>{14, 56});

  const Temporal& model = *sae.get<Temporal>();
  require_close(by_sequences([&](const auto& x) { return model.encode_with_predictions(x).predicted.dense(); }),
                rows_of(fixture / "codes_predicted.npy"), 1e-5, true);
  const auto wide = sae::load<sae::TemporalSae<double>>(fixture);
  require_close(by_sequences([&](const auto& x) -> sae::Matrix<float> {
                  return wide.reconstruct(x.map().template cast<double>()).template cast<float>();
                }),
                rows_of(fixture / "recon.npy"), 1e-5, false);
  const auto x = rows_of(fixture / "x.npy");
  CHECK(sae.row_spreads(x) == std::vector<float>(16, 1 / 0.7F));
  CHECK_THROWS_WITH(sae.decode(sae.encode(x)), ContainsSubstring("codes alone do not tell what a temporal SAE predicts"));
  CHECK_THROWS_WITH(sae.model(), ContainsSubstring("this one reads sequences (temporal)"));
}

TEST_CASE("a temporal SAE is saved as SAELens has it, and loaded to the last bit", "[formats][temporal]") {
  const TempFolder temp;
  const sae::AnySae sae = sae::load(fixture);
  sae::save_as(sae, sae::SaeLayout::saelens, temp / "sae");
  const sae::AnySae back = sae::load(temp / "sae");
  const auto x = rows_of(fixture / "x.npy");
  CHECK(back.encode(x) == sae.encode(x));
  CHECK(back.reconstruct(x) == sae.reconstruct(x));
  // The file and its settings are the peer's own, field by field.
  nlohmann::json ours = sae::read_json(temp / "sae" / "cfg.json"), theirs = sae::read_json(fixture / "cfg.json");
  CHECK(ours == theirs);
  const sae::SafetensorsFile a(temp / "sae" / "sae_weights.safetensors"), b(fixture / "sae_weights.safetensors");
  CHECK(a.tensors().size() == b.tensors().size());
  for (const auto& [name, tensor] : b.tensors()) {
    CAPTURE(name);
    CHECK(a.read<float>(name, tensor.shape) == b.read<float>(name, tensor.shape));
  }
  sae::save_as(sae, sae::SaeLayout::saelens, temp / "narrow", {.dtype = sae::Dtype::bfloat16});
  CHECK(sae::load(temp / "narrow").dtype == "bfloat16");

  // Every other setting comes back, too, and axes of one number stay axes.
  using Normalisation = sae::InputNormalisation;
  const Index F = 6, D = 4;
  int n = 0;
  for (const auto& options :
       {sae::TemporalOptions{.heads = 1}, sae::TemporalOptions{.heads = 1, .k = 2, .subtract_decoder_bias = false},
        sae::TemporalOptions{.heads = 1, .k = 1, .input_normalisation = Normalisation::layer_norm},
        sae::TemporalOptions{.heads = 1, .input_normalisation = Normalisation::constant_norm},
        sae::TemporalOptions{.heads = 1, .input_scale = 3}})
    for (const bool tied : {false, true}) {
      sae::TemporalParameters<double> p;
      p.resize(D, F, 1, 1, tied);
      sae::Random random(4);
      sae::TemporalParameters<double>::visit(
          [&](std::string_view, auto& tensor) {
            for (Index i = 0; i < tensor.size(); ++i) tensor[i] = random.normal();
          },
          p);
      const sae::TemporalSae<double> model(std::move(p), options);
      const std::string name = std::to_string(n++);
      sae::save_saelens(model, temp / name);
      const auto loaded = sae::load<sae::TemporalSae<double>>(temp / name);
      const sae::Matrix<double> rows = sae::Matrix<double>::Random(5, D);
      CHECK(loaded.encode(rows) == model.encode(rows));
      CHECK(loaded.reconstruct(rows) == model.reconstruct(rows));
      CHECK(loaded.parameters().tied() == tied);
    }
}

TEST_CASE("load: a temporal SAE as its authors publish it", "[formats][temporal]") {
  const TempFolder temp;
  const fs::path folder = publish(temp / "model" / "layer_12" / "temporal", conf);
  const sae::AnySae sae = sae::load(folder);
  require_like_peer(sae);
  CHECK(sae.warnings.empty());
  CHECK(sae.layout == "temporal");
  CHECK(sae.architecture() == "temporal");
  CHECK(sae.dtype == "float32");
  CHECK(sae.metadata.hook_name == "blocks.12.hook_resid_post");
  CHECK(sae.metadata.model_name == "a/model");
  CHECK(sae.metadata.context_size == 8);
  CHECK(sae.metadata.dataset_path == "a/corpus");
  CHECK(sae.config.at("sae").at("n_heads") == 2);
  const auto x = rows_of(fixture / "x.npy");
  CHECK(sae::load(folder / "conf.yaml").encode(x) == sae.encode(x));
  CHECK(sae::load(folder / "latest_ckpt.safetensors").encode(x) == sae.encode(x));
  sae::save_saelens(sae, temp / "saved");
  CHECK(sae::load(temp / "saved").encode(x) == sae.encode(x));

  // relu, and tied: the decoder's own rows are read along.
  const sae::AnySae relu = sae::load(
      publish(temp / "relu", replaced(replaced(conf, "'topk'", "'relu'"), "tied_weights: False", "tied_weights: True"), true));
  CHECK(relu.activation() == "relu");
  CHECK(relu.W_enc() == relu.W_dec());
  CHECK(relu.encode(x).size() > 5 * x.rows());
}

TEST_CASE("what is no temporal SAE, or not of the type that is asked for, is refused in one sentence", "[formats][temporal]") {
  const TempFolder temp;
  CHECK_THROWS_WITH(
      sae::load<sae::AnyModel>(publish(temp / "own", conf)),
      ContainsSubstring("conf.yaml: is a temporal SAE, which does not fit the model it is loaded into, an autoencoder"));
  CHECK_THROWS_WITH(sae::load<sae::AnyTranscoder>(temp / "own"), ContainsSubstring("is a temporal SAE"));
  CHECK_THROWS_WITH((sae::load<sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::TopK>>(fixture)),
                    ContainsSubstring("architecture = \"temporal\" does not fit"));
  CHECK_THROWS_WITH(
      sae::load<Temporal>(peers / "saelens_topk"),
      ContainsSubstring("cfg.json: architecture = \"topk\" does not fit the model it is loaded into, a temporal SAE"));
  const sae::AnySae sae = sae::load(fixture);
  for (const auto layout : {sae::SaeLayout::dictionary_learning, sae::SaeLayout::sparsify, sae::SaeLayout::gemma_scope}) {
    CHECK_THROWS_WITH(sae::save_as(sae, layout, temp / "other"),
                      ContainsSubstring("a SAE that reads sequences (temporal) is not written as"));
    CHECK_FALSE(fs::exists(temp / "other"));
  }

  const auto published = [&](const std::string& from, const std::string& to) {
    fs::remove_all(temp / "changed");
    return says(publish(temp / "changed", replaced(conf, from, to)));
  };
  CHECK_THAT(published("kval_topk: 5", "kval_topk: 57"), ContainsSubstring("conf.yaml: kval_topk = 57 is not"));
  CHECK_THAT(published("'topk'", "'batchtopk'"),
             ContainsSubstring("sae_diff_type = \"batchtopk\" is not \"topk\" or \"relu\""));
  CHECK_THAT(published("n_heads: 2", "n_heads: 4"), ContainsSubstring("bottleneck_factor = 4 and n_heads = 4 do not divide"));
  CHECK_THAT(published("n_heads: 2", "n_heads: 0"), ContainsSubstring("n_heads = 0 is not"));
  CHECK_THAT(published("n_heads: 2", "heads: 2"), ContainsSubstring("n_heads is missing"));
  CHECK_THAT(published("bottleneck_factor: 4", "bottleneck_factor: 2"),
             ContainsSubstring("attn_layers.0.q_target.weight has shape [14, 56], it should be [28, 56]"));
  CHECK_THAT(published("n_attn_layers: 2", "n_attn_layers: 3"),
             ContainsSubstring("has no tensor attn_layers.2.q_target.weight"));
  CHECK_THAT(published("n_attn_layers: 2", "n_attn_layers: 1000000000000"),
             ContainsSubstring("n_attn_layers = 1000000000000 is not"));
  CHECK_THAT(published("scaling_factor: 0.7", "scaling_factor: 0"),
             ContainsSubstring("scaling_factor = 0 is not a number in [1e-30"));
  CHECK_THAT(published("scaling_factor: 0.7", "scaling_factor: .inf"), ContainsSubstring("scaling_factor"));
  CHECK_THAT(published("dimin: 24", "dimin: 23"), ContainsSubstring("tensor D has shape [56, 24], it should be [56, 23]"));
  CHECK_THAT(published("sae:\n", "other:\n"), ContainsSubstring("conf.yaml: sae is missing"));
  fs::remove(temp / "own" / "conf.yaml");
  CHECK_THAT(says(temp / "own"),
             ContainsSubstring("latest_ckpt.safetensors: is a temporal SAE, whose settings are in a file conf.yaml"));

  const auto configured = [&](const char* field, const nlohmann::json& value) {
    fs::remove_all(temp / "copy");
    fs::copy(fixture, temp / "copy");
    nlohmann::json config = sae::read_json(temp / "copy" / "cfg.json");
    config[field] = value;
    fs::remove(temp / "copy" / "cfg.json");
    sae::save_json(temp / "copy" / "cfg.json", config);
    return says(temp / "copy");
  };
  CHECK_THAT(configured("n_heads", 3), ContainsSubstring("cfg.json: bottleneck_factor = 4 and n_heads = 3 do not divide"));
  CHECK_THAT(configured("bottleneck_factor", 0), ContainsSubstring("bottleneck_factor = 0 is not"));
  CHECK_THAT(configured("activation_normalization_factor", -1),
             ContainsSubstring("activation_normalization_factor = -1 is not"));
  CHECK_THAT(configured("activation_normalization_factor", nullptr),
             ContainsSubstring("activation_normalization_factor is missing"));
  CHECK_THAT(configured("tied_weights", 1), ContainsSubstring("tied_weights = 1 is not true or false"));
  CHECK_THAT(configured("d_sae", 64), ContainsSubstring("tensor W_dec has shape [56, 24], it should be [64, 24]"));
  CHECK_THAT(configured("normalize_activations", "batch_norm"), ContainsSubstring("\"batch_norm\" is not supported"));
  CHECK(configured("kval_topk", nullptr).empty());
  CHECK(sae::load(temp / "copy").activation() == "relu");  // as the peer takes it
  CHECK(configured("normalize_activations", "layer_norm").empty());
}
