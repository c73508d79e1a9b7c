// Transcoders against hand computation, a naive twin and central differences of every parameter.
#include <sae/models/any_model.hpp>
#include <sae/models/transcoder.hpp>
#include <sae/training/data_initialization.hpp>
#include <sae/training/trainer.hpp>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "catch_compat.hpp"
#include "parameter_gradient.hpp"

namespace {

using sae::Dynamic;
using sae::Index;
using namespace sae_test;

template <class Activation, class Scalar = double>
using Model = sae::Transcoder<Dynamic, Dynamic, Dynamic, Activation, Scalar>;

constexpr Index in = 5, out = 7, latents = 70, rows = 9;

template <class Activation>
Model<Activation> make(Activation activation, bool skip, sae::TranscoderOptions options = {}) {
  options.skip = skip;
  Model<Activation> model(in, out, latents, activation, options);
  randomise_everything(model, 5);
  return model;
}
template <class Parameters>
Dense pre_activations(const Parameters& p, const Dense& x) {
  Dense z(x.rows(), p.W_enc.rows());
  for (Index b = 0; b < x.rows(); ++b)
    for (Index i = 0; i < p.W_enc.rows(); ++i) {
      double sum = p.b_enc.size() > 0 ? p.b_enc[i] : 0.0;
      for (Index j = 0; j < x.cols(); ++j) sum += x(b, j) * p.W_enc.row(i)[j];
      z(b, i) = sum;
    }
  return z;
}
// f W_dec, and b_dec + x W_skip^T where asked.
template <class Parameters>
Dense decoded(const Parameters& p, const Dense& f, const Dense& x, bool shared = true) {
  Dense y = Dense::Zero(f.rows(), p.W_dec.cols());
  for (Index b = 0; b < f.rows(); ++b)
    for (Index j = 0; j < y.cols(); ++j) {
      for (Index i = 0; i < f.cols(); ++i) y(b, j) += f(b, i) * p.W_dec.row(i)[j];
      if (!shared) continue;
      y(b, j) += p.b_dec[j];
      if (p.W_skip.size() > 0)
        for (Index c = 0; c < x.cols(); ++c) y(b, j) += x(b, c) * p.W_skip.row(j)[c];
    }
  return y;
}
template <class Parameters>
double norm(const Parameters& p, Index i) {
  return std::sqrt(p.W_dec.map().row(i).squaredNorm());
}
template <class Parameters>
double l1(const Parameters& p, const Dense& f) {
  double sum = 0;
  for (Index b = 0; b < f.rows(); ++b)
    for (Index i = 0; i < f.cols(); ++i) sum += std::abs(f(b, i)) * norm(p, i);
  return sum / static_cast<double>(f.rows());
}
const Dense x = random_rows(rows, in, 1), y = random_rows(rows, out, 2);

}  // namespace

TEST_CASE("a transcoder by hand", "[models][transcoder]") {
  sae::Transcoder<2, 3, 2, sae::ReLU, double> model(sae::ReLU{}, {.skip = true});
  auto& p = model.parameters();
  p.W_enc.map() << 1, 0, 0, -1;
  p.b_enc.map() << 0, 1;
  p.W_dec.map() << 1, 2, 0, 0, 1, 1;
  p.b_dec.map() << 0.5, 0, 0;
  p.W_skip.map() << 1, 0, 0, 1, 0, 0;
  Dense a(2, 2), t(2, 3), codes(2, 2), want(2, 3);
  a << 2, 0, -1, 3;
  codes << 2, 1, 0, 0;            // z = (2, 1) and (-1, -2)
  want << 4.5, 5, 1, -0.5, 3, 0;  // 2 d_0 + d_1 + b_dec + W_skip a
  t << 4.5, 4, 1, -0.5, 3, 2;     // off by 1 in row 0 and by 2 in row 1
  CHECK(model.encode(a).dense() == codes);
  CHECK(model.predict(a) == want);
  CHECK(model.decode(model.encode(a), a) == want);
  CHECK(model.loss(a, t).total == 2.5);
  const auto g = model.gradient(a, t);  // G = 2/B (y' - y) = (0, 1, 0), (0, 0, -2)
  CHECK(g.loss.total == 2.5);
  Dense W_skip(3, 2), W_dec(2, 3), W_enc(2, 2);
  W_skip << 0, 0, 2, 0, 2, -6;
  W_dec << 0, 2, 0, 0, 1, 0;
  W_enc << 4, 0, 2, 0;  // df = (2, 1) in row 0
  CHECK(g.parameters.W_skip.map() == W_skip);
  CHECK(g.parameters.W_dec.map() == W_dec);
  CHECK(g.parameters.W_enc.map() == W_enc);
  CHECK(g.parameters.b_enc.map() == (Dense(1, 2) << 2, 1).finished());
  CHECK(g.parameters.b_dec.map() == (Dense(1, 3) << 0, 1, -2).finished());
}

