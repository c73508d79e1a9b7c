#pragma once
#include <sae/data/source.hpp>
#include <sae/host/windows.hpp>
#include <sae/metrics/row_filter.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

namespace sae::inline SAE_ABI {

/// Which rows of a model's activations are used.
///
/// BOS is an attention sink: its row is the same in every window and its norm hundreds of times the others'; now and then a row
/// behind it is one, too. Left in, a handful of rows carry most of the variance.
struct CollectOptions {
  bool keep_bos = false;  ///< keep BOS rows, whatever their norm
  /// Rows with a norm above `max_norm` medians are left out; 0: none. The median of a site is that of its first 4,096 rows
  /// (fewer where the text has fewer; BOS and non-finite rows do not count; of an even number, the lower middle one) and does
  /// not change after that, so that what is kept depends on the text alone. A median of 0 leaves nothing out.
  double max_norm = 10;
  /// Hand out the rows that are left out, too, but for those that are not finite: CollectedRows::kept tells them. For a model that reads
  /// whole windows.
  bool hand_out_all = false;

  void check() const {
    if (!(max_norm >= 0 && std::isfinite(max_norm)))
      throw_value("collect: max_norm = ", max_norm, " is not a number from 0 on");
  }
};

/// Where a row comes from.
struct RowOrigin {
  Token token = 0;            ///< that was read at the position
  std::int32_t window = 0;    ///< from 0
  std::int32_t position = 0;  ///< in the window, from 0
  bool operator==(const RowOrigin&) const = default;
};

/// What became of the positions that were run.
struct CollectCounts {
  Index kept = 0;
  Index bos = 0;         ///< left out: BOS
  Index norm = 0;        ///< left out: the norm at some site
  Index not_finite = 0;  ///< left out: a NaN or an infinity at some site
  bool operator==(const CollectCounts&) const = default;
};

/// Rows of one or more sites, in the order of the text: row i of every site belongs to origins[i].
struct CollectedRows {
  std::span<const RowOrigin> origins;
  std::vector<ConstMatrixMap<float>> sites;  ///< [n x D], in the order in which the sites were asked for
  std::span<const std::uint8_t> kept{};      ///< [n] 1: the row passes the filter; which all do but with `hand_out_all`
};

/// Calls use(first, count) for the rows of each window.
template <class Use>
void for_each_window(const CollectedRows& rows, const Use& use) {
  const auto count = static_cast<Index>(rows.origins.size());
  for (Index first = 0, end = 0; first < count; first = end) {
    const auto window = [&](Index row) { return rows.origins[static_cast<std::size_t>(row)].window; };
    while (end < count && window(end) == window(first)) ++end;
    use(first, end - first);
  }
}

/// Runs a model window by window and hands out the rows that pass the filter. All sites come from one forward pass, which ends
/// after the last of them. A position that one site leaves out is left out at all, so that the sites stay aligned.
template <LanguageModel M>
class Collector {
 public:
  static constexpr std::size_t median_rows = 4096;

  /// Keeps a reference to the model. Errors: ValueError for no site, the same site twice, no window, options out of range.
  Collector(M& model, Windows windows, std::vector<Site> sites, const CollectOptions& options = {})
      : model_(&model), windows_(std::move(windows)), sites_(std::move(sites)), options_(options), width_(model.shape().width) {
    options_.check();
    if (sites_.empty()) throw_value("collect: there is no site to collect");
    for (std::size_t s = 0; s < sites_.size(); ++s)
      if (std::find(sites_.begin(), sites_.begin() + static_cast<std::ptrdiff_t>(s), sites_[s]) !=
          sites_.begin() + static_cast<std::ptrdiff_t>(s))
        throw_value("collect: the site ", to_string(sites_[s]), " is asked for twice");
    if (windows_.count() == 0) throw_value("collect: there is no window");
    rows_.resize(sites_.size());
    norms_.resize(sites_.size());
    if (options_.max_norm == 0) limits_.assign(sites_.size(), std::numeric_limits<double>::infinity());
  }

