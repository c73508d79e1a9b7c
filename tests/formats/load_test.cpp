// Every file that a peer wrote, opened without being told its kind: the codes and reconstructions are the peer's.
#include <sae/files/npy.hpp>
#include <sae/files/torch_writer.hpp>
#include <sae/formats/load.hpp>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "catch_compat.hpp"
#include "peer_codes.hpp"
#include "temp_folder.hpp"

using Catch::Matchers::ContainsSubstring;
namespace fs = std::filesystem;

namespace {

using sae::Dynamic, sae::Index;

using sae_test::peers, sae_test::rows_of, sae_test::require_close;

void require_like(const sae::AnySae& sae, const fs::path& folder, const std::string& variant = "") {
  const auto x = rows_of(folder / "x.npy");
  require_close(sae.encode(x).dense(), rows_of(folder / ("codes" + variant + ".npy")), 1e-5, true);
  require_close(sae.reconstruct(x), rows_of(folder / ("recon" + variant + ".npy")), 1e-5, false);
}

const char* const dl_hook = "blocks.0.hook_resid_post";
struct Peer {
  const char* folder;
  const char* layout;
  const char* architecture;
  const char* hook = "";
  int warnings = 0;
};

}  // namespace

TEST_CASE("load opens what peers wrote, of any layout, and computes what they compute", "[formats][load]") {
  const Peer peer = GENERATE(
      Peer{"dl_autoencoder", "dictionary_learning", "standard", dl_hook},
      Peer{"dl_autoencoder_new", "dictionary_learning", "standard", dl_hook},
      Peer{"dl_gated", "dictionary_learning", "gated", dl_hook},
      Peer{"dl_jumprelu", "dictionary_learning", "jumprelu", dl_hook}, Peer{"dl_topk", "dictionary_learning", "topk", dl_hook},
      Peer{"dl_topk_unset_threshold", "dictionary_learning", "topk", dl_hook},
      Peer{"dl_batch_topk", "dictionary_learning", "jumprelu", dl_hook},
      Peer{"dl_batch_topk_trained", "dictionary_learning", "jumprelu", dl_hook},
      Peer{"dl_matryoshka", "dictionary_learning", "jumprelu", dl_hook},
      Peer{"dl_transposed_strides", "dictionary_learning", "topk", dl_hook},
      Peer{"dl_backup", "dictionary_learning", "jumprelu", dl_hook, 1}, Peer{"openai_topk", "openai", "topk"},
      Peer{"openai_topk/autoencoder_own_keys.pt", "openai", "topk"}, Peer{"openai_relu", "openai", "standard"},
      Peer{"gemma_scope_1_stored", "gemma_scope", "jumprelu"}, Peer{"sparsify_topk", "sparsify", "topk"},
      Peer{"sparsify_topk_bf16", "sparsify", "topk"}, Peer{"sparsify_groupmax", "sparsify", "groupmax"},
      Peer{"sparsify_multi_topk", "sparsify", "topk"}, Peer{"sparsify_old_config", "sparsify", "topk"},
      Peer{"sparsify_skip_sae", "sparsify", "topk_skip_transcoder"},
      Peer{"sparsify_transcode_skip", "sparsify", "topk_skip_transcoder"},
      Peer{"gemma_scope_2", "gemma_scope_2", "jumprelu", "blocks.12.hook_resid_post"},
      Peer{"gemma_scope_2_transcoder_affine", "gemma_scope_2", "jumprelu_skip_transcoder", "blocks.12.ln2.hook_normalized"},
      Peer{"llama_scope", "llama_scope", "jumprelu", "blocks.0.hook_resid_post", 1},
      Peer{"llama_scope_transcoder", "llama_scope", "jumprelu_transcoder", "blocks.0.ln2.hook_normalized", 1},
      Peer{"llamascopium_jumprelu_dataset_wise", "llamascopium", "jumprelu", "blocks.0.hook_resid_post"},
      Peer{"llamascopium_jumprelu_inference", "llamascopium", "jumprelu", "blocks.0.hook_resid_post"},
      Peer{"llamascopium_relu_glu_no_bias", "llamascopium", "glu_standard", "blocks.0.hook_resid_post"},
      Peer{"llamascopium_topk", "llamascopium", "topk", "blocks.0.hook_resid_post"},
      Peer{"saelens_pre6_standard", "saelens", "standard", "blocks.0.hook_resid_pre"},
      Peer{"saelens_pre6_topk", "saelens", "topk", "blocks.0.hook_resid_pre"},
      Peer{"saelens_checkpoint_topk", "saelens", "topk", "blocks.0.hook_resid_post"},
      Peer{"saelens_checkpoint_jumprelu", "saelens", "jumprelu", "blocks.0.hook_resid_post"});
  CAPTURE(peer.folder);
  const sae::AnySae sae = sae::load(peers / peer.folder);
  const fs::path folder = fs::is_directory(peers / peer.folder) ? peers / peer.folder : (peers / peer.folder).parent_path();
  require_like(sae, folder);
  CHECK(sae.layout == peer.layout);
  CHECK(sae.architecture() == peer.architecture);
  CHECK(sae.metadata.hook_name == peer.hook);
  CAPTURE(sae.warnings);
  CHECK(static_cast<int>(sae.warnings.size()) == peer.warnings);
  // A copy of it, and what was saved and loaded again, are the same SAE.
  TempFolder temp;
  sae::save_saelens(sae, temp / "sae");
  const auto x = rows_of(folder / "x.npy");
  const sae::AnySae back = sae::load(temp / "sae");
  CHECK(back.architecture() == sae.architecture());
  if (back.architecture() != "topk") {
    CHECK(back.encode(x).dense() == sae.encode(x).dense());
    CHECK(back.reconstruct(x) == sae.reconstruct(x));
  } else {  // ranks by decoder norms are folded
    require_close(back.reconstruct(x), rows_of(folder / "recon.npy"), 1e-5, false);
  }
}

