#pragma once
#include <sae/activations/any_activation.hpp>
#include <sae/models/jump_relu_conversion.hpp>

#include <optional>
#include <string_view>
#include <type_traits>
#include <utility>

// Models between an activation that is fixed in the type and one that is chosen at run time: autoencoders and transcoders alike.
namespace sae::inline SAE_ABI {

/// The model with its activation in its type.
/// \throws ValueError  its activation is another one.
template <class Activation, class Model>
  requires std::is_same_v<typename Model::Activation, AnyActivation>
auto with_activation(const Model& model) {
  const Activation* const activation = model.activation().template get<Activation>();
  if (activation == nullptr)
    throw_value("with_activation: the model's activation is ", model.activation().name, " and not ", Activation::name);
  auto out = detail::same_model_with(model, *activation);
  detail::copy_tensors(model.parameters(), out.parameters());
  out.parameters().activation = *model.parameters().activation.template get<Activation>();
  return out;
}
/// The model with an activation that is known at run time alone.
template <class Model>
  requires(!std::is_same_v<typename Model::Activation, AnyActivation>)
auto with_any_activation(const Model& model) {
  auto out = detail::same_model_with(model, AnyActivation(model.activation()));
  detail::copy_tensors(model.parameters(), out.parameters());
  *out.parameters().activation.template get<typename Model::Activation>() = model.parameters().activation;
  return out;
}

/// What is used and saved in the place of a model that ranks whole batches: BatchTopK as the JumpReLU of its running threshold
/// (`to_jump_relu`); nothing for every other activation, which already decides row by row.
template <class Model>
std::optional<Model> inference_model(const Model& model) {
  if constexpr (std::is_same_v<typename Model::Activation, AnyActivation>)
    if (model.activation().template get<BatchTopK>() != nullptr)
      return with_any_activation(to_jump_relu(with_activation<BatchTopK>(model)));
  return std::nullopt;
}

}  // namespace sae::inline SAE_ABI
