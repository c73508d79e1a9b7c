#pragma once
#include <sae/activations/selection.hpp>
#include <sae/kernels/largest.hpp>

#include <cmath>
#include <limits>
#include <optional>
#include <string_view>
#include <type_traits>
#include <vector>

namespace sae::inline SAE_ABI {

/// Gated: one bias decides whether a latent is active, another one and a scale how strongly, from the same direction. The L1 penalty
/// that makes it sparse acts on the gate alone (training/gated_aux.hpp), so that it does not shrink the codes.
///
///   P = (x - b_dec) W_enc^T,     pi = P + b_gate,     m = P e^r_mag + b_mag          there is no b_enc
///   f[b,i] = relu(m[b,i]) if pi[b,i] > 0, else 0
///
/// With df = dL/df, over the entries with f > 0:
///
///   dL/dP = df e^r_mag,    dL/db_mag = sum_b df,    dL/dr_mag = sum_b df (m - b_mag)
///
/// No gradient reaches b_gate through f; train with GatedAux. Own parameters b_gate, b_mag, r_mag, each [1 x F], start at 0, where f
/// is relu(P). A trained model is a JumpReLU (models/jump_relu_conversion.hpp).
///
/// Ties   pi = 0 is not active, m = 0 is the code 0 and no entry. NaN: never active.
/// Cost   one addition and one comparison a pre-activation, one exponential for each entry with pi > 0.
/// Source Rajamanoharan et al. 2024, "Improving dictionary learning with gated sparse autoencoders", arXiv:2404.16014, eq. 6 and 7;
///        SAELens saes/gated_sae.py; dictionary_learning dictionary.py.
struct Gated {
  static constexpr std::string_view name = "gated";
  bool encoder_bias() const { return false; }

  void check(Index /*latents*/) const {}
  bool needs_decoder_norms() const { return false; }

  template <class Scalar_>
  struct Parameters {
    using Scalar = Scalar_;
    Tensor<Scalar> b_gate, b_mag, r_mag;  ///< [1 x F]

    void resize(Index latents) {
      b_gate.resize(1, latents);
      b_mag.resize(1, latents);
      r_mag.resize(1, latents);
    }
    void initialize(const Gated&) {}
    template <class Visitor, class... Sets>
    static void visit(Visitor&& visitor, Sets&... sets) {
      visitor(std::string_view("b_gate"), sets.b_gate...);
      visitor(std::string_view("b_mag"), sets.b_mag...);
      visitor(std::string_view("r_mag"), sets.r_mag...);
    }
    void rescale(Scalar factor) {
      b_gate.map() *= factor;
      b_mag.map() *= factor;
    }
    void rescale_latent(Index latent, Scalar factor) {
      b_gate[latent] *= factor;
      b_mag[latent] *= factor;
    }
    void constrain() {}

    /// m of a pre-activation P.
    Scalar magnitude(Index latent, Scalar p) const { return p * std::exp(r_mag[latent]) + b_mag[latent]; }
  };

  template <class Scalar>
  class Selector {
   public:
    void begin(const Gated&, const Parameters<Scalar>& parameters, std::span<const Scalar> /*decoder_norms*/, Index rows) {
      parameters_ = &parameters;
      if (static_cast<Index>(rows_.size()) < rows) rows_.resize(static_cast<std::size_t>(rows));
      for (auto& row : rows_) row.clear();
    }
    Scalar bound(Index /*row*/) const { return -std::numeric_limits<Scalar>::infinity(); }
    void take(Index row, Index first, std::span<const Scalar> z) {
      auto& kept = rows_[static_cast<std::size_t>(row)];
      const Scalar *const gate = parameters_->b_gate.data() + first, *const values = z.data();
      kernels::visit_keys_above<Scalar>(
          static_cast<Index>(z.size()), [&](Index j) { return values[j] + gate[j]; }, [] { return Scalar(0); },
          [&](Index j, Scalar) {
            kept.push_back({static_cast<int>(first + j), values[j]});
          });
    }
    std::optional<ScreenRule> screened() const requires(std::is_same_v<Scalar, float>) {
      return ScreenRule{.bound = std::numeric_limits<float>::denorm_min(), .shift = parameters_->b_gate.data()};
    }
    void offer(Index row, Index latent, Scalar z) {
      if (z + parameters_->b_gate[latent] > Scalar(0))
        rows_[static_cast<std::size_t>(row)].push_back({static_cast<int>(latent), z});
    }
    static void merge(std::span<Selector> /*blocks*/) {}
    void emit(Index row, Entries<Scalar>& active, Entries<Scalar>& /*band*/) {
      for (const Kept& e : rows_[static_cast<std::size_t>(row)])
        if (const Scalar m = parameters_->magnitude(e.latent, e.z); m > Scalar(0)) active.push(e.latent, m, e.z);
    }

   private:
    struct Kept {
      int latent;
      Scalar z;
    };
    const Parameters<Scalar>* parameters_ = nullptr;
    std::vector<std::vector<Kept>> rows_;
  };

  /// Every entry that was emitted has m > 0.
  template <class Scalar>
  void backward(const Backward<Scalar>& at, const Parameters<Scalar>& parameters, Parameters<Scalar>& gradient) const {
    const auto& codes = at.active.codes;
    for (Index e = 0; e < codes.size(); ++e) {
      const Index i = codes.latent(e);
      const Scalar df = at.df[static_cast<std::size_t>(e)];
      at.dz[static_cast<std::size_t>(e)] = df * std::exp(parameters.r_mag[i]);
      gradient.b_mag[i] += df;
      gradient.r_mag[i] += df * (codes.value(e) - parameters.b_mag[i]);
    }
  }
};

}  // namespace sae::inline SAE_ABI
