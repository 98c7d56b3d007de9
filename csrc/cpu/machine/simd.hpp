// Registers of the instruction set this file is compiled for, as GCC/Clang vector types, and the loads that widen a
// stored entry to the type of computation. Everything has internal linkage: a function compiled for AVX-512 must never
// be the copy the linker keeps for the baseline code. For the same reason no standard header with inline code is used.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __AVX2__
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "core/dtype.hpp"

namespace mpfast::cpu::MPFAST_ISA {

namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr bool kManyRegisters = true;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr bool kManyRegisters = false;
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16;
constexpr bool kManyRegisters = true;
#else
constexpr int kVectorBytes = 16;
constexpr bool kManyRegisters = false;
#endif

// How entries of a type lie in memory, as types that loads tell apart.
struct Half {
  std::uint16_t bits;
};
struct BFloat {
  std::uint16_t bits;
};

template <DType>
struct StorageOf;
template <>
struct StorageOf<DType::float64> {
  using Type = double;
};
template <>
struct StorageOf<DType::float32> {
  using Type = float;
};
template <>
struct StorageOf<DType::float16> {
  using Type = Half;
};
template <>
struct StorageOf<DType::bfloat16> {
  using Type = BFloat;
};

template <class T, int N>
struct VectorType {
  typedef T Type __attribute__((vector_size(sizeof(T) * N)));
};
template <class T, int N>
using VecN = typename VectorType<T, N>::Type;

template <class Real>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(Real));
template <class Real>
using Vec = VecN<Real, kLanes<Real>>;

