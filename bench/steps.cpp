// Training steps of every architecture, recipe and optimizer, and the dense step that autograd would do.
#include <sae/core/threads.hpp>
#include <sae/training/adam.hpp>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "trainings.hpp"

namespace sae_bench {
namespace {

void step(benchmark::State& state, const std::string& name) {
  const auto training = make_training(name, standard, threads());
  for (int i = 0; i < warmup_steps(); ++i) training->step(false);
  in_units(state, Unit(standard), [&] { training->step(false); });
  state.counters["l0"] = training->step(true);
}

// The honest baseline: what autograd does with dense tensors, five products and Adam over materialised gradients, on Eigen.
void step_dense(benchmark::State& state) {
  const auto [B, D, F, k] = standard;
  const Matrix<float>& x = rows(B, D);
  Matrix<float> W_enc(F, D), W_dec(F, D);
  W_enc.setRandom();
  W_dec = W_enc.rowwise().normalized();
  Matrix<float> z(B, F), f(B, F), residual(B, D), df(B, F), g_enc(F, D), g_dec(F, D);
  Matrix<float> m_enc = Matrix<float>::Zero(F, D), v_enc = m_enc, m_dec = m_enc, v_dec = m_enc;
  const auto product = [&](auto& out, const auto& a, const auto& b) {
    threads().for_blocks(out.rows(), 256, [&](Index begin, Index end, Index) {
      out.middleRows(begin, end - begin).noalias() = a.middleRows(begin, end - begin) * b;
    });
  };
  Index t = 0;
  in_units(state, Unit(standard), [&, rows_of_batch = B, latents = F, kept = k, width = D] {
    ++t;
    product(z, x, W_enc.transpose());
    threads().for_blocks(rows_of_batch, 32, [&](Index begin, Index end, Index) {
      std::vector<float> values(static_cast<std::size_t>(latents));
      for (Index b = begin; b < end; ++b) {
        std::copy_n(z.data() + b * latents, latents, values.begin());
        std::nth_element(values.begin(), values.begin() + (kept - 1), values.end(), std::greater<>());
        const float bound = std::fmax(values[static_cast<std::size_t>(kept - 1)], 0.0F);
        for (Index i = 0; i < latents; ++i) f(b, i) = z(b, i) >= bound ? z(b, i) : 0.0F;
      }
    });
    product(residual, f, W_dec);
    residual = (residual - x) * (2.0F / static_cast<float>(rows_of_batch));
    product(df, residual, W_dec.transpose());
    df.array() *= (f.array() > 0).cast<float>();
    const auto ft = f.transpose(), dft = df.transpose();
    product(g_dec, ft, residual);
    product(g_enc, dft, x);
    const auto update = sae::Adam{}.update<float>(t, 1e-3);
    const auto adam = [&](Matrix<float>& w, Matrix<float>& g, Matrix<float>& m, Matrix<float>& v) {
      threads().for_blocks(latents, 64, [&](Index begin, Index end, Index) {
        const Index at = begin * width;
        update(w.data() + at, g.data() + at, {m.data() + at, v.data() + at}, (end - begin) * width);
      });
    };
    adam(W_enc, g_enc, m_enc, v_enc);
    adam(W_dec, g_dec, m_dec, v_dec);
  });
}

const bool registered = [] {
  for (const NamedTraining& one : trainings()) {
    const std::string& name = one.name;
    if (name.starts_with("saelens/") || name.starts_with("dictionary_learning/")) continue;  // compare.sh has them
    const bool slow = name.find("pursuit") != std::string::npos || name.find("muon") != std::string::npos;
    configure(benchmark::RegisterBenchmark(("step/" + name).c_str(), step, name), slow ? 3 : 15);
  }
  configure(benchmark::RegisterBenchmark("step/dense_eigen", step_dense), 3);
  return true;
}();

}  // namespace
}  // namespace sae_bench
