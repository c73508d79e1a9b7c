#include <sae/files/npy.hpp>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "catch_compat.hpp"
#include "failing_files.hpp"
#include "temp_folder.hpp"

using Catch::Matchers::ContainsSubstring;
using Shape = std::vector<sae::Index>;

namespace {

/// A version 1.0 file with this dict, as numpy pads it.
std::string npy_file(const std::string& dict, const std::string& data) {
  std::string header = dict;
  header.resize(118, ' ');
  header.back() = '\n';
  return std::string("\x93NUMPY\x01\x00\x76\x00", 10) + header + data;
}
std::string dict(const std::string& descr, const std::string& shape, const std::string& order = "False") {
  return "{'descr': '" + descr + "', 'fortran_order': " + order + ", 'shape': " + shape + ", }";
}
template <class T>
std::string bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}
sae::NpyHeader parse(const std::string& file) { return sae::parse_npy(std::as_bytes(std::span(file)), "x.npy"); }
sae::Matrix<float> numbered(sae::Index rows, sae::Index cols, float first = 0) {
  sae::Matrix<float> x(rows, cols);
  for (sae::Index i = 0; i < x.size(); ++i) x.data()[i] = first + static_cast<float>(i);
  return x;
}

}  // namespace

// numpy 1.24: np.save(f, np.array([[1, -2.5, nan], [inf, 0, 3]], '<f4')), whole
static const std::string numpy_f4 =
    std::string("\x93\x4e\x55\x4d\x50\x59\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }", 69) +
    std::string(58, ' ') + "\n" +
    std::string("\x00\x00\x80\x3f\x00\x00\x20\xc0\x00\x00\xc0\x7f\x00\x00\x80\x7f\x00\x00\x00\x00\x00\x00\x40\x40", 24);

TEST_CASE("npy: a file of numpy's, byte by byte, both ways", "[files][npy]") {
  const TempFolder folder;
  sae::atomic_write_text(folder / "a.npy", numpy_f4);
  const sae::Matrix<float> x = sae::load_npy<float>(folder / "a.npy");
  REQUIRE(x.rows() == 2);
  REQUIRE(x.cols() == 3);
  CHECK(x(0, 0) == 1.0f);
  CHECK(x(0, 1) == -2.5f);
  CHECK(std::isnan(x(0, 2)));
  CHECK(std::isinf(x(1, 0)));
  CHECK(x(1, 1) == 0.0f);
  CHECK(x(1, 2) == 3.0f);
  sae::save_npy(folder / "b.npy", x);
  CHECK(sae::read_file(folder / "b.npy") == numpy_f4);
  {
    sae::NpyRowWriter out(folder / "c.npy", 3);
    out.append(x.row(0));
    out.append(x.row(1));
    out.finish();
  }
  CHECK(sae::read_file(folder / "c.npy") == numpy_f4);
}

TEST_CASE("npy: every dtype keeps its values", "[files][npy]") {
  const TempFolder folder;
  const auto check = [&](auto zero, const std::string& descr) {
    using T = decltype(zero);
    using L = std::numeric_limits<T>;
    const std::vector<T> values{L::lowest(), T(0), T(1), L::max()};
    sae::save_npy_values<T>(folder / "v.npy", values, {2, 2}, {.overwrite = true});
    CHECK_THAT(sae::read_file(folder / "v.npy"), ContainsSubstring("'descr': '" + descr + "'"));
    const sae::NpyArray array(folder / "v.npy");
    CHECK(array.dtype() == sae::dtype_of<T>());
    CHECK(array.shape() == Shape{2, 2});
    const auto back = array.values<T>();
    CHECK(std::equal(back.begin(), back.end(), values.begin(), values.end()));
  };
  check(double{}, "<f8");
  check(float{}, "<f4");
  check(std::int64_t{}, "<i8");
  check(std::int32_t{}, "<i4");
  check(std::int16_t{}, "<i2");
  check(std::int8_t{}, "|i1");
  check(std::uint64_t{}, "<u8");
  check(std::uint32_t{}, "<u4");
  check(std::uint16_t{}, "<u2");
  check(std::uint8_t{}, "|u1");

  sae::atomic_write_text(folder / "b.npy", npy_file(dict("|b1", "(3,)"), std::string("\x00\x01\x02", 3)));
  CHECK(sae::load_npy<int>(folder / "b.npy") == (sae::Matrix<int>(1, 3) << 0, 1, 1).finished());
  sae::atomic_write_text(folder / "h.npy", npy_file(dict("<f2", "(3,)"), bytes_of<std::uint16_t>({0x3c00, 0xc100, 0x0001})));
  CHECK(sae::load_npy<double>(folder / "h.npy") == (sae::Matrix<double>(1, 3) << 1, -2.5, 0x1p-24).finished());
  sae::atomic_write_text(folder / "bf.npy", npy_file(dict("<u2", "(2,)"), bytes_of<std::uint16_t>({0x3f80, 0xc020})));
  CHECK(sae::load_npy<float>(folder / "bf.npy", {.bfloat16 = true}) == (sae::Matrix<float>(1, 2) << 1, -2.5).finished());
  CHECK(sae::load_npy<int>(folder / "bf.npy") == (sae::Matrix<int>(1, 2) << 0x3f80, 0xc020).finished());
  CHECK_THROWS_WITH(sae::load_npy<float>(folder / "bf.npy"),
                    ContainsSubstring("holds uint16") && ContainsSubstring("bfloat16"));
}

