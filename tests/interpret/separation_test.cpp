// Latents that tell two classes apart, against dense matrices and all pairs.
#include <sae/core/random.hpp>
#include <sae/interpret/separation.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "catch_compat.hpp"

using namespace sae;
using Catch::Matchers::ContainsSubstring;

namespace {

Codes<float> codes_of(const Matrix<float>& dense) { return Codes<float>::from_dense(dense); }

/// Few entries of few values, so that there are ties, zeros and empty columns.
Matrix<float> random_codes(Index rows, Index latents, Random& random) {
  Matrix<float> out = Matrix<float>::Zero(rows, latents);
  for (Index i = 0; i < out.size(); ++i)
    if (random.below(4) == 0) out.data()[i] = static_cast<float>(random.below(4)) * 0.5F - 0.5F;
  return out;
}

}  // namespace

TEST_CASE("pooling by hand", "[interpret][separation]") {
  Matrix<float> item(3, 5);
  item << 1, 0, -2, 0, -3,  //
      4, 0, 0, 0, -1,       //
      2, 6, -1, 0, -2;
  Codes<float> pooled(5);
  pool_rows(codes_of(item), Pooling::max, pooled);
  pool_rows(codes_of(item), Pooling::mean, pooled);
  const Matrix<float> dense = pooled.dense();
  REQUIRE(dense.rows() == 2);
  // A latent that is inactive in some row is at least 0 there.
  CHECK(dense.row(0) == (RowVector<float>(5) << 4, 6, 0, 0, -1).finished());
  CHECK(dense.row(1) == (RowVector<float>(5) << 7.0F / 3, 2, -1, 0, -2).finished());
  CHECK(pooled.end(0) - pooled.begin(0) == 3);  // what pools to 0 is no entry
  CHECK(std::is_sorted(pooled.row_latents(1).begin(), pooled.row_latents(1).end()));
}

TEST_CASE("pooling is that of a dense matrix", "[interpret][separation]") {
  Random random(5);
  Codes<float> largest(30), mean(30);
  std::vector<Matrix<float>> items;
  for (const Index rows : {1, 2, 7, 40}) {
    items.push_back(random_codes(rows, 30, random));
    pool_rows(codes_of(items.back()), Pooling::max, largest);
    pool_rows(codes_of(items.back()), Pooling::mean, mean);
  }
  for (std::size_t n = 0; n < items.size(); ++n) {
    const auto row = static_cast<Index>(n);
    CHECK(largest.dense().row(row) == items[n].colwise().maxCoeff());
    CHECK(mean.dense().row(row) == items[n].cast<double>().colwise().mean().cast<float>());
  }
}

TEST_CASE("pooling refuses what it cannot pool", "[interpret][separation]") {
  Codes<float> out(3), none(3);
  CHECK_THROWS_WITH(pool_rows(none, Pooling::max, out), ContainsSubstring("without rows"));
  Matrix<float> item = Matrix<float>::Zero(2, 3);
  item(1, 2) = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_WITH(pool_rows(codes_of(item), Pooling::max, out), ContainsSubstring("latent 2 is not finite in row 1"));
  item(1, 2) = std::numeric_limits<float>::infinity();
  CHECK_THROWS_WITH(pool_rows(codes_of(item), Pooling::mean, out), ContainsSubstring("latent 2 is not finite in row 1"));
  Codes<float> wide(4);
  CHECK_THROWS_AS(pool_rows(codes_of(Matrix<float>::Ones(1, 3)), Pooling::max, wide), ShapeError);
  CHECK(out.rows() == 0);
}

