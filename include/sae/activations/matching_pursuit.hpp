#pragma once
#include <sae/activations/selection.hpp>
#include <sae/core/threads.hpp>
#include <sae/kernels/pursuit.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <span>
#include <string_view>
#include <vector>

namespace sae::inline SAE_ABI {

namespace detail {

/// Own state of a pursuit: the residual norm at which it ends, in the units of the rows. Not trained.
template <class Scalar_>
struct PursuitParameters : NoParameters<Scalar_> {
  using Scalar = Scalar_;
  Tensor<double> residual_threshold;  ///< [1 x 1]

  void resize(Index /*latents*/) { residual_threshold.resize(1, 1); }
  template <class Activation>
  void initialize(const Activation& activation) {
    residual_threshold[0] = activation.residual_threshold;
  }
  template <class Visitor, class... Sets>
  static void visit_state(Visitor&& visitor, Sets&... sets) {
    visitor(std::string_view("residual_threshold"), sets.residual_threshold...);
  }
  void rescale(Scalar factor) { residual_threshold[0] *= static_cast<double>(factor); }
};

/// What the seam asks of an activation that selects from tiles; a pursuit never does.
template <class Activation, class Scalar>
class PursuitSelector {
 public:
  using Parameters = typename Activation::template Parameters<Scalar>;
  void begin(const Activation&, const Parameters&, std::span<const Scalar>, Index) {}
  Scalar bound(Index /*row*/) const { return std::numeric_limits<Scalar>::infinity(); }
  void take(Index /*row*/, Index /*first*/, std::span<const Scalar> /*z*/) {}
  static void merge(std::span<PursuitSelector> /*blocks*/) {}
  void emit(Index /*row*/, Entries<Scalar>& /*active*/, Entries<Scalar>& /*band*/) {}
};

inline void check_pursuit(std::string_view name, double residual_threshold) {
  if (!(residual_threshold >= 0 && std::isfinite(residual_threshold)))
    throw_value(name, ": residual_threshold = ", residual_threshold, " is not in [0, infinity)");
}

/// step.main.entries from step.choices: for each row its latents, ascending, each with the sum of its values.
template <class Step>
void gather_choices(Step& step, Index rows, Index latents) {
  using Scalar = typename Step::Scalar;
  step.main.entries.reset(latents);
  step.band.entries.reset(latents);
  auto& sorted = step.choice_order;  // latents and when they were chosen
  for (Index b = 0; b < rows; ++b) {
    const auto& chosen = step.choices[static_cast<std::size_t>(b)];
    sorted.clear();
    for (std::size_t t = 0; t < chosen.size(); ++t) sorted.emplace_back(chosen[t].latent, t);
    std::sort(sorted.begin(), sorted.end());
    for (std::size_t t = 0; t < sorted.size();) {
      const int latent = sorted[t].first;
      Scalar sum = 0;
      for (; t < sorted.size() && sorted[t].first == latent; ++t) sum += chosen[sorted[t].second].value;
      step.main.entries.push(latent, sum, sum);
    }
    step.main.entries.finish_row();
    step.band.entries.finish_row();
  }
}

/// Position of a latent among the entries of a row.
template <class Scalar>
std::size_t entry_of(const Codes<Scalar>& codes, Index row, int latent) {
  const auto row_latents = codes.row_latents(row);
  return static_cast<std::size_t>(codes.begin(row) +
                                  (std::lower_bound(row_latents.begin(), row_latents.end(), latent) - row_latents.begin()));
}

}  // namespace detail

/// Matching pursuit: latents are chosen one after another, each by what the ones before it left over. Encoder and decoder are
/// tied, there is no b_enc.
///
///   r_0 = x - b_dec;   i_t = argmax_i r_{t-1} . d_i,   v_t = r_{t-1} . d_{i_t},   r_t = r_{t-1} - v_t d_{i_t}       d_i = W_dec[i]
///   f[b,i] = sum of v_t over the t with i_t = i
///
/// A row ends before a step whose v_t is not positive, after `max_iterations` steps, and after a step that leaves
/// |r_t| < residual_threshold or, with `stop_on_duplicate_support`, chose a latent that was active already. A model that
/// does not subtract b_dec does not add it either.
///
/// The choices are constants, the values are not: with df = dL/df, going back from rho = 0 behind the last step,
///   gamma_t = df_{i_t} - rho . d_{i_t},   dL/dd_{i_t} += gamma_t r_{t-1} - v_t rho,   rho <- rho + gamma_t d_{i_t},
/// and dL/db_dec -= rho of the first. `fold_input_scale` divides the threshold along with the rows. AuxK needs pre-activations
/// and is refused.
///
/// Train with decoder rows that start at norm 1 (the default); SAELens leaves them free afterwards (DecoderNorm::free).
/// Ties   lower latent first. NaN: a row with NaN selects nothing.
/// Cost   a dense product B x F x D for each step of the rows still running: many times a TopK; where a screen pays (models/matches.hpp) an
///        eighth of it, and the selection is the same. A gradient keeps D numbers for each latent that was chosen.
/// Source Mallat and Zhang 1993, "Matching pursuits with time-frequency dictionaries"; Costa et al. 2025, arXiv:2506.03093;
///        SAELens 6.54 saes/matching_pursuit_sae.py.
struct MatchingPursuit {
  double residual_threshold = 1e-2;  ///< >= 0, in the units of x
  Index max_iterations = 0;          ///< steps a row, >= 0; 0: D
  bool stop_on_duplicate_support = true;

