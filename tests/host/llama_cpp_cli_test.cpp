// The verbs that run a language model, as a user calls them, on a tiny random model that the test writes.
#include <sae/formats/saelens.hpp>
#include <sae/host/collected_folder.hpp>
#include <sae/host/generate.hpp>
#include <sae/host/llama_cpp.hpp>
#include <sae/interpret/circuit.hpp>
#include <sae/interpret/context_text.hpp>
#include <sae/interpret/count_words.hpp>
#include <sae/interpret/monitor.hpp>
#include <sae/interpret/recover.hpp>
#include <sae/interpret/steering.hpp>
#include <sae/interpret/top_activations.hpp>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <nlohmann/json.hpp>

#include "catch_compat.hpp"
#include "cli_test.hpp"
#include "run_program.hpp"
#include "tiny_gguf.hpp"

#ifdef SAE_TEST_PROGRAM

using namespace sae;
using Catch::Matchers::ContainsSubstring;
using nlohmann::json;
using sae_test::Finished;
using sae_test::run_sae;
namespace fs = std::filesystem;

namespace {

using Words = std::vector<std::string>;
using Sae = SparseAutoencoder<Dynamic, Dynamic, TopK, float>;

Sae some_sae(Index width, Index latents = 96) {
  Sae sae(width, latents, TopK{.k = 6});
  Random random(4);
  for (Index i = 0; i < sae.W_dec().size(); ++i)
    sae.W_dec().data()[i] = static_cast<float>(random.normal() / std::sqrt(static_cast<double>(width)));
  sae.W_enc() = sae.W_dec();
  return sae;
}

/// A folder with a model, a text and SAEs.
struct World {
  World() {
    sae_test::write_text(folder / "tiny.gguf", sae_test::tiny_gguf_bytes(sae_test::make_tiny_llama()));
    Random random(2);
    const std::vector<std::string> words = {"the", "cat", "and", "a", "dog", "in", "house", "on", "hill", "of", "men", "inn"};
    for (int i = 0; i < 150; ++i) text += (i == 0 ? "" : " ") + words[random.below(words.size())];
    sae_test::write_text(folder / "text.txt", text);
    save_saelens(sae, folder / "sae", {.hook_name = "blocks.1.hook_resid_post"});
    save_saelens(sae, folder / "nowhere");  // does not say where it belongs
    save_saelens(some_sae(16), folder / "narrow", {.hook_name = "blocks.1.hook_resid_post"});
  }
  std::string at(const std::string& name) const { return (folder / name).string(); }
  /// VERB --model .. --text .. --context 32 --tokens 0 --model-threads 1, and more.
  Words words(const std::string& verb, const Words& more, bool with_text = true) const {
    Words out = {verb, "--model", at("tiny.gguf"), "--model-threads", "1"};
    if (with_text) out.insert(out.end(), {"--text", at("text.txt"), "--context", "32", "--tokens", "0"});
    out.insert(out.end(), more.begin(), more.end());
    return out;
  }
  Finished run(const std::string& verb, const Words& more, bool with_text = true) const {
    return run_sae(words(verb, more, with_text));
  }
  LlamaCpp model() const { return LlamaCpp(at("tiny.gguf"), {.context = 64, .threads = 1}); }
  Windows windows(const LlamaCpp& model) const { return cut_windows(model, text, {.context = 32, .tokens = 0}); }

