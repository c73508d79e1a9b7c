// Gated and its term: by hand, against a naive loss in dense matrices by central differences, and as a JumpReLU.
#include <sae/activations/gated.hpp>
#include <sae/data/indexed_source.hpp>
#include <sae/models/jump_relu_conversion.hpp>
#include <sae/training/gated_aux.hpp>
#include <sae/training/trainer.hpp>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "catch_compat.hpp"
#include "gradient_check.hpp"

namespace {

using sae::Index;
using sae_test::central_differences;
using sae_test::Dense;
using sae_test::random_rows;
using sae_test::relative_error;
using Model = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::Gated, double>;
using Terms = sae::Objective<sae::GatedAux>;

constexpr Index width = 6, latents = 70, rows = 9;  // two blocks of latents, the second one short

// b_gate and b_mag around `gate`: far below 0 few gates are open, far above most.
Model some_model(bool subtract, double gate) {
  Model model(width, latents, {}, {.subtract_decoder_bias = subtract});
  sae_test::randomise(model, 5);
  model.parameters().b_enc.set_zero();
  auto& own = model.parameters().activation;
  own.b_gate.map() = (random_rows(1, latents, 21, 0.3).array() + gate).matrix();
  own.b_mag.map() = (random_rows(1, latents, 22, 0.6).array() + gate).matrix();
  own.r_mag.map() = random_rows(1, latents, 23, 0.4);
  return model;
}

// The formulas of the two headers with nothing sparse; gates and signs of m as they are at the model, and W_dec and b_dec of the
// second reconstruction, where detached.
struct Naive {
  Dense W_enc, W_dec, b_dec, b_gate, b_mag, r_mag;
  bool subtract;

  explicit Naive(const Model& model)
      : W_enc(model.W_enc()),
        W_dec(model.W_dec()),
        b_dec(model.b_dec()),
        b_gate(model.parameters().activation.b_gate.map()),
        b_mag(model.parameters().activation.b_mag.map()),
        r_mag(model.parameters().activation.r_mag.map()),
        subtract(model.subtracts_decoder_bias()) {}

  double p(const Dense& x, Index b, Index i) const {
    double sum = 0;
    for (Index j = 0; j < x.cols(); ++j) sum += (x(b, j) - (subtract ? b_dec(0, j) : 0.0)) * W_enc(i, j);
    return sum;
  }
  double pi(const Dense& x, Index b, Index i) const { return p(x, b, i) + b_gate(0, i); }
  double m(const Dense& x, Index b, Index i) const { return p(x, b, i) * std::exp(r_mag(0, i)) + b_mag(0, i); }
};
struct Loss {
  Dense x;
  Naive at;  // what is held constant is computed here
  sae::GatedAux term;
  double warmup;

  double reconstruction(const Naive& n) const { return error(n, false, n.W_dec, n.b_dec); }
  double auxiliary(const Naive& n) const {
    const Naive& decoder = term.detach_decoder ? at : n;
    double penalty = 0;
    for (Index b = 0; b < x.rows(); ++b)
      for (Index i = 0; i < latents; ++i)
        if (at.pi(x, b, i) > 0) penalty += n.pi(x, b, i) * (term.weighted_by_decoder_norm ? n.W_dec.row(i).norm() : 1.0);
    return error(n, true, decoder.W_dec, decoder.b_dec) + term.coefficient * warmup * penalty / static_cast<double>(x.rows());
  }
  double operator()(const Naive& n) const { return reconstruction(n) + auxiliary(n); }

 private:
  double error(const Naive& n, bool gates_alone, const Dense& W_dec, const Dense& b_dec) const {
    double sum = 0;
    for (Index b = 0; b < x.rows(); ++b) {
      Dense e = b_dec - x.row(b);
      for (Index i = 0; i < latents; ++i) {
        if (!(at.pi(x, b, i) > 0)) continue;
        if (gates_alone) e += n.pi(x, b, i) * W_dec.row(i);
        if (!gates_alone && at.m(x, b, i) > 0) e += n.m(x, b, i) * W_dec.row(i);
      }
      sum += e.squaredNorm();
    }
    return sum / static_cast<double>(x.rows());
  }
};

}  // namespace

