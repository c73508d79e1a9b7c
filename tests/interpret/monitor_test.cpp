#include <sae/interpret/monitor.hpp>

#include <sae/activations/topk.hpp>
#include <sae/core/random.hpp>
#include <sae/models/sparse_autoencoder.hpp>

#include <limits>

#include "catch_compat.hpp"

using namespace sae;

namespace {
const Site site{2, SiteKind::residual};
auto some_model() {
  SparseAutoencoder<Dynamic, Dynamic, TopK> model(8, 30, TopK{.k = 6});
  Random random(1);
  for (Index i = 0; i < model.W_enc().size(); ++i) model.W_enc().data()[i] = static_cast<float>(random.normal());
  model.W_dec() = model.W_enc();
  return model;
}
}  // namespace

TEST_CASE("a monitor tells of every watched activation above its limit, and changes nothing", "[interpret][monitor]") {
  const auto model = some_model();
  Random random(2);
  Matrix<float> x(40, 8);
  for (Index i = 0; i < x.size(); ++i) x.data()[i] = static_cast<float>(random.normal());
  const Codes<float> codes = model.encode(x);
  const std::vector<WatchedLatent> watched = {{17, 1.5}, {3, 0}, {29, 0.5}};
  std::vector<LatentEvent> expected;
  for (Index b = 1; b < 40; ++b)
    for (const Index i : {3, 17, 29})
      for (const WatchedLatent& of : watched)
        if (of.latent == i && static_cast<double>(codes.coefficient(b, i)) > of.above)
          expected.push_back({b, i, static_cast<double>(codes.coefficient(b, i))});
  REQUIRE(expected.size() > 5);

  std::vector<LatentEvent> heard;
  const LatentMonitor monitor(
      site, model, watched, [&](const LatentEvent& event) { heard.push_back(event); }, EditedRows::after_first());
  const Tap tap = monitor.tap();
  CHECK(tap.site == site);
  CHECK_FALSE(tap.edits);
  const Matrix<float> before = x;
  tap.visit(MatrixMap<float>(x.data(), 25, 8), 0);
  for (Index b = 25; b < 40; ++b) tap.visit(MatrixMap<float>(x.row(b).data(), 1, 8), b);  // as a text is written
  CHECK(x == before);
  CHECK(heard == expected);
}

TEST_CASE("what cannot be watched is refused", "[interpret][monitor]") {
  const auto model = some_model();
  const auto watch = [&](const std::vector<WatchedLatent>& watched) {
    return LatentMonitor(site, model, watched, [](const LatentEvent&) {});
  };
  CHECK_THROWS_WITH(watch({{30, 0}}), "latent 30 is not in [0, 30) (the number of latents)");
  CHECK_THROWS_WITH(watch({{3, 0}, {3, 1}}), "latent 3 is watched twice");
  CHECK_THROWS_WITH(watch({{3, -1}}), "latent 3: a limit of -1 is not >= 0");
  CHECK_THROWS_AS(watch({{3, std::numeric_limits<double>::quiet_NaN()}}), ValueError);
  Matrix<float> narrow = Matrix<float>::Zero(2, 7);
  CHECK_THROWS_AS(watch({{3, 0}}).tap().visit(MatrixMap<float>(narrow.data(), 2, 7), 0), ShapeError);
}
