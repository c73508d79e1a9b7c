#include <sae/activations/relu.hpp>
#include <sae/models/backward.hpp>
#include <sae/models/step.hpp>

#include <algorithm>
#include <set>
#include <type_traits>
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

TEMPLATE_TEST_CASE("a path of few latents gives what the same entries of all give", "[models][step]", float, double) {
  using Scalar = TestType;
  constexpr Index rows = 150, in = 21, out = 70, latents = 200;
  const auto noise = [](sae::Tensor<Scalar>& t, std::uint64_t seed) {
    sae::Random random(seed);
    for (Index i = 0; i < t.size(); ++i) t[i] = static_cast<Scalar>(random.normal());
  };
  sae::Threads threads(2);
  std::set<sae::detail::SumsBy> seen;
  for (const Index own : {1, 3, 40, 200})
    for (const double density : {0.0, 0.02, 0.3, 0.95}) {
      CAPTURE(own, density);
      sae::Step<sae::ReLU, Scalar> step;
      sae::Tensor<Scalar> decoder(latents, out), encoder(latents, in), cotangent(rows, out);
      noise(decoder, 1);
      noise(encoder, 2);
      noise(cotangent, 3);
      step.input.resize(rows, in);
      noise(step.input, 4);
      step.decoder = &decoder;
      step.encoder = &encoder;
      step.main.entries.reset(latents);
      step.main.cotangent = &cotangent;
      step.main.by_latent.build(step.main.entries.codes);
      std::vector<Index> list;
      for (Index n = 0; n < own; ++n) list.push_back((2 * n + 1) * latents / (2 * own));

      const auto gradient_of = [&](bool names) {
        step.extra_used = 0;
        auto& path = step.add_path();
        path.cotangent = &cotangent;
        if (names) path.own_latents = list;
        path.entries.reset(names ? own : latents);
        path.dz.clear();
        sae::Random random(5);
        for (Index b = 0; b < rows; ++b) {
          for (Index n = 0; n < own; ++n) {
            if (!(random.uniform() < density)) continue;
            path.entries.push(names ? n : list[static_cast<std::size_t>(n)], static_cast<Scalar>(random.normal()), Scalar(0));
            path.dz.push_back(static_cast<Scalar>(random.normal()));
          }
          path.entries.finish_row();
        }
        path.by_latent.build(path.entries.codes);
        sae::detail::sum_own_latents(step, path, threads);
        if (names) seen.insert(sae::detail::sums_by<Scalar>(path.entries.size(), rows * own));
        sae::Tensor<Scalar> all(latents, in + out + 1);
        for (Index first = 0; first < latents; first += 64)
          sae::detail::visit_latent_gradients(step, first, std::min(first + 64, latents),
                                              [&](Index i, const Scalar* g_enc, Scalar g_bias, const Scalar* g_dec) {
                                                std::copy_n(g_enc, in, all.row(i));
                                                std::copy_n(g_dec, out, all.row(i) + in);
                                                all.row(i)[in + out] = g_bias;
                                              });
        return all;
      };
      const auto got = gradient_of(true), want = gradient_of(false);
      // Of float32 to the last bit, however the sums go; a product of doubles is Eigen's.
      const double bound = std::is_same_v<Scalar, float> ? 0 : 1e-13 * sae_test::largest_magnitude(want.map());
      CHECK(sae_test::largest_difference(got.map(), want.map()) <= bound);
      CHECK((density == 0 || sae_test::largest_magnitude(got.map()) > 1));
    }
  CHECK(seen.size() == (std::is_same_v<Scalar, float> ? 3 : 2));
}
