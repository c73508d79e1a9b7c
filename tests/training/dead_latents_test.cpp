#include <sae/training/dead_latents.hpp>

#include <vector>

#include "catch_compat.hpp"

namespace {

// One row over 4 latents with these values; 0 is an entry that does not fire.
sae::Codes<float> row(std::initializer_list<std::pair<int, float>> entries) {
  sae::Codes<float> codes(4);
  for (const auto& [latent, value] : entries) codes.push(latent, value);
  codes.finish_row();
  return codes;
}
std::vector<int> mask(const sae::DeadLatents& dead) { return {dead.mask().begin(), dead.mask().end()}; }

}  // namespace

TEST_CASE("latents are dead after a window of silence, counted in tokens or steps", "[training][dead]") {
  sae::DeadLatents dead;
  dead.reset(4);
  CHECK(dead.mark(1) == 0);
  dead.count(row({{0, 1.f}, {1, 0.f}}), 100);  // an entry with value 0 is silent
  CHECK(dead.silent() == std::vector<std::int64_t>{0, 100, 100, 100});
  CHECK(dead.mark(101) == 0);
  CHECK(dead.mark(100) == 3);
  CHECK(mask(dead) == std::vector<int>{0, 1, 1, 1});
  dead.count(row({{2, -1.f}}), 50);  // a negative value fires
  CHECK(dead.silent() == std::vector<std::int64_t>{50, 150, 0, 150});
  CHECK(mask(dead) == std::vector<int>{0, 1, 1, 1});  // as of the last mark
  CHECK(dead.mark(100) == 2);
  CHECK(mask(dead) == std::vector<int>{0, 1, 0, 1});
  dead.count(row({{0, 1.f}, {1, 1.f}, {2, 1.f}, {3, 1.f}}), 50);
  CHECK(dead.mark(1) == 0);
  CHECK(mask(dead) == std::vector<int>{0, 0, 0, 0});
  for (int step = 0; step < 5; ++step) dead.count(row({}), 1);
  CHECK(dead.mark(5) == 4);
  dead.reset(2);
  CHECK(dead.silent() == std::vector<std::int64_t>{0, 0});
  CHECK(dead.mark(1) == 0);
}

TEST_CASE("a latent that fires in one row of many is alive", "[training][dead]") {
  sae::DeadLatents dead;
  dead.reset(3);
  sae::Codes<double> codes(3);
  for (int b = 0; b < 10; ++b) {
    if (b == 7) codes.push(1, 1e-300);
    codes.finish_row();
  }
  dead.count(codes, 10);
  CHECK(dead.silent() == std::vector<std::int64_t>{10, 0, 10});
}

TEST_CASE("what counts as a fire may need a least value", "[training][dead]") {
  sae::DeadLatents dead;
  dead.reset(4);
  dead.count(row({{0, 1e-3f}, {1, 1.1e-3f}, {2, -2e-3f}, {3, 0.f}}), 10, static_cast<double>(1e-3f));
  CHECK(dead.silent() == std::vector<std::int64_t>{10, 0, 0, 10});
}
