// Temporal SAEs in the program: where verbs cut sequences, and what they refuse.
#include <sae/files/npy.hpp>
#include <sae/formats/load.hpp>
#include <sae/host/collected_folder.hpp>
#include <sae/training/evaluate.hpp>

#include <cmath>
#include <limits>

#include "catch_compat.hpp"
#include "cli_test.hpp"

#ifdef SAE_TEST_PROGRAM

using namespace sae;
using Catch::Matchers::ContainsSubstring;
using sae_test::json_of;
using sae_test::peer_path;
using sae_test::run_sae;
using sae_test::with;
using sae_test::Words;
using sae_test::Workplace;

namespace {

const std::string temporal = peer_path("inference/saelens_temporal");
const std::string data = temporal + "/x.npy";

double largest_difference(const Matrix<float>& x, const Matrix<float>& y) {
  if (x.rows() != y.rows() || x.cols() != y.cols()) return std::numeric_limits<double>::infinity();
  return static_cast<double>((x - y).cwiseAbs().maxCoeff<Eigen::PropagateNaN>());
}

}  // namespace

TEST_CASE("sae encode, reconstruct: sequences of a temporal SAE are as long as it says, or as --context does",
          "[cli][temporal]") {
  const Workplace work;
  const auto run = [&](const char* verb, const Words& more = {}) {
    const auto done = run_sae(with({verb, "--sae", temporal, "--data", data, "--out", work.at("out"), "--force"}, more));
    INFO(done.err);
    REQUIRE(done.code == 0);
    return load_npy<float>(work.at("out"));
  };
  const Matrix<float> x = load_npy<float>(data), codes = load_npy<float>(temporal + "/codes.npy");
  CHECK(largest_difference(run("encode"), codes) < 2e-5);
  CHECK(largest_difference(run("reconstruct"), load_npy<float>(temporal + "/recon.npy")) < 2e-5);
  CHECK(run("encode", {"--threads", "1"}) == run("encode", {"--threads", "3"}));
  // A sequence begins where the chosen rows begin, and ends where it ends in the data.
  const AnySae sae = load(temporal);
  Matrix<float> want(11, 56);
  want.topRows(3) = sae.encode(x.middleRows(5, 3)).dense();
  want.bottomRows(8) = sae.encode(x.bottomRows(8)).dense();
  CHECK(run("encode", {"--skip-rows", "5"}) == want);
  CHECK(run("encode", {"--skip-rows", "5", "--rows", "4"}) ==
        (Matrix<float>(4, 56) << want.topRows(3), sae.encode(x.middleRows(8, 1)).dense()).finished());
  CHECK(run("encode", {"--context", "16"}) == sae.encode(x).dense());
  CHECK(run("encode", {"--context", "1000000000000"}) == sae.encode(x).dense());
}

TEST_CASE("sae encode, eval: what collect made is cut at its windows", "[cli][temporal]") {
  const Workplace work;
  const Matrix<float> x = load_npy<float>(data);
  const auto collect = [&](const std::string& name, CollectCounts counts) {
    CollectedInfo info;
    info.model_file = "toy.gguf";
    info.text_file = "toy.txt";
    info.sites = {{0, SiteKind::residual}};
    info.width = 24;
    info.context = 7;
    CollectedWriter writer(work.at(name), info);
    std::vector<RowOrigin> origins;
    for (std::int32_t b = 0; b < 16; ++b)
      origins.push_back({b, b < 7 ? 0 : b < 11 ? 1 : 2, b < 7 ? b : b < 11 ? b - 7 : b - 11});
    CollectedRows rows{origins, {}, {}};
    rows.sites.emplace_back(x.data(), 16, 24);
    writer.append(rows);
    writer.finish({counts, 3, {100}});
    return work.at(name);
  };
  const std::string whole = collect("whole", {16, 0, 0, 0}), holed = collect("holed", {16, 3, 1, 0});
  const AnySae sae = load(temporal);
  Matrix<float> want(16, 56);
  double error = 0;
  for (const auto& [first, count] : {std::pair(0, 7), std::pair(7, 4), std::pair(11, 5)}) {
    want.middleRows(first, count) = sae.encode(x.middleRows(first, count)).dense();
    error += static_cast<double>((sae.reconstruct(x.middleRows(first, count)) - x.middleRows(first, count)).squaredNorm()) / 16;
  }
  for (const std::string& folder : {whole, holed}) {
    const auto run = run_sae({"encode", "--sae", temporal, "--data", folder, "--out", work.at("codes.npy"), "--force"});
    CHECK(run.code == 0);
    CHECK(load_npy<float>(work.at("codes.npy")) == want);
    CHECK((run.err.find("4 rows of its windows were left out") != std::string::npos) == (folder == holed));
    const auto eval = run_sae({"eval", "--sae", temporal, "--data", folder, "--json"});
    CHECK(eval.code == 0);
    CHECK(json_of(eval).at("mse").get<double>() == Approx(error).epsilon(1e-6));
    CHECK(json_of(eval).at("rows") == 16);
  }
  const auto top = run_sae({"top", "--sae", temporal, "--data", whole, "--latents", "0-55", "--count", "3", "--json"});
  INFO(top.err);
  REQUIRE(top.code == 0);
  for (const auto& latent : json_of(top).at("latents")) {
    const Index i = latent.at("latent").get<Index>();
    CHECK(latent.at("active_rows") == (want.col(i).array() > 0).count());
    CHECK(static_cast<float>(latent.at("max").get<double>()) == want.col(i).maxCoeff());
  }
}

