#pragma once
#include <sae/files/json.hpp>
#include <sae/formats/published.hpp>

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <variant>
#include <vector>

// What an activation is in SAELens' cfg.json: the name of its architecture, and its settings. formats/saelens.hpp reads and writes the files.
namespace sae::inline SAE_ABI {

/// What cfg.json says, checked.
struct SaelensConfig {
  std::filesystem::path file;  ///< cfg.json itself
  std::string architecture;
  std::string activation;  ///< the architecture without what makes it a transcoder: "jumprelu" of "jumprelu_skip_transcoder"
  Index d_in = 0, latents = 0;
  Index d_out = 0;                                                    ///< of a transcoder; 0: an autoencoder
  bool skip = false;                                                  ///< of a transcoder: W_skip
  bool running_threshold = false;                                     ///< of a training of BatchTopK: used by `topk_threshold`
  bool subtract_decoder_bias = true;                                  ///< `apply_b_dec_to_input`
  InputNormalisation input_normalisation = InputNormalisation::none;  ///< `normalize_activations`
  double input_scale = 1;  ///< rows were trained on times this; the weights take it when they are read
  SaelensMetadata metadata;
  nlohmann::json json;                ///< the whole file
  std::vector<std::string> warnings;  ///< what a user should know and no reader can decide
};

/// How an activation stands in cfg.json: the name of its architecture, and its settings read and written. An architecture more
/// is one specialisation more. Its own parameters are tensors [F] or [F x n] under their own names.
/// `write` may take the model's own tensors of the activation as its second argument.
template <class Activation>
struct SaelensLayout;

template <>
struct SaelensLayout<ReLU> {
  static constexpr std::string_view architecture = "standard";
  static ReLU read(const SaelensConfig&) { return {}; }
  static void write(const ReLU&, nlohmann::ordered_json&) {}
};

template <>
struct SaelensLayout<TopK> {
  static constexpr std::string_view architecture = "topk";
  static TopK read(const SaelensConfig& config) {
    return {.k = json_integer(config.json, "k", config.file, 1, config.latents),
            .rank_by_decoder_norm = json_bool_or(config.json, "rescale_acts_by_decoder_norm", false, config.file)};
  }
  static void write(const TopK& topk, nlohmann::ordered_json& json) {
    json["k"] = topk.k;
    json["rescale_acts_by_decoder_norm"] = false;
  }
};

/// Its thresholds are the tensor `threshold` [F]; nothing of how they were trained stands in cfg.json. The peer's codes are
/// relu(z) where z > theta: a threshold below 0 does what 0 does, and is read as 0.
template <>
struct SaelensLayout<JumpReLU> {
  static constexpr std::string_view architecture = "jumprelu";
  static JumpReLU read(const SaelensConfig&) { return {}; }
  static void write(const JumpReLU&, nlohmann::ordered_json&) {}
};

/// A training keeps its rank over the batch to itself: what is written is the JumpReLU of its running threshold, as SAELens does.
template <>
struct SaelensLayout<BatchTopK> {
  static constexpr std::string_view architecture = "batchtopk";
  static constexpr bool reads = false;
};

template <>
struct SaelensLayout<AbsTopK> {
  static constexpr std::string_view architecture = "abstopk";
  static AbsTopK read(const SaelensConfig& config) {
    return {.k = json_integer(config.json, "k", config.file, 1, config.latents),
            .rank_by_decoder_norm = json_bool_or(config.json, "rescale_acts_by_decoder_norm", false, config.file)};
  }
  static void write(const AbsTopK& topk, nlohmann::ordered_json& json) {
    json["k"] = topk.k;
    json["rescale_acts_by_decoder_norm"] = false;
  }
};

/// SAELens has none: a name of ours in its layout.
template <>
struct SaelensLayout<GroupMax> {
  static constexpr std::string_view architecture = "groupmax";
  static GroupMax read(const SaelensConfig& config) {
    return {.k = json_integer(config.json, "k", config.file, 1, config.latents)};
  }
  static void write(const GroupMax& groups, nlohmann::ordered_json& json) { json["k"] = groups.k; }
};

template <>
struct SaelensLayout<Gated> {
  static constexpr std::string_view architecture = "gated";
  static Gated read(const SaelensConfig&) { return {}; }
  static void write(const Gated&, nlohmann::ordered_json&) {}
};

namespace detail {
inline double saelens_residual_threshold(const SaelensConfig& config, double fallback) {
  const double out = json_number_or(config.json, "residual_threshold", fallback, config.file);
  if (!(out >= 0)) throw_field(config.file, "residual_threshold", config.json.at("residual_threshold"), "a number >= 0");
  return out;
}
}  // namespace detail

/// Tied: the file holds W_dec and b_dec alone. The threshold is the model's, in the units of its rows.
template <>
struct SaelensLayout<MatchingPursuit> {
  static constexpr std::string_view architecture = "matching_pursuit";
  static MatchingPursuit read(const SaelensConfig& config) {
    MatchingPursuit out;
    out.residual_threshold = detail::saelens_residual_threshold(config, out.residual_threshold);
    if (detail::json_find(config.json, "max_iterations", config.file) != nullptr)
      out.max_iterations = json_integer(config.json, "max_iterations", config.file, 1);
    out.stop_on_duplicate_support = json_bool_or(config.json, "stop_on_duplicate_support", true, config.file);
    return out;
  }
  template <class Parameters>
  static void write(const MatchingPursuit& pursuit, const Parameters& own, nlohmann::ordered_json& json) {
    json["residual_threshold"] = own.residual_threshold[0];
    json["max_iterations"] = pursuit.max_iterations > 0 ? nlohmann::ordered_json(pursuit.max_iterations) : nullptr;
    json["stop_on_duplicate_support"] = pursuit.stop_on_duplicate_support;
  }
};

/// SAELens has none: a name of ours in its layout.
template <>
struct SaelensLayout<OrthogonalMatchingPursuit> {
  static constexpr std::string_view architecture = "orthogonal_matching_pursuit";
  static OrthogonalMatchingPursuit read(const SaelensConfig& config) {
    return {.k = json_integer(config.json, "k", config.file, 1, config.latents),
            .residual_threshold = detail::saelens_residual_threshold(config, 0),
            .by_magnitude = json_bool_or(config.json, "by_magnitude", false, config.file)};
  }
  template <class Parameters>
  static void write(const OrthogonalMatchingPursuit& pursuit, const Parameters& own, nlohmann::ordered_json& json) {
    json["k"] = pursuit.k;
    json["residual_threshold"] = own.residual_threshold[0];
    json["by_magnitude"] = pursuit.by_magnitude;
  }
};

namespace detail {

/// SAELens' name of an activation's architecture.
template <class Activation>
std::string_view saelens_architecture(const Activation&) {
  return SaelensLayout<Activation>::architecture;
}
inline std::string_view saelens_architecture(const AnyActivation& any) {
  return any.visit([]<class Activation>(const Activation&) { return SaelensLayout<Activation>::architecture; });
}
template <class Activation>
struct SaelensReader {
  static Activation read(const SaelensConfig& config) {
    if (config.activation != SaelensLayout<Activation>::architecture)
      throw_file(config.file.string(), ": architecture = \"", printable(config.architecture),
                 "\" does not fit the model it is loaded into, which is \"", SaelensLayout<Activation>::architecture, "\"");
    return SaelensLayout<Activation>::read(config);
  }
};
template <>
struct SaelensReader<AnyActivation> {
  static AnyActivation read(const SaelensConfig& config) {
    return read(config, static_cast<AnyActivation::Variants*>(nullptr));
  }

