#include <sae/files/sha256.hpp>
#include <sae/host/collected_folder.hpp>

#include <iostream>

#include "language_model.hpp"

namespace sae::cli {

namespace {

struct CollectVerb : ModelVerb {
  bool keep_bos = false;
  std::string max_norm = "10x";
  std::string dtype = "f32";
};

std::string dropped_text(const CollectedInfo& info) {
  return sae::detail::concat(info.counts.bos, " BOS rows", info.options.keep_bos ? " (kept)" : "", ", ", info.counts.norm,
                             " rows with a norm above ", info.options.max_norm, " medians, ", info.counts.not_finite,
                             " rows with NaN or infinity");
}

void run_collect(const CollectVerb& options) {
  const CollectOptions filter{options.keep_bos, parse_max_norm(options.max_norm)};
  check_output(options);
  std::vector<Site> sites;
  for (const Index layer : options.layers)
    for (const std::string& kind : options.sites) {
      const Site site{layer, parse_site_kind(kind)};
      if (std::find(sites.begin(), sites.end(), site) != sites.end())
        usage_error("--layer and --site name ", to_string(site), " twice");
      sites.push_back(site);
    }
  const std::string text = read_text(options);
  HostModel model = open_model(options);
  for (const Site& site : sites) check_site(model, site);
  const Windows windows = windows_of(model, options, text);

  CollectedInfo info;
  info.model_file = std::filesystem::absolute(options.model).lexically_normal().string();
  info.model_name = model.name();
  info.model_bytes = static_cast<Index>(std::filesystem::file_size(options.model));
  info.text_file = std::filesystem::absolute(options.text).lexically_normal().string();
  info.text_bytes = static_cast<Index>(text.size());
  info.text_sha256 = sha256(text);
  info.sites = sites;
  info.width = model.shape().width;
  info.context = windows.context();
  info.has_bos = windows.has_bos();
  info.skip_tokens = options.skip_tokens;
  info.text_tokens = windows.text_tokens();
  info.options = filter;
  info.dtype = options.dtype == "f16" ? Dtype::float16 : Dtype::float32;

  CollectedWriter writer(options.out, info, {.overwrite = options.force});
  note(options, info.model_name, ": ", windows.count(), " windows of ", windows.context(), " tokens",
       windows.has_bos() ? " (BOS and " : " (", windows.text_per_window(), " of the text), ", sites.size(),
       sites.size() == 1 ? " site" : " sites", " in one pass");
  CollectReport report;
  {
    Progress progress(options, "windows", windows.count());
    report = collect(
        model, windows, sites,
        [&](const CollectedRows& rows, Index windows_done) {
          check_stop();
          writer.append(rows);
          progress.at(windows_done);
        },
        filter);
  }
  check_stop();
  info = writer.finish(report);

  if (options.json) {
    Json folders = Json::array();
    for (const Site& site : sites) folders.push_back((std::filesystem::path(options.out) / to_string(site)).string());
    print_json({{"out", options.out},
                {"folders", folders},
                {"rows", info.rows},
                {"width", info.width},
                {"windows", info.windows},
                {"text_tokens", info.text_tokens},
                {"dropped_bos", info.counts.bos},
                {"dropped_norm", info.counts.norm},
                {"dropped_not_finite", info.counts.not_finite}});
    return;
  }
  std::string names;
  for (const Site& site : sites) names += (names.empty() ? "" : ", ") + to_string(site);
  print_table({{"rows", sae::detail::concat(info.rows, " of width ", info.width)},
               {"sites", names},
               {"left out", dropped_text(info)},
               {"windows", sae::detail::concat(info.windows, " of ", info.context, " tokens")},
               {"folder", options.out}});
}

}  // namespace

void add_collect(CLI::App& program) {
  const auto options = std::make_shared<CollectVerb>();
  CLI::App& verb =
      add_verb(program, "collect", "Run a language model over a text and write its activations.", options, run_collect);
  add_model(verb, *options)->required();
  add_text(verb, *options)->required();
  verb.add_option("--layer", options->layers, "layers, from 0, such as 3,15; all of them come from one pass")
      ->required()
      ->delimiter(',')
      ->check(at_least(0));
  verb.add_option("--site", options->sites,
                  "sites of each layer: residual (the stream after the layer), mlp_out, attn_out (default: residual)")
      ->delimiter(',')
      ->default_val(std::vector<std::string>{"residual"})
      ->default_str("residual")
      ->check(CLI::IsMember({"residual", "mlp_out", "attn_out"}));
  verb.add_flag("--keep-bos", options->keep_bos, "keep the rows of BOS (attention sinks with huge norms)");
  verb.add_option("--max-norm", options->max_norm,
                  "leave out rows with a norm above so many medians of the norm (10x), or none")
      ->capture_default_str();
  verb.add_option("--dtype", options->dtype, "numbers of the rows: f32 or f16")
      ->capture_default_str()
      ->check(CLI::IsMember({"f32", "f16"}));
  add_out(verb, *options, "folder to make: a folder a site, tokens.npy, collect.json")->required();
  add_json(verb, *options);
}

}  // namespace sae::cli
