#include <sae/files/npy.hpp>
#include <sae/files/safetensors.hpp>

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

std::string file_of(const std::string& header, const std::string& data) {
  const std::uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header + data;
}
sae::SafetensorsHeader parse(const std::string& file) { return sae::parse_safetensors(std::as_bytes(std::span(file)), "x.st"); }
std::string tensor(const std::string& name, const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}";
}
const std::filesystem::path peers = std::filesystem::path(SAE_TEST_DATA) / "peers" / "inference";

}  // namespace

TEST_CASE("safetensors: what is written comes back, in the order in which it was added", "[files][safetensors]") {
  const TempFolder folder;
  const std::vector<double> doubles{0.1, -1e300, std::nan(""), std::numeric_limits<double>::infinity()};
  const std::vector<float> floats{1.5f, -2.0f, 0.0f, 4.0f, 5.0f, 6.0f};
  const std::vector<std::int64_t> longs{std::numeric_limits<std::int64_t>::min(), -1, 5};
  const std::vector<std::int32_t> ints{-7, 7};
  const std::vector<std::uint64_t> counters{std::numeric_limits<std::uint64_t>::max()};
  const std::vector<std::uint8_t> bytes{0, 255};
  sae::Tensor<float> matrix(2, 2);
  matrix[3] = 9;
  const auto save = [&](const std::string& name) {
    sae::SafetensorsWriter out;
    out.metadata["step"] = "100";
    out.metadata["a \"quoted\" one"] = "line\nline";
    out.add("z", {4}, doubles);
    out.add("a", {2, 3}, floats);
    out.add("longs", {3, 1}, longs);
    out.add("ints", {2}, ints);
    out.add("counters", {}, counters);
    out.add("bytes", {1, 2, 1}, bytes);
    out.add("none", {0, 4}, std::span<const float>());
    out.add("matrix", matrix);
    out.add("vector", {4}, matrix);
    out.save(folder / name);
  };
  save("x.safetensors");
  save("y.safetensors");
  CHECK(sae::read_file(folder / "x.safetensors") == sae::read_file(folder / "y.safetensors"));
  const std::string text = sae::read_file(folder / "x.safetensors");
  CHECK(text.find("\"z\"") < text.find("\"a\""));
  CHECK(text[0] % 8 == 0);

  const sae::SafetensorsFile file(folder / "x.safetensors");
  CHECK(file.tensors().size() == 9);
  CHECK(file.metadata().size() == 2);
  CHECK(file.metadata().find("step")->second == "100");
  CHECK(file.metadata().find("a \"quoted\" one")->second == "line\nline");
  const auto z = file.read<double>("z", {4});
  CHECK(z.rows() == 1);
  CHECK((z[0] == 0.1 && z[1] == -1e300 && std::isnan(z[2]) && std::isinf(z[3])));
  CHECK(file.read<float>("z")[0] == 0.1f);
  const auto a = file.read<float>("a", {2, 3});
  CHECK((a.rows() == 2 && a.cols() == 3 && a.row(1)[2] == 6.0f));
  CHECK(file.read<double>("a", {-1, 3})[1] == -2.0);
  CHECK(file.read<std::int64_t>("longs")[0] == longs[0]);
  CHECK(file.read<std::int64_t>("ints")[0] == -7);
  CHECK(file.read<std::uint64_t>("counters", {})[0] == counters[0]);
  CHECK(file.values<std::uint8_t>("bytes")[1] == 255);
  CHECK(file.info("bytes").shape == Shape{1, 2, 1});
  CHECK(file.read<float>("none").rows() == 0);
  CHECK(file.read<float>("matrix", {2, 2})[3] == 9.0f);
  CHECK(file.read<float>("vector", {4})[3] == 9.0f);
  CHECK(file.bytes("z").size() == 32);
  CHECK(file.find("none")->elements == 0);
  CHECK(file.find("missing") == nullptr);
  CHECK_FALSE(file.contains("missing"));

  CHECK_THROWS_WITH(file.read<float>("W_enc"), ContainsSubstring("has no tensor W_enc; it holds a, bytes, counters"));
  CHECK_THROWS_WITH(file.read<float>("a", {3, 2}), ContainsSubstring("tensor a has shape [2, 3], it should be [3, 2]"));
  CHECK_THROWS_WITH(file.read<float>("a", {6}), ContainsSubstring("it should be [6]"));
  CHECK_THROWS_WITH(file.read<float>("ints"), ContainsSubstring("tensor ints holds int32, which is not read as float32"));
  CHECK_THROWS_AS(file.read<std::int32_t>("longs"), sae::FileError);
  CHECK_THROWS_AS(file.read<std::int32_t>("a"), sae::FileError);
  CHECK_THROWS_WITH(file.read<std::uint8_t>("bytes"), ContainsSubstring("two axes are the most"));
}

