// The cross-layer transcoder against a twin that goes layer by layer, and central differences of every parameter.
#include <sae/activations/any_activation.hpp>
#include <sae/models/cross_layer_transcoder.hpp>
#include <sae/models/matryoshka.hpp>
#include <sae/models/transcoder.hpp>
#include <sae/training/any_objective.hpp>
#include <sae/training/aux_k.hpp>
#include <sae/training/gated_aux.hpp>
#include <sae/training/l1.hpp>
#include <sae/training/optimizer.hpp>

#include <cmath>
#include <string>
#include <vector>

#include "catch_compat.hpp"
#include "parameter_gradient.hpp"

namespace {

using Catch::Matchers::ContainsSubstring;
using sae::Index;
using namespace sae_test;

template <class Activation>
using Model = sae::CrossLayerTranscoder<Activation, double>;

constexpr Index L = 3, d = 4, F = 20, rows = 6;
const Dense x = random_rows(rows, L*d, 1), y = random_rows(rows, L*d, 2);

template <class Activation>
Model<Activation> make(Activation activation) {
  Model<Activation> model(L, d, F, activation, {.decoder_norm = 1});
  randomise_everything(model, 7);
  return model;
}
template <class Parameters>
Dense pre_activations(const Parameters& p, Index l) {
  const auto& own = p.layers[static_cast<std::size_t>(l)];
  Dense z(rows, F);
  for (Index b = 0; b < rows; ++b)
    for (Index i = 0; i < F; ++i) {
      z(b, i) = own.b_enc.size() > 0 ? own.b_enc[i] : 0.0;
      for (Index j = 0; j < d; ++j) z(b, i) += x(b, l * d + j) * own.W_enc.row(i)[j];
    }
  return z;
}
// y'^m = b_dec^m + sum_{l <= m} f^l W_dec^{l,m}
template <class Parameters>
Dense decoded(const Parameters& p, const std::vector<Dense>& f) {
  Dense out(rows, L * d);
  for (Index m = 0; m < L; ++m)
    for (Index b = 0; b < rows; ++b)
      for (Index j = 0; j < d; ++j) {
        double sum = p.b_dec()[m * d + j];
        for (Index l = 0; l <= m; ++l)
          for (Index i = 0; i < F; ++i)
            sum += f[static_cast<std::size_t>(l)](b, i) * p.layers[static_cast<std::size_t>(l)].W_dec.row(i)[(m - l) * d + j];
        out(b, m * d + j) = sum;
      }
  return out;
}
template <class Parameters>
std::vector<Dense> codes(const Parameters& p, const std::vector<Mask>& active) {
  std::vector<Dense> out;
  for (Index l = 0; l < L; ++l) out.push_back(naive_codes(pre_activations(p, l), active[static_cast<std::size_t>(l)]));
  return out;
}
template <class Parameters>
double norm(const Parameters& p, std::size_t l, Index i) {
  return p.layers[l].W_dec.map().row(i).norm();
}

}  // namespace

TEST_CASE("a cross-layer transcoder by hand", "[models][cross_layer]") {
  sae::CrossLayerTranscoder<sae::ReLU, double> model(2, 1, 1);
  auto& p = model.parameters();
  p.layers[0].W_enc.map() << 2;
  p.layers[0].W_dec.map() << 1, 3;  // to layers 0 and 1
  p.layers[1].W_enc.map() << 1;
  p.layers[1].b_enc.map() << -1;
  p.layers[1].W_dec.map() << 5;  // to layer 1
  p.b_dec().map() << 0.5, 0;
  Dense a(1, 2), t(1, 2);
  a << 1, 3;  // f = 2 and 2
  t << 2.5, 15;
  CHECK(model.predict(a) == (Dense(1, 2) << 2.5, 16).finished());
  CHECK(model.decoder(0, 1)(0, 0) == 3);
  const auto g = model.gradient(a, t);  // G = (0, 2)
  CHECK(g.loss.total == 1);
  CHECK(g.loss.reconstruction == 1);
  CHECK(g.parameters.layers[0].W_dec.map() == (Dense(1, 2) << 0, 4).finished());
  CHECK(g.parameters.layers[1].W_dec.map() == (Dense(1, 1) << 4).finished());
  CHECK(g.parameters.layers[0].W_enc[0] == 6);   // df = 0 * 1 + 2 * 3
  CHECK(g.parameters.layers[1].W_enc[0] == 30);  // df = 2 * 5, x = 3
  CHECK(g.parameters.layers[1].b_enc[0] == 10);
  CHECK(g.parameters.b_dec().map() == (Dense(1, 2) << 0, 2).finished());
  CHECK(g.parameters.layers[1].b_dec.size() == 0);
}