TEST_CASE("Gated: codes and gradients by hand", "[activations][gated]") {
  sae::SparseAutoencoder<2, 4, sae::Gated, double> model({}, {.subtract_decoder_bias = false});
  model.W_enc() << 1, 0, 0, 1, 1, 1, 1, -1;
  model.W_dec() << 1, 0, 0, 1, 0, 2, 3, 4;
  auto& own = model.parameters().activation;
  own.b_gate.map() << -1, 0.5, -2, 0;
  own.b_mag.map() << 0.25, -3, 1, 0;
  own.r_mag.map() << std::log(2.0), 0, 0, 0;
  Dense x(1, 2), want(1, 4);
  x << 2, 1;
  // P = 2, 1, 3, 1; pi = 1, 1.5, 1, 1; m = 4.25, -2, 4, 1: latent 1 has an open gate and the code 0.
  want << 4.25, 0, 4, 1;
  CHECK(sae_test::largest_difference(model.encode_dense(x), want) <= 1e-15);
  CHECK(model.encode(x).size() == 3);

  // x' = (4.25 + 3, 8 + 4), x' - x = (5.25, 11); rho = (1, 1.5, 1, 1): x~ - x = (1 + 3 - 2, 1.5 + 2 + 4 - 1) = (2, 6.5).
  const sae::GatedAux term{.coefficient = 10, .detach_decoder = false, .weighted_by_decoder_norm = true};
  sae::SparseAutoencoder<2, 4, sae::Gated, double>::Workspace<Terms> workspace;
  workspace.step.sparsity_scale = 0.5;
  const auto got = model.gradient(x, sae::Objective{term}, workspace);
  CHECK(got.loss.reconstruction == Approx(5.25 * 5.25 + 121));
  CHECK(got.loss.terms[0].first == "gated_aux");
  CHECK(got.loss.terms[0].second == Approx(5 * (1 + 1.5 + 2 + 5) + 4 + 6.5 * 6.5));
  // G = (10.5, 22), df = G . d = 10.5, -, 44, 119.5; G~ = (4, 13), dpi = G~ . d + 5 n = 9, 18, 36, 89.
  Dense gate(1, 4), magnitude(1, 4), scale(1, 4), b_dec(1, 2), W_dec(4, 2), W_enc(4, 2);
  gate << 4 + 5, 13 + 5, 26 + 10, 12 + 52 + 25;
  magnitude << 10.5, 0, 44, 119.5;
  scale << 10.5 * 4, 0, 44 * 3, 119.5 * 1;
  b_dec << 10.5 + 4, 22 + 13;
  W_dec << 4.25 * 10.5 + 4 + 5, 4.25 * 22 + 13, 1.5 * 4, 1.5 * 13 + 7.5, 4 * 10.5 + 4, 4 * 22 + 13 + 5, 10.5 + 4 + 3,
      22 + 13 + 4;
  const double dp[] = {21 + 9, 18, 44 + 36, 119.5 + 89};
  for (Index i = 0; i < 4; ++i) W_enc.row(i) = dp[i] * x.row(0);
  CHECK(relative_error(got.parameters.activation.b_gate.map(), gate) <= 1e-14);
  CHECK(relative_error(got.parameters.activation.b_mag.map(), magnitude) <= 1e-14);
  CHECK(relative_error(got.parameters.activation.r_mag.map(), scale) <= 1e-14);
  CHECK(relative_error(got.parameters.b_dec.map(), b_dec) <= 1e-14);
  CHECK(relative_error(got.parameters.W_dec.map(), W_dec) <= 1e-14);
  CHECK(relative_error(got.parameters.W_enc.map(), W_enc) <= 1e-14);
  CHECK(got.parameters.b_enc.size() == 0);
}

TEST_CASE("Gated: a gate at 0 is closed, NaN opens none", "[activations][gated]") {
  sae::SparseAutoencoder<2, 2, sae::Gated, double> model;
  model.W_enc().setIdentity();
  model.parameters().activation.b_gate.map() << -0.5, -0.5;
  model.parameters().activation.b_mag.map() << 1, 1;
  Dense x(1, 2);
  x << 0.5, 0.75;
  CHECK(model.encode(x).indices().size() == 1);
  CHECK(model.encode(x).coefficient(0, 1) == 1.75);
  x << std::numeric_limits<double>::quiet_NaN(), 0.75;
  CHECK(model.encode(x).size() == 0);
}

