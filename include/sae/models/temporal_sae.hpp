#pragma once
#include <sae/kernels/largest.hpp>
#include <sae/models/forward.hpp>

#include <algorithm>
#include <cmath>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

namespace sae::inline SAE_ABI {

/// Settings of a TemporalSae that are no sizes.
struct TemporalOptions {
  Index heads = 8;                    ///< of the attention: F and the width of queries and keys are multiples of it
  Index k = 0;                        ///< novel codes: the k <= F largest of a row; 0: every positive one
  bool subtract_decoder_bias = true;  ///< b_dec is subtracted from what is encoded
  InputNormalisation input_normalisation = InputNormalisation::none;
  double input_scale = 1;  ///< rows times this are read, reconstructions divided by it; 1 with an InputNormalisation
};

namespace detail {
/// y = x weight^T + bias.
template <class Scalar>
struct LinearMap {
  Tensor<Scalar> weight;  ///< [out x in]
  Tensor<Scalar> bias;    ///< [1 x out]
};
}  // namespace detail

/// The tensors of a TemporalSae, E the width of queries and keys.
///
///   W_enc [F x D]    the transpose of the file's; empty: tied to W_dec
///   W_dec [F x D], b_dec [1 x D]
///   attn_layers.L.q_target, .k_ctx  weight [E x F], bias [1 x E]        .v_ctx, .c_proj  weight [F x F], bias [1 x F]
template <class Scalar_>
struct TemporalParameters {
  using Scalar = Scalar_;
  using Stored = Scalar;
  struct Attention {
    detail::LinearMap<Scalar> q_target, k_ctx, v_ctx, c_proj;
  };
  Tensor<Scalar> W_enc, W_dec, b_dec;
  std::vector<Attention> layers;

  /// Sets the shapes; all numbers become 0.
  void resize(Index d_in, Index latents, Index attention_layers, Index query_width, bool tied) {
    W_enc.resize(tied ? 0 : latents, tied ? 0 : d_in);
    W_dec.resize(latents, d_in);
    b_dec.resize(1, d_in);
    layers.resize(static_cast<std::size_t>(attention_layers));
    for (Attention& layer : layers) {
      for (auto* const map : {&layer.q_target, &layer.k_ctx}) {
        map->weight.resize(query_width, latents);
        map->bias.resize(1, query_width);
      }
      for (auto* const map : {&layer.v_ctx, &layer.c_proj}) {
        map->weight.resize(latents, latents);
        map->bias.resize(1, latents);
      }
    }
  }
  Index width() const { return W_dec.cols(); }         ///< D
  Index output_width() const { return W_dec.cols(); }  ///< D
  Index latents() const { return W_dec.rows(); }       ///< F
  bool tied() const { return W_enc.size() == 0; }
  const Tensor<Scalar>& encoder() const { return tied() ? W_dec : W_enc; }  ///< [F x D]

  /// Calls visitor(name, tensor of each set ...) for every tensor, as AutoencoderParameters::visit.
  template <class Visitor, class First, class... Sets>
  static void visit(Visitor&& visitor, First& first, Sets&... sets) {
    if (first.W_enc.size() > 0) visitor("W_enc", first.W_enc, sets.W_enc...);
    visitor("W_dec", first.W_dec, sets.W_dec...);
    visitor("b_dec", first.b_dec, sets.b_dec...);
    for (std::size_t l = 0; l < first.layers.size(); ++l) {
      const auto map = [&](const char* name, auto part) {
        const std::string whole = detail::concat("attn_layers.", l, ".", name);
        visitor(whole + ".weight", (first.layers[l].*part).weight, (sets.layers[l].*part).weight...);
        visitor(whole + ".bias", (first.layers[l].*part).bias, (sets.layers[l].*part).bias...);
      };
      map("q_target", &Attention::q_target);
      map("k_ctx", &Attention::k_ctx);
      map("v_ctx", &Attention::v_ctx);
      map("c_proj", &Attention::c_proj);
    }
  }
};

/// Scratch of a TemporalSae, reused from call to call, and what its last call found.
template <class Scalar>
struct TemporalWorkspace {
  Tensor<Scalar> residual;    ///< [T x D] what of the rows was not predicted
  Tensor<Scalar> prediction;  ///< [T x D] what was: the sum of s p
  Codes<Scalar> codes;        ///< [T x F] novel
  detail::RowScales<Scalar> scales;
  Tensor<Scalar> input, z, query, key, value, mixed, part;
  ScratchPool<Scalar> scratch;

