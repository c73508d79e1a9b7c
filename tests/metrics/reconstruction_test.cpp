#include <sae/files/npy.hpp>
#include <sae/metrics/dictionary.hpp>
#include <sae/metrics/reconstruction.hpp>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>

#include "catch_compat.hpp"

namespace {

using sae::Index;
using Matrix = sae::Matrix<double>;
constexpr double epsilon = std::numeric_limits<double>::epsilon();

const std::filesystem::path folder = std::filesystem::path(SAE_TEST_DATA) / "peers" / "metrics" / "reconstruction_and_sparsity";

template <class Scalar>
sae::Matrix<Scalar> load(const char* name) {
  const sae::NpyArray file(folder / name);
  const auto values = file.values<Scalar>();
  return sae::ConstMatrixMap<Scalar>(values.data(), file.shape()[0], file.shape().size() == 2 ? file.shape()[1] : 1);
}

sae::ReconstructionFigures figures(const Matrix& x, const Matrix& y, const Matrix& f) {
  sae::ReconstructionMetrics metrics(x.cols(), f.cols());
  metrics.add(x, y, sae::Codes<double>::from_dense(f));
  return metrics.figures();
}

// Every scalar of two reports, relative to the larger one; NaN fails.
void require_close(const sae::ReconstructionFigures& a, const sae::ReconstructionFigures& b, double bound) {
  const auto close = [&](double p, double q) { REQUIRE(std::abs(p - q) <= bound * std::fmax(std::abs(p), std::abs(q))); };
  REQUIRE(a.rows == b.rows);
  REQUIRE(a.dead_latents == b.dead_latents);
  REQUIRE(a.dense_latents == b.dense_latents);
  REQUIRE(a.densities == b.densities);
  close(a.l0, b.l0);
  close(a.l1, b.l1);
  close(a.mse, b.mse);
  close(a.explained_variance, b.explained_variance);
  close(a.cosine, b.cosine);
  close(a.l2_ratio, b.l2_ratio);
  close(a.relative_reconstruction_bias, b.relative_reconstruction_bias);
  close(a.error_norm, b.error_norm);
  close(a.input_norm, b.input_norm);
  close(a.output_norm, b.output_norm);
  close(a.shrinkage, b.shrinkage);
  close(a.centred_explained_variance, b.centred_explained_variance);
  close(a.relative_error, b.relative_error);
  close(a.relative_l1, b.relative_l1);
}

TEST_CASE("reconstruction figures by hand", "[metrics]") {
  // x = (3, 4), (0, 0), (1, 0), (0, 2); x' = (3, 0), (0, 0), (0, 0), (0, 1).
  Matrix x(4, 2), y(4, 2), f(4, 3);
  x << 3, 4, 0, 0, 1, 0, 0, 2;
  y << 3, 0, 0, 0, 0, 0, 0, 1;
  f << 3, 0, -1, 0, 0, 0, 0, 0, 0, 0.5, 0, 0;
  const auto out = figures(x, y, f);
  CHECK(out.rows == 4);
  CHECK(out.l0 == 0.75);       // 2 + 0 + 0 + 1 of 4 rows
  CHECK(out.l1 == 1.125);      // 3 + 1 + 0.5
  CHECK(out.mse == 18.0 / 4);  // 16 + 0 + 1 + 1
  CHECK(out.cosine == Approx((3.0 / 5 + 1 + 0 + 1) / 4).epsilon(4 * epsilon));
  CHECK(out.l2_ratio == Approx((3.0 / 5 + 0 + 0 + 0.5) / 4).epsilon(4 * epsilon));
  CHECK(out.relative_reconstruction_bias == Approx((9.0 + 1) / (9 + 2)).epsilon(4 * epsilon));
  // mean |x|^2 = (25 + 0 + 1 + 4) / 4, mean x = (1, 1.5)
  CHECK(out.explained_variance == Approx(1 - 4.5 / (30.0 / 4 - 1 - 2.25)).epsilon(16 * epsilon));
  CHECK(out.error_norm == (4.0 + 0 + 1 + 1) / 4);
  CHECK(out.input_norm == (5.0 + 0 + 1 + 2) / 4);
  CHECK(out.output_norm == (3.0 + 0 + 0 + 1) / 4);
  CHECK(out.shrinkage == Approx((3.0 / 5 + 0 + 0.5) / 3).epsilon(4 * epsilon));  // the row of zeros is left out
  // mean e = (0.25, 1.25)
  CHECK(out.centred_explained_variance == Approx(1 - (4.5 - 0.0625 - 1.5625) / (30.0 / 4 - 1 - 2.25)).epsilon(16 * epsilon));
  // |x - mean x|^2 = 4 + 6.25, 1 + 2.25, 2.25, 1 + 0.25
  CHECK(out.row_explained_variance == Approx((4 - 16 / 10.25 - 1 / 2.25 - 1 / 1.25) / 4).epsilon(16 * epsilon));
  CHECK(std::isnan(out.relative_error));  // 0 / 0 in the row of zeros
  const auto without = figures(x.bottomRows(2), y.bottomRows(2), f.bottomRows(2));
  CHECK(without.relative_error == (1.0 + 0.25) / 2);
  CHECK(without.relative_l1 == 0.125);
  CHECK(out.densities == std::vector<double>{0.5, 0, 0.25});
  CHECK(out.dead_latents == 1);
  CHECK(out.dense_latents == 2);
}

TEST_CASE("a latent that is active in exactly a tenth of the rows is not dense", "[metrics]") {
  const Matrix x = Matrix::Random(10, 2);
  Matrix f = Matrix::Zero(10, 3);
  f(7, 0) = 1;
  f(2, 1) = f(3, 1) = 1;
  CHECK(figures(x, x, f).dense_latents == 1);
  CHECK(figures(x, x, f).dead_latents == 1);
}

TEST_CASE("a selected entry of value 0 is not active", "[metrics]") {
  sae::Codes<double> codes(2);
  codes.push(0, 0.0);
  codes.push(1, 2.0);
  codes.finish_row();
  sae::ReconstructionMetrics metrics(1, 2);
  const Matrix x = Matrix::Ones(1, 1);
  metrics.add(x, x, codes);
  CHECK(metrics.figures().l0 == 1);
  CHECK(metrics.figures().dead_latents == 1);
}

TEST_CASE("what is undefined is NaN, what is NaN stays visible", "[metrics]") {
  const Matrix f = Matrix::Ones(3, 1);
  Matrix same(3, 2);
  same << 0.1, 0.7, 0.1, 0.7, 0.1, 0.7;
  CHECK(std::isnan(figures(same, same, f).explained_variance));  // no spread
  CHECK(figures(same, same, f).cosine == Approx(1).epsilon(4 * epsilon));
  CHECK(std::isnan(figures(same, Matrix::Zero(3, 2), f).relative_reconstruction_bias));
  CHECK(figures(same, Matrix::Zero(3, 2), f).l2_ratio == 0);
  const sae::ReconstructionMetrics empty(2, 1);
  CHECK(std::isnan(empty.figures().mse));
  CHECK(std::isnan(empty.figures().explained_variance));
  Matrix broken = same;
  broken(1, 1) = std::numeric_limits<double>::quiet_NaN();
  CHECK(std::isnan(figures(same, broken, f).mse));
  CHECK(std::isnan(figures(same, broken, f).cosine));
  CHECK(std::isnan(figures(broken, same, f).explained_variance));
  Matrix codes = f;
  codes(0, 0) = std::numeric_limits<double>::quiet_NaN();
  CHECK(std::isnan(figures(same, same, codes).l1));
  CHECK(figures(same, same, codes).l0 == 1);
}

TEST_CASE("an explained variance of 1/2 is found at any distance from the origin", "[metrics]") {
  // +-1 about the mean in every coordinate, the reconstruction misses by 1/sqrt 2 in every one.
  const Index n = 2000, width = 8;
  for (const double mean : {0.0, 1.0, 1e3, 1e6, 1e9}) {
    CAPTURE(mean);
    Matrix x(n, width);
    for (Index b = 0; b < n; ++b)
      for (Index j = 0; j < width; ++j) x(b, j) = mean + ((b >> (j % 3)) % 2 == 0 ? 1.0 : -1.0);
    const Matrix y = x.array() + std::sqrt(0.5);
    sae::ReconstructionMetrics metrics(width, 1);
    for (Index first = 0; first < n; first += 333) {
      const Index rows = std::min<Index>(333, n - first);
      metrics.add(x.middleRows(first, rows), y.middleRows(first, rows), sae::Codes<double>::from_dense(Matrix::Zero(rows, 1)));
    }
    // The reconstruction itself is rounded at the size of the mean.
    REQUIRE(std::abs(metrics.figures().explained_variance - 0.5) <= 16 * epsilon * std::fmax(1.0, mean));
  }
}

TEST_CASE("figures do not depend on how rows are cut, joined or threaded", "[metrics]") {
  const auto x = load<double>("x.npy"), y = load<double>("recon.npy"), f = load<double>("codes.npy");
  const Index n = x.rows();
  const auto codes = [&](Index first, Index rows) { return sae::Codes<double>::from_dense(Matrix(f.middleRows(first, rows))); };
  const auto part = [&](Index first, Index rows, sae::Threads& threads) {
    sae::ReconstructionMetrics out(x.cols(), f.cols());
    out.add(x.middleRows(first, rows), y.middleRows(first, rows), codes(first, rows), {}, threads);
    return out;
  };
  sae::Threads one(1), three(3);
  const auto whole = part(0, n, one).figures();

  sae::ReconstructionMetrics streamed(x.cols(), f.cols());
  for (Index first = 0, rows = 1; first < n; first += rows, rows = rows * 2) {
    rows = std::min(rows, n - first);
    streamed.add(x.middleRows(first, rows), y.middleRows(first, rows), codes(first, rows));
  }
  require_close(streamed.figures(), whole, static_cast<double>(n) * epsilon);

  sae::ReconstructionMetrics merged(x.cols(), f.cols());
  merged.merge(part(0, 100, one));
  merged.merge(sae::ReconstructionMetrics(x.cols(), f.cols()));
  merged.merge(part(100, n - 100, one));
  require_close(merged.figures(), whole, static_cast<double>(n) * epsilon);

  const auto threaded = part(0, n, three).figures();
  require_close(threaded, whole, 0);  // the same bytes
}

TEST_CASE("shapes that do not fit are refused", "[metrics]") {
  sae::ReconstructionMetrics metrics(2, 3);
  const Matrix x = Matrix::Ones(4, 2);
  const auto codes = sae::Codes<double>::from_dense(Matrix::Ones(4, 3));
  const std::vector<std::uint8_t> mask(3, 1);
  CHECK_THROWS_AS(metrics.add(Matrix::Ones(4, 3), x, codes), sae::ShapeError);
  CHECK_THROWS_AS(metrics.add(x, Matrix::Ones(3, 2), codes), sae::ShapeError);
  CHECK_THROWS_AS(metrics.add(x, x, sae::Codes<double>::from_dense(Matrix::Ones(4, 2))), sae::ShapeError);
  CHECK_THROWS_AS(metrics.add(x, x, sae::Codes<double>::from_dense(Matrix::Ones(3, 3))), sae::ShapeError);
  CHECK_THROWS_AS(metrics.add(x, x, codes, mask), sae::ShapeError);
  CHECK_THROWS_AS(metrics.merge(sae::ReconstructionMetrics(2, 4)), sae::ShapeError);
  CHECK(metrics.rows() == 0);
}

// ---- the peers' figures (tests/data/peers/README.md)

void check(const sae::ReconstructionFigures& got, const nlohmann::json& want, double bound) {
  std::size_t compared = 0;
  const auto close = [&](const char* name, double value) {
    if (!want.contains(name)) return;
    CAPTURE(name);
    const auto expected = want.at(name).get<double>();
    REQUIRE(std::abs(value - expected) <= bound * std::abs(expected));
    ++compared;
  };
  close("l0", got.l0);
  close("l1", got.l1);
  close("l1_loss", got.l1);
  close("mse", got.mse);
  close("mse_sum_over_d_mean_over_rows", got.mse);
  close("explained_variance", got.explained_variance);
  close("fvu", 1 - got.explained_variance);
  close("cossim", got.cosine);
  close("l2_ratio", got.l2_ratio);
  close("shrinkage", got.shrinkage);
  close("l2_norm_in", got.input_norm);
  close("l2_norm_out", got.output_norm);
  close("l2_loss", got.error_norm);
  close("l2_loss_mean_norm", got.error_norm);
  close("explained_variance_legacy", got.row_explained_variance);
  close("frac_variance_explained", got.centred_explained_variance);
  close("openai_normalized_mse", got.relative_error);
  close("openai_normalized_l1", got.relative_l1);
  close("relative_reconstruction_bias", got.relative_reconstruction_bias);
  close("dead_latents", static_cast<double>(got.dead_latents));
  close("frac_alive", 1 - static_cast<double>(got.dead_latents) / static_cast<double>(got.densities.size()));
  REQUIRE(compared >= 3);
}

TEST_CASE("the peers' reconstruction and sparsity figures", "[metrics][peers]") {
  nlohmann::json expected;
  std::ifstream(folder / "expected.json") >> expected;
  const auto x = load<float>("x.npy"), y = load<float>("recon.npy"), f = load<float>("codes.npy");
  const auto codes = sae::Codes<float>::from_dense(f);

  sae::ReconstructionMetrics all(x.cols(), f.cols());
  all.add(x, y, codes);
  check(all.figures(), expected.at("float64_one_batch"), 1e-12);
  check(all.figures(), expected.at("saelens_one_batch"), 1e-6);
  check(all.figures(), expected.at("dictionary_learning_one_batch"), 1e-6);
  check(all.figures(), expected.at("saelens_synthetic"), 1e-6);

  const auto density = load<double>("feature_density.npy");
  const auto figures = all.figures();
  for (Index i = 0; i < density.size(); ++i) REQUIRE(figures.densities[static_cast<std::size_t>(i)] == density(i, 0));

  // In four batches everything stays but the bias, which the peers average over batches: ours is that of all rows.
  sae::ReconstructionMetrics streamed(x.cols(), f.cols());
  double mean_bias = 0, mean_centred = 0;
  for (Index first = 0; first < 512; first += 128) {
    sae::ReconstructionMetrics batch(x.cols(), f.cols());
    batch.add(x.middleRows(first, 128), y.middleRows(first, 128),
              sae::Codes<float>::from_dense(sae::Matrix<float>(f.middleRows(first, 128))));
    mean_bias += batch.figures().relative_reconstruction_bias / 4;
    mean_centred += batch.figures().centred_explained_variance / 4;
    streamed.merge(batch);
  }
  auto four = expected.at("float64_four_batches_of_128");
  REQUIRE(std::abs(mean_bias - four.at("relative_reconstruction_bias").get<double>()) <= 1e-12 * mean_bias);
  CHECK(std::abs(streamed.figures().relative_reconstruction_bias - mean_bias) > 1e-3);
  REQUIRE(std::abs(mean_centred - four.at("frac_variance_explained").get<double>()) <= 1e-12);
  for (const char* name :
       {"float64_four_batches_of_128", "saelens_four_batches_of_128", "dictionary_learning_four_batches_of_128"}) {
    auto want = expected.at(name);
    want.erase("relative_reconstruction_bias");  // means over batches
    want.erase("frac_variance_explained");
    check(streamed.figures(), want, want.contains("frac_alive") || std::string(name).starts_with("saelens") ? 1e-6 : 1e-12);
  }
}

TEST_CASE("the peers' figures of the rows that a mask keeps", "[metrics][peers]") {
  nlohmann::json expected;
  std::ifstream(folder / "expected.json") >> expected;
  const auto x = load<float>("x.npy"), y = load<float>("recon.npy"), f = load<float>("codes.npy");
  const sae::NpyArray file(folder / "mask.npy");
  const auto mask_values = file.values<std::uint8_t>();
  const std::vector<std::uint8_t> mask(mask_values.begin(), mask_values.end());

  sae::ReconstructionMetrics kept(x.cols(), f.cols());
  kept.add(x, y, sae::Codes<float>::from_dense(f), mask);
  CHECK(kept.rows() == 452);
  check(kept.figures(), expected.at("float64_masked_rows"), 1e-12);
  // In four batches; the bias is a mean over them.
  sae::ReconstructionMetrics streamed(x.cols(), f.cols());
  double mean_bias = 0;
  for (Index first = 0; first < 512; first += 128) {
    const std::span<const std::uint8_t> part(mask.data() + first, 128);
    sae::ReconstructionMetrics batch(x.cols(), f.cols());
    batch.add(x.middleRows(first, 128), y.middleRows(first, 128),
              sae::Codes<float>::from_dense(sae::Matrix<float>(f.middleRows(first, 128))), part);
    mean_bias += batch.figures().relative_reconstruction_bias / 4;
    streamed.merge(batch);
  }
  auto saelens = expected.at("saelens_four_batches_masked");
  REQUIRE(std::abs(mean_bias - saelens.at("relative_reconstruction_bias").get<double>()) <= 1e-6 * mean_bias);
  saelens.erase("relative_reconstruction_bias");
  check(streamed.figures(), saelens, 1e-6);
  const auto density = load<double>("saelens_feature_density_masked.npy");
  const auto figures = kept.figures();
  for (Index i = 0; i < density.size(); ++i)
    REQUIRE(std::abs(figures.densities[static_cast<std::size_t>(i)] - density(i, 0)) <= 1e-6);
}

}  // namespace
