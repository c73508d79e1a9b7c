#include <sae/core/random.hpp>
#include <sae/kernels/largest.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "catch_compat.hpp"

namespace {

using sae::Index;
constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

struct Kept {
  int latent;
  float z;
  bool operator==(const Kept&) const = default;
};

// Sort everything that is above the floor by (key, lower latent), keep k, put them back in order.
std::vector<Kept> naive(const std::vector<float>& z, const std::vector<float>& norms, Index k, float floor) {
  struct Ranked {
    float key;
    Kept kept;
  };
  std::vector<Ranked> all;
  for (std::size_t i = 0; i < z.size(); ++i) {
    const float key = norms.empty() ? z[i] : z[i] * norms[i];
    if (key > floor) all.push_back({key, {static_cast<int>(i), z[i]}});
  }
  std::stable_sort(all.begin(), all.end(), [](const Ranked& a, const Ranked& b) { return a.key > b.key; });
  if (static_cast<Index>(all.size()) > k) all.resize(static_cast<std::size_t>(k));
  std::vector<Kept> out;
  for (const Ranked& r : all) out.push_back(r.kept);
  std::sort(out.begin(), out.end(), [](const Kept& a, const Kept& b) { return a.latent < b.latent; });
  return out;
}

std::vector<Kept> selected(sae::kernels::LargestPerRow<float>& largest, Index row) {
  std::vector<Kept> out;
  for (const auto& e : largest.finish(row)) out.push_back({e.latent, e.z});
  return out;
}

// The same row shown in pieces of `piece` latents, as a whole by `take` or one by one by `offer`.
std::vector<Kept> in_pieces(const std::vector<float>& z, const std::vector<float>& norms, Index k, float floor, Index piece) {
  sae::kernels::LargestPerRow<float> largest;
  largest.begin(3, k, floor);
  const Index n = static_cast<Index>(z.size());
  for (Index first = 0; first < n; first += piece) {
    const Index count = std::min(piece, n - first);
    const float before = largest.bound(1);
    if (norms.empty()) {
      largest.take(1, first, {z.data() + first, static_cast<std::size_t>(count)});
    } else {
      for (Index i = first; i < first + count; ++i) {
        const auto at = static_cast<std::size_t>(i);
        largest.offer(1, z[at] * norms[at], z[at], i);
      }
    }
    REQUIRE(largest.bound(1) >= before);  // a bound never falls: what was refused stays refused
  }
  const auto out = selected(largest, 1);
  CHECK(selected(largest, 0).empty());  // its neighbours were shown nothing
  CHECK(selected(largest, 2).empty());
  CHECK(selected(largest, 1) == out);  // finishing twice changes nothing
  return out;
}

void check(const std::vector<float>& z, Index k, float floor = 0, const std::vector<float>& norms = {}) {
  const auto expected = naive(z, norms, k, floor);
  const Index n = static_cast<Index>(z.size());
  CAPTURE(n, k, floor);
  for (const Index piece : {Index{1}, Index{7}, Index{16}, Index{17}, Index{512}, std::max<Index>(n, 1)})
    REQUIRE(in_pieces(z, norms, k, floor, piece) == expected);
}

}  // namespace

TEST_CASE("the k largest of random rows", "[kernels][largest]") {
  sae::Random random(1);
  for (const Index n : {0, 1, 2, 15, 16, 17, 65, 300, 2000}) {
    std::vector<float> z(static_cast<std::size_t>(n));
    for (float& x : z) x = static_cast<float>(random.normal());
    for (const Index k : {1, 2, 3, 16, 100}) check(z, k);
    if (n > 0) check(z, n);  // k = n: everything above the floor
    check(z, 5, -infinity);
    if (n > 0) check(z, n, -infinity);
    check(z, 3, 1.0f);
  }
}

