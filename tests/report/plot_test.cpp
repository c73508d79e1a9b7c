#include <sae/report/plot.hpp>

#include <cfloat>
#include <cmath>
#include <numeric>
#include <set>

#include "catch_compat.hpp"
#include "xml_elements.hpp"

using namespace sae;
using Catch::Matchers::ContainsSubstring;
using sae_test::XmlElement;
using sae_test::XmlReader;

namespace {

constexpr double nan_ = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
using Pixel = std::pair<double, double>;

Pixel place_of(const XmlElement& marker) {
  double x = 0, y = 0;
  if (std::sscanf(marker.at("transform").c_str(), "translate(%lf %lf)", &x, &y) != 2) throw std::runtime_error("no place");
  return {x, y};
}
/// Corners of an "M x y L x y ..." path, a piece for each M.
std::vector<std::vector<Pixel>> pieces_of(const std::string& d) {
  std::vector<std::vector<Pixel>> out;
  for (std::size_t at = 0; at < d.size();) {
    int used = 0;
    char letter = 0;
    double x = 0, y = 0;
    if (std::sscanf(d.c_str() + at, "%c%lf %lf%n", &letter, &x, &y, &used) != 3) throw std::runtime_error("no path: " + d);
    if (letter == 'M') out.emplace_back();
    out.back().push_back({x, y});
    at += static_cast<std::size_t>(used);
  }
  return out;
}
/// The mapping that the header promises, from what the file says about its frame.
struct Mapping {
  double left, top, width, height;
  std::array<double, 2> low, high;
  std::array<bool, 2> log;
  explicit Mapping(const XmlElement& plot)
      : left(plot.number("data-left")),
        top(plot.number("data-top")),
        width(plot.number("data-width")),
        height(plot.number("data-height")),
        low{plot.number("data-x-low"), plot.number("data-y-low")},
        high{plot.number("data-x-high"), plot.number("data-y-high")},
        log{plot.at("data-x-scale") == "log", plot.at("data-y-scale") == "log"} {}
  double share(std::size_t axis, double v) const {
    return ((log[axis] ? std::log10(v) : v) - low[axis]) / (high[axis] - low[axis]);
  }
  double x(double v) const { return left + width * share(0, v); }
  double y(double v) const { return top + height * (1 - share(1, v)); }
};
void check_place(const Pixel& place, double x, double y) {
  CHECK(std::fabs(place.first - x) < 0.0051);  // two decimals
  CHECK(std::fabs(place.second - y) < 0.0051);
}
XmlElement parsed(const Plot& plot) { return XmlReader::read(plot.svg()); }
std::vector<std::string> texts(const XmlElement& svg, const std::string& cls) {
  std::vector<std::string> out;
  for (const XmlElement* element : svg.all(cls)) out.push_back(element->text);
  return out;
}
using Texts = std::vector<std::string>;

}  // namespace

