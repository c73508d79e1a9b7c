#include <sae/formats/synthetic_config.hpp>

#include "catch_compat.hpp"
#include "run_program.hpp"

using Catch::Matchers::ContainsSubstring;

namespace {
sae::SyntheticConfig parse(const std::string& text) {
  return sae::parse_synthetic_config(sae::parse_json(text, "world.json"), "world.json");
}
}  // namespace

TEST_CASE("synthetic config: a file of SAELens, whole", "[formats]") {
  const sae::SyntheticConfig config = parse(R"({
    "num_features": 1024, "hidden_dim": 128,
    "firing_probability": {"exponent": 0.5, "max_prob": 0.5, "min_prob": 0.0005, "generator_name": "zipfian"},
    "hierarchy": {"total_root_nodes": 32, "branching_factor": 4, "max_depth": 2, "mutually_exclusive_portion": 1.0,
      "mutually_exclusive_min_depth": 0, "mutually_exclusive_max_depth": null, "compensate_probabilities": true,
      "scale_children_by_parent": true},
    "orthogonalization": {"num_steps": 100, "lr": 0.0003, "chunk_size": 1024},
    "correlation": {"rank": 25, "correlation_scale": 0.1, "seed": null},
    "std_firing_magnitudes": {"mean": 0.5, "std": 0.5, "min_value": null, "max_value": 3, "generator_name": "folded_normal"},
    "mean_firing_magnitudes": {"start": 5.0, "end": 4.0, "generator_name": "linear"},
    "bias": 0.5, "dtype": "float32", "seed": 42})");
  config.check();
  CHECK(config.num_features == 1024);
  CHECK(config.hidden_dim == 128);
  const auto& zipf = std::get<sae::ZipfianFiring>(config.firing_probability);
  CHECK(zipf.exponent == 0.5);
  CHECK(zipf.max_prob == 0.5);
  CHECK(zipf.min_prob == 0.0005);
  REQUIRE(config.hierarchy);
  CHECK(config.hierarchy->total_root_nodes == 32);
  CHECK(config.hierarchy->branching_factor == 4);
  CHECK(config.hierarchy->mutually_exclusive_portion == 1);
  CHECK_FALSE(config.hierarchy->mutually_exclusive_max_depth);
  CHECK(config.hierarchy->compensate_probabilities);
  CHECK(config.hierarchy->scale_children_by_parent);
  REQUIRE(config.orthogonalization);
  CHECK(config.orthogonalization->num_steps == 100);
  CHECK(config.orthogonalization->lr == 3e-4);
  REQUIRE(config.correlation);
  CHECK(config.correlation->rank == 25);
  CHECK_FALSE(config.correlation->seed);
  const auto& spread = std::get<sae::FoldedNormalMagnitude>(config.std_firing_magnitudes);
  CHECK(spread.mean == 0.5);
  CHECK_FALSE(spread.min_value);
  CHECK(spread.max_value == 3.0);
  const auto& mean = std::get<sae::LinearMagnitude>(config.mean_firing_magnitudes);
  CHECK(mean.start == 5);
  CHECK(mean.end == 4);
  CHECK(config.bias == 0.5);
  CHECK(config.seed == 42);
}

TEST_CASE("synthetic config: a file with the configuration alone, or under its key", "[formats]") {
  const TempFolder folder;
  const std::string alone = R"({"num_features": 9, "hidden_dim": 3})";
  sae_test::write_text(folder / "alone.json", alone);
  sae_test::write_text(folder / "wrapped.json", R"({"synthetic_model": )" + alone + "}");
  sae_test::write_text(folder / "more.json", R"({"seed": 1, "synthetic_model": )" + alone + "}");
  CHECK(sae::read_synthetic_config(folder / "alone.json").num_features == 9);
  CHECK(sae::read_synthetic_config(folder / "wrapped.json").num_features == 9);
  CHECK_THROWS_WITH(sae::read_synthetic_config(folder / "more.json"),
                    ContainsSubstring("synthetic_model is not a known field"));
}

