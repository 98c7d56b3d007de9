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

#include "core/types.hpp"

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

struct Half {
  std::uint16_t bits;
};
struct BFloat {
  std::uint16_t bits;
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

template <int N>
[[gnu::always_inline]] inline VecN<float, N> load_float(const BFloat* p) {
  const auto wide = __builtin_convertvector(load_as<VecN<std::uint16_t, N>>(p), VecN<std::uint32_t, N>);
  return bit_copy<VecN<float, N>>(wide << 16);
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
  const Bits half = __builtin_convertvector(load_as<VecN<std::uint16_t, N>>(p), Bits);
  const Bits magnitude = half & 0x7fffU;
  const Bits normal = (magnitude << 13) + ((127U - 15U) << 23);
  // A subnormal half is 2^-14 times its mantissa: put the mantissa below an implicit one and take that one away, which
  // needs no subnormal floats (a process may have them flushed to zero).
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

// N consecutive stored entries as Real.
template <class Real, int N, class Storage>
[[gnu::always_inline]] inline VecN<Real, N> load_n(const Storage* p) {
  if constexpr (sizeof(Storage) == sizeof(double)) {
    return load_as<VecN<Real, N>>(p);
  } else if constexpr (sizeof(Real) == sizeof(float)) {
    return load_float<N>(p);
  } else {
    return __builtin_convertvector(load_float<N>(p), VecN<Real, N>);
  }
}

template <class Real, class Storage>
[[gnu::always_inline]] inline Vec<Real> load(const Storage* p) {
  return load_n<Real, kLanes<Real>>(p);
}

// The first `count` entries, then zeros; reads no further.
template <class Real, class Storage>
[[gnu::always_inline]] inline Vec<Real> load_partial(const Storage* p, index_t count) {
  Storage padded[kLanes<Real>] = {};
  for (index_t k = 0; k < count; ++k) padded[k] = p[k];
  return load<Real>(padded);
}

// Interleaves the low (high) halves of a's and b's 16-byte pieces, entry by entry.
[[gnu::always_inline]] inline Vec<float> interleave_low(Vec<float> a, Vec<float> b) {
#if defined(__AVX512F__)
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
#elif defined(__AVX2__)
  return __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13);
#else
  return __builtin_shufflevector(a, b, 0, 4, 1, 5);
#endif
}

[[gnu::always_inline]] inline Vec<float> interleave_high(Vec<float> a, Vec<float> b) {
#if defined(__AVX512F__)
  return __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
#elif defined(__AVX2__)
  return __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
#else
  return __builtin_shufflevector(a, b, 2, 6, 3, 7);
#endif
}

[[gnu::always_inline]] inline Vec<double> interleave_low(Vec<double> a, Vec<double> b) {
#if defined(__AVX512F__)
  return __builtin_shufflevector(a, b, 0, 8, 2, 10, 4, 12, 6, 14);
#elif defined(__AVX2__)
  return __builtin_shufflevector(a, b, 0, 4, 2, 6);
#else
  return __builtin_shufflevector(a, b, 0, 2);
#endif
}

[[gnu::always_inline]] inline Vec<double> interleave_high(Vec<double> a, Vec<double> b) {
#if defined(__AVX512F__)
  return __builtin_shufflevector(a, b, 1, 9, 3, 11, 5, 13, 7, 15);
#elif defined(__AVX2__)
  return __builtin_shufflevector(a, b, 1, 5, 3, 7);
#else
  return __builtin_shufflevector(a, b, 1, 3);
#endif
}

// The lanes added in a fixed order, halves first.
template <class Real>
[[gnu::always_inline]] inline Real add_lanes(const Real* lanes) {
  Real sums[kLanes<Real>];
  for (int k = 0; k < kLanes<Real>; ++k) sums[k] = lanes[k];
  for (int half = kLanes<Real> / 2; half > 0; half /= 2) {
    for (int k = 0; k < half; ++k) sums[k] += sums[k + half];
  }
  return sums[0];
}

}  // namespace

}  // namespace mpfast::cpu::MPFAST_ISA
