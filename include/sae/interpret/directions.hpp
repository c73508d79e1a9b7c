#pragma once
#include <sae/core/error.hpp>
#include <sae/core/threads.hpp>
#include <sae/host/language_model.hpp>
#include <sae/metrics/dictionary.hpp>
#include <sae/metrics/moments.hpp>
#include <sae/models/forward.hpp>

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

namespace sae::inline SAE_ABI {

namespace detail {

/// The `count` largest of numbers that come with ascending indices; of equals the lower index, NaN never.
class LargestOf {
 public:
  struct Found {
    Index index = 0;
    double value = 0;
  };
  explicit LargestOf(Index count) : count_(static_cast<std::size_t>(count)) {}
  void offer(Index index, double value) {
    if (heap_.size() == count_) {
      if (!(value > heap_.front().value)) return;
      std::pop_heap(heap_.begin(), heap_.end(), before);
      heap_.pop_back();
    } else if (std::isnan(value)) {
      return;
    }
    heap_.push_back({index, value});
    std::push_heap(heap_.begin(), heap_.end(), before);
  }
  std::vector<Found> sorted() const {
    std::vector<Found> out = heap_;
    std::sort(out.begin(), out.end(), before);
    return out;
  }

 private:
  static bool before(const Found& a, const Found& b) { return a.value != b.value ? a.value > b.value : a.index < b.index; }
  std::size_t count_;
  std::vector<Found> heap_;  // the least in front
};

/// Calls take(row of a, first row of b, products with it and those behind it) for tile after tile of a b^T, a [n x D], b [m x D]; rows of a in
/// parallel, the tiles of one row in order.
template <class Take>
void for_each_product(const Tensor<float>& a, const Tensor<float>& b, Threads& threads, const Take& take) {
  ScratchPool<float> scratch;
  const Index block_rows = encode_block_rows(a.rows());
  for_each_pre_activation<float>(
      a.data(), a.rows(), a.cols(), b.data(), nullptr, b.rows(), scratch, threads,
      [&](Index block, Index row, Index first, std::span<const float> z) { take(block * block_rows + row, first, z); });
}

}  // namespace detail

/// A token, and what a direction adds to its logit.
struct TokenLogit {
  Token token = no_token;
  double logit = 0;
  bool operator==(const TokenLogit&) const = default;
};
/// What a direction writes into the logits by itself: its products with the unembedding of every token.
struct LogitAttribution {
  std::vector<TokenLogit> top,
      bottom;       ///< the largest, largest first, and the smallest, smallest first; of equals the lower token
  Moments moments;  ///< over the vocabulary: a latent that speaks for some tokens has a long tail
};

/// Direct logit attribution d W_U^T of every direction d: what each token's logit gains where d is added to the last residual stream, the
/// final norm left out, which divides all of them by one number (and multiplies dimensions by its gain, where the model has one: fold it into
/// the columns of W_U).
///
/// \param directions [n x D]  rows of W_dec, or any others
/// \param unembedding [V x D]  W_U of the host
/// \param count  tokens of each end, in [1, V]
/// Cost: 2 n V D operations, no n x V matrix; results do not depend on threads.
/// \throws ShapeError  D differs. ValueError: count is not in its range.
/// Source: nostalgebraist 2020 ("logit lens"); W_dec W_U of SAEs as in sae_vis (logits histogram, top and bottom logits).
inline std::vector<LogitAttribution> attribute_logits(const Batch<float>& directions, const Batch<float>& unembedding,
                                                      Index count, Threads& threads = Threads::shared()) {
  const Index vocabulary = unembedding.rows();
  if (directions.cols() != unembedding.cols())
    throw_shape("attribute_logits: directions of ", directions.cols(), " numbers, an unembedding of ", unembedding.cols());
  if (count < 1 || count > vocabulary)
    throw_value("attribute_logits: count = ", count, " is not in [1, ", vocabulary, "] (the vocabulary)");
  struct Seen {
    detail::LargestOf top, bottom;
    double sums[4] = {};
  };
  std::vector<Seen> seen(static_cast<std::size_t>(directions.rows()), Seen{detail::LargestOf(count), detail::LargestOf(count)});
  Tensor<float> a(directions.rows(), directions.cols()), b(vocabulary, unembedding.cols());
  a.map() = directions.map();
  b.map() = unembedding.map();
  detail::for_each_product(a, b, threads, [&](Index row, Index first, std::span<const float> logits) {
    Seen& of = seen[static_cast<std::size_t>(row)];
    for (std::size_t v = 0; v < logits.size(); ++v) {
      const auto logit = static_cast<double>(logits[v]);
      of.top.offer(first + static_cast<Index>(v), logit);
      of.bottom.offer(first + static_cast<Index>(v), -logit);
      double power = 1;
      for (double& sum : of.sums) sum += power *= logit;
    }
  });
  std::vector<LogitAttribution> out;
  for (const Seen& of : seen) {
    LogitAttribution& to = out.emplace_back();
    for (const auto& found : of.top.sorted()) to.top.push_back({static_cast<Token>(found.index), found.value});
    for (const auto& found : of.bottom.sorted()) to.bottom.push_back({static_cast<Token>(found.index), -found.value});
    to.moments = moments_of_sums(of.sums, static_cast<double>(vocabulary));
  }
  return out;
}

/// A row of a dictionary that points where another one points.
struct NearLatent {
  Index latent = 0;
  double cosine = 0;
  bool operator==(const NearLatent&) const = default;
};
namespace detail {
inline std::vector<std::vector<NearLatent>> nearest_latents(const Batch<float>& from, const Batch<float>& among, Index count,
                                                            bool but_itself, Threads& threads) {
  if (from.cols() != among.cols())
    throw_shape("nearest_latents: rows of width ", from.cols(), " and ", among.cols(), " cannot be compared");
  const Index most = among.rows() - (but_itself ? 1 : 0);
  if (count < 1 || count > most)
    throw_value("nearest_latents: count = ", count, " is not in [1, ", most, "] (the rows to compare with)");
  std::vector<LargestOf> nearest(static_cast<std::size_t>(from.rows()), LargestOf(count));
  for_each_product(unit_rows<float>(from.map()), unit_rows<float>(among.map()), threads,
                   [&](Index row, Index first, std::span<const float> cosines) {
                     for (std::size_t n = 0; n < cosines.size(); ++n)
                       if (const Index latent = first + static_cast<Index>(n); !but_itself || latent != row)
                         nearest[static_cast<std::size_t>(row)].offer(latent, static_cast<double>(cosines[n]));
                   });
  std::vector<std::vector<NearLatent>> out(nearest.size());
  for (std::size_t row = 0; row < out.size(); ++row)
    for (const auto& found : nearest[row].sorted()) out[row].push_back({found.index, found.value});
  return out;
}
}  // namespace detail

/// For each row of `from` [n x D] the `count` rows of `among` [m x D] of largest cosine, nearest first, of equals the lower one: latents that are
/// nearest in another SAE, or to a direction of one's own. `nearest_directions` (metrics/dictionary.hpp) is the one nearest, of any scalar.
/// A row of zeros has cosine 0 with everything; NaN is never near.
/// Cost: 2 n m D operations, no n x m matrix; results do not depend on threads.
/// \throws ShapeError  D differs. ValueError: count is not in [1, m].
inline std::vector<std::vector<NearLatent>> nearest_latents(const Batch<float>& from, const Batch<float>& among, Index count,
                                                            Threads& threads = Threads::shared()) {
  return detail::nearest_latents(from, among, count, false, threads);
}
/// The same of one dictionary, each row without itself; count in [1, m - 1].
inline std::vector<std::vector<NearLatent>> nearest_latents(const Batch<float>& rows, Index count,
                                                            Threads& threads = Threads::shared()) {
  return detail::nearest_latents(rows, rows, count, true, threads);
}

}  // namespace sae::inline SAE_ABI
