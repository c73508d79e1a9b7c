#pragma once
#include <sae/files/json.hpp>
#include <sae/files/output_folder.hpp>
#include <sae/formats/package.hpp>
#include <sae/formats/saelens_architectures.hpp>
#include <sae/formats/temporal.hpp>

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

// The layout of SAELens 6: a folder with
//   cfg.json                  d_in, d_sae, dtype, apply_b_dec_to_input, normalize_activations, reshape_activations, metadata,
//                             architecture, and the architecture's own settings
//   sae_weights.safetensors   W_enc [D x F] (the transpose of ours), b_enc [F], W_dec [F x D], b_dec [D], and the architecture's own;
//                             read in shards as well (files/safetensors_index.hpp), of which SAELens reads none
// A transcoder's cfg.json has d_out, its W_dec is [F x D_out] and its b_dec [D_out]; with a skip there is W_skip [D_out x D_in]. Its
// architecture is "transcoder" or "skip_transcoder", behind the activation's: "jumprelu_skip_transcoder" ("standard" is left out).
// A TemporalSae is "temporal": no b_enc, W_enc where it is not tied, and attn_layers.L.NAME.weight and .bias as TemporalParameters has them.
// Source: SAELens 6.54, saes/sae.py (SAEConfig.to_dict, save_model), saes/standard_sae.py, saes/topk_sae.py, saes/jumprelu_sae.py,
// saes/temporal_sae.py, saes/transcoder.py (ReLU and JumpReLU alone: "topk_transcoder" and its like are names of ours).
namespace sae::inline SAE_ABI {

/// What SAELens' table of releases says about a SAE beside its files (formats/saelens_releases.hpp).
struct SaelensOverrides {
  std::string normalize_activations = {};  ///< in the place of cfg.json's; empty: cfg.json's stands
  /// Rows are multiplied by it before they are encoded where normalize_activations is "expected_average_only_in"; 0: unknown.
  double norm_scaling_factor = 0;
};

namespace detail {

/// A TemporalSae's architecture, and its name for rows that are multiplied by one number.
inline constexpr std::string_view saelens_temporal = "temporal", saelens_constant_scale = "constant_scalar_rescale";

/// SAELens' name of what a model does to its rows.
inline const char* saelens_normalisation(InputNormalisation kind) {
  constexpr const char* names[] = {"none", "constant_norm_rescale", "layer_norm"};
  return names[static_cast<int>(kind)];
}

/// cfg.json of SAELens before 6 by the names of today; what has `metadata` is of today.
/// Source: SAELens 6.54, loading/pretrained_sae_loaders.py, handle_pre_6_0_config.
inline nlohmann::json modern_saelens(nlohmann::json json, const std::filesystem::path& file) {
  const auto has = [&](std::string_view name) { return json_find(json, name, file) != nullptr; };
  const char* const function = has("activation_fn") ? "activation_fn" : "activation_fn_str";
  const char* const hook = has("hook_name") ? "hook_name" : "hook_point";
  if (has("metadata") || (!has(function) && !has(hook))) return json;
  if (!has("architecture")) json["architecture"] = "standard";
  if (const std::string name = json_string_or(json, function, "relu", file); name == "topk") {
    json["architecture"] = "topk";
    json["k"] = json_require(json_require(json, "activation_fn_kwargs", file), "k", file);
  } else if (name != "relu") {
    throw_field(file, function, json.at(function), "\"relu\" or \"topk\"");
  }
  if (!has("normalize_activations")) {
    json["normalize_activations"] = "none";
  } else if (auto& normalised = json["normalize_activations"]; normalised.is_boolean()) {
    normalised = normalised.get<bool>() ? "expected_average_only_in" : "none";
  }
  const std::string hook_name = json_string_or(json, hook, "", file);
  if (!has("reshape_activations"))
    json["reshape_activations"] = hook_name.find("hook_z") != std::string::npos ? "hook_z" : "none";
  nlohmann::json metadata = {{"hook_name", hook_name}};
  for (const char* const name :
       {"model_name", "context_size", "prepend_bos", "dataset_path", "neuronpedia_id", "hook_head_index"})
    if (has(name)) metadata[name] = json[name];
  if (has("hook_point_head_index")) metadata["hook_head_index"] = json["hook_point_head_index"];
  json["metadata"] = std::move(metadata);
  return json;
}

inline constexpr std::string_view saelens_transcoder_suffix = "transcoder", saelens_skip_suffix = "skip_";

/// The architecture of a transcoder whose activation has this one.
inline std::string saelens_transcoder_architecture(std::string_view activation, bool skip) {
  return concat(activation == SaelensLayout<ReLU>::architecture ? "" : concat(activation, "_"), skip ? saelens_skip_suffix : "",
                saelens_transcoder_suffix);
}
/// Fills activation, d_out and skip from architecture.
inline void read_saelens_kind(SaelensConfig& out) {
  std::string_view rest = out.architecture;
  out.activation = out.architecture;
  if (out.architecture == "batchtopk" || out.architecture == "matryoshka_batchtopk") {
    out.running_threshold = true;  // codes depend on the batch in training alone
    out.activation = SaelensLayout<JumpReLU>::architecture;
    return;
  }
  if (!rest.ends_with(saelens_transcoder_suffix)) return;
  rest.remove_suffix(saelens_transcoder_suffix.size());
  out.skip = rest.ends_with(saelens_skip_suffix);
  if (out.skip) rest.remove_suffix(saelens_skip_suffix.size());
  if (!rest.empty() && !rest.ends_with('_')) return;  // some other word
  out.activation = rest.empty() ? SaelensLayout<ReLU>::architecture : rest.substr(0, rest.size() - 1);
  out.d_out = json_integer(out.json, "d_out", out.file, 1, Index{1} << 30);
  if (json_bool_or(out.json, "apply_b_dec_to_input", false, out.file))
    throw_file(out.file.string(),
               ": apply_b_dec_to_input = true does not fit a transcoder, whose b_dec is in the units of its output");
  out.subtract_decoder_bias = false;
}

inline constexpr const char* saelens_config_name = "cfg.json";
inline constexpr const char* saelens_weights_name = "sae_weights.safetensors";

inline bool is_saelens_weights(const std::filesystem::path& path) {
  return path.filename() == saelens_weights_name || path.filename() == safetensors_index_of(saelens_weights_name);
}

/// Whether SAELens' two files lie there.
inline bool is_saelens(const std::filesystem::path& path) {
  std::error_code error;
  const std::filesystem::path weights = weights_at(path);
  return is_saelens_weights(weights) && std::filesystem::is_regular_file(weights.parent_path() / saelens_config_name, error);
}

/// The folder of a SAE, from itself or one of its two files.
inline std::filesystem::path saelens_folder(const std::filesystem::path& path) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status)) throw_file(path.string(), ": there is no such file or folder");
  if (std::filesystem::is_directory(status)) return path;
  if (path.filename() == saelens_config_name || is_saelens_weights(index_of_shard(path).value_or(path)))
    return path.has_parent_path() ? path.parent_path() : ".";
  throw_file(path.string(), ": is no SAE; one is a folder with ", saelens_config_name, " and ", saelens_weights_name);
}

