// Small dense symmetric eigenproblems on the host, fp64, one thread, the same bits every time.
#pragma once

#include <vector>

#include "core/abandonable.hpp"
#include "core/types.hpp"

namespace mpfast::linalg {

// a (n x n, column-major, both triangles) becomes its eigenvectors, one per column; values ascending. When the poll
// throws both are empty.
void symmetric_eigen(index_t n, std::vector<double>& a, std::vector<double>& values, const Poll& poll);

}  // namespace mpfast::linalg
