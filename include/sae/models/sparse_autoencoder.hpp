#pragma once
#include <sae/models/backward.hpp>
#include <sae/models/folding.hpp>
#include <sae/models/initialization.hpp>
#include <sae/models/parameters.hpp>

#include <numeric>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

namespace sae::inline SAE_ABI {

/// Settings of a model that are no sizes.
struct ModelOptions {
  /// Subtract b_dec from the input before encoding, z = (x - b_dec) W_enc^T + b_enc. Without it z = x W_enc^T + b_enc
  /// (Gemma Scope, dictionary_learning's JumpReLU). SAELens: `apply_b_dec_to_input`.
  bool subtract_decoder_bias = true;
  TiedInitialization initialization{};
  /// Widths of the sites of a crosscoder, >= 1 each, D together (models/crosscoder.hpp); empty: no crosscoder.
  std::vector<Index> sites{};
};

/// A sparse autoencoder: rewrites rows x [B x D] as a few active latents out of F, each with a direction.
///
///   z  = (x - b_dec) W_enc^T + b_enc        pre-activations [B x F], never stored whole
///   f  = activation(z)                      codes, sparse
///   x' = f W_dec + b_dec                    reconstruction [B x D]
///
/// W_enc and W_dec are both [F x D]: latent i reads along W_enc.row(i) and writes along W_dec.row(i).
///
/// \tparam D, F        sizes, or sae::Dynamic; fixed ones are checked at compile time where the argument's are known too.
/// \tparam Activation  ReLU, TopK, or a struct of your own (activations/selection.hpp).
/// \tparam Scalar      float or double.
///
/// Every argument `x` takes any Eigen expression or Map of [B x D] of the same scalar, or one vector. All parameters live on
/// the heap and their layout does not depend on compiler flags. Results do not depend on the number of threads.
/// Const members may be called from several threads at once. Exceptions: ShapeError where widths differ.
template <int D, int F, class Activation_, class Scalar_ = float>
class SparseAutoencoder {
  static_assert(std::is_floating_point_v<Scalar_>, "sae: Scalar is float or double");
  static_assert(D != 1, "sae: a fixed width is at least 2; give the width 1 at run time");
  static_assert((D == Dynamic || D > 0) && (F == Dynamic || F > 0), "sae: D and F are positive or sae::Dynamic");

 public:
  using Activation = Activation_;
  using Scalar = Scalar_;
  using Parameters = AutoencoderParameters<Activation, Scalar>;
  using Rows = Batch<Scalar, D>;
  static constexpr int fixed_width = D;
  static constexpr int fixed_latents = F;

  /// Fixed sizes: SparseAutoencoder<64, 512, TopK> model({.k = 12});
  explicit SparseAutoencoder(Activation activation = {}, ModelOptions options = {}) requires(D != Dynamic && F != Dynamic)
      : SparseAutoencoder(D, F, std::move(activation), std::move(options)) {}

  /// Sizes at run time: SparseAutoencoder model(576, 4608, TopK{.k = 32});
  SparseAutoencoder(Index d_in, Index latents, Activation activation = {}, ModelOptions options = {})
      : activation_(std::move(activation)),
        subtract_decoder_bias_(options.subtract_decoder_bias),
        sites_(std::move(options.sites)) {
    if (d_in < 1 || latents < 1)
      throw_value("SparseAutoencoder: sizes d_in = ", d_in, ", latents = ", latents, " are not positive");
    if ((D != Dynamic && d_in != D) || (F != Dynamic && latents != F))
      throw_shape("SparseAutoencoder: sizes [", d_in, " -> ", latents, "] differ from the fixed ones [", D, " -> ", F, "]");
    if (d_in > (Index{1} << 30) || latents > (Index{1} << 30))
      throw_value("SparseAutoencoder: sizes d_in = ", d_in, ", latents = ", latents, " are not both at most 2^30");
    for (const Index width : sites_)
      if (width < 1 || width > d_in)
        throw_value("SparseAutoencoder: a site of width ", width, " is not in [1, ", d_in, "] (D)");
    if (const Index all = std::accumulate(sites_.begin(), sites_.end(), Index{0}); !sites_.empty() && all != d_in)
      throw_value("SparseAutoencoder: the widths of the sites add up to ", all, " and not to d_in = ", d_in);
    activation_.check(latents);
    if constexpr (requires { parameters_.activation.choose(activation_); }) parameters_.activation.choose(activation_);
    parameters_.resize({.d_in = d_in,
                        .latents = latents,
                        .encoder_bias = detail::has_encoder_bias(activation_),
                        .tied = detail::has_tied_weights(activation_)});
    options.initialization(parameters_);
    parameters_.activation.initialize(activation_);
  }

