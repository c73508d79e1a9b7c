// The fuzz bodies over mutations of good files, drawn from fixed seeds; tests/fuzz/*_fuzz.cpp search without end.
#include <sae/files/output.hpp>

#include <cstdint>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "../fuzz/config_fuzz.hpp"
#include "../fuzz/index_fuzz.hpp"
#include "../fuzz/npy_fuzz.hpp"
#include "../fuzz/pickle_fuzz.hpp"
#include "../fuzz/replay.hpp"
#include "../fuzz/safetensors_fuzz.hpp"
#include "../fuzz/yaml_fuzz.hpp"
#include "../fuzz/zip_fuzz.hpp"
#include "catch_compat.hpp"
#include "torch_bytes.hpp"

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

Bytes bytes_of(const std::string& text) { return {text.begin(), text.end()}; }

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

TEST_CASE("fuzz: mutated indexes of shards are refused or name files beside them", "[files][safetensors][shards][fuzz]") {
  const Bytes good = bytes_of(R"({"metadata": {"total_size": 20}, "weight_map": {"W_enc": "w-00001-of-00002.safetensors",
"b_enc": "w-00001-of-00002.safetensors", "W_dec": "w-00002-of-00002.safetensors"}})");
  REQUIRE(index_fuzz(good));
  const int taken = taken_of(3000, good, index_fuzz);
  CHECK(taken > 0);
  CHECK(taken < 2500);
  CHECK_FALSE(index_fuzz({}));
}

TEST_CASE("fuzz: mutated zip and npz files are refused or read inside their bytes", "[files][zip][npz][fuzz]") {
  const std::string dict = "{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }";
  const std::string npy = std::string("\x93NUMPY\x01\x00", 8) + sae_test::u16(dict.size()) + dict + std::string(24, '\0');
  for (const bool zip64 : {false, true}) {
    sae_test::ZipBytes zip{.parts = {{.name = "w.npy", .data = npy}, sae_test::deflated("d.npy", npy)}, .zip64 = zip64};
    zip.parts[0].extra = sae_test::u16(1) + sae_test::u16(8) + sae_test::u64(0);
    if (sae::detail::inflater == nullptr) zip.parts.pop_back();
    const Bytes good = bytes_of(zip.bytes());
    REQUIRE(zip_fuzz(good));
    const int taken = taken_of(3000, good, zip_fuzz);
    CHECK(taken > 0);
    CHECK(taken < 2500);
  }
  CHECK_FALSE(zip_fuzz({}));
}

TEST_CASE("fuzz: mutated pickles are refused or give tensors inside their storages", "[files][torch][pickle][fuzz]") {
  using namespace sae_test;
  const std::string tensors = pickled("w") + tensor(storage("0", 16), 2, pickled(2) + pickled(3), pickled(1) + pickled(4)) +
                              "q\x01" + pickled("again") + "h\x01" + pickled("empty") +
                              tensor(storage("1", 0), 0, pickled(0), pickled(1));
  const Bytes bytes = bytes_of(protocol2("}(" + tensors + pickled("k") + "](K\x05N\x88\x65u"));
  REQUIRE(pickle_fuzz(bytes));
  const int taken = taken_of(5000, bytes, pickle_fuzz);
  CHECK(taken > 0);
  CHECK(taken < 4000);
  CHECK_FALSE(pickle_fuzz({}));
}

TEST_CASE("fuzz: mutated yaml is refused or means what its JSON means", "[files][yaml][fuzz]") {
  const Bytes good =
      bytes_of("a: 1  # one\nb:\n  - x\n  - \"1\": [2.5, 'it''s', {c: null}]\n    d: \"\\u00e9\"\ne:\n- - 1\n  - true\n");
  REQUIRE(yaml_fuzz(good));
  const int taken = taken_of(5000, good, yaml_fuzz);
  CHECK(taken > 0);
  CHECK(taken < 4500);
}

TEST_CASE("fuzz: mutated cfg json is refused or says legal sizes", "[files][json][formats][fuzz]") {
  for (const std::string name : {"saelens_topk", "saelens_jumprelu_skip_transcoder", "saelens_standard_hook_z"}) {
    const Bytes good = file(name + "/cfg.json");
    REQUIRE(config_fuzz(good));
    const int taken = taken_of(2000, good, config_fuzz);
    CHECK(taken > 0);
    CHECK(taken < 1900);
  }
  CHECK_FALSE(config_fuzz({}));
}

TEST_CASE("fuzz: what searches found their way by is refused or read inside its bytes", "[files][fuzz]") {
  fuzz_replay("config", config_fuzz);
  fuzz_replay("index", index_fuzz);
  fuzz_replay("npy", npy_fuzz);
  fuzz_replay("pickle", pickle_fuzz);
  fuzz_replay("safetensors", safetensors_fuzz);
  fuzz_replay("yaml", yaml_fuzz);
  fuzz_replay("zip", zip_fuzz);
}
