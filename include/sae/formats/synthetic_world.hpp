#pragma once
#include <sae/files/safetensors.hpp>
#include <sae/formats/synthetic_config.hpp>

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace sae::inline SAE_ABI {
namespace detail {

/// The trees of `hierarchy.json`, level by level (the depth of the nesting costs no stack).
inline void read_hierarchy(const std::filesystem::path& file, SyntheticWorld& world) {
  const nlohmann::json json = read_json(file, std::size_t{1} << 28);
  json_only(json, {"roots"}, file);
  const auto list = [&](const nlohmann::json& node, std::string_view name) -> const nlohmann::json& {
    const nlohmann::json* const found = json_find(node, name, file);
    if (found == nullptr || !found->is_array()) throw_file(file.string(), ": ", name, " is missing or is not a list");
    return *found;
  };
  struct Child {
    const nlohmann::json* node;
    Index parent;  ///< feature, -1: none
  };
  std::vector<Child> level, next;
  for (const auto& root : list(json, "roots")) level.push_back({&root, -1});
  std::vector<std::uint8_t> seen(static_cast<std::size_t>(world.features()), 0);
  bool any_scaled = false, any_plain = false;
  world.levels.clear();
  world.groups.clear();
  for (; !level.empty(); std::swap(level, next)) {
    next.clear();
    auto& features = world.levels.emplace_back();
    auto& groups = world.groups.emplace_back();
    for (const Child& child : level) {
      const nlohmann::json& node = *child.node;
      json_only(node, {"feature_index", "feature_id", "children", "mutually_exclusive_children", "scale_children_by_parent"},
                file);
      Index feature = -1;
      if (json_find(node, "feature_index", file) != nullptr) {
        feature = json_integer(node, "feature_index", file, 0);
        if (feature >= world.features())
          throw_file(file.string(), ": feature_index = ", feature, " is not below num_features = ", world.features());
        if (seen[static_cast<std::size_t>(feature)]++ != 0)
          throw_file(file.string(), ": feature_index = ", feature, " stands in the trees twice");
        world.parents[static_cast<std::size_t>(feature)] = child.parent;
        features.push_back(feature);
      }
      const nlohmann::json& children = list(node, "children");
      if (children.empty()) continue;
      (json_bool_or(node, "scale_children_by_parent", false, file) ? any_scaled : any_plain) = true;
      SyntheticWorld::Group group{feature, {}};
      for (const auto& below : children) {
        next.push_back({&below, feature});
        if (json_find(below, "feature_index", file) != nullptr)
          group.children.push_back(json_integer(below, "feature_index", file, 0));
      }
      if (json_bool_or(node, "mutually_exclusive_children", false, file)) groups.push_back(std::move(group));
    }
  }
  if (any_scaled && any_plain)
    throw_file(file.string(), ": scale_children_by_parent is true for some parents and false for others; all or none are read");
  if (!world.config.hierarchy) world.config.hierarchy.emplace();
  world.config.hierarchy->scale_children_by_parent = any_scaled;
}

}  // namespace detail

/// A world that SAELens saved (`SyntheticModel.save`): the very directions, probabilities, correlation and trees.
///
///   const sae::SyntheticWorld world = sae::read_synthetic_world("synth_mini");
///
///   synthetic_model_config.json   the settings (formats/synthetic_config.hpp)
///   synthetic_model.safetensors   feature_vectors [n, D], bias [D], firing_probabilities [n], compensated; and where features are
///                                 correlated correlation_factor [n, r] and correlation_diag [n]
///   hierarchy.json                the trees, where the settings have any
///   std_magnitudes.f32, mean_magnitudes.f32    n float32 each, if there: the magnitudes' spreads and means
///
/// SAELens does not save the last two but draws them anew from its seed. Where they are missing, random ones are of our own stream:
/// the same distribution, other numbers. `base_probabilities` are those of the settings.
/// \throws FileError  a file is missing, of another shape, holds a number that is not finite or a probability outside [0, 1], or
///                    trees that name a feature twice.
/// Source: SAELens 6.54 synthetic/synthetic_model.py.
inline SyntheticWorld read_synthetic_world(const std::filesystem::path& folder) {
  const std::filesystem::path config_file = folder / "synthetic_model_config.json",
                              array_file = folder / "synthetic_model.safetensors";
  const std::filesystem::path tree_file = folder / "hierarchy.json";
  SyntheticConfig config = read_synthetic_config(config_file);
  config.check();
  SyntheticConfig bare = config;  // what would be drawn and replaced is not drawn
  bare.hierarchy.reset();
  bare.orthogonalization.reset();
  bare.correlation.reset();
  SyntheticWorld world(std::move(bare));
  world.config = std::move(config);
  const Index n = world.features();

  const SafetensorsFile arrays(array_file);
  const auto finite = [](const std::filesystem::path& file, std::string_view name, const auto& values, double low,
                         double high) {
    for (Index i = 0; i < static_cast<Index>(values.size()); ++i)
      if (const auto v = static_cast<double>(values.data()[i]); !(v >= low && v <= high))
        throw_file(file.string(), ": ", name, "[", i, "] = ", v, " is not in [", low, ", ", high, "]");
  };
  const auto numbers = [&](std::string_view name, const SafetensorsFile::Shape& shape, double low, double high) {
    Tensor<double> out = arrays.read<double>(name, shape);
    finite(array_file, name, out, low, high);
    return out;
  };
  const auto list = [](const Tensor<double>& values) {
    return std::vector<double>(values.data(), values.data() + values.size());
  };
  constexpr double largest = (std::numeric_limits<float>::max)();
  world.directions.map() = numbers("feature_vectors", {n, world.width()}, -largest, largest).map().cast<float>();
  world.bias.map() = numbers("bias", {world.width()}, -largest, largest).map().cast<float>();
  world.probabilities = list(numbers("firing_probabilities", {n}, 0, 1));
  if (arrays.contains("correlation_factor") || arrays.contains("correlation_diag")) {
    world.correlation_factor = numbers("correlation_factor", {n, -1}, -1, 1);
    world.correlation_diag = list(numbers("correlation_diag", {n}, 0, 1));
  }
  if (world.config.hierarchy || std::filesystem::exists(tree_file)) detail::read_hierarchy(tree_file, world);
  const auto magnitudes = [&](const char* name, std::vector<double>& values) {
    const std::filesystem::path file = folder / name;
    if (!std::filesystem::exists(file)) return;
    const MappedFile mapped(file);
    if (mapped.bytes().size() != static_cast<std::size_t>(n) * sizeof(float))
      throw_file(file.string(), ": holds ", mapped.bytes().size(), " bytes; ", n, " float32 are needed");
    Buffer<float> out(static_cast<std::size_t>(n));
    detail::convert(Dtype::float32, mapped.bytes().data(), n, out.data());
    finite(file, name, out, 0, largest);
    values.assign(out.begin(), out.end());
  };
  magnitudes("std_magnitudes.f32", world.spreads);
  magnitudes("mean_magnitudes.f32", world.means);
  return world;
}

}  // namespace sae::inline SAE_ABI
