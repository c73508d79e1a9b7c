#include <sae/files/npy.hpp>
#include <sae/files/torch_file.hpp>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "catch_compat.hpp"
#include "torch_bytes.hpp"

using Catch::Matchers::ContainsSubstring;
namespace fs = std::filesystem;

namespace {

using sae::Index, sae::TorchFile, sae::TorchKind;
using namespace sae_test;
using Strides = std::vector<Index>;

const fs::path edge_cases = fs::path(SAE_TEST_DATA) / "peers" / "inference" / "torch_pt_edge_cases";

/// Keeps the bytes that the file views.
struct Opened {
  explicit Opened(std::string archive) : bytes(std::move(archive)), file(std::as_bytes(std::span(bytes)), "x.pt") {}
  std::string bytes;
  TorchFile file;
};
Opened of(const std::string& ops, const std::vector<std::string>& storages = {}) {
  return Opened(torch_zip(protocol2(ops), storages).bytes());
}
std::string floats(int n) {
  std::string out;
  for (int i = 0; i < n; ++i) out += little(static_cast<float>(i));
  return out;
}
void refused(const std::string& ops, const std::string& words, const std::vector<std::string>& storages = {}) {
  CAPTURE(words);
  CHECK_THROWS_WITH(of(ops, storages), ContainsSubstring("x.pt: ") && ContainsSubstring(words));
}

/// The value at a path with dots; keys may have dots themselves.
std::optional<sae::TorchValue> at_path(const sae::TorchValue& from, std::string_view path) {
  if (path.empty()) return from;
  for (Index i = 0; i < from.size(); ++i) {
    const std::string key = from.is(TorchKind::dict) ? from.key_text(i) : std::to_string(i);
    if (path == key) return from[i];
    if (!path.starts_with(key + ".")) continue;
    if (auto found = at_path(from[i], path.substr(key.size() + 1))) return found;
  }
  return {};
}

/// Every value of a fixture's expected.json: kinds, shapes, strides, numbers.
void check_file(const fs::path& path, const nlohmann::json& expected) {
  CAPTURE(path.string());
  const TorchFile file(path);
  file.check();
  CHECK(file.unpacked() == 0);
  const auto tensors = file.tensors();
  std::size_t seen = 0;
  for (const auto& item : expected.items()) {
    CAPTURE(item.key());
    const auto value = at_path(file.root(), item.key());
    REQUIRE(value.has_value());
    CHECK(value->path() == item.key());
    const nlohmann::json& want = item.value();
    if (!want.contains("dtype")) {
      const nlohmann::json& plain = want.at("value");
      const auto kind = want.at("python").get<std::string>();
      if (kind == "int") CHECK(value->integer() == plain.get<Index>());
      if (kind == "float") CHECK(value->number() == plain.get<double>());
      if (kind == "str") CHECK(value->text() == plain.get<std::string>());
      if (kind == "bool") CHECK(value->boolean() == plain.get<bool>());
      if (kind == "NoneType") CHECK(value->is(TorchKind::none));
      continue;
    }
    ++seen;
    const sae::ArrayView& tensor = value->tensor();
    const auto dtype = want.at("dtype").get<std::string>();
    CHECK(to_string(tensor.dtype) == (dtype == "bool" ? "boolean" : dtype));
    CHECK(tensor.shape == want.at("shape").get<Strides>());
    if (tensor.elements() > 0) CHECK(tensor.strides == want.at("strides").get<Strides>());
    REQUIRE(tensors.contains(item.key()));
    CHECK(tensors.find(item.key())->second.data == tensor.data);
  }
  CHECK(tensors.size() == seen);
}
nlohmann::json expected_of(const fs::path& folder) {
  nlohmann::json expected;
  std::ifstream(folder / "expected.json") >> expected;
  return expected.at("files");
}

}  // namespace

