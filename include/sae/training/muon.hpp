#pragma once
#include <sae/core/threads.hpp>
#include <sae/kernels/product.hpp>
#include <sae/kernels/vector.hpp>
#include <sae/training/adam.hpp>

#include <algorithm>
#include <cmath>
#include <span>
#include <string_view>
#include <vector>

namespace sae::inline SAE_ABI {

/// x [rows x cols] <- about U V^T, where x = U S V^T: the singular vectors stay, the singular values are brought near 1.
///
///   x <- x / (|x|_F + 1e-7)        then `iterations` times   x <- a x + b (x x^T) x + c (x x^T)^2 x
///   a = 3.4445, b = -4.7750, c = 2.0315
///
/// Each singular value s goes through a s + b s^3 + c s^5, whose slope at 0 is as steep as it can be: after 5 iterations everything
/// from 0.002 to 1 lies in [0.68, 1.21], it does not converge to 1. 0 stays 0. A NaN or infinity makes everything NaN.
/// Cost: `iterations` (2 N n + n^2) n multiplications and additions, n = min(rows, cols), N = max; 2 n^2 numbers of scratch
/// and 64 n a thread. The same bytes for any number of threads.
/// Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; KellerJordan/Muon muon.py and sparsify
/// muon.py, which round to bfloat16 where this is in Scalar.
template <class Scalar>
void orthogonalise(Tensor<Scalar>& x, int iterations, Threads& threads) {
  constexpr Scalar a = Scalar(3.4445), b = Scalar(-4.7750), c = Scalar(2.0315);
  constexpr Index block = 64;
  const Index rows = x.rows(), cols = x.cols(), small = (std::min)(rows, cols);
  const bool tall = rows >= cols;
  std::vector<double> squares(static_cast<std::size_t>(rows));
  threads.for_blocks(rows, block, [&](Index begin, Index end, Index) {
    for (Index i = begin; i < end; ++i)
      squares[static_cast<std::size_t>(i)] = static_cast<double>(kernels::squared_norm(x.row(i), cols));
  });
  double norm = 0;
  for (const double s : squares) norm += s;
  kernels::scale(x.data(), static_cast<Scalar>(1 / (std::sqrt(norm) + 1e-7)), x.size());

  // Gram matrix A of the short side and the polynomial b A + c A^2; both are symmetric and commute with each other.
  Tensor<Scalar> gram(small, small), polynomial(small, small);
  for (int k = 0; k < iterations; ++k) {
    gram.set_zero();
    threads.for_blocks(small, block, [&](Index begin, Index end, Index) {
      if (tall) {
        kernels::add_product_tn(gram.row(begin), small, x.data() + begin, cols, x.data(), cols, end - begin, rows, cols);
      } else {
        kernels::add_product_nt(gram.row(begin), small, x.row(begin), cols, x.data(), cols, end - begin, rows, cols);
      }
    });
    polynomial.set_zero();
    threads.for_blocks(small, block, [&](Index begin, Index end, Index) {
      const Index n = (end - begin) * small;
      kernels::add_product_nn(polynomial.row(begin), small, gram.row(begin), small, gram.data(), small, end - begin, small,
                              small);
      kernels::scale(polynomial.row(begin), c, n);
      kernels::add_scaled(polynomial.row(begin), b, gram.row(begin), n);
    });
    // Blocks of the long side are independent of each other; each reads a copy of itself.
    threads.for_blocks(tall ? rows : cols, block, [&](Index begin, Index end, Index) {
      const Index count = end - begin;
      Tensor<Scalar> copy(tall ? count : rows, tall ? cols : count);
      if (tall) {
        std::copy_n(x.row(begin), count * cols, copy.data());
        kernels::scale(x.row(begin), a, count * cols);
        kernels::add_product_nn(x.row(begin), cols, copy.data(), cols, polynomial.data(), small, count, small, small);
      } else {
        for (Index i = 0; i < rows; ++i) {
          std::copy_n(x.row(i) + begin, count, copy.row(i));
          kernels::scale(x.row(i) + begin, a, count);
        }
        kernels::add_product_nn(x.data() + begin, cols, polynomial.data(), small, copy.data(), count, rows, rows, count);
      }
    });
  }
}

/// Length of Muon's step on a matrix [rows x cols], rows the latents and cols the width, as a factor of the learning rate.
enum class MuonScale {
  aspect,  ///< sqrt(max(1, rows / cols)) (Jordan et al. 2024, whose rates are near 0.02)
  rms,     ///< 0.2 sqrt(max(rows, cols)): numbers move about as far as Adam's (Liu et al. 2025, arXiv:2502.16982; sparsify)
};

/// Muon: matrices step along their momentum with all singular values brought near 1 (`orthogonalise`), vectors by Adam.
///
///   m <- momentum m + (1 - momentum) g        u = m,  or with `nesterov`   u = (1 - momentum) g + momentum m
///   w <- (1 - lr weight_decay) w - lr scale orthogonalise(u)
///
/// Matrices are W_enc and W_dec [F x D] (any tensor of two or more rows and columns): one slot. Tensors of one row (biases,
/// thresholds) take Adam with `vector_rate` times the learning rate: Adam's slots. The learning rate does not depend on the number
/// of latents: sparsify takes 2e-3 with scale rms and weight_decay 0.1. Large batches only: small singular values of a noisy
/// gradient are noise, and they are made as large as the others.
/// Not row-local: all gradients are needed first. Cost: 2 `orthogonalise` a step, with the 5 iterations 20 F D^2 multiplications and
/// additions and more, against B F D of the encoder. Source: Jordan et al. 2024; KellerJordan/Muon muon.py.
struct Muon {
  double momentum = 0.95;  ///< in [0, 1)
  bool nesterov = true;
  int iterations = 5;  ///< of Newton-Schulz, >= 1
  MuonScale scale = MuonScale::aspect;
  double weight_decay = 0;  ///< >= 0; of matrices alone
  double vector_rate = 1;   ///< > 0
  Adam vectors{};

