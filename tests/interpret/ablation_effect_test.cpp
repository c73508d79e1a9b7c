#include <sae/interpret/ablation_effect.hpp>

#include <sae/activations/topk.hpp>
#include <sae/core/random.hpp>
#include <sae/models/sparse_autoencoder.hpp>

#include <algorithm>
#include <cmath>

#include "catch_compat.hpp"
#include "naive_llama.hpp"

using namespace sae;

namespace {
std::vector<double> log_probabilities(const ConstMatrixMap<float>& logits, Index row) {
  double total = 0;
  for (Index v = 0; v < logits.cols(); ++v) total += std::exp(static_cast<double>(logits(row, v)));
  std::vector<double> out;
  for (Index v = 0; v < logits.cols(); ++v) out.push_back(static_cast<double>(logits(row, v)) - std::log(total));
  return out;
}
}  // namespace

TEST_CASE("ablating a latent changes the next token as two passes by hand say", "[interpret][ablation_effect]") {
  sae_test::NaiveLlama model(sae_test::make_tiny_llama());
  const Index width = model.shape().width;
  SparseAutoencoder<Dynamic, Dynamic, TopK> sae(width, 96, TopK{.k = 6});
  Random random(4);
  for (Index i = 0; i < sae.W_dec().size(); ++i)
    sae.W_dec().data()[i] = static_cast<float>(random.normal() / std::sqrt(static_cast<double>(width)));
  sae.W_enc() = sae.W_dec();
  const Site site{1, SiteKind::residual};
  std::vector<Token> tokens = model.tokenize("the dog on the hill");
  tokens.insert(tokens.begin(), model.bos());
  const Index position = 7;
  Codes<float> codes(96);
  const Tap look{site, [&](MatrixMap<float> x, Index) { codes = sae.encode(Matrix<float>(x)); }};
  model.run(tokens, std::vector<Tap>{look});
  const Index latent = codes.row_latents(position)[0];
  const EditedRows there = EditedRows::at({position});

  const auto with = log_probabilities(model.run(tokens, {}, {.logits = Logits::all}), position);
  const Tap by_hand{
      site,
      [&](MatrixMap<float> x, Index) { x.row(position) -= codes.coefficient(position, latent) * sae.W_dec().row(latent); },
      true};
  const auto without = log_probabilities(model.run(tokens, std::vector<Tap>{by_hand}, {.logits = Logits::all}), position);
  double kl = 0;
  std::vector<std::pair<double, Token>> change;
  for (std::size_t v = 0; v < with.size(); ++v) {
    kl += std::exp(with[v]) * (with[v] - without[v]);
    change.emplace_back(without[v] - with[v], static_cast<Token>(v));
  }
  std::sort(change.begin(), change.end());

  const AblationEffect found = ablation_effect(model, std::span<const Token>(tokens), position, site, sae, latent, there, 4);
  REQUIRE(kl > 1e-4);
  CHECK(found.kl == Approx(kl).epsilon(1e-3));
  REQUIRE(found.up.size() == 4);
  REQUIRE(found.down.size() == 4);
  for (std::size_t n = 0; n < 4; ++n) {
    CHECK(found.down[n].token == change[n].second);
    CHECK(found.down[n].logit == Approx(change[n].first).margin(1e-4));
    CHECK(found.up[n].token == change[change.size() - 1 - n].second);
    CHECK(found.up[n].logit == Approx(change[change.size() - 1 - n].first).margin(1e-4));
  }

  // A latent that is not active changes nothing.
  Index silent = 0;
  while (codes.coefficient(position, silent) != 0) ++silent;
  CHECK(ablation_effect(model, std::span<const Token>(tokens), position, site, sae, silent, there).kl == 0);
  CHECK_THROWS_WITH(ablation_effect(model, std::span<const Token>(tokens), 99, site, sae, latent, there),
                    Catch::Matchers::ContainsSubstring("position 99 is not in [0, "));
  CHECK_THROWS_AS(ablation_effect(model, std::span<const Token>(tokens), position, site, sae, 96, there), ValueError);
  CHECK_THROWS_AS(ablation_effect(model, std::span<const Token>(tokens), position, site, sae, latent, there, 0), ValueError);
}
