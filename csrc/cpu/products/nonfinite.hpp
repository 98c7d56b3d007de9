// Where W is not finite.
#pragma once

#include "core/dtype.hpp"
#include "core/types.hpp"
#include "linalg/backend.hpp"

namespace mpfast::cpu {

// Counts the entries that are infinite or not numbers, and notes the first of them in row-major order.
inline void find_nonfinite(const MatrixView& w, linalg::OperatorStats& stats) {
  dispatch(w.dtype, [&]<DType dtype>() {
    using Bits = typename Entry<dtype>::Bits;
    const auto* data = static_cast<const Bits*>(w.data);
    for (index_t i = 0; i < w.rows; ++i) {
      for (index_t j = 0; j < w.cols; ++j) {
        const Bits bits = data[i * w.row_stride + j * w.col_stride];
        if ((bits & Entry<dtype>::kExponent) != Entry<dtype>::kExponent) continue;
        if (stats.nonfinite_count++ > 0) continue;
        stats.first_nonfinite_row = i;
        stats.first_nonfinite_col = j;
      }
    }
  });
}

}  // namespace mpfast::cpu
