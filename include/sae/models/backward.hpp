#pragma once
#include <sae/models/objective.hpp>
#include <sae/models/parameters.hpp>

#include <algorithm>
#include <cmath>

// The way back. What flows through the selection is written at the entries; what each latent gathers from them is produced
// latent by latent, so that an optimizer can consume it at once and no gradient matrix need exist.
namespace sae::inline SAE_ABI::detail {

inline constexpr Index gradient_block_latents = 64;
/// Latents whose gradients are made together: more where they are products, which pack the rows of the batch each time, and there are
/// blocks enough for the threads.
template <class Step>
Index gradient_block(const Step& step) {
  return step.main.block_entries.empty() || step.latents() < 32 * gradient_block_latents ? gradient_block_latents
                                                                                         : 4 * gradient_block_latents;
}

/// Regroups the entries of a path by latent, or, where they are so many that gradients are products, by blocks of latents: that is a
/// pass over them in their own order.
template <class Scalar>
void regroup(Path<Scalar>& path) {
  const Codes<Scalar>& codes = path.entries.codes;
  const Index rows = codes.rows(), latents = codes.latents();
  path.block_entries.clear();
  const bool by_row =
      path.input_rows.empty() && path.cotangent_rows.empty() && path.own_latents.empty() && path.row_bits.empty();
  if (!by_row || sums_by<Scalar>(codes.size(), rows * latents) != SumsBy::products) return path.by_latent.build(codes);
  const Index blocks = (latents + gradient_block_latents - 1) / gradient_block_latents;
  path.block_entries.resize(static_cast<std::size_t>(rows * (blocks + 1)));
  int* to = path.block_entries.data();
  for (Index b = 0; b < rows; ++b) {
    Index e = codes.begin(b);
    for (Index k = 0; k <= blocks; ++k) {
      while (e < codes.end(b) && codes.latent(e) < k * gradient_block_latents) ++e;
      *to++ = static_cast<int>(e);
    }
  }
}

/// Whether an activation may choose latents itself, reading rows of weights one by one.
template <class Activation>
inline constexpr bool pursues = requires(const Activation& activation,
                                         const AutoencoderParameters<Activation, float>& parameters,
                                         Step<Activation, float>& step, Threads& threads) {
  activation.pursue(parameters, step, threads);
};

/// Whether an activation is one of several that are chosen at run time.
template <class Activation>
inline constexpr bool chosen_later = requires {
  typename Activation::Variants;
};

/// The rows of one batch: what is encoded, what the reconstruction is compared with, how much each row's error counts.
template <class Scalar>
struct StepRows {
  RowsView<Scalar> x;                ///< [B x D_in]
  RowsView<Scalar> target;           ///< [B x D_out]
  std::span<const Scalar> weight{};  ///< [B]; empty: 1
};

/// A loss of the caller's own, told by its derivative dL/dx' [B x D_out] at the reconstruction.
template <class Scalar>
struct OuterLoss {
  RowsView<Scalar> gradient;
  /// Nothing of the objective is evaluated, step.loss is 0; else `reconstruction_weight` times its reconstruction loss and its terms
  /// are added to the caller's loss.
  bool alone = true;
  double reconstruction_weight = 1;
};

template <class Model, class Step>
void check_dead(const Model& model, const Step& step) {
  if (!step.dead.empty() && static_cast<Index>(step.dead.size()) != model.latents())
    throw_shape("the dead latents are told for ", step.dead.size(), " latents, the model has ", model.latents());
}

/// Puts a target y and the weights of the rows' errors into the space in which a model that normalises its rows is compared
/// (LossSpace): step.target and step.row_weight.
template <class Step>
void normalise_target(Step& step, Threads& threads) {
  using Scalar = typename Step::Scalar;
  const RowsView<Scalar> y = step.target;
  const auto& scales = step.row_scales;
  const bool raw = step.loss_space == LossSpace::raw;
  if (step.normalised_target.rows() != y.rows || step.normalised_target.cols() != y.cols)
    step.normalised_target.resize(y.rows, y.cols);
  step.normalised_weight.resize(static_cast<std::size_t>(y.rows));
  threads.for_blocks(y.rows, 64, [&](Index begin, Index end, Index) {
    for (Index b = begin; b < end; ++b) {
      const auto at = static_cast<std::size_t>(b);
      const Scalar spread = scales.spread[at], divisor = raw ? spread : scales.divisor[at];
      const Scalar given = step.row_weight.empty() ? Scalar(1) : step.row_weight[at];
      step.normalised_weight[at] = given * (raw ? spread * spread : spread > Scalar(0) ? Scalar(1) : Scalar(0));
      Scalar* const out = step.normalised_target.row(b);
      for (Index j = 0; j < y.cols; ++j) out[j] = spread > Scalar(0) ? (y.row(b)[j] - scales.offset[at]) / divisor : Scalar(0);
    }
  });
  step.target = step.normalised_target;
  if (!raw) step.measured_target = step.normalised_target;
  step.row_weight = step.normalised_weight;
}

/// The way forward: codes and, with `own_loss`, reconstruction: step.residual, step.cotangent, step.loss.reconstruction and the
/// reconstruction loss itself in step.loss.total.
template <class Model, class Scalar, class Terms, class Stored>
void run_forward(const Model& model, const StepRows<Scalar>& rows_of, const Terms& objective,
                 Workspace<typename Model::Activation, Scalar, Terms, Stored>& workspace, Threads& threads,
                 bool own_loss = true) {
  auto& step = workspace.step;
  const auto& parameters = model.parameters();
  const auto& activation = model.activation();
  const Index rows = rows_of.x.rows, width = parameters.output_width();
  if (rows == 0) throw_value("a batch without rows has no loss");
  if (rows_of.x.cols != parameters.width())
    throw_shape("rows have ", rows_of.x.cols, " columns, the model reads ", parameters.width());
  if (rows_of.target.rows != rows || rows_of.target.cols != width)
    throw_shape("the target is [", rows_of.target.rows, " x ", rows_of.target.cols, "], the reconstruction is [", rows, " x ",
                width, "]");
  check_dead(model, step);
  step.encoder = &parameters.encoder();
  step.encoder_bias = &parameters.b_enc;
  step.decoder = &parameters.W_dec;
  step.decoder_bias = &parameters.b_dec;
  step.subtracts_decoder_bias = model.subtracts_decoder_bias();
  if (!step.subtracts_decoder_bias && shares_decoder_bias(activation)) {
    step.no_bias.resize(1, width);
    step.decoder_bias = &step.no_bias;
  }
  step.skip = &parameters.W_skip;
  if constexpr (requires { model.sites(); }) step.sites = model.sites();
  step.raw = rows_of.x;
  step.target = rows_of.target;
  step.measured_target = rows_of.target;
  step.row_weight = rows_of.weight;
  step.activation = &parameters.activation;
  step.extra_used = 0;
  step.dgate.clear();
  step.decoder_norm_gradient.clear();
  step.own_decoder_bias_gradient.clear();
  step.skip_cotangents.clear();
  step.has_levels = false;
  step.loss.terms.clear();
  step.loss.total = step.loss.reconstruction = 0;

  const InputNormalisation normalisation = input_normalisation_of(model);
  load_input(parameters, model.subtracts_decoder_bias(), rows_of.x, step, threads, normalisation);
  if (normalisation != InputNormalisation::none) normalise_target(step, threads);
  if (activation.needs_decoder_norms() || objective.needs_decoder_norms())
    decoder_norms(parameters.W_dec, step.sites, step.decoder_norms, step.scratch, threads);

  auto& main = step.main;
  main.cotangent_rows.clear();
  main.level_ends.clear();
  step.band.level_ends.clear();
  main.input_rows.clear();
  main.input = nullptr;
  const Index block_rows = encode_block_rows(rows), blocks = (rows + block_rows - 1) / block_rows;
  bool watching = false;
  objective.for_each_term(workspace.selections, [&]<class Term, class Selection>(const Term& term, Selection& selection) {
    if constexpr (watches_tiles<Selection>)
      watching = (own_loss && selection.begin(term, step, blocks, block_rows)) || watching;
  });
  bool shown = false;
  if (watching) {
    shown = select(activation, parameters, step, threads, [&](Index block, Index row, Index first, std::span<const Scalar> z) {
      objective.for_each_term(workspace.selections, [&]<class Term, class Selection>(const Term&, Selection& selection) {
        if constexpr (watches_tiles<Selection>) selection.take(block, row, first, z);
      });
    });
    if (!shown)
      throw_value("a term of the objective reads pre-activations (AuxK does), and ", std::string_view(activation.name),
                  " has none that are one product");
  } else {
    shown = select(activation, parameters, step, threads);
  }

  if (step.cotangent.rows() != rows || step.cotangent.cols() != width) step.cotangent.resize(rows, width);
  main.cotangent = &step.cotangent;
  if (!own_loss) return;
  const auto [name, value] = objective.reconstruct(step, threads);
  double sum = 0;
  for (const double loss : step.row_loss) sum += loss;
  step.loss.reconstruction = sum / static_cast<double>(rows);
  step.loss.total = value;
  if (!name.empty()) step.loss.terms.emplace_back(name, value);
  if (!shown && step.has_levels)
    throw_value("a reconstruction loss with several prefixes needs pre-activations, and ", std::string_view(activation.name),
                " has none");
  if (step.has_levels) main.cotangent = &step.level_cotangent;
}

/// The share of a path that was regrouped by blocks; first is the first latent of one.
template <class Step>
void add_block_gradient(const Step& step, const Path<typename Step::Scalar>& path, Index first, Index count,
                        typename Step::Scalar* g_enc, typename Step::Scalar* g_dec, typename Step::Scalar* g_bias,
                        ScratchPool<typename Step::Scalar>& scratch) {
  using Scalar = typename Step::Scalar;
  const Tensor<Scalar>& input = path.input == nullptr ? step.input : *path.input;
  const Index in = step.input_width(), out = step.output_width(), rows = step.rows();
  const auto& codes = path.entries.codes;
  const Index ends_a_row = static_cast<Index>(path.block_entries.size()) / rows, block = first / gradient_block_latents,
              blocks = (count + gradient_block_latents - 1) / gradient_block_latents;
  auto loan = scratch.borrow(rows * count);
  Scalar* const tile = loan.data();  // [B x count]
  const auto fill = [&](const auto& value) {
    std::fill_n(tile, rows * count, Scalar(0));
    for (Index b = 0; b < rows; ++b) {
      const int* const ends = path.block_entries.data() + b * ends_a_row + block;
      for (Index e = ends[0]; e < ends[blocks]; ++e) tile[b * count + codes.latent(e) - first] = value(e);
    }
  };
  fill([&](Index e) { return path.dz[static_cast<std::size_t>(e)]; });
  for (Index b = 0; b < rows; ++b)
    for (Index i = 0; i < count; ++i) g_bias[i] += tile[b * count + i];
  kernels::add_product_tn(g_enc, in, tile, count, input.data(), in, count, rows, in);
  if (path.cotangent == nullptr) return;
  fill([&](Index e) { return codes.value(e); });
  path.each_level(first, count, step.latents(), [&](Index level, Index i, Index n) {
    kernels::add_product_tn(g_dec + i * out, out, tile + i, count, path.cotangent->row(level * rows), out, n, rows, out);
  });
}

/// Adds a path's share to the gradient of latents first .. first + count - 1 (as its entries name them): g_enc [count x D_in], g_dec
/// [count x D_out], g_bias [count].
template <class Step>
void add_path_gradient(const Step& step, const Path<typename Step::Scalar>& path, Index first, Index count,
                       typename Step::Scalar* g_enc, typename Step::Scalar* g_dec, typename Step::Scalar* g_bias,
                       ScratchPool<typename Step::Scalar>& scratch) {
  using Scalar = typename Step::Scalar;
  const Tensor<Scalar>& input = path.input == nullptr ? step.input : *path.input;
  const Index in = step.input_width(), out = step.output_width(), rows = step.rows();
  const int* const offsets = path.by_latent.offsets.data();
  const int* const entries = path.by_latent.entries.data();
  const int* const entry_rows = path.by_latent.rows.data();
  for (Index i = 0; i < count; ++i)
    for (int t = offsets[first + i]; t < offsets[first + i + 1]; ++t)
      g_bias[i] += path.dz[static_cast<std::size_t>(entries[t])];
  const bool by_row = path.input_rows.empty() && path.cotangent_rows.empty();
  const SumsBy by =
      by_row && count > 1 ? sums_by<Scalar>(offsets[first + count] - offsets[first], count * rows) : SumsBy::entries;
  if (by != SumsBy::entries) {
    auto loan = scratch.borrow(by == SumsBy::products ? count * rows : 0);
    Scalar* const tile = loan.data();
    // g [n x width] += the values of n latents from the i-th on, times x [B x width]
    const auto add = [&](Scalar* g, Index width, const Scalar* x, Index i, Index n, const auto& value) {
      const int* const from = offsets + first + i;
      if constexpr (std::is_same_v<Scalar, float>)
        if (by == SumsBy::tiles)
          return kernels::add_crowded_product(
              g, width, n, x, width, rows, width, [&](Index r) { return Index{from[r]}; },
              [&](Index r) { return Index{from[r + 1]}; }, [&](Index t) { return value(entries[t]); },
              [&](Index t) { return Index{entry_rows[t]}; });
      std::fill_n(tile, n * rows, Scalar(0));
      for (Index r = 0; r < n; ++r)
        for (int t = from[r]; t < from[r + 1]; ++t) tile[r * rows + entry_rows[t]] = value(entries[t]);
      kernels::add_product_nn(g, width, tile, rows, x, width, n, rows, width);
    };
    add(g_enc, in, input.data(), 0, count, [&](int e) { return path.dz[static_cast<std::size_t>(e)]; });
    if (path.cotangent == nullptr) return;
    path.each_level(first, count, step.latents(), [&](Index level, Index i, Index n) {
      add(g_dec + i * out, out, path.cotangent->row(level * rows), i, n, [&](int e) { return path.entries.codes.value(e); });
    });
    return;
  }
  for (Index i = 0; i < count; ++i) {
    const int from = offsets[first + i], n = offsets[first + i + 1] - from;
    kernels::add_weighted_rows(
        g_enc + i * in, in, n, [&](Index t) { return path.dz[static_cast<std::size_t>(entries[from + t])]; },
        [&](Index t) { return input.row(path.input_row(entries[from + t], entry_rows[from + t])); });
    if (path.cotangent == nullptr) continue;
    const bool own_rows = !path.cotangent_rows.empty();
    const Index of_level = path.level(first + i, step.latents()).first * rows;
    kernels::add_weighted_rows(
        g_dec + i * out, out, n, [&](Index t) { return path.entries.codes.value(entries[from + t]); },
        [&](Index t) {
          return path.cotangent->row(own_rows ? path.cotangent_rows[static_cast<std::size_t>(entries[from + t])]
                                              : of_level + entry_rows[from + t]);
        });
  }
}

/// Sums a path over its own latents at once, where several are better than one: in a block of `visit_latent_gradients` there may be few.
template <class Step>
void sum_own_latents(Step& step, Path<typename Step::Scalar>& path, Threads& threads) {
  const auto own = static_cast<Index>(path.own_latents.size());
  const Index entries = path.entries.size(), cells = own * step.rows();
  path.is_summed = own > 0 && sums_by<typename Step::Scalar>(entries, cells) != SumsBy::entries;
  if (!path.is_summed) return;
  path.own_encoder_gradient.resize(own, step.input_width());
  path.own_decoder_gradient.resize(own, step.output_width());
  path.own_bias_gradient.resize(1, own);
  threads.for_blocks(own, gradient_block_latents, [&](Index begin, Index end, Index) {
    add_path_gradient(step, path, begin, end - begin, path.own_encoder_gradient.row(begin),
                      path.own_decoder_gradient.row(begin), path.own_bias_gradient.data() + begin, step.scratch);
  });
}

/// The terms and, where step.wants_gradient, the way back down to dL/dz of every entry; after `run_forward`.
template <class Model, class Scalar, class Terms, class Stored>
void run_backward(const Model& model, const Terms& objective,
                  Workspace<typename Model::Activation, Scalar, Terms, Stored>& workspace, Threads& threads,
                  typename Model::Parameters::Gradients* activation_gradient = nullptr,
                  const OuterLoss<Scalar>* outer = nullptr) {
  auto& step = workspace.step;
  const auto& parameters = model.parameters();
  const auto& activation = model.activation();
  auto& main = step.main;
  auto& band = step.band;
  check_dead(model, step);
  typename Model::Parameters::Gradients none;
  if (step.wants_gradient && activation_gradient == nullptr) {
    none.activation = parameters.activation;
    resize_own(none.activation, parameters.latents(), parameters.width());
    activation_gradient = &none;
  }
  step.activation_gradient = activation_gradient == nullptr ? nullptr : &activation_gradient->activation;

  main.df.assign(static_cast<std::size_t>(main.entries.size()), Scalar(0));
  main.dz.assign(main.df.size(), Scalar(0));
  band.df.assign(static_cast<std::size_t>(band.entries.size()), Scalar(0));
  band.dz.assign(band.df.size(), Scalar(0));
  if (outer != nullptr) {
    const Index rows = step.rows(), width = step.output_width();
    const RowsView<Scalar>& gradient = outer->gradient;
    if (gradient.rows != rows || gradient.cols != width)
      throw_shape("dL/dx' is [", gradient.rows, " x ", gradient.cols, "], the reconstruction is [", rows, " x ", width, "]");
    const double own = outer->alone ? 0.0 : outer->reconstruction_weight;
    step.loss.total *= own;
    const bool normalised = input_normalisation_of(model) != InputNormalisation::none;  // then x' = spread u' + offset
    const auto add = [&](Tensor<Scalar>& cotangent) {
      for (Index b = 0; b < cotangent.rows(); ++b) {
        const Scalar* const g = gradient.row(b % rows);
        const Scalar spread = normalised ? step.row_scales.spread[static_cast<std::size_t>(b % rows)] : Scalar(1);
        for (Index j = 0; j < width; ++j)
          cotangent.row(b)[j] = outer->alone ? spread * g[j] : static_cast<Scalar>(own) * cotangent.row(b)[j] + spread * g[j];
      }
    };
    add(step.cotangent);
    if (step.has_levels) add(step.level_cotangent);
  }
  if (outer == nullptr || !outer->alone)
    objective.for_each_term(workspace.selections, [&](const auto& term, auto& selection) {
      const double part = term.apply(step, selection, threads);
      step.loss.terms.emplace_back(std::string_view(term.name), part);
      step.loss.total += part;
    });
  if (!step.wants_gradient) return;

  add_code_gradient(main.entries.codes, *main.cotangent, parameters.W_dec, main.df, step.scratch, threads, &main);
  if (band.entries.size() > 0)
    add_code_gradient(band.entries.codes, band.level_ends.empty() ? step.cotangent : step.level_cotangent, parameters.W_dec,
                      band.df, step.scratch, threads, &band);
  bool pursued = false;
  if constexpr (requires { activation.pursue_backward(step, threads); }) pursued = activation.pursue_backward(step, threads);
  if (!pursued)
    activation.backward(Backward<Scalar>{main.entries, main.df, main.dz, band.entries, band.df, band.dz, step.dgate},
                        parameters.activation, *step.activation_gradient);
  regroup(main);
  regroup(band);
  for (std::size_t p = 0; p < step.extra_used; ++p) {
    auto& path = *step.extra[p];
    regroup(path);
    sum_own_latents(step, path, threads);
  }
}

/// Forward and, where step.wants_gradient, backward. `between` runs when the codes are known and the terms are not yet evaluated (a
/// trainer counts firing latents there).
template <class Model, class Scalar, class Terms, class Stored, class Between>
void run_step(const Model& model, const StepRows<Scalar>& rows_of, const Terms& objective,
              Workspace<typename Model::Activation, Scalar, Terms, Stored>& workspace, Threads& threads, const Between& between,
              typename Model::Parameters::Gradients* activation_gradient = nullptr, const OuterLoss<Scalar>* outer = nullptr) {
  run_forward(model, rows_of, objective, workspace, threads, outer == nullptr || !outer->alone);
  between(workspace.step);
  run_backward(model, objective, workspace, threads, activation_gradient, outer);
}

/// Adds the share of a path with own latents to the gradient of the latents first .. first + count - 1.
template <class Step>
void add_own_gradient(const Step& step, const Path<typename Step::Scalar>& path, Index first, Index count,
                      typename Step::Scalar* g_enc, typename Step::Scalar* g_dec, typename Step::Scalar* g_bias,
                      ScratchPool<typename Step::Scalar>& scratch) {
  using Scalar = typename Step::Scalar;
  const Index in = step.input_width(), out = step.output_width();
  const auto [begin, end] = path.names(first, first + count);
  for (Index n = begin; n < end; ++n) {
    const Index i = path.latent(n) - first;
    if (!path.is_summed) {
      add_path_gradient(step, path, n, 1, g_enc + i * in, g_dec + i * out, g_bias + i, scratch);
      continue;
    }
    g_bias[i] += path.own_bias_gradient[n];
    kernels::add_scaled(g_enc + i * in, Scalar(1), path.own_encoder_gradient.row(n), in);
    kernels::add_scaled(g_dec + i * out, Scalar(1), path.own_decoder_gradient.row(n), out);
  }
}

/// Adds the share of a path with `row_bits` to the gradient of the latents first .. first + count - 1.
template <class Step>
void add_row_bits(const Step& step, const Path<typename Step::Scalar>& path, Index first, Index count,
                  typename Step::Scalar* g_enc, typename Step::Scalar* g_bias) {
  using Scalar = typename Step::Scalar;
  struct Room {
    std::vector<int> rows;
    std::vector<Scalar> values;
    std::vector<Index> ends;
  };
  thread_local Room room;
  const auto [begin, end] = path.names(first, first + count);
  if (begin == end) return;
  const Index in = step.input_width(), words = path.words_of_row();
  room.rows.clear();
  room.values.clear();
  room.ends.assign(1, 0);
  for (Index i = 0, n = begin; i < count; ++i) {
    if (n < end && path.latent(n) == first + i) {
      const std::uint64_t* word = path.row_bits.data() + n / 64;
      for (Index b = 0; b < step.rows(); ++b, word += words)
        if ((*word >> n % 64 & 1) != 0) room.rows.push_back(static_cast<int>(b));
      const Scalar dz = path.dz[static_cast<std::size_t>(n)];
      g_bias[i] += dz * static_cast<Scalar>(static_cast<Index>(room.rows.size()) - room.ends.back());
      room.values.resize(room.rows.size(), dz);
      ++n;
    }
    room.ends.push_back(static_cast<Index>(room.rows.size()));
  }
  const auto value = [&](Index t) { return room.values[static_cast<std::size_t>(t)]; };
  const auto row = [&](Index t) { return Index{room.rows[static_cast<std::size_t>(t)]}; };
  if constexpr (std::is_same_v<Scalar, float>) {
    kernels::add_crowded_product(
        g_enc, in, count, step.input.data(), in, step.rows(), in,
        [&](Index i) { return room.ends[static_cast<std::size_t>(i)]; },
        [&](Index i) { return room.ends[static_cast<std::size_t>(i) + 1]; }, value, row);
  } else {
    for (Index i = 0; i < count; ++i) {
      const Index from = room.ends[static_cast<std::size_t>(i)];
      kernels::add_weighted_rows(
          g_enc + i * in, in, room.ends[static_cast<std::size_t>(i) + 1] - from, [&](Index t) { return value(from + t); },
          [&](Index t) { return step.input.row(row(from + t)); });
    }
  }
}

/// Calls visit(latent, dL/dW_enc[i] [D_in], sum_b dz[b,i], dL/dW_dec[i] [D_out]) for the latents of one block, in order; the two
/// rows may be overwritten. Where encoder and decoder are tied, the first is null and the last holds both. The decoder of the step
/// must not have changed since the forward for latents not yet visited.
template <class Step, class Visit>
void visit_latent_gradients(Step& step, Index first, Index last, const Visit& visit) {
  using Scalar = typename Step::Scalar;
  const Index in = step.input_width(), out = step.output_width();
  WideRows<Scalar, typename Step::Stored> wide(step.scratch, out);
  const bool tied = step.encoder == step.decoder;
  const auto each_path = [&](const auto& f) {
    f(step.main);
    if (step.band.entries.size() > 0) f(step.band);
    for (std::size_t p = 0; p < step.extra_used; ++p) f(*step.extra[p]);
  };
  bool together = false;
  each_path([&](const Path<Scalar>& path) {
    const auto& offsets = path.by_latent.offsets;
    if (!path.block_entries.empty()) {
      together = true;
      return;
    }
    if (!path.row_bits.empty()) {
      constexpr Index several = 8;
      const auto [begin, end] = path.names(first, last);
      together = together || end - begin >= several;
    }
    if (!path.row_bits.empty() || !path.own_latents.empty()) return;
    const int entries = offsets[static_cast<std::size_t>(last)] - offsets[static_cast<std::size_t>(first)];
    together = together || sums_by<Scalar>(entries, (last - first) * step.rows()) != SumsBy::entries;
  });
  // One latent at a time keeps the two rows in the first-level cache; a dense block wants a matrix.
  const Index group = together ? last - first : 1;
  auto loan = step.scratch.borrow(group * (in + out + 1));
  Scalar *const g_enc = loan.data(), *const g_dec = g_enc + group * in, *const g_bias = g_dec + group * out;
  for (Index from = first; from < last; from += group) {
    std::fill_n(g_enc, group * (in + out + 1), Scalar(0));
    each_path([&](const Path<Scalar>& path) {
      if (!path.row_bits.empty()) return add_row_bits(step, path, from, group, g_enc, g_bias);
      const auto add = !path.block_entries.empty() ? add_block_gradient<Step>
                       : path.own_latents.empty()  ? add_path_gradient<Step>
                                                   : add_own_gradient<Step>;
      add(step, path, from, group, g_enc, g_dec, g_bias, step.scratch);
    });
    for (Index i = from; i < from + group; ++i) {
      Scalar* const d_enc = g_enc + (i - from) * in;
      Scalar* const d_dec = g_dec + (i - from) * out;
      if (!step.decoder_norm_gradient.empty())
        add_decoder_norm_gradient(step.decoder_norm_gradient[static_cast<std::size_t>(i)], wide(step.decoder->row(i), out), out,
                                  step.sites, d_dec);
      if (tied) kernels::add_scaled(d_dec, Scalar(1), d_enc, in);
      visit(i, tied ? nullptr : d_enc, g_bias[i - from], d_dec);
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

/// Gradients of what all latents share, b_dec and W_skip; `read` holds sum_i (sum_b dz[b,i]) W_enc[i] in its rows [n x D_in], and is
/// used where the model subtracts b_dec from its input (c = 1):
///   dL/db_dec = sum_b G_b - c sum_i (sum_b dz[b,i]) W_enc[i]          dL/dW_skip = G^T x
/// and what terms add to either. A W_skip of fewer rows than D_out learns from the first columns of G (see load_decoder_bias).
template <class Step, class Parameters>
void shared_gradients(Step& step, const Tensor<typename Step::Scalar>* read, Parameters& gradient, Threads& threads) {
  using Scalar = typename Step::Scalar;
  gradient.b_dec.set_zero();
  if (step.decoder_bias != &step.no_bias) add_column_sums(step.cotangent, gradient.b_dec.data(), step.column_sums, threads);
  for (std::size_t j = 0; j < step.own_decoder_bias_gradient.size(); ++j)
    gradient.b_dec[static_cast<Index>(j)] += step.own_decoder_bias_gradient[j];
  if (read != nullptr)
    for (Index k = 0; k < read->rows(); ++k) kernels::add_scaled(gradient.b_dec.data(), Scalar(-1), read->row(k), read->cols());
  if (gradient.W_skip.size() == 0) return;
  const Index out = gradient.W_skip.rows(), in = step.input_width(), rows = step.rows();
  Tensor<Scalar>& transposed = step.transposed;
  if (transposed.rows() != out || transposed.cols() != rows) transposed.resize(out, rows);
  transposed.map() = step.cotangent.map().leftCols(out).transpose();
  for (const auto* further : step.skip_cotangents) transposed.map() += further->map().leftCols(out).transpose();
  gradient.W_skip.set_zero();
  threads.for_blocks(out, 64, [&](Index begin, Index end, Index) {
    kernels::add_product_nn(gradient.W_skip.row(begin), in, transposed.row(begin), rows, step.raw.data, step.raw.stride,
                            end - begin, rows, in);
  });
}

/// All gradients, materialised (2 F D numbers): what `gradient` returns and what clipping needs. `gradient` has the model's shapes.
template <class Model, class Step>
void materialise_gradient(const Model& model, Step& step, typename Model::Parameters::Gradients& gradient, Threads& threads) {
  using Scalar = typename Step::Scalar;
  using Stored = typename Step::Stored;
  const Index in = step.input_width(), out = step.output_width(), latents = step.latents();
  const bool subtracts = model.subtracts_decoder_bias(), has_bias = gradient.b_enc.size() > 0;
  const Tensor<Stored>& encoder = *step.encoder;
  const Index size = gradient_block(step), blocks = (latents + size - 1) / size;
  Tensor<Scalar>& read = step.read_sums;
  if (subtracts) read.resize(blocks, in);
  threads.for_blocks(latents, size, [&](Index begin, Index end, Index block) {
    WideRows<Scalar, Stored> wide(step.scratch, in);
    visit_latent_gradients(step, begin, end, [&](Index i, Scalar* g_enc, Scalar g_bias, Scalar* g_dec) {
      if (g_enc != nullptr) std::copy_n(g_enc, in, gradient.W_enc.row(i));
      std::copy_n(g_dec, out, gradient.W_dec.row(i));
      if (has_bias) gradient.b_enc[i] = g_bias;
      if (subtracts) kernels::add_scaled(read.row(block), g_bias, wide(encoder.row(i), in), in);
    });
  });
  shared_gradients(step, subtracts ? &read : nullptr, gradient, threads);
}

}  // namespace sae::inline SAE_ABI::detail
