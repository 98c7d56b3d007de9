// Dropping d of m slots at little cost when there are too many sets to look at them all; see masks/projection.hpp for
// the cost.
#pragma once

#include <cstdint>

namespace mpfast::cpu {

constexpr int kLargestSwapGroup = 64;

// The set, as bits. Two starts, the d slots of least A_ii and the greedy choice, each improved by the best exchange of
// a dropped and a kept slot until there is none; the better of the two.
// a: A, m x m, symmetric, row by row. 1 <= d < m <= 64.
std::uint64_t cheapest_set(const double* a, int m, int d);

}  // namespace mpfast::cpu