TEST_CASE("gradients of a cross-layer transcoder with ReLU and L1 by the whole row's norm", "[models][cross_layer][gradient]") {
  const auto model = make(sae::ReLU{});
  std::vector<Mask> active;
  for (Index l = 0; l < L; ++l) active.push_back(naive_positive(pre_activations(model.parameters(), l)));
  const auto loss = [&](const auto& p) {
    const auto f = codes(p, active);
    double l1 = 0;
    for (std::size_t l = 0; l < f.size(); ++l)
      for (Index i = 0; i < F; ++i) l1 += f[l].col(i).sum() * norm(p, l, i);
    return naive_mean_square(decoded(p, f) - y) + 0.4 * l1 / static_cast<double>(rows);
  };
  const sae::Objective objective{sae::L1{.coefficient = 0.4}};
  const auto got = model.gradient(x, y, objective);
  CHECK(got.loss.total == Approx(loss(model.parameters())).epsilon(1e-12));
  CHECK(model.loss(x, y, objective).total == got.loss.total);
  REQUIRE(got.loss.terms.size() == 1);
  CHECK(got.loss.total == Approx(got.loss.reconstruction + got.loss.terms[0].second).epsilon(1e-12));
  check_every_gradient(model.parameters(), got.parameters, loss);
  CHECK(largest_difference(model.predict(x), decoded(model.parameters(), codes(model.parameters(), active))) <= 1e-12);
  sae::Threads one(1), three(3);
  CHECK(model.gradient(x, y, objective, one).parameters.layers[1].W_enc ==
        model.gradient(x, y, objective, three).parameters.layers[1].W_enc);
}

TEST_CASE("gradients of a cross-layer transcoder with TopK and AuxK in one layer", "[models][cross_layer][gradient]") {
  const auto model = make(sae::TopK{.k = 5});
  const auto& p0 = model.parameters();
  std::vector<std::uint8_t> dead(static_cast<std::size_t>(F), 0);
  for (Index n = 0; n < 8; ++n) dead[static_cast<std::size_t>(F - 1 - 2 * n)] = 1;
  std::vector<Mask> active;
  for (Index l = 0; l < L; ++l) active.push_back(naive_largest(pre_activations(p0, l), 5));
  const Mask chosen = naive_largest(pre_activations(p0, 1), d, {}, 0, dead);  // layer 1 writes to 2 d numbers, half of them
  const Dense residual = (y - decoded(p0, codes(p0, active))).rightCols(2 * d);
  const auto loss = [&](const auto& p) {
    const Dense aux = naive_codes(pre_activations(p, 1), chosen) * p.layers[1].W_dec.map();
    return naive_mean_square(decoded(p, codes(p, active)) - y) + 0.5 * naive_mean_square(aux - residual);
  };
  typename Model<sae::TopK>::Workspace<sae::Objective<sae::AuxK>> workspace;
  workspace.layers.resize(static_cast<std::size_t>(L));
  workspace.layers[1].step.dead = dead;
  const auto got = model.gradient(x, y, sae::Objective{sae::AuxK{.coefficient = 0.5}}, workspace);
  CHECK(got.loss.total == Approx(loss(p0)).epsilon(1e-12));
  check_every_gradient(p0, got.parameters, loss);
}

