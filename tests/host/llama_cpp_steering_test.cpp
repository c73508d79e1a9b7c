// The verbs that edit or watch what a language model writes, as a user calls them: steer, steer-sweep, monitor, circuit.
#include <sae/host/generate.hpp>
#include <sae/interpret/circuit.hpp>
#include <sae/interpret/context_text.hpp>
#include <sae/interpret/count_words.hpp>
#include <sae/interpret/monitor.hpp>
#include <sae/interpret/steering.hpp>

#include <algorithm>
#include <cctype>

#include "catch_compat.hpp"
#include "cli_world.hpp"

#ifdef SAE_TEST_PROGRAM

using namespace sae;
using Catch::Matchers::ContainsSubstring;
using nlohmann::json;
using sae_test::check_refused;
using sae_test::Finished;
using sae_test::parsed;
using sae_test::rows_of;
using sae_test::Sae;
using sae_test::some_sae;
using sae_test::Words;
using sae_test::World;
namespace fs = std::filesystem;

TEST_CASE("steer writes the model's text beside the edited one", "[cli][llama_cpp]") {
  const World world;
  LlamaCpp model = world.model();
  const Site site{1, SiteKind::residual};
  const auto expected = [&](const std::vector<Tap>& taps) {
    std::string text;
    const GenerateOptions how{.tokens = 12};
    for (const Token token : generate(model, std::span<const Token>(model.tokenize("the cat")), how, taps))
      text += model.token_text(token);
    return text;
  };
  const auto said = [&](Words more) {
    const Words common = {"--sae", world.at("sae"), "--prompt", "the cat", "--tokens", "12", "--latent", "11,7", "--json"};
    more.insert(more.end(), common.begin(), common.end());
    return parsed(world.run("steer", more, false));
  };
  const std::string plain = expected({});
  const EditedRows rows = EditedRows::after_first();

  const json scaled = said({"--scale", "9"});
  CHECK(scaled["unsteered"] == plain);
  CHECK(scaled["steered"] == expected({steer_latent(site, world.sae, 11, 9, rows), steer_latent(site, world.sae, 7, 9, rows)}));
  CHECK(scaled["steered"] != plain);
  CHECK(scaled["site"] == "residual-1");
  CHECK(said({"--scale", "0"})["steered"] == plain);

  const json clamped = said({"--clamp", "15"});
  CHECK(clamped["steered"] == expected({edit_latents(site, world.sae, {clamp_latent(11, 15), clamp_latent(7, 15)}, rows)}));
  CHECK(clamped["steered"] != plain);
  const json ablated = said({"--ablate", "--error-term", "off"});
  CHECK(ablated["steered"] ==
        expected({edit_latents(site, world.sae, {ablate_latent(11), ablate_latent(7)}, rows, ErrorTerm::drop)}));
  CHECK(said({"--ablate"})["error_term"] == true);

  // Drawn text is fixed by the seed.
  const json drawn = said({"--scale", "9", "--temperature", "1", "--seed", "3"});
  CHECK(drawn == said({"--scale", "9", "--temperature", "1", "--seed", "3"}));
  CHECK(drawn["unsteered"] != said({"--scale", "9", "--temperature", "1", "--seed", "4"})["unsteered"]);

  const Finished columns =
      world.run("steer", {"--sae", world.at("sae"), "--prompt", "the cat", "--latent", "11", "--scale", "9"}, false);
  CHECK(columns.code == 0);
  CHECK_THAT(columns.out, ContainsSubstring("unsteered") && ContainsSubstring("| latent 11: scale 9"));
}

TEST_CASE("steer refuses what it cannot do", "[cli][llama_cpp]") {
  const World world;
  const auto run = [&](Words more) {
    more.insert(more.end(), {"--prompt", "the cat"});
    return world.run("steer", more, false);
  };
  const std::string sae = world.at("sae");
  check_refused(world, run({"--sae", sae, "--latent", "96", "--scale", "1"}), "96 is not in [0, 96)");
  check_refused(world, run({"--sae", sae, "--latent", "3", "--scale", "1", "--layer", "0"}), "is of residual-1");
  check_refused(world, run({"--sae", sae, "--latent", "3", "--scale", "1", "--tokens", "70", "--context", "60"}),
                "context of 60");
  check_refused(world, run({"--sae", world.at("narrow"), "--latent", "3", "--scale", "1"}), "16");
  CHECK(run({"--sae", sae, "--latent", "3"}).code == 2);
  CHECK(run({"--sae", sae, "--latent", "3", "--scale", "1", "--ablate"}).code == 2);
  CHECK(run({"--sae", sae, "--latent", "3", "--scale", "nan"}).code == 2);
  CHECK(run({"--sae", sae, "--latent", "3", "--scale", "1", "--error-term", "off"}).code == 2);
}

