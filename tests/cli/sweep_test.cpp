// sae sweep: a row of SAEs on one stream, each the one that `sae train` makes, also when it was stopped or killed; and what the other
// recipes make of `sae train`.
#include <sae/core/random.hpp>
#include <sae/files/npy.hpp>

#include <cmath>
#include <filesystem>
#include <map>
#include <sstream>

#include "catch_compat.hpp"
#include "cli_test.hpp"
#include "xml_elements.hpp"

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
using sae_test::write_text;
namespace fs = std::filesystem;

namespace {

struct Work : sae_test::Workplace {
  Work() {
    Random random(5);
    Matrix<float> directions(12, 8), x = Matrix<float>::Constant(2000, 8, 3.0F);
    for (Index i = 0; i < directions.size(); ++i) directions.data()[i] = static_cast<float>(random.normal());
    directions.rowwise().normalize();
    for (Index r = 0; r < x.rows(); ++r)
      for (Index i = 0; i < 12; ++i)
        if (random.uniform() < 0.15) x.row(r) += static_cast<float>(random.uniform(5, 15)) * directions.row(i);
    save_npy(at("x.npy"), x);
    save_npy(at("held.npy"), Matrix<float>(x.bottomRows(500)));
  }
  std::string weights(const std::string& folder) const { return file_text(at(folder + "/sae_weights.safetensors")); }
  Words run(const Words& more) const {
    Words words{"--data", at("x.npy"), "--latents", "24", "--steps", "80", "--batch", "64", "--seed", "3", "--quiet"};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
};
/// Every file of a folder by its name, to compare two.
std::map<std::string, std::string> files_of(const std::string& folder) {
  std::map<std::string, std::string> out;
  for (const auto& entry : fs::recursive_directory_iterator(folder))
    if (entry.is_regular_file()) out[fs::relative(entry.path(), folder).string()] = file_text(entry.path());
  return out;
}
/// The steps that a log of JSON lines tells of.
std::vector<int> steps_of(const std::string& log) {
  std::vector<int> out;
  std::istringstream lines(log);
  for (std::string line; std::getline(lines, line);) out.push_back(json::parse(line).at("step").get<int>());
  return out;
}
std::vector<Words> table_of(const std::string& csv) {
  std::vector<Words> out;
  std::istringstream lines(csv);
  for (std::string line; std::getline(lines, line);) {
    Words cells(1);
    for (const char c : line) {
      if (c == ',') {
        cells.emplace_back();
      } else {
        cells.back() += c;
      }
    }
    out.push_back(cells);
  }
  return out;
}

}  // namespace

TEST_CASE("sae sweep: every combination, each the SAE that train makes alone", "[cli]") {
  const Work work;
  const auto run =
      run_sae(with({"sweep"}, work.run({"--activation", "topk,batchtopk,jumprelu", "--k", "2,3", "--target-l0", "2",
                                        "--held-out", work.at("held.npy"), "--out", work.at("all"), "--json"})));
  INFO(run.err);
  REQUIRE(run.code == 0);
  REQUIRE(json_of(run).at("runs").size() == 5);
  const auto table = table_of(file_text(work.at("all/sweep.csv")));
  REQUIRE(table.size() == 6);
  CHECK(table[0] == Words{"name", "activation", "latents", "k", "sparsity", "target_l0", "learning_rate", "steps", "l0",
                          "explained_variance", "mse", "cosine", "dead_latents"});
  const std::vector<Words> alone{{"--activation", "topk", "--k", "2"},
                                 {"--activation", "topk", "--k", "3"},
                                 {"--activation", "batchtopk", "--k", "2"},
                                 {"--activation", "batchtopk", "--k", "3"},
                                 {"--activation", "jumprelu", "--target-l0", "2"}};
  for (std::size_t n = 0; n < alone.size(); ++n) {
    const Words& cells = table[n + 1];
    CAPTURE(cells[0]);
    REQUIRE(cells.size() == table[0].size());
    const auto single = run_sae(with(with({"train"}, work.run(alone[n])), {"--out", work.at("one"), "--force"}));
    INFO(single.err);
    REQUIRE(single.code == 0);
    CHECK(work.weights("all/" + cells[0]) == work.weights("one"));
    CHECK(file_text(work.at("all/" + cells[0] + "/cfg.json")) == file_text(work.at("one/cfg.json")));
    const json report = json_of(run_sae({"eval", "--sae", work.at("one"), "--data", work.at("held.npy"), "--json"}));
    CHECK(std::stod(cells[8]) == Approx(report.at("l0").get<double>()).epsilon(1e-12));
    CHECK(std::stod(cells[9]) == Approx(report.at("explained_variance").get<double>()).epsilon(1e-6));
    CHECK(std::stoi(cells[12]) == report.at("dead_latents").get<int>());
    CHECK(std::stoi(cells[7]) == 80);
  }
  // The figure: a curve an activation, its points in the order of L0.
  const auto svg = sae_test::XmlReader::read(file_text(work.at("all/pareto.svg")));
  CHECK(svg.all("y-label").at(0)->text == "explained variance");
  const auto series = svg.all("series");
  REQUIRE(series.size() == 3);
  CHECK(series[0]->at("data-name") == "topk");
  const auto markers = series[0]->all("marker");
  REQUIRE(markers.size() == 2);
  CHECK_THAT(markers[0]->children.at(0).text, ContainsSubstring("topk-k2: 2, 0."));
  CHECK_THAT(markers[1]->children.at(0).text, ContainsSubstring("topk-k3: 3, 0."));
  CHECK(series[2]->all("marker").size() == 1);
  CHECK_FALSE(fs::exists(work.at("all/pareto-explained-variance.svg")));
}

TEST_CASE("sae sweep: what it refuses, and that nothing is left of it", "[cli]") {
  const Work work;
  const auto refused = [&](const Words& more, int code, const std::string& with_words) {
    const auto run = run_sae(with(with({"sweep"}, work.run({"--out", work.at("all")})), more));
    CAPTURE(more, run.err);
    CHECK(run.code == code);
    CHECK_THAT(run.error(), ContainsSubstring(with_words));
    CHECK_FALSE(fs::exists(work.at("all")));
  };
  refused({"--k", "2,2"}, 2, "the lists name topk-k2 twice");
  refused({"--k", "2", "--tokens", "100"}, 2, "--tokens and --steps");
  refused({"--k", "2", "--text", "t.txt"}, 2, "belong to --model");
  refused({"--k", "25"}, 1, "k = 25 is not in [1, 24]");
  refused({"--activation", "topk,sigmoid"}, 2, "sigmoid");
  refused({"--k", "2", "--held-out", work.at("nowhere.npy")}, 1, "nowhere.npy");
  refused({"--k", "2", "--lr", "1e30"}, 1, "diverged");
}

TEST_CASE("sae sweep: stopped or killed at any time it ends with the same bytes", "[cli]") {
  const Work work;
  const auto words = [&](const std::string& out, const Words& more) {
    return with({"sweep",
                 "--data",
                 work.at("x.npy"),
                 "--latents",
                 "24",
                 "--activation",
                 "topk,jumprelu,batchtopk",
                 "--k",
                 "2",
                 "--target-l0",
                 "2",
                 "--steps",
                 "1500",
                 "--batch",
                 "64",
                 "--seed",
                 "3",
                 "--held-out",
                 work.at("held.npy"),
                 "--out",
                 work.at(out),
                 "--checkpoint-every",
                 "20"},
                more);
  };
  const auto whole = run_sae(words("whole", {"--quiet"}));
  INFO(whole.err);
  REQUIRE(whole.code == 0);
  const std::string checkpoint = work.at("all.partial/checkpoint.safetensors");
  const Words resumable = words("all", {"--log", "--report-every", "10", "--resume"});
  {
    RunningSae sae(resumable, work.at("err"));  // --resume starts afresh where there is nothing
    REQUIRE(sae.until([&] { return fs::exists(checkpoint); }));
    sae.signal(SIGTERM);
    CHECK(sae.wait() == 143);
    CHECK_THAT(file_text(work.at("err")),
               ContainsSubstring("sae: stopped at step ") &&
                   ContainsSubstring("all.partial; the same command with --resume goes on from there"));
    CHECK(fs::exists(checkpoint));
    CHECK_FALSE(fs::exists(work.at("all")));
  }
  // Without --log from here on: half a log is no log.
  fs::copy(work.at("all.partial"), work.at("silent.partial"), fs::copy_options::recursive);
  const auto silent = run_sae(words("silent", {"--resume"}));
  INFO(silent.err);
  REQUIRE(silent.code == 0);
  CHECK_THAT(silent.err, ContainsSubstring("going on from step "));
  CHECK((files_of(work.at("silent")) == files_of(work.at("whole"))));

  for (int kill = 1; kill <= 3; ++kill) {
    const auto before = fs::last_write_time(checkpoint);
    RunningSae sae(resumable, work.at("err"));
    std::error_code gone;
    if (!sae.until([&] { return fs::last_write_time(checkpoint, gone) != before; })) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(3 * kill));
    sae.signal(SIGKILL);
    const int code = sae.wait();
    CHECK((code == 1000 + SIGKILL || code == 0));
    CHECK_THAT(file_text(work.at("err")), ContainsSubstring("going on from step "));
    if (code == 0) break;
    CHECK_FALSE(fs::exists(work.at("all")));
  }
  if (!fs::exists(work.at("all"))) {
    const auto last = run_sae(resumable);
    INFO(last.err);
    REQUIRE(last.code == 0);
    CHECK_THAT(last.err, ContainsSubstring("going on from step "));
  }
  CHECK_FALSE(fs::exists(work.at("all.partial")));
  auto files = files_of(work.at("all"));
  std::vector<int> tens;
  for (int step = 10; step <= 1500; step += 10) tens.push_back(step);
  for (const char* name : {"topk-k2", "jumprelu-l0-2", "batchtopk-k2"}) {
    const std::string log = std::string(name) + "/log.jsonl";
    CAPTURE(log);
    CHECK(steps_of(files[log]) == tens);
    files.erase(log);
  }
  CHECK_FALSE(files.contains("checkpoint.safetensors"));
  CHECK((files == files_of(work.at("whole"))));
}

