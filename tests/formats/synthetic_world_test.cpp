#include <sae/formats/synthetic_world.hpp>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "catch_compat.hpp"
#include "run_program.hpp"

namespace {

using sae::Index;
namespace fs = std::filesystem;

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

// A world of five features as SAELens writes it: root 1 with the exclusive children 0 and 3, 3 with the child 2; 4 is free.
const char* const config_text = R"({"num_features": 5, "hidden_dim": 3, "firing_probability": {"generator_name": "constant",
  "probability": 0.25}, "hierarchy": {"total_root_nodes": 1}, "correlation": {"rank": 2}, "bias": 0.5,
  "std_firing_magnitudes": {"generator_name": "folded_normal", "mean": 0.5, "std": 0.5},
  "mean_firing_magnitudes": {"generator_name": "linear", "start": 5, "end": 1}})";
std::string node(const std::string& feature, const std::string& children, bool exclusive, bool scale) {
  return R"({"feature_index": )" + feature + R"(, "feature_id": null, "mutually_exclusive_children": )" +
         (exclusive ? "true" : "false") + R"(, "scale_children_by_parent": )" + (scale ? "true" : "false") +
         R"(, "children": [)" + children + "]}";
}
std::string roots(const std::string& nodes) { return R"({"roots": [)" + nodes + "]}"; }
const std::string tree_text =
    roots(node("1", node("0", "", false, false) + "," + node("3", node("2", "", false, false), false, true), true, true));

struct Arrays {
  std::vector<float> directions{1, 0, 0, 0, 1, 0, 0, 0, 1, 0.6F, 0.8F, 0, 0, 0.6F, 0.8F}, bias{0.5F, 0, 0};
  std::vector<float> probabilities{0.25F, 0.5F, 0.75F, 1, 0.125F}, factor{0.5F, 0, 0, 0.5F, 0, 0, 0.25F, 0, 0, 0},
      diag{0.75F, 0.75F, 1, 0.9375F, 1};
  void save(const fs::path& folder, bool correlation = true) const {
    sae::SafetensorsWriter file;
    file.add("feature_vectors", {static_cast<Index>(directions.size()) / 3, 3}, directions);
    file.add("bias", {static_cast<Index>(bias.size())}, bias);
    file.add("firing_probabilities", {static_cast<Index>(probabilities.size())}, probabilities);
    if (correlation) file.add("correlation_factor", {5, 2}, factor);
    if (correlation) file.add("correlation_diag", {static_cast<Index>(diag.size())}, diag);
    file.save(folder / "synthetic_model.safetensors", {.overwrite = true});
  }
};
void save(const fs::path& folder) {
  sae_test::write_text(folder / "synthetic_model_config.json", config_text);
  sae_test::write_text(folder / "hierarchy.json", tree_text);
  Arrays().save(folder);
}
void save_floats(const fs::path& path, const std::vector<float>& values) {
  sae_test::write_text(path, std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)));
}

