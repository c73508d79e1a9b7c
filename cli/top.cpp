#include <sae/interpret/context_text.hpp>
#include <sae/interpret/top_activations.hpp>

#include <iostream>
#include <memory>

#include "language_model.hpp"
#include "sae_argument.hpp"

namespace sae::cli {

namespace {

struct TopVerb : ModelVerb {
  std::string sae;
  std::string data;
  std::vector<std::string> latents;
  Index count = 20;
  Index before = 20, after = 10;
};

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
  explicit CollectedContexts(const CollectedFolder& folder) : folder_(folder) {}
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
  const CollectedFolder& folder_;
};

/// Of rows that come from the model as it runs.
class WindowContexts : public Contexts {
 public:
  explicit WindowContexts(const Windows& windows) : windows_(windows) {}
  void append(std::span<const RowOrigin> origins) { origins_.insert(origins_.end(), origins.begin(), origins.end()); }
  RowOrigin origin(Index row) const override { return origins_[static_cast<std::size_t>(row)]; }
  Token token(Index row, std::int32_t position) const override {
    if (windows_.has_bos() && position == 0) return no_token;
    return windows_[origin(row).window][static_cast<std::size_t>(position)];
  }
  std::int32_t context() const override { return static_cast<std::int32_t>(windows_.context()); }

