#pragma once
#include <sae/activations/any_activation.hpp>
#include <sae/models/jump_relu_conversion.hpp>

#include <optional>
#include <string_view>
#include <utility>

// Models between an activation that is fixed in the type and one that is chosen at run time.
namespace sae::inline SAE_ABI {

namespace detail {
template <class To, class From>
void copy_tensors(const From& from, To& to) {
  to.W_enc = from.W_enc;
  to.b_enc = from.b_enc;
  to.W_dec = from.W_dec;
  to.b_dec = from.b_dec;
}
}  // namespace detail

/// The model with its activation in its type.
/// \throws ValueError  its activation is another one.
template <class Activation, int D, int F, class Scalar>
SparseAutoencoder<D, F, Activation, Scalar> with_activation(const SparseAutoencoder<D, F, AnyActivation, Scalar>& model) {
  const Activation* const activation = model.activation().template get<Activation>();
  if (activation == nullptr)
    throw_value("with_activation: the model's activation is ", model.activation().name, " and not ", Activation::name);
  SparseAutoencoder<D, F, Activation, Scalar> out(model.d_in(), model.latents(), *activation,
                                                  {.subtract_decoder_bias = model.subtracts_decoder_bias()});
  detail::copy_tensors(model.parameters(), out.parameters());
  out.parameters().activation = *model.parameters().activation.template get<Activation>();
  return out;
}
/// The model with an activation that is known at run time alone.
template <class Activation, int D, int F, class Scalar>
SparseAutoencoder<D, F, AnyActivation, Scalar> with_any_activation(const SparseAutoencoder<D, F, Activation, Scalar>& model) {
  SparseAutoencoder<D, F, AnyActivation, Scalar> out(model.d_in(), model.latents(), AnyActivation(model.activation()),
                                                     {.subtract_decoder_bias = model.subtracts_decoder_bias()});
  detail::copy_tensors(model.parameters(), out.parameters());
  *out.parameters().activation.template get<Activation>() = model.parameters().activation;
  return out;
}

/// What is used and saved in the place of a model that ranks whole batches: BatchTopK as the JumpReLU of its running threshold
/// (`to_jump_relu`); nothing for every other activation, which already decides row by row.
template <class Activation, int D, int F, class Scalar>
std::optional<SparseAutoencoder<D, F, Activation, Scalar>> inference_model(
    const SparseAutoencoder<D, F, Activation, Scalar>& model) {
  if constexpr (std::is_same_v<Activation, AnyActivation>)
    if (model.activation().template get<BatchTopK>() != nullptr)
      return with_any_activation(to_jump_relu(with_activation<BatchTopK>(model)));
  return std::nullopt;
}

}  // namespace sae::inline SAE_ABI
