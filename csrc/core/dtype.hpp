// How an entry of W can be stored: the list of element types, and what is particular to each of them.
//
// Whatever else depends on the type follows from Entry<dtype>, by way of dispatch(). A new type is an enumerator, its
// place in kDTypes and in dispatch(), and its Entry, all in this file; besides, how it is loaded into registers
// (cpu/machine/simd.hpp), its name in the list of what the device kernels are built for (cmake/cuda.cmake) and the code
// under which other libraries hand it over (python/cuda/dlpack.hpp).
#pragma once

#include <cstddef>
#include <cstdint>

namespace mpfast {

// Kernels widen an entry on the fly; nothing is ever converted as a whole.
enum class DType : std::uint8_t { float64, float32, float16, bfloat16 };

constexpr DType kDTypes[] = {DType::float64, DType::float32, DType::float16, DType::bfloat16};

// A binary floating-point format: a sign, an exponent, and kMantissa bits of mantissa. It is that of double, the
// leading bits of that of float, or one with a shorter exponent than float has. Infinities and NaN are the patterns
// whose exponent bits are all set: they are found by these bits, which is also the test that vectorises.
//
// The functions are always inlined: the kernels of one instruction set must never run a copy compiled for another.
template <class BitsType, int kMantissa>
struct Format {
  using Bits = BitsType;
  static constexpr int kBits = 8 * static_cast<int>(sizeof(Bits));
  static constexpr int kMantissaBits = kMantissa;
  static constexpr int kExponentBits = kBits - 1 - kMantissaBits;
  static constexpr Bits kMagnitude = static_cast<Bits>((Bits{1} << (kBits - 1)) - 1);
  static constexpr Bits kExponent = static_cast<Bits>(kMagnitude >> kMantissaBits << kMantissaBits);

  // The value, exactly; infinities and NaN do not survive where the exponent is shorter than that of float.
  [[gnu::always_inline]] static constexpr double widen(Bits bits) {
    if constexpr (kIsDouble || kIsLeadingBitsOfFloat) {
      return whole(bits);
    } else {
      const auto magnitude = static_cast<Bits>(bits & kMagnitude);
      const std::uint32_t sign = static_cast<std::uint32_t>(bits ^ magnitude) << (32 - kBits);
      return __builtin_bit_cast(float, __builtin_bit_cast(std::uint32_t, rebiased(magnitude)) | sign);
    }
  }

  // The value of a finite entry without its sign, exactly, from its bits without the sign. Subnormal entries are
  // converted as integers, so a process that flushes subnormal floats to zero sees the same result.
  template <class Real>
  [[gnu::always_inline]] static constexpr Real widen_magnitude(Bits magnitude) {
    static_assert(kMantissaBits <= 23 || sizeof(Real) == sizeof(double), "these entries need double precision");
    if constexpr (kIsDouble || (kIsLeadingBitsOfFloat && sizeof(Real) == sizeof(float))) {
      return whole(magnitude);
    } else if constexpr (kIsLeadingBitsOfFloat) {
      const auto wide = static_cast<std::int32_t>(static_cast<std::uint32_t>(magnitude) << (32 - kBits));
      const double normal = whole(magnitude);
      const double subnormal = static_cast<double>(wide) * 0x1p-149;
      return wide < 0x00800000 ? subnormal : normal;
    } else {
      return rebiased(magnitude);
    }
  }

  // The nearest entry to a finite number, of two the even one; the largest entry where the format ends before float
  // does.
  [[gnu::always_inline]] static constexpr Bits narrow(double value) {
    if constexpr (kIsDouble) {
      return __builtin_bit_cast(Bits, value);
    } else {
      const auto bits = __builtin_bit_cast(std::uint32_t, static_cast<float>(value));
      const std::uint32_t magnitude = bits & 0x7fffffff;
      return static_cast<Bits>((bits ^ magnitude) >> (32 - kBits) | narrowed_magnitude(magnitude));
    }
  }

 private:
  static constexpr bool kIsDouble = kExponentBits == 11 && kBits == 64;
  static constexpr bool kIsLeadingBitsOfFloat = kExponentBits == 8;
  static_assert(kIsDouble || kExponentBits <= 8, "no format to widen from");

  // The bits as those of a double, or as the leading bits of a float.
  [[gnu::always_inline]] static constexpr auto whole(Bits bits) {
    if constexpr (kIsDouble) {
      return __builtin_bit_cast(double, bits);
    } else {
      return __builtin_bit_cast(float, static_cast<std::uint32_t>(bits) << (32 - kBits));
    }
  }

