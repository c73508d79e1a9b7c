#pragma once
#include <sae/files/file_system.hpp>

#include <cstdint>
#include <span>

namespace sae::inline SAE_ABI {

/// How a mapped range will be used; the system reads ahead or frees pages accordingly. Never changes what is read.
enum class Access { normal, sequential, random, will_need, dont_need };

/// A file's bytes, read-only, mapped into memory: opening costs nothing, pages come as they are touched and go when memory is
/// short, so that data may be larger than memory. Move-only; views die with it.
///
/// What is mapped is the file as it is now: whoever truncates it in place meanwhile takes the process down (SIGBUS), which
/// writers of this library never do (files/output.hpp). Where a file system cannot map, the file is read instead.
///
/// \throws FileError  missing, unreadable, not a regular file.
class MappedFile {
 public:
  MappedFile() = default;
  explicit MappedFile(const std::filesystem::path& path) : path_(path.string()) {
    // O_NONBLOCK: a pipe must be refused below and not waited for.
    const detail::Descriptor file = detail::Descriptor::open(path, O_RDONLY | O_NONBLOCK);
    if (!file) throw_file(path_, ": cannot open: ", detail::system_reason());
    struct stat status {};
    if (::fstat(file.get(), &status) != 0) throw_file(path_, ": cannot read its size: ", detail::system_reason());
    if (S_ISDIR(status.st_mode)) throw_file(path_, ": is a folder, a file is needed");
    if (!S_ISREG(status.st_mode)) throw_file(path_, ": is not a regular file (a pipe or device cannot be mapped)");
    size_ = static_cast<std::size_t>(status.st_size);
    if (size_ == 0) return;
    data_ = static_cast<const std::byte*>(detail::file_system().map(file.get(), size_));
    mapped_ = data_ != nullptr;
    if (!mapped_) read_instead(file);
  }
  MappedFile(MappedFile&& other) noexcept { swap(other); }
  MappedFile& operator=(MappedFile&& other) noexcept {
    MappedFile moved(std::move(other));
    swap(moved);
    return *this;
  }
  ~MappedFile() {
    if (mapped_) ::munmap(const_cast<std::byte*>(data_), size_);
  }

  std::size_t size() const { return size_; }
  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::string& path() const { return path_; }
  bool mapped() const { return mapped_; }  ///< false: empty, or read into memory

  /// Tells the system what is coming, for bytes [offset, offset + count). `dont_need` frees only pages that lie wholly inside.
  /// Advice only: ranges outside the file are cut, errors are ignored.
  void advise(Access access, std::size_t offset = 0, std::size_t count = SIZE_MAX) const {
    if (!mapped_ || offset >= size_) return;
    const std::size_t page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    std::size_t end = count < size_ - offset ? offset + count : size_;
    if (access == Access::dont_need) {
      offset = (offset + page - 1) / page * page;
      if (end < size_) end = end / page * page;
    } else {
      offset = offset / page * page;
    }
    if (offset < end) ::posix_madvise(const_cast<std::byte*>(data_) + offset, end - offset, flag(access));
      // glibc's posix_madvise ignores POSIX_MADV_DONTNEED; the pages are clean, so that madvise only drops them.
#if defined(MADV_DONTNEED)
    if (access == Access::dont_need && offset < end)
      ::madvise(const_cast<std::byte*>(data_) + offset, end - offset, MADV_DONTNEED);
#endif
  }

 private:
  static int flag(Access access) {
    switch (access) {
      case Access::sequential: return POSIX_MADV_SEQUENTIAL;
      case Access::random: return POSIX_MADV_RANDOM;
      case Access::will_need: return POSIX_MADV_WILLNEED;
      case Access::dont_need: return POSIX_MADV_DONTNEED;
      case Access::normal: break;
    }
    return POSIX_MADV_NORMAL;
  }

  void read_instead(const detail::Descriptor& file) {
    const int reason = errno;
    if (reason != ENODEV && reason != ENOTSUP && reason != EACCES && reason != EINVAL)
      throw_file(path_, ": cannot map ", size_, " bytes: ", detail::system_reason(reason));
    copy_.resize(size_);
    for (std::size_t done = 0; done < size_;) {
      const auto n = detail::uninterrupted([&] { return detail::file_system().read(file.get(), &copy_[done], size_ - done); });
      if (n < 0) throw_file(path_, ": cannot read: ", detail::system_reason());
      if (n == 0) throw_file(path_, ": ended after ", done, " of ", size_, " bytes while it was read");
      done += static_cast<std::size_t>(n);
    }
    data_ = copy_.data();
  }

  void swap(MappedFile& other) noexcept {
    std::swap(path_, other.path_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(mapped_, other.mapped_);
    std::swap(copy_, other.copy_);
  }

  std::string path_;
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  bool mapped_ = false;
  Buffer<std::byte> copy_;  ///< only where the file cannot be mapped
};

}  // namespace sae::inline SAE_ABI
