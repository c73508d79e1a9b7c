#pragma once
#include <sae/files/json.hpp>
#include <sae/files/output_folder.hpp>
#include <sae/interpret/co_activation.hpp>
#include <sae/interpret/context_text.hpp>
#include <sae/interpret/decoder_map.hpp>
#include <sae/interpret/directions.hpp>
#include <sae/interpret/recorded_codes.hpp>
#include <sae/report/dashboard_page.hpp>
#include <sae/report/latent_labels.hpp>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdint>
#include <functional>
#include <map>
#include <numeric>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace sae::inline SAE_ABI {

struct DashboardOptions {
  Index before = 20, after = 10;                    ///< tokens shown before and behind the one in question, >= 0
  Index logits = 10, nearest = 10, co_active = 10;  ///< entries of these lists at most; 0: none
  Index file_latents = 2000;                        ///< most latents of one file

  /// \throws ValueError  a number is negative.
  void check() const {
    require_non_negative("dashboard: before", before);
    require_non_negative("dashboard: after", after);
    require_non_negative("dashboard: logits", logits);
    require_non_negative("dashboard: nearest", nearest);
    require_non_negative("dashboard: co_active", co_active);
  }
};

/// All that is shown of one latent.
struct DashboardLatent {
  Index latent = 0;
  std::string label;
  LatentMoments moments;
  LatentHistogram histogram;
  std::vector<TopActivation> top;                    ///< strongest first
  std::vector<std::vector<TopActivation>> examples;  ///< of each interval, the weakest first
  LogitAttribution logits;                           ///< empty where there is no unembedding
  std::vector<NearLatent> nearest;                   ///< by cosine of decoder rows
  std::vector<Association> co_active;                ///< by correlation, those above 0
  std::array<double, 2> point{};                     ///< in the map of the decoder
};

/// What the page, its JSON and the export to Neuronpedia are written from.
struct Dashboard {
  std::string sae, architecture, model, site;  ///< names, for people
  Index layer = 0;
  DashboardOptions options;
  RecordedCodes rows;
  std::map<Token, std::string> pieces;  ///< the bytes of every token that occurs
  std::vector<DashboardLatent> latents;
  std::array<double, 2> map_share{};  ///< DecoderMap::share
};

/// What `make_dashboard` is told beside the codes.
struct DashboardInput {
  std::string sae{}, architecture{}, model{}, site{};
  Index layer = 0;
  std::vector<Index> latents{};                    ///< shown, each once
  std::function<std::string(Token)> token_text{};  ///< a token's bytes
  const Matrix<float>* unembedding = nullptr;      ///< W_U [V x D]; null or of another width: no logits
  LatentLabels labels{};
};

