#pragma once
#include <sae/formats/hook_name.hpp>
#include <sae/formats/saelens.hpp>
#include <sae/formats/saelens_glu.hpp>

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace sae::inline SAE_ABI {

/// A model whose architecture is known at run time only. `AnyActivation::Variants` lists what there is.
using AnyModel = SparseAutoencoder<Dynamic, Dynamic, AnyActivation, float>;
/// The same for a transcoder: `load_saelens<AnyTranscoder>(path)`.
using AnyTranscoder = Transcoder<Dynamic, Dynamic, Dynamic, AnyActivation, float>;
/// Both with weights that stay in their file.
using MappedModel = SparseAutoencoder<Dynamic, Dynamic, AnyActivation, float, Mapped>;
using MappedTranscoder = Transcoder<Dynamic, Dynamic, Dynamic, AnyActivation, float, Mapped>;
/// A model with a GLU encoder in front of an activation that is known at run time only.
using AnyGluModel = SparseAutoencoder<Dynamic, Dynamic, Glu<AnyActivation>, float>;

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

/// A trained SAE or transcoder of any layout and architecture, with what its files say about it. Copies copy the weights, but for those
/// that stay in their file. Const members may be called from several threads at once.
///
/// Each row stands alone, but for a TemporalSae (`reads_sequences`): the rows of one call are then one sequence, in order, and a caller cuts
/// what it has into sequences of about `metadata.context_size` tokens. Its codes are the novel ones; `get<TemporalSae<float>>()` has both parts.
class AnySae : public StoredDetails {
 public:
  AnySae(AnyModel model) : model_(std::move(model)) {}            // NOLINT: what a model is anyway
  AnySae(AnyGluModel model) : model_(std::move(model)) {}         // NOLINT
  AnySae(AnyTranscoder model) : model_(std::move(model)) {}       // NOLINT
  AnySae(MappedModel model) : model_(std::move(model)) {}         // NOLINT
  AnySae(MappedTranscoder model) : model_(std::move(model)) {}    // NOLINT
  AnySae(TemporalSae<float> model) : model_(std::move(model)) {}  // NOLINT

  /// Calls f(model) with the AnyModel, AnyGluModel, AnyTranscoder, MappedModel, MappedTranscoder or TemporalSae<float> inside.
  template <class F>
  decltype(auto) visit(F&& f) const {
    return std::visit([&](const auto& held) -> decltype(auto) { return f(held.model); }, model_);
  }
  /// The model inside where it is one of this type, else null.
  template <class Model>
  const Model* get() const {
    const auto* const held = std::get_if<Held<Model>>(&model_);
    return held == nullptr ? nullptr : &held->model;
  }
  bool is_transcoder() const {
    return visit([]<class Model>(const Model&) { return detail::transcodes<Model>; });
  }
  /// Whether its weights stay in their file (LoadOptions::weights).
  bool is_mapped() const {
    return visit([]<class Model>(const Model&) { return std::is_same_v<typename Model::Parameters::Stored, Mapped>; });
  }
  /// Whether the rows of one call are one sequence, in order; else each row stands alone.
  bool reads_sequences() const { return get<TemporalSae<float>>() != nullptr; }
  /// \throws ValueError  it is another kind, or is mapped.
  const AnyModel& model() const {
    if (const AnyModel* const model = get<AnyModel>()) return *model;
    if (get<MappedModel>() != nullptr) throw_mapped();
    throw_value("a SAE is needed here, ",
                is_transcoder()     ? "this is a transcoder"
                : reads_sequences() ? "of which each row stands alone; this one reads sequences"
                                    : "this one has a GLU encoder",
                " (", architecture(), ")");
  }
  const AnyTranscoder& transcoder() const {
    if (const AnyTranscoder* const model = get<AnyTranscoder>()) return *model;
    if (is_transcoder()) throw_mapped();
    throw_value("a transcoder is needed here, this is an autoencoder (", architecture(), ")");
  }

  Index d_in() const {
    return visit([](const auto& model) { return model.d_in(); });
  }
  Index d_out() const {
    return visit([](const auto& model) { return model.parameters().output_width(); });
  }
  Index latents() const {
    return visit([](const auto& model) { return model.latents(); });
  }
  /// "standard", "topk", "jumprelu", "skip_transcoder": SAELens' names, and ours in their manner.
  std::string architecture() const {
    return visit([]<class Model>(const Model& model) {
      if constexpr (detail::transcodes<Model>)
        return detail::saelens_transcoder_architecture(detail::saelens_architecture(model.activation()), model.has_skip());
      else if constexpr (std::is_same_v<Model, AnyGluModel>)
        return detail::concat("glu_", detail::saelens_architecture(model.activation().inner));
      else if constexpr (std::is_same_v<Model, TemporalSae<float>>)
        return std::string(detail::saelens_temporal);
      else
        return std::string(detail::saelens_architecture(model.activation()));
    });
  }
  /// "relu", "topk, k = 32".
  std::string activation() const {
    return visit([]<class Model>(const Model& model) {
      if constexpr (std::is_same_v<Model, AnyGluModel>)
        return "glu, " + detail::activation_text(model.activation().inner);
      else if constexpr (std::is_same_v<Model, TemporalSae<float>>)
        return detail::activation_text(model.options().k > 0 ? AnyActivation(TopK{.k = model.options().k})
                                                             : AnyActivation(ReLU{}));
      else
        return detail::activation_text(model.activation());
    });
  }
  bool subtracts_decoder_bias() const {
    return visit([](const auto& model) { return model.subtracts_decoder_bias(); });
  }
  InputNormalisation input_normalisation() const {
    return visit([](const auto& model) { return detail::input_normalisation_of(model); });
  }

  Codes<float> encode(const Batch<float>& rows, Threads& threads = Threads::shared()) const {
    return std::visit([&](const auto& held) { return held.encoder(held.model, rows, threads); }, model_);
  }
  /// \throws ValueError  the rows are needed as well: it normalises them, has a skip, or predicts from them.
  Matrix<float> decode(const Codes<float>& codes, Threads& threads = Threads::shared()) const {
    return visit([&]<class Model>(const Model& model) -> Matrix<float> {
      if constexpr (detail::transcodes<Model>) {
        if (model.has_skip()) throw_value("codes alone do not tell what a skip transcoder predicts; give the rows, too");
        return model.decode(codes, Matrix<float>::Zero(codes.rows(), model.d_in()), threads);
      } else if constexpr (std::is_same_v<Model, TemporalSae<float>>) {
        throw_value(
            "codes alone do not tell what a temporal SAE predicts of a row from the rows before it; give the rows, too");
      } else {
        return model.decode(codes, threads);
      }
    });
  }
  /// With the rows that the codes are of.
  Matrix<float> decode(const Codes<float>& codes, const Batch<float>& rows, Threads& threads = Threads::shared()) const {
    return visit([&](const auto& model) { return model.decode(codes, rows, threads); });
  }
  std::vector<float> row_spreads(const Batch<float>& rows, Threads& threads = Threads::shared()) const {
    return visit([&]<class Model>(const Model& model) -> std::vector<float> {
      if constexpr (detail::transcodes<Model>)
        throw_value("a SAE is needed here, this is a transcoder (", architecture(), ")");
      else
        return model.row_spreads(rows, threads);
    });
  }
  /// Reconstructions [N x D], or predictions [N x D_out].
  Matrix<float> reconstruct(const Batch<float>& rows, Threads& threads = Threads::shared()) const {
    if (const auto* const temporal = get<TemporalSae<float>>()) return temporal->reconstruct(rows, threads);
    return decode(encode(rows, threads), rows, threads);
  }

  /// [F x D_in]. \throws ValueError  it is mapped.
  ConstMatrixMap<float> W_enc() const {
    return visit([](const auto& model) { return matrix_of(model.parameters().encoder()); });
  }
  /// [F x D_out]. \throws ValueError  it is mapped: `direction` reads a row.
  ConstMatrixMap<float> W_dec() const {
    return visit([](const auto& model) { return matrix_of(model.parameters().W_dec); });
  }
  ConstMatrixMap<float> b_enc() const {  ///< [1 x F], or empty
    return visit([](const auto& model) -> ConstMatrixMap<float> {
      if constexpr (requires { model.parameters().b_enc; })
        return model.parameters().b_enc.map();
      else
        return {nullptr, 0, 0};
    });
  }
  ConstMatrixMap<float> b_dec() const {  ///< [1 x D_out]
    return visit([](const auto& model) { return model.parameters().b_dec.map(); });
  }
  /// Row `latent` of W_dec [D_out]: the direction that the latent writes.
  /// \throws ValueError  there is no such latent.
  std::vector<float> direction(Index latent) const {
    if (latent < 0 || latent >= latents())
      throw_value("latent ", latent, " is not in [0, ", latents(), ") (the number of latents)");
    std::vector<float> out(static_cast<std::size_t>(d_out()));
    visit([&](const auto& model) {
      const float* const row = kernels::wide(model.parameters().W_dec.row(latent), d_out(), out.data());
      if (row != out.data()) std::copy_n(row, out.size(), out.data());
    });
    return out;
  }
  /// Reads all weights that stay in the file once, as a check that they are finite; those in memory were checked as they were read.
  /// \return what is odd about them, which `load` does not say: decoder rows of zeros
  /// \throws FileError  one is not finite.
  std::vector<std::string> check_weights(Threads& threads = Threads::shared()) const {
    std::vector<std::string> odd;
    visit([&](const auto& model) {
      const auto check = [&]<class Stored>(const Tensor<Stored>& w) {
        if constexpr (std::is_same_v<Stored, Mapped>)
          threads.for_blocks(w.rows(), detail::wide_latents, [&](Index begin, Index end, Index) {
            Buffer<float> rows(static_cast<std::size_t>((end - begin) * w.cols()));
            w.read(begin, end - begin, rows.data());
          });
      };
      check(model.parameters().W_enc);
      check(model.parameters().W_dec);
      if (is_mapped()) detail::warn_of_zero_rows(model.parameters().W_dec, "", odd);
    });
    return odd;
  }
  /// Shape of every parameter of the model by its name here ([F x D] both ways round).
  std::map<std::string, std::vector<Index>> parameters() const {
    return visit([](const auto& model) { return detail::parameter_shapes(model); });
  }

 private:
  [[noreturn]] static void throw_mapped() {
    throw_value("the weights stay in their file; load it with LoadOptions{.weights = WeightsIn::memory}");
  }
  template <class Stored>
  static ConstMatrixMap<float> matrix_of(const Tensor<Stored>& w) {
    if constexpr (std::is_same_v<Stored, Mapped>)
      throw_mapped();
    else
      return w.map();
  }
  template <class Model>
  struct Held {
    Held(Model held) : model(std::move(held)) {}  // NOLINT
    Model model;
    detail::KeptEncoder<Model> encoder;
  };
  std::variant<Held<AnyModel>, Held<AnyGluModel>, Held<AnyTranscoder>, Held<MappedModel>, Held<MappedTranscoder>,
               Held<TemporalSae<float>>>
      model_;
};

namespace detail {
/// The model with what stands behind its gate in its type.
template <class Inner>
SparseAutoencoder<Dynamic, Dynamic, Glu<Inner>, float> with_inner(const AnyGluModel& model) {
  AutoencoderParameters<Glu<Inner>, float> p;
  copy_tensors(model.parameters(), p);
  p.activation.W_glu = model.parameters().activation.W_glu;
  p.activation.b_glu = model.parameters().activation.b_glu;
  p.activation.inner = *model.parameters().activation.inner.template get<Inner>();
  return {std::move(p), Glu<Inner>{.inner = *model.activation().inner.template get<Inner>()}, model.options()};
}
}  // namespace detail

/// Saves a SAE or transcoder of any architecture (see save_saelens for a model of a known type).
inline void save_saelens(const AnySae& sae, const std::filesystem::path& folder, SaelensSaveOptions options = {}) {
  sae.visit([&]<class Model>(const Model& model) {
    if constexpr (std::is_same_v<Model, AnyGluModel>) {
      model.activation().inner.visit([&]<class Inner>(const Inner& inner) {
        if constexpr (requires { SaelensLayout<Inner>::reads; }) {
          throw_value("a SAE of the activation ", inner.name, " is not written as it is");
        } else {
          save_saelens(detail::with_inner<Inner>(model), folder, sae.metadata, options);
        }
      });
    } else if constexpr (std::is_same_v<typename Model::Stored, Mapped>) {
      sae.is_transcoder() ? void(sae.transcoder()) : void(sae.model());  // refuse
    } else {
      save_saelens(model, folder, sae.metadata, options);
    }
  });
}

}  // namespace sae::inline SAE_ABI
