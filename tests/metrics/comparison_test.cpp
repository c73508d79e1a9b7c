#include <sae/metrics/comparison.hpp>

#include <sae/core/random.hpp>

#include <cmath>

#include "catch_compat.hpp"

using namespace sae;

TEST_CASE("two dictionaries by hand: what is shared, what is split, what is alone", "[metrics][comparison]") {
  // a: e0, e1, e2. b: e1 doubled, two halves of e0 (cosine 0.8), a copy of -e2, e3.
  Matrix<float> a = Matrix<float>::Zero(3, 4), b = Matrix<float>::Zero(5, 4);
  a(0, 0) = a(1, 1) = a(2, 2) = 1;
  b(0, 1) = 2;
  b(1, 0) = b(2, 0) = 0.8F;
  b(1, 3) = 0.6F, b(2, 3) = -0.6F;
  b(3, 2) = -1;
  b(4, 3) = 1;
  const DictionaryComparison found = compare_dictionaries(a, b);
  CHECK(found.of_a.nearest == std::vector<Index>{1, 0, 0});
  CHECK(found.of_a.cosine[0] == Approx(0.8));
  CHECK(found.of_a.cosine[1] == Approx(1));
  CHECK(found.of_a.cosine[2] == Approx(0).margin(1e-7));  // its negative is another direction
  CHECK(found.mmcs_a == Approx(1.8 / 3));
  CHECK(found.mmcs_b == Approx((1 + 0.8 + 0.8 + 0 + 0) / 5));
  CHECK(found.shared_a == 1);
  CHECK(found.shared_b == 1);
  CHECK(found.mutual == 1);
  CHECK(found.parts == std::vector<Index>{2, 1, 0});
  CHECK(found.split_latents() == 1);
  CHECK(found.mcc == Approx((0.8 + 1 + 0) / 3));
  CHECK(compare_dictionaries(a, b, {.split = 0.85}).parts == std::vector<Index>{0, 1, 0});
  CHECK(compare_dictionaries(a, b, {.shared = 0.8, .split = 0.6}).shared_b == 3);
  CHECK(std::isnan(compare_dictionaries(a, b, {.most_pairs = 2}).mcc));
}

TEST_CASE("a dictionary compared with itself in another order is all shared", "[metrics][comparison]") {
  Random random(3);
  Matrix<double> a(40, 24), b(40, 24);
  for (Index i = 0; i < a.size(); ++i) a.data()[i] = random.normal();
  for (Index i = 0; i < 40; ++i) b.row(i) = 3 * a.row((i * 7 + 5) % 40);
  const DictionaryComparison found = compare_dictionaries(a, b);
  CHECK(found.shared_a == 40);
  CHECK(found.shared_b == 40);
  CHECK(found.mutual == 40);
  CHECK(found.mcc == Approx(1).epsilon(1e-12));
  CHECK(found.mmcs_a == Approx(1).epsilon(1e-12));
  for (Index i = 0; i < 40; ++i) CHECK((found.of_b.nearest[static_cast<std::size_t>(i)]) == (i * 7 + 5) % 40);
  Threads three(3);
  CHECK(compare_dictionaries(a, b, {}, three).of_a.cosine == found.of_a.cosine);
}

TEST_CASE("a comparison of dictionaries that do not fit is refused", "[metrics][comparison]") {
  const Matrix<float> a = Matrix<float>::Ones(3, 4);
  CHECK_THROWS_AS(compare_dictionaries(a, Matrix<float>::Ones(3, 5).eval()), ShapeError);
  CHECK_THROWS_AS(compare_dictionaries(a, Matrix<float>(0, 4)), ValueError);
  CHECK_THROWS_WITH(compare_dictionaries(a, a, {.shared = 1.5}), "ComparisonOptions: shared = 1.5 is not in (0, 1]");
  CHECK_THROWS_WITH(compare_dictionaries(a, a, {.split = 0.95}), "ComparisonOptions: split = 0.95 is not in (0, 0.9] (shared)");
  CHECK_THROWS_AS(compare_dictionaries(a, a, {.most_pairs = -1}), ValueError);
}
