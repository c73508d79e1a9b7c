#pragma once
// Ten training steps of a peer, gone again by our Trainer in double: the gradient at step 0, then loss, learning rate, L0 and the
// norm of every parameter after each step, and every parameter at the end.
#include <sae/training/recipes.hpp>

#include <cmath>
#include <limits>
#include <string>

#include "catch_compat.hpp"
#include "peer_fixture.hpp"

namespace sae_test {

using sae::Index;
using sae::Tensor;

/// What a peer calls its tensors (null: it has none), and which of them it keeps the other way round.
struct Names {
  const char *W_enc, *b_enc, *W_dec, *b_dec;
  bool encoder_transposed, decoder_transposed;
  /// What it calls the activation's own tensors where not by our names.
  const char *b_gate = "b_gate", *b_mag = "b_mag";

  std::string own(std::string_view ours) const {
    return ours == "b_gate" ? b_gate : ours == "b_mag" ? b_mag : std::string(ours);
  }
};
inline constexpr Names saelens{"W_enc", "b_enc", "W_dec", "b_dec", true, false};
inline constexpr Names saelens_tied{nullptr, nullptr, "W_dec", "b_dec", true, false};
inline constexpr Names saelens_gated{"W_enc", nullptr, "W_dec", "b_dec", true, false};
inline constexpr Names dl_autoencoder{"encoder.weight", "encoder.bias", "decoder.weight", "bias", false, true};
inline constexpr Names dl_autoencoder_new{"encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias", false, true};
inline constexpr Names dl_gated{"encoder.weight", nullptr,   "decoder.weight", "decoder_bias", false, true,
                                "gate_bias",      "mag_bias"};
inline constexpr Names dl_topk{"encoder.weight", "encoder.bias", "decoder.weight", "b_dec", false, true};

template <class Activation>
using PeerModel = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, Activation, double>;

/// The shapes of other parameters, all NaN: a tensor that no file fills then equals nothing.
template <class Parameters>
Parameters unfilled(const Parameters& like) {
  Parameters out = like;
  Parameters::visit([](std::string_view, auto& tensor) { tensor.map().setConstant(std::numeric_limits<double>::quiet_NaN()); },
                    out);
  return out;
}
template <class Parameters>
void load_peer(const sae_test::PeerRun& run, const Names& names, const std::string& when, Parameters& p) {
  if (names.W_enc != nullptr) p.W_enc = run.tensor(when, names.W_enc, names.encoder_transposed);
  if (names.b_enc != nullptr) p.b_enc = run.tensor(when, names.b_enc, false);
  p.W_dec = run.tensor(when, names.W_dec, names.decoder_transposed);
  p.b_dec = run.tensor(when, names.b_dec, false);
  Parameters::visit_activation([&](std::string_view name, auto& tensor) { tensor = run.tensor(when, names.own(name), false); },
                               p);
}

/// Largest difference relative to the largest number expected; NaN where anything is NaN.
inline double peer_error(const Tensor<double>& got, const Tensor<double>& want) {
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
        REQUIRE(peer_error(a, b) <= bound);
      },
      got, want);
}

/// each_step(trainer, trace of the step) runs after every step.
template <class Activation, class Terms, class EachStep>
void replay(const std::string& name, const Names& names, Activation activation, sae::TrainerConfig config, Terms objective,
            const EachStep& each_step, sae::ModelOptions options = {}) {
  CAPTURE(name);
  const sae_test::PeerRun run(name);
  const auto& trace = run.expected.at("trace");
  PeerModel<Activation> model(run.d_in, run.latents, activation, options);
  load_peer(run, names, "init", model.parameters());

  {  // the gradient at step 0, as the peer's autograd leaves it
    PeerModel<Activation> start = model;
    if (config.center == sae::Center::first_batch_geometric_median)
      start.parameters().b_dec = run.tensor("init_after_median", names.b_dec, false);
    typename PeerModel<Activation>::template Workspace<Terms> workspace;
    workspace.step.sparsity_scale = sae::sparsity_warmup_factor(0, config.sparsity_warmup);
    std::vector<std::uint8_t> dead(static_cast<std::size_t>(run.latents), 0);
    if (trace[0].contains("dead_latents"))
      for (const auto& i : trace[0].at("dead_latents")) dead[i.template get<std::size_t>()] = 1;
    workspace.step.dead = dead;
    auto gradient = start.gradient(run.x.topRows(run.rows), objective, workspace);
    auto want = unfilled(start.parameters());
    load_peer(run, names, "grad", want);
    require_close(gradient.parameters, want, 1e-9);
    REQUIRE(std::abs(gradient.loss.total - trace[0].at("loss").template get<double>()) <= 1e-9 * gradient.loss.total);
  }

  config.steps = 10;
  config.batch = run.rows;
  config.normalisation = sae::Normalisation::none;
  sae::Threads threads(2);
  sae::Trainer trainer(model, config, objective, threads);
  const auto counters = run.expected.value("initial_counters", nlohmann::json::array());
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
    const auto check_norm = [&](const std::string& tensor_name, const auto& tensor) {
      CAPTURE(tensor_name);
      const double norm = want.at("params_after").at(tensor_name)[1].template get<double>();
      REQUIRE(std::abs(tensor.map().norm() - norm) <= 1e-9 * norm);
    };
    const auto& p = model.parameters();
    if (names.W_enc != nullptr) check_norm(names.W_enc, p.W_enc);
    if (names.b_enc != nullptr) check_norm(names.b_enc, p.b_enc);
    check_norm(names.W_dec, p.W_dec);
    check_norm(names.b_dec, p.b_dec);
    PeerModel<Activation>::Parameters::visit_activation(
        [&](std::string_view own, const auto& tensor) { check_norm(names.own(own), tensor); }, p);
    each_step(std::as_const(trainer), want);
  });
  REQUIRE(seen == 10);
  auto want = unfilled(model.parameters());
  load_peer(run, names, "final", want);
  want.activation.constrain();  // the peer does it before the next forward, ours at the end, too
  require_close(model.parameters(), want, 1e-9);
}

template <class Activation, class Terms>
void replay(const std::string& name, const Names& names, Activation activation, sae::TrainerConfig config, Terms objective,
            sae::ModelOptions options = {}) {
  replay(
      name, names, activation, config, objective, [](const auto&, const auto&) {}, options);
}

/// The recipe at the sizes of a fixture. All of them train at 0.01 and, where a test says nothing else, without warm-ups and decay.
inline sae::Recipe peer_recipe(std::string_view name, sae::RecipeProblem problem) {
  problem.d_in = 24;
  problem.latents = 56;
  problem.steps = 10;
  problem.batch = 16;
  sae::Recipe out = sae::recipe(name, problem);
  out.config.learning_rate = 0.01;
  out.config.schedule = {};
  out.config.sparsity_warmup = 0;
  return out;
}
template <class EachStep>
void replay(const std::string& name, const Names& names, const sae::Recipe& recipe, const EachStep& each_step) {
  replay(name, names, recipe.activation, recipe.config, recipe.objective, each_step,
         {.subtract_decoder_bias = recipe.subtract_decoder_bias, .input_normalisation = recipe.input_normalisation});
}
inline void replay(const std::string& name, const Names& names, const sae::Recipe& recipe) {
  replay(name, names, recipe, [](const auto&, const auto&) {});
}
/// BatchTopK's, of a model whose activation is chosen at run time.
template <class Model>
double running_threshold(const Model& model) {
  return model.activation().template get<sae::BatchTopK>()->threshold(
      *model.parameters().activation.template get<sae::BatchTopK>());
}

}  // namespace sae_test
