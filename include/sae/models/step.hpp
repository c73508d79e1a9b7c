#pragma once
#include <sae/activations/selection.hpp>
#include <sae/core/pool.hpp>
#include <sae/core/threads.hpp>
#include <sae/kernels/half_kernels.hpp>
#include <sae/kernels/vector.hpp>
#include <sae/models/input_normalisation.hpp>
#include <sae/models/matches.hpp>
#include <sae/models/screen.hpp>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

namespace sae::inline SAE_ABI {

/// Rows of a batch that somebody else holds.
template <class Scalar>
struct RowsView {
  const Scalar* data = nullptr;
  Index rows = 0, cols = 0, stride = 0;

  RowsView() = default;
  template <int D>
  RowsView(const Batch<Scalar, D>& x) : data(x.row(0)), rows(x.rows()), cols(x.cols()), stride(x.stride()) {}  // NOLINT
  RowsView(const Tensor<Scalar>& x) : data(x.data()), rows(x.rows()), cols(x.cols()), stride(x.cols()) {}      // NOLINT
  const Scalar* row(Index b) const { return data + b * stride; }
};

namespace detail {
/// Weights to compute with: themselves, or, where they are stored in 16 or 8 bits, widened into room that is borrowed for it.
template <class Scalar, class Stored>
class WideRows {
  struct Nothing {
    Nothing(ScratchPool<Scalar>&, Index) {}
    Scalar* at(Index) { return nullptr; }
  };
  struct Room {
    Room(ScratchPool<Scalar>& pool, Index numbers) : loan(pool.borrow(numbers)) {}
    Scalar* at(Index number) { return loan.data() + number; }
    typename Pool<Buffer<Scalar>>::Loan loan;
  };

 public:
  WideRows(ScratchPool<Scalar>& pool, Index numbers) : room_(pool, numbers) {}
  /// n numbers; those that were widened are good until others come to the same place of the room.
  template <class Rows>
  const Scalar* operator()(const Rows& x, Index n, Index place = 0) {
    return kernels::wide(x, n, room_.at(place));
  }
  /// out[t] += a . (row rows[t] of w); takes room for kernels::detail::rows_at_once rows.
  void add_dots(const Scalar* a, const Tensor<Stored>& w, std::span<const int> rows, Scalar* out) {
    kernels::add_dots(a, w.data(), w.cols(), rows, out, room_.at(0));
  }
  /// Calls body(row i of w), which may change it; where it is stored in 16 bits, what it is then is rounded stochastically, by its place
  /// in w, and what body left alone stays to the last bit.
  template <class Body>
  void change(Tensor<Stored>& w, Index i, [[maybe_unused]] std::uint32_t key, const Body& body) {
    if constexpr (is_half<Stored>) {
      Scalar* const row = room_.at(0);
      kernels::widen(w.row(i), row, w.cols());
      body(row);
      kernels::narrow(row, w.row(i), w.cols(), {.key = key, .position = static_cast<std::uint32_t>(i * w.cols())});
    } else {
      body(w.row(i));
    }
  }

 private:
  std::conditional_t<is_narrow<Stored>, Room, Nothing> room_;
};
}  // namespace detail

/// The entries of a batch regrouped by latent: latent i owns [offsets[i], offsets[i+1]), rows ascending.
struct ByLatent {
  Buffer<int> offsets;  ///< [F + 1]
  Buffer<int> entries;  ///< position in the codes
  Buffer<int> rows;     ///< its row

