#include <sae/files/output.hpp>
#include <sae/interpret/circuit.hpp>
#include <sae/interpret/context_text.hpp>
#include <sae/report/circuit_graph.hpp>

#include <algorithm>
#include <iostream>
#include <memory>
#include <numeric>

#include "language_model.hpp"
#include "sae_argument.hpp"

namespace sae::cli {

namespace {

struct CircuitVerb : ModelVerb {
  CircuitVerb() { context = 512; }
  std::vector<std::string> saes;
  std::string prompt, token, against;
  CircuitOptions how;
  Index edges = 40;
};

/// The token that a text is.
Token token_of(const HostModel& model, const std::string& option, const std::string& text) {
  const std::vector<Token> tokens = model.tokenize(text);
  if (tokens.size() != 1)
    throw_value("--", option, " '", text, "' is ", tokens.size(),
                " tokens of this model, not one (most words begin with a space)");
  return tokens.front();
}

void run_circuit(const CircuitVerb& options) {
  if (!options.out.empty()) check_output(options);
  Threads threads(options.threads);
  std::vector<std::unique_ptr<AnySae>> held;
  std::vector<SaeAt<AnySae>> saes;
  for (const std::string& path : options.saes) {
    held.push_back(std::make_unique<AnySae>(open_sae(options, path)));
    if (!held.back()->site()) throw_value(path, ": does not say of which layer it is, which a circuit needs");
    saes.push_back({*held.back()->site(), held.back().get()});
  }
  std::sort(saes.begin(), saes.end(),
            [](const SaeAt<AnySae>& a, const SaeAt<AnySae>& b) { return sae::detail::comes_before(a.site, b.site); });
  HostModel model = open_model(options);
  for (std::size_t n = 0; n < held.size(); ++n) {
    check_site(model, *held[n]->site());
    check_width(*held[n], options.saes[n], model.shape().width, options.model);
  }
  std::vector<Token> tokens = model.tokenize(options.prompt);
  const bool bos = model.bos() != no_token;
  if (bos && (tokens.empty() || tokens.front() != model.bos())) tokens.insert(tokens.begin(), model.bos());
  const LogitMeasure measure =
      logit_difference(token_of(model, "token", options.token),
                       options.against.empty() ? no_token : token_of(model, "against", options.against));
  CircuitOptions how = options.how;
  how.skip_first = bos;
  Circuit whole;
  {
    Progress progress(options, "latents", how.latents * static_cast<Index>(saes.size()));
    whole = circuit_by_intervention(
        model, std::span<const SaeAt<AnySae>>(saes), std::span<const Token>(tokens), measure, how,
        [&](Index done) { progress.at(done); }, threads);
  }
  if (whole.nodes.empty()) throw_value("no latent is active in the prompt");
  const Circuit circuit = whole.strongest(static_cast<std::size_t>(options.edges));
  const std::string what = visible_text(options.token) + (options.against.empty() ? "" : " - " + visible_text(options.against));
  if (!options.out.empty()) atomic_write_text(options.out, circuit_svg(circuit, what), {.overwrite = options.force});

  const auto name = [&](std::size_t n) {
    return n == circuit.nodes.size()
               ? what
               : sae::detail::concat(to_string(circuit.sites[circuit.nodes[n].layer]), " ", circuit.nodes[n].latent);
  };
  if (options.json) {
    Json nodes = Json::array(), edges = Json::array();
    for (const CircuitNode& node : circuit.nodes)
      nodes.push_back(
          {{"site", to_string(circuit.sites[node.layer])}, {"latent", node.latent}, {"activation", node.activation}});
    for (const CircuitEdge& edge : circuit.edges)
      edges.push_back({{"from", edge.from},
                       {"to", edge.to == circuit.nodes.size() ? Json(nullptr) : Json(edge.to)},
                       {"effect", edge.effect}});
    return print_json({{"prompt", utf8_text(options.prompt)},
                       {"token", utf8_text(options.token)},
                       {"against", options.against.empty() ? Json(nullptr) : Json(utf8_text(options.against))},
                       {"logit_difference", circuit.measure},
                       {"nodes", nodes},
                       {"edges", edges}});
  }
  std::cout << "logit of " << what << (options.against.empty() ? " above the mean of all: " : ": ") << rounded(circuit.measure)
            << "\n";
  const std::vector<double> shares = circuit.shares();
  std::vector<std::size_t> order(shares.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return shares[a] > shares[b]; });
  std::vector<std::pair<std::string, std::string>> table;
  for (const std::size_t e : order)
    table.emplace_back(name(circuit.edges[e].from) + " -> " + name(circuit.edges[e].to),
                       sae::detail::concat(rounded(circuit.edges[e].effect), " (", rounded(100 * shares[e]), " %)"));
  print_table(table);
}

}  // namespace

void add_circuit(CLI::App& program) {
  const auto options = std::make_shared<CircuitVerb>();
  CLI::App& verb =
      add_verb(program, "circuit",
               "What the latents of several layers do to each other and to a token, on one prompt: each is ablated "
               "in turn, and what the later ones and the token's logit lose is its effect.",
               options, run_circuit);
  add_model(verb, *options)->required();
  verb.add_option("--sae", options->saes, "trained SAEs of different sites, which say where they belong; once for each")
      ->required();
  verb.add_option("--prompt", options->prompt, "text to look at")->required();
  verb.add_option("--token", options->token, "token behind the prompt whose logit is measured, such as ' Paris'")->required();
  verb.add_option("--against", options->against, "token whose logit is subtracted; default: the mean over the vocabulary");
  verb.add_option("--latents", options->how.latents, "latents of each SAE: the most active ones")
      ->capture_default_str()
      ->check(within(1, 100'000));
  verb.add_option("--edges", options->edges, "effects that are kept: the largest beside what they act on")
      ->capture_default_str()
      ->check(at_least(1));
  verb.add_option("--context", options->context, "tokens of the prompt at most")
      ->capture_default_str()
      ->check(within(2, 65536));
  add_out(verb, *options, "the graph as .svg");
  add_json(verb, *options);
}

}  // namespace sae::cli
