#pragma once
#include <sae/core/codes.hpp>
#include <sae/files/npy.hpp>
#include <sae/files/safetensors.hpp>

#include <array>
#include <charconv>
#include <cmath>
#include <optional>
#include <string>
#include <utility>
#include <variant>

// Codes of many rows on disk, in two forms that any program reads:
//   sparse  safetensors: row_offsets int64 [N + 1], latents int32 [nnz] ascending within a row, values float32 [nnz], and in the
//           metadata shape = "[N, F]". Entries of row r are row_offsets[r] .. row_offsets[r + 1] - 1.
//   dense   .npy [N, F], zeros included
namespace sae::inline SAE_ABI {

namespace detail {

/// A file without a name: gone when it is closed, or when the process dies.
class SpillFile {
 public:
  /// Made beside `path`, where there is room for what will be copied out of it.
  explicit SpillFile(const std::filesystem::path& path) : name_(path.string()) {
    const std::filesystem::path spill = with_suffix(path, ".spill");
    std::error_code error;  // one that was killed between the two calls below left an empty file
    if (std::filesystem::is_regular_file(std::filesystem::symlink_status(spill, error)) &&
        std::filesystem::is_empty(spill, error))
      file_system().unlink(spill.c_str());
    file_ = Descriptor::open(spill, O_RDWR | O_CREAT | O_EXCL, 0600);
    if (!file_) throw_file(name_, ": cannot create ", spill.string(), ": ", system_reason());
    if (file_system().unlink(spill.c_str()) != 0) throw_file(name_, ": cannot remove ", spill.string(), ": ", system_reason());
  }
  std::size_t size() const { return size_; }
  void write(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const auto n = uninterrupted([&] { return file_system().write(file_.get(), bytes.data(), bytes.size()); });
      if (n == 0) errno = ENOSPC;
      if (n <= 0) throw_file(name_, ": cannot write: ", system_reason());
      bytes = bytes.subspan(static_cast<std::size_t>(n));
      size_ += static_cast<std::size_t>(n);
    }
  }
  /// Appends everything to `out`.
  void copy_to(OutputFile& out) const {
    if (size_ == 0) return;
    void* const at = file_system().map(file_.get(), size_);
    if (at == nullptr) throw_file(name_, ": cannot map what was written so far: ", system_reason());
    try {
      out.write({static_cast<const std::byte*>(at), size_});
    } catch (...) {
      ::munmap(at, size_);
      throw;
    }
    ::munmap(at, size_);
  }

 private:
  std::string name_;
  Descriptor file_;
  std::size_t size_ = 0;
};

inline std::string codes_shape_text(Index rows, Index latents) { return concat("[", rows, ", ", latents, "]"); }

/// "[N, F]" of the metadata.
inline std::optional<std::array<Index, 2>> parse_codes_shape(std::string_view text) {
  std::array<Index, 2> out{};
  if (text.size() < 2 || text.front() != '[' || text.back() != ']') return std::nullopt;
  text = text.substr(1, text.size() - 2);
  for (std::size_t i = 0; i < 2; ++i) {
    while (!text.empty() && (text.front() == ' ' || (i == 1 && text.front() == ','))) text.remove_prefix(1);
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out[i]);
    if (error != std::errc() || out[i] < 0) return std::nullopt;
    text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  }
  if (!text.empty()) return std::nullopt;
  return out;
}

}  // namespace detail

/// Writes sparse codes as they come, for a number of rows that is known before. The file appears at `finish()`; memory does not
/// grow with the rows. Entries with the value 0 are left out.
class SparseCodesWriter {
 public:
  /// \param rows  N >= 0, how many will be appended; \param latents  F in [1, 2^31 - 1]
  SparseCodesWriter(const std::filesystem::path& path, Index rows, Index latents, OutputOptions options = {})
      : expected_(rows), latents_(latents), out_(path, options), values_(out_.path()) {
    if (rows < 0 || latents < 1 || latents > (std::numeric_limits<std::int32_t>::max)())
      throw_value("SparseCodesWriter: ", rows, " rows of ", latents, " latents cannot be written");
    std::error_code error;
    const std::filesystem::path folder = out_.path().parent_path();
    const auto disk = std::filesystem::space(folder.empty() ? "." : folder, error);
    if (!error && static_cast<std::uintmax_t>(rows) > disk.available / sizeof(std::int64_t))
      throw_file(out_.path().string(), ": the positions of ", rows, " rows alone are more than the ", disk.available,
                 " bytes that the disk has free");
    out_.write(header());
    const std::array<std::int64_t, 512> zeros{};
    for (Index left = rows + 1; left > 0; left -= (std::min)(left, Index{512}))
      out_.write(std::as_bytes(std::span(zeros).first(static_cast<std::size_t>((std::min)(left, Index{512})))));
  }
  Index rows() const { return rows_; }  ///< appended so far
  std::int64_t entries() const { return nnz_; }

