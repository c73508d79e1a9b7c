#include <sae/files/zip_output.hpp>
#include <sae/files/zlib.hpp>

#include <random>
#include <string>

#include "catch_compat.hpp"
#include "zip_bytes.hpp"

namespace {

/// Raw deflate by zlib.
std::string packed(const std::string& text, int level = 9) {
  z_stream stream{};
  REQUIRE(::deflateInit2_(&stream, level, Z_DEFLATED, -MAX_WBITS, 8, Z_DEFAULT_STRATEGY, ZLIB_VERSION,
                          static_cast<int>(sizeof stream)) == Z_OK);
  std::string out(text.size() + text.size() / 100 + 100, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  REQUIRE(::deflate(&stream, Z_FINISH) == Z_STREAM_END);
  out.resize(stream.total_out);
  ::deflateEnd(&stream);
  return out;
}
std::string_view inflated(const std::string& from, std::string& to) {
  return sae::detail::zlib_inflate(std::as_bytes(std::span(from)), std::as_writable_bytes(std::span(to)));
}

}  // namespace

TEST_CASE("zlib: including it gives the program an inflater", "[files][zip][zlib]") {
  REQUIRE(sae::detail::inflater == sae::detail::zlib_inflate);
  std::mt19937 random(1);
  for (const std::size_t n : {0U, 1U, 2U, 255U, 70000U}) {
    std::string text(n, '\0');
    for (char& c : text) c = "abcd"[random() % 4];
    for (const int level : {0, 1, 9}) {
      sae_test::ZipPart part{.name = "e", .data = packed(text, level), .method = 8, .size = n};
      part.crc = sae::crc32_sum(std::as_bytes(std::span(text)));
      const std::string bytes = sae_test::ZipBytes{.parts = {part}}.bytes();
      sae::ZipFile file(std::as_bytes(std::span(bytes)), "x.zip");
      const auto got = file.bytes(*file.find("e"));
      CHECK(std::string(reinterpret_cast<const char*>(got.data()), got.size()) == text);
    }
  }
  CHECK(sae::crc32_sum(std::as_bytes(std::span("some text, long enough"))) ==
        ::crc32(0, reinterpret_cast<const Bytef*>("some text, long enough"), 23));
}

TEST_CASE("zlib: deflated data that are not what they should be", "[files][zip][zlib]") {
  const std::string text(1000, 'x'), good = packed(text);
  std::string to(1000, '\0');
  CHECK(inflated(good, to).empty());
  CHECK(to == text);
  to.resize(999);
  CHECK(inflated(good, to) == "unpacks to more bytes than the directory says");
  to.resize(0);
  CHECK(inflated(good, to) == "unpacks to more bytes than the directory says");
  to.resize(1001);
  CHECK(inflated(good, to) == "unpacks to fewer bytes than the directory says");
  to.resize(1000);
  CHECK(inflated(good + "x", to) == "has bytes behind the end of its deflated data");
  for (std::size_t n = 0; n < good.size(); ++n) CHECK(inflated(good.substr(0, n), to) == "ends inside of its deflated data");
  CHECK(inflated("\x07 no block has this type", to) == "is damaged: its bytes are not deflated data");
}

TEST_CASE("zlib: what packs best is still within the ratio that the directory may say", "[files][zip][zlib]") {
  const std::string zeros(std::size_t{40} << 20, '\0');
  sae_test::ZipPart part{.name = "bomb", .data = packed(zeros), .method = 8, .size = zeros.size()};
  CHECK(zeros.size() / part.data.size() >= 1000);
  part.crc = sae::crc32_sum(std::as_bytes(std::span(zeros)));
  const std::string bytes = sae_test::ZipBytes{.parts = {part}}.bytes();
  sae::ZipFile file(std::as_bytes(std::span(bytes)), "x.zip");
  CHECK(file.bytes(*file.find("bomb")).size() == zeros.size());
  sae::ZipFile capped(std::as_bytes(std::span(bytes)), "x.zip", {.unpack_cap = 1 << 20});
  CHECK_THROWS_AS(capped.bytes(*capped.find("bomb")), sae::FileError);
}
