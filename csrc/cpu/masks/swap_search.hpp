// Dropping d of m slots at little cost when there are too many sets to look at them all; see masks/projection.hpp for
// the cost.
#pragma once

#include <cstdint>

namespace mpfast::cpu {

constexpr int kLargestSwapGroup = 64;

// The set, as bits. There are two starts: the d slots of least A_ii, and the greedy choice. Each is improved by the
// best exchange of a dropped and a kept slot until no exchange helps; the better result is returned.
std::uint64_t cheapest_set(const double* a, int m, int d);

}  // namespace mpfast::cpu
