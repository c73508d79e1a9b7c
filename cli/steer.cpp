#include <sae/host/generate.hpp>
#include <sae/interpret/context_text.hpp>

#include <iostream>

#include "steering.hpp"

namespace sae::cli {

namespace {

struct SteerVerb : SteeringOptions {
  SteerVerb() { tokens = 64, context = 512; }
  std::string prompt, scale, clamp;
  bool ablate = false, mean_ablate = false;
};

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
  const int modes = (options.scale.empty() ? 0 : 1) + (options.clamp.empty() ? 0 : 1) + options.ablate + options.mean_ablate;
  if (modes != 1) usage_error("give one of --scale, --clamp, --ablate and --mean-ablate");
  const Edit edit = !options.scale.empty()   ? Edit::scale
                    : !options.clamp.empty() ? Edit::clamp
                    : options.ablate         ? Edit::ablate
                                             : Edit::mean_ablate;
  if (edit == Edit::scale && options.error_term == "off")
    usage_error("--error-term belongs to --clamp and the ablations: --scale adds a direction and replaces nothing");
  Strength strength;
  if (edit == Edit::scale) strength = parse_strength("scale", options.scale);
  if (edit == Edit::clamp) strength = parse_strength("clamp", options.clamp);
  Threads threads(options.threads);
  const AnySae sae = open_sae(options, options.sae);
  if (sae.reads_sequences() && edit != Edit::scale)
    throw_value(options.sae, ": --", to_string(edit),
                " needs the codes of each token as it is written, and a temporal SAE reads whole "
                "sequences; --scale adds a latent's direction");
  const Site site = chosen_site(options, sae.site(), options.sae);
  const Steering steering(options, sae, site, strength.of_largest || edit == Edit::mean_ablate, threads);
  HostModel model = open_model(options);
  check_site(model, site);
  check_width(sae, options.sae, model.shape().width, options.model);

  const std::vector<Token> prompt = model.tokenize(options.prompt);
  const GenerateOptions how{options.tokens, options.temperature, options.top_k, options.seed};
  const auto text_with = [&](const std::vector<Tap>& taps) {
    std::string text;
    for (const Token token : generate(model, prompt, how, taps)) text += model.token_text(token);
    return text;
  };
  const std::string unsteered = text_with({});
  const std::string steered = text_with(steering.taps(model, edit, strength));

  const std::string mode = to_string(edit);
  if (options.json) {
    Json out{{"site", to_string(site)}, {"latents", steering.latents()}, {"mode", mode}};
    out["value"] = strength.value;
    out["of_largest"] = strength.of_largest;
    out["error_term"] = options.error_term == "on";
    out["replaces_bos"] = model.bos() == no_token || options.replace_bos;
    out["temperature"] = options.temperature;
    out["seed"] = options.seed;
    out["prompt"] = utf8_text(options.prompt);
    out["unsteered"] = utf8_text(unsteered);
    out["steered"] = utf8_text(steered);
    print_json(out);
    return;
  }
  std::string names;
  for (const Index latent : steering.latents()) names += (names.empty() ? "" : ", ") + std::to_string(latent);
  const std::string what = sae::detail::concat(
      "latent ", names, ": ", mode, edit == Edit::scale || edit == Edit::clamp ? " " + to_string(strength) : std::string());
  print_side_by_side("unsteered", options.prompt + unsteered, what, options.prompt + steered);
}

}  // namespace

void add_steer(CLI::App& program) {
  const auto options = std::make_shared<SteerVerb>();
  CLI::App& verb = add_verb(program, "steer", "Text that the model writes with a latent turned up or off, beside its own.",
                            options, run_steer);
  add_steering(verb, *options);
  verb.add_option(
      "--scale", options->scale,
      "add so much of the latent's direction: x + scale * W_dec[latent]; 4x: four times its largest activation on --data");
  verb.add_option("--clamp", options->clamp, "set the latent's activation to this value (or 4x) everywhere");
  verb.add_flag("--ablate", options->ablate, "set the latent's activation to 0");
  verb.add_flag("--mean-ablate", options->mean_ablate, "set the latent's activation to its mean over the rows of --data");
  verb.add_option("--prompt", options->prompt, "text to go on from")->required();
  verb.add_option("--tokens", options->tokens, "tokens to write at most")->capture_default_str()->check(within(1, 65535));
  add_json(verb, *options);
}

}  // namespace sae::cli
