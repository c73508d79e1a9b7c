#include <sae/files/mapped_file.hpp>
#include <sae/files/output.hpp>

#include <sys/stat.h>

#include "catch_compat.hpp"
#include "failing_files.hpp"
#include "temp_folder.hpp"

using Catch::Matchers::ContainsSubstring;

namespace {
std::string text_of(const sae::MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}
}  // namespace

TEST_CASE("MappedFile: the bytes of a file, moved but never copied", "[files][mapped_file]") {
  const TempFolder folder;
  std::string text(3 * 4096 + 17, '\0');
  for (std::size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>(i * 7 % 253);
  sae::atomic_write_text(folder / "a", text);
  static_assert(!std::is_copy_constructible_v<sae::MappedFile> && !std::is_copy_assignable_v<sae::MappedFile>);

  sae::MappedFile file(folder / "a");
  CHECK(file.mapped());
  CHECK(file.size() == text.size());
  CHECK(text_of(file) == text);
  for (const auto access :
       {sae::Access::sequential, sae::Access::random, sae::Access::will_need, sae::Access::dont_need, sae::Access::normal}) {
    file.advise(access);
    file.advise(access, 100, 5000);
    file.advise(access, 1 << 20, 1);
  }
  CHECK(text_of(file) == text);

  const std::byte* const at = file.bytes().data();
  sae::MappedFile moved(std::move(file));
  CHECK(moved.bytes().data() == at);
  CHECK(file.size() == 0);  // NOLINT(bugprone-use-after-move): that is what is tested
  file = std::move(moved);
  CHECK(text_of(file) == text);
  sae::MappedFile& itself = file;
  file = std::move(itself);
  CHECK(text_of(file) == text);

  // The file may be replaced or removed while it is mapped.
  sae::atomic_write_text(folder / "a", "short", {.overwrite = true});
  CHECK(text_of(file) == text);
}

TEST_CASE("MappedFile: empty files, missing ones, folders, pipes", "[files][mapped_file]") {
  const TempFolder folder;
  sae::atomic_write_text(folder / "empty", "");
  const sae::MappedFile empty(folder / "empty");
  CHECK(empty.size() == 0);
  CHECK(empty.bytes().empty());
  empty.advise(sae::Access::sequential);
  CHECK_THROWS_WITH(sae::MappedFile(folder / "none"), ContainsSubstring("/none: cannot open: No such file or directory"));
  CHECK_THROWS_WITH(sae::MappedFile(folder.path()), ContainsSubstring("is a folder"));
  ::mkfifo((folder / "pipe").c_str(), 0600);
  CHECK_THROWS_WITH(sae::MappedFile(folder / "pipe"), ContainsSubstring("is not a regular file"));
  CHECK_THROWS_AS(sae::MappedFile("/dev/zero"), sae::FileError);
}

TEST_CASE("MappedFile: where a file system cannot map, the file is read", "[files][mapped_file]") {
  const TempFolder folder;
  const std::string text(10001, 'x');
  sae::atomic_write_text(folder / "a", text);
  {
    const FailingFiles disk({.call = FailingFiles::Call::map, .error = ENODEV, .short_writes = true, .interrupted = true});
    const sae::MappedFile file(folder / "a");
    CHECK_FALSE(file.mapped());
    CHECK(text_of(file) == text);
    file.advise(sae::Access::dont_need);
    CHECK(text_of(file) == text);
  }
  const FailingFiles disk({.call = FailingFiles::Call::map, .error = ENOMEM});
  CHECK_THROWS_WITH(sae::MappedFile(folder / "a"), ContainsSubstring("cannot map 10001 bytes: Cannot allocate memory"));
}
