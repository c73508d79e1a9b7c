// Multi-TopK: a hand computation, the naive second reconstruction, central differences of every parameter.
#include <sae/activations/topk.hpp>
#include <sae/models/sparse_autoencoder.hpp>
#include <sae/models/transcoder.hpp>
#include <sae/training/multi_topk.hpp>
#include <sae/training/trainer.hpp>

#include <limits>
#include <string>
#include <vector>

#include "catch_compat.hpp"
#include "gradient_check.hpp"

namespace {

using sae::ErrorNormaliser;
using sae::Index;
using sae::MultiTopK;
using namespace sae_test;

template <class Scalar>
using Model = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::TopK, Scalar>;
constexpr Index width = 6, latents = 70, rows = 9;

}  // namespace

TEST_CASE("Multi-TopK by hand", "[training][multi_topk]") {
  Model<double> model(2, 3, {.k = 1}, {.subtract_decoder_bias = false});
  auto& p = model.parameters();
  p.W_enc.set_zero();
  p.b_enc.map() << 1, 2, -4;
  p.W_dec.map() << 1, 0, 0, 1, 5, 5;
  p.b_dec.map() << 1, 0;
  const Dense x = (Dense(1, 2) << 3, 1).finished();
  // x' = (1, 2), error (-2, 1); x'' = (2, 2), error (-1, 1); |x|^2 = 10
  const auto got = model.gradient(
      x, sae::Objective{MultiTopK{.k = 1, .factor = 2, .coefficient = 3, .normaliser = ErrorNormaliser::row_norms}});
  CHECK(got.loss.reconstruction == Approx(5));
  REQUIRE(got.loss.terms.size() == 1);
  CHECK(got.loss.terms[0].first == "multi_topk");
  CHECK(got.loss.terms[0].second == Approx(0.6));
  // G = (-4, 2) of x', (-0.6, 0.6) of x''
  CHECK(largest_difference(got.parameters.W_dec.map(), (Dense(3, 2) << -0.6, 0.6, -8 - 1.2, 4 + 1.2, 0, 0).finished()) <=
        1e-12);
  CHECK(largest_difference(got.parameters.b_enc.map(), (Dense(1, 3) << -0.6, 2.6, 0).finished()) <= 1e-12);
  CHECK(largest_difference(got.parameters.b_dec.map(), (Dense(1, 2) << -4.6, 2.6).finished()) <= 1e-12);
}

TEST_CASE("gradients of Multi-TopK", "[training][multi_topk][gradient]") {
  const Dense x = random_rows(rows, width, 2);
  for (const bool subtract : {true, false})
    for (const bool by_norm : {false, true})
      for (const Index factor : {Index{1}, Index{4}, Index{17}})
        for (const auto normaliser : {ErrorNormaliser::rows, ErrorNormaliser::target_variance, ErrorNormaliser::row_norms}) {
          CAPTURE(subtract, by_norm, factor, static_cast<int>(normaliser));
          Model<double> model(width, latents, {.k = 4, .rank_by_decoder_norm = by_norm}, {.subtract_decoder_bias = subtract});
          randomise(model, 5);
          const NaiveModel twin = naive(model);
          const Dense z = naive_pre_activations(twin, x);
          const std::vector<double> norms = by_norm ? naive_norms(twin.W_dec) : std::vector<double>();
          const Mask main = naive_largest(z, 4, norms), second = naive_largest(z, 4 * factor, norms);
          const MultiTopK term{
              .k = 4, .factor = factor, .coefficient = 0.3, .normaliser = normaliser, .rank_by_decoder_norm = by_norm};
          const auto error = [&](const NaiveModel& m, const Mask& active) {
            return Dense(naive_decode(m, naive_codes(naive_pre_activations(m, x), active)) - x);
          };
          const auto value = [&](const NaiveModel& m) {
            Dense e = error(m, second);
            if (normaliser == ErrorNormaliser::target_variance) e /= std::sqrt(naive_row_variance(x));
            if (normaliser == ErrorNormaliser::row_norms)
              for (Index b = 0; b < rows; ++b) e.row(b) /= x.row(b).norm();
            return 0.3 * naive_mean_square(e);
          };
          const auto got = model.gradient(x, sae::Objective{term});
          check_gradient(twin, got.parameters,
                         [&](const NaiveModel& m) { return naive_mean_square(error(m, main)) + value(m); });
          CHECK(got.loss.terms[0].second == Approx(value(twin)).epsilon(1e-12));
        }
}

