#include <sae/files/safetensors.hpp>

#include <string>
#include <vector>

#include "catch_compat.hpp"
#include "failing_files.hpp"
#include "temp_folder.hpp"

using Catch::Matchers::ContainsSubstring;
namespace fs = std::filesystem;

namespace {

/// a [3], b [2 x 2], c [1], d [5], all float32, counted from 0.
sae::SafetensorsWriter numbers() {
  static const std::vector<float> a{0, 1, 2}, b{3, 4, 5, 6}, c{7}, d{8, 9, 10, 11, 12};
  sae::SafetensorsWriter out;
  out.metadata["format"] = "pt";
  out.add("a", {3}, a);
  out.add("b", {2, 2}, b);
  out.add("c", {1}, c);
  out.add("d", {5}, d);
  return out;
}
void require_numbers(const fs::path& path) {
  const sae::SafetensorsFile file(path);
  float next = 0;
  for (const char* const name : {"a", "b", "c", "d"})
    for (const float value : file.values<float>(name)) REQUIRE(value == next++);
  REQUIRE(next == 13);
  CHECK(file.tensors().size() == 4);
  CHECK(file.metadata().at("format") == "pt");
  CHECK(file.read<double>("b", {2, 2})[3] == 6);
}
std::string error_of(const fs::path& path) {
  try {
    const sae::SafetensorsFile file(path);
  } catch (const sae::FileError& error) {
    return error.what();
  }
  return "";
}
using Names = std::vector<std::string>;

}  // namespace

TEST_CASE("shards: tensors keep their order and fill files up to the bound", "[files][safetensors][shards]") {
  const TempFolder folder;
  const sae::SafetensorsWriter out = numbers();
  out.save_sharded(folder / "w.safetensors", 20);  // a | b c | d: 12, 16 + 4, 20 bytes
  CHECK(folder.names() == Names{"w-00001-of-00003.safetensors", "w-00002-of-00003.safetensors", "w-00003-of-00003.safetensors",
                                "w.safetensors.index.json"});
  CHECK(sae::read_json(folder / "w.safetensors.index.json") == nlohmann::json{{"metadata", {{"total_size", 52}}},
                                                                              {"weight_map",
                                                                               {{"a", "w-00001-of-00003.safetensors"},
                                                                                {"b", "w-00002-of-00003.safetensors"},
                                                                                {"c", "w-00002-of-00003.safetensors"},
                                                                                {"d", "w-00003-of-00003.safetensors"}}}});
  require_numbers(folder / "w.safetensors.index.json");
  CHECK(sae::SafetensorsFile(folder / "w-00002-of-00003.safetensors").tensors().size() == 2);
}

TEST_CASE("shards: one file where it is small enough, one tensor a file where each is larger", "[files][safetensors][shards]") {
  const sae::Index bytes = GENERATE(1, 19, 20, 27, 28, 51, 52, 1000);
  CAPTURE(bytes);
  const TempFolder folder;
  numbers().save_sharded(folder / "w.safetensors", bytes);
  if (bytes >= 52) {
    CHECK(folder.names() == Names{"w.safetensors"});
    const TempFolder other;
    numbers().save(other / "w.safetensors");
    CHECK(sae::read_file(folder / "w.safetensors") == sae::read_file(other / "w.safetensors"));
    return require_numbers(folder / "w.safetensors");
  }
  require_numbers(folder / "w.safetensors.index.json");
  const std::size_t files = bytes < 20 ? 4 : bytes < 28 ? 3 : 2;
  CHECK(folder.names().size() == files + 1);
}

TEST_CASE("shards: never beside a file that would be read in their place", "[files][safetensors][shards]") {
  const TempFolder folder;
  const sae::SafetensorsWriter out = numbers();
  CHECK_THROWS_WITH(out.save_sharded(folder / "w.safetensors", 0), ContainsSubstring("at least 1"));
  out.save_sharded(folder / "w.safetensors", 20);
  CHECK_THROWS_AS(out.save_sharded(folder / "w.safetensors", 20), sae::FileError);
  out.save(folder / "v.safetensors");
  CHECK_THROWS_WITH(out.save_sharded(folder / "v.safetensors", 20), ContainsSubstring("v.safetensors: exists"));
  CHECK(folder.names().size() == 5);
}

