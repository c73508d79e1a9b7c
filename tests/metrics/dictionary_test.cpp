#include <sae/files/npy.hpp>
#include <sae/metrics/dictionary.hpp>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "catch_compat.hpp"

namespace {

using sae::CosineSign;
using sae::Index;
using Matrix = sae::Matrix<double>;
constexpr double nan = std::numeric_limits<double>::quiet_NaN();

TEST_CASE("median by hand", "[metrics]") {
  CHECK(sae::median({3}) == 3);
  CHECK(sae::median({9, 1, 5}) == 5);
  CHECK(sae::median({9, 1, 5, 2}) == 3.5);
  CHECK(std::isnan(sae::median({})));
  CHECK(std::isnan(sae::median({1, nan, 2})));
}

TEST_CASE("cosines row by row", "[metrics]") {
  Matrix a(4, 2), b(4, 2);
  a << 1, 0, 3, 4, 1, 1, 0, 0;
  b << 0, 2, 6, 8, -2, -2, 1, 0;
  const auto cosines = sae::row_cosines(a, b);
  REQUIRE(cosines.size() == 4);
  CHECK(cosines[0] == 0);
  CHECK(cosines[1] == Approx(1).epsilon(1e-15));
  CHECK(cosines[2] == Approx(-1).epsilon(1e-15));
  CHECK(cosines[3] == 0);  // a direction of length 0
  CHECK_THROWS_AS(sae::row_cosines(a, b.topRows(3)), sae::ShapeError);
  a(1, 0) = nan;
  CHECK(std::isnan(sae::row_cosines(a, b)[1]));
}

TEST_CASE("nearest directions by hand", "[metrics]") {
  Matrix from(4, 2), among(3, 2);
  from << 2, 0, 0, 5, -3, 0, 0, 0;
  among << 0, 1, 3, 4, 1, 0;
  const auto signed_ = sae::nearest_directions(from, among);
  CHECK(signed_.nearest == std::vector<Index>{2, 0, 0, 0});
  CHECK(signed_.cosine[0] == Approx(1).epsilon(1e-15));
  CHECK(signed_.cosine[1] == Approx(1).epsilon(1e-15));
  CHECK(signed_.cosine[2] == 0);  // (-1, 0) with (0, 1)
  CHECK(signed_.cosine[3] == 0);  // zeros: cosine 0 with everything, the lower of equals
  CHECK(signed_.mean() == Approx(0.5).epsilon(1e-15));
  CHECK(signed_.found(0.9) == 2);
  const auto absolute = sae::nearest_directions(from, among, CosineSign::ignored);
  CHECK(absolute.nearest == std::vector<Index>{2, 0, 2, 0});
  CHECK(absolute.cosine[2] == Approx(1).epsilon(1e-15));
}

TEST_CASE("blocks and threads find what the whole matrix of cosines shows", "[metrics]") {
  const Matrix a = Matrix::Random(150, 7), b = Matrix::Random(600, 7);
  const Matrix cosines = a.rowwise().normalized() * b.rowwise().normalized().transpose();
  sae::Threads one(1), three(3);
  for (const auto sign : {CosineSign::matters, CosineSign::ignored}) {
    const auto got = sae::nearest_directions(a, b, sign, three);
    for (Index i = 0; i < a.rows(); ++i) {
      Index best = 0;
      const double want =
          sign == CosineSign::ignored ? cosines.row(i).cwiseAbs().maxCoeff(&best) : cosines.row(i).maxCoeff(&best);
      REQUIRE(std::abs(got.cosine[static_cast<std::size_t>(i)] - want) <= 1e-14);
      REQUIRE(got.nearest[static_cast<std::size_t>(i)] == best);
    }
    const auto serial = sae::nearest_directions(a, b, sign, one);
    CHECK(serial.cosine == got.cosine);
    CHECK(serial.nearest == got.nearest);
  }
}

TEST_CASE("NaN is found, whatever stands beside it", "[metrics]") {
  Matrix from = Matrix::Identity(2, 2), among = Matrix::Identity(2, 2);
  from(1, 0) = nan;
  const auto got = sae::nearest_directions(from, among);
  CHECK(got.cosine[0] == 1);
  CHECK(std::isnan(got.cosine[1]));
  CHECK(std::isnan(got.mean()));
  CHECK(got.found(0) == 1);
  among(0, 1) = nan;
  CHECK(std::isnan(sae::nearest_directions(Matrix(Matrix::Identity(2, 2)), among).cosine[0]));
}

TEST_CASE("dictionaries that cannot be compared are refused", "[metrics]") {
  CHECK_THROWS_AS(sae::nearest_directions(Matrix::Ones(2, 3), Matrix::Ones(2, 4)), sae::ShapeError);
  CHECK_THROWS_AS(sae::nearest_directions(Matrix(0, 3), Matrix::Ones(2, 3)), sae::ValueError);
  CHECK_THROWS_AS(sae::nearest_directions(Matrix::Ones(2, 3), Matrix(0, 3)), sae::ValueError);
}

TEST_CASE("a dictionary's rows among themselves", "[metrics]") {
  Matrix rows(4, 2);
  rows << 1, 0, 3, 4, -2, 0, 0, 0;
  const auto others = sae::nearest_others(rows);
  CHECK(others.nearest == std::vector<Index>{1, 0, 3, 0});  // 0.6, 0.6, 0 with the row of zeros, 0
  CHECK(others.cosine[0] == Approx(0.6).epsilon(1e-15));
  CHECK(others.cosine[2] == 0);
  const auto absolute = sae::nearest_others(rows, CosineSign::ignored);
  CHECK(absolute.nearest == std::vector<Index>{2, 0, 0, 0});
  CHECK(absolute.cosine[2] == 1);
  // |cosines|: 0.6, 1, 0; 0.6, 0; 0, each twice of twelve
  CHECK(sae::mean_absolute_cosine(rows) == Approx(2 * 2.2 / 12).epsilon(1e-15));
  CHECK(std::isnan(sae::mean_absolute_cosine(rows.topRows(1))));
  CHECK_THROWS_AS(sae::nearest_others(rows.topRows(1)), sae::ValueError);
  const auto all = sae::cosines(rows, rows.topRows(2));
  CHECK(all.rows() == 4);
  CHECK(all.cols() == 2);
  CHECK(all.row(2)[1] == Approx(-0.6).epsilon(1e-15));
  CHECK_THROWS_AS(sae::cosines(rows, Matrix::Ones(2, 3)), sae::ShapeError);
  // Beyond one tile and one block: itself is left out wherever it stands.
  const Matrix many = Matrix::Random(300, 5);
  Matrix cosines = many.rowwise().normalized() * many.rowwise().normalized().transpose();
  cosines.diagonal().setConstant(-2);
  const auto got = sae::nearest_others(many);
  for (Index i = 0; i < 300; ++i)
    REQUIRE(std::abs(got.cosine[static_cast<std::size_t>(i)] - cosines.row(i).maxCoeff()) <= 1e-14);
}

TEST_CASE("the peers' mean max cosine similarities", "[metrics][peers]") {
  const std::filesystem::path folder = std::filesystem::path(SAE_TEST_DATA) / "peers" / "metrics" / "dictionary_similarity";
  nlohmann::json expected;
  std::ifstream(folder / "expected.json") >> expected;
  const auto load = [&](const char* name) {
    const sae::NpyArray file(folder / name);
    const auto values = file.values<double>();
    return Matrix(sae::ConstMatrixMap<double>(values.data(), file.shape()[0], file.shape()[1]));
  };
  const Matrix a = load("dict_a.npy"), b = load("dict_b.npy");
  const auto& want = expected.at("float64");
  const auto close = [&](double value, const char* name) {
    CAPTURE(name);
    REQUIRE(std::abs(value - want.at(name).get<double>()) <= 1e-12);
  };
  const auto plain = sae::mean_max_cosine(a, b), absolute = sae::mean_max_cosine(a, b, CosineSign::ignored);
  close(plain.a_to_b, "mmcs_a_to_b");
  close(plain.b_to_a, "mmcs_b_to_a");
  close(absolute.a_to_b, "mmcs_abs_a_to_b");
  close(absolute.b_to_a, "mmcs_abs_b_to_a");
  close(sae::mean_absolute_cosine(a), "mean_abs_offdiag_a");
  close(sae::nearest_others(a).mean(), "max_cos_with_other_a_mean");
  const auto single = sae::mean_max_cosine(a.cast<float>(), b.cast<float>());
  CHECK(single.a_to_b == Approx(plain.a_to_b).epsilon(1e-6));
}

}  // namespace
