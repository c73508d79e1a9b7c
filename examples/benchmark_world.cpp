// How well does each architecture find features that are known?
//
//   benchmark_world --world synth_mini --recipe saelens --latents 256 --rows 3072000 --lr 1e-3 --seeds 3
//
// Every architecture sees the same rows of a synthetic world in the same order, then is scored on other rows against the features
// that made them: MCC, F1, precision, recall, uniqueness, explained variance, L0, dead latents, shrinkage. Seed s sets the
// models' start and the rows that are drawn; the rows of one seed are kept in memory (rows x D float32). Architectures of several
// sites see the same features written along other directions at each: a transcoder and a crosscoder two sites, a cross-layer
// transcoder two to read and two to write. MCC, F1 and their like are then those of decoder rows, "enc." is the MCC of encoder rows;
// of a cross-layer transcoder both are means over its layers.
#include <sae/formats/synthetic_world.hpp>
#include <sae/sae.hpp>
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "architectures.hpp"

namespace {

using sae::Index;

struct Settings {
  std::string world;  // a folder that SAELens saved, or the settings as JSON; empty: those of `default_world`
  std::string recipe = "saelens";
  std::vector<std::string> only;
  Index latents = 256, rows = 3'072'000, batch = 1024, k = 10, seeds = 1, first_seed = 1, test_rows = 102'400;
  double learning_rate = 0, sparsity = 0;  // 0: the recipe's
  int threads = 0;
};

/// One column of the table each.
struct Scores {
  double mcc = 0, f1 = 0, precision = 0, recall = 0, uniqueness = 0, explained_variance = 0, l0 = 0, dead = 0, shrinkage = 0,
         encoder_mcc = 0, milliseconds = 0;
};
using Column = double Scores::*;
struct Heading {
  const char* name;
  Column column;
  int digits;
};
constexpr Heading headings[] = {{"MCC", &Scores::mcc, 4},
                                {"F1", &Scores::f1, 4},
                                {"P", &Scores::precision, 3},
                                {"R", &Scores::recall, 3},
                                {"uniq.", &Scores::uniqueness, 4},
                                {"EV", &Scores::explained_variance, 4},
                                {"L0", &Scores::l0, 2},
                                {"dead", &Scores::dead, 1},
                                {"shrink.", &Scores::shrinkage, 3},
                                {"enc.", &Scores::encoder_mcc, 4},
                                {"ms/step", &Scores::milliseconds, 1}};

/// The world of the published benchmark, scaled down: 8 features a dimension, two thirds of them in trees.
sae::SyntheticConfig default_world() {
  return {.num_features = 1024,
          .hidden_dim = 128,
          .firing_probability = sae::ZipfianFiring{.exponent = 0.5, .max_prob = 0.5, .min_prob = 5e-4},
          .hierarchy = sae::HierarchyConfig{.total_root_nodes = 32,
                                            .branching_factor = 4,
                                            .max_depth = 2,
                                            .mutually_exclusive_portion = 1,
                                            .compensate_probabilities = true,
                                            .scale_children_by_parent = true},
          .orthogonalization = sae::OrthogonalizationConfig{},
          .correlation = sae::LowRankCorrelationConfig{.rank = 25, .correlation_scale = 0.1},
          .std_firing_magnitudes = sae::FoldedNormalMagnitude{.mean = 0.5, .std = 0.5},
          .mean_firing_magnitudes = sae::LinearMagnitude{.start = 5, .end = 4},
          .bias = 0.5,
          .seed = 42};
}
sae::SyntheticWorld open_world(const std::string& path, sae::Threads& threads) {
  if (path.empty()) return sae::SyntheticWorld(default_world(), threads);
  if (std::filesystem::is_directory(path)) return sae::read_synthetic_world(path);
  return sae::SyntheticWorld(sae::read_synthetic_config(path), threads);
}

/// How one of them is trained: as the recipe says, but for what the benchmark sets alike for all.
sae::Recipe training(const Settings& s, const std::string& architecture, Index d_in) {
  const bool peer = s.recipe == "saelens";
  sae::RecipeProblem problem{.d_in = d_in, .latents = s.latents, .steps = s.rows / s.batch, .batch = s.batch};
  problem.activation = architecture;
  if (architecture == "jumprelu") {
    problem.target_l0 = static_cast<double>(s.k);
  } else if (architecture == "relu" || architecture == "gated") {
    if (s.sparsity > 0) {
      problem.sparsity = s.sparsity;
    } else if (peer) {
      problem.sparsity = 3;  // as the published figures
    }
  } else {
    problem.k = static_cast<double>(s.k);
  }
  sae::Recipe recipe = architectures::recipe(s.recipe, problem);
  if (peer) recipe.config.sparsity_warmup = recipe.config.steps / 10;
  if (s.learning_rate > 0) recipe.config.learning_rate = s.learning_rate;
  recipe.config.report_every = recipe.config.steps;
  return recipe;
}

/// A world whose rows hold `sites` sites side by side: the same features fire with the same values at all of them. The first is that
/// of `world`, the others write along the directions of worlds with other seeds.
sae::SyntheticWorld with_sites(const sae::SyntheticWorld& world, Index sites, sae::Threads& threads) {
  sae::SyntheticWorld out = world;
  const Index width = world.width();
  out.config.hidden_dim = sites * width;
  out.directions.resize(world.features(), sites * width);
  out.bias.resize(1, sites * width);
  sae::SyntheticConfig other = world.config;
  for (Index s = 0; s < sites; ++s, ++other.seed) {
    const sae::SyntheticWorld own = s == 0 ? world : sae::SyntheticWorld(other, threads);
    out.directions.map().middleCols(s * width, width) = own.directions.map();
    out.bias.map().middleCols(s * width, width) = own.bias.map();
  }
  return out;
}

/// The first columns of rows that somebody else keeps, once, in their order.
class KeptRows {
 public:
  KeptRows(const sae::Tensor<float>& rows, Index width) : rows_(rows), width_(width) {}
  Index width() const { return width_; }
  Index next(sae::Tensor<float>& batch) {
    const Index n = std::min(batch.rows(), rows_.rows() - position_);
    for (Index b = 0; b < n; ++b) std::copy_n(rows_.row(position_ + b), width_, batch.row(b));
    position_ += n;
    return n;
  }
  sae::SourceState state() const { return {{static_cast<std::uint64_t>(position_)}, {}, {}}; }
  void restore(const sae::SourceState& state) { position_ = static_cast<Index>(state.counters.at(0)); }

