// A real, tiny language model, where the environment says where it is: SAE_SHARED_DATA/stories260K/stories260K.gguf.
#include <sae/host/cross_entropy.hpp>
#include <sae/host/generate.hpp>
#include <sae/host/llama_cpp.hpp>

#include <cmath>
#include <cstdlib>
#include <filesystem>

#include "catch_compat.hpp"

using namespace sae;

TEST_CASE("stories260K: its own story is likely, an unchanged write-back changes nothing, zeros are the uniform guess",
          "[host][llama_cpp][shared]") {
  const char* folder = std::getenv("SAE_SHARED_DATA");
  const std::string path = std::string(folder == nullptr ? "" : folder) + "/stories260K/stories260K.gguf";
  if (folder == nullptr || !std::filesystem::exists(path))
    SAE_SKIP_TEST("SAE_SHARED_DATA/stories260K/stories260K.gguf is not there");
  LlamaCpp model(path, {.context = 256});
  REQUIRE(model.shape().width == 64);
  REQUIRE(model.shape().layers == 5);

  std::vector<Token> story;
  for (std::uint64_t seed = 0; seed < 4; ++seed)
    for (const Token token : generate(model, {}, {.tokens = 255, .temperature = 1, .seed = seed, .stop_at_end = false}))
      story.push_back(token);
  const Windows windows(story, model.bos(), {.context = 256, .tokens = 0});
  REQUIRE(windows.count() == 4);

  const Site site{2, SiteKind::residual};
  const std::vector<Condition> conditions = {
      {"clean", {}},
      {"same", {{site, [](MatrixMap<float>, Index) {}, true}}},
      {"zero", {{site, [](MatrixMap<float> x, Index) { x.setZero(); }, true}}},
  };
  const auto results = compare_conditions(model, windows, std::span<const Condition>(conditions));
  CHECK(results[0].cross_entropy < 2.2);  // about the entropy of what it writes; a uniform guess is 6.24
  CHECK(results[1].cross_entropy == results[0].cross_entropy);
  CHECK(results[1].kl == 0);
  CHECK(std::abs(results[2].cross_entropy - 6.238325) < 1e-6);
}
