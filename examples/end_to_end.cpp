// End-to-end training: an SAE that is trained on what a network does with its reconstruction. The squared error asks for every
// direction of the hidden rows by its variance; the network may read quiet ones and ignore loud ones. Here it does.
#include <sae/sae.hpp>

#include <cmath>
#include <cstdio>

using sae::Index;
using Rows = sae::Matrix<float>;  // [B x width]

// --- your code: the part of the network behind the hidden rows, forward and backward ---------------------------------------------
struct YourNetwork {
  Rows W_in, W_out;  // [32 x 48], [48 x 10]

  YourNetwork() : W_in(32, 48), W_out(48, 10) {
    sae::Random random(1);
    for (Index i = 0; i < W_in.size(); ++i) W_in.data()[i] = static_cast<float>(random.normal());
    for (Index i = 0; i < W_out.size(); ++i) W_out.data()[i] = static_cast<float>(random.normal() / 3);
    W_in.topRows(16) *= 0.02f;  // the first 16 numbers of a hidden row hardly matter
  }
  Rows log_probabilities(const Rows& hidden) const {
    Rows logits = (hidden * W_in).cwiseMax(0.0f) * W_out;
    for (Index b = 0; b < logits.rows(); ++b) {
      const float largest = logits.row(b).maxCoeff();
      logits.row(b).array() -= largest + std::log((logits.row(b).array() - largest).exp().sum());
    }
    return logits;
  }
  // mean_b KL(p_b || q_b), p the network's answer to the hidden rows, q to what takes their place.
  double kl(const Rows& hidden, const Rows& other) const {
    const Rows log_p = log_probabilities(hidden), log_q = log_probabilities(other);
    return static_cast<double>((log_p.array().exp() * (log_p - log_q).array()).sum()) / static_cast<double>(hidden.rows());
  }
  // d kl / d other: of the logits (q - p) / B, then back through the two layers.
  Rows kl_gradient(const Rows& hidden, const Rows& other) const {
    const Rows p = log_probabilities(hidden).array().exp(), q = log_probabilities(other).array().exp();
    const Rows of_logits = (q - p) / static_cast<float>(hidden.rows());
    const Rows open = ((other * W_in).array() > 0.0f).cast<float>();
    return ((of_logits * W_out.transpose()).array() * open.array()).matrix() * W_in.transpose();
  }
};

// 64 sparse features; 32 of them write loudly into the numbers that hardly matter, 32 quietly into the others.
Rows your_hidden_rows(Index rows, std::uint64_t seed) {
  sae::Random fixed(2), random(seed);
  Rows directions = Rows::Zero(64, 32);
  for (Index i = 0; i < 64; ++i) {
    for (Index j = 0; j < 16; ++j) directions(i, (i < 32 ? 0 : 16) + j) = static_cast<float>(fixed.normal());
    directions.row(i) *= (i < 32 ? 3.0f : 1.0f) / directions.row(i).norm();
  }
  Rows out = Rows::Zero(rows, 32);
  for (Index b = 0; b < rows; ++b)
    for (int n = 0; n < 6; ++n)
      out.row(b) += static_cast<float>(1 + random.uniform()) * directions.row(static_cast<Index>(random.below(64)));
  return out;
}

// --- with sae --------------------------------------------------------------------------------------------------------------------
int main() {
  const YourNetwork network;
  const Rows hidden = your_hidden_rows(20'000, 3), test = your_hidden_rows(4'000, 4);
  constexpr Index batch = 256, steps = 1500;
  const sae::TrainerConfig config{.steps = steps, .batch = batch, .learning_rate = 3e-3, .schedule = {.decay = 300}};

  const auto tell = [&](const char* name, const auto& model) {
    const Rows reconstruction = model.reconstruct(test);
    const double error = (reconstruction - test).squaredNorm();
    const double variance = (test.rowwise() - test.colwise().mean()).squaredNorm();
    std::printf("  %-28s KL %.4f   explained variance %.3f   L0 %.2f\n", name, network.kl(test, reconstruction),
                1 - error / variance, static_cast<double>(model.encode(test).size()) / static_cast<double>(test.rows()));
  };
  std::printf("what the network's answer loses to the reconstruction (KL in nats)\n");

  sae::SparseAutoencoder plain(32, 128, sae::TopK{.k = 4});
  sae::Trainer reconstructing(plain, config);
  sae::MatrixSource<float> source(hidden);
  reconstructing.fit(source);
  tell("reconstruction:", plain);

  // The loss is the KL, and `weight` times the squared error that keeps x' near x.
  const auto train_end_to_end = [&](double weight) {
    sae::SparseAutoencoder model(32, 128, sae::TopK{.k = 4});
    sae::Trainer trainer(model, config);
    sae::MatrixSource<float> rows(hidden);
    trainer.prepare(rows);
    sae::Tensor<float> x(batch, 32);
    for (Index t = 0; t < steps; ++t) {
      sae::fill_batch(rows, x);
      const Rows reconstruction = trainer.forward(x).map();
      trainer.backward(network.kl_gradient(x.map(), reconstruction), weight);
    }
    trainer.finish();
    return model;
  };
  tell("end to end:", train_end_to_end(0));
  tell("end to end + squared error:", train_end_to_end(0.3));
}
