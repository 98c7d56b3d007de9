// What the register tiles of the products share: columns in pairs of registers, the widths of groups, and sums that go
// on in double. As in simd.hpp, everything has internal linkage.
#pragma once

#include "cpu/machine/simd.hpp"
#include "cpu/products/product_kernels.hpp"

namespace mpfast::cpu::MPFAST_ISA {

namespace {

constexpr int kWideGroup = kManyRegisters ? kMaxGroupWidth : kGroupWidth;
// About how many squares are added up in single precision before their sum goes on in double.
constexpr index_t kSquareRun = 64;

template <class Real>
constexpr index_t kPair = 2 * kLanes<Real>;

// Columns in pairs of registers.
template <class Storage>
struct Span {
  const Storage* data = nullptr;
  index_t row_stride = 0;
  index_t pairs = 0;

  Span from(index_t row) const { return {data + row * row_stride, row_stride, pairs}; }
};

// The columns of a panel: whole pairs of registers stay where they lie; the columns left over are copied to `copies`
// and padded with zeros.
template <class Real, class Storage, index_t kRows>
class Columns {
 public:
  Columns() = default;
  Columns(const Storage* data, index_t row_stride, index_t rows, index_t cols) { hold(data, row_stride, rows, cols); }

  Columns(const Columns&) = delete;
  Columns& operator=(const Columns&) = delete;

  void hold(const Storage* data, index_t row_stride, index_t rows, index_t cols) {
    const index_t pairs = cols / kPair<Real>;
    const index_t rest = cols % kPair<Real>;
    spans[0] = {data, row_stride, pairs};
    if (rest == 0) return;
    for (index_t i = 0; i < rows; ++i) {
      for (index_t k = 0; k < kPair<Real>; ++k) {
        copies_[i * kPair<Real> + k] = k < rest ? data[i * row_stride + pairs * kPair<Real> + k] : Storage{};
      }
    }
    spans[1] = {copies_, kPair<Real>, 1};
  }

  Span<Storage> spans[2];

 private:
  Storage copies_[kRows * kPair<Real>];
};

[[gnu::always_inline]] inline void flush(Vec<float>& run, Vec<double>& total) {
  total += to_double<kLanes<double>>(low_half(run)) + to_double<kLanes<double>>(high_half(run));
  run = Vec<float>{};
}

[[gnu::always_inline]] inline void flush(Vec<double>& run, Vec<double>& total) {
  total += run;
  run = Vec<double>{};
}

// sums[k] += lane k of `run`.
[[gnu::always_inline]] inline void add_in_double(const Vec<float>& run, double* sums) {
  constexpr int L = kLanes<double>;
  store(sums, load<double>(sums) + to_double<L>(low_half(run)));
  store(sums + L, load<double>(sums + L) + to_double<L>(high_half(run)));
}

[[gnu::always_inline]] inline void add_in_double(const Vec<double>& run, double* sums) {
  store(sums, load<double>(sums) + run);
}

// An operand of several FMAs. Where there are many registers it is kept in one; where there are few, it is read from
// the cache for each.
template <class V>
[[gnu::always_inline]] inline V reused(V v) {
  if constexpr (kManyRegisters) return in_register(v);
  return v;
}

// function.template operator()<G>() for a group of G = `width` vectors: kMost of them, or 1 to kGroupWidth.
template <int kMost, class Function>
[[gnu::always_inline]] inline void with_width(index_t width, const Function& function) {
  if constexpr (kMost > 1) {
    constexpr int kNext = kMost > kGroupWidth ? static_cast<int>(kGroupWidth) : kMost - 1;
    if (width < kMost) return with_width<kNext>(width, function);
  }
  function.template operator()<kMost>();
}

}  // namespace

}  // namespace mpfast::cpu::MPFAST_ISA
