#include <sae/interpret/circuit.hpp>

#include <sae/activations/relu.hpp>
#include <sae/core/random.hpp>
#include <sae/models/sparse_autoencoder.hpp>

#include <cmath>

#include "catch_compat.hpp"

using namespace sae;

namespace {

using Sae = SparseAutoencoder<Dynamic, Dynamic, ReLU>;
using At = SaeAt<Sae>;
constexpr Index width = 6, vocabulary = 5;

/// x0 = E[token]; x1[t] = x0[t] + relu(x0[t] A) + x0[t - 1] S; logits = x1 U. Everything can be followed by hand.
class PlantedModel {
 public:
  Matrix<float> E = Matrix<float>::Zero(vocabulary, width), A = Matrix<float>::Zero(width, width),
                S = Matrix<float>::Zero(width, width), U = Matrix<float>::Zero(width, vocabulary);

  ModelShape shape() const { return {width, 2, vocabulary, 64}; }
  std::string name() const { return "planted"; }
  Token bos() const { return 0; }
  std::vector<Site> sites() const { return {{0}, {1}}; }
  std::vector<Token> tokenize(std::string_view text) const {
    std::vector<Token> out;
    for (const char c : text) out.push_back(c - '0');
    return out;
  }
  std::string token_text(Token token) const { return std::to_string(token); }
  Matrix<float> unembedding() const { return U.transpose(); }

  ConstMatrixMap<float> run(std::span<const Token> tokens, std::span<const Tap> taps = {}, const RunOptions& options = {}) {
    check_run(shape(), tokens, taps, options);
    ++runs;
    const auto show = [&](Index layer, Matrix<float>& x) {
      for (const Tap& tap : taps)
        if (tap.site == Site{layer}) tap.visit(MatrixMap<float>(x.data(), x.rows(), x.cols()), 0);
    };
    x0.resize(static_cast<Index>(tokens.size()), width);
    for (Index t = 0; t < x0.rows(); ++t) x0.row(t) = E.row(tokens[static_cast<std::size_t>(t)]);
    show(0, x0);
    Matrix<float> x1 = x0 + (x0 * A).cwiseMax(0.0F);
    for (Index t = 1; t < x1.rows(); ++t) x1.row(t) += x0.row(t - 1) * S;
    show(1, x1);
    logits = x1 * U;
    return {logits.data(), logits.rows(), logits.cols()};
  }
  std::vector<Matrix<float>> gradients(std::span<const Token> tokens, const Site& at, const Matrix<float>& g,
                                       std::span<const Site> sites) {
    REQUIRE(at == Site{1});
    run(tokens);
    Matrix<float> below = g + (g.array() * ((x0 * A).array() > 0).cast<float>()).matrix() * A.transpose();
    for (Index t = 1; t < g.rows(); ++t) below.row(t - 1) += g.row(t) * S.transpose();
    std::vector<Matrix<float>> out;
    for (const Site& site : sites) out.push_back(site == Site{0} ? below : g);
    return out;
  }
  std::vector<Matrix<float>> logit_gradients(std::span<const Token> tokens, const Matrix<float>& g,
                                             std::span<const Site> sites) {
    return gradients(tokens, {1}, g * U.transpose(), sites);
  }
  Index runs = 0;

 private:
  Matrix<float> x0, logits;
};
static_assert(DifferentiableModel<PlantedModel>);

/// A latent for each dimension that reads and writes it.
Sae identity() {
  Sae sae(width, width, ReLU{});
  sae.W_enc() = sae.W_dec() = Matrix<float>::Identity(width, width);
  sae.parameters().b_enc.map().setZero();
  sae.parameters().b_dec.map().setZero();
  return sae;
}
double effect(const Circuit& circuit, std::pair<std::size_t, Index> from, std::pair<std::size_t, Index> to) {
  const auto place = [&](std::pair<std::size_t, Index> at) {
    for (std::size_t n = 0; n < circuit.nodes.size(); ++n)
      if (circuit.nodes[n].layer == at.first && circuit.nodes[n].latent == at.second) return n;
    return circuit.nodes.size();
  };
  for (const CircuitEdge& edge : circuit.edges)
    if (edge.from == place(from) && edge.to == place(to)) return edge.effect;
  return std::nan("");
}
const std::pair<std::size_t, Index> measure{9, 0};  // no node: the measure

}  // namespace

