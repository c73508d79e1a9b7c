#include <sae/report/dashboard.hpp>

#include <limits>

#include "catch_compat.hpp"
#include "message_of.hpp"
#include "run_program.hpp"
#include "temp_folder.hpp"

using namespace sae;
using Catch::Matchers::ContainsSubstring;
using nlohmann::json;

namespace {

const std::string hostile = "</script><img src=x onerror=alert(1)>";

/// Token 0 to 5: plain, hostile, not UTF-8, a line separator, a line break, a backslash.
std::string piece(Token token) {
  const std::vector<std::string> all = {" captain", hostile, "\xFF", "a\xE2\x80\xA8z", "\n", "\\n"};
  return static_cast<std::size_t>(token) < all.size() ? all[static_cast<std::size_t>(token)] : "";
}

/// Codes of random latents; the last one is never active; row 3 of latent 0 is NaN.
struct Sample {
  explicit Sample(Index latents = 9, Index rows = 200, DashboardOptions chosen = {}) : options(chosen) {
    Random random(3);
    RecordedCodes recorded(latents, {.top = 5, .bins = 8, .intervals = 4, .examples = 2});
    for (Index first = 0; first < rows; first += 50) {
      Codes<float> codes(latents);
      std::vector<RowOrigin> origins;
      for (Index b = first; b < (std::min)(first + 50, rows); ++b) {
        for (Index i = 0; i + 1 < latents || (latents == 1 && i == 0); ++i)
          if (random.uniform() < 0.3 || (b == 3 && i == 0))
            codes.push(
                i, b == 3 && i == 0 ? std::numeric_limits<float>::quiet_NaN() : static_cast<float>(random.uniform(0.01, 3)));
        codes.finish_row();
        origins.push_back({static_cast<Token>(b % 7), static_cast<std::int32_t>(b / 40),
                           static_cast<std::int32_t>(b % 40 + (b % 40 >= 20 ? 1 : 0))});
      }
      blocks.push_back(codes);
      recorded.add(std::move(codes), origins);
    }
    directions.resize(latents, 6);
    unembedding.resize(7, 6);
    for (Matrix<float>* m : {&directions, &unembedding})
      for (Index i = 0; i < m->size(); ++i) m->data()[i] = static_cast<float>(random.normal());
    DashboardInput input{
        .sae = "my <b>sae</b>", .architecture = "topk, k = 3", .model = "tiny", .site = "residual-1", .layer = 1};
    for (Index i = 0; i < latents; ++i) input.latents.push_back(i);
    input.token_text = piece;
    input.unembedding = &unembedding;
    input.labels = {{0, "months & </script><!--"}};
    made = make_dashboard(std::move(recorded), directions, std::move(input), options);
  }
  float f(Index row, Index latent) const {
    const float value = blocks[static_cast<std::size_t>(row / 50)].coefficient(row % 50, latent);
    return value > 0 ? value : 0.0F;
  }
  DashboardOptions options;
  std::vector<Codes<float>> blocks;
  Matrix<float> directions, unembedding;
  std::optional<Dashboard> made;
};

/// The JSON of the parts of a page, by name: what lies in it or beside it.
std::map<std::string, json> parts_of(const std::filesystem::path& path) {
  std::map<std::string, json> out;
  const bool folder = std::filesystem::is_directory(path);
  const std::string page = sae_test::file_text(folder ? path / "index.html" : path);
  const std::string open = "<script type=\"application/json\" id=\"";
  for (std::size_t at = page.find(open); at != std::string::npos; at = page.find(open, at + 1)) {
    const std::size_t name = at + open.size(), quote = page.find('"', name), begin = quote + 2,
                      end = page.find("</script>", begin);
    out[page.substr(name, quote - name)] = json::parse(page.substr(begin, end - begin));
  }
  if (folder)
    for (const auto& entry : std::filesystem::directory_iterator(path)) {
      if (entry.path().extension() != ".js") continue;
      const std::string name = entry.path().stem().string(), text = sae_test::file_text(entry.path());
      const std::string head = "receive(\"" + name + "\", ";
      REQUIRE(text.starts_with(head));
      REQUIRE(text.ends_with(");\n"));
      out[name] = json::parse(text.substr(head.size(), text.size() - head.size() - 3));
    }
  return out;
}

}  // namespace

