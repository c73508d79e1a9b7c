#pragma once
#include <sae/core/codes.hpp>
#include <sae/core/threads.hpp>
#include <sae/host/language_model.hpp>
#include <sae/kernels/vector.hpp>

#include <algorithm>
#include <cmath>
#include <concepts>
#include <functional>
#include <limits>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

namespace sae::inline SAE_ABI {

namespace detail {
/// Rows side by side in memory, each contiguous, of something that lives on when the expression that named it does not: a view, or
/// a reference to a row-major matrix.
template <class T, class Plain = std::remove_cvref_t<T>>
inline constexpr bool lasting_rows = bool(Plain::IsRowMajor) && Plain::InnerStrideAtCompileTime == 1 &&
                                     (std::is_lvalue_reference_v<T> ||
                                      !std::is_base_of_v<Eigen::PlainObjectBase<Plain>, Plain>);
}  // namespace detail

/// What interpreting asks of a model: a SparseAutoencoder, AnySae (formats/any_sae.hpp), or a class of your own whose directions
/// are the rows of W_dec [F x D], row-major: a view or a reference, not a copy.
template <class M>
concept LatentModel = requires(const M& model) {
  { model.d_in() } -> std::convertible_to<Index>;
  { model.latents() } -> std::convertible_to<Index>;
  {model.W_dec().data()};
  { model.W_dec().outerStride() } -> std::convertible_to<Index>;
  requires detail::lasting_rows<decltype(model.W_dec())>;
};

namespace detail {
template <class M>
using ScalarOf = std::remove_cvref_t<decltype(*std::declval<const M&>().W_dec().data())>;

/// Row `latent` of W_dec [D], which a model may give by itself: its W_dec may lie in a file.
template <class M>
std::vector<ScalarOf<M>> direction_of(const M& model, Index latent) {
  if constexpr (requires { model.direction(latent); }) {
    return model.direction(latent);
  } else {
    const auto& W_dec = model.W_dec();
    const ScalarOf<M>* const row = W_dec.data() + latent * W_dec.outerStride();
    return {row, row + model.d_in()};
  }
}
/// decode(codes) of the rows x; a model that normalises its rows needs them.
template <class M>
auto decode_rows(const M& model, const Codes<ScalarOf<M>>& codes, const Matrix<ScalarOf<M>>& x, Threads& threads) {
  if constexpr (requires { model.decode(codes, x, threads); })
    return model.decode(codes, x, threads);
  else
    return model.decode(codes, threads);
}
/// x' of the rows x.
template <class M>
auto reconstruct_rows(const M& model, const Matrix<ScalarOf<M>>& x, Threads& threads) {
  if constexpr (requires { model.reconstruct(x, threads); })
    return model.reconstruct(x, threads);
  else
    return decode_rows(model, model.encode(x, threads), x, threads);
}
/// Whether rows mean something together alone, as one sequence (TemporalSae).
template <class M>
bool reads_sequences(const M& model) {
  if constexpr (requires { model.reads_sequences(); })
    return model.reads_sequences();
  else
    return false;
}
/// What a change of 1 of a code adds to x in each row, in units of the latent's direction: 1, unless the model normalises its rows.
template <class M>
std::vector<ScalarOf<M>> row_spreads(const M& model, const Matrix<ScalarOf<M>>& x, Threads& threads) {
  if constexpr (requires { model.row_spreads(x, threads); })
    return model.row_spreads(x, threads);
  else
    return std::vector<ScalarOf<M>>(static_cast<std::size_t>(x.rows()), ScalarOf<M>(1));
}
template <class M>
void require_latent(const M& model, Index latent) {
  if (latent < 0 || latent >= model.latents())
    throw_value("latent ", latent, " is not in [0, ", model.latents(), ") (the number of latents)");
}
}  // namespace detail

/// Which rows of a sequence an edit touches, by their position in it. The others stay as they are, to the last bit.
///
/// BOS is an attention sink that SAEs are not trained on (host/activation_source.hpp): `EditedRows::after_first()` leaves row 0
/// of every sequence alone, which is the right choice wherever the model puts a BOS there.
class EditedRows {
 public:
  EditedRows() = default;  ///< all
  static EditedRows all() { return {}; }
  static EditedRows after_first() { return from(1); }
  /// Positions first, first + 1, ...
  static EditedRows from(Index first) {
    require_non_negative("EditedRows: position", first);
    EditedRows out;
    out.first_ = first;
    return out;
  }
  /// These positions alone, in any order; none is legal and edits nothing.
  static EditedRows at(std::vector<Index> positions) {
    std::sort(positions.begin(), positions.end());
    if (!positions.empty()) require_non_negative("EditedRows: position", positions.front());
    EditedRows out;
    out.listed_ = true;
    out.positions_ = std::move(positions);
    return out;
  }
  /// Those of positions for which this holds, when the rows come: of certain tokens, say, where the caller knows the sequence.
  static EditedRows where(std::function<bool(Index)> holds) {
    EditedRows out;
    out.holds_ = std::move(holds);
    return out;
  }
  /// These rows, but not those of positions below `first`.
  EditedRows but_from(Index first) const {
    EditedRows out = *this;
    out.first_ = (std::max)(first_, first);
    return out;
  }

