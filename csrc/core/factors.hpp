// Factors of the rows and columns of W. What is worked with is then rows[i] W[i][j] cols[j], without ever being formed.
#pragma once

#include "core/types.hpp"

namespace mpfast {

// Finite and not negative; one for every row and column of W, or null where there are none. Where a factor is zero the
// row or column counts as zero, whatever products with it come to.
struct Factors {
  const double* rows = nullptr;
  const double* cols = nullptr;

  [[gnu::always_inline]] constexpr bool given() const { return rows != nullptr; }
  [[gnu::always_inline]] constexpr Factors transposed() const { return {cols, rows}; }
};

// Value times factor, in the precision of the value. (Inlined always: see dtype.hpp.)
template <class Real>
[[gnu::always_inline]] constexpr Real weighted(Real value, double factor) {
  return factor == 0 ? Real{0} : value * static_cast<Real>(factor);
}

// Between the halves of a Gram product a row takes its factor twice: their product may be no number.
template <class Real>
[[gnu::always_inline]] constexpr Real weighted_twice(Real value, double factor) {
  return weighted(weighted(value, factor), factor);
}

}  // namespace mpfast
