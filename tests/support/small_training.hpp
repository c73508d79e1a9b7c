// A training that takes milliseconds, made afresh as another process would make it, and what it leaves behind.
#pragma once
#include <sae/data/indexed_source.hpp>
#include <sae/data/shuffle_buffer.hpp>
#include <sae/formats/checkpoint.hpp>

#include <filesystem>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "catch_compat.hpp"
#include "temp_folder.hpp"

namespace small_training {

namespace fs = std::filesystem;
using sae::Dynamic;
using sae::Index;
template <class Activation, class Scalar, class Stored = Scalar>
using Sae = sae::SparseAutoencoder<Dynamic, Dynamic, Activation, Scalar, Stored>;

inline constexpr Index width = 12, latents = 40;

template <class Scalar>
sae::Matrix<Scalar> some_rows(Index rows) {
  sae::Random random(3);
  sae::Matrix<Scalar> x(rows, width);
  for (Index i = 0; i < rows; ++i) {
    const double common = random.normal();
    for (Index j = 0; j < width; ++j) x(i, j) = static_cast<Scalar>(1.5 + common * (j % 3 == 0 ? 2.0 : 0.1) + random.normal());
  }
  return x;
}

// One training.
template <class Activation, class Scalar, class Terms, class Source_, class Stored = Scalar>
struct Run {
  using Source = Source_;
  Run(int thread_count, Activation activation, Terms terms, const sae::TrainerConfig& config, Source rows, Index F = latents,
      sae::ModelOptions options = {})
      : threads(thread_count),
        model(width, F, activation, options),
        trainer(model, config, terms, threads),
        source(std::move(rows)) {}
  sae::Threads threads;
  Sae<Activation, Scalar, Stored> model;
  sae::Trainer<Sae<Activation, Scalar, Stored>, Terms> trainer;
  Source source;
};

struct Killed {};  // thrown by a callback in the place of a kill

template <class Model>
std::string bytes_of(const Model& model) {
  std::string out;
  model.parameters().visit(
      [&](std::string_view, const auto& tensor) {
        out.append(reinterpret_cast<const char*>(tensor.data()),
                   static_cast<std::size_t>(tensor.size()) * sizeof(*tensor.data()));
      },
      model.parameters());
  return out;
}

// make(threads) gives a fresh Run; it is trained at once, and in pieces with a checkpoint between each two.
template <class Make>
void require_same_bytes(const Make& make, const std::vector<Index>& stops) {
  const TempFolder folder;
  const auto path = folder / "checkpoint.safetensors", late = folder / "late.safetensors";
  const auto straight = make(1);
  const Index steps = straight->trainer.config().total_steps();
  const auto keep_late = [&](auto& trainer, const sae::StepReport& report) {
    if (report.step == steps - 1) sae::save_checkpoint(trainer, late);
  };
  Index dead = 0;
  const auto count_dead = [&](const sae::StepReport& report) { dead += report.dead; };
  REQUIRE(straight->trainer.fit(straight->source, keep_late, count_dead) == sae::FitStatus::finished);
  const std::string want = bytes_of(straight->model), want_late = sae::read_file(late);
  if constexpr (std::is_same_v<std::decay_t<decltype(straight->trainer.objective())>, sae::Objective<sae::AuxK>>)
    REQUIRE(dead > 0);

  for (const int threads : {1, 3}) {
    fs::remove(path);
    fs::remove(late);
    Index done = 0;
    for (const Index stop : stops) {
      const auto run = make(threads);
      if (done > 0) sae::load_checkpoint(run->trainer, path);
      REQUIRE(run->trainer.step() == done);
      const auto kill = [&](auto& trainer, const sae::StepReport& report) {
        if (report.step != stop) return;
        sae::save_checkpoint(trainer, path);
        throw Killed();
      };
      REQUIRE_THROWS_AS(run->trainer.fit(run->source, kill), Killed);
      done = stop;
    }
    const auto run = make(threads);
    sae::load_checkpoint(run->trainer, path);
    REQUIRE(run->trainer.fit(run->source, keep_late) == sae::FitStatus::finished);
    REQUIRE(run->trainer.step() == steps);
    CAPTURE(threads);
    REQUIRE((bytes_of(run->model) == want));
    if (stops.back() < steps - 1) REQUIRE((sae::read_file(late) == want_late));
  }
}

using Small = Run<sae::TopK, float, sae::Objective<sae::AuxK>, sae::ShuffleBuffer<sae::MatrixSource<float>>>;
inline std::unique_ptr<Small> make_small(Index steps, sae::TopK topk = {.k = 2}, sae::TrainerConfig config = {},
                                         Index F = latents, sae::AuxK aux = {}) {
  config.steps = steps;
  config.batch = 32;
  config.dead.window = 64;
  Small::Source source(sae::MatrixSource<float>(some_rows<float>(150)), {.capacity = 64});
  return std::make_unique<Small>(1, topk, sae::Objective{aux}, config, std::move(source), F);
}
// A checkpoint after `stop` of `steps` steps.
inline void stop_small(const fs::path& path, Index steps, Index stop, const sae::Settings& own = {}) {
  const auto run = make_small(steps);
  const auto kill = [&](auto& trainer, const sae::StepReport& report) {
    if (report.step != stop) return;
    sae::save_checkpoint(trainer, path, own);
    throw Killed();
  };
  REQUIRE_THROWS_AS(run->trainer.fit(run->source, kill), Killed);
}
template <class R>
std::string load_error(R& run, const fs::path& path, const sae::Settings& own = {}) {
  try {
    sae::load_checkpoint(run.trainer, path, own);
  } catch (const sae::FileError& error) {
    return error.what();
  }
  return "";
}

}  // namespace small_training
