#pragma once
#include <sae/files/dtype.hpp>
#include <sae/files/json.hpp>

#include <map>

namespace sae::inline SAE_ABI {

/// One tensor of a safetensors file, C order.
struct SafetensorsInfo {
  Dtype dtype = Dtype::float32;
  std::vector<Index> shape;  ///< [] for a single number
  Index elements = 0;        ///< product of the shape
  Index begin = 0, end = 0;  ///< bytes [begin, end) of the data, which follow the header
  std::size_t shard = 0;     ///< of several files (SafetensorsFile): which
};

/// What the header of a safetensors file says.
struct SafetensorsHeader {
  std::map<std::string, SafetensorsInfo, std::less<>> tensors;
  std::map<std::string, std::string, std::less<>> metadata;
  std::size_t offset = 0;  ///< of the data in the file, in bytes
};

namespace detail {

inline constexpr std::size_t safetensors_header_cap = 100'000'000;  ///< bytes, as in the format's own reader
inline constexpr std::size_t safetensors_axes_cap = 32;

constexpr std::string_view safetensors_name(Dtype dtype) {
  constexpr std::string_view names[] = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16",
                                        "I8",  "U64", "U32", "U16",  "U8",  "BOOL"};
  return names[static_cast<std::size_t>(dtype)];
}

/// Takes the header's JSON as it is parsed, and nothing but the one form it may have:
/// {"__metadata__": {text: text}, NAME: {"dtype": text, "shape": [sizes], "data_offsets": [begin, end]}, ...}
/// No tree is built, so that memory stays proportional to the tensors whatever the header holds.
class SafetensorsReader {
 public:
  SafetensorsReader(SafetensorsHeader& header, std::string_view file) : header_(header), file_(file) {}

  // The interface of nlohmann::json_sax.
  bool null() { fail("null"); }
  bool boolean(bool) { fail("true or false"); }
  bool number_integer(std::int64_t) { fail("a negative number"); }
  bool number_float(double, const std::string&) { fail("a number that is no integer in 64 bits"); }
  bool binary(nlohmann::json::binary_t&) { fail("binary data"); }
  bool number_unsigned(std::uint64_t value) {
    if (where_ != Where::list) fail("a number");
    if (value > static_cast<std::uint64_t>((std::numeric_limits<Index>::max)()))
      throw_file(file_, ": ", here(), " has a number that does not fit in 63 bits");
    auto& list = field_ == "shape" ? tensor_.shape : offsets_;
    if (list.size() == (field_ == "shape" ? safetensors_axes_cap : 2))
      throw_file(file_, ": ", here(), " has more than ", list.size(), " numbers");
    list.push_back(static_cast<Index>(value));
    return true;
  }
  bool string(std::string& value) {
    if (where_ == Where::metadata) {
      header_.metadata[name_] = value;
      return true;
    }
    if (where_ != Where::tensor || field_ != "dtype") fail("a text");
    for (const Dtype dtype : all_dtypes) {
      if (value != safetensors_name(dtype)) continue;
      tensor_.dtype = dtype;
      return true;
    }
    throw_file(file_, ": tensor ", printable(name_), ": dtype ", printable(value),
               " is not read; it may be F64, F32, F16, BF16, I64, I32, I16, I8, U64, U32, U16, U8 or BOOL");
  }
  bool start_object(std::size_t) {
    if (where_ == Where::file) {
      where_ = Where::names;
    } else if (where_ == Where::names) {
      where_ = name_ == "__metadata__" ? Where::metadata : Where::tensor;
    } else {
      fail("an object");
    }
    return true;
  }
  bool key(std::string& key) {
    if (where_ == Where::names) {
      const bool twice = key == "__metadata__" ? std::exchange(has_metadata_, true) : header_.tensors.contains(key);
      if (twice) throw_file(file_, ": the safetensors header names ", printable(key), " twice");
      name_ = key;
      tensor_ = {};
      offsets_.clear();
      has_[0] = has_[1] = has_[2] = false;
    } else if (where_ == Where::metadata) {
      if (header_.metadata.contains(key)) throw_file(file_, ": __metadata__ names ", printable(key), " twice");
      name_ = key;
    } else {
      const int field = key == "dtype" ? 0 : key == "shape" ? 1 : key == "data_offsets" ? 2 : -1;
      if (field < 0 || std::exchange(has_[field], true)) fail_fields();
    }
    field_ = key;
    return true;
  }
  bool start_array(std::size_t) {
    if (where_ != Where::tensor || field_ == "dtype") fail("a list");
    where_ = Where::list;
    return true;
  }
  bool end_array() {
    where_ = Where::tensor;
    return true;
  }
  bool end_object() {
    if (where_ == Where::tensor) {
      if (!has_[0] || !has_[1] || !has_[2]) fail_fields();
      if (offsets_.size() != 2) throw_file(file_, ": tensor ", printable(name_), ": data_offsets must be two numbers");
      tensor_.begin = offsets_[0];
      tensor_.end = offsets_[1];
      header_.tensors.emplace(name_, std::move(tensor_));
    }
    where_ = where_ == Where::names ? Where::file : Where::names;
    return true;
  }
  bool parse_error(std::size_t at, const std::string&, const nlohmann::json::exception&) {
    throw_file(file_, ": the safetensors header is not valid JSON at byte ", at, " of it");
  }