 private:
  const Windows& windows_;
  std::vector<RowOrigin> origins_;
};

void show(const TopVerb& options, const std::vector<Index>& latents, const TopActivations& top, const Contexts& contexts,
          const HostModel* model, const Site& site) {
  const auto piece = [&](Token token) -> std::string {
    if (token == no_token) return "<?>";
    if (model == nullptr) return sae::detail::concat("<", token, ">");
    std::string text = model->token_text(token);
    return text.empty() ? sae::detail::concat("<", token, ">") : text;
  };
  Json all = Json::array();
  for (const Index latent : latents) {
    Json shown = Json::array();
    if (!options.json) {
      std::cout << "latent " << latent;
      if (top.active_rows(latent) == 0)
        std::cout << ": never active in " << top.rows() << " rows\n";
      else
        std::cout << ": active in " << rounded(100 * top.density(latent)) << " % of " << top.rows() << " rows, at most "
                  << rounded(top.max(latent)) << "\n";
    }
    for (const TopActivation& activation : top.top(latent)) {
      const RowOrigin at = contexts.origin(activation.row);
      const auto first = static_cast<std::int32_t>((std::max)(Index{0}, at.position - options.before));
      const auto last =
          static_cast<std::int32_t>((std::min)(static_cast<Index>(contexts.context()) - 1, at.position + options.after));
      std::vector<std::string> pieces;
      Index active = 0;
      for (std::int32_t position = first; position <= last; ++position) {
        const Token token = contexts.token(activation.row, position);
        // Nothing is said of a token that is missing at an end.
        if (token == no_token && (pieces.empty() || position > at.position)) continue;
        if (position == at.position) active = static_cast<Index>(pieces.size());
        pieces.push_back(piece(token));
      }
      const std::string context = context_text(pieces, active);
      if (!options.json) {
        char value[32];
        std::snprintf(value, sizeof value, "%10.4g", activation.value);
        std::cout << value << "  " << context << "\n";
        continue;
      }
      shown.push_back({{"value", activation.value},
                       {"row", activation.row},
                       {"window", at.window},
                       {"position", at.position},
                       {"token", at.token},
                       {"text", visible_text(pieces[static_cast<std::size_t>(active)])},
                       {"context", context}});
    }
    if (options.json)
      all.push_back({{"latent", latent},
                     {"active_rows", top.active_rows(latent)},
                     {"density", top.density(latent)},
                     {"max", top.max(latent)},
                     {"contexts", shown}});
  }
  if (options.json) print_json({{"site", to_string(site)}, {"rows", top.rows()}, {"latents", all}});
}

/// The model that knows the tokens' text: of --model, or the one the rows were collected from, where it is still there.
std::unique_ptr<HostModel> token_model(const TopVerb& options, const CollectedInfo& info) {
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

void top_of_data(const TopVerb& options, const AnySae& sae, const std::vector<Index>& latents, Threads& threads) {
  const std::optional<CollectedFolder> folder = CollectedFolder::find(options.data);
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
  const std::unique_ptr<HostModel> model = token_model(options, folder->info());

  std::optional<Sequences> sequences;
  if (sae.reads_sequences()) sequences = windows_of_folder(options, CollectedFolder(folder->path()));
  TopActivations top(sae.latents(), options.count, latents);
  for_each_block(options, "rows", rows, {0, rows.rows()}, sequences,
                 [&](const Batch<float>& batch, Index) { top.add(sae.encode(batch, threads)); });
  show(options, latents, top, CollectedContexts(*folder), model.get(), site);
}

void top_of_text(const TopVerb& options, const AnySae& sae, const std::vector<Index>& latents, Threads& threads) {
  const Site site = chosen_site(options, sae.site(), options.sae);
  const std::string text = read_text(options);
  HostModel model = open_model(options);
  check_site(model, site);
  check_width(sae, options.sae, model.shape().width, options.model);
  const Windows windows = windows_of(model, options, text);

  TopActivations top(sae.latents(), options.count, latents);
  WindowContexts contexts(windows);
  {
    Progress progress(options, "windows", windows.count());
    const auto add = [&](const CollectedRows& rows, Index first, Index count) {
      const Codes<float> codes = sae.encode(rows.sites[0].middleRows(first, count), threads);
      Codes<float> kept(codes.latents());
      for (Index b = 0; b < count; ++b) {
        if (rows.kept[static_cast<std::size_t>(first + b)] == 0) continue;
        for (Index e = codes.begin(b); e < codes.end(b); ++e) kept.push(codes.latent(e), codes.value(e));
        kept.finish_row();
        contexts.append(rows.origins.subspan(static_cast<std::size_t>(first + b), 1));
      }
      top.add(kept);
    };
    const bool sequences = sae.reads_sequences();
    collect(model, windows, std::span(&site, 1),
            [&](const CollectedRows& rows, Index windows_done) {
              if (sequences)
                for_each_window(rows, [&](Index first, Index count) { add(rows, first, count); });
              else
                add(rows, 0, static_cast<Index>(rows.origins.size()));
              progress.at(windows_done);
            },
            {.hand_out_all = sequences});
  }
  show(options, latents, top, contexts, &model, site);
}

void run_top(const TopVerb& options) {
  if (options.data.empty() == options.text.empty())
    usage_error("give either --data with a folder that collect made, or --model and --text");
  if (options.data.empty() && options.model.empty()) usage_error("--text needs --model");
  Threads threads(options.threads);
  const AnySae sae = open_sae(options, options.sae);
  const std::vector<Index> latents = parse_latents(options.latents, sae.latents());
  if (options.data.empty())
    top_of_text(options, sae, latents, threads);
  else
    top_of_data(options, sae, latents, threads);
}

}  // namespace

void add_top(CLI::App& program) {
  const auto options = std::make_shared<TopVerb>();
  CLI::App& verb =
      add_verb(program, "top", "The contexts in which a latent is most active, with the token marked.", options, run_top);
  add_sae(verb, options->sae)->required();
  verb.add_option("--latent,--latents", options->latents, "latents, such as 3,17,40-49")->required()->delimiter(',');
  verb.add_option("--count", options->count, "contexts of each latent")->capture_default_str()->check(at_least(1));
  verb.add_option("--before", options->before, "tokens shown before the one in question")
      ->capture_default_str()
      ->check(within(0, 65536));
  verb.add_option("--after", options->after, "tokens shown after it")->capture_default_str()->check(within(0, 65536));
  verb.add_option("--data", options->data, "folder that collect made: rows and tokens; the model then only spells the tokens");
  add_model(verb, *options);
  add_text(verb, *options);
  add_site(verb, *options);
  add_json(verb, *options);
}

}  // namespace sae::cli
