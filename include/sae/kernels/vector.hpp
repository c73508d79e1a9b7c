#pragma once
#include <sae/core/types.hpp>
#include <sae/kernels/float_kernels.hpp>

#include <algorithm>
#include <cmath>
#include <type_traits>

// Loops over contiguous rows. Each has one order of additions that does not depend on alignment, threads or the width of the
// machine's registers: sums run in a fixed number of lanes. Of float32 they are those of float_kernels.hpp.
namespace sae::inline SAE_ABI::kernels {

/// a . b over n numbers.
template <class Scalar>
Scalar dot(const Scalar* __restrict a, const Scalar* __restrict b, Index n) {
  if constexpr (std::is_same_v<Scalar, float>) {
    return detail::float_kernels().dot(a, b, n);
  } else {
    constexpr Index lanes = 128 / static_cast<Index>(sizeof(Scalar));
    Scalar sum[static_cast<std::size_t>(lanes)] = {};
    Index j = 0;
    for (; j + lanes <= n; j += lanes)
      for (Index l = 0; l < lanes; ++l) sum[l] += a[j + l] * b[j + l];
    for (Index l = 0; j < n; ++j, ++l) sum[l] += a[j] * b[j];
    for (Index width = lanes / 2; width > 0; width /= 2)
      for (Index l = 0; l < width; ++l) sum[l] += sum[l + width];
    return sum[0];
  }
}

/// |a|^2 of n numbers.
template <class Scalar>
Scalar squared_norm(const Scalar* a, Index n) {
  return dot(a, a, n);
}

/// y += c x over n numbers.
template <class Scalar>
void add_scaled(Scalar* __restrict y, Scalar c, const Scalar* __restrict x, Index n) {
  if constexpr (std::is_same_v<Scalar, float>) return detail::float_kernels().add_scaled(y, c, x, n);
  for (Index j = 0; j < n; ++j) y[j] += c * x[j];
}

/// Asks for n numbers that will be read soon. A hint: any address is good.
template <class Scalar>
void prefetch(const Scalar* a, Index n) {
#if defined(__GNUC__) || defined(__clang__)
  constexpr Index line = 64 / static_cast<Index>(sizeof(Scalar));
  for (Index j = 0; j < n; j += line) __builtin_prefetch(a + j);
#endif
}

/// y <- y sigmoid(x) entry by entry over n numbers, sigmoid(x) = 1 / (1 + e^-x), without overflow. Of float32 within 3 units in the last
/// place of sigmoid(x).
template <class Scalar>
void gate(Scalar* __restrict y, const Scalar* __restrict x, Index n) {
  if constexpr (std::is_same_v<Scalar, float>) return detail::float_kernels().gate(y, x, n);
  for (Index j = 0; j < n; ++j) {
    const Scalar e = std::exp(-std::abs(x[j]));
    y[j] *= (x[j] < Scalar(0) ? e : Scalar(1)) / (Scalar(1) + e);
  }
}

template <class Scalar>
void scale(Scalar* y, Scalar c, Index n) {
  if constexpr (std::is_same_v<Scalar, float>) return detail::float_kernels().scale(y, c, n);
  for (Index j = 0; j < n; ++j) y[j] *= c;
}

/// y += sum over t < count of coefficient(t) * row(t), in the order of t; rows have n numbers and do not overlap y.
/// Several rows a pass, so that y is read and written less often; the additions are those of one row at a time.
template <class Scalar, class Coefficient, class Row>
void add_weighted_rows(Scalar* __restrict y, Index n, Index count, const Coefficient& coefficient, const Row& row) {
  if constexpr (std::is_same_v<Scalar, float>) {
    const auto& kernels = detail::float_kernels();
    float c[detail::rows_at_once];
    const float* x[detail::rows_at_once];
    for (Index t = 0; t < count; t += detail::rows_at_once) {
      const Index some = std::min(detail::rows_at_once, count - t);
      for (Index s = 0; s < some; ++s) {
        c[s] = coefficient(t + s);
        x[s] = row(t + s);
      }
      kernels.add_rows(y, c, x, some, n);
    }
    return;
  }
  Index t = 0;
  for (; t + 4 <= count; t += 4) {
    const Scalar c0 = coefficient(t), c1 = coefficient(t + 1), c2 = coefficient(t + 2), c3 = coefficient(t + 3);
    const Scalar* __restrict x0 = row(t), * __restrict x1 = row(t + 1), * __restrict x2 = row(t + 2), * __restrict x3 = row(t + 3);
    for (Index j = 0; j < n; ++j) {
      Scalar s = y[j];
      s += c0 * x0[j];
      s += c1 * x1[j];
      s += c2 * x2[j];
      s += c3 * x3[j];
      y[j] = s;
    }
  }
  for (; t < count; ++t) add_scaled(y, coefficient(t), row(t), n);
}

}  // namespace sae::inline SAE_ABI::kernels
