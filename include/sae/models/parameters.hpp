#pragma once
#include <sae/core/types.hpp>

#include <string_view>

namespace sae::inline SAE_ABI {

namespace detail {
/// Whether z has a bias b_enc; an activation with biases of its own says `static constexpr bool encoder_bias = false`.
template <class Activation>
constexpr bool has_encoder_bias() {
  if constexpr (requires { Activation::encoder_bias; }) {
    return Activation::encoder_bias;
  } else {
    return true;
  }
}
}  // namespace detail

/// The trainable tensors of an autoencoder. The same struct holds weights, gradients, optimizer moments and averages.
///
///   W_enc [F x D]  row i: the direction that latent i reads      (the transpose of the textbook's and of SAELens' W_enc)
///   b_enc [1 x F]          zeros that nobody visits or trains where the activation has no encoder bias (gated.hpp)
///   W_dec [F x D]  row i: the direction that latent i writes
///   b_dec [1 x D]
template <class Activation, class Scalar_>
struct AutoencoderParameters {
  using Scalar = Scalar_;
  static constexpr bool has_encoder_bias = detail::has_encoder_bias<Activation>();
  Tensor<Scalar> W_enc, b_enc, W_dec, b_dec;
  typename Activation::template Parameters<Scalar> activation;

  AutoencoderParameters() = default;
  AutoencoderParameters(Index d_in, Index latents) { resize(d_in, latents); }
  /// Sets the shapes; all numbers become 0.
  void resize(Index d_in, Index latents) {
    W_enc.resize(latents, d_in);
    b_enc.resize(1, latents);
    W_dec.resize(latents, d_in);
    b_dec.resize(1, d_in);
    activation.resize(latents);
  }
  Index width() const { return W_enc.cols(); }
  Index latents() const { return W_enc.rows(); }

  /// Calls visitor(name, tensor of each set ...) for every tensor: one set to read or write it, several to walk weights,
  /// gradient and moments together. Optimizers, files, checkpoints and gradient checks know parameters by this alone.
  template <class Visitor, class... Sets>
  static void visit(Visitor&& visitor, Sets&... sets) {
    visitor(std::string_view("W_enc"), sets.W_enc...);
    if constexpr (has_encoder_bias) visitor(std::string_view("b_enc"), sets.b_enc...);
    visitor(std::string_view("W_dec"), sets.W_dec...);
    visitor(std::string_view("b_dec"), sets.b_dec...);
    visit_activation(visitor, sets...);
  }
  /// The activation's own tensors alone.
  template <class Visitor, class... Sets>
  static void visit_activation(Visitor&& visitor, Sets&... sets) {
    Activation::template Parameters<Scalar>::visit(visitor, sets.activation...);
  }
};

/// Calls visitor(name, tensor) for every parameter of a model.
template <class Model, class Visitor>
void for_each_parameter(Model& model, Visitor&& visitor) {
  model.parameters().visit(visitor, model.parameters());
}

}  // namespace sae::inline SAE_ABI