TEST_CASE("a saved world is read, array by array", "[formats][synthetic]") {
  const TempFolder folder;
  save(folder.path());
  save_floats(folder / "std_magnitudes.f32", {0, 0.25F, 0.5F, 0.75F, 1});
  const auto world = sae::read_synthetic_world(folder.path());
  const Arrays want;
  CHECK(std::equal(want.directions.begin(), want.directions.end(), world.directions.data()));
  CHECK(std::equal(want.bias.begin(), want.bias.end(), world.bias.data()));
  CHECK(world.probabilities == std::vector<double>{0.25, 0.5, 0.75, 1, 0.125});
  CHECK(world.base_probabilities == std::vector<double>(5, 0.25));
  CHECK(world.means == std::vector<double>{5, 4, 3, 2, 1});
  CHECK(world.spreads == std::vector<double>{0, 0.25, 0.5, 0.75, 1});
  CHECK(world.correlation_factor.rows() == 5);
  CHECK(world.correlation_factor.row(3)[0] == 0.25);
  CHECK(world.correlation_diag == std::vector<double>{0.75, 0.75, 1, 0.9375, 1});
  CHECK(world.parents == std::vector<Index>{1, -1, 3, 1, -1});
  CHECK(world.levels == std::vector<std::vector<Index>>{{1}, {0, 3}, {2}});
  REQUIRE(world.groups.size() == 3);
  REQUIRE(world.groups[0].size() == 1);
  CHECK(world.groups[0][0].parent == 1);
  CHECK(world.groups[0][0].children == std::vector<Index>{0, 3});
  CHECK(world.groups[1].empty());
  CHECK(world.config.hierarchy->scale_children_by_parent);
  // And rows are drawn from it.
  sae::SyntheticSource source(world, {.seed = 1});
  sae::Tensor<float> x(2000, 3);
  sae::Codes<float> truth;
  REQUIRE(source.next(x, truth) == 2000);
  const sae::Matrix<float> a = truth.dense();
  for (Index b = 0; b < 2000; ++b) {
    if (a(b, 2) != 0) REQUIRE(a(b, 3) != 0);
    REQUIRE_FALSE((a(b, 0) != 0 && a(b, 3) != 0));
  }
  CHECK((a.col(2).array() != 0).count() > 0);

  // Without the magnitudes' file they are drawn; without a correlation features fire alone; a node without a feature groups.
  fs::remove(folder / "std_magnitudes.f32");
  Arrays().save(folder.path(), false);
  sae_test::write_text(folder / "hierarchy.json",
                       roots(node("null", node("0", "", false, false) + "," + node("2", "", false, false), true, false)));
  const auto plain = sae::read_synthetic_world(folder.path());
  CHECK(plain.spreads == sae::SyntheticWorld(plain.config).spreads);
  CHECK(plain.correlation_factor.rows() == 0);
  CHECK(plain.parents == std::vector<Index>(5, -1));
  CHECK(plain.levels == std::vector<std::vector<Index>>{{}, {0, 2}});
  CHECK(plain.groups[0][0].parent == -1);
  CHECK_FALSE(plain.config.hierarchy->scale_children_by_parent);
}

TEST_CASE("a saved world that is broken is refused by file and name", "[formats][synthetic]") {
  using Catch::Matchers::ContainsSubstring;
  const TempFolder folder;
  const auto refused = [&](const auto& breaks, const std::string& file, const std::string& what) {
    save(folder.path());
    breaks();
    CAPTURE(what);
    CHECK_THROWS_AS(sae::read_synthetic_world(folder.path()), sae::FileError);
    CHECK_THROWS_WITH(sae::read_synthetic_world(folder.path()), ContainsSubstring(file) && ContainsSubstring(what));
  };
  const auto arrays = [&](auto change) {
    return [&folder, change] {
      Arrays a;
      change(a);
      a.save(folder.path());
    };
  };
  const auto tree = [&](const std::string& text) {
    return [&folder, text] { sae_test::write_text(folder / "hierarchy.json", text); };
  };
  const float nan = std::numeric_limits<float>::quiet_NaN();
  refused([&] { fs::remove(folder / "hierarchy.json"); }, "hierarchy.json", "");
  refused([&] { fs::remove(folder / "synthetic_model.safetensors"); }, "synthetic_model.safetensors", "");
  refused(arrays([](Arrays& a) { a.directions.resize(12); }), "safetensors", "feature_vectors has shape");
  refused(arrays([&](Arrays& a) { a.directions[4] = nan; }), "safetensors", "feature_vectors[4]");
  refused(arrays([&](Arrays& a) { a.bias[1] = nan; }), "safetensors", "bias[1]");
  refused(arrays([](Arrays& a) { a.probabilities[2] = 1.5F; }), "safetensors", "firing_probabilities[2] = 1.5");
  refused(arrays([](Arrays& a) { a.diag[0] = -0.5F; }), "safetensors", "correlation_diag[0] = -0.5");
  refused(arrays([](Arrays& a) { a.diag.pop_back(); }), "safetensors", "correlation_diag has shape");
  refused(tree("[]"), "hierarchy.json", "JSON object");
  refused(tree("{}"), "hierarchy.json", "roots is missing");
  refused(tree(roots(node("5", "", false, false))), "hierarchy.json", "feature_index = 5 is not below num_features = 5");
  refused(tree(roots(node("-1", "", false, false))), "hierarchy.json", "feature_index = -1");
  refused(tree(roots(node("1", node("1", "", false, false), false, false))), "hierarchy.json", "1 stands in the trees twice");
  refused(tree(roots(node("1", node("0", node("2", "", false, false), false, false), false, true))), "hierarchy.json",
          "scale_children_by_parent is true for some");
  refused([&] { save_floats(folder / "std_magnitudes.f32", {1, 2, 3}); }, "std_magnitudes.f32", "12 bytes; 5 float32");
  refused([&] { save_floats(folder / "std_magnitudes.f32", {1, 2, 3, -4, 5}); }, "std_magnitudes.f32", "[3] = -4");
}