/// Puts together what is shown of chosen latents.
///
/// \param directions [F x D]  rows of W_dec
/// Cost, of n latents: 2 n (V + F) D for logits and neighbours, n / 128 passes over the codes for co-activation, F D^2 for the map.
/// Results do not depend on threads.
/// \throws ValueError  a latent is not in [0, F) or is named twice, options are out of range, a direction is not finite. ShapeError: as many
///                     directions as latents are needed.
inline Dashboard make_dashboard(RecordedCodes rows, const Batch<float>& directions, DashboardInput input,
                                DashboardOptions options = {}, Threads& threads = Threads::shared()) {
  options.check();
  const Index all = rows.latents(), count = static_cast<Index>(input.latents.size());
  if (directions.rows() != all) throw_shape("dashboard: ", directions.rows(), " directions for ", all, " latents");
  std::set<Index> named;
  for (const Index latent : input.latents) {
    if (latent < 0 || latent >= all)
      throw_value("dashboard: latent ", latent, " is not in [0, ", all, ") (the number of latents)");
    if (!named.insert(latent).second) throw_value("dashboard: latent ", latent, " is named twice");
  }
  const DecoderMap map = decoder_map(directions);
  Tensor<float> chosen(count, directions.cols());
  for (Index n = 0; n < count; ++n) {
    const Index latent = input.latents[static_cast<std::size_t>(n)];
    std::copy_n(directions.row(latent), directions.cols(), chosen.row(n));
  }

  std::vector<DashboardLatent> out(input.latents.size());
  const LatentStatistics& statistics = rows.statistics();
  threads.for_blocks(count, 128, [&](Index begin, Index end, Index) {
    const std::vector<Index> part(input.latents.begin() + begin, input.latents.begin() + end);
    CoActivation together(all, part);
    if (options.co_active > 0)
      for (const Codes<float>& block : rows.blocks()) together.add(block);
    for (Index n = begin; n < end; ++n) {
      DashboardLatent& of = out[static_cast<std::size_t>(n)];
      of.latent = input.latents[static_cast<std::size_t>(n)];
      of.moments = statistics.moments(of.latent);
      of.histogram = statistics.histogram(of.latent);
      of.top = statistics.top().top(of.latent);
      of.examples = statistics.examples(of.latent);
      of.point = {map.points(of.latent, 0), map.points(of.latent, 1)};
      if (const auto label = input.labels.find(of.latent); label != input.labels.end()) of.label = label->second;
      if (options.co_active == 0) continue;
      of.co_active = strongest(together.with_latents(of.latent), options.co_active, &Association::correlation, of.latent);
      std::erase_if(of.co_active, [](const Association& a) { return !(a.correlation > 0); });
    }
  });
  if (count > 0 && options.nearest > 0) {
    auto near = nearest_latents(chosen, directions, (std::min)(options.nearest + 1, all), threads);
    for (std::size_t n = 0; n < out.size(); ++n) {
      std::erase_if(near[n], [&](const NearLatent& found) { return found.latent == out[n].latent; });
      if (static_cast<Index>(near[n].size()) > options.nearest) near[n].resize(static_cast<std::size_t>(options.nearest));
      out[n].nearest = std::move(near[n]);
    }
  }
  if (count > 0 && options.logits > 0 && input.unembedding != nullptr && input.unembedding->cols() == directions.cols()) {
    auto logits = attribute_logits(chosen, *input.unembedding,
                                   (std::min)(options.logits, static_cast<Index>(input.unembedding->rows())), threads);
    for (std::size_t n = 0; n < out.size(); ++n) out[n].logits = std::move(logits[n]);
  }

  std::map<Token, std::string> pieces;
  const auto spell = [&](Token token) {
    if (const auto [at, is_new] = pieces.try_emplace(token); is_new)
      at->second = input.token_text ? input.token_text(token) : "";
  };
  for (Index row = 0; row < rows.rows(); ++row) spell(rows.origin(row).token);
  for (const DashboardLatent& latent : out)
    for (const auto* ends : {&latent.logits.top, &latent.logits.bottom})
      for (const TokenLogit& of : *ends) spell(of.token);
  for (auto& [token, piece] : pieces)
    if (piece.empty()) piece = detail::concat("<", token, ">");
  return {.sae = std::move(input.sae),
          .architecture = std::move(input.architecture),
          .model = std::move(input.model),
          .site = std::move(input.site),
          .layer = input.layer,
          .options = options,
          .rows = std::move(rows),
          .pieces = std::move(pieces),
          .latents = std::move(out),
          .map_share = map.share};
}

