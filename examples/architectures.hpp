// Every architecture of the library by its name, trained as a recipe says: what benchmark_world and benchmark_rows share.
#pragma once
#include <sae/sae.hpp>

#include <chrono>
#include <numeric>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace architectures {

using sae::Index;

/// One that no recipe names: it has the settings of `relative`. Those with targets or several sites read rows that hold their sites
/// side by side, inputs before targets.
struct Further {
  std::string_view name, relative;
  Index sites;  ///< of the fewest that it is for; a cross-layer transcoder has as many inputs as targets
};
inline constexpr Further further[] = {
    {"hierarchical", "topk", 1}, {"multi-topk", "topk", 1},  {"orthogonal_matching_pursuit", "matching_pursuit", 1},
    {"glu", "topk", 1},          {"transcoder", "topk", 2},  {"skip-transcoder", "topk", 2},
    {"crosscoder", "topk", 2},   {"cross-layer", "topk", 4},
};
inline Further find(std::string_view name) {
  for (const Further& one : further)
    if (one.name == name) return one;
  return {name, name, 1};
}

/// As sae::recipe, for the further ones, too.
inline sae::Recipe recipe(std::string_view name, sae::RecipeProblem problem) {
  const std::string architecture = std::exchange(problem.activation, std::string(find(problem.activation).relative));
  sae::Recipe out = sae::recipe(name, problem);
  const sae::TopK* const topk = out.activation.get<sae::TopK>();
  if (architecture == "hierarchical")
    out.objective.terms.emplace_back(sae::HierarchicalTopK{.k = topk->k, .by_decoder_norm = topk->rank_by_decoder_norm});
  if (architecture == "multi-topk") {
    const auto* const error = out.objective.find<sae::SquaredError>();
    out.objective.terms.emplace_back(
        sae::MultiTopK{.k = topk->k,
                       .normaliser = error != nullptr ? error->normaliser : sae::ErrorNormaliser::rows,
                       .rank_by_decoder_norm = topk->rank_by_decoder_norm});
  }
  if (architecture == "orthogonal_matching_pursuit")
    out.activation = sae::OrthogonalMatchingPursuit{.k = static_cast<Index>(problem.k.value_or(32))};
  if (architecture == "glu") out.objective = {};  // AuxK knows one encoder alone
  out.activation.check(problem.latents);
  out.objective.check(problem.d_in, problem.latents);
  return out;
}

/// Trains the architecture on rows with `sites` of these widths side by side, then calls use(model, milliseconds of a step).
template <class Source, class Use>
void train(const sae::Recipe& recipe, std::string_view name, const std::vector<Index>& sites, Index latents, std::uint64_t seed,
           Source& source, sae::Threads& threads, const Use& use) {
  const auto fit = [&](auto model) {
    auto trainer = [&] {
      if constexpr (requires { model.layers(); })
        return sae::CrossLayerTrainer(model, recipe.config, recipe.objective, threads);
      else
        return sae::Trainer(model, recipe.config, recipe.objective, threads);
    }();
    const auto begin = std::chrono::steady_clock::now();
    trainer.fit(source);
    const std::chrono::duration<double, std::milli> spent = std::chrono::steady_clock::now() - begin;
    const auto inference = sae::inference_model(model);  // BatchTopK by its threshold
    use(inference ? *inference : model, spent.count() / static_cast<double>(trainer.step()));
  };
  const Index width = sites.front();
  const sae::TiedInitialization start{
      .decoder_norm = recipe.initial_decoder_norm, .seed = seed, .encoder_scale = recipe.encoder_scale};
  const auto* const topk = recipe.activation.get<sae::TopK>();
  if (name == "glu") {
    using Glu = sae::Glu<sae::TopK>;
    fit(sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, Glu>(width, latents, Glu{*topk}, {.initialization = start}));
  } else if (name == "transcoder" || name == "skip-transcoder") {
    fit(sae::make_transcoder(recipe, width, sites.at(1), latents, name == "skip-transcoder", seed));
  } else if (name == "crosscoder") {
    fit(sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::AnyActivation>(
        std::accumulate(sites.begin(), sites.end(), Index{0}), latents, recipe.activation, sae::crosscoder(sites, start)));
  } else if (name == "cross-layer") {
    fit(sae::CrossLayerTranscoder<sae::TopK>(
        static_cast<Index>(sites.size()) / 2, width, latents, *topk,
        {.decoder_norm = topk->rank_by_decoder_norm ? recipe.initial_decoder_norm : 0, .seed = seed}));
  } else {
    fit(sae::make_model(recipe, width, latents, seed));
  }
}

/// What a model makes of rows: codes of each of its layers (most have one), and its prediction of the last columns of the rows.
struct Prediction {
  std::vector<sae::Codes<float>> codes;
  sae::Matrix<float> values;
};
template <class Model>
Prediction predict(const Model& model, const sae::Batch<float>& rows, sae::Threads& threads) {
  const auto inputs = [&](Index width) { return sae::Batch<float>(rows.row(0), rows.rows(), width, rows.stride()); };
  Prediction out;
  if constexpr (requires { model.layers(); }) {
    out.codes = model.encode(inputs(model.width()), threads);
    out.values = model.decode(out.codes, threads);
  } else {
    out.codes.push_back(model.encode(inputs(model.d_in()), threads));
    out.values = model.decode(out.codes[0], inputs(model.d_in()), threads);
  }
  return out;
}

/// Figures of predictions; latents of all layers are counted together.
class Measure {
 public:
  void add(const sae::Batch<float>& rows, const Prediction& prediction, sae::Threads& threads) {
    const Index width = prediction.values.cols();
    const sae::Batch<float> targets(rows.row(0) + rows.cols() - width, rows.rows(), width, rows.stride());
    if (layers_.empty())
      for (const auto& codes : prediction.codes) layers_.emplace_back(width, codes.latents());
    for (std::size_t l = 0; l < layers_.size(); ++l)
      layers_[l].add<float>(targets, prediction.values, prediction.codes[l], {}, threads);
  }
  sae::ReconstructionFigures figures() const {
    sae::ReconstructionFigures out = layers_.at(0).figures();
    for (std::size_t l = 1; l < layers_.size(); ++l) {
      const sae::ReconstructionFigures more = layers_[l].figures();
      out.l0 += more.l0;
      out.dead_latents += more.dead_latents;
    }
    return out;
  }

 private:
  std::vector<sae::ReconstructionMetrics> layers_;
};

}  // namespace architectures
