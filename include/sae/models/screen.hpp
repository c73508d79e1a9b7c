#pragma once
#include <sae/activations/screen_rule.hpp>
#include <sae/core/threads.hpp>
#include <sae/kernels/half_kernels.hpp>
#include <sae/kernels/largest.hpp>
#include <sae/kernels/screen_kernels.hpp>
#include <sae/kernels/vector.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

// Which pre-activations z[b,i] = x_b . w_i + b_i of float32 can be among the k largest of their row, found by products of small
// integers and bounds that hold, so that only those need be computed.
//
// With any g > 0, x' = x / g and w' = w g: x . w = x' . w'. Let x' = s q + e and w' = t p + f, q and p integers of 8 or 16 bits. Then
//
//   |x . w - s t q . p| <= |s q| |f| + |e| |w'|        (Cauchy and Schwarz)
//
// and what is called z differs from x . w + b by what rounding can do, at most (D / 8 + 4) 2^-24 (|x'| |w'| + |b|). A latent whose
// upper bound lies below the k-th largest lower bound of the row is not among the k largest, whatever the ties. z itself is a bound of
// both kinds: of those with the k largest lower bounds z is computed first, and excludes others.
// Where a threshold decides, what is excluded has an upper bound below it.
// g_d, powers of two, balance dimensions that are large in x against w (Xiao et al. 2022, arXiv:2211.10438, "SmoothQuant").
namespace sae::inline SAE_ABI::detail {

/// Upper bound of the root of a sum of n squares that was added in float32, squares too small for it included.
inline float norm_above(float squares, Index n) {
  const double size = static_cast<double>(n);
  return static_cast<float>((std::sqrt(static_cast<double>(squares)) + 2e-19 * std::sqrt(size)) * (1 + size * 0x1p-23 + 1e-6));
}
/// What rounding can do to z, as a share of |x'| |w'| and of |b|; and to the screen's own arithmetic.
inline float rounding_share(Index width) { return static_cast<float>((static_cast<double>(width) / 8 + 20) * 0x1p-24 * 1.1); }
/// What a code counts, of a row whose largest number this is; not so little that its inverse is infinite.
inline float screen_step(float largest, int codes) { return std::max(largest / static_cast<float>(codes), 1e-30F); }

/// Encoder rows w [F x D] and biases b [F] as the screen reads them.
class ScreenWeights {
 public:
  static constexpr Index largest_width = 60'000;  ///< for wider rows 32 bits might not hold a product
  static constexpr Index rows_for_balance = 64;

