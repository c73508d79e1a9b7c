#include <sae/host/collected_folder.hpp>

#include <cmath>
#include <fstream>

#include "catch_compat.hpp"
#include "naive_llama.hpp"
#include "temp_folder.hpp"

using namespace sae;
using Catch::Matchers::ContainsSubstring;
namespace fs = std::filesystem;

namespace {

const std::vector<Site> two_sites = {{0, SiteKind::residual}, {1, SiteKind::mlp_out}};

struct Fixture {
  sae_test::NaiveLlama model{sae_test::make_tiny_llama()};
  Windows windows = cut_windows(model, "the dog and the cat in the house on the hill", {.context = 12, .tokens = 0});

  CollectedInfo info(std::vector<Site> sites = two_sites) const {
    CollectedInfo out;
    out.model_file = "/models/tiny.gguf";
    out.model_name = "tiny";
    out.model_bytes = 123;
    out.text_file = "text.txt";
    out.text_sha256 = "abc";
    out.text_bytes = 45;
    out.sites = std::move(sites);
    out.width = model.shape().width;
    out.context = windows.context();
    out.has_bos = windows.has_bos();
    out.text_tokens = windows.text_tokens();
    return out;
  }
  CollectedInfo write(const fs::path& path, CollectedInfo what, CollectedWriterOptions options = {}) {
    CollectedWriter writer(path, what, options);
    return writer.finish(collect(model, windows, what.sites, [&](const CollectedRows& rows, Index) { writer.append(rows); }));
  }
  /// All rows of a site but BOS's.
  Matrix<float> rows(const Site& site) {
    Matrix<float> out(windows.text_tokens(), model.shape().width);
    collect(model, windows, std::span(&site, 1), [&](const CollectedRows& part, Index) {
      REQUIRE(part.sites[0].rows() == out.rows());
      out = part.sites[0];
    });
    return out;
  }
};
std::string text_of(const fs::path& path) { return read_file(path); }
void replace_in(const fs::path& path, const std::string& from, const std::string& to) {
  std::string text = text_of(path);
  const std::size_t at = text.find(from);
  REQUIRE(at != std::string::npos);
  text.replace(at, from.size(), to);
  std::ofstream(path) << text;
}
}  // namespace

TEST_CASE("what is collected is read back, in shards of bounded size", "[host][collect]") {
  Fixture fixture;
  const TempFolder folder;
  const Index shard_rows = GENERATE(5, 44, 1000);
  const CollectedInfo info =
      fixture.write(folder / "data", fixture.info(), {.shard_bytes = shard_rows * fixture.model.shape().width * 4});
  CHECK(folder.names() == std::vector<std::string>{"data"});
  CHECK(info.rows == 44);
  CHECK(info.counts == CollectCounts{44, 4, 0, 0});

  const CollectedFolder data(folder / "data");
  CHECK(data.rows() == 44);
  CHECK(data.info().sites == two_sites);
  CHECK(data.info().norm_limits == info.norm_limits);
  CHECK(data.info().model_file == "/models/tiny.gguf");
  CHECK(data.info().windows == 4);
  CHECK(data.info().context == 12);
  CHECK(data.info().counts == info.counts);
  for (const Site& site : two_sites) {
    const NpyFolder rows = data.rows_of(site);
    const Index parts = (44 + shard_rows - 1) / shard_rows;
    CHECK(static_cast<Index>(rows.parts().size()) == parts);
    CHECK(fs::path(rows.parts().front().name()).filename() == "rows-00000.npy");
    Matrix<float> read(44, 32);
    rows.read_rows(0, 44, read.data(), 32);
    CHECK(read == fixture.rows(site));
  }
  for (Index row = 0; row < 44; ++row) {
    const RowOrigin origin = data.origin(row);
    CHECK(origin.window == row / 11);
    CHECK(origin.position == row % 11 + 1);
    CHECK(origin.token == fixture.windows[origin.window][static_cast<std::size_t>(origin.position)]);
  }
  CHECK_THROWS_AS(data.origin(44), ValueError);
}

TEST_CASE("float16 rows are the float32 rows, rounded", "[host][collect]") {
  Fixture fixture;
  const TempFolder folder;
  CollectedInfo info = fixture.info({two_sites[0]});
  info.dtype = Dtype::float16;
  fixture.write(folder / "data", info);
  const NpyFolder rows(rows_path(folder / "data"));
  CHECK(rows.parts()[0].dtype() == Dtype::float16);
  Matrix<float> read(44, 32);
  rows.read_rows(0, 44, read.data(), 32);
  const Matrix<float> exact = fixture.rows(two_sites[0]);
  CHECK(read != exact);
  CHECK(((read - exact).array().abs() <= 0x1p-11F * exact.array().abs()).all());
}

