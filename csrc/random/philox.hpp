// Philox4x32-10 (Salmon et al., SC'11): random numbers as a pure function of (key, counter), the same on every machine,
// device, thread count and shard layout.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "core/types.hpp"

namespace mpfast {

using Philox4x32 = std::array<std::uint32_t, 4>;

constexpr Philox4x32 philox4x32(Philox4x32 counter, std::uint32_t key0, std::uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t low = std::uint64_t{0xD2511F53} * counter[0];
    const std::uint64_t high = std::uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<std::uint32_t>(high >> 32) ^ counter[1] ^ key0, static_cast<std::uint32_t>(high),
               static_cast<std::uint32_t>(low >> 32) ^ counter[3] ^ key1, static_cast<std::uint32_t>(low)};
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  return counter;
}

// Names one block of probe vectors: the user's seed and which block of that run it is.
struct ProbeKey {
  std::uint64_t seed = 0;
  std::uint32_t stream = 0;
};

// Entry `row` of probe `column`: twice the number of ones among 63 random bits, less 63. Close to Gaussian (kurtosis
// 2.97), yet an integer of at most 63: exact in every floating-point type and bitwise equal on CPU and GPU, which no
// transcendental transform is. It is odd, so never zero: a probe that vanishes on a coordinate would be blind to it,
// and the eigenvectors of a diagonal matrix are coordinates. Its scale does not matter: probes are orthonormalised.
constexpr int probe_entry(ProbeKey key, index_t row, std::uint32_t column) {
  // Separates our numbers from any other use of Philox with the user's seed.
  constexpr std::uint32_t kDomain = 0x6D706661;
  const auto pair = static_cast<std::uint64_t>(row) >> 1;
  const Philox4x32 bits =
      philox4x32({static_cast<std::uint32_t>(pair), static_cast<std::uint32_t>(pair >> 32), column, key.stream},
                 static_cast<std::uint32_t>(key.seed), static_cast<std::uint32_t>(key.seed >> 32) ^ kDomain);
  const std::size_t half = row & 1 ? 2 : 0;
  return 2 * (std::popcount(bits[half]) + std::popcount(bits[half + 1] >> 1)) - 63;
}

}  // namespace mpfast
