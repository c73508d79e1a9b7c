// Crosscoders against a twin that keeps every site apart.
#include <sae/data/indexed_source.hpp>
#include <sae/formats/saelens.hpp>
#include <sae/models/any_model.hpp>
#include <sae/models/crosscoder.hpp>
#include <sae/training/trainer.hpp>

#include <cmath>
#include <vector>

#include "catch_compat.hpp"
#include "parameter_gradient.hpp"
#include "temp_folder.hpp"

namespace {

using sae::Dynamic;
using sae::Index;
using namespace sae_test;

template <class Activation>
using Model = sae::SparseAutoencoder<Dynamic, Dynamic, Activation, double>;

const std::vector<Index> sites{4, 2, 3};
constexpr Index width = 9, latents = 30, rows = 8;
const Dense x = random_rows(rows, width, 1);

// The parameters site by site: z = sum_s x^s W_enc^s^T + b_enc, x'^s = f W_dec^s + b_dec^s, n_i = sum_s |W_dec^s[i]|.
struct Site {
  Dense W_enc, W_dec, b_dec, x;
};
template <class Parameters>
std::vector<Site> apart(const Parameters& p, const Dense& all) {
  std::vector<Site> out;
  Index first = 0;
  for (const Index n : sites) {
    out.push_back({p.W_enc.map().middleCols(first, n), p.W_dec.map().middleCols(first, n), p.b_dec.map().middleCols(first, n),
                   all.middleCols(first, n)});
    first += n;
  }
  return out;
}
template <class Parameters>
Dense pre_activations(const Parameters& p) {
  Dense z(rows, latents);
  for (Index b = 0; b < rows; ++b)
    for (Index i = 0; i < latents; ++i) {
      z(b, i) = p.b_enc[i];
      for (const Site& s : apart(p, x))
        for (Index j = 0; j < s.x.cols(); ++j) z(b, i) += s.x(b, j) * s.W_enc(i, j);
    }
  return z;
}
template <class Parameters>
std::vector<double> norms(const Parameters& p) {
  std::vector<double> out(static_cast<std::size_t>(latents), 0.0);
  for (const Site& s : apart(p, x)) {
    const auto own = naive_norms(s.W_dec);
    for (std::size_t i = 0; i < out.size(); ++i) out[i] += own[i];
  }
  return out;
}
template <class Parameters>
double error(const Parameters& p, const Dense& f) {
  double sum = 0;
  for (const Site& s : apart(p, x))
    for (Index b = 0; b < rows; ++b)
      for (Index j = 0; j < s.x.cols(); ++j) {
        double y = s.b_dec(0, j);
        for (Index i = 0; i < latents; ++i) y += f(b, i) * s.W_dec(i, j);
        sum += (y - s.x(b, j)) * (y - s.x(b, j));
      }
  return sum / static_cast<double>(rows);
}
template <class Activation>
Model<Activation> make(Activation activation) {
  Model<Activation> model(width, latents, activation, sae::crosscoder(sites));
  randomise_everything(model, 3);
  return model;
}

}  // namespace

TEST_CASE("a crosscoder by hand: L1 weighs by the sum of the sites' norms", "[models][crosscoder]") {
  sae::SparseAutoencoder<4, 1, sae::ReLU, double> model({}, sae::crosscoder({2, 2}));
  CHECK_FALSE(model.subtracts_decoder_bias());
  model.W_enc() << 1, 0, 1, 0;
  model.W_dec() << 3, 4, 0, 2;
  Dense a(1, 4);
  a << 1, 5, 1, 5;  // z = 2: both sites add up
  CHECK(model.encode_dense(a)(0, 0) == 2);
  const auto g = model.gradient(a, sae::Objective{sae::L1{.coefficient = 0.5}});
  CHECK(g.loss.terms[0].second == 0.5 * 2 * (5 + 2));  // and not sqrt(29)
  const auto plain = model.gradient(a);
  const Dense difference = g.parameters.W_dec.map() - plain.parameters.W_dec.map();
  CHECK(largest_difference(difference, (Dense(1, 4) << 0.6, 0.8, 0, 1).finished()) <= 1e-14);  // d_i^s / |d_i^s| each
  CHECK(sae::site_norms(model) == (Dense(1, 2) << 5, 2).finished());
}

