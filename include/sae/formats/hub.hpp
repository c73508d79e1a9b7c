#pragma once
#include <sae/core/error.hpp>
#include <sae/files/output.hpp>
#include <sae/files/printable.hpp>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace sae::inline SAE_ABI {

/// A place in a repository of the Hugging Face hub: "google/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82/params.npz".
struct HubName {
  std::string repository;      ///< "google/gemma-scope-2b-pt-res"
  std::filesystem::path path;  ///< in it; empty: the whole of it
};

/// The name as one of the hub, where it can be one: two words of letters, digits, '-', '_' and '.', and perhaps a path behind them.
inline std::optional<HubName> parse_hub_name(std::string_view name) {
  const auto is_word = [](std::string_view word) {
    return !word.empty() && word != "." && word != ".." && word.size() <= 96 &&
           word.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") ==
               std::string_view::npos;
  };
  HubName out;
  int words = 0;
  while (true) {
    const std::size_t slash = name.find('/');
    const std::string_view word = name.substr(0, slash);
    if (!is_word(word)) return std::nullopt;
    ++words;
    if (words <= 2) {
      out.repository += (words == 1 ? "" : "/") + std::string(word);
    } else {
      out.path /= word;
    }
    if (slash == std::string_view::npos) break;
    name.remove_prefix(slash + 1);
  }
  if (words < 2) return std::nullopt;
  return out;
}

/// Where huggingface_hub keeps what it downloads: $HF_HUB_CACHE, $HF_HOME/hub, $XDG_CACHE_HOME/huggingface/hub, ~/.cache/huggingface/hub.
/// Source: huggingface_hub constants.py.
inline std::filesystem::path hub_cache() {
  const auto from = [](const char* name) -> std::filesystem::path {
    const char* const value = std::getenv(name);
    return value == nullptr ? "" : value;
  };
  if (const auto cache = from("HF_HUB_CACHE"); !cache.empty()) return cache;
  if (const auto home = from("HF_HOME"); !home.empty()) return home / "hub";
  if (const auto cache = from("XDG_CACHE_HOME"); !cache.empty()) return cache / "huggingface" / "hub";
  return from("HOME") / ".cache" / "huggingface" / "hub";
}

/// The file or folder of a hub name in that cache, as its `refs/main` has it, or as the one snapshot there; nothing where it was not
/// downloaded.
inline std::optional<std::filesystem::path> find_in_hub_cache(const HubName& name,
                                                              const std::filesystem::path& cache = hub_cache()) {
  namespace fs = std::filesystem;
  std::string folder = "models--" + name.repository;
  folder.replace(folder.find('/'), 1, "--");
  const fs::path repository = cache / folder, snapshots = repository / "snapshots";
  std::error_code error;
  std::vector<fs::path> revisions;
  if (fs::is_regular_file(repository / "refs" / "main", error)) {
    std::string revision = read_file(repository / "refs" / "main", 256);
    while (!revision.empty() && revision.back() == '\n') revision.pop_back();
    if (parse_hub_name("x/" + revision)) revisions.push_back(snapshots / revision);
  }
  std::vector<fs::path> others;
  for (fs::directory_iterator at(snapshots, error), end; !error && at != end; at.increment(error)) others.push_back(at->path());
  if (others.size() == 1) revisions.push_back(others.front());
  for (const fs::path& revision : revisions)
    if (const fs::path found = name.path.empty() ? revision : revision / name.path; fs::exists(found, error)) return found;
  return std::nullopt;
}

/// The path itself where something is there; else what its name stands for in the cache of the Hugging Face hub. Nothing is downloaded.
/// \throws FileError  neither is there: where it could be fetched from, and where to put it.
inline std::filesystem::path resolve_path(const std::filesystem::path& path) {
  std::error_code error;
  if (std::filesystem::exists(std::filesystem::symlink_status(path, error))) return path;
  const std::optional<HubName> name = parse_hub_name(path.generic_string());
  if (!name) return path;
  if (const auto found = find_in_hub_cache(*name)) return *found;
  const std::string file = name->path.generic_string();
  throw_file(path.string(), ": there is no such file or folder, and it is not in ", hub_cache().string(),
             "; if it is of the Hugging Face hub: huggingface-cli download ", name->repository, file.empty() ? "" : " ", file,
             file.empty() ? "" : detail::concat(" (or https://huggingface.co/", name->repository, "/resolve/main/", file, ")"));
}

}  // namespace sae::inline SAE_ABI
