#pragma once
#include <sae/core/codes.hpp>
#include <sae/core/error.hpp>
#include <sae/core/random.hpp>
#include <sae/interpret/top_activations.hpp>
#include <sae/metrics/moments.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace sae::inline SAE_ABI {

/// What `LatentStatistics` keeps of each latent.
struct LatentStatisticsOptions {
  Index top = 20;          ///< strongest activations, >= 1
  Index bins = 64;         ///< of the histogram: a power of two, >= 2
  Index intervals = 16;    ///< from which examples are drawn: a power of two in [2, bins]
  Index examples = 5;      ///< of each interval, >= 0
  std::uint64_t seed = 0;  ///< of the draw

  /// \throws ValueError  a number is not in its range.
  void check() const {
    const auto power_of_two = [](Index n) { return n >= 2 && (n & (n - 1)) == 0; };
    if (top < 1) throw_value("LatentStatistics: top = ", top, " is below 1");
    if (!power_of_two(bins) || bins > 4096) throw_value("LatentStatistics: bins = ", bins, " is no power of two in [2, 4096]");
    if (!power_of_two(intervals) || intervals > bins)
      throw_value("LatentStatistics: intervals = ", intervals, " is no power of two in [2, ", bins, "] (the bins)");
    if (examples < 0) throw_value("LatentStatistics: examples = ", examples, " is negative");
  }
};

/// The activations f of a latent over the rows in which f > 0.
struct LatentMoments : Moments {
  Index rows = 0;                       ///< in which it was active
  double max = 0;                       ///< largest f
  Index first_row = -1, last_row = -1;  ///< in which it was active; -1: in none
};

/// How many activations of a latent lie in (i width, (i + 1) width], i < counts.size().
struct LatentHistogram {
  double width = 0;  ///< 0: the latent was never active
  std::vector<std::int64_t> counts;
};

/// What latents do on a stream of rows, in one pass over its codes: the strongest activations of each, a histogram, moments, and random
/// examples from every interval of strength, as a page on a latent shows them (sae_vis: "top" and "quantile" sequences).
///
/// An activation counts where f > 0 (so NaN never does; infinity is refused). The histogram has bins of equal width over (0, 2^e], the least
/// power of two that holds the largest activation: at least half of them lie below it. Where a larger one comes bins merge in pairs, so the
/// counts are those of a histogram made at the end; intervals are pieces of the same range. Of each interval the examples are a uniform draw
/// without repetition: those whose (seed, latent, row) hash to the least numbers. Hence every result but the moments' last bits is
/// the same however the rows are cut into batches or parts, in whatever order parts are merged.
///
/// Memory: for each latent 16 bytes x top, 8 x bins, and 24 x intervals x examples, of those that were active (3 KB with the defaults).
/// Cost: an entry that enters nothing costs a few comparisons and one hash.
class LatentStatistics {
 public:
  /// \throws ValueError  latents < 1; see LatentStatisticsOptions::check.
  explicit LatentStatistics(Index latents, LatentStatisticsOptions options = {})
      : options_((options.check(), options)), top_(latents, options.top), of_(static_cast<std::size_t>(latents)) {}

  Index latents() const { return top_.latents(); }
  Index rows() const { return top_.rows(); }  ///< seen so far
  const LatentStatisticsOptions& options() const { return options_; }

