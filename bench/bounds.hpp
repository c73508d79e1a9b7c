#pragma once
#include <functional>

#include "bench.hpp"

namespace sae_bench {

/// What one core can do at most, measured by a loop that does nothing else, with the instructions of the route that is taken.
struct Bound {
  double amount;  ///< operations or bytes of one run
  std::function<void()> run;
};
/// Multiplications and additions of float32, in registers.
Bound multiply_add_bound();
/// The same of the integers of a screen: with AVX-512 VNNI measured; elsewhere a lane of four bytes multiplies two or four of them where it
/// multiplies one of float32.
Bound integer_bound();
/// Bytes read of an array of so many bytes, again and again: of the cache that holds it, or of memory.
Bound read_bound(Index bytes);
/// Bytes read and written of three arrays [n] of float32.
Bound update_bound(Index n);

/// Runs the two in turn, on one thread. Counters: what `work` does a second (10^9 of `amount`), what the bound does, the share reached.
template <class Work>
void against(benchmark::State& state, const Bound& bound, double amount, const Work& work) {
  work();
  const Compared medians = alternate(state, work, bound.run);
  const double rate = amount / medians.work.cpu, most = bound.amount / medians.reference.cpu;
  state.counters["G/s"] = rate / 1e9;
  state.counters["bound"] = most / 1e9;
  state.counters["share"] = rate / most;
  state.counters["ms_cpu"] = 1e3 * medians.work.cpu;
}

}  // namespace sae_bench
