// A power of two near the typical size of the entries of W.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/entry.hpp"
#include "core/types.hpp"

namespace mpfast {

// e such that 2^-e W can be squared and summed without over- or underflow: 0 for ordinary weights, else the exponent of
// the largest entry in a sample of 64 x 64 entries spread over W. A sample is enough: the bound has room to spare.
inline int scale_exponent(const MatrixView& w) {
  constexpr index_t kSample = 64;
  constexpr int kOrdinary = 24;
  return dispatch(w.dtype, [&]<DType dtype>() {
    using Bits = typename Entry<dtype>::Bits;
    const auto* data = static_cast<const Bits*>(w.data);
    const index_t row_step = std::max<index_t>(w.rows / kSample, 1);
    const index_t col_step = std::max<index_t>(w.cols / kSample, 1);
    double largest = 0;
    for (index_t i = 0; i < w.rows; i += row_step) {
      for (index_t j = 0; j < w.cols; j += col_step) {
        const Bits bits = data[i * w.row_stride + j * w.col_stride];
        if ((bits & Entry<dtype>::kExponent) == Entry<dtype>::kExponent) continue;
        largest = std::max(largest, std::abs(Entry<dtype>::widen(bits)));
      }
    }
    if (largest == 0) return 0;
    const int exponent = std::ilogb(largest);
    return std::abs(exponent) <= kOrdinary ? 0 : exponent;
  });
}

}  // namespace mpfast
