#pragma once
#include <sae/host/windows.hpp>
#include <sae/interpret/interventions.hpp>

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <functional>
#include <span>
#include <utility>
#include <vector>

namespace sae::inline SAE_ABI {

/// An SAE where it stands in a model. It keeps a pointer to it.
template <LatentModel Model>
struct SaeAt {
  Site site;
  const Model* sae = nullptr;
};

/// A latent of one of the SAEs, on one text.
struct CircuitNode {
  std::size_t layer = 0;  ///< which of the SAEs
  Index latent = 0;
  double activation = 0;  ///< sum over the positions that are looked at
  bool operator==(const CircuitNode&) const = default;
};
/// What one node does to another one, or to what is measured of the logits.
struct CircuitEdge {
  std::size_t from = 0;
  std::size_t to = 0;  ///< a node of a later layer; the number of nodes: the measure
  double effect = 0;   ///< what would be lost of the other's activation, or of the measure, without this node
  bool operator==(const CircuitEdge&) const = default;
};
/// Effects of latents on later latents and on a measure, on one text: all edges between the chosen nodes, those from the first node first.
struct Circuit {
  std::vector<Site> sites;
  std::vector<CircuitNode> nodes;  ///< layer by layer, in each by latent
  std::vector<CircuitEdge> edges;
  double measure = 0;  ///< of the model as it is

  /// Of each node, and of the measure at the end, what an effect on it is held against: the size of its activation (its value), or of the
  /// largest effect on it where that is more. Latents and logits have units of their own; |effect| / scale, in [0, 1], has none.
  std::vector<double> scales() const {
    std::vector<double> out;
    for (const CircuitNode& node : nodes) out.push_back(std::abs(node.activation));
    out.push_back(std::abs(measure));
    for (const CircuitEdge& edge : edges)
      if (std::isfinite(edge.effect)) out[edge.to] = (std::max)(out[edge.to], std::abs(edge.effect));
    return out;
  }
  /// |effect| / scale of each edge; 0 where nothing acts on a node of 0, or an effect is not finite.
  std::vector<double> shares() const {
    const std::vector<double> scale = scales();
    std::vector<double> out;
    for (const CircuitEdge& edge : edges)
      out.push_back(std::isfinite(edge.effect) && scale[edge.to] > 0 ? std::abs(edge.effect) / scale[edge.to] : 0.0);
    return out;
  }
  /// The same with the `count` edges of largest share alone (of equals the earlier one), in their order, and only nodes that one of them
  /// touches.
  Circuit strongest(std::size_t count) const {
    const std::vector<double> share = shares();
    std::vector<std::size_t> order(edges.size());
    for (std::size_t e = 0; e < order.size(); ++e) order[e] = e;
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return share[a] > share[b]; });
    order.resize((std::min)(count, order.size()));
    std::sort(order.begin(), order.end());
    std::vector<std::size_t> place(nodes.size() + 1, nodes.size());
    for (const std::size_t e : order) place[edges[e].from] = place[edges[e].to] = 0;
    Circuit out{.sites = sites, .nodes = {}, .edges = {}, .measure = measure};
    for (std::size_t n = 0; n < nodes.size(); ++n)
      if (place[n] == 0) {
        place[n] = out.nodes.size();
        out.nodes.push_back(nodes[n]);
      }
    place[nodes.size()] = out.nodes.size();
    for (const std::size_t e : order) out.edges.push_back({place[edges[e].from], place[edges[e].to], edges[e].effect});
    return out;
  }
};

