#include <sae/host/generate.hpp>

#include <cmath>
#include <limits>
#include <map>

#include "catch_compat.hpp"
#include "naive_llama.hpp"

using namespace sae;
using Catch::Matchers::ContainsSubstring;

TEST_CASE("temperature 0 takes the most likely token, the lower one of equals", "[host][generate]") {
  const std::vector<float> logits = {0, 3, 1, 3};
  for (const double u : {0.0, 0.5, 0.999}) CHECK(sample_token(logits, {}, u) == 1);
}

TEST_CASE("a draw falls into the token's share between 0 and 1", "[host][generate]") {
  const std::vector<float> logits = {std::log(1.0F), std::log(2.0F), std::log(4.0F), std::log(1.0F)};  // 1/8 2/8 4/8 1/8
  const SampleOptions all{.temperature = 1};
  CHECK(sample_token(logits, all, 0.0) == 0);
  CHECK(sample_token(logits, all, 0.124) == 0);
  CHECK(sample_token(logits, all, 0.126) == 1);
  CHECK(sample_token(logits, all, 0.374) == 1);
  CHECK(sample_token(logits, all, 0.376) == 2);
  CHECK(sample_token(logits, all, 0.876) == 3);
  CHECK(sample_token(logits, all, std::nextafter(1.0, 0.0)) == 3);
  CHECK(sample_token(logits, {.temperature = 0.5}, 1.01 / 22) == 1);  // shares 1 4 16 1 of 22
  CHECK(sample_token(logits, {.temperature = 0.5}, 0.99 / 22) == 0);
  CHECK(sample_token(logits, {.temperature = 1, .top_k = 2}, 0.0) == 1);  // 1/3 and 2/3 are left
  CHECK(sample_token(logits, {.temperature = 1, .top_k = 2}, 0.34) == 2);
  CHECK(sample_token(logits, {.temperature = 1, .top_k = 3}, 0.0) == 0);  // of the equals 0 and 3 the lower one stays
  CHECK(sample_token(logits, {.temperature = 1, .top_k = 3}, 0.999) == 2);
  CHECK(sample_token(logits, {.temperature = 1, .top_k = 9}, 0.999) == 3);
}

TEST_CASE("logits that are no numbers are refused", "[host][generate]") {
  const float infinity = std::numeric_limits<float>::infinity();
  CHECK_THROWS_AS(sample_token(std::vector<float>{0, std::numeric_limits<float>::quiet_NaN()}, {}, 0), HostError);
  CHECK_THROWS_AS(sample_token(std::vector<float>{infinity, 0}, {}, 0), HostError);
  CHECK_THROWS_AS(sample_token(std::vector<float>{-infinity, -infinity}, {}, 0), HostError);
  CHECK_THROWS_AS(sample_token({}, {}, 0), HostError);
  CHECK(sample_token(std::vector<float>{-infinity, 0}, {.temperature = 1}, 0) == 1);
}

TEST_CASE("a text goes on by its own last logits", "[host][generate]") {
  sae_test::NaiveLlama model(sae_test::make_tiny_llama());
  const std::vector<Token> prompt = model.tokenize("the dog");
  const std::vector<Token> greedy = generate(model, prompt, {.tokens = 8});
  REQUIRE(greedy.size() == 8);
  std::vector<Token> sequence = {1};
  sequence.insert(sequence.end(), prompt.begin(), prompt.end());
  for (const Token token : greedy) {
    const auto logits = model.run(sequence, {}, {.logits = Logits::last});
    Index best = 0;
    logits.row(0).maxCoeff(&best);
    CHECK(token == best);
    sequence.push_back(token);
  }
  const GenerateOptions drawn{.tokens = 12, .temperature = 1, .seed = 5};
  CHECK(generate(model, prompt, drawn) == generate(model, prompt, drawn));
  CHECK(generate(model, prompt, drawn) != generate(model, prompt, {.tokens = 12, .temperature = 1, .seed = 6}));

  std::vector<Token> heard;
  const auto stopped =
      generate(model, prompt, {.tokens = 8}, {}, [&](Token token) { return heard.push_back(token), heard.size() < 3; });
  CHECK(stopped == std::vector<Token>(greedy.begin(), greedy.begin() + 3));
  CHECK(heard == stopped);
}

TEST_CASE("prompts and lengths that cannot be are refused", "[host][generate]") {
  sae_test::NaiveLlama model(sae_test::make_tiny_llama());
  const std::vector<Token> prompt(60, 5);
  CHECK_THROWS_WITH(generate(model, prompt, {.tokens = 4}),
                    "generate: a prompt of 61 tokens and 4 new ones exceed the context of 64");
  CHECK(generate(model, prompt, {.tokens = 4, .bos = false}).size() == 4);
  CHECK_THROWS_AS(generate(model, prompt, {.tokens = 0}), ValueError);
  CHECK_THROWS_AS(generate(model, prompt, {.tokens = 1, .temperature = -1}), ValueError);
  CHECK_THROWS_AS(generate(model, prompt, {.tokens = 1, .temperature = std::nan("")}), ValueError);
  CHECK_THROWS_AS(generate(model, prompt, {.tokens = 1, .top_k = -1}), ValueError);
  CHECK_THROWS_WITH(generate(model, {}, {.tokens = 1, .bos = false}), ContainsSubstring("the prompt has no token"));
  CHECK(generate(model, {}, {.tokens = 1}).size() == 1);
}
