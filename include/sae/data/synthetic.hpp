#pragma once
#include <sae/core/codes.hpp>
#include <sae/core/random.hpp>
#include <sae/core/threads.hpp>
#include <sae/data/source.hpp>
#include <sae/data/synthetic_settings.hpp>
#include <sae/kernels/product.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <utility>
#include <variant>
#include <vector>

namespace sae::inline SAE_ABI {

/// A world of n features in D dimensions, the truth that an SAE should find. Its members may be changed before rows are drawn.
///
///   const sae::SyntheticWorld world({.num_features = 64, .hidden_dim = 32, .firing_probability = sae::ConstantFiring{0.05}});
///   sae::SyntheticSource source(world, {.seed = 1});
///
/// Fixed by config.seed; directions, magnitudes, hierarchy and correlation have random streams of their own, so that changing
/// one leaves the others. Cost of the orthogonalization: 4 n^2 D operations a step.
struct SyntheticWorld {
  /// Children of which at most one is active.
  struct Group {
    Index parent;  ///< -1: none, the group is judged in every row
    std::vector<Index> children;
  };

  SyntheticConfig config;
  Tensor<float> directions;                ///< [n x D], unit rows e_i
  Tensor<float> bias;                      ///< [1 x D]
  std::vector<double> base_probabilities;  ///< [n] as configured
  std::vector<double> probabilities;       ///< [n] with which candidates are drawn: compensated for the hierarchy
  std::vector<double> means, spreads;      ///< [n] of the magnitude: max(0, mean + spread N)
  Tensor<double> correlation_factor;       ///< [n x rank] L, or empty
  std::vector<double> correlation_diag;    ///< [n] delta_i = 1 - |L_i|^2, at least 0.01
  std::vector<Index> parents;              ///< [n] -1: none
  std::vector<std::vector<Index>> levels;  ///< features of each depth of the trees, roots first
  std::vector<std::vector<Group>> groups;  ///< exclusive groups by the depth of their parent

  explicit SyntheticWorld(SyntheticConfig settings, Threads& threads = Threads::shared()) : config(std::move(settings)) {
    config.check();
    Random directions_random(config.seed, stream(0)), spreads_random(config.seed, stream(1));
    Random means_random(config.seed, stream(2)), tree_random(config.seed, stream(3)), firing_random(config.seed, stream(5));
    Random correlation_random(config.correlation && config.correlation->seed ? *config.correlation->seed : config.seed,
                              stream(4));
    base_probabilities = std::visit(detail::MakeProbability{features(), firing_random}, config.firing_probability);
    probabilities = base_probabilities;
    spreads = std::visit(detail::MakeMagnitude{features(), spreads_random}, config.std_firing_magnitudes);
    means = std::visit(detail::MakeMagnitude{features(), means_random}, config.mean_firing_magnitudes);
    parents.assign(static_cast<std::size_t>(features()), Index{-1});
    draw_directions(directions_random);
    if (config.hierarchy) grow_trees(*config.hierarchy, tree_random);
    if (config.correlation) draw_correlation(*config.correlation, correlation_random);
    if (config.orthogonalization) spread_directions(*config.orthogonalization, threads);
  }

  Index features() const { return config.num_features; }  ///< n
  Index width() const { return config.hidden_dim; }       ///< D

 private:
  static std::size_t at(Index i) { return static_cast<std::size_t>(i); }
  // Rows are streams 0, 1, ... of their seed, so that even an equal seed shares no random number with the world.
  static std::uint64_t stream(std::uint64_t part) { return std::uint64_t{1} << 63 | part; }

  void draw_directions(Random& random) {
    directions.resize(features(), width());
    std::vector<double> row(at(width()));
    const auto draw = [&](float* out, double length) {
      double norm = 0;
      for (double& v : row) {
        v = random.normal();
        norm += v * v;
      }
      norm = std::fmax(std::sqrt(norm), 1e-8);
      for (std::size_t j = 0; j < row.size(); ++j) out[j] = static_cast<float>(length * row[j] / norm);
    };
    for (Index i = 0; i < features(); ++i) draw(directions.row(i), 1);
    bias.resize(1, width());
    draw(bias.data(), config.bias);
  }

