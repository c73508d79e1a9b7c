#include <sae/files/output.hpp>
#include <sae/formats/hub.hpp>

#include <filesystem>
#include <string>

#include "catch_compat.hpp"
#include "environment.hpp"
#include "temp_folder.hpp"

using Catch::Matchers::ContainsSubstring;
namespace fs = std::filesystem;

using sae_test::Variable;

TEST_CASE("hub names are two words and a path", "[formats][hub]") {
  const auto name = sae::parse_hub_name("google/gemma-scope-2b-pt-res/layer_12/width_16k/params.npz");
  REQUIRE(name);
  CHECK(name->repository == "google/gemma-scope-2b-pt-res");
  CHECK(name->path == "layer_12/width_16k/params.npz");
  CHECK(sae::parse_hub_name("a/b")->path.empty());
  for (const char* const none : {"", "a", "/a/b", "a//b", "../a/b", "a/../b", "a/b/..", "a b/c", "~/a/b", "a/b/", "C:\\x\\y"}) {
    CAPTURE(none);
    CHECK_FALSE(sae::parse_hub_name(none));
  }
}

TEST_CASE("what is in the hub's cache is found by its name", "[formats][hub]") {
  TempFolder temp;
  const Variable cache("HF_HUB_CACHE", temp.path().string());
  const fs::path repository = temp / "models--org--saes";
  const auto put = [&](const std::string& revision, const std::string& text) {
    fs::create_directories(repository / "snapshots" / revision / "layer_3");
    sae::atomic_write_text(repository / "snapshots" / revision / "layer_3" / "x.txt", text);
  };
  const fs::path asked = "org/saes/layer_3/x.txt";
  CHECK_THROWS_WITH(sae::resolve_path(asked), ContainsSubstring("huggingface-cli download org/saes layer_3/x.txt (or "
                                                                "https://huggingface.co/org/saes/resolve/main/layer_3/x.txt)"));
  put("abc", "one");
  CHECK(sae::read_file(sae::resolve_path(asked)) == "one");  // the one snapshot
  put("def", "two");
  CHECK_THROWS_AS(sae::resolve_path(asked), sae::FileError);  // which of two?
  fs::create_directories(repository / "refs");
  sae::atomic_write_text(repository / "refs" / "main", "def\n");
  CHECK(sae::read_file(sae::resolve_path(asked)) == "two");
  CHECK(fs::is_directory(sae::resolve_path("org/saes/layer_3")));
  CHECK(fs::is_directory(sae::resolve_path("org/saes")));
  CHECK_THROWS_WITH(sae::resolve_path("org/saes/layer_4"),
                    ContainsSubstring(temp.path().string()) && ContainsSubstring("download org/saes --include \"layer_4/*\""));
  // A reference is a name, and no way out of the folder.
  sae::atomic_write_text(repository / "refs" / "main", "../../../etc", {.overwrite = true});
  CHECK_THROWS_AS(sae::resolve_path(asked), sae::FileError);
  // What is there comes first, whatever its name; what is no name of the hub stays as it is.
  CHECK(sae::resolve_path(temp / "models--org--saes") == temp / "models--org--saes");
  CHECK(sae::resolve_path("/nowhere/at/all") == "/nowhere/at/all");
}

TEST_CASE("the hub's cache lies where its own program puts it", "[formats][hub]") {
  const Variable none("HF_HUB_CACHE", ""), home("HF_HOME", "/h"), xdg("XDG_CACHE_HOME", "/x");
  CHECK(sae::hub_cache() == "/h/hub");
  const Variable without("HF_HOME", "");
  CHECK(sae::hub_cache() == "/x/huggingface/hub");
  const Variable neither("XDG_CACHE_HOME", ""), user("HOME", "/u");
  CHECK(sae::hub_cache() == "/u/.cache/huggingface/hub");
}