 private:
  enum class Where { file, names, metadata, tensor, list };

  std::string here() const {
    switch (where_) {
      case Where::file: return "the safetensors header";
      case Where::names: return concat("the safetensors header: ", printable(name_));
      case Where::metadata: return concat("__metadata__: ", printable(field_));
      default: return concat("tensor ", printable(name_), ": ", field_);
    }
  }
  [[noreturn]] void fail(std::string_view found) const {
    const std::string_view wanted = where_ == Where::file                          ? "an object"
                                    : where_ == Where::names                       ? "an object"
                                    : where_ == Where::metadata                    ? "a text"
                                    : where_ == Where::tensor && field_ == "dtype" ? "a text"
                                    : where_ == Where::tensor                      ? "a list"
                                                                                   : "an integer of 0 or more";
    throw_file(file_, ": ", here(), " is or holds ", found, ", it must be ", wanted);
  }
  [[noreturn]] void fail_fields() const {
    throw_file(file_, ": tensor ", printable(name_), ": the fields must be dtype, shape and data_offsets, each once");
  }

  SafetensorsHeader& header_;
  std::string_view file_;
  Where where_ = Where::file;
  std::string name_, field_;
  SafetensorsInfo tensor_;
  std::vector<Index> offsets_;
  bool has_[3] = {}, has_metadata_ = false;
};

}  // namespace detail

/// Checks a safetensors file whole, given its bytes: header length (100 MB at most, and inside the file), JSON, names once, dtypes,
/// shapes, and that the tensors cover the data exactly: no gap, no overlap, nothing after the last, each shape x item size long.
/// Format: https://github.com/huggingface/safetensors, README "Format".
/// \throws FileError  naming `file`, the tensor and what is wrong.
inline SafetensorsHeader parse_safetensors(std::span<const std::byte> bytes, std::string_view file) {
  if (bytes.size() < 8)
    throw_file(file, ": is not a safetensors file: ", bytes.size(), " bytes, 8 hold the header's length alone");
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  if (length > detail::safetensors_header_cap)
    throw_file(file, ": is not a safetensors file: a header of ", length, " bytes (at most ", detail::safetensors_header_cap,
               " are taken)");
  if (length > bytes.size() - 8)
    throw_file(file, ": ends inside the safetensors header: ", length, " bytes of header, ", bytes.size() - 8, " in the file");
  SafetensorsHeader header;
  header.offset = 8 + static_cast<std::size_t>(length);
  const char* const text = reinterpret_cast<const char*>(bytes.data()) + 8;
  if (length == 0 || *text != '{') throw_file(file, ": is not a safetensors file: its header does not begin with {");
  if (std::memchr(text, 0, length) != nullptr)  // the parser would take it for the end of the header
    throw_file(file, ": the safetensors header is not valid JSON: it holds a zero byte");
  detail::SafetensorsReader reader(header, file);
  nlohmann::json::sax_parse(text, text + length, &reader);

  const Index data = static_cast<Index>(bytes.size() - header.offset);
  std::vector<std::pair<const std::string*, const SafetensorsInfo*>> order;
  for (auto& [name, tensor] : header.tensors) {
    const std::string shown = detail::printable(name);
    Index size = 0;
    if (!detail::byte_count(tensor.shape, tensor.dtype, tensor.elements, size))
      throw_file(file, ": tensor ", shown, ": shape ", detail::shape_text(tensor.shape), " has more bytes than 63 bits count");
    if (tensor.begin > tensor.end || tensor.end > data)
      throw_file(file, ": tensor ", shown, ": data_offsets [", tensor.begin, ", ", tensor.end, "] are not inside the ", data,
                 " bytes of data");
    if (tensor.end - tensor.begin != size)
      throw_file(file, ": tensor ", shown, ": data_offsets hold ", tensor.end - tensor.begin, " bytes, ",
                 to_string(tensor.dtype), " ", detail::shape_text(tensor.shape), " needs ", size);
    order.emplace_back(&name, &tensor);
  }
  std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return std::pair(a.second->begin, a.second->end) < std::pair(b.second->begin, b.second->end);
  });
  Index covered = 0;
  for (const auto& [name, tensor] : order) {
    if (tensor->begin != covered)
      throw_file(file, ": tensor ", detail::printable(*name),
                 tensor->begin < covered ? " overlaps the one before it" : " leaves a gap", ": it begins at byte ",
                 tensor->begin, " of the data, the one before it ends at ", covered);
    covered = tensor->end;
  }
  if (covered != data) throw_file(file, ": has ", data, " bytes of data, its tensors cover ", covered);
  return header;
}

}  // namespace sae::inline SAE_ABI
