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
  /// What is done to each row before b_dec is subtracted, and undone in its reconstruction.
  InputNormalisation input_normalisation = InputNormalisation::none;
  /// W_enc is W_dec: latents read along what they write, F D numbers fewer. dL/dW_dec is then the sum of both gradients.
  bool tied = false;
  TiedInitialization initialization{};
  /// Widths of the sites of a crosscoder, >= 1 each, D together (models/crosscoder.hpp); empty: no crosscoder.
  std::vector<Index> sites{};
};

/// Where a scale of the rows goes when it is folded: into the codes, or into the weights.
enum class ScaleFold { activations, weights };

/// A sparse autoencoder: rewrites rows x [B x D] as a few active latents out of F, each with a direction.
///
///   z  = (x - b_dec) W_enc^T + b_enc        pre-activations [B x F], never stored whole
///   f  = activation(z)                      codes, sparse
///   x' = f W_dec + b_dec                    reconstruction [B x D]
///
/// W_enc and W_dec are both [F x D]: latent i reads along W_enc.row(i) and writes along W_dec.row(i). With an InputNormalisation all
/// of this is between normalised rows, and x' is brought back.
///
/// \tparam D, F        sizes, or sae::Dynamic; fixed ones are checked at compile time where the argument's are known too.
/// \tparam Activation  ReLU, TopK, or a struct of your own (activations/selection.hpp).
/// \tparam Scalar      float or double.
/// \tparam Stored      what W_enc and W_dec are stored as: Scalar, or of float bfloat16 or float16, half the memory, or std::int8_t with
///                     a scale for each row, a quarter. Rows are widened where they are read, so that all results are those of a
///                     float32 model that holds the same numbers; no float32 copy of the weights is ever made. A training rounds
///                     stochastically what it writes to 16 bits; models of 8 are not trained, and come from `with_weights`, which goes
///                     between all of these. Mapped: where they lie, in a file for one (core/mapped.hpp), read whenever they are used; such
///                     models are not trained. What has no such form (folds of weights, `to_jump_relu`, starts from data, interventions,
///                     matching pursuit) does not compile: go through `with_weights<float>`.
///
/// Every argument `x` takes any Eigen expression or Map of [B x D] of the same scalar, or one vector. All parameters live on
/// the heap and their layout does not depend on compiler flags. Results do not depend on the number of threads.
/// Const members may be called from several threads at once. Exceptions: ShapeError where widths differ.
template <int D, int F, class Activation_, class Scalar_ = float, class Stored_ = Scalar_>
class SparseAutoencoder {
  static_assert(std::is_floating_point_v<Scalar_>, "sae: Scalar is float or double");
  static_assert(std::is_same_v<Stored_, Scalar_> || (detail::is_narrow<Stored_> && std::is_same_v<Scalar_, float>),
                "sae: weights are stored as Scalar, or of float as bfloat16, float16, std::int8_t or Mapped");
  static_assert(std::is_same_v<Stored_, Scalar_> || !detail::pursues<Activation_> || detail::chosen_later<Activation_>,
                "sae: matching pursuit needs weights that are stored as Scalar");
  static_assert(D != 1, "sae: a fixed width is at least 2; give the width 1 at run time");
  static_assert((D == Dynamic || D > 0) && (F == Dynamic || F > 0), "sae: D and F are positive or sae::Dynamic");

 public:
  using Activation = Activation_;
  using Scalar = Scalar_;
  using Stored = Stored_;
  using Parameters = AutoencoderParameters<Activation, Scalar, Stored>;
  using Rows = Batch<Scalar, D>;
  static constexpr int fixed_width = D;
  static constexpr int fixed_latents = F;
  static constexpr bool drawn = std::is_same_v<Stored, Scalar> || detail::is_half<Stored>;  ///< a start can be drawn

  /// Fixed sizes: SparseAutoencoder<64, 512, TopK> model({.k = 12});
  explicit SparseAutoencoder(Activation activation = {},
                             ModelOptions options = {}) requires(D != Dynamic && F != Dynamic && drawn)
      : SparseAutoencoder(D, F, std::move(activation), std::move(options)) {}

