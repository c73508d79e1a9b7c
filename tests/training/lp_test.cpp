// The Lp family: by hand, against L1 at p = 1, and every option by central differences.
#include <sae/activations/relu.hpp>
#include <sae/models/sparse_autoencoder.hpp>
#include <sae/training/lp.hpp>

#include <cmath>
#include <limits>
#include <vector>

#include "catch_compat.hpp"
#include "gradient_check.hpp"

namespace {

using sae::Index;
using namespace sae_test;
using sae::Lp;
using sae::LpForm;

template <class Scalar>
using Model = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::ReLU, Scalar>;
constexpr Index width = 6, latents = 70, rows = 9;

template <class Scalar>
Model<Scalar> some_model(bool subtract) {
  Model<Scalar> model(width, latents, {}, {.subtract_decoder_bias = subtract});
  randomise(model, 5, -0.4);
  return model;
}

double naive_lp(const NaiveModel& m, const Dense& f, const Dense& x, const Lp& term) {
  const std::vector<double> norms = naive_norms(m.W_dec);
  double out = 0;
  for (Index b = 0; b < f.rows(); ++b) {
    double sum = 0;
    for (Index i = 0; i < f.cols(); ++i)
      if (f(b, i) != 0)
        sum += std::pow(std::abs(f(b, i)) * (term.weighted_by_decoder_norm ? norms[static_cast<std::size_t>(i)] : 1.0), term.p);
    if (term.form == LpForm::norm) sum = std::pow(sum, 1 / term.p);
    out += term.divide_by_input_norm ? (x.row(b).norm() > 0 ? sum / x.row(b).norm() : 0.0) : sum;
  }
  return out / static_cast<double>(f.rows());
}

template <class Scalar, class Term>
auto gradient(const Model<Scalar>& model, const sae::Matrix<Scalar>& x, const Term& term, double warmup) {
  typename Model<Scalar>::template Workspace<sae::Objective<Term>> workspace;
  workspace.step.sparsity_scale = warmup;
  return model.gradient(x, sae::Objective{term}, workspace);
}

}  // namespace

TEST_CASE("Lp by hand: sum, norm, weights, the row's norm", "[training][lp]") {
  sae::SparseAutoencoder<2, 2, sae::ReLU, double> model({}, {.subtract_decoder_bias = false});
  model.W_enc().setIdentity();
  model.W_dec() << 4, 0, 0, 1;
  Dense x(2, 2);
  x << 4, 9, 0, 0;  // f = (4, 9); u = (16, 9) weighted; |x_1|^2 = 97
  const auto value = [&](Lp term) { return model.loss(x, sae::Objective{term}).terms[0].second; };
  CHECK(value({.coefficient = 3, .p = 0.5, .form = LpForm::sum}) == Approx(3 * 7 / 2.0));
  CHECK(value({.p = 0.5, .form = LpForm::norm}) == Approx(49 / 2.0));
  CHECK(value({.p = 0.5, .form = LpForm::sum, .weighted_by_decoder_norm = false}) == Approx(5 / 2.0));
  CHECK(value({.p = 2, .form = LpForm::norm, .weighted_by_decoder_norm = false}) == Approx(std::sqrt(97.0) / 2));
  CHECK(value({.p = 1, .weighted_by_decoder_norm = false, .divide_by_input_norm = true}) == Approx(13 / std::sqrt(97.0) / 2));
  CHECK(value({.p = 2, .weighted_by_decoder_norm = false, .divide_by_input_norm = true}) == Approx(0.5));

  // Sum, p = 1/2, weighted: t = c / 2 u^(-1/2) = c (1/8, 1/6), c = 1/2; the row of zeros adds nothing.
  const auto plain = model.gradient(x), got = model.gradient(x, sae::Objective{Lp{.p = 0.5, .form = LpForm::sum}});
  CHECK(got.parameters.b_enc[0] - plain.parameters.b_enc[0] == Approx(0.5 / 8 * 4));
  CHECK(got.parameters.b_enc[1] - plain.parameters.b_enc[1] == Approx(0.5 / 6));
  CHECK(got.parameters.W_dec.row(0)[0] - plain.parameters.W_dec.row(0)[0] == Approx(0.5 / 8 * 4));
  CHECK(got.parameters.W_dec.row(1)[1] - plain.parameters.W_dec.row(1)[1] == Approx(0.5 / 6 * 9));
}

TEMPLATE_TEST_CASE("Lp with p = 1 is L1 to the last bit", "[training][lp]", float, double) {
  const Model<TestType> model = some_model<TestType>(true);
  const sae::Matrix<TestType> x = random_rows(rows, width, 1).template cast<TestType>();
  for (const bool weighted : {true, false})
    for (const LpForm form : {LpForm::sum, LpForm::norm}) {
      CAPTURE(weighted);
      const auto want = gradient(model, x, sae::L1{.coefficient = 0.7, .weighted_by_decoder_norm = weighted}, 0.25);
      const auto got =
          gradient(model, x, Lp{.coefficient = 0.7, .p = 1, .form = form, .weighted_by_decoder_norm = weighted}, 0.25);
      CHECK(want.loss.terms[0].second > 0);
      CHECK(got.loss.terms[0].second == want.loss.terms[0].second);
      Model<TestType>::Parameters::visit(
          [](std::string_view name, const auto& a, const auto& b) {
            CAPTURE(name);
            CHECK(a == b);
          },
          got.parameters, want.parameters);
    }
}

