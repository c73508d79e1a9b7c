// A world of 256 features that share 64 dimensions. Does a sparse autoencoder find their directions?
#include <sae/sae.hpp>

#include <iostream>

int main() {
  const sae::SyntheticWorld world({.num_features = 256, .hidden_dim = 64, .firing_probability = sae::ConstantFiring{0.01}});
  sae::SyntheticSource source(world, {.seed = 1}), held_out(world, {.seed = 2});

  sae::SparseAutoencoder<64, 512, sae::TopK> model({.k = 3});
  sae::Trainer trainer(model, {.tokens = 1'000'000, .learning_rate = 3e-3});
  trainer.fit(source, sae::progress_bar(std::cerr));

  const auto report = sae::evaluate(model, held_out, {.rows = 20'000});
  const auto truth = sae::nearest_directions(world.directions.map(), model.W_dec());
  std::cout << "active latents a row:  " << report.l0 << "\n"
            << "explained variance:    " << report.explained_variance << "\n"
            << "features found:        " << truth.found(0.9) << " of 256 (cosine of at least 0.9 with a latent)\n";
}
