// What the benchmark programs have in common: options beside those of Google Benchmark, the unit, the rows.
#include <benchmark/benchmark.h>
#ifdef SAE_BENCH_WITH_OPENBLAS
#include <cblas.h>
#endif
#include <sae/core/random.hpp>
#include <sae/files/npy.hpp>
#include <sae/kernels/product.hpp>
#include <sae/kernels/route.hpp>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "bench.hpp"

namespace sae_bench {
namespace {

using sae::kernels::Route;

struct Options {
  int threads = static_cast<int>(std::thread::hardware_concurrency());
  int warmup = 32;
  std::string rows{};
};
Options& options() {
  static Options all;
  return all;
}

/// Takes --name=VALUE out of the arguments; empty where it is not there.
std::string take_option(std::vector<char*>& arguments, std::string_view name) {
  std::string value;
  std::erase_if(arguments, [&](const char* argument) {
    const std::string_view text = argument;
    if (!text.starts_with(name) || text.size() <= name.size() || text[name.size()] != '=') return false;
    value = text.substr(name.size() + 1);
    return true;
  });
  return value;
}
void choose_route(const std::string& name) {
  if (name.empty()) return;
  std::string known;
  for (const Route route : sae::kernels::all_routes) {
    if (sae::kernels::to_string(route) == name) return sae::kernels::set_route(route);
    known += (known.empty() ? "" : ", ") + std::string(sae::kernels::to_string(route));
  }
  sae::throw_value("--route=", name, ": these are: ", known);
}
/// OpenBLAS reads from the environment, when it is loaded, for which CPU it computes and how long its threads spin after a product.
/// The unit is what it chooses for this machine, on the AVX2 route its AVX2 kernels: a slower one would flatter.
void restart_with_unit([[maybe_unused]] char** argv) {
#ifdef SAE_BENCH_WITH_OPENBLAS
  bool changed = false;
  const auto want = [&](const char* name, const char* value) {
    const char* const now = std::getenv(name);
    if (now == nullptr ? value == nullptr : value != nullptr && std::string_view(now) == value) return;
    value == nullptr ? unsetenv(name) : setenv(name, value, 1);
    changed = true;
  };
  want("OPENBLAS_CORETYPE",
       sae::kernels::route() == Route::avx2 || sae::kernels::route() == Route::avx_vnni ? "Haswell" : nullptr);
  want("OPENBLAS_L2_SIZE", nullptr);
  want("OPENBLAS_THREAD_TIMEOUT", "4");
  if (changed) execv("/proc/self/exe", argv);  // where it fails, the unit is what it was
#endif
}
std::string unit_name() {
#ifdef SAE_BENCH_WITH_OPENBLAS
  return std::string("OpenBLAS, ") + openblas_get_corename();
#else
  return "Eigen";
#endif
}

Matrix<float> make_rows(Index n, Index width) {
  if (!options().rows.empty()) {
    const sae::NpyRows file(options().rows);
    if (file.width() == width && file.rows() >= n) {
      Matrix<float> out(n, width);
      file.read_rows(0, n, out.data(), width);
      out.rowwise() -= out.colwise().mean().eval();
      return out * (std::sqrt(static_cast<float>(n)) / out.norm());
    }
  }
  constexpr Index directions = 64;
  sae::Random random(1);
  Matrix<float> basis(directions, width), weights(n, directions), out(n, width);
  for (Index i = 0; i < basis.size(); ++i) basis.data()[i] = static_cast<float>(random.normal());
  for (Index i = 0; i < weights.size(); ++i) weights.data()[i] = static_cast<float>(std::fmax(random.normal() - 1, 0));
  for (Index i = 0; i < out.size(); ++i) out.data()[i] = 0.1F * static_cast<float>(random.normal());
  sae::kernels::add_product_nn(out.data(), width, weights.data(), directions, basis.data(), width, n, directions, width);
  return out;
}

}  // namespace

int thread_count() { return options().threads; }
int warmup_steps() { return options().warmup; }
sae::Threads& threads() {
  static sae::Threads pool(thread_count());
  return pool;
}
sae::Threads& one_thread() {
  static sae::Threads pool(1);
  return pool;
}

const Matrix<float>& rows(Index n, Index width) {
  static std::map<std::pair<Index, Index>, std::unique_ptr<Matrix<float>>> made;
  auto& at = made[{n, width}];
  if (!at) at = std::make_unique<Matrix<float>>(make_rows(n, width));
  return *at;
}

Unit::Unit(Index B, Index D, Index F) : x_(B, D), w_(F, D), z_(B, F) {
  for (Index i = 0; i < x_.size(); ++i) x_.data()[i] = static_cast<float>(i % 7) - 3;
  for (Index i = 0; i < w_.size(); ++i) w_.data()[i] = static_cast<float>(i % 11) - 5;
}
void Unit::operator()() {
#ifdef SAE_BENCH_WITH_OPENBLAS
  const auto B = static_cast<int>(x_.rows()), D = static_cast<int>(x_.cols()), F = static_cast<int>(w_.rows());
  openblas_set_num_threads(thread_count());
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, B, F, D, 1.0F, x_.data(), D, w_.data(), D, 0.0F, z_.data(), F);
#else
  threads().for_blocks(x_.rows(), 256, [&](Index begin, Index end, Index) {
    z_.middleRows(begin, end - begin).noalias() = x_.middleRows(begin, end - begin) * w_.transpose();
  });
#endif
  benchmark::DoNotOptimize(z_.data());
}

int run(int argc, char** argv, int (*body)(int argc, char** argv)) {
  try {
    std::vector<char*> arguments(argv, argv + argc);
    choose_route(take_option(arguments, "--route"));
    restart_with_unit(argv);
    if (const std::string count = take_option(arguments, "--threads"); !count.empty())
      options().threads = std::max(1, std::atoi(count.c_str()));
    if (const std::string steps = take_option(arguments, "--warmup"); !steps.empty())
      options().warmup = std::max(1, std::atoi(steps.c_str()));
    options().rows = take_option(arguments, "--rows");
    benchmark::AddCustomContext("sae route", std::string(sae::kernels::to_string(sae::kernels::route())));
    benchmark::AddCustomContext("threads", std::to_string(thread_count()));
    benchmark::AddCustomContext("unit", unit_name());
    int count = static_cast<int>(arguments.size());
    arguments.push_back(nullptr);
    return body(count, arguments.data());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
int run_benchmarks(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}

}  // namespace sae_bench
