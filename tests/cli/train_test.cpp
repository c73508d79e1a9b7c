// sae train: what it makes, what it refuses, and that a training which was stopped or killed ends with the same bytes.
#include <sae/core/random.hpp>
#include <sae/files/npy.hpp>
#include <sae/host/collected_folder.hpp>

#include <cmath>
#include <limits>
#include <sstream>

#include "catch_compat.hpp"
#include "cli_test.hpp"

#ifdef SAE_TEST_PROGRAM

using namespace sae;
using Catch::Matchers::ContainsSubstring;
using nlohmann::json;
using nlohmann::ordered_json;
using sae_test::file_text;
using sae_test::Finished;
using sae_test::json_of;
using sae_test::keys_of;
using sae_test::run_sae;
using sae_test::RunningSae;
using sae_test::with;
using sae_test::Words;
using sae_test::Workplace;
using sae_test::write_text;
namespace fs = std::filesystem;

namespace {

/// Rows of 12 directions in 8 dimensions, about two of them in a row, on a far mean.
Matrix<float> some_rows(Index rows, std::uint64_t seed = 1) {
  constexpr Index features = 12, width = 8;
  Random world(11), random(seed);
  Matrix<float> directions(features, width);
  for (Index i = 0; i < directions.size(); ++i) directions.data()[i] = static_cast<float>(world.normal());
  directions.rowwise().normalize();
  Matrix<float> x = Matrix<float>::Constant(rows, width, 5.0F);
  for (Index r = 0; r < rows; ++r)
    for (Index i = 0; i < features; ++i)
      if (random.uniform() < 0.15) x.row(r) += static_cast<float>(10 * random.uniform(0.5, 1.5)) * directions.row(i);
  return x;
}

struct Training : Workplace {
  Training() { save_npy(at("x.npy"), some_rows(3000)); }
  Words words(const std::string& out, const Words& more) const {
    Words words = {"train", "--data", at("x.npy"), "--latents", "24", "--k", "3", "--out", at(out)};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
  Finished train(const std::string& out, const Words& more) const {
    Finished run = run_sae(words(out, more));
    INFO(run.err);
    CHECK(run.code == 0);
    return run;
  }
  std::string weights(const std::string& out) const { return file_text(at(out + "/sae_weights.safetensors")); }
  /// Both files, so that equal ones are the same SAE.
  bool same(const std::string& a, const std::string& b) const {
    return weights(a) == weights(b) && file_text(at(a + "/cfg.json")) == file_text(at(b + "/cfg.json"));
  }
  double explained_variance(const std::string& sae) const {
    return json_of(run_sae({"eval", "--sae", at(sae), "--data", at("x.npy"), "--json"})).at("explained_variance").get<double>();
  }
};

const Words short_run = {"--steps", "200", "--batch", "128", "--lr", "0.01", "--seed", "3"};

std::vector<json> lines_of(const std::string& path) {
  std::istringstream in(file_text(path));
  std::vector<json> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(json::parse(line));
  return lines;
}

}  // namespace

TEST_CASE("sae train: a TopK autoencoder as SAELens reads it, with what was said on the way", "[cli]") {
  const Training work;
  const auto run = work.train("sae", with(short_run, {"--json", "--log", work.at("run.jsonl"), "--report-every", "50"}));
  const auto told = ordered_json::parse(run.out);
  CHECK(keys_of(told) == Words{"out", "architecture", "d_in", "d_out", "latents", "steps", "tokens", "learning_rate", "loss",
                               "l0", "explained_variance", "dead_latents"});
  CHECK(told.at("architecture") == "topk");
  CHECK(told.at("d_in") == 8);
  CHECK(told.at("latents") == 24);
  CHECK(told.at("steps") == 200);
  CHECK(told.at("tokens") == 200 * 128);
  CHECK(told.at("learning_rate") == 0.01);
  CHECK(told.at("l0").get<double>() <= 3.0);
  CHECK(work.names() == Words{"run.jsonl", "sae", "x.npy"});
  CHECK(fs::exists(work.at("sae/cfg.json")));
  CHECK(std::distance(fs::directory_iterator(work.at("sae")), fs::directory_iterator()) == 2);
  const json config = json::parse(file_text(work.at("sae/cfg.json")));
  CHECK(config.at("k") == 3);
  CHECK(config.at("d_sae") == 24);
  CHECK(config.at("normalize_activations") == "none");
  CHECK(work.explained_variance("sae") > 0.9);

  const auto log = lines_of(work.at("run.jsonl"));
  REQUIRE(log.size() == 4);
  CHECK(log[0].at("step") == 50);
  CHECK(log[3].at("step") == 200);
  CHECK(log[3].at("loss").get<double>() == told.at("loss").get<double>());
  CHECK(log[3].at("explained_variance").get<double>() == told.at("explained_variance").get<double>());
  for (const char* key : {"tokens", "reconstruction", "aux_k", "l0", "dead_latents", "learning_rate"})
    CHECK(log[1].contains(key));
  CHECK_THAT(run.err, ContainsSubstring("step 200/200"));
}

TEST_CASE("sae train: sizes alone are enough", "[cli]") {
  const Training work;
  const auto run =
      run_sae({"train", "--data", work.at("x.npy"), "--latents", "24", "--k", "3", "--out", work.at("sae"), "--quiet"});
  CHECK(run.code == 0);
  CHECK(run.err.empty());
  CHECK_THAT(run.out, ContainsSubstring("500 steps"));
  CHECK(work.explained_variance("sae") > 0.9);
}

TEST_CASE("sae train: every option changes the bytes, threads do not", "[cli]") {
  const Training work;
  const Words base = with(short_run, {"--quiet"});
  work.train("one", with(base, {"--threads", "1"}));
  work.train("two", with(base, {"--threads", "2"}));
  CHECK(work.same("one", "two"));
  const std::vector<Words> changes = {{"--order", "sequential"},
                                      {"--normalise", "none"},
                                      {"--normalise", "sqrt-d"},
                                      {"--center", "none"},
                                      {"--center", "median"},
                                      {"--decoder", "free"},
                                      {"--clip", "0.1"},
                                      {"--warmup", "0"},
                                      {"--decay", "0"},
                                      {"--skip-rows", "100"},
                                      {"--rows", "2000"},
                                      {"--normalise", "whitening"},
                                      {"--normalise", "layer-norm"},
                                      {"--normalise", "constant-norm"},
                                      {"--ema", "0.9"},
                                      {"--optimizer", "adamw"},
                                      {"--optimizer", "muon"},
                                      {"--optimizer", "adafactor"},
                                      {"--optimizer", "schedule-free"},
                                      {"--moments", "bfloat16"},
                                      {"--k-start", "8"},
                                      {"--k-start", "8", "--k-steps", "10"},
                                      {"--multi-topk"},
                                      {"--hierarchical"},
                                      {"--prefixes", "8,16"}};
  for (const Words& change : changes) {
    INFO(change.front() << " " << change.back());
    work.train("other", with(base, with(change, {"--force"})));
    CHECK(work.weights("other") != work.weights("one"));
    CHECK(work.explained_variance("other") > 0.5);
  }
  // Errors of rows as they are, or as normalised.
  for (const char* kind : {"layer-norm", "constant-norm"}) {
    const Words normalised{"--normalise", kind, "--force"};
    work.train("raw", with(base, with(normalised, {"--loss-space", "raw"})));
    work.train("normalised", with(base, with(normalised, {"--loss-space", "normalised"})));
    work.train("other", with(base, normalised));
    CHECK(work.same("raw", "other"));
    CHECK(work.weights("raw") != work.weights("normalised"));
    const json config = json::parse(file_text(work.at("normalised/cfg.json")));
    CHECK(config.at("normalize_activations") == (kind == std::string("layer-norm") ? "layer_norm" : "constant_norm_rescale"));
  }
  for (const auto& [words, message] : std::vector<std::pair<Words, std::string>>{
           {{"--k", "3", "--optimizer", "muon", "--moments", "bfloat16"},
            "moments = bfloat16 is for optimizers that update row by row"},
           {{"--moments", "float16"}, "not in {full,bfloat16}"},
           {{"--activation", "relu", "--multi-topk"}, "--multi-topk belongs to --activation topk"},
           {{"--activation", "batchtopk", "--hierarchical"}, "--hierarchical belongs to --activation topk"},
           {{"--activation", "groupmax", "--k-start", "9"}, "--k-start belongs to --activation topk, batchtopk and abstopk"},
           {{"--k-steps", "9"}, "--k-start"},
           {{"--k", "3", "--k-start", "1000"}, "k_annealing.from = 1000"}}) {
    Words asked{"train", "--data", work.at("x.npy"), "--latents", "24", "--out", work.at("no")};
    const auto run = run_sae(with(asked, with(base, words)));
    CHECK(run.code != 0);
    CHECK_THAT(run.err, ContainsSubstring(message));
  }
  for (const Words& list :
       std::vector<Words>{{"--k", "3,4"}, {"--latents", "24,48"}, {"--lr", "0.01,0.02"}, {"--activation", "topk,relu"}}) {
    const auto run = run_sae(with({"train", "--data", work.at("x.npy"), "--steps", "9", "--out", work.at("no")}, list));
    CHECK(run.code == 2);
    CHECK_THAT(run.err, ContainsSubstring(list[1] + " is a list: sae sweep"));
  }
  const auto refused = run_sae(work.words("no", with(base, {"--loss-space", "normalised"})));
  CHECK(refused.code == 1);
  CHECK_THAT(refused.err, ContainsSubstring("loss_space = normalised is for a model with an InputNormalisation"));
  // With a window of one batch latents die and come back, so that AuxK has work to do.
  work.train("aux", with(base, {"--dead-window", "128", "--threads", "1"}));
  work.train("aux2", with(base, {"--dead-window", "128", "--aux-k", "2", "--aux-coefficient", "0.5", "--threads", "2"}));
  CHECK(work.weights("aux") != work.weights("one"));
  CHECK(work.weights("aux2") != work.weights("aux"));
}

TEST_CASE("sae train: ReLU with its L1 term", "[cli]") {
  const Training work;
  const auto train = [&](const std::string& out, const Words& more) {
    Words words = {"train",        "--data", work.at("x.npy"), "--latents",  "24",
                   "--activation", "relu",   "--out",          work.at(out), "--json"};
    const auto run = run_sae(with(with(words, short_run), more));
    INFO(run.err);
    CHECK(run.code == 0);
    return json_of(run);
  };
  const json weak = train("weak", {"--l1", "0.01"}), strong = train("strong", {"--l1", "0.3"}),
             free = train("free", {"--l1", "0.01", "--decoder", "free"});
  CHECK(weak.at("architecture") == "standard");
  CHECK(weak.at("l0").get<double>() > strong.at("l0").get<double>());
  CHECK(weak.at("explained_variance").get<double>() > 0.9);
  CHECK(free.at("explained_variance").get<double>() > 0.9);
  CHECK(work.explained_variance("weak") > 0.9);
}

TEST_CASE("sae train: starts from a SAE, whatever rows are scaled by", "[cli]") {
  const Training work;
  work.train("sae", with(short_run, {"--quiet"}));
  for (const char* scale : {"mean-square", "none", "sqrt-d"}) {
    const auto run = run_sae({"train", "--data", work.at("x.npy"), "--init", work.at("sae"), "--steps", "1", "--batch", "64",
                              "--lr", "1e-12", "--normalise", scale, "--out", work.at("again"), "--force", "--quiet"});
    INFO(run.err);
    REQUIRE(run.code == 0);
    REQUIRE(run_sae({"reconstruct", "--sae", work.at("sae"), "--data", work.at("x.npy"), "--out", work.at("a.npy"), "--force"})
                .code == 0);
    REQUIRE(
        run_sae({"reconstruct", "--sae", work.at("again"), "--data", work.at("x.npy"), "--out", work.at("b.npy"), "--force"})
            .code == 0);
    CHECK((load_npy<float>(work.at("a.npy")) - load_npy<float>(work.at("b.npy"))).cwiseAbs().maxCoeff<Eigen::PropagateNaN>() <
          1e-3F);
  }
  // Tied rows that are unit vectors already.
  work.train("tied", with(short_run, {"--activation", "matching_pursuit", "--quiet"}));
  const auto tied = run_sae({"train", "--data", work.at("x.npy"), "--init", work.at("tied"), "--steps", "1", "--batch", "64",
                             "--lr", "1e-12", "--out", work.at("again"), "--force", "--quiet"});
  INFO(tied.err);
  REQUIRE(tied.code == 0);
  CHECK(work.explained_variance("again") == Approx(work.explained_variance("tied")).epsilon(1e-4));
  const auto refused = [&](const Words& more, const std::string& with_text) {
    const auto run = run_sae(with({"train", "--init", work.at("sae"), "--steps", "1", "--out", work.at("no")}, more));
    CHECK(run.code == 1);
    CHECK_THAT(run.error(), ContainsSubstring(with_text));
  };
  save_npy(work.at("wide.npy"), Matrix<float>(Matrix<float>::Ones(2000, 9)));
  refused({"--data", work.at("wide.npy")}, "reads rows of 8 numbers, the data has 9");
  refused({"--data", work.at("x.npy"), "--latents", "25"}, "has 24");
  refused({"--data", work.at("x.npy"), "--activation", "relu"}, "is topk");
}

TEST_CASE("sae train: a collected folder says which model and layer the SAE is of", "[cli]") {
  const Training work;
  const Matrix<float> x = some_rows(2000);
  CollectedInfo info;
  info.model_name = "tiny";
  info.width = 8;
  info.context = 100;
  info.has_bos = true;
  info.sites = {{3, SiteKind::mlp_out}};
  CollectedWriter writer(work.at("rows"), info);
  std::vector<RowOrigin> origins(2000);
  CollectedRows rows{origins, {}};
  rows.sites.emplace_back(x.data(), 2000, 8);
  writer.append(rows);
  writer.finish({{.kept = 2000}, 20, {100.0}});
  for (const char* data : {"rows", "rows/mlp_out-3"}) {
    const auto run = run_sae(
        {"train", "--data", work.at(data), "--latents", "16", "--k", "2", "--steps", "2", "--out", work.at("sae"), "--force"});
    INFO(run.err);
    REQUIRE(run.code == 0);
    const json metadata = json::parse(file_text(work.at("sae/cfg.json"))).at("metadata");
    CHECK(metadata ==
          json::parse(
              R"({"model_name": "tiny", "hook_name": "blocks.3.hook_mlp_out", "context_size": 100, "prepend_bos": true})"));
  }
}

TEST_CASE("sae train: stopped or killed at any time it ends with the same bytes", "[cli]") {
  const Training work;
  const Words run = {"--steps", "3000",           "--batch", "64", "--lr", "0.01", "--seed", "3", "--checkpoint-every",
                     "40",      "--report-every", "10"};
  work.train("whole", with(run, {"--quiet"}));
  const Words resumable = work.words("sae", with(run, {"--log", work.at("run.jsonl"), "--resume"}));
  const auto ready = [&] { return fs::exists(work.at("sae.partial/checkpoint.safetensors")); };
  {
    RunningSae sae(resumable, work.at("err"));  // --resume starts afresh where there is nothing
    REQUIRE(sae.until(ready));
    sae.signal(SIGINT);
    CHECK(sae.wait() == 130);
    CHECK_THAT(file_text(work.at("err")), ContainsSubstring("sae: stopped at step "));
    CHECK_THAT(file_text(work.at("err")), ContainsSubstring("--resume goes on from there"));
    CHECK(ready());
    CHECK_FALSE(fs::exists(work.at("sae")));
  }
  {
    RunningSae sae(resumable, work.at("err"));
    const auto size = fs::file_size(work.at("sae.partial/log.jsonl"));
    std::error_code gone;
    REQUIRE(sae.until([&] { return fs::file_size(work.at("sae.partial/log.jsonl"), gone) > size + 300; }));
    sae.signal(SIGTERM);
    CHECK(sae.wait() == 143);
    CHECK_THAT(file_text(work.at("err")), ContainsSubstring("going on from step "));
  }
  for (int kill = 1; kill <= 3; ++kill) {
    RunningSae sae(resumable, work.at("err"));
    const auto checkpoint = fs::last_write_time(work.at("sae.partial/checkpoint.safetensors"));
    std::error_code gone;
    if (!sae.until([&] { return fs::last_write_time(work.at("sae.partial/checkpoint.safetensors"), gone) != checkpoint; }))
      break;
    std::this_thread::sleep_for(std::chrono::milliseconds(3 * kill));
    sae.signal(SIGKILL);
    const int code = sae.wait();
    CHECK((code == 1000 + SIGKILL || code == 0));
    if (code == 0) break;
    CHECK_FALSE(fs::exists(work.at("sae")));
  }
  if (!fs::exists(work.at("sae"))) {
    const auto last = run_sae(resumable);
    INFO(last.err);
    REQUIRE(last.code == 0);
    CHECK_THAT(last.err, ContainsSubstring("going on from step "));
  }
  CHECK(work.same("sae", "whole"));
  CHECK_FALSE(fs::exists(work.at("sae.partial")));
  const auto log = lines_of(work.at("run.jsonl"));
  REQUIRE(log.size() == 300);
  for (std::size_t i = 0; i < log.size(); ++i) CHECK(log[i].at("step") == 10 * (i + 1));
}

TEST_CASE("sae train: JumpReLU towards a number of active latents, stopped and gone on with", "[cli]") {
  const Training work;
  const Words jump = {"train",
                      "--data",
                      work.at("x.npy"),
                      "--latents",
                      "24",
                      "--activation",
                      "jumprelu",
                      "--target-l0",
                      "2",
                      "--l0",
                      "0.05",
                      "--bandwidth",
                      "0.1",
                      "--pre-activation",
                      "1e-4",
                      "--steps",
                      "400",
                      "--batch",
                      "100",
                      "--json"};
  const auto run = run_sae(with(jump, {"--out", work.at("jump")}));
  INFO(run.err);
  REQUIRE(run.code == 0);
  const json told = json_of(run);
  CHECK(told.at("architecture") == "jumprelu");
  CHECK(std::fabs(told.at("l0").get<double>() - 2) < 1);
  CHECK(json::parse(file_text(work.at("jump/cfg.json"))).at("architecture") == "jumprelu");
  const json found = json_of(run_sae({"eval", "--sae", work.at("jump"), "--data", work.at("x.npy"), "--json"}));
  CHECK(std::fabs(found.at("l0").get<double>() - 2) < 1);
  CHECK(found.at("explained_variance").get<double>() > 0.5);
  const auto more = run_sae(
      {"train", "--data", work.at("x.npy"), "--init", work.at("jump"), "--steps", "5", "--out", work.at("more"), "--json"});
  INFO(more.err);
  CHECK(more.code == 0);
  CHECK(json_of(more).at("architecture") == "jumprelu");
  for (const char* option : {"--l0", "--target-l0", "--threshold", "--bandwidth", "--pre-activation"})
    CHECK(run_sae(work.words("o", {"--steps", "1", option, "1"})).code == 2);
}

TEST_CASE("sae train: a training that diverges fails, and no SAE of it is left", "[cli]") {
  const Training work;
  for (const Words& ruin : {Words{"--lr", "1e30"}, Words{"--lr", "1e10", "--checkpoint-every", "1"},
                            Words{"--activation", "relu", "--decoder", "free", "--normalise", "none", "--lr", "1e20"}}) {
    Words words = {"train",   "--data", work.at("x.npy"), "--latents", "24",     "--out", work.at("bad"),
                   "--steps", "50",     "--batch",        "64",        "--quiet"};
    if (ruin[1] != "relu") words.insert(words.end(), {"--k", "3"});
    const auto run = run_sae(with(words, ruin));
    CAPTURE(ruin);
    CHECK(run.code == 1);
    CHECK_THAT(run.error(), ContainsSubstring("training diverged: at step ") && ContainsSubstring("a lower --lr may help"));
    CHECK_FALSE(fs::exists(work.at("bad")));
    fs::remove_all(work.at("bad.partial"));
  }
}

TEST_CASE("sae train: a log that cannot be written is refused before training", "[cli]") {
  const Training work;
  write_text(work.at("file"), "x");
  for (const std::string log : {"file/run.jsonl", "sae", "sae.partial", "sae/cfg.json"}) {
    const auto run = run_sae(work.words("sae", {"--steps", "1000000", "--log", work.at(log)}));
    CAPTURE(log);
    CHECK(run.code == 1);
    CHECK_THAT(run.error(), ContainsSubstring(work.at(log)));
    CHECK(work.names() == std::vector<std::string>{"file", "x.npy"});
  }
}

TEST_CASE("sae train: options that the source of the rows does not have are refused", "[cli]") {
  const Training work;
  for (const Words& more : {Words{"--max-norm", "10x"}, Words{"--keep-bos"}, Words{"--text", "t"}, Words{"--site", "mlp_out"},
                            Words{"--skip-tokens", "5"}}) {
    CAPTURE(more);
    CHECK(run_sae(work.words("o", with({"--steps", "1"}, more))).code == 2);
  }
  CHECK(run_sae({"train", "--model", "m", "--text", "t", "--layer", "1", "--latents", "8", "--steps", "1", "--rows", "5",
                 "--out", work.at("o")})
            .code == 2);
  work.train("named", {"--steps", "1", "--batch", "64", "--layer", "4", "--site", "mlp_out"});
  CHECK(json::parse(file_text(work.at("named/cfg.json")))["metadata"]["hook_name"] == "blocks.4.hook_mlp_out");
  const auto wide =
      run_sae({"train", "--data", work.at("x.npy"), "--latents", "24", "--steps", "1", "--k", "30", "--out", work.at("o")});
  CHECK(wide.code == 1);
  CHECK_THAT(wide.error(), ContainsSubstring("--k 30: is more than the 24 latents"));
}

TEST_CASE("sae train: what an interrupted training left is neither overwritten nor mixed up", "[cli]") {
  const Training work;
  const Words long_run = {"--steps", "1000000", "--batch", "64", "--seed", "3", "--checkpoint-every", "20", "--quiet"};
  {
    RunningSae sae(work.words("sae", long_run), work.at("err"));
    REQUIRE(sae.until([&] { return fs::exists(work.at("sae.partial/checkpoint.safetensors")); }));
    const auto second = run_sae(work.words("sae", with(long_run, {"--resume"})));
    CHECK(second.code == 1);
    CHECK_THAT(second.error(), ContainsSubstring("sae"));
    sae.signal(SIGTERM);
    CHECK(sae.wait() == 143);
  }
  const std::string checkpoint = file_text(work.at("sae.partial/checkpoint.safetensors"));
  const auto refused = [&](const Words& words, const std::string& with_text) {
    const auto run = run_sae(words);
    INFO(run.err);
    CHECK(run.code == 1);
    CHECK_THAT(run.error(), ContainsSubstring(with_text));
    CHECK(file_text(work.at("sae.partial/checkpoint.safetensors")) == checkpoint);
    CHECK_FALSE(fs::exists(work.at("sae")));
  };
  refused(work.words("sae", long_run), "--resume goes on with it, --force starts afresh");
  refused(work.words("sae", with(long_run, {"--resume", "--lr", "0.5"})), "learning_rate");
  refused(work.words("sae", with(long_run, {"--resume", "--rows", "10"})), "data.rows");
  refused(work.words("sae", with(long_run, {"--resume", "--order", "sequential"})), "order");
  refused({"train", "--data", work.at("x.npy"), "--latents", "24", "--k", "2", "--out", work.at("sae"), "--steps", "1000000",
           "--batch", "64", "--seed", "3", "--resume"},
          "activation.k = 3");
  write_text(work.at("sae.partial/checkpoint.safetensors"), checkpoint.substr(0, checkpoint.size() / 2));
  const auto cut = run_sae(work.words("sae", with(long_run, {"--resume"})));
  CHECK(cut.code == 1);
  CHECK_THAT(cut.error(), ContainsSubstring("checkpoint.safetensors: "));

  write_text(work.at("sae.partial/notes.txt"), "mine");
  const auto strange = run_sae(work.words("sae", with(short_run, {"--force"})));
  CHECK(strange.code == 1);
  CHECK_THAT(strange.error(), ContainsSubstring("holds other things than a training (notes.txt)"));
  CHECK(file_text(work.at("sae.partial/notes.txt")) == "mine");
  fs::remove(work.at("sae.partial/notes.txt"));

  work.train("sae", with(short_run, {"--force"}));
  CHECK(work.names() == Words{"err", "sae", "x.npy"});
  const std::string first = work.weights("sae");
  const auto again = run_sae(work.words("sae", short_run));
  CHECK(again.code == 1);
  CHECK_THAT(again.error(), ContainsSubstring("sae: exists; --force replaces it"));
  work.train("sae", {"--steps", "50", "--force"});
  CHECK(work.weights("sae") != first);
}

TEST_CASE("sae train: what is wrong is said in one line and leaves nothing behind", "[cli]") {
  const Training work;
  Matrix<float> bad = some_rows(300);
  bad(217, 1) = std::numeric_limits<float>::quiet_NaN();
  fs::create_directory(work.at("bad"));
  save_npy(work.at("bad/a.npy"), some_rows(10));
  save_npy(work.at("bad/b.npy"), bad);
  write_text(work.at("cut.npy"), file_text(work.at("x.npy")).substr(0, 1000));
  save_npy(work.at("wide.npy"), Matrix<float>(Matrix<float>::Ones(2, 65536)));
  write_text(work.at("file"), "mine");
  fs::create_directory(work.at("folder"));
  write_text(work.at("folder/notes.txt"), "mine");
  const auto before = work.names();
  const auto fails = [&](const Words& words, const std::string& with_text) {
    const auto run = run_sae(words);
    INFO(with_text << " | " << run.err);
    CHECK(run.code == 1);
    CHECK(run.out.empty());
    CHECK_THAT(run.error(), ContainsSubstring(with_text));
    CHECK(work.names() == before);
    CHECK(file_text(work.at("file")) == "mine");
    CHECK(file_text(work.at("folder/notes.txt")) == "mine");
  };
  const auto data = [&](const std::string& name, const std::string& with_text) {
    fails({"train", "--data", work.at(name), "--latents", "24", "--k", "3", "--steps", "50", "--batch", "64", "--quiet",
           "--out", work.at("sae")},
          with_text);
  };
  data("missing", "missing: cannot open");
  data("cut.npy", "cut.npy: ");
  data("bad", "b.npy: row 217 holds a number that is not finite");
  const Words base = {"train", "--data", work.at("x.npy"), "--quiet", "--steps", "5", "--out"};
  fails(with(base, {work.at("sae"), "--latents", "8", "--k", "9"}), "--k 9: is more than the 8 latents");
  fails(with(base, {work.at("sae"), "--latents", "8", "--k", "2", "--aux-k", "9"}), "AuxK: k = 9");
  fails(with(base, {work.at("sae"), "--latents", "8", "--recipe", "saelens", "--activation", "jumprelu", "--aux-k", "2"}),
        "the recipe saelens has no AuxK for jumprelu");
  fails(with(base, {work.at("sae"), "--latents", "8", "--k", "2", "--warmup", "9"}),
        "--warmup 9 and --decay 0: are more than the 5 steps");
  fails(with(base, {work.at("sae"), "--latents", "8", "--k", "2", "--log", work.at("file")}),
        "file: exists; --force replaces it");
  fails(with(base, {work.at("sae"), "--latents", "8", "--k", "2", "--log", work.at("no/log.jsonl")}), "does not exist");
  fails(
      {"train", "--data", work.at("wide.npy"), "--latents", "1073741824", "--k", "2", "--steps", "1", "--out", work.at("sae")},
      "GB of memory, the machine has");
  fails(with(base, {work.at("no/sae"), "--latents", "8", "--k", "2"}), "no/sae: cannot create");
  fails(with(base, {work.at("file/sae"), "--latents", "8", "--k", "2"}), "file/sae: cannot create");
  fails(with(base, {work.at("file"), "--latents", "8", "--k", "2", "--force"}), "file: exists and is not a folder");
  fails(with(base, {work.at("folder"), "--latents", "8", "--k", "2", "--force"}), "holds other things");
  fails({"train", "--data", work.at("x.npy"), "--latents", "8", "--k", "2", "--tokens", "100", "--out", work.at("sae")},
        "fewer than one batch");
  fails({"train", "--data", work.at("x.npy"), "--init", work.at("folder"), "--out", work.at("sae")}, "folder");
  fails({"train", "--model", work.at("m.gguf"), "--text", work.at("file"), "--layer", "0", "--latents", "8", "--steps", "2",
         "--out", work.at("sae")},
        "m");  // it is missing, or the program was built without llama.cpp
}

TEST_CASE("sae train: the log may stand in the folder of the SAE", "[cli]") {
  const Training work;
  work.train("sae", {"--steps", "4", "--log", work.at("sae/run.jsonl")});
  CHECK(lines_of(work.at("sae/run.jsonl")).size() == 4);
  CHECK(work.names() == Words{"sae", "x.npy"});
}

#endif