namespace detail {

using DashboardJson = nlohmann::ordered_json;

/// float64 that is printed with the digits a float32 needs.
inline double short_number(float value) {
  char digits[32];
  const auto end = std::to_chars(digits, digits + sizeof digits, value).ptr;
  double out = 0;
  std::from_chars(digits, end, out);
  return out;
}
inline double short_number(double value) { return short_number(static_cast<float>(value)); }

/// JSON that may stand in a <script> of a page: no "</script>", no "<!--", no line that ends in the middle of a string.
inline std::string script_json(const DashboardJson& value) {
  const std::string text = value.dump(-1, ' ', false, DashboardJson::error_handler_t::replace);
  std::string out;
  out.reserve(text.size());
  for (std::size_t i = 0; i < text.size(); ++i) {
    const std::string_view rest = std::string_view(text).substr(i);
    if (text[i] == '<') {
      out += "\\u003c";
    } else if (rest.starts_with("\xE2\x80\xA8") || rest.starts_with("\xE2\x80\xA9")) {
      out += rest[2] == '\xA8' ? "\\u2028" : "\\u2029";
      i += 2;
    } else {
      out += text[i];
    }
  }
  return out;
}

/// A latent's tokens around a row: [row, rows before it, rows behind it, value there, offset, value, offset, value, ...] of the others that are active.
inline DashboardJson packed_context(const Dashboard& dashboard, Index latent, const TopActivation& activation) {
  const auto [first, last] = dashboard.rows.around(activation.row, dashboard.options.before, dashboard.options.after);
  DashboardJson out = {activation.row, activation.row - first, last - activation.row, short_number(activation.value)};
  for (Index row = first; row <= last; ++row)
    if (const float value = row == activation.row ? 0.0F : dashboard.rows.value(row, latent); value > 0) {
      out.push_back(row - activation.row);
      out.push_back(short_number(value));
    }
  return out;
}

inline const std::string& piece_of(const Dashboard& dashboard, Token token) { return dashboard.pieces.at(token); }

/// What the page loads when a latent is opened.
inline DashboardJson packed_latent(const Dashboard& dashboard, const DashboardLatent& latent) {
  using Json = DashboardJson;
  const auto contexts = [&](const std::vector<TopActivation>& of) {
    Json out = Json::array();
    for (const TopActivation& activation : of) out.push_back(packed_context(dashboard, latent.latent, activation));
    return out;
  };
  const auto tokens = [&](const std::vector<TokenLogit>& of) {
    Json out = Json::array();
    for (const TokenLogit& at : of) out.push_back({visible_text(piece_of(dashboard, at.token)), short_number(at.logit)});
    return out;
  };
  Json examples = Json::array(), nearest = Json::array(), co_active = Json::array();
  for (const auto& interval : latent.examples) examples.push_back(contexts(interval));
  for (const NearLatent& near : latent.nearest) nearest.push_back({near.latent, short_number(near.cosine)});
  for (const Association& other : latent.co_active)
    co_active.push_back({other.index, short_number(other.correlation), other.rows_together});
  return {
      {"top", contexts(latent.top)},
      {"examples", examples},
      {"width", latent.histogram.width},
      {"counts", latent.histogram.counts},
      {"shape",
       {short_number(latent.moments.deviation), short_number(latent.moments.skewness), short_number(latent.moments.kurtosis)}},
      {"promoted", tokens(latent.logits.top)},
      {"suppressed", tokens(latent.logits.bottom)},
      {"nearest", nearest},
      {"co_active", co_active}};
}

/// Some texts, each once, at most `count`.
class FewTexts {
 public:
  explicit FewTexts(std::size_t count) : count_(count) {}
  void add(std::string_view piece) {
    std::string text = visible_text(piece);
    text.erase(0, text.find_first_not_of(' '));
    if (!text.empty() && texts_.size() < count_ && std::find(texts_.begin(), texts_.end(), text) == texts_.end())
      texts_.push_back(std::move(text));
  }
  DashboardJson json() const { return texts_; }

