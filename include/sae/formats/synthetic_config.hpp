#pragma once
#include <sae/data/synthetic.hpp>
#include <sae/files/json.hpp>

#include <optional>
#include <string>
#include <variant>

// A synthetic world as JSON: the keys of a `synthetic_model` configuration of SAELens (data/synthetic_settings.hpp says what they mean). Any
// of them may be left out but num_features and hidden_dim; one that is unknown is refused, so that a slip is never a default.
// Source: SAELens 6.54, synthetic/synthetic_model.py (SyntheticModelConfig).
namespace sae::inline SAE_ABI {
namespace detail {

/// Reads the object of one key; `context` is the key, for messages.
class SyntheticReader {
 public:
  SyntheticReader(const nlohmann::json& object, std::string context, const std::filesystem::path& file)
      : object_(object), context_(std::move(context)), file_(file) {
    if (!object.is_object()) throw_file(file.string(), ": ", context_, " is not a JSON object");
  }
  void only(std::initializer_list<std::string_view> names) const { json_only(object_, names, file_); }
  void number(std::string_view name, double& value) const { value = json_number_or(object_, name, value, file_); }
  void number(std::string_view name, std::optional<double>& value) const {
    if (json_find(object_, name, file_) != nullptr) value = json_number(object_, name, file_);
  }
  void integer(std::string_view name, Index& value) const { value = json_integer_or(object_, name, value, file_); }
  /// A number, or two of them [low, high]: then the second one, too.
  void range(std::string_view name, Index& low, Index& high) const {
    const nlohmann::json* const found = json_find(object_, name, file_);
    if (found == nullptr || !found->is_array()) return integer(name, low);
    if (found->size() != 2)
      throw_file(file_.string(), ": ", name, " is a list of ", found->size(), " values; it should have two");
    low = json_integer({{"low", (*found)[0]}}, "low", file_);
    high = json_integer({{"high", (*found)[1]}}, "high", file_);
  }
  void integer(std::string_view name, std::optional<Index>& value) const {
    if (json_find(object_, name, file_) != nullptr) value = json_integer(object_, name, file_);
  }
  void boolean(std::string_view name, bool& value) const { value = json_bool_or(object_, name, value, file_); }
  void seed(std::string_view name, std::optional<std::uint64_t>& value) const {
    if (json_find(object_, name, file_) != nullptr) value = static_cast<std::uint64_t>(json_integer(object_, name, file_, 0));
  }
  std::string generator() const { return json_string(object_, "generator_name", file_); }
  [[noreturn]] void unknown_generator(std::string_view known) const {
    throw_file(file_.string(), ": ", context_, ": generator_name = \"", printable(generator()), "\" is not one of ", known);
  }