  /// Rows of the next windows: of as many as the medians need at first, then of one. False at the end of the text.
  /// The rows are valid until the next call; there may be none.
  bool next() {
    clear_rows();
    if (window_ == windows_.count()) return false;
    do run_window();
    while (limits_.empty() && rows_for_medians() < median_rows && window_ < windows_.count());
    if (limits_.empty()) find_limits();
    filter();
    counts_.kept += std::count(kept_.begin(), kept_.end(), std::uint8_t{1});
    return true;
  }
  CollectedRows rows() const {
    CollectedRows out{origins_, {}, kept_};
    for (const Buffer<float>& site : rows_) out.sites.emplace_back(site.data(), static_cast<Index>(origins_.size()), width_);
    return out;
  }

  Index width() const { return width_; }  ///< D
  const Windows& windows() const { return windows_; }
  std::span<const Site> sites() const { return sites_; }
  Index windows_done() const { return window_; }
  const CollectCounts& counts() const { return counts_; }
  /// Largest norm that is kept, of each site; empty before the first rows, infinity where none is left out.
  std::span<const double> limits() const { return limits_; }

  /// Goes back to where `windows_done`, `counts` and `limits` of a collector of the same data stood.
  void restore(Index windows_done, const CollectCounts& counts, std::vector<double> limits) {
    if (windows_done < 0 || windows_done > windows_.count())
      throw_value("collect: window ", windows_done, " to go on from is not in [0, ", windows_.count(), "]");
    if (!(limits.empty() && windows_done == 0) && limits.size() != sites_.size())
      throw_value("collect: ", limits.size(), " norm limits to go on with for ", sites_.size(), " sites");
    window_ = windows_done;
    counts_ = counts;
    limits_ = std::move(limits);
    if (limits_.empty() && options_.max_norm == 0) limits_.assign(sites_.size(), std::numeric_limits<double>::infinity());
    clear_rows();
  }
  /// Back to the first window; the limits stay.
  void rewind() {
    window_ = 0;
    clear_rows();
  }

 private:
  void clear_rows() {
    origins_.clear();
    kept_.clear();
    for (auto& site : rows_) site.clear();
    for (auto& site : norms_) site.clear();
  }

  /// Appends the rows of the next window, all but those that are out whatever the limits.
  void run_window() {
    const std::span<const Token> tokens = windows_[window_];
    const auto count = tokens.size(), width = static_cast<std::size_t>(width_);
    std::vector<std::vector<double>> norms(sites_.size(), std::vector<double>(count));
    std::vector<std::size_t> offsets;
    std::vector<Tap> taps;
    for (std::size_t s = 0; s < sites_.size(); ++s) {
      offsets.push_back(rows_[s].size());
      taps.push_back({sites_[s], [&rows = rows_[s], &norm = norms[s]](MatrixMap<float> x, Index first) {
                        rows.insert(rows.end(), x.data(), x.data() + x.size());
                        for (Index t = 0; t < x.rows(); ++t)
                          norm[static_cast<std::size_t>(first + t)] = row_norm(x.row(t).data(), x.cols());
                      }});
    }
    model_->run(tokens, std::span<const Tap>(taps), {.stop_after_last_tap = true});
    for (std::size_t s = 0; s < sites_.size(); ++s)
      if (rows_[s].size() != offsets[s] + count * width)
        throw_host("collect: the model showed ", (rows_[s].size() - offsets[s]) / width, " rows of ", to_string(sites_[s]),
                   ", not ", count);

    std::size_t kept = 0;
    for (std::size_t t = 0; t < count; ++t) {
      const bool bos = windows_.has_bos() && t == 0;
      bool finite = true;
      for (const auto& norm : norms) finite = finite && std::isfinite(norm[t]);
      const bool out = bos && !options_.keep_bos;
      if (out) {
        ++counts_.bos;
      } else if (!finite) {
        ++counts_.not_finite;
      }
      if (finite && (!out || options_.hand_out_all)) {
        for (std::size_t s = 0; s < sites_.size(); ++s) {
          move_row(rows_[s], offsets[s] / width + t, offsets[s] / width + kept);
          norms_[s].push_back(norms[s][t]);
        }
        origins_.push_back({tokens[t], static_cast<std::int32_t>(window_), static_cast<std::int32_t>(t)});
        kept_.push_back(out ? 0 : 1);
        ++kept;
      }
    }
    for (auto& rows : rows_) rows.resize(origins_.size() * width);
    ++window_;
  }

