#include <sae/formats/codes_file.hpp>
#include <sae/formats/synthetic_config.hpp>

#include <optional>

#include "common.hpp"

namespace sae::cli {

namespace {

struct SynthVerb : Common {
  std::string config, truth, codes;
  Index rows = 0, first_row = 0;
};

void check_free(const SynthVerb& options, const std::string& path) {
  Common other = options;
  other.out = path;
  if (!path.empty()) check_output(other);
}

void run_synth(const SynthVerb& options) {
  constexpr Index block = 1024;
  check_output(options);
  for (const std::string& path : {options.truth, options.codes}) check_free(options, path);
  if (options.out == options.truth || options.out == options.codes ||
      (!options.truth.empty() && options.truth == options.codes))
    usage_error("--out, --truth and --codes name the same file");
  Threads threads(options.threads);
  const SyntheticWorld world(read_synthetic_config(options.config), threads);
  const OutputOptions output{.overwrite = options.force};
  NpyRowWriter rows(options.out, world.width(), Dtype::float32, output);
  std::optional<NpyRowWriter> truth;
  if (!options.truth.empty()) truth.emplace(options.truth, world.width(), Dtype::float32, output);
  std::optional<SparseCodesWriter> codes;
  if (!options.codes.empty()) codes.emplace(options.codes, options.rows, world.features(), output);

  SyntheticSource<float> source(world, {.seed = options.seed, .first = options.first_row, .rows = options.rows}, threads);
  Tensor<float> batch((std::min)(block, options.rows), world.width());
  Codes<float> active;
  Index entries = 0;
  {
    Progress progress(options, "rows", options.rows);
    for (Index got = 0; (got = source.next(batch, active)) > 0; progress.at(rows.rows())) {
      check_stop();
      if (!Batch<float>(batch.data(), got, batch.cols()).map().allFinite())
        throw_value(options.config,
                    ": its rows are not finite in float32: bias, firing magnitudes or directions are too large");
      rows.append(batch.data(), got, batch.cols());
      if (codes) codes->append(active);
      entries += active.size();
    }
  }
  check_stop();
  if (truth) {
    truth->append(world.directions.data(), world.features(), world.width());
    truth->finish();
  }
  if (codes) codes->finish();
  rows.finish();
  const double l0 = static_cast<double>(entries) / static_cast<double>(options.rows);
  if (options.json)
    return print_json(
        {{"out", options.out}, {"rows", options.rows}, {"d_in", world.width()}, {"features", world.features()}, {"l0", l0}});
  print_table({{"rows", sae::detail::concat(options.rows, " of width ", world.width())},
               {"features", sae::detail::concat(world.features(), ", ", rounded(l0), " active per row")}});
}

}  // namespace

void add_synth(CLI::App& program) {
  const auto options = std::make_shared<SynthVerb>();
  CLI::App& verb = add_verb(program, "synth", "Rows whose features are known, from a synthetic world.", options, run_synth);
  verb.add_option(
          "--config", options->config,
          "the world, JSON with the keys of SAELens' synthetic_model: num_features and hidden_dim, and if wanted "
          "firing_probability, mean_firing_magnitudes, std_firing_magnitudes, hierarchy, correlation, orthogonalization, "
          "bias, seed (of the world)")
      ->required();
  verb.add_option("--rows", options->rows, "rows to make")->required()->check(at_least(1));
  verb.add_option("--first-row", options->first_row, "number of the first one: other numbers, other rows of the same world")
      ->capture_default_str()
      ->check(at_least(0));
  verb.add_option("--truth", options->truth, "also write the directions of the features, .npy [features, D]");
  verb.add_option("--codes", options->codes, "also write how active each feature is in each row, sparse codes (safetensors)");
  add_seed(verb, *options);
  add_out(verb, *options, "file to write, .npy float32 [N, D]")->required();
  add_json(verb, *options);
}

}  // namespace sae::cli
