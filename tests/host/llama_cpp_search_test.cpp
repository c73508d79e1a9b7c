// sae search of two sets of texts and of a prompt, on a tiny random model, against the library.
#include <sae/files/npy.hpp>
#include <sae/formats/saelens.hpp>
#include <sae/host/llama_cpp.hpp>
#include <sae/interpret/sparse_probe.hpp>
#include <sae/metrics/row_filter.hpp>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <sstream>

#include "catch_compat.hpp"
#include "cli_world.hpp"

#ifdef SAE_TEST_PROGRAM

using namespace sae;
using Catch::Matchers::ContainsSubstring;
using nlohmann::json;
using sae_test::check_refused;
using sae_test::Finished;
using sae_test::make_tiny_llama;
using sae_test::parsed;
using sae_test::run_sae;
using sae_test::Sae;
using sae_test::some_sae;
using sae_test::tiny_gguf_bytes;
using sae_test::TinyLlama;
using sae_test::with;
using sae_test::Words;
using sae_test::write_text;

namespace {

/// A folder with a model, SAEs and two sets of texts, of which one alone has a house in it.
struct World {
  World() {
    write_text(folder / "tiny.gguf", tiny_gguf_bytes(make_tiny_llama()));
    save_saelens(sae, folder / "sae", {.hook_name = "blocks.1.hook_resid_post"});
    save_saelens(sae, folder / "nowhere");
    save_saelens(some_sae(16), folder / "narrow", {.hook_name = "blocks.1.hook_resid_post"});
    Random random(2);
    const std::vector<std::string> words = {"the", "cat", "and", "a", "dog", "in", "on", "hill", "of", "men", "inn"};
    std::string all[2];
    for (std::size_t set = 0; set < 2; ++set)
      for (int line = 0; line < 12; ++line) {
        std::string text;
        for (int n = 0; n < 6; ++n) text += words[random.below(words.size())] + " ";
        if (set == 0)
          text += "house";
        else
          text.pop_back();
        texts[set].push_back(text);
        all[set] += text + (line % 3 == 0 ? "\r\n\n" : "\n");  // and blank lines, and such from elsewhere
      }
    write_text(folder / "a.txt", all[0]);
    write_text(folder / "b.txt", all[1]);
  }
  std::string at(const std::string& name) const { return (folder / name).string(); }
  Finished run(const Words& more) const {
    return run_sae(with({"search", "--model", at("tiny.gguf"), "--model-threads", "1"}, more));
  }
  Finished sets(const Words& more) const {
    return run(with({"--positive", at("a.txt"), "--negative", at("b.txt"), "--sae", at("sae")}, more));
  }
  /// Activations of the tokens behind BOS.
  Matrix<float> rows_of(LlamaCpp& model, const std::string& text, const Site& site = {1, SiteKind::residual}) const {
    std::vector<Token> tokens = model.tokenize(text);
    tokens.insert(tokens.begin(), model.bos());
    Matrix<float> rows(static_cast<Index>(tokens.size()), 32);
    const Tap tap{site, [&](MatrixMap<float> x, Index) { rows = x; }};
    model.run(tokens, std::span(&tap, 1));
    return rows.bottomRows(rows.rows() - 1);
  }
  Codes<float> pooled(LlamaCpp& model, std::size_t set, Pooling how, double limit = 1e30) const {
    Codes<float> out(96);
    for (const std::string& text : texts[set]) {
      const Matrix<float> rows = rows_of(model, text);
      Matrix<float> kept(0, 32);
      for (Index row = 0; row < rows.rows(); ++row)
        if (rows.row(row).norm() <= limit) {
          kept.conservativeResize(kept.rows() + 1, 32);
          kept.row(kept.rows() - 1) = rows.row(row);
        }
      if (kept.rows() > 0) pool_rows(sae.encode(kept), how, out);
    }
    return out;
  }
  LlamaCpp model() const { return LlamaCpp(at("tiny.gguf"), {.context = 64, .threads = 1}); }

