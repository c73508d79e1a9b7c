#pragma once
#include <sae/activations/abs_topk.hpp>
#include <sae/activations/batch_topk.hpp>
#include <sae/activations/gated.hpp>
#include <sae/activations/group_max.hpp>
#include <sae/activations/jump_relu.hpp>
#include <sae/activations/matching_pursuit.hpp>
#include <sae/activations/relu.hpp>
#include <sae/activations/topk.hpp>
#include <sae/core/threads.hpp>

#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>

namespace sae::inline SAE_ABI {

/// An activation that is chosen at run time: one model type, one trainer for all of them, where the architecture comes from a
/// file or a command line.
///
///   SparseAutoencoder model(576, 4608, AnyActivation(name == "topk" ? AnyActivation(TopK{.k = 32}) : AnyActivation(ReLU{})));
///
/// It is asked once a tile of pre-activations which one it is, so that it costs nothing beside the product. Everything else is as
/// the activation inside says. A line more in `Variants` makes an activation known to files and program.
class AnyActivation {
 public:
  using Variants =
      std::variant<ReLU, TopK, BatchTopK, AbsTopK, GroupMax, JumpReLU, Gated, MatchingPursuit, OrthogonalMatchingPursuit>;

  AnyActivation() : AnyActivation(ReLU{}) {}
  template <class Activation>
    requires(std::is_constructible_v<Variants, Activation> && !std::is_same_v<std::remove_cvref_t<Activation>, AnyActivation>)
  AnyActivation(Activation activation)  // NOLINT: an implicit conversion is the point
      : name(std::remove_cvref_t<Activation>::name), value_(std::move(activation)) {}

  std::string_view name;  ///< of the activation inside

  template <class F>
  decltype(auto) visit(F&& f) const {
    return std::visit(std::forward<F>(f), value_);
  }
  template <class F>
  decltype(auto) visit(F&& f) {
    return std::visit(std::forward<F>(f), value_);
  }
  std::size_t index() const { return value_.index(); }
  /// The activation inside where it is one of this type, else null.
  template <class Activation>
  const Activation* get() const {
    return std::get_if<Activation>(&value_);
  }
  template <class Activation>
  Activation* get() {
    return std::get_if<Activation>(&value_);
  }

  template <class Visitor>
  void visit_settings(Visitor&& visitor) const {
    visit([&](const auto& activation) {
      if constexpr (requires { activation.visit_settings(visitor); }) activation.visit_settings(visitor);
    });
  }
  void check(Index latents) const {
    visit([&](const auto& activation) { activation.check(latents); });
  }
  bool needs_decoder_norms() const {
    return visit([](const auto& activation) { return activation.needs_decoder_norms(); });
  }
  /// Whether the model has b_enc; whether W_enc is W_dec.
  bool encoder_bias() const {
    return visit([](const auto& activation) { return detail::has_encoder_bias(activation); });
  }
  bool tied_weights() const {
    return visit([](const auto& activation) { return detail::has_tied_weights(activation); });
  }
  bool shared_decoder_bias() const {
    return visit([](const auto& activation) { return detail::shares_decoder_bias(activation); });
  }

  /// The own tensors of the activation inside.
  template <class Scalar_>
  class Parameters {
   public:
    using Scalar = Scalar_;
    /// Makes them those of `activation`.
    void choose(const AnyActivation& activation) {
      choose_index(activation.index(), std::make_index_sequence<std::variant_size_v<Variants>>());
    }
    void resize(Index latents, Index d_in) {
      std::visit([&](auto& inner) { detail::resize_own(inner.parameters, latents, d_in); }, value_);
    }
    void initialize(const AnyActivation& activation) {
      on_each(activation, *this, [](const auto& a, auto& p) { p.initialize(a); });
    }
    template <class Visitor, class First, class... Sets>
    static void visit(Visitor&& visitor, First& first, Sets&... sets) {
      visit_as(visitor, std::make_index_sequence<std::variant_size_v<Variants>>(), first, sets...);
    }
    template <class Visitor>
    static void visit_state(Visitor&& visitor, Parameters& set) {
      std::visit(
          [&](auto& inner) {
            if constexpr (requires { inner.parameters.visit_state(visitor, inner.parameters); })
              inner.parameters.visit_state(visitor, inner.parameters);
          },
          set.value_);
    }
    void rescale(Scalar factor) {
      std::visit([&](auto& inner) { inner.parameters.rescale(factor); }, value_);
    }
    void rescale_latent(Index latent, Scalar factor) {
      std::visit([&](auto& inner) { inner.parameters.rescale_latent(latent, factor); }, value_);
    }
    void constrain() {
      std::visit([](auto& inner) { inner.parameters.constrain(); }, value_);
    }
    template <class Activation>
    const typename Activation::template Parameters<Scalar>* get() const {
      const auto* inner = std::get_if<Own<Activation>>(&value_);
      return inner == nullptr ? nullptr : &inner->parameters;
    }
    template <class Activation>
    typename Activation::template Parameters<Scalar>* get() {
      auto* inner = std::get_if<Own<Activation>>(&value_);
      return inner == nullptr ? nullptr : &inner->parameters;
    }

