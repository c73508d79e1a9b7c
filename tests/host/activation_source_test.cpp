#include <sae/host/activation_source.hpp>

#include <cmath>
#include <limits>

#include "catch_compat.hpp"
#include "naive_llama.hpp"

using namespace sae;
using Catch::Matchers::ContainsSubstring;

namespace {
/// Rows whose norm the token decides: row = (token, 0) at site 0, (0, -token) at site 1; token 0 is NaN at site 1, BOS 1000.
struct NormModel {
  Index runs = 0;
  ModelShape shape() const { return {2, 2, 2000, 1024}; }
  std::string name() const { return "norms"; }
  Token bos() const { return 1000; }
  std::vector<Site> sites() const { return {{0, SiteKind::residual}, {1, SiteKind::residual}}; }
  std::vector<Token> tokenize(std::string_view) const { return {}; }
  std::string token_text(Token) const { return {}; }
  Matrix<float> unembedding() const { return {}; }
  ConstMatrixMap<float> run(std::span<const Token> tokens, std::span<const Tap> taps, const RunOptions& options) {
    check_run(shape(), tokens, taps, options);
    ++runs;
    for (const Tap& tap : taps) {
      Matrix<float> rows = Matrix<float>::Zero(static_cast<Index>(tokens.size()), 2);
      for (Index t = 0; t < rows.rows(); ++t) {
        const auto value = static_cast<float>(tokens[static_cast<std::size_t>(t)]);
        rows(t, tap.site.layer) = tap.site.layer == 0 ? value : value == 0 ? std::numeric_limits<float>::quiet_NaN() : -value;
      }
      tap.visit({rows.data(), rows.rows(), rows.cols()}, 0);
    }
    return {nullptr, 0, 2000};
  }
};
static_assert(LanguageModel<NormModel>);
static_assert(RowSource<ActivationSource<NormModel>, float>);

const std::vector<Site> both = {{0, SiteKind::residual}, {1, SiteKind::residual}};

struct Seen {
  std::vector<RowOrigin> origins;
  std::vector<float> first, second;
};
Seen gather(NormModel& model, const Windows& windows, CollectReport& report, const CollectOptions& options = {}) {
  Seen seen;
  report = collect(
      model, windows, both,
      [&](const CollectedRows& rows, Index) {
        seen.origins.insert(seen.origins.end(), rows.origins.begin(), rows.origins.end());
        REQUIRE(rows.sites.size() == 2);
        for (Index i = 0; i < rows.sites[0].rows(); ++i) {
          seen.first.push_back(rows.sites[0](i, 0));
          seen.second.push_back(rows.sites[1](i, 1));
        }
      },
      options);
  return seen;
}
}  // namespace

TEST_CASE("BOS, rows beyond the limit and rows that are no numbers are left out and counted", "[host][activation_source]") {
  NormModel model;
  const std::vector<Token> text = {10, 11, 12, 110, 111, 0, 9, 8, 10};  // median of the finite norms: the lower middle one, 10
  const Windows windows(text, 1000, {.context = 4, .tokens = 0});
  CollectReport report;
  const Seen seen = gather(model, windows, report);
  CHECK(report.counts.bos == 3);
  CHECK(report.counts.norm == 2);  // 110 and 111: above ten times 10
  CHECK(report.counts.not_finite == 1);
  CHECK(report.counts.kept == 6);
  CHECK(report.windows == 3);
  CHECK(report.limits == std::vector<double>{100, 100});
  CHECK(seen.first == std::vector<float>{10, 11, 12, 9, 8, 10});
  CHECK(seen.second == std::vector<float>{-10, -11, -12, -9, -8, -10});  // the NaN at site 1 is out at site 0, too
  REQUIRE(seen.origins.size() == 6);
  CHECK(seen.origins[2] == RowOrigin{12, 0, 3});
  CHECK(seen.origins[3] == RowOrigin{9, 2, 1});
}

