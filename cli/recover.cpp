#include <sae/interpret/recover.hpp>

#include "language_model.hpp"
#include "sae_argument.hpp"

namespace sae::cli {

namespace {

struct RecoverVerb : ModelVerb {
  std::string sae;
  std::string mean_from;
  std::string max_norm = "10x";
  bool replace_bos = false;
};

/// Mean of the rows of a .npy file or folder, or of what collect made.
RowVector<float> mean_row_of(const RecoverVerb& options, Index width) {
  const FiniteNpyRows rows(NpyFolder(rows_path(options.mean_from), {.bfloat16 = true}));
  if (rows.width() != width)
    throw_shape(options.mean_from, ": rows are ", rows.width(), " wide, the model's are ", width, " wide");
  if (rows.rows() == 0) throw_value(options.mean_from, ": has no rows to take the mean of");
  Eigen::RowVectorXd sum = Eigen::RowVectorXd::Zero(width);
  RowVector<float> row(width);
  for (Index r = 0; r < rows.rows(); ++r) {
    if (r % 4096 == 0) check_stop();
    rows.read_row(r, row.data());
    sum += row.cast<double>();
  }
  return (sum / static_cast<double>(rows.rows())).cast<float>();
}

std::string nats(double x) {
  char text[40];
  std::snprintf(text, sizeof text, "%.4f", x);
  return text;
}

void print_report(const RecoverVerb& options, const RecoverReport& report, const Windows& windows, const Site& site) {
  using sae::detail::concat;
  const SpliceLosses& ce = report.cross_entropy;
  std::string left_out = concat(report.rows.bos, " of BOS");
  if (report.rows.norm > 0) left_out += concat(", ", report.rows.norm, " with a norm above ", options.max_norm, " medians");
  if (report.rows.not_finite > 0) left_out += concat(", ", report.rows.not_finite, " not finite");
  print_table({{"clean", nats(ce.clean) + "   cross-entropy of the model as it is, nats per token"},
               {"with the SAE", nats(ce.sae) + concat("   ", nats(ce.sae - ce.clean), " above clean, at ", to_string(site))},
               {"zero ablation", nats(ce.zero) + "   zeros in the place of the activations"},
               {"mean ablation", nats(ce.mean) + "   " +
                                     (options.mean_from.empty() ? std::string("their mean over these windows")
                                                                : "the mean of " + options.mean_from) +
                                     " in their place"},
               {"loss recovered",
                nats(report.loss_recovered.zero) + " against zero, " + nats(report.loss_recovered.mean) + " against mean"},
               {"KL", nats(report.kl) + "   of the predictions, clean against with the SAE"},
               {"L0", rounded(report.figures.l0) + "   active latents per row"},
               {"explained variance", nats(report.figures.explained_variance) +
                                          concat("   of ", report.rows.kept, " rows (left out: ", left_out, ")")},
               {"BOS", !windows.has_bos()    ? "the model has none: every row is replaced"
                       : report.replaces_bos ? "its rows are replaced like all others (--replace-bos)"
                                             : "its rows stay as they are in all four conditions"},
               {"tokens", concat(report.tokens, " predicted in ", windows.count(), " windows of ", windows.context())}});
}

void run_recover(const RecoverVerb& options) {
  const double max_norm = parse_max_norm(options.max_norm);
  Threads threads(options.threads);
  const AnySae sae = open_sae(options, options.sae);
  const Site site = chosen_site(options, sae.site(), options.sae);
  const std::string text = read_text(options);
  HostModel model = open_model(options);
  check_site(model, site);
  check_width(sae, options.sae, model.shape().width, options.model);
  const Windows windows = windows_of(model, options, text);
  RecoverOptions how;
  how.replace_bos = options.replace_bos;
  how.max_norm = max_norm;
  if (!options.mean_from.empty()) how.mean_row = mean_row_of(options, model.shape().width);

  RecoverReport report;
  {
    Progress progress(options, "steps (windows read, then spliced)", 2 * windows.count());
    report = recover(
        model, windows, site, sae, how, [&](Index done) { progress.at(done); }, threads);
  }
  if (!options.json) return print_report(options, report, windows, site);
  print_json({{"tokens", report.tokens},
              {"replaces_bos", report.replaces_bos},
              {"ce_clean", report.cross_entropy.clean},
              {"ce_sae", report.cross_entropy.sae},
              {"ce_zero", report.cross_entropy.zero},
              {"ce_mean", report.cross_entropy.mean},
              {"loss_recovered_zero", report.loss_recovered.zero},
              {"loss_recovered_mean", report.loss_recovered.mean},
              {"kl", report.kl},
              {"l0", report.figures.l0},
              {"explained_variance", report.figures.explained_variance}});
}

}  // namespace

void add_recover(CLI::App& program) {
  const auto options = std::make_shared<RecoverVerb>();
  CLI::App& verb =
      add_verb(program, "recover", "What a language model loses when the SAE stands in the place of its activations.", options,
               run_recover);
  add_model(verb, *options)->required();
  add_text(verb, *options)->required();
  add_site(verb, *options);
  add_sae(verb, options->sae)->required();
  verb.add_flag("--replace-bos", options->replace_bos,
                "replace BOS rows too; without it they stay as they are in all four conditions");
  verb.add_option(
      "--mean-from", options->mean_from,
      "rows whose mean is used for mean ablation, such as the training rows (.npy, a folder of them, or what collect "
      "made); default: the rows of these windows, without BOS and rows above --max-norm");
  verb.add_option("--max-norm", options->max_norm,
                  "explained variance, L0 and the mean leave out rows with a norm above so many medians (10x), or none")
      ->capture_default_str();
  add_json(verb, *options);
}

}  // namespace sae::cli
