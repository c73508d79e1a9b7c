#include <sae/data/npy_source.hpp>
#include <sae/formats/load.hpp>
#include <sae/training/evaluate.hpp>
#include <sae/training/recipes.hpp>
#include <sae/training/train_together.hpp>

#include <iostream>
#include <optional>

#include "resumable.hpp"

namespace sae::cli {

namespace {

struct SweepVerb : TrainingOptions {
  std::vector<std::string> activations{"topk"};
  std::vector<double> k, sparsity, target_l0, rates;
  std::vector<Index> latents;
  std::string recipe = "default", held_out;
  bool log = false;
};

constexpr const char* table_name = "sweep.csv";  // what tells the folder of a sweep from others

/// One SAE of the sweep.
struct Run {
  std::string name{}, activation{};
  Index latents = 0;
  std::optional<double> k{}, sparsity{}, target_l0{}, rate{};
  Recipe recipe{};
  std::unique_ptr<AnyModel> model{};
  std::unique_ptr<Trainer<AnyModel, AnyObjective>> trainer{};
  StepReport last{};
  Log* log = nullptr;
};

std::vector<std::optional<double>> each_of(const std::vector<double>& values) {
  if (values.empty()) return {std::nullopt};
  return {values.begin(), values.end()};
}

/// Every combination of the lists that an activation has: k for the TopK family, the penalty's weight for relu and gated, the target
/// or the weight for jumprelu; and of sizes and learning rates.
std::vector<Run> grid(const SweepVerb& options) {
  std::vector<Run> out;
  for (const std::string& activation : options.activations) {
    const bool jump = activation == "jumprelu", penalised = activation == "relu" || activation == "gated";
    const auto ks = jump || penalised ? each_of({}) : each_of(options.k);
    const auto weights = penalised || (jump && options.target_l0.empty()) ? each_of(options.sparsity) : each_of({});
    const auto targets = jump ? each_of(options.target_l0) : each_of({});
    for (const Index latents : options.latents)
      for (const auto& k : ks)
        for (const auto& weight : weights)
          for (const auto& target : targets)
            for (const auto& rate : each_of(options.rates)) {
              Run run{
                  .activation = activation, .latents = latents, .k = k, .sparsity = weight, .target_l0 = target, .rate = rate};
              run.name = activation;
              if (options.latents.size() > 1) run.name += sae::detail::concat("-latents", latents);
              if (k) run.name += sae::detail::concat("-k", *k);
              if (weight) run.name += sae::detail::concat("-sparsity", *weight);
              if (target) run.name += sae::detail::concat("-l0-", *target);
              if (rate) run.name += sae::detail::concat("-lr", *rate);
              for (const Run& other : out)
                if (other.name == run.name) usage_error("the lists name ", run.name, " twice");
              out.push_back(std::move(run));
            }
  }
  return out;
}

std::string csv_number(double x) { return std::isfinite(x) ? sae::detail::concat(x) : std::string(); }
std::string csv_number(const std::optional<double>& x) { return x ? csv_number(*x) : std::string(); }

void run_sweep(const SweepVerb& options) {
  namespace fs = std::filesystem;
  check_train_source(options);
  check_output(options);
  check_replaced(options, table_name, "sweep");
  const std::unique_ptr<TrainSource> source = open_train_source(options);
  const Index tokens = train_length(options, source->rows);
  const auto open_held_out = [&] { return NpyFolder(rows_path(options.held_out), {.bfloat16 = true}); };
  std::optional<NpyFolder> held_out;
  if (!options.held_out.empty()) {
    held_out.emplace(open_held_out());
    if (held_out->width() != source->width())
      throw_shape("--held-out ", options.held_out, ": rows are ", held_out->width(), " wide, those to train on ",
                  source->width());
  }

  Threads threads(options.threads);
  std::vector<Run> runs = grid(options);
  std::vector<Trainer<AnyModel, AnyObjective>*> trainers;
  for (Run& run : runs) {
    run.recipe = recipe(options.recipe, {.d_in = source->width(),
                                         .latents = run.latents,
                                         .steps = tokens / options.batch,
                                         .batch = options.batch,
                                         .activation = run.activation,
                                         .k = run.k,
                                         .sparsity = run.sparsity,
                                         .target_l0 = run.target_l0});
    if (run.rate) run.recipe.config.learning_rate = *run.rate;
    run.model = std::make_unique<AnyModel>(make_model(run.recipe, source->width(), run.latents, options.seed));
    run.trainer =
        std::make_unique<Trainer<AnyModel, AnyObjective>>(*run.model, run.recipe.config, run.recipe.objective, threads);
    trainers.push_back(run.trainer.get());
  }
  Settings settings = source->settings;
  settings.emplace_back("seed", std::to_string(options.seed));
  std::string names;
  for (const Run& run : runs) names += (names.empty() ? "" : ", ") + run.name;
  settings.emplace_back("sweep", names);
  ResumableFolder folder(options, std::move(settings), [](const fs::path& name, bool is_folder) {
    if (is_folder) return !name.has_parent_path();
    const fs::path file = name.filename();
    return name.has_parent_path() ? file == log_name || file == sae_name || file == weights_name
                                  : file == checkpoint_name || file == table_name;
  });
  note(options, runs.size(), runs.size() == 1 ? " SAE" : " SAEs", " on one stream of rows, ", tokens / options.batch,
       " steps each");
  TrainerGroup group(trainers);
  folder.load(group);
  for (Run& run : runs) {
    fs::create_directory(folder / run.name);
    const fs::path log = fs::path(run.name) / log_name;
    if (options.log) {
      run.log = &folder.log(log, group.step());
    } else {
      fs::remove(folder / log);  // of an earlier start with --log: it would lack what follows
    }
  }
  try {
    Progress progress(options, "steps", tokens / options.batch);
    folder.fit(
        group, *source,
        [&](std::size_t which, const StepReport& report) {
          runs[which].last = report;
          if (runs[which].log != nullptr) (*runs[which].log)(report);
        },
        [&](const StepReport& report) { progress.at(report.step); });
  } catch (const DivergedError& error) {
    folder.diverged(error, runs[group.which()].name);
  }

  std::string csv =
      "name,activation,latents,k,sparsity,target_l0,learning_rate,steps,l0,explained_variance,mse,cosine,dead_latents\n";
  Json list = Json::array();
  std::vector<std::pair<std::string, std::string>> table;
  for (Run& run : runs) {
    write_saelens(*run.model, folder / run.name, source->metadata, {.overwrite = true});
    double l0 = run.last.l0, explained = run.last.explained_variance, mse = std::numeric_limits<double>::quiet_NaN(),
           cosine = mse;
    Index dead = run.last.dead;
    if (held_out) {  // as it will be used: a BatchTopK by its threshold
      const auto inference = inference_model(*run.model);
      NpySource<float> rows(open_held_out(), {.shuffle = false, .epochs = 1});
      const EvaluationReport report = evaluate(inference ? *inference : *run.model, rows, {}, threads);
      l0 = report.l0, explained = report.explained_variance, mse = report.mse, cosine = report.cosine,
      dead = report.dead_latents;
    }
    csv += sae::detail::concat(run.name, ",", run.activation, ",", run.latents, ",", csv_number(run.k), ",",
                               csv_number(run.sparsity), ",", csv_number(run.target_l0), ",",
                               csv_number(run.recipe.config.learning_rate), ",", run.trainer->step(), ",", csv_number(l0), ",",
                               csv_number(explained), ",", csv_number(mse), ",", csv_number(cosine), ",", dead, "\n");
    list.push_back({{"name", run.name}, {"l0", l0}, {"explained_variance", explained}, {"dead_latents", dead}});
    table.emplace_back(
        run.name, "L0 " + rounded(l0) + ", explained variance " + rounded(explained) + sae::detail::concat(", dead ", dead));
  }
  if (source->left_out) note(options, "left out: ", source->left_out());
  atomic_write_text(folder / table_name, csv, {.overwrite = true});
  folder.commit();
  if (options.json) return print_json({{"out", options.out}, {"runs", list}});
  table.emplace_back("folder",
                     options.out + " (sweep.csv" + (held_out ? ", measured on --held-out)" : ", measured on the last batch)"));
  print_table(table);
}

}  // namespace

void add_sweep(CLI::App& program) {
  const auto options = std::make_shared<SweepVerb>();
  CLI::App& verb =
      add_verb(program, "sweep", "Train a row of SAEs on one stream of rows: every combination of the lists, one CSV.", options,
               run_sweep);
  add_train_source(verb, *options);
  verb.add_option("--held-out", options->held_out,
                  "rows that no SAE is trained on, to measure them all: a file or folder as --data")
      ->group("Rows");

  verb.option_defaults()->group("SAEs: lists with commas");
  verb.add_option("--latents", options->latents, "numbers of latents")->delimiter(',')->required()->check(within(1, 1 << 30));
  verb.add_option("--activation", options->activations,
                  "topk (default), batchtopk, matryoshka, abstopk, groupmax, relu, jumprelu, gated, matching_pursuit")
      ->delimiter(',')
      ->check(CLI::IsMember(
          {"topk", "batchtopk", "matryoshka", "abstopk", "groupmax", "relu", "jumprelu", "gated", "matching_pursuit"}));
  verb.add_option("--k", options->k, "the TopK family: latents per row")->delimiter(',')->check(at_least(0, false));
  verb.add_option("--sparsity", options->sparsity,
                  "relu, gated: weights of the L1 term; jumprelu without --target-l0: of the penalty")
      ->delimiter(',')
      ->check(at_least(0));
  verb.add_option("--target-l0", options->target_l0, "jumprelu: active latents a row to aim at")
      ->delimiter(',')
      ->check(at_least(0, false));
  verb.add_option("--lr", options->rates, "peak learning rates")->delimiter(',')->check(at_least(0, false));
  const auto names = recipe_names();
  verb.add_option("--recipe", options->recipe, "as of train")
      ->capture_default_str()
      ->check(CLI::IsMember(std::vector<std::string>(names.begin(), names.end())));

  verb.option_defaults()->group("Training");
  add_train_length(verb, *options);
  add_seed(verb, *options);
  verb.option_defaults()->group("Output");
  add_out(verb, *options, "folder: a SAE of each combination, and sweep.csv; while training everything is in OUT.partial")
      ->required();
  add_resume(verb, *options);
  verb.add_flag("--log", options->log, "log.jsonl beside each SAE: JSON lines of loss, L0, explained variance, dead latents");
  add_report_every(verb, *options);
  add_json(verb, *options);
}

}  // namespace sae::cli
