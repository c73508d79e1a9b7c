#pragma once
#include <sae/formats/mapped_weights.hpp>
#include <sae/formats/tensor_set.hpp>
#include <sae/models/any_model.hpp>
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

/// The parameters of a model with this activation, as the files hold them.
/// \param width  of what a latent's own biases and skip write: b_dec [width], W_skip [width x D_in]. D_out, but of one layer of a
///               cross-layer transcoder the D of that layer.
/// \param used   names of the file's tensors that were read
template <class Parameters, class Activation>
Parameters read_parameters(const PublishedSae& from, const Activation& activation, Index width, bool check_finite,
                           std::set<std::string, std::less<>>& used) {
  using Scalar = typename Parameters::Scalar;
  using Stored = typename Parameters::Stored;
  const auto read_as = [&]<class T>(std::type_identity<T>, std::string_view name, const std::vector<Index>& shape) {
    const auto found = from.given.find(name);
    StoredMatrix stored = found == from.given.end() ? StoredMatrix{std::string(name), from.tensors.at(name)} : found->second;
    if (stored.keep == nullptr) stored.keep = from.tensors.bytes();
    used.insert(stored.name);
    return read_stored<T>(stored, shape, stored.file.empty() ? from.tensors.file() : stored.file, check_finite);
  };
  const auto read = [&](std::string_view name, const std::vector<Index>& shape) {
    return read_as(std::type_identity<Scalar>(), name, shape);
  };
  Parameters p;
  if (!has_tied_weights(activation)) p.W_enc = read_as(std::type_identity<Stored>(), "W_enc", {from.latents, from.d_in});
  p.W_dec = read_as(std::type_identity<Stored>(), "W_dec", {from.latents, from.d_out > 0 ? from.d_out : from.d_in});
  if (has_encoder_bias(activation)) p.b_enc = read("b_enc", {from.latents});
  p.b_dec = read("b_dec", {width});
  if (from.skip) p.W_skip = read("W_skip", {width, from.d_in});
  if constexpr (requires { p.activation.choose(activation); }) p.activation.choose(activation);
  resize_own(p.activation, from.latents, from.d_in);
  p.activation.initialize(activation);
  Parameters::visit_activation([&](std::string_view name, auto& tensor) { tensor = read(name, stored_shape(tensor)); }, p);
  p.activation.constrain();
  return p;
}

/// What is odd about decoder rows [F x D_out].
template <class Stored>
void warn_of_zero_rows(const Tensor<Stored>& W_dec, std::string_view of, std::vector<std::string>& warnings) {
  const Index latents = W_dec.rows(), width = W_dec.cols();
  using Scalar = std::remove_cvref_t<decltype(number(Stored()))>;
  Index zero = 0, first = 0;
  Buffer<Scalar> room(static_cast<std::size_t>(kernels::wide_room<Stored>(width)));
  for (Index i = latents - 1; i >= 0; --i)
    if (kernels::squared_norm(kernels::wide(W_dec.row(i), width, room.data()), width) == Scalar(0)) {
      ++zero;
      first = i;
    }
  if (zero > 0)
    warnings.push_back(concat(of, "W_dec: ", zero, " of ", latents,
                              " decoder rows are zero, their latents write nothing; the first is latent ", first));
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

  std::set<std::string, std::less<>> used = from.passed_over;
  auto p = detail::read_parameters<typename Model::Parameters>(from, activation, transcodes ? from.d_out : from.d_in,
                                                               options.check_finite, used);
  if (options.warnings != nullptr) {
    for (const auto& [name, array] : from.tensors.arrays())
      if (!used.contains(name)) options.warnings->push_back(detail::concat("tensor ", detail::printable(name), " is not used"));
    if constexpr (!std::is_same_v<Stored, Mapped>)  // whose rows nobody reads before they are used
      detail::warn_of_zero_rows(p.W_dec, "", *options.warnings);
  }
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
      throw_file(file,
                 ": codes are in units of the decoder norms, which are folded into weights of float; load it so, and narrow it "
                 "(with_weights)");
  }
  return model;
}

}  // namespace sae::inline SAE_ABI