TEST_CASE("gradients of a Gated cross-layer transcoder, whose term reaches the shared b_dec",
          "[models][cross_layer][gradient]") {
  const auto model = make(sae::Gated{});
  const auto& p0 = model.parameters();
  std::vector<Mask> open, active;
  for (Index l = 0; l < L; ++l) {
    const auto& own = p0.layers[static_cast<std::size_t>(l)].activation;
    const Dense P = pre_activations(p0, l);
    open.push_back(Mask::Zero(rows, F));
    active.push_back(Mask::Zero(rows, F));
    for (Index b = 0; b < rows; ++b)
      for (Index i = 0; i < F; ++i) {
        open.back()(b, i) = P(b, i) + own.b_gate[i] > 0 ? 1 : 0;
        active.back()(b, i) = open.back()(b, i) != 0 && P(b, i) * std::exp(own.r_mag[i]) + own.b_mag[i] > 0 ? 1 : 0;
      }
  }
  // Each layer's gates alone, with the codes of the other layers, reconstruct what it writes to. The library holds the other layers'
  // codes constant in that.
  const auto magnitudes = [&](const auto& p, Index l, bool gates) {
    const auto at = static_cast<std::size_t>(l);
    const auto& own = p.layers[at].activation;
    const Dense P = pre_activations(p, l);
    Dense out = Dense::Zero(rows, F);
    for (Index b = 0; b < rows; ++b)
      for (Index i = 0; i < F; ++i) {
        if (gates && open[at](b, i) != 0) out(b, i) = P(b, i) + own.b_gate[i];
        if (!gates && active[at](b, i) != 0) out(b, i) = P(b, i) * std::exp(own.r_mag[i]) + own.b_mag[i];
      }
    return out;
  };
  const auto loss = [&](const auto& p) {
    std::vector<Dense> f;
    for (Index l = 0; l < L; ++l) f.push_back(magnitudes(p, l, false));
    double sum = naive_mean_square(decoded(p, f) - y);
    for (Index l = 0; l < L; ++l) {
      const auto at = static_cast<std::size_t>(l);
      std::vector<Dense> zero(static_cast<std::size_t>(L), Dense::Zero(rows, F)), rest;
      for (Index m = 0; m < L; ++m) rest.push_back(m == l ? Dense(Dense::Zero(rows, F)) : magnitudes(p0, m, false));
      zero[at] = magnitudes(p, l, true);
      Dense others = decoded(p0, rest);  // the other layers' part, held constant, without b_dec
      others.rowwise() -= p0.b_dec().map().row(0);
      sum += naive_mean_square((decoded(p, zero) + others - y).rightCols((L - l) * d));
    }
    return sum;
  };
  const auto got = model.gradient(x, y, sae::Objective{sae::GatedAux{.coefficient = 0, .detach_decoder = false}});
  CHECK(got.loss.total == Approx(loss(p0)).epsilon(1e-12));
  check_every_gradient(p0, got.parameters, loss);
}

TEST_CASE("one layer is a transcoder", "[models][cross_layer]") {
  sae::CrossLayerTranscoder<sae::TopK, double> model(1, 5, F, {.k = 4}, {.decoder_norm = 1});
  sae::Transcoder<sae::Dynamic, sae::Dynamic, sae::Dynamic, sae::TopK, double> twin(5, 5, F, {.k = 4}, {.decoder_norm = 1});
  CHECK(model.parameters().layers[0].W_enc == twin.parameters().W_enc);
  randomise_everything(model, 3);
  twin.parameters() = model.parameters().layers[0];
  const Dense a = random_rows(rows, 5, 1), t = random_rows(rows, 5, 2);
  CHECK(relative_error(model.predict(a), twin.predict(a)) <= 1e-13);  // b_dec is added first or last
  const auto got = model.gradient(a, t);
  const auto want = twin.gradient(a, t);
  CHECK(got.loss.total == Approx(want.loss.total).epsilon(1e-13));
  CHECK(relative_error(got.parameters.layers[0].W_enc.map(), want.parameters.W_enc.map()) <= 1e-12);
  CHECK(relative_error(got.parameters.layers[0].W_dec.map(), want.parameters.W_dec.map()) <= 1e-12);
  CHECK(relative_error(got.parameters.b_dec().map(), want.parameters.b_dec.map()) <= 1e-12);
}

