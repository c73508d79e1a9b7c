#pragma once
#include <sae/activations/glu.hpp>
#include <sae/formats/any_sae.hpp>
#include <sae/formats/dictionary_learning.hpp>
#include <sae/formats/gemma_scope.hpp>
#include <sae/formats/linear_layouts.hpp>
#include <sae/formats/llama_scope.hpp>
#include <sae/formats/openai.hpp>
#include <sae/formats/published_cross_layer.hpp>
#include <sae/formats/saelens_releases.hpp>
#include <sae/formats/sparsify.hpp>

#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace sae::inline SAE_ABI {

/// What the files of a SAE or transcoder of any layout say: weights are not read yet. docs/formats.md lists the layouts and how each is
/// told from the others.
/// \throws FileError  nothing is there, or nothing that is known; a file is malformed or says what no model here does.
inline PublishedSae read_published(const std::filesystem::path& asked) {
  const FoundSae at = find_sae(asked);
  if (const auto layers = detail::find_cross_layer(at.path)) return detail::published_layer(*layers, at.path);
  if (detail::is_saelens(at.path)) return published_saelens(at.path, at.overrides);
  const Package package = open_package(at.path);
  // Those that more is known of come first.
  for (const auto read :
       {detail::read_temporal, detail::read_openai, detail::read_llamascopium, detail::read_llama_scope, detail::read_sparsify,
        detail::read_gemma_scope, detail::read_goodfire, detail::read_dictionary_learning, detail::read_qwen_scope,
        detail::read_mwhanna, detail::read_nanda, detail::read_two_linear})
    if (std::optional<PublishedSae> found = read(package)) return *std::move(found);
  std::string there;
  int listed = 0;
  for (const auto& [name, array] : package.tensors.arrays()) {
    if (++listed > 6) break;
    there += detail::concat(there.empty() ? "" : ", ", detail::printable(name), " ", detail::shape_text(array.shape));
  }
  throw_file(package.weights.string(), ": is of no layout that is known; it holds ", there.empty() ? "no tensors" : there,
             listed > 6 ? ", ..." : "");
}

namespace detail {

template <class Activation>
struct GluOf {
  using type = void;
};
template <class Inner>
struct GluOf<Glu<Inner>> {
  using type = Inner;
};

/// The activation that the files name, as a model's type has it.
template <class Activation>
Activation activation_as(const PublishedSae& from, bool glu) {
  using Inner = typename GluOf<Activation>::type;
  constexpr bool is_glu = !std::is_void_v<Inner>;
  if constexpr (is_glu) {
    if (glu) return {.inner = activation_as<Inner>(from, false)};
  } else if (!glu) {
    if (const Activation* const found = from.activation.get<Activation>()) return *found;
  }
  throw_file(from.file.string(), ": is a SAE of ", from.glu ? "a GLU encoder and " : "", from.activation.name,
             ", which does not fit the model it is loaded into, of ", Activation::name);
}
template <>
inline AnyActivation activation_as<AnyActivation>(const PublishedSae& from, bool glu) {
  if (!glu) return from.activation;
  throw_file(from.file.string(), ": has a GLU encoder, which does not fit the model it is loaded into");
}

/// Whether W_enc and W_dec are read where they lie.
/// \throws FileError  that is asked for, and no such model does.
inline bool stays_in_file(const PublishedSae& from, WeightsIn where) {
  const char* const reason = from.temporal ? "a temporal SAE needs its weights in memory"
                             : from.glu    ? "a GLU encoder reads the rows twice"
                             : from.fold_decoder_norms
                                 ? "its codes are in units of the decoder norms, which are folded into the weights"
                             : has_tied_weights(from.activation) ? "a pursuit needs its weights in memory"
                                                                 : nullptr;
  if (where == WeightsIn::file && reason != nullptr)
    throw_file(from.file.string(), ": weights do not stay in the file: ", reason);
  const Index d_out = from.d_out > 0 ? from.d_out : from.d_in;
  return where == WeightsIn::file ||
         (where == WeightsIn::automatic && reason == nullptr && from.latents > (mapped_weights_from - 1) / (from.d_in + d_out));
}

}  // namespace detail

