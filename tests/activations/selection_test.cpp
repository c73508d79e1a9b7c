// The seam between an activation and the rest, carried by an activation that the library does not have: a gate with a trainable
// threshold and a band.
#include <sae/data/indexed_source.hpp>
#include <sae/models/sparse_autoencoder.hpp>
#include <sae/training/trainer.hpp>

#include <cmath>
#include <string>
#include <vector>

#include "catch_compat.hpp"
#include "gradient_check.hpp"
#include "test_jump_relu.hpp"

namespace {

using sae::Index;
using namespace sae_test;

template <class Activation, class Scalar = double>
using Model = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, Activation, Scalar>;

constexpr Index width = 6, latents = 70;

Model<TestJumpReLU> jump_relu(bool subtract, double bias) {
  Model<TestJumpReLU> model(width, latents, {.threshold = 0.15, .bandwidth = 0.3}, {.subtract_decoder_bias = subtract});
  randomise(model, 5, bias);
  sae::Random random(6);
  for (Index i = 0; i < latents; ++i) model.parameters().activation.threshold[i] = random.uniform(0.05, 0.4);
  return model;
}

// The start of a training that moves a threshold, the same for every thread count.
template <class Activation, class Objective>
Model<Activation, float> trained(Activation activation, Objective objective, double clip, int thread_count) {
  Model<Activation, float> model(8, 200, activation);
  sae::Threads threads(thread_count);
  sae::Trainer trainer(model, {.steps = 10, .batch = 150, .learning_rate = 3e-3, .clip_norm = clip}, objective, threads);
  sae::MatrixSource<float> source(sae::Matrix<float>(random_rows(600, 8, 3).cast<float>()));
  CHECK(trainer.fit(source) == sae::FitStatus::finished);
  return model;
}
template <class Model>
bool same_bytes(const Model& a, const Model& b) {
  bool same = true;
  Model::Parameters::visit([&](std::string_view, const auto& x, const auto& y) { same = same && x == y; }, a.parameters(),
                           b.parameters());
  return same;
}

// What Gated's auxiliary loss needs: a term that reads the activation's own tensors and the decoder's norms, and adds to the
// gradients of both, without a word beforehand.
struct OwnTensors {
  static constexpr std::string_view name = "own_tensors";
  void check(Index, Index) const {}
  bool needs_decoder_norms() const { return false; }
  template <class Step>
  double apply(Step& step, sae::NoSelection&, sae::Threads&) const {
    double value = 0;
    for (Index i = 0; i < step.latents(); ++i) {
      const auto theta = step.activation->threshold[i];
      const auto norm = std::sqrt(sae::kernels::squared_norm(step.decoder->row(i), step.output_width()));
      value += 3 * theta * theta + 0.5 * norm;
      if (!step.wants_gradient) continue;
      step.activation_gradient->threshold[i] += 6 * theta;
      step.norm_gradient()[static_cast<std::size_t>(i)] += 0.5;
    }
    return value;
  }
};

}  // namespace

TEST_CASE("a threshold starts where its config says and is a parameter like any other", "[activations][seam]") {
  Model<TestJumpReLU> model(width, latents, {.threshold = 0.25});
  std::vector<std::string> names;
  sae::for_each_parameter(model, [&](std::string_view name, const auto&) { names.emplace_back(name); });
  CHECK(names == std::vector<std::string>{"W_enc", "b_enc", "W_dec", "b_dec", "threshold"});
  CHECK(model.parameters().activation.threshold.map() == sae::Matrix<double>::Constant(1, latents, 0.25));
  CHECK(Model<TestJumpReLU>::Parameters(width, latents).activation.threshold.map().isZero(0));  // a gradient starts at 0
  CHECK_THROWS_WITH(Model<TestJumpReLU>(2, 3, {.bandwidth = 0}), "TestJumpReLU: bandwidth = 0 is not in (0, infinity)");
}

