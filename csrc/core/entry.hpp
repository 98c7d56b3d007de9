// One entry of W, as stored and as a double.
#pragma once

#include <bit>
#include <cstdint>

#include "core/types.hpp"

namespace mpfast {

// Widening is exact; infinities and NaN of float16 do not survive it: they are found by their bits (all exponent bits
// set), which is also the test that vectorises.
template <DType>
struct Entry;

template <>
struct Entry<DType::float64> {
  using Bits = std::uint64_t;
  static constexpr Bits kExponent = 0x7ff0000000000000;
  static constexpr double widen(Bits bits) { return std::bit_cast<double>(bits); }
};

template <>
struct Entry<DType::float32> {
  using Bits = std::uint32_t;
  static constexpr Bits kExponent = 0x7f800000;
  static constexpr double widen(Bits bits) { return std::bit_cast<float>(bits); }
};

template <>
struct Entry<DType::bfloat16> {
  using Bits = std::uint16_t;
  static constexpr Bits kExponent = 0x7f80;
  static constexpr double widen(Bits bits) { return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16); }
};

template <>
struct Entry<DType::float16> {
  using Bits = std::uint16_t;
  static constexpr Bits kExponent = 0x7c00;
  // Normal halves by shifting the exponent into place, subnormal ones by their integer mantissa: no float subnormal
  // appears on the way, so a caller's flush-to-zero mode cannot change the result.
  static constexpr double widen(Bits bits) {
    const std::uint32_t magnitude = bits & 0x7fffU;
    const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000U) << 16;
    const float normal = std::bit_cast<float>((magnitude << 13) + (112U << 23));
    const float subnormal = static_cast<float>(static_cast<std::int32_t>(magnitude)) * 0x1p-24F;
    const float value = magnitude < 0x400U ? subnormal : normal;
    return std::bit_cast<float>(std::bit_cast<std::uint32_t>(value) | sign);
  }
};

// Calls function.template operator()<dtype>() for the dtype known at run time.
template <class Function>
auto dispatch(DType dtype, Function&& function) {
  switch (dtype) {
    case DType::float64:
      return function.template operator()<DType::float64>();
    case DType::float32:
      return function.template operator()<DType::float32>();
    case DType::float16:
      return function.template operator()<DType::float16>();
    default:
      return function.template operator()<DType::bfloat16>();
  }
}

}  // namespace mpfast
