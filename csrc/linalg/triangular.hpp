// Small fp64 triangular algebra, n <= a few dozen, column-major.
#pragma once

#include <cmath>
#include <cstddef>
#include <vector>

#include "core/types.hpp"

namespace mpfast::linalg {

inline void identity(index_t n, std::vector<double>& a) {
  for (index_t j = 0; j < n; ++j) {
    for (index_t i = 0; i < n; ++i) a[static_cast<std::size_t>(j * n + i)] = i == j ? 1.0 : 0.0;
  }
}

// a (symmetric, upper triangle read) becomes R with R^T R = a, zeros below. Returns the number of columns finished
// before the pivot of column j was not above floors[j]; n on success.
inline index_t cholesky_upper(index_t n, std::vector<double>& a, const std::vector<double>& floors) {
  const auto at = [n](index_t i, index_t j) { return static_cast<std::size_t>(j * n + i); };
  for (index_t j = 0; j < n; ++j) {
    for (index_t i = 0; i <= j; ++i) {
      double sum = a[at(i, j)];
      for (index_t k = 0; k < i; ++k) sum -= a[at(k, i)] * a[at(k, j)];
      if (i < j) {
        a[at(i, j)] = sum / a[at(i, i)];
      } else {
        // The second test: what is left of the column is below the rounding of what it was.
        if (!(sum > floors[static_cast<std::size_t>(j)]) || !(sum > 1e-13 * a[at(j, j)])) return j;
        a[at(j, j)] = std::sqrt(sum);
      }
    }
    for (index_t i = j + 1; i < n; ++i) a[at(i, j)] = 0;
  }
  return n;
}

inline void upper_inverse(index_t n, const std::vector<double>& r, std::vector<double>& inverse) {
  const auto at = [n](index_t i, index_t j) { return static_cast<std::size_t>(j * n + i); };
  for (index_t j = 0; j < n; ++j) {
    for (index_t i = n - 1; i >= 0; --i) {
      double sum = i == j ? 1.0 : 0.0;
      for (index_t k = i + 1; k <= j; ++k) sum -= r[at(i, k)] * inverse[at(k, j)];
      inverse[at(i, j)] = i > j ? 0.0 : sum / r[at(i, i)];
    }
  }
}

inline std::vector<double> upper_product(index_t n, const std::vector<double>& a, const std::vector<double>& b) {
  const auto at = [n](index_t i, index_t j) { return static_cast<std::size_t>(j * n + i); };
  std::vector<double> c(static_cast<std::size_t>(n * n), 0.0);
  for (index_t j = 0; j < n; ++j) {
    for (index_t i = 0; i <= j; ++i) {
      double sum = 0;
      for (index_t k = i; k <= j; ++k) sum += a[at(i, k)] * b[at(k, j)];
      c[at(i, j)] = sum;
    }
  }
  return c;
}

}  // namespace mpfast::linalg