TEST_CASE("sae eval, inspect: a temporal SAE is measured and described as others are", "[cli][temporal]") {
  const Matrix<float> x = load_npy<float>(data), recon = load_npy<float>(temporal + "/recon.npy");
  const auto eval = run_sae({"eval", "--sae", temporal, "--data", data, "--json"});
  REQUIRE(eval.code == 0);
  CHECK(json_of(eval).at("mse").get<double>() == Approx(static_cast<double>((x - recon).squaredNorm()) / 16).epsilon(1e-4));
  CHECK(json_of(eval).at("l0") == 5);
  const auto other = run_sae({"eval", "--sae", temporal, "--data", data, "--context", "3", "--max-norm", "0.9x", "--json"});
  REQUIRE(other.code == 0);
  CHECK(json_of(other).at("rows_dropped").get<int>() > 0);
  const AnySae sae = load(temporal);
  const auto report = evaluate(*sae.get<TemporalSae<float>>(), x, {.max_norm = 0.9, .block = 3});
  CHECK(json_of(other).at("mse").get<double>() == Approx(report.mse).epsilon(1e-12));
  const auto inspect = run_sae({"inspect", temporal, "--json"});
  CHECK(json_of(inspect).at("architecture") == "temporal");
  CHECK(json_of(inspect).at("tensors").at("attn_layers.0.v_ctx.weight") == std::vector<int>{56, 56});
  CHECK_THAT(run_sae({"inspect", temporal, "--check"}).out, ContainsSubstring("temporal (topk, k = 5)"));
}

TEST_CASE("what means nothing of a temporal SAE, or of any other, is refused in one line", "[cli][temporal]") {
  const Workplace work;
  const auto refused = [&](int code, const Words& words, const std::string& says) {
    const auto run = run_sae(words);
    CHECK(run.code == code);
    CHECK_THAT(run.error(), ContainsSubstring(says));
  };
  const std::string topk = peer_path("inference/saelens_topk"), out = work.at("out");
  refused(1, {"decode", "--sae", temporal, "--codes", temporal + "/codes.npy", "--out", out},
          "codes alone do not tell what a temporal SAE predicts");
  refused(1, {"convert", "--sae", temporal, "--to", "sparsify", "--out", out}, "is not written as sparsify");
  refused(1, {"steer", "--model", "m.gguf", "--sae", temporal, "--latent", "1", "--ablate", "--prompt", "a"},
          "--ablate needs the codes of each token");
  refused(2, {"encode", "--sae", topk, "--data", topk + "/x.npy", "--context", "4", "--out", out},
          "--context belongs to temporal SAEs");
  refused(2, {"encode", "--sae", temporal, "--data", data, "--context", "0", "--out", out}, "--context");
  AnySae silent = load(temporal);
  silent.metadata.context_size = 0;
  save_saelens(silent, work.at("silent"));
  refused(2, {"eval", "--sae", work.at("silent"), "--data", data}, "--context does");
  CHECK(run_sae({"convert", "--sae", temporal, "--to", "saelens", "--out", work.at("saved")}).code == 0);
  CHECK(run_sae({"convert", "--sae", temporal, "--to", "control-vector", "--latent", "3", "--layer", "1", "--out", out}).code ==
        1);
  CHECK(work.names() == Words{"saved", "silent"});
}

#endif
