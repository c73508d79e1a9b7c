#pragma once
#include <sae/formats/load.hpp>

#include <optional>
#include <string>
#include <utility>

#include "rows.hpp"

namespace sae::cli {

inline CLI::Option* add_sae(CLI::App& verb, std::string& path) {
  return verb.add_option("--sae", path,
                         "trained SAE: a folder or a file in any layout that `sae inspect` knows, or SAELens' or the Hugging "
                         "Face hub's name of one");
}
/// Loads the SAE or transcoder and says what its files warn of.
inline AnySae open_any(const Common& options, const std::string& path, WeightsIn weights = WeightsIn::automatic) {
  AnySae sae = load(path, {.weights = weights});
  for (const std::string& warning : sae.warnings) note(options, "sae: warning: ", path, ": ", warning);
  return sae;
}
/// The same where a SAE alone will do.
inline AnySae open_sae(const Common& options, const std::string& path, WeightsIn weights = WeightsIn::automatic) {
  AnySae sae = open_any(options, path, weights);
  if (sae.is_transcoder()) throw_value(path, ": is a transcoder (", sae.architecture(), "); a SAE is needed here");
  return sae;
}
inline void check_width(const auto& sae, const std::string& path, Index width, const std::string& data) {
  if (width != sae.d_in())
    throw_shape(data, ": rows are ", width, " wide, the SAE ", path, " reads rows of ", sae.d_in(), " numbers");
}

/// "3,17,40-49" as numbers, each once.
inline std::vector<Index> parse_latents(const std::vector<std::string>& words, Index latents) {
  std::vector<Index> out;
  const auto number = [&](const std::string& text) {
    Index value = -1;
    if (text.empty() || text.find_first_not_of("0123456789") != std::string::npos || !CLI::detail::lexical_cast(text, value))
      usage_error("--latent: '", text, "' is not a latent, or a range such as 0-9");
    if (value >= latents) throw_value("--latent ", text, " is not in [0, ", latents, ") (the SAE's latents)");
    return value;
  };
  for (const std::string& word : words) {
    const std::size_t dash = word.find('-');
    const Index first = number(word.substr(0, dash)), last = dash == std::string::npos ? first : number(word.substr(dash + 1));
    if (last < first) usage_error("--latent: the range ", word, " ends before it begins");
    for (Index i = first; i <= last; ++i)
      if (std::find(out.begin(), out.end(), i) == out.end()) out.push_back(i);
  }
  return out;
}

/// Where the sequences of rows end, for a SAE that reads them (AnySae::reads_sequences).
class Sequences {
 public:
  /// The windows that collect read.
  explicit Sequences(CollectedFolder folder) : folder_(std::move(folder)), longest_(folder_->info().context) {}
  /// Every so many rows, counted from row 0 on.
  explicit Sequences(Index rows) : longest_(rows) {}
  /// Rows from this one to the end of its sequence; >= 1.
  Index from(Index row) const {
    if (!folder_) return longest_ - row % longest_;
    const auto window = folder_->origin(row).window;
    Index n = 1;
    while (n < longest_ && row + n < folder_->rows() && folder_->origin(row + n).window == window) ++n;
    return n;
  }
  Index longest() const { return longest_; }

 private:
  std::optional<CollectedFolder> folder_;
  Index longest_;
};
/// The windows of a collected folder, with a warning where rows of them are missing.
inline Sequences windows_of_folder(const Common& options, CollectedFolder folder) {
  const CollectCounts& counts = folder.info().counts;
  if (const Index out = counts.bos + counts.norm + counts.not_finite; out > 0)
    note(options, "sae: warning: ", folder.path().string(), ": ", out,
         " rows of its windows were left out, which a temporal SAE reads whole (collect --keep-bos --max-norm none)");
  return Sequences(std::move(folder));
}
/// The sequences of --data for this SAE; nothing where each row stands alone.
inline std::optional<Sequences> sequences_of(const RowOptions& options, const AnySae& sae, const std::string& path) {
  if (!sae.reads_sequences()) {
    if (options.context > 0) usage_error("--context belongs to temporal SAEs; to ", path, " each row stands alone");
    return std::nullopt;
  }
  if (options.context > 0) return Sequences(options.context);
  if (auto folder = CollectedFolder::find(options.data)) return windows_of_folder(options, *std::move(folder));
  if (sae.metadata.context_size > 0) return Sequences(sae.metadata.context_size);
  usage_error("the temporal SAE ", path, " reads sequences, and neither it nor --data says how long they are; --context does");
}

/// Calls use(Batch, first) for block after block of the chosen rows, or for sequence after sequence: each is read, checked for NaN, and
/// forgotten.
template <class Use>
void for_each_block(const Common& options, const char* what, const FiniteNpyRows& rows, const RowRange& range,
                    const std::optional<Sequences>& sequences, const Use& use) {
  constexpr Index block = 1024;
  Tensor<float> batch((std::min)(sequences ? sequences->longest() : block, range.count), rows.width());
  Progress progress(options, what, range.count);
  for (Index done = 0; done < range.count;) {
    check_stop();
    const Index n = (std::min)(sequences ? sequences->from(range.first + done) : block, range.count - done);
    rows.read_rows(range.first + done, n, batch.data());
    use(Batch<float>(batch.data(), n, rows.width()), done);
    progress.at(done += n);
  }
  check_stop();
}

}  // namespace sae::cli
