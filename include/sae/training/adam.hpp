#pragma once
#include <sae/core/types.hpp>

#include <array>
#include <cmath>

namespace sae::inline SAE_ABI {

/// Adam, torch's definition: every number moves at every step, whether or not its latent was active.
///
///   m <- beta1 m + (1 - beta1) g      v <- beta2 v + (1 - beta2) g^2
///   w <- w - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon)         t = 1, 2, ...
///
/// Row-local: what happens to a number depends on that number alone, so the update can run in the pass that makes the gradient.
/// Source: Kingma and Ba 2015; torch.optim.Adam (epsilon outside the root).
struct Adam {
  double beta1 = 0.9;     ///< in [0, 1)
  double beta2 = 0.999;   ///< in [0, 1)
  double epsilon = 1e-8;  ///< > 0

  static constexpr int slots = 2;  ///< tensors of state beside each parameter: m, v

  template <class Visitor>
  void visit_settings(Visitor&& visitor) const {
    visitor("beta1", beta1);
    visitor("beta2", beta2);
    visitor("epsilon", epsilon);
  }
  void check() const {
    if (!(beta1 >= 0 && beta1 < 1)) throw_value("Adam: beta1 = ", beta1, " is not in [0, 1)");
    if (!(beta2 >= 0 && beta2 < 1)) throw_value("Adam: beta2 = ", beta2, " is not in [0, 1)");
    if (!(epsilon > 0)) throw_value("Adam: epsilon = ", epsilon, " is not positive");
  }

  /// One step's constants, made once and applied to every row.
  template <class Scalar>
  struct Update {
    Scalar beta1, rest1, beta2, rest2, rate, root, epsilon;

    /// w -= ... over n numbers; g is the gradient, slots are m and v.
    void operator()(Scalar* __restrict w, const Scalar* __restrict g, const std::array<Scalar*, slots>& state, Index n) const {
      Scalar* __restrict m = state[0];
      Scalar* __restrict v = state[1];
      for (Index j = 0; j < n; ++j) {
        m[j] = beta1 * m[j] + rest1 * g[j];
        v[j] = beta2 * v[j] + rest2 * g[j] * g[j];
        w[j] -= rate * m[j] / (std::sqrt(v[j]) * root + epsilon);
      }
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

}  // namespace sae::inline SAE_ABI
