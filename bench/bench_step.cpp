// One training step, encode and decode, against one dense product by the best BLAS at hand and against the same step written
// with dense products. Machines differ and are noisy: the figures to quote are the ratios, printed last, of one run.
#include <benchmark/benchmark.h>
#ifdef SAE_BENCH_WITH_OPENBLAS
#include <cblas.h>
#endif
#include <sae/sae.hpp>

#include <cmath>
#include <cstdio>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <vector>

namespace {

using sae::Index;
using sae::Matrix;

struct Size {
  Index B, D, F, k;
};
constexpr Size small{1024, 576, 4608, 32};

int thread_count() { return static_cast<int>(std::thread::hardware_concurrency()); }

// Rows of a low-rank world plus noise, so that a trained encoder has something to select.
Matrix<float> make_rows(Index rows, Index width) {
  sae::Random random(1);
  Matrix<float> basis(64, width), weights(rows, 64), out(rows, width);
  for (Index i = 0; i < basis.size(); ++i) basis.data()[i] = static_cast<float>(random.normal());
  for (Index i = 0; i < weights.size(); ++i) weights.data()[i] = static_cast<float>(std::fmax(random.normal() - 1, 0));
  out.noalias() = weights * basis;
  for (Index i = 0; i < out.size(); ++i) out.data()[i] += 0.1F * static_cast<float>(random.normal());
  return out;
}

void product_eigen(benchmark::State& state) {
  const Matrix<float> x = make_rows(small.B, small.D), w = make_rows(small.F, small.D);
  Matrix<float> z(small.B, small.F);
  sae::Threads threads;
  for (auto _ : state) {
    threads.for_blocks(small.B, 256, [&](Index begin, Index end, Index) {
      z.middleRows(begin, end - begin).noalias() = x.middleRows(begin, end - begin) * w.transpose();
    });
    benchmark::DoNotOptimize(z.data());
  }
}

// The encoder's product as the library computes it: tiles that are used at once.
void product_own(benchmark::State& state) {
  const Matrix<float> x = make_rows(small.B, small.D), w = make_rows(small.F, small.D);
  sae::Threads threads;
  sae::ScratchPool<float> scratch;
  for (auto _ : state)
    sae::detail::for_each_pre_activation(
        x.data(), small.B, small.D, w.data(), static_cast<const float*>(nullptr), small.F, scratch, threads,
        [](Index, Index, Index, std::span<const float> z) { benchmark::DoNotOptimize(z.data()); });
}

#ifdef SAE_BENCH_WITH_OPENBLAS
void product_openblas(benchmark::State& state) {
  const Matrix<float> x = make_rows(small.B, small.D), w = make_rows(small.F, small.D);
  Matrix<float> z(small.B, small.F);
  openblas_set_num_threads(thread_count());
  for (auto _ : state) {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, static_cast<int>(small.B), static_cast<int>(small.F),
                static_cast<int>(small.D), 1.0F, x.data(), static_cast<int>(small.D), w.data(), static_cast<int>(small.D), 0.0F,
                z.data(), static_cast<int>(small.F));
    benchmark::DoNotOptimize(z.data());
  }
}
#endif

template <class Model, class Terms>
void time_steps(benchmark::State& state, Model model, Terms objective, sae::TrainerConfig config) {
  const Matrix<float> x = make_rows(8 * small.B, small.D);
  sae::Threads threads;
  config.steps = 1'000'000;
  config.batch = small.B;
  sae::Trainer trainer(model, config, objective, threads);
  Index step = 0;
  const auto run = [&] { trainer.train_step(sae::Batch<float>(x.middleRows(step++ % 8 * small.B, small.B)), false); };
  for (int i = 0; i < 8; ++i) run();  // grown scratch, an encoder that has left its start
  for (auto _ : state) run();
  state.counters["tokens/s"] = benchmark::Counter(static_cast<double>(small.B), benchmark::Counter::kIsIterationInvariantRate);
}
template <class Terms>
void time_topk(benchmark::State& state, Terms objective, const sae::TrainerConfig& config) {
  time_steps(state, sae::SparseAutoencoder(small.D, small.F, sae::TopK{.k = small.k}), objective, config);
}
void train_step_topk(benchmark::State& state) { time_topk(state, sae::Objective<>{}, {}); }
void train_step_topk_aux_k(benchmark::State& state) { time_topk(state, sae::Objective{sae::AuxK{}}, {}); }
void train_step_topk_clipped(benchmark::State& state) { time_topk(state, sae::Objective<>{}, {.clip_norm = 1}); }
void train_step_topk_average(benchmark::State& state) { time_topk(state, sae::Objective<>{}, {.ema = 0.999}); }
// Row-local optimizers run in the pass that makes the gradient; Muon and Adafactor need all of it first.
void train_step_optimizer(benchmark::State& state, const sae::Optimizer& optimizer) {
  time_topk(state, sae::Objective<>{}, {.optimizer = optimizer});
}
// An architecture as the recipe `default` trains it, on rows that make every one of them sparse.
void train_step_recipe(benchmark::State& state, const char* activation) {
  sae::RecipeProblem problem{.d_in = small.D, .latents = small.F, .steps = 1'000'000, .batch = small.B};
  problem.activation = activation;
  sae::Recipe recipe = sae::recipe("default", problem);
  recipe.config.sparsity_warmup = 0;
  time_steps(state, sae::make_model(recipe, small.D, small.F), recipe.objective, recipe.config);
}

