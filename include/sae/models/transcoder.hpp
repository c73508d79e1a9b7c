#pragma once
#include <sae/models/backward.hpp>
#include <sae/models/folding.hpp>
#include <sae/models/initialization.hpp>
#include <sae/models/parameters.hpp>

#include <cmath>
#include <cstdint>
#include <numeric>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

namespace sae::inline SAE_ABI {

/// Settings of a transcoder that are no sizes.
struct TranscoderOptions {
  bool skip = false;        ///< a linear path x W_skip^T beside the latents, which then need not spend themselves on it
  double encoder_norm = 1;  ///< > 0: W_enc starts as random directions of this norm
  /// >= 0: norm of the random directions that W_dec starts with. 0: it starts at 0, as nothing is known about how inputs and targets
  /// hang together (sparsify); not for an activation that ranks by the decoder norm, which would never choose a latent.
  double decoder_norm = 0;
  std::uint64_t seed = 0;
  /// Widths of several sites that the target holds side by side, as of a crosscoder (models/crosscoder.hpp): reading some sites and
  /// writing others. Empty: one.
  std::vector<Index> sites{};
};

/// A transcoder: from rows x [B x D_in] (what a layer reads) the rows y [B x D_out] (what it writes), through a few active latents.
///
///   z  = x W_enc^T + b_enc                          pre-activations [B x F], never stored whole
///   f  = activation(z)                              codes, sparse
///   y' = f W_dec + b_dec [+ x W_skip^T]             prediction [B x D_out]
///
/// W_enc is [F x D_in], W_dec [F x D_out], W_skip [D_out x D_in]; b_dec is not subtracted from the input. Trained on
/// mean_b |y'_b - y_b|^2 plus the terms of an objective; where an autoencoder's formula has D of what is reconstructed (AuxK's
/// k = D / 2), it is D_out. A `Trainer` takes rows of width D_in + D_out, x before y, and leaves decoder rows free unless told
/// otherwise. b_enc, b_dec and W_skip start at 0 (`initialize_from_means` in training/data_initialization.hpp does better).
///
/// \tparam D_in, D_out, F  sizes, or sae::Dynamic.
/// \tparam Activation      as of SparseAutoencoder. Gradients, threads, exceptions: as there.
/// \tparam Stored          what W_enc and W_dec are stored as: Scalar, or of float Mapped, where they lie in a file.
/// Source: Dunefsky et al. 2024, arXiv:2406.11944; skip: Paulo et al. 2025, arXiv:2501.18823; SAELens saes/transcoder.py; sparsify
/// sparse_coder.py (`transcode`, `skip_connection`; there b_dec starts at the mean target and W_dec at 0).
template <int D_in, int D_out, int F, class Activation_, class Scalar_ = float, class Stored_ = Scalar_>
class Transcoder {
  static_assert(std::is_floating_point_v<Scalar_>, "sae: Scalar is float or double");
  static_assert(std::is_same_v<Stored_, Scalar_> || (std::is_same_v<Stored_, Mapped> && std::is_same_v<Scalar_, float>),
                "sae: weights of a transcoder are stored as Scalar, or of float as Mapped");
  static_assert(D_in != 1 && D_out != 1, "sae: a fixed width is at least 2; give the width 1 at run time");

 public:
  using Activation = Activation_;
  using Scalar = Scalar_;
  using Stored = Stored_;
  using Parameters = AutoencoderParameters<Activation, Scalar, Stored>;
  using Rows = Batch<Scalar, D_in>;
  using Targets = Batch<Scalar, D_out>;
  static constexpr int fixed_width = D_in;
  static constexpr int fixed_output_width = D_out;
  static constexpr int fixed_latents = F;

  static constexpr bool drawn = std::is_same_v<Stored, Scalar>;  ///< a start can be drawn

  explicit Transcoder(Activation activation = {},
                      TranscoderOptions options = {}) requires(D_in != Dynamic && D_out != Dynamic && F != Dynamic && drawn)
      : Transcoder(D_in, D_out, F, std::move(activation), std::move(options)) {}

  Transcoder(Index d_in, Index d_out, Index latents, Activation activation = {}, TranscoderOptions options = {}) requires drawn
      : activation_(std::move(activation)),
        sites_(std::move(options.sites)) {
    require_positive("Transcoder: encoder_norm", options.encoder_norm);
    require_non_negative("Transcoder: decoder_norm", options.decoder_norm);
    check(d_in, d_out, latents);
    if constexpr (requires { parameters_.activation.choose(activation_); }) parameters_.activation.choose(activation_);
    parameters_.resize({.d_in = d_in,
                        .latents = latents,
                        .d_out = d_out,
                        .encoder_bias = detail::has_encoder_bias(activation_),
                        .skip = options.skip});
    Random random(options.seed, detail::initialization_stream);
    detail::fill_directions(random, options.encoder_norm, parameters_.W_enc);
    if (options.decoder_norm > 0) detail::fill_directions(random, options.decoder_norm, parameters_.W_dec);
    parameters_.activation.initialize(activation_);
  }

