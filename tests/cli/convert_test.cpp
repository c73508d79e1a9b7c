// sae convert, and the verbs on SAEs of other layouts.
#include <sae/files/mapped_file.hpp>
#include <sae/formats/load.hpp>

#include <cstring>
#include <filesystem>
#include <string>

#include "catch_compat.hpp"
#include "cli_test.hpp"
#include "environment.hpp"
#include "peer_codes.hpp"

#ifdef SAE_TEST_PROGRAM

using Catch::Matchers::ContainsSubstring;
using sae_test::json_of;
using sae_test::peers;
using sae_test::require_close;
using sae_test::rows_of;
using sae_test::run_sae;
namespace fs = std::filesystem;

TEST_CASE("sae: a name of SAELens' releases that the hub's cache does not hold is answered by its download", "[cli][convert]") {
  const sae_test::Workplace work;
  const sae_test::Variable cache("HF_HUB_CACHE", work.at("cache"));
  const std::string name = "gemma-scope-2b-pt-res-canonical/layer_12/width_16k/canonical";
  for (const auto& arguments :
       {std::vector<std::string>{"inspect", name},
        {"encode", "--sae", name, "--data", (peers / "dl_topk" / "x.npy").string(), "--out", work.at("codes.npy")}}) {
    const auto run = run_sae(arguments);
    CHECK(run.code == 1);
    CHECK_THAT(run.err,
               ContainsSubstring("huggingface-cli download google/gemma-scope-2b-pt-res layer_12/width_16k/average_l0_"));
  }
}

TEST_CASE("sae convert: from every layout to others, and the verbs read them all", "[cli][convert]") {
  const sae_test::Workplace work;
  const auto fixture = [](const std::string& name) { return (peers / name).string(); };
  for (const auto& [from, to, layout] : {std::tuple{"dl_topk", "sparsify", "sparsify"},
                                         {"sparsify_topk", "dictionary_learning", "dictionary_learning"},
                                         {"llama_scope", "saelens", "saelens"},
                                         {"gemma_scope_2", "gemma_scope", "gemma_scope"}}) {
    CAPTURE(from, to);
    const auto run = run_sae({"convert", "--sae", fixture(from), "--to", to, "--out", work.at("sae"), "--force"});
    INFO(run.err);
    REQUIRE(run.code == 0);
    CHECK_THAT(run.err, ContainsSubstring(to));
    CHECK(json_of(run_sae({"inspect", work.at("sae"), "--json", "--check"})).at("layout") == layout);
    const std::string data = fixture(std::string(from) + "/x.npy");
    REQUIRE(run_sae({"encode", "--sae", work.at("sae"), "--data", data, "--out", work.at("codes.npy"), "--force", "--quiet"})
                .code == 0);
    REQUIRE(
        run_sae({"reconstruct", "--sae", work.at("sae"), "--data", data, "--out", work.at("rows.npy"), "--force", "--quiet"})
            .code == 0);
    require_close(rows_of(work.at("codes.npy")).map(), rows_of(peers / from / "codes.npy"), 1e-5, true);
    require_close(rows_of(work.at("rows.npy")).map(), rows_of(peers / from / "recon.npy"), 1e-5, false);
    CHECK(json_of(run_sae({"eval", "--sae", work.at("sae"), "--data", data, "--max-norm", "none", "--json"})).at("rows") == 16);
    fs::remove_all(work.at("sae"));
  }
  REQUIRE(
      run_sae({"convert", "--sae", fixture("saelens_topk"), "--to", "saelens", "--dtype", "bfloat16", "--out", work.at("half")})
          .code == 0);
  CHECK(sae::load(work.at("half")).dtype == "bfloat16");
}

TEST_CASE("sae convert: weights in several files", "[cli][convert][shards]") {
  const sae_test::Workplace work;
  const std::string from = (peers / "saelens_topk").string();
  REQUIRE(run_sae({"convert", "--sae", from, "--to", "saelens", "--shard-bytes", "2000", "--out", work.at("sae")}).code == 0);
  CHECK(fs::exists(fs::path(work.at("sae")) / "sae_weights.safetensors.index.json"));
  CHECK_FALSE(fs::exists(fs::path(work.at("sae")) / "sae_weights.safetensors"));
  const sae::AnySae whole = sae::load(from), shards = sae::load(work.at("sae"));
  CHECK(shards.W_enc() == whole.W_enc());
  CHECK(shards.W_dec() == whole.W_dec());
  const auto refused =
      run_sae({"convert", "--sae", from, "--to", "dictionary_learning", "--shard-bytes", "2000", "--out", work.at("dl")});
  CHECK(refused.code != 0);
  CHECK_THAT(refused.err, ContainsSubstring("dictionary_learning is written as one file"));
}

TEST_CASE("sae convert: a latent as a control vector", "[cli][convert]") {
  const sae_test::Workplace work;
  const std::string sae = (peers / "gemma_scope_2").string();  // after layer 12
  const auto run =
      run_sae({"convert", "--sae", sae, "--to", "control-vector", "--latent", "5", "--scale", "3", "--out", work.at("v.gguf")});
  INFO(run.err);
  REQUIRE(run.code == 0);
  const sae::MappedFile file(work.at("v.gguf"));
  const sae::AnySae any = sae::load(sae);
  REQUIRE(file.size() % 32 == 0);
  const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()), file.size());
  CHECK(text.starts_with("GGUF"));
  CHECK(text.find("direction.12") != std::string_view::npos);
  float last = 0;
  std::memcpy(&last, file.bytes().data() + file.size() - 4, 4);
  CHECK(last == 3 * any.direction(5)[23]);
  CHECK(run_sae({"convert", "--sae", sae, "--to", "control-vector", "--out", work.at("w.gguf")}).code == 2);  // which latent?
  CHECK(run_sae({"convert", "--sae", sae, "--to", "control-vector", "--latent", "56", "--out", work.at("w.gguf")}).code == 1);
  CHECK(
      run_sae({"convert", "--sae", sae, "--to", "control-vector", "--latent", "5", "--layer", "3", "--out", work.at("w.gguf")})
          .code == 1);
  CHECK(run_sae({"convert", "--sae", sae, "--to", "sparsify", "--latent", "5", "--out", work.at("w")}).code == 2);
  CHECK(run_sae({"convert", "--sae", sae, "--to", "pickle", "--out", work.at("w")}).code == 2);
  CHECK(run_sae({"convert", "--sae", sae, "--to", "saelens", "--dtype", "int8", "--out", work.at("w")}).code == 2);
  const auto refused = run_sae({"convert", "--sae", sae, "--to", "sparsify", "--out", work.at("w")});
  CHECK(refused.code == 1);
  CHECK_THAT(refused.err, ContainsSubstring("is not written as sparsify"));
  CHECK_FALSE(fs::exists(work.at("w")));
}

TEST_CASE("verbs that need a SAE refuse a transcoder by its name", "[cli][convert]") {
  const sae_test::Workplace work;
  const std::string transcoder = (peers / "saelens_transcoder").string(),
                    data = (peers / "saelens_transcoder" / "x.npy").string();
  const auto codes = run_sae({"encode", "--sae", transcoder, "--data", data, "--out", work.at("codes.npy")});
  REQUIRE(codes.code == 0);
  const auto run = run_sae({"decode", "--sae", transcoder, "--codes", work.at("codes.npy"), "--out", work.at("rows.npy")});
  CHECK(run.code == 1);
  CHECK_THAT(run.err, ContainsSubstring("is a transcoder (transcoder); a SAE is needed here"));
}

#endif
