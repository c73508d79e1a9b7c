#pragma once
#include <sae/files/array_view.hpp>
#include <sae/files/npz.hpp>
#include <sae/files/safetensors.hpp>
#include <sae/files/torch_file.hpp>

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

namespace sae::inline SAE_ABI {

/// The arrays of one file by name, whatever its container, and what else it says.
/// Nothing is read before it is asked for. Copies share the file.
class TensorSet {
 public:
  using Arrays = std::map<std::string, ArrayView, std::less<>>;

  TensorSet() = default;
  explicit TensorSet(SafetensorsFile opened) {
    const auto& file = keep(std::move(opened));
    Arrays arrays;
    for (const auto& [name, tensor] : file.tensors()) arrays[name] = {tensor.dtype, tensor.shape, {}, file.bytes(name).data()};
    arrays_ = std::make_shared<const Arrays>(std::move(arrays));
  }
  explicit TensorSet(NpzFile opened) {
    const auto& file = keep(std::move(opened));
    arrays_ = std::make_shared<const Arrays>(file.arrays());
    unpacked_ = file.unpacked();
  }
  explicit TensorSet(TorchFile opened) {
    const auto& file = keep(std::move(opened));
    arrays_ = std::make_shared<const Arrays>(file.tensors());
    unpacked_ = file.unpacked();
    read_values(file.root());
  }

  const std::string& file() const { return file_; }
  const Arrays& arrays() const { return *arrays_; }
  /// nullptr where there is no such array.
  const ArrayView* find(std::string_view name) const {
    const auto found = arrays_->find(name);
    return found == arrays_->end() ? nullptr : &found->second;
  }
  bool contains(std::string_view name) const { return find(name) != nullptr; }
  /// \throws FileError  there is no such array.
  const ArrayView& at(std::string_view name) const {
    if (const ArrayView* const found = find(name)) return *found;
    throw_file(file_, ": has no tensor ", name, detail::held_names(*arrays_));
  }
  /// What stands beside the arrays of a torch file: texts and numbers by dotted name, a few levels deep.
  const nlohmann::json& values() const { return values_; }
  std::size_t unpacked() const { return unpacked_; }  ///< bytes of memory that deflated arrays take
  /// What holds the arrays' bytes.
  std::shared_ptr<const void> bytes() const { return keep_; }

 private:
  template <class File>
  const File& keep(File opened) {
    const auto file = std::make_shared<const File>(std::move(opened));
    file_ = file->path();
    keep_ = file;
    return *file;
  }
  void read_values(const TorchValue& from, int depth = 0) {
    constexpr int deepest = 4;
    constexpr std::size_t most = 1000;
    for (Index i = 0; i < from.size() && values_.size() < most; ++i) {
      const TorchValue part = from[i];
      switch (part.kind()) {
        case TorchKind::text: values_[part.path()] = part.text(); break;
        case TorchKind::integer: values_[part.path()] = part.integer(); break;
        case TorchKind::number: values_[part.path()] = part.number(); break;
        case TorchKind::boolean: values_[part.path()] = part.boolean(); break;
        case TorchKind::dict:
          if (depth < deepest) read_values(part, depth + 1);
          break;
        default: break;
      }
    }
  }

  std::string file_;
  std::shared_ptr<const Arrays> arrays_ = std::make_shared<const Arrays>();
  nlohmann::json values_ = nlohmann::json::object();
  std::size_t unpacked_ = 0;
  std::shared_ptr<const void> keep_;
};

/// Opens a file of arrays by its ending.
/// \throws FileError  it is missing or malformed, or has an ending of no container that is read.
inline TensorSet open_tensors(const std::filesystem::path& path) {
  const std::string ending = path.extension().string();
  if (ending == ".safetensors" || detail::is_safetensors_index(path)) return TensorSet(SafetensorsFile(path));
  if (ending == ".npz") return TensorSet(NpzFile(path));
  if (ending == ".pt" || ending == ".pth") return TensorSet(TorchFile(path));
  throw_file(path.string(), ": is not read; weights are in files that end in .safetensors, .npz, .pt or .pth");
}

}  // namespace sae::inline SAE_ABI
