#include <sae/files/yaml.hpp>

#include <cmath>
#include <limits>
#include <string>

#include "catch_compat.hpp"
#include "temp_folder.hpp"

namespace {

using nlohmann::json;

json parsed(const std::string& text) { return sae::parse_yaml(text, "c.yaml"); }
void same(const std::string& yaml, const std::string& as_json) {
  CAPTURE(yaml);
  CHECK(parsed(yaml) == json::parse(as_json));
}
void refused(const std::string& yaml, const std::string& words) {
  CAPTURE(yaml);
  CHECK_THROWS_WITH(parsed(yaml), "c.yaml: " + words);
}

}  // namespace

TEST_CASE("yaml: the settings beside published models", "[files][yaml]") {
  same(R"(# transcoders of one model
model_name: "google/gemma-2-2b"
model_kind: transcoder_set
feature_input_hook: 'mlp.hook_in'   # where they read
scan: gemma-2-2b
transcoders:
- "hf://google/gemma-scope-2b-pt-transcoders/layer_0/width_16k/average_l0_76/params.npz"
- hf://google/gemma-scope-2b-pt-transcoders/layer_1/params.npz
)",
       R"({"model_name": "google/gemma-2-2b", "model_kind": "transcoder_set", "feature_input_hook": "mlp.hook_in",
           "scan": "gemma-2-2b", "transcoders":
           ["hf://google/gemma-scope-2b-pt-transcoders/layer_0/width_16k/average_l0_76/params.npz",
            "hf://google/gemma-scope-2b-pt-transcoders/layer_1/params.npz"]})");
  same(
      R"(_wandb:
    value:
        cli_version: 0.19.8
        m:
            - "1": trainer/global_step
              "6":
                - 3
              "7": []
            -   a: 1
                b: 2
        t:
            "1":
                - 1
                - 5
            "4": 3.11.11
d_model:
    desc: null
    value: 2048
lr:
    value: 0.0004
betas:
  value: [0.9, 0.999, -1e-4]
nothing:
empty:
    value: {}
dead:
    value: false
)",
      R"({"_wandb": {"value": {"cli_version": "0.19.8", "m": [{"1": "trainer/global_step", "6": [3], "7": []}, {"a": 1, "b": 2}],
           "t": {"1": [1, 5], "4": "3.11.11"}}}, "d_model": {"desc": null, "value": 2048}, "lr": {"value": 0.0004},
           "betas": {"value": [0.9, 0.999, -1e-4]}, "nothing": null, "empty": {"value": {}}, "dead": {"value": false}})");
  same("\xef\xbb\xbf---\r\nsae:\r\n  k: 64\r\n  layers:\r\n  - 1\r\n  -\r\n    x: 2\r\n  -\r\n...\r\n\r\n",
       R"({"sae": {"k": 64, "layers": [1, {"x": 2}, null]}})");
  same("{k: 1, betas: [0.9, 0.999]}\n", R"({"k": 1, "betas": [0.9, 0.999]})");
  same("", "null");
  same("# nothing\n\n", "null");
  same("- - 1\n  - 2\n- [3, [4, {a: 5, 'b c': [6]}], ]\n-   - 7\n", "[[1, 2], [3, [4, {\"a\": 5, \"b c\": [6]}]], [7]]");
  same("  a: 1\n  b:\n    - x\n    - y: 1\n      z: 2\n    -\n      - 3\n", R"({"a": 1, "b": ["x", {"y": 1, "z": 2}, [3]]})");
  same("a:\n  word\nb:\n  [1, 2]\n", R"({"a": "word", "b": [1, 2]})");
}