 private:
  std::size_t count_;
  std::vector<std::string> texts_;
};

/// Names, plots and table: a number or text for each latent, in columns.
inline DashboardJson packed_overview(const Dashboard& dashboard, Index chunk) {
  using Json = DashboardJson;
  Json l0 = Json::array();
  const auto& counts = dashboard.rows.l0_counts();
  for (std::size_t n = 0; n < counts.size(); ++n)
    if (counts[n] > 0) l0.push_back({n, counts[n]});
  Json out = {{"sae", dashboard.sae},
              {"architecture", dashboard.architecture},
              {"model", dashboard.model},
              {"site", dashboard.site},
              {"rows", dashboard.rows.rows()},
              {"latents", dashboard.rows.latents()},
              {"intervals", dashboard.rows.statistics().options().intervals},
              {"map_share", {short_number(dashboard.map_share[0]), short_number(dashboard.map_share[1])}},
              {"l0", l0},
              {"chunk", chunk}};
  for (const char* const column : {"latent", "active", "mean", "max", "x", "y", "label", "tokens", "promotes"})
    out[column] = Json::array();
  for (const DashboardLatent& latent : dashboard.latents) {
    FewTexts tokens(3), promotes(3);
    for (const TopActivation& top : latent.top) tokens.add(piece_of(dashboard, dashboard.rows.origin(top.row).token));
    for (const TokenLogit& top : latent.logits.top) promotes.add(piece_of(dashboard, top.token));
    out["latent"].push_back(latent.latent);
    out["active"].push_back(latent.moments.rows);
    out["mean"].push_back(short_number(latent.moments.mean));
    out["max"].push_back(short_number(latent.moments.max));
    out["x"].push_back(std::round(latent.point[0] * 1e4) / 1e4);
    out["y"].push_back(std::round(latent.point[1] * 1e4) / 1e4);
    out["label"].push_back(latent.label);
    out["tokens"].push_back(tokens.json());
    out["promotes"].push_back(promotes.json());
  }
  return out;
}

/// The tokens of all rows, into which contexts point.
inline DashboardJson packed_text(const Dashboard& dashboard) {
  using Json = DashboardJson;
  Json pieces = Json::array(), rows = Json::array(), gaps = Json::array();
  std::map<Token, Index> place;
  for (Index row = 0; row < dashboard.rows.rows(); ++row) {
    const Token token = dashboard.rows.origin(row).token;
    const auto [at, is_new] = place.try_emplace(token, static_cast<Index>(place.size()));
    if (is_new) pieces.push_back(visible_text(piece_of(dashboard, token)));
    rows.push_back(at->second);
    if (dashboard.rows.after_gap(row)) gaps.push_back(row);
  }
  return {{"pieces", pieces}, {"rows", rows}, {"gaps", gaps}};
}

/// Calls write(name, JSON) for every part of the page: "overview", "text", "latents-0", ... with `chunk` latents each.
template <class Write>
void dashboard_parts(const Dashboard& dashboard, Index chunk, const Write& write) {
  write("overview", packed_overview(dashboard, chunk));
  write("text", packed_text(dashboard));
  const auto count = static_cast<Index>(dashboard.latents.size());
  for (Index first = 0; first < count; first += chunk) {
    DashboardJson part = DashboardJson::array();
    for (Index n = first; n < (std::min)(first + chunk, count); ++n)
      part.push_back(packed_latent(dashboard, dashboard.latents[static_cast<std::size_t>(n)]));
    write(concat("latents-", first / chunk), std::move(part));
  }
}

inline constexpr Index dashboard_chunk = 64;
inline constexpr std::string_view dashboard_file = "index.html";

/// The page. `loads`: what its policy lets scripts come from, beside itself.
inline std::string dashboard_html(std::string_view loads, std::string_view data) {
  return concat(
      "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n",
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; script-src "
      "'unsafe-inline'",
      loads, "\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>latents</title>\n<style>",
      dashboard_style, "</style>\n", dashboard_body, data, "<script>", dashboard_script, "</script>\n</html>\n");
}
}  // namespace detail

/// One self-contained HTML file: CSS, script and data in it, nothing is loaded from anywhere.
///
/// Everything that comes from the text, the model and labels is data in JSON, of which the script makes text nodes: none of it can become markup or
/// a script (`</script>`, U+2028, bytes that are no UTF-8 included).
/// \throws ValueError  there are more than `options.file_latents` latents. FileError: as OutputFile.
inline void write_dashboard_file(const std::filesystem::path& path, const Dashboard& dashboard, OutputOptions options = {}) {
  if (static_cast<Index>(dashboard.latents.size()) > dashboard.options.file_latents)
    throw_value("dashboard: ", dashboard.latents.size(), " latents are more than the ", dashboard.options.file_latents,
                " of one file");
  std::string data;
  detail::dashboard_parts(dashboard, detail::dashboard_chunk, [&](const std::string& name, const detail::DashboardJson& part) {
    data += "<script type=\"application/json\" id=\"" + name + "\">" + detail::script_json(part) + "</script>\n";
  });
  atomic_write_text(path, detail::dashboard_html("", data), options);
}

/// A folder with index.html and the data of text and latents in scripts beside it, which the page loads as they are needed (a page of a file: address
/// may load scripts, but read no files).
/// \throws FileError  as OutputFolder; with `overwrite` only a folder that holds index.html is replaced.
inline void write_dashboard_folder(const std::filesystem::path& path, const Dashboard& dashboard, OutputOptions options = {}) {
  OutputFolder folder(path, {.overwrite = options.overwrite, .marker = std::string(detail::dashboard_file)});
  detail::dashboard_parts(dashboard, detail::dashboard_chunk, [&](const std::string& name, const detail::DashboardJson& part) {
    const std::string json = detail::script_json(part);
    if (name == "overview")
      atomic_write_text(
          folder / detail::dashboard_file,
          detail::dashboard_html(" 'self' file:", "<script type=\"application/json\" id=\"overview\">" + json + "</script>\n"));
    else
      atomic_write_text(folder / (name + ".js"), "receive(\"" + name + "\", " + json + ");\n");
  });
  folder.commit();
}

