// What the Gram driver (gram.cpp, compiled once) asks of the SIMD kernels (gram_kernels.cpp, compiled once per
// instruction set).
//
// Vectors are kept interleaved so that every kernel walks one stream, whatever the width and the length: entry j of
// vector c lies at [((j / lanes) * width + c) * lanes + j % lanes], and the last group is padded with zeros.
#pragma once

#include "core/types.hpp"

namespace mpfast::cpu {

// A few rows of the matrix whose entries are contiguous within a row.
struct Panel {
  const void* data = nullptr;
  index_t row_stride = 0;  // in entries
  index_t rows = 0;
  index_t cols = 0;
  bool packed = false;  // in our own buffer: zero-padded to whole vectors, rows apart by an odd number of cache lines
};

struct PackSource {
  const void* data = nullptr;
  index_t row_stride = 0;
  index_t col_stride = 0;
  index_t rows = 0;
  index_t cols = 0;
};

// The kernels for one storage type and one precision of computation.
template <class Real>
struct GramKernels {
  index_t lanes;  // entries of Real in one register

  // sums[i][c][lane] += panel[i][j] x[c][j] over j = lane (mod lanes). Adds sum(panel^2) to *sum_squares unless null;
  // for Real = float those squares are added in single precision 16 at a time, so they can over- and underflow.
  void (*dot)(const Panel& panel, index_t width, const Real* x, Real* sums, double* sum_squares);

  // y[i][c] = alpha * beta * sum over lanes of sums[i][c]
  void (*reduce)(index_t rows, index_t width, const Real* sums, Real alpha, Real beta, Real* y);

  // z[c][j] += sum_i panel[i][j] y[i][c], or = when `overwrite`. Meanwhile fetches `next` (the rows that follow, laid
  // out like the panel; may be null) into the second-level cache.
  void (*axpy)(const Panel& panel, index_t width, const Real* y, Real* z, bool overwrite, const void* next);

  // sum (scale * panel)^2, all in double.
  double (*sum_squares)(const Panel& panel, double scale);

  // target[i * target_stride + j] = source[i][j], widened, zero-padded to whole vectors.
  void (*pack)(const PackSource& source, Real* target, index_t target_stride);

  // The sum of the entries' bit patterns as unsigned integers of their size, modulo that size.
  std::uint64_t (*read)(const void* data, index_t count);
};

namespace baseline {
const GramKernels<float>* float_kernels(DType storage);
const GramKernels<double>* double_kernels(DType storage);
}  // namespace baseline

#ifdef MPFAST_X86_DISPATCH
namespace avx2 {
const GramKernels<float>* float_kernels(DType storage);
const GramKernels<double>* double_kernels(DType storage);
}  // namespace avx2

namespace avx512 {
const GramKernels<float>* float_kernels(DType storage);
const GramKernels<double>* double_kernels(DType storage);
}  // namespace avx512
#endif

}  // namespace mpfast::cpu
