// The second moment of rows that come in blocks: sums += X^T X, a symmetric rank-k update.
//
// X (n x d) is cut into tiles of kTileDepth rows. Within a tile an entry of X^T X is summed in single precision (in
// double for float64 storage), between tiles in double: the error of an entry (i, j) is at most about
// kTileDepth u sum_k |x_ki x_kj| with u = 2^-24, and grows neither with n nor with the number of calls. Only the upper
// triangle is computed: d (d + panel) n flops, panel being at most 48.
//
// Memory: kRowsAtOnce rows of X at a time are copied into panels, kRowsAtOnce d entries. A task works on a block of the
// sums of about 192 x 192 (0.3 MB), which stays in L2 with the two strips of panels it is made of (0.2 MB each and
// tile) while all tiles at hand are added to it.
#pragma once

#include "core/types.hpp"
#include "cpu/machine/team.hpp"

namespace mpfast::cpu {

// `sums` is d x d, row-major; entries below the diagonal are not touched. The same bits for any size of the team. If an
// exception ends it, sums has some of the products.
void add_gram(Team& team, const MatrixView& x, double* sums);

// How many threads such an update can occupy.
index_t gram_tasks(const MatrixView& x);

}  // namespace mpfast::cpu
