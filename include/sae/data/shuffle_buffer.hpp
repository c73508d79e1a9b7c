#pragma once
#include <sae/core/random.hpp>
#include <sae/data/source.hpp>

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>

namespace sae::inline SAE_ABI {

struct ShuffleOptions {
  Index capacity = 65536;  ///< rows that are held, >= 2
  double keep = 0.5;       ///< share of them that stays to be mixed with the next ones, in [0, 1)
  std::uint64_t seed = 0;
};

/// Mixes the rows of a source that can only be read in order (a language model at work): holds `capacity` rows, gives them in
/// random order, and refills when only `keep` of them are left, so that a row may travel any distance but each is given once.
/// Memory: capacity x D. Its state holds the waiting rows, so that a resumed training sees the same batches.
template <class Source, class Scalar = float>
class ShuffleBuffer {
 public:
  explicit ShuffleBuffer(Source source, ShuffleOptions options = {})
      : source_(std::move(source)), options_(options), random_(options.seed, 0x5B0F) {
    if (options_.capacity < 2) throw_value("ShuffleBuffer: capacity = ", options_.capacity, " is below 2 rows");
    if (!(options_.keep >= 0 && options_.keep < 1)) throw_value("ShuffleBuffer: keep = ", options_.keep, " is not in [0, 1)");
  }
  Index width() const { return source_.width(); }
  const Source& source() const { return source_; }
  bool endless() const { return is_endless(source_); }

  Index next(Tensor<Scalar>& batch) {
    Index filled = 0;
    while (filled < batch.rows()) {
      if (waiting_ <= (exhausted_ ? 0 : keep_rows())) {
        refill();
        if (waiting_ == 0) break;
      }
      std::copy_n(rows_.row(--waiting_), width(), batch.row(filled++));
    }
    return filled;
  }

  SourceState state() const {
    SourceState out{{random_.position(), exhausted_ ? std::uint64_t{1} : std::uint64_t{0}}, {}, {source_.state()}};
    out.rows.resize(waiting_, width() * floats_each);
    if (waiting_ > 0) std::memcpy(out.rows.data(), rows_.data(), static_cast<std::size_t>(out.rows.size()) * sizeof(float));
    return out;
  }
  void restore(const SourceState& state) {
    if (state.counters.size() != 2 || state.inner.size() != 1 || state.rows.rows() > options_.capacity ||
        (state.rows.rows() > 0 && state.rows.cols() != width() * floats_each))
      throw_value("the saved position does not belong to a shuffle buffer of ", options_.capacity, " rows of width ", width());
    source_.restore(state.inner.front());
    random_.seek(state.counters[0]);
    exhausted_ = state.counters[1] != 0;
    waiting_ = state.rows.rows();
    reserve();
    if (waiting_ > 0) std::memcpy(rows_.data(), state.rows.data(), static_cast<std::size_t>(state.rows.size()) * sizeof(float));
  }

 private:
  static_assert(std::is_same_v<Scalar, float> || std::is_same_v<Scalar, double>, "sae: Scalar is float or double");
  static constexpr Index floats_each = sizeof(Scalar) / sizeof(float);  ///< a state holds the bits of the rows, whatever Scalar

  Index keep_rows() const { return static_cast<Index>(options_.keep * static_cast<double>(options_.capacity)); }
  void reserve() {
    if (rows_.rows() != options_.capacity) rows_.resize(options_.capacity, width());
  }
  void refill() {
    reserve();
    Tensor<Scalar> piece;
    while (!exhausted_ && waiting_ < options_.capacity) {
      piece.resize(std::min<Index>(options_.capacity - waiting_, 1024), width());
      const Index got = source_.next(piece);
      std::copy_n(piece.data(), got * width(), rows_.row(waiting_));
      waiting_ += got;
      exhausted_ = got == 0;
    }
    for (Index last = waiting_ - 1; last > 0; --last) {  // Fisher-Yates
      const auto other = static_cast<Index>(random_.below(static_cast<std::uint64_t>(last) + 1));
      if (other != last) std::swap_ranges(rows_.row(last), rows_.row(last) + width(), rows_.row(other));
    }
  }

  Source source_;
  ShuffleOptions options_;
  Random random_;
  Tensor<Scalar> rows_;  ///< the first `waiting_` are to be given, last first
  Index waiting_ = 0;
  bool exhausted_ = false;
};

}  // namespace sae::inline SAE_ABI