TEST_CASE("BOS is kept on request, whatever its norm, max_norm 0 keeps every finite row", "[host][activation_source]") {
  NormModel model;
  const Windows windows(std::vector<Token>{10, 11, 12, 110, 111, 0, 9, 8, 10}, 1000, {.context = 4, .tokens = 0});
  CollectReport report;
  CHECK(gather(model, windows, report, {.keep_bos = true}).first == std::vector<float>{1000, 10, 11, 12, 1000, 1000, 9, 8, 10});
  CHECK(report.counts == CollectCounts{9, 0, 2, 1});
  CHECK(gather(model, windows, report, {.max_norm = 0}).first == std::vector<float>{10, 11, 12, 110, 111, 9, 8, 10});
  CHECK(report.counts == CollectCounts{8, 3, 0, 1});
}

TEST_CASE("the median is that of the first 4096 rows and stays", "[host][activation_source]") {
  NormModel model;
  std::vector<Token> text(4096, 2);
  text.insert(text.end(), 20000, 1);  // would pull the median to 1
  text.push_back(15);
  text.push_back(21);
  const Windows windows(text, no_token, {.context = 2, .tokens = 0});
  CollectReport report;
  const Seen seen = gather(model, windows, report);
  CHECK(report.limits == std::vector<double>{20, 20});
  CHECK(report.counts == CollectCounts{24097, 0, 1, 0});
  CHECK(seen.first.back() == 15);
}

TEST_CASE("rows that are left out are handed out on request and marked, and what is kept stays the same",
          "[host][activation_source]") {
  NormModel model;
  std::vector<Token> text = {10, 11, 12, 110, 111, 0, 9, 8, 10};
  text.resize(9 + 3 * 3000, 10);  // further than the median looks
  const Windows windows(text, 1000, {.context = 4, .tokens = 0});
  for (const bool keep_bos : {false, true}) {
    CollectReport report, marked;
    const Seen seen = gather(model, windows, report, {.keep_bos = keep_bos});
    Seen kept;
    std::vector<Index> lengths;
    marked =
        collect(model, windows, both,
                [&](const CollectedRows& rows, Index) {
                  REQUIRE(rows.kept.size() == rows.origins.size());
                  for_each_window(rows, [&](Index first, Index count) {
                    lengths.push_back(count);
                    for (Index i = first; i < first + count; ++i) {
                      CHECK(rows.origins[static_cast<std::size_t>(i)].window == static_cast<std::int32_t>(lengths.size()) - 1);
                      if (rows.kept[static_cast<std::size_t>(i)] == 0) continue;
                      kept.origins.push_back(rows.origins[static_cast<std::size_t>(i)]);
                      kept.first.push_back(rows.sites[0](i, 0));
                      kept.second.push_back(rows.sites[1](i, 1));
                    }
                  });
                },
                {.keep_bos = keep_bos, .hand_out_all = true});
    CHECK(kept.origins == seen.origins);
    CHECK(kept.first == seen.first);
    CHECK(kept.second == seen.second);
    CHECK(marked.counts == report.counts);
    CHECK(marked.limits == report.limits);
    CHECK(static_cast<Index>(lengths.size()) == windows.count());
    CHECK(std::count(lengths.begin(), lengths.end(), 4) == windows.count() - 1);
    CHECK(lengths[1] == 3);  // the NaN alone is missing
  }
  CHECK_THROWS_WITH(ActivationSource<NormModel>(model, windows, both, {.hand_out_all = true}),
                    ContainsSubstring("hand_out_all"));
}

TEST_CASE("a sink that returns false ends the collection", "[host][activation_source]") {
  NormModel model;
  const Windows windows(std::vector<Token>(100, 3), 1000, {.context = 11, .tokens = 0});
  Index calls = 0;
  const auto report = collect(model, windows, both, [&](const CollectedRows&, Index) { return ++calls < 2; }, {.max_norm = 0});
  CHECK(calls == 2);
  CHECK(report.windows == 2);
  CHECK(model.runs == 2);
}

