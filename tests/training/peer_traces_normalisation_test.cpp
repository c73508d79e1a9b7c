// Ten training steps of SAELens with rows that are normalised one by one: the error in the units of the rows, L1 in those of the
// normalised ones.
#include "peer_replay.hpp"

using namespace sae_test;

namespace {
void replay_normalised(const std::string& name, sae::InputNormalisation kind) {
  auto recipe = peer_recipe("saelens", {.activation = "relu", .sparsity = 0.7});
  recipe.input_normalisation = kind;
  replay(name, saelens, recipe);
}
}  // namespace

TEST_CASE("ten steps of SAELens: standard on layer-normed rows", "[training][peers]") {
  replay_normalised("saelens_standard_layer_norm", sae::InputNormalisation::layer_norm);
}

TEST_CASE("ten steps of SAELens: standard on rows of constant norm", "[training][peers]") {
  replay_normalised("saelens_standard_constant_norm", sae::InputNormalisation::constant_norm);
}
