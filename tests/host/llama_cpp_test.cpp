// llama.cpp as a host against a naive float forward pass of the same random weights.
#include <sae/host/activation_source.hpp>
#include <sae/host/cross_entropy.hpp>
#include <sae/host/generate.hpp>
#include <sae/host/llama_cpp.hpp>

#include <cmath>
#include <map>
#include <utility>

#include "catch_compat.hpp"
#include "naive_llama.hpp"

using namespace sae;
using Catch::Matchers::ContainsSubstring;
using sae_test::NaiveLlama;
using sae_test::TemporaryFile;
using sae_test::TinyConfig;
using sae_test::TinyLlama;

namespace {
static_assert(LanguageModel<LlamaCpp>);
static_assert(RowSource<ActivationSource<LlamaCpp>, float>);
static_assert(!std::is_copy_constructible_v<LlamaCpp> && std::is_nothrow_move_constructible_v<LlamaCpp>);

/// The same weights in both hosts.
struct Pair {
  explicit Pair(const TinyConfig& config = {}, const LlamaCppOptions& options = {.context = 64, .threads = 2})
      : weights(sae_test::make_tiny_llama(config)),
        file("tiny.gguf", sae_test::tiny_gguf_bytes(weights)),
        llama(file.path(), options),
        naive(weights) {}
  TinyLlama weights;
  TemporaryFile file;
  LlamaCpp llama;
  NaiveLlama naive;
};

std::vector<Token> some_tokens(Index count = 24) {
  std::vector<Token> out = {1};
  Random random(3);
  while (static_cast<Index>(out.size()) < count) out.push_back(static_cast<Token>(3 + random.below(54)));
  return out;
}

template <class M>
Matrix<float> logits_of(M& model, std::span<const Token> tokens, const std::vector<Tap>& taps = {}) {
  return model.run(tokens, taps, {.logits = Logits::all});
}
template <class M>
std::map<Site, Matrix<float>> rows_of(M& model, std::span<const Token> tokens, const std::vector<Site>& sites,
                                      RunOptions options = {}) {
  std::map<Site, Matrix<float>> out;
  std::vector<Tap> taps;
  for (const Site& site : sites)
    taps.push_back({site, [&out, site](MatrixMap<float> x, Index first) {
                      REQUIRE(first == 0);
                      out[site] = x;
                    }});
  model.run(tokens, taps, options);
  return out;
}
/// Largest difference over the largest size; NaN if there is one.
double apart(const Matrix<float>& a, const Matrix<float>& b) {
  if (a.rows() != b.rows() || a.cols() != b.cols()) return std::numeric_limits<double>::infinity();
  double difference = 0, size = 0;
  for (Index i = 0; i < a.size(); ++i) {
    difference = std::max(difference, std::abs(static_cast<double>(a.data()[i]) - b.data()[i]));
    size = std::max(size, std::abs(static_cast<double>(b.data()[i])));
    if (std::isnan(a.data()[i]) || std::isnan(b.data()[i])) return std::nan("");
  }
  return difference / size;
}
// A few dozen roundings of float at D = 32 through three layers; a wrong formula is off by tenths.
constexpr double tolerance = 2e-5;
}  // namespace

TEST_CASE("the shape, the sites and the vocabulary are those of the file", "[host][llama_cpp]") {
  Pair pair;
  const ModelShape shape = pair.llama.shape();
  CHECK(shape.width == 32);
  CHECK(shape.layers == 3);
  CHECK(shape.vocabulary == static_cast<Index>(pair.weights.vocabulary.size()));
  CHECK(shape.context == 64);
  CHECK(pair.llama.name() == "tiny random llama");
  CHECK(pair.llama.bos() == 1);
  CHECK(pair.llama.is_end(2));
  CHECK_FALSE(pair.llama.is_end(5));
  CHECK(pair.llama.sites() == pair.naive.sites());
  CHECK(pair.llama.token_text(4) == "a");
  CHECK(pair.llama.token_text(3) == " ");
  std::string text;
  for (const Token token : pair.llama.tokenize("the cat and the dog")) text += pair.llama.token_text(token);
  CHECK(text == " the cat and the dog");
  CHECK(pair.llama.tokenize("the").size() == 1);
}

