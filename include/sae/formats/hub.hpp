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

namespace detail {
/// Letters, digits, '-', '_', '.' and those of `more`.
inline bool is_hub_word(std::string_view word, std::size_t most, std::string_view more = "") {
  constexpr std::string_view known = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.";
  return !word.empty() && word != "." && word != ".." && word.size() <= most &&
         std::all_of(word.begin(), word.end(),
                     [&](char c) { return known.find(c) != known.npos || more.find(c) != more.npos; });
}
/// Words between slashes, as a path in a repository is: no way out of it.
inline bool is_hub_path(std::string_view path) {
  while (true) {
    const std::size_t slash = path.find('/');
    if (!is_hub_word(path.substr(0, slash), 255, ":+")) return false;
    if (slash == std::string_view::npos) return true;
    path.remove_prefix(slash + 1);
  }
}
}  // namespace detail

/// The name as one of the hub, where it can be one: two words of letters, digits, '-', '_' and '.', and perhaps a path behind them.
inline std::optional<HubName> parse_hub_name(std::string_view name) {
  HubName out;
  int words = 0;
  while (true) {
    const std::size_t slash = name.find('/');
    const std::string_view word = name.substr(0, slash);
    if (!detail::is_hub_word(word, 96)) return std::nullopt;
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

/// The snapshot of a repository in that cache that holds these files or folders, as its `refs/main` has it, or the one snapshot there;
/// nothing where they were not downloaded.
inline std::optional<std::filesystem::path> find_in_hub_cache(std::string repository, const std::vector<std::string>& files,
                                                              const std::filesystem::path& cache = hub_cache()) {
  namespace fs = std::filesystem;
  repository.replace(repository.find('/'), 1, "--");
  const fs::path folder = cache / ("models--" + repository), snapshots = folder / "snapshots";
  std::error_code error;
  std::vector<fs::path> revisions;
  if (fs::is_regular_file(folder / "refs" / "main", error)) {
    std::string revision = read_file(folder / "refs" / "main", 256);
    while (!revision.empty() && revision.back() == '\n') revision.pop_back();
    if (detail::is_hub_word(revision, 96)) revisions.push_back(snapshots / revision);
  }
  std::vector<fs::path> others;
  for (fs::directory_iterator at(snapshots, error), end; !error && at != end; at.increment(error)) others.push_back(at->path());
  if (others.size() == 1) revisions.push_back(others.front());
  for (const fs::path& revision : revisions)
    if (std::all_of(files.begin(), files.end(), [&](const std::string& file) { return fs::exists(revision / file, error); }))
      return revision;
  return std::nullopt;
}
/// The file or folder of a hub name in that cache.
inline std::optional<std::filesystem::path> find_in_hub_cache(const HubName& name,
                                                              const std::filesystem::path& cache = hub_cache()) {
  const auto snapshot = find_in_hub_cache(name.repository, {name.path.generic_string()}, cache);
  if (!snapshot) return std::nullopt;
  return name.path.empty() ? *snapshot : *snapshot / name.path;
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
  constexpr std::string_view endings[] = {".safetensors", ".npz", ".pt", ".pth", ".json", ".yaml", ".txt"};
  const bool known = std::find(std::begin(endings), std::end(endings), name->path.extension()) != std::end(endings);
  const bool folder = !file.empty() && !known;
  throw_file(path.string(), ": there is no such file or folder, and it is not in ", hub_cache().string(),
             "; if it is of the Hugging Face hub: huggingface-cli download ", name->repository,
             folder         ? " --include \""
             : file.empty() ? ""
                            : " ",
             file,
             folder         ? "/*\""
             : file.empty() ? ""
                            : detail::concat(" (or https://huggingface.co/", name->repository, "/resolve/main/", file, ")"));
}

}  // namespace sae::inline SAE_ABI
