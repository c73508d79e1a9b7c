// What is folded into a model changes nothing of what it computes: scales of the rows (both ways), decoder norms, linear maps, for
// every activation that can be chosen at run time; and SAELens' own folds, number by number.
#include <sae/files/npy.hpp>
#include <sae/files/safetensors.hpp>
#include <sae/models/any_model.hpp>
#include <sae/models/matryoshka.hpp>
#include <sae/training/covariance_whitening.hpp>

#include <filesystem>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "catch_compat.hpp"
#include "gradient_check.hpp"

namespace {

namespace fs = std::filesystem;
using sae::AnyActivation;
using sae::Index;
using namespace sae_test;

using Model = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, AnyActivation, double>;
template <class Activation>
using Own = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, Activation, double>;

const fs::path peers = fs::path(SAE_TEST_DATA) / "peers" / "inference";
constexpr Index width = 10, latents = 72, rows = 60;

struct Case {
  AnyActivation activation;
  bool by_norm() const {
    const bool* const out = sae::detail::rank_by_norm(activation);
    return out != nullptr && *out;
  }
  bool ranks() const { return sae::detail::rank_by_norm(activation) != nullptr; }
};
std::vector<Case> every_activation() {
  std::vector<Case> out{{sae::ReLU{}}, {sae::JumpReLU{}}, {sae::Gated{}}};
  for (const bool by_norm : {false, true}) {
    out.push_back({sae::TopK{.k = 7, .rank_by_decoder_norm = by_norm}});
    out.push_back({sae::BatchTopK{.k = 7, .rank_by_decoder_norm = by_norm}});
    out.push_back({sae::AbsTopK{.k = 7, .rank_by_decoder_norm = by_norm}});
    out.push_back({sae::GroupMax{.k = 8, .rank_by_decoder_norm = by_norm}});
  }
  return out;
}

// Every tensor random, thresholds positive, decoder rows of very different norms.
template <class M>
void fill(M& model, std::uint64_t seed) {
  const double unit = 1 / std::sqrt(static_cast<double>(model.d_in()));
  M::Parameters::visit(
      [&](std::string_view name, auto& tensor) {
        const double scale = name.starts_with("W_") ? unit : 0.4;
        tensor.map() = random_rows(tensor.rows(), tensor.cols(), ++seed, scale);
        if (name == "threshold") tensor.map() = tensor.map().cwiseAbs().eval();
        if (name == "W_dec")
          for (Index i = 0; i < tensor.rows(); ++i) tensor.map().row(i) *= 0.3 + 0.05 * static_cast<double>(i);
      },
      model.parameters());
  if (auto* state = sae::detail::own_parameters<sae::BatchTopK>(model.parameters().activation)) {
    state->threshold_state.resize(1, 3);
    state->threshold_state[0] = 0.8;
    state->threshold_state[1] = 1;
  }
}
double relative(const Dense& got, const Dense& want) { return largest_difference(got, want) / largest_magnitude(want); }

}  // namespace

TEST_CASE("the folds are tested for every activation that there is", "[models][fold]") {
  std::set<std::size_t> seen;
  for (const Case& c : every_activation()) seen.insert(c.activation.index());
  CHECK(seen.size() + 2 == std::variant_size_v<AnyActivation::Variants>);  // the pursuits: a test of their own
}

TEST_CASE("a scale of the rows is folded into a pursuit, its stopping threshold included", "[models][fold]") {
  const double scale = 0.037;
  const Dense raw = random_rows(rows, width, 6, 20);
  const Dense scaled = scale * raw;
  for (const AnyActivation& activation :
       {AnyActivation(sae::MatchingPursuit{.residual_threshold = 0.9 * scale * 20, .max_iterations = 4}),
        AnyActivation(sae::OrthogonalMatchingPursuit{.k = 3})}) {
    CAPTURE(activation.name);
    Model before(width, latents, activation, {.initialization = {.seed = 5}});  // rows of norm 1
    const auto codes = before.encode(scaled);
    REQUIRE(codes.size() > rows / 2);
    Model after = before;
    after.fold_input_scale(scale);
    CHECK(mask_of(after.encode(raw)) == mask_of(codes));
    CHECK(relative(after.encode_dense(raw), codes.dense() / scale) <= 1e-12);
    CHECK(relative(after.reconstruct(raw), before.reconstruct(scaled) / scale) <= 1e-12);
    CHECK(after.W_dec() == before.W_dec());
    CHECK_THROWS_AS(after.fold_input_scale(scale, sae::ScaleFold::weights), sae::ValueError);
    CHECK_THROWS_AS(after.fold_decoder_norms(), sae::ValueError);
  }
}