  template <class Scalar>
  void build(const Codes<Scalar>& codes) {
    const auto latents = codes.indices();
    offsets.assign(static_cast<std::size_t>(codes.latents()) + 2, 0);
    for (const int i : latents) ++offsets[static_cast<std::size_t>(i) + 2];
    for (std::size_t i = 2; i < offsets.size(); ++i) offsets[i] += offsets[i - 1];
    entries.resize(latents.size());
    rows.resize(latents.size());
    for (Index b = 0; b < codes.rows(); ++b)
      for (Index e = codes.begin(b); e < codes.end(b); ++e) {
        const auto to = static_cast<std::size_t>(offsets[static_cast<std::size_t>(codes.latent(e)) + 1]++);
        entries[to] = static_cast<int>(e);
        rows[to] = static_cast<int>(b);
      }
    offsets.pop_back();
  }
};

/// Entries (row b, latent i) that act through the two directions of their latents. Each adds
///   f cotangent[b] to dL/dW_dec[i],    dz x[b] to dL/dW_enc[i],    dz to dL/db_enc[i].
/// The main codes are one path; AuxK's dead latents, a band of a straight-through estimator or a second reconstruction others.
/// Where the entries of one row feed different reconstructions (Matryoshka's prefixes) or read different residuals (a pursuit),
/// their latents or they themselves name the row of `cotangent` or `input`.
template <class Scalar>
struct Path {
  Entries<Scalar> entries;
  /// Ascending: the entries name positions in this list, whose length is the F of their codes. Empty: they name latents themselves. A
  /// path of few latents, of which a row has many, is then dense; it has no levels.
  std::vector<Index> own_latents;
  /// In the place of entries where many have one dz: bit n of row b, whether the n-th latent has it there; dz is then that of each latent.
  /// No cotangent, the step's input. [B x words_of_row()]
  Buffer<std::uint64_t> row_bits;
  Buffer<Scalar> df, dz;  ///< dL/df, dL/dz of each entry
  const Tensor<Scalar>* cotangent =
      nullptr;                 ///< dL/d(reconstruction that these codes feed) [n x D_out]; null: no decoder gradient
  Buffer<int> cotangent_rows;  ///< row of `cotangent` of each entry; empty: as level_ends say
  /// Ends of ranges of latents, ascending, the last one F: range m reads the rows m B + b of `cotangent`. Empty: row b.
  std::vector<Index> level_ends;
  const Tensor<Scalar>* input = nullptr;    ///< what the entries were read from [n x D_in]; null: the step's input
  Buffer<int> input_rows;                   ///< row of `input` of each entry; empty: its row b
  Tensor<Scalar> own_cotangent, own_input;  ///< storage for those that belong to this path
  ByLatent by_latent;
  /// In the place of `by_latent` where nearly every latent is active in every row: the first entry of row b at or after latent 64 k, and its
  /// end. [B x (blocks + 1)]
  Buffer<int> block_entries;
  /// The sums of `own_latents`, [n x D_in], [n x D_out], [1 x n], where they are taken at once.
  Tensor<Scalar> own_encoder_gradient, own_decoder_gradient, own_bias_gradient;
  bool is_summed = false;

  Index words_of_row() const { return (entries.codes.latents() + 63) / 64; }
  /// The names that the entries have for the latents first .. last - 1.
  std::pair<Index, Index> names(Index first, Index last) const {
    if (own_latents.empty()) return {first, last};
    const auto at = [&](Index latent) {
      return static_cast<Index>(std::lower_bound(own_latents.begin(), own_latents.end(), latent) - own_latents.begin());
    };
    return {at(first), at(last)};
  }
  Index latent(Index name) const { return own_latents.empty() ? name : own_latents[static_cast<std::size_t>(name)]; }
  /// Level of a latent and the end of its range.
  std::pair<Index, Index> level(Index latent, Index latents) const {
    if (level_ends.empty()) return {0, latents};
    const auto end = std::upper_bound(level_ends.begin(), level_ends.end(), latent);
    return {static_cast<Index>(end - level_ends.begin()), *end};
  }
  /// Calls f(level, i, n) for the pieces first + i .. first + i + n - 1 of `count` latents that one level has each.
  template <class F>
  void each_level(Index first, Index count, Index latents, const F& f) const {
    for (Index i = 0, n = 0; i < count; i += n) {
      const auto [m, end] = level(first + i, latents);
      n = std::min(end - first, count) - i;
      f(m, i, n);
    }
  }
  Index input_row(Index entry, Index row) const {
    return input_rows.empty() ? row : input_rows[static_cast<std::size_t>(entry)];
  }
};

/// Value of a loss and its parts, in the units of the rows that were given.
struct LossValues {
  double total = 0;
  double reconstruction = 0;                               ///< mean over rows of |x' - x|^2 (sum over D)
  std::vector<std::pair<std::string_view, double>> terms;  ///< each term of the objective with its coefficient, by name
};

/// Everything that one batch leaves behind on its way through a model: what the terms of the loss read and write, and what the
/// gradient of each latent is made of. Reused from step to step, so that its arrays are allocated in the first ones only.
/// Memory follows the active entries (about 50 bytes each with a gradient), not B x F: of a batch in which a ReLU keeps half of
/// everything that is more than a dense matrix would take, so begin such trainings with smaller batches.
template <class Activation, class Scalar_, class Stored_ = Scalar_>
struct Step {
  using Scalar = Scalar_;
  using Stored = Stored_;  ///< what weights are stored as: to compute with them, `WideRows`

