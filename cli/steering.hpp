#pragma once
#include <sae/interpret/interventions.hpp>

#include <optional>
#include <string>
#include <vector>

#include "language_model.hpp"
#include "rows.hpp"
#include "sae_argument.hpp"

namespace sae::cli {

/// Which latents are edited, and where: what the verbs that steer share.
struct SteeringOptions : ModelVerb {
  std::string sae, data;
  std::vector<std::string> latents;
  bool replace_bos = false;
  std::string error_term = "on", during = "both";
  std::vector<std::string> only;
  double temperature = 0;
  Index top_k = 0;
};

enum class Edit { scale, clamp, ablate, mean_ablate };
std::string to_string(Edit edit);

/// A number; with an x behind it, in units of each latent's largest activation.
struct Strength {
  double value = 0;
  bool of_largest = false;
};
/// "8", "-2.5x". Anything else is a usage error of the option.
Strength parse_strength(const std::string& option, const std::string& text);
std::string to_string(const Strength& strength);

/// What the rows of --data say of a latent.
struct LatentScale {
  double largest = 0;  ///< activation
  double written = 0;  ///< largest length along its direction in x: `largest`, unless the SAE normalises its rows
  double mean = 0;     ///< over all rows, active or not
};

/// Of each of the latents. \throws UsageError  there is no --data; `what` asked for it.
std::vector<LatentScale> measured_on_data(const SteeringOptions& options, const AnySae& sae, const std::vector<Index>& latents,
                                          Threads& threads, const std::string& what);

/// The edits of one SAE at one site, as the options say.
class Steering {
 public:
  /// Checks the latents, and measures them on --data where `needs_data`. Keeps references to all of them.
  Steering(const SteeringOptions& options, const AnySae& sae, const Site& site, bool needs_data, Threads& threads);
  /// Taps for `model`, which must be the one they run in.
  std::vector<Tap> taps(const HostModel& model, Edit edit, const Strength& strength) const;
  const std::vector<Index>& latents() const { return latents_; }
  /// Measured where --data was needed, latent by latent.
  const std::vector<LatentScale>& scales() const { return scales_; }

 private:
  double value_of(std::size_t n, Edit edit, const Strength& strength) const;
  EditedRows edited(const HostModel& model) const;

  const SteeringOptions& options_;
  const AnySae& sae_;
  Site site_;
  Threads& threads_;
  std::vector<Index> latents_;
  std::vector<LatentScale> scales_;
};

/// Model, site, SAE, --latent, --data and what generating has.
void add_watching(CLI::App& verb, SteeringOptions& options);
/// The same, and where edits go.
void add_steering(CLI::App& verb, SteeringOptions& options);

}  // namespace sae::cli