  /// Takes rows x [n x D] of those that will be screened, the first `rows_for_balance`, into the balance: any will do.
  void see(std::span<const float> rows, Index width) {
    if (squares_of_x_.size() != static_cast<std::size_t>(width)) {
      forget();
      squares_of_x_.assign(static_cast<std::size_t>(width), 0);
    }
    for (; !rows.empty() && seen_ < rows_for_balance; rows = rows.subspan(static_cast<std::size_t>(width)), ++seen_)
      for (std::size_t d = 0; d < squares_of_x_.size(); ++d)
        squares_of_x_[d] += static_cast<double>(rows[d]) * static_cast<double>(rows[d]);
  }
  /// Whether it was never built from these weights, or from far fewer rows than it has seen by now.
  bool wants_building(const void* w, Index latents, Index width) const {
    return w != of_ || latents != latents_ || width != width_ ||
           (seen_ > built_from_ && (seen_ == rows_for_balance || seen_ >= 8 * built_from_));
  }
  void forget() {
    squares_of_x_.clear();
    seen_ = built_from_ = 0;
    of_ = nullptr;
  }
  /// \param loops  what the codes are for; tests bring their own
  /// \tparam Rows  what points to rows of weights, narrow ones, too
  template <class Rows>
  void build(const Rows& w, const float* bias, Index latents, Index width, const ScreenRule& rule, Threads& threads,
             const kernels::detail::ScreenKernels& loops = kernels::detail::screen_kernels()) {
    of_ = nullptr;  // nothing, should a row not be readable
    latents_ = latents;
    width_ = width;
    loops_ = &loops;
    const Index panels = (latents + kernels::detail::screen_panel - 1) / kernels::detail::screen_panel,
                units = loops.units(width);
    const auto padded = static_cast<std::size_t>(panels * kernels::detail::screen_panel);
    codes_.resize(padded * static_cast<std::size_t>(4 * units));
    for (auto* const of : {&scale_, &bias_, &error_, &norm_, &slack_}) of->assign(padded, 0.0F);
    constexpr Index wide_room = kernels::is_wide<Rows, float> ? 0 : 1;  // of a number
    const float share = rounding_share(width);
    finite_.assign(static_cast<std::size_t>(panels), 1);
    constexpr Index block_panels = 4;
    const Index blocks = (panels + block_panels - 1) / block_panels;
    one_.resize(static_cast<std::size_t>(blocks * 4 * units));
    wide_.resize(static_cast<std::size_t>(wide_room * blocks * width));
    balance(w);
    threads.for_blocks(panels, block_panels, [&](Index begin, Index end, Index block) {
      std::uint8_t* const code = one_.data() + block * 4 * units;
      std::fill_n(code, 4 * units, std::uint8_t{0});
      for (Index panel = begin; panel < end; ++panel) {
        std::uint8_t* const to = codes_.data() + panel * kernels::detail::screen_panel * 4 * units;
        for (Index l = 0; l < kernels::detail::screen_panel; ++l) {
          const Index i = panel * kernels::detail::screen_panel + l;
          const auto at = static_cast<std::size_t>(i);
          if (i >= latents) {
            bias_[at] = std::numeric_limits<float>::quiet_NaN();  // never a candidate
            continue;
          }
          if (i + 1 < latents) kernels::prefetch(w + (i + 1) * width, width);
          const float* const row = kernels::wide(w + i * width, width, wide_.data() + wide_room * block * width);
          const float step = screen_step(loops.largest(row, balance_.data(), width), loops.largest_code(width));
          const auto sums = loops.quantise(row, balance_.data(), width, step, code);
          for (Index u = 0; u < units; ++u) {
            std::uint32_t unit;
            std::memcpy(&unit, code + 4 * u, 4);
            unit ^= loops.flip();
            std::memcpy(to + (u * kernels::detail::screen_panel + l) * 4, &unit, 4);
          }
          const float by = rule.norms == nullptr ? 1.0F : rule.norms[i];
          scale_[at] = by * step;
          error_[at] = by * (norm_above(sums.errors, width) * (1 + share));
          norm_[at] = by * norm_above(sums.squares, width);
          const float own = bias == nullptr ? 0.0F : by * bias[i],
                      shift = rule.shift == nullptr ? 0.0F : rule.sign * rule.shift[i];
          bias_[at] = own + shift;
          slack_[at] = share * (std::abs(own) + std::abs(shift)) + 1e-35F;
          if (!std::isfinite(error_[at]) || !std::isfinite(norm_[at]) || !std::isfinite(bias_[at]))
            finite_[static_cast<std::size_t>(panel)] = 0;
        }
      }
    });
    of_ = w;
    built_from_ = seen_;
  }
  /// Whether all weights are finite; else there is nothing to rely on.
  bool finite() const { return std::find(finite_.begin(), finite_.end(), 0) == finite_.end(); }
  Index latents() const { return latents_; }
  Index width() const { return width_; }
  const kernels::detail::ScreenKernels& loops() const { return *loops_; }
  const float* inverse_balance() const { return inverse_.data(); }
  kernels::detail::ScreenPanel panel(Index number) const {
    const Index first = number * kernels::detail::screen_panel;
    return {codes_.data() + first * 4 * loops_->units(width_),
            scale_.data() + first,
            bias_.data() + first,
            error_.data() + first,
            norm_.data() + first,
            slack_.data() + first};
  }

 private:
  /// g_d = sqrt(rms of x_d / rms of w_d) as a power of two.
  template <class Rows>
  void balance(const Rows& w) {
    const auto width = static_cast<std::size_t>(width_);
    const Index samples = std::min<Index>(latents_, 256), apart = latents_ / samples;
    std::vector<double>&of_x = squares_of_x_, &of_w = squares_of_w_;
    of_w.assign(width, 0);
    for (Index n = 0; n < samples; ++n) {
      const float* const row = kernels::wide(w + n * apart * width_, width_, wide_.data());
      for (std::size_t d = 0; d < width; ++d) of_w[d] += static_cast<double>(row[d]) * static_cast<double>(row[d]);
    }
    balance_.assign(width, 1.0F);
    inverse_.assign(width, 1.0F);
    for (std::size_t d = 0; d < width; ++d) {
      const double ratio = of_x[d] * static_cast<double>(samples) / (of_w[d] * static_cast<double>(seen_));
      if (!(ratio > 1e-30 && ratio < 1e30)) continue;
      const int power = static_cast<int>(std::lround(std::log2(ratio) / 4));
      balance_[d] = std::ldexp(1.0F, power);
      inverse_[d] = std::ldexp(1.0F, -power);
    }
  }