inline SaelensMetadata saelens_metadata(const SaelensConfig& config) {
  SaelensMetadata out;
  const nlohmann::json* const found = json_find(config.json, "metadata", config.file);
  if (found == nullptr) return out;
  if (!found->is_object()) throw_field(config.file, "metadata", *found, "an object");
  out.model_name = json_string_or(*found, "model_name", "", config.file);
  out.hook_name = json_string_or(*found, "hook_name", "", config.file);
  out.context_size = json_integer_or(*found, "context_size", 0, config.file, 0);
  if (json_find(*found, "prepend_bos", config.file) != nullptr) out.prepend_bos = json_bool(*found, "prepend_bos", config.file);
  out.dataset_path = json_string_or(*found, "dataset_path", "", config.file);
  out.other = *found;
  for (const char* name : {"model_name", "hook_name", "context_size", "prepend_bos", "dataset_path"}) out.other.erase(name);
  return out;
}

inline nlohmann::ordered_json saelens_json(const SaelensMetadata& metadata) {
  nlohmann::ordered_json out = nlohmann::ordered_json::object();
  if (!metadata.model_name.empty()) out["model_name"] = metadata.model_name;
  if (!metadata.hook_name.empty()) out["hook_name"] = metadata.hook_name;
  if (metadata.context_size > 0) out["context_size"] = metadata.context_size;
  if (metadata.prepend_bos) out["prepend_bos"] = *metadata.prepend_bos;
  if (!metadata.dataset_path.empty()) out["dataset_path"] = metadata.dataset_path;
  if (!metadata.other.is_null() && !metadata.other.is_object())
    throw_value("SaelensMetadata: other is not a JSON object of further fields");
  for (const auto& field : metadata.other.items()) out[field.key()] = nlohmann::ordered_json(field.value());
  return out;
}

