#pragma once
#include <sae/core/pool.hpp>
#include <sae/core/threads.hpp>
#include <sae/kernels/pursuit.hpp>
#include <sae/models/screen.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <type_traits>
#include <vector>

// The best match argmax_i r . w_i of a residual r that loses a multiple of a w_i in each round, without computing all products.
//
// Kept are upper bounds t_i >= r . w_i. Where r becomes r - v w_c, v > 0, and g_ci <= w_c . w_i is known,
//
//   t_i - v g_ci >= (r - v w_c) . w_i,
//
// a pass over F numbers in the place of a product F x D. Products are computed, in float32 as a product of all would, of those latents
// whose bounds lie above the largest one found; each makes its bound good for the rounds that follow. What rounding can do is added to
// all bounds, so that the match is that of all products, to the last bit.
namespace sae::inline SAE_ABI::detail {

/// Lower bounds of w_c . w_i for all pairs of rows of w [F x D], a byte each: step(c) row(c)[i].
class GramBounds {
 public:
  static constexpr Index most_latents = 6144;  ///< 36 MiB
  static constexpr Index block_rows = 48;

  /// False where some row is not finite: then there is nothing to rely on. \param bytes  room for F^2
  bool build(const float* w, Index latents, Index width, std::int8_t* bytes, Pool<Screen>& screens, Threads& threads) {
    latents_ = latents;
    weights_.see({}, width);
    weights_.build(w, nullptr, latents, width, {}, threads);
    if (!weights_.finite()) return false;
    bytes_ = bytes;
    for (auto* const of : {&step_, &square_}) of->resize(static_cast<std::size_t>(latents));
    norm_.assign(static_cast<std::size_t>((latents + block_rows - 1) / block_rows), 0.0F);
    const float share = rounding_share(width);
    threads.for_blocks(latents, block_rows, [&](Index begin, Index end, Index block) {
      auto screen = screens.borrow();
      screen->bound_all(weights_, w + begin * width, end - begin);
      for (Index c = begin; c < end; ++c) {
        const auto at = static_cast<std::size_t>(c);
        const std::span<float> lower = screen->lower(c - begin);
        lower[at] = 0;  // see `square`
        float least, most;
        kernels::detail::float_kernels().range(lower.data(), latents, &least, &most);
        step_[at] = std::max(std::max(-least, most) * (1.00001F / 127), 1e-30F);
        weights_.loops().round_down(lower.data(), latents, step_[at], bytes_ + c * latents);
        const float square = kernels::squared_norm(w + c * width, width);
        square_[at] = square * (1 - 2 * share);
        float& largest = norm_[static_cast<std::size_t>(block)];
        largest = std::max(largest, norm_above(square, width));
      }
    });
    most_norm_ = *std::max_element(norm_.begin(), norm_.end());
    return true;
  }
  Index latents() const { return latents_; }
  const std::int8_t* row(Index c) const { return bytes_ + c * latents_; }
  float step(Index c) const { return step_[static_cast<std::size_t>(c)]; }
  float square(Index c) const { return square_[static_cast<std::size_t>(c)]; }  ///< of |w_c|^2 itself
  float most_norm() const { return most_norm_; }                                ///< no |w_i| is larger

 private:
  ScreenWeights weights_;
  std::int8_t* bytes_ = nullptr;
  std::vector<float> step_, square_, norm_;
  Index latents_ = 0;
  float most_norm_ = 0;
};

/// The bounds of one row on its way.
class FollowedRow {
 public:
  static constexpr int none = -1, unknown = -2;

