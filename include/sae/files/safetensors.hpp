#pragma once
#include <sae/files/mapped_file.hpp>
#include <sae/files/output.hpp>
#include <sae/files/safetensors_header.hpp>
#include <sae/files/safetensors_index.hpp>

namespace sae::inline SAE_ABI {

/// A mapped safetensors file, checked whole when it is opened (safetensors_header.hpp), or all the files of an index
/// (safetensors_index.hpp), each checked so and holding the tensors that the index says it holds and no others. Values may be NaN or
/// infinite. Any number of threads may read.
class SafetensorsFile {
 public:
  using Shape = std::vector<Index>;

  /// \param path  of a file, or of an index "x.safetensors.index.json"
  explicit SafetensorsFile(const std::filesystem::path& path) : path_(path.string()) {
    if (detail::is_safetensors_index(path)) {
      open_shards(path);
    } else {
      add(path);
    }
  }

  const std::string& path() const { return path_; }
  const auto& tensors() const { return tensors_; }    ///< name -> SafetensorsInfo, in the order of the names
  const auto& metadata() const { return metadata_; }  ///< text -> text; of several files the first that has a text says it
  /// nullptr where there is no such tensor.
  const SafetensorsInfo* find(std::string_view name) const {
    const auto found = tensors().find(name);
    return found == tensors().end() ? nullptr : &found->second;
  }
  bool contains(std::string_view name) const { return find(name) != nullptr; }
  /// \throws FileError  there is no such tensor.
  const SafetensorsInfo& info(std::string_view name) const {
    if (const SafetensorsInfo* const found = find(name)) return *found;
    throw_file(path(), ": has no tensor ", name, detail::held_names(tensors()));
  }

  /// The numbers as they stand in the file (any alignment), C order.
  std::span<const std::byte> bytes(std::string_view name) const {
    const SafetensorsInfo& tensor = info(name);
    const Shard& shard = shards_[tensor.shard];
    return shard.file.bytes().subspan(shard.offset + static_cast<std::size_t>(tensor.begin),
                                      static_cast<std::size_t>(tensor.end - tensor.begin));
  }
  /// All numbers in C order as T: floating dtypes as float or double, integers as integers that hold all their values.
  template <class T>
  Buffer<T> values(std::string_view name) const {
    Buffer<T> out(static_cast<std::size_t>(require_readable<T>(name).elements));
    detail::convert(info(name).dtype, bytes(name).data(), static_cast<Index>(out.size()), out.data());
    return out;
  }
  /// A tensor of two axes at most: [rows, cols] as it is, [n] as one row, a single number as 1 x 1.
  template <class T>
  Tensor<T> read(std::string_view name) const {
    const SafetensorsInfo& tensor = require_readable<T>(name);
    if (tensor.shape.size() > 2)
      throw_file(path(), ": tensor ", name, " has shape ", detail::shape_text(tensor.shape), "; two axes are the most here");
    Tensor<T> out(tensor.shape.size() == 2 ? tensor.shape[0] : 1, tensor.shape.empty() ? 1 : tensor.shape.back());
    detail::convert(tensor.dtype, bytes(name).data(), tensor.elements, out.data());
    return out;
  }
  /// The same, of this shape (-1: any size); another one is refused.
  template <class T>
  Tensor<T> read(std::string_view name, const Shape& shape) const {
    const Shape& found = info(name).shape;
    const auto fits = [](Index is, Index wanted) { return wanted == -1 || is == wanted; };
    if (!std::equal(found.begin(), found.end(), shape.begin(), shape.end(), fits))
      throw_file(path(), ": tensor ", name, " has shape ", detail::shape_text(found), ", it should be ",
                 detail::shape_text(shape));
    return read<T>(name);
  }

 private:
  struct Shard {
    MappedFile file;
    std::size_t offset;  ///< of its data, in bytes
  };

