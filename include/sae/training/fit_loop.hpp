#pragma once
#include <sae/data/source.hpp>
#include <sae/training/trainer_config.hpp>

#include <cmath>
#include <functional>
#include <future>
#include <string_view>
#include <type_traits>
#include <utility>

namespace sae::inline SAE_ABI::detail {

/// \param step  steps done
/// \throws DivergedError  a weight is not finite.
template <class Parameters>
void check_weights(const Parameters& parameters, Index step) {
  Parameters::visit(
      [&](std::string_view name, const auto& w) {
        for (Index i = 0; i < w.size(); ++i)
          if (!std::isfinite(number(w[i]))) throw DivergedError(step, concat(name, " holds a number that is not finite"));
      },
      parameters);
}

/// Calls a callback of `fit`; whether it asks to stop.
template <class AnyTrainer, class Callback>
bool call_back(AnyTrainer& trainer, Callback& callback, const StepReport& report) {
  const auto ask = [&](auto&&... arguments) {
    if constexpr (std::is_void_v<decltype(callback(arguments...))>) {
      callback(arguments...);
      return false;
    } else {
      return static_cast<bool>(callback(arguments...));
    }
  };
  if constexpr (std::is_invocable_v<Callback&, AnyTrainer&, const StepReport&>) {
    return ask(trainer, report);
  } else {
    static_assert(std::is_invocable_v<Callback&, const StepReport&>,
                  "sae: a callback of fit takes (const StepReport&) or (Trainer&, const StepReport&)");
    return ask(report);
  }
}

/// The loop of a trainer's `fit`, and where its source stands. A trainer owns one.
class FitLoop {
 public:
  /// Puts the source where a state that was read says it stood. False, and nothing is done, where none was read.
  template <class Source>
  bool restore(Source& source) {
    if (!restored_) return false;
    source.restore(source_state_);
    source_state_ = {};
    restored_ = false;
    return true;
  }
  /// Steps to the end of the schedule, the end of the source, or until a callback asks to stop. While a step works that calls no
  /// callback, another thread asks the source for the next batch; callbacks find the source where their step left it.
  template <class AnyTrainer, class Source, class... Callbacks>
  FitStatus run(AnyTrainer& trainer, Source& source, Callbacks&... callbacks) {
    ask_source_ = [&source] { return source.state(); };
    const Asking asking{*this};
    const Index rows = trainer.config().batch, steps = trainer.config().total_steps();
    Tensor<typename AnyTrainer::Scalar> batch(rows, source.width()), next;
    std::future<Index> reading;  // of `next`: how many rows. Its end waits, whatever was thrown.
    while (trainer.step() < steps) {
      const bool ahead = reading.valid();
      if ((ahead ? reading.get() : fill_batch(source, batch)) < rows) return FitStatus::exhausted;
      if (ahead) std::swap(batch, next);
      const Index number = trainer.step() + 1;
      const bool wanted = number % trainer.config().report_every == 0 || number == steps;
      if (!wanted) {
        if (next.rows() != rows) next.resize(rows, source.width());
        reading = std::async(std::launch::async | std::launch::deferred, [&] { return fill_batch(source, next); });
      }
      const StepReport& report = trainer.train_step(batch, wanted);
      bool stop = false;
      if (wanted) ((stop = call_back(trainer, callbacks, report) || stop), ...);  // all of them, in order
      source_state_ = {};  // of a checkpoint that one of them made: a shuffle buffer's is large
      if (stop && trainer.step() < steps) return FitStatus::stopped;
    }
    return FitStatus::finished;
  }
  bool running() const { return static_cast<bool>(ask_source_); }
  /// As Trainer::visit_state.
  template <class Visitor>
  void visit_state(Visitor&& visitor) {
    if (running()) source_state_ = ask_source_();
    visitor.source(source_state_);
  }
  void resume() { restored_ = true; }

 private:
  /// The source may be asked where it stands only while the loop runs.
  struct Asking {
    FitLoop& loop;
    ~Asking() { loop.ask_source_ = nullptr; }
  };

  SourceState source_state_;
  std::function<SourceState()> ask_source_;  ///< while the loop runs
  bool restored_ = false;
};

}  // namespace sae::inline SAE_ABI::detail
