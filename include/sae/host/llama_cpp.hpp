#pragma once
#include <sae/host/llama_cpp_hook.hpp>

#include <ggml-backend.h>
#include <ggml.h>
#include <gguf.h>
#include <llama.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <limits>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace sae::inline SAE_ABI {

struct LlamaCppOptions {
  Index context = 256;           ///< most positions of one sequence, BOS included: 2 to 65536
  int threads = 0;               ///< of the model; 0: all cores
  bool half_cache = false;       ///< keep keys and values as f16 (llama.cpp's own default) instead of f32
  bool flash_attention = false;  ///< faster, in another order of sums
  int gpu_layers = 0;            ///< layers computed on a GPU, where llama.cpp was built for one; -1: all
  /// Silence llama.cpp's log, from then on and for the whole process (its errors then stand in the HostError).
  bool quiet = true;
};

/// A GGUF model run by llama.cpp (libllama), on the CPU by default: a `LanguageModel`.
///
/// Sites are nodes of llama.cpp's graph: residual-L is `l_out-L`, mlp_out-L is `ffn_out-L` (`ffn_moe_out-L` in a mixture of
/// experts), attn_out-L is `attn_out-L`. A model whose graph lacks a name is refused at that site, with the names it has.
/// A window is one batch: taps see all its rows in one call. Keys and values are f32 and flash attention is off unless asked
/// for, so that an unchanged write-back changes no bit and small edits can be told from rounding.
/// Taps at the last layer cost the logits of every row (llama.cpp computes the last layer for rows with logits only).
/// One run at a time; different objects may run in different threads. Errors: HostError, one sentence.
class LlamaCpp {
 public:
  explicit LlamaCpp(const std::string& path, const LlamaCppOptions& options = {}) : path_(path) {
    check_file(options);
    start_backend(options.quiet);
    load(options);
    probe();
  }

  ModelShape shape() const { return shape_; }
  /// `general.name` of the file, or the file's name without its ending.
  std::string name() const {
    char text[256];
    if (llama_model_meta_val_str(model_.get(), "general.name", text, sizeof text) > 0) return text;
    return std::filesystem::path(path_).stem().string();
  }
  const std::string& path() const { return path_; }
  Token bos() const { return llama_vocab_bos(vocabulary()); }
  /// Positions that the model was trained with; a longer context runs (rotary positions go on), but reads worse.
  Index trained_context() const { return llama_model_n_ctx_train(model_.get()); }
  /// The token ends a text or a turn.
  bool is_end(Token token) const { return in_vocabulary(token) && llama_vocab_is_eog(vocabulary(), token); }
  const std::vector<Site>& sites() const { return sites_; }

  /// Tokens of a text without BOS; marks such as "<s>" in the text are plain text.
  std::vector<Token> tokenize(std::string_view text) const {
    if (text.size() > static_cast<std::size_t>((std::numeric_limits<std::int32_t>::max)()))
      throw_host(path_, ": a text of ", text.size(), " bytes is too long to tokenize at once; cut it below 2^31");
    const auto size = static_cast<std::int32_t>(text.size());
    std::vector<Token> tokens(text.size() + 8);
    const auto into_tokens = [&] {
      return detail::guard_llama_abort("the text", [&] {
        return llama_tokenize(vocabulary(), text.data(), size, tokens.data(), static_cast<std::int32_t>(tokens.size()), false,
                              false);
      });
    };
    std::int32_t count = 0;
    try {
      count = into_tokens();
      if (count < 0 && count != (std::numeric_limits<std::int32_t>::min)()) {
        tokens.resize(static_cast<std::size_t>(-count));
        count = into_tokens();
      }
    } catch (const HostError&) {
      explain_unspellable(text);
      throw_host(path_, ": the vocabulary cannot spell the text");
    }
    if (count < 0)
      throw_host(path_, ": llama.cpp could not tokenize a text of ", text.size(), " bytes", detail::LlamaLog::because());
    tokens.resize(static_cast<std::size_t>(count));
    tokens.shrink_to_fit();
    return tokens;
  }

  std::string token_text(Token token) const {
    if (!in_vocabulary(token)) throw_value("token ", token, " is not in [0, ", shape_.vocabulary, ") (the vocabulary)");
    std::string text(32, '\0');
    const auto piece = [&] {
      return llama_token_to_piece(vocabulary(), token, text.data(), static_cast<std::int32_t>(text.size()), 0, true);
    };
    const std::string what = detail::concat(path_, ": token ", token, " has no text");
    std::int32_t length = detail::guard_llama_abort(what, piece);
    if (length < 0) {
      text.resize(static_cast<std::size_t>(-length));
      length = detail::guard_llama_abort(what, piece);
    }
    if (length < 0) throw_host(what);
    text.resize(static_cast<std::size_t>(length));
    return text;
  }

