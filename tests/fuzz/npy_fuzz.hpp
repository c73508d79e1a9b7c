#pragma once
#include <sae/files/npy_header.hpp>

#include <cstdint>
#include <cstdlib>
#include <span>
#include <vector>

/// Whatever the bytes, the reader either refuses them with a FileError or gives an array that lies in the file exactly.
/// \return whether the bytes were taken
inline bool npy_fuzz(std::span<const std::uint8_t> input) {
  const std::vector<std::uint8_t> own(input.begin(), input.end());  // on the heap, so that a sanitizer sees its ends
  const auto bytes = std::as_bytes(std::span(own));
  sae::NpyHeader header;
  try {
    header = sae::parse_npy(bytes, "input");
  } catch (const sae::FileError&) {
    return false;
  }
  sae::Index elements = 1;
  for (const sae::Index size : header.shape) elements *= size;
  const auto need = static_cast<std::size_t>(elements) * static_cast<std::size_t>(sae::item_size(header.dtype));
  if (elements != header.elements || header.offset + need != bytes.size()) std::abort();
  if (sae::readable_as<double>(header.dtype)) {
    std::vector<double> values(static_cast<std::size_t>(elements));
    sae::detail::convert(header.dtype, bytes.data() + header.offset, elements, values.data());
  } else if (sae::readable_as<std::int64_t>(header.dtype)) {
    std::vector<std::int64_t> values(static_cast<std::size_t>(elements));
    sae::detail::convert(header.dtype, bytes.data() + header.offset, elements, values.data());
  }
  return true;
}
