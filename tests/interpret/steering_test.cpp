#include <sae/interpret/steering.hpp>

#include <sae/interpret/count_words.hpp>
#include <sae/interpret/interventions.hpp>

#include <cmath>
#include <limits>

#include "catch_compat.hpp"
#include "naive_llama.hpp"

using namespace sae;

namespace {
Index count(const std::string& text, const std::vector<std::string>& words) { return count_words(text, words); }
}  // namespace

TEST_CASE("words are counted whole, in either case, with letters open where a star stands", "[interpret][steering]") {
  CHECK(count("May in March, in the market; march!", {"march"}) == 2);
  CHECK(count("May in March, in the market; march!", {"mar*"}) == 3);
  CHECK(count("May in March, in the market; march!", {"may", "march"}) == 3);
  CHECK(count("he walked and looked, red", {"*ed"}) == 3);
  CHECK(count("he walked and looked, edward", {"*ed"}) == 2);
  CHECK(count("unhappily", {"*happ*"}) == 1);
  CHECK(count("\"Yes,\" said he. \"No.\"", {"\""}) == 4);
  CHECK(count("I am; I'm. II", {"I"}) == 2);  // an apostrophe ends a word
  CHECK(count("aaaa", {"*aa*"}) == 2);        // no occurrence overlaps another one
  CHECK(count("ever\xc3\xa9 ever", {"ever"}) == 1);
  CHECK(count("", {"a"}) == 0);
  CHECK(count("ab", {"abc"}) == 0);
  CHECK(count("abc", {}) == 0);
  CHECK_THROWS_WITH(count("abc", {"*"}), "count_words: a word has no letters");
  CHECK_THROWS_WITH(count("abc", {"b", ""}), "count_words: a word has no letters");
}

TEST_CASE("a steering curve is texts under the edit, their effect, and their loss without it", "[interpret][steering]") {
  sae_test::NaiveLlama model(sae_test::make_tiny_llama());
  const Site site{1, SiteKind::residual};
  RowVector<float> direction = RowVector<float>::Zero(model.shape().width);
  direction[3] = 1;
  const auto taps_of = [&](double strength) {
    return std::vector<Tap>{add_direction(site, direction, strength, EditedRows::after_first())};
  };
  const std::vector<std::vector<Token>> prompts = {model.tokenize("the dog"), model.tokenize("a hill")};
  const std::vector<double> strengths = {0, 6, -6};
  const GenerateOptions how{.tokens = 6, .temperature = 1, .seed = 11};
  const auto effect = [](std::span<const Token> text) {
    return static_cast<double>(std::count_if(text.begin(), text.end(), [](Token token) { return token % 2 == 0; }));
  };
  std::vector<Index> heard;
  const auto curve =
      steering_curve(model, prompts, strengths, taps_of, effect, how, [&](Index done) { heard.push_back(done); });
  REQUIRE(curve.size() == 3);
  CHECK(heard == std::vector<Index>{1, 2, 3, 4, 5, 6});
  for (const SteeringPoint& point : curve) {
    REQUIRE(point.texts.size() == 2);
    double sum = 0, loss = 0, above = 0;
    Index tokens = 0;
    for (std::size_t n = 0; n < 2; ++n) {
      GenerateOptions one = how;
      one.seed += n;
      CHECK(point.texts[n] == generate(model, prompts[n], one, taps_of(point.strength)));
      const double found = effect(point.texts[n]);
      sum += found;
      above += found > 0 ? 1 : 0;
      tokens += static_cast<Index>(point.texts[n].size());
      std::vector<Token> whole = {model.bos()};
      whole.insert(whole.end(), prompts[n].begin(), prompts[n].end());
      for (const Token token : point.texts[n]) {  // the chain rule, token by token, of the model as it is
        const Matrix<float> logits = model.run(whole, {}, {.logits = Logits::last});
        double total = 0;
        for (Index j = 0; j < logits.cols(); ++j) total += std::exp(static_cast<double>(logits(0, j)));
        loss -= static_cast<double>(logits(0, token)) - std::log(total);
        whole.push_back(token);
      }
    }
    CHECK(point.effect == sum / 2);
    CHECK(point.share == above / 2);
    CHECK(point.tokens == tokens);
    CHECK(point.cross_entropy == Approx(loss / static_cast<double>(tokens)).epsilon(1e-6));
  }
  CHECK(curve[0].texts != curve[1].texts);
  CHECK(curve[1].cross_entropy > curve[0].cross_entropy);
}

TEST_CASE("a steering curve without prompts, strengths or numbers is refused", "[interpret][steering]") {
  sae_test::NaiveLlama model(sae_test::make_tiny_llama());
  const std::vector<std::vector<Token>> prompts = {model.tokenize("a")};
  const auto taps_of = [](double) { return std::vector<Tap>{}; };
  const auto effect = [](std::span<const Token>) { return 0.0; };
  const auto curve = [&](const std::vector<std::vector<Token>>& texts, const std::vector<double>& strengths) {
    return steering_curve(model, texts, strengths, taps_of, effect, {.tokens = 2});
  };
  CHECK(curve(prompts, {0}).size() == 1);
  CHECK_THROWS_WITH(curve({}, {0}), "steering_curve: there is no prompt");
  CHECK_THROWS_WITH(curve(prompts, {}), "steering_curve: there is no strength");
  CHECK_THROWS_WITH(curve(prompts, {std::numeric_limits<double>::infinity()}),
                    "steering_curve: a strength of inf is not a finite number");
}

TEST_CASE("edited rows can be told by a predicate of the caller", "[interpret][steering]") {
  const auto odd = EditedRows::where([](Index position) { return position % 2 == 1; });
  CHECK_FALSE(odd.has(0));
  CHECK(odd.has(1));
  CHECK_FALSE(odd.but_from(2).has(1));
  CHECK(odd.but_from(2).has(3));
}
