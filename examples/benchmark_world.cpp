// How well does each architecture find features that are known?
//
//   benchmark_world --world synth_mini --recipe saelens --latents 256 --rows 3072000 --lr 1e-3 --seeds 3
//
// Every architecture sees the same rows of a synthetic world in the same order, then is scored on other rows against the features
// that made them: MCC, F1, precision, recall, uniqueness, explained variance, L0, dead latents, shrinkage. Seed s sets the
// models' start and the rows that are drawn; the rows of one seed are kept in memory (rows x D float32).
#include <sae/formats/synthetic_world.hpp>
#include <sae/sae.hpp>
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

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
         milliseconds = 0;
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
  sae::Recipe recipe = sae::recipe(s.recipe, problem);
  if (peer) recipe.config.sparsity_warmup = recipe.config.steps / 10;
  if (s.learning_rate > 0) recipe.config.learning_rate = s.learning_rate;
  recipe.config.report_every = recipe.config.steps;
  return recipe;
}

/// Rows that somebody else keeps, once, in their order.
class KeptRows {
 public:
  explicit KeptRows(const sae::Tensor<float>& rows) : rows_(rows) {}
  Index width() const { return rows_.cols(); }
  Index next(sae::Tensor<float>& batch) {
    const Index n = std::min(batch.rows(), rows_.rows() - position_);
    std::copy_n(rows_.row(position_), n * width(), batch.data());
    position_ += n;
    return n;
  }
  sae::SourceState state() const { return {{static_cast<std::uint64_t>(position_)}, {}, {}}; }
  void restore(const sae::SourceState& state) { position_ = static_cast<Index>(state.counters.at(0)); }

 private:
  const sae::Tensor<float>& rows_;
  Index position_ = 0;
};

Scores train_and_score(const Settings& s, const std::string& architecture, const sae::SyntheticWorld& world,
                       const sae::Tensor<float>& rows, std::uint64_t seed, sae::Threads& threads) {
  const sae::Recipe recipe = training(s, architecture, world.width());
  auto model = sae::make_model(recipe, world.width(), s.latents, seed);
  sae::Trainer trainer(model, recipe.config, recipe.objective, threads);
  KeptRows source(rows);
  const auto begin = std::chrono::steady_clock::now();
  trainer.fit(source);
  const std::chrono::duration<double, std::milli> spent = std::chrono::steady_clock::now() - begin;
  const auto inference = sae::inference_model(model);  // BatchTopK by its threshold
  const auto report =
      sae::evaluate_on_world(inference ? *inference : model, world, {.rows = s.test_rows, .seed = seed + 1'000'000}, threads);
  return {report.truth.directions.mcc,
          report.truth.f1,
          report.truth.precision,
          report.truth.recall,
          report.truth.directions.uniqueness,
          report.explained_variance,
          report.l0,
          static_cast<double>(report.dead_latents),
          report.shrinkage,
          spent.count() / static_cast<double>(trainer.step())};
}

void print_row(const std::string& name, const std::function<double(Column)>& value) {
  std::printf("%-16s", name.c_str());
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
  for (const std::string& name : chosen) training(s, name, world.width());  // refuses what cannot be, before any work
  const Index steps = s.rows / s.batch;

  std::printf("world: %ld features in %ld dimensions; recipe %s, %ld latents, k %ld, %ld steps of %ld rows\n", world.features(),
              world.width(), s.recipe.c_str(), s.latents, s.k, steps, s.batch);
  std::printf("%-16s", "");
  for (const Heading& h : headings) std::printf(" %8s", h.name);
  std::printf("\n");
  std::fflush(stdout);

  std::vector<std::vector<Scores>> scores(chosen.size());
  sae::Tensor<float> rows(steps * s.batch, world.width());
  for (Index run = 0; run < s.seeds; ++run) {
    const auto seed = static_cast<std::uint64_t>(s.first_seed + run);
    sae::SyntheticSource source(world, {.seed = seed}, threads);
    source.next(rows);
    for (std::size_t a = 0; a < chosen.size(); ++a) {
      const Scores& got = scores[a].emplace_back(train_and_score(s, chosen[a], world, rows, seed, threads));
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
  app.add_option("--only", s.only, "names of the architectures, with commas; default: all that the recipe trains")
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
