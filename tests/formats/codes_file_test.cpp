#include <sae/formats/codes_file.hpp>

#include <limits>

#include "catch_compat.hpp"
#include "temp_folder.hpp"

using Catch::Matchers::ContainsSubstring;
using sae::Codes;
using sae::CodesFile;
using sae::Index;

namespace {

/// 3 rows of 5 latents; the second is empty, and one selected latent is 0.
Codes<float> three_rows() {
  Codes<float> codes(5);
  codes.push(0, 1.5F);
  codes.push(4, -2.0F);
  codes.finish_row();
  codes.finish_row();
  codes.push(1, 0.0F);
  codes.push(2, 3.0F);
  codes.finish_row();
  return codes;
}

struct Entries {
  std::vector<std::int64_t> offsets = {0, 2, 2, 3};
  std::vector<std::int32_t> latents = {0, 4, 2};
  std::vector<float> values = {1.5F, -2.0F, 3.0F};
  std::string shape = "[3, 5]";
  void save(const std::filesystem::path& path) const {
    sae::SafetensorsWriter file;
    if (!shape.empty()) file.metadata["shape"] = shape;
    file.add("row_offsets", {static_cast<Index>(offsets.size())}, std::span<const std::int64_t>(offsets));
    file.add("latents", {static_cast<Index>(latents.size())}, std::span<const std::int32_t>(latents));
    file.add("values", {static_cast<Index>(values.size())}, std::span<const float>(values));
    file.save(path, {.overwrite = true});
  }
};

}  // namespace

TEST_CASE("codes file: what is written is read, sparse and dense, in any pieces", "[formats]") {
  const TempFolder folder;
  const Codes<float> codes = three_rows();
  {
    sae::SparseCodesWriter out(folder / "sparse", 6, 5);
    out.append(codes);
    CHECK(out.rows() == 3);
    CHECK(out.entries() == 3);
    out.append(codes);
    CHECK(folder.names() == std::vector<std::string>{"sparse.partial"});
    out.finish();
  }
  CHECK(folder.names() == std::vector<std::string>{"sparse"});
  sae::save_npy(folder / "dense.npy", codes.dense());

  const CodesFile sparse(folder / "sparse"), dense(folder / "dense.npy");
  CHECK(sparse.sparse());
  CHECK_FALSE(dense.sparse());
  CHECK(sparse.rows() == 6);
  CHECK(dense.rows() == 3);
  CHECK(sparse.latents() == 5);
  CHECK(dense.latents() == 5);
  for (Index row = 0; row < 6; ++row) {
    CHECK(sparse.read(row, 1).dense() == codes.dense().middleRows(row % 3, 1));
    if (row < 3) CHECK(dense.read(row, 1) == sparse.read(row, 1));
  }
  CHECK(sparse.read(1, 4).size() == 3);
  CHECK(sparse.read(6, 0).rows() == 0);
  CHECK_THROWS_WITH(sparse.read(4, 3), ContainsSubstring("rows 4 + 3 are not in [0, 6]"));

  Entries{}.save(folder / "plain");
  CHECK(CodesFile(folder / "plain").read(0, 3).dense() == codes.dense());
}

TEST_CASE("codes file: no codes at all", "[formats]") {
  const TempFolder folder;
  sae::SparseCodesWriter out(folder / "none", 0, 7);
  out.finish();
  CHECK(CodesFile(folder / "none").rows() == 0);
  CHECK(CodesFile(folder / "none").latents() == 7);
}

TEST_CASE("codes file: a writer that is not finished leaves nothing, rows that were not announced are refused", "[formats]") {
  const TempFolder folder;
  {
    sae::SparseCodesWriter out(folder / "sparse", 4, 5);
    out.append(three_rows());
    CHECK_THROWS_WITH(out.finish(), ContainsSubstring("3 rows were appended, 4 were announced"));
    CHECK_THROWS_WITH(out.append(three_rows()), ContainsSubstring("more than the 4 rows"));
    CHECK_THROWS_AS(out.append(Codes<float>(6)), sae::ShapeError);
  }
  CHECK(folder.names().empty());
}

TEST_CASE("codes file: what could not be read again is not written", "[formats]") {
  const TempFolder folder;
  for (const double bad : {1e39, std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
    Codes<double> codes(5);
    codes.finish_row();
    codes.push(3, bad);
    codes.finish_row();
    sae::SparseCodesWriter out(folder / "codes", 2, 5);
    CHECK_THROWS_WITH(out.append(codes),
                      ContainsSubstring("row 1, latent 3: ") && ContainsSubstring("is not a finite float32"));
  }
  CHECK(folder.names().empty());
}

TEST_CASE("codes file: an empty spill that a kill left is in nobody's way, another file is left alone", "[formats]") {
  const TempFolder folder;
  sae::atomic_write_text(folder / "codes.spill", "");
  sae::SparseCodesWriter(folder / "codes", 0, 5).finish();
  CHECK(folder.names() == std::vector<std::string>{"codes"});
  sae::atomic_write_text(folder / "other.spill", "mine");
  CHECK_THROWS_WITH(sae::SparseCodesWriter(folder / "other", 0, 5), ContainsSubstring("cannot create"));
  CHECK(sae::read_file(folder / "other.spill") == "mine");
}

TEST_CASE("codes file: nothing in it is trusted", "[formats]") {
  const TempFolder folder;
  const auto refused = [&](const Entries& entries, const std::string& with) {
    entries.save(folder / "bad");
    INFO(with);
    CHECK_THROWS_WITH(CodesFile(folder / "bad").read(0, 3), ContainsSubstring(with));
  };
  refused({.shape = ""}, "has no metadata field shape");
  refused({.shape = "[3]"}, "is not \"[N, F]\"");
  refused({.shape = "[3, -5]"}, "is not \"[N, F]\"");
  refused({.shape = "[3, 5, 1]"}, "is not \"[N, F]\"");
  refused({.shape = "[99999999999999999999, 5]"}, "is not \"[N, F]\"");
  refused({.shape = "[4, 5]"}, "row_offsets has 4 entries, the shape says 4 rows");
  refused({.shape = "[3, 0]"}, "codes of 0 latents");
  refused({.offsets = {0, 2, 1, 3}}, "row_offsets[2] = 1 does not ascend");
  refused({.offsets = {1, 2, 2, 3}}, "row_offsets[0] = 1 does not ascend");
  refused({.offsets = {0, 2, 2, 4}}, "row_offsets ends at 4, there are 3 entries");
  refused({.offsets = {0, 2, 2, 2}}, "row_offsets ends at 2, there are 3 entries");
  refused({.values = {1.0F}}, "different numbers of entries");
  refused({.latents = {0, 5, 2}}, "row 0: latent 5 does not ascend within [0, 5)");
  refused({.latents = {4, 0, 2}}, "row 0: latent 0 does not ascend");
  refused({.latents = {0, 0, 2}}, "row 0: latent 0 does not ascend");
  refused({.latents = {-1, 0, 2}}, "latent -1");
  refused({.values = {1.0F, std::numeric_limits<float>::quiet_NaN(), 1.0F}}, "row 0, latent 4: the value is not finite");
  sae::SafetensorsWriter other;
  other.metadata["shape"] = "[3, 5]";
  other.save(folder / "bad", {.overwrite = true});
  CHECK_THROWS_WITH(CodesFile(folder / "bad"), ContainsSubstring("has no tensor row_offsets"));
}
