#pragma once
#include <sae/activations/relu.hpp>
#include <sae/activations/selection.hpp>
#include <sae/core/threads.hpp>
#include <sae/kernels/vector.hpp>

#include <algorithm>
#include <string_view>
#include <utility>

namespace sae::inline SAE_ABI {

/// A gated linear unit as encoder, in front of any activation that reads tiles:
///
///   z = (u W_enc^T + b_enc) * sigmoid(u W_glu^T + b_glu),   f = Inner(z)          u = x - b_dec or x, * entry by entry
///
/// Own parameters: W_glu [F x D_in], b_glu [1 x F], both 0 at the start, where z is half of u W_enc^T + b_enc, and those of Inner.
/// With dz = dL/dz of Inner, s = sigmoid(q), q = u W_glu^T + b_glu:
///
///   dL/dp = s dz,   dL/dq = z (1 - s) dz,   dL/dW_glu[i] = sum_b dL/dq u_b,   dL/db_glu = sum_b dL/dq
///
/// and, where b_dec is subtracted, dL/db_dec -= sum dL/dq W_glu. A folded input scale c makes W_glu c W_glu. Terms of the loss that
/// read pre-activations (AuxK, PreActivationLoss, GatedAux) know one encoder alone and are refused.
///
///   SparseAutoencoder model(576, 4608, Glu<TopK>{.inner = {.k = 32}});
///
/// Ties, NaN as Inner. Cost: two dense products. Source: llamascopium models/sae.py (`use_glu_encoder`).
template <class Inner = ReLU>
struct Glu {
  Inner inner{};

  static constexpr std::string_view name = "glu";
  bool encoder_bias() const { return detail::has_encoder_bias(inner); }
  bool tied_weights() const { return detail::has_tied_weights(inner); }

  template <class Visitor>
  void visit_settings(Visitor&& visitor) const {
    visitor("inner", std::string_view(inner.name));
    if constexpr (requires { inner.visit_settings(visitor); }) inner.visit_settings(visitor);
  }
  void check(Index latents) const {
    inner.check(latents);
    if (detail::has_tied_weights(inner))
      throw_value("Glu: ", std::string_view(inner.name), " has no pre-activations that a gate could multiply");
  }
  bool needs_decoder_norms() const { return inner.needs_decoder_norms(); }

  template <class Scalar_>
  struct Parameters {
    using Scalar = Scalar_;
    Tensor<Scalar> W_glu, b_glu;
    typename Inner::template Parameters<Scalar> inner;

    /// Of an inner activation that is chosen at run time.
    void choose(const Glu& activation) requires requires { inner.choose(activation.inner); }
    { inner.choose(activation.inner); }
    void resize(Index latents, Index d_in) {
      W_glu.resize(latents, d_in);
      b_glu.resize(1, latents);
      detail::resize_own(inner, latents, d_in);
    }
    void initialize(const Glu& activation) { inner.initialize(activation.inner); }
    template <class Visitor, class... Sets>
    static void visit(Visitor&& visitor, Sets&... sets) {
      visitor(std::string_view("W_glu"), sets.W_glu...);
      visitor(std::string_view("b_glu"), sets.b_glu...);
      Inner::template Parameters<Scalar>::visit(visitor, sets.inner...);
    }
    template <class Visitor, class Set>
    static void visit_state(Visitor&& visitor, Set& set) {
      if constexpr (requires { set.inner.visit_state(visitor, set.inner); }) set.inner.visit_state(visitor, set.inner);
    }
    /// q stays as it is while u is multiplied by `factor`.
    void rescale(Scalar factor) {
      kernels::scale(W_glu.data(), Scalar(1) / factor, W_glu.size());
      inner.rescale(factor);
    }
    void rescale_latent(Index latent, Scalar factor) { inner.rescale_latent(latent, factor); }
    void constrain() { inner.constrain(); }
  };

  template <class Scalar>
  EncoderGate<Scalar> gate(const Parameters<Scalar>& parameters) const {
    return {parameters.W_glu.data(), parameters.b_glu.data()};
  }
  template <class Scalar>
  void backward(const Backward<Scalar>& at, const Parameters<Scalar>& parameters, Parameters<Scalar>& gradient) const {
    inner.backward(at, parameters.inner, gradient.inner);
  }

