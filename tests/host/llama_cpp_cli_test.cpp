// The verbs that read a text with a language model, as a user calls them: collect, recover, top, train.
#include <sae/interpret/recover.hpp>
#include <sae/interpret/top_activations.hpp>

#include <cmath>

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
using sae_test::run_sae;
using sae_test::Words;
using sae_test::World;
namespace fs = std::filesystem;

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

#endif