  TempFolder folder;
  std::string text;
  Sae sae = some_sae(32);
};

/// Fails with one line that says why, prints nothing, leaves nothing.
void check_refused(const World& world, const Finished& done, const std::string& why, const fs::path& out = {}) {
  INFO(done.err);
  CHECK(done.code == 1);
  CHECK(done.out.empty());
  CHECK_THAT(done.error(), ContainsSubstring(why));
  if (!out.empty()) {
    CHECK_FALSE(fs::exists(out));
    CHECK_FALSE(fs::exists(out.string() + ".partial"));
  }
  CHECK(world.folder.names() == std::vector<std::string>{"narrow", "nowhere", "sae", "text.txt", "tiny.gguf"});
}
json parsed(const Finished& done) {
  INFO(done.err);
  REQUIRE(done.code == 0);
  return json::parse(done.out);
}
Matrix<float> rows_of(const CollectedFolder& data, const Site& site) {
  const NpyFolder rows = data.rows_of(site);
  Matrix<float> out(rows.rows(), rows.width());
  rows.read_rows(0, rows.rows(), out.data(), rows.width());
  return out;
}
}  // namespace

TEST_CASE("collect writes the rows of every window, several sites from one pass", "[cli][llama_cpp]") {
  const World world;
  const Finished done =
      world.run("collect", {"--layer", "0,2", "--site", "residual,mlp_out", "--out", world.at("data"), "--json"});
  const json said = parsed(done);
  const CollectedFolder data(world.folder / "data");
  LlamaCpp model = world.model();
  const Windows windows = world.windows(model);
  REQUIRE(windows.count() > 3);
  CHECK(said["rows"] == windows.text_tokens());
  CHECK(said["dropped_bos"] == windows.count());
  CHECK(said["dropped_norm"] == 0);
  CHECK(said["windows"] == windows.count());
  CHECK(said["width"] == 32);
  CHECK(data.info().text_bytes == static_cast<Index>(world.text.size()));
  CHECK(data.info().model_file == world.at("tiny.gguf"));
  CHECK(data.info().context == 32);
  REQUIRE(data.info().sites.size() == 4);

  for (const Site& site : data.info().sites) {
    Matrix<float> expected(windows.text_tokens(), 32);
    for (Index w = 0; w < windows.count(); ++w) {
      const Tap tap{site, [&](MatrixMap<float> x, Index) { expected.middleRows(31 * w, 31) = x.bottomRows(31); }};
      model.run(windows[w], std::span(&tap, 1));
    }
    INFO(to_string(site));
    CHECK(rows_of(data, site) == expected);
  }
  for (Index row = 0; row < data.rows(); ++row) {
    const RowOrigin expected{windows[row / 31][static_cast<std::size_t>(row % 31) + 1], static_cast<std::int32_t>(row / 31),
                             static_cast<std::int32_t>(row % 31 + 1)};
    CHECK(data.origin(row) == expected);
  }
  // The same again, byte by byte.
  REQUIRE(world.run("collect", {"--layer", "0,2", "--site", "residual,mlp_out", "--out", world.at("again")}).code == 0);
  for (const auto& entry : fs::recursive_directory_iterator(world.folder / "data"))
    if (entry.is_regular_file())
      CHECK(sae_test::file_text(entry.path()) ==
            sae_test::file_text(world.folder / "again" / fs::relative(entry.path(), world.folder / "data").string()));
}

TEST_CASE("collect counts and says what it leaves out", "[cli][llama_cpp]") {
  const World world;
  LlamaCpp model = world.model();
  const Windows windows = world.windows(model);
  const json kept =
      parsed(world.run("collect", {"--layer", "1", "--keep-bos", "--max-norm", "none", "--out", world.at("a"), "--json"}));
  CHECK(kept["rows"] == windows.count() * 32);
  CHECK(kept["dropped_bos"] == 0);

  const Finished done = world.run("collect", {"--layer", "1", "--max-norm", "1.1x", "--dtype", "f16", "--out", world.at("b")});
  REQUIRE(done.code == 0);
  const CollectedFolder data(world.folder / "b");
  const double limit = data.info().norm_limits[0];
  Index within = 0;
  const Matrix<float> all = rows_of(CollectedFolder(world.folder / "a"), {1, SiteKind::residual});
  for (Index row = 0; row < all.rows(); ++row) within += row % 32 != 0 && all.row(row).cast<double>().norm() <= limit;
  CHECK(data.rows() == within);
  CHECK(data.info().counts.norm == windows.text_tokens() - within);
  CHECK(data.info().counts.norm > 0);
  CHECK(data.info().dtype == Dtype::float16);
  CHECK_THAT(done.out, ContainsSubstring(std::to_string(data.info().counts.norm) + " rows with a norm above 1.1 medians"));
  CHECK_THAT(done.out, ContainsSubstring(std::to_string(windows.count()) + " BOS rows"));
}