  /// \param upper  of r . w_i, as a screen knows them; they change with the row, and stay where they are
  void begin(const GramBounds& gram, const kernels::detail::ScreenKernels& loops, const float* w, Index width, const float* r,
             std::span<float> upper) {
    gram_ = &gram;
    loops_ = &loops;
    w_ = w;
    width_ = width;
    bounds_ = upper;
    const auto room = upper.size();
    if (places_.size() < room + 15) {
      places_.resize(room + 15);
      keys_.resize(room);
      products_.resize(room);
      seen_.resize(room);
    }
    std::fill_n(seen_.begin(), room, 0);
    round_ = 0;
    computed_ = 0;
    lost_ = 0;
    measure(r);
    float least;
    kernels::detail::float_kernels().range(upper.data(), static_cast<Index>(room), &least, &top_);
    reach_ = 0.1F * std::abs(top_);
  }
  /// The lowest i with the largest r . w_i above 0; `none` where there is none; `unknown` where so much would have to be computed that
  /// new bounds cost less, or numbers are not finite.
  int best(const float* r) {
    if (!std::isfinite(slack_)) return unknown;
    ++round_;
    float high = 0;
    int latent = none;
    const auto latents = static_cast<Index>(bounds_.size());
    const auto bound = [&] { return below(static_cast<double>(high) - slack_); };
    bool all = false;
    for (float from = std::max(bound(), top_ - reach_); !all; from = bound()) {
      all = from <= bound();
      Index count = loops_->at_least(bounds_.data(), latents, from, places_.data());
      if (!all || round_ == 1) reach_ *= count > 6 ? 0.7F : count < 3 ? 1.4F : 1.0F;
      for (;;) {
        count = those_left(count, bound());
        if (count == 0) break;
        Index take = count;
        if (count > together) take = put_first(count, kernels::toward_kth_largest(keys_.data(), count, together, -largest, 12));
        if ((computed_ += take) > (round_ == 1 ? latents / 8 : latents / 32 + together / 2 * round_)) return unknown;
        std::fill_n(products_.data(), take, 0.0F);
        kernels::detail::float_kernels().inner_of(r, w_, width_, width_, places_.data(), take, products_.data());
        for (Index n = 0; n < take; ++n) {
          const int i = places_[static_cast<std::size_t>(n)];
          const float z = products_[static_cast<std::size_t>(n)];
          if (!std::isfinite(z)) return unknown;
          bounds_[static_cast<std::size_t>(i)] = above(static_cast<double>(z) + rounding_ - lost_);
          seen_[static_cast<std::size_t>(i)] = round_;
          if (z > high || (z == high && i < latent)) {
            high = z;
            latent = i;
          }
        }
        std::copy_n(places_.begin() + take, count - take, places_.begin());
        count -= take;
      }
    }
    return latent;
  }
  /// r is now what it was less v > 0 times w[latent], which `best` found.
  void follow(int latent, float v, const float* r) {
    const Index c = latent;
    float& own = bounds_[static_cast<std::size_t>(latent)];
    const float before = own, step = gram_->step(c);
    top_ = loops_->add_bytes(bounds_.data(), -v * step, gram_->row(c), static_cast<Index>(bounds_.size()));
    own = std::min(own, above(static_cast<double>(before) - static_cast<double>(v) * static_cast<double>(gram_->square(c))));
    const double size_before = size_;
    measure(r);
    // Of r and of the sums: each is off by half a unit in its last place, and none is larger than this.
    const double most = (size_before + size_ + static_cast<double>(v) * static_cast<double>(gram_->most_norm())) *
                            static_cast<double>(gram_->most_norm()) +
                        128 * static_cast<double>(v) * static_cast<double>(step) + std::abs(static_cast<double>(top_));
    lost_ += 0x1p-22 * most + 1e-35;
    slack_ = lost_ + rounding_;
  }
  Index computed() const { return computed_; }

 private:
  static constexpr Index together = 8;  ///< products that are computed before the others' bounds are looked at again
  static constexpr float largest = std::numeric_limits<float>::max();

  static float below(double x) { return static_cast<float>(x - 3e-7 * std::abs(x) - 1e-37); }
  static float above(double x) { return static_cast<float>(x + 3e-7 * std::abs(x) + 1e-37); }
  void measure(const float* r) {
    size_ = static_cast<double>(norm_above(kernels::squared_norm(r, width_), width_));
    rounding_ = static_cast<double>(rounding_share(width_)) * size_ * static_cast<double>(gram_->most_norm()) + 1e-35;
    slack_ = lost_ + rounding_;
  }
  /// Of the first `count` places those that were not computed in this round and may still matter, with their bounds in keys_.
  Index those_left(Index count, float bound) {
    Index left = 0;
    for (Index n = 0; n < count; ++n) {
      const int i = places_[static_cast<std::size_t>(n)];
      const float key = bounds_[static_cast<std::size_t>(i)];
      places_[static_cast<std::size_t>(left)] = i;
      keys_[static_cast<std::size_t>(left)] = key;
      left += key >= bound && seen_[static_cast<std::size_t>(i)] != round_;
    }
    return left;
  }
  /// Brings those with keys of at least `least` to the front.
  Index put_first(Index count, float least) {
    Index front = 0;
    for (Index n = 0; n < count; ++n)
      if (keys_[static_cast<std::size_t>(n)] >= least)
        std::swap(places_[static_cast<std::size_t>(n)], places_[static_cast<std::size_t>(front++)]);
    return front;
  }