 private:
  const nlohmann::json& object_;
  std::string context_;
  const std::filesystem::path& file_;
};

inline FiringProbability read_firing_probability(const SyntheticReader& in) {
  const std::string generator = in.generator();
  if (generator == ZipfianFiring::generator_name) {
    ZipfianFiring out;
    in.only({"generator_name", "exponent", "max_prob", "min_prob"});
    in.number("exponent", out.exponent);
    in.number("max_prob", out.max_prob);
    in.number("min_prob", out.min_prob);
    return out;
  }
  if (generator == ConstantFiring::generator_name) {
    ConstantFiring out;
    in.only({"generator_name", "probability"});
    in.number("probability", out.probability);
    return out;
  }
  const auto range = [&](auto out) -> FiringProbability {
    in.only({"generator_name", "max_prob", "min_prob"});
    in.number("max_prob", out.max_prob);
    in.number("min_prob", out.min_prob);
    return out;
  };
  if (generator == LinearFiring::generator_name) return range(LinearFiring{});
  if (generator == RandomFiring::generator_name) return range(RandomFiring{});
  in.unknown_generator("zipfian, linear, random, constant");
}

inline FiringMagnitude read_firing_magnitude(const SyntheticReader& in) {
  const std::string generator = in.generator();
  if (generator == ConstantMagnitude::generator_name) {
    ConstantMagnitude out;
    in.only({"generator_name", "value"});
    in.number("value", out.value);
    return out;
  }
  if (generator == FoldedNormalMagnitude::generator_name) {
    FoldedNormalMagnitude out;
    in.only({"generator_name", "mean", "std", "min_value", "max_value"});
    in.number("mean", out.mean);
    in.number("std", out.std);
    in.number("min_value", out.min_value);
    in.number("max_value", out.max_value);
    return out;
  }
  const auto ends = [&](auto out) -> FiringMagnitude {
    in.only({"generator_name", "start", "end"});
    in.number("start", out.start);
    in.number("end", out.end);
    return out;
  };
  if (generator == LinearMagnitude::generator_name) return ends(LinearMagnitude{});
  if (generator == ExponentialMagnitude::generator_name) return ends(ExponentialMagnitude{});
  in.unknown_generator("constant, linear, exponential, folded_normal");
}

}  // namespace detail

/// The configuration in a JSON value that was read from `file`. A magnitude may be a plain number (constant). The sizes of numbers
/// are checked by `SyntheticConfig::check`, when a world is made.
/// \throws FileError  a key is unknown or missing, or holds another kind of value.
inline SyntheticConfig parse_synthetic_config(const nlohmann::json& json, const std::filesystem::path& file) {
  using detail::SyntheticReader;
  json_only(json,
            {"num_features", "hidden_dim", "firing_probability", "hierarchy", "orthogonalization", "correlation",
             "std_firing_magnitudes", "mean_firing_magnitudes", "bias", "dtype", "seed"},
            file);
  SyntheticConfig out;
  out.num_features = json_integer(json, "num_features", file, 1);
  out.hidden_dim = json_integer(json, "hidden_dim", file, 1);
  const auto part = [&](std::string_view name) { return detail::json_find(json, name, file); };
  if (const auto* const p = part("firing_probability"))
    out.firing_probability = detail::read_firing_probability(SyntheticReader(*p, "firing_probability", file));
  if (const auto* const h = part("hierarchy")) {
    const SyntheticReader in(*h, "hierarchy", file);
    in.only({"total_root_nodes", "branching_factor", "max_depth", "mutually_exclusive_portion", "mutually_exclusive_min_depth",
             "mutually_exclusive_max_depth", "compensate_probabilities", "scale_children_by_parent"});
    HierarchyConfig& tree = out.hierarchy.emplace();
    in.integer("total_root_nodes", tree.total_root_nodes);
    in.range("branching_factor", tree.branching_factor, tree.branching_factor_max);
    in.integer("max_depth", tree.max_depth);
    in.number("mutually_exclusive_portion", tree.mutually_exclusive_portion);
    in.integer("mutually_exclusive_min_depth", tree.mutually_exclusive_min_depth);
    in.integer("mutually_exclusive_max_depth", tree.mutually_exclusive_max_depth);
    in.boolean("compensate_probabilities", tree.compensate_probabilities);
    in.boolean("scale_children_by_parent", tree.scale_children_by_parent);
  }
  if (const auto* const o = part("orthogonalization")) {
    const SyntheticReader in(*o, "orthogonalization", file);
    in.only({"num_steps", "lr", "chunk_size"});  // the chunk size is the peer's memory, not its result
    in.integer("num_steps", out.orthogonalization.emplace().num_steps);
    in.number("lr", out.orthogonalization->lr);
  }
  if (const auto* const c = part("correlation")) {
    const SyntheticReader in(*c, "correlation", file);
    in.only({"rank", "correlation_scale", "seed"});
    LowRankCorrelationConfig& correlation = out.correlation.emplace();
    in.integer("rank", correlation.rank);
    in.number("correlation_scale", correlation.correlation_scale);
    in.seed("seed", correlation.seed);
  }
  const auto magnitude = [&](std::string_view name, FiringMagnitude& value) {
    const auto* const m = part(name);
    if (m == nullptr) return;
    value = m->is_number() ? FiringMagnitude(ConstantMagnitude{m->get<double>()})
                           : detail::read_firing_magnitude(SyntheticReader(*m, std::string(name), file));
  };
  magnitude("std_firing_magnitudes", out.std_firing_magnitudes);
  magnitude("mean_firing_magnitudes", out.mean_firing_magnitudes);
  out.bias = json_number_or(json, "bias", out.bias, file);
  out.seed = static_cast<std::uint64_t>(json_integer_or(json, "seed", 0, file, 0));
  if (const std::string dtype = json_string_or(json, "dtype", "float32", file); dtype != "float32")
    throw_file(file.string(), ": dtype = \"", detail::printable(dtype), "\" is not made, only float32");
  return out;
}
/// The same from a file, which may hold the configuration alone or, as SAELens' runners write it, under the key synthetic_model.
inline SyntheticConfig read_synthetic_config(const std::filesystem::path& file) {
  const nlohmann::json json = read_json(file, std::size_t{1} << 24);
  const bool wrapped = json.is_object() && json.size() == 1 && json.contains("synthetic_model");
  return parse_synthetic_config(wrapped ? json.at("synthetic_model") : json, file);
}

}  // namespace sae::inline SAE_ABI
