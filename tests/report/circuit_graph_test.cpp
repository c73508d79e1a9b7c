#include <sae/report/circuit_graph.hpp>

#include <limits>
#include <string>

#include "catch_compat.hpp"

using namespace sae;
using Catch::Matchers::ContainsSubstring;

TEST_CASE("a circuit is drawn column by column, its strongest edge last and widest", "[report][circuit]") {
  const Circuit circuit{.sites = {{3}, {5}},
                        .nodes = {{0, 7, 2}, {0, 9, 1}, {1, 4, 3}},
                        .edges = {{0, 2, 4}, {1, 2, -1}, {2, 3, 1}, {0, 3, std::numeric_limits<double>::quiet_NaN()}},
                        .measure = 1.5};
  const std::string svg = circuit_svg(circuit, "\" <Paris>");
  CHECK(svg == circuit_svg(circuit, "\" <Paris>"));
  CHECK_THAT(svg, !ContainsSubstring("<Paris>") && ContainsSubstring("residual-3 7 to residual-5 4: 4"));
  const auto count = [&](const std::string& of) {
    std::size_t n = 0;
    for (std::size_t at = svg.find(of); at != std::string::npos; at = svg.find(of, at + 1)) ++n;
    return n;
  };
  CHECK(count("class=\"edge for\"") == 2);
  CHECK(count("class=\"edge against\"") == 1);
  CHECK(count("class=\"node\"") == 4);
  // Two nodes at the left, one in the middle of their height, the measure as well.
  CHECK_THAT(svg, ContainsSubstring("data-node=\"0\" transform=\"translate(24.0 46.0)\"") &&
                      ContainsSubstring("data-node=\"1\" transform=\"translate(24.0 86.0)\"") &&
                      ContainsSubstring("data-node=\"2\" transform=\"translate(214.0 66.0)\"") &&
                      ContainsSubstring("data-node=\"3\" transform=\"translate(404.0 66.0)\""));
  // From the right side of node 0 to the left side of node 2, at half height: the largest effect, 6 wide.
  CHECK_THAT(svg, ContainsSubstring("data-from=\"0\" data-to=\"2\" stroke-width=\"6.0\" stroke-opacity=\"1.0\" "
                                    "d=\"M116.0 59.0C165.0 59.0 165.0 79.0 214.0 79.0\""));
  CHECK(svg.find("data-from=\"1\" data-to=\"2\"") < svg.find("data-from=\"2\" data-to=\"3\""));
  CHECK(svg.find("data-from=\"2\" data-to=\"3\"") < svg.find("data-from=\"0\" data-to=\"2\""));
}

TEST_CASE("a circuit without nodes is the measure alone", "[report][circuit]") {
  const std::string svg = circuit_svg({.sites = {{3}}, .nodes = {}, .edges = {}, .measure = 0}, "Paris");
  CHECK_THAT(svg, ContainsSubstring("data-node=\"0\"") && ContainsSubstring(">Paris<"));
  CHECK_THAT(svg, !ContainsSubstring("data-node=\"1\"") && !ContainsSubstring("<path"));
}
