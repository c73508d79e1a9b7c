#include <sae/data/paired_rows.hpp>
#include <sae/training/evaluate.hpp>

#include "sae_argument.hpp"

namespace sae::cli {

namespace {

struct EvalVerb : RowOptions {
  std::string sae;
  std::string targets;
  std::string max_norm = "none";
};

/// A source of rows, each once and in order, that notices a request to stop and gives one sequence at a time where there are some.
template <class Rows>
class StoppableSource : public IndexedSource<Rows, float> {
  using Base = IndexedSource<Rows, float>;

 public:
  StoppableSource(Rows rows, const RowRange& range, const std::optional<Sequences>& sequences)
      : Base(std::move(rows), {.shuffle = false, .first = range.first, .count = range.count, .epochs = 1}),
        first_(range.first),
        sequences_(sequences) {}
  Index next(Tensor<float>& batch) {
    check_stop();
    const auto done = static_cast<Index>(Base::state().counters[1]);
    if (!sequences_ || done == Base::rows()) return Base::next(batch);
    sequence_.resize((std::min)(sequences_->from(first_ + done), batch.rows()), batch.cols());
    const Index got = Base::next(sequence_);
    std::copy_n(sequence_.data(), got * batch.cols(), batch.data());
    return got;
  }

 private:
  Index first_;
  const std::optional<Sequences>& sequences_;
  Tensor<float> sequence_;
};

Json figures_json(const ReconstructionFigures& figures) {
  return {{"rows", figures.rows},
          {"l0", figures.l0},
          {"l1", figures.l1},
          {"mse", figures.mse},
          {"explained_variance", figures.explained_variance},
          {"cosine", figures.cosine},
          {"l2_ratio", figures.l2_ratio},
          {"dead_latents", figures.dead_latents},
          {"dense_latents", figures.dense_latents}};
}

Json report_json(const EvaluationReport& report) {
  Json out{{"rows", report.rows}, {"rows_dropped", report.rows_dropped}};
  const Json figures = figures_json(report);
  for (const auto& field : figures.items()) out[field.key()] = field.value();
  out["median_encoder_decoder_cosine"] = report.median_encoder_decoder_cosine;
  if (report.all_rows) out["all_rows"] = figures_json(*report.all_rows);
  return out;
}

void print_report(const EvaluationReport& report, Index latents) {
  std::vector<std::pair<std::string, std::string>> table;
  const auto line = [&](const std::string& name, auto value, const char* meaning) {
    const auto text = [&](const ReconstructionFigures& figures) {
      const auto number = value(figures);
      if constexpr (std::is_integral_v<decltype(number)>)
        return std::to_string(number);
      else
        return rounded(number);
    };
    std::string shown = text(report);
    if (report.all_rows) shown += "   (all rows: " + text(*report.all_rows) + ")";
    table.emplace_back(name, shown + "   " + meaning);
  };
  using Figures = ReconstructionFigures;
  const std::string of_latents = sae::detail::concat("of ", latents, " latents");
  line(
      "rows", [](const Figures& f) { return f.rows; }, report.all_rows ? "with a norm within the limit" : "");
  line(
      "L0", [](const Figures& f) { return f.l0; }, "active latents per row");
  line(
      "L1", [](const Figures& f) { return f.l1; }, "sum of the activations per row");
  line(
      "MSE", [](const Figures& f) { return f.mse; }, "squared error per row, summed over its numbers");
  line(
      "explained variance", [](const Figures& f) { return f.explained_variance; }, "1: perfect, 0: the mean row");
  line(
      "cosine", [](const Figures& f) { return f.cosine; }, "of row and reconstruction");
  line(
      "norm ratio", [](const Figures& f) { return f.l2_ratio; }, "of reconstruction and row; below 1: it shrinks");
  line(
      "dead latents", [](const Figures& f) { return f.dead_latents; }, (of_latents + ", never active on these rows").c_str());
  line(
      "dense latents", [](const Figures& f) { return f.dense_latents; }, "active on more than 10 % of the rows");
  if (!report.encoder_decoder_cosines.empty())
    table.emplace_back("encoder-decoder",
                       rounded(report.median_encoder_decoder_cosine) + "   median cosine of a latent's two directions");
  if (report.all_rows)
    table.emplace_back("left out",
                       sae::detail::concat(report.rows_dropped, " rows with a norm above ", rounded(report.norm_limit)));
  print_table(table);
}

void evaluate_and_print(const EvalVerb& options, const auto& model, auto rows, const RowRange& range,
                        const std::optional<Sequences>& sequences) {
  const double max_norm = parse_max_norm(options.max_norm);
  Threads threads(options.threads);
  StoppableSource<decltype(rows)> source(std::move(rows), range, sequences);
  EvaluationOptions how{.max_norm = max_norm};
  if (sequences) how.block = (std::min)(sequences->longest(), range.count);
  const EvaluationReport report = evaluate(model, source, how, threads);
  if (options.json) {
    print_json(report_json(report));
  } else {
    print_report(report, model.latents());
  }
}

void run_eval(const EvalVerb& options) {
  parse_max_norm(options.max_norm);
  const AnySae sae = open_any(options, options.sae);
  if (sae.is_transcoder() && options.targets.empty())
    usage_error("the transcoder " + options.sae + " needs --targets, the rows that it should predict");
  if (!sae.is_transcoder() && !options.targets.empty())
    usage_error("--targets belongs to transcoders; " + options.sae + " is an autoencoder, whose targets are its rows");
  FiniteNpyRows rows(open_rows(options));
  check_width(sae, options.sae, rows.width(), options.data);
  const RowRange range = chosen_rows(options, rows.rows());
  const std::optional<Sequences> sequences = sequences_of(options, sae, options.sae);
  sae.visit([&]<class Model>(const Model& model) {
    if constexpr (requires { typename Model::Targets; }) {
      evaluate_and_print(options, model, pair_with_targets(std::move(rows), options.data, options.targets, model.d_out()),
                         range, sequences);
    } else {
      evaluate_and_print(options, model, std::move(rows), range, sequences);
    }
  });
}

}  // namespace

void add_eval(CLI::App& program) {
  const auto options = std::make_shared<EvalVerb>();
  CLI::App& verb = add_verb(program, "eval", "How well and how sparsely a SAE rewrites rows.", options, run_eval);
  add_sae(verb, options->sae)->required();
  add_rows(verb, *options)->required();
  add_context(verb, *options);
  verb.add_option("--targets", options->targets,
                  "of a transcoder: rows that it should predict, one for each of --data; a file or folder as there");
  verb.add_option("--max-norm", options->max_norm,
                  "leave out rows with a norm above so many medians of the norm (10x), or none; the figures of all rows are "
                  "shown beside them")
      ->capture_default_str();
  add_json(verb, *options);
}

}  // namespace sae::cli