  static constexpr std::string_view name = "matching_pursuit";
  bool encoder_bias() const { return false; }
  bool tied_weights() const { return true; }
  bool shared_decoder_bias() const { return true; }

  template <class Visitor>
  void visit_settings(Visitor&& visitor) const {
    visitor("residual_threshold", residual_threshold);
    visitor("max_iterations", max_iterations);
    visitor("stop_on_duplicate_support", stop_on_duplicate_support);
  }
  void check(Index /*latents*/) const {
    detail::check_pursuit("MatchingPursuit", residual_threshold);
    if (max_iterations < 0) throw_value("MatchingPursuit: max_iterations = ", max_iterations, " is negative; 0 takes D");
  }
  bool needs_decoder_norms() const { return false; }

  template <class Scalar>
  using Parameters = detail::PursuitParameters<Scalar>;
  template <class Scalar>
  using Selector = detail::PursuitSelector<MatchingPursuit, Scalar>;
  template <class Scalar>
  void backward(const Backward<Scalar>&, const Parameters<Scalar>&, Parameters<Scalar>&) const {}

  template <class ModelParameters, class Step>
  bool pursue(const ModelParameters& parameters, Step& step, Threads& threads) const {
    using Scalar = typename Step::Scalar;
    const Index rows = step.input.rows(), width = step.input.cols();
    const double threshold = detail::own_parameters<MatchingPursuit>(parameters.activation)->residual_threshold[0];
    if (static_cast<Index>(step.choices.size()) < rows) step.choices.resize(static_cast<std::size_t>(rows));
    for (auto& row : step.choices) row.clear();
    step.matches.pursue(
        parameters.encoder(), step.input, {.rounds = max_iterations > 0 ? max_iterations : width, .steps_along = true},
        step.weights_stay, step.scratch, threads, [&](Index b, int latent, Scalar* residual) {
          auto& row = step.choices[static_cast<std::size_t>(b)];
          const Scalar* const d = parameters.encoder().row(latent);
          const Scalar v = kernels::dot(residual, d, width);
          if (!(v > Scalar(0))) return Scalar(0);
          const bool again = std::any_of(row.begin(), row.end(), [&](const auto& c) { return c.latent == latent; });
          row.push_back({latent, v});
          kernels::add_scaled(residual, -v, d, width);
          const bool ends = (again && stop_on_duplicate_support) ||
                            std::sqrt(static_cast<double>(kernels::squared_norm(residual, width))) < threshold;
          return ends ? Scalar(0) : v;
        });
    detail::gather_choices(step, rows, parameters.latents());
    return true;
  }

