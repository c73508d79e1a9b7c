#pragma once
#include <sae/models/backward.hpp>
#include <sae/models/initialization.hpp>
#include <sae/models/parameters.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace sae::inline SAE_ABI {

struct CrossLayerOptions {
  bool skip = false;        ///< a linear path x^l W_skip^l^T from the input of each layer to its own output
  double encoder_norm = 1;  ///< > 0: encoder rows start as random directions of this norm
  double decoder_norm = 0;  ///< >= 0, of the whole row to all layers; 0: decoders start at 0
  std::uint64_t seed = 0;
};

/// The tensors of a CrossLayerTranscoder: of each layer W_enc [F x D], b_enc [1 x F], the activation's own, and W_dec
/// [F x (L - l) D], whose row i holds the directions that latent i of layer l writes to the layers l, l+1, ..., L-1 side by side.
/// b_dec [1 x L D] is shared by all and stands in layer 0, whose decoder is as wide; the others have none. With a skip each layer has
/// W_skip [D x D]. Names: "layer0.W_enc".
template <class Activation, class Scalar_>
struct CrossLayerParameters {
  using Scalar = Scalar_;
  using Layer = AutoencoderParameters<Activation, Scalar>;
  std::vector<Layer> layers;

  Tensor<Scalar>& b_dec() { return layers.front().b_dec; }
  const Tensor<Scalar>& b_dec() const { return layers.front().b_dec; }
  /// The shapes of other parameters, all numbers 0.
  void resize_like(const CrossLayerParameters& other) {
    layers.resize(other.layers.size());
    for (std::size_t l = 0; l < layers.size(); ++l) {
      layers[l].resize_like(other.layers[l]);
      layers[l].W_skip.resize(other.layers[l].W_skip.rows(), other.layers[l].W_skip.cols());
      if (l > 0) layers[l].b_dec.resize(0, 0);
    }
  }
  /// As AutoencoderParameters::visit.
  template <class Visitor, class First, class... Sets>
  static void visit(Visitor&& visitor, First& first, Sets&... sets) {
    for (std::size_t l = 0; l < first.layers.size(); ++l)
      Layer::visit(of_layer(l, visitor), first.layers[l], sets.layers[l]...);
  }
  /// As AutoencoderParameters::visit_state.
  template <class Visitor>
  static void visit_state(Visitor&& visitor, CrossLayerParameters& set) {
    for (std::size_t l = 0; l < set.layers.size(); ++l) Layer::visit_state(of_layer(l, visitor), set.layers[l]);
  }
  /// Before a forward, after a step of an optimizer: brings the activation's tensors back to what is legal (thresholds >= 0).
  void constrain() {
    for (Layer& layer : layers) layer.activation.constrain();
  }

 private:
  /// The visitor, told names with the layer before them.
  template <class Visitor>
  static auto of_layer(std::size_t l, Visitor& visitor) {
    return [l, &visitor](std::string_view name, auto&... tensors) {
      visitor(std::string_view(detail::concat("layer", l, ".", name)), tensors...);
    };
  }
};

namespace detail {

/// What `run_step` needs of a model, of one layer.
template <class Activation_, class Scalar>
struct LayerView {
  using Activation = Activation_;
  using Parameters = AutoencoderParameters<Activation, Scalar>;
  const Parameters& own;
  const Activation& chosen;
  const Parameters& parameters() const { return own; }
  const Activation& activation() const { return chosen; }
  Index latents() const { return own.latents(); }
  static constexpr bool subtracts_decoder_bias() { return false; }
};

/// The terms of an objective at one layer. Its error is part of the whole model's and told when all layers have been encoded.
template <class Terms, class Scalar>
struct LayerObjective {
  const Terms& terms;