TEST_CASE("what --data means: the one site, a site's folder, or the path itself", "[host][collect]") {
  Fixture fixture;
  const TempFolder folder;
  fixture.write(folder / "two", fixture.info());
  fixture.write(folder / "one", fixture.info({two_sites[1]}));
  CHECK(rows_path(folder / "one") == folder / "one" / "mlp_out-1");
  CHECK(rows_path(folder / "one" / "mlp_out-1") == folder / "one" / "mlp_out-1");
  CHECK(rows_path(folder / "plain.npy") == folder / "plain.npy");
  CHECK_THROWS_WITH(rows_path(folder / "two"), ContainsSubstring("residual-0, mlp_out-1"));

  CHECK(CollectedFolder::find(folder / "one")->site() == two_sites[1]);
  CHECK(CollectedFolder::find(folder / "two" / "mlp_out-1")->site() == two_sites[1]);
  CHECK(CollectedFolder::find((folder / "two" / "residual-0").string() + "/")->site() == two_sites[0]);
  CHECK(CollectedFolder::find(folder / "two" / "residual-0" / "rows-00000.npy")->named_site() == two_sites[0]);
  CHECK_FALSE(CollectedFolder::find(folder / "two")->named_site());
  CHECK_FALSE(CollectedFolder::find(folder.path()));
  CHECK_FALSE(CollectedFolder::find(folder / "two" / "elsewhere"));
  CHECK_THROWS_AS(CollectedFolder(folder / "two").site(), FileError);
  CHECK_THROWS_WITH(CollectedFolder(folder / "one").rows_of(two_sites[0]),
                    ContainsSubstring("does not hold the site residual-0"));
}

TEST_CASE("nothing is left where collecting ends early, or no row is left", "[host][collect]") {
  Fixture fixture;
  const TempFolder folder;
  {
    CollectedWriter writer(folder / "data", fixture.info());
    CHECK(folder.names() == std::vector<std::string>{"data.partial"});
    CHECK_THROWS_AS(CollectedWriter(folder / "data", fixture.info()), FileError);  // in use
  }
  CHECK(folder.names().empty());
  {
    CollectedWriter writer(folder / "data", fixture.info());
    CHECK_THROWS_WITH(writer.finish({}), ContainsSubstring("no row is left"));
  }
  CHECK(folder.names().empty());
  fixture.write(folder / "data", fixture.info());
  CHECK_THROWS_AS(CollectedWriter(folder / "data", fixture.info()), FileError);
  fixture.write(folder / "data", fixture.info({two_sites[0]}), {.overwrite = true});
  CHECK(CollectedFolder(folder / "data").info().sites.size() == 1);
  fs::create_directory(folder / "mine");
  std::ofstream(folder / "mine" / "letter.txt") << "dear";
  CHECK_THROWS_WITH(CollectedWriter(folder / "mine", fixture.info(), {.overwrite = true}), ContainsSubstring("not replaced"));
  CHECK(text_of(folder / "mine" / "letter.txt") == "dear");
}

TEST_CASE("a collected folder that does not fit together is refused in one sentence", "[host][collect]") {
  Fixture fixture;
  const TempFolder folder;
  const fs::path data = folder / "data";
  fixture.write(data, fixture.info());
  const auto refused = [&](const char* why) {
    CHECK_THROWS_AS(CollectedFolder(data).rows_of(two_sites[0]), FileError);
    CHECK_THROWS_WITH(CollectedFolder(data).rows_of(two_sites[0]), ContainsSubstring(why));
  };
  SECTION("another format") {
    replace_in(data / "collect.json", "sae-collect-1", "sae-collect-9");
    refused("format");
  }
  SECTION("a missing field") {
    replace_in(data / "collect.json", "\"context\"", "\"kontext\"");
    refused("context is missing");
  }
  SECTION("a site of another kind") {
    replace_in(data / "collect.json", "\"site\": \"residual\"", "\"site\": \"attention\"");
    refused("collect.json: site = attention is none of");
  }
  SECTION("another number of rows") {
    replace_in(data / "collect.json", "\"rows\": 44", "\"rows\": 45");
    refused("not int32 [45, 3]");
  }
  SECTION("a folder that leads elsewhere") {
    replace_in(data / "collect.json", "\"folder\": \"residual-0\"", "\"folder\": \"../secret\"");
    refused("another name");
  }
  SECTION("no tokens") {
    fs::remove(data / "tokens.npy");
    refused("tokens.npy");
  }
  SECTION("a token in a window that there is not") {
    const fs::path file = data / "tokens.npy";
    std::string bytes = read_file(file);
    bytes[bytes.size() - 7] = 9;  // window of the last row
    std::ofstream(file, std::ios::binary) << bytes;
    CHECK_THROWS_WITH(CollectedFolder(data).origin(43), ContainsSubstring("tokens.npy: row 43 is token "));
    CHECK_NOTHROW(CollectedFolder(data).origin(42));
  }
  SECTION("tokens that are rows") {
    fs::copy_file(data / "residual-0" / "rows-00000.npy", data / "tokens.npy", fs::copy_options::overwrite_existing);
    refused("tokens.npy");
  }
  SECTION("rows that are missing") {
    fs::remove(data / "residual-0" / "rows-00000.npy");
    refused("residual-0");
  }
  SECTION("rows too many") {
    fs::copy_file(data / "residual-0" / "rows-00000.npy", data / "residual-0" / "rows-00001.npy");
    refused("[88, 32]");
  }
  SECTION("no JSON") {
    std::ofstream(data / "collect.json") << "{";
    refused("collect.json");
  }
}
