// Inner loops of the n:m projection for m <= 16. One of them per instruction set.
#pragma once

#include <cstdint>

#include "core/types.hpp"

namespace mpfast::cpu {

// The groups of a few rows. Group g of row r is u[r * groups * m + g * m ...]; its second moment is that of group g.
struct ProjectionTile {
  const double* u = nullptr;        // rows x groups x m
  const double* moments = nullptr;  // groups x m x m
  const double* prior = nullptr;    // as u: added to the diagonal of each group
  int rows = 0;
  index_t groups = 0;
  int m = 0;
  int n = 0;
  std::uint8_t* keep = nullptr;  // as u
};

// Fills `keep`.
template <class Isa>
void project(const ProjectionTile& tile);

}  // namespace mpfast::cpu
