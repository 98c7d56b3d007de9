// What the driver of the sums of x x^T (gram_sum.cpp, compiled once) asks of its SIMD kernels (gram_sum_kernels.cpp,
// compiled once per instruction set).
//
// Columns of X come in panels of `panel` columns: row k of a panel starts at k * panel, widened to Real. A tile of rows
// is as deep as a sum in Real may be: kTileDepth rows.
#pragma once

#include "core/types.hpp"

namespace mpfast::cpu {

constexpr index_t kTileDepth = 256;

// Where the product of two panels is added: entry (i, j) at sums[i * stride + j], for i < height and j < width. On the
// diagonal, where both panels are the same, only entries with j >= i are touched.
struct GramTarget {
  double* sums = nullptr;
  index_t stride = 0;
  index_t height = 0;
  index_t width = 0;
  bool on_diagonal = false;
};

template <class Real>
struct GramKernels {
  index_t panel;

  // target += a^T b over `depth` <= kTileDepth rows. Each entry is summed in Real, one row after the other, and then
  // added in double.
  //
  // Flops: 2 depth panel^2. Of b, which stays in L1 or comes from L2, three registers are read per row and group of
  // rows of the result; of a, one entry for each row of that group.
  void (*add_product)(const Real* a, const Real* b, index_t depth, const GramTarget& target);
};

template <class Isa, class Real>
GramKernels<Real> gram_kernels();

}  // namespace mpfast::cpu
