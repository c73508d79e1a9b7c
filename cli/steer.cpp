#include <sae/host/generate.hpp>
#include <sae/interpret/context_text.hpp>
#include <sae/interpret/interventions.hpp>

#include <cmath>
#include <iostream>

#include "language_model.hpp"
#include "sae_argument.hpp"

namespace sae::cli {

namespace {

struct SteerVerb : ModelVerb {
  SteerVerb() { tokens = 64, context = 512; }
  std::string sae, prompt;
  std::vector<Index> latents;
  std::optional<double> scale, clamp;
  bool ablate = false, replace_bos = false;
  std::string error_term = "on";
  double temperature = 0;
  Index top_k = 0;
};

std::string mode_of(const SteerVerb& options) { return options.scale ? "scale" : options.clamp ? "clamp" : "ablate"; }

std::vector<Tap> taps_of(const SteerVerb& options, const AnySae& sae, const Site& site, const EditedRows& edited,
                         Threads& threads) {
  std::vector<Tap> taps;
  if (options.scale) {
    for (const Index latent : options.latents) taps.push_back(steer_latent(site, sae, latent, *options.scale, edited));
    return taps;
  }
  std::vector<LatentEdit> edits;
  for (const Index latent : options.latents)
    edits.push_back(options.clamp ? clamp_latent(latent, *options.clamp) : ablate_latent(latent));
  taps.push_back(
      edit_latents(site, sae, edits, edited, options.error_term == "on" ? ErrorTerm::keep : ErrorTerm::drop, threads));
  return taps;
}

/// A text broken into lines of at most `width` characters, at spaces where there are some; its own line breaks stay.
std::vector<std::string> wrapped(const std::string& text, std::size_t width) {
  std::vector<std::string> lines;
  const auto characters = [](std::string_view s) {
    return static_cast<std::size_t>(
        std::count_if(s.begin(), s.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0U) != 0x80; }));
  };
  std::string_view rest = text;
  while (true) {
    const std::size_t end = rest.find('\n');
    std::string line;
    std::string shown = visible_text(rest.substr(0, end));
    while (characters(shown) > width) {
      std::size_t cut = 0, fits = 0;  // bytes of `width` characters; of those up to the last space among them
      for (std::size_t n = 0; n < width; ++n) {
        if (shown[cut] == ' ') fits = cut;
        cut += (std::max)(sae::detail::utf8_length(std::string_view(shown).substr(cut)), std::size_t{1});
      }
      const std::size_t at = fits > 0 ? fits : cut;
      lines.push_back(shown.substr(0, at));
      shown.erase(0, fits > 0 ? at + 1 : at);
    }
    lines.push_back(shown);
    if (end == std::string_view::npos) return lines;
    rest.remove_prefix(end + 1);
  }
}

void print_side_by_side(const std::string& left_head, const std::string& left, const std::string& right_head,
                        const std::string& right) {
  constexpr std::size_t width = 56;
  const std::vector<std::string> a = wrapped(left_head + "\n\n" + left, width), b = wrapped(right_head + "\n\n" + right, width);
  for (std::size_t i = 0; i < (std::max)(a.size(), b.size()); ++i) {
    const std::string x = i < a.size() ? a[i] : "", y = i < b.size() ? b[i] : "";
    const auto shown = static_cast<std::size_t>(
        std::count_if(x.begin(), x.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0U) != 0x80; }));
    std::string line = x + std::string(width - (std::min)(shown, width), ' ') + " | " + y;
    while (!line.empty() && line.back() == ' ') line.pop_back();
    std::cout << line << "\n";
  }
}

