// What the tests of the program share: a folder to work in, programs that run while the test looks on.
#pragma once
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "catch_compat.hpp"
#include "run_program.hpp"

#ifdef SAE_TEST_PROGRAM
namespace sae_test {

using Words = std::vector<std::string>;
inline Words with(Words words, const Words& more) {
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

inline std::string peer_path(const std::string& name) {
  return (std::filesystem::path(SAE_TEST_DATA) / "peers" / name).string();
}

/// A folder in which programs run with relative names.
class Workplace {
 public:
  std::string at(const std::string& name) const { return (folder_ / name).string(); }
  const TempFolder& folder() const { return folder_; }
  std::vector<std::string> names() const { return folder_.names(); }

 private:
  TempFolder folder_;
};

/// Fails with one line that says why, and prints nothing.
inline void check_refused(const Finished& done, const std::string& why) {
  INFO(done.err);
  CHECK(done.code == 1);
  CHECK(done.out.empty());
  CHECK_THAT(done.error(), Catch::Matchers::ContainsSubstring(why));
}
inline nlohmann::json json_of(const Finished& run) { return nlohmann::json::parse(run.out, nullptr, false); }
inline std::vector<std::string> keys_of(const nlohmann::ordered_json& object) {
  std::vector<std::string> keys;
  for (const auto& field : object.items()) keys.push_back(field.key());
  return keys;
}

/// The program at work; killed when it goes out of scope.
class RunningSae {
 public:
  explicit RunningSae(const Words& words, const std::string& errors) {
    std::vector<std::string> copy = {SAE_TEST_PROGRAM};
    copy.insert(copy.end(), words.begin(), words.end());
    process_ = ::fork();
    if (process_ < 0) throw std::runtime_error("cannot fork");
    if (process_ == 0) {
      std::vector<char*> argv;
      for (std::string& word : copy) argv.push_back(word.data());
      argv.push_back(nullptr);
      const int nothing = ::open("/dev/null", O_RDWR), err = ::open(errors.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
      ::dup2(nothing, 0);
      ::dup2(nothing, 1);
      ::dup2(err, 2);
      ::execv(SAE_TEST_PROGRAM, argv.data());
      ::_exit(127);
    }
  }
  ~RunningSae() {
    if (process_ <= 0) return;
    ::kill(process_, SIGKILL);
    wait();
  }
  RunningSae(const RunningSae&) = delete;
  RunningSae& operator=(const RunningSae&) = delete;

  /// False where the program ended, or a minute passed, before `done()`.
  template <class Done>
  bool until(const Done& done) {
    for (int i = 0; i < 60'000; ++i) {
      if (done()) return true;
      int status = 0;
      if (::waitpid(process_, &status, WNOHANG) == process_) {
        process_ = 0;
        return false;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return false;
  }
  void signal(int number) const { ::kill(process_, number); }
  /// Exit status, or 1000 + the signal that ended it.
  int wait() {
    int status = 0;
    if (process_ <= 0 || ::waitpid(process_, &status, 0) != process_) return -1;
    process_ = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
  }

 private:
  pid_t process_ = 0;
};

}  // namespace sae_test
#endif
