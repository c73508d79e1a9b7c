#pragma once
#include <sae/files/yaml.hpp>
#include <sae/formats/any_sae.hpp>
#include <sae/formats/package.hpp>
#include <sae/formats/saelens_releases.hpp>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

// Cross-layer transcoders in files, of three layouts:
//
//   saelens         ours, in SAELens' manner: cfg.json and sae_weights.safetensors, with all layers (formats/cross_layer.hpp)
//   circuit_tracer  mntss and what circuit-tracer writes: W_enc_L.safetensors with W_enc_L [F x D], b_enc_L, b_dec_L and, with JumpReLU,
//                   threshold_L; W_dec_L.safetensors with W_dec_L [F x (layers - L) x D], to layer L and all later ones; config.yaml
//   gemma_scope_2   ..._layer_L.safetensors with w_enc [D x F], b_enc, threshold, w_dec [F x layers x D], b_dec and perhaps
//                   affine_skip_connection [D x D], the transpose of W_skip; config.json
//
// Sources: circuit-tracer 4bb8c0e transcoder/cross_layer_transcoder.py (load_clt, load_gemma_scope_2_clt, to_safetensors),
// utils/hf_utils.py; Gemma Scope 2's tutorial (JumpReLUMultiLayerSAE): its decoders name the layer that is written, and a skip goes from a
// layer's input to its own output. circuit-tracer's own reader of Gemma Scope 2 leaves out the last layer (its range ends at the largest
// number); SAELens opens one layer as a transcoder whose decoders are summed over the layers, which is right for codes alone.
namespace sae::inline SAE_ABI {

/// One layer of a cross-layer transcoder, weights not read yet.
struct CrossLayerPart {
  Index layer = 0, layers = 1;
  /// A transcoder from its input to the outputs of its own layer and all later ones, side by side; but b_dec [D] and W_skip [D x D] are
  /// those of its own layer.
  PublishedSae sae;
  TensorSet decoder;     ///< the file of W_dec, if it is one of its own
  StoredMatrix earlier;  ///< decoders to earlier layers, which a file may have room for [F x layer D]
};

/// A cross-layer transcoder as its files describe it, weights not read yet. `tensors` are named after the files that hold them.
struct PublishedCrossLayer : StoredDetails {
  std::filesystem::path file;  ///< what messages about settings name
  std::string architecture;    ///< "jumprelu_skip_cross_layer_transcoder"
  std::vector<CrossLayerPart> parts;
  Index d_in = 0, latents = 0;  ///< of one layer
  bool skip = false;

