// Rows normalised one by one: by hand, what a model makes of them, and every gradient by central differences in both loss spaces.
#include <sae/activations/gated.hpp>
#include <sae/activations/relu.hpp>
#include <sae/activations/topk.hpp>
#include <sae/interpret/interventions.hpp>
#include <sae/models/matryoshka.hpp>
#include <sae/models/sparse_autoencoder.hpp>
#include <sae/training/aux_k.hpp>
#include <sae/training/evaluate.hpp>
#include <sae/training/gated_aux.hpp>
#include <sae/training/l1.hpp>

#include <cmath>
#include <vector>

#include "catch_compat.hpp"
#include "gradient_check.hpp"

namespace {

using sae::Index;
using sae::InputNormalisation;
using sae::LossSpace;
using namespace sae_test;

template <class Activation>
using Model = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, Activation, double>;

constexpr Index width = 6, latents = 24, rows = 9;
constexpr InputNormalisation kinds[] = {InputNormalisation::constant_norm, InputNormalisation::layer_norm};

// The definitions again, one loop a number.
struct Twin {
  Dense u, x;                               // normalised rows, rows
  std::vector<double> offset, spread, eps;  // of each row

  Twin(InputNormalisation kind, const Dense& rows_given) : u(rows_given), x(rows_given) {
    const auto n = static_cast<double>(x.cols());
    for (Index b = 0; b < x.rows(); ++b) {
      const bool centred = kind == InputNormalisation::layer_norm;
      const double mean = centred ? x.row(b).sum() / n : 0.0;
      double squares = 0;
      for (Index j = 0; j < x.cols(); ++j) squares += (x(b, j) - mean) * (x(b, j) - mean);
      offset.push_back(mean);
      spread.push_back(std::sqrt(squares / (centred ? n - 1 : n)));
      eps.push_back(centred ? 1e-5 : 0.0);
      for (Index j = 0; j < x.cols(); ++j) u(b, j) = spread.back() > 0 ? (x(b, j) - mean) / (spread.back() + eps.back()) : 0.0;
    }
  }
  Dense undo(Dense out) const {
    for (Index b = 0; b < out.rows(); ++b)
      for (Index j = 0; j < out.cols(); ++j)
        out(b, j) = spread[static_cast<std::size_t>(b)] * out(b, j) + offset[static_cast<std::size_t>(b)];
    return out;
  }
  /// An error between normalised rows as the loss measures it.
  Dense measured(LossSpace space, Dense error) const {
    for (Index b = 0; b < error.rows(); ++b)
      error.row(b) *= space == LossSpace::raw                   ? spread[static_cast<std::size_t>(b)]
                      : spread[static_cast<std::size_t>(b)] > 0 ? 1.0
                                                                : 0.0;
    return error;
  }
  /// What the normalised reconstruction is compared with.
  Dense target(LossSpace space) const {
    Dense out = u;
    if (space == LossSpace::raw)
      for (Index b = 0; b < out.rows(); ++b)
        if (const double s = spread[static_cast<std::size_t>(b)]; s > 0)
          out.row(b) *= (s + eps[static_cast<std::size_t>(b)]) / s;
    return out;
  }
};

// Rows of very different norms and means; one that is 0, one that is the same number throughout.
Dense some_rows() {
  Dense x = random_rows(rows, width, 1);
  for (Index b = 0; b < rows; ++b) x.row(b) = (x.row(b).array() + 0.3) * std::pow(2.0, static_cast<double>(b) - 4);
  x.row(3).setZero();
  x.row(6).setConstant(0.75);
  return x;
}

}  // namespace

