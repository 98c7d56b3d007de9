// A power of two near the typical size of the entries of W.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "core/dtype.hpp"
#include "core/factors.hpp"
#include "core/types.hpp"

namespace mpfast {

// 2^-e as two factors that both are normal numbers.
template <class Real>
struct Scale {
  Real half = 1;
  Real rest = 1;
  double whole = 1;

  explicit Scale(int e) {
    const int limit = sizeof(Real) == sizeof(double) ? 1020 : 250;
    if (e < -limit || e > limit) {
      throw std::invalid_argument("scale_exponent must be between -" + std::to_string(limit) + " and " +
                                  std::to_string(limit) + ", got " + std::to_string(e));
    }
    half = std::ldexp(Real{1}, -(e / 2));
    rest = std::ldexp(Real{1}, -(e - e / 2));
    whole = std::ldexp(1.0, -e);
  }
};

// The sample that scale_exponent takes of W: every row_step-th row and col_step-th column.
struct ScaleSample {
  index_t row_step = 1;
  index_t col_step = 1;

  template <class W>
  explicit ScaleSample(const W& w)
      : row_step(std::max<index_t>(w.rows / 64, 1)), col_step(std::max<index_t>(w.cols / 64, 1)) {}
};

// e such that 2^-e W, with its factors, can be squared and summed without over- or underflow: 0 for ordinary weights,
// else the exponent of the largest entry in a sample of about 64 x 64 entries spread over W. A sample is enough: the
// bound has room to spare. entry(i, j) is an entry of W, or zero in the place of one that is not finite.
template <class W, class EntryOf>
int scale_exponent(const W& w, const Factors& factors, const EntryOf& entry) {
  constexpr int kOrdinary = 24;
  const ScaleSample sample(w);
  double largest = 0;
  for (index_t i = 0; i < w.rows; i += sample.row_step) {
    for (index_t j = 0; j < w.cols; j += sample.col_step) {
      const double factor = factors.given() ? factors.rows[i] * factors.cols[j] : 1.0;
      largest = std::max(largest, std::abs(entry(i, j) * factor));
    }
  }
  if (largest == 0) return 0;
  // 2^-e must be a number too: denormal entries are brought closer to one, but not all the way.
  const int exponent = std::max(std::ilogb(largest), -1000);
  return std::abs(exponent) <= kOrdinary ? 0 : exponent;
}

inline int scale_exponent(const MatrixView& w, const Factors& factors = {}) {
  return dispatch(w.dtype, [&]<DType dtype>() {
    using Bits = typename Entry<dtype>::Bits;
    const auto* data = static_cast<const Bits*>(w.data);
    return scale_exponent(w, factors, [&](index_t i, index_t j) {
      const Bits bits = data[i * w.row_stride + j * w.col_stride];
      const bool finite = (bits & Entry<dtype>::kExponent) != Entry<dtype>::kExponent;
      return finite ? Entry<dtype>::widen(bits) : 0.0;
    });
  });
}

}  // namespace mpfast