  Index d_in() const { return parameters_.width(); }
  Index latents() const { return parameters_.latents(); }
  const Activation& activation() const { return activation_; }
  /// From here on k latents a row are kept (BatchTopK: in the mean).
  /// \throws ValueError  the activation has no such k (TopK, BatchTopK and AbsTopK have); k is not in its range.
  void set_k(double k) { detail::set_k(activation_, k, latents()); }
  bool subtracts_decoder_bias() const { return subtract_decoder_bias_; }
  std::span<const Index> sites() const { return sites_; }  ///< empty: no crosscoder
  ModelOptions options() const {                           ///< of a model like this one, but for its start
    return {.subtract_decoder_bias = subtract_decoder_bias_, .sites = sites_};
  }
  Parameters& parameters() { return parameters_; }
  const Parameters& parameters() const { return parameters_; }

  using Weights = Eigen::Map<Eigen::Matrix<Scalar, F, D, Eigen::RowMajor>>;
  using ConstWeights = Eigen::Map<const Eigen::Matrix<Scalar, F, D, Eigen::RowMajor>>;
  using ConstLatentVector = Eigen::Map<const Eigen::Matrix<Scalar, 1, F, Eigen::RowMajor>>;
  using ConstInputVector = Eigen::Map<const Eigen::Matrix<Scalar, 1, D, Eigen::RowMajor>>;
  ConstWeights W_enc() const {
    return {parameters_.encoder().data(), latents(), d_in()};
  }                                                                                     ///< [F x D]; W_dec where they are tied
  ConstWeights W_dec() const { return {parameters_.W_dec.data(), latents(), d_in()}; }  ///< [F x D]
  Weights W_enc() { return {parameters_.tied() ? parameters_.W_dec.data() : parameters_.W_enc.data(), latents(), d_in()}; }
  Weights W_dec() { return {parameters_.W_dec.data(), latents(), d_in()}; }
  ConstLatentVector b_enc() const {  ///< [1 x F]
    if (parameters_.b_enc.size() == 0)
      throw_value("a SAE with the activation ", std::string_view(activation_.name), " has no b_enc");
    return {parameters_.b_enc.data(), 1, latents()};
  }
  ConstInputVector b_dec() const { return {parameters_.b_dec.data(), 1, d_in()}; }  ///< [1 x D]

  /// Pre-activations z [B x F], dense: to look at, not to compute with.
  Matrix<Scalar> pre_activations(const Rows& x, Threads& threads = Threads::shared()) const {
    Workspace<> workspace;
    auto& step = workspace.step;
    detail::load_input(parameters_, subtract_decoder_bias_, RowsView<Scalar>(x), step, threads);
    Matrix<Scalar> out(x.rows(), latents());
    const Index block_rows = detail::encode_block_rows(x.rows());
    detail::for_each_pre_activation(step.input.data(), x.rows(), d_in(), parameters_.encoder().data(),
                                    parameters_.b_enc.size() > 0 ? parameters_.b_enc.data() : nullptr, latents(), step.scratch,
                                    threads, [&](Index block, Index row, Index first, std::span<const Scalar> z) {
                                      std::copy(z.begin(), z.end(),
                                                out.data() + (block * block_rows + row) * latents() + first);
                                    });
    return out;
  }

  /// Codes f, sparse: for each row its active latents, ascending, and their values.
  Codes<Scalar> encode(const Rows& x, Threads& threads = Threads::shared()) const {
    Workspace<> workspace;
    encode_into(x, workspace, threads);
    return std::move(workspace.step.main.entries.codes);
  }
  /// Codes f [B x F], dense.
  Matrix<Scalar> encode_dense(const Rows& x, Threads& threads = Threads::shared()) const { return encode(x, threads).dense(); }

  /// Scratch of `encode_into`, reused from call to call.
  template <class Terms = Objective<>>
  using Workspace = sae::Workspace<Activation, Scalar, Terms>;
  /// Codes f, in memory of the workspace: nothing is allocated once it has grown, but for what Eigen packs inside a large product.
  /// The reference is valid until its next use.
  const Codes<Scalar>& encode_into(const Rows& x, Workspace<>& workspace, Threads& threads = Threads::shared()) const {
    auto& step = workspace.step;
    detail::load_input(parameters_, subtract_decoder_bias_, RowsView<Scalar>(x), step, threads);
    step.encoder = &parameters_.encoder();
    step.encoder_bias = &parameters_.b_enc;
    step.decoder = &parameters_.W_dec;
    if (activation_.needs_decoder_norms()) detail::decoder_norms(parameters_.W_dec, sites_, step.decoder_norms, threads);
    detail::select(activation_, parameters_, step, threads, [](Index, Index, Index, std::span<const Scalar>) {});
    return step.main.entries.codes;
  }

  /// Reconstruction x' = f W_dec + b_dec [B x D].
  Matrix<Scalar> decode(const Codes<Scalar>& codes, Threads& threads = Threads::shared()) const {
    Tensor<Scalar> out;
    ScratchPool<Scalar> scratch;
    decode_into(codes, out, scratch, threads);
    return out.map();
  }
  Matrix<Scalar> decode(const Batch<Scalar, F>& dense, Threads& threads = Threads::shared()) const {
    const Batch<Scalar> any(dense.row(0), dense.rows(), dense.cols(), dense.stride());
    return decode(Codes<Scalar>::from_dense(any), threads);
  }
  void decode_into(const Codes<Scalar>& codes, Tensor<Scalar>& out, ScratchPool<Scalar>& scratch,
                   Threads& threads = Threads::shared()) const {
    if (codes.latents() != latents()) throw_shape("codes have ", codes.latents(), " latents, the model has ", latents());
    detail::load_decoder_bias<Scalar>(parameters_.b_dec, nullptr, {}, codes.rows(), out, threads);
    detail::add_decoded(codes, parameters_.W_dec, out, scratch, threads);
  }