  /// Takes the codes of the next rows, the first of which is row `rows()` of the data.
  /// \throws ShapeError  codes of other latents. ValueError: an activation is infinite.
  template <class Scalar>
  void add(const Codes<Scalar>& codes) {
    add(codes, rows());
  }
  /// The same with rows numbered from `first_row` on (parts of the data that are later merged).
  template <class Scalar>
  void add(const Codes<Scalar>& codes, Index first_row) {
    require_finite(codes, first_row);
    top_.add(codes, first_row);
    for (Index b = 0; b < codes.rows(); ++b)
      for (Index e = codes.begin(b); e < codes.end(b); ++e)
        if (const auto value = static_cast<double>(codes.value(e)); value > 0) take(codes.latent(e), {value, first_row + b});
  }
  /// Takes in what another one saw of other rows of the same data.
  /// \throws ShapeError  it has other latents. ValueError: it has other options.
  void merge(const LatentStatistics& other) {
    if (other.options_.bins != options_.bins || other.options_.intervals != options_.intervals ||
        other.options_.examples != options_.examples || other.options_.seed != options_.seed)
      throw_value("LatentStatistics: another one with other bins, intervals, examples or seed cannot be merged");
    top_.merge(other.top_);
    for (std::size_t i = 0; i < of_.size(); ++i) {
      Latent& to = of_[i];
      Latent from = other.of_[i];
      if (from.rows == 0) continue;
      begin(to);
      const int exponent = std::max(to.rows == 0 ? from.exponent : to.exponent, from.exponent);
      widen(to, exponent);
      widen(from, exponent);
      for (std::size_t bin = 0; bin < to.counts.size(); ++bin) to.counts[bin] += from.counts[bin];
      for (std::size_t n = 0; n < to.examples.size(); ++n)
        for (const Example& example : from.examples[n]) offer(to.examples[n], example);
      for (std::size_t power = 0; power < to.sums.size(); ++power) to.sums[power] += from.sums[power];
      to.first_row = to.rows == 0 ? from.first_row : std::min(to.first_row, from.first_row);
      to.last_row = std::max(to.last_row, from.last_row);
      to.rows += from.rows;
    }
  }

  /// The strongest activations, and the rows in which a latent was active.
  const TopActivations& top() const { return top_; }
  /// Share of the rows in which a latent was active; 0 before the first row.
  double density(Index latent) const { return top_.density(latent); }
  /// \throws ValueError  there is no such latent; so have the following.
  LatentMoments moments(Index latent) const {
    const Latent& of = at(latent);
    LatentMoments out;
    if (of.rows == 0) return out;
    static_cast<Moments&>(out) = moments_of_sums(of.sums, static_cast<double>(of.rows));
    out.rows = of.rows;
    out.max = top_.max(latent);
    out.first_row = of.first_row;
    out.last_row = of.last_row;
    return out;
  }
  LatentHistogram histogram(Index latent) const {
    const Latent& of = at(latent);
    if (of.rows == 0) return {};
    return {std::ldexp(1.0, of.exponent) / static_cast<double>(options_.bins), of.counts};
  }
  /// Random activations out of each interval ((i width, (i + 1) width] for i < options().intervals, width that of the histogram times bins /
  /// intervals), the weakest interval first, in each by row; fewer than `examples` where it has fewer.
  std::vector<std::vector<TopActivation>> examples(Index latent) const {
    const Latent& of = at(latent);
    std::vector<std::vector<TopActivation>> out(static_cast<std::size_t>(options_.intervals));
    for (std::size_t n = 0; n < of.examples.size(); ++n) {
      for (const Example& example : of.examples[n]) out[n].push_back(example.activation);
      std::sort(out[n].begin(), out[n].end(), [](const TopActivation& a, const TopActivation& b) { return a.row < b.row; });
    }
    return out;
  }

 private:
  struct Example {
    std::uint64_t order = 0;  ///< its place in the draw
    TopActivation activation;
    bool operator<(const Example& other) const {
      return order != other.order ? order < other.order : activation.row < other.activation.row;
    }
  };
  struct Latent {
    Index rows = 0, first_row = -1, last_row = -1;
    int exponent = 0;                            ///< e, of the range (0, 2^e]
    std::array<double, 4> sums{};                ///< of f, f^2, f^3, f^4
    std::vector<std::int64_t> counts;            ///< [bins]; empty before the first activation, as the next
    std::vector<std::vector<Example>> examples;  ///< [intervals] heaps, the last of the draw in front
  };