TEST_CASE("fixed and dynamic sizes, float and double, any layout of the rows agree", "[models][transcoder]") {
  sae::Transcoder<5, 7, 70, sae::TopK, double> fixed({.k = 6}, {.skip = true});
  Model<sae::TopK> dynamic(in, out, latents, {.k = 6}, {.skip = true});
  randomise_everything(fixed, 5);
  randomise_everything(dynamic, 5);
  Model<sae::TopK, float> single(in, out, latents, {.k = 6}, {.skip = true});
  randomise_everything(single, 5);
  const Dense want = decoded(
      dynamic.parameters(),
      naive_codes(pre_activations(dynamic.parameters(), x), naive_largest(pre_activations(dynamic.parameters(), x), 6)), x);
  const Eigen::MatrixXd columns = x;  // column-major
  CHECK(largest_difference(fixed.predict(x), want) <= 1e-13);
  CHECK(largest_difference(dynamic.predict(columns), want) <= 1e-13);
  CHECK(largest_difference(single.predict(x.cast<float>()), want) <= 1e-5);
  CHECK(fixed.gradient(x, y).parameters.W_skip == dynamic.gradient(columns, y).parameters.W_skip);
  sae::Threads one(1), three(3);
  CHECK(dynamic.gradient(x, y, sae::Objective<>{}, one).parameters.W_enc ==
        dynamic.gradient(x, y, sae::Objective<>{}, three).parameters.W_enc);
}

TEST_CASE("gradients of a ReLU transcoder with L1", "[models][transcoder][gradient]") {
  for (const bool skip : {true, false}) {
    const auto model = make(sae::ReLU{}, skip);
    const Mask active = naive_positive(pre_activations(model.parameters(), x));
    const auto got = model.gradient(x, y, sae::Objective{sae::L1{.coefficient = 0.7}});
    const auto loss = [&](const auto& p) {
      const Dense f = naive_codes(pre_activations(p, x), active);
      return naive_mean_square(decoded(p, f, x) - y) + 0.7 * l1(p, f);
    };
    CHECK(got.loss.total == Approx(loss(model.parameters())).epsilon(1e-12));
    check_every_gradient(model.parameters(), got.parameters, loss);
  }
}

TEST_CASE("gradients of a TopK transcoder with AuxK, whose default k is D_out / 2", "[models][transcoder][gradient]") {
  for (const bool by_norm : {true, false}) {
    const auto model = make(sae::TopK{.k = 4, .rank_by_decoder_norm = by_norm}, true);
    const auto& p0 = model.parameters();
    std::vector<std::uint8_t> dead(static_cast<std::size_t>(latents), 0);
    for (Index n = 0; n < 20; ++n) dead[static_cast<std::size_t>(latents - 1 - 3 * n)] = 1;
    const std::vector<double> norms = by_norm ? naive_norms(p0.W_dec.map()) : std::vector<double>();
    const Dense z = pre_activations(p0, x);
    const Mask active = naive_largest(z, 4, norms), chosen = naive_largest(z, out / 2, norms, 0, dead);
    const Dense residual = y - decoded(p0, naive_codes(z, active), x);
    const auto loss = [&](const auto& p) {
      const Dense at = pre_activations(p, x);
      return naive_mean_square(decoded(p, naive_codes(at, active), x) - y) +
             0.5 * naive_mean_square(decoded(p, naive_codes(at, chosen), x, false) - residual);
    };
    Model<sae::TopK>::Workspace<sae::Objective<sae::AuxK>> workspace;
    workspace.step.dead = dead;
    const auto got =
        model.gradient(x, y, sae::Objective{sae::AuxK{.coefficient = 0.5, .rank_by_decoder_norm = by_norm}}, workspace);
    CHECK(got.loss.total == Approx(loss(p0)).epsilon(1e-12));
    check_every_gradient(p0, got.parameters, loss);
  }
}