TEST_CASE("load: a training that ranks whole batches is used by its running threshold, as SAELens saves it",
          "[formats][load]") {
  for (const std::string name : {"saelens_checkpoint_batchtopk", "saelens_checkpoint_matryoshka"}) {
    CAPTURE(name);
    const sae::AnySae sae = sae::load(peers / name);
    require_like(sae, peers / name, "_inference");
    CHECK(sae.architecture() == "jumprelu");
    REQUIRE(sae.warnings.size() == 1);
    CHECK_THAT(sae.warnings[0], ContainsSubstring("by its running threshold"));
  }
}

TEST_CASE("load: what SAELens saves of its trainings for inference", "[formats][load]") {
  for (const std::string name :
       {"saelens_abstopk_from_training", "saelens_gated_from_training", "saelens_jumprelu_bf16_from_training",
        "saelens_batchtopk_inference_plain", "saelens_matryoshka_inference"}) {
    CAPTURE(name);
    require_like(sae::load(peers / name), peers / name);
  }
}

TEST_CASE("load: deflated Gemma Scope is unpacked once, and said", "[formats][load][zlib]") {
  if (sae::detail::inflater == nullptr) SAE_SKIP_TEST("built without zlib");
  const sae::AnySae sae = sae::load(peers / "gemma_scope_1_deflated");
  require_like(sae, peers / "gemma_scope_1_deflated");
  REQUIRE(sae.warnings.size() == 1);
  CHECK_THAT(sae.warnings[0], ContainsSubstring("1 MB were unpacked into memory"));
}

namespace {

/// A small SAE's numbers, for files whose publisher has no program here: f = relu(x W_enc^T + b_enc), x' = f W_dec + b_dec.
struct ByHand {
  static constexpr Index F = 9, D = 5, D_out = 4;
  sae::Tensor<float> W_enc{F, D}, W_dec{F, D}, W_out{F, D_out}, b_enc{1, F}, b_dec{1, D}, b_out{1, D_out};
  sae::Matrix<float> x = sae::Matrix<float>::Random(20, D);
  ByHand() {
    sae::Random random(8);
    for (auto* const tensor : {&W_enc, &W_dec, &W_out, &b_enc, &b_dec, &b_out})
      for (Index i = 0; i < tensor->size(); ++i) (*tensor)[i] = static_cast<float>(random.normal());
  }
  sae::Matrix<float> codes() const { return ((x * W_enc.map().transpose()).rowwise() + b_enc.map().row(0)).cwiseMax(0.0F); }
  static std::span<const float> view(const sae::Tensor<float>& tensor) {
    return {tensor.data(), static_cast<std::size_t>(tensor.size())};
  }
  static void require_same(const sae::Matrix<float>& got, const sae::Matrix<float>& want) {
    sae::Tensor<float> expected(want.rows(), want.cols());
    expected.map() = want;
    require_close(got, expected, 1e-6, false);
  }
};

}  // namespace

