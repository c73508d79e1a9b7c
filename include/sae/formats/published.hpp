#pragma once
#include <sae/formats/mapped_weights.hpp>
#include <sae/formats/tensor_set.hpp>
#include <sae/models/any_model.hpp>
#include <sae/models/temporal_sae.hpp>
#include <sae/models/transcoder.hpp>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

// From what a file says to a model. A reader of a layout fills a `PublishedSae`: which tensor of the file is which of ours, and how it lies
// there; `build_model` reads them.
namespace sae::inline SAE_ABI {

/// What a file says about the activations a SAE was trained on (SAELens: `metadata` of cfg.json). What is unknown stays empty.
struct SaelensMetadata {
  std::string model_name = {};
  std::string hook_name = {};  ///< where in the model, in TransformerLens' words; hook_of_site (formats/hook_name.hpp) makes it
  Index context_size = 0;      ///< tokens; 0: unknown
  std::optional<bool> prepend_bos = {};
  std::string dataset_path = {};
  nlohmann::json other = nlohmann::json::object();  ///< every other field, as it stands
};

/// Where W_enc and W_dec of a model are that `sae::load(path)` makes.
enum class WeightsIn {
  automatic,  ///< in the file from `mapped_weights_from` numbers on, where the model can read them there
  memory,     ///< float32
  file        ///< in the mapped file, whence rows are read whenever they are used
};
inline constexpr Index mapped_weights_from = Index{64} << 20;  ///< of W_enc and W_dec; 256 MiB as float32

/// How weights are loaded.
struct LoadOptions {
  /// Refuse weights that are NaN or infinite: at once, or, of those that stay in the file, once their row is read.
  bool check_finite = true;
  WeightsIn weights = WeightsIn::automatic;      ///< a load into a type of the caller's goes by the type
  std::vector<std::string>* warnings = nullptr;  ///< where to put what building the model finds odd
};

/// A tensor of ours as a file holds it.
struct StoredMatrix {
  std::string name;                    ///< of the file's own tensor, for messages
  ArrayView array;                     ///< a matrix, or a vector [n] for one row
  bool transposed = false;             ///< the file's matrix is the transpose of ours
  double scale = 1;                    ///< ours is `scale` times the file's
  std::shared_ptr<const void> keep{};  ///< holds the numbers, where they are not the file's own, or must outlive it
  std::string file{};                  ///< where it lies, if not in the SAE's own file of tensors
};

/// What files say of a TemporalSae, beside its sizes.
struct TemporalSettings {
  TemporalOptions options{};
  Index attention_layers = 0;
  Index query_width = 0;  ///< E
  bool tied = true;
};

/// A SAE or transcoder as its files describe it, weights not read yet.
struct PublishedSae {
  std::string layout;          ///< "saelens"
  std::filesystem::path file;  ///< what messages about settings name
  TensorSet tensors;
  /// By our names: W_enc [F x D_in], b_enc, W_dec [F x D_out], b_dec, W_skip [D_out x D_in], and the activation's own; what is not here
  /// is the file's tensor of that name, as it stands.
  std::map<std::string, StoredMatrix, std::less<>> given;
  std::set<std::string, std::less<>> passed_over;  ///< tensors of the file that are known and need not be read

  std::string architecture;  ///< as the files call it, for messages
  /// Of a TemporalSae, of which nothing below but d_in and latents is looked at.
  std::optional<TemporalSettings> temporal{};
  AnyActivation activation;
  bool glu = false;  ///< a GLU encoder in front of the activation: W_glu [F x D_in], b_glu
  Index d_in = 0, latents = 0;
  Index d_out = 0;                    ///< of a transcoder; 0: an autoencoder
  bool skip = false;                  ///< of a transcoder: W_skip
  bool subtract_decoder_bias = true;  ///< of an autoencoder
  InputNormalisation input_normalisation = InputNormalisation::none;
  /// Codes are counted in units of the decoder rows: `fold_decoder_norms` once they are read.
  bool fold_decoder_norms = false;

  SaelensMetadata metadata;
  nlohmann::json config = nullptr;
  std::vector<std::string> warnings;  ///< what a user should know and no reader can decide