TEST_CASE("gradients of a BatchTopK transcoder", "[models][transcoder][gradient]") {
  const auto model = make(sae::BatchTopK{.k = 3.5}, true);
  const Mask active = naive_largest_of_batch(pre_activations(model.parameters(), x), static_cast<Index>(3.5 * rows));
  const auto loss = [&](const auto& p) {
    return naive_mean_square(decoded(p, naive_codes(pre_activations(p, x), active), x) - y);
  };
  const auto got = model.gradient(x, y);
  CHECK(got.loss.total == Approx(loss(model.parameters())).epsilon(1e-12));
  check_every_gradient(model.parameters(), got.parameters, loss);
}

TEST_CASE("gradients of a JumpReLU transcoder, and its thresholds' estimator", "[models][transcoder][gradient]") {
  auto model = make(sae::JumpReLU{.bandwidth = 0.8}, true);
  auto& p0 = model.parameters();
  for (Index i = 0; i < latents; ++i) p0.activation.threshold[i] = std::abs(p0.activation.threshold[i]) + 0.1;
  const Dense z = pre_activations(p0, x);
  Mask active(rows, latents);
  for (Index b = 0; b < rows; ++b)
    for (Index i = 0; i < latents; ++i) active(b, i) = z(b, i) > p0.activation.threshold[i] ? 1 : 0;
  const Dense f = naive_codes(z, active);
  const auto loss = [&](const auto& p) {
    return naive_mean_square(decoded(p, naive_codes(pre_activations(p, x), active), x) - y);
  };
  const auto got = model.gradient(x, y, sae::Objective{sae::L0Penalty{.coefficient = 0.3}});
  check_every_gradient(p0, got.parameters, loss, {"threshold"});
  const Dense G = 2.0 / static_cast<double>(rows) * (decoded(p0, f, x) - y);
  Dense want = Dense::Zero(1, latents);
  for (Index i = 0; i < latents; ++i)
    for (Index b = 0; b < rows; ++b)
      if (const double theta = p0.activation.threshold[i]; std::abs(z(b, i) - theta) < 0.4)
        want(0, i) -= (theta * G.row(b).dot(p0.W_dec.map().row(i)) + 0.3 / static_cast<double>(rows)) / 0.8;
  CHECK(relative_error(got.parameters.activation.threshold.map(), want) <= 1e-12);
}

