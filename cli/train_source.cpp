#include "train_source.hpp"

#include <sae/data/shuffle_buffer.hpp>
#include <sae/formats/hook_name.hpp>
#include <sae/host/activation_source.hpp>

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
  NpyFolder rows = open_rows(options.data);
  const RowRange range = chosen_rows(options.data, rows.rows());
  const Index width = rows.width();
  const bool shuffle = options.order == "shuffled";
  auto out = std::make_unique<SourceOf<NpySource<float>>>(NpySource<float>(
      std::move(rows), {.shuffle = shuffle, .seed = options.seed, .first = range.first, .count = range.count}));
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

std::unique_ptr<TrainSource> open_train_source(const TrainSourceOptions& options) {
  return options.model.empty() ? source_of_files(options) : source_of_model(options);
}

}  // namespace sae::cli
