#include <sae/formats/load.hpp>

#include <cstdlib>
#include <string>
#include <vector>

#include "catch_compat.hpp"
#include "environment.hpp"
#include "peer_codes.hpp"
#include "temp_folder.hpp"

using Catch::Matchers::ContainsSubstring;
namespace fs = std::filesystem;
using sae_test::Variable;

namespace {

/// No cache, and no table that this machine may have.
struct Nowhere {
  TempFolder temp;
  Variable cache{"HF_HUB_CACHE", temp.path().string()}, table{"SAE_PRETRAINED_SAES", ""}, environment{"VIRTUAL_ENV", ""},
      conda{"CONDA_PREFIX", ""}, home{"HOME", temp.path().string()};

  /// A folder of a repository in the cache.
  fs::path place(const std::string& repository, const std::string& path) const {
    std::string name = "models--" + repository;
    name.replace(name.find('/'), 1, "--");
    fs::create_directories((temp / name) / "snapshots" / "abc" / path);
    return (temp / name) / "snapshots" / "abc" / path;
  }
  void put(const std::string& repository, const std::string& path, const std::string& fixture) const {
    const fs::path to = place(repository, path);
    for (const auto& file : fs::directory_iterator(sae_test::peers / fixture))
      if (file.is_regular_file() && file.path().extension() != ".npy") fs::copy(file.path(), to);
  }
};

std::string error_of(const std::string& name) {
  try {
    sae::load(name);
  } catch (const sae::FileError& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("a name of SAELens says what to download where nothing is", "[formats][releases]") {
  const Nowhere nowhere;
  const auto [name, command] = GENERATE(
      std::pair{"gemma-scope-2b-pt-res-canonical/layer_12/width_16k/canonical",
                "google/gemma-scope-2b-pt-res layer_12/width_16k/average_l0_82/params.npz puts"},
      std::pair{"gemma-scope-9b-pt-res-canonical/layer_31/width_1m/canonical",
                "google/gemma-scope-9b-pt-res layer_31/width_1m/average_l0_77/params.npz puts"},
      std::pair{"gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6",
                "google/gemma-scope-2b-pt-res embedding/width_4k/average_l0_6/params.npz puts"},
      std::pair{"gemma-scope-2b-pt-transcoders/layer_0/width_16k/average_l0_76",
                "google/gemma-scope-2b-pt-transcoders layer_0/width_16k/average_l0_76/params.npz puts"},
      std::pair{"gemma-scope-2-4b-it-transcoders/transcoder/layer_9_width_65k_l0_small_affine",
                "google/gemma-scope-2-4b-it --include \"transcoder/layer_9_width_65k_l0_small_affine/*\" puts"},
      std::pair{"gemma-scope-2-270m-pt-att-all/layer_0_width_16k_l0_big",
                "google/gemma-scope-2-270m-pt --include \"attn_out_all/layer_0_width_16k_l0_big/*\" puts"},
      std::pair{"llama_scope_lxr_8x/l31r_8x",
                "fnlp/Llama3_1-8B-Base-LXR-8x Llama3_1-8B-Base-L31R-8x/checkpoints/final.safetensors "
                "Llama3_1-8B-Base-L31R-8x/hyperparams.json puts"},
      std::pair{"llama_scope_r1_distill/l3r_400m_slimpajama_400m_openr1_math",
                "fnlp/Llama-Scope-R1-Distill 400M-Slimpajama-400M-OpenR1-Math-220k/L3R/sae_weights.safetensors "
                "400M-Slimpajama-400M-OpenR1-Math-220k/L3R/config.json puts"},
      std::pair{"sae_bench_gemma-2-2b_topk_width-2pow12_date-1109/blocks.5.hook_resid_post__trainer_5_step_9765",
                "canrager/saebench_gemma-2-2b_width-2pow12_date-1109 gemma-2-2b_topk_width-2pow12_date-1109/"
                "resid_post_layer_5_checkpoints/trainer_5_step_9765/ae.pt gemma-2-2b_topk_width-2pow12_date-1109/"
                "resid_post_layer_5_checkpoints/trainer_5_step_9765/config.json puts"},
      std::pair{"sae_bench_pythia70m_sweep_gated_ctx128_0730/blocks.3.hook_resid_post__trainer_0",
                "canrager/lm_sae pythia70m_sweep_gated_ctx128_0730/resid_post_layer_3/trainer_0/ae.pt "
                "pythia70m_sweep_gated_ctx128_0730/resid_post_layer_3/trainer_0/config.json puts"},
      std::pair{"gpt2-small-resid-post-v5-32k/blocks.11.hook_resid_post",
                "jbloom/GPT2-Small-OAI-v5-32k-resid-post-SAEs v5_32k_layer_11.pt/sae_weights.safetensors "
                "v5_32k_layer_11.pt/cfg.json puts"},
      std::pair{"pythia-70m-deduped-res-sm/blocks.0.hook_resid_pre",
                "ctigges/pythia-70m-deduped__res-sm_processed e-res-sm/sae_weights.safetensors e-res-sm/cfg.json puts"},
      std::pair{"qwen-scope-3-1.7b-base-w32k-l50/layer27", "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50 layer27.sae.pt puts"},
      std::pair{"goodfire-llama-3.3-70b-instruct/layer_50",
                "Goodfire/Llama-3.3-70B-Instruct-SAE-l50 Llama-3.3-70B-Instruct-SAE-l50.pt puts"});
  CAPTURE(name);
  const std::string error = error_of(name);
  CHECK_THAT(error, ContainsSubstring("; huggingface-cli download " + std::string(command)));
  CHECK_THAT(error, ContainsSubstring(nowhere.temp.path().string()));
}

TEST_CASE("a release without such an id is refused with the form of its ids", "[formats][releases]") {
  const Nowhere nowhere;
  CHECK_THAT(
      error_of("gpt2-small-mlp-out-v5-32k/blocks.x.hook_resid_post"),
      ContainsSubstring("SAELens' release gpt2-small-mlp-out-v5-32k has no such SAE; its ids are blocks.*.hook_mlp_out"));
  for (const char* const none : {"layer_26/width_16k/canonical", "layer_12/width_2m/canonical", "layer_6/width_1m/canonical",
                                 "layer_012/width_16k/canonical", "layer_12/width_16k/average_l0_82"})
    CHECK_THAT(error_of("gemma-scope-2b-pt-res-canonical/" + std::string(none)),
               ContainsSubstring("its ids are layer_*/width_*/canonical"));
  CHECK_THAT(error_of("gemma-scope-27b-pt-att-canonical/layer_10/width_131k/canonical"), ContainsSubstring("no such SAE"));
  CHECK_FALSE(sae::find_saelens_release("gpt2-small-res-jb"));
  CHECK_FALSE(sae::find_saelens_release("gpt2-small-res-jb/../../etc"));
  CHECK_FALSE(sae::find_saelens_release("google/gemma-scope-2b-pt-res/layer_12"));
}

TEST_CASE("a name of SAELens opens what the hub's cache holds", "[formats][releases]") {
  const Nowhere nowhere;
  nowhere.put("google/gemma-scope-2b-pt-res", "layer_12/width_16k/average_l0_82", "gemma_scope_1_stored");
  const sae::AnySae sae = sae::load("gemma-scope-2b-pt-res-canonical/layer_12/width_16k/canonical");
  CHECK(sae.layout == "gemma_scope");
  CHECK(sae.metadata.hook_name == "blocks.12.hook_resid_post");
  nowhere.put("canrager/lm_sae", "pythia70m_sweep_topk_ctx128_0730/resid_post_layer_3/trainer_0", "dl_topk");
  CHECK(sae::load("sae_bench_pythia70m_sweep_topk_ctx128_0730/blocks.3.hook_resid_post__trainer_0").layout ==
        "dictionary_learning");
  nowhere.put("fnlp/Llama3_1-8B-Base-LXR-8x", "Llama3_1-8B-Base-L4R-8x", "llama_scope");
  fs::create_directories(nowhere.place("fnlp/Llama3_1-8B-Base-LXR-8x", "Llama3_1-8B-Base-L4R-8x/checkpoints"));
  // One of two files: it is not there yet.
  CHECK_THAT(error_of("llama_scope_lxr_8x/l4r_8x"), ContainsSubstring("huggingface-cli download"));
  // What lies at the path itself comes first.
  CHECK(sae::find_sae(nowhere.temp.path()).path == nowhere.temp.path());
}

TEST_CASE("a Gemma Scope 2 transcoder without settings is told by its folder", "[formats][releases][gemma_scope]") {
  const Nowhere nowhere;
  nowhere.put("google/gemma-scope-2-4b-pt", "transcoder_all/layer_7_width_16k_l0_big", "gemma_scope_2");
  const fs::path folder = nowhere.place("google/gemma-scope-2-4b-pt", "transcoder_all/layer_7_width_16k_l0_big");
  fs::remove(folder / "config.json");
  CHECK(sae::load("gemma-scope-2-4b-pt-transcoders-all/layer_7_width_16k_l0_big").is_transcoder());
  nowhere.put("google/gemma-scope-2-4b-pt", "resid_post/layer_7_width_16k_l0_big", "gemma_scope_2");
  fs::remove(nowhere.place("google/gemma-scope-2-4b-pt", "resid_post/layer_7_width_16k_l0_big") / "config.json");
  const sae::AnySae sae = sae::load("gemma-scope-2-4b-pt-res/layer_7_width_16k_l0_big");
  CHECK_FALSE(sae.is_transcoder());
  CHECK(sae.metadata.hook_name == "blocks.7.hook_resid_post");
}

TEST_CASE("what SAELens' table says beside the files goes into the weights", "[formats][releases]") {
  const Nowhere nowhere;
  const std::string fixture = "saelens_standard_expected_average";
  const auto x = sae_test::rows_of(sae_test::peers / fixture / "x.npy");
  const sae::AnySae plain = sae::load(sae_test::peers / fixture);
  CHECK(plain.warnings.size() == 1);
  const double factor = 2.3693984005104283;
  nowhere.put("tommmcgrath/gpt2-small-mlp-out-saes", "sae_group_gpt2_blocks.1.hook_mlp_out_24576:v0", fixture);
  const std::string name = "gpt2-small-mlp-tm/blocks.1.hook_mlp_out";
  const sae::AnySae scaled = sae::load(name);
  CHECK(scaled.warnings.empty());
  const auto scale = static_cast<float>(factor);
  const sae::Matrix<float> rows = x.map() * scale;
  const auto close = [](const sae::Matrix<float>& a, const sae::Matrix<float>& b) {
    return (a - b).cwiseAbs().maxCoeff() <= 1e-5F * b.cwiseAbs().maxCoeff();
  };
  CHECK(close(scaled.encode(x).dense(), plain.encode(rows).dense()));
  CHECK(close(scaled.reconstruct(x) * scale, plain.reconstruct(rows)));
  const auto typed = sae::load<sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::ReLU>>(name);
  CHECK(typed.encode(x).dense() == scaled.encode(x).dense());
  // Where cfg.json does not ask for it, it is not used.
  nowhere.put("tommmcgrath/gpt2-small-mlp-out-saes", "sae_group_gpt2_blocks.2.hook_mlp_out_24576:v0", "saelens_standard");
  CHECK(sae::load("gpt2-small-mlp-tm/blocks.2.hook_mlp_out").W_dec() ==
        sae::load(sae_test::peers / "saelens_standard").W_dec());
  // Another normalisation than cfg.json's.
  nowhere.put("JoshEngels/Mistral-7B-Residual-Stream-SAEs", "mistral_7b_layer_8", "saelens_standard");
  CHECK(sae::load("mistral-7b-res-wg/blocks.8.hook_resid_pre").input_normalisation() == sae::InputNormalisation::constant_norm);
  using Standard = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::ReLU>;
  CHECK(sae::load<Standard>("mistral-7b-res-wg/blocks.8.hook_resid_pre").options().input_normalisation ==
        sae::InputNormalisation::constant_norm);
}

TEST_CASE("later releases are looked up in the user's own copy of SAELens' table", "[formats][releases]") {
  const Nowhere nowhere;
  CHECK_THAT(error_of("next-release/a/b"), ContainsSubstring("huggingface-cli download next-release/a --include \"b/*\""));
  const auto write = [&](const std::string& repository, const std::string& more = "") {
    sae::atomic_write_text(nowhere.temp / "table.yaml",
                           "next-release:\n  conversion_func: dictionary_learning_1\n  repo_id: " + repository +
                               "\n  saes:\n  - id: a/b\n    path: where/it/is\n  - id: zero\n    path: 0\n" + more +
                               "own:\n  repo_id: org/own\n  config_overrides:\n    normalize_activations: layer_norm\n  saes:\n"
                               "  - id: x\n    path: y\n    norm_scaling_factor: 2.5\n"
                               "odd:\n  conversion_func: later\n  repo_id: org/odd\n  saes:\n  - id: x\n    path: y\n",
                           {.overwrite = true});
  };
  write("org/next");
  const Variable table("SAE_PRETRAINED_SAES", (nowhere.temp / "table.yaml").string());
  CHECK_THAT(error_of("next-release/a/b"),
             ContainsSubstring("huggingface-cli download org/next where/it/is/ae.pt where/it/is/config.json puts"));
  CHECK_THAT(error_of("next-release/zero"), ContainsSubstring("org/next 0/ae.pt 0/config.json puts"));
  CHECK_THAT(error_of("next-release/none"),
             ContainsSubstring("the release next-release in") && ContainsSubstring("table.yaml has no such SAE"));
  const auto own = sae::find_in_saelens_table("own/x");
  REQUIRE(own);
  CHECK(own->files == std::vector<std::string>{"y/sae_weights.safetensors", "y/cfg.json"});
  CHECK(own->overrides.norm_scaling_factor == 2.5);
  CHECK(own->overrides.normalize_activations == "layer_norm");
  CHECK_THAT(error_of("odd/x"), ContainsSubstring("huggingface-cli download org/odd --include \"y/*\" puts"));
  nowhere.put("org/next", "where/it/is", "dl_topk");
  CHECK(sae::load("next-release/a/b").layout == "dictionary_learning");
  // Ways out of the repository.
  write("../next");
  CHECK_THAT(error_of("next-release/a/b"),
             ContainsSubstring("next-release: repo_id = \"../next\" is not the name of a repository"));
  write("org/next", "  - id: out\n    path: ../../etc\n");
  CHECK_THAT(error_of("next-release/out"), ContainsSubstring("is not a path in a repository"));
  // A table that was named has to be one; one that was found counts as none.
  sae::atomic_write_text(nowhere.temp / "table.yaml", "a: *b\n", {.overwrite = true});
  CHECK_THAT(error_of("next-release/a/b"), ContainsSubstring("table.yaml: line 1 has an anchor"));
  const fs::path installed = nowhere.temp / ".local" / "lib" / "python3.11" / "site-packages" / "sae_lens";
  fs::create_directories(installed);
  fs::copy(nowhere.temp / "table.yaml", installed / "pretrained_saes.yaml");
  const Variable unnamed("SAE_PRETRAINED_SAES", "");
  CHECK_THAT(error_of("next-release/a/b"), ContainsSubstring("download next-release/a --include"));
  write("org/next");
  fs::copy(nowhere.temp / "table.yaml", installed / "pretrained_saes.yaml", fs::copy_options::overwrite_existing);
  CHECK(sae::load("next-release/a/b").layout == "dictionary_learning");
}

TEST_CASE("the rules say what SAELens' own table says, every name of it", "[formats][releases]") {
  const char* const own = std::getenv("SAE_PRETRAINED_SAES");
  if (own == nullptr) {
    WARN("SAE_SKIP_TEST: SAE_PRETRAINED_SAES does not name SAELens' pretrained_saes.yaml");
    return;
  }
  const nlohmann::json table = sae::read_yaml(own, std::size_t{64} << 20);
  int found = 0;
  for (const auto& [release, about] : table.items())
    for (const nlohmann::json& sae : about.at("saes")) {
      const std::string id = sae.at("id");
      CAPTURE(release, id);
      const auto by_table = sae::detail::saelens_release_by_table(table, own, release, id);
      const auto by_rule = sae::find_saelens_release(release + "/" + id);
      REQUIRE(by_table);
      REQUIRE(by_rule);
      REQUIRE(by_rule->download() == by_table->download());
      REQUIRE(by_rule->files == by_table->files);
      REQUIRE(by_rule->overrides.normalize_activations == by_table->overrides.normalize_activations);
      // Where the loader is SAELens' own; others know it from their files.
      if (by_rule->files.back().ends_with("/cfg.json"))
        REQUIRE(by_rule->overrides.norm_scaling_factor == by_table->overrides.norm_scaling_factor);
      ++found;
    }
  CHECK(found > 13000);
}
