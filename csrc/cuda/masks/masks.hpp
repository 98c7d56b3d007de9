// Masks over matrices in device memory: the same masks, bit for bit, as cpu/masks/masks.hpp, from the same keys
// (masks/select.hpp, masks/n_m.hpp). No array of scores; no floating-point atomics.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "core/types.hpp"
#include "cuda/machine/runtime.hpp"

namespace mpfast::cuda {

// A matrix, the factor its magnitudes are multiplied with (positive), and where its mask goes: rows * cols bytes of
// device memory in row-major order, 1 = kept.
struct ScoredMatrix {
  MatrixView entries;
  double scale = 1;
  std::uint8_t* keep = nullptr;
};

// A matrix that has infinities or NaN, how many, and the row-major index of the first of them.
struct NonFinite {
  index_t matrix = 0;
  index_t count = 0;
  index_t first = 0;
};

// Finds the first matrix that has some. Only reached on the way to an error; throws MatrixChanged when there is none.
NonFinite describe_nonfinite(Stream stream, std::span<const ScoredMatrix> matrices);

// Prunes exactly `pruned` entries of the smallest scores |w| * scale over all matrices; zeros first, equal scores in
// the order of the matrices, then of the row-major index. Scores in float, or in double as soon as one matrix is stored
// so.
//
// The score to cut at is found digit by digit, 11 bits of the key at a time: each pass over the weights counts the keys
// that agree with the digits known so far. Three passes (six for double) find it, one more writes the masks and counts
// the ties, and only blocks that hold ties to be pruned are written again. Extra memory: one histogram, and a counter
// per 8192 entries. When the result is set, the masks were not written.
std::optional<NonFinite> prune_smallest(Stream stream, std::span<const ScoredMatrix> matrices, index_t pruned);

// Keeps the n entries of largest magnitude of every m consecutive ones of a row (1 <= n <= m <= 64, m divides cols); of
// equal entries the one at the lower index is pruned. Reads each entry once (groups of 2, 4 and 8; larger ones from the
// cache) and writes each byte of the mask once. When the result is set, the masks are of no use. Scales are ignored.
std::optional<NonFinite> keep_largest_of_groups(Stream stream, std::span<const ScoredMatrix> matrices, int n, int m);

}  // namespace mpfast::cuda