TEST_CASE("sae sweep: what an interrupted one left is neither overwritten nor mixed up", "[cli]") {
  const Work work;
  const auto words = [&](const Words& lists, const Words& more) {
    return with(with({"sweep", "--data", work.at("x.npy"), "--batch", "64", "--out", work.at("all"), "--quiet"}, lists), more);
  };
  const Words lists{"--latents", "24", "--k", "2,3"}, endless{"--steps", "1000000", "--checkpoint-every", "20"};
  const std::string checkpoint = work.at("all.partial/checkpoint.safetensors");
  {
    RunningSae sae(words(lists, endless), work.at("err"));
    REQUIRE(sae.until([&] { return fs::exists(checkpoint); }));
    sae.signal(SIGINT);
    CHECK(sae.wait() == 130);
  }
  const std::string saved = file_text(checkpoint);
  const auto refused = [&](const Words& with_lists, const Words& more, const std::string& with_text) {
    const auto run = run_sae(words(with_lists, with(endless, more)));
    INFO(run.err);
    CHECK(run.code == 1);
    CHECK_THAT(run.error(), ContainsSubstring(with_text));
    CHECK(file_text(checkpoint) == saved);
    CHECK_FALSE(fs::exists(work.at("all")));
  };
  refused(lists, {}, "--resume goes on with it, --force starts afresh");
  refused({"--latents", "24", "--k", "2,4"}, {"--resume"},
          "was made with sweep = topk-k2, topk-k3, which is topk-k2, topk-k4 now");
  refused({"--latents", "24", "--k", "2"}, {"--resume"}, "was made with sweep = topk-k2, topk-k3, which is topk-k2 now");
  refused({"--latents", "32", "--k", "2,3"}, {"--resume"}, "was made with 1.model.latents = 24, which is 32 now");
  refused(lists, {"--resume", "--seed", "5"}, "was made with seed = 0, which is 5 now");
  refused(lists, {"--resume", "--recipe", "saelens"}, "which is");
  refused(lists, {"--resume", "--order", "sequential"}, "was made with order = shuffled, which is sequential now");

  write_text(work.at("all.partial/topk-k2/notes.txt"), "mine");
  refused(lists, {"--force"}, "holds other things than a training (topk-k2/notes.txt)");
  fs::remove(work.at("all.partial/topk-k2/notes.txt"));

  // Of a sweep without a checkpoint nothing is gone on with, and nothing is left among the SAEs of other lists.
  fs::remove(checkpoint);
  const auto other = run_sae(words({"--latents", "24", "--k", "4,5"}, {"--steps", "3", "--resume"}));
  INFO(other.err);
  REQUIRE(other.code == 0);
  CHECK(files_of(work.at("all")).size() == 2 * 2 + 2);  // and sweep.csv, pareto.svg
  CHECK_FALSE(fs::exists(work.at("all/topk-k2")));

  const auto again = run_sae(words(lists, {"--steps", "3"}));
  CHECK(again.code == 1);
  CHECK_THAT(again.error(), ContainsSubstring("all: exists; --force replaces it"));
  CHECK(run_sae(words(lists, {"--steps", "3", "--force"})).code == 0);
  CHECK(fs::exists(work.at("all/topk-k2/cfg.json")));
  fs::remove(work.at("all/sweep.csv"));
  const auto strange = run_sae(words(lists, {"--steps", "3", "--force"}));
  CHECK(strange.code == 1);
  CHECK_THAT(strange.error(), ContainsSubstring("holds other things than a sweep and is not replaced"));
}

