#pragma once
#include <sae/files/safetensors.hpp>
#include <sae/training/train_together.hpp>
#include <sae/training/trainer.hpp>

#include <algorithm>
#include <cmath>
#include <concepts>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

// A checkpoint is one safetensors file: the parameters, the optimizer's moments ("moment0.W_enc"), the average of the weights
// ("average.W_enc") where there is one, how long each latent has been silent, the counters, the input scale, where the source
// stands ("source.counters", "source.rows", inner sources "source.0.counters"), each exactly as it is in memory. Of several layers
// each has its own ("layer0.W_enc", "layer0.silent"). Its metadata hold the format's version, the step and every setting that the
// result depends on ("setting trainer.batch").
namespace sae::inline SAE_ABI {

/// A trainer whose runs can be saved and gone on with: Trainer, CrossLayerTrainer, TrainerGroup.
template <class T>
concept Resumable = requires(T& trainer) {
  { trainer.fitting() } -> std::same_as<bool>;
  trainer.check_weights();
  trainer.resume();
};

/// Name and value of settings, in a fixed order.
using Settings = std::vector<std::pair<std::string, std::string>>;

namespace detail {

/// Collects what `visit_settings` tells: numbers in the shortest form that reads back exactly.
class SettingsList {
 public:
  SettingsList(Settings& out, std::string prefix) : out_(out), prefix_(std::move(prefix)) {}

  template <class T>
  void operator()(std::string_view name, const T& value) const {
    const std::string full = prefix_ + std::string(name);
    if constexpr (std::is_arithmetic_v<T> || std::is_convertible_v<const T&, std::string_view>) {
      out_.emplace_back(full, concat(value));
    } else {
      value.visit_settings(SettingsList(out_, full + "."));
    }
  }
  /// A term or an activation: its name, then its settings.
  template <class T>
  void part(std::string_view role, const T& value) const {
    out_.emplace_back(prefix_ + std::string(role), std::string(value.name));
    const SettingsList inner(out_, prefix_ + std::string(role) + ".");
    if constexpr (requires { value.visit_settings(inner); }) {
      value.visit_settings(inner);
    } else {
      static_assert(std::is_empty_v<T>,
                    "sae: a checkpoint compares settings; give this term or activation a member "
                    "`template <class V> void visit_settings(V&& v) const` that calls v(\"field\", field) for each");
    }
  }

 private:
  Settings& out_;
  std::string prefix_;
};

inline constexpr std::string_view checkpoint_format = "sae checkpoint", checkpoint_version = "1", setting_prefix = "setting ";
inline constexpr std::int64_t largest_count = std::int64_t{1} << 62;
inline constexpr int source_depth_cap = 16;

inline std::string metadata_or_empty(const SafetensorsFile& file, std::string_view name) {
  const auto found = file.metadata().find(name);
  return found == file.metadata().end() ? std::string() : found->second;
}

/// Visitor of `Trainer::visit_state` that puts everything into a file. What it visits is viewed until the file is saved.
class CheckpointWriter {
 public:
  explicit CheckpointWriter(SafetensorsWriter& file) : file_(file) {}

  template <class Scalar>
  void tensor(std::string_view name, const Tensor<Scalar>& tensor) {
    file_.add(std::string(name), tensor);
  }
  void integers(std::string_view name, const std::vector<std::int64_t>& values) { add(std::string(name), values, integers_); }
  void number(std::string_view name, double value) { add(std::string(name), std::vector<double>{value}, numbers_); }
  void source(const SourceState& state) { source("source", state); }

 private:
  template <class T>
  void add(const std::string& name, const std::vector<T>& values, std::map<std::string, std::vector<T>>& kept) {
    const auto& copy = kept[name] = values;
    file_.add(name, {static_cast<Index>(copy.size())}, std::span<const T>(copy));
  }
  void source(const std::string& name, const SourceState& state) {
    file_.add(name + ".counters", {static_cast<Index>(state.counters.size())}, std::span<const std::uint64_t>(state.counters));
    file_.add(name + ".rows", state.rows);
    for (std::size_t i = 0; i < state.inner.size(); ++i) source(concat(name, ".", i), state.inner[i]);
  }

