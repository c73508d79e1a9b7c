#pragma once
#include <sae/files/zip.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

#include "catch_compat.hpp"

/// Runs a fuzz body over tests/fuzz/READER.zip: inputs of scripts/fuzz.sh, the smallest set that reaches all it ever reached, and whatever
/// broke a reader once.
template <class Body>
void fuzz_replay(const std::string& reader, const Body& body) {
  CAPTURE(reader);
  sae::ZipFile corpus(std::filesystem::path(SAE_TEST_DATA).parent_path() / "fuzz" / (reader + ".zip"));
  int taken = 0, all = 0;
  for (const sae::ZipEntry& entry : corpus.entries()) {
    CAPTURE(entry.name);
    const std::span<const std::byte> bytes = corpus.bytes(entry);
    taken += body(std::span(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size())) ? 1 : 0;
    ++all;
  }
  CHECK(taken > 0);
  CHECK(taken < all);
}