TEST_CASE("the data of a dashboard are those of a naive look at all codes", "[dashboard]") {
  const Sample sample;
  const json all = dashboard_json(*sample.made);
  CHECK(all["rows"] == 200);
  REQUIRE(all["shown"].size() == 9);
  for (Index i = 0; i < 9; ++i) {
    CAPTURE(i);
    const json& shown = all["shown"][static_cast<std::size_t>(i)];
    std::vector<std::pair<float, Index>> active;
    for (Index row = 0; row < 200; ++row)
      if (const float f = sample.f(row, i); f > 0) active.push_back({-f, row});
    std::sort(active.begin(), active.end());
    CHECK(shown["active_rows"] == active.size());
    REQUIRE(shown["top"].size() == (std::min)(active.size(), std::size_t{5}));
    for (std::size_t n = 0; n < shown["top"].size(); ++n) {
      const json& context = shown["top"][n];
      const Index row = active[n].second;
      CHECK(context["row"] == row);
      CHECK(context["value"].get<float>() == -active[n].first);
      // Rows of a window are neighbours; position 20 of each was left out.
      const Index place = row % 40, from = std::max<Index>({0, place - 20 + (place >= 20 && place - 20 < 20 ? 1 : 0)});
      const Index to = std::min<Index>(39, place + 10 - (place < 20 && place + 10 >= 20 ? 1 : 0));
      REQUIRE(context["tokens"].size() == static_cast<std::size_t>(to - from + 1));
      CHECK(context["active"] == place - from);
      for (Index p = from; p <= to; ++p) {
        const Index there = row - place + p;
        const auto k = static_cast<std::size_t>(p - from);
        CHECK(context["values"][k].get<float>() == sample.f(there, i));
        const std::string expected =
            piece(static_cast<Token>(there % 7)).empty() ? "<6>" : visible_text(piece(static_cast<Token>(there % 7)));
        CHECK(context["tokens"][k] == expected);
      }
    }
    std::int64_t inside = 0;
    for (const json& n : shown["histogram"]["counts"]) inside += n.get<std::int64_t>();
    CHECK(inside == static_cast<std::int64_t>(active.size()));
    for (const json& interval : shown["examples"])
      for (const json& context : interval["contexts"]) {
        CHECK(context["value"] > interval["above"]);
        CHECK(context["value"] <= interval["up_to"]);
      }
    // What it promotes, and what is near it.
    const Eigen::VectorXf logits = sample.unembedding * sample.directions.row(i).transpose();
    Eigen::Index best = 0;
    CHECK(std::abs(shown["promoted"][0]["logit"].get<float>() - logits.maxCoeff(&best)) < 1e-5F);
    CHECK(shown["promoted"][0]["token"] == best);
    CHECK(shown["promoted"].size() == 7);
    CHECK(shown["nearest"].size() == 8);
    double nearest = -2;
    for (Index j = 0; j < 9; ++j)
      if (j != i)
        nearest = (std::max)(
            nearest, static_cast<double>(sample.directions.row(i).normalized().dot(sample.directions.row(j).normalized())));
    CHECK(std::abs(shown["nearest"][0]["cosine"].get<double>() - nearest) < 1e-5);
    for (const json& other : shown["co_active"]) {
      Index together = 0;
      for (Index row = 0; row < 200; ++row) together += sample.f(row, i) > 0 && sample.f(row, other["latent"].get<Index>()) > 0;
      CHECK(other["rows_together"] == together);
      CHECK(other["correlation"] > 0);
      CHECK(other["latent"] != i);
    }
  }
  CHECK(all["shown"][8]["active_rows"] == 0);
  CHECK(all["shown"][8]["top"].empty());
  CHECK(all["shown"][0]["label"] == "months & </script><!--");
}