TEST_CASE("plot: markers, lines and ticks are where the mapping by hand puts them", "[report]") {
  Plot plot(
      {.title = "T", .x = {.label = "L0", .scale = AxisScale::log}, .y = {.label = "variance"}, .width = 700, .height = 300});
  const std::vector<PlotPoint> up{{1, 0.5}, {10, 0.75}, {100, 1}}, down{{100, 0}, {3, 0.25}};
  plot.add({.name = "up", .points = up, .line = true});
  plot.add({.name = "down", .points = down});
  const XmlElement svg = parsed(plot);
  const auto plots = svg.all("plot");
  REQUIRE(plots.size() == 1);
  const Mapping by_hand(*plots[0]);
  // The data and 4 % of their length at each end.
  CHECK(by_hand.log == std::array{true, false});
  CHECK(by_hand.low[0] == Approx(-0.08));
  CHECK(by_hand.high[0] == Approx(2.08));
  CHECK(by_hand.low[1] == Approx(-0.04));
  CHECK(by_hand.high[1] == Approx(1.04));
  CHECK(by_hand.height == 300);
  CHECK(by_hand.left + by_hand.width < 700);
  const PlotFrame frame = plot.frame();
  CHECK(frame.at(1, 0)[0] == Approx(by_hand.x(1)).epsilon(1e-12));
  CHECK(frame.at(1, 0)[1] == Approx(by_hand.y(0)).epsilon(1e-12));

  const auto series = svg.all("series");
  REQUIRE(series.size() == 2);
  CHECK(series[0]->at("data-name") == "up");
  std::set<std::string> shapes, colours;
  for (std::size_t s = 0; s < 2; ++s) {
    const std::vector<PlotPoint>& points = s == 0 ? up : down;
    const auto markers = series[s]->all("marker");
    REQUIRE(markers.size() == points.size());
    for (std::size_t p = 0; p < points.size(); ++p)
      check_place(place_of(*markers[p]), by_hand.x(points[p].x), by_hand.y(points[p].y));
    shapes.insert(markers[0]->at("d")), colours.insert(series[s]->at("class"));
  }
  CHECK(shapes.size() == 2);
  CHECK(colours.size() == 2);
  const auto lines = series[0]->all("line");
  REQUIRE(lines.size() == 1);
  const auto pieces = pieces_of(lines[0]->at("d"));
  REQUIRE(pieces.size() == 1);
  REQUIRE(pieces[0].size() == 3);
  for (std::size_t p = 0; p < 3; ++p) check_place(pieces[0][p], by_hand.x(up[p].x), by_hand.y(up[p].y));
  CHECK(series[1]->all("line").empty());

  const Texts x_labels{"1", "10", "100"}, y_labels{"0", "0.2", "0.4", "0.6", "0.8", "1.0"};
  CHECK(texts(svg, "x-tick") == x_labels);
  CHECK(texts(svg, "y-tick") == y_labels);
  for (const XmlElement* tick : svg.all("x-tick"))
    CHECK(std::fabs(tick->number("x") - by_hand.x(std::stod(tick->text))) < 0.0051);
  const std::string axis = svg.all("axis").at(0)->at("d");
  for (const XmlElement* tick : svg.all("y-tick")) {
    const double y = by_hand.y(std::stod(tick->text));
    CHECK(std::fabs(tick->number("y") - 4.2 - y) < 0.0051);  // the line of writing lies below the middle of the digits
    char mark[40];
    std::snprintf(mark, sizeof mark, "%.2f", y);
    std::string digits = mark;
    digits.erase(digits.find_last_not_of('0') + 1);
    if (digits.back() == '.') digits.pop_back();
    CHECK_THAT(axis, ContainsSubstring(" " + digits + "h-5"));
  }
  CHECK(texts(svg, "title") == Texts{"T"});
  CHECK(texts(svg, "x-label") == Texts{"L0"});
  CHECK(texts(svg, "y-label") == Texts{"variance"});
  CHECK(texts(svg, "name") == Texts{"up", "down"});
  CHECK(svg.all("note").empty());
  CHECK(plot.svg() == plot.svg());
}

TEST_CASE("plot: what cannot be shown is left out, counted and said, and breaks the line", "[report]") {
  Plot plot({.x = {.scale = AxisScale::log}, .y = {.to = 10.0}});
  plot.add({.name = "s",
            .points = {{1, 1}, {2, 2}, {nan_, 2}, {3, 3}, {4, inf}, {5, 5}, {6, 6}, {0, 1}, {-1, 1}, {7, 11}, {8, 8}},
            .line = true,
            .markers = false});
  CHECK(plot.left_out() == PlotLeftOut{2, 2, 1});
  CHECK(plot.left_out().total() == 5);
  const XmlElement svg = parsed(plot);
  CHECK(texts(svg, "note") == Texts{"left out: 2 not finite, 2 not above 0, on a log axis, 1 outside of the axes"});
  const Mapping by_hand(*svg.all("plot").at(0));
  CHECK(by_hand.high[1] == 10);
  const auto pieces = pieces_of(svg.all("series").at(0)->all("line").at(0)->at("d"));
  REQUIRE(pieces.size() == 2);
  REQUIRE(pieces[0].size() == 2);
  REQUIRE(pieces[1].size() == 2);
  check_place(pieces[0][1], by_hand.x(2), by_hand.y(2));
  check_place(pieces[1][0], by_hand.x(5), by_hand.y(5));
  // Those without a neighbour are seen all the same.
  const auto markers = svg.all("series").at(0)->all("marker");
  REQUIRE(markers.size() == 2);
  check_place(place_of(*markers[0]), by_hand.x(3), by_hand.y(3));
  check_place(place_of(*markers[1]), by_hand.x(8), by_hand.y(8));
}

