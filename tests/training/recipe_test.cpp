#include <sae/training/recipe.hpp>

#include <variant>

#include "catch_compat.hpp"

TEST_CASE("recipe: legal for every size, the rate falls with the number of latents", "[training]") {
  double last = 1;
  for (const sae::Index latents : {1, 64, 4608, 32768, 1 << 20}) {
    for (const sae::Index tokens : {1024, 3000, 600'000, 100'000'000}) {
      const sae::TrainerConfig config = sae::recommended(576, latents, tokens);
      CHECK_NOTHROW(config.check());
      CHECK(config.total_steps() == tokens / 1024);
      CHECK(config.schedule.warmup == config.total_steps() / 50);
      CHECK(config.schedule.warmup + config.schedule.decay <= config.total_steps());
      CHECK(5 * config.schedule.decay >= 4 * config.total_steps());
      CHECK(config.dead.window >= latents);
      CHECK(config.dead.window >= 4096);
    }
    const double rate = sae::recommended(576, latents, 1024).learning_rate;
    CHECK(rate <= last);
    last = rate;
  }
  CHECK(sae::recommended(576, 4608, 571'392).learning_rate == Approx(4.2e-3));
  const auto beta2 = [](sae::Index steps) {
    return std::get<sae::Adam>(sae::recommended(8, 64, 1024 * steps).optimizer).beta2;
  };
  CHECK(beta2(1) == Approx(0.95));
  CHECK(beta2(2800) == Approx(0.99));
  CHECK(beta2(1'000'000) == Approx(0.999));
  CHECK_THROWS_AS(sae::recommended(576, 4608, 1023), sae::ValueError);
  CHECK_THROWS_AS(sae::recommended(0, 4608, 4096), sae::ValueError);
}

TEST_CASE("recipe: passes over the rows", "[training]") {
  CHECK(sae::recommended_tokens(1000) == 512'000);
  CHECK(sae::recommended_tokens(300'000) == 1'200'000);
  CHECK(sae::recommended_tokens(1'000'000) == 2'000'000);
  CHECK(sae::recommended_tokens(50'000'000) == 50'000'000);
  CHECK(sae::recommended_tokens(10, 32) == 16'000);
}
