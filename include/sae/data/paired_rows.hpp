#pragma once
#include <sae/data/indexed_source.hpp>

#include <utility>

namespace sae::inline SAE_ABI {

/// Rows of two kinds side by side, as a transcoder is trained and measured on: row i of the inputs and, behind it, row i of the
/// targets. Any rows that IndexedSource takes, which is what reads these, too:
///
///   PairedRows pairs(FiniteNpyRows(NpyFolder("mlp_in")), FiniteNpyRows(NpyFolder("mlp_out")));
///   IndexedSource<decltype(pairs), float> source(std::move(pairs), {.seed = 1});
///
/// \throws ShapeError  the two do not hold the same number of rows.
template <class Inputs, class Targets>
class PairedRows {
 public:
  PairedRows(Inputs inputs, Targets targets) : inputs_(std::move(inputs)), targets_(std::move(targets)) {
    if (inputs_.rows() != targets_.rows())
      throw_shape("rows: ", inputs_.rows(), " inputs and ", targets_.rows(), " targets; each input has one target");
  }
  Index rows() const { return inputs_.rows(); }
  Index width() const { return inputs_.width() + targets_.width(); }
  const Inputs& inputs() const { return inputs_; }
  const Targets& targets() const { return targets_; }

  template <class Scalar>
  void read_row(Index row, Scalar* out) const {
    inputs_.read_row(row, out);
    targets_.read_row(row, out + inputs_.width());
  }

 private:
  Inputs inputs_;
  Targets targets_;
};

}  // namespace sae::inline SAE_ABI
