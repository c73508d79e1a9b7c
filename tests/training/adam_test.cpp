#include <sae/training/adam.hpp>

#include <array>
#include <cmath>

#include "catch_compat.hpp"

TEST_CASE("three steps of Adam, by hand", "[training][adam]") {
  const sae::Adam adam{.beta1 = 0.5, .beta2 = 0.75, .epsilon = 0.5};
  // One number, gradients 2, -4, 0; a second number whose gradient is always 0 moves by its momentum alone, i.e. not at all.
  std::array<double, 2> w{1, 1}, m{0, 0}, v{0, 0};
  const std::array<double, 3> gradients{2, -4, 0};
  const std::array<double, 3> expected_m{1, -1.5, -0.75}, expected_v{1, 4.75, 3.5625};
  double expected_w = 1;
  for (int t = 1; t <= 3; ++t) {
    const auto n = static_cast<std::size_t>(t - 1);
    const double rate = 0.1 * t;
    const std::array<double, 2> g{gradients[n], 0};
    adam.update<double>(t, rate)(w.data(), g.data(), {m.data(), v.data()}, 2);
    CHECK(m[0] == Approx(expected_m[n]).epsilon(1e-15));
    CHECK(v[0] == Approx(expected_v[n]).epsilon(1e-15));
    const std::array<double, 3> rest1{0.5, 0.75, 0.875}, rest2{0.25, 0.4375, 0.578125};  // 1 - beta^t
    expected_w -= rate * (expected_m[n] / rest1[n]) / (std::sqrt(expected_v[n] / rest2[n]) + 0.5);
    CHECK(w[0] == Approx(expected_w).epsilon(1e-14));
    CHECK(w[1] == 1);
  }
  CHECK(w[0] == Approx(1.11162).epsilon(1e-5));  // 1 - 0.08 + 0.10540 + 0.08622
}

TEST_CASE("the first step of Adam is the learning rate against the sign", "[training][adam]") {
  for (const float g : {1e-3f, -5.f, 100.f}) {
    float w = 0, m = 0, v = 0;
    sae::Adam{}.update<float>(1, 0.01)(&w, &g, {&m, &v}, 1);
    CHECK(w == Approx(g > 0 ? -0.01 : 0.01).epsilon(1e-4));
  }
  float w = 3, m = 0, v = 0;
  const float none = 0;
  sae::Adam{}.update<float>(1, 0.01)(&w, &none, {&m, &v}, 1);
  CHECK(w == 3);
}

TEST_CASE("Adam's settings are checked", "[training][adam]") {
  CHECK_NOTHROW(sae::Adam{}.check());
  CHECK_NOTHROW((sae::Adam{.beta1 = 0, .beta2 = 0}.check()));
  CHECK_THROWS_WITH((sae::Adam{.beta1 = 1}.check()), "Adam: beta1 = 1 is not in [0, 1)");
  CHECK_THROWS_WITH((sae::Adam{.beta2 = -0.1}.check()), "Adam: beta2 = -0.1 is not in [0, 1)");
  CHECK_THROWS_WITH((sae::Adam{.epsilon = 0}.check()), "Adam: epsilon = 0 is not in (0, infinity)");
  CHECK_THROWS_AS((sae::Adam{.beta1 = std::nan("")}.check()), sae::ValueError);
}

TEST_CASE("Adam without a first moment keeps one slot and is Adam with beta1 = 0", "[training][adam]") {
  const sae::Adam adam{.beta1 = 0, .beta2 = 0.75, .epsilon = 0.5};
  CHECK(adam.slot_shapes(3, 4) == sae::SlotShapes{{3, 4}});
  CHECK(sae::Adam{}.slot_shapes(3, 4) == sae::SlotShapes{{3, 4}, {3, 4}});
  double w = 1, v = 0;
  // v = 1, 4.75, 3.5625 as above, but g itself is what is followed.
  const std::array<double, 3> gradients{2, -4, 0}, expected_v{1, 4.75, 3.5625}, rest2{0.25, 0.4375, 0.578125};
  double expected_w = 1;
  for (int t = 1; t <= 3; ++t) {
    const auto n = static_cast<std::size_t>(t - 1);
    adam.update<double>(t, 0.1)(&w, &gradients[n], {&v}, 1);
    expected_w -= 0.1 * gradients[n] / (std::sqrt(expected_v[n] / rest2[n]) + 0.5);
    CHECK(v == Approx(expected_v[n]).epsilon(1e-15));
    CHECK(w == Approx(expected_w).epsilon(1e-14));
  }
  CHECK(w == Approx(1.02540).epsilon(1e-5));  // 1 - 0.08 + 0.10540
}

TEST_CASE("AdamW shrinks the weight by lr weight_decay, then steps as Adam", "[training][adam]") {
  const sae::AdamW adamw{.beta1 = 0.5, .beta2 = 0.75, .epsilon = 0.5, .weight_decay = 0.5};
  double w = 1, m = 0, v = 0, g = 2;
  adamw.update<double>(1, 0.1)(&w, &g, {&m, &v}, 1);
  CHECK(w == Approx(0.95 - 0.08));
  double none = 4, m0 = 0, v0 = 0;
  const double zero = 0;
  for (int t = 1; t <= 3; ++t) adamw.update<double>(t, 0.1)(&none, &zero, {&m0, &v0}, 1);
  CHECK(none == Approx(4 * 0.95 * 0.95 * 0.95));
}
