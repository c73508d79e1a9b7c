#pragma once
#include <sae/formats/package.hpp>

#include <cmath>
#include <optional>
#include <string>

namespace sae::inline SAE_ABI::detail {

/// Gemma Scope 1: params.npz with W_enc [D x F], W_dec [F x D_out], b_enc, b_dec, threshold. Gemma Scope 2: params.safetensors with w_enc,
/// w_dec and, with a skip, affine_skip_connection [D x D_out], and mostly a config.json.
///   z = x W_enc + b_enc,   f = z [z > threshold],   x' = f W_dec + b_dec (+ x affine_skip_connection)
/// b_dec is not subtracted. SAEs of the embedding (a folder `embedding` in the path) were trained on rows times sqrt(D), as the model
/// scales them: W_enc / sqrt(D), W_dec sqrt(D).
/// Transcoders are told by different hooks, a skip or different widths, and of version 1 or without a config.json by "transcoder" in the path.
/// Source: Lieberum et al. 2024, arXiv:2408.05147; SAELens loading/pretrained_sae_loaders.py (gemma_2_sae_..., gemma_3_sae_...).
inline std::optional<PublishedSae> read_gemma_scope(const Package& package) {
  const bool second = package.has_all("w_enc", "w_dec", "b_enc", "b_dec", "threshold");
  const bool first = package.has_all("W_enc", "W_dec", "b_enc", "b_dec", "threshold") && package.weights.extension() == ".npz";
  if (!first && !second) return std::nullopt;
  PublishedSae out = begin_reading(package, second ? "gemma_scope_2" : "gemma_scope");
  const std::string encoder = second ? "w_enc" : "W_enc", decoder = second ? "w_dec" : "W_dec", skip = "affine_skip_connection";
  if (package.tensors.at(decoder).shape.size() == 3)
    throw_file(package.tensors.file(), ": tensor ", decoder, " has shape ", shape_text(package.tensors.at(decoder).shape),
               ": it is a layer of a cross-layer transcoder, which one its name says as it was published, "
               "params_layer_<N>.safetensors");
  if (const auto* const architecture = package.find("architecture");
      second && architecture != nullptr && *architecture != "jump_relu")
    throw_field(package.about(), "architecture", *architecture, "\"jump_relu\"");
  read_sizes(package, out, encoder, decoder, "b_enc");
  out.architecture = "jumprelu";
  out.activation = JumpReLU{};
  out.subtract_decoder_bias = false;
  out.take("W_enc", encoder, true);
  out.take("W_dec", decoder);
  if (package.has(skip)) {
    out.skip = true;
    out.take("W_skip", skip, true);
  }
  std::string path = std::filesystem::absolute(package.weights).parent_path().generic_string();
  std::string in, into;
  if (package.json.is_object()) {
    in = json_string_or(package.json, "hf_hook_point_in", "", package.config);
    into = json_string_or(package.json, "hf_hook_point_out", "", package.config);
    out.metadata.model_name = json_string_or(package.json, "model_name", "", package.config);
    out.metadata.hook_name = hook_of_module(in);
    if (!in.empty()) out.metadata.other["hf_hook_name"] = in;
    if (!into.empty()) out.metadata.other["hf_hook_name_out"] = into;
  } else if (const auto layer = number_in(path, "layer_")) {
    const auto in_path = [&](std::string_view word) { return path.find(word) != std::string::npos; };
    const std::string_view site = in_path("-att") || in_path("attn_out")  ? "attn.hook_z"
                                  : in_path("-mlp") || in_path("mlp_out") ? "hook_mlp_out"
                                                                          : "hook_resid_post";
    out.metadata.hook_name = concat("blocks.", *layer, ".", site);
  }
  const bool unsaid = first || !package.json.is_object();
  const bool other_site = !into.empty() && into != in, named = unsaid && path.find("transcoder") != std::string::npos;
  if (!out.skip && !other_site && !named && out.d_out == out.d_in) out.d_out = 0;
  if (named)
    out.metadata.hook_name =
        number_in(path, "layer_") ? concat("blocks.", *number_in(path, "layer_"), ".ln2.hook_normalized") : "";
  if (first && path.find("/embedding") != std::string::npos) {
    const double scale = std::sqrt(static_cast<double>(out.d_in));
    out.given["W_enc"].scale = 1 / scale;
    out.given["W_dec"].scale = scale;
    out.metadata.hook_name = "hook_embed";
    out.warnings.push_back(
        "a SAE of the embedding: its weights are scaled to read rows as they are, without the model's sqrt(d)");
  }
  return out;
}

}  // namespace sae::inline SAE_ABI::detail