TEST_CASE("every site of every layer and the logits equal the naive forward pass", "[host][llama_cpp]") {
  const auto config = GENERATE(TinyConfig{}, TinyConfig{.layers = 2, .kv_heads = 4, .tied = true, .seed = 2},
                               TinyConfig{.width = 64, .kv_heads = 1, .seed = 3});
  Pair pair(config);
  const std::vector<Token> tokens = some_tokens(30);
  const auto ours = rows_of(pair.llama, tokens, pair.llama.sites(), {.logits = Logits::all});
  const auto naive = rows_of(pair.naive, tokens, pair.naive.sites());
  REQUIRE(ours.size() == static_cast<std::size_t>(3 * config.layers));
  for (const auto& [site, rows] : ours) {
    INFO(to_string(site));
    CHECK(apart(rows, naive.at(site)) < tolerance);
  }
  CHECK(apart(logits_of(pair.llama, tokens), logits_of(pair.naive, tokens)) < tolerance);
  CHECK(pair.llama.unembedding() == pair.weights.unembedding);
}

TEST_CASE("logits of the last position alone are the last row of all", "[host][llama_cpp]") {
  Pair pair;
  const std::vector<Token> tokens = some_tokens();
  const Matrix<float> all = logits_of(pair.llama, tokens);
  const Matrix<float> last = pair.llama.run(tokens, {}, {.logits = Logits::last});
  REQUIRE(last.rows() == 1);
  CHECK(apart(last, all.bottomRows(1)) < tolerance);
  const Tap top{{2, SiteKind::residual}, [](MatrixMap<float>, Index) {}};  // computes every row
  CHECK(Matrix<float>(pair.llama.run(tokens, std::span(&top, 1), {.logits = Logits::last})) == all.bottomRows(1));
  CHECK(pair.llama.run(tokens).rows() == 0);
}

TEST_CASE("an edit at any site changes the logits as it does in the naive forward pass", "[host][llama_cpp]") {
  Pair pair;
  const std::vector<Token> tokens = some_tokens();
  const Matrix<float> clean = logits_of(pair.llama, tokens);
  for (const Site& site : pair.llama.sites()) {
    INFO(to_string(site));
    const std::vector<Tap> taps = {{site,
                                    [](MatrixMap<float> x, Index) {
                                      x.col(3).array() += 2.0F;
                                      for (Index t = 0; t < x.rows(); t += 2) x.row(t) *= -0.5F;
                                    },
                                    true}};
    const Matrix<float> edited = logits_of(pair.llama, tokens, taps);
    CHECK(apart(edited, logits_of(pair.naive, tokens, taps)) < tolerance);
    CHECK(apart(edited, clean) > 0.02);
  }
}

TEST_CASE("an unchanged write-back changes no bit, and what a tap without edits leaves behind neither", "[host][llama_cpp]") {
  Pair pair;
  const std::vector<Token> tokens = some_tokens();
  const Matrix<float> clean = logits_of(pair.llama, tokens);
  std::vector<Tap> all;
  for (const Site& site : pair.llama.sites()) {
    all.push_back({site, [](MatrixMap<float>, Index) {}, true});
    CHECK(logits_of(pair.llama, tokens, {all.back()}) == clean);
    CHECK(logits_of(pair.llama, tokens, {{site, [](MatrixMap<float> x, Index) { x.setZero(); }, false}}) == clean);
  }
  CHECK(logits_of(pair.llama, tokens, all) == clean);
  CHECK(logits_of(pair.llama, tokens) == clean);
}

TEST_CASE("a residual stream of zeros at any layer gives the uniform guess", "[host][llama_cpp]") {
  Pair pair;
  const Windows windows =
      cut_windows(pair.llama, "the cat and the dog in the house of the other one", {.context = 16, .tokens = 0});
  std::vector<Condition> conditions = {{"clean", {}}};
  for (Index layer = 0; layer < 3; ++layer)
    conditions.push_back({"zero", {{{layer, SiteKind::residual}, [](MatrixMap<float> x, Index) { x.setZero(); }, true}}});
  const auto results = compare_conditions(pair.llama, windows, std::span<const Condition>(conditions));
  const double uniform = std::log(static_cast<double>(pair.llama.shape().vocabulary));
  for (std::size_t c = 1; c < results.size(); ++c) {
    CHECK(results[c].cross_entropy == Approx(uniform).epsilon(1e-12));
    CHECK(results[c].kl > 0.1);
  }
  CHECK(std::abs(results[0].cross_entropy - uniform) > 0.1);
  CHECK(results[0].cross_entropy ==
        Approx(compare_conditions(pair.naive, windows, std::span<const Condition>(conditions))[0].cross_entropy).epsilon(1e-5));
}

