#pragma once
#include <sae/core/codes.hpp>

#include <cmath>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace sae::inline SAE_ABI {

enum class DeadUnit { tokens, steps };

/// When a latent counts as dead: it has not been active for `window` tokens (rows), or steps.
struct DeadLatentOptions {
  Index window = 0;  ///< >= 1; 0: the trainer takes min(10 million tokens, a tenth of the run)
  DeadUnit unit = DeadUnit::tokens;
  /// Count this batch before asking who is dead (dictionary_learning), or ask before the forward (SAELens, the default).
  bool after_counting = false;
  /// A latent is active where |f| > least_value, >= 0, in the units of the normalised rows (OpenAI: 1e-3).
  double least_value = 0;

  template <class Visitor>
  void visit_settings(Visitor&& visitor) const {
    visitor("window", window);
    visitor("unit", std::string_view(unit == DeadUnit::steps ? "steps" : "tokens"));
    visitor("after_counting", after_counting);
    visitor("least_value", least_value);
  }
};

namespace detail {
template <class Scalar>
bool is_active(Scalar f, double least_value) {
  return std::abs(static_cast<double>(f)) > least_value;
}
}  // namespace detail

/// Counts for how long each latent has been silent.
class DeadLatents {
 public:
  void reset(Index latents) {
    silent_.assign(static_cast<std::size_t>(latents), 0);
    mask_.assign(static_cast<std::size_t>(latents), 0);
    fired_.assign(static_cast<std::size_t>(latents), 0);
  }
  /// silent[i] += weight for every latent, then 0 where a latent is active (|f| > least_value) in this batch.
  template <class Scalar>
  void count(const Codes<Scalar>& codes, Index weight, double least_value = 0) {
    std::fill(fired_.begin(), fired_.end(), std::uint8_t{0});
    for (Index e = 0; e < codes.size(); ++e)
      if (detail::is_active(codes.value(e), least_value)) fired_[static_cast<std::size_t>(codes.latent(e))] = 1;
    for (std::size_t i = 0; i < silent_.size(); ++i) silent_[i] = fired_[i] != 0 ? 0 : silent_[i] + weight;
  }
  /// Marks who has been silent for at least `window`; returns how many.
  Index mark(Index window) {
    Index dead = 0;
    for (std::size_t i = 0; i < silent_.size(); ++i) {
      mask_[i] = silent_[i] >= window ? 1 : 0;
      dead += mask_[i];
    }
    return dead;
  }
  std::span<const std::uint8_t> mask() const { return mask_; }  ///< [F] as of the last `mark`
  std::vector<std::int64_t>& silent() { return silent_; }       ///< [F] tokens or steps since each latent was last active
  const std::vector<std::int64_t>& silent() const { return silent_; }

 private:
  std::vector<std::int64_t> silent_;
  std::vector<std::uint8_t> mask_, fired_;
};

}  // namespace sae::inline SAE_ABI
