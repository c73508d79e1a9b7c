// The programs of docs/extending.md: the page holds them as they are, and they do what it says.
#include <algorithm>
#include <filesystem>
#include <string>

#include "catch_compat.hpp"
#include "example_output.hpp"
#include "temp_folder.hpp"

namespace {
const std::filesystem::path root = std::filesystem::path(SAE_TEST_DATA) / ".." / "..";
}

TEST_CASE("docs/extending.md holds its programs as they are", "[examples]") {
  const std::string page = sae_test::file_text(root / "docs" / "extending.md");
  for (const std::string name : {"examples/own_activation.cpp", "examples/own_term.cpp"}) {
    INFO(name << " (scripts/update_extending.sh puts the page right)");
    const std::string program = sae_test::file_text(root / name);
    REQUIRE(program.size() > 500);
    CHECK(std::count(program.begin(), program.end(), '\n') < 60);  // read at one sitting
    CHECK(page.find("<!-- " + name + " -->\n```cpp\n" + program + "```\n") != std::string::npos);
  }
}

#ifdef SAE_TEST_EXAMPLES

TEST_CASE("own_activation: trained, saved and read back it explains its world", "[examples]") {
  const TempFolder folder;
  for (int round = 0; round < 2; ++round) {  // the second time the folder is there
    const auto output = sae_test::run_example("own_activation", {(folder / "sae").string()});
    CHECK(output.numbers("share").at(0) == 0.4);
    CHECK(output.numbers("active latents a row").at(0) > 1);
    CHECK(output.numbers("active latents a row").at(0) < 12);
    CHECK(output.numbers("explained variance").at(0) > 0.7);
  }
  const std::string config = sae_test::file_text(folder / "sae" / "cfg.json");
  CHECK(config.find("\"near_largest\"") != std::string::npos);
}

TEST_CASE("own_term: codes that cost their square reconstruct shorter rows", "[examples]") {
  const auto output = sae_test::run_example("own_term");
  const auto free = output.numbers("coefficient 0:"), costly = output.numbers("coefficient 0.5:");
  CHECK(free.at(1) > 0.7);
  CHECK(costly.at(2) < free.at(2) - 0.05);
}

#endif
