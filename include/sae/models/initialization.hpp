#pragma once
#include <sae/core/random.hpp>
#include <sae/kernels/vector.hpp>

#include <cmath>
#include <cstdint>

namespace sae::inline SAE_ABI {

/// Tied start: W_dec rows are random directions (Kaiming-uniform, U(-sqrt(6/D), sqrt(6/D)) each) of norm `decoder_norm`,
/// W_enc = W_dec, biases 0. Latents then read what they write, and b_dec is the trainer's business (mean or median of the data).
/// Source: SAELens saes/sae.py (norm 0.1); norm 1 as in dictionary_learning and OpenAI's code.
struct TiedInitialization {
  double decoder_norm = 1;  ///< > 0
  std::uint64_t seed = 0;

  template <class Parameters>
  void operator()(Parameters& parameters) const {
    using Scalar = typename Parameters::Scalar;
    if (!(decoder_norm > 0)) throw_value("TiedInitialization: decoder_norm = ", decoder_norm, " is not positive");
    const Index width = parameters.width();
    Random random(seed, 0x1417);
    const double bound = std::sqrt(6.0 / static_cast<double>(width));
    for (Index i = 0; i < parameters.latents(); ++i) {
      Scalar* const direction = parameters.W_dec.row(i);
      double norm = 0;
      do {
        norm = 0;
        for (Index j = 0; j < width; ++j) {
          direction[j] = static_cast<Scalar>(random.uniform(-bound, bound));
          norm += static_cast<double>(direction[j]) * static_cast<double>(direction[j]);
        }
      } while (norm == 0);
      kernels::scale(direction, static_cast<Scalar>(decoder_norm / std::sqrt(norm)), width);
    }
    if (!parameters.tied()) parameters.W_enc = parameters.W_dec;
    parameters.b_enc.set_zero();
    parameters.b_dec.set_zero();
  }
};

}  // namespace sae::inline SAE_ABI