TEST_CASE("yaml: scalars are what the core schema says", "[files][yaml]") {
  const auto is = [](const std::string& yaml, const json& value) {
    CAPTURE(yaml);
    const json got = parsed("x: " + yaml).at("x");
    CHECK(got == value);
    CHECK(got.type() == value.type());
    CHECK(parsed("- [" + yaml + "]")[0][0] == value);
  };
  for (const char* null : {"null", "Null", "NULL", "~"}) is(null, nullptr);
  for (const char* yes : {"true", "True", "TRUE"}) is(yes, true);
  for (const char* no : {"false", "False", "FALSE"}) is(no, false);
  is("0", 0);
  is("-7", -7);
  is("+7", 7);
  is("1e-4", 1e-4);
  is("1.", 1.0);
  is(".5", 0.5);
  is("-.5e+3", -500.0);
  is("9223372036854775807", std::numeric_limits<std::int64_t>::max());
  is("18446744073709551615", std::numeric_limits<std::uint64_t>::max());
  is("18446744073709551616", 18446744073709551616.0);
  is("-.inf", -std::numeric_limits<double>::infinity());
  is(".Inf", std::numeric_limits<double>::infinity());
  CHECK(std::isnan(parsed("x: .nan").at("x").get<double>()));
  for (const char* text :
       {"yes", "on", "tRUE", "0x10",   "007",  "1_000",   "2024-01-01", "1.2.3", "12:30", "1e",  "a-b", "a:b",
        "a#b", "-x", "?x",   "hf://x", "it's", "a \"b\"", "x y  z",     "+",     ".",     "nan", "inf", "é"})
    is(text, text);
  is("'it''s # all: here'", "it's # all: here");
  is("\"a\\n\\t\\\"\\\\\\/ \\x41\\u03b8\\U0001F600\"", "a\n\t\"\\/ Aθ😀");
  is("''", "");
  is("\"7\"", "7");
  same("a: b # comment\nc: \"d\" # comment\ne: [1] # comment\nf: # comment\n  - g # comment\n'h' : i\n\"j: k\": l\n",
       R"({"a": "b", "c": "d", "e": [1], "f": ["g"], "h": "i", "j: k": "l"})");
  same("a: {b: , c: {d: 1}, e: x}", R"({"a": {"b": null, "c": {"d": 1}, "e": "x"}})");
  same("a: {\"b\":1, 'c': 2, }", R"({"a": {"b": 1, "c": 2}})");
  same("1: x\ntrue: y\n", R"({"1": "x", "true": "y"})");
}

