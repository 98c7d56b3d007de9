// Compiled once per instruction set (see CMakeLists.txt), with internal linkage for all but the last functions.
#include "cpu/decoding/code_kernels.hpp"

#include "cpu/decoding/code_registers.hpp"
#include "cpu/machine/dispatch.hpp"
#include "cpu/machine/simd.hpp"

namespace mpfast::cpu::MPFAST_ISA {

namespace {

constexpr int L = kLanes<float>;

[[gnu::always_inline]] inline void store_as(float* target, Vec<float> v) { store(target, v); }

[[gnu::always_inline]] inline void store_as(double* target, Vec<float> v) {
  store(target, to_double<kLanes<double>>(low_half(v)));
  store(target + kLanes<double>, to_double<kLanes<double>>(high_half(v)));
}

// Two registers of values times a factor.
template <Code code, class Real>
[[gnu::always_inline]] inline void decode_words(const Words& codes, Vec<float> factor, Real* target) {
  const Words halves = halves_of<code>(codes);
  store_as(target, widened<0>(halves) * factor);
  store_as(target + L, widened<1>(halves) * factor);
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
    decode_words<code>(with_copies<FormatOf<code>::kBits>(load_as<Words>(codes)), factors, numbers);
    for (index_t k = 0; k < count; ++k) target[k] = numbers[k];
    first += count;
    target += count;
  };
  if (!kWhole && kInPairs && first % 2 != 0 && first < last) take(1);
  for (; first + 2 * L <= last; first += 2 * L, target += 2 * L) {
    const std::uint8_t* const at = row + (kInPairs ? first / 2 : first);
    __builtin_prefetch(at + ahead, 0, 2);
    decode_words<code>(load_codes<code>(at), factors, target);
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
