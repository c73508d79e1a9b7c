#pragma once
#include <sae/files/yaml.hpp>
#include <sae/formats/package.hpp>

#include <filesystem>
#include <optional>
#include <string>
#include <utility>

namespace sae::inline SAE_ABI::detail {

/// The settings that SAELens' cfg.json and the section `sae` of conf.yaml share by name; the row's scale has another one in each.
/// \param latents  F
inline TemporalSettings temporal_settings(const nlohmann::json& from, const std::filesystem::path& file, Index latents) {
  constexpr Index most_layers = 1000;
  TemporalSettings out;
  out.options.heads = json_integer(from, "n_heads", file, 1, latents);
  out.attention_layers = json_integer(from, "n_attn_layers", file, 0, most_layers);
  const Index bottleneck = json_integer(from, "bottleneck_factor", file, 1, latents);
  if (latents % bottleneck != 0 || latents / bottleneck % out.options.heads != 0)
    throw_file(file.string(), ": bottleneck_factor = ", bottleneck, " and n_heads = ", out.options.heads,
               " do not divide the number of latents, ", latents);
  out.query_width = latents / bottleneck;
  out.tied = json_bool(from, "tied_weights", file);
  const std::string kind = json_string(from, "sae_diff_type", file);
  if (kind == "topk")
    out.options.k = json_integer_or(from, "kval_topk", 0, file, 1, latents);
  else if (kind != "relu")
    throw_field(file, "sae_diff_type", from.at("sae_diff_type"), "\"topk\" or \"relu\"");
  return out;
}

/// A number by which rows are multiplied: positive, and in float not 0 nor infinite.
inline double temporal_scale(const nlohmann::json& from, std::string_view name, const std::filesystem::path& file) {
  return json_number(from, name, file, 1e-30, 1e30);
}

/// Temporal SAEs as their authors publish them: conf.yaml, latest_ckpt.safetensors with D [F x d], b [d] or [1 x d], attn_layers.* and, where
/// they are not tied, E [d x F]. Rows are multiplied by `scaling_factor`; windows of `context_length` tokens, BOS first, were trained on.
/// Source: SAELens loading/pretrained_sae_loaders.py (get_temporal_sae_config_from_hf, temporal_sae_huggingface_loader);
/// eslubana/temporalSAEs sae/saeTemporal.py, config/sae_train, precompute_llm_activations/cache_utils.py.
inline std::optional<PublishedSae> read_temporal(const Package& package) {
  if (!package.has_all("D", "b")) return std::nullopt;
  if (package.config.extension() != ".yaml") {
    if (!package.has("attn_layers.0.q_target.weight")) return std::nullopt;
    throw_file(package.weights.string(),
               ": is a temporal SAE, whose settings are in a file conf.yaml beside it, which is missing");
  }
  PublishedSae out = begin_reading(package, "temporal");
  out.config = read_yaml(package.config);
  const auto& file = package.config;
  const nlohmann::json& sae = json_require(out.config, "sae", file);
  const nlohmann::json& model = json_require(out.config, "llm", file);
  const ArrayView& decoder = package.tensors.at("D");
  if (decoder.shape.size() != 2)
    throw_file(package.tensors.file(), ": tensor D has shape ", shape_text(decoder.shape), ", it should have two axes");
  out.architecture = "temporal";
  out.d_in = json_integer(model, "dimin", file, 1, Index{1} << 30);
  out.latents = decoder.shape[0];
  if (out.latents < 1)
    throw_file(package.tensors.file(), ": tensor D has shape ", shape_text(decoder.shape), ", which has no numbers");
  out.temporal = temporal_settings(sae, file, out.latents);
  out.temporal->options.input_scale = temporal_scale(sae, "scaling_factor", file);
  out.take("W_dec", "D");
  StoredMatrix& bias = out.take("b_dec", "b");
  if (bias.array.shape == std::vector<Index>{1, out.d_in}) {  // one row
    bias.array.shape.erase(bias.array.shape.begin());
    if (!bias.array.strides.empty()) bias.array.strides.erase(bias.array.strides.begin());
  }
  if (!out.temporal->tied) out.take("W_enc", "E", true);
  out.metadata.model_name = json_string_or(model, "model_hf_name", "", file);
  if (const nlohmann::json* const data = json_find(out.config, "data", file)) {
    out.metadata.context_size = json_integer_or(*data, "context_length", 0, file, 0);
    out.metadata.dataset_path = json_string_or(*data, "hf_name", "", file);
  }
  if (const auto layer = number_in(std::filesystem::absolute(package.weights).generic_string(), "layer_"))
    out.metadata.hook_name = concat("blocks.", *layer, ".hook_resid_post");
  return out;
}

}  // namespace sae::inline SAE_ABI::detail