TEST_CASE("torch files: every value of torch's own edge cases", "[files][torch]") {
  const nlohmann::json files = expected_of(edge_cases);
  for (const std::string name : {"zip.pt", "protocol4.pt", "state_dict.pt"}) {
    check_file(edge_cases / name, files.at(name).at("tensors"));
    const TorchFile file(edge_cases / name);
    int compared = 0;
    for (const auto& [path, tensor] : file.tensors()) {
      CAPTURE(name, path);
      const fs::path values =
          edge_cases / ((name == "state_dict.pt" ? "state_dict." + path : path.substr(path.find('.') + 1)) + ".npy");
      if (tensor.shape.size() > 2) {  // permuted3: number by number
        const auto want = sae::NpyArray(values).values<float>();
        Index n = 0;
        for (Index i = 0; i < tensor.shape[0]; ++i)
          for (Index j = 0; j < tensor.shape[1]; ++j)
            for (Index k = 0; k < tensor.shape[2]; ++k) {
              float got = 0;
              std::memcpy(&got, tensor.data + 4 * (i * tensor.stride(0) + j * tensor.stride(1) + k * tensor.stride(2)), 4);
              CHECK(got == want[static_cast<std::size_t>(n++)]);
            }
      } else if (sae::is_floating(tensor.dtype)) {
        const auto got = sae::read_matrix<double>(tensor, name, path);
        CHECK(got.map() == sae::load_npy<double>(values));
      } else {
        const auto got = sae::read_matrix<std::int64_t>(tensor, name, path);
        const sae::NpyArray want(values);
        const auto numbers = want.values<std::int64_t>();
        REQUIRE(got.size() == want.size());
        for (Index i = 0; i < got.size(); ++i) CHECK(got[i] == numbers[static_cast<std::size_t>(i)]);
      }
      ++compared;
    }
    CHECK(compared == (name == "state_dict.pt" ? 4 : 15));
  }
  const TorchFile file(edge_cases / "zip.pt");
  const sae::TorchValue config = file.root().at("config");
  CHECK(config.at("list").is(TorchKind::list));
  CHECK(config.at("tuple").is(TorchKind::tuple));
  CHECK(config.at("tuple")[1].path() == "config.tuple.1");
  CHECK(config.at("k").number() == 6);
  CHECK_FALSE(config.find("missing").has_value());
  CHECK_FALSE(config.at("k").find("x").has_value());
  CHECK_THROWS_WITH(config.at("missing"), ContainsSubstring("zip.pt: config has no key missing"));
  CHECK_THROWS_WITH(config.at("many").integer(), ContainsSubstring("zip.pt: config.many is a dict, an integer is needed"));
  CHECK_THROWS_WITH(file.root().tensor(), ContainsSubstring("its value is a dict, a tensor is needed"));
  CHECK(file.root().at("state_dict").at("transposed").read<float>(true).rows() == 6);
}

TEST_CASE("torch files: other containers and pickled classes are refused with a way out", "[files][torch]") {
  CHECK_THROWS_WITH(TorchFile(edge_cases / "legacy.pt"),
                    ContainsSubstring("legacy.pt: is in torch's container from before 1.6") &&
                        ContainsSubstring("torch.save(torch.load(old"));
  CHECK_THROWS_WITH(
      TorchFile(edge_cases / "whole_module.pt"),
      ContainsSubstring("whole_module.pt: its pickle holds torch.nn.modules.container.Sequential, which is not read") &&
          ContainsSubstring("save the state_dict() instead"));
  CHECK_THROWS_WITH(TorchFile(edge_cases / "half.npy"), ContainsSubstring("half.npy: is not a zip file"));
  ZipBytes zip = torch_zip(protocol2("N"));
  zip.parts.push_back({.name = "archive/constants.pkl", .data = ""});
  CHECK_THROWS_WITH(Opened(zip.bytes()),
                    ContainsSubstring("x.pt: is a TorchScript archive") && ContainsSubstring("torch.jit.load"));
  zip.parts.pop_back();
  zip.parts[1].data = "big";
  CHECK_THROWS_WITH(Opened(zip.bytes()), ContainsSubstring("x.pt: has byte order big"));
  zip.parts[1].name = "other/data.pkl";
  CHECK_THROWS_WITH(Opened(zip.bytes()), "x.pt: holds two data.pkl; a file of torch.save has one");
  zip.parts.pop_back();
  CHECK(Opened(zip.bytes()).file.root().is(TorchKind::none));
  zip.parts[0].crc = 1;
  CHECK_THROWS_WITH(Opened(zip.bytes()), ContainsSubstring("zip entry archive/data.pkl is damaged"));
  for (const std::string name : {"data.pkl", "a/b/data.pkl", "a/data.pk"}) {
    zip.parts[0].name = name;
    CHECK_THROWS_WITH(Opened(zip.bytes()), "x.pt: is a zip file without a data.pkl in a folder, so not one of torch.save");
  }
}

