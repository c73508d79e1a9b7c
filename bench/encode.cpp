// Encoding and decoding, from the one row of a model that runs to a whole batch; the product alone.
#include <sae/activations/topk.hpp>
#include <sae/models/sparse_autoencoder.hpp>

#include <limits>
#include <span>

#include "bench.hpp"

namespace sae_bench {
namespace {

using Model = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::TopK>;

/// \param keeps  with weights that stay, as those of a trained model do
void encode(benchmark::State& state, bool keeps) {
  const Index n = state.range(0);
  const Matrix<float> x = rows(4096, standard.D).topRows(n);
  const Model model(standard.D, standard.F, sae::TopK{.k = standard.k});
  Model::Workspace<> workspace;
  if (keeps) workspace.keep_weights();
  const auto work = [&] { benchmark::DoNotOptimize(model.encode_into(x, workspace, threads()).size()); };
  work();
  in_units(state, Unit(n, standard.D, standard.F), work);
}
BENCHMARK_CAPTURE(encode, trained, true)->ArgName("rows")->Arg(1)->Arg(16)->Apply([](auto* b) { configure(b, 301); });
BENCHMARK_CAPTURE(encode, trained, true)->ArgName("rows")->Arg(256)->Apply([](auto* b) { configure(b, 51); });
BENCHMARK_CAPTURE(encode, trained, true)->ArgName("rows")->Arg(4096)->Apply([](auto* b) { configure(b, 11); });
BENCHMARK_CAPTURE(encode, training, false)->ArgName("rows")->Arg(4096)->Apply([](auto* b) { configure(b, 11); });

void decode(benchmark::State& state) {
  const Index n = state.range(0);
  const Model model(standard.D, standard.F, sae::TopK{.k = standard.k});
  const sae::Codes<float> codes = model.encode(Matrix<float>(rows(4096, standard.D).topRows(n)));
  sae::Tensor<float> out;
  sae::ScratchPool<float> scratch;
  const auto work = [&] {
    model.decode_into(codes, out, scratch, threads());
    benchmark::DoNotOptimize(out.data());
  };
  work();
  in_units(state, Unit(n, standard.D, standard.F), work);
}
BENCHMARK(decode)->ArgName("rows")->Arg(256)->Apply([](auto* b) { configure(b, 51); });
BENCHMARK(decode)->ArgName("rows")->Arg(4096)->Apply([](auto* b) { configure(b, 11); });

// The encoder's product as it is where nothing is screened: tiles that are used at once.
void product_own(benchmark::State& state) {
  const Matrix<float>& x = rows(standard.B, standard.D);
  const sae::Tensor<float> w = weights(standard.F, standard.D);
  sae::ScratchPool<float> scratch;
  in_units(state, Unit(standard), [&] {
    sae::detail::for_each_pre_activation(
        x.data(), standard.B, standard.D, w.data(), static_cast<const float*>(nullptr), standard.F, scratch, threads(),
        [](Index, Index, Index, std::span<const float> z) { benchmark::DoNotOptimize(z.data()); });
  });
}
BENCHMARK(product_own)->Apply([](auto* b) { configure(b, 25); });

void product_eigen(benchmark::State& state) {
  const Matrix<float>& x = rows(standard.B, standard.D);
  const Matrix<float> w = rows(standard.F, standard.D);
  Matrix<float> z(standard.B, standard.F);
  in_units(state, Unit(standard), [&] {
    threads().for_blocks(standard.B, 256, [&](Index begin, Index end, Index) {
      z.middleRows(begin, end - begin).noalias() = x.middleRows(begin, end - begin) * w.transpose();
    });
    benchmark::DoNotOptimize(z.data());
  });
}
BENCHMARK(product_eigen)->Apply([](auto* b) { configure(b, 11); });

}  // namespace
}  // namespace sae_bench
