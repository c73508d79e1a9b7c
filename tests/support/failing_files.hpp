#pragma once
#include <sae/files/file_system.hpp>

#include <cerrno>

/// While it lives, one call of the file layer fails: the n-th (from 1) of a kind, with the given errno, or from the n-th on.
/// For one test at a time, in one thread.
///
///   FailingFiles disk({.call = FailingFiles::Call::write, .nth = 3, .error = ENOSPC});
///   ... CHECK(disk.happened());
class FailingFiles {
 public:
  enum class Call {
    none,
    open,
    write,
    write_at,
    sync,
    rename,
    make_folder,
    read,
    map,
    any_change
  };  // any_change: write .. make_folder
  struct Plan {
    Call call = Call::none;
    int nth = 1;
    int error = EIO;
    bool onwards = false;       ///< every call from the n-th on fails
    bool short_writes = false;  ///< writes and reads take 7 bytes at a time
    bool interrupted = false;   ///< every call is interrupted by a signal (EINTR) once before it works
  };

  explicit FailingFiles(Plan plan) : before_(sae::detail::file_system()) {
    state() = State{plan, 0, false, false, before_};
    auto& calls = sae::detail::file_system();
    calls.open = [](const char* path, int flags, unsigned mode) {
      return fails(Call::open) ? -1 : real().open(path, flags, mode);
    };
    calls.read = [](int d, void* to, std::size_t n) -> std::ptrdiff_t {
      return fails(Call::read) ? -1 : real().read(d, to, piece(n));
    };
    calls.write = [](int d, const void* from, std::size_t n) -> std::ptrdiff_t {
      return fails(Call::write) ? -1 : real().write(d, from, piece(n));
    };
    calls.write_at = [](int d, const void* from, std::size_t n, std::int64_t offset) -> std::ptrdiff_t {
      return fails(Call::write_at) ? -1 : real().write_at(d, from, piece(n), offset);
    };
    calls.map = [](int d, std::size_t n) { return fails(Call::map) ? nullptr : real().map(d, n); };
    calls.sync = [](int d) { return fails(Call::sync) ? -1 : real().sync(d); };
    calls.rename = [](const char* from, const char* to) { return fails(Call::rename) ? -1 : real().rename(from, to); };
    calls.make_folder = [](const char* path, unsigned mode) {
      return fails(Call::make_folder) ? -1 : real().make_folder(path, mode);
    };
  }
  ~FailingFiles() { sae::detail::file_system() = before_; }
  FailingFiles(const FailingFiles&) = delete;
  FailingFiles& operator=(const FailingFiles&) = delete;

  bool happened() const { return state().happened; }  ///< the planned call was reached
  int calls() const { return state().count; }         ///< how many calls of the planned kind there were

 private:
  struct State {
    Plan plan{};
    int count = 0;
    bool happened = false, interrupt_next = false;
    sae::detail::FileSystem real{};
  };
  static State& state() {
    static State state;
    return state;
  }
  static const sae::detail::FileSystem& real() { return state().real; }
  static std::size_t piece(std::size_t n) { return state().plan.short_writes && n > 7 ? 7 : n; }
  static bool fails(Call call) {
    State& s = state();
    if (s.plan.interrupted && call != Call::rename && call != Call::make_folder && call != Call::map) {
      s.interrupt_next = !s.interrupt_next;
      if (s.interrupt_next) {
        errno = EINTR;
        return true;
      }
    }
    const bool meant =
        call == s.plan.call || (s.plan.call == Call::any_change && call >= Call::write && call <= Call::make_folder);
    if (!meant) return false;
    ++s.count;
    if (s.count < s.plan.nth || (s.count > s.plan.nth && !s.plan.onwards)) return false;
    s.happened = true;
    errno = s.plan.error;
    return true;
  }

  sae::detail::FileSystem before_;
};
