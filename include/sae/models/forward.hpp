#pragma once
#include <sae/core/threads.hpp>
#include <sae/kernels/product.hpp>
#include <sae/kernels/sparse_product.hpp>
#include <sae/kernels/vector.hpp>
#include <sae/models/step.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <optional>
#include <span>
#include <type_traits>

// The way forward, in blocks of rows whose size depends on the batch alone. Encoder and decoder are given as F rows of length D.
namespace sae::inline SAE_ABI::detail {

// Pre-activations are shown in tiles of this many latents: a whole number of the tiles of every route's product.
inline constexpr Index tile_latents = 384;
// Rows of narrow weights that are widened at a time for a product: another whole number, small enough for a cache.
inline constexpr Index wide_latents = 48;
// Above this density a dense product beats what goes entry by entry: sums of rows one at a time (measured with double and without SIMD
// flags at 0.2 to 0.4), inner products of one row with some (float32: 0.4), sums of rows in tiles (0.65 to 0.8). All of float32 give the
// same bytes.
inline constexpr Index dense_entries_per_1000 = 200, dense_dots_per_1000 = 350, dense_tiled_per_1000 = 600;

/// Rows of a tile: enough to repay packing the weights, several blocks a batch for the threads to share.
inline Index encode_block_rows(Index rows) { return std::clamp<Index>((rows + 3) / 4, 32, 256); }

inline bool is_dense(Index entries, Index cells, Index per_1000 = dense_entries_per_1000) {
  return entries * 1000 > cells * per_1000;
}
/// How sums of rows of `Stored` that are added to rows of `Scalar` go.
enum class SumsBy { entries, tiles, products };
template <class Scalar, class Stored = Scalar>
SumsBy sums_by(Index entries, Index cells) {
  constexpr bool in_tiles = std::is_same_v<Scalar, float> && std::is_same_v<Stored, float>;
  if (is_dense(entries, cells, in_tiles ? dense_tiled_per_1000 : dense_entries_per_1000)) return SumsBy::products;
  return in_tiles && kernels::is_crowded(entries, cells) ? SumsBy::tiles : SumsBy::entries;
}
/// Rows of a block of what goes by entries: where they are many, a tile of them is a product.
inline constexpr Index dense_block_rows = 256, sparse_block_rows = 32;

/// Calls take(row, first latent, z) for every tile of pre-activations z = x w^T + b of every row of a block; the latents of a row ascend.
/// x [rows x width], w [latents x width], b [latents] or null: 0. With a gate z = (x w^T + b) sigmoid(x w_gate^T + b_gate).
/// \tparam Rows  what points to rows of weights: `const Scalar*`, or to narrow ones
template <class Scalar, class Rows, class Take>
void for_each_pre_activation_of_block(const Scalar* x, Index rows, Index width, Rows w, const Scalar* b, Index latents,
                                      ScratchPool<Scalar>& scratch, const EncoderGate<Scalar>& gate, const Take& take) {
  const Index cells = rows * tile_latents;
  auto loan = scratch.borrow((gate.weights != nullptr ? 2 : 1) * cells + kernels::ProductRows<Scalar>::room(rows, width));
  Scalar *const z = loan.data(), *const g = z + cells;
  const kernels::ProductRows<Scalar> ready(x, width, rows, width, gate.weights != nullptr ? g + cells : g);
  auto room = scratch.borrow(kernels::is_wide<Rows, Scalar> ? 0 : wide_latents * width);
  const auto product = [&](Scalar* to, const auto& weights, const Scalar* bias, Index first, Index n) {
    for (Index r = 0; r < rows; ++r) {
      if (bias != nullptr) {
        std::copy_n(bias + first, n, to + r * tile_latents);
      } else {
        std::fill_n(to + r * tile_latents, n, Scalar(0));
      }
    }
    if constexpr (kernels::is_wide<decltype(weights), Scalar>) {
      ready.add_product_nt(to, tile_latents, weights + first * width, width, n);
    } else {
      for (Index at = 0; at < n; at += wide_latents) {
        const Index some = std::min(wide_latents, n - at);
        ready.add_product_nt(to + at, tile_latents, kernels::wide(weights + (first + at) * width, some * width, room.data()),
                             width, some);
      }
    }
  };
  for (Index first = 0; first < latents; first += tile_latents) {
    const Index n = std::min(tile_latents, latents - first);
    product(z, w, b, first, n);
    if (gate.weights != nullptr) {
      product(g, gate.weights, gate.bias, first, n);
      for (Index r = 0; r < rows; ++r) kernels::gate(z + r * tile_latents, g + r * tile_latents, n);
    }
    for (Index r = 0; r < rows; ++r) take(r, first, std::span<const Scalar>(z + r * tile_latents, static_cast<std::size_t>(n)));
  }
}
// A single block is worth sharing among threads from so many multiplications on: what they take is some times what waking a thread
// does (5 to 10 us).
inline constexpr Index shared_block_cells = 1 << 20;

/// The same of all blocks, as take(block, row in block, first latent, z): blocks run in parallel, the calls of one block in order.
template <class Scalar, class Rows, class Take>
void for_each_pre_activation(const Scalar* x, Index rows, Index width, Rows w, const Scalar* b, Index latents,
                             ScratchPool<Scalar>& scratch, Threads& threads, const Take& take,
                             const EncoderGate<Scalar>& gate = {}) {
  const Index block_rows = encode_block_rows(rows);
  if (rows <= block_rows && threads.count() > 1 && rows * width * latents >= shared_block_cells) {
    // A few rows are one block: the threads share its latents, then all z [rows x latents] are shown in order.
    auto loan = scratch.borrow(rows * latents);
    Scalar* const all = loan.data();
    const Index tiles = (latents + tile_latents - 1) / tile_latents;
    const Index piece = (tiles + threads.count() - 1) / threads.count() * tile_latents;
    threads.for_blocks(latents, piece, [&](Index begin, Index end, Index) {
      const auto at = [&](const Scalar* p, Index stride) { return p == nullptr ? nullptr : p + begin * stride; };
      for_each_pre_activation_of_block(x, rows, width, w + begin * width, at(b, 1), end - begin, scratch,
                                       EncoderGate<Scalar>{at(gate.weights, width), at(gate.bias, 1)},
                                       [&](Index row, Index first, std::span<const Scalar> z) {
                                         std::copy(z.begin(), z.end(), all + row * latents + begin + first);
                                       });
    });
    for (Index first = 0; first < latents; first += tile_latents)
      for (Index r = 0; r < rows; ++r)
        take(Index{0}, r, first,
             std::span<const Scalar>(all + r * latents + first,
                                     static_cast<std::size_t>(std::min(tile_latents, latents - first))));
    return;
  }
  threads.for_blocks(rows, block_rows, [&](Index begin, Index end, Index block) {
    for_each_pre_activation_of_block(x + begin * width, end - begin, width, w, b, latents, scratch, gate,
                                     [&](Index row, Index first, std::span<const Scalar> z) { take(block, row, first, z); });
  });
}

/// out [n x width]: the rows of w that are named.
template <class Scalar, class Stored>
void gather_rows(const Tensor<Stored>& w, std::span<const Index> rows, Tensor<Scalar>& out, Threads& threads) {
  const auto count = static_cast<Index>(rows.size());
  if (out.rows() != count || out.cols() != w.cols()) out.resize(count, w.cols());
  threads.for_blocks(count, 256, [&](Index begin, Index end, Index) {
    for (Index n = begin; n < end; ++n) {
      const auto row = w.row(rows[static_cast<std::size_t>(n)]);
      if constexpr (is_narrow<Stored>) {
        kernels::widen(row, out.row(n), w.cols());
      } else {
        std::copy_n(row, w.cols(), out.row(n));
      }
    }
  });
}

/// |row| of every row of w [latents x width].
template <class Scalar, class Stored>
void row_norms(const Tensor<Stored>& w, Tensor<Scalar>& norms, ScratchPool<Scalar>& scratch, Threads& threads) {
  if (norms.cols() != w.rows()) norms.resize(1, w.rows());
  threads.for_blocks(w.rows(), 256, [&](Index begin, Index end, Index) {
    WideRows<Scalar, Stored> wide(scratch, w.cols());
    for (Index i = begin; i < end; ++i) norms[i] = std::sqrt(kernels::squared_norm(wide(w.row(i), w.cols()), w.cols()));
  });
}

/// n_i of every row of w [latents x sum of the sites]: its norm, or the sum over the sites s of the norms |w_i^s| of its pieces.
template <class Scalar, class Stored>
void decoder_norms(const Tensor<Stored>& w, std::span<const Index> sites, Tensor<Scalar>& norms, ScratchPool<Scalar>& scratch,
                   Threads& threads) {
  if (sites.empty()) return row_norms(w, norms, scratch, threads);
  if (norms.cols() != w.rows()) norms.resize(1, w.rows());
  threads.for_blocks(w.rows(), 256, [&](Index begin, Index end, Index) {
    WideRows<Scalar, Stored> wide(scratch, w.cols());
    for (Index i = begin; i < end; ++i) {
      const Scalar* const row = wide(w.row(i), w.cols());
      norms[i] = Scalar(0);
      Index first = 0;
      for (const Index width : sites) {
        norms[i] += std::sqrt(kernels::squared_norm(row + first, width));
        first += width;
      }
    }
  });
}

/// g += factor dn_i/dw_i = factor (w_i^s / |w_i^s| at each site s); 0 at a site where w_i is 0.
template <class Scalar>
void add_decoder_norm_gradient(Scalar factor, const Scalar* w, Index width, std::span<const Index> sites, Scalar* g) {
  const Index whole[] = {width};
  Index first = 0;
  for (const Index n : sites.empty() ? std::span<const Index>(whole) : sites) {
    const Scalar norm = std::sqrt(kernels::squared_norm(w + first, n));
    if (norm > Scalar(0)) kernels::add_scaled(g + first, factor / norm, w + first, n);
    first += n;
  }
}

/// out[b] += sum over the entries e of row b with first <= latent(e) < last of value(e) w[latent(e)], for the rows begin <= b < end.
/// \param next   [rows of the block] entry of each row to go on from, the first one at or after `first`; moved past `last`
/// \param dense  by products over tiles of latents instead of entry by entry
template <class Scalar, class Stored>
void add_decoded_range(const Codes<Scalar>& codes, const Tensor<Stored>& w, Tensor<Scalar>& out, Index begin, Index end,
                       Index first, Index last, Index* next, bool dense, ScratchPool<Scalar>& scratch) {
  const Index width = w.cols(), rows = end - begin;
  WideRows<Scalar, Stored> wide(scratch, (dense ? tile_latents : kernels::detail::rows_at_once) * width);
  if (!dense) {
    for (Index b = begin; b < end; ++b) {
      Index& e = next[b - begin];
      const Index from = e;
      while (e < codes.end(b) && codes.latent(e) < last) ++e;
      kernels::add_weighted_rows(
          out.row(b), width, e - from, [&](Index t) { return codes.value(from + t); },
          [&](Index t) { return wide(w.row(codes.latent(from + t)), width, t % kernels::detail::rows_at_once * width); });
    }
    return;
  }
  auto loan = scratch.borrow(rows * tile_latents);
  Scalar* const tile = loan.data();
  for (; first < last; first += tile_latents) {
    const Index n = std::min(tile_latents, last - first);
    std::fill_n(tile, rows * tile_latents, Scalar(0));
    for (Index r = 0; r < rows; ++r)
      for (Index& e = next[r]; e < codes.end(begin + r) && codes.latent(e) < first + n; ++e)
        tile[r * tile_latents + codes.latent(e) - first] = codes.value(e);
    kernels::add_product_nn(out.row(begin), width, tile, tile_latents, wide(w.row(first), n * width), width, rows, n, width);
  }
}

/// out[b] += sum over the entries e of row b of value(e) w[latent(e)]; out [rows x width].
template <class Scalar, class Stored>
void add_decoded(const Codes<Scalar>& codes, const Tensor<Stored>& w, Tensor<Scalar>& out, ScratchPool<Scalar>& scratch,
                 Threads& threads) {
  const Index width = w.cols(), latents = w.rows();
  // 16 rows of weights that lie by columns cost as much as one.
  const SumsBy by = by_columns(w) && codes.size() * 16 > latents
                        ? SumsBy::products
                        : sums_by<Scalar, Stored>(codes.size(), codes.rows() * latents);
  threads.for_blocks(codes.rows(), by == SumsBy::entries ? sparse_block_rows : dense_block_rows,
                     [&](Index begin, Index end, Index) {
                       const Index rows = end - begin;
                       if constexpr (std::is_same_v<Scalar, float> && std::is_same_v<Stored, float>)
                         if (by == SumsBy::tiles)
                           return kernels::add_crowded_product(
                               out.row(begin), width, rows, w.data(), width, latents, width,
                               [&](Index r) { return codes.begin(begin + r); }, [&](Index r) { return codes.end(begin + r); },
                               [&](Index e) { return codes.value(e); }, [&](Index e) { return codes.latent(e); });
                       if (by != SumsBy::products) {
                         WideRows<Scalar, Stored> wide(scratch, kernels::detail::rows_at_once * width);
                         for (Index b = begin; b < end; ++b) {
                           const Index first = codes.begin(b);
                           kernels::add_weighted_rows(
                               out.row(b), width, codes.end(b) - first, [&](Index t) { return codes.value(first + t); },
                               [&](Index t) {
                                 return wide(w.row(codes.latent(first + t)), width, t % kernels::detail::rows_at_once * width);
                               });
                         }
                         return;
                       }
                       std::array<Index, dense_block_rows> next;
                       for (Index r = 0; r < rows; ++r) next[static_cast<std::size_t>(r)] = codes.begin(begin + r);
                       add_decoded_range(codes, w, out, begin, end, 0, latents, next.data(), true, scratch);
                     });
}

/// df[e] += cotangent[b] . w[latent(e)] for every entry e of every row b: the code gradient, at active entries only.
/// \param named  the path of the entries where it may name other rows of the cotangent (cotangent_rows, level_ends); else null
template <class Scalar, class Stored>
void add_code_gradient(const Codes<Scalar>& codes, const Tensor<Scalar>& cotangent, const Tensor<Stored>& w, Buffer<Scalar>& df,
                       ScratchPool<Scalar>& scratch, Threads& threads, const Path<Scalar>* named = nullptr) {
  const bool own_rows = named != nullptr && !named->cotangent_rows.empty();
  const auto level_of = [&](Index latent) {
    return named == nullptr ? std::pair<Index, Index>(0, w.rows()) : named->level(latent, w.rows());
  };
  const Index width = w.cols(), latents = w.rows(), all_rows = codes.rows();
  constexpr bool many_at_once = std::is_same_v<Scalar, float> && std::is_same_v<Stored, float>;
  const bool dense =
      !own_rows && is_dense(codes.size(), codes.rows() * latents, many_at_once ? dense_dots_per_1000 : dense_entries_per_1000);
  threads.for_blocks(codes.rows(), dense ? dense_block_rows : sparse_block_rows, [&](Index begin, Index end, Index) {
    const Index rows = end - begin;
    WideRows<Scalar, Stored> wide(scratch, (dense ? tile_latents : kernels::detail::rows_at_once) * width);
    if (!dense) {
      for (Index b = begin; b < end; ++b)
        for (Index e = codes.begin(b), last = 0; e < codes.end(b); e = last) {
          if (own_rows) {
            const Scalar* const g = cotangent.row(named->cotangent_rows[static_cast<std::size_t>(e)]);
            df[static_cast<std::size_t>(e)] += kernels::dot(g, wide(w.row(codes.latent(e)), width), width);
            last = e + 1;
            continue;
          }
          const auto [level, level_end] = level_of(codes.latent(e));  // all entries of a level read one row
          for (last = e + 1; last < codes.end(b) && codes.latent(last) < level_end;) ++last;
          const auto run =
              codes.row_latents(b).subspan(static_cast<std::size_t>(e - codes.begin(b)), static_cast<std::size_t>(last - e));
          wide.add_dots(cotangent.row(level * all_rows + b), w, run, df.data() + e);
        }
      return;
    }
    auto loan = scratch.borrow(rows * tile_latents);
    Scalar* const tile = loan.data();
    std::array<Index, dense_block_rows> next;
    for (Index r = 0; r < rows; ++r) next[static_cast<std::size_t>(r)] = codes.begin(begin + r);
    for (Index first = 0, n = 0; first < latents; first += n) {
      const auto [level, level_end] = level_of(first);
      n = std::min(tile_latents, level_end - first);
      std::fill_n(tile, rows * tile_latents, Scalar(0));
      kernels::add_product_nt(tile, tile_latents, cotangent.row(level * all_rows + begin), width, wide(w.row(first), n * width),
                              width, rows, n, width);
      for (Index r = 0; r < rows; ++r)
        for (Index& e = next[static_cast<std::size_t>(r)]; e < codes.end(begin + r) && codes.latent(e) < first + n; ++e)
          df[static_cast<std::size_t>(e)] += tile[r * tile_latents + codes.latent(e) - first];
    }
  });
}

/// Puts the blocks' entries one behind the other.
template <class Scalar>
void concatenate(std::span<const Entries<Scalar>> blocks, Index latents, Entries<Scalar>& out) {
  out.reset(latents);
  for (const Entries<Scalar>& block : blocks) out.append(block);
}

/// Fills step.input: x as normalised, minus b_dec where the model subtracts it; and step.row_scales where it normalises.
template <class Parameters, class Step>
void load_input(const Parameters& parameters, bool subtract_decoder_bias, const RowsView<typename Step::Scalar>& x, Step& step,
                Threads& threads, InputNormalisation normalisation = InputNormalisation::none) {
  const Index width = parameters.width();
  if (x.cols != width) throw_shape("rows have ", x.cols, " columns, the model reads ", width);
  if (step.input.rows() != x.rows || step.input.cols() != width) step.input.resize(x.rows, width);
  const auto* bias = parameters.b_dec.data();
  if (normalisation != InputNormalisation::none) {
    step.row_scales.measure(normalisation, x, threads);
    threads.for_blocks(x.rows, 64, [&](Index begin, Index end, Index) {
      for (Index b = begin; b < end; ++b)
        for (Index j = 0; j < width; ++j) {
          const auto u = step.row_scales.normalised(b, x.row(b)[j]);
          step.input.row(b)[j] = subtract_decoder_bias ? u - bias[j] : u;
        }
    });
    return;
  }
  threads.for_blocks(x.rows, 64, [&](Index begin, Index end, Index) {
    for (Index b = begin; b < end; ++b)
      for (Index j = 0; j < width; ++j) step.input.row(b)[j] = subtract_decoder_bias ? x.row(b)[j] - bias[j] : x.row(b)[j];
  });
}

/// out = b_dec + x W_skip^T [B x D_out]: what a reconstruction starts from. W_skip may be empty, or have fewer rows than D_out: it then
/// writes to the first columns (a layer of a cross-layer transcoder).
template <class Scalar>
void load_decoder_bias(const Tensor<Scalar>& b_dec, const Tensor<Scalar>* skip, const RowsView<Scalar>& x, Index rows,
                       Tensor<Scalar>& out, Threads& threads) {
  const Index width = b_dec.cols();
  if (out.rows() != rows || out.cols() != width) out.resize(rows, width);
  threads.for_blocks(rows, 256, [&](Index begin, Index end, Index) {
    for (Index b = begin; b < end; ++b) std::copy_n(b_dec.data(), width, out.row(b));
    if (skip != nullptr && skip->size() > 0)
      kernels::add_product_nt(out.row(begin), width, x.row(begin), x.stride, skip->data(), skip->cols(), end - begin,
                              skip->rows(), skip->cols());
  });
}

/// Fills step.decoder_norms where the activation needs them.
template <class Activation, class Stored, class Step>
void load_decoder_norms(const Activation& activation, const Tensor<Stored>& w, std::span<const Index> sites, Step& step,
                        Threads& threads) {
  if (!activation.needs_decoder_norms() || (step.weights_stay && step.decoder_norms.size() == w.rows())) return;
  decoder_norms(w, sites, step.decoder_norms, step.scratch, threads);
}

/// The tiles of pre-activations of rows [B x D_in] as the activation's selector sees them.
template <class Activation, class Parameters, class Scalar, class Take>
void for_each_tile(const Activation& activation, const Parameters& parameters, const Tensor<Scalar>& input,
                   ScratchPool<Scalar>& scratch, Threads& threads, const Take& take) {
  EncoderGate<Scalar> gate;
  if constexpr (requires { activation.gate(parameters.activation); }) gate = activation.gate(parameters.activation);
  for_each_pre_activation(input.data(), input.rows(), input.cols(), parameters.encoder().data(),
                          parameters.b_enc.size() > 0 ? parameters.b_enc.data() : nullptr, parameters.latents(), scratch,
                          threads, take, gate);
}

/// Whether the next selection will go by a screen where nothing else watches, as far as the rule of the last batch tells.
template <class Step>
bool screen_is_ready(const Step& step) {
  if constexpr (std::is_same_v<typename Step::Scalar, float> && requires { step.selectors.screened(); }) {
    const std::optional<ScreenRule> rule = step.selectors.screened();
    return rule && step.screen_pause == 0 && !by_columns(*step.encoder) &&
           screen_pays(step.rows(), step.input_width(), step.encoder->rows(), *rule, step.weights_stay);
  } else {
    return false;
  }
}
/// Shows the selectors what can be selected of the pre-activations alone, where finding it by a screen (models/screen.hpp) costs less
/// than computing all. The selection is the same to the last bit. False where it does not: other numbers than float32, a machine without
/// fast products of small integers, few rows or latents, an activation that has no such rule, or one that did not prune enough lately.
/// \param restart  begins the selectors again, where they saw something that is of no use
template <class Parameters, class Step, class Restart>
bool screen_and_take(const Parameters& parameters, Step& step, Threads& threads, const Restart& restart) {
  using Scalar = typename Step::Scalar;
  if constexpr (std::is_same_v<Scalar, float> && requires { step.selectors.screened(); }) {
    const Index rows = step.input.rows(), width = step.input.cols(), latents = parameters.latents();
    const Index block_rows = encode_block_rows(rows);
    const std::optional<ScreenRule> rule = step.selectors.screened();
    if (!rule || by_columns(parameters.encoder()) || !screen_pays(rows, width, latents, *rule, step.weights_stay)) return false;
    if (step.screen_pause > 0) return --step.screen_pause, false;
    const auto w = std::as_const(parameters).encoder().data();
    const auto* const b = parameters.b_enc.size() > 0 ? parameters.b_enc.data() : nullptr;
    if (!step.weights_stay) step.screen.forget();
    step.screen.see({step.input.data(), static_cast<std::size_t>(step.input.size())}, width);
    if (step.screen.wants_building(w, latents, width)) step.screen.build(w, b, latents, width, *rule, threads);
    // Where the k-th largest lies in most rows is much the same from batch to batch.
    constexpr Index enough_rows = 64;
    const bool levels = rule->k > 0 && rows >= enough_rows;
    if (levels) step.screen_levels.assign(static_cast<std::size_t>(rows), 0.0F);
    std::atomic<Index> whole = step.screen.finite() ? 0 : rows;
    if (whole == 0)
      threads.for_blocks(rows, block_rows, [&](Index begin, Index end, Index block) {
        const float* const x = step.input.row(begin);
        auto screen = step.screens.borrow();
        if (!screen->find(step.screen, x, end - begin, *rule, levels ? step.screen_level : 0.0F)) {
          whole += end - begin;
          return for_each_pre_activation_of_block(
              x, end - begin, width, w, b, latents, step.scratch, EncoderGate<float>{},
              [&](Index row, Index first, std::span<const float> z) { step.selectors.take(block, row, first, z); });
        }
        if (levels)
          for (Index r = begin; r < end; ++r) step.screen_levels[static_cast<std::size_t>(r)] = screen->level(r - begin);
        screen->for_each_value(x, w, b, width, *rule,
                               [&](Index row, std::span<const int> latents_of, std::span<const float> z) {
                                 step.selectors.offer(block, row, latents_of, z);
                               });
        const std::span<const Index> left = screen->whole_rows();
        if (left.empty()) return;
        const auto count = static_cast<Index>(left.size());
        whole += count;
        auto loan = step.scratch.borrow(count * width);
        for (Index n = 0; n < count; ++n)
          std::copy_n(x + left[static_cast<std::size_t>(n)] * width, width, loan.data() + n * width);
        for_each_pre_activation_of_block(loan.data(), count, width, w, b, latents, step.scratch, EncoderGate<float>{},
                                         [&](Index n, Index first, std::span<const float> z) {
                                           step.selectors.take(block, left[static_cast<std::size_t>(n)], first, z);
                                         });
      });
    if (levels) {  // somewhat below what all but a few rows have, of those where it is known
      auto& known = step.screen_levels;
      std::erase_if(known, [](float level) { return !(level > 0); });
      const auto low = known.begin() + static_cast<Index>(known.size()) / 256;
      std::nth_element(known.begin(), low, known.end());
      step.screen_level = known.empty() ? 0.0F : 0.8F * *low;
    }
    const bool holds = whole < rows && step.selectors.screen_holds();
    step.screen_failures = !holds || 2 * whole > rows ? std::min<Index>(step.screen_failures + 1, 4) : 0;
    step.screen_pause = (Index{1} << step.screen_failures) - 1;
    if (!holds) restart();
    return holds;
  } else {
    return false;
  }
}

/// In the place of a watch: nobody looks.
struct NoWatch {};

/// Encode and select: step.main.entries and step.band.entries from step.input. Each tile is also shown to
/// `watch(block, row in block, first latent, z)`: selectors of the terms of the loss. An activation whose encoder is not one
/// product (a pursuit) does it itself; then nothing is shown. Returns whether what was shown is one product, z = x W_enc^T + b_enc.
/// Without a watch what cannot be selected need not be computed (`screen_and_take`).
template <class Activation, class Parameters, class Step, class Watch = NoWatch>
bool select(const Activation& activation, const Parameters& parameters, Step& step, Threads& threads, const Watch& watch = {}) {
  using Scalar = typename Step::Scalar;
  const Index rows = step.input.rows(), latents = parameters.latents();
  if constexpr (requires { activation.pursue(parameters, step, threads); })
    if (activation.pursue(parameters, step, threads)) return false;
  const Index block_rows = encode_block_rows(rows), blocks = (rows + block_rows - 1) / block_rows;
  const auto count = static_cast<std::size_t>(blocks);
  if (step.block_active.size() < count) {
    step.block_active.resize(count);
    step.block_band.resize(count);
  }
  std::span<const Scalar> norms;
  if (activation.needs_decoder_norms()) norms = {step.decoder_norms.data(), static_cast<std::size_t>(latents)};
  auto& selectors = step.selectors;
  const auto start = [&] { selectors.begin(activation, parameters.activation, norms, rows, block_rows); };
  start();
  constexpr bool watched = !std::is_same_v<Watch, NoWatch>;
  if (watched || !screen_and_take(parameters, step, threads, start)) {
    for_each_tile(activation, parameters, step.input, step.scratch, threads,
                  [&](Index block, Index row, Index first, std::span<const Scalar> z) {
                    selectors.take(block, row, first, z);
                    if constexpr (watched) watch(block, row, first, z);
                  });
  }
  selectors.merge();
  threads.for_blocks(rows, block_rows, [&](Index begin, Index end, Index block) {
    auto& active = step.block_active[static_cast<std::size_t>(block)];
    auto& band = step.block_band[static_cast<std::size_t>(block)];
    active.reset(latents);
    band.reset(latents);
    for (Index r = 0; r < end - begin; ++r) {
      selectors.emit(block, r, active, band);
      active.finish_row();
      band.finish_row();
    }
  });
  concatenate<Scalar>(std::span<const Entries<Scalar>>(step.block_active.data(), count), latents, step.main.entries);
  concatenate<Scalar>(std::span<const Entries<Scalar>>(step.block_band.data(), count), latents, step.band.entries);
  return !requires { activation.gate(parameters.activation); };
}

}  // namespace sae::inline SAE_ABI::detail
