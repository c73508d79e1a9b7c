#pragma once
#include <sae/files/array_view.hpp>
#include <sae/files/safetensors.hpp>

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

namespace sae::inline SAE_ABI {

/// The arrays of one file by name, whatever its container, and what else it says (texts and numbers of a torch file, by dotted name).
/// Nothing is read before it is asked for. Copies share the file.
class TensorSet {
 public:
  TensorSet() = default;
  explicit TensorSet(SafetensorsFile opened) {
    const auto file = std::make_shared<const SafetensorsFile>(std::move(opened));
    file_ = file->path();
    for (const auto& [name, tensor] : file->tensors())
      arrays_[name] = {tensor.dtype, tensor.shape, {}, file->bytes(name).data()};
    keep_ = file;
  }

  const std::string& file() const { return file_; }
  const std::map<std::string, ArrayView, std::less<>>& arrays() const { return arrays_; }
  /// nullptr where there is no such array.
  const ArrayView* find(std::string_view name) const {
    const auto found = arrays_.find(name);
    return found == arrays_.end() ? nullptr : &found->second;
  }
  bool contains(std::string_view name) const { return find(name) != nullptr; }
  /// \throws FileError  there is no such array.
  const ArrayView& at(std::string_view name) const {
    if (const ArrayView* const found = find(name)) return *found;
    std::string there;
    int listed = 0;
    for (const auto& [other, array] : arrays_) {
      if (++listed > 12) break;
      there += (there.empty() ? "; it holds " : ", ") + detail::printable(other);
    }
    throw_file(file_, ": has no tensor ", name, there, listed > 12 ? ", ..." : "");
  }

  nlohmann::json values = nlohmann::json::object();  ///< what stands beside the arrays, by dotted name

 private:
  std::string file_;
  std::map<std::string, ArrayView, std::less<>> arrays_;
  std::shared_ptr<const void> keep_;
};

/// Opens a file of arrays by its ending.
/// \throws FileError  it is missing or malformed, or has an ending of no container that is read.
inline TensorSet open_tensors(const std::filesystem::path& path) {
  const std::string ending = path.extension().string();
  if (ending == ".safetensors") return TensorSet(SafetensorsFile(path));
  throw_file(path.string(), ": is not read; weights are in .safetensors files");
}

}  // namespace sae::inline SAE_ABI
