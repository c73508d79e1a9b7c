#include <sae/training/schedule.hpp>

#include <cmath>
#include <limits>

#include "catch_compat.hpp"

using sae::Index;
using sae::Schedule;
using sae::ScheduleShape;
using sae::WarmupShape;

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
  const Schedule from_zero{.warmup = 4, .warmup_shape = WarmupShape::from_zero};
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

TEST_CASE("a line goes from 1 to its final fraction", "[training][schedule]") {
  const Schedule schedule{.warmup = 10, .shape = ScheduleShape::linear, .final_fraction = 0.2, .decay = 10};
  schedule.check(120);
  CHECK(schedule.factor(10, 120) == 1);
  CHECK(schedule.factor(60, 120) == Approx(0.6));
  CHECK(schedule.factor(109, 120) == Approx(0.208));  // 1 - 0.8 99 / 100
  CHECK(schedule.factor(110, 120) == Approx(0.2));
  CHECK(schedule.factor(119, 120) == Approx(0.02));
  // sparsify: t / W, then (T - t) / (T - W).
  const Schedule sparsify{
      .warmup = 4, .warmup_shape = WarmupShape::from_zero, .shape = ScheduleShape::linear, .final_fraction = 0};
  CHECK(sparsify.factor(0, 20) == 0);
  CHECK(sparsify.factor(2, 20) == 0.5);
  for (Index t = 4; t < 20; ++t) CHECK(sparsify.factor(t, 20) == Approx(static_cast<double>(20 - t) / 16));
}

TEST_CASE("a cosine with restarts begins again", "[training][schedule]") {
  // SAELens' cosineannealingwarmrestarts: T0 = (100 - 10 - 9) / 4 = 20 steps, 1 left over that begins a fifth cycle.
  const Schedule schedule{
      .warmup = 10, .shape = ScheduleShape::cosine_restarts, .final_fraction = 0.1, .cycles = 4, .decay = 9};
  schedule.check(100);
  for (const Index start : {10, 30, 50, 70, 90}) CHECK(schedule.factor(start, 100) == 1);
  for (const Index start : {10, 30, 50, 70}) {
    CHECK(schedule.factor(start + 10, 100) == Approx(0.55));
    CHECK(schedule.factor(start + 19, 100) == Approx(0.1 + 0.45 * (1 + std::cos(3.14159265358979 * 0.95))));
  }
  CHECK(schedule.factor(9, 100) == 1);
  CHECK(schedule.factor(91, 100) == Approx(0.1));  // the decay starts from the final fraction
  CHECK(schedule.factor(99, 100) == Approx(0.1 / 9));
  const Schedule once{.shape = ScheduleShape::cosine_restarts}, cosine{.shape = ScheduleShape::cosine};
  for (Index t = 0; t < 50; ++t) REQUIRE(once.factor(t, 50) == cosine.factor(t, 50));
}

TEST_CASE("an exponential goes down by the same share at each step", "[training][schedule]") {
  const Schedule schedule{.shape = ScheduleShape::exponential, .final_fraction = 1.0 / 32};
  schedule.check(10);
  CHECK(schedule.factor(0, 10) == 1);
  CHECK(schedule.factor(2, 10) == Approx(0.5));
  CHECK(schedule.factor(6, 10) == Approx(0.125));
  CHECK(schedule.factor(9, 10) == Approx(std::pow(2, -4.5)));
}