/// The weights of a SAE whose files were read, in a model of this type.
/// \throws FileError  its architecture or its sizes are not the type's; a tensor is missing, has another shape, or is not finite.
template <class Model>
Model load(const PublishedSae& from, LoadOptions options = {}) {
  if constexpr (detail::is_temporal<Model>)
    return build_temporal<typename Model::Scalar>(from, options);
  else
    return build_model<Model>(from, detail::activation_as<typename Model::Activation>(from, from.glu), options);
}

/// Loads a trained SAE or transcoder of any layout that is known (docs/formats.md), from its folder or its file of weights, whoever
/// published it:
///
///   const sae::AnySae sae = sae::load("gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82/params.npz");
///
/// A path where nothing is may be a name of SAELens ("gemma-scope-2b-pt-res-canonical/layer_12/width_16k/canonical") or of the Hugging Face
/// hub, whose files are looked for in the hub's cache on this machine (formats/saelens_releases.hpp, formats/hub.hpp).
/// Codes and reconstructions are those of its publisher's own program, b_dec, thresholds, scales and all. What is odd stands in `warnings`.
/// Large weights stay in the mapped file, of whatever kind and order, and are read by tiles: the same codes, to the last bit. Encoding then
/// costs reading W_enc once for each 256 rows; a file must not change or shrink meanwhile.
/// \param options  check_finite: refuse weights that are NaN or infinite; off for somebody who only looks at what is there
/// \throws FileError  one sentence with the file and what is wrong in it.
inline AnySae load(const std::filesystem::path& path, LoadOptions options = {}) {
  const PublishedSae from = read_published(path);
  std::vector<std::string> warnings = from.warnings;
  if (from.glu && from.d_out > 0) throw_file(from.file.string(), ": is a transcoder with a GLU encoder, which is not read");
  options.warnings = options.warnings == nullptr ? &warnings : options.warnings;
  const bool mapped = detail::stays_in_file(from, options.weights);
  AnySae out = from.temporal ? AnySae(load<TemporalSae<float>>(from, options))
               : from.d_out > 0
                   ? (mapped ? AnySae(load<MappedTranscoder>(from, options)) : AnySae(load<AnyTranscoder>(from, options)))
               : from.glu ? AnySae(load<AnyGluModel>(from, options))
               : mapped   ? AnySae(load<MappedModel>(from, options))
                          : AnySae(load<AnyModel>(from, options));
  for (const auto& [name, array] : from.tensors.arrays())
    out.tensors[name] = {std::string(to_string(array.dtype)), array.shape};
  for (const auto& [ours, matrix] : from.given)
    if (!matrix.file.empty()) out.tensors[matrix.name] = {std::string(to_string(matrix.array.dtype)), matrix.array.shape};
  const auto decoder = from.given.find("W_dec");
  out.dtype = to_string(decoder == from.given.end() ? from.tensors.at("W_dec").dtype : decoder->second.array.dtype);
  out.layout = from.layout;
  out.config = from.config;
  out.metadata = from.metadata;
  out.warnings = std::move(warnings);
  return out;
}
/// The same in a model of this type, which may be narrower (float16 weights) or fixed in its sizes:
///   auto model = sae::load<sae::SparseAutoencoder<2304, 16384, sae::JumpReLU>>("params.npz");
///   auto temporal = sae::load<sae::TemporalSae<>>("gemma-2-2B/layer_12/temporal");
/// \throws FileError  also where the type does not fit, with what differs.
template <class Model>
Model load(const std::filesystem::path& asked, LoadOptions options = {}) {
  const FoundSae found = find_sae(asked);
  if constexpr (!detail::is_temporal<Model>)
    if (!detail::find_cross_layer(found.path) && detail::is_saelens(found.path))  // activations of one's own, too
      return load_saelens<Model>(read_saelens_config(found.path, found.overrides), options);
  const PublishedSae from = read_published(found.path);
  if (options.warnings != nullptr)
    options.warnings->insert(options.warnings->end(), from.warnings.begin(), from.warnings.end());
  return load<Model>(from, options);
}

}  // namespace sae::inline SAE_ABI