/// to <- from^T, of that shape already.
template <class From, class To>
void transpose(const Tensor<From>& from, Tensor<To>& to) {
  for (Index i = 0; i < to.rows(); ++i)
    for (Index j = 0; j < to.cols(); ++j) to.row(i)[j] = stored_as<To>(number(from.row(j)[i]));
}

}  // namespace detail

/// Checks what cfg.json holds, once it was read. Unknown fields are tolerated; any architecture passes here.
/// \throws FileError  a field that is needed is missing or ill-typed, or says what no model here does.
inline SaelensConfig parse_saelens_config(nlohmann::json json, std::filesystem::path path,
                                          const SaelensOverrides& overrides = {}) {
  SaelensConfig out;
  out.file = std::move(path);
  const auto& file = out.file;
  if (!overrides.normalize_activations.empty() && json.is_object())
    json["normalize_activations"] = overrides.normalize_activations;
  out.json = detail::modern_saelens(std::move(json), file);
  if (detail::json_find(out.json, "architecture", file) == nullptr) throw_file(file.string(), ": architecture is missing");
  out.architecture = json_string(out.json, "architecture", file);
  out.d_in = json_integer(out.json, "d_in", file, 1, Index{1} << 30);
  out.latents = json_integer(out.json, "d_sae", file, 1, Index{1} << 30);
  out.subtract_decoder_bias = json_bool_or(out.json, "apply_b_dec_to_input", true, file);
  detail::read_saelens_kind(out);

  const std::string normalisation = json_string_or(out.json, "normalize_activations", "none", file);
  if (normalisation == detail::saelens_constant_scale && out.architecture == detail::saelens_temporal) {
    // read with the rest of its settings
  } else if (normalisation == "expected_average_only_in" && overrides.norm_scaling_factor > 0) {
    out.input_scale = overrides.norm_scaling_factor;
  } else if (normalisation == "expected_average_only_in") {
    out.warnings.push_back(
        "normalize_activations is expected_average_only_in: trained on rows scaled to a mean norm of sqrt(d_in); unless that "
        "scale was folded into the weights, the rows must be scaled before they are encoded");
  } else if (normalisation == "constant_norm_rescale") {
    out.input_normalisation = InputNormalisation::constant_norm;
  } else if (normalisation == "layer_norm") {
    out.input_normalisation = InputNormalisation::layer_norm;
    if (out.d_in < 2) throw_file(file.string(), ": normalize_activations = \"layer_norm\" needs a d_in of at least 2");
  } else if (normalisation != "none") {
    throw_file(file.string(), ": normalize_activations = \"", detail::printable(normalisation),
               "\" is not supported; \"none\", \"expected_average_only_in\", \"constant_norm_rescale\" and \"layer_norm\" are");
  }
  if (out.input_normalisation != InputNormalisation::none && out.d_out > 0)
    throw_file(file.string(), ": normalize_activations = \"", normalisation,
               "\" is not supported of a transcoder; \"none\" and \"expected_average_only_in\" are");
  const std::string reshape = json_string_or(out.json, "reshape_activations", "none", file);
  if (reshape == "hook_z") {
    out.warnings.push_back(
        detail::concat("reshape_activations is hook_z: the outputs of all attention heads must be joined into rows of ",
                       out.d_in, " numbers before they are encoded"));
  } else if (reshape != "none") {
    throw_file(file.string(), ": reshape_activations = \"", detail::printable(reshape),
               "\" is not supported; \"none\" and \"hook_z\" are");
  }
  out.metadata = detail::saelens_metadata(out);
  return out;
}
/// Reads and checks cfg.json of a folder (or of one of its files).
inline SaelensConfig read_saelens_config(const std::filesystem::path& path, const SaelensOverrides& overrides = {}) {
  const std::filesystem::path file = detail::saelens_folder(path) / detail::saelens_config_name;
  return parse_saelens_config(read_json(file), file, overrides);
}

