// The whole way in C++: a language model's activations, a sparse autoencoder trained on them, measured, read and used to steer.
//
//   language_model MODEL.gguf TEXT.txt [TEXT TOKENS [LAYER [OUT]]]
//
// Built with SAE_WITH_LLAMA. With SmolLM2-135M and a book, 50,000 tokens (the default) take six minutes on two cores.
#include <sae/formats/hook_name.hpp>
#include <sae/formats/saelens.hpp>
#include <sae/host/generate.hpp>
#include <sae/host/llama_cpp.hpp>
#include <sae/sae.hpp>
#include <sae/training/recipe.hpp>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

using sae::Index;

namespace {

std::string read_text(const char* path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw std::runtime_error(std::string("cannot read ") + path);
  return {std::istreambuf_iterator<char>(in), {}};
}

// A latent worth a look: of those active in 0.1 to 2 % of the rows, the one that is strongest where it is active.
Index telling_latent(const sae::Codes<float>& codes) {
  std::vector<double> sum(static_cast<std::size_t>(codes.latents())), active(sum.size());
  for (Index e = 0; e < codes.size(); ++e) {
    sum[static_cast<std::size_t>(codes.latent(e))] += static_cast<double>(codes.value(e));
    active[static_cast<std::size_t>(codes.latent(e))] += 1;
  }
  std::size_t best = 0;
  for (std::size_t i = 0; i < sum.size(); ++i) {
    const double density = active[i] / static_cast<double>(codes.rows());
    if (density >= 0.001 && density <= 0.02 && sum[i] * active[best] > sum[best] * active[i]) best = i;
    if (active[best] == 0) best = i;
  }
  return static_cast<Index>(best);
}

void run(const char* model_path, const char* text_path, Index text_tokens, Index layer, const char* out) {
  // 1. The model, the place to look at, and the text in windows. Training will not see the last tenth.
  sae::LlamaCpp model(model_path, {.context = 256});
  const sae::ModelShape shape = model.shape();
  const sae::Site site{layer < 0 ? shape.layers / 2 : layer, sae::SiteKind::residual};
  const std::vector<sae::Token> text = model.tokenize(read_text(text_path));
  const Index used = std::min(text_tokens, static_cast<Index>(text.size())), seen = used * 9 / 10;
  const Index context = std::min<Index>(256, model.trained_context());
  const sae::Windows training(text, model.bos(), {.context = context, .tokens = seen});
  const sae::Windows held_out(text, model.bos(), {.context = context, .skip_tokens = seen, .tokens = used - seen});
  std::printf("model: %s, activations of %s, width %ld\n", model.name().c_str(), to_string(site).c_str(), shape.width);

  // 2. Run the model over the text and keep the rows. These fit in memory; for more, `Trainer::fit` also reads from
  //    sae::ShuffleBuffer(sae::ActivationSource(model, training, {site})), which runs the model as it goes.
  sae::Buffer<float> numbers;
  std::vector<sae::RowOrigin> origins;
  const auto collect = [&](const sae::CollectedRows& rows, Index) {
    numbers.insert(numbers.end(), rows.sites[0].data(), rows.sites[0].data() + rows.sites[0].size());
    origins.insert(origins.end(), rows.origins.begin(), rows.origins.end());
  };
  const sae::CollectCounts counts = sae::collect(model, training, std::span(&site, 1), collect).counts;
  const sae::ConstMatrixMap<float> x(numbers.data(), counts.kept, shape.width);
  std::printf("rows: %ld, left out %ld of BOS and %ld with a norm above 10 medians\n", counts.kept, counts.bos, counts.norm);

  // 3. Train, with settings that follow from the sizes.
  const Index latents = 8 * shape.width, k = std::clamp<Index>(shape.width / 4, 1, 32);
  sae::SparseAutoencoder autoencoder(shape.width, latents, sae::TopK{.k = k});
  sae::Trainer trainer(autoencoder, sae::recommended(shape.width, latents, sae::recommended_tokens(x.rows())));
  sae::MatrixSource<float> source(x);
  trainer.fit(source, sae::progress_bar(std::cerr));

  // 4. How well does it reconstruct rows it has not seen, and how well does the model predict with the reconstruction inside?
  sae::ActivationSource unseen(model, held_out, {site});
  const auto report = sae::evaluate(autoencoder, unseen);
  std::printf("autoencoder: %ld latents, L0 %.1f, explained variance %.3f, %ld rows held out\n", latents, report.l0,
              report.explained_variance, report.rows);
  const auto spliced = sae::recover(model, held_out, site, autoencoder, {.mean_row = x.colwise().mean()});
  const sae::SpliceLosses& ce = spliced.cross_entropy;
  std::printf("cross-entropy: clean %.3f, with the autoencoder %.3f, zeros %.3f, mean %.3f (BOS rows kept)\n", ce.clean, ce.sae,
              ce.zero, ce.mean);
  std::printf("loss recovered: %.3f against zeros, %.3f against the mean\n", spliced.loss_recovered.zero,
              spliced.loss_recovered.mean);

  // 5. What does a latent stand for? The contexts in which it is most active.
  const sae::Codes<float> codes = autoencoder.encode(x);
  const Index latent = telling_latent(codes);
  sae::TopActivations top(latents, 5, {latent});
  top.add(codes);
  std::printf("latent %ld, active in %.2f %% of the rows:\n", latent, 100 * top.density(latent));
  for (const auto& [value, row] : top.top(latent)) {
    const sae::RowOrigin at = origins[static_cast<std::size_t>(row)];
    const Index first = std::max<Index>(at.position - 8, training.has_bos() ? 1 : 0);
    std::vector<std::string> pieces;
    for (Index t = first; t <= at.position; ++t)
      pieces.push_back(model.token_text(training[at.window][static_cast<std::size_t>(t)]));
    std::printf("  %8.3f  %s\n", value, sae::context_text(pieces, at.position - first).c_str());
  }

  // 6. Turn it up while the model writes.
  const auto write = [&](double scale) {
    std::string written;
    const sae::Tap tap = sae::steer_latent(site, autoencoder, latent, scale, sae::EditedRows::after_first());
    for (const sae::Token token : sae::generate(model, held_out[0].first(9), {.tokens = 24}, std::span(&tap, 1)))
      written += model.token_text(token);
    std::printf("scale %.3g: \"%s\"\n", scale, sae::visible_text(written).c_str());
  };
  write(0);
  write(top.max(latent));

  // 7. Keep it, in the files that SAELens writes and Python reads.
  sae::save_saelens(autoencoder, out,
                    {.model_name = model.name(), .hook_name = sae::hook_of_site(site), .context_size = context},
                    {.overwrite = true});
  std::printf("saved: %s\n", out);
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 3) {
    std::fputs("usage: language_model MODEL.gguf TEXT.txt [TEXT TOKENS [LAYER [OUT]]]\n", stderr);
    return 2;
  }
  const auto number = [&](int i, Index otherwise) {
    if (argc <= i) return otherwise;
    char* end = nullptr;
    const Index out = std::strtol(argv[i], &end, 10);
    if (end == argv[i] || *end != '\0') throw std::runtime_error(std::string(argv[i]) + " is not a number");
    return out;
  };
  run(argv[1], argv[2], number(3, 50'000), number(4, -1), argc > 5 ? argv[5] : "language-model-sae");
} catch (const std::exception& error) {
  std::fprintf(stderr, "language_model: %s\n", error.what());
  return 1;
}