  TempFolder folder;
  std::vector<std::string> texts[2];
  Sae sae = some_sae(32);
};

void check_latents(const json& shown, const std::vector<LatentSeparation>& expected) {
  REQUIRE(shown.size() == expected.size());
  for (std::size_t n = 0; n < expected.size(); ++n) {
    CHECK(shown[n]["latent"] == expected[n].latent);
    CHECK(shown[n]["auroc"] == expected[n].auroc);
    CHECK(shown[n]["mean_difference"] == expected[n].mean_difference);
    CHECK(shown[n]["active_positive"] == expected[n].active_positive);
    CHECK(shown[n]["active_negative"] == expected[n].active_negative);
  }
}
}  // namespace

TEST_CASE("search ranks the latents that tell two sets of texts apart as the library does", "[cli][search][llama_cpp]") {
  const World world;
  LlamaCpp model = world.model();
  for (const Pooling how : {Pooling::max, Pooling::mean}) {
    const Codes<float> positive = world.pooled(model, 0, how), negative = world.pooled(model, 1, how);
    const auto all = separate(positive, negative);
    const json said = parsed(world.sets(
        {"--pool", how == Pooling::max ? "max" : "mean", "--count", "9", "--probe", "1,3", "--seed", "5", "--json"}));
    CHECK(said["site"] == "residual-1");
    CHECK(said["positive"]["texts"] == 12);
    CHECK(said["negative"]["texts"] == 12);
    CHECK(said["positive"]["tokens_dropped"] == 0);
    CHECK(said["active_latents"] == all.size());
    check_latents(said["latents"], strongest(all, 9));
    CHECK(said["latents"][0]["auroc"].get<double>() > 0.8);  // the house is to be seen
    const auto probes = sparse_probes(positive, negative, {.sizes = {1, 3}, .seed = 5});
    REQUIRE(said["probes"].size() == 2);
    for (std::size_t n = 0; n < 2; ++n) {
      CHECK(said["probes"][n]["k"] == probes[n].latents.size());
      CHECK(said["probes"][n]["latents"] == probes[n].latents);
      for (std::size_t k = 0; k < probes[n].weights.size(); ++k)
        CHECK(said["probes"][n]["weights"][k].get<double>() == Approx(probes[n].weights[k]).epsilon(1e-9));
      CHECK(said["probes"][n]["train"]["texts"] == probes[n].train.items);
      CHECK(said["probes"][n]["held_out"]["accuracy"] == probes[n].held_out.accuracy);
      CHECK(said["probes"][n]["held_out"]["auroc"] == probes[n].held_out.auroc);
    }
    if (how == Pooling::max)
      check_latents(parsed(world.sets({"--by", "mean-difference", "--json"}))["latents"],
                    strongest(all, 20, SeparationOrder::mean_difference));
  }
  const Finished table = world.sets({});
  CHECK_THAT(table.out,
             ContainsSubstring("12 texts of") && ContainsSubstring("AUROC") && ContainsSubstring("held-out accuracy"));
  CHECK(table.err.empty());
  CHECK(world.sets({"--threads", "1"}).out == world.sets({"--threads", "3"}).out);
}

TEST_CASE("search leaves out rows of large norm, and says so of texts without any other", "[cli][search][llama_cpp]") {
  const World world;
  LlamaCpp model = world.model();
  std::vector<double> norms;
  for (const auto& set : world.texts)
    for (const std::string& text : set) {
      const Matrix<float> rows = world.rows_of(model, text);
      for (Index row = 0; row < rows.rows(); ++row) norms.push_back(row_norm(rows.row(row).data(), 32));
    }
  const double limit = norm_limit(norms, 0.99);
  const Codes<float> positive = world.pooled(model, 0, Pooling::max, limit),
                     negative = world.pooled(model, 1, Pooling::max, limit);
  const json said = parsed(world.sets({"--max-norm", "0.99", "--json", "--quiet"}));
  check_latents(said["latents"], strongest(separate(positive, negative), 20));
  CHECK(said["positive"]["texts"] == positive.rows());
  const auto left = std::count_if(norms.begin(), norms.end(), [&](double norm) { return norm > limit; });
  CHECK(said["positive"]["tokens_dropped"].get<Index>() + said["negative"]["tokens_dropped"].get<Index>() == left);
  CHECK(left > 0);
  check_refused(world.sets({"--max-norm", "0.001", "--quiet"}), "a.txt: no token is left (--max-norm 0.001)");
}

