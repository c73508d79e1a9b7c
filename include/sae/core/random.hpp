#pragma once
#include <sae/core/types.hpp>

#include <array>
#include <cmath>
#include <cstdint>
#include <numbers>

namespace sae::inline SAE_ABI {

/// Philox4x32-10: 128 random bits from a 128-bit counter and a 64-bit key, no state.
/// Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
inline std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t{0xD2511F53} * counter[0];
    const std::uint64_t p1 = std::uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<std::uint32_t>(p1 >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(p1),
               static_cast<std::uint32_t>(p0 >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(p0)};
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return counter;
}

/// A stream of random numbers, fixed by (seed, stream) on every platform (`normal` up to the rounding of the machine's log and
/// cos); its whole state is `position()`.
class Random {
 public:
  explicit Random(std::uint64_t seed, std::uint64_t stream = 0) : seed_(seed), stream_(stream) {}

  std::uint64_t position() const { return position_; }
  void seek(std::uint64_t position) { position_ = position; }

  /// 32 uniform bits.
  std::uint32_t bits() {
    const std::uint64_t block = position_ / 4;
    if (block != cached_block_) {
      cached_ = philox({low(block), high(block), low(stream_), high(stream_)}, {low(seed_), high(seed_)});
      cached_block_ = block;
    }
    return cached_[static_cast<std::size_t>(position_++ % 4)];
  }
  std::uint64_t bits64() {
    const std::uint64_t first = bits();
    return first << 32 | bits();
  }
  /// Uniform in [0, 1), a multiple of 2^-53.
  double uniform() { return static_cast<double>(bits64() >> 11) * 0x1p-53; }
  double uniform(double low, double high) { return low + (high - low) * uniform(); }
  /// Uniform in 0 .. n-1 without bias; n >= 1.
  std::uint64_t below(std::uint64_t n) {
    const std::uint64_t reject = (0 - n) % n;  // 2^64 mod n values at the bottom would come up once too often
    std::uint64_t x = bits64();
    while (x < reject) x = bits64();
    return x % n;
  }
  /// Standard normal (Box-Muller, one of the pair; always four words).
  double normal() {
    const double radius = std::sqrt(-2.0 * std::log1p(-uniform()));
    return radius * std::cos(2.0 * std::numbers::pi * uniform());
  }

 private:
  static std::uint32_t low(std::uint64_t x) { return static_cast<std::uint32_t>(x); }
  static std::uint32_t high(std::uint64_t x) { return static_cast<std::uint32_t>(x >> 32); }

  std::uint64_t seed_, stream_, position_ = 0, cached_block_ = ~std::uint64_t{0};
  std::array<std::uint32_t, 4> cached_{};
};

/// A random order of 0 .. n-1 that needs no memory: position -> element, each element once.
/// A Feistel network over the next power of four, walked until it lands below n (fewer than four steps on average).
class Permutation {
 public:
  Permutation(std::uint64_t n, std::uint64_t seed, std::uint64_t stream) : n_(n), seed_(seed), stream_(stream) {
    while (half_bits_ < 32 && (std::uint64_t{1} << (2 * half_bits_)) < n) ++half_bits_;
  }
  std::uint64_t size() const { return n_; }
  /// Element at `position` < n.
  std::uint64_t operator()(std::uint64_t position) const {
    do position = feistel(position);
    while (position >= n_);
    return position;
  }

 private:
  std::uint64_t feistel(std::uint64_t x) const {
    const std::uint64_t mask = (std::uint64_t{1} << half_bits_) - 1;
    std::uint64_t left = x >> half_bits_, right = x & mask;
    for (std::uint32_t round = 0; round < 4; ++round) {
      const auto mixed = philox({static_cast<std::uint32_t>(right), round, static_cast<std::uint32_t>(stream_),
                                 static_cast<std::uint32_t>(stream_ >> 32)},
                                {static_cast<std::uint32_t>(seed_), static_cast<std::uint32_t>(seed_ >> 32)});
      const std::uint64_t next = left ^ (mixed[0] & mask);
      left = right;
      right = next;
    }
    return left << half_bits_ | right;
  }

  std::uint64_t n_, seed_, stream_;
  int half_bits_ = 1;
};

}  // namespace sae::inline SAE_ABI
