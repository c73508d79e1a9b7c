// CrossLayerTrainer: what is saved is all that a training needs and nothing else, and what does not fit is refused.
#include <sae/training/cross_layer_trainer.hpp>

#include <any>
#include <cstring>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "catch_compat.hpp"
#include "small_training.hpp"
#include "temp_folder.hpp"

using Catch::Matchers::ContainsSubstring;

using namespace small_training;

namespace {

constexpr Index layers = 3, layer_width = 4, layer_latents = 20;

// Inputs and targets of all layers side by side, each layer larger than the one before.
sae::Matrix<float> layer_rows(Index rows) {
  sae::Random random(7);
  sae::Matrix<float> x(rows, 2 * layers * layer_width);
  for (Index i = 0; i < rows; ++i)
    for (Index j = 0; j < x.cols(); ++j) {
      const auto size = static_cast<double>(1 + (j / layer_width) % layers);
      x(i, j) = static_cast<float>(size * (0.5 + random.normal() * (j % 3 == 0 ? 2.0 : 0.3)));
    }
  return x;
}

template <class Activation, class Terms>
struct LayersRun {
  using Model = sae::CrossLayerTranscoder<Activation, float>;
  LayersRun(int thread_count, Activation activation, Terms terms, const sae::TrainerConfig& config, Index count = layers,
            Index F = layer_latents)
      : threads(thread_count),
        model(count, layers * layer_width / count, F, activation, {.decoder_norm = 0.2, .seed = 1}),
        trainer(model, config, terms, threads),
        source(sae::MatrixSource<float>(layer_rows(150), {.seed = 2}), {.capacity = 100, .seed = 9}) {}
  sae::Threads threads;
  Model model;
  sae::CrossLayerTrainer<Model, Terms> trainer;
  sae::ShuffleBuffer<sae::MatrixSource<float>> source;
};

sae::TrainerConfig layers_config(sae::Optimizer optimizer = sae::Adam{}) {
  sae::TrainerConfig config{.steps = 20, .batch = 32, .learning_rate = 1e-2, .optimizer = optimizer};
  config.schedule = {.warmup = 3, .decay = 6};
  config.sparsity_warmup = 12;
  config.dead.window = 64;
  return config;
}
using SmallLayers = LayersRun<sae::TopK, sae::Objective<sae::AuxK>>;
std::unique_ptr<SmallLayers> make_layers(sae::TopK topk = {.k = 2}, const sae::TrainerConfig& config = layers_config(),
                                         Index count = layers, Index F = layer_latents, sae::AuxK aux = {}) {
  return std::make_unique<SmallLayers>(1, topk, sae::Objective{aux}, config, count, F);
}
template <class R>
void stop_layers(R& run, const fs::path& path, Index stop, const sae::Settings& own = {}) {
  const auto kill = [&](auto& trainer, const sae::StepReport& report) {
    if (report.step != stop) return;
    sae::save_checkpoint(trainer, path, own);
    throw Killed();
  };
  REQUIRE_THROWS_AS(run.trainer.fit(run.source, kill), Killed);
}

// Walks a state: keeps every piece by name, later puts back all but the one that is forgotten.
class Pieces {
 public:
  bool keeping = true;
  std::string forgotten;
  std::map<std::string, std::any, std::less<>> kept;

  template <class T>
  void tensor(std::string_view name, sae::Tensor<T>& value) {
    piece(name, value);
  }
  void integers(std::string_view name, std::vector<std::int64_t>& value) { piece(name, value); }
  void number(std::string_view name, double& value) { piece(name, value); }
  void source(sae::SourceState& value) { piece("source", value); }