  void grow_trees(const HierarchyConfig& h, Random& random) {
    const Index n = features();
    Index used = (std::min)(h.total_root_nodes, n);
    levels.assign(1, {});
    for (Index i = 0; i < used; ++i) levels[0].push_back(i);
    std::vector<Group> families;
    std::vector<Index> depths;
    for (Index depth = 0; depth < h.max_depth && used < n; ++depth) {
      levels.emplace_back();
      for (const Index parent : levels[at(depth)]) {
        Group family{parent, {}};
        Index children = h.branching_factor;
        if (h.branching_factor_max > children)
          children += static_cast<Index>(random.below(static_cast<std::uint64_t>(h.branching_factor_max - children + 1)));
        for (Index c = 0; c < children && used < n; ++c, ++used) {
          parents[at(used)] = parent;
          levels.back().push_back(used);
          family.children.push_back(used);
        }
        if (family.children.size() < 2 || depth < h.mutually_exclusive_min_depth ||
            (h.mutually_exclusive_max_depth && depth > *h.mutually_exclusive_max_depth))
          continue;
        families.push_back(std::move(family));
        depths.push_back(depth);
      }
    }
    // A random choice of floor(portion * eligible) families, in any order.
    const auto eligible = static_cast<Index>(families.size());
    const auto chosen = static_cast<Index>(std::floor(h.mutually_exclusive_portion * static_cast<double>(eligible)));
    std::vector<Index> order(at(eligible));
    std::iota(order.begin(), order.end(), Index{0});
    groups.assign(levels.size(), {});
    std::vector<std::uint8_t> exclusive(at(n), 0);  // parents
    for (Index k = 0; k < chosen; ++k) {
      std::swap(order[at(k)], order[at(k) + random.below(static_cast<std::uint64_t>(eligible - k))]);
      Group& family = families[at(order[at(k)])];
      exclusive[at(family.parent)] = 1;
      groups[at(depths[at(order[at(k)])])].push_back(std::move(family));
    }
    if (!h.compensate_probabilities) return;
    std::vector<double> family_sum(at(n), 0.0);
    for (Index i = 0; i < n; ++i)
      if (parents[at(i)] >= 0) family_sum[at(parents[at(i)])] += base_probabilities[at(i)];
    for (Index i = 0; i < n; ++i) {
      const Index parent = parents[at(i)];
      if (parent < 0) continue;
      const double p = base_probabilities[at(i)], of_parent = base_probabilities[at(parent)];
      double factor = 1 / of_parent;
      if (exclusive[at(parent)] != 0) factor *= 1 + (family_sum[at(parent)] - p) / of_parent;
      probabilities[at(i)] = (std::min)(1.0, factor * p);
    }
  }

  void draw_correlation(const LowRankCorrelationConfig& c, Random& random) {
    correlation_factor.resize(features(), c.rank);
    for (Index i = 0; i < features(); ++i) {
      double squares = 0;
      for (Index r = 0; r < c.rank; ++r) {
        const double v = c.correlation_scale * random.normal();
        correlation_factor.row(i)[r] = v;
        squares += v * v;
      }
      const bool too_large = 1 - squares < 0.01;
      if (too_large)
        for (Index r = 0; r < c.rank; ++r) correlation_factor.row(i)[r] *= std::sqrt(0.99 / squares);
      correlation_diag.push_back(too_large ? 0.01 : 1 - squares);
    }
  }