TEST_CASE("search writes the direction from one set of texts to the other", "[cli][search][llama_cpp]") {
  const World world;
  LlamaCpp model = world.model();
  Eigen::RowVectorXd means[2];
  for (std::size_t set = 0; set < 2; ++set) {
    Eigen::RowVectorXd sum = Eigen::RowVectorXd::Zero(32);
    Index tokens = 0;
    for (const std::string& text : world.texts[set]) {
      const Matrix<float> rows = world.rows_of(model, text);
      sum += rows.cast<double>().colwise().sum();
      tokens += rows.rows();
    }
    means[set] = sum / static_cast<double>(tokens);
  }
  REQUIRE(world.sets({"--out", world.at("v.npy"), "--quiet"}).code == 0);
  const Matrix<float> written = load_npy<float>(world.folder / "v.npy");
  REQUIRE(written.rows() == 1);
  CHECK((written.cast<double>() - (means[0] - means[1])).norm() < 1e-6 * means[0].norm());
  const Finished made_of = run_sae({"search", "--sae", world.at("sae"), "--direction", world.at("v.npy")});
  CHECK(made_of.code == 0);
  check_refused(world.sets({"--out", world.at("v.npy")}), "v.npy: exists");
  CHECK(world.sets({"--out", world.at("v.npy"), "--force"}).code == 0);
}

TEST_CASE("search shows a prompt's latents token by token", "[cli][search][llama_cpp]") {
  const World world;
  LlamaCpp model = world.model();
  const std::string prompt = "the cat in the house";
  const std::vector<Token> tokens = model.tokenize(prompt);
  const Codes<float> codes = world.sae.encode(world.rows_of(model, prompt));
  const json said = parsed(world.run({"--sae", world.at("sae"), "--prompt", prompt, "--count", "3", "--json"}));
  REQUIRE(said["tokens"].size() == tokens.size());
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    const json& shown = said["tokens"][t];
    CHECK(shown["token"] == tokens[t]);
    CHECK(shown["position"] == t);
    CHECK(shown["text"] == model.token_text(tokens[t]));
    const auto row = static_cast<Index>(t);
    std::vector<std::pair<float, Index>> expected;
    for (Index e = codes.begin(row); e < codes.end(row); ++e)
      if (codes.value(e) > 0) expected.emplace_back(-codes.value(e), codes.latent(e));
    std::sort(expected.begin(), expected.end());
    expected.resize(std::min<std::size_t>(expected.size(), 3));
    REQUIRE(shown["latents"].size() == expected.size());
    for (std::size_t n = 0; n < expected.size(); ++n) {
      CHECK(shown["latents"][n]["latent"] == expected[n].second);
      CHECK(shown["latents"][n]["value"] == -expected[n].first);
    }
  }
  // Another layer, of a SAE that does not say which one is its own.
  const Words elsewhere = {"--sae", world.at("nowhere"), "--prompt", prompt, "--json", "--layer"};
  CHECK(parsed(world.run(with(elsewhere, {"0"})))["tokens"] != parsed(world.run(with(elsewhere, {"1"})))["tokens"]);
  const Finished table = world.run({"--sae", world.at("sae"), "--prompt", prompt});
  CHECK(table.code == 0);
  CHECK(std::count(table.out.begin(), table.out.end(), '\n') == static_cast<std::ptrdiff_t>(tokens.size()) + 2);
}