  void keep_weights() {}  ///< Nothing follows from the weights that could be kept.
};

namespace detail {

/// y [rows x n] = x w^T + bias, w [n x d]; without a bias 0; with `positive` relu of it. Rows are contiguous.
template <class Scalar>
void apply_linear(const Scalar* x, Index rows, const Tensor<Scalar>& w, const Scalar* bias, Scalar* y, bool positive,
                  Threads& threads) {
  constexpr Index block_rows = 256, block_columns = 128;
  const Index n = w.rows(), d = w.cols(), row_blocks = (rows + block_rows - 1) / block_rows;
  threads.run(row_blocks * ((n + block_columns - 1) / block_columns), [&](Index block) {
    const Index b = block % row_blocks * block_rows, m = std::min(block_rows, rows - b);
    const Index j = block / row_blocks * block_columns, columns = std::min(block_columns, n - j);
    Scalar* const to = y + b * n + j;
    for (Index r = 0; r < m; ++r) {
      if (bias != nullptr)
        std::copy_n(bias + j, columns, to + r * n);
      else
        std::fill_n(to + r * n, columns, Scalar(0));
    }
    kernels::add_product_nt(to, n, x + b * d, d, w.row(j), d, m, columns, d);
    for (Index r = 0; positive && r < m; ++r)
      for (Index i = 0; i < columns; ++i) to[r * n + i] = std::max(to[r * n + i], Scalar(0));
  });
}

/// y [T x D] = a W, a [T x F], W [F x D].
template <class Scalar>
void decode_dense(const Tensor<Scalar>& a, const Tensor<Scalar>& w, Tensor<Scalar>& y, Threads& threads) {
  constexpr Index block_rows = 64, block_columns = 256;
  const Index rows = a.rows(), d = w.cols(), row_blocks = (rows + block_rows - 1) / block_rows;
  y.resize(rows, d);
  threads.run(row_blocks * ((d + block_columns - 1) / block_columns), [&](Index block) {
    const Index b = block % row_blocks * block_rows, j = block / row_blocks * block_columns;
    kernels::add_product_nn(y.row(b) + j, d, a.row(b), a.cols(), w.data() + j, d, std::min(block_rows, rows - b), w.rows(),
                            std::min(block_columns, d - j));
  });
}

/// scores[s] <- e^(scale scores[s]) / sum over s < n of it.
template <class Scalar>
void softmax(Scalar* scores, Index n, Scalar scale) {
  const Scalar largest = *std::max_element(scores, scores + n);
  double sum = 0;
  for (Index s = 0; s < n; ++s) {
    scores[s] = std::exp(scale * (scores[s] - largest));
    sum += static_cast<double>(scores[s]);
  }
  kernels::scale(scores, static_cast<Scalar>(1 / sum), n);
}

/// out[t] = sum over s <= t of softmax_s((q[t] . k[s]) / sqrt(E / H)) v[s], for each of H heads on its own E / H columns of q and k and its
/// own F / H of v. q, k [T x E], v, out [T x F].
template <class Scalar>
void attend(const Tensor<Scalar>& q, const Tensor<Scalar>& k, const Tensor<Scalar>& v, Index heads, Tensor<Scalar>& out,
            ScratchPool<Scalar>& scratch, Threads& threads) {
  constexpr Index block_rows = 64;
  const Index rows = q.rows(), e = q.cols() / heads, f = v.cols() / heads, row_blocks = (rows + block_rows - 1) / block_rows;
  const auto scale = static_cast<Scalar>(1 / std::sqrt(static_cast<double>(e)));
  out.resize(rows, v.cols());
  threads.run(row_blocks * heads, [&](Index block) {
    const Index head = block / row_blocks, begin = block % row_blocks * block_rows, end = std::min(begin + block_rows, rows);
    auto room = scratch.borrow((end - begin) * end);
    Scalar* const scores = room.data();
    std::fill_n(scores, (end - begin) * end, Scalar(0));
    kernels::add_product_nt(scores, end, q.row(begin) + head * e, q.cols(), k.data() + head * e, k.cols(), end - begin, end, e);
    for (Index t = begin; t < end; ++t) {
      Scalar* const row = scores + (t - begin) * end;
      softmax(row, t + 1, scale);
      std::fill(row + t + 1, row + end, Scalar(0));
    }
    kernels::add_product_nn(out.row(begin) + head * f, v.cols(), scores, end, v.data() + head * f, v.cols(), end - begin, end,
                            f);
  });
}

}  // namespace detail

/// A temporal SAE: tells what of a row follows from the rows before it and what is new. For inference.
///
/// **The rows x [T x D] of one call are one sequence, in order**: the activations of consecutive tokens of one text, from its first on (BOS,
/// where the publisher trained with it). Row t is predicted from the rows before it; rows of two texts in one call would be predicted from
/// each other.
///
///   r = c x - b_dec                                      c = input_scale
///   for each attention layer
///     z = relu(r W_enc^T / (4 D))                        [T x F]
///     h = z one row later, h[0] = 0                      the context
///     q = z Q^T + b_q,  k = h K^T + b_k,  v = h V^T + b_v        Q, K: q_target, k_ctx [E x F], V: v_ctx [F x F]
///     a[t] = sum over s <= t of softmax_s(q[t] . k[s] / sqrt(E / H)) v[s]      for each of H heads on its own columns
///     y = relu(a C^T + b_c),   p = y W_dec               C: c_proj [F x F]
///     s = (p . r) / (|p| + 1e-6)^2                       row by row: how far p explains r; may be negative
///     g += s y,   r -= s p
///   f = relu(r W_enc^T / (4 D)), of each row the k largest               the novel codes, sparse: what `encode` gives
///   x' = ((f + g) W_dec + b_dec) / c                     g: the predicted codes
///
/// Without subtract_decoder_bias b_dec is not subtracted, and where encoder and decoder are tied it is not added either. An
/// InputNormalisation is done to each row and undone as in a SparseAutoencoder.
///
/// Ties of the k largest go to the lower latent. A NaN in a row spoils the sequence. Results do not depend on the number of threads; const
/// members may be called from several at once.
/// Cost     a layer T (2 E F + 2 F^2 + 2 F D) multiplications and T^2 (E + F) of the attention. Memory: three numbers
///          for each row and latent, four with predictions.
/// Source   Lubana et al. 2025, "Priors in Time: Missing Inductive Biases for Language Model Interpretability", arXiv:2511.01836; SAELens 6.54
///          saes/temporal_sae.py, eslubana/temporalSAEs sae/saeTemporal.py.
template <class Scalar_ = float>
class TemporalSae {
  static_assert(std::is_floating_point_v<Scalar_>, "sae: Scalar is float or double");

