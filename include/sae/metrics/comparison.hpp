#pragma once
#include <sae/metrics/assignment.hpp>
#include <sae/metrics/dictionary.hpp>

#include <algorithm>
#include <cstddef>
#include <limits>
#include <vector>

namespace sae::inline SAE_ABI {

/// From where on two directions count as one, and as akin.
struct ComparisonOptions {
  double shared = 0.9;  ///< cosine of one latent found twice, in (0, 1]
  double split = 0.6;   ///< cosine of a latent with those that it was split into, in (0, shared]
  /// MCC is left out where F_a F_b is above the square of this: it takes a float64 for each pair, and at worst cubic time.
  Index most_pairs = 8192;

  /// \throws ValueError  a number is not in its range.
  void check() const {
    if (!(shared > 0 && shared <= 1)) throw_value("ComparisonOptions: shared = ", shared, " is not in (0, 1]");
    if (!(split > 0 && split <= shared))
      throw_value("ComparisonOptions: split = ", split, " is not in (0, ", shared, "] (shared)");
    if (most_pairs < 0) throw_value("ComparisonOptions: most_pairs = ", most_pairs, " is negative");
  }
};

/// How one dictionary looks from another one.
struct DictionaryComparison {
  NearestDirections of_a;  ///< for each latent of a the nearest one of b
  NearestDirections of_b;  ///< for each latent of b the nearest one of a
  double mmcs_a = 0;       ///< mean max cosine similarity: mean of of_a.cosine
  double mmcs_b = 0;
  double mcc =
      std::numeric_limits<double>::quiet_NaN();  ///< mean cosine over the best one-to-one pairs; NaN where it was left out
  Index shared_a = 0;                            ///< latents of a that b has, too: cosine of at least `shared`
  Index shared_b = 0;
  Index mutual = 0;          ///< pairs that are nearest to each other, and shared
  std::vector<Index> parts;  ///< [F_a] latents of b whose nearest in a this is, with a cosine of at least `split`

  /// Latents of a that more than one latent of b stands for.
  Index split_latents() const {
    return static_cast<Index>(std::count_if(parts.begin(), parts.end(), [](Index n) { return n > 1; }));
  }
};

/// Compares decoder rows a [F_a x D] with b [F_b x D]: two seeds (what is stable), two widths (what is split), two layers or recipes.
/// Cosines with their signs, since a latent and its negative say different things; a row of zeros has cosine 0 with everything.
///
/// MMCS (Sharkey, Braun, Millidge 2022) is not symmetric: every latent of a small dictionary may lie in a large one. MCC takes each latent
/// once, in the assignment with the largest sum (Paulo, Belrose 2025 count what two seeds share so). Splitting: a latent of a that several of
/// b are nearest to (Bricken et al. 2023); the cosine of a part falls with the number of parts, hence the lower bound.
///
/// Cost: 4 F_a F_b D operations; with MCC also F_a F_b float64, and its assignment. Results do not depend on threads.
/// \throws ShapeError  D differs. ValueError: a dictionary has no row, options out of range, with MCC a row that is not finite.
template <class A, class B>
DictionaryComparison compare_dictionaries(const Eigen::MatrixBase<A>& a, const Eigen::MatrixBase<B>& b,
                                          const ComparisonOptions& options = {}, Threads& threads = Threads::shared()) {
  options.check();
  DictionaryComparison out;
  out.of_a = nearest_directions(a, b, CosineSign::matters, threads);
  out.of_b = nearest_directions(b, a, CosineSign::matters, threads);
  out.mmcs_a = out.of_a.mean();
  out.mmcs_b = out.of_b.mean();
  out.shared_a = out.of_a.found(options.shared);
  out.shared_b = out.of_b.found(options.shared);
  out.parts.assign(static_cast<std::size_t>(a.rows()), 0);
  for (std::size_t j = 0; j < out.of_b.nearest.size(); ++j) {
    const auto i = static_cast<std::size_t>(out.of_b.nearest[j]);
    if (out.of_b.cosine[j] >= options.split) ++out.parts[i];
    if (out.of_b.cosine[j] >= options.shared && out.of_a.nearest[i] == static_cast<Index>(j)) ++out.mutual;
  }
  if (static_cast<double>(a.rows()) * static_cast<double>(b.rows()) <=
      static_cast<double>(options.most_pairs) * static_cast<double>(options.most_pairs)) {
    const Assignment pairs = best_assignment(cosines(a, b, threads).map());
    out.mcc = pairs.total / static_cast<double>(pairs.pairs());
  }
  return out;
}

}  // namespace sae::inline SAE_ABI