TEST_CASE("search of few texts, of equal texts, and of texts that are cut", "[cli][search][llama_cpp]") {
  const World world;
  write_text(world.folder / "one.txt", "the house");
  write_text(world.folder / "other.txt", "the cat\n");
  const Words pair = {"--sae", world.at("sae"), "--positive", world.at("one.txt"), "--negative"};
  const Finished one = world.run(with(pair, {world.at("other.txt"), "--json"}));
  CHECK_THAT(one.err, ContainsSubstring("no probes"));
  CHECK(parsed(one)["probes"].empty());
  CHECK(parsed(one)["positive"]["texts"] == 1);
  const json same = parsed(world.run(with(pair, {world.at("one.txt"), "--json", "--quiet"})));
  for (const json& latent : same["latents"]) {
    CHECK(latent["auroc"] == 0.5);
    CHECK(latent["mean_difference"] == 0);
  }
  const Finished cut = world.sets({"--context", "4", "--json"});
  CHECK_THAT(cut.err, ContainsSubstring("24 texts are longer than --context 4 tokens"));
  CHECK(parsed(cut)["positive"]["tokens"] == 36);  // BOS is none of them
  std::string longer;
  for (int n = 0; n < 70; ++n) longer += "cat ";
  const Finished beyond = world.run({"--sae", world.at("sae"), "--prompt", longer, "--json"});
  CHECK(parsed(beyond)["tokens"].size() > 70);
  CHECK_THAT(beyond.err, ContainsSubstring("was trained on 64 tokens"));
}

TEST_CASE("search refuses what it cannot search", "[cli][search][llama_cpp]") {
  const World world;
  const std::string a = world.at("a.txt"), b = world.at("b.txt"), sae = world.at("sae");
  write_text(world.folder / "blank.txt", "\n  \n\r\n\t\n");
  write_text(world.folder / "empty.txt", "");
  write_text(world.folder / "bytes.txt", "the cat\nthe \xff dog\n");
  check_refused(world.run({"--sae", sae, "--positive", a, "--negative", world.at("blank.txt")}), "blank.txt: has no text");
  check_refused(world.run({"--sae", sae, "--positive", world.at("empty.txt"), "--negative", b}), "empty.txt: has no text");
  check_refused(world.run({"--sae", sae, "--positive", a, "--negative", world.at("missing.txt")}), "missing.txt");
  check_refused(world.run({"--sae", world.at("narrow"), "--positive", a, "--negative", b}), "reads rows of 16 numbers");
  check_refused(world.sets({"--layer", "0"}), "is of residual-1");
  check_refused(world.run({"--sae", world.at("nowhere"), "--layer", "3", "--prompt", "the cat"}), "layers 0 to 2");
  check_refused(world.sets({"--count", "97"}), "--count 97 is not in [1, 96]");
  check_refused(world.sets({"--held-out", "0"}), "held_out = 0 is not in (0, 1)");
  check_refused(world.run({"--sae", sae, "--prompt", ""}), "--prompt: the text has no tokens");
  CHECK(world.run({"--sae", world.at("nowhere"), "--prompt", "the cat"}).code == 2);
  CHECK(world.sets({"--max-norm", "few"}).code == 2);
  const Finished bytes = world.run({"--sae", sae, "--positive", a, "--negative", world.at("bytes.txt")});
  CHECK(bytes.code == 1);
  CHECK_FALSE(bytes.error().empty());

  // A model whose activations are not finite.
  TinyLlama broken = make_tiny_llama();
  broken.layers[0].down(3, 5) = std::nanf("");
  write_text(world.folder / "broken.gguf", tiny_gguf_bytes(broken));
  check_refused(run_sae({"search", "--model", world.at("broken.gguf"), "--sae", sae, "--positive", a, "--negative", b}),
                "a.txt, line 1: the activation of residual-1 at token 0 is not finite");
}

TEST_CASE("search of a SAE whose latents never fire", "[cli][search][llama_cpp]") {
  World world;
  SparseAutoencoder<Dynamic, Dynamic, ReLU, float> silent(32, 8, ReLU{});
  silent.parameters().b_enc.map().setConstant(-1e6F);
  save_saelens(silent, world.folder / "silent", {.hook_name = "blocks.1.hook_resid_post"});
  const Words sets = {"--sae", world.at("silent"), "--positive", world.at("a.txt"), "--negative", world.at("b.txt")};
  const Finished table = world.run(sets);
  CHECK(table.code == 0);
  CHECK_THAT(table.out, ContainsSubstring("0 of 8 latents are active in some text"));
  const json said = parsed(world.run(with(sets, {"--json"})));
  CHECK(said["latents"].empty());
  CHECK(said["probes"].empty());
  CHECK(parsed(world.run({"--sae", world.at("silent"), "--prompt", "the cat", "--json"}))["tokens"][0]["latents"].empty());
}

#endif
