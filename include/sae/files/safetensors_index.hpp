#pragma once
#include <sae/files/json.hpp>

#include <algorithm>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>

// Weights in several safetensors files (shards), as Hugging Face's libraries keep them: NAME-00001-of-00003.safetensors and so on, and
// NAME.safetensors.index.json = {"metadata": {"total_size": bytes}, "weight_map": {TENSOR: FILE}}.
namespace sae::inline SAE_ABI {

inline constexpr Index default_shard_bytes = 5'000'000'000;  ///< the convention's "5GB"

namespace detail {

inline constexpr std::string_view safetensors_ending = ".safetensors", safetensors_index_ending = ".safetensors.index.json";
inline constexpr std::size_t safetensors_index_cap = std::size_t{16} << 20;  ///< bytes

inline bool is_safetensors_index(const std::filesystem::path& path) {
  return path.filename().string().ends_with(safetensors_index_ending);
}
/// The index beside a file "x.safetensors": "x.safetensors.index.json".
inline std::filesystem::path safetensors_index_of(std::filesystem::path file) { return file += ".index.json"; }

/// The file, or its index where the file is not there and the index is.
inline std::filesystem::path safetensors_or_index(const std::filesystem::path& file) {
  std::error_code error;
  const std::filesystem::path index = safetensors_index_of(file);
  const bool wanted = file.extension() == safetensors_ending && !std::filesystem::exists(file, error);
  return wanted && std::filesystem::is_regular_file(index, error) ? index : file;
}

/// The index of which a file is a shard by its name, "x-00002-of-00003.safetensors", where it lies beside it.
inline std::optional<std::filesystem::path> index_of_shard(const std::filesystem::path& file) {
  std::string name = file.filename().string();
  constexpr std::string_view form = "-#####-of-#####.safetensors";
  if (name.size() <= form.size()) return std::nullopt;
  const std::string_view tail = std::string_view(name).substr(name.size() - form.size());
  const auto fits = [](char is, char wanted) { return wanted == '#' ? is >= '0' && is <= '9' : is == wanted; };
  if (!std::equal(tail.begin(), tail.end(), form.begin(), fits)) return std::nullopt;
  name.resize(name.size() - form.size());
  std::filesystem::path index = file.parent_path() / (name + std::string(safetensors_index_ending));
  std::error_code error;
  if (!std::filesystem::is_regular_file(index, error)) return std::nullopt;
  return index;
}

/// A name of a file beside the index, and no way to another folder.
inline bool is_shard_name(std::string_view name) {
  const auto odd = [](char c) { return c == '/' || c == '\\' || static_cast<unsigned char>(c) < 0x20 || c == 0x7f; };
  return name.size() > safetensors_ending.size() && name.size() <= 255 && name.ends_with(safetensors_ending) &&
         name.front() != '.' && std::none_of(name.begin(), name.end(), odd);
}

}  // namespace detail

/// Which file of shards holds which tensor: name -> file, from the text of an index. Other fields than `weight_map` are passed over.
/// \throws FileError  naming `file`: no JSON, or one without a map of tensors to files that lie beside it.
inline std::map<std::string, std::string, std::less<>> parse_safetensors_index(std::string_view text,
                                                                               const std::filesystem::path& file) {
  const nlohmann::json json = parse_json(text, file);
  const nlohmann::json& map = detail::json_require(json, "weight_map", file);
  if (!map.is_object() || map.empty()) throw_file(file.string(), ": weight_map is not an object of tensors and their files");
  std::map<std::string, std::string, std::less<>> out;
  for (const auto& [name, shard] : map.items()) {
    if (!shard.is_string() || !detail::is_shard_name(shard.get_ref<const std::string&>()))
      detail::throw_field(file, detail::concat("weight_map: ", detail::printable(name)), shard,
                          "the name of a .safetensors file beside the index");
    out.emplace(name, shard.get<std::string>());
  }
  return out;
}

}  // namespace sae::inline SAE_ABI
