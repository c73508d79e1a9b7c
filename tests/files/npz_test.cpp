#include <sae/files/npy.hpp>
#include <sae/files/npz.hpp>

#include <limits>
#include <string>

#include "catch_compat.hpp"
#include "failing_files.hpp"
#include "temp_folder.hpp"
#include "zip_bytes.hpp"

using Catch::Matchers::ContainsSubstring;

namespace {

using sae::Index;
using sae_test::ZipBytes;

std::string npy(const std::string& dict, const std::string& data) {
  return std::string("\x93NUMPY\x01\x00", 8) + sae_test::u16(dict.size()) + dict + data;
}
sae::NpzFile opened(const std::string& bytes) { return sae::NpzFile(std::as_bytes(std::span(bytes)), "x.npz"); }
const std::filesystem::path peers = std::filesystem::path(SAE_TEST_DATA) / "peers" / "inference";

}  // namespace

TEST_CASE("npz: Gemma Scope's files, stored and deflated, reconstruct what the peer does", "[files][npz]") {
  for (const std::string name : {"gemma_scope_1_stored", "gemma_scope_1_deflated"}) {
    const bool deflated = name.ends_with("deflated");
    if (deflated && sae::detail::inflater == nullptr) SAE_SKIP_TEST("built without zlib");
    const sae::NpzFile file(peers / name / "params.npz");
    CHECK(file.unpacked() == (deflated ? 2 * (128 + 24 * 56 * 4) + 2 * (128 + 56 * 4) + 128 + 24 * 4 : 0));
    file.check();
    REQUIRE(file.arrays().size() == 5);
    CHECK(file.array("W_enc").shape == std::vector<Index>{24, 56});
    CHECK(file.array("W_dec").shape == std::vector<Index>{56, 24});
    CHECK(file.find("w_enc") == nullptr);
    CHECK_THROWS_WITH(file.array("w_enc"),
                      ContainsSubstring("params.npz: has no array w_enc; it holds W_dec, W_enc, b_dec, b_enc, threshold"));
    // x W_enc + b_enc above the threshold, decoded.
    const auto x = sae::load_npy<double>(peers / name / "x.npy"), recon = sae::load_npy<double>(peers / name / "recon.npy");
    const auto enc = file.read<double>("W_enc"), dec = file.read<double>("W_dec"), b_enc = file.read<double>("b_enc"),
               b_dec = file.read<double>("b_dec"), threshold = file.read<double>("threshold");
    sae::Matrix<double> z = (x * enc.map()).rowwise() + b_enc.map().row(0);
    for (Index b = 0; b < z.rows(); ++b)
      for (Index i = 0; i < z.cols(); ++i)
        if (z(b, i) <= threshold[i]) z(b, i) = 0;
    const sae::Matrix<double> got = (z * dec.map()).rowwise() + b_dec.map().row(0);
    CHECK((got - recon).cwiseAbs().maxCoeff() <= 1e-5);
    CHECK(file.read<double>("W_enc", true).map() == enc.map().transpose());
  }
}

TEST_CASE("npz: what is written comes back, whatever the kind of number", "[files][npz]") {
  const TempFolder folder;
  const std::vector<float> floats{1.5f, -2, 3, 4, 5, 6};
  const std::vector<double> doubles{1e300};
  const std::vector<std::int64_t> longs{std::numeric_limits<std::int64_t>::min(), 7};
  const std::vector<std::uint8_t> bytes{0, 255, 3};
  const auto save = [&](const std::string& name) {
    sae::NpzWriter out;
    out.add("W", {2, 3}, floats);
    out.add("scalar", {}, doubles);
    out.add("layer_0/longs", {2}, longs);
    out.add("bytes", {1, 3, 1}, bytes);
    out.add("none", {0, 4}, std::vector<float>());
    out.save(folder / name);
  };
  save("x.npz");
  save("y.npz");
  CHECK(sae::read_file(folder / "x.npz") == sae::read_file(folder / "y.npz"));
  const sae::NpzFile file(folder / "x.npz");
  file.check();
  REQUIRE(file.arrays().size() == 5);
  CHECK(file.read<float>("W").row(1)[2] == 6);
  CHECK(file.read<double>("scalar")[0] == 1e300);
  CHECK(file.read<std::int64_t>("layer_0/longs")[0] == longs[0]);
  CHECK(file.array("bytes").shape == std::vector<Index>{1, 3, 1});
  CHECK(file.read<float>("none").rows() == 0);
  for (const sae::ZipEntry& entry : file.zip().entries()) CHECK(entry.data % 64 == 0);
  CHECK_THROWS_WITH(sae::NpzWriter().save(folder / "x.npz"), ContainsSubstring("exists"));

  sae::NpzWriter out;
  out.add("a", {6}, floats);
  CHECK_THROWS_WITH(out.add("a", {6}, floats), "npz: array a is added twice");
  CHECK_THROWS_WITH(out.add("b", {7}, floats), "npz: array b: 6 values do not have the shape [7]");
  CHECK_THROWS_AS(out.add("b", {-2, -3}, floats), sae::ShapeError);
  CHECK_THROWS_WITH(out.add("../b", {6}, floats), "npz: \"../b\" is no name for an array");
}

