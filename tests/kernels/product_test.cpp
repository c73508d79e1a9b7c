#include <sae/core/random.hpp>
#include <sae/kernels/product.hpp>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "catch_compat.hpp"
#include "routes.hpp"

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

namespace {

// x . w in eight lanes, both continued by 0 to a multiple of eight; then lanes 4, 2 and 1 apart are added.
float inner(Padded<float>& x, Index i, Padded<float>& w, Index j) {
  float lane[8] = {};
  for (Index p = 0; p < (x.cols + 7) / 8 * 8; ++p) {
    const bool inside = p < x.cols;
    lane[p % 8] = std::fma(inside ? x.at(i, p) : 0.0F, inside ? w.at(j, p) : 0.0F, lane[p % 8]);
  }
  for (const int width : {4, 2, 1})
    for (int l = 0; l < width; ++l) lane[l] += lane[l + width];
  return lane[0];
}

}  // namespace

TEST_CASE("products of float32 have one order of additions, on every route", "[kernels][product]") {
  struct Shape {
    Index m, n, k;
  };
  // Groups, panels and stretches cut everywhere; more than 256 rows, more than 4096 terms.
  for (const Shape& shape : {Shape{1, 1, 1}, Shape{13, 33, 257}, Shape{29, 70, 600}, Shape{259, 5, 3}, Shape{2, 40, 4100}}) {
    const Index m = shape.m, n = shape.n, k = shape.k;
    Padded<float> start(m, n, 1, 1), x(m, k, 2, 2), w(n, k, 0, 3), across(k, n, 3, 4), down(k, m, 1, 5);
    x.at(0, 0) = 1e-42F;  // not normal
    Padded<float> nt = start, nn = start, tn = start;
    for (Index i = 0; i < m; ++i)
      for (Index j = 0; j < n; ++j) {
        nt.at(i, j) += inner(x, i, w, j);
        for (Index p = 0; p < k; ++p) {
          nn.at(i, j) = std::fma(x.at(i, p), across.at(p, j), nn.at(i, j));
          tn.at(i, j) = std::fma(down.at(p, i), across.at(p, j), tn.at(i, j));
        }
      }
    const auto require_same = [&](Padded<float>& got, Padded<float>& want) {
      REQUIRE(got.padding_is_untouched());
      for (Index i = 0; i < m; ++i)
        for (Index j = 0; j < n; ++j) REQUIRE(sae_test::bits(got.at(i, j)) == sae_test::bits(want.at(i, j)));
    };
    sae_test::on_every_route([&] {
      CAPTURE(m, n, k);
      Padded<float> z = start;
      sae::kernels::add_product_nt(z.memory.data(), z.ld, x.memory.data(), x.ld, w.memory.data(), w.ld, m, n, k);
      require_same(z, nt);
      z = start;
      sae::kernels::add_product_nn(z.memory.data(), z.ld, x.memory.data(), x.ld, across.memory.data(), across.ld, m, k, n);
      require_same(z, nn);
      z = start;
      sae::kernels::add_product_tn(z.memory.data(), z.ld, down.memory.data(), down.ld, across.memory.data(), across.ld, m, k,
                                   n);
      require_same(z, tn);
    });
  }
}

TEST_CASE("fused is fma, rounded once", "[kernels][product]") {
  const float huge = std::numeric_limits<float>::max(), least = std::numeric_limits<float>::denorm_min(),
              infinity = std::numeric_limits<float>::infinity();
  std::vector<float> values{0,    -0.0F, 1,     -1,     1 + 0x1p-23F, 1 - 0x1p-24F, 0x1p-12F, 0x1p12F + 1,
                            huge, -huge, least, -least, 0x1p-126F,    infinity,     1e-30F,   3e30F};
  sae::Random random(1);
  for (int i = 0; i < 60; ++i)
    values.push_back(std::ldexp(static_cast<float>(random.normal()), static_cast<int>(random.below(60)) - 30));
  for (const float a : values)
    for (const float b : values)
      for (const float c : values) {
        const float want = std::fma(a, b, c), got = sae::kernels::detail::fused(a, b, c);
        if (std::isnan(want)) {
          REQUIRE(std::isnan(got));
        } else {
          REQUIRE(sae_test::bits(got) == sae_test::bits(want));
        }
      }
  // Halfway in float once the last bits are lost in double: where a second rounding goes wrong.
  for (int i = 0; i < 200000; ++i) {
    const auto a = static_cast<float>(random.normal());
    const float b = 1 + 0x1p-23F * static_cast<float>(random.below(8)),
                c = std::ldexp(a, 24 + static_cast<int>(random.below(8)));
    REQUIRE(sae_test::bits(sae::kernels::detail::fused(a, b, c)) == sae_test::bits(std::fma(a, b, c)));
  }
}

TEST_CASE("a route that the machine lacks is refused", "[kernels][product]") {
  using sae::kernels::Route;
  CHECK(sae::kernels::has(Route::portable));
  CHECK(sae::kernels::has(sae::kernels::route()));
  CHECK(sae::kernels::to_string(Route::amx) == "amx");
  CHECK(sae::kernels::to_string(Route::neon_dot) == "neon_dot");
  for (const Route route : sae::kernels::all_routes)
    if (!sae::kernels::has(route))
      CHECK_THROWS_WITH(sae::kernels::set_route(route),
                        "set_route: this machine has no " + std::string(sae::kernels::to_string(route)));
}

TEST_CASE("a route without its products of small integers is one of plain loops", "[kernels][product]") {
  using sae::kernels::base_of, sae::kernels::Route;
  for (const Route route : {Route::portable, Route::avx2, Route::avx512, Route::neon}) CHECK(base_of(route) == route);
  CHECK(base_of(Route::avx_vnni) == Route::avx2);
  CHECK(base_of(Route::avx512_vnni) == Route::avx512);
  CHECK(base_of(Route::amx) == Route::avx512);
  CHECK(base_of(Route::neon_dot) == Route::neon);
}
