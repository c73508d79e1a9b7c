#pragma once
// What tests of resampling share: a small model with latents that never fire, and a resampling by its formulas.
#include <sae/training/trainer.hpp>

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "catch_compat.hpp"
#include "gradient_check.hpp"
#include "parameter_gradient.hpp"

namespace sae_test::resampling {

using sae::Index;
using sae::Resampling;
using sae::ResamplingForm;
using Model = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::ReLU, double>;

constexpr Index width = 6, latents = 40, batch = 20;

inline sae::TrainerConfig config_with(const Resampling& resampling, Index steps) {
  return {.steps = steps,
          .batch = batch,
          .learning_rate = 0.01,
          .center = sae::Center::none,
          .normalisation = sae::Normalisation::none,
          .dead = {.window = 1'000'000},
          .resampling = resampling};
}
// Latents 30 to 39 never fire, 20 to 29 seldom.
inline Model start() {
  Model model(width, latents);
  randomise(model, 5);
  for (Index i = 20; i < latents; ++i) model.parameters().b_enc[i] = i < 30 ? -1.2 : -50;
  return model;
}
inline Dense batch_of(const Dense& rows, Index step) { return rows.middleRows(step * batch, batch); }

// Everything that a trainer keeps, by name.
struct Kept {
  std::map<std::string, Dense> tensors;
  std::map<std::string, std::vector<std::int64_t>> counts;
  void tensor(std::string_view name, const sae::Tensor<double>& t) { tensors[std::string(name)] = t.map(); }
  void integers(std::string_view name, const std::vector<std::int64_t>& values) { counts[std::string(name)] = values; }
  void number(std::string_view, double) {}
  void source(const sae::SourceState&) {}
};
template <class Trainer>
Kept kept_by(Trainer& trainer) {
  Kept out;
  trainer.visit_state(out);
  return out;
}

// What a resampling makes of the parameters, by the formulas: latents read along rows of x and write along rows of y.
template <class Parameters>
void resample_by_hand(Parameters& p, const std::vector<Index>& dead, const std::vector<Index>& alive, const Dense& x,
                      const Dense& y, const std::vector<Index>& drawn, double scale, bool unit_encoder, double decoder_norm) {
  double mean = 0;
  for (const Index i : alive) mean += p.encoder().map().row(i).norm() / static_cast<double>(alive.size());
  for (std::size_t n = 0; n < drawn.size(); ++n) {
    const Index i = dead[n];
    const Dense read = x.row(drawn[n]), write = y.row(drawn[n]);
    p.W_dec.map().row(i) = write * (decoder_norm / write.norm());
    if (!p.tied()) p.W_enc.map().row(i) = read * (scale * mean / (unit_encoder ? read.norm() : 1.0));
    p.b_enc[i] = 0;
  }
}
template <class Parameters>
void check_same(const Parameters& got, const Parameters& want) {
  Parameters::visit(
      [](std::string_view name, const auto& a, const auto& b) {
        CAPTURE(name);
        CHECK(relative_error(a.map(), b.map()) <= 1e-12);
      },
      got, want);
}

}  // namespace sae_test::resampling
