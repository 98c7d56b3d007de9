// Compiled once per instruction set (see CMakeLists.txt), with internal linkage for all but the last function.
#include "cpu/products/energy_kernels.hpp"

#include "cpu/machine/dispatch.hpp"
#include "cpu/machine/simd.hpp"

namespace mpfast::cpu::MPFAST_ISA {

namespace {

constexpr int kStripRegisters = kManyRegisters ? 8 : 4;
constexpr index_t L = kLanes<double>;

// N registers of columns of all rows. An entry takes its two factors as one: that of a dead row or column is zero, and
// no entry is so large that zero times it is not.
template <class Storage, int N, bool kFactors>
[[gnu::always_inline]] inline void add_strip(const Panel& panel, const Storage* data, double scale,
                                             const double* row_factors, const double* col_factors,
                                             Vec<double>* row_sums, double* cols) {
  Vec<double> sums[N];
  Vec<double> factors[N];
#pragma GCC unroll 8
  for (int k = 0; k < N; ++k) {
    sums[k] = load<double>(cols + k * L);
    if constexpr (kFactors) factors[k] = load<double>(col_factors + k * L);
  }
  for (index_t i = 0; i < panel.rows; ++i, data += panel.row_stride) {
    const Vec<double> row_factor = broadcast(kFactors ? row_factors[i] : 1.0);
    Vec<double> row_sum = row_sums[i];
#pragma GCC unroll 8
    for (int k = 0; k < N; ++k) {
      Vec<double> value = load<double>(data + k * L);
      if constexpr (kFactors) value *= row_factor * factors[k];
      value *= broadcast(scale);
      sums[k] = fma(value, value, sums[k]);
      row_sum = fma(value, value, row_sum);
    }
    row_sums[i] = row_sum;
  }
#pragma GCC unroll 8
  for (int k = 0; k < N; ++k) store(cols + k * L, sums[k]);
}

template <class Storage, bool kFactors>
void add_energies_with(const Panel& panel, double scale, const Factors& factors, double* rows, double* cols) {
  const auto* data = static_cast<const Storage*>(panel.data);
  Vec<double> row_sums[kMaxPanelRows] = {};
  index_t j = 0;
  const auto take = [&]<int N>() {
    add_strip<Storage, N, kFactors>(panel, data + j, scale, factors.rows, factors.cols + (kFactors ? j : 0), row_sums,
                                    cols + j);
    j += N * L;
  };
  while (j + kStripRegisters * L <= panel.cols) take.template operator()<kStripRegisters>();
  while (j + L <= panel.cols) take.template operator()<1>();
  for (index_t i = 0; i < panel.rows; ++i) {
    double sum = add_lanes(row_sums[i]);
    for (index_t k = j; k < panel.cols; ++k) {
      double value = load_one<double>(data + i * panel.row_stride + k);
      if constexpr (kFactors) value *= factors.rows[i] * factors.cols[k];
      value *= scale;
      cols[k] += value * value;
      sum += value * value;
    }
    rows[i] += sum;
  }
}

template <class Storage>
void add_energies(const Panel& panel, double scale, const Factors& factors, double* rows, double* cols) {
  if (factors.given()) return add_energies_with<Storage, true>(panel, scale, factors, rows, cols);
  add_energies_with<Storage, false>(panel, scale, factors, rows, cols);
}

}  // namespace

}  // namespace mpfast::cpu::MPFAST_ISA

namespace mpfast::cpu {

template <>
AddEnergies energy_kernel<isa::MPFAST_ISA>(DType storage) {
  return dispatch(storage, []<DType each>() -> AddEnergies {
    return &MPFAST_ISA::add_energies<typename MPFAST_ISA::StorageOf<each>::Type>;
  });
}

}  // namespace mpfast::cpu
