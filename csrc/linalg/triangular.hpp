// Triangular algebra on square matrices of a few dozen rows.
#pragma once

#include <cassert>
#include <cmath>
#include <span>

#include "core/small_matrix.hpp"

namespace mpfast::linalg {

inline SmallMatrix identity(index_t n) {
  SmallMatrix a(n, n);
  for (index_t j = 0; j < n; ++j) a(j, j) = 1;
  return a;
}

// a (symmetric, upper triangle read) becomes R with R^T R = a, zeros below. Returns the number of columns finished
// before the pivot of column j was not above floors[j]; all of them on success.
inline index_t cholesky_upper(SmallMatrix& a, std::span<const double> floors) {
  const index_t n = a.cols();
  assert(a.rows() == n && std::ssize(floors) == n);
  for (index_t j = 0; j < n; ++j) {
    for (index_t i = 0; i <= j; ++i) {
      double sum = a(i, j);
      for (index_t k = 0; k < i; ++k) sum -= a(k, i) * a(k, j);
      if (i < j) {
        a(i, j) = sum / a(i, i);
      } else {
        // The second test: what is left of the column is below the rounding of what it was.
        if (!(sum > floors[j]) || !(sum > 1e-13 * a(j, j))) return j;
        a(j, j) = std::sqrt(sum);
      }
    }
    for (index_t i = j + 1; i < n; ++i) a(i, j) = 0;
  }
  return n;
}

// R^-1 of an upper triangular R.
inline SmallMatrix upper_inverse(const SmallMatrix& r) {
  const index_t n = r.cols();
  assert(r.rows() == n);
  SmallMatrix inverse(n, n);
  for (index_t j = 0; j < n; ++j) {
    for (index_t i = j; i >= 0; --i) {
      double sum = i == j ? 1.0 : 0.0;
      for (index_t k = i + 1; k <= j; ++k) sum -= r(i, k) * inverse(k, j);
      inverse(i, j) = sum / r(i, i);
    }
  }
  return inverse;
}

// A B of upper triangular A and B.
inline SmallMatrix upper_product(const SmallMatrix& a, const SmallMatrix& b) {
  const index_t n = a.cols();
  assert(a.rows() == n && b.rows() == n && b.cols() == n);
  SmallMatrix c(n, n);
  for (index_t j = 0; j < n; ++j) {
    for (index_t i = 0; i <= j; ++i) {
      double sum = 0;
      for (index_t k = i; k <= j; ++k) sum += a(i, k) * b(k, j);
      c(i, j) = sum;
    }
  }
  return c;
}

}  // namespace mpfast::linalg
