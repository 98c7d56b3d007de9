// The few types every part of the core shares.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.hpp"

namespace mpfast {

using index_t = std::int64_t;

constexpr index_t ceil_div(index_t a, index_t b) { return (a + b - 1) / b; }

// A read-only matrix somewhere in host memory. Strides are counted in entries and may be negative or zero.
struct MatrixView {
  const void* data = nullptr;
  DType dtype = DType::float32;
  index_t rows = 0;
  index_t cols = 0;
  index_t row_stride = 0;
  index_t col_stride = 0;

  MatrixView transposed() const { return {data, dtype, cols, rows, col_stride, row_stride}; }
};

// Part of a matrix: rows [row, row + rows), columns [col, col + cols).
struct Piece {
  index_t row = 0;
  index_t rows = 0;
  index_t col = 0;
  index_t cols = 0;
};

inline double entries_of(const MatrixView& w) { return static_cast<double>(w.rows) * static_cast<double>(w.cols); }

}  // namespace mpfast
