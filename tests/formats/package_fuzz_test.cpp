// The fuzz body over whole packages that searches found their way by (scripts/fuzz.sh package).
#include "../fuzz/package_fuzz.hpp"

#include "../fuzz/replay.hpp"
#include "catch_compat.hpp"
#include "temp_folder.hpp"

TEST_CASE("fuzz: folders of settings and weights are refused in one line or are models that can be used", "[formats][fuzz]") {
  const TempFolder folder;
  fuzz_replay("package", [&](std::span<const std::uint8_t> input) { return package_fuzz(input, folder / "package"); });
  CHECK_FALSE(package_fuzz({}, folder / "package"));
}
