// A tiny random language model of the Llama architecture, and its GGUF file: what a test of a host needs and may write itself.
#pragma once
#include <sae/core/random.hpp>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace sae_test {

struct TinyConfig {
  sae::Index width = 32, layers = 3, heads = 4, kv_heads = 2, hidden = 48, context = 64;
  bool tied = false;  // the unembedding is the embedding
  std::uint64_t seed = 1;
  double epsilon = 1e-5, rope_base = 10000;
};

/// Weights as a Llama has them; a matrix [out x in] maps x to x W^T.
struct TinyLlama {
  struct Layer {
    sae::Matrix<float> attn_norm, q, k, v, attn_out, mlp_norm, gate, up, down;
  };
  TinyConfig config;
  std::vector<std::string> vocabulary;  // as SentencePiece writes it, U+2581 for a space
  sae::Matrix<float> embedding;         // [V x D]
  std::vector<Layer> layers;
  sae::Matrix<float> output_norm;  // [1 x D]
  sae::Matrix<float> unembedding;  // [V x D]
};

/// <unk> <s> </s>, the space, the lower-case letters, some joined ones: no byte tokens, so other bytes cannot be spelled.
inline std::vector<std::string> tiny_vocabulary() {
  const std::string space = "\xE2\x96\x81";
  std::vector<std::string> out = {"<unk>", "<s>", "</s>", space};
  for (char c = 'a'; c <= 'z'; ++c) out.emplace_back(1, c);
  for (const char* word : {"a", "t", "th", "the", "s", "w", "an", "and", "he", "in", "i", "b", "o", "of", "c"})
    out.push_back(space + word);
  for (const char* word : {"he", "in", "th", "er", "an", "ou", "on", "re", "at", "en", "nd", "it"}) out.emplace_back(word);
  return out;
}

inline TinyLlama make_tiny_llama(const TinyConfig& config = {}) {
  TinyLlama model;
  model.config = config;
  model.vocabulary = tiny_vocabulary();
  sae::Random random(config.seed);
  const auto matrix = [&](sae::Index rows, sae::Index cols, double scale, double mean = 0) {
    sae::Matrix<float> out(rows, cols);
    for (sae::Index i = 0; i < out.size(); ++i) out.data()[i] = static_cast<float>(mean + scale * random.normal());
    return out;
  };
  const sae::Index d = config.width, head = d / config.heads, v = static_cast<sae::Index>(model.vocabulary.size());
  const double scale = 1 / std::sqrt(static_cast<double>(d));
  model.embedding = matrix(v, d, 1);
  for (sae::Index l = 0; l < config.layers; ++l) {
    TinyLlama::Layer layer;
    layer.attn_norm = matrix(1, d, 0.2, 1);
    layer.q = matrix(config.heads * head, d, 2 * scale);
    layer.k = matrix(config.kv_heads * head, d, 2 * scale);
    layer.v = matrix(config.kv_heads * head, d, scale);
    layer.attn_out = matrix(d, config.heads * head, scale);
    layer.mlp_norm = matrix(1, d, 0.2, 1);
    layer.gate = matrix(config.hidden, d, scale);
    layer.up = matrix(config.hidden, d, scale);
    layer.down = matrix(d, config.hidden, scale);
    model.layers.push_back(layer);
  }
  model.output_norm = matrix(1, d, 0.2, 1);
  model.unembedding = config.tied ? model.embedding : matrix(v, d, 2 * scale);
  return model;
}

/// GGUF version 3, all tensors float32, aligned to 32 bytes.
class GgufWriter {
 public:
  void text(std::string_view key, std::string_view value) { put_key(key, 8), put_string(metadata_, value); }
  void number(std::string_view key, sae::Index value) { put_key(key, 4), put(metadata_, static_cast<std::uint32_t>(value)); }
  void real(std::string_view key, double value) { put_key(key, 6), put(metadata_, static_cast<float>(value)); }
  void flag(std::string_view key, bool value) { put_key(key, 7), put(metadata_, static_cast<std::uint8_t>(value)); }
  void texts(std::string_view key, const std::vector<std::string>& values) {
    put_array(key, 8, values.size());
    for (const std::string& value : values) put_string(metadata_, value);
  }
  template <class T>
  void numbers(std::string_view key, const std::vector<T>& values) {
    put_array(key, std::is_same_v<T, float> ? 6 : 5, values.size());
    for (const T value : values) put(metadata_, value);
  }
  /// A vector for one row, else a matrix [rows x cols] (GGUF counts the fastest dimension first).
  void tensor(std::string_view name, const sae::Matrix<float>& values) {
    put_string(tensors_, name);
    put(tensors_, static_cast<std::uint32_t>(values.rows() == 1 ? 1 : 2));
    put(tensors_, static_cast<std::uint64_t>(values.cols()));
    if (values.rows() != 1) put(tensors_, static_cast<std::uint64_t>(values.rows()));
    put(tensors_, std::uint32_t{0});
    put(tensors_, static_cast<std::uint64_t>(data_.size()));
    data_.append(reinterpret_cast<const char*>(values.data()), static_cast<std::size_t>(values.size()) * sizeof(float));
    pad(data_);
    ++tensor_count_;
  }
  std::string bytes() const {
    std::string out = "GGUF";
    put(out, std::uint32_t{3});
    put(out, tensor_count_);
    put(out, key_count_);
    out += metadata_ + tensors_;
    pad(out);
    return out + data_;
  }

