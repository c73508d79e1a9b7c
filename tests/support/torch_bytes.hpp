#pragma once
// Files of torch.save made opcode by opcode, right ones and wrong ones.
#include "zip_bytes.hpp"

namespace sae_test {

inline std::string pickled(const std::string& text) { return "X" + u32(text.size()) + text; }
inline std::string pickled(std::int32_t value) { return "J" + little(value); }
inline std::string pickled64(std::int64_t value) { return "\x8a\x08" + little(value); }
inline std::string global(const std::string& module, const std::string& name) { return "c" + module + "\n" + name + "\n"; }
inline std::string tuple(const std::string& items) { return "(" + items + "t"; }
/// The persistent id of a storage of float32.
inline std::string storage(const std::string& key, std::int64_t elements, const std::string& kind = "FloatStorage") {
  return "(" + pickled("storage") + global("torch", kind) + pickled(key) + pickled("cpu") + pickled64(elements) + "tQ";
}
/// A tensor; sizes and strides are pickled integers.
inline std::string tensor(const std::string& storage, std::int64_t offset, const std::string& sizes,
                          const std::string& strides) {
  return global("torch._utils", "_rebuild_tensor_v2") + "(" + storage + pickled64(offset) + tuple(sizes) + tuple(strides) +
         "\x89" + global("collections", "OrderedDict") + ")RtR";
}
inline std::string protocol2(const std::string& ops) { return "\x80\x02" + ops + "."; }

/// The file around a pickle, with storages 0, 1, ... of these bytes.
inline ZipBytes torch_zip(const std::string& pickle, const std::vector<std::string>& storages = {}) {
  ZipBytes zip{.parts = {{.name = "archive/data.pkl", .data = pickle}, {.name = "archive/byteorder", .data = "little"}}};
  for (std::size_t i = 0; i < storages.size(); ++i)
    zip.parts.push_back({.name = "archive/data/" + std::to_string(i), .data = storages[i]});
  return zip;
}

}  // namespace sae_test