TEST_CASE("several taps at one site run in order, several sites in one pass", "[host][llama_cpp]") {
  Pair pair;
  const std::vector<Token> tokens = some_tokens();
  const Site low{0, SiteKind::mlp_out}, high{2, SiteKind::residual};
  Matrix<float> before, between, after;
  std::vector<int> order;
  const std::vector<Tap> taps = {
      {high, [&](MatrixMap<float> x, Index) { order.push_back(3), before = x; }},
      {low, [&](MatrixMap<float> x, Index) { order.push_back(1), x.setOnes(); }, true},
      {high, [&](MatrixMap<float> x, Index) { order.push_back(4), x *= 2.0F; }, true},
      {low, [&](MatrixMap<float> x, Index) { order.push_back(2), between = x; }},
      {high, [&](MatrixMap<float> x, Index) { order.push_back(5), after = x; }},
  };
  const Matrix<float> logits = logits_of(pair.llama, tokens, taps);
  CHECK(order == std::vector<int>{1, 2, 3, 4, 5});
  CHECK((between.array() == 1.0F).all());
  CHECK(after == 2.0F * before);
  CHECK(apart(logits, logits_of(pair.naive, tokens, taps)) < tolerance);
}

TEST_CASE("a pass that stops after its last tap shows the same rows", "[host][llama_cpp]") {
  Pair pair;
  const std::vector<Token> tokens = some_tokens();
  const auto full = rows_of(pair.llama, tokens, pair.llama.sites(), {.logits = Logits::all});
  for (const Site& site : pair.llama.sites()) {
    const auto rows = rows_of(pair.llama, tokens, {site}, {.stop_after_last_tap = true});
    REQUIRE(rows.size() == 1);
    CHECK(rows.at(site) == full.at(site));
  }
  const std::vector<Site> two = {{1, SiteKind::residual}, {0, SiteKind::attn_out}};
  const auto rows = rows_of(pair.llama, tokens, two, {.stop_after_last_tap = true});
  CHECK(rows.at(two[0]) == full.at(two[0]));
  CHECK(rows.at(two[1]) == full.at(two[1]));
  CHECK(logits_of(pair.llama, tokens) == logits_of(pair.llama, tokens));  // and nothing of the stop is left
}

TEST_CASE("a run can go on after the one before, and go back", "[host][llama_cpp]") {
  Pair pair;
  const std::vector<Token> tokens = some_tokens(20);
  const std::span<const Token> all(tokens);
  const Matrix<float> whole = logits_of(pair.llama, tokens);
  const Site site{1, SiteKind::residual};
  const Matrix<float> rows = rows_of(pair.llama, tokens, {site}).at(site);
  pair.llama.run(all.first(12));
  for (const Index first : {12, 13, 7}) {
    const auto rest = all.subspan(static_cast<std::size_t>(first), 5);
    Matrix<float> seen;
    Index at = -1;
    const Tap tap{site, [&](MatrixMap<float> x, Index position) { seen = x, at = position; }};
    const Matrix<float> logits = pair.llama.run(rest, std::span(&tap, 1), {.logits = Logits::all, .first_position = first});
    CHECK(apart(logits, whole.middleRows(first, 5)) < tolerance);
    CHECK(apart(seen, rows.middleRows(first, 5)) < tolerance);
    CHECK(at == first);
  }
  CHECK_THROWS_WITH(pair.llama.run(all.last(2), {}, {.first_position = 18}), ContainsSubstring("but 12 are kept"));
  const Tap tap{site, [](MatrixMap<float>, Index) {}};
  pair.llama.run(all, std::span(&tap, 1), {.stop_after_last_tap = true});
  CHECK_THROWS_AS(pair.llama.run(all.last(2), {}, {.first_position = 18}), ValueError);
}

