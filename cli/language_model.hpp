#pragma once
#include <sae/host/windows.hpp>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common.hpp"

#ifdef SAE_CLI_WITH_LLAMA
#include <sae/host/llama_cpp.hpp>
#endif

namespace sae::cli {

#ifdef SAE_CLI_WITH_LLAMA
using HostOptions = LlamaCppOptions;
/// The language model of the program: between two runs it hears of SIGINT and SIGTERM, unless somebody must be let finish. It knows the tokens
/// of the sequence that it reads, also while taps look at their rows.
class HostModel : public LlamaCpp {
 public:
  using LlamaCpp::LlamaCpp;
  ConstMatrixMap<float> run(std::span<const Token> tokens, std::span<const Tap> taps = {}, const RunOptions& options = {}) {
    if (interruptible) check_stop();
    if (options.first_position == 0) prompt_ = static_cast<Index>(tokens.size());
    sequence_.resize((std::min)(sequence_.size(), static_cast<std::size_t>(options.first_position)));
    sequence_.insert(sequence_.end(), tokens.begin(), tokens.end());
    return LlamaCpp::run(tokens, taps, options);
  }
  bool interruptible = true;
  const std::vector<Token>& sequence() const { return sequence_; }
  Index prompt_length() const { return prompt_; }  ///< tokens of the sequence that came in its first run

 private:
  std::vector<Token> sequence_;
  Index prompt_ = 0;
};
#else
struct HostOptions {
  Index context = 256;
  int threads = 0;
};
/// Stands where the language model would, so that every verb compiles; cannot be made.
class HostModel {
 public:
  explicit HostModel(const std::string&, const HostOptions& = {}) { refuse(); }
  bool interruptible = true;
  Index trained_context() const { refuse(); }
  ModelShape shape() const { refuse(); }
  std::string name() const { refuse(); }
  Token bos() const { refuse(); }
  std::vector<Site> sites() const { refuse(); }
  std::vector<Token> tokenize(std::string_view) const { refuse(); }
  std::string token_text(Token) const { refuse(); }
  ConstMatrixMap<float> run(std::span<const Token>, std::span<const Tap> = {}, const RunOptions& = {}) { refuse(); }
  Matrix<float> unembedding() const { refuse(); }
  const std::vector<Token>& sequence() const { refuse(); }
  Index prompt_length() const { refuse(); }

 private:
  [[noreturn]] static void refuse() {
    throw_host("this sae was built without llama.cpp and runs no model; build it with -DSAE_WITH_LLAMA=ON");
  }
};
#endif

/// What every verb that runs a model over a text has.
struct ModelVerb : Common {
  std::string model;
  int model_threads = 0;
  std::string text;
  std::vector<Index> layers;
  std::vector<std::string> sites;
  Index context = 256;
  Index skip_tokens = 0;
  Index tokens = 50'000;
};

inline CLI::Option* add_model(CLI::App& verb, ModelVerb& options) {
  verb.add_option("--model-threads", options.model_threads, "threads of the language model; 0: all cores")
      ->capture_default_str()
      ->check(within(0, 1024));
  return verb.add_option("--model", options.model, "language model, a .gguf file");
}
inline CLI::Option* add_text(CLI::App& verb, ModelVerb& options) {
  verb.add_option("--context", options.context, "tokens of a window, BOS included")
      ->capture_default_str()
      ->check(within(2, 65536));
  verb.add_option("--skip-tokens", options.skip_tokens, "text tokens left out at the start")
      ->capture_default_str()
      ->check(at_least(0));
  verb.add_option("--tokens", options.tokens, "text tokens used at most, in whole windows; 0: all")
      ->capture_default_str()
      ->check(at_least(0));
  return verb.add_option("--text", options.text, "text the model reads, UTF-8");
}
/// One layer and site, of which the SAE may know.
inline void add_site(CLI::App& verb, ModelVerb& options) {
  verb.add_option("--layer", options.layers, "layer of the SAE, from 0; not needed where the SAE knows it")
      ->check(at_least(0))
      ->expected(1);
  verb.add_option("--site", options.sites, "residual, mlp_out or attn_out; default: what the SAE says, or residual")
      ->check(CLI::IsMember({"residual", "mlp_out", "attn_out"}))
      ->expected(1);
}

inline HostModel open_model(const ModelVerb& options) {
  return HostModel(options.model, {.context = options.context, .threads = options.model_threads});
}

inline std::string read_text(const ModelVerb& options) {
  std::string text = read_file(options.text, std::size_t{1} << 31);
  if (text.empty()) throw_value(options.text, ": the text is empty");
  return text;
}
/// \param prefix  of the options that chose the tokens, for messages
inline Windows windows_of(const HostModel& model, const ModelVerb& options, std::string_view text, const char* prefix = "--") {
  Windows windows;
  try {
    windows =
        cut_windows(model, text, {.context = options.context, .skip_tokens = options.skip_tokens, .tokens = options.tokens});
  } catch (const ValueError& error) {
    throw_value(options.text, " (--context ", options.context, ", ", prefix, "skip-tokens ", options.skip_tokens, ", ", prefix,
                "tokens ", options.tokens, "): ", error.what());
  }
  if (const Index trained = model.trained_context(); options.context > trained)
    note(options, "sae: warning: ", options.model, " was trained on windows of ", trained, " tokens, --context ",
         options.context, " is more");
  return windows;
}

/// The site that --layer and --site name, or that a SAE (or a collected folder) says it is of. `known` is empty where it does not
/// say; `who` names it in messages. A contradiction is refused.
inline Site chosen_site(const ModelVerb& options, const std::optional<Site>& known, const std::string& who) {
  if (options.layers.empty() && !known) usage_error("--layer is required: ", who, " does not say which layer it is of");
  Site site = known.value_or(Site{});
  if (!options.layers.empty()) site.layer = options.layers[0];
  if (!options.sites.empty()) site.kind = parse_site_kind(options.sites[0]);
  if (known && site != *known)
    throw_value(who, ": is of ", to_string(*known), ", but --layer and --site say ", to_string(site));
  return site;
}

/// Refuses a site that the model lacks, before any work.
inline void check_site(const HostModel& model, const Site& site) {
  const ModelShape shape = model.shape();
  if (site.layer >= shape.layers) throw_value("--layer ", site.layer, ": the model has the layers 0 to ", shape.layers - 1);
  const std::vector<Site> known = model.sites();
  if (std::find(known.begin(), known.end(), site) == known.end())
    throw_value("--site ", to_string(site.kind), ": llama.cpp shows no such site in layer ", site.layer, " of this model");
}

}  // namespace sae::cli