 private:
  template <class T>
  static void put(std::string& out, T value) {
    out.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  static void put_string(std::string& out, std::string_view value) {
    put(out, static_cast<std::uint64_t>(value.size()));
    out += value;
  }
  static void pad(std::string& out) { out.resize((out.size() + 31) / 32 * 32, '\0'); }
  void put_key(std::string_view key, std::uint32_t type) {
    put_string(metadata_, key);
    put(metadata_, type);
    ++key_count_;
  }
  void put_array(std::string_view key, std::uint32_t type, std::size_t count) {
    put_key(key, 9);
    put(metadata_, type);
    put(metadata_, static_cast<std::uint64_t>(count));
  }

  std::string metadata_, tensors_, data_;
  std::uint64_t tensor_count_ = 0, key_count_ = 0;
};

inline std::string tiny_gguf_bytes(const TinyLlama& model) {
  const TinyConfig& c = model.config;
  GgufWriter file;
  file.text("general.architecture", "llama");
  file.text("general.name", "tiny random llama");
  file.number("llama.context_length", c.context);
  file.number("llama.embedding_length", c.width);
  file.number("llama.block_count", c.layers);
  file.number("llama.feed_forward_length", c.hidden);
  file.number("llama.attention.head_count", c.heads);
  file.number("llama.attention.head_count_kv", c.kv_heads);
  file.number("llama.rope.dimension_count", c.width / c.heads);
  file.real("llama.rope.freq_base", c.rope_base);
  file.real("llama.attention.layer_norm_rms_epsilon", c.epsilon);
  file.text("tokenizer.ggml.model", "llama");
  file.texts("tokenizer.ggml.tokens", model.vocabulary);
  std::vector<float> scores;
  std::vector<std::int32_t> types;
  for (std::size_t i = 0; i < model.vocabulary.size(); ++i) {
    scores.push_back(i < 3 ? 0 : static_cast<float>(model.vocabulary[i].size()));  // SentencePiece joins the best score first
    types.push_back(i == 0 ? 2 : i < 3 ? 3 : 1);                                   // unknown, control, normal
  }
  file.numbers("tokenizer.ggml.scores", scores);
  file.numbers("tokenizer.ggml.token_type", types);
  file.number("tokenizer.ggml.bos_token_id", 1);
  file.number("tokenizer.ggml.eos_token_id", 2);
  file.number("tokenizer.ggml.unknown_token_id", 0);
  file.flag("tokenizer.ggml.add_space_prefix", true);
  file.tensor("token_embd.weight", model.embedding);
  for (std::size_t l = 0; l < model.layers.size(); ++l) {
    const auto name = [&](const char* part) { return "blk." + std::to_string(l) + "." + part + ".weight"; };
    const TinyLlama::Layer& layer = model.layers[l];
    file.tensor(name("attn_norm"), layer.attn_norm);
    file.tensor(name("attn_q"), layer.q);
    file.tensor(name("attn_k"), layer.k);
    file.tensor(name("attn_v"), layer.v);
    file.tensor(name("attn_output"), layer.attn_out);
    file.tensor(name("ffn_norm"), layer.mlp_norm);
    file.tensor(name("ffn_gate"), layer.gate);
    file.tensor(name("ffn_up"), layer.up);
    file.tensor(name("ffn_down"), layer.down);
  }
  file.tensor("output_norm.weight", model.output_norm);
  if (!c.tied) file.tensor("output.weight", model.unembedding);
  return file.bytes();
}

/// A file that is gone when the object is.
class TemporaryFile {
 public:
  TemporaryFile(const std::string& name, std::string_view bytes) {
    static int number = 0;
    path_ = (std::filesystem::temp_directory_path() /
             ("sae-" + std::to_string(reinterpret_cast<std::uintptr_t>(this)) + "-" + std::to_string(++number) + "-" + name))
                .string();
    std::FILE* out = std::fopen(path_.c_str(), "wb");
    const bool good = out != nullptr && std::fwrite(bytes.data(), 1, bytes.size(), out) == bytes.size();
    if (out == nullptr || std::fclose(out) != 0 || !good) throw std::runtime_error("cannot write " + path_);
  }
  ~TemporaryFile() { std::remove(path_.c_str()); }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace sae_test
