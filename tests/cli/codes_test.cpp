// sae encode, decode, reconstruct: against the peers' own codes and reconstructions, and on files that are wrong.
#include <sae/core/random.hpp>
#include <sae/files/npy.hpp>
#include <sae/formats/codes_file.hpp>

#include <cmath>
#include <limits>

#include "catch_compat.hpp"
#include "cli_test.hpp"

#ifdef SAE_TEST_PROGRAM

using namespace sae;
using Catch::Matchers::ContainsSubstring;
using sae_test::file_text;
using sae_test::peer_path;
using sae_test::run_sae;
using sae_test::Words;
using sae_test::Workplace;
using sae_test::write_text;

namespace {

const std::string topk = peer_path("inference/saelens_topk");

double largest_difference(const std::string& a, const std::string& b) {
  const Matrix<float> x = load_npy<float>(a), y = load_npy<float>(b);
  if (x.rows() != y.rows() || x.cols() != y.cols()) return std::numeric_limits<double>::infinity();
  return static_cast<double>((x - y).cwiseAbs().maxCoeff<Eigen::PropagateNaN>());
}

Matrix<float> rows_of(Index rows, Index width = 24) {
  Random random(7);
  Matrix<float> x(rows, width);
  for (Index i = 0; i < x.size(); ++i) x.data()[i] = static_cast<float>(random.normal());
  return x;
}

}  // namespace

TEST_CASE("sae encode, decode, reconstruct: what the peer computes", "[cli]") {
  for (const char* name : {"saelens_topk", "saelens_standard", "saelens_topk_rescale"}) {
    INFO(name);
    const std::string peer = peer_path(std::string("inference/") + name);
    const Workplace work;
    REQUIRE(run_sae({"encode", "--sae", peer, "--data", peer + "/x.npy", "--out", work.at("codes.npy")}).code == 0);
    REQUIRE(run_sae({"encode", "--sae", peer, "--data", peer + "/x.npy", "--sparse", "--out", work.at("codes.st")}).code == 0);
    REQUIRE(run_sae({"decode", "--sae", peer, "--codes", work.at("codes.npy"), "--out", work.at("a.npy")}).code == 0);
    REQUIRE(run_sae({"decode", "--sae", peer, "--codes", work.at("codes.st"), "--out", work.at("b.npy")}).code == 0);
    REQUIRE(run_sae({"reconstruct", "--sae", peer, "--data", peer + "/x.npy", "--out", work.at("c.npy")}).code == 0);
    CHECK(largest_difference(work.at("codes.npy"), peer + "/codes.npy") < 2e-5);
    CHECK(largest_difference(work.at("c.npy"), peer + "/recon.npy") < 2e-5);
    CHECK(file_text(work.at("a.npy")) == file_text(work.at("b.npy")));
    CHECK(file_text(work.at("a.npy")) == file_text(work.at("c.npy")));
    CHECK(work.names() == Words{"a.npy", "b.npy", "c.npy", "codes.npy", "codes.st"});
  }
}