  /// Says that ours of that name is the file's `name`.
  StoredMatrix& take(std::string_view ours, std::string_view name, bool transposed = false) {
    return given[std::string(ours)] = {std::string(name), tensors.at(name), transposed};
  }
  /// Says that ours of that name is this vector, computed from the file's `name`.
  StoredMatrix& take(std::string_view ours, std::string_view name, Tensor<double> values) {
    passed_over.emplace(name);
    const auto kept = std::make_shared<const Tensor<double>>(std::move(values));
    return given[std::string(ours)] = {std::string(name),
                                       {Dtype::float64, {kept->cols()}, {}, reinterpret_cast<const std::byte*>(kept->data())},
                                       false,
                                       1,
                                       kept};
  }
  /// A vector or single number of the file, in float64. \throws FileError  it has another size than `size` (-1: any).
  Tensor<double> vector(std::string_view name, Index size = -1) const {
    const ArrayView& array = tensors.at(name);
    if (array.shape.size() > 1 || (size >= 0 && array.elements() != size))
      throw_file(tensors.file(), ": tensor ", name, " has shape ", detail::shape_text(array.shape), ", it should be ",
                 size < 0    ? "a vector"
                 : size == 1 ? "a single number"
                             : detail::concat("[", size, "]"));
    return read_matrix<double>(array, tensors.file(), name);
  }
};

namespace detail {

template <class Model>
inline constexpr bool transcodes = requires {
  typename Model::Targets;
};

/// Shape of an own tensor of an activation in a file: [n] of one row, else [rows x cols].
template <class Scalar>
std::vector<Index> stored_shape(const Tensor<Scalar>& tensor) {
  if (tensor.rows() == 1) return {tensor.cols()};
  return {tensor.rows(), tensor.cols()};
}

/// Refuses NaN and infinities of a tensor [rows x cols] (one row: a vector), naming the first by where it stands in the file.
template <class Stored>
void require_finite(const Tensor<Stored>& tensor, std::string_view name, const std::string& file, bool transposed = false) {
  const Stored* const begin = tensor.data();
  const Stored* const bad = std::find_if(begin, begin + tensor.size(), [](Stored x) { return !std::isfinite(number(x)); });
  if (bad == begin + tensor.size()) return;
  const Index at = bad - begin, row = at / tensor.cols(), col = at % tensor.cols();
  throw_not_finite(static_cast<double>(number(*bad)),
                   tensor.rows() == 1 && !transposed ? concat("[", at, "]")
                   : transposed                      ? concat("[", col, ", ", row, "]")
                                                     : concat("[", row, ", ", col, "]"),
                   name, file);
}

/// Ours as T, of that shape ([n] of one row).
template <class T>
Tensor<T> read_stored(const StoredMatrix& from, std::vector<Index> shape, const std::string& file, bool check_finite) {
  if (from.transposed) std::swap(shape.front(), shape.back());
  if (from.array.shape != shape)
    throw_file(file, ": tensor ", from.name, " has shape ", shape_text(from.array.shape), ", it should be ", shape_text(shape));
  if constexpr (std::is_same_v<T, Mapped>) {
    if (!is_floating(from.array.dtype))
      throw_file(file, ": tensor ", from.name, " holds ", to_string(from.array.dtype), ", which is not read as float32");
    return Tensor<T>(
        std::make_shared<ArrayRows>(from.array, from.transposed, from.scale, check_finite, from.keep, file, from.name));
  } else {
    Tensor<T> out = read_matrix<T>(from.array, file, from.name, from.transposed);
    if (from.scale != 1)
      for (Index i = 0; i < out.size(); ++i) out[i] = stored_as<T>(static_cast<double>(number(out[i])) * from.scale);
    if (check_finite) require_finite(out, from.name, file, from.transposed);
    return out;
  }
}

/// Says what is odd about decoder rows [F x D_out].
/// \param of  what stands before it
template <class Stored>
void warn_of_zero_rows(const Tensor<Stored>& W_dec, std::string_view of, std::vector<std::string>& warnings) {
  using Wide = std::conditional_t<std::is_same_v<Stored, double>, double, float>;
  Index zero = 0, first = 0;
  Buffer<Wide> room(static_cast<std::size_t>(kernels::wide_room<Stored>(W_dec.cols())));
  for (Index i = W_dec.rows() - 1; i >= 0; --i)
    if (kernels::squared_norm(kernels::wide(W_dec.row(i), W_dec.cols(), room.data()), W_dec.cols()) == Wide(0)) {
      ++zero;
      first = i;
    }
  if (zero > 0)
    warnings.push_back(concat(of, "W_dec: ", zero, " of ", W_dec.rows(),
                              " decoder rows are zero, their latents write nothing; the first is latent ", first));
}

/// Reads the tensors of a PublishedSae by our names, and knows which of the file's were read.
class PublishedReader {
 public:
  PublishedReader(const PublishedSae& from, const LoadOptions& options)
      : from_(from), options_(options), used_(from.passed_over) {}
  /// Ours of that name, of that shape ([n] of one row).
  template <class T>
  Tensor<T> read(std::string_view name, const std::vector<Index>& shape) {
    const auto found = from_.given.find(name);
    StoredMatrix stored = found == from_.given.end() ? StoredMatrix{std::string(name), from_.tensors.at(name)} : found->second;
    if (stored.keep == nullptr) stored.keep = from_.tensors.bytes();
    used_.insert(stored.name);
    return read_stored<T>(stored, shape, stored.file.empty() ? from_.tensors.file() : stored.file, options_.check_finite);
  }
  /// The parameters of a model with this activation.
  /// \param width  of what a latent's own biases and skip write: b_dec [width], W_skip [width x D_in]. D_out, but of one layer of a
  ///               cross-layer transcoder the D of that layer.
  template <class Parameters, class Activation>
  Parameters parameters(const Activation& activation, Index width) {
    using Scalar = typename Parameters::Scalar;
    using Stored = typename Parameters::Stored;
    Parameters p;
    if (!has_tied_weights(activation)) p.W_enc = read<Stored>("W_enc", {from_.latents, from_.d_in});
    p.W_dec = read<Stored>("W_dec", {from_.latents, from_.d_out > 0 ? from_.d_out : from_.d_in});
    if (has_encoder_bias(activation)) p.b_enc = read<Scalar>("b_enc", {from_.latents});
    p.b_dec = read<Scalar>("b_dec", {width});
    if (from_.skip) p.W_skip = read<Scalar>("W_skip", {width, from_.d_in});
    if constexpr (requires { p.activation.choose(activation); }) p.activation.choose(activation);
    resize_own(p.activation, from_.latents, from_.d_in);
    p.activation.initialize(activation);
    Parameters::visit_activation(
        [&](std::string_view name, auto& tensor) { tensor = read<Scalar>(name, stored_shape(tensor)); }, p);
    p.activation.constrain();
    return p;
  }
  const std::set<std::string, std::less<>>& used() const { return used_; }
  /// What is odd about what was read, where somebody asked for it.
  template <class Stored>
  void warn(const Tensor<Stored>& W_dec) const {
    if (options_.warnings == nullptr) return;
    for (const auto& [name, array] : from_.tensors.arrays())
      if (!used_.contains(name)) options_.warnings->push_back(concat("tensor ", printable(name), " is not used"));
    // Rows in a file nobody reads before they are used (AnySae::check_weights does).
    if constexpr (!std::is_same_v<Stored, Mapped>) warn_of_zero_rows(W_dec, "", *options_.warnings);
  }

