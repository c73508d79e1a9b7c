#pragma once
#include <sae/files/json.hpp>

#include <map>
#include <string>
#include <string_view>

namespace sae::inline SAE_ABI {

/// What people or models say about latents.
using LatentLabels = std::map<Index, std::string>;

/// Labels, one JSON object a line: {"latent": 7, "label": "months"}, or with Neuronpedia's names {"index": "7", "description": "months"}. Other
/// fields are passed over, so are empty lines; of several labels of a latent the last one stands.
/// \param latents  F of the SAE
/// \throws FileError  the file, or a line, is none of that; a latent is not in [0, F); a label is longer than 4,096 bytes.
inline LatentLabels read_labels(const std::filesystem::path& path, Index latents) {
  const std::string text = detail::read_regular_file(path, std::size_t{1} << 28);
  LatentLabels out;
  Index number = 0;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = (std::min)(text.find('\n', at), text.size());
    const std::string_view line = std::string_view(text).substr(at, end - at);
    at = end + 1;
    const std::string name = detail::concat(path.string(), ", line ", ++number);
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const nlohmann::json entry = parse_json(line, name);
    const bool ours = detail::json_find(entry, "latent", name) != nullptr;
    const nlohmann::json& latent = detail::json_require(entry, ours ? "latent" : "index", name);
    nlohmann::json as_number = latent;
    if (!ours && latent.is_string()) as_number = parse_json(latent.get_ref<const std::string&>(), name);
    const Index i = detail::integer_of(as_number, ours ? "latent" : "index", name, 0, latents - 1);
    const std::string label =
        json_string(entry, detail::json_find(entry, "label", name) != nullptr ? "label" : "description", name);
    if (label.size() > 4096)
      throw_file(name, ": the label of latent ", i, " has ", label.size(), " bytes, at most 4096 are taken");
    out[i] = label;
  }
  return out;
}

}  // namespace sae::inline SAE_ABI
