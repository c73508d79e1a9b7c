#include <sae/report/dashboard.hpp>

#include <memory>
#include <numeric>

#include "contexts.hpp"

namespace sae::cli {

namespace {

struct DashboardVerb : TextVerb {
  std::vector<std::string> latents;
  std::string labels, neuronpedia;
  LatentStatisticsOptions statistics{.intervals = 8};
  DashboardOptions shown;
};

bool is_one_file(const DashboardVerb& options) { return std::filesystem::path(options.out).extension() == ".html"; }

/// Refuses before the work what could not be written after it.
void check_outputs(const DashboardVerb& options, Index latents) {
  if (options.out.empty() && options.neuronpedia.empty() && !options.json)
    usage_error("say what is wanted: --out for a page, --neuronpedia for JSON lines, --json");
  if (!options.out.empty()) {
    check_output(options);
    if (is_one_file(options) && latents > options.shown.file_latents)
      throw_value("--out ", options.out, ": ", latents, " latents are more than the ", options.shown.file_latents,
                  " of one file; give a name without .html for a folder, or fewer --latents");
  }
  if (!options.neuronpedia.empty()) {
    Common file = options;
    file.out = options.neuronpedia;
    check_output(file);
  }
}

/// The name of a file or folder without the way to it.
std::string last_name(const std::string& path) {
  const std::filesystem::path whole = std::filesystem::path(path).lexically_normal();
  return (whole.has_filename() ? whole : whole.parent_path()).filename().string();
}

void run_dashboard(const DashboardVerb& options) {
  check_text_source(options);
  options.statistics.check();
  Threads threads(options.threads);
  const AnySae sae = open_sae(options, options.sae);
  DashboardInput input{.sae = last_name(options.sae), .architecture = sae.activation()};
  if (options.latents.empty()) {
    input.latents.resize(static_cast<std::size_t>(sae.latents()));
    std::iota(input.latents.begin(), input.latents.end(), Index{0});
  } else {
    input.latents = parse_latents(options.latents, sae.latents());
  }
  check_outputs(options, static_cast<Index>(input.latents.size()));
  if (!options.labels.empty()) input.labels = read_labels(options.labels, sae.latents());
  input.architecture += sae::detail::concat(", ", sae.d_in(), " to ", sae.latents());

  RecordedCodes rows(sae.latents(), options.statistics);
  const ReadText text = read_codes(options, sae, threads, [&](Codes<float> codes, std::span<const RowOrigin> origins) {
    rows.add(std::move(codes), origins);
  });
  input.site = to_string(text.site);
  input.layer = text.site.layer;
  input.token_text = [&](Token token) { return text.piece(token); };
  Matrix<float> unembedding;
  if (text.model != nullptr) {
    input.model = text.model->name();
    if (options.shown.logits > 0) unembedding = text.model->unembedding();
    input.unembedding = &unembedding;
  }
  note(options, "sae: ", input.latents.size(), " latents: logits, neighbours, co-activation");
  Tensor<float> directions(sae.latents(), sae.d_out());
  for (Index i = 0; i < sae.latents(); ++i) {
    const std::vector<float> direction = sae.direction(i);
    std::copy(direction.begin(), direction.end(), directions.row(i));
  }
  const Dashboard dashboard = make_dashboard(std::move(rows), directions, std::move(input), options.shown, threads);
  check_stop();

  const OutputOptions output{.overwrite = options.force};
  if (!options.out.empty()) {
    if (is_one_file(options))
      write_dashboard_file(options.out, dashboard, output);
    else
      write_dashboard_folder(options.out, dashboard, output);
  }
  if (!options.neuronpedia.empty()) write_neuronpedia(options.neuronpedia, dashboard, output);
  if (options.json)
    print_json(dashboard_json(dashboard));
  else
    print_table({{"latents", sae::detail::concat(dashboard.latents.size(), " of ", sae.latents())},
                 {"rows", sae::detail::concat(dashboard.rows.rows(), " of ", dashboard.site)},
                 {"page", options.out.empty()    ? "none"
                          : is_one_file(options) ? options.out
                                                 : (std::filesystem::path(options.out) / "index.html").string()}});
}

}  // namespace

void add_dashboard(CLI::App& program) {
  const auto options = std::make_shared<DashboardVerb>();
  CLI::App& verb = add_verb(program, "dashboard",
                            "A page to look through latents: where they fire, how often, what they promote, what is near them.",
                            options, run_dashboard);
  add_text_source(verb, *options);
  verb.add_option("--latent,--latents", options->latents, "latents, such as 3,17,40-49; default: all")->delimiter(',');
  add_out(verb, *options,
          "page: a name that ends in .html is one file, of at most 2000 latents; any other is a folder with index.html");
  verb.add_option("--neuronpedia", options->neuronpedia,
                  "also JSON lines with the fields of Neuronpedia's features, into this file");
  verb.add_option("--labels", options->labels, R"(labels, JSON lines such as {"latent": 7, "label": "months"})");
  const auto number = [&](const char* name, Index& value, const char* what, double low, double high) {
    verb.add_option(name, value, what)->capture_default_str()->check(within(low, high));
  };
  number("--count", options->statistics.top, "strongest contexts of each latent", 1, 10000);
  number("--examples", options->statistics.examples, "random contexts of each interval of activation", 0, 1000);
  number("--intervals", options->statistics.intervals, "intervals, a power of two", 2, 64);
  number("--before", options->shown.before, "tokens shown before the one in question", 0, 65536);
  number("--after", options->shown.after, "tokens shown after it", 0, 65536);
  number("--logits", options->shown.logits, "tokens promoted and suppressed most; 0: none", 0, 1000);
  number("--nearest", options->shown.nearest, "latents of the most similar directions; 0: none", 0, 1000);
  number("--co-active", options->shown.co_active, "latents that fire together with it; 0: none", 0, 1000);
  verb.add_option("--seed", options->statistics.seed, "of the random contexts")->capture_default_str()->check(whole_number());
  add_json(verb, *options);
}

}  // namespace sae::cli
