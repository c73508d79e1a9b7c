#pragma once
#include <sae/models/transcoder.hpp>
#include <sae/training/recipe.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

// Named presets: how a library or a paper trains, in its own order of operations, with its own defaults. What a run decides
// (sizes, steps, k) comes from outside, everything else from the recipe and may be changed before use.
namespace sae::inline SAE_ABI {

/// What a recipe is asked for.
struct RecipeProblem {
  Index d_in = 0, latents = 0, steps = 0;
  Index batch = 1024;
  /// "relu", "topk", "batchtopk", "matryoshka" (BatchTopK with prefix losses), "abstopk", "groupmax", "jumprelu", "gated",
  /// "matching_pursuit"; empty: the recipe's first.
  std::string activation = {};
  std::optional<double> k = {};          ///< latents per row of the TopK family; else the recipe's
  std::optional<double> sparsity = {};   ///< coefficient of the sparsity penalty of the others; else the recipe's
  std::optional<double> target_l0 = {};  ///< active latents a row that a penalty on L0 aims at, where the recipe has a target
  std::vector<Index> widths = {};        ///< prefixes of matryoshka; else the recipe's
};

/// A model and a training, described. `make_model` makes the one, `Trainer(model, config, objective)` the other.
struct Recipe {
  std::string_view name;
  std::string_view source;  ///< where it is written down
  AnyActivation activation{};
  AnyObjective objective{};
  TrainerConfig config{};
  bool subtract_decoder_bias = true;
  InputNormalisation input_normalisation = InputNormalisation::none;
  double initial_decoder_norm = 1;
  double encoder_scale = 1;               ///< W_enc starts as W_dec times this
  bool untied_start = false;              ///< W_enc as torch's nn.Linear, W_dec its normalised copy
  std::vector<std::string> deviations{};  ///< in what it is known to differ from its source
};

namespace detail {

class RecipeMaker {
 public:
  /// \param problem  its activation is named, and one of the recipe's
  RecipeMaker(std::string_view name, std::string_view source, const RecipeProblem& problem) : problem_(problem) {
    out.name = name;
    out.source = source;
    out.config.steps = problem.steps;
    out.config.batch = problem.batch;
  }
  Recipe out;

  bool is(std::string_view name) const { return problem_.activation == name; }
  bool selects() const { return is("topk") || is("batchtopk") || is("matryoshka") || is("abstopk") || is("groupmax"); }
  double sparsity(double own) const { return problem_.sparsity.value_or(own); }
  double target(double own) const { return problem_.target_l0.value_or(own); }
  Index steps_share(double share) const { return static_cast<Index>(share * static_cast<double>(problem_.steps)); }

  /// Iterations of a pursuit, k where it is given; 0: the pursuit's own.
  Index iterations() const { return problem_.k ? std::max<Index>(1, static_cast<Index>(*problem_.k)) : 0; }

  /// The member of the TopK family that is asked for.
  void set_selection(double k, bool by_norm, const BatchTopK& batch = {}) {
    k = problem_.k.value_or(k);
    const auto whole = [&] {
      if (!(k >= 1 && k <= 0x1p40 && k == std::floor(k)))
        throw_value("recipe ", out.name, ": k = ", k, " is not a whole number of at least 1, as ", problem_.activation,
                    " needs");
      return static_cast<Index>(k);
    };
    if (is("topk")) out.activation = TopK{.k = whole(), .rank_by_decoder_norm = by_norm};
    if (is("abstopk")) out.activation = AbsTopK{.k = whole(), .rank_by_decoder_norm = by_norm};
    if (is("groupmax")) out.activation = GroupMax{.k = whole()};
    if (!is("batchtopk") && !is("matryoshka")) return;
    BatchTopK topk = batch;
    topk.k = k;
    topk.rank_by_decoder_norm = by_norm;
    out.activation = topk;
  }
  /// Prefix losses over `fractions` of the latents, each more than the last, where they are asked for: their sum, or their mean.
  void set_prefixes(std::initializer_list<double> fractions, bool mean_of_levels) {
    if (!is("matryoshka")) return;
    Matryoshka levels{.widths = problem_.widths};
    if (levels.widths.empty())
      for (const double f : fractions) {
        const auto width = std::max<Index>(1, static_cast<Index>(f * static_cast<double>(problem_.latents)));
        if (levels.widths.empty() || width > levels.widths.back()) levels.widths.push_back(width);
      }
    if (levels.widths.back() != problem_.latents) levels.widths.push_back(problem_.latents);
    if (mean_of_levels) levels.scale = 1 / static_cast<double>(levels.widths.size());
    out.objective.terms.insert(out.objective.terms.begin(), levels);
  }