TEST_CASE("collect takes the tokens it is told to", "[cli][llama_cpp]") {
  const World world;
  Words words = {"collect", "--model",        world.at("tiny.gguf"), "--text", world.at("text.txt"), "--layer", "1",
                 "--out",   world.at("data"), "--context",           "16",     "--skip-tokens",      "10",      "--tokens",
                 "47"};
  REQUIRE(run_sae(words).code == 0);
  const CollectedFolder data(world.folder / "data");
  LlamaCpp model = world.model();
  const std::vector<Token> tokens = model.tokenize(world.text);
  CHECK(data.rows() == 45);  // three windows of 15
  CHECK(data.origin(0).token == tokens[10]);
  CHECK(data.origin(44).token == tokens[54]);
  CHECK(data.info().skip_tokens == 10);
}

TEST_CASE("collect refuses in one line and leaves nothing behind", "[cli][llama_cpp]") {
  const World world;
  const fs::path out = world.folder / "data";
  const auto refused = [&](Words words, const std::string& why) {
    words.insert(words.end(), {"--out", out.string()});
    check_refused(world, run_sae(words), why, out);
  };
  const std::string model = world.at("tiny.gguf"), text = world.at("text.txt");
  refused({"collect", "--model", world.at("no.gguf"), "--text", text, "--layer", "1"}, "no.gguf");
  refused({"collect", "--model", text, "--text", text, "--layer", "1"}, "not a GGUF file");
  refused({"collect", "--model", model, "--text", world.at("no.txt"), "--layer", "1"}, "no.txt");
  refused(world.words("collect", {"--layer", "3"}), "layers 0 to 2");
  refused(world.words("collect", {"--layer", "1", "--skip-tokens", "100000"}), "after skipping 100000");
  refused({"collect", "--model", model, "--text", text, "--layer", "1", "--context", "32", "--tokens", "5"}, "tokens = 5");

  sae_test::write_text(world.folder / "empty.txt", "");
  const Finished empty =
      run_sae({"collect", "--model", model, "--text", world.at("empty.txt"), "--layer", "1", "--out", out.string()});
  fs::remove(world.folder / "empty.txt");
  check_refused(world, empty, "the text is empty", out);
  sae_test::write_text(world.folder / "bytes.txt", "the \xff dog");
  const Finished bytes =
      run_sae({"collect", "--model", model, "--text", world.at("bytes.txt"), "--layer", "1", "--out", out.string()});
  fs::remove(world.folder / "bytes.txt");
  CHECK(bytes.code == 1);
  CHECK_FALSE(bytes.error().empty());

  check_refused(world, world.run("collect", {"--layer", "1", "--out", world.at("missing/data")}), "missing/data");
  check_refused(world, world.run("collect", {"--layer", "1", "--out", world.at("sae")}), "exists");
  check_refused(world, world.run("collect", {"--layer", "1", "--force", "--out", world.at("sae")}), "not replaced");
  CHECK(run_sae(world.words("collect", {"--layer", "1,1", "--out", out.string()})).code == 2);
  CHECK(run_sae(world.words("collect", {"--layer", "1", "--site", "q", "--out", out.string()})).code == 2);
  CHECK(run_sae(world.words("collect", {"--layer", "-1", "--out", out.string()})).code == 2);
  CHECK(run_sae(world.words("collect", {"--layer", "1"})).code == 2);
}

