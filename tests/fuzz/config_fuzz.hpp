#pragma once
#include <sae/formats/saelens.hpp>

#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>

/// Whatever the text, a cfg.json is refused with a FileError or says sizes that a model can have.
/// \return whether the text was taken
inline bool config_fuzz(std::span<const std::uint8_t> input) {
  const std::string text(input.begin(), input.end());
  try {
    const sae::SaelensConfig config = sae::parse_saelens_config(sae::parse_json(text, "input"), "input");
    constexpr sae::Index most = sae::Index{1} << 30;
    const bool legal = config.d_in >= 1 && config.d_in <= most && config.latents >= 1 && config.latents <= most &&
                       config.d_out >= 0 && config.d_out <= most && config.metadata.context_size >= 0;
    if (!legal) std::abort();
    if (config.architecture == sae::detail::saelens_temporal) {
      const auto settings = sae::detail::temporal_settings(config.json, config.file, config.latents);
      const sae::Index heads = settings.options.heads, k = settings.options.k, wide = settings.query_width;
      if (heads < 1 || wide < 1 || config.latents % wide != 0 || wide % heads != 0 || k < 0 || k > config.latents) std::abort();
    }
  } catch (const sae::FileError&) {
    return false;
  }
  return true;
}
