#pragma once
#include <sae/models/reconstruction_loss.hpp>

#include <optional>
#include <span>
#include <tuple>
#include <type_traits>
#include <utility>

namespace sae::inline SAE_ABI {

namespace detail {
template <class Term>
inline constexpr bool reconstructs = requires {
  Term::reconstructs;
};
}  // namespace detail

/// The loss that is trained: the reconstruction error mean_b |x'_b - x_b|^2 (sum over D, mean over the batch) plus terms.
///
///   sae::Objective objective{sae::L1{.coefficient = 5}, sae::AuxK{}};
///
/// A term is a struct with
///   static constexpr std::string_view name;
///   void check(Index d_in, Index latents) const;
///   bool needs_decoder_norms() const;            true for a term that reads step.decoder_norms
///   template <class Step> double apply(Step&, Selection&, Threads&) const;   its value; adds its gradient where step.wants_gradient
/// `apply` runs after the codes, the residual and dL/dx' are known, and adds to main.df, band.df, gate_gradient(), norm_gradient(),
/// the cotangent, *activation_gradient, or paths of its own. A term with a selector of its own over the same tiles of pre-activations declares
///   template <class Scalar> class Selection { bool begin(const Term&, Step&, Index blocks, Index block_rows); void take(block, row, first, z); };
/// A term whose state changes in a training has `template <class Step> void advance(const Step&)`, called after each of its steps,
/// and `visit_state(visitor)` with the calls of `Trainer::visit_state`.
///
/// One element may be the reconstruction loss itself instead of a term (Matryoshka, a `SquaredError` with another normaliser):
///   static constexpr bool reconstructs = true;
///   template <class Step> double reconstruct(Step&, Threads&) const;
/// in the place of `apply`. It fills step.residual, step.row_loss and step.cotangent from the codes. One with several
/// reconstructions sets step.has_levels, leaves a cotangent for each in step.level_cotangent, and says which entry has which in
/// level_ends (of the main path and the band) or cotangent_rows (of the main path).
template <class... Terms>
struct Objective {
  static_assert((0 + ... + (detail::reconstructs<Terms> ? 1 : 0)) <= 1,
                "sae: an objective holds at most one loss that reconstructs");
  std::tuple<Terms...> terms;

  constexpr Objective() = default;
  constexpr explicit Objective(Terms... list) requires(sizeof...(Terms) > 0) : terms(std::move(list)...) {}

  void check(Index d_in, Index latents) const {
    std::apply([&](const Terms&... term) { (term.check(d_in, latents), ...); }, terms);
  }
  bool needs_decoder_norms() const {
    return std::apply([](const Terms&... term) { return (false || ... || term.needs_decoder_norms()); }, terms);
  }
  /// Calls f(element) for every element, the one that reconstructs, too.
  template <class F>
  void for_each(const F& f) {
    std::apply([&](Terms&... term) { (f(term), ...); }, terms);
  }
  template <class F>
  void for_each(const F& f) const {
    std::apply([&](const Terms&... term) { (f(term), ...); }, terms);
  }
  /// Calls f(term, selection) for every term, in order; what reconstructs is no term.
  template <class Selections, class F>
  void for_each_term(Selections& selections, const F& f) const {
    const auto call = [&]<class Term>(const Term& term, auto& selection) {
      if constexpr (!detail::reconstructs<Term>) f(term, selection);
    };
    [&]<std::size_t... n>(std::index_sequence<n...>) { (call(std::get<n>(terms), std::get<n>(selections)), ...); }
    (std::index_sequence_for<Terms...>());
  }
  /// Runs the reconstruction loss: its name and value. It is SquaredError{} where the objective names none, and nameless then.
  template <class Step>
  std::pair<std::string_view, double> reconstruct(Step& step, Threads& threads) const {
    std::pair<std::string_view, double> out;
    if constexpr ((false || ... || detail::reconstructs<Terms>)) {
      for_each([&]<class Term>(const Term& term) {
        if constexpr (detail::reconstructs<Term>) out = {Term::name, term.reconstruct(step, threads)};
      });
    } else {
      out.second = SquaredError{}.reconstruct(step, threads);
    }
    return out;
  }
};
template <class... Terms>
Objective(Terms...) -> Objective<Terms...>;

namespace detail {
template <class T>
inline constexpr bool is_objective = false;
template <class... Terms>
inline constexpr bool is_objective<Objective<Terms...>> = true;
}  // namespace detail

/// Selection of a term that watches no tiles.
struct NoSelection {};
/// Base of one that keeps memory for its term from step to step and watches none.
template <class Scalar>
struct KeptMemory {
  template <class Term, class Step>
  bool begin(const Term&, const Step&, Index /*blocks*/, Index /*block_rows*/) {
    return false;
  }
  void take(Index, Index, Index, std::span<const Scalar>) {}
};

namespace detail {
template <class Term, class Scalar>
struct SelectionOf {
  using type = NoSelection;
};
template <class Term, class Scalar>
  requires requires { typename Term::template Selection<Scalar>; }
struct SelectionOf<Term, Scalar> {
  using type = typename Term::template Selection<Scalar>;
};
template <class Objective, class Scalar>
struct SelectionsOf;
template <class... Terms, class Scalar>
struct SelectionsOf<Objective<Terms...>, Scalar> {
  using type = std::tuple<typename SelectionOf<Terms, Scalar>::type...>;
};

template <class Selection>
inline constexpr bool watches_tiles = !std::is_same_v<Selection, NoSelection>;
}  // namespace detail

/// A step together with the terms' selections: all that evaluating an objective on one batch needs, reused from batch to batch.
template <class Activation, class Scalar, class Objective, class Stored = Scalar>
struct Workspace {
  Step<Activation, Scalar, Stored> step;
  typename detail::SelectionsOf<Objective, Scalar>::type selections;

  /// Promises that the model it is used with is one and the same in all calls, and that its weights do not change any more: what
  /// follows from them (encoder rows of eight bits, decoder norms) is then kept from call to call. F D bytes; results are the same to
  /// the last bit.
  void keep_weights() { step.weights_stay = true; }
};

}  // namespace sae::inline SAE_ABI
