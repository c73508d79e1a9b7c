#pragma once
#include <sae/report/plot.hpp>

#include <algorithm>
#include <array>
#include <string>
#include <string_view>
#include <utility>

namespace sae::cli {

/// The axis of a figure that tables and logs of the program name, with its unit; of another column, its name.
inline Axis axis_of(std::string_view figure, bool log = false) {
  using Known = std::pair<std::string_view, std::string_view>;
  constexpr std::array known{Known{"l0", "L0 (active latents a row)"},
                             Known{"target_l0", "L0 aimed at (active latents a row)"},
                             Known{"mse", "mean squared error of a row"},
                             Known{"tokens", "rows seen"},
                             Known{"tokens_per_second", "rows a second"},
                             Known{"ce_clean", "cross-entropy of the model (nats a token)"},
                             Known{"ce_sae", "cross-entropy with the SAE (nats a token)"},
                             Known{"kl", "KL from the model (nats a token)"},
                             Known{"loss_recovered_zero", "loss recovered (0: zero ablation, 1: model)"},
                             Known{"loss_recovered_mean", "loss recovered (0: mean ablation, 1: model)"}};
  const auto found = std::find_if(known.begin(), known.end(), [&](const Known& entry) { return entry.first == figure; });
  std::string label(found != known.end() ? found->second : figure);
  if (found == known.end()) std::replace(label.begin(), label.end(), '_', ' ');
  return {.label = std::move(label), .scale = log ? AxisScale::log : AxisScale::linear};
}

}  // namespace sae::cli