TEST_CASE("load: two linear maps of torch, by whatever names they are published", "[formats][load]") {
  const ByHand by;
  struct Names {
    const char *encoder, *decoder, *file, *layout;
    int warnings;
  };
  for (const Names& names : {Names{"encoder_linear", "decoder_linear", "DeepSeek-R1-SAE-l37.pt", "goodfire", 0},
                             Names{"encoder", "decoder", "sparse_mlp.pth", "linear", 1}}) {
    CAPTURE(names.layout);
    for (const bool transcodes : {false, true}) {
      TempFolder temp;
      const auto& w = transcodes ? by.W_out : by.W_dec;
      const auto& b = transcodes ? by.b_out : by.b_dec;
      sae::TorchWriter out;
      out.add(std::string(names.encoder) + ".weight", {by.F, by.D}, ByHand::view(by.W_enc));
      out.add(std::string(names.encoder) + ".bias", {by.F}, ByHand::view(by.b_enc));
      out.add(std::string(names.decoder) + ".weight", {w.cols(), by.F}, ByHand::view(w), {1, w.cols()});
      out.add(std::string(names.decoder) + ".bias", {w.cols()}, ByHand::view(b));
      out.save(temp / names.file);
      const sae::AnySae sae = sae::load(temp / names.file);
      CHECK(sae.layout == names.layout);
      CHECK(sae.is_transcoder() == transcodes);
      CHECK(static_cast<int>(sae.warnings.size()) == names.warnings);
      if (std::string(names.layout) == "goodfire") CHECK(sae.metadata.hook_name == "blocks.37.hook_resid_post");
      ByHand::require_same(sae.encode(by.x).dense(), by.codes());
      ByHand::require_same(sae.reconstruct(by.x), (by.codes() * w.map()).rowwise() + b.map().row(0));
    }
  }
}

TEST_CASE("load: Qwen Scope, whose k stands in the path", "[formats][load]") {
  const ByHand by;
  TempFolder temp;
  const auto save = [&](const fs::path& folder) {
    fs::create_directory(folder);
    sae::TorchWriter out;
    out.add("W_enc", {by.F, by.D}, ByHand::view(by.W_enc));
    out.add("W_dec", {by.D, by.F}, ByHand::view(by.W_dec), {1, by.D});
    out.add("b_enc", {by.F}, ByHand::view(by.b_enc));
    out.add("b_dec", {by.D}, ByHand::view(by.b_dec));
    out.save(folder / "layer7.sae.pt");
    return folder;
  };
  const sae::AnySae sae = sae::load(save(temp / "SAE-Res-Qwen3-W9-L0_3"));
  CHECK(sae.layout == "qwen_scope");
  CHECK(sae.activation() == "topk, k = 3");
  CHECK(sae.metadata.hook_name == "blocks.7.hook_resid_post");
  sae::Matrix<float> codes = by.codes();
  for (Index b = 0; b < codes.rows(); ++b) {
    std::vector<float> row(codes.row(b).data(), codes.row(b).data() + by.F);
    std::sort(row.rbegin(), row.rend());
    codes.row(b) = (codes.row(b).array() >= row[2]).select(codes.row(b), 0.0F);
  }
  ByHand::require_same(sae.encode(by.x).dense(), codes);
  CHECK_THROWS_WITH(sae::load(save(temp / "renamed")), ContainsSubstring("keep \"L0_<k>\" in the path"));
}

