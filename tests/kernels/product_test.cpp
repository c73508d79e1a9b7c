#include <sae/core/random.hpp>
#include <sae/kernels/product.hpp>

#include <cmath>
#include <limits>
#include <vector>

#include "catch_compat.hpp"

namespace {

using sae::Index;

// A matrix [rows x cols] inside wider memory; what lies between the rows is NaN and must never be touched.
template <class Scalar>
struct Padded {
  Index rows, cols, ld;
  std::vector<Scalar> memory;
  Padded(Index r, Index c, Index pad, std::uint64_t seed)
      : rows(r),
        cols(c),
        ld(c + pad),
        memory(static_cast<std::size_t>(r * (c + pad)), std::numeric_limits<Scalar>::quiet_NaN()) {
    sae::Random random(seed);
    for (Index i = 0; i < r; ++i)
      for (Index j = 0; j < c; ++j) at(i, j) = static_cast<Scalar>(random.normal());
  }
  Scalar& at(Index i, Index j) { return memory[static_cast<std::size_t>(i * ld + j)]; }
  double operator()(Index i, Index j) const { return static_cast<double>(memory[static_cast<std::size_t>(i * ld + j)]); }
  bool padding_is_untouched() const {
    for (Index i = 0; i < rows; ++i)
      for (Index j = cols; j < ld; ++j)
        if (!std::isnan((*this)(i, j))) return false;
    return true;
  }
};

template <class Scalar, class Sum>
void require_sum(const Padded<Scalar>& got, const Padded<Scalar>& before, Index terms, const Sum& term) {
  const double epsilon = std::numeric_limits<Scalar>::epsilon();
  REQUIRE(got.padding_is_untouched());
  for (Index i = 0; i < got.rows; ++i)
    for (Index j = 0; j < got.cols; ++j) {
      double sum = before(i, j), magnitude = std::abs(before(i, j));
      for (Index t = 0; t < terms; ++t) {
        sum += term(i, t, j);
        magnitude += std::abs(term(i, t, j));
      }
      REQUIRE(std::abs(got(i, j) - sum) <= static_cast<double>(terms + 4) * epsilon * magnitude);
    }
}

const std::vector<Index> sizes{0, 1, 2, 3, 7, 16, 33, 65};

}  // namespace

TEMPLATE_TEST_CASE("add_product_nt: z += x w^T with any strides", "[kernels][product]", float, double) {
  for (const Index m : sizes)
    for (const Index n : sizes)
      for (const Index d : sizes) {
        const Index pad = (m + n + d) % 4;
        Padded<TestType> z(m, n, pad, 1), x(m, d, (pad + 1) % 4, 2), w(n, d, (pad + 2) % 4, 3);
        const auto before = z;
        sae::kernels::add_product_nt(z.memory.data(), z.ld, x.memory.data(), x.ld, w.memory.data(), w.ld, m, n, d);
        CAPTURE(m, n, d);
        require_sum(z, before, d, [&](Index i, Index t, Index j) { return x(i, t) * w(j, t); });
      }
}

TEMPLATE_TEST_CASE("add_product_nn: y += a w with any strides", "[kernels][product]", float, double) {
  for (const Index m : sizes)
    for (const Index n : sizes)
      for (const Index d : sizes) {
        const Index pad = (m + 2 * n + d) % 4;
        Padded<TestType> y(m, d, pad, 1), a(m, n, (pad + 1) % 4, 2), w(n, d, (pad + 2) % 4, 3);
        const auto before = y;
        sae::kernels::add_product_nn(y.memory.data(), y.ld, a.memory.data(), a.ld, w.memory.data(), w.ld, m, n, d);
        CAPTURE(m, n, d);
        require_sum(y, before, n, [&](Index i, Index t, Index j) { return a(i, t) * w(t, j); });
      }
}

TEMPLATE_TEST_CASE("add_product_tn: y += a^T w with any strides", "[kernels][product]", float, double) {
  for (const Index m : sizes)
    for (const Index n : sizes)
      for (const Index d : sizes) {
        const Index pad = (2 * m + n + d) % 4;
        Padded<TestType> y(m, d, pad, 1), a(n, m, (pad + 1) % 4, 2), w(n, d, (pad + 2) % 4, 3);
        const auto before = y;
        sae::kernels::add_product_tn(y.memory.data(), y.ld, a.memory.data(), a.ld, w.memory.data(), w.ld, m, n, d);
        CAPTURE(m, n, d);
        require_sum(y, before, n, [&](Index i, Index t, Index j) { return a(t, i) * w(t, j); });
      }
}

TEST_CASE("a NaN in one row of x stays in its row of z", "[kernels][product]") {
  Padded<float> z(40, 50, 1, 1), x(40, 60, 0, 2), w(50, 60, 3, 3);
  x.at(17, 5) = std::numeric_limits<float>::quiet_NaN();
  sae::kernels::add_product_nt(z.memory.data(), z.ld, x.memory.data(), x.ld, w.memory.data(), w.ld, 40, 50, 60);
  for (Index i = 0; i < 40; ++i)
    for (Index j = 0; j < 50; ++j) REQUIRE(std::isnan(z(i, j)) == (i == 17));
}