  template <class Step>
  bool pursue_backward(Step& step, Threads& threads) const {
    using Scalar = typename Step::Scalar;
    const auto& codes = step.main.entries.codes;
    const Index width = step.input_width();
    // An entry's dz takes u = x - b_dec for r_{t-1}. What is left, gamma_t (r_{t-1} - u) - v_t rho, is added up for each latent in a path
    // that has them in one row: the entries' own are there for some rows of the batch at a time.
    auto& path = step.add_path();
    step.main.by_latent.build(codes);
    const auto& offsets = step.main.by_latent.offsets;
    path.entries.reset(codes.latents());
    step.latent_places.resize(static_cast<std::size_t>(codes.latents()));
    for (std::size_t i = 0; i + 1 < offsets.size(); ++i) {
      if (offsets[i] == offsets[i + 1]) continue;
      step.latent_places[i] = static_cast<int>(path.cotangent_rows.size());
      path.cotangent_rows.push_back(step.latent_places[i]);
      path.entries.push(static_cast<Index>(i), Scalar(1), Scalar(0));
    }
    path.entries.finish_row();
    path.dz.assign(static_cast<std::size_t>(path.entries.size()), Scalar(0));
    const Index sums = path.entries.size();
    Index most = entries_at_once;  // of one row of the batch there may be more
    for (Index b = 0; b < codes.rows(); ++b) most = std::max(most, codes.end(b) - codes.begin(b));
    Tensor<Scalar>& room = step.matches.lend(std::min(codes.latents(), codes.size()) + most, width);
    std::fill_n(room.data(), sums * width, Scalar(0));
    path.cotangent = &room;
    for (Index first = 0, last = 0; first < codes.rows(); first = last) {
      const Index from = codes.begin(first), rest = sums - from;  // the row of an entry is rest + e
      for (last = first + 1; last < codes.rows() && codes.end(last) - from <= entries_at_once;) ++last;
      threads.for_blocks(last - first, 8, [&](Index begin, Index end, Index) {
        auto loan = step.scratch.borrow(2 * width);
        Scalar *const rho = loan.data(), *const taken = rho + width;  // taken = r_t - u
        for (Index b = first + begin; b < first + end; ++b) {
          const auto& row = step.choices[static_cast<std::size_t>(b)];
          std::fill_n(rho, 2 * width, Scalar(0));
          std::fill_n(room.row(rest + codes.begin(b)), (codes.end(b) - codes.begin(b)) * width, Scalar(0));
          for (const auto& c : row) kernels::add_scaled(taken, -c.value, step.decoder->row(c.latent), width);
          for (auto c = row.rbegin(); c != row.rend(); ++c) {
            const Scalar* const d = step.decoder->row(c->latent);
            const std::size_t e = detail::entry_of(codes, b, c->latent);
            Scalar* const own = room.row(rest + static_cast<Index>(e));
            const Scalar gamma = step.main.df[e] - kernels::dot(rho, d, width);
            kernels::add_scaled(taken, c->value, d, width);
            kernels::add_scaled(own, gamma, taken, width);
            kernels::add_scaled(own, -c->value, rho, width);
            kernels::add_scaled(rho, gamma, d, width);
            step.main.dz[e] += gamma;
          }
        }
      });
      threads.for_blocks(width, 64, [&](Index begin, Index end, Index) {
        for (Index e = from; e < codes.begin(last); ++e)
          kernels::add_scaled(room.row(step.latent_places[static_cast<std::size_t>(codes.latent(e))]) + begin, Scalar(1),
                              room.row(rest + e) + begin, end - begin);
      });
    }
    return true;
  }

 private:
  static constexpr Index entries_at_once = 2048;  ///< of those whose gradients are kept in D numbers each
};

/// Orthogonal matching pursuit: as MatchingPursuit, but after each choice all values are fitted anew.
///
///   S_t = S_{t-1} + {argmax_{i} r_{t-1} . d_i},   f = argmin_f |u - sum_{i in S_t} f_i d_i|^2,   r_t = u - sum f_i d_i        u = x - b_dec
///
/// Codes are the last fit; they may be negative. A row ends with k latents, where no r . d_i is positive (with `by_magnitude`: not 0),
/// where the next latent is there already or depends linearly on those there are (pivot at most 1e-9 |d_i|^2; float: 16 epsilon), and after a fit with
/// |r_t| < residual_threshold. A model that does not subtract b_dec does not add it either.
///
/// The support is a constant, its fit is not: with G = D D^T over the rows d_i of the support, f = G^-1 D u,
///   lambda = G^-1 dL/df,   dL/dd_i += lambda_i r - f_i q,   q = sum_i lambda_i d_i = dL/du,   dL/db_dec -= q,
/// exactly.
///
/// Ties, NaN as MatchingPursuit. Cost: as there, and k^2 D a row. Gram matrices are factorised in float64.
/// Source Pati, Rezaiifar and Krishnaprasad 1993, "Orthogonal matching pursuit".
struct OrthogonalMatchingPursuit {
  Index k = 32;                   ///< latents a row, 1 <= k <= F
  double residual_threshold = 0;  ///< >= 0, in the units of x
  bool by_magnitude = false;      ///< choose by |r . d_i|

  static constexpr std::string_view name = "orthogonal_matching_pursuit";
  bool encoder_bias() const { return false; }
  bool tied_weights() const { return true; }
  bool shared_decoder_bias() const { return true; }

  template <class Visitor>
  void visit_settings(Visitor&& visitor) const {
    visitor("k", k);
    visitor("residual_threshold", residual_threshold);
    visitor("by_magnitude", by_magnitude);
  }
  void check(Index latents) const {
    if (k < 1 || k > latents)
      throw_value("OrthogonalMatchingPursuit: k = ", k, " is not in [1, ", latents, "] (the number of latents)");
    detail::check_pursuit("OrthogonalMatchingPursuit", residual_threshold);
  }
  bool needs_decoder_norms() const { return false; }

  template <class Scalar>
  using Parameters = detail::PursuitParameters<Scalar>;
  template <class Scalar>
  using Selector = detail::PursuitSelector<OrthogonalMatchingPursuit, Scalar>;
  template <class Scalar>
  void backward(const Backward<Scalar>&, const Parameters<Scalar>&, Parameters<Scalar>&) const {}