TEST_CASE("a scale of the rows is folded into activations or weights, for every activation", "[models][fold]") {
  const double scale = 0.037;
  const Dense raw = random_rows(rows, width, 6, 20);
  const Dense scaled = scale * raw;
  for (const Case& c : every_activation())
    for (const bool subtract : {true, false}) {
      CAPTURE(c.activation.name, c.by_norm(), subtract);
      Model before(width, latents, c.activation, {.subtract_decoder_bias = subtract});
      fill(before, 3);
      const auto codes = before.encode(scaled);
      REQUIRE(codes.size() > rows);
      const Dense want = before.reconstruct(scaled) / scale;
      for (const auto fold : {sae::ScaleFold::activations, sae::ScaleFold::weights}) {
        Model after = before;
        after.fold_input_scale(scale, fold);
        const bool weights = fold == sae::ScaleFold::weights;
        CHECK(mask_of(after.encode(raw)) == mask_of(codes));
        CHECK(relative(after.encode_dense(raw), codes.dense() / (weights ? 1.0 : scale)) <= 1e-12);
        CHECK(relative(after.reconstruct(raw), want) <= 1e-12);
        CHECK((after.W_enc() == before.W_enc()) == !weights);
        CHECK((after.W_dec() == before.W_dec()) == !weights);

        if (c.activation.get<sae::BatchTopK>() == nullptr) continue;
        // The running threshold goes along: as a JumpReLU both choose the same.
        const auto wanted = sae::to_jump_relu(sae::with_activation<sae::BatchTopK>(before));
        const auto active = mask_of(wanted.encode(scaled));
        REQUIRE(active.cast<int>().sum() > rows);
        const auto got = sae::to_jump_relu(sae::with_activation<sae::BatchTopK>(after));
        CHECK(mask_of(got.encode(raw)) == active);
        CHECK(relative(got.reconstruct(raw), wanted.reconstruct(scaled) / scale) <= 1e-12);
        if (weights && !c.by_norm()) continue;  // a threshold on z, which this fold leaves as it is
        auto forgotten = sae::with_activation<sae::BatchTopK>(after);
        forgotten.parameters().activation.threshold_state[0] = 0.8;
        CHECK(mask_of(sae::to_jump_relu(forgotten).encode(raw)) != active);
      }
    }
  Own<sae::ReLU> model(3, 4);
  for (const double bad : {0.0, -1.0, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()})
    CHECK_THROWS_WITH(model.fold_input_scale(bad, sae::ScaleFold::weights),
                      Catch::Matchers::ContainsSubstring("is not in (0, infinity)"));
}

