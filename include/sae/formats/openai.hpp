#pragma once
#include <sae/formats/package.hpp>

#include <optional>
#include <string>

namespace sae::inline SAE_ABI::detail {

/// OpenAI's sparse_autoencoder (v1, v4, v5): a torch state dictionary with pre_bias, encoder.weight [F x D], latent_bias, decoder.weight
/// [D x F], texts activation and activation_state_dict.
///   TopK: x is layer-normalised before and the reconstruction brought back;  f = relu of the k largest of (x - pre_bias) W_enc^T + latent_bias
///   ReLU: no normalisation
/// Source: openai/sparse_autoencoder model.py.
inline std::optional<PublishedSae> read_openai(const Package& package) {
  if (!package.has_all("pre_bias", "latent_bias", "encoder.weight", "decoder.weight")) return std::nullopt;
  PublishedSae out = begin_reading(package, "openai");
  const auto& values = package.tensors.values();
  const auto& file = package.weights;
  read_sizes(package, out, "encoder.weight", "decoder.weight", "latent_bias");
  if (out.d_in != out.d_out)
    throw_file(out.tensors.file(), ": reads rows of ", out.d_in, " numbers and writes rows of ", out.d_out,
               ", which is no autoencoder");
  out.d_out = 0;
  out.take("W_enc", "encoder.weight");
  out.take("b_enc", "latent_bias");
  out.take("W_dec", "decoder.weight", true);
  out.take("b_dec", "pre_bias");
  for (const char* const name : {"stats_last_nonzero", "latents_activation_frequency", "latents_mean_square"})
    out.passed_over.insert(name);
  const std::string activation = json_string(values, "activation", file);
  if (activation == "TopK") {
    out.activation = TopK{.k = json_integer(values, "activation_state_dict.k", file, 1, out.latents)};
    out.input_normalisation = InputNormalisation::layer_norm;
    if (out.d_in < 2) throw_file(out.tensors.file(), ": rows of one number have no layer norm");
    const std::string after = json_string_or(values, "activation_state_dict.postact_fn", "ReLU", file);
    if (after != "ReLU")
      throw_field(file, "activation_state_dict.postact_fn", values.at("activation_state_dict.postact_fn"), "\"ReLU\"");
  } else if (activation == "ReLU") {
    out.activation = ReLU{};
  } else {
    throw_field(file, "activation", values.at("activation"), "\"TopK\" or \"ReLU\"");
  }
  out.architecture = activation;
  return out;
}

}  // namespace sae::inline SAE_ABI::detail