TEST_CASE("plot: nothing, one point, equal points and the ends of float64", "[report]") {
  CHECK(texts(parsed(Plot()), "nothing") == Texts{"nothing to show"});
  for (const AxisScale scale : {AxisScale::linear, AxisScale::log}) {
    const std::vector<std::vector<PlotPoint>> cases{{},
                                                    {{nan_, nan_}},
                                                    {{1, 1}},
                                                    {{3, 3}, {3, 3}},
                                                    {{5e-324, DBL_MAX}},
                                                    {{DBL_MIN, DBL_MIN}, {DBL_MAX, DBL_MAX}},
                                                    {{1e9, 1}, {1e9 + 1e-6, 1 + DBL_EPSILON}},
                                                    {{5e-324, 1e-320}, {1e-323, 2e-320}}};
    for (const auto& points : cases)
      for (const bool line : {false, true}) {
        Plot plot({.x = {.label = "x", .scale = scale}, .y = {.label = "y", .scale = scale}});
        plot.add({.name = "s", .points = points, .line = line});
        const XmlElement svg = parsed(plot);
        const XmlElement& frame = *svg.all("plot").at(0);
        const Mapping by_hand(frame);
        const auto markers = svg.all("series").at(0)->all("marker");
        CAPTURE(points.size(), scale == AxisScale::log);
        const std::size_t shown = points.size() - static_cast<std::size_t>(plot.left_out().total());
        CHECK(markers.size() == shown);
        CHECK(svg.all("nothing").size() == (shown == 0 ? 1 : 0));
        for (const XmlElement* marker : markers) {
          const auto [x, y] = place_of(*marker);
          CHECK((x >= by_hand.left - 0.01 && x <= by_hand.left + by_hand.width + 0.01));
          CHECK((y >= by_hand.top - 0.01 && y <= by_hand.top + by_hand.height + 0.01));
        }
        const bool subnormal = !points.empty() && points.back().x < DBL_MIN;
        CHECK((subnormal || svg.all("x-tick").size() >= 2));
        CHECK_THAT(plot.svg(), !ContainsSubstring("nan") && !ContainsSubstring("inf"));
      }
  }
  Plot middle;
  middle.add({.points = {{7, -2}}});
  const PlotFrame frame = middle.frame();
  check_place(place_of(*parsed(middle).all("marker").at(0)), frame.left + frame.width / 2, frame.top + frame.height / 2);
}

TEST_CASE("plot: any text, and any number of series", "[report]") {
  const std::string hostile = "</text><script>alert('1')</script>&\"\xFF\x01";
  Plot plot({.title = hostile, .x = {.label = hostile}, .y = {.label = hostile}});
  plot.add({.name = hostile, .points = {{1, 2, hostile}}});
  const XmlElement svg = parsed(plot);
  const std::string shown = "</text><script>alert('1')</script>&\"\xEF\xBF\xBD\xEF\xBF\xBD";
  CHECK(texts(svg, "title") == Texts{shown});
  CHECK(texts(svg, "name") == Texts{shown});
  CHECK(svg.all("series").at(0)->at("data-name") == shown);
  CHECK(svg.all("marker").at(1)->children.at(0).text == shown + ": 1, 2");

  Plot many({.width = 300});
  for (int s = 0; s < 30; ++s)
    many.add(
        {.name = std::string(static_cast<std::size_t>(s) * 7, 'n'), .points = {{0.0 + s, 1.0}, {1.0 + s, 2.0}}, .line = true});
  const XmlElement all = parsed(many);
  std::set<std::string> looks;
  double legend_end = 0;
  for (const XmlElement* entry : all.all("legend")) {
    const XmlElement& line = *entry->all("line").at(0);
    const std::string dashes = line.attributes.contains("stroke-dasharray") ? line.at("stroke-dasharray") : "";
    looks.insert(entry->at("class") + "|" + entry->all("marker").at(0)->at("d") + "|" + dashes);
    const XmlElement& name = *entry->all("name").at(0);
    const double width = 0.62 * name.number("font-size") * static_cast<double>(name.text.size());
    CHECK(name.number("x") + width < 304);  // a cut one ends in a character of three bytes
    legend_end = std::max(legend_end, name.number("y"));
  }
  CHECK(looks.size() == 30);
  CHECK(legend_end < many.frame().top);
  CHECK(all.number("height") > many.frame().top + many.frame().height);
  CHECK(many.frame().height == 340);  // however many names there are
}