/// What of the logits [T x V] of a text an effect is measured on, and, for attribution, its gradient [T x V].
struct LogitMeasure {
  std::function<double(const ConstMatrixMap<float>& logits)> value;
  std::function<Matrix<float>(const ConstMatrixMap<float>& logits)> gradient;
};
/// The logit of one token behind the text less that of another one (`no_token`: less the mean over the vocabulary).
inline LogitMeasure logit_difference(Token token, Token against = no_token) {
  const auto check = [=](Index vocabulary) {
    for (const Token t : {token, against})
      if (t >= vocabulary || (t < 0 && (t == token || t != no_token)))
        throw_value("logit_difference: token ", t, " is not in [0, ", vocabulary, ") (the vocabulary)");
  };
  return {[=](const ConstMatrixMap<float>& logits) {
            check(logits.cols());
            const auto last = logits.row(logits.rows() - 1).template cast<double>();
            return last[token] - (against == no_token ? last.mean() : last[against]);
          },
          [=](const ConstMatrixMap<float>& logits) {
            check(logits.cols());
            Matrix<float> out = Matrix<float>::Zero(logits.rows(), logits.cols());
            auto last = out.row(out.rows() - 1);
            if (against == no_token)
              last.setConstant(-1.0F / static_cast<float>(logits.cols()));
            else
              last[against] -= 1;
            last[token] += 1;
            return out;
          }};
}

struct CircuitOptions {
  Index latents =
      10;  ///< nodes of each SAE: those of largest activation, summed over the positions; of equals the lower latent
  bool skip_first = true;  ///< leave position 0 alone and out of the sums: BOS, on which SAEs are not trained
};

/// A host that can be differentiated: for the scalar <cotangent, activations at `at`> (or logits), [T x D] (or [T x V]), its gradient by the
/// activations at each of `sites`, all of them below: what a change there would change, through everything between.
template <class M>
concept DifferentiableModel = LanguageModel<M> && requires(M& model, std::span<const Token> tokens, const Site& at,
                                                           const Matrix<float>& cotangent, std::span<const Site> sites) {
  { model.gradients(tokens, at, cotangent, sites) } -> std::convertible_to<std::vector<Matrix<float>>>;
  { model.logit_gradients(tokens, cotangent, sites) } -> std::convertible_to<std::vector<Matrix<float>>>;
};

