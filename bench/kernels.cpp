// The inner loops, each against what one core could do at most in the same run, and what a step of TopK is made of. One thread, B 1024,
// D 576, F 4608, k 32; times are of the processor.
#include <sae/activations/topk.hpp>
#include <sae/kernels/largest.hpp>
#include <sae/kernels/product.hpp>
#include <sae/models/screen.hpp>
#include <sae/training/adam.hpp>
#include <sae/training/trainer.hpp>

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "bounds.hpp"

namespace sae_bench {
namespace {

namespace kernels = sae::kernels;
constexpr Index B = standard.B, D = standard.D, F = standard.F, k = standard.k;
constexpr double products = 2.0 * B * D * F;     // operations of the encoder
constexpr double entry_bytes = 4.0 * B * k * D;  // that each pass over the active entries reads

const Matrix<float>& inputs() { return rows(batches * B, D); }

using Model = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::TopK>;
/// TopK after some steps, so that its rows are as different in norm as a training makes them, and the codes of the first batch.
struct Trained {
  Model model{D, F, sae::TopK{.k = k}};
  sae::Trainer<Model, sae::Objective<>> trainer{model, {.steps = 1'000'000, .batch = B}, sae::Objective<>{}, one_thread()};
  Index step = 0;
  void run() { trainer.train_step(sae::Batch<float>(inputs().middleRows(step++ % batches * B, B)), false); }
};
Trained& trained() {
  static const auto one = [] {
    auto made = std::make_unique<Trained>();
    for (int i = 0; i < warmup_steps(); ++i) made->run();
    return made;
  }();
  return *one;
}
const sae::Codes<float>& codes() {
  static const sae::Codes<float> of_batch = trained().model.encode(Matrix<float>(inputs().topRows(B)), one_thread());
  return of_batch;
}

void product_inner(benchmark::State& state) {
  const Index m = state.range(0);
  Matrix<float> z = Matrix<float>::Zero(m, F);
  const sae::Tensor<float> w = weights(F, D);
  const auto work = [&] { kernels::add_product_nt(z.data(), F, inputs().data(), D, w.data(), D, m, F, D); };
  against(state, m == 1 ? read_bound(4 * F * D) : multiply_add_bound(), static_cast<double>(m == 1 ? 4 * F * D : 2 * m * F * D),
          work);
}
void product_packed(benchmark::State& state, bool transposed) {
  const Index m = transposed ? D : 256, n = transposed ? B : F;
  const Matrix<float> a = Matrix<float>::Constant(transposed ? n : m, transposed ? m : n, 0.5F);
  const sae::Tensor<float> w = weights(n, D);
  Matrix<float> y = Matrix<float>::Zero(m, D);
  against(state, multiply_add_bound(), static_cast<double>(2 * m * n * D), [&] {
    if (transposed) return kernels::add_product_tn(y.data(), D, a.data(), m, w.data(), D, m, n, D);
    kernels::add_product_nn(y.data(), D, a.data(), n, w.data(), D, m, n, D);
  });
}

// Decoding: k rows of W_dec for each row of the batch.
void add_rows(benchmark::State& state) {
  Matrix<float> y = Matrix<float>::Zero(B, D);
  const auto& of = codes();
  const sae::Tensor<float>& w = trained().model.parameters().W_dec;
  against(state, read_bound(4 * F * D), entry_bytes, [&] {
    for (Index b = 0; b < B; ++b) {
      const Index first = of.begin(b);
      kernels::add_weighted_rows(
          y.row(b).data(), D, of.end(b) - first, [&](Index t) { return of.value(first + t); },
          [&](Index t) { return w.row(of.latent(first + t)); });
    }
  });
}
// Code gradients: the same rows.
void dot(benchmark::State& state) {
  const auto& of = codes();
  const sae::Tensor<float>& w = trained().model.parameters().W_dec;
  std::vector<float> out(static_cast<std::size_t>(of.size()));
  against(state, read_bound(4 * F * D), entry_bytes, [&] {
    for (Index b = 0; b < B; ++b)
      for (Index e = of.begin(b); e < of.end(b); ++e)
        out[static_cast<std::size_t>(e)] = kernels::dot(inputs().row(b).data(), w.row(of.latent(e)), D);
    benchmark::DoNotOptimize(out.data());
  });
}
// A weight gradient: rows of the batch for each latent, as many as are active.
void add_rows_of_batch(benchmark::State& state) {
  std::vector<float> gradient(static_cast<std::size_t>(D));
  constexpr Index each = B * k / F;
  against(state, read_bound(4 * B * D), 4.0 * each * F * D, [&] {
    for (Index i = 0; i < F; ++i)
      kernels::add_weighted_rows(
          gradient.data(), D, each, [](Index) { return 0.5F; },
          [&](Index t) { return inputs().row((i * 37 + t * 151) % B).data(); });
    benchmark::DoNotOptimize(gradient.data());
  });
}
// The gradient of b_dec: every row of W_enc once.
void add_scaled(benchmark::State& state) {
  std::vector<float> sum(static_cast<std::size_t>(D));
  const sae::Tensor<float>& w = trained().model.parameters().W_enc;
  against(state, read_bound(4 * F * D), 4.0 * F * D, [&] {
    for (Index i = 0; i < F; ++i) kernels::add_scaled(sum.data(), 1e-3F, w.row(i), D);
    benchmark::DoNotOptimize(sum.data());
  });
}
// Weights and two moments of W_enc and W_dec, with a gradient row that stays near.
void adam(benchmark::State& state) {
  constexpr Index n = 2 * F * D;
  std::vector<float> w(static_cast<std::size_t>(n), 1.0F), m(w.size(), 0.0F), v(w.size(), 1.0F),
      g(static_cast<std::size_t>(D), 0.1F);
  const auto update = sae::Adam{}.update<float>(10, 1e-6);
  against(state, update_bound(n), 24.0 * n, [&] {
    for (Index at = 0; at < n; at += D) update(w.data() + at, g.data(), {m.data() + at, v.data() + at}, D);
  });
}
// The same with moments of 16 bits.
void adam_bfloat16(benchmark::State& state) {
  constexpr Index n = 2 * F * D;
  std::vector<float> w(static_cast<std::size_t>(n), 1.0F), g(static_cast<std::size_t>(D), 0.1F);
  std::vector<sae::bfloat16> m(w.size()), v(w.size(), sae::bfloat16(1.0F));
  const auto update = sae::Adam{}.update<float>(10, 1e-6);
  against(state, update_bound(n), 16.0 * n, [&] {
    for (Index at = 0; at < n; at += D)
      update(w.data() + at, g.data(), {m.data() + at, v.data() + at}, D,
             sae::Rounding{.key = 7, .position = static_cast<std::uint32_t>(at)});
  });
}

// As many keys as a screen's row has candidates. Its bound is one pass over them; it makes about 25.
void kth_largest(benchmark::State& state) {
  constexpr Index n = 832;
  std::vector<float> keys(inputs().data(), inputs().data() + n);
  against(state, read_bound(4 * n), 4.0 * n * 4096, [&] {
    for (int i = 0; i < 4096; ++i) benchmark::DoNotOptimize(kernels::kth_largest(keys.data(), n, k));
  });
}
// Selection from tiles of pre-activations, as where nothing is screened.
void selection(benchmark::State& state) {
  constexpr Index m = 64, tile = 384;
  Matrix<float> z = Matrix<float>::Zero(m, F);
  kernels::add_product_nt(z.data(), F, inputs().data(), D, trained().model.parameters().W_enc.data(), D, m, F, D);
  kernels::LargestPerRow<float> largest;
  against(state, read_bound(4 * m * F), 4.0 * m * F, [&] {
    largest.begin(m, k, 0.0F);
    for (Index first = 0; first < F; first += tile)
      for (Index b = 0; b < m; ++b) largest.take(b, first, {z.row(b).data() + first, static_cast<std::size_t>(tile)});
    for (Index b = 0; b < m; ++b) benchmark::DoNotOptimize(largest.finish(b).size());
  });
}

// The screen's parts, on the trained encoder.
struct Screened {
  sae::ScreenRule rule{.k = k};
  sae::detail::ScreenWeights weights;
  sae::detail::Screen screen;
  const sae::Tensor<float>&W = trained().model.parameters().W_enc, &b = trained().model.parameters().b_enc;
  void build() {
    weights.forget();
    weights.see({inputs().data(), static_cast<std::size_t>(64 * D)}, D);
    weights.build(W.data(), b.data(), F, D, rule, one_thread());
  }
  bool find() { return screen.find(weights, inputs().data(), B, rule); }
  void values() {
    screen.for_each_value(inputs().data(), W.data(), b.data(), D, rule,
                          [](Index, auto, std::span<const float> z) { benchmark::DoNotOptimize(z.data()); });
  }
};
bool skip_without_screen(benchmark::State& state) {
  if (kernels::detail::has_fast_screen()) return false;
  state.SkipWithError("no fast products of small integers");
  return true;
}
void screen_quantise(benchmark::State& state) {
  if (skip_without_screen(state)) return;
  Screened one;
  against(state, read_bound(4 * F * D), 4.0 * F * D, [&] { one.build(); });
}
void screen_product(benchmark::State& state) {
  if (skip_without_screen(state)) return;
  Screened one;
  one.build();
  const Index group = one.weights.loops().groups[0], units = one.weights.loops().units(D), groups = B / group;
  const std::vector<std::uint8_t> x(static_cast<std::size_t>(groups * group * 4 * units), 3);
  std::vector<std::int32_t> out(static_cast<std::size_t>(group * kernels::detail::screen_panel));
  const auto product = one.weights.loops().products[0];
  against(state, integer_bound(), 2.0 * static_cast<double>(groups * group) * D * F, [&] {
    const kernels::detail::ScreenProducts begun(one.weights.loops());
    for (Index panel = 0; panel < F / kernels::detail::screen_panel; ++panel)
      for (Index g = 0; g < groups; ++g)
        product(x.data() + g * group * 4 * units, one.weights.panel(panel).codes, units, out.data());
    benchmark::DoNotOptimize(out.data());
  });
}
void screen_find(benchmark::State& state) {
  if (skip_without_screen(state)) return;
  Screened one;
  one.build();
  against(state, integer_bound(), products, [&] { one.find(); });
  Index candidates = 0;
  for (Index row = 0; row < B; ++row) candidates += static_cast<Index>(one.screen.candidates(row).size());
  state.counters["candidates"] = static_cast<double>(candidates) / B;
}
void screen_find_and_compute(benchmark::State& state) {
  if (skip_without_screen(state)) return;
  Screened one;
  one.build();
  against(state, integer_bound(), products, [&] {
    one.find();
    one.values();
  });
  state.counters["computed"] = static_cast<double>(one.screen.computed()) / B;
}

// A step of TopK against the sum of what its parts must cost: operations at the peak, bytes at the speed of what holds them.
void topk_step(benchmark::State& state) {
  const bool screened = kernels::detail::has_fast_screen();
  Index computed = 0;
  if (screened) {
    Screened one;
    one.build();
    one.find();
    one.values();
    computed = one.screen.computed();
  }
  struct Part {
    const char* name;
    Bound bound;
    double amount;
    Times times{};
  };
  std::vector<Part> parts;
  if (screened) {
    parts.push_back({"product_of_integers", integer_bound(), products});
    parts.push_back({"candidates", read_bound(4 * F * D), 4.0 * D * static_cast<double>(computed)});
    parts.push_back({"quantise", read_bound(4 * F * D), 4.0 * F * D});
  } else {
    parts.push_back({"product", multiply_add_bound(), products});
  }
  parts.push_back({"selection", read_bound(4 * 384), 4.0 * B * F});
  parts.push_back({"decode", read_bound(4 * F * D), entry_bytes});
  parts.push_back({"code_gradient", read_bound(4 * F * D), entry_bytes});
  parts.push_back({"weight_gradients", read_bound(4 * B * D), 2 * entry_bytes});
  parts.push_back({"adam", update_bound(2 * F * D), 24.0 * 2 * F * D});
  Times steps, units;
  Unit unit(standard);
  for (auto _ : state) {
    for (Part& part : parts) part.times.add(time_of(part.bound.run));
    units.add(time_of([&] { unit(); }));
    const Seconds seconds = time_of([] { trained().run(); });
    steps.add(seconds);
    state.SetIterationTime(seconds.wall);
  }
  double sum = 0;
  for (const Part& part : parts) {
    const double ms = 1e3 * part.times.median().cpu * part.amount / part.bound.amount;
    state.counters[part.name] = ms;
    sum += ms;
  }
  const double ms = 1e3 * steps.median().cpu;
  state.counters["ms_cpu"] = ms;
  state.counters["bounds"] = sum;
  state.counters["factor"] = ms / sum;
  state.counters["unit"] = 1e3 * units.median().cpu;
}

void often(benchmark::internal::Benchmark* benchmark) { configure(benchmark, 25); }
BENCHMARK(product_inner)->ArgName("rows")->Arg(B)->Arg(1)->Apply(often);
BENCHMARK_CAPTURE(product_packed, nn, false)->Apply(often);
BENCHMARK_CAPTURE(product_packed, tn, true)->Apply(often);
BENCHMARK(add_rows)->Apply(often);
BENCHMARK(dot)->Apply(often);
BENCHMARK(add_rows_of_batch)->Apply(often);
BENCHMARK(add_scaled)->Apply(often);
BENCHMARK(adam)->Apply(often);
BENCHMARK(adam_bfloat16)->Apply(often);
BENCHMARK(kth_largest)->Apply(often);
BENCHMARK(selection)->Apply(often);
BENCHMARK(screen_quantise)->Apply(often);
BENCHMARK(screen_product)->Apply(often);
BENCHMARK(screen_find)->Apply(often);
BENCHMARK(screen_find_and_compute)->Apply(often);
BENCHMARK(topk_step)->Apply(often);

}  // namespace
}  // namespace sae_bench
