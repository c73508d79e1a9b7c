// What the tests of the verbs that run a language model share: a tiny random model that they write, a text, and SAEs.
#pragma once
#include <sae/activations/topk.hpp>
#include <sae/formats/saelens.hpp>
#include <sae/host/collected_folder.hpp>
#include <sae/host/llama_cpp.hpp>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "catch_compat.hpp"
#include "cli_test.hpp"
#include "run_program.hpp"
#include "tiny_gguf.hpp"

#ifdef SAE_TEST_PROGRAM

namespace sae_test {

using namespace sae;
using Sae = SparseAutoencoder<Dynamic, Dynamic, TopK, float>;

inline Sae some_sae(Index width, Index latents = 96) {
  Sae sae(width, latents, TopK{.k = 6});
  Random random(4);
  for (Index i = 0; i < sae.W_dec().size(); ++i)
    sae.W_dec().data()[i] = static_cast<float>(random.normal() / std::sqrt(static_cast<double>(width)));
  sae.W_enc() = sae.W_dec();
  return sae;
}

/// A folder with a model, a text and SAEs.
struct World {
  World() {
    write_text(folder / "tiny.gguf", tiny_gguf_bytes(make_tiny_llama()));
    Random random(2);
    const std::vector<std::string> words = {"the", "cat", "and", "a", "dog", "in", "house", "on", "hill", "of", "men", "inn"};
    for (int i = 0; i < 150; ++i) text += (i == 0 ? "" : " ") + words[random.below(words.size())];
    write_text(folder / "text.txt", text);
    save_saelens(sae, folder / "sae", {.hook_name = "blocks.1.hook_resid_post"});
    save_saelens(sae, folder / "nowhere");  // does not say where it belongs
    save_saelens(some_sae(16), folder / "narrow", {.hook_name = "blocks.1.hook_resid_post"});
  }
  std::string at(const std::string& name) const { return (folder / name).string(); }
  /// VERB --model .. --text .. --context 32 --tokens 0 --model-threads 1, and more.
  Words words(const std::string& verb, const Words& more, bool with_text = true) const {
    Words out = {verb, "--model", at("tiny.gguf"), "--model-threads", "1"};
    if (with_text) out.insert(out.end(), {"--text", at("text.txt"), "--context", "32", "--tokens", "0"});
    out.insert(out.end(), more.begin(), more.end());
    return out;
  }
  Finished run(const std::string& verb, const Words& more, bool with_text = true) const {
    return run_sae(words(verb, more, with_text));
  }
  LlamaCpp model() const { return LlamaCpp(at("tiny.gguf"), {.context = 64, .threads = 1}); }
  Windows windows(const LlamaCpp& model) const { return cut_windows(model, text, {.context = 32, .tokens = 0}); }

  TempFolder folder;
  std::string text;
  Sae sae = some_sae(32);
};

/// The same, and leaves nothing.
inline void check_refused(const World& world, const Finished& done, const std::string& why,
                          const std::filesystem::path& out = {}) {
  check_refused(done, why);
  if (!out.empty()) {
    CHECK_FALSE(std::filesystem::exists(out));
    CHECK_FALSE(std::filesystem::exists(out.string() + ".partial"));
  }
  CHECK(world.folder.names() == std::vector<std::string>{"narrow", "nowhere", "sae", "text.txt", "tiny.gguf"});
}
inline nlohmann::json parsed(const Finished& done) {
  INFO(done.err);
  REQUIRE(done.code == 0);
  return nlohmann::json::parse(done.out);
}
inline Matrix<float> rows_of(const CollectedFolder& data, const Site& site) {
  const NpyFolder rows = data.rows_of(site);
  Matrix<float> out(rows.rows(), rows.width());
  rows.read_rows(0, rows.rows(), out.data(), rows.width());
  return out;
}

}  // namespace sae_test

#endif