  /// Sizes at run time: SparseAutoencoder model(576, 4608, TopK{.k = 32});
  SparseAutoencoder(Index d_in, Index latents, Activation activation = {}, ModelOptions options = {}) requires drawn
      : activation_(std::move(activation)),
        options_(std::move(options)) {
    check(d_in, latents);
    if constexpr (requires { parameters_.activation.choose(activation_); }) parameters_.activation.choose(activation_);
    parameters_.resize({.d_in = d_in,
                        .latents = latents,
                        .encoder_bias = detail::has_encoder_bias(activation_),
                        .tied = options_.tied || detail::has_tied_weights(activation_)});
    options_.initialization(parameters_);
    parameters_.activation.initialize(activation_);
  }

  /// A model that holds these parameters; nothing is drawn. The activation's own tensors have the sizes that it gives them.
  /// \throws ShapeError  W_enc (or none: tied), b_enc, W_dec or b_dec are not those of a model with such an activation.
  SparseAutoencoder(Parameters parameters, Activation activation, ModelOptions options = {})
      : activation_(std::move(activation)), options_(std::move(options)), parameters_(std::move(parameters)) {
    check(d_in(), latents());
    if (!parameters_.has_shape({.d_in = d_in(),
                                .latents = latents(),
                                .encoder_bias = detail::has_encoder_bias(activation_),
                                .tied = parameters_.tied() || detail::has_tied_weights(activation_)}))
      throw_shape("SparseAutoencoder: the parameters are not those of a model [", d_in(), " -> ", latents(), "] with ",
                  std::string_view(activation_.name));
  }

  Index d_in() const { return parameters_.width(); }
  Index latents() const { return parameters_.latents(); }
  const Activation& activation() const { return activation_; }
  /// From here on k latents a row are kept (BatchTopK: in the mean).
  /// \throws ValueError  the activation has no such k (TopK, BatchTopK and AbsTopK have); k is not in its range.
  void set_k(double k) { detail::set_k(activation_, k, latents()); }
  bool subtracts_decoder_bias() const { return options_.subtract_decoder_bias; }
  InputNormalisation input_normalisation() const { return options_.input_normalisation; }
  std::span<const Index> sites() const { return options_.sites; }  ///< empty: no crosscoder
  const ModelOptions& options() const { return options_; }         ///< of a model like this one
  Parameters& parameters() { return parameters_; }
  const Parameters& parameters() const { return parameters_; }

