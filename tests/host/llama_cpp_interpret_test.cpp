// Edits of a real llama.cpp model by latents, against a naive forward pass of the same weights.
#include <sae/activations/topk.hpp>
#include <sae/host/generate.hpp>
#include <sae/host/llama_cpp.hpp>
#include <sae/interpret/recover.hpp>
#include <sae/models/sparse_autoencoder.hpp>

#include <cmath>

#include "catch_compat.hpp"
#include "naive_llama.hpp"

using namespace sae;

namespace {

struct Pair {
  Pair()
      : weights(sae_test::make_tiny_llama()),
        file("tiny.gguf", sae_test::tiny_gguf_bytes(weights)),
        llama(file.path(), {.context = 64, .threads = 2}),
        naive(weights) {}
  sae_test::TinyLlama weights;
  sae_test::TemporaryFile file;
  LlamaCpp llama;
  sae_test::NaiveLlama naive;
};

/// Random directions, every latent reads along what it writes. Thresholds apart, so that rounding changes no selection.
auto some_sae(Index width, Index latents = 96) {
  SparseAutoencoder sae(width, latents, TopK{.k = 6});
  Random random(4);
  for (Index i = 0; i < sae.W_dec().size(); ++i)
    sae.W_dec().data()[i] = static_cast<float>(random.normal() / std::sqrt(static_cast<double>(width)));
  sae.W_enc() = sae.W_dec();
  return sae;
}
Matrix<float> logits_of(auto& model, std::span<const Token> tokens, const std::vector<Tap>& taps = {}) {
  return model.run(tokens, taps, {.logits = Logits::all});
}
double apart(const Matrix<float>& a, const Matrix<float>& b) {
  if (!a.allFinite() || !b.allFinite()) return std::nan("");
  return (a - b).cwiseAbs().maxCoeff<Eigen::PropagateNaN>() / static_cast<double>(b.cwiseAbs().maxCoeff<Eigen::PropagateNaN>());
}
const std::string text = "the cat and the dog in the house on the hill of the inn and a band of men in it";
// A few dozen roundings of float at D = 32 through three layers.
constexpr double tolerance = 2e-5;
}  // namespace

TEST_CASE("steering, clamping and ablating a latent change llama.cpp's logits as they change the naive ones",
          "[host][llama_cpp][interpret]") {
  Pair pair;
  const auto sae = some_sae(32);
  std::vector<Token> tokens = pair.llama.tokenize(text);
  tokens.insert(tokens.begin(), pair.llama.bos());
  const Matrix<float> clean = logits_of(pair.llama, tokens);
  for (const Site& site : pair.llama.sites()) {
    INFO(to_string(site));
    Index latent = 0;  // one that is active somewhere after BOS
    const Tap look{site, [&](MatrixMap<float> x, Index) { latent = sae.encode(x).row_latents(3)[0]; }};
    logits_of(pair.llama, tokens, {look});
    const EditedRows rows = EditedRows::after_first();
    const std::vector<std::pair<const char*, Tap>> edits = {{"steer", steer_latent(site, sae, 5, 4, rows)},
                                                            {"clamp", edit_latents(site, sae, {clamp_latent(7, 5)}, rows)},
                                                            {"ablate", edit_latents(site, sae, {ablate_latent(latent)}, rows)},
                                                            {"replace", replace_by_reconstruction(site, sae, rows)}};
    for (const auto& [name, tap] : edits) {
      INFO(name);
      const Matrix<float> edited = logits_of(pair.llama, tokens, {tap});
      CHECK(apart(edited, logits_of(pair.naive, tokens, {tap})) < tolerance);
      CHECK(apart(edited, clean) > 1e-3);
      CHECK(edited.row(0) == clean.row(0));  // BOS comes first and is spared
    }
    CHECK(logits_of(pair.llama, tokens, {edit_latents(site, sae, {})}) == clean);
    CHECK(logits_of(pair.llama, tokens, {edit_latents(site, sae, {scale_latent(latent, 1)})}) == clean);
    CHECK(logits_of(pair.llama, tokens, {edit_latents(site, sae, {scale_latent(latent, 1)}, {}, ErrorTerm::drop)}) != clean);
  }
}

TEST_CASE("loss recovered on llama.cpp is that on the naive model, zeros everywhere are the uniform guess",
          "[host][llama_cpp][interpret]") {
  Pair pair;
  const auto sae = some_sae(32);
  const Windows windows = cut_windows(pair.llama, text, {.context = 12, .tokens = 0});
  REQUIRE(windows.count() >= 3);
  const Site site{1, SiteKind::residual};
  for (const bool replace_bos : {false, true}) {
    const RecoverReport ours = recover(pair.llama, windows, site, sae, {.replace_bos = replace_bos});
    const RecoverReport naive = recover(pair.naive, windows, site, sae, {.replace_bos = replace_bos});
    CHECK(ours.tokens == windows.count() * 11);
    CHECK(ours.cross_entropy.clean == Approx(naive.cross_entropy.clean).epsilon(1e-5));
    CHECK(ours.cross_entropy.sae == Approx(naive.cross_entropy.sae).epsilon(1e-5));
    CHECK(ours.cross_entropy.zero == Approx(naive.cross_entropy.zero).epsilon(1e-5));
    CHECK(ours.cross_entropy.mean == Approx(naive.cross_entropy.mean).epsilon(1e-5));
    CHECK(ours.kl == Approx(naive.kl).epsilon(1e-4));
    CHECK(ours.figures.l0 == Approx(6).epsilon(1e-12));
    CHECK(ours.figures.explained_variance == Approx(naive.figures.explained_variance).epsilon(1e-4));
    if (replace_bos)
      CHECK(std::abs(ours.cross_entropy.zero - std::log(static_cast<double>(pair.llama.shape().vocabulary))) < 1e-12);
    else
      CHECK(std::abs(ours.cross_entropy.zero - std::log(static_cast<double>(pair.llama.shape().vocabulary))) > 1e-3);
  }
}

TEST_CASE("text generated under steering is that of edited logits, token by token", "[host][llama_cpp][interpret]") {
  Pair pair;
  const auto sae = some_sae(32);
  const Site site{1, SiteKind::residual};
  const std::vector<Tap> taps = {steer_latent(site, sae, 11, 12, EditedRows::after_first())};
  std::vector<Token> sequence = {pair.llama.bos()};
  for (const Token token : pair.llama.tokenize("the cat")) sequence.push_back(token);
  const std::vector<Token> text_of =
      generate(pair.llama, std::span<const Token>(sequence), {.tokens = 16, .stop_at_end = false}, taps);
  const std::vector<Token> plain = generate(pair.llama, std::span<const Token>(sequence), {.tokens = 16, .stop_at_end = false});
  CHECK(text_of != plain);
  for (const Token token : text_of) {
    const Matrix<float> logits = logits_of(pair.naive, sequence, taps);
    Index best = 0;
    logits.bottomRows(1).row(0).maxCoeff(&best);
    CHECK(token == best);
    sequence.push_back(token);
  }
}