TEST_CASE("synthetic config: what is left out keeps its default, and a number is a constant magnitude", "[formats]") {
  const sae::SyntheticConfig config = parse(R"({"num_features": 8, "hidden_dim": 4, "std_firing_magnitudes": 0.25,
    "firing_probability": {"generator_name": "random", "max_prob": 0.4}, "hierarchy": null})");
  CHECK(std::get<sae::ConstantMagnitude>(config.std_firing_magnitudes).value == 0.25);
  CHECK(std::get<sae::ConstantMagnitude>(config.mean_firing_magnitudes).value == 1);
  CHECK(std::get<sae::RandomFiring>(config.firing_probability).max_prob == 0.4);
  CHECK(std::get<sae::RandomFiring>(config.firing_probability).min_prob == sae::RandomFiring{}.min_prob);
  CHECK_FALSE(config.hierarchy);
  CHECK(config.bias == sae::SyntheticConfig{}.bias);
  CHECK(
      parse(R"({"num_features": 8, "hidden_dim": 4, "hierarchy": {"branching_factor": 3}})").hierarchy->branching_factor_max ==
      0);
  const auto range = parse(R"({"num_features": 8, "hidden_dim": 4, "hierarchy": {"branching_factor": [3, 5]}})");
  CHECK(range.hierarchy->branching_factor == 3);
  CHECK(range.hierarchy->branching_factor_max == 5);
  const auto generator = [&](const std::string& name, const std::string& more) {
    return parse(R"({"num_features": 8, "hidden_dim": 4, ")" + name + R"(": {"generator_name": )" + more + "}}");
  };
  CHECK(std::get<sae::LinearFiring>(generator("firing_probability", R"("linear", "min_prob": 0.1)").firing_probability)
            .min_prob == 0.1);
  CHECK(std::get<sae::ConstantFiring>(generator("firing_probability", R"("constant", "probability": 0.2)").firing_probability)
            .probability == 0.2);
  CHECK(std::get<sae::ExponentialMagnitude>(
            generator("mean_firing_magnitudes", R"("exponential", "end": 2)").mean_firing_magnitudes)
            .end == 2);
  CHECK(
      std::get<sae::ConstantMagnitude>(generator("mean_firing_magnitudes", R"("constant", "value": 2)").mean_firing_magnitudes)
          .value == 2);
}

TEST_CASE("synthetic config: unknown keys, generators and kinds are refused by name", "[formats]") {
  const auto refused = [&](const std::string& text, const std::string& with) {
    INFO(text);
    CHECK_THROWS_WITH(parse(text), ContainsSubstring("world.json: ") && ContainsSubstring(with));
  };
  const std::string sizes = R"({"num_features": 8, "hidden_dim": 4, )";
  refused("[]", "a JSON object is needed");
  refused(R"({"num_features": 8})", "hidden_dim is missing");
  refused(sizes + R"("featurs": 1})", "featurs is not a known field");
  refused(sizes + R"("bias": "much"})", "bias = \"much\"");
  refused(sizes + R"("seed": -1})", "seed = -1");
  refused(sizes + R"("dtype": "bfloat16"})", "dtype = \"bfloat16\" is not made");
  refused(sizes + R"("hierarchy": []})", "hierarchy is not a JSON object");
  refused(sizes + R"("hierarchy": {"max_depth": 1.5}})", "max_depth = 1.5");
  refused(sizes + R"("hierarchy": {"branching_factor": [2, 3, 4]}})", "branching_factor is a list of 3 values");
  refused(sizes + R"("hierarchy": {"branching_factor": [2, 2.5]}})", "2.5");
  refused(sizes + R"("correlation": {"scale": 1}})", "scale is not a known field");
  refused(sizes + R"("orthogonalization": {"steps": 1}})", "steps is not a known field");
  refused(sizes + R"("firing_probability": {"generator_name": "pareto"}})",
          "\"pareto\" is not one of zipfian, linear, random, constant");
  refused(sizes + R"("firing_probability": {"max_prob": 1}})", "generator_name is missing");
  refused(sizes + R"("mean_firing_magnitudes": {"generator_name": "linear", "value": 1}})", "value is not a known field");
}
