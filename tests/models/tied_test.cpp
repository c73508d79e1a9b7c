// Encoder and decoder tied by choice: gradients, both routes of a training, checkpoints, files.
#include <sae/formats/saelens.hpp>
#include <sae/models/any_model.hpp>
#include <sae/training/data_initialization.hpp>

#include <vector>

#include "catch_compat.hpp"
#include "gradient_check.hpp"
#include "small_training.hpp"
#include "temp_folder.hpp"

namespace {

using sae::Index;
using sae::ReLU;
using sae::TopK;
using namespace sae_test;
template <class Activation>
using Model = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, Activation, double>;

constexpr Index width = 6, latents = 70, rows = 9;

template <class Activation>
Model<Activation> some_model(Activation activation, bool subtract) {
  Model<Activation> model(width, latents, activation, {.subtract_decoder_bias = subtract, .tied = true});
  auto& p = model.parameters();
  p.W_dec.map() = random_rows(latents, width, 2, 0.4);
  p.b_enc.map() = (random_rows(1, latents, 3, 0.3).array() - 0.2).matrix();
  p.b_dec.map() = random_rows(1, width, 4, 0.5);
  return model;
}

template <class Activation, class Terms>
void check_gradients(Activation activation, const Terms& terms, double l1) {
  for (const bool subtract : {true, false}) {
    CAPTURE(subtract);
    const auto model = some_model(activation, subtract);
    REQUIRE(model.parameters().W_enc.size() == 0);
    const Dense x = random_rows(rows, width, 7);
    Dense W = model.W_dec(), b_enc = model.b_enc(), b_dec = model.b_dec();
    const Mask active = mask_of(model.encode(x));
    const auto loss = [&] {
      const NaiveModel m{W, W, b_enc, b_dec, subtract};
      const Dense f = naive_codes(naive_pre_activations(m, x), active);
      return naive_mean_square(naive_decode(m, f) - x) + l1 * naive_l1(m, f, true);
    };
    const auto got = model.gradient(x, terms);
    CHECK(got.loss.total == Approx(loss()).epsilon(1e-12));
    CHECK(got.parameters.W_enc.size() == 0);
    CHECK(relative_error(got.parameters.W_dec.map(), central_differences(W, loss)) <= 1e-6);
    CHECK(relative_error(got.parameters.b_enc.map(), central_differences(b_enc, loss)) <= 1e-6);
    CHECK(relative_error(got.parameters.b_dec.map(), central_differences(b_dec, loss)) <= 1e-6);
  }
}

using R = small_training::Run<TopK, double, sae::Objective<sae::AuxK>, sae::MatrixSource<double>>;
std::unique_ptr<R> make(int threads, double clip, sae::DecoderNorm decoder, double rate = 1e-2) {
  sae::TrainerConfig config{.learning_rate = rate, .clip_norm = clip, .decoder = decoder};
  config.steps = 24;
  config.batch = 32;
  config.dead.window = 64;
  return std::make_unique<R>(threads, TopK{.k = 2}, sae::Objective{sae::AuxK{}}, config,
                             R::Source(small_training::some_rows<double>(150), {.seed = 5}), small_training::latents,
                             sae::ModelOptions{.tied = true});
}

}  // namespace

TEST_CASE("gradients of tied weights", "[models][tied][gradient]") {
  check_gradients(TopK{.k = 4}, sae::Objective<>{}, 0);
  check_gradients(TopK{.k = latents}, sae::Objective<>{}, 0);
  check_gradients(ReLU{}, sae::Objective{sae::L1{.coefficient = 0.7}}, 0.7);
}

