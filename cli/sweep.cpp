#include <sae/data/npy_source.hpp>
#include <sae/formats/hook_name.hpp>
#include <sae/formats/load.hpp>
#include <sae/interpret/recover.hpp>
#include <sae/training/evaluate.hpp>
#include <sae/training/recipes.hpp>
#include <sae/training/train_together.hpp>

#include <algorithm>
#include <iostream>
#include <optional>

#include "figure_axis.hpp"
#include "resumable.hpp"
#include "sae_argument.hpp"

namespace sae::cli {

namespace {

struct SweepVerb : TrainingOptions {
  std::vector<std::string> activations{"topk"};
  std::vector<double> k, sparsity, target_l0, rates;
  std::vector<Index> latents;
  std::string recipe = "default", held_out;
  bool log = false;
  std::string recover_text, recover_model;
  Index recover_skip_tokens = 0;
  std::optional<Index> recover_tokens;
};

constexpr const char* table_name = "sweep.csv";  // what tells the folder of a sweep from others
constexpr const char* pareto_name = "pareto.svg";
constexpr const char* explained_name = "pareto-explained-variance.svg";

/// What is measured of one SAE.
struct Measured {
  double l0 = 0, explained_variance = 0;
  double mse = std::numeric_limits<double>::quiet_NaN(), cosine = std::numeric_limits<double>::quiet_NaN();
  Index dead = 0;
  std::optional<RecoverReport> recovered{};
};

/// One SAE of the sweep.
struct Run {
  std::string name{}, curve{}, activation{};
  Index latents = 0;
  std::optional<double> k{}, sparsity{}, target_l0{}, rate{};
  Recipe recipe{};
  std::unique_ptr<AnyModel> model{};
  std::unique_ptr<Trainer<AnyModel, AnyObjective>> trainer{};
  StepReport last{};
  Log* log = nullptr;
  Measured measured{};
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
              run.curve = run.name + (rate && options.rates.size() > 1 ? sae::detail::concat("-lr", *rate) : std::string());
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

/// The language model and the text on which loss recovered is measured: what does not fit is refused before any training.
class Recovery {
 public:
  Recovery(const SweepVerb& options, const TrainSource& source) {
    static_cast<Common&>(on_) = options;
    const std::optional<Site> site = site_of_hook(source.metadata.hook_name);
    if (!site) usage_error("--recover-text needs --layer: --data does not say which layer its rows are of");
    site_ = *site;
    on_.model = options.recover_model.empty() ? source.model : options.recover_model;
    if (on_.model.empty()) usage_error("--recover-text needs --recover-model: --data does not say which model made its rows");
    std::error_code error;
    if (options.recover_model.empty() && !std::filesystem::exists(on_.model, error))
      throw_file(on_.model, ": the model that made the rows is not there; --recover-model says where it is");
    on_.model_threads = options.model_threads;
    on_.text = options.recover_text;
    on_.context = source.metadata.context_size > 0 ? source.metadata.context_size : options.context;
    on_.skip_tokens = options.recover_skip_tokens;
    on_.tokens = options.recover_tokens.value_or(on_.tokens);
    const std::string text = read_text(on_);
    const HostModel model = open_model(on_);
    check_site(model, site_);
    if (model.shape().width != source.width())
      throw_shape("the rows to train on are ", source.width(), " wide, those of ", on_.model, " are ", model.shape().width);
    windows_ = windows_of(model, on_, text, "--recover-");
  }

  /// As `sae recover` has it of each SAE that was saved.
  void measure(std::vector<Run>& runs, const ResumableFolder& folder, Threads& threads) const {
    std::vector<AnySae> saes;
    for (const Run& run : runs) saes.push_back(open_sae(on_, (folder / run.name).string()));
    HostModel model = open_model(on_);
    Progress progress(on_, "steps of loss recovered (windows read, then spliced)", 2 * windows_.count());
    auto reports = recover_each(
        model, windows_, site_, std::span<const AnySae>(saes), {}, [&](Index done) { progress.at(done); }, threads);
    for (std::size_t i = 0; i < runs.size(); ++i) runs[i].measured.recovered = std::move(reports[i]);
  }

