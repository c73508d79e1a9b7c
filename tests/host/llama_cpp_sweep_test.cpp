// sae sweep measures loss recovered as sae recover does, of all SAEs at once.
#include <sae/core/random.hpp>

#include <cmath>
#include <filesystem>
#include <map>
#include <sstream>

#include "catch_compat.hpp"
#include "cli_test.hpp"
#include "tiny_gguf.hpp"
#include "xml_elements.hpp"

#ifdef SAE_TEST_PROGRAM

using namespace sae;
using Catch::Matchers::ContainsSubstring;
using nlohmann::json;
using sae_test::file_text;
using sae_test::json_of;
using sae_test::run_sae;
using sae_test::with;
using sae_test::Words;
using sae_test::XmlReader;
namespace fs = std::filesystem;

namespace {

struct World : sae_test::Workplace {
  World() {
    sae_test::write_text(at("tiny.gguf"), sae_test::tiny_gguf_bytes(sae_test::make_tiny_llama()));
    Random random(2);
    const std::vector<std::string> words = {"the", "cat", "and", "a", "dog", "in", "house", "on", "hill", "of", "men", "inn"};
    std::string text;
    for (int i = 0; i < 300; ++i) text += (i == 0 ? "" : " ") + words[random.below(words.size())];
    sae_test::write_text(at("text.txt"), text);
    const auto collected =
        run_sae({"collect", "--model", at("tiny.gguf"), "--text", at("text.txt"), "--layer", "0", "--context", "16",
                 "--model-threads", "1", "--tokens", "240", "--out", at("rows"), "--quiet"});
    INFO(collected.err);
    REQUIRE(collected.code == 0);
  }
  Words words(const Words& more, const std::string& steps = "30") const {
    return with({"sweep", "--latents", "48", "--activation", "topk,batchtopk,relu", "--k", "2,6", "--sparsity", "0.1",
                 "--steps", steps, "--batch", "32", "--quiet", "--model-threads", "1", "--out", at("all")},
                more);
  }
};

/// Rows of a table by their names, cells by their columns.
std::map<std::string, std::map<std::string, std::string>> table_of(const std::string& csv) {
  std::map<std::string, std::map<std::string, std::string>> out;
  std::vector<std::string> header;
  std::istringstream lines(csv);
  for (std::string line; std::getline(lines, line);) {
    std::vector<std::string> cells(1);
    for (const char c : line) {
      if (c == ',')
        cells.emplace_back();
      else
        cells.back() += c;
    }
    if (header.empty()) {
      header = cells;
      continue;
    }
    REQUIRE(cells.size() == header.size());
    for (std::size_t i = 0; i < cells.size(); ++i) out[cells[0]][header[i]] = cells[i];
  }
  return out;
}

}  // namespace