 private:
  const sae::Tensor<float>& rows_;
  Index width_, position_ = 0;
};

template <int D, int F, class Activation>
Scores score(const sae::SparseAutoencoder<D, F, Activation>& model, const sae::SyntheticWorld& world,
             const sae::WorldEvaluationOptions& options, sae::Threads& threads) {
  const auto report = sae::evaluate_on_world(model, world, options, threads);
  return {.mcc = report.truth.directions.mcc,
          .f1 = report.truth.f1,
          .precision = report.truth.precision,
          .recall = report.truth.recall,
          .uniqueness = report.truth.directions.uniqueness,
          .explained_variance = report.explained_variance,
          .l0 = report.l0,
          .dead = static_cast<double>(report.dead_latents),
          .shrinkage = report.shrinkage,
          .encoder_mcc = sae::recover_directions(model.W_enc(), world.directions.map(), threads).mcc};
}
/// Transcoders: a layer reads a site from the first on, and writes to the last ones.
template <class Model>
Scores score(const Model& model, const sae::SyntheticWorld& world, const sae::WorldEvaluationOptions& options,
             sae::Threads& threads) {
  const auto directions = world.directions.map();
  std::vector<sae::GroundTruthMetrics> truth;
  Scores out;
  const auto add_layer = [&](const auto& layer) {
    const Index read = layer.W_enc.cols(), written = layer.W_dec.cols();
    out.encoder_mcc += sae::recover_directions(layer.W_enc.map(),
                                               directions.middleCols(static_cast<Index>(truth.size()) * read, read), threads)
                           .mcc;
    truth.emplace_back(layer.W_dec.map(), directions.rightCols(written), threads);
  };
  if constexpr (requires { model.layers(); })
    for (const auto& layer : model.parameters().layers) add_layer(layer);
  else
    add_layer(model.parameters());

  architectures::Measure measure;
  sae::SyntheticSource<float> source(world, {.seed = options.seed, .rows = options.rows}, threads);
  sae::Tensor<float> batch(options.block, world.width());
  sae::Codes<float> active;
  for (Index got = 0; (got = source.next(batch, active)) > 0;) {
    const sae::Batch<float> rows(batch.data(), got, batch.cols());
    const auto prediction = architectures::predict(model, rows, threads);
    measure.add(rows, prediction, threads);
    for (std::size_t l = 0; l < truth.size(); ++l) truth[l].add(prediction.codes[l], active);
  }
  const auto figures = measure.figures();
  out.explained_variance = figures.explained_variance;
  out.l0 = figures.l0;
  out.dead = static_cast<double>(figures.dead_latents);
  out.shrinkage = figures.shrinkage;
  for (const auto& layer : truth) {
    const auto found = layer.figures();
    out.mcc += found.directions.mcc;
    out.f1 += found.f1;
    out.precision += found.precision;
    out.recall += found.recall;
    out.uniqueness += found.directions.uniqueness;
  }
  for (const Column mean :
       {&Scores::mcc, &Scores::f1, &Scores::precision, &Scores::recall, &Scores::uniqueness, &Scores::encoder_mcc})
    out.*mean /= static_cast<double>(truth.size());
  return out;
}

/// \param width  of one site
Scores train_and_score(const Settings& s, const std::string& architecture, const sae::SyntheticWorld& world, Index width,
                       const sae::Tensor<float>& rows, std::uint64_t seed, sae::Threads& threads) {
  KeptRows source(rows, world.width());
  const std::vector<Index> sites(static_cast<std::size_t>(world.width() / width), width);
  Scores out;
  architectures::train(training(s, architecture, width), architecture, sites, s.latents, seed, source, threads,
                       [&](const auto& model, double milliseconds) {
                         out = score(model, world, {.rows = s.test_rows, .seed = seed + 1'000'000}, threads);
                         out.milliseconds = milliseconds;
                       });
  return out;
}

void print_row(const std::string& name, const std::function<double(Column)>& value) {
  std::printf("%-28s", name.c_str());
  for (const Heading& h : headings) std::printf(" %8.*f", h.digits, value(h.column));
  std::printf("\n");
  std::fflush(stdout);
}

void benchmark(const Settings& s) {
  sae::Threads threads(s.threads);
  const sae::SyntheticWorld world = open_world(s.world, threads);
  std::vector<std::string> chosen = s.only;
  if (chosen.empty())
    for (const auto name : sae::recipe_activations(s.recipe)) chosen.emplace_back(name);
  std::map<Index, sae::SyntheticWorld> worlds;  // by their sites
  for (const std::string& name : chosen) {
    training(s, name, world.width());  // refuses what cannot be, before any work
    const Index sites = architectures::find(name).sites;
    if (!worlds.contains(sites)) worlds.emplace(sites, with_sites(world, sites, threads));
  }
  const sae::SyntheticWorld& widest = worlds.rbegin()->second;
  const Index steps = s.rows / s.batch;

  std::printf("world: %ld features in %ld dimensions; recipe %s, %ld latents, k %ld, %ld steps of %ld rows\n", world.features(),
              world.width(), s.recipe.c_str(), s.latents, s.k, steps, s.batch);
  std::printf("%-28s", "");
  for (const Heading& h : headings) std::printf(" %8s", h.name);
  std::printf("\n");
  std::fflush(stdout);

  std::vector<std::vector<Scores>> scores(chosen.size());
  sae::Tensor<float> rows(steps * s.batch, widest.width());
  for (Index run = 0; run < s.seeds; ++run) {
    const auto seed = static_cast<std::uint64_t>(s.first_seed + run);
    sae::SyntheticSource source(widest, {.seed = seed}, threads);
    source.next(rows);
    for (std::size_t a = 0; a < chosen.size(); ++a) {
      const sae::SyntheticWorld& seen = worlds.at(architectures::find(chosen[a]).sites);
      const Scores& got = scores[a].emplace_back(train_and_score(s, chosen[a], seen, world.width(), rows, seed, threads));
      print_row(chosen[a], [&](Column c) { return got.*c; });
    }
  }
  if (s.seeds < 2) return;
  std::printf("mean over %ld seeds, and from the least to the largest\n", s.seeds);
  for (std::size_t a = 0; a < chosen.size(); ++a) {
    const auto each = [&](Column c) {
      std::vector<double> values;
      for (const Scores& got : scores[a]) values.push_back(got.*c);
      return values;
    };
    print_row(chosen[a], [&](Column c) {
      double sum = 0;
      for (const double v : each(c)) sum += v;
      return sum / static_cast<double>(s.seeds);
    });
    print_row("  from", [&](Column c) { return std::ranges::min(each(c)); });
    print_row("  to", [&](Column c) { return std::ranges::max(each(c)); });
  }
}

}  // namespace

