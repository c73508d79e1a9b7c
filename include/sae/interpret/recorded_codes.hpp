#pragma once
#include <sae/core/codes.hpp>
#include <sae/core/error.hpp>
#include <sae/host/activation_source.hpp>
#include <sae/interpret/latent_statistics.hpp>

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace sae::inline SAE_ABI {

/// The codes of a text with the place of every row in it: their statistics, and what a latent does on the tokens around a row.
///
/// An activation counts where f > 0, as in LatentStatistics. Memory: that of LatentStatistics, 8 bytes for each entry of the codes (256 MB for
/// a million rows of 32), 12 for each row.
class RecordedCodes {
 public:
  /// \throws ValueError  latents < 1; see LatentStatisticsOptions::check.
  explicit RecordedCodes(Index latents, LatentStatisticsOptions options = {}) : statistics_(latents, options) {}

  /// Takes the next rows, in the order of the text.
  /// \throws ShapeError  as many origins as rows are needed, and codes of the same latents. ValueError: an activation is infinite.
  void add(Codes<float> codes, std::span<const RowOrigin> origins) {
    if (static_cast<Index>(origins.size()) != codes.rows())
      throw_shape("RecordedCodes: ", origins.size(), " origins for ", codes.rows(), " rows");
    statistics_.add(codes);
    for (Index b = 0; b < codes.rows(); ++b) {
      const auto values = codes.row_values(b);
      const auto active = static_cast<std::size_t>(std::count_if(values.begin(), values.end(), [](float f) { return f > 0; }));
      if (active >= l0_.size()) l0_.resize(active + 1);
      ++l0_[active];
    }
    first_rows_.push_back(rows());
    origins_.insert(origins_.end(), origins.begin(), origins.end());
    blocks_.push_back(std::move(codes));
  }

  Index latents() const { return statistics_.latents(); }
  Index rows() const { return static_cast<Index>(origins_.size()); }
  const LatentStatistics& statistics() const { return statistics_; }
  std::span<const Codes<float>> blocks() const { return blocks_; }  ///< as they were added
  /// counts[n]: rows in which n latents were active.
  const std::vector<std::int64_t>& l0_counts() const { return l0_; }

  const RowOrigin& origin(Index row) const { return origins_[checked(row)]; }
  /// f of a latent in a row; 0 where it is not active. \throws ValueError  there is no such row.
  float value(Index row, Index latent) const {
    checked(row);
    const auto block =
        static_cast<std::size_t>(std::upper_bound(first_rows_.begin(), first_rows_.end(), row) - first_rows_.begin()) - 1;
    const float f = blocks_[block].coefficient(row - first_rows_[block], latent);
    return f > 0 ? f : 0.0F;
  }
  /// The rows [first, last] of the same window that lie at most `before` positions before and `after` positions behind a row. Rows that were
  /// left out when the text was read are missing among them. \throws ValueError  there is no such row.
  std::pair<Index, Index> around(Index row, Index before, Index after) const {
    const RowOrigin& at = origin(row);
    const auto within = [&](Index other) {
      const RowOrigin& there = origin(other);
      return there.window == at.window && there.position >= at.position - before && there.position <= at.position + after;
    };
    Index first = row, last = row;
    while (first > 0 && within(first - 1)) --first;
    while (last + 1 < rows() && within(last + 1)) ++last;
    return {first, last};
  }
  /// Whether positions between a row and the one before it in its window were left out.
  bool after_gap(Index row) const {
    const RowOrigin& at = origin(row);
    return row > 0 && origin(row - 1).window == at.window && origin(row - 1).position + 1 != at.position;
  }

 private:
  std::size_t checked(Index row) const {
    if (row < 0 || row >= rows()) throw_value("row ", row, " is not in [0, ", rows(), ") (the rows that were read)");
    return static_cast<std::size_t>(row);
  }

  LatentStatistics statistics_;
  std::vector<Codes<float>> blocks_;
  std::vector<Index> first_rows_;  ///< of each block
  std::vector<RowOrigin> origins_;
  std::vector<std::int64_t> l0_;
};

}  // namespace sae::inline SAE_ABI
