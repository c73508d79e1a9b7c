#pragma once
#include <sae/formats/package.hpp>

#include <optional>
#include <string>
#include <utility>

namespace sae::inline SAE_ABI::detail {

/// sparsify (EleutherAI): cfg.json, sae.safetensors with encoder.weight [F x D], encoder.bias, W_dec [F x D], b_dec, W_skip [D x D].
///   z = (x - b_dec unless transcode) W_enc^T + b_enc,   f = relu of the k largest, or of the largest of each of k groups
///   x' = f W_dec + b_dec (+ x W_skip^T)
/// With a skip and without `transcode` b_dec is subtracted from what is encoded and not from what the skip reads: such a model is a
/// transcoder onto its own input here, with b_enc - W_enc b_dec in the place of b_enc.
/// `num_latents` may be 0 and `normalize_decoder` says nothing of the file. SAELens transposes W_dec when it reads these: it does not.
/// Source: sparsify 1.3.3, sparse_coder.py, config.py.
inline std::optional<PublishedSae> read_sparsify(const Package& package) {
  if (!package.has_all("encoder.weight", "encoder.bias", "W_dec", "b_dec")) return std::nullopt;
  PublishedSae out = begin_reading(package, "sparsify");
  const auto& file = package.config;
  if (file.empty())
    throw_file(package.weights.string(), ": has tensors of sparsify, whose cfg.json is missing beside it (it holds k)");
  if (package.tensors.at("encoder.weight").shape != package.tensors.at("W_dec").shape)
    throw_file(package.tensors.file(), ": tensor W_dec has shape ", shape_text(package.tensors.at("W_dec").shape),
               ", it should be that of encoder.weight, ", shape_text(package.tensors.at("encoder.weight").shape));
  read_sizes(package, out, "encoder.weight", "W_dec", "encoder.bias");
  out.take("W_enc", "encoder.weight");
  out.take("b_enc", "encoder.bias");
  const Index k = json_integer(package.json, "k", file, 1, out.latents);
  const std::string activation = json_string_or(package.json, "activation", "topk", file);
  if (activation == "topk") {
    out.activation = TopK{.k = k};
  } else if (activation == "groupmax") {
    out.activation = GroupMax{.k = k};
  } else {
    throw_field(file, "activation", package.json.at("activation"), "\"topk\" or \"groupmax\"");
  }
  if (json_bool_or(package.json, "signed", false, file))
    throw_file(file.string(), ": signed = true is not read: codes below 0 would be kept");
  out.architecture = activation;
  out.skip = json_bool_or(package.json, "skip_connection", false, file);
  const bool transcode = json_bool_or(package.json, "transcode", false, file);
  out.subtract_decoder_bias = !transcode;
  if (out.skip && !transcode) {
    const Tensor<double> b_dec = out.vector("b_dec", out.d_in);
    Tensor<double> b_enc = out.vector("encoder.bias", out.latents);
    for_each_stored_row(out.given["W_enc"], out.tensors.file(), out.latents, out.d_in, true,
                        [&](Index i, const double* row) { b_enc[i] -= kernels::dot(row, b_dec.data(), out.d_in); });
    out.take("b_enc", "encoder.bias", std::move(b_enc));
  }
  if (!transcode && !out.skip) out.d_out = 0;
  // The folder is named after the module: layers.15, layers.15.mlp.
  out.metadata.hook_name = hook_of_module(std::filesystem::absolute(package.weights).parent_path().filename().string());
  return out;
}

}  // namespace sae::inline SAE_ABI::detail
