#pragma once
#include <sae/core/config.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace sae::inline SAE_ABI {

namespace detail {
/// crc32_tables[k][b]: what byte b does to the sum k bytes later.
inline constexpr auto crc32_tables = [] {
  std::array<std::array<std::uint32_t, 256>, 8> tables{};
  for (std::uint32_t b = 0; b < 256; ++b) {
    std::uint32_t sum = b;
    for (int bit = 0; bit < 8; ++bit) sum = sum >> 1 ^ (sum & 1U) * 0xedb88320U;
    tables[0][b] = sum;
  }
  for (std::size_t k = 1; k < 8; ++k)
    for (std::size_t b = 0; b < 256; ++b) tables[k][b] = tables[k - 1][b] >> 8 ^ tables[0][tables[k - 1][b] & 0xffU];
  return tables;
}();
}  // namespace detail

/// The CRC-32 of zip files, polynomial 0xedb88320 reflected, of bytes that come in pieces: `before` is that of what stood before them.
/// Eight bytes at a time ("slicing by 8").   Source: ISO 3309; zip's APPNOTE 4.4.7.
inline std::uint32_t crc32_sum(std::span<const std::byte> bytes, std::uint32_t before = 0) {
  const auto& t = detail::crc32_tables;
  std::uint32_t sum = ~before;
  std::size_t i = 0;
  for (; bytes.size() - i >= 8; i += 8) {
    std::uint32_t low = 0, high = 0;
    std::memcpy(&low, bytes.data() + i, 4);
    std::memcpy(&high, bytes.data() + i + 4, 4);
    low ^= sum;
    sum = t[7][low & 0xffU] ^ t[6][low >> 8 & 0xffU] ^ t[5][low >> 16 & 0xffU] ^ t[4][low >> 24] ^ t[3][high & 0xffU] ^
          t[2][high >> 8 & 0xffU] ^ t[1][high >> 16 & 0xffU] ^ t[0][high >> 24];
  }
  for (; i < bytes.size(); ++i) sum = t[0][(sum ^ std::to_integer<std::uint32_t>(bytes[i])) & 0xffU] ^ sum >> 8;
  return ~sum;
}

}  // namespace sae::inline SAE_ABI