TEST_CASE("npy: conversions that would lose values are refused", "[files][npy]") {
  const TempFolder folder;
  sae::save_npy_values<std::int64_t>(folder / "i8.npy", std::vector<std::int64_t>{1, 2}, {2});
  CHECK(sae::load_npy<std::int64_t>(folder / "i8.npy")(0, 1) == 2);
  CHECK_THROWS_WITH(sae::load_npy<std::int32_t>(folder / "i8.npy"),
                    ContainsSubstring("holds int64, which is not read as int32"));
  CHECK_THROWS_WITH(sae::load_npy<float>(folder / "i8.npy"), ContainsSubstring("not read as float32"));
  CHECK_THROWS_AS(sae::load_npy<std::uint64_t>(folder / "i8.npy"), sae::FileError);
  sae::save_npy(folder / "f8.npy", sae::Matrix<double>::Constant(1, 1, 0.1));
  CHECK(sae::load_npy<float>(folder / "f8.npy")(0, 0) == 0.1f);
  CHECK_THROWS_AS(sae::load_npy<std::int64_t>(folder / "f8.npy"), sae::FileError);
  sae::save_npy_values<std::uint8_t>(folder / "u1.npy", std::vector<std::uint8_t>{255}, {});
  CHECK(sae::load_npy<std::uint8_t>(folder / "u1.npy")(0, 0) == 255);
  CHECK(sae::load_npy<std::int16_t>(folder / "u1.npy")(0, 0) == 255);
  CHECK_THROWS_AS(sae::load_npy<std::int8_t>(folder / "u1.npy"), sae::FileError);
}

TEST_CASE("npy: shapes of any number of axes, also empty ones", "[files][npy]") {
  const TempFolder folder;
  const std::vector<float> values{1, 2, 3, 4, 5, 6, 7, 8};
  sae::save_npy_values<float>(folder / "3.npy", values, {2, 2, 2});
  CHECK(sae::NpyArray(folder / "3.npy").shape() == Shape{2, 2, 2});
  CHECK(sae::NpyArray(folder / "3.npy").values<double>()[7] == 8.0);
  CHECK_THROWS_WITH(sae::load_npy<float>(folder / "3.npy"), ContainsSubstring("[2, 2, 2]"));
  sae::save_npy_values<float>(folder / "0.npy", std::vector<float>{7}, {});
  CHECK(sae::load_npy<float>(folder / "0.npy")(0, 0) == 7.0f);
  sae::save_npy_values<float>(folder / "e.npy", {}, {0, 5});
  CHECK(sae::load_npy<float>(folder / "e.npy").cols() == 5);
  CHECK(sae::load_npy<float>(folder / "e.npy").rows() == 0);
  sae::save_npy_int32(folder / "i.npy", std::vector<std::int32_t>{1, -2, 3}, {3, 1});
  CHECK(sae::load_npy<std::int32_t>(folder / "i.npy")(1, 0) == -2);
  CHECK_THROWS_AS(sae::save_npy_values<float>(folder / "bad.npy", values, {3, 3}), sae::ShapeError);
  CHECK_THROWS_AS(sae::save_npy_values<float>(folder / "bad.npy", values, {-2, -4}), sae::ShapeError);
  CHECK_THROWS_AS(sae::save_npy_values<float>(folder / "bad.npy", {}, {sae::Index{1} << 62, 8}), sae::ShapeError);
  // A strided and a column-major view are written row by row.
  const sae::Matrix<float> x = numbered(4, 6);
  sae::save_npy(folder / "block.npy", x.block(1, 2, 2, 3));
  CHECK(sae::load_npy<float>(folder / "block.npy") == x.block(1, 2, 2, 3));
  const Eigen::MatrixXf columns = x;
  sae::save_npy(folder / "columns.npy", columns);
  CHECK(sae::load_npy<float>(folder / "columns.npy") == x);
}