TEST_CASE("recover prints what the library finds, under the names of the contract", "[cli][llama_cpp]") {
  const World world;
  LlamaCpp model(world.at("tiny.gguf"), {.context = 32, .threads = 1});
  const Windows windows = world.windows(model);
  for (const bool replace_bos : {false, true}) {
    Words more = {"--sae", world.at("sae"), "--json"};
    if (replace_bos) more.push_back("--replace-bos");
    const json said = parsed(world.run("recover", more));
    const RecoverReport expected = recover(model, windows, {1, SiteKind::residual}, world.sae, {.replace_bos = replace_bos});
    CHECK(said.size() == 11);
    CHECK(said["tokens"] == windows.count() * 31);
    CHECK(said["replaces_bos"] == replace_bos);
    const auto close = [&](const char* key, double value) {
      INFO(key << " " << said[key] << " " << value);
      CHECK(std::abs(said[key].get<double>() - value) <= 1e-9 * (1 + std::abs(value)));
    };
    close("ce_clean", expected.cross_entropy.clean);
    close("ce_sae", expected.cross_entropy.sae);
    close("ce_zero", expected.cross_entropy.zero);
    close("ce_mean", expected.cross_entropy.mean);
    close("kl", expected.kl);
    close("l0", 6);
    close("explained_variance", expected.figures.explained_variance);
    for (const char* key : {"loss_recovered_zero", "loss_recovered_mean"}) CHECK(said.contains(key));
    const double uniform = std::log(static_cast<double>(model.shape().vocabulary));
    CHECK((std::abs(said["ce_zero"].get<double>() - uniform) < 1e-12) == replace_bos);
  }
  const Finished table = world.run("recover", {"--sae", world.at("sae")});
  CHECK_THAT(table.out, ContainsSubstring("its rows stay as they are in all four conditions"));
  CHECK_THAT(world.run("recover", {"--sae", world.at("sae"), "--replace-bos"}).out, ContainsSubstring("--replace-bos"));
}

TEST_CASE("recover ablates to the mean of given rows", "[cli][llama_cpp]") {
  const World world;
  save_npy(world.folder / "zeros.npy", Matrix<float>::Zero(3, 32));
  const json said = parsed(world.run("recover", {"--sae", world.at("sae"), "--mean-from", world.at("zeros.npy"), "--json"}));
  CHECK(said["ce_mean"] == said["ce_zero"]);
  save_npy(world.folder / "zeros.npy", Matrix<float>::Zero(3, 31), {.overwrite = true});
  const Finished narrow = world.run("recover", {"--sae", world.at("sae"), "--mean-from", world.at("zeros.npy")});
  CHECK(narrow.code == 1);
  CHECK_THAT(narrow.error(), ContainsSubstring("31 wide"));
}

TEST_CASE("the layer comes from the SAE, and a contradiction is refused", "[cli][llama_cpp]") {
  const World world;
  const json by_sae = parsed(world.run("recover", {"--sae", world.at("sae"), "--json"}));
  const json by_user = parsed(world.run("recover", {"--sae", world.at("nowhere"), "--layer", "1", "--json"}));
  CHECK(by_sae == by_user);
  const json other =
      parsed(world.run("recover", {"--sae", world.at("nowhere"), "--layer", "2", "--site", "mlp_out", "--json"}));
  CHECK(other["ce_sae"] != by_sae["ce_sae"]);
  check_refused(world, world.run("recover", {"--sae", world.at("sae"), "--layer", "2"}), "is of residual-1");
  check_refused(world, world.run("recover", {"--sae", world.at("sae"), "--site", "mlp_out"}), "is of residual-1");
  check_refused(world, world.run("recover", {"--sae", world.at("nowhere"), "--layer", "7"}), "layers 0 to 2");
  check_refused(world, world.run("recover", {"--sae", world.at("narrow")}), "16");
  check_refused(world, world.run("recover", {"--sae", world.at("no-sae")}), "no-sae");
  CHECK(world.run("recover", {"--sae", world.at("nowhere")}).code == 2);
}