TEST_CASE("safetensors: an empty file of tensors", "[files][safetensors]") {
  const TempFolder folder;
  sae::SafetensorsWriter().save(folder / "x");
  CHECK(sae::read_file(folder / "x") == std::string("\x08\0\0\0\0\0\0\0{}      ", 16));
  CHECK(sae::SafetensorsFile(folder / "x").tensors().empty());
  CHECK_THROWS_WITH(sae::SafetensorsFile(folder / "x").info("W"), ContainsSubstring("has no tensor W"));
}

TEST_CASE("safetensors: mistakes of the writer are refused before anything is written", "[files][safetensors]") {
  const TempFolder folder;
  const std::vector<float> values{1, 2, 3, 4};
  sae::SafetensorsWriter out;
  out.add("a", {4}, values);
  CHECK_THROWS_WITH(out.add("a", {4}, values), ContainsSubstring("tensor a is added twice"));
  CHECK_THROWS_AS(out.add("__metadata__", {4}, values), sae::ValueError);
  CHECK_THROWS_WITH(out.add("b", {5}, values), ContainsSubstring("tensor b: 4 values do not have the shape [5]"));
  CHECK_THROWS_AS(out.add("b", {-2, -2}, values), sae::ShapeError);
  CHECK_THROWS_AS(out.add("b", {sae::Index{1} << 62, 4}, values), sae::ShapeError);
  out.add("\xff", {4}, values);
  CHECK_THROWS_WITH(out.save(folder / "x"), ContainsSubstring("not UTF-8"));
  CHECK(folder.names().empty());
}

TEST_CASE("safetensors: the files of SAELens, read and written back byte by byte", "[files][safetensors]") {
  const TempFolder folder;
  const std::filesystem::path path = peers / "saelens_standard" / "sae_weights.safetensors";
  const sae::SafetensorsFile file(path);
  std::vector<std::pair<sae::Index, std::string>> order;
  for (const auto& [name, info] : file.tensors()) order.emplace_back(info.begin, name);
  std::sort(order.begin(), order.end());
  REQUIRE(order.size() == 4);
  std::vector<sae::Tensor<float>> tensors;
  for (const auto& [begin, name] : order) tensors.push_back(file.read<float>(name));
  sae::SafetensorsWriter out;
  for (std::size_t i = 0; i < order.size(); ++i) out.add(order[i].second, file.info(order[i].second).shape, tensors[i]);
  out.save(folder / "copy");
  CHECK(sae::read_file(folder / "copy") == sae::read_file(path));
}

TEST_CASE("safetensors: float32 and bfloat16 weights give the peer's codes and reconstructions", "[files][safetensors]") {
  const std::string name = GENERATE("saelens_standard", "saelens_standard_bf16");
  const sae::SafetensorsFile file(peers / name / "sae_weights.safetensors");
  CHECK(file.info("W_enc").dtype == (name == "saelens_standard" ? sae::Dtype::float32 : sae::Dtype::bfloat16));
  const auto x = sae::load_npy<double>(peers / name / "x.npy");
  const auto w_enc = file.read<double>("W_enc", {24, 56}), w_dec = file.read<double>("W_dec", {56, 24});
  const auto b_enc = file.read<double>("b_enc", {56}), b_dec = file.read<double>("b_dec", {24});
  const sae::Matrix<double> centred = x.rowwise() - b_dec.map().row(0);
  const sae::Matrix<double> codes = ((centred * w_enc.map()).rowwise() + b_enc.map().row(0)).cwiseMax(0.0);
  const sae::Matrix<double> reconstruction = (codes * w_dec.map()).rowwise() + b_dec.map().row(0);
  const auto expected_codes = sae::load_npy<double>(peers / name / "codes.npy");
  const auto expected_reconstruction = sae::load_npy<double>(peers / name / "recon.npy");
  REQUIRE(codes.size() == expected_codes.size());
  CHECK(expected_codes.cwiseAbs().maxCoeff<Eigen::PropagateNaN>() > 0.1);
  CHECK((codes - expected_codes).cwiseAbs().maxCoeff<Eigen::PropagateNaN>() < 1e-5);
  CHECK((reconstruction - expected_reconstruction).cwiseAbs().maxCoeff<Eigen::PropagateNaN>() < 1e-5);
}

