#pragma once
#include <sae/core/threads.hpp>
#include <sae/files/output.hpp>

#include <CLI/CLI.hpp>
#include <atomic>
#include <charconv>
#include <cmath>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

/// The program `sae`: a file per verb, each with one function `void add_VERB(CLI::App& program)` that declares the verb's options
/// and what runs it, and a line in main.cpp. What can be wrong with an option by itself is checked by CLI11 or `usage_error` (exit
/// 2); everything else is thrown by the library (exit 1). Results go to standard output, everything else to standard error.
namespace sae::cli {

using Json = nlohmann::ordered_json;

// ---- what goes wrong

/// The options contradict each other or lack one: exit 2.
struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
template <class... Parts>
[[noreturn]] void usage_error(const Parts&... parts) {
  throw UsageError(sae::detail::concat(parts...));
}

/// Work that SIGINT or SIGTERM ended cleanly: exit 128 + signal, after a line that says how things stand.
struct Stopped {
  int signal = 0;
  std::string message;
};

/// The signal that asked to stop, 0: none. A second signal ends the program at once.
inline std::atomic<int>& stop_signal() {
  static std::atomic<int> signal{0};
  static_assert(std::atomic<int>::is_always_lock_free);
  return signal;
}
inline bool stop_asked() { return stop_signal().load(std::memory_order_relaxed) != 0; }
/// For work with nothing to go on with: between two blocks of it. Unfinished outputs go as the stack unwinds.
inline void check_stop() {
  if (stop_asked()) throw Stopped{stop_signal().load(), "stopped; nothing was written"};
}

// ---- verbs and their common options

/// What every verb has.
struct Common {
  bool quiet = false;
  int threads = 0;
  bool json = false;       ///< add_json
  bool force = false;      ///< add_out
  std::string out;         ///< add_out
  std::uint64_t seed = 0;  ///< add_seed
};

inline CLI::Validator at_least(double low, bool itself = true) {
  const std::string text = sae::detail::concat(itself ? ">= " : "> ", low);
  return CLI::Validator(
      [=](std::string& input) {
        double number = 0;
        const bool is_number = CLI::detail::lexical_cast(input, number);
        return is_number && std::isfinite(number) && (itself ? number >= low : number > low) ? std::string()
                                                                                             : input + " is not " + text;
      },
      text);
}
/// For options of which `sae sweep` takes a list.
inline CLI::Validator one_value() {
  return CLI::Validator(
      [](std::string& input) {
        return input.find(',') == std::string::npos
                   ? std::string()
                   : input + " is a list: sae sweep trains a SAE for each of its values, on one stream of rows";
      },
      "");
}
inline CLI::Validator within(double low, double high) {
  const std::string text = sae::detail::concat("in [", low, ", ", high, "]");
  return CLI::Validator(
      [=](std::string& input) {
        double number = 0;
        const bool is_number = CLI::detail::lexical_cast(input, number);
        return is_number && number >= low && number <= high ? std::string() : input + " is not " + text;
      },
      text);
}

/// CLI11 takes -1 for 2^64 - 1 and cuts larger numbers.
inline CLI::Validator whole_number() {
  return CLI::Validator(
      [](std::string& input) {
        std::uint64_t number = 0;
        const auto [end, error] = std::from_chars(input.data(), input.data() + input.size(), number);
        return error == std::errc() && end == input.data() + input.size() ? std::string()
                                                                          : input + " is not a whole number in [0, 2^64)";
      },
      "in [0, 2^64)");
}

/// Declares a verb with --quiet and --threads; `run(options)` is what it does. `Options` derives from Common.
template <class Options>
CLI::App& add_verb(CLI::App& program, const std::string& name, const std::string& description,
                   const std::shared_ptr<Options>& options, void (*run)(const Options&)) {
  CLI::App& verb = *program.add_subcommand(name, description);
  verb.add_flag("--quiet", options->quiet, "no progress and no notes on standard error");
  verb.add_option("--threads", options->threads, "threads; 0: all cores. No result depends on it")
      ->capture_default_str()
      ->check(within(0, 1024));
  verb.callback([options, run] { run(*options); });
  return verb;
}
inline void add_json(CLI::App& verb, Common& options) {
  verb.add_flag("--json", options.json, "one JSON object on standard output instead of a table");
}
inline CLI::Option* add_out(CLI::App& verb, Common& options, const std::string& what) {
  verb.add_flag("--force", options.force, "replace an output that exists");
  return verb.add_option("--out", options.out, what);
}
inline void add_seed(CLI::App& verb, Common& options) {
  verb.add_option("--seed", options.seed, "fixes everything random")->capture_default_str()->check(whole_number());
}

/// "10x" or "10": a factor of the median norm; "0" or "none": 0, no filter.
inline double parse_max_norm(std::string text) {
  if (text == "none") return 0;
  if (!text.empty() && text.back() == 'x') text.pop_back();
  double factor = -1;
  if (!CLI::detail::lexical_cast(text, factor) || !(factor >= 0) || factor > 1e300)
    usage_error("--max-norm: '", text, "' is not a number of medians such as 10x, or none");
  return factor;
}

/// Refuses early what a verb would refuse after its work: an output that exists.
inline void check_output(const Common& options) {
  if (options.out.empty()) usage_error("--out is empty");
  std::error_code error;
  if (!options.force && std::filesystem::exists(std::filesystem::symlink_status(options.out, error)))
    throw_file(options.out, ": exists; --force replaces it");
}

// ---- what people see

bool stderr_is_terminal();
/// A line on standard error, unless --quiet.
template <class... Parts>
void note(const Common& options, const Parts&... parts) {
  if (!options.quiet) std::fprintf(stderr, "%s\n", sae::detail::concat(parts...).c_str());
}
/// A number for people: four significant digits.
std::string rounded(double x);
/// One JSON object on standard output.
void print_json(const Json& object);
/// Two columns on standard output.
void print_table(const std::vector<std::pair<std::string, std::string>>& rows);

/// Progress of work that knows how much there is: a bar that is drawn again and again on a terminal, a plain line every tenth of
/// the work elsewhere, nothing where there is little of it.
class Progress {
 public:
  Progress(const Common& options, std::string what, Index total);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  void at(Index done);

 private:
  std::string what_;
  Index total_, tenth_ = 0;
  bool shown_, bar_, drawn_ = false;
  double next_ = 0;
};

}  // namespace sae::cli