TEST_CASE("generation under an edit is that of the naive forward pass", "[host][llama_cpp]") {
  Pair pair;
  const std::vector<Token> prompt = pair.llama.tokenize("the cat and");
  const auto steer = [](MatrixMap<float> x, Index) { x.col(5).array() += 3.0F; };
  for (const Site& site : {Site{0, SiteKind::residual}, Site{1, SiteKind::mlp_out}, Site{2, SiteKind::residual}}) {
    const std::vector<Tap> taps = {{site, steer, true}};
    const GenerateOptions options{.tokens = 30, .stop_at_end = false};
    const auto text = generate(pair.llama, prompt, options, taps);
    CHECK(text == generate(pair.naive, prompt, options, taps));
    CHECK(text != generate(pair.llama, prompt, options));
  }
  // The prompt at once, then one row a token.
  std::vector<std::pair<Index, Index>> seen;
  const std::vector<Tap> look = {
      {{1, SiteKind::residual}, [&](MatrixMap<float> x, Index first) { seen.emplace_back(first, x.rows()); }}};
  generate(pair.llama, prompt, {.tokens = 4, .stop_at_end = false}, look);
  const Index start = static_cast<Index>(prompt.size()) + 1;
  CHECK(seen == std::vector<std::pair<Index, Index>>{{0, start}, {start, 1}, {start + 1, 1}, {start + 2, 1}});
}

TEST_CASE("a text ends with the token that ends it", "[host][llama_cpp]") {
  Pair pair;
  const std::vector<Token> prompt = pair.llama.tokenize("the cat");
  const GenerateOptions free{.tokens = 50, .temperature = 1, .seed = 1, .stop_at_end = false};
  std::vector<Token> text;
  GenerateOptions options = free;
  for (; options.seed < 100; ++options.seed) {  // a seed whose text holds </s>
    text = generate(pair.llama, prompt, options);
    if (std::find(text.begin(), text.end() - 1, 2) != text.end() - 1) break;
  }
  const auto end = std::find(text.begin(), text.end(), 2);
  REQUIRE(end != text.end());
  options.stop_at_end = true;
  CHECK(generate(pair.llama, prompt, options) == std::vector<Token>(text.begin(), end + 1));
}

TEST_CASE("rows are collected as the naive forward pass has them", "[host][llama_cpp]") {
  Pair pair;
  const Windows windows =
      cut_windows(pair.llama, "the cat and the dog in the house of the other one", {.context = 8, .tokens = 0});
  const std::vector<Site> sites = {{1, SiteKind::residual}, {2, SiteKind::attn_out}};
  const auto all = [&](auto& model) {
    Matrix<float> out(0, 64);
    collect(model, windows, sites, [&](const CollectedRows& rows, Index) {
      const Index at = out.rows();
      out.conservativeResize(at + rows.sites[0].rows(), 64);
      out.bottomRows(rows.sites[0].rows()) << rows.sites[0], rows.sites[1];
    });
    return out;
  };
  const Matrix<float> rows = all(pair.llama);
  REQUIRE(rows.rows() == windows.text_tokens());
  CHECK(apart(rows, all(pair.naive)) < tolerance);
}

TEST_CASE("an exception of a visitor ends the run and nothing else", "[host][llama_cpp]") {
  Pair pair;
  const std::vector<Token> tokens = some_tokens();
  const Matrix<float> clean = logits_of(pair.llama, tokens);
  struct Mine {};
  for (const Site& site : pair.llama.sites()) {
    const std::vector<Tap> taps = {{site, [](MatrixMap<float>, Index) { throw Mine(); }, true}};
    CHECK_THROWS_AS(logits_of(pair.llama, tokens, taps), Mine);
    CHECK(logits_of(pair.llama, tokens) == clean);
  }
}

TEST_CASE("a moved host goes on", "[host][llama_cpp]") {
  Pair pair;
  const std::vector<Token> tokens = some_tokens();
  const Site site{1, SiteKind::residual};
  const Matrix<float> rows = rows_of(pair.llama, tokens, {site}).at(site);
  LlamaCpp moved = std::move(pair.llama);
  CHECK(rows_of(moved, tokens, {site}).at(site) == rows);
  Pair other(TinyConfig{.seed = 9});
  other.llama = std::move(moved);
  CHECK(rows_of(other.llama, tokens, {site}).at(site) == rows);
}

TEST_CASE("two hosts do not hear each other's taps", "[host][llama_cpp]") {
  Pair one, other(TinyConfig{.layers = 2, .seed = 4});
  const std::vector<Token> tokens = some_tokens();
  const Matrix<float> clean = logits_of(other.llama, tokens);
  Matrix<float> inside;
  const Tap tap{
      {1, SiteKind::residual}, [&](MatrixMap<float> x, Index) { inside = logits_of(other.llama, tokens), x.setZero(); }, true};
  logits_of(one.llama, tokens, {tap});
  CHECK(inside == clean);
}

