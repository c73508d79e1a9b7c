#pragma once
#include <sae/core/types.hpp>

#if !__has_include(<unistd.h>)
#error "sae/files needs a POSIX system (open, mmap, flock, rename); the floors below it do not"
#endif
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <string>
#include <system_error>
#include <utility>

namespace sae::inline SAE_ABI {

/// What every function that makes a file or a folder takes.
struct OutputOptions {
  bool overwrite = false;  ///< replace what is there; otherwise an existing output is refused
};

namespace detail {

/// The system calls below everything in files/, as pointers, so that a test can make the n-th one fail. All follow POSIX:
/// -1 and `errno` on failure, short reads and writes allowed.
struct FileSystem {
  int (*open)(const char* path, int flags, unsigned mode);
  int (*close)(int descriptor);
  std::ptrdiff_t (*read)(int descriptor, void* to, std::size_t bytes);
  std::ptrdiff_t (*write)(int descriptor, const void* from, std::size_t bytes);
  std::ptrdiff_t (*write_at)(int descriptor, const void* from, std::size_t bytes, std::int64_t offset);
  void* (*map)(int descriptor, std::size_t bytes);  ///< read-only; nullptr on failure
  int (*sync)(int descriptor);
  int (*rename)(const char* from, const char* to);
  int (*unlink)(const char* path);
  int (*make_folder)(const char* path, unsigned mode);
};

inline FileSystem posix_file_system() {
  return {.open = [](const char* path, int flags, unsigned mode) { return ::open(path, flags, static_cast<mode_t>(mode)); },
          .close = [](int descriptor) { return ::close(descriptor); },
          .read = [](int d, void* to, std::size_t n) { return static_cast<std::ptrdiff_t>(::read(d, to, n)); },
          .write = [](int d, const void* from, std::size_t n) { return static_cast<std::ptrdiff_t>(::write(d, from, n)); },
          .write_at =
              [](int d, const void* from, std::size_t n, std::int64_t offset) {
                return static_cast<std::ptrdiff_t>(::pwrite(d, from, n, static_cast<off_t>(offset)));
              },
          .map =
              [](int d, std::size_t n) {
                void* const at = ::mmap(nullptr, n, PROT_READ, MAP_PRIVATE, d, 0);
                return at == MAP_FAILED ? nullptr : at;
              },
          .sync = [](int descriptor) { return ::fsync(descriptor); },
          .rename = [](const char* from, const char* to) { return std::rename(from, to); },
          .unlink = [](const char* path) { return ::unlink(path); },
          .make_folder = [](const char* path, unsigned mode) { return ::mkdir(path, static_cast<mode_t>(mode)); }};
}

/// The calls in use. Only a test replaces them, while no other thread works on files.
inline FileSystem& file_system() {
  static FileSystem calls = posix_file_system();
  return calls;
}

/// Repeats a call that a signal interrupted.
template <class Call>
auto uninterrupted(const Call& call) {
  for (;;) {
    const auto result = call();
    if (result >= 0 || errno != EINTR) return result;
  }
}

/// "No such file or directory" and the like, for the `errno` of the call that just failed.
inline std::string system_reason(int error = errno) { return std::generic_category().message(error); }

/// An open file; closes itself.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int number) : number_(number) {}
  Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    if (this != &other) {
      reset();
      number_ = std::exchange(other.number_, -1);
    }
    return *this;
  }
  ~Descriptor() { reset(); }

  static Descriptor open(const std::filesystem::path& path, int flags, unsigned mode = 0) {
    return Descriptor(uninterrupted([&] { return file_system().open(path.c_str(), flags | O_CLOEXEC, mode); }));
  }
  /// Closes once, also after EINTR: the number is free by then on Linux, and may belong to another thread.
  void reset() {
    if (number_ >= 0) file_system().close(std::exchange(number_, -1));
  }
  int get() const { return number_; }
  explicit operator bool() const { return number_ >= 0; }

 private:
  int number_ = -1;
};

/// Makes the entries of a folder durable. File systems that cannot sync folders, and folders that may be written but not
/// read, count as done: then only durability after a power cut is less certain, never wholeness.
inline bool sync_folder(const std::filesystem::path& folder) {
  const Descriptor open = Descriptor::open(folder.empty() ? "." : folder, O_RDONLY | O_DIRECTORY);
  if (!open) return errno == EACCES;
  if (uninterrupted([&] { return file_system().sync(open.get()); }) == 0) return true;
  return errno == EINVAL || errno == ENOTSUP;
}

inline std::filesystem::path with_suffix(std::filesystem::path path, const char* suffix) { return path += suffix; }

}  // namespace detail
}  // namespace sae::inline SAE_ABI
