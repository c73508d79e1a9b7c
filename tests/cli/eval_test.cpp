// sae eval and sae inspect: the peers' own figures, the keys, the rows that are left out.
#include <sae/files/npy.hpp>

#include <cmath>

#include "catch_compat.hpp"
#include "cli_test.hpp"

#ifdef SAE_TEST_PROGRAM

using namespace sae;
using Catch::Matchers::ContainsSubstring;
using nlohmann::json;
using nlohmann::ordered_json;
using sae_test::file_text;
using sae_test::json_of;
using sae_test::keys_of;
using sae_test::peer_path;
using sae_test::run_sae;
using sae_test::Words;
using sae_test::Workplace;
using sae_test::write_text;

namespace {

const std::string measured = peer_path("metrics/reconstruction_and_sparsity");
const std::string topk = peer_path("inference/saelens_topk");

void check_figures(const json& found, const json& peer) {
  const auto near = [&](const char* name, const char* peer_name) {
    INFO(name);
    CHECK(found.at(name).get<double>() == Approx(peer.at(peer_name).get<double>()).epsilon(2e-6));
  };
  near("l0", "l0");
  near("l1", "l1");
  near("mse", "mse_sum_over_d_mean_over_rows");
  near("explained_variance", "explained_variance");
  near("cosine", "cossim");
  near("l2_ratio", "l2_ratio");
  CHECK(found.at("dead_latents") == peer.at("dead_latents"));
}

}  // namespace

TEST_CASE("sae eval: the figures that SAELens and the formulas give, under the keys of the contract", "[cli]") {
  const auto run = run_sae({"eval", "--sae", measured, "--data", measured + "/x.npy", "--json"});
  REQUIRE(run.code == 0);
  const auto found = ordered_json::parse(run.out);
  CHECK(keys_of(found) == Words{"rows", "rows_dropped", "l0", "l1", "mse", "explained_variance", "cosine", "l2_ratio",
                                "dead_latents", "dense_latents", "median_encoder_decoder_cosine"});
  const json peer = json::parse(file_text(measured + "/expected.json")).at("float64_one_batch");
  CHECK(found.at("rows") == 512);
  CHECK(found.at("rows_dropped") == 0);
  check_figures(found, peer);
  CHECK(found.at("median_encoder_decoder_cosine").get<double>() ==
        Approx(peer.at("encoder_decoder_cosine_median").get<double>()).epsilon(1e-5));
  CHECK(run_sae({"eval", "--sae", measured, "--data", measured + "/x.npy", "--json", "--threads", "1"}).out == run.out);

  const auto table = run_sae({"eval", "--sae", measured, "--data", measured + "/x.npy"});
  CHECK(table.code == 0);
  CHECK_THAT(table.out, ContainsSubstring("explained variance  0.2488"));
  CHECK_THAT(table.out, ContainsSubstring("dead latents        3 "));
}

TEST_CASE("sae eval: rows of a huge norm are left out of the figures and stand in all_rows", "[cli]") {
  const Workplace work;
  const Matrix<float> x = load_npy<float>(measured + "/x.npy");
  Matrix<float> with_sinks(514, x.cols());
  with_sinks.row(0) = 1000.0F * x.row(3);
  with_sinks.middleRows(1, 512) = x;
  with_sinks.row(513) = 500.0F * x.row(3);
  save_npy(work.at("x.npy"), with_sinks);
  const auto run = run_sae({"eval", "--sae", measured, "--data", work.at("x.npy"), "--max-norm", "10x", "--json"});
  REQUIRE(run.code == 0);
  const auto found = ordered_json::parse(run.out);
  CHECK(found.at("rows") == 512);
  CHECK(found.at("rows_dropped") == 2);
  check_figures(found, json::parse(file_text(measured + "/expected.json")).at("float64_one_batch"));
  const ordered_json& all = found.at("all_rows");
  CHECK(keys_of(all) ==
        Words{"rows", "l0", "l1", "mse", "explained_variance", "cosine", "l2_ratio", "dead_latents", "dense_latents"});
  CHECK(all.at("rows") == 514);
  CHECK(all.at("mse").get<double>() > 100 * found.at("mse").get<double>());
  CHECK_THAT(run_sae({"eval", "--sae", measured, "--data", work.at("x.npy"), "--max-norm", "10"}).out,
             ContainsSubstring("2 rows with a norm above"));

  const auto part =
      json_of(run_sae({"eval", "--sae", measured, "--data", work.at("x.npy"), "--skip-rows", "1", "--rows", "512", "--json"}));
  CHECK(part.at("rows") == 512);
  check_figures(part, json::parse(file_text(measured + "/expected.json")).at("float64_one_batch"));
}

