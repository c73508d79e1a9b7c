// An SAE inside somebody's own network. The network here is a small one written by hand; what `sae` needs of yours is a function
// that shows its hidden rows and lets them be changed.
#include <sae/sae.hpp>

#include <cstdio>
#include <functional>

using sae::Index;
using Rows = sae::Matrix<float>;  // [B x width], one input a row

// --- your code -------------------------------------------------------------------------------------------------------------
struct YourNetwork {
  Rows W_in, W_out;  // [16 x 64], [64 x 8]

  explicit YourNetwork(std::uint64_t seed) : W_in(16, 64), W_out(64, 8) {
    sae::Random random(seed);
    for (Index i = 0; i < W_in.size(); ++i) W_in.data()[i] = static_cast<float>(random.normal() / 4);
    for (Index i = 0; i < W_out.size(); ++i) W_out.data()[i] = static_cast<float>(random.normal() / 8);
  }
  // The one thing to add: call `edit` where the activations pass by.
  Rows forward(const Rows& input, const std::function<void(Rows& hidden)>& edit = {}) const {
    Rows hidden = (input * W_in).array().tanh().matrix();
    if (edit) edit(hidden);
    return hidden * W_out;
  }
};

Rows your_inputs(Index rows, std::uint64_t seed) {
  sae::Random random(seed);
  Rows x = Rows::Zero(rows, 16);
  for (Index b = 0; b < rows; ++b)
    for (int spike = 0; spike < 3; ++spike)
      x(b, static_cast<Index>(random.below(16))) = static_cast<float>(2 + random.normal());
  return x;
}

// --- with sae --------------------------------------------------------------------------------------------------------------
int main() {
  const YourNetwork network(1);

  Rows hidden;  // the activations, collected by an edit that changes nothing
  network.forward(your_inputs(20'000, 2), [&](Rows& h) { hidden = h; });

  sae::SparseAutoencoder model(64, 256, sae::TopK{.k = 8});
  sae::Trainer trainer(model, {.tokens = 400'000, .learning_rate = 3e-3, .schedule = {.warmup = 20, .decay = 80}});
  sae::MatrixSource<float> source(hidden);
  trainer.fit(source);

  const Rows test = your_inputs(5'000, 3), answer = network.forward(test);
  const double power = (answer.rowwise() - answer.colwise().mean()).squaredNorm();
  const auto kept = [&](const std::function<void(Rows&)>& edit) {
    return 1 - (network.forward(test, edit) - answer).squaredNorm() / power;
  };
  std::printf("variance of the network's answer that is kept\n");
  std::printf("  hidden rows as they are:        %.4f\n", kept([](Rows&) {}));
  std::printf("  replaced by the reconstruction: %.4f\n", kept([&](Rows& h) { h = model.reconstruct(h); }));
  std::printf("  replaced by zero:               %.4f\n", kept([](Rows& h) { h.setZero(); }));

  // Steer: which output does latent 0 drive, and does pushing it move that output?
  const Rows effect = model.W_dec().row(0) * network.W_out;  // [1 x 8]
  Index output = 0;
  effect.row(0).cwiseAbs().maxCoeff(&output);
  const Rows pushed = network.forward(test, [&](Rows& h) { h.rowwise() += 3 * model.W_dec().row(0); });
  std::printf("latent 0 drives output %ld: pushed by 3, it moves from %.3f to %.3f on average\n", output,
              answer.col(output).mean(), pushed.col(output).mean());
}