TEST_CASE("what is no model is refused in one sentence", "[host][llama_cpp]") {
  const std::string bytes = sae_test::tiny_gguf_bytes(sae_test::make_tiny_llama());
  const auto refused = [](const std::string& path, const LlamaCppOptions& options = {.context = 64}) -> std::string {
    try {
      LlamaCpp model(path, options);
    } catch (const HostError& error) {
      return error.what();
    } catch (const ValueError& error) {
      return error.what();
    }
    return "accepted";
  };
  CHECK_THAT(refused(""), ContainsSubstring("the model's path is empty"));
  CHECK_THAT(refused("/no/such/model.gguf"), ContainsSubstring("/no/such/model.gguf: there is no such file"));
  CHECK_THAT(refused("/"), ContainsSubstring("not a regular file"));
  for (const char* text : {"", "GG", "hello, I am a text"}) {
    const TemporaryFile file("text.gguf", text);
    CHECK_THAT(refused(file.path()), ContainsSubstring("is not a GGUF file"));
  }
  for (const std::size_t size :
       {std::size_t{4}, std::size_t{20}, std::size_t{200}, std::size_t{1500}, bytes.size() / 2, bytes.size() - 64}) {
    const TemporaryFile file("cut.gguf", std::string_view(bytes).substr(0, size));
    const std::string message = refused(file.path());
    INFO(size << ": " << message);
    CHECK_THAT(message, ContainsSubstring("llama.cpp cannot load the model: "));
    CHECK(message.find('\n') == std::string::npos);
  }
  TinyLlama twice = sae_test::make_tiny_llama();
  twice.vocabulary[10] = twice.vocabulary[11];  // an assertion of llama.cpp that would end the process
  const TemporaryFile doubled("doubled.gguf", sae_test::tiny_gguf_bytes(twice));
  CHECK_THAT(refused(doubled.path()), ContainsSubstring("llama.cpp cannot load the model: "));
  const TemporaryFile good("good.gguf", bytes);
  CHECK_THAT(refused(good.path(), {.context = 1}), ContainsSubstring("context = 1 is not in [2, 65536]"));
  CHECK_THAT(refused(good.path(), {.context = 1 << 20}), ContainsSubstring("context = 1048576"));
  CHECK_THAT(refused(good.path(), {.threads = -1}), ContainsSubstring("threads = -1"));
  CHECK(refused(good.path()) == "accepted");
}

TEST_CASE("what the model cannot read or run is refused in one sentence", "[host][llama_cpp]") {
  Pair pair;
  CHECK_THROWS_WITH(pair.llama.tokenize("the cat \xF0\x9F\x90\xB1 and"),
                    ContainsSubstring("it has no token for the bytes F0 9F 90 B1 at offset 8"));
  CHECK_THROWS_WITH(pair.llama.tokenize("a A"),
                    ContainsSubstring("the vocabulary cannot spell the text: it has no token for the bytes 41 at offset 2"));
  CHECK_THROWS_AS(pair.llama.tokenize("\xF0\x9F"), HostError);
  CHECK(pair.llama.tokenize("").empty());
  CHECK_THROWS_WITH(cut_windows(pair.llama, "", {.context = 8}), "windows: the text is empty");
  CHECK_THROWS_WITH(cut_windows(pair.llama, "the", {.context = 8}), ContainsSubstring("one window of 8 needs 7"));
  CHECK_THROWS_AS(pair.llama.token_text(-1), ValueError);
  CHECK_THROWS_AS(pair.llama.token_text(57), ValueError);
  const std::vector<Token> tokens = some_tokens(), outside = {1, 4, 57};
  CHECK_THROWS_WITH(pair.llama.run(outside), ContainsSubstring("token 57 at index 2 is not in [0, 57)"));
  CHECK_THROWS_WITH(rows_of(pair.llama, tokens, {{3, SiteKind::residual}}),
                    ContainsSubstring("none of the model's layers 0 to 2"));
  CHECK_THROWS_AS(pair.llama.run(std::vector<Token>(65, 4)), ValueError);
  CHECK(pair.llama.run(std::vector<Token>(64, 4), {}, {.logits = Logits::all}).rows() == 64);
}