TEST_CASE("npy: header versions, spellings and lengths that are legal", "[files][npy]") {
  const std::string data = bytes_of<float>({1, 2});
  CHECK(parse(npy_file(dict("<f4", "(2,)"), data)).shape == Shape{2});
  CHECK(parse(npy_file("{'shape':(1,2),'descr':\"<f4\",'fortran_order':False}", data)).shape == Shape{1, 2});
  CHECK(parse(npy_file("{ 'fortran_order' : False , 'shape' : ( 2 , 1 , ) , 'descr' : '<f4' , }", data)).shape == Shape{2, 1});
  CHECK(parse(npy_file(dict("<f4", "(2,)", "True"), data)).elements == 2);  // one axis: the order says nothing
  CHECK(parse(npy_file(dict("<f8", "()"), data)).elements == 1);
  CHECK(parse(npy_file(dict("<f4", "(0, 9223372036854775807)"), "")).elements == 0);
  for (const char version : {'\x02', '\x03'}) {
    const std::string text = dict("<f4", "(2,)");
    std::string file = std::string("\x93NUMPY", 6) + version + std::string("\0", 1) + static_cast<char>(text.size());
    file += std::string("\0\0\0", 3) + text + data;
    const sae::NpyHeader header = parse(file);
    CHECK(header.offset == 12 + text.size());  // not aligned
    CHECK(header.shape == Shape{2});
  }
}

TEST_CASE("npy: every malformed file is one sentence that names it", "[files][npy]") {
  const std::string data = bytes_of<float>({1, 2});
  const std::string good = npy_file(dict("<f4", "(2,)"), data);
  const auto refused = [](const std::string& file, const std::string& words) {
    INFO(words);
    CHECK_THROWS_WITH(parse(file), ContainsSubstring("x.npy: ") && ContainsSubstring(words));
    CHECK_THROWS_AS(parse(file), sae::FileError);
  };
  for (std::size_t bytes = 0; bytes < good.size(); ++bytes) CHECK_THROWS_AS(parse(good.substr(0, bytes)), sae::FileError);
  refused("", "is not a .npy file");
  refused("PK\x03\x04" + std::string(200, 'x'), "is not a .npy file");
  refused(good.substr(0, good.size() - 1), "has 135 bytes, but its npy header says 128 + 8 (float32 [2])");
  refused(good + "x", "has 137 bytes");
  refused(good.substr(0, 50), "ends inside the npy header: 118 bytes of header, 40 in the file");
  std::string version = good;
  version[6] = 4;
  refused(version, "npy version 4.0");
  std::string length = good;
  length[6] = 2;  // now four bytes of length, two of them text
  refused(length, "npy header of ");
  length[8] = length[9] = length[10] = length[11] = '\xff';
  refused(length, "npy header of 4294967295 bytes (at most 65536");

  refused(npy_file(dict(">f4", "(2,)"), data), "big-endian numbers (>f4); save it with .astype('<f4')");
  refused(npy_file(dict("<c8", "(1,)"), data), "npy dtype <c8 is not read");
  refused(npy_file(dict("|O", "(1,)"), data), "npy dtype |O is not read");
  refused(npy_file(dict("<f16", "(1,)"), data), "npy dtype <f16 is not read");
  refused(npy_file(dict("<U2", "(1,)"), data), "npy dtype <U2 is not read");
  refused(npy_file("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,), }", data), "structured dtype");
  refused(npy_file(dict("<f4", "(1, 2)", "True"), data), "column by column");

  const std::string keys = "the keys must be descr, fortran_order and shape, each once";
  refused(npy_file("{}", data), keys);
  refused(npy_file("{'descr': '<f4', 'fortran_order': False, }", data), keys);
  refused(npy_file("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'shape': (2,), }", data), keys);
  refused(npy_file("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'more': 1}", data), keys);

  refused(npy_file(dict("<f4", "(-2,)"), data), "expected a size, 0 or more,");
  refused(npy_file(dict("<f4", "(2)"), data), "one axis is written (n,)");
  refused(npy_file(dict("<f4", "(1 2)"), data), "expected ',' or ')'");
  refused(npy_file(dict("<f4", "(2.0,)"), data), "expected ',' or ')'");
  refused(npy_file(dict("<f4", "(__import__('os'),)"), data), "expected a size");
  refused(npy_file(dict("<f4", "(9223372036854775808,)"), data), "does not fit in 63 bits");
  refused(npy_file(dict("<f4", "(4294967296, 4294967296)"), data), "more bytes than 63 bits count");
  refused(npy_file(dict("<f4", "(4611686018427387904,)"), data), "more bytes than 63 bits count");
  refused(npy_file(dict("<f4", "(2,)", "false"), data), "expected True or False");
  refused(npy_file("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), } x", data), "expected nothing more");
  refused(npy_file("{'descr': '<f4', 'fortran_order': False, 'shape': (2,)", data), "expected '}'");
  refused(npy_file("['descr']", data), "expected '{'");
  refused(npy_file("{'des\\x63r': '<f4'}", data), "expected a plain word");
  refused(npy_file("{'descr", data), "expected a plain word");
  refused(npy_file(std::string("\0\0\0", 3), data), "expected '{'");
  std::string axes = "(";
  for (int i = 0; i < 33; ++i) axes += "1,";
  const std::string text = dict("<f4", axes + ")");
  refused(std::string("\x93NUMPY\x01\x00", 8) + static_cast<char>(text.size()) + '\0' + text + data.substr(4),
          "more than 32 axes");
}

