// The few types every part of the core shares.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mpfast {

using index_t = std::int64_t;

// How an entry of W is stored. Kernels widen it on the fly; nothing is ever converted as a whole.
enum class DType : std::uint8_t { float64, float32, float16, bfloat16 };

constexpr std::size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::float64:
      return 8;
    case DType::float32:
      return 4;
    default:
      return 2;
  }
}

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

}  // namespace mpfast
