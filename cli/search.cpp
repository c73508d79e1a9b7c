#include <sae/interpret/context_text.hpp>
#include <sae/interpret/decompose.hpp>
#include <sae/interpret/directions.hpp>
#include <sae/interpret/sparse_probe.hpp>
#include <sae/metrics/row_filter.hpp>

#include <cstdio>
#include <iostream>

#include "language_model.hpp"
#include "lines.hpp"
#include "sae_argument.hpp"

namespace sae::cli {

namespace {

struct SearchVerb : ModelVerb {
  std::string sae;
  std::string positive, negative, direction;
  std::optional<std::string> prompt;
  std::optional<Index> count;
  std::string pool = "max", by = "auroc", max_norm = "10x";
  std::vector<Index> probes = {1, 2, 5};
  double held_out = 0.3, l2 = 1;
  Index k = 10;
};

/// What has columns of fixed width: printf without its types.
template <class... Numbers>
void print_line(const char* format, const Numbers&... numbers) {
  char line[256];
  std::snprintf(line, sizeof line, format, numbers...);
  std::cout << line << "\n";
}

Index count_of(const SearchVerb& options, Index usual, Index latents) {
  const Index count = options.count.value_or((std::min)(usual, latents));
  if (count > latents) throw_value("--count ", count, " is not in [1, ", latents, "] (the SAE's latents)");
  return count;
}

// ---- texts that a model reads

/// What a model and a SAE make of one text: its tokens, BOS left out.
struct EncodedText {
  std::vector<Token> tokens;
  Matrix<float> rows;  // activations
  Codes<float> codes;
  std::vector<double> norms;  // of the rows
};

/// The model, the site that the SAE is of, and the SAE.
class Reader {
 public:
  Reader(const SearchVerb& options, const AnySae& sae, Threads& threads)
      : sae_(sae),
        threads_(threads),
        site_(chosen_site(options, sae.site(), options.sae)),
        model_(open_model(options)),
        context_(options.context) {
    check_site(model_, site_);
    check_width(sae, options.sae, model_.shape().width, options.model);
  }
  const Site& site() const { return site_; }
  std::string piece(Token token) const { return visible_text(model_.token_text(token)); }
  /// Says whether texts were longer than what was read of them, or than the model is used to.
  void warn(const Common& options) const {
    if (cut_ > 0)
      note(options, "sae: warning: ", cut_, cut_ == 1 ? " text is" : " texts are", " longer than --context ", context_,
           " tokens; the rest was not read");
    if (longest_ > model_.trained_context())
      note(options, "sae: warning: the model was trained on ", model_.trained_context(), " tokens, the longest text has ",
           longest_);
  }

  /// \param who  names the text in messages
  EncodedText read(const std::string& text, const std::string& who) {
    std::vector<Token> tokens = model_.tokenize(text);
    if (tokens.empty()) throw_value(who, ": the text has no tokens");
    const std::size_t bos = model_.bos() == no_token ? 0 : 1;
    if (bos == 1) tokens.insert(tokens.begin(), model_.bos());
    if (tokens.size() > static_cast<std::size_t>(context_)) {
      tokens.resize(static_cast<std::size_t>(context_));
      ++cut_;
    }
    longest_ = (std::max)(longest_, static_cast<Index>(tokens.size()));
    Matrix<float> rows(static_cast<Index>(tokens.size()), model_.shape().width);
    const Tap tap{site_, [&](MatrixMap<float> x, Index first) { rows.middleRows(first, x.rows()) = x; }};
    model_.run(tokens, std::span(&tap, 1), {.stop_after_last_tap = true});

    EncodedText out;
    out.tokens.assign(tokens.begin() + static_cast<std::ptrdiff_t>(bos), tokens.end());
    out.rows = rows.bottomRows(static_cast<Index>(out.tokens.size()));
    for (Index row = 0; row < out.rows.rows(); ++row) {
      out.norms.push_back(row_norm(out.rows.row(row).data(), out.rows.cols()));
      if (!std::isfinite(out.norms.back()))
        throw_value(who, ": the activation of ", to_string(site_), " at token ", row, " is not finite");
    }
    // With the row of BOS, as a SAE that reads sequences wants it.
    const Codes<float> codes = sae_.encode(rows, threads_);
    out.codes.reset(codes.latents());
    for (auto row = static_cast<Index>(bos); row < codes.rows(); ++row) {
      for (Index e = codes.begin(row); e < codes.end(row); ++e) out.codes.push(codes.latent(e), codes.value(e));
      out.codes.finish_row();
    }
    return out;
  }

