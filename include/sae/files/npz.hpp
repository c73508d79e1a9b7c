#pragma once
#include <sae/files/array_view.hpp>
#include <sae/files/npy_header.hpp>
#include <sae/files/zip.hpp>
#include <sae/files/zip_output.hpp>

#include <map>

namespace sae::inline SAE_ABI {

/// A mapped .npz file (a zip file of .npy files, `numpy.savez` and `savez_compressed`), every array's header checked when it is opened
/// (npy_header.hpp). Stored arrays stay in the map; deflated ones are unpacked into memory then (`unpacked`), and need an inflater
/// (zip.hpp). Values may be NaN or infinite. Any number of threads may read.
class NpzFile {
 public:
  explicit NpzFile(const std::filesystem::path& path, ZipOptions options = {}) : zip_(path, options) { open(); }
  /// Of bytes in memory, which have to stay; `name` is for messages.
  NpzFile(std::span<const std::byte> bytes, std::string name, ZipOptions options = {}) : zip_(bytes, std::move(name), options) {
    open();
  }

  const std::string& path() const { return zip_.path(); }
  const ZipFile& zip() const { return zip_; }
  /// Name, without .npy -> array. Those that are stored column by column (fortran_order) have strides. What else the archive holds is
  /// left out.
  const std::map<std::string, ArrayView, std::less<>>& arrays() const { return arrays_; }
  /// nullptr where there is no such array.
  const ArrayView* find(std::string_view name) const {
    const auto found = arrays_.find(name);
    return found == arrays_.end() ? nullptr : &found->second;
  }
  /// \throws FileError  there is no such array.
  const ArrayView& array(std::string_view name) const {
    if (const ArrayView* const found = find(name)) return *found;
    throw_file(path(), ": has no array ", name, detail::held_names(arrays_));
  }
  /// An array of two axes at most as a matrix, or its transpose (`read_matrix`).
  template <class T>
  Tensor<T> read(std::string_view name, bool transposed = false) const {
    return read_matrix<T>(array(name), path(), name, transposed);
  }

  /// Bytes of memory that deflated arrays take.
  std::size_t unpacked() const { return zip_.unpacked(); }
  /// Reads everything once and compares its sums; opening does so only with what it unpacks.
  void check() const {
    for (const ZipEntry& entry : zip_.entries()) zip_.check(entry);
  }

 private:
  void open() {
    constexpr std::string_view suffix = ".npy";
    for (const ZipEntry& entry : zip_.entries()) {
      if (!entry.name.ends_with(suffix)) continue;
      const std::string name(entry.name.substr(0, entry.name.size() - suffix.size()));
      const auto bytes = zip_.bytes(entry);
      NpyHeader header = parse_npy(bytes, detail::concat(path(), ": array ", detail::printable(name)), NpyOrder::any);
      ArrayView view{header.dtype, std::move(header.shape), {}, bytes.data() + header.offset};
      if (header.fortran && header.elements > 0) {
        Index next = 1;
        for (const Index size : view.shape) {
          view.strides.push_back(next);
          next *= size;
        }
      }
      arrays_.emplace(name, std::move(view));
    }
  }

  ZipFile zip_;
  std::map<std::string, ArrayView, std::less<>> arrays_;
};

/// Writes a .npz file whole or not at all, as `numpy.load` reads it: stored, numbers at multiples of 64 bytes. Equal calls give equal
/// bytes.
///
///   NpzWriter file;
///   file.add("W_dec", {latents, width}, weights);     // a view: the numbers must stay until save()
///   file.save("params.npz", {.overwrite = true});
///
/// \throws ValueError, ShapeError  a name twice or one that is none (zip.hpp), another number of values than the shape has.
class NpzWriter {
 public:
  using Shape = std::vector<Index>;

  /// \tparam T  float, double, bool or an integer; a name may have folders ("layer_0/W_enc").
  template <class T>
  void add(const std::string& name, const Shape& shape, std::span<const T> values) {
    Index elements = 0, bytes = 0;
    const bool legal = std::all_of(shape.begin(), shape.end(), [](Index size) { return size >= 0; });
    if (!legal || !detail::byte_count(shape, dtype_of<T>(), elements, bytes) ||
        static_cast<std::size_t>(elements) != values.size())
      throw_shape("npz: array ", name, ": ", values.size(), " values do not have the shape ", detail::shape_text(shape));
    if (!detail::is_zip_name(name)) throw_value("npz: \"", detail::printable(name), "\" is no name for an array");
    for (const Entry& entry : entries_)
      if (entry.name == name) throw_value("npz: array ", name, " is added twice");
    entries_.push_back({name, detail::npy_header(dtype_of<T>(), shape), std::as_bytes(values)});
  }
  template <class T>
  void add(const std::string& name, const Shape& shape, const std::vector<T>& values) {
    add(name, shape, std::span<const T>(values));
  }
  void save(const std::filesystem::path& path, OutputOptions options = {}) const {
    detail::ZipOutput out(path, options);
    for (const Entry& entry : entries_) out.add(entry.name + ".npy", {std::as_bytes(std::span(entry.header)), entry.bytes});
    out.finish();
  }

 private:
  struct Entry {
    std::string name, header;
    std::span<const std::byte> bytes;
  };
  std::vector<Entry> entries_;
};

}  // namespace sae::inline SAE_ABI