TEST_CASE("SAELens' own world, read from its files, gives its facts", "[formats][synthetic][shared]") {
  const char* const shared = std::getenv("SAE_SHARED_DATA");
  const fs::path folder = fs::path(shared == nullptr ? "" : shared) / "synth_mini";
  if (shared == nullptr || !fs::exists(folder / "synthetic_model.safetensors"))
    SAE_SKIP_TEST("SAE_SHARED_DATA names no folder with synth_mini");
  const auto world = sae::read_synthetic_world(folder);
  CHECK(world.features() == 1024);
  CHECK(world.width() == 128);
  CHECK(world.config.hierarchy->scale_children_by_parent);

  // The trees and the compensated probabilities are those that the settings make here.
  sae::SyntheticConfig settings = world.config;
  settings.orthogonalization.reset();
  const sae::SyntheticWorld own(settings);
  CHECK(world.parents == own.parents);
  REQUIRE(world.levels == own.levels);
  double off = 0;
  for (std::size_t i = 0; i < 1024; ++i) off = std::max(off, std::abs(world.probabilities[i] - own.probabilities[i]));
  CHECK(off <= 3e-7);
  CHECK(world.means == own.means);
  std::vector<std::size_t> own_groups, read_groups;
  for (const auto& level : own.groups) own_groups.push_back(level.size());
  for (const auto& level : world.groups) read_groups.push_back(level.size());
  CHECK(read_groups == own_groups);
  for (Index i = 0; i < 1024; ++i) {
    double shares = world.correlation_diag[at(i)];
    for (Index r = 0; r < 25; ++r) shares += world.correlation_factor.row(i)[r] * world.correlation_factor.row(i)[r];
    REQUIRE(std::abs(shares - 1) <= 1e-6);
    REQUIRE(world.directions.map().row(i).norm() == Approx(1).epsilon(1e-5));
  }
  CHECK(world.bias.map().norm() == Approx(0.5).epsilon(1e-5));

  // Of 102,400 rows of the peer, in the order of the trees' depth; 20,000 of ours have standard errors of 0.03 (L0), 1.1
  // (variance), 0.05 (norm), 0.006 (magnitude) and at most 0.02 (a level's share of L0).
  constexpr Index rows = 20000;
  sae::SyntheticSource source(world, {.seed = 1});
  sae::Tensor<float> drawn(rows, 128);
  sae::Codes<float> truth;
  REQUIRE(source.next(drawn, truth) == rows);
  double by_level[4] = {}, first_256 = 0, first_512 = 0, magnitude = 0;
  for (Index e = 0; e < truth.size(); ++e) {
    const Index i = truth.latent(e);
    by_level[i < 32 ? 0 : i < 160 ? 1 : i < 672 ? 2 : 3] += 1.0 / rows;
    first_256 += i < 256 ? 1.0 / rows : 0;
    first_512 += i < 512 ? 1.0 / rows : 0;
    magnitude += static_cast<double>(truth.value(e)) / static_cast<double>(truth.size());
  }
  CHECK(std::abs(static_cast<double>(truth.size()) / rows - 13.43) <= 0.15);
  CHECK(std::abs(by_level[0] - 4.61) <= 0.08);
  CHECK(std::abs(by_level[1] - 4.19) <= 0.08);
  CHECK(std::abs(by_level[2] - 3.85) <= 0.08);
  CHECK(std::abs(by_level[3] - 0.78) <= 0.04);
  CHECK(std::abs(first_256 - 10.18) <= 0.15);
  CHECK(std::abs(first_512 - 12.01) <= 0.15);
  CHECK(std::abs(magnitude - 4.83) <= 0.03);
  const sae::Matrix<double> x = drawn.map().cast<double>();
  const Eigen::RowVectorXd mean = x.colwise().mean();
  CHECK(std::abs((x.rowwise() - mean).squaredNorm() / rows - 299.5) <= 6);
  CHECK(std::abs(x.rowwise().norm().mean() - 17.55) <= 0.25);
  CHECK(std::abs(mean.norm() - 5.30) <= 0.15);
}

}  // namespace