/// What the two files say; the activation's settings are `SaelensReader`'s to read.
inline PublishedSae published_saelens(const SaelensConfig& config) {
  PublishedSae out;
  out.layout = "saelens";
  out.file = config.file;
  out.tensors =
      TensorSet(SafetensorsFile(detail::safetensors_or_index(config.file.parent_path() / detail::saelens_weights_name)));
  out.architecture = config.architecture;
  out.d_in = config.d_in;
  out.latents = config.latents;
  out.d_out = config.d_out;
  out.skip = config.skip;
  out.subtract_decoder_bias = config.subtract_decoder_bias;
  out.input_normalisation = config.input_normalisation;
  out.metadata = config.metadata;
  out.config = config.json;
  out.warnings = config.warnings;
  if (out.tensors.contains("W_enc")) out.take("W_enc", "W_enc", true);
  if (!out.tensors.contains("threshold") && out.tensors.contains("log_threshold"))  // of old checkpoints
    out.take("threshold", "log_threshold", detail::mapped(out.vector("log_threshold"), [](double x) { return std::exp(x); }));
  if (config.input_scale != 1) {
    out.take("W_enc", "W_enc", true).scale = config.input_scale;
    out.take("W_dec", "W_dec").scale = 1 / config.input_scale;
    out.take("b_dec", "b_dec").scale = 1 / config.input_scale;
  }
  const char* const scaling = "scaling_factor";  // before 6; 1 where nothing was finetuned, and not applied since
  if (out.tensors.contains(scaling)) {
    const Tensor<double> factors = out.vector(scaling);
    if (std::all_of(factors.data(), factors.data() + factors.size(), [](double x) { return x == 1; }))
      out.passed_over.insert(scaling);
  }
  if (config.running_threshold) {
    const double threshold = out.vector("topk_threshold", 1)[0];
    out.fold_decoder_norms = json_bool_or(config.json, "rescale_acts_by_decoder_norm", true, config.file);
    if (const ArrayView& W_dec = out.tensors.at("W_dec"); W_dec.shape.empty() || W_dec.shape[0] != out.latents)
      throw_file(out.tensors.file(), ": tensor W_dec has shape ", detail::shape_text(W_dec.shape),
                 ", it should have d_sae = ", out.latents, " rows");
    Tensor<double> theta = detail::all_equal(out.latents, threshold);
    if (out.fold_decoder_norms) {  // z |d_i| passes the threshold
      if (!out.given.contains("W_dec")) out.take("W_dec", "W_dec");
      const Tensor<double> norms =
          detail::stored_row_norms(out.given["W_dec"], out.tensors.file(), out.latents, out.d_out > 0 ? out.d_out : out.d_in);
      for (Index i = 0; i < theta.size(); ++i)
        if (norms[i] > 0) theta[i] /= norms[i];
    }
    out.take("threshold", "topk_threshold", std::move(theta));
    out.warnings.push_back(
        detail::concat("a training of ", config.architecture, ": rows are encoded by its running threshold, ", threshold));
  }
  return out;
}
/// The same of a folder, or of one of its files, with an activation that is known at run time alone.
inline PublishedSae published_saelens(const std::filesystem::path& path, const SaelensOverrides& overrides = {}) {
  SaelensConfig config = read_saelens_config(path, overrides);
  if (config.architecture == detail::saelens_temporal) {
    PublishedSae out = published_saelens(config);
    out.temporal = detail::temporal_settings(config.json, config.file, config.latents);
    out.temporal->options.subtract_decoder_bias = config.subtract_decoder_bias;
    out.temporal->options.input_normalisation = config.input_normalisation;
    if (json_string_or(config.json, "normalize_activations", "none", config.file) == detail::saelens_constant_scale)
      out.temporal->options.input_scale = detail::temporal_scale(config.json, "activation_normalization_factor", config.file);
    return out;
  }
  constexpr std::string_view glu = "glu_";
  const bool gated = config.activation.starts_with(glu);
  if (gated) config.activation.erase(0, glu.size());
  const AnyActivation activation = detail::SaelensReader<AnyActivation>::read(config);
  PublishedSae out = published_saelens(config);
  out.activation = activation;
  out.glu = gated;
  if (const bool* const by_norm = detail::rank_by_norm(activation); by_norm != nullptr && *by_norm)
    out.fold_decoder_norms = true;
  return out;
}