TEST_CASE("plot: the CSV has what was added, shown or not", "[report]") {
  Plot plot({.x = {.scale = AxisScale::log}, .y = {.label = "loss, in nats"}});
  plot.add({.name = "a,b", .points = {{1, 0.1}, {-2, nan_}, {1e-300, -inf}}});
  plot.add({.name = "say \"c\"", .points = {{0.1 + 0.2, 3}}});
  CHECK(plot.csv() ==
        "series,x,y\n\"a,b\",1,0.1\n\"a,b\",-2,nan\n\"a,b\",1e-300,-inf\n\"say \"\"c\"\"\",0.30000000000000004,3\n");
  plot.add(PlotBars{.name = "h", .edges = {0, 1, 2}, .heights = {5, 0}});
  CHECK_THAT(plot.csv(), ContainsSubstring("series,x,x_end,y\n\"a,b\",1,,0.1\n") && ContainsSubstring("\nh,0,1,5\nh,1,2,0\n"));
  Plot labelled({.y = {.label = "y"}});
  labelled.add({.points = {{1, 2, "first\nline"}, {3, 4}}});
  CHECK(labelled.csv() == "series,x,y,label\n,1,2,\"first\nline\"\n,3,4,\n");
  const std::vector<Plot> both{labelled, plot};
  CHECK_THAT(Plot::csv_of(both), ContainsSubstring("plot,series,x,x_end,y,label\ny,,1,,2,\"first\nline\"\n") &&
                                     ContainsSubstring("\"loss, in nats\",h,0,1,5,\n"));
  CHECK(Plot().csv() == "series,x,y\n");
}

TEST_CASE("plot: several below one another, their left axes in one line", "[report]") {
  Plot narrow({.title = "narrow", .y = {.label = "y"}}), wide({.y = {.label = "y"}, .width = 800});
  narrow.add({.points = {{0, 0}, {1, 9}}});
  wide.add({.points = {{0, 1.00001}, {1, 1.00002}}});
  const std::vector<Plot> plots{narrow, wide};
  const XmlElement svg = XmlReader::read(Plot::svg_of(plots));
  const auto parts = svg.all("plot");
  REQUIRE(parts.size() == 2);
  CHECK(parts[0]->at("data-left") == parts[1]->at("data-left"));
  CHECK(parts[0]->number("data-left") > narrow.frame().left);
  CHECK(svg.number("width") == 800);
  const double first = XmlReader::read(narrow.svg()).number("height"), second = XmlReader::read(wide.svg()).number("height");
  CHECK(svg.number("height") == Approx(first + second));
  CHECK(parts[0]->at("transform") == "translate(0 0)");
  check_place(place_of(*parts[1]), 0, first);
}

TEST_CASE("histogram: counts by hand, edges, equal values, and what is not counted", "[report]") {
  const std::vector<double> values{0, 1, 1, 2.5, 5, 10, nan_, inf};
  const PlotBars bars = histogram("h", values, 4);
  CHECK(bars.edges == std::vector<double>{0, 2.5, 5, 7.5, 10});
  CHECK(bars.heights == std::vector<double>{3, 1, 1, 1});  // 2.5 and 5 belong to the intervals above, 10 to the last
  const PlotBars decades = histogram("h", std::vector<double>{1, 5, 10, 99, 1000, 0, -3}, 3, AxisScale::log);
  CHECK(decades.heights == std::vector<double>{2, 2, 1});
  CHECK(decades.edges.at(1) == Approx(10).epsilon(1e-12));
  const PlotBars one = histogram("h", std::vector<double>{4, 4, 4}, 10);
  CHECK(one.heights == std::vector<double>{3});
  CHECK(one.edges.at(0) < 4);
  CHECK(one.edges.at(1) > 4);
  CHECK(histogram("h", {}, 3).heights.empty());
  for (const double apart : {DBL_EPSILON, 1e-13, 1e-11}) {  // too near for a thousand intervals, or just not
    const PlotBars near = histogram("h", std::vector<double>{1, 1 + apart, 1 + apart}, 1000);
    near.check();
    CHECK(std::accumulate(near.heights.begin(), near.heights.end(), 0.0) == 3);
    CHECK(near.edges.front() <= 1);
    CHECK(near.edges.back() >= 1 + apart);
  }
  CHECK(histogram("h", std::vector<double>{nan_}, 3).edges.empty());
  const PlotBars widest = histogram("h", std::vector<double>{-DBL_MAX, 0, DBL_MAX}, 2);
  CHECK(widest.heights == std::vector<double>{1, 2});
  CHECK_THROWS_WITH(histogram("h", values, 0), ContainsSubstring("bins = 0 is not in [1, 1000000]"));
}