TEST_CASE("ties go to the lower latent", "[kernels][largest]") {
  check(std::vector<float>(500, 1.0f), 7);  // all equal
  sae::Random random(2);
  for (const Index n : {100, 1000, 5000})
    for (const std::uint64_t levels : {2u, 3u, 10u}) {
      std::vector<float> z(static_cast<std::size_t>(n));
      for (float& x : z) x = static_cast<float>(random.below(levels));
      for (const Index k : {1, 5, 50}) {
        check(z, k);
        check(z, k, -infinity);
      }
    }
  std::vector<float> zeros(300, 0.0f);
  zeros[200] = -0.0f;
  check(zeros, 4, -infinity);
  check(zeros, 4);  // 0 is not above 0
}

TEST_CASE("adversarial orders: ascending, descending, organ pipe", "[kernels][largest]") {
  const Index n = 3000;
  std::vector<float> up, down, pipe;
  for (Index i = 0; i < n; ++i) {
    up.push_back(static_cast<float>(i + 1));
    down.push_back(static_cast<float>(n - i));
    pipe.push_back(static_cast<float>(std::min(i + 1, n - i)));
  }
  for (const Index k : {1, 2, 31, 500}) {
    check(up, k);
    check(down, k);
    check(pipe, k);
  }
}

TEST_CASE("NaN is never kept, infinities are numbers", "[kernels][largest]") {
  sae::Random random(3);
  std::vector<float> z(1000);
  for (float& x : z) x = static_cast<float>(random.normal());
  for (std::size_t i = 0; i < z.size(); i += 3) z[i] = not_a_number;
  z[10] = infinity;
  z[500] = infinity;
  z[700] = -infinity;
  for (const Index k : {1, 2, 3, 40, 1000}) {
    check(z, k);
    check(z, k, -infinity);  // -inf itself is not above the floor
  }
  check(std::vector<float>(100, not_a_number), 5, -infinity);
}

TEST_CASE("ranked by a key of its own, the pre-activation comes along", "[kernels][largest]") {
  sae::Random random(4);
  std::vector<float> z(800), norms(800);
  for (float& x : z) x = static_cast<float>(random.normal());
  for (float& x : norms) x = static_cast<float>(random.below(4)) * 0.5f;  // some rank 0
  for (const Index k : {1, 8, 100}) {
    check(z, k, 0, norms);
    check(z, k, -infinity, norms);
  }
}

TEST_CASE("storage is reused from block to block without a trace", "[kernels][largest]") {
  sae::kernels::LargestPerRow<float> largest;
  largest.begin(4, 2, -infinity);
  const std::vector<float> high(300, 100.f);
  for (Index row = 0; row < 4; ++row) largest.take(row, 0, high);
  largest.begin(2, 3, 0.f);
  CHECK(largest.bound(0) == 0.f);
  const std::vector<float> low{1.f, 2.f, -1.f, 0.5f, 3.f};
  largest.take(1, 10, low);
  CHECK(selected(largest, 0).empty());
  CHECK(selected(largest, 1) == std::vector<Kept>{{10, 1.f}, {11, 2.f}, {14, 3.f}});
}

TEMPLATE_TEST_CASE("the k largest keys of one row", "[kernels][largest]", float, double) {
  using Scalar = TestType;
  sae::Random random(6);
  constexpr auto lowest = -std::numeric_limits<Scalar>::infinity();
  for (const Index n : {0, 1, 2, 5, 64, 700})
    for (const bool ties : {false, true})
      for (const bool holes : {false, true}) {
        std::vector<float> keys(static_cast<std::size_t>(n));
        for (float& key : keys) {
          key = ties ? static_cast<float>(random.below(7)) - 3 : static_cast<float>(random.normal());
          if (holes && random.below(3) == 0) key = random.below(2) == 0 ? not_a_number : infinity;
        }
        const std::vector<Scalar> own(keys.begin(), keys.end());
        sae::kernels::LargestRoom<Scalar> room;
        for (const Index k : {0, 1, 2, 40, 699, 700, 2000})
          for (const Scalar floor : {lowest, Scalar(0)}) {
            CAPTURE(n, ties, holes, k, floor);
            std::vector<Kept> got;
            sae::kernels::visit_largest(std::span<const Scalar>(own), k, floor, room, [&](Index j) {
              got.push_back({static_cast<int>(j), keys[static_cast<std::size_t>(j)]});
            });
            CHECK(got == naive(keys, {}, k, static_cast<float>(floor)));
          }
      }
}