 public:
  using Scalar = Scalar_;
  using Stored = Scalar;
  using Parameters = TemporalParameters<Scalar>;
  using Rows = Batch<Scalar>;
  template <class = void>
  using Workspace = TemporalWorkspace<Scalar>;

  /// \throws ShapeError  the tensors do not fit together.
  /// \throws ValueError  a setting is out of its range.
  TemporalSae(Parameters parameters, TemporalOptions options) : parameters_(std::move(parameters)), options_(options) {
    check();
  }

  Index d_in() const { return parameters_.width(); }
  Index latents() const { return parameters_.latents(); }
  const Parameters& parameters() const { return parameters_; }
  const TemporalOptions& options() const { return options_; }
  bool subtracts_decoder_bias() const { return options_.subtract_decoder_bias; }
  InputNormalisation input_normalisation() const { return options_.input_normalisation; }
  /// F / E: how much narrower queries and keys are than codes; 1 without attention layers.
  Index bottleneck() const { return parameters_.layers.empty() ? 1 : latents() / query_width(); }
  /// The rows of one call are one sequence, in order. Of other models each row stands alone.
  static constexpr bool reads_sequences() { return true; }

  ConstMatrixMap<Scalar> W_enc() const { return parameters_.encoder().map(); }  ///< [F x D]
  ConstMatrixMap<Scalar> W_dec() const { return parameters_.W_dec.map(); }      ///< [F x D]
  ConstMatrixMap<Scalar> b_dec() const { return parameters_.b_dec.map(); }      ///< [1 x D]

