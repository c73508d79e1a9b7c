#include <sae/report/latent_labels.hpp>

#include "catch_compat.hpp"
#include "run_program.hpp"

using namespace sae;
using Catch::Matchers::ContainsSubstring;

namespace {

LatentLabels labels_of(const std::string& text) {
  const TempFolder folder;
  sae_test::write_text(folder / "labels.jsonl", text);
  return read_labels(folder / "labels.jsonl", 10);
}
std::string refusal_of(const std::string& text) {
  try {
    labels_of(text);
  } catch (const FileError& error) {
    return error.what();
  }
  return "nothing was refused";
}

}  // namespace

TEST_CASE("labels are read in both spellings, the last one of a latent stands", "[latent_labels]") {
  const LatentLabels labels = labels_of(
      "{\"latent\": 7, \"label\": \"months\"}\n\n"
      "{\"modelId\": \"m\", \"index\": \"3\", \"description\": \"na\\u00efve\", \"typeName\": null}\r\n"
      "{\"index\": 4, \"description\": \"\"}\n"
      "{\"latent\": 7, \"label\": \"names of months\"}");
  CHECK(labels == LatentLabels{{3, "na\xC3\xAFve"}, {4, ""}, {7, "names of months"}});
  CHECK(labels_of("").empty());
}

TEST_CASE("a label that cannot be used is refused with its line", "[latent_labels]") {
  CHECK_THAT(refusal_of("{\"latent\": 1, \"label\": \"a\"}\n{\"latent\": 10, \"label\": \"b\"}"),
             ContainsSubstring("labels.jsonl, line 2: latent = 10 is not an integer in [0, 9]"));
  CHECK_THAT(refusal_of("{\"latent\": \"1\", \"label\": \"a\"}"), ContainsSubstring("latent = \"1\""));
  CHECK_THAT(refusal_of("{\"index\": \"x\", \"description\": \"a\"}"), ContainsSubstring("line 1"));
  CHECK_THAT(refusal_of("{\"label\": \"a\"}"), ContainsSubstring("index is missing"));
  CHECK_THAT(refusal_of("{\"latent\": 1}"), ContainsSubstring("description is missing"));
  CHECK_THAT(refusal_of("{\"latent\": 1, \"label\": 2}"), ContainsSubstring("is not a text"));
  CHECK_THAT(refusal_of("[1]"), ContainsSubstring("a JSON object is needed"));
  CHECK_THAT(refusal_of("{"), ContainsSubstring("not valid JSON"));
  CHECK_THAT(refusal_of("{\"latent\": 1, \"label\": \"" + std::string(4097, 'x') + "\"}"), ContainsSubstring("4097 bytes"));
}
