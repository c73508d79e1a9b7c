#pragma once
#include <sae/files/torch_writer.hpp>
#include <sae/formats/load.hpp>

#include <array>
#include <cmath>
#include <deque>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace sae::inline SAE_ABI {

/// Layouts that are written.
enum class SaeLayout { saelens, dictionary_learning, sparsify, gemma_scope };
inline constexpr std::array<std::string_view, 4> layout_names{"saelens", "dictionary_learning", "sparsify", "gemma_scope"};
constexpr std::string_view to_string(SaeLayout layout) { return layout_names[static_cast<std::size_t>(layout)]; }
/// \throws ValueError  there is no layout of that name.
inline SaeLayout parse_layout(std::string_view name) {
  for (std::size_t i = 0; i < layout_names.size(); ++i)
    if (name == layout_names[i]) return static_cast<SaeLayout>(i);
  throw_value("layout \"", detail::printable(name),
              "\" is not written; saelens, dictionary_learning, sparsify and gemma_scope are");
}

namespace detail {

/// The model with the same pre-activations that does, or does not, subtract b_dec from what it encodes: (x - b_dec) w + b = x w + (b - b_dec w),
/// summed in float64.
inline AnyModel with_subtraction(AnyModel model, bool subtract) {
  if (model.subtracts_decoder_bias() == subtract) return model;
  AnyActivation activation = model.activation();
  ModelOptions options = model.options();
  options.subtract_decoder_bias = subtract;
  auto p = std::move(model.parameters());
  const Index width = p.width();
  auto* const gated = p.activation.get<Gated>();
  const double sign = subtract ? 1 : -1;
  for (Index i = 0; i < p.latents(); ++i) {
    double shift = 0;
    for (Index j = 0; j < width; ++j) shift += static_cast<double>(p.encoder().row(i)[j]) * static_cast<double>(p.b_dec[j]);
    shift *= sign;
    const auto add = [](float& to, double value) { to = static_cast<float>(static_cast<double>(to) + value); };
    if (gated != nullptr) {
      add(gated->b_gate[i], shift);
      add(gated->b_mag[i], std::exp(static_cast<double>(gated->r_mag[i])) * shift);
    } else {
      add(p.b_enc[i], shift);
    }
  }
  return AnyModel(std::move(p), std::move(activation), std::move(options));
}

/// Tensors of a file that is being written, as numbers of one kind.
template <class T>
class RoundedTensors {
 public:
  /// The tensor's own numbers where they are of that kind, else a copy that lives as long as this.
  /// \throws ValueError  one is not finite in it.
  std::span<const T> operator()(const Tensor<float>& tensor, std::string_view name) {
    std::span<const T> out;
    if constexpr (std::is_same_v<T, float>) {
      out = {tensor.data(), static_cast<std::size_t>(tensor.size())};
    } else {
      auto& rounded = kept_.emplace_back(static_cast<std::size_t>(tensor.size()));
      for (Index i = 0; i < tensor.size(); ++i) rounded[static_cast<std::size_t>(i)] = stored_as<T>(tensor[i]);
      out = rounded;
    }
    for (const T& value : out)
      if (!std::isfinite(number(value)))
        throw_value("the SAE is not saved: ", name, " holds numbers that are not finite in ", to_string(dtype_of<T>()));
    return out;
  }

