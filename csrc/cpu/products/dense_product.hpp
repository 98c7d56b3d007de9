// Products of two dense matrices of doubles, tile by tile.
#pragma once

#include "core/types.hpp"
#include "cpu/machine/team.hpp"

namespace mpfast::cpu {

// C = A B of the m x k matrix A and the k x n matrix B, all in memory row by row without gaps. Bitwise the same for any
// size of the team.
void dense_product(Team& team, index_t m, index_t n, index_t k, const double* a, const double* b, double* c);

}  // namespace mpfast::cpu