  /// A model that holds these parameters; nothing is drawn. The activation's own tensors have the sizes that it gives them.
  /// \throws ShapeError  W_enc, b_enc, W_dec, b_dec or W_skip (or none) are not those of a model with such an activation.
  Transcoder(Parameters parameters, Activation activation, std::vector<Index> sites = {})
      : activation_(std::move(activation)), sites_(std::move(sites)), parameters_(std::move(parameters)) {
    check(d_in(), d_out(), latents());
    if (!parameters_.has_shape({.d_in = d_in(),
                                .latents = latents(),
                                .d_out = d_out(),
                                .encoder_bias = detail::has_encoder_bias(activation_),
                                .skip = has_skip()}))
      throw_shape("Transcoder: the parameters are not those of a model [", d_in(), " -> ", latents(), " -> ", d_out(),
                  "] with ", std::string_view(activation_.name));
  }

  Index d_in() const { return parameters_.width(); }
  Index d_out() const { return parameters_.output_width(); }
  Index latents() const { return parameters_.latents(); }
  bool has_skip() const { return parameters_.W_skip.size() > 0; }
  const Activation& activation() const { return activation_; }
  void set_k(double k) { detail::set_k(activation_, k, latents()); }  ///< as SparseAutoencoder::set_k
  static constexpr bool subtracts_decoder_bias() { return false; }
  std::span<const Index> sites() const { return sites_; }  ///< of the target; empty: one
  TranscoderOptions options() const {                      ///< of a model like this one, but for its start
    return {.skip = has_skip(), .sites = sites_};
  }
  Parameters& parameters() { return parameters_; }
  const Parameters& parameters() const { return parameters_; }

  ConstMatrixMap<Scalar> W_enc() const requires drawn { return parameters_.W_enc.map(); }  ///< [F x D_in]
  ConstMatrixMap<Scalar> W_dec() const requires drawn { return parameters_.W_dec.map(); }  ///< [F x D_out]
  ConstMatrixMap<Scalar> W_skip() const { return parameters_.W_skip.map(); }  ///< [D_out x D_in], empty without a skip

  template <class Terms = Objective<>>
  using Workspace = sae::Workspace<Activation, Scalar, Terms, Stored>;

  /// Codes f, sparse: for each row its active latents, ascending, and their values.
  Codes<Scalar> encode(const Rows& x, Threads& threads = Threads::shared()) const {
    Workspace<> workspace;
    encode_into(x, workspace, threads);
    return std::move(workspace.step.main.entries.codes);
  }
  const Codes<Scalar>& encode_into(const Rows& x, Workspace<>& workspace, Threads& threads = Threads::shared()) const {
    auto& step = workspace.step;
    detail::load_input(parameters_, false, RowsView<Scalar>(x), step, threads);
    step.encoder = &parameters_.encoder();
    step.encoder_bias = &parameters_.b_enc;
    step.decoder = &parameters_.W_dec;
    detail::load_decoder_norms(activation_, parameters_.W_dec, sites_, step, threads);
    detail::select(activation_, parameters_, step, threads);
    return step.main.entries.codes;
  }
  /// Prediction y' [B x D_out] from codes and the rows x that they came from (used by the skip alone).
  Matrix<Scalar> decode(const Codes<Scalar>& codes, const Rows& x, Threads& threads = Threads::shared()) const {
    Tensor<Scalar> out;
    ScratchPool<Scalar> scratch;
    decode_into(codes, x, out, scratch, threads);
    return out.map();
  }
  void decode_into(const Codes<Scalar>& codes, const Rows& x, Tensor<Scalar>& out, ScratchPool<Scalar>& scratch,
                   Threads& threads = Threads::shared()) const {
    if (codes.latents() != latents()) throw_shape("codes have ", codes.latents(), " latents, the model has ", latents());
    if (x.rows() != codes.rows() || x.cols() != d_in())
      throw_shape("the input is [", x.rows(), " x ", x.cols(), "], the codes are of [", codes.rows(), " x ", d_in(), "]");
    detail::load_decoder_bias(parameters_.b_dec, &parameters_.W_skip, RowsView<Scalar>(x), codes.rows(), out, threads);
    detail::add_decoded(codes, parameters_.W_dec, out, scratch, threads);
  }
  /// y' [B x D_out] of rows x.
  Matrix<Scalar> predict(const Rows& x, Threads& threads = Threads::shared()) const {
    return decode(encode(x, threads), x, threads);
  }

