// Encode, decode, loss against the naive twin over many batch sizes, widths and densities, in float and double.
#include <sae/activations/relu.hpp>
#include <sae/activations/topk.hpp>
#include <sae/models/sparse_autoencoder.hpp>
#include <sae/training/l1.hpp>

#include <cmath>
#include <limits>

#include "catch_compat.hpp"
#include "reference.hpp"

namespace {

using sae::Index;
using namespace sae_test;

// Bound of the rounding of a sum of n products of numbers around 1, times what the numbers grow to.
template <class Scalar>
double rounding(Index n, double magnitude) {
  return 8 * static_cast<double>(std::numeric_limits<Scalar>::epsilon()) * std::sqrt(static_cast<double>(n)) *
         std::fmax(magnitude, 1.0);
}

// Everything forward of one model on one batch. A float may select otherwise than the double twin where keys are nearer than
// rounding, and there alone.
template <class Model, class Select>
void check_forward(const Model& model, const Dense& exact_rows, const Select& select, sae::Threads& threads) {
  using Scalar = typename Model::Scalar;
  const sae::Matrix<Scalar> x = exact_rows.cast<Scalar>();
  const NaiveModel twin = naive(model);
  const Dense rows = x.template cast<double>();
  const Dense z = naive_pre_activations(twin, rows);
  const double z_bound = rounding<Scalar>(model.d_in(), largest_magnitude(z));
  CHECK(largest_difference(model.pre_activations(x, threads), z) <= z_bound);

  const sae::Codes<Scalar> codes = model.encode(x, threads);
  REQUIRE(codes.rows() == x.rows());
  REQUIRE(codes.latents() == model.latents());
  const Mask got = mask_of(codes), want = select(z);
  const Dense f = naive_codes(z, got);
  CHECK(largest_difference(codes.dense(), f) <= z_bound);
  double doubtful = 0;  // of the entries that differ: how far from the edge of the selection
  for (Index b = 0; b < z.rows(); ++b) {
    double edge = std::numeric_limits<double>::infinity();
    for (Index i = 0; i < z.cols(); ++i)
      if (want(b, i) != 0) edge = std::fmin(edge, z(b, i));
    for (Index i = 0; i < z.cols(); ++i)
      if (got(b, i) != want(b, i)) doubtful = std::fmax(doubtful, std::fmin(std::abs(z(b, i) - edge), std::abs(z(b, i))));
  }
  CHECK(doubtful <= (std::is_same_v<Scalar, double> ? 0.0 : 2 * z_bound));
  for (Index b = 0; b < codes.rows(); ++b)
    for (Index e = codes.begin(b) + 1; e < codes.end(b); ++e) REQUIRE(codes.latent(e - 1) < codes.latent(e));
  CHECK(model.encode_dense(x, threads) == codes.dense());

  const Dense reconstruction = naive_decode(twin, f);
  const double active = static_cast<double>(codes.size()) / std::fmax(static_cast<double>(codes.rows()), 1.0);
  const double x_bound =
      rounding<Scalar>(static_cast<Index>(active) + model.d_in() + 1, largest_magnitude(f) * largest_magnitude(twin.W_dec)) *
      std::sqrt(active + 1);
  CHECK(largest_difference(model.decode(codes, threads), reconstruction) <= x_bound);
  CHECK(model.reconstruct(x, threads) == model.decode(codes, threads));
  CHECK(largest_difference(model.decode(codes.dense(), threads), reconstruction) <= x_bound);

  const double loss = naive_mean_square(reconstruction - rows);
  const double loss_bound =
      4 * x_bound * std::sqrt(static_cast<double>(model.d_in()) * loss) + rounding<Scalar>(model.d_in(), loss);
  CHECK(std::abs(model.loss(x, sae::Objective<>{}, threads).total - loss) <= loss_bound);
  CHECK(model.loss(x, sae::Objective<>{}, threads).terms.empty());
}

}  // namespace

TEMPLATE_TEST_CASE("TopK forward over batch sizes, sparse and dense", "[models][forward]", float, double) {
  sae::Threads threads(2);
  // 600 latents: more than one tile. 200 of 600 active: the dense decoder; 12: the sparse one.
  for (const bool subtract : {true, false})
    for (const Index k : {12, 200}) {
      sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::TopK, TestType> model(33, 600, {.k = k},
                                                                                    {.subtract_decoder_bias = subtract});
      randomise(model, 8);
      for (const Index rows : {1, 2, 31, 32, 33, 257, 600}) {
        CAPTURE(subtract, k, rows);
        check_forward(
            model, random_rows(rows, 33, 1), [&](const Dense& z) { return naive_largest(z, k); }, threads);
      }
    }
}

TEMPLATE_TEST_CASE("ReLU forward over densities around the switch-over to dense", "[models][forward]", float, double) {
  sae::Threads threads(2);
  sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::ReLU, TestType> model(17, 520);
  bool sparse = false, dense = false;
  for (const double bias : {-100.0, -3.0, -1.5, -1.2, -1.0, -0.5, 0.0, 2.0, 100.0}) {
    randomise(model, 9, bias);
    CAPTURE(bias);
    const Dense x = random_rows(70, 17, 2);
    const auto codes = model.encode(x.cast<TestType>());
    (sae::detail::is_dense(codes.size(), codes.rows() * codes.latents()) ? dense : sparse) = true;
    check_forward(model, x, naive_positive, threads);
  }
  CHECK(sparse);
  CHECK(dense);
}

