#include <sae/activations/jump_relu.hpp>
#include <sae/activations/relu.hpp>
#include <sae/activations/topk.hpp>
#include <sae/models/sparse_autoencoder.hpp>
#include <sae/training/any_objective.hpp>
#include <sae/training/reanimation.hpp>

#include <vector>

#include "catch_compat.hpp"
#include "gradient_check.hpp"

namespace {

using sae::Index;
using namespace sae_test;
template <class Activation>
using Model = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, Activation, double>;

}  // namespace

TEST_CASE("reanimation by hand", "[training][reanimation]") {
  // Latent 0 reads x_0 + 1: active in both rows. Latents 1 and 2 have z = (-2, -3) and (-6, -8): dead, sum -19.
  Model<sae::ReLU> model(2, 3, {}, {.subtract_decoder_bias = false});
  auto& p = model.parameters();
  p.W_enc.map() << 1, 0, -1, 0, -2, -1;
  p.b_enc.map() << 1, -1, -2;
  Dense x(2, 2);
  x << 1, 2, 2, 2;
  const auto got = model.gradient(x, sae::Objective{sae::Reanimation{.coefficient = 0.5}});
  CHECK(got.loss.terms[0].first == "reanimation");
  CHECK(got.loss.terms[0].second == Approx(0.5 * 19 / 2.000001).epsilon(1e-12));
  const auto plain = model.gradient(x);
  const double force = -0.5 / 2.000001;
  for (const Index i : {1, 2}) {
    CHECK(got.parameters.b_enc[i] == Approx(2 * force).epsilon(1e-12));
    CHECK(got.parameters.W_enc.map()(i, 0) == Approx(3 * force).epsilon(1e-12));
    CHECK(got.parameters.W_enc.map()(i, 1) == Approx(4 * force).epsilon(1e-12));
  }
  CHECK(got.parameters.b_enc[0] == plain.parameters.b_enc[0]);
  CHECK(got.parameters.W_dec == plain.parameters.W_dec);
}

TEST_CASE("gradients of reanimation, the set of silent latents frozen", "[training][reanimation]") {
  const Dense x = random_rows(5, 6, 3);
  const auto check = [&](auto activation, bool subtract, double bias) {
    CAPTURE(subtract, bias);
    Model<decltype(activation)> model(6, 70, activation, {.subtract_decoder_bias = subtract});
    randomise(model, 5, bias);
    const NaiveModel twin = naive(model);
    const Mask active = mask_of(model.encode(x));
    std::vector<Index> silent;
    for (Index i = 0; i < 70; ++i)
      if ((active.col(i).array() == 0).all()) silent.push_back(i);
    REQUIRE(silent.size() > 2);
    REQUIRE(silent.size() < 70);
    const auto loss = [&](const NaiveModel& m) {
      const Dense z = naive_pre_activations(m, x);
      double sum = 0;
      for (Index b = 0; b < x.rows(); ++b)
        for (const Index i : silent) sum += z(b, i);
      return naive_mean_square(naive_decode(m, naive_codes(z, active)) - x) -
             0.3 * sum / (static_cast<double>(silent.size()) + 1e-6);
    };
    for (const int count : {1, 3}) {
      sae::Threads threads(count);
      const auto got = model.gradient(x, sae::AnyObjective{sae::Reanimation{.coefficient = 0.3}}, threads);
      CHECK(got.loss.total == Approx(loss(twin)).epsilon(1e-12));
      check_gradient(twin, got.parameters, loss);
    }
  };
  for (const bool subtract : {true, false}) {
    check(sae::ReLU{}, subtract, -1);
    check(sae::TopK{.k = 4}, subtract, 0);
    check(sae::JumpReLU{.threshold = 0.5}, subtract, -0.5);
  }
}

TEST_CASE("reanimation: all active, none active, settings", "[training][reanimation]") {
  const Dense x = random_rows(5, 6, 3);
  Model<sae::ReLU> model(6, 20);
  randomise(model, 5, 100);
  CHECK(model.loss(x, sae::Objective{sae::Reanimation{}}).terms[0].second == 0);
  randomise(model, 5, -100);
  const auto got = model.gradient(x, sae::Objective{sae::Reanimation{.coefficient = 1}});
  CHECK(got.loss.terms[0].second > 400);
  for (Index i = 0; i < 20; ++i) CHECK(got.parameters.b_enc[i] == Approx(-5 / 20.000001).epsilon(1e-12));
  CHECK_THROWS_WITH(sae::Reanimation{.coefficient = -1}.check(2, 2), "Reanimation: coefficient = -1 is not in [0, infinity)");
}
