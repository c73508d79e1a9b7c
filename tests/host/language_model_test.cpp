#include <sae/host/language_model.hpp>

#include "catch_compat.hpp"
#include "naive_llama.hpp"

using namespace sae;
using Catch::Matchers::ContainsSubstring;

TEST_CASE("a site and its text are two ways to write the same", "[host][language_model]") {
  for (const Site site : {Site{0, SiteKind::residual}, Site{15, SiteKind::mlp_out}, Site{7, SiteKind::attn_out}})
    CHECK(parse_site(to_string(site)) == site);
  CHECK(to_string(Site{15, SiteKind::residual}) == "residual-15");
  CHECK(parse_site_kind("mlp_out") == SiteKind::mlp_out);
  for (const char* text :
       {"", "residual", "residual-", "-3", "residual-x", "residual--1", "residual-1 ", "ffn-1", "residual-99999999999"})
    CHECK_THROWS_AS(parse_site(text), ValueError);
  CHECK_THROWS_WITH(parse_site_kind("mlp"), "site 'mlp' is not one of residual, mlp_out, attn_out");
}

TEST_CASE("what no host can run is refused with its numbers", "[host][language_model]") {
  const ModelShape shape{8, 3, 57, 16};
  const std::vector<Token> tokens = {1, 4, 5}, outside = {1, 57}, negative = {-1};
  const auto nothing = [](MatrixMap<float>, Index) {};
  const auto check = [&](const std::vector<Token>& t, std::vector<Tap> taps = {}, RunOptions options = {}) {
    check_run(shape, t, taps, options);
  };
  CHECK_NOTHROW(check(tokens, {{{2, SiteKind::residual}, nothing}}, {.stop_after_last_tap = true}));
  CHECK_THROWS_WITH(check({}), ContainsSubstring("no tokens"));
  CHECK_THROWS_WITH(check(outside), ContainsSubstring("token 57 at index 1 is not in [0, 57)"));
  CHECK_THROWS_WITH(check(negative), ContainsSubstring("token -1 at index 0"));
  CHECK_THROWS_WITH(check(std::vector<Token>(17, 4)),
                    ContainsSubstring("17 tokens from position 0 do not fit in a context of 16"));
  CHECK_NOTHROW(check(std::vector<Token>(16, 4)));
  CHECK_THROWS_WITH(check(tokens, {}, {.first_position = 14}), ContainsSubstring("3 tokens from position 14"));
  CHECK_NOTHROW(check(tokens, {}, {.first_position = 13}));
  CHECK_THROWS_WITH(check(tokens, {{{3, SiteKind::residual}, nothing}}),
                    ContainsSubstring("residual-3 is in none of the model's layers 0 to 2"));
  CHECK_THROWS_WITH(check(tokens, {{{-1, SiteKind::residual}, nothing}}), ContainsSubstring("residual--1"));
  CHECK_THROWS_WITH(check(tokens, {{{0, SiteKind::mlp_out}, {}}}), ContainsSubstring("mlp_out-0 has no visitor"));
  CHECK_THROWS_WITH(check(tokens, {}, {.stop_after_last_tap = true}), ContainsSubstring("needs a tap"));
  CHECK_THROWS_WITH(check(tokens, {{{0, SiteKind::mlp_out}, nothing}}, {.logits = Logits::last, .stop_after_last_tap = true}),
                    ContainsSubstring("leaves the logits uncomputed"));
}

namespace {
/// A host of somebody's own: the residual of its one layer is a table of rows, the logits are its product with the same table.
struct TableModel {
  [[maybe_unused]] static constexpr bool continues = false;
  Matrix<float> table = Matrix<float>::Random(5, 4), logits;

  ModelShape shape() const { return {4, 1, 5, 100}; }
  std::string name() const { return "table"; }
  Token bos() const { return no_token; }
  std::vector<Site> sites() const { return {{0, SiteKind::residual}}; }
  std::vector<Token> tokenize(std::string_view text) const { return {text.begin(), text.end()}; }
  std::string token_text(Token token) const { return {static_cast<char>(token)}; }
  Matrix<float> unembedding() const { return table; }
  ConstMatrixMap<float> run(std::span<const Token> tokens, std::span<const Tap> taps, const RunOptions& options) {
    check_run(shape(), tokens, taps, options);
    Matrix<float> rows(static_cast<Index>(tokens.size()), 4);
    for (std::size_t t = 0; t < tokens.size(); ++t) rows.row(static_cast<Index>(t)) = table.row(tokens[t]);
    for (const Tap& tap : taps) tap.visit({rows.data(), rows.rows(), rows.cols()}, 0);
    logits = rows * table.transpose();
    return {logits.data(), options.logits == Logits::none ? 0 : logits.rows(), 5};
  }
};
struct NotAModel {};
}  // namespace

TEST_CASE("a class of one's own is a host", "[host][language_model]") {
  STATIC_REQUIRE(LanguageModel<TableModel>);
  STATIC_REQUIRE_FALSE(LanguageModel<NotAModel>);
}