TEST_CASE("sae sweep: of one that diverges the last good checkpoint is kept", "[cli]") {
  const Work work;
  const auto run =
      run_sae(with({"sweep"}, work.run({"--k", "2", "--lr", "0.01,1e10", "--checkpoint-every", "1", "--out", work.at("all")})));
  CHECK(run.code == 1);
  CHECK_THAT(run.error(), ContainsSubstring("topk-k2-lr1e+10: training diverged: at step ") &&
                              ContainsSubstring("; the last good checkpoint is in " + work.at("all.partial")));
  CHECK(fs::exists(work.at("all.partial/checkpoint.safetensors")));
  CHECK_FALSE(fs::exists(work.at("all")));
}

TEST_CASE("sae train: recipes and architectures, each saved as what it is used as", "[cli]") {
  const Work work;
  const auto train = [&](const Words& more) {
    const auto run = run_sae(with(with({"train"}, work.run(more)), {"--out", work.at("sae"), "--force", "--lr", "0.01"}));
    CAPTURE(more);
    INFO(run.err);
    REQUIRE(run.code == 0);
    return json::parse(file_text(work.at("sae/cfg.json"))).at("architecture").get<std::string>();
  };
  const auto evaluated = [&](const std::string& figure) {
    return json_of(run_sae({"eval", "--sae", work.at("sae"), "--data", work.at("held.npy"), "--json"}))
        .at(figure)
        .get<double>();
  };
  CHECK(train({"--activation", "batchtopk", "--k", "2.5"}) == "jumprelu");
  CHECK(std::fabs(evaluated("l0") - 2.5) < 0.7);
  CHECK(train({"--activation", "matryoshka", "--k", "3", "--prefixes", "6,12"}) == "jumprelu");
  CHECK(evaluated("explained_variance") > 0.3);
  CHECK(train({"--activation", "abstopk", "--k", "3"}) == "abstopk");
  CHECK(train({"--activation", "groupmax", "--k", "3"}) == "groupmax");
  CHECK(train({"--activation", "gated", "--l1", "0.02"}) == "gated");
  CHECK(evaluated("explained_variance") > 0.3);
  CHECK(train({"--activation", "matching_pursuit", "--k", "3"}) == "matching_pursuit");
  CHECK(evaluated("explained_variance") > 0.3);

  CHECK(train({"--recipe", "saelens", "--activation", "topk", "--k", "3"}) == "topk");
  const std::string saelens = work.weights("sae");
  train({"--activation", "topk", "--k", "3"});
  CHECK(work.weights("sae") != saelens);
  CHECK(train({"--recipe", "deepmind-gated"}) == "gated");
  for (const char* optimizer : {"adamw", "sgd", "signum", "schedule-free", "muon", "adafactor"}) {
    const std::string before = work.weights("sae");
    CHECK(train({"--activation", "topk", "--k", "3", "--optimizer", optimizer}) == "topk");
    CHECK(work.weights("sae") != before);
  }
  const std::string plain = work.weights("sae");
  train({"--activation", "topk", "--k", "3", "--optimizer", "adafactor", "--ema", "0.9"});
  CHECK(work.weights("sae") != plain);

  // Each names the option or the setting, and what is legal.
  const std::vector<std::pair<Words, std::string>> refusals = {
      {{"--recipe", "mine"}, "--recipe: mine not in {default,saelens,dictionary_learning"},
      {{"--recipe", "openai", "--activation", "gated"},
       "recipe openai: activation \"gated\" is none of its own; these are: topk"},
      {{"--activation", "matryoshka", "--k", "3", "--prefixes", "12,6"},
       "Matryoshka: width 6 after 12: widths increase strictly within [1, 24]"},
      {{"--activation", "groupmax", "--k", "7"}, "GroupMax: k = 7 does not divide the number of latents, 24"},
      {{"--activation", "topk", "--k", "0"}, "--k: 0 is not > 0"},
      {{"--activation", "topk", "--k", "25"}, "--k 25: is more than the 24 latents"},
      {{"--activation", "relu", "--l1", "-1"}, "--l1: -1 is not >= 0"},
      {{"--activation", "jumprelu", "--bandwidth", "0"}, "--bandwidth: 0 is not > 0"},
      {{"--activation", "jumprelu", "--threshold", "-1"}, "--threshold: -1 is not >= 0"},
      {{"--activation", "jumprelu", "--target-l0", "0"}, "--target-l0: 0 is not > 0"}};
  for (const auto& [wrong, text] : refusals) {
    const auto run = run_sae(with(with({"train"}, work.run(wrong)), {"--out", work.at("no")}));
    CAPTURE(wrong, run.err);
    CHECK(run.code != 0);
    CHECK_THAT(run.error(), ContainsSubstring(text));
    CHECK_FALSE(fs::exists(work.at("no")));
  }
}

#endif