TEST_CASE("sae sweep: loss recovered is that of sae recover, of each SAE", "[cli][llama_cpp]") {
  const World world;
  const auto run = run_sae(world.words({"--data", world.at("rows"), "--recover-text", world.at("text.txt"),
                                        "--recover-skip-tokens", "240", "--recover-tokens", "45", "--json"}));
  INFO(run.err);
  REQUIRE(run.code == 0);
  const json runs = json_of(run).at("runs");
  const auto table = table_of(file_text(world.at("all/sweep.csv")));
  REQUIRE(table.size() == 5);
  REQUIRE(runs.size() == 5);
  for (const json& said : runs) {
    const std::string name = said.at("name").get<std::string>();
    CAPTURE(name);
    const json alone = json_of(
        run_sae({"recover", "--sae", world.at("all/" + name), "--model", world.at("tiny.gguf"), "--text", world.at("text.txt"),
                 "--context", "16", "--skip-tokens", "240", "--tokens", "45", "--model-threads", "1", "--json", "--quiet"}));
    CHECK(alone.at("tokens") == 45);
    for (const char* key : {"ce_clean", "ce_sae", "ce_zero", "ce_mean", "loss_recovered_zero", "loss_recovered_mean", "kl",
                            "l0", "explained_variance"}) {
      CAPTURE(key);
      CHECK(said.at(key) == alone.at(key));
      CHECK(std::stod(table.at(name).at(key)) == alone.at(key).get<double>());
    }
  }

  // Two figures of the same runs: a curve an activation, in the order of L0.
  for (const auto& [file, column] : std::map<std::string, std::string>{
           {"pareto.svg", "loss_recovered_zero"}, {"pareto-explained-variance.svg", "explained_variance"}}) {
    const auto svg = XmlReader::read(file_text(world.at("all/" + file)));
    const auto& frame = *svg.all("plot").at(0);
    CHECK(frame.at("data-x-scale") == "log");
    const auto series = svg.all("series");
    REQUIRE(series.size() == 3);
    for (const auto* curve : series) {
      double last = 0;
      for (const auto* marker : curve->all("marker")) {
        const std::string title = marker->children.at(0).text, name = title.substr(0, title.find(':'));
        CAPTURE(file, name);
        CHECK(table.at(name).at("activation") == curve->at("data-name"));
        const double l0 = std::stod(table.at(name).at("l0")), y = std::stod(table.at(name).at(column));
        CHECK(l0 >= last);
        last = l0;
        const auto share = [&](const char* axis, double u) {
          const std::string of = std::string("data-") + axis;
          return (u - frame.number(of + "-low")) / (frame.number(of + "-high") - frame.number(of + "-low"));
        };
        double px = 0, py = 0;
        REQUIRE(std::sscanf(marker->at("transform").c_str(), "translate(%lf %lf)", &px, &py) == 2);
        CHECK(std::fabs(px - frame.number("data-left") - frame.number("data-width") * share("x", std::log10(l0))) < 0.0051);
        CHECK(std::fabs(py - frame.number("data-top") - frame.number("data-height") * (1 - share("y", y))) < 0.0051);
      }
    }
    CHECK(series.at(0)->all("marker").size() == 2);
    CHECK(series.at(2)->all("marker").size() == 1);
  }
}

TEST_CASE("sae sweep: straight from a model it measures on that model", "[cli][llama_cpp]") {
  const World world;
  const auto run = run_sae(world.words({"--model", world.at("tiny.gguf"), "--text", world.at("text.txt"), "--layer", "1",
                                        "--context", "16", "--recover-text", world.at("text.txt")}));
  INFO(run.err);
  REQUIRE(run.code == 0);
  CHECK_THAT(run.out, ContainsSubstring("against zero") && ContainsSubstring("measured on --recover-text"));
}

TEST_CASE("sae sweep: what cannot be measured is refused before any training", "[cli][llama_cpp]") {
  const World world;
  const auto refused = [&](const Words& more, int code, const std::string& why) {
    const auto run = run_sae(world.words(more, "1000000000"));  // it would never end
    CAPTURE(more, run.err);
    CHECK(run.code == code);
    CHECK_THAT(run.error(), ContainsSubstring(why));
    CHECK_FALSE(fs::exists(world.at("all")));
    CHECK_FALSE(fs::exists(world.at("all.partial")));
  };
  const Words rows{"--data", world.at("rows")};
  refused(with(rows, {"--recover-tokens", "5"}), 2, "belong to --recover-text");
  refused(with(rows, {"--recover-text", world.at("no.txt")}), 1, "no.txt");
  refused(with(rows, {"--recover-text", world.at("text.txt"), "--recover-model", world.at("no.gguf")}), 1, "no.gguf");
  refused(with(rows, {"--recover-text", world.at("text.txt"), "--recover-skip-tokens", "100000"}), 1,
          "--recover-skip-tokens 100000");
  const std::string shard = world.at("rows/residual-0/rows-00000.npy"), plain = world.at("plain.npy");
  fs::copy(shard, plain);
  refused({"--data", plain, "--recover-text", world.at("text.txt")}, 2, "--recover-text needs --layer");
  refused({"--data", plain, "--layer", "1", "--recover-text", world.at("text.txt")}, 2, "--recover-text needs --recover-model");
  refused({"--data", plain, "--layer", "9", "--recover-text", world.at("text.txt"), "--recover-model", world.at("tiny.gguf")},
          1, "layers 0 to 2");
  fs::rename(world.at("tiny.gguf"), world.at("moved.gguf"));
  refused(with(rows, {"--recover-text", world.at("text.txt")}), 1, "is not there; --recover-model says where it is");
}

#endif
