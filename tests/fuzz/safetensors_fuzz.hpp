#pragma once
#include <sae/files/safetensors_header.hpp>

#include <cstdint>
#include <cstdlib>
#include <span>
#include <vector>

/// Whatever the bytes, the reader either refuses them with a FileError or gives tensors that cover the data exactly.
/// \return whether the bytes were taken
inline bool safetensors_fuzz(std::span<const std::uint8_t> input) {
  const std::vector<std::uint8_t> own(input.begin(), input.end());  // on the heap, so that a sanitizer sees its ends
  const auto bytes = std::as_bytes(std::span(own));
  sae::SafetensorsHeader header;
  try {
    header = sae::parse_safetensors(bytes, "input");
  } catch (const sae::FileError&) {
    return false;
  }
  std::vector<int> covered(bytes.size() - header.offset, 0);
  for (const auto& [name, tensor] : header.tensors) {
    sae::Index elements = 1;
    for (const sae::Index size : tensor.shape) elements *= size;
    if (elements != tensor.elements || tensor.end - tensor.begin != elements * sae::item_size(tensor.dtype)) std::abort();
    for (sae::Index i = tensor.begin; i < tensor.end; ++i) ++covered.at(static_cast<std::size_t>(i));
    if (sae::readable_as<float>(tensor.dtype)) {
      std::vector<float> values(static_cast<std::size_t>(elements));
      sae::detail::convert(tensor.dtype, bytes.data() + header.offset + tensor.begin, elements, values.data());
    }
  }
  for (const int times : covered)
    if (times != 1) std::abort();
  return true;
}
