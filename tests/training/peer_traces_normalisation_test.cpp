// Ten training steps of SAELens with rows that are normalised one by one: the error in the units of the rows, L1 in those of the
// normalised ones.
#include "peer_replay.hpp"

using namespace sae_test;

namespace {
void replay_normalised(const std::string& name, sae::InputNormalisation kind) {
  replay(name, saelens, sae::ReLU{}, saelens_config(), sae::Objective{sae::L1{.coefficient = 0.7}},
         [](const auto&, const auto&) {}, {.input_normalisation = kind});
}
}  // namespace

TEST_CASE("ten steps of SAELens: standard on layer-normed rows", "[training][peers]") {
  replay_normalised("saelens_standard_layer_norm", sae::InputNormalisation::layer_norm);
}

TEST_CASE("ten steps of SAELens: standard on rows of constant norm", "[training][peers]") {
  replay_normalised("saelens_standard_constant_norm", sae::InputNormalisation::constant_norm);
}
