// Ten training steps of dictionary_learning's JumpReLU, gone again by our Trainer in double as its recipe says. Two defects of the peer are reproduced
// by types of this file, and what ours gives stands beside them.
#include <cmath>

#include "gradient_check.hpp"
#include "peer_replay.hpp"

using namespace sae_test;

namespace {

/// JumpReLU whose thresholds may go below 0, where negative codes pass: the peer's training forward has no relu.
struct RawJumpReLU : sae::JumpReLU {
  template <class Scalar>
  struct Parameters : sae::JumpReLU::Parameters<Scalar> {
    void constrain() {}
  };
};

/// coefficient s(t) (mean_b L0_b / T - 1)^2 with L0_b = sum_i 1[f > theta_i] and its window |f - theta_i| < epsilon / 2 at the code f
/// instead of z: of the window below theta > 0 nothing is left, as f = 0 there (the peer's issue 55).
struct L0OfCodes {
  double coefficient = 1, target = 1, bandwidth = 1;
  static constexpr std::string_view name = "l0_of_codes";
  void check(Index, Index) const {}
  bool needs_decoder_norms() const { return false; }
  template <class Step>
  double apply(Step& step, sae::NoSelection&, sae::Threads&) const {
    const auto rows = static_cast<double>(step.rows());
    const Dense f = step.main.entries.codes.dense();
    const auto& theta = step.activation->threshold;
    Dense window = Dense::Zero(1, f.cols());
    double count = 0;
    for (Index b = 0; b < f.rows(); ++b)
      for (Index i = 0; i < f.cols(); ++i) {
        count += f(b, i) > theta[i] ? 1 : 0;
        window(0, i) += std::abs(f(b, i) - theta[i]) < bandwidth / 2 ? 1 : 0;
      }
    const double scale = coefficient * step.sparsity_scale, excess = count / rows / target - 1;
    if (step.wants_gradient)
      for (Index i = 0; i < f.cols(); ++i)
        step.activation_gradient->threshold[i] -= scale * 2 * excess / target / (rows * bandwidth) * window(0, i);
    return scale * excess * excess;
  }
};

const RawJumpReLU activation{{.bandwidth = 0.3}};
constexpr sae::ModelOptions raw_input{.subtract_decoder_bias = false};

}  // namespace

TEST_CASE("ten steps of dictionary_learning: JumpReLU, its half window and its raw thresholds", "[training][peers]") {
  auto config = peer_recipe("dictionary_learning", {.activation = "jumprelu"}).config;
  const sae::Objective objective{L0OfCodes{.coefficient = 2, .target = 6, .bandwidth = 0.3}};
  const auto nothing = [](const auto&, const auto&) {};
  replay("dl_jumprelu_constant", saelens, activation, config, objective, nothing, raw_input);
  config.sparsity_warmup = 3;
  replay("dl_jumprelu", saelens, activation, config, objective, nothing, raw_input);
}

TEST_CASE("dictionary_learning's JumpReLU sees half of the window, ours the whole", "[training][peers]") {
  const PeerRun run("dl_jumprelu_constant");
  PeerModel<RawJumpReLU> model(run.d_in, run.latents, activation, raw_input);
  load_peer(run, saelens, "init", model.parameters());
  const Dense x = run.x.topRows(run.rows), z = model.pre_activations(x), f = model.encode_dense(x);
  const auto& theta = model.parameters().activation.threshold;
  const auto rows = static_cast<double>(run.rows);
  const Dense df = 2 / rows * (model.reconstruct(x) - x) * model.W_dec().transpose();
  double count = 0;
  Index above = 0, below = 0;
  for (Index i = 0; i < z.size(); ++i) count += z.data()[i] > theta[i % z.cols()] ? 1 : 0;
  const double slope = 2 * 2 / 6.0 * (count / rows / 6 - 1) / rows;
  Dense want = Dense::Zero(1, z.cols());
  for (Index b = 0; b < z.rows(); ++b)
    for (Index i = 0; i < z.cols(); ++i) {
      if (!(std::abs(z(b, i) - theta[i]) < 0.15)) continue;
      ++(z(b, i) > theta[i] ? above : below);
      want(0, i) -= (theta[i] * df(b, i) + slope) / 0.3;
    }
  REQUIRE(above > 5);
  REQUIRE(below > 5);
  const auto got =
      model.gradient(x, sae::Objective{sae::L0Penalty{.coefficient = 2, .form = sae::L0Form::target, .target = 6}});
  CHECK(relative_error(got.parameters.activation.threshold.map(), want) <= 1e-12);
  CHECK(relative_error(run.tensor("grad", "threshold", false).map(), want) > 1e-3);
}