  const GramBounds* gram_ = nullptr;
  const kernels::detail::ScreenKernels* loops_ = nullptr;
  const float* w_ = nullptr;
  Index width_ = 0, computed_ = 0, round_ = 0;
  std::span<float> bounds_;                                ///< of r . w_i, `lost_` less
  double size_ = 0, rounding_ = 0, lost_ = 0, slack_ = 0;  ///< |r|; what rounding does to a product; to the bounds; both
  float top_ = 0, reach_ = 0;                              ///< no bound is above it; how far below those are looked at first
  std::vector<int> places_;
  std::vector<float> keys_, products_;
  std::vector<Index> seen_;  ///< the last round in which a latent was computed
};

/// What a pursuit looks for.
struct MatchRule {
  Index rounds = 0;           ///< of a row at most
  bool by_magnitude = false;  ///< |r . w_i|
  bool steps_along = false;   ///< a round takes v w_i from the residual, v > 0
};

/// Pursuits of the rows of a batch: each chooses one latent after another, the best match of its residual.
template <class Scalar>
class Matches {
 public:
  /// Goes over all rows. choose(row, latent, residual [D]) takes the latent in, changes the residual and returns whether the row goes on:
  /// where the rule steps along v, else anything but 0.
  template <class Choose>
  void pursue(const Tensor<Scalar>& w, const Tensor<Scalar>& input, const MatchRule& rule, bool weights_stay,
              ScratchPool<Scalar>& scratch, Threads& threads, const Choose& choose) {
    const Index width = input.cols();
    prepare(w, input, rule, weights_stay, threads);
    threads.for_blocks(input.rows(), block_rows, [&](Index begin, Index end, Index) {
      auto loan = scratch.borrow(block_rows * (2 * width + kernels::match_tile + 1));
      Block block{.residuals = loan.data(),
                  .scratch = loan.data() + 2 * block_rows * width,
                  .spare = loan.data() + block_rows * width,
                  .count = end - begin};
      std::copy_n(input.row(begin), block.count * width, block.residuals);
      std::iota(block.row.begin(), block.row.begin() + block.count, begin);
      std::fill_n(block.rounds.begin(), block.count, rule.rounds);
      if constexpr (std::is_same_v<Scalar, float>)
        if (follows_) follow(w, block, choose);
      while (block.count > 0) {
        find(w, rule, block);
        advance(block, width, [&](Index n) {
          const auto at = static_cast<std::size_t>(n);
          return block.rounds[at]-- > 0 && block.best[at] >= 0 &&
                 choose(block.row[at], block.best[at], block.residuals + n * width) != 0 && block.rounds[at] > 0;
        });
      }
    });
  }
  /// At least so many rows of numbers that the way back may use: until the next pursuit.
  Tensor<Scalar>& lend(Index rows, Index width) {
    gram_known_ = false;
    if (room_.rows() < rows || room_.cols() != width) room_.resize(rows, width);
    return room_;
  }
  /// Whether the last pursuit went by bounds that follow the residuals.
  bool follows() const { return follows_; }

 private:
  static constexpr Index block_rows = GramBounds::block_rows;
  /// Rows that go on.
  struct Block {
    Scalar *residuals, *scratch, *spare;  ///< [rows x width], for `best_matches`, [rows x width]
    Index count;
    std::array<Index, block_rows> row{}, rounds{};
    std::array<int, block_rows> best{};
    float level = 0;                ///< see Screen::find
    Index pause = 0, failures = 0;  ///< rounds until a screen that pruned too little is tried again; how often it did
  };
  /// Drops the rows n for which goes_on(n) is false.
  template <class GoesOn>
  static void advance(Block& block, Index width, const GoesOn& goes_on) {
    Index kept = 0;
    for (Index n = 0; n < block.count; ++n) {
      if (!goes_on(n)) continue;
      if (kept != n) std::copy_n(block.residuals + n * width, width, block.residuals + kept * width);
      block.row[static_cast<std::size_t>(kept)] = block.row[static_cast<std::size_t>(n)];
      block.rounds[static_cast<std::size_t>(kept++)] = block.rounds[static_cast<std::size_t>(n)];
    }
    block.count = kept;
  }

