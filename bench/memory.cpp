// The most memory that a training takes, against its parameters and what the optimizer keeps (Linux alone).
#include <malloc.h>

#include <fstream>
#include <string>

#include "trainings.hpp"

namespace sae_bench {
namespace {

/// A line of a file of /proc in bytes; 0 where it is not there.
double bytes_of(const char* path, const std::string& name) {
  std::ifstream file(path);
  for (std::string word; file >> word;)
    if (word == name + ":") {
      double kilobytes = 0;
      file >> kilobytes;
      return 1024 * kilobytes;
    }
  return 0;
}
double status(const std::string& name) { return bytes_of("/proc/self/status", name); }
/// Resident memory that belongs to no file: now, and at most since `forget_peak`.
double anonymous_now() { return status("RssAnon"); }
double anonymous_peak() { return status("VmHWM") - status("RssFile") - status("RssShmem"); }
void forget_peak() {
  malloc_trim(0);
  std::ofstream("/proc/self/clear_refs") << 5;
}

// The rows are there before: a training reads them from a file.
void memory(benchmark::State& state, const std::string& name, const Size& size) {
  if (bytes_of("/proc/meminfo", "MemAvailable") < 30.0 * static_cast<double>(size.F * size.D))
    return state.SkipWithError("too little memory is free");
  rows(batches * size.B, size.D);
  for (auto _ : state) {
    forget_peak();
    const double before = anonymous_now();
    const Seconds seconds = time_of([&] {
      const auto training = make_training(name, size, threads());
      for (int i = 0; i < 4; ++i) training->step(false);
      const auto own = static_cast<double>(training->state_bytes());
      const double peak = anonymous_peak() - before;
      state.counters["state_MiB"] = own / 0x1p20;
      state.counters["peak_MiB"] = peak / 0x1p20;
      state.counters["of_state"] = peak / own;
      state.counters["beyond_64_MiB"] = (peak - 64 * 0x1p20) / own;
    });
    state.SetIterationTime(seconds.wall);
  }
}

const bool registered = [] {
  const auto add = [](const std::string& name, const std::string& training, const Size& size) {
    configure(benchmark::RegisterBenchmark(("memory/" + name).c_str(), memory, training, size), 1);
  };
  for (const char* const name :
       {"topk", "topk_clipped", "topk_average", "batchtopk", "matryoshka_5", "l0_64/relu", "l0_64/jumprelu", "l0_64/gated",
        "l0_all/relu", "matching_pursuit", "transcoder", "optimizer/muon", "moments_bfloat16", "all_bfloat16", "default/topk"})
    add(name, name, standard);
  add("wide", "topk", wide);
  add("of_a_billion", "topk", {1024, 12288, 49152, 32});  // 13.5 GiB
  return true;
}();

}  // namespace
}  // namespace sae_bench