  /// Opens a file more.
  void add(const std::filesystem::path& path) {
    MappedFile file(path);
    SafetensorsHeader header = parse_safetensors(file.bytes(), file.path());
    for (auto& [name, tensor] : header.tensors) {
      tensor.shard = shards_.size();
      if (!tensors_.emplace(name, std::move(tensor)).second)
        throw_file(file.path(), ": holds the tensor ", detail::printable(name), ", which another file of ", path_,
                   " holds, too");
    }
    metadata_.merge(header.metadata);
    shards_.push_back({std::move(file), header.offset});
  }
  void open_shards(const std::filesystem::path& index) {
    const auto files = parse_safetensors_index(detail::read_regular_file(index, detail::safetensors_index_cap), index);
    std::map<std::string_view, std::size_t> shards;  // in the order of their names
    for (const auto& [name, shard] : files) shards.emplace(shard, 0);
    for (auto& [shard, number] : shards) {
      number = shards_.size();
      add(index.parent_path() / shard);
    }
    for (const auto& [name, shard] : files)
      if (const SafetensorsInfo* const found = find(name); found == nullptr || found->shard != shards.at(shard))
        throw_file(path_, ": weight_map: ", detail::printable(name), " is not in ", shard,
                   found == nullptr ? "" : ", another file holds it");
    for (const auto& [name, tensor] : tensors_)
      if (!files.contains(name))
        throw_file(shards_[tensor.shard].file.path(), ": holds the tensor ", detail::printable(name),
                   ", which the weight_map of ", path_, " does not name");
  }

  template <class T>
  const SafetensorsInfo& require_readable(std::string_view name) const {
    const SafetensorsInfo& tensor = info(name);
    if (!readable_as<T>(tensor.dtype))
      throw_file(path(), ": tensor ", name, " holds ", to_string(tensor.dtype), ", which is not read as ",
                 to_string(dtype_of<T>()));
    return tensor;
  }

  std::string path_;
  std::vector<Shard> shards_;
  std::map<std::string, SafetensorsInfo, std::less<>> tensors_;
  std::map<std::string, std::string, std::less<>> metadata_;
};

/// Writes a safetensors file whole or not at all. Tensors stand in the order in which they are added, so that equal calls give
/// equal bytes; numbers are aligned where wider dtypes are added first.
///
///   SafetensorsWriter file;
///   file.metadata["step"] = "100";
///   file.add("W_dec", {latents, width}, weights);     // a view: the numbers must stay until save()
///   file.save("model.safetensors", {.overwrite = true});
///
/// \throws ValueError, ShapeError  a name twice, "__metadata__" as a name, another number of values than the shape has.
class SafetensorsWriter {
 public:
  using Shape = std::vector<Index>;
  std::map<std::string, std::string> metadata;

  void add(const std::string& name, const Shape& shape, std::span<const float> values) { add_values(name, shape, values); }
  void add(const std::string& name, const Shape& shape, std::span<const double> values) { add_values(name, shape, values); }
  void add(const std::string& name, const Shape& shape, std::span<const bfloat16> values) { add_values(name, shape, values); }
  void add(const std::string& name, const Shape& shape, std::span<const float16> values) { add_values(name, shape, values); }
  void add(const std::string& name, const Shape& shape, std::span<const std::int32_t> values) {
    add_values(name, shape, values);
  }
  void add(const std::string& name, const Shape& shape, std::span<const std::int64_t> values) {
    add_values(name, shape, values);
  }
  void add(const std::string& name, const Shape& shape, std::span<const std::uint64_t> values) {
    add_values(name, shape, values);
  }
  void add(const std::string& name, const Shape& shape, std::span<const std::uint8_t> values) {
    add_values(name, shape, values);
  }
  /// [rows, cols], or the shape given.
  template <class Scalar>
  void add(const std::string& name, const Tensor<Scalar>& tensor) {
    add(name, {tensor.rows(), tensor.cols()}, tensor);
  }
  template <class Scalar>
  void add(const std::string& name, const Shape& shape, const Tensor<Scalar>& tensor) {
    add_values(name, shape, std::span<const Scalar>(tensor.data(), static_cast<std::size_t>(tensor.size())));
  }

  void save(const std::filesystem::path& path, OutputOptions options = {}) const { write(path, entries_, options); }

