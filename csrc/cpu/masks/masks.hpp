// Masks over one matrix or over a whole model, without an array of scores.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "core/types.hpp"
#include "cpu/machine/team.hpp"

namespace mpfast::cpu {

// A matrix, the factor its magnitudes are multiplied with (positive; 1 for plain magnitude), and where its mask goes:
// rows * cols bytes in row-major order, 1 = kept.
struct ScoredMatrix {
  MatrixView entries;
  double scale = 1;
  std::uint8_t* keep = nullptr;
};

// What makes a mask impossible: the first matrix that has infinities or NaN, how many, and the row-major index of the
// first of them.
struct NonFinite {
  index_t matrix = 0;
  index_t count = 0;
  index_t first = 0;
};

// Prunes exactly `pruned` (between 0 and the number of all entries) entries of the smallest scores |w| * scale. Zeros
// go first; equal scores go in the order of the matrices, then of the row-major index. Scores are computed in float, or
// in double as soon as one matrix is stored in double. cut_search.hpp says how. The mask is the same for any size of
// the team. When the result is set, the masks were not written.
std::optional<NonFinite> prune_smallest(Team& team, std::span<const ScoredMatrix> matrices, index_t pruned);

// Keeps the n entries of largest magnitude of every m consecutive ones of a row; of equal entries the one at the lower
// index is pruned. 1 <= n <= m <= 64; m divides cols (std::invalid_argument otherwise). Reads each entry and writes
// each byte of the mask once. When the result is set, the masks are of no use. Scales are ignored.
std::optional<NonFinite> keep_largest_of_groups(Team& team, std::span<const ScoredMatrix> matrices, int n, int m);

}  // namespace mpfast::cpu