  const kernels::detail::ScreenKernels* loops_ = nullptr;  ///< those that its codes are for
  Index latents_ = 0, width_ = 0, seen_ = 0, built_from_ = 0;
  const void* of_ = nullptr;    ///< what it was built from
  Buffer<std::uint8_t> codes_;  ///< [panels][units][panel][4]
  std::vector<float> scale_, bias_, error_, norm_, slack_, balance_, inverse_;
  std::vector<char> finite_;       ///< of each panel
  std::vector<std::uint8_t> one_;  ///< scratch: the codes of a row, for each block
  std::vector<float> wide_;        ///< the row itself, of narrow weights
  std::vector<double> squares_of_x_, squares_of_w_;
};

/// Whether screening costs less than the product: a machine with fast products of small integers, and enough of everything.
/// \param kept  the weights were quantised before
inline bool screen_pays(Index rows, Index width, Index latents, const ScreenRule& rule, bool kept = false) {
  return kernels::detail::has_fast_screen() && (kept || rows >= 192) && width >= 64 && width <= ScreenWeights::largest_width &&
         latents >= 1024 && latents >= 2 * rule.capacity(latents);
}

/// The candidates of a block of rows; reused from block to block.
class Screen {
 public:
  /// Finds all latents of x [m x D] that the rule asks for, by ascending latent. Rows for which the bounds prune too little, or that hold
  /// what nothing can be said of (infinity), are left to be computed whole: `whole_rows`. False where that is more than every fourth:
  /// what was found is of no use.
  /// \param level  with k: where looking may begin, the k-th largest z of a row in units of its |x'|, see `level`; 0: unknown. Rows that
  ///               have less are left, too.
  bool find(const ScreenWeights& weights, const float* x, Index m, const ScreenRule& rule, float level = 0) {
    capacity_ = rule.capacity(weights.latents());
    if (capacity_ > weights.latents()) return false;
    begin(weights, x, m, rule.magnitude ? 0x7FFFFFFF : -1);
    level_ = rule.k > 0 ? level : 0;
    for (Index b = 0; b < m; ++b) bound_[static_cast<std::size_t>(b)] = rule.k > 0 ? first_bound(b) : rule.bound;
    const kernels::detail::ScreenProducts begun(*loops_);
    for (Index panel = 0; panel * kernels::detail::screen_panel < weights.latents(); ++panel) {
      take_panel(weights, panel, m, [&](Index r) {
        const Index& count = count_[static_cast<std::size_t>(r)];
        if (count + kernels::detail::screen_panel <= capacity_) return;
        compact(r, rule.k);
        if (4 * count > 3 * capacity_) leave(r);
      });
      if (4 * static_cast<Index>(whole_.size()) > m) return false;
    }
    for (Index b = 0; b < m; ++b) {
      compact(b, rule.k);
      // What was left out lies below the first bound, and so below the k-th where k are known to lie above.
      if (level_ > 0 && count_[static_cast<std::size_t>(b)] >= 0 && !(bound_[static_cast<std::size_t>(b)] > first_bound(b)))
        leave(b);
    }
    std::sort(whole_.begin(), whole_.end());
    return 4 * static_cast<Index>(whole_.size()) <= m;
  }
  /// Bounds of all z of x [m x D], see `lower` and `upper`.
  void bound_all(const ScreenWeights& weights, const float* x, Index m) {
    capacity_ = weights.latents() + kernels::detail::screen_panel;
    begin(weights, x, m, -1);
    std::fill(bound_.begin(), bound_.end(), -std::numeric_limits<float>::infinity());
    const kernels::detail::ScreenProducts begun(*loops_);
    for (Index panel = 0; panel * kernels::detail::screen_panel < weights.latents(); ++panel)
      take_panel(weights, panel, m, [](Index) {});
  }
  /// What `bound_all` found of row b, by latent; of a row of which nothing can be said none. They may be written to.
  std::span<float> lower(Index b) { return of_row(lower_, b); }
  std::span<float> upper(Index b) { return of_row(upper_, b); }
  /// Where the k-th largest z of row b lies at least, in units of its |x'|; 0 where that is not known.
  float level(Index b) const {
    const auto at = static_cast<std::size_t>(b);
    return count_[at] < 0 ? 0.0F : bound_[at] / rows_[at].alpha;
  }
  std::span<const Index> whole_rows() const { return whole_; }  ///< ascending
  /// Of row b; of one that is left to be computed whole none.
  std::span<const int> candidates(Index b) const {
    return {latents_.data() + b * capacity_, static_cast<std::size_t>(std::max<Index>(count_[static_cast<std::size_t>(b)], 0))};
  }

