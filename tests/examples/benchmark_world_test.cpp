// The benchmark on a world that takes seconds: its table is whole and its figures are possible ones.
#include <algorithm>
#include <filesystem>
#include <string>

#include "catch_compat.hpp"
#include "example_output.hpp"

#ifdef SAE_TEST_EXAMPLES

namespace {

const char* const world_text = R"({"num_features": 24, "hidden_dim": 12, "bias": 0.5, "orthogonalization": {},
  "firing_probability": {"generator_name": "constant", "probability": 0.08},
  "mean_firing_magnitudes": {"generator_name": "linear", "start": 5, "end": 4}})";

sae_test::Finished benchmark(std::vector<std::string> words, const std::string& k = "2") {
  const TempFolder folder;
  sae_test::write_text(folder / "world.json", world_text);
  words.insert(words.begin(), {"--world", (folder / "world.json").string(), "--latents", "24", "--k", k, "--test-rows", "3000",
                               "--rows", "60000", "--batch", "256"});
  return sae_test::run_program(SAE_TEST_EXAMPLES "/benchmark_world", words);
}
bool built() { return std::filesystem::exists(SAE_TEST_EXAMPLES "/benchmark_world"); }

// The numbers of the lines that begin with `name`.
std::vector<std::vector<double>> lines_of(const sae_test::ExampleOutput& output, const std::string& name) {
  std::vector<std::vector<double>> out;
  for (const std::string& line : output.lines())
    if (line.starts_with(name + " ")) out.push_back(sae_test::TakenApart(line.substr(name.size())).numbers);
  return out;
}

TEST_CASE("the benchmark scores every architecture by either recipe", "[examples]") {
  if (!built()) SAE_SKIP_TEST("the example benchmark_world needs CLI11 and was not built");
  for (const std::string recipe : {"saelens", "default"}) {
    CAPTURE(recipe);
    const sae_test::ExampleOutput output(benchmark({"--recipe", recipe, "--lr", "3e-3"}));
    for (const std::string name : {"relu", "topk", "jumprelu"}) {
      CAPTURE(name, output.text());
      const auto rows = lines_of(output, name);
      REQUIRE(rows.size() == 1);
      const auto& row = rows[0];  // MCC F1 P R uniqueness EV L0 dead shrinkage, MCC of the encoder, ms
      REQUIRE(row.size() == 11);
      CHECK((row[0] > 0.5 && row[0] <= 1));  // an untrained one: about 0.45
      for (const std::size_t i : {1U, 2U, 3U, 4U}) CHECK((row[i] > 0 && row[i] <= 1));
      CHECK((row[5] > 0.3 && row[5] < 1));
      CHECK((row[6] > 0 && row[6] <= 24));
      CHECK((row[7] >= 0 && row[7] < 12));
      CHECK((row[8] > 0.3 && row[8] < 1.2));
      CHECK((row[9] > 0.4 && row[9] <= 1));
      CHECK(row[10] > 0);
    }
    CHECK(lines_of(output, "topk")[0][6] <= 2);
    CHECK(lines_of(output, "matching_pursuit").at(0)[6] <= 2);
    CHECK(lines_of(output, "groupmax").size() == (recipe == "default" ? 1U : 0U));
    for (const std::string name : {"batchtopk", "matryoshka", "abstopk", "gated", "matching_pursuit"}) {
      CAPTURE(name, output.text());
      const auto rows = lines_of(output, name);
      REQUIRE(rows.size() == 1);
      REQUIRE(rows[0].size() == 11);
      CHECK((rows[0][0] > 0.4 && rows[0][0] <= 1));
      CHECK((rows[0][5] > 0 && rows[0][5] < 1));
      CHECK((rows[0][6] > 0 && rows[0][6] <= 24));
    }
  }
}

