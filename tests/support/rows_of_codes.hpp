#pragma once
#include <sae/core/codes.hpp>

namespace sae_test {

/// The codes of rows first .. last - 1, one behind the other.
inline sae::Codes<float> rows_of_codes(const sae::Codes<float>& codes, sae::Index first, sae::Index last) {
  sae::Codes<float> out(codes.latents());
  for (sae::Index b = first; b < last; ++b) {
    for (sae::Index e = codes.begin(b); e < codes.end(b); ++e) out.push(codes.latent(e), codes.value(e));
    out.finish_row();
  }
  return out;
}

}  // namespace sae_test
