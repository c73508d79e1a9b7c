#pragma once
#include <sae/core/random.hpp>
#include <sae/training/adafactor.hpp>
#include <sae/training/adam.hpp>
#include <sae/training/muon.hpp>
#include <sae/training/schedule_free.hpp>
#include <sae/training/sgd.hpp>

#include <algorithm>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace sae::inline SAE_ABI {

/// How weights follow their gradients, chosen at run time: `TrainerConfig{.optimizer = sae::Adam{.beta1 = 0}}`.
/// State beside the F D numbers of a weight and the n of a vector:
///
///   Adam, AdamW   2 F D, 2 n    with beta1 = 0: F D, n
///   Sgd, SignSgd  F D, n        without momentum: none
///   ScheduleFree  F D, n
///   Muon          F D, 2 n
///   Adafactor     F + D, n
///
/// The first five are row-local and run in the pass that makes the gradient; Muon and Adafactor need all gradients first, which take
/// 2 F D numbers of their own.
using Optimizer = std::variant<Adam, AdamW, Sgd, SignSgd, Muon, Adafactor, ScheduleFree>;

/// How the optimizer keeps its state between steps.
///
///   full      as numbers of the model's Scalar
///   bfloat16  beside matrices in 16 bits, beside vectors as before: of Adam 4 F D bytes a weight in the place of 8 F D. A step widens
///             what is kept, computes in float32 and rounds stochastically (core/half.hpp) by the step and the place of a number alone.
///             Its mean is that of float32; rounding to nearest would lose steps of v, which are a thousandth (1 - beta2) where
///             neighbours are four to eight apart. For models of float and row-local optimizers but ScheduleFree, whose
///             state is a second set of weights.
///
/// There is no float16: it ends at 6e-8, and the v of small gradients lie below.
enum class Precision { full, bfloat16 };

/// \throws ValueError  a setting is not in its range.
inline void check(const Optimizer& optimizer, Precision moments = Precision::full) {
  std::visit(
      [&]<class Kind>(const Kind& one) {
        one.check();
        if (moments != Precision::full && !Kind::row_local)
          throw_value("Trainer: moments = bfloat16 is for optimizers that update row by row, which ", one.name,
                      " does not; moments = full is legal");
        if (moments != Precision::full && std::is_same_v<Kind, ScheduleFree>)
          throw_value("Trainer: moments = bfloat16 is for what follows gradients; the state of ", one.name,
                      " is a second set of weights, in which every rounding would stay; moments = full is legal");
      },
      optimizer);
}

namespace detail {
/// The settings of whichever optimizer it is, its name first.
struct OptimizerSettings {
  const Optimizer& optimizer;

  template <class Visitor>
  void visit_settings(Visitor&& visitor) const {
    std::visit(
        [&](const auto& one) {
          visitor("name", one.name);
          one.visit_settings(visitor);
        },
        optimizer);
  }
};
}  // namespace detail

/// An optimizer at work on the tensors of one model: what it keeps beside each, and its step.
template <class Scalar>
class OptimizerState {
 public:
  /// What is kept beside one tensor: the one or the other.
  struct Slots {
    std::vector<Tensor<Scalar>> full;
    std::vector<Tensor<bfloat16>> half;
    std::uint32_t key = 0, weight_key = 0;  ///< of this step's rounding, of what is kept here and of the weights
  };

  OptimizerState() = default;
  /// \throws ValueError  the precision is not for this optimizer, or not for numbers of Scalar.
  explicit OptimizerState(const Optimizer& optimizer, Precision moments = Precision::full)
      : optimizer_(optimizer), moments_(moments) {
    check(optimizer, moments);
    if (moments != Precision::full && !std::is_same_v<Scalar, float>)
      throw_value("Trainer: moments = bfloat16 is for models of float, this one is of double; moments = full is legal");
    if (averages()) rates_.resize(1, 2);
  }