TEST_CASE("page and folder hold the data of the JSON", "[dashboard]") {
  const Sample sample(150, 300);
  const TempFolder folder;
  write_dashboard_file(folder / "page.html", *sample.made);
  write_dashboard_folder(folder / "page", *sample.made);
  const auto page = parts_of(folder / "page.html");
  CHECK(page == parts_of(folder / "page"));
  REQUIRE(page.size() == 5);  // overview, text, three times latents
  const json all = dashboard_json(*sample.made);
  const json &overview = page.at("overview"), &text = page.at("text");
  CHECK(overview["latents"] == 150);
  for (std::size_t n = 0; n < 150; ++n) {
    CAPTURE(n);
    const json &shown = all["shown"][n], &packed = page.at("latents-" + std::to_string(n / 64))[n % 64];
    CHECK(overview["latent"][n] == n);
    CHECK(overview["active"][n] == shown["active_rows"]);
    CHECK(overview["max"][n] == shown["max"]);
    CHECK(packed["counts"] == shown["histogram"]["counts"]);
    REQUIRE(packed["top"].size() == shown["top"].size());
    for (std::size_t c = 0; c < packed["top"].size(); ++c) {
      const json &context = packed["top"][c], &expected = shown["top"][c];
      json tokens = json::array(), values = json::array();
      for (Index row = context[0].get<Index>() - context[1].get<Index>();
           row <= context[0].get<Index>() + context[2].get<Index>(); ++row) {
        tokens.push_back(text["pieces"][text["rows"][static_cast<std::size_t>(row)].get<std::size_t>()]);
        values.push_back(0.0);
      }
      values[context[1].get<std::size_t>()] = context[3];
      for (std::size_t k = 4; k < context.size(); k += 2)
        values[static_cast<std::size_t>(context[1].get<Index>() + context[k].get<Index>())] = context[k + 1];
      CHECK(tokens == expected["tokens"]);
      CHECK(values == expected["values"]);
    }
    CHECK(packed["nearest"].size() == 10);
  }
  CHECK(text["gaps"][0] == 20);
}

TEST_CASE("nothing out of a text can leave its place in the page", "[dashboard]") {
  const Sample sample;
  const TempFolder folder;
  write_dashboard_file(folder / "page.html", *sample.made);
  write_dashboard_folder(folder / "page", *sample.made);
  const std::string page = sae_test::file_text(folder / "page.html");
  std::size_t closed = 0, opened = 0;
  for (std::size_t at = page.find("</script"); at != std::string::npos; at = page.find("</script", at + 1)) ++closed;
  for (std::size_t at = page.find("<script"); at != std::string::npos; at = page.find("<script", at + 1)) ++opened;
  CHECK(closed == 4);  // overview, text, one part of latents, the page's own
  CHECK(opened == 4);
  for (const std::string& text :
       {page, sae_test::file_text(folder / "page" / "text.js"), sae_test::file_text(folder / "page" / "latents-0.js")}) {
    CHECK(text.find("<img") == std::string::npos);
    CHECK(text.find("<b>sae") == std::string::npos);
    CHECK(text.find("<!--") == std::string::npos);
    CHECK(text.find("\xE2\x80\xA8") == std::string::npos);
    CHECK(utf8_text(text) == text);
  }
  CHECK_THAT(page, ContainsSubstring("\\u003c/script>"));
  const auto parts = parts_of(folder / "page.html");
  CHECK(parts.at("overview")["label"][0] == "months & </script><!--");
  CHECK(parts.at("text")["pieces"][1] == hostile);
  CHECK(parts.at("text")["pieces"][2] == "\\xff");
  CHECK(parts.at("text")["pieces"][5] == "\\\\n");
  CHECK(detail::script_json("a\xE2\x80\xA8\xE2\x80\xA9\xE2\x80\xAA\xFF<") ==
        "\"a\\u2028\\u2029\xE2\x80\xAA\xEF\xBF\xBD\\u003c\"");
}

