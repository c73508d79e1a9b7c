#pragma once
#include <sae/core/error.hpp>
#include <sae/files/array_view.hpp>
#include <sae/files/torch_storage.hpp>
#include <sae/files/zip_output.hpp>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace sae::inline SAE_ABI {

/// Writes a state dictionary as torch.save does (zip container, pickle protocol 2), whole or not at all: `torch.load` gives a dict of
/// tensors, in the order in which they are added. Equal calls give equal bytes.
///
///   TorchWriter file;
///   file.add("decoder.weight", {width, latents}, weights, {1, width});   // columns of the matrix lie together
///   file.save("ae.pt", {.overwrite = true});
///
/// \throws ValueError, ShapeError  a name twice, another number of values than the shape has.
class TorchWriter {
 public:
  using Shape = std::vector<Index>;

  /// \tparam T      float, double, bfloat16, float16, bool or a signed integer, or std::uint8_t
  /// \param values  a view: the numbers must stay until save()
  /// \param strides of each axis, in numbers; empty: C order. They are a permutation of C order's: every value has one place.
  template <class T>
  void add(const std::string& name, const Shape& shape, std::span<const T> values, const Shape& strides = {}) {
    Index elements = 0, bytes = 0;
    const bool legal = std::all_of(shape.begin(), shape.end(), [](Index size) { return size >= 0; });
    if (!legal || !detail::byte_count(shape, dtype_of<T>(), elements, bytes) ||
        static_cast<std::size_t>(elements) != values.size() || (!strides.empty() && strides.size() != shape.size()))
      throw_shape("torch: tensor ", name, ": ", values.size(), " values do not have the shape ", detail::shape_text(shape));
    for (const Entry& entry : entries_)
      if (entry.name == name) throw_value("torch: tensor ", name, " is added twice");
    entries_.push_back(
        {name, {dtype_of<T>(), shape, strides, reinterpret_cast<const std::byte*>(values.data())}, std::as_bytes(values)});
  }

  void save(const std::filesystem::path& path, OutputOptions options = {}) const {
    // torch names the folder in the archive after the file; any name does.
    const std::string folder = "archive/", pickle = pickle_text();
    constexpr std::string_view order = "little", version = "3\n";
    const auto bytes = [](std::string_view text) { return std::as_bytes(std::span(text)); };
    detail::ZipOutput out(path, options);
    out.add(folder + "data.pkl", {bytes(pickle)});
    out.add(folder + "byteorder", {bytes(order)});
    for (std::size_t key = 0; key < entries_.size(); ++key)
      out.add(detail::concat(folder, "data/", key), {entries_[key].bytes});
    out.add(folder + "version", {bytes(version)});
    out.finish();
  }

 private:
  struct Entry {
    std::string name;
    ArrayView array;
    std::span<const std::byte> bytes;
  };

  static std::string_view storage_class(Dtype dtype) {
    const std::string_view name = detail::torch_storage(dtype);
    if (name.empty()) throw_value("torch: numbers of ", to_string(dtype), " have no storage");
    return name;
  }
  static void add_number(std::string& to, std::uint64_t value, int bytes) {
    for (int i = 0; i < bytes; ++i) to += static_cast<char>(value >> (8 * i) & 0xff);
  }
  static void add_text(std::string& to, std::string_view text) {  // BINUNICODE
    to += 'X';
    add_number(to, text.size(), 4);
    to += text;
  }
  static void add_integer(std::string& to, Index value) {
    if (value <= std::numeric_limits<std::int32_t>::max()) {
      to += 'J';  // BININT
      add_number(to, static_cast<std::uint64_t>(value), 4);
    } else {
      to += "\x8a\x08";  // LONG1
      add_number(to, static_cast<std::uint64_t>(value), 8);
    }
  }
  static void add_tuple(std::string& to, const Shape& values) {
    to += '(';
    for (const Index value : values) add_integer(to, value);
    to += 't';
  }
  /// {name: _rebuild_tensor_v2(persistent ("storage", class, key, "cpu", numbers), 0, shape, strides, False, OrderedDict()), ...}
  std::string pickle_text() const {
    std::string out("\x80\x02}(", 4);
    for (std::size_t key = 0; key < entries_.size(); ++key) {
      const ArrayView& array = entries_[key].array;
      Shape strides;
      for (std::size_t axis = 0; axis < array.shape.size(); ++axis) strides.push_back(array.stride(axis));
      add_text(out, entries_[key].name);
      out += "ctorch._utils\n_rebuild_tensor_v2\n((";
      add_text(out, "storage");
      out += detail::concat("ctorch\n", storage_class(array.dtype), "\n");
      add_text(out, detail::concat(key));
      add_text(out, "cpu");
      add_integer(out, array.elements());
      out += "tQ";
      add_integer(out, 0);
      add_tuple(out, array.shape);
      add_tuple(out, strides);
      out +=
          "\x89"
          "ccollections\nOrderedDict\n)RtR";
    }
    return out += "u.";
  }

  std::vector<Entry> entries_;
};

}  // namespace sae::inline SAE_ABI
