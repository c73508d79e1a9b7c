#pragma once
#include <sae/files/torch_file.hpp>

#include <cstdint>
#include <cstdlib>
#include <span>
#include <vector>

/// Every value below one, each part in its turn, as far as the patience goes.
inline void visit_value(const sae::TorchValue& value, int depth, std::size_t& patience) {
  if (depth > 64) std::abort();
  if (patience == 0) return;
  --patience;
  if (value.is(sae::TorchKind::dict))
    for (sae::Index i = 0; i < value.size(); ++i) value.key_text(i);
  if (value.is(sae::TorchKind::text))
    for (const char c : value.text())
      if (c == 1 && value.path().size() == SIZE_MAX) std::abort();  // touches every letter
  for (sae::Index i = 0; i < value.size(); ++i) visit_value(value[i], depth + 1, patience);
}

/// Whatever the bytes, the pickle is refused with a FileError or gives values of bounded depth, and tensors inside of the storages 0
/// (64 bytes), 1 (none) and every other (6 bytes).
/// \return whether the bytes were taken
inline bool pickle_fuzz(std::span<const std::uint8_t> input) {
  const std::vector<std::uint8_t> own(input.begin(), input.end());  // on the heap, so that a sanitizer sees its ends
  const std::vector<std::byte> zero(64), none, other(6);
  sae::detail::TorchTree tree;
  tree.file = "input";
  try {
    sae::detail::read_torch_pickle(tree, std::as_bytes(std::span(own)), own.size(), [&](std::string_view key) {
      return std::span<const std::byte>(key == "0" ? zero : key == "1" ? none : other);
    });
  } catch (const sae::FileError&) {
    return false;
  }
  const sae::TorchValue root(tree, tree.pickle.root, "");
  std::size_t patience = 2000;
  visit_value(root, 1, patience);
  for (const sae::ArrayView& tensor : tree.tensors) {
    sae::Index elements = 1, last = 0;
    for (std::size_t axis = 0; axis < tensor.shape.size(); ++axis) {
      elements *= tensor.shape[axis];
      last += (tensor.shape[axis] - 1) * (tensor.strides.empty() ? 0 : tensor.strides[axis]);
    }
    if (elements == 0) continue;
    for (sae::Index i = 0; i < sae::item_size(tensor.dtype); ++i)
      if (tensor.data[last * sae::item_size(tensor.dtype) + i] != std::byte{0}) std::abort();
    if (tensor.shape.size() > 2 || elements > 100000) continue;
    if (sae::readable_as<double>(tensor.dtype)) {
      sae::read_matrix<double>(tensor, "input", "t");
      sae::read_matrix<double>(tensor, "input", "t", true);
    } else {
      sae::read_matrix<std::int64_t>(tensor, "input", "t");
    }
  }
  try {
    sae::detail::TorchNames(tree, own.size()).read();
  } catch (const sae::FileError&) {}
  return true;
}
