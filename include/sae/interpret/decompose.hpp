#pragma once
#include <sae/core/error.hpp>
#include <sae/core/types.hpp>
#include <sae/kernels/pursuit.hpp>
#include <sae/metrics/dictionary.hpp>
#include <sae/metrics/row_filter.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

namespace sae::inline SAE_ABI {

struct DecomposeOptions {
  Index k = 10;         ///< latents at most, 1 <= k <= F
  Index updates = 200;  ///< steps of the fit after each choice at most, >= 1; it ends earlier where it has converged

  void check(Index latents) const {
    if (k < 1 || k > latents) throw_value("decompose: k = ", k, " is not in [1, ", latents, "] (the number of latents)");
    if (updates < 1) throw_value("decompose: updates = ", updates, " is below 1");
  }
};

/// How far a decomposition had come after one choice.
struct DecompositionStep {
  Index latent = 0;           ///< that was chosen
  double residual_share = 1;  ///< |v - v'|^2 / |v|^2
  double cosine = 0;          ///< of v' with v
};
/// v' = sum of coefficients[n] W_dec[latents[n]].
struct Decomposition {
  std::vector<Index> latents;        ///< in the order in which they were chosen
  std::vector<double> coefficients;  ///< >= 0, in units of the rows as they are
  std::vector<DecompositionStep> steps;
};

/// A direction as a sum of a few latents' directions with positive coefficients: non-negative gradient pursuit. With d_i = W_dec[i] / |W_dec[i]|,
/// from r = v, S = {}, a = 0, for at most k rounds
///
///   S <- S + {argmax_i r . d_i}                                            ends where no r . d_i is above 1e-6 |v|
///   g_i = r . d_i over S,   c = sum g_i d_i,   t = |g|^2 / |c|^2           and several times
///   t <- min(t, least t' at which some a_i + t' g_i = 0),   a <- a + t g,   r <- r - t c,   S loses the i whose a_i is 0
///
/// until an update lowers |r|^2 by less than 1e-13 |v|^2. A step that ends at the boundary, where the published code goes on and clips a at 0,
/// never makes |r| larger. Coefficients are a_i / |W_dec[i]|, so the result does not depend on how long the rows are, and steering by them
/// adds v'.
///
/// \param direction  v [D]
/// \param rows       W_dec [F x D]; a row of zeros, or with NaN, is never chosen
/// Ties: the lower latent. A direction of zeros has no latents and no steps.
/// Cost: F D operations a round, k D an update, one thread; a copy of the rows.
/// \throws ShapeError  D differs. ValueError: a number is not finite; see DecomposeOptions::check.
/// Source: Blumensath and Davies 2008, "Gradient pursuits"; non-negative for SAEs (inference-time optimisation): Smith in Nanda et al. 2024,
///         "Progress update #1 from the GDM mech interp team"; dictionary_learning grad_pursuit.py (one update a round).
inline Decomposition decompose(std::span<const float> direction, const Batch<float>& rows,
                               const DecomposeOptions& options = {}) {
  const Index latents = rows.rows(), width = rows.cols();
  const auto at = [](Index i) { return static_cast<std::size_t>(i); };
  options.check(latents);
  if (static_cast<Index>(direction.size()) != width)
    throw_shape("decompose: a direction of ", direction.size(), " numbers, rows of ", width);
  for (std::size_t j = 0; j < direction.size(); ++j)
    if (!std::isfinite(direction[j])) throw_value("decompose: number ", j, " of the direction is not finite");
  const double norm = row_norm(direction.data(), width);
  Decomposition out;
  if (norm == 0) return out;

  const Tensor<float> units = detail::unit_rows<float>(rows.map());
  const auto unit = [&](Index latent, Index j) { return static_cast<double>(units.row(latent)[j]); };
  std::vector<double> v(at(width)), residual, step(at(width)), gradient;
  for (std::size_t j = 0; j < v.size(); ++j) v[j] = static_cast<double>(direction[j]) / norm;
  residual = v;
  const auto dot = [&](const std::vector<double>& of, Index latent) {
    double sum = 0;
    for (Index j = 0; j < width; ++j) sum += of[at(j)] * unit(latent, j);
    return sum;
  };
  std::vector<double> amounts;  // a, beside out.latents
  Buffer<float> narrow(at(width)), scratch(at(kernels::match_tile + 1));
  for (Index round = 0; round < options.k; ++round) {
    std::transform(residual.begin(), residual.end(), narrow.begin(), [](double r) { return static_cast<float>(r); });
    std::array<int, 1> best{};
    kernels::best_matches(narrow.data(), 1, width, units.data(), latents, false, scratch.data(), std::span<int>(best));
    if (best[0] < 0 || !(dot(residual, best[0]) > 1e-6)) break;
    if (std::find(out.latents.begin(), out.latents.end(), best[0]) == out.latents.end()) {
      out.latents.push_back(best[0]);
      amounts.push_back(0);
    }
    for (Index update = 0; update < options.updates; ++update) {
      gradient.clear();
      std::fill(step.begin(), step.end(), 0.0);
      double squares = 0, length = 0;
      for (const Index latent : out.latents) {
        const double g = gradient.emplace_back(dot(residual, latent));
        squares += g * g;
        for (Index j = 0; j < width; ++j) step[at(j)] += g * unit(latent, j);
      }
      for (const double c : step) length += c * c;
      if (!(length > 0)) break;
      double far = squares / length;
      std::size_t leaves = amounts.size();
      for (std::size_t n = 0; n < amounts.size(); ++n)
        if (amounts[n] + far * gradient[n] < 0) {
          far = -amounts[n] / gradient[n];
          leaves = n;
        }
      for (std::size_t n = 0; n < amounts.size(); ++n) amounts[n] = std::max(amounts[n] + far * gradient[n], 0.0);
      for (std::size_t j = 0; j < residual.size(); ++j) residual[j] -= far * step[j];
      if (leaves < amounts.size()) {
        out.latents.erase(out.latents.begin() + static_cast<std::ptrdiff_t>(leaves));
        amounts.erase(amounts.begin() + static_cast<std::ptrdiff_t>(leaves));
      } else if (far * squares < 1e-13) {
        break;
      }
    }
    double share = 0, along = 0, length = 0;
    for (std::size_t j = 0; j < v.size(); ++j) {
      const double made = v[j] - residual[j];
      share += residual[j] * residual[j];
      along += v[j] * made;
      length += made * made;
    }
    out.steps.push_back({best[0], share, along / std::sqrt(length)});
  }
  for (std::size_t n = 0; n < amounts.size(); ++n)
    out.coefficients.push_back(amounts[n] * norm / row_norm(rows.row(out.latents[n]), width));
  return out;
}

}  // namespace sae::inline SAE_ABI