TEST_CASE("gradients of a Gated transcoder: its second reconstruction has the skip, too", "[models][transcoder][gradient]") {
  for (const bool detach : {true, false}) {
    CAPTURE(detach);
    const auto model = make(sae::Gated{}, true);
    const auto p0 = model.parameters();
    REQUIRE(p0.b_enc.size() == 0);
    const Dense P = pre_activations(p0, x);
    Mask open(rows, latents), active(rows, latents);
    for (Index b = 0; b < rows; ++b)
      for (Index i = 0; i < latents; ++i) {
        open(b, i) = P(b, i) + p0.activation.b_gate[i] > 0 ? 1 : 0;
        active(b, i) = open(b, i) != 0 && P(b, i) * std::exp(p0.activation.r_mag[i]) + p0.activation.b_mag[i] > 0 ? 1 : 0;
      }
    const auto loss = [&](const auto& p) {
      const Dense at = pre_activations(p, x);
      Dense m(rows, latents), pi(rows, latents);
      for (Index b = 0; b < rows; ++b)
        for (Index i = 0; i < latents; ++i) {
          m(b, i) = at(b, i) * std::exp(p.activation.r_mag[i]) + p.activation.b_mag[i];
          pi(b, i) = at(b, i) + p.activation.b_gate[i];
        }
      const Dense rho = naive_codes(pi, open);
      return naive_mean_square(decoded(p, naive_codes(m, active), x) - y) + 0.3 * l1(p, rho) +
             naive_mean_square(decoded(detach ? p0 : p, rho, x) - y);
    };
    const auto got = model.gradient(
        x, y, sae::Objective{sae::GatedAux{.coefficient = 0.3, .detach_decoder = detach, .weighted_by_decoder_norm = true}});
    CHECK(got.loss.total == Approx(loss(p0)).epsilon(1e-12));
    check_every_gradient(p0, got.parameters, loss);
  }
}

TEST_CASE("gradients of a transcoder to several sites: a latent pays for each", "[models][transcoder][gradient]") {
  const auto model = make(sae::ReLU{}, false, {.sites = {3, 4}});
  const Mask active = naive_positive(pre_activations(model.parameters(), x));
  const auto loss = [&](const auto& p) {
    const Dense f = naive_codes(pre_activations(p, x), active);
    double penalty = 0;
    for (Index i = 0; i < latents; ++i)
      penalty += f.col(i).sum() * (p.W_dec.map().row(i).head(3).norm() + p.W_dec.map().row(i).tail(4).norm());
    return naive_mean_square(decoded(p, f, x) - y) + 2 * penalty / static_cast<double>(rows);
  };
  const auto got = model.gradient(x, y, sae::Objective{sae::L1{.coefficient = 2}});
  CHECK(got.loss.total == Approx(loss(model.parameters())).epsilon(1e-12));
  check_every_gradient(model.parameters(), got.parameters, loss);
}

TEST_CASE("weighted rows of a transcoder", "[models][transcoder]") {
  const auto model = make(sae::ReLU{}, true);
  const std::vector<double> weight{1, 0, 2, 1, 0.5, 1, 1, 3, 0};
  Model<sae::ReLU>::Workspace<> workspace;
  const sae::Batch<double> a(x), b(y);
  sae::detail::run_step(model, sae::detail::StepRows<double>{a, b, weight}, sae::Objective<>{}, workspace,
                        sae::Threads::shared(), [](auto&) {});
  const Dense error = model.predict(x) - y;
  double want = 0;
  for (Index r = 0; r < rows; ++r) want += weight[static_cast<std::size_t>(r)] * error.row(r).squaredNorm();
  CHECK(workspace.step.loss.total == Approx(want / static_cast<double>(rows)).epsilon(1e-13));
}

TEST_CASE("fold_scales is exact: what predicts s_out y from s_in x predicts y from x", "[models][transcoder]") {
  const auto check = [](auto activation) {
    const double s_in = 0.37, s_out = 2.9;
    auto model = make(activation, true);
    using Activation = decltype(activation);
    if constexpr (std::is_same_v<Activation, sae::JumpReLU>)
      for (Index i = 0; i < latents; ++i)
        model.parameters().activation.threshold[i] = std::abs(model.parameters().activation.threshold[i]);
    const Dense before = model.predict(s_in * x);
    const Dense codes = model.encode(s_in * x).dense();
    auto folded = model;
    folded.fold_scales(s_in, s_out);
    CAPTURE(activation.name);
    CHECK(relative_error(folded.predict(x), before / s_out) <= 1e-12);
    CHECK(relative_error(folded.encode(x).dense(), codes / s_in) <= 1e-12);
    folded.fold_scales(1 / s_in, 1 / s_out);  // and back
    CHECK(relative_error(folded.predict(s_in * x), before) <= 1e-12);
  };
  check(sae::ReLU{});
  check(sae::TopK{.k = 4, .rank_by_decoder_norm = true});
  check(sae::BatchTopK{.k = 4});
  check(sae::JumpReLU{});
  check(sae::Gated{});
  auto model = make(sae::ReLU{}, true);
  CHECK_THROWS_WITH(model.fold_scales(0, 1), "fold_scales: scales 0 and 1 are not both positive finite numbers");
  CHECK_THROWS_AS(model.fold_scales(1, std::numeric_limits<double>::infinity()), sae::ValueError);
}