  static constexpr std::string_view name = "muon";
  static constexpr bool row_local = false;
  static bool is_matrix(Index rows, Index cols) { return rows > 1 && cols > 1; }
  SlotShapes slot_shapes(Index rows, Index cols) const {
    return is_matrix(rows, cols) ? SlotShapes{{rows, cols}} : vectors.slot_shapes(rows, cols);
  }

  template <class Visitor>
  void visit_settings(Visitor&& visitor) const {
    visitor("momentum", momentum);
    visitor("nesterov", nesterov);
    visitor("iterations", iterations);
    visitor("scale", std::string_view(scale == MuonScale::rms ? "rms" : "aspect"));
    visitor("weight_decay", weight_decay);
    visitor("vector_rate", vector_rate);
    visitor("vectors", vectors);
  }
  void check() const {
    if (!(momentum >= 0 && momentum < 1)) throw_value("Muon: momentum = ", momentum, " is not in [0, 1)");
    if (iterations < 1) throw_value("Muon: iterations = ", iterations, " is below 1");
    require_non_negative("Muon: weight_decay", weight_decay);
    require_positive("Muon: vector_rate", vector_rate);
    vectors.check("Muon: vectors");
  }

  double factor(Index rows, Index cols) const {
    const auto height = static_cast<double>(rows), width = static_cast<double>(cols);
    return scale == MuonScale::rms ? 0.2 * std::sqrt(std::fmax(height, width)) : std::sqrt(std::fmax(1.0, height / width));
  }
  /// One step of one tensor; g is overwritten.
  template <class Scalar>
  void step(Index t, double learning_rate, Tensor<Scalar>& w, Tensor<Scalar>& g, std::span<Tensor<Scalar>> slots,
            Threads& threads) const {
    if (!is_matrix(w.rows(), w.cols())) {
      SlotRows<Scalar> at{};
      for (std::size_t s = 0; s < slots.size(); ++s) at[s] = slots[s].data();
      vectors.update<Scalar>(t, learning_rate * vector_rate)(w.data(), g.data(), at, w.size());
      return;
    }
    constexpr Index block = 64;
    const auto keep = static_cast<Scalar>(momentum), rest = static_cast<Scalar>(1 - momentum);
    Tensor<Scalar>& m = slots[0];
    threads.for_blocks(w.rows(), block, [&](Index begin, Index end, Index) {
      for (Index i = begin * w.cols(); i < end * w.cols(); ++i) {
        m[i] = keep * m[i] + rest * g[i];
        g[i] = nesterov ? rest * g[i] + keep * m[i] : m[i];
      }
    });
    orthogonalise(g, iterations, threads);
    const auto shrink = static_cast<Scalar>(1 - learning_rate * weight_decay);
    const auto rate = static_cast<Scalar>(learning_rate * factor(w.rows(), w.cols()));
    threads.for_blocks(w.rows(), block, [&](Index begin, Index end, Index) {
      for (Index i = begin * w.cols(); i < end * w.cols(); ++i) w[i] = shrink * w[i] - rate * g[i];
    });
  }
};

}  // namespace sae::inline SAE_ABI