TEST_CASE("shards: an index that names other things than files beside it is refused", "[files][safetensors][shards]") {
  const auto parsed = [](const std::string& text) { return sae::parse_safetensors_index(text, "x.index.json"); };
  CHECK(parsed(R"({"weight_map": {"a": "one.safetensors"}, "more": 1})").at("a") == "one.safetensors");
  for (const char* const name : {"", ".safetensors", "../w.safetensors", "/etc/w.safetensors", "a/w.safetensors",
                                 "..safetensors", "a\\\\w.safetensors", "w.bin", "w\\nw.safetensors", "w\\u0000.safetensors"}) {
    CAPTURE(name);
    CHECK_THROWS_WITH(parsed(R"({"weight_map": {"a": ")" + std::string(name) + "\"}}"),
                      ContainsSubstring("x.index.json: weight_map: a = ") &&
                          ContainsSubstring("the name of a .safetensors file beside the index"));
  }
  for (const char* const text :
       {"", "[]", "{}", R"({"weight_map": {}})", R"({"weight_map": []})", R"({"weight_map": {"a": 1}})",
        R"({"weight_map": {"a": "b.safetensors", "a": "c.safetensors"}})", R"({"weight_map": null})"}) {
    CAPTURE(text);
    CHECK_THROWS_AS(parsed(text), sae::FileError);
  }
}

TEST_CASE("shards: each tensor stands in the one file that the index says", "[files][safetensors][shards]") {
  const TempFolder folder;
  numbers().save_sharded(folder / "w.safetensors", 20);
  const fs::path index = folder / "w.safetensors.index.json";
  const nlohmann::json good = sae::read_json(index);
  const auto changed = [&](const auto& change) {
    nlohmann::json json = good;
    change(json["weight_map"]);
    sae::save_json(index, json, {.overwrite = true});
    return error_of(index);
  };
  CHECK_THAT(
      changed([](auto& map) { map["a"] = "w-00003-of-00003.safetensors"; }),
      ContainsSubstring("weight_map: a is not in w-00003-of-00003.safetensors") || ContainsSubstring("holds the tensor a"));
  CHECK_THAT(changed([](auto& map) { map["c"] = "w-00003-of-00003.safetensors"; }),
             ContainsSubstring("weight_map: c is not in w-00003-of-00003.safetensors, another file holds it"));
  CHECK_THAT(changed([](auto& map) { map["e"] = "w-00003-of-00003.safetensors"; }),
             ContainsSubstring("weight_map: e is not in w-00003-of-00003.safetensors"));
  CHECK_THAT(changed([](auto& map) { map.erase("c"); }), ContainsSubstring("w-00002-of-00003.safetensors: holds the tensor c, "
                                                                           "which the weight_map of") &&
                                                             ContainsSubstring("does not name"));
  CHECK_THAT(changed([](auto& map) { map["e"] = "w-00004-of-00003.safetensors"; }),
             ContainsSubstring("w-00004-of-00003.safetensors: cannot open"));
  CHECK(changed([](auto&) {}).empty());
  // A tensor in two files, and a file that is damaged.
  sae::SafetensorsWriter twice;
  const std::vector<float> number{1};
  twice.add("c", {1}, number);
  twice.save(folder / "more.safetensors");
  CHECK_THAT(changed([](auto& map) { map["c"] = "more.safetensors"; }),
             ContainsSubstring("holds the tensor c, which another file of"));
  sae::atomic_write_text(folder / "more.safetensors", "no", {.overwrite = true});
  CHECK_THAT(changed([](auto& map) { map["e"] = "more.safetensors"; }),
             ContainsSubstring("more.safetensors: is not a safetensors file"));
}

TEST_CASE("shards: an index stands for the file that is not there", "[files][safetensors][shards]") {
  const TempFolder folder;
  const fs::path file = folder / "w.safetensors";
  CHECK(sae::detail::safetensors_or_index(file) == file);
  numbers().save_sharded(file, 20);
  const fs::path index = folder / "w.safetensors.index.json";
  CHECK(sae::detail::safetensors_or_index(file) == index);
  CHECK(sae::detail::index_of_shard(folder / "w-00002-of-00003.safetensors") == index);
  for (const char* const none : {"w-0002-of-00003.safetensors", "v-00002-of-00003.safetensors", "-00002-of-00003.safetensors",
                                 "w-00002-of-00003.npz", "w.safetensors"})
    CHECK_FALSE(sae::detail::index_of_shard(folder / none));
  numbers().save(file);
  CHECK(sae::detail::safetensors_or_index(file) == file);
  sae::atomic_write_text(folder / "p.npz.index.json", "{}");
  CHECK(sae::detail::safetensors_or_index(folder / "p.npz") == folder / "p.npz");
}