TEST_CASE("gradients of Multi-TopK in a transcoder with a skip", "[training][multi_topk][gradient]") {
  using Coder = sae::Transcoder<sae::Dynamic, sae::Dynamic, sae::Dynamic, sae::TopK, double>;
  const Index out = 4;
  Coder model(width, out, 30, sae::TopK{.k = 3}, {.skip = true});
  auto& p = model.parameters();
  p.W_dec.map() = random_rows(30, out, 1, 0.5);
  p.b_enc.map() = random_rows(1, 30, 2, 0.3);
  p.b_dec.map() = random_rows(1, out, 3);
  p.W_skip.map() = random_rows(out, width, 4, 0.4);
  const Dense x = random_rows(rows, width, 5), y = random_rows(rows, out, 6);
  const Dense z0 = (x * p.W_enc.map().transpose()).rowwise() + p.b_enc.map().row(0);
  const Mask main = naive_largest(z0, 3), second = naive_largest(z0, 6);
  const auto got = model.gradient(
      x, y, sae::Objective{MultiTopK{.k = 3, .factor = 2, .coefficient = 0.7, .normaliser = ErrorNormaliser::rows}});
  Coder::Parameters moved = p;
  const auto loss = [&] {
    const Dense z = (x * moved.W_enc.map().transpose()).rowwise() + moved.b_enc.map().row(0);
    const auto square = [&](const Mask& active) {
      return naive_mean_square(((naive_codes(z, active) * moved.W_dec.map() + x * moved.W_skip.map().transpose()).rowwise() +
                                moved.b_dec.map().row(0)) -
                               y);
    };
    return square(main) + 0.7 * square(second);
  };
  CHECK(got.loss.total == Approx(loss()).epsilon(1e-12));
  Coder::Parameters::visit(
      [&](std::string_view name, const auto& gradient, auto& tensor) {
        CAPTURE(name);
        Dense numbers = tensor.map();
        const Dense want = central_differences(numbers, [&] {
          tensor.map() = numbers;
          return loss();
        });
        tensor.map() = numbers;
        CHECK(relative_error(gradient.map(), want) <= 1e-6);
      },
      got.parameters, moved);
}

TEST_CASE("Multi-TopK: the same bytes for any number of threads, a workspace that forgets", "[training][multi_topk]") {
  Model<float> model(16, 700, {.k = 9});
  randomise(model, 4);
  const sae::Matrix<float> x = random_rows(300, 16, 1).cast<float>();
  const sae::Objective objective{MultiTopK{.k = 9}};
  sae::Threads one(1), three(3);
  Model<float>::Workspace<sae::Objective<MultiTopK>> workspace;
  model.gradient(sae::Matrix<float>(x.topRows(70)), objective, workspace, one);
  const auto a = model.gradient(x, objective, workspace, one), b = model.gradient(x, objective, three);
  CHECK(a.loss.total == b.loss.total);
  CHECK(a.parameters.W_enc == b.parameters.W_enc);
  CHECK(a.parameters.W_dec == b.parameters.W_dec);
  CHECK(a.parameters.b_dec == b.parameters.b_dec);
  CHECK(model.loss(x, objective, one).total == a.loss.total);
}

// sparsify counts the 4 k latents of the second reconstruction as fired.
TEST_CASE("Multi-TopK: a latent of the second reconstruction alone has not fired", "[training][multi_topk]") {
  Model<double> model(width, 8, {.k = 1});
  for (Index i = 0; i < 8; ++i) model.parameters().b_enc[i] = 1000.0 / static_cast<double>(1 + i);  // ranked as they stand
  sae::Trainer trainer(model,
                       {.steps = 3,
                        .batch = rows,
                        .learning_rate = 1e-12,
                        .center = sae::Center::none,
                        .normalisation = sae::Normalisation::none,
                        .dead = {.window = 2 * rows}},
                       sae::Objective{MultiTopK{.k = 1}});
  for (Index t = 0; t < 2; ++t) CHECK(trainer.train_step(random_rows(rows, width, 1)).terms.at(0).second > 0);
  CHECK(trainer.dead_latents().silent() == std::vector<std::int64_t>{0, 18, 18, 18, 18, 18, 18, 18});
  CHECK(trainer.train_step(random_rows(rows, width, 1)).dead == 7);
}

TEST_CASE("Multi-TopK refuses bad settings and lists them", "[training][multi_topk]") {
  CHECK_NOTHROW((MultiTopK{.k = 4}.check(4, 16)));
  CHECK_THROWS_WITH((MultiTopK{.k = 5}.check(4, 16)), "MultiTopK: factor k = 4 x 5 is not in [1, 16] (the number of latents)");
  CHECK_THROWS_WITH((MultiTopK{.k = 0}.check(4, 16)), "MultiTopK: factor k = 4 x 0 is not in [1, 16] (the number of latents)");
  CHECK_THROWS_WITH((MultiTopK{.k = 4, .factor = 0}.check(4, 16)),
                    "MultiTopK: factor k = 0 x 4 is not in [1, 16] (the number of latents)");
  CHECK_THROWS_AS((MultiTopK{.k = std::numeric_limits<Index>::max()}.check(4, 16)), sae::ValueError);
  CHECK_THROWS_WITH((MultiTopK{.k = 4, .coefficient = -1}.check(4, 16)), "MultiTopK: coefficient = -1 is not in [0, infinity)");
  std::string seen;
  MultiTopK{.k = 4}.visit_settings(
      [&](std::string_view name, const auto& value) { seen += sae::detail::concat(name, "=", value, ";"); });
  CHECK(seen == "k=4;factor=4;coefficient=0.125;normaliser=target_variance;rank_by_decoder_norm=false;");
}
