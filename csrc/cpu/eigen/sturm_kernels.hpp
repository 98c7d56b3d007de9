// Where the eigenvalues of a symmetric tridiagonal matrix lie around a shift (see tridiagonal_values.cpp).
#pragma once

#include "core/types.hpp"

namespace mpfast::cpu {

// Diagonal, and squares of what lies beside it, of which the last is 0: n entries each. Pivots of less than `tiny`
// stand for -tiny.
struct Tridiagonal {
  index_t n = 0;
  const double* diagonal = nullptr;
  const double* squares = nullptr;
  double tiny = 0;
};

// The most shifts that a call of the kernel takes. It also looks around those of the last registers that nobody asked
// for.
constexpr index_t kShifts = 32;

// Of each shift x: the number of eigenvalues below it, and the sums of 1 / (lambda - x) and of its square over all of
// them, which are infinite or not a number where x is all but an eigenvalue.
struct Around {
  alignas(64) double x[kShifts];
  alignas(64) index_t below[kShifts];
  alignas(64) double first[kShifts];
  alignas(64) double second[kShifts];
};

// By the pivots of T - x I, q_i = d_i - x - e_i^2 / q_{i-1}, and their first two logarithmic derivatives by x: a
// division and ten other operations for each entry and shift. Divisions of many shifts overlap.
using LookAround = void (*)(const Tridiagonal& matrix, Around& around, index_t shifts);

template <class Isa>
void look_around(const Tridiagonal& matrix, Around& around, index_t shifts);

}  // namespace mpfast::cpu