TEST_CASE("steer in units of the largest activation, to the mean, in chosen rows", "[cli][llama_cpp]") {
  const World world;
  TempFolder other;
  const std::string acts = (other / "acts").string();
  REQUIRE(world.run("collect", {"--layer", "1", "--out", acts}).code == 0);
  LlamaCpp model = world.model();
  const Site site{1, SiteKind::residual};
  const Codes<float> codes = world.sae.encode(rows_of(CollectedFolder(acts), site));
  double largest = 0, mean = 0;
  for (Index b = 0; b < codes.rows(); ++b) {
    largest = std::max(largest, static_cast<double>(codes.coefficient(b, 11)));
    mean += static_cast<double>(codes.coefficient(b, 11)) / static_cast<double>(codes.rows());
  }
  REQUIRE(largest > 0);
  const std::vector<Token> prompt = model.tokenize("the cat");
  const auto expected = [&](const std::vector<Tap>& taps) {
    std::string text;
    for (const Token token : generate(model, std::span<const Token>(prompt), {.tokens = 12}, taps))
      text += model.token_text(token);
    return text;
  };
  const auto said = [&](Words more) {
    const Words common = {"--sae", world.at("sae"), "--prompt", "the cat", "--tokens", "12", "--latent",
                          "11",    "--data",        acts,       "--json"};
    more.insert(more.end(), common.begin(), common.end());
    return parsed(world.run("steer", more, false));
  };
  const EditedRows rows = EditedRows::after_first();
  const std::string plain = expected({});
  const json scaled = said({"--scale", "3x"});
  CHECK(scaled["of_largest"] == true);
  CHECK(scaled["steered"] == expected({steer_latent(site, world.sae, 11, 3 * largest, rows)}));
  CHECK(scaled["steered"] != plain);
  CHECK(said({"--clamp", "4x"})["steered"] == expected({edit_latents(site, world.sae, {clamp_latent(11, 4 * largest)}, rows)}));
  CHECK(said({"--mean-ablate"})["steered"] == expected({edit_latents(site, world.sae, {clamp_latent(11, mean)}, rows)}));

  const auto length = static_cast<Index>(prompt.size()) + 1;  // with BOS
  const auto taps = [&](const EditedRows& where) { return std::vector<Tap>{steer_latent(site, world.sae, 11, 9, where)}; };
  const std::string in_prompt = said({"--scale", "9", "--during", "prompt"})["steered"],
                    in_text = said({"--scale", "9", "--during", "generation"})["steered"];
  CHECK(in_prompt == expected(taps(EditedRows::where([&](Index t) { return t > 0 && t < length; }))));
  CHECK(in_text == expected(taps(EditedRows::from(length))));
  CHECK(in_prompt != in_text);
  // Only where the last token of the prompt stands, in whatever case and with whatever spaces.
  const auto trimmed = [&](Token token) {
    std::string text = model.token_text(token);
    std::erase(text, ' ');
    return text;
  };
  std::string word = trimmed(prompt.back());
  REQUIRE_FALSE(word.empty());
  std::vector<Index> at;
  for (std::size_t t = 0; t < prompt.size(); ++t)
    if (trimmed(prompt[t]) == word) at.push_back(static_cast<Index>(t) + 1);
  REQUIRE(at.size() < prompt.size());
  std::transform(word.begin(), word.end(), word.begin(), [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  const std::string only = said({"--scale", "40", "--only", "  " + word + " ,x", "--during", "prompt"})["steered"];
  CHECK(only == expected({steer_latent(site, world.sae, 11, 40, EditedRows::at(at))}));

  const auto run = [&](Words more) {
    more.insert(more.end(), {"--sae", world.at("sae"), "--prompt", "the cat"});
    return world.run("steer", more, false);
  };
  CHECK(run({"--latent", "11", "--scale", "3x"}).code == 2);  // measured on nothing
  CHECK(run({"--latent", "11", "--mean-ablate"}).code == 2);
  CHECK(run({"--latent", "11", "--scale", "xx", "--data", acts}).code == 2);
  CHECK(run({"--latent", "11", "--scale", "3x", "--ablate", "--data", acts}).code == 2);
  Index silent = 0;
  const auto active = [&](Index i) {
    for (Index b = 0; b < codes.rows(); ++b)
      if (codes.coefficient(b, i) != 0) return true;
    return false;
  };
  while (silent < 96 && active(silent)) ++silent;
  REQUIRE(silent < 96);
  check_refused(world, run({"--latent", std::to_string(silent), "--scale", "3x", "--data", acts}), "is active in no row of ");
}

TEST_CASE("steer-sweep measures words and loss of what is written, strength by strength", "[cli][llama_cpp]") {
  const World world;
  TempFolder other;
  sae_test::write_text(other / "prompts.txt", "the cat\n\na dog in\r\n");
  const std::string out = (other / "curve").string();
  const Words words = {
      "--sae",   world.at("sae"), "--latent", "11", "--scale", "0,20", "--prompts", (other / "prompts.txt").string(),
      "--words", "a,*o*",         "--tokens", "6",  "--seed",  "5",    "--json",    "--out",
      out};
  const json found = parsed(world.run("steer-sweep", words, false));
  CHECK(found["prompts"] == 2);
  CHECK(found["of_largest"] == false);
  REQUIRE(found["points"].size() == 2);

  LlamaCpp model = world.model();
  const Site site{1, SiteKind::residual};
  const std::vector<std::vector<Token>> prompts = {model.tokenize("the cat"), model.tokenize("a dog in")};
  const std::vector<double> strengths = {0, 20};
  const std::vector<std::string> counted = {"a", "*o*"};
  const auto text_of = [&](std::span<const Token> tokens) {
    std::string text;
    for (const Token token : tokens) text += model.token_text(token);
    return text;
  };
  const auto curve = steering_curve(
      model, std::span<const std::vector<Token>>(prompts), std::span<const double>(strengths),
      [&](double s) { return std::vector<Tap>{steer_latent(site, world.sae, 11, s, EditedRows::after_first())}; },
      [&](std::span<const Token> text) { return static_cast<double>(count_words(text_of(text), counted)); },
      {.tokens = 6, .temperature = 1, .seed = 5});
  for (std::size_t n = 0; n < 2; ++n) {
    CHECK(found["points"][n]["strength"] == strengths[n]);
    CHECK(found["points"][n]["words_per_text"] == curve[n].effect);
    CHECK(found["points"][n]["share_with_words"] == curve[n].share);
    CHECK(found["points"][n]["cross_entropy"].get<double>() == Approx(curve[n].cross_entropy).epsilon(1e-6));
  }
  CHECK(curve[0].texts != curve[1].texts);
  const std::string texts = sae_test::file_text(fs::path(out) / "texts.jsonl");
  CHECK(std::count(texts.begin(), texts.end(), '\n') == 4);
  CHECK(json::parse(texts.substr(0, texts.find('\n')))["text"] == utf8_text(text_of(curve[0].texts[0])));
  CHECK_THAT(sae_test::file_text(fs::path(out) / "curve.svg"),
             ContainsSubstring("latent 11 of residual-1") && ContainsSubstring("cross-entropy to the model"));
  CHECK(sae_test::file_text(fs::path(out) / "curve.csv")
            .starts_with("strength,of_largest,words_per_text,share_with_words,cross_entropy,tokens\n0,0,"));

  const auto code = [&](const Words& more) {
    Words all = {"--sae", world.at("sae"), "--latent", "11", "--prompts", (other / "prompts.txt").string(), "--tokens", "2"};
    all.insert(all.end(), more.begin(), more.end());
    return world.run("steer-sweep", all, false);
  };
  CHECK(code({"--scale", "0,1x", "--words", "a"}).code == 2);  // measured on nothing
  CHECK(code({"--scale", "2,1x", "--words", "a"}).code == 2);  // of two units
  CHECK(code({"--words", "a"}).code == 2);
  check_refused(world, code({"--scale", "1", "--words", "*"}), "a word has no letters");
  sae_test::write_text(other / "prompts.txt", "\n");
  check_refused(world, code({"--scale", "1", "--words", "a"}), "has no text");
}

TEST_CASE("monitor tells where watched latents are active as the model reads and writes", "[cli][llama_cpp]") {
  const World world;
  LlamaCpp model = world.model();
  const Site site{1, SiteKind::residual};
  const std::vector<Token> prompt = model.tokenize("the cat");
  std::vector<LatentEvent> expected;
  std::vector<WatchedLatent> all;
  for (Index i = 0; i < 50; ++i) all.push_back({i, 0.05});
  const LatentMonitor monitor(
      site, world.sae, all, [&](const LatentEvent& e) { expected.push_back(e); }, EditedRows::after_first());
  generate(model, std::span<const Token>(prompt), {.tokens = 10}, std::vector<Tap>{monitor.tap()});
  REQUIRE(expected.size() > 3);

  const Words common = {"--sae", world.at("sae"), "--latent", "0-49", "--prompt", "the cat", "--tokens", "10"};
  const auto run = [&](Words more) {
    more.insert(more.end(), common.begin(), common.end());
    return world.run("monitor", more, false);
  };
  const json found = parsed(run({"--above", "0.05", "--json"}));
  REQUIRE(found["events"].size() == expected.size());
  bool later = false;
  for (std::size_t n = 0; n < expected.size(); ++n) {
    CHECK(found["events"][n]["position"] == expected[n].position);
    CHECK(found["events"][n]["latent"] == expected[n].latent);
    CHECK(found["events"][n]["activation"].get<double>() == Approx(expected[n].activation));
    CHECK(found["events"][n]["in_prompt"] == (expected[n].position <= static_cast<Index>(prompt.size())));
    later = later || !found["events"][n]["in_prompt"].get<bool>();
  }
  CHECK(later);
  CHECK(found["stopped"] == false);
  CHECK(found["seconds_watching"].get<double>() < found["seconds"].get<double>());
  const json stopped = parsed(run({"--above", "0.05", "--json", "--stop"}));
  CHECK(stopped["stopped"] == true);
  CHECK(stopped["tokens"] == 1);
  CHECK(run({"--above", "-1"}).code == 2);
  CHECK(run({"--above", "0.5x"}).code == 2);
  check_refused(world, world.run("monitor", {"--sae", world.at("sae"), "--latent", "96", "--prompt", "a"}, false),
                "96 is not in [0, 96)");
}

TEST_CASE("circuit prints and draws what the library finds", "[cli][llama_cpp]") {
  const World world;
  TempFolder other;
  const Sae first = some_sae(32, 64);
  save_saelens(first, other / "first", {.hook_name = "blocks.0.hook_resid_post"});
  LlamaCpp model = world.model();
  std::vector<Token> tokens = model.tokenize("the cat and the");
  tokens.insert(tokens.begin(), model.bos());
  const Token token = model.tokenize("a").front();
  const std::vector<SaeAt<Sae>> saes = {{{0}, &first}, {{1}, &world.sae}};
  const Circuit whole = circuit_by_intervention(model, std::span<const SaeAt<Sae>>(saes), std::span<const Token>(tokens),
                                                logit_difference(token), {.latents = 3});
  REQUIRE(whole.nodes.size() == 6);
  const Circuit expected = whole.strongest(5);
  const std::string svg = (other / "graph.svg").string();
  const Words words = {
      "--sae", world.at("sae"), "--sae", (other / "first").string(), "--prompt", "the cat and the", "--token", "a", "--latents",
      "3",     "--edges",       "5"};
  Words drawn = words;
  drawn.insert(drawn.end(), {"--json", "--out", svg});
  const json found = parsed(world.run("circuit", drawn, false));
  CHECK(found["logit_difference"].get<double>() == Approx(expected.measure).epsilon(1e-5));
  REQUIRE(found["nodes"].size() == expected.nodes.size());
  REQUIRE(found["edges"].size() == 5);
  for (std::size_t n = 0; n < expected.nodes.size(); ++n) CHECK(found["nodes"][n]["latent"] == expected.nodes[n].latent);
  for (std::size_t e = 0; e < 5; ++e) {
    CHECK(found["edges"][e]["from"] == expected.edges[e].from);
    CHECK(found["edges"][e]["to"].is_null() == (expected.edges[e].to == expected.nodes.size()));
    CHECK(found["edges"][e]["effect"].get<double>() == Approx(expected.edges[e].effect).epsilon(1e-4).margin(1e-5));
  }
  CHECK_THAT(sae_test::file_text(svg), ContainsSubstring("class=\"edge"));
  CHECK_THAT(world.run("circuit", words, false).out, ContainsSubstring("above the mean of all"));

  check_refused(world, world.run("circuit", {"--sae", world.at("nowhere"), "--prompt", "a", "--token", "a"}, false),
                "does not say of which layer");
  check_refused(world, world.run("circuit", {"--sae", world.at("sae"), "--prompt", "a", "--token", "xyzw qk"}, false),
                "tokens of this model, not one");
  check_refused(
      world, world.run("circuit", {"--sae", world.at("sae"), "--sae", world.at("sae"), "--prompt", "a", "--token", "a"}, false),
      "comes behind");
}

#endif
