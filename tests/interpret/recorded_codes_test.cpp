#include <sae/interpret/recorded_codes.hpp>

#include <limits>

#include "catch_compat.hpp"
#include "message_of.hpp"

using namespace sae;
using Catch::Matchers::ContainsSubstring;

namespace {

/// Rows of two latents given as dense values.
Codes<float> codes_of(std::vector<std::array<float, 2>> rows) {
  Codes<float> out(2);
  for (const auto& row : rows) {
    for (Index i = 0; i < 2; ++i)
      if (const float f = row[static_cast<std::size_t>(i)]; f != 0) out.push(i, f);
    out.finish_row();
  }
  return out;
}

const std::vector<RowOrigin> first_origins = {{10, 0, 1}, {11, 0, 2}, {12, 0, 4}};  // position 3 was left out
const std::vector<RowOrigin> more_origins = {{13, 0, 5}, {14, 1, 1}};

RecordedCodes recorded() {
  RecordedCodes out(2);
  out.add(codes_of({{1, 0}, {0, 0}, {3, 2}}), first_origins);
  out.add(codes_of({{-1, 4}, {std::numeric_limits<float>::quiet_NaN(), 5}}), more_origins);
  return out;
}

}  // namespace

TEST_CASE("recorded codes are found by row and latent across blocks", "[recorded_codes]") {
  const RecordedCodes rows = recorded();
  REQUIRE(rows.rows() == 5);
  CHECK(rows.blocks().size() == 2);
  const std::vector<std::array<float, 2>> expected = {
      {1, 0}, {0, 0}, {3, 2}, {0, 4}, {0, 5}};  // what is not above 0 is not active
  for (Index row = 0; row < 5; ++row)
    for (Index i = 0; i < 2; ++i)
      CHECK(rows.value(row, i) == expected[static_cast<std::size_t>(row)][static_cast<std::size_t>(i)]);
  CHECK(rows.l0_counts() == std::vector<std::int64_t>{1, 3, 1});
  CHECK(rows.statistics().moments(1).rows == 3);
  CHECK(rows.origin(3) == more_origins[0]);
}

TEST_CASE("what stands around a row ends with its window and goes by positions", "[recorded_codes]") {
  const RecordedCodes rows = recorded();
  using Pair = std::pair<Index, Index>;
  CHECK(rows.around(2, 20, 10) == Pair{0, 3});
  CHECK(rows.around(2, 1, 0) == Pair{2, 2});  // the position before is missing
  CHECK(rows.around(2, 2, 1) == Pair{1, 3});
  CHECK(rows.around(4, 20, 10) == Pair{4, 4});
  CHECK(rows.around(0, 0, 1) == Pair{0, 1});
  const std::vector<bool> gaps = {false, false, true, false, false};
  for (Index row = 0; row < 5; ++row) CHECK(rows.after_gap(row) == gaps[static_cast<std::size_t>(row)]);
}

TEST_CASE("recorded codes refuse what does not fit", "[recorded_codes]") {
  RecordedCodes rows = recorded();
  CHECK(sae_test::message_of([&] { rows.value(5, 0); }) == "row 5 is not in [0, 5) (the rows that were read)");
  CHECK_THAT(sae_test::message_of([&] { rows.around(-1, 1, 1); }), ContainsSubstring("row -1"));
  CHECK(sae_test::message_of([&] { rows.add(codes_of({{1, 1}}), first_origins); }) == "RecordedCodes: 3 origins for 1 rows");
  CHECK_THAT(sae_test::message_of([&] {
               rows.add(codes_of({{std::numeric_limits<float>::infinity(), 0}}), {{{1, 2, 3}}});
             }),
             ContainsSubstring("infinite in row 5"));
  CHECK(rows.rows() == 5);  // as before
  CHECK(RecordedCodes(3).rows() == 0);
}
