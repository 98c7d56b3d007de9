// Launches of the mask kernels; masks.cpp is the algorithm around them.
#pragma once

#include <cstdint>

#include "core/types.hpp"
#include "cuda/machine/runtime.hpp"
#include "cuda/masks/masks.hpp"

namespace mpfast::cuda {

// Consecutive entries, in row-major order, that one block of threads takes.
constexpr index_t kMaskChunk = 8192;
constexpr int kDigitBits = 11;
using Counter = unsigned long long;  // the 64-bit type that atomicAdd takes

// Keys whose digits above `shift + kDigitBits` are those of `prefix`.
struct KeyDigit {
  std::int64_t prefix = 0;
  int shift = 0;
};

// Adds to histogram[d] the number of keys with the given prefix and digit d; sets *nonfinite when an entry is not
// finite. `wide`: keys of 64 bits.
void count_digits(Stream stream, const ScoredMatrix& matrix, bool wide, KeyDigit digit, Counter* histogram,
                  std::uint32_t* nonfinite);

// Writes the mask of keys >= cut, and to ties[chunk] how many keys of each chunk equal it.
void write_mask(Stream stream, const ScoredMatrix& matrix, bool wide, std::int64_t cut, std::uint32_t* ties);

// Prunes ties: the first pruned[chunk] keys of each chunk that equal `cut`, in row-major order.
void prune_ties(Stream stream, const ScoredMatrix& matrix, bool wide, std::int64_t cut, const std::uint32_t* pruned);

// Writes the N:M mask; sets *nonfinite when an entry is not finite.
void write_groups(Stream stream, const ScoredMatrix& matrix, int n, int m, std::uint32_t* nonfinite);

// Per chunk: how many entries are not finite, and the row-major index of the first.
struct ChunkNonFinite {
  index_t count = 0;
  index_t first = 0;
};
void find_nonfinite(Stream stream, const MatrixView& entries, ChunkNonFinite* found);

constexpr index_t mask_chunks(const MatrixView& w) { return (w.rows * w.cols + kMaskChunk - 1) / kMaskChunk; }

}  // namespace mpfast::cuda