  /// Calls visit(b, latents, z) for each row that has candidates, with all of them or, where the rule asks for the k largest, with those
  /// that can be; latents ascend, z is what `add_product_nt` makes of each.
  template <class Rows, class Visit>
  void for_each_value(const float* x, const Rows& w, const float* bias, Index width, const ScreenRule& rule,
                      const Visit& visit) {
    const auto room = static_cast<std::size_t>(capacity_);
    for (auto* const of : {&z_, &values_}) of->resize(std::max(of->size(), room));
    picked_.resize(std::max(picked_.size(), room));
    wide_.resize(static_cast<std::size_t>(kernels::dots_room<Rows, float>(width)));
    computed_ = 0;
    const auto compute = [&](Index b, std::span<const int> latents) {
      computed_ += static_cast<Index>(latents.size());
      for (std::size_t n = 0; n < latents.size(); ++n) z_[n] = bias == nullptr ? 0.0F : bias[latents[n]];
      kernels::add_dots(x + b * width, w, width, latents, z_.data(), wide_.data());
    };
    for (Index b = 0; b < static_cast<Index>(count_.size()); ++b) {
      const std::span<const int> all = candidates(b);
      if (all.empty()) continue;
      if (rule.k == 0) {
        compute(b, all);
        visit(b, all, std::span<const float>(z_.data(), all.size()));
        continue;
      }
      float *const lower = lower_.data() + b * capacity_, *const upper = upper_.data() + b * capacity_;
      float bound = bound_[static_cast<std::size_t>(b)];
      const auto pick = [&](std::size_t count) {
        for (std::size_t n = 0; n < count; ++n) picked_[n] = all[static_cast<std::size_t>(places_[n])];
        return std::span<const int>(picked_.data(), count);
      };
      const auto at_least = [&](const float* keys) {
        return static_cast<std::size_t>(loops_->at_least(keys, static_cast<Index>(all.size()), bound, places_.data()));
      };
      // Both bounds become what is compared. Nothing else has equal ones: they are some roundings of z apart.
      const auto settle = [&](std::size_t count) {
        compute(b, pick(count));
        for (std::size_t n = 0; n < count; ++n) {
          const auto place = static_cast<std::size_t>(places_[n]);
          const float key =
              (rule.magnitude ? std::abs(z_[n]) : z_[n]) * (rule.norms == nullptr ? 1.0F : rule.norms[picked_[n]]);
          values_[place] = z_[n];
          lower[place] = upper[place] = z_[n] = key == key ? key : -std::numeric_limits<float>::infinity();
        }
      };
      // First those whose lower bounds are the k largest: the k-th of their z excludes half of the others.
      std::size_t count = at_least(lower);
      settle(count);
      if (static_cast<Index>(count) >= rule.k)
        bound = kernels::toward_kth_largest(z_.data(), static_cast<Index>(count), rule.k, bound, halvings);
      const std::size_t left = at_least(upper);
      count = 0;
      for (std::size_t n = 0; n < left; ++n) {
        const int place = places_[count] = places_[n];
        count += lower[place] != upper[place];
      }
      settle(count);
      count = at_least(lower);
      for (std::size_t n = 0; n < count; ++n) z_[n] = values_[static_cast<std::size_t>(places_[n])];
      visit(b, pick(count), std::span<const float>(z_.data(), count));
    }
  }

  /// How many z the last `for_each_value` computed.
  Index computed() const { return computed_; }

