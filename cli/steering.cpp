#include "steering.hpp"

#include <algorithm>
#include <cmath>

namespace sae::cli {

std::string to_string(Edit edit) {
  switch (edit) {
    case Edit::scale: return "scale";
    case Edit::clamp: return "clamp";
    case Edit::ablate: return "ablate";
    case Edit::mean_ablate: return "mean-ablate";
  }
  return {};
}

Strength parse_strength(const std::string& option, const std::string& text) {
  Strength out{.of_largest = !text.empty() && text.back() == 'x'};
  const std::string number = out.of_largest ? text.substr(0, text.size() - 1) : text;
  if (!CLI::detail::lexical_cast(number, out.value) || !std::isfinite(static_cast<float>(out.value)))
    usage_error("--", option, ": '", text,
                "' is not a number, or one with an x behind it (units of the latent's largest activation)");
  return out;
}
std::string to_string(const Strength& strength) { return sae::detail::concat(strength.value, strength.of_largest ? "x" : ""); }

std::vector<LatentScale> measured_on_data(const SteeringOptions& options, const AnySae& sae, const std::vector<Index>& latents,
                                          Threads& threads, const std::string& what) {
  if (options.data.empty()) usage_error(what, " is measured on rows: give --data");
  const FiniteNpyRows rows(NpyFolder(rows_path(options.data), {.bfloat16 = true}));
  check_width(sae, options.sae, rows.width(), options.data);
  std::optional<Sequences> sequences;
  if (sae.reads_sequences()) {
    auto folder = CollectedFolder::find(options.data);
    if (!folder) throw_file(options.data, ": is not what collect made, and a temporal SAE reads its windows");
    sequences = windows_of_folder(options, *std::move(folder));
  }
  std::vector<LatentScale> out(latents.size());
  for_each_block(options, "rows", rows, {0, rows.rows()}, sequences, [&](const Batch<float>& batch, Index) {
    const Codes<float> codes = sae.encode(batch, threads);
    const std::vector<float> spreads = sae.row_spreads(batch, threads);
    for (Index b = 0; b < codes.rows(); ++b)
      for (std::size_t n = 0; n < out.size(); ++n) {
        const auto f = static_cast<double>(codes.coefficient(b, latents[n]));
        out[n].largest = (std::max)(out[n].largest, f);
        out[n].written = (std::max)(out[n].written, f * spreads[static_cast<std::size_t>(b)]);
        out[n].mean += f;
      }
  });
  for (LatentScale& scale : out) scale.mean /= static_cast<double>(rows.rows());
  return out;
}

namespace {

std::string lower_trimmed(std::string_view text) {
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
  std::string out(text);
  for (char& c : out)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return out;
}

}  // namespace

Steering::Steering(const SteeringOptions& options, const AnySae& sae, const Site& site, bool needs_data, Threads& threads)
    : options_(options), sae_(sae), site_(site), threads_(threads), latents_(parse_latents(options.latents, sae.latents())) {
  if (needs_data) scales_ = measured_on_data(options, sae, latents_, threads, "a strength such as 4x, and a mean,");
}

double Steering::value_of(std::size_t n, Edit edit, const Strength& strength) const {
  if (edit == Edit::ablate) return 0;
  if (edit == Edit::mean_ablate) return scales_[n].mean;
  if (!strength.of_largest) return strength.value;
  const double largest = edit == Edit::scale ? scales_[n].written : scales_[n].largest;
  if (!(largest > 0))
    throw_value("latent ", latents_[n], " is active in no row of ", options_.data, ", so ", to_string(strength),
                " of its largest activation is nothing; give a number");
  return strength.value * largest;
}

EditedRows Steering::edited(const HostModel& model) const {
  std::vector<std::string> only;
  for (const std::string& text : options_.only) only.push_back(lower_trimmed(text));
  const bool keep_bos = model.bos() != no_token && !options_.replace_bos;
  if (only.empty() && options_.during == "both") return keep_bos ? EditedRows::after_first() : EditedRows::all();
  return EditedRows::where([&model, keep_bos, only, during = options_.during](Index position) {
    if (keep_bos && position == 0) return false;
    if (during != "both" && (position < model.prompt_length()) != (during == "prompt")) return false;
    if (only.empty()) return true;
    const Token token = model.sequence()[static_cast<std::size_t>(position)];
    return std::find(only.begin(), only.end(), lower_trimmed(model.token_text(token))) != only.end();
  });
}

std::vector<Tap> Steering::taps(const HostModel& model, Edit edit, const Strength& strength) const {
  const EditedRows rows = edited(model);
  std::vector<Tap> out;
  std::vector<LatentEdit> edits;
  for (std::size_t n = 0; n < latents_.size(); ++n) {
    const double value = value_of(n, edit, strength);
    if (edit == Edit::scale)
      out.push_back(steer_latent(site_, sae_, latents_[n], value, rows));
    else
      edits.push_back(clamp_latent(latents_[n], value));
  }
  if (!edits.empty())
    out.push_back(
        edit_latents(site_, sae_, edits, rows, options_.error_term == "on" ? ErrorTerm::keep : ErrorTerm::drop, threads_));
  return out;
}

void add_watching(CLI::App& verb, SteeringOptions& options) {
  add_model(verb, options)->required();
  add_site(verb, options);
  add_sae(verb, options.sae)->required();
  verb.add_option("--latent,--latents", options.latents, "latents, such as 3,17,40-49")->required()->delimiter(',');
  verb.add_option("--data", options.data,
                  "rows that latents are measured on, for numbers such as 4x (of the largest activation) and for means: what "
                  "collect made, or .npy");
  verb.add_option("--context", options.context, "tokens of prompt and text together at most")
      ->capture_default_str()
      ->check(within(2, 65536));
  verb.add_option("--temperature", options.temperature, "0: the most likely token each time; 1: as the model says")
      ->capture_default_str()
      ->check(within(0, 1e6));
  verb.add_option("--top-k", options.top_k, "draw from so many most likely tokens; 0: all")
      ->capture_default_str()
      ->check(at_least(0));
  add_seed(verb, options);
}
void add_steering(CLI::App& verb, SteeringOptions& options) {
  add_watching(verb, options);
  verb.add_option("--error-term", options.error_term,
                  "on: --clamp and the ablations keep what the SAE does not explain; off: its reconstruction alone goes on")
      ->capture_default_str()
      ->check(CLI::IsMember({"on", "off"}));
  verb.add_option("--during", options.during, "rows to edit: those of the prompt, of the text that is written, or both")
      ->capture_default_str()
      ->check(CLI::IsMember({"prompt", "generation", "both"}));
  verb.add_option("--only", options.only,
                  "edit at these tokens alone, such as he,she (spaces around them and case do not count)")
      ->delimiter(',');
  verb.add_flag("--replace-bos", options.replace_bos, "edit the row of BOS too; without it that row stays as it is");
}

}  // namespace sae::cli
