#pragma once
#include <sae/activations/selection.hpp>
#include <sae/kernels/largest.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <string_view>
#include <type_traits>
#include <vector>

namespace sae::inline SAE_ABI {

/// JumpReLU: a latent is active where its pre-activation is above a threshold of its own, which is trained.
///
///   f[b,i] = z[b,i] if z[b,i] > theta_i, else 0                     z = (x - b_dec) W_enc^T + b_enc,   theta_i >= 0
///
/// The step has no derivative, so theta learns from a window of width `bandwidth` around it (straight-through estimator). With
/// H = 1[z > theta], K = 1[|z - theta| < bandwidth / 2], epsilon = bandwidth, over entries active or not:
///
///   dL/dz = H df                           dL/dtheta_i = -1/epsilon sum_b K (theta_i df + dL/dH_b)
///   dL/dz += K/epsilon (theta_i df + dL/dH_b)     with `gradient_to_input`
///
/// df is dL/df, dL/dH what a penalty on L0 asks for (training/l0_penalty.hpp). Nothing but such a penalty makes it sparse. theta is
/// the parameter itself, not its logarithm, and is brought back to 0 where a step took it below (before every forward, as SAELens does).
/// It is of the model's precision, float32 at least: no model here computes in fewer bits, and files of 16 bits are read into float32.
///
/// Ties   z = theta is not active. NaN: never active, in no window.
/// Cost   one comparison a pre-activation; the entries of the windows are kept beside the active ones.
/// Source Rajamanoharan et al. 2024, arXiv:2407.14435, eq. 3 and 11; SAELens 6.54 saes/jumprelu_sae.py; `gradient_to_input`:
///        transformer-circuits.pub/2025/january-update.
struct JumpReLU {
  double threshold = 0.01;         ///< theta of every latent at the start, >= 0
  double bandwidth = 0.05;         ///< epsilon > 0, in units of the rows as they are trained on
  bool gradient_to_input = false;  ///< the estimator reaches z, too

  static constexpr std::string_view name = "jumprelu";

  template <class Visitor>
  void visit_settings(Visitor&& visitor) const {
    visitor("threshold", threshold);
    visitor("bandwidth", bandwidth);
    visitor("gradient_to_input", gradient_to_input);
  }
  void check(Index /*latents*/) const {
    if (!(threshold >= 0 && std::isfinite(threshold)))
      throw_value("JumpReLU: threshold = ", threshold, " is not in [0, infinity)");
    if (!(bandwidth > 0 && std::isfinite(bandwidth)))
      throw_value("JumpReLU: bandwidth = ", bandwidth, " is not in (0, infinity)");
  }
  bool needs_decoder_norms() const { return false; }

  template <class Scalar_>
  struct Parameters {
    using Scalar = Scalar_;
    Tensor<Scalar> threshold;  ///< theta [1 x F]

    void resize(Index latents) { threshold.resize(1, latents); }
    void initialize(const JumpReLU& config) {
      std::fill_n(threshold.data(), threshold.size(), static_cast<Scalar>(config.threshold));
    }
    template <class Visitor, class... Sets>
    static void visit(Visitor&& visitor, Sets&... sets) {
      visitor(std::string_view("threshold"), sets.threshold...);
    }
    void rescale(Scalar factor) { threshold.map() *= factor; }
    void rescale_latent(Index latent, Scalar factor) { threshold[latent] *= factor; }
    /// A NaN stays.
    void constrain() {
      for (Index i = 0; i < threshold.size(); ++i)
        if (threshold[i] < Scalar(0)) threshold[i] = Scalar(0);
    }
  };

  template <class Scalar>
  class Selector {
   public:
    void begin(const JumpReLU& config, const Parameters<Scalar>& parameters, std::span<const Scalar> /*decoder_norms*/,
               Index rows) {
      theta_ = parameters.threshold.data();
      half_ = static_cast<Scalar>(config.bandwidth / 2);
      if (static_cast<Index>(rows_.size()) < rows) rows_.resize(static_cast<std::size_t>(rows));
      for (auto& row : rows_) row.clear();
    }
    Scalar bound(Index /*row*/) const { return -std::numeric_limits<Scalar>::infinity(); }
    void take(Index row, Index first, std::span<const Scalar> z) {
      auto& kept = rows_[static_cast<std::size_t>(row)];
      const Scalar *const theta = theta_ + first, *const values = z.data();
      kernels::visit_keys_above<Scalar>(
          static_cast<Index>(z.size()), [&](Index j) { return values[j] - theta[j]; }, [&] { return -half_; },
          [&](Index j, Scalar) {
            kept.push_back({static_cast<int>(first + j), values[j]});
          });
    }
    std::optional<ScreenRule> screened() const requires(std::is_same_v<Scalar, float>) {
      return ScreenRule{.bound = -half_ * (1 + 1e-6F) - 1e-35F, .shift = theta_, .sign = -1};
    }
    void offer(Index row, Index latent, Scalar z) {
      if (z - theta_[latent] > -half_) rows_[static_cast<std::size_t>(row)].push_back({static_cast<int>(latent), z});
    }
    static void merge(std::span<Selector> /*blocks*/) {}
    void emit(Index row, Entries<Scalar>& active, Entries<Scalar>& band) {
      for (const Kept& e : rows_[static_cast<std::size_t>(row)]) {
        const Scalar theta = theta_[e.latent];
        const Scalar f = e.z > theta ? e.z : Scalar(0);
        if (e.z > theta) active.push(e.latent, f, e.z);
        if (std::abs(e.z - theta) < half_) band.push(e.latent, f, e.z);
      }
    }

   private:
    struct Kept {
      int latent;
      Scalar z;
    };
    const Scalar* theta_ = nullptr;
    Scalar half_ = 0;
    std::vector<std::vector<Kept>> rows_;
  };

  template <class Scalar>
  void backward(const Backward<Scalar>& at, const Parameters<Scalar>& parameters, Parameters<Scalar>& gradient) const {
    for (std::size_t e = 0; e < at.dz.size(); ++e) at.dz[e] = at.df[e];
    const auto& codes = at.band.codes;
    const auto scale = static_cast<Scalar>(1 / bandwidth);
    for (Index b = 0; b < codes.rows(); ++b) {
      const Scalar gate = at.dgate.empty() ? Scalar(0) : at.dgate[static_cast<std::size_t>(b)];
      for (Index e = codes.begin(b); e < codes.end(b); ++e) {
        const Index i = codes.latent(e);
        const Scalar through = scale * (parameters.threshold[i] * at.band_df[static_cast<std::size_t>(e)] + gate);
        gradient.threshold[i] -= through;
        if (gradient_to_input) at.band_dz[static_cast<std::size_t>(e)] += through;
      }
    }
  }
};

}  // namespace sae::inline SAE_ABI
