#pragma once
#include <sae/activations/selection.hpp>
#include <sae/kernels/largest.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <string_view>
#include <vector>

namespace sae::inline SAE_ABI {

/// How the running mean of BatchTopK's threshold starts. r is the rate, s_1, s_2, ... the values, n of them:
enum class ThresholdAverage {
  bias_corrected,  ///< sum_t r (1-r)^(n-t) s_t / (1 - (1-r)^n): the weights add up to 1 from the first value on
  from_zero,       ///< sum_t r (1-r)^(n-t) s_t: as if values of 0 had come before (SAELens; low by (1-r)^n)
  from_first,      ///< the first value has the weight (1-r)^(n-1) (dictionary_learning)
};

/// BatchTopK: of all pre-activations of a batch the k B largest stay, so that a row may have more latents than another.
///
///   f[b,i] = z[b,i]  if z[b,i] is positive and among the floor(k B) largest of the batch, else 0
///
/// What a row is encoded to depends on the rows beside it. For use row by row there is a threshold that a training learns
/// (`observe`): the running mean over its batches of the smallest positive key that was kept, in the units of z (of z |W_dec[i]|
/// where that ranks). With it the model becomes a JumpReLU (models/jump_relu_conversion.hpp).
///
/// Ties    equal keys stay in ascending order of (row, latent), so that a result never depends on tiles or threads.
/// NaN     never kept.
/// Cost    one comparison a pre-activation; about floor(k B) ln(B F / k B) entries that are above the bound of their time, and a
///         compaction of 2 floor(k B) entries each time as many have come. Memory 2 floor(k B) entries for all blocks together.
/// Threads the blocks share what they have kept so far behind a lock, which each takes once in 512 entries.
/// Source  Bussmann et al. 2024, arXiv:2412.06410; SAELens 6.54 saes/batchtopk_sae.py; dictionary_learning trainers/batch_top_k.py.
struct BatchTopK {
  double k = 32;  ///< latents kept per row in the mean, 0 < k <= F; need not be a whole number
  /// Rank by z |W_dec[i]| instead of z, as TopK::rank_by_decoder_norm.
  bool rank_by_decoder_norm = false;
  double threshold_rate = 0.01;  ///< r in (0, 1] (SAELens 0.01, dictionary_learning 0.001)
  Index threshold_from = 0;  ///< training batches that are not counted, >= 0 (dictionary_learning: threshold_start_step + 1)
  ThresholdAverage threshold_average = ThresholdAverage::bias_corrected;

  static constexpr std::string_view name = "batch_topk";
  static constexpr bool has_row_k = true;

  template <class Visitor>
  void visit_settings(Visitor&& visitor) const {
    visitor("k", k);
    visitor("rank_by_decoder_norm", rank_by_decoder_norm);
    visitor("threshold_rate", threshold_rate);
    visitor("threshold_from", threshold_from);
    visitor("threshold_average", std::string_view(threshold_average == ThresholdAverage::bias_corrected ? "bias_corrected"
                                                  : threshold_average == ThresholdAverage::from_zero    ? "from_zero"
                                                                                                        : "from_first"));
  }
  void check(Index latents) const {
    if (!(k > 0 && k <= static_cast<double>(latents)))
      throw_value("BatchTopK: k = ", k, " is not in (0, ", latents, "] (the number of latents)");
    if (!(threshold_rate > 0 && threshold_rate <= 1))
      throw_value("BatchTopK: threshold_rate = ", threshold_rate, " is not in (0, 1]");
    require_non_negative("BatchTopK: threshold_from", threshold_from);
  }
  bool needs_decoder_norms() const { return rank_by_decoder_norm; }
  /// floor(k rows): entries that a batch keeps. A batch of less than 1 / k rows keeps none.
  Index wanted(Index rows) const { return static_cast<Index>(k * static_cast<double>(rows)); }

  /// Nothing that is trained, but what the training has seen.
  template <class Scalar_>
  struct Parameters {
    using Scalar = Scalar_;
    /// [1 x 3]: the mean that starts at 0, in units of the keys; the weight of the values in it, 0 before the first; the number of
    /// batches observed, counted or not.
    Tensor<double> threshold_state;

    void resize(Index /*latents*/) { threshold_state.resize(1, 3); }
    void initialize(const BatchTopK&) {}
    template <class Visitor, class... Sets>
    static void visit(Visitor&&, Sets&...) {}
    /// As `visit`, for what no optimizer moves but a checkpoint keeps.
    template <class Visitor, class... Sets>
    static void visit_state(Visitor&& visitor, Sets&... sets) {
      visitor(std::string_view("threshold_state"), sets.threshold_state...);
    }
    /// The keys are z or z |W_dec[i]|: of one power of z both, and the decoder keeps its norms.
    void rescale(Scalar factor) {
      if (threshold_state.size() > 0) threshold_state[0] *= static_cast<double>(factor);
    }
    /// A key z |W_dec[i]| is the same after its norm was folded, and a rank by z is never folded.
    void rescale_latent(Index /*latent*/, Scalar /*factor*/) {}
    void constrain() {}
  };

