#pragma once
#include <sae/training/trainer.hpp>

#include <algorithm>
#include <span>
#include <type_traits>
#include <utility>

namespace sae::inline SAE_ABI {

/// Trains several models on one stream of rows in one pass, so that what makes the rows (a language model) runs once: every trainer
/// sees every batch.
///
///   std::vector<Trainer*> all{&small, &large};
///   train_together(std::span<Trainer* const>(all), source, [](std::size_t which, const StepReport& report) { ... });
///
/// Each model ends as its trainer alone would have made it, to the last bit: the trainers share rows, and what those with equal
/// settings find in the rows read ahead (scale, centre), and nothing else. A trainer whose
/// run is over, shorter than the others', is finished and left out of what follows.
/// \param each  called as each(index of the trainer, its report) every `report_every` steps of it; returning void, or bool: true
///              stops all of them after this step
/// \throws ValueError  no trainers; their batches differ; a row that is not finite. ShapeError: widths differ.
template <class AnyTrainer, class Source, class Each>
FitStatus train_together(std::span<AnyTrainer* const> trainers, Source& source, const Each& each) {
  using Scalar = typename AnyTrainer::Scalar;
  if (trainers.empty()) throw_value("train_together: there are no trainers");
  const Index batch_rows = trainers.front()->config().batch;
  Index steps = 0;
  for (std::size_t n = 0; n < trainers.size(); ++n) {
    AnyTrainer* const trainer = trainers[n];
    if (trainer->config().batch != batch_rows)
      throw_value("train_together: batches of ", batch_rows, " and of ", trainer->config().batch,
                  " rows cannot share a stream");
    if (trainer->row_width() != source.width())
      throw_shape("train_together: the source yields rows of width ", source.width(), ", a model needs ", trainer->row_width());
    steps = std::max(steps, trainer->config().total_steps());
    const auto before = trainers.first(n);
    if (std::none_of(before.begin(), before.end(), [&](const AnyTrainer* other) { return trainer->prepare_like(*other); }))
      trainer->prepare(source);
  }
  FitStatus status = FitStatus::finished;
  Tensor<Scalar> batch(batch_rows, source.width());
  for (Index t = 0; t < steps && status == FitStatus::finished; ++t) {
    if (fill_batch(source, batch) < batch_rows) {
      status = FitStatus::exhausted;
      break;
    }
    bool stop = false;
    for (std::size_t n = 0; n < trainers.size(); ++n) {
      AnyTrainer& trainer = *trainers[n];
      const Index own = trainer.config().total_steps();
      if (t >= own) continue;
      const bool report = (t + 1) % trainer.config().report_every == 0 || t + 1 == own;
      const StepReport& told = trainer.train_step(batch, report);
      if (report) {
        if constexpr (std::is_void_v<decltype(each(n, told))>) {
          each(n, told);
        } else {
          stop = static_cast<bool>(each(n, told)) || stop;
        }
      }
      if (t + 1 == own) trainer.finish();
    }
    if (stop && t + 1 < steps) status = FitStatus::stopped;
  }
  if (status != FitStatus::finished)
    for (AnyTrainer* const trainer : trainers)
      if (trainer->step() < trainer->config().total_steps()) trainer->finish();
  return status;
}

}  // namespace sae::inline SAE_ABI
