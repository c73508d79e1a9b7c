// `sae dashboard` on rows that were collected, whose model is gone: tokens are shown by number.
#include <sae/formats/saelens.hpp>
#include <sae/host/collected_folder.hpp>

#include "catch_compat.hpp"
#include "cli_test.hpp"

#ifdef SAE_TEST_PROGRAM

using namespace sae;
using Catch::Matchers::ContainsSubstring;
using nlohmann::json;
using sae_test::file_text;
using sae_test::Finished;
using sae_test::run_sae;
using sae_test::with;
using sae_test::Words;
using sae_test::Workplace;
namespace fs = std::filesystem;

namespace {

using Sae = SparseAutoencoder<Dynamic, Dynamic, TopK, float>;

/// 120 rows of three windows, and an SAE of 40 latents of which the last never fires.
struct World {
  World() {
    Random random(5);
    const Index rows = 120, width = 16;
    Matrix<float> x(rows, width);
    for (Index i = 0; i < x.size(); ++i) x.data()[i] = static_cast<float>(random.normal());
    std::vector<RowOrigin> origins;
    for (Index row = 0; row < rows; ++row)
      origins.push_back(
          {static_cast<Token>(row % 30), static_cast<std::int32_t>(row / 40), static_cast<std::int32_t>(row % 40)});
    CollectedInfo info;
    info.model_file = place.at("gone.gguf");
    info.model_bytes = 1;
    info.text_sha256 = std::string(64, '0');
    info.sites = {{1, SiteKind::residual}};
    info.width = width;
    info.context = 40;
    CollectedWriter writer(place.at("acts"), info);
    CollectedRows part{origins, {}, {}};
    part.sites.emplace_back(x.data(), rows, width);
    writer.append(part);
    writer.finish({.counts = {rows, 0, 0, 0}, .windows = 3, .limits = {1e9}});

    for (Index i = 0; i < sae.W_dec().size(); ++i) sae.W_dec().data()[i] = static_cast<float>(random.normal() / 4);
    sae.W_enc() = sae.W_dec();
    sae.W_enc().row(39).setZero();
    save_saelens(sae, place.at("sae"), {.hook_name = "blocks.1.hook_resid_post"});
  }
  Finished run(const Words& more) const {
    return run_sae(with({"dashboard", "--quiet", "--data", place.at("acts"), "--sae", place.at("sae")}, more));
  }
  Workplace place;
  Sae sae{16, 40, TopK{.k = 4}};
};

}  // namespace

TEST_CASE("dashboard writes a page, JSON lines and JSON of the same latents", "[cli][dashboard]") {
  const World world;
  sae_test::write_text(world.place.at("labels.jsonl"), "{\"latent\": 3, \"label\": \"</script>\"}\n");
  const Finished done = world.run({"--out", world.place.at("page.html"), "--neuronpedia", world.place.at("np.jsonl"), "--json",
                                   "--count", "3", "--labels", world.place.at("labels.jsonl")});
  INFO(done.err);
  REQUIRE(done.code == 0);
  const json all = json_of(done);
  REQUIRE(all["shown"].size() == 40);
  CHECK(all["rows"] == 120);
  CHECK(all["sae"] == "sae");
  CHECK(all["site"] == "residual-1");
  CHECK(all["shown"][3]["label"] == "</script>");
  CHECK(all["shown"][39]["active_rows"] == 0);
  const json& context = all["shown"][0]["top"][0];
  CHECK(context["tokens"][context["active"].get<std::size_t>()] == "<" + std::to_string(context["row"].get<int>() % 30) + ">");

  // As `top` finds them.
  const json top = json_of(run_sae({"top", "--quiet", "--json", "--data", world.place.at("acts"), "--sae",
                                    world.place.at("sae"), "--latent", "0-39", "--count", "3"}));
  for (std::size_t i = 0; i < 40; ++i) {
    CHECK(all["shown"][i]["density"] == top["latents"][i]["density"]);
    REQUIRE(all["shown"][i]["top"].size() == top["latents"][i]["contexts"].size());
    for (std::size_t n = 0; n < all["shown"][i]["top"].size(); ++n) {
      CHECK(all["shown"][i]["top"][n]["row"] == top["latents"][i]["contexts"][n]["row"]);
      CHECK(all["shown"][i]["top"][n]["value"].get<float>() == top["latents"][i]["contexts"][n]["value"].get<float>());
    }
  }
  CHECK_THAT(file_text(world.place.at("page.html")), ContainsSubstring("\"\\u003c/script>\""));
  const std::string lines = file_text(world.place.at("np.jsonl"));
  CHECK(std::count(lines.begin(), lines.end(), '\n') == 40);
}

