#pragma once
#include <sae/formats/package.hpp>

#include <optional>
#include <string>
#include <utility>

namespace sae::inline SAE_ABI::detail {

/// dictionary_learning: config.json, ae.pt (torch). By the names of the tensors, since config.json calls AutoEncoderNew an AutoEncoder:
///
///   AutoEncoder      bias, encoder.weight [F x D], encoder.bias, decoder.weight [D x F]         f = relu((x - bias) W_enc^T + b_enc)
///   AutoEncoderNew   ... decoder.bias in the place of bias                                      f = relu(x W_enc^T + b_enc)
///   GatedAutoEncoder decoder_bias, gate_bias, mag_bias, r_mag, encoder.weight, decoder.weight   b_dec subtracted
///   AutoEncoderTopK, BatchTopKSAE   k, threshold, encoder.*, decoder.weight, b_dec              b_dec subtracted
///   MatryoshkaBatchTopKSAE          W_enc [D x F], W_dec [F x D], b_enc, b_dec, k, threshold, group_sizes
///   JumpReluAutoEncoder             W_enc, W_dec, b_enc, b_dec, threshold [F]                   b_dec not subtracted
///
/// Of AutoEncoderTopK the k largest of a row are kept; the BatchTopK kinds are used by their threshold, as there, so that they are JumpReLU
/// here. A threshold of -1 was never set: everything positive is active then, as there. A backup (step, ae, optimizer, ...) holds the
/// weights under `ae`, in the units of normalised rows.
/// Weights stay as they are: AutoEncoder.from_pretrained folds the norms of decoder rows first unless told otherwise
/// (`fold_decoder_norms` does that here).
/// Source: dictionary_learning 0.1.0, dictionary.py, trainers/*.py, training.py.
inline std::optional<PublishedSae> read_dictionary_learning(const Package& package) {
  const std::string ae = package.has("ae.b_dec") || package.has("ae.encoder.weight") || package.has("ae.W_enc") ? "ae." : "";
  const auto has = [&](std::string_view name) { return package.has(ae + std::string(name)); };
  const auto linear = [&] { return has("encoder.weight") && has("decoder.weight"); };
  const auto config = package.find("trainer");
  enum class Kind { plain, fresh, gated, topk, matryoshka, jump } kind;
  if (linear() && has("bias") && has("encoder.bias")) {
    kind = Kind::plain;
  } else if (linear() && has("gate_bias") && has("mag_bias") && has("r_mag") && has("decoder_bias")) {
    kind = Kind::gated;
  } else if (linear() && has("b_dec") && has("k") && has("encoder.bias")) {
    kind = Kind::topk;
  } else if (has("W_enc") && has("W_dec") && has("group_sizes") && has("threshold")) {
    kind = Kind::matryoshka;
  } else if (has("W_enc") && has("W_dec") && has("b_enc") && has("threshold") && config != nullptr) {
    kind = Kind::jump;
  } else if (linear() && has("encoder.bias") && has("decoder.bias") && config != nullptr) {
    kind = Kind::fresh;
  } else {
    return std::nullopt;
  }
  PublishedSae out = begin_reading(package, "dictionary_learning");
  std::string dict_class, submodule;
  if (config != nullptr) {
    if (!config->is_object()) throw_field(package.config, "trainer", *config, "an object");
    dict_class = json_string_or(*config, "dict_class", "", package.config);
    submodule = json_string_or(*config, "submodule_name", "", package.config);
    out.metadata.model_name = json_string_or(*config, "lm_name", "", package.config);
    const Index layer = json_integer_or(*config, "layer", -1, package.config, -1);
    if (layer >= 0 && submodule.starts_with("resid_post"))
      out.metadata.hook_name = concat("blocks.", layer, ".hook_resid_post");
    if (layer >= 0 && submodule.starts_with("mlp_out")) out.metadata.hook_name = concat("blocks.", layer, ".hook_mlp_out");
    if (layer >= 0 && submodule.starts_with("attn_out")) out.metadata.hook_name = concat("blocks.", layer, ".hook_attn_out");
    if (const auto* const buffer = package.find("buffer"); buffer != nullptr && buffer->is_object())
      out.metadata.context_size = json_integer_or(*buffer, "ctx_len", 0, package.config, 0);
  }
  if (dict_class.empty())
    dict_class = json_string_or(package.tensors.values(), "config.dict_class", "", package.weights);  // of a backup
  const bool is_linear = kind != Kind::matryoshka && kind != Kind::jump;
  const auto name = [&](std::string_view of) { return ae + std::string(of); };
  const std::string b_enc = kind == Kind::gated ? "gate_bias" : is_linear ? "encoder.bias" : "b_enc";
  const std::string b_dec = kind == Kind::plain   ? "bias"
                            : kind == Kind::fresh ? "decoder.bias"
                            : kind == Kind::gated ? "decoder_bias"
                                                  : "b_dec";
  read_sizes(package, out, name(is_linear ? "encoder.weight" : "W_enc"), name(is_linear ? "decoder.weight" : "W_dec"),
             name(b_enc));
  if (out.d_in != out.d_out)
    throw_file(out.tensors.file(), ": reads rows of ", out.d_in, " numbers and writes rows of ", out.d_out,
               ", which no dictionary of dictionary_learning does");
  out.d_out = 0;
  out.take("W_enc", name(is_linear ? "encoder.weight" : "W_enc"), !is_linear);
  out.take("W_dec", name(is_linear ? "decoder.weight" : "W_dec"), is_linear);
  out.take("b_dec", name(b_dec));
  if (kind != Kind::gated) out.take("b_enc", name(b_enc));
  for (const auto& [other, array] : out.tensors.arrays())
    if (!ae.empty() && !other.starts_with(ae)) out.passed_over.insert(other);
  out.subtract_decoder_bias = kind != Kind::fresh && kind != Kind::jump;
  for (const char* const of : {"k", "threshold", "group_sizes"})
    if (has(of) && kind != Kind::jump) out.passed_over.insert(name(of));

  const auto by_threshold = [&] {
    double threshold = out.vector(name("threshold"), 1)[0];
    if (threshold < 0) {
      out.warnings.push_back(
          "threshold is unset (-1), as training ended before it was estimated: every positive pre-activation is active");
      threshold = 0;
    }
    out.activation = JumpReLU{};
    out.architecture = "jumprelu";
    out.take("threshold", name("threshold"), all_equal(out.latents, threshold));
  };
  switch (kind) {
    case Kind::plain:
    case Kind::fresh:
      out.activation = ReLU{};
      out.architecture = "standard";
      break;
    case Kind::gated:
      out.activation = Gated{};
      out.architecture = "gated";
      out.take("b_gate", name("gate_bias"));
      out.take("b_mag", name("mag_bias"));
      out.take("r_mag", name("r_mag"));
      break;
    case Kind::topk: {
      const ArrayView& k = out.tensors.at(name("k"));
      const Index kept = read_matrix<std::int64_t>(k, out.tensors.file(), name("k"))[0];
      if (k.elements() != 1 || kept < 1 || kept > out.latents)
        throw_file(out.tensors.file(), ": tensor ", name("k"), " = ", kept, " is not a number in [1, ", out.latents, "]");
      // BatchTopKSAE has the same tensors.
      if (dict_class == "BatchTopKSAE") {
        by_threshold();
      } else {
        out.activation = TopK{.k = kept};
        out.architecture = "topk";
        if (dict_class.empty())
          out.warnings.push_back("nothing says whether this is an AutoEncoderTopK or a BatchTopKSAE; it is read as the first");
      }
      break;
    }
    case Kind::matryoshka: by_threshold(); break;
    case Kind::jump:
      out.activation = JumpReLU{};
      out.architecture = "jumprelu";
      out.take("threshold", name("threshold"));
      break;
  }
  if (!ae.empty())
    out.warnings.push_back(
        "a backup of a training: biases and thresholds are in units of normalised rows (norm_factor was not applied)");
  return out;
}

}  // namespace sae::inline SAE_ABI::detail