TEST_CASE("decoder norms are folded for every activation whose choice they do not change", "[models][fold]") {
  const Dense x = random_rows(rows, width, 7);
  for (const Case& c : every_activation())
    for (const bool subtract : {true, false}) {
      CAPTURE(c.activation.name, c.by_norm(), subtract);
      Model before(width, latents, c.activation, {.subtract_decoder_bias = subtract});
      fill(before, 4);
      Model after = before;
      if (c.ranks() && !c.by_norm()) {
        CHECK_THROWS_WITH(after.fold_decoder_norms(), Catch::Matchers::ContainsSubstring("would select other latents"));
        CHECK(after.W_enc() == before.W_enc());
        CHECK(after.W_dec() == before.W_dec());
        // It would: without the refusal other latents win.
        *sae::detail::rank_by_norm(const_cast<AnyActivation&>(after.activation())) = true;
        CHECK(mask_of(after.encode(x)) != mask_of(before.encode(x)));
        continue;
      }
      const std::vector<double> norms = naive_norms(before.W_dec());
      after.fold_decoder_norms();
      Dense codes = before.encode_dense(x);
      for (Index i = 0; i < latents; ++i) codes.col(i) *= norms[static_cast<std::size_t>(i)];
      CHECK(mask_of(after.encode(x)) == mask_of(before.encode(x)));
      CHECK(relative(after.encode_dense(x), codes) <= 1e-12);
      CHECK(relative(after.reconstruct(x), before.reconstruct(x)) <= 1e-12);
      for (const double norm : naive_norms(after.W_dec())) CHECK(std::abs(norm - 1) <= 1e-14);
      if (c.activation.get<sae::BatchTopK>() == nullptr) continue;
      const auto wanted = sae::to_jump_relu(sae::with_activation<sae::BatchTopK>(before));
      const auto got = sae::to_jump_relu(sae::with_activation<sae::BatchTopK>(after));
      CHECK(mask_of(got.encode(x)) == mask_of(wanted.encode(x)));
    }
}

TEST_CASE("a linear map of the rows is folded exactly, codes and all, for every activation", "[models][fold]") {
  const Dense mixing = random_rows(width, width, 31), offset = random_rows(1, width, 32, 3);
  const Dense x = (random_rows(rows, width, 33) * mixing).rowwise() + offset.row(0);
  sae::Tensor<double> sample(rows, width);
  sample.map() = x;
  const sae::Whitening whitening = sae::whitening_of(sample, 1e-6);
  const Dense y = (x.rowwise() - whitening.mean.map().row(0)) * whitening.matrix.map();
  for (const Case& c : every_activation())
    for (const bool subtract : {true, false}) {
      CAPTURE(c.activation.name, c.by_norm(), subtract);
      Model before(width, latents, c.activation, {.subtract_decoder_bias = subtract});
      fill(before, 5);
      Model after = before;
      const auto fold = [&] { after.fold_input_map(whitening.mean, whitening.matrix, whitening.inverse); };
      if (before.parameters().b_enc.size() == 0 && !subtract) {
        CHECK_THROWS_WITH(fold(),
                          "fold_input_map: a model of gated that does not subtract b_dec has no b_enc to take the mean");
        continue;
      }
      if (c.by_norm()) {
        CHECK_THROWS_WITH(fold(), Catch::Matchers::ContainsSubstring("fold_decoder_norms first"));
        CHECK(after.W_enc() == before.W_enc());
        before.fold_decoder_norms();
        after = before;
      }
      fold();
      CHECK(mask_of(after.encode(x)) == mask_of(before.encode(y)));
      CHECK(relative(after.encode_dense(x), before.encode_dense(y)) <= 1e-10);
      const Dense want = (before.reconstruct(y) * whitening.inverse.map()).rowwise() + whitening.mean.map().row(0);
      CHECK(relative(after.reconstruct(x), want) <= 1e-10);
    }
  Own<sae::ReLU> model(width, 4);
  CHECK_THROWS_AS(model.fold_input_map(sae::Tensor<double>(1, 9), whitening.matrix, whitening.inverse), sae::ShapeError);
  CHECK_THROWS_AS(model.fold_input_map(whitening.mean, sae::Tensor<double>(9, 10), whitening.inverse), sae::ShapeError);
  CHECK_THROWS_AS(model.fold_input_map(whitening.mean, whitening.matrix, sae::Tensor<double>(10, 9)), sae::ShapeError);
}