  /// See LanguageModel. Keys and values of the positions so far are kept: a run with first_position > 0 computes its own
  /// tokens alone.
  ConstMatrixMap<float> run(std::span<const Token> tokens, std::span<const Tap> taps = {}, const RunOptions& options = {}) {
    check_run(shape_, tokens, taps, options);
    if (options.first_position > length_)
      throw_value("run: first_position = ", options.first_position, " goes on after ", options.first_position, " tokens, but ",
                  length_, " are kept of the runs before");
    const Index rows = static_cast<Index>(tokens.size()), last = shape_.layers - 1;
    std::vector<detail::LlamaHook::Wanted> wanted;
    bool every_row = options.logits == Logits::all;
    for (const Tap& tap : taps) {
      every_row = every_row || tap.site.layer == last;
      const auto same = std::find_if(wanted.begin(), wanted.end(), [&](const auto& w) { return w.site == tap.site; });
      auto& at = same != wanted.end() ? *same : wanted.emplace_back(detail::LlamaHook::Wanted{node_of(tap.site), tap.site, {}});
      at.taps.push_back(&tap);
    }
    hook_->arm(std::move(wanted), rows, shape_.width, options.first_position, options.stop_after_last_tap);
    decode(tokens, options.first_position, every_row);
    const float* logits = llama_get_logits(context_.get());
    length_ = options.stop_after_last_tap ? 0 : options.first_position + rows;
    if (options.logits == Logits::none) return {nullptr, 0, shape_.vocabulary};
    if (logits == nullptr) throw_host(path_, ": llama.cpp gave no logits", detail::LlamaLog::because());
    if (options.logits == Logits::all) return {logits, rows, shape_.vocabulary};
    return {every_row ? logits + (rows - 1) * shape_.vocabulary : logits, 1, shape_.vocabulary};
  }

  /// W_U [V x D], read from the file: `output.weight`, or `token_embd.weight` where embeddings are tied; dequantised to float.
  Matrix<float> unembedding() const {
    ggml_context* tensors = nullptr;
    const std::unique_ptr<gguf_context, void (*)(gguf_context*)> file(
        detail::guard_llama_abort(path_,
                                  [&] {
                                    return gguf_init_from_file(path_.c_str(), {true, &tensors});
                                  }),
        gguf_free);
    const std::unique_ptr<ggml_context, void (*)(ggml_context*)> owner(tensors, ggml_free);
    if (!file) throw_host(path_, ": cannot be read again for its unembedding", detail::LlamaLog::because());
    const char* tensor = "output.weight";
    std::int64_t id = gguf_find_tensor(file.get(), tensor);
    if (id < 0) id = gguf_find_tensor(file.get(), tensor = "token_embd.weight");
    if (id < 0)
      throw_host(path_, ": has neither output.weight nor token_embd.weight (a split model keeps them in another file)");
    const std::int64_t* size = gguf_get_tensor_ne(file.get(), id);
    if (size[0] != shape_.width || size[1] != shape_.vocabulary || size[2] != 1)
      throw_host(path_, ": ", tensor, " is [", size[1], " x ", size[0], "], not [", shape_.vocabulary, " x ", shape_.width,
                 "]");
    const ggml_type type = gguf_get_tensor_type(file.get(), id);
    const ggml_to_float_t to_float = ggml_get_type_traits(type)->to_float;
    if (type != GGML_TYPE_F32 && to_float == nullptr)
      throw_host(path_, ": ", tensor, " has the type ", ggml_type_name(type), ", which llama.cpp cannot turn into floats");

    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> stream(std::fopen(path_.c_str(), "rb"), std::fclose);
    const std::size_t offset = gguf_get_data_offset(file.get()) + gguf_get_tensor_offset(file.get(), id);
    std::vector<char> row(ggml_row_size(type, size[0]));
    Matrix<float> out(shape_.vocabulary, shape_.width);
    bool good = stream && offset <= static_cast<std::size_t>((std::numeric_limits<long>::max)()) &&
                std::fseek(stream.get(), static_cast<long>(offset), SEEK_SET) == 0;
    for (Index v = 0; v < out.rows() && good; ++v) {
      good = std::fread(row.data(), 1, row.size(), stream.get()) == row.size();
      if (type == GGML_TYPE_F32)
        std::memcpy(out.row(v).data(), row.data(), row.size());
      else
        to_float(row.data(), out.row(v).data(), size[0]);
    }
    if (!good) throw_host(path_, ": ends inside ", tensor);
    return out;
  }

