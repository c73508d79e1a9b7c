// How well does an architecture rewrite the activations of a language model?
//
//   sae collect --model M.gguf --text T.txt --layer 14,15 --site residual,mlp_out --tokens 142800 --out train
//   sae collect ... --skip-tokens 142800 --tokens 10200 --out held-out
//   benchmark_rows --train train --held-out held-out --architecture transcoder --sites residual-14,mlp_out-15
//
// Trains on the rows of one folder and prints explained variance and active latents on those of the other. A crosscoder reads and
// writes all sites, a transcoder reads the first and predicts the second, a cross-layer transcoder reads the first half of them
// (layer by layer) and predicts the second; every other architecture has one. Each site is divided by the root mean square of its
// rows, so that none counts for more than another. A latent is dead if it was never active on the last 100,000 rows of training.
// Rows with a norm above 10 medians, which `sae collect` leaves out unless told otherwise, are not counted (but with cross-layer).
#include <sae/data/npy_source.hpp>
#include <sae/sae.hpp>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <numeric>
#include <string>
#include <vector>

#include "architectures.hpp"

namespace {

using sae::Index;

struct Settings {
  std::string train, held_out, architecture, recipe = "default";
  std::vector<std::string> sites;
  Index latents = 4608, k = 32, steps = 558, batch = 1024, seeds = 1, first_seed = 1;
  int threads = 0;
};

/// Rows of several sites side by side.
struct Rows {
  std::vector<Index> widths;
  sae::Tensor<float> values;

