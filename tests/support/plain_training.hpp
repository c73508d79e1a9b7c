// Rows and settings of trainings that can be gone through by hand: no normalisation, no centre, rows in their order.
#pragma once
#include <sae/data/indexed_source.hpp>
#include <sae/training/trainer.hpp>

#include <cstdint>
#include <string_view>

#include "gradient_check.hpp"

namespace plain_training {

using sae::Index;
using namespace sae_test;

template <class Activation, class Scalar = double>
using Model = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, Activation, Scalar>;
using TopKModel = Model<sae::TopK>;

inline constexpr Index width = 6;

// Rows around a mean that is not 0, with norms that are not 1.
inline Dense data(Index rows, std::uint64_t seed = 1) {
  Dense out = random_rows(rows, width, seed, 3);
  for (Index b = 0; b < rows; ++b)
    for (Index j = 0; j < width; ++j) out(b, j) += static_cast<double>(j) - 2;
  return out;
}
inline sae::MatrixSource<double> in_order(const Dense& rows, Index epochs = 0) {
  return sae::MatrixSource<double>(rows, {.shuffle = false, .epochs = epochs});
}
inline sae::TrainerConfig plain(Index steps, Index batch) {
  return {.steps = steps, .batch = batch, .center = sae::Center::none, .normalisation = sae::Normalisation::none};
}
template <class Parameters>
bool same_bytes(const Parameters& a, const Parameters& b) {
  bool same = true;
  Parameters::visit([&](std::string_view, const auto& x, const auto& y) { same = same && x == y; }, a, b);
  return same;
}

}  // namespace plain_training