TEST_CASE("llamascopium's smooth warm-up and cool-down", "[training][schedule]") {
  // constantwithwarmupsmooth, W = 8: the last 12 steps are cool; 2 (t + 1) / 12 up to step 3, then 1 - (t / 8 - 1)^2 / 0.75.
  const Schedule smooth{.warmup = 8, .warmup_shape = WarmupShape::smooth, .decay = 12, .decay_shape = ScheduleShape::cosine};
  smooth.check(40);
  CHECK(smooth.factor(0, 40) == Approx(1.0 / 6));
  CHECK(smooth.factor(3, 40) == Approx(4.0 / 6));
  CHECK(smooth.factor(4, 40) == Approx(1 - 0.25 / 0.75));
  CHECK(smooth.factor(6, 40) == Approx(1 - 0.0625 / 0.75));
  CHECK(smooth.factor(7, 40) == Approx(1 - 0.015625 / 0.75));
  CHECK(smooth.factor(8, 40) == 1);
  CHECK(smooth.factor(27, 40) == 1);
  CHECK(smooth.factor(28, 40) == 1);
  CHECK(smooth.factor(34, 40) == Approx(0.5));
  CHECK(smooth.factor(39, 40) == Approx(0.5 * (1 + std::cos(3.14159265358979 * 11 / 12))));
  // constantwithwarmup: min(1, (t + 1) / W, e + (1 - e) / Dc max(T - t, 1)).
  const Schedule linear{.warmup = 5, .decay = 8, .decay_fraction = 0.2};
  for (Index t = 0; t < 40; ++t) {
    const double want = std::fmin(std::fmin(1.0, static_cast<double>(t + 1) / 5), 0.2 + 0.8 / 8 * static_cast<double>(40 - t));
    CHECK(linear.factor(t, 40) == Approx(want));
  }
}

TEST_CASE("dictionary_learning's decay is SAELens'", "[training][schedule]") {
  // (T - t) / (T - decay_start) with T = 50, decay_start = 40.
  const Schedule schedule{.warmup = 10, .warmup_shape = WarmupShape::from_zero, .decay = 10};
  for (Index t = 40; t < 50; ++t) CHECK(schedule.factor(t, 50) == Approx(static_cast<double>(50 - t) / 10));
  CHECK(schedule.factor(5, 50) == 0.5);
  CHECK(schedule.factor(25, 50) == 1);
}

TEST_CASE("k goes from one number to another", "[training][schedule]") {
  using sae::annealed_k;
  using sae::AnnealShape;
  CHECK(annealed_k(0, 100, 512, 32) == 512);
  CHECK(annealed_k(50, 100, 512, 32) == 272);
  CHECK(annealed_k(99, 100, 512, 32) == 37);  // 36.8
  CHECK(annealed_k(100, 100, 512, 32) == 32);
  CHECK(annealed_k(1000, 100, 512, 32) == 32);
  CHECK(annealed_k(0, 0, 512, 32) == 32);
  CHECK(annealed_k(1, 2, 4, 1) == 2);  // 2.5, to the even one
  CHECK(annealed_k(1, 2, 6, 1) == 4);  // 3.5
  CHECK(annealed_k(1, 4, 1, 9) == 3);  // upwards, too
  // 1 - (1 - e^-1.5) / (1 - e^-3) = 0.18243 is left half way: 32 + 480 0.18243 = 119.56.
  CHECK(annealed_k(0, 100, 512, 32, AnnealShape::exponential) == 512);
  CHECK(annealed_k(50, 100, 512, 32, AnnealShape::exponential) == 120);
  CHECK(annealed_k(99, 100, 512, 32, AnnealShape::exponential) == 33);  // 32.77
  CHECK(annealed_k(100, 100, 512, 32, AnnealShape::exponential) == 32);
  for (Index t = 1; t < 100; ++t)
    REQUIRE(annealed_k(t, 100, 512, 32, AnnealShape::exponential) <= annealed_k(t - 1, 100, 512, 32, AnnealShape::exponential));
  CHECK_THROWS_WITH(annealed_k(-1, 100, 4, 2), "annealed_k: t = -1 is not in [0, infinity)");
  CHECK_THROWS_WITH(annealed_k(1, -1, 4, 2), "annealed_k: steps = -1 is not in [0, infinity)");
  CHECK_THROWS_WITH(annealed_k(1, 1, 0, 2), "annealed_k: from = 0 or to = 2 is below 1");
  CHECK_THROWS_WITH(annealed_k(1, 1, 4, 0), "annealed_k: from = 4 or to = 0 is below 1");
}

TEST_CASE("a learning rate for the number of latents", "[training][schedule]") {
  CHECK(sae::auto_learning_rate(16384) == Approx(2e-4));
  CHECK(sae::auto_learning_rate(65536) == Approx(1e-4));
  CHECK(sae::auto_learning_rate(4096) == Approx(4e-4));
  CHECK(sae::auto_learning_rate(65536, 5e-3) == Approx(2.5e-3));
  CHECK_THROWS_WITH(sae::auto_learning_rate(0), "auto_learning_rate: latents = 0 is below 1");
  CHECK_THROWS_WITH(sae::auto_learning_rate(4, 0), "auto_learning_rate: base = 0 is not in (0, infinity)");
}