TEST_CASE("folds one behind the other, and Gated as a JumpReLU at any place among them", "[models][fold]") {
  const double scale = 2.5;
  const Dense x = random_rows(rows, width, 8);
  Own<sae::Gated> gated(width, latents);
  fill(gated, 6);
  const Dense want = gated.reconstruct(scale * x) / scale;
  auto late = gated;
  late.fold_input_scale(scale);
  late.fold_decoder_norms();
  auto early = sae::to_jump_relu(gated);
  CHECK(mask_of(early.encode(scale * x)) == mask_of(gated.encode(scale * x)));
  CHECK(relative(early.encode_dense(scale * x), gated.encode_dense(scale * x)) <= 1e-12);
  early.fold_decoder_norms();
  early.fold_input_scale(scale, sae::ScaleFold::weights);
  CHECK(mask_of(early.encode(x)) == mask_of(gated.encode(scale * x)));
  CHECK(relative(late.reconstruct(x), want) <= 1e-12);
  CHECK(relative(sae::to_jump_relu(late).reconstruct(x), want) <= 1e-12);
  CHECK(relative(early.reconstruct(x), want) <= 1e-12);
}

TEST_CASE("Matryoshka with one level is the squared error of its BatchTopK", "[models][fold]") {
  Own<sae::BatchTopK> model(width, latents, {.k = 7});
  fill(model, 7);
  const Dense x = random_rows(rows, width, 9);
  const auto one = model.gradient(x, sae::Objective{sae::Matryoshka{.widths = {latents}}});
  const auto plain = model.gradient(x);
  CHECK(one.loss.total == Approx(plain.loss.total).epsilon(1e-13));
  Own<sae::BatchTopK>::Parameters::visit(
      [&](std::string_view name, const auto& a, const auto& b) {
        CAPTURE(name);
        CHECK(relative_error(a.map(), b.map()) <= 1e-12);
      },
      one.parameters, plain.parameters);
}

TEST_CASE("a TopK that ranks by the norm: norms cancel in codes and gradients", "[models][fold]") {
  const Dense x = random_rows(9, width, 10);
  Own<sae::TopK> ranked(width, latents, {.k = 7, .rank_by_decoder_norm = true}), plain(width, latents, {.k = 7});
  fill(ranked, 8);
  const NaiveModel twin = naive(ranked);
  const std::vector<double> norms = naive_norms(twin.W_dec);
  const Mask active = naive_largest(naive_pre_activations(twin, x), 7, norms);
  REQUIRE(mask_of(ranked.encode(x)) == active);
  // As SAELens writes it: f = z |d|, x' = (f / |d|) W_dec + b_dec, the norms differentiated both times.
  const auto loss = [&](const NaiveModel& m) {
    const std::vector<double> n = naive_norms(m.W_dec);
    Dense f = naive_codes(naive_pre_activations(m, x), active);
    for (Index i = 0; i < latents; ++i) f.col(i) = (f.col(i) * n[static_cast<std::size_t>(i)]) / n[static_cast<std::size_t>(i)];
    return naive_mean_square(naive_decode(m, f) - x);
  };
  check_gradient(twin, ranked.gradient(x).parameters, loss);

  // Rows of one norm: the same choice, and the same bytes with and without norms.
  for (Index i = 0; i < latents; ++i) ranked.W_dec().row(i).setZero(), ranked.W_dec()(i, i % width) = i % 2 == 0 ? 2 : -2;
  plain.parameters() = ranked.parameters();
  const auto a = ranked.gradient(x), b = plain.gradient(x);
  CHECK(a.loss.total == b.loss.total);
  Own<sae::TopK>::Parameters::visit([](std::string_view, const auto& p, const auto& q) { CHECK(p == q); }, a.parameters,
                                    b.parameters);
}

