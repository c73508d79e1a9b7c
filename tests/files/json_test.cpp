#include <sae/files/json.hpp>

#include <sys/stat.h>

#include <cmath>
#include <limits>
#include <string>

#include "catch_compat.hpp"
#include "failing_files.hpp"
#include "temp_folder.hpp"

using Catch::Matchers::ContainsSubstring;
using nlohmann::json;

namespace {
json parse(const std::string& text) { return sae::parse_json(text, "c.json"); }
void refused(const std::string& text, const std::string& words) {
  INFO(text.substr(0, 100));
  CHECK_THROWS_WITH(parse(text), ContainsSubstring("c.json: ") && ContainsSubstring(words));
  CHECK_THROWS_AS(parse(text), sae::FileError);
}
}  // namespace

TEST_CASE("json: files come back as they were saved", "[files][json]") {
  const TempFolder folder;
  const json value = {{"k", 32}, {"lr", 1e-3}, {"name", "a \"b\"\n"}, {"list", {1, 2.5, nullptr, true}}, {"inner", {{"k", 1}}}};
  sae::save_json(folder / "c.json", value);
  CHECK(sae::read_json(folder / "c.json") == value);
  CHECK_THROWS_WITH(sae::save_json(folder / "c.json", value), ContainsSubstring("exists"));
  sae::save_json(folder / "c.json", nlohmann::ordered_json{{"b", 1}, {"a", 2}}, {.overwrite = true});
  CHECK(sae::read_file(folder / "c.json") == "{\n  \"b\": 1,\n  \"a\": 2\n}\n");
  CHECK_THROWS_WITH(sae::read_json(folder / "c.json", 10), ContainsSubstring("at most 10 are taken"));
  REQUIRE(::mkfifo((folder / "pipe").c_str(), 0600) == 0);  // reading it would wait for ever
  CHECK_THROWS_WITH(sae::read_json(folder / "pipe"), ContainsSubstring("pipe: is not a regular file"));
  std::filesystem::remove(folder / "pipe");
  CHECK_THROWS_WITH(sae::save_json(folder / "d.json", json("\xff")), ContainsSubstring("not UTF-8"));
  CHECK(folder.names() == std::vector<std::string>{"c.json"});
}

TEST_CASE("json: malformed text is one sentence with its place", "[files][json]") {
  refused("", "is not valid JSON at line 1, column 1");
  refused("{", "line 1, column 2");
  refused("{\n  \"a\": 1,\n  \"b\": x\n}", "line 3, column 8");
  refused("{} {}", "not valid JSON");
  refused("// comment\n{}", "not valid JSON");
  refused("[1,]", "not valid JSON");
  refused("[NaN]", "not valid JSON");
  refused("[1e999]", "a number is too large");
  refused("\"\xff\"", "not valid JSON");
  refused("\"\n\"", "not valid JSON");
  refused(std::string("{\"a\": 1}\0", 9), "not valid JSON");
  refused("{\"a\": 1, \"b\": {\"a\": 2}, \"a\": 3}", "JSON name a stands twice in one object");
  refused("[{\"a\": {\"b\": 1, \"b\": 1}}]", "JSON name b stands twice");
  refused("{\"\\u0061\": 1, \"a\": 1}", "stands twice");
  refused("{\"\\n\": 1, \"\\n\": 1}", "JSON name ? stands twice");
  CHECK(parse("[{\"a\": 1}, {\"a\": 1}, {\"b\": {\"a\": 1}, \"a\": 1}]").size() == 3);
  CHECK(parse(std::string(150, '[') + std::string(150, ']')).is_array());
  refused(std::string(100000, '['), "deeper than 200 levels");
  refused(std::string(201, '[') + std::string(201, ']'), "deeper than 200 levels");
  std::string objects;
  for (int i = 0; i < 5000; ++i) objects += "{\"a\":";
  refused(objects, "deeper than 200 levels");
}

