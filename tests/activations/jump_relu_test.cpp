// JumpReLU and the terms that go with it, against their written definitions in dense matrices.
#include <sae/activations/jump_relu.hpp>
#include <sae/data/indexed_source.hpp>
#include <sae/models/sparse_autoencoder.hpp>
#include <sae/training/l0_penalty.hpp>
#include <sae/training/pre_activation_loss.hpp>
#include <sae/training/tanh_penalty.hpp>
#include <sae/training/trainer.hpp>

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "catch_compat.hpp"
#include "gradient_check.hpp"

namespace {

using sae::Index;
using sae_test::Dense;
using sae_test::random_rows;
using sae_test::relative_error;
using Model = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::JumpReLU, double>;

constexpr Index width = 6, latents = 70, rows = 11;

Model some_model(sae::JumpReLU config, bool subtract) {
  Model model(width, latents, config, {.subtract_decoder_bias = subtract});
  sae_test::randomise(model, 5, 0.1);
  sae::Random random(6);
  for (Index i = 0; i < latents; ++i) model.parameters().activation.threshold[i] = random.uniform(0.05, 0.4);
  return model;
}

// What the objective below weighs; 0: without the term.
struct Weights {
  double l0 = 0, tanh = 0, pre_activation = 0;
  sae::L0Form form = sae::L0Form::linear;
  bool dead_only = true;
};
constexpr double target = 9, tanh_scale = 1.5, warmup = 0.7;

struct Expected {
  double loss = 0;
  Dense W_enc, b_enc, W_dec, b_dec, theta;
};

// The formulas of the three headers, entry by entry, with nothing sparse.
Expected by_definition(const Model& model, const Dense& x, const Weights& w, const std::vector<std::uint8_t>& dead) {
  const Dense W_enc = model.W_enc(), W_dec = model.W_dec();
  const Dense theta = model.parameters().activation.threshold.map();
  const double epsilon = model.activation().bandwidth, B = static_cast<double>(x.rows());
  const Dense u = model.subtracts_decoder_bias() ? Dense(x.rowwise() - model.b_dec().row(0)) : x;
  const Dense z = (u * W_enc.transpose()).rowwise() + model.b_enc().row(0);
  const Dense n = W_dec.rowwise().norm().transpose();
  Dense H = Dense::Zero(z.rows(), z.cols()), K = H, Q = H;
  for (Index b = 0; b < z.rows(); ++b)
    for (Index i = 0; i < z.cols(); ++i) {
      H(b, i) = z(b, i) > theta(0, i) ? 1 : 0;
      K(b, i) = std::abs(z(b, i) - theta(0, i)) < epsilon / 2 ? 1 : 0;
      Q(b, i) = z(b, i) < theta(0, i) && (!w.dead_only || dead[static_cast<std::size_t>(i)] != 0) ? 1 : 0;
    }
  const Dense f = z.cwiseProduct(H);
  const Dense e = ((f * W_dec).rowwise() + model.b_dec().row(0)) - x;
  const Dense G = 2 / B * e;

  Expected out;
  out.loss = e.squaredNorm() / B;
  Dense df = G * W_dec.transpose(), dn = Dense::Zero(1, latents), gate = Dense::Zero(x.rows(), 1);
  const double mean_l0 = H.sum() / B;
  for (Index b = 0; b < z.rows(); ++b) {
    const double l0 = H.row(b).sum(), c = w.l0 * warmup;
    switch (w.form) {
      case sae::L0Form::linear:
        out.loss += c / B * l0;
        gate(b, 0) = c / B;
        break;
      case sae::L0Form::quadratic:
        out.loss += c / B * 2 / target * (l0 - target) * (l0 - target);
        gate(b, 0) = c / B * 4 / target * (l0 - target);
        break;
      case sae::L0Form::target:
        out.loss += c / B * (mean_l0 / target - 1) * (mean_l0 / target - 1);
        gate(b, 0) = c / B * 2 / target * (mean_l0 / target - 1);
        break;
    }
    for (Index i = 0; i < latents; ++i) {
      const double t = std::tanh(tanh_scale * f(b, i) * n(0, i)), slope = w.tanh * warmup / B * tanh_scale * (1 - t * t);
      out.loss += w.tanh * warmup / B * t;
      df(b, i) += slope * n(0, i);
      dn(0, i) += slope * f(b, i);
      const double gap = Q(b, i) * (theta(0, i) - z(b, i));
      out.loss += w.pre_activation / B * gap * n(0, i);
      dn(0, i) += w.pre_activation / B * gap;
    }
  }
  Dense dz = H.cwiseProduct(df);
  out.theta = Dense::Zero(1, latents);
  for (Index b = 0; b < z.rows(); ++b)
    for (Index i = 0; i < latents; ++i) {
      const double through = K(b, i) / epsilon * (theta(0, i) * df(b, i) + gate(b, 0));
      out.theta(0, i) += w.pre_activation / B * Q(b, i) * n(0, i) - through;
      if (model.activation().gradient_to_input) dz(b, i) += through;
      dz(b, i) -= w.pre_activation / B * Q(b, i) * n(0, i);
    }
  out.W_enc = dz.transpose() * u;
  out.b_enc = dz.colwise().sum();
  out.W_dec = f.transpose() * G;
  for (Index i = 0; i < latents; ++i) out.W_dec.row(i) += dn(0, i) / n(0, i) * W_dec.row(i);
  out.b_dec = G.colwise().sum();
  if (model.subtracts_decoder_bias()) out.b_dec -= out.b_enc * W_enc;
  REQUIRE(H.sum() > 20);
  REQUIRE(K.sum() > 20);
  REQUIRE((K - K.cwiseProduct(H)).sum() > 10);  // in a window, and not active
  return out;
}

}  // namespace