TEST_CASE("load: state dictionaries of Nanda's code subtract b_dec", "[formats][load]") {
  const ByHand by;
  TempFolder temp;
  const auto save = [&](const std::string& name, bool transposed) {
    sae::TorchWriter out;
    const std::vector<Index> shape = transposed ? std::vector<Index>{by.F, by.D} : std::vector<Index>{by.D, by.F};
    out.add("W_enc", shape, ByHand::view(by.W_enc), transposed ? std::vector<Index>{by.D, 1} : std::vector<Index>{1, by.D});
    out.add("W_dec", {by.F, by.D}, ByHand::view(by.W_dec));
    out.add("b_enc", {by.F}, ByHand::view(by.b_enc));
    out.add("b_dec", {by.D}, ByHand::view(by.b_dec));
    out.save(temp / name);
    return temp / name;
  };
  const sae::AnySae sae = sae::load(save("gpt2-small_L5_Hcat_z_lr1.20e-03_l11.00e+00_ds49152_v9.pt", false));
  CHECK(sae.layout == "nanda");
  CHECK(sae.metadata.hook_name == "blocks.5.attn.hook_z");
  CHECK(sae.warnings.empty());
  const sae::Matrix<float> shifted = by.x.rowwise() - by.b_dec.map().row(0);
  const sae::Matrix<float> codes = ((shifted * by.W_enc.map().transpose()).rowwise() + by.b_enc.map().row(0)).cwiseMax(0.0F);
  ByHand::require_same(sae.encode(by.x).dense(), codes);
  ByHand::require_same(sae.reconstruct(by.x), (codes * by.W_dec.map()).rowwise() + by.b_dec.map().row(0));
  CHECK(sae::load(save("8.pt", false)).metadata.hook_name.empty());
  CHECK_THROWS_WITH(sae::load(save("9.pt", true)), ContainsSubstring("should be [D, F] and [F, D] with F = "));
}

TEST_CASE("load: mwhanna's transcoders, and their like with a skip", "[formats][load]") {
  const ByHand by;
  for (const bool skip : {false, true}) {
    TempFolder temp;
    sae::Tensor<float> W_skip(by.D_out, by.D);
    for (Index i = 0; i < W_skip.size(); ++i) W_skip[i] = 0.1F * static_cast<float>(i);
    sae::SafetensorsWriter out;
    out.add("W_enc", by.W_enc);
    out.add("W_dec", by.W_out);
    out.add("b_enc", {by.F}, by.b_enc);
    out.add("b_dec", {by.D_out}, by.b_out);
    if (skip) out.add("W_skip", W_skip);
    out.save(temp / "layer_3.safetensors");
    const sae::AnySae sae = sae::load(temp / "layer_3.safetensors");
    CHECK(sae.layout == "mwhanna");
    CHECK(sae.architecture() == (skip ? "skip_transcoder" : "transcoder"));
    CHECK(sae.metadata.hook_name == "blocks.3.mlp.hook_in");
    sae::Matrix<float> rows = (by.codes() * by.W_out.map()).rowwise() + by.b_out.map().row(0);
    if (skip) rows += by.x * W_skip.map().transpose();
    ByHand::require_same(sae.reconstruct(by.x), rows);
  }
}

TEST_CASE("load: a square decoder, whose order nothing tells, is refused", "[formats][load]") {
  TempFolder temp;
  sae::SafetensorsWriter out;
  const std::vector<float> wide(9 * 5, 1), square(9 * 9, 1), of_latents(9, 1);
  out.add("W_enc", {9, 5}, wide);
  out.add("W_dec", {9, 9}, square);
  out.add("b_enc", {9}, of_latents);
  out.add("b_dec", {9}, of_latents);
  out.save(temp / "layer_3.safetensors");
  CHECK_THROWS_WITH(sae::load(temp / "layer_3.safetensors"),
                    ContainsSubstring("tensor W_dec is [9, 9]: whether its rows or its columns"));
}

TEST_CASE("load: a training's number of latents is checked before anything of that size is made", "[formats][load]") {
  TempFolder temp;
  fs::copy_file(peers / "saelens_checkpoint_batchtopk" / "sae_weights.safetensors", temp / "sae_weights.safetensors");
  std::ifstream in(peers / "saelens_checkpoint_batchtopk" / "cfg.json");
  nlohmann::json config = nlohmann::json::parse(in);
  config["d_sae"] = Index{1} << 30;
  std::ofstream(temp / "cfg.json") << config;
  CHECK_THROWS_WITH(sae::load(temp.path()), ContainsSubstring("it should have d_sae = 1073741824 rows"));
}

