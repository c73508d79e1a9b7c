#pragma once
#include <sae/core/codes.hpp>
#include <sae/core/error.hpp>
#include <sae/core/types.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

namespace sae::inline SAE_ABI {

/// How a latent goes together with something else over all rows, those in which one or both are 0 included.
struct Association {
  Index index = 0;          ///< of the other latent, or of the neuron
  double correlation = 0;   ///< Pearson's; 0 where one of the two never changes
  double cosine = 0;        ///< of the two as vectors over the rows; 0 where one of them is 0 everywhere
  Index rows_together = 0;  ///< in which both latents are active; of a neuron 0
};

/// How chosen latents go together with all latents, and with the numbers of the rows ("neurons"), in one pass over codes and rows, without
/// keeping either: sums of f_i, f_i^2, f_i f_j and f_i x_d. An activation counts where f > 0; codes and rows are finite.
///
/// Counts are exact, correlations those of float64 sums; parts may be merged in any order.
/// Memory: for each chosen latent 16 bytes x F, and 8 x D with neurons. Cost of a row: its active chosen latents times its active latents, and
/// times D.
/// Source: sae_vis (correlated neurons and features: streaming Pearson and cosine).
class CoActivation {
 public:
  /// \param chosen  latents, in any order, each once
  /// \param width   D, where rows are given beside the codes; 0: they are not
  /// \throws ValueError  latents < 1, width < 0, a latent is not in [0, latents) or is named twice.
  CoActivation(Index latents, std::vector<Index> chosen, Index width = 0) : chosen_(std::move(chosen)) {
    if (latents < 1) throw_value("CoActivation: latents = ", latents, " is below 1");
    if (width < 0) throw_value("CoActivation: width = ", width, " is negative");
    slot_.assign(static_cast<std::size_t>(latents), -1);
    for (std::size_t n = 0; n < chosen_.size(); ++n) {
      const Index latent = chosen_[n];
      if (latent < 0 || latent >= latents)
        throw_value("latent ", latent, " is not in [0, ", latents, ") (the number of latents)");
      Index& slot = slot_[static_cast<std::size_t>(latent)];
      if (slot >= 0) throw_value("CoActivation: latent ", latent, " is named twice");
      slot = static_cast<Index>(n);
    }
    const auto count = static_cast<Index>(chosen_.size());
    of_latents_.resize(2, latents);
    of_neurons_.resize(2, width);
    together_.assign(chosen_.size() * slot_.size(), 0);
    products_.resize(count, latents);
    with_neurons_.resize(count, width);
  }

  Index latents() const { return static_cast<Index>(slot_.size()); }
  Index width() const { return of_neurons_.cols(); }
  Index rows() const { return rows_; }  ///< seen so far
  const std::vector<Index>& chosen() const { return chosen_; }

  /// Takes the codes of further rows. \throws ValueError  the rows themselves are needed, too. ShapeError: codes of other latents.
  template <class Scalar>
  void add(const Codes<Scalar>& codes) {
    if (width() > 0) throw_value("CoActivation: with ", width(), " neurons rows are needed beside the codes");
    add_codes(codes);
  }
  /// The same with the rows x [B x D] that they are of. \throws ShapeError  their shape is another one.
  template <class Scalar>
  void add(const Codes<Scalar>& codes, const Batch<Scalar>& x) {
    if (x.rows() != codes.rows() || x.cols() != width())
      throw_shape("CoActivation: rows [", x.rows(), " x ", x.cols(), "], codes of [", codes.rows(), " x ", width(), "]");
    add_codes(codes);
    for (Index b = 0; b < x.rows(); ++b) {
      const Scalar* const row = x.row(b);
      for (Index d = 0; d < width(); ++d) {
        const auto number = static_cast<double>(row[d]);
        of_neurons_.row(0)[d] += number;
        of_neurons_.row(1)[d] += number * number;
      }
      for (Index e = codes.begin(b); e < codes.end(b); ++e) {
        const Index slot = slot_[static_cast<std::size_t>(codes.latent(e))];
        const auto f = static_cast<double>(codes.value(e));
        if (slot < 0 || !(f > 0)) continue;
        double* const sums = with_neurons_.row(slot);
        for (Index d = 0; d < width(); ++d) sums[d] += f * static_cast<double>(row[d]);
      }
    }
  }
  /// Takes in what another one saw of other rows. \throws ShapeError  it watches something else.
  void merge(const CoActivation& other) {
    if (other.latents() != latents() || other.chosen_ != chosen_ || other.width() != width())
      throw_shape("CoActivation: another one of ", other.latents(), " latents, ", other.chosen_.size(), " chosen, and ",
                  other.width(), " neurons does not watch the same as this one");
    const auto add = [](Tensor<double>& to, const Tensor<double>& from) { to.map() += from.map(); };
    rows_ += other.rows_;
    for (std::size_t n = 0; n < together_.size(); ++n) together_[n] += other.together_[n];
    add(of_latents_, other.of_latents_);
    add(of_neurons_, other.of_neurons_);
    add(products_, other.products_);
    add(with_neurons_, other.with_neurons_);
  }