  bool is_bos(std::size_t row) const { return windows_.has_bos() && origins_[row].position == 0; }

  std::size_t rows_for_medians() const {
    std::size_t out = 0;
    for (std::size_t i = 0; i < origins_.size(); ++i) out += !is_bos(i);
    return out;
  }
  void find_limits() {
    for (const auto& norms : norms_) {
      std::vector<double> sample;
      for (std::size_t i = 0; i < norms.size() && sample.size() < median_rows; ++i)
        if (!is_bos(i)) sample.push_back(norms[i]);
      limits_.push_back(norm_limit(std::move(sample), options_.max_norm));
    }
  }

  void filter() {
    std::size_t kept = 0;
    for (std::size_t i = 0; i < origins_.size(); ++i) {
      bool keep = true;
      for (std::size_t s = 0; s < sites_.size(); ++s) keep = keep && norms_[s][i] <= limits_[s];
      const bool out = !keep && !is_bos(i);
      if (out) ++counts_.norm;
      if (out && !options_.hand_out_all) continue;
      for (auto& rows : rows_) move_row(rows, i, kept);
      kept_[kept] = out ? 0 : kept_[i];
      origins_[kept++] = origins_[i];
    }
    origins_.resize(kept);
    kept_.resize(kept);
    for (auto& rows : rows_) rows.resize(kept * static_cast<std::size_t>(width_));
  }

  void move_row(Buffer<float>& rows, std::size_t from, std::size_t to) const {
    if (from == to) return;
    const auto width = static_cast<std::size_t>(width_);
    std::copy_n(rows.data() + from * width, width, rows.data() + to * width);
  }

  M* model_;
  Windows windows_;
  std::vector<Site> sites_;
  CollectOptions options_;
  Index width_ = 0, window_ = 0;
  CollectCounts counts_;
  std::vector<double> limits_;
  std::vector<RowOrigin> origins_;
  std::vector<std::uint8_t> kept_;          // of each row: it passes the filter
  std::vector<Buffer<float>> rows_;         // of each site
  std::vector<std::vector<double>> norms_;  // of each site
};

/// Everything that `collect` can say afterwards.
struct CollectReport {
  CollectCounts counts;
  Index windows = 0;           ///< run
  std::vector<double> limits;  ///< largest norm kept, of each site
};

/// Hands every row that passes the filter to `sink(const CollectedRows&, Index windows_done)`, in the order of the text. A sink
/// that returns false ends the collection; one that returns nothing sees all.
template <LanguageModel M, class Sink>
CollectReport collect(M& model, const Windows& windows, std::span<const Site> sites, Sink&& sink,
                      const CollectOptions& options = {}) {
  Collector<M> collector(model, windows, {sites.begin(), sites.end()}, options);
  while (collector.next()) {
    if constexpr (std::is_convertible_v<decltype(sink(collector.rows(), Index{})), bool>) {
      if (!sink(collector.rows(), collector.windows_done())) break;
    } else {
      sink(collector.rows(), collector.windows_done());
    }
  }
  const std::span<const double> limits = collector.limits();
  return {collector.counts(), collector.windows_done(), {limits.begin(), limits.end()}};
}

/// A `RowSource` that runs the language model as it goes: nothing is written, a text of any length can be read.
///
/// With several sites a row holds them side by side, [site 0 | site 1 | ...], so width() is their number times D (a crosscoder
/// or a transcoder reads it in parts). Rows come in the order of the text: shuffle them (data/shuffle_buffer.hpp).
template <LanguageModel M>
class ActivationSource {
 public:
  /// `passes` over the text, 0: without end. Keeps a reference to the model.
  ActivationSource(M& model, Windows windows, std::vector<Site> sites, const CollectOptions& options = {}, Index passes = 1)
      : collector_(model, std::move(windows), std::move(sites), options), passes_(passes) {
    if (passes < 0) throw_value("ActivationSource: passes = ", passes, " is negative (0 goes on without end)");
    if (options.hand_out_all) throw_value("ActivationSource: hand_out_all is for who looks at CollectedRows::kept");
  }

