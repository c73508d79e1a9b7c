// Streaming statistics against a naive pass that keeps every activation.
#include <sae/core/random.hpp>
#include <sae/interpret/latent_statistics.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "catch_compat.hpp"
#include "rows_of_codes.hpp"

using namespace sae;
using Catch::Matchers::ContainsSubstring;

namespace {

constexpr Index latents = 7, rows = 600;

/// Latent 0 never fires, latent 1 always with one value, latent 2 grows with the rows, the others spread over twelve powers of two.
Codes<float> some_codes() {
  Random random(11);
  Codes<float> out(latents);
  for (Index b = 0; b < rows; ++b) {
    out.push(1, 0.75F);
    out.push(2, std::ldexp(1.0F, static_cast<int>(b / 40)));
    for (Index i = 3; i < latents; ++i)
      if (random.uniform() < 0.4) out.push(i, static_cast<float>(std::exp(2.0 * random.normal()) - (i == 6 ? 0.5 : 0.0)));
    out.finish_row();
  }
  return out;
}
std::vector<TopActivation> all_of(const Codes<float>& codes, Index latent) {
  std::vector<TopActivation> out;
  for (Index b = 0; b < codes.rows(); ++b)
    if (const float f = codes.coefficient(b, latent); f > 0) out.push_back({static_cast<double>(f), b});
  return out;
}
double range_of(const std::vector<TopActivation>& all) {
  double max = 0, range = std::ldexp(1.0, -200);
  for (const TopActivation& a : all) max = std::max(max, a.value);
  while (range < max) range *= 2;
  return range;
}
void require_like_naive(const LatentStatistics& got, const Codes<float>& codes) {
  CHECK(got.rows() == codes.rows());
  const auto& options = got.options();
  for (Index i = 0; i < latents; ++i) {
    CAPTURE(i);
    const std::vector<TopActivation> all = all_of(codes, i);
    const auto n = static_cast<double>(all.size());
    const LatentMoments moments = got.moments(i);
    REQUIRE(moments.rows == static_cast<Index>(all.size()));
    CHECK(got.density(i) == n / static_cast<double>(codes.rows()));
    const LatentHistogram histogram = got.histogram(i);
    const auto examples = got.examples(i);
    REQUIRE(examples.size() == static_cast<std::size_t>(options.intervals));
    if (all.empty()) {
      CHECK(moments.first_row == -1);
      CHECK(moments.last_row == -1);
      CHECK(histogram.counts.empty());
      CHECK(std::all_of(examples.begin(), examples.end(), [](const auto& of) { return of.empty(); }));
      continue;
    }
    CHECK(moments.first_row == all.front().row);
    CHECK(moments.last_row == all.back().row);
    double mean = 0, square = 0, max = 0;
    for (const TopActivation& a : all) {
      mean += a.value / n;
      square += a.value * a.value / n;
      max = std::max(max, a.value);
    }
    CHECK(moments.mean == Approx(mean).epsilon(1e-12));
    CHECK(moments.mean_square == Approx(square).epsilon(1e-12));
    CHECK(moments.max == max);
    double second = 0, third = 0, fourth = 0;
    for (const TopActivation& a : all) {
      const double d = a.value - mean;
      second += d * d / n;
      third += d * d * d / n;
      fourth += d * d * d * d / n;
    }
    if (i == 1) {
      CHECK(moments.skewness == 0);
      CHECK(moments.kurtosis == 0);
    } else {
      CHECK(moments.skewness == Approx(third / std::pow(second, 1.5)).epsilon(1e-8));
      CHECK(moments.kurtosis == Approx(fourth / (second * second)).epsilon(1e-8));
    }

    const double range = range_of(all);
    CHECK(histogram.width == range / static_cast<double>(options.bins));
    REQUIRE(histogram.counts.size() == static_cast<std::size_t>(options.bins));
    for (Index bin = 0; bin < options.bins; ++bin) {
      const double low = static_cast<double>(bin) * histogram.width, high = low + histogram.width;
      CHECK(histogram.counts[static_cast<std::size_t>(bin)] ==
            std::count_if(all.begin(), all.end(), [&](const auto& a) { return a.value > low && a.value <= high; }));
    }
    const double step = range / static_cast<double>(options.intervals);
    for (Index n_th = 0; n_th < options.intervals; ++n_th) {
      const double low = static_cast<double>(n_th) * step;
      std::vector<TopActivation> inside;
      std::copy_if(all.begin(), all.end(), std::back_inserter(inside),
                   [&](const auto& a) { return a.value > low && a.value <= low + step; });
      const auto& drawn = examples[static_cast<std::size_t>(n_th)];
      CHECK(drawn.size() == std::min(inside.size(), static_cast<std::size_t>(options.examples)));
      for (const TopActivation& a : drawn) CHECK(std::count(inside.begin(), inside.end(), a) == 1);
      CHECK(std::is_sorted(drawn.begin(), drawn.end(), [](const auto& a, const auto& b) { return a.row < b.row; }));
    }
  }
}
void require_same(const LatentStatistics& a, const LatentStatistics& b) {
  for (Index i = 0; i < latents; ++i) {
    CAPTURE(i);
    CHECK(a.examples(i) == b.examples(i));
    CHECK(a.histogram(i).counts == b.histogram(i).counts);
    CHECK(a.top().top(i) == b.top().top(i));
    CHECK(a.moments(i).first_row == b.moments(i).first_row);
    CHECK(a.moments(i).last_row == b.moments(i).last_row);
    CHECK(a.moments(i).mean == Approx(b.moments(i).mean).epsilon(1e-13));
  }
}

}  // namespace