  const Latent& at(Index latent) const {
    if (latent < 0 || latent >= latents())
      throw_value("latent ", latent, " is not in [0, ", latents(), ") (the number of latents)");
    return of_[static_cast<std::size_t>(latent)];
  }
  template <class Scalar>
  void require_finite(const Codes<Scalar>& codes, Index first_row) const {
    for (Index b = 0; b < codes.rows(); ++b)
      for (Index e = codes.begin(b); e < codes.end(b); ++e)
        if (std::isinf(codes.value(e)))
          throw_value("LatentStatistics: latent ", codes.latent(e), " is infinite in row ", first_row + b);
  }
  void begin(Latent& of) const {
    if (!of.counts.empty()) return;
    of.counts.assign(static_cast<std::size_t>(options_.bins), 0);
    of.examples.resize(options_.examples > 0 ? static_cast<std::size_t>(options_.intervals) : 0);
  }
  void take(Index latent, const TopActivation& activation) {
    Latent& of = of_[static_cast<std::size_t>(latent)];
    begin(of);
    const int exponent = exponent_of(activation.value);
    if (of.rows == 0) of.exponent = exponent;
    widen(of, exponent);
    ++of.counts[part_of(activation.value, of.exponent, options_.bins)];
    if (!of.examples.empty())
      offer(of.examples[part_of(activation.value, of.exponent, options_.intervals)],
            {order_of(latent, activation.row), activation});
    double power = 1;
    for (double& sum : of.sums) sum += power *= activation.value;
    of.first_row = of.rows == 0 ? activation.row : std::min(of.first_row, activation.row);
    of.last_row = std::max(of.last_row, activation.row);
    ++of.rows;
  }
  /// The least e with f <= 2^e.
  static int exponent_of(double f) {
    int exponent = 0;
    const double mantissa = std::frexp(f, &exponent);  // f = mantissa 2^exponent, mantissa in [1/2, 1)
    return mantissa == 0.5 ? exponent - 1 : exponent;
  }
  /// i with f in (i 2^e / parts, (i + 1) 2^e / parts]: exact, as parts is a power of two.
  static std::size_t part_of(double f, int exponent, Index parts) {
    return static_cast<std::size_t>(std::max(std::ceil(std::ldexp(f, -exponent) * static_cast<double>(parts)), 1.0)) - 1;
  }
  /// Brings the range to (0, 2^exponent] where that is wider.
  void widen(Latent& of, int exponent) const {
    const auto merge_pairs = [](auto& parts, const auto& add) {
      for (std::size_t i = 0; i < parts.size(); ++i) {
        auto merged = std::move(parts[i]);
        parts[i] = {};
        if (i % 2 == 0) {
          parts[i / 2] = std::move(merged);
        } else {
          add(parts[i / 2], merged);
        }
      }
    };
    for (; of.exponent < exponent; ++of.exponent) {
      merge_pairs(of.counts, [](std::int64_t& to, std::int64_t from) { to += from; });
      merge_pairs(of.examples, [&](std::vector<Example>& to, const std::vector<Example>& from) {
        for (const Example& example : from) offer(to, example);
      });
    }
  }
  std::uint64_t order_of(Index latent, Index row) const {
    const auto low = [](std::uint64_t x) { return static_cast<std::uint32_t>(x); };
    const auto high = [](std::uint64_t x) { return static_cast<std::uint32_t>(x >> 32); };
    const auto i = static_cast<std::uint64_t>(latent), r = static_cast<std::uint64_t>(row);
    const auto bits = philox({low(r), high(r), low(i), high(i)}, {low(options_.seed), high(options_.seed)});
    return std::uint64_t{bits[0]} << 32 | bits[1];
  }
  void offer(std::vector<Example>& heap, const Example& example) const {
    if (static_cast<Index>(heap.size()) == options_.examples) {
      if (!(example < heap.front())) return;
      std::pop_heap(heap.begin(), heap.end());
      heap.pop_back();
    }
    heap.push_back(example);
    std::push_heap(heap.begin(), heap.end());
  }

  LatentStatisticsOptions options_;
  TopActivations top_;
  std::vector<Latent> of_;
};

}  // namespace sae::inline SAE_ABI