TEST_CASE("torch files: what the peers saved", "[files][torch][shared]") {
  const char* const shared = std::getenv("SAE_SHARED_DATA");
  const fs::path folder = fs::path(shared == nullptr ? "" : shared) / "peers" / "inference";
  if (shared == nullptr || !fs::exists(folder / "dl_backup" / "ae.pt"))
    SAE_SKIP_TEST("SAE_SHARED_DATA names no folder with peers");
  int files = 0;
  for (const auto& sub : fs::directory_iterator(folder)) {
    if (!sub.is_directory() || sub.path().filename() == "torch_pt_edge_cases") continue;
    const nlohmann::json expected = expected_of(sub.path());
    for (const auto& file : fs::directory_iterator(sub.path())) {
      if (file.path().extension() != ".pt") continue;
      const std::string name = file.path().filename().string();
      CAPTURE(file.path().string());
      REQUIRE(expected.contains(name));
      if (expected.at(name).contains("tensors")) check_file(file.path(), expected.at(name).at("tensors"));
      CHECK_FALSE(TorchFile(file.path()).tensors().empty());
      ++files;
    }
  }
  CHECK(files >= 16);
}

TEST_CASE("torch files: values made by hand", "[files][torch]") {
  const Opened one = of(tensor(storage("0", 6), 1, pickled(2) + pickled(2), pickled(1) + pickled(3)), {floats(6)});
  const sae::TorchValue root = one.file.root();
  CHECK(root.path().empty());
  CHECK(root.read<float>().row(1)[1] == 5);
  CHECK(one.file.tensors().size() == 1);
  CHECK(one.file.tensors().contains(""));

  // Integer keys, one list in two places, one tensor under two names, an OrderedDict with attributes, long integers.
  const std::string list = "](" + pickled("x") + "N\x88\x89" + pickled64(std::numeric_limits<Index>::min()) +
                           std::string("\x8a\x00\x8a\x01\xff", 5) + "e";
  const Opened many =
      of(global("collections", "OrderedDict") + ")R(" + pickled(7) + list + "q\x05" + pickled("again") + "h\x05" +
             pickled("w") + tensor(storage("0", 6), 0, pickled(6), pickled(1)) + "q\x06" + pickled("v") + "h\x06" +
             pickled("none") + tensor(storage("0", 6), 6, pickled(0), pickled(1)) + "u}" + pickled("_metadata") + "}sb",
         {floats(6)});
  const sae::TorchValue dict = many.file.root();
  REQUIRE(dict.size() == 5);
  CHECK(dict.key_text(0) == "7");
  CHECK_FALSE(dict.find("7").has_value());
  CHECK(dict[0].path() == "7");
  CHECK(dict[0][4].integer() == std::numeric_limits<Index>::min());
  CHECK(dict[0][5].integer() == 0);
  CHECK(dict[0][6].integer() == -1);
  CHECK(dict.at("again")[0].text() == "x");
  CHECK(dict.at("again")[0].path() == "again.0");
  CHECK(dict.at("v").read<double>()[5] == 5);
  CHECK(many.file.tensors().size() == 3);
  CHECK(many.file.tensors().at("none").elements() == 0);

  // A deflated storage is unpacked.
  ZipBytes zip = torch_zip(protocol2(tensor(storage("0", 2), 0, pickled(2), pickled(1))));
  zip.parts.push_back(deflated("archive/data/0", floats(2)));
  const auto before = sae::detail::inflater;
  sae::detail::inflater = [](std::span<const std::byte> from, std::span<std::byte> to) -> std::string_view {
    std::copy(from.begin() + 5, from.end(), to.begin());
    return {};
  };
  const Opened unpacked(zip.bytes());
  sae::detail::inflater = before;
  CHECK(unpacked.file.unpacked() == 8);
  CHECK(unpacked.file.root().read<float>()[1] == 1);
}

