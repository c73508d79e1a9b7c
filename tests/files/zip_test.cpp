#include <sae/files/zip.hpp>
#include <sae/files/zip_output.hpp>

#include <string>

#include "catch_compat.hpp"
#include "failing_files.hpp"
#include "temp_folder.hpp"
#include "zip_bytes.hpp"

using Catch::Matchers::ContainsSubstring;

namespace {

using sae_test::u16, sae_test::u32, sae_test::u64, sae_test::ZipBytes, sae_test::ZipPart;

sae::ZipFile opened(const std::string& bytes, sae::ZipOptions options = {}) {
  return sae::ZipFile(std::as_bytes(std::span(bytes)), "x.zip", options);
}
std::string text(std::span<const std::byte> bytes) { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }
const std::vector<ZipPart> two{{.name = "b/one", .data = "first"}, {.name = "a", .data = ""}};

/// For one test a program without an inflater, or with one that knows stored blocks alone.
struct Inflater {
  explicit Inflater(sae::detail::Inflate with) { sae::detail::inflater = with; }
  ~Inflater() { sae::detail::inflater = before; }
  sae::detail::Inflate before = sae::detail::inflater;
};
std::string_view stored_blocks(std::span<const std::byte> from, std::span<std::byte> to) {
  if (from.size() != to.size() + 5) return "is no stored block";
  std::copy(from.begin() + 5, from.end(), to.begin());
  return {};
}

}  // namespace

TEST_CASE("crc32: the check value, in any pieces", "[files][zip]") {
  const std::string digits = "123456789";
  const auto bytes = std::as_bytes(std::span(digits));
  CHECK(sae::crc32_sum(bytes) == 0xcbf43926U);
  for (std::size_t cut = 0; cut <= 9; ++cut)
    CHECK(sae::crc32_sum(bytes.subspan(cut), sae::crc32_sum(bytes.first(cut))) == 0xcbf43926U);
  CHECK(sae::crc32_sum({}) == 0);
}

TEST_CASE("zip: entries by name, of ordinary files and of those with zip64 records", "[files][zip]") {
  std::string far = u16(1) + u16(24) + u64(5) + u64(5) + u64(0);
  for (const bool zip64 : {false, true})
    for (const bool fields : {false, true}) {
      CAPTURE(zip64, fields);
      ZipBytes zip{.parts = two, .zip64 = zip64, .comment = zip64 ? "a comment PK" : ""};
      if (fields) {
        zip.parts[0].packed = zip.parts[0].size = zip.parts[0].header = 0xffffffff;
        zip.parts[0].extra = u16(7) + u16(1) + "x" + far;
        zip.parts[1].extra = u16(1) + u16(0);  // says nothing, as numpy writes
        zip.parts[1].local_extra = far;
      }
      const std::string bytes = zip.bytes();
      sae::ZipFile file = opened(bytes);
      REQUIRE(file.entries().size() == 2);
      CHECK(file.entries()[0].name == "a");
      CHECK(file.entries()[1].name == "b/one");
      const sae::ZipEntry* const one = file.find("b/one");
      REQUIRE(one != nullptr);
      CHECK(one->size == 5);
      CHECK(text(file.bytes(*one)) == "first");
      CHECK(file.bytes(*one).data() == std::as_bytes(std::span(bytes)).data() + 30 + 5);
      CHECK(file.bytes(*file.find("a")).empty());
      CHECK(file.find("b") == nullptr);
      CHECK(file.find("c") == nullptr);
      file.check(*one);
      CHECK(file.unpacked() == 0);
    }
  CHECK(opened(ZipBytes().bytes()).entries().empty());
}

TEST_CASE("zip: what is stored is checked when asked", "[files][zip]") {
  const std::string bytes = ZipBytes{.parts = {{.name = "w", .data = "1234", .crc = 5}}}.bytes();
  sae::ZipFile file = opened(bytes);
  CHECK(text(file.bytes(*file.find("w"))) == "1234");
  CHECK_THROWS_WITH(file.check(*file.find("w")),
                    "x.zip: zip entry w is damaged: its bytes do not have the sum (CRC-32) that the directory says");
}

