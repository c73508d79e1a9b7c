// What all verbs share: usage, exit codes, where words go.
#include <nlohmann/json.hpp>

#include "catch_compat.hpp"
#include "cli_test.hpp"

#ifdef SAE_TEST_PROGRAM

using Catch::Matchers::ContainsSubstring;
using sae_test::run_sae;
using sae_test::Words;

TEST_CASE("sae: help and version go to standard output", "[cli]") {
  const auto help = run_sae({"--help"});
  CHECK(help.code == 0);
  CHECK(help.err.empty());
  for (const char* verb :
       {"collect", "train", "encode", "decode", "reconstruct", "eval", "recover", "top", "steer", "synth", "inspect"})
    CHECK_THAT(help.out, ContainsSubstring(std::string("\n  ") + verb));
  for (const char* verb : {"train", "encode", "decode", "reconstruct", "eval", "synth", "inspect"}) {
    const auto of_verb = run_sae({verb, "--help"});
    CHECK(of_verb.code == 0);
    CHECK_THAT(of_verb.out, ContainsSubstring("--threads"));
    CHECK_THAT(of_verb.out, ContainsSubstring("--quiet"));
  }
  const auto version = run_sae({"--version"});
  CHECK(version.code == 0);
  CHECK(version.out.starts_with("sae 0."));
}

TEST_CASE("sae: wrong usage is exit 2 and one line", "[cli]") {
  const std::vector<Words> wrong = {
      {},
      {"frobnicate"},
      {"train", "--frobnicate"},
      {"encode"},
      {"encode", "--sae", "s", "--data", "x.npy", "--out", "y.npy", "--threads", "-1"},
      {"encode", "--sae", "s", "--data", "x.npy", "--out", "y.npy", "--rows", "many"},
      {"eval", "--sae", "s", "--data", "x.npy", "--max-norm", "big"},
      {"eval", "--sae", "s", "--data", "x.npy", "--max-norm", "-3x"},
      {"train", "--data", "x.npy", "--out", "o"},
      {"train", "--latents", "8", "--out", "o"},
      {"train", "--data", "x.npy", "--latents", "0", "--out", "o"},
      {"train", "--data", "x.npy", "--latents", "8", "--lr", "0", "--out", "o"},
      {"train", "--data", "x.npy", "--latents", "8", "--lr", "nan", "--out", "o"},
      {"train", "--data", "x.npy", "--latents", "8", "--batch", "0", "--out", "o"},
      {"train", "--data", "x.npy", "--latents", "8", "--activation", "sigmoid", "--out", "o"},
      {"train", "--data", "x.npy", "--latents", "8", "--activation", "relu", "--k", "4", "--out", "o"},
      {"train", "--data", "x.npy", "--latents", "8", "--l1", "1", "--out", "o"},
      {"train", "--data", "x.npy", "--latents", "8", "--tokens", "9", "--steps", "9", "--out", "o"},
      {"train", "--data", "x.npy", "--model", "m", "--latents", "8", "--out", "o"},
      {"train", "--model", "m", "--latents", "8", "--out", "o"},
      {"train", "--data", "x.npy", "--latents", "8", "--lr", "inf", "--out", "o"},
      {"train", "--data", "x.npy", "--latents", "8", "--seed", "-1", "--out", "o"},
      {"train", "--data", "x.npy", "--latents", "8", "--seed", "18446744073709551616", "--out", "o"},
      {"train", "--data", "x.npy", "--latents", "8", "--steps", "9223372036854775807", "--out", "o"},
      {"encode", "--sae", "s", "--data", "x.npy", "--out", "y.npy", "--threads", "100000"},
      {"encode", "--sae", "s", "--data", "x.npy", "--out", ""},
      {"synth", "--config", "w.json", "--rows", "5", "--out", "x.npy", "--codes", "x.npy"},
      {"synth", "--config", "w.json", "--rows", "0", "--out", "x.npy"}};
  for (const Words& words : wrong) {
    std::string line;
    for (const std::string& word : words) line += word + " ";
    INFO("sae " << line);
    const auto run = run_sae(words);
    CHECK(run.code == 2);
    CHECK(run.out.empty());
    CHECK_THAT(run.error(), ContainsSubstring("--help)"));
  }
}

TEST_CASE("sae: a standard output that cannot be written is a failure", "[cli]") {
  const std::string sae = std::string("'") + SAE_TEST_PROGRAM + "' ";
  const auto run = [&](const std::string& rest) { return WEXITSTATUS(std::system((sae + rest).c_str())); };
  CHECK(run("--version >/dev/full 2>/dev/null") == 1);
  CHECK(run("inspect '" + sae_test::peer_path("inference/saelens_topk") + "' --json >/dev/full 2>/dev/null") == 1);
  CHECK(run("inspect '" + sae_test::peer_path("inference/saelens_topk") + "' --json >/dev/null 2>/dev/null") == 0);
}

#endif
