#pragma once
#include <sae/core/error.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace sae::inline SAE_ABI {

/// How numbers lie along an axis: u(v) = v, or u(v) = log10 v, which v <= 0 has not.
enum class AxisScale { linear, log };

struct Axis {
  std::string label{};  ///< what it shows and in which unit: "L0 (active latents a row)"
  AxisScale scale = AxisScale::linear;
  std::optional<double> from{}, to{};  ///< its ends, from < to; default: those of the data, and a margin

  /// \throws ValueError  an end is not finite, not above 0 where the scale is log, or from >= to.
  void check() const {
    for (const auto& end : {from, to}) {
      if (!end) continue;
      if (!std::isfinite(*end)) throw_value("Axis: an end of ", *end, " is not a finite number");
      if (scale == AxisScale::log && *end <= 0) throw_value("Axis: an end of ", *end, " is not above 0, as a log scale needs");
    }
    if (from && to && !(*from < *to)) throw_value("Axis: from = ", *from, " is not below to = ", *to);
  }
};

/// The piece of the numbers that an axis shows, low and high end in u.
class AxisRange {
 public:
  /// Holds [smallest, largest] (finite, above 0 on a log scale) with `below` and `above` of its length added at the ends. Where both are one
  /// number v it is the middle: +- 10 % of |v| (1 where v = 0), on a log scale v / 2 to 2 v. A range too narrow for float64 to have ticks in
  /// (1e-12 of its numbers, or 1e-300) is widened.
  AxisRange(AxisScale scale, double smallest, double largest, double below = 0.04, double above = 0.04) : scale_(scale) {
    low_ = u(smallest), high_ = u(largest);
    if (low_ == high_) {
      const double room = scale == AxisScale::log ? std::log10(2.0) : low_ == 0 ? 1 : 0.1 * std::fabs(low_);
      low_ -= room, high_ += room;
    } else {
      const double half = high_ / 2 - low_ / 2;  // the whole might overflow
      low_ -= 2 * below * half, high_ += 2 * above * half;
    }
    const double least = (std::max)(1e-12 * (std::max)(std::fabs(low_), std::fabs(high_)), 1e-300);
    if (high_ / 2 - low_ / 2 < least / 2) low_ -= least, high_ += least;
    constexpr double limit = (std::numeric_limits<double>::max)();
    low_ = std::clamp(low_, -limit, limit), high_ = std::clamp(high_, -limit, limit);
  }

  AxisScale scale() const { return scale_; }
  double low() const { return low_; }    ///< u at the low end
  double high() const { return high_; }  ///< u at the high end
  /// (u(v) - low) / (high - low): 0 at the low end, 1 at the high end.
  double share(double value) const { return (u(value) / 2 - low_ / 2) / (high_ / 2 - low_ / 2); }

 private:
  double u(double value) const { return scale_ == AxisScale::log ? std::log10(value) : value; }
  AxisScale scale_;
  double low_ = 0, high_ = 1;
};

/// A mark on an axis; one without a label is a short one.
struct AxisTick {
  double value = 0;
  std::string label{};
};

