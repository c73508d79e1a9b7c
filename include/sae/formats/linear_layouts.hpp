#pragma once
#include <sae/formats/package.hpp>

#include <optional>
#include <string>
#include <utility>

// Layouts that are a few tensors and a convention: no settings beside them that change what is computed, and b_dec is not subtracted.
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

/// Transcoders of mwhanna and their like: layer_<N>.safetensors with W_enc [F x D], W_dec [F x D_out], b_enc, b_dec and perhaps W_skip
/// [D_out x D]. ReLU. Source: SAELens loading/pretrained_sae_loaders.py (mwhanna_transcoder_...).
inline std::optional<PublishedSae> read_mwhanna(const Package& package) {
  if (!package.has_all("W_enc", "W_dec", "b_enc", "b_dec") || package.weights.extension() != ".safetensors" ||
      package.has("threshold"))
    return std::nullopt;
  PublishedSae out = begin_reading(package, "mwhanna");
  read_sizes(package, out, "W_enc", "W_dec", "b_enc");
  const ArrayView &encoder = package.tensors.at("W_enc"), &decoder = package.tensors.at("W_dec");
  if (encoder.shape[0] != out.latents || decoder.shape[0] != out.latents)
    throw_file(out.tensors.file(), ": tensors W_enc ", shape_text(encoder.shape), " and W_dec ", shape_text(decoder.shape),
               " should both be [F, D] with F = ", out.latents, "; no layout that is known has others without a cfg.json");
  out.take("W_enc", "W_enc");
  out.take("W_dec", "W_dec");
  out.skip = package.has("W_skip");
  out.subtract_decoder_bias = false;
  out.architecture = "transcoder";
  if (const auto layer = number_in(package.weights.filename().string(), "layer_")) {
    out.metadata.hook_name = concat("blocks.", *layer, ".mlp.hook_in");
    out.metadata.other["hook_name_out"] = concat("blocks.", *layer, ".hook_mlp_out");
  }
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
