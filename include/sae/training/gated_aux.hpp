#pragma once
#include <sae/activations/gated.hpp>
#include <sae/models/backward.hpp>

#include <string_view>
#include <vector>

namespace sae::inline SAE_ABI {

/// What trains the gates of a Gated autoencoder: a penalty that closes them, and a second reconstruction, from the gates alone,
/// that keeps those open which are needed.
///
///   rho = relu(pi),  pi = P + b_gate,       x~ = rho W_dec + b_dec [+ x W_skip^T]
///   L = coefficient s(t) mean_b sum_i rho[b,i] n_i  +  mean_b |x~_b - x_b|^2          n_i = |d_i| where weighted, else 1
///
/// The sparsity warm-up s(t) scales the penalty alone. With G~ = 2/B (x~ - x), over the entries with pi > 0:
///
///   dpi = G~_b . d_i + coefficient s / B n_i,    dL/dP += dpi,    dL/db_gate = sum_b dpi,    dL/dn_i = coefficient s / B sum_b rho
///   dL/dW_dec[i] += sum_b rho G~_b,    dL/db_dec += sum_b G~_b,    dL/dW_skip += G~^T x      unless `detach_decoder`
///
/// b_dec inside P gets its gradient from both parts either way. The paper and dictionary_learning detach the decoder (their decoder
/// rows have norm 1: not weighted); SAELens does not, and weights by the norm.
/// Where rows have weights w_b in the loss (a model with an InputNormalisation), so has the second reconstruction: it is
/// mean_b w_b |x~_b - x_b|^2. SAELens 6.54 feeds the rows as they were given to the gates there, so that the penalty grows with them
/// though the codes do not; here both read the normalised rows.
/// Memory follows the entries with pi > 0, which are more than the active ones where m <= 0.
/// Cost   sparse, as the codes' own decoding and its gradients. Threads: results do not depend on them.
/// Source Rajamanoharan et al. 2024, arXiv:2404.16014, eq. 8; SAELens saes/gated_sae.py; dictionary_learning trainers/gdm.py.
struct GatedAux {
  double coefficient = 1;  ///< lambda >= 0 of the penalty
  bool detach_decoder = true;
  bool weighted_by_decoder_norm = false;

  static constexpr std::string_view name = "gated_aux";
  template <class Visitor>
  void visit_settings(Visitor&& visitor) const {
    visitor("coefficient", coefficient);
    visitor("detach_decoder", detach_decoder);
    visitor("weighted_by_decoder_norm", weighted_by_decoder_norm);
  }
  void check(Index, Index) const { require_non_negative("GatedAux: coefficient", coefficient); }
  bool needs_decoder_norms() const { return weighted_by_decoder_norm; }

  /// The entries with pi > 0.
  template <class Scalar>
  class Selection {
   public:
    template <class Step>
    bool begin(const GatedAux&, const Step& step, Index blocks, Index block_rows) {
      const auto* const own = detail::own_parameters<Gated>(*step.activation);
      if (own == nullptr) throw_value("GatedAux: the model has no gates; it goes with Gated");
      b_gate_ = own->b_gate.data();
      block_rows_ = block_rows;
      const auto rows = static_cast<std::size_t>(blocks * block_rows);
      if (rows_.size() < rows) rows_.resize(rows);
      for (auto& row : rows_) row.clear();
      return true;
    }
    void take(Index block, Index row, Index first, std::span<const Scalar> z) {
      auto& kept = rows_[static_cast<std::size_t>(block * block_rows_ + row)];
      for (std::size_t j = 0; j < z.size(); ++j) {
        const Index i = first + static_cast<Index>(j);
        if (const Scalar pi = z[j] + b_gate_[i]; pi > Scalar(0)) kept.push_back({static_cast<int>(i), z[j], pi});
      }
    }

   private:
    friend struct GatedAux;
    struct Open {
      int latent;
      Scalar z, pi;
    };
    const Scalar* b_gate_ = nullptr;
    Index block_rows_ = 0;
    std::vector<std::vector<Open>> rows_;
    Codes<Scalar> difference_;  // rho - f
    std::vector<double> row_loss_;
  };

  template <class Step>
  double apply(Step& step, Selection<typename Step::Scalar>& selection, Threads& threads) const {
    using Scalar = typename Step::Scalar;
    const Index rows = step.rows();
    const double scale = coefficient * step.sparsity_scale / static_cast<double>(rows);
    const auto norm = [&](Index i) { return weighted_by_decoder_norm ? step.decoder_norms[i] : Scalar(1); };

    Path<Scalar>& path = step.add_path();
    const auto& active = step.main.entries.codes;
    path.entries.reset(step.latents());
    selection.difference_.reset(step.latents());
    double penalty = 0;
    for (Index b = 0; b < rows; ++b) {
      Index e = active.begin(b);
      for (const auto& open : selection.rows_[static_cast<std::size_t>(b)]) {
        while (e < active.end(b) && active.latent(e) < open.latent) ++e;
        const Scalar f = e < active.end(b) && active.latent(e) == open.latent ? active.value(e) : Scalar(0);
        path.entries.push(open.latent, open.pi, open.z);
        selection.difference_.push(open.latent, open.pi - f);
        penalty += static_cast<double>(open.pi) * static_cast<double>(norm(open.latent));
      }
      path.entries.finish_row();
      selection.difference_.finish_row();
    }
    Tensor<Scalar>& error = path.own_cotangent;  // x~ - x = (x' - x) + (rho - f) W_dec
    error = step.residual;
    detail::add_decoded(selection.difference_, *step.decoder, error, step.scratch, threads);
    const double value = scale * penalty + detail::mean_square_error(step, error, selection.row_loss_, threads);
    if (!step.wants_gradient) return value;

    kernels::scale(error.data(), Scalar(2) / static_cast<Scalar>(rows), error.size());
    detail::weigh_rows(step, error);
    path.df.assign(static_cast<std::size_t>(path.entries.size()), Scalar(0));
    detail::add_code_gradient(path.entries.codes, error, *step.decoder, path.df, step.scratch, threads);
    const auto unit = static_cast<Scalar>(scale);
    auto* const own = detail::own_parameters<Gated>(*step.activation_gradient);
    std::span<Scalar> norm_gradient;
    if (weighted_by_decoder_norm) norm_gradient = step.norm_gradient();
    const auto& codes = path.entries.codes;
    for (Index e = 0; e < codes.size(); ++e) {
      const Index i = codes.latent(e);
      Scalar& dpi = path.df[static_cast<std::size_t>(e)];
      dpi += unit * norm(i);
      own->b_gate[i] += dpi;
      if (weighted_by_decoder_norm) norm_gradient[static_cast<std::size_t>(i)] += unit * codes.value(e);
    }
    path.dz = path.df;
    if (!detach_decoder) {
      path.cotangent = &path.own_cotangent;
      detail::add_column_sums(error, step.decoder_bias_gradient().data(), step.column_sums, threads);
      step.skip_cotangents.push_back(&error);
    }
    return value;
  }
};

}  // namespace sae::inline SAE_ABI