namespace detail {

inline constexpr std::string_view minus_sign = "\xE2\x88\x92", times_sign = "\xC3\x97";

/// n * 10^exponent, the nearest float64.
inline double decimal_value(std::int64_t n, int exponent) { return std::strtod(concat(n, "e", exponent).c_str(), nullptr); }

/// n * 10^exponent with all of its digits.
inline std::string decimal_text(std::int64_t n, int exponent) {
  std::string digits = concat(n < 0 ? -n : n);
  if (exponent >= 0) {
    if (n != 0) digits.append(static_cast<std::size_t>(exponent), '0');
  } else {
    const auto decimals = static_cast<std::size_t>(-exponent);
    if (digits.size() <= decimals) digits.insert(0, decimals + 1 - digits.size(), '0');
    digits.insert(digits.size() - decimals, ".");
  }
  return (n < 0 ? std::string(minus_sign) : std::string()) + digits;
}

/// "10⁻³"
inline std::string power_of_ten_text(int exponent) {
  constexpr std::string_view raised[] = {"\xE2\x81\xB0", "\xC2\xB9",     "\xC2\xB2",     "\xC2\xB3",     "\xE2\x81\xB4",
                                         "\xE2\x81\xB5", "\xE2\x81\xB6", "\xE2\x81\xB7", "\xE2\x81\xB8", "\xE2\x81\xB9"};
  std::string out = "10";
  for (const char c : concat(exponent)) out += c == '-' ? std::string_view("\xE2\x81\xBB") : raised[c - '0'];
  return out;
}

/// Multiples of 1, 2 or 5 times a power of ten in [low, high], about `wanted` of them.
inline std::vector<AxisTick> linear_ticks(double low, double high, int wanted) {
  const double raw = std::clamp(2 * (high / 2 / wanted - low / 2 / wanted), 1e-305, (std::numeric_limits<double>::max)());
  int exponent = static_cast<int>(std::floor(std::log10(raw)));
  // The nearest step by ratio: sqrt(1 * 2), sqrt(2 * 5), sqrt(5 * 10) part them.
  const double size = raw / decimal_value(1, exponent);
  const std::int64_t unit = size < 1.4142 || size >= 7.0711 ? 1 : size < 3.1623 ? 2 : 5;
  if (size >= 7.0711) ++exponent;
  const double step = decimal_value(unit, exponent);
  const auto first = static_cast<std::int64_t>(std::ceil(low / step - 1e-6)),
             last = static_cast<std::int64_t>(std::floor(high / step + 1e-6));
  const std::int64_t largest = unit * (std::max)(std::abs(first), std::abs(last));
  const int magnitude = exponent + static_cast<int>(concat(largest).size()) - 1;  // of the largest tick
  // Powers of ten where plain digits would be long, but not where their mantissas would be longer.
  const bool powers =
      largest != 0 && (magnitude >= 6 || magnitude < -3) && (magnitude - exponent <= 4 || std::abs(magnitude) > 14);
  std::vector<AxisTick> out;
  for (std::int64_t k = first; k <= last; ++k) {
    const std::int64_t n = k * unit;
    std::string label = n == 0 ? "0"
                        : powers
                            ? decimal_text(n, exponent - magnitude) + std::string(times_sign) + power_of_ten_text(magnitude)
                            : decimal_text(n, exponent);
    out.push_back({decimal_value(n, exponent), std::move(label)});
  }
  return out;
}

/// m 10^e of these m in [10^low, 10^high], e a multiple of `stride`, in ascending order; without labels.
struct Decimal {
  int m = 1, e = 0;
  double value() const { return decimal_value(m, e); }
};
inline std::vector<Decimal> decimals_between(double low, double high, std::initializer_list<int> mantissas, int stride = 1) {
  std::vector<Decimal> out;
  for (int e = static_cast<int>(std::floor(low / stride)) * stride; e <= high; e += stride)
    for (const int m : mantissas) {
      const double u = e + std::log10(static_cast<double>(m)), slack = 1e-6 * (high - low);
      // Neither beyond float64, nor where it has not the digits.
      if (u >= low - slack && u <= high + slack && std::isnormal(decimal_value(m, e))) out.push_back({m, e});
    }
  return out;
}

inline std::vector<AxisTick> log_ticks(double low, double high, int wanted) {
  int stride = 1;
  for (const int candidate : {1, 2, 5, 10, 20, 50, 100}) {
    stride = candidate;
    if ((high - low) / stride <= wanted) break;
  }
  std::vector<Decimal> labelled = decimals_between(low, high, {1}, stride);
  if (labelled.size() < 3) labelled = decimals_between(low, high, {1, 2, 5});
  if (labelled.size() < 3) labelled = decimals_between(low, high, {1, 2, 3, 4, 5, 6, 7, 8, 9});
  if (labelled.size() < 3) {
    constexpr double limit = (std::numeric_limits<double>::max)();
    std::vector<AxisTick> out = linear_ticks(std::pow(10, low), (std::min)(std::pow(10, high), limit), wanted);
    std::erase_if(out, [](const AxisTick& tick) { return tick.value <= 0; });
    return out;
  }
  const bool powers = labelled.front().e < -3 || labelled.back().e > 4;
  std::vector<AxisTick> out;
  for (const Decimal& d : labelled) {
    std::string label = decimal_text(d.m, d.e);
    if (powers) label = (d.m == 1 ? std::string() : concat(d.m, times_sign)) + power_of_ten_text(d.e);
    out.push_back({d.value(), std::move(label)});
  }
  if (stride == 1)
    for (const Decimal& d : decimals_between(low, high, {1, 2, 3, 4, 5, 6, 7, 8, 9})) {
      const bool known =
          std::any_of(labelled.begin(), labelled.end(), [&](const Decimal& l) { return l.m == d.m && l.e == d.e; });
      if (!known) out.push_back({d.value(), {}});
    }
  return out;
}

}  // namespace detail

/// Where an axis has marks: about `wanted` >= 1 of them that are labelled, at multiples of 1, 2 or 5 times a power of ten; on a log scale at
/// powers of ten, with unlabelled ones between them, at 1, 2 and 5 times these where there are few, and as on a linear one within less than a
/// decade. Labels have the digits that tell neighbours apart, no more, and powers of ten (2.5×10⁷) where they would be long. Subnormal
/// numbers have no marks on a log scale.
inline std::vector<AxisTick> axis_ticks(const AxisRange& range, int wanted) {
  if (wanted < 1) throw_value("axis_ticks: wanted = ", wanted, " is below 1");
  return range.scale() == AxisScale::log ? detail::log_ticks(range.low(), range.high(), wanted)
                                         : detail::linear_ticks(range.low(), range.high(), wanted);
}

}  // namespace sae::inline SAE_ABI