TEST_CASE("a planted path is found by intervention and by attribution, and they agree", "[interpret][circuit]") {
  PlantedModel model;
  model.E(1, 0) = 3;  // token 1 writes dimension 0
  model.E(2, 2) = 2;  // token 2 writes dimension 2
  model.A(0, 1) = 2;  // the MLP: 0 to 1, twofold
  model.S(0, 3) = 1;  // the look back: 0 of the token before to 3
  model.U(1, 4) = 1;  // dimension 1 speaks for token 4
  model.U(3, 4) = 0.5F;
  model.U(2, 4) = -0.25F;
  const auto sae = identity();
  const std::vector<At> saes = {{{0}, &sae}, {{1}, &sae}};
  const std::vector<Token> tokens = {0, 1, 2};
  // x0: t1 e0*3, t2 e2*2. x1: t1 3 e0 + 6 e1; t2 2 e2 + 3 e3. Logit of 4 at t2: -0.5 + 1.5.
  const LogitMeasure logit{logit_difference(4, 0)};
  const Circuit exact = circuit_by_intervention(model, std::span<const At>(saes), std::span<const Token>(tokens), logit);
  CHECK(exact.measure == Approx(1));
  REQUIRE(exact.nodes.size() == 6);
  CHECK(exact.nodes[0] == CircuitNode{0, 0, 3});
  CHECK(exact.nodes[1] == CircuitNode{0, 2, 2});
  CHECK(exact.nodes[3] == CircuitNode{1, 1, 6});
  CHECK(effect(exact, {0, 0}, {1, 0}) == 3);
  CHECK(effect(exact, {0, 0}, {1, 1}) == 6);
  CHECK(effect(exact, {0, 0}, {1, 2}) == 0);
  CHECK(effect(exact, {0, 0}, {1, 3}) == 3);
  CHECK(effect(exact, {0, 2}, {1, 2}) == 2);
  CHECK(effect(exact, {0, 0}, measure) == Approx(1.5));  // by way of 3, in the next token
  CHECK(effect(exact, {0, 2}, measure) == Approx(-0.5));
  CHECK(effect(exact, {1, 3}, measure) == Approx(1.5));
  CHECK(effect(exact, {1, 1}, measure) == 0);  // of another position
  CHECK(exact.edges.size() == 2 * 4 + 6);

  const Circuit estimate = circuit_by_attribution(model, std::span<const At>(saes), std::span<const Token>(tokens), logit);
  REQUIRE(estimate.nodes == exact.nodes);
  REQUIRE(estimate.edges.size() == exact.edges.size());
  for (std::size_t e = 0; e < exact.edges.size(); ++e) {
    CHECK(estimate.edges[e].from == exact.edges[e].from);
    CHECK(estimate.edges[e].to == exact.edges[e].to);
    CHECK(estimate.edges[e].effect == Approx(exact.edges[e].effect).margin(1e-6));
  }

  // Held against what they act on: 3 of 3, 6 of 6, 3 of 3; on the measure of 1, the largest effect being 1.5.
  CHECK(exact.scales() == std::vector<double>{3, 2, 3, 6, 2, 3, 1.5});
  CHECK(exact.shares()[0] == 1);
  CHECK(exact.shares()[2] == 0);
  const Circuit few = exact.strongest(3);
  REQUIRE(few.edges.size() == 3);
  CHECK(few.nodes.size() == 4);
  CHECK(few.nodes[0] == CircuitNode{0, 0, 3});
  for (const CircuitEdge& edge : few.edges) CHECK(std::abs(edge.effect) >= 3);
  CHECK(exact.strongest(99).edges == exact.edges);
}