  SafetensorsWriter& file_;
  std::map<std::string, std::vector<std::int64_t>> integers_;
  std::map<std::string, std::vector<double>> numbers_;
};

/// Visitor of `Trainer::visit_state` that compares everything with a file, and takes it over in a second walk: what does not fit
/// is found before anything has changed.
class CheckpointReader {
 public:
  CheckpointReader(const SafetensorsFile& file, Index steps) : file_(file), steps_(steps) {}
  /// Ends the first walk; the next one takes over.
  void accept() {
    for (const auto& [name, tensor] : file_.tensors())
      if (!seen_.contains(name)) throw_file(file_.path(), ": tensor ", printable(name), " is none of this trainer's");
    taking_ = true;
  }

  template <class Scalar>
  void tensor(std::string_view name, Tensor<Scalar>& tensor) {
    if (taking_) {
      tensor = file_.read<Scalar>(name);
    } else {
      check<Scalar>(name, {tensor.rows(), tensor.cols()});
    }
  }
  void integers(std::string_view name, std::vector<std::int64_t>& values) {
    if (!taking_) check<std::int64_t>(name, {static_cast<Index>(values.size())});
    const auto read = file_.values<std::int64_t>(name);
    for (const std::int64_t value : read)
      if (value < 0 || value > largest_count)
        throw_file(file_.path(), ": ", name, " holds ", value, ", which is no count in [0, 2^62]");
    // "counters", of several trainers "1.counters"; resampling has counters of other things.
    if (name.substr(std::min(name.find_first_not_of("0123456789."), name.size())) == "counters" && read[0] > steps_)
      throw_file(file_.path(), ": its step ", read[0], " is beyond the ", steps_, " steps of the run");
    if (taking_) values.assign(read.begin(), read.end());
  }
  void number(std::string_view name, double& value) {
    if (!taking_) check<double>(name, {1});
    const double read = file_.values<double>(name)[0];
    if (!std::isfinite(read) || !(read > 0)) throw_file(file_.path(), ": ", name, " = ", read, " is not positive and finite");
    if (taking_) value = read;
  }
  void source(SourceState& state) {
    if (taking_) {
      state = std::move(source_);
    } else {
      source_ = read_source("source", 0);
    }
  }

 private:
  template <class T>
  void check(std::string_view name, const std::vector<Index>& shape) {
    const SafetensorsInfo& info = require<T>(name);
    if (info.shape != shape)
      throw_file(file_.path(), ": tensor ", name, " has shape ", shape_text(info.shape), ", this trainer's is ",
                 shape_text(shape));
  }
  template <class T>
  const SafetensorsInfo& require(std::string_view name) {
    const SafetensorsInfo& info = file_.info(name);
    if (info.dtype != dtype_of<T>())
      throw_file(file_.path(), ": tensor ", name, " holds ", to_string(info.dtype), ", this trainer's holds ",
                 to_string(dtype_of<T>()));
    seen_.emplace(name);
    return info;
  }
  SourceState read_source(const std::string& name, int depth) {
    if (depth == source_depth_cap)
      throw_file(file_.path(), ": ", name, ": sources are nested deeper than ", source_depth_cap, " levels");
    SourceState out;
    const std::string counters = name + ".counters", rows = name + ".rows";
    if (require<std::uint64_t>(counters).shape.size() != 1)
      throw_file(file_.path(), ": tensor ", counters, " has shape ", shape_text(file_.info(counters).shape),
                 ", it should have one axis");
    if (require<float>(rows).shape.size() != 2)
      throw_file(file_.path(), ": tensor ", rows, " has shape ", shape_text(file_.info(rows).shape),
                 ", it should have two axes");
    const auto values = file_.values<std::uint64_t>(counters);
    out.counters.assign(values.begin(), values.end());
    out.rows = file_.read<float>(rows);
    for (Index i = 0; file_.contains(concat(name, ".", i, ".counters")); ++i)
      out.inner.push_back(read_source(concat(name, ".", i), depth + 1));
    return out;
  }