TEST_CASE("load: Gemma Scope's SAEs of the embedding and transcoders are told by their path", "[formats][load]") {
  TempFolder temp;
  const auto copy = [&](const fs::path& to) {
    fs::create_directories(to);
    fs::copy_file(peers / "gemma_scope_1_stored" / "params.npz", to / "params.npz");
    return to;
  };
  const sae::AnySae plain = sae::load(peers / "gemma_scope_1_stored");
  const sae::AnySae embedding = sae::load(copy(temp / "gemma-scope-2b-pt-res" / "embedding" / "width_4k" / "average_l0_6"));
  CHECK(embedding.metadata.hook_name == "hook_embed");
  REQUIRE(embedding.warnings.size() == 1);
  const float root = std::sqrt(24.0F);
  CHECK(embedding.W_enc()(3, 4) == Approx(plain.W_enc()(3, 4) / root));
  CHECK(embedding.W_dec()(3, 4) == Approx(plain.W_dec()(3, 4) * root));
  CHECK(embedding.b_enc()(0, 3) == plain.b_enc()(0, 3));
  const sae::AnySae transcoder = sae::load(copy(temp / "gemma-scope-2b-pt-transcoders" / "layer_12" / "width_16k"));
  CHECK(transcoder.architecture() == "jumprelu_transcoder");
  CHECK(transcoder.metadata.hook_name == "blocks.12.ln2.hook_normalized");
  CHECK(sae::load(copy(temp / "gemma-scope-2b-pt-att" / "layer_5" / "x")).metadata.hook_name == "blocks.5.attn.hook_z");
  CHECK(sae::load(copy(temp / "gemma-scope-2b-pt-mlp" / "layer_5" / "x")).metadata.hook_name == "blocks.5.hook_mlp_out");
  CHECK(sae::load(copy(temp / "gemma-scope-2b-pt-res" / "layer_5" / "x")).metadata.hook_name == "blocks.5.hook_resid_post");
}

TEST_CASE("load: what the peers' own loaders do besides is a call away", "[formats][load]") {
  // dictionary_learning folds decoder norms as it loads an AutoEncoder.
  auto folded = sae::load<sae::SparseAutoencoder<Dynamic, Dynamic, sae::ReLU>>(peers / "dl_autoencoder");
  folded.fold_decoder_norms();
  const auto x = rows_of(peers / "dl_autoencoder" / "x.npy");
  require_close(folded.encode(x).dense(), rows_of(peers / "dl_autoencoder" / "codes_normalized.npy"), 1e-5, true);
  require_close(folded.reconstruct(x), rows_of(peers / "dl_autoencoder" / "recon_normalized.npy"), 1e-5, false);
}

TEST_CASE("load into a type: what fits is read, what does not is said", "[formats][load]") {
  using Jump = sae::SparseAutoencoder<Dynamic, Dynamic, sae::JumpReLU>;
  std::vector<std::string> warnings;
  const auto model = sae::load<Jump>(peers / "dl_backup", {.warnings = &warnings});
  CHECK(warnings.size() == 1);
  CHECK(model.encode(rows_of(peers / "dl_backup" / "x.npy")).dense() ==
        sae::load(peers / "dl_backup").encode(rows_of(peers / "dl_backup" / "x.npy")).dense());
  const auto glu =
      sae::load<sae::SparseAutoencoder<Dynamic, Dynamic, sae::Glu<sae::ReLU>>>(peers / "llamascopium_relu_glu_no_bias");
  require_close(glu.encode(rows_of(peers / "llamascopium_relu_glu_no_bias" / "x.npy")).dense(),
                rows_of(peers / "llamascopium_relu_glu_no_bias" / "codes.npy"), 1e-5, true);
  const auto half = sae::load<sae::SparseAutoencoder<24, 56, sae::TopK, float, sae::bfloat16>>(peers / "sparsify_topk_bf16");
  CHECK(half.activation().k == 6);

  CHECK_THROWS_WITH(sae::load<Jump>(peers / "dl_topk"),
                    (peers / "dl_topk" / "config.json").string() +
                        ": is a SAE of topk, which does not fit the model it is loaded into, of jumprelu");
  CHECK_THROWS_WITH(sae::load<Jump>(peers / "llamascopium_relu_glu_no_bias"), ContainsSubstring("a GLU encoder and relu"));
  CHECK_THROWS_WITH(sae::load<sae::AnyModel>(peers / "llamascopium_relu_glu_no_bias"), ContainsSubstring("has a GLU encoder"));
  CHECK_THROWS_WITH((sae::load<sae::SparseAutoencoder<24, 57, sae::JumpReLU>>(peers / "gemma_scope_2")),
                    ContainsSubstring("d_sae = 56 does not fit the model it is loaded into, whose F is 57"));
  CHECK_THROWS_WITH(sae::load<Jump>(peers / "gemma_scope_2_transcoder_affine"),
                    ContainsSubstring("is a transcoder, the model it is loaded into is an autoencoder"));
}

