// Optimal brain surgeon on the columns of a layer in host memory; see reconstruct/columns.hpp.
#pragma once

#include "cpu/machine/team.hpp"
#include "reconstruct/columns.hpp"

namespace mpfast::cpu {

// Groups of m <= 64: the exact search for m <= 16, the exchange search for longer ones, see masks/projection.hpp. The
// result is the same for any size of the team.
//
// rows cols^2 flops in products, and 128 rows cols in the tiles. Besides its arguments it needs as much memory as the
// weights.
void obs_columns(Team& team, const reconstruct::ColumnsProblem& problem);

}  // namespace mpfast::cpu