  const SafetensorsFile& file_;
  Index steps_;
  std::set<std::string, std::less<>> seen_;
  SourceState source_;
  bool taking_ = false;
};

}  // namespace detail

/// Every setting that the result of a training depends on, by name: kind of trainer, sizes, activation, terms of the loss and
/// TrainerConfig, then what the caller adds (where the rows come from, a seed). Two trainings with equal settings on equal rows give
/// equal bytes.
/// Terms and activations of your own tell theirs by a member `visit_settings` (training/aux_k.hpp shows one).
template <Resumable AnyTrainer>
Settings checkpoint_settings(const AnyTrainer& trainer, const Settings& own = {}) {
  Settings out;
  const auto& model = trainer.model();
  const detail::SettingsList top(out, "");
  top("trainer", AnyTrainer::kind);
  if constexpr (requires { model.layers(); }) top("model.layers", model.layers());
  top("model.d_in", model.d_in());
  top("model.latents", model.latents());
  top("model.scalar", to_string(dtype_of<typename AnyTrainer::Scalar>()));
  if constexpr (requires { typename AnyTrainer::Stored; })
    if (AnyTrainer::narrow_weights) top("model.weights", to_string(dtype_of<typename AnyTrainer::Stored>()));
  if constexpr (requires { model.subtracts_decoder_bias(); })
    top("model.subtract_decoder_bias", model.subtracts_decoder_bias());
  if constexpr (requires { model.sites(); })
    for (std::size_t s = 0; s < model.sites().size(); ++s) top(detail::concat("model.site", s + 1), model.sites()[s]);
  if (const auto kind = detail::input_normalisation_of(model); kind != InputNormalisation::none)
    top("model.input_normalisation", detail::to_string(kind));
  top.part("activation", model.activation());
  Index count = 0;
  trainer.objective().for_each([&](const auto& term) { top.part(detail::concat("term", ++count), term); });
  top("trainer", trainer.config());
  out.insert(out.end(), own.begin(), own.end());
  return out;
}

/// The same of a group: what the caller adds, which says best what differs, how many trainers there are, and every one's settings
/// ("1.trainer.batch").
template <class AnyTrainer>
Settings checkpoint_settings(const TrainerGroup<AnyTrainer>& group, const Settings& own = {}) {
  Settings out = own;
  out.emplace_back("trainers", detail::concat(group.trainers().size()));
  std::size_t number = 0;
  for (const AnyTrainer* trainer : group.trainers()) {
    ++number;
    for (auto& [name, value] : checkpoint_settings(*trainer))
      out.emplace_back(detail::concat(number, ".", name), std::move(value));
  }
  return out;
}

/// Writes everything that a training needs to go on as if it had never stopped. The file appears whole under its name, replacing
/// an earlier one, or the earlier one stays: also through a kill or a power cut at any moment. For a callback of `fit`; to be called
/// there, after a step, because only then the source can be asked where it stands.
///
/// \param own  settings of the caller's that a resumed training must share (see checkpoint_settings).
/// \throws FileError      it cannot be written (the earlier one is intact).
/// \throws ValueError     the trainer's run has ended, or none is under way.
/// \throws DivergedError  a weight is not finite (the earlier one, the last good state, is intact).
/// Cost: the parameters, what the optimizer keeps (Adam: 2 times the parameters), the average of the weights and the rows that a
/// shuffle buffer holds, written and synced.
template <Resumable AnyTrainer>
void save_checkpoint(AnyTrainer& trainer, const std::filesystem::path& path, const Settings& own = {}) {
  if (!trainer.fitting())
    throw_value("save_checkpoint: to be called in a callback of fit, where the source says how far it was read");
  trainer.check_weights();
  SafetensorsWriter file;
  detail::CheckpointWriter writer(file);
  trainer.visit_state(writer);
  file.metadata["format"] = detail::checkpoint_format;
  file.metadata["version"] = detail::checkpoint_version;
  file.metadata["step"] = detail::concat(trainer.step());
  for (const auto& [name, value] : checkpoint_settings(trainer, own))
    file.metadata[std::string(detail::setting_prefix) + name] = value;
  file.save(path, {.overwrite = true});
}

/// Puts a trainer, made as the one that was saved, where that one stood; the next `fit` goes on from there with a source made
/// as that one's was, and ends with the same bytes as a training that never stopped. Callbacks with a memory (EarlyStop) start
/// afresh. When it throws, nothing has changed.
/// \throws FileError  one sentence: the file is missing, cut, or no checkpoint; a setting differs (the first, with both values); a
///                    tensor is missing, too many, or of another shape or kind than the trainer's.
template <Resumable AnyTrainer>
void load_checkpoint(AnyTrainer& trainer, const std::filesystem::path& path, const Settings& own = {}) {
  const SafetensorsFile file(path);
  if (detail::metadata_or_empty(file, "format") != detail::checkpoint_format)
    throw_file(file.path(), ": is not a checkpoint (its metadata name no format \"", detail::checkpoint_format, "\")");
  if (detail::metadata_or_empty(file, "version") != detail::checkpoint_version)
    throw_file(file.path(), ": is a checkpoint of version ", detail::printable(detail::metadata_or_empty(file, "version")),
               ", version ", detail::checkpoint_version, " is read");
  const Settings settings = checkpoint_settings(trainer, own);
  std::set<std::string, std::less<>> known;
  for (const auto& [name, value] : settings) {
    const std::string key = std::string(detail::setting_prefix) + name;
    known.insert(key);
    const auto found = file.metadata().find(key);
    if (found == file.metadata().end())
      throw_file(file.path(), ": was made without the setting ", name, ", which is ", value, " now");
    if (found->second != value)
      throw_file(file.path(), ": was made with ", name, " = ", detail::printable(found->second), ", which is ", value, " now");
  }
  for (const auto& [name, value] : file.metadata())
    if (name.starts_with(detail::setting_prefix) && !known.contains(name))
      throw_file(file.path(), ": was made with ", detail::printable(name.substr(detail::setting_prefix.size())), " = ",
                 detail::printable(value), ", which is no setting now");

  detail::CheckpointReader reader(file, trainer.config().total_steps());
  trainer.visit_state(reader);
  reader.accept();
  trainer.visit_state(reader);
  trainer.resume();
}

/// Callback of `fit`: `save_checkpoint` every `steps` steps. Callbacks run every `report_every` steps: with another value than 1, at
/// the first of these at or after each multiple of `steps`.
///
///   trainer.fit(source, sae::checkpoint_every("run/checkpoint.safetensors", 100));
class CheckpointEvery {
 public:
  CheckpointEvery(std::filesystem::path path, Index steps, Settings own = {})
      : path_(std::move(path)), steps_(steps), own_(std::move(own)) {
    if (steps < 1) throw_value("checkpoint_every: ", steps, " steps are below 1");
  }
  template <Resumable AnyTrainer>
  void operator()(AnyTrainer& trainer, const StepReport& report) {
    if (last_ < 0) last_ = (std::max)(Index{0}, report.step - trainer.config().report_every);
    const bool due = report.step / steps_ > last_ / steps_;
    last_ = report.step;
    if (!due) return;
    save_checkpoint(trainer, path_, own_);
    ++saved_;
  }
  Index saved() const { return saved_; }  ///< checkpoints written

 private:
  std::filesystem::path path_;
  Index steps_, last_ = -1, saved_ = 0;
  Settings own_;
};

inline CheckpointEvery checkpoint_every(std::filesystem::path path, Index steps, Settings own = {}) {
  return {std::move(path), steps, std::move(own)};
}

}  // namespace sae::inline SAE_ABI