TEST_CASE("yaml: what is not read is refused by its line", "[files][yaml]") {
  const std::string quote = "texts over several lines are not read, quote them in one";
  refused("a: &x 1", "line 1 has an anchor or alias (&x 1), which is not read");
  refused("a: 1\nb: *x", "line 2 has an anchor or alias (*x), which is not read");
  refused("*x : 1", "line 1 has an anchor or alias (*x), which is not read");
  refused("- [1, *x]", "line 1 has an anchor or alias (*x), which is not read");
  refused("a: !!python/object:os.system x", "line 1 has a tag (!!python/object:os.system x), which is not read");
  refused("a: |\n  text", "line 1 begins a text of several lines (|), which is not read; quote it in one");
  refused("a:\n  - >-\n    text", "line 2 begins a text of several lines (>-), which is not read; quote it in one");
  refused("%YAML 1.2\n---\na: 1", "line 1 is a directive, which is not read");
  refused("a: 1\n---\nb: 2", "line 2 begins a second document; one document a file is read");
  refused("---\n---\na: 1", "line 2 begins a second document; one document a file is read");
  refused("a: 1\n...\nb: 2", "line 3 stands behind the end of the document; one document a file is read");
  refused("<<: {a: 1}", "line 1 merges another map, which is not read");
  refused("? a\n: b", "line 1 is no \"key: value\" (" + quote + ")");
  refused("? a: b", "line 1 has \"? \" where a key or value is needed");
  refused("a: 1\na: 2", "line 2 has the key a a second time");
  refused("1: x\n'1': y", "line 2 has the key 1 a second time");
  refused("a: {b: 1, b: 2}", "line 1 has the key b a second time");
  refused("a: one\n  two", "line 2 is indented deeper than its list or map; " + quote);
  refused("a:\n  one\n  two", "line 3 goes on with the line before it; " + quote);
  refused("- a\n  b", "line 2 is indented deeper than its list or map; " + quote);
  refused("a:\n    b: 1\n  c: 2", "line 3 is indented deeper than its list or map; " + quote);
  refused("  a: 1\nb: 2", "line 2 does not belong to the list or map before it");
  refused("a: 1\n- b", "line 2 is an item of a list where a key is needed");
  refused("- a\nb: 1", "line 2 does not belong to the list or map before it");
  refused("{a: 1}\n{b: 2}", "line 2 goes on with the line before it; " + quote);
  refused("word", "line 1 is no \"key: value\" (" + quote + ")");
  refused("a: b: c", "line 1 has \": c\" behind a value; a text with \": \" or \" #\" in it is quoted");
  refused("a: \"b\" c", "line 1 has \"c\" behind a value; a text with \": \" or \" #\" in it is quoted");
  refused("a: [1] 2", "line 1 has \"2\" behind a value; a text with \": \" or \" #\" in it is quoted");
  refused("a: \"b", "line 1 has a quote that it does not close; texts over several lines are not read");
  refused("a: 'b''", "line 1 has a quote that it does not close; texts over several lines are not read");
  refused("a: \"\\q\"", "line 1 has an escape that is not read: \\q");
  refused("a: \"\\ud800\"", "line 1 has an escape that is not read: \\ud800");
  refused("a: \"\\x4\"", "line 1 has an escape that is not read: \\x4\"");
  refused("a: \"\\", "line 1 has an escape that is not read: \\");
  refused("a: [1,\n  2]", "line 1 opens a [ that it does not close; lists over several lines are written with dashes");
  refused("a: {b: 1", "line 1 opens a { that it does not close; lists over several lines are written with dashes");
  refused("a: [1, , 2]", "line 1 has nothing where a key or value is needed");
  refused("a: [1 {]", "line 1 has \"{]\" where , or ] is needed");
  refused("a: [1}", "line 1 has \"}\" where , or ] is needed");
  refused("a: {b}", "line 1 has no : behind the key b");
  refused("a: {[1]: 2}", "line 1 has a list or map as a key");
  refused("a: ]", "line 1 has \"]\", which has to be quoted");
  refused("a: @b", "line 1 has \"@b\", which has to be quoted");
  refused(": a", "line 1 has nothing where a key or value is needed");
  refused("a:\n\tb: 1", "line 2 is indented by a tab; YAML takes spaces");
  refused("a: b\x01", "line 1 holds a control character");
  refused(std::string("a: b\0", 5), "line 1 holds a control character");
  refused("a: \xff", "is not valid YAML: it is not UTF-8");
}

TEST_CASE("yaml: depth is bounded, whichever way it grows", "[files][yaml]") {
  std::string deep;
  for (int i = 0; i < 1000; ++i) deep += std::string(static_cast<std::size_t>(i), ' ') + "a:\n";
  refused(deep, "line 65 is nested deeper than 64 levels");
  std::string dashes;
  for (int i = 0; i < 300000; ++i) dashes += "- ";
  refused(dashes + "x", "line 1 is nested deeper than 64 levels");
  refused("a: " + std::string(300000, '['), "line 1 is nested deeper than 64 levels");
  std::string maps = "a: ";
  for (int i = 0; i < 100000; ++i) maps += "{a: ";
  refused(maps, "line 1 is nested deeper than 64 levels");
  CHECK(parsed("a: " + std::string(60, '[') + std::string(60, ']')).at("a").is_array());
}

TEST_CASE("yaml: files, and their largest size", "[files][yaml]") {
  const TempFolder folder;
  sae::atomic_write_text(folder / "c.yaml", "a: 1\n");
  CHECK(sae::read_yaml(folder / "c.yaml").at("a") == 1);
  CHECK_THROWS_WITH(sae::read_yaml(folder / "c.yaml", 3),
                    Catch::Matchers::ContainsSubstring("c.yaml: has 5 bytes, at most 3 are taken"));
  CHECK_THROWS_AS(sae::read_yaml(folder / "none.yaml"), sae::FileError);
  CHECK_THROWS_WITH(sae::read_yaml(folder.path()), Catch::Matchers::ContainsSubstring("is not a regular file"));
}