TEST_CASE("json: fields by type, range and fallback", "[files][json]") {
  const json j = parse(R"({"k": 32, "big": 18446744073709551615, "low": -5, "x": 0.5, "whole": 2.0, "text": "t", "flag": true,
                           "none": null, "list": [1]})");
  const std::string file = "c.json";
  CHECK(sae::json_integer(j, "k", file) == 32);
  CHECK(sae::json_integer(j, "k", file, 32, 32) == 32);
  CHECK(sae::json_integer(j, "low", file) == -5);
  CHECK(sae::json_number(j, "k", file) == 32.0);
  CHECK(sae::json_number(j, "x", file, 0.5, 1) == 0.5);
  CHECK(sae::json_string(j, "text", file) == "t");
  CHECK(sae::json_bool(j, "flag", file));

  CHECK(sae::json_integer_or(j, "absent", 7, file, 0, 3) == 7);
  CHECK(sae::json_integer_or(j, "none", 7, file) == 7);
  CHECK(sae::json_integer_or(j, "k", 7, file) == 32);
  CHECK(sae::json_number_or(j, "absent", 0.25, file) == 0.25);
  CHECK(sae::json_number_or(j, "x", 0.25, file) == 0.5);
  CHECK(sae::json_string_or(j, "absent", "d", file) == "d");
  CHECK(sae::json_string_or(j, "text", "d", file) == "t");
  CHECK(sae::json_bool_or(j, "absent", true, file));
  CHECK(sae::json_bool_or(j, "flag", false, file));

  CHECK_THROWS_WITH(sae::json_integer(j, "absent", file), "c.json: absent is missing");
  CHECK_THROWS_WITH(sae::json_integer(j, "none", file), "c.json: none is missing");
  CHECK_THROWS_WITH(sae::json_integer(j, "k", file, 33), "c.json: k = 32 is not an integer of at least 33");
  CHECK_THROWS_WITH(sae::json_integer(j, "k", file, 0, 31), "c.json: k = 32 is not an integer in [0, 31]");
  CHECK_THROWS_WITH(sae::json_integer(j, "low", file, 0), "c.json: low = -5 is not an integer of at least 0");
  CHECK_THROWS_WITH(sae::json_integer(j, "big", file), "c.json: big = 18446744073709551615 is not an integer");
  CHECK_THROWS_WITH(sae::json_integer(j, "whole", file), "c.json: whole = 2.0 is not an integer");
  CHECK_THROWS_WITH(sae::json_integer(j, "flag", file), "c.json: flag = true is not an integer");
  CHECK_THROWS_WITH(sae::json_integer_or(j, "text", 1, file), "c.json: text = \"t\" is not an integer");
  CHECK_THROWS_WITH(sae::json_number(j, "x", file, 0, 0.25), "c.json: x = 0.5 is not a number in [0, 0.25]");
  CHECK_THROWS_WITH(sae::json_number(j, "text", file), "c.json: text = \"t\" is not a number");
  CHECK_THROWS_WITH(sae::json_number_or(j, "flag", 1, file), "c.json: flag = true is not a number");
  CHECK_THROWS_WITH(sae::json_string(j, "k", file), "c.json: k = 32 is not a text");
  CHECK_THROWS_WITH(sae::json_bool(j, "k", file), "c.json: k = 32 is not true or false");
  CHECK_THROWS_WITH(sae::json_bool_or(j, "list", true, file), "c.json: list = [1] is not true or false");
  CHECK_THROWS_WITH(sae::json_integer(json::array(), "k", file), ContainsSubstring("a JSON object is needed"));

  CHECK_NOTHROW(sae::json_only(parse("{\"a\": 1}"), {"a", "b"}, file));
  CHECK_THROWS_WITH(sae::json_only(parse("{\"a\": 1, \"c\": 1}"), {"a", "b"}, file),
                    "c.json: c is not a known field; the fields are a, b");
  CHECK_THROWS_AS(sae::json_only(json(3), {"a"}, file), sae::FileError);
}

TEST_CASE("json: foreign text in a message stays on one line and short", "[files][json]") {
  const json j = parse("{\"k\": \"a\\nb" + std::string(1000, 'x') + "\"}");
  try {
    sae::json_integer(j, "k", "c.json");
    FAIL("a text is no integer");
  } catch (const sae::FileError& error) {
    const std::string text = error.what();
    CHECK(text.find('\n') == std::string::npos);
    CHECK(text.size() < 200);
  }
}