namespace detail {

/// Whether a model computes site a before site b: in a layer attention, then the MLP, then the residual stream that both have added to.
inline bool comes_before(const Site& a, const Site& b) {
  const auto order = [](SiteKind kind) { return kind == SiteKind::attn_out ? 0 : kind == SiteKind::mlp_out ? 1 : 2; };
  return a.layer != b.layer ? a.layer < b.layer : order(a.kind) < order(b.kind);
}

/// Activations of a text at the sites of SAEs, as codes.
template <LanguageModel M, LatentModel Model>
class CircuitPass {
 public:
  CircuitPass(M& model, std::span<const SaeAt<Model>> saes, std::span<const Token> tokens, const CircuitOptions& options,
              Threads& threads)
      : model_(model), saes_(saes), tokens_(tokens), first_(options.skip_first ? 1 : 0), threads_(threads) {
    if (saes.empty()) throw_value("a circuit needs an SAE");
    if (options.latents < 1) throw_value("CircuitOptions: latents = ", options.latents, " is below 1");
    if (static_cast<Index>(tokens.size()) <= first_)
      throw_value("a circuit needs a text: ", tokens.size(), " tokens, of which ", first_, " are left alone");
    for (std::size_t l = 0; l < saes.size(); ++l) {
      if (saes[l].sae->d_in() != model.shape().width)
        throw_shape("the SAE at ", to_string(saes[l].site), " is of width ", saes[l].sae->d_in(), ", the model of width ",
                    model.shape().width);
      if (l > 0 && !comes_before(saes[l - 1].site, saes[l].site))
        throw_value("SAEs of a circuit stand in the order of the model: ", to_string(saes[l].site), " comes behind ",
                    to_string(saes[l - 1].site));
    }
  }
  /// Runs the text under `edits`; codes of the SAEs from `first_layer` on, as they see it. \return logits [T x V], valid until the next run
  ConstMatrixMap<float> run(const std::vector<Tap>& edits, std::vector<Codes<ScalarOf<Model>>>& codes,
                            std::size_t first_layer = 0) {
    codes.assign(saes_.size(), Codes<ScalarOf<Model>>(1));
    std::vector<Tap> taps = edits;
    for (std::size_t l = first_layer; l < saes_.size(); ++l)
      taps.push_back({saes_[l].site, [&, l](MatrixMap<float> rows, Index) {
                        codes[l] =
                            saes_[l].sae->encode(Matrix<ScalarOf<Model>>(rows.template cast<ScalarOf<Model>>()), threads_);
                      }});
    return model_.run(tokens_, taps, {.logits = Logits::all});
  }
  /// Sum of a latent's activations over the positions.
  double sum(const Codes<ScalarOf<Model>>& codes, Index latent) const {
    double out = 0;
    for (Index t = first_; t < codes.rows(); ++t) out += static_cast<double>(codes.coefficient(t, latent));
    return out;
  }
  /// The most active latents of each SAE.
  std::vector<CircuitNode> nodes(const std::vector<Codes<ScalarOf<Model>>>& codes, Index count) const {
    std::vector<CircuitNode> out;
    for (std::size_t l = 0; l < saes_.size(); ++l) {
      std::vector<CircuitNode> active;
      std::vector<double> sums(static_cast<std::size_t>(codes[l].latents()), 0.0);
      for (Index t = first_; t < codes[l].rows(); ++t)
        for (Index e = codes[l].begin(t); e < codes[l].end(t); ++e)
          sums[static_cast<std::size_t>(codes[l].latent(e))] += static_cast<double>(codes[l].value(e));
      for (std::size_t i = 0; i < sums.size(); ++i)
        if (sums[i] != 0) active.push_back({l, static_cast<Index>(i), sums[i]});
      std::stable_sort(active.begin(), active.end(),
                       [](const CircuitNode& a, const CircuitNode& b) { return a.activation > b.activation; });
      active.resize((std::min)(active.size(), static_cast<std::size_t>(count)));
      std::sort(active.begin(), active.end(), [](const CircuitNode& a, const CircuitNode& b) { return a.latent < b.latent; });
      out.insert(out.end(), active.begin(), active.end());
    }
    return out;
  }
  Circuit start(std::vector<Codes<ScalarOf<Model>>>& codes, const LogitMeasure& measure, Index count) {
    Circuit out;
    const auto logits = run({}, codes);
    out.measure = measure.value(logits);
    out.nodes = nodes(codes, count);
    for (const SaeAt<Model>& at : saes_) out.sites.push_back(at.site);
    return out;
  }
  EditedRows edited() const { return EditedRows::from(first_); }
  Index first() const { return first_; }

 private:
  M& model_;
  std::span<const SaeAt<Model>> saes_;
  std::span<const Token> tokens_;
  Index first_;
  Threads& threads_;
};

}  // namespace detail

/// The circuit of a text by intervention, exactly: each node in turn is ablated at every position (f' = 0, the error term kept), and what
/// the later nodes and the measure lose is the effect. It is the total effect, through all that lies between.
///
/// \param saes  in the order in which the model computes their sites
/// \param tokens  [T], as the model reads them, BOS first where it has one
/// \param progress  progress(nodes done)
/// Cost: a forward pass for each node, and encoding the text at the sites above it.
/// \throws ShapeError, ValueError  an SAE that does not fit the model, no text, no SAE, sites out of order.
/// Source: Marks et al. 2024, "Sparse feature circuits" (ablation of features with the error term kept).
template <LanguageModel M, LatentModel Model>
Circuit circuit_by_intervention(M& model, std::span<const SaeAt<Model>> saes, std::span<const Token> tokens,
                                const LogitMeasure& measure, const CircuitOptions& options = {},
                                const std::function<void(Index)>& progress = {}, Threads& threads = Threads::shared()) {
  detail::CircuitPass<M, Model> pass(model, saes, tokens, options, threads);
  std::vector<Codes<detail::ScalarOf<Model>>> clean, without;
  Circuit out = pass.start(clean, measure, options.latents);
  for (std::size_t from = 0; from < out.nodes.size(); ++from) {
    const CircuitNode& node = out.nodes[from];
    const SaeAt<Model>& at = saes[node.layer];
    const Tap ablated = edit_latents(at.site, *at.sae, {ablate_latent(node.latent)}, pass.edited(), ErrorTerm::keep, threads);
    const auto logits = pass.run({ablated}, without, node.layer + 1);
    for (std::size_t to = from + 1; to < out.nodes.size(); ++to)
      if (out.nodes[to].layer > node.layer)
        out.edges.push_back(
            {from, to, out.nodes[to].activation - pass.sum(without[out.nodes[to].layer], out.nodes[to].latent)});
    out.edges.push_back({from, out.nodes.size(), out.measure - measure.value(logits)});
    if (progress) progress(static_cast<Index>(from) + 1);
  }
  return out;
}

