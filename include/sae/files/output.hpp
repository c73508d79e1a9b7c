#pragma once
#include <sae/files/file_system.hpp>

#include <algorithm>
#include <cstring>
#include <span>
#include <string_view>

namespace sae::inline SAE_ABI {

/// A file that appears whole or not at all.
///
/// Bytes go to `PATH.partial` beside the final name; `commit()` flushes, syncs, renames it to PATH and syncs the folder. Without
/// a commit (an exception, an early return) the destructor removes the partial file and PATH is as it was. After a kill the
/// partial file stays and the next writer of PATH starts it anew; two writers at a time are told apart by a lock on it.
/// A symbolic link at PATH stays, and the file that it points to is replaced.
///
/// \throws FileError  PATH exists and `overwrite` is off; the folder is missing; the disk is full; any system call fails. One
///                    sentence with the path and the system's reason; after it nothing is left behind.
class OutputFile {
 public:
  explicit OutputFile(const std::filesystem::path& path, OutputOptions options = {})
      : name_(path.string()), path_(path), options_(options) {
    namespace fs = std::filesystem;
    std::error_code error;
    if (fs::is_symlink(path, error)) {
      path_ = fs::canonical(path, error);
      if (error) throw_file(name_, ": is a symbolic link that leads nowhere");
    }
    refuse_existing();
    partial_ = detail::with_suffix(path_, ".partial");
    open_partial();
    buffer_.reserve(capacity);
  }
  OutputFile(OutputFile&& other) noexcept = default;
  OutputFile& operator=(OutputFile&&) = delete;
  ~OutputFile() { discard(); }

  const std::filesystem::path& path() const { return path_; }
  /// Bytes written so far.
  Index size() const { return flushed_ + static_cast<Index>(buffer_.size()); }

  void write(std::span<const std::byte> bytes) {
    require_open();
    if (bytes.size() > capacity - buffer_.size()) flush();
    if (bytes.size() >= capacity) {
      send(bytes, flushed_, false);
      flushed_ += static_cast<Index>(bytes.size());
    } else {
      buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
    }
  }
  void write(std::string_view text) { write(std::as_bytes(std::span(text))); }
  /// Replaces bytes that were written before: 0 <= offset, offset + size <= size().
  void write_at(Index offset, std::span<const std::byte> bytes) {
    require_open();
    const Index count = static_cast<Index>(bytes.size());
    if (offset < 0 || offset > size() || count > size() - offset)
      throw_value("OutputFile: write_at(", offset, ", ", count, " bytes) lies outside the ", size(), " bytes written to ",
                  name_);
    flush();
    send(bytes, offset, true);
  }

  /// Makes the file appear. Afterwards it is on the disk (as far as the system tells) and nothing can be written any more.
  void commit() {
    require_open();
    flush();
    auto& system = detail::file_system();
    if (detail::uninterrupted([&] { return system.sync(file_.get()); }) != 0) fail("cannot write to the disk");
    refuse_existing();
    // Renamed before it is closed: the lock must hold until nobody else can take the partial name for a leftover. Errors
    // of delayed writes have been reported by the sync.
    std::error_code error;
    const bool replaces = std::filesystem::exists(path_, error);
    if (system.rename(partial_.c_str(), path_.c_str()) != 0) fail("cannot rename its partial file to it");
    partial_.clear();
    file_.reset();
    if (!detail::sync_folder(path_.parent_path())) {
      const std::string reason = detail::system_reason();
      if (!replaces) system.unlink(path_.c_str());
      throw_file(name_, ": cannot sync its folder: ", reason);
    }
  }

 private:
  static constexpr std::size_t capacity = std::size_t{1} << 18;

  void require_open() const {
    if (!file_) throw_file(name_, ": cannot be written any more: it was completed, or an earlier write failed");
  }

  void refuse_existing() const {
    std::error_code error;
    const auto status = std::filesystem::status(path_, error);
    if (!std::filesystem::exists(status)) return;
    if (std::filesystem::is_directory(status)) throw_file(name_, ": is a folder, the output is a file");
    if (!std::filesystem::is_regular_file(status)) throw_file(name_, ": is not a regular file and cannot be replaced");
    if (!options_.overwrite) throw_file(name_, ": exists; say that it may be overwritten, or choose another name");
  }

