#pragma once
#include <sae/host/language_model.hpp>

#include <algorithm>
#include <span>
#include <string_view>
#include <vector>

namespace sae::inline SAE_ABI {

struct WindowOptions {
  Index context = 256;    ///< tokens of a window, BOS included: 2 <= context
  Index skip_tokens = 0;  ///< text tokens left out at the start
  Index tokens = 50'000;  ///< text tokens used at most; 0: all
};

/// A text cut into windows of equal length, each of which a model reads on its own.
///
/// A window is BOS and the next context - 1 text tokens, or `context` text tokens for a model without BOS. Windows do not
/// overlap; what is left at the end and does not fill a window is dropped, so all rows of a run have the same shape.
class Windows {
 public:
  Windows() = default;
  /// `tokens` without BOS; `bos` may be `no_token`. Errors: ValueError where not even one window is filled.
  Windows(std::span<const Token> tokens, Token bos, const WindowOptions& options)
      : context_(options.context), bos_(bos), skipped_(options.skip_tokens) {
    if (options.context < 2) throw_value("windows: context = ", options.context, " is below 2 (a token and the next one)");
    require_non_negative("windows: skip_tokens", options.skip_tokens);
    if (options.tokens < 0) throw_value("windows: tokens = ", options.tokens, " is negative (0 takes all)");
    const Index total = static_cast<Index>(tokens.size()), text = text_per_window();
    if (total == 0) throw_value("windows: the text is empty (it has no tokens)");
    if (options.tokens > 0 && options.tokens < text)
      throw_value("windows: tokens = ", options.tokens, " is less than the ", text, " text tokens of one window of ", context_);
    const Index left = (std::max)(total - options.skip_tokens, Index{0});
    if (left < text)
      throw_value("windows: the text has ", total, " tokens, ", left, " after skipping ", options.skip_tokens,
                  "; one window of ", context_, " needs ", text);
    count_ = (options.tokens > 0 ? (std::min)(left, options.tokens) : left) / text;
    tokens_.reserve(static_cast<std::size_t>(count_ * context_));
    auto next = tokens.begin() + options.skip_tokens;
    for (Index w = 0; w < count_; ++w, next += text) {
      if (bos != no_token) tokens_.push_back(bos);
      tokens_.insert(tokens_.end(), next, next + text);
    }
  }

  Index count() const { return count_; }
  Index context() const { return context_; }
  bool has_bos() const { return bos_ != no_token; }  ///< position 0 of every window is BOS
  Token bos() const { return bos_; }
  Index text_per_window() const { return context_ - (has_bos() ? 1 : 0); }
  /// Text tokens used, of all windows.
  Index text_tokens() const { return count_ * text_per_window(); }
  /// Position in the text's tokens of the first text token of a window.
  Index text_position(Index window) const { return skipped_ + window * text_per_window(); }
  /// The tokens of a window [context].
  std::span<const Token> operator[](Index window) const {
    return std::span(tokens_).subspan(static_cast<std::size_t>(window * context_), static_cast<std::size_t>(context_));
  }

 private:
  Index count_ = 0, context_ = 0;
  Token bos_ = no_token;
  Index skipped_ = 0;
  std::vector<Token> tokens_;
};

/// Tokenizes a text and cuts it into the model's windows. Errors: ValueError for an empty or too short text or a context above
/// the model's, HostError where the text cannot be tokenized.
template <LanguageModel M>
Windows cut_windows(const M& model, std::string_view text, const WindowOptions& options = {}) {
  if (text.empty()) throw_value("windows: the text is empty");
  const Index longest = model.shape().context;
  if (options.context > longest) throw_value("windows: context = ", options.context, " exceeds the model's ", longest);
  const std::vector<Token> tokens = model.tokenize(text);
  return Windows(tokens, model.bos(), options);
}

}  // namespace sae::inline SAE_ABI