 private:
  const AnySae& sae_;
  Threads& threads_;
  Site site_;
  HostModel model_;
  Index context_, cut_ = 0, longest_ = 0;
};

// ---- two sets of texts

/// Texts of a class, each pooled to one row.
struct PooledTexts {
  Codes<float> codes;
  Eigen::RowVectorXd sum;  // of the activations of its tokens
  Index tokens = 0, dropped_tokens = 0, dropped_texts = 0;
};

/// Pools texts without the rows whose norms are above so many medians.
class TextPool {
 public:
  TextPool(const AnySae& sae, Pooling how, double max_norm) : how_(how), filter_(max_norm) {
    for (PooledTexts& set : sets) {
      set.codes.reset(sae.latents());
      set.sum = Eigen::RowVectorXd::Zero(sae.d_in());
    }
  }
  void add(std::size_t set, EncodedText text) {
    for (const double norm : text.norms) filter_.observe(norm);
    waiting_.emplace_back(set, std::move(text));
    if (!filter_.wants_more()) finish();
  }
  /// The texts that wait for the median.
  void finish() {
    filter_.fix();
    for (const auto& [set, text] : waiting_) pool(sets[set], text);
    waiting_.clear();
  }
  PooledTexts sets[2];

 private:
  void pool(PooledTexts& to, const EncodedText& text) {
    Codes<float> kept(text.codes.latents());
    for (Index t = 0; t < text.codes.rows(); ++t) {
      ++(filter_.keeps(text.norms[static_cast<std::size_t>(t)]) ? to.tokens : to.dropped_tokens);
      if (!filter_.keeps(text.norms[static_cast<std::size_t>(t)])) continue;
      to.sum += text.rows.row(t).cast<double>();
      for (Index e = text.codes.begin(t); e < text.codes.end(t); ++e) kept.push(text.codes.latent(e), text.codes.value(e));
      kept.finish_row();
    }
    if (kept.rows() == 0)
      ++to.dropped_texts;
    else
      pool_rows(kept, how_, to.codes);
  }