  // Given by the caller.
  double sparsity_scale = 1;                     ///< s(t) in [0, 1]: sparsity warm-up, multiplies the sparsity terms
  Index number = 0;                              ///< t: steps of the training before this one
  std::span<const std::uint8_t> dead;            ///< [F] 1 where a latent counts as dead; empty: none
  const Tensor<Stored>* encoder = nullptr;       ///< W_enc [F x D_in]; W_dec where the two are tied
  const Tensor<Scalar>* encoder_bias = nullptr;  ///< b_enc [1 x F]; empty where the activation adds biases of its own
  const Tensor<Stored>* decoder = nullptr;       ///< W_dec [F x D_out]
  const Tensor<Scalar>* decoder_bias = nullptr;  ///< what x' starts from [1 x D_out]: b_dec, or `no_bias`
  const Tensor<Scalar>* skip = nullptr;          ///< W_skip [D_out x D_in], or of fewer rows; empty: none
  std::span<const Index> sites;                  ///< widths of the sites of a decoder row, see `decoder_norms`; empty: one
  RowsView<Scalar> raw;                          ///< the rows x as they were given [B x D_in]
  RowsView<Scalar> target;             ///< what x' is compared with [B x D_out]; x itself (as normalised) in an autoencoder
  RowsView<Scalar> measured_target;    ///< the target in the space in which errors count (LossSpace)
  std::span<const Scalar> row_weight;  ///< weight of each row's error in the loss [B]; empty: 1
  /// The activation's own tensors, and dL/d of them, to which a term may add where `wants_gradient`.
  const typename Activation::template Parameters<Scalar>* activation = nullptr;
  typename Activation::template Parameters<Scalar>* activation_gradient = nullptr;
  bool wants_gradient = false;
  LossSpace loss_space = LossSpace::raw;  ///< of a model that normalises its rows
  bool subtracts_decoder_bias = false;    ///< input is x - b_dec

  // Forward.
  Tensor<Scalar> input;          ///< what the encoder reads [B x D]: x as normalised, minus b_dec where the model subtracts it
  Tensor<Scalar> decoder_norms;  ///< n_i = |W_dec[i]|, of several sites the sum of theirs [1 x F], where anything asks
  Path<Scalar> main;             ///< the codes
  Path<Scalar> band;             ///< the band, see Backward
  Tensor<Scalar> residual;       ///< x' - target [B x D_out]
  Buffer<double> row_loss;       ///< |x'_b - target_b|^2 [B]
  LossValues loss;
  /// What a pursuit chose, for each row in its order.
  std::vector<std::vector<Choice<Scalar>>> choices;
  std::vector<std::pair<int, std::size_t>> choice_order;  ///< scratch: those of one row by latent
  detail::Matches<Scalar> matches;                        ///< how a pursuit finds them
  std::vector<kernels::GrowingFit> fits;                  ///< of each row, where all values are fitted together
  std::vector<int> latent_places;                         ///< scratch [F]

