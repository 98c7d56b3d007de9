// Single eigenvalues of a symmetric band matrix, each at a cost that is linear in the order. One thread, the same bits
// every time.
#pragma once

#include <span>
#include <vector>

#include "core/types.hpp"

namespace mpfast::linalg {

struct SymmetricBand {
  SymmetricBand(index_t order_of, index_t width_of)
      : order(order_of), width(width_of), lower(static_cast<std::size_t>(order * (width + 1))) {}

  // Entry (column + below, column), 0 <= below <= width.
  double& at(index_t below, index_t column) { return lower[static_cast<std::size_t>(below + column * (width + 1))]; }
  double at(index_t below, index_t column) const {
    return lower[static_cast<std::size_t>(below + column * (width + 1))];
  }

  index_t order;
  index_t width;  // diagonals below the main one
  std::vector<double> lower;
};

// How many eigenvalues exceed each of the shifts, by Sylvester's law: A - x I = L D L^T without pivoting, which rarely
// counts one wrong. Whoever needs certainty decomposes A.
std::vector<index_t> eigenvalues_above(const SymmetricBand& a, std::span<const double> shifts);

// Eigenvalues by their numbers, 0 for the largest, of an A without negative ones, to a relative `precision`.
std::vector<double> eigenvalues(const SymmetricBand& a, std::span<const index_t> numbers, double precision);

// The last `count` coordinates of a unit eigenvector to the eigenvalue next to `near`, by inverse iteration.
std::vector<double> end_of_eigenvector(const SymmetricBand& a, double near, index_t count);

}  // namespace mpfast::linalg
