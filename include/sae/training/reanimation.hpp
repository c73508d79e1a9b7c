#pragma once
#include <sae/models/backward.hpp>

#include <algorithm>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace sae::inline SAE_ABI {

/// Pushes the pre-activations of the latents that no row of this batch activates up, all by the same force:
///
///   L = -coefficient sum_b sum_{i in S} z[b,i] / (#S + 1e-6)         S = latents with f[b,i] = 0 in every row b of the batch
///
/// S is held constant: dz[b,i] = -coefficient / (#S + 1e-6) for i in S. The sum over b is no mean, so the force grows with the batch.
/// S has nothing to do with the trainer's dead latents. The value has no lower bound, a latent leaves the term once it is active.
/// Cost   B x D + #S x D: as dz is the same for every row, the sum over rows is taken once.
/// Source: overcomplete (KempnerInstitute) sae/losses.py.
struct Reanimation {
  double coefficient = 1e-3;  ///< >= 0

  static constexpr std::string_view name = "reanimation";
  static constexpr double epsilon = 1e-6;
  template <class Visitor>
  void visit_settings(Visitor&& visitor) const {
    visitor("coefficient", coefficient);
  }
  void check(Index, Index) const { require_non_negative("Reanimation: coefficient", coefficient); }
  bool needs_decoder_norms() const { return false; }

  template <class Scalar>
  class Selection : public KeptMemory<Scalar> {
    friend struct Reanimation;
    Tensor<Scalar> mean_;
    std::vector<std::uint8_t> active_;
  };

  template <class Step>
  double apply(Step& step, Selection<typename Step::Scalar>& selection, Threads& threads) const {
    using Scalar = typename Step::Scalar;
    const auto& codes = step.main.entries.codes;
    std::vector<std::uint8_t>& active = selection.active_;
    active.assign(static_cast<std::size_t>(step.latents()), 0);
    for (Index e = 0; e < codes.size(); ++e)
      if (codes.value(e) != Scalar(0)) active[static_cast<std::size_t>(codes.latent(e))] = 1;
    const auto silent = static_cast<double>(std::count(active.begin(), active.end(), std::uint8_t{0}));
    if (silent == 0 || coefficient == 0) return 0;

    // sum_b z[b,i] = B (mean_b u_b . W_enc[i] + b_enc[i]): one entry a latent, read from the mean row.
    const Index width = step.input_width();
    const auto rows = static_cast<double>(step.rows());
    Tensor<Scalar>& mean = selection.mean_;
    mean.resize(1, width);
    detail::add_column_sums(step.input, mean.data(), step.column_sums, threads);
    kernels::scale(mean.data(), static_cast<Scalar>(1 / rows), width);
    const double force = coefficient * rows / (silent + epsilon);
    Path<Scalar>* const path = step.wants_gradient ? &step.add_path() : nullptr;
    if (path != nullptr) path->entries.reset(step.latents());
    double sum = 0;
    detail::WideRows<Scalar, typename Step::Stored> wide(step.scratch, width);
    for (Index i = 0; i < step.latents(); ++i) {
      if (active[static_cast<std::size_t>(i)] != 0) continue;
      const Scalar bias = step.encoder_bias->size() > 0 ? (*step.encoder_bias)[i] : Scalar(0);
      const Scalar z = kernels::dot(mean.data(), wide(step.encoder->row(i), width), width) + bias;
      sum += static_cast<double>(z);
      if (path != nullptr) path->entries.push(i, Scalar(0), z);
    }
    if (path != nullptr) {
      path->entries.finish_row();
      const auto entries = static_cast<std::size_t>(path->entries.size());
      path->dz.assign(entries, static_cast<Scalar>(-force));
      path->input = &mean;
      path->input_rows.assign(entries, 0);
    }
    return -force * sum;
  }
};

}  // namespace sae::inline SAE_ABI