  using Weights = Eigen::Map<Eigen::Matrix<Scalar, F, D, Eigen::RowMajor>>;
  using ConstWeights = Eigen::Map<const Eigen::Matrix<Scalar, F, D, Eigen::RowMajor>>;
  using ConstLatentVector = Eigen::Map<const Eigen::Matrix<Scalar, 1, F, Eigen::RowMajor>>;
  using ConstInputVector = Eigen::Map<const Eigen::Matrix<Scalar, 1, D, Eigen::RowMajor>>;
  /// [F x D]; W_dec where they are tied. Of weights that are stored as Scalar; others are in `parameters()`.
  ConstWeights W_enc() const requires(std::is_same_v<Stored, Scalar>) {
    return {parameters_.encoder().data(), latents(), d_in()};
  }
  ConstWeights W_dec() const requires(std::is_same_v<Stored, Scalar>) { return {parameters_.W_dec.data(), latents(), d_in()}; }
  Weights W_enc() requires(std::is_same_v<Stored, Scalar>) {
    return {parameters_.tied() ? parameters_.W_dec.data() : parameters_.W_enc.data(), latents(), d_in()};
  }
  Weights W_dec() requires(std::is_same_v<Stored, Scalar>) { return {parameters_.W_dec.data(), latents(), d_in()}; }
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
    detail::load_input(parameters_, subtracts_decoder_bias(), RowsView<Scalar>(x), step, threads, input_normalisation());
    Matrix<Scalar> out(x.rows(), latents());
    const Index block_rows = detail::encode_block_rows(x.rows());
    detail::for_each_tile(activation_, parameters_, step.input, step.scratch, threads,
                          [&](Index block, Index row, Index first, std::span<const Scalar> z) {
                            std::copy(z.begin(), z.end(), out.data() + (block * block_rows + row) * latents() + first);
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
  using Workspace = sae::Workspace<Activation, Scalar, Terms, Stored>;
  /// Codes f, in memory of the workspace: nothing is allocated once it has grown, but for what Eigen packs inside a large product.
  /// The reference is valid until its next use. For a trained model call `workspace.keep_weights()` once: a row then takes a third of the
  /// time or less where the machine multiplies small integers fast.
  const Codes<Scalar>& encode_into(const Rows& x, Workspace<>& workspace, Threads& threads = Threads::shared()) const {
    auto& step = workspace.step;
    detail::load_input(parameters_, subtracts_decoder_bias(), RowsView<Scalar>(x), step, threads, input_normalisation());
    step.encoder = &parameters_.encoder();
    step.encoder_bias = &parameters_.b_enc;
    step.decoder = &parameters_.W_dec;
    detail::load_decoder_norms(activation_, parameters_.W_dec, options_.sites, step, threads);
    detail::select(activation_, parameters_, step, threads);
    return step.main.entries.codes;
  }

  /// Reconstruction x' = f W_dec + b_dec [B x D].
  /// \throws ValueError  the model has an InputNormalisation, which the codes alone do not tell how to undo: give the rows, too.
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
    if (input_normalisation() != InputNormalisation::none)
      throw_value("decode: the model normalises each row (", detail::to_string(input_normalisation()),
                  ") and codes alone do not tell how to undo it; give the rows that they are of, too");
    decode_normalised(codes, out, scratch, threads);
  }
  /// The same with the rows x [B x D] that the codes are of, which a model with an InputNormalisation needs to undo it; others only
  /// look at their shape.
  Matrix<Scalar> decode(const Codes<Scalar>& codes, const Rows& x, Threads& threads = Threads::shared()) const {
    Tensor<Scalar> out;
    ScratchPool<Scalar> scratch;
    decode_into(codes, x, out, scratch, threads);
    return out.map();
  }
  void decode_into(const Codes<Scalar>& codes, const Rows& x, Tensor<Scalar>& out, ScratchPool<Scalar>& scratch,
                   Threads& threads = Threads::shared()) const {
    if (x.rows() != codes.rows() || x.cols() != d_in())
      throw_shape("the input is [", x.rows(), " x ", x.cols(), "], the codes are of [", codes.rows(), " x ", d_in(), "]");
    decode_normalised(codes, out, scratch, threads);
    if (input_normalisation() == InputNormalisation::none) return;
    detail::RowScales<Scalar> scales;
    scales.measure(input_normalisation(), RowsView<Scalar>(x), threads);
    scales.undo(out, threads);
  }
  /// How long a step of length 1 between normalised rows is in x', for each row of x [B]: the spread of InputNormalisation, or 1.
  std::vector<Scalar> row_spreads(const Rows& x, Threads& threads = Threads::shared()) const {
    if (x.cols() != d_in()) throw_shape("rows have ", x.cols(), " columns, the model reads ", d_in());
    if (input_normalisation() == InputNormalisation::none)
      return std::vector<Scalar>(static_cast<std::size_t>(x.rows()), Scalar(1));
    detail::RowScales<Scalar> scales;
    scales.measure(input_normalisation(), RowsView<Scalar>(x), threads);
    return {scales.spread.begin(), scales.spread.end()};
  }

  /// x' [B x D] of rows x.
  Matrix<Scalar> reconstruct(const Rows& x, Threads& threads = Threads::shared()) const {
    return decode(encode(x, threads), x, threads);
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
    typename Parameters::Gradients parameters;  ///< dL/dp for every parameter p, in the same shapes, as Scalar
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

  /// The model was trained on scale * x; afterwards it reads x. b_dec is divided by `scale`, and
  ///   activations   b_enc, thresholds and codes, too: codes are then in the units of x. Weights stay. Exact for positively
  ///                 homogeneous activations, f(c z) = c f(z), which all of ours are (llamascopium, dictionary_learning)
  ///   weights       W_enc is multiplied by `scale` and W_dec divided by it; z, b_enc, codes and thresholds on z stay. A threshold
  ///                 on z |W_dec[i]| is divided by `scale`. Exact for every activation (SAELens)
  /// A model with constant_norm reads scale * x as it reads x: nothing changes.
  /// \throws ValueError  the scale is not positive and finite; the model has layer_norm, whose 1e-5 no weights can rescale; the
  ///                     weights are tied, or narrow, and were to be changed.
  void fold_input_scale(double scale, ScaleFold fold = ScaleFold::activations) {
    require_positive("fold_input_scale: scale", scale);
    if (input_normalisation() == InputNormalisation::layer_norm && scale != 1)
      throw_value("fold_input_scale: scale = ", scale,
                  ": a model with layer_norm adds 1e-5 to the deviation of a row as it is scaled; only 1 can be folded");
    if (input_normalisation() != InputNormalisation::none) return;
    const auto factor = static_cast<Scalar>(1 / scale);
    if constexpr (!std::is_same_v<Stored, Scalar>) {
      if (fold == ScaleFold::weights)
        throw_value("fold_input_scale: narrow weights would be rounded again; fold the scale into the activations");
    } else if (fold == ScaleFold::weights) {
      if constexpr (requires { activation_.gate(parameters_.activation); })
        throw_value("fold_input_scale: ", std::string_view(activation_.name),
                    " reads the rows twice; fold the scale into the activations");
      if (parameters_.tied())
        throw_value("fold_input_scale: encoder and decoder are tied; fold the scale into the activations");
      kernels::scale(parameters_.W_enc.data(), static_cast<Scalar>(scale), parameters_.W_enc.size());
      kernels::scale(parameters_.W_dec.data(), factor, parameters_.W_dec.size());
      kernels::scale(parameters_.b_dec.data(), factor, d_in());
      if (const bool* const by_norm = detail::rank_by_norm(activation_); by_norm != nullptr && *by_norm)
        parameters_.activation.rescale(factor);
      return;
    }
    kernels::scale(parameters_.b_enc.data(), factor, parameters_.b_enc.size());
    kernels::scale(parameters_.b_dec.data(), factor, d_in());
    parameters_.activation.rescale(factor);
  }

  /// The model was trained on (x - mean) A; afterwards it reads x. Codes, thresholds and b_enc stay:
  ///   W_enc <- W_enc A^T,   W_dec <- W_dec A^-1,   b_dec <- b_dec A^-1 + mean,
  ///   b_enc <- b_enc - W_enc mean (the new W_enc) where the model does not subtract b_dec.
  /// Exact for every activation that reads z alone. Cost: 2 F D^2. float64 inside.
  ///
  /// \param mean [1 x D], matrix A and its inverse [D x D]
  /// \throws ShapeError  a shape differs.
  /// \throws ValueError  the model normalises its rows; encoder and decoder are tied; the activation ranks by the decoder norm, which
  ///                     changes (`fold_decoder_norms` first); it has no b_enc to take what the missing b_dec leaves.
  void fold_input_map(const Tensor<double>& mean, const Tensor<double>& matrix, const Tensor<double>& inverse,
                      Threads& threads = Threads::shared()) requires(std::is_same_v<Stored, Scalar>) {
    const Index width = d_in();
    if (mean.size() != width || matrix.rows() != width || matrix.cols() != width || inverse.rows() != width ||
        inverse.cols() != width)
      throw_shape("fold_input_map: a mean of ", mean.size(), " numbers, a matrix [", matrix.rows(), " x ", matrix.cols(),
                  "] and an inverse [", inverse.rows(), " x ", inverse.cols(), "], the model reads ", width);
    if (input_normalisation() != InputNormalisation::none)
      throw_value("fold_input_map: the model normalises each row (", detail::to_string(input_normalisation()),
                  "), which comes before any map");
    if (parameters_.tied()) throw_value("fold_input_map: encoder and decoder are tied, and would become different");
    if constexpr (requires { activation_.gate(parameters_.activation); })
      throw_value("fold_input_map: ", std::string_view(activation_.name),
                  " reads the rows twice, and its gate would read others");
    if (const bool* const by_norm = detail::rank_by_norm(activation_); by_norm != nullptr && *by_norm)
      throw_value("fold_input_map: ", std::string_view(activation_.name),
                  " ranks by the decoder norm, which the map changes; fold_decoder_norms first");
    const bool has_bias = parameters_.b_enc.size() > 0;
    if (!has_bias && !subtracts_decoder_bias())
      throw_value("fold_input_map: a model of ", std::string_view(activation_.name),
                  " that does not subtract b_dec has no b_enc to take the mean");
    // w <- w m or w m^T for rows w, a block of them at a time
    const auto transform = [&](Tensor<Scalar>& w, const Tensor<double>& m, bool transposed, const auto& each_row) {
      threads.for_blocks(w.rows(), 64, [&](Index begin, Index end, Index) {
        const Index rows = end - begin;
        Tensor<double> from(rows, width), to(rows, width);
        for (Index i = 0; i < from.size(); ++i) from[i] = static_cast<double>(w.row(begin)[i]);
        if (transposed) {
          kernels::add_product_nt(to.data(), width, from.data(), width, m.data(), width, rows, width, width);
        } else {
          kernels::add_product_nn(to.data(), width, from.data(), width, m.data(), width, rows, width, width);
        }
        for (Index r = 0; r < rows; ++r) each_row(begin + r, to.row(r));
        for (Index i = 0; i < to.size(); ++i) w.row(begin)[i] = static_cast<Scalar>(to[i]);
      });
    };
    transform(parameters_.W_enc, matrix, true, [&](Index i, const double* w) {
      if (!subtracts_decoder_bias()) parameters_.b_enc[i] -= static_cast<Scalar>(kernels::dot(w, mean.data(), width));
    });
    transform(parameters_.W_dec, inverse, false, [](Index, const double*) {});
    transform(parameters_.b_dec, inverse, false, [&](Index, double* b) { kernels::add_scaled(b, 1.0, mean.data(), width); });
  }

  /// Makes every decoder row a unit vector without changing the reconstruction: W_dec[i] /= n, W_enc[i] *= n, b_enc[i] *= n with
  /// n = |W_dec[i]| (of a crosscoder the sum of the sites' norms, which is then 1). Codes are then measured in units of the direction. Exact for ReLU and for TopK that ranks by the decoder
  /// norm (its rank is then z itself); plain TopK would select other latents, so it is refused. Rows of norm 0 stay; where the
  /// rank was z n = 0 they never won, so their encoder rows and biases become 0 and they never win.
  void fold_decoder_norms() requires(std::is_same_v<Stored, Scalar>) {
    detail::fold_decoder_norms(activation_, parameters_, options_.sites);
  }

 private:
  void check(Index d_in, Index latents) const {
    if (d_in < 1 || latents < 1)
      throw_value("SparseAutoencoder: sizes d_in = ", d_in, ", latents = ", latents, " are not positive");
    if ((D != Dynamic && d_in != D) || (F != Dynamic && latents != F))
      throw_shape("SparseAutoencoder: sizes [", d_in, " -> ", latents, "] differ from the fixed ones [", D, " -> ", F, "]");
    if (d_in > (Index{1} << 30) || latents > (Index{1} << 30))
      throw_value("SparseAutoencoder: sizes d_in = ", d_in, ", latents = ", latents, " are not both at most 2^30");
    for (const Index width : options_.sites)
      if (width < 1 || width > d_in)
        throw_value("SparseAutoencoder: a site of width ", width, " is not in [1, ", d_in, "] (D)");
    if (const Index all = std::accumulate(options_.sites.begin(), options_.sites.end(), Index{0});
        !options_.sites.empty() && all != d_in)
      throw_value("SparseAutoencoder: the widths of the sites add up to ", all, " and not to d_in = ", d_in);
    if (options_.input_normalisation == InputNormalisation::layer_norm && d_in < 2)
      throw_value("SparseAutoencoder: d_in = ", d_in, " has no standard deviation; layer_norm needs at least 2");
    activation_.check(latents);
    if constexpr (!std::is_same_v<Stored, Scalar> && detail::pursues<Activation>)
      if (detail::has_tied_weights(activation_))
        throw_value("SparseAutoencoder: ", std::string_view(activation_.name),
                    " needs weights that are stored as they are computed with");
  }
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

  void decode_normalised(const Codes<Scalar>& codes, Tensor<Scalar>& out, ScratchPool<Scalar>& scratch,
                         Threads& threads) const {
    if (codes.latents() != latents()) throw_shape("codes have ", codes.latents(), " latents, the model has ", latents());
    if (subtracts_decoder_bias() || !detail::shares_decoder_bias(activation_)) {
      detail::load_decoder_bias<Scalar>(parameters_.b_dec, nullptr, {}, codes.rows(), out, threads);
    } else {
      out.resize(codes.rows(), d_in());
    }
    detail::add_decoded(codes, parameters_.W_dec, out, scratch, threads);
  }

  Activation activation_;
  ModelOptions options_;
  Parameters parameters_;
};

/// The model with its weights stored as `Stored`: rounded to nearest, to float exact. Cost: a model more.
///
///   auto narrow = sae::with_weights<sae::bfloat16>(model);
///   auto small = sae::with_weights<std::int8_t>(model);      // number j of row i is scale_i times an integer in [-127, 127]
/// \throws ValueError  to 8 bits: a weight is not finite.
template <class Stored, int D, int F, class Activation, class Scalar, class Other>
SparseAutoencoder<D, F, Activation, Scalar, Stored> with_weights(
    const SparseAutoencoder<D, F, Activation, Scalar, Other>& model) {
  const auto& from = model.parameters();
  typename SparseAutoencoder<D, F, Activation, Scalar, Stored>::Parameters to;
  static_assert(!std::is_same_v<Stored, Mapped>, "sae: weights are mapped where they lie in a file: load them so");
  to.resize_like(from);
  const auto copy = [](const Tensor<Other>& x, Tensor<Stored>& y) {
    constexpr Index at_once = detail::wide_latents;
    Buffer<Scalar> room(static_cast<std::size_t>(kernels::wide_room<Other>(at_once * x.cols())));
    for (Index first = 0; first < x.rows(); first += at_once) {
      const Index end = std::min(first + at_once, x.rows());
      const Scalar* row = kernels::wide(x.row(first), (end - first) * x.cols(), room.data());
      for (Index i = first; i < end; ++i, row += x.cols()) {
        if constexpr (std::is_same_v<Stored, std::int8_t>) {
          y.set_row(i, row);
        } else {
          for (Index j = 0; j < x.cols(); ++j) y.row(i)[j] = static_cast<Stored>(row[j]);
        }
      }
    }
  };
  copy(from.W_enc, to.W_enc);
  copy(from.W_dec, to.W_dec);
  to.b_enc = from.b_enc;
  to.b_dec = from.b_dec;
  to.W_skip = from.W_skip;
  to.activation = from.activation;
  return {std::move(to), model.activation(), model.options()};
}

template <class Activation>
SparseAutoencoder(Index, Index, Activation) -> SparseAutoencoder<Dynamic, Dynamic, Activation, float>;
template <class Activation>
SparseAutoencoder(Index, Index, Activation, ModelOptions) -> SparseAutoencoder<Dynamic, Dynamic, Activation, float>;

}  // namespace sae::inline SAE_ABI
