#include <sae/activations/relu.hpp>
#include <sae/activations/topk.hpp>
#include <sae/data/indexed_source.hpp>
#include <sae/data/paired_rows.hpp>
#include <sae/files/npy.hpp>
#include <sae/files/safetensors.hpp>
#include <sae/models/transcoder.hpp>
#include <sae/training/evaluate.hpp>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "catch_compat.hpp"

namespace {

using sae::Index;
using Model = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::ReLU, double>;
using Matrix = sae::Matrix<double>;
constexpr double epsilon = std::numeric_limits<double>::epsilon();

// Latents read and write the axes: x' = relu(x) of the first two coordinates, the third latent stays silent.
Model axes_model() {
  Model model(3, 3);
  model.W_enc().setZero();
  model.W_dec().setIdentity();
  model.W_enc()(0, 0) = model.W_enc()(1, 1) = 1;
  return model;
}

void require_equal(const sae::ReconstructionFigures& a, const sae::ReconstructionFigures& b) {
  REQUIRE(a.rows == b.rows);
  REQUIRE(a.l0 == b.l0);
  REQUIRE(a.l1 == b.l1);
  REQUIRE(a.mse == b.mse);
  REQUIRE(a.explained_variance == b.explained_variance);
  REQUIRE(a.cosine == b.cosine);
  REQUIRE(a.l2_ratio == b.l2_ratio);
  REQUIRE(a.relative_reconstruction_bias == b.relative_reconstruction_bias);
  REQUIRE(a.dead_latents == b.dead_latents);
  REQUIRE(a.dense_latents == b.dense_latents);
  REQUIRE(a.densities == b.densities);
}

TEST_CASE("evaluate by hand", "[evaluate]") {
  Matrix x(4, 3);
  x << 1, 2, 0, -1, 3, 0, 0, 0, 2, 4, 0, 0;
  const auto report = sae::evaluate(axes_model(), x);
  CHECK(report.rows == 4);
  CHECK(report.rows_dropped == 0);
  CHECK_FALSE(report.all_rows.has_value());
  CHECK(report.l0 == 1);  // 2 + 1 + 0 + 1
  CHECK(report.l1 == (1. + 2 + 3 + 4) / 4);
  CHECK(report.mse == (0. + 1 + 4 + 0) / 4);
  // mean |x|^2 = (5 + 10 + 4 + 16) / 4, mean x = (1, 1.25, 0.5)
  CHECK(report.explained_variance == Approx(1 - 1.25 / (35. / 4 - 1 - 1.5625 - 0.25)).epsilon(16 * epsilon));
  CHECK(report.cosine == Approx((1 + 3 / std::sqrt(10.) + 0 + 1) / 4).epsilon(16 * epsilon));
  CHECK(report.dead_latents == 1);
  CHECK(report.encoder_decoder_cosines == std::vector<double>{1, 1, 0});
  CHECK(report.median_encoder_decoder_cosine == 1);
}

TEST_CASE("rows above so many medians of the norm are left out and told apart", "[evaluate]") {
  Matrix x = Matrix::Random(700, 3);
  x.rowwise().normalize();
  for (const Index sink : {0, 5, 640}) x.row(sink) *= 500;
  Matrix kept(697, 3);
  for (Index b = 0, to = 0; b < 700; ++b)
    if (b != 0 && b != 5 && b != 640) kept.row(to++) = x.row(b);
  const Model model = axes_model();
  const auto filtered = sae::evaluate(model, x, {.max_norm = 10});
  CHECK(filtered.rows == 697);
  CHECK(filtered.rows_dropped == 3);
  CHECK(filtered.norm_limit == Approx(10).epsilon(1e-12));
  const auto plain = sae::evaluate(model, kept), all = sae::evaluate(model, x);
  CHECK(filtered.l0 == plain.l0);
  CHECK(filtered.mse == Approx(plain.mse).epsilon(700 * epsilon));
  CHECK(filtered.explained_variance == Approx(plain.explained_variance).epsilon(1000 * epsilon));
  REQUIRE(filtered.all_rows.has_value());
  CHECK(filtered.all_rows->rows == 700);
  CHECK(filtered.all_rows->l0 == all.l0);
  CHECK(filtered.all_rows->densities == all.densities);
  CHECK(filtered.all_rows->mse == Approx(all.mse).epsilon(700 * epsilon));
  CHECK(filtered.all_rows->explained_variance == Approx(all.explained_variance).epsilon(1000 * epsilon));
  CHECK(std::abs(filtered.explained_variance - all.explained_variance) > 0.01);  // the sinks rule the unfiltered figure
}

TEST_CASE("a source gives the figures of its matrix, and is read on from where it stood", "[evaluate]") {
  const Matrix x = Matrix::Random(5000, 3);
  const Model model = axes_model();
  for (const double max_norm : {0.0, 1.2}) {
    CAPTURE(max_norm);
    sae::MatrixSource<double> source(x, {.shuffle = false, .epochs = 1});
    const auto from_source = sae::evaluate(model, source, {.max_norm = max_norm});
    const auto from_matrix = sae::evaluate(model, x, {.max_norm = max_norm});
    require_equal(from_source, from_matrix);
    CHECK(from_source.rows + from_source.rows_dropped == 5000);
    CHECK(from_source.norm_limit == from_matrix.norm_limit);
    CHECK((from_source.rows_dropped > 0) == (max_norm > 0));
    if (max_norm > 0) require_equal(*from_source.all_rows, *from_matrix.all_rows);
  }
  sae::MatrixSource<double> endless(x, {.shuffle = false});
  require_equal(sae::evaluate(model, endless, {.rows = 1500}), sae::evaluate(model, x.topRows(1500)));
  require_equal(sae::evaluate(model, endless, {.max_norm = 0, .rows = 100}), sae::evaluate(model, x.middleRows(1500, 100)));
  require_equal(sae::evaluate(model, sae::MatrixSource<double>(x, {.shuffle = false, .epochs = 1}), {.rows = 9000}),
                sae::evaluate(model, x));
}

TEST_CASE("the median is that of the first 4096 rows", "[evaluate]") {
  Matrix x = Matrix::Constant(5000, 3, 0.0);
  x.col(0).setConstant(1);
  x.col(0).tail(904).setConstant(9);  // behind them: they do not move the limit
  const auto report = sae::evaluate(axes_model(), x, {.max_norm = 8});
  CHECK(report.norm_limit == 8);
  CHECK(report.rows_dropped == 904);
  x.col(0).head(2048).setConstant(2);  // 2048 of norm 2, 2048 of norm 1: the lower middle one
  CHECK(sae::evaluate(axes_model(), x, {.max_norm = 8}).norm_limit == 8);
  x(2048, 0) = 2;
  CHECK(sae::evaluate(axes_model(), x, {.max_norm = 8}).norm_limit == 16);
}

TEST_CASE("figures do not depend on threads, on blocks by rounding alone", "[evaluate]") {
  const sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::TopK, float> model(16, 64, sae::TopK{.k = 4});
  const sae::Matrix<float> x = sae::Matrix<float>::Random(3000, 16);
  sae::Threads one(1), four(4);
  const auto serial = sae::evaluate(model, x, {}, one), threaded = sae::evaluate(model, x, {}, four);
  require_equal(serial, threaded);
  CHECK(serial.l0 > 3);
  CHECK(serial.l0 <= 4);
  const auto small = sae::evaluate(model, x, {.block = 77}, four);
  CHECK(small.densities == serial.densities);
  CHECK(small.explained_variance == Approx(serial.explained_variance).epsilon(1e-5));  // products in float
  // Any expression, and column-major data.
  const Eigen::MatrixXf columns = x;
  require_equal(sae::evaluate(model, columns, {}, four), serial);
  require_equal(sae::evaluate(model, 1.0f * x, {}, four), serial);
}

TEST_CASE("sizes that are fixed at compile time are evaluated alike", "[evaluate]") {
  const sae::SparseAutoencoder<16, 64, sae::TopK, float> fixed(sae::TopK{.k = 4});
  const sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::TopK, float> dynamic(16, 64, sae::TopK{.k = 4});
  const sae::Matrix<float> x = sae::Matrix<float>::Random(100, 16);
  require_equal(sae::evaluate(fixed, x), sae::evaluate(dynamic, x));
}

TEST_CASE("a transcoder is measured on its targets, by hand and from a source", "[evaluate][transcoder]") {
  // f = relu(x), y' = (f_0, f_0, f_1) + (0, 0, 1) + x W_skip^T, W_skip[0] = (0, 1).
  sae::Transcoder<sae::Dynamic, sae::Dynamic, sae::Dynamic, sae::ReLU, double> model(2, 3, 3, {}, {.skip = true});
  auto& p = model.parameters();
  p.W_enc.set_zero();
  p.W_enc.row(0)[0] = p.W_enc.row(1)[1] = 1;
  p.W_dec.row(0)[0] = p.W_dec.row(0)[1] = p.W_dec.row(1)[2] = 1;
  p.b_dec[2] = 1;
  p.W_skip.row(0)[1] = 1;
  Matrix x(4, 2), y(4, 3);
  x << 1, 2, -1, 3, 100, 0, 0, 0;
  y << 3, 1, 3, 3, 0, 2, 100, 100, 1, 0, 1, 0;  // y' = (3, 1, 3), (3, 0, 4), (100, 100, 1), (0, 0, 1)
  const auto report = sae::evaluate(model, x, y);
  CHECK(report.rows == 4);
  CHECK(report.l0 == 1);  // 2 + 1 + 1 + 0
  CHECK(report.l1 == (3. + 3 + 100) / 4);
  CHECK(report.mse == (0. + 4 + 0 + 2) / 4);
  const double spread = (19. + 13 + 20001 + 1) / 4 - (106. * 106 + 102. * 102 + 6. * 6) / 16;
  CHECK(report.explained_variance == Approx(1 - 1.5 / spread).epsilon(64 * epsilon));
  CHECK(report.dead_latents == 1);
  CHECK(report.encoder_decoder_cosines.empty());
  CHECK(std::isnan(report.median_encoder_decoder_cosine));

  const auto pairs = [&] {
    return sae::IndexedSource<sae::PairedRows<sae::MatrixRows<double>, sae::MatrixRows<double>>, double>(
        {sae::MatrixRows<double>(x), sae::MatrixRows<double>(y)}, {.shuffle = false, .epochs = 1});
  };
  require_equal(sae::evaluate(model, pairs()), report);
  // Norms are those of x: 100 is above 10 medians of 1 to 3, whatever its target.
  const auto filtered = sae::evaluate(model, pairs(), {.max_norm = 10});
  CHECK(filtered.rows == 3);
  CHECK(filtered.mse == 2);
  REQUIRE(filtered.all_rows.has_value());
  CHECK(filtered.all_rows->mse == Approx(1.5).epsilon(16 * epsilon));

  CHECK_THROWS_AS(sae::evaluate(model, x, Matrix(y.topRows(3))), sae::ShapeError);
  CHECK_THROWS_AS(sae::evaluate(model, x, Matrix(y.leftCols(2))), sae::ShapeError);
  CHECK_THROWS_WITH(sae::evaluate(model, sae::MatrixSource<double>(x, {.epochs = 1})),
                    Catch::Matchers::ContainsSubstring("reads 2 and predicts 3, side by side 5"));
  y(2, 1) = std::numeric_limits<double>::quiet_NaN();
  CHECK_THROWS_WITH(sae::evaluate(model, x, y), Catch::Matchers::ContainsSubstring("row 2"));
}

TEST_CASE("what cannot be measured is refused in one sentence", "[evaluate]") {
  using Catch::Matchers::ContainsSubstring;
  const Model model = axes_model();
  Matrix x = Matrix::Random(2000, 3);
  CHECK_THROWS_AS(sae::evaluate(model, Matrix::Ones(2, 4)), sae::ShapeError);
  CHECK_THROWS_AS(sae::evaluate(model, sae::MatrixSource<double>(Matrix::Ones(2, 4))), sae::ShapeError);
  CHECK_THROWS_WITH(sae::evaluate(model, Matrix(0, 3)), ContainsSubstring("no rows"));
  CHECK_THROWS_AS(sae::evaluate(model, x, {.block = 0}), sae::ValueError);
  CHECK_THROWS_AS(sae::evaluate(model, x, {.rows = 0}), sae::ValueError);
  CHECK_THROWS_AS(sae::evaluate(model, x, {.max_norm = -1}), sae::ValueError);
  CHECK_THROWS_AS(sae::evaluate(model, x, {.max_norm = std::numeric_limits<double>::quiet_NaN()}), sae::ValueError);
  for (const double bad : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    x(1500, 2) = bad;
    CHECK_THROWS_WITH(sae::evaluate(model, x), ContainsSubstring("row 1500"));
    CHECK_THROWS_WITH(sae::evaluate(model, x, {.max_norm = 10}), ContainsSubstring("row 1500"));
    CHECK_THROWS_WITH(sae::evaluate(model, sae::MatrixSource<double>(x, {.shuffle = false, .epochs = 1})),
                      ContainsSubstring("row 1500"));
  }
}

TEST_CASE("a source without end is refused where no number of rows is given", "[evaluate]") {
  const Model model = axes_model();
  const Matrix x = Matrix::Random(30, 3);
  sae::MatrixSource<double> endless(x), once(x, {.shuffle = false, .epochs = 1});
  CHECK_THROWS_WITH(sae::evaluate(model, endless), Catch::Matchers::ContainsSubstring("the source never ends"));
  CHECK(sae::evaluate(model, endless, {.rows = 50}).rows == 50);
  CHECK(sae::evaluate(model, once).rows == 30);
}

TEST_CASE("a peer's model on a peer's rows", "[evaluate][peers]") {
  const std::filesystem::path folder =
      std::filesystem::path(SAE_TEST_DATA) / "peers" / "metrics" / "reconstruction_and_sparsity";
  nlohmann::json expected;
  std::ifstream(folder / "expected.json") >> expected;
  const auto& want = expected.at("float64_one_batch");
  const sae::NpyArray cosine_file(folder / "encoder_decoder_cosine.npy"), x_file(folder / "x.npy");
  const auto cosines = cosine_file.values<double>();
  const auto rows = x_file.values<float>();
  const sae::SafetensorsFile weights(folder / "sae_weights.safetensors");
  Model model(24, 56);
  model.W_enc() = weights.read<double>("W_enc").map().transpose();
  model.parameters().W_dec = weights.read<double>("W_dec");
  model.parameters().b_enc = weights.read<double>("b_enc");
  model.parameters().b_dec = weights.read<double>("b_dec");
  const sae::Matrix<double> x = sae::ConstMatrixMap<float>(rows.data(), 512, 24).cast<double>();

  const auto report = sae::evaluate(model, x);
  const auto close = [&](const char* name, double value, double bound) {
    CAPTURE(name);
    const auto expected_value = want.at(name).get<double>();
    REQUIRE(std::abs(value - expected_value) <= bound * std::abs(expected_value));
  };
  // The peer's codes and reconstructions are float32; ours are double.
  close("l0", report.l0, 0);
  close("l1", report.l1, 1e-6);
  close("mse_sum_over_d_mean_over_rows", report.mse, 1e-6);
  close("explained_variance", report.explained_variance, 1e-5);
  close("cossim", report.cosine, 1e-6);
  close("l2_ratio", report.l2_ratio, 1e-6);
  close("relative_reconstruction_bias", report.relative_reconstruction_bias, 1e-6);
  close("dead_latents", static_cast<double>(report.dead_latents), 0);
  close("encoder_decoder_cosine_median", report.median_encoder_decoder_cosine, 1e-12);
  double mean = 0;
  for (std::size_t i = 0; i < cosines.size(); ++i) {
    REQUIRE(std::abs(report.encoder_decoder_cosines[i] - cosines[i]) <= 1e-12);
    mean += report.encoder_decoder_cosines[i] / 56;
  }
  close("encoder_decoder_cosine_mean", mean, 1e-12);
  const sae::Matrix<double> norms = sae::load_npy<double>(folder / "saelens_encoder_norm.npy");
  for (Index i = 0; i < 56; ++i) REQUIRE(model.W_enc().row(i).norm() == Approx(norms.data()[i]).epsilon(1e-6));
}

}  // namespace
