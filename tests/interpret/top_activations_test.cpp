#include <sae/interpret/top_activations.hpp>

#include <sae/core/random.hpp>

#include <cmath>
#include <limits>

#include "catch_compat.hpp"
#include "rows_of_codes.hpp"

using namespace sae;
using Catch::Matchers::ContainsSubstring;

namespace {
/// Codes with few distinct values, so that ties are common.
Codes<float> some_codes(Index rows, Index latents, std::uint64_t seed) {
  Random random(seed);
  Codes<float> out(latents);
  for (Index b = 0; b < rows; ++b) {
    for (Index i = 0; i < latents; ++i)
      if (random.uniform() < 0.3) out.push(i, static_cast<float>(static_cast<double>(random.below(6)) - 1));
    out.finish_row();
  }
  return out;
}
/// By sorting everything.
std::vector<TopActivation> sorted(const Codes<float>& codes, Index latent, Index count) {
  std::vector<TopActivation> all;
  for (Index b = 0; b < codes.rows(); ++b)
    if (codes.coefficient(b, latent) > 0) all.push_back({codes.coefficient(b, latent), b});
  std::stable_sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.value > b.value; });
  if (static_cast<Index>(all.size()) > count) all.resize(static_cast<std::size_t>(count));
  return all;
}
}  // namespace

TEST_CASE("the strongest activations are those of sorting everything, however the rows come", "[interpret]") {
  const Index latents = 9, rows = 211;
  const Codes<float> codes = some_codes(rows, latents, 5);
  const Index count = GENERATE(1, 4, 1000), cut = GENERATE(1, 50, 211);
  TopActivations top(latents, count), chosen(latents, count, {7, 2});
  for (Index first = 0; first < rows; first += cut) {
    top.add(sae_test::rows_of_codes(codes, first, std::min(first + cut, rows)));
    chosen.add(sae_test::rows_of_codes(codes, first, std::min(first + cut, rows)));
  }
  CHECK(top.rows() == rows);
  for (Index i = 0; i < latents; ++i) {
    const std::vector<TopActivation> expected = sorted(codes, i, count), every = sorted(codes, i, rows);
    CHECK(top.top(i) == expected);
    CHECK(top.max(i) == expected.front().value);
    CHECK(top.active_rows(i) == static_cast<Index>(every.size()));
    CHECK(top.density(i) == static_cast<double>(every.size()) / rows);
    CHECK(chosen.active_rows(i) == top.active_rows(i));
    CHECK(chosen.watches(i) == (i == 7 || i == 2));
  }
  CHECK(chosen.top(7) == top.top(7));
  CHECK(chosen.top(2) == top.top(2));
  CHECK_THROWS_WITH(chosen.top(3), ContainsSubstring("latent 3 is not watched"));
}

TEST_CASE("parts merged in any order are the whole", "[interpret]") {
  const Codes<float> codes = some_codes(120, 6, 8);
  TopActivations whole(6, 5), first(6, 5), second(6, 5);
  whole.add(codes);
  first.add(sae_test::rows_of_codes(codes, 0, 70), 0);
  second.add(sae_test::rows_of_codes(codes, 70, 120), 70);
  second.merge(first);
  CHECK(second.rows() == 120);
  for (Index i = 0; i < 6; ++i) {
    CHECK(second.top(i) == whole.top(i));
    CHECK(second.active_rows(i) == whole.active_rows(i));
  }
  CHECK_THROWS_AS(whole.merge(TopActivations(6, 4)), ShapeError);
  CHECK_THROWS_AS(whole.merge(TopActivations(6, 5, {1})), ShapeError);
}

TEST_CASE("what is not positive is no activation", "[interpret]") {
  Codes<float> codes(4);
  codes.push(0, 0), codes.push(1, std::numeric_limits<float>::quiet_NaN()), codes.push(2, -1), codes.finish_row();
  TopActivations top(4, 3);
  CHECK(top.density(0) == 0);
  top.add(codes);
  for (Index i = 0; i < 4; ++i) {
    CHECK(top.top(i).empty());
    CHECK(top.max(i) == 0);
    CHECK(top.density(i) == 0);
  }
}

TEST_CASE("latents and counts out of range are refused", "[interpret]") {
  CHECK_THROWS_AS(TopActivations(4, 0), ValueError);
  CHECK_THROWS_AS(TopActivations(0, 1), ValueError);
  CHECK_THROWS_WITH(TopActivations(4, 1, {4}), ContainsSubstring("latent 4 is not in [0, 4)"));
  CHECK_THROWS_WITH(TopActivations(4, 1, {2, 2}), ContainsSubstring("twice"));
  TopActivations top(4, 1);
  CHECK_THROWS_AS(top.add(Codes<float>(5)), ShapeError);
  CHECK_THROWS_AS(top.top(-1), ValueError);
}