  template <class Scalar>
  void append(const Codes<Scalar>& codes) {
    if (codes.latents() != latents_)
      throw_shape(out_.path().string(), ": codes of ", codes.latents(), " latents, the file has ", latents_);
    if (codes.rows() > expected_ - rows_)
      throw_value(out_.path().string(), ": more than the ", expected_, " rows that were announced");
    const Index first = rows_;
    indices_.clear();
    numbers_.clear();
    offsets_.clear();
    for (Index b = 0; b < codes.rows(); ++b) {
      for (Index e = codes.begin(b); e < codes.end(b); ++e) {
        if (codes.value(e) == Scalar(0)) continue;
        const auto value = static_cast<float>(codes.value(e));
        if (!std::isfinite(value))
          throw_value(out_.path().string(), ": row ", rows_ + b, ", latent ", codes.latent(e), ": ", codes.value(e),
                      " is not a finite float32");
        indices_.push_back(static_cast<std::int32_t>(codes.latent(e)));
        numbers_.push_back(value);
      }
      offsets_.push_back(nnz_ + static_cast<std::int64_t>(indices_.size()));
    }
    nnz_ += static_cast<std::int64_t>(indices_.size());
    rows_ += codes.rows();
    out_.write(std::as_bytes(std::span(indices_)));
    values_.write(std::as_bytes(std::span(numbers_)));
    out_.write_at(header_bytes + (first + 1) * Index{sizeof(std::int64_t)}, std::as_bytes(std::span(offsets_)));
  }

  /// Completes the header; the file appears.
  void finish() {
    if (rows_ != expected_)
      throw_value(out_.path().string(), ": ", rows_, " rows were appended, ", expected_, " were announced");
    values_.copy_to(out_);
    const std::string text = header();
    out_.write_at(0, std::as_bytes(std::span(text)));
    out_.commit();
  }

 private:
  static constexpr Index header_bytes = 512;

  std::string header() const {
    const std::int64_t offsets = 8 * (expected_ + 1), indices = offsets + 4 * nnz_, values = indices + 4 * nnz_;
    std::string json = detail::concat(
        "{\"__metadata__\":{\"shape\":\"", detail::codes_shape_text(expected_, latents_),
        "\"},\"row_offsets\":{\"dtype\":\"I64\",\"shape\":[", expected_ + 1, "],\"data_offsets\":[0,", offsets,
        "]},\"latents\":{\"dtype\":\"I32\",\"shape\":[", nnz_, "],\"data_offsets\":[", offsets, ",", indices,
        "]},\"values\":{\"dtype\":\"F32\",\"shape\":[", nnz_, "],\"data_offsets\":[", indices, ",", values, "]}}");
    json.resize(static_cast<std::size_t>(header_bytes) - sizeof(std::uint64_t), ' ');  // room for any numbers
    const std::uint64_t length = json.size();
    std::string out(sizeof length, '\0');
    std::memcpy(out.data(), &length, sizeof length);
    return out + json;
  }

  Index expected_, latents_, rows_ = 0;
  std::int64_t nnz_ = 0;
  OutputFile out_;
  detail::SpillFile values_;
  std::vector<std::int32_t> indices_;
  std::vector<float> numbers_;
  std::vector<std::int64_t> offsets_;
};

/// Codes of many rows in a file, sparse or dense (see above; which of the two is told by its first bytes); mapped, not loaded.
/// The whole structure is checked when it is opened, entries as they are read.
///
/// \throws FileError  malformed; offsets that do not ascend; on reading: latents outside [0, F) or not ascending, a value that is
///                    not finite.
class CodesFile {
 public:
  explicit CodesFile(const std::filesystem::path& path) : name_(path.string()) {
    if (looks_like_npy(path)) {
      dense_.emplace(path);
      rows_ = dense_->rows();
      latents_ = dense_->width();
    } else {
      open_sparse(path);
    }
    if (latents_ < 1 || latents_ > (std::numeric_limits<std::int32_t>::max)())
      throw_file(name_, ": codes of ", latents_, " latents; the number is in [1, 2^31 - 1]");
  }
  Index rows() const { return rows_; }        ///< N
  Index latents() const { return latents_; }  ///< F
  bool sparse() const { return sparse_.has_value(); }
  const std::string& name() const { return name_; }