  /// The threshold that the training has learnt so far; NaN before the first batch that counts.
  template <class Scalar>
  double threshold(const Parameters<Scalar>& state) const {
    const auto& s = state.threshold_state;
    if (s.size() == 0 || !(s[1] > 0)) return std::numeric_limits<double>::quiet_NaN();
    return threshold_average == ThresholdAverage::bias_corrected ? s[0] / s[1] : s[0];
  }

  template <class Scalar>
  class Selector {
   public:
    void begin(const BatchTopK& config, const Parameters<Scalar>&, std::span<const Scalar> decoder_norms, Index rows) {
      config_ = &config;
      norms_ = config.rank_by_decoder_norm ? decoder_norms : std::span<const Scalar>();
      rows_ = rows;
      pool_ = nullptr;
      floor_ = Scalar(0);
      guess_ = Scalar(0);
      above_guess_ = 0;
      fresh_.clear();
    }
    /// Once, in one thread, when all blocks of a batch have begun: from here on they share what they keep and drop what cannot
    /// matter. (Without this call the result is the same, but everything positive is kept until `merge`.)
    static void link(std::span<Selector> blocks) {
      if (blocks.empty()) return;
      Index rows = 0;
      for (Selector& block : blocks) {
        block.first_row_ = rows;
        rows += block.rows_;
      }
      Selector& owner = blocks.front();
      if (owner.own_ == nullptr) owner.own_ = std::make_unique<Pool>();
      owner.own_->begin(owner.config_->wanted(rows));
      for (Selector& block : blocks) {
        block.guess_ = Scalar(0.85) * owner.own_->smallest();
        block.pool_ = owner.own_.get();
        block.floor_ = block.pool_->floor();
      }
    }
    Scalar bound(Index /*row*/) const { return floor_; }
    void take(Index row, Index first, std::span<const Scalar> z) {
      const auto bound = [&] { return floor_; };
      const auto keep = [&](Index j, Scalar key) {
        above_guess_ += key >= guess_;
        offer({key, z[static_cast<std::size_t>(j)], static_cast<int>(row), static_cast<int>(first + j)});
      };
      if (norms_.empty()) return kernels::visit_above(z, bound, [&](Index j) { keep(j, z[static_cast<std::size_t>(j)]); });
      const Scalar *const values = z.data(), *const norms = norms_.data() + first;
      kernels::visit_keys_above<Scalar>(
          static_cast<Index>(z.size()), [&](Index j) { return values[j] * norms[j]; }, bound, keep);
    }
    /// Everything above a guess, somewhat less than the smallest key of the last batch.
    std::optional<ScreenRule> screened() const requires(std::is_same_v<Scalar, float>) {
      if (!(guess_ > 0)) return std::nullopt;
      return ScreenRule{.bound = guess_, .norms = norms_.empty() ? nullptr : norms_.data()};
    }
    void offer(Index row, Index latent, Scalar z) {
      const Scalar key = norms_.empty() ? z : z * norms_[static_cast<std::size_t>(latent)];
      above_guess_ += key >= guess_;
      offer({key, z, static_cast<int>(row), static_cast<int>(latent)});
    }
    /// Where as many are above the guess as are kept, the smallest key that is kept is above it, and nothing that counts was left out;
    /// also where the pool's floor has passed it.
    static bool screen_holds(std::span<const Selector> blocks) {
      Index above = 0, rows = 0;
      for (const Selector& block : blocks) {
        above += block.above_guess_;
        rows += block.rows_;
      }
      const Selector& owner = blocks.front();
      return above >= owner.config_->wanted(rows) || owner.pool_->floor() >= owner.guess_;
    }
    static void merge(std::span<Selector> blocks) {
      if (blocks.empty()) return;
      if (blocks.front().pool_ == nullptr) link(blocks);
      Pool& pool = *blocks.front().pool_;
      for (Selector& block : blocks) block.flush();
      auto block = blocks.begin();
      for (Kept e : pool.finish()) {
        while (e.row < block->first_row_) --block;
        while (e.row >= block->first_row_ + block->rows_) ++block;
        e.row -= static_cast<int>(block->first_row_);
        block->fresh_.push_back(e);
      }
      for (Selector& each : blocks) {
        each.sorted_ = false;
        each.next_ = 0;
      }
    }
    void emit(Index row, Entries<Scalar>& active, Entries<Scalar>& /*band*/) {
      if (!sorted_)
        std::sort(fresh_.begin(), fresh_.end(),
                  [](const Kept& a, const Kept& b) { return a.row < b.row || (a.row == b.row && a.latent < b.latent); });
      sorted_ = true;
      for (; next_ < fresh_.size() && fresh_[next_].row == row; ++next_)
        active.push(fresh_[next_].latent, fresh_[next_].z, fresh_[next_].z);
    }
    /// Smallest key that the whole batch kept (all are positive); NaN where it kept none. After `merge`.
    Scalar smallest_key() const { return pool_->smallest(); }