TEST_CASE("separation by hand", "[interpret][separation]") {
  Matrix<float> positive(2, 4), negative(3, 4);
  positive << 3, 0, 0, 1,  //
      1, 0, 0, 1;
  negative << 0, 0, 2, 1,  //
      1, 0, 4, 1,          //
      0, 0, 0, 1;
  const auto found = separate(codes_of(positive), codes_of(negative));
  REQUIRE(found.size() == 3);  // latent 1 is never active
  CHECK(found[0].latent == 0);
  CHECK(found[0].auroc == Approx(5.5 / 6));
  CHECK(found[0].mean_difference == Approx(2 - 1.0 / 3));
  CHECK(found[0].active_positive == 1);
  CHECK(found[0].active_negative == Approx(1.0 / 3));
  CHECK(found[1].latent == 2);
  CHECK(found[1].auroc == Approx(1.0 / 6));  // two ties of six pairs
  CHECK(found[1].mean_difference == -2);
  CHECK(found[2] ==
        LatentSeparation{.latent = 3, .auroc = 0.5, .mean_difference = 0, .active_positive = 1, .active_negative = 1});

  // An entry that holds 0 is no activation.
  Codes<float> selected(4);
  for (const float f : {3.0F, 1.0F}) {
    selected.push(0, f);
    selected.push(1, 0);
    selected.push(3, 1);
    selected.finish_row();
  }
  CHECK(separate(selected, codes_of(negative)) == found);

  const auto by_auroc = strongest(found, 2);
  REQUIRE(by_auroc.size() == 2);
  CHECK(by_auroc[0].latent == 0);
  CHECK(by_auroc[1].latent == 2);
  CHECK(strongest(found, 9, SeparationOrder::mean_difference)[0].latent == 2);
  CHECK(strongest(found, 9).size() == 3);
  CHECK(strongest(found, 0).empty());
}

TEST_CASE("separation is that of dense codes and all pairs, by any threads", "[interpret][separation]") {
  Random random(8);
  const Index latents = 600;  // more than two blocks
  const Matrix<float> positive = random_codes(9, latents, random), negative = random_codes(13, latents, random);
  Threads one(1), three(3);
  const auto found = separate(codes_of(positive), codes_of(negative), one);
  CHECK(found == separate(codes_of(positive), codes_of(negative), three));
  std::size_t n = 0;
  for (Index i = 0; i < latents; ++i) {
    CAPTURE(i);
    if (positive.col(i).isZero(0) && negative.col(i).isZero(0)) continue;
    REQUIRE(n < found.size());
    const LatentSeparation& of = found[n++];
    double won = 0;
    for (Index p = 0; p < positive.rows(); ++p)
      for (Index q = 0; q < negative.rows(); ++q)
        won += positive(p, i) > negative(q, i) ? 1 : positive(p, i) == negative(q, i) ? 0.5 : 0;
    CHECK(of.latent == i);
    CHECK(of.auroc == Approx(won / (9 * 13)));
    CHECK(of.mean_difference ==
          Approx(positive.col(i).cast<double>().mean() - negative.col(i).cast<double>().mean()).margin(1e-12));
    CHECK(of.active_positive == Approx(static_cast<double>((positive.col(i).array() != 0).count()) / 9));
    CHECK(of.active_negative == Approx(static_cast<double>((negative.col(i).array() != 0).count()) / 13));
  }
  CHECK(n == found.size());

  auto sorted = found;
  std::sort(sorted.begin(), sorted.end(), [](const LatentSeparation& a, const LatentSeparation& b) {
    const auto key = [](const LatentSeparation& of) {
      return std::tuple(-std::abs(of.auroc - 0.5), -std::abs(of.mean_difference), of.latent);
    };
    return key(a) < key(b);
  });
  sorted.resize(50);
  CHECK(strongest(found, 50) == sorted);
}

TEST_CASE("separation refuses an empty class, another width and NaN", "[interpret][separation]") {
  const Codes<float> some = codes_of(Matrix<float>::Ones(2, 3)), none(3), wide = codes_of(Matrix<float>::Ones(2, 4));
  CHECK_THROWS_WITH(separate(some, none), ContainsSubstring("2 positive and 0 negative items"));
  CHECK_THROWS_WITH(separate(none, some), ContainsSubstring("0 positive and 2 negative items"));
  CHECK_THROWS_WITH(separate(some, wide), ContainsSubstring("3 and of 4 latents"));
  Matrix<float> broken = Matrix<float>::Ones(2, 3);
  broken(1, 0) = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_WITH(separate(some, codes_of(broken)), ContainsSubstring("latent 0 is not finite in negative item 1"));
  CHECK(separate(codes_of(Matrix<float>::Zero(2, 3)), codes_of(Matrix<float>::Zero(1, 3))).empty());
}
