#pragma once
#include <sae/formats/load.hpp>
#include <sae/formats/published_cross_layer.hpp>
#include <sae/models/cross_layer_transcoder.hpp>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

// A cross-layer transcoder in two files, as a SAE has: cfg.json and sae_weights.safetensors. A layout of ours in SAELens' manner, since
// SAELens has none:
//
//   cfg.json   architecture  the activation's and "_cross_layer_transcoder": "topk_cross_layer_transcoder"; with a skip
//                            "topk_skip_cross_layer_transcoder"
//              n_layers, d_in (of one layer), d_sae (of one layer), dtype, the activation's settings, rank_by_decoder_norm, metadata
//   weights    layerL.W_enc [F x D], layerL.b_enc [F], layerL.W_dec [F x (n_layers - L) D], layerL.W_skip [D x D] of a skip, the
//              activation's own layerL.NAME, and layer0.b_dec [n_layers D], as CrossLayerParameters names and holds them
// What others publish is read besides: formats/published_cross_layer.hpp.
namespace sae::inline SAE_ABI {

/// A cross-layer transcoder whose activation is known at run time only: load_cross_layer<AnyCrossLayerTranscoder>(path).
using AnyCrossLayerTranscoder = CrossLayerTranscoder<AnyActivation, float>;

/// Saves a CrossLayerTranscoder: a folder that appears whole or not at all.
/// \param shard_bytes  weights of more bytes go into several files of at most so many (files/safetensors_index.hpp)
/// \throws FileError   the folder exists and `overwrite` is off; it cannot be written.
/// \throws ValueError  a parameter is not finite, or the activation is one of training alone (BatchTopK chosen at run time).
template <class Model>
void save_cross_layer(const Model& model, const std::filesystem::path& folder, const SaelensMetadata& metadata = {},
                      OutputOptions options = {}, Index shard_bytes = default_shard_bytes) {
  using Scalar = typename Model::Scalar;
  Model::Parameters::visit(
      [&](std::string_view name, const auto& tensor) {
        if (!tensor.map().allFinite())
          throw_value(folder.string(), ": the transcoder is not saved: ", name, " holds numbers that are not finite");
      },
      model.parameters());
  nlohmann::ordered_json config;
  config["architecture"] = detail::cross_layer_architecture(detail::saelens_architecture(model.activation()), model.has_skip());
  config["n_layers"] = model.layers();
  config["d_in"] = model.d_in();
  config["d_sae"] = model.latents();
  config["dtype"] = to_string(dtype_of<Scalar>());
  config["metadata"] = detail::saelens_json(metadata);
  detail::write_saelens_settings(model.activation(), model.parameters().layers.front().activation, config);
  if (const bool* const by_norm = detail::rank_by_norm(model.activation()); by_norm != nullptr)
    config["rank_by_decoder_norm"] = *by_norm;

  OutputFolder out(folder, {.overwrite = options.overwrite, .marker = detail::saelens_config_name});
  save_json(out / detail::saelens_config_name, config);
  SafetensorsWriter weights;
  Model::Parameters::visit(
      [&](std::string_view name, const auto& tensor) {
        if (tensor.size() > 0) weights.add(std::string(name), detail::stored_shape(tensor), tensor);
      },
      model.parameters());
  weights.save_sharded(out / detail::saelens_weights_name, shard_bytes);
  out.commit();
}

namespace detail {

/// Calls f(layer, parameters) with what the files hold of each layer; b_dec and W_skip are its own.
template <class Parameters, class Activation, class F>
void for_each_layer(const PublishedCrossLayer& from, const Activation& activation, const LoadOptions& options, const F& f) {
  std::set<std::string, std::less<>> used, unused;
  for (const CrossLayerPart& part : from.parts) {
    PublishedReader reader(part.sae, options);
    Parameters layer = reader.parameters<Parameters>(activation, from.d_in);
    used.insert(reader.used().begin(), reader.used().end());
    if (options.warnings != nullptr) warn_of_zero_rows(layer.W_dec, concat("layer ", part.layer, ": "), *options.warnings);
    f(part, std::move(layer));
  }
  if (options.warnings == nullptr) return;
  for (const CrossLayerPart& part : from.parts)
    for (const auto& [name, array] : part.sae.tensors.arrays())
      if (!used.contains(name)) unused.insert(name);
  for (const std::string& name : unused) options.warnings->push_back(concat("tensor ", printable(name), " is not used"));
  warn_of_earlier_layers(from, *options.warnings);
}

}  // namespace detail

/// Loads a cross-layer transcoder of any layout that is known (docs/formats.md), ours or others', from its folder or one of its files.
/// Weights of any floating kind are read as Scalar.
///   auto model = sae::load_cross_layer<sae::AnyCrossLayerTranscoder>("gemma-scope-2-1b-pt/clt/width_262k_l0_medium_affine");
/// \param options  `warnings` gets what is odd: decoders to earlier layers than the latents' own, which are passed over, among it
/// Cost: memory of the model alone, L (L + 1) / 2 F D numbers for the decoders, read layer by layer.
/// \throws FileError  a field or tensor is missing, ill-typed, of another shape than the others say, or not finite; a layer is missing;
///                    the activation does not fit the model's type.
template <class Model>
Model load_cross_layer(const std::filesystem::path& path, LoadOptions options = {}) {
  using Activation = typename Model::Activation;
  using Parameters = typename Model::Parameters;
  const auto build = [&](const PublishedCrossLayer& from, const Activation& activation) {
    Parameters p;
    Tensor<typename Model::Scalar> b_dec(1, from.layers() * from.d_in);
    detail::for_each_layer<typename Parameters::Layer>(from, activation, options, [&](const CrossLayerPart& part, auto layer) {
      std::copy_n(layer.b_dec.data(), from.d_in, b_dec.data() + part.layer * from.d_in);
      layer.b_dec.resize(0, 0);
      p.layers.push_back(std::move(layer));
    });
    p.b_dec() = std::move(b_dec);
    return Model(std::move(p), activation);
  };
  if (const auto config = detail::own_cross_layer_config(path)) {  // activations of one's own, too
    Activation activation = detail::SaelensReader<Activation>::read(*config);
    detail::read_cross_layer_rank(*config, activation);
    return build(detail::published_cross_layer(*config), activation);
  }
  const PublishedCrossLayer from = read_published_cross_layer(path);
  return build(from, detail::activation_as<Activation>(from.parts.front().sae, false));
}

/// Reads all weights of a cross-layer transcoder, layer by layer, and keeps none.
/// \throws FileError  one is missing, of another shape or not finite.
inline void check_cross_layer(const PublishedCrossLayer& from) {
  detail::for_each_layer<AnyCrossLayerTranscoder::Parameters::Layer>(from, from.activation(), {},
                                                                     [](const CrossLayerPart&, auto) {});
}

}  // namespace sae::inline SAE_ABI