/// Loads a SAE or a Transcoder whose cfg.json was read already. Weights of any floating kind are read as what the model stores
/// them as, rounded to nearest where that is narrower.
///
/// A TopK with `rescale_acts_by_decoder_norm` is folded (`fold_decoder_norms`), so that its codes are those of SAELens,
/// z |W_dec[i]|, its decoder rows unit vectors and its reconstruction the same.
/// \throws FileError  the model's type does not fit; a tensor is missing, has another shape than d_in and d_sae say, or is not
///                    finite.
template <class Model>
Model load_saelens(const SaelensConfig& config, LoadOptions options = {}) {
  using Activation = typename Model::Activation;
  if (options.warnings != nullptr)
    options.warnings->insert(options.warnings->end(), config.warnings.begin(), config.warnings.end());
  const Activation activation = detail::SaelensReader<Activation>::read(config);
  PublishedSae from = published_saelens(config);
  if (const bool* const by_norm = detail::rank_by_norm(activation); by_norm != nullptr && *by_norm)
    from.fold_decoder_norms = true;
  return build_model<Model>(from, activation, options);
}

/// Loads a SAE that SAELens 6 wrote (or `save_saelens`), from its folder or one of its two files:
///   auto model = sae::load_saelens<sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::TopK>>("my_sae");
/// Where the layout or the architecture is not known beforehand, see formats/load.hpp.
template <class Model>
Model load_saelens(const std::filesystem::path& path, LoadOptions options = {}) {
  return load_saelens<Model>(read_saelens_config(path), options);
}

struct SaelensSaveOptions {
  bool overwrite = false;  ///< replace a SAE that is there
  /// Of all tensors, rounded to nearest: float32, float64, bfloat16 or float16. Default: what the model's weights are stored as.
  std::optional<Dtype> dtype = {};
  /// Weights of more bytes go into several files of at most so many, which SAELens does not read; 0: one file, whatever its size.
  Index shard_bytes = 0;
};

