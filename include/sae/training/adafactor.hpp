#pragma once
#include <sae/core/threads.hpp>
#include <sae/core/types.hpp>
#include <sae/kernels/vector.hpp>
#include <sae/training/optimizer_slots.hpp>

#include <algorithm>
#include <cmath>
#include <span>
#include <string_view>
#include <vector>

namespace sae::inline SAE_ABI {

/// Adafactor without a first moment: Adam's second moment of a matrix [rows x cols] is kept as row and column sums.
///
///   beta = 1 - t^-decay        G = g^2 + epsilon
///   r_i <- beta r_i + (1 - beta) sum_j G_ij      c_j <- beta c_j + (1 - beta) sum_i G_ij      v_ij = r_i c_j / sum_i r_i
///   u = g / sqrt(v)        w <- w - lr u / max(1, rms(u) / clip)        rms(u) = sqrt(mean u^2), over the tensor
///
/// Tensors of one row (biases, thresholds) keep v whole, v <- beta v + (1 - beta) G. beta is 0 at the first step, so nothing is to
/// be corrected. State: rows + cols numbers a matrix. With `relative` the learning rate is multiplied by
/// max(least_scale, rms(w)), w before the step.
/// Not row-local: the sums and rms(u) need all gradients. Cost: three passes over g.
/// Source: Shazeer and Stern 2018, arXiv:1804.04235, algorithms 4 to 6 with beta1 = 0; torch.optim.Adafactor is `relative`.
struct Adafactor {
  double decay = 0.8;      ///< in (0, 1]
  double epsilon = 1e-30;  ///< > 0
  double clip = 1;         ///< d, > 0
  bool relative = false;
  double least_scale = 1e-3;  ///< > 0

  static constexpr std::string_view name = "adafactor";
  static constexpr bool row_local = false;
  static bool is_matrix(Index rows, Index cols) { return rows > 1 && cols > 1; }
  SlotShapes slot_shapes(Index rows, Index cols) const {
    return is_matrix(rows, cols) ? SlotShapes{{1, rows}, {1, cols}} : SlotShapes{{rows, cols}};
  }

  template <class Visitor>
  void visit_settings(Visitor&& visitor) const {
    visitor("decay", decay);
    visitor("epsilon", epsilon);
    visitor("clip", clip);
    visitor("relative", relative);
    visitor("least_scale", least_scale);
  }
  void check() const {
    if (!(decay > 0 && decay <= 1)) throw_value("Adafactor: decay = ", decay, " is not in (0, 1]");
    require_positive("Adafactor: epsilon", epsilon);
    require_positive("Adafactor: clip", clip);
    require_positive("Adafactor: least_scale", least_scale);
  }

  /// One step of one tensor; g is overwritten. Sums run in float64 and in a fixed order.
  template <class Scalar>
  void step(Index t, double learning_rate, Tensor<Scalar>& w, Tensor<Scalar>& g, std::span<Tensor<Scalar>> slots,
            Threads& threads) const {
    constexpr Index block = 64;
    const Index rows = w.rows(), cols = w.cols();
    const double beta = 1 - std::pow(static_cast<double>(t), -decay);
    std::vector<double> row_sums(static_cast<std::size_t>(rows));
    const auto sum_rows = [&](const Tensor<Scalar>& x, double add) {
      threads.for_blocks(rows, block, [&](Index begin, Index end, Index) {
        for (Index i = begin; i < end; ++i) {
          double sum = 0;
          for (Index j = 0; j < cols; ++j) {
            const auto value = static_cast<double>(x.row(i)[j]);
            sum += value * value + add;
          }
          row_sums[static_cast<std::size_t>(i)] = sum;
        }
      });
    };
    const auto rms = [&](const Tensor<Scalar>& x) {
      sum_rows(x, 0.0);
      double sum = 0;
      for (const double s : row_sums) sum += s;
      return std::sqrt(sum / static_cast<double>(x.size()));
    };
    const auto follow = [&](Scalar& state, double sum) {
      state = static_cast<Scalar>(beta * static_cast<double>(state) + (1 - beta) * sum);
    };

    double rate = learning_rate;
    if (relative) rate *= std::fmax(least_scale, rms(w));
    if (is_matrix(rows, cols)) {
      sum_rows(g, epsilon);
      double total = 0;
      for (Index i = 0; i < rows; ++i) {
        follow(slots[0][i], row_sums[static_cast<std::size_t>(i)]);
        total += static_cast<double>(slots[0][i]);
      }
      std::vector<double> roots(static_cast<std::size_t>(cols));  // 1 / sqrt(c_j)
      threads.for_blocks(cols, block, [&](Index begin, Index end, Index) {
        std::vector<double> sums(static_cast<std::size_t>(end - begin));
        for (Index i = 0; i < rows; ++i)
          for (Index j = begin; j < end; ++j) {
            const auto value = static_cast<double>(g.row(i)[j]);
            sums[static_cast<std::size_t>(j - begin)] += value * value + epsilon;
          }
        for (Index j = begin; j < end; ++j) {
          follow(slots[1][j], sums[static_cast<std::size_t>(j - begin)]);
          roots[static_cast<std::size_t>(j)] = 1 / std::sqrt(static_cast<double>(slots[1][j]));
        }
      });
      threads.for_blocks(rows, block, [&](Index begin, Index end, Index) {
        for (Index i = begin; i < end; ++i) {
          const double root = std::sqrt(total / static_cast<double>(slots[0][i]));
          for (Index j = 0; j < cols; ++j)
            g.row(i)[j] = static_cast<Scalar>(static_cast<double>(g.row(i)[j]) * root * roots[static_cast<std::size_t>(j)]);
        }
      });
    } else {
      for (Index i = 0; i < g.size(); ++i) {
        const auto value = static_cast<double>(g[i]);
        follow(slots[0][i], value * value + epsilon);
        g[i] = static_cast<Scalar>(value / std::sqrt(static_cast<double>(slots[0][i])));
      }
    }
    const auto factor = static_cast<Scalar>(rate / std::fmax(1.0, rms(g) / clip));
    threads.for_blocks(rows, block, [&](Index begin, Index end, Index) {
      kernels::add_scaled(w.row(begin), -factor, g.row(begin), (end - begin) * cols);
    });
  }
};

}  // namespace sae::inline SAE_ABI