/// The same by attribution patching: to first order, from one gradient for each later node and one for the measure,
///   effect(u -> v) = sum_t f_u[t] <W_dec[u], dv/dx_u[t]>,   v = sum_t f_v[t] over the positions in which v is active.
/// Exact where everything between is linear; elsewhere it is an estimate, blind to what would become active. For SAEs whose codes are
/// linear in x where they are active, with the row of W_enc for a slope: ReLU, TopK, BatchTopK, JumpReLU and the like without input
/// normalisation.
/// Cost: a forward pass and a gradient for each node.
/// Source: Nanda 2023, "Attribution patching"; Syed, Rager, Conmy 2023; Marks et al. 2024.
template <DifferentiableModel M, LatentModel Model>
Circuit circuit_by_attribution(M& model, std::span<const SaeAt<Model>> saes, std::span<const Token> tokens,
                               const LogitMeasure& measure, const CircuitOptions& options = {},
                               Threads& threads = Threads::shared()) {
  using Scalar = detail::ScalarOf<Model>;
  detail::CircuitPass<M, Model> pass(model, saes, tokens, options, threads);
  std::vector<Codes<Scalar>> clean;
  Circuit out = pass.start(clean, measure, options.latents);
  const std::size_t count = out.nodes.size();
  const Index width = model.shape().width, rows = static_cast<Index>(tokens.size());
  std::vector<std::vector<double>> effects(count + 1, std::vector<double>(count, 0.0));
  const auto attribute = [&](std::size_t to, const std::vector<Matrix<float>>& gradients) {
    for (std::size_t from = 0; from < count && (to == count || out.nodes[from].layer < out.nodes[to].layer); ++from) {
      const CircuitNode& node = out.nodes[from];
      const auto direction = detail::direction_of(*saes[node.layer].sae, node.latent);
      for (Index t = pass.first(); t < rows; ++t) {
        const double f = static_cast<double>(clean[node.layer].coefficient(t, node.latent));
        if (f == 0) continue;
        double dot = 0;
        for (Index j = 0; j < width; ++j)
          dot += static_cast<double>(direction[static_cast<std::size_t>(j)]) * static_cast<double>(gradients[node.layer](t, j));
        effects[to][from] += f * dot;
      }
    }
  };
  for (std::size_t to = 0; to < count; ++to) {
    const CircuitNode& node = out.nodes[to];
    if (node.layer == 0) continue;
    const auto& W_enc = saes[node.layer].sae->W_enc();
    Matrix<float> cotangent = Matrix<float>::Zero(rows, width);
    for (Index t = pass.first(); t < rows; ++t)
      if (clean[node.layer].coefficient(t, node.latent) != Scalar(0))
        cotangent.row(t) = W_enc.row(node.latent).template cast<float>();
    attribute(to,
              model.gradients(tokens, saes[node.layer].site, cotangent, std::span<const Site>(out.sites).first(node.layer)));
  }
  std::vector<Codes<Scalar>> again;
  const Matrix<float> cotangent = measure.gradient(pass.run({}, again, saes.size()));
  attribute(count, model.logit_gradients(tokens, cotangent, out.sites));
  for (std::size_t from = 0; from < count; ++from) {
    for (std::size_t to = from + 1; to < count; ++to)
      if (out.nodes[to].layer > out.nodes[from].layer) out.edges.push_back({from, to, effects[to][from]});
    out.edges.push_back({from, count, effects[count][from]});
  }
  return out;
}

}  // namespace sae::inline SAE_ABI
