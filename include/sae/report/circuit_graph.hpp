#pragma once
#include <sae/interpret/circuit.hpp>
#include <sae/report/xml_text.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

namespace sae::inline SAE_ABI {

/// A circuit as an SVG that stands alone: a column for each SAE, the measure at the right; an edge is as wide as its share (Circuit::shares),
/// blue (solid) where the node supports what it leads to, red (dashed) where it works against it; the numbers show where the mouse rests. Colours are
/// two of Okabe and Ito's, dark mode is the reader's. Weak edges are drawn first. An empty circuit is an empty figure with the measure.
///
/// \param measure  what the effects on the logits are of, for people; any bytes
/// For tests: <g class="node" data-node="n"> with transform="translate(x y)"; <path class="edge ..." data-from data-to>.
inline std::string circuit_svg(const Circuit& circuit, const std::string& measure) {
  constexpr double column = 190, row = 40, node_width = 92, node_height = 26, margin = 24, head = 46;
  const std::size_t layers = circuit.sites.size(), count = circuit.nodes.size();
  std::vector<std::size_t> rows(layers + 1, 0);
  std::vector<std::size_t> row_of;
  for (const CircuitNode& node : circuit.nodes) row_of.push_back(rows[node.layer]++);
  const std::size_t tallest = (std::max)(*std::max_element(rows.begin(), rows.end()), std::size_t{1});
  // The measure's box is as wide as its words, at about 7 pixels a character.
  const double measure_width = (std::max)(node_width, 16 + 7 * static_cast<double>(measure.size()));
  const double width = 2 * margin + measure_width + column * static_cast<double>(layers),
               height = head + margin + row * static_cast<double>(tallest);
  const auto px = [](double x) {
    char text[32];
    std::snprintf(text, sizeof text, "%.1f", x);
    return std::string(text);
  };
  const auto x_of = [&](std::size_t n) {
    return margin + column * static_cast<double>(n == count ? layers : circuit.nodes[n].layer);
  };
  const auto y_of = [&](std::size_t n) {
    const std::size_t here = n == count ? 1 : rows[circuit.nodes[n].layer], place = n == count ? 0 : row_of[n];
    return head + row * (static_cast<double>(place) + static_cast<double>(tallest - here) / 2);
  };
  std::string out = detail::concat(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"", px(width), "\" height=\"", px(height), "\" viewBox=\"0 0 ",
      px(width), " ", px(height), "\" role=\"img\" aria-label=\"circuit of ", count, " latents\">\n",
      "<style>svg{background:#fff;font:13px system-ui,sans-serif;fill:#222}.box{fill:#f3f4f6;stroke:#9aa0a6}.edge{fill:none}"
      ".for{stroke:#0072b2}.against{stroke:#d55e00;stroke-dasharray:6 4}text{text-anchor:middle}.head{font-weight:600}"
      "@media(prefers-color-scheme:dark){svg{background:#16181c;fill:#e6e6e6}.box{fill:#25282e;stroke:#6b7078}.for{stroke:#"
      "56b4e9}"
      ".against{stroke:#e69f00}}</style>\n");
  const std::vector<double> shares = circuit.shares();
  std::vector<std::size_t> edges;
  for (std::size_t e = 0; e < shares.size(); ++e)
    if (std::isfinite(circuit.edges[e].effect)) edges.push_back(e);
  std::stable_sort(edges.begin(), edges.end(), [&](std::size_t x, std::size_t y) { return shares[x] < shares[y]; });
  const auto name = [&](std::size_t n) {
    return n == count ? xml_text(measure)
                      : detail::concat(to_string(circuit.sites[circuit.nodes[n].layer]), " ", circuit.nodes[n].latent);
  };
  for (const std::size_t e : edges) {
    const CircuitEdge& edge = circuit.edges[e];
    const double share = shares[e];
    const double x0 = x_of(edge.from) + node_width, y0 = y_of(edge.from) + node_height / 2, x1 = x_of(edge.to),
                 y1 = y_of(edge.to) + node_height / 2, bend = (x1 - x0) / 2;
    out += detail::concat("<path class=\"edge ", edge.effect < 0 ? "against" : "for", "\" data-from=\"", edge.from,
                          "\" data-to=\"", edge.to, "\" stroke-width=\"", px(0.6 + 5.4 * share), "\" stroke-opacity=\"",
                          px(0.25 + 0.75 * share), "\" d=\"M", px(x0), " ", px(y0), "C", px(x0 + bend), " ", px(y0), " ",
                          px(x1 - bend), " ", px(y1), " ", px(x1), " ", px(y1), "\"><title>", name(edge.from), " to ",
                          name(edge.to), ": ", edge.effect, "</title></path>\n");
  }
  for (std::size_t l = 0; l <= layers; ++l)
    out += detail::concat("<text class=\"head\" x=\"",
                          px(margin + column * static_cast<double>(l) + (l < layers ? node_width : measure_width) / 2),
                          "\" y=\"28\">", l < layers ? to_string(circuit.sites[l]) : "logits", "</text>\n");
  for (std::size_t n = 0; n <= count; ++n) {
    const double wide = n == count ? measure_width : node_width;
    out += detail::concat("<g class=\"node\" data-node=\"", n, "\" transform=\"translate(", px(x_of(n)), " ", px(y_of(n)),
                          ")\"><rect class=\"box\" width=\"", px(wide), "\" height=\"", px(node_height),
                          "\" rx=\"5\"/><text x=\"", px(wide / 2), "\" y=\"17.5\">",
                          n == count ? xml_text(measure) : detail::concat(circuit.nodes[n].latent), "</text><title>", name(n),
                          ": ", n == count ? circuit.measure : circuit.nodes[n].activation, "</title></g>\n");
  }
  return out + "</svg>\n";
}

}  // namespace sae::inline SAE_ABI