  Pooling how_;
  RowNormFilter filter_;
  std::vector<std::pair<std::size_t, EncodedText>> waiting_;
};

Json json_of(const ProbeScore& score) { return {{"texts", score.items}, {"accuracy", score.accuracy}, {"auroc", score.auroc}}; }

void search_sets(const SearchVerb& options, const AnySae& sae, Threads& threads) {
  const double max_norm = parse_max_norm(options.max_norm);
  const Index count = count_of(options, 20, sae.latents());
  const SparseProbeOptions probing{
      .sizes = options.probes, .held_out = options.held_out, .l2 = options.l2, .seed = options.seed};
  probing.check();
  if (!options.out.empty()) check_output(options);
  const std::string files[2] = {options.positive, options.negative};
  const std::vector<Line> lines[2] = {read_lines(files[0]), read_lines(files[1])};
  Reader reader(options, sae, threads);
  TextPool pool(sae, options.pool == "max" ? Pooling::max : Pooling::mean, max_norm);
  {
    const auto total = static_cast<Index>(lines[0].size() + lines[1].size());
    Progress progress(options, "texts", total);
    Index done = 0;
    for (std::size_t set = 0; set < 2; ++set)
      for (const Line& line : lines[set]) {
        const std::string who = sae::detail::concat(files[set], ", line ", line.number);
        pool.add(set, reader.read(line.text, who));
        progress.at(++done);
      }
    pool.finish();
  }
  const PooledTexts &positive = pool.sets[0], &negative = pool.sets[1];
  reader.warn(options);
  for (std::size_t set = 0; set < 2; ++set) {
    if (pool.sets[set].codes.rows() == 0) throw_value(files[set], ": no token is left (--max-norm ", options.max_norm, ")");
    if (pool.sets[set].dropped_texts > 0)
      note(options, "sae: warning: ", files[set], ": ", pool.sets[set].dropped_texts, " texts have no token left (--max-norm ",
           options.max_norm, ")");
  }
  if (!options.out.empty()) {
    const auto mean_of = [](const PooledTexts& set) -> Eigen::RowVectorXd { return set.sum / static_cast<double>(set.tokens); };
    const RowVector<float> direction = (mean_of(positive) - mean_of(negative)).cast<float>();
    save_npy(options.out, direction, {.overwrite = options.force});
  }
  const std::vector<LatentSeparation> all = separate(positive.codes, negative.codes, threads);
  const std::vector<LatentSeparation> best =
      strongest(all, count, options.by == "auroc" ? SeparationOrder::auroc : SeparationOrder::mean_difference);
  std::vector<SparseProbe> probes;
  if (positive.codes.rows() < 2 || negative.codes.rows() < 2)
    note(options, "sae: warning: no probes: they need two texts of each set, one to train on and one to hold out");
  else if (!all.empty())
    probes = sparse_probes(positive.codes, negative.codes, probing, threads);

  if (options.json) {
    const auto json_of_set = [&](std::size_t set) -> Json {
      return {{"file", files[set]},
              {"texts", pool.sets[set].codes.rows()},
              {"texts_dropped", pool.sets[set].dropped_texts},
              {"tokens", pool.sets[set].tokens},
              {"tokens_dropped", pool.sets[set].dropped_tokens}};
    };
    Json latents = Json::array(), fits = Json::array();
    for (const LatentSeparation& of : best)
      latents.push_back({{"latent", of.latent},
                         {"auroc", of.auroc},
                         {"mean_difference", of.mean_difference},
                         {"active_positive", of.active_positive},
                         {"active_negative", of.active_negative}});
    for (const SparseProbe& probe : probes)
      fits.push_back({{"k", probe.latents.size()},
                      {"latents", probe.latents},
                      {"weights", probe.weights},
                      {"bias", probe.bias},
                      {"train", json_of(probe.train)},
                      {"held_out", json_of(probe.held_out)}});
    return print_json({{"site", to_string(reader.site())},
                       {"pool", options.pool},
                       {"positive", json_of_set(0)},
                       {"negative", json_of_set(1)},
                       {"active_latents", all.size()},
                       {"latents", latents},
                       {"probes", fits}});
  }
  std::cout << positive.codes.rows() << " texts of " << files[0] << " against " << negative.codes.rows() << " of " << files[1]
            << ": " << all.size() << " of " << sae.latents() << " latents are active in some text\n";
  if (all.empty()) return;
  print_line("\n%8s  %7s  %15s  %17s  %17s", "latent", "AUROC", "mean difference", "active, positive", "active, negative");
  for (const LatentSeparation& of : best)
    print_line("%8lld  %7.4f  %15.4g  %15.3g %%  %15.3g %%", static_cast<long long>(of.latent), of.auroc, of.mean_difference,
               100 * of.active_positive, 100 * of.active_negative);
  if (probes.empty()) return;
  std::cout << "\nlogistic probes, trained on " << probes[0].train.items << " of the texts, tried on the other "
            << probes[0].held_out.items << "\n";
  print_line("%8s  %14s  %17s  %14s  %s", "latents", "train accuracy", "held-out accuracy", "held-out AUROC", "which");
  for (const SparseProbe& probe : probes) {
    std::string which;
    for (const Index latent : probe.latents) which += (which.empty() ? "" : ",") + std::to_string(latent);
    char figures[96];
    std::snprintf(figures, sizeof figures, "%8zu  %14.4f  %17.4f  %14.4f  ", probe.latents.size(), probe.train.accuracy,
                  probe.held_out.accuracy, probe.held_out.auroc);
    std::cout << figures << which << "\n";
  }
}

// ---- a prompt, token by token

void search_prompt(const SearchVerb& options, const AnySae& sae, Threads& threads) {
  const Index count = count_of(options, 5, sae.latents());
  Reader reader(options, sae, threads);
  const EncodedText text = reader.read(*options.prompt, "--prompt");
  reader.warn(options);
  Json tokens = Json::array();
  std::vector<std::pair<std::string, std::string>> table;
  for (std::size_t t = 0; t < text.tokens.size(); ++t) {
    const auto row = static_cast<Index>(t);
    sae::detail::LargestOf largest(count);
    for (Index e = text.codes.begin(row); e < text.codes.end(row); ++e)
      if (text.codes.value(e) > 0) largest.offer(text.codes.latent(e), static_cast<double>(text.codes.value(e)));
    Json shown = Json::array();
    std::string line;
    for (const auto& [latent, value] : largest.sorted()) {
      shown.push_back({{"latent", latent}, {"value", value}});
      char entry[48];
      std::snprintf(entry, sizeof entry, "%7lld %-8.3g", static_cast<long long>(latent), value);
      line += entry;
    }
    tokens.push_back({{"position", t}, {"token", text.tokens[t]}, {"text", reader.piece(text.tokens[t])}, {"latents", shown}});
    table.emplace_back("[" + reader.piece(text.tokens[t]) + "]", line);
  }
  if (options.json) return print_json({{"site", to_string(reader.site())}, {"tokens", tokens}});
  std::cout << "each token's strongest latents, and how active they are\n\n";
  print_table(table);
}

// ---- a direction

void search_direction(const SearchVerb& options) {
  Threads threads(options.threads);
  const Matrix<float> direction = load_npy<float>(options.direction, {.bfloat16 = true});
  if (direction.rows() != 1)
    throw_shape(options.direction, ": has shape [", direction.rows(), ", ", direction.cols(),
                "]; a direction is one row, [D] or [1, D]");
  if (!direction.allFinite()) throw_value(options.direction, ": the direction holds a number that is not finite");
  if (direction.isZero(0)) throw_value(options.direction, ": the direction is zero everywhere");
  const AnySae sae = open_sae(options, options.sae, WeightsIn::memory);
  check_width(sae, options.sae, direction.cols(), options.direction);
  const Index count = count_of(options, 10, sae.latents());
  if (options.k > sae.latents()) throw_value("--k ", options.k, " is not in [1, ", sae.latents(), "] (the SAE's latents)");

  const std::vector<NearLatent> by_decoder = nearest_latents(direction, sae.W_dec(), count, threads)[0],
                                by_encoder = nearest_latents(direction, sae.W_enc(), count, threads)[0];
  const Decomposition sum =
      decompose({direction.data(), static_cast<std::size_t>(direction.cols())}, sae.W_dec(), {.k = options.k});
  if (options.json) {
    const auto json_of_near = [](const std::vector<NearLatent>& near) {
      Json out = Json::array();
      for (const NearLatent& of : near) out.push_back({{"latent", of.latent}, {"cosine", of.cosine}});
      return out;
    };
    Json terms = Json::array(), steps = Json::array();
    for (std::size_t n = 0; n < sum.latents.size(); ++n)
      terms.push_back({{"latent", sum.latents[n]}, {"coefficient", sum.coefficients[n]}});
    for (const DecompositionStep& step : sum.steps)
      steps.push_back({{"latent", step.latent}, {"residual_share", step.residual_share}, {"cosine", step.cosine}});
    return print_json({{"norm", row_norm(direction.data(), direction.cols())},
                       {"nearest_decoder", json_of_near(by_decoder)},
                       {"nearest_encoder", json_of_near(by_encoder)},
                       {"decomposition", terms},
                       {"steps", steps}});
  }
  print_line("%-17s   %s", "nearest, decoder", "nearest, encoder");
  print_line("%8s  %7s   %8s  %7s", "latent", "cosine", "latent", "cosine");
  for (std::size_t n = 0; n < by_decoder.size(); ++n)
    print_line("%8lld  %7.4f   %8lld  %7.4f", static_cast<long long>(by_decoder[n].latent), by_decoder[n].cosine,
               static_cast<long long>(by_encoder[n].latent), by_encoder[n].cosine);
  std::cout << "\nas a sum of latents (coefficient x W_dec), chosen one after another\n";
  print_line("%8s  %11s  %12s  %17s", "latent", "coefficient", "share left", "cosine of the sum");
  for (const DecompositionStep& step : sum.steps) {
    const auto found = std::find(sum.latents.begin(), sum.latents.end(), step.latent);
    const std::string coefficient = found == sum.latents.end()
                                        ? "left again"
                                        : rounded(sum.coefficients[static_cast<std::size_t>(found - sum.latents.begin())]);
    print_line("%8lld  %11s  %10.3g %%  %17.4f", static_cast<long long>(step.latent), coefficient.c_str(),
               100 * step.residual_share, step.cosine);
  }
}

void run_search(const SearchVerb& options) {
  const int asked = (options.positive.empty() ? 0 : 1) + (options.direction.empty() ? 0 : 1) + (options.prompt ? 1 : 0);
  if (asked != 1) usage_error("give one of --positive with --negative, --prompt, and --direction");
  if (!options.direction.empty()) return search_direction(options);
  if (options.model.empty()) usage_error(options.prompt ? "--prompt" : "--positive", " needs --model");
  Threads threads(options.threads);
  const AnySae sae = open_sae(options, options.sae);
  if (options.prompt)
    search_prompt(options, sae, threads);
  else
    search_sets(options, sae, threads);
}

}  // namespace

void add_search(CLI::App& program) {
  const auto options = std::make_shared<SearchVerb>();
  CLI::App& verb = add_verb(program, "search",
                            "Latents that tell two sets of texts apart, that a prompt activates, or that make up a direction.",
                            options, run_search);
  add_sae(verb, options->sae)->required();
  CLI::Option* const positive = verb.add_option("--positive", options->positive, "texts of one kind, a line each");
  CLI::Option* const negative = verb.add_option("--negative", options->negative, "texts of the other kind, a line each");
  positive->needs(negative);
  negative->needs(positive);
  verb.add_option("--prompt", options->prompt, "a text whose latents are shown token by token");
  CLI::Option* const direction = verb.add_option("--direction", options->direction,
                                                 "a direction at the SAE's site, .npy [D] or [1, D]; no model is needed");
  verb.add_option("--count", options->count, "latents shown; default: 20, with --direction 10, with --prompt 5 of each token")
      ->check(at_least(1));
  verb.add_option("--by", options->by, "what latents are ranked by: auroc or mean-difference, in either direction")
      ->capture_default_str()
      ->check(CLI::IsMember({"auroc", "mean-difference"}))
      ->needs(positive);
  verb.add_option("--pool", options->pool, "how active a latent is in a text: max or mean over its tokens")
      ->capture_default_str()
      ->check(CLI::IsMember({"max", "mean"}))
      ->needs(positive);
  verb.add_option("--max-norm", options->max_norm,
                  "leave out tokens whose activations have a norm above so many medians (10x), or none")
      ->capture_default_str()
      ->needs(positive);
  verb.add_option("--probe", options->probes, "latents of each logistic probe")
      ->capture_default_str()
      ->delimiter(',')
      ->check(at_least(1))
      ->needs(positive);
  verb.add_option("--held-out", options->held_out, "share of the texts that probes do not see")
      ->capture_default_str()
      ->check(within(0, 1))
      ->needs(positive);
  verb.add_option("--l2", options->l2, "regularisation of the probes, of weights of latents scaled to deviation 1")
      ->capture_default_str()
      ->check(at_least(0, false))
      ->needs(positive);
  add_out(
      verb, *options,
      "write the direction from the negative to the positive texts, mean activation of a token - that of the others, as .npy "
      "[1, D], such as --direction takes")
      ->needs(positive);
  verb.add_option("--k", options->k, "latents of the sum that makes up the direction")
      ->capture_default_str()
      ->check(at_least(1))
      ->needs(direction);
  add_model(verb, *options);
  add_site(verb, *options);
  verb.add_option("--context", options->context, "tokens of a text that are read at most, BOS included")
      ->capture_default_str()
      ->check(within(2, 65536));
  for (const char* const of_model : {"--model", "--layer", "--site", "--context"})
    direction->excludes(verb.get_option(of_model));
  add_seed(verb, *options);
  add_json(verb, *options);
}

}  // namespace sae::cli