  bool needs_decoder_norms() const { return terms.needs_decoder_norms(); }
  template <class Selections, class F>
  void for_each_term(Selections& selections, const F& f) const {
    terms.for_each_term(selections, f);
  }
  template <class Step>
  std::pair<std::string_view, double> reconstruct(Step& step, Threads&) const {
    step.row_loss.assign(static_cast<std::size_t>(step.rows()), 0.0);
    return {};
  }
};
/// Tells a layer's step its columns, from `first` on, of the residual y' - y of the whole model [B x L D]. The loss itself goes to
/// layer 0, which sees all of it.
template <class Step>
void tell_residual(const Tensor<typename Step::Scalar>& residual, Index first, Step& step, Threads& threads) {
  using Scalar = typename Step::Scalar;
  const Index rows = step.rows(), width = step.output_width();
  if (step.residual.rows() != rows || step.residual.cols() != width) step.residual.resize(rows, width);
  const auto factor = Scalar(2) / static_cast<Scalar>(rows);
  threads.for_blocks(rows, 64, [&](Index begin, Index end, Index) {
    for (Index b = begin; b < end; ++b) {
      const Scalar* const from = residual.row(b) + first;
      for (Index j = 0; j < width; ++j) {
        step.residual.row(b)[j] = from[j];
        step.cotangent.row(b)[j] = factor * from[j];
      }
      if (first == 0) step.row_loss[static_cast<std::size_t>(b)] = static_cast<double>(kernels::squared_norm(from, width));
    }
  });
  double sum = 0;
  for (const double loss : step.row_loss) sum += loss;
  step.loss.total = step.loss.reconstruction = sum / static_cast<double>(rows);
}
template <class Terms, class Scalar_, class Scalar>
struct SelectionsOf<LayerObjective<Terms, Scalar_>, Scalar> {
  using type = typename SelectionsOf<Terms, Scalar>::type;
};

}  // namespace detail

/// A cross-layer transcoder: the latents of layer l read that layer's input and write to the outputs of layer l and all later ones.
///
///   z^l = x^l W_enc^l^T + b_enc^l          f^l = activation(z^l)                                   l = 0 .. L-1
///   y'^m = b_dec^m + sum_{l <= m} f^l W_dec^{l,m} [+ x^m W_skip^m^T]
///   L = mean_b sum_m |y'^m_b - y^m_b|^2 + sum over the layers of the terms of an objective
///
/// Rows hold the layers side by side, x and y [B x L D]; each layer has F latents. A term sees one layer at a time: its codes, as
/// their decoder norm the norm of the whole row W_dec^l[i] (all layers it writes to), as its residual y' - y from layer l on.
/// Gradients, dA^l = sum_{m >= l} G^m W_dec^{l,m}^T with G = 2/B (y' - y), are exact as SparseAutoencoder's are.
///
/// CrossLayerTrainer trains it (training/cross_layer_trainer.hpp). A loop of one's own is this:
///
///   OptimizerState<float> state(Adam{});
///   Model::Parameters::visit([&](auto name, const auto& w) { state.add(name, w.rows(), w.cols()); }, model.parameters());
///   for (Index t = 1; t <= steps; ++t) {
///     auto gradient = model.gradient(x, y, objective, workspace);          // workspace.layers[l].step has dead and sparsity_scale
///     state.begin_step(t, rate);
///     Model::Parameters::visit([&](auto name, auto& w, auto& g) { state.update(state.slots(name), w, g, threads); },
///                              model.parameters(), gradient.parameters);
///     model.parameters().constrain();
///   }
///
/// Cost: L encoders [B x D] [D x F]; each active latent of layer l a row of (L - l) D. Memory L (L + 1) / 2 F D for the decoders.
/// Threads, exceptions: as SparseAutoencoder. Source: Ameisen et al. 2025, "Circuit tracing",
/// transformer-circuits.pub/2025/attribution-graphs/methods.html; llamascopium models/clt.py.
template <class Activation_, class Scalar_ = float>
class CrossLayerTranscoder {
  static_assert(std::is_floating_point_v<Scalar_>, "sae: Scalar is float or double");

 public:
  using Activation = Activation_;
  using Scalar = Scalar_;
  using Parameters = CrossLayerParameters<Activation, Scalar>;

