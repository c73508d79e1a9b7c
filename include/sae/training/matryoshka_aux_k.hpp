#pragma once
#include <sae/models/matryoshka.hpp>
#include <sae/training/aux_k.hpp>

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <vector>

namespace sae::inline SAE_ABI {

/// AuxK level by level, for a dictionary that is trained with `Matryoshka`: the dead latents of each level reconstruct what the
/// prefix that ends with this level left over, not what all latents did.
///
///   L = sum_m AuxK of the dead latents in [width_(m-1), width_m) against r^(m) = y - x'^(m)          width_(-1) = 0
///
/// Each level has its own k_aux = min(k, #dead of the level) and its own factor min(#dead of the level / k, 1); k = D/2 unless given.
/// Cost: one sparse decode more than AuxK. Threads: results do not depend on them.
/// Source: SAELens saes/matryoshka_batchtopk_sae.py (`use_matryoshka_aux_loss`).
struct MatryoshkaAuxK {
  std::vector<Index> widths{};  ///< latents of each prefix, as Matryoshka::widths; F is appended where it is missing
  AuxK level{};                 ///< the term of each level; its residual is constant

  static constexpr std::string_view name = "matryoshka_aux_k";
  template <class Visitor>
  void visit_settings(Visitor&& visitor) const {
    visitor("widths", detail::joined(widths));
    visitor("level", level);
  }
  void check(Index d_in, Index latents) const {
    if (widths.empty()) throw_value("MatryoshkaAuxK: widths are empty; give those of Matryoshka");
    detail::check_widths("MatryoshkaAuxK", widths, latents);
    if (!level.detach_residual)
      throw_value("MatryoshkaAuxK: level.detach_residual = false: the residual of a prefix is held constant");
    level.check(d_in, latents);
  }
  bool needs_decoder_norms() const { return level.needs_decoder_norms(); }

  template <class Scalar>
  class Selection {
   public:
    template <class Step>
    bool begin(const MatryoshkaAuxK& term, const Step& step, Index blocks, Index block_rows) {
      detail::put_with_last(term.widths, step.decoder->rows(), ends_);
      levels_.resize(ends_.size());
      bool watching = false;
      for (std::size_t m = 0; m < ends_.size(); ++m)
        watching = levels_[m].begin(term.level, step, blocks, block_rows, first(m), ends_[m]) || watching;
      return watching;
    }
    void take(Index block, Index row, Index first, std::span<const Scalar> z) {
      for (auto& each : levels_) each.take(block, row, first, z);
    }

   private:
    friend struct MatryoshkaAuxK;
    Index first(std::size_t m) const { return m > 0 ? ends_[m - 1] : 0; }

    std::vector<Index> ends_;
    std::vector<AuxK::Selection<Scalar>> levels_;
    Tensor<Scalar> residual_;
    std::vector<Index> next_;
  };

  template <class Step>
  double apply(Step& step, Selection<typename Step::Scalar>& selection, Threads& threads) const {
    using Scalar = typename Step::Scalar;
    if (std::all_of(step.dead.begin(), step.dead.end(), [](std::uint8_t dead) { return dead == 0; })) return 0;
    const auto& codes = step.main.entries.codes;
    const Index rows = step.rows(), width = step.output_width();
    Tensor<Scalar>& residual = selection.residual_;
    detail::load_decoder_bias(*step.decoder_bias, step.skip, step.raw, rows, residual, threads);
    selection.next_.resize(static_cast<std::size_t>(rows));
    for (Index b = 0; b < rows; ++b) {
      kernels::add_scaled(residual.row(b), Scalar(-1), step.target.row(b), width);
      selection.next_[static_cast<std::size_t>(b)] = codes.begin(b);
    }
    const bool dense = detail::is_dense(codes.size(), rows * codes.latents());
    double sum = 0;
    for (std::size_t m = 0; m < selection.ends_.size(); ++m) {
      threads.for_blocks(rows, dense ? 256 : 32, [&](Index begin, Index end, Index) {
        detail::add_decoded_range(codes, *step.decoder, residual, begin, end, selection.first(m), selection.ends_[m],
                                  selection.next_.data() + begin, dense, step.scratch);
      });
      sum += level.predict(step, residual, selection.levels_[m], threads);
    }
    return sum;
  }
};

}  // namespace sae::inline SAE_ABI