  /// Codes of rows first .. first + count - 1.
  Codes<float> read(Index first, Index count) const {
    if (first < 0 || count < 0 || first > rows_ || count > rows_ - first)
      throw_value(name_, ": rows ", first, " + ", count, " are not in [0, ", rows_, "]");
    Codes<float> out(latents_);
    std::vector<float> values;
    for (Index r = first; r < first + count; ++r) {
      if (sparse_) {
        read_sparse(r, out, values);
      } else {
        values.resize(static_cast<std::size_t>(latents_));
        dense_->read_row(r, values.data());
        for (Index i = 0; i < latents_; ++i) push(r, i, values[static_cast<std::size_t>(i)], out);
      }
      out.finish_row();
    }
    return out;
  }

 private:
  static bool looks_like_npy(const std::filesystem::path& path) {
    const MappedFile file(path);
    constexpr std::string_view magic = "\x93NUMPY";
    return file.size() >= magic.size() && std::memcmp(file.bytes().data(), magic.data(), magic.size()) == 0;
  }

  void open_sparse(const std::filesystem::path& path) {
    sparse_.emplace(path);
    const auto shape_text = sparse_->metadata().find("shape");
    if (shape_text == sparse_->metadata().end())
      throw_file(name_, ": has no metadata field shape; sparse codes say \"[N, F]\" there");
    const auto shape = detail::parse_codes_shape(shape_text->second);
    if (!shape) throw_file(name_, ": metadata shape = \"", detail::printable(shape_text->second), "\" is not \"[N, F]\"");
    rows_ = (*shape)[0];
    latents_ = (*shape)[1];
    const auto vector = [&](std::string_view name, Dtype dtype) {
      const SafetensorsInfo& info = sparse_->info(name);
      if (info.shape.size() != 1 || (info.dtype != dtype && !(name == "values" && is_floating(info.dtype))))
        throw_file(name_, ": tensor ", name, " is ", to_string(info.dtype), " ", detail::shape_text(info.shape), ", not ",
                   to_string(dtype), " [n]");
      return info.elements;
    };
    const Index offsets = vector("row_offsets", Dtype::int64), nnz = vector("latents", Dtype::int32);
    if (vector("values", Dtype::float32) != nnz)
      throw_file(name_, ": values and latents have different numbers of entries, ", sparse_->info("values").elements, " and ",
                 nnz);
    if (offsets - 1 != rows_)
      throw_file(name_, ": row_offsets has ", offsets, " entries, the shape says ", rows_, " rows (one more is right)");
    offsets_ = sparse_->bytes("row_offsets");
    indices_ = sparse_->bytes("latents");
    values_ = sparse_->bytes("values");
    values_dtype_ = sparse_->info("values").dtype;
    std::int64_t before = 0;
    for (Index r = 0; r <= rows_; ++r) {
      const std::int64_t at = offset(r);
      if ((r == 0 && at != 0) || at < before) throw_file(name_, ": row_offsets[", r, "] = ", at, " does not ascend from 0");
      before = at;
    }
    if (before != nnz) throw_file(name_, ": row_offsets ends at ", before, ", there are ", nnz, " entries");
  }

  template <class T>
  static T number(std::span<const std::byte> bytes, Index i) {
    T out;
    std::memcpy(&out, bytes.data() + static_cast<std::size_t>(i) * sizeof(T), sizeof(T));
    return out;
  }
  std::int64_t offset(Index row) const { return number<std::int64_t>(offsets_, row); }

  void read_sparse(Index row, Codes<float>& out, std::vector<float>& values) const {
    const Index begin = offset(row), count = offset(row + 1) - begin;
    values.resize(static_cast<std::size_t>(count));
    detail::convert(values_dtype_, values_.data() + static_cast<std::size_t>(begin * item_size(values_dtype_)), count,
                    values.data());
    Index last = -1;
    for (Index e = 0; e < count; ++e) {
      const Index latent = number<std::int32_t>(indices_, begin + e);
      if (latent <= last || latent >= latents_)
        throw_file(name_, ": row ", row, ": latent ", latent, " does not ascend within [0, ", latents_, ")");
      push(row, latent, values[static_cast<std::size_t>(e)], out);
      last = latent;
    }
  }
  void push(Index row, Index latent, float value, Codes<float>& out) const {
    if (value == 0) return;
    if (!std::isfinite(value)) throw_file(name_, ": row ", row, ", latent ", latent, ": the value is not finite");
    out.push(latent, value);
  }

  std::string name_;
  Index rows_ = 0, latents_ = 0;
  std::optional<NpyRows> dense_;
  std::optional<SafetensorsFile> sparse_;
  std::span<const std::byte> offsets_, indices_, values_;  ///< of the tensors of `sparse_`
  Dtype values_dtype_ = Dtype::float32;
};

}  // namespace sae::inline SAE_ABI
