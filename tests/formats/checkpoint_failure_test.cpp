// No failing disk and no kill costs a training more than the steps since its last checkpoint, or leaves half a file.
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "catch_compat.hpp"
#include "failing_files.hpp"
#include "small_training.hpp"
#include "temp_folder.hpp"

using namespace small_training;

TEST_CASE("checkpoint: any failing system call leaves the old checkpoint or the new one, whole", "[formats][checkpoint]") {
  const TempFolder clean;
  stop_small(clean / "old", 12, 3);
  stop_small(clean / "new", 12, 5);
  const std::string old_bytes = sae::read_file(clean / "old"), new_bytes = sae::read_file(clean / "new");
  REQUIRE(old_bytes != new_bytes);
  int reached = 0;
  for (const auto call :
       {FailingFiles::Call::open, FailingFiles::Call::write, FailingFiles::Call::sync, FailingFiles::Call::rename})
    for (int nth = 1;; ++nth) {
      const TempFolder folder;
      const auto path = folder / "c";
      stop_small(path, 12, 3);
      const auto run = make_small(12);
      sae::load_checkpoint(run->trainer, path);
      bool happened = false, failed = false;
      {
        FailingFiles disk({.call = call, .nth = nth, .error = ENOSPC, .short_writes = nth % 2 == 0});
        try {
          run->trainer.fit(run->source, [&](auto& trainer, const sae::StepReport& report) {
            if (report.step == 5) sae::save_checkpoint(trainer, path);
            if (report.step == 6) throw Killed();
          });
        } catch (const sae::FileError&) {
          failed = true;
        } catch (const Killed&) {}
        happened = disk.happened();
      }
      CAPTURE(static_cast<int>(call), nth);
      REQUIRE(folder.names() == std::vector<std::string>{"c"});
      const std::string there = sae::read_file(path);
      if (!happened) {
        REQUIRE_FALSE(failed);
        REQUIRE((there == new_bytes));
        break;
      }
      ++reached;
      REQUIRE((failed || there == new_bytes));  // a folder that cannot be opened for its sync may count as done
      REQUIRE((there == old_bytes || there == new_bytes));
      if (call == FailingFiles::Call::write || call == FailingFiles::Call::rename) REQUIRE((there == old_bytes));
      if (nth > 40) break;  // short writes are thousands
    }
  CHECK(reached > 6);
}

TEST_CASE("checkpoint: a failing first one leaves nothing", "[formats][checkpoint]") {
  for (const auto call : {FailingFiles::Call::write, FailingFiles::Call::sync, FailingFiles::Call::rename}) {
    const TempFolder folder;
    const auto run = make_small(4);
    FailingFiles disk({.call = call, .error = ENOSPC});
    CHECK_THROWS_AS(run->trainer.fit(run->source, sae::checkpoint_every(folder / "c", 2)), sae::FileError);
    CHECK(disk.happened());
    CHECK(folder.names().empty());
  }
}

namespace {

// A process that is killed inside the n-th write, sync or rename: half of a write is on the disk, a rename is done or not.
struct SelfKill {
  static inline int left = 0;
  static inline sae::detail::FileSystem real{};
  static bool now() { return left > 0 && --left == 0; }
  static void arm(int nth) {
    left = nth;
    real = sae::detail::file_system();
    auto& calls = sae::detail::file_system();
    calls.write = [](int d, const void* from, std::size_t n) -> std::ptrdiff_t {
      if (!now()) return real.write(d, from, n);
      (void)real.write(d, from, n / 2);
      ::raise(SIGKILL);
      return -1;
    };
    calls.sync = [](int d) {
      if (now()) ::raise(SIGKILL);
      return real.sync(d);
    };
    calls.rename = [](const char* from, const char* to) {
      if (now()) ::raise(SIGKILL);
      return real.rename(from, to);
    };
  }
};

constexpr Index kill_steps = 60;

std::string environment(const char* name) {
  const char* const value = std::getenv(name);
  return value == nullptr ? "" : value;
}

}  // namespace

// Not a test of its own: the process that the next test starts, kills and starts again.
TEST_CASE("checkpoint: process to be killed", "[.][checkpoint-victim]") {
  const fs::path folder = environment("SAE_TEST_VICTIM_FOLDER");
  if (folder.empty()) {
    SUCCEED("nobody asked");
    return;
  }
  if (const std::string nth = environment("SAE_TEST_VICTIM_CALL"); !nth.empty()) SelfKill::arm(std::stoi(nth));
  const auto run = make_small(kill_steps);
  if (fs::exists(folder / "c")) sae::load_checkpoint(run->trainer, folder / "c");
  const auto slowly = [](const sae::StepReport&) { std::this_thread::sleep_for(std::chrono::milliseconds(2)); };
  run->trainer.fit(run->source, sae::checkpoint_every(folder / "c", 2), slowly);
  sae::atomic_write_text(folder / "result", bytes_of(run->model), {.overwrite = true});
  SUCCEED("done");
}