TEST_CASE("NpyRows: reads rows of every floating dtype into any stride", "[files][npy]") {
  const TempFolder folder;
  const sae::Matrix<float> x = numbered(7, 5, -3);
  const auto dtype = GENERATE(sae::Dtype::float32, sae::Dtype::float16, sae::Dtype::float64, sae::Dtype::bfloat16);
  {
    sae::NpyRowWriter out(folder / "x.npy", 5, dtype);
    out.append(x.topRows(3));
    out.append(x.bottomRows(4).cast<double>().eval());
    CHECK(out.rows() == 7);
    out.finish();
  }
  const sae::NpyRows rows(folder / "x.npy", {.bfloat16 = true});
  CHECK(rows.dtype() == dtype);
  CHECK(rows.rows() == 7);
  CHECK(rows.width() == 5);
  sae::Matrix<float> wide = sae::Matrix<float>::Constant(3, 8, 99);
  rows.read_rows(2, 3, wide.data(), 8);
  CHECK(wide.leftCols(5) == x.middleRows(2, 3));
  CHECK((wide.rightCols(3).array() == 99.0f).all());
  sae::Matrix<double> one(1, 5);
  rows.read_row(6, one.data());
  CHECK(one == x.row(6).cast<double>());
  rows.read_rows(7, 0, one.data(), 5);
  CHECK_THROWS_AS(rows.read_rows(5, 3, wide.data(), 8), sae::ValueError);
  CHECK_THROWS_AS(rows.read_rows(-1, 1, wide.data(), 8), sae::ValueError);
  CHECK_THROWS_AS(rows.read_rows(0, -1, wide.data(), 8), sae::ValueError);
  CHECK_THROWS_AS(rows.read_row(7, one.data()), sae::ValueError);
  const float* const row = rows.row_pointer_f32(4);
  CHECK((row != nullptr) == (dtype == sae::Dtype::float32));
  if (row != nullptr) CHECK(row[2] == x(4, 2));
  rows.advise(sae::Access::dont_need, 0, 7);
  rows.read_row(6, one.data());
  CHECK(one(0, 4) == static_cast<double>(x(6, 4)));
}