  bool has(Index position) const {
    return position >= first_ && (!listed_ || std::binary_search(positions_.begin(), positions_.end(), position)) &&
           (!holds_ || holds_(position));
  }

 private:
  Index first_ = 0;
  bool listed_ = false;
  std::vector<Index> positions_;
  std::function<bool(Index)> holds_;
};

/// What becomes of one latent's code: f' = value (clamp), or f' = value * f (scale).
struct LatentEdit {
  enum class Kind { clamp, scale };
  Index latent = 0;
  Kind kind = Kind::clamp;
  double value = 0;

  template <class Scalar>
  Scalar operator()(Scalar f) const {
    return kind == Kind::clamp ? static_cast<Scalar>(value) : static_cast<Scalar>(value) * f;
  }
};
/// f' = value in every row, also where the latent was not active.
inline LatentEdit clamp_latent(Index latent, double value) { return {latent, LatentEdit::Kind::clamp, value}; }
/// f' = factor * f: only where the latent is active.
inline LatentEdit scale_latent(Index latent, double factor) { return {latent, LatentEdit::Kind::scale, factor}; }
/// f' = 0. (Mean ablation is `clamp_latent` at the mean over all rows, active or not: with LatentStatistics density(i) * moments(i).mean.)
inline LatentEdit ablate_latent(Index latent) { return clamp_latent(latent, 0); }

namespace detail {
/// Ascending latents. Errors: ValueError for a latent that is not there or is named twice, a value that is not finite.
inline std::vector<LatentEdit> checked_edits(std::vector<LatentEdit> edits, Index latents) {
  std::sort(edits.begin(), edits.end(), [](const LatentEdit& a, const LatentEdit& b) { return a.latent < b.latent; });
  for (std::size_t i = 0; i < edits.size(); ++i) {
    if (edits[i].latent < 0 || edits[i].latent >= latents)
      throw_value("latent ", edits[i].latent, " is not in [0, ", latents, ") (the number of latents)");
    if (i > 0 && edits[i].latent == edits[i - 1].latent) throw_value("latent ", edits[i].latent, " is edited twice");
    if (!std::isfinite(static_cast<float>(edits[i].value)))
      throw_value("latent ", edits[i].latent, ": ", edits[i].value, " is not a value to clamp to or a factor");
  }
  return edits;
}
}  // namespace detail

/// f' [B x F] from f: entries of the edited latents change, appear or go, all others stay. Cost: the entries, and a search for
/// each edit in each row. Errors: ValueError (detail::checked_edits).
template <class Scalar>
Codes<Scalar> edit_codes(const Codes<Scalar>& codes, std::vector<LatentEdit> edits) {
  edits = detail::checked_edits(std::move(edits), codes.latents());
  Codes<Scalar> out(codes.latents());
  for (Index b = 0; b < codes.rows(); ++b) {
    Index e = codes.begin(b);
    const auto copy_below = [&](Index latent) {
      for (; e < codes.end(b) && codes.latent(e) < latent; ++e) out.push(codes.latent(e), codes.value(e));
    };
    for (const LatentEdit& edit : edits) {
      copy_below(edit.latent);
      const bool active = e < codes.end(b) && codes.latent(e) == edit.latent;
      const Scalar value = edit(active ? codes.value(e) : Scalar(0));
      if (active) ++e;
      if (value != Scalar(0)) out.push(edit.latent, value);
    }
    copy_below(codes.latents());
    out.finish_row();
  }
  return out;
}

namespace detail {

/// The rows of a pass that a model is shown, in its scalar, and the way back: those that an edit touches, or, to a model that reads
/// sequences, all of them.
template <class Scalar>
class ChosenRows {
 public:
  /// \throws ValueError  the model reads sequences, and the first row is not the first of one.
  template <class Model>
  ChosenRows(const Model& model, const Site& site, const MatrixMap<float>& rows, Index first_position,
             const EditedRows& edited) {
    const bool sequence = reads_sequences(model);
    if (sequence && first_position > 0)
      throw_value("the edit at ", to_string(site), ": the SAE reads whole sequences, and this pass begins at position ",
                  first_position, "; run the sequence from its first token on");
    for (Index t = 0; t < rows.rows(); ++t) {
      const bool touches = edited.has(first_position + t);
      if (touches) ++touched_;
      if (!touches && !sequence) continue;
      at_.push_back(t);
      touches_.push_back(touches);
    }
    x_.resize(static_cast<Index>(at_.size()), rows.cols());
    for (Index i = 0; i < x_.rows(); ++i)
      for (Index j = 0; j < x_.cols(); ++j) x_(i, j) = static_cast<Scalar>(rows(row(i), j));
  }
  bool empty() const { return touched_ == 0; }  ///< none is to change
  Index count() const { return x_.rows(); }
  bool touches(Index i) const { return touches_[static_cast<std::size_t>(i)]; }
  Index row(Index i) const { return at_[static_cast<std::size_t>(i)]; }
  const Matrix<Scalar>& x() const { return x_; }
  void put(const Matrix<Scalar>& values, MatrixMap<float> rows) const {
    for (Index i = 0; i < count(); ++i)
      for (Index j = 0; touches(i) && j < values.cols(); ++j) rows(row(i), j) = static_cast<float>(values(i, j));
  }

