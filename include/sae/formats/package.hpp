#pragma once
#include <sae/files/yaml.hpp>
#include <sae/formats/published.hpp>

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace sae::inline SAE_ABI {

/// Where the files of a SAE lie, before anybody knows whose they are.
struct Package {
  std::filesystem::path weights;  ///< the file of arrays
  std::filesystem::path config;   ///< JSON or YAML beside it (or above a folder `checkpoints`); empty: there is none
  nlohmann::json json = nullptr;  ///< what it says
  TensorSet tensors;

  bool has(std::string_view name) const { return tensors.contains(name); }
  template <class... Names>
  bool has_all(const Names&... names) const {
    return (has(names) && ...);
  }
  /// The config's value of a name, nullptr without one.
  const nlohmann::json* find(std::string_view name) const {
    return json.is_object() ? detail::json_find(json, name, config) : nullptr;
  }
  /// What messages about settings name.
  const std::filesystem::path& about() const { return config.empty() ? weights : config; }
};

namespace detail {

/// Names by which SAEs are published, the first that is there being taken.
inline constexpr std::array<std::string_view, 8> weight_names{
    "sae_weights.safetensors",       "sae.safetensors", "params.safetensors", "params.npz", "ae.pt", "latest_ckpt.safetensors",
    "checkpoints/final.safetensors", "autoencoder.pt"};
inline constexpr std::array<std::string_view, 4> config_names{"cfg.json", "config.json", "hyperparams.json", "conf.yaml"};
/// Settings of several files of circuit-tracer's kind, which the readers of those read.
inline constexpr std::string_view circuit_tracer_config = "config.yaml";
/// Files beside weights that are none.
inline constexpr std::array<std::string_view, 4> state_names{"trainer_state.pt", "sparsity.safetensors",
                                                             "activations_store_state.safetensors", "optimizer.pt"};

inline bool is_file(const std::filesystem::path& path) {
  std::error_code error;
  return std::filesystem::is_regular_file(path, error);
}
inline bool is_weight_file(const std::filesystem::path& path) {
  constexpr std::string_view endings[] = {".safetensors", ".npz", ".pt", ".pth"};
  const std::string name = path.filename().string(), ending = path.extension().string();
  if (is_safetensors_index(path)) return true;
  return std::find(std::begin(endings), std::end(endings), ending) != std::end(endings) &&
         std::find(state_names.begin(), state_names.end(), name) == state_names.end();
}

/// The files that config.yaml of circuit-tracer lists, one a layer; those of the hub by the name that it has there,
/// "REPOSITORY/FILE" of "hf://REPOSITORY/FILE?revision=R".
inline std::vector<std::string> listed_transcoders(const nlohmann::json& config, const std::filesystem::path& file) {
  std::vector<std::string> out;
  const nlohmann::json* const list = json_find(config, "transcoders", file);
  if (list == nullptr) return out;
  if (!list->is_array()) throw_field(file, "transcoders", *list, "a list of files, one a layer");
  for (const nlohmann::json& item : *list) {
    const nlohmann::json& text = item.is_object() ? json_require(item, "filepath", file) : item;  // before 2025-07
    if (!text.is_string()) throw_field(file, "an item of transcoders", text, "the path of a file");
    out.push_back(text.get<std::string>());
    if (std::string& path = out.back(); path.starts_with("hf://")) path = path.substr(5, path.find('?', 5) - 5);
  }
  return out;
}

/// The file of arrays that a path means: itself, or the one in a folder; of a weight file in shards its index.
inline std::filesystem::path weights_at(const std::filesystem::path& path) {
  namespace fs = std::filesystem;
  std::error_code error;
  const auto status = fs::status(path, error);
  if (!fs::exists(status)) throw_file(path.string(), ": there is no such file or folder");
  if (!fs::is_directory(status)) {
    if (is_weight_file(path)) return index_of_shard(path).value_or(path);
    const std::string name = path.filename().string();
    if (name == circuit_tracer_config || std::find(config_names.begin(), config_names.end(), name) != config_names.end())
      return weights_at(path.has_parent_path() ? path.parent_path() : fs::path("."));
    throw_file(path.string(), ": is no SAE; one is a folder, or a file of weights (.safetensors, .npz, .pt or .pth)");
  }
  for (const std::string_view name : weight_names)
    if (const fs::path file = safetensors_or_index(path / name); fs::is_regular_file(file, error)) return file;
  std::vector<fs::path> found;
  for (fs::directory_iterator at(path, error), end; !error && at != end; at.increment(error))
    if (is_weight_file(at->path()) && !index_of_shard(at->path())) found.push_back(at->path());
  if (error) throw_file(path.string(), ": cannot be listed: ", error.message());
  std::sort(found.begin(), found.end());
  if (found.size() == 1) return found.front();
  if (found.empty()) {
    if (const fs::path config = path / circuit_tracer_config; is_file(config))
      if (const nlohmann::json settings = read_yaml(config); settings.is_object())
        if (const std::vector<std::string> listed = listed_transcoders(settings, config); !listed.empty())
          throw_file(config.string(), ": lists ", listed.size(),
                     " transcoders, one a layer, that lie elsewhere; name the one that is meant: ", printable(listed.front()));
    throw_file(path.string(),
               ": is no SAE; there is no file of weights in it (sae_weights.safetensors, params.npz, ae.pt and the like)");
  }
  throw_file(path.string(), ": holds ", found.size(), " files of weights (", found[0].filename().string(), ", ",
             found[1].filename().string(), found.size() > 2 ? ", ..." : "", "); name the one that is meant, as in ",
             found[0].string());
}

/// A number that stands in a path behind a word: 12 of "layer_12/width_16k" behind "layer_". The last one counts.
inline std::optional<Index> number_in(std::string_view path, std::string_view word) {
  std::optional<Index> out;
  for (std::size_t at = path.find(word); at != std::string_view::npos; at = path.find(word, at + 1)) {
    Index value = 0;
    const char* const begin = path.data() + at + word.size();
    const auto [end, error] = std::from_chars(begin, path.data() + path.size(), value);
    if (error == std::errc() && value >= 0) out = value;
  }
  return out;
}

/// The hook of TransformerLens at a module of a Hugging Face model, where it is one: "model.layers.12.output" is
/// "blocks.12.hook_resid_post".
inline std::string hook_of_module(std::string_view module) {
  constexpr std::string_view layers = "layers.";
  const std::size_t at = module.find(layers);
  if (at == std::string_view::npos) return {};
  std::string_view rest = module.substr(at + layers.size());
  const std::size_t digits = std::min(rest.find_first_not_of("0123456789"), rest.size());
  if (digits == 0) return {};
  const std::string_view layer = rest.substr(0, digits);
  rest.remove_prefix(digits);
  constexpr std::pair<std::string_view, std::string_view> hooks[] = {
      {".output", "hook_resid_post"},
      {"", "hook_resid_post"},
      {".input", "hook_resid_pre"},
      {".self_attn.o_proj.input", "attn.hook_z"},
      {".mlp.output", "hook_mlp_out"},
      {".mlp", "hook_mlp_out"},
      {".post_feedforward_layernorm.output", "hook_mlp_out"},
      {".pre_feedforward_layernorm.output", "ln2.hook_normalized"},
  };
  for (const auto& [name, hook] : hooks)
    if (rest == name) return concat("blocks.", layer, ".", hook);
  return {};
}

/// Every number of a vector through f.
template <class F>
Tensor<double> mapped(Tensor<double> values, const F& f) {
  for (Index i = 0; i < values.size(); ++i) values[i] = f(values[i]);
  return values;
}
/// A vector of equal numbers.
inline Tensor<double> all_equal(Index size, double value) {
  return mapped(Tensor<double>(1, size), [&](double) { return value; });
}
/// Where a peer's codes are z[z > theta]: below 0 they are negative, which no JumpReLU here is.
inline void require_thresholds(const PublishedSae& sae, std::string_view name) {
  const Tensor<double> theta = sae.vector(name, sae.latents);
  for (Index i = 0; i < theta.size(); ++i)
    if (theta[i] < 0)
      throw_file(sae.tensors.file(), ": tensor ", name, ": the number at [", i, "] is ", theta[i],
                 "; a threshold below 0 lets codes be negative, which no model here does");
}
/// Calls use(i, row i) for every row of ours [rows x cols], in float64, of a tile that is read at a time: a large matrix is never whole in memory.
/// \throws FileError  it has another shape; with `check_finite`, a number is not finite.
template <class Use>
void for_each_stored_row(const StoredMatrix& matrix, const std::string& file, Index rows, Index cols, bool check_finite,
                         const Use& use) {
  constexpr Index tile = 256;
  const ArrayView& all = matrix.array;
  std::vector<Index> shape{rows, cols};
  if (matrix.transposed) std::swap(shape[0], shape[1]);
  if (all.shape != shape)
    throw_file(file, ": tensor ", matrix.name, " has shape ", shape_text(all.shape), ", it should be ", shape_text(shape));
  const std::size_t axis = matrix.transposed ? 1 : 0;
  for (Index first = 0; first < rows; first += tile) {
    const Index count = std::min(tile, rows - first);
    StoredMatrix part = matrix;
    part.array.shape[axis] = count;
    part.array.strides = {all.stride(0), all.stride(1)};
    part.array.data = all.data + first * all.stride(axis) * item_size(all.dtype);
    const Tensor<double> w = read_stored<double>(part, {count, cols}, file, check_finite);
    for (Index i = 0; i < count; ++i) use(first + i, w.row(i));
  }
}
/// |row i| of our W_dec [F x D_out], in float64.
inline Tensor<double> stored_row_norms(const StoredMatrix& matrix, const std::string& file, Index rows, Index cols) {
  Tensor<double> out(1, rows);
  for_each_stored_row(matrix, file, rows, cols, false,
                      [&](Index i, const double* row) { out[i] = std::sqrt(kernels::squared_norm(row, cols)); });
  return out;
}

/// Sizes of the matrices of an encoder and a decoder, from biases that no transposing changes.
/// \param names  of the file's tensors: encoder, decoder, b_enc
inline void read_sizes(const Package& package, PublishedSae& out, std::string_view encoder, std::string_view decoder,
                       std::string_view b_enc) {
  const auto two = [&](std::string_view name) -> const std::vector<Index>& {
    const auto& shape = package.tensors.at(name).shape;
    if (shape.size() != 2)
      throw_file(package.tensors.file(), ": tensor ", name, " has shape ", shape_text(shape), ", it should have two axes");
    return shape;
  };
  out.latents = package.tensors.at(b_enc).elements();
  const auto other = [&](std::string_view name) {
    const auto& shape = two(name);
    if (shape[0] != out.latents && shape[1] != out.latents)
      throw_file(package.tensors.file(), ": tensor ", name, " has shape ", shape_text(shape), ", and ", b_enc, " has ",
                 out.latents, " numbers: one of its sizes should be that");
    return shape[0] == out.latents ? shape[1] : shape[0];
  };
  out.d_in = other(encoder);
  out.d_out = other(decoder);
  if (out.latents < 1 || out.d_in < 1 || out.d_out < 1)
    throw_file(package.tensors.file(), ": tensor ", encoder, " has shape ", shape_text(two(encoder)), ", which has no numbers");
}

/// What every reader begins with.
inline PublishedSae begin_reading(const Package& package, std::string layout) {
  PublishedSae out;
  out.layout = std::move(layout);
  out.file = package.about();
  out.tensors = package.tensors;
  out.config = package.json;
  if (const std::size_t bytes = package.tensors.unpacked(); bytes > 0)
    out.warnings.push_back(concat("its arrays are deflated: ", (bytes + 999'999) / 1'000'000,
                                  " MB were unpacked into memory; stored ones would be read where they lie"));
  return out;
}

}  // namespace detail

/// Finds the files of a SAE: in a folder, by the names under which SAEs are published or as the one file of weights there; or of a
/// file of weights, or of a config, those beside it.
/// \throws FileError  there is none, or several; a file is malformed.
inline Package open_package(const std::filesystem::path& path) {
  namespace fs = std::filesystem;
  Package out;
  out.weights = detail::weights_at(path);
  const fs::path folder = out.weights.has_parent_path() ? out.weights.parent_path() : fs::path(".");
  std::error_code error;
  for (const fs::path& where : {folder, folder.filename() == "checkpoints" ? folder.parent_path() : folder})
    for (const std::string_view name : detail::config_names)
      if (out.config.empty() && fs::is_regular_file(where / name, error)) out.config = where / name;
  if (out.config.extension() == ".json") out.json = read_json(out.config);
  out.tensors = open_tensors(out.weights);
  return out;
}

}  // namespace sae::inline SAE_ABI