TEST_CASE("a gate with a threshold: gradients, sparse and dense", "[activations][seam]") {
  for (const bool subtract : {true, false})
    for (const double bias : {-1.6, 0.0}) {
      CAPTURE(subtract, bias);
      auto model = jump_relu(subtract, bias);
      const Dense x = random_rows(11, width, 1);
      const NaiveModel twin = naive(model);
      const auto& theta = model.parameters().activation.threshold;
      const Dense z = naive_pre_activations(twin, x);
      Mask active = Mask::Zero(z.rows(), z.cols()), band = active;
      for (Index b = 0; b < z.rows(); ++b)
        for (Index i = 0; i < z.cols(); ++i) {
          active(b, i) = z(b, i) > theta[i] ? 1 : 0;
          band(b, i) = std::abs(z(b, i) - theta[i]) < 0.15 ? 1 : 0;
        }
      CHECK(mask_of(model.encode(x)) == active);
      const auto loss = [&](const NaiveModel& m) {
        return naive_mean_square(naive_decode(m, naive_codes(naive_pre_activations(m, x), active)) - x);
      };
      Model<TestJumpReLU>::Workspace<sae::Objective<TestL0>> workspace;
      workspace.step.sparsity_scale = 0.5;
      const auto got = model.gradient(x, sae::Objective{TestL0{.coefficient = 0.9}}, workspace);
      check_gradient(twin, got.parameters, loss);  // the penalty is constant but for theta
      const double l0 = active.cast<double>().sum() / 11;
      REQUIRE(got.loss.terms.size() == 1);
      CHECK(got.loss.terms[0].second == Approx(0.5 * 0.9 * l0).epsilon(1e-12));

      // The definition of the straight-through estimator, over all of the band, active or not.
      const Dense cotangent = 2.0 / 11 * (naive_decode(twin, naive_codes(z, active)) - x);
      Dense want = Dense::Zero(1, latents);
      Index inactive_in_band = 0;
      for (Index b = 0; b < z.rows(); ++b)
        for (Index i = 0; i < z.cols(); ++i) {
          if (band(b, i) == 0) continue;
          inactive_in_band += active(b, i) == 0 ? 1 : 0;
          double df = 0;
          for (Index j = 0; j < width; ++j) df += cotangent(b, j) * twin.W_dec(i, j);
          want(0, i) -= theta[i] / 0.3 * df + 0.5 * 0.9 / 11 / 0.3;
        }
      REQUIRE(inactive_in_band > 10);
      CHECK(relative_error(got.parameters.activation.threshold.map(), want) <= 1e-12);
    }
}

TEST_CASE("a term reaches the activation's own tensors and the decoder's norms", "[activations][seam]") {
  const auto model = jump_relu(true, 0.1);
  const Dense x = random_rows(9, width, 5);
  const auto plain = model.gradient(x), with = model.gradient(x, sae::Objective{OwnTensors{}});
  const auto& theta = model.parameters().activation.threshold;
  for (Index i = 0; i < latents; ++i) {
    const double step = with.parameters.activation.threshold[i] - plain.parameters.activation.threshold[i];
    CHECK(std::fabs(step - 6 * theta[i]) <= 1e-12);
    const auto d = model.W_dec().row(i);
    const auto change = with.parameters.W_dec.map().row(i) - plain.parameters.W_dec.map().row(i);
    CHECK((change - 0.5 * d / d.norm()).cwiseAbs().maxCoeff<Eigen::PropagateNaN>() <= 1e-12);
  }
  CHECK(model.loss(x, sae::Objective{OwnTensors{}}).total == with.loss.total);
}

TEST_CASE("the gate's penalties add up, and another batch begins anew", "[activations][seam]") {
  auto model = jump_relu(true, -1);
  const Dense x = random_rows(11, width, 1), few = random_rows(3, width, 2);
  const auto one = model.gradient(x, sae::Objective{TestL0{.coefficient = 0.9}});
  Model<TestJumpReLU>::Workspace<sae::Objective<TestL0, TestL0>> workspace;
  const sae::Objective halves{TestL0{.coefficient = 0.6}, TestL0{.coefficient = 0.3}};
  for (int round = 0; round < 2; ++round) {
    const auto two = model.gradient(x, halves, workspace);
    CHECK(relative_error(two.parameters.activation.threshold.map(), one.parameters.activation.threshold.map()) <= 1e-14);
    CHECK(two.loss.total == Approx(one.loss.total).epsilon(1e-14));
    (void)model.gradient(few, halves, workspace);  // the workspace serves other batches in between
  }
}