template <class To, class From>
[[gnu::always_inline]] inline To bit_copy(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

template <class V>
[[gnu::always_inline]] inline V load_as(const void* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

template <class Real>
[[gnu::always_inline]] inline void store(Real* p, const Vec<Real>& v) {
  __builtin_memcpy(p, &v, sizeof v);
}

template <class Real>
[[gnu::always_inline]] inline Vec<Real> broadcast(Real value) {
  return value - Vec<Real>{};  // exact for every value, -0 included; compiles to one broadcast
}

// a * b + c, fused where the machine can.
[[gnu::always_inline]] inline Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
  return vfmaq_f32(c, a, b);
#else
  return a * b + c;
#endif
}

[[gnu::always_inline]] inline Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_pd(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_pd(a, b, c);
#elif defined(__aarch64__)
  return vfmaq_f64(c, a, b);
#else
  return a * b + c;
#endif
}

// N consecutive stored entries as float.
template <int N>
[[gnu::always_inline]] inline VecN<float, N> load_float(const float* p) {
  return load_as<VecN<float, N>>(p);
}

// GCC 12 compiles __builtin_convertvector in halves, so intrinsics are used where they exist. They are the masked ones,
// because GCC 12 warns about its own header in the others.
template <int N>
[[gnu::always_inline]] inline VecN<std::uint32_t, N> widen(const VecN<std::uint16_t, N>& v) {
  using Wide = VecN<std::uint32_t, N>;
#ifdef __AVX512F__
  if constexpr (N == 16) return bit_copy<Wide>(_mm512_maskz_cvtepu16_epi32(0xffff, bit_copy<__m256i>(v)));
#endif
#ifdef __AVX2__
  if constexpr (N == 8) return bit_copy<Wide>(_mm256_cvtepu16_epi32(bit_copy<__m128i>(v)));
#endif
  return __builtin_convertvector(v, Wide);
}

template <int N>
[[gnu::always_inline]] inline VecN<double, N> to_double(const VecN<float, N>& v) {
#ifdef __AVX512F__
  if constexpr (N == 8) return _mm512_maskz_cvtps_pd(0xff, v);
#endif
#ifdef __AVX2__
  if constexpr (N == 4) return _mm256_cvtps_pd(v);
#endif
  return __builtin_convertvector(v, VecN<double, N>);
}

using HalfVec = VecN<float, kLanes<float> / 2>;

[[gnu::always_inline]] inline HalfVec low_half(Vec<float> v) {
#if defined(__AVX512F__)
  return _mm512_maskz_extractf32x8_ps(0xff, v, 0);
#elif defined(__AVX2__)
  return _mm256_castps256_ps128(v);
#else
  return HalfVec{v[0], v[1]};
#endif
}

[[gnu::always_inline]] inline HalfVec high_half(Vec<float> v) {
#if defined(__AVX512F__)
  return _mm512_maskz_extractf32x8_ps(0xff, v, 1);
#elif defined(__AVX2__)
  return _mm256_extractf128_ps(v, 1);
#else
  return HalfVec{v[2], v[3]};
#endif
}

template <int N>
[[gnu::always_inline]] inline VecN<float, N> load_float(const BFloat* p) {
  return bit_copy<VecN<float, N>>(widen<N>(load_as<VecN<std::uint16_t, N>>(p)) << 16);
}

template <int N>
[[gnu::always_inline]] inline VecN<float, N> load_float(const Half* p) {
#ifdef __F16C__
#ifdef __AVX512F__
  if constexpr (N == 16) {  // the masked form, because GCC 12 warns about its own header in the other one
    return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
#endif
  if constexpr (N == 8) return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  if constexpr (N == 4) return _mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#endif
  using Bits = VecN<std::uint32_t, N>;
  const Bits half = widen<N>(load_as<VecN<std::uint16_t, N>>(p));
  const Bits magnitude = half & 0x7fffU;
  const Bits normal = (magnitude << 13) + ((127U - 15U) << 23);
  // A subnormal half is 2^-14 times its mantissa. Putting the mantissa below an implicit one and subtracting that one
  // needs no subnormal floats, which a process may have flushed to zero.
  const Bits smallest_normal = Bits{} + (113U << 23);
  const Bits subnormal = bit_copy<Bits>(bit_copy<VecN<float, N>>((magnitude << 13) + (113U << 23)) -
                                        bit_copy<VecN<float, N>>(smallest_normal));
  const Bits special = normal + ((128U - 16U) << 23);  // inf and nan
  const Bits is_subnormal = bit_copy<Bits>(magnitude < 0x0400U);
  const Bits is_special = bit_copy<Bits>(magnitude >= 0x7c00U);
  const Bits finite = (subnormal & is_subnormal) | (normal & ~is_subnormal);
  const Bits bits = (special & is_special) | (finite & ~is_special) | ((half & 0x8000U) << 16);
  return bit_copy<VecN<float, N>>(bits);
}

[[gnu::always_inline]] inline float load_one_float(const float* p) { return load_as<float>(p); }

[[gnu::always_inline]] inline float load_one_float(const BFloat* p) {
  return bit_copy<float>(static_cast<std::uint32_t>(p->bits) << 16);
}

[[gnu::always_inline]] inline float load_one_float(const Half* p) {
#ifdef __F16C__
  return _cvtsh_ss(p->bits);
#else
  const Half padded[4] = {*p, {}, {}, {}};
  return load_float<4>(padded)[0];
#endif
}

// N consecutive stored entries as Real.
template <class Real, int N, class Storage>
[[gnu::always_inline]] inline VecN<Real, N> load_n(const Storage* p) {
  if constexpr (sizeof(Storage) == sizeof(double)) {
    return load_as<VecN<Real, N>>(p);
  } else if constexpr (sizeof(Real) == sizeof(float)) {
    return load_float<N>(p);
  } else {
    return to_double<N>(load_float<N>(p));
  }
}

template <class Real, class Storage>
[[gnu::always_inline]] inline Vec<Real> load(const Storage* p) {
  return load_n<Real, kLanes<Real>>(p);
}

// Whether a pair of registers holds the even and the odd ones of 2 L consecutive entries, instead of the first and the
// last L. (With AVX-512, widening on the way from the cache costs less than using one register twice.)
template <class Real, class Storage>
constexpr bool kPairedStorage = false;
template <>
constexpr bool kPairedStorage<float, BFloat> = kVectorBytes < 64;

// Register h of the pair of registers that 2 L consecutive stored entries fill. (All machines this is compiled for are
// little-endian.)
template <class Real, int h, class Storage>
[[gnu::always_inline]] inline Vec<Real> load_half(const Storage* pair) {
  if constexpr (kPairedStorage<Real, Storage>) {
    using Bits = VecN<std::uint32_t, kLanes<float>>;
    const Bits words = load_as<Bits>(pair);
    if constexpr (h == 0) return bit_copy<Vec<float>>(words << 16);
    return bit_copy<Vec<float>>(words & 0xffff0000U);
  } else {
    return load<Real>(pair + h * kLanes<Real>);
  }
}

template <class Real, class Storage>
[[gnu::always_inline]] inline Real load_one(const Storage* p) {
  if constexpr (sizeof(Storage) == sizeof(double)) {
    return load_as<Real>(p);
  } else {
    return static_cast<Real>(load_one_float(p));
  }
}

// Calls function.template operator()<k>() for k in [0, N).
template <int N, class Function>
[[gnu::always_inline]] inline void unroll(Function&& function) {
  if constexpr (N > 1) unroll<N - 1>(function);
  function.template operator()<N - 1>();
}

// The lanes added in a fixed order, halves first.
template <class Real>
[[gnu::always_inline]] inline Real add_lanes_of(const Vec<Real>& v) {
  Real sums[kLanes<Real>];
  store(sums, v);
  for (int half = kLanes<Real> / 2; half > 0; half /= 2) {
    for (int k = 0; k < half; ++k) sums[k] += sums[k + half];
  }
  return sums[0];
}

[[gnu::always_inline]] inline float add_lanes(const Vec<float>& v) { return add_lanes_of<float>(v); }
[[gnu::always_inline]] inline double add_lanes(const Vec<double>& v) { return add_lanes_of<double>(v); }

// Bit i: whether lane i of a comparison of integers, 32 or 64 bits each, holds.
template <class Integer>
[[gnu::always_inline]] inline unsigned lanes_that_hold(const Vec<Integer>& comparison) {
#if defined(__AVX512BW__)
  const auto bits = bit_copy<__m512i>(comparison);
  return sizeof(Integer) == 4 ? _mm512_movepi32_mask(bits) : _mm512_movepi64_mask(bits);
#elif defined(__AVX2__)
  const auto bits = bit_copy<__m256i>(comparison);
  return static_cast<unsigned>(sizeof(Integer) == 4 ? _mm256_movemask_ps(_mm256_castsi256_ps(bits))
                                                    : _mm256_movemask_pd(_mm256_castsi256_pd(bits)));
#else
  unsigned bits = 0;
  for (int lane = 0; lane < kLanes<Integer>; ++lane) bits |= static_cast<unsigned>(comparison[lane] & 1) << lane;
  return bits;
#endif
}

// The same value, which the compiler must hold in a register. By itself it would load the value again for every use, as
// an operand in memory, where loads are the bottleneck (and the rows of the caller's matrix are not aligned).
template <class V>
[[gnu::always_inline]] inline V in_register(V v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__x86_64__)
  asm("" : "+x"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
  return v;
}

}  // namespace

}  // namespace mpfast::cpu::MPFAST_ISA
