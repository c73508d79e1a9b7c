#include <sae/formats/codes_file.hpp>

#include "sae_argument.hpp"

namespace sae::cli {

namespace {

struct DecodeVerb : Common {
  std::string sae, codes;
};

void run_decode(const DecodeVerb& options) {
  constexpr Index block = 1024;
  check_output(options);
  Threads threads(options.threads);
  const AnySae sae = open_sae(options, options.sae);
  const CodesFile codes(options.codes);
  if (codes.latents() != sae.latents())
    throw_shape(options.codes, ": codes of ", codes.latents(), " latents, the SAE ", options.sae, " has ", sae.latents());
  NpyRowWriter out(options.out, sae.d_in(), Dtype::float32, {.overwrite = options.force});
  Progress progress(options, "rows", codes.rows());
  for (Index done = 0; done < codes.rows();) {
    check_stop();
    const Index n = (std::min)(block, codes.rows() - done);
    out.append(sae.decode(codes.read(done, n), threads));
    progress.at(done += n);
  }
  check_stop();
  out.finish();
  note(options, options.out, ": ", codes.rows(), " rows of width ", sae.d_in());
}

}  // namespace

void add_decode(CLI::App& program) {
  const auto options = std::make_shared<DecodeVerb>();
  CLI::App& verb = add_verb(program, "decode", "Codes to rows.", options, run_decode);
  add_sae(verb, options->sae)->required();
  verb.add_option("--codes", options->codes, "codes as `sae encode` writes them, dense (.npy) or sparse (safetensors)")
      ->required();
  add_out(verb, *options, "file to write, .npy float32 [N, D]")->required();
}

}  // namespace sae::cli