TEST_CASE("NpyRows: only two axes of floating-point numbers, at least one wide", "[files][npy]") {
  const TempFolder folder;
  sae::save_npy_values<float>(folder / "1.npy", std::vector<float>{1, 2}, {2});
  CHECK_THROWS_WITH(sae::NpyRows(folder / "1.npy"), ContainsSubstring("has shape [2]; rows are [N, D] with 1 <= D <= 2^30"));
  sae::save_npy_values<float>(folder / "0.npy", {}, {2, 0});
  CHECK_THROWS_WITH(sae::NpyRows(folder / "0.npy"), ContainsSubstring("has shape [2, 0]"));
  sae::save_npy_int32(folder / "i.npy", std::vector<std::int32_t>{1, 2}, {1, 2});
  CHECK_THROWS_WITH(sae::NpyRows(folder / "i.npy"), ContainsSubstring("holds int32"));
  sae::save_npy_values<std::uint16_t>(folder / "u.npy", std::vector<std::uint16_t>{1, 2}, {1, 2});
  CHECK_THROWS_WITH(sae::NpyRows(folder / "u.npy"), ContainsSubstring("bits of bfloat16, it has to be said"));
  // Numbers that do not begin at a multiple of four bytes are read, but not pointed to.
  const std::string text = dict("<f4", "(1, 2)") + std::string(2, ' ');
  const std::string file = std::string("\x93NUMPY\x01\x00", 8) + static_cast<char>(text.size()) + '\0' + text;
  REQUIRE(file.size() % 4 != 0);
  sae::atomic_write_text(folder / "odd.npy", file + bytes_of<float>({1, 2}));
  const sae::NpyRows odd(folder / "odd.npy");
  CHECK(odd.row_pointer_f32(0) == nullptr);
  float row[2];
  odd.read_row(0, row);
  CHECK(row[1] == 2.0f);
}

TEST_CASE("NpyFolder: files in the order of their names are one data set", "[files][npy]") {
  const TempFolder folder;
  const sae::Matrix<float> x = numbered(12, 3);
  sae::save_npy(folder / "rows-00002.npy", x.middleRows(9, 3));
  sae::save_npy(folder / "rows-00000.npy", x.topRows(4));
  sae::save_npy(folder / "rows-00001.npy", x.middleRows(4, 5).cast<double>());
  sae::save_npy_values<float>(folder / "rows-00001b.npy", {}, {0, 3});
  sae::atomic_write_text(folder / "collect.json", "{}");
  sae::atomic_write_text(folder / "._rows-00000.npy", "not rows");
  sae::atomic_write_text(folder / "rows-00003.npy.partial", "not rows");
  std::filesystem::create_directory(folder / "folder.npy");

  const sae::NpyFolder data(folder.path());
  CHECK(data.parts().size() == 4);
  REQUIRE(data.rows() == 12);
  REQUIRE(data.width() == 3);
  sae::Matrix<float> row(1, 3);
  for (sae::Index i = 0; i < 12; ++i) {
    data.read_row(i, row.data());
    CHECK(row == x.row(i));
    const float* const pointer = data.row_pointer_f32(i);
    CHECK((pointer == nullptr) == (i >= 4 && i < 9));
    if (pointer != nullptr) CHECK(pointer[1] == x(i, 1));
  }
  for (sae::Index first = 0; first <= 12; ++first)
    for (sae::Index count = 1; first + count <= 12; ++count) {
      sae::Matrix<float> some = sae::Matrix<float>::Constant(count, 4, -1);
      data.read_rows(first, count, some.data(), 4);
      CHECK(some.leftCols(3) == x.middleRows(first, count));
      CHECK((some.col(3).array() == -1.0f).all());
    }
  row.setConstant(-1);
  for (sae::Index first = 0; first <= 12; ++first) data.read_rows(first, 0, row.data(), 3);
  CHECK((row.array() == -1.0f).all());
  CHECK_THROWS_AS(data.read_rows(10, 3, row.data(), 3), sae::ValueError);
  CHECK_THROWS_AS(data.read_row(-1, row.data()), sae::ValueError);
  data.advise(sae::Access::random);
  data.advise(sae::Access::dont_need, 2, 9);

  const sae::NpyFolder one(folder / "rows-00001.npy");
  CHECK(one.rows() == 5);
}

TEST_CASE("NpyFolder: what is no data set is refused in words", "[files][npy]") {
  const TempFolder folder;
  CHECK_THROWS_WITH(sae::NpyFolder(folder.path()), ContainsSubstring("the folder holds no .npy file"));
  CHECK_THROWS_WITH(sae::NpyFolder(folder / "none"), ContainsSubstring("No such file"));
  sae::save_npy(folder / "a.npy", numbered(2, 3));
  sae::save_npy(folder / "b.npy", numbered(2, 4));
  CHECK_THROWS_WITH(sae::NpyFolder(folder.path()),
                    ContainsSubstring("/b.npy: rows are 4 wide, those of ") && ContainsSubstring("/a.npy are 3 wide"));
  sae::atomic_write_text(folder / "b.npy", "torn", {.overwrite = true});
  CHECK_THROWS_WITH(sae::NpyFolder(folder.path()), ContainsSubstring("/b.npy: is not a .npy file"));
}