 private:
  std::vector<Index> at_;
  std::vector<bool> touches_;
  Index touched_ = 0;
  Matrix<Scalar> x_;
};

inline void require_width(Index width, const MatrixMap<float>& rows, const Site& site) {
  if (rows.cols() != width)
    throw_shape("the edit at ", to_string(site), " is of width ", width, ", the model's rows are of width ", rows.cols());
}

}  // namespace detail

// Edits of a language model, as taps for `run`, `compare_conditions` and `generate`. Those that take a model keep a reference to
// it. Widths are checked when the rows come (ShapeError). A model that reads sequences (TemporalSae) is shown all rows of a pass, BOS among
// them, whichever are edited; a pass that goes on behind others, as `generate` makes them, is a ValueError.

/// x' = decode(encode(x)): the SAE in the place of the activations, its error included.
template <LatentModel Model>
Tap replace_by_reconstruction(const Site& site, const Model& model, EditedRows edited = {},
                              Threads& threads = Threads::shared()) {
  return {site,
          [&model, &threads, site, edited = std::move(edited)](MatrixMap<float> rows, Index first) {
            detail::require_width(model.d_in(), rows, site);
            const detail::ChosenRows<detail::ScalarOf<Model>> chosen(model, site, rows, first, edited);
            if (!chosen.empty()) chosen.put(detail::reconstruct_rows(model, chosen.x(), threads), rows);
          },
          true};
}

template <LatentModel Model>
Tap replace_by_reconstruction(const Site&, const Model&&, EditedRows = {},
                              Threads& = Threads::shared()) = delete;  // the tap would outlive the model

/// 0 in the place of x.
inline Tap replace_by_zero(const Site& site, EditedRows edited = {}) {
  return {site,
          [edited = std::move(edited)](MatrixMap<float> rows, Index first) {
            for (Index t = 0; t < rows.rows(); ++t)
              if (edited.has(first + t)) rows.row(t).setZero();
          },
          true};
}

/// One given row [D] in the place of x; most often the mean of many.
inline Tap replace_by_row(const Site& site, RowVector<float> row, EditedRows edited = {}) {
  return {site,
          [site, row = std::move(row), edited = std::move(edited)](MatrixMap<float> rows, Index first) {
            detail::require_width(row.cols(), rows, site);
            for (Index t = 0; t < rows.rows(); ++t)
              if (edited.has(first + t)) rows.row(t) = row;
          },
          true};
}

/// x + scale * direction, direction [D]. Errors: ValueError, the scale is not finite.
inline Tap add_direction(const Site& site, RowVector<float> direction, double scale, EditedRows edited = {}) {
  if (!std::isfinite(static_cast<float>(scale))) throw_value("add_direction: scale = ", scale, " is not a finite float");
  return {site,
          [site, direction = std::move(direction), factor = static_cast<float>(scale), edited = std::move(edited)](
              MatrixMap<float> rows, Index first) {
            detail::require_width(direction.cols(), rows, site);
            for (Index t = 0; t < rows.rows(); ++t)
              if (edited.has(first + t)) kernels::add_scaled(rows.row(t).data(), factor, direction.data(), rows.cols());
          },
          true};
}
/// x + scale * W_dec[latent]: steering by a latent, whatever its own activity; in the units of x, also where the model normalises
/// its rows. Errors: ValueError, there is no such latent.
template <LatentModel Model>
Tap steer_latent(const Site& site, const Model& model, Index latent, double scale, EditedRows edited = {}) {
  detail::require_latent(model, latent);
  const auto from = detail::direction_of(model, latent);
  RowVector<float> direction(model.d_in());
  for (Index j = 0; j < direction.cols(); ++j) direction[j] = static_cast<float>(from[static_cast<std::size_t>(j)]);
  return add_direction(site, std::move(direction), scale, std::move(edited));
}

/// What an edit of latents leaves in the place of x.
enum class ErrorTerm {
  keep,  ///< x + s sum_i (f'_i - f_i) W_dec[i], s the row's spread (InputNormalisation; 1 without): all that the SAE does not explain stays; an edit of nothing changes no bit
  drop,  ///< decode(f'): the SAE's own reconstruction after the edit
};

/// Clamps, scales or ablates latents: f = encode(x), f' = edit_codes(f, edits), then as `error` says.
/// With the error term a row in which no edited latent changes keeps its bits. Errors: ValueError (detail::checked_edits).
template <LatentModel Model>
Tap edit_latents(const Site& site, const Model& model, std::vector<LatentEdit> edits, EditedRows edited = {},
                 ErrorTerm error = ErrorTerm::keep, Threads& threads = Threads::shared()) {
  edits = detail::checked_edits(std::move(edits), model.latents());
  return {site,
          [&model, &threads, site, error, edits = std::move(edits), edited = std::move(edited)](MatrixMap<float> rows,
                                                                                                Index first) {
            using Scalar = detail::ScalarOf<Model>;
            detail::require_width(model.d_in(), rows, site);
            if (edits.empty() && error == ErrorTerm::keep) return;
            const detail::ChosenRows<Scalar> chosen(model, site, rows, first, edited);
            if (chosen.empty()) return;
            const Codes<Scalar> codes = model.encode(chosen.x(), threads);
            if (error == ErrorTerm::drop) {
              chosen.put(detail::decode_rows(model, edit_codes(codes, edits), chosen.x(), threads), rows);
              return;
            }
            const std::vector<Scalar> spreads = detail::row_spreads(model, chosen.x(), threads);
            std::vector<std::vector<Scalar>> directions;
            for (const LatentEdit& edit : edits) directions.push_back(detail::direction_of(model, edit.latent));
            std::vector<Scalar> sum(static_cast<std::size_t>(rows.cols()));
            for (Index i = 0; i < chosen.count(); ++i) {
              if (!chosen.touches(i)) continue;
              std::copy_n(chosen.x().row(i).data(), rows.cols(), sum.data());
              bool changed = false;
              for (std::size_t n = 0; n < edits.size(); ++n) {
                const Scalar f = codes.coefficient(i, edits[n].latent), change = edits[n](f) - f;
                if (change == Scalar(0)) continue;
                kernels::add_scaled(sum.data(), spreads[static_cast<std::size_t>(i)] * change, directions[n].data(),
                                    rows.cols());
                changed = true;
              }
              for (Index j = 0; changed && j < rows.cols(); ++j)
                rows(chosen.row(i), j) = static_cast<float>(sum[static_cast<std::size_t>(j)]);
            }
          },
          true};
}
template <LatentModel Model>
Tap edit_latents(const Site&, const Model&&, std::vector<LatentEdit>, EditedRows = {}, ErrorTerm = ErrorTerm::keep,
                 Threads& = Threads::shared()) = delete;  // the tap would outlive the model

}  // namespace sae::inline SAE_ABI