  /// Value of the objective (default: the squared error alone), mean over the rows.
  template <class Terms = Objective<>>
    requires detail::is_objective<Terms> LossValues loss(const Rows& x, const Targets& y, const Terms& objective = {},
                                                         Threads& threads = Threads::shared())
  const {
    Workspace<Terms> workspace;
    objective.check(d_in(), latents());
    detail::run_step(*this, detail::StepRows<Scalar>{x, y}, objective, workspace, threads, [](auto&) {});
    return workspace.step.loss;
  }
  struct Gradient {
    LossValues loss;
    typename Parameters::Gradients parameters;  ///< dL/dp for every parameter p, in the same shapes
  };
  /// Loss and the gradient of every parameter, as SparseAutoencoder::gradient; dL/dW_skip = G^T x with G = dL/dy'.
  template <class Terms = Objective<>>
    requires detail::is_objective<Terms> Gradient gradient(const Rows& x, const Targets& y, const Terms& objective = {},
                                                           Threads& threads = Threads::shared())
  const {
    Workspace<Terms> workspace;
    return gradient(x, y, objective, workspace, threads);
  }
  template <class Terms>
  Gradient gradient(const Rows& x, const Targets& y, const Terms& objective, Workspace<Terms>& workspace,
                    Threads& threads = Threads::shared()) const {
    objective.check(d_in(), latents());
    Gradient out;
    out.parameters.resize_like(parameters_);
    workspace.step.wants_gradient = true;
    detail::run_step(
        *this, detail::StepRows<Scalar>{x, y}, objective, workspace, threads, [](auto&) {}, &out.parameters);
    detail::materialise_gradient(*this, workspace.step, out.parameters, threads);
    out.loss = workspace.step.loss;
    return out;
  }

  /// The model was trained on (in * x, out * y); afterwards it reads x and predicts y: b_enc, thresholds and codes are divided by
  /// `in`, b_dec by `out`, W_dec and W_skip multiplied by in / out (unit decoder rows have the norm in / out then). Exact for
  /// positively homogeneous activations.
  void fold_scales(double in, double out) {
    if (!(in > 0 && std::isfinite(in)) || !(out > 0 && std::isfinite(out)))
      throw_value("fold_scales: scales ", in, " and ", out, " are not both positive finite numbers");
    const auto factor = static_cast<Scalar>(1 / in);
    kernels::scale(parameters_.b_enc.data(), factor, parameters_.b_enc.size());
    const bool* const by_norm = detail::rank_by_norm(activation_);  // its keys z |W_dec[i]| are in the units of the target
    parameters_.activation.rescale(by_norm != nullptr && *by_norm ? static_cast<Scalar>(1 / out) : factor);
    kernels::scale(parameters_.b_dec.data(), static_cast<Scalar>(1 / out), parameters_.b_dec.size());
    const auto across = static_cast<Scalar>(in / out);
    if (across == Scalar(1)) return;
    kernels::scale(parameters_.W_dec.data(), across, parameters_.W_dec.size());
    kernels::scale(parameters_.W_skip.data(), across, parameters_.W_skip.size());
  }

  /// Brings every decoder row to norm 1 (of several sites: the sum of their norms) without changing a prediction, as
  /// SparseAutoencoder::fold_decoder_norms.
  void fold_decoder_norms() { detail::fold_decoder_norms(activation_, parameters_, sites_); }

 private:
  void check(Index d_in, Index d_out, Index latents) const {
    if (d_in < 1 || d_out < 1 || latents < 1)
      throw_value("Transcoder: sizes d_in = ", d_in, ", d_out = ", d_out, ", latents = ", latents, " are not positive");
    if ((D_in != Dynamic && d_in != D_in) || (D_out != Dynamic && d_out != D_out) || (F != Dynamic && latents != F))
      throw_shape("Transcoder: sizes [", d_in, " -> ", latents, " -> ", d_out, "] differ from the fixed ones [", D_in, " -> ",
                  F, " -> ", D_out, "]");
    if (d_in > (Index{1} << 30) || d_out > (Index{1} << 30) || latents > (Index{1} << 30))
      throw_value("Transcoder: sizes d_in = ", d_in, ", d_out = ", d_out, ", latents = ", latents, " are not all at most 2^30");
    for (const Index width : sites_)
      if (width < 1 || width > d_out) throw_value("Transcoder: a site of width ", width, " is not in [1, ", d_out, "] (D_out)");
    if (const Index all = std::accumulate(sites_.begin(), sites_.end(), Index{0}); !sites_.empty() && all != d_out)
      throw_value("Transcoder: the widths of the sites add up to ", all, " and not to d_out = ", d_out);
    activation_.check(latents);
    if (detail::has_tied_weights(activation_))
      throw_value("Transcoder: ", std::string_view(activation_.name), " ties encoder and decoder, whose widths differ here");
  }

  Activation activation_;
  std::vector<Index> sites_;
  Parameters parameters_;
};

template <class Activation>
Transcoder(Index, Index, Index, Activation) -> Transcoder<Dynamic, Dynamic, Dynamic, Activation, float>;
template <class Activation>
Transcoder(Index, Index, Index, Activation, TranscoderOptions) -> Transcoder<Dynamic, Dynamic, Dynamic, Activation, float>;

}  // namespace sae::inline SAE_ABI
