#include "resumable.hpp"

#include <limits>

namespace sae::cli {

namespace {

namespace fs = std::filesystem;

/// Refuses to empty or go on in a folder that is not what an interrupted training leaves.
void check_partial(const TrainingOptions& options, const ResumableFolder::IsOurs& is_ours) {
  const fs::path partial = partial_of(options);
  std::error_code error;
  if (fs::is_directory(partial, error)) {
    for (const auto& entry : fs::recursive_directory_iterator(partial)) {
      const fs::path name = entry.path().lexically_relative(partial);
      fs::path whole = name;
      if (whole.extension() == ".partial") whole.replace_extension();
      if (!is_ours(whole, entry.is_directory()))
        throw_file(partial.string(), ": is in the way and holds other things than a training (", whole.string(),
                   "); move it away");
    }
  }
  if (fs::exists(partial) && !options.resume && !options.force)
    throw_file(options.out, ": an interrupted training left ", partial.string(),
               "; --resume goes on with it, --force starts afresh");
}

OutputFolder open_folder(const TrainingOptions& options, const ResumableFolder::IsOurs& is_ours) {
  check_partial(options, is_ours);
  return OutputFolder(options.out, {.overwrite = options.force, .resume = options.resume, .keep = false});
}

}  // namespace

void add_resume(CLI::App& verb, TrainingOptions& options) {
  verb.add_option("--checkpoint-every", options.checkpoint_every,
                  "steps between checkpoints (default: a tenth of the run, 100 to 5000)")
      ->check(at_least(1));
  verb.add_flag("--resume", options.resume, "go on from OUT.partial; starts afresh where there is none");
}

void add_report_every(CLI::App& verb, TrainingOptions& options) {
  verb.add_option("--report-every", options.report_every, "steps between lines of the log (default: about 1000 lines)")
      ->check(at_least(1));
}

Log::Log(fs::path path, Index step, std::optional<Index> report_every) : path_(std::move(path)), every_(report_every) {
  std::string kept;
  std::error_code error;
  if (step > 0 && fs::exists(path_, error)) {
    const std::string text = read_file(path_, (std::numeric_limits<std::size_t>::max)());
    for (std::size_t at = 0, end = 0; (end = text.find('\n', at)) != std::string::npos; at = end + 1) {
      const auto line = nlohmann::json::parse(text.begin() + static_cast<std::ptrdiff_t>(at),
                                              text.begin() + static_cast<std::ptrdiff_t>(end), nullptr, false);
      if (!line.is_object() || !line.contains("step") || !line["step"].is_number_integer() || line["step"].get<Index>() > step)
        break;
      kept.append(text, at, end + 1 - at);
    }
  }
  atomic_write_text(path_, kept, {.overwrite = true});
  out_.open(path_, std::ios::app);
  check();
}
void Log::operator()(const StepReport& report) {
  const Index every = every_.value_or(std::max<Index>(1, report.steps / 1000));
  if (report.step % every != 0 && report.step != report.steps) return;
  lines_(report);
  check();
}
void Log::sync() const {
  const auto file = sae::detail::Descriptor::open(path_, O_RDONLY);
  if (!file || sae::detail::file_system().sync(file.get()) != 0) throw_file(path_.string(), ": cannot write to the disk");
}
void Log::check() const {
  if (!out_) throw_file(path_.string(), ": cannot be written");
}

fs::path partial_of(const Common& options) {
  fs::path out(options.out);
  if (!out.has_filename()) out = out.parent_path();
  return out += ".partial";
}

void check_replaced(const Common& options, const char* file, const char* what) {
  std::error_code error;
  const fs::path out(options.out);
  if (fs::is_directory(out, error) && !fs::is_empty(out, error) && !fs::exists(out / file, error))
    throw_file(options.out, ": holds other things than a ", what, " and is not replaced; choose another name");
}

ResumableFolder::ResumableFolder(const TrainingOptions& options, Settings settings, const IsOurs& is_ours)
    : options_(options),
      settings_(std::move(settings)),
      folder_(open_folder(options, is_ours)),
      checkpoint_(folder_ / checkpoint_name),
      saved_(folder_.resumed() && fs::exists(checkpoint_)) {
  if (saved_ || !folder_.resumed()) return;
  // It starts afresh; what lies there may be of other settings, which no checkpoint names.
  for (const auto& entry : fs::directory_iterator(path())) fs::remove_all(entry);
}

void ResumableFolder::diverged(const DivergedError& error, const std::string& whose) const {
  throw_value(whose.empty() ? "" : whose + ": ", "training diverged: at step ", error.step, " ", error.finding,
              "; a lower --lr may help", saved_ ? "; the last good checkpoint is in " + path().string() : std::string());
}

void ResumableFolder::commit() {
  folder_.commit();
  std::error_code ignored;
  fs::remove(folder_.path() / checkpoint_name, ignored);
}

std::string ResumableFolder::how_to_go_on() const {
  return sae::detail::concat("the checkpoint is in ", path().string(), "; the same command with --resume goes on from there");
}

}  // namespace sae::cli