   private:
    struct Kept {
      Scalar key, z;
      int row, latent;
    };
    static bool before(const Kept& a, const Kept& b) {
      if (a.key != b.key) return a.key > b.key;
      return a.row < b.row || (a.row == b.row && a.latent < b.latent);
    }

    /// The `wanted` first of all entries added so far, by (larger key, lower row, lower latent), and some more. An entry is dropped
    /// only when `wanted` others are before it, so what remains in the end does not depend on the order in which blocks add.
    class Pool {
     public:
      void begin(Index wanted) {
        wanted_ = static_cast<std::size_t>(wanted);
        kept_.clear();
        last_.reset();
        floor_ = wanted > 0 ? Scalar(0) : std::numeric_limits<Scalar>::infinity();
      }
      /// Keys at or below it are beaten by enough others, whatever their row.
      Scalar floor() const { return floor_; }
      Scalar add(const std::vector<Kept>& fresh, Index first_row) {
        const std::lock_guard lock(mutex_);
        if (wanted_ == 0) return floor_;  // nothing is kept: there is no last entry to rank by
        for (Kept e : fresh) {
          if (kept_.size() >= 2 * wanted_ + 64) compact();
          e.row += static_cast<int>(first_row);
          if (!last_ || before(e, *last_)) kept_.push_back(e);
        }
        return floor_;
      }
      const std::vector<Kept>& finish() {
        if (kept_.size() > wanted_) compact();
        smallest_ = std::numeric_limits<Scalar>::quiet_NaN();
        for (const Kept& e : kept_)
          if (!(e.key >= smallest_)) smallest_ = e.key;
        return kept_;
      }
      Scalar smallest() const { return smallest_; }

     private:
      void compact() {
        const auto last = kept_.begin() + static_cast<std::ptrdiff_t>(wanted_ - 1);
        std::nth_element(kept_.begin(), last, kept_.end(), before);
        last_ = *last;
        kept_.resize(wanted_);
        floor_ = std::nextafter(last_->key, Scalar(0));  // a key equal to the last one's may have a lower row
      }
      std::mutex mutex_;
      std::size_t wanted_ = 0;
      std::vector<Kept> kept_;
      std::optional<Kept> last_;
      Scalar floor_ = 0, smallest_ = 0;
    };

    void offer(const Kept& e) {
      if (!(e.key > floor_)) return;
      if (pool_ != nullptr && fresh_.size() >= 512) {
        flush();
        if (!(e.key > floor_)) return;
      }
      fresh_.push_back(e);
    }
    void flush() {
      floor_ = pool_->add(fresh_, first_row_);
      fresh_.clear();
    }

    const BatchTopK* config_ = nullptr;
    std::span<const Scalar> norms_;
    Index rows_ = 0, first_row_ = 0;
    Scalar floor_ = 0, guess_ = 0;
    Index above_guess_ = 0;
    std::vector<Kept> fresh_;  ///< not yet in the pool, by rows of the block; after `merge` what the block has won
    std::size_t next_ = 0;
    bool sorted_ = false;
    Pool* pool_ = nullptr;
    std::unique_ptr<Pool> own_;  ///< the first block's is everybody's
  };

  /// The selection is a constant, relu passes where f > 0 (every entry that was emitted).
  template <class Scalar>
  void backward(const Backward<Scalar>& at, const Parameters<Scalar>&, Parameters<Scalar>& /*gradient*/) const {
    for (std::size_t e = 0; e < at.dz.size(); ++e) at.dz[e] = at.df[e];
  }

  /// After the forward of a training batch: the smallest key it kept enters the running threshold. A batch that kept none does not
  /// count.
  template <class Scalar>
  void observe(std::span<const Selector<Scalar>> blocks, Parameters<Scalar>& state) const {
    if (blocks.empty()) return;
    auto& s = state.threshold_state;
    const bool counts = s[2] >= static_cast<double>(threshold_from);
    s[2] += 1;
    const auto value = static_cast<double>(blocks.front().smallest_key());
    if (!counts || !std::isfinite(value)) return;
    const double rate = threshold_average == ThresholdAverage::from_first && s[1] == 0 ? 1.0 : threshold_rate;
    s[0] += rate * (value - s[0]);
    s[1] += rate * (1 - s[1]);
  }
};

}  // namespace sae::inline SAE_ABI
