#include <sae/activations/relu.hpp>
#include <sae/models/step.hpp>

#include <set>
#include <vector>

#include "catch_compat.hpp"
#include "reference.hpp"

using sae::Index;

TEST_CASE("entries regrouped by latent keep their rows ascending", "[models][step]") {
  for (const double bias : {-10.0, -1.0, 0.5, 10.0}) {
    const sae_test::Dense z = (sae_test::random_rows(37, 23, 1).array() + bias).matrix();
    const auto codes = sae::Codes<double>::from_dense(sae_test::naive_codes(z, sae_test::naive_positive(z)));
    sae::ByLatent grouped;
    for (int round = 0; round < 2; ++round) grouped.build(codes);  // storage is reused
    REQUIRE(grouped.offsets.size() == 24);
    CHECK(grouped.offsets.front() == 0);
    CHECK(grouped.offsets.back() == codes.size());
    std::set<int> seen;
    for (Index i = 0; i < 23; ++i) {
      int last_row = -1;
      for (int t = grouped.offsets[static_cast<std::size_t>(i)]; t < grouped.offsets[static_cast<std::size_t>(i) + 1]; ++t) {
        const int entry = grouped.entries[static_cast<std::size_t>(t)], row = grouped.rows[static_cast<std::size_t>(t)];
        REQUIRE(codes.latent(entry) == i);
        REQUIRE(codes.value(entry) == codes.coefficient(row, i));
        REQUIRE((codes.begin(row) <= entry && entry < codes.end(row)));
        REQUIRE(row > last_row);
        last_row = row;
        seen.insert(entry);
      }
    }
    CHECK(static_cast<Index>(seen.size()) == codes.size());
  }
}

TEST_CASE("regrouping no rows and no entries", "[models][step]") {
  sae::ByLatent grouped;
  grouped.build(sae::Codes<float>(3));
  CHECK(std::vector<int>(grouped.offsets.begin(), grouped.offsets.end()) == std::vector<int>{0, 0, 0, 0});
  CHECK(grouped.entries.empty());
}

TEST_CASE("scratch memory is lent, given back and lent again", "[models][step]") {
  sae::ScratchPool<float> pool;
  const float* first = nullptr;
  {
    auto a = pool.borrow(100), b = pool.borrow(100);
    CHECK(a.data() != b.data());
    a.data()[99] = b.data()[99] = 1;
    first = a.data();
  }
  std::set<const float*> again;
  {
    auto a = pool.borrow(50), b = pool.borrow(100);
    again = {a.data(), b.data()};
  }
  CHECK(again.count(first) == 1);
  auto large = pool.borrow(100000);
  large.data()[99999] = 1;
}

TEST_CASE("a step hands out paths and gradients that begin at zero", "[models][step]") {
  sae::Step<sae::ReLU, float> step;
  step.input.resize(3, 2);
  step.main.entries.reset(5);
  auto& path = step.add_path();
  path.cotangent = &path.own_cotangent;
  CHECK(step.extra_used == 1);
  auto& second = step.add_path();
  CHECK(&second != &path);
  step.extra_used = 0;  // the next batch
  CHECK(&step.add_path() == &path);
  CHECK(path.cotangent == nullptr);
  REQUIRE(step.gate_gradient().size() == 3);
  step.gate_gradient()[1] += 2;
  CHECK(step.gate_gradient()[1] == 2);
  REQUIRE(step.norm_gradient().size() == 5);
  step.norm_gradient()[4] += 3;
  CHECK(step.norm_gradient()[4] == 3);
  CHECK(step.norm_gradient()[0] == 0);
}