// The honest baseline: what autograd does with dense tensors, five products and Adam over materialised gradients, on Eigen.
void train_step_dense(benchmark::State& state) {
  constexpr Index B = small.B, D = small.D, F = small.F, k = small.k;
  const Matrix<float> x = make_rows(B, D);
  sae::SparseAutoencoder model(D, F, sae::TopK{.k = k});
  Matrix<float> W_enc = model.W_enc(), W_dec = model.W_dec();
  Matrix<float> z(B, F), f(B, F), residual(B, D), df(B, F), g_enc(F, D), g_dec(F, D);
  Matrix<float> m_enc = Matrix<float>::Zero(F, D), v_enc = m_enc, m_dec = m_enc, v_dec = m_enc;
  sae::Threads threads;
  const auto product = [&](auto& out, const auto& a, const auto& b) {
    threads.for_blocks(out.rows(), 256, [&](Index begin, Index end, Index) {
      out.middleRows(begin, end - begin).noalias() = a.middleRows(begin, end - begin) * b;
    });
  };
  Index t = 0;
  for (auto _ : state) {
    ++t;
    product(z, x, W_enc.transpose());
    threads.for_blocks(B, 32, [&](Index begin, Index end, Index) {
      std::vector<float> values(static_cast<std::size_t>(F));
      for (Index b = begin; b < end; ++b) {
        std::copy_n(z.data() + b * F, F, values.begin());
        std::nth_element(values.begin(), values.begin() + (k - 1), values.end(), std::greater<>());
        const float bound = std::fmax(values[static_cast<std::size_t>(k - 1)], 0.0F);
        for (Index i = 0; i < F; ++i) f(b, i) = z(b, i) >= bound ? z(b, i) : 0.0F;
      }
    });
    product(residual, f, W_dec);
    residual = (residual - x) * (2.0F / static_cast<float>(B));
    product(df, residual, W_dec.transpose());
    df.array() *= (f.array() > 0).cast<float>();
    const auto ft = f.transpose(), dft = df.transpose();
    product(g_dec, ft, residual);
    product(g_enc, dft, x);
    const auto update = sae::Adam{}.update<float>(t, 1e-3);
    const auto adam = [&](Matrix<float>& w, Matrix<float>& g, Matrix<float>& m, Matrix<float>& v) {
      threads.for_blocks(F, 64, [&](Index begin, Index end, Index) {
        const Index at = begin * D;
        update(w.data() + at, g.data() + at, {m.data() + at, v.data() + at}, (end - begin) * D);
      });
    };
    adam(W_enc, g_enc, m_enc, v_enc);
    adam(W_dec, g_dec, m_dec, v_dec);
  }
}

void encode(benchmark::State& state) {
  const Index rows = state.range(0);
  const Matrix<float> x = make_rows(rows, small.D);
  const sae::SparseAutoencoder model(small.D, small.F, sae::TopK{.k = small.k});
  decltype(model)::Workspace<> workspace;
  sae::Threads threads;
  for (auto _ : state) benchmark::DoNotOptimize(model.encode_into(x, workspace, threads).size());
  state.counters["tokens/s"] = benchmark::Counter(static_cast<double>(rows), benchmark::Counter::kIsIterationInvariantRate);
}