TEST_CASE("sae eval: undefined figures are null, wrong files are refused", "[cli]") {
  const Workplace work;
  save_npy(work.at("one.npy"), Matrix<float>(Matrix<float>::Ones(1, 24)));
  const auto one = json_of(run_sae({"eval", "--sae", topk, "--data", work.at("one.npy"), "--json"}));
  CHECK(one.at("rows") == 1);
  CHECK(one.at("explained_variance").is_null());
  Matrix<float> bad = Matrix<float>::Ones(5, 24);
  bad(4, 23) = -std::numeric_limits<float>::infinity();
  save_npy(work.at("bad.npy"), bad);
  const auto refused = run_sae({"eval", "--sae", topk, "--data", work.at("bad.npy"), "--json"});
  CHECK(refused.code == 1);
  CHECK(refused.out.empty());
  CHECK_THAT(refused.error(), ContainsSubstring("bad.npy: row 4 holds a number that is not finite"));
  const auto none = run_sae({"eval", "--sae", topk, "--data", work.at("one.npy"), "--max-norm", "0.001x"});
  CHECK(none.code == 1);
  CHECK_THAT(none.error(), ContainsSubstring("all 1 rows have a norm above max_norm = 0.001 medians"));
  save_npy(work.at("wide.npy"), Matrix<float>(Matrix<float>::Ones(2, 25)));
  CHECK_THAT(run_sae({"eval", "--sae", topk, "--data", work.at("wide.npy")}).error(), ContainsSubstring("rows are 25 wide"));
}

TEST_CASE("sae inspect: what a SAE is, under the keys of the contract", "[cli]") {
  const auto run = run_sae({"inspect", topk, "--json"});
  REQUIRE(run.code == 0);
  const auto found = ordered_json::parse(run.out);
  CHECK(keys_of(found) ==
        Words{"layout", "architecture", "d_in", "d_out", "latents", "dtype", "tensors", "config", "warnings"});
  CHECK(found.at("layout") == "saelens");
  CHECK(found.at("architecture") == "topk");
  CHECK(found.at("d_in") == 24);
  CHECK(found.at("d_out") == 24);
  CHECK(found.at("latents") == 56);
  CHECK(found.at("dtype") == "float32");
  CHECK(found.at("tensors") == ordered_json::parse(R"({"W_dec": [56, 24], "W_enc": [24, 56], "b_dec": [24], "b_enc": [56]})"));
  CHECK(found.at("config").at("k") == 6);
  CHECK(found.at("warnings").empty());
  CHECK(run_sae({"inspect", topk + "/cfg.json", "--json"}).out == run.out);
  CHECK(run_sae({"inspect", topk + "/sae_weights.safetensors", "--json"}).out == run.out);
  CHECK(json_of(run_sae({"inspect", peer_path("inference/saelens_standard_bf16"), "--json"})).at("dtype") == "bfloat16");

  const auto table = run_sae({"inspect", topk, "--check"});
  CHECK(table.code == 0);
  CHECK_THAT(table.out, ContainsSubstring("topk, k = 6"));
  CHECK_THAT(table.out, ContainsSubstring("all finite"));
}

TEST_CASE("sae inspect: warnings are told, what is no SAE gets one sentence", "[cli]") {
  const auto warned = json_of(run_sae({"inspect", peer_path("inference/saelens_standard_hook_z"), "--json"}));
  REQUIRE(warned.at("warnings").size() >= 1);
  CHECK_THAT(warned.at("warnings")[0].get<std::string>(), ContainsSubstring("hook_z"));
  const Workplace work;
  write_text(work.at("notes.txt"), "no SAE");
  std::filesystem::create_directory(work.at("folder"));
  std::filesystem::copy(topk, work.at("cut"));
  const std::string weights = file_text(topk + "/sae_weights.safetensors");
  write_text(work.at("cut/sae_weights.safetensors"), weights.substr(0, weights.size() - 4));
  std::filesystem::copy(topk, work.at("header"));
  write_text(work.at("header/sae_weights.safetensors"), std::string("\xff\xff\xff\xff\xff\xff\xff\x7f", 8) + weights.substr(8));
  std::filesystem::copy(topk, work.at("nan"));
  std::string broken = weights;
  const std::uint32_t nan = 0x7fc00000;
  std::memcpy(broken.data() + broken.size() - 4, &nan, 4);
  write_text(work.at("nan/sae_weights.safetensors"), broken);
  const auto fails = [&](const std::string& name, const std::string& with) {
    const auto run = run_sae({"inspect", work.at(name), "--check", "--json"});
    INFO(name << ": " << run.err);
    CHECK(run.code == 1);
    CHECK(run.out.empty());
    CHECK_THAT(run.error(), ContainsSubstring(with));
  };
  fails("missing", "missing: there is no such file or folder");
  fails("notes.txt", "notes.txt: is no SAE");
  fails("folder", "folder");
  fails("cut", "cut/sae_weights.safetensors: ");
  fails("header", "header/sae_weights.safetensors: ");
  fails("nan", "nan/sae_weights.safetensors: ");
  CHECK(json_of(run_sae({"inspect", work.at("nan"), "--json"})).at("latents") == 56);  // to look at it, without --check
  std::filesystem::copy(peer_path("inference/saelens_standard_layer_norm"), work.at("unknown"));
  std::string config = file_text(work.at("unknown/cfg.json"));
  const std::size_t at = config.find("\"layer_norm\"");
  REQUIRE(at != std::string::npos);
  write_text(work.at("unknown/cfg.json"), config.replace(at, 12, "\"batch_norm\""));
  fails("unknown", "normalize_activations = \"batch_norm\" is not supported");
}

#endif