TEST_CASE("a cross-layer transcoder learns in the loop that its comment shows", "[models][cross_layer]") {
  using Any = Model<sae::AnyActivation>;
  Any model(L, d, F, sae::BatchTopK{.k = 8});
  const Dense inputs = random_rows(96, L * d, 5), mix = random_rows(L * d, L * d, 6, 0.3);
  Dense causal = mix;  // layer m reads layers up to m alone
  for (Index l = 0; l < L; ++l)
    for (Index m = 0; m < l; ++m) causal.block(l * d, m * d, d, d).setZero();
  const Dense targets = ((inputs * causal).cwiseMax(0.0)).array() + 1;
  sae::Threads threads(2);
  sae::OptimizerState<double> state(sae::Adam{});
  Any::Parameters::visit([&](auto name, const auto& w) { state.add(name, w.rows(), w.cols()); }, model.parameters());
  const sae::AnyObjective objective;
  Any::Workspace<sae::AnyObjective> workspace;
  const double before = model.loss(inputs, targets).total;
  for (Index t = 1; t <= 200; ++t) {
    auto gradient = model.gradient(inputs, targets, objective, workspace, threads);
    model.observe(workspace);
    state.begin_step(t, 0.01);
    Any::Parameters::visit([&](auto name, auto& w, auto& g) { state.update(state.slots(name), w, g, threads); },
                           model.parameters(), gradient.parameters);
    model.parameters().constrain();
  }
  CHECK(model.loss(inputs, targets).total < 0.1 * before);
  for (const auto& layer : model.parameters().layers) {
    const auto& threshold = layer.activation.get<sae::BatchTopK>()->threshold_state;
    CHECK(threshold[0] > 0);
    CHECK(threshold[2] == 200);
  }
}

TEST_CASE("a cross-layer transcoder refuses what does not fit in one sentence", "[models][cross_layer]") {
  using Relu = Model<sae::ReLU>;
  CHECK_THROWS_WITH(Relu(0, 2, 3),
                    "CrossLayerTranscoder: sizes layers = 0, d_in = 2, latents = 3 are not all positive with layers d_in and "
                    "latents at most 2^30");
  CHECK_THROWS_WITH(Relu(2, 2, 3, {}, {.encoder_norm = -1}), "CrossLayerTranscoder: encoder_norm = -1 is not in (0, infinity)");
  CHECK_THROWS_WITH(Relu(2, 2, 3, {}, {.decoder_norm = -1}), "CrossLayerTranscoder: decoder_norm = -1 is not in [0, infinity)");
  CHECK_THROWS_WITH(
      (Model<sae::TopK>(2, 2, 3, {.k = 1, .rank_by_decoder_norm = true})),
      "CrossLayerTranscoder: decoder_norm = 0, and topk ranks by the decoder norm: no latent would ever be active");
  const auto model = make(sae::ReLU{});
  CHECK_THROWS_WITH(model.predict(x.leftCols(11)), "the input has 11 columns, the model needs 3 layers of 4 side by side, 12");
  CHECK_THROWS_WITH(model.loss(x, y.leftCols(4)), "the target has 4 columns, the model needs 3 layers of 4 side by side, 12");
  CHECK_THROWS_WITH(model.loss(x, y.topRows(3)), "the input has 6 rows, the target 3");
  CHECK_THROWS_WITH(model.decode({}), "there are codes of 0 layers, the model has 3");
  CHECK_THROWS_WITH(model.decoder(2, 1), "CrossLayerTranscoder: no decoder from layer 2 to layer 1 of 3");
  CHECK_THROWS_WITH(model.loss(x, y, sae::Objective{sae::Matryoshka{.widths = {10}}}),
                    "CrossLayerTranscoder: matryoshka is a reconstruction loss; this model has its own");
  CHECK_THROWS_WITH(model.loss(x, y, sae::AnyObjective{sae::SquaredError{}}),
                    "CrossLayerTranscoder: squared_error is a reconstruction loss; this model has its own");
}

