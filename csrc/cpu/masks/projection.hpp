// n:m masks that change the layer's output least, given the second moment of its inputs; see masks/projection.hpp.
#pragma once

#include <cstdint>
#include <optional>

#include "core/types.hpp"
#include "cpu/machine/team.hpp"
#include "cpu/masks/masks.hpp"

namespace mpfast::cpu {

struct ProjectionProblem {
  ScoredMatrix matrix;                   // its scale is ignored
  const double* moments = nullptr;       // cols / m blocks, m x m each, symmetric, positive semidefinite
  const std::uint8_t* source = nullptr;  // optional mask of the matrix's shape, row-major, for the prior
  double prior = 0;                      // cost of dropping a weight of `source`, in mean costs of a set of its group
  int n = 2;                             // of every m weights of a row n stay; 1 <= n <= m <= 64, m divides cols
  int m = 4;
};

// The best of all masks for m <= 16, else the one that swap_search.hpp finds. It is the same for any size of the team.
// When the result is set, the mask is of no use.
std::optional<NonFinite> project_groups(Team& team, const ProjectionProblem& problem);

}  // namespace mpfast::cpu
