#pragma once
#include <sae/core/codes.hpp>
#include <sae/core/threads.hpp>
#include <sae/metrics/assignment.hpp>
#include <sae/metrics/dictionary.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace sae::inline SAE_ABI {

/// How far the latents' directions are the true features', C_ki = |cos(W_dec[k], e_i)|. Of decoder rows alone: latents that
/// never fire count as well.
struct DirectionRecovery {
  double mcc = 0;  ///< mean correlation coefficient: mean of C over the min(F, n) pairs of the assignment with the largest sum
  double uniqueness = 0;            ///< number of different features among `best`, over F
  std::vector<Index> best;          ///< [F] argmax_i C_ki, the lower of equals; several latents may share a feature
  std::vector<double> best_cosine;  ///< [F] C there
  std::vector<Index> assigned;      ///< [F] the feature of latent k in the assignment; -1: none was left
};

/// Compares decoder rows [F x D] with the features' directions [n x D]; no row needs norm 1, a row of zeros has C = 0.
/// Memory F n float64, cost 2 F n D and the assignment (metrics/assignment.hpp). Results do not depend on threads.
/// Errors: ShapeError for different D; ValueError where one of the two has no row or a row is not finite.
/// Source: SAELens 6.54 synthetic/evals.py (mean_correlation_coefficient, compute_feature_uniqueness).
template <class A, class B>
DirectionRecovery recover_directions(const Eigen::MatrixBase<A>& decoder, const Eigen::MatrixBase<B>& features,
                                     Threads& threads = Threads::shared()) {
  if (decoder.cols() != features.cols())
    throw_shape("recover_directions: decoder rows of width ", decoder.cols(), " and features of width ", features.cols(),
                " cannot be compared");
  if (decoder.rows() == 0 || features.rows() == 0) throw_value("recover_directions: there are no latents or no features");
  if (!decoder.allFinite() || !features.allFinite())
    throw_value("recover_directions: a direction holds a number that is not finite (NaN or infinity)");
  Tensor<double> c = cosines(decoder, features, threads);
  DirectionRecovery out;
  std::vector<std::uint8_t> hit(static_cast<std::size_t>(c.cols()), 0);
  for (Index k = 0; k < c.rows(); ++k) {
    double* const row = c.row(k);
    Index best = 0;
    for (Index i = 0; i < c.cols(); ++i) {
      row[i] = std::abs(row[i]);
      if (row[i] > row[best]) best = i;
    }
    out.best.push_back(best);
    out.best_cosine.push_back(row[best]);
    hit[static_cast<std::size_t>(best)] = 1;
  }
  out.uniqueness = static_cast<double>(std::count(hit.begin(), hit.end(), 1)) / static_cast<double>(c.rows());
  Assignment pairs = best_assignment(c.map());
  out.mcc = pairs.total / static_cast<double>(pairs.pairs());
  out.assigned = std::move(pairs.column_of_row);
  return out;
}

/// Rows in which a latent and its feature fire: a latent where its code is not 0, a feature where it is above 0.
struct FiringCounts {
  Index true_positives = 0;   ///< both
  Index false_positives = 0;  ///< the latent alone
  Index false_negatives = 0;  ///< the feature alone
  Index true_negatives = 0;   ///< neither

  // Each is 0 where it would be 0 / 0, so that a latent which never fires scores 0.
  double precision() const { return share(true_positives, true_positives + false_positives); }
  double recall() const { return share(true_positives, true_positives + false_negatives); }
  double f1() const { return share(2 * true_positives, 2 * true_positives + false_positives + false_negatives); }
  double accuracy() const {
    return share(true_positives + true_negatives, true_positives + false_positives + false_negatives + true_negatives);
  }
  bool operator==(const FiringCounts&) const = default;

 private:
  static double share(Index part, Index whole) {
    return whole == 0 ? 0.0 : static_cast<double>(part) / static_cast<double>(whole);
  }
};

/// What GroundTruthMetrics finds. Means over latents are plain means over all F, latents that never fire among them.
struct GroundTruthFigures {
  DirectionRecovery directions;
  Index rows = 0;
  double precision = 0, recall = 0, f1 = 0, accuracy = 0;  ///< means over latents, each against feature directions.best[k]
  double true_l0 = 0;                                      ///< mean number of features that fire in a row; NaN with no row
  std::vector<FiringCounts> counts;                        ///< [F]
};

