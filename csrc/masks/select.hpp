// The order in which entries are pruned, as unsigned integers.
//
// The score of an entry is |w| * scale in the precision of the selection (float, or double as soon as one layer is
// stored in double). Bits of non-negative floats sort like the floats, so a selection never compares floats: it works
// on keys, the bits of the score. Keys are held in signed integers (the sign bit is always clear).
//
// Shared by the host and the device. Everything here has internal linkage, because each copy is compiled for another
// instruction set.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/dtype.hpp"

namespace mpfast::masks {

// How the stored bits of one entry are read: as signed integers, the comparison every vector unit has. Finite entries
// are those with magnitude(bits) < kInfinity.
template <DType dtype>
struct Stored {
  using Bits = std::make_signed_t<typename Entry<dtype>::Bits>;
  static constexpr Bits kMagnitude = static_cast<Bits>(Entry<dtype>::kMagnitude);
  static constexpr Bits kInfinity = static_cast<Bits>(Entry<dtype>::kExponent);
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
  static constexpr double kLargestScale = 0x1.fffffep127;
};
template <>
struct Score<std::int64_t> {
  using Real = double;
  static constexpr std::int64_t kLargest = 0x7ff0000000000000;
  static constexpr int kBits = 63;
  static constexpr double kLargestScale = 0x1.fffffffffffffp1023;
};

// The factor in the precision of the scores. One beyond its range becomes the largest that there is: zero times
// infinity would be no number.
template <class Key>
static inline constexpr typename Score<Key>::Real score_scale(double scale) {
  return static_cast<typename Score<Key>::Real>(scale < Score<Key>::kLargestScale ? scale : Score<Key>::kLargestScale);
}

// The key of a finite entry. Zero is the smallest key, and only zeros have it: an entry whose score underflows still
// comes after them.
template <DType dtype, class Key, bool kScaled>
static inline constexpr Key score_key(typename Stored<dtype>::Bits magnitude, typename Score<Key>::Real scale) {
  using Bits = typename Entry<dtype>::Bits;
  auto score = Entry<dtype>::template widen_magnitude<typename Score<Key>::Real>(static_cast<Bits>(magnitude));
  if constexpr (kScaled) score *= scale;
  const Key key = __builtin_bit_cast(Key, score);
  if constexpr (!kScaled) return key;
  const Key smallest = magnitude != 0 ? 1 : 0;
  return key > smallest ? key : smallest;
}

}  // namespace mpfast::masks