 private:
  ModelVerb on_;
  Site site_;
  Windows windows_;
};

/// L0 against a figure, a curve for each activation.
template <class Figure>
Plot pareto(const std::vector<Run>& runs, Axis y, const Figure& figure) {
  Plot plot({.x = axis_of("l0", true), .y = std::move(y)});
  std::vector<PlotSeries> curves;
  for (const Run& run : runs) {
    if (std::none_of(curves.begin(), curves.end(), [&](const PlotSeries& curve) { return curve.name == run.curve; }))
      curves.push_back({.name = run.curve, .line = true});
    for (PlotSeries& curve : curves)
      if (curve.name == run.curve) curve.points.push_back({run.measured.l0, figure(run.measured), run.name});
  }
  for (PlotSeries& curve : curves) {
    std::stable_sort(curve.points.begin(), curve.points.end(),
                     [](const PlotPoint& a, const PlotPoint& b) { return a.x < b.x; });
    plot.add(std::move(curve));
  }
  return plot;
}

/// Figures of `sae recover` under the names that it has for them.
std::vector<std::pair<const char*, double>> recover_figures(const RecoverReport& report) {
  return {{"ce_clean", report.cross_entropy.clean},
          {"ce_sae", report.cross_entropy.sae},
          {"ce_zero", report.cross_entropy.zero},
          {"ce_mean", report.cross_entropy.mean},
          {"loss_recovered_zero", report.loss_recovered.zero},
          {"loss_recovered_mean", report.loss_recovered.mean},
          {"kl", report.kl}};
}

void run_sweep(const SweepVerb& options) {
  namespace fs = std::filesystem;
  check_train_source(options);
  check_output(options);
  check_replaced(options, table_name, "sweep");
  if (options.recover_text.empty() &&
      (!options.recover_model.empty() || options.recover_skip_tokens > 0 || options.recover_tokens))
    usage_error("--recover-model, --recover-skip-tokens and --recover-tokens belong to --recover-text");
  const std::unique_ptr<TrainSource> source = open_train_source(options);
  const Index tokens = train_length(options, source->rows);
  std::optional<Recovery> recovery;
  if (!options.recover_text.empty()) recovery.emplace(options, *source);
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
    return name.has_parent_path()
               ? file == log_name || file == sae_name || file == weights_name
               : file == checkpoint_name || file == table_name || file == pareto_name || file == explained_name;
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

  for (Run& run : runs) {
    write_saelens(*run.model, folder / run.name, source->metadata, {.overwrite = true});
    run.measured = {.l0 = run.last.l0, .explained_variance = run.last.explained_variance, .dead = run.last.dead};
    if (!held_out) continue;
    // as it will be used: a BatchTopK by its threshold
    const auto inference = inference_model(*run.model);
    NpySource<float> rows(open_held_out(), {.shuffle = false, .epochs = 1});
    const EvaluationReport report = evaluate(inference ? *inference : *run.model, rows, {}, threads);
    run.measured = {report.l0, report.explained_variance, report.mse, report.cosine, report.dead_latents};
  }
  if (recovery) {
    try {
      recovery->measure(runs, folder, threads);
    } catch (Stopped& stopped) {
      folder.explain(stopped);
      throw;
    }
    for (Run& run : runs) {
      if (held_out) continue;  // else the rows of that text are better than the last batch
      const ReconstructionFigures& figures = run.measured.recovered->figures;
      run.measured.l0 = figures.l0, run.measured.explained_variance = figures.explained_variance;
      run.measured.mse = figures.mse, run.measured.cosine = figures.cosine;
    }
  }

  std::string csv =
      "name,activation,latents,k,sparsity,target_l0,learning_rate,steps,l0,explained_variance,mse,cosine,dead_latents";
  if (recovery)
    for (const auto& [name, value] : recover_figures(*runs.front().measured.recovered)) csv += sae::detail::concat(",", name);
  csv += "\n";
  Json list = Json::array();
  std::vector<std::pair<std::string, std::string>> table;
  for (const Run& run : runs) {
    const Measured& of = run.measured;
    csv += sae::detail::concat(run.name, ",", run.activation, ",", run.latents, ",", csv_number(run.k), ",",
                               csv_number(run.sparsity), ",", csv_number(run.target_l0), ",",
                               csv_number(run.recipe.config.learning_rate), ",", run.trainer->step(), ",", csv_number(of.l0),
                               ",", csv_number(of.explained_variance), ",", csv_number(of.mse), ",", csv_number(of.cosine), ",",
                               of.dead);
    list.push_back(
        {{"name", run.name}, {"l0", of.l0}, {"explained_variance", of.explained_variance}, {"dead_latents", of.dead}});
    std::string line = "L0 " + rounded(of.l0) + ", explained variance " + rounded(of.explained_variance) +
                       sae::detail::concat(", dead ", of.dead);
    if (of.recovered) {
      for (const auto& [name, value] : recover_figures(*of.recovered)) {
        csv += "," + csv_number(value);
        list.back()[name] = value;
      }
      line += ", loss recovered " + rounded(of.recovered->loss_recovered.zero) + " against zero, " +
              rounded(of.recovered->loss_recovered.mean) + " against mean";
    }
    csv += "\n";
    table.emplace_back(run.name, line);
  }
  const Plot explained = pareto(runs, axis_of("explained_variance"), [](const Measured& of) { return of.explained_variance; });
  if (recovery) {
    const Plot recovered =
        pareto(runs, axis_of("loss_recovered_zero"), [](const Measured& of) { return of.recovered->loss_recovered.zero; });
    atomic_write_text(folder / pareto_name, recovered.svg(), {.overwrite = true});
    atomic_write_text(folder / explained_name, explained.svg(), {.overwrite = true});
  } else {
    atomic_write_text(folder / pareto_name, explained.svg(), {.overwrite = true});
  }
  if (source->left_out) note(options, "left out: ", source->left_out());
  atomic_write_text(folder / table_name, csv, {.overwrite = true});
  folder.commit();
  if (options.json) return print_json({{"out", options.out}, {"runs", list}});
  const char* const where = held_out ? "--held-out" : recovery ? "--recover-text" : "the last batch";
  table.emplace_back("folder", options.out + " (sweep.csv and pareto.svg, measured on " + where + ")");
  print_table(table);
}

}  // namespace

void add_sweep(CLI::App& program) {
  const auto options = std::make_shared<SweepVerb>();
  CLI::App& verb = add_verb(program, "sweep",
                            "Train a row of SAEs on one stream of rows: every combination of the lists, one CSV, one figure.",
                            options, run_sweep);
  add_train_source(verb, *options);
  verb.add_option("--held-out", options->held_out,
                  "rows that no SAE is trained on, to measure them all: a file or folder as --data")
      ->group("Rows");

  verb.option_defaults()->group("Loss recovered");
  verb.add_option(
      "--recover-text", options->recover_text,
      "measure as sae recover does, on this text: the language model with each SAE in the place of its activations");
  verb.add_option("--recover-model", options->recover_model,
                  "language model, a .gguf file; default: the one that made the rows, where --model or --data says it");
  verb.add_option("--recover-skip-tokens", options->recover_skip_tokens, "tokens of the text left out at the start")
      ->capture_default_str()
      ->check(at_least(0));
  verb.add_option("--recover-tokens", options->recover_tokens,
                  "tokens of the text used at most, in whole windows; each SAE costs a run over them (default: 50000; 0: all)")
      ->check(at_least(0));

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
  add_out(verb, *options,
          "folder: a SAE of each combination, sweep.csv and pareto.svg; while training everything is in OUT.partial")
      ->required();
  add_resume(verb, *options);
  verb.add_flag("--log", options->log, "log.jsonl beside each SAE: JSON lines of loss, L0, explained variance, dead latents");
  add_report_every(verb, *options);
  add_json(verb, *options);
}

}  // namespace sae::cli
