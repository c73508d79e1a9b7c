// The examples as programs: the figures that they print.
#include <string>
#include <vector>

#include "catch_compat.hpp"
#include "example_output.hpp"

using sae_test::TakenApart;

TEST_CASE("a line is taken apart into words and numbers", "[examples]") {
  const TakenApart line("  x_1 W_dec[12] is -3.50 of 4e2,  Q4 7 %  ");
  CHECK(line.words == "x_1 W_dec[#] is # of #, Q4 # %");
  CHECK(line.numbers == std::vector<double>{12, -3.5, 400, 7});
}

#ifdef SAE_TEST_EXAMPLES

using sae_test::run_example;

TEST_CASE("quickstart finds the world's directions", "[examples]") {
  const auto output = run_example("quickstart");
  const double l0 = output.numbers("active latents a row").at(0);
  CHECK(l0 > 2);
  CHECK(l0 <= 3);
  // A row has 2.56 active features on average, often more than 3: k = 3 cannot explain all of it.
  CHECK(output.numbers("explained variance").at(0) > 0.8);
  CHECK(output.numbers("features found").at(0) >= 250);
  CHECK(output.lines().size() == 3);
}

TEST_CASE("host_model: the network's answer survives the reconstruction, a latent moves it", "[examples]") {
  const auto output = run_example("host_model");
  CHECK(output.numbers("hidden rows as they are").at(0) == 1);
  CHECK(output.numbers("replaced by the reconstruction").at(0) > 0.95);
  CHECK(output.numbers("replaced by zero").at(0) < 0.2);
  const std::vector<double> pushed = output.numbers("pushed by");  // latent, output, scale, mean before and after
  REQUIRE(pushed.size() == 5);
  CHECK(std::abs(pushed[4] - pushed[3]) > 0.3);
}

TEST_CASE("end_to_end: a loss on the network's answer keeps more of it than the squared error", "[examples]") {
  const auto output = run_example("end_to_end");
  const auto plain = output.numbers("  reconstruction:"), alone = output.numbers("end to end:"),
             both = output.numbers("end to end + squared error:");  // KL, explained variance, L0
  REQUIRE(plain.size() == 3);
  REQUIRE(alone.size() == 3);
  REQUIRE(both.size() == 3);
  CHECK(plain[0] > 0);
  CHECK(alone[0] < 0.7 * plain[0]);
  CHECK(both[0] < 0.9 * plain[0]);
  CHECK(plain[1] > 0.5);
  CHECK(plain[1] > both[1]);
  CHECK(both[1] > alone[1]);
  for (const auto& l0 : {plain[2], alone[2], both[2]}) {
    CHECK(l0 > 1);
    CHECK(l0 <= 4);
  }
}

#endif