TEST_CASE("load: what is none is refused in one sentence", "[formats][load]") {
  TempFolder temp;
  const auto says = [](const fs::path& path) -> std::string {
    try {
      (void)sae::load(path);
    } catch (const sae::FileError& error) {
      CHECK(std::string(error.what()).find('\n') == std::string::npos);
      return error.what();
    }
    return "";
  };
  CHECK_THAT(says(temp / "nothing"), ContainsSubstring("there is no such file or folder"));
  CHECK_THAT(says(temp.path()), ContainsSubstring("is no SAE; there is no file of weights in it"));
  sae::SafetensorsWriter one;
  const std::vector<float> numbers{1, 2};
  one.add("mystery", {2}, numbers);
  one.save(temp / "a.safetensors");
  CHECK(says(temp / "a.safetensors") ==
        (temp / "a.safetensors").string() + ": is of no layout that is known; it holds mystery [2]");
  one.save(temp / "b.safetensors");
  CHECK_THAT(says(temp.path()), ContainsSubstring("holds 2 files of weights (a.safetensors, b.safetensors); name the one"));
  CHECK_THAT(says(peers / "sparsify_topk" / "x.npy"), ContainsSubstring("is no SAE; one is a folder, or a file of weights"));
  CHECK_THAT(says(peers / "torch_pt_edge_cases" / "whole_module.pt"), ContainsSubstring("whole_module.pt"));

  const auto changed = [&](const char* fixture, const char* file, const auto& change) {
    fs::remove_all(temp / "copy");
    fs::copy(peers / fixture, temp / "copy", fs::copy_options::recursive);
    nlohmann::json json = sae::read_json(temp / "copy" / file);
    change(json);
    fs::remove(temp / "copy" / file);
    sae::save_json(temp / "copy" / file, json);
    return says(temp / "copy");
  };
  CHECK_THAT(changed("sparsify_topk", "cfg.json", [](auto& json) { json["k"] = 57; }),
             ContainsSubstring("cfg.json: k = 57 is not"));
  CHECK_THAT(changed("sparsify_topk", "cfg.json", [](auto& json) { json["activation"] = "relu"; }),
             ContainsSubstring("activation = \"relu\" is not \"topk\" or \"groupmax\""));
  CHECK_THAT(changed("sparsify_topk", "cfg.json", [](auto& json) { json["signed"] = true; }),
             ContainsSubstring("signed = true"));
  CHECK_THAT(changed("llama_scope", "hyperparams.json", [](auto& json) { json["act_fn"] = "gelu"; }),
             ContainsSubstring("act_fn = \"gelu\" is not"));
  CHECK_THAT(changed("llama_scope", "hyperparams.json", [](auto& json) { json["dataset_average_activation_norm"]["in"] = 0; }),
             ContainsSubstring("two positive numbers"));
  CHECK_THAT(changed("llamascopium_topk", "config.json", [](auto& json) { json["norm_activation"] = "batch-wise"; }),
             ContainsSubstring("norm_activation = \"batch-wise\" is not"));
  CHECK_THAT(changed("gemma_scope_2", "config.json", [](auto& json) { json["architecture"] = "topk"; }),
             ContainsSubstring("architecture = \"topk\" is not \"jump_relu\""));
  fs::remove(temp / "copy" / "config.json");
  CHECK(says(temp / "copy").empty());  // Gemma Scope says all by its tensors
}
