#pragma once
#include <sae/core/types.hpp>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <limits>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace sae::inline SAE_ABI {

/// A few worker threads that share numbered blocks of work.
///
/// Which thread runs a block is left to chance, so a block must not care: work is cut by the data alone (a fixed block size),
/// never by the number of threads, and every sum over blocks is taken in block order. Then one thread and many give the same
/// bytes. A call from inside a block runs serially. One call at a time: concurrent callers wait for one another.
class Threads {
 public:
  /// `count` threads including the caller; 0: as many as the machine offers. Where the system refuses some, those it gave do
  /// the work: results do not depend on it.
  explicit Threads(int count = 0) {
    if (count < 0) throw_value("Threads: count = ", count, " is negative (0 takes all cores)");
    if (count == 0) count = static_cast<int>(std::thread::hardware_concurrency());
    try {
      for (int i = 1; i < count; ++i) workers_.emplace_back([this] { work(); });
    } catch (const std::system_error&) {}
  }
  ~Threads() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

  /// The pool that is used where none is given: all cores, started at the first use.
  static Threads& shared() {
    static Threads pool;
    return pool;
  }
  int count() const { return static_cast<int>(workers_.size()) + 1; }

  /// Calls `body(block)` for block = 0 .. blocks-1, each once, and returns when all are done. If blocks throw, the exception
  /// of the lowest block is rethrown here.
  template <class Body>
  void run(Index blocks, const Body& body) {
    if (blocks <= 1 || workers_.empty() || inside()) {
      for (Index block = 0; block < blocks; ++block) body(block);
      return;
    }
    const std::lock_guard one_at_a_time(callers_);
    Job job{[](const void* b, Index block) { (*static_cast<const Body*>(b))(block); }, &body, blocks};
    {
      const std::lock_guard lock(mutex_);
      job_ = &job;
      active_ = static_cast<int>(workers_.size());
      ++generation_;
    }
    wake_.notify_all();
    job.drain();
    std::unique_lock lock(mutex_);
    done_.wait(lock, [this] { return active_ == 0; });
    job_ = nullptr;
    lock.unlock();
    if (job.error) std::rethrow_exception(job.error);
  }

  /// Calls `body(begin, end, block)` for [0, n) cut into blocks of `size` (the last may be shorter).
  template <class Body>
  void for_blocks(Index n, Index size, const Body& body) {
    run((n + size - 1) / size, [&](Index block) {
      const Index begin = block * size;
      body(begin, begin + size < n ? begin + size : n, block);
    });
  }

 private:
  struct Job {
    void (*call)(const void*, Index);
    const void* body;
    Index blocks;
    std::atomic<Index> next{0};
    std::mutex error_mutex{};
    std::exception_ptr error{};
    Index error_block = (std::numeric_limits<Index>::max)();

    void drain() {
      bool& flag = inside();
      flag = true;
      for (Index block = next++; block < blocks; block = next++) {
        try {
          call(body, block);
        } catch (...) {
          const std::lock_guard lock(error_mutex);
          if (block < error_block) {
            error_block = block;
            error = std::current_exception();
          }
        }
      }
      flag = false;
    }
  };

  static bool& inside() {
    thread_local bool flag = false;
    return flag;
  }

  void work() {
    std::uint64_t seen = 0;
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return stop_ || generation_ != seen; });
      if (stop_) return;
      seen = generation_;
      Job& job = *job_;
      lock.unlock();
      job.drain();
      lock.lock();
      if (--active_ == 0) done_.notify_one();
    }
  }

  std::vector<std::thread> workers_;
  std::mutex callers_;  ///< held for a whole run
  std::mutex mutex_;    ///< guards what follows
  std::condition_variable wake_, done_;
  Job* job_ = nullptr;
  std::uint64_t generation_ = 0;
  int active_ = 0;
  bool stop_ = false;
};

}  // namespace sae::inline SAE_ABI