TEST_CASE("streaming statistics are those of a pass that keeps everything", "[interpret][statistics]") {
  const Codes<float> codes = some_codes();
  const LatentStatisticsOptions options =
      GENERATE(LatentStatisticsOptions{}, LatentStatisticsOptions{1, 2, 2, 0, 3},
               LatentStatisticsOptions{.top = 3, .bins = 8, .intervals = 8, .examples = 40});
  LatentStatistics whole(latents, options);
  whole.add(codes);
  require_like_naive(whole, codes);

  // In batches, and in parts merged in any order.
  LatentStatistics batches(latents, options), first(latents, options), second(latents, options), third(latents, options);
  for (Index at = 0; at < rows; at += 37) batches.add(sae_test::rows_of_codes(codes, at, std::min(at + 37, rows)));
  require_same(whole, batches);
  first.add(sae_test::rows_of_codes(codes, 0, 10), 0);
  second.add(sae_test::rows_of_codes(codes, 10, 450), 10);
  third.add(sae_test::rows_of_codes(codes, 450, rows), 450);
  LatentStatistics merged(latents, options), backwards(latents, options);
  for (const auto* const one : {&first, &second, &third}) merged.merge(*one);
  for (const auto* const one : {&third, &first, &second}) backwards.merge(*one);
  require_same(whole, merged);
  require_same(whole, backwards);
}

TEST_CASE("examples are a uniform draw, another one with another seed", "[interpret][statistics]") {
  // 400 rows of one interval, 8 drawn by each of 500 seeds: each row comes up 10 times in the mean, binomially.
  Codes<float> codes(1);
  for (Index b = 0; b < 400; ++b) {
    codes.push(0, 1.0F);
    codes.finish_row();
  }
  std::vector<int> drawn(400, 0);
  for (std::uint64_t seed = 0; seed < 500; ++seed) {
    LatentStatistics statistics(1, {.examples = 8, .seed = seed});
    statistics.add(codes);
    const auto examples = statistics.examples(0);
    REQUIRE(examples.back().size() == 8);
    for (const TopActivation& example : examples.back()) ++drawn[static_cast<std::size_t>(example.row)];
  }
  double chi_square = 0;
  for (const int count : drawn) chi_square += (count - 10.0) * (count - 10.0) / (10.0 * (1 - 8.0 / 400));
  CHECK(chi_square < 399 + 5 * std::sqrt(2 * 399.0));
  CHECK(chi_square > 399 - 5 * std::sqrt(2 * 399.0));
}

TEST_CASE("statistics: NaN and what is not positive do not count, infinity and bad arguments are refused",
          "[interpret][statistics]") {
  LatentStatistics statistics(3);
  Codes<float> codes(3);
  codes.push(0, std::numeric_limits<float>::quiet_NaN());
  codes.push(1, -2.0F);
  codes.push(2, 5e-44F);  // denormal
  codes.finish_row();
  statistics.add(codes);
  CHECK(statistics.moments(0).rows == 0);
  CHECK(statistics.moments(1).rows == 0);
  CHECK(statistics.moments(2).rows == 1);
  Codes<float> infinite(3);
  infinite.finish_row();
  infinite.push(1, std::numeric_limits<float>::infinity());
  infinite.finish_row();
  CHECK_THROWS_WITH(statistics.add(infinite), "LatentStatistics: latent 1 is infinite in row 2");
  CHECK(statistics.rows() == 1);
  CHECK_THROWS_AS(statistics.add(Codes<float>(4)), ShapeError);
  CHECK_THROWS_WITH(statistics.moments(3), ContainsSubstring("latent 3 is not in [0, 3)"));
  CHECK_THROWS_WITH(statistics.histogram(-1), ContainsSubstring("latent -1"));
  CHECK_THROWS_WITH(LatentStatistics(0), ContainsSubstring("latents = 0 is below 1"));
  CHECK_THROWS_WITH(LatentStatistics(3, {.bins = 48}), ContainsSubstring("bins = 48 is no power of two"));
  CHECK_THROWS_WITH(LatentStatistics(3, {.bins = 8}), ContainsSubstring("intervals = 16 is no power of two in [2, 8]"));
  CHECK_THROWS_WITH(LatentStatistics(3, {.examples = -1}), ContainsSubstring("examples = -1 is negative"));
  CHECK_THROWS_WITH(LatentStatistics(3, {.top = 0}), ContainsSubstring("top = 0"));
  CHECK_THROWS_WITH(statistics.merge(LatentStatistics(3, {.seed = 1})), ContainsSubstring("cannot be merged"));
  CHECK_THROWS_AS(statistics.merge(LatentStatistics(4)), ShapeError);
}
