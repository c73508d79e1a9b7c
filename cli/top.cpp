#include <sae/interpret/context_text.hpp>
#include <sae/interpret/top_activations.hpp>

#include <iostream>
#include <memory>

#include "contexts.hpp"

namespace sae::cli {

namespace {

struct TopVerb : TextVerb {
  std::vector<std::string> latents;
  Index count = 20;
  Index before = 20, after = 10;
};

void show(const TopVerb& options, const std::vector<Index>& latents, const TopActivations& top, const ReadText& text) {
  const Contexts& contexts = *text.contexts;
  Json all = Json::array();
  for (const Index latent : latents) {
    Json shown = Json::array();
    if (!options.json) {
      std::cout << "latent " << latent;
      if (top.active_rows(latent) == 0)
        std::cout << ": never active in " << top.rows() << " rows\n";
      else
        std::cout << ": active in " << rounded(100 * top.density(latent)) << " % of " << top.rows() << " rows, at most "
                  << rounded(top.max(latent)) << "\n";
    }
    for (const TopActivation& activation : top.top(latent)) {
      const RowOrigin at = contexts.origin(activation.row);
      const auto first = static_cast<std::int32_t>((std::max)(Index{0}, at.position - options.before));
      const auto last =
          static_cast<std::int32_t>((std::min)(static_cast<Index>(contexts.context()) - 1, at.position + options.after));
      std::vector<std::string> pieces;
      Index active = 0;
      for (std::int32_t position = first; position <= last; ++position) {
        const Token token = contexts.token(activation.row, position);
        // Nothing is said of a token that is missing at an end.
        if (token == no_token && (pieces.empty() || position > at.position)) continue;
        if (position == at.position) active = static_cast<Index>(pieces.size());
        pieces.push_back(token == no_token ? "<?>" : text.piece(token));
      }
      const std::string context = context_text(pieces, active);
      if (!options.json) {
        char value[32];
        std::snprintf(value, sizeof value, "%10.4g", activation.value);
        std::cout << value << "  " << context << "\n";
        continue;
      }
      shown.push_back({{"value", activation.value},
                       {"row", activation.row},
                       {"window", at.window},
                       {"position", at.position},
                       {"token", at.token},
                       {"text", visible_text(pieces[static_cast<std::size_t>(active)])},
                       {"context", context}});
    }
    if (options.json)
      all.push_back({{"latent", latent},
                     {"active_rows", top.active_rows(latent)},
                     {"density", top.density(latent)},
                     {"max", top.max(latent)},
                     {"contexts", shown}});
  }
  if (options.json) print_json({{"site", to_string(text.site)}, {"rows", top.rows()}, {"latents", all}});
}

void run_top(const TopVerb& options) {
  check_text_source(options);
  Threads threads(options.threads);
  const AnySae sae = open_sae(options, options.sae);
  const std::vector<Index> latents = parse_latents(options.latents, sae.latents());
  TopActivations top(sae.latents(), options.count, latents);
  const ReadText text =
      read_codes(options, sae, threads, [&](const Codes<float>& codes, std::span<const RowOrigin>) { top.add(codes); });
  show(options, latents, top, text);
}

}  // namespace

void add_top(CLI::App& program) {
  const auto options = std::make_shared<TopVerb>();
  CLI::App& verb =
      add_verb(program, "top", "The contexts in which a latent is most active, with the token marked.", options, run_top);
  add_text_source(verb, *options);
  verb.add_option("--latent,--latents", options->latents, "latents, such as 3,17,40-49")->required()->delimiter(',');
  verb.add_option("--count", options->count, "contexts of each latent")->capture_default_str()->check(at_least(1));
  verb.add_option("--before", options->before, "tokens shown before the one in question")
      ->capture_default_str()
      ->check(within(0, 65536));
  verb.add_option("--after", options->after, "tokens shown after it")->capture_default_str()->check(within(0, 65536));
  add_json(verb, *options);
}

}  // namespace sae::cli
