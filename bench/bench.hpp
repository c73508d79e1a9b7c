#pragma once
#include <sae/core/threads.hpp>
#include <sae/core/types.hpp>
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <vector>

// What all benchmarks share: the problem, the unit, and how two things are compared on a machine that does something else as well.
namespace sae_bench {

using sae::Index;
using sae::Matrix;

struct Size {
  Index B, D, F, k;
};
inline constexpr Size standard{1024, 576, 4608, 32}, wide{4096, 768, 24576, 32};

/// What `--threads` says; default: all cores.
int thread_count();
/// Pools of so many threads, and of one.
sae::Threads& threads();
sae::Threads& one_thread();

/// What `--warmup` says: steps of a training before it is measured; default: 32. Scratch has grown after the first, but what a screen's
/// bounds leave grows for a while as an encoder leaves its start.
int warmup_steps();

/// Rows [n x width] that every benchmark reads: a world of 64 directions and noise, so that a trained encoder has something to select.
/// With `--rows FILE.npy` those of the file, where it has so many of this width, less their mean and with mean squared norm 1.
const Matrix<float>& rows(Index n, Index width);
/// The same as a model holds its weights, which is aligned.
inline sae::Tensor<float> weights(Index n, Index width) {
  sae::Tensor<float> out(n, width);
  out.map() = rows(n, width);
  return out;
}
inline constexpr Index batches = 8;  ///< that a training goes round

/// The unit: z [B x F] = x [B x D] w^T by OpenBLAS on `thread_count` threads, by the same instructions as ours; without OpenBLAS by
/// Eigen.
class Unit {
 public:
  Unit(Index B, Index D, Index F);
  explicit Unit(const Size& size) : Unit(size.B, size.D, size.F) {}
  void operator()();

 private:
  Matrix<float> x_, w_, z_;
};

/// What something took. `cpu` is the time of all threads of the process: what else runs on the machine hardly moves it.
struct Seconds {
  double wall = 0, cpu = 0;
};
inline double cpu_seconds() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}
template <class Work>
Seconds time_of(const Work& work) {
  const double cpu = cpu_seconds();
  const auto wall = std::chrono::steady_clock::now();
  work();
  return {std::chrono::duration<double>(std::chrono::steady_clock::now() - wall).count(), cpu_seconds() - cpu};
}

inline double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}
/// Times of many runs.
class Times {
 public:
  void add(const Seconds& seconds) {
    wall_.push_back(seconds.wall);
    cpu_.push_back(seconds.cpu);
  }
  Seconds median() const { return {sae_bench::median(wall_), sae_bench::median(cpu_)}; }

 private:
  std::vector<double> wall_, cpu_;
};

struct Compared {
  Seconds work, reference;  ///< medians
};
/// Runs the two in turn, as often as the benchmark iterates: what slows the machine for a while slows both. An iteration's time is
/// that of `work`.
template <class Work, class Reference>
Compared alternate(benchmark::State& state, const Work& work, const Reference& reference) {
  Times of_work, of_reference;
  for (auto _ : state) {
    of_reference.add(time_of(reference));
    const Seconds seconds = time_of(work);
    of_work.add(seconds);
    state.SetIterationTime(seconds.wall);
  }
  return {of_work.median(), of_reference.median()};
}
/// The counters of something that is measured in units: medians of wall and of processor time, and both as multiples of the unit.
template <class Work>
void in_units(benchmark::State& state, Unit unit, const Work& work) {
  const Compared medians = alternate(state, work, [&] { unit(); });
  state.counters["units"] = medians.work.wall / medians.reference.wall;
  state.counters["units_cpu"] = medians.work.cpu / medians.reference.cpu;
  state.counters["ms"] = 1e3 * medians.work.wall;
  state.counters["ms_cpu"] = 1e3 * medians.work.cpu;
}

/// How every benchmark here is registered: by its own clock, a fixed number of times.
inline void configure(benchmark::internal::Benchmark* benchmark, int iterations) {
  benchmark->Iterations(iterations)->UseManualTime()->Unit(benchmark::kMillisecond);
}

/// What `main` is: takes --threads, --route, --rows and --warmup out of the arguments and passes the others on.
int run(int argc, char** argv, int (*body)(int argc, char** argv));
int run_benchmarks(int argc, char** argv);

}  // namespace sae_bench