TEST_CASE("NpyRowWriter: rounding, overflow, shapes, nothing before finish", "[files][npy]") {
  const TempFolder folder;
  {
    sae::NpyRowWriter out(folder / "x.npy", 2, sae::Dtype::float16);
    out.append((sae::Matrix<double>(1, 2) << 1.0 / 3, 0x1p-25).finished());
    out.append((sae::Matrix<float>(1, 2) << std::numeric_limits<float>::infinity(), std::nanf("")).finished());
    CHECK_THROWS_WITH(out.append((sae::Matrix<float>(1, 2) << 0, 65520).finished()),
                      ContainsSubstring("row 2, column 1: 65520 is too large for float16"));
    CHECK_THROWS_AS(out.append(numbered(2, 3)), sae::ShapeError);
    CHECK(out.rows() == 2);
    CHECK_FALSE(std::filesystem::exists(folder / "x.npy"));
    out.finish();
  }
  const auto x = sae::load_npy<double>(folder / "x.npy");
  REQUIRE(x.rows() == 2);
  CHECK(x(0, 0) == 1365.0 / 4096);
  CHECK(x(0, 1) == 0.0);
  CHECK(std::isinf(x(1, 0)));
  CHECK(std::isnan(x(1, 1)));
  { sae::NpyRowWriter(folder / "y.npy", 2).append(numbered(5, 2)); }
  CHECK(folder.names() == std::vector<std::string>{"x.npy"});
  {
    sae::NpyRowWriter none(folder / "none.npy", 4);
    none.finish();
  }
  CHECK(sae::NpyRows(folder / "none.npy").rows() == 0);
  CHECK_THROWS_AS(sae::NpyRowWriter(folder / "z.npy", 0), sae::ValueError);
  CHECK_THROWS_AS(sae::NpyRowWriter(folder / "z.npy", 3, sae::Dtype::int32), sae::ValueError);
  CHECK_THROWS_WITH(sae::NpyRowWriter(folder / "x.npy", 3), ContainsSubstring("exists"));
  sae::NpyRowWriter narrow(folder / "narrow.npy", 1);
  CHECK_THROWS_WITH(narrow.append(sae::Matrix<double>::Constant(1, 1, 1e39)), ContainsSubstring("too large for float32"));
}

TEST_CASE("NpyRowWriter: many rows, more than the buffers hold", "[files][npy]") {
  const TempFolder folder;
  const sae::Matrix<float> x = numbered(5000, 37);
  for (const auto dtype : {sae::Dtype::float32, sae::Dtype::float64}) {
    sae::NpyRowWriter out(folder / "x.npy", 37, dtype, {.overwrite = true});
    for (sae::Index first = 0, step = 1; first < 5000; first += step, step = (std::min)(step * 2, 5000 - first))
      out.append(x.middleRows(first, (std::min)(step, 5000 - first)));
    out.finish();
    CHECK(sae::load_npy<float>(folder / "x.npy") == x);
  }
}

TEST_CASE("NpyRowWriter: whatever call fails, there is no file", "[files][npy]") {
  const TempFolder folder;
  const sae::Matrix<float> x = numbered(4000, 40);  // 640 KB: several writes
  int failures = 0;
  for (int nth = 1; nth < 60; ++nth, ++failures) {
    const FailingFiles disk({.call = FailingFiles::Call::any_change, .nth = nth, .error = ENOSPC});
    try {
      sae::NpyRowWriter out(folder / "x.npy", 40);
      out.append(x);
      out.finish();
    } catch (const sae::FileError& e) {
      CHECK_THAT(e.what(), ContainsSubstring("x.npy: ") && ContainsSubstring("No space left on device"));
      CHECK(folder.names().empty());
      continue;
    }
    CHECK_FALSE(disk.happened());
    break;
  }
  REQUIRE(failures < 59);
  CHECK(failures >= 6);
  CHECK(sae::load_npy<float>(folder / "x.npy") == x);
}