/// Streaming comparison of latents with the features that made the rows: give it batches, then ask for `figures()`.
///
///   sae::GroundTruthMetrics truth(model.W_dec(), world.directions.map());
///   truth.add(codes, features);                              // [B x F] and [B x n]
///   truth.figures().f1
///
/// Counts are integers: how rows are cut into batches changes nothing. Cost of a batch: its entries. Memory: n + 3 F numbers,
/// beside the comparison of directions at the start.
/// Source: SAELens 6.54 synthetic/evals.py (eval_sae_on_synthetic_data, classification metrics).
class GroundTruthMetrics {
 public:
  template <class A, class B>
  GroundTruthMetrics(const Eigen::MatrixBase<A>& decoder, const Eigen::MatrixBase<B>& features,
                     Threads& threads = Threads::shared())
      : directions_(recover_directions(decoder, features, threads)),
        both_(directions_.best.size(), 0),
        latent_(directions_.best.size(), 0),
        feature_(static_cast<std::size_t>(features.rows()), 0) {}

  Index latents() const { return static_cast<Index>(latent_.size()); }
  Index features() const { return static_cast<Index>(feature_.size()); }
  Index rows() const { return rows_; }
  const DirectionRecovery& directions() const { return directions_; }

  /// Adds rows: codes [B x F] and the features' activations [B x n]. Errors: ShapeError. A NaN fires as a latent, not as a
  /// feature.
  template <class Scalar>
  void add(const Codes<Scalar>& codes, const Codes<Scalar>& truth) {
    if (codes.latents() != latents() || truth.latents() != features() || codes.rows() != truth.rows())
      throw_shape("ground truth: codes [", codes.rows(), " x ", codes.latents(), "] and features [", truth.rows(), " x ",
                  truth.latents(), "] must be [B x ", latents(), "] and [B x ", features(), "]");
    std::vector<std::uint8_t> fires(feature_.size(), 0);
    for (Index b = 0; b < codes.rows(); ++b) {
      for (Index e = truth.begin(b); e < truth.end(b); ++e)
        if (truth.value(e) > Scalar(0)) {
          fires[at(truth.latent(e))] = 1;
          ++feature_[at(truth.latent(e))];
        }
      for (Index e = codes.begin(b); e < codes.end(b); ++e) {
        if (codes.value(e) == Scalar(0)) continue;
        const std::size_t k = at(codes.latent(e));
        ++latent_[k];
        both_[k] += fires[at(directions_.best[k])];
      }
      for (Index e = truth.begin(b); e < truth.end(b); ++e) fires[at(truth.latent(e))] = 0;
    }
    rows_ += codes.rows();
  }

  GroundTruthFigures figures() const {
    GroundTruthFigures out;
    out.directions = directions_;
    out.rows = rows_;
    for (std::size_t k = 0; k < latent_.size(); ++k) {
      const Index feature = feature_[at(directions_.best[k])];
      const FiringCounts& c = out.counts.emplace_back(
          FiringCounts{both_[k], latent_[k] - both_[k], feature - both_[k], rows_ - latent_[k] - feature + both_[k]});
      out.precision += c.precision();
      out.recall += c.recall();
      out.f1 += c.f1();
      out.accuracy += c.accuracy();
    }
    for (double* const mean : {&out.precision, &out.recall, &out.f1, &out.accuracy}) *mean /= static_cast<double>(latents());
    Index active = 0;
    for (const Index count : feature_) active += count;
    out.true_l0 = static_cast<double>(active) / static_cast<double>(rows_);
    return out;
  }

 private:
  static std::size_t at(Index i) { return static_cast<std::size_t>(i); }

  DirectionRecovery directions_;
  Index rows_ = 0;
  std::vector<Index> both_, latent_;  ///< [F] rows in which a latent fires with its feature, and at all
  std::vector<Index> feature_;        ///< [n] rows in which a feature fires
};

}  // namespace sae::inline SAE_ABI