TEST_CASE("safetensors: legal spellings of the header", "[files][safetensors]") {
  const std::string data = std::string(8, '\0');
  CHECK(parse(file_of("{" + tensor("a", "F32", "[2]", "[0,8]") + "}   ", data)).tensors.size() == 1);
  CHECK(parse(file_of("{ \"__metadata__\" : { } , " + tensor("a", "F64", "[]", "[0, 8]") + "\n}", data)).tensors.size() == 1);
  const auto two = parse(file_of("{" + tensor("b", "U8", "[5]", "[3,8]") + "," + tensor("a", "I8", "[3]", "[0,3]") + "," +
                                     tensor("e", "F32", "[0]", "[3,3]") + "}",
                                 data));
  CHECK(two.tensors.find("b")->second.begin == 3);
  CHECK(two.tensors.find("e")->second.elements == 0);
  CHECK(parse(file_of("{" + tensor("\\u00e9\\n", "F32", "[2]", "[0,8]") + "}", data)).tensors.contains("\xc3\xa9\n"));
}

TEST_CASE("safetensors: every dtype of the format is known by its name", "[files][safetensors]") {
  const std::vector<std::pair<std::string, int>> kinds{{"F64", 8}, {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"I64", 8},
                                                       {"I32", 4}, {"I16", 2}, {"I8", 1},  {"U64", 8},  {"U32", 4},
                                                       {"U16", 2}, {"U8", 1},  {"BOOL", 1}};
  REQUIRE(kinds.size() == sae::all_dtypes.size());
  for (const auto& [name, bytes] : kinds) {
    const std::string file = file_of("{" + tensor("a", name, "[3]", "[0," + std::to_string(3 * bytes) + "]") + "}",
                                     std::string(static_cast<std::size_t>(3 * bytes), '\1'));
    const auto header = parse(file);
    CHECK(sae::detail::safetensors_name(header.tensors.find("a")->second.dtype) == name);
  }
}

