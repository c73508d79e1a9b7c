#pragma once
#include <sae/core/types.hpp>
#include <sae/training/optimizer_slots.hpp>

#include <cmath>
#include <string_view>

namespace sae::inline SAE_ABI {

/// Stochastic gradient descent with momentum, torch's definition (dampening 0): no averaging factor stands before g.
///
///   m <- momentum m + g        w <- w - lr m,    or with `nesterov`   w <- w - lr (g + momentum m)
///
/// Without momentum w <- w - lr g, and nothing is stored. Row-local. Source: torch.optim.SGD; Sutskever et al. 2013.
struct Sgd {
  double momentum = 0;    ///< in [0, 1)
  bool nesterov = false;  ///< needs momentum > 0

  static constexpr std::string_view name = "sgd";
  static constexpr bool row_local = true;
  SlotShapes slot_shapes(Index rows, Index cols) const { return momentum > 0 ? SlotShapes{{rows, cols}} : SlotShapes{}; }

  template <class Visitor>
  void visit_settings(Visitor&& visitor) const {
    visitor("momentum", momentum);
    visitor("nesterov", nesterov);
  }
  void check() const {
    if (!(momentum >= 0 && momentum < 1)) throw_value("Sgd: momentum = ", momentum, " is not in [0, 1)");
    if (nesterov && momentum == 0) throw_value("Sgd: nesterov needs a momentum above 0, it is ", momentum);
  }

  template <class Scalar>
  struct Update {
    Scalar momentum, rate;
    bool nesterov;

    /// The slot is m, or none where momentum = 0.
    void operator()(Scalar* __restrict w, const Scalar* __restrict g, const SlotRows<Scalar>& state, Index n) const {
      Scalar* __restrict m = state[0];
      if (momentum == Scalar(0)) {
        for (Index j = 0; j < n; ++j) w[j] -= rate * g[j];
      } else if (nesterov) {
        for (Index j = 0; j < n; ++j) {
          m[j] = momentum * m[j] + g[j];
          w[j] -= rate * (g[j] + momentum * m[j]);
        }
      } else {
        for (Index j = 0; j < n; ++j) {
          m[j] = momentum * m[j] + g[j];
          w[j] -= rate * m[j];
        }
      }
    }
  };
  template <class Scalar>
  Update<Scalar> update(Index, double learning_rate) const {
    return {static_cast<Scalar>(momentum), static_cast<Scalar>(learning_rate), nesterov};
  }
};

/// signSGD, and with momentum Signum: every number moves by the learning rate, up or down.
///
///   m <- momentum m + (1 - momentum) g        w <- w - lr sign(m)        sign(0) = 0, sign(NaN) = NaN
///
/// Without momentum m is g, and nothing is stored. Row-local. sparsify's "signum" is another thing: `ScheduleFree`.
/// Source: Bernstein et al. 2018, "signSGD: compressed optimisation for non-convex problems", algorithms 1 and 2.
struct SignSgd {
  double momentum = 0;  ///< in [0, 1)

  static constexpr std::string_view name = "signsgd";
  static constexpr bool row_local = true;
  SlotShapes slot_shapes(Index rows, Index cols) const { return momentum > 0 ? SlotShapes{{rows, cols}} : SlotShapes{}; }

  template <class Visitor>
  void visit_settings(Visitor&& visitor) const {
    visitor("momentum", momentum);
  }
  void check() const {
    if (!(momentum >= 0 && momentum < 1)) throw_value("SignSgd: momentum = ", momentum, " is not in [0, 1)");
  }

  template <class Scalar>
  struct Update {
    Scalar momentum, rest, rate;

    /// Without a branch on the sign, which nothing could predict.
    static Scalar sign(Scalar x) {
      const auto one = static_cast<Scalar>(static_cast<int>(x > Scalar(0)) - static_cast<int>(x < Scalar(0)));
      return std::isnan(x) ? x : one;
    }
    /// The slot is m, or none where momentum = 0.
    void operator()(Scalar* __restrict w, const Scalar* __restrict g, const SlotRows<Scalar>& state, Index n) const {
      Scalar* __restrict m = state[0];
      if (momentum == Scalar(0)) {
        for (Index j = 0; j < n; ++j) w[j] -= rate * sign(g[j]);
        return;
      }
      for (Index j = 0; j < n; ++j) {
        m[j] = momentum * m[j] + rest * g[j];
        w[j] -= rate * sign(m[j]);
      }
    }
  };
  template <class Scalar>
  Update<Scalar> update(Index, double learning_rate) const {
    return {static_cast<Scalar>(momentum), static_cast<Scalar>(1 - momentum), static_cast<Scalar>(learning_rate)};
  }
};

}  // namespace sae::inline SAE_ABI
