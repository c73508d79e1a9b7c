#pragma once
#include <sae/formats/saelens.hpp>
#include <sae/models/cross_layer_transcoder.hpp>

#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

// A cross-layer transcoder in two files, as a SAE has: cfg.json and sae_weights.safetensors. A layout of ours in SAELens' manner, since
// SAELens has none:
//
//   cfg.json   architecture  the activation's and "_cross_layer_transcoder": "topk_cross_layer_transcoder"
//              n_layers, d_in (of one layer), d_sae (of one layer), dtype, the activation's settings, rank_by_decoder_norm, metadata
//   weights    layerL.W_enc [F x D], layerL.b_enc [F], layerL.W_dec [F x (n_layers - L) D], the activation's own layerL.NAME, and
//              layer0.b_dec [n_layers D], as CrossLayerParameters names and holds them
namespace sae::inline SAE_ABI {

namespace detail {
inline constexpr std::string_view cross_layer_suffix = "_cross_layer_transcoder";
}

/// Saves a CrossLayerTranscoder: a folder that appears whole or not at all.
/// \throws FileError   the folder exists and `overwrite` is off; it cannot be written.
/// \throws ValueError  a parameter is not finite, or the activation is one of training alone (BatchTopK chosen at run time).
template <class Model>
void save_cross_layer(const Model& model, const std::filesystem::path& folder, const SaelensMetadata& metadata = {},
                      OutputOptions options = {}) {
  using Scalar = typename Model::Scalar;
  Model::Parameters::visit(
      [&](std::string_view name, const auto& tensor) {
        if (!tensor.map().allFinite())
          throw_value(folder.string(), ": the transcoder is not saved: ", name, " holds numbers that are not finite");
      },
      model.parameters());
  nlohmann::ordered_json config;
  config["architecture"] = detail::concat(detail::saelens_architecture(model.activation()), detail::cross_layer_suffix);
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
  weights.save(out / detail::saelens_weights_name);
  out.commit();
}

/// Loads what save_cross_layer wrote, from its folder or one of its two files. Weights of any floating kind are read as Scalar.
///   auto model = sae::load_cross_layer<sae::CrossLayerTranscoder<sae::AnyActivation>>("my_transcoder");
/// \throws FileError  a field or tensor is missing, ill-typed, of another shape than cfg.json says, or not finite; the activation does
///                    not fit the model's type.
template <class Model>
Model load_cross_layer(const std::filesystem::path& path) {
  using Activation = typename Model::Activation;
  using Scalar = typename Model::Scalar;
  constexpr Index limit = Index{1} << 30;
  SaelensConfig config;
  config.file = detail::saelens_folder(path) / detail::saelens_config_name;
  config.json = read_json(config.file);
  const auto& file = config.file;
  config.architecture = json_string(config.json, "architecture", file);
  if (!config.architecture.ends_with(detail::cross_layer_suffix))
    throw_file(file.string(), ": architecture = \"", detail::printable(config.architecture),
               "\" is no cross-layer transcoder, which would end in \"", detail::cross_layer_suffix, "\"");
  config.activation = config.architecture.substr(0, config.architecture.size() - detail::cross_layer_suffix.size());
  config.d_in = json_integer(config.json, "d_in", file, 1, limit);
  config.latents = json_integer(config.json, "d_sae", file, 1, limit);
  const Index layers = json_integer(config.json, "n_layers", file, 1, limit / config.d_in);
  Activation activation = detail::SaelensReader<Activation>::read(config);
  if (bool* const by_norm = detail::rank_by_norm(activation); by_norm != nullptr)
    *by_norm = json_bool_or(config.json, "rank_by_decoder_norm", false, file);

  const SafetensorsFile weights(file.parent_path() / detail::saelens_weights_name);
  const auto read = [&](std::string_view name, const std::vector<Index>& shape) {
    Tensor<Scalar> tensor = weights.read<Scalar>(name, shape);
    detail::require_finite(tensor, name, weights.path());
    return tensor;
  };
  // The last layer's decoder and the first one's: the model's size is then one that the file has.
  const auto decoder_of = [&](Index l) {
    return read(detail::concat("layer", l, ".W_dec"), {config.latents, (layers - l) * config.d_in});
  };
  decoder_of(layers - 1);
  decoder_of(0);
  Model model(layers, config.d_in, config.latents, activation, {.decoder_norm = activation.needs_decoder_norms() ? 1.0 : 0.0});
  Model::Parameters::visit(
      [&](std::string_view name, auto& tensor) {
        if (tensor.size() > 0) tensor = read(name, detail::stored_shape(tensor));
      },
      model.parameters());
  model.parameters().constrain();
  return model;
}

}  // namespace sae::inline SAE_ABI
