// Runs programs as a user does: `sae`, and the examples.
#pragma once
#include <sys/wait.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "temp_folder.hpp"

namespace sae_test {

inline std::string file_text(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw std::runtime_error("cannot read " + path.string());
  return {std::istreambuf_iterator<char>(in), {}};
}
inline void write_text(const std::filesystem::path& path, const std::string& text) {
  std::ofstream out(path, std::ios::binary);
  if (!(out << text).flush()) throw std::runtime_error("cannot write " + path.string());
}

struct Finished {
  int code = -1;  ///< exit status; -1: ended by a signal
  std::string out, err;
  /// The one line of an error, without its prefix; empty where standard error is anything else.
  std::string error() const {
    const std::string prefix = "sae: error: ";
    if (!err.starts_with(prefix) || err.find('\n') != err.size() - 1) return {};
    return err.substr(prefix.size(), err.size() - prefix.size() - 1);
  }
};

inline Finished run_program(const std::string& program, const std::vector<std::string>& words = {}) {
  const TempFolder folder;
  const auto quoted = [](const std::string& word) {
    std::string out = "'";
    for (const char c : word) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
    return out + "'";
  };
  std::string command = quoted(program);
  for (const std::string& word : words) command += " " + quoted(word);
  command += " >" + quoted((folder / "out").string()) + " 2>" + quoted((folder / "err").string()) + " </dev/null";
  const int status = std::system(command.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, file_text(folder / "out"), file_text(folder / "err")};
}

#ifdef SAE_TEST_PROGRAM
inline Finished run_sae(const std::vector<std::string>& words) { return run_program(SAE_TEST_PROGRAM, words); }
#endif

}  // namespace sae_test