TEST_CASE("tied weights train the same in one pass, with a clip that never bites, and from a checkpoint", "[models][tied]") {
  for (const auto decoder : {sae::DecoderNorm::unit, sae::DecoderNorm::free}) {
    CAPTURE(static_cast<int>(decoder));
    const auto straight = make(1, 0, decoder);
    REQUIRE(straight->trainer.optimizer_numbers() ==
            2 * (small_training::latents * (small_training::width + 1) + small_training::width));
    const double before = straight->model.loss(small_training::some_rows<double>(150)).total;
    straight->trainer.fit(straight->source);
    CHECK(straight->model.loss(small_training::some_rows<double>(150)).total < before);
    REQUIRE(straight->model.parameters().tied());
    const auto clipped = make(2, 1e9, decoder);
    clipped->trainer.fit(clipped->source);
    CHECK(largest_difference(clipped->model.W_dec(), straight->model.W_dec()) <= 1e-12);
    CHECK(largest_difference(clipped->model.b_enc(), straight->model.b_enc()) <= 1e-12);
    CHECK(largest_difference(clipped->model.b_dec(), straight->model.b_dec()) <= 1e-12);
    const auto bites = make(2, 1e-3, decoder);
    bites->trainer.fit(bites->source);
    CHECK(largest_difference(bites->model.W_dec(), straight->model.W_dec()) > 1e-6);

    const TempFolder folder;
    const auto first = make(3, 0, decoder);
    const auto kill = [&](auto& trainer, const sae::StepReport& report) {
      if (report.step != 11) return;
      sae::save_checkpoint(trainer, folder / "checkpoint");
      throw small_training::Killed();
    };
    REQUIRE_THROWS_AS(first->trainer.fit(first->source, kill), small_training::Killed);
    const auto second = make(1, 0, decoder);
    sae::load_checkpoint(second->trainer, folder / "checkpoint");
    second->trainer.fit(second->source);
    CHECK((small_training::bytes_of(second->model) == small_training::bytes_of(straight->model)));
  }
}

TEST_CASE("a tied SAE is saved with its encoder, also where norms must be folded", "[models][tied][saelens]") {
  const Dense x = random_rows(rows, width, 7);
  const TempFolder folder;
  const auto plain = some_model(TopK{.k = 4}, true);
  sae::save_saelens(plain, folder / "plain");
  const sae::SafetensorsFile file(folder / "plain" / "sae_weights.safetensors");
  CHECK(file.read<double>("W_enc", {width, latents}).map() == plain.W_dec().transpose());
  const auto back = sae::load_saelens<Model<TopK>>(folder / "plain");
  CHECK_FALSE(back.parameters().tied());
  CHECK(back.encode_dense(x) == plain.encode_dense(x));

  const auto by_norm = some_model(TopK{.k = 4, .rank_by_decoder_norm = true}, true);
  sae::save_saelens(by_norm, folder / "folded");
  CHECK(largest_difference(sae::load_saelens<Model<TopK>>(folder / "folded").reconstruct(x), by_norm.reconstruct(x)) <= 1e-12);
  CHECK_THROWS_WITH(Model<TopK>(by_norm).fold_decoder_norms(),
                    "fold_decoder_norms: encoder and decoder are tied, a fold would change what is read");
  const auto any = sae::with_any_activation(plain);
  CHECK(any.parameters().tied());
  CHECK(sae::with_activation<TopK>(any).encode_dense(x) == plain.encode_dense(x));
}

TEST_CASE("starts of a tied SAE keep it tied, or are refused", "[models][tied]") {
  auto model = some_model(TopK{.k = 4}, true);
  const Dense data = random_rows(100, width, 8);
  sae::initialize_from_data(model, data);
  CHECK(model.parameters().tied());
  sae::center_pre_activations(model, data);
  CHECK(model.pre_activations(data).colwise().mean().isZero(1e-12));
  CHECK_THROWS_WITH(sae::UntiedInitialization{}(model.parameters()),
                    "UntiedInitialization: encoder and decoder of the model are tied");
  CHECK_THROWS_WITH(sae::scale_encoder_to_unit_reconstruction(model),
                    "scale_encoder_to_unit_reconstruction: encoder and decoder of the model are tied");
}
