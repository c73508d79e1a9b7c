#pragma once
#include <sae/host/collected_folder.hpp>

#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "language_model.hpp"
#include "sae_argument.hpp"

namespace sae::cli {

/// What reads a text with an SAE has: a folder that collect made (--data), or a model and a text.
struct TextVerb : ModelVerb {
  std::string sae;
  std::string data;
};
inline void add_text_source(CLI::App& verb, TextVerb& options) {
  add_sae(verb, options.sae)->required();
  verb.add_option("--data", options.data, "folder that collect made: rows and tokens; the model then only spells the tokens");
  add_model(verb, options);
  add_text(verb, options);
  add_site(verb, options);
}
inline void check_text_source(const TextVerb& options) {
  if (options.data.empty() == options.text.empty())
    usage_error("give either --data with a folder that collect made, or --model and --text");
  if (options.data.empty() && options.model.empty()) usage_error("--text needs --model");
}

/// What the strongest activations are shown with: which tokens stand around a row.
class Contexts {
 public:
  virtual ~Contexts() = default;
  virtual RowOrigin origin(Index row) const = 0;
  /// Token at a position of the window of a row; `no_token` for a BOS that stands before the text, and where it is not known (its
  /// row was left out).
  virtual Token token(Index row, std::int32_t position) const = 0;
  virtual std::int32_t context() const = 0;
};

/// Of rows that were collected: a row's neighbours in its window are its neighbours in the data.
class CollectedContexts : public Contexts {
 public:
  explicit CollectedContexts(CollectedFolder folder) : folder_(std::move(folder)) {}
  RowOrigin origin(Index row) const override { return folder_.origin(row); }
  Token token(Index row, std::int32_t position) const override {
    const RowOrigin at = origin(row);
    const Index step = position < at.position ? -1 : 1;
    for (Index r = row; r >= 0 && r < folder_.rows(); r += step) {
      const RowOrigin other = origin(r);
      if (other.window != at.window || (other.position - position) * step > 0) return no_token;
      if (other.position == position) return other.token;
    }
    return no_token;
  }
  std::int32_t context() const override { return static_cast<std::int32_t>(folder_.info().context); }

 private:
  CollectedFolder folder_;
};

/// Of rows that come from the model as it runs.
class WindowContexts : public Contexts {
 public:
  explicit WindowContexts(Windows windows) : windows_(std::move(windows)) {}
  const Windows& windows() const { return windows_; }
  void append(std::span<const RowOrigin> origins) { origins_.insert(origins_.end(), origins.begin(), origins.end()); }
  RowOrigin origin(Index row) const override { return origins_[static_cast<std::size_t>(row)]; }
  Token token(Index row, std::int32_t position) const override {
    if (windows_.has_bos() && position == 0) return no_token;
    return windows_[origin(row).window][static_cast<std::size_t>(position)];
  }
  std::int32_t context() const override { return static_cast<std::int32_t>(windows_.context()); }

 private:
  Windows windows_;
  std::vector<RowOrigin> origins_;
};

/// The model that knows the tokens' text: of --model, or the one the rows were collected from, where it is still there.
inline std::unique_ptr<HostModel> token_model(const TextVerb& options, const CollectedInfo& info) {
  const std::string path = options.model.empty() ? info.model_file : options.model;
  std::error_code error;
  const auto bytes = std::filesystem::file_size(path, error);
  if (options.model.empty() && error) {
    note(options, "sae: warning: ", path, " is not there any more: tokens are shown by number; --model names the model");
    return nullptr;
  }
  if (!error && static_cast<Index>(bytes) != info.model_bytes)
    note(options, "sae: warning: ", path, " has another size than the model the rows were collected from");
  try {
    return std::make_unique<HostModel>(path, HostOptions{.context = 16, .threads = options.model_threads});
  } catch (const HostError& failed) {
    if (!options.model.empty()) throw;
    note(options, "sae: warning: ", failed.what(), ": tokens are shown by number");
    return nullptr;
  }
}

/// A text that was read: whose activations, with what spells its tokens (null where that is gone).
struct ReadText {
  Site site;
  std::unique_ptr<HostModel> model;
  std::unique_ptr<Contexts> contexts;