TEST_CASE("a BatchTopK transcoder becomes a JumpReLU before or after its scales are folded", "[models][transcoder]") {
  for (const bool by_norm : {true, false}) {
    CAPTURE(by_norm);
    auto model = make(sae::BatchTopK{.k = 5, .rank_by_decoder_norm = by_norm}, true);
    auto& state = model.parameters().activation.threshold_state;
    state[0] = state[1] = 1;
    state[0] *= 0.9;  // threshold 0.9 in the units of the keys
    const double s_in = 0.37, s_out = 2.9;
    auto first = sae::to_jump_relu(model);
    first.fold_scales(s_in, s_out);
    auto folded = model;
    folded.fold_scales(s_in, s_out);
    const auto second = sae::to_jump_relu(folded);
    const Dense z = pre_activations(model.parameters(), s_in * x);
    Mask active(rows, latents);
    for (Index b = 0; b < rows; ++b)
      for (Index i = 0; i < latents; ++i) active(b, i) = z(b, i) * (by_norm ? norm(model.parameters(), i) : 1.0) > 0.9 ? 1 : 0;
    REQUIRE(active.cast<int>().sum() > 20);
    const Dense want = decoded(model.parameters(), naive_codes(z, active), s_in * x) / s_out;
    CHECK(mask_of(first.encode(x)) == active);
    CHECK(mask_of(second.encode(x)) == active);
    CHECK(relative_error(first.predict(x), want) <= 1e-12);
    CHECK(relative_error(second.predict(x), want) <= 1e-12);
  }
}

TEST_CASE("a Gated transcoder as a JumpReLU, fold_decoder_norms", "[models][transcoder]") {
  const auto gated = make(sae::Gated{}, true);
  const auto jump = sae::to_jump_relu(gated);
  CHECK(mask_of(jump.encode(x)) == mask_of(gated.encode(x)));
  CHECK(relative_error(jump.predict(x), gated.predict(x)) <= 1e-12);
  auto ranked = make(sae::TopK{.k = 4, .rank_by_decoder_norm = true}, true, {.sites = {2, 5}});
  const Dense before = ranked.predict(x);
  const Mask active = mask_of(ranked.encode(x));
  ranked.fold_decoder_norms();
  CHECK_FALSE(ranked.activation().rank_by_decoder_norm);
  CHECK(mask_of(ranked.encode(x)) == active);
  CHECK(relative_error(ranked.predict(x), before) <= 1e-12);
  for (Index i = 0; i < latents; ++i)
    CHECK(ranked.W_dec().row(i).head(2).norm() + ranked.W_dec().row(i).tail(5).norm() == Approx(1).epsilon(1e-12));
}

TEST_CASE("a transcoder's activation may be chosen at run time", "[models][transcoder]") {
  const auto model = make(sae::JumpReLU{}, true);
  const auto any = sae::with_any_activation(model);
  CHECK(any.predict(x) == model.predict(x));
  CHECK(any.gradient(x, y).parameters.W_skip == model.gradient(x, y).parameters.W_skip);
  CHECK(sae::with_activation<sae::JumpReLU>(any).predict(x) == model.predict(x));
  CHECK_FALSE(sae::inference_model(any).has_value());
  auto batch = make(sae::BatchTopK{.k = 5}, false);
  batch.parameters().activation.threshold_state[0] = batch.parameters().activation.threshold_state[1] = 1;
  const auto inference = sae::inference_model(sae::with_any_activation(batch));
  REQUIRE(inference.has_value());
  CHECK(inference->predict(x) == sae::to_jump_relu(batch).predict(x));
}