 private:
  const RecipeProblem& problem_;
};

inline Recipe recipe_saelens(const RecipeProblem& problem) {
  RecipeMaker make("saelens", "SAELens 6.54: saes/*_sae.py, training/sae_trainer.py", problem);
  Recipe& r = make.out;
  r.initial_decoder_norm = make.is("matching_pursuit") ? 1 : 0.1;
  TrainerConfig& c = r.config;
  c.learning_rate = 3e-4;
  c.clip_norm = 1;
  c.decoder = DecoderNorm::free;
  c.center = Center::none;
  c.normalisation = Normalisation::none;
  c.dead = {.window = 1001, .unit = DeadUnit::steps};  // more than 1000 steps
  if (make.selects()) {
    make.set_selection(100, true, {.threshold_average = ThresholdAverage::from_zero});
    r.objective = AnyObjective{
        AuxK{.coefficient = 1, .raw_values = true, .rank_by_decoder_norm = true, .by_magnitude = make.is("abstopk")}};
    make.set_prefixes({1.0 / 32, 1.0 / 8, 1.0 / 2}, false);
  }
  if (make.is("relu")) r.objective = AnyObjective{L1{.coefficient = make.sparsity(1)}};
  if (make.is("gated")) {
    r.activation = Gated{};
    // Detached as in the paper, the decoder must be its: with free norms that the penalty weighs, nothing would hold them up.
    r.objective = AnyObjective{GatedAux{.coefficient = make.sparsity(1)}};
    r.initial_decoder_norm = 1;
    r.config.decoder = DecoderNorm::unit;
    r.deviations.emplace_back(
        "the second reconstruction does not train the decoder, whose rows are unit vectors, as in the paper (SAELens lets it, "
        "with free "
        "rows)");
  }
  if (make.is("matching_pursuit")) r.activation = MatchingPursuit{.max_iterations = make.iterations()};
  if (make.is("jumprelu")) {
    r.activation = JumpReLU{.threshold = 0.01, .bandwidth = 0.05};
    L0Penalty l0{.coefficient = make.sparsity(1)};
    if (problem.target_l0) l0.form = L0Form::quadratic, l0.target = *problem.target_l0;
    r.objective = AnyObjective{l0, PreActivationLoss{.coefficient = 3e-6}};
  }
  return std::move(r);
}

inline Recipe recipe_dictionary_learning(const RecipeProblem& problem) {
  RecipeMaker make("dictionary_learning", "dictionary_learning 0.1.0: trainers/*.py, training.py", problem);
  Recipe& r = make.out;
  TrainerConfig& c = r.config;
  c.schedule = {.warmup = std::min<Index>(1000, make.steps_share(0.2)), .warmup_shape = WarmupShape::from_zero};
  c.schedule.decay = make.steps_share(0.2);
  c.clip_norm = 1;
  c.projection_epsilon = 1e-6;
  c.unit_norm_epsilon = std::numeric_limits<double>::epsilon();
  c.center = Center::none;
  c.normalisation = Normalisation::mean_square;
  c.dead = {.window = 10'000'000, .after_counting = true};
  c.sparsity_warmup = std::min<Index>(2000, make.steps_share(0.4));
  r.deviations = {"warm-ups of 1000 and 2000 steps are shortened to a fifth and two fifths of a run"};
  if (make.selects()) {
    c.learning_rate = auto_learning_rate(problem.latents);
    c.center = Center::first_batch_geometric_median;
    make.set_selection(64, false,
                       {.threshold_rate = 0.001, .threshold_from = 1001, .threshold_average = ThresholdAverage::from_first});
    if (problem.steps <= 1001 && (make.is("batchtopk") || make.is("matryoshka"))) {
      auto* const batch = r.activation.get<BatchTopK>();
      batch->threshold_from = problem.steps / 2;
      r.deviations.emplace_back("a run of at most 1001 steps counts thresholds from its middle on");
    }
    r.objective = AnyObjective{AuxK{.scale_by_dead = false, .normaliser = AuxKNormaliser::residual_variance}};
    make.set_prefixes({1.0 / 32, 3.0 / 32, 7.0 / 32, 15.0 / 32}, true);
    if (make.is("matryoshka"))
      r.deviations.emplace_back(
          "the error is the mean over the levels (the library takes the mean of errors times 1 / levels)");
  } else {
    c.clip_norm = make.is("jumprelu") ? 1 : 0;
    c.projection_epsilon = make.is("jumprelu") ? 1e-6 : 0;
    if (!make.is("jumprelu")) c.unit_norm_epsilon = 0;
  }
  if (make.is("relu")) {
    c.learning_rate = 1e-3;
    r.initial_decoder_norm = 0.1;  // of the encoder, too: the first step brings the decoder to norm 1
    r.objective = AnyObjective{L1{.coefficient = make.sparsity(0.1), .weighted_by_decoder_norm = false}};
    r.deviations.emplace_back("b_enc starts at 0 (the library: as torch's linear layer)");
  }
  if (make.is("gated")) {
    c.learning_rate = 5e-5;
    c.optimizer = Adam{.beta1 = 0};
    r.activation = Gated{};
    r.objective = AnyObjective{GatedAux{.coefficient = make.sparsity(0.1)}};
  }
  if (make.is("jumprelu")) {
    c.learning_rate = 7e-5;
    c.optimizer = Adam{.beta1 = 0};
    r.subtract_decoder_bias = false;
    r.activation = JumpReLU{.threshold = 0.001, .bandwidth = 0.001};
    r.objective = AnyObjective{L0Penalty{.coefficient = make.sparsity(1), .form = L0Form::target, .target = make.target(20)}};
    r.deviations.emplace_back(
        "the penalty's window is whole (the library evaluates it on f, which loses the half below the threshold: its issue "
        "55)");
    r.deviations.emplace_back("thresholds stay at 0 or above");
  }
  return std::move(r);
}

inline Recipe recipe_openai(const RecipeProblem& problem) {
  RecipeMaker make("openai", "openai/sparse_autoencoder 4965b94: train.py, model.py", problem);
  Recipe& r = make.out;
  make.set_selection(32, false);
  r.untied_start = true;
  TrainerConfig& c = r.config;
  c.learning_rate = 1e-4;
  c.optimizer = Adam{.epsilon = 6.25e-10};
  c.ema = 0.999;
  c.normalise_before_update = true;
  c.center = Center::geometric_median;
  c.normalisation = Normalisation::mean_square;
  c.dead = {.window = 10'000'000, .least_value = 1e-3};
  r.objective = AnyObjective{SquaredError{.normaliser = ErrorNormaliser::target_variance},
                             AuxK{.k = std::min<Index>(256, problem.latents),
                                  .scale_by_dead = false,
                                  .normaliser = AuxKNormaliser::residual_variance,
                                  .through_decoder_bias = true}};
  r.deviations = {
      "gradients are set to 0 before each step (train.py never does)",
      "the average of weights takes each update in, the last one too (train.py averages before it updates), and ends with "
      "unit decoder rows",
      "the error's scale is 1 / the variance of the batch, not of a sample at the start",
      "rows have a mean squared norm of 1 (train.py leaves its rows to the user)",
      "W_enc is not divided by the mean norm of reconstructions of unit vectors at the start "
      "(scale_encoder_to_unit_reconstruction does it)"};
  return std::move(r);
}

inline Recipe recipe_sparsify(const RecipeProblem& problem) {
  RecipeMaker make("sparsify", "sparsify 1.3.3: trainer.py, sparse_coder.py", problem);
  Recipe& r = make.out;
  make.set_selection(32, false);
  r.untied_start = true;
  TrainerConfig& c = r.config;
  c.learning_rate = auto_learning_rate(problem.latents, 5e-3);
  c.optimizer = ScheduleFree{.momentum = 0.95, .sign = true};
  c.center = Center::mean;
  c.normalisation = Normalisation::none;
  c.dead = {.window = 10'000'000};
  r.objective = AnyObjective{SquaredError{.normaliser = ErrorNormaliser::target_variance}};
  r.deviations = {"decoder rows are made unit vectors after the step instead of before the next one, and once more at the end"};
  return std::move(r);
}

inline Recipe recipe_anthropic_2023(const RecipeProblem& problem) {
  RecipeMaker make("anthropic-2023", "Bricken et al. 2023, \"Towards Monosemanticity\", appendix on training", problem);
  Recipe& r = make.out;
  TrainerConfig& c = r.config;
  c.learning_rate = 1e-3;
  c.decoder = DecoderNorm::unit;
  c.center = Center::geometric_median;
  c.normalisation = Normalisation::none;
  r.objective = AnyObjective{L1{.coefficient = make.sparsity(1e-3), .weighted_by_decoder_norm = false}};
  // Four times in a run, at its eighth, two eighths, three, four: the paper's 25,000, 50,000, 75,000, 100,000 of 200,000 steps.
  const Index every = std::max<Index>(1, make.steps_share(0.125)) * problem.batch;
  c.resampling = {.form = ResamplingForm::loss_squared,
                  .every = every,
                  .times = 4,
                  .window = std::max<Index>(1, every / 2),
                  .rows = std::min<Index>(819'200, every)};
  r.deviations = {
      "resampling every eighth of the run, counted over half of that, in the place of every 25,000 of 200,000 steps",
      "the coefficient is the paper's order of magnitude; choose it for the scale of the rows"};
  return std::move(r);
}

inline Recipe recipe_anthropic_2024_april(const RecipeProblem& problem) {
  RecipeMaker make("anthropic-2024-april", "transformer-circuits.pub/2024/april-update, \"Update on how we train SAEs\"",
                   problem);
  Recipe& r = make.out;
  r.subtract_decoder_bias = false;
  r.initial_decoder_norm = 0.1;
  TrainerConfig& c = r.config;
  c.learning_rate = 5e-5;
  c.schedule.decay = make.steps_share(0.2);
  c.sparsity_warmup = make.steps_share(0.05);
  c.clip_norm = 1;
  c.decoder = DecoderNorm::free;
  c.center = Center::none;
  c.normalisation = Normalisation::sqrt_d;
  r.objective = AnyObjective{L1{.coefficient = make.sparsity(5)}};
  return std::move(r);
}

inline Recipe recipe_anthropic_2025_january(const RecipeProblem& problem) {
  RecipeMaker make("anthropic-2025-january",
                   "transformer-circuits.pub/2025/january-update, \"Dictionary learning optimization\"", problem);
  Recipe& r = make.out;
  r.subtract_decoder_bias = false;
  r.initial_decoder_norm = 0.1;
  r.activation = JumpReLU{.threshold = 0.1, .bandwidth = 2, .gradient_to_input = true};
  TrainerConfig& c = r.config;
  c.learning_rate = 2e-4;
  c.schedule.decay = make.steps_share(0.2);
  c.sparsity_warmup = problem.steps;
  c.clip_norm = 1;
  c.decoder = DecoderNorm::free;
  c.center = Center::none;
  c.normalisation = Normalisation::sqrt_d;
  r.objective = AnyObjective{TanhPenalty{.coefficient = make.sparsity(5), .scale = 4},
                             PreActivationLoss{.coefficient = 3e-6, .dead_only = false}};
  r.deviations = {"the threshold itself is trained, not its logarithm"};
  return std::move(r);
}

inline Recipe recipe_deepmind_gated(const RecipeProblem& problem) {
  RecipeMaker make("deepmind-gated", "Rajamanoharan et al. 2024, arXiv:2404.16014, eq. 8 and appendix D", problem);
  Recipe& r = make.out;
  r.activation = Gated{};
  TrainerConfig& c = r.config;
  c.learning_rate = 3e-4;
  c.optimizer = Adam{.beta1 = 0};
  c.schedule = {.warmup = std::min<Index>(1000, make.steps_share(0.2))};
  c.center = Center::mean;
  c.normalisation = Normalisation::mean_square;
  r.objective = AnyObjective{GatedAux{.coefficient = make.sparsity(0.1)}};
  r.deviations = {"no resampling of dead latents", "warm-up of 1000 steps is shortened to a fifth of a run"};
  return std::move(r);
}

inline Recipe recipe_deepmind_jumprelu(const RecipeProblem& problem) {
  RecipeMaker make("deepmind-jumprelu", "Rajamanoharan et al. 2024, arXiv:2407.14435, eq. 9 to 12 and appendix", problem);
  Recipe& r = make.out;
  r.subtract_decoder_bias = false;
  r.activation = JumpReLU{.threshold = 0.001, .bandwidth = 0.001};
  TrainerConfig& c = r.config;
  c.learning_rate = 7e-5;
  c.optimizer = Adam{.beta1 = 0};
  c.schedule = {.warmup = std::min<Index>(1000, make.steps_share(0.2))};
  c.sparsity_warmup = std::min<Index>(10'000, make.steps_share(0.5));
  c.center = Center::none;
  c.normalisation = Normalisation::mean_square;
  L0Penalty l0{.coefficient = make.sparsity(1e-3)};
  if (problem.target_l0) l0.form = L0Form::target, l0.target = *problem.target_l0;
  r.objective = AnyObjective{l0};
  r.deviations = {"the threshold itself is trained, not its logarithm",
                  "warm-ups of 1000 and 10,000 steps are shortened to a fifth and half of a run"};
  return std::move(r);
}

inline Recipe recipe_textbook(const RecipeProblem& problem) {
  RecipeMaker make("textbook", "the introductory form: f = relu(x W_enc + b_enc), L1 summed over the batch", problem);
  Recipe& r = make.out;
  r.subtract_decoder_bias = false;
  TrainerConfig& c = r.config;
  c.learning_rate = 1e-3;
  c.decoder = DecoderNorm::free;
  c.center = Center::none;
  c.normalisation = Normalisation::none;
  // A sum over the batch, where every other L1 here is a mean.
  r.objective = AnyObjective{
      L1{.coefficient = make.sparsity(1e-3) * static_cast<double>(problem.batch), .weighted_by_decoder_norm = false}};
  return std::move(r);
}

inline Recipe recipe_default(const RecipeProblem& problem) {
  RecipeMaker make("default", "chosen by measurement: docs/architectures.md", problem);
  Recipe& r = make.out;
  r.config = recommended(problem.d_in, problem.latents, problem.steps * problem.batch, problem.batch);
  if (make.selects()) {
    make.set_selection(32, false);
    r.encoder_scale = 0.15;
    // For abstopk, too, by relu: by magnitude, the pushes of either sign cancel and 1800 of 4608 latents stay dead where 1 does.
    r.objective = AnyObjective{AuxK{.coefficient = recommended_aux_k}};
    make.set_prefixes({1.0 / 16, 1.0 / 4}, false);
  }
  if (make.is("relu"))
    r.objective = AnyObjective{L1{.coefficient = make.sparsity(recommended_l1), .weighted_by_decoder_norm = false}};
  if (make.is("gated")) {
    r.activation = Gated{};
    r.objective = AnyObjective{GatedAux{.coefficient = make.sparsity(recommended_l1)}, AuxK{.coefficient = recommended_aux_k}};
  }
  if (make.is("matching_pursuit"))
    r.activation = MatchingPursuit{.max_iterations = make.iterations() > 0 ? make.iterations() : 32};
  if (make.is("jumprelu")) {
    r.activation = JumpReLU{};
    r.objective = AnyObjective{
        L0Penalty{.coefficient = make.sparsity(recommended_l0), .form = L0Form::quadratic, .target = make.target(32)},
        AuxK{.coefficient = recommended_aux_k}};
  }
  return std::move(r);
}

struct NamedRecipe {
  std::string_view name;
  Recipe (*make)(const RecipeProblem&);
  std::array<std::string_view, 9> activations;  ///< that it trains, its own choice first; then empty
};
inline constexpr NamedRecipe recipe_list[] = {
    {"default",
     recipe_default,
     {"topk", "batchtopk", "matryoshka", "abstopk", "groupmax", "relu", "jumprelu", "gated", "matching_pursuit"}},
    {"saelens",
     recipe_saelens,
     {"topk", "batchtopk", "matryoshka", "abstopk", "relu", "jumprelu", "gated", "matching_pursuit"}},
    {"dictionary_learning", recipe_dictionary_learning, {"topk", "batchtopk", "matryoshka", "relu", "jumprelu", "gated"}},
    {"openai", recipe_openai, {"topk"}},
    {"sparsify", recipe_sparsify, {"topk", "groupmax"}},
    {"anthropic-2023", recipe_anthropic_2023, {"relu"}},
    {"anthropic-2024-april", recipe_anthropic_2024_april, {"relu"}},
    {"anthropic-2025-january", recipe_anthropic_2025_january, {"jumprelu"}},
    {"deepmind-gated", recipe_deepmind_gated, {"gated"}},
    {"deepmind-jumprelu", recipe_deepmind_jumprelu, {"jumprelu"}},
    {"textbook", recipe_textbook, {"relu"}},
};
inline const NamedRecipe& named_recipe(std::string_view name) {
  std::string known;
  for (const NamedRecipe& one : recipe_list) {
    if (one.name == name) return one;
    known += concat(known.empty() ? "" : ", ", one.name);
  }
  throw_value("there is no recipe \"", name, "\"; these are: ", known);
}

}  // namespace detail

/// Names of all recipes.
inline std::vector<std::string_view> recipe_names() {
  std::vector<std::string_view> out;
  for (const auto& one : detail::recipe_list) out.push_back(one.name);
  return out;
}

/// Activations that a recipe trains, in the words of RecipeProblem::activation; its own choice first.
/// \throws ValueError  no such recipe.
inline std::vector<std::string_view> recipe_activations(std::string_view name) {
  const auto& all = detail::named_recipe(name).activations;
  return {all.begin(), std::find(all.begin(), all.end(), std::string_view())};
}

/// The recipe of that name for a problem.
///
///   const Recipe recipe = sae::recipe("saelens", {.d_in = 576, .latents = 4608, .steps = 558, .activation = "batchtopk", .k = 32});
///   auto model = sae::make_model(recipe, 576, 4608, seed);
///   sae::Trainer trainer(model, recipe.config, recipe.objective);
///
/// \throws ValueError  no such recipe, an activation that it does not train, sizes or steps that are not positive, settings out of
///                     range.
inline Recipe recipe(std::string_view name, RecipeProblem problem) {
  const auto& named = detail::named_recipe(name);
  if (problem.d_in < 1 || problem.latents < 1 || problem.steps < 1 || problem.batch < 1)
    throw_value("recipe ", name, ": d_in = ", problem.d_in, ", latents = ", problem.latents, ", steps = ", problem.steps,
                " and batch = ", problem.batch, " must all be positive");
  const auto activations = recipe_activations(name);
  if (problem.activation.empty()) problem.activation = activations.front();
  if (std::find(activations.begin(), activations.end(), problem.activation) == activations.end()) {
    std::string known;
    for (const auto one : activations) known += detail::concat(known.empty() ? "" : ", ", one);
    throw_value("recipe ", name, ": activation \"", problem.activation, "\" is none of its own; these are: ", known);
  }
  Recipe out = named.make(problem);
  out.activation.check(problem.latents);
  out.objective.check(problem.d_in, problem.latents);
  out.config.check();
  return out;
}

/// The model that a recipe starts from.
template <class Scalar = float>
SparseAutoencoder<Dynamic, Dynamic, AnyActivation, Scalar> make_model(const Recipe& recipe, Index d_in, Index latents,
                                                                      std::uint64_t seed = 0) {
  SparseAutoencoder<Dynamic, Dynamic, AnyActivation, Scalar> out(
      d_in, latents, recipe.activation,
      {.subtract_decoder_bias = recipe.subtract_decoder_bias,
       .input_normalisation = recipe.input_normalisation,
       .initialization = {.decoder_norm = recipe.initial_decoder_norm, .seed = seed, .encoder_scale = recipe.encoder_scale}});
  if (recipe.untied_start) UntiedInitialization{.decoder_norm = recipe.initial_decoder_norm, .seed = seed}(out.parameters());
  return out;
}

/// The same of a transcoder: encoder rows start as random directions of norm 1, decoders at 0; as random directions of the recipe's
/// norm where the activation ranks by the decoder norm.
template <class Scalar = float>
Transcoder<Dynamic, Dynamic, Dynamic, AnyActivation, Scalar> make_transcoder(const Recipe& recipe, Index d_in, Index d_out,
                                                                             Index latents, bool skip = false,
                                                                             std::uint64_t seed = 0) {
  return {
      d_in,
      d_out,
      latents,
      recipe.activation,
      {.skip = skip, .decoder_norm = recipe.activation.needs_decoder_norms() ? recipe.initial_decoder_norm : 0, .seed = seed}};
}

}  // namespace sae::inline SAE_ABI