namespace detail {

/// What cfg.json begins with, whatever the architecture.
/// \throws ValueError  a parameter is not finite in the dtype that is written.
template <class Model>
nlohmann::ordered_json begin_saelens_json(const Model& model, Dtype dtype, std::string_view normalisation,
                                          const SaelensMetadata& metadata, const std::filesystem::path& folder) {
  with_floating(dtype, [&]<class To>(To) {
    Model::Parameters::visit(
        [&](std::string_view name, const auto& tensor) {
          const auto lost = [](auto x) { return !std::isfinite(number(stored_as<To>(number(x)))); };
          if (std::any_of(tensor.data(), tensor.data() + tensor.size(), lost))
            throw_value(folder.string(), ": the SAE is not saved: ", name, " holds numbers that are not finite in ",
                        to_string(dtype));
        },
        model.parameters());
  });
  nlohmann::ordered_json config;
  config["d_in"] = model.d_in();
  config["d_sae"] = model.latents();
  config["dtype"] = to_string(dtype);
  config["device"] = "cpu";
  config["apply_b_dec_to_input"] = model.subtracts_decoder_bias();
  config["normalize_activations"] = normalisation;
  config["reshape_activations"] = "none";
  config["metadata"] = saelens_json(metadata);
  return config;
}

/// The tensors of a file of weights, rounded, in the order of their names, as SAELens' writer has them.
template <class Stored>
class SaelensTensors {
 public:
  template <class T>
  void add(std::string_view name, std::vector<Index> shape, const Tensor<T>& tensor) {
    Tensor<Stored> out(tensor.rows(), tensor.cols());
    for (Index i = 0; i < out.size(); ++i) out[i] = stored_as<Stored>(number(tensor[i]));
    tensors_[std::string(name)] = {std::move(shape), std::move(out)};
  }
  /// The transpose.
  template <class T>
  void add_turned(std::string_view name, const Tensor<T>& tensor) {
    Tensor<Stored> out(tensor.cols(), tensor.rows());
    transpose(tensor, out);
    tensors_[std::string(name)] = {{tensor.cols(), tensor.rows()}, std::move(out)};
  }
  void save(const std::filesystem::path& file, const SaelensSaveOptions& options) const {
    SafetensorsWriter out;
    for (const auto& [name, tensor] : tensors_) out.add(name, tensor.first, tensor.second);
    if (options.shard_bytes > 0) return out.save_sharded(file, options.shard_bytes);
    out.save(file, {.overwrite = options.overwrite});
  }

 private:
  std::map<std::string, std::pair<std::vector<Index>, Tensor<Stored>>> tensors_;
};

}  // namespace detail

/// Writes cfg.json and sae_weights.safetensors into a folder that exists, each file whole or not at all: for a program that
/// prepares the folder itself. `save_saelens` makes the folder too. Errors: as there, and shards never overwrite.
template <class Model>
void write_saelens(const Model& model, const std::filesystem::path& folder, const SaelensMetadata& metadata = {},
                   SaelensSaveOptions options = {}) {
  using Scalar = typename Model::Scalar;
  using OfModel = typename Model::Parameters::Stored;
  static_assert(!std::is_same_v<OfModel, std::int8_t>,
                "sae: files hold no weights of 8 bits; save the model that they came from, or with_weights<float>");
  if (const auto inference = inference_model(model)) return write_saelens(*inference, folder, metadata, options);
  const Dtype dtype = options.dtype.value_or(dtype_of<OfModel>());
  if (const bool* const by_norm = detail::rank_by_norm(model.activation()); by_norm != nullptr && *by_norm) {
    if constexpr (std::is_same_v<OfModel, Scalar>) {
      Model folded = model;
      if (folded.parameters().tied()) folded.parameters().W_enc = folded.parameters().W_dec;
      folded.fold_decoder_norms();
      return write_saelens(folded, folder, metadata, options);
    } else {
      throw_value(
          "save_saelens: the SAE ranks by decoder norms, which are folded into weights of float; widen it first "
          "(with_weights)");
    }
  }
  nlohmann::ordered_json config = detail::begin_saelens_json(
      model, dtype, detail::saelens_normalisation(detail::input_normalisation_of(model)), metadata, folder);
  detail::write_saelens_settings(model.activation(), model.parameters().activation, config);
  const std::string_view architecture = detail::saelens_architecture(model.activation());
  config["architecture"] = architecture;
  if constexpr (requires { model.has_skip(); }) {
    config["architecture"] = detail::saelens_transcoder_architecture(architecture, model.has_skip());
    config["d_out"] = model.d_out();
  }
  save_json(folder / detail::saelens_config_name, config, {.overwrite = options.overwrite});

  const auto& parameters = model.parameters();
  detail::with_floating(dtype, [&]<class Stored>(Stored) {
    const Index width = model.d_in(), latents = model.latents(), out_width = parameters.output_width();
    detail::SaelensTensors<Stored> tensors;
    tensors.add("W_dec", {latents, out_width}, parameters.W_dec);
    if (!detail::has_tied_weights(model.activation()))  // tied by choice: Python reads it as any other
      tensors.add_turned("W_enc", parameters.encoder());
    tensors.add("b_dec", {out_width}, parameters.b_dec);
    if (parameters.W_skip.size() > 0) tensors.add("W_skip", {out_width, width}, parameters.W_skip);
    if (parameters.b_enc.size() > 0) tensors.add("b_enc", {latents}, parameters.b_enc);
    Model::Parameters::visit_activation(
        [&](std::string_view name, const auto& tensor) { tensors.add(name, detail::stored_shape(tensor), tensor); },
        parameters);
    tensors.save(folder / detail::saelens_weights_name, options);
  });
}

