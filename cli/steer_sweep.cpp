#include <sae/files/output_folder.hpp>
#include <sae/interpret/context_text.hpp>
#include <sae/interpret/count_words.hpp>
#include <sae/interpret/steering.hpp>
#include <sae/report/plot.hpp>

#include <algorithm>
#include <iostream>

#include "lines.hpp"
#include "steering.hpp"

namespace sae::cli {

namespace {

struct SteerSweepVerb : SteeringOptions {
  SteerSweepVerb() { tokens = 40, context = 512, temperature = 1; }
  std::string prompts;
  std::vector<std::string> scale, clamp, words;
};

constexpr const char* curve_name = "curve.csv";  // what tells the folder from others

/// Effect above fluency, over the strengths.
std::string figure(const std::vector<SteeringPoint>& curve, const std::string& title, const std::string& strength) {
  std::vector<Plot> plots;
  const auto add = [&](const std::string& of, double SteeringPoint::*value) {
    PlotSeries series{.name = {}, .points = {}, .line = true};
    for (const SteeringPoint& point : curve) series.points.push_back({.x = point.strength, .y = point.*value});
    std::sort(series.points.begin(), series.points.end(), [](const PlotPoint& a, const PlotPoint& b) { return a.x < b.x; });
    plots.emplace_back(
        PlotOptions{.title = plots.empty() ? title : "", .x = {.label = strength}, .y = {.label = of}, .height = 220});
    plots.back().add(std::move(series));
  };
  add("words of the concept a text", &SteeringPoint::effect);
  add("cross-entropy to the model (nats a token)", &SteeringPoint::cross_entropy);
  return Plot::svg_of(plots);
}

void run_steer_sweep(const SteerSweepVerb& options) {
  if (options.scale.empty() == options.clamp.empty()) usage_error("give one of --scale and --clamp");
  const Edit edit = options.scale.empty() ? Edit::clamp : Edit::scale;
  if (edit == Edit::scale && options.error_term == "off")
    usage_error("--error-term belongs to --clamp: --scale adds a direction and replaces nothing");
  std::vector<Strength> strengths;
  for (const std::string& text : edit == Edit::scale ? options.scale : options.clamp)
    strengths.push_back(parse_strength(to_string(edit), text));
  const bool of_largest = strengths.front().of_largest;
  std::vector<double> values;
  for (const Strength& strength : strengths) {
    if (strength.of_largest != of_largest && strength.value != 0)
      usage_error("--", to_string(edit), ": ", to_string(strength), " is of another unit than ", to_string(strengths.front()));
    values.push_back(strength.value);
  }
  if (!options.out.empty()) check_output(options);
  count_words({}, options.words);  // refuses what is no word

  Threads threads(options.threads);
  const AnySae sae = open_sae(options, options.sae);
  if (sae.reads_sequences() && edit != Edit::scale)
    throw_value(options.sae,
                ": --clamp needs the codes of each token as it is written, and a temporal SAE reads whole sequences");
  const Site site = chosen_site(options, sae.site(), options.sae);
  const Steering steering(options, sae, site, of_largest, threads);
  const std::vector<Line> lines = read_lines(options.prompts);
  HostModel model = open_model(options);
  check_site(model, site);
  check_width(sae, options.sae, model.shape().width, options.model);
  std::vector<std::vector<Token>> prompts;
  for (const Line& line : lines) prompts.push_back(model.tokenize(line.text));

  const auto text_of = [&](std::span<const Token> tokens) {
    std::string text;
    for (const Token token : tokens) text += model.token_text(token);
    return text;
  };
  std::vector<SteeringPoint> curve;
  {
    Progress progress(options, "texts", static_cast<Index>(prompts.size() * values.size()));
    curve = steering_curve(
        model, prompts, values,
        [&](double value) {
          return steering.taps(model, edit, {value, of_largest});
        },
        [&](std::span<const Token> text) { return static_cast<double>(count_words(text_of(text), options.words)); },
        {options.tokens, options.temperature, options.top_k, options.seed}, [&](Index done) { progress.at(done); }, threads);
  }

  const auto shown = [&](double value) { return to_string(Strength{value, of_largest}); };
  if (!options.out.empty()) {
    OutputFolder out(options.out, {.overwrite = options.force, .marker = curve_name});
    std::string csv = "strength,of_largest,words_per_text,share_with_words,cross_entropy,tokens\n", texts;
    for (const SteeringPoint& point : curve) {
      csv += sae::detail::concat(point.strength, ",", of_largest ? 1 : 0, ",", point.effect, ",", point.share, ",",
                                 point.cross_entropy, ",", point.tokens, "\n");
      for (std::size_t n = 0; n < point.texts.size(); ++n)
        texts += Json{{"strength", point.strength},
                      {"prompt", utf8_text(lines[n].text)},
                      {"text", utf8_text(text_of(point.texts[n]))}}
                     .dump() +
                 "\n";
    }
    atomic_write_text(out / curve_name, csv);
    atomic_write_text(out / "texts.jsonl", texts);
    std::string names;
    for (const Index latent : steering.latents()) names += (names.empty() ? "" : ", ") + std::to_string(latent);
    atomic_write_text(
        out / "curve.svg",
        figure(curve,
               sae::detail::concat(steering.latents().size() == 1 ? "latent " : "latents ", names, " of ", to_string(site)),
               sae::detail::concat(to_string(edit), of_largest ? " (in units of its largest activation)" : "")));
    out.commit();
  }
  if (options.json) {
    Json points = Json::array();
    for (const SteeringPoint& point : curve)
      points.push_back({{"strength", point.strength},
                        {"words_per_text", point.effect},
                        {"share_with_words", point.share},
                        {"cross_entropy", point.cross_entropy},
                        {"tokens", point.tokens}});
    Json largest = Json::array();
    for (const LatentScale& scale : steering.scales()) largest.push_back(edit == Edit::scale ? scale.written : scale.largest);
    return print_json({{"site", to_string(site)},
                       {"latents", steering.latents()},
                       {"mode", to_string(edit)},
                       {"of_largest", of_largest},
                       {"largest", largest},
                       {"prompts", prompts.size()},
                       {"points", points}});
  }
  std::cout << "strength   words a text   texts with one   cross-entropy\n";
  for (const SteeringPoint& point : curve) {
    char line[96];
    std::snprintf(line, sizeof line, "%8s %14.3g %15.0f%% %15.4g\n", shown(point.strength).c_str(), point.effect,
                  100 * point.share, point.cross_entropy);
    std::cout << line;
  }
}

}  // namespace

void add_steer_sweep(CLI::App& program) {
  const auto options = std::make_shared<SteerSweepVerb>();
  CLI::App& verb = add_verb(program, "steer-sweep",
                            "What steering by a latent does over a row of strengths: words of a concept in the text that is "
                            "written, against how unlikely the model itself finds that text.",
                            options, run_steer_sweep);
  add_steering(verb, *options);
  verb.add_option("--scale", options->scale,
                  "strengths such as -4,0,4,8 or 0x,1x,2x,4x: x + scale * W_dec[latent]; with an x in units of the latent's "
                  "largest activation on --data")
      ->delimiter(',');
  verb.add_option("--clamp", options->clamp, "the same, as what the latent's activation is set to")->delimiter(',');
  verb.add_option("--prompts", options->prompts, "file of prompts, one a line")->required();
  verb.add_option("--words", options->words,
                  "words of the concept, such as january,february; *ed: what ends so; letters of ASCII in either case")
      ->delimiter(',')
      ->required();
  verb.add_option("--tokens", options->tokens, "tokens to write at most, for each prompt and strength")
      ->capture_default_str()
      ->check(within(1, 65535));
  add_out(verb, *options, "folder for curve.csv, curve.svg and texts.jsonl");
  add_json(verb, *options);
}

}  // namespace sae::cli