 private:
  std::deque<Buffer<T>> kept_;
};

[[noreturn]] inline void refuse_layout(const AnySae& sae, SaeLayout layout, std::string_view what, std::string_view has) {
  throw_value("a SAE ", what, " (", sae.architecture(), ") is not written as ", to_string(layout), ", which has ", has);
}
/// The SAE as those layouts can hold it: no transcoder, no GLU, rows as they are, norms folded, ranks over batches by their thresholds.
inline AnyModel plain_model(const AnySae& sae, SaeLayout layout, std::string_view has) {
  if (sae.is_transcoder()) refuse_layout(sae, layout, "that is a transcoder", has);
  if (sae.reads_sequences()) refuse_layout(sae, layout, "that reads sequences", has);
  if (sae.get<AnyGluModel>() != nullptr) refuse_layout(sae, layout, "with a GLU encoder", has);
  if (sae.input_normalisation() != InputNormalisation::none)
    refuse_layout(sae, layout, concat("that normalises its rows, ", to_string(sae.input_normalisation())), has);
  std::optional<AnyModel> inference = inference_model(sae.model());
  AnyModel model = inference ? *std::move(inference) : sae.model();
  if (const bool* const by_norm = rank_by_norm(model.activation()); by_norm != nullptr && *by_norm) model.fold_decoder_norms();
  if (model.parameters().tied() && !has_tied_weights(model.activation())) model.parameters().W_enc = model.parameters().W_dec;
  return model;
}

inline void write_dictionary_learning(const AnySae& sae, const std::filesystem::path& folder, Dtype dtype) {
  constexpr std::string_view has = "AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder and AutoEncoderTopK";
  AnyModel model = plain_model(sae, SaeLayout::dictionary_learning, has);
  const auto& activation = model.activation();
  const bool topk = activation.get<TopK>() != nullptr, gated = activation.get<Gated>() != nullptr,
             jump = activation.get<JumpReLU>() != nullptr, relu = activation.get<ReLU>() != nullptr;
  if (!topk && !gated && !jump && !relu)
    refuse_layout(sae, SaeLayout::dictionary_learning, concat("of ", activation.name), has);
  model = with_subtraction(std::move(model), topk || gated);
  const auto& p = model.parameters();
  const Index width = model.d_in(), latents = model.latents();
  // Which class stands for relu: AutoEncoder's from_pretrained changes codes (it folds decoder norms), AutoEncoderNew's does not.
  const char* const dict_class = topk    ? "AutoEncoderTopK"
                                 : gated ? "GatedAutoEncoder"
                                 : jump  ? "JumpReluAutoEncoder"
                                         : "AutoEncoderNew";
  nlohmann::ordered_json trainer = {{"dict_class", dict_class}, {"activation_dim", width}, {"dict_size", latents}};
  if (topk) trainer["k"] = model.activation().get<TopK>()->k;
  trainer["lm_name"] = sae.metadata.model_name;
  if (const auto site = sae.site()) {
    trainer["layer"] = site->layer;
    trainer["submodule_name"] = concat(site->kind == SiteKind::residual  ? "resid_post"
                                       : site->kind == SiteKind::mlp_out ? "mlp_out"
                                                                         : "attn_out",
                                       "_layer_", site->layer);
  }
  nlohmann::ordered_json config = {{"trainer", std::move(trainer)}};
  if (sae.metadata.context_size > 0) config["buffer"] = {{"ctx_len", sae.metadata.context_size}};
  with_floating(dtype, [&]<class T>(T) {
    RoundedTensors<T> as;
    TorchWriter out;
    const auto add = [&](const char* name, const Tensor<float>& tensor) { out.add(name, {tensor.size()}, as(tensor, name)); };
    const std::int32_t k = topk ? static_cast<std::int32_t>(model.activation().get<TopK>()->k) : 0;
    const float unset = -1;
    if (jump) {
      out.add("W_enc", {width, latents}, as(p.W_enc, "W_enc"), {1, width});
      add("b_enc", p.b_enc);
      out.add("W_dec", {latents, width}, as(p.W_dec, "W_dec"));
      add("b_dec", p.b_dec);
      add("threshold", p.activation.get<JumpReLU>()->threshold);
    } else {
      if (topk) {
        add("b_dec", p.b_dec);
        out.add("k", {}, std::span(&k, 1));
        out.add("threshold", {}, std::span(&unset, 1));
      }
      if (gated) {
        const auto& own = *p.activation.get<Gated>();
        add("decoder_bias", p.b_dec);
        add("r_mag", own.r_mag);
        add("gate_bias", own.b_gate);
        add("mag_bias", own.b_mag);
      }
      out.add("encoder.weight", {latents, width}, as(p.W_enc, "encoder.weight"));
      if (!gated) add("encoder.bias", p.b_enc);
      out.add("decoder.weight", {width, latents}, as(p.W_dec, "decoder.weight"), {1, width});
      if (relu) add("decoder.bias", p.b_dec);
    }
    out.save(folder / "ae.pt");
  });
  save_json(folder / "config.json", config);
}

inline void write_sparsify(const AnySae& sae, const std::filesystem::path& folder, Dtype dtype, Index shard_bytes) {
  constexpr std::string_view has = "TopK and groupmax, and transcoders of them onto rows of the same width";
  const auto write = [&](const auto& p, const AnyActivation& activation, bool transcode) {
    const TopK* const topk = activation.get<TopK>();
    const GroupMax* const groups = activation.get<GroupMax>();
    if (topk == nullptr && groups == nullptr) refuse_layout(sae, SaeLayout::sparsify, concat("of ", activation.name), has);
    const Index width = p.width(), latents = p.latents();
    const nlohmann::ordered_json config = {{"activation", topk != nullptr ? "topk" : "groupmax"},
                                           {"expansion_factor", std::max<Index>(latents / width, 1)},
                                           {"normalize_decoder", false},
                                           {"num_latents", latents},
                                           {"k", topk != nullptr ? topk->k : groups->k},
                                           {"multi_topk", false},
                                           {"skip_connection", p.W_skip.size() > 0},
                                           {"transcode", transcode},
                                           {"d_in", width}};
    with_floating(dtype, [&]<class T>(T) {
      RoundedTensors<T> as;
      SafetensorsWriter out;
      const auto add = [&](const char* name, const std::vector<Index>& shape, const Tensor<float>& tensor) {
        out.add(name, shape, as(tensor, name));
      };
      add("W_dec", {latents, width}, p.W_dec);
      if (p.W_skip.size() > 0) add("W_skip", {width, width}, p.W_skip);
      add("b_dec", {width}, p.b_dec);
      add("encoder.bias", {latents}, p.b_enc);
      add("encoder.weight", {latents, width}, p.encoder());
      if (shard_bytes > 0) return out.save_sharded(folder / "sae.safetensors", shard_bytes);
      out.save(folder / "sae.safetensors");
    });
    save_json(folder / "cfg.json", config);
  };
  if (sae.is_transcoder()) {
    AnyTranscoder model = sae.transcoder();
    if (model.d_in() != model.d_out())
      refuse_layout(sae, SaeLayout::sparsify,
                    concat("that reads rows of ", model.d_in(), " numbers and writes rows of ", model.d_out()), has);
    if (const bool* const by_norm = rank_by_norm(model.activation()); by_norm != nullptr && *by_norm)
      model.fold_decoder_norms();
    return write(model.parameters(), model.activation(), true);
  }
  const AnyModel model = with_subtraction(plain_model(sae, SaeLayout::sparsify, has), true);
  write(model.parameters(), model.activation(), false);
}

inline void write_gemma_scope(const AnySae& sae, const std::filesystem::path& folder, Dtype dtype) {
  constexpr std::string_view has = "JumpReLU, and relu as JumpReLU of threshold 0";
  AnyModel model = plain_model(sae, SaeLayout::gemma_scope, has);
  const auto* const jump = model.parameters().activation.get<JumpReLU>();
  if (jump == nullptr && model.activation().get<ReLU>() == nullptr)
    refuse_layout(sae, SaeLayout::gemma_scope, concat("of ", model.activation().name), has);
  model = with_subtraction(std::move(model), false);
  const auto& p = model.parameters();
  const Index width = model.d_in(), latents = model.latents();
  if (dtype != Dtype::float32 && dtype != Dtype::float64)
    throw_value("gemma_scope is written in float32 or float64, not in ", to_string(dtype));
  with_floating(dtype, [&]<class T>(T) {
    if constexpr (std::is_floating_point_v<T>) {
      RoundedTensors<T> as;
      Tensor<float> turned(width, latents), threshold(1, latents);
      transpose(p.W_enc, turned);
      if (const auto* const own = p.activation.get<JumpReLU>()) threshold = own->threshold;
      NpzWriter out;
      out.add("W_dec", {latents, width}, as(p.W_dec, "W_dec"));
      out.add("W_enc", {width, latents}, as(turned, "W_enc"));
      out.add("b_dec", {width}, as(p.b_dec, "b_dec"));
      out.add("b_enc", {latents}, as(p.b_enc, "b_enc"));
      out.add("threshold", {latents}, as(threshold, "threshold"));
      out.save(folder / "params.npz");
    }
  });
}

}  // namespace detail

