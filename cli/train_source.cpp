#include "train_source.hpp"

#include <sae/data/shuffle_buffer.hpp>
#include <sae/formats/hook_name.hpp>
#include <sae/host/activation_source.hpp>
#include <sae/training/recipe.hpp>

#include <utility>

namespace sae::cli {

namespace {

template <class Source>
class SourceOf : public TrainSource {
 public:
  explicit SourceOf(Source source) : source_(std::move(source)) {}
  const Source& source() const { return source_; }
  Index width() const override { return source_.width(); }
  Index next(Tensor<float>& batch) override { return source_.next(batch); }
  SourceState state() const override { return source_.state(); }
  void restore(const SourceState& state) override { source_.restore(state); }

 private:
  Source source_;
};

std::string absolute(const std::string& path) {
  std::error_code error;
  const std::filesystem::path full = std::filesystem::weakly_canonical(path, error);
  return error ? path : full.string();
}

void add_setting(Settings& settings, const std::string& name, const auto& value) {
  settings.emplace_back(name, sae::detail::concat(value));
}

std::unique_ptr<TrainSource> source_of_files(const TrainSourceOptions& options) {
  FiniteNpyRows rows(open_rows(options.data));
  const RowRange range = chosen_rows(options.data, rows.rows());
  const Index width = rows.width();
  const IndexedOptions read{
      .shuffle = options.order == "shuffled", .seed = options.seed, .first = range.first, .count = range.count};
  std::unique_ptr<TrainSource> out;
  const auto own = [&]<class Rows>(Rows all) {
    out = std::make_unique<SourceOf<IndexedSource<Rows, float>>>(IndexedSource<Rows, float>(std::move(all), read));
  };
  if (options.targets.empty()) {
    own(std::move(rows));
  } else {
    auto pairs = pair_with_targets(std::move(rows), options.data.data, options.targets);
    const Index target_width = pairs.targets().width();
    own(std::move(pairs));
    out->target_width = target_width;
    add_setting(out->settings, "targets", absolute(options.targets));
    add_setting(out->settings, "targets.width", target_width);
  }
  out->rows = range.count;
  add_setting(out->settings, "data", absolute(options.data.data));
  add_setting(out->settings, "data.width", width);
  add_setting(out->settings, "data.skip_rows", range.first);
  add_setting(out->settings, "data.rows", range.count);
  add_setting(out->settings, "order", options.order);
  const auto collected = CollectedFolder::find(options.data.data);
  std::optional<Site> site;
  if (collected) {
    const CollectedInfo& info = collected->info();
    site = collected->site();
    out->model = info.model_file;
    out->metadata = {.model_name = info.model_name, .context_size = info.context, .prepend_bos = info.has_bos};
  }
  if (site || !options.layers.empty()) {
    site = chosen_site(options, site, options.data.data);
    out->metadata.hook_name = hook_of_site(*site);
    add_setting(out->settings, "site", to_string(*site));
  }
  return out;
}

/// The model runs while the trainer asks for rows.
struct ModelRows {
  std::shared_ptr<HostModel> model;
  ActivationSource<HostModel> source;
  Index width() const { return source.width(); }
  Index next(Tensor<float>& batch) { return source.next(batch); }
  SourceState state() const { return source.state(); }
  void restore(const SourceState& state) { source.restore(state); }
};

std::unique_ptr<TrainSource> source_of_model(const TrainSourceOptions& options) {
  const std::string text = read_text(options);
  std::shared_ptr<HostModel> model(new HostModel(open_model(options)));
  const Site site{options.layers.at(0), options.sites.empty() ? SiteKind::residual : parse_site_kind(options.sites[0])};
  check_site(*model, site);
  const CollectOptions filter{options.keep_bos, parse_max_norm(options.max_norm.empty() ? "10x" : options.max_norm)};
  Windows windows = windows_of(*model, options, text);
  SaelensMetadata metadata{.model_name = model->name(),
                           .hook_name = hook_of_site(site),
                           .context_size = windows.context(),
                           .prepend_bos = windows.has_bos()};
  note(options, metadata.model_name, ": ", windows.count(), " windows of ", windows.context(), " tokens, ", to_string(site));
  ActivationSource<HostModel> rows(*model, std::move(windows), {site}, filter, 0);
  const std::shared_ptr<bool> interruptible(model, &model->interruptible);
  ModelRows source{std::move(model), std::move(rows)};

  std::unique_ptr<TrainSource> out;
  const auto own = [&](auto kind, const auto& activations_of) {
    const auto* const source_of = kind.get();
    kind->left_out = [source_of, activations_of] {
      const CollectCounts& counts = activations_of(source_of->source()).source.counts();
      return sae::detail::concat(counts.bos, " BOS rows, ", counts.norm, " rows with a large norm, ", counts.not_finite,
                                 " rows with NaN or infinity");
    };
    out = std::move(kind);
  };
  if (options.order == "shuffled") {
    using Buffered = ShuffleBuffer<ModelRows>;
    own(std::make_unique<SourceOf<Buffered>>(Buffered(std::move(source), {.capacity = options.buffer, .seed = options.seed})),
        [](const Buffered& buffered) -> const ModelRows& { return buffered.source(); });
    add_setting(out->settings, "buffer", options.buffer);
  } else {
    own(std::make_unique<SourceOf<ModelRows>>(std::move(source)),
        [](const ModelRows& activations) -> const ModelRows& { return activations; });
  }
  out->metadata = std::move(metadata);
  out->model = options.model;
  out->interruptible = interruptible;
  add_setting(out->settings, "model", absolute(options.model));
  add_setting(out->settings, "text", absolute(options.text));
  add_setting(out->settings, "text.bytes", text.size());
  add_setting(out->settings, "site", to_string(site));
  add_setting(out->settings, "context", options.context);
  add_setting(out->settings, "skip_tokens", options.skip_tokens);
  add_setting(out->settings, "keep_bos", options.keep_bos);
  add_setting(out->settings, "max_norm", filter.max_norm);
  add_setting(out->settings, "order", options.order);
  return out;
}

}  // namespace

void add_train_source(CLI::App& verb, TrainSourceOptions& options) {
  verb.option_defaults()->group("Rows");
  add_rows(verb, options.data);
  verb.add_option("--order", options.order, "shuffled, or sequential as they stand")
      ->capture_default_str()
      ->check(CLI::IsMember({"shuffled", "sequential"}));
  verb.option_defaults()->group("Rows straight from a language model");
  add_model(verb, options);
  verb.add_option("--text", options.text, "text the model reads, UTF-8, again and again");
  verb.add_option("--layer", options.layers, "layer, from 0; with --data: of what layer the rows are, where they do not say it")
      ->check(at_least(0))
      ->expected(1);
  verb.add_option("--site", options.sites, "residual (default), mlp_out or attn_out")
      ->check(CLI::IsMember({"residual", "mlp_out", "attn_out"}))
      ->expected(1);
  verb.add_option("--context", options.context, "tokens of a window, BOS included")
      ->capture_default_str()
      ->check(within(2, 65536));
  verb.add_option("--skip-tokens", options.skip_tokens, "text tokens left out at the start")
      ->capture_default_str()
      ->check(at_least(0));
  verb.add_flag("--keep-bos", options.keep_bos, "keep the rows of BOS");
  verb.add_option("--max-norm", options.max_norm,
                  "leave out rows with a norm above so many medians of the norm, or none (default: 10x)");
  verb.add_option("--buffer", options.buffer, "rows that are held to be mixed")->capture_default_str()->check(at_least(2));
}

void add_train_length(CLI::App& verb, TrainSourceOptions& options) {
  verb.add_option("--tokens", options.train_tokens, "rows seen in all (default: some passes over the data)")
      ->check(at_least(1));
  verb.add_option("--steps", options.steps, "batches, instead of --tokens")->check(within(1, 0x1p38));
  verb.add_option("--batch", options.batch, "rows of a batch")->capture_default_str()->check(within(1, 1 << 24));
}

void check_train_source(const TrainSourceOptions& options) {
  const bool from_model = !options.model.empty();
  if (from_model == !options.data.data.empty())
    usage_error("either --data or --model, --text and --layer say where rows come from");
  if (from_model && (options.text.empty() || options.layers.empty())) usage_error("--model needs --text and --layer");
  if (options.train_tokens && options.steps) usage_error("--tokens and --steps both say how long to train; give one of them");
  if (from_model && !options.train_tokens && !options.steps) usage_error("--model needs --tokens or --steps");
  if (from_model && (options.data.skip_rows > 0 || options.data.rows > 0))
    usage_error("--skip-rows and --rows belong to --data; --model has --skip-tokens");
  if (!from_model && (!options.text.empty() || options.keep_bos || !options.max_norm.empty() || options.skip_tokens > 0))
    usage_error("--text, --skip-tokens, --keep-bos and --max-norm belong to --model: collect filters the rows of --data");
  if (!from_model && options.layers.empty() && !options.sites.empty()) usage_error("--site needs --layer");
  if (from_model && !options.targets.empty()) usage_error("--targets belongs to --data");
}

Index train_length(const TrainSourceOptions& options, Index rows) {
  const Index tokens = options.steps          ? *options.steps * options.batch
                       : options.train_tokens ? *options.train_tokens
                                              : recommended_tokens(rows, options.batch);
  if (tokens < options.batch)
    throw_value("--tokens ", tokens, " are fewer than one batch of ", options.batch, " rows (--batch)");
  return tokens;
}

std::unique_ptr<TrainSource> open_train_source(const TrainSourceOptions& options) {
  return options.model.empty() ? source_of_files(options) : source_of_model(options);
}

}  // namespace sae::cli
