#pragma once
#include <sae/models/objective.hpp>

#include <algorithm>
#include <cmath>

// The way back. What flows through the selection is written at the entries; what each latent gathers from them is produced
// latent by latent, so that an optimizer can consume it at once and no gradient matrix need exist.
namespace sae::inline SAE_ABI::detail {

inline constexpr Index gradient_block_latents = 64;

/// Forward and, where step.wants_gradient, backward down to dL/dz of every entry. `between` runs when the codes are known and
/// the terms are not yet evaluated (a trainer counts firing latents there). `external`: a given dL/dx' [B x D] instead of the
/// objective's own loss.
template <class Model, class Scalar, int D, class Objective, class Between>
void run_step(const Model& model, const Batch<Scalar, D>& x, const Objective& objective,
              Workspace<typename Model::Activation, Scalar, Objective>& workspace, Threads& threads, const Between& between,
              typename Model::Parameters* activation_gradient = nullptr, const Batch<Scalar, D>* external = nullptr) {
  auto& step = workspace.step;
  const auto& parameters = model.parameters();
  const auto& activation = model.activation();
  const Index rows = x.rows(), width = parameters.width(), latents = parameters.latents();
  if (rows == 0) throw_value("a batch without rows has no loss");
  const auto check_dead = [&] {
    if (!step.dead.empty() && static_cast<Index>(step.dead.size()) != latents)
      throw_shape("the dead latents are told for ", step.dead.size(), " latents, the model has ", latents);
  };
  check_dead();
  step.encoder = &parameters.W_enc;
  step.encoder_bias = &parameters.b_enc;
  step.decoder = &parameters.W_dec;
  step.activation = &parameters.activation;
  typename Model::Parameters none;
  if (step.wants_gradient && activation_gradient == nullptr) {
    none.activation.resize(latents);
    activation_gradient = &none;
  }
  step.activation_gradient = activation_gradient == nullptr ? nullptr : &activation_gradient->activation;
  step.extra_used = 0;
  step.dgate.clear();
  step.decoder_norm_gradient.clear();
  step.own_decoder_bias_gradient.clear();
  step.given = x.row(0);
  step.given_stride = x.stride();
  step.loss.terms.clear();

  load_input(parameters, model.subtracts_decoder_bias(), x, step, threads);
  const bool has_norms = activation.needs_decoder_norms() || objective.needs_decoder_norms();
  if (has_norms) row_norms(parameters.W_dec, step.decoder_norms, threads);

  const Index block_rows = encode_block_rows(rows), blocks = (rows + block_rows - 1) / block_rows;
  bool watching = false;
  for_each_term(objective, workspace.selections, [&]<class Term, class Selection>(const Term& term, Selection& selection) {
    if constexpr (watches_tiles<Selection>)
      watching = (external == nullptr && selection.begin(term, step, blocks, block_rows)) || watching;
  });
  if (watching) {
    select(activation, parameters, step, threads, [&](Index block, Index row, Index first, std::span<const Scalar> z) {
      for_each_term(objective, workspace.selections, [&]<class Term, class Selection>(const Term&, Selection& selection) {
        if constexpr (watches_tiles<Selection>) selection.take(block, row, first, z);
      });
    });
  } else {
    select(activation, parameters, step, threads, [](Index, Index, Index, std::span<const Scalar>) {});
  }
  between(step);
  check_dead();

  auto& main = step.main;
  auto& band = step.band;
  main.df.assign(static_cast<std::size_t>(main.entries.size()), Scalar(0));
  main.dz.assign(main.df.size(), Scalar(0));
  band.df.assign(static_cast<std::size_t>(band.entries.size()), Scalar(0));
  band.dz.assign(band.df.size(), Scalar(0));
  if (step.cotangent.rows() != rows || step.cotangent.cols() != width) step.cotangent.resize(rows, width);
  main.cotangent = &step.cotangent;

  if (external != nullptr) {
    if (external->rows() != rows || external->cols() != width)
      throw_shape("dL/dx' is [", external->rows(), " x ", external->cols(), "], the reconstruction is [", rows, " x ", width,
                  "]");
    for (Index b = 0; b < rows; ++b) std::copy_n(external->row(b), width, step.cotangent.row(b));
    step.loss.total = step.loss.reconstruction = 0;
  } else {
    if (step.residual.rows() != rows || step.residual.cols() != width) step.residual.resize(rows, width);
    for (Index b = 0; b < rows; ++b) std::copy_n(parameters.b_dec.data(), width, step.residual.row(b));
    add_decoded(main.entries.codes, parameters.W_dec, step.residual, step.scratch, threads);
    const Scalar factor = Scalar(2) / static_cast<Scalar>(rows);
    step.row_loss.resize(static_cast<std::size_t>(rows));
    threads.for_blocks(rows, 64, [&](Index begin, Index end, Index) {
      for (Index b = begin; b < end; ++b) {
        Scalar* const residual = step.residual.row(b);
        const Scalar* const target = x.row(b);
        for (Index j = 0; j < width; ++j) residual[j] -= target[j];
        for (Index j = 0; j < width; ++j) step.cotangent.row(b)[j] = factor * residual[j];
        step.row_loss[static_cast<std::size_t>(b)] = static_cast<double>(kernels::squared_norm(residual, width));
      }
    });
    double sum = 0;
    for (const double loss : step.row_loss) sum += loss;
    step.loss.total = step.loss.reconstruction = sum / static_cast<double>(rows);
    for_each_term(objective, workspace.selections, [&](const auto& term, auto& selection) {
      const double value = term.apply(step, selection, threads);
      step.loss.terms.emplace_back(term.name, value);
      step.loss.total += value;
    });
  }
  if (!step.wants_gradient) return;

  if (!step.decoder_norm_gradient.empty() && !has_norms) row_norms(parameters.W_dec, step.decoder_norms, threads);
  add_code_gradient(main.entries.codes, step.cotangent, parameters.W_dec, main.df, step.scratch, threads);
  if (band.entries.size() > 0)
    add_code_gradient(band.entries.codes, step.cotangent, parameters.W_dec, band.df, step.scratch, threads);
  activation.backward(Backward<Scalar>{main.entries, main.df, main.dz, band.entries, band.df, band.dz, step.dgate},
                      parameters.activation, *step.activation_gradient);
  main.by_latent.build(main.entries.codes);
  band.by_latent.build(band.entries.codes);
  for (std::size_t p = 0; p < step.extra_used; ++p) step.extra[p]->by_latent.build(step.extra[p]->entries.codes);
}

/// Adds a path's share to the gradient of latents first .. first + count - 1: g_enc, g_dec [count x D], g_bias [count].
template <class Step>
void add_path_gradient(const Step& step, const Path<typename Step::Scalar>& path, Index first, Index count,
                       typename Step::Scalar* g_enc, typename Step::Scalar* g_dec, typename Step::Scalar* g_bias,
                       ScratchPool<typename Step::Scalar>& scratch) {
  using Scalar = typename Step::Scalar;
  const Index width = step.width(), rows = step.rows();
  const int* const offsets = path.by_latent.offsets.data();
  const int* const entries = path.by_latent.entries.data();
  const int* const entry_rows = path.by_latent.rows.data();
  for (Index i = 0; i < count; ++i)
    for (int t = offsets[first + i]; t < offsets[first + i + 1]; ++t)
      g_bias[i] += path.dz[static_cast<std::size_t>(entries[t])];
  if (count > 1 && is_dense(offsets[first + count] - offsets[first], count * rows)) {
    auto loan = scratch.borrow(count * rows);
    Scalar* const tile = loan.data();
    const auto scatter = [&](const auto& value) {
      std::fill_n(tile, count * rows, Scalar(0));
      for (Index i = 0; i < count; ++i)
        for (int t = offsets[first + i]; t < offsets[first + i + 1]; ++t) tile[i * rows + entry_rows[t]] = value(entries[t]);
    };
    scatter([&](int e) { return path.dz[static_cast<std::size_t>(e)]; });
    kernels::add_product_nn(g_enc, width, tile, rows, step.input.data(), width, count, rows, width);
    if (path.cotangent == nullptr) return;
    scatter([&](int e) { return path.entries.codes.value(e); });
    kernels::add_product_nn(g_dec, width, tile, rows, path.cotangent->data(), width, count, rows, width);
    return;
  }
  for (Index i = 0; i < count; ++i) {
    const int from = offsets[first + i], n = offsets[first + i + 1] - from;
    kernels::add_weighted_rows(
        g_enc + i * width, width, n, [&](Index t) { return path.dz[static_cast<std::size_t>(entries[from + t])]; },
        [&](Index t) { return step.input.row(entry_rows[from + t]); });
    if (path.cotangent == nullptr) continue;
    kernels::add_weighted_rows(
        g_dec + i * width, width, n, [&](Index t) { return path.entries.codes.value(entries[from + t]); },
        [&](Index t) { return path.cotangent->row(entry_rows[from + t]); });
  }
}

/// Calls visit(latent, dL/dW_enc[i], dL/db_enc[i], dL/dW_dec[i]) for the latents of one block, in order; the two rows [D] may be
/// overwritten. The decoder of the step must not have changed since the forward for latents not yet visited.
template <class Step, class Visit>
void visit_latent_gradients(Step& step, Index first, Index last, const Visit& visit) {
  using Scalar = typename Step::Scalar;
  const Index width = step.width();
  const auto each_path = [&](const auto& f) {
    f(step.main);
    if (step.band.entries.size() > 0) f(step.band);
    for (std::size_t p = 0; p < step.extra_used; ++p) f(*step.extra[p]);
  };
  bool any_dense = false;
  each_path([&](const Path<Scalar>& path) {
    const auto& offsets = path.by_latent.offsets;
    any_dense = any_dense || is_dense(offsets[static_cast<std::size_t>(last)] - offsets[static_cast<std::size_t>(first)],
                                      (last - first) * step.rows());
  });
  // One latent at a time keeps the two rows in the first-level cache; a dense block wants a matrix.
  const Index group = any_dense ? last - first : 1;
  auto loan = step.scratch.borrow(group * (2 * width + 1));
  Scalar *const g_enc = loan.data(), *const g_dec = g_enc + group * width, *const g_bias = g_dec + group * width;
  for (Index from = first; from < last; from += group) {
    std::fill_n(g_enc, group * (2 * width + 1), Scalar(0));
    each_path(
        [&](const Path<Scalar>& path) { add_path_gradient(step, path, from, group, g_enc, g_dec, g_bias, step.scratch); });
    for (Index i = from; i < from + group; ++i) {
      Scalar* const d_dec = g_dec + (i - from) * width;
      if (!step.decoder_norm_gradient.empty() && step.decoder_norms[i] > Scalar(0))  // d|d_i|/dd_i = d_i / |d_i|
        kernels::add_scaled(d_dec, step.decoder_norm_gradient[static_cast<std::size_t>(i)] / step.decoder_norms[i],
                            step.decoder->row(i), width);
      visit(i, g_enc + (i - from) * width, g_bias[i - from], d_dec);
    }
  }
}

/// Sums the rows of a matrix [n x width] in blocks of fixed size, the blocks in order.
template <class Scalar>
void add_column_sums(const Tensor<Scalar>& m, Scalar* out, Tensor<Scalar>& partial, Threads& threads) {
  constexpr Index block = 64;
  const Index blocks = (m.rows() + block - 1) / block;
  if (partial.rows() != blocks || partial.cols() != m.cols()) partial.resize(blocks, m.cols());
  threads.for_blocks(m.rows(), block, [&](Index begin, Index end, Index k) {
    std::fill_n(partial.row(k), m.cols(), Scalar(0));
    for (Index b = begin; b < end; ++b) kernels::add_scaled(partial.row(k), Scalar(1), m.row(b), m.cols());
  });
  for (Index k = 0; k < blocks; ++k) kernels::add_scaled(out, Scalar(1), partial.row(k), m.cols());
}

/// sum_b G_b and what the terms add: dL/db_dec but for its way through the encoder's input. out [D] starts at 0.
template <class Step>
void add_decoder_bias_gradient(const Step& step, typename Step::Scalar* out, Tensor<typename Step::Scalar>& partial,
                               Threads& threads) {
  using Scalar = typename Step::Scalar;
  add_column_sums(*step.main.cotangent, out, partial, threads);
  if (!step.own_decoder_bias_gradient.empty())
    kernels::add_scaled(out, Scalar(1), step.own_decoder_bias_gradient.data(), step.width());
}

/// All gradients, materialised (2 F D numbers): what `gradient` returns and what clipping needs.
///   dL/db_dec = sum_b G_b - c sum_i (sum_b dz[b,i]) W_enc[i]      c = 1 where the model subtracts b_dec from its input
template <class Model, class Step>
void materialise_gradient(const Model& model, Step& step, typename Model::Parameters& gradient, Threads& threads) {
  using Scalar = typename Step::Scalar;
  const Index width = step.width(), latents = step.latents();
  threads.for_blocks(latents, gradient_block_latents, [&](Index begin, Index end, Index) {
    visit_latent_gradients(step, begin, end, [&](Index i, Scalar* g_enc, Scalar g_bias, Scalar* g_dec) {
      std::copy_n(g_enc, width, gradient.W_enc.row(i));
      std::copy_n(g_dec, width, gradient.W_dec.row(i));
      gradient.b_enc[i] = g_bias;
    });
  });
  gradient.b_dec.set_zero();
  Tensor<Scalar> partial;
  add_decoder_bias_gradient(step, gradient.b_dec.data(), partial, threads);
  const auto leave_out_encoder_bias = [&] {
    if constexpr (!Model::Parameters::has_encoder_bias) gradient.b_enc.set_zero();
  };
  if (!model.subtracts_decoder_bias()) return leave_out_encoder_bias();
  const Index blocks = (latents + gradient_block_latents - 1) / gradient_block_latents;
  partial.resize(blocks, width);
  threads.for_blocks(latents, gradient_block_latents, [&](Index begin, Index end, Index k) {
    for (Index i = begin; i < end; ++i)
      kernels::add_scaled(partial.row(k), gradient.b_enc[i], model.parameters().W_enc.row(i), width);
  });
  for (Index k = 0; k < blocks; ++k) kernels::add_scaled(gradient.b_dec.data(), Scalar(-1), partial.row(k), width);
  leave_out_encoder_bias();
}

}  // namespace sae::inline SAE_ABI::detail
