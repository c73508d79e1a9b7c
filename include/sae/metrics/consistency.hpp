#pragma once
#include <sae/core/codes.hpp>

#include <cstdint>
#include <limits>
#include <vector>

namespace sae::inline SAE_ABI {

/// In how many rows of a window (a prompt) a latent is active, on average over the windows in which it is active at all [F]: 1 for
/// a latent of single tokens, `window_rows` for one that stays on. NaN where a latent is never active.
///
/// \param codes        rows window by window, whole windows
/// \param window_rows  rows of each window, >= 1
/// \throws ValueError  window_rows < 1
/// \throws ShapeError  the last window is not whole
/// An entry of value 0 is not active. Cost: entries + F.
/// Source: SAELens evals.py, `consistent_activation_heuristic`.
template <class Scalar>
std::vector<double> consistent_activation(const Codes<Scalar>& codes, Index window_rows) {
  if (window_rows < 1) throw_value("consistent_activation: window_rows = ", window_rows, " is below 1");
  if (codes.rows() % window_rows != 0)
    throw_shape("consistent_activation: ", codes.rows(), " rows are not whole windows of ", window_rows);
  const auto latents = static_cast<std::size_t>(codes.latents());
  std::vector<std::int64_t> fires(latents, 0), windows(latents, 0);
  std::vector<Index> last(latents, -1);
  for (Index b = 0; b < codes.rows(); ++b)
    for (Index e = codes.begin(b); e < codes.end(b); ++e) {
      if (codes.value(e) == 0) continue;
      const auto i = static_cast<std::size_t>(codes.latent(e));
      const Index window = b / window_rows;
      ++fires[i];
      if (last[i] != window) ++windows[i];
      last[i] = window;
    }
  std::vector<double> out(latents, std::numeric_limits<double>::quiet_NaN());
  for (std::size_t i = 0; i < latents; ++i)
    if (windows[i] > 0) out[i] = static_cast<double>(fires[i]) / static_cast<double>(windows[i]);
  return out;
}

}  // namespace sae::inline SAE_ABI