TEST_CASE("zip: deflated entries are unpacked once, checked, within the cap", "[files][zip]") {
  const std::string good = ZipBytes{.parts = {sae_test::deflated("d", "hello"), sae_test::deflated("e", "world")}}.bytes();
  {
    const Inflater none(nullptr);
    sae::ZipFile file = opened(good);
    CHECK_THROWS_WITH(file.bytes(*file.find("d")),
                      ContainsSubstring("x.zip: zip entry d is deflated") && ContainsSubstring("include <sae/files/zlib.hpp>"));
  }
  const Inflater stored(stored_blocks);
  sae::ZipFile file = opened(good, {.unpack_cap = 9});
  const auto d = file.bytes(*file.find("d"));
  CHECK(text(d) == "hello");
  CHECK(file.unpacked() == 5);
  sae::ZipFile moved = std::move(file);
  CHECK(moved.bytes(*moved.find("d")).data() == d.data());
  CHECK_THROWS_WITH(moved.bytes(*moved.find("e")),
                    "x.zip: zip entry e unpacks to 5 bytes, of which 4 are left of those that may be "
                    "unpacked (ZipOptions::unpack_cap)");
  ZipBytes bad{.parts = {sae_test::deflated("d", "hello")}};
  bad.parts[0].crc = 1;
  const std::string bad_bytes = bad.bytes();
  sae::ZipFile wrong = opened(bad_bytes);
  CHECK_THROWS_WITH(wrong.bytes(*wrong.find("d")), ContainsSubstring("entry d is damaged"));
  bad.parts[0].size = 4;
  const std::string other_bytes = bad.bytes();
  sae::ZipFile other = opened(other_bytes);
  CHECK_THROWS_WITH(other.bytes(*other.find("d")), "x.zip: zip entry d is no stored block");
}

TEST_CASE("zip: every way in which a directory can be wrong", "[files][zip]") {
  const auto refused = [](const std::string& bytes, const std::string& words) {
    CAPTURE(words);
    CHECK_THROWS_WITH(opened(bytes), "x.zip: " + words);
  };
  const auto with = [](auto change) {
    ZipBytes zip{.parts = two};
    change(zip);
    return zip.bytes();
  };
  const auto part = [&](auto change) { return with([&](ZipBytes& zip) { change(zip.parts[0]); }); };
  const std::string good = with([](ZipBytes&) {});
  refused("", "is not a zip file (it must begin with PK)");
  refused(std::string(100, 'x'), "is not a zip file (it must begin with PK)");
  for (std::size_t n = 0; n < good.size(); ++n) CHECK_THROWS_AS(opened(good.substr(0, n)), sae::FileError);
  refused(good.substr(0, good.size() - 1), "has no zip directory at its end; the file may have been cut off");
  refused(good + "x", "has no zip directory at its end; the file may have been cut off");
  refused(good + std::string(200000, 'x'), "has no zip directory at its end; the file may have been cut off");
  refused(with([](ZipBytes& z) { z.disk = 1; }), "is one part of a zip file of several parts");
  refused(with([](ZipBytes& z) { z.count = 1; }), "the zip directory has 47 bytes behind its 1 entries");
  refused(with([](ZipBytes& z) { z.count = 3; }), "its zip directory says 3 entries, which do not fit in the file");
  refused(with([](ZipBytes& z) { z.count = 3, z.parts[1].data = std::string(200, 'x'); }),
          "its zip directory has no entry at byte 369, where one should begin");
  refused(with([](ZipBytes& z) { z.count = 60000; }), "its zip directory says 60000 entries, which do not fit in the file");
  refused(with([](ZipBytes& z) { z.gap = "x"; }),
          "its zip directory, 98 bytes at byte 71, does not end at byte 170, where the end record begins");
  refused(with([](ZipBytes& z) { z.directory = 70; }),
          "its zip directory, 98 bytes at byte 70, does not end at byte 169, where the end record begins");
  refused(with([](ZipBytes& z) { z.directory = 0xffffffff; }),
          "its zip directory, 98 bytes at byte 4294967295, does not end at byte 169, where the end record begins");
  refused(with([](ZipBytes& z) { z.zip64 = true, z.zip64_record = 0; }),
          "its zip64 record is not where it should be, at byte 0");
  refused(with([](ZipBytes& z) { z.zip64 = true, z.zip64_record = ~std::size_t{0}; }),
          "its zip64 record is not where it should be, at byte 18446744073709551615");
  refused(with([](ZipBytes& z) { z.zip64 = true, z.directory = ~std::size_t{0}; }),
          "its zip directory, 98 bytes at byte 18446744073709551615, does not end at byte 169, where the end record begins");
  refused(with([](ZipBytes& z) { z.zip64 = true, z.count = ~std::size_t{0}; }),
          "its zip directory says 18446744073709551615 entries, which do not fit in the file");
  refused(with([](ZipBytes& z) { z.zip64 = true, z.disk = 2; }), "its zip64 record and its end record do not agree");

  refused(part([](ZipPart& p) { p.flags = 1; }), "zip entry b/one is encrypted");
  refused(part([](ZipPart& p) { p.flags = 0x2000; }), "zip entry b/one is encrypted");
  refused(part([](ZipPart& p) { p.disk = 3; }), "zip entry b/one lies in another part of a zip file of several parts");
  refused(part([](ZipPart& p) { p.method = 14; }),
          "zip entry b/one is packed by method 14; stored (0) and deflated (8) ones are read");
  refused(part([](ZipPart& p) { p.size = 4; }), "zip entry b/one is stored in 5 bytes but should have 4");
  refused(part([](ZipPart& p) { p.method = 8, p.size = 6000; }),
          "zip entry b/one says that its 5 bytes unpack to 6000, more than deflate can do");
  refused(part([](ZipPart& p) { p.packed = p.size = 6; }), "zip entry a begins inside of b/one");
  refused(part([](ZipPart& p) { p.packed = p.size = 37; }),
          "zip entry b/one: 37 bytes behind its header at byte 0 run past byte 71, where the directory begins");
  refused(part([](ZipPart& p) { p.packed = p.size = 0xfffffffe; }),
          "zip entry b/one: 4294967294 bytes behind its header at byte 0 run past byte 71, where the directory begins");
  refused(part([](ZipPart& p) { p.header = 1; }), "zip entry b/one has no header at byte 1, where the directory says");
  refused(part([](ZipPart& p) { p.header = 71; }), "zip entry b/one has no header at byte 71, where the directory says");
  refused(part([](ZipPart& p) { p.header = 0xfffffffe; }),
          "zip entry b/one has no header at byte 4294967294, where the directory says");
  refused(part([](ZipPart& p) { p.header = 0xffffffff; }),
          "zip entry b/one has no zip64 field for a number that does not fit in the others");
  refused(part([](ZipPart& p) { p.header = 0xffffffff, p.extra = u16(1) + u16(7) + "1234567"; }),
          "zip entry b/one has no zip64 field for a number that does not fit in the others");
  refused(part([](ZipPart& p) { p.header = 0xffffffff, p.extra = u16(1) + u16(8) + u64(~std::uint64_t{0}); }),
          "zip entry b/one has no header at byte 18446744073709551615, where the directory says");
  refused(
      part([](ZipPart& p) { p.packed = p.size = 0xffffffff, p.extra = u16(1) + u16(16) + u64(~0ULL) + u64(~0ULL); }),
      "zip entry b/one: 18446744073709551615 bytes behind its header at byte 0 run past byte 71, where the directory begins");
  refused(part([](ZipPart& p) { p.extra = u16(9) + u16(1); }), "zip entry b/one has an extra field that runs past its end");
  refused(part([](ZipPart& p) { p.local_name = "b/two"; }),
          "zip entry b/one has another name or method in its own header than in the directory");
  refused(with([](ZipBytes& z) { z.parts[1].name = "b/one"; }), "zip entry b/one stands in the directory twice");
  refused(with([](ZipBytes& z) { z.parts[1].header = 0, z.parts[1].local_name = z.parts[1].name = "b/one"; }),
          "zip entry b/one begins inside of b/one");
  for (const std::string& name : {std::string("/a"), std::string(".."), std::string("../a"), std::string("a/.."),
                                  std::string("a/../b"), std::string("a\\b"), std::string("a\0b", 3)})
    CHECK_THROWS_WITH(opened(part([&](ZipPart& p) { p.name = name; })), ContainsSubstring("a name is a relative path"));
  CHECK_THROWS_WITH(opened(part([&](ZipPart& p) { p.name = ""; })), ContainsSubstring("a name is a relative path"));
  for (const std::string name : {"..a", "a..", "...", ".data/x", "a/b..c/d", "folder/"})
    CHECK(opened(part([&](ZipPart& p) { p.name = name; })).find(name) != nullptr);
}