  /// A token's bytes; "<7>" where nothing spells it.
  std::string piece(Token token) const {
    std::string text = model == nullptr ? std::string() : model->token_text(token);
    return text.empty() ? sae::detail::concat("<", token, ">") : text;
  }
};

namespace text_detail {

template <class Use>
ReadText read_data(const TextVerb& options, const AnySae& sae, Threads& threads, const Use& use) {
  std::optional<CollectedFolder> folder = CollectedFolder::find(options.data);
  if (!folder)
    throw_file(options.data, ": is not a folder that collect made (it has no collect.json), so its rows have no tokens");
  std::optional<Site> known = folder->named_site() ? folder->named_site() : sae.site();
  if (!known || std::find(folder->info().sites.begin(), folder->info().sites.end(), *known) == folder->info().sites.end())
    known = folder->site();
  const Site site = chosen_site(options, known, options.data);
  if (sae.site() && *sae.site() != site)
    throw_value(options.sae, ": is of ", to_string(*sae.site()), ", but ", options.data, " holds ", to_string(site));
  const FiniteNpyRows rows(folder->rows_of(site));
  check_width(sae, options.sae, rows.width(), options.data);
  std::unique_ptr<HostModel> model = token_model(options, folder->info());

  std::optional<Sequences> sequences;
  if (sae.reads_sequences()) sequences = windows_of_folder(options, CollectedFolder(folder->path()));
  std::vector<RowOrigin> origins;
  for_each_block(options, "rows", rows, {0, rows.rows()}, sequences, [&](const Batch<float>& batch, Index first) {
    origins.clear();
    for (Index b = 0; b < batch.rows(); ++b) origins.push_back(folder->origin(first + b));
    use(sae.encode(batch, threads), std::span<const RowOrigin>(origins));
  });
  return {site, std::move(model), std::make_unique<CollectedContexts>(*std::move(folder))};
}

template <class Use>
ReadText read_windows(const TextVerb& options, const AnySae& sae, Threads& threads, const Use& use) {
  const Site site = chosen_site(options, sae.site(), options.sae);
  const std::string text = read_text(options);
  auto model =
      std::make_unique<HostModel>(options.model, HostOptions{.context = options.context, .threads = options.model_threads});
  check_site(*model, site);
  check_width(sae, options.sae, model->shape().width, options.model);
  auto contexts = std::make_unique<WindowContexts>(windows_of(*model, options, text));
  const Windows& windows = contexts->windows();

  Progress progress(options, "windows", windows.count());
  const auto add = [&](const CollectedRows& rows, Index first, Index count) {
    const Codes<float> codes = sae.encode(rows.sites[0].middleRows(first, count), threads);
    Codes<float> kept(codes.latents());
    std::vector<RowOrigin> origins;
    for (Index b = 0; b < count; ++b) {
      if (rows.kept[static_cast<std::size_t>(first + b)] == 0) continue;
      for (Index e = codes.begin(b); e < codes.end(b); ++e) kept.push(codes.latent(e), codes.value(e));
      kept.finish_row();
      origins.push_back(rows.origins[static_cast<std::size_t>(first + b)]);
    }
    contexts->append(origins);
    use(std::move(kept), std::span<const RowOrigin>(origins));
  };
  const bool sequences = sae.reads_sequences();
  collect(*model, windows, std::span(&site, 1),
          [&](const CollectedRows& rows, Index windows_done) {
            if (sequences)
              for_each_window(rows, [&](Index first, Index count) { add(rows, first, count); });
            else
              add(rows, 0, static_cast<Index>(rows.origins.size()));
            progress.at(windows_done);
          },
          {.hand_out_all = sequences});
  return {site, std::move(model), std::move(contexts)};
}

}  // namespace text_detail

/// Encodes the rows of a text, of --data or as the model reads it; calls use(Codes<float>, span of RowOrigin) for some after others, in order.
template <class Use>
ReadText read_codes(const TextVerb& options, const AnySae& sae, Threads& threads, const Use& use) {
  return options.data.empty() ? text_detail::read_windows(options, sae, threads, use)
                              : text_detail::read_data(options, sae, threads, use);
}

}  // namespace sae::cli
