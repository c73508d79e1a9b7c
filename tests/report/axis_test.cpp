#include <sae/report/axis.hpp>

#include <cfloat>
#include <cmath>

#include "catch_compat.hpp"

using namespace sae;
using Catch::Matchers::ContainsSubstring;

namespace {

std::vector<std::string> labels_of(const std::vector<AxisTick>& ticks) {
  std::vector<std::string> out;
  for (const AxisTick& tick : ticks)
    if (!tick.label.empty()) out.push_back(tick.label);
  return out;
}
std::vector<double> values_of(const std::vector<AxisTick>& ticks, bool labelled = true) {
  std::vector<double> out;
  for (const AxisTick& tick : ticks)
    if (tick.label.empty() != labelled) out.push_back(tick.value);
  return out;
}
std::vector<AxisTick> ticks(AxisScale scale, double low, double high, int wanted = 6) {
  return axis_ticks(AxisRange(scale, low, high, 0, 0), wanted);
}
constexpr AxisScale linear = AxisScale::linear, logarithmic = AxisScale::log;
using Labels = std::vector<std::string>;
using Values = std::vector<double>;

/// What a label says, read as a reader would.
double read(std::string label) {
  const auto replace = [&](const std::string& from, const std::string& to) {
    for (std::size_t at = 0; (at = label.find(from, at)) != std::string::npos; at += to.size())
      label.replace(at, from.size(), to);
  };
  const std::vector<std::string> raised{"⁰", "¹", "²", "³", "⁴", "⁵", "⁶", "⁷", "⁸", "⁹"};
  replace("−", "-");
  if (const std::size_t power = label.find("10"); power != std::string::npos) {
    const bool has_power =
        label.find("×10") != std::string::npos || label.find_first_not_of("0123456789.-") != std::string::npos;
    if (has_power) {
      replace("×10", "e");
      if (label.starts_with("10")) label.replace(0, 2, "1e");
      replace("⁻", "-");
      for (std::size_t d = 0; d < raised.size(); ++d) replace(raised[d], std::to_string(d));
    }
  }
  std::size_t used = 0;
  const double out = std::stod(label, &used);
  if (used != label.size()) throw std::runtime_error("no number: " + label);
  return out;
}

}  // namespace