  /// The novel codes f [T x F] of a sequence.
  Codes<Scalar> encode(const Rows& x, Threads& threads = Threads::shared()) const {
    Workspace<> workspace;
    encode_into(x, workspace, threads);
    return std::move(workspace.codes);
  }
  /// The same in memory of the workspace, valid until its next use; the workspace then holds the prediction, too.
  const Codes<Scalar>& encode_into(const Rows& x, Workspace<>& workspace, Threads& threads = Threads::shared()) const {
    predict(x, workspace, nullptr, threads);
    return select(workspace, threads);
  }
  /// Both parts of a sequence's codes, [T x F] each.
  struct TwoCodes {
    Codes<Scalar> novel;      ///< f, as of `encode`
    Codes<Scalar> predicted;  ///< g: of every latent that the context predicts, many a row, of either sign
  };
  TwoCodes encode_with_predictions(const Rows& x, Threads& threads = Threads::shared()) const {
    Workspace<> workspace;
    Tensor<Scalar> predicted(x.rows(), latents());
    predict(x, workspace, &predicted, threads);
    select(workspace, threads);
    return {std::move(workspace.codes), Codes<Scalar>::from_dense(predicted)};
  }

  /// x' [T x D] of novel codes and the rows of their sequence, from which the predicted part follows. Codes may be others than those of
  /// the rows (edited ones).
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
    Workspace<> workspace;
    predict(x, workspace, nullptr, threads);
    finish(codes, workspace, out, scratch, threads);
  }

  /// x' [T x D] of a sequence.
  Matrix<Scalar> reconstruct(const Rows& x, Threads& threads = Threads::shared()) const {
    Workspace<> workspace;
    Tensor<Scalar> out;
    reconstruct_into(x, workspace, out, threads);
    return out.map();
  }
  /// The same, and the codes: `encode_into` and `decode_into` for the price of one. Returns the codes.
  const Codes<Scalar>& reconstruct_into(const Rows& x, Workspace<>& workspace, Tensor<Scalar>& out,
                                        Threads& threads = Threads::shared()) const {
    encode_into(x, workspace, threads);
    finish(workspace.codes, workspace, out, workspace.scratch, threads);
    return workspace.codes;
  }

  /// How long a step of length 1 along a decoder row is in x', for each row of x [T]: 1 / c, or the spread of the InputNormalisation.
  std::vector<Scalar> row_spreads(const Rows& x, Threads& threads = Threads::shared()) const {
    if (x.cols() != d_in()) throw_shape("rows have ", x.cols(), " columns, the model reads ", d_in());
    if (input_normalisation() == InputNormalisation::none)
      return std::vector<Scalar>(static_cast<std::size_t>(x.rows()), static_cast<Scalar>(1 / options_.input_scale));
    detail::RowScales<Scalar> scales;
    scales.measure(input_normalisation(), RowsView<Scalar>(x), threads);
    return {scales.spread.begin(), scales.spread.end()};
  }