TEST_CASE("sae encode: sparse and dense hold the same numbers, over blocks, whatever the threads", "[cli]") {
  const Workplace work;
  save_npy(work.at("x.npy"), rows_of(2500));
  const auto encode = [&](const std::string& out, Words more) {
    Words words = {"encode", "--sae", topk, "--data", work.at("x.npy"), "--out", work.at(out)};
    words.insert(words.end(), more.begin(), more.end());
    const auto run = run_sae(words);
    INFO(run.err);
    CHECK(run.code == 0);
    CHECK(run.out.empty());
    return run;
  };
  CHECK_THAT(encode("dense.npy", {"--threads", "1"}).err, ContainsSubstring("2500 rows, 56 latents, 6 active per row"));
  CHECK(encode("two.npy", {"--threads", "2", "--quiet"}).err.empty());
  encode("sparse", {"--sparse", "--threads", "1"});
  encode("sparse2", {"--sparse", "--threads", "2"});
  CHECK(file_text(work.at("dense.npy")) == file_text(work.at("two.npy")));
  CHECK(file_text(work.at("sparse")) == file_text(work.at("sparse2")));

  const Matrix<float> dense = load_npy<float>(work.at("dense.npy"));
  REQUIRE(dense.rows() == 2500);
  REQUIRE(dense.cols() == 56);
  const SafetensorsFile file(work.at("sparse"));
  CHECK(file.metadata().at("shape") == "[2500, 56]");
  const auto offsets = file.values<std::int64_t>("row_offsets");
  const auto latents = file.values<std::int32_t>("latents");
  const auto values = file.values<float>("values");
  REQUIRE(offsets.size() == 2501);
  REQUIRE(latents.size() == values.size());
  CHECK(offsets.back() == static_cast<std::int64_t>(values.size()));
  Matrix<float> again = Matrix<float>::Zero(2500, 56);
  bool ascending = true;
  for (Index r = 0; r < 2500; ++r)
    for (auto e = static_cast<std::size_t>(offsets[static_cast<std::size_t>(r)]);
         e < static_cast<std::size_t>(offsets[static_cast<std::size_t>(r) + 1]); ++e) {
      again(r, latents[e]) = values[e];
      if (e > static_cast<std::size_t>(offsets[static_cast<std::size_t>(r)]))
        ascending = ascending && latents[e] > latents[e - 1];
    }
  CHECK(ascending);
  CHECK((again - dense).cwiseAbs().maxCoeff<Eigen::PropagateNaN>() == 0.0F);

  encode("part.npy", {"--skip-rows", "1020", "--rows", "10"});
  CHECK((load_npy<float>(work.at("part.npy")) - dense.middleRows(1020, 10)).cwiseAbs().maxCoeff<Eigen::PropagateNaN>() < 1e-6F);
}

TEST_CASE("sae reconstruct: a folder of rows of any kind is one data set", "[cli]") {
  const Workplace work;
  const Matrix<float> x = rows_of(30);
  std::filesystem::create_directory(work.at("rows"));
  const auto part = [&](const char* name, Index first, Index count, Dtype dtype) {
    NpyRowWriter out(work.at("rows") + "/" + name, 24, dtype);
    out.append(x.middleRows(first, count));
    out.finish();
  };
  part("b.npy", 10, 12, Dtype::float64);
  part("a.npy", 0, 10, Dtype::float32);
  part("c.npy", 22, 8, Dtype::float32);
  save_npy(work.at("x.npy"), x);
  REQUIRE(run_sae({"reconstruct", "--sae", topk, "--data", work.at("rows"), "--out", work.at("a.npy")}).code == 0);
  REQUIRE(run_sae({"reconstruct", "--sae", topk, "--data", work.at("x.npy"), "--out", work.at("b.npy")}).code == 0);
  CHECK(file_text(work.at("a.npy")) == file_text(work.at("b.npy")));

  NpyRowWriter bits(work.at("bits.npy"), 24, Dtype::bfloat16);
  bits.append(x);
  bits.finish();
  REQUIRE(run_sae({"reconstruct", "--sae", topk, "--data", work.at("bits.npy"), "--out", work.at("d.npy")}).code == 0);
  const double difference = largest_difference(work.at("b.npy"), work.at("d.npy"));
  CHECK(difference > 0);
  CHECK(load_npy<float>(work.at("d.npy")).rows() == 30);
}

TEST_CASE("sae encode: an output that exists is replaced by --force alone", "[cli]") {
  const Workplace work;
  write_text(work.at("codes.npy"), "mine");
  const Words words = {"encode", "--sae", topk, "--data", topk + "/x.npy", "--out", work.at("codes.npy")};
  const auto refused = run_sae(words);
  CHECK(refused.code == 1);
  CHECK_THAT(refused.error(), ContainsSubstring("codes.npy: exists; --force replaces it"));
  CHECK(file_text(work.at("codes.npy")) == "mine");
  Words forced = words;
  forced.push_back("--force");
  CHECK(run_sae(forced).code == 0);
  CHECK(largest_difference(work.at("codes.npy"), topk + "/codes.npy") < 2e-5);
}