  template <class ModelParameters, class Step>
  bool pursue(const ModelParameters& parameters, Step& step, Threads& threads) const {
    using Scalar = typename Step::Scalar;
    const Index rows = step.input.rows(), width = step.input.cols();
    const double threshold = detail::own_parameters<OrthogonalMatchingPursuit>(parameters.activation)->residual_threshold[0];
    if (static_cast<Index>(step.choices.size()) < rows) step.choices.resize(static_cast<std::size_t>(rows));
    for (auto& row : step.choices) row.clear();
    if (static_cast<Index>(step.fits.size()) < rows) step.fits.resize(static_cast<std::size_t>(rows));
    for (auto& fit : step.fits) fit.clear();
    step.matches.pursue(parameters.encoder(), step.input, {.rounds = k, .by_magnitude = by_magnitude}, step.weights_stay,
                        step.scratch, threads, [&](Index b, int latent, Scalar* residual) {
                          auto& row = step.choices[static_cast<std::size_t>(b)];
                          kernels::GrowingFit& fit = step.fits[static_cast<std::size_t>(b)];
                          if (std::any_of(row.begin(), row.end(), [&](const auto& c) { return c.latent == latent; }))
                            return false;
                          if (!append(parameters.encoder(), row, latent, fit)) return false;
                          const Scalar* const u = step.input.row(b);
                          fit.along.push_back(static_cast<double>(kernels::dot(u, parameters.encoder().row(latent), width)));
                          row.push_back({latent, Scalar(0)});
                          fit.values = fit.along;
                          fit.gram.solve(fit.values);
                          std::copy_n(u, width, residual);
                          for (std::size_t t = 0; t < row.size(); ++t) {
                            row[t].value = static_cast<Scalar>(fit.values[t]);
                            kernels::add_scaled(residual, -row[t].value, parameters.encoder().row(row[t].latent), width);
                          }
                          return !(std::sqrt(static_cast<double>(kernels::squared_norm(residual, width))) < threshold);
                        });
    detail::gather_choices(step, rows, parameters.latents());
    return true;
  }

  template <class Step>
  bool pursue_backward(Step& step, Threads& threads) const {
    using Scalar = typename Step::Scalar;
    const auto& codes = step.main.entries.codes;
    const Index width = step.input_width();
    auto& path = step.add_path();  // f = -f_i beside q, dz = lambda_i beside r
    path.entries.reset(codes.latents());
    for (Index b = 0; b < codes.rows(); ++b) {
      for (Index e = codes.begin(b); e < codes.end(b); ++e) path.entries.push(codes.latent(e), -codes.value(e), Scalar(0));
      path.entries.finish_row();
    }
    path.dz.assign(static_cast<std::size_t>(codes.size()), Scalar(0));
    path.own_cotangent.resize(codes.rows(), width);
    path.own_input = step.input;
    path.cotangent = &path.own_cotangent;
    path.input = &path.own_input;
    threads.for_blocks(codes.rows(), 32, [&](Index begin, Index end, Index) {
      for (Index b = begin; b < end; ++b) {
        const auto& row = step.choices[static_cast<std::size_t>(b)];
        kernels::GrowingFit& fit = step.fits[static_cast<std::size_t>(b)];
        fit.values.clear();
        for (const auto& c : row) fit.values.push_back(static_cast<double>(step.main.df[detail::entry_of(codes, b, c.latent)]));
        fit.gram.solve(fit.values);
        for (std::size_t t = 0; t < row.size(); ++t) {
          const Scalar* const d = step.decoder->row(row[t].latent);
          const auto lambda = static_cast<Scalar>(fit.values[t]);
          path.dz[detail::entry_of(codes, b, row[t].latent)] = lambda;
          kernels::add_scaled(path.own_cotangent.row(b), lambda, d, width);
          kernels::add_scaled(path.own_input.row(b), -row[t].value, d, width);
        }
      }
    });
    return true;
  }

 private:
  /// Adds a latent to the Gram matrix of those of `row`; false where it depends on them.
  template <class Scalar>
  static bool append(const Tensor<Scalar>& w, const std::vector<Choice<Scalar>>& row, int latent, kernels::GrowingFit& fit) {
    const Index width = w.cols();
    fit.column.clear();
    for (const auto& c : row) fit.column.push_back(static_cast<double>(kernels::dot(w.row(c.latent), w.row(latent), width)));
    return fit.gram.add(fit.column, static_cast<double>(kernels::squared_norm(w.row(latent), width)),
                        std::max(1e-9, 16 * static_cast<double>(std::numeric_limits<Scalar>::epsilon())));
  }
};

}  // namespace sae::inline SAE_ABI
