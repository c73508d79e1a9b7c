#pragma once
#include <sae/files/mapped_file.hpp>
#include <sae/files/npy_header.hpp>
#include <sae/files/output.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

namespace sae::inline SAE_ABI {

struct NpyOptions {
  bool bfloat16 = false;  ///< take uint16 for the bits of bfloat16, which numpy has no name for
};

/// A mapped .npy file of any shape, checked whole when it is opened (npy_header.hpp). Values may be NaN or infinite.
class NpyArray {
 public:
  explicit NpyArray(const std::filesystem::path& path, NpyOptions options = {}) : file_(path) {
    header_ = parse_npy(file_.bytes(), file_.path());
    if (options.bfloat16 && header_.dtype == Dtype::uint16) header_.dtype = Dtype::bfloat16;
  }

  Dtype dtype() const { return header_.dtype; }
  const std::vector<Index>& shape() const { return header_.shape; }
  Index size() const { return header_.elements; }  ///< numbers in all
  std::span<const std::byte> bytes() const { return file_.bytes().subspan(header_.offset); }
  const MappedFile& file() const { return file_; }
  std::size_t offset() const { return header_.offset; }

  /// All numbers in C order.
  /// \throws FileError  the dtype cannot be read as T (`readable_as`).
  template <class T>
  Buffer<T> values() const {
    require_readable<T>();
    Buffer<T> out(static_cast<std::size_t>(size()));
    detail::convert(dtype(), bytes().data(), size(), out.data());
    return out;
  }
  template <class T>
  void require_readable() const {
    if (!readable_as<T>(dtype()))
      throw_file(file_.path(), ": holds ", to_string(dtype()), ", which is not read as ", to_string(dtype_of<T>()),
                 dtype() == Dtype::uint16     ? " (if these are the bits of bfloat16, it has to be said)"
                 : is_floating(dtype_of<T>()) ? "; rows are float16, float32 or float64 (numpy: x.astype('<f4'))"
                                              : "");
  }

 private:
  MappedFile file_;
  NpyHeader header_;
};

/// Rows of a mapped .npy file: [N, D] of float16, bfloat16 (option), float32 or float64, N >= 0, 1 <= D <= 2^30. Reading converts; any
/// number of threads may read.
class NpyRows {
 public:
  explicit NpyRows(const std::filesystem::path& path, NpyOptions options = {}) : array_(path, options) {
    array_.require_readable<float>();
    if (array_.shape().size() != 2 || array_.shape()[1] < 1 || array_.shape()[1] > Index{1} << 30)
      throw_file(name(), ": has shape ", detail::shape_text(array_.shape()), "; rows are [N, D] with 1 <= D <= 2^30");
  }

  Index rows() const { return array_.shape()[0]; }   ///< N
  Index width() const { return array_.shape()[1]; }  ///< D
  Dtype dtype() const { return array_.dtype(); }
  const std::string& name() const { return array_.file().path(); }

  /// Rows first .. first + count - 1 as float or double: row r goes to out + (r - first) * stride, stride >= D.
  template <class T>
  void read_rows(Index first, Index count, T* out, Index stride) const {
    check_range(first, count);
    for (Index r = 0; r < count; ++r) detail::convert(dtype(), bytes_of(first + r), width(), out + r * stride);
  }
  template <class T>
  void read_row(Index row, T* out) const {
    read_rows(row, 1, out, width());
  }
  /// The row in the file itself, without a copy; nullptr where it is not aligned float32.
  const float* row_pointer_f32(Index row) const {
    check_range(row, 1);
    const std::byte* const at = bytes_of(row);
    const bool aligned = reinterpret_cast<std::uintptr_t>(at) % alignof(float) == 0;
    return dtype() == Dtype::float32 && aligned ? reinterpret_cast<const float*>(at) : nullptr;
  }
  /// Advice on rows first .. first + count - 1 (`Access::dont_need` returns their memory to the system).
  void advise(Access access, Index first, Index count) const {
    check_range(first, count);
    const auto row_bytes = static_cast<std::size_t>(width() * item_size(dtype()));
    const auto begin = array_.offset() + static_cast<std::size_t>(first) * row_bytes;
    array_.file().advise(access, begin, static_cast<std::size_t>(count) * row_bytes);
  }
  void advise(Access access) const { array_.file().advise(access); }

