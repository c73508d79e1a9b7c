#include <sae/formats/control_vector.hpp>
#include <sae/formats/save_as.hpp>

#include <optional>

#include "sae_argument.hpp"

namespace sae::cli {

namespace {

constexpr const char* control_vector = "control-vector";

struct ConvertVerb : Common {
  std::string sae, to, dtype = "float32";
  std::optional<Index> latent, layer;
  Index shard_bytes = 0;
  double scale = 1;
};

Dtype parse_dtype(const std::string& name) {
  for (const Dtype dtype : all_dtypes)
    if (is_floating(dtype) && name == to_string(dtype)) return dtype;
  usage_error("--dtype ", name, " is none of float32, float64, bfloat16, float16");
}

void write_control_vector(const ConvertVerb& options, const AnySae& sae) {
  if (!options.latent) usage_error("--to control-vector needs --latent, whose direction it is");
  std::vector<float> direction = sae.direction(*options.latent);
  const std::optional<Site> site = sae.site();
  if (!options.layer && !site) usage_error(options.sae, " does not say its layer; --layer does");
  if (site && site->kind != SiteKind::residual)
    throw_value(options.sae, ": is of ", hook_of_site(*site), "; a control vector is added to the residual stream");
  if (options.layer && site && *options.layer != site->layer)
    throw_value("--layer ", *options.layer, ": the SAE ", options.sae, " is of layer ", site->layer);
  const Index layer = options.layer ? *options.layer : site->layer;
  for (float& number : direction) number *= static_cast<float>(options.scale);
  save_control_vector(options.out, direction, layer, "", {.overwrite = options.force});
  note(options, options.out, ": ", rounded(options.scale), " times the direction of latent ", *options.latent, ", after layer ",
       layer);
}

void run_convert(const ConvertVerb& options) {
  const Dtype dtype = parse_dtype(options.dtype);
  const bool vector = options.to == control_vector;
  if (!vector && (options.latent || options.layer)) usage_error("--latent and --layer belong to --to control-vector");
  const SaeLayout layout = vector ? SaeLayout::saelens : parse_layout(options.to);
  check_output(options);
  const AnySae sae = open_any(options, options.sae, vector ? WeightsIn::automatic : WeightsIn::memory);
  if (vector) return write_control_vector(options, sae);
  save_as(sae, layout, options.out, {.overwrite = options.force, .dtype = dtype, .shard_bytes = options.shard_bytes});
  note(options, options.out, ": ", sae.architecture(), ", ", sae.d_in(), " -> ", sae.latents(), " latents, from ", sae.layout,
       " to ", options.to);
}

}  // namespace

void add_convert(CLI::App& program) {
  const auto options = std::make_shared<ConvertVerb>();
  CLI::App& verb = add_verb(program, "convert", "One layout to another; a latent's direction to a control vector of llama.cpp.",
                            options, run_convert);
  add_sae(verb, options->sae)->required();
  std::vector<std::string> targets(layout_names.begin(), layout_names.end());
  targets.emplace_back(control_vector);
  verb.add_option("--to", options->to, "layout to write; control-vector: a GGUF file for llama-cli --control-vector")
      ->required()
      ->check(CLI::IsMember(targets));
  verb.add_option("--dtype", options->dtype, "of the weights: float32, float64, bfloat16 or float16")->capture_default_str();
  verb.add_option(
          "--shard-bytes", options->shard_bytes,
          "saelens, sparsify: weights of more bytes go into several files of at most so many; SAELens and sparsify do not "
          "read those; default: one file")
      ->check(whole_number());
  verb.add_option("--latent", options->latent, "whose direction the control vector is")->check(whole_number());
  verb.add_option("--layer", options->layer, "after which the control vector is added, from 1 on; default: the SAE's own")
      ->check(whole_number());
  verb.add_option("--scale", options->scale, "times the direction")->capture_default_str();
  add_out(verb, *options, "folder to write, or of a control vector the file")->required();
}

}  // namespace sae::cli
