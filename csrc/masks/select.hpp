// The order in which entries are pruned, as unsigned integers.
//
// The score of an entry is |w| * scale in the precision of the selection (float, or double as soon as one layer is
// stored in double). Bits of non-negative floats sort like the floats, so a selection never compares floats: it works
// on keys, the bits of the score. Keys are held in signed integers (the sign bit is always clear), the comparison every
// vector unit has.
//
// Shared by the host and the device. Everything here has internal linkage, because each copy is compiled for another
// instruction set.
#pragma once

#include <cstdint>

#include "core/types.hpp"

namespace mpfast::masks {

// How the stored bits of one entry are read. Finite entries are those with magnitude(bits) < kInfinity.
template <DType dtype>
struct Stored {
  using Bits = std::int32_t;
  static constexpr Bits kMagnitude = 0x7fffffff;
  static constexpr Bits kInfinity = 0x7f800000;
};
template <>
struct Stored<DType::float64> {
  using Bits = std::int64_t;
  static constexpr Bits kMagnitude = 0x7fffffffffffffff;
  static constexpr Bits kInfinity = 0x7ff0000000000000;
};
template <>
struct Stored<DType::float16> {
  using Bits = std::int16_t;
  static constexpr Bits kMagnitude = 0x7fff;
  static constexpr Bits kInfinity = 0x7c00;
};
template <>
struct Stored<DType::bfloat16> {
  using Bits = std::int16_t;
  static constexpr Bits kMagnitude = 0x7fff;
  static constexpr Bits kInfinity = 0x7f80;
};

// Clears the sign. Within one storage type these already sort like |w|.
template <DType dtype>
static inline constexpr typename Stored<dtype>::Bits magnitude(typename Stored<dtype>::Bits bits) {
  return static_cast<typename Stored<dtype>::Bits>(bits & Stored<dtype>::kMagnitude);
}

template <class Key>
struct Score;
template <>
struct Score<std::int32_t> {
  using Real = float;
  static constexpr std::int32_t kLargest = 0x7f800000;  // a product may overflow to infinity
  static constexpr int kBits = 31;
};
template <>
struct Score<std::int64_t> {
  using Real = double;
  static constexpr std::int64_t kLargest = 0x7ff0000000000000;
  static constexpr int kBits = 63;
};

// |w| of a finite entry, exactly, in the precision of the score. Subnormal entries are converted as integers, so a
// process that flushes subnormal floats to zero sees the same result.
template <DType dtype, class Key>
static inline constexpr typename Score<Key>::Real widened(typename Stored<dtype>::Bits magnitude) {
  using Real = typename Score<Key>::Real;
  if constexpr (dtype == DType::float64) {
    static_assert(sizeof(Key) == sizeof(double), "double entries need keys of 64 bits");
    return __builtin_bit_cast(double, magnitude);
  } else if constexpr (dtype == DType::float16) {
    const std::int32_t wide = magnitude;
    const float normal = __builtin_bit_cast(float, (wide << 13) + (112 << 23));
    const float subnormal = static_cast<float>(wide) * 0x1p-24F;
    return static_cast<Real>(wide < 0x400 ? subnormal : normal);
  } else {
    const std::int32_t wide = dtype == DType::bfloat16 ? static_cast<std::int32_t>(magnitude) << 16 : magnitude;
    if constexpr (sizeof(Key) == sizeof(float)) {
      return __builtin_bit_cast(float, wide);
    } else {
      const double normal = static_cast<double>(__builtin_bit_cast(float, wide));
      const double subnormal = static_cast<double>(wide) * 0x1p-149;
      return wide < 0x00800000 ? subnormal : normal;
    }
  }
}

// The key of a finite entry. Zero is the smallest key, and only zeros have it: an entry whose score underflows still
// comes after them.
template <DType dtype, class Key, bool kScaled>
static inline constexpr Key score_key(typename Stored<dtype>::Bits magnitude, typename Score<Key>::Real scale) {
  auto score = widened<dtype, Key>(magnitude);
  if constexpr (kScaled) score *= scale;
  const Key key = __builtin_bit_cast(Key, score);
  if constexpr (!kScaled) return key;
  const Key smallest = magnitude != 0 ? 1 : 0;
  return key > smallest ? key : smallest;
}

}  // namespace mpfast::masks