TEST_CASE("Gated: every gradient by central differences", "[activations][gated]") {
  sae::Threads threads(2);
  for (const bool subtract : {true, false})
    for (const double gate : {-1.6, 0.0, 1.2})
      for (const bool detach : {true, false})
        for (const bool weighted : {true, false}) {
          CAPTURE(subtract, gate, detach, weighted);
          const Model model = some_model(subtract, gate);
          const Dense x = random_rows(rows, width, 1);
          const sae::GatedAux term{.coefficient = 0.7, .detach_decoder = detach, .weighted_by_decoder_norm = weighted};
          const Loss loss{x, Naive(model), term, 0.25};
          Naive moved = loss.at;
          const auto at = [&] { return loss(moved); };
          Model::Workspace<Terms> workspace;
          workspace.step.sparsity_scale = 0.25;
          const auto got = model.gradient(x, sae::Objective{term}, workspace, threads);
          const auto& own = got.parameters.activation;
          Index open = 0, closed_codes = 0;
          for (Index b = 0; b < rows; ++b)
            for (Index i = 0; i < latents; ++i)
              if (loss.at.pi(x, b, i) > 0) {
                ++open;
                if (loss.at.m(x, b, i) <= 0) ++closed_codes;
              }
          REQUIRE(closed_codes > 3);
          REQUIRE(workspace.step.main.entries.size() == open - closed_codes);
          if (gate < -1) REQUIRE(open * 5 < rows * latents);  // both sides of the switch-over to dense products
          if (gate > 1) REQUIRE(open * 5 > 3 * rows * latents);

          CHECK(got.loss.reconstruction == Approx(loss.reconstruction(loss.at)).epsilon(1e-12));
          CHECK(got.loss.terms[0].second == Approx(loss.auxiliary(loss.at)).epsilon(1e-12));
          CHECK(model.loss(x, sae::Objective{term}).total > got.loss.total);  // no warm-up there
          CHECK(relative_error(got.parameters.W_enc.map(), central_differences(moved.W_enc, at)) <= 1e-6);
          CHECK(relative_error(got.parameters.W_dec.map(), central_differences(moved.W_dec, at)) <= 1e-6);
          CHECK(relative_error(got.parameters.b_dec.map(), central_differences(moved.b_dec, at)) <= 1e-6);
          CHECK(relative_error(own.b_gate.map(), central_differences(moved.b_gate, at)) <= 1e-6);
          CHECK(relative_error(own.b_mag.map(), central_differences(moved.b_mag, at)) <= 1e-6);
          CHECK(relative_error(own.r_mag.map(), central_differences(moved.r_mag, at)) <= 1e-6);
          CHECK(got.parameters.b_enc.size() == 0);
        }
}

TEST_CASE("Gated: without its term no gradient reaches the gates", "[activations][gated]") {
  const Model model = some_model(true, 0);
  const Dense x = random_rows(rows, width, 3);
  const auto got = model.gradient(x);
  CHECK(got.parameters.activation.b_gate.map().isZero(0));
  CHECK_FALSE(got.parameters.activation.b_mag.map().isZero(0));
}

TEST_CASE("Gated: folding the scale of the rows and the decoder's norms changes nothing", "[activations][gated]") {
  Model model = some_model(true, 0);
  const Dense x = random_rows(rows, width, 2);
  const Dense before = model.reconstruct(x);
  Model folded = model;
  folded.fold_decoder_norms();
  CHECK(folded.W_dec().rowwise().norm().isOnes(1e-12));
  CHECK(folded.encode(x).size() == model.encode(x).size());
  CHECK(relative_error(folded.reconstruct(x), before) <= 1e-12);
  model.fold_input_scale(0.25);
  CHECK(relative_error(model.reconstruct(4 * x), 4 * before) <= 1e-12);
}

TEST_CASE("Gated has no b_enc: it is empty and not visited, in a training clipped or not", "[activations][gated]") {
  std::vector<std::string> names;
  const Model named = some_model(true, 0);
  sae::for_each_parameter(named, [&](std::string_view name, const auto&) { names.emplace_back(name); });
  CHECK(names == std::vector<std::string>{"W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag"});

  const Dense x = random_rows(64, width, 4);
  for (const double clip : {0.0, 1e9}) {
    CAPTURE(clip);
    std::vector<Model> trained;
    for (const int count : {1, 3}) {
      sae::Threads threads(count);
      Model model = some_model(true, 0);
      sae::MatrixSource<double> source(x);
      sae::Trainer trainer(model, {.steps = 20, .batch = 16, .learning_rate = 1e-2, .clip_norm = clip},
                           sae::Objective{sae::GatedAux{.coefficient = 0.1, .detach_decoder = false}}, threads);
      trainer.fit(source);
      CHECK(model.parameters().b_enc.size() == 0);
      CHECK(sae_test::largest_difference(model.parameters().activation.b_gate.map(),
                                         named.parameters().activation.b_gate.map()) > 1e-3);
      trained.push_back(std::move(model));
    }
    Model::Parameters::visit(
        [](std::string_view name, const auto& one, const auto& other) {
          CAPTURE(name);
          CHECK(one == other);
        },
        trained[0].parameters(), trained[1].parameters());
  }
}

