#pragma once
// Pre-activations shown to an activation's selectors as a model shows them: rows in blocks, tile by tile. Which block goes on next
// is drawn, as threads would have it.
#include <sae/activations/selection.hpp>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "catch_compat.hpp"
#include "reference.hpp"

namespace sae_test {

struct Cut {
  Index block_rows = 1 << 20, tile = 1 << 20;
  std::uint64_t seed = 1;
  bool link = true;
};

/// The entries, blocks one behind the other. `selectors` is left as a batch leaves it; what it held before must not matter.
template <class Activation>
sae::Entries<double> select_blocks(const Activation& activation, const Dense& z, const Cut& cut,
                                   const std::vector<double>& norms,
                                   std::vector<typename Activation::template Selector<double>>& selectors) {
  using Selector = typename Activation::template Selector<double>;
  typename Activation::template Parameters<double> parameters;
  parameters.resize(z.cols());
  const Index block_rows = std::min(cut.block_rows, std::max<Index>(z.rows(), 1));
  const Index blocks = (z.rows() + block_rows - 1) / block_rows;
  if (static_cast<Index>(selectors.size()) < blocks) selectors.resize(static_cast<std::size_t>(blocks));
  const std::span<Selector> all(selectors.data(), static_cast<std::size_t>(blocks));
  const auto rows_of = [&](std::size_t block) {
    return std::min(block_rows, z.rows() - static_cast<Index>(block) * block_rows);
  };
  for (std::size_t block = 0; block < all.size(); ++block) all[block].begin(activation, parameters, norms, rows_of(block));
  if constexpr (requires { Selector::link(all); })
    if (cut.link) Selector::link(all);

  sae::Random random(cut.seed);
  std::vector<Index> next(all.size(), 0);
  std::vector<std::size_t> open;
  for (std::size_t block = 0; block < all.size(); ++block) open.push_back(block);
  while (!open.empty()) {
    const auto drawn = static_cast<std::size_t>(random.uniform(0, static_cast<double>(open.size())));
    const std::size_t block = open[std::min(drawn, open.size() - 1)];
    const Index first = next[block], count = std::min(cut.tile, z.cols() - first);
    for (Index r = 0; r < rows_of(block); ++r) {
      const Index row = static_cast<Index>(block) * block_rows + r;
      const double before = all[block].bound(r);
      all[block].take(r, first, {z.data() + row * z.cols() + first, static_cast<std::size_t>(count)});
      REQUIRE(all[block].bound(r) >= before);
    }
    next[block] += count;
    if (next[block] == z.cols()) open.erase(std::find(open.begin(), open.end(), block));
  }
  Selector::merge(all);
  sae::Entries<double> active, band;
  active.reset(z.cols());
  band.reset(z.cols());
  for (std::size_t block = 0; block < all.size(); ++block)
    for (Index r = 0; r < rows_of(block); ++r) {
      all[block].emit(r, active, band);
      active.finish_row();
      band.finish_row();
    }
  CHECK(band.size() == 0);
  return active;
}
template <class Activation>
sae::Entries<double> select_blocks(const Activation& activation, const Dense& z, const Cut& cut = {},
                                   const std::vector<double>& norms = {}) {
  std::vector<typename Activation::template Selector<double>> selectors;
  return select_blocks(activation, z, cut, norms, selectors);
}

/// Rows with everything that a selection must stand: ties, rows of zeros, NaN, infinities, few positive numbers.
inline Dense awkward_rows(Index rows, Index latents, std::uint64_t seed) {
  Dense z = random_rows(rows, latents, seed);
  const double nan_value = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
  sae::Random random(seed, 5);
  for (Index b = 0; b < rows; ++b) switch (b % 8) {
      case 1: z.row(b).setConstant(-1); break;
      case 2: z.row(b).setZero(); break;
      case 3: z.row(b) = (4 * z.row(b)).array().round() / 4; break;
      case 4: z.row(b).setConstant(nan_value); break;
      case 5:
        for (Index i = 0; i < latents; ++i)
          if (random.uniform(0, 1) < 0.1) z(b, i) = i % 3 == 0 ? nan_value : i % 3 == 1 ? infinity : -infinity;
        break;
      case 6: z.row(b) = -z.row(b).cwiseAbs(); break;
      case 7: z.row(b).setConstant(0.75); break;
      default: break;
    }
  return z;
}
inline std::vector<double> awkward_norms(Index latents, std::uint64_t seed) {
  sae::Random random(seed, 6);
  std::vector<double> norms;
  for (Index i = 0; i < latents; ++i) norms.push_back(i % 11 == 5 ? 0.0 : random.uniform(0.1, 4));
  return norms;
}
/// Dense codes, compared bit by bit where no NaN is.
inline bool same(const Dense& a, const Dense& b) { return a.rows() == b.rows() && a.cols() == b.cols() && a == b; }

}  // namespace sae_test