TEST_CASE("top finds the same contexts in collected rows and from the model", "[cli][llama_cpp]") {
  const World world;
  REQUIRE(world.run("collect", {"--layer", "1", "--out", world.at("data")}).code == 0);
  const CollectedFolder data(world.folder / "data");
  TopActivations expected(96, 4);
  expected.add(world.sae.encode(rows_of(data, {1, SiteKind::residual})));

  const Words common = {"--sae", world.at("sae"), "--latent", "3,10-12", "--count", "4", "--json"};
  Words of_data = {"top", "--data", world.at("data")};
  of_data.insert(of_data.end(), common.begin(), common.end());
  const json from_data = parsed(run_sae(of_data)), from_model = parsed(world.run("top", common));
  CHECK(from_data == from_model);
  CHECK(from_data["rows"] == data.rows());
  CHECK(from_data["site"] == "residual-1");
  REQUIRE(from_data["latents"].size() == 4);
  LlamaCpp model = world.model();
  Index contexts = 0;
  for (const json& latent : from_data["latents"]) {
    const Index i = latent["latent"];
    CHECK(latent["density"] == expected.density(i));
    CHECK(latent["max"] == expected.max(i));
    const std::vector<TopActivation> top = expected.top(i);
    REQUIRE(latent["contexts"].size() == top.size());
    for (std::size_t n = 0; n < top.size(); ++n) {
      const json& shown = latent["contexts"][n];
      const RowOrigin origin = data.origin(top[n].row);
      CHECK(shown["value"] == top[n].value);
      CHECK(shown["row"] == top[n].row);
      CHECK(shown["token"] == origin.token);
      CHECK(shown["window"] == origin.window);
      CHECK(shown["position"] == origin.position);
      CHECK(shown["text"] == model.token_text(origin.token));
      const std::string context = shown["context"];
      CHECK_THAT(context, ContainsSubstring("[[" + model.token_text(origin.token) + "]]"));
      std::string plain = context;
      plain.erase(plain.find("[["), 2);
      plain.erase(plain.find("]]"), 2);
      CHECK((" " + world.text).find(plain) != std::string::npos);
      ++contexts;
    }
  }
  CHECK(contexts > 4);
  const Finished table = world.run("top", {"--sae", world.at("sae"), "--latent", "11", "--count", "2"});
  CHECK_THAT(table.out, ContainsSubstring("latent 11: active in "));
}

TEST_CASE("top shows tokens by number where the model is gone", "[cli][llama_cpp]") {
  const World world;
  REQUIRE(world.run("collect", {"--layer", "1", "--out", world.at("data")}).code == 0);
  fs::rename(world.folder / "tiny.gguf", world.folder / "moved.gguf");
  const Words top = {"top", "--data", world.at("data"), "--sae", world.at("sae"), "--latent", "11", "--count", "1"};
  const Finished done = run_sae(top);
  CHECK(done.code == 0);
  CHECK_THAT(done.err, ContainsSubstring("--model names the model"));
  CHECK_THAT(done.out, ContainsSubstring("[[<"));
  Words named = top;
  named.insert(named.end(), {"--model", world.at("moved.gguf")});
  const Finished spelled = run_sae(named);
  CHECK(spelled.code == 0);
  CHECK(spelled.out.find("[[<") == std::string::npos);
  named.back() = world.at("tiny.gguf");
  CHECK(run_sae(named).code == 1);
}