TEST_CASE("dashboard writes a folder where the name is none of a file", "[cli][dashboard]") {
  const World world;
  const Finished done = world.run({"--out", world.place.at("page"), "--latents", "5,2-3"});
  REQUIRE(done.code == 0);
  CHECK_THAT(done.out, ContainsSubstring("3 of 40"));
  CHECK(fs::exists(world.place.at("page/index.html")));
  CHECK(fs::exists(world.place.at("page/latents-0.js")));
  CHECK(world.run({"--out", world.place.at("page")}).error().ends_with("exists; --force replaces it"));
  CHECK(world.run({"--out", world.place.at("page"), "--force"}).code == 0);
  // Threads change nothing.
  REQUIRE(world.run({"--out", world.place.at("one"), "--threads", "1"}).code == 0);
  REQUIRE(world.run({"--out", world.place.at("three"), "--threads", "3"}).code == 0);
  for (const char* file : {"index.html", "text.js", "latents-0.js"})
    CHECK(file_text(world.place.at(std::string("one/") + file)) == file_text(world.place.at(std::string("three/") + file)));
}

TEST_CASE("dashboard refuses what it cannot show, in one line", "[cli][dashboard]") {
  const World world;
  const std::string page = world.place.at("page.html");
  CHECK(world.run({}).code == 2);
  CHECK(world.run({"--out", page, "--latents", "x"}).code == 2);
  CHECK(world.run({"--out", page, "--count", "0"}).code == 2);
  CHECK(run_sae({"dashboard", "--sae", world.place.at("sae"), "--out", page}).code == 2);
  CHECK_THAT(world.run({"--out", page, "--latents", "40"}).error(), ContainsSubstring("--latent 40 is not in [0, 40)"));
  CHECK_THAT(world.run({"--out", page, "--intervals", "3"}).error(), ContainsSubstring("intervals = 3 is no power of two"));
  CHECK_THAT(world.run({"--out", page, "--layer", "2"}).error(), ContainsSubstring("residual-1"));
  sae_test::write_text(world.place.at("labels.jsonl"), "{\"latent\": 40, \"label\": \"a\"}");
  CHECK_THAT(world.run({"--out", page, "--labels", world.place.at("labels.jsonl")}).error(),
             ContainsSubstring("line 1: latent = 40"));
  CHECK_THAT(run_sae({"dashboard", "--data", world.place.at("sae"), "--sae", world.place.at("sae"), "--out", page}).error(),
             ContainsSubstring("collect"));
  CHECK_FALSE(fs::exists(page));

  save_saelens(Sae(8, 40, TopK{.k = 4}), world.place.at("narrow"), {.hook_name = "blocks.1.hook_resid_post"});
  CHECK_THAT(
      run_sae({"dashboard", "--quiet", "--data", world.place.at("acts"), "--sae", world.place.at("narrow"), "--out", page})
          .error(),
      ContainsSubstring("16 wide"));
  save_saelens(Sae(16, 2001, TopK{.k = 4}), world.place.at("many"), {.hook_name = "blocks.1.hook_resid_post"});
  CHECK_THAT(run_sae({"dashboard", "--quiet", "--data", world.place.at("acts"), "--sae", world.place.at("many"), "--out", page})
                 .error(),
             ContainsSubstring("2001 latents are more than the 2000 of one file"));
}

#endif
