// Compiled once per instruction set (see CMakeLists.txt), with internal linkage for all but the last functions.
#include "cpu/products/gram_sum_kernels.hpp"

#include "cpu/machine/dispatch.hpp"
#include "cpu/machine/simd.hpp"

namespace mpfast::cpu::MPFAST_ISA {

namespace {

// A group of rows of the result has as many sums as there are registers for, beside those of a row of b and one entry
// of a: 24 of 32 registers with AVX-512, 18 of 32 with NEON, 12 of 16 else (9 where four rows do not fill a panel).
constexpr int kRegisters = 3;
template <class Real>
constexpr int kPanel = kRegisters * kLanes<Real>;
template <class Real>
constexpr int kGroup = kManyRegisters ? (kVectorBytes == 64 ? 8 : 6) : (kPanel<Real> % 4 == 0 ? 4 : 3);

template <class Real>
struct Group {
  Vec<Real> sums[kGroup<Real>][kRegisters];
};

template <class Real>
[[gnu::always_inline]] inline Group<Real> product(const Real* a, const Real* b, index_t depth) {
  Group<Real> group{};
  for (index_t k = 0; k < depth; ++k) {
    Vec<Real> row[kRegisters];
    unroll<kRegisters>([&]<int h>() { row[h] = load<Real>(b + h * kLanes<Real>); });
    unroll<kGroup<Real>>([&]<int i>() {
      const Vec<Real> factor = broadcast(a[i]);
      unroll<kRegisters>([&]<int h>() { group.sums[i][h] = fma(factor, row[h], group.sums[i][h]); });
    });
    a += kPanel<Real>;
    b += kPanel<Real>;
  }
  return group;
}

[[gnu::always_inline]] inline void add(double* sums, Vec<double> v) { store(sums, load_as<Vec<double>>(sums) + v); }

[[gnu::always_inline]] inline void add(double* sums, Vec<float> v) {
  add(sums, to_double<kLanes<double>>(low_half(v)));
  add(sums + kLanes<double>, to_double<kLanes<double>>(high_half(v)));
}

// Entries [begin, end) of one row of a group.
template <class Real>
void add_some(double* sums, const Vec<Real> (&row)[kRegisters], index_t begin, index_t end) {
  Real entries[kPanel<Real>];
  for (int h = 0; h < kRegisters; ++h) store(entries + h * kLanes<Real>, row[h]);
  for (index_t j = begin; j < end; ++j) sums[j] += static_cast<double>(entries[j]);
}

template <class Real>
void add_product(const Real* a, const Real* b, index_t depth, const GramTarget& target) {
  const bool whole = target.width == kPanel<Real> && !target.on_diagonal;
  for (index_t top = 0; top < target.height; top += kGroup<Real>) {
    const Group<Real> group = product(a + top, b, depth);
    const index_t rows = target.height - top < kGroup<Real> ? target.height - top : kGroup<Real>;
    double* sums = target.sums + top * target.stride;
    for (index_t i = 0; i < rows; ++i, sums += target.stride) {
      if (whole) {
        for (int h = 0; h < kRegisters; ++h) add(sums + h * kLanes<Real>, group.sums[i][h]);
      } else {
        add_some<Real>(sums, group.sums[i], target.on_diagonal ? top + i : 0, target.width);
      }
    }
  }
}

}  // namespace

}  // namespace mpfast::cpu::MPFAST_ISA

namespace mpfast::cpu {

template <>
GramKernels<float> gram_kernels<isa::MPFAST_ISA, float>() {
  return {MPFAST_ISA::kPanel<float>, &MPFAST_ISA::add_product<float>};
}

template <>
GramKernels<double> gram_kernels<isa::MPFAST_ISA, double>() {
  return {MPFAST_ISA::kPanel<double>, &MPFAST_ISA::add_product<double>};
}

}  // namespace mpfast::cpu
