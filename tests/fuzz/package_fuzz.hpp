#pragma once
#include <sae/formats/load.hpp>

#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <span>
#include <string>
#include <string_view>

/// A folder of settings and weights as it is published, in one run of bytes: by which names they lie there, how long the settings are (two
/// bytes, the low one first), the settings, the weights.
struct FuzzedPackage {
  struct Names {
    std::string_view weights, config;
  };
  static constexpr std::array<Names, 11> names{{{"sae_weights.safetensors", "cfg.json"},
                                                {"sae_weights.safetensors", "config.json"},
                                                {"sae.safetensors", "cfg.json"},
                                                {"params.safetensors", "config.json"},
                                                {"checkpoints/final.safetensors", "hyperparams.json"},
                                                {"params.npz", ""},
                                                {"ae.pt", "config.json"},
                                                {"autoencoder.pt", ""},
                                                {"latest_ckpt.safetensors", "conf.yaml"},
                                                {"layer_0.safetensors", "config.yaml"},
                                                {"other.safetensors", ""}}};
  std::filesystem::path path;

  FuzzedPackage(std::span<const std::uint8_t> input, const std::filesystem::path& folder) : path(folder) {
    std::filesystem::remove_all(path);
    const Names& at = names[input[0] % names.size()];
    const auto rest = input.subspan(3);
    const std::size_t settings = std::min<std::size_t>(rest.size(), input[1] + 256u * input[2]);
    std::filesystem::create_directories((path / at.weights).parent_path());
    if (!at.config.empty()) write(path / at.config, rest.first(settings));
    write(path / at.weights, rest.subspan(at.config.empty() ? 0 : settings));
  }

 private:
  static void write(const std::filesystem::path& file, std::span<const std::uint8_t> bytes) {
    std::ofstream(file, std::ios::binary).write(reinterpret_cast<const char*>(bytes.data()), std::streamsize(bytes.size()));
  }
};

namespace fuzzed {

/// Codes of a few rows: every entry names a latent, ascending in its row.
inline sae::Codes<float> codes_of(const sae::AnySae& sae) {
  if (sae.d_in() < 1 || sae.latents() < 1 || sae.d_in() * sae.latents() > (sae::Index{1} << 24)) std::abort();
  sae::Matrix<float> rows(3, sae.d_in());
  for (sae::Index b = 0; b < rows.rows(); ++b)
    for (sae::Index j = 0; j < rows.cols(); ++j) rows(b, j) = 0.25F * static_cast<float>((b * 7 + j * 3) % 11 - 4);
  sae::Threads one(1);
  sae::Codes<float> codes = sae.encode(rows, one);
  if (codes.rows() != rows.rows() || sae.reconstruct(rows, one).rows() != rows.rows()) std::abort();
  for (sae::Index b = 0; b < codes.rows(); ++b)
    for (sae::Index e = codes.begin(b); e < codes.end(b); ++e)
      if (codes.latent(e) < (e == codes.begin(b) ? 0 : codes.latent(e - 1) + 1) || codes.latent(e) >= sae.latents())
        std::abort();
  return codes;
}
inline bool same(const sae::Codes<float>& a, const sae::Codes<float>& b) {
  const auto equal = [](const auto& left, const auto& right) {
    return left.size() == right.size() && (left.empty() || std::memcmp(left.data(), right.data(), left.size_bytes()) == 0);
  };
  return equal(a.offsets(), b.offsets()) && equal(a.indices(), b.indices()) && equal(a.values(), b.values());
}

}  // namespace fuzzed

/// Whatever settings and weights lie in a folder, they are refused with a FileError of one line, or are a model that can be used, and the
/// one that reads its weights from the file gives the same codes. (It may be taken where the other is not: it never looks at some weights.)
/// \return whether the package was taken
inline bool package_fuzz(std::span<const std::uint8_t> input, const std::filesystem::path& folder) {
  if (input.size() < 3) return false;
  const FuzzedPackage package(input, folder);
  const auto taken = [&](const auto& use) {
    try {
      use();
    } catch (const sae::FileError& error) {
      if (std::string_view(error.what()).find('\n') != std::string_view::npos) std::abort();
      return false;
    }
    return true;
  };
  std::optional<sae::Codes<float>> codes, mapped;
  const bool used = taken([&] { codes = fuzzed::codes_of(sae::load(package.path, {.weights = sae::WeightsIn::memory})); });
  taken([&] { mapped = fuzzed::codes_of(sae::load(package.path, {.weights = sae::WeightsIn::file})); });
  if (codes && mapped && !fuzzed::same(*codes, *mapped)) std::abort();
  return used;
}
