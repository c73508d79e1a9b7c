#pragma once
#include <sae/models/matryoshka.hpp>
#include <sae/training/aux_k.hpp>
#include <sae/training/gated_aux.hpp>
#include <sae/training/ghost_gradients.hpp>
#include <sae/training/l0_penalty.hpp>
#include <sae/training/l1.hpp>
#include <sae/training/lp.hpp>
#include <sae/training/matryoshka_aux_k.hpp>
#include <sae/training/multi_topk.hpp>
#include <sae/training/p_anneal.hpp>
#include <sae/training/pre_activation_loss.hpp>
#include <sae/training/reanimation.hpp>
#include <sae/training/tanh_penalty.hpp>

#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace sae::inline SAE_ABI {

/// An element of an objective that is chosen at run time.
class AnyTerm {
 public:
  using Variants = std::variant<SquaredError, Matryoshka, HierarchicalTopK, L1, Lp, PAnneal, AuxK, MatryoshkaAuxK, MultiTopK,
                                GatedAux, L0Penalty, TanhPenalty, PreActivationLoss, GhostGradients, Reanimation>;

  template <class Term>
    requires(std::is_constructible_v<Variants, Term> && !std::is_same_v<std::remove_cvref_t<Term>, AnyTerm>)
  AnyTerm(Term term) : name(std::remove_cvref_t<Term>::name), value_(std::move(term)) {}  // NOLINT: an implicit conversion

  std::string_view name;  ///< of the term inside

  template <class F>
  decltype(auto) visit(F&& f) const {
    return std::visit(std::forward<F>(f), value_);
  }
  template <class F>
  decltype(auto) visit(F&& f) {
    return std::visit(std::forward<F>(f), value_);
  }
  /// The term inside where it is one of this type, else null.
  template <class Term>
  Term* get() {
    return std::get_if<Term>(&value_);
  }
  template <class Term>
  const Term* get() const {
    return std::get_if<Term>(&value_);
  }
  template <class Visitor>
  void visit_settings(Visitor&& visitor) const {
    visit([&](const auto& term) {
      if constexpr (requires { term.visit_settings(visitor); }) term.visit_settings(visitor);
    });
  }

 private:
  Variants value_;
};

/// A loss whose terms are chosen at run time; everything else is as `Objective` says.
///
///   AnyObjective objective{L1{.coefficient = 5}, AuxK{}};
///   objective.terms.push_back(TanhPenalty{});
struct AnyObjective {
  std::vector<AnyTerm> terms;

  AnyObjective() = default;
  template <class... Terms>
    requires(sizeof...(Terms) > 0 && (std::is_constructible_v<AnyTerm, Terms> && ...))
  explicit AnyObjective(Terms... list) { (terms.emplace_back(std::move(list)), ...); }
  template <class... Terms>
  AnyObjective(const Objective<Terms...>& objective) {  // NOLINT: an implicit conversion is the point
    std::apply([&](const Terms&... term) { (terms.emplace_back(term), ...); }, objective.terms);
  }

  /// The first term of this type, or null.
  template <class Term>
  Term* find() {
    for (AnyTerm& any : terms)
      if (Term* const term = any.get<Term>()) return term;
    return nullptr;
  }
  /// \throws ValueError  also where two elements reconstruct.
  void check(Index d_in, Index latents) const {
    std::string_view first;
    for (const AnyTerm& term : terms) {
      term.visit([&]<class Term>(const Term& inner) {
        inner.check(d_in, latents);
        if constexpr (!detail::reconstructs<Term>) return;
        if (!first.empty())
          throw_value("objective: both ", first, " and ", Term::name, " are reconstruction losses; it holds at most one");
        first = Term::name;
      });
    }
  }
  bool needs_decoder_norms() const {
    bool needs = false;
    for (const AnyTerm& term : terms)
      needs = term.visit([](const auto& inner) { return inner.needs_decoder_norms(); }) || needs;
    return needs;
  }
  template <class F>
  void for_each(const F& f) {
    for (AnyTerm& term : terms) term.visit(f);
  }
  template <class F>
  void for_each(const F& f) const {
    for (const AnyTerm& term : terms) term.visit(f);
  }
  template <class Selections, class F>
  void for_each_term(Selections& selections, const F& f) const {
    if (selections.size() != terms.size()) selections.resize(terms.size());
    for (std::size_t n = 0; n < terms.size(); ++n)
      terms[n].visit([&]<class Term>(const Term& term) {
        if constexpr (!detail::reconstructs<Term>) f(term, selections[n].template of<Term>());
      });
  }
  template <class Step>
  std::pair<std::string_view, double> reconstruct(Step& step, Threads& threads) const {
    std::pair<std::string_view, double> out;
    for_each([&]<class Term>(const Term& term) {
      if constexpr (detail::reconstructs<Term>) out = {Term::name, term.reconstruct(step, threads)};
    });
    if (out.first.empty()) out.second = SquaredError{}.reconstruct(step, threads);
    return out;
  }
};

namespace detail {

template <>
inline constexpr bool is_objective<AnyObjective> = true;

/// A term's selection; terms without one share one type of it, and this tells them apart.
template <class Term, class Scalar>
struct OwnSelection {
  typename SelectionOf<Term, Scalar>::type selection;
};
template <class Scalar, class Variants>
struct AnySelection;
template <class Scalar_, class... Terms>
struct AnySelection<Scalar_, std::variant<Terms...>> {
  std::variant<OwnSelection<Terms, Scalar_>...> value;

  template <class Term>
  auto& of() {
    using Own = OwnSelection<Term, Scalar_>;
    if (!std::holds_alternative<Own>(value)) value.template emplace<Own>();
    return std::get<Own>(value).selection;
  }
};
template <class Scalar>
struct SelectionsOf<AnyObjective, Scalar> {
  using type = std::vector<AnySelection<Scalar, AnyTerm::Variants>>;
};

}  // namespace detail

}  // namespace sae::inline SAE_ABI