  /// \param d_in  D of one layer; \param latents  F of one layer.
  /// \throws ValueError  a size is not positive, the activation does not fit, or it ranks by decoder norms that start at 0.
  CrossLayerTranscoder(Index layers, Index d_in, Index latents, Activation activation = {}, CrossLayerOptions options = {})
      : activation_(std::move(activation)) {
    check(layers, d_in, latents);
    require_positive("CrossLayerTranscoder: encoder_norm", options.encoder_norm);
    require_non_negative("CrossLayerTranscoder: decoder_norm", options.decoder_norm);
    if (activation_.needs_decoder_norms() && options.decoder_norm == 0)
      throw_value("CrossLayerTranscoder: decoder_norm = 0, and ", std::string_view(activation_.name),
                  " ranks by the decoder norm: no latent would ever be active");
    Random random(options.seed, detail::initialization_stream);
    parameters_.layers.resize(static_cast<std::size_t>(layers));
    for (Index l = 0; l < layers; ++l) {
      auto& layer = parameters_.layers[static_cast<std::size_t>(l)];
      if constexpr (requires { layer.activation.choose(activation_); }) layer.activation.choose(activation_);
      layer.resize({.d_in = d_in,
                    .latents = latents,
                    .d_out = (layers - l) * d_in,
                    .encoder_bias = detail::has_encoder_bias(activation_)});
      if (options.skip) layer.W_skip.resize(d_in, d_in);
      if (l > 0) layer.b_dec.resize(0, 0);
      detail::fill_directions(random, options.encoder_norm, layer.W_enc);
      if (options.decoder_norm > 0) detail::fill_directions(random, options.decoder_norm, layer.W_dec);
      layer.activation.initialize(activation_);
    }
  }

  /// A model that holds these parameters; nothing is drawn.
  /// \throws ShapeError  they are not those of a model with such an activation.
  CrossLayerTranscoder(Parameters parameters, Activation activation)
      : activation_(std::move(activation)), parameters_(std::move(parameters)) {
    if (parameters_.layers.empty()) throw_shape("CrossLayerTranscoder: the parameters have no layers");
    check(layers(), d_in(), latents());
    const Index D = d_in(), F = latents(), L = layers(), bias = detail::has_encoder_bias(activation_) ? F : 0;
    for (Index l = 0; l < L; ++l) {
      const auto& layer = parameters_.layers[static_cast<std::size_t>(l)];
      const auto is = [](const auto& tensor, Index rows, Index cols) { return tensor.rows() == rows && tensor.cols() == cols; };
      if (!is(layer.W_enc, F, D) || !is(layer.W_dec, F, (L - l) * D) || layer.b_enc.size() != bias ||
          layer.b_dec.size() != (l == 0 ? L * D : 0) || !is(layer.W_skip, has_skip() ? D : 0, has_skip() ? D : 0))
        throw_shape("CrossLayerTranscoder: the parameters of layer ", l, " are not those of one of ", L, " layers [", D, " -> ",
                    F, "] with ", std::string_view(activation_.name));
    }
  }

  Index layers() const { return static_cast<Index>(parameters_.layers.size()); }
  Index d_in() const { return parameters_.layers.front().width(); }       ///< D of one layer
  Index latents() const { return parameters_.layers.front().latents(); }  ///< F of one layer
  Index width() const { return layers() * d_in(); }                       ///< L D
  bool has_skip() const { return parameters_.layers.front().W_skip.size() > 0; }
  const Activation& activation() const { return activation_; }
  Parameters& parameters() { return parameters_; }
  const Parameters& parameters() const { return parameters_; }
  /// W_dec^{l,m} [F x D]: what the latents of layer l write to layer m >= l.
  auto decoder(Index l, Index m) const {
    if (l < 0 || l > m || m >= layers())
      throw_value("CrossLayerTranscoder: no decoder from layer ", l, " to layer ", m, " of ", layers());
    return parameters_.layers[static_cast<std::size_t>(l)].W_dec.map().middleCols((m - l) * d_in(), d_in());
  }

  /// Scratch of `gradient`, reused from call to call: a step for each layer.
  template <class Terms = Objective<>>
  struct Workspace {
    std::vector<sae::Workspace<Activation, Scalar, detail::LayerObjective<Terms, Scalar>>> layers;
    Tensor<Scalar> residual, part;
  };