  /// x' [B x D] of rows x.
  Matrix<Scalar> reconstruct(const Rows& x, Threads& threads = Threads::shared()) const {
    return decode(encode(x, threads), threads);
  }

  /// Value of the objective (default: the reconstruction error alone), mean over the rows.
  template <class Terms = Objective<>>
    requires detail::is_objective<Terms> LossValues loss(const Rows& x, const Terms& objective = {},
                                                         Threads& threads = Threads::shared())
  const {
    Workspace<Terms> workspace;
    objective.check(d_in(), latents());
    detail::run_step(*this, rows_of(x), objective, workspace, threads, [](auto&) {});
    return workspace.step.loss;
  }

  struct Gradient {
    LossValues loss;
    Parameters parameters;  ///< dL/dp for every parameter p, in the same shapes
  };
  /// Loss and the gradient of every parameter. Exact, but that a selection (which entries are active) is held constant and a
  /// straight-through estimator is what its activation says. Formulas: docs/math.md.
  template <class Terms = Objective<>>
    requires detail::is_objective<Terms> Gradient gradient(const Rows& x, const Terms& objective = {},
                                                           Threads& threads = Threads::shared())
  const {
    Workspace<Terms> workspace;
    return gradient(x, objective, workspace, threads);
  }
  /// The same with a workspace of the caller's, whose step carries the dead latents and the sparsity scale.
  template <class Terms>
  Gradient gradient(const Rows& x, const Terms& objective, Workspace<Terms>& workspace,
                    Threads& threads = Threads::shared()) const {
    return gradient_of(x, objective, workspace, nullptr, threads);
  }
  /// Gradient of a loss of the caller's own, from its derivative dL/dx' [B x D] at the reconstruction of x (end-to-end
  /// training, a weighted error). `loss` of the result is 0.
  Gradient gradient(const Rows& x, const Rows& reconstruction_gradient, Threads& threads = Threads::shared()) const {
    Workspace<> workspace;
    const detail::OuterLoss<Scalar> outer{RowsView<Scalar>(reconstruction_gradient)};
    return gradient_of(x, Objective<>{}, workspace, &outer, threads);
  }

  /// The model was trained on scale * x; afterwards it reads x. Activations and biases change their units, directions keep
  /// theirs: b_enc, b_dec, thresholds and codes are divided by `scale`, weights stay (exact for positively homogeneous
  /// activations, f(c z) = c f(z)).
  void fold_input_scale(double scale) {
    if (!(scale > 0 && std::isfinite(scale)))
      throw_value("fold_input_scale: scale = ", scale, " is not a positive finite number");
    const auto factor = static_cast<Scalar>(1 / scale);
    kernels::scale(parameters_.b_enc.data(), factor, parameters_.b_enc.size());
    kernels::scale(parameters_.b_dec.data(), factor, d_in());
    parameters_.activation.rescale(factor);
  }

  /// Makes every decoder row a unit vector without changing the reconstruction: W_dec[i] /= n, W_enc[i] *= n, b_enc[i] *= n with
  /// n = |W_dec[i]| (of a crosscoder the sum of the sites' norms, which is then 1). Codes are then measured in units of the direction. Exact for ReLU and for TopK that ranks by the decoder
  /// norm (its rank is then z itself); plain TopK would select other latents, so it is refused. Rows of norm 0 stay; where the
  /// rank was z n = 0 they never won, so their encoder rows and biases become 0 and they never win.
  void fold_decoder_norms() { detail::fold_decoder_norms(activation_, parameters_, sites_); }

 private:
  static detail::StepRows<Scalar> rows_of(const Rows& x) { return {x, x}; }
  template <class Terms>
  Gradient gradient_of(const Rows& x, const Terms& objective, Workspace<Terms>& workspace,
                       const detail::OuterLoss<Scalar>* outer, Threads& threads) const {
    objective.check(d_in(), latents());
    Gradient out;
    out.parameters.resize_like(parameters_);
    workspace.step.wants_gradient = true;
    detail::run_step(
        *this, rows_of(x), objective, workspace, threads, [](auto&) {}, &out.parameters, outer);
    detail::materialise_gradient(*this, workspace.step, out.parameters, threads);
    out.loss = workspace.step.loss;
    return out;
  }

  Activation activation_;
  bool subtract_decoder_bias_ = true;
  std::vector<Index> sites_;
  Parameters parameters_;
};

template <class Activation>
SparseAutoencoder(Index, Index, Activation) -> SparseAutoencoder<Dynamic, Dynamic, Activation, float>;
template <class Activation>
SparseAutoencoder(Index, Index, Activation, ModelOptions) -> SparseAutoencoder<Dynamic, Dynamic, Activation, float>;

}  // namespace sae::inline SAE_ABI
