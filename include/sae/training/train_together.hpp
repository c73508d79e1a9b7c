#pragma once
#include <sae/training/fit_loop.hpp>
#include <sae/training/trainer.hpp>

#include <algorithm>
#include <functional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace sae::inline SAE_ABI {

namespace detail {

/// Visitor of the state of one trainer of a group: names get its number in front; the source is the group's.
template <class Visitor>
struct NumberedState {
  Visitor& visitor;
  std::string prefix;

  void tensor(std::string_view name, auto& tensor) { visitor.tensor(concat(prefix, name), tensor); }
  void integers(std::string_view name, auto& values) { visitor.integers(concat(prefix, name), values); }
  void number(std::string_view name, auto& value) { visitor.number(concat(prefix, name), value); }
  void source(SourceState&) {}
};

}  // namespace detail

/// Trains several models on one stream of rows in one pass, so that what makes the rows (a language model) runs once: every trainer
/// sees every batch.
///
///   sae::TrainerGroup group(std::vector{&small, &large});
///   if (exists(checkpoint)) sae::load_checkpoint(group, checkpoint);  // formats/checkpoint.hpp
///   group.fit(source, [](std::size_t which, const StepReport& report) { ... }, sae::checkpoint_every(checkpoint, 100));
///
/// Each model ends as its trainer alone would have made it, to the last bit: the trainers share rows, and what those with equal
/// settings find in the rows read ahead (scale, centre), and nothing else. A trainer whose run is over, shorter than the others',
/// is left out of what follows; all are finished together, so that until then every one of them has a state to go on from.
/// The trainers must outlive the group.
/// Cost     a step of each trainer, one after the other; of memory one batch more.
/// Threads  the trainers'; results do not depend on them.
template <class AnyTrainer>
class TrainerGroup {
 public:
  using Scalar = typename AnyTrainer::Scalar;

  /// \throws ValueError  no trainers; their batches differ.
  explicit TrainerGroup(std::vector<AnyTrainer*> trainers) : trainers_(std::move(trainers)) {
    if (trainers_.empty()) throw_value("TrainerGroup: there are no trainers");
    longest_ = *std::max_element(trainers_.begin(), trainers_.end(), [](const AnyTrainer* a, const AnyTrainer* b) {
      return a->config().total_steps() < b->config().total_steps();
    });
    config_ = longest_->config();
    config_.report_every = 1;
    for (const AnyTrainer* trainer : trainers_)
      if (trainer->config().batch != config_.batch)
        throw_value("TrainerGroup: batches of ", trainers_[0]->config().batch, " and of ", trainer->config().batch,
                    " rows cannot share a stream");
  }
  TrainerGroup(const TrainerGroup&) = delete;
  TrainerGroup& operator=(const TrainerGroup&) = delete;

  const std::vector<AnyTrainer*>& trainers() const { return trainers_; }
  const TrainerConfig& config() const { return config_; }  ///< of the longest run; report_every is 1
  Index step() const { return longest_->step(); }          ///< steps done
  /// The trainer at work, or that was when an exception came: which one diverged.
  std::size_t which() const { return which_; }

  /// As Trainer::fit, all of them.
  /// \param each       called as each(index of the trainer, its report) every `report_every` steps of it and at its last one;
  ///                   returning void, or bool: true stops all of them after this step
  /// \param callbacks  as those of Trainer::fit, with the group in the trainer's place, called after every step of all of them, with
  ///                   the report of the longest run (its losses are those of its latest report)
  /// \throws ValueError     a row that is not finite; the runs have ended; the trainers do not stand at one step, as after an
  ///                        exception in the middle of one.
  /// \throws ShapeError     widths differ.
  /// \throws DivergedError  as Trainer::fit; `which()` is the one.
  template <class Source, class Each, class... Callbacks>
    requires(RowSource<Source, Scalar>)
  FitStatus fit(Source& source, const Each& each, Callbacks&&... callbacks) {
    if (ended_) throw_value("TrainerGroup: fit was run to its end already; make new trainers to go on");
    for (const AnyTrainer* trainer : trainers_)
      if (trainer->row_width() != source.width())
        throw_shape("TrainerGroup: the source yields rows of width ", source.width(), ", a model needs ", trainer->row_width());
    if (!loop_.restore(source) && !prepared_) prepare(source);
    prepared_ = true;
    if (!at_one_step()) throw_value("TrainerGroup: the trainers do not stand at one step; there is no going on from here");
    bool stop = false;
    each_ = [&](std::size_t which, const StepReport& report) {
      if constexpr (std::is_void_v<decltype(each(which, report))>) {
        each(which, report);
      } else {
        stop = static_cast<bool>(each(which, report)) || stop;
      }
    };
    const Telling telling{*this};
    const auto asked = [&](const StepReport&) { return stop; };
    const FitStatus status = loop_.run(*this, source, callbacks..., asked);
    check_weights();
    ended_ = true;
    for (AnyTrainer* const trainer : trainers_) trainer->finish();
    return status;
  }
  // What formats/checkpoint.hpp asks of a trainer.

