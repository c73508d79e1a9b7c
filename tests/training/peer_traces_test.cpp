// Ten training steps of SAELens and dictionary_learning, gone again by our Trainer in double: loss, gradient and every
// parameter. The peers differ in schedules, epsilons, dead-latent counting and AuxK; each difference is a switch of ours.
#include <sae/training/pre_activation_loss.hpp>
#include <sae/training/tanh_penalty.hpp>
#include <sae/training/trainer.hpp>

#include <array>
#include <cmath>
#include <string>

#include "catch_compat.hpp"
#include "peer_fixture.hpp"

namespace {

using sae::Index;
using sae::Tensor;

struct Names {
  const char *W_enc, *b_enc, *W_dec, *b_dec;
  bool encoder_transposed, decoder_transposed;
};
constexpr Names saelens{"W_enc", "b_enc", "W_dec", "b_dec", true, false};
constexpr Names dl_autoencoder{"encoder.weight", "encoder.bias", "decoder.weight", "bias", false, true};
constexpr Names dl_topk{"encoder.weight", "encoder.bias", "decoder.weight", "b_dec", false, true};

template <class Activation>
using Model = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, Activation, double>;

template <class Parameters>
void load(const sae_test::PeerRun& run, const Names& names, const std::string& when, Parameters& p) {
  p.W_enc = run.tensor(when, names.W_enc, names.encoder_transposed);
  p.b_enc = run.tensor(when, names.b_enc, false);
  p.W_dec = run.tensor(when, names.W_dec, names.decoder_transposed);
  p.b_dec = run.tensor(when, names.b_dec, false);
  Parameters::visit_activation(
      [&](std::string_view name, auto& tensor) { tensor = run.tensor(when, std::string(name), false); }, p);
}

// Largest difference relative to the largest number expected; NaN where anything is NaN.
double relative_error(const Tensor<double>& got, const Tensor<double>& want) {
  REQUIRE(got.rows() == want.rows());
  REQUIRE(got.cols() == want.cols());
  return (got.map() - want.map()).cwiseAbs().maxCoeff<Eigen::PropagateNaN>() /
         want.map().cwiseAbs().maxCoeff<Eigen::PropagateNaN>();
}
template <class Parameters>
void require_close(Parameters& got, Parameters& want, double bound) {
  Parameters::visit(
      [&](std::string_view name, const auto& a, const auto& b) {
        CAPTURE(name);
        REQUIRE(relative_error(a, b) <= bound);
      },
      got, want);
}

template <class Activation, class Terms>
void replay(const std::string& name, const Names& names, Activation activation, sae::TrainerConfig config, Terms objective) {
  CAPTURE(name);
  const sae_test::PeerRun run(name);
  const auto& trace = run.expected.at("trace");
  Model<Activation> model(run.d_in, run.latents, activation);
  load(run, names, "init", model.parameters());

  {  // the gradient at step 0, as the peer's autograd leaves it
    Model<Activation> start = model;
    if (config.center == sae::Center::first_batch_geometric_median)
      start.parameters().b_dec = run.tensor("init_after_median", names.b_dec, false);
    typename Model<Activation>::template Workspace<Terms> workspace;
    workspace.step.sparsity_scale = sae::sparsity_warmup_factor(0, config.sparsity_warmup);
    std::vector<std::uint8_t> dead(static_cast<std::size_t>(run.latents), 0);
    if (trace[0].contains("dead_latents"))
      for (const auto& i : trace[0].at("dead_latents")) dead[i.template get<std::size_t>()] = 1;
    workspace.step.dead = dead;
    auto gradient = start.gradient(run.x.topRows(run.rows), objective, workspace);
    typename Model<Activation>::Parameters want;
    load(run, names, "grad", want);
    require_close(gradient.parameters, want, 1e-9);
    REQUIRE(std::abs(gradient.loss.total - trace[0].at("loss").template get<double>()) <= 1e-9 * gradient.loss.total);
  }

  config.steps = 10;
  config.batch = run.rows;
  config.normalisation = sae::Normalisation::none;
  sae::Threads threads(2);
  sae::Trainer trainer(model, config, objective, threads);
  const auto& counters = run.expected.at("initial_counters");
  for (std::size_t i = 0; i < counters.size(); ++i)
    trainer.dead_latents().silent()[i] = counters[i].template get<std::int64_t>();
  auto source = run.source();
  Index seen = 0;
  trainer.fit(source, [&](const sae::StepReport& report) {
    const auto& want = trace[static_cast<std::size_t>(report.step - 1)];
    CAPTURE(report.step);
    ++seen;
    REQUIRE(std::abs(report.loss - want.at("loss").template get<double>()) <= 1e-9 * report.loss);
    REQUIRE(std::abs(report.learning_rate - want.at("lr").template get<double>()) <= 1e-15);
    REQUIRE(std::abs(report.l0 - want.at("l0").template get<double>()) <= 1e-12);
    if (want.contains("dead_latents")) REQUIRE(report.dead == static_cast<Index>(want.at("dead_latents").size()));
    if (config.clip_norm > 0 && config.decoder == sae::DecoderNorm::free)
      REQUIRE(std::abs(report.gradient_norm - want.at("grad_norm").template get<double>()) <= 1e-9 * report.gradient_norm);
    const std::array<std::pair<const char*, const Tensor<double>*>, 4> tensors{{{names.W_enc, &model.parameters().W_enc},
                                                                                {names.b_enc, &model.parameters().b_enc},
                                                                                {names.W_dec, &model.parameters().W_dec},
                                                                                {names.b_dec, &model.parameters().b_dec}}};
    for (const auto& [tensor_name, tensor] : tensors) {
      CAPTURE(tensor_name);
      const double norm = want.at("params_after").at(tensor_name)[1].template get<double>();
      REQUIRE(std::abs(tensor->map().norm() - norm) <= 1e-9 * norm);
    }
    Model<Activation>::Parameters::visit_activation(
        [&](std::string_view tensor_name, const auto& tensor) {
          CAPTURE(tensor_name);
          const double norm = want.at("params_after").at(std::string(tensor_name))[1].template get<double>();
          REQUIRE(std::abs(tensor.map().norm() - norm) <= 1e-9 * norm);
        },
        model.parameters());
  });
  REQUIRE(seen == 10);
  typename Model<Activation>::Parameters want;
  load(run, names, "final", want);
  want.activation.constrain();  // the peer does it before the next forward, ours at the end, too
  require_close(model.parameters(), want, 1e-9);
}

sae::TrainerConfig saelens_config() {
  return {.learning_rate = 0.01,
          .clip_norm = 1.0,
          .decoder = sae::DecoderNorm::free,
          .center = sae::Center::none,
          .dead = {.window = 1001, .unit = sae::DeadUnit::steps}};  // the peer: dead after more than 1000 steps
}

}  // namespace

