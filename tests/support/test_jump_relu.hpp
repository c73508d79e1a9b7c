#pragma once
// A gate with a trainable threshold, as small as it can be: what the seam has to carry beyond ReLU and TopK. Parameters of its
// own, band entries, the gradient of an L0 penalty by a straight-through estimator.
#include <sae/activations/selection.hpp>
#include <sae/models/objective.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string_view>
#include <vector>

namespace sae_test {

using sae::Index;

/// f = z where z > theta, else 0. With H = 1[z > theta] and K = 1[|z - theta| < epsilon / 2]:
///   dz = df H,    dtheta_i = -(theta_i / epsilon) sum_b K df - (1 / epsilon) sum_b K dL/dH_b
/// Source: Rajamanoharan et al. 2024, arXiv:2407.14435.
struct TestJumpReLU {
  double threshold = 0.1;  // theta of every latent at the start
  double bandwidth = 0.2;  // epsilon

  static constexpr std::string_view name = "test_jump_relu";
  template <class Visitor>
  void visit_settings(Visitor&& visitor) const {
    visitor("threshold", threshold);
    visitor("bandwidth", bandwidth);
  }
  void check(Index) const { sae::require_positive("TestJumpReLU: bandwidth", bandwidth); }
  bool needs_decoder_norms() const { return false; }

  template <class Scalar>
  struct Parameters {
    sae::Tensor<Scalar> threshold;

    void resize(Index latents) { threshold.resize(1, latents); }
    void initialize(const TestJumpReLU& config) {
      std::fill_n(threshold.data(), threshold.size(), static_cast<Scalar>(config.threshold));
    }
    template <class Visitor, class... Sets>
    static void visit(Visitor&& visitor, Sets&... sets) {
      visitor(std::string_view("threshold"), sets.threshold...);
    }
    void rescale(Scalar factor) { threshold.map() *= factor; }
    void rescale_latent(Index latent, Scalar factor) { threshold[latent] *= factor; }
    void constrain() {}
  };

  template <class Scalar>
  class Selector {
   public:
    void begin(const TestJumpReLU& config, const Parameters<Scalar>& parameters, std::span<const Scalar>, Index rows) {
      theta_ = parameters.threshold.data();
      half_ = static_cast<Scalar>(config.bandwidth / 2);
      rows_.assign(static_cast<std::size_t>(rows), {});
    }
    Scalar bound(Index) const { return -std::numeric_limits<Scalar>::infinity(); }
    void take(Index row, Index first, std::span<const Scalar> z) {
      for (std::size_t j = 0; j < z.size(); ++j) {
        const Index i = first + static_cast<Index>(j);
        if (z[j] > theta_[i] || in_band(z[j], i)) rows_[static_cast<std::size_t>(row)].push_back({i, z[j]});
      }
    }
    static void merge(std::span<Selector>) {}
    void emit(Index row, sae::Entries<Scalar>& active, sae::Entries<Scalar>& band) {
      for (const Kept& e : rows_[static_cast<std::size_t>(row)]) {
        const bool on = e.z > theta_[e.latent];
        if (on) active.push(e.latent, e.z, e.z);
        if (in_band(e.z, e.latent)) band.push(e.latent, on ? e.z : Scalar(0), e.z);
      }
    }

   private:
    struct Kept {
      Index latent;
      Scalar z;
    };
    bool in_band(Scalar z, Index latent) const { return std::abs(z - theta_[latent]) < half_; }
    const Scalar* theta_ = nullptr;
    Scalar half_ = 0;
    std::vector<std::vector<Kept>> rows_;
  };

  template <class Scalar>
  void backward(const sae::Backward<Scalar>& at, const Parameters<Scalar>& parameters, Parameters<Scalar>& gradient) const {
    for (std::size_t e = 0; e < at.dz.size(); ++e) at.dz[e] = at.df[e];
    const auto& codes = at.band.codes;
    const auto scale = static_cast<Scalar>(1 / bandwidth);
    for (Index b = 0; b < codes.rows(); ++b)
      for (Index e = codes.begin(b); e < codes.end(b); ++e) {
        const Index i = codes.latent(e);
        const Scalar gate = at.dgate.empty() ? Scalar(0) : at.dgate[static_cast<std::size_t>(b)];
        gradient.threshold[i] -= scale * (parameters.threshold[i] * at.band_df[static_cast<std::size_t>(e)] + gate);
      }
  }
};

/// coefficient s(t) mean_b sum_i H[b,i], for activations that read dL/dH.
struct TestL0 {
  double coefficient = 1;

  static constexpr std::string_view name = "test_l0";
  template <class Visitor>
  void visit_settings(Visitor&& visitor) const {
    visitor("coefficient", coefficient);
  }
  void check(Index, Index) const {}
  bool needs_decoder_norms() const { return false; }
  template <class Step>
  double apply(Step& step, sae::NoSelection&, sae::Threads&) const {
    const double scale = coefficient * step.sparsity_scale / static_cast<double>(step.rows());
    if (step.wants_gradient)
      for (auto& g : step.gate_gradient()) g += static_cast<typename Step::Scalar>(scale);
    return scale * static_cast<double>(step.main.entries.size());
  }
};

}  // namespace sae_test