 private:
  const PublishedSae& from_;
  const LoadOptions& options_;
  std::set<std::string, std::less<>> used_;
};

/// Calls f(); what it refuses as a caller's mistake (an activation that the sizes do not allow) a file said.
template <class F>
auto said_of_file(const std::string& file, const F& f) {
  try {
    return f();
  } catch (const ValueError& error) {
    throw_file(file, ": ", error.what());
  }
}

}  // namespace detail

/// The model that a PublishedSae describes: weights of any floating kind as the model stores them, rounded to nearest, or, stored as Mapped,
/// left where they are.
/// \param activation  of the model; its own tensors are read by their names
/// \throws FileError  sizes differ from those fixed in the model's type; a tensor is missing, has another shape, or is not finite; weights
///                    must change before they are used (`fold_decoder_norms`), and are not of float in memory.
template <class Model>
Model build_model(const PublishedSae& from, const typename Model::Activation& activation, LoadOptions options = {}) {
  using Scalar = typename Model::Scalar;
  using Stored = typename Model::Parameters::Stored;
  static_assert(!std::is_same_v<Stored, std::int8_t>, "sae: files hold no weights of 8 bits; load float, then with_weights");
  constexpr bool transcodes = detail::transcodes<Model>;
  const std::string file = from.file.string();
  const auto kind = [](bool is) { return is ? "a transcoder" : "an autoencoder"; };
  if (from.temporal)
    throw_file(file, ": is a temporal SAE, which does not fit the model it is loaded into, ", kind(transcodes),
               " of one row at a time");
  if (transcodes != (from.d_out > 0))
    throw_file(file, ": architecture = \"", detail::printable(from.architecture), "\" is ", kind(from.d_out > 0),
               ", the model it is loaded into is ", kind(transcodes));
  const auto fits = [&](std::string_view name, Index is, std::string_view of_model, int fixed) {
    if (fixed != Dynamic && fixed != is)
      throw_file(file, ": ", name, " = ", is, " does not fit the model it is loaded into, whose ", of_model, " is ", fixed);
  };
  fits("d_in", from.d_in, "D", Model::fixed_width);
  fits("d_sae", from.latents, "F", Model::fixed_latents);
  if constexpr (transcodes) fits("d_out", from.d_out, "D_out", Model::fixed_output_width);

  return detail::said_of_file(file, [&] {
    detail::PublishedReader reader(from, options);
    auto p = reader.parameters<typename Model::Parameters>(activation, transcodes ? from.d_out : from.d_in);
    reader.warn(p.W_dec);
    Model model = [&] {
      if constexpr (transcodes)
        return Model(std::move(p), activation);
      else
        return Model(std::move(p), activation,
                     {.subtract_decoder_bias = from.subtract_decoder_bias, .input_normalisation = from.input_normalisation});
    }();
    if (from.fold_decoder_norms) {
      if constexpr (std::is_same_v<Stored, Scalar>)
        model.fold_decoder_norms();
      else
        throw_file(
            file,
            ": codes are in units of the decoder norms, which are folded into weights of float; load it so, and narrow it "
            "(with_weights)");
    }
    return model;
  });
}

namespace detail {
template <class Model>
inline constexpr bool is_temporal = false;
template <class Scalar>
inline constexpr bool is_temporal<TemporalSae<Scalar>> = true;
}  // namespace detail

/// The TemporalSae that a PublishedSae describes.
/// \throws FileError  it describes another model; a tensor is missing, has another shape, or is not finite.
template <class Scalar>
TemporalSae<Scalar> build_temporal(const PublishedSae& from, LoadOptions options = {}) {
  if (!from.temporal)
    throw_file(from.file.string(), ": architecture = \"", detail::printable(from.architecture),
               "\" does not fit the model it is loaded into, a temporal SAE");
  const TemporalSettings& settings = *from.temporal;
  detail::PublishedReader reader(from, options);
  const Index width = from.d_in, latents = from.latents, wide = settings.query_width;
  TemporalParameters<Scalar> p;
  p.W_dec = reader.template read<Scalar>("W_dec", {latents, width});
  p.b_dec = reader.template read<Scalar>("b_dec", {width});
  if (!settings.tied) p.W_enc = reader.template read<Scalar>("W_enc", {latents, width});
  for (Index l = 0; l < settings.attention_layers; ++l) {
    const auto map = [&](std::string_view name, Index out) -> detail::LinearMap<Scalar> {
      const std::string whole = detail::concat("attn_layers.", l, ".", name);
      return {reader.template read<Scalar>(whole + ".weight", {out, latents}),
              reader.template read<Scalar>(whole + ".bias", {out})};
    };
    auto& layer = p.layers.emplace_back();
    layer.q_target = map("q_target", wide);
    layer.k_ctx = map("k_ctx", wide);
    layer.v_ctx = map("v_ctx", latents);
    layer.c_proj = map("c_proj", latents);
  }
  reader.warn(p.W_dec);
  return detail::said_of_file(from.file.string(), [&] { return TemporalSae<Scalar>(std::move(p), settings.options); });
}

}  // namespace sae::inline SAE_ABI
