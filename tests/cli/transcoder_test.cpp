// Transcoders in the program: sae train --targets, and the verbs that read what it makes.
#include <sae/core/random.hpp>
#include <sae/files/npy.hpp>

#include <cmath>
#include <filesystem>

#include "catch_compat.hpp"
#include "cli_test.hpp"
#include "reference.hpp"

#ifdef SAE_TEST_PROGRAM

using namespace sae;
using Catch::Matchers::ContainsSubstring;
using nlohmann::json;
using sae_test::file_text;
using sae_test::json_of;
using sae_test::run_sae;
using sae_test::RunningSae;
using sae_test::with;
using sae_test::Words;
namespace fs = std::filesystem;

namespace {

/// Inputs of 8 numbers, targets of 6: rectified directions of the input and a straight part, around a mean.
struct Work : sae_test::Workplace {
  Work() {
    Random random(5);
    const auto fill = [&](Index rows, Index cols) {
      Matrix<float> out(rows, cols);
      for (Index i = 0; i < out.size(); ++i) out.data()[i] = static_cast<float>(random.normal());
      return out;
    };
    const Matrix<float> x = fill(3000, 8), read = fill(8, 10), write = fill(10, 6), straight = fill(8, 6);
    const Matrix<float> y = (((x * read).array() - 1).cwiseMax(0).matrix() * write + x * straight).array() + 4;
    save_npy(at("x.npy"), x);
    save_npy(at("y.npy"), y);
  }
  Words words(const std::string& out, const Words& more = {}) const {
    Words words{"train",   "--data", at("x.npy"), "--targets", at("y.npy"), "--latents", "40",    "--k",  "5",
                "--steps", "400",    "--batch",   "128",       "--seed",    "3",         "--out", at(out)};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
  json eval(const std::string& sae) const {
    return json_of(run_sae({"eval", "--sae", at(sae), "--data", at("x.npy"), "--targets", at("y.npy"), "--json"}));
  }
};

}  // namespace

TEST_CASE("sae train --targets: a transcoder that predicts, is measured, and is read by every verb", "[cli][transcoder]") {
  const Work work;
  const auto run = run_sae(work.words("skip", {"--skip", "--json", "--quiet"}));
  INFO(run.err);
  REQUIRE(run.code == 0);
  CHECK(json_of(run).at("architecture") == "topk_skip_transcoder");
  CHECK(json_of(run).at("d_in") == 8);
  CHECK(json_of(run).at("d_out") == 6);
  REQUIRE(run_sae(work.words("plain", {"--quiet"})).code == 0);

  const json skip = work.eval("skip"), plain = work.eval("plain");
  CHECK(skip.at("l0").get<double>() <= 5);
  CHECK(plain.at("explained_variance").get<double>() > 0.9);
  CHECK(skip.at("explained_variance").get<double>() > 0.9);
  CHECK(skip.at("median_encoder_decoder_cosine").is_null());

  const json seen = json_of(run_sae({"inspect", work.at("skip"), "--json", "--check"}));
  CHECK(seen.at("architecture") == "topk_skip_transcoder");
  CHECK(seen.at("d_out") == 6);
  CHECK(seen.at("tensors").at("W_skip") == json({6, 8}));

  // What `reconstruct` writes is what `eval` measures.
  REQUIRE(run_sae({"reconstruct", "--sae", work.at("skip"), "--data", work.at("x.npy"), "--out", work.at("p.npy")}).code == 0);
  const Matrix<double> y = load_npy<double>(work.at("y.npy")), predicted = load_npy<double>(work.at("p.npy"));
  REQUIRE(predicted.rows() == y.rows());
  REQUIRE(predicted.cols() == 6);
  const double mse = (predicted - y).squaredNorm() / static_cast<double>(y.rows());
  CHECK(skip.at("mse").get<double>() == Approx(mse).epsilon(1e-5));
  REQUIRE(run_sae({"encode", "--sae", work.at("skip"), "--data", work.at("x.npy"), "--out", work.at("f.npy")}).code == 0);
  const Matrix<double> f = load_npy<double>(work.at("f.npy"));
  REQUIRE(f.cols() == 40);
  CHECK(static_cast<double>((f.array() != 0).count()) / static_cast<double>(f.rows()) == Approx(skip.at("l0").get<double>()));
}

TEST_CASE("sae train --targets: interrupted and gone on with, by any number of threads: the same bytes", "[cli][transcoder]") {
  const Work work;
  REQUIRE(run_sae(work.words("first", {"--skip", "--quiet"})).code == 0);
  for (const Words& start : {Words{"--skip"}, Words{"--init", work.at("first")}}) {
    CAPTURE(start);
    const auto bytes = [&](const std::string& sae) { return file_text(work.at(sae + "/sae_weights.safetensors")); };
    const auto words = [&](const std::string& out, const Words& options) {
      Words all = work.words(out);
      const auto at = std::find(all.begin(), all.end(), "--steps");
      all.erase(at, at + 2);
      return with(with(all, start), with({"--steps", "3000", "--checkpoint-every", "50"}, options));
    };
    REQUIRE(run_sae(words("whole", {"--threads", "1", "--quiet", "--force"})).code == 0);
    fs::remove_all(work.at("cut"));
    const Words resumed{"--threads", "2", "--resume"};
    {
      RunningSae sae(words("cut", resumed), work.at("err"));
      REQUIRE(sae.until([&] { return fs::exists(work.at("cut.partial/checkpoint.safetensors")); }));
      sae.signal(SIGINT);
      REQUIRE(sae.wait() == 130);
    }
    const auto last = run_sae(words("cut", resumed));
    INFO(last.err);
    REQUIRE(last.code == 0);
    CHECK_THAT(last.err, ContainsSubstring("going on from step "));
    CHECK(bytes("cut") == bytes("whole"));
  }
}

TEST_CASE("sae train --targets --init: goes on from where the transcoder stands", "[cli][transcoder]") {
  const Work work;
  const auto predictions = [&](const std::string& sae) {
    REQUIRE(run_sae({"reconstruct", "--sae", work.at(sae), "--data", work.at("x.npy"), "--out", work.at("p.npy"), "--force"})
                .code == 0);
    return load_npy<float>(work.at("p.npy"));
  };
  const auto again = [&](const Words& more) {
    const auto run = run_sae(with({"train", "--data", work.at("x.npy"), "--targets", work.at("y.npy"), "--init",
                                   work.at("first"), "--out", work.at("again"), "--force", "--json"},
                                  more));
    INFO(run.err);
    REQUIRE(run.code == 0);
    return run;
  };
  const Words still{"--steps", "1", "--batch", "3000", "--lr", "1e-12", "--quiet"};
  const std::vector<Words> kinds = {{"--skip"},
                                    {"--decoder", "unit"},
                                    {"--activation", "batchtopk"},
                                    {"--activation", "jumprelu"},
                                    {"--activation", "gated"}};
  for (const Words& kind : kinds) {
    CAPTURE(kind);
    Words first = with({"--quiet", "--force"}, kind);
    Words words = work.words("first", first);
    if (kind[0] == "--activation" && kind[1] != "batchtopk") {
      const auto k = std::find(words.begin(), words.end(), "--k");
      words.erase(k, k + 2);
    }
    const auto made = run_sae(words);
    INFO(made.err);
    REQUIRE(made.code == 0);
    const double reached = work.eval("first").at("explained_variance").get<double>();
    const Matrix<float> before = predictions("first");
    // Unit decoder rows are made so exactly, where they can be.
    const bool can_be_unit = kind[0] == "--decoder" || (kind[0] == "--activation" && kind[1] != "batchtopk");
    for (const char* decoder : {"free", "unit"})
      for (const char* scale : {"none", "mean-square", "sqrt-d"}) {
        CAPTURE(decoder, scale);
        if (std::string(decoder) == "unit" && !can_be_unit) continue;
        const json told = json_of(again(with(still, {"--decoder", decoder, "--normalise", scale})));
        CHECK(told.at("explained_variance").get<double>() >= reached - 1e-3);
        if (kind[1 % kind.size()] != "batchtopk")  // whose batches are not its threshold
          CHECK(told.at("explained_variance").get<double>() == Approx(reached).epsilon(1e-4));
        CHECK(sae_test::largest_difference(predictions("again"), before) <= 1e-4);
      }
    if (kind[0] == "--skip") {
      CHECK(json_of(run_sae({"inspect", "--json", work.at("again")})).at("architecture") == "topk_skip_transcoder");
      REQUIRE(again({"--steps", "300", "--batch", "128", "--quiet"}).code == 0);
      CHECK(work.eval("again").at("explained_variance").get<double>() > reached);
    }
  }
  // A skip that the file does not have starts at 0.
  REQUIRE(run_sae(work.words("first", {"--quiet", "--force"})).code == 0);
  const Matrix<float> before = predictions("first");
  const auto skip = again({"--steps", "1", "--lr", "1e-12", "--skip"});
  CHECK_THAT(skip.err, ContainsSubstring("has no skip; that of --skip starts at 0"));
  CHECK(json_of(skip).at("architecture") == "topk_skip_transcoder");
  CHECK(sae_test::largest_difference(predictions("again"), before) <= 1e-4);
}

TEST_CASE("sae train --targets: what does not fit is refused in one line", "[cli][transcoder]") {
  const Work work;
  save_npy(work.at("short.npy"), Matrix<float>(load_npy<float>(work.at("y.npy")).topRows(2999)));
  save_npy(work.at("narrow.npy"), Matrix<float>(load_npy<float>(work.at("y.npy")).leftCols(5)));
  REQUIRE(run_sae(work.words("t", {"--quiet"})).code == 0);
  REQUIRE(run_sae({"train", "--data", work.at("x.npy"), "--latents", "16", "--k", "2", "--steps", "5", "--quiet", "--out",
                   work.at("sae")})
              .code == 0);
  const auto fails = [&](const Words& words, int code, const std::string& text) {
    CAPTURE(text);
    const auto run = run_sae(words);
    CHECK(run.code == code);
    CHECK_THAT(run.err, ContainsSubstring(text));
  };
  const Words train{"train", "--data", work.at("x.npy"), "--latents", "16", "--quiet", "--out", work.at("no")};
  fails(with(train, {"--targets", work.at("short.npy")}), 1, "has 2999 rows, " + work.at("x.npy") + " has 3000");
  fails(with(train, {"--skip"}), 2, "--skip belongs to transcoders");
  fails(with(train, {"--targets", work.at("y.npy"), "--init", work.at("sae")}), 1, work.at("sae") + ": is a SAE");
  fails(with(train, {"--targets", work.at("y.npy"), "--normalise", "whitening"}), 2,
        "--normalise whitening is for autoencoders");
  fails(with(train, {"--init", work.at("t")}), 1, work.at("t") + ": is a transcoder");
  const Words again{"train", "--data", work.at("x.npy"), "--init", work.at("t"), "--steps", "1", "--out", work.at("no")};
  fails(with(again, {"--targets", work.at("narrow.npy")}), 1, "predicts rows of 6 numbers, the targets have 5");
  fails(with(again, {"--targets", work.at("y.npy"), "--latents", "41"}), 1, "that training starts from has 40");
  fails(with(again, {"--targets", work.at("y.npy"), "--activation", "relu"}), 1, "is topk");
  fails(with(again, {"--targets", work.at("y.npy"), "--decoder", "unit"}), 1, "train it with --decoder free");
  const auto eval = [&](const std::string& sae, const Words& more) {
    return with({"eval", "--sae", work.at(sae), "--data", work.at("x.npy")}, more);
  };
  fails(eval("t", {}), 2, "needs --targets");
  fails(eval("t", {"--targets", work.at("narrow.npy")}), 1, "rows are 5 wide, the transcoder predicts rows of 6");
  fails(eval("t", {"--targets", work.at("short.npy")}), 1, "has 2999 rows");
  fails(eval("sae", {"--targets", work.at("y.npy")}), 2, "--targets belongs to transcoders");
  CHECK_FALSE(fs::exists(work.at("no")));
}

#endif