 private:
  /// Makes room for m rows, of `capacity_` candidates each, and quantises them.
  void begin(const ScreenWeights& weights, const float* x, Index m, std::int32_t bits) {
    loops_ = &weights.loops();
    const auto room = static_cast<std::size_t>(m * capacity_);
    if (latents_.size() < room) {
      latents_.resize(room);
      lower_.resize(room);
      upper_.resize(room);
    }
    places_.resize(std::max(places_.size(), static_cast<std::size_t>(capacity_ + 15)));
    count_.assign(static_cast<std::size_t>(m), 0);
    bound_.resize(static_cast<std::size_t>(m));
    whole_.clear();
    quantise(weights, x, m, bits, *loops_);
  }
  /// The candidates of a panel; before(b) is called for each row that may get some.
  template <class Before>
  void take_panel(const ScreenWeights& weights, Index number, Index m, const Before& before) {
    const auto& loops = *loops_;
    const Index units = loops.units(weights.width());
    alignas(64) std::int32_t products[static_cast<std::size_t>(kernels::detail::screen_group * kernels::detail::screen_panel)];
    const kernels::detail::ScreenPanel panel = weights.panel(number);
    const std::uint8_t* codes = codes_.data();
    Index b = 0;
    for (std::size_t group = 0; group < 3; ++group) {
      const Index rows = loops.groups[group];
      for (; loops.takes(group, m - b); b += rows, codes += 4 * units * rows) {
        loops.products[group](codes, panel.codes, units, products);
        const Index some = std::min(rows, m - b);
        for (Index r = b; r < b + some; ++r) before(r);
        const auto at = static_cast<std::size_t>(b), list = static_cast<std::size_t>(b * capacity_);
        loops.keep(products, panel, static_cast<int>(number * kernels::detail::screen_panel),
                   {some,
                    rows_.data() + at,
                    bound_.data() + at,
                    count_.data() + at,
                    {latents_.data() + list, lower_.data() + list, upper_.data() + list},
                    capacity_});
      }
    }
  }
  std::span<float> of_row(std::vector<float>& bounds, Index b) {
    return {bounds.data() + b * capacity_, static_cast<std::size_t>(std::max<Index>(count_[static_cast<std::size_t>(b)], 0))};
  }
  float first_bound(Index b) const {
    return std::max(level_ * rows_[static_cast<std::size_t>(b)].alpha, std::numeric_limits<float>::denorm_min());
  }
  void leave(Index b) {
    count_[static_cast<std::size_t>(b)] = -1;
    whole_.push_back(b);
  }
  void quantise(const ScreenWeights& weights, const float* x, Index m, std::int32_t bits,
                const kernels::detail::ScreenKernels& loops) {
    const Index width = weights.width(), units = loops.units(width);
    const float share = rounding_share(width), *const g = weights.inverse_balance();
    rows_.resize(static_cast<std::size_t>(m));
    codes_.resize(static_cast<std::size_t>(loops.padded_rows(m) * 4 * units));
    std::vector<std::uint8_t>& code = one_;
    code.assign(static_cast<std::size_t>(4 * units), 0);
    std::uint8_t* to = codes_.data();
    Index b = 0;
    for (std::size_t group = 0; group < 3; ++group) {
      const Index rows = loops.groups[group];
      for (; loops.takes(group, m - b); b += rows, to += 4 * units * rows)
        for (Index r = 0; r < std::min(rows, m - b); ++r) {
          const float* const row = x + (b + r) * width;
          const float step = screen_step(loops.largest(row, g, width), loops.largest_code(width));
          const auto sums = loops.quantise(row, g, width, step, code.data());
          loops.pack(code.data(), units, r, rows, to);
          const float norm = norm_above(sums.squares, width), error = norm_above(sums.errors, width);
          const float alpha = norm + error;  // |s q| <= |x'| + |e|
          kernels::detail::ScreenRow& of = rows_[static_cast<std::size_t>(b + r)];
          of = {step, alpha * (1 + share), (error + share * (norm + alpha)) * (1 + share), loops.added * sums.codes, bits};
          if (!std::isfinite(of.beta)) leave(b + r);
        }
    }
  }
  /// Brings the bound of a row to the k-th largest lower bound and drops what lies below it.
  void compact(Index b, Index k) {
    Index& count = count_[static_cast<std::size_t>(b)];
    if (k == 0 || count < 0) return;
    float& bound = bound_[static_cast<std::size_t>(b)];
    const auto first = static_cast<std::size_t>(b * capacity_);
    if (count >= k) bound = kernels::toward_kth_largest(lower_.data() + first, count, k, bound, halvings);
    count = loops_->at_least(upper_.data() + first, count, bound, places_.data());
    for (std::size_t n = 0; n < static_cast<std::size_t>(count); ++n) {
      const std::size_t at = first + static_cast<std::size_t>(places_[n]);
      latents_[first + n] = latents_[at];
      lower_[first + n] = lower_[at];
      upper_[first + n] = upper_[at];
    }
  }

  static constexpr int halvings = 12;  ///< near the k-th largest, and not above it, will do

  const kernels::detail::ScreenKernels* loops_ = nullptr;
  Index capacity_ = 0, computed_ = 0;
  float level_ = 0;
  std::vector<int> latents_;          ///< [m x capacity]
  std::vector<float> lower_, upper_;  ///< bounds of z
  std::vector<Index> count_;          ///< of each row; -1 where it is left
  std::vector<Index> whole_;
  std::vector<float> bound_;
  std::vector<kernels::detail::ScreenRow> rows_;
  std::vector<float> z_, values_;  ///< scratch of a row
  std::vector<float> wide_;        ///< rows of narrow weights
  std::vector<int> picked_, places_;
  Buffer<std::uint8_t> codes_;     ///< see ScreenKernels::products
  std::vector<std::uint8_t> one_;  ///< scratch: those of a row
};

}  // namespace sae::inline SAE_ABI::detail