TEST_CASE("JumpReLU: what is above its threshold passes as it is", "[activations][jumprelu]") {
  sae::SparseAutoencoder<3, 3, sae::JumpReLU, double> model({.threshold = 0.5});
  model.W_enc().setIdentity();
  CHECK(model.parameters().activation.threshold.map() == Dense::Constant(1, 3, 0.5));
  Dense x(2, 3), want(2, 3);
  x << 0.5, 0.6, -2, 3, 0.4999, std::numeric_limits<double>::quiet_NaN();
  want << 0, 0.6, 0, 3, 0, 0;
  CHECK(model.encode_dense(x.topRows(1)) == want.topRows(1));
  CHECK(model.encode(x.row(1)).size() <= 1);
  model.parameters().activation.threshold[2] = -1;
  model.parameters().activation.constrain();
  CHECK(model.parameters().activation.threshold[2] == 0);
  CHECK(model.parameters().activation.threshold[0] == 0.5);
}

TEST_CASE("JumpReLU: gradients and losses are those of the definitions", "[activations][jumprelu]") {
  const std::vector<Weights> objectives = {{},
                                           {.l0 = 0.4},
                                           {.l0 = 0.4, .form = sae::L0Form::quadratic},
                                           {.l0 = 3, .form = sae::L0Form::target},
                                           {.tanh = 0.6},
                                           {.pre_activation = 0.3},
                                           {.l0 = 0.2, .tanh = 0.3, .pre_activation = 0.1, .dead_only = false}};
  std::vector<std::uint8_t> dead(latents, 0);
  for (const std::size_t i : {3U, 10U, 11U, 40U, 69U}) dead[i] = 1;
  for (const bool subtract : {true, false})
    for (const bool to_input : {false, true})
      for (std::size_t o = 0; o < objectives.size(); ++o) {
        CAPTURE(subtract, to_input, o);
        const Weights& w = objectives[o];
        const Model model = some_model({.bandwidth = 0.3, .gradient_to_input = to_input}, subtract);
        const Dense x = random_rows(rows, width, 1);
        const sae::Objective objective{sae::L0Penalty{w.l0, w.form, target}, sae::TanhPenalty{w.tanh, tanh_scale},
                                       sae::PreActivationLoss{w.pre_activation, w.dead_only}};
        Model::Workspace<std::remove_const_t<decltype(objective)>> workspace;
        workspace.step.sparsity_scale = warmup;
        workspace.step.dead = dead;
        const auto got = model.gradient(x, objective, workspace);
        const Expected want = by_definition(model, x, w, dead);
        CHECK(std::fabs(got.loss.total - want.loss) <= 1e-12 * want.loss);
        CHECK(relative_error(got.parameters.W_enc.map(), want.W_enc) <= 1e-12);
        CHECK(relative_error(got.parameters.b_enc.map(), want.b_enc) <= 1e-12);
        CHECK(relative_error(got.parameters.W_dec.map(), want.W_dec) <= 1e-12);
        CHECK(relative_error(got.parameters.b_dec.map(), want.b_dec) <= 1e-12);
        CHECK(relative_error(got.parameters.activation.threshold.map(), want.theta) <= 1e-12);
      }
}