  Rows(const std::filesystem::path& folder, const std::vector<std::string>& sites) {
    std::vector<sae::FiniteNpyRows> files;
    for (const std::string& site : sites) {
      widths.push_back(files.emplace_back(sae::NpyFolder(folder / site)).width());
      if (files.back().rows() != files.front().rows())
        throw sae::ShapeError(folder.string() + ": " + site + " and " + sites.front() + " differ in their number of rows");
    }
    values.resize(files.front().rows(), std::accumulate(widths.begin(), widths.end(), Index{0}));
    for (Index i = 0; i < values.rows(); ++i) {
      float* at = values.row(i);
      for (const auto& site : files) {
        site.read_row(i, at);
        at += site.width();
      }
    }
  }
  auto site(std::size_t s) {
    return values.map().middleCols(std::accumulate(widths.begin(), widths.begin() + static_cast<std::ptrdiff_t>(s), Index{0}),
                                   widths[s]);
  }
};

/// What sae::IndexedSource reads.
struct KeptRows {
  const sae::Tensor<float>* kept;
  Index rows() const { return kept->rows(); }
  Index width() const { return kept->cols(); }
  void read_row(Index i, float* out) const { std::copy_n(kept->row(i), width(), out); }
};
using Source = sae::IndexedSource<KeptRows>;

template <class Model>
sae::ReconstructionFigures measure(const Model& model, const sae::Tensor<float>& rows, Index first, sae::Threads& threads) {
  Source source({&rows}, {.shuffle = false, .first = first, .epochs = 1});
  if constexpr (requires { model.layers(); }) {
    sae::Tensor<float> batch(1024, source.width());
    architectures::Measure out;
    for (Index got = 0; (got = source.next(batch)) > 0;) {
      const sae::Batch<float> block(batch.data(), got, batch.cols());
      out.add(block, architectures::predict(model, block, threads), threads);
    }
    return out.figures();
  } else {
    return sae::evaluate(model, source, {.max_norm = 10}, threads);
  }
}

void benchmark(const Settings& s) {
  sae::Threads threads(s.threads);
  const auto given = static_cast<Index>(s.sites.size()), least = architectures::find(s.architecture).sites;
  const bool paired = s.architecture == "cross-layer", more = paired || s.architecture == "crosscoder";
  if (given < least || (given > least && !more) || (paired && given % 2 == 1))
    throw sae::ValueError("--sites: " + std::to_string(given) + " are given; " + s.architecture + " is for " +
                          (paired ? "an even number from " : "") + std::to_string(least) + (more ? " on" : ""));

  Rows train(s.train, s.sites), held_out(s.held_out, s.sites);
  for (std::size_t site = 0; site < s.sites.size(); ++site) {
    const double squares = train.site(site).cast<double>().squaredNorm() / static_cast<double>(train.values.rows());
    const auto factor = static_cast<float>(1 / std::sqrt(squares));
    train.site(site) *= factor;
    held_out.site(site) *= factor;
  }
  sae::Recipe recipe = architectures::recipe(s.recipe, {.d_in = train.widths.front(),
                                                        .latents = s.latents,
                                                        .steps = s.steps,
                                                        .batch = s.batch,
                                                        .activation = s.architecture,
                                                        .k = static_cast<double>(s.k)});
  recipe.config.report_every = s.steps;
  std::printf("%-28s %8s %8s %8s %8s\n", s.architecture.c_str(), "EV", "L0", "dead", "ms/step");
  double mean[3] = {};
  for (Index run = 0; run < s.seeds; ++run) {
    const auto seed = static_cast<std::uint64_t>(s.first_seed + run);
    Source source({&train.values}, {.seed = seed});
    architectures::train(
        recipe, s.architecture, train.widths, s.latents, seed, source, threads, [&](const auto& model, double milliseconds) {
          const auto figures = measure(model, held_out.values, 0, threads);
          const auto late = measure(model, train.values, std::max<Index>(0, train.values.rows() - 100'000), threads);
          std::printf("seed %-23ld %8.4f %8.2f %8ld %8.1f\n", s.first_seed + run, figures.explained_variance, figures.l0,
                      late.dead_latents, milliseconds);
          std::fflush(stdout);
          mean[0] += figures.explained_variance;
          mean[1] += figures.l0;
          mean[2] += static_cast<double>(late.dead_latents);
        });
  }
  const auto n = static_cast<double>(s.seeds);
  if (s.seeds > 1) std::printf("%-28s %8.4f %8.2f %8.1f\n", "mean", mean[0] / n, mean[1] / n, mean[2] / n);
}

}  // namespace

int main(int argc, char** argv) {
  Settings s;
  CLI::App app("Trains an architecture on rows of a language model and measures it on others");
  const CLI::Range positive(Index{1}, Index{1} << 40);
  app.add_option("--train", s.train, "folder that `sae collect` made")->required();
  app.add_option("--held-out", s.held_out, "another one, with the same sites")->required();
  app.add_option("--architecture", s.architecture,
                 "what the recipe trains, or hierarchical, multi-topk, glu, orthogonal_matching_pursuit, transcoder, "
                 "skip-transcoder, crosscoder, cross-layer")
      ->required();
  app.add_option("--sites", s.sites, "folders in both, with commas, inputs before targets: residual-14,mlp_out-15")
      ->delimiter(',')
      ->required();
  app.add_option("--recipe", s.recipe)->capture_default_str();
  app.add_option("--latents", s.latents, "of each layer")->capture_default_str()->check(positive);
  app.add_option("--k", s.k, "active latents per row of each layer")->capture_default_str()->check(positive);
  app.add_option("--steps", s.steps)->capture_default_str()->check(positive);
  app.add_option("--batch", s.batch, "rows per step")->capture_default_str()->check(positive);
  app.add_option("--seeds", s.seeds, "how many times with another start and order")->capture_default_str()->check(positive);
  app.add_option("--seed", s.first_seed, "the first one")->capture_default_str()->check(CLI::NonNegativeNumber);
  app.add_option("--threads", s.threads, "0: all cores")->capture_default_str()->check(CLI::NonNegativeNumber);
  CLI11_PARSE(app, argc, argv);
  try {
    benchmark(s);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "benchmark_rows: error: %s\n", error.what());
    return 1;
  }
}