  /// Takes a parameter tensor [rows x cols] into its care; its state starts at 0.
  void add(std::string_view name, Index rows, Index cols) {
    Slots slots;
    const SlotShapes shapes = std::visit([&](const auto& optimizer) { return optimizer.slot_shapes(rows, cols); }, optimizer_);
    const bool narrow = moments_ != Precision::full && rows > 1 && cols > 1;
    for (const auto& [r, c] : shapes) {
      if (narrow) {
        slots.half.emplace_back(r, c);
      } else {
        slots.full.emplace_back(r, c);
      }
    }
    tensors_.emplace_back(std::string(name), std::move(slots));
  }
  /// Whether rows may be updated one by one, `update_rows`; else whole tensors alone, `update`.
  bool row_local() const {
    return std::visit([]<class Kind>(const Kind&) { return Kind::row_local; }, optimizer_);
  }
  /// Whether a training ends with another point than the one where gradients were taken: `average`.
  bool averages() const { return std::holds_alternative<ScheduleFree>(optimizer_); }
  /// Numbers of state, all tensors together.
  Index size() const {
    return sum_over_slots([](const auto& slot) { return slot.size(); });
  }
  /// Bytes that they take.
  Index bytes() const {
    return sum_over_slots([](const auto& slot) { return slot.size() * static_cast<Index>(sizeof(slot[0])); });
  }
  /// \throws ValueError  it was never added.
  const Slots& slots(std::string_view name) const {
    for (const auto& [own, slots] : tensors_)
      if (own == name) return slots;
    throw_value("the optimizer knows no tensor ", name);
  }
  Slots& slots(std::string_view name) { return const_cast<Slots&>(std::as_const(*this).slots(name)); }

  /// Forgets what is kept of one row of a matrix w: as if it had started as it is now and its gradients had been 0 so far. What rows
  /// share (Adafactor's column averages) stays.
  template <class Stored>
  void reset_row(std::string_view name, const Tensor<Stored>& w, Index row) {
    Slots& all = slots(name);
    for (Tensor<bfloat16>& slot : all.half)
      for (Index j = 0; j < slot.cols(); ++j)
        slot.row(row)[j] = averages() ? bfloat16(static_cast<float>(detail::number(w.row(row)[j]))) : bfloat16();
    for (std::size_t s = 0; s < all.full.size(); ++s) {
      Tensor<Scalar>& slot = all.full[s];
      if (averages()) {
        for (Index j = 0; j < slot.cols(); ++j) slot.row(row)[j] = detail::number(w.row(row)[j]);
      } else if (!std::holds_alternative<Adafactor>(optimizer_)) {
        std::fill_n(slot.row(row), slot.cols(), Scalar(0));
      } else if (s == 0) {
        slot[row] = Scalar(0);  // its row averages
      }
    }
  }
  /// The same of one number of a vector.
  void reset_number(std::string_view name, const Tensor<Scalar>& w, Index at) {
    for (Tensor<Scalar>& slot : slots(name).full) slot[at] = averages() ? w[at] : Scalar(0);
  }

