// The benchmark on rows of two folders that take seconds: every kind of model reads and predicts the sites that it should.
#include <sae/data/synthetic.hpp>
#include <sae/files/npy.hpp>

#include <filesystem>
#include <string>

#include "catch_compat.hpp"
#include "example_output.hpp"

#ifdef SAE_TEST_EXAMPLES

namespace {

bool built() { return std::filesystem::exists(SAE_TEST_EXAMPLES "/benchmark_rows"); }

/// Sites of 12 numbers in `train` and `held-out`: the same 24 features along other directions, of very different lengths.
void write_sites(const TempFolder& folder) {
  struct Site {
    std::string name;
    std::uint64_t seed;
    float length;
  };
  for (const Site& site : {Site{"a", 1, 1}, Site{"b", 2, 4}, Site{"c", 3, 16}, Site{"d", 4, 64}, Site{"d-short", 4, 1}}) {
    const auto world_of = [](std::uint64_t seed) {
      return sae::SyntheticWorld(
          {.num_features = 24, .hidden_dim = 12, .firing_probability = sae::ConstantFiring{0.08}, .seed = seed});
    };
    sae::SyntheticWorld world = world_of(0);
    world.directions.map() = site.length * world_of(site.seed).directions.map();
    world.bias.map() *= site.length;
    for (const std::string part : {"train", "held-out"}) {
      sae::Tensor<float> rows(part == "train" ? 20'000 : 2'000, 12);
      sae::SyntheticSource source(world, {.seed = part == "train" ? 1U : 2U});
      source.next(rows);
      std::filesystem::create_directories(folder / part / site.name);
      sae::save_npy(folder / part / site.name / "rows.npy", rows.map());
    }
  }
}

TEST_CASE("the benchmark on rows trains and measures models of one site and of several", "[examples]") {
  if (!built()) SAE_SKIP_TEST("the example benchmark_rows needs CLI11 and was not built");
  const TempFolder folder;
  write_sites(folder);
  const auto run = [&](const std::string& architecture, const std::string& sites) {
    return sae_test::run_program(
        SAE_TEST_EXAMPLES "/benchmark_rows",
        {"--train", (folder / "train").string(), "--held-out", (folder / "held-out").string(), "--architecture", architecture,
         "--sites", sites, "--latents", "24", "--k", "2", "--steps", "300", "--batch", "256", "--seeds", "2"});
  };
  struct Case {
    std::string architecture, sites;
    double k;
  };
  for (const Case& c :
       {Case{"topk", "a", 2}, Case{"glu", "b", 2}, Case{"orthogonal_matching_pursuit", "d", 2}, Case{"transcoder", "a,d", 2},
        Case{"skip-transcoder", "d,a", 2}, Case{"crosscoder", "a,b,d", 2}, Case{"cross-layer", "a,b,c,d", 4}}) {
    const sae_test::ExampleOutput output(run(c.architecture, c.sites));
    CAPTURE(c.architecture, output.text());
    REQUIRE(output.lines().size() == 4);
    const auto first = sae_test::TakenApart(output.lines()[1]).numbers, mean = sae_test::TakenApart(output.lines()[3]).numbers;
    REQUIRE(first.size() == 5);  // seed EV L0 dead ms
    REQUIRE(mean.size() == 3);
    CHECK((mean[0] > 0.35 && mean[0] < 1));
    CHECK((mean[1] > 0.5 && mean[1] <= c.k));
    CHECK(mean[2] < 12);
  }
  // Lengths do not count: those of a site are divided by its own.
  const auto mean_of = [&](const std::string& sites) {
    return sae_test::TakenApart(sae_test::ExampleOutput(run("crosscoder", sites)).lines()[3]).numbers;
  };
  CHECK(mean_of("a,d") == mean_of("a,d-short"));

  using Catch::Matchers::ContainsSubstring;
  CHECK_THAT(run("transcoder", "a").err, ContainsSubstring("--sites: 1 are given; transcoder is for 2"));
  CHECK_THAT(run("topk", "a,b").err, ContainsSubstring("--sites: 2 are given; topk is for 1"));
  CHECK_THAT(run("cross-layer", "a,b,c,d,a").err, ContainsSubstring("an even number from 4 on"));
}

}  // namespace

#endif