  /// Codes of every layer from rows x [B x L D].
  std::vector<Codes<Scalar>> encode(const Batch<Scalar>& x, Threads& threads = Threads::shared()) const {
    check_width("the input", x);
    std::vector<Codes<Scalar>> out;
    for (Index l = 0; l < layers(); ++l) {
      const auto& layer = parameters_.layers[static_cast<std::size_t>(l)];
      Step<Activation, Scalar> step;
      step.encoder = &layer.encoder();
      step.encoder_bias = &layer.b_enc;
      step.decoder = &layer.W_dec;
      detail::load_input(layer, false, columns(x, l * d_in(), d_in()), step, threads);
      if (activation_.needs_decoder_norms()) detail::row_norms(layer.W_dec, step.decoder_norms, step.scratch, threads);
      detail::select(activation_, layer, step, threads);
      out.push_back(std::move(step.main.entries.codes));
    }
    return out;
  }
  /// Prediction y' [B x L D] from the codes of every layer.
  /// \throws ValueError  there is a skip, which needs the rows as well.
  Matrix<Scalar> decode(const std::vector<Codes<Scalar>>& codes, Threads& threads = Threads::shared()) const {
    if (has_skip())
      throw_value("codes alone do not tell what a cross-layer transcoder with a skip predicts; give the rows, too");
    return decoded(codes, {}, threads);
  }
  /// The same with the rows x [B x L D] that the codes are of (used by the skip alone).
  Matrix<Scalar> decode(const std::vector<Codes<Scalar>>& codes, const Batch<Scalar>& x,
                        Threads& threads = Threads::shared()) const {
    check_width("the input", x);
    if (!codes.empty() && codes[0].rows() != x.rows())
      throw_shape("the input has ", x.rows(), " rows, the codes ", codes[0].rows());
    return decoded(codes, RowsView<Scalar>(x), threads);
  }
  Matrix<Scalar> predict(const Batch<Scalar>& x, Threads& threads = Threads::shared()) const {
    return decode(encode(x, threads), x, threads);
  }

  /// Value of the objective (default: the squared error alone), mean over the rows. A term's value is the sum over the layers.
  template <class Terms = Objective<>>
    requires detail::is_objective<Terms> LossValues loss(const Batch<Scalar>& x, const Batch<Scalar>& y,
                                                         const Terms& objective = {}, Threads& threads = Threads::shared())
  const {
    Workspace<Terms> workspace;
    return run(x, y, objective, workspace, threads, nullptr);
  }
  struct Gradient {
    LossValues loss;
    Parameters parameters;  ///< dL/dp for every parameter p, in the same shapes
  };
  template <class Terms = Objective<>>
    requires detail::is_objective<Terms> Gradient gradient(const Batch<Scalar>& x, const Batch<Scalar>& y,
                                                           const Terms& objective = {}, Threads& threads = Threads::shared())
  const {
    Workspace<Terms> workspace;
    return gradient(x, y, objective, workspace, threads);
  }
  /// The same with a workspace of the caller's, whose steps carry each layer's dead latents and the sparsity scale; resize its
  /// `layers` to that end.
  template <class Terms>
  Gradient gradient(const Batch<Scalar>& x, const Batch<Scalar>& y, const Terms& objective, Workspace<Terms>& workspace,
                    Threads& threads = Threads::shared()) const {
    Gradient out;
    out.parameters.resize_like(parameters_);
    out.loss = run(x, y, objective, workspace, threads, &out.parameters);
    Tensor<Scalar>& b_dec = out.parameters.b_dec();
    for (std::size_t l = 0; l < parameters_.layers.size(); ++l) {
      auto& layer = out.parameters.layers[l];
      auto& step = workspace.layers[l].step;
      const Index width = step.output_width(), first = static_cast<Index>(l) * d_in();
      if (l > 0) layer.b_dec.resize(1, width);
      detail::materialise_gradient(detail::LayerView<Activation, Scalar>{parameters_.layers[l], activation_}, step, layer,
                                   threads);
      if (l == 0) continue;
      layer.b_dec.resize(0, 0);  // the error's share of b_dec is layer 0's; what terms of this layer add to it stands apart
      for (std::size_t j = 0; j < step.own_decoder_bias_gradient.size(); ++j)
        b_dec[first + static_cast<Index>(j)] += step.own_decoder_bias_gradient[j];
    }
    if (has_skip()) add_later_skips(x, workspace, out.parameters);
    return out;
  }
  /// The model was trained on (in[l] x^l, out[m] y^m), a scale for each layer; afterwards it reads x and predicts y: W_enc^l is
  /// (and a second encoder of the activation) multiplied by in[l], W_dec^{l,m} and b_dec^m are divided by out[m], W_skip^m is multiplied by
  /// in[m] / out[m]. Codes stay as they are, whatever the activation.
  /// \throws ValueError  a scale is not a positive finite number; `out` is not 1 and the activation ranks by the norms of decoder rows.
  void fold_scales(std::span<const double> in, std::span<const double> out) {
    const Index L = layers(), D = d_in();
    if (static_cast<Index>(in.size()) != L || static_cast<Index>(out.size()) != L)
      throw_shape("fold_scales: ", in.size(), " scales of inputs and ", out.size(), " of targets, the model has ", L,
                  " layers");
    for (const auto scales : {in, out})
      for (const double scale : scales)
        if (!(scale > 0 && std::isfinite(scale)))
          throw_value("fold_scales: the scale ", scale, " is not a positive finite number");
    if (activation_.needs_decoder_norms())
      for (const double scale : out)
        if (scale != 1)
          throw_value("fold_scales: ", std::string_view(activation_.name),
                      " ranks by the norms of decoder rows, which a scale for each layer would change");
    for (Index l = 0; l < L; ++l) {
      auto& layer = parameters_.layers[static_cast<std::size_t>(l)];
      const auto once = static_cast<Scalar>(in[static_cast<std::size_t>(l)]);
      kernels::scale(layer.W_enc.data(), once, layer.W_enc.size());
      if constexpr (requires { layer.activation.W_glu; })
        kernels::scale(layer.activation.W_glu.data(), once, layer.activation.W_glu.size());
      const auto undo = [&](Index m) { return static_cast<Scalar>(1 / out[static_cast<std::size_t>(m)]); };
      for (Index i = 0; i < layer.W_dec.rows(); ++i)
        for (Index m = l; m < L; ++m) kernels::scale(layer.W_dec.row(i) + (m - l) * D, undo(m), D);
      kernels::scale(parameters_.b_dec().data() + l * D, undo(l), D);
      kernels::scale(layer.W_skip.data(), once * undo(l), layer.W_skip.size());
    }
  }
  /// Shows the batch of a workspace to what an activation learns without a gradient (BatchTopK's threshold), after a step.
  template <class Terms>
  void observe(const Workspace<Terms>& workspace) {
    for (std::size_t l = 0; l < parameters_.layers.size(); ++l)
      workspace.layers[l].step.selectors.observe(activation_, parameters_.layers[l].activation);
  }

