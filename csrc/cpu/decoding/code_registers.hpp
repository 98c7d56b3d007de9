// Codes as they come out of memory and go into registers. As in simd.hpp, everything has internal linkage.
#pragma once

#include "core/coded_matrix.hpp"
#include "cpu/machine/simd.hpp"

namespace mpfast::cpu::MPFAST_ISA {

namespace {

// Codes are taken as many at a time as fill a register of 16-bit integers: a pair of registers of floats.
using Words = Vec<std::uint16_t>;

// Words whose lower bits are codes, with copies of the uppermost of these above it.
template <int kBits>
[[gnu::always_inline]] inline Words with_copies(const Words& codes) {
  return bit_copy<Words>(bit_copy<Vec<std::int16_t>>(codes << (16 - kBits)) >> (16 - kBits));
}

// A pair's worth of consecutive codes of eight bits, a word each, with copies of the upper bit above it.
[[gnu::always_inline]] inline Words load_bytes(const std::uint8_t* p) {
#if defined(__AVX512F__)
  return bit_copy<Words>(_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif defined(__AVX2__)
  return bit_copy<Words>(_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
  using Bytes = VecN<std::int8_t, kLanes<std::uint16_t>>;
  return bit_copy<Words>(__builtin_convertvector(load_as<Bytes>(p), Vec<std::int16_t>));
#endif
}

// The same of four bits, of which the first is the low one of its byte.
[[gnu::always_inline]] inline Words load_nibbles(const std::uint8_t* p) {
  using Bits = Vec<std::uint32_t>;
#if defined(__AVX512F__)
  const auto bytes =
      bit_copy<Bits>(_mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__AVX2__)
  const auto bytes = bit_copy<Bits>(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
  const auto bytes = __builtin_convertvector(load_as<VecN<std::uint8_t, kLanes<float>>>(p), Bits);
#endif
  return with_copies<4>(bit_copy<Words>(bytes | (bytes << 12)));
}

template <Code code>
[[gnu::always_inline]] inline Words load_codes(const std::uint8_t* p) {
  if constexpr (FormatOf<code>::kBits == 4) return load_nibbles(p);
  return load_bytes(p);
}

// Halves with the exponents and mantissas of codes, and NaN in the place of what is none. Above a code are copies of
// its upper bit, the sign: one comes to lie where a half has it, the others where the exponent of a half has more bits.
template <Code code>
[[gnu::always_inline]] inline Words halves_of(const Words& codes) {
  using Format = FormatOf<code>;
  constexpr int kFewer = 5 - Format::kExponentBits;
  constexpr auto kCopies = static_cast<std::uint16_t>(((1U << kFewer) - 1) << (15 - kFewer));
  const Words halves = codes << (10 - Format::kMantissaBits);
  if constexpr (Format::kOnesAreNaN) {
    // One more in the last place makes another copy of the sign only where the magnitude is ones. The exclusive or then
    // leaves a one, and clears it else.
    static_assert(kFewer == 1);
    constexpr std::uint16_t kLast = 1U << (10 - Format::kMantissaBits);
    return halves ^ ((halves + kLast) & kCopies);
  } else if constexpr (Format::kNegativeZeroIsNaN) {
    constexpr auto kNegativeZero = static_cast<std::uint16_t>(0xffffU << (Format::kBits - 1));
    constexpr std::uint16_t kNaN = 0x7e00;
    return (halves & static_cast<std::uint16_t>(~kCopies)) | (bit_copy<Words>(codes == kNegativeZero) & kNaN);
  } else {
    return halves & static_cast<std::uint16_t>(~kCopies);
  }
}

// Half h of a register of halves, as floats.
template <int h>
[[gnu::always_inline]] inline Vec<float> widened(const Words& halves) {
  Half stored[kLanes<std::uint16_t>];
  __builtin_memcpy(stored, &halves, sizeof halves);
  return load_float<kLanes<float>>(stored + h * kLanes<float>);
}

}  // namespace

}  // namespace mpfast::cpu::MPFAST_ISA