TEST_CASE("safetensors: every malformed file is one sentence that names it", "[files][safetensors]") {
  const std::string data(8, '\0');
  const std::string good = file_of("{" + tensor("a", "F32", "[2]", "[0,8]") + "}", data);
  const auto refused = [](const std::string& file, const std::string& words) {
    INFO(words);
    CHECK_THROWS_WITH(parse(file), ContainsSubstring("x.st: ") && ContainsSubstring(words));
    CHECK_THROWS_AS(parse(file), sae::FileError);
  };
  const auto header = [&](const std::string& text, const std::string& words) { refused(file_of(text, data), words); };
  const auto one = [&](const std::string& dtype, const std::string& shape, const std::string& offsets,
                       const std::string& words) { header("{" + tensor("a", dtype, shape, offsets) + "}", words); };
  REQUIRE(parse(good).tensors.size() == 1);
  for (std::size_t bytes = 0; bytes < good.size(); ++bytes) CHECK_THROWS_AS(parse(good.substr(0, bytes)), sae::FileError);
  refused("", "0 bytes, 8 hold the header's length alone");
  refused(std::string(8, '\xff'), "a header of 18446744073709551615 bytes (at most 100000000 are taken)");
  refused(std::string("\x01\xe1\xf5\x05\0\0\0\0", 8) + good, "a header of 100000001 bytes");
  refused(std::string("\x00\xe1\xf5\x05\0\0\0\0", 8) + good, "ends inside the safetensors header: 100000000 bytes of header");
  refused(std::string(8, '\0'), "does not begin with {");
  refused(good.substr(0, good.size() - 1), "are not inside the 7 bytes of data");
  refused(good + "x", "has 9 bytes of data, its tensors cover 8");
  header("{}", "has 8 bytes of data, its tensors cover 0");

  header(" {}", "does not begin with {");
  header("[]", "does not begin with {");
  header("{", "not valid JSON at byte 2");
  header("{}x", "not valid JSON");
  header("{\"a\": nan}", "not valid JSON");
  header("{" + tensor("a", "F32", "[2]", "[0,8]") + "}" + std::string(3, '\0'), "it holds a zero byte");
  header("{\"\xff\": 1}", "not valid JSON");
  header("{\"a\": 1}", "the safetensors header: a is or holds a number, it must be an object");
  header("{\"a\": []}", "a is or holds a list, it must be an object");
  header("{\"a\\n\": null}", "a? is or holds null, it must be an object");
  header("{\"a\": {}}", "tensor a: the fields must be dtype, shape and data_offsets, each once");
  header("{\"a\": {\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8],\"more\":1}}", "the fields must be");
  header("{\"a\": {\"dtype\":\"F32\",\"shape\":[2],\"shape\":[2],\"data_offsets\":[0,8]}}", "the fields must be");
  header("{\"a\": {\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":{\"begin\":0}}}",
         "data_offsets is or holds an object, it must be a list");
  header("{" + tensor("a", "F32", "[1]", "[0,4]") + "," + tensor("a", "F32", "[1]", "[4,8]") + "}", "names a twice");
  header("{" + tensor("a", "F32", "[1]", "[0,4]") + "," + tensor("\\u0061", "F32", "[1]", "[4,8]") + "}", "names a twice");
  header("{\"__metadata__\":{},\"__metadata__\":{}}", "names __metadata__ twice");
  header("{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}}", "__metadata__ names k twice");
  header("{\"__metadata__\":{\"k\":1}}", "__metadata__: k is or holds a number, it must be a text");
  header("{\"__metadata__\":{\"k\":{}}}", "__metadata__: k is or holds an object");
  header("{\"__metadata__\":\"text\"}", "__metadata__ is or holds a text, it must be an object");

  one("F8_E4M3", "[8]", "[0,8]", "tensor a: dtype F8_E4M3 is not read; it may be F64, F32");
  one("f32", "[2]", "[0,8]", "dtype f32 is not read");
  header("{\"a\": {\"dtype\":5,\"shape\":[2],\"data_offsets\":[0,8]}}",
         "tensor a: dtype is or holds a number, it must be a text");
  header("{\"a\": {\"dtype\":[\"F32\"],\"shape\":[2],\"data_offsets\":[0,8]}}", "dtype is or holds a list, it must be a text");
  one("F32", "2", "[0,8]", "tensor a: shape is or holds a number, it must be a list");
  one("F32", "\"2\"", "[0,8]", "tensor a: shape is or holds a text, it must be a list");
  one("F32", "[-2]", "[0,8]", "tensor a: shape is or holds a negative number, it must be an integer of 0 or more");
  one("F32", "[2.0]", "[0,8]", "shape is or holds a number that is no integer");
  one("F32", "[1e400]", "[0,8]", "not valid JSON");
  one("F32", "[\"2\"]", "[0,8]", "shape is or holds a text");
  one("F32", "[[2]]", "[0,8]", "shape is or holds a list");
  one("F32", "[null]", "[0,8]", "shape is or holds null");
  one("F32", "[true]", "[0,8]", "shape is or holds true or false");
  one("F32", "[9223372036854775808]", "[0,8]", "shape has a number that does not fit in 63 bits");
  one("F32", "[4294967296,4294967296]", "[0,8]", "has more bytes than 63 bits count");
  one("F32", "[4611686018427387904]", "[0,8]", "has more bytes than 63 bits count");
  std::string axes = "[1";
  for (int i = 0; i < 40; ++i) axes += ",1";
  one("F32", axes + "]", "[0,8]", "shape has more than 32 numbers");
  one("F32", "[2]", "[0,8,9]", "data_offsets has more than 2 numbers");
  one("F32", "[2]", "[0]", "data_offsets must be two numbers");
  one("F32", "[2]", "[8,0]", "data_offsets [8, 0] are not inside the 8 bytes of data");
  one("F32", "[3]", "[0,12]", "data_offsets [0, 12] are not inside the 8 bytes of data");
  one("F32", "[2]", "[0,18446744073709551615]", "does not fit in 63 bits");
  one("F32", "[1]", "[0,8]", "tensor a: data_offsets hold 8 bytes, float32 [1] needs 4");
  one("F32", "[1]", "[4,8]", "tensor a leaves a gap: it begins at byte 4 of the data, the one before it ends at 0");
  header("{" + tensor("a", "F32", "[1]", "[0,4]") + "," + tensor("b", "U8", "[6]", "[2,8]") + "}",
         "tensor b overlaps the one before it");
  header("{" + tensor("a", "F32", "[2]", "[0,8]") + "," + tensor("b", "F32", "[2]", "[0,8]") + "}", "overlaps");
  header("{" + tensor("a", "U8", "[3]", "[0,3]") + "," + tensor("b", "F32", "[1]", "[4,8]") + "}", "tensor b leaves a gap");
  header("{" + tensor("a", "U8", "[7]", "[0,7]") + "}", "has 8 bytes of data, its tensors cover 7");
  header(std::string("{\"a\":") + std::string(100000, '['), "it must be an object");
}

TEST_CASE("safetensors: a failing disk leaves the older file or none", "[files][safetensors]") {
  const TempFolder folder;
  const std::vector<float> values(300000, 1.5f);
  sae::SafetensorsWriter out;
  out.add("a", {300000}, values);
  out.add("b", {300000}, values);
  int failures = 0;
  for (int nth = 1; nth < 60; ++nth, ++failures) {
    const FailingFiles disk({.call = FailingFiles::Call::any_change, .nth = nth, .error = ENOSPC});
    try {
      out.save(folder / "x");
    } catch (const sae::FileError& e) {
      CHECK_THAT(e.what(), ContainsSubstring("/x: ") && ContainsSubstring("No space left on device"));
      CHECK(folder.names().empty());
      continue;
    }
    CHECK_FALSE(disk.happened());
    break;
  }
  REQUIRE(failures < 59);
  CHECK(failures >= 5);
  CHECK(sae::SafetensorsFile(folder / "x").read<float>("b", {300000})[299999] == 1.5f);
}
