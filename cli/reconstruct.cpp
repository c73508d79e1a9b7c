#include "sae_argument.hpp"

namespace sae::cli {

namespace {

struct ReconstructVerb : RowOptions {
  std::string sae;
};

void write_reconstructions(const ReconstructVerb& options, const auto& sae) {
  Threads threads(options.threads);
  const FiniteNpyRows rows(open_rows(options));
  check_width(sae, options.sae, rows.width(), options.data);
  const RowRange range = chosen_rows(options, rows.rows());
  const std::optional<Sequences> sequences = sequences_of(options, sae, options.sae);
  NpyRowWriter out(options.out, sae.d_out(), Dtype::float32, {.overwrite = options.force});
  for_each_block(options, "rows", rows, range, sequences,
                 [&](const Batch<float>& batch, Index) { out.append(sae.reconstruct(batch, threads)); });
  out.finish();
  note(options, options.out, ": ", range.count, " rows of width ", sae.d_out());
}

void run_reconstruct(const ReconstructVerb& options) {
  check_output(options);
  write_reconstructions(options, open_any(options, options.sae));
}

}  // namespace

void add_reconstruct(CLI::App& program) {
  const auto options = std::make_shared<ReconstructVerb>();
  CLI::App& verb =
      add_verb(program, "reconstruct", "Rows to rows: what is left of them after the SAE; of a transcoder what it predicts.",
               options, run_reconstruct);
  add_sae(verb, options->sae)->required();
  add_rows(verb, *options)->required();
  add_context(verb, *options);
  add_out(verb, *options, "file to write, .npy float32 [N, D]")->required();
}

}  // namespace sae::cli