 private:
  template <class... Activations>
  static AnyActivation read(const SaelensConfig& config, std::variant<Activations...>*) {
    std::optional<AnyActivation> found;
    std::string known;
    const auto look = [&]<class Activation>(std::type_identity<Activation>) {
      using Layout = SaelensLayout<Activation>;
      if constexpr (requires { Layout::reads; })
        return;
      else {
        if (!found && config.activation == Layout::architecture) found = Layout::read(config);
        known += concat(known.empty() ? "" : ", ", Layout::architecture);
      }
    };
    (look(std::type_identity<Activations>()), ...);
    if (!found)
      throw_file(config.file.string(), ": architecture = \"", printable(config.architecture),
                 "\" is not supported; these are: ", known);
    return *found;
  }
};
template <class Activation, class Parameters>
void write_saelens_settings(const Activation& activation, const Parameters& own, nlohmann::ordered_json& json) {
  if constexpr (requires { SaelensLayout<Activation>::write(activation, own, json); })
    SaelensLayout<Activation>::write(activation, own, json);
  else
    SaelensLayout<Activation>::write(activation, json);
}
template <class Scalar>
void write_saelens_settings(const AnyActivation& any, const AnyActivation::Parameters<Scalar>& own,
                            nlohmann::ordered_json& json) {
  any.visit([&]<class Activation>(const Activation& activation) {
    if constexpr (requires { SaelensLayout<Activation>::reads; })
      throw_value("a SAE of the activation ", activation.name, " is not written as it is");
    else
      write_saelens_settings(activation, *own.template get<Activation>(), json);
  });
}

}  // namespace detail
}  // namespace sae::inline SAE_ABI
