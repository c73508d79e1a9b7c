#include <sae/files/npy.hpp>
#include <sae/metrics/ground_truth.hpp>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "catch_compat.hpp"

namespace {

using sae::Codes;
using sae::FiringCounts;
using sae::Index;
using Matrix = sae::Matrix<double>;

std::size_t at(Index i) { return static_cast<std::size_t>(i); }
const std::filesystem::path peers = std::filesystem::path(SAE_TEST_DATA) / "peers" / "metrics";

template <class Scalar>
sae::Matrix<Scalar> load(const std::filesystem::path& path) {
  const sae::NpyArray file(path);
  const auto values = file.values<Scalar>();
  return sae::ConstMatrixMap<Scalar>(values.data(), file.shape()[0], file.shape().size() == 2 ? file.shape()[1] : 1);
}
nlohmann::json read(const std::filesystem::path& path) {
  nlohmann::json out;
  std::ifstream(path) >> out;
  return out;
}

TEST_CASE("directions by hand", "[metrics]") {
  // Features along the axes; latents: axis 1 (length 2, the other way), between axes 0 and 1, axis 1 again, nothing.
  Matrix features = Matrix::Identity(3, 3), decoder(4, 3);
  decoder << 0, -2, 0, 3, 4, 0, 0, 1, 0, 0, 0, 0;
  const auto got = sae::recover_directions(decoder, features);
  CHECK(got.best == std::vector<Index>{1, 1, 1, 0});  // the last: all cosines are 0, the lower feature
  CHECK(got.best_cosine[0] == 1);
  CHECK(got.best_cosine[1] == Approx(0.8).epsilon(1e-15));
  CHECK(got.best_cosine[3] == 0);
  CHECK(got.uniqueness == 0.5);
  // 1 for axis 1, 0.6 for axis 0 by the one between, 0 for axis 2 by any other.
  CHECK(got.mcc == Approx(1.6 / 3).epsilon(1e-15));
  CHECK(got.assigned[1] == 0);
  CHECK((got.assigned[0] == 1 || got.assigned[2] == 1));
  CHECK(std::count(got.assigned.begin(), got.assigned.end(), -1) == 1);
  // A dictionary is itself, in any order, of any lengths and signs.
  const Matrix itself = Matrix::Random(20, 30);
  Matrix turned = -3 * itself.colwise().reverse();
  CHECK(sae::recover_directions(turned, itself).mcc == Approx(1).epsilon(1e-14));
  CHECK(sae::recover_directions(turned, itself).uniqueness == 1);
  CHECK(sae::recover_directions(turned, itself).best[3] == 16);
}

TEST_CASE("counts and their scores by hand", "[metrics]") {
  const FiringCounts c{3, 1, 2, 4};
  CHECK(c.precision() == 0.75);
  CHECK(c.recall() == 0.6);
  CHECK(c.f1() == Approx(2 * 0.75 * 0.6 / 1.35).epsilon(1e-15));
  CHECK(c.accuracy() == 0.7);
  const FiringCounts silent{0, 0, 5, 5}, never{0, 0, 0, 0};
  CHECK(silent.precision() == 0);
  CHECK(silent.f1() == 0);
  CHECK(silent.accuracy() == 0.5);
  CHECK(never.recall() == 0);
  CHECK(never.accuracy() == 0);

  Matrix codes(4, 2), truth(4, 3);
  codes << 1, 0, -1, 0, 2, 0, 0, 0;              // a negative code fires
  truth << 1, 0, 0, 0, 2, 0, 3, 4, 0, 5, 0, -1;  // a negative feature does not
  Matrix decoder(2, 3);
  decoder << 1, 0, 0, 0, 0, 1;
  sae::GroundTruthMetrics metrics(decoder, Matrix::Identity(3, 3));
  CHECK(std::isnan(metrics.figures().true_l0));
  CHECK(metrics.figures().f1 == 0);
  metrics.add(Codes<double>::from_dense(codes), Codes<double>::from_dense(truth));
  const auto got = metrics.figures();
  CHECK(got.rows == 4);
  CHECK(got.counts[0] == FiringCounts{2, 1, 1, 0});
  CHECK(got.counts[1] == FiringCounts{0, 0, 0, 4});
  CHECK(got.precision == Approx(1.0 / 3).epsilon(1e-15));
  CHECK(got.recall == Approx(1.0 / 3).epsilon(1e-15));
  CHECK(got.f1 == Approx(1.0 / 3).epsilon(1e-15));
  CHECK(got.accuracy == 0.75);
  CHECK(got.true_l0 == 1.25);
}

TEST_CASE("a selected entry of value 0 does not fire, a NaN fires as a latent and not as a feature", "[metrics]") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  Codes<double> codes(1), truth(1);
  for (const auto& [code, feature] : {std::pair{0.0, 1.0}, {nan, 1.0}, {1.0, nan}, {1.0, 0.0}}) {
    codes.push(0, code);
    codes.finish_row();
    truth.push(0, feature);
    truth.finish_row();
  }
  sae::GroundTruthMetrics metrics(Matrix::Ones(1, 2), Matrix::Ones(1, 2));
  metrics.add(codes, truth);
  CHECK(metrics.figures().counts[0] == FiringCounts{1, 2, 1, 0});
  CHECK(metrics.figures().true_l0 == 0.5);
}