  /// What a chosen latent has to do with every latent, itself included, by latent.
  /// \throws ValueError  it was not chosen.
  std::vector<Association> with_latents(Index latent) const {
    const Index slot = chosen_slot(latent);
    std::vector<Association> out;
    for (Index j = 0; j < latents(); ++j)
      out.push_back(association(j, products_.row(slot)[j], of_latents_, latent, of_latents_, j,
                                together_[static_cast<std::size_t>(slot * latents() + j)]));
    return out;
  }
  /// What it has to do with every number of the rows, by its place. \throws ValueError  as above.
  std::vector<Association> with_neurons(Index latent) const {
    const Index slot = chosen_slot(latent);
    std::vector<Association> out;
    for (Index d = 0; d < width(); ++d)
      out.push_back(association(d, with_neurons_.row(slot)[d], of_latents_, latent, of_neurons_, d, 0));
    return out;
  }

 private:
  Index chosen_slot(Index latent) const {
    if (latent < 0 || latent >= latents())
      throw_value("latent ", latent, " is not in [0, ", latents(), ") (the number of latents)");
    const Index slot = slot_[static_cast<std::size_t>(latent)];
    if (slot < 0) throw_value("CoActivation: latent ", latent, " was not chosen");
    return slot;
  }
  template <class Scalar>
  void add_codes(const Codes<Scalar>& codes) {
    if (codes.latents() != latents()) throw_shape("CoActivation: codes of ", codes.latents(), " latents, not ", latents());
    for (Index b = 0; b < codes.rows(); ++b)
      for (Index e = codes.begin(b); e < codes.end(b); ++e) {
        const auto f = static_cast<double>(codes.value(e));
        if (!(f > 0)) continue;
        const Index latent = codes.latent(e), slot = slot_[static_cast<std::size_t>(latent)];
        of_latents_.row(0)[latent] += f;
        of_latents_.row(1)[latent] += f * f;
        if (slot < 0) continue;
        for (Index other = codes.begin(b); other < codes.end(b); ++other) {
          const auto g = static_cast<double>(codes.value(other));
          if (!(g > 0)) continue;
          products_.row(slot)[codes.latent(other)] += f * g;
          ++together_[static_cast<std::size_t>(slot * latents() + codes.latent(other))];
        }
      }
    rows_ += codes.rows();
  }
  /// \param a, b  sums and sums of squares [2 x n] of what i and j are columns of
  Association association(Index index, double product, const Tensor<double>& a, Index i, const Tensor<double>& b, Index j,
                          Index together) const {
    Association out{.index = index, .rows_together = together};
    const double squares = a.row(1)[i] * b.row(1)[j];
    if (rows_ == 0 || !(squares > 0)) return out;
    out.cosine = product / std::sqrt(squares);
    const auto n = static_cast<double>(rows_);
    const auto variance = [&](const Tensor<double>& of, Index k) {
      const double mean = of.row(0)[k] / n, square = of.row(1)[k] / n;
      return square - mean * mean > 1e-12 * square ? square - mean * mean : 0.0;
    };
    const double both = variance(a, i) * variance(b, j);
    if (both > 0) out.correlation = (product / n - a.row(0)[i] / n * (b.row(0)[j] / n)) / std::sqrt(both);
    return out;
  }

  std::vector<Index> chosen_, slot_;  ///< slot: of each latent among the chosen; -1: none
  Index rows_ = 0;
  Tensor<double> of_latents_, of_neurons_;  ///< sums, sums of squares [2 x F], [2 x D]
  std::vector<std::int64_t> together_;      ///< [chosen x F]
  Tensor<double> products_, with_neurons_;  ///< [chosen x F], [chosen x D]
};

/// The `count` largest of some associations, largest first, of equals the lower index, without the one of index `but`.
inline std::vector<Association> strongest(std::vector<Association> of, Index count,
                                          double Association::*by = &Association::correlation, Index but = -1) {
  std::erase_if(of, [&](const Association& a) { return a.index == but; });
  const auto end = of.begin() + std::min(std::max<Index>(count, 0), static_cast<Index>(of.size()));
  std::partial_sort(of.begin(), end, of.end(), [&](const Association& a, const Association& b) {
    return a.*by != b.*by ? a.*by > b.*by : a.index < b.index;
  });
  of.erase(end, of.end());
  return of;
}

}  // namespace sae::inline SAE_ABI
