#pragma once
#include <sae/formats/package.hpp>

#include <cmath>
#include <optional>
#include <string>
#include <utility>

namespace sae::inline SAE_ABI::detail {

/// Settings that the old and the current files of Llama Scope share. Rows are scaled by s_in = sqrt(D) / norm_in before the encoder where
/// `norm_activation` is "dataset-wise", each to the norm sqrt(D) where it is "token-wise", and reconstructions back. The factors go into the
/// weights, so that codes stay those of the files: W_enc <- s_in W_enc, W_dec <- W_dec / s_out, b_dec <- b_dec / s_out.
/// \param norm  the mean norm of the rows at a hook: of the input (false), of the output (true)
template <class Norm>
void scale_llama_scope(const Package& package, PublishedSae& out, const Norm& norm) {
  const std::string kind = json_string_or(package.json, "norm_activation", "dataset-wise", package.config);
  const std::string in = json_string_or(package.json, "hook_point_in", "", package.config),
                    into = json_string_or(package.json, "hook_point_out", in, package.config);
  out.metadata.hook_name = in;
  if (into != in) out.metadata.other["hook_name_out"] = into;
  if (into == in && out.d_in == out.d_out) out.d_out = 0;
  const auto scale = [&](Index width, bool of_output) { return std::sqrt(static_cast<double>(width)) / norm(of_output); };
  if (kind == "dataset-wise") {
    const double s_in = scale(out.d_in, false), s_out = scale(out.d_out > 0 ? out.d_out : out.d_in, true);
    out.given["W_enc"].scale *= s_in;
    out.given["W_dec"].scale /= s_out;
    out.given["b_dec"].scale /= s_out;
    if (out.glu) out.given["W_glu"].scale *= s_in;
  } else if (kind == "token-wise") {
    if (out.d_out > 0) throw_file(package.about().string(), ": norm_activation = \"token-wise\" is not read of a transcoder");
    out.input_normalisation = InputNormalisation::constant_norm;
  } else if (kind != "inference") {
    throw_field(package.about(), "norm_activation", *package.find("norm_activation"),
                "\"dataset-wise\", \"token-wise\" or \"inference\"");
  }
}

/// Llama Scope as published first: hyperparams.json, checkpoints/final.safetensors with encoder.weight [F x D], encoder.bias, decoder.weight
/// [D_out x F], decoder.bias.
///   s = sqrt(D) / norm,   z = s_in x W_enc^T + b_enc,   f = z [z > theta],   x' = (f W_dec + b_dec) / s_out
/// theta = jump_relu_threshold s_in: the published scalar is in units of the rows as they are. (Nothing that was published says so; SAELens
/// reads it so, and the published pairs of threshold and norm point to it.) exp(log_jumprelu_threshold), where there is that tensor (R1), is
/// in those of the scaled rows. b_dec is not subtracted; top_k is a setting of the training.
/// Source: He et al. 2024, arXiv:2410.20526; SAELens loading/pretrained_sae_loaders.py (llama_scope_...).
inline std::optional<PublishedSae> read_llama_scope(const Package& package) {
  if (!package.has_all("encoder.weight", "encoder.bias", "decoder.weight") || package.find("act_fn") == nullptr)
    return std::nullopt;
  PublishedSae out = begin_reading(package, "llama_scope");
  read_sizes(package, out, "encoder.weight", "decoder.weight", "encoder.bias");
  out.subtract_decoder_bias = false;
  if (json_bool_or(package.json, "apply_decoder_bias_to_pre_encoder", false, package.config))
    throw_file(package.about().string(), ": apply_decoder_bias_to_pre_encoder = true is not read");
  out.take("W_enc", "encoder.weight");
  out.take("b_enc", "encoder.bias");
  out.take("W_dec", "decoder.weight", true);
  if (package.has("decoder.bias")) {
    out.take("b_dec", "decoder.bias");
  } else {
    out.take("b_dec", "decoder.bias", Tensor<double>(1, out.d_out));
  }
  double in_norm = 0;
  scale_llama_scope(package, out, [&](bool of_output) {
    const nlohmann::json& norms = json_require(package.json, "dataset_average_activation_norm", package.config);
    const double norm = json_number(norms, of_output ? "out" : "in", package.config);
    if (!(norm > 0)) throw_field(package.about(), "dataset_average_activation_norm", norms, "two positive numbers");
    if (!of_output) in_norm = norm;
    return norm;
  });
  const std::string activation = json_string(package.json, "act_fn", package.config);
  if (activation == "jumprelu") {
    out.activation = JumpReLU{};
    if (package.has("log_jumprelu_threshold")) {
      out.take("threshold", "log_jumprelu_threshold",
               mapped(out.vector("log_jumprelu_threshold", out.latents), [](double x) { return std::exp(x); }));
    } else {
      const double threshold = json_number(package.json, "jump_relu_threshold", package.config, 0);
      const double scale = in_norm > 0 ? std::sqrt(static_cast<double>(out.d_in)) / in_norm : 1.0;
      out.take("threshold", "jump_relu_threshold", all_equal(out.latents, threshold * scale));
      out.warnings.push_back(
          "jump_relu_threshold is taken in units of the rows as they are; what its publisher meant is not settled");
    }
  } else if (activation == "topk") {
    out.activation = TopK{.k = json_integer(package.json, "top_k", package.config, 1, out.latents)};
  } else if (activation == "relu") {
    out.activation = ReLU{};
  } else {
    throw_field(package.about(), "act_fn", package.json.at("act_fn"), "\"jumprelu\", \"topk\" or \"relu\"");
  }
  out.architecture = std::string(out.activation.name);
  return out;
}

/// The current files of the same group (llamascopium): config.json, sae_weights.safetensors with W_E [D x F], b_E, W_D [F x D_out], b_D, and
/// activation_function.log_jumprelu_threshold, dataset_average_activation_norm.<hook>, W_E_glu [D x F] and b_E_glu where they apply.
///   z = s_in x W_E + b_E [sigmoid(s_in x W_E_glu + b_E_glu)],   u = z |d_i| if sparsity_include_decoder_norm, else z
///   f = z where u passes,   x' = (f W_D + b_D) / s_out
/// A threshold on u is theta / |d_i| on z. Source: llamascopium 2.0.0b34, models/sparse_dictionary.py.
inline std::optional<PublishedSae> read_llamascopium(const Package& package) {
  if (!package.has_all("W_E", "b_E", "W_D") || package.find("act_fn") == nullptr) return std::nullopt;
  PublishedSae out = begin_reading(package, "llamascopium");
  read_sizes(package, out, "W_E", "W_D", "b_E");
  out.subtract_decoder_bias = false;
  out.take("W_enc", "W_E", true);
  out.take("b_enc", "b_E");
  out.take("W_dec", "W_D");
  if (package.has("b_D")) {
    out.take("b_dec", "b_D");
  } else {
    out.take("b_dec", "b_D", Tensor<double>(1, out.d_out));
  }
  out.glu = json_bool_or(package.json, "use_glu_encoder", false, package.config);
  if (out.glu) {
    out.take("W_glu", "W_E_glu", true);
    out.take("b_glu", "b_E_glu");
  }
  const bool by_norm = json_bool_or(package.json, "sparsity_include_decoder_norm", true, package.config);
  const std::string activation = json_string(package.json, "act_fn", package.config);
  const std::string log_threshold = "activation_function.log_jumprelu_threshold";
  if (activation == "jumprelu") {
    out.activation = JumpReLU{};
    Tensor<double> theta = mapped(out.vector(log_threshold, out.latents), [](double x) { return std::exp(x); });
    if (by_norm) {
      const Tensor<double> norms = stored_row_norms(out.given["W_dec"], out.tensors.file(), out.latents, out.d_out);
      for (Index i = 0; i < theta.size(); ++i)
        theta[i] = norms[i] > 0 ? theta[i] / norms[i] : static_cast<double>(std::numeric_limits<float>::max());
    }
    out.take("threshold", log_threshold, std::move(theta));
  } else if (activation == "topk" || activation == "batchtopk") {
    out.activation =
        TopK{.k = json_integer(package.json, "top_k", package.config, 1, out.latents), .rank_by_decoder_norm = by_norm};
    if (activation == "batchtopk")
      out.warnings.push_back("act_fn is batchtopk: rows are encoded one by one, by their own top_k");
  } else if (activation == "relu") {
    out.activation = ReLU{};
  } else {
    throw_field(package.about(), "act_fn", package.json.at("act_fn"), "\"relu\", \"jumprelu\", \"topk\" or \"batchtopk\"");
  }
  out.architecture = std::string(out.activation.name);
  const std::string norm_name = "dataset_average_activation_norm.";
  for (const auto& [name, array] : out.tensors.arrays())
    if (name.starts_with(norm_name)) out.passed_over.insert(name);  // unset ones are memory that nobody wrote
  scale_llama_scope(package, out, [&](bool of_output) {
    const std::string hook = json_string(package.json, of_output ? "hook_point_out" : "hook_point_in", package.config);
    const double norm = out.vector(norm_name + hook, 1)[0];
    if (!(norm > 0 && std::isfinite(norm)))
      throw_file(out.tensors.file(), ": tensor ", norm_name, printable(hook), " = ", norm, " is not a positive number");
    return norm;
  });
  return out;
}

}  // namespace sae::inline SAE_ABI::detail