TEST_CASE("checkpoint: killed at ten moments, some inside a write, a training ends with the same bytes",
          "[formats][checkpoint]") {
  std::error_code error;
  const fs::path self = fs::read_symlink("/proc/self/exe", error);
  if (error) SAE_SKIP_TEST("needs /proc/self/exe");
  const TempFolder folder;
  const auto whole = make_small(kill_steps);
  sae::CheckpointEvery counted(folder / "count", 2);
  whole->trainer.fit(whole->source, [&](auto& trainer, const sae::StepReport& report) { counted(trainer, report); });
  REQUIRE(counted.saved() >= 20);
  fs::remove(folder / "count");
  const std::string want = bytes_of(whole->model);

  // Starts the victim; waits for `milliseconds` after its first checkpoint was seen, then kills it (0: it does so itself).
  const auto start = [&](int call, int milliseconds) {
    ::setenv("SAE_TEST_VICTIM_FOLDER", folder.path().c_str(), 1);
    ::setenv("SAE_TEST_VICTIM_CALL", call > 0 ? std::to_string(call).c_str() : "", 1);
    std::string program = self.string(), filter = "[checkpoint-victim]";
    char* arguments[] = {program.data(), filter.data(), nullptr};
    posix_spawn_file_actions_t quiet;
    ::posix_spawn_file_actions_init(&quiet);
    ::posix_spawn_file_actions_addopen(&quiet, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    pid_t victim = 0;
    REQUIRE(::posix_spawn(&victim, program.c_str(), &quiet, nullptr, arguments, environ) == 0);
    ::posix_spawn_file_actions_destroy(&quiet);
    if (milliseconds > 0) {
      std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
      ::kill(victim, SIGKILL);
    }
    int status = 0;
    REQUIRE(::waitpid(victim, &status, 0) == victim);
    ::unsetenv("SAE_TEST_VICTIM_FOLDER");
    ::unsetenv("SAE_TEST_VICTIM_CALL");
    return status;
  };

  sae::Random random(11);
  Index furthest = 0;
  int killed = 0, inside = 0;
  for (int round = 0; killed < 10; ++round) {
    REQUIRE(round < 40);
    const bool by_itself = round % 2 == 0;
    // Four calls a checkpoint: write, sync, rename, sync of the folder. The first round dies in the middle of a write.
    const int call = by_itself ? (round == 0 ? 5 : 1 + static_cast<int>(random.below(24))) : 0;
    const int status = start(call, by_itself ? 0 : 20 + static_cast<int>(random.below(120)));
    CAPTURE(round, call, folder.names());
    for (const std::string& name : folder.names()) {
      const std::string final_name = name.substr(0, name.find(".partial"));
      REQUIRE((final_name == "c" || final_name == "result"));
    }
    if (fs::exists(folder / "c")) {  // whole, and never older than before
      const auto reader = make_small(kill_steps);
      REQUIRE_NOTHROW(sae::load_checkpoint(reader->trainer, folder / "c"));
      REQUIRE(reader->trainer.step() >= furthest);
      REQUIRE(reader->trainer.step() % 2 == 0);
      furthest = reader->trainer.step();
    }
    if (WIFSIGNALED(status)) {
      REQUIRE(WTERMSIG(status) == SIGKILL);
      ++killed;
      inside += by_itself ? 1 : 0;
      if (!fs::exists(folder / "result")) continue;
    } else {
      REQUIRE(WIFEXITED(status));
      REQUIRE(WEXITSTATUS(status) == 0);
    }
    // It came to its end before the kill: the end is right, and it begins again from nothing.
    REQUIRE((sae::read_file(folder / "result") == want));
    for (const std::string& name : folder.names()) fs::remove(folder / name);
    furthest = 0;
  }
  CHECK(inside >= 3);
  const int status = start(0, 0);
  REQUIRE(WIFEXITED(status));
  REQUIRE(WEXITSTATUS(status) == 0);
  CHECK(folder.names() == std::vector<std::string>{"c", "result"});
  CHECK((sae::read_file(folder / "result") == want));
}
