#include <sae/files/output.hpp>

#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "catch_compat.hpp"
#include "failing_files.hpp"
#include "temp_folder.hpp"

using Catch::Matchers::ContainsSubstring;
using Names = std::vector<std::string>;

namespace {
std::string pattern(std::size_t bytes) {
  std::string text(bytes, '\0');
  for (std::size_t i = 0; i < bytes; ++i) text[i] = static_cast<char>(i * 131 % 251);
  return text;
}
}  // namespace

TEST_CASE("OutputFile: nothing under the name before the commit, everything after it", "[files][output]") {
  const TempFolder folder;
  // Around the size of the inner buffer and several times it.
  const std::size_t bytes =
      GENERATE(std::size_t{0}, std::size_t{1}, std::size_t{262143}, std::size_t{262144}, std::size_t{1000003});
  const std::string text = pattern(bytes);
  {
    sae::OutputFile out(folder / "a.bin");
    for (std::size_t at = 0, step = 1; at < bytes; at += step, step = step * 3 + 1)
      out.write(std::string_view(text).substr(at, step));
    CHECK(out.size() == static_cast<sae::Index>(bytes));
    CHECK(folder.names() == Names{"a.bin.partial"});
    out.commit();
    CHECK(folder.names() == Names{"a.bin"});
    CHECK_THROWS_AS(out.write("more"), sae::FileError);
    CHECK_THROWS_AS(out.commit(), sae::FileError);
  }
  CHECK(sae::read_file(folder / "a.bin") == text);
}

TEST_CASE("OutputFile: without a commit nothing stays", "[files][output]") {
  const TempFolder folder;
  { sae::OutputFile(folder / "a.bin").write("text"); }
  CHECK(folder.names().empty());
  {
    sae::OutputFile first(folder / "a.bin");
    first.write("1");
    sae::OutputFile moved(std::move(first));
    moved.write("2");
    moved.commit();
  }
  CHECK(sae::read_file(folder / "a.bin") == "12");
}

TEST_CASE("OutputFile: write_at patches what was written and nothing else", "[files][output]") {
  const TempFolder folder;
  sae::OutputFile out(folder / "a");
  out.write("0123456789");
  const auto bytes = std::as_bytes(std::span("ab", 2));
  out.write_at(0, bytes);
  out.write_at(8, bytes);
  out.write("X");
  CHECK_THROWS_AS(out.write_at(10, bytes), sae::ValueError);
  CHECK_THROWS_AS(out.write_at(-1, bytes), sae::ValueError);
  out.commit();
  CHECK(sae::read_file(folder / "a") == "ab234567abX");
}

TEST_CASE("OutputFile: an existing output is refused, or replaced where that is said", "[files][output]") {
  const TempFolder folder;
  sae::atomic_write_text(folder / "a", "old");
  CHECK_THROWS_WITH(sae::OutputFile(folder / "a"), ContainsSubstring("/a: exists") && ContainsSubstring("overwritten"));
  CHECK(sae::read_file(folder / "a") == "old");
  sae::atomic_write_text(folder / "a", "new", {.overwrite = true});
  CHECK(sae::read_file(folder / "a") == "new");
  CHECK(folder.names() == Names{"a"});

  // One that appears while the other is written is not replaced either.
  sae::OutputFile late(folder / "b");
  late.write("mine");
  { std::filesystem::copy_file(folder / "a", folder / "b"); }
  CHECK_THROWS_WITH(late.commit(), ContainsSubstring("exists"));
  CHECK(sae::read_file(folder / "b") == "new");
}

TEST_CASE("OutputFile: what cannot be a file is refused in words", "[files][output]") {
  const TempFolder folder;
  std::filesystem::create_directory(folder / "d");
  CHECK_THROWS_WITH(sae::OutputFile(folder / "d", {.overwrite = true}), ContainsSubstring("is a folder"));
  CHECK_THROWS_WITH(sae::OutputFile("/dev/null", {.overwrite = true}), ContainsSubstring("/dev/null: is not a regular file"));
  CHECK_THROWS_WITH(sae::OutputFile(folder / "none" / "a"), ContainsSubstring("No such file or directory"));
  std::filesystem::create_symlink(folder / "nowhere", folder / "broken");
  CHECK_THROWS_WITH(sae::OutputFile(folder / "broken"), ContainsSubstring("leads nowhere"));
  ::mkfifo((folder / "pipe.partial").c_str(), 0600);
  CHECK_THROWS_WITH(sae::OutputFile(folder / "pipe"), ContainsSubstring("is in the way"));
  std::filesystem::create_symlink(folder / "elsewhere", folder / "link.partial");
  CHECK_THROWS_AS(sae::OutputFile(folder / "link"), sae::FileError);
  CHECK(folder.names() == Names{"broken", "d", "link.partial", "pipe.partial"});
}