/// The data of the page in words: one object.
inline nlohmann::ordered_json dashboard_json(const Dashboard& dashboard) {
  using Json = detail::DashboardJson;
  const RecordedCodes& rows = dashboard.rows;
  Json shown = Json::array();
  for (const DashboardLatent& latent : dashboard.latents) {
    const auto contexts = [&](const std::vector<TopActivation>& of) {
      Json out = Json::array();
      for (const TopActivation& activation : of) {
        const auto [first, last] = rows.around(activation.row, dashboard.options.before, dashboard.options.after);
        Json tokens = Json::array(), values = Json::array();
        for (Index row = first; row <= last; ++row) {
          tokens.push_back(visible_text(detail::piece_of(dashboard, rows.origin(row).token)));
          values.push_back(detail::short_number(rows.value(row, latent.latent)));
        }
        const RowOrigin& at = rows.origin(activation.row);
        out.push_back({{"value", detail::short_number(activation.value)},
                       {"row", activation.row},
                       {"window", at.window},
                       {"position", at.position},
                       {"active", activation.row - first},
                       {"tokens", tokens},
                       {"values", values}});
      }
      return out;
    };
    const auto tokens = [&](const std::vector<TokenLogit>& of) {
      Json out = Json::array();
      for (const TokenLogit& at : of)
        out.push_back({{"token", at.token},
                       {"text", visible_text(detail::piece_of(dashboard, at.token))},
                       {"logit", detail::short_number(at.logit)}});
      return out;
    };
    Json examples = Json::array(), nearest = Json::array(), co_active = Json::array();
    const double width = latent.histogram.width * static_cast<double>(latent.histogram.counts.size()) /
                         static_cast<double>(rows.statistics().options().intervals);
    for (std::size_t n = 0; n < latent.examples.size(); ++n)
      if (!latent.examples[n].empty())
        examples.push_back({{"above", static_cast<double>(n) * width},
                            {"up_to", static_cast<double>(n + 1) * width},
                            {"contexts", contexts(latent.examples[n])}});
    for (const NearLatent& near : latent.nearest)
      nearest.push_back({{"latent", near.latent}, {"cosine", detail::short_number(near.cosine)}});
    for (const Association& other : latent.co_active)
      co_active.push_back({{"latent", other.index},
                           {"correlation", detail::short_number(other.correlation)},
                           {"cosine", detail::short_number(other.cosine)},
                           {"rows_together", other.rows_together}});
    const LatentMoments& moments = latent.moments;
    shown.push_back({{"latent", latent.latent},
                     {"label", latent.label},
                     {"active_rows", moments.rows},
                     {"density", rows.statistics().density(latent.latent)},
                     {"mean", detail::short_number(moments.mean)},
                     {"max", detail::short_number(moments.max)},
                     {"deviation", detail::short_number(moments.deviation)},
                     {"skewness", detail::short_number(moments.skewness)},
                     {"kurtosis", detail::short_number(moments.kurtosis)},
                     {"histogram", {{"width", latent.histogram.width}, {"counts", latent.histogram.counts}}},
                     {"top", contexts(latent.top)},
                     {"examples", examples},
                     {"promoted", tokens(latent.logits.top)},
                     {"suppressed", tokens(latent.logits.bottom)},
                     {"nearest", nearest},
                     {"co_active", co_active},
                     {"map", latent.point}});
  }
  return {{"sae", utf8_text(dashboard.sae)},
          {"architecture", dashboard.architecture},
          {"model", utf8_text(dashboard.model)},
          {"site", dashboard.site},
          {"rows", rows.rows()},
          {"latents", rows.latents()},
          {"l0", rows.l0_counts()},
          {"map_share", dashboard.map_share},
          {"shown", shown}};
}

