#pragma once
#include <sae/files/crc32.hpp>
#include <sae/files/output.hpp>

#include <initializer_list>
#include <string>
#include <vector>

namespace sae::inline SAE_ABI::detail {

/// Writes a zip file of stored entries, whole or not at all. The data of every entry begin at a multiple of 64 bytes. Equal calls give
/// equal bytes: no entry has a date.
class ZipOutput {
 public:
  /// \param limit  the first number that stands in a zip64 field; smaller only in tests
  explicit ZipOutput(const std::filesystem::path& path, OutputOptions options = {}, std::uint64_t limit = 0xffffffff)
      : out_(path, options), limit_(limit) {}

  /// One entry, of pieces that follow one another.
  void add(const std::string& name, std::initializer_list<std::span<const std::byte>> pieces) {
    if (name.empty() || name.size() > 0xffff) throw_value("zip: a name of ", name.size(), " bytes is not in [1, 65535]");
    Entry entry{name, static_cast<std::uint64_t>(out_.size()), 0, 0};
    for (const auto piece : pieces) {
      entry.crc = crc32_sum(piece, entry.crc);
      entry.size += piece.size();
    }
    const bool large = entry.size >= limit_;
    std::string header;
    number<4>(header, 0x04034b50);
    common(header, entry, large);
    number<4>(header, large ? 0xffffffff : entry.size);
    number<4>(header, large ? 0xffffffff : entry.size);
    number<2>(header, name.size());
    std::string extra;
    if (large) {
      number<4>(extra, 16U << 16 | 1U);
      number<8>(extra, entry.size);
      number<8>(extra, entry.size);
    }
    pad(extra, entry.offset + header.size() + 2 + name.size());
    number<2>(header, extra.size());
    out_.write(header + name + extra);
    for (const auto piece : pieces) out_.write(piece);
    entries_.push_back(std::move(entry));
  }

  /// Writes the directory; the file appears.
  void finish() {
    const auto begin = static_cast<std::uint64_t>(out_.size());
    for (const Entry& entry : entries_) {
      const bool large = entry.size >= limit_, far = entry.offset >= limit_;
      std::string record, extra;
      if (large) number<8>(extra, entry.size), number<8>(extra, entry.size);
      if (far) number<8>(extra, entry.offset);
      number<4>(record, 0x02014b50);
      number<2>(record, 3U << 8 | 45U);  // made by Unix
      common(record, entry, large || far);
      number<4>(record, large ? 0xffffffff : entry.size);
      number<4>(record, large ? 0xffffffff : entry.size);
      number<2>(record, entry.name.size());
      number<2>(record, extra.empty() ? 0 : extra.size() + 4);
      number<2>(record, 0);
      number<2>(record, 0);
      number<2>(record, 0);
      number<4>(record, std::uint64_t{0600} << 16);
      number<4>(record, far ? 0xffffffff : entry.offset);
      record += entry.name;
      if (!extra.empty()) number<4>(record, extra.size() << 16 | 1U);
      out_.write(record + extra);
    }
    const auto end = static_cast<std::uint64_t>(out_.size()), size = end - begin, count = std::uint64_t{entries_.size()};
    const bool large = size >= limit_ || begin >= limit_ || count >= std::min<std::uint64_t>(limit_, 0xffff);
    std::string record;
    if (large) {
      number<4>(record, 0x06064b50);
      number<8>(record, 44);
      number<4>(record, 45U << 16 | 45U);
      number<8>(record, 0);
      number<8>(record, count);
      number<8>(record, count);
      number<8>(record, size);
      number<8>(record, begin);
      number<4>(record, 0x07064b50);
      number<4>(record, 0);
      number<8>(record, end);
      number<4>(record, 1);
    }
    number<4>(record, 0x06054b50);
    number<4>(record, 0);
    number<2>(record, large ? 0xffff : count);
    number<2>(record, large ? 0xffff : count);
    number<4>(record, large ? 0xffffffff : size);
    number<4>(record, large ? 0xffffffff : begin);
    number<2>(record, 0);
    out_.write(record);
    out_.commit();
  }

 private:
  struct Entry {
    std::string name;
    std::uint64_t offset, size;
    std::uint32_t crc;
  };

  template <int bytes>
  static void number(std::string& to, std::uint64_t value) {
    for (int i = 0; i < bytes; ++i) to += static_cast<char>(value >> 8 * i & 0xff);
  }
  /// Version needed, flags (names are UTF-8), method, time, date (1980-01-01), sum.
  static void common(std::string& to, const Entry& entry, bool large) {
    number<2>(to, large ? 45 : 20);
    number<2>(to, 0x0800);
    number<2>(to, 0);
    number<2>(to, 0);
    number<2>(to, 1U << 5 | 1U);
    number<4>(to, entry.crc);
  }
  /// The extra field by which Android's zipalign pads: its number, its length, the alignment, zeros.
  static void pad(std::string& extra, std::uint64_t before) {
    std::size_t zeros = (64 - (before + extra.size() + 6) % 64) % 64;
    number<2>(extra, 0xd935);
    number<2>(extra, zeros + 2);
    number<2>(extra, 64);
    extra.append(zeros, '\0');
  }

  OutputFile out_;
  std::uint64_t limit_;
  std::vector<Entry> entries_;
};

}  // namespace sae::inline SAE_ABI::detail