TEST_CASE("sae encode, decode: what is wrong is said in one line and leaves nothing behind", "[cli]") {
  const Workplace work;
  const std::string good = file_text(topk + "/x.npy");
  Matrix<float> x = rows_of(40);
  save_npy(work.at("narrow.npy"), rows_of(4, 23));
  std::filesystem::create_directory(work.at("bad"));
  save_npy(work.at("bad/a.npy"), x);
  x(17, 3) = std::numeric_limits<float>::quiet_NaN();
  save_npy(work.at("bad/b.npy"), x);
  x(17, 3) = std::numeric_limits<float>::infinity();
  save_npy(work.at("infinite.npy"), x);
  write_text(work.at("cut.npy"), good.substr(0, good.size() - 1));
  write_text(work.at("header.npy"), std::string("\x93NUMPY\x02\x00\xff\xff\xff\x7f{'descr'", 20));
  write_text(work.at("empty.npy"), "");
  write_text(work.at("text.npy"), "rows, honestly");
  std::filesystem::create_directory(work.at("none"));
  const std::vector<std::int32_t> integers(48, 1);
  save_npy_int32(work.at("int.npy"), integers, {2, 24});
  save_npy_values<float>(work.at("flat.npy"), std::vector<float>(24, 1.0F), {24});
  save_npy_values<float>(work.at("cube.npy"), std::vector<float>(48, 1.0F), {2, 1, 24});
  save_npy_values<float>(work.at("no_rows.npy"), std::vector<float>(), {0, 24});
  const auto before = work.names();

  const auto fails = [&](Words words, const std::string& with) {
    words.insert(words.end(), {"--out", work.at("out.npy")});
    const auto run = run_sae(words);
    INFO(with << " | " << run.err);
    CHECK(run.code == 1);
    CHECK(run.out.empty());
    CHECK_THAT(run.error(), ContainsSubstring(with));
    CHECK(work.names() == before);
  };
  for (const char* verb : {"encode", "reconstruct"}) {
    const auto data = [&](const std::string& name, const std::string& with) {
      fails({verb, "--sae", topk, "--data", work.at(name)}, with);
    };
    data("missing.npy", "missing.npy: cannot open: No such file or directory");
    data("cut.npy", "cut.npy: ");
    data("header.npy", "header.npy: ");
    data("empty.npy", "empty.npy: ");
    data("text.npy", "text.npy: ");
    data("none", "none: the folder holds no .npy file");
    data("int.npy", "int.npy: holds int32");
    data("flat.npy", "flat.npy: has shape");
    data("cube.npy", "cube.npy: has shape");
    data("no_rows.npy", "no_rows.npy: has 0 rows");
    data("narrow.npy", "rows are 23 wide");
    data("bad", "b.npy: row 17 holds a number that is not finite");
    data("infinite.npy", "infinite.npy: row 17 holds a number that is not finite");
    fails({verb, "--sae", work.at("missing"), "--data", topk + "/x.npy"}, "missing: there is no such file or folder");
    fails({verb, "--sae", topk + "/x.npy", "--data", topk + "/x.npy"}, "x.npy: is no SAE");
    fails({verb, "--sae", topk, "--data", topk + "/x.npy", "--rows", "17"}, "has 16 rows, --rows 17");
    fails({verb, "--sae", topk, "--data", topk + "/x.npy", "--skip-rows", "16"}, "--skip-rows leaves none of them");
  }
  const auto codes = [&](const std::string& name, const std::string& with) {
    fails({"decode", "--sae", topk, "--codes", work.at(name)}, with);
  };
  codes("missing.npy", "missing.npy: cannot open");
  codes("narrow.npy", "codes of 23 latents");
  codes("cut.npy", "cut.npy: ");
  codes("text.npy", "text.npy: ");
  fails({"decode", "--sae", topk, "--codes", topk + "/sae_weights.safetensors"}, "has no metadata field shape");

  const auto nowhere = run_sae({"encode", "--sae", topk, "--data", topk + "/x.npy", "--out", work.at("no/folder/out.npy")});
  CHECK(nowhere.code == 1);
  CHECK_THAT(nowhere.error(), ContainsSubstring("out.npy: cannot create its partial file"));
  const auto folder = run_sae({"encode", "--sae", topk, "--data", topk + "/x.npy", "--force", "--out", work.at("none")});
  CHECK(folder.code == 1);
  CHECK_THAT(folder.error(), ContainsSubstring("none: is a folder"));
  CHECK(work.names() == before);
}

#endif