TEST_CASE("torch files: tensors that leave their storages", "[files][torch]") {
  const auto one = [](std::int64_t offset, const std::string& sizes, const std::string& strides, const std::string& words) {
    refused(tensor(storage("0", 6), offset, sizes, strides), words, {floats(6)});
  };
  const auto n = [](std::int64_t value) { return pickled64(value); };
  constexpr std::int64_t large = std::int64_t{1} << 62;
  one(0, n(7), n(1), "has a tensor of size [7], stride [1], offset 0 that is not inside of the 6 numbers of storage 0");
  one(1, n(6), n(1), "offset 1 that is not inside");
  one(-1, n(2), n(1), "offset -1 that is not inside");
  one(7, n(0), n(1), "offset 7 that is not inside");
  one(6, "", "", "offset 6 that is not inside");
  one(0, n(2), n(-1), "stride [-1], offset 0 that is not inside");
  one(0, n(-2), n(1), "size [-2], stride [1], offset 0 that is not inside");
  one(0, n(-large) + n(4), n(1) + n(1), "is not inside");
  one(0, n(2) + n(3), n(4) + n(1), "size [2, 3], stride [4, 1], offset 0 that is not inside");
  one(0, n(2), n(large), "is not inside");
  one(0, n(large) + n(large), n(0) + n(0), "is not inside");
  one(0, n(3) + n(3), n(std::numeric_limits<Index>::max()) + n(std::numeric_limits<Index>::max()), "is not inside");
  one(large, n(1), n(1), "is not inside");
  one(0, n(2), "", "size [2], stride [], offset 0 with another number of strides than of axes");
  one(0, n(1) + n(1) + n(1) + n(1) + n(1) + n(1) + n(1) + n(1) + n(1), "", "has a tensor of more than 8 axes");
  one(0, n(large >> 4), n(0), "that repeats the numbers of its storage to 1152921504606846976 bytes");
  one(0, pickled("x"), n(1), "has a tensor whose sizes are not integers");
  const Opened expanded = of(tensor(storage("0", 6), 0, n(4000) + n(6), n(0) + n(1)), {floats(6)});
  CHECK(expanded.file.root().read<float>().row(3999)[5] == 5);

  const std::string sizes = n(1), strides = n(1);
  refused(tensor(storage("0", 5), 0, sizes, strides), "says 5 numbers of float32 in storage 0, which has 24 bytes",
          {floats(6)});
  refused(tensor(storage("0", -1), 0, sizes, strides), "says -1 numbers of float32", {floats(6)});
  refused(tensor(storage("0", large), 0, sizes, strides), "numbers of float32 in storage 0, which has 24 bytes", {floats(6)});
  refused(tensor(storage("0", 6, "DoubleStorage"), 0, sizes, strides),
          "says 6 numbers of float64 in storage 0, which has 24 bytes", {floats(6)});
  refused(tensor(storage("1", 6), 0, sizes, strides), "its pickle refers to storage 1, which is missing", {floats(6)});
  refused(tensor(storage("../0", 6), 0, sizes, strides), "its pickle refers to storage ../0, which is missing", {floats(6)});
  refused(tensor(storage("0", 6, "ComplexFloatStorage"), 0, sizes, strides), "holds torch.ComplexFloatStorage", {floats(6)});
  refused(storage("0", 6), "holds a class or a storage where a value should be", {floats(6)});
  refused(global("torch", "FloatStorage"), "holds a class or a storage where a value should be");
  refused(global("torch", "FloatStorage") + ")R", "calls a class of storages");
  refused(global("torch._utils", "_rebuild_tensor_v2") + ")R", "makes a tensor of something that is not (storage");
  refused(global("torch._utils", "_rebuild_tensor_v2") + "(NNNNNNtR", "makes a tensor of something that is not (storage");
  refused(global("torch._utils", "_rebuild_parameter") + "(N\x88NtR", "makes a Parameter of what is no tensor");
  refused(global("torch._utils", "_rebuild_parameter") + tuple(storage("0", 6) + "\x88N") + "R",
          "makes a Parameter of what is no tensor", {floats(6)});
  refused(pickled("storage") + "Q", "refers to something that is not (\"storage\"");
  refused("(" + pickled("storage") + pickled("x") + pickled("0") + pickled("cpu") + n(1) + "tQ",
          "refers to something that is not");
  refused("}(" + pickled("a.b") + tensor(storage("0", 6), 0, sizes, strides) + "q\x01" + pickled("a") + "}" + pickled("b") +
              "h\x01su",
          "", {"wrong size"});
  const Opened twice = of("}(" + pickled("a.b") + tensor(storage("0", 6), 0, sizes, strides) + "q\x01" + pickled("a") + "}" +
                              pickled("b") + "h\x01su",
                          {floats(6)});
  CHECK_THROWS_WITH(twice.file.tensors(), "x.pt: two tensors are both called a.b");
}

