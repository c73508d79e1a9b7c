// One training, whatever instructions its kernels use.
#include <sae/data/indexed_source.hpp>
#include <sae/training/recipes.hpp>

#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "catch_compat.hpp"
#include "reference.hpp"
#include "routes.hpp"

namespace {

using sae::Index;

std::map<std::string, sae::Tensor<float>> trained(const std::string& activation, Index d, Index latents, Index batch,
                                                  Index steps, sae::Precision moments) {
  const sae::Recipe recipe =
      sae::recipe("default", {.d_in = d, .latents = latents, .steps = steps, .batch = batch, .activation = activation});
  auto model = sae::make_model(recipe, d, latents, 3);
  sae::TrainerConfig config = recipe.config;
  config.moments = moments;
  config.dead.window = 2 * batch;  // so that AuxK has something to do
  sae::Threads threads(2);
  sae::Trainer trainer(model, config, recipe.objective, threads);
  sae::MatrixSource<float> source(sae::Matrix<float>(sae_test::random_rows(4 * batch, d, 3).cast<float>()), {.seed = 5});
  trainer.fit(source);
  std::map<std::string, sae::Tensor<float>> out;
  decltype(model)::Parameters::visit([&](std::string_view name, const auto& tensor) { out[std::string(name)] = tensor; },
                                     model.parameters());
  return out;
}
void check_routes(const std::string& activation, Index d, Index latents, Index batch, Index steps, bool portable,
                  sae::Precision moments = sae::Precision::full) {
  std::vector<sae::kernels::Route> routes;
  for (const auto route : sae::kernels::all_routes)
    if (sae::kernels::has(route) && (portable || route != sae::kernels::Route::portable)) routes.push_back(route);
  if (routes.size() < 2) SAE_SKIP_TEST("this machine has nothing to compare");
  std::vector<std::pair<sae::kernels::Route, std::map<std::string, sae::Tensor<float>>>> all;
  const sae_test::KeepsRoute own;
  for (const auto route : routes) {
    sae::kernels::set_route(route);
    all.emplace_back(route, trained(activation, d, latents, batch, steps, moments));
  }
  for (std::size_t n = 1; n < all.size(); ++n)
    for (const auto& [name, tensor] : all[n].second) {
      CAPTURE(activation, std::string(sae::kernels::to_string(all[n].first)), name);
      const auto& first = all[0].second.at(name);
      REQUIRE(tensor.size() == first.size());
      if (tensor.size() > 0)
        CHECK(std::memcmp(tensor.data(), first.data(), static_cast<std::size_t>(tensor.size()) * sizeof(float)) == 0);
    }
}

}  // namespace

TEST_CASE("a training gives the same bytes on every route", "[training][routes]") {
  for (const auto name : sae::recipe_activations("default")) check_routes(std::string(name), 20, 96, 64, 8, true);
  check_routes("topk", 20, 96, 64, 8, true, sae::Precision::bfloat16);
}

TEST_CASE("a training large enough for a screen gives the same bytes without one", "[training][routes]") {
  bool slow = true;  // where only the portable route has no screen
  sae_test::on_every_route([&] {
    if (!sae::kernels::detail::has_fast_screen()) slow = sae::kernels::route() == sae::kernels::Route::portable;
  });
  for (const char* const name : {"topk", "batchtopk", "jumprelu", "gated", "matching_pursuit"})
    check_routes(name, 96, 1800, 256, slow ? 3 : 8, slow);
}
