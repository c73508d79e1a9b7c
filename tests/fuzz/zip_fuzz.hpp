#pragma once
#include <sae/files/npz.hpp>

#include <cstdint>
#include <cstdlib>
#include <set>
#include <span>
#include <vector>

/// Whatever the bytes, a zip file is refused with a FileError or its entries lie apart from one another in the file; a .npz file's
/// arrays lie in it, or in no more memory than it may unpack.
/// \return whether the bytes were taken as a zip file
inline bool zip_fuzz(std::span<const std::uint8_t> input) {
  const std::vector<std::uint8_t> own(input.begin(), input.end());  // on the heap, so that a sanitizer sees its ends
  const auto bytes = std::as_bytes(std::span(own));
  constexpr sae::ZipOptions options{.unpack_cap = 1 << 20};
  try {
    sae::ZipFile zip(bytes, "input", options);
    std::set<std::pair<std::size_t, std::size_t>> ranges;
    std::size_t unpacked = 0;
    for (const sae::ZipEntry& entry : zip.entries()) {
      if (zip.find(entry.name) != &entry || entry.header >= entry.data || entry.data + entry.packed > bytes.size())
        std::abort();
      ranges.emplace(entry.header, entry.data + entry.packed);
      try {
        const auto data = zip.bytes(entry);
        if (data.size() != entry.size) std::abort();
        unsigned sum = 0;
        for (const std::byte b : data) sum += std::to_integer<unsigned>(b);
        if (sum > 255 * data.size()) std::abort();
        unpacked += entry.deflated ? entry.size : 0;
        zip.check(entry);
      } catch (const sae::FileError&) {}
    }
    if (zip.unpacked() != unpacked || unpacked > 1 << 20 || ranges.size() != zip.entries().size()) std::abort();
    std::size_t end = 0;
    for (const auto& [first, last] : ranges) {
      if (first < end) std::abort();
      end = last;
    }
  } catch (const sae::FileError&) {
    return false;
  }
  try {
    const sae::NpzFile file(bytes, "input", options);
    for (const auto& [name, array] : file.arrays()) {
      // Numbers of few axes are read; of more than a file could hold there are only none.
      if (array.shape.size() > 2) continue;
      if (sae::readable_as<double>(array.dtype)) {
        file.read<double>(name);
        file.read<double>(name, true);
      } else if (sae::readable_as<std::int64_t>(array.dtype)) {
        file.read<std::int64_t>(name);
      }
    }
  } catch (const sae::FileError&) {}
  return true;
}
