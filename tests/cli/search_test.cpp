// sae search of a direction, and what it refuses, as a user calls it; what runs a model is in tests/host/llama_cpp_search_test.cpp.
#include <sae/files/npy.hpp>
#include <sae/formats/saelens.hpp>
#include <sae/interpret/decompose.hpp>
#include <sae/interpret/directions.hpp>

#include <cmath>
#include <limits>

#include "catch_compat.hpp"
#include "cli_test.hpp"

#ifdef SAE_TEST_PROGRAM

using namespace sae;
using namespace sae_test;
using Catch::Matchers::ContainsSubstring;
using nlohmann::json;

namespace {

constexpr Index width = 24, latents = 40;

SparseAutoencoder<Dynamic, Dynamic, TopK, float> some_sae() {
  SparseAutoencoder<Dynamic, Dynamic, TopK, float> sae(width, latents, TopK{.k = 4});
  Random random(3);
  for (auto* const w : {&sae.parameters().W_dec, &sae.parameters().W_enc})
    for (Index i = 0; i < w->size(); ++i) (*w)[i] = static_cast<float>(random.normal());
  return sae;
}

struct World {
  World() { save_saelens(sae, place.folder() / "sae"); }
  Finished run(const Words& words) const { return run_sae(with({"search", "--sae", place.at("sae")}, words)); }
  Finished direction(const Matrix<float>& v, const Words& words = {}) const {
    save_npy(place.folder() / "v.npy", v, {.overwrite = true});
    return run(with({"--direction", place.at("v.npy")}, words));
  }

  Workplace place;
  SparseAutoencoder<Dynamic, Dynamic, TopK, float> sae = some_sae();
};

}  // namespace

TEST_CASE("search finds the latents nearest to a direction and those that make it up", "[cli][search]") {
  const World world;
  const Matrix<float> v = 2 * world.sae.W_dec().row(7) + 0.5F * world.sae.W_dec().row(31);
  const Finished done = world.direction(v, {"--k", "3", "--count", "4", "--json"});
  INFO(done.err);
  REQUIRE(done.code == 0);
  const json said = json_of(done);
  CHECK(keys_of(nlohmann::ordered_json::parse(done.out)) ==
        std::vector<std::string>{"norm", "nearest_decoder", "nearest_encoder", "decomposition", "steps"});
  CHECK(said["norm"].get<double>() == Approx(v.cast<double>().norm()));
  const auto check_near = [&](const json& shown, const Matrix<float>& rows) {
    const auto expected = nearest_latents(v, rows, 4)[0];
    REQUIRE(shown.size() == 4);
    for (std::size_t n = 0; n < 4; ++n) {
      CHECK(shown[n]["latent"] == expected[n].latent);
      CHECK(shown[n]["cosine"] == expected[n].cosine);
    }
  };
  check_near(said["nearest_decoder"], world.sae.W_dec());
  check_near(said["nearest_encoder"], world.sae.W_enc());
  CHECK(said["nearest_decoder"][0]["latent"] == 7);

  REQUIRE(said["decomposition"].size() >= 2);
  CHECK(said["decomposition"][0]["latent"] == 7);
  CHECK(said["decomposition"][0]["coefficient"].get<double>() == Approx(2).epsilon(1e-4));
  CHECK(said["decomposition"][1]["latent"] == 31);
  CHECK(said["decomposition"][1]["coefficient"].get<double>() == Approx(0.5).epsilon(1e-4));
  CHECK(said["steps"].back()["cosine"].get<double>() == Approx(1).epsilon(1e-6));

  const Finished table = world.direction(v);
  CHECK(table.code == 0);
  CHECK_THAT(table.out, ContainsSubstring("nearest, decoder") && ContainsSubstring("cosine of the sum"));
  // A vector of one axis is the same direction.
  save_npy_values(world.place.folder() / "flat.npy", std::span<const float>(v.data(), static_cast<std::size_t>(width)),
                  {width});
  CHECK(world.run({"--direction", world.place.at("flat.npy")}).out == table.out);
}

TEST_CASE("search refuses directions that are none", "[cli][search]") {
  const World world;
  const Matrix<float> v = Matrix<float>::Ones(1, width);
  check_refused(world.direction(Matrix<float>::Ones(1, 23)), "v.npy: rows are 23 wide");
  check_refused(world.direction(Matrix<float>::Ones(2, width)), "has shape [2, 24]; a direction is one row");
  check_refused(world.direction(Matrix<float>::Zero(1, width)), "zero everywhere");
  Matrix<float> broken = v;
  broken(0, 3) = std::numeric_limits<float>::quiet_NaN();
  check_refused(world.direction(broken), "not finite");
  check_refused(world.direction(v, {"--k", "41"}), "--k 41 is not in [1, 40]");
  check_refused(world.direction(v, {"--count", "41"}), "--count 41 is not in [1, 40]");
  check_refused(world.run({"--direction", world.place.at("missing.npy")}), "missing.npy");
  check_refused(run_sae({"search", "--sae", world.place.at("missing"), "--direction", world.place.at("v.npy")}), "missing");
  check_refused(world.run({"--direction", world.place.at("sae") + "/cfg.json"}), "cfg.json");
}

TEST_CASE("search asks for one thing at a time", "[cli][search]") {
  const World world;
  for (const Words& words : std::vector<Words>{{},
                                               {"--positive", "a.txt"},
                                               {"--negative", "a.txt"},
                                               {"--positive", "a.txt", "--negative", "b.txt"},  // no model
                                               {"--prompt", "the cat"},
                                               {"--prompt", "the cat", "--direction", "v.npy", "--model", "m.gguf"},
                                               {"--prompt", "a", "--positive", "a", "--negative", "b", "--model", "m.gguf"},
                                               {"--direction", "v.npy", "--model", "m.gguf"},
                                               {"--direction", "v.npy", "--layer", "1"},
                                               {"--direction", "v.npy", "--pool", "mean"},
                                               {"--direction", "v.npy", "--k", "0"},
                                               {"--prompt", "the cat", "--model", "m.gguf", "--k", "3"},
                                               {"--positive", "a", "--negative", "b", "--model", "m", "--pool", "min"},
                                               {"--positive", "a", "--negative", "b", "--model", "m", "--probe", "0"},
                                               {"--direction", "v.npy", "--count", "0"}}) {
    std::string line;
    for (const std::string& word : words) line += " " + word;
    INFO(line);
    const Finished done = world.run(words);
    CHECK(done.code == 2);
    CHECK(done.out.empty());
    CHECK_FALSE(done.error().empty());
  }
  CHECK(run_sae({"search", "--direction", "v.npy"}).code == 2);  // no SAE
}

#endif
