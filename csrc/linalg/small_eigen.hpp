// Small dense symmetric eigenproblems on the host, fp64, one thread, the same bits every time.
#pragma once

#include <vector>

#include "core/abandonable.hpp"
#include "core/small_matrix.hpp"

namespace mpfast::linalg {

// The eigenvalues of a (symmetric, both triangles given), ascending; a becomes its eigenvectors, one per column, in the
// same order. When the poll throws a is left empty.
std::vector<double> symmetric_eigen(SmallMatrix& a, const Poll& poll);

// The largest `count` of them, ascending, with their eigenvectors: of a fifth of all in less than half the time.
std::vector<double> largest_symmetric_eigen(SmallMatrix& a, index_t count, const Poll& poll);

}  // namespace mpfast::linalg