 private:
  Index query_width() const { return parameters_.layers.front().q_target.weight.rows(); }

  void check() const {
    const auto& p = parameters_;
    const Index width = d_in(), latents = p.latents();
    if (width < 1 || latents < 1 || width > (Index{1} << 30) || latents > (Index{1} << 30))
      throw_value("TemporalSae: sizes d_in = ", width, ", latents = ", latents, " are not both in [1, 2^30]");
    const auto require = [](std::string_view name, const Tensor<Scalar>& tensor, Index rows, Index cols) {
      if (tensor.rows() != rows || tensor.cols() != cols)
        throw_shape("TemporalSae: ", name, " is [", tensor.rows(), " x ", tensor.cols(), "], it should be [", rows, " x ", cols,
                    "]");
    };
    if (!p.tied()) require("W_enc", p.W_enc, latents, width);
    require("b_dec", p.b_dec, 1, width);
    const Index heads = options_.heads;
    if (heads < 1) throw_value("TemporalSae: heads = ", heads, " is below 1");
    if (!p.layers.empty()) {
      const Index wide = query_width();
      if (wide < 1 || latents % wide != 0 || wide % heads != 0)
        throw_value("TemporalSae: queries of width ", wide, " do not divide ", latents, " latents, or are not divided by ",
                    heads, " heads");
      for (const auto& layer : p.layers) {
        const auto map = [&](std::string_view name, const detail::LinearMap<Scalar>& of, Index out) {
          require(name, of.weight, out, latents);
          require(name, of.bias, 1, out);
        };
        map("q_target", layer.q_target, wide);
        map("k_ctx", layer.k_ctx, wide);
        map("v_ctx", layer.v_ctx, latents);
        map("c_proj", layer.c_proj, latents);
      }
    }
    if (options_.k < 0 || options_.k > latents)
      throw_value("TemporalSae: k = ", options_.k, " is not in [0, ", latents, "] (the number of latents)");
    require_positive("TemporalSae: input_scale", options_.input_scale);
    if (options_.input_scale != 1 && input_normalisation() != InputNormalisation::none)
      throw_value("TemporalSae: input_scale = ", options_.input_scale, " beside an input normalisation, which would undo it");
    if (input_normalisation() == InputNormalisation::layer_norm && width < 2)
      throw_value("TemporalSae: d_in = ", width, " has no standard deviation; layer_norm needs at least 2");
  }