TEST_CASE("JumpReLU: folding the scale of the rows and the decoder's norms changes nothing", "[activations][jumprelu]") {
  Model model = some_model({.bandwidth = 0.3}, true);
  const Dense x = random_rows(rows, width, 2);
  const Dense before = model.reconstruct(x);
  Model folded = model;
  folded.fold_decoder_norms();
  CHECK(folded.encode(x).size() == model.encode(x).size());
  CHECK(relative_error(folded.reconstruct(x), before) <= 1e-12);
  model.fold_input_scale(0.25);
  CHECK(relative_error(model.reconstruct(4 * x), 4 * before) <= 1e-12);
}

TEST_CASE("JumpReLU trains to the L0 that is asked for, in float, thresholds at least 0", "[activations][jumprelu]") {
  sae::SparseAutoencoder model(8, 64, sae::JumpReLU{.threshold = 0.05, .bandwidth = 0.2});
  const sae::Matrix<float> x = random_rows(2000, 8, 4).cast<float>();
  const double start = static_cast<double>(model.encode(x / 3).size()) / 2000;  // about as the trainer scales them
  sae::MatrixSource<float> source(x);
  sae::Trainer trainer(model, {.steps = 600, .batch = 200, .learning_rate = 3e-3},
                       sae::Objective{sae::L0Penalty{.coefficient = 0.05, .form = sae::L0Form::quadratic, .target = 4}});
  CHECK(trainer.fit(source) == sae::FitStatus::finished);
  const double l0 = static_cast<double>(model.encode(x).size()) / 2000;
  INFO("L0 " << start << " at the start, " << l0 << " at the end");
  CHECK(start > 8);
  CHECK(std::fabs(l0 - 4) < 1);
  CHECK((model.parameters().activation.threshold.map().array() >= 0).all());
}

TEST_CASE("JumpReLU and its terms: settings that cannot be are refused", "[activations][jumprelu]") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const auto& bad : {sae::JumpReLU{.threshold = -0.1}, sae::JumpReLU{.threshold = nan}, sae::JumpReLU{.bandwidth = 0},
                          sae::JumpReLU{.bandwidth = std::numeric_limits<double>::infinity()}})
    CHECK_THROWS_AS(Model(4, 8, bad), sae::ValueError);
  CHECK_THROWS_WITH(Model(4, 8, {.bandwidth = 0}), "JumpReLU: bandwidth = 0 is not in (0, infinity)");
  CHECK_THROWS_WITH(sae::L0Penalty{.coefficient = -1}.check(4, 8), "L0Penalty: coefficient = -1 is not in [0, infinity)");
  CHECK_THROWS_WITH((sae::L0Penalty{.form = sae::L0Form::target}.check(4, 8)), "L0Penalty: target = 0 is not in (0, infinity)");
  CHECK_THROWS_WITH(sae::TanhPenalty{.scale = 0}.check(4, 8), "TanhPenalty: scale = 0 is not in (0, infinity)");
  CHECK_THROWS_WITH(sae::PreActivationLoss{.coefficient = -1}.check(4, 8),
                    "PreActivationLoss: coefficient = -1 is not in [0, infinity)");
}
