#pragma once
#include <sae/formats/hook_name.hpp>
#include <sae/formats/saelens.hpp>

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace sae::inline SAE_ABI {

/// A model whose architecture is known at run time only. `AnyActivation::Variants` lists what there is.
using AnyModel = SparseAutoencoder<Dynamic, Dynamic, AnyActivation, float>;
/// The same for a transcoder: `load_saelens<AnyTranscoder>(path)`.
using AnyTranscoder = Transcoder<Dynamic, Dynamic, Dynamic, AnyActivation, float>;

/// One tensor of a file.
struct StoredTensor {
  std::string dtype;
  std::vector<Index> shape;
};

/// What the files of a trained model say.
struct StoredDetails {
  std::string layout;                           ///< "saelens"; empty for a model that comes from no file
  std::string dtype;                            ///< of W_dec in the file
  std::map<std::string, StoredTensor> tensors;  ///< of the file, by the file's names
  nlohmann::json config = nullptr;
  SaelensMetadata metadata;
  std::vector<std::string> warnings;

  /// The site that `metadata.hook_name` names, where it is one that is known.
  std::optional<Site> site() const { return site_of_hook(metadata.hook_name); }
};

namespace detail {
/// "relu", "topk, k = 32".
inline std::string activation_text(const AnyActivation& any) {
  std::string text(any.name);
  any.visit([&](const auto& activation) {
    if constexpr (requires { activation.k; }) text += concat(", k = ", activation.k);
  });
  return text;
}
/// Shape of every parameter of a model by its name.
template <class Model>
std::map<std::string, std::vector<Index>> parameter_shapes(const Model& model) {
  std::map<std::string, std::vector<Index>> out;
  Model::Parameters::visit(
      [&](std::string_view name, const auto& tensor) {
        out[std::string(name)] = {tensor.rows(), tensor.cols()};
      },
      model.parameters());
  return out;
}
}  // namespace detail

namespace detail {
/// Encodes with workspaces that keep what follows from the weights of a model that does not change, from any thread. A copy, which is
/// of other weights, starts without any.
template <class Model>
class KeptEncoder {
 public:
  KeptEncoder() = default;
  KeptEncoder(const KeptEncoder&) {}
  KeptEncoder(KeptEncoder&&) noexcept = default;
  KeptEncoder& operator=(const KeptEncoder&) { return *this = KeptEncoder(); }
  KeptEncoder& operator=(KeptEncoder&&) noexcept = default;
  Codes<float> operator()(const Model& model, const Batch<float>& rows, Threads& threads) const {
    auto workspace = workspaces_.borrow();
    workspace->keep_weights();
    return model.encode_into(rows, *workspace, threads);
  }

 private:
  mutable Pool<typename Model::template Workspace<>> workspaces_;
};
}  // namespace detail

/// A trained SAE whose architecture is known at run time only, with what its files say about it. Copies copy the weights. Const
/// members may be called from several threads at once.
class AnySae : public StoredDetails {
 public:
  explicit AnySae(AnyModel model) : model_(std::move(model)) {}

  const AnyModel& model() const { return model_; }
  Index d_in() const { return model_.d_in(); }
  Index d_out() const { return model_.d_in(); }
  Index latents() const { return model_.latents(); }
  /// "standard", "topk", "jumprelu": SAELens' names.
  std::string_view architecture() const { return detail::saelens_architecture(model_.activation()); }
  std::string activation() const { return detail::activation_text(model_.activation()); }  ///< "relu", "topk, k = 32"
  bool subtracts_decoder_bias() const { return model_.subtracts_decoder_bias(); }
  InputNormalisation input_normalisation() const { return model_.input_normalisation(); }

  Codes<float> encode(const Batch<float>& rows, Threads& threads = Threads::shared()) const {
    return encoder_(model_, rows, threads);
  }
  Matrix<float> decode(const Codes<float>& codes, Threads& threads = Threads::shared()) const {
    return model_.decode(codes, threads);
  }
  /// With the rows that the codes are of, which a SAE that normalises its rows needs.
  Matrix<float> decode(const Codes<float>& codes, const Batch<float>& rows, Threads& threads = Threads::shared()) const {
    return model_.decode(codes, rows, threads);
  }
  std::vector<float> row_spreads(const Batch<float>& rows, Threads& threads = Threads::shared()) const {
    return model_.row_spreads(rows, threads);
  }
  Matrix<float> reconstruct(const Batch<float>& rows, Threads& threads = Threads::shared()) const {
    return decode(encode(rows, threads), rows, threads);
  }

  AnyModel::ConstWeights W_enc() const { return model_.W_enc(); }       ///< [F x D]
  AnyModel::ConstWeights W_dec() const { return model_.W_dec(); }       ///< [F x D]
  AnyModel::ConstLatentVector b_enc() const { return model_.b_enc(); }  ///< [1 x F]
  AnyModel::ConstInputVector b_dec() const { return model_.b_dec(); }   ///< [1 x D]
  /// Row `latent` of W_dec [D]: the direction that the latent writes.
  /// \throws ValueError  there is no such latent.
  std::span<const float> direction(Index latent) const {
    if (latent < 0 || latent >= latents())
      throw_value("latent ", latent, " is not in [0, ", latents(), ") (the number of latents)");
    return {W_dec().data() + latent * d_in(), static_cast<std::size_t>(d_in())};
  }
  /// Shape of every parameter of the model by its name here ([F x D] both ways round).
  std::map<std::string, std::vector<Index>> parameters() const { return detail::parameter_shapes(model_); }

 private:
  AnyModel model_;
  detail::KeptEncoder<AnyModel> encoder_;
};

/// The same of a transcoder.
class AnyStoredTranscoder : public StoredDetails {
 public:
  explicit AnyStoredTranscoder(AnyTranscoder model) : model_(std::move(model)) {}

  const AnyTranscoder& model() const { return model_; }
  Index d_in() const { return model_.d_in(); }
  Index d_out() const { return model_.d_out(); }
  Index latents() const { return model_.latents(); }
  /// "transcoder", "topk_skip_transcoder": SAELens' names and ours in their manner.
  std::string architecture() const {
    return detail::saelens_transcoder_architecture(detail::saelens_architecture(model_.activation()), model_.has_skip());
  }
  std::string activation() const { return detail::activation_text(model_.activation()); }
  Codes<float> encode(const Batch<float>& rows, Threads& threads = Threads::shared()) const {
    return encoder_(model_, rows, threads);
  }
  /// Predictions [N x D_out].
  Matrix<float> reconstruct(const Batch<float>& rows, Threads& threads = Threads::shared()) const {
    return model_.predict(rows, threads);
  }
  std::map<std::string, std::vector<Index>> parameters() const { return detail::parameter_shapes(model_); }

 private:
  AnyTranscoder model_;
  detail::KeptEncoder<AnyTranscoder> encoder_;
};

namespace detail {
template <class Stored, class Model>
Stored load_stored(const std::filesystem::path& path, bool check_finite) {
  SaelensConfig config = read_saelens_config(path);
  std::vector<std::string> warnings = config.warnings;
  Stored out(load_saelens<Model>(config, {.check_finite = check_finite, .warnings = &warnings}));
  const SafetensorsFile weights(config.file.parent_path() / saelens_weights_name);
  for (const auto& [name, tensor] : weights.tensors()) out.tensors[name] = {std::string(to_string(tensor.dtype)), tensor.shape};
  out.layout = "saelens";
  out.dtype = to_string(weights.info("W_dec").dtype);
  out.config = std::move(config.json);
  out.metadata = std::move(config.metadata);
  out.warnings = std::move(warnings);
  return out;
}
}  // namespace detail

/// Loads a trained SAE from its folder, or from its cfg.json or sae_weights.safetensors.
/// \param check_finite  refuse weights that are NaN or infinite; off for somebody who only looks at what is there
/// \throws FileError  one sentence with the file and what is wrong in it, also where a transcoder lies there.
inline AnySae load_sae(const std::filesystem::path& path, bool check_finite = true) {
  return detail::load_stored<AnySae, AnyModel>(path, check_finite);
}
/// The same of a transcoder.
inline AnyStoredTranscoder load_transcoder(const std::filesystem::path& path, bool check_finite = true) {
  return detail::load_stored<AnyStoredTranscoder, AnyTranscoder>(path, check_finite);
}
/// Whether a transcoder lies there. \throws FileError  there is no cfg.json, or it is not one.
inline bool is_transcoder(const std::filesystem::path& path) { return read_saelens_config(path).d_out > 0; }

/// Saves a SAE of any architecture (see save_saelens for a model of a known type).
inline void save_saelens(const AnySae& sae, const std::filesystem::path& folder, SaelensSaveOptions options = {}) {
  save_saelens(sae.model(), folder, sae.metadata, options);
}

}  // namespace sae::inline SAE_ABI