int main(int argc, char** argv) {
  Settings s;
  CLI::App app("Trains sparse autoencoders on rows with known features and scores what they found");
  const CLI::Range positive(Index{1}, Index{1} << 40);
  app.add_option(
      "--world", s.world,
      "folder of a world that SAELens saved, or a JSON file with its settings; default: 1024 features in 128 dimensions");
  app.add_option("--recipe", s.recipe, "how they are trained: default (ours), saelens, dictionary_learning")
      ->capture_default_str();
  app.add_option("--sparsity", s.sparsity,
                 "coefficient of the penalty of relu and gated; default: 3 with saelens, else the recipe's")
      ->check(CLI::PositiveNumber);
  app.add_option("--only", s.only,
                 "names of the architectures, with commas; default: all that the recipe trains; besides: hierarchical, "
                 "multi-topk, glu, "
                 "orthogonal_matching_pursuit, transcoder, skip-transcoder, crosscoder, cross-layer")
      ->delimiter(',');
  app.add_option("--latents", s.latents)->capture_default_str()->check(positive);
  app.add_option("--k", s.k, "active latents per row that are aimed at")->capture_default_str()->check(positive);
  app.add_option("--rows", s.rows, "rows to train on; all of one seed are held in memory")
      ->capture_default_str()
      ->check(positive);
  app.add_option("--batch", s.batch, "rows per step")->capture_default_str()->check(positive);
  app.add_option("--lr", s.learning_rate, "learning rate; default: the recipe's")->check(CLI::PositiveNumber);
  app.add_option("--test-rows", s.test_rows, "rows to score on")->capture_default_str()->check(positive);
  app.add_option("--seeds", s.seeds, "how many times with other rows and another start")
      ->capture_default_str()
      ->check(positive);
  app.add_option("--seed", s.first_seed, "the first one")->capture_default_str()->check(CLI::NonNegativeNumber);
  app.add_option("--threads", s.threads, "0: all cores; results do not depend on it")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  CLI11_PARSE(app, argc, argv);
  try {
    benchmark(s);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "benchmark_world: error: %s\n", error.what());
    return 1;
  }
}
