#include <sae/files/output_folder.hpp>

#include <string>
#include <vector>

#include "catch_compat.hpp"
#include "failing_files.hpp"
#include "temp_folder.hpp"

using Catch::Matchers::ContainsSubstring;
using Names = std::vector<std::string>;

namespace {
void fill(const sae::OutputFolder& out, const std::string& text) {
  sae::atomic_write_text(out / "a", text, {.overwrite = true});
  std::filesystem::create_directories(out / "inner");
  sae::atomic_write_text(out / "inner/b", text, {.overwrite = true});
}
void write_folder(const std::filesystem::path& path, const std::string& text, sae::OutputFolderOptions options = {}) {
  sae::OutputFolder out(path, options);
  fill(out, text);
  out.commit();
}
}  // namespace

TEST_CASE("OutputFolder: appears whole at the commit", "[files][output_folder]") {
  const TempFolder folder;
  {
    sae::OutputFolder out(folder / "out/");
    CHECK(out.path() == folder / "out");
    fill(out, "text");
    CHECK(folder.names() == Names{"out.partial"});
    out.commit();
    CHECK_THROWS_AS(out.commit(), sae::FileError);
  }
  CHECK(folder.names() == Names{"out"});
  CHECK(sae::read_file(folder / "out/inner/b") == "text");
}

TEST_CASE("OutputFolder: everything in it is synced before it appears, whoever wrote it", "[files][output_folder]") {
  const TempFolder folder;
  sae::OutputFolder out(folder / "out");
  std::filesystem::create_directories(out / "inner/empty");
  for (const char* name : {"a", "inner/b"}) {
    const auto file = sae::detail::Descriptor::open(out / name, O_WRONLY | O_CREAT, 0666);
    CHECK(sae::detail::file_system().write(file.get(), "text", 4) == 4);
  }
  const FailingFiles disk({.call = FailingFiles::Call::sync, .nth = 1000});
  out.commit();
  CHECK(disk.calls() == 6);  // a, inner, inner/b, inner/empty, the folder itself, the one that holds it
}

TEST_CASE("OutputFolder: without a commit it goes, or stays to be resumed", "[files][output_folder]") {
  const TempFolder folder;
  { fill(sae::OutputFolder(folder / "out"), "text"); }
  CHECK(folder.names().empty());
  {
    const sae::OutputFolder out(folder / "out", {.resume = true, .keep = true});
    CHECK_FALSE(out.resumed());
    fill(out, "text");
  }
  CHECK(folder.names() == Names{"out.partial"});
  CHECK_THROWS_WITH(sae::OutputFolder(folder / "out"),
                    ContainsSubstring("interrupted run") && ContainsSubstring("out.partial"));
  CHECK(std::filesystem::exists(folder / "out.partial/a"));
  {
    sae::OutputFolder out(folder / "out", {.resume = true});
    CHECK(out.resumed());
    CHECK(sae::read_file(out / "a") == "text");
    out.keep();
  }
  {
    sae::OutputFolder out(folder / "out", {.overwrite = true});
    CHECK_FALSE(out.resumed());
    CHECK(std::filesystem::is_empty(out.partial()));
    out.keep();
    out.keep(false);
  }
  CHECK(folder.names().empty());
}

TEST_CASE("OutputFolder: an existing one is refused or replaced whole", "[files][output_folder]") {
  const TempFolder folder;
  write_folder(folder / "out", "old");
  sae::atomic_write_text(folder / "out/extra", "old");
  CHECK_THROWS_WITH(sae::OutputFolder(folder / "out"), ContainsSubstring("/out: exists"));
  write_folder(folder / "out", "new", {.overwrite = true});
  CHECK(folder.names() == Names{"out"});
  CHECK(sae::read_file(folder / "out/a") == "new");
  CHECK_FALSE(std::filesystem::exists(folder / "out/extra"));

  // With a marker, a folder that somebody keeps other things in is not replaced.
  CHECK_THROWS_WITH(sae::OutputFolder(folder / "out", {.overwrite = true, .marker = "cfg.json"}),
                    ContainsSubstring("holds other things (no cfg.json in it)"));
  write_folder(folder / "out", "marked", {.overwrite = true, .marker = "a"});
  CHECK(sae::read_file(folder / "out/a") == "marked");
  std::filesystem::create_directory(folder / "empty");
  write_folder(folder / "empty", "new", {.overwrite = true, .marker = "cfg.json"});
  CHECK(sae::read_file(folder / "empty/a") == "new");
}

TEST_CASE("OutputFolder: what cannot be an output folder is refused in words", "[files][output_folder]") {
  const TempFolder folder;
  sae::atomic_write_text(folder / "file", "text");
  CHECK_THROWS_WITH(sae::OutputFolder(folder / "file", {.overwrite = true}), ContainsSubstring("is not a folder"));
  for (const char* path : {"", ".", "..", "/", "a/.."})
    CHECK_THROWS_WITH(sae::OutputFolder(path, {.overwrite = true}), ContainsSubstring("cannot be an output folder"));
  CHECK_THROWS_WITH(sae::OutputFolder(folder / "none" / "out"), ContainsSubstring("No such file or directory"));
  sae::atomic_write_text(folder / "x.partial", "text");
  CHECK_THROWS_WITH(sae::OutputFolder(folder / "x", {.overwrite = true}), ContainsSubstring("is in the way"));
  std::filesystem::create_directory(folder / "y.replaced");
  CHECK_THROWS_WITH(sae::OutputFolder(folder / "y", {.overwrite = true}), ContainsSubstring("y.replaced"));
  CHECK(folder.names() == Names{"file", "x.partial", "y.replaced"});
}

TEST_CASE("OutputFolder: two writers of one name", "[files][output_folder]") {
  const TempFolder folder;
  const sae::OutputFolder first(folder / "out");
  fill(first, "first");
  for (const bool resume : {false, true})
    CHECK_THROWS_WITH(sae::OutputFolder(folder / "out", {.overwrite = !resume, .resume = resume}),
                      ContainsSubstring("is being written by somebody else"));
  CHECK(sae::read_file(first / "a") == "first");
}

TEST_CASE("OutputFolder: whatever call fails, the old folder or none is there, never a torn one", "[files][output_folder]") {
  const TempFolder folder;
  const auto call = GENERATE(FailingFiles::Call::sync, FailingFiles::Call::rename, FailingFiles::Call::any_change);
  for (const bool replace : {false, true}) {
    int failures = 0;
    for (int nth = 1; nth < 60; ++nth, ++failures) {
      if (replace) write_folder(folder / "out", "old", {.overwrite = true});
      const FailingFiles disk({.call = call, .nth = nth});
      try {
        write_folder(folder / "out", "new", {.overwrite = replace});
      } catch (const sae::FileError&) {
        CHECK(disk.happened());
        CHECK(folder.names() == (replace ? Names{"out"} : Names{}));
        if (replace) CHECK((sae::read_file(folder / "out/a") == "old" && sae::read_file(folder / "out/inner/b") == "old"));
        continue;
      }
      CHECK_FALSE(disk.happened());
      break;
    }
    REQUIRE(failures < 59);
    CHECK(failures >= 3);
    CHECK(sae::read_file(folder / "out/a") == "new");
    std::filesystem::remove_all(folder / "out");
  }
}
