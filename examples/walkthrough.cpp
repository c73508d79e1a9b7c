// The method in the order in which one learns it; docs/guide.md tells the story around what this prints.
#include <sae/sae.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

using sae::Index;
using Rows = sae::Matrix<float>;

// A stand-in for the inside of a network: 400 features, few active at a time, written into 100 numbers.
const sae::SyntheticWorld& world() {
  static const sae::SyntheticWorld w(
      {.num_features = 400,
       .hidden_dim = 100,
       .firing_probability = sae::ZipfianFiring{.exponent = 0.5, .max_prob = 0.1, .min_prob = 0.003},
       .std_firing_magnitudes = sae::ConstantMagnitude{0.2},
       .bias = 0.5});
  return w;
}

// The rest of the network: 32 classes, each of which reads one feature.
constexpr Index classes = 32;
Rows logits(const Rows& x) { return 6 * x * world().directions.map().topRows(classes).cast<float>().transpose(); }

// Cross-entropy, in nats a row, of the network's answer on `x` when the truth is what it says on `clean`.
double cross_entropy(const Rows& clean, const Rows& x) {
  const Rows truth = logits(clean), answer = logits(x);
  double sum = 0;
  for (Index b = 0; b < x.rows(); ++b) {
    const auto p = (truth.row(b).array() - truth.row(b).maxCoeff()).exp();
    const float top = answer.row(b).maxCoeff();
    const float log_z = top + std::log((answer.row(b).array() - top).exp().sum());
    sum += ((p / p.sum()) * (log_z - answer.row(b).array())).sum();
  }
  return sum / static_cast<double>(x.rows());
}

// Trains on 300,000 rows. AuxK brings back latents that were not active for 10,000 rows.
template <class Model, class Terms>
Model train(Model model, const Terms& objective, double rate = 4e-3, Index batch = 256) {
  const Index tokens = 300'000, steps = tokens / batch;
  sae::SyntheticSource source(world(), {.seed = 1});
  sae::Trainer trainer(model,
                       {.tokens = tokens,
                        .batch = batch,
                        .learning_rate = rate,
                        .schedule = {.warmup = steps / 20, .decay = steps / 5},
                        .dead = {.window = 10'000}},
                       objective);
  trainer.fit(source);
  return model;
}
auto train_topk(Index k) {
  return train(sae::SparseAutoencoder<100, 512, sae::TopK>({.k = k}), sae::Objective{sae::AuxK{.coefficient = 0.25}});
}

int main() {
  const sae::Matrix<float> directions = world().directions.map().cast<float>();
  sae::SyntheticSource held_out(world(), {.seed = 2});
  sae::Tensor<float> drawn(10'000, 100);
  sae::Codes<float> truth;
  held_out.next(drawn, truth);
  const Rows x = drawn.map();
  std::printf("The world: 400 features in 100 numbers, %.1f of them active in a row\n",
              static_cast<double>(truth.size()) / 10'000);

  std::printf("1. A plain autoencoder: 100 numbers squeezed through 50\n");
  const auto plain = train(sae::SparseAutoencoder<100, 50, sae::ReLU>(), sae::Objective<>{});
  const auto squeezed = sae::evaluate(plain, x);
  std::printf("   explained variance %.3f, %.1f of 50 units active in a row\n", squeezed.explained_variance, squeezed.l0);
  std::printf("   %ld of the world's 400 directions are units (cosine of at least 0.9)\n",
              sae::nearest_directions(directions, plain.W_dec()).found(0.9));

  std::printf("2. A sparse autoencoder: widened to 512 latents, at most 8 active\n");
  const auto model = train_topk(8);
  const auto report = sae::evaluate(model, x);
  std::printf("   explained variance %.3f, %.1f of 512 latents active in a row\n", report.explained_variance, report.l0);
  const auto found = sae::nearest_directions(directions, model.W_dec());
  std::printf("   %ld of the world's 400 directions are latents\n", found.found(0.9));
  std::printf("   %ld latents are never active\n", report.dead_latents);

  std::printf("3. Two ways to be sparse: a constraint, or a term of the loss\n");
  const auto relu = train(sae::SparseAutoencoder<100, 512, sae::ReLU>(),
                          sae::Objective{sae::L1{.coefficient = 0.1, .weighted_by_decoder_norm = false}}, 8e-3, 128);
  const auto penalised = sae::evaluate(relu, x);
  std::printf("                 L0   squared error   length of x' against x   directions found\n");
  std::printf("   TopK, AuxK  %4.1f           %.3f                    %.2f                %ld\n", report.l0, report.mse,
              report.l2_ratio, found.found(0.9));
  std::printf("   ReLU, L1    %4.1f           %.3f                    %.2f                %ld\n", penalised.l0, penalised.mse,
              penalised.l2_ratio, sae::nearest_directions(directions, relu.W_dec()).found(0.9));

  std::printf("4. A latent has two directions: it reads along one and writes along the other\n");
  const Index latent = found.nearest[3];
  std::printf("   the latent of feature 3: its decoder direction and the feature's, cosine %.3f\n", found.cosine[3]);
  std::printf("   its encoder and decoder directions: cosine %.2f\n",
              sae::encoder_decoder_cosines(model)[static_cast<std::size_t>(latent)]);
  std::printf("   median of that over all latents: %.2f\n", report.median_encoder_decoder_cosine);

  std::printf("5. The inputs that activate it most\n");
  sae::TopActivations top(model.latents(), 5, {latent});
  top.add(model.encode(x));
  for (const auto& [value, row] : top.top(latent))
    std::printf("   latent %.2f, feature 3 truly %.2f\n", value, static_cast<double>(truth.coefficient(row, 3)));
  std::printf("   it is active in %.1f %% of the rows, the feature in %.1f %%\n", 100 * top.density(latent),
              100 * world().probabilities[3]);

  std::printf("6. An intervention, x + scale * W_dec[i], makes the network answer class 3\n");
  for (const float scale : {0.0F, 0.5F, 1.0F, 2.0F}) {
    const Rows answer = logits(x.rowwise() + scale * model.W_dec().row(latent));
    Index third = 0;
    for (Index b = 0; b < answer.rows(); ++b) {
      Index best = 0;
      answer.row(b).maxCoeff(&best);
      third += best == 3;
    }
    std::printf("   scale %.1f: class 3 in %5.1f %% of the rows\n", static_cast<double>(scale),
                100.0 * static_cast<double>(third) / 10'000);
  }

  std::printf("7. Sparsity against what the network keeps\n");
  const double clean = cross_entropy(x, x);
  const double mean = cross_entropy(x, x.colwise().mean().replicate(x.rows(), 1));
  std::printf("    k    L0   explained variance   loss recovered\n");
  for (const Index k : {1, 2, 4, 8, 16}) {
    const auto m = k == 8 ? model : train_topk(k);
    const double ce = cross_entropy(x, m.reconstruct(x));
    const auto r = sae::evaluate(m, x);
    std::printf("  %2ld  %4.1f                %.3f            %.3f\n", k, r.l0, r.explained_variance,
                sae::loss_recovered(clean, ce, mean));
  }
}
