#pragma once
#include <sae/activations/selection.hpp>

#include <string_view>

namespace sae::inline SAE_ABI {

/// Sizes of a model's tensors.
struct ParameterShape {
  Index d_in = 0, latents = 0;
  Index d_out = 0;           ///< 0: d_in
  bool encoder_bias = true;  ///< false: no b_enc (the activation has biases of its own)
  bool tied = false;         ///< no W_enc: latents read along W_dec
  bool skip = false;         ///< W_skip
};

/// The trainable tensors of an autoencoder or transcoder. The same struct holds weights, gradients, optimizer moments and
/// averages. A tensor that the architecture does not have is empty and is not visited.
///
///   W_enc  [F x D_in]    row i: the direction that latent i reads      (the transpose of the textbook's and of SAELens' W_enc)
///   b_enc  [1 x F]
///   W_dec  [F x D_out]   row i: the direction that latent i writes
///   b_dec  [1 x D_out]
///   W_skip [D_out x D_in]
///
/// \tparam Stored  what W_enc and W_dec are stored as: Scalar, or of float bfloat16, float16, std::int8_t or Mapped.
template <class Activation, class Scalar_, class Stored_ = Scalar_>
struct AutoencoderParameters {
  using Scalar = Scalar_;
  using Stored = Stored_;
  using Gradients = AutoencoderParameters<Activation, Scalar>;  ///< what holds their gradients
  Tensor<Stored> W_enc, W_dec;
  Tensor<Scalar> b_enc, b_dec, W_skip;
  typename Activation::template Parameters<Scalar> activation;

  AutoencoderParameters() = default;
  AutoencoderParameters(Index d_in, Index latents) { resize({.d_in = d_in, .latents = latents}); }
  /// Sets the shapes; all numbers become 0.
  void resize(const ParameterShape& shape) {
    const Index d_out = shape.d_out > 0 ? shape.d_out : shape.d_in;
    W_enc.resize(shape.tied ? 0 : shape.latents, shape.tied ? 0 : shape.d_in);
    b_enc.resize(shape.encoder_bias ? 1 : 0, shape.encoder_bias ? shape.latents : 0);
    W_dec.resize(shape.latents, d_out);
    b_dec.resize(1, d_out);
    W_skip.resize(shape.skip ? d_out : 0, shape.skip ? shape.d_in : 0);
    detail::resize_own(activation, shape.latents, shape.d_in);
  }
  /// The shapes of other parameters, all numbers 0.
  template <class Other>
  void resize_like(const AutoencoderParameters<Activation, Scalar, Other>& other) {
    activation = other.activation;
    resize(other.shape());
  }
  ParameterShape shape() const {
    return {.d_in = width(),
            .latents = latents(),
            .d_out = output_width(),
            .encoder_bias = b_enc.size() > 0,
            .tied = tied(),
            .skip = W_skip.size() > 0};
  }
  /// Whether all tensors but the activation's have these sizes.
  bool has_shape(const ParameterShape& of) const {
    const auto is = [](const auto& tensor, bool there, Index rows, Index cols) {
      return tensor.rows() == (there ? rows : 0) && tensor.cols() == (there ? cols : 0);
    };
    const Index d_out = of.d_out > 0 ? of.d_out : of.d_in;
    return is(W_enc, !of.tied, of.latents, of.d_in) && is(b_enc, of.encoder_bias, 1, of.latents) &&
           is(W_dec, true, of.latents, d_out) && is(b_dec, true, 1, d_out) && is(W_skip, of.skip, d_out, of.d_in);
  }
  Index width() const { return encoder().cols(); }     ///< D_in
  Index output_width() const { return W_dec.cols(); }  ///< D_out
  Index latents() const { return W_dec.rows(); }
  bool tied() const { return W_enc.size() == 0; }
  const Tensor<Stored>& encoder() const { return tied() ? W_dec : W_enc; }  ///< [F x D_in] the directions that are read

  /// Calls visitor(name, tensor of each set ...) for every tensor: one set to read or write it, several to walk weights,
  /// gradient and moments together. Optimizers, files, checkpoints and gradient checks know parameters by this alone.
  template <class Visitor, class First, class... Sets>
  static void visit(Visitor&& visitor, First& first, Sets&... sets) {
    if (first.W_enc.size() > 0) visitor("W_enc", first.W_enc, sets.W_enc...);
    if (first.b_enc.size() > 0) visitor("b_enc", first.b_enc, sets.b_enc...);
    if (first.W_dec.size() > 0) visitor("W_dec", first.W_dec, sets.W_dec...);
    if (first.b_dec.size() > 0) visitor("b_dec", first.b_dec, sets.b_dec...);
    if (first.W_skip.size() > 0) visitor("W_skip", first.W_skip, sets.W_skip...);
    visit_activation(visitor, first, sets...);
  }
  /// The activation's own tensors alone.
  template <class Visitor, class... Sets>
  static void visit_activation(Visitor&& visitor, Sets&... sets) {
    Activation::template Parameters<Scalar>::visit(visitor, sets.activation...);
  }
  /// What no optimizer moves but a checkpoint keeps: the activation's, where it has any.
  template <class Visitor>
  static void visit_state(Visitor&& visitor, AutoencoderParameters& set) {
    if constexpr (requires { set.activation.visit_state(visitor, set.activation); })
      set.activation.visit_state(visitor, set.activation);
  }
};

/// Calls visitor(name, tensor) for every parameter of a model.
template <class Model, class Visitor>
void for_each_parameter(Model& model, Visitor&& visitor) {
  model.parameters().visit(visitor, model.parameters());
}

}  // namespace sae::inline SAE_ABI
