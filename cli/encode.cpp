#include <sae/formats/codes_file.hpp>

#include "sae_argument.hpp"

namespace sae::cli {

namespace {

struct EncodeVerb : RowOptions {
  std::string sae;
  bool sparse = false;
};

void write_codes(const EncodeVerb& options, const auto& sae) {
  Threads threads(options.threads);
  const FiniteNpyRows rows(open_rows(options));
  check_width(sae, options.sae, rows.width(), options.data);
  const RowRange range = chosen_rows(options, rows.rows());
  const std::optional<Sequences> sequences = sequences_of(options, sae, options.sae);
  const Index latents = sae.latents();
  Index entries = 0;

  const auto encode = [&](const auto& append) {
    for_each_block(options, "rows", rows, range, sequences, [&](const Batch<float>& batch, Index) {
      const Codes<float> codes = sae.encode(batch, threads);
      entries += codes.size();
      append(codes);
    });
  };
  if (options.sparse) {
    SparseCodesWriter out(options.out, range.count, latents, {.overwrite = options.force});
    encode([&](const Codes<float>& codes) { out.append(codes); });
    out.finish();
  } else {
    NpyRowWriter out(options.out, latents, Dtype::float32, {.overwrite = options.force});
    std::vector<float> row(static_cast<std::size_t>(latents));
    encode([&](const Codes<float>& codes) {
      for (Index b = 0; b < codes.rows(); ++b) {
        std::fill(row.begin(), row.end(), 0.0F);
        for (Index e = codes.begin(b); e < codes.end(b); ++e) row[static_cast<std::size_t>(codes.latent(e))] = codes.value(e);
        out.append(row.data(), 1, latents);
      }
    });
    out.finish();
  }
  note(options, options.out, ": codes of ", range.count, " rows, ", latents, " latents, ",
       rounded(static_cast<double>(entries) / static_cast<double>(range.count)), " active per row");
}

void run_encode(const EncodeVerb& options) {
  check_output(options);
  write_codes(options, open_any(options, options.sae));
}

}  // namespace

void add_encode(CLI::App& program) {
  const auto options = std::make_shared<EncodeVerb>();
  CLI::App& verb =
      add_verb(program, "encode", "Rows to codes: which latents are active, and how strongly.", options, run_encode);
  add_sae(verb, options->sae)->required();
  add_rows(verb, *options)->required();
  add_context(verb, *options);
  verb.add_flag("--sparse", options->sparse,
                "safetensors with row_offsets [N + 1], latents and values [entries] instead of a dense .npy [N, F]");
  add_out(verb, *options, "file to write")->required();
}

}  // namespace sae::cli