TEST_CASE("ground truth: what does not fit is refused", "[metrics]") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  using Catch::Matchers::ContainsSubstring;
  CHECK_THROWS_AS(sae::recover_directions(Matrix::Ones(2, 3), Matrix::Ones(2, 4)), sae::ShapeError);
  CHECK_THROWS_WITH(sae::recover_directions(Matrix(0, 3), Matrix::Ones(2, 3)), ContainsSubstring("no latents"));
  CHECK_THROWS_WITH(sae::recover_directions(Matrix::Constant(2, 3, nan), Matrix::Ones(2, 3)), ContainsSubstring("not finite"));
  CHECK_THROWS_WITH(sae::recover_directions(Matrix::Ones(2, 3), Matrix::Constant(2, 3, nan)), ContainsSubstring("not finite"));
  sae::GroundTruthMetrics metrics(Matrix::Ones(2, 3), Matrix::Ones(4, 3));
  const auto codes = [](Index rows, Index width) { return Codes<double>::from_dense(Matrix::Ones(rows, width)); };
  CHECK_THROWS_AS(metrics.add(codes(5, 3), codes(5, 4)), sae::ShapeError);
  CHECK_THROWS_AS(metrics.add(codes(5, 2), codes(5, 3)), sae::ShapeError);
  CHECK_THROWS_AS(metrics.add(codes(5, 2), codes(4, 4)), sae::ShapeError);
  CHECK(metrics.rows() == 0);
}

TEST_CASE("SAELens' scores of latents against features", "[metrics][peers]") {
  const auto folder = peers / "synthetic_recovery";
  const auto expected = read(folder / "expected.json").at("expected");
  const auto decoder = load<float>(folder / "sae_decoder.npy"), features = load<float>(folder / "gt_features.npy");
  const auto latents = load<float>(folder / "sae_latents.npy"), truth = load<float>(folder / "gt_acts.npy");
  const auto best = load<std::int32_t>(folder / "best_match.npy");
  const auto tp = load<double>(folder / "tp.npy"), fp = load<double>(folder / "fp.npy");
  const auto fn = load<double>(folder / "fn.npy"), tn = load<double>(folder / "tn.npy");

  for (const Index batch : {256, 100, 1}) {
    CAPTURE(batch);
    sae::GroundTruthMetrics metrics(decoder, features);
    for (Index first = 0; first < latents.rows(); first += batch) {
      const Index rows = std::min(batch, latents.rows() - first);
      metrics.add(Codes<float>::from_dense(sae::Matrix<float>(latents.middleRows(first, rows))),
                  Codes<float>::from_dense(sae::Matrix<float>(truth.middleRows(first, rows))));
    }
    const auto got = metrics.figures();
    for (Index k = 0; k < decoder.rows(); ++k) {
      CAPTURE(k);
      REQUIRE(got.directions.best[at(k)] == best(k, 0));
      const FiringCounts& c = got.counts[at(k)];
      REQUIRE(static_cast<double>(c.true_positives) == tp(k, 0));
      REQUIRE(static_cast<double>(c.false_positives) == fp(k, 0));
      REQUIRE(static_cast<double>(c.false_negatives) == fn(k, 0));
      REQUIRE(static_cast<double>(c.true_negatives) == tn(k, 0));
    }
    const auto close = [&](double value, const char* name) {
      CAPTURE(name);
      REQUIRE(std::abs(value - expected.at(name).get<double>()) <= 1e-6);  // the peer's are of float32
    };
    close(got.directions.mcc, "mcc");
    close(got.directions.uniqueness, "uniqueness");
    close(got.precision, "precision");
    close(got.recall, "recall");
    close(got.f1, "f1_score");
    close(got.accuracy, "accuracy");
  }
}

TEST_CASE("the peers' matching of two dictionaries", "[metrics][peers]") {
  const auto folder = peers / "dictionary_similarity";
  const auto expected = read(folder / "expected.json");
  const auto a = load<double>(folder / "dict_a.npy"), b = load<double>(folder / "dict_b.npy");
  const auto rows = load<std::int32_t>(folder / "hungarian_rows.npy"), cols = load<std::int32_t>(folder / "hungarian_cols.npy");
  const auto ab = sae::recover_directions(a, b), ba = sae::recover_directions(b, a);
  const auto mcc = expected.at("float64").at("mcc").get<double>();
  CHECK(std::abs(ab.mcc - mcc) <= 1e-12);
  CHECK(std::abs(ba.mcc - mcc) <= 1e-12);
  CHECK(std::abs(ab.mcc - expected.at("saelens").at("mean_correlation_coefficient").get<double>()) <= 1e-6);
  Index pairs = 0;
  for (const Index i : ab.assigned) pairs += i >= 0;
  REQUIRE(pairs == rows.rows());
  for (Index p = 0; p < rows.rows(); ++p) {
    CHECK(ab.assigned[at(rows(p, 0))] == cols(p, 0));
    CHECK(ba.assigned[at(cols(p, 0))] == rows(p, 0));
  }
  CHECK(ab.uniqueness == Approx(expected.at("saelens").at("feature_uniqueness_a_in_b").get<double>()).epsilon(1e-12));
  CHECK(ba.uniqueness == Approx(expected.at("saelens").at("feature_uniqueness_b_in_a").get<double>()).epsilon(1e-12));
  const auto single = sae::recover_directions(a.cast<float>(), b.cast<float>());
  CHECK(single.assigned == ab.assigned);
  CHECK(std::abs(single.mcc - mcc) <= 1e-6);
}

}  // namespace
