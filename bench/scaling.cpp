// How a step of TopK grows with latents, width, active latents and threads; each size in units of its own product.
#include <sae/core/threads.hpp>

#include <string>

#include "trainings.hpp"

namespace sae_bench {
namespace {

void step(benchmark::State& state, const Size& size) {
  const auto training = make_training("topk", size, threads());
  for (int i = 0; i < warmup_steps(); ++i) training->step(false);
  in_units(state, Unit(size), [&] { training->step(false); });
  state.counters["l0"] = training->step(true);
}
// The same on so many threads, against one thread.
void step_on_threads(benchmark::State& state, int count) {
  sae::Threads pool(count);
  const auto training = make_training("topk", standard, pool);
  for (int i = 0; i < warmup_steps(); ++i) training->step(false);
  const auto alone = make_training("topk", standard, one_thread());
  const Compared medians = alternate(
      state, [&] { training->step(false); }, [&] { alone->step(false); });
  state.counters["ms"] = 1e3 * medians.work.wall;
  state.counters["ms_cpu"] = 1e3 * medians.work.cpu;
  state.counters["of_one_thread"] = medians.work.wall / medians.reference.wall;
}

const bool registered = [] {
  const auto add = [](const std::string& name, const Size& size) {
    const double work = static_cast<double>(size.B * size.D * size.F);
    configure(benchmark::RegisterBenchmark(name.c_str(), step, size), work < 2e10 ? 15 : 7);
  };
  for (const Index F : {4096, 8192, 16384, 32768, 65536}) add("latents/" + std::to_string(F), {1024, 576, F, 32});
  for (const Index D : {256, 512, 1024, 2048, 4096}) add("width/" + std::to_string(D), {1024, D, 8192, 32});
  for (const Index k : {8, 16, 32, 64, 128, 256, 512}) add("active/" + std::to_string(k), {1024, 576, 8192, k});
  for (const Index B : {128, 256, 512, 1024, 2048, 4096, 8192}) add("batch/" + std::to_string(B), {B, 576, 8192, 32});
  add("wide", wide);
  for (const int count : {1, 2, 4})
    configure(benchmark::RegisterBenchmark(("threads/" + std::to_string(count)).c_str(), step_on_threads, count), 15);
  return true;
}();

}  // namespace
}  // namespace sae_bench