TEST_CASE("top refuses what it cannot show", "[cli][llama_cpp]") {
  const World world;
  check_refused(world, world.run("top", {"--sae", world.at("sae"), "--latent", "96"}), "96");
  check_refused(world, world.run("top", {"--sae", world.at("narrow"), "--latent", "1"}), "16");
  check_refused(world, run_sae({"top", "--data", world.at("sae"), "--sae", world.at("sae"), "--latent", "1"}), "collect");
  CHECK(world.run("top", {"--sae", world.at("sae"), "--latent", "x"}).code == 2);
  CHECK(run_sae({"top", "--sae", world.at("sae"), "--latent", "1"}).code == 2);
  CHECK(run_sae({"top", "--sae", world.at("sae"), "--latent", "1", "--text", world.at("text.txt")}).code == 2);

  REQUIRE(world.run("collect", {"--layer", "0,2", "--out", world.at("data")}).code == 0);
  REQUIRE(world.run("collect", {"--layer", "0,1", "--out", world.at("both")}).code == 0);
  const Finished named = run_sae({"top", "--data", world.at("both/residual-0"), "--sae", world.at("sae"), "--latent", "1"});
  CHECK(named.code == 1);
  CHECK_THAT(named.error(), ContainsSubstring("is of residual-1"));
  CHECK(run_sae({"top", "--data", world.at("both/residual-1"), "--sae", world.at("sae"), "--latent", "1"}).code == 0);
  const Finished other = run_sae({"top", "--data", world.at("data/residual-2"), "--sae", world.at("sae"), "--latent", "1"});
  CHECK(other.code == 1);
  CHECK_THAT(other.error(), ContainsSubstring("is of residual-1"));
  CHECK(run_sae({"top", "--data", world.at("data/residual-2"), "--sae", world.at("nowhere"), "--latent", "1"}).code == 0);
}

TEST_CASE("train reads the whole text through the model, and a signal costs nothing", "[cli][llama_cpp]") {
  const World world;
  std::string text;  // above 50,000 tokens, the default of the other verbs
  while (text.size() < 120'000) text += world.text + " ";
  sae_test::write_text(world.folder / "long.txt", text);
  const auto words = [&](const std::string& steps, const std::string& out, const Words& more) {
    Words all = {"train",
                 "--model",
                 world.at("tiny.gguf"),
                 "--model-threads",
                 "1",
                 "--text",
                 world.at("long.txt"),
                 "--context",
                 "32",
                 "--layer",
                 "1",
                 "--latents",
                 "40",
                 "--k",
                 "3",
                 "--batch",
                 "64",
                 "--buffer",
                 "256",
                 "--steps",
                 steps,
                 "--out",
                 world.at(out)};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  };
  const LlamaCpp model = world.model();
  const Index all = cut_windows(model, text, {.context = 32, .tokens = 0}).count();
  REQUIRE(all * 31 > 50'000);
  const Finished whole = run_sae(words("60", "whole", {}));
  INFO(whole.err);
  REQUIRE(whole.code == 0);
  CHECK_THAT(whole.err, ContainsSubstring(": " + std::to_string(all) + " windows of 32 tokens"));
  CHECK(json::parse(sae_test::file_text(world.at("whole/cfg.json")))["metadata"]["hook_name"] == "blocks.1.hook_resid_post");

  std::string out = "cut";
  for (const std::string more : {"first signal", "second signal"}) {
    CAPTURE(more);
    sae_test::RunningSae sae(words("1000000", out, {"--log", world.at("cut/log"), "--report-every", "1", "--resume"}),
                             world.at("err"));
    const fs::path log = world.folder / "cut.partial" / "log.jsonl";
    std::error_code gone;
    const auto before = fs::file_size(log, gone);
    const auto known = gone ? 0 : before;
    REQUIRE(sae.until([&] {
      const auto size = fs::file_size(log, gone);
      return !gone && size > known + 1000;
    }));
    sae.signal(SIGTERM);
    CHECK(sae.wait() == 143);
    CHECK_THAT(sae_test::file_text(world.at("err")), ContainsSubstring("--resume goes on from there"));
    CHECK(fs::exists(world.folder / "cut.partial" / "checkpoint.safetensors"));
  }
}

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