   private:
    /// Activations without tensors share one type of parameters: the wrapper tells them apart.
    template <class Activation>
    struct Own {
      typename Activation::template Parameters<Scalar> parameters;
    };
    template <class>
    struct OwnOf;
    template <class... Activations>
    struct OwnOf<std::variant<Activations...>> {
      using type = std::variant<Own<Activations>...>;
    };

    template <std::size_t... n>
    void choose_index(std::size_t index, std::index_sequence<n...>) {
      ((index == n ? void(value_.template emplace<n>()) : void()), ...);
    }
    template <class Visitor, std::size_t... n, class First, class... Sets>
    static void visit_as(Visitor& visitor, std::index_sequence<n...>, First& first, Sets&... sets) {
      const auto call = [&]<std::size_t i>(std::integral_constant<std::size_t, i>) {
        if (first.value_.index() != i) return;
        using Inner = std::remove_cvref_t<decltype(std::get<i>(first.value_).parameters)>;
        Inner::visit(visitor, std::get<i>(first.value_).parameters, std::get<i>(sets.value_).parameters...);
      };
      (call(std::integral_constant<std::size_t, n>()), ...);
    }

    typename OwnOf<Variants>::type value_;
  };

  template <class Scalar>
  void backward(const Backward<Scalar>& at, const Parameters<Scalar>& parameters, Parameters<Scalar>& gradient) const {
    visit([&]<class Activation>(const Activation& activation) {
      activation.backward(at, *parameters.template get<Activation>(), *gradient.template get<Activation>());
    });
  }
  /// See `select` and `run_step`: activations whose encoder is not one product.
  template <class Model, class Step>
  bool pursue(const Model& parameters, Step& step, Threads& threads) const {
    return visit([&](const auto& activation) {
      if constexpr (std::is_same_v<typename Model::Stored, typename Model::Scalar> &&
                    requires { activation.pursue(parameters, step, threads); })
        return activation.pursue(parameters, step, threads);
      else
        return false;
    });
  }
  template <class Step>
  bool pursue_backward(Step& step, Threads& threads) const {
    return visit([&](const auto& activation) {
      if constexpr (requires { activation.pursue_backward(step, threads); })
        return activation.pursue_backward(step, threads);
      else
        return false;
    });
  }

 private:
  /// Calls f(activation, its parameters) with both of their own type.
  template <class Any, class P, class F>
  static void on_each(const Any& any, P& parameters, const F& f) {
    any.visit([&]<class Activation>(const Activation& activation) { f(activation, *parameters.template get<Activation>()); });
  }

  Variants value_;
};

/// The blocks' selectors of an activation that is chosen at run time: those of the one inside.
template <class Scalar>
class SelectorBlocks<AnyActivation, Scalar> {
  template <class>
  struct BlocksOf;
  template <class... Activations>
  struct BlocksOf<std::variant<Activations...>> {
    using type = std::variant<SelectorBlocks<Activations, Scalar>...>;
  };

 public:
  using Parameters = AnyActivation::Parameters<Scalar>;

  void begin(const AnyActivation& any, const Parameters& parameters, std::span<const Scalar> decoder_norms, Index rows,
             Index block_rows) {
    any.visit([&]<class Activation>(const Activation& activation) {
      using Inner = SelectorBlocks<Activation, Scalar>;
      if (!std::holds_alternative<Inner>(value_)) value_.template emplace<Inner>();
      std::get<Inner>(value_).begin(activation, *parameters.template get<Activation>(), decoder_norms, rows, block_rows);
    });
  }
  void take(Index block, Index row, Index first, std::span<const Scalar> z) {
    std::visit([&](auto& blocks) { blocks.take(block, row, first, z); }, value_);
  }
  std::optional<ScreenRule> screened() const {
    return std::visit(
        [](const auto& blocks) -> std::optional<ScreenRule> {
          if constexpr (requires { blocks.screened(); }) return blocks.screened();
          return std::nullopt;
        },
        value_);
  }
  bool screen_holds() const {
    return std::visit(
        [](const auto& blocks) {
          if constexpr (requires { blocks.screen_holds(); }) return blocks.screen_holds();
          return true;
        },
        value_);
  }
  void offer(Index block, Index row, std::span<const int> latents, std::span<const Scalar> z) {
    std::visit(
        [&](auto& blocks) {
          if constexpr (requires { blocks.offer(block, row, latents, z); }) blocks.offer(block, row, latents, z);
        },
        value_);
  }
  void merge() {
    std::visit([](auto& blocks) { blocks.merge(); }, value_);
  }
  void emit(Index block, Index row, Entries<Scalar>& active, Entries<Scalar>& band) {
    std::visit([&](auto& blocks) { blocks.emit(block, row, active, band); }, value_);
  }
  void observe(const AnyActivation& any, Parameters& state) const {
    any.visit([&]<class Activation>(const Activation& activation) {
      // A pursuit begins no selectors: there is nothing to see.
      if (const auto* const blocks = std::get_if<SelectorBlocks<Activation, Scalar>>(&value_); blocks != nullptr)
        blocks->observe(activation, *state.template get<Activation>());
    });
  }

 private:
  typename BlocksOf<AnyActivation::Variants>::type value_;
};

}  // namespace sae::inline SAE_ABI