void decode(benchmark::State& state) {
  const Index rows = state.range(0);
  const Matrix<float> x = make_rows(rows, small.D);
  const sae::SparseAutoencoder model(small.D, small.F, sae::TopK{.k = small.k});
  const sae::Codes<float> codes = model.encode(x);
  sae::Tensor<float> out;
  sae::ScratchPool<float> scratch;
  sae::Threads threads;
  for (auto _ : state) {
    model.decode_into(codes, out, scratch, threads);
    benchmark::DoNotOptimize(out.data());
  }
  state.counters["tokens/s"] = benchmark::Counter(static_cast<double>(rows), benchmark::Counter::kIsIterationInvariantRate);
}

// Keeps the least time of every benchmark and prints the ratios to one product at the end.
class Ratios : public benchmark::ConsoleReporter {
 public:
  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& run : runs) {
      if (run.run_type != Run::RT_Iteration || run.iterations == 0) continue;
      const double seconds = run.real_accumulated_time / static_cast<double>(run.iterations);
      auto [at, fresh] = least_.try_emplace(run.benchmark_name(), seconds);
      if (!fresh) at->second = std::fmin(at->second, seconds);
    }
    ConsoleReporter::ReportRuns(runs);
  }
  void Finalize() override {
    for (const char* product : {"product_openblas", "product_eigen"}) {
      const auto unit = std::find_if(least_.begin(), least_.end(), [&](const auto& e) { return e.first.starts_with(product); });
      if (unit == least_.end()) continue;
      std::printf("\nLeast times as multiples of %s (B %d, D %d, F %d, k %d; %d threads; %.2f ms)\n", product,
                  static_cast<int>(small.B), static_cast<int>(small.D), static_cast<int>(small.F), static_cast<int>(small.k),
                  thread_count(), unit->second * 1e3);
      for (const auto& [name, seconds] : least_) std::printf("  %-44s %6.2f\n", name.c_str(), seconds / unit->second);
      break;
    }
  }

 private:
  std::map<std::string, double> least_;
};

BENCHMARK(product_own)->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(product_eigen)->Unit(benchmark::kMillisecond)->UseRealTime();
#ifdef SAE_BENCH_WITH_OPENBLAS
BENCHMARK(product_openblas)->Unit(benchmark::kMillisecond)->UseRealTime();
#endif
BENCHMARK(train_step_topk)->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(train_step_topk_aux_k)->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(train_step_topk_clipped)->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(train_step_topk_average)->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK_CAPTURE(train_step_optimizer, adam, sae::Adam{})->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK_CAPTURE(train_step_optimizer, adam_without_first_moment, sae::Adam{.beta1 = 0})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();
BENCHMARK_CAPTURE(train_step_optimizer, adamw, sae::AdamW{})->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK_CAPTURE(train_step_optimizer, sgd, sae::Sgd{})->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK_CAPTURE(train_step_optimizer, sgd_momentum, sae::Sgd{.momentum = 0.9})->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK_CAPTURE(train_step_optimizer, signsgd, sae::SignSgd{})->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK_CAPTURE(train_step_optimizer, signum, sae::SignSgd{.momentum = 0.95})->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK_CAPTURE(train_step_optimizer, schedule_free, sae::ScheduleFree{})->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK_CAPTURE(train_step_optimizer, adafactor, sae::Adafactor{})->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK_CAPTURE(train_step_optimizer, muon, sae::Muon{})->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK_CAPTURE(train_step_recipe, topk, "topk")->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK_CAPTURE(train_step_recipe, batchtopk, "batchtopk")->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK_CAPTURE(train_step_recipe, matryoshka, "matryoshka")->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK_CAPTURE(train_step_recipe, abstopk, "abstopk")->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK_CAPTURE(train_step_recipe, groupmax, "groupmax")->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK_CAPTURE(train_step_recipe, relu, "relu")->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK_CAPTURE(train_step_recipe, jumprelu, "jumprelu")->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK_CAPTURE(train_step_recipe, gated, "gated")->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(train_step_dense)->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(encode)->ArgName("rows")->Arg(1)->Arg(16)->Arg(256)->Arg(4096)->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(decode)->ArgName("rows")->Arg(256)->Arg(4096)->Unit(benchmark::kMillisecond)->UseRealTime();

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  Ratios reporter;
  benchmark::RunSpecifiedBenchmarks(&reporter);
  benchmark::Shutdown();
  return 0;
}