TEST_CASE("schedules that do not fit are refused", "[training][schedule]") {
  CHECK_THROWS_WITH((Schedule{.warmup = 6, .decay = 5}.check(10)),
                    "Schedule: warmup = 6 and decay = 5 steps do not fit into 10 steps");
  CHECK_THROWS_AS((Schedule{.warmup = -1}.check(10)), sae::ValueError);
  CHECK_THROWS_AS((Schedule{.decay = -1}.check(10)), sae::ValueError);
  CHECK_THROWS_WITH((Schedule{.final_fraction = 1.5}.check(10)), "Schedule: final_fraction = 1.5 is not in [0, 1]");
  CHECK_THROWS_WITH((Schedule{.decay_fraction = -1}.check(10)), "Schedule: decay_fraction = -1 is not in [0, 1]");
  CHECK_THROWS_WITH((Schedule{.shape = ScheduleShape::exponential, .final_fraction = 0}.check(10)),
                    "Schedule: final_fraction = 0 is not in (0, 1], where an exponential can end");
  CHECK_THROWS_WITH((Schedule{.decay = 2, .decay_shape = ScheduleShape::exponential}.check(10)),
                    "Schedule: decay_fraction = 0 is not in (0, 1], where an exponential can end");
  CHECK_THROWS_WITH((Schedule{.warmup = 4, .shape = ScheduleShape::cosine_restarts, .cycles = 5, .decay = 2}.check(10)),
                    "Schedule: cycles = 5 is not in [1, 4] (the steps of the main part)");
  CHECK_NOTHROW((Schedule{.warmup = 4, .shape = ScheduleShape::cosine_restarts, .cycles = 4, .decay = 2}.check(10)));
  CHECK_THROWS_AS((Schedule{.cycles = 0}.check(10)), sae::ValueError);
  for (const auto shape : {ScheduleShape::constant, ScheduleShape::cosine_restarts})
    CHECK_THROWS_WITH((Schedule{.decay_shape = shape}.check(10)),
                      "Schedule: decay_shape is neither linear nor cosine nor exponential");
  CHECK_THROWS_AS((Schedule{.final_fraction = std::numeric_limits<double>::quiet_NaN()}.check(10)), sae::ValueError);
}

TEST_CASE("sparsity warm-up: t / W from 0, then 1", "[training][schedule]") {
  CHECK(sae::sparsity_warmup_factor(0, 0) == 1);
  CHECK(sae::sparsity_warmup_factor(0, 4) == 0);
  CHECK(sae::sparsity_warmup_factor(1, 4) == 0.25);
  CHECK(sae::sparsity_warmup_factor(4, 4) == 1);
  CHECK(sae::sparsity_warmup_factor(400, 4) == 1);
}

TEST_CASE("a warm-up that repeats", "[training][schedule]") {
  // dictionary_learning with resample_steps = 10 and warmup_steps = 4: min((t mod 10) / 4, 1)
  const Schedule schedule{.warmup = 4, .warmup_shape = WarmupShape::from_zero, .warmup_every = 10};
  schedule.check(35);
  for (Index t = 0; t < 35; ++t) CHECK(schedule.factor(t, 35) == std::fmin(static_cast<double>(t % 10) / 4, 1.0));
  // The decay goes on below it.
  const Schedule decayed{.warmup = 2, .warmup_every = 6, .decay = 4};
  decayed.check(14);
  CHECK(decayed.factor(11, 14) == Approx(0.75));
  CHECK(decayed.factor(12, 14) == Approx(0.5 * 0.5));
  CHECK(decayed.factor(13, 14) == Approx(0.25 * 1));
  CHECK_THROWS_WITH((Schedule{.warmup = 4, .warmup_every = 3}.check(35)),
                    "Schedule: warmup_every = 3 is neither 0 nor at least the 4 steps of warmup");
  CHECK_THROWS_WITH((Schedule{.warmup_every = -1}.check(35)),
                    "Schedule: warmup_every = -1 is neither 0 nor at least the 0 steps of warmup");
}
