#include <sae/activations/relu.hpp>
#include <sae/models/sparse_autoencoder.hpp>

#include <cmath>
#include <limits>

#include "catch_compat.hpp"

using sae::Index;

TEST_CASE("the tied start: random directions of one norm, encoder = decoder, no biases", "[models][initialization]") {
  using Model = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::ReLU, double>;
  const Model model(24, 500, {}, {.initialization = {.decoder_norm = 0.1, .seed = 3}});
  CHECK(model.W_enc() == model.W_dec());
  CHECK(model.b_enc().isZero(0));
  CHECK(model.b_dec().isZero(0));
  for (Index i = 0; i < 500; ++i) REQUIRE(std::abs(model.W_dec().row(i).norm() - 0.1) <= 1e-15);
  // The directions are spread over the sphere: mean near 0, covariance near 0.01 / D on the diagonal.
  const sae::RowVector<double> mean = model.W_dec().colwise().mean();
  CHECK(mean.cwiseAbs().maxCoeff<Eigen::PropagateNaN>() < 5 * 0.1 / std::sqrt(24.0 * 500));
  const sae::Matrix<double> covariance = model.W_dec().transpose() * model.W_dec() / 500.0;
  for (Index i = 0; i < 24; ++i)
    for (Index j = 0; j < 24; ++j)
      REQUIRE(std::abs(covariance(i, j) - (i == j ? 0.01 / 24 : 0.0)) < 6 * 0.01 / 24 / std::sqrt(500.0));
}

TEST_CASE("the tied start with a scale of its own for the encoder", "[models][initialization]") {
  using Model = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::ReLU, double>;
  const Model whole(24, 50, {}, {.initialization = {.seed = 3}});
  const Model model(24, 50, {}, {.initialization = {.seed = 3, .encoder_scale = 0.25}});
  CHECK(model.W_dec() == whole.W_dec());
  CHECK(model.W_enc() == 0.25 * model.W_dec());
  for (const double scale : {0.0, -1.0, std::numeric_limits<double>::quiet_NaN()})
    CHECK_THROWS_WITH(Model(24, 50, {}, {.initialization = {.encoder_scale = scale}}),
                      Catch::Matchers::ContainsSubstring("encoder_scale = "));
}

TEST_CASE("the start is fixed by its seed, and is the same in float and double", "[models][initialization]") {
  const sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::ReLU> model(8, 30), same(8, 30),
      other(8, 30, {}, {.initialization = {.seed = 1}});
  CHECK(model.W_dec() == same.W_dec());
  CHECK_FALSE(model.W_dec() == other.W_dec());
  const sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::ReLU, double> precise(8, 30);
  CHECK((precise.W_dec() - model.W_dec().cast<double>()).cwiseAbs().maxCoeff<Eigen::PropagateNaN>() < 1e-6);
  // A row does not depend on how many follow.
  const sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::ReLU> longer(8, 60);
  CHECK(longer.W_dec().topRows(30) == model.W_dec());
}

TEST_CASE("the untied start: torch's linear layer and its directions", "[models][initialization]") {
  using Model = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::ReLU, double>;
  Model model(24, 500);
  sae::UntiedInitialization{.decoder_norm = 0.5, .seed = 3}(model.parameters());
  const double bound = 1 / std::sqrt(24.0);
  CHECK(model.W_enc().cwiseAbs().maxCoeff() <= bound);
  CHECK(model.W_enc().cwiseAbs().maxCoeff() > 0.999 * bound);
  CHECK(std::abs(model.W_enc().mean()) < 5 * bound / std::sqrt(3.0 * 12000));
  CHECK(model.W_enc().squaredNorm() / 500 == Approx(1.0 / 3).epsilon(0.02));
  for (Index i = 0; i < 500; ++i)
    REQUIRE((model.W_dec().row(i) - 0.5 * model.W_enc().row(i).normalized()).cwiseAbs().maxCoeff() <= 1e-15);
  CHECK(model.b_enc().isZero(0));
  CHECK(model.b_dec().isZero(0));

  sae::UntiedInitialization{.random_bias = true, .seed = 3}(model.parameters());
  CHECK(model.b_enc().cwiseAbs().maxCoeff() <= bound);
  CHECK(model.b_enc().maxCoeff() > 0.9 * bound);
  CHECK(model.b_enc().minCoeff() < -0.9 * bound);
  CHECK(std::abs(model.W_dec().row(7).norm() - 1) <= 1e-15);
  CHECK_THROWS_WITH(sae::UntiedInitialization{.decoder_norm = 0}(model.parameters()),
                    "UntiedInitialization: decoder_norm = 0 is not in (0, infinity)");
}
