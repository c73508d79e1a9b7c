// The language_model example as a program, on the tiny random model and a text that this model wrote.
#include <sae/formats/saelens.hpp>
#include <sae/host/generate.hpp>
#include <sae/host/llama_cpp.hpp>

#include <cmath>
#include <string>

#include "catch_compat.hpp"
#include "example_output.hpp"
#include "tiny_gguf.hpp"

#ifdef SAE_TEST_EXAMPLES

using namespace sae;

TEST_CASE("language_model: from a model and a text to a steered autoencoder, with figures that hold", "[examples][llama_cpp]") {
  const TempFolder folder;
  const std::string path = (folder / "tiny.gguf").string(), text_path = (folder / "text.txt").string();
  sae_test::write_text(path, sae_test::tiny_gguf_bytes(sae_test::make_tiny_llama()));
  std::string text;
  {
    LlamaCpp model(path, {.context = 64, .threads = 1});
    for (std::uint64_t seed = 0; seed < 80; ++seed)
      for (const Token token : generate(model, {}, {.tokens = 63, .temperature = 1, .seed = seed, .stop_at_end = false}))
        if (token > 2) text += model.token_text(token);  // not <unk>, <s> and </s>, which cannot be spelled
  }
  sae_test::write_text(text_path, text);
  const auto output = sae_test::run_example("language_model", {path, text_path, "50000", "1", (folder / "sae").string()});
  INFO(output.text());

  CHECK(output.line("model: ") == "model: tiny random llama, activations of residual-1, width 32");
  const std::vector<double> rows = output.numbers("rows: ");  // kept, BOS, too large
  REQUIRE(rows.size() == 4);
  CHECK(rows[0] > 3000);
  CHECK(rows[0] + rows[2] == 63 * rows[1]);  // a window is BOS and 63 tokens
  CHECK(rows[2] == 0);
  const std::vector<double> report = output.numbers("autoencoder: ");  // latents, L0, explained variance, rows
  REQUIRE(report.size() == 4);
  CHECK(report[0] == 256);
  CHECK(report[1] > 7);
  CHECK(report[1] <= 8);
  CHECK(report[2] > 0.8);
  CHECK(report[3] > 250);
  const std::vector<double> ce = output.numbers("cross-entropy: ");  // clean, with the autoencoder, zeros, mean
  REQUIRE(ce.size() == 4);
  const double uniform = std::log(static_cast<double>(sae_test::tiny_vocabulary().size()));
  CHECK(ce[0] < uniform);  // the model knows its own text, though it is cut into tokens in another way than it was written
  CHECK(ce[1] > ce[0]);
  CHECK(ce[1] < ce[0] + 0.15);
  CHECK(ce[2] > ce[0] + 1);
  CHECK(ce[3] > ce[0] + 1);
  const std::vector<double> recovered = output.numbers("loss recovered: ");
  REQUIRE(recovered.size() == 2);
  CHECK(recovered[0] == Approx((ce[2] - ce[1]) / (ce[2] - ce[0])).margin(0.002));
  CHECK(recovered[1] == Approx((ce[3] - ce[1]) / (ce[3] - ce[0])).margin(0.002));
  CHECK(recovered[1] > 0.9);

  const std::vector<double> latent = output.numbers("active in");  // latent, percent
  CHECK(latent.at(1) >= 0.1);
  CHECK(latent.at(1) <= 2);
  const auto contexts = output.table("active in", "  ");
  REQUIRE(contexts.size() == 5);
  for (std::size_t i = 1; i < contexts.size(); ++i) CHECK(contexts[i].at(0) <= contexts[i - 1].at(0));
  const std::string steered = output.line("scale " + sae_test::lines_of(output.text()).at(12).substr(6, 3));
  CHECK(output.line("scale 0: ").substr(7) != steered.substr(steered.find(": ")));

  const auto saved = load_saelens<SparseAutoencoder<Dynamic, Dynamic, TopK>>(folder / "sae");
  CHECK(saved.d_in() == 32);
  CHECK(saved.latents() == 256);
  CHECK(saved.activation().k == 8);
  CHECK(read_saelens_config(folder / "sae").metadata.hook_name == "blocks.1.hook_resid_post");
}

#endif
