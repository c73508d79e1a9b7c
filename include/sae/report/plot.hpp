#pragma once
#include <sae/core/types.hpp>
#include <sae/report/axis.hpp>
#include <sae/report/xml_text.hpp>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace sae::inline SAE_ABI {

struct PlotPoint {
  double x = 0, y = 0;
  std::string label{};  ///< shown beside its numbers where the mouse rests on it; a column of the CSV
};

/// Points with one name, in the order in which a line joins them.
struct PlotSeries {
  std::string name{};
  std::vector<PlotPoint> points{};
  bool line = false;    ///< joined; it breaks at a point that is left out
  bool markers = true;  ///< a point without neighbours has one in any case
};

/// A histogram, drawn as bars from 0: heights[i] over [edges[i], edges[i + 1]].
struct PlotBars {
  std::string name{};
  std::vector<double> edges{};    ///< ascending, one more than heights; none where there are no heights
  std::vector<double> heights{};  ///< most often counts; a bar of 0 is not drawn

  /// \throws ShapeError  edges and heights do not fit; ValueError: edges are not ascending finite numbers.
  void check() const {
    if (heights.empty() ? edges.size() > 1 : edges.size() != heights.size() + 1)
      throw_shape("PlotBars: ", edges.size(), " edges do not bound ", heights.size(), " bars");
    for (std::size_t i = 0; i < edges.size(); ++i)
      if (!std::isfinite(edges[i]) || (i > 0 && !(edges[i - 1] < edges[i])))
        throw_value("PlotBars: edge ", i, " = ", edges[i], " is not a finite number above the one before");
  }
};

/// Counts values in `bins` intervals of equal length in u (AxisScale) from the smallest to the largest; a value on an edge belongs to the
/// interval above, the largest to the last one; fewer intervals where float64 has no numbers between. NaN, infinities and, on a log scale, what is not above 0 are not counted. Where all are equal
/// there is one interval, +- 10 % (or +- 1) around it; where there are none, no interval. Errors: ValueError, bins not in [1, 1000000]. Cost O(values).
inline PlotBars histogram(std::string name, std::span<const double> values, Index bins, AxisScale scale = AxisScale::linear) {
  if (bins < 1 || bins > 1'000'000) throw_value("histogram: bins = ", bins, " is not in [1, 1000000]");
  const auto counts = [&](double v) { return std::isfinite(v) && (scale == AxisScale::linear || v > 0); };
  double smallest = std::numeric_limits<double>::infinity(), largest = -smallest;
  for (const double v : values)
    if (counts(v)) smallest = (std::min)(smallest, v), largest = (std::max)(largest, v);
  PlotBars out{.name = std::move(name)};
  if (!(smallest <= largest)) return out;
  if (smallest == largest) bins = 1;
  const AxisRange range(scale, smallest, largest, 0, 0);
  for (Index i = 0; i <= bins; ++i) {
    const double share = static_cast<double>(i) / static_cast<double>(bins);
    const double u = (1 - share) * range.low() + share * range.high();
    const double edge = scale == AxisScale::log ? std::pow(10, u) : u;
    if (out.edges.empty() || edge > out.edges.back()) out.edges.push_back(edge);
  }
  out.edges.front() = (std::min)(out.edges.front(), smallest), out.edges.back() = (std::max)(out.edges.back(), largest);
  out.heights.assign(out.edges.size() - 1, 0);
  for (const double v : values) {
    if (!counts(v)) continue;
    const auto above = std::upper_bound(out.edges.begin(), out.edges.end(), v) - out.edges.begin();
    out.heights[(std::min)(static_cast<std::size_t>(above) - 1, out.heights.size() - 1)] += 1;
  }
  return out;
}

struct PlotOptions {
  std::string title{};
  Axis x{}, y{};
  double width = 720;   ///< pixels of the whole figure, >= 200
  double height = 340;  ///< pixels of the area inside the axes, >= 50; title, legend and labels come on top