TEST_CASE("Gated trains with its own term where none is given, in float, and becomes sparse", "[activations][gated]") {
  sae::SparseAutoencoder model(8, 64, sae::Gated{});
  const sae::Matrix<float> x = random_rows(2000, 8, 4).cast<float>();
  const auto error = [&] {
    const sae::Matrix<float> e = model.reconstruct(x) - x;
    return static_cast<double>(e.squaredNorm() / x.squaredNorm());
  };
  const double before = error();
  static_assert(std::is_same_v<sae::DefaultObjective<sae::Gated>::type, Terms>);
  sae::MatrixSource<float> source(x);
  sae::Trainer trainer(model, {.steps = 500, .batch = 200, .learning_rate = 3e-3},
                       sae::Objective{sae::GatedAux{.coefficient = 0.1}});
  CHECK(trainer.fit(source) == sae::FitStatus::finished);
  const double l0 = static_cast<double>(model.encode(x).size()) / 2000;
  INFO("L0 " << l0 << ", error " << error() << " of the rows, " << before << " before");
  CHECK(l0 < 16);
  CHECK(l0 > 2);
  CHECK(error() < 0.3);
  CHECK(error() < before);
}

TEST_CASE("a Gated model is a JumpReLU", "[models][conversion]") {
  for (const bool subtract : {true, false}) {
    CAPTURE(subtract);
    const Model gated = some_model(subtract, -0.2);
    const auto jump = sae::to_jump_relu(gated);
    const Dense x = random_rows(200, width, 7);
    const auto codes = gated.encode(x), same = jump.encode(x);
    REQUIRE(codes.size() > 1000);
    REQUIRE(same.indices().size() == codes.indices().size());
    CHECK(std::equal(codes.indices().begin(), codes.indices().end(), same.indices().begin()));
    CHECK(relative_error(same.dense(), codes.dense()) <= 1e-13);
    CHECK(relative_error(jump.reconstruct(x), gated.reconstruct(x)) <= 1e-13);
    CHECK(jump.subtracts_decoder_bias() == subtract);
    const auto& theta = jump.parameters().activation.threshold;
    Index clamped = 0;
    for (Index i = 0; i < latents; ++i) clamped += theta[i] == 0 ? 1 : 0;
    CHECK(clamped > 5);  // the gate is open wherever m > 0
    CHECK(clamped < latents - 5);
  }
}

TEST_CASE("a Gated model as a JumpReLU: thresholds below 0 and pre-activations at them", "[models][conversion]") {
  sae::SparseAutoencoder<2, 3, sae::Gated, double> gated({}, {.subtract_decoder_bias = false});
  gated.W_enc() << 1, 0, 1, 0, 1, 0;
  auto& own = gated.parameters().activation;
  own.b_gate.map() << -0.5, 0.5, 0;
  own.b_mag.map() << 0.25, 0.25, -0.5;
  const auto jump = sae::to_jump_relu(gated);
  Dense theta(1, 3);
  theta << 0.75, 0, 0;  // b_mag - b_gate = 0.75, -0.25, -0.5
  CHECK(jump.parameters().activation.threshold.map() == theta);
  // pi = 0 at the first latent; m = 0 at the second (gate open), at the third; between -0.5 and -0.25 gate open and m < 0.
  Dense x(6, 2);
  x << 0.5, 0, 0.625, 0, -0.25, 0, -0.375, 0, -0.5, 0, 2, 0;
  const Dense codes = gated.encode_dense(x);
  CHECK(jump.encode_dense(x) == codes);
  CHECK(codes(0, 0) == 0);
  CHECK(codes(1, 0) == 0.875);
  CHECK(codes(2, 1) == 0);
  CHECK(codes(0, 2) == 0);
  CHECK(codes(5, 2) == 1.5);
}

TEST_CASE("GatedAux: settings that cannot be are refused", "[activations][gated]") {
  CHECK_THROWS_WITH(sae::GatedAux{.coefficient = -1}.check(4, 8), "GatedAux: coefficient = -1 is not in [0, infinity)");
  CHECK_THROWS_AS(sae::GatedAux{.coefficient = std::numeric_limits<double>::quiet_NaN()}.check(4, 8), sae::ValueError);
}
