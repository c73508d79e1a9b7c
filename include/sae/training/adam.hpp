#pragma once
#include <sae/core/types.hpp>
#include <sae/kernels/vector.hpp>
#include <sae/training/optimizer_slots.hpp>

#include <cmath>
#include <string_view>

namespace sae::inline SAE_ABI {

/// Adam, torch's definition: every number moves at every step, whether or not its latent was active.
///
///   m <- beta1 m + (1 - beta1) g      v <- beta2 v + (1 - beta2) g^2
///   w <- w - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon)         t = 1, 2, ...
///
/// With beta1 = 0 m is g itself and is not stored: one slot (v) in the place of two (m, v). dictionary_learning's gated and JumpReLU
/// trainers take (0, 0.999).
/// Row-local: what happens to a number depends on that number alone, so the update can run in the pass that makes the gradient.
/// Source: Kingma and Ba 2015; torch.optim.Adam (epsilon outside the root).
struct Adam {
  double beta1 = 0.9;     ///< in [0, 1)
  double beta2 = 0.999;   ///< in [0, 1)
  double epsilon = 1e-8;  ///< > 0; OpenAI's code takes 6.25e-10

  static constexpr std::string_view name = "adam";
  static constexpr bool row_local = true;
  /// Tensors of state beside a parameter [rows x cols].
  SlotShapes slot_shapes(Index rows, Index cols) const {
    return beta1 > 0 ? SlotShapes{{rows, cols}, {rows, cols}} : SlotShapes{{rows, cols}};
  }

  template <class Visitor>
  void visit_settings(Visitor&& visitor) const {
    visitor("beta1", beta1);
    visitor("beta2", beta2);
    visitor("epsilon", epsilon);
  }
  void check() const { check("Adam"); }
  /// \param who  named in the message: an optimizer that is Adam with something more.
  void check(std::string_view who) const {
    if (!(beta1 >= 0 && beta1 < 1)) throw_value(who, ": beta1 = ", beta1, " is not in [0, 1)");
    if (!(beta2 >= 0 && beta2 < 1)) throw_value(who, ": beta2 = ", beta2, " is not in [0, 1)");
    require_positive(detail::concat(who, ": epsilon"), epsilon);
  }

  /// One step's constants, made once and applied to every row.
  template <class Scalar>
  struct Update {
    Scalar beta1, rest1, beta2, rest2, rate, root, epsilon;

    /// w -= ... over n numbers; g is the gradient, slots are m and v, or v alone where beta1 = 0.
    void operator()(Scalar* __restrict w, const Scalar* __restrict g, const SlotRows<Scalar>& state, Index n) const {
      if constexpr (std::is_same_v<Scalar, float>)
        return kernels::detail::float_kernels().adam({beta1, rest1, beta2, rest2, rate, root, epsilon}, w, g,
                                                     beta1 == 0 ? nullptr : state[0], state[beta1 == 0 ? 0 : 1], n);
      if (beta1 == Scalar(0)) {
        Scalar* __restrict v = state[0];
        for (Index j = 0; j < n; ++j) {
          v[j] = beta2 * v[j] + rest2 * g[j] * g[j];
          w[j] -= rate * g[j] / (std::sqrt(v[j]) * root + epsilon);
        }
        return;
      }
      Scalar* __restrict m = state[0];
      Scalar* __restrict v = state[1];
      for (Index j = 0; j < n; ++j) {
        m[j] = beta1 * m[j] + rest1 * g[j];
        v[j] = beta2 * v[j] + rest2 * g[j] * g[j];
        w[j] -= rate * m[j] / (std::sqrt(v[j]) * root + epsilon);
      }
    }
    /// The same with slots of 16 bits, see `detail::update_narrow`.
    void operator()(float* w, const float* g, const SlotRows<bfloat16>& state, Index n, const Rounding& at) const
        requires(std::is_same_v<Scalar, float>) {
      kernels::detail::half_kernels().adam_bfloat16({beta1, rest1, beta2, rest2, rate, root, epsilon}, w, g,
                                                    beta1 == 0 ? nullptr : state[0], state[beta1 == 0 ? 0 : 1], n, at);
    }
  };

  /// \param t  number of this step, from 1.
  template <class Scalar>
  Update<Scalar> update(Index t, double learning_rate) const {
    const double steps = static_cast<double>(t);
    return {static_cast<Scalar>(beta1),
            static_cast<Scalar>(1 - beta1),
            static_cast<Scalar>(beta2),
            static_cast<Scalar>(1 - beta2),
            static_cast<Scalar>(learning_rate / (1 - std::pow(beta1, steps))),
            static_cast<Scalar>(1 / std::sqrt(1 - std::pow(beta2, steps))),
            static_cast<Scalar>(epsilon)};
  }
};

/// Adam with decoupled weight decay: w <- (1 - lr weight_decay) w, then Adam's step. Every tensor decays, biases and thresholds
/// too, as in torch where all of them are in one group. Decoder rows that are kept at unit norm decay to no effect.
/// Source: Loshchilov and Hutter 2019, algorithm 2; torch.optim.AdamW.
struct AdamW {
  double beta1 = 0.9;          ///< in [0, 1)
  double beta2 = 0.999;        ///< in [0, 1)
  double epsilon = 1e-8;       ///< > 0
  double weight_decay = 1e-2;  ///< >= 0, per unit of the learning rate

  static constexpr std::string_view name = "adamw";
  static constexpr bool row_local = true;
  Adam adam() const { return {beta1, beta2, epsilon}; }
  SlotShapes slot_shapes(Index rows, Index cols) const { return adam().slot_shapes(rows, cols); }

  template <class Visitor>
  void visit_settings(Visitor&& visitor) const {
    adam().visit_settings(visitor);
    visitor("weight_decay", weight_decay);
  }
  void check() const {
    adam().check("AdamW");
    require_non_negative("AdamW: weight_decay", weight_decay);
  }

  template <class Scalar>
  struct Update {
    Adam::Update<Scalar> adam;
    Scalar keep;

    void operator()(Scalar* w, const Scalar* g, const SlotRows<Scalar>& state, Index n) const {
      kernels::scale(w, keep, n);
      adam(w, g, state, n);
    }
    void operator()(float* w, const float* g, const SlotRows<bfloat16>& state, Index n, const Rounding& at) const
        requires(std::is_same_v<Scalar, float>) {
      kernels::scale(w, keep, n);
      adam(w, g, state, n, at);
    }
  };
  template <class Scalar>
  Update<Scalar> update(Index t, double learning_rate) const {
    return {adam().update<Scalar>(t, learning_rate), static_cast<Scalar>(1 - learning_rate * weight_decay)};
  }
};

}  // namespace sae::inline SAE_ABI