  /// The same in several files where the numbers take more than `shard_bytes`: of "x.safetensors" "x-00001-of-00003.safetensors" and so
  /// on, and "x.safetensors.index.json". Tensors keep their order and stay whole; one that is larger alone has a file to itself. Each
  /// file appears whole or not at all, the index last; all of them do in an OutputFolder.
  /// \throws FileError  also where the file or its index is there already.
  void save_sharded(const std::filesystem::path& path, Index shard_bytes) const {
    if (shard_bytes < 1) throw_value("safetensors: shards of ", shard_bytes, " bytes; at least 1 is needed");
    std::vector<std::span<const Entry>> shards;
    std::size_t total = 0;
    for (std::size_t first = 0, last = 0; first < entries_.size(); first = last) {
      std::size_t bytes = 0;
      do bytes += entries_[last++].bytes.size();
      while (last < entries_.size() && bytes + entries_[last].bytes.size() <= static_cast<std::size_t>(shard_bytes));
      shards.push_back(std::span(entries_).subspan(first, last - first));
      total += bytes;
    }
    if (shards.size() < 2) return save(path);
    if (shards.size() > 99999)
      throw_value("safetensors: ", shards.size(), " shards of ", shard_bytes, " bytes; at most 99999 are written");
    std::error_code error;
    if (std::filesystem::exists(path, error)) throw_file(path.string(), ": exists; it would be read instead of shards of it");
    const auto digits = [](std::size_t number) { return std::to_string(100000 + number).substr(1); };
    nlohmann::json weight_map = nlohmann::json::object();
    for (std::size_t i = 0; i < shards.size(); ++i) {
      const std::string name =
          detail::concat(path.stem().string(), "-", digits(i + 1), "-of-", digits(shards.size()), detail::safetensors_ending);
      write(path.parent_path() / name, shards[i], {});
      for (const Entry& entry : shards[i]) weight_map[entry.name] = name;
    }
    save_json(detail::safetensors_index_of(path),
              nlohmann::json{{"metadata", {{"total_size", total}}}, {"weight_map", std::move(weight_map)}});
  }

 private:
  struct Entry {
    std::string name;
    Dtype dtype;
    Shape shape;
    std::span<const std::byte> bytes;
  };

  template <class T>
  void add_values(const std::string& name, const Shape& shape, std::span<const T> values) {
    if (name == "__metadata__") throw_value("safetensors: a tensor cannot be named __metadata__");
    for (const Entry& entry : entries_)
      if (entry.name == name) throw_value("safetensors: tensor ", name, " is added twice");
    Index elements = 0, bytes = 0;
    const bool legal = std::all_of(shape.begin(), shape.end(), [](Index size) { return size >= 0; });
    if (!legal || !detail::byte_count(shape, dtype_of<T>(), elements, bytes) ||
        static_cast<std::size_t>(elements) != values.size())
      throw_shape("safetensors: tensor ", name, ": ", values.size(), " values do not have the shape ",
                  detail::shape_text(shape));
    entries_.push_back({name, dtype_of<T>(), shape, std::as_bytes(values)});
  }

  void write(const std::filesystem::path& path, std::span<const Entry> entries, OutputOptions options) const {
    const std::string header = header_text(entries);
    const std::uint64_t length = header.size();
    OutputFile out(path, options);
    out.write(std::as_bytes(std::span(&length, 1)));
    out.write(header);
    for (const Entry& entry : entries) out.write(entry.bytes);
    out.commit();
  }

  static std::string quoted(const std::string& text) {
    try {
      return nlohmann::json(text).dump();
    } catch (const nlohmann::json::exception&) {
      throw_value("safetensors: the name or metadata text ", detail::printable(text), " is not UTF-8");
    }
  }

  /// Compact JSON, padded with spaces so that the data begin at a multiple of 8 bytes: the bytes of the format's own writer.
  std::string header_text(std::span<const Entry> entries) const {
    std::string text = "{";
    if (!metadata.empty()) {
      text += "\"__metadata__\":{";
      for (const auto& [key, value] : metadata) text += quoted(key) + ":" + quoted(value) + ",";
      text.back() = '}';
      text += ",";
    }
    std::size_t at = 0;
    for (const Entry& entry : entries) {
      text += detail::concat(quoted(entry.name), ":{\"dtype\":\"", detail::safetensors_name(entry.dtype), "\",\"shape\":[");
      for (std::size_t i = 0; i < entry.shape.size(); ++i) text += detail::concat(i != 0 ? "," : "", entry.shape[i]);
      text += detail::concat("],\"data_offsets\":[", at, ",", at + entry.bytes.size(), "]},");
      at += entry.bytes.size();
    }
    if (text.back() == ',') text.pop_back();
    text += "}";
    text.resize((text.size() + 7) / 8 * 8, ' ');
    if (text.size() > detail::safetensors_header_cap)
      throw_value("safetensors: a header of ", text.size(), " bytes (at most ", detail::safetensors_header_cap,
                  " can be read)");
    return text;
  }

  std::vector<Entry> entries_;
};

}  // namespace sae::inline SAE_ABI
