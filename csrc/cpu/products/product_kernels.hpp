// What the driver of the products (products.cpp, compiled once) asks of the SIMD kernels (product_kernels.cpp, compiled
// once per instruction set).
//
// Vectors come in groups of up to four, or of eight where there are registers for that, interleaved so that a kernel
// walks one stream per group. Entries are counted in pairs of registers of `lanes` entries: within a group of G
// vectors, register h (0 or 1) of pair p of vector c starts at ((2 p + h) G + c) lanes. A pair holds 2 lanes entries in
// order, unless the kernels are `paired`: then its first register holds the even ones and its second the odd ones,
// because that is how 16 bfloat16 entries fall apart most cheaply (a shift and a mask). The last pair is padded with
// zeros.
#pragma once

#include <cstdint>

#include "core/types.hpp"

namespace mpfast::cpu {

constexpr index_t kGroupWidth = 4;     // vectors that every kernel can work on at a time
constexpr index_t kMaxGroupWidth = 8;  // and the most that some can
constexpr index_t kMaxPanelRows = 24;

// Rows of the matrix whose entries are contiguous within a row.
struct Panel {
  const void* data = nullptr;
  index_t row_stride = 0;  // in entries
  index_t rows = 0;
  index_t cols = 0;
};

struct PackSource {
  const void* data = nullptr;
  index_t row_stride = 0;
  index_t col_stride = 0;
  index_t rows = 0;
  index_t cols = 0;
};

// Functions that kernels call are always inlined (see core/dtype.hpp).

// Where the squares of a panel's entries are added: those of every row to `rows`, those of every column to `cols`,
// which is laid out as a group of one vector. Null where nobody asks.
struct Squares {
  double* rows = nullptr;
  double* cols = nullptr;

  [[gnu::always_inline]] bool wanted() const { return rows != nullptr; }

  // Those of the rows from `row` on.
  [[gnu::always_inline]] Squares from(index_t row) const { return wanted() ? Squares{rows + row, cols} : Squares{}; }
};

// What a sweep over rows multiplies one group of vectors with, and what it adds to: z += rows^T (alpha beta f^2 o (rows
// x)), where f are factors of the rows, or null. With squares, `col_runs` are zeros, as many as there are
// `squares.cols`, which the sweep leaves so.
template <class Real>
struct SweepVectors {
  index_t width = 0;
  const Real* x = nullptr;
  Real alpha{};
  Real beta{};
  const double* row_factors = nullptr;
  Real* z = nullptr;
  Squares squares;
  Real* col_runs = nullptr;

  [[gnu::always_inline]] const double* factors_from(index_t row) const {
    return row_factors == nullptr ? nullptr : row_factors + row;
  }
};

// The kernels for one storage type and one precision of computation. `width`, of one group, is 1 to kGroupWidth or
// `wide_group`; `sweep` has no wide form, and is null where dot and axpy are faster.
//
// Squares are those of the entries as they are, added in Real in runs of about 64, and these in double: they are good
// to 1e-6 for Real = float, and can over- and underflow.
template <class Real>
struct ProductKernels {
  index_t lanes;  // entries of Real in one register
  bool paired;
  index_t wide_group;  // kMaxGroupWidth, or kGroupWidth where that has no advantage

  // y[i * width + c] = alpha beta sum_j panel[i][j] x[c][j], for at most kMaxPanelRows rows, which may come in pieces
  // of whole pairs of columns. Of each piece the first adds a register of partial sums at totals[(i * width + c)
  // lanes]; the second makes `count` entries of y of them.
  void (*add_dots)(const Panel& piece, index_t width, const Real* x, Real* totals);
  void (*add_up)(index_t count, const Real* totals, Real alpha, Real beta, Real* y);

  // z[c][j] += sum_i panel[i][j] y[i * width + c], for at most kMaxPanelRows rows.
  void (*axpy)(const Panel& panel, index_t width, const Real* y, Real* z, const Squares& squares);

  // Both at once, for one group and any number of rows.
  void (*sweep)(const Panel& panel, const SweepVectors<Real>& vectors);

  // target[i * target_stride + j] = source[i][j], widened.
  void (*pack)(const PackSource& source, Real* target, index_t target_stride);

  // The sum of the entries' bit patterns as unsigned integers of their size, modulo that size.
  std::uint64_t (*read)(const void* data, index_t count);
};

// Null where entries need double and Real is float.
template <class Isa, class Real>
const ProductKernels<Real>* product_kernels(DType storage);

}  // namespace mpfast::cpu
