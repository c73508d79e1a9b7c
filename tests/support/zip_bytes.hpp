#pragma once
// Zip files made field by field, right ones and wrong ones.
#include <sae/files/crc32.hpp>

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace sae_test {

template <class T>
std::string little(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}
inline std::string u16(std::size_t value) { return little(static_cast<std::uint16_t>(value)); }
inline std::string u32(std::size_t value) { return little(static_cast<std::uint32_t>(value)); }
inline std::string u64(std::uint64_t value) { return little(value); }

struct ZipPart {
  std::string name, data = {};  ///< data as they lie in the archive
  std::size_t method = 0, flags = 0, disk = 0;
  std::optional<std::size_t> size = {}, packed = {}, header = {};  ///< what the directory says, where it lies
  std::optional<std::uint32_t> crc = {};
  std::optional<std::string> local_name = {};
  std::string extra = {}, local_extra = {};
};

struct ZipBytes {
  std::vector<ZipPart> parts;
  bool zip64 = false;  ///< the end records, with the numbers in the zip64 one alone
  std::size_t disk = 0;
  std::optional<std::size_t> count = {}, directory_size = {}, directory = {}, zip64_record = {};
  std::string comment = {}, gap = {};  ///< between directory and end record

  std::string bytes() const {
    std::string out, records;
    for (const ZipPart& part : parts) {
      const std::size_t header = out.size();
      const auto crc = part.crc.value_or(sae::crc32_sum(std::as_bytes(std::span(part.data))));
      const std::string local = part.local_name.value_or(part.name);
      out += "PK\x03\x04" + u16(20) + u16(part.flags) + u16(part.method) + u32(0) + u32(crc) + u32(0) + u32(0) +
             u16(local.size()) + u16(part.local_extra.size()) + local + part.local_extra + part.data;
      records += "PK\x01\x02" + u16(20) + u16(20) + u16(part.flags) + u16(part.method) + u32(0) + u32(crc) +
                 u32(part.packed.value_or(part.data.size())) + u32(part.size.value_or(part.data.size())) +
                 u16(part.name.size()) + u16(part.extra.size()) + u16(0) + u16(part.disk) + u16(0) + u32(0) +
                 u32(part.header.value_or(header)) + part.name + part.extra;
    }
    const std::size_t begin = directory.value_or(out.size()), size = directory_size.value_or(records.size());
    const std::size_t n = count.value_or(parts.size());
    out += records + gap;
    if (zip64) {
      const std::size_t record = zip64_record.value_or(out.size());
      out += "PK\x06\x06" + u64(44) + u16(45) + u16(45) + u32(0) + u32(0) + u64(n) + u64(n) + u64(size) + u64(begin);
      out += "PK\x06\x07" + u32(0) + u64(record) + u32(1);
      return out + "PK\x05\x06" + u16(disk) + u16(0) + u32(0xffffffff) + u32(0xffffffff) + u32(0xffffffff) +
             u16(comment.size()) + comment;
    }
    return out + "PK\x05\x06" + u16(disk) + u16(0) + u16(n) + u16(n) + u32(size) + u32(begin) + u16(comment.size()) + comment;
  }
};

/// Deflate without compression: one stored block.
inline ZipPart deflated(const std::string& name, const std::string& text) {
  ZipPart part{.name = name, .data = "\x01" + u16(text.size()) + u16(~text.size()) + text, .method = 8, .size = text.size()};
  part.crc = sae::crc32_sum(std::as_bytes(std::span(text)));
  return part;
}

}  // namespace sae_test