TEST_CASE("torch files: pickles that are none, or do what is not read", "[files][torch][pickle]") {
  for (const std::string name : {"posix\nsystem", "__builtin__\neval", "builtins\nexec", "torch\nload",
                                 "torch.storage\nUntypedStorage", "torch\n", "\nOrderedDict", "collections\ndefaultdict"}) {
    std::string shown = name;
    shown[shown.find('\n')] = '.';
    refused("c" + name + "\n(" + pickled("echo") + "tR",
            "its pickle holds " + shown + ", which is not read (nothing in a file is executed)");
  }
  refused("c" + std::string(1000, 'x') + "\n\x01\n", "its pickle holds " + std::string(80, 'x') + "....?, which");
  const auto raw = [](const std::string& pickle, const std::string& words) {
    CAPTURE(words);
    CHECK_THROWS_WITH(Opened(torch_zip(pickle).bytes()), ContainsSubstring("x.pt: its pickle") && ContainsSubstring(words));
  };
  raw("", "ends without its end");
  raw("\x80", "needs 1 bytes more, 0 are left");
  raw("\x80\x06N.", "at byte 0, is of protocol 6; 2 to 5 are read");
  raw("\x80\x01N.", "is of protocol 1");
  raw("\x80\x02N", "ends without its end");
  raw("\x80\x02N.N", "has 1 bytes behind its end");
  raw("\x80\x02NN.", "ends with more than one value");
  raw("\x80\x02N(.", "takes a value from an empty stack");
  raw("\x80\x02(N.", "ends with more than one value");
  raw("\x80\x02.", "at byte 2, takes a value from an empty stack");
  raw("\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xff.", "has a frame of 18446744073709551615 bytes, 1 are left");
  raw("X\xff\xff\xff\xff"
      "abc",
      "needs 4294967295 bytes more, 3 are left");
  raw("\x8d\xff\xff\xff\xff\xff\xff\xff\xff"
      "abc",
      "has a text of 18446744073709551615 bytes");
  raw("\x8c\x04"
      "abc",
      "needs 4 bytes more, 3 are left");
  raw("J123", "needs 4 bytes more, 3 are left");
  raw("G1234567", "needs 8 bytes more, 7 are left");
  raw("\x8a\x09"
      "123456789.",
      "has an integer of 9 bytes; 8 are the most");
  raw("cabc", "has a name without an end");
  raw("cabc\n", "has a name without an end");
  for (const std::string op : {"a",     "e",    "s",    "u",     "t",  "\x85", "\x86", "\x87", "b",      "R",    "Q",
                               "q\x01", "\x94", "\x93", "N\x86", "]a", "}Ns",  "(NR",  "N(NR", "N(\x85", "](Na", "](Ne(u"})
    CHECK_THROWS_AS(Opened(torch_zip(op + ".").bytes()), sae::FileError);
  raw("](Na.", "takes a value from an empty stack");
  raw("N(Ne.", "adds parts to None, where a list is needed");
  raw("](NNu.", "adds parts to a list, where a dict is needed");
  raw("}(NNNu.", "gives a dict a key without a value");
  raw("}NNs.", "has a dict with None as a key; keys are texts or integers");
  raw("}" + pickled("k") + "Ns" + pickled("k") + "Ns.", "has a dict with the key k twice");
  raw("}(K\x01NX" + std::string(4, '\0') + "NK\x02NK\x01Nu.", "has a dict with the key 1 twice");
  raw("h\x05.", "asks for memo number 5, which was not set");
  raw("Nq\x05h\x04.", "asks for memo number 4, which was not set");
  raw("Nr\xff\xff\xff\xff.", "has a memo number 4294967295, more than its opcodes could have made");
  raw("Nb.", "takes a value from an empty stack");
  raw("]}b.", "gives attributes to a list, which is not read");
  raw("N)R.", "calls None with a tuple");
  raw(global("collections", "OrderedDict") + "(]tR.", "makes a dict of arguments, which is not read");
  raw(global("collections", "OrderedDict") + "]R.", "calls a class with a list");
  raw("NN\x93.", "names a global by None");
  raw("N2.", "has the opcode 0x32, which is not among those of dicts");
  for (const char op : std::string("012FILSTUVdgiloP\x81\x82\x83\x84\x8b\x8e\x8f\x90\x91\x92\x96\x97\x98\xff"))
    raw(std::string(1, op), "has the opcode 0x");
}