TEST_CASE("normalised rows by hand", "[models][normalisation]") {
  sae::SparseAutoencoder<2, 2, sae::ReLU, double> constant({}, {.input_normalisation = InputNormalisation::constant_norm});
  sae::SparseAutoencoder<3, 3, sae::ReLU, double> layer({}, {.input_normalisation = InputNormalisation::layer_norm});
  constant.W_enc() << 1, 0, 0, 1;
  constant.W_dec() << 1, 0, 0, 0;  // the second number is lost
  Dense x(3, 2);
  x << 3, 4, -3, 4, 0, 0;
  const double root = std::sqrt(2.0);
  Dense z(3, 2), y(3, 2);
  z << 3 * root / 5, 4 * root / 5, -3 * root / 5, 4 * root / 5, 0, 0;
  y << 3, 0, 0, 0, 0, 0;
  CHECK(largest_difference(constant.pre_activations(x), z) <= 1e-15);
  CHECK(largest_difference(constant.encode_dense(x), z.cwiseMax(0)) <= 1e-15);
  CHECK(largest_difference(constant.reconstruct(x), y) <= 1e-15);
  CHECK(largest_difference(constant.reconstruct(7 * x), 7 * y) <= 1e-14);
  CHECK(constant.loss(x).total == Approx((16.0 + 25.0 + 0) / 3).epsilon(1e-14));  // what is lost, in the units of x

  layer.W_enc().setIdentity();
  layer.W_dec().setIdentity();
  Dense v(2, 3);
  v << 1, 2, 3, 5, 5, 5;
  const double unit = 1 / (1 + 1e-5);
  Dense f(2, 3), w(2, 3);
  f << 0, 0, unit, 0, 0, 0;
  w << 2, 2, 2 + unit, 5, 5, 5;
  CHECK(largest_difference(layer.encode_dense(v), f) <= 1e-15);
  CHECK(largest_difference(layer.reconstruct(v), w) <= 1e-15);
  CHECK(layer.loss(v).total == Approx((1 + (1 - unit) * (1 - unit)) / 2).epsilon(1e-12));
}

TEST_CASE("codes alone do not tell how to undo the normalisation", "[models][normalisation]") {
  for (const auto kind : kinds) {
    Model<sae::TopK> model(width, latents, {.k = 5}, {.input_normalisation = kind});
    randomise(model, 5);
    const Dense x = some_rows();
    const auto codes = model.encode(x);
    CHECK_THROWS_WITH(model.decode(codes), Catch::Matchers::ContainsSubstring("codes alone do not tell how to undo it"));
    CHECK(model.decode(codes, x) == model.reconstruct(x));
    CHECK_THROWS_WITH(model.decode(codes, Dense(x.topRows(2))), "the input is [2 x 6], the codes are of [9 x 6]");
    const Twin twin(kind, x);
    Model<sae::TopK> plain(width, latents, {.k = 5});
    plain.parameters() = model.parameters();
    CHECK(mask_of(plain.encode(twin.u)) == mask_of(codes));
    CHECK(largest_difference(plain.encode_dense(twin.u), codes.dense()) <= 1e-12);
    CHECK(largest_difference(model.reconstruct(x), twin.undo(plain.reconstruct(twin.u))) <= 1e-12);
    CHECK(plain.decode(codes, x) == plain.decode(codes));
    CHECK(model.reconstruct(x).row(3) == x.row(3));  // a row of norm 0; with layer_norm its deviation is 0, too
    if (kind == InputNormalisation::layer_norm) CHECK(largest_difference(model.reconstruct(x).row(6), x.row(6)) <= 1e-15);
    CHECK(sae::evaluate(model, x).mse == Approx(naive_mean_square(model.reconstruct(x) - x)).epsilon(1e-12));
    const auto spreads = model.row_spreads(x);
    for (std::size_t b = 0; b < spreads.size(); ++b) CHECK(spreads[b] == Approx(twin.spread[b]).margin(1e-15));
    for (const double s : plain.row_spreads(x)) CHECK(s == 1);
    sae::Threads one(1), three(3);
    CHECK(model.reconstruct(x, one) == model.reconstruct(x, three));
  }
  CHECK_THROWS_WITH((Model<sae::ReLU>(1, 4, {}, {.input_normalisation = InputNormalisation::layer_norm})),
                    "SparseAutoencoder: d_in = 1 has no standard deviation; layer_norm needs at least 2");
}

TEST_CASE("edits of latents are in the units of the rows", "[models][normalisation]") {
  sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::TopK> model(width, latents, {.k = 5},
                                                                      {.input_normalisation = InputNormalisation::layer_norm});
  randomise(model, 5);
  const sae::Site site{0, sae::SiteKind::residual};
  sae::Matrix<float> x = some_rows().cast<float>();
  const sae::Matrix<float> given = x;
  const auto codes = model.encode(given);
  const Index latent = codes.latent(codes.begin(0));
  const std::vector<sae::LatentEdit> edits{sae::ablate_latent(latent)};
  sae::edit_latents(site, model, edits).visit(sae::MatrixMap<float>(x.data(), x.rows(), x.cols()), 0);
  const auto edited = sae::edit_codes(codes, edits);
  const sae::Matrix<float> want = given + model.decode(edited, given) - model.decode(codes, given);
  CHECK(largest_difference(x, want) <= 1e-5);
  CHECK(largest_difference(x, given) > 1e-3);
  x = given;
  sae::edit_latents(site, model, edits, {}, sae::ErrorTerm::drop).visit(sae::MatrixMap<float>(x.data(), x.rows(), x.cols()), 0);
  CHECK(largest_difference(x, model.decode(edited, given)) == 0);
}