TEST_CASE("Lp: every gradient by central differences", "[training][lp]") {
  for (const bool subtract : {true, false})
    for (const double p : {0.5, 0.8, 1.0, 1.7, 3.0})
      for (const LpForm form : {LpForm::sum, LpForm::norm})
        for (const bool weighted : {true, false})
          for (const bool divide : {false, true}) {
            if (p != 0.5 && !(subtract && weighted && divide)) continue;  // one p meets every option, every p the most involved
            CAPTURE(subtract, p, form == LpForm::sum, weighted, divide);
            const Lp term{0.3, p, form, weighted, divide};
            const auto model = some_model<double>(subtract);
            const Dense x = random_rows(rows, width, 1);
            const NaiveModel twin = naive(model);
            const Mask active = naive_positive(naive_pre_activations(twin, x));
            const auto codes = [&](const NaiveModel& m) { return naive_codes(naive_pre_activations(m, x), active); };
            REQUIRE(active.cast<int>().sum() > 100);
            const Dense f = codes(twin);
            const auto got = gradient(model, x, term, 0.25);
            CHECK(got.loss.terms[0].first == "lp");
            CHECK(got.loss.terms[0].second == Approx(0.25 * 0.3 * naive_lp(twin, f, x, term)).epsilon(1e-12));
            // The smallest code decides how far a difference may reach: u^(p-1) is steep there.
            double smallest = 1;
            for (Index i = 0; i < active.size(); ++i)
              if (active.data()[i] != 0) smallest = std::min(smallest, f.data()[i]);
            CAPTURE(smallest);
            REQUIRE(smallest > 1e-4);
            const auto loss = [&](const NaiveModel& m) {
              return naive_mean_square(naive_decode(m, codes(m)) - x) + 0.25 * 0.3 * naive_lp(m, codes(m), x, term);
            };
            NaiveModel moved = twin;
            const auto at = [&] { return loss(moved); };
            const double h = 2e-7;
            CHECK(relative_error(got.parameters.W_enc.map(), central_differences(moved.W_enc, at, h)) <= 1e-6);
            CHECK(relative_error(got.parameters.b_enc.map(), central_differences(moved.b_enc, at, h)) <= 1e-6);
            CHECK(relative_error(got.parameters.W_dec.map(), central_differences(moved.W_dec, at, h)) <= 1e-6);
            CHECK(relative_error(got.parameters.b_dec.map(), central_differences(moved.b_dec, at, h)) <= 1e-6);
          }
}

TEST_CASE("Lp: rows of zeros and decoder rows of norm 0 give no NaN", "[training][lp]") {
  auto model = some_model<double>(false);
  model.W_dec().row(3).setZero();
  model.parameters().b_enc[3] = 5;  // active everywhere
  Dense x = random_rows(rows, width, 1);
  x.row(2).setZero();
  REQUIRE(model.encode(Dense(x.row(2))).size() > 0);
  for (const double p : {0.5, 1.0, 2.0})
    for (const LpForm form : {LpForm::sum, LpForm::norm}) {
      CAPTURE(p, form == LpForm::sum);
      const Lp term{.coefficient = 1, .p = p, .form = form, .divide_by_input_norm = true};
      const auto got = gradient(model, x, term, 1);
      CHECK(got.loss.terms[0].second == Approx(naive_lp(naive(model), model.encode_dense(x), x, term)).epsilon(1e-12));
      CHECK(std::isfinite(got.loss.total));
      Model<double>::Parameters::visit(
          [](std::string_view name, const auto& tensor) {
            CAPTURE(name);
            CHECK(tensor.map().allFinite());
          },
          got.parameters);
      // The row of zeros feels the reconstruction alone.
      const Dense zero = x.row(2);
      CHECK(gradient(model, zero, term, 1).parameters.b_enc == model.gradient(zero).parameters.b_enc);
      CHECK(gradient(model, zero, term, 1).loss.terms[0].second == 0);
    }
}

TEST_CASE("Lp: settings that cannot be are refused", "[training][lp]") {
  CHECK_THROWS_WITH(Lp{.coefficient = -1}.check(4, 8), "Lp: coefficient = -1 is not in [0, infinity)");
  CHECK_THROWS_WITH(Lp{.coefficient = std::numeric_limits<double>::infinity()}.check(4, 8),
                    "Lp: coefficient = inf is not in [0, infinity)");
  CHECK_THROWS_WITH((Lp{.p = 0}.check(4, 8)), "Lp: p = 0 is not in (0, infinity)");
  for (const double p : {-1.0, std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()})
    CHECK_THROWS_AS((Lp{.p = p}.check(4, 8)), sae::ValueError);
}
