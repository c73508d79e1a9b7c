// `sae dashboard` on a tiny random model that the test writes: from collected rows and as the model reads.
#include <sae/formats/saelens.hpp>
#include <sae/host/llama_cpp.hpp>

#include <cmath>

#include "catch_compat.hpp"
#include "cli_test.hpp"
#include "tiny_gguf.hpp"

#ifdef SAE_TEST_PROGRAM

using namespace sae;
using Catch::Matchers::ContainsSubstring;
using nlohmann::json;
using sae_test::Finished;
using sae_test::json_of;
using sae_test::run_sae;
using sae_test::with;
using sae_test::Words;

namespace {

using Sae = SparseAutoencoder<Dynamic, Dynamic, TopK, float>;

struct World {
  World() {
    sae_test::write_text(place.at("tiny.gguf"), sae_test::tiny_gguf_bytes(sae_test::make_tiny_llama()));
    Random random(2);
    const std::vector<std::string> words = {"the", "cat", "and", "a", "dog", "in", "house", "on", "hill", "of", "men", "inn"};
    std::string text;
    for (int i = 0; i < 150; ++i) text += (i == 0 ? "" : " ") + words[random.below(words.size())];
    sae_test::write_text(place.at("text.txt"), text);
    for (Index i = 0; i < sae.W_dec().size(); ++i)
      sae.W_dec().data()[i] = static_cast<float>(random.normal() / std::sqrt(32.0));
    sae.W_enc() = sae.W_dec();
    save_saelens(sae, place.at("sae"), {.hook_name = "blocks.1.hook_resid_post"});
  }
  Words text_words() const {
    return {
        "--model", place.at("tiny.gguf"), "--model-threads", "1", "--text", place.at("text.txt"), "--context", "32", "--tokens",
        "0"};
  }
  sae_test::Workplace place;
  Sae sae{32, 96, TopK{.k = 6}};
};

}  // namespace

TEST_CASE("dashboard shows the same of collected rows and from the model, with logits", "[cli][llama_cpp][dashboard]") {
  const World world;
  const auto& place = world.place;
  REQUIRE(run_sae(with({"collect", "--quiet", "--layer", "1", "--out", place.at("acts")}, world.text_words())).code == 0);
  const Finished of_data = run_sae({"dashboard", "--quiet", "--json", "--data", place.at("acts"), "--sae", place.at("sae"),
                                    "--model", place.at("tiny.gguf"), "--model-threads", "1"});
  const Finished of_text = run_sae(
      with({"dashboard", "--quiet", "--json", "--sae", place.at("sae"), "--out", place.at("page")}, world.text_words()));
  INFO(of_data.err + of_text.err);
  REQUIRE(of_data.code == 0);
  REQUIRE(of_text.code == 0);
  const json data = json_of(of_data), text = json_of(of_text);
  CHECK(data == text);
  CHECK(std::filesystem::exists(place.at("page/index.html")));

  // Each token's logit is its product with the decoder's row.
  const LlamaCpp model(place.at("tiny.gguf"), {.context = 64, .threads = 1});
  const Matrix<float> unembedding = model.unembedding();
  for (const std::size_t latent : {std::size_t{0}, std::size_t{42}}) {
    const json& promoted = data["shown"][latent]["promoted"];
    REQUIRE(promoted.size() == 10);
    const Eigen::VectorXf logits = unembedding * world.sae.W_dec().row(static_cast<Index>(latent)).transpose();
    for (const json& shown : promoted) {
      const auto token = shown["token"].get<Token>();
      CHECK(std::abs(shown["logit"].get<float>() - logits[token]) < 1e-5F);
      CHECK(shown["text"] == model.token_text(token));
    }
    CHECK(std::abs(promoted[0]["logit"].get<float>() - logits.maxCoeff()) < 1e-5F);
  }
}

TEST_CASE("dashboard refuses a text that fills no window, and a layer that is not there", "[cli][llama_cpp][dashboard]") {
  const World world;
  const auto refused = [&](const Words& more) {
    const Finished done =
        run_sae(with(with({"dashboard", "--quiet", "--out", world.place.at("page.html")}, world.text_words()), more));
    CHECK(done.code == 1);
    CHECK_FALSE(std::filesystem::exists(world.place.at("page.html")));
    return done.error();
  };
  CHECK_THAT(refused({"--sae", world.place.at("sae"), "--skip-tokens", "100000"}), ContainsSubstring("--skip-tokens 100000"));
  CHECK_THAT(refused({"--sae", world.place.at("sae"), "--layer", "0"}), ContainsSubstring("residual-1"));
  save_saelens(world.sae, world.place.at("high"), {.hook_name = "blocks.7.hook_resid_post"});
  CHECK_THAT(refused({"--sae", world.place.at("high")}), ContainsSubstring("layers 0 to 2"));
  sae_test::write_text(world.place.at("empty.txt"), "");
  const Finished empty = run_sae({"dashboard", "--quiet", "--json", "--sae", world.place.at("sae"), "--model",
                                  world.place.at("tiny.gguf"), "--text", world.place.at("empty.txt")});
  CHECK_THAT(empty.error(), ContainsSubstring("the text is empty"));
}

#endif