TEST_CASE("gradients with normalised rows, in both loss spaces", "[models][normalisation][gradient]") {
  const Dense x = some_rows();
  for (const auto kind : kinds)
    for (const auto space : {LossSpace::raw, LossSpace::normalised})
      for (const bool subtract : {true, false}) {
        CAPTURE(static_cast<int>(kind), static_cast<int>(space), subtract);
        const Twin twin(kind, x);
        const Dense target = twin.target(space);
        const sae::ModelOptions options{.subtract_decoder_bias = subtract, .input_normalisation = kind};

        {
          Model<sae::ReLU> model(width, latents, {}, options);
          randomise(model, 5);
          const NaiveModel at = naive(model);
          const Mask active = naive_positive(naive_pre_activations(at, twin.u));
          const auto codes = [&](const NaiveModel& m) { return naive_codes(naive_pre_activations(m, twin.u), active); };
          const auto error = [&](const NaiveModel& m) {
            return naive_mean_square(twin.measured(space, naive_decode(m, codes(m)) - target));
          };
          using Terms = sae::Objective<sae::L1>;
          Model<sae::ReLU>::Workspace<Terms> workspace;
          workspace.step.loss_space = space;
          const auto got = model.gradient(x, Terms{sae::L1{.coefficient = 0.7}}, workspace);
          check_gradient(at, got.parameters, [&](const NaiveModel& m) { return error(m) + 0.7 * naive_l1(m, codes(m), true); });
          CHECK(got.loss.reconstruction == Approx(error(at)).epsilon(1e-12));
          if (space == LossSpace::raw)
            CHECK(got.loss.reconstruction == Approx(naive_mean_square(model.reconstruct(x) - x)).epsilon(1e-10));

          if (space == LossSpace::raw) {  // a loss of the caller's own
            const Dense cotangent = random_rows(rows, width, 40);
            check_gradient(at, model.gradient(x, cotangent).parameters, [&](const NaiveModel& m) {
              return twin.undo(naive_decode(m, codes(m))).cwiseProduct(cotangent).sum();
            });
          }
        }

        for (const bool by_variance : {false, true}) {
          Model<sae::TopK> model(width, latents, {.k = 4}, options);
          randomise(model, 6);
          const NaiveModel at = naive(model);
          std::vector<std::uint8_t> dead(static_cast<std::size_t>(latents), 0);
          for (std::size_t i = 1; i < dead.size(); i += 3) dead[i] = 1;
          const Dense z = naive_pre_activations(at, twin.u);
          const Mask active = naive_largest(z, 4), second = naive_largest(z, 3, {}, 0, dead);
          const auto decoded = [&](const NaiveModel& m) {
            return naive_decode(m, naive_codes(naive_pre_activations(m, twin.u), active));
          };
          const Dense residual = twin.measured(space, decoded(at) - target);
          const double factor = 0.4 / (by_variance ? naive_row_variance(residual) : 1.0);
          const auto aux = [&](const NaiveModel& m) {
            const Dense r = naive_decode(m, naive_codes(naive_pre_activations(m, twin.u), second), false);
            return factor * naive_mean_square(twin.measured(space, r) + residual);
          };
          using Terms = sae::Objective<sae::AuxK>;
          const auto normaliser = by_variance ? sae::AuxKNormaliser::residual_variance : sae::AuxKNormaliser::none;
          Model<sae::TopK>::Workspace<Terms> workspace;
          workspace.step.loss_space = space;
          workspace.step.dead = dead;
          const auto got = model.gradient(x, Terms{sae::AuxK{.coefficient = 0.4, .k = 3, .normaliser = normaliser}}, workspace);
          check_gradient(at, got.parameters, [&](const NaiveModel& m) {
            return naive_mean_square(twin.measured(space, decoded(m) - target)) + aux(m);
          });
          CHECK(got.loss.terms[0].second == Approx(aux(at)).epsilon(1e-12));
        }

        {  // The decoder not detached, the value of the term is what is differentiated.
          Model<sae::Gated> model(width, latents, {}, options);
          Model<sae::Gated>::Parameters::visit(
              [seed = std::uint64_t{60}](std::string_view, auto& tensor) mutable {
                tensor.map() = random_rows(tensor.rows(), tensor.cols(), ++seed, 0.4);
              },
              model.parameters());
          using Terms = sae::Objective<sae::GatedAux>;
          const Terms objective{sae::GatedAux{.coefficient = 0.3, .detach_decoder = false, .weighted_by_decoder_norm = true}};
          Model<sae::Gated>::Workspace<Terms> workspace;
          workspace.step.loss_space = space;
          const auto got = model.gradient(x, objective, workspace);
          const auto& own = model.parameters().activation;
          Dense u = twin.u;
          if (subtract) u.rowwise() -= model.b_dec().row(0);
          const Dense pi = (u * model.W_enc().transpose()).rowwise() + own.b_gate.map().row(0);
          const Dense rho = pi.cwiseMax(0);
          const Dense again = (rho * model.W_dec()).rowwise() + model.b_dec().row(0);
          const Dense norms = model.W_dec().rowwise().norm();
          CHECK(got.loss.terms[0].second ==
                Approx(0.3 * (rho * norms).sum() / rows + naive_mean_square(twin.measured(space, again - target)))
                    .epsilon(1e-12));

          Model<sae::Gated> moved = model;
          Model<sae::Gated>::Workspace<Terms> other;
          other.step.loss_space = space;
          Model<sae::Gated>::Parameters::visit(
              [&](std::string_view name, auto& tensor, const auto& gradient) {
                CAPTURE(name);
                Dense p = tensor.map();
                const Dense want = central_differences(
                    p,
                    [&] {
                      tensor.map() = p;
                      return moved.gradient(x, objective, other).loss.total;
                    },
                    1e-6);
                tensor.map() = p;
                CHECK(relative_error(gradient.map(), want) <= 1e-6);
              },
              moved.parameters(), got.parameters);
        }

        {  // prefixes
          Model<sae::TopK> model(width, latents, {.k = 4}, options);
          randomise(model, 7);
          const NaiveModel at = naive(model);
          const Mask active = naive_largest(naive_pre_activations(at, twin.u), 4);
          using Terms = sae::Objective<sae::Matryoshka>;
          Model<sae::TopK>::Workspace<Terms> workspace;
          workspace.step.loss_space = space;
          const auto got = model.gradient(x, Terms{sae::Matryoshka{.widths = {20, latents}}}, workspace);
          check_gradient(at, got.parameters, [&](const NaiveModel& m) {
            Dense f = naive_codes(naive_pre_activations(m, twin.u), active), first = f;
            first.rightCols(latents - 20).setZero();
            return naive_mean_square(twin.measured(space, naive_decode(m, f) - target)) +
                   naive_mean_square(twin.measured(space, naive_decode(m, first) - target));
          });
        }
      }
}