TEST_CASE("what cannot be collected is refused", "[host][activation_source]") {
  NormModel model;
  const Windows windows(std::vector<Token>(9, 3), 1000, {.context = 4, .tokens = 0});
  const auto sink = [](const CollectedRows&, Index) {};
  const std::vector<Site> twice = {both[0], both[0]};
  CHECK_THROWS_WITH(collect(model, windows, twice, sink), ContainsSubstring("residual-0 is asked for twice"));
  CHECK_THROWS_AS(collect(model, windows, {}, sink), ValueError);
  CHECK_THROWS_AS(collect(model, Windows(), both, sink), ValueError);
  CHECK_THROWS_AS(collect(model, windows, both, sink, {.max_norm = -1}), ValueError);
}

TEST_CASE("the source yields the collected rows in any batch size, sites side by side", "[host][activation_source]") {
  NormModel model;
  std::vector<Token> text;
  for (Token i = 0; i < 5000; ++i) text.push_back(5 + i % 90);
  const Windows windows(text, 1000, {.context = 8, .tokens = 0});
  CollectReport report;
  const Seen seen = gather(model, windows, report);
  REQUIRE(seen.first.size() > 4096);
  for (const Index size : {1, 7, 1000, 10000}) {
    ActivationSource<NormModel> source(model, windows, both);
    REQUIRE(source.width() == 4);
    std::vector<float> first, second;
    Tensor<float> batch(size, 4);
    for (Index n = source.next(batch); n > 0; n = source.next(batch))
      for (Index i = 0; i < n; ++i) first.push_back(batch.row(i)[0]), second.push_back(batch.row(i)[3]);
    CHECK(first == seen.first);
    CHECK(second == seen.second);
    CHECK(source.next(batch) == 0);
    CHECK(source.counts() == report.counts);
  }
  Tensor<float> wrong(3, 2);
  ActivationSource<NormModel> source(model, windows, both);
  CHECK_THROWS_AS(source.next(wrong), ShapeError);
}

TEST_CASE("a source goes on from a saved state, also in another object, over passes", "[host][activation_source]") {
  NormModel model;
  std::vector<Token> text;
  for (Token i = 0; i < 6000; ++i) text.push_back(5 + i * 7 % 97);
  const Windows windows(text, 1000, {.context = 8, .tokens = 0});
  const std::vector<Site> site = {both[0]};
  const auto drain = [](ActivationSource<NormModel>& source, std::vector<float>& out, Index batches) {
    Tensor<float> batch(333, 2);
    for (Index b = 0; b < batches; ++b) {
      const Index n = source.next(batch);
      out.insert(out.end(), batch.data(), batch.data() + n * 2);
      if (n < batch.rows()) break;
    }
  };
  ActivationSource<NormModel> straight(model, windows, site, {}, 2);
  std::vector<float> all;
  drain(straight, all, 1'000'000);
  REQUIRE(all.size() == 2 * 2 * static_cast<std::size_t>(windows.text_tokens()));
  for (const Index cut : {0, 1, 5, 13, 20, 30, 1000}) {
    std::vector<float> parts;
    ActivationSource<NormModel> before(model, windows, site, {}, 2);
    drain(before, parts, cut);
    ActivationSource<NormModel> after(model, windows, site, {}, 2);
    after.restore(before.state());
    drain(after, parts, 1'000'000);
    CHECK(parts == all);
    CHECK(after.counts() == straight.counts());
  }
  ActivationSource<NormModel> source(model, windows, site);
  SourceState foreign;
  CHECK_THROWS_AS(source.restore(foreign), ValueError);
  foreign = straight.state();
  foreign.counters[0] = 100000;  // windows
  CHECK_THROWS_AS(source.restore(foreign), ValueError);
  foreign = straight.state();
  foreign.counters.push_back(0);  // a limit of another site
  CHECK_THROWS_AS(source.restore(foreign), ValueError);
}

TEST_CASE("a text without a row to keep ends", "[host][activation_source]") {
  NormModel model;
  const Windows windows(std::vector<Token>(12, 0), 1000, {.context = 4, .tokens = 0});
  ActivationSource<NormModel> source(model, windows, both, {}, 0);
  Tensor<float> batch(4, 4);
  CHECK(source.next(batch) == 0);
  CHECK(source.counts() == CollectCounts{0, 4, 0, 12});
}