  void prepare(const Tensor<Scalar>& w, const Tensor<Scalar>& input, const MatchRule& rule, bool weights_stay,
               Threads& threads) {
    screens_ = follows_ = false;
    if constexpr (std::is_same_v<Scalar, float>) {
      const Index latents = w.rows(), width = w.cols(), products = input.rows() * rule.rounds;
      const bool known = weights_stay && of_ == w.data();
      if (!screen_pays(products, width, latents, {.k = 1}, known)) return;
      weights_.see({input.data(), static_cast<std::size_t>(input.size())}, width);
      if (!known || weights_.wants_building(w.data(), latents, width)) {
        weights_.forget();
        weights_.see({input.data(), static_cast<std::size_t>(input.size())}, width);
        weights_.build(w.data(), nullptr, latents, width, {}, threads);
        gram_known_ = false;
      }
      of_ = w.data();
      screens_ = weights_.finite();
      if (!screens_ || !rule.steps_along || latents > GramBounds::most_latents) return;
      if (!gram_known_ && products >= 2 * latents) {
        Tensor<float>& room = lend((latents * latents + 4 * width - 1) / (4 * width), width);
        gram_known_ = gram_.build(w.data(), latents, width, reinterpret_cast<std::int8_t*>(room.data()), pool_, threads);
      }
      follows_ = gram_known_;
    }
  }
  /// Goes all rounds of row after row. Rows whose bounds have become wide get new ones, together; those of which new bounds say too
  /// little are left.
  template <class Choose>
  void follow(const Tensor<float>& w, Block& block, const Choose& choose) {
    const Index width = w.cols();
    auto screen = pool_.borrow();
    auto row = followed_.borrow();
    Block left{.residuals = block.spare, .scratch = block.scratch, .spare = block.residuals, .count = 0};
    while (block.count > 0) {
      screen->bound_all(weights_, block.residuals, block.count);
      advance(block, width, [&](Index n) {
        const auto at = static_cast<std::size_t>(n);
        float* const residual = block.residuals + n * width;
        const std::span<float> upper = screen->upper(n);
        const bool bounded = static_cast<Index>(upper.size()) == w.rows();
        if (bounded) row->begin(gram_, weights_.loops(), w.data(), width, residual, upper);
        for (bool first = true; block.rounds[at] > 0; first = false) {
          const int latent = bounded ? row->best(residual) : FollowedRow::unknown;
          if (latent == FollowedRow::unknown && !first) return true;
          if (latent == FollowedRow::unknown) {
            std::copy_n(residual, width, left.residuals + left.count * width);
            left.row[static_cast<std::size_t>(left.count)] = block.row[at];
            left.rounds[static_cast<std::size_t>(left.count++)] = block.rounds[at];
            return false;
          }
          --block.rounds[at];
          if (latent == FollowedRow::none) return false;
          const float v = choose(block.row[at], latent, residual);
          if (v == 0) return false;
          row->follow(latent, v, residual);
        }
        return false;
      });
    }
    block = left;
  }
  /// The best match of each row of a block.
  void find(const Tensor<Scalar>& w, const MatchRule& rule, Block& block) {
    const Index latents = w.rows(), width = w.cols();
    const auto whole = [&](const Scalar* residuals, Index count, int* best) {
      kernels::best_matches(residuals, count, width, w.data(), latents, rule.by_magnitude, block.scratch,
                            std::span<int>(best, static_cast<std::size_t>(count)));
    };
    if constexpr (std::is_same_v<Scalar, float>) {
      if (screens_ && block.pause-- <= 0) {
        auto screen = pool_.borrow();
        const ScreenRule one{.k = 1, .magnitude = rule.by_magnitude};
        if (screen->find(weights_, block.residuals, block.count, one, block.level)) {
          block.pause = block.failures = 0;
          std::fill_n(block.best.begin(), block.count, -1);
          screen->for_each_value(block.residuals, w.data(), nullptr, width, one,
                                 [&](Index n, std::span<const int> of, std::span<const float> z) {
                                   float high = 0;
                                   for (std::size_t c = 0; c < of.size(); ++c) {
                                     const float key = rule.by_magnitude ? std::abs(z[c]) : z[c];
                                     if (!(key > high)) continue;
                                     high = key;
                                     block.best[static_cast<std::size_t>(n)] = of[c];
                                   }
                                 });
          float least = std::numeric_limits<float>::infinity();
          for (Index n = 0; n < block.count; ++n)
            if (const float level = screen->level(n); level > 0) least = std::min(least, level);
          block.level = std::isfinite(least) ? 0.75F * least : 0.0F;
          const auto left = screen->whole_rows();
          const auto count = static_cast<Index>(left.size());
          for (Index n = 0; n < count; ++n)
            std::copy_n(block.residuals + left[static_cast<std::size_t>(n)] * width, width, block.spare + n * width);
          std::array<int, block_rows> best;
          if (count > 0) whole(block.spare, count, best.data());
          for (Index n = 0; n < count; ++n)
            block.best[static_cast<std::size_t>(left[static_cast<std::size_t>(n)])] = best[static_cast<std::size_t>(n)];
          return;
        }
        block.failures = std::min<Index>(block.failures + 1, 4);
        block.pause = (Index{1} << block.failures) - 1;
        block.level = 0;
      }
    }
    whole(block.residuals, block.count, block.best.data());
  }

  ScreenWeights weights_;
  GramBounds gram_;
  Tensor<Scalar> room_;  ///< of the bytes of `gram_`
  Pool<Screen> pool_;
  Pool<FollowedRow> followed_;
  const void* of_ = nullptr;  ///< what they were built from
  bool gram_known_ = false, screens_ = false, follows_ = false;
};

}  // namespace sae::inline SAE_ABI::detail