TEST_CASE("the benchmark scores architectures that no recipe names, at several sites too", "[examples]") {
  if (!built()) SAE_SKIP_TEST("the example benchmark_world needs CLI11 and was not built");
  const sae_test::ExampleOutput output(benchmark(
      {"--recipe", "default", "--lr", "3e-3", "--only",
       "topk,hierarchical,multi-topk,glu,orthogonal_matching_pursuit,transcoder,skip-transcoder,crosscoder,cross-layer"}));
  const auto topk = lines_of(output, "topk").at(0);
  for (const std::string name : {"hierarchical", "multi-topk", "glu", "orthogonal_matching_pursuit", "transcoder",
                                 "skip-transcoder", "crosscoder", "cross-layer"}) {
    CAPTURE(name, output.text());
    const auto rows = lines_of(output, name);
    REQUIRE(rows.size() == 1);
    const auto& row = rows[0];
    REQUIRE(row.size() == 11);
    CHECK((row[0] > 0.6 && row[0] <= 1));  // decoders at random: about 0.45
    CHECK((row[1] > 0.35 && row[1] <= 1));
    CHECK((row[5] > 0.35 && row[5] < 1));
    CHECK((row[6] > 0.5 && row[6] <= (name == "cross-layer" ? 4 : 2)));  // two layers of two
    CHECK(row[7] < 12);
    CHECK((row[9] > 0.55 && row[9] <= 1));
    CHECK(row[0] != topk[0]);
  }
  // The rows of the first site are those of one site alone.
  const auto alone =
      lines_of(sae_test::ExampleOutput(benchmark({"--recipe", "default", "--lr", "3e-3", "--only", "topk"})), "topk");
  CHECK(std::equal(topk.begin(), topk.end() - 1, alone.at(0).begin()));
}

TEST_CASE("the benchmark gives the mean and the range over seeds, whatever the threads", "[examples]") {
  if (!built()) SAE_SKIP_TEST("the example benchmark_world needs CLI11 and was not built");
  const sae_test::ExampleOutput output(benchmark({"--only", "topk", "--seeds", "2", "--lr", "3e-3", "--threads", "1"}));
  const auto rows = lines_of(output, "topk"), from = lines_of(output, "  from"), to = lines_of(output, "  to");
  REQUIRE(rows.size() == 3);
  REQUIRE(from.size() == 1);
  REQUIRE(to.size() == 1);
  CHECK(lines_of(output, "relu").empty());
  CHECK(rows[0] != rows[1]);
  for (std::size_t i = 0; i + 1 < rows[0].size(); ++i) {
    CHECK(rows[2][i] == Approx((rows[0][i] + rows[1][i]) / 2).margin(0.06));  // of rounded numbers
    CHECK(from[0][i] == std::min(rows[0][i], rows[1][i]));
    CHECK(to[0][i] == std::max(rows[0][i], rows[1][i]));
  }
  // The second seed alone is the same run.
  const sae_test::ExampleOutput second(benchmark({"--only", "topk", "--seed", "2", "--lr", "3e-3", "--threads", "3"}));
  auto alone = lines_of(second, "topk").at(0), both = rows[1];
  alone.pop_back();
  both.pop_back();  // the time
  CHECK(alone == both);
}

TEST_CASE("the benchmark names what it does not know", "[examples]") {
  if (!built()) SAE_SKIP_TEST("the example benchmark_world needs CLI11 and was not built");
  using Catch::Matchers::ContainsSubstring;
  const auto unknown = benchmark({"--only", "topk,perceptron"});
  CHECK(unknown.code == 1);
  CHECK_THAT(unknown.err, ContainsSubstring("activation \"perceptron\" is none of its own; these are: topk"));
  CHECK(benchmark({"--recipe", "mine"}).code != 0);
  const auto large = benchmark({"--only", "topk"}, "25");
  CHECK(large.code == 1);
  CHECK_THAT(large.err, ContainsSubstring("k = 25"));
}

}  // namespace

#endif