 private:
  template <auto Free>
  struct Delete {
    template <class T>
    void operator()(T* p) const {
      Free(p);
    }
  };

  const llama_vocab* vocabulary() const { return llama_model_get_vocab(model_.get()); }
  bool in_vocabulary(Token token) const { return token >= 0 && token < shape_.vocabulary; }

  /// Throws with the first character of the text that the vocabulary cannot spell alone, if there is one.
  void explain_unspellable(std::string_view text) const {
    std::set<std::string_view> seen;
    for (std::size_t at = 0, length = 0; at < text.size(); at += length) {
      const auto lead = static_cast<unsigned char>(text[at]);
      length = lead < 0xC0 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
      const std::string_view character = text.substr(at, length);
      if (!seen.insert(character).second) continue;
      Token some[16];
      try {
        const detail::LlamaAbort armed;
        llama_tokenize(vocabulary(), character.data(), static_cast<std::int32_t>(character.size()), some, 16, false, false);
      } catch (const std::exception&) {
        std::string bytes;
        char digits[8];
        for (const char c : character) {
          std::snprintf(digits, sizeof digits, " %02X", static_cast<unsigned>(static_cast<unsigned char>(c)));
          bytes += digits;
        }
        throw_host(path_, ": the vocabulary cannot spell the text: it has no token for the bytes", bytes, " at offset ", at);
      }
    }
  }

  /// Before llama.cpp sees the path: it aborts on some, and its sentence for the others is long.
  void check_file(const LlamaCppOptions& options) const {
    if (path_.empty()) throw_host("llama.cpp: the model's path is empty; name a .gguf file");
    std::error_code error;
    const auto status = std::filesystem::status(path_, error);
    if (!std::filesystem::exists(status)) throw_host(path_, ": there is no such file; name a .gguf model");
    if (!std::filesystem::is_regular_file(status)) throw_host(path_, ": is not a regular file; name a .gguf model");
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> stream(std::fopen(path_.c_str(), "rb"), std::fclose);
    if (!stream) throw_host(path_, ": cannot be opened for reading");
    char magic[4] = {};
    if (std::fread(magic, 1, 4, stream.get()) != 4 || std::memcmp(magic, "GGUF", 4) != 0)
      throw_host(path_, ": is not a GGUF file (it does not begin with the letters GGUF)");
    if (options.context < 2 || options.context > 65536)
      throw_value("LlamaCpp: context = ", options.context, " is not in [2, 65536]");
    if (options.threads < 0) throw_value("LlamaCpp: threads = ", options.threads, " is negative (0 takes all cores)");
  }

  static void start_backend(bool quiet) {
    static const bool once = [] {
      llama_backend_init();
      ggml_set_abort_callback(detail::LlamaAbort::on_abort);
      if (ggml_backend_dev_count() == 0) ggml_backend_load_all();  // where even the CPU is a plug-in
      return true;
    }();
    static_cast<void>(once);
    if (quiet) llama_log_set(detail::LlamaLog::keep, nullptr);
  }

  void load(const LlamaCppOptions& options) {
    llama_model_params model = llama_model_default_params();
    model.n_gpu_layers = options.gpu_layers;
    model.use_extra_bufts = false;  // repacked weights: other sums, and a crash on some CPUs
    model_.reset(detail::guard_llama_abort(path_, [&] { return llama_model_load_from_file(path_.c_str(), model); }));
    if (!model_) throw_host(path_, ": llama.cpp cannot load the model", detail::LlamaLog::because());
    if (llama_model_has_encoder(model_.get()) || !llama_model_has_decoder(model_.get()))
      throw_host(path_, ": is not a plain decoder that predicts the next token");
    shape_ = {llama_model_n_embd(model_.get()), llama_model_n_layer(model_.get()), llama_vocab_n_tokens(vocabulary()),
              options.context};
    if (options.context > trained_context() && llama_model_rope_type(model_.get()) == LLAMA_ROPE_TYPE_NONE)
      throw_value("LlamaCpp: context = ", options.context, " exceeds the ", trained_context(), " positions that ", path_,
                  " has");
    if (shape_.width < 1 || shape_.layers < 1 || shape_.vocabulary < 1)
      throw_host(path_, ": has no layers, width or vocabulary");

    llama_context_params context = llama_context_default_params();
    context.n_ctx = context.n_batch = context.n_ubatch = static_cast<std::uint32_t>(options.context);  // a window is one batch
    context.n_seq_max = 1;
    const unsigned cores = (std::max)(1U, std::thread::hardware_concurrency());
    context.n_threads = context.n_threads_batch = options.threads > 0 ? options.threads : static_cast<std::int32_t>(cores);
    context.flash_attn_type = options.flash_attention ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    context.type_k = context.type_v = options.half_cache ? GGML_TYPE_F16 : GGML_TYPE_F32;
    context.offload_kqv = context.op_offload = options.gpu_layers != 0;
    context.no_perf = true;
    context.cb_eval = detail::LlamaHook::on_node;
    context.cb_eval_user_data = hook_.get();
    context_.reset(detail::guard_llama_abort(path_, [&] { return llama_init_from_model(model_.get(), context); }));
    if (!context_) throw_host(path_, ": llama.cpp cannot set up a context of ", options.context, detail::LlamaLog::because());
  }