TEST_CASE("ten steps of SAELens: standard, L1 weighted by decoder norms, warm-ups and decay", "[training][peers]") {
  auto config = saelens_config();
  config.schedule = {.warmup = 3, .decay = 3};
  config.sparsity_warmup = 4;
  replay("saelens_standard_l1", saelens, sae::ReLU{}, config, sae::Objective{sae::L1{.coefficient = 1.5}});
}

TEST_CASE("ten steps of SAELens: TopK ranked by decoder norm, few dead latents", "[training][peers]") {
  auto config = saelens_config();
  replay("saelens_topk_auxk_few_dead", saelens, sae::TopK{.k = 6, .rank_by_decoder_norm = true}, config,
         sae::Objective{sae::AuxK{.coefficient = 1, .raw_values = true, .rank_by_decoder_norm = true}});
}

TEST_CASE("ten steps of SAELens: TopK, more dead latents than AuxK takes", "[training][peers]") {
  auto config = saelens_config();
  config.schedule = {.warmup = 4};
  replay("saelens_topk_auxk_many_dead", saelens, sae::TopK{.k = 6}, config,
         sae::Objective{sae::AuxK{.coefficient = 0.5, .raw_values = true}});
}

TEST_CASE("ten steps of SAELens: JumpReLU, every form of its penalty", "[training][peers]") {
  const auto config = saelens_config();
  const sae::PreActivationLoss dead_up{.coefficient = 0.05};
  auto warm = config;
  warm.sparsity_warmup = 3;
  replay("saelens_jumprelu_step", saelens, sae::JumpReLU{.bandwidth = 0.4}, warm,
         sae::Objective{sae::L0Penalty{.coefficient = 0.3}, dead_up});
  replay("saelens_jumprelu_step_constant", saelens, sae::JumpReLU{.bandwidth = 0.4}, config,
         sae::Objective{sae::L0Penalty{.coefficient = 0.3}, dead_up});
  replay("saelens_jumprelu_quadratic", saelens, sae::JumpReLU{.bandwidth = 0.4}, config,
         sae::Objective{sae::L0Penalty{.coefficient = 0.05, .form = sae::L0Form::quadratic, .target = 8}});
  replay("saelens_jumprelu_tanh", saelens, sae::JumpReLU{.bandwidth = 1}, config,
         sae::Objective{sae::TanhPenalty{.coefficient = 0.5, .scale = 2}, dead_up});
  replay("saelens_jumprelu_step_ste_input", saelens, sae::JumpReLU{.bandwidth = 0.4, .gradient_to_input = true}, config,
         sae::Objective{sae::L0Penalty{.coefficient = 0.3}});
  replay("saelens_jumprelu_tanh_ste_input", saelens, sae::JumpReLU{.bandwidth = 1, .gradient_to_input = true}, config,
         sae::Objective{sae::TanhPenalty{.coefficient = 0.5, .scale = 2}});
}

TEST_CASE("ten steps of dictionary_learning: StandardTrainer, unit norm by projection", "[training][peers]") {
  sae::TrainerConfig config{.learning_rate = 0.01, .center = sae::Center::none};
  config.schedule = {.warmup = 3, .warmup_shape = sae::WarmupShape::from_zero, .decay = 3};
  config.sparsity_warmup = 4;
  replay("dl_standard", dl_autoencoder, sae::ReLU{}, config,
         sae::Objective{sae::L1{.coefficient = 0.6, .weighted_by_decoder_norm = false}});
}

TEST_CASE("ten steps of dictionary_learning: StandardTrainerAprilUpdate, free decoder", "[training][peers]") {
  replay("dl_standard_april", dl_autoencoder, sae::ReLU{}, saelens_config(), sae::Objective{sae::L1{.coefficient = 0.6}});
}

TEST_CASE("ten steps of dictionary_learning: TopKTrainer, geometric median, AuxK after counting", "[training][peers]") {
  sae::TrainerConfig config{.learning_rate = 0.01,
                            .clip_norm = 1.0,
                            .projection_epsilon = 1e-6,
                            .unit_norm_epsilon = std::numeric_limits<double>::epsilon(),
                            .center = sae::Center::first_batch_geometric_median};
  config.dead = {.window = 10'000'000, .after_counting = true};
  replay("dl_topk", dl_topk, sae::TopK{.k = 6}, config,
         sae::Objective{sae::AuxK{.scale_by_dead = false, .normaliser = sae::AuxKNormaliser::residual_variance}});
}