TEST_CASE("Gated: the penalty on the gates does not grow with the rows, as it does in SAELens", "[models][normalisation]") {
  Model<sae::Gated> model(width, latents, {}, {.input_normalisation = InputNormalisation::constant_norm});
  const Dense x = random_rows(rows, width, 1);
  const auto penalty = [&](const Dense& at) {
    return model.loss(at, sae::Objective{sae::GatedAux{.coefficient = 1}}).total -
           model.loss(at, sae::Objective{sae::GatedAux{.coefficient = 0}}).total;
  };
  REQUIRE(penalty(x) > 0.1);
  CHECK(penalty(8 * x) == Approx(penalty(x)).epsilon(1e-9));
}

TEST_CASE("a scale of rows that are normalised one by one", "[models][normalisation][fold]") {
  const Dense x = random_rows(rows, width, 1);
  Model<sae::ReLU> constant(width, latents, {}, {.input_normalisation = InputNormalisation::constant_norm});
  randomise(constant, 5);
  auto folded = constant;
  folded.fold_input_scale(3);
  CHECK(largest_difference(folded.encode_dense(x), constant.encode_dense(3 * x)) <= 1e-12);
  CHECK(largest_difference(folded.reconstruct(x), constant.reconstruct(3 * x) / 3) <= 1e-12);
  Model<sae::ReLU> layer(width, latents, {}, {.input_normalisation = InputNormalisation::layer_norm});
  CHECK_THROWS_WITH(layer.fold_input_scale(3), Catch::Matchers::ContainsSubstring("only 1 can be folded"));
  CHECK_NOTHROW(layer.fold_input_scale(1));
  for (auto* model : {&constant, &layer}) {
    const Dense before = model->reconstruct(x);
    model->fold_decoder_norms();
    CHECK(largest_difference(model->reconstruct(x), before) <= 1e-12);
    CHECK_THROWS_WITH(model->fold_input_map(sae::Tensor<double>(1, width), sae::Tensor<double>(width, width),
                                            sae::Tensor<double>(width, width)),
                      Catch::Matchers::ContainsSubstring("the model normalises each row"));
  }
}
