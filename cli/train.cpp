#include <sae/formats/load.hpp>
#include <sae/training/callbacks.hpp>
#include <sae/training/covariance_whitening.hpp>
#include <sae/training/recipes.hpp>

#include <unistd.h>

#include <cmath>
#include <iostream>
#include <limits>
#include <optional>
#include <type_traits>

#include "resumable.hpp"
#include "sae_argument.hpp"

namespace sae::cli {

namespace {

struct TrainVerb : TrainingOptions {
  Index latents = 0;
  std::string activation;  ///< empty: topk, or that of --init
  std::string recipe;      ///< empty: default
  std::optional<Index> warmup, decay, aux_k, dead_window;
  std::optional<double> k, l1, l0, target_l0, pre_activation, threshold, bandwidth, rate, aux_coefficient, clip, ema;
  std::vector<Index> prefixes;
  std::string normalise, loss_space, center, decoder, optimizer, moments, init, log;
  std::optional<Index> k_start, k_steps;
  bool skip = false, multi_topk = false, hierarchical = false;
};

void check_usage(const TrainVerb& options) {
  check_train_source(options);
  if (options.targets.empty() && options.skip) usage_error("--skip belongs to transcoders, which --targets asks for");
  if (!options.targets.empty() &&
      (options.normalise == "whitening" || options.normalise == "constant-norm" || options.normalise == "layer-norm"))
    usage_error("--normalise ", options.normalise,
                " is for autoencoders; with --targets none, mean-square and sqrt-d scale both kinds of rows");
  if (options.latents == 0 && options.init.empty()) usage_error("--latents is required (or --init)");
}

/// "SAE", "transcoder": what is trained and what --init starts from, in words.
std::string_view kind_of(const TrainVerb& options) { return options.targets.empty() ? "SAE" : "transcoder"; }

/// Which activation, in the words of --activation, which are those of recipes. \param start  that of --init, or null
std::string chosen_activation(const TrainVerb& options, const AnyActivation* start) {
  std::string known(start != nullptr ? sae::detail::saelens_architecture(*start) : "");
  if (known == "standard") known = "relu";
  if (!known.empty() && !options.activation.empty() && options.activation != known)
    throw_value("--activation ", options.activation, ": the ", kind_of(options), " ", options.init,
                " that training starts from is ", known);
  std::string chosen = !options.activation.empty() ? options.activation : known;
  if (chosen.empty() && options.recipe.empty()) chosen = "topk";
  return chosen;
}

/// Options that mean nothing to the activation that is trained, in the words of --activation.
void check_activation_options(const TrainVerb& options, std::string_view activation) {
  const bool relu = activation == "relu", jump = activation == "jumprelu", gated = activation == "gated";
  const bool pursuit = activation == "matching_pursuit";
  if ((relu || jump || gated) && options.k)
    usage_error("--k belongs to --activation topk and its family, and matching_pursuit");
  if ((relu || pursuit) && (options.aux_k || options.aux_coefficient))
    usage_error("--aux-k and --aux-coefficient belong to --activation topk and its family, jumprelu and gated");
  if (activation != "topk" && (options.multi_topk || options.hierarchical))
    usage_error(options.multi_topk ? "--multi-topk" : "--hierarchical", " belongs to --activation topk");
  if (options.k_start && activation != "topk" && activation != "batchtopk" && activation != "abstopk")
    usage_error("--k-start belongs to --activation topk, batchtopk and abstopk");
  if (!relu && !gated && options.l1) usage_error("--l1 belongs to --activation relu and gated");
  if (!jump && (options.l0 || options.target_l0 || options.pre_activation || options.threshold || options.bandwidth))
    usage_error("--l0, --target-l0, --pre-activation, --threshold and --bandwidth belong to --activation jumprelu");
}

/// Changes what the recipe says by what the options say of schedule, decoder and start.
void apply(const TrainVerb& options, TrainerConfig& config) {
  if (options.rate) config.learning_rate = *options.rate;
  const Index steps = config.total_steps();
  if (options.warmup) config.schedule.warmup = *options.warmup;
  if (options.decay) config.schedule.decay = *options.decay;
  // What was given stands; the other one makes room.
  if (!options.decay) config.schedule.decay = std::clamp<Index>(steps - config.schedule.warmup, 0, config.schedule.decay);
  if (!options.warmup) config.schedule.warmup = std::clamp<Index>(steps - config.schedule.decay, 0, config.schedule.warmup);
  if (config.schedule.warmup + config.schedule.decay > steps)
    throw_value("--warmup ", config.schedule.warmup, " and --decay ", config.schedule.decay, ": are more than the ", steps,
                " steps of the run together");
  if (options.clip) config.clip_norm = *options.clip;
  if (options.ema) config.ema = *options.ema;
  if (options.decoder == "unit") config.decoder = DecoderNorm::unit;
  if (options.decoder == "free") config.decoder = DecoderNorm::free;
  if (options.normalise == "none") config.normalisation = Normalisation::none;
  if (options.normalise == "sqrt-d") config.normalisation = Normalisation::sqrt_d;
  if (options.normalise == "mean-square") config.normalisation = Normalisation::mean_square;
  if (options.normalise == "whitening") config.normalisation = Normalisation::whitening;
  config.whitening = covariance_whitening;
  if (options.loss_space == "raw") config.loss_space = LossSpace::raw;
  if (options.loss_space == "normalised") config.loss_space = LossSpace::normalised;
  if (!options.init.empty()) config.center = Center::none;
  if (options.center == "none") config.center = Center::none;
  if (options.center == "mean") config.center = Center::mean;
  if (options.center == "median") config.center = Center::geometric_median;
  if (options.dead_window) config.dead.window = *options.dead_window;
  if (options.optimizer == "adam") config.optimizer = Adam{};
  if (options.optimizer == "adamw") config.optimizer = AdamW{};
  if (options.optimizer == "sgd") config.optimizer = Sgd{.momentum = 0.9};
  if (options.optimizer == "signum") config.optimizer = SignSgd{.momentum = 0.95};
  if (options.optimizer == "schedule-free") config.optimizer = ScheduleFree{};
  if (options.optimizer == "muon") config.optimizer = Muon{};
  if (options.optimizer == "adafactor") config.optimizer = Adafactor{};
  if (options.moments == "full") config.moments = Precision::full;
  if (options.moments == "bfloat16") config.moments = Precision::bfloat16;
}

/// The recipe of --recipe for this run, changed by every option that was given.
Recipe recipe_of(const TrainVerb& options, const std::string& activation, const AnyActivation* start, Index d_in, Index latents,
                 Index rows) {
  const Index tokens = train_length(options, rows);
  std::optional<double> k = options.k;
  if (start != nullptr && !k)
    start->visit([&](const auto& inner) {
      if constexpr (requires { inner.k; }) k = static_cast<double>(inner.k);
      if constexpr (requires { inner.max_iterations; })
        if (inner.max_iterations > 0) k = static_cast<double>(inner.max_iterations);
    });
  const double largest = k.value_or(options.recipe.empty() ? 32.0 : 0.0);
  if (largest > static_cast<double>(latents) && activation != "relu" && activation != "jumprelu" && activation != "gated")
    throw_value("--k ", largest, options.k ? "" : " (the default)", ": is more than the ", latents, " latents (--latents)");
  Recipe out = recipe(options.recipe.empty() ? "default" : options.recipe,
                      {.d_in = d_in,
                       .latents = latents,
                       .steps = tokens / options.batch,
                       .batch = options.batch,
                       .activation = activation,
                       .k = k,
                       .sparsity = options.l1 ? options.l1 : options.l0,
                       .target_l0 = options.target_l0,
                       .widths = activation == "matryoshka" ? options.prefixes : std::vector<Index>()});
  check_activation_options(options, out.activation.name);  // where the recipe chose it
  apply(options, out.config);
  bool* const by_norm = sae::detail::rank_by_norm(out.activation);
  if (!options.decoder.empty()) {
    const bool free = options.decoder == "free";
    if (by_norm != nullptr) *by_norm = free;
    if (auto* const l1 = out.objective.find<L1>()) l1->weighted_by_decoder_norm = free;
    if (auto* const gates = out.objective.find<GatedAux>()) gates->weighted_by_decoder_norm = free;
  }
  if (start != nullptr) {
    if (const bool* const before = sae::detail::rank_by_norm(*start); before != nullptr && by_norm != nullptr)
      *by_norm = *before;
  }
  if (auto* const aux = out.objective.find<AuxK>()) {
    if (options.aux_k) aux->k = *options.aux_k;
    if (options.aux_coefficient) aux->coefficient = *options.aux_coefficient;
    aux->rank_by_decoder_norm = by_norm != nullptr && *by_norm;
  } else if (options.aux_k || options.aux_coefficient) {
    throw_value("--aux-k, --aux-coefficient: the recipe ", out.name, " has no AuxK for ",
                activation.empty() ? "its activation" : activation);
  }
  if (auto* const jump = out.activation.get<JumpReLU>()) {
    if (options.threshold) jump->threshold = *options.threshold;
    if (options.bandwidth) jump->bandwidth = *options.bandwidth;
    if (auto* const l0 = out.objective.find<L0Penalty>();
        l0 != nullptr && options.l0 && !options.target_l0 && options.recipe.empty())
      l0->form = L0Form::linear;
    if (options.pre_activation) {
      if (auto* const loss = out.objective.find<PreActivationLoss>()) {
        loss->coefficient = *options.pre_activation;
      } else {
        out.objective.terms.emplace_back(PreActivationLoss{.coefficient = *options.pre_activation});
      }
    }
  }
  if (!options.prefixes.empty() && out.objective.find<Matryoshka>() == nullptr)
    out.objective.terms.emplace_back(Matryoshka{.widths = options.prefixes});
  if (const auto* const topk = out.activation.get<TopK>()) {
    const bool ranks = topk->rank_by_decoder_norm;
    if (options.hierarchical) out.objective.terms.emplace_back(HierarchicalTopK{.k = topk->k, .by_decoder_norm = ranks});
    if (options.multi_topk) {
      const auto* const error = out.objective.find<SquaredError>();
      out.objective.terms.emplace_back(MultiTopK{.k = topk->k,
                                                 .normaliser = error != nullptr ? error->normaliser : ErrorNormaliser::rows,
                                                 .rank_by_decoder_norm = ranks});
    }
  }
  if (options.k_start)
    out.config.k_annealing = {.from = *options.k_start,
                              .steps = options.k_steps.value_or(std::max<Index>(1, out.config.total_steps() / 2))};
  out.activation.check(latents);
  out.objective.check(d_in, latents);
  out.config.check();
  return out;
}

/// Makes every decoder row a unit vector, as the first step does, but without changing what the model computes.
template <class Model>
void make_decoder_unit(Model& model, const std::string& path) {
  const auto& p = model.parameters();
  const bool* const by_norm = sae::detail::rank_by_norm(model.activation());
  if (!p.tied() && (by_norm == nullptr || *by_norm)) return model.fold_decoder_norms();
  // Rows of one length may be scaled together.
  const double scale = p.tied() ? 1 : row_norm(p.W_dec.row(0), p.output_width());
  for (Index i = 0; i < model.latents(); ++i)
    if (const double norm = row_norm(p.W_dec.row(i), p.output_width()); !(std::fabs(norm - scale) <= 1e-3 * scale))
      throw_value("--init ", path, ": the decoder row of latent ", i, " has the norm ", norm, " and not ", scale,
                  p.tied() ? "" : ", that of the first", ", and ", model.activation().name,
                  " would select other latents if all had 1; train it with --decoder free");
  if (!p.tied() && scale > 0) sae::detail::scale_codes(model.activation(), model.parameters(), static_cast<float>(scale));
}

/// Whether --log lies in the folder that the training makes.
std::optional<std::filesystem::path> log_inside(const TrainVerb& options) {
  const auto full = [](const std::filesystem::path& path) {
    std::error_code error;
    const auto out = std::filesystem::weakly_canonical(path, error);
    return error ? path : out;
  };
  if (full(options.log) == full(options.out) || full(options.log) == full(partial_of(options)))
    throw_value("--log ", options.log, ": is the folder of the SAE itself; choose another name");
  const std::filesystem::path inside = full(options.log).lexically_relative(full(options.out));
  if (inside.empty() || *inside.begin() == ".." || inside == ".") return std::nullopt;
  if (inside == sae_name || inside == weights_name || inside == checkpoint_name)
    throw_value("--log ", options.log, ": is a file of the SAE itself; choose another name");
  if (inside.has_parent_path())
    throw_value("--log ", options.log, ": lies in a folder of the output; choose a place in or outside it");
  return inside;
}

void check_places(const TrainVerb& options) {
  namespace fs = std::filesystem;
  std::error_code error;
  check_output(options);
  check_replaced(options, sae_name, "SAE");
  if (options.log.empty() || log_inside(options)) return;
  const fs::path log(options.log);
  if (!options.force && !options.resume && fs::exists(log, error)) throw_file(options.log, ": exists; --force replaces it");
  if (log.has_parent_path() && !fs::is_directory(log.parent_path(), error))
    throw_file(options.log, ": its folder ", log.parent_path().string(), " does not exist");
  if (fs::is_directory(log, error)) throw_file(options.log, ": is a folder, the log is a file");
  OutputFile(log, {.overwrite = true});  // refuses what cannot be written; leaves nothing
}

/// Refuses sizes that cannot be: the system may end a process that takes more memory than there is without a word.
void check_memory(const TrainVerb& options, Index d_in, Index d_out, Index latents) {
  const double bytes = options.moments == "bfloat16" ? 8 : 12;  // a weight and the two moments of Adam
  const double needed = bytes * static_cast<double>(d_in + d_out) * static_cast<double>(latents);
  const double there = static_cast<double>(::sysconf(_SC_PHYS_PAGES)) * static_cast<double>(::sysconf(_SC_PAGESIZE));
  if (there > 0 && needed > there)
    throw_value("--latents ", latents, ": training them on rows of ", d_in, " numbers takes ", rounded(needed / 1e9),
                " GB of memory, the machine has ", rounded(there / 1e9), " GB");
}

template <class Model>
constexpr bool predicts = std::is_same_v<Model, AnyTranscoder>;
template <class Model>
Index output_width(const Model& model) {
  if constexpr (predicts<Model>)
    return model.d_out();
  else
    return model.d_in();
}
template <class Model>
std::string architecture_of(const Model& model) {
  const std::string_view activation = sae::detail::saelens_architecture(model.activation());
  if constexpr (predicts<Model>)
    return sae::detail::saelens_transcoder_architecture(activation, model.has_skip());
  else
    return std::string(activation);
}

/// Trains a model as the recipe says and writes it. \param warm  it is not random, but --init
template <class Model>
void train(const TrainVerb& options, const Recipe& recipe, Model model, bool warm, TrainSource& source) {
  namespace fs = std::filesystem;
  const AnyActivation& activation = model.activation();
  const TrainerConfig& config = recipe.config;
  Settings settings = source.settings;
  settings.emplace_back("seed", std::to_string(options.seed));
  if (warm) settings.emplace_back("init", fs::weakly_canonical(options.init).string());

  Threads threads(options.threads);
  Trainer trainer(model, config, recipe.objective, threads);
  const auto inside = options.log.empty() ? std::nullopt : log_inside(options);
  ResumableFolder folder(options, std::move(settings), [&](const fs::path& name, bool is_folder) {
    return !is_folder &&
           (name == checkpoint_name || name == log_name || name == sae_name || name == weights_name || name == inside);
  });
  folder.load(trainer);
  Log* const log = options.log.empty() ? nullptr : &folder.log(log_name, trainer.step());

  auto progress = progress_bar(std::cerr, stderr_is_terminal());
  StepReport last;
  try {
    folder.fit(trainer, source, [&](const StepReport& report) {
      last = report;
      if (log != nullptr) (*log)(report);
      if (!options.quiet) progress(report);
    });
  } catch (const DivergedError& error) {
    folder.diverged(error);
  }

  write_saelens(model, folder.path(), source.metadata, {.overwrite = true});
  const fs::path written = folder / log_name;
  std::exception_ptr log_failed;  // the SAE is worth more than its log
  try {
    if (log != nullptr && !inside)
      atomic_write_text(options.log, read_file(written, (std::numeric_limits<std::size_t>::max)()),
                        {.overwrite = options.force || options.resume});
  } catch (const FileError&) {
    log_failed = std::current_exception();
  }
  // The checkpoint goes before the log: a kill in between starts afresh instead of going on with half a log.
  folder.remove_checkpoint();
  if (inside) {
    fs::rename(written, folder / *inside);
  } else {
    fs::remove(written);
  }
  folder.commit();
  if (log_failed) std::rethrow_exception(log_failed);

  if (source.left_out) note(options, "left out: ", source.left_out());
  const auto known = [&](double x) { return last.step > 0 ? Json(x) : Json(nullptr); };
  if (options.json)
    return print_json({{"out", options.out},
                       {"architecture", architecture_of(model)},
                       {"d_in", model.d_in()},
                       {"d_out", output_width(model)},
                       {"latents", model.latents()},
                       {"steps", trainer.step()},
                       {"tokens", trainer.tokens()},
                       {"learning_rate", config.learning_rate},
                       {"loss", known(last.loss)},
                       {"l0", known(last.l0)},
                       {"explained_variance", known(last.explained_variance)},
                       {"dead_latents", last.step > 0 ? Json(last.dead) : Json(nullptr)}});
  std::vector<std::pair<std::string, std::string>> table{
      {predicts<Model> ? "transcoder" : "SAE",
       sae::detail::concat(model.d_in(), " -> ", model.latents(), " latents",
                           predicts<Model> ? sae::detail::concat(" -> ", output_width(model)) : "", ", ", activation.name)},
      {"trained",
       sae::detail::concat(trainer.step(), " steps, ", trainer.tokens(), " rows, peak rate ", config.learning_rate)}};
  if (last.step > 0) {
    table.emplace_back("last batch", "L0 " + rounded(last.l0) + ", explained variance " + rounded(last.explained_variance));
    table.emplace_back("dead latents",
                       sae::detail::concat(last.dead, " (not active for ", trainer.config().dead.window, " rows)"));
  }
  table.emplace_back("folder", options.out);
  print_table(table);
}

/// What --init names, if anything: a SAE, or with --targets a transcoder.
template <class Model>
std::optional<AnySae> open_init(const TrainVerb& options) {
  if (options.init.empty()) return std::nullopt;
  AnySae found = open_any(options, options.init, WeightsIn::memory);
  if (found.get<Model>() != nullptr) return found;
  throw_value("--init ", options.init,
              found.get<AnyGluModel>() != nullptr ? ": has a GLU encoder, which is not trained here"
              : found.reads_sequences()           ? ": is a temporal SAE, which is not trained here"
              : options.targets.empty()           ? ": is a transcoder, which is trained with --targets; without it a SAE is"
                                        : ": is a SAE; with --targets a transcoder is trained, which starts from one");
}

/// Sizes of what --init names against those of the rows and of --latents.
void check_init(const TrainVerb& options, const AnySae& init, Index d_in, Index d_out) {
  if (init.d_in() != d_in)
    throw_shape("--init ", options.init, ": reads rows of ", init.d_in(), " numbers, the data has ", d_in);
  if (init.d_out() != d_out)
    throw_shape("--init ", options.init, ": predicts rows of ", init.d_out(), " numbers, the targets have ", d_out);
  if (options.latents > 0 && options.latents != init.latents())
    throw_value("--latents ", options.latents, ": the ", kind_of(options), " ", options.init, " that training starts from has ",
                init.latents());
}

/// The model that training starts from. \param init  what --init names, or null
AnyModel start_of(const TrainVerb& options, Recipe& recipe, const AnyModel* init, Index d_in, Index, Index latents) {
  if (init != nullptr) {
    recipe.subtract_decoder_bias = init->subtracts_decoder_bias();
    recipe.input_normalisation = init->input_normalisation();
  }
  if (options.normalise == "layer-norm" || options.normalise == "constant-norm") {
    const auto asked = options.normalise == "layer-norm" ? InputNormalisation::layer_norm : InputNormalisation::constant_norm;
    if (init != nullptr && asked != init->input_normalisation())
      throw_value("--normalise ", options.normalise, ": the SAE ", options.init, " that training starts from does not do that");
    recipe.input_normalisation = asked;
  }
  if (recipe.input_normalisation != InputNormalisation::none) recipe.config.normalisation = Normalisation::none;
  AnyModel model = make_model(recipe, d_in, latents, options.seed);
  if (init != nullptr) model.parameters() = init->parameters();
  return model;
}
AnyTranscoder start_of(const TrainVerb& options, Recipe& recipe, const AnyTranscoder* init, Index d_in, Index d_out,
                       Index latents) {
  AnyTranscoder model = make_transcoder(recipe, d_in, d_out, latents, options.skip, options.seed);
  if (init == nullptr) return model;
  if (options.skip && !init->has_skip()) note(options, "--init ", options.init, ": has no skip; that of --skip starts at 0");
  Tensor<float> skip = std::move(model.parameters().W_skip);
  model.parameters() = init->parameters();
  if (!model.has_skip()) model.parameters().W_skip = std::move(skip);
  return model;
}

template <class Model>
void train_kind(const TrainVerb& options) {
  const std::optional<AnySae> found = open_init<Model>(options);
  const Model* const init = found ? found->get<Model>() : nullptr;
  const AnyActivation* const before = init != nullptr ? &init->activation() : nullptr;
  const std::string activation = chosen_activation(options, before);
  if (!activation.empty()) check_activation_options(options, activation);
  const std::unique_ptr<TrainSource> source = open_train_source(options);
  const Index d_in = source->width() - source->target_width, d_out = source->target_width > 0 ? source->target_width : d_in;
  if (found) check_init(options, *found, d_in, d_out);
  const Index latents = init != nullptr ? init->latents() : options.latents;
  check_memory(options, d_in, d_out, latents);
  Recipe recipe = recipe_of(options, activation, before, d_in, latents, source->rows);
  Model model = start_of(options, recipe, init, d_in, d_out, latents);
  if (init != nullptr) {
    recipe.config.reads_raw_rows = true;
    const DecoderNorm decoder = recipe.config.decoder;
    if (decoder == DecoderNorm::unit || (decoder == DecoderNorm::automatic && !predicts<Model>))
      make_decoder_unit(model, options.init);
  }
  train(options, recipe, std::move(model), init != nullptr, *source);
}

void run_train(const TrainVerb& options) {
  check_usage(options);
  check_places(options);
  if (options.targets.empty()) return train_kind<AnyModel>(options);
  train_kind<AnyTranscoder>(options);
}

}  // namespace

void add_train(CLI::App& program) {
  const auto options = std::make_shared<TrainVerb>();
  CLI::App& verb =
      add_verb(program, "train", "Train a SAE, or a transcoder (--targets), on rows or straight from a language model.",
               options, run_train);
  add_train_source(verb, *options);
  verb.add_option("--targets", options->targets,
                  "rows to predict from those of --data, one for each: trains a transcoder. A file or folder as --data")
      ->group("Rows");

  verb.option_defaults()->group("SAE");
  verb.add_option("--latents", options->latents, "number of latents F")->check(one_value())->check(within(1, 1 << 30));
  verb.add_option(
          "--activation", options->activation,
          "topk (default), batchtopk, matryoshka (batchtopk with --prefixes), abstopk, groupmax, relu, jumprelu, gated or "
          "matching_pursuit (--k steps a row)")
      ->check(one_value())
      ->check(CLI::IsMember(
          {"topk", "batchtopk", "matryoshka", "abstopk", "groupmax", "relu", "jumprelu", "gated", "matching_pursuit"}));
  std::string recipes;
  for (const auto recipe : recipe_names()) recipes += (recipes.empty() ? "" : ", ") + std::string(recipe);
  const auto names = recipe_names();
  verb.add_option("--recipe", options->recipe,
                  "train as a library or a paper does (" + recipes + "); options that are given change it")
      ->check(CLI::IsMember(std::vector<std::string>(names.begin(), names.end())));
  verb.add_option("--k", options->k, "topk and its family: latents per row (default 32; batchtopk: a mean, may be fractional)")
      ->check(one_value())
      ->check(at_least(0, false));
  auto* const k_start =
      verb.add_option("--k-start", options->k_start, "topk, batchtopk, abstopk: k at the first step, from which it falls")
          ->check(at_least(1));
  verb.add_option("--k-steps", options->k_steps, "steps in which it falls (default: half of the run)")
      ->check(at_least(1))
      ->needs(k_start);
  verb.add_flag("--multi-topk", options->multi_topk, "topk: 4 k latents must reconstruct, too, with weight 1/8");
  verb.add_flag("--hierarchical", options->hierarchical,
                "topk: the 1, 2, .. k largest must each reconstruct (HierarchicalTopK)");
  verb.add_option("--prefixes", options->prefixes,
                  "widths W,W,... below the number of latents: the first W latents alone must reconstruct, too (Matryoshka)")
      ->delimiter(',')
      ->check(at_least(1));
  verb.add_option(
          "--l1", options->l1,
          sae::detail::concat("relu, gated: weight of the L1 term (default ", recommended_l1, "), for rows as normalised"))
      ->check(one_value())
      ->check(at_least(0));
  verb.add_option("--l0", options->l0,
                  sae::detail::concat("jumprelu: weight of the penalty on L0 (default ", recommended_l0, ")"))
      ->check(at_least(0));
  verb.add_option("--target-l0", options->target_l0,
                  "jumprelu: penalise the squared distance to so many active latents instead of their number")
      ->check(one_value())
      ->check(at_least(0, false));
  verb.add_option("--pre-activation", options->pre_activation,
                  "jumprelu: weight of the loss that pulls dead latents up to their thresholds (default 0)")
      ->check(at_least(0));
  verb.add_option("--threshold", options->threshold,
                  sae::detail::concat("jumprelu: thresholds at the start (default ", JumpReLU{}.threshold, ")"))
      ->check(at_least(0));
  verb.add_option("--bandwidth", options->bandwidth,
                  sae::detail::concat("jumprelu: width of the window from which thresholds learn (default ",
                                      JumpReLU{}.bandwidth, "), for rows as normalised"))
      ->check(at_least(0, false));
  verb.add_option("--decoder", options->decoder, "unit (default; of transcoders free): decoder rows of norm 1; free")
      ->check(CLI::IsMember({"unit", "free"}));
  verb.add_flag("--skip", options->skip, "transcoder: a linear path from inputs to targets beside the latents");
  verb.add_option("--init", options->init,
                  "start from this SAE, with --targets from this transcoder, instead of random weights");

  verb.option_defaults()->group("Training");
  add_train_length(verb, *options);
  verb.add_option("--lr", options->rate, "peak learning rate (default: by the number of latents)")
      ->check(one_value())
      ->check(at_least(0, false));
  verb.add_option("--warmup", options->warmup, "steps in which the rate rises (default: 2 % of the run)")->check(at_least(0));
  verb.add_option("--decay", options->decay, "last steps, in which the rate falls (default: 80 % of the run)")
      ->check(at_least(0));
  verb.add_option("--normalise,--normalize", options->normalise,
                  "what is done to rows while training (folded into the SAE at the end): none, mean-square (mean squared norm "
                  "1, the default), sqrt-d (mean norm sqrt(D)), whitening (uncorrelated, variance 1 in every direction); or to "
                  "each row "
                  "by itself, which stays in the SAE: constant-norm (norm sqrt(D)), layer-norm")
      ->check(CLI::IsMember({"none", "mean-square", "sqrt-d", "whitening", "constant-norm", "layer-norm"}));
  verb.add_option("--loss-space", options->loss_space,
                  "with constant-norm or layer-norm: errors of the rows as they are (raw, the default), or as normalised")
      ->check(CLI::IsMember({"raw", "normalised"}));
  verb.add_option("--center", options->center,
                  "where b_dec starts: mean of the rows (default), median (geometric), none (default with --init)")
      ->check(CLI::IsMember({"none", "mean", "median"}));
  verb.add_option("--clip", options->clip, "largest gradient norm; 0 (default): no clipping")->check(at_least(0));
  verb.add_option("--optimizer", options->optimizer,
                  "adam (default), adamw, sgd (momentum 0.9), signum, schedule-free (sign-SGD), muon or adafactor")
      ->check(CLI::IsMember({"adam", "adamw", "sgd", "signum", "schedule-free", "muon", "adafactor"}));
  verb.add_option("--moments", options->moments,
                  "what adam, adamw, sgd and signum keep beside each weight: full (float32, default), bfloat16 "
                  "(half the memory)")
      ->check(CLI::IsMember({"full", "bfloat16"}));
  verb.add_option("--ema", options->ema, "decay of an average of the weights, which is what is saved; 0 (default): off")
      ->check(CLI::Range(0.0, 0.999999));
  verb.add_option(
          "--aux-k", options->aux_k,
          "topk and its family, jumprelu, gated: dead latents per row that learn from what is left over (default: D / 2)")
      ->check(at_least(0));
  verb.add_option("--aux-coefficient", options->aux_coefficient,
                  sae::detail::concat("weight of that term (default ", recommended_aux_k, "; 0: off)"))
      ->check(at_least(0));
  verb.add_option(
          "--dead-window", options->dead_window,
          "rows without activity after which a latent counts as dead (default: as many as latents, at least four batches)")
      ->check(at_least(1));
  add_seed(verb, *options);

  verb.option_defaults()->group("Output");
  add_out(verb, *options, "folder of the SAE, as SAELens lays it out; while training everything is in OUT.partial")->required();
  add_resume(verb, *options);
  verb.add_option("--log", options->log,
                  "JSON lines of loss, L0, explained variance, dead latents; in OUT.partial while training");
  add_report_every(verb, *options);
  add_json(verb, *options);
}

}  // namespace sae::cli