TEST_CASE("the folds carry the threshold along", "[activations][seam]") {
  auto model = jump_relu(true, -0.5);
  model.W_dec().row(9).setZero();
  const Dense x = random_rows(50, width, 3);
  const auto before = model.encode(x);
  const Dense reconstruction = model.reconstruct(x);
  auto unit = model;
  unit.fold_decoder_norms();
  CHECK(mask_of(unit.encode(x)) == mask_of(before));
  CHECK(largest_difference(unit.reconstruct(x), reconstruction) <= 1e-13);
  auto scaled = model;
  scaled.fold_input_scale(0.125);
  const Dense raw = 8 * x;
  CHECK(mask_of(scaled.encode(raw)) == mask_of(before));
  CHECK(largest_difference(scaled.reconstruct(raw), 8 * reconstruction) <= 1e-12);
}

TEST_CASE("a threshold trains in one pass and with clipping, the same bytes for any number of threads", "[activations][seam]") {
  const TestJumpReLU activation{.threshold = 0.1, .bandwidth = 0.4};
  const sae::Objective objective{TestL0{.coefficient = 0.05}};
  const auto fused = trained(activation, objective, 0, 1);
  const auto clipped = trained(activation, objective, 0.5, 1);
  const auto unclipped = trained(activation, objective, 1e9, 1);
  for (const auto* model : {&fused, &clipped, &unclipped}) {
    const auto& theta = model->parameters().activation.threshold;
    Index moved = 0;
    for (Index i = 0; i < 200; ++i) moved += std::abs(theta[i] - 0.1f) > 1e-3f ? 1 : 0;
    CHECK(moved > 100);
  }
  CHECK_FALSE(same_bytes(clipped, unclipped));
  Model<TestJumpReLU, float>::Parameters::visit(
      [](std::string_view name, const auto& a, const auto& b) {
        CAPTURE(name);
        CHECK(relative_error(a.map(), b.map()) <= 1e-3);
      },
      unclipped.parameters(), fused.parameters());
  for (const int count : {2, 3}) {
    CHECK(same_bytes(trained(activation, objective, 0, count), fused));
    CHECK(same_bytes(trained(activation, objective, 0.5, count), clipped));
  }
}

TEST_CASE("steps of a threshold by hand", "[activations][seam]") {
  for (const double clip : {0.0, 1e9}) {
    auto model = jump_relu(true, -0.5);
    auto twin = model;
    const Dense rows = random_rows(60, width, 4);
    const sae::Objective objective{TestL0{.coefficient = 0.3}};
    sae::Trainer trainer(model,
                         {.steps = 3,
                          .batch = 20,
                          .learning_rate = 0.01,
                          .clip_norm = clip,
                          .decoder = sae::DecoderNorm::free,
                          .center = sae::Center::none,
                          .normalisation = sae::Normalisation::none},
                         objective);
    Model<TestJumpReLU>::Parameters m(width, latents), v(width, latents);
    for (Index t = 0; t < 3; ++t) {
      trainer.train_step(rows.middleRows(20 * t, 20));
      const auto gradient = twin.gradient(rows.middleRows(20 * t, 20), objective);
      const double steps = static_cast<double>(t + 1);
      Model<TestJumpReLU>::Parameters::visit(
          [&](std::string_view, auto& w, const auto& g, auto& first, auto& second) {
            for (Index i = 0; i < w.size(); ++i) {
              first[i] = 0.9 * first[i] + 0.1 * g[i];
              second[i] = 0.999 * second[i] + 0.001 * g[i] * g[i];
              w[i] -=
                  0.01 * (first[i] / (1 - std::pow(0.9, steps))) / (std::sqrt(second[i] / (1 - std::pow(0.999, steps))) + 1e-8);
            }
          },
          twin.parameters(), gradient.parameters, m, v);
    }
    Model<TestJumpReLU>::Parameters::visit(
        [](std::string_view name, const auto& a, const auto& b) {
          CAPTURE(name);
          CHECK(relative_error(a.map(), b.map()) <= 1e-8);
        },
        model.parameters(), twin.parameters());
  }
}