 private:
  void check_range(Index first, Index count) const {
    if (first < 0 || count < 0 || first > rows() || count > rows() - first)
      throw_value(name(), ": rows ", first, " + ", count, " are not in [0, ", rows(), "]");
  }
  const std::byte* bytes_of(Index row) const {
    return array_.bytes().data() + static_cast<std::size_t>(row) * static_cast<std::size_t>(width() * item_size(dtype()));
  }
  NpyArray array_;
};

/// One data set [N, D]: a folder's *.npy in the order of their names (bytes), or a single file; mapped, not loaded. Names that
/// begin with a dot are left out. All files have the same width; their dtypes may differ.
///
/// \throws FileError  a file is malformed, widths differ, the folder holds no .npy.
class NpyFolder {
 public:
  explicit NpyFolder(const std::filesystem::path& path, NpyOptions options = {}) {
    namespace fs = std::filesystem;
    std::error_code error;
    std::vector<std::string> names;
    if (fs::is_directory(path, error)) {
      for (fs::directory_iterator at(path, error), end; !error && at != end; at.increment(error)) {
        const std::string name = at->path().filename().string();
        std::error_code unknown;
        if (name.ends_with(".npy") && name[0] != '.' && !at->is_directory(unknown)) names.push_back(name);
      }
      if (error) throw_file(path.string(), ": cannot be listed: ", error.message());
      if (names.empty()) throw_file(path.string(), ": the folder holds no .npy file");
      std::sort(names.begin(), names.end());
      for (const std::string& name : names) parts_.emplace_back(path / name, options);
    } else {
      parts_.emplace_back(path, options);
    }
    for (const NpyRows& part : parts_) {
      if (part.width() != width())
        throw_file(part.name(), ": rows are ", part.width(), " wide, those of ", parts_[0].name(), " are ", width(), " wide");
      if (part.rows() > (std::numeric_limits<Index>::max)() - ends_.back())
        throw_file(path.string(), ": more rows than 63 bits count");
      ends_.push_back(ends_.back() + part.rows());
    }
  }

  Index rows() const { return ends_.back(); }
  Index width() const { return parts_[0].width(); }
  const std::vector<NpyRows>& parts() const { return parts_; }

  /// Rows first .. first + count - 1, also across files; see NpyRows::read_rows. Cost besides the copy: log(files).
  template <class T>
  void read_rows(Index first, Index count, T* out, Index stride) const {
    for_parts(first, count, [&](const NpyRows& part, Index from, Index n) {
      part.read_rows(from, n, out, stride);
      out += n * stride;
    });
  }
  template <class T>
  void read_row(Index row, T* out) const {
    read_rows(row, 1, out, width());
  }
  const float* row_pointer_f32(Index row) const {
    const float* pointer = nullptr;
    for_parts(row, 1, [&](const NpyRows& part, Index from, Index) { pointer = part.row_pointer_f32(from); });
    return pointer;
  }
  void advise(Access access, Index first, Index count) const {
    for_parts(first, count, [&](const NpyRows& part, Index from, Index n) { part.advise(access, from, n); });
  }
  void advise(Access access) const {
    for (const NpyRows& part : parts_) part.advise(access);
  }

 private:
  template <class Body>
  void for_parts(Index first, Index count, const Body& body) const {
    if (first < 0 || count < 0 || first > rows() || count > rows() - first)
      throw_value(parts_[0].name(), parts_.size() > 1 ? " and others" : "", ": rows ", first, " + ", count, " are not in [0, ",
                  rows(), "]");
    auto part = static_cast<std::size_t>(std::upper_bound(ends_.begin(), ends_.end(), first) - ends_.begin()) - 1;
    for (; count > 0; ++part) {
      const Index from = first - ends_[part], n = (std::min)(count, parts_[part].rows() - from);
      if (n > 0) body(parts_[part], from, n);
      first += n;
      count -= n;
    }
  }

  std::vector<NpyRows> parts_;
  std::vector<Index> ends_ = std::vector<Index>(1, 0);  ///< rows before part i; back: all
};

/// A whole .npy file as a matrix: [N, D] as it is, [D] as one row, a single number as 1 x 1.
/// \tparam T  float, double, or an integer type that holds all values of the file's dtype.
template <class T>
Matrix<T> load_npy(const std::filesystem::path& path, NpyOptions options = {}) {
  const NpyArray array(path, options);
  array.require_readable<T>();
  const std::vector<Index>& shape = array.shape();
  if (shape.size() > 2)
    throw_file(path.string(), ": has shape ", detail::shape_text(shape), "; a matrix has two axes, a vector one");
  Matrix<T> out(shape.size() == 2 ? shape[0] : 1, shape.empty() ? 1 : shape.back());
  detail::convert(array.dtype(), array.bytes().data(), array.size(), out.data());
  return out;
}

/// Writes rows of one width to a .npy file as they come. The file appears at `finish()`, with the number of rows in its header;
/// before, and after any error, there is nothing under its name (output.hpp).
class NpyRowWriter {
 public:
  /// \param width  D >= 1
  /// \param dtype  float32, float16, float64, or bfloat16 (stored as uint16); values are rounded to nearest, ties to even
  NpyRowWriter(const std::filesystem::path& path, Index width, Dtype dtype = Dtype::float32, OutputOptions options = {})
      : width_(width), dtype_(dtype), out_(path, options) {
    require_positive("NpyRowWriter: width", width);
    if (!is_floating(dtype)) throw_value("NpyRowWriter: rows are floating-point numbers, not ", to_string(dtype));
    const std::string header = detail::npy_header(dtype_, std::array<Index, 2>{0, width_});
    header_bytes_ = header.size();
    out_.write(header);
  }
  Index rows() const { return rows_; }  ///< appended so far
  Index width() const { return width_; }