void run_steer(const SteerVerb& options) {
  const int modes = (options.scale ? 1 : 0) + (options.clamp ? 1 : 0) + (options.ablate ? 1 : 0);
  if (modes != 1) usage_error("give one of --scale, --clamp and --ablate");
  if (options.scale && options.error_term == "off")
    usage_error("--error-term belongs to --clamp and --ablate: --scale adds a direction and replaces nothing");
  for (const std::optional<double>& value : {options.scale, options.clamp})
    if (value && !std::isfinite(*value)) usage_error("--", mode_of(options), ": ", *value, " is not a finite number");
  Threads threads(options.threads);
  const AnySae sae = open_sae(options, options.sae);
  if (sae.reads_sequences() && !options.scale)
    throw_value(options.sae, ": --", mode_of(options),
                " needs the codes of each token as it is written, and a temporal SAE reads whole "
                "sequences; --scale adds a latent's direction");
  for (const Index latent : options.latents)
    if (latent >= sae.latents()) throw_value("--latent ", latent, " is not in [0, ", sae.latents(), ") (the SAE's latents)");
  const Site site = chosen_site(options, sae.site(), options.sae);
  HostModel model = open_model(options);
  check_site(model, site);
  check_width(sae, options.sae, model.shape().width, options.model);

  const std::vector<Token> prompt = model.tokenize(options.prompt);
  const bool bos = model.bos() != no_token;
  const EditedRows edited = bos && !options.replace_bos ? EditedRows::after_first() : EditedRows::all();
  const GenerateOptions how{options.tokens, options.temperature, options.top_k, options.seed};
  const auto text_with = [&](const std::vector<Tap>& taps) {
    std::string text;
    for (const Token token : generate(model, prompt, how, taps)) text += model.token_text(token);
    return text;
  };
  const std::string unsteered = text_with({});
  const std::string steered = text_with(taps_of(options, sae, site, edited, threads));

  const std::string mode = mode_of(options);
  const double value = options.scale ? *options.scale : options.clamp ? *options.clamp : 0;
  if (options.json) {
    Json out{{"site", to_string(site)}, {"latents", options.latents}, {"mode", mode}};
    out["value"] = value;
    out["error_term"] = options.error_term == "on";
    out["replaces_bos"] = !bos || options.replace_bos;
    out["temperature"] = options.temperature;
    out["seed"] = options.seed;
    out["prompt"] = utf8_text(options.prompt);
    out["unsteered"] = utf8_text(unsteered);
    out["steered"] = utf8_text(steered);
    print_json(out);
    return;
  }
  std::string names;
  for (const Index latent : options.latents) names += (names.empty() ? "" : ", ") + std::to_string(latent);
  const std::string what =
      sae::detail::concat("latent ", names, ": ", mode, mode == "ablate" ? std::string() : sae::detail::concat(" ", value));
  print_side_by_side("unsteered", options.prompt + unsteered, what, options.prompt + steered);
}

}  // namespace

void add_steer(CLI::App& program) {
  const auto options = std::make_shared<SteerVerb>();
  CLI::App& verb = add_verb(program, "steer", "Text that the model writes with a latent turned up or off, beside its own.",
                            options, run_steer);
  add_model(verb, *options)->required();
  add_site(verb, *options);
  add_sae(verb, options->sae)->required();
  verb.add_option("--latent", options->latents, "latents to steer by, such as 17 or 3,17")
      ->required()
      ->delimiter(',')
      ->check(at_least(0));
  verb.add_option("--scale", options->scale, "add so much of the latent's direction: x + scale * W_dec[latent]");
  verb.add_option("--clamp", options->clamp, "set the latent's activation to this value everywhere");
  verb.add_flag("--ablate", options->ablate, "set the latent's activation to 0");
  verb.add_option("--error-term", options->error_term,
                  "on: --clamp and --ablate keep what the SAE does not explain; off: its reconstruction alone goes on")
      ->capture_default_str()
      ->check(CLI::IsMember({"on", "off"}));
  verb.add_flag("--replace-bos", options->replace_bos, "edit the row of BOS too; without it that row stays as it is");
  verb.add_option("--prompt", options->prompt, "text to go on from")->required();
  verb.add_option("--tokens", options->tokens, "tokens to write at most")->capture_default_str()->check(within(1, 65535));
  verb.add_option("--context", options->context, "tokens of prompt and text together at most")
      ->capture_default_str()
      ->check(within(2, 65536));
  verb.add_option("--temperature", options->temperature, "0: the most likely token each time; 1: as the model says")
      ->capture_default_str()
      ->check(within(0, 1e6));
  verb.add_option("--top-k", options->top_k, "draw from so many most likely tokens; 0: all")
      ->capture_default_str()
      ->check(at_least(0));
  add_seed(verb, *options);
  add_json(verb, *options);
}

}  // namespace sae::cli