TEST_CASE("TopK ranked by the decoder norm forward", "[models][forward]") {
  sae::Threads threads(2);
  sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::TopK, double> model(9, 130, {.k = 7, .rank_by_decoder_norm = true});
  randomise(model, 10);
  model.W_dec().row(20).setZero();  // a latent that writes nothing is never chosen
  model.W_enc().row(20).setConstant(5);
  const std::vector<double> norms = naive_norms(naive(model).W_dec);
  for (const Index rows : {1, 40, 140}) {
    const Dense x = random_rows(rows, 9, 3);
    check_forward(
        model, x, [&](const Dense& z) { return naive_largest(z, 7, norms); }, threads);
    const auto codes = model.encode(x);
    for (Index b = 0; b < rows; ++b) REQUIRE(codes.coefficient(b, 20) == 0);
    // SAELens divides by that norm of 0: its reconstruction is not finite.
    CHECK(model.reconstruct(x).allFinite());
    const auto gradient = model.gradient(x).parameters;
    CHECK((gradient.W_enc.map().allFinite() && gradient.W_dec.map().allFinite()));
    CHECK(gradient.W_dec.map().row(20).isZero(0));
  }
}

TEST_CASE("fixed sizes give what sizes at run time give", "[models][forward]") {
  sae::SparseAutoencoder<12, 40, sae::TopK> fixed({.k = 5});
  sae::SparseAutoencoder loose(12, 40, sae::TopK{.k = 5});
  sae::SparseAutoencoder<12, sae::Dynamic, sae::TopK> half(12, 40, {.k = 5});
  randomise(fixed, 11);
  randomise(loose, 11);
  randomise(half, 11);
  const sae::Matrix<float> x = random_rows(50, 12, 4).cast<float>();
  const Eigen::Matrix<float, 50, 12, Eigen::RowMajor> same = x;
  CHECK(fixed.encode(x) == loose.encode(x));
  CHECK(fixed.encode(same) == loose.encode(x));
  CHECK(half.reconstruct(same) == loose.reconstruct(x));
  CHECK(fixed.reconstruct(x) == loose.reconstruct(x));
  CHECK(fixed.gradient(x).parameters.W_enc == loose.gradient(x).parameters.W_enc);
  CHECK(fixed.gradient(same, same).parameters.b_dec == loose.gradient(x, x).parameters.b_dec);
  CHECK(fixed.loss(x).total == loose.loss(x).total);
  sae::Threads threads(2);
  check_forward(
      fixed, random_rows(33, 12, 5), [](const Dense& z) { return naive_largest(z, 5); }, threads);
}

TEST_CASE("a row with NaN selects nothing and reconstructs as b_dec, its neighbours do not notice", "[models][forward]") {
  const auto check = [](const auto& model) {
    const sae::Matrix<float> clean = random_rows(40, 10, 6).cast<float>();
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::signaling_NaN()}) {
      sae::Matrix<float> x = clean;
      x(17, 3) = bad;
      const auto codes = model.encode(x), expected = model.encode(clean);
      CHECK(codes.row_latents(17).empty());
      for (Index b = 0; b < 40; ++b) {
        if (b == 17) continue;
        REQUIRE(std::equal(codes.row_latents(b).begin(), codes.row_latents(b).end(), expected.row_latents(b).begin(),
                           expected.row_latents(b).end()));
        REQUIRE(std::equal(codes.row_values(b).begin(), codes.row_values(b).end(), expected.row_values(b).begin(),
                           expected.row_values(b).end()));
      }
      CHECK(model.reconstruct(x).row(17) == model.b_dec());
      CHECK(std::isnan(model.loss(x).total));  // not silently small
    }
  };
  sae::SparseAutoencoder topk(10, 64, sae::TopK{.k = 4});
  sae::SparseAutoencoder relu(10, 64, sae::ReLU{});
  randomise(topk, 12);
  randomise(relu, 12);
  check(topk);
  check(relu);
}

TEST_CASE("equal pre-activations: the lower latent stays, across tiles too", "[models][forward]") {
  sae::SparseAutoencoder model(4, 1100, sae::TopK{.k = 3});
  auto& p = model.parameters();
  p.W_enc.set_zero();
  for (const Index i : {Index{5}, Index{511}, Index{512}, Index{1024}, Index{1099}}) p.W_enc.row(i)[0] = 1;
  const auto codes = model.encode(sae::Matrix<float>::Ones(2, 4));
  for (Index b = 0; b < 2; ++b) {
    REQUIRE(codes.row_latents(b).size() == 3);
    CHECK(codes.row_latents(b)[0] == 5);
    CHECK(codes.row_latents(b)[1] == 511);
    CHECK(codes.row_latents(b)[2] == 512);
  }
}
