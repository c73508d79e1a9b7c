// sae synth: rows that are what their truth says.
#include <sae/files/npy.hpp>
#include <sae/formats/codes_file.hpp>

#include "catch_compat.hpp"
#include "cli_test.hpp"

#ifdef SAE_TEST_PROGRAM

using namespace sae;
using Catch::Matchers::ContainsSubstring;
using sae_test::file_text;
using sae_test::json_of;
using sae_test::run_sae;
using sae_test::Words;
using sae_test::Workplace;
using sae_test::write_text;

TEST_CASE("sae synth: rows are the sum of their active features and a bias", "[cli]") {
  const Workplace work;
  write_text(work.at("world.json"),
             R"({"num_features": 40, "hidden_dim": 16, "firing_probability": {"generator_name": "constant", "probability": 0.1},
                 "mean_firing_magnitudes": {"generator_name": "linear", "start": 3, "end": 1}, "std_firing_magnitudes": 0.1, "bias": 0.5})");
  const auto synth = [&](const std::string& name, Words more) {
    Words words = {"synth", "--config", work.at("world.json"), "--out", work.at(name + ".npy"), "--json"};
    words.insert(words.end(), more.begin(), more.end());
    const auto run = run_sae(words);
    INFO(run.err);
    CHECK(run.code == 0);
    return json_of(run);
  };
  const auto told = synth("x", {"--rows", "3000", "--seed", "5", "--truth", work.at("truth.npy"), "--codes", work.at("codes")});
  CHECK(told.at("rows") == 3000);
  CHECK(told.at("d_in") == 16);
  CHECK(told.at("features") == 40);
  CHECK(told.at("l0").get<double>() == Approx(4).margin(0.15));

  const Matrix<float> x = load_npy<float>(work.at("x.npy")), directions = load_npy<float>(work.at("truth.npy"));
  const CodesFile codes(work.at("codes"));
  REQUIRE(x.rows() == 3000);
  REQUIRE(directions.rows() == 40);
  REQUIRE(codes.rows() == 3000);
  REQUIRE(codes.latents() == 40);
  const Matrix<float> rest = x - codes.read(0, 3000).dense() * directions;
  CHECK((rest.rowwise() - rest.row(0)).cwiseAbs().maxCoeff<Eigen::PropagateNaN>() < 1e-4F);
  CHECK(static_cast<double>(rest.row(0).norm()) == Approx(0.5).margin(1e-4));
  CHECK((directions.rowwise().norm().array() - 1.0F).abs().maxCoeff<Eigen::PropagateNaN>() < 1e-5F);

  synth("again", {"--rows", "3000", "--seed", "5", "--threads", "1"});
  CHECK(file_text(work.at("again.npy")) == file_text(work.at("x.npy")));
  synth("other", {"--rows", "3000", "--seed", "6", "--truth", work.at("truth2.npy")});
  CHECK(file_text(work.at("other.npy")) != file_text(work.at("x.npy")));
  CHECK(file_text(work.at("truth2.npy")) == file_text(work.at("truth.npy")));
  synth("late", {"--rows", "100", "--seed", "5", "--first-row", "2000"});
  CHECK((load_npy<float>(work.at("late.npy")) - x.middleRows(2000, 100)).cwiseAbs().maxCoeff<Eigen::PropagateNaN>() == 0.0F);
}

TEST_CASE("sae synth: a configuration that is wrong is refused by its key", "[cli]") {
  const Workplace work;
  const auto fails = [&](const std::string& config, const std::string& with) {
    write_text(work.at("world.json"), config);
    const auto run = run_sae({"synth", "--config", work.at("world.json"), "--rows", "10", "--out", work.at("x.npy")});
    INFO(config << " | " << run.err);
    CHECK(run.code == 1);
    CHECK_THAT(run.error(), ContainsSubstring(with));
    CHECK(work.names() == Words{"world.json"});
  };
  fails("", "world.json: is not valid JSON");
  fails(R"({"num_features": 8})", "hidden_dim is missing");
  fails(R"({"num_features": 8, "hidden_dim": 4, "bias": 1e39})", "its rows are not finite in float32");
  fails(R"({"num_features": 8, "hidden_dim": 4, "biass": 1})", "biass is not a known field");
  fails(R"({"num_features": 8, "hidden_dim": 0})", "hidden_dim = 0 is not");
  fails(R"({"num_features": 8, "hidden_dim": 4, "firing_probability": {"generator_name": "poisson"}})",
        "generator_name = \"poisson\"");
  fails(R"({"num_features": 8, "hidden_dim": 4, "firing_probability": {"generator_name": "constant", "probability": 2}})",
        "probability = 2 is not in (0, 1]");
  fails(R"({"num_features": 8, "hidden_dim": 4, "hierarchy": {"branching": 3}})", "branching is not a known field");
  fails(R"({"num_features": 999999999999, "hidden_dim": 999999999})", "is above 2^30");
  const auto missing = run_sae({"synth", "--config", work.at("no.json"), "--rows", "10", "--out", work.at("x.npy")});
  CHECK(missing.code == 1);
  CHECK_THAT(missing.error(), ContainsSubstring("no.json: cannot open"));
}

#endif