TEST_CASE("a skip of a cross-layer transcoder goes from each layer's input to its own output alone",
          "[models][cross_layer][gradient]") {
  const auto with_skip = [](auto activation) {
    Model<decltype(activation)> model(L, d, F, activation, {.skip = true, .decoder_norm = 1});
    randomise_everything(model, 7);
    return model;
  };
  const auto skipped = [](const auto& p, Dense out) {
    for (Index m = 0; m < L; ++m)
      for (Index b = 0; b < rows; ++b)
        for (Index i = 0; i < d; ++i)
          for (Index j = 0; j < d; ++j)
            out(b, m * d + i) += x(b, m * d + j) * p.layers[static_cast<std::size_t>(m)].W_skip.row(i)[j];
    return out;
  };
  const auto model = with_skip(sae::TopK{.k = 5});
  const auto& p0 = model.parameters();
  CHECK(model.has_skip());
  std::vector<Mask> active;
  for (Index l = 0; l < L; ++l) active.push_back(naive_largest(pre_activations(p0, l), 5));
  const auto loss = [&](const auto& p) { return naive_mean_square(skipped(p, decoded(p, codes(p, active))) - y); };
  const auto got = model.gradient(x, y);
  CHECK(got.loss.total == Approx(loss(p0)).epsilon(1e-12));
  check_every_gradient(p0, got.parameters, loss);
  CHECK(largest_difference(model.predict(x), skipped(p0, decoded(p0, codes(p0, active)))) <= 1e-12);
  CHECK(model.decode(model.encode(x), x) == model.predict(x));
  CHECK_THROWS_WITH(model.decode(model.encode(x)), ContainsSubstring("with a skip predicts; give the rows, too"));
  CHECK_THROWS_WITH(model.decode(model.encode(x), x.topRows(2)), "the input has 2 rows, the codes 6");

  // A term's own reconstruction (Gated's, in each layer of all that the layer writes to) has the skips in it as well.
  const auto gated = with_skip(sae::Gated{});
  const sae::Objective aux{sae::GatedAux{.coefficient = 0, .detach_decoder = false}};
  const auto exact = gated.gradient(x, y, aux);
  for (std::size_t l = 0; l < static_cast<std::size_t>(L); ++l) {
    auto moved = gated;
    constexpr double h = 1e-5;
    Dense want(d, d);
    for (Index i = 0; i < d * d; ++i) {
      auto& w = moved.parameters().layers[l].W_skip;
      const double before = w[i];
      w[i] = before + h;
      const double above = moved.loss(x, y, aux).total;
      w[i] = before - h;
      want.data()[i] = (above - moved.loss(x, y, aux).total) / (2 * h);
      w[i] = before;
    }
    CAPTURE(l);
    CHECK(relative_error(exact.parameters.layers[l].W_skip.map(), want) <= 1e-6);
  }

  // Scales of the rows it was trained on, folded.
  auto folded = model;
  const std::vector<double> in{2, 0.5, 4}, out{0.25, 3, 1};
  folded.fold_scales(in, out);
  Dense scaled = x;
  for (Index l = 0; l < L; ++l) scaled.middleCols(l * d, d) *= in[static_cast<std::size_t>(l)];
  Dense back = model.predict(scaled);
  for (Index l = 0; l < L; ++l) back.middleCols(l * d, d) /= out[static_cast<std::size_t>(l)];
  CHECK(largest_difference(folded.predict(x), back) <= 1e-12);
}

TEST_CASE("a cross-layer transcoder is made of parameters, where they are some", "[models][cross_layer]") {
  Model<sae::Gated> model(L, d, F, {}, {.skip = true});
  randomise_everything(model, 9);
  CHECK((Model<sae::Gated>(model.parameters(), {})).predict(x) == model.predict(x));
  const auto refused = [&](const auto& change) {
    auto p = model.parameters();
    change(p.layers);
    CHECK_THROWS_WITH((Model<sae::Gated>(p, {})), ContainsSubstring("CrossLayerTranscoder: the parameters"));
  };
  refused([](auto& layers) { layers.clear(); });
  refused([](auto& layers) { layers.pop_back(); });
  refused([](auto& layers) { layers[1].W_skip.resize(0, 0); });
  refused([](auto& layers) { layers[2].W_enc.resize(F, d + 1); });
  refused([](auto& layers) { layers[2].b_dec.resize(1, d); });
  refused([](auto& layers) { layers[0].b_dec.resize(1, d); });
  refused([](auto& layers) { layers[1].b_enc.resize(1, F); });
}