TEST_CASE("gradients of a crosscoder with L1 weighted by the sites' norms", "[models][crosscoder][gradient]") {
  const auto model = make(sae::ReLU{});
  const Mask active = naive_positive(pre_activations(model.parameters()));
  const auto loss = [&](const auto& p) {
    const Dense f = naive_codes(pre_activations(p), active);
    const auto n = norms(p);
    double l1 = 0;
    for (Index b = 0; b < rows; ++b)
      for (Index i = 0; i < latents; ++i) l1 += f(b, i) * n[static_cast<std::size_t>(i)];
    return error(p, f) + 0.6 * l1 / static_cast<double>(rows);
  };
  const auto got = model.gradient(x, sae::Objective{sae::L1{.coefficient = 0.6}});
  CHECK(got.loss.total == Approx(loss(model.parameters())).epsilon(1e-12));
  check_every_gradient(model.parameters(), got.parameters, loss);
  // A site where a latent writes nothing has no slope of its norm.
  auto zero = model;
  zero.W_dec().block(5, 4, 1, 2).setZero();
  const auto at = zero.gradient(x, sae::Objective{sae::L1{.coefficient = 0.6}}).parameters.W_dec;
  const auto without = zero.gradient(x).parameters.W_dec;
  CHECK(at.map().block(5, 4, 1, 2) == without.map().block(5, 4, 1, 2));
  CHECK(at.map().row(5) != without.map().row(5));
}

TEST_CASE("a crosscoder ranks by the sum of the sites' norms, and folds them", "[models][crosscoder]") {
  auto model = make(sae::TopK{.k = 5, .rank_by_decoder_norm = true});
  for (Index i = 0; i < latents; i += 2) {  // every second latent writes to one site alone, where the two norms are the same
    model.W_dec().row(i).head(4) *= 2;
    model.W_dec().row(i).tail(5).setZero();
  }
  const Dense z = pre_activations(model.parameters());
  const Mask want = naive_largest(z, 5, norms(model.parameters()));
  REQUIRE(want != naive_largest(z, 5, naive_norms(model.W_dec())));  // the whole row's norm chooses others
  CHECK(mask_of(model.encode(x)) == want);
  const auto loss = [&](const auto& p) { return error(p, naive_codes(pre_activations(p), want)); };
  check_every_gradient(model.parameters(), model.gradient(x).parameters, loss);
  const Dense before = model.reconstruct(x);
  model.fold_decoder_norms();
  CHECK(mask_of(model.encode(x)) == want);
  CHECK(relative_error(model.reconstruct(x), before) <= 1e-12);
  for (const double n : norms(model.parameters())) CHECK(n == Approx(1).epsilon(1e-12));
}

TEST_CASE("a crosscoder keeps its sites when its activation changes", "[models][crosscoder]") {
  const auto any = sae::with_any_activation(make(sae::TopK{.k = 5, .rank_by_decoder_norm = true}));
  CHECK(std::vector<Index>(any.sites().begin(), any.sites().end()) == sites);
  const auto model = make(sae::TopK{.k = 5, .rank_by_decoder_norm = true});
  CHECK(any.encode_dense(x) == model.encode_dense(x));
  auto batch = make(sae::BatchTopK{.k = 5, .rank_by_decoder_norm = true});
  batch.parameters().activation.threshold_state[0] = batch.parameters().activation.threshold_state[1] = 1.2;
  const auto jump = sae::to_jump_relu(batch);
  const Dense z = pre_activations(batch.parameters());
  const auto n = norms(batch.parameters());
  const Mask active = mask_of(jump.encode(x));
  REQUIRE(active.cast<int>().sum() > 20);
  for (Index b = 0; b < rows; ++b)
    for (Index i = 0; i < latents; ++i) CHECK((active(b, i) != 0) == (z(b, i) * n[static_cast<std::size_t>(i)] > 1.0));
}