  Index width() const { return collector_.width() * static_cast<Index>(collector_.sites().size()); }
  bool endless() const { return passes_ == 0; }
  /// Rows of all passes so far.
  const CollectCounts& counts() const { return collector_.counts(); }
  const Collector<M>& collector() const { return collector_; }

  /// Fills the first rows of `batch` [B x width()]; returns how many: fewer than B at the end only, then 0.
  Index next(Tensor<float>& batch) {
    if (batch.cols() != width())
      throw_shape("ActivationSource: a batch of width ", batch.cols(), " for rows of width ", width());
    Index filled = 0;
    while (filled < batch.rows() && (taken_ < pending_.rows() || refill())) {
      const Index count = (std::min)(batch.rows() - filled, pending_.rows() - taken_);
      std::copy_n(pending_.row(taken_), count * width(), batch.row(filled));
      taken_ += count;
      filled += count;
    }
    return filled;
  }

  /// Counters: windows done in this pass, passes done, what was kept and left out, the norm limits' bits.
  SourceState state() const {
    const CollectCounts& counts = collector_.counts();
    SourceState state;
    for (const Index n : {collector_.windows_done(), pass_, counts.kept, counts.bos, counts.norm, counts.not_finite})
      state.counters.push_back(static_cast<std::uint64_t>(n));
    for (const double limit : collector_.limits()) state.counters.push_back(std::bit_cast<std::uint64_t>(limit));
    state.rows.resize(pending_.rows() - taken_, width());
    std::copy_n(pending_.row(taken_), state.rows.size(), state.rows.data());
    return state;
  }
  /// Errors: ValueError where the state is not of a source of this text and these sites.
  void restore(const SourceState& state) {
    const std::vector<std::uint64_t>& counters = state.counters;
    if (counters.size() < fixed_counters || (state.rows.rows() > 0 && state.rows.cols() != width()))
      throw_value("ActivationSource: a state of ", counters.size(), " counters and rows of width ", state.rows.cols(),
                  " is not one of this source (width ", width(), ")");
    const auto number = [&](std::size_t i) { return static_cast<Index>(counters[i]); };
    std::vector<double> limits;
    for (std::size_t i = fixed_counters; i < counters.size(); ++i) limits.push_back(std::bit_cast<double>(counters[i]));
    collector_.restore(number(0), {number(2), number(3), number(4), number(5)}, std::move(limits));
    pass_ = number(1);
    pending_ = state.rows;
    taken_ = 0;
  }

 private:
  static constexpr std::size_t fixed_counters = 6;

  /// Reads on; false at the end of the last pass. A text that yields no row at all is an end, too.
  bool refill() {
    for (;;) {
      if (!collector_.next()) {
        if ((passes_ != 0 && pass_ + 1 >= passes_) || collector_.counts().kept == 0) return false;
        ++pass_;
        collector_.rewind();
        continue;
      }
      const CollectedRows rows = collector_.rows();
      if (rows.origins.empty()) continue;
      pending_.resize(static_cast<Index>(rows.origins.size()), width());
      MatrixMap<float> out = pending_.map();
      for (std::size_t s = 0; s < rows.sites.size(); ++s)
        out.middleCols(static_cast<Index>(s) * collector_.width(), collector_.width()) = rows.sites[s];
      taken_ = 0;
      return true;
    }
  }

  Collector<M> collector_;
  Index passes_ = 1, pass_ = 0, taken_ = 0;
  Tensor<float> pending_;
};

}  // namespace sae::inline SAE_ABI
