// The fuzz bodies over mutations of good files, drawn from fixed seeds; tests/fuzz/*_fuzz.cpp search without end.
#include <sae/files/output.hpp>

#include <cstdint>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "../fuzz/npy_fuzz.hpp"
#include "../fuzz/safetensors_fuzz.hpp"
#include "catch_compat.hpp"

namespace {

using Bytes = std::vector<std::uint8_t>;

Bytes file(const std::string& name) {
  const std::string text = sae::read_file(std::filesystem::path(SAE_TEST_DATA) / "peers" / "inference" / name);
  return {text.begin(), text.end()};
}

/// One to three changes: a bit, a byte, a digit, a cut, an insertion, a repeated piece, mostly near the front (the header).
Bytes mutated(Bytes bytes, std::mt19937& random) {
  const auto below = [&](std::size_t n) { return n == 0 ? 0 : static_cast<std::size_t>(random()) % n; };
  for (std::size_t changes = 1 + below(3); changes > 0; --changes) {
    const std::size_t front = below(4) == 0 ? bytes.size() : std::min<std::size_t>(bytes.size(), 320);
    const std::size_t at = below(front);
    const auto here = bytes.begin() + static_cast<std::ptrdiff_t>(at);
    if (bytes.empty()) return bytes;
    switch (below(7)) {
      case 0: bytes[at] = static_cast<std::uint8_t>(bytes[at] ^ (1u << below(8))); break;
      case 1: bytes[at] = static_cast<std::uint8_t>(random()); break;
      case 2: bytes[at] = static_cast<std::uint8_t>("0123456789[]{}(),:\"' -"[below(22)]); break;
      case 3: bytes.resize(at); break;
      case 4: bytes.insert(here, static_cast<std::uint8_t>(below(2) == 0 ? '9' : random())); break;
      case 5: bytes.erase(here); break;
      default: {
        const Bytes piece(here, here + static_cast<std::ptrdiff_t>(std::min<std::size_t>(below(40), bytes.size() - at)));
        bytes.insert(bytes.begin() + static_cast<std::ptrdiff_t>(below(front)), piece.begin(), piece.end());
      }
    }
  }
  return bytes;
}

template <class Body>
int taken_of(int count, const Bytes& good, const Body& body) {
  std::mt19937 random(7);
  int taken = 0;
  for (int i = 0; i < count; ++i) taken += body(mutated(good, random)) ? 1 : 0;
  return taken;
}

}  // namespace

TEST_CASE("fuzz: mutated .npy files are refused or read inside their bytes", "[files][npy][fuzz]") {
  const Bytes good = file("saelens_standard/x.npy");
  REQUIRE(npy_fuzz(good));
  const int taken = taken_of(3000, good, npy_fuzz);
  CHECK(taken > 0);
  CHECK(taken < 2500);
  CHECK_FALSE(npy_fuzz({}));
}

TEST_CASE("fuzz: mutated safetensors files are refused or read inside their bytes", "[files][safetensors][fuzz]") {
  const Bytes good = file("saelens_standard_bf16/sae_weights.safetensors");
  REQUIRE(safetensors_fuzz(good));
  const int taken = taken_of(3000, good, safetensors_fuzz);
  CHECK(taken > 0);
  CHECK(taken < 2500);
  CHECK_FALSE(safetensors_fuzz({}));
}