  /// Appends `count` rows, row r at rows + r * stride. Infinities and NaN are kept.
  /// \throws FileError  a finite value is too large for the dtype; the disk is full.
  template <class Scalar>
  void append(const Scalar* rows, Index count, Index stride) {
    scratch_.resize(static_cast<std::size_t>(width_ * item_size(dtype_)));
    for (Index r = 0; r < count; ++r, ++rows_) {
      const Scalar* const row = rows + r * stride;
      if (dtype_ == dtype_of<Scalar>()) {
        out_.write(std::as_bytes(std::span(row, static_cast<std::size_t>(width_))));
      } else {
        for (Index c = 0; c < width_; ++c) store(row[c], c);
        out_.write(scratch_);
      }
    }
  }
  template <class Scalar>
  void append(const Batch<Scalar>& rows) {
    if (rows.cols() != width_)
      throw_shape(out_.path().string(), ": rows are ", width_, " wide, these are ", rows.cols(), " wide");
    append(rows.row(0), rows.rows(), rows.stride());
  }
  template <class Derived>
  void append(const Eigen::MatrixBase<Derived>& rows) {
    append(Batch<typename Derived::Scalar>(rows));
  }

  /// Completes the header; the file appears.
  void finish() {
    const std::string header = detail::npy_header(dtype_, std::array<Index, 2>{rows_, width_});
    if (header.size() != header_bytes_) throw_file(out_.path().string(), ": ", rows_, " rows do not fit in the npy header");
    out_.write_at(0, std::as_bytes(std::span(header)));
    out_.commit();
  }

 private:
  template <class Scalar>
  void store(Scalar value, Index column) {
    std::byte* const to = scratch_.data() + column * item_size(dtype_);
    const auto put = [&](auto number, double back) {
      if (std::isinf(back) && !std::isinf(value))
        throw_file(out_.path().string(), ": row ", rows_, ", column ", column, ": ", value, " is too large for ",
                   to_string(dtype_), "; write a wider dtype");
      std::memcpy(to, &number, sizeof number);
    };
    const double wide = static_cast<double>(value);
    if (dtype_ == Dtype::float64) {
      put(wide, wide);
    } else if (dtype_ == Dtype::float32) {
      put(static_cast<float>(value), static_cast<double>(static_cast<float>(value)));
    } else if (dtype_ == Dtype::float16) {
      const std::uint16_t half = double_to_half(wide);
      put(half, static_cast<double>(half_to_float(half)));
    } else {
      const std::uint16_t bits = double_to_bfloat16(wide);
      put(bits, static_cast<double>(bfloat16_to_float(bits)));
    }
  }

  Index width_, rows_ = 0;
  Dtype dtype_;
  OutputFile out_;
  std::size_t header_bytes_ = 0;
  std::vector<std::byte> scratch_;
};

/// Writes an array of any shape, C order, in the dtype of T.
template <class T>
void save_npy_values(const std::filesystem::path& path, std::span<const T> values, const std::vector<Index>& shape,
                     OutputOptions options = {}) {
  Index elements = 0, bytes = 0;
  const bool legal = std::all_of(shape.begin(), shape.end(), [](Index size) { return size >= 0; });
  if (!legal || !detail::byte_count(shape, dtype_of<T>(), elements, bytes) ||
      static_cast<std::size_t>(elements) != values.size())
    throw_shape(path.string(), ": ", values.size(), " values do not have the shape ", detail::shape_text(shape));
  OutputFile out(path, options);
  out.write(detail::npy_header(dtype_of<T>(), shape));
  out.write(std::as_bytes(values));
  out.commit();
}
inline void save_npy_int32(const std::filesystem::path& path, std::span<const std::int32_t> values,
                           const std::vector<Index>& shape, OutputOptions options = {}) {
  save_npy_values(path, values, shape, options);
}
/// Writes rows [B, D] as float32 or float64, as Scalar is.
template <class Scalar>
void save_npy(const std::filesystem::path& path, const Batch<Scalar>& rows, OutputOptions options = {}) {
  OutputFile out(path, options);
  out.write(detail::npy_header(dtype_of<Scalar>(), std::array<Index, 2>{rows.rows(), rows.cols()}));
  for (Index b = 0; b < rows.rows(); ++b)
    out.write(std::as_bytes(std::span(rows.row(b), static_cast<std::size_t>(rows.cols()))));
  out.commit();
}
template <class Derived>
void save_npy(const std::filesystem::path& path, const Eigen::MatrixBase<Derived>& rows, OutputOptions options = {}) {
  save_npy(path, Batch<typename Derived::Scalar>(rows), options);
}

}  // namespace sae::inline SAE_ABI
