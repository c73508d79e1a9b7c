#pragma once
#include <sae/files/yaml.hpp>
#include <sae/formats/package.hpp>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>

// Layouts that are a few tensors and a convention: b_dec is not subtracted.
namespace sae::inline SAE_ABI::detail {

/// Two linear maps as torch keeps them, ENCODER.weight [F x D], ENCODER.bias, DECODER.weight [D_out x F], DECODER.bias: relu.
inline std::optional<PublishedSae> read_linear_maps(const Package& package, std::string layout, const std::string& encoder,
                                                    const std::string& decoder) {
  if (!package.has_all(encoder + ".weight", encoder + ".bias", decoder + ".weight", decoder + ".bias")) return std::nullopt;
  PublishedSae out = begin_reading(package, std::move(layout));
  read_sizes(package, out, encoder + ".weight", decoder + ".weight", encoder + ".bias");
  if (out.d_in == out.d_out) out.d_out = 0;
  out.take("W_enc", encoder + ".weight");
  out.take("b_enc", encoder + ".bias");
  out.take("W_dec", decoder + ".weight", true);
  out.take("b_dec", decoder + ".bias");
  out.subtract_decoder_bias = false;
  out.architecture = "standard";
  return out;
}

/// Goodfire's SAEs, DeepSeek-R1's among them. Source: SAELens loading/pretrained_sae_loaders.py (goodfire_..., deepseek_r1_...).
inline std::optional<PublishedSae> read_goodfire(const Package& package) {
  auto out = read_linear_maps(package, "goodfire", "encoder_linear", "decoder_linear");
  const auto layer = number_in(package.weights.filename().string(), "-l");
  if (out && layer) out->metadata.hook_name = concat("blocks.", *layer, ".hook_resid_post");
  return out;
}

/// Qwen Scope: W_enc [F x D], W_dec [D x F], b_enc, b_dec in layer<N>.sae.pt. TopK, whose k stands in the name of the repository alone
/// ("...-L0_50"). Source: SAELens loading/pretrained_sae_loaders.py (qwen_scope_...).
inline std::optional<PublishedSae> read_qwen_scope(const Package& package) {
  if (!package.has_all("W_enc", "W_dec", "b_enc", "b_dec") || !package.weights.filename().string().ends_with(".sae.pt"))
    return std::nullopt;
  PublishedSae out = begin_reading(package, "qwen_scope");
  read_sizes(package, out, "W_enc", "W_dec", "b_enc");
  const ArrayView &encoder = package.tensors.at("W_enc"), &decoder = package.tensors.at("W_dec");
  if (encoder.shape[0] != out.latents || decoder.shape[1] != out.latents)
    throw_file(out.tensors.file(), ": tensors W_enc ", shape_text(encoder.shape), " and W_dec ", shape_text(decoder.shape),
               " should be [F, D] and [D, F] with F = ", out.latents);
  if (out.d_in == out.d_out) out.d_out = 0;
  out.take("W_enc", "W_enc");
  out.take("W_dec", "W_dec", true);
  out.subtract_decoder_bias = false;
  const std::string path = std::filesystem::absolute(package.weights).generic_string();
  const std::optional<Index> k = number_in(path, "L0_");
  if (!k || *k < 1 || *k > out.latents)
    throw_file(package.weights.string(),
               ": the k of this TopK SAE stands in the name of its repository alone; keep \"L0_<k>\" in the path");
  out.activation = TopK{.k = *k};
  out.architecture = "topk";
  if (const auto layer = number_in(package.weights.filename().string(), "layer"))
    out.metadata.hook_name = concat("blocks.", *layer, ".hook_resid_post");
  return out;
}

/// A setting of wandb-config.yaml, {value: X} of a name or X itself; nullptr without one.
inline const nlohmann::json* wandb_setting(const nlohmann::json& config, const char* name, const std::filesystem::path& file) {
  if (!config.is_object()) return nullptr;
  const nlohmann::json* const found = json_find(config, name, file);
  return found != nullptr && found->is_object() ? json_find(*found, "value", file) : found;
}

/// The activation of a transcoder of circuit-tracer's kind, from its settings and tensors: thresholds mean jumprelu; else config.yaml's
/// `activation` or wandb-config.yaml's `act_fn` name relu (which is meant where nothing is said) or topk, whose k stands in config.yaml or
/// in a tensor `k`.
inline AnyActivation transcoder_activation(const Package& package, const PublishedSae& out, const nlohmann::json& config,
                                           const std::filesystem::path& config_file, const nlohmann::json& training,
                                           const std::filesystem::path& training_file) {
  const bool jumps = out.given.contains("threshold");
  const nlohmann::json* const chosen = config.is_object() ? json_find(config, "activation", config_file) : nullptr;
  const nlohmann::json* const trained = wandb_setting(training, "act_fn", training_file);
  const bool top = chosen != nullptr ? *chosen == "topk" : trained != nullptr && *trained == "topk";
  const auto require = [&](const nlohmann::json* found, const std::filesystem::path& file, const char* name, bool as_chosen) {
    const bool fits = found == nullptr || (jumps ? *found == "jump_relu" || *found == "jumprelu"
                                           : top ? *found == "topk"
                                                 : *found == "relu");
    if (!fits)
      throw_field(file, name, *found,
                  jumps       ? "\"jump_relu\", as there are thresholds"
                  : as_chosen ? concat("\"", top ? "topk" : "relu", "\", as config.yaml says")
                              : "\"relu\" or \"topk\", as there are no thresholds");
  };
  require(chosen, config_file, "activation", false);
  require(trained, training_file, "act_fn", chosen != nullptr);
  if (jumps) return JumpReLU{};
  if (!top) return ReLU{};
  std::optional<Index> k;
  if (config.is_object() && json_find(config, "k", config_file) != nullptr)
    k = json_integer(config, "k", config_file, 1, out.latents);
  if (const ArrayView* const tensor = package.tensors.find("k"); tensor != nullptr) {
    const Index stored = tensor->elements() == 1 ? read_matrix<std::int64_t>(*tensor, out.tensors.file(), "k")[0] : -1;
    if (stored < 1 || stored > out.latents || (k && *k != stored))
      throw_file(out.tensors.file(), ": tensor k should be one integer ",
                 k ? concat("and ", *k, ", as config.yaml says") : concat("in [1, ", out.latents, "]"));
    k = stored;
  }
  // One set was published without its k, which circuit-tracer knows by its name.
  if (!k &&
      std::filesystem::absolute(package.weights).generic_string().find("crv-8b-instruct-transcoders") != std::string::npos &&
      out.latents >= 128)
    k = 128;
  if (!k)
    throw_file(config_file.string(), ": activation is topk and nothing says its k; write \"k: <number>\" into config.yaml");
  return TopK{.k = *k};
}

/// Transcoders of mwhanna and their like, circuit-tracer's: layer_<N>.safetensors with W_enc [F x D], W_dec [F x D_out] (its transpose in
/// files before 2025-07), b_enc, b_dec and perhaps W_skip [D_out x D], activation_function.threshold. Beside them config.yaml, the settings of
/// the whole set (model_name, feature_input_hook, feature_output_hook, activation, k), and those of the training, wandb-config.yaml
/// (wanb-config.yaml in some); what they say of sizes has to be so. Of topk, circuit-tracer keeps negative pre-activations among the k
/// largest, which relu takes here. Source: circuit-tracer 4bb8c0e transcoder/single_layer_transcoder.py, d797c82 (load_relu_transcoder),
/// utils/hf_utils.py; SAELens loading/pretrained_sae_loaders.py (mwhanna_transcoder_...).
inline std::optional<PublishedSae> read_mwhanna(const Package& package) {
  const bool safetensors = package.weights.extension() == safetensors_ending || is_safetensors_index(package.weights);
  if (!package.has_all("W_enc", "W_dec", "b_enc", "b_dec") || !safetensors || package.has("threshold")) return std::nullopt;
  PublishedSae out = begin_reading(package, "mwhanna");
  read_sizes(package, out, "W_enc", "W_dec", "b_enc");
  const ArrayView &encoder = package.tensors.at("W_enc"), &decoder = package.tensors.at("W_dec");
  if (encoder.shape[0] != out.latents)
    throw_file(out.tensors.file(), ": tensors W_enc ", shape_text(encoder.shape), " and W_dec ", shape_text(decoder.shape),
               " should both be [F, D] with F = ", out.latents, "; no layout that is known has others without a cfg.json");
  if (decoder.shape[0] == decoder.shape[1])
    throw_file(
        out.tensors.file(), ": tensor W_dec is ", shape_text(decoder.shape),
        ": whether its rows or its columns are directions of latents is not told by its shape, nor by the files beside it");
  out.take("W_enc", "W_enc");
  out.take("W_dec", "W_dec", decoder.shape[0] != out.latents);
  out.skip = package.has("W_skip");
  out.subtract_decoder_bias = false;
  if (package.has("activation_function.threshold")) {
    out.take("threshold", "activation_function.threshold");
    require_thresholds(out, "activation_function.threshold");
  }
  if (package.has("k")) out.passed_over.insert("k");

  const std::filesystem::path folder = package.weights.has_parent_path() ? package.weights.parent_path() : ".";
  std::filesystem::path config_file = folder / circuit_tracer_config, training_file = folder / "wandb-config.yaml";
  if (!is_file(training_file) && is_file(folder / "wanb-config.yaml")) training_file = folder / "wanb-config.yaml";
  nlohmann::json config, training;
  if (is_file(config_file)) {
    config = read_yaml(config_file);
    if (!config.is_object()) throw_file(config_file.string(), ": is no map of settings");
    if (json_string_or(config, "model_kind", "transcoder_set", config_file) != "transcoder_set")
      throw_field(config_file, "model_kind", config.at("model_kind"), "\"transcoder_set\", which the files beside it are");
    out.config = config;
    out.file = config_file;
    out.metadata.model_name = json_string_or(config, "model_name", "", config_file);
  }
  if (is_file(training_file)) {
    try {
      training = read_yaml(training_file);
    } catch (const FileError& error) {  // it has whatever a training wrote; what matters here only confirms
      out.warnings.push_back(concat(error.what(), "; what it says is passed over"));
    }
    const std::pair<const char*, Index> sizes[] = {{"d_model", out.d_in}, {"d_feature", out.latents}};
    for (const auto& [name, size] : sizes)
      if (const nlohmann::json* const found = wandb_setting(training, name, training_file); found != nullptr && *found != size)
        throw_field(training_file, name, *found, concat("that of the tensors, ", size));
  }
  const AnyActivation activation = transcoder_activation(package, out, config, config_file, training, training_file);
  out.activation = activation;
  out.architecture = concat(activation.name, "_transcoder");

  // The one set without a config.yaml has its model in the name of its repository: mwhanna/qwen3-14b-transcoders.
  if (const std::string path = std::filesystem::absolute(package.weights).generic_string(), word = "qwen3-";
      out.metadata.model_name.empty() && path.rfind(word) != std::string::npos) {
    const std::string rest = path.substr(path.rfind(word) + word.size());
    const std::size_t digits = std::min(rest.find_first_not_of("0123456789."), rest.size());
    if (digits > 0 && digits < rest.size() && rest[digits] == 'b')
      out.metadata.model_name = concat("Qwen/Qwen3-", rest.substr(0, digits), "B");
  }
  if (const auto layer = number_in(package.weights.filename().string(), "layer_")) {
    const auto hook = [&](const char* name, const char* usual) {
      return concat("blocks.", *layer, ".", config.is_object() ? json_string_or(config, name, usual, config_file) : usual);
    };
    out.metadata.hook_name = hook("feature_input_hook", "mlp.hook_in");
    out.metadata.other["hook_name_out"] = hook("feature_output_hook", "hook_mlp_out");
  }
  return out;
}

/// SAEs by the code of Nanda and of Kissane (gpt2-small-hook-z-kk): a state dictionary W_enc [D x F], W_dec [F x D], b_enc, b_dec in a .pt
/// file. ReLU; b_dec is subtracted. Source: SAELens loading/pretrained_sae_loaders.py (connor_rob_hook_z_...).
inline std::optional<PublishedSae> read_nanda(const Package& package) {
  if (!package.has_all("W_enc", "W_dec", "b_enc", "b_dec") || package.weights.extension() != ".pt" || package.has("threshold"))
    return std::nullopt;
  PublishedSae out = begin_reading(package, "nanda");
  read_sizes(package, out, "W_enc", "W_dec", "b_enc");
  const ArrayView &encoder = package.tensors.at("W_enc"), &decoder = package.tensors.at("W_dec");
  if (encoder.shape[1] != out.latents || decoder.shape[0] != out.latents || out.d_in != out.d_out)
    throw_file(out.tensors.file(), ": tensors W_enc ", shape_text(encoder.shape), " and W_dec ", shape_text(decoder.shape),
               " should be [D, F] and [F, D] with F = ", out.latents);
  out.d_out = 0;
  out.take("W_enc", "W_enc", true);
  out.take("W_dec", "W_dec");
  out.architecture = "standard";
  const std::string name = package.weights.filename().string();
  if (const auto layer = number_in(name, "_L"); layer && name.find("_Hcat_z") != std::string::npos)
    out.metadata.hook_name = concat("blocks.", *layer, ".attn.hook_z");
  return out;
}

/// TinyModel's sparse MLPs, and any state dictionary of two linear maps. Source: noanabeshima/tinymodel sparse_mlp.py.
inline std::optional<PublishedSae> read_two_linear(const Package& package) {
  auto out = read_linear_maps(package, "linear", "encoder", "decoder");
  if (out)
    out->warnings.push_back("two linear maps with nothing that names their activation: read as ReLU, b_dec not subtracted");
  return out;
}

}  // namespace sae::inline SAE_ABI::detail
