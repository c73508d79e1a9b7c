#include "sae_argument.hpp"

namespace sae::cli {

namespace {

struct InspectVerb : Common {
  std::string path;
  bool check = false;
};

Json inspected_json(const AnySae& sae) {
  Json tensors = Json::object();
  for (const auto& [name, tensor] : sae.tensors) tensors[name] = tensor.shape;
  return {{"layout", sae.layout}, {"architecture", sae.architecture()}, {"d_in", sae.d_in()},
          {"d_out", sae.d_out()}, {"latents", sae.latents()},           {"dtype", sae.dtype},
          {"tensors", tensors},   {"config", Json(sae.config)},         {"warnings", sae.warnings}};
}

void print_inspected(const InspectVerb& options, const AnySae& sae) {
  if (options.json) return print_json(inspected_json(sae));
  std::vector<std::pair<std::string, std::string>> table{
      {"layout", sae.layout},
      {"architecture", sae::detail::concat(sae.architecture(), " (", sae.activation(), ")")},
      {"d_in", std::to_string(sae.d_in())},
      {"d_out", std::to_string(sae.d_out())},
      {"latents", std::to_string(sae.latents())},
      {"dtype", sae.dtype}};
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
  const AnySae sae = load(options.path, {.check_finite = options.check});
  if (options.check) sae.check_weights();
  print_inspected(options, sae);
}

}  // namespace

void add_inspect(CLI::App& program) {
  const auto options = std::make_shared<InspectVerb>();
  CLI::App& verb =
      add_verb(program, "inspect", "What a file is: layout, architecture, shapes, settings, warnings.", options, run_inspect);
  verb.add_option("path", options->path, "SAE: a folder or a file")->required();
  verb.add_flag("--check", options->check, "refuse weights that are NaN or infinite");
  add_json(verb, *options);
}

}  // namespace sae::cli
