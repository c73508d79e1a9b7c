// Ten training steps of SAELens and dictionary_learning, gone again by our Trainer in double: Gated, the Lp family, p-annealing.
// Loss, gradient and every parameter. What rests on a defect of a peer is reproduced by a term of this file.
#include <sae/activations/gated.hpp>
#include <sae/training/gated_aux.hpp>
#include <sae/training/lp.hpp>
#include <sae/training/p_anneal.hpp>
#include <sae/training/trainer.hpp>

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "catch_compat.hpp"
#include "peer_fixture.hpp"

namespace {

using sae::Index;
using sae::Tensor;

struct Names {
  const char *W_enc, *b_enc, *W_dec, *b_dec;
  bool encoder_transposed, decoder_transposed;
  const char *b_gate = "b_gate", *b_mag = "b_mag", *r_mag = "r_mag";

  std::string own(std::string_view ours) const { return ours == "b_gate" ? b_gate : ours == "b_mag" ? b_mag : r_mag; }
};
constexpr Names saelens{"W_enc", "b_enc", "W_dec", "b_dec", true, false};
constexpr Names dl_autoencoder{"encoder.weight", "encoder.bias", "decoder.weight", "bias", false, true};
constexpr Names dl_autoencoder_new{"encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias", false, true};
constexpr Names dl_gated{"encoder.weight", nullptr,    "decoder.weight", "decoder_bias", false, true,
                         "gate_bias",      "mag_bias", "r_mag"};

template <class Activation>
using Model = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, Activation, double>;

template <class Parameters>
void load(const sae_test::PeerRun& run, const Names& names, const std::string& when, Parameters& p) {
  p.W_enc = run.tensor(when, names.W_enc, names.encoder_transposed);
  if (p.b_enc.size() > 0) p.b_enc = run.tensor(when, names.b_enc, false);
  p.W_dec = run.tensor(when, names.W_dec, names.decoder_transposed);
  p.b_dec = run.tensor(when, names.b_dec, false);
  Parameters::visit_activation([&](std::string_view name, auto& tensor) { tensor = run.tensor(when, names.own(name), false); },
                               p);
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

struct Nothing {
  void operator()(const auto&, Index) const {}
};
template <class Activation, class Terms, class Look = Nothing>
void replay(const std::string& name, const Names& names, Activation activation, sae::TrainerConfig config, Terms objective,
            sae::ModelOptions options = {}, const Look& look = {}) {
  CAPTURE(name);
  const sae_test::PeerRun run(name);
  const auto& trace = run.expected.at("trace");
  Model<Activation> model(run.d_in, run.latents, activation, options);
  load(run, names, "init", model.parameters());

  {  // the gradient at step 0, as the peer's autograd leaves it
    typename Model<Activation>::template Workspace<Terms> workspace;
    workspace.step.sparsity_scale = sae::sparsity_warmup_factor(0, config.sparsity_warmup);
    auto gradient = model.gradient(run.x.topRows(run.rows), objective, workspace);
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
  auto source = run.source();
  Index seen = 0;
  trainer.fit(source, [&](const sae::StepReport& report) {
    const auto& want = trace[static_cast<std::size_t>(report.step - 1)];
    CAPTURE(report.step);
    ++seen;
    REQUIRE(std::abs(report.loss - want.at("loss").template get<double>()) <= 1e-9 * report.loss);
    REQUIRE(std::abs(report.learning_rate - want.at("lr").template get<double>()) <= 1e-15);
    REQUIRE(std::abs(report.l0 - want.at("l0").template get<double>()) <= 1e-12);
    if (config.clip_norm > 0 && config.decoder == sae::DecoderNorm::free)
      REQUIRE(std::abs(report.gradient_norm - want.at("grad_norm").template get<double>()) <= 1e-9 * report.gradient_norm);
    const auto check_norm = [&](const std::string& tensor_name, const auto& tensor) {
      CAPTURE(tensor_name);
      const double norm = want.at("params_after").at(tensor_name)[1].template get<double>();
      REQUIRE(std::abs(tensor.map().norm() - norm) <= 1e-9 * norm);
    };
    const auto& p = model.parameters();
    check_norm(names.W_enc, p.W_enc);
    if (p.b_enc.size() > 0) check_norm(names.b_enc, p.b_enc);
    check_norm(names.W_dec, p.W_dec);
    check_norm(names.b_dec, p.b_dec);
    Model<Activation>::Parameters::visit_activation(
        [&](std::string_view own, const auto& tensor) { check_norm(names.own(own), tensor); }, p);
    look(trainer, report.step);
  });
  REQUIRE(seen == 10);
  typename Model<Activation>::Parameters want;
  load(run, names, "final", want);
  require_close(model.parameters(), want, 1e-9);
}

sae::TrainerConfig saelens_config() {
  return {.learning_rate = 0.01, .clip_norm = 1.0, .decoder = sae::DecoderNorm::free, .center = sae::Center::none};
}
sae::TrainerConfig dl_config() { return {.learning_rate = 0.01, .center = sae::Center::none}; }

// coefficient mean_b sum_i f |d_i|^2: what dictionary_learning's April trainer charges an AutoEncoderNew, whose codes are multiplied
// by the decoder norms already when its loss multiplies by them.
struct NormsTwice {
  double coefficient = 1;
  static constexpr std::string_view name = "norms_twice";
  void check(Index, Index) const {}
  bool needs_decoder_norms() const { return true; }
  template <class Step>
  double apply(Step& step, sae::NoSelection&, sae::Threads&) const {
    const double scale = coefficient / static_cast<double>(step.rows());
    const auto& codes = step.main.entries.codes;
    double sum = 0;
    for (Index e = 0; e < codes.size(); ++e) {
      const Index i = codes.latent(e);
      const double norm = step.decoder_norms[i];
      sum += scale * codes.value(e) * norm * norm;
      if (!step.wants_gradient) continue;
      step.main.df[static_cast<std::size_t>(e)] += scale * norm * norm;
      step.norm_gradient()[static_cast<std::size_t>(i)] += scale * codes.value(e) * 2 * norm;
    }
    return sum;
  }
};

}  // namespace

TEST_CASE("ten steps of SAELens: Gated, second reconstruction through the decoder, L1 weighted", "[training][peers]") {
  replay("saelens_gated", saelens, sae::Gated{}, saelens_config(),
         sae::Objective{sae::GatedAux{.coefficient = 0.8, .detach_decoder = false, .weighted_by_decoder_norm = true}});
}

TEST_CASE("ten steps of dictionary_learning: Gated, second reconstruction detached", "[training][peers]") {
  auto config = dl_config();
  config.adam.beta1 = 0;
  replay("dl_gated", dl_gated, sae::Gated{}, config, sae::Objective{sae::GatedAux{.coefficient = 0.6}});
}

TEST_CASE("ten steps of SAELens: standard, the p-norm with p = 0.7, b_dec not subtracted", "[training][peers]") {
  replay("saelens_standard_lp", saelens, sae::ReLU{}, saelens_config(),
         sae::Objective{sae::Lp{.coefficient = 0.05, .p = 0.7, .form = sae::LpForm::norm}}, {.subtract_decoder_bias = false});
}

TEST_CASE("ten steps of SAELens: standard, L1, no warm-ups", "[training][peers]") {
  const auto config = saelens_config();
  replay("saelens_standard_l1_constant", saelens, sae::ReLU{}, config, sae::Objective{sae::L1{.coefficient = 1.5}});
  replay("saelens_standard_l1_constant", saelens, sae::ReLU{}, config, sae::Objective{sae::Lp{.coefficient = 1.5}});
}

TEST_CASE("ten steps of dictionary_learning: StandardTrainer, no warm-ups", "[training][peers]") {
  replay("dl_standard_constant", dl_autoencoder, sae::ReLU{}, dl_config(),
         sae::Objective{sae::L1{.coefficient = 0.6, .weighted_by_decoder_norm = false}});
}

TEST_CASE("ten steps of dictionary_learning: StandardTrainerAprilUpdate with AutoEncoderNew, norms counted twice",
          "[training][peers]") {
  replay("dl_standard_april_new", dl_autoencoder_new, sae::ReLU{}, saelens_config(), sae::Objective{NormsTwice{0.6}},
         {.subtract_decoder_bias = false});

  // What L1 makes of the same model and batch: the norms once.
  const sae_test::PeerRun run("dl_standard_april_new");
  Model<sae::ReLU> model(run.d_in, run.latents, {}, {.subtract_decoder_bias = false});
  load(run, dl_autoencoder_new, "init", model.parameters());
  const sae::Matrix<double> x = run.x.topRows(run.rows);
  const sae::Matrix<double> f = ((x * model.W_enc().transpose()).rowwise() + model.b_enc().row(0)).cwiseMax(0.0);
  const double once = (f * model.W_dec().rowwise().norm()).sum() / static_cast<double>(run.rows);
  const double twice = (f * model.W_dec().rowwise().squaredNorm()).sum() / static_cast<double>(run.rows);
  CHECK(model.loss(x, sae::Objective{sae::L1{.coefficient = 0.6}}).terms[0].second == Approx(0.6 * once).epsilon(1e-12));
  CHECK(run.expected.at("trace")[0].at("losses").at("sparsity_loss").get<double>() == Approx(twice).epsilon(1e-12));
  CHECK(std::abs(once - twice) > 0.1 * once);
}

TEST_CASE("ten steps of dictionary_learning: PAnnealTrainer, sum and norm", "[training][peers]") {
  const auto follow = [](const std::string& name, sae::PAnneal term) {
    const sae_test::PeerRun run(name);
    replay(name, dl_autoencoder, sae::ReLU{}, dl_config(), sae::Objective{term}, {}, [&](const auto& trainer, Index step) {
      const auto& want = run.expected.at("trace")[static_cast<std::size_t>(step - 1)];
      const auto& got = std::get<0>(trainer.objective().terms);
      REQUIRE(std::abs(got.p() - want.at("p_after").template get<double>()) <= 1e-15);
      const double alpha = want.at("sparsity_coeff_after").template get<double>();
      REQUIRE(std::abs(got.alpha() - alpha) <= 1e-12 * alpha);
    });
  };
  // The peer's p_end is 0, at a step after the last: what is trained with ends at 0.25.
  follow("dl_p_anneal_lpp", {.coefficient = 0.3,
                             .form = sae::LpForm::sum,
                             .p_end = 0.25,
                             .updates = 4,
                             .anneal_start = 2,
                             .anneal_end = 8,
                             .window = 3});
  follow("dl_p_anneal_lp", {.coefficient = 0.01,
                            .form = sae::LpForm::norm,
                            .p_end = 0.5,
                            .updates = 5,
                            .anneal_start = 2,
                            .anneal_end = 10,
                            .window = 3});
}