TEST_CASE("a line of the export has Neuronpedia's fields", "[dashboard]") {
  const Sample sample;
  const TempFolder folder;
  write_neuronpedia(folder / "out.jsonl", *sample.made);
  const std::string text = sae_test::file_text(folder / "out.jsonl");
  CHECK(std::count(text.begin(), text.end(), '\n') == 9);
  const json line = json::parse(text.substr(0, text.find('\n')));
  CHECK(line["index"] == "0");
  CHECK(line["layer"] == "residual-1");
  CHECK(line["explanations"][0]["description"] == "months & </script><!--");
  CHECK(line["pos_str"].size() == line["pos_values"].size());
  CHECK(line["neg_values"][0] < line["neg_values"][6]);
  CHECK(line["freq_hist_data_bar_heights"].size() == 8);
  double shares = 0;
  std::map<double, double> bins;
  for (const json& activation : line["activations"]) {
    REQUIRE(activation["tokens"].size() == activation["values"].size());
    const auto& values = activation["values"];
    CHECK(activation["maxValue"] == *std::max_element(values.begin(), values.end()));
    CHECK(values[activation["maxValueTokenIndex"].get<std::size_t>()] == activation["maxValue"]);
    if (activation["binMax"] != -1) bins[activation["binMin"].get<double>()] = activation["binContains"].get<double>();
  }
  for (const auto& [low, share] : bins) shares += share;
  CHECK(std::abs(shares - 1) < 1e-12);
}

TEST_CASE("results of a dashboard do not depend on threads", "[dashboard]") {
  const Sample sample(300, 200);
  RecordedCodes rows(300);
  for (const Codes<float>& block : sample.blocks)
    rows.add(block, std::vector<RowOrigin>(static_cast<std::size_t>(block.rows())));
  const auto with = [&](int count) {
    Threads threads(count);
    DashboardInput input;
    for (Index i = 299; i >= 0; --i) input.latents.push_back(i);
    return dashboard_json(make_dashboard(rows, sample.directions, input, {}, threads)).dump();
  };
  CHECK(with(1) == with(3));
}

TEST_CASE("small dashboards, and what is refused", "[dashboard]") {
  const json one = dashboard_json(*Sample(1, 30).made);
  CHECK(one["shown"][0]["nearest"].empty());
  CHECK(one["shown"][0]["co_active"].empty());
  const json nothing = dashboard_json(*Sample(2, 0).made);
  CHECK(nothing["rows"] == 0);
  CHECK(nothing["shown"][0]["density"] == 0);
  const json bare = dashboard_json(*Sample(4, 60, {.before = 0, .after = 0, .logits = 0, .nearest = 0, .co_active = 0}).made);
  CHECK(bare["shown"][0]["top"][0]["tokens"].size() == 1);
  for (const char* list : {"promoted", "suppressed", "nearest", "co_active"}) CHECK(bare["shown"][0][list].empty());

  const TempFolder folder;
  const Sample small(4, 20, {.file_latents = 3});
  CHECK(sae_test::message_of([&] { write_dashboard_file(folder / "page.html", *small.made); }) ==
        "dashboard: 4 latents are more than the 3 of one file");
  CHECK_FALSE(std::filesystem::exists(folder / "page.html"));
  write_dashboard_folder(folder / "page", *small.made);
  CHECK_THAT(sae_test::message_of([&] { write_dashboard_folder(folder / "page", *small.made); }), ContainsSubstring("exists"));
  write_dashboard_folder(folder / "page", *small.made, {.overwrite = true});
  sae_test::write_text(folder / "page" / "mine", "x");
  std::filesystem::remove(folder / "page" / "index.html");
  CHECK_THAT(sae_test::message_of([&] { write_dashboard_folder(folder / "page", *small.made, {.overwrite = true}); }),
             ContainsSubstring("index.html"));

  const Matrix<float> directions = Matrix<float>::Identity(3, 3);
  const auto make = [&](std::vector<Index> latents, Index all = 3, DashboardOptions options = {}) {
    return sae_test::message_of(
        [&] { make_dashboard(RecordedCodes(all), directions, {.latents = std::move(latents)}, options); });
  };
  CHECK(make({0, 3}) == "dashboard: latent 3 is not in [0, 3) (the number of latents)");
  CHECK(make({1, 1}) == "dashboard: latent 1 is named twice");
  CHECK(make({0}, 4) == "dashboard: 3 directions for 4 latents");
  CHECK_THAT(make({0}, 3, {.before = -1}), ContainsSubstring("before = -1"));
  CHECK(make({}) == "nothing was thrown");
}