/// A latent in the fields of Neuronpedia's JSON of a feature: one line of an export.
///
/// `activations` are the strongest contexts and then the examples of each interval, with its bounds (binMin, binMax) and its share of all activations
/// (binContains); the strongest have binMin = binMax = -1.
/// Source: neuronpedia.org/api/feature.
inline nlohmann::ordered_json neuronpedia_json(const Dashboard& dashboard, const DashboardLatent& latent) {
  using Json = detail::DashboardJson;
  const RecordedCodes& rows = dashboard.rows;
  Json activations = Json::array();
  const auto add = [&](const TopActivation& activation, double low, double high, double share) {
    const auto [first, last] = rows.around(activation.row, dashboard.options.before, dashboard.options.after);
    Json tokens = Json::array(), values = Json::array();
    double largest = 0, smallest = activation.value;
    Index at = 0;
    for (Index row = first; row <= last; ++row) {
      const double value = detail::short_number(rows.value(row, latent.latent));
      if (value > largest) largest = value, at = row - first;
      smallest = (std::min)(smallest, value);
      tokens.push_back(utf8_text(detail::piece_of(dashboard, rows.origin(row).token)));
      values.push_back(value);
    }
    activations.push_back({{"tokens", tokens},
                           {"values", values},
                           {"maxValue", largest},
                           {"maxValueTokenIndex", at},
                           {"minValue", detail::short_number(smallest)},
                           {"binMin", low},
                           {"binMax", high},
                           {"binContains", share}});
  };
  for (const TopActivation& top : latent.top) add(top, -1, -1, -1);
  const auto& counts = latent.histogram.counts;
  const std::size_t bins = latent.examples.empty() ? 0 : counts.size() / latent.examples.size();  // of an interval
  for (std::size_t n = 0; n < latent.examples.size(); ++n) {
    const auto begin = counts.begin() + static_cast<std::ptrdiff_t>((std::min)(n * bins, counts.size()));
    const auto end = counts.begin() + static_cast<std::ptrdiff_t>((std::min)((n + 1) * bins, counts.size()));
    const auto inside = static_cast<double>(std::accumulate(begin, end, std::int64_t{0}));
    const double width = latent.histogram.width * static_cast<double>(bins);
    for (const TopActivation& example : latent.examples[n])
      add(example, static_cast<double>(n) * width, static_cast<double>(n + 1) * width,
          inside / static_cast<double>(latent.moments.rows));
  }
  Json heights = Json::array(), values = Json::array();
  for (std::size_t n = 0; n < counts.size(); ++n) {
    heights.push_back(counts[n]);
    values.push_back((static_cast<double>(n) + 0.5) * latent.histogram.width);
  }
  const auto texts = [&](const std::vector<TokenLogit>& of) {
    Json out = Json::array();
    for (const TokenLogit& at : of) out.push_back(utf8_text(detail::piece_of(dashboard, at.token)));
    return out;
  };
  const auto numbers = [](const std::vector<TokenLogit>& of) {
    Json out = Json::array();
    for (const TokenLogit& at : of) out.push_back(detail::short_number(at.logit));
    return out;
  };
  return {{"modelId", utf8_text(dashboard.model)},
          {"layer", dashboard.site},
          {"index", std::to_string(latent.latent)},
          {"sourceSetName", utf8_text(dashboard.sae)},
          {"frac_nonzero", rows.statistics().density(latent.latent)},
          {"maxActApprox", detail::short_number(latent.moments.max)},
          {"pos_str", texts(latent.logits.top)},
          {"pos_values", numbers(latent.logits.top)},
          {"neg_str", texts(latent.logits.bottom)},
          {"neg_values", numbers(latent.logits.bottom)},
          {"freq_hist_data_bar_heights", heights},
          {"freq_hist_data_bar_values", values},
          {"explanations", latent.label.empty() ? Json::array() : Json::array({{{"description", utf8_text(latent.label)}}})},
          {"activations", activations}};
}
/// JSON lines, a latent each. \throws FileError  as OutputFile.
inline void write_neuronpedia(const std::filesystem::path& path, const Dashboard& dashboard, OutputOptions options = {}) {
  OutputFile file(path, options);
  for (const DashboardLatent& latent : dashboard.latents) file.write(neuronpedia_json(dashboard, latent).dump() + "\n");
  file.commit();
}

}  // namespace sae::inline SAE_ABI
