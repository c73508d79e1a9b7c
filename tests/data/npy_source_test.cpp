#include <sae/data/npy_source.hpp>

#include <algorithm>
#include <limits>
#include <vector>

#include "catch_compat.hpp"
#include "temp_folder.hpp"

using Catch::Matchers::ContainsSubstring;
using sae::Index;

TEST_CASE("NpySource: every row of every file once an epoch, in a random order or as they stand", "[data]") {
  const TempFolder folder;
  sae::Matrix<float> a(5, 2), b(3, 2);
  for (Index r = 0; r < 5; ++r) a.row(r).setConstant(static_cast<float>(r));
  for (Index r = 0; r < 3; ++r) b.row(r).setConstant(static_cast<float>(5 + r));
  sae::save_npy(folder / "a.npy", a);
  sae::save_npy(folder / "b.npy", b);
  sae::Tensor<double> batch(8, 2);

  sae::NpySource<double> ordered(sae::NpyFolder(folder.path()), {.shuffle = false, .epochs = 1});
  CHECK(ordered.width() == 2);
  CHECK(ordered.rows() == 8);
  REQUIRE(ordered.next(batch) == 8);
  for (Index r = 0; r < 8; ++r) CHECK(batch.row(r)[1] == static_cast<double>(r));
  CHECK(ordered.next(batch) == 0);

  sae::NpySource<double> shuffled(sae::NpyFolder(folder.path()), {.seed = 2});
  REQUIRE(shuffled.next(batch) == 8);
  std::vector<double> seen;
  for (Index r = 0; r < 8; ++r) seen.push_back(batch.row(r)[0]);
  CHECK_FALSE(std::is_sorted(seen.begin(), seen.end()));
  std::sort(seen.begin(), seen.end());
  for (Index r = 0; r < 8; ++r) CHECK(seen[static_cast<std::size_t>(r)] == static_cast<double>(r));
}

TEST_CASE("NpySource: a row that is not finite is named by file and its number there", "[data]") {
  const TempFolder folder;
  sae::Matrix<float> x = sae::Matrix<float>::Zero(4, 3);
  sae::save_npy(folder / "a.npy", x);
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::infinity()}) {
    x(2, 2) = bad;
    sae::save_npy(folder / "b.npy", x, {.overwrite = true});
    const sae::FiniteNpyRows rows{sae::NpyFolder(folder.path())};
    std::vector<float> out(3);
    CHECK_NOTHROW(rows.read_row(5, out.data()));
    CHECK_THROWS_AS(rows.read_row(6, out.data()), sae::NonFiniteRow);
    CHECK_THROWS_WITH(rows.read_row(6, out.data()), ContainsSubstring("b.npy: row 2 holds a number that is not finite"));
  }
}
