#pragma once
#include <sae/core/random.hpp>
#include <sae/kernels/half_kernels.hpp>
#include <sae/kernels/vector.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>

namespace sae::inline SAE_ABI {

namespace detail {
inline constexpr std::uint64_t initialization_stream = 0x1417;

/// n numbers of U(-bound, bound), drawn again should all be 0; returns their norm, > 0.
template <class Scalar>
double fill_uniform(Random& random, double bound, Scalar* out, Index n) {
  double squares = 0;
  do {
    squares = 0;
    for (Index j = 0; j < n; ++j) {
      out[j] = static_cast<Scalar>(random.uniform(-bound, bound));
      squares += static_cast<double>(out[j]) * static_cast<double>(out[j]);
    }
  } while (squares == 0);
  return std::sqrt(squares);
}
/// Kaiming-uniform for rows of D numbers (gain sqrt 2).
inline double kaiming_bound(Index width) { return std::sqrt(6.0 / static_cast<double>(width)); }
/// Rows of random directions (Kaiming-uniform draws), each of this norm; in 16 bits rounded to nearest.
template <class Stored>
void fill_directions(Random& random, double norm, Tensor<Stored>& w) {
  using Scalar = decltype(number(Stored()));
  Buffer<Scalar> room(static_cast<std::size_t>(kernels::wide_room<Stored>(w.cols())));
  for (Index i = 0; i < w.rows(); ++i) {
    Scalar* row = room.data();
    if constexpr (!is_half<Stored>) row = w.row(i);
    const double drawn = fill_uniform(random, kaiming_bound(w.cols()), row, w.cols());
    kernels::scale(row, static_cast<Scalar>(norm / drawn), w.cols());
    for (Index j = 0; j < static_cast<Index>(room.size()); ++j) w.row(i)[j] = Stored(row[j]);
  }
}
/// w <- factor w; in 16 bits rounded to nearest.
template <class Stored>
void scale_weights(Tensor<Stored>& w, double factor) {
  using Scalar = decltype(number(Stored()));
  if constexpr (is_half<Stored>) {
    for (Index i = 0; i < w.size(); ++i) w[i] = Stored(static_cast<Scalar>(factor) * number(w[i]));
  } else {
    kernels::scale(w.data(), static_cast<Scalar>(factor), w.size());
  }
}
/// Refuses a transcoder, whose encoder and decoder rows have widths of their own.
template <class Parameters>
void require_one_width(const char* who, const Parameters& p) {
  if (p.width() != p.output_width())
    throw_shape(who, ": starts autoencoders; this model reads rows of ", p.width(), " and writes rows of ", p.output_width());
}
}  // namespace detail

/// Tied start: W_dec rows are random directions (Kaiming-uniform, U(-sqrt(6/D), sqrt(6/D)) each) of norm `decoder_norm`,
/// W_enc = encoder_scale W_dec, biases 0. Latents then read what they write, and b_dec is the trainer's business (mean or median of the data).
/// Source: SAELens saes/sae.py (norm 0.1); norm 1 as in dictionary_learning and OpenAI's code.
struct TiedInitialization {
  double decoder_norm = 1;  ///< > 0
  std::uint64_t seed = 0;
  /// > 0; of tied weights 1. Below 1, codes start small: the first reconstructions of a large dictionary do not overshoot, and
  /// encoder rows turn faster at the same learning rate.
  double encoder_scale = 1;

  template <class Parameters>
  void operator()(Parameters& parameters) const {
    require_positive("TiedInitialization: decoder_norm", decoder_norm);
    require_positive("TiedInitialization: encoder_scale", encoder_scale);
    if (parameters.tied() && encoder_scale != 1)
      throw_value("TiedInitialization: encoder_scale = ", encoder_scale, " of tied weights, which have one scale: 1");
    detail::require_one_width("TiedInitialization", parameters);
    Random random(seed, detail::initialization_stream);
    detail::fill_directions(random, decoder_norm, parameters.W_dec);
    if (!parameters.tied()) {
      parameters.W_enc = parameters.W_dec;
      if (encoder_scale != 1) detail::scale_weights(parameters.W_enc, encoder_scale);
    }
    parameters.b_enc.set_zero();
    parameters.b_dec.set_zero();
  }
};

/// Untied start, torch's default for a linear layer: W_enc rows of U(-1/sqrt(D), 1/sqrt(D)), norm about sqrt(1/3); W_dec[i] is the
/// direction of W_enc[i] with norm `decoder_norm`; b_enc 0, or U(-1/sqrt(D), 1/sqrt(D)) with `random_bias`; b_dec 0. For a model
/// that is there: `sae::UntiedInitialization{.seed = 3}(model.parameters());`.
/// Source: sparsify sparse_coder.py (norm 1, biases 0); dictionary_learning dictionary.py, AutoEncoder (`random_bias`).
struct UntiedInitialization {
  double decoder_norm = 1;  ///< > 0
  bool random_bias = false;
  std::uint64_t seed = 0;

  template <class Parameters>
  void operator()(Parameters& parameters) const {
    using Scalar = typename Parameters::Scalar;
    static_assert(std::is_same_v<typename Parameters::Stored, Scalar>,
                  "sae: UntiedInitialization is of weights stored as Scalar; with_weights makes others from them");
    require_positive("UntiedInitialization: decoder_norm", decoder_norm);
    detail::require_one_width("UntiedInitialization", parameters);
    if (parameters.tied()) throw_value("UntiedInitialization: encoder and decoder of the model are tied");
    const Index width = parameters.width();
    const double bound = 1 / std::sqrt(static_cast<double>(width));
    Random random(seed, detail::initialization_stream);
    parameters.b_enc.set_zero();
    for (Index i = 0; i < parameters.latents(); ++i) {
      const double norm = detail::fill_uniform(random, bound, parameters.W_enc.row(i), width);
      std::copy_n(parameters.W_enc.row(i), width, parameters.W_dec.row(i));
      kernels::scale(parameters.W_dec.row(i), static_cast<Scalar>(decoder_norm / norm), width);
      if (random_bias) parameters.b_enc[i] = static_cast<Scalar>(random.uniform(-bound, bound));
    }
    parameters.b_dec.set_zero();
  }
};

}  // namespace sae::inline SAE_ABI