  void spread_directions(const OrthogonalizationConfig& o, Threads& threads) {
    const Index n = features(), d = width(), block = 64;
    Tensor<float> gradient(n, d), first(n, d), second(n, d);
    double decay1 = 1, decay2 = 1;
    for (Index step = 0; step < o.num_steps; ++step) {
      threads.for_blocks(n, block, [&](Index begin, Index end, Index) {
        std::vector<float> products(at((end - begin) * n), 0.0f);
        kernels::add_product_nt(products.data(), n, directions.row(begin), d, directions.data(), d, end - begin, n, d);
        for (Index i = begin; i < end; ++i) {
          float& own = products[at((i - begin) * n + i)];
          own = static_cast<float>(n) * (own - 1.0f);
        }
        std::fill_n(gradient.row(begin), (end - begin) * d, 0.0f);
        kernels::add_product_nn(gradient.row(begin), d, products.data(), n, directions.data(), d, end - begin, n, d);
      });
      decay1 *= 0.9;
      decay2 *= 0.999;
      threads.for_blocks(n, block, [&](Index begin, Index end, Index) {
        for (Index k = begin * d; k < end * d; ++k) {
          const double g = 4 * static_cast<double>(gradient[k]);
          const double m = 0.9 * static_cast<double>(first[k]) + 0.1 * g;
          const double v = 0.999 * static_cast<double>(second[k]) + 0.001 * g * g;
          first[k] = static_cast<float>(m);
          second[k] = static_cast<float>(v);
          const double move = o.lr * (m / (1 - decay1)) / (std::sqrt(v / (1 - decay2)) + 1e-8);
          directions[k] = static_cast<float>(static_cast<double>(directions[k]) - move);
        }
      });
    }
    for (Index i = 0; i < n; ++i) {
      double squares = 0;
      for (Index j = 0; j < d; ++j) squares += static_cast<double>(directions.row(i)[j]) * directions.row(i)[j];
      const double norm = std::fmax(std::sqrt(squares), 1e-8);
      for (Index j = 0; j < d; ++j) directions.row(i)[j] = static_cast<float>(directions.row(i)[j] / norm);
    }
  }
};

/// Which rows of a world are given.
struct SyntheticOptions {
  std::uint64_t seed = 0;  ///< of the rows; another one than the world's is not needed
  Index first = 0;         ///< number of the first row, >= 0
  Index rows = 0;          ///< rows in all; 0: without end
};

/// A source of rows from a world, with their true activations. Row i depends on (world, seed, i) alone: any part can be drawn
/// again, by any number of threads, and held-out rows are rows of another seed or range. Keeps a reference to the world.
///
///   1. candidates: feature i with probability p_i, together as the correlation says
///   2. a_i = max(0, mean_i + spread_i N) for candidates, 0 for the others
///   3. depth by depth: a child of an inactive parent becomes 0 (else it may be scaled by a_parent / mean_parent); of an
///      exclusive group with several active children one, chosen at random, stays
///   4. x = sum_i a_i e_i + bias
template <class Scalar = float>
class SyntheticSource {
 public:
  explicit SyntheticSource(const SyntheticWorld& world, SyntheticOptions options = {}, Threads& threads = Threads::shared())
      : world_(&world), options_(options), threads_(&threads) {
    if (options.first < 0 || options.rows < 0)
      throw_value("synthetic: first = ", options.first, " and rows = ", options.rows, " must not be negative");
    if (world.correlation_factor.rows() > 0)
      for (const double p : world.probabilities) thresholds_.push_back(detail::upper_normal_quantile(p));
  }
  SyntheticSource(const SyntheticWorld&&, SyntheticOptions = {}, Threads& = Threads::shared()) = delete;
  Index width() const { return world_->width(); }
  const SyntheticWorld& world() const { return *world_; }
  bool endless() const { return options_.rows == 0; }

  Index next(Tensor<Scalar>& batch) { return fill(batch, nullptr); }
  /// The same rows with their true activations [rows that were filled x n], sparse.
  Index next(Tensor<Scalar>& batch, Codes<Scalar>& truth) { return fill(batch, &truth); }

  SourceState state() const { return {{static_cast<std::uint64_t>(position_)}, {}, {}}; }
  void restore(const SourceState& state) {
    const auto largest = static_cast<std::uint64_t>(options_.rows > 0 ? options_.rows : (std::numeric_limits<Index>::max)());
    if (state.counters.size() != 1 || state.counters[0] > largest)
      throw_value("the saved position does not belong to a synthetic source of ", options_.rows, " rows");
    position_ = static_cast<Index>(state.counters[0]);
  }

 private:
  static std::size_t at(Index i) { return static_cast<std::size_t>(i); }

