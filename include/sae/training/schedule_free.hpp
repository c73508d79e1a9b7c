#pragma once
#include <sae/core/types.hpp>
#include <sae/training/optimizer_slots.hpp>
#include <sae/training/sgd.hpp>

#include <algorithm>
#include <string_view>

namespace sae::inline SAE_ABI {

/// Gradient descent, or with `sign` signSGD, inside schedule-free averaging: a constant learning rate, and an average of the weights
/// that is as good at every step as the end of a decaying schedule.
///
///   y = (1 - momentum) z + momentum x            where the gradient g is taken: the weights that a training shows
///   z <- z - lr g    or    z - lr sign(g)
///   x <- (1 - c) x + c z        c = m_t^2 / sum_s<=t m_s^2, m_t the largest learning rate so far; 1 / t where it is constant
///
/// x, y and z start as w. y and z are kept, x = y + (1 - 1 / momentum) (z - y) comes from them. When `Trainer::fit` ends, early or not,
/// x takes the place of the weights; decoder rows are then brought back to their norm where `decoder` is `unit`. What changes y between
/// steps (a decoder row brought to norm 1) leaves z alone. Row-local; one slot, z.
/// Source: Defazio et al. 2024, "The road less scheduled", equations 1 to 3; schedulefree 1.4.1, ScheduleFreeWrapper (r = 0,
/// weight_lr_power = 2), which sparsify puts around sign-SGD with momentum 0.95 and calls "signum".
struct ScheduleFree {
  double momentum = 0.95;  ///< in (0, 1)
  bool sign = true;

  static constexpr std::string_view name = "schedule_free";
  static constexpr bool row_local = true;
  SlotShapes slot_shapes(Index rows, Index cols) const { return {{rows, cols}}; }

  template <class Visitor>
  void visit_settings(Visitor&& visitor) const {
    visitor("momentum", momentum);
    visitor("sign", sign);
  }
  void check() const {
    if (!(momentum > 0 && momentum < 1)) throw_value("ScheduleFree: momentum = ", momentum, " is not in (0, 1)");
  }
  /// x from y and z.
  template <class Scalar>
  static Scalar average(Scalar momentum, Scalar y, Scalar z) {
    return y + (1 - 1 / momentum) * (z - y);
  }

  template <class Scalar>
  struct Update {
    Scalar momentum, rate, share;  ///< momentum, lr, c
    bool sign, first;

    /// w is y, the slot z.
    void operator()(Scalar* w, const Scalar* g, const SlotRows<Scalar>& state, Index n) const {
      if (first) std::copy_n(w, n, state[0]);
      if (sign) {
        step(w, state[0], n, [&](Index j) { return SignSgd::Update<Scalar>::sign(g[j]); });
      } else {
        step(w, state[0], n, [&](Index j) { return g[j]; });
      }
    }

   private:
    template <class Direction>
    void step(Scalar* __restrict w, Scalar* __restrict kept, Index n, const Direction& direction) const {
      for (Index j = 0; j < n; ++j) {
        const Scalar before = kept[j], z = before - rate * direction(j);
        Scalar x = average(momentum, w[j], before);
        x += share * (z - x);
        w[j] = x + (1 - momentum) * (z - x);
        kept[j] = z;
      }
    }
  };
  /// \param share  c
  template <class Scalar>
  Update<Scalar> update(Index t, double learning_rate, double share) const {
    return {static_cast<Scalar>(momentum), static_cast<Scalar>(learning_rate), static_cast<Scalar>(share), sign, t == 1};
  }
};

}  // namespace sae::inline SAE_ABI