  void check() const {
    x.check(), y.check();
    if (!(width >= 200 && width <= 20'000)) throw_value("Plot: width = ", width, " is not in [200, 20000] pixels");
    if (!(height >= 50 && height <= 20'000)) throw_value("Plot: height = ", height, " is not in [50, 20000] pixels");
  }
};

/// Where data lie in a figure. Its area inside the axes is the rectangle (left, top, width, height) in pixels, y downwards.
struct PlotFrame {
  double left = 0, top = 0, width = 0, height = 0;
  AxisRange x, y;
  /// Pixel of a point: left + width * x.share(v), top + height * (1 - y.share(w)).
  std::array<double, 2> at(double v, double w) const { return {left + width * x.share(v), top + height * (1 - y.share(w))}; }
};

/// Points and bars that a figure does not show, by the reason.
struct PlotLeftOut {
  Index not_finite = 0;
  Index not_positive = 0;  ///< on a log axis
  Index outside = 0;       ///< of the ends that an Axis names
  Index total() const { return not_finite + not_positive + outside; }
  friend bool operator==(const PlotLeftOut&, const PlotLeftOut&) = default;
};

/// A figure of series of points, joined or not, and of histograms, as SVG or CSV.
///
///   Plot plot({.title = "SmolLM2", .x = {.label = "L0 (active latents a row)", .scale = AxisScale::log}, .y = {.label = "explained variance"}});
///   plot.add({.name = "topk", .points = points, .line = true});
///   atomic_write_text("pareto.svg", plot.svg());
///
/// The SVG stands alone: no script, font or style from outside; dark where the reader's system is (prefers-color-scheme). Series differ by
/// colour (seven of Okabe and Ito 2008, "Color Universal Design", which the colour-blind tell apart; without yellow, which white swallows), by
/// the shape of their markers (eight), and from the eighth on by dashes. Numbers that are not finite, not above 0 on a log axis, or outside of
/// ends that were asked for are left out, counted (`left_out`), and the figure says so. All other numbers of float64 can be shown. What was
/// added is in `csv`, shown or not. Text may be any bytes (xml_text). The same data give the same bytes. Cost: one element a point.
///
/// For scripts and tests each figure is a <g class="plot"> that names its frame: data-left, data-top, data-width, data-height in pixels, and
/// data-x-scale, data-x-low, data-x-high (in log10 where the scale is log), data-y-... A marker is <path class="marker" transform=
/// "translate(px py)">, a bar <rect class="bar">, in a <g class="series" data-name="...">; pixels have two decimals.
class Plot {
 public:
  explicit Plot(PlotOptions options = {}) : options_(std::move(options)) { options_.check(); }

  void add(PlotSeries series) { series_.push_back({std::move(series), {}, false}); }
  void add(PlotBars bars) {
    bars.check();
    series_.push_back({{.name = bars.name}, std::move(bars), true});
    has_bars_ = true;
  }

  /// Of the figure in `svg()`.
  PlotFrame frame() const { return layout().frame; }
  PlotLeftOut left_out() const { return layout().left_out; }

  /// One file with this figure alone.
  std::string svg() const { return svg_of(std::span(this, 1)); }
  /// One file with several figures, one below the other, their left axes in one line.
  static std::string svg_of(std::span<const Plot> plots) {
    double width = 0, height = 0, left = 0;
    for (const Plot& plot : plots) left = (std::max)(left, plot.frame().left);
    std::string body;
    for (const Plot& plot : plots) {
      const Layout layout = plot.layout(left);
      plot.draw(body, layout, height);
      width = (std::max)(width, plot.options_.width);
      height += layout.height;
    }
    const std::string size = detail::concat("width=\"", px(width), "\" height=\"", px(height), "\"");
    return detail::concat("<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"sae-plot\" ", size, " viewBox=\"0 0 ", px(width),
                          " ", px(height), "\" role=\"img\" aria-label=\"", xml_text(spoken(plots)), "\">\n", style(),
                          "<rect class=\"paper\" ", size, "/>\n", body, "</svg>\n");
  }

  /// series,x,y and, where there are bars, x_end behind x; label where there are some. Every point and bar that was added, NaN and infinities
  /// as nan, inf and -inf.
  std::string csv() const { return csv_of(std::span(this, 1)); }
  /// The same of several, with the labels of their y axes in a first column, plot.
  static std::string csv_of(std::span<const Plot> plots) {
    const bool several = plots.size() > 1;
    bool bars = false, labels = false;
    for (const Plot& plot : plots) {
      bars = bars || plot.has_bars_;
      for (const Item& item : plot.series_)
        for (const PlotPoint& point : item.points.points) labels = labels || !point.label.empty();
    }
    std::string out =
        detail::concat(several ? "plot," : "", "series,x", bars ? ",x_end" : "", ",y", labels ? ",label" : "", "\n");
    for (const Plot& plot : plots)
      for (const Item& item : plot.series_) {
        const auto row = [&](const std::string& x, const std::string& x_end, double y, const std::string& label) {
          if (several) out += csv_cell(plot.options_.y.label) + ",";
          out += csv_cell(item.points.name) + "," + x + (bars ? "," + x_end : "") + "," + detail::concat(y);
          out += (labels ? "," + csv_cell(label) : "") + "\n";
        };
        for (const PlotPoint& point : item.points.points) row(detail::concat(point.x), "", point.y, point.label);
        for (std::size_t i = 0; i < item.bars.heights.size(); ++i)
          row(detail::concat(item.bars.edges[i]), detail::concat(item.bars.edges[i + 1]), item.bars.heights[i], "");
      }
    return out;
  }

 private:
  struct Item {
    PlotSeries points;
    PlotBars bars;
    bool is_bars = false;
  };
  struct LegendEntry {
    std::size_t item = 0;
    double x = 0, y = 0, room = 0;  ///< of the text
  };
  struct Layout {
    PlotFrame frame;
    std::vector<AxisTick> x_ticks, y_ticks;
    std::vector<LegendEntry> legend;
    PlotLeftOut left_out;
    bool nothing = false;  ///< is shown
    double height = 0;     ///< of the whole figure
  };

  // ---- what is shown, and on which piece of the axes

  /// use(x, x_end, y) of all points (x_end is x) and bars.
  template <class Use>
  void for_each_datum(const Use& use) const {
    for (const Item& item : series_) {
      for (const PlotPoint& point : item.points.points) use(point.x, point.x, point.y);
      for (std::size_t i = 0; i < item.bars.heights.size(); ++i)
        if (item.bars.heights[i] != 0) use(item.bars.edges[i], item.bars.edges[i + 1], item.bars.heights[i]);
    }
  }
  /// Why a datum is not shown: the counter of `out`; nullptr where it is shown.
  Index* reason(PlotLeftOut& out, double x, double x_end, double y) const {
    const auto outside = [](const Axis& axis, double v) { return (axis.from && v < *axis.from) || (axis.to && v > *axis.to); };
    const Axis &of_x = options_.x, &of_y = options_.y;
    if (!std::isfinite(x) || !std::isfinite(y)) return &out.not_finite;
    if ((of_x.scale == AxisScale::log && x <= 0) || (of_y.scale == AxisScale::log && y <= 0)) return &out.not_positive;
    if (outside(of_x, x) || outside(of_x, x_end) || outside(of_y, y)) return &out.outside;
    return nullptr;
  }
  bool shows(double x, double x_end, double y) const {
    PlotLeftOut ignored;
    return reason(ignored, x, x_end, y) == nullptr;
  }

  struct Extent {
    double low = std::numeric_limits<double>::infinity(), high = -low;
    void add(double v) { low = (std::min)(low, v), high = (std::max)(high, v); }
  };
  static AxisRange range_of(const Axis& axis, Extent data, bool from_zero) {
    const bool log = axis.scale == AxisScale::log;
    if (!(data.low <= data.high)) {
      data.low = axis.from ? *axis.from : axis.to ? (log ? *axis.to / 10 : *axis.to - 1) : (log ? 1 : 0);
      data.high = axis.to ? *axis.to : (log ? data.low * 10 : data.low + 1);
      if (!std::isfinite(data.high)) data.high = data.low;
      if (!(data.low > 0) && log) data.low = data.high;
      return {axis.scale, data.low, data.high, 0, 0};
    }
    double below = 0.04, above = 0.04;
    if (from_zero && log)
      data.low = (std::max)(data.low / 2, std::numeric_limits<double>::denorm_min()), below = 0;  // the least bar is not flat
    if (from_zero && !log) {
      data.add(0);
      if (data.low == 0) below = 0;
      if (data.high == 0) above = 0;
    }
    if (axis.from) data.low = *axis.from, below = 0;
    if (axis.to) data.high = *axis.to, above = 0;
    return {axis.scale, data.low, data.high, below, above};
  }

  /// \param left  where the area begins at least
  Layout layout(double left = 0) const {
    Extent x, y;
    PlotLeftOut left_out;
    for_each_datum([&](double from, double to, double v) {
      if (Index* const why = reason(left_out, from, to, v)) {
        ++*why;
      } else {
        x.add(from), x.add(to), y.add(v);
      }
    });
    Layout out{.frame = {.x = range_of(options_.x, x, false), .y = range_of(options_.y, y, has_bars_)},
               .x_ticks = {},
               .y_ticks = {},
               .legend = {},
               .left_out = left_out,
               .nothing = !(x.low <= x.high)};
    PlotFrame& frame = out.frame;
    frame.height = options_.height;
    out.y_ticks = axis_ticks(frame.y, (std::max)(2, static_cast<int>(frame.height / 55)));
    double labels = 0;
    for (const AxisTick& tick : out.y_ticks) labels = (std::max)(labels, text_width(tick.label, tick_size));
    const double needed = margin + (options_.y.label.empty() ? 0 : 22) + labels + 10;
    frame.left = (std::min)((std::max)(left, needed), options_.width / 2);
    frame.width = options_.width - frame.left - 2 * margin;
    out.x_ticks = axis_ticks(frame.x, (std::max)(2, static_cast<int>(frame.width / 80)));

    double top = options_.title.empty() ? margin : margin + 24;
    const bool named = std::any_of(series_.begin(), series_.end(), [](const Item& item) { return !item.points.name.empty(); });
    if (named) {
      double at = frame.left;
      const double end = frame.left + frame.width;
      for (std::size_t i = 0; i < series_.size(); ++i) {
        const double room = (std::min)(text_width(series_[i].points.name, label_size), frame.width - key_width);
        if (at > frame.left && at + key_width + room > end) at = frame.left, top += legend_row;
        out.legend.push_back({i, at + key_width, top + 10, room});
        at += key_width + room + 18;
      }
      top += legend_row;
    }
    frame.top = top + 6;
    out.height = frame.top + frame.height + 24 + (options_.x.label.empty() ? 0 : 24) + (left_out.total() > 0 ? 20 : 0) + 8;
    return out;
  }

  // ---- drawing

  static constexpr double margin = 14, legend_row = 20, key_width = 30, tick_size = 12, label_size = 13, title_size = 16;
  static constexpr std::array<std::string_view, 7> colours{"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                                           "#e69f00", "#56b4e9", "#000000"};
  static constexpr std::array<std::string_view, 8> shapes{
      "M-4.5 0A4.5 4.5 0 1 0 4.5 0A4.5 4.5 0 1 0 -4.5 0Z",                                                    // circle
      "M-4 -4H4V4H-4Z",                                                                                       // square
      "M0 -5.4L5 3.6H-5Z",                                                                                    // triangle
      "M0 -5.8L5.2 0L0 5.8L-5.2 0Z",                                                                          // diamond
      "M0 5.4L5 -3.6H-5Z",                                                                                    // triangle, down
      "M-1.8 -5.2H1.8V-1.8H5.2V1.8H1.8V5.2H-1.8V1.8H-5.2V-1.8H-1.8Z",                                         // plus
      "M-4.9 -2.4L-2.4 -4.9L0 -2.5L2.4 -4.9L4.9 -2.4L2.5 0L4.9 2.4L2.4 4.9L0 2.5L-2.4 4.9L-4.9 2.4L-2.5 0Z",  // cross
      "M0 -6.2L1.6 -2.1L5.9 -1.9L2.6 0.8L3.6 5L0 2.7L-3.6 5L-2.6 0.8L-5.9 -1.9L-1.6 -2.1Z"};                  // star

  /// Up to two decimals.
  static std::string px(double v) {
    char digits[64];
    const auto end = std::to_chars(digits, digits + sizeof digits, v, std::chars_format::fixed, 2).ptr;
    std::string out(digits, end);
    out.erase(out.find_last_not_of('0') + 1);
    if (out.back() == '.') out.pop_back();
    return out == "-0" ? "0" : out;
  }
  /// A number for people.
  static std::string number(double v) {
    char digits[64];
    return {digits, std::to_chars(digits, digits + sizeof digits, v, std::chars_format::general, 5).ptr};
  }
  /// Bytes of the first n characters; of a text with fewer, all. A byte that is no UTF-8 counts as one.
  static std::size_t bytes_of_first(std::string_view text, Index n) {
    std::size_t at = 0;
    for (; n > 0 && at < text.size(); --n) at += (std::max)(detail::utf8_length(text.substr(at)), std::size_t{1});
    return at;
  }
  static Index characters(std::string_view text) {
    Index n = 0;
    for (; !text.empty(); ++n) text.remove_prefix(bytes_of_first(text, 1));
    return n;
  }
  /// An estimate, since who draws the text is not known: 0.62 of the size a character, which is wide for most fonts.
  static double text_width(std::string_view text, double size) { return 0.62 * size * static_cast<double>(characters(text)); }
  static std::string csv_cell(const std::string& text) {
    if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
    std::string out = "\"";
    for (const char c : text) out += c == '"' ? std::string("\"\"") : std::string(1, c);
    return out + "\"";
  }
  static std::string spoken(std::span<const Plot> plots) {
    std::string out;
    for (const Plot& plot : plots) {
      const PlotOptions& of = plot.options_;
      if (!out.empty()) out += "; ";
      out += of.title + (of.title.empty() ? "" : ": ") + (of.y.label.empty() ? "y" : of.y.label) + " against " +
             (of.x.label.empty() ? "x" : of.x.label);
    }
    return out.empty() ? "plot" : out;
  }
  /// Names are bounded by .sae-plot, so that an SVG in the midst of a page leaves the page alone. Without variables of CSS, which programs
  /// that are no browsers lack.
  static std::string style() {
    std::string out =
        "<style>\n"
        ".sae-plot{font-family:system-ui,-apple-system,\"Segoe UI\",Helvetica,Arial,\"DejaVu Sans\",sans-serif}\n"
        ".sae-plot .paper{fill:#ffffff}.sae-plot text{fill:#1f2328;stroke:none}.sae-plot .tick,.sae-plot .note{fill:#57606a}\n"
        ".sae-plot .grid{stroke:#e4e7eb;fill:none}.sae-plot .axis{stroke:#57606a;fill:none}\n"
        ".sae-plot .line{fill:none;stroke-width:1.8;stroke-linejoin:round;stroke-linecap:round}\n"
        ".sae-plot .marker,.sae-plot .bar{stroke:#ffffff;stroke-width:0.8}.sae-plot .bar{fill-opacity:0.75}\n";
    for (std::size_t c = 0; c < colours.size(); ++c)
      out += detail::concat(".sae-plot .c", c, " .marker,.sae-plot .c", c, " .bar{fill:", colours[c], "}.sae-plot .c", c,
                            " .line{stroke:", colours[c], "}\n");
    return out +
           "@media (prefers-color-scheme:dark){\n"
           ".sae-plot .paper{fill:#0f1419}.sae-plot text{fill:#e6edf3}.sae-plot .tick,.sae-plot .note{fill:#a0a9b3}\n"
           ".sae-plot .grid{stroke:#2a3038}.sae-plot .axis{stroke:#a0a9b3}.sae-plot .marker,.sae-plot .bar{stroke:#0f1419}\n"
           ".sae-plot .c0 .marker,.sae-plot .c0 .bar{fill:#1f83c4}.sae-plot .c0 .line{stroke:#1f83c4}\n"
           ".sae-plot .c6 .marker,.sae-plot .c6 .bar{fill:#ffffff}.sae-plot .c6 .line{stroke:#ffffff}\n"
           "}\n</style>\n";
  }

  /// \param room  pixels that it may take: a longer one is set smaller, down to size 9, and then cut
  static std::string text(const char* cls, double x, double y, double size, const char* anchor, std::string_view words,
                          double room, const std::string& more = "") {
    std::string cut;
    if (const double width = text_width(words, size); width > room + 0.01) {
      size = (std::max)((std::min)(9.0, size), size * room / width);
      if (const auto fit = static_cast<Index>(room / text_width("x", size) + 0.01); fit < characters(words)) {
        cut = std::string(words.substr(0, bytes_of_first(words, fit - 1))) + "\xE2\x80\xA6";
        words = cut;
      }
    }
    return detail::concat("<text class=\"", cls, "\" x=\"", px(x), "\" y=\"", px(y), "\" font-size=\"", px(size),
                          "\" text-anchor=\"", anchor, "\"", more, ">", xml_text(words), "</text>\n");
  }
  static std::string path(const char* cls, const std::string& d) {
    return detail::concat("<path class=\"", cls, "\" d=\"", d, "\"/>\n");
  }

  void draw(std::string& out, const Layout& layout, double y_offset) const {
    using detail::concat;
    const PlotFrame& frame = layout.frame;
    const auto range = [&](const char* name, const AxisRange& of) {
      return concat(" data-", name, "-scale=\"", of.scale() == AxisScale::log ? "log" : "linear", "\" data-", name, "-low=\"",
                    of.low(), "\" data-", name, "-high=\"", of.high(), "\"");
    };
    out += concat("<g class=\"plot\" transform=\"translate(0 ", px(y_offset), ")\" data-left=\"", frame.left, "\" data-top=\"",
                  frame.top, "\" data-width=\"", frame.width, "\" data-height=\"", frame.height, "\"", range("x", frame.x),
                  range("y", frame.y), ">\n");
    if (!options_.title.empty())
      out += text("title", frame.left, margin + 12, title_size, "start", options_.title, options_.width - frame.left - margin,
                  " font-weight=\"600\"");
    draw_legend(out, layout);
    std::string axes;
    draw_axes(out, axes, layout);
    for (std::size_t i = 0; i < series_.size(); ++i) {
      out += concat("<g class=\"series c", i % colours.size(), "\" data-name=\"", xml_text(series_[i].points.name), "\">\n");
      if (series_[i].is_bars)
        draw_bars(out, frame, series_[i].bars);
      else
        draw_points(out, frame, i);
      out += "</g>\n";
    }
    out += axes + "</g>\n";
  }

  static std::string dashes(std::size_t i) {
    constexpr std::array<const char*, 4> patterns{"7 4", "2 4", "9 3 2 3", "4 3"};
    return i < colours.size()
               ? ""
               : detail::concat(" stroke-dasharray=\"", patterns[(i / colours.size() - 1) % patterns.size()], "\"");
  }
  static std::string marker(std::size_t i, double x, double y) {
    return detail::concat("<path class=\"marker\" transform=\"translate(", px(x), " ", px(y), ")\" d=\"",
                          shapes[i % shapes.size()], "\"");
  }

  void draw_legend(std::string& out, const Layout& layout) const {
    using detail::concat;
    for (const LegendEntry& entry : layout.legend) {
      const Item& item = series_[entry.item];
      const double x = entry.x - 16, y = entry.y;  // the middle of its key
      out += concat("<g class=\"legend c", entry.item % colours.size(), "\">\n");
      if (item.is_bars) {
        out += concat("<rect class=\"bar\" x=\"", px(x - 7), "\" y=\"", px(y - 5), "\" width=\"14\" height=\"10\"/>\n");
      } else {
        if (item.points.line)
          out +=
              concat("<path class=\"line\"", dashes(entry.item), " d=\"M", px(x - 11), " ", px(y), "H", px(x + 11), "\"/>\n");
        if (item.points.markers) out += marker(entry.item, x, y) + "/>\n";
      }
      out += text("name", entry.x, y + 4.5, label_size, "start", item.points.name, entry.room) + "</g>\n";
    }
  }

  /// \param below  gets what lies below the data, `out` what lies above
  void draw_axes(std::string& below, std::string& out, const Layout& layout) const {
    using detail::concat;
    const PlotFrame& frame = layout.frame;
    const double left = frame.left, right = left + frame.width, top = frame.top, bottom = top + frame.height;
    std::string grid, marks, labels;
    double free = -1e9;
    for (const AxisTick& tick : layout.x_ticks) {
      const double x = left + frame.width * frame.x.share(tick.value), half = text_width(tick.label, tick_size) / 2;
      marks += concat("M", px(x), " ", px(bottom), "v", tick.label.empty() ? 3 : 5);
      if (tick.label.empty()) continue;
      grid += concat("M", px(x), " ", px(top), "V", px(bottom));
      if (x - half < free || x + half > options_.width) continue;  // labels never touch
      free = x + half + 8;
      labels += text("tick x-tick", x, bottom + 19, tick_size, "middle", tick.label, 2 * half);
    }
    free = 1e9;
    for (const AxisTick& tick : layout.y_ticks) {
      const double y = top + frame.height * (1 - frame.y.share(tick.value));
      marks += concat("M", px(left), " ", px(y), "h-", tick.label.empty() ? 3 : 5);
      if (tick.label.empty()) continue;
      grid += concat("M", px(left), " ", px(y), "H", px(right));
      if (y > free) continue;
      free = y - tick_size - 2;
      labels += text("tick y-tick", left - 9, y + 4.2, tick_size, "end", tick.label, left - 9);
    }
    if (!grid.empty()) below += path("grid", grid);
    out += path("axis", concat("M", px(left), " ", px(top), "V", px(bottom), "H", px(right), marks));
    out += labels;
    double y = bottom + 24;
    if (!options_.x.label.empty()) {
      out +=
          text("label x-label", left + frame.width / 2, y + 17, label_size, "middle", options_.x.label, options_.width - left);
      y += 24;
    }
    if (!options_.y.label.empty()) {
      const double at_y = top + frame.height / 2;
      out += text("label y-label", margin + 9, at_y, label_size, "middle", options_.y.label,
                  frame.height + 2 * (std::min)(top, 40.0),
                  concat(" transform=\"rotate(-90 ", px(margin + 9), " ", px(at_y), ")\""));
    }
    if (layout.left_out.total() > 0)
      out += text("note", left, y + 16, tick_size, "start", words_of(layout.left_out), options_.width - left - margin);
    if (layout.nothing)
      out += text("note nothing", left + frame.width / 2, top + frame.height / 2, label_size, "middle", "nothing to show",
                  frame.width);
  }
  static std::string words_of(const PlotLeftOut& left_out) {
    std::string out;
    const auto say = [&](Index n, const char* what) {
      if (n > 0) out += detail::concat(out.empty() ? "left out: " : ", ", n, " ", what);
    };
    say(left_out.not_finite, "not finite");
    say(left_out.not_positive, "not above 0, on a log axis");
    say(left_out.outside, "outside of the axes");
    return out;
  }

  void draw_points(std::string& out, const PlotFrame& frame, std::size_t i) const {
    using detail::concat;
    const PlotSeries& series = series_[i].points;
    const std::vector<PlotPoint>& points = series.points;
    std::string line, markers;
    const auto shown = [&](std::size_t p) { return p < points.size() && shows(points[p].x, points[p].x, points[p].y); };
    for (std::size_t p = 0; p < points.size(); ++p) {
      if (!shown(p)) continue;
      const auto [x, y] = frame.at(points[p].x, points[p].y);
      const bool joined_before = p > 0 && shown(p - 1), joined = series.line && (joined_before || shown(p + 1));
      if (joined) line += concat(joined_before ? "L" : "M", px(x), " ", px(y));
      if (series.markers || !joined) {
        const std::string& name = points[p].label.empty() ? series.name : points[p].label;
        markers += concat(marker(i, x, y), "><title>", xml_text(name), name.empty() ? "" : ": ", number(points[p].x), ", ",
                          number(points[p].y), "</title></path>\n");
      }
    }
    if (!line.empty()) out += concat("<path class=\"line\"", dashes(i), " d=\"", line, "\"/>\n");
    out += markers;
  }

  void draw_bars(std::string& out, const PlotFrame& frame, const PlotBars& bars) const {
    const AxisRange& y_range = frame.y;
    const double zero = y_range.scale() == AxisScale::log ? 0 : std::clamp(y_range.share(0), 0.0, 1.0);
    const double floor_y = frame.top + frame.height * (1 - zero);
    for (std::size_t b = 0; b < bars.heights.size(); ++b) {
      const double from = bars.edges[b], to = bars.edges[b + 1], height = bars.heights[b];
      if (height == 0 || !shows(from, to, height)) continue;
      const auto [x, y] = frame.at(from, height);
      const double x_end = frame.at(to, height)[0];
      out += detail::concat("<rect class=\"bar\" x=\"", px(x), "\" y=\"", px((std::min)(y, floor_y)), "\" width=\"",
                            px(x_end - x), "\" height=\"", px(std::fabs(floor_y - y)), "\"><title>", number(from), " to ",
                            number(to), ": ", number(height), "</title></rect>\n");
    }
  }

  PlotOptions options_;
  std::vector<Item> series_;
  bool has_bars_ = false;
};

}  // namespace sae::inline SAE_ABI