  /// Opens the partial file, empty and locked. Between open and lock its earlier owner may have renamed or removed it: then
  /// the name means another file now, or none, and it starts again.
  void open_partial() {
    for (int attempt = 0; attempt < 100; ++attempt) {
      file_ = detail::Descriptor::open(partial_, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK, 0666);
      if (!file_) throw_file(name_, ": cannot create its partial file ", partial_.string(), ": ", detail::system_reason());
      if (::flock(file_.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
        file_.reset();
        throw_file(name_, ": is being written by somebody else (", partial_.string(), " is locked)");
      }
      struct stat mine {
      }, named{};
      if (::fstat(file_.get(), &mine) != 0 || ::lstat(partial_.c_str(), &named) != 0) continue;
      if (mine.st_ino != named.st_ino || mine.st_dev != named.st_dev) continue;
      if (!S_ISREG(mine.st_mode)) break;
      if (::ftruncate(file_.get(), 0) != 0) fail("cannot empty its partial file");
      return;
    }
    file_.reset();
    throw_file(name_, ": cannot create its partial file: ", partial_.string(), " is in the way");
  }

  void flush() {
    if (buffer_.empty()) return;
    send(buffer_, flushed_, false);
    flushed_ += static_cast<Index>(buffer_.size());
    buffer_.clear();
  }

  void send(std::span<const std::byte> bytes, Index offset, bool positioned) {
    auto& system = detail::file_system();
    while (!bytes.empty()) {
      const std::size_t piece = (std::min)(bytes.size(), std::size_t{1} << 30);  // systems cut larger ones
      const auto n = detail::uninterrupted([&] {
        return positioned ? system.write_at(file_.get(), bytes.data(), piece, offset)
                          : system.write(file_.get(), bytes.data(), piece);
      });
      if (n == 0) errno = ENOSPC;  // no progress and no error: nothing more fits
      if (n <= 0) fail("cannot write", offset);
      bytes = bytes.subspan(static_cast<std::size_t>(n));
      offset += n;
    }
  }

  [[noreturn]] void fail(const char* what, Index offset = -1) {
    const std::string reason = detail::system_reason();
    discard();
    if (offset >= 0) throw_file(name_, ": ", what, " at byte ", offset, ": ", reason);
    throw_file(name_, ": ", what, ": ", reason);
  }

  void discard() {
    if (file_ && !partial_.empty()) detail::file_system().unlink(partial_.c_str());
    file_.reset();
  }

  std::string name_;  ///< the path as the caller wrote it, for messages
  std::filesystem::path path_, partial_;
  OutputOptions options_;
  detail::Descriptor file_;
  std::vector<std::byte> buffer_;
  Index flushed_ = 0;
};

/// Writes a whole file or none (see OutputFile).
inline void write_file(const std::filesystem::path& path, std::span<const std::byte> bytes, OutputOptions options = {}) {
  OutputFile out(path, options);
  out.write(bytes);
  out.commit();
}
inline void atomic_write_text(const std::filesystem::path& path, std::string_view text, OutputOptions options = {}) {
  write_file(path, std::as_bytes(std::span(text)), options);
}

/// All bytes of a file (or pipe) as a string.
/// \param cap  largest size that is taken, in bytes; a larger file is refused.
inline std::string read_file(const std::filesystem::path& path, std::size_t cap = std::size_t{1} << 30) {
  const std::string name = path.string();
  const detail::Descriptor file = detail::Descriptor::open(path, O_RDONLY);
  if (!file) throw_file(name, ": cannot open: ", detail::system_reason());
  struct stat status {};
  std::string text;
  if (::fstat(file.get(), &status) == 0 && S_ISREG(status.st_mode)) {
    const auto size = static_cast<std::size_t>(status.st_size);
    if (size > cap) throw_file(name, ": has ", size, " bytes, at most ", cap, " are taken");
    text.reserve(size);
  }
  char piece[1 << 16];
  for (;;) {
    const auto n = detail::uninterrupted([&] { return detail::file_system().read(file.get(), piece, sizeof piece); });
    if (n < 0) throw_file(name, ": cannot read: ", detail::system_reason());
    if (n == 0) return text;
    if (static_cast<std::size_t>(n) > cap - text.size()) throw_file(name, ": has more than the ", cap, " bytes that are taken");
    text.append(piece, static_cast<std::size_t>(n));
  }
}

}  // namespace sae::inline SAE_ABI
