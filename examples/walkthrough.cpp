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

template <class Model, class Terms>
Model train(Model model, const Terms& objective) {
  sae::SyntheticSource source(world(), {.seed = 1});
  sae::Trainer trainer(model, {.tokens = 400'000, .learning_rate = 4e-3, .schedule = {.warmup = 20, .decay = 80}}, objective);
  trainer.fit(source);
  return model;
}

int main() {
  sae::SyntheticSource held_out(world(), {.seed = 2});
  sae::Tensor<float> drawn(10'000, 100);
  sae::Codes<float> truth;
  held_out.next(drawn, truth);
  const Rows x = drawn.map();

  std::printf("1. A plain autoencoder: 100 numbers squeezed through 50\n");
  const auto plain = train(sae::SparseAutoencoder<100, 50, sae::ReLU>(), sae::Objective<>{});
  const auto squeezed = sae::evaluate(plain, x);
  std::printf("   explained variance %.3f, %.1f of 50 units active: every unit answers to everything\n",
              squeezed.explained_variance, squeezed.l0);

  std::printf("2. A sparse autoencoder: widened to 500, at most 8 active\n");
  const auto model = train(sae::SparseAutoencoder<100, 500, sae::TopK>({.k = 8}), sae::Objective{sae::AuxK{}});
  const auto report = sae::evaluate(model, x);
  std::printf("   explained variance %.3f, L0 %.1f, %ld dead latents\n", report.explained_variance, report.l0,
              report.dead_latents);
  const auto found = sae::nearest_directions(world().directions.map().cast<float>(), model.W_dec());
  std::printf("   %ld of the world's 400 directions are latents (cosine of at least 0.9)\n", found.found(0.9));

  std::printf("3. Its loss: squared error; sparsity is a constraint here and a penalty with ReLU\n");
  const auto relu = train(sae::SparseAutoencoder<100, 500, sae::ReLU>(),
                          sae::Objective{sae::L1{.coefficient = 0.1, .weighted_by_decoder_norm = false}});
  const auto penalised = sae::evaluate(relu, x);
  std::printf(
      "   TopK: squared error %.3f at L0 %.1f; ReLU with L1: %.3f at L0 %.1f, its output %.0f %% of the input's length\n",
      report.mse, report.l0, penalised.mse, penalised.l0, 100 * penalised.l2_ratio);

  std::printf("4. A latent has two directions: it reads along one and writes along the other\n");
  const Index latent = found.nearest[3];
  std::printf("   latent %ld is feature 3: cosine %.3f with its decoder direction\n", latent, found.cosine[3]);
  std::printf("   its encoder and decoder directions: cosine %.2f; median over all latents %.2f\n",
              sae::encoder_decoder_cosines(model)[static_cast<std::size_t>(latent)], report.median_encoder_decoder_cosine);

  std::printf("5. The inputs that activate it most\n");
  const sae::Codes<float> codes = model.encode(x);
  std::vector<std::pair<float, Index>> strongest;
  for (Index b = 0; b < codes.rows(); ++b) strongest.emplace_back(codes.coefficient(b, latent), b);
  std::partial_sort(strongest.begin(), strongest.begin() + 3, strongest.end(), std::greater<>());
  for (int i = 0; i < 3; ++i) {
    const auto [value, row] = strongest[static_cast<std::size_t>(i)];
    std::printf("   row %5ld: latent %.2f, feature 3 truly %.2f\n", row, value, truth.coefficient(row, 3));
  }

  std::printf("6. An intervention: x + scale * W_dec[%ld] makes the network answer class 3\n", latent);
  for (const float scale : {0.0F, 0.5F, 1.0F, 2.0F}) {
    const Rows pushed = x.rowwise() + scale * model.W_dec().row(latent);
    const Rows answer = logits(pushed);
    Index third = 0;
    for (Index b = 0; b < answer.rows(); ++b) {
      Index best = 0;
      answer.row(b).maxCoeff(&best);
      third += best == 3;
    }
    std::printf("   scale %.1f: class 3 in %5.1f %% of the rows\n", scale, 100.0 * static_cast<double>(third) / 10'000);
  }

  std::printf("7. Sparsity against what the network keeps\n");
  const double clean = cross_entropy(x, x);
  const double mean = cross_entropy(x, x.colwise().mean().replicate(x.rows(), 1));
  std::printf("   k    L0   explained variance   loss recovered\n");
  for (const Index k : {1, 2, 4, 8, 16}) {
    const auto m = train(sae::SparseAutoencoder<100, 500, sae::TopK>({.k = k}), sae::Objective{sae::AuxK{}});
    const double ce = cross_entropy(x, m.reconstruct(x));
    const auto r = sae::evaluate(m, x);
    std::printf("  %2ld  %4.1f                %.3f            %.3f\n", k, r.l0, r.explained_variance,
                sae::loss_recovered(clean, ce, mean));
  }
}