  // Backward: filled by the reconstruction loss and the terms.
  Tensor<Scalar> cotangent;                  ///< dL/dx' [B x D_out]: of b_dec, and of every code but for `level_cotangent`
  Tensor<Scalar> level_cotangent;            ///< dL/d(prefix reconstructions) [n B x D_out] where the loss has several
  bool has_levels = false;                   ///< it has, in this step
  Buffer<Scalar> dgate;                      ///< dL/dH [B], or empty, see Backward
  Buffer<Scalar> decoder_norm_gradient;      ///< dL/dn_i [F], or empty
  Buffer<Scalar> own_decoder_bias_gradient;  ///< dL/db_dec [D_out] beyond the sum of `cotangent`, or empty
  /// Further dL/d(reconstruction) [B x D_out] that W_skip learns from beside `cotangent`; they live as long as the step's paths.
  std::vector<const Tensor<Scalar>*> skip_cotangents;
  std::vector<std::unique_ptr<Path<Scalar>>> extra;  ///< paths of terms; the first `extra_used` count
  std::size_t extra_used = 0;

  /// Of a model that normalises its rows: what that does to each, the target as `loss_space` has it, and the weights that go with it.
  detail::RowScales<Scalar> row_scales;
  Tensor<Scalar> normalised_target;
  Buffer<Scalar> normalised_weight;

  // Scratch.
  Tensor<Scalar> no_bias;  ///< zeros [1 x D_out] where b_dec is not added to x'
  SelectorBlocks<Activation, Scalar> selectors;
  std::vector<Entries<Scalar>> block_active, block_band;
  Tensor<Scalar> read_sums, column_sums, transposed;           ///< of the gradients that all latents share
  std::vector<double> row_factors, level_loss, level_weights;  ///< of a reconstruction loss [B], [B], [levels]
  std::vector<Index> rank_ends;                                ///< of HierarchicalTopK [levels]
  std::vector<std::pair<double, Index>> ranked;                ///< its entries, those of a row by -key
  ScratchPool<Scalar> scratch;
  detail::ScreenWeights screen;  ///< of the encoder, where selecting by a screen pays
  Pool<detail::Screen> screens;
  std::vector<float> screen_levels;  ///< of rows, see Screen::level
  float screen_level = 0;            ///< below which few of them were
  Index screen_pause = 0,
        screen_failures = 0;  ///< batches until a screen that pruned too little is tried again; how often it did
  bool weights_stay = false;  ///< see Workspace::keep_weights

  Index rows() const { return input.rows(); }
  Index input_width() const { return input.cols(); }
  Index output_width() const { return decoder->cols(); }
  Index latents() const { return main.entries.codes.latents(); }

  /// A fresh path for a term; storage of earlier steps is reused.
  Path<Scalar>& add_path() {
    if (extra_used == extra.size()) extra.push_back(std::make_unique<Path<Scalar>>());
    Path<Scalar>& path = *extra[extra_used++];
    path.cotangent = nullptr;
    path.input = nullptr;
    path.own_latents.clear();
    path.row_bits.clear();
    path.cotangent_rows.clear();
    path.level_ends.clear();
    path.input_rows.clear();
    return path;
  }
  /// dL/dH [B], zero before the first term writes it.
  std::span<Scalar> gate_gradient() {
    if (dgate.empty()) dgate.assign(static_cast<std::size_t>(rows()), Scalar(0));
    return dgate;
  }
  /// What a term adds to dL/db_dec [D_out] that does not come through `cotangent`; zero before the first term writes it.
  std::span<Scalar> decoder_bias_gradient() {
    if (own_decoder_bias_gradient.empty())
      own_decoder_bias_gradient.assign(static_cast<std::size_t>(output_width()), Scalar(0));
    return own_decoder_bias_gradient;
  }
  /// dL/dx' += factor g, g [B x D_out]: in every prefix, too, as x' is the last of them.
  void add_to_cotangent(Scalar factor, const Tensor<Scalar>& g) {
    kernels::add_scaled(cotangent.data(), factor, g.data(), g.size());
    if (!has_levels) return;
    for (Index first = 0; first < level_cotangent.rows(); first += g.rows())
      kernels::add_scaled(level_cotangent.row(first), factor, g.data(), g.size());
  }
  /// dL/dn_i of `decoder_norms` [F], zero before the first term writes it.
  std::span<Scalar> norm_gradient() {
    if (decoder_norm_gradient.empty()) decoder_norm_gradient.assign(static_cast<std::size_t>(latents()), Scalar(0));
    return decoder_norm_gradient;
  }
};

}  // namespace sae::inline SAE_ABI