 private:
  template <class T>
  void piece(std::string_view name, T& value) {
    if (keeping) {
      REQUIRE(kept.emplace(name, value).second);
    } else if (name != forgotten) {
      value = std::any_cast<const T&>(kept.find(name)->second);
    }
  }
};

// Parameters, and what the activations have seen.
template <class Model>
std::string all_bytes_of(Model& model) {
  std::string out = bytes_of(model);
  Model::Parameters::visit_state(
      [&](std::string_view, const auto& tensor) {
        out.append(reinterpret_cast<const char*>(tensor.data()),
                   static_cast<std::size_t>(tensor.size()) * sizeof(*tensor.data()));
      },
      model.parameters());
  return out;
}

// The state after half a run goes into a fresh trainer, whole and with each piece missing in its turn.
template <class Activation>
void require_every_piece(Activation activation, const sae::Optimizer& optimizer, std::size_t pieces) {
  using R = LayersRun<Activation, sae::Objective<sae::AuxK>>;
  const auto make = [&] { return std::make_unique<R>(1, activation, sae::Objective{sae::AuxK{}}, layers_config(optimizer)); };
  const auto straight = make();
  Pieces state;
  straight->trainer.fit(straight->source, [&](auto& trainer, const sae::StepReport& report) {
    if (report.step == 9) trainer.visit_state(state);
  });
  CHECK(state.kept.size() == pieces);
  state.keeping = false;
  const auto ends_the_same = [&](const std::string& forgotten) {
    const auto run = make();
    state.forgotten = forgotten;
    run->trainer.visit_state(state);
    run->trainer.resume();
    try {
      run->trainer.fit(run->source);
    } catch (const sae::ValueError&) {  // no source goes back to where it never was
      return false;
    }
    return all_bytes_of(run->model) == all_bytes_of(straight->model);
  };
  CHECK(ends_the_same("nothing"));
  for (const auto& [name, value] : state.kept) {
    CAPTURE(name);
    CHECK_FALSE(ends_the_same(name));
  }
}

}  // namespace

TEST_CASE("checkpoint: a cross-layer transcoder resumes to the last bit", "[formats][checkpoint][cross_layer]") {
  for (const sae::Optimizer& optimizer : std::vector<sae::Optimizer>{sae::Adam{}, sae::Muon{}}) {
    const auto check = [&](auto activation, const auto& terms, sae::TrainerConfig config) {
      using R = LayersRun<decltype(activation), std::decay_t<decltype(terms)>>;
      require_same_bytes([&](int threads) { return std::make_unique<R>(threads, activation, terms, config); }, {1, 2, 9, 17});
    };
    CAPTURE(optimizer.index());
    auto config = layers_config(optimizer);
    check(sae::TopK{.k = 2}, sae::Objective{sae::AuxK{}}, config);
    config.normalisation = sae::Normalisation::sqrt_d;
    config.clip_norm = 0.5;
    config.dead.unit = sae::DeadUnit::steps;
    config.dead.window = 2;
    check(sae::BatchTopK{.k = 2}, sae::Objective{sae::AuxK{}}, config);
    config.normalisation = sae::Normalisation::none;
    config.center = sae::Center::none;
    check(sae::JumpReLU{.threshold = 0.1, .bandwidth = 0.5}, sae::Objective{sae::L0Penalty{.coefficient = 0.1}}, config);
  }
}

TEST_CASE("checkpoint: no piece of a cross-layer trainer's state may be forgotten", "[formats][checkpoint][cross_layer]") {
  // Parameters: W_enc, b_enc, W_dec of each layer, b_dec. Moments: two of each with Adam, with Muon one of a matrix. Each layer's
  // silent latents and two scales; the counters; the source; each layer's threshold.
  require_every_piece(sae::TopK{.k = 2}, sae::Adam{}, 10 + 20 + 9 + 2);
  require_every_piece(sae::BatchTopK{.k = 2}, sae::Adam{}, 10 + 20 + 9 + 2 + 3);
  require_every_piece(sae::BatchTopK{.k = 2}, sae::Muon{}, 10 + 14 + 9 + 2 + 3);
}

TEST_CASE("checkpoint: settings of a cross-layer transcoder that differ are refused by name",
          "[formats][checkpoint][cross_layer]") {
  const TempFolder folder;
  const auto path = folder / "c";
  const sae::Settings own{{"data", "rows.npy"}};
  stop_layers(*make_layers(), path, 3, own);
  CHECK(load_error(*make_layers(), path, own).empty());
  const auto refused = [&](const std::unique_ptr<SmallLayers>& run, const std::string& says) {
    const std::string before = bytes_of(run->model);
    CHECK(load_error(*run, path, own) == path.string() + ": " + says);
    CHECK((bytes_of(run->model) == before));
    CHECK(run->trainer.step() == 0);
  };
  const auto config = [](auto change) {
    auto out = layers_config();
    change(out);
    return out;
  };
  refused(make_layers({.k = 2}, layers_config(), 2), "was made with model.layers = 3, which is 2 now");
  refused(make_layers({.k = 2}, layers_config(), layers, 21), "was made with model.latents = 20, which is 21 now");
  refused(make_layers({.k = 3}), "was made with activation.k = 2, which is 3 now");
  refused(make_layers({.k = 2}, layers_config(), layers, layer_latents, {.k = 7}), "was made with term1.k = 0, which is 7 now");
  refused(make_layers({.k = 2}, config([](auto& c) { c.learning_rate = 0.5; })),
          "was made with trainer.learning_rate = 0.01, which is 0.5 now");
  refused(make_layers({.k = 2}, config([](auto& c) { c.center = sae::Center::none; })),
          "was made with trainer.center = mean, which is none now");
  CHECK(load_error(*make_layers(), path) == path.string() + ": was made with data = rows.npy, which is no setting now");
}

