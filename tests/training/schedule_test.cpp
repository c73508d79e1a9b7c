#include <sae/training/schedule.hpp>

#include <cmath>
#include <limits>

#include "catch_compat.hpp"

using sae::Index;
using sae::Schedule;
using sae::ScheduleShape;

TEST_CASE("a constant rate is 1 throughout", "[training][schedule]") {
  const Schedule schedule{};
  for (const Index t : {0, 1, 50, 99}) CHECK(schedule.factor(t, 100) == 1);
  CHECK_NOTHROW(schedule.check(1));
}

TEST_CASE("warm-up and decay at their first, middle and last steps", "[training][schedule]") {
  const Schedule schedule{.warmup = 4, .decay = 5};
  schedule.check(20);
  CHECK(schedule.factor(0, 20) == 0.25);
  CHECK(schedule.factor(1, 20) == 0.5);
  CHECK(schedule.factor(3, 20) == 1);
  CHECK(schedule.factor(4, 20) == 1);
  CHECK(schedule.factor(14, 20) == 1);
  CHECK(schedule.factor(15, 20) == 1);  // (5 - 0) / 5
  CHECK(schedule.factor(16, 20) == Approx(0.8));
  CHECK(schedule.factor(19, 20) == Approx(0.2));              // never 0
  CHECK(schedule.factor(20, 20) == schedule.factor(19, 20));  // who goes on by hand stays there
  CHECK(schedule.factor(1000, 20) == schedule.factor(19, 20));
  const Schedule from_zero{.warmup = 4, .warmup_from_zero = true};
  CHECK(from_zero.factor(0, 20) == 0);
  CHECK(from_zero.factor(3, 20) == 0.75);
  CHECK(from_zero.factor(4, 20) == 1);
  // Nothing but warm-up and decay.
  const Schedule tight{.warmup = 2, .decay = 2};
  tight.check(4);
  CHECK(tight.factor(1, 4) == 1);
  CHECK(tight.factor(2, 4) == 1);
  CHECK(tight.factor(3, 4) == 0.5);
}

TEST_CASE("a cosine goes from 1 to its final fraction between warm-up and decay", "[training][schedule]") {
  const Schedule schedule{.warmup = 10, .shape = ScheduleShape::cosine, .final_fraction = 0.2, .decay = 10};
  schedule.check(120);
  CHECK(schedule.factor(9, 120) == 1);
  CHECK(schedule.factor(10, 120) == 1);
  CHECK(schedule.factor(60, 120) == Approx(0.6));                               // half way
  CHECK(schedule.factor(35, 120) == Approx(0.2 + 0.4 * (1 + std::sqrt(0.5))));  // a quarter: cos(pi / 4)
  CHECK(schedule.factor(110, 120) == Approx(0.2));                              // the decay starts from the end of the cosine
  CHECK(schedule.factor(115, 120) == Approx(0.1));
  CHECK(schedule.factor(119, 120) == Approx(0.02));
  for (Index t = 11; t < 120; ++t) REQUIRE(schedule.factor(t, 120) <= schedule.factor(t - 1, 120));
  const Schedule plain{.shape = ScheduleShape::cosine, .final_fraction = 0};
  CHECK(plain.factor(0, 8) == 1);
  CHECK(plain.factor(4, 8) == Approx(0.5));
  CHECK(plain.factor(7, 8) == Approx(0.5 * (1 + std::cos(3.14159265358979 * 7 / 8))));
  const Schedule no_room{.warmup = 3, .shape = ScheduleShape::cosine};
  CHECK(no_room.factor(2, 3) == 1);
}

TEST_CASE("schedules that do not fit are refused", "[training][schedule]") {
  CHECK_THROWS_WITH((Schedule{.warmup = 6, .decay = 5}.check(10)),
                    "Schedule: warmup = 6 and decay = 5 steps do not fit into 10 steps");
  CHECK_THROWS_AS((Schedule{.warmup = -1}.check(10)), sae::ValueError);
  CHECK_THROWS_AS((Schedule{.decay = -1}.check(10)), sae::ValueError);
  CHECK_THROWS_WITH((Schedule{.final_fraction = 1.5}.check(10)), "Schedule: final_fraction = 1.5 is not in [0, 1]");
  CHECK_THROWS_AS((Schedule{.final_fraction = std::numeric_limits<double>::quiet_NaN()}.check(10)), sae::ValueError);
}

TEST_CASE("sparsity warm-up: t / W from 0, then 1", "[training][schedule]") {
  CHECK(sae::sparsity_warmup_factor(0, 0) == 1);
  CHECK(sae::sparsity_warmup_factor(0, 4) == 0);
  CHECK(sae::sparsity_warmup_factor(1, 4) == 0.25);
  CHECK(sae::sparsity_warmup_factor(4, 4) == 1);
  CHECK(sae::sparsity_warmup_factor(400, 4) == 1);
}