 private:
  static RowsView<Scalar> columns(const Batch<Scalar>& x, Index first, Index width) {
    RowsView<Scalar> out(x);
    out.data += first;
    out.cols = width;
    return out;
  }
  void check_width(const char* what, const Batch<Scalar>& x) const {
    if (x.cols() != width())
      throw_shape(what, " has ", x.cols(), " columns, the model needs ", layers(), " layers of ", d_in(), " side by side, ",
                  width());
  }
  void check(Index layers, Index d_in, Index latents) const {
    constexpr Index limit = Index{1} << 30;
    if (layers < 1 || d_in < 1 || latents < 1 || layers > limit || d_in > limit || latents > limit || layers * d_in > limit)
      throw_value("CrossLayerTranscoder: sizes layers = ", layers, ", d_in = ", d_in, ", latents = ", latents,
                  " are not all positive with layers d_in and latents at most 2^30");
    activation_.check(latents);
    if (detail::has_tied_weights(activation_))
      throw_value("CrossLayerTranscoder: ", std::string_view(activation_.name),
                  " ties encoder and decoder, whose widths differ");
  }
  Matrix<Scalar> decoded(const std::vector<Codes<Scalar>>& codes, const RowsView<Scalar>& x, Threads& threads) const {
    if (static_cast<Index>(codes.size()) != layers())
      throw_shape("there are codes of ", codes.size(), " layers, the model has ", layers());
    for (const auto& each : codes)
      if (each.latents() != latents() || each.rows() != codes[0].rows())
        throw_shape("codes of a layer are [", each.rows(), " x ", each.latents(), "], the model's are [", codes[0].rows(),
                    " x ", latents(), "]");
    Tensor<Scalar> out, part;
    ScratchPool<Scalar> scratch;
    decode_into(
        codes[0].rows(), [&](std::size_t l) -> const Codes<Scalar>& { return codes[l]; }, x, out, part, scratch, threads);
    return out.map();
  }
  /// out = b_dec + sum_l f^l W_dec^l, each from its first column on, + x W_skip^T. `codes_of(l)`; x: used by a skip alone.
  template <class CodesOf>
  void decode_into(Index rows, const CodesOf& codes_of, const RowsView<Scalar>& x, Tensor<Scalar>& out, Tensor<Scalar>& part,
                   ScratchPool<Scalar>& scratch, Threads& threads) const {
    detail::load_decoder_bias<Scalar>(parameters_.b_dec(), nullptr, {}, rows, out, threads);
    for (std::size_t l = 0; l < parameters_.layers.size(); ++l) {
      const auto& W_dec = parameters_.layers[l].W_dec;
      const auto& W_skip = parameters_.layers[l].W_skip;
      const Index first = out.cols() - W_dec.cols();
      if (W_skip.size() > 0)
        threads.for_blocks(rows, 256, [&](Index begin, Index end, Index) {
          kernels::add_product_nt(out.row(begin) + first, out.cols(), x.row(begin) + first, x.stride, W_skip.data(),
                                  W_skip.cols(), end - begin, W_skip.rows(), W_skip.cols());
        });
      part.resize(rows, W_dec.cols());
      detail::add_decoded(codes_of(l), W_dec, part, scratch, threads);
      for (Index b = 0; b < rows; ++b)
        kernels::add_scaled(out.row(b) + out.cols() - part.cols(), Scalar(1), part.row(b), part.cols());
    }
  }
  /// What terms of a layer, in whose reconstructions the skips of later layers are, too, add to the gradient of those.
  template <class Terms>
  void add_later_skips(const Batch<Scalar>& x, const Workspace<Terms>& workspace, Parameters& gradient) const {
    const Index D = d_in();
    for (Index l = 0; l < layers(); ++l)
      for (const Tensor<Scalar>* const further : workspace.layers[static_cast<std::size_t>(l)].step.skip_cotangents)
        for (Index m = l + 1; m < layers(); ++m) {
          const RowsView<Scalar> input = columns(x, m * D, D);
          kernels::add_product_tn(gradient.layers[static_cast<std::size_t>(m)].W_skip.data(), D, further->data() + (m - l) * D,
                                  further->cols(), input.data, input.stride, D, x.rows(), D);
        }
  }
  template <class Terms>
  LossValues run(const Batch<Scalar>& x, const Batch<Scalar>& y, const Terms& objective, Workspace<Terms>& workspace,
                 Threads& threads, Parameters* gradient) const {
    check_width("the input", x);
    check_width("the target", y);
    if (x.rows() != y.rows()) throw_shape("the input has ", x.rows(), " rows, the target ", y.rows());
    objective.check(d_in(), latents());
    objective.for_each([]<class Term>(const Term&) {
      if constexpr (detail::reconstructs<Term>)
        throw_value("CrossLayerTranscoder: ", Term::name, " is a reconstruction loss; this model has its own");
    });
    workspace.layers.resize(parameters_.layers.size());
    const detail::LayerObjective<Terms, Scalar> terms{objective};
    for (std::size_t l = 0; l < workspace.layers.size(); ++l) {
      const Index first = static_cast<Index>(l) * d_in();
      workspace.layers[l].step.wants_gradient = gradient != nullptr;
      detail::run_forward(detail::LayerView<Activation, Scalar>{parameters_.layers[l], activation_},
                          detail::StepRows<Scalar>{columns(x, first, d_in()), columns(y, first, width() - first)}, terms,
                          workspace.layers[l], threads);
    }
    decode_into(
        x.rows(), [&](std::size_t l) -> const Codes<Scalar>& { return workspace.layers[l].step.main.entries.codes; },
        RowsView<Scalar>(x), workspace.residual, workspace.part, workspace.layers[0].step.scratch, threads);
    for (Index b = 0; b < y.rows(); ++b) kernels::add_scaled(workspace.residual.row(b), Scalar(-1), y.row(b), y.cols());
    for (std::size_t l = 0; l < workspace.layers.size(); ++l) {
      detail::tell_residual(workspace.residual, static_cast<Index>(l) * d_in(), workspace.layers[l].step, threads);
      detail::run_backward<detail::LayerView<Activation, Scalar>, Scalar>({parameters_.layers[l], activation_}, terms,
                                                                          workspace.layers[l], threads,
                                                                          gradient == nullptr ? nullptr : &gradient->layers[l]);
    }

    LossValues out = workspace.layers[0].step.loss;
    for (std::size_t l = 1; l < workspace.layers.size(); ++l) {
      const LossValues& own = workspace.layers[l].step.loss;
      out.total += own.total;
      for (std::size_t t = 0; t < out.terms.size(); ++t) out.terms[t].second += own.terms[t].second;
    }
    return out;
  }

  Activation activation_;
  Parameters parameters_;
};

}  // namespace sae::inline SAE_ABI
