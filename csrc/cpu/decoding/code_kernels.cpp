// Compiled once per instruction set (see CMakeLists.txt), with internal linkage for all but the last functions.
#include "cpu/decoding/code_kernels.hpp"

#include "cpu/machine/dispatch.hpp"
#include "cpu/machine/simd.hpp"

namespace mpfast::cpu::MPFAST_ISA {

namespace {

// Codes are taken as many at a time as fill a register of 16-bit integers: two registers of floats.
constexpr int L = kLanes<float>;
using Words = Vec<std::uint16_t>;
using Bits = Vec<std::uint32_t>;

// Two registers' worth of consecutive codes of eight bits, a word each.
[[gnu::always_inline]] inline Words load_bytes(const std::uint8_t* p) {
#if defined(__AVX512F__)
  return bit_copy<Words>(_mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif defined(__AVX2__)
  return bit_copy<Words>(_mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
  return __builtin_convertvector(load_as<VecN<std::uint8_t, 2 * L>>(p), Words);
#endif
}

// The same of four bits; the first is the low one of its byte. What is above the four bits of a word is not cleared.
[[gnu::always_inline]] inline Words load_nibbles(const std::uint8_t* p) {
#if defined(__AVX512F__)
  const auto bytes =
      bit_copy<Bits>(_mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__AVX2__)
  const auto bytes = bit_copy<Bits>(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
  const auto bytes = __builtin_convertvector(load_as<VecN<std::uint8_t, L>>(p), Bits);
#endif
  return bit_copy<Words>(bytes | (bytes << 12));
}

// Halves with the exponents and mantissas of codes, and NaN in the place of what is none.
template <Code code>
[[gnu::always_inline]] inline Words halves_of(const Words& codes) {
  using Format = FormatOf<code>;
  constexpr auto kSign = static_cast<std::uint16_t>(1U << (Format::kBits - 1));
  constexpr std::uint16_t kNaN = 0x7e00;
  const Words magnitude = codes & static_cast<std::uint16_t>(kSign - 1);
  Words halves = magnitude << (10 - Format::kMantissaBits);
  halves |= (codes << (16 - Format::kBits)) & std::uint16_t{0x8000};
  if constexpr (Format::kNoNumber >= 0) {
    halves |= bit_copy<Words>(magnitude == static_cast<std::uint16_t>(Format::kNoNumber)) & kNaN;
  }
  if constexpr (Format::kNegativeZeroIsNaN) halves |= bit_copy<Words>(codes == kSign) & kNaN;
  return halves;
}

[[gnu::always_inline]] inline void store_as(float* target, Vec<float> v) { store(target, v); }

[[gnu::always_inline]] inline void store_as(double* target, Vec<float> v) {
  store(target, to_double<kLanes<double>>(low_half(v)));
  store(target + kLanes<double>, to_double<kLanes<double>>(high_half(v)));
}

// Two registers of values times a factor.
template <Code code, class Real>
[[gnu::always_inline]] inline void decode_words(const Words& codes, Vec<float> factor, Real* target) {
  const Words halves = halves_of<code>(codes);
  Half stored[2 * L];
  __builtin_memcpy(stored, &halves, sizeof halves);
  store_as(target, load_float<L>(stored) * factor);
  store_as(target + L, load_float<L>(stored + L) * factor);
}

// Entries [first, last) of a row of codes as halves, times a factor. kWhole: they fill the registers. What lies `ahead`
// bytes from them is asked for.
template <Code code, bool kWhole, class Real>
[[gnu::always_inline]] inline void decode_run(const std::uint8_t* row, index_t first, index_t last, index_t ahead,
                                              float factor, Real* target) {
  constexpr bool kInPairs = FormatOf<code>::kBits == 4;
  const Vec<float> factors = broadcast(factor);
  const auto take = [&](index_t count) {  // one by one
    std::uint16_t codes[2 * L] = {};
    for (index_t k = 0; k < count; ++k) {
      const index_t j = first + k;
      codes[k] = static_cast<std::uint16_t>(kInPairs ? row[j / 2] >> (j % 2 * 4) : row[j]);
    }
    Real numbers[2 * L];
    decode_words<code>(load_as<Words>(codes), factors, numbers);
    for (index_t k = 0; k < count; ++k) target[k] = numbers[k];
    first += count;
    target += count;
  };
  if (!kWhole && kInPairs && first % 2 != 0 && first < last) take(1);
  for (; first + 2 * L <= last; first += 2 * L, target += 2 * L) {
    const std::uint8_t* const at = row + (kInPairs ? first / 2 : first);
    __builtin_prefetch(at + ahead, 0, 2);
    decode_words<code>(kInPairs ? load_nibbles(at) : load_bytes(at), factors, target);
  }
  if (!kWhole && first < last) take(last - first);
}

// Where the scale would not be finite with the unit of the halves in it, the products take that afterwards.
template <Code code, class Real>
[[gnu::noinline, gnu::cold]] void decode_huge(const std::uint8_t* row, index_t first, index_t last, float scale,
                                              Real* target) {
  decode_run<code, false>(row, first, last, 0, scale, target);
  for (index_t k = 0; k < last - first; ++k) target[k] = static_cast<float>(target[k]) * FormatOf<code>::kUnit;
}

// Bytes from a piece to the one that products decode after it: to its right, or below it at the first column.
template <Code code>
index_t distance_to_next(const CodedMatrix& w, const Piece& piece) {
  const index_t in_a_byte = 8 / FormatOf<code>::kBits;
  if (piece.col + piece.cols < w.cols) return piece.cols / in_a_byte;
  return piece.rows * w.row_stride - piece.col / in_a_byte;
}

// The unit goes into the scale, which rounds nothing.
template <Code code, bool kWhole, class Real>
void decode_rows(const CodedMatrix& w, const Piece& piece, Real* target, index_t target_stride) {
  const index_t end = piece.col + piece.cols;
  const index_t ahead = distance_to_next<code>(w, piece);
  const index_t first_block = piece.col / w.width;
  for (index_t i = 0; i < piece.rows; ++i, target += target_stride) {
    const std::uint8_t* const row = w.codes + (piece.row + i) * w.row_stride;
    const float* scale = w.scales + (piece.row + i) * w.scale_stride + first_block;
    index_t block_end = (first_block + 1) * w.width;
    for (index_t first = piece.col; first < end; block_end += w.width, ++scale) {
      const index_t last = end < block_end ? end : block_end;
      Real* const numbers = target + (first - piece.col);
      if (__builtin_fabsf(*scale) <= 0x1p127F / FormatOf<code>::kUnit) [[likely]] {
        decode_run<code, kWhole>(row, first, last, ahead, *scale * FormatOf<code>::kUnit, numbers);
      } else {
        decode_huge<code>(row, first, last, *scale, numbers);
      }
      first = last;
    }
  }
}

// Where all runs fill the registers, as those of blocks of 32 and more do, they need not be asked: of blocks of 32 that
// is a third of the time.
template <Code code, class Real>
void decode(const CodedMatrix& w, const Piece& piece, Real* target, index_t target_stride) {
  const bool whole = w.width % (2 * L) == 0 && piece.col % (2 * L) == 0 && piece.cols % (2 * L) == 0;
  if (whole) return decode_rows<code, true>(w, piece, target, target_stride);
  decode_rows<code, false>(w, piece, target, target_stride);
}

}  // namespace

}  // namespace mpfast::cpu::MPFAST_ISA

namespace mpfast::cpu {

template <>
Decode<float> decode_kernel<isa::MPFAST_ISA, float>(Code code) {
  return dispatch(code, []<Code each>() -> Decode<float> { return &MPFAST_ISA::decode<each, float>; });
}

template <>
Decode<double> decode_kernel<isa::MPFAST_ISA, double>(Code code) {
  return dispatch(code, []<Code each>() -> Decode<double> { return &MPFAST_ISA::decode<each, double>; });
}

}  // namespace mpfast::cpu