TEST_CASE("npz: a failing disk leaves the older file or none", "[files][npz]") {
  const TempFolder folder;
  const std::vector<float> values(100000, 1.5f);
  sae::NpzWriter out;
  out.add("a", {100000}, values);
  int failures = 0;
  for (int nth = 1; nth < 60; ++nth, ++failures) {
    const FailingFiles disk({.call = FailingFiles::Call::any_change, .nth = nth, .error = ENOSPC});
    try {
      out.save(folder / "x");
    } catch (const sae::FileError&) {
      CHECK(folder.names().empty());
      continue;
    }
    break;
  }
  CHECK((failures >= 3 && failures < 59));
  CHECK(sae::NpzFile(folder / "x").read<float>("a")[99999] == 1.5f);
}

TEST_CASE("npz: arrays that are stored column by column have strides", "[files][npz]") {
  std::string data;
  for (int i = 0; i < 24; ++i) data += sae_test::little(static_cast<float>(i));
  const auto dict = [](const std::string& fortran, const std::string& shape) {
    return "{'descr': '<f4', 'fortran_order': " + fortran + ", 'shape': " + shape + ", }";
  };
  const std::string bytes = ZipBytes{.parts = {{.name = "f.npy", .data = npy(dict("True", "(4, 6)"), data)},
                                               {.name = "c.npy", .data = npy(dict("False", "(4, 6)"), data)},
                                               {.name = "v.npy", .data = npy(dict("True", "(24,)"), data)},
                                               {.name = "t.npy", .data = npy(dict("True", "(2, 3, 4)"), data)},
                                               {.name = "e.npy", .data = npy(dict("True", "(0, 4611686018427387904)"), "")},
                                               {.name = "readme.txt", .data = "text"}}}
                                .bytes();
  const sae::NpzFile file = opened(bytes);
  CHECK(file.arrays().size() == 5);
  CHECK(file.array("f").strides == std::vector<Index>{1, 4});
  CHECK(file.array("t").strides == std::vector<Index>{1, 2, 6});
  CHECK(file.array("c").contiguous());
  CHECK(file.array("v").contiguous());
  CHECK(file.array("e").elements() == 0);
  CHECK(file.read<float>("e").cols() == Index{1} << 62);
  const auto f = file.read<float>("f"), back = file.read<float>("f", true), c = file.read<float>("c");
  for (Index i = 0; i < 4; ++i)
    for (Index j = 0; j < 6; ++j) {
      CHECK(f.row(i)[j] == static_cast<float>(i + 4 * j));
      CHECK(back.row(j)[i] == f.row(i)[j]);
      CHECK(c.row(i)[j] == static_cast<float>(6 * i + j));
    }
}

TEST_CASE("npz: what is wrong with an array is said by file and name", "[files][npz]") {
  const auto refused = [](const std::string& entry, const std::string& words) {
    CHECK_THROWS_WITH(opened(ZipBytes{.parts = {{.name = "a.npy", .data = entry}}}.bytes()),
                      ContainsSubstring("x.npz: array a: " + words));
  };
  refused("", "is not a .npy file");
  refused(npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", "x"), "npy dtype |O is not read");
  refused(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", "1234"), "has 71 bytes, but its npy header says");
  CHECK_THROWS_WITH(opened("no zip"), "x.npz: is not a zip file (it must begin with PK)");
}
