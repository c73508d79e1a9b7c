#pragma once
#include <sae/formats/load.hpp>

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
inline AnySae open_sae(const Common& options, const std::string& path) {
  AnySae sae = open_any(options, path);
  if (sae.is_transcoder()) throw_value(path, ": is a transcoder (", sae.architecture(), "); a SAE is needed here");
  return sae;
}
inline void check_width(const auto& sae, const std::string& path, Index width, const std::string& data) {
  if (width != sae.d_in())
    throw_shape(data, ": rows are ", width, " wide, the SAE ", path, " reads rows of ", sae.d_in(), " numbers");
}

/// Calls use(Batch, first) for block after block of the chosen rows: each is read, checked for NaN, and forgotten.
template <class Use>
void for_each_block(const Common& options, const char* what, const FiniteNpyRows& rows, const RowRange& range, const Use& use) {
  constexpr Index block = 1024;
  Tensor<float> batch((std::min)(block, range.count), rows.width());
  Progress progress(options, what, range.count);
  for (Index done = 0; done < range.count;) {
    check_stop();
    const Index n = (std::min)(block, range.count - done);
    rows.read_rows(range.first + done, n, batch.data());
    use(Batch<float>(batch.data(), n, rows.width()), done);
    progress.at(done += n);
  }
  check_stop();
}

}  // namespace sae::cli
