#include <sae/core/codes.hpp>

#include <vector>

#include "catch_compat.hpp"

namespace {

using sae::Codes;
using sae::Index;

// Rows of 0, 3, 0 and 2 entries over 6 latents; one entry holds 0.
Codes<float> sample() {
  Codes<float> codes(6);
  codes.finish_row();
  codes.push(0, 1.5f);
  codes.push(2, 0.f);
  codes.push(5, -2.f);
  codes.finish_row();
  codes.finish_row();
  codes.push(1, 4.f);
  codes.push(4, 8.f);
  codes.finish_row();
  return codes;
}
sae::Matrix<float> sample_dense() {
  sae::Matrix<float> dense = sae::Matrix<float>::Zero(4, 6);
  dense(1, 0) = 1.5f;
  dense(1, 5) = -2.f;
  dense(3, 1) = 4.f;
  dense(3, 4) = 8.f;
  return dense;
}

}  // namespace

TEST_CASE("Codes: rows, entries, spans", "[core][codes]") {
  const Codes<float> codes = sample();
  CHECK(codes.rows() == 4);
  CHECK(codes.latents() == 6);
  CHECK(codes.size() == 5);
  const std::vector<int> offsets{0, 0, 3, 3, 5};
  CHECK(std::vector<int>(codes.offsets().begin(), codes.offsets().end()) == offsets);
  CHECK(codes.begin(1) == 0);
  CHECK(codes.end(1) == 3);
  CHECK(codes.row_latents(0).empty());
  CHECK(codes.row_values(2).empty());
  REQUIRE(codes.row_latents(3).size() == 2);
  CHECK(codes.row_latents(3)[1] == 4);
  CHECK(codes.row_values(3)[1] == 8.f);
  CHECK(codes.latent(2) == 5);
  CHECK(codes.value(2) == -2.f);
}

TEST_CASE("Codes::coefficient is the entry, 0 where there is none", "[core][codes]") {
  const Codes<float> codes = sample();
  const sae::Matrix<float> dense = sample_dense();
  for (Index b = 0; b < 4; ++b)
    for (Index i = 0; i < 6; ++i) CHECK(codes.coefficient(b, i) == dense(b, i));
  CHECK(codes.coefficient(1, 6) == 0.f);  // beyond the last latent
}

TEST_CASE("Codes to and from dense, and as an Eigen sparse matrix", "[core][codes]") {
  const Codes<float> codes = sample();
  CHECK(codes.dense() == sample_dense());
  const auto view = codes.sparse();
  CHECK(view.nonZeros() == 5);
  CHECK(sae::Matrix<float>(view) == sample_dense());
  const sae::Matrix<float> w = sae::Matrix<float>::Random(6, 3);
  CHECK((sae::Matrix<float>(view * w) - sample_dense() * w).cwiseAbs().maxCoeff<Eigen::PropagateNaN>() <= 1e-5f);
  CHECK(view.valuePtr() == codes.values().data());

  const auto back = Codes<float>::from_dense(sample_dense());
  CHECK(back.size() == 4);  // the zero is not stored
  CHECK(back.dense() == sample_dense());
  CHECK_FALSE(back == codes);
  CHECK(Codes<float>::from_dense(Eigen::MatrixXf(sample_dense())) == back);

  sae::Matrix<float> with_nan = sample_dense();
  with_nan(0, 3) = std::numeric_limits<float>::quiet_NaN();
  const auto kept = Codes<float>::from_dense(with_nan);
  CHECK(kept.size() == 5);
  CHECK(std::isnan(kept.coefficient(0, 3)));
}

TEST_CASE("Codes without rows or entries", "[core][codes]") {
  const Codes<double> none;
  CHECK(none.rows() == 0);
  CHECK(none.size() == 0);
  CHECK(none.dense().size() == 0);
  CHECK(none.sparse().rows() == 0);
  Codes<double> empty_rows(3);
  empty_rows.finish_row();
  empty_rows.finish_row();
  CHECK(empty_rows.rows() == 2);
  CHECK(empty_rows.dense() == sae::Matrix<double>::Zero(2, 3));
  CHECK(empty_rows.coefficient(1, 2) == 0);
}

TEST_CASE("Codes: reset keeps nothing but storage, resize takes a shape at once", "[core][codes]") {
  Codes<float> codes = sample();
  const Codes<float> same = codes;
  CHECK(codes == same);
  const float* const storage = codes.values().data();
  codes.reset(3);
  CHECK(codes.rows() == 0);
  CHECK(codes.size() == 0);
  CHECK(codes.latents() == 3);
  codes.push(2, 1.f);
  codes.finish_row();
  CHECK(codes.rows() == 1);
  CHECK(codes.values().data() == storage);
  CHECK_FALSE(codes == same);

  Codes<float> filled;
  filled.resize(6, same.offsets());
  REQUIRE(filled.size() == same.size());
  std::copy(same.indices().begin(), same.indices().end(), filled.mutable_indices());
  std::copy(same.values().begin(), same.values().end(), filled.mutable_values());
  CHECK(filled == same);
  filled.values()[0] = 3.f;
  CHECK_FALSE(filled == same);
}

TEST_CASE("Codes: what was moved from has no rows", "[core][codes]") {
  sae::Codes<float> from(3);
  from.push(1, 2.0F);
  from.finish_row();
  const sae::Codes<float> to = std::move(from);
  CHECK(to.size() == 1);
  CHECK(from.rows() == 0);  // NOLINT: that is the point
  CHECK(from.size() == 0);
  from.reset(3);
  from.push(0, 1.0F);
  from.finish_row();
  CHECK(from.rows() == 1);
}

TEST_CASE("Codes: the rows of others behind its own", "[core][codes]") {
  sae::Codes<float> a(9), b(9), both(9);
  a.reset(9);
  b.reset(9);
  both.reset(9);
  const auto add = [](sae::Codes<float>& to, std::initializer_list<int> latents) {
    for (const int i : latents) to.push(i, static_cast<float>(i) + 0.5F);
    to.finish_row();
  };
  add(a, {1, 4});
  add(a, {});
  add(b, {0, 8});
  add(b, {2});
  for (const auto& row : {std::initializer_list<int>{1, 4}, {}, {0, 8}, {2}}) add(both, row);
  a.append(b);
  CHECK(a == both);
  a.append(sae::Codes<float>());
  CHECK(a == both);
}