  Index fill(Tensor<Scalar>& batch, Codes<Scalar>* truth) {
    if (batch.cols() != width()) throw_shape("synthetic: a batch of width ", batch.cols(), " for rows of width ", width());
    const Index n = options_.rows > 0 ? (std::min)(batch.rows(), options_.rows - position_) : batch.rows();
    std::vector<std::vector<std::pair<Index, double>>> active(truth == nullptr ? 0 : at(n));
    threads_->for_blocks(n, 16, [&](Index begin, Index end, Index) {
      std::vector<double> a(at(world_->features())), common(at(world_->correlation_factor.cols())), x(at(width()));
      for (Index b = begin; b < end; ++b) {
        Random random(options_.seed, static_cast<std::uint64_t>(options_.first + position_ + b));
        draw(random, common, a);
        for (Index j = 0; j < width(); ++j) x[at(j)] = static_cast<double>(world_->bias[j]);
        for (Index i = 0; i < world_->features(); ++i) {
          if (a[at(i)] == 0) continue;
          const float* const direction = world_->directions.row(i);
          for (Index j = 0; j < width(); ++j) x[at(j)] += a[at(i)] * static_cast<double>(direction[j]);
          if (truth != nullptr) active[at(b)].emplace_back(i, a[at(i)]);
        }
        for (Index j = 0; j < width(); ++j) batch.row(b)[j] = static_cast<Scalar>(x[at(j)]);
      }
    });
    position_ += n;
    if (truth != nullptr) {
      truth->reset(world_->features());
      for (const auto& row : active) {
        for (const auto& [feature, value] : row) truth->push(feature, static_cast<Scalar>(value));
        truth->finish_row();
      }
    }
    return n;
  }

  void draw(Random& random, std::vector<double>& common, std::vector<double>& a) const {
    const SyntheticWorld& w = *world_;
    for (double& c : common) c = random.normal();
    for (std::size_t i = 0; i < a.size(); ++i) {
      bool fires = false;
      if (common.empty()) {
        fires = random.uniform() < w.probabilities[i];
      } else {
        double g = std::sqrt(w.correlation_diag[i]) * random.normal();
        const double* const factor = w.correlation_factor.row(static_cast<Index>(i));
        for (std::size_t r = 0; r < common.size(); ++r) g += common[r] * factor[r];
        fires = g > thresholds_[i];
      }
      a[i] = fires ? 1 : 0;
    }
    for (std::size_t i = 0; i < a.size(); ++i)
      if (a[i] != 0) a[i] = std::fmax(0.0, w.means[i] + (w.spreads[i] > 0 ? w.spreads[i] * random.normal() : 0.0));
    const bool scales = w.config.hierarchy && w.config.hierarchy->scale_children_by_parent;
    for (std::size_t depth = 0; depth < w.levels.size(); ++depth) {
      for (const Index i : w.levels[depth]) {
        const Index parent = w.parents[at(i)];
        if (parent < 0 || a[at(i)] == 0) continue;
        if (a[at(parent)] == 0) {
          a[at(i)] = 0;
        } else if (scales) {
          a[at(i)] *= a[at(parent)] / w.means[at(parent)];
        }
      }
      if (depth >= w.groups.size()) continue;
      for (const auto& group : w.groups[depth]) {
        if (group.parent >= 0 && a[at(group.parent)] == 0) continue;
        const auto active = std::count_if(group.children.begin(), group.children.end(), [&](Index i) { return a[at(i)] != 0; });
        if (active < 2) continue;
        auto stays = random.below(static_cast<std::uint64_t>(active));
        for (const Index i : group.children)
          if (a[at(i)] != 0 && stays-- != 0) a[at(i)] = 0;
      }
    }
  }

  const SyntheticWorld* world_;
  SyntheticOptions options_;
  Threads* threads_;
  Index position_ = 0;
  std::vector<double> thresholds_;  ///< [n] upper p_i quantiles of a normal where features are correlated
};
SyntheticSource(const SyntheticWorld&)->SyntheticSource<float>;
SyntheticSource(const SyntheticWorld&, SyntheticOptions)->SyntheticSource<float>;
SyntheticSource(const SyntheticWorld&, SyntheticOptions, Threads&)->SyntheticSource<float>;

}  // namespace sae::inline SAE_ABI