TEST_CASE("attribution is the slope of the intervention where the model bends", "[interpret][circuit]") {
  // Ablating a latent by a share s changes the later ones by s times the attribution, for a small s.
  PlantedModel model;
  Random random(5);
  for (Matrix<float>* m : {&model.E, &model.A, &model.S, &model.U})
    for (Index i = 0; i < m->size(); ++i) m->data()[i] = static_cast<float>(random.normal());
  const auto sae = identity();
  const std::vector<At> saes = {{{0}, &sae}, {{1}, &sae}};
  const std::vector<Token> tokens = {0, 3, 1, 2, 4};
  const LogitMeasure logit = logit_difference(3);
  const Circuit estimate = circuit_by_attribution(model, std::span<const At>(saes), std::span<const Token>(tokens), logit);
  constexpr double share = 1e-2;
  for (std::size_t from = 0; estimate.nodes[from].layer == 0; ++from) {
    std::vector<double> change(estimate.nodes.size() + 1);
    for (const double sign : {1.0, -1.0}) {
      std::vector<Tap> taps = {
          edit_latents({0}, sae, {scale_latent(estimate.nodes[from].latent, 1 - sign * share)}, EditedRows::from(1))};
      Codes<float> codes(1);
      taps.push_back({{1}, [&](MatrixMap<float> rows, Index) { codes = sae.encode(Matrix<float>(rows)); }});
      const double value = logit.value(model.run(tokens, taps, {.logits = Logits::all}));
      for (std::size_t to = 0; to < estimate.nodes.size(); ++to)
        for (Index t = 1; t < codes.rows(); ++t)
          change[to] -= sign * static_cast<double>(codes.coefficient(t, estimate.nodes[to].latent)) / (2 * share);
      change.back() -= sign * value / (2 * share);
    }
    for (const CircuitEdge& edge : estimate.edges)
      if (edge.from == from) CHECK(edge.effect == Approx(change[edge.to]).epsilon(2e-3).margin(2e-3));
  }
}

TEST_CASE("nodes are the most active latents, a pass is run for each", "[interpret][circuit]") {
  PlantedModel model;
  model.E.row(1) << 1, 5, 2, 5, 3, 0;
  const auto sae = identity();
  const std::vector<At> saes = {{{0}, &sae}};
  const std::vector<Token> tokens = {1, 1};
  std::vector<Index> heard;
  const Circuit found = circuit_by_intervention(model, std::span<const At>(saes), std::span<const Token>(tokens),
                                                logit_difference(2), {.latents = 3}, [&](Index n) { heard.push_back(n); });
  REQUIRE(found.nodes.size() == 3);
  CHECK(found.nodes == std::vector<CircuitNode>{{0, 1, 5}, {0, 3, 5}, {0, 4, 3}});
  CHECK(heard == std::vector<Index>{1, 2, 3});
  CHECK(model.runs == 4);
}

TEST_CASE("circuits that cannot be are refused", "[interpret][circuit]") {
  PlantedModel model;
  const auto sae = identity();
  const auto run = [&](const std::vector<At>& saes, const std::vector<Token>& tokens, CircuitOptions options = {}) {
    return circuit_by_intervention(model, std::span<const At>(saes), std::span<const Token>(tokens), logit_difference(2),
                                   options);
  };
  CHECK(run({{{0}, &sae}}, {0, 1}).nodes.empty());  // nothing is active
  CHECK_THROWS_WITH(run({}, {0, 1}), "a circuit needs an SAE");
  CHECK_THROWS_WITH(run({{{0}, &sae}}, {0}), "a circuit needs a text: 1 tokens, of which 1 are left alone");
  CHECK_THROWS_AS(run({{{0}, &sae}}, {0, 1}, {.latents = 0}), ValueError);
  CHECK_THROWS_WITH(run({{{1}, &sae}, {{0}, &sae}}, {0, 1}),
                    "SAEs of a circuit stand in the order of the model: residual-0 comes behind residual-1");
  const Sae wide(7, 7, ReLU{});
  CHECK_THROWS_AS(run({{{0}, &wide}}, {0, 1}), ShapeError);
  CHECK_THROWS_WITH(circuit_by_intervention(model, std::span<const At>(std::vector<At>{{{0}, &sae}}),
                                            std::span<const Token>(std::vector<Token>{0, 1}), logit_difference(7)),
                    "logit_difference: token 7 is not in [0, 5) (the vocabulary)");
  CHECK(detail::comes_before({1, SiteKind::attn_out}, {1, SiteKind::mlp_out}));
  CHECK(detail::comes_before({1, SiteKind::mlp_out}, {1, SiteKind::residual}));
  CHECK_FALSE(detail::comes_before({1, SiteKind::residual}, {1, SiteKind::residual}));
}
