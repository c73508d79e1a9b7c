#pragma once
#include <sae/interpret/interventions.hpp>

#include <algorithm>
#include <cmath>
#include <functional>
#include <utility>
#include <vector>

namespace sae::inline SAE_ABI {

/// A latent to watch, and from where on it counts.
struct WatchedLatent {
  Index latent = 0;
  double above = 0;  ///< an activation f > above is told, >= 0
};
/// A watched latent that was active.
struct LatentEvent {
  Index position = 0;  ///< in the sequence
  Index latent = 0;
  double activation = 0;
  bool operator==(const LatentEvent&) const = default;
};

/// Watches latents while a model reads or writes: a tap that changes nothing, encodes the rows as they come, and tells of each watched latent
/// above its limit, position by position, in each by latent.
///
///   LatentMonitor monitor(site, sae, {{1234, 2.5}}, [](const LatentEvent& event) { ... });
///   generate(model, prompt, how, std::vector{monitor.tap()});
///
/// NaN is above nothing. Cost: encoding a row, whatever the number of latents (what an activation selects depends on all of them), and a search
/// for each. The tap keeps references to the monitor's model and copies of the rest.
template <LatentModel Model>
class LatentMonitor {
 public:
  using Listener = std::function<void(const LatentEvent&)>;
  /// \param rows  positions to look at; without BOS: EditedRows::after_first()
  /// \throws ValueError  a latent that is not there or is named twice, a limit below 0, an SAE that reads whole sequences.
  LatentMonitor(const Site& site, const Model& model, std::vector<WatchedLatent> watched, Listener listener,
                EditedRows rows = {}, Threads& threads = Threads::shared())
      : site_(site),
        model_(model),
        watched_(std::move(watched)),
        listener_(std::move(listener)),
        rows_(std::move(rows)),
        threads_(threads) {
    std::sort(watched_.begin(), watched_.end(),
              [](const WatchedLatent& a, const WatchedLatent& b) { return a.latent < b.latent; });
    for (std::size_t n = 0; n < watched_.size(); ++n) {
      detail::require_latent(model, watched_[n].latent);
      if (n > 0 && watched_[n].latent == watched_[n - 1].latent)
        throw_value("latent ", watched_[n].latent, " is watched twice");
      if (!(watched_[n].above >= 0))
        throw_value("latent ", watched_[n].latent, ": a limit of ", watched_[n].above, " is not >= 0");
    }
    if (detail::reads_sequences(model)) throw_value("an SAE that reads whole sequences cannot watch a text as it is written");
  }
  LatentMonitor(const Site&, const Model&&, std::vector<WatchedLatent>, Listener, EditedRows = {},
                Threads& = Threads::shared()) = delete;  // the tap would outlive the model

  Tap tap() const {
    return {site_, [watched = watched_, listener = listener_, rows = rows_, site = site_, &model = model_, &threads = threads_](
                       MatrixMap<float> x, Index first) {
              detail::require_width(model.d_in(), x, site);
              const detail::ChosenRows<detail::ScalarOf<Model>> chosen(model, site, x, first, rows);
              if (chosen.empty()) return;
              const auto codes = model.encode(chosen.x(), threads);
              for (Index i = 0; i < chosen.count(); ++i)
                for (const WatchedLatent& of : watched)
                  if (const auto f = static_cast<double>(codes.coefficient(i, of.latent)); f > of.above)
                    listener({first + chosen.row(i), of.latent, f});
            }};
  }

 private:
  Site site_;
  const Model& model_;
  std::vector<WatchedLatent> watched_;
  Listener listener_;
  EditedRows rows_;
  Threads& threads_;
};

}  // namespace sae::inline SAE_ABI