TEST_CASE("OutputFile: a symbolic link stays and its file is replaced", "[files][output]") {
  const TempFolder folder;
  sae::atomic_write_text(folder / "file", "old");
  std::filesystem::create_symlink("file", folder / "link");
  sae::atomic_write_text(folder / "link", "new", {.overwrite = true});
  CHECK(std::filesystem::is_symlink(folder / "link"));
  CHECK(sae::read_file(folder / "file") == "new");
}

TEST_CASE("OutputFile: two writers of one name, a leftover of a killed one", "[files][output]") {
  const TempFolder folder;
  {
    sae::OutputFile first(folder / "a");
    CHECK_THROWS_WITH(sae::OutputFile(folder / "a"), ContainsSubstring("is being written by somebody else"));
    first.write("first");
    first.commit();
  }
  CHECK(sae::read_file(folder / "a") == "first");

  const pid_t child = ::fork();
  if (child == 0) {  // dies inside a write, without destructors
    sae::OutputFile out(folder / "b");
    const std::string text = pattern(600000);
    out.write(text);
    out.write("x");
    ::_exit(0);
  }
  ::waitpid(child, nullptr, 0);
  CHECK(folder.names() == Names{"a", "b.partial"});
  sae::atomic_write_text(folder / "b", "whole");
  CHECK(sae::read_file(folder / "b") == "whole");
  CHECK(folder.names() == Names{"a", "b"});
}

TEST_CASE("OutputFile: killed at any moment, the file is an earlier or a later one, never a torn one", "[files][output]") {
  const TempFolder folder;
  const std::string texts[] = {std::string(300000, 'a'), std::string(700000, 'b')};
  sae::atomic_write_text(folder / "f", texts[0]);
  for (int round = 0; round < 12; ++round) {
    int started[2];
    REQUIRE(::pipe(started) == 0);
    const pid_t child = ::fork();
    if (child == 0) {
      for (std::size_t i = 0;; ++i) {
        sae::atomic_write_text(folder / "f", texts[i % 2], {.overwrite = true});
        if (i == 0 && ::write(started[1], "x", 1) != 1) ::_exit(1);
      }
    }
    char x = 0;
    CHECK(::read(started[0], &x, 1) == 1);
    ::usleep(static_cast<unsigned>(731 * round));
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    ::close(started[0]);
    ::close(started[1]);
    const std::string found = sae::read_file(folder / "f");
    CHECK((found == texts[0] || found == texts[1]));
  }
  sae::atomic_write_text(folder / "f", "after", {.overwrite = true});
  CHECK(folder.names() == Names{"f"});
}

