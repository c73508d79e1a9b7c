#include <sae/host/generate.hpp>
#include <sae/interpret/context_text.hpp>
#include <sae/interpret/monitor.hpp>

#include <algorithm>
#include <chrono>
#include <iostream>
#include <string_view>

#include "steering.hpp"

namespace sae::cli {

namespace {

struct MonitorVerb : SteeringOptions {
  MonitorVerb() { tokens = 64, context = 512; }
  std::string prompt, above = "0";
  bool stop = false;
};

struct Heard : LatentEvent {
  Token token = no_token;
};

void run_monitor(const MonitorVerb& options) {
  const Strength above = parse_strength("above", options.above);
  if (above.value < 0) usage_error("--above: ", options.above, " is negative");
  Threads threads(options.threads);
  const AnySae sae = open_sae(options, options.sae);
  const Site site = chosen_site(options, sae.site(), options.sae);
  const std::vector<Index> latents = parse_latents(options.latents, sae.latents());
  std::vector<WatchedLatent> watched;
  for (const Index latent : latents) watched.push_back({latent, above.value});
  if (above.of_largest) {
    const std::vector<LatentScale> scales = measured_on_data(options, sae, latents, threads, "--above " + options.above);
    for (std::size_t n = 0; n < watched.size(); ++n) watched[n].above *= scales[n].largest;
  }
  HostModel model = open_model(options);
  check_site(model, site);
  check_width(sae, options.sae, model.shape().width, options.model);

  std::vector<Heard> heard;
  bool stop = false;
  const LatentMonitor monitor(
      site, sae, watched,
      [&](const LatentEvent& event) {
        heard.push_back({event, model.sequence()[static_cast<std::size_t>(event.position)]});
        stop = stop || options.stop;
      },
      model.bos() != no_token ? EditedRows::after_first() : EditedRows::all(), threads);
  using Clock = std::chrono::steady_clock;
  Clock::duration watching{};
  Tap tap = monitor.tap();
  tap.visit = [&watching, visit = tap.visit](MatrixMap<float> rows, Index first) {
    const auto start = Clock::now();
    visit(rows, first);
    watching += Clock::now() - start;
  };

  const std::vector<Token> prompt = model.tokenize(options.prompt);
  const auto start = Clock::now();
  const std::vector<Token> text = generate(model, prompt, {options.tokens, options.temperature, options.top_k, options.seed},
                                           std::vector<Tap>{tap}, [&](Token) { return !stop; });
  const auto seconds = [](Clock::duration time) { return std::chrono::duration<double>(time).count(); };
  const double all = seconds(Clock::now() - start);

  std::string written;
  for (const Token token : text) written += model.token_text(token);
  if (options.json) {
    Json events = Json::array();
    for (const Heard& event : heard)
      events.push_back({{"position", event.position},
                        {"token", utf8_text(model.token_text(event.token))},
                        {"latent", event.latent},
                        {"activation", event.activation},
                        {"in_prompt", event.position < model.prompt_length()}});
    return print_json({{"site", to_string(site)},
                       {"text", utf8_text(written)},
                       {"tokens", text.size()},
                       {"stopped", stop},
                       {"events", events},
                       {"seconds", all},
                       {"seconds_watching", seconds(watching)}});
  }
  const std::string whole = options.prompt + written;
  for (std::string_view rest = whole; !rest.empty();) {  // line by line, nothing in it that a terminal obeys
    const std::size_t end = (std::min)(rest.find('\n'), rest.size());
    std::cout << visible_text(rest.substr(0, end)) << "\n";
    rest.remove_prefix((std::min)(end + 1, rest.size()));
  }
  std::cout << "\n";
  for (const Heard& event : heard) {
    char line[64];
    std::snprintf(line, sizeof line, "%6lld %8lld %10.4g  ", static_cast<long long>(event.position),
                  static_cast<long long>(event.latent), event.activation);
    std::cout << line << visible_text(model.token_text(event.token)) << "\n";
  }
  note(options, heard.size(), heard.size() == 1 ? " activation" : " activations", " above the limits; ",
       rounded(100 * seconds(watching) / all), " % of the time went into watching ", latents.size(),
       latents.size() == 1 ? " latent" : " latents");
}

}  // namespace

void add_monitor(CLI::App& program) {
  const auto options = std::make_shared<MonitorVerb>();
  CLI::App& verb =
      add_verb(program, "monitor", "Watch latents while the model reads a prompt and writes on: where each is active.", options,
               run_monitor);
  add_watching(verb, *options);
  verb.add_option("--above", options->above,
                  "tell of activations above this; 0.5x: above half of the latent's largest activation on --data")
      ->capture_default_str();
  verb.add_flag("--stop", options->stop, "write no more tokens behind the first activation above the limit");
  verb.add_option("--prompt", options->prompt, "text to read and go on from")->required();
  verb.add_option("--tokens", options->tokens, "tokens to write at most")->capture_default_str()->check(within(1, 65535));
  add_json(verb, *options);
}

}  // namespace sae::cli
