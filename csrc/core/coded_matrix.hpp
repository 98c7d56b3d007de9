// Matrices of floating-point numbers of eight and of four bits under scales: the list of their types, and where codes
// and scales lie.
#pragma once

#include <cstdint>

#include "core/types.hpp"

namespace mpfast {

// The names are those of the types in ml_dtypes and PyTorch, without "float8_" and "float4_". (Not among them is
// e5m2fnuz, whose largest exponent a half has for infinities.)
enum class Code : std::uint8_t { e4m3fn, e5m2, e4m3fnuz, e2m1 };

constexpr Code kCodes[] = {Code::e4m3fn, Code::e5m2, Code::e4m3fnuz, Code::e2m1};

// A code is a sign, an exponent and kMantissa bits of mantissa: with an exponent of zero it is mantissa 2^(1 - bias),
// else (1 + mantissa) 2^(exponent - bias). The exponent has no more bits than that of a half: a half with the same bits
// in the same places is kUnit times smaller.
template <int kBitsOf, int kMantissa, int kBias>
struct CodeFormat {
  static constexpr int kBits = kBitsOf;
  static constexpr int kMantissaBits = kMantissa;
  static constexpr int kExponentBits = kBitsOf - 1 - kMantissa;
  static constexpr float kUnit = 1U << (15 - kBias);
};

// Codes that are NaN, and whose bits are none in a half. kOnesAreNaN: where all bits but the sign are ones;
// kNegativeZeroIsNaN: -0.
template <Code>
struct FormatOf;
template <>
struct FormatOf<Code::e4m3fn> : CodeFormat<8, 3, 7> {
  static constexpr const char* kName = "float8_e4m3fn";
  static constexpr bool kOnesAreNaN = true;
  static constexpr bool kNegativeZeroIsNaN = false;
};
template <>
struct FormatOf<Code::e5m2> : CodeFormat<8, 2, 15> {
  static constexpr const char* kName = "float8_e5m2";
  static constexpr bool kOnesAreNaN = false;
  static constexpr bool kNegativeZeroIsNaN = false;
};
template <>
struct FormatOf<Code::e4m3fnuz> : CodeFormat<8, 3, 8> {
  static constexpr const char* kName = "float8_e4m3fnuz";
  static constexpr bool kOnesAreNaN = false;
  static constexpr bool kNegativeZeroIsNaN = true;
};
template <>
struct FormatOf<Code::e2m1> : CodeFormat<4, 1, 1> {
  static constexpr const char* kName = "float4_e2m1";
  static constexpr bool kOnesAreNaN = false;
  static constexpr bool kNegativeZeroIsNaN = false;
};

// The value of a code, exactly, and NaN of what is none; above the bits of the code are none. A float with the same
// bits in the same places is 2^(127 - bias) times smaller, and subnormal where the code is. (Inlined always: see
// dtype.hpp.)
template <Code code>
[[gnu::always_inline]] constexpr float value_of(std::uint32_t bits) {
  using Format = FormatOf<code>;
  constexpr std::uint32_t kSign = 1U << (Format::kBits - 1);
  constexpr std::uint32_t kInfinity = 0x7f800000;
  constexpr std::uint32_t kNaN = 0x7fc00000;
  const std::uint32_t magnitude = bits & (kSign - 1);
  std::uint32_t same = magnitude << (23 - Format::kMantissaBits);
  if constexpr (Format::kExponentBits == 5) {  // as of a half, the largest exponent is that of infinities and NaN
    if (magnitude >> Format::kMantissaBits == 31) same |= kInfinity;
  }
  if constexpr (Format::kOnesAreNaN) {
    if (magnitude == kSign - 1) same = kNaN;
  }
  if constexpr (Format::kNegativeZeroIsNaN) {
    if (bits == kSign) same = kNaN;
  }
  same |= (bits & kSign) << (32 - Format::kBits);
  return __builtin_bit_cast(float, same) * (Format::kUnit * 0x1p112F);
}

// Calls function.template operator()<code>() for the type known at run time, as dispatch() in dtype.hpp.
template <class Function>
constexpr auto dispatch(Code code, Function&& function) {
  switch (code) {
    case Code::e4m3fn:
      return function.template operator()<Code::e4m3fn>();
    case Code::e5m2:
      return function.template operator()<Code::e5m2>();
    case Code::e4m3fnuz:
      return function.template operator()<Code::e4m3fnuz>();
    case Code::e2m1:
      return function.template operator()<Code::e2m1>();
  }
  __builtin_unreachable();
}

constexpr const char* code_name(Code code) {
  return dispatch(code, [&]<Code each>() { return FormatOf<each>::kName; });
}

constexpr index_t codes_in_a_byte(Code code) {
  return dispatch(code, [&]<Code each>() { return index_t{8 / FormatOf<each>::kBits}; });
}

// W[i][j] = value of code (i, j) times scales[i * scale_stride + j / width], rounded to single precision. Of four bits
// two codes are in a byte, the low ones first.
struct CodedMatrix {
  const std::uint8_t* codes = nullptr;
  Code type = Code::e4m3fn;
  index_t rows = 0;
  index_t cols = 0;
  index_t row_stride = 0;  // bytes
  const float* scales = nullptr;
  index_t scale_stride = 0;
  index_t width = 1;  // entries of a row that share a scale; the last ones may be fewer
};

}  // namespace mpfast