struct SaveOptions {
  bool overwrite = false;        ///< replace a SAE that is there
  Dtype dtype = Dtype::float32;  ///< of weights: float32, float64, bfloat16 or float16
  /// saelens, sparsify: weights of more bytes go into several files of at most so many and an index, which neither library reads, but
  /// `load` and Hugging Face's do; 0: one file, whatever its size.
  Index shard_bytes = 0;
};

/// Saves a SAE as the library of that name does, so that it reads it as it is; the folder appears whole or not at all.
///
///   saelens              every architecture; those that SAELens lacks under names of ours in its layout (save_saelens)
///   dictionary_learning  ae.pt, config.json: relu (AutoEncoderNew), gated, jumprelu, topk
///   sparsify             sae.safetensors, cfg.json: topk, groupmax, their transcoders of one width with or without a skip
///   gemma_scope          params.npz: jumprelu, relu
///
/// Whether b_dec is subtracted from what is encoded is what each layout's own programs do: b_enc changes where the SAE does otherwise, in
/// float64, and codes stay what they are up to rounding. A BatchTopK is written by its running threshold, decoder norms are folded.
/// \throws ValueError  the layout has no such architecture; a number is not finite in the dtype.  FileError  it cannot be written.
inline void save_as(const AnySae& sae, SaeLayout layout, const std::filesystem::path& folder, SaveOptions options = {}) {
  if (layout == SaeLayout::saelens)
    return save_saelens(sae, folder,
                        {.overwrite = options.overwrite, .dtype = options.dtype, .shard_bytes = options.shard_bytes});
  if (options.shard_bytes != 0 && layout != SaeLayout::sparsify)
    throw_value(to_string(layout), " is written as one file; shards are of saelens and sparsify");
  constexpr const char* markers[] = {"cfg.json", "ae.pt", "cfg.json", "params.npz"};
  OutputFolder out(folder, {.overwrite = options.overwrite, .marker = markers[static_cast<std::size_t>(layout)]});
  if (layout == SaeLayout::dictionary_learning) detail::write_dictionary_learning(sae, out.partial(), options.dtype);
  if (layout == SaeLayout::sparsify) detail::write_sparsify(sae, out.partial(), options.dtype, options.shard_bytes);
  if (layout == SaeLayout::gemma_scope) detail::write_gemma_scope(sae, out.partial(), options.dtype);
  out.commit();
}

}  // namespace sae::inline SAE_ABI
