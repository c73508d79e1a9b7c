#include <sae/formats/cross_layer.hpp>

#include "sae_argument.hpp"

namespace sae::cli {

namespace {

struct InspectVerb : Common {
  std::string path;
  bool check = false;
};

/// What a SAE or transcoder is; of a cross-layer transcoder, sizes of one layer.
struct Inspected {
  const StoredDetails& sae;
  std::string architecture, activation;
  Index d_in, d_out, latents, layers;  ///< layers: 0 where there are none

  Json json() const {
    Json tensors = Json::object();
    for (const auto& [name, tensor] : sae.tensors) tensors[name] = tensor.shape;
    Json out{{"layout", sae.layout}, {"architecture", architecture}, {"d_in", d_in}, {"d_out", d_out}, {"latents", latents}};
    if (layers > 0) out["layers"] = layers;
    out.update(Json{{"dtype", sae.dtype}, {"tensors", tensors}, {"config", Json(sae.config)}, {"warnings", sae.warnings}});
    return out;
  }
};

void print_inspected(const InspectVerb& options, const Inspected& found) {
  if (options.json) return print_json(found.json());
  const StoredDetails& sae = found.sae;
  std::vector<std::pair<std::string, std::string>> table{
      {"layout", sae.layout},
      {"architecture", sae::detail::concat(found.architecture, " (", found.activation, ")")},
      {"d_in", std::to_string(found.d_in)},
      {"d_out", std::to_string(found.d_out)},
      {"latents", std::to_string(found.latents)}};
  if (found.layers > 0) table.emplace_back("layers", std::to_string(found.layers));
  table.emplace_back("dtype", sae.dtype);
  for (const auto& [name, tensor] : sae.tensors)
    table.emplace_back(name, sae::detail::shape_text(tensor.shape) + " " + tensor.dtype);
  for (const auto& field : sae.config.items())
    if (field.key() != "metadata") table.emplace_back(field.key(), field.value().dump());
  if (sae.config.contains("metadata"))
    for (const auto& field : sae.config["metadata"].items())
      table.emplace_back("metadata." + field.key(), field.value().dump());
  for (const std::string& warning : sae.warnings) table.emplace_back("warning", warning);
  if (options.check) table.emplace_back("weights", "all finite");
  print_table(table);
}

void run_inspect(const InspectVerb& options) {
  if (is_cross_layer(options.path)) {
    const PublishedCrossLayer clt = read_published_cross_layer(options.path);
    if (options.check) check_cross_layer(clt);
    return print_inspected(options, {clt, clt.architecture, sae::detail::activation_text(clt.activation()), clt.d_in, clt.d_in,
                                     clt.latents, clt.layers()});
  }
  AnySae sae = load(options.path, {.check_finite = options.check});
  if (options.check)
    for (std::string& warning : sae.check_weights()) sae.warnings.push_back(std::move(warning));
  print_inspected(options, {sae, sae.architecture(), sae.activation(), sae.d_in(), sae.d_out(), sae.latents(), 0});
}

}  // namespace

void add_inspect(CLI::App& program) {
  const auto options = std::make_shared<InspectVerb>();
  CLI::App& verb =
      add_verb(program, "inspect", "What a file is: layout, architecture, shapes, settings, warnings.", options, run_inspect);
  verb.add_option("path", options->path, "SAE: a folder or a file, or a name of one")->required();
  verb.add_flag("--check", options->check, "read all weights: refuse what is NaN or infinite, warn of decoder rows of zeros");
  add_json(verb, *options);
}

}  // namespace sae::cli