TEST_CASE("axis range: shares of its length, by hand", "[report]") {
  const AxisRange exact(linear, 2, 10, 0, 0);
  CHECK(exact.low() == 2);
  CHECK(exact.high() == 10);
  CHECK(exact.share(2) == 0);
  CHECK(exact.share(4) == Approx(0.25).epsilon(1e-15));
  CHECK(exact.share(12) == Approx(1.25).epsilon(1e-15));
  const AxisRange margins(linear, 0, 100, 0.1, 0.05);
  CHECK(margins.low() == Approx(-10).epsilon(1e-15));
  CHECK(margins.high() == Approx(105).epsilon(1e-15));
  const AxisRange decades(logarithmic, 1, 10'000, 0, 0);
  CHECK(decades.low() == 0);
  CHECK(decades.high() == Approx(4).epsilon(1e-15));
  CHECK(decades.share(10) == Approx(0.25).epsilon(1e-15));
  CHECK(decades.share(std::sqrt(1e4)) == Approx(0.5).epsilon(1e-15));
}

TEST_CASE("axis range: one number alone is the middle, and any numbers have a finite range", "[report]") {
  for (const double v : {0.0, 0.86, -3.0, 1e300, -DBL_MAX, 5e-324}) {
    const AxisRange range(linear, v, v);
    CAPTURE(v);
    CHECK(range.low() < range.high());
    CHECK(std::isfinite(range.low()));
    CHECK(std::isfinite(range.high()));
    CHECK(std::fabs(range.share(v) - 0.5) <
          (std::fabs(v) == DBL_MAX ? 0.51 : 1e-9));  // the largest has no room on its other side
  }
  CHECK(AxisRange(linear, 2, 2).low() == Approx(1.8));
  CHECK(AxisRange(linear, 0, 0).high() == 1);
  const AxisRange octaves(logarithmic, 3, 3);
  CHECK(octaves.share(1.5) == Approx(0).margin(1e-12));
  CHECK(octaves.share(6) == Approx(1).epsilon(1e-12));

  const std::vector<std::pair<double, double>> pairs{{-DBL_MAX, DBL_MAX}, {0, 5e-324},      {1, 1 + DBL_EPSILON},
                                                     {1e-310, 2e-310},    {-1e-300, 1e300}, {1e9, 1e9 + 1e-3},
                                                     {DBL_MIN, DBL_MAX}};
  for (const auto& [low, high] : pairs)
    for (const AxisScale scale : {linear, logarithmic}) {
      if (scale == logarithmic && low <= 0) continue;
      CAPTURE(low, high);
      const AxisRange range(scale, low, high);
      CHECK(range.low() < range.high());
      CHECK(range.share(low) >= 0);
      CHECK(range.share(low) <= range.share(high));
      CHECK(range.share(high) <= 1);
      for (const int wanted : {1, 2, 6, 12}) {
        const std::vector<AxisTick> marks = axis_ticks(range, wanted);
        CHECK(marks.size() <= 120);
        for (const AxisTick& mark : marks) {
          CHECK(range.share(mark.value) >= -1e-5);
          CHECK(range.share(mark.value) <= 1 + 1e-5);
        }
      }
    }
}

TEST_CASE("linear ticks lie at multiples of 1, 2 and 5, with the digits they need", "[report]") {
  CHECK(values_of(ticks(linear, 0, 1)) == Values{0, 0.2, 0.4, 0.6, 0.8, 1});  // 0.6 itself, not 3 * 0.2
  CHECK(labels_of(ticks(linear, 0, 1)) == Labels{"0", "0.2", "0.4", "0.6", "0.8", "1.0"});
  CHECK(labels_of(ticks(linear, 0, 100)) == Labels{"0", "20", "40", "60", "80", "100"});
  CHECK(labels_of(ticks(linear, -3.2, 2.9)) == Labels{"−3", "−2", "−1", "0", "1", "2"});
  CHECK(labels_of(ticks(linear, 0.983, 0.997, 4)) == Labels{"0.985", "0.990", "0.995"});
  CHECK(labels_of(ticks(linear, 12'000, 20'000, 4)) == Labels{"12000", "14000", "16000", "18000", "20000"});
  CHECK(labels_of(ticks(linear, 0, 2e7, 4)) == Labels{"0", "0.5×10⁷", "1.0×10⁷", "1.5×10⁷", "2.0×10⁷"});
  CHECK(labels_of(ticks(linear, -2e-5, 0, 2)) == Labels{"−2×10⁻⁵", "−1×10⁻⁵", "0"});
  CHECK(labels_of(ticks(linear, 1e9, 1e9 + 0.0041, 2)) == Labels{"1000000000.000", "1000000000.002", "1000000000.004"});
  CHECK_THROWS_WITH(axis_ticks(AxisRange(linear, 0, 1), 0), ContainsSubstring("wanted = 0 is below 1"));
}

TEST_CASE("log ticks: decades, 1 2 5, and as on a linear axis within a decade", "[report]") {
  const auto decades = ticks(logarithmic, 0.01, 1000);
  CHECK(labels_of(decades) == Labels{"0.01", "0.1", "1", "10", "100", "1000"});
  CHECK(values_of(decades) == Values{0.01, 0.1, 1, 10, 100, 1000});
  CHECK(values_of(decades, false).size() == 5 * 8);
  CHECK(labels_of(ticks(logarithmic, 8, 256)) == Labels{"10", "20", "50", "100", "200"});
  CHECK(labels_of(ticks(logarithmic, 9, 31)) == Labels{"9", "10", "20", "30"});
  CHECK(labels_of(ticks(logarithmic, 30, 39)) == Labels{"30", "32", "34", "36", "38"});
  CHECK(labels_of(ticks(logarithmic, 1e-9, 1)) == Labels{"10⁻⁸", "10⁻⁶", "10⁻⁴", "10⁻²", "10⁰"});
  CHECK(labels_of(ticks(logarithmic, 1e4, 1e6)) == Labels{"10⁴", "10⁵", "10⁶"});
  CHECK(labels_of(ticks(logarithmic, 1e7, 5e7)) == Labels{"10⁷", "2×10⁷", "5×10⁷"});
}

TEST_CASE("what a label says is where the tick is", "[report]") {
  for (const AxisScale scale : {linear, logarithmic})
    for (const double low : {1e-12, 0.003, 0.9, 7.0, 4e5, 3e100})
      for (const double factor : {1.001, 1.3, 4.0, 30.0, 1e5, 1e20}) {
        const std::vector<AxisTick> marks = ticks(scale, low, low * factor);
        CAPTURE(low, factor);
        CHECK(labels_of(marks).size() >= 2);
        for (const AxisTick& mark : marks)
          if (!mark.label.empty()) {
            CAPTURE(mark.label);
            CHECK(read(mark.label) == Approx(mark.value).epsilon(1e-14));
          }
      }
}

TEST_CASE("ends of an axis that make no sense are refused", "[report]") {
  const auto refuses = [](const Axis& axis, const std::string& why) {
    CHECK_THROWS_WITH(axis.check(), ContainsSubstring(why));
  };
  refuses({.from = std::nan("")}, "an end of nan is not a finite number");
  refuses({.scale = logarithmic, .to = 0.0}, "an end of 0 is not above 0");
  refuses({.from = 2.0, .to = 2.0}, "from = 2 is not below to = 2");
  Axis({.scale = logarithmic, .from = 1.0, .to = 2.0}).check();
}
