// A direction as a file for llama.cpp's own control vectors: the text is that of our own steering.
#include <sae/activations/topk.hpp>
#include <sae/formats/control_vector.hpp>
#include <sae/host/generate.hpp>
#include <sae/host/llama_cpp.hpp>
#include <sae/interpret/interventions.hpp>
#include <sae/models/sparse_autoencoder.hpp>

#include <gguf.h>
#include <llama.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "catch_compat.hpp"
#include "temp_folder.hpp"
#include "tiny_gguf.hpp"

using namespace sae;

namespace {

/// What llama.cpp finds in a control vector: the direction after each layer from 1 on, one behind the other, as
/// common_control_vector_load makes it.
std::vector<float> read_control_vector(const std::string& path, std::size_t width, int layers) {
  ggml_context* data = nullptr;
  gguf_context* const file = gguf_init_from_file(path.c_str(), {.no_alloc = false, .ctx = &data});
  REQUIRE(file != nullptr);
  std::vector<float> out(width * static_cast<std::size_t>(layers - 1));
  CHECK(std::string(gguf_get_val_str(file, gguf_find_key(file, "general.architecture"))) == "controlvector");
  REQUIRE(gguf_get_n_tensors(file) == 1);
  const std::string name = gguf_get_tensor_name(file, 0);
  REQUIRE(name.starts_with("direction."));
  const int layer = std::stoi(name.substr(10));
  REQUIRE(layer >= 1);
  const ggml_tensor* const tensor = ggml_get_tensor(data, name.c_str());
  REQUIRE(tensor->type == GGML_TYPE_F32);
  REQUIRE(ggml_nelements(tensor) == static_cast<std::int64_t>(width));
  std::copy_n(static_cast<const float*>(tensor->data), width, out.data() + width * static_cast<std::size_t>(layer - 1));
  gguf_free(file);
  ggml_free(data);
  return out;
}

}  // namespace

TEST_CASE("a control vector gives in llama.cpp the text that our own steering gives", "[host][llama_cpp][formats]") {
  const sae_test::TinyLlama weights = sae_test::make_tiny_llama();
  const sae_test::TemporaryFile file("tiny.gguf", sae_test::tiny_gguf_bytes(weights));
  LlamaCpp ours(file.path(), {.context = 64, .threads = 2});
  SparseAutoencoder sae(32, 96, TopK{.k = 6}, {.initialization = {.seed = 5}});
  const Site site{1, SiteKind::residual};
  constexpr float scale = 9;
  constexpr Index latent = 7, length = 16;
  const GenerateOptions how{.tokens = length, .stop_at_end = false};
  const std::vector<Token> prompt = ours.tokenize("the cat");
  const std::vector<Token> plain = generate(ours, std::span<const Token>(prompt), how);
  const std::vector<Tap> push{steer_latent(site, sae, latent, scale, EditedRows::all())};
  const std::vector<Token> steered = generate(ours, std::span<const Token>(prompt), how, push);
  CHECK(steered != plain);

  TempFolder temp;
  std::vector<float> direction(sae.W_dec().row(latent).data(), sae.W_dec().row(latent).data() + 32);
  for (float& number : direction) number *= scale;
  save_control_vector(temp / "vector.gguf", direction, site.layer, "llama");

  llama_model_params model_params = llama_model_default_params();
  const std::unique_ptr<llama_model, decltype(&llama_model_free)> model(
      llama_model_load_from_file(file.path().c_str(), model_params), &llama_model_free);
  REQUIRE(model);
  llama_context_params params = llama_context_default_params();
  params.n_ctx = 64;
  const std::unique_ptr<llama_context, decltype(&llama_free)> context(llama_init_from_model(model.get(), params), &llama_free);
  REQUIRE(context);
  const int layers = llama_model_n_layer(model.get());
  const std::vector<float> data = read_control_vector((temp / "vector.gguf").string(), 32, layers);
  REQUIRE(llama_set_adapter_cvec(context.get(), data.data(), data.size(), 32, 1, layers - 1) == 0);
  std::vector<llama_token> tokens{ours.bos()};
  tokens.insert(tokens.end(), prompt.begin(), prompt.end());
  std::vector<Token> theirs;
  for (Index n = 0; n < length; ++n) {
    REQUIRE(llama_decode(context.get(), llama_batch_get_one(tokens.data(), static_cast<std::int32_t>(tokens.size()))) == 0);
    const float* const logits = llama_get_logits_ith(context.get(), -1);
    const int vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model.get()));
    theirs.push_back(static_cast<Token>(std::max_element(logits, logits + vocabulary) - logits));
    tokens = {theirs.back()};
  }
  CHECK(theirs == steered);
}

TEST_CASE("a control vector that llama.cpp could not use is refused", "[host][llama_cpp][formats]") {
  TempFolder temp;
  const std::vector<float> direction{1, 2}, bad{1, std::numeric_limits<float>::infinity()};
  CHECK_THROWS_WITH(save_control_vector(temp / "v.gguf", direction, 0),
                    "save_control_vector: layer 0 is not at least 1: llama.cpp has no control vector after layer 0");
  CHECK_THROWS_WITH(save_control_vector(temp / "v.gguf", {}, 1), "save_control_vector: the direction has no numbers");
  CHECK_THROWS_WITH(save_control_vector(temp / "v.gguf", bad, 1),
                    "save_control_vector: number 1 of the direction is not finite");
  CHECK(temp.names().empty());
}
