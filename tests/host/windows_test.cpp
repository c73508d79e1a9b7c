#include <sae/host/windows.hpp>

#include <numeric>

#include "catch_compat.hpp"
#include "naive_llama.hpp"

using namespace sae;
using Catch::Matchers::ContainsSubstring;

namespace {
std::vector<Token> counting(std::size_t n) {
  std::vector<Token> out(n);
  std::iota(out.begin(), out.end(), 100);
  return out;
}
std::vector<Token> window(const Windows& windows, Index w) { return {windows[w].begin(), windows[w].end()}; }
}  // namespace

TEST_CASE("windows are BOS and consecutive text without overlap, the short tail is dropped", "[host][windows]") {
  const Windows windows(counting(11), 1, {.context = 4, .tokens = 0});
  REQUIRE(windows.count() == 3);
  CHECK(window(windows, 0) == std::vector<Token>{1, 100, 101, 102});
  CHECK(window(windows, 2) == std::vector<Token>{1, 106, 107, 108});
  CHECK(windows.has_bos());
  CHECK(windows.text_tokens() == 9);
  CHECK(windows.text_position(2) == 6);
}

TEST_CASE("a model without BOS gets full windows", "[host][windows]") {
  const Windows windows(counting(11), no_token, {.context = 4, .tokens = 0});
  REQUIRE(windows.count() == 2);
  CHECK(window(windows, 1) == std::vector<Token>{104, 105, 106, 107});
  CHECK_FALSE(windows.has_bos());
}

TEST_CASE("skipped and counted are text tokens", "[host][windows]") {
  const Windows windows(counting(100), 1, {.context = 4, .skip_tokens = 5, .tokens = 8});
  REQUIRE(windows.count() == 2);  // 8 text tokens hold two windows of three
  CHECK(window(windows, 0) == std::vector<Token>{1, 105, 106, 107});
  CHECK(windows.text_position(1) == 8);
  CHECK(Windows(counting(100), 1, {.context = 4, .tokens = 0}).count() == 33);
}

TEST_CASE("a text without one window is refused in a sentence", "[host][windows]") {
  CHECK_THROWS_WITH(Windows({}, 1, {.context = 4}), ContainsSubstring("the text is empty"));
  CHECK_THROWS_WITH(Windows(counting(2), 1, {.context = 4}),
                    "windows: the text has 2 tokens, 2 after skipping 0; one window of 4 needs 3");
  CHECK_THROWS_WITH(Windows(counting(5), 1, {.context = 4, .skip_tokens = 9}), ContainsSubstring("0 after skipping 9"));
  CHECK_THROWS_WITH(Windows(counting(5), 1, {.context = 4, .tokens = 2}), ContainsSubstring("tokens = 2 is less than the 3"));
  CHECK_THROWS_WITH(Windows(counting(5), 1, {.context = 1}), ContainsSubstring("context = 1 is below 2"));
  CHECK_THROWS_AS(Windows(counting(5), 1, {.context = 4, .skip_tokens = -1}), ValueError);
  CHECK_THROWS_AS(Windows(counting(5), 1, {.context = 4, .tokens = -1}), ValueError);
}

TEST_CASE("a model's own windows begin with its BOS and fit in its context", "[host][windows]") {
  const sae_test::NaiveLlama model(sae_test::make_tiny_llama());
  const Windows windows = cut_windows(model, "abc def", {.context = 4, .tokens = 0});
  REQUIRE(windows.count() == 2);
  CHECK(window(windows, 1) == std::vector<Token>{1, 3, 7, 8});
  CHECK_THROWS_WITH(cut_windows(model, "", {.context = 4}), "windows: the text is empty");
  CHECK_THROWS_WITH(cut_windows(model, "abc", {.context = 65}), ContainsSubstring("context = 65 exceeds the model's 64"));
}