  Index layers() const { return static_cast<Index>(parts.size()); }
  const AnyActivation& activation() const { return parts.front().sae.activation; }
};

namespace detail {

inline constexpr std::string_view cross_layer_suffix = "_cross_layer_transcoder";

inline std::string cross_layer_architecture(std::string_view activation, bool skip) {
  return concat(activation, skip ? "_skip" : "", cross_layer_suffix);
}

/// The layer that a file's name ends with: 12 of "params_layer_12.safetensors", whose `stem` is "params_layer_".
struct LayerName {
  std::string stem;
  Index layer = 0;
};
inline std::optional<LayerName> layer_name(const std::filesystem::path& path) {
  constexpr Index most = 9999;
  if (path.extension() != ".safetensors") return std::nullopt;
  const std::string name = path.stem().string();
  const std::size_t digits = name.find_last_not_of("0123456789") + 1;  // npos + 1 = 0: all of it
  Index layer = 0;
  const auto [end, error] = std::from_chars(name.data() + digits, name.data() + name.size(), layer);
  if (digits == name.size() || error != std::errc() || end != name.data() + name.size() || layer > most) return std::nullopt;
  if (name[digits] == '0' && digits + 1 < name.size()) return std::nullopt;  // layer_07
  return LayerName{name.substr(0, digits), layer};
}
inline constexpr std::string_view clt_encoder = "W_enc_", clt_decoder = "W_dec_";

/// Where the files of a cross-layer transcoder lie.
struct CrossLayerFiles {
  std::string layout;
  std::filesystem::path folder, config;       ///< config.yaml, config.json, cfg.json or none
  std::string stem;                           ///< of the files of layers, but for ours
  std::map<Index, std::filesystem::path> at;  ///< by layer: of circuit_tracer the file of its encoder
  std::optional<Index> named;                 ///< the layer of which the path that was asked for is a file
};

inline bool has_layer_axis(const std::filesystem::path& path) {
  const SafetensorsFile file(path);
  const auto found = file.tensors().find("w_dec");
  return found != file.tensors().end() && found->second.shape.size() == 3;
}

/// The cross-layer transcoder that lies in a folder, or beside one of its files.
inline std::optional<CrossLayerFiles> find_cross_layer(const std::filesystem::path& path) {
  namespace fs = std::filesystem;
  std::error_code error;
  CrossLayerFiles out;
  const bool is_folder = fs::is_directory(path, error);
  out.folder = is_folder ? path : path.has_parent_path() ? path.parent_path() : fs::path(".");
  const std::string asked = is_folder ? "" : path.filename().string();
  const bool by_config = asked == circuit_tracer_config || asked == "config.json" || asked == saelens_config_name;
  if (!is_folder && !is_file(path)) return std::nullopt;

  const bool by_weights = !is_folder && is_saelens_weights(index_of_shard(path).value_or(path));
  if ((is_folder || by_config || by_weights) && is_file(out.folder / saelens_config_name) &&
      is_file(safetensors_or_index(out.folder / saelens_weights_name))) {
    out.config = out.folder / saelens_config_name;
    const nlohmann::json json = read_json(out.config);
    const nlohmann::json* const found = json_find(json, "architecture", out.config);
    if (found == nullptr || !found->is_string() || !found->get_ref<const std::string&>().ends_with(cross_layer_suffix))
      return std::nullopt;
    out.layout = "saelens";
    return out;
  }

  std::map<std::string, std::map<Index, fs::path>> files;  // by stem and layer
  if (const auto own = is_folder || by_config ? std::nullopt : layer_name(path)) {
    out.named = own->layer;
    out.stem = own->stem == clt_decoder ? std::string(clt_encoder) : own->stem;
  } else if (!is_folder && !by_config) {
    return std::nullopt;
  }
  bool weights = false;
  for (fs::directory_iterator at(out.folder, error), end; !error && at != end; at.increment(error)) {
    weights = weights || is_weight_file(at->path());
    if (const auto name = layer_name(at->path())) files[name->stem][name->layer] = at->path();
  }
  for (const std::string_view name : {circuit_tracer_config, std::string_view("config.json")})
    if (is_file(out.folder / name)) {
      out.config = out.folder / name;
      break;
    }
  const auto choose = [&](const std::string& layout, const std::string& stem) {
    out.layout = layout;
    out.at = files[stem];
    out.stem = stem;
    return out;
  };
  const std::string encoders(clt_encoder);
  if (out.named ? out.stem == encoders : files.contains(encoders) || files.contains(std::string(clt_decoder)))
    return choose("circuit_tracer", encoders);
  for (const auto& [stem, layers] : files)
    if (stem.ends_with("layer_") && (!out.named || stem == out.stem) &&
        has_layer_axis(out.named ? path : layers.begin()->second))
      return choose("gemma_scope_2", stem);

  if (out.named || weights || out.config.filename() != circuit_tracer_config) return std::nullopt;
  const nlohmann::json config = read_yaml(out.config);
  if (!config.is_object() || json_string_or(config, "model_kind", "", out.config) != "cross_layer_transcoder")
    return std::nullopt;
  for (const std::string& listed : listed_transcoders(config, out.config)) {
    const fs::path beside = out.folder / listed;
    out.at[static_cast<Index>(out.at.size())] = is_file(beside) ? beside : resolve_path(listed);
  }
  if (out.at.empty()) return std::nullopt;
  out.layout = "gemma_scope_2";
  return out;
}

inline void require_shape(const TensorSet& set, std::string_view name, const std::vector<Index>& shape) {
  if (const ArrayView& array = set.at(name); array.shape != shape)
    throw_file(set.file(), ": tensor ", name, " has shape ", shape_text(array.shape), ", it should be ", shape_text(shape));
}
/// Tells what the decoder of a layer should be, by the encoder, where it is not [F x layers x D].
inline const ArrayView& decoder_of_layers(const TensorSet& set, std::string_view name, Index F, Index D) {
  const ArrayView& array = set.at(name);
  if (F < 1 || D < 1) throw_file(set.file(), ": its encoder has no numbers");
  if (array.shape.size() != 3 || array.shape[0] != F || array.shape[1] < 1 || array.shape[2] != D)
    throw_file(set.file(), ": tensor ", name, " has shape ", shape_text(array.shape), ", it should be [", F, ", layers, ", D,
               "], by the encoder of that layer");
  if (!array.contiguous()) throw_file(set.file(), ": tensor ", name, " does not lie row by row, as layers of it are read");
  return array;
}
/// Of a matrix [F x layers x D], what it has of `count` layers from the first on, as a matrix [F x count D].
inline ArrayView layers_of(const ArrayView& decoder, Index first, Index count) {
  const Index F = decoder.shape[0], all = decoder.shape[1], D = decoder.shape[2];
  return {decoder.dtype, {F, count * D}, {all * D, 1}, decoder.data + first * D * item_size(decoder.dtype)};
}
inline void begin_part(CrossLayerPart& part, const std::string& layout, const std::filesystem::path& file) {
  part.sae.layout = layout;
  part.sae.file = file;
  part.sae.tensors = open_tensors(file);
  part.sae.subtract_decoder_bias = false;
}
inline void end_part(CrossLayerPart& part, const std::string& activation) {
  PublishedSae& sae = part.sae;
  sae.d_out = (part.layers - part.layer) * sae.d_in;
  sae.architecture = cross_layer_architecture(activation, sae.skip);
}

/// One layer as circuit-tracer keeps it.
inline CrossLayerPart read_circuit_tracer_part(const std::filesystem::path& encoder, Index layer) {
  CrossLayerPart part;
  part.layer = layer;
  PublishedSae& sae = part.sae;
  begin_part(part, "circuit_tracer", encoder);
  const std::string at = std::to_string(layer), enc = "W_enc_" + at, dec = "W_dec_" + at, threshold = "threshold_" + at;
  const auto& shape = sae.tensors.at(enc).shape;
  if (shape.size() != 2)
    throw_file(sae.tensors.file(), ": tensor ", enc, " has shape ", shape_text(shape), ", it should have two axes");
  sae.latents = shape[0];
  sae.d_in = shape[1];
  sae.take("W_enc", enc);
  sae.take("b_enc", "b_enc_" + at);
  sae.take("b_dec", "b_dec_" + at);
  const auto decoder =
      std::make_shared<const TensorSet>(open_tensors(encoder.parent_path() / concat(clt_decoder, at, ".safetensors")));
  const ArrayView& W_dec = decoder_of_layers(*decoder, dec, sae.latents, sae.d_in);
  part.layers = layer + W_dec.shape[1];
  sae.given["W_dec"] = {dec, layers_of(W_dec, 0, W_dec.shape[1]), false, 1, decoder, decoder->file()};
  part.decoder = *decoder;
  if (sae.tensors.contains(threshold)) {
    sae.activation = JumpReLU{};
    sae.take("threshold", threshold);
    require_thresholds(sae, threshold);
  }
  end_part(part, sae.tensors.contains(threshold) ? "jumprelu" : "standard");
  return part;
}

/// One layer as Gemma Scope 2 keeps it: f = relu(z) where z > threshold.
inline CrossLayerPart read_gemma_scope_part(const std::filesystem::path& file, Index layer) {
  CrossLayerPart part;
  part.layer = layer;
  PublishedSae& sae = part.sae;
  begin_part(part, "gemma_scope_2", file);
  const auto& shape = sae.tensors.at("w_enc").shape;
  if (shape.size() != 2)
    throw_file(sae.tensors.file(), ": tensor w_enc has shape ", shape_text(shape), ", it should have two axes");
  sae.d_in = shape[0];
  sae.latents = shape[1];
  const ArrayView& W_dec = decoder_of_layers(sae.tensors, "w_dec", sae.latents, sae.d_in);
  part.layers = W_dec.shape[1];
  if (layer >= part.layers)
    throw_file(sae.tensors.file(), ": is layer ", layer, " by its name, and tensor w_dec has ", part.layers,
               " layers, the first of which is 0");
  sae.take("W_enc", "w_enc", true);
  sae.take("W_dec", "w_dec").array = layers_of(W_dec, layer, part.layers - layer);
  if (layer > 0) part.earlier = {"w_dec", layers_of(W_dec, 0, layer)};
  sae.activation = JumpReLU{};
  if (sae.tensors.contains("affine_skip_connection")) {
    sae.skip = true;
    sae.take("W_skip", "affine_skip_connection", true);
  }
  end_part(part, "jumprelu");
  return part;
}

/// What the settings say of a transcoder's layers, checked against its tensors.
inline void read_cross_layer_settings(const std::filesystem::path& config, CrossLayerPart& part, SaelensMetadata& metadata,
                                      nlohmann::json& json) {
  if (config.empty()) return;
  json = config.extension() == ".yaml" ? read_yaml(config) : read_json(config);
  if (json.is_null()) return;
  if (!json.is_object()) throw_file(config.string(), ": is no map of settings");
  const PublishedSae& sae = part.sae;
  const bool jumps = sae.activation.get<JumpReLU>() != nullptr;
  if (const std::string kind = json_string_or(json, "model_kind", "cross_layer_transcoder", config);
      kind != "cross_layer_transcoder")
    throw_field(config, "model_kind", json.at("model_kind"), "\"cross_layer_transcoder\", which the files beside it are");
  for (const char* const name : {"activation", "activation_function", "architecture"})
    if (const nlohmann::json* const found = json_find(json, name, config); found != nullptr) {
      const bool fits = *found == "relu" ? !jumps : (*found == "jump_relu" || *found == "jumprelu") && jumps;
      if (!fits)
        throw_field(config, name, *found,
                    jumps ? "\"jump_relu\", as there are thresholds" : "\"relu\", as there are no thresholds");
    }
  const std::pair<const char*, Index> sizes[] = {
      {"n_layers", part.layers}, {"d_model", sae.d_in}, {"d_transcoder", sae.latents}};
  for (const auto& [name, size] : sizes)
    if (const nlohmann::json* const found = json_find(json, name, config); found != nullptr && *found != size)
      throw_field(config, name, *found, concat("that of the tensors, ", size));
  metadata.model_name = json_string_or(json, "model_name", "", config);
  for (const char* const name : {"feature_input_hook", "feature_output_hook"})
    if (const std::string hook = json_string_or(json, name, "", config); !hook.empty()) metadata.other[name] = hook;
}

/// What the settings mean for one layer.
inline SaelensMetadata metadata_of_layer(const CrossLayerPart& part, SaelensMetadata metadata) {
  const auto hook = [&](const char* name, const char* of_gemma) -> std::string {
    if (const auto found = metadata.other.find(name); found != metadata.other.end())
      return concat("blocks.", part.layer, ".", found->get_ref<const std::string&>());
    if (part.sae.layout != "gemma_scope_2") return {};
    const std::string path = std::filesystem::absolute(part.sae.tensors.file()).parent_path().generic_string();
    return path.find("/clt") == std::string::npos ? std::string() : concat("blocks.", part.layer, ".", of_gemma);
  };
  // Gemma Scope 2: outputs of pre_feedforward_layernorm and post_feedforward_layernorm.
  metadata.hook_name = hook("feature_input_hook", "ln2.hook_normalized");
  const std::string out = hook("feature_output_hook", "hook_mlp_out");
  if (!out.empty()) metadata.other["hook_name_out"] = out;
  for (const char* const name : {"feature_input_hook", "feature_output_hook"}) metadata.other.erase(name);
  return metadata;
}

inline CrossLayerPart read_part(const CrossLayerFiles& files, Index layer, const std::filesystem::path& file) {
  return files.layout == "circuit_tracer" ? read_circuit_tracer_part(file, layer) : read_gemma_scope_part(file, layer);
}

/// One layer alone: what it adds to the outputs of its own layer and all later ones, and b_dec and skip of its own. The predictions of all
/// layers, each from its own outputs on, add up to the whole one.
inline PublishedSae alone(CrossLayerPart part) {
  PublishedSae& sae = part.sae;
  const std::string& file = sae.tensors.file();
  const Index D = sae.d_in;
  const auto padded = [&](const char* ours, Index rows, Index cols, std::vector<Index> shape) {
    const auto found = sae.given.find(ours);
    const StoredMatrix from = found == sae.given.end() ? StoredMatrix{ours, sae.tensors.at(ours)} : found->second;
    const Tensor<double> own =
        read_stored<double>(from, rows == 1 ? std::vector<Index>{D} : std::vector<Index>{D, D}, file, false);
    Tensor<double> out(rows, cols);
    std::copy_n(own.data(), own.size(), out.data());
    const auto kept = std::make_shared<const Tensor<double>>(std::move(out));
    sae.passed_over.insert(from.name);
    sae.given[ours] = {
        from.name, {Dtype::float64, std::move(shape), {}, reinterpret_cast<const std::byte*>(kept->data())}, false, 1, kept};
  };
  padded("b_dec", 1, sae.d_out, {sae.d_out});
  if (sae.skip) padded("W_skip", sae.d_out, D, {sae.d_out, D});
  const std::string_view activation = sae.activation.get<JumpReLU>() != nullptr ? "jumprelu" : "standard";
  sae.architecture = saelens_transcoder_architecture(activation, sae.skip);
  sae.warnings.push_back(concat("layer ", part.layer, " of a cross-layer transcoder of ", part.layers,
                                ": its codes are those of the whole; it predicts what they add to the outputs of the layers ",
                                part.layer, " to ", part.layers - 1, ", side by side"));
  return std::move(sae);
}

/// What was found where a SAE or transcoder was looked for: the one layer of which the path is a file.
/// \throws FileError  the path is a whole cross-layer transcoder: what opens that.
inline PublishedSae published_layer(const CrossLayerFiles& files, const std::filesystem::path& path) {
  if (!files.named)
    throw_file(path.string(), ": is a cross-layer transcoder, which load_cross_layer (sae/formats/cross_layer.hpp) opens",
               files.at.empty() ? "" : "; one layer of it is opened here as a transcoder by its file, ",
               files.at.empty() ? "" : files.at.begin()->second.filename().string());
  CrossLayerPart part = read_part(files, *files.named, files.folder / concat(files.stem, *files.named, ".safetensors"));
  nlohmann::json config;
  SaelensMetadata metadata;
  read_cross_layer_settings(files.config, part, metadata, config);
  part.sae.metadata = metadata_of_layer(part, std::move(metadata));
  part.sae.config = std::move(config);
  return alone(std::move(part));
}

/// Settings of ours: cfg.json.
inline SaelensConfig read_cross_layer_config(const std::filesystem::path& file) {
  SaelensConfig out;
  out.file = file;
  out.json = read_json(file);
  out.architecture = json_string(out.json, "architecture", file);
  if (!out.architecture.ends_with(cross_layer_suffix))
    throw_file(file.string(), ": architecture = \"", printable(out.architecture),
               "\" is no cross-layer transcoder, which would end in \"", cross_layer_suffix, "\"");
  constexpr std::string_view skip = "_skip";
  out.activation = out.architecture.substr(0, out.architecture.size() - cross_layer_suffix.size());
  out.skip = out.activation.ends_with(skip);
  if (out.skip) out.activation.resize(out.activation.size() - skip.size());
  constexpr Index limit = Index{1} << 30;
  out.d_in = json_integer(out.json, "d_in", file, 1, limit);
  out.latents = json_integer(out.json, "d_sae", file, 1, limit);
  out.metadata = saelens_metadata(out);
  return out;
}

/// Ours, but for its activation.
inline PublishedCrossLayer published_cross_layer(const SaelensConfig& config) {
  PublishedCrossLayer out;
  out.layout = "saelens";
  out.file = config.file;
  out.architecture = config.architecture;
  out.config = config.json;
  out.metadata = config.metadata;
  out.d_in = config.d_in;
  out.latents = config.latents;
  out.skip = config.skip;
  const Index layers = json_integer(config.json, "n_layers", config.file, 1, (Index{1} << 30) / config.d_in);
  const TensorSet tensors{SafetensorsFile(safetensors_or_index(config.file.parent_path() / saelens_weights_name))};
  // The last layer's decoder first: there are then as many layers as the file has.
  for (const Index l : {layers - 1, Index{0}})
    require_shape(tensors, concat("layer", l, ".W_dec"), {config.latents, (layers - l) * config.d_in});
  for (Index l = 1; l + 1 < layers; ++l) static_cast<void>(tensors.at(concat("layer", l, ".W_dec")));
  const ArrayView& b_dec = tensors.at("layer0.b_dec");
  require_shape(tensors, "layer0.b_dec", {layers * config.d_in});
  for (Index l = 0; l < layers; ++l) {
    CrossLayerPart& part = out.parts.emplace_back();
    part.layer = l;
    part.layers = layers;
    PublishedSae& sae = part.sae;
    sae.layout = out.layout;
    sae.file = config.file;
    sae.tensors = tensors;
    sae.architecture = out.architecture;
    sae.d_in = config.d_in;
    sae.latents = config.latents;
    sae.d_out = (layers - l) * config.d_in;
    sae.skip = config.skip;
    sae.subtract_decoder_bias = false;
    const std::string prefix = concat("layer", l, ".");
    for (auto at = tensors.arrays().lower_bound(prefix); at != tensors.arrays().end() && at->first.starts_with(prefix); ++at)
      sae.take(at->first.substr(prefix.size()), at->first);
    sae.given["b_dec"] = {"layer0.b_dec",
                          {b_dec.dtype, {config.d_in}, {}, b_dec.data + l * config.d_in * item_size(b_dec.dtype)}};
  }
  for (const auto& [name, array] : tensors.arrays()) out.tensors[name] = {std::string(to_string(array.dtype)), array.shape};
  out.dtype = to_string(tensors.at("layer0.W_dec").dtype);
  return out;
}

template <class Activation>
void read_cross_layer_rank(const SaelensConfig& config, Activation& activation) {
  if (bool* const by_norm = rank_by_norm(activation); by_norm != nullptr)
    *by_norm = json_bool_or(config.json, "rank_by_decoder_norm", false, config.file);
}
/// cfg.json of ours, where it lies there.
inline std::optional<SaelensConfig> own_cross_layer_config(const std::filesystem::path& asked) {
  const std::filesystem::path path = find_sae(asked).path;
  const std::optional<CrossLayerFiles> files = find_cross_layer(path);
  if (files && files->layout == "saelens") return read_cross_layer_config(files->config);
  return std::nullopt;
}

/// Says where decoders to earlier layers hold numbers, which a transcoder of this kind cannot have.
inline void warn_of_earlier_layers(const PublishedCrossLayer& from, std::vector<std::string>& warnings) {
  constexpr Index rows = 64;
  double largest = 0;
  Index layer = 0;
  for (const CrossLayerPart& part : from.parts) {
    if (part.earlier.name.empty()) continue;
    const ArrayView& all = part.earlier.array;
    for (Index first = 0; first < all.shape[0]; first += rows) {
      const ArrayView piece{all.dtype,
                            {std::min(all.shape[0] - first, rows), all.shape[1]},
                            all.strides,
                            all.data + first * all.stride(0) * item_size(all.dtype)};
      const Tensor<float> read = read_matrix<float>(piece, part.sae.tensors.file(), part.earlier.name);
      const auto peak = static_cast<double>(read.map().cwiseAbs().maxCoeff());
      if (!(peak <= largest)) {
        largest = peak;
        layer = part.layer;
      }
    }
  }
  if (largest != 0)
    warnings.push_back(concat("decoders to earlier layers than a latent's own hold numbers, the largest ", largest,
                              " of layer ", layer, "; they are passed over, as circuit-tracer does"));
}

/// Of others, from files that were found.
inline PublishedCrossLayer published_cross_layer(const CrossLayerFiles& files) {
  PublishedCrossLayer out;
  out.layout = files.layout;
  const auto file_of = [&](Index l) { return concat(files.stem, l, ".safetensors"); };
  const auto missing = [&](Index l, Index layers) {
    throw_file(files.folder.string(), ": layer ", l, " of a cross-layer transcoder of ", layers, " is missing; it would be in ",
               file_of(l));
  };
  if (!files.at.contains(0)) missing(0, files.at.empty() ? 1 : files.at.rbegin()->first + 1);
  const auto same = [&](const CrossLayerPart& part, std::string_view what, Index is, Index first) {
    if (is != first)
      throw_file(part.sae.tensors.file(), ": layer ", part.layer, " has ", is, " ", what, ", layer 0 has ", first,
                 "; all layers of a cross-layer transcoder have as many");
  };
  for (Index l = 0, layers = 1; l < layers; ++l) {
    const auto found = files.at.find(l);
    if (found == files.at.end()) missing(l, layers);
    CrossLayerPart part = read_part(files, l, found->second);
    if (l == 0) {
      layers = part.layers;
      if (const Index last = files.at.rbegin()->first; last >= layers)
        throw_file(files.folder.string(), ": there is a layer ", last, ", and the decoder of layer 0 writes to ", layers,
                   " layers, the first of which is 0");
    } else {
      const CrossLayerPart& first = out.parts.front();
      same(part, "layers to write to, the earlier ones counted", part.layers, layers);
      same(part, "numbers in a row", part.sae.d_in, first.sae.d_in);
      same(part, "latents", part.sae.latents, first.sae.latents);
      if (part.sae.architecture != first.sae.architecture)
        throw_file(part.sae.tensors.file(), ": layer ", l, " is a ", part.sae.architecture, ", layer 0 a ",
                   first.sae.architecture);
    }
    const auto list = [&](const TensorSet& set) {
      const std::string name = std::filesystem::path(set.file()).filename().string();
      for (const auto& [tensor, array] : set.arrays())
        out.tensors[concat(name, ": ", tensor)] = {std::string(to_string(array.dtype)), array.shape};
    };
    list(part.sae.tensors);
    list(part.decoder);
    out.parts.push_back(std::move(part));
  }
  CrossLayerPart& first = out.parts.front();
  out.file = files.config.empty() ? files.at.at(0) : files.config;
  out.dtype = to_string(first.sae.given.at("W_dec").array.dtype);
  out.d_in = first.sae.d_in;
  out.latents = first.sae.latents;
  out.skip = first.sae.skip;
  out.architecture = first.sae.architecture;
  read_cross_layer_settings(files.config, first, out.metadata, out.config);
  return out;
}

}  // namespace detail

/// What the files of a cross-layer transcoder of any layout say, from its folder or one of its files: weights are not read yet.
/// \throws FileError  nothing is there, or none; a layer is missing; layers do not fit each other or the settings.
inline PublishedCrossLayer read_published_cross_layer(const std::filesystem::path& asked) {
  const std::filesystem::path path = find_sae(asked).path;
  const std::optional<detail::CrossLayerFiles> files = detail::find_cross_layer(path);
  if (!files) {
    std::error_code error;
    if (!std::filesystem::exists(path, error)) throw_file(path.string(), ": there is no such file or folder");
    const bool is_folder = std::filesystem::is_directory(path, error);
    if (const auto config = (is_folder ? path : path.parent_path()) / detail::saelens_config_name; detail::is_file(config))
      static_cast<void>(detail::read_cross_layer_config(config));  // says what it is
    throw_file(
        path.string(),
        ": is no cross-layer transcoder; one is a folder with cfg.json, with W_enc_0.safetensors and W_dec_0.safetensors, or "
        "with files like params_layer_0.safetensors whose w_dec has an axis of layers");
  }
  if (files->layout != "saelens") return detail::published_cross_layer(*files);
  const SaelensConfig config = detail::read_cross_layer_config(files->config);
  PublishedCrossLayer out = detail::published_cross_layer(config);
  AnyActivation activation = detail::SaelensReader<AnyActivation>::read(config);
  detail::read_cross_layer_rank(config, activation);
  for (CrossLayerPart& part : out.parts) part.sae.activation = activation;
  return out;
}

/// Whether a whole cross-layer transcoder lies there (a file of one of its layers is a transcoder, which `load` opens).
inline bool is_cross_layer(const std::filesystem::path& path) {
  const std::optional<detail::CrossLayerFiles> files = detail::find_cross_layer(find_sae(path).path);
  return files && !files->named;
}

}  // namespace sae::inline SAE_ABI