  /// The way back through both encoders.
  template <class Step>
  bool pursue_backward(Step& step, Threads& threads) const {
    using Scalar = typename Step::Scalar;
    const Parameters<Scalar>& own = *step.activation;
    Parameters<Scalar>& gradient = *step.activation_gradient;
    const Index width = step.input_width(), latents = step.latents();
    inner.backward(Backward<Scalar>{step.main.entries, step.main.df, step.main.dz, step.band.entries, step.band.df,
                                    step.band.dz, step.dgate},
                   own.inner, gradient.inner);
    Tensor<Scalar> read(step.subtracts_decoder_bias ? step.rows() : 0, width);
    for (auto* path : {&step.main, &step.band}) {
      const auto& codes = path->entries.codes;
      if (codes.size() == 0) continue;
      Buffer<Scalar> dq(static_cast<std::size_t>(codes.size()));
      threads.for_blocks(codes.rows(), 32, [&](Index begin, Index end, Index) {
        const Index first = codes.begin(begin), count = codes.begin(end) - first;
        const auto start = static_cast<std::size_t>(first);
        auto loan = step.scratch.borrow(count);
        Scalar* const q = loan.data();
        for (Index b = begin; b < end; ++b)
          for (Index e = codes.begin(b); e < codes.end(b); ++e) {
            const auto at = static_cast<std::size_t>(e);
            const Index i = codes.latent(e);
            q[e - first] = kernels::dot(step.input.row(b), own.W_glu.row(i), width) + own.b_glu[i];
            dq[at] = path->dz[at] * path->entries.z[at];
          }
        kernels::gate(path->dz.data() + start, q, count);
        kernels::scale(q, Scalar(-1), count);
        kernels::gate(dq.data() + start, q, count);  // 1 - s(q) = s(-q)
        if (!step.subtracts_decoder_bias) return;
        for (Index b = begin; b < end; ++b)
          kernels::add_weighted_rows(
              read.row(b), width, codes.end(b) - codes.begin(b),
              [&](Index t) { return dq[static_cast<std::size_t>(codes.begin(b) + t)]; },
              [&](Index t) { return own.W_glu.row(codes.latent(codes.begin(b) + t)); });
      });
      path->by_latent.build(codes);
      threads.for_blocks(latents, 64, [&](Index begin, Index end, Index) {
        for (Index i = begin; i < end; ++i) {
          const int from = path->by_latent.offsets[static_cast<std::size_t>(i)],
                    to = path->by_latent.offsets[static_cast<std::size_t>(i) + 1];
          const auto entry = [&](Index t) {
            return static_cast<std::size_t>(path->by_latent.entries[static_cast<std::size_t>(from + t)]);
          };
          for (Index t = 0; t < to - from; ++t) gradient.b_glu[i] += dq[entry(t)];
          kernels::add_weighted_rows(
              gradient.W_glu.row(i), width, to - from, [&](Index t) { return dq[entry(t)]; },
              [&](Index t) { return step.input.row(path->by_latent.rows[static_cast<std::size_t>(from + t)]); });
        }
      });
    }
    if (step.subtracts_decoder_bias) {
      const auto to = step.decoder_bias_gradient();
      for (Index b = 0; b < step.rows(); ++b) kernels::add_scaled(to.data(), Scalar(-1), read.row(b), width);
    }
    return true;
  }
};

/// The selectors of what stands behind the gate.
template <class Inner, class Scalar>
class SelectorBlocks<Glu<Inner>, Scalar> {
 public:
  using Parameters = typename Glu<Inner>::template Parameters<Scalar>;
  void begin(const Glu<Inner>& glu, const Parameters& parameters, std::span<const Scalar> decoder_norms, Index rows,
             Index block_rows) {
    inner_.begin(glu.inner, parameters.inner, decoder_norms, rows, block_rows);
  }
  void take(Index block, Index row, Index first, std::span<const Scalar> z) { inner_.take(block, row, first, z); }
  void merge() { inner_.merge(); }
  void emit(Index block, Index row, Entries<Scalar>& active, Entries<Scalar>& band) { inner_.emit(block, row, active, band); }
  void observe(const Glu<Inner>& glu, Parameters& state) const { inner_.observe(glu.inner, state.inner); }

 private:
  SelectorBlocks<Inner, Scalar> inner_;
};

}  // namespace sae::inline SAE_ABI