  /// As Trainer::fitting, and all of them have done the same step.
  bool fitting() const { return loop_.running() && at_one_step(); }
  /// \throws DivergedError  a weight is not finite; `which()` is the one.
  void check_weights() {
    for (which_ = 0; which_ < trainers_.size(); ++which_) trainers_[which_]->check_weights();
  }
  /// As Trainer::visit_state: the trainers' in their order, names as "1.W_enc", then the source's.
  template <class Visitor>
  void visit_state(Visitor&& visitor) {
    for (std::size_t n = 0; n < trainers_.size(); ++n)
      trainers_[n]->visit_state(detail::NumberedState<std::remove_reference_t<Visitor>>{visitor, detail::concat(n + 1, ".")});
    loop_.visit_state(visitor);
  }
  void resume() { loop_.resume(); }

 private:
  friend class detail::FitLoop;

  struct Telling {
    TrainerGroup& group;
    ~Telling() { group.each_ = nullptr; }
  };

  /// One step of every trainer whose run is not over, on one batch of raw rows.
  const StepReport& train_step(const Batch<Scalar>& rows, bool) {
    const StepReport* longest = nullptr;
    for (which_ = 0; which_ < trainers_.size(); ++which_) {
      AnyTrainer& trainer = *trainers_[which_];
      const Index number = trainer.step() + 1, own = trainer.config().total_steps();
      if (number > own) continue;
      const bool wanted = number % trainer.config().report_every == 0 || number == own;
      const StepReport& report = trainer.train_step(rows, wanted);
      if (&trainer == longest_) longest = &report;
      if (wanted) each_(which_, report);
    }
    return *longest;
  }
  template <class Source>
  void prepare(Source& source) {
    for (which_ = 0; which_ < trainers_.size(); ++which_) {
      AnyTrainer& trainer = *trainers_[which_];
      const auto before = std::span(trainers_).first(which_);
      if (std::none_of(before.begin(), before.end(), [&](const AnyTrainer* other) { return trainer.prepare_like(*other); }))
        trainer.prepare(source);
    }
  }
  bool at_one_step() const {
    return std::all_of(trainers_.begin(), trainers_.end(), [&](const AnyTrainer* trainer) {
      return trainer->step() == std::min(step(), trainer->config().total_steps());
    });
  }

  std::vector<AnyTrainer*> trainers_;
  AnyTrainer* longest_ = nullptr;  ///< the first of the longest runs
  TrainerConfig config_;
  detail::FitLoop loop_;
  std::function<void(std::size_t, const StepReport&)> each_;  ///< while `fit` runs
  std::size_t which_ = 0;
  bool prepared_ = false, ended_ = false;
};

/// TrainerGroup::fit in one call:
///
///   std::vector<Trainer*> all{&small, &large};
///   train_together(std::span<Trainer* const>(all), source, [](std::size_t which, const StepReport& report) { ... });
template <class AnyTrainer, class Source, class Each, class... Callbacks>
FitStatus train_together(std::span<AnyTrainer* const> trainers, Source& source, const Each& each, Callbacks&&... callbacks) {
  TrainerGroup<AnyTrainer> group({trainers.begin(), trainers.end()});
  return group.fit(source, each, callbacks...);
}

}  // namespace sae::inline SAE_ABI
