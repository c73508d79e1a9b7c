#pragma once
#include <sae/files/dtype.hpp>

#include <array>
#include <string_view>

namespace sae::inline SAE_ABI::detail {

/// torch's class of storages of such numbers ("torch.FloatStorage" without its module); empty where there is none.
constexpr std::string_view torch_storage(Dtype dtype) {
  constexpr std::array<std::string_view, 13> names{"DoubleStorage",
                                                   "FloatStorage",
                                                   "HalfStorage",
                                                   "BFloat16Storage",
                                                   "LongStorage",
                                                   "IntStorage",
                                                   "ShortStorage",
                                                   "CharStorage",
                                                   "",
                                                   "",
                                                   "",
                                                   "ByteStorage",
                                                   "BoolStorage"};
  return names[static_cast<std::size_t>(dtype)];
}

}  // namespace sae::inline SAE_ABI::detail