/// The same of a TemporalSae, SAELens' "temporal".
template <class Scalar>
void write_saelens(const TemporalSae<Scalar>& model, const std::filesystem::path& folder, const SaelensMetadata& metadata = {},
                   SaelensSaveOptions options = {}) {
  const Dtype dtype = options.dtype.value_or(dtype_of<Scalar>());
  const TemporalOptions& settings = model.options();
  const auto& parameters = model.parameters();
  nlohmann::ordered_json config = detail::begin_saelens_json(
      model, dtype,
      settings.input_scale != 1 ? detail::saelens_constant_scale : detail::saelens_normalisation(settings.input_normalisation),
      metadata, folder);
  config["n_heads"] = settings.heads;
  config["n_attn_layers"] = parameters.layers.size();
  config["bottleneck_factor"] = model.bottleneck();
  config["sae_diff_type"] = settings.k > 0 ? "topk" : "relu";
  config["kval_topk"] = settings.k > 0 ? nlohmann::ordered_json(settings.k) : nullptr;
  config["tied_weights"] = parameters.tied();
  config["activation_normalization_factor"] = settings.input_scale;
  config["architecture"] = detail::saelens_temporal;
  save_json(folder / detail::saelens_config_name, config, {.overwrite = options.overwrite});
  detail::with_floating(dtype, [&]<class Stored>(Stored) {
    detail::SaelensTensors<Stored> tensors;
    TemporalParameters<Scalar>::visit(
        [&](std::string_view name, const auto& tensor) {
          if (name == "W_enc")
            tensors.add_turned(name, tensor);
          else if (name == "b_dec" || name.ends_with(".bias"))
            tensors.add(name, {tensor.cols()}, tensor);
          else
            tensors.add(name, {tensor.rows(), tensor.cols()}, tensor);
        },
        parameters);
    tensors.save(folder / detail::saelens_weights_name, options);
  });
}

/// Saves a SAE or a Transcoder as SAELens 6 does, so that Python reads it as it is: a folder that appears whole or not at all. ReLU is its
/// "standard", TopK its "topk", JumpReLU its "jumprelu"; a TopK that ranks by the decoder norm is folded first (`fold_decoder_norms`, on a copy).
/// \throws FileError   the folder exists and `overwrite` is off (or it holds no cfg.json); it cannot be written.
/// \throws ValueError  a parameter is not finite in the dtype that is written.
template <class Model>
void save_saelens(const Model& model, const std::filesystem::path& folder, const SaelensMetadata& metadata = {},
                  SaelensSaveOptions options = {}) {
  OutputFolder out(folder, {.overwrite = options.overwrite, .marker = detail::saelens_config_name});
  write_saelens(model, out.partial(), metadata, options);
  out.commit();
}

}  // namespace sae::inline SAE_ABI