  /// \param t  number of the step that begins, from 1.
  void begin_step(Index t, double learning_rate) {
    t_ = t;
    learning_rate_ = learning_rate;
    const auto steps = static_cast<std::uint64_t>(t);
    std::uint32_t number = 0;
    for (auto& [name, slots] : tensors_) {
      const auto words = philox({static_cast<std::uint32_t>(steps), static_cast<std::uint32_t>(steps >> 32), number++, 0}, {});
      slots.key = words[0];
      slots.weight_key = words[1];
    }
    std::visit(
        [&]<class Kind>(const Kind& optimizer) {
          if constexpr (std::is_same_v<Kind, ScheduleFree>) {
            update_ = optimizer.template update<Scalar>(t, learning_rate, share_of_average());
          } else if constexpr (Kind::row_local) {
            update_ = optimizer.template update<Scalar>(t, learning_rate);
          }
        },
        optimizer_);
  }
  /// n numbers w of a parameter, from position `from` of its tensor on, by their gradients g. For row-local optimizers; several
  /// threads may be in it at once, each with numbers of its own.
  void update_rows(Slots& slots, Index from, Scalar* w, const Scalar* g, Index n) const {
    if constexpr (std::is_same_v<Scalar, float>) {
      if (!slots.half.empty()) {
        SlotRows<bfloat16> at{};
        for (std::size_t s = 0; s < slots.half.size(); ++s) at[s] = slots.half[s].data() + from;
        const Rounding rounding{.key = slots.key, .position = static_cast<std::uint32_t>(from)};
        return std::visit([&](const auto& update) { detail::update_narrow(update, w, g, at, n, rounding); }, update_);
      }
    }
    SlotRows<Scalar> at{};
    for (std::size_t s = 0; s < slots.full.size(); ++s) at[s] = slots.full[s].data() + from;
    std::visit([&](const auto& update) { update(w, g, at, n); }, update_);
  }
  /// Asks for what `update_rows` will read.
  template <class Stored>
  void prefetch_rows(const Slots& slots, Index from, const Stored* w, Index n) const {
    kernels::prefetch(w, n);
    for (const auto& slot : slots.full) kernels::prefetch(slot.data() + from, n);
    for (const auto& slot : slots.half) kernels::prefetch(slot.data() + from, n);
  }
  /// A whole tensor; g may be overwritten.
  void update(Slots& slots, Tensor<Scalar>& w, Tensor<Scalar>& g, Threads& threads) const {
    if (row_local()) {
      constexpr Index block = 64;
      threads.for_blocks(w.rows(), block, [&](Index begin, Index end, Index) {
        update_rows(slots, begin * w.cols(), w.row(begin), g.row(begin), (end - begin) * w.cols());
      });
      return;
    }
    std::visit(
        [&]<class Kind>(const Kind& optimizer) {
          if constexpr (!Kind::row_local)
            optimizer.template step<Scalar>(t_, learning_rate_, w, g, std::span<Tensor<Scalar>>(slots.full), threads);
        },
        optimizer_);
  }

  /// Where `averages()`: brings w to the point that a training ends with. After a step.
  void average(std::string_view name, Tensor<Scalar>& w) const {
    const auto momentum = static_cast<Scalar>(std::get<ScheduleFree>(optimizer_).momentum);
    const Slots& all = slots(name);
    for (Index i = 0; i < w.size(); ++i) {
      const Scalar z = all.half.empty() ? all.full[0][i] : static_cast<Scalar>(static_cast<float>(all.half[0][i]));
      w[i] = ScheduleFree::average(momentum, w[i], z);
    }
  }

  /// Calls visitor("moment0.W_enc", tensor) for everything that is kept.
  template <class Visitor>
  void visit(Visitor&& visitor) {
    if (averages()) visitor("moment.rates", rates_);
    const auto each = [&](const std::string& name, auto& slots) {
      for (std::size_t s = 0; s < slots.size(); ++s) visitor(detail::concat("moment", s, ".", name), slots[s]);
    };
    for (auto& [name, slots] : tensors_) {
      each(name, slots.full);
      if constexpr (std::is_same_v<Scalar, float>) each(name, slots.half);
    }
  }

 private:
  template <class Size>
  Index sum_over_slots(const Size& size) const {
    Index sum = 0;
    for (const auto& [name, slots] : tensors_) {
      for (const auto& slot : slots.full) sum += size(slot);
      for (const auto& slot : slots.half) sum += size(slot);
    }
    return sum;
  }
  /// Of the step that begins in an average of steps by their squared rates; 1 while all rates were 0.
  double share_of_average() {
    Scalar &largest = rates_[0], &sum = rates_[1];
    largest = std::max(largest, static_cast<Scalar>(learning_rate_));
    sum += largest * largest;
    return sum > Scalar(0) ? static_cast<double>(largest * largest / sum) : 1.0;
  }

  Optimizer optimizer_;
  Precision moments_ = Precision::full;
  std::vector<std::pair<std::string, Slots>> tensors_;
  Tensor<Scalar>
      rates_;  ///< where `averages()`: the largest learning rate so far, the sum of the squares of the largest so far
  Index t_ = 0;
  double learning_rate_ = 0;
  std::variant<Adam::Update<Scalar>, AdamW::Update<Scalar>, Sgd::Update<Scalar>, SignSgd::Update<Scalar>,
               ScheduleFree::Update<Scalar>>
      update_;
};

}  // namespace sae::inline SAE_ABI
