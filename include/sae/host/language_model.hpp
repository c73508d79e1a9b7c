#pragma once
#include <sae/core/types.hpp>

#include <charconv>
#include <compare>
#include <concepts>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace sae::inline SAE_ABI {

using Token = std::int32_t;
inline constexpr Token no_token = -1;  ///< where a model has none, e.g. no BOS

/// Where activations of a transformer are read and edited.
enum class SiteKind {
  residual,  ///< the residual stream after the whole layer
  mlp_out,   ///< what the layer's MLP adds to the residual stream
  attn_out,  ///< what the layer's attention adds to the residual stream
};
/// A place in a model; layers count from 0. Written "residual-15".
struct Site {
  Index layer = 0;
  SiteKind kind = SiteKind::residual;
  auto operator<=>(const Site&) const = default;
};

inline std::string to_string(SiteKind kind) {
  switch (kind) {
    case SiteKind::residual: return "residual";
    case SiteKind::mlp_out: return "mlp_out";
    case SiteKind::attn_out: return "attn_out";
  }
  throw_value("SiteKind: ", static_cast<int>(kind), " is not one of residual, mlp_out, attn_out");
}
inline std::string to_string(const Site& site) { return detail::concat(to_string(site.kind), "-", site.layer); }

/// "residual", "mlp_out" or "attn_out"; nothing for anything else.
inline std::optional<SiteKind> find_site_kind(std::string_view text) {
  for (const SiteKind kind : {SiteKind::residual, SiteKind::mlp_out, SiteKind::attn_out})
    if (text == to_string(kind)) return kind;
  return std::nullopt;
}
/// The same; anything else is a ValueError.
inline SiteKind parse_site_kind(std::string_view text) {
  if (const auto kind = find_site_kind(text)) return *kind;
  throw_value("site '", text, "' is not one of residual, mlp_out, attn_out");
}
/// The inverse of `to_string(Site)`: a kind, a dash, a layer from 0; anything else is a ValueError.
inline Site parse_site(std::string_view text) {
  const std::size_t dash = text.rfind('-');
  if (dash != std::string_view::npos) {
    const std::string_view digits = text.substr(dash + 1);
    std::int32_t layer = -1;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), layer);
    if (error == std::errc() && end == digits.data() + digits.size() && layer >= 0)
      return {layer, parse_site_kind(text.substr(0, dash))};
  }
  throw_value("site '", text, "' is not a kind, a dash and a layer (such as residual-15)");
}

/// What a host says about its model.
struct ModelShape {
  Index width = 0;       ///< D, the same at every site
  Index layers = 0;      ///< counted from 0
  Index vocabulary = 0;  ///< V
  Index context = 0;     ///< most positions of one sequence
};

/// A look into one site during a forward pass, and a hand in it.
///
/// `visit(rows, first_position)` gets the activations [T x D] of consecutive positions of the sequence, the first of which is
/// `first_position`; the map is valid during the call. With `edits`, what `visit` leaves in `rows` replaces the activations
/// and everything computed after the site sees it; without, `visit` must leave them alone. Several taps at one site run in
/// their order, each on what the one before it left. An exception of `visit` stops the pass and leaves `run`.
struct Tap {
  Site site;
  std::function<void(MatrixMap<float> rows, Index first_position)> visit;
  bool edits = false;
};

/// Which positions' logits a run returns.
enum class Logits { none, last, all };

struct RunOptions {
  Logits logits = Logits::none;
  /// Nothing above the last site that a tap asks for is computed; excludes logits. No run can be continued after it.
  bool stop_after_last_tap = false;
  /// Position of the first token: 0 starts a new sequence, n > 0 goes on after the first n tokens of the sequence of the runs
  /// before (n at most their number). Taps see the new rows alone; edits of earlier positions stay in what they caused.
  Index first_position = 0;
};

/// A language model that can be looked into: what a host offers. llama.cpp is one (host/llama_cpp.hpp); a class of your own
/// with these members is another.
///
///   shape()            D, layers, V, context
///   name()             for people and for files
///   bos()              token that starts every sequence, or `no_token`
///   sites()            every site that can be tapped
///   tokenize(text)     tokens without BOS
///   token_text(token)  its bytes (perhaps part of a UTF-8 character)
///   run(tokens, taps, options)
///                      one forward pass over tokens [T] with all taps; logits [T x V], [1 x V] or [0 x V] as `options.logits`
///                      asks, valid until the next run. Row t holds the logits of the token at position t + 1.
///   unembedding()      W_U [V x D], a copy in float: logits = norm(residual) W_U^T
///
/// A host that keeps no cache of earlier positions refuses first_position > 0 and says so by a member
/// `static constexpr bool continues = false;` (host/generate.hpp then runs whole sequences).
/// Errors: HostError, or ValueError for what `check_run` refuses.
template <class M>
concept LanguageModel = requires(M& model, const M& constant, std::string_view text, Token token, std::span<const Token> tokens,
                                 std::span<const Tap> taps, const RunOptions& options) {
  { constant.shape() } -> std::convertible_to<ModelShape>;
  { constant.name() } -> std::convertible_to<std::string>;
  { constant.bos() } -> std::same_as<Token>;
  { constant.sites() } -> std::convertible_to<std::vector<Site>>;
  { constant.tokenize(text) } -> std::convertible_to<std::vector<Token>>;
  { constant.token_text(token) } -> std::convertible_to<std::string>;
  { model.run(tokens, taps, options) } -> std::convertible_to<ConstMatrixMap<float>>;
  { constant.unembedding() } -> std::convertible_to<Matrix<float>>;
};

/// Refuses with a ValueError what no host can run: no tokens, tokens outside the vocabulary, positions beyond the context, a
/// site outside the layers, a tap without a visitor, logits of a pass that stops before them.
inline void check_run(const ModelShape& shape, std::span<const Token> tokens, std::span<const Tap> taps,
                      const RunOptions& options) {
  if (tokens.empty()) throw_value("run: there are no tokens to run");
  const Index count = static_cast<Index>(tokens.size());
  if (options.first_position < 0 || options.first_position > shape.context - count)
    throw_value("run: ", count, " tokens from position ", options.first_position, " do not fit in a context of ",
                shape.context);
  for (std::size_t t = 0; t < tokens.size(); ++t)
    if (tokens[t] < 0 || tokens[t] >= shape.vocabulary)
      throw_value("run: token ", tokens[t], " at index ", t, " is not in [0, ", shape.vocabulary, ") (the vocabulary)");
  for (const Tap& tap : taps) {
    if (tap.site.layer < 0 || tap.site.layer >= shape.layers)
      throw_value("run: site ", to_string(tap.site), " is in none of the model's layers 0 to ", shape.layers - 1);
    if (!tap.visit) throw_value("run: the tap at ", to_string(tap.site), " has no visitor");
  }
  if (options.stop_after_last_tap && taps.empty()) throw_value("run: stop_after_last_tap needs a tap");
  if (options.stop_after_last_tap && options.logits != Logits::none)
    throw_value("run: stop_after_last_tap leaves the logits uncomputed, ask for one of them");
}

}  // namespace sae::inline SAE_ABI