TEST_CASE("OutputFile: whatever call fails, there is no file and no leftover", "[files][output]") {
  const TempFolder folder;
  const std::string text = pattern(700001);
  const auto write_all = [&](sae::OutputOptions options) {
    sae::OutputFile out(folder / "a", options);
    out.write(std::string_view(text).substr(0, 100));
    out.write(std::string_view(text).substr(100, 500000));
    out.write(std::string_view(text).substr(500100));
    out.write_at(3, std::as_bytes(std::span("abc", 3)));
    out.commit();
  };
  const auto [call, error, words] = GENERATE(table<FailingFiles::Call, int, std::string>({
      {FailingFiles::Call::open, EACCES, "Permission denied"},
      {FailingFiles::Call::write, ENOSPC, "No space left on device"},
      {FailingFiles::Call::write_at, EIO, "Input/output error"},
      {FailingFiles::Call::sync, EIO, "Input/output error"},
      {FailingFiles::Call::rename, EACCES, "Permission denied"},
  }));
  int failures = 0;
  for (int nth = 1; nth < 60; ++nth, ++failures) {
    const FailingFiles disk({.call = call, .nth = nth, .error = error});
    if (call == FailingFiles::Call::open && nth == 2) break;  // opening the folder to sync it: not needed for wholeness
    try {
      write_all({});
    } catch (const sae::FileError& e) {
      CHECK(disk.happened());
      CHECK_THAT(e.what(), ContainsSubstring(words) && ContainsSubstring("/a: "));
      CHECK(folder.names().empty());
      continue;
    }
    CHECK_FALSE(disk.happened());
    break;
  }
  REQUIRE(failures < 59);
  CHECK(failures >= (call == FailingFiles::Call::write || call == FailingFiles::Call::sync ? 2 : 1));
  std::filesystem::remove(folder / "a");

  // The same over an older file: that one stays, whole, unless the new one is whole in its place.
  for (int nth = 1; nth <= failures; ++nth) {
    sae::atomic_write_text(folder / "a", "old", {.overwrite = true});
    const FailingFiles disk({.call = call, .nth = nth, .error = error});
    CHECK_THROWS_AS(write_all({.overwrite = true}), sae::FileError);
    CHECK(folder.names() == Names{"a"});
    const bool renamed = call == FailingFiles::Call::sync && nth == 2;
    CHECK(sae::read_file(folder / "a").size() == (renamed ? text.size() : 3));
  }
}

TEST_CASE("OutputFile: short writes and interrupted calls lose nothing", "[files][output]") {
  const TempFolder folder;
  const std::string text = pattern(5000);
  {
    const FailingFiles disk({.short_writes = true, .interrupted = true});
    sae::OutputFile out(folder / "a");
    out.write(text);
    out.write_at(100, std::as_bytes(std::span("0123456789", 10)));
    out.commit();
    CHECK(sae::read_file(folder / "a").substr(0, 100) == text.substr(0, 100));
  }
  CHECK(sae::read_file(folder / "a") == text.substr(0, 100) + "0123456789" + text.substr(110));

  // A disk that fills up after a short write.
  const FailingFiles disk(
      {.call = FailingFiles::Call::write, .nth = 4, .error = ENOSPC, .onwards = true, .short_writes = true});
  CHECK_THROWS_WITH(sae::atomic_write_text(folder / "b", text), ContainsSubstring("cannot write at byte 21: No space left"));
  CHECK(folder.names() == Names{"a"});
}

TEST_CASE("OutputFile: after a failed write it cannot be completed", "[files][output]") {
  const TempFolder folder;
  const FailingFiles disk({.call = FailingFiles::Call::write, .nth = 1, .error = ENOSPC});
  sae::OutputFile out(folder / "a");
  CHECK_THROWS_AS(out.write(pattern(300000)), sae::FileError);
  CHECK_THROWS_AS(out.write("x"), sae::FileError);
  CHECK_THROWS_AS(out.commit(), sae::FileError);
  CHECK(folder.names().empty());
}

TEST_CASE("read_file: whole files, a cap, and what cannot be read", "[files][output]") {
  const TempFolder folder;
  const std::string text = pattern(200000);
  sae::atomic_write_text(folder / "a", text);
  sae::atomic_write_text(folder / "empty", "");
  CHECK(sae::read_file(folder / "a") == text);
  CHECK(sae::read_file(folder / "a", 200000) == text);
  CHECK(sae::read_file(folder / "empty", 0).empty());
  CHECK_THROWS_WITH(sae::read_file(folder / "a", 199999), ContainsSubstring("has 200000 bytes, at most 199999"));
  CHECK_THROWS_WITH(sae::read_file("/dev/zero", 100000), ContainsSubstring("more than the 100000 bytes"));
  CHECK_THROWS_WITH(sae::read_file(folder / "none"), ContainsSubstring("/none: cannot open: No such file"));
  CHECK_THROWS_WITH(sae::read_file(folder.path()), ContainsSubstring("Is a directory"));
  const FailingFiles disk({.call = FailingFiles::Call::read, .nth = 2});
  CHECK_THROWS_WITH(sae::read_file(folder / "a"), ContainsSubstring("cannot read: Input/output error"));
}