  // A short exponent is brought to float's bias by shifting it into place. A subnormal entry gets the exponent and the
  // leading one of the least normal number, which is then subtracted: no float subnormal appears on the way, and no
  // branch that would keep loops from being vectorised.
  [[gnu::always_inline]] static constexpr float rebiased(Bits magnitude) {
    constexpr int kShift = 23 - kMantissaBits;
    constexpr std::int32_t kRebias = (128 - (1 << (kExponentBits - 1))) << 23;
    constexpr std::int32_t kOne = 1 << 23;
    const auto wide = static_cast<std::int32_t>(magnitude);
    const std::int32_t subnormal = wide < (1 << kMantissaBits) ? -1 : 0;
    const auto value = __builtin_bit_cast(float, (wide << kShift) + kRebias + (subnormal & kOne));
    return value - __builtin_bit_cast(float, subnormal&(kRebias + kOne));
  }

  // From the bits of a float without its sign. A subnormal entry is a whole number of least ones: the sum has no room
  // for a fraction.
  [[gnu::always_inline]] static constexpr std::uint32_t narrowed_magnitude(std::uint32_t magnitude) {
    constexpr int kShift = 23 - kMantissaBits;
    if constexpr (kShift == 0) {
      return magnitude;
    } else {
      constexpr int kBias = (1 << (kExponentBits - 1)) - 1;
      constexpr std::uint32_t kRebias = static_cast<std::uint32_t>(127 - kBias) << 23;
      constexpr std::uint32_t kLeastNormal = kRebias + (1U << 23);
      if constexpr (kRebias != 0) {
        if (magnitude < kLeastNormal) {
          constexpr float kInLeast = static_cast<float>(std::int64_t{1} << (kBias - 1 + kMantissaBits));
          const float whole = __builtin_bit_cast(float, magnitude) * kInLeast + 0x1p23F;
          return __builtin_bit_cast(std::uint32_t, whole) & 0x7fffff;
        }
        constexpr std::uint32_t kLargest = kExponent - 1U;
        if (magnitude > kRebias + (kLargest << kShift)) return kLargest;
      }
      const std::uint32_t wide = magnitude - kRebias;
      return (wide + ((1U << (kShift - 1)) - 1) + (wide >> kShift & 1)) >> kShift;
    }
  }
};

// kName is the type's name in Python; kInNumPy says whether NumPy has a type of that name.
template <DType>
struct Entry;

template <>
struct Entry<DType::float64> : Format<std::uint64_t, 52> {
  static constexpr const char* kName = "float64";
  static constexpr bool kInNumPy = true;
};

template <>
struct Entry<DType::float32> : Format<std::uint32_t, 23> {
  static constexpr const char* kName = "float32";
  static constexpr bool kInNumPy = true;
};

template <>
struct Entry<DType::float16> : Format<std::uint16_t, 10> {
  static constexpr const char* kName = "float16";
  static constexpr bool kInNumPy = true;
};

template <>
struct Entry<DType::bfloat16> : Format<std::uint16_t, 7> {
  static constexpr const char* kName = "bfloat16";
  static constexpr bool kInNumPy = false;
};

// Calls function.template operator()<dtype>() for the dtype known at run time. The one switch over the types: without a
// default, so that the compiler says which one is missing.
template <class Function>
constexpr auto dispatch(DType dtype, Function&& function) {
  switch (dtype) {
    case DType::float64:
      return function.template operator()<DType::float64>();
    case DType::float32:
      return function.template operator()<DType::float32>();
    case DType::float16:
      return function.template operator()<DType::float16>();
    case DType::bfloat16:
      return function.template operator()<DType::bfloat16>();
  }
  __builtin_unreachable();
}

// Bytes of an entry.
constexpr std::size_t size_of(DType dtype) {
  return dispatch(dtype, [&]<DType each>() { return sizeof(typename Entry<each>::Bits); });
}

// Whether entries have more digits than single precision holds.
template <DType dtype>
constexpr bool kNeedsDouble = Entry<dtype>::kMantissaBits > 23;

constexpr bool needs_double(DType dtype) {
  return dispatch(dtype, [&]<DType each>() { return kNeedsDouble<each>; });
}

// The type in which vectors of a precision are stored.
template <class Real>
constexpr DType kDTypeOf = sizeof(Real) == sizeof(double) ? DType::float64 : DType::float32;

}  // namespace mpfast