TEST_CASE("a transcoder's start, and at the means of its data", "[models][transcoder]") {
  const Model<sae::ReLU> model(in, out, 300, {}, {.skip = true, .encoder_norm = 0.5, .seed = 3});
  CHECK(model.W_dec().isZero(0));
  CHECK(model.W_skip().isZero(0));
  for (Index i = 0; i < 300; ++i) CHECK(model.W_enc().row(i).norm() == Approx(0.5).epsilon(1e-12));
  CHECK(model.predict(x).isZero(0));
  const Model<sae::ReLU> other(in, out, 300, {}, {.encoder_norm = 0.5, .decoder_norm = 0.1, .seed = 3});
  CHECK(other.W_enc() == model.W_enc());
  for (Index i = 0; i < 300; ++i) CHECK(other.W_dec().row(i).norm() == Approx(0.1).epsilon(1e-12));

  auto started = model;
  sae::initialize_from_means(started, sae::Batch<double>(x), sae::Batch<double>(y));
  for (Index j = 0; j < out; ++j) CHECK(started.parameters().b_dec[j] == Approx(y.col(j).mean()).epsilon(1e-12));
  const Dense z = pre_activations(started.parameters(), x);
  CHECK(z.colwise().mean().cwiseAbs().maxCoeff() <= 1e-14);
  auto gated = make(sae::Gated{}, false);
  CHECK_THROWS_WITH(sae::initialize_from_means(gated, sae::Batch<double>(x), sae::Batch<double>(y)),
                    "center_pre_activations: the activation gated leaves the model no b_enc");
  CHECK_THROWS_WITH(sae::initialize_from_data(started, sae::Batch<double>(x)),
                    "initialize_from_data: starts autoencoders; this model reads rows of 5 and writes rows of 7");
  CHECK_THROWS_AS(sae::TiedInitialization{}(started.parameters()), sae::ShapeError);
  CHECK_THROWS_AS(sae::UntiedInitialization{}(started.parameters()), sae::ShapeError);
}

TEST_CASE("a transcoder refuses what does not fit in one sentence", "[models][transcoder]") {
  using Relu = Model<sae::ReLU>;
  CHECK_THROWS_WITH(Relu(0, 3, 4), "Transcoder: sizes d_in = 0, d_out = 3, latents = 4 are not positive");
  CHECK_THROWS_WITH((sae::Transcoder<2, 3, 4, sae::ReLU>(2, 4, 4)),
                    "Transcoder: sizes [2 -> 4 -> 4] differ from the fixed ones [2 -> 4 -> 3]");
  CHECK_THROWS_WITH(Relu(2, 3, 4, {}, {.encoder_norm = 0}), "Transcoder: encoder_norm = 0 is not in (0, infinity)");
  CHECK_THROWS_WITH(Relu(2, 3, 4, {}, {.decoder_norm = -1}), "Transcoder: decoder_norm = -1 is not in [0, infinity)");
  CHECK_THROWS_WITH(Relu(2, 3, 4, {}, {.sites = {2, 2}}),
                    "Transcoder: the widths of the sites add up to 4 and not to d_out = 3");
  CHECK_THROWS_WITH(Relu(2, 3, 4, {}, {.sites = {0, 3}}), "Transcoder: a site of width 0 is not in [1, 3] (D_out)");
  const auto model = make(sae::ReLU{}, true);
  CHECK_THROWS_WITH(model.loss(x, x), "the target is [9 x 5], the reconstruction is [9 x 7]");
  CHECK_THROWS_WITH(model.loss(x, y.topRows(4)), "the target is [4 x 7], the reconstruction is [9 x 7]");
  CHECK_THROWS_WITH(model.predict(y), "rows have 7 columns, the model reads 5");
  CHECK_THROWS_WITH(model.decode(model.encode(x), x.topRows(4)), "the input is [4 x 5], the codes are of [9 x 5]");
  CHECK_THROWS_AS(model.decode(sae::Codes<double>::from_dense(sae::Batch<double>(x)), x), sae::ShapeError);
}
