#pragma once
#include <sae/files/output_folder.hpp>
#include <sae/metrics/row_filter.hpp>
#include <sae/training/callbacks.hpp>

#include <algorithm>
#include <fstream>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "train_source.hpp"

// What a training that signals and kills may end at any time needs: `train` and `sweep`.
namespace sae::cli {

constexpr const char* checkpoint_name = "checkpoint.safetensors";
constexpr const char* log_name = "log.jsonl";
constexpr const char* sae_name = "cfg.json";  // what tells the folder of a SAE from others
constexpr const char* weights_name = "sae_weights.safetensors";

/// Rows to train on, and what belongs to a training that can be gone on with.
struct TrainingOptions : TrainSourceOptions {
  std::optional<Index> report_every, checkpoint_every;
  bool resume = false;
};
/// --checkpoint-every, --resume.
void add_resume(CLI::App& verb, TrainingOptions& options);
/// --report-every.
void add_report_every(CLI::App& verb, TrainingOptions& options);

/// The log of a training: JSON lines, brought back to the step of a checkpoint when it goes on.
class Log {
 public:
  /// Lines of later steps than `step`, and one that a kill cut, are dropped.
  Log(std::filesystem::path path, Index step, std::optional<Index> report_every);
  void operator()(const StepReport& report);
  /// Before a checkpoint that counts on its lines.
  void sync() const;

 private:
  void check() const;
  std::filesystem::path path_;
  std::optional<Index> every_;  ///< none: about 1000 lines
  std::ofstream out_;
  JsonLinesLog lines_{out_};
};

/// OUT.partial, where everything is while training.
std::filesystem::path partial_of(const Common& options);
/// Refuses to replace a folder that is not empty and lacks the file that every `what` has.
void check_replaced(const Common& options, const char* file, const char* what);

/// OUT.partial of a training, with its checkpoint and logs.
class ResumableFolder {
 public:
  /// Tells whether a training puts a file (or folder) of this name, relative to OUT.partial, there.
  using IsOurs = std::function<bool(const std::filesystem::path& name, bool is_folder)>;

  /// \param settings  what a resumed training must share beside the trainer's (checkpoint_settings)
  /// \throws FileError  OUT.partial is there and neither --resume nor --force is given, or it holds other things.
  ResumableFolder(const TrainingOptions& options, Settings settings, const IsOurs& is_ours);

  const std::filesystem::path& path() const { return folder_.partial(); }
  std::filesystem::path operator/(const std::filesystem::path& name) const { return path() / name; }

  /// Puts the trainer where the checkpoint stood, if there is one.
  template <class AnyTrainer>
  void load(AnyTrainer& trainer) {
    if (!saved_) return;
    folder_.keep();
    load_checkpoint(trainer, checkpoint_, settings_);
    note(options_, "going on from step ", trainer.step(), " of ", trainer.config().total_steps());
  }
  /// A log of this name in the folder, which goes on from `step`.
  Log& log(const std::filesystem::path& name, Index step) {
    return *logs_.emplace_back(std::make_unique<Log>(path() / name, step, options_.report_every));
  }
  /// trainer.fit(source, callbacks...) to the end, with a checkpoint every so many steps and one when a signal asks to stop.
  /// \throws Stopped        with how to go on
  /// \throws DivergedError  see `diverged`
  template <class AnyTrainer, class... Callbacks>
  void fit(AnyTrainer& trainer, TrainSource& source, Callbacks&&... callbacks) {
    const Index steps = trainer.config().total_steps();
    const Index every = options_.checkpoint_every.value_or(std::clamp<Index>(steps / 10, 100, 5000));
    Index done = 0;
    const auto save_or_stop = [&](AnyTrainer& self, const StepReport& report) {
      *source.interruptible = false;
      done = report.step;
      const bool more = report.step < steps, stop = stop_asked() && more;
      if (stop || (report.step % every == 0 && more)) save(self);
      return stop;
    };
    try {
      const FitStatus status = trainer.fit(source, callbacks..., save_or_stop);
      if (status == FitStatus::stopped)
        throw Stopped{stop_signal().load(), sae::detail::concat("stopped at step ", done, " of ", steps, "; ", how_to_go_on())};
      if (status == FitStatus::exhausted) throw_value("the rows ended at step ", trainer.step(), " of ", steps);
    } catch (const NonFiniteRow&) {
      folder_.keep(false);  // the rows are wrong: there is nothing to go on with
      throw;
    } catch (Stopped& stopped) {
      if (done == 0) explain(stopped);
      throw;
    }
  }
  /// Of work that ended between two checkpoints.
  void explain(Stopped& stopped) const {
    if (saved_) stopped.message = "stopped; " + how_to_go_on();
  }
  /// \param whose  "", or the name of the one of several
  [[noreturn]] void diverged(const DivergedError& error, const std::string& whose = {}) const;

  /// OUT appears, and its checkpoint goes. A kill before goes on from the checkpoint.
  void commit();
  /// Earlier, for those who then change what going on would need.
  void remove_checkpoint() { std::filesystem::remove(checkpoint_); }

 private:
  std::string how_to_go_on() const;
  template <class AnyTrainer>
  void save(AnyTrainer& trainer) {
    for (const auto& log : logs_) log->sync();
    save_checkpoint(trainer, checkpoint_, settings_);
    saved_ = true;
    folder_.keep();
  }

  const TrainingOptions& options_;
  Settings settings_;
  OutputFolder folder_;
  std::filesystem::path checkpoint_;
  bool saved_;  ///< a checkpoint is there
  std::vector<std::unique_ptr<Log>> logs_;
};

}  // namespace sae::cli