namespace {

// A folder of SAELens as it stands, nothing folded.
template <class Activation>
Own<Activation> load(const fs::path& folder, Activation activation) {
  const sae::SafetensorsFile file(folder / "sae_weights.safetensors");
  Own<Activation> model(24, 56, activation);
  auto& p = model.parameters();
  p.W_enc.map() = file.read<double>("W_enc", {24, 56}).map().transpose();
  p.W_dec = file.read<double>("W_dec", {56, 24});
  if (p.b_enc.size() > 0) p.b_enc = file.read<double>("b_enc", {56});
  p.b_dec = file.read<double>("b_dec", {24});
  Own<Activation>::Parameters::visit_activation(
      [&](std::string_view name, auto& tensor) { tensor = file.read<double>(name, {56}); }, p);
  if constexpr (std::is_same_v<Activation, sae::BatchTopK>) {
    p.activation.threshold_state.resize(1, 3);
    p.activation.threshold_state[0] = file.values<double>("topk_threshold")[0];
    p.activation.threshold_state[1] = 1;
  }
  return model;
}
template <class Activation>
void check_peer_folds(const std::string& name, double scale, Activation activation) {
  CAPTURE(name);
  const fs::path folder = peers / ("saelens_fold_" + name);
  const auto array = [&](const std::string& file) { return sae::load_npy<double>(folder / (file + ".npy")); };
  const Dense x = array("x");
  const Dense scaled = scale * x;
  // SAELens' codes are z |d| where it ranks by the norm.
  const auto codes = [](const Own<Activation>& m, const Dense& at) {
    Dense f = m.encode_dense(at);
    const bool* const by_norm = sae::detail::rank_by_norm(m.activation());
    if (by_norm == nullptr || !*by_norm) return f;
    const std::vector<double> norms = naive_norms(m.W_dec());
    for (Index i = 0; i < f.cols(); ++i) f.col(i) *= norms[static_cast<std::size_t>(i)];
    return f;
  };
  const auto same_parameters = [](auto got, auto want) {
    Own<Activation>::Parameters::visit(
        [&](std::string_view tensor, const auto& a, const auto& b) {
          CAPTURE(tensor);
          CHECK(relative(a.map(), b.map()) <= 1e-6);
        },
        got, want);
  };
  const auto before = load(folder / "before", activation);
  CHECK(relative(codes(before, scaled), array("codes")) <= 1e-5);
  CHECK(relative(before.reconstruct(scaled) / scale, array("recon")) <= 1e-5);

  auto by_scale = before;
  by_scale.fold_input_scale(scale, sae::ScaleFold::weights);
  const auto theirs = load(folder / "scale_folded", activation);
  same_parameters(by_scale.parameters(), theirs.parameters());
  CHECK(relative(codes(by_scale, x), array("codes_scale_folded")) <= 1e-5);
  CHECK(relative(by_scale.reconstruct(x), array("recon_scale_folded")) <= 1e-5);
  CHECK(relative(by_scale.reconstruct(x), before.reconstruct(scaled) / scale) <= 1e-12);

  auto by_norm = before;
  by_norm.fold_decoder_norms();
  same_parameters(by_norm.parameters(), load(folder / "norm_folded", activation).parameters());
  CHECK(relative(codes(by_norm, scaled), array("codes_norm_folded")) <= 1e-5);
  CHECK(relative(by_norm.reconstruct(scaled) / scale, array("recon_norm_folded")) <= 1e-5);
  CHECK(relative(by_norm.reconstruct(scaled), before.reconstruct(scaled)) <= 1e-12);

  if constexpr (std::is_same_v<Activation, sae::BatchTopK>) {
    CHECK(by_scale.parameters().activation.threshold_state[0] ==
          Approx(theirs.parameters().activation.threshold_state[0]).epsilon(1e-6));
    CHECK(by_scale.parameters().activation.threshold_state[0] ==
          Approx(before.parameters().activation.threshold_state[0] / scale).epsilon(1e-12));
  }
}

}  // namespace

TEST_CASE("SAELens' folds of scale and decoder norms are ours", "[models][fold][peers]") {
  check_peer_folds("standard", 1.75, sae::ReLU{});
  check_peer_folds("jumprelu", 1.75, sae::JumpReLU{});
  check_peer_folds("gated", 0.625, sae::Gated{});
  check_peer_folds("topk_rescale", 1.75, sae::TopK{.k = 6, .rank_by_decoder_norm = true});
  check_peer_folds("batchtopk", 1.75, sae::BatchTopK{.k = 6, .rank_by_decoder_norm = true});
}