TEST_CASE("zip: what is written is read again, aligned, by zip64 fields or without", "[files][zip]") {
  const TempFolder folder;
  const std::string bytes[] = {"", std::string(300, 'x'), "abc"};
  for (const std::uint64_t limit : {std::uint64_t{0xffffffff}, std::uint64_t{200}, std::uint64_t{1}}) {
    CAPTURE(limit);
    sae::detail::ZipOutput out(folder / "x.zip", {.overwrite = true}, limit);
    for (const std::string& data : bytes)
      out.add("entry" + std::to_string(data.size()), {std::as_bytes(std::span(data)), std::as_bytes(std::span(data))});
    out.finish();
    sae::ZipFile file(folder / "x.zip");
    REQUIRE(file.entries().size() == 3);
    for (const std::string& data : bytes) {
      const sae::ZipEntry* const entry = file.find("entry" + std::to_string(data.size()));
      REQUIRE(entry != nullptr);
      CHECK(text(file.bytes(*entry)) == data + data);
      CHECK(entry->data % 64 == 0);
      file.check(*entry);
    }
  }
  sae::detail::ZipOutput out(folder / "y.zip");
  CHECK_THROWS_AS(out.add("", {}), sae::ValueError);
  CHECK_THROWS_AS(out.add(std::string(70000, 'x'), {}), sae::ValueError);
}

TEST_CASE("zip: of 70 000 entries the count stands in the zip64 record", "[files][zip]") {
  const TempFolder folder;
  sae::detail::ZipOutput out(folder / "x.zip");
  for (int i = 0; i < 70000; ++i) out.add(std::to_string(i), {});
  out.finish();
  const sae::ZipFile file(folder / "x.zip");
  CHECK(file.entries().size() == 70000);
  CHECK(file.find("69999") != nullptr);
}