  /// One token through the graph: which sites have a name in it.
  void probe() {
    const Token token = in_vocabulary(bos()) ? bos() : 0;
    hook_->arm({}, 1, shape_.width, 0, false);
    hook_->list_into(&nodes_);
    decode({&token, 1}, 0, true);
    std::sort(nodes_.begin(), nodes_.end());
    nodes_.erase(std::unique(nodes_.begin(), nodes_.end()), nodes_.end());
    for (Index layer = 0; layer < shape_.layers; ++layer)
      for (const SiteKind kind : {SiteKind::attn_out, SiteKind::mlp_out, SiteKind::residual})
        if (!find_node({layer, kind}).empty()) sites_.push_back({layer, kind});
  }

  bool has_node(const std::string& name) const { return std::binary_search(nodes_.begin(), nodes_.end(), name); }
  std::string find_node(const Site& site) const {
    std::vector<std::string_view> names;
    switch (site.kind) {
      case SiteKind::residual: names = {"l_out"}; break;
      case SiteKind::mlp_out: names = {"ffn_out", "ffn_moe_out"}; break;
      case SiteKind::attn_out: names = {"attn_out"}; break;
    }
    for (const std::string_view name : names)
      if (const std::string node = detail::concat(name, "-", site.layer); has_node(node)) return node;
    return {};
  }
  std::string node_of(const Site& site) const {
    std::string node = find_node(site);
    if (!node.empty()) return node;
    std::string known;
    const std::string suffix = detail::concat("-", site.layer);
    for (const std::string& name : nodes_)
      if (name.size() > suffix.size() && name.ends_with(suffix)) known += (known.empty() ? "" : ", ") + name;
    throw_host(path_, ": llama.cpp's graph has no node for the site ", to_string(site), "; layer ", site.layer,
               " has: ", known);
  }

  /// Runs the batch under the armed hook. After an error nothing is kept of the sequence.
  void decode(std::span<const Token> tokens, Index first_position, bool every_row) {
    const std::size_t count = tokens.size();
    std::vector<Token> ids(tokens.begin(), tokens.end());
    std::vector<llama_pos> positions(count);
    std::vector<std::int8_t> wants_logits(count, every_row ? 1 : 0);
    for (std::size_t t = 0; t < count; ++t) positions[t] = static_cast<llama_pos>(first_position) + static_cast<llama_pos>(t);
    wants_logits.back() = 1;
    llama_batch batch{};
    batch.n_tokens = static_cast<std::int32_t>(count);
    batch.token = ids.data();
    batch.pos = positions.data();
    batch.logits = wants_logits.data();

    length_ = 0;
    std::int32_t status = 0;
    try {
      status = detail::guard_llama(path_, [&] {
        llama_memory_t memory = llama_get_memory(context_.get());
        if (first_position == 0)
          llama_memory_clear(memory, false);
        else if (!llama_memory_seq_rm(memory, 0, static_cast<llama_pos>(first_position), -1))
          throw_host("llama.cpp cannot take back tokens of this model's sequence");
        return llama_decode(context_.get(), batch);
      });
    } catch (...) {
      hook_->disarm();
      throw;
    }
    const bool all_seen = std::all_of(hook_->wanted().begin(), hook_->wanted().end(), [](const auto& w) { return w.seen; });
    hook_->disarm();
    if (status != 0)
      throw_host(path_, ": llama.cpp could not run ", count, " tokens (status ", status, ")", detail::LlamaLog::because());
    if (!all_seen) throw_host(path_, ": llama.cpp's graph passed by a site that was asked for");
  }

  std::string path_;
  ModelShape shape_;
  std::vector<std::string> nodes_;  ///< names in the graph, sorted
  std::vector<Site> sites_;
  Index length_ = 0;                                                                 ///< tokens whose keys and values are kept
  std::unique_ptr<detail::LlamaHook> hook_ = std::make_unique<detail::LlamaHook>();  // outlives the context
  std::unique_ptr<llama_model, Delete<llama_model_free>> model_;
  std::unique_ptr<llama_context, Delete<llama_free>> context_;
};

}  // namespace sae::inline SAE_ABI