TEST_CASE("fold_site_scales: trained on scaled sites, reads them as they are", "[models][crosscoder]") {
  auto model = make(sae::JumpReLU{});
  for (Index i = 0; i < latents; ++i)
    model.parameters().activation.threshold[i] = std::abs(model.parameters().activation.threshold[i]);
  const std::vector<double> scales{0.5, 3, 1.7};
  Dense scaled = x;
  scaled.middleCols(0, 4) *= 0.5;
  scaled.middleCols(4, 2) *= 3;
  scaled.middleCols(6, 3) *= 1.7;
  const Dense codes = model.encode_dense(scaled);
  Dense want = model.reconstruct(scaled);
  want.middleCols(0, 4) /= 0.5;
  want.middleCols(4, 2) /= 3;
  want.middleCols(6, 3) /= 1.7;
  sae::fold_site_scales(model, scales);
  CHECK(relative_error(model.encode_dense(x), codes) <= 1e-12);
  CHECK(relative_error(model.reconstruct(x), want) <= 1e-12);
  CHECK_THROWS_WITH(sae::fold_site_scales(model, {1, 2}), "fold_site_scales: 2 scales for 3 sites");
  CHECK_THROWS_WITH(sae::fold_site_scales(model, {1, 0, 2}), "fold_site_scales: scale 0 is not a positive finite number");
  auto ranked = make(sae::TopK{.k = 5, .rank_by_decoder_norm = true});
  CHECK_THROWS_AS(sae::fold_site_scales(ranked, scales), sae::ValueError);
}

TEST_CASE("a unit decoder is one for the whole row of a crosscoder", "[models][crosscoder]") {
  auto model = make(sae::TopK{.k = 5});
  sae::MatrixSource<double> source(x, {.shuffle = false});
  sae::Trainer trainer(model, {.steps = 3, .batch = 8, .normalisation = sae::Normalisation::none});
  trainer.fit(source);
  CHECK(trainer.config().decoder == sae::DecoderNorm::unit);
  for (Index i = 0; i < latents; ++i) CHECK(model.W_dec().row(i).norm() == Approx(1).epsilon(1e-12));
}

TEST_CASE("a saved crosscoder is the SparseAutoencoder that computes the same", "[models][crosscoder]") {
  const TempFolder folder;
  const auto relu = make(sae::ReLU{});
  sae::save_saelens(relu, folder / "relu", {}, {.dtype = sae::Dtype::float64});
  const auto plain = sae::load_saelens<Model<sae::ReLU>>(folder / "relu");
  CHECK(plain.encode_dense(x) == relu.encode_dense(x));
  CHECK(plain.reconstruct(x) == relu.reconstruct(x));
  // One that ranks by the sites' norms is saved folded by them, so that it chooses as before.
  const auto ranked = make(sae::TopK{.k = 5, .rank_by_decoder_norm = true});
  sae::save_saelens(ranked, folder / "topk", {}, {.dtype = sae::Dtype::float64});
  const auto folded = sae::load_saelens<Model<sae::TopK>>(folder / "topk");
  CHECK(mask_of(folded.encode(x)) == mask_of(ranked.encode(x)));
  CHECK(relative_error(folded.reconstruct(x), ranked.reconstruct(x)) <= 1e-12);
}

TEST_CASE("sites that do not fit are refused", "[models][crosscoder]") {
  CHECK_THROWS_WITH(Model<sae::ReLU>(9, 4, {}, sae::crosscoder({4, 4})),
                    "SparseAutoencoder: the widths of the sites add up to 8 and not to d_in = 9");
  CHECK_THROWS_WITH(Model<sae::ReLU>(9, 4, {}, sae::crosscoder({0, 9})),
                    "SparseAutoencoder: a site of width 0 is not in [1, 9] (D)");
}
