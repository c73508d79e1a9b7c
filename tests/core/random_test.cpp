#include <sae/core/random.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include "catch_compat.hpp"

TEST_CASE("Philox gives the known answers of its authors", "[core][random]") {
  using Words = std::array<std::uint32_t, 4>;
  CHECK(sae::philox({0, 0, 0, 0}, {0, 0}) == Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  constexpr std::uint32_t ones = 0xffffffff;
  CHECK(sae::philox({ones, ones, ones, ones}, {ones, ones}) == Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(sae::philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
        Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});  // the digits of pi
}

// Files, checkpoints and published runs depend on these words: a change of them is a change of every result.
TEST_CASE("the stream of a seed is fixed for ever", "[core][random]") {
  sae::Random random(0x0123456789abcdef, 0xfedcba9876543210);
  const std::array<std::uint32_t, 16> words{0xaef2adf7, 0xf69b5950, 0x3ceb44f4, 0x89b6573a, 0xec2ab39f, 0x4671fd85,
                                            0x74decae0, 0x4b77ec76, 0xd7bb4a2f, 0xb8f76c27, 0x51cdda28, 0x48cc01cd,
                                            0x93f3ffb3, 0xe57c34a2, 0x1b39e857, 0x288d28b3};
  for (const std::uint32_t word : words) CHECK(random.bits() == word);
  CHECK(random.position() == 16);

  random.seek(0);
  const std::array<std::uint64_t, 8> numerators{6155434368881515, 2143397499451082, 8309380682927679, 4112007528279805,
                                                7590380911927021, 2878226246998400, 5205637642104710, 957936803582373};
  for (const std::uint64_t n : numerators) CHECK(random.uniform() == static_cast<double>(n) / 9007199254740992.0);
}

TEST_CASE("a stream goes on from any position", "[core][random]") {
  sae::Random whole(7, 3);
  std::vector<std::uint32_t> words(41);
  for (auto& word : words) word = whole.bits();
  for (const std::size_t at : {std::size_t{40}, std::size_t{0}, std::size_t{5}, std::size_t{4}, std::size_t{17}}) {
    sae::Random other(7, 3);
    other.seek(at);
    for (std::size_t i = at; i < words.size(); ++i) REQUIRE(other.bits() == words[i]);
  }
  sae::Random same(7, 3), stream(7, 4), seed(8, 3);
  std::size_t equal_streams = 0, equal_seeds = 0;
  for (const std::uint32_t word : words) {
    CHECK(same.bits() == word);
    equal_streams += stream.bits() == word ? 1u : 0u;
    equal_seeds += seed.bits() == word ? 1u : 0u;
  }
  CHECK(equal_streams == 0);
  CHECK(equal_seeds == 0);
  sae::Random high(7, std::uint64_t{3} << 32);  // the upper half of a stream number counts
  CHECK(high.bits() != words[0]);
}

TEST_CASE("below is uniform and stays below", "[core][random]") {
  sae::Random random(11);
  for (int i = 0; i < 100; ++i) CHECK(random.below(1) == 0);
  for (const std::uint64_t n : {std::uint64_t{2}, std::uint64_t{3}, std::uint64_t{7}, std::uint64_t{10}}) {
    std::vector<double> seen(n, 0.0);
    constexpr int draws = 20000;
    for (int i = 0; i < draws; ++i) {
      const auto x = random.below(n);
      REQUIRE(x < n);
      seen[x] += 1;
    }
    const double expected = draws / static_cast<double>(n);
    double chi_square = 0;
    for (const double s : seen) chi_square += (s - expected) * (s - expected) / expected;
    CHECK(chi_square < 40);  // 9 degrees of freedom at most: about 1e-5
  }
  // n = 2/3 of 2^64: a plain remainder would give the lower half twice as often as the upper.
  const std::uint64_t n = 0xaaaaaaaaaaaaaaaa;
  int lower = 0;
  constexpr int draws = 20000;
  for (int i = 0; i < draws; ++i) {
    const auto x = random.below(n);
    REQUIRE(x < n);
    lower += x < n / 2 ? 1 : 0;
  }
  CHECK(std::abs(lower - draws / 2) < 6 * std::sqrt(draws / 4.0));
}

TEST_CASE("below refuses exactly the words that would come up once too often", "[core][random]") {
  // 2^64 mod (2^63 + 1) = 2^63 - 1 words are refused: nearly every other one. Replay the stream by hand.
  const std::uint64_t n = (std::uint64_t{1} << 63) + 1;
  sae::Random random(5), words(5);
  for (int i = 0; i < 200; ++i) {
    std::uint64_t word = words.bits64();
    while (word < (std::uint64_t{1} << 63) - 1) word = words.bits64();
    REQUIRE(random.below(n) == word % n);
    REQUIRE(random.position() == words.position());
  }
}

TEST_CASE("uniform and normal have their moments", "[core][random]") {
  sae::Random random(3);
  constexpr int n = 100000;
  double sum = 0, squares = 0;
  for (int i = 0; i < n; ++i) {
    const double x = random.uniform();
    REQUIRE((x >= 0 && x < 1));
    sum += x;
    squares += x * x;
  }
  CHECK(std::abs(sum / n - 0.5) < 5 * std::sqrt(1.0 / 12 / n));
  CHECK(std::abs(squares / n - 1.0 / 3) < 5 * std::sqrt(4.0 / 45 / n));
  for (int i = 0; i < 1000; ++i) {
    const double x = random.uniform(-3, -1);
    REQUIRE((x >= -3 && x < -1));
  }
  double moments[5] = {};
  int beyond_two = 0;
  for (int i = 0; i < n; ++i) {
    const auto before = random.position();
    const double x = random.normal();
    REQUIRE(std::isfinite(x));
    REQUIRE(random.position() == before + 4);
    double power = 1;
    for (double& m : moments) m += power, power *= x;
    beyond_two += std::abs(x) > 2 ? 1 : 0;
  }
  CHECK(std::abs(moments[1] / n) < 5 / std::sqrt(n));
  CHECK(std::abs(moments[2] / n - 1) < 5 * std::sqrt(2.0 / n));
  CHECK(std::abs(moments[3] / n) < 5 * std::sqrt(15.0 / n));
  CHECK(std::abs(moments[4] / n - 3) < 5 * std::sqrt(96.0 / n));
  CHECK(std::abs(beyond_two / static_cast<double>(n) - 0.0455003) < 5 * std::sqrt(0.0455 / n));
}

TEST_CASE("Permutation gives each element once, in an order of its own for each seed and stream", "[core][random]") {
  for (const std::uint64_t n : {1u, 2u, 3u, 4u, 5u, 16u, 17u, 63u, 64u, 65u, 1000u, 4097u}) {
    const sae::Permutation order(n, 42, 1), other_seed(n, 43, 1), other_stream(n, 42, 2);
    CHECK(order.size() == n);
    std::vector<std::uint64_t> seen(n);
    std::size_t fixed = 0, same_as_seed = 0, same_as_stream = 0;
    for (std::uint64_t i = 0; i < n; ++i) {
      seen[i] = order(i);
      fixed += seen[i] == i ? 1u : 0u;
      same_as_seed += seen[i] == other_seed(i) ? 1u : 0u;
      same_as_stream += seen[i] == other_stream(i) ? 1u : 0u;
    }
    if (n >= 1000) {  // a random order fixes one element on average
      CHECK(fixed < 10);
      CHECK(same_as_seed < 10);
      CHECK(same_as_stream < 10);
    }
    std::sort(seen.begin(), seen.end());
    for (std::uint64_t i = 0; i < n; ++i) REQUIRE(seen[i] == i);
  }
  const sae::Permutation large(std::uint64_t{1} << 40, 1, 1);
  for (std::uint64_t i = 0; i < 100; ++i) CHECK(large(i) < (std::uint64_t{1} << 40));
}

TEST_CASE("neighbours of a permutation are far apart", "[core][random]") {
  constexpr std::uint64_t n = 5000;
  const sae::Permutation order(n, 9, 0);
  double distance = 0, first_half = 0;
  for (std::uint64_t i = 0; i + 1 < n; ++i)
    distance += std::abs(static_cast<double>(order(i)) - static_cast<double>(order(i + 1)));
  for (std::uint64_t i = 0; i < n / 2; ++i) first_half += order(i) < n / 2 ? 1 : 0;
  CHECK(std::abs(distance / n - n / 3.0) < 0.05 * n);
  CHECK(std::abs(first_half - n / 4.0) < 5 * std::sqrt(n / 16.0));
}