  /// w.residual <- r, w.scales.
  void load(const Rows& x, Workspace<>& w, Threads& threads) const {
    const Index width = d_in();
    if (x.cols() != width) throw_shape("rows have ", x.cols(), " columns, the model reads ", width);
    const bool normalised = input_normalisation() != InputNormalisation::none;
    if (normalised) w.scales.measure(input_normalisation(), RowsView<Scalar>(x), threads);
    const auto scale = static_cast<Scalar>(options_.input_scale);
    w.residual.resize(x.rows(), width);
    for (Index b = 0; b < x.rows(); ++b)
      for (Index j = 0; j < width; ++j) {
        const Scalar u = normalised ? w.scales.normalised(b, x.row(b)[j]) : x.row(b)[j] * scale;
        w.residual.row(b)[j] = subtracts_decoder_bias() ? u - parameters_.b_dec[j] : u;
      }
  }
  /// w.z <- relu(r W_enc^T / (4 D)).
  void encode_residual(Workspace<>& w, Threads& threads) const {
    const Index rows = w.residual.rows();
    w.input = w.residual;
    kernels::scale(w.input.data(), Scalar(1) / static_cast<Scalar>(4 * d_in()), w.input.size());
    w.z.resize(rows, latents());
    detail::apply_linear(w.input.data(), rows, parameters_.encoder(), static_cast<const Scalar*>(nullptr), w.z.data(), true,
                         threads);
  }
  /// w.residual and w.prediction <- what is left of the rows and what was predicted of them. \param codes  [T x F] where g is added, or null
  void predict(const Rows& x, Workspace<>& w, Tensor<Scalar>* codes, Threads& threads) const {
    load(x, w, threads);
    const Index rows = x.rows(), width = d_in(), latents = this->latents();
    w.prediction.resize(rows, width);
    if (rows == 0) return;
    for (const auto& layer : parameters_.layers) {
      encode_residual(w, threads);
      const auto of_context = [&](const detail::LinearMap<Scalar>& map, Tensor<Scalar>& to) {  // h[0] = 0, h[t] = z[t - 1]
        to.resize(rows, map.weight.rows());
        std::copy_n(map.bias.data(), map.bias.size(), to.data());
        detail::apply_linear(w.z.data(), rows - 1, map.weight, map.bias.data(), to.row(1), false, threads);
      };
      w.query.resize(rows, query_width());
      detail::apply_linear(w.z.data(), rows, layer.q_target.weight, layer.q_target.bias.data(), w.query.data(), false, threads);
      of_context(layer.k_ctx, w.key);
      of_context(layer.v_ctx, w.value);
      detail::attend(w.query, w.key, w.value, options_.heads, w.mixed, w.scratch, threads);
      Tensor<Scalar>& y = w.value;  // read no more
      detail::apply_linear(w.mixed.data(), rows, layer.c_proj.weight, layer.c_proj.bias.data(), y.data(), true, threads);
      detail::decode_dense(y, parameters_.W_dec, w.part, threads);
      for (Index b = 0; b < rows; ++b) {
        const Scalar* const p = w.part.row(b);
        const Scalar norm = std::sqrt(kernels::squared_norm(p, width)) + Scalar(1e-6);
        const Scalar s = kernels::dot(p, w.residual.row(b), width) / (norm * norm);
        kernels::add_scaled(w.prediction.row(b), s, p, width);
        kernels::add_scaled(w.residual.row(b), -s, p, width);
        if (codes != nullptr) kernels::add_scaled(codes->row(b), s, y.row(b), latents);
      }
    }
  }
  /// w.codes <- f of w.residual.
  const Codes<Scalar>& select(Workspace<>& w, Threads& threads) const {
    encode_residual(w, threads);
    w.codes.reset(latents());
    kernels::LargestRoom<Scalar> room;
    for (Index b = 0; b < w.z.rows(); ++b) {
      const std::span<const Scalar> z(w.z.row(b), static_cast<std::size_t>(latents()));
      kernels::visit_largest(z, options_.k > 0 ? options_.k : latents(), Scalar(0), room,
                             [&](Index i) { w.codes.push(i, z[static_cast<std::size_t>(i)]); });
      w.codes.finish_row();
    }
    return w.codes;
  }
  /// out <- x' of novel codes and the prediction of the workspace.
  void finish(const Codes<Scalar>& codes, const Workspace<>& w, Tensor<Scalar>& out, ScratchPool<Scalar>& scratch,
              Threads& threads) const {
    out = w.prediction;
    if (subtracts_decoder_bias() || !parameters_.tied())
      for (Index b = 0; b < out.rows(); ++b) kernels::add_scaled(out.row(b), Scalar(1), parameters_.b_dec.data(), d_in());
    detail::add_decoded(codes, parameters_.W_dec, out, scratch, threads);
    if (input_normalisation() != InputNormalisation::none)
      w.scales.undo(out, threads);
    else if (options_.input_scale != 1)
      kernels::scale(out.data(), static_cast<Scalar>(1 / options_.input_scale), out.size());
  }

  Parameters parameters_;
  TemporalOptions options_;
};

}  // namespace sae::inline SAE_ABI
