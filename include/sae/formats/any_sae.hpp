#pragma once
#include <sae/formats/hook_name.hpp>
#include <sae/formats/saelens.hpp>

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace sae::inline SAE_ABI {

/// Every architecture that is read from files, in float. A line more here and a layout (SaelensLayout) make it known everywhere.
using AnyModel = std::variant<SparseAutoencoder<Dynamic, Dynamic, ReLU, float>,  //
                              SparseAutoencoder<Dynamic, Dynamic, TopK, float>,  //
                              SparseAutoencoder<Dynamic, Dynamic, JumpReLU, float>>;

/// One tensor of a file.
struct StoredTensor {
  std::string dtype;
  std::vector<Index> shape;
};

/// A trained SAE whose architecture is known at run time only, with what its files say about it. `visit` reaches the model
/// itself where its type matters. Copies copy the weights. Const members may be called from several threads at once.
class AnySae {
 public:
  explicit AnySae(AnyModel model) : model_(std::move(model)) {}

  /// Calls f(model) with the model of its own type.
  template <class F>
  decltype(auto) visit(F&& f) const {
    return std::visit(std::forward<F>(f), model_);
  }
  const AnyModel& model() const { return model_; }

  Index d_in() const {
    return visit([](const auto& model) { return model.d_in(); });
  }
  Index latents() const {
    return visit([](const auto& model) { return model.latents(); });
  }
  /// "standard", "topk", "jumprelu": SAELens' names.
  std::string_view architecture() const {
    return visit([](const auto& model) { return Layout<decltype(model)>::architecture; });
  }
  /// "relu", "topk, k = 32".
  std::string activation() const {
    return visit([](const auto& model) {
      const auto& activation = model.activation();
      std::string text(activation.name);
      if constexpr (requires { activation.k; }) text += detail::concat(", k = ", activation.k);
      return text;
    });
  }
  bool subtracts_decoder_bias() const {
    return visit([](const auto& model) { return model.subtracts_decoder_bias(); });
  }

  Codes<float> encode(const Batch<float>& rows, Threads& threads = Threads::shared()) const {
    return visit([&](const auto& model) { return model.encode(rows, threads); });
  }
  Matrix<float> decode(const Codes<float>& codes, Threads& threads = Threads::shared()) const {
    return visit([&](const auto& model) { return model.decode(codes, threads); });
  }
  Matrix<float> reconstruct(const Batch<float>& rows, Threads& threads = Threads::shared()) const {
    return visit([&](const auto& model) { return model.reconstruct(rows, threads); });
  }

  ConstMatrixMap<float> W_enc() const { return map_of("W_enc"); }  ///< [F x D]
  ConstMatrixMap<float> W_dec() const { return map_of("W_dec"); }  ///< [F x D]
  ConstMatrixMap<float> b_enc() const { return map_of("b_enc"); }  ///< [1 x F]
  ConstMatrixMap<float> b_dec() const { return map_of("b_dec"); }  ///< [1 x D]
  /// Row `latent` of W_dec [D]: the direction that the latent writes.
  /// \throws ValueError  there is no such latent.
  std::span<const float> direction(Index latent) const {
    if (latent < 0 || latent >= latents())
      throw_value("latent ", latent, " is not in [0, ", latents(), ") (the number of latents)");
    return {W_dec().data() + latent * d_in(), static_cast<std::size_t>(d_in())};
  }
  /// Shape of every parameter of the model by its name here ([F x D] both ways round).
  std::map<std::string, std::vector<Index>> parameters() const {
    std::map<std::string, std::vector<Index>> out;
    visit([&](const auto& model) {
      model.parameters().visit(
          [&](std::string_view name, const auto& tensor) {
            out[std::string(name)] = {tensor.rows(), tensor.cols()};
          },
          model.parameters());
    });
    return out;
  }

  /// The site that `metadata.hook_name` names, where it is one that is known.
  std::optional<Site> site() const { return site_of_hook(metadata.hook_name); }

  // What the files say.
  std::string layout;                           ///< "saelens"; empty for a model that comes from no file
  std::string dtype;                            ///< of W_dec in the file
  std::map<std::string, StoredTensor> tensors;  ///< of the file, by the file's names
  nlohmann::json config = nullptr;
  SaelensMetadata metadata;
  std::vector<std::string> warnings;

 private:
  template <class Model>
  using Layout = SaelensLayout<typename std::remove_cvref_t<Model>::Activation>;

  ConstMatrixMap<float> map_of(std::string_view wanted) const {
    return visit([&](const auto& model) {
      const Tensor<float>* found = nullptr;
      model.parameters().visit(
          [&](std::string_view name, const auto& tensor) {
            if (name == wanted) found = &tensor;
          },
          model.parameters());
      if (found == nullptr) throw_value("a SAE of architecture ", Layout<decltype(model)>::architecture, " has no ", wanted);
      return found->map();
    });
  }

  AnyModel model_;
};

namespace detail {

template <std::size_t n = 0>
AnyModel load_any_saelens(const SaelensConfig& config, SaelensLoadOptions options) {
  if constexpr (n == std::variant_size_v<AnyModel>) {
    std::string known;
    [&]<std::size_t... i>(std::index_sequence<i...>) {
      ((known +=
        concat(i == 0 ? "" : ", ", SaelensLayout<typename std::variant_alternative_t<i, AnyModel>::Activation>::architecture)),
       ...);
    }
    (std::make_index_sequence<std::variant_size_v<AnyModel>>());
    throw_file(config.file.string(), ": architecture = \"", printable(config.architecture),
               "\" is not supported; these are: ", known);
  } else {
    using Model = std::variant_alternative_t<n, AnyModel>;
    if (config.architecture == SaelensLayout<typename Model::Activation>::architecture)
      return load_saelens<Model>(config, options);
    return load_any_saelens<n + 1>(config, options);
  }
}

}  // namespace detail

/// Loads a trained SAE from its folder, or from its cfg.json or sae_weights.safetensors.
/// \param check_finite  refuse weights that are NaN or infinite; off for somebody who only looks at what is there
/// \throws FileError  one sentence with the file and what is wrong in it.
inline AnySae load_sae(const std::filesystem::path& path, bool check_finite = true) {
  SaelensConfig config = read_saelens_config(path);
  std::vector<std::string> warnings = config.warnings;
  AnySae out(detail::load_any_saelens(config, {.check_finite = check_finite, .warnings = &warnings}));
  const SafetensorsFile weights(config.file.parent_path() / detail::saelens_weights_name);
  for (const auto& [name, tensor] : weights.tensors()) out.tensors[name] = {std::string(to_string(tensor.dtype)), tensor.shape};
  out.layout = "saelens";
  out.dtype = to_string(weights.info("W_dec").dtype);
  out.config = std::move(config.json);
  out.metadata = std::move(config.metadata);
  out.warnings = std::move(warnings);
  return out;
}

/// Saves a SAE of any architecture (see save_saelens for a model of a known type).
inline void save_saelens(const AnySae& sae, const std::filesystem::path& folder, SaelensSaveOptions options = {}) {
  sae.visit([&](const auto& model) { save_saelens(model, folder, sae.metadata, options); });
}

}  // namespace sae::inline SAE_ABI