TEST_CASE("checkpoint: trainers of another kind refuse each other's", "[formats][checkpoint][cross_layer]") {
  const TempFolder folder;
  const auto of_layers = folder / "layers", of_one = folder / "one";
  stop_layers(*make_layers(), of_layers, 3);
  stop_small(of_one, 12, 3);
  CHECK(load_error(*make_layers(), of_one) ==
        of_one.string() + ": was made with trainer = Trainer, which is CrossLayerTrainer now");
  CHECK(load_error(*make_small(12), of_layers) ==
        of_layers.string() + ": was made with trainer = CrossLayerTrainer, which is Trainer now");
}

TEST_CASE("checkpoint: a torn file changes nothing of a cross-layer trainer", "[formats][checkpoint][cross_layer]") {
  const TempFolder folder;
  const auto path = folder / "c";
  stop_layers(*make_layers(), path, 3);
  const std::string good = sae::read_file(path);
  const auto run = make_layers();
  const std::string bytes = bytes_of(run->model);
  for (std::size_t length = 0; length < good.size(); length += 197) {
    sae::atomic_write_text(path, good.substr(0, length), {.overwrite = true});
    const std::string error = load_error(*run, path);
    CHECK(error.starts_with(path.string() + ": "));
    REQUIRE((bytes_of(run->model) == bytes));
    REQUIRE(run->trainer.step() == 0);
  }
  // A count and a scale of the right kind that no training can have.
  const auto with = [&](const std::string& name, const auto& value) {
    std::string changed = good;
    const auto header = sae::parse_safetensors(std::as_bytes(std::span(good)), "c");
    std::memcpy(changed.data() + header.offset + static_cast<std::size_t>(header.tensors.at(name).begin), &value, sizeof value);
    sae::atomic_write_text(path, changed, {.overwrite = true});
    return load_error(*run, path);
  };
  CHECK_THAT(with("layer1.silent", std::int64_t{-5}), ContainsSubstring("layer1.silent holds -5"));
  CHECK_THAT(with("layer2.target_scale", 0.0), ContainsSubstring("layer2.target_scale = 0 is not positive"));
  CHECK((bytes_of(run->model) == bytes));

  sae::atomic_write_text(path, good, {.overwrite = true});
  CHECK(load_error(*run, path).empty());
  CHECK(run->trainer.step() == 3);
}

TEST_CASE("checkpoint: a cross-layer run that has ended is not saved, a stopped one goes on",
          "[formats][checkpoint][cross_layer]") {
  const TempFolder folder;
  const auto run = make_layers(), stopped = make_layers(), resumed = make_layers();
  CHECK_THROWS_WITH(sae::save_checkpoint(run->trainer, folder / "c"), ContainsSubstring("in a callback of fit"));
  run->trainer.fit(run->source);
  CHECK_THROWS_AS(sae::save_checkpoint(run->trainer, folder / "c"), sae::ValueError);
  CHECK(folder.names().empty());

  const auto stop = [](const sae::StepReport& report) { return report.step == 13; };
  CHECK(stopped->trainer.fit(stopped->source, sae::checkpoint_every(folder / "c", 6), stop) == sae::FitStatus::stopped);
  CHECK_THROWS_WITH(sae::load_checkpoint(stopped->trainer, folder / "c"), ContainsSubstring("there is nothing to resume"));
  sae::load_checkpoint(resumed->trainer, folder / "c");
  CHECK(resumed->trainer.step() == 12);
  CHECK(resumed->trainer.tokens() == 12 * 32);
  CHECK(resumed->trainer.fit(resumed->source) == sae::FitStatus::finished);
  CHECK((bytes_of(resumed->model) == bytes_of(run->model)));
}