TEST_CASE("torch files: cycles, deep nesting, parts that multiply", "[files][torch][pickle]") {
  refused("]q\x31h\x31\x61", "has a list that is a part of itself");
  refused("}q\x01" + pickled("k") + "h\x01s", "has a dict that is a part of itself");
  refused("]q\x01(h\x01ta", "has a list that is a part of itself");

  std::string deep(100000, ']');
  deep += std::string(99999, 'a');
  refused(deep, "is nested deeper than 64 levels");
  CHECK(of(std::string(64, ']') + std::string(63, 'a')).file.root().size() == 1);
  refused(std::string(65, ']') + std::string(64, 'a'), "is nested deeper than 64 levels");
  // A shared part that is met first where it is not deep.
  refused("](" + std::string(40, ']') + std::string(39, 'a') + "q\x01" + std::string(40, ']') + "h\x01" + std::string(40, 'a') +
              "e",
          "is nested deeper than 64 levels");

  // 2^60 places for one tensor.
  std::string bomb = tensor(storage("0", 1), 0, "", "") + "q\x01";
  for (int i = 0; i < 60; ++i) bomb += "h\x01\x86q\x01";
  const Opened laughs = of(bomb, {floats(1)});
  CHECK_THROWS_WITH(laughs.file.tensors(), "x.pt: its tensors stand in more places than a file of this size should have");
  std::string places = "](" + tensor(storage("0", 1), 0, "", "") + "q\x01";
  for (int i = 0; i < 100000; ++i) places += "h\x01";
  CHECK_THROWS_WITH(of(places + "e", {floats(1)}).file.tensors(), ContainsSubstring("stand in more places"));
  std::string compared = "}(" + pickled(std::string(100000, 'k')) + "q\x02N";
  for (int i = 0; i < 100000; ++i) compared += "h\x02N";
  refused(compared + "u", "has a dict with a key of 100000 bytes; 4096 are the most");
  // Long keys in many places cost no more than their letters.
  std::string nested = "}" + pickled(std::string(4096, 'k')) + "q\x02";
  for (int i = 0; i < 50; ++i) nested += "}h\x02";
  const std::string numbers = "](" + std::string(400000, 'N') + "e", dicts(51, 's');
  CHECK(of(nested + numbers + dicts).file.tensors().empty());
  std::string lists = "](" + tensor(storage("0", 1), 0, "", "") + "q\x03" + std::string(100000, 'N');
  for (int i = 0; i < 100; ++i) lists += "h\x03";
  CHECK_THROWS_WITH(of(nested + lists + "e" + dicts, {floats(1)}).file.tensors(), ContainsSubstring("stand in more places"));
  CHECK(of("](" + std::string(100000, 'N') + "e").file.tensors().empty());
  refused(std::string(600000, 'N'), "has more than the 52");
}