TEST_CASE("plot: bars stand on zero, where the mapping by hand puts them", "[report]") {
  Plot plot({.x = {.label = "density", .scale = AxisScale::log}, .y = {.label = "latents"}});
  plot.add(PlotBars{.name = "h", .edges = {0.01, 0.1, 1, 10}, .heights = {4, 0, 2}});
  const XmlElement svg = parsed(plot);
  const Mapping by_hand(*svg.all("plot").at(0));
  CHECK(by_hand.low[1] == 0);
  const auto bars = svg.all("series").at(0)->all("bar");
  REQUIRE(bars.size() == 2);  // none of height 0
  const auto check_bar = [&](const XmlElement& bar, double from, double to, double height, double bottom) {
    check_place({bar.number("x"), bar.number("y")}, by_hand.x(from), by_hand.y(height));
    CHECK(std::fabs(bar.number("width") - (by_hand.x(to) - by_hand.x(from))) < 0.0051);
    CHECK(std::fabs(bar.number("y") + bar.number("height") - bottom) < 0.011);
  };
  check_bar(*bars[0], 0.01, 0.1, 4, by_hand.top + by_hand.height);
  check_bar(*bars[1], 1, 10, 2, by_hand.top + by_hand.height);
  CHECK(bars[0]->children.at(0).text == "0.01 to 0.1: 4");

  Plot both_ways;
  both_ways.add(PlotBars{.edges = {0, 1, 2}, .heights = {-1, 3}});
  const XmlElement down = parsed(both_ways);
  const Mapping of_down(*down.all("plot").at(0));
  const XmlElement& below = *down.all("bar").at(0);
  CHECK(std::fabs(below.number("y") - of_down.y(0)) < 0.0051);
  CHECK(std::fabs(below.number("y") + below.number("height") - of_down.y(-1)) < 0.011);

  Plot log_heights({.y = {.scale = AxisScale::log}});
  log_heights.add(PlotBars{.edges = {0, 1, 2, 3}, .heights = {1, 0, 100}});
  CHECK(log_heights.left_out().total() == 0);
  CHECK(log_heights.frame().y.low() == Approx(std::log10(0.5)));
  CHECK(parsed(log_heights).all("bar").size() == 2);
}

TEST_CASE("plot: what makes no figure is refused", "[report]") {
  const auto refuses = [](const auto& make, const std::string& why) { CHECK_THROWS_WITH(make(), ContainsSubstring(why)); };
  refuses([] { Plot({.width = 10}); }, "width = 10 is not in [200, 20000] pixels");
  refuses([] { Plot({.height = nan_}); }, "height = nan");
  refuses([] { Plot({.x = {.from = 2.0, .to = 1.0}}); }, "from = 2 is not below to = 1");
  Plot plot;
  refuses([&] { plot.add(PlotBars{.edges = {0, 1}, .heights = {1, 2}}); }, "2 edges do not bound 2 bars");
  refuses([&] { plot.add(PlotBars{.edges = {0, 1, 1}, .heights = {1, 2}}); }, "edge 2 = 1 is not a finite number above");
  refuses([&] { plot.add(PlotBars{.edges = {0, inf}, .heights = {1}}); }, "edge 1 = inf");
  CHECK(plot.csv() == "series,x,y\n");
}
